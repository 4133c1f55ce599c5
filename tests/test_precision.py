"""restore(precision=, check_finite=): another precision than the weights', and what "auto" comes to."""

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import mirnet_fast
from mirnet_fast import engine, evaluation, precision, reference
from mirnet_fast.inference import restore, restore_by_ensemble
from mirnet_fast.precision import candidates_on  # this one before the tests' stand-in for it

from . import renamed
from .cases import exhaustive, first_of
from .ops.common import needs_kernels

CPU = torch.device("cpu")
SHAPE = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1}


def network(seed=0, cls=mirnet_fast.MIRNet, **shape):
    torch.manual_seed(seed)
    return cls(**SHAPE | shape).eval()


def photo(*shape, seed=1):
    return torch.rand(*(shape or (1, 3, 8, 12)), generator=torch.Generator().manual_seed(seed))


def relative(result, expected):
    return ((result - expected).norm() / expected.norm()).item()


@pytest.fixture
def as_on(monkeypatch):
    """A function that lets "auto" choose from precisions as on another machine."""

    def machine(*candidates):
        monkeypatch.setattr(precision, "candidates_on", lambda device: (candidates, ""))
        monkeypatch.setattr(precision, "SAMPLE_SIDE", 32)  # half precision on a CPU takes its time
        mirnet_fast.release_workspace()  # with what was found on the one before

    return machine


@pytest.fixture
def copies(monkeypatch):
    """The copies that are made."""
    made, make = [], precision.Converted.__init__
    monkeypatch.setattr(precision.Converted, "__init__", lambda self, *a: made.append(self) or make(self, *a))
    return made


def accelerated():
    torch.manual_seed(0)
    model = renamed.Restorer(base=8, groups=1, blocks=1).eval()
    assert not mirnet_fast.accelerate(model).skipped
    return model


MODELS = {
    "ours": network,
    "reference": lambda: network(cls=reference.MIRNet),
    "accelerated": accelerated,
    "in another": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), network()).eval(),
    "unbiased, of one channel, kernel 5": lambda: network(in_channels=1, out_channels=1, kernel_size=5),
}


@pytest.mark.parametrize("kind", MODELS)
def test_float32_around_bfloat16(kind):
    model = MODELS[kind]()
    before = copy.deepcopy(model.state_dict())
    x = photo()[:, : 1 if "one channel" in kind else 3]
    expected = restore(model, x, precision="fp32")
    assert torch.equal(expected, restore(model, x))
    result = restore(model, x, precision="bf16")
    assert result.dtype == torch.float32 and not result.is_inference()
    assert 0 < relative(result, expected) < 0.02
    after = model.state_dict()
    assert all(
        torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items()
    )
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(expected, restore(model, x, precision="fp32"))


def test_neither_image_nor_first_layer_is_rounded():
    model, x = network(bias=True), photo()
    exact = restore(copy.deepcopy(model).double(), x.double()).float()
    with torch.no_grad():
        plain = copy.deepcopy(model).bfloat16()(x.bfloat16()).float()
    assert relative(restore(model, x, precision="bf16"), exact) < relative(plain, exact) / 2
    nn.init.zeros_(model.conv_out.weight)
    nn.init.zeros_(model.conv_out.bias)
    assert torch.equal(restore(model, x, precision="bf16"), x)


def test_kept_copy_and_plan(copies):
    model, x, random = network(), photo(), torch.get_rng_state()
    first = restore(model, x, precision="bf16")
    assert torch.equal(torch.get_rng_state(), random)
    built = engine.engine_stats().built
    model.train()
    assert all(torch.equal(restore(model, x, precision="bf16"), first) for _ in range(3))
    assert len(copies) == 1 and engine.engine_stats().built == built
    mirnet_fast.release_workspace()
    assert torch.equal(restore(model, x, precision="bf16"), first)
    assert len(copies) == 2


def add(model):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.25)


def add_to_data(model):
    for p in model.parameters():
        p.data.mul_(1.25)


def another_filter(model):
    model.get_buffer(next(name for name, _ in model.named_buffers())).mul_(1.5)


def another_parameter(model):
    model.conv_in.weight = nn.Parameter(1.5 * model.conv_in.weight.detach())


def another_layer(model):
    model.body[0].body[-1] = nn.Conv2d(8, 8, 1)


def a_hook(model):
    model.body[0].register_forward_hook(lambda module, args, result: 2 * result)


CHANGES = [add, add_to_data, another_parameter, another_filter, another_layer, a_hook]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changed_counts(change):
    model, x = network(), photo()
    before = restore(model, x, precision="bf16")
    change(model)
    result = restore(model, x, precision="bf16")
    assert torch.equal(result, restore(copy.deepcopy(model), x, precision="bf16"))
    assert relative(result, before) > 1e-4
    assert relative(result, restore(model, x)) < 0.02


def test_a_copy_counts_no_versions():
    # By which a GPU's plans tell that filters were changed.
    model = network()
    restore(model, photo(), precision="bf16")
    (kept,) = engine.eligibility.snapshot_of(model).precisions.values()
    assert kept.network.conv_in.in_channels == 9
    versions = [t._version for t in kept.network.state_dict(keep_vars=True).values()]
    add(model)
    kept.refresh(model)
    assert [t._version for t in kept.network.state_dict(keep_vars=True).values()] == versions


def test_threads_and_models_at_once():
    models, images = [network(seed) for seed in range(2)], [photo(seed=seed) for seed in range(3)]
    jobs = [(model, image) for model in models for image in images] * 2
    expected = [restore(copy.deepcopy(model), image, precision="bf16") for model, image in jobs]
    with ThreadPoolExecutor(4) as pool:
        results = [*pool.map(lambda job: restore(*job, precision="bf16"), jobs)]
    assert all(map(torch.equal, results, expected))


@pytest.mark.parametrize("told", ["auto", "fp32"])
def test_the_model_itself_where_nothing_is_to_convert(told, copies):
    model, seen = network(), []
    model.register_forward_hook(lambda module, args, result: seen.append(result))
    assert torch.equal(restore(model, photo(), precision=told), seen[0])
    half = network().bfloat16()
    half.register_forward_hook(lambda module, args, result: seen.append(result))
    x = photo().bfloat16()
    assert torch.equal(restore(half, x, precision="auto"), seen[1])
    assert torch.equal(restore(half, x, precision="bf16"), seen[2])
    result = restore(half, photo(), precision="bf16")
    assert torch.equal(result, seen[3].float())
    assert not copies


@pytest.mark.parametrize("own", [torch.float64, torch.bfloat16])
def test_models_and_images_of_other_dtypes(own):
    model = network().to(own)
    expected = restore(copy.deepcopy(model).float(), photo().to(own).float()).to(own)
    assert torch.equal(restore(model, photo().to(own), precision="fp32"), expected)
    with pytest.raises(ValueError, match=f"image must be {own}"):
        restore(model, photo())


def test_other_arguments():
    for told, error, match in [
        ("half", ValueError, "precision must be one of auto, fp32, fp16, bf16; got 'half'"),
        (torch.float16, TypeError, "precision must be one of auto, fp32, fp16, bf16; got dtype"),
        (None, TypeError, "precision must be .*; got NoneType"),
        ("fp16", ValueError, "precision 'fp16' is for GPUs; on a CPU it may be 'bf16' or 'fp32'"),
    ]:
        for run in (restore, restore_by_ensemble):
            with pytest.raises(error, match=match):
                run(network(), photo(), precision=told)
    with pytest.raises(ValueError, match="image must have 3 channels; got 4"):
        restore(network(), photo(1, 4, 5, 6), precision="bf16")


def test_ensemble_and_strength():
    model, x = network(), photo()
    result = restore_by_ensemble(model, x, precision="bf16")
    assert 0 < relative(result, restore_by_ensemble(model, x)) < 0.02
    whole, half = (restore(model, x, precision="bf16", strength=strength) for strength in (1, 0.5))
    torch.testing.assert_close(half, (x + whole) / 2)


# --- "auto" --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def denoiser():
    return mirnet_fast.load_pretrained()


@pytest.mark.parametrize(
    ("machine", "device", "found", "reason"),
    [
        ({"amx": True}, "cpu", ("bf16",), ""),
        ({"amx": False}, "cpu", (), "this CPU has no AMX"),
        ({"capability": (9, 0)}, "cuda:0", ("fp16", "bf16"), ""),
        ({"capability": (7, 5)}, "cuda:0", ("fp16",), ""),
        ({"capability": (6, 1)}, "cuda:0", (), "this GPU has no tensor cores"),
        ({}, "meta", (), "on meta no other precision was tried"),
    ],
)
def test_what_there_is_to_choose_from(monkeypatch, machine, device, found, reason):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: machine["amx"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: machine["capability"])
    assert candidates_on(torch.device(device)) == (found, reason)


# With AMX, and on a GPU; PyTorch computes in half precision on a CPU too.
@pytest.mark.parametrize(("candidates", "taken"), [(("bf16",), "bf16"), (("fp16", "bf16"), "fp16")])
def test_lower_where_it_is_near(as_on, denoiser, candidates, taken):
    x = precision._sample(CPU, 3, 2)[..., :64, :60]
    expected = restore(denoiser, x)
    as_on(*candidates)
    verdict = precision.automatic(denoiser, CPU)
    assert verdict.precision == taken and f"{taken} differs from fp32 by 0.0" in verdict.reason
    result = restore(denoiser, x)
    assert result.dtype == torch.float32 and 0 < relative(result, expected) < 0.002
    assert relative(result, precision.run(denoiser, x, taken)) < 0.002  # another time as a plan
    assert torch.equal(restore(denoiser, x, precision="fp32"), expected)


def test_not_lower_where_it_is_not(as_on):
    as_on("fp16", "bf16")
    model = network()
    with torch.no_grad():
        model.conv_out.weight.mul_(100)
    verdict = precision.automatic(model, CPU)
    assert verdict.precision == "fp32"
    assert "bf16 differs from fp32 by" in verdict.reason and "0.1 at most would do" in verdict.reason
    assert torch.equal(restore(model, photo()), restore(model, photo(), precision="fp32"))


def hooked(model):
    a_hook(model)
    return model


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (nn.Sequential, "Sequential is not mirnet_fast.MIRNet"),
        (hooked, "has hooks, or layers that are not as published"),
        (nn.Module.double, "is not in float32 on cpu"),
        (lambda model: model.to("meta"), "is not in float32 on cpu"),
    ],
)
def test_not_lower_where_nothing_is_known(as_on, change, reason):
    as_on("bf16")
    verdict = precision.automatic(change(network()), CPU)
    assert verdict.precision == "fp32" and reason in verdict.reason


def test_what_cannot_be_measured_is_not_lower(as_on, monkeypatch):
    as_on("fp16", "bf16")

    def fail(self, x):
        raise RuntimeError(f"no memory for {self.dtype}\nand more")

    monkeypatch.setattr(precision.ConvertedInParts, "__call__", fail)
    verdict = precision.automatic(network(), CPU)
    assert verdict.precision == "fp32"
    assert (
        "fp16 fails: no memory for torch.float16; bf16 fails: no memory for torch.bfloat16" in verdict.reason
    )
    with pytest.raises(ValueError, match="image must have 3 channels; got 2"):
        restore(network(), photo(1, 2, 4, 4))


def test_measured_once_and_again_for_other_weights(as_on, monkeypatch, caplog):
    as_on("bf16")
    caplog.set_level("INFO", "mirnet_fast")
    models, measured = [network(), network(1)], []
    measure = precision._measured
    monkeypatch.setattr(
        precision, "_measured", lambda model, *a: measured.append(model) or measure(model, *a)
    )
    for size in (8, 12, 8):
        for model in models:
            restore(model, photo(1, 3, size, size))
    assert [models.index(model) for model in measured] == [0, 1]
    assert len(caplog.messages) == 2 and "on cpu: bf16 differs from fp32 by" in caplog.messages[0]
    add(models[0])
    restore(models[0], photo())
    assert len(measured) == 3 and measured[2] is models[0]


@exhaustive
def test_sample_of_any_kind():
    for channels, multiple in [(1, 1), (3, 4), (5, 3), (3, 1024)]:
        sample = precision._sample(CPU, channels, multiple)
        assert sample.shape[:2] == (1, channels) and sample.shape[2] == sample.shape[3] >= 128
        assert sample.shape[2] % multiple == 0 and sample.dtype == torch.float32


# --- overflow ------------------------------------------------------------------------------


@pytest.fixture
def overflowing(denoiser):
    """A denoiser that computes up to 60,000 of an image up to 1.5, and a batch with one up to 7."""
    model, largest = copy.deepcopy(denoiser), []
    batch = photo(3, 3, 16, 16)
    batch[1] *= 7
    hooks = [m.register_forward_hook(lambda m, a, y: largest.append(y.abs().max())) for m in model.modules()]
    restore(model, batch[1:2])
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        model.conv_in.weight.mul_(2.1 * 65504 / max(largest))
        model.conv_out.weight.mul_(max(largest) / 65504 / 2.1)
    return model, batch


def test_overflow_is_named(overflowing):
    model, batch = overflowing
    with pytest.raises(
        OverflowError, match=r"image\[1\] overflows in fp16: .*; take precision 'bf16' or 'fp32'"
    ):
        precision.run(model, batch, "fp16")
    with pytest.raises(OverflowError, match="the image overflows in fp16: "):
        precision.run(model, batch[1:2], "fp16")
    result = precision.run(model, batch, "fp16", check_finite=False)
    assert [bool(image.isfinite().all()) for image in result] == [True, False, True]
    assert precision.run(model, batch[::2], "fp16").isfinite().all()
    assert restore(model, batch, precision="bf16").isfinite().all()
    with pytest.raises(OverflowError, match=r"image\[1\] overflows in fp16"):
        restore(copy.deepcopy(model).half(), batch.half())
    assert not restore(copy.deepcopy(model).half(), batch.half(), check_finite=False).isfinite().all()


def test_what_overflows_at_once_is_not_taken(as_on, overflowing):
    as_on("fp16", "bf16")
    model, _ = overflowing
    with torch.no_grad():
        model.conv_in.weight.mul_(100)
    verdict = precision.automatic(model, CPU)
    assert verdict.precision == "bf16" or "; bf16 differs" in verdict.reason
    assert not verdict.reason.startswith("fp16 differs")


def test_nothing_overflows_without_values():
    with torch.device("meta"):
        model, x = network().bfloat16(), torch.empty(2, 3, 8, 8, dtype=torch.bfloat16)
    assert restore(model, x).is_meta


@pytest.mark.parametrize("result", [torch.tensor(0.0), torch.zeros(1, 3, 8, 8), (torch.nan,)])
def test_results_that_are_none(result):
    class Other(nn.Module):
        def forward(self, x):
            return result

    with pytest.raises((TypeError, ValueError), match="the model must return"):
        restore(Other(), photo(2, 3, 9, 9), multiple=1, precision="bf16")


def test_overflow_of_bfloat16_is_named():
    model = network()
    with torch.no_grad():
        model.conv_in.weight.mul_(1e38)
        model.body[0].body[-1].weight.mul_(1e38)
    with pytest.raises(OverflowError, match=r"the image overflows in bf16: .*; take precision 'fp32'"):
        restore(model, photo(), precision="bf16")
    assert not restore(model, photo(), precision="fp32").isfinite().all()  # as ever


def test_automatic_takes_fp32_for_an_image_that_overflows(as_on, overflowing):
    model, batch = overflowing
    expected = restore(model, batch)
    as_on("fp16")
    assert precision.automatic(model, CPU, multiple=2).precision == "fp16"
    with pytest.warns(
        RuntimeWarning, match=r"image\[1\] overflows in fp16, so it was computed in fp32"
    ) as told:
        result = restore(model, batch)
    assert told[0].filename == __file__
    assert torch.equal(result[1], restore(model, batch[1:2], precision="fp32")[0])
    assert 0 < relative(result[0], expected[0]) < 0.01 and result.isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_image_that_is_not_finite_is_let_through(value):
    x = photo(2, 3, 8, 8)
    x[1, 0, 2, 3] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = restore(network(), x, precision="bf16")
    assert result[0].isfinite().all() and not result[1].isfinite().all()


# --- how near ------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("told", first_of(["bf16", "fp16"]))
@pytest.mark.parametrize("sigma", first_of([25, 10, 40]))
def test_psnr_of_the_denoiser(denoiser, told, sigma):
    import skimage.data

    clean = (
        torch.from_numpy(skimage.data.astronaut()[:192, 128:320].copy()).permute(2, 0, 1)[None].float() / 255
    )
    noisy = clean + sigma / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    psnr = [
        evaluation.psnr(
            evaluation.as_file(precision.run(denoiser, noisy, name).detach().numpy()), clean.numpy()
        )
        for name in ("fp32", told)
    ]
    assert psnr[0] > 28 and abs(psnr[1] - psnr[0]) < 0.01
