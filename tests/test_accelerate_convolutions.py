"""accelerate(convolutions=True): torch.nn.Sequential of convolutions, as MIRNetv2 has them."""

import copy

import pytest
import torch
from torch import nn

import mirnet_fast
from mirnet_fast.engine import plan_of

from .cases import exhaustive, first_of
from .lookalike_v2 import Fusion, MIRNetv2
from .ops.common import needs_kernels
from .strangers import lookalike

pytestmark = pytest.mark.usefixtures("one_thread")
LAYOUTS = [torch.channels_last, torch.contiguous_format]


def conv(inputs, outputs, size=3, **options):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def chain(*more, act=None):
    torch.manual_seed(0)
    act = nn.LeakyReLU(0.2) if act is None else copy.deepcopy(act)
    return nn.Sequential(
        conv(6, 8), act, conv(8, 8, 1, bias=False), conv(8, 5, 3), nn.Sigmoid(), *more
    ).eval()


def image(layout=torch.contiguous_format, channels=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, 12, 9, generator=generator).contiguous(memory_format=layout)


def exact(model, x):
    with torch.no_grad():
        return copy.deepcopy(model).double()(x.double())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "act", first_of([nn.PReLU(8), nn.ReLU(inplace=True), nn.GELU(), nn.LeakyReLU(0.1, inplace=True)], 2)
)
def test_same_results_and_gradients(layout, act):
    model, x = chain(act=act), image(layout)
    expected, plain = exact(model, x), copy.deepcopy(model)
    report = mirnet_fast.accelerate(model, convolutions=True)
    assert [(r.name, r.class_name, r.with_what) for r in report.replaced] == [
        ("", "Sequential", "mirnet_fast.Convolutions")
    ]
    kept = x.clone()
    with torch.no_grad():
        result = model(x)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, kept)
    gradients = []
    for each in (plain, model):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        (each(leaf) ** 2).sum().backward()
        gradients.append([leaf.grad, *(p.grad for p in each.parameters())])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_it_is_one_plan():
    model, x = chain(), image(torch.channels_last)
    mirnet_fast.accelerate(model, convolutions=True)
    with torch.no_grad():
        assert [task.kind for task in plan_of(model, x).tasks] == ["conv3x3", "conv1x1", "conv3x3"]


def test_it_has_to_be_asked_for_and_is_undone():
    model = nn.Sequential(chain(), nn.Identity())
    assert str(mirnet_fast.accelerate(model)) == "mirnet_fast: nothing to replace was found"
    first = model[0]
    mirnet_fast.accelerate(model, convolutions=True)
    assert model[0] is first and type(first) is mirnet_fast.Convolutions and isinstance(first, nn.Sequential)
    assert not mirnet_fast.accelerate(model, convolutions=True).replaced
    assert mirnet_fast.revert(model) == ["0"] and type(first) is nn.Sequential


class Own(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    model = chain()
    model[2].register_forward_hook(lambda *args: None)
    return model


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(conv(6, 6, groups=2), nn.ReLU(), conv(6, 6, groups=2)),
        nn.Sequential(conv(6, 6, stride=2), conv(6, 6)),
        nn.Sequential(conv(6, 6, 1), nn.ReLU()),  # oneDNN is as fast
        nn.Sequential(nn.ReLU(inplace=True), conv(6, 6)),  # which writes into the input
        nn.Sequential(conv(6, 6), nn.ReLU(), nn.ReLU()),
        nn.Sequential(conv(6, 6), nn.BatchNorm2d(6)),
        nn.Sequential(conv(6, 6), Own(6, 6, 3, padding=1)),
        nn.Sequential(conv(6, 6), conv(6, 6).double()),
        nn.Sequential(),
        type("Sub", (nn.Sequential,), {})(conv(6, 6)),
        hooked(),
    ],
)
def test_what_stays(model):
    assert not mirnet_fast.accelerate(model, convolutions=True).replaced


def test_what_is_changed_afterwards_counts():
    model, x = chain(), image()
    mirnet_fast.accelerate(model, convolutions=True)
    with torch.no_grad():
        model(x)
        for change in (
            lambda: model.append(nn.BatchNorm2d(5).eval()),
            lambda: model[0].register_forward_hook(lambda layer, inputs, output: output + 1),
            lambda: model.__setitem__(3, conv(8, 5, 1)),
            lambda: model[2].weight.mul_(2),
        ):
            change()
            torch.testing.assert_close(
                model(x).double(), exact(nn.Sequential(*model), x), rtol=1e-5, atol=1e-5
            )


def test_parts_of_blocks_are_the_blocks():
    def replaced(model):
        report = mirnet_fast.accelerate(model, convolutions=True)
        return [(entry.name, entry.with_what) for entry in report.replaced]

    both = [("0", "mirnet_fast.DAU"), ("1", "mirnet_fast.Convolutions")]
    assert replaced(nn.Sequential(lookalike.DAU(8), chain())) == both
    model = nn.Sequential(lookalike.DAU(8), chain())
    mirnet_fast.accelerate(model)  # which are ours then
    assert replaced(model) == both[1:]
    assert replaced(nn.Sequential(mirnet_fast.DAU(8), chain())) == both[1:]


@pytest.mark.parametrize("layout", first_of(LAYOUTS))
def test_mirnet_v2(layout):
    torch.manual_seed(0)
    model = MIRNetv2(width=16, groups=1, blocks=1).eval()
    x = torch.rand(1, 3, 24, 16).contiguous(memory_format=layout)
    expected = exact(model, x)
    report = mirnet_fast.accelerate(model, convolutions=True)
    # The full resolution's convolutions; those of the others are in groups, for which there are no kernels.
    chains = [r.name for r in report.replaced if r.with_what == "mirnet_fast.Convolutions"]
    assert chains == [f"groups.0.body.0.columns.{i}.0.body" for i in range(2)]
    fusions = {name for name, module in model.named_modules() if type(module) is mirnet_fast.SKFF}
    assert fusions == {f"groups.0.body.0.fuse.{i}.{j}" for i in range(2) for j in range(2)}
    assert not report.skipped and not any(type(m) is Fusion for m in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(model(x).double(), expected, rtol=1e-5, atol=1e-5)


@exhaustive
def test_it_is_compiled_without_a_break():
    torch.compiler.reset()
    model = chain()
    mirnet_fast.accelerate(model, convolutions=True)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for x in (image(), image()[:, :, :7]):
            torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=1e-5)
