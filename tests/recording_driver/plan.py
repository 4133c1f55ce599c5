"""A network's plan on the recording driver, as JSON: python -m tests.recording_driver.plan"""

import json
import statistics
import time

import torch
from mirnet_fast.kernels import _taps
from torch.utils._python_dispatch import TorchDispatchMode

import mirnet_fast
from mirnet_fast.engine import memory, schedule
from mirnet_fast.engine.plan import Plan
from tests import recording_driver
from tests.engine.common import as_if_on_a_gpu

ROUNDS = 20


class Watch(TorchDispatchMode):
    """The operators of PyTorch that run inside."""

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def span(tensor):
    """[first byte, last byte + 1) of a tensor's storage."""
    begin = tensor.untyped_storage().data_ptr()
    return begin, begin + tensor.untyped_storage().nbytes()


def tables():
    """A list that the tables of the kernels come to, once they are made."""
    made, make = [], _taps._table

    def noted(rows, device):
        made.extend(result := make(rows, device))
        return result

    _taps._table = noted
    return made


def main():
    recorder, constants = recording_driver.use(), tables()
    torch.manual_seed(0)
    network = mirnet_fast.MIRNet(n_feat=32, n_RRG=1, n_MSRB=1).eval().half()
    schedule.LATE_BYTES = 0  # as of a large image: in bands, and with a branch that is made late
    image = torch.rand(1, 3, 64, 96).half().contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), as_if_on_a_gpu(), mirnet_fast.use_backend("triton"):
        plan = Plan(network, image)
        plan.run([image])
        [bound] = [bound for block in memory._kept for bound in block.bound.values()]
        spans = {
            "weights": [span(t) for t in (*network.parameters(), *bound._packed)],
            "plan": [span(bound._block._whole), span(bound._sums)],
            "tables": [*map(span, constants)],
            "gathering": [span(t) for t in vars(bound.calls[0].__self__).values() if torch.is_tensor(t)],
        }
        runs = []
        for way in ("recorded", "replayed"):
            recorder.clear()
            with Watch() as watch:
                result = plan.run([image])
            spans["ends"] = [span(t) for t in (image, result, *bound._given.values(), bound._result)]
            launches = [(name, [_place(a, spans) for a in places]) for name, places in recorder.launches()]
            runs.append({"way": way, "launches": launches, "operators": watch.operators, **recorder.counts()})
        recorder.keep_nothing()
        # Of the kernels alone: PyTorch's operators before them do on the CPU what a GPU would do later.
        times = []
        for _ in range(ROUNDS):
            recorder.clear()
            bound.values |= {plan._inputs[0]: image}
            begin = time.perf_counter()
            for call in bound.calls[bound._ends[0] :]:
                call()
            times.append((time.perf_counter() - begin) / recorder.counts()["count"])
    kinds = [task.kind for task in plan.tasks]
    print(json.dumps({"tasks": kinds, "runs": runs, "us_a_launch": 1e6 * statistics.median(times)}))


def _place(address, spans):
    """Of which memory an address is, or None."""
    for name, found in spans.items():
        if any(begin <= address < end for begin, end in found):
            return name
    return None


if __name__ == "__main__":
    main()
