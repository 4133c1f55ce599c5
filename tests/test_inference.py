"""restore: any size, reflection, modes."""

import numpy as np
import PIL.Image
import pytest
import torch

from mirnet_fast import MIRNet, reference
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
