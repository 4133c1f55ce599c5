"""What else one would run the network with on a CPU: OpenVINO and ONNX Runtime, from the extra `peers`.

Each is a function of the reference network and an image that returns the call to measure, on torch's number
of threads. They take and give float32, and compute in it unless told otherwise.
"""

import copy
import functools
import importlib.util
import io
import warnings

import torch


def openvino(network, image, precision="f32"):
    """precision: what OpenVINO calls it; None for what it chooses, bfloat16 where the CPU computes in it."""
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    settings |= {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
    # Tracing runs the network, which with gradients takes 20 GB at 512 x 512.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(network, example_input=image, input=list(image.shape))
    compiled = openvino.compile_model(model, "CPU", settings)
    array = image.numpy()
    return lambda: torch.from_numpy(compiled(array)[0])


def onnxruntime(network, image):
    import onnxruntime

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (image,), dynamo=True, verbose=False).save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.getvalue(), options, ["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def of_float32(function, network, image):
    """The peer on a network and an image in bfloat16, of whose values it is given."""
    return function(copy.deepcopy(network).float(), image.float())


# {dtype of network and image: {name: (function, packages that it needs)}}
PEERS = {
    torch.float32: {
        "OpenVINO": (openvino, ("openvino",)),
        "ONNX Runtime": (onnxruntime, ("onnxruntime", "onnxscript")),
    }
}
# On the CPU ONNX Runtime has no convolution in bfloat16.
PEERS[torch.bfloat16] = {
    "OpenVINO": (functools.partial(of_float32, functools.partial(openvino, precision=None)), ("openvino",)),
    **{
        f"{name} f32": (functools.partial(of_float32, function), packages)
        for name, (function, packages) in PEERS[torch.float32].items()
    },
}


def installed(dtype):
    """({name: function} of those that are installed, {name: why not} of the others)."""
    there, missing = {}, {}
    for name, (function, packages) in PEERS[dtype].items():
        absent = [package for package in packages if importlib.util.find_spec(package) is None]
        if absent:
            missing[name] = f"{', '.join(absent)} not installed (pip install 'mirnet-fast[peers]')"
        else:
            there[name] = function
    return there, missing
