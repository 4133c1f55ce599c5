"""Many files on many machines: a job of Ray Data, of which each worker holds the network."""

import contextlib
import copy
import logging
import math
import os
import pickle
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import precision as precisions
from .._files import remove_halves
from ..restorer import Restorer
from . import places
from .job import How
from .listing import Item
from .records import FAILED, Record, Summary
from .worker import Worker, begun, ray_package

BLOCKS = 10_000  # in which Ray's driver holds a long list; else each is of one file
AT_A_WORKER = 2  # files: one that it is at, and one that waits there
# Nothing is sent to Ray's makers, and its libraries' log is kept to what ends the process.
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
USUAL_CPUS = 4  # of a worker without a GPU, where a machine has as many


class ClusterError(RuntimeError):
    """There is no such cluster, or its machines cannot run workers; the message says why."""


@dataclass(frozen=True)
class Workers:
    """The workers of a job; None leaves it to what the cluster has.

    Attributes:
        count: how many at most.
        cpus: of each, and as many threads.
        gpus: of each, such as 1, or 0.5 for two workers that share one, so that it is busy while one of them
            reads or writes; 0 for the CPU.
    """

    count: int | None = None
    cpus: float | None = None
    gpus: float | None = None


def restore_on_ray(
    items: Iterable[Item],
    network: str | os.PathLike[str] | nn.Module,
    how: How = How(),  # noqa: B008
    tell: Callable[[Record], object] = lambda record: None,
    settled: Iterable[Record] = (),
    *,
    address: str = "auto",
    workers: Workers = Workers(),
    precision: str = "auto",
    **settings: Any,
) -> Summary:
    """`restore_files` on a Ray cluster, whose machines have this package installed and see the files.

    A file whose worker ends, or whose machine, is given to a worker again, three times in all. Records are
    told as they come. KeyboardInterrupt, and no space left, end the job: what workers are at is dropped.

    Args:
        items, how, tell, settled: as of `restore_files`.
        network, precision, settings: of each worker's Restorer, but its device. The weights go from here.
        address: of the cluster's head; or "auto": the cluster that this machine is part of, or one of this
            machine alone, until the end. Where ray.init was called before, that cluster is taken.

    Raises:
        ImportError: Ray is not installed.
        ClusterError: see there.
        ValueError, CheckpointError: as of Restorer.
    """
    begin, summary = time.perf_counter(), Summary()
    items = list(items)
    ray = ray_package()
    if isinstance(network, nn.Module):
        network = copy.deepcopy(network)
    restorer = Restorer(network, device="cpu", **settings)
    settings = {**settings, "strength": restorer.strength, "precision": precision}
    folders = places.folders(item.output for item in items)
    for folder in folders:
        remove_halves(folder)
    items, refused = _with_folders(items)
    left = len(items)
    for record in (*settled, *refused):
        summary.add(record)
        tell(record)
    try:
        if items:
            with (
                _connected(ray, address),
                _rows(ray, items, restorer.network, settings, how, workers) as rows,
            ):
                for record, no_space in rows:
                    left -= 1
                    summary.add(record)
                    tell(record)
                    if no_space:
                        summary.stopped = "no space is left for results"
                        break
    except KeyboardInterrupt:
        summary.interrupted, summary.stopped = True, "interrupted"
    finally:
        for folder in folders:  # of workers that were ended
            remove_halves(folder)
    summary.left, summary.seconds = left, time.perf_counter() - begin
    return summary


@contextlib.contextmanager
def _connected(ray, address) -> Generator[None]:
    if ray.is_initialized():
        yield
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address not in ("auto", "local") and "://" not in address:
            _check_reachable(address)
        with _hushed():
            try:
                ray.init(address, **quiet)
            except ConnectionError:
                if address != "auto":
                    raise
                ray.init("local", include_dashboard=False, **quiet)
    except (OSError, ValueError) as error:
        ray.shutdown()
        raise ClusterError(f"there is no Ray cluster at {address}: {_first_line(error)}") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address):
    """Raises OSError or ValueError; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=10):
        pass


@contextlib.contextmanager
def _hushed() -> Generator[None]:
    """Inside, nothing goes to stderr: Ray's libraries tell there that they took their setting over."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _rows(ray, items, network, settings, how, workers) -> Generator[Iterator[tuple[Record, bool]]]:
    """(record, whether no space is left) of each file, as they come; at the end workers are ended."""
    count, cpus, gpus = _fitting(ray, workers, len(items))
    device = "cuda" if gpus else "cpu"
    precisions.check(settings["precision"], torch.device(device))
    shared = [ray.put((network, settings)), begun(ray)]  # Ray keeps them for as long as this is there
    given = [{"item": pickle.dumps(pair)} for pair in enumerate(items)]
    dataset = ray.data.from_items(given, override_num_blocks=min(len(items), BLOCKS)).map(
        Worker,
        fn_constructor_args=(shared, how, max(1, int(cpus)), device, os.getcwd()),
        compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=AT_A_WORKER),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    dataset.context.enable_progress_bars = False
    rows = iter(dataset.iter_rows())

    def records() -> Iterator[tuple[Record, bool]]:
        while True:
            try:
                row = next(rows, None)
            except Exception as error:  # of Ray, or of what a worker raised, of many kinds
                raise ClusterError(f"the workers cannot go on: {_last_line(error)}") from error
            if row is None:
                return
            yield pickle.loads(row["done"])

    try:
        yield records()
    finally:
        rows.close()
        ray.kill(shared[1])


def _fitting(ray, workers, files):
    """(how many workers, CPUs of each, GPUs of each)."""
    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    most = {name: max((m.get(name, 0) for m in machines), default=0) for name in ("CPU", "GPU")}
    gpus = workers.gpus
    if gpus is None:
        gpus = 1 if most["GPU"] else 0
    cpus = workers.cpus
    if cpus is None:
        cpus = 1 if gpus else max(1, min(USUAL_CPUS, most["CPU"]))
    asked = {"CPU": cpus, "GPU": gpus}
    room = sum(min(int(m.get(n, 0) // need) for n, need in asked.items() if need) for m in machines)
    if not room:
        what = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        raise ClusterError(
            f"no machine of the cluster has {what}, as a worker was to have; "
            f"at most {most['CPU']:g} CPUs and {most['GPU']:g} GPUs"
        )
    return min(room, files, workers.count or math.inf), cpus, gpus


def _with_folders(items) -> tuple[list[Item], list[Record]]:
    """Make the folders of results, by which workers tell that they see them: what can be, and what not."""
    kept, refused = [], []
    for item in items:
        try:
            if not places.is_url(item.output):
                Path(item.output).parent.mkdir(parents=True, exist_ok=True)
            kept.append(item)
        except OSError as error:
            reason = f"{item.input}: {error.filename}: {error.strerror}"
            refused.append(Record(item.input, item.output, FAILED, reason))
    return kept, refused


def _first_line(error):
    return str(error).strip().partition("\n")[0]


def _last_line(error):
    """Where Ray's errors, which are whole tracebacks, say what it was."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
