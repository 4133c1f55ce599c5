"""PSNR of a photo that the shipped network restores, in half precision and in float32."""

import contextlib
import functools
import itertools

import skimage.data
import torch

import mirnet_fast
from mirnet_fast import demonstration, evaluation

from . import DEVICE, ON_GPU
from .cases import Case, run_cases, tell
from .contract import with_backend


def precision():
    side = 512 if ON_GPU else 16
    clean = skimage.data.astronaut()[:side, :side].astype("float32") / 255
    noisy = demonstration.add_noise(clean, 25, 0)
    image = torch.from_numpy(noisy).permute(2, 0, 1)[None].to(DEVICE)

    @functools.cache
    def psnr(name, dtype, backend):
        torch.backends.cudnn.allow_tf32 = False
        network = mirnet_fast.load_pretrained(name).to(DEVICE, dtype)
        with with_backend(backend)() if backend else contextlib.nullcontext():
            restored = mirnet_fast.restore(network, image.to(dtype))
        return evaluation.psnr(restored[0].float().clamp(0, 1).permute(1, 2, 0).cpu().numpy(), clean)

    def compare(name, dtype, backend):
        exact, half = psnr(name, torch.float32, None), psnr(name, dtype, backend)
        fact = f"PSNR of {name} in {str(dtype).removeprefix('torch.')}, backend {backend}"
        tell(fact, text=f"{half:.3f} dB, {half - exact:+.4f} from float32", psnr=half, float32=exact)

    cases = []
    for name, dtype, backend in itertools.product(
        mirnet_fast.pretrained.tasks(),
        (torch.float16, torch.bfloat16) if ON_GPU else (torch.bfloat16,),
        (None, "triton", "cuda") if ON_GPU else (None,),
    ):
        arguments = name, dtype, backend
        cases.append(
            Case(
                f"{name} {dtype} {backend}",
                functools.partial(compare, *arguments),
                functools.partial(psnr, *arguments),
            )
        )
    run_cases(cases)
