"""restore: any size, reflection, modes."""

import numpy as np
import pytest
import torch

from mirnet_fast import MIRNet, reference
from mirnet_fast.inference import pad_by_reflection, restore, size_multiple


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
    with pytest.raises(RuntimeError):
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


def test_errors():
    with pytest.raises(ValueError, match="`multiple` must be given"):
        restore(torch.nn.Identity(), torch.rand(1, 3, 4, 4))
    for shape in [(3, 4, 4), (1, 3, 0, 4)]:
        with pytest.raises(ValueError, match="image must be"):
            restore(torch.nn.Identity(), torch.rand(shape), multiple=4)
