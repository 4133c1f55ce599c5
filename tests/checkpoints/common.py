"""Small networks, and what is asked of a checkpoint of theirs."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from mirnet_fast import reference
from mirnet_fast.checkpoints import CheckpointError, load_checkpoint

CONFIG = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1}
DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "kernel_size": 3,
    "stride": 2,
    "height": 3,
    "width": 2,
    "bias": False,
}
SLOPE = "body.0.body.0.blocks.0.0.body.1.weight"
SLOPE_AGAIN = "body.0.body.0.blocks.2.1.body.1.weight"
SHARED_WEIGHT = "body.0.body.0.blocks.1.1.body.0.weight"


def network(seed, **overrides):
    torch.manual_seed(seed)
    net = reference.MIRNet(**{**CONFIG, **overrides})
    with torch.no_grad():
        net.body[0].body[0].blocks[0][0].body[1].weight.fill_(seed + 0.5)  # all start with one slope
    return net


def assert_same(model, source):
    expected = source.state_dict()
    actual = model.state_dict()
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def assert_refused(model, path, match, **arguments):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=match) as caught:
        load_checkpoint(model, path, **arguments)
    assert str(path) in str(caught.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    return str(caught.value)


def prefixed(state, prefix, every=1):
    return {prefix + name if i % every == 0 else name: value for i, (name, value) in enumerate(state.items())}


WRAPPINGS = {
    "not": lambda net: net,
    "parallel": torch.nn.DataParallel,
    "parallel twice": lambda net: torch.nn.DataParallel(torch.nn.DataParallel(net)),
    "compiled": torch.compile,
    "compiled, parallel": lambda net: torch.nn.DataParallel(torch.compile(net)),
    "in part": lambda net: with_a_wrapped_part(net, torch.nn.DataParallel),
    "compiled in part": lambda net: with_a_wrapped_part(net, torch.compile),
    "averaged": AveragedModel,
}


def with_a_wrapped_part(net, wrap):
    net.body = wrap(net.body)
    return net
