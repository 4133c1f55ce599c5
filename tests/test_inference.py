"""restore: any size, reflection, modes."""

import numpy as np
import PIL.Image
import pytest
import torch

from mirnet_fast import MIRNet, noise, reference
from mirnet_fast.inference import pad_by_reflection, restore, restore_by_ensemble, size_multiple


class Recorder(torch.nn.Module):
    """Doubles its input and remembers it."""

    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x):
        self.seen = x
        self.inference = torch.is_inference_mode_enabled()
        return 2 * self.dropout(x)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 5), (3, 3), (4, 8), (7, 1), (9, 10)])
@pytest.mark.parametrize("multiple", [1, 4, 16])
def test_padding_is_numpy_reflect(size, multiple):
    image = torch.rand(2, 3, *size)
    pads = [(0, -side % multiple) for side in size]
    expected = np.pad(image.numpy(), [(0, 0), (0, 0), *pads], mode="reflect")
    assert np.array_equal(pad_by_reflection(image, multiple).numpy(), expected)


@pytest.mark.parametrize("size", [(1, 1), (5, 6), (8, 4)])
def test_padded_and_cropped_back(size):
    model = Recorder()
    image = torch.randn(2, 3, *size)
    assert torch.equal(restore(model, image, multiple=4), 2 * image)
    assert all(side % 4 == 0 for side in model.seen.shape[2:])
    assert model.inference


def test_modes_come_back():
    model = Recorder().train()
    model.dropout.eval()
    restore(model, torch.rand(1, 3, 4, 4), multiple=4)
    assert model.training and not model.dropout.training


def test_modes_come_back_after_an_error():
    model = MIRNet(n_feat=8, n_RRG=1, n_MSRB=1).train()
    with pytest.raises(ValueError, match="3 channels; got 5"):
        restore(model, torch.rand(1, 5, 4, 4))
    assert all(module.training for module in model.modules())


def test_result_is_a_normal_tensor():
    weight = torch.ones(1, requires_grad=True)
    result = restore(Recorder(), torch.rand(1, 3, 4, 4), multiple=4)
    assert not result.is_inference() and not result.requires_grad
    result.clamp_(0, 1)
    (result * weight).sum().backward()
    assert weight.grad.item() == pytest.approx(result.sum().item())


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (13, 10)])
@pytest.mark.parametrize("height", [2, 3])
def test_network_on_any_size(size, height):
    torch.manual_seed(0)
    model = MIRNet(n_feat=8, n_RRG=1, n_MSRB=1, height=height).eval()
    yardstick = reference.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1, height=height).double().eval()
    yardstick.load_state_dict(model.state_dict())
    image = torch.rand(1, 3, *size)
    multiple = 2 ** (height - 1)
    pads = [(0, -side % multiple) for side in size]
    padded = torch.from_numpy(np.pad(image.double().numpy(), [(0, 0), (0, 0), *pads], mode="reflect"))
    with torch.no_grad():
        expected = yardstick(padded)[..., : size[0], : size[1]]
    torch.testing.assert_close(restore(model, image).double(), expected, rtol=1e-5, atol=1e-5)


def test_multiple_of_the_model():
    assert size_multiple(MIRNet(n_feat=8, n_RRG=1, n_MSRB=1, height=4)) == 8
    assert size_multiple(torch.nn.DataParallel(MIRNet(n_feat=8, n_RRG=1, n_MSRB=1, height=2))) == 2


class Branches(torch.nn.Module):
    """A fusion that keeps the number of its branches under `height`, as the published SKFF does."""

    def __init__(self, height):
        super().__init__()
        self.height = height


def small(height, kind=MIRNet):
    return kind(n_feat=8, n_RRG=1, n_MSRB=1, height=height)


@pytest.mark.parametrize(
    ("parts", "multiple"),
    [
        ([small(2), small(4)], 8),
        ([small(3), Branches(9)], 4),
        ([torch.nn.Sequential(Branches(5), torch.nn.DataParallel(small(2, reference.MIRNet)))], 2),
        ([torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1), small(1)], 1),
        ([torch.nn.AvgPool2d(3, 1, 1), torch.nn.Upsample(scale_factor=1), small(3)], 4),
    ],
)
def test_only_the_blocks_height_counts(parts, multiple):
    assert size_multiple(torch.nn.ModuleList(parts)) == multiple


def test_blocks_of_other_people_and_compiled_ones():
    block = small(3).body[0].body[0]
    published = type("MultiScaleBlock", (torch.nn.Module,), {})()
    published.height, published.blocks = 4, torch.nn.ModuleList(torch.nn.ModuleList() for _ in range(4))
    assert size_multiple(torch.nn.Sequential(torch.compile(block), Branches(7))) == 4
    assert size_multiple(published) == 8


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.Conv2d(3, 3, 2, stride=2),
        torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(3, 3, 2, stride=(1, 2))),
        torch.nn.ConvTranspose2d(3, 3, 2, stride=2),
        torch.nn.MaxPool2d(2),
        torch.nn.AvgPool2d(2),
        torch.nn.PixelUnshuffle(2),
        torch.nn.PixelShuffle(2),
        torch.nn.Upsample(scale_factor=0.5),
        torch.nn.Upsample(size=(8, 8)),
        reference.Downsample(channels=3),
    ],
)
def test_another_change_of_the_resolution_is_refused(layer):
    with pytest.raises(ValueError, match=r"0\.0 \(.*changes the resolution, too, so `multiple`"):
        size_multiple(torch.nn.Sequential(torch.nn.Sequential(layer), small(2)))


class Halves(torch.nn.Module):
    """Makes H and W twice half of them, rounded down: `multiple` has to be even."""

    def __init__(self):
        super().__init__()
        self.fusion = Branches(2)

    def forward(self, x):
        return torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(x, 2), scale_factor=2)


def test_too_small_a_multiple_is_never_taken_nor_its_result():
    image = torch.rand(1, 3, 5, 7)
    with pytest.raises(ValueError, match=r"Halves, has no multi-scale residual block .*must be given"):
        restore(Halves(), image)
    with pytest.raises(ValueError, match=r"it made \(1, 3, 4, 6\). Is `multiple`, 1, large enough"):
        restore(Halves(), image, multiple=1)
    assert restore(Halves(), image, multiple=2).shape == image.shape


def test_errors():
    with pytest.raises(ValueError, match="`multiple` must be given"):
        restore(torch.nn.Identity(), torch.rand(1, 3, 4, 4))
    for shape in [(3, 4, 4), (1, 3, 0, 4)]:
        with pytest.raises(ValueError, match="image must be"):
            restore(torch.nn.Identity(), torch.rand(shape), multiple=4)


BYTES = np.zeros((8, 9, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "error", "match"),
    [
        (BYTES, TypeError, "image must be a tensor .* floats from 0 to 1; got numpy.ndarray .*/ 255"),
        (PIL.Image.fromarray(BYTES), TypeError, "floats from 0 to 1; got PIL.Image.Image .*/ 255"),
        ([torch.rand(1, 3, 8, 8)], TypeError, "floats from 0 to 1; got builtins.list$"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "floats.*; got torch.uint8 .*/ 255"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int32), TypeError, "floats.*; got torch.int32$"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.complex64), TypeError, "floats.*; got torch.complex64$"),
        (torch.full((1, 3, 8, 8), 255.0), ValueError, "from 0 to 1; got values up to 255"),
        (torch.rand(3, 8, 8), ValueError, r"must be \(N, C, H, W\).*got \(3, 8, 8\) \(image\[None\]\)"),
        (torch.rand(8, 8, 3), ValueError, r"got \(8, 8, 3\) \(image.permute\(2, 0, 1\)\[None\]\)"),
        (torch.rand(8, 8), ValueError, r"must be \(N, C, H, W\).*got \(8, 8\)$"),
        (torch.rand(1, 8, 9, 3), ValueError, r"image must have 3 channels; got 8.*permute\(0, 3, 1, 2\)"),
        (torch.rand(1, 4, 8, 9), ValueError, r"image must have 3 channels; got 4.*transparency"),
        (torch.rand(1, 1, 8, 8), ValueError, "image must have 3 channels; got 1"),
        (
            torch.rand(1, 3, 8, 8, dtype=torch.float64),
            ValueError,
            "be torch.float32, .*got torch.float64",
        ),
    ],
)
@pytest.mark.parametrize("run", [restore, restore_by_ensemble])
def test_images_of_other_kinds(image, error, match, run):
    with pytest.raises(error, match=f"restore: .*{match}"):
        run(small(2), image)


def test_values_beyond_1_that_are_no_mistake():
    image = torch.rand(1, 3, 4, 4)
    image[..., 0] = 3.5  # noise of 100/255
    image[..., 1, 1] = -3.5
    assert restore(small(2), image).shape == image.shape
    image[..., 1, 1] = torch.inf
    restore(small(2), image)
    assert restore(Recorder(), 255 * image, multiple=1).shape == image.shape  # of which nothing is known


def test_what_a_wrapper_converts_is_not_refused():
    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = small(2).double()

        def forward(self, x):
            return self.network(x[:, :3].double())

    assert restore(Wrapper(), torch.rand(1, 4, 5, 5)).dtype == torch.float64


def test_an_error_of_the_model_itself_stays(monkeypatch):
    model = small(2)
    monkeypatch.setattr(model, "forward", lambda x: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        restore(model, torch.rand(1, 3, 4, 4))


def test_other_arguments():
    image = torch.rand(1, 3, 4, 4)
    with pytest.raises(TypeError, match=r"model must be a .*; got str"):
        restore("model.pth", image)
    with pytest.raises(ValueError, match="multiple must be at least 1; got 0"):
        restore(small(2), image, multiple=0)
    with pytest.raises(TypeError, match="multiple must be an integer; got float"):
        restore(small(2), image, multiple=2.0)

    class Pair(torch.nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(TypeError, match="must return a tensor; got tuple"):
        restore(Pair(), image, multiple=1)


@pytest.mark.parametrize("size", [(1, 1), (5, 6), (33, 20)])
@pytest.mark.parametrize("strength", [0, 0.25, np.float32(0.75), 1, 1.0])
def test_strength_mixes(size, strength):
    image = torch.rand(2, 3, *size)
    result = restore(Recorder(), image, multiple=4, strength=strength)
    torch.testing.assert_close(result, image + float(strength) * image)
    if strength in (0, 1):
        assert torch.equal(result, (1 + int(strength)) * image)
    assert result.data_ptr() != image.data_ptr() and not result.is_inference()


def test_full_strength_leaves_the_result_as_it_is():
    model, image = small(2).eval(), torch.rand(1, 3, 4, 6)
    image[0, 0, 0, 0] = torch.inf
    with torch.no_grad():
        expected = model(image)
    for strength in ({}, {"strength": 1}, {"strength": True}):
        assert torch.equal(restore(model, image, **strength).nan_to_num(7), expected.nan_to_num(7))


def noisy(*sigmas):
    generator = torch.Generator().manual_seed(0)
    grey = torch.full((len(sigmas), 3, 40, 48), 0.5)
    return grey + torch.tensor(sigmas)[:, None, None, None] / 255 * torch.randn(
        grey.shape, generator=generator
    )


def test_automatic_strength_is_each_images_own():
    class Smoother(torch.nn.Module):
        def forward(self, x):
            return torch.full_like(x, 0.5)

    image = noisy(0.5, 1.6, 20)
    full = torch.full_like(image, 0.5)
    strength = noise.strength(noise.estimate(image, full))
    assert strength[0] == 0 < strength[1] < 1 == strength[2]
    result = restore(Smoother(), image, multiple=4, strength="auto")
    torch.testing.assert_close(result, image.lerp(full, strength[:, None, None, None]))
    assert torch.equal(result[0], image[0]) and torch.equal(result[2], full[2])


@pytest.mark.parametrize("strength", [0.5, "auto"])
def test_strength_of_other_dtypes(strength):
    image = noisy(20).bfloat16()
    mixed = restore(Recorder(), image, multiple=4, strength=strength)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed, image * (1.5 if strength == 0.5 else 2))

    class Wrapper(torch.nn.Module):
        def forward(self, x):
            return 2 * x.double()

    image = torch.rand(1, 3, 4, 4)
    assert torch.equal(
        restore(Wrapper(), image, multiple=4, strength=0.3), image.double().lerp(2 * image.double(), 0.3)
    )


@pytest.mark.parametrize("strength", [0.5, "auto"])
def test_mixed_result_is_a_normal_tensor(strength):
    image = noisy(20).requires_grad_()
    result = restore(Recorder(), image, multiple=4, strength=strength)
    assert not result.is_inference() and not result.requires_grad
    weight = torch.ones(1, requires_grad=True)
    (result.clamp_(0, 1) * weight).sum().backward()


@pytest.mark.parametrize(
    ("strength", "error", "match"),
    [
        (-0.1, ValueError, "from 0 to 1, or 'auto'; got -0.1"),
        (1.5, ValueError, "from 0 to 1, or 'auto'; got 1.5"),
        (float("nan"), ValueError, "from 0 to 1, or 'auto'; got nan"),
        ("automatic", ValueError, "a number from 0 to 1, or 'auto'; got 'automatic'"),
        ("0.5", ValueError, "a number from 0 to 1, or 'auto'; got '0.5'"),
        (None, TypeError, "a number from 0 to 1, or 'auto'; got NoneType"),
        (torch.tensor([0.5]), TypeError, "a number from 0 to 1, or 'auto'; got Tensor"),
    ],
)
def test_strengths_that_are_none(strength, error, match):
    with pytest.raises(error, match=f"restore: strength must be {match}"):
        restore(Recorder(), torch.rand(1, 3, 4, 4), multiple=4, strength=strength)


def test_strength_needs_a_result_like_the_image():
    class First(torch.nn.Module):
        def forward(self, x):
            return x[:, :1]

    image = torch.rand(2, 3, 4, 5)
    assert restore(First(), image, multiple=1).shape == (2, 1, 4, 5)
    for strength in (0, 0.5, "auto"):
        with pytest.raises(ValueError, match=r"of its shape; of \(2, 3, 4, 5\) it made \(2, 1, 4, 5\)"):
            restore(First(), image, multiple=1, strength=strength)


def test_automatic_strength_needs_finite_values():
    with pytest.raises(ValueError, match="image has values that are not finite"):
        restore(Recorder(), torch.full((1, 3, 4, 4), torch.inf), multiple=4, strength="auto")
