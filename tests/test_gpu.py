"""What only a GPU can show: graphs, streams, devices, inductor, maps beyond 2**31 values."""

import pytest
import torch

import mirnet_fast
from mirnet_fast import backends, ops, reference
from mirnet_fast.ops import OPS

from .ops.common import Values, on_tensors, run, tensors

if not torch.cuda.is_available():
    pytest.skip("torch finds no GPU", allow_module_level=True)


@pytest.fixture(autouse=True, params=["triton", "cuda"])
def backend(request):
    if request.param in backends._UNAVAILABLE:
        pytest.skip(f"no {request.param} here: {backends._UNAVAILABLE[request.param]}")
    with mirnet_fast.use_backend(request.param):
        yield request.param


@pytest.fixture(params=OPS)
def op(request):
    return request.param


def arguments(op, dtype=torch.float16, device="cuda", n=2, size=(24, 40), seed=0):
    """As the network calls the op, with 64 channels."""
    v = Values(dtype, "channels_last", seed, device)
    h, w = size
    c = 64
    if op == "blur_pool":
        return v.map(n, c, h, w), 3, "reflect", 2, 0
    if op == "skff_select":
        branches = [v.map(n, c, h, w) for _ in range(3)]
        return branches, v.weight(8, c, 1, 1), None, v.weight(1), [v.weight(c, 8, 1, 1) for _ in range(3)], ()
    if op == "dau_attention":
        gates = v.weight(1, 2, 5, 5), v.weight(8, c, 1, 1), None, v.weight(c, 8, 1, 1), None
        return v.map(n, c, h, w), v.map(n, c, h, w), *gates, v.weight(c, 2 * c, 1, 1), None
    if op == "residual_down_tail":
        weights = v.weight(2 * c, c, 1, 1), None, v.weight(2 * c, c, 1, 1), None
        return v.map(n, c, h, w), v.map(n, c, h, w), v.weight(1), *weights
    weights = v.weight(c // 2, c, 1, 1), None, v.weight(c // 2, c, 1, 1), None
    return v.map(n, c, h, w), v.map(n, c, h // 2, w // 2), v.weight(1), *weights


def both(op, args):
    """[output, gradient of every tensor]."""
    return run(getattr(ops, op), args, torch.ones_like)


def same(results, expected):
    return all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_same_every_time(op, dtype):
    # Large enough that the programs of a launch finish in another order each time.
    args = arguments(op, dtype, size=(128, 192))
    expected = both(op, args)
    assert all(same(both(op, args), expected) for _ in range(10))


def test_graph_of_the_forward(op):
    args = arguments(op)
    function = getattr(ops, op)
    with torch.no_grad():
        function(*args)  # compiles the kernels, copies the tables
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = function(*args)
        for seed in (1, 2):
            fresh = arguments(op, seed=seed)
            for old, new in zip(tensors(args), tensors(fresh), strict=True):
                old.copy_(new)
            captured.fill_(float("nan"))
            graph.replay()
            assert torch.equal(captured, function(*fresh))


def test_graph_of_forward_and_backward(op):
    args = on_tensors(lambda t: t.requires_grad_(), arguments(op))
    function, leaves = getattr(ops, op), tensors(args)
    stream = torch.cuda.Stream()  # as the documentation of torch.cuda.graph asks for
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            output = function(*args)
            torch.autograd.grad(output, leaves, torch.ones_like(output))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function(*args)
        gradients = torch.autograd.grad(output, leaves, torch.ones_like(output))
    fresh = arguments(op, seed=3)
    with torch.no_grad():
        for old, new in zip(leaves, tensors(fresh), strict=True):
            old.copy_(new)
    graph.replay()
    torch.cuda.synchronize()
    assert same([output.detach(), *gradients], both(op, fresh))


def test_capture_of_a_new_size(backend):
    x = arguments("blur_pool", size=(26, 46))[0]
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        if backend == "triton":  # its tables have to be copied first
            wanted = pytest.raises(RuntimeError, match="call once with these sizes before the capture")
            with wanted, torch.cuda.graph(graph):
                ops.blur_pool(x)
            torch.cuda.synchronize()
        else:
            with torch.cuda.graph(graph):
                captured = ops.blur_pool(x)
            graph.replay()
            assert torch.equal(captured, ops.blur_pool(x))
    assert ops.blur_pool(x).isfinite().all()


def test_two_streams(op):
    cases = [arguments(op, size=(128, 192), seed=seed) for seed in (0, 1)]
    expected = [both(op, args) for args in cases]
    streams = [torch.cuda.Stream() for _ in cases]
    torch.cuda.synchronize()
    for _ in range(5):
        results = []
        for stream, args in zip(streams, cases, strict=True):
            with torch.cuda.stream(stream):
                # The stream has to wait for itself alone: what its kernels read is made on it, late.
                torch.cuda._sleep(1_000_000)
                made = on_tensors(lambda t: t.clone(memory_format=torch.preserve_format), args)
                results.append(both(op, made))
        torch.cuda.synchronize()
        assert all(same(r, e) for r, e in zip(results, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_second_device(op):
    args = arguments(op, device="cuda:1")
    assert torch.cuda.current_device() == 0
    results = both(op, args)
    assert all(t.device == torch.device("cuda:1") for t in results)
    assert torch.cuda.current_device() == 0
    with torch.cuda.device(1):
        assert same(results, both(op, args))
    if torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1):
        assert same([t.to("cuda:0") for t in results], both(op, arguments(op)))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_inductor(op, mode):
    torch.compiler.reset()
    compiled = torch.compile(getattr(ops, op), fullgraph=True, mode=mode)
    for seed in (0, 1, 2):  # "reduce-overhead" captures a graph at the second call
        args = arguments(op, seed=seed)
        expected = both(op, args)
        actual = [t.clone() for t in run(compiled, args, torch.ones_like)]
        assert same(actual, expected)
        assert actual[0].stride() == expected[0].stride()


def test_inductor_of_any_size(op):
    torch.compiler.reset()
    compiled = torch.compile(getattr(ops, op), fullgraph=True, dynamic=True)
    for size in ((24, 40), (32, 48), (50, 20)):
        args = arguments(op, size=size)
        assert same(run(compiled, args, torch.ones_like), both(op, args))


def test_autocast(op):
    args = arguments(op, torch.float32)
    with torch.autocast("cuda", dtype=torch.float16):
        output = getattr(ops, op)(*args)
    with mirnet_fast.use_backend("reference"), torch.autocast("cuda", dtype=torch.float16):
        expected = getattr(reference, op)(*args)
    torch.testing.assert_close(output.float(), expected.float(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("op", ["dau_attention", "residual_down_tail", "residual_up_tail"])
def test_products_of_float32_are_exact_unless_torch_allows_tf32(op, backend):
    args = arguments(op, torch.float32)
    exact = getattr(reference, op)(*on_tensors(torch.Tensor.double, args))

    def error():
        return (getattr(ops, op)(*args).double() - exact).norm() / exact.norm()

    assert error() < 2e-6  # conftest.py says so
    torch.backends.cudnn.allow_tf32 = True
    try:
        assert error() < 2e-6 if backend == "cuda" else 1e-5 < error() < 2e-3
    finally:
        torch.backends.cudnn.allow_tf32 = False


def test_maps_beyond_2_31_values(op):
    period, times = (58, 116), (102, 51)  # 5916 x 5916 pixels of 64 channels
    free = torch.cuda.mem_get_info()[0]
    if free < 40e9:
        pytest.skip(f"needs 40 GB of GPU memory; {free / 1e9:.0f} GB are free")
    small = arguments(op, n=1, size=period)

    def repeated(t):
        # The maps are 58 pixels high, the small one of residual_up_tail 29: no weight is.
        if t.dim() < 4 or t.shape[2] < 29:
            return t
        return t.repeat(1, 1, *times).contiguous(memory_format=torch.channels_last)

    large = on_tensors(repeated, small)
    assert tensors(large)[0].numel() > 2**31
    # In the middle of a period nothing of the border is seen; the global means are the same.
    with torch.no_grad():
        three = on_tensors(lambda t: t.repeat(1, 1, 3, 3) if t.dim() == 4 and t.shape[2] >= 29 else t, small)
        three = on_tensors(
            lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t, three
        )
        expected = getattr(ops, op)(*three)
        output = getattr(ops, op)(*large)
    h, w = (size // 3 for size in expected.shape[2:])
    middle = expected[:, :, h : 2 * h, w : 2 * w].float()
    last = output[:, :, -2 * h : -h, -2 * w : -w].float()
    torch.testing.assert_close(last, middle, rtol=2e-3, atol=2e-3)
    del output, large
    torch.cuda.empty_cache()
