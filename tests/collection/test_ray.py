"""Restoring on a Ray cluster, a real one on this machine with two workers."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import mirnet_fast
from mirnet_fast.collection import ClusterError, How, Workers, listed, restore_files, restore_on_ray, worker
from mirnet_fast.collection.worker import TRIES
from mirnet_fast.restorer import Restorer

from .. import cases, foreign
from . import common
from .on_ray import Ending

needs_ray = [cases.exhaustive, foreign.needs("ray"), pytest.mark.xdist_group("ray")]
TWO = Workers(count=2, cpus=1)


@pytest.mark.parametrize("settings", [{}, {"memory": "1G"}, {"tile": 64}])
def test_a_worker_of_a_cpu_has_its_share_of_the_memory_where_nothing_else_is_said(monkeypatch, settings):
    monkeypatch.setattr(worker, "ray_package", lambda: SimpleNamespace(get=lambda it: it))
    monkeypatch.setattr(worker.torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(worker.budget, "free", lambda: 2**30 * os.cpu_count())
    begun = SimpleNamespace(count=SimpleNamespace(remote=None))

    def made(network):
        return worker.Worker([(network, dict(settings)), begun], How(), 1, "cpu", "")._restorer

    network = mirnet_fast.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1)
    restorer = made(network)
    assert (restorer.memory, restorer.tile) == (None if "tile" in settings else 2**30, settings.get("tile"))
    # What this one takes is not known, so that no share could be kept.
    network.register_forward_hook(lambda module, args, result: None)
    assert made(network).memory == (2**30 if "memory" in settings else None)


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two CPUs, to which this process is connected."""
    import ray

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join([str(common.ROOT), os.environ.get("PYTHONPATH", "")]))
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("RAY_worker_niceness", "0")  # on a busy machine tests would take minutes
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@pytest.fixture
def files(tmp_path, monkeypatch):
    """{name: pixels} of images in the folder `in`, the present one being its parent; one is white."""
    monkeypatch.chdir(tmp_path)
    rng, made = np.random.default_rng(0), {}
    for number in range(12):
        name = f"{number % 3}/{number:02}.png"
        pixels = rng.integers(0, 256, (24, 32, 3), np.uint8)
        made[name] = np.full_like(pixels, 255) if number == 4 else pixels
        os.makedirs(f"in/{number % 3}", exist_ok=True)
        cv2.imwrite(f"in/{name}", made[name])
    (tmp_path / "told").mkdir()
    return made


def check_whole(made, folder="out"):
    """That the results are as they should be, whole, and nothing else is there."""
    found = [
        os.path.relpath(f"{place}/{name}", folder) for place, _, names in os.walk(folder) for name in names
    ]
    assert sorted(found) == sorted(made)
    for name, pixels in made.items():
        assert np.array_equal(cv2.imread(f"{folder}/{name}"), pixels), name


def run(network, inputs=("in",), out="out", workers=TWO, **options):
    """(summary, {input: record}) of a run."""
    records = []
    listing = listed(inputs, out)
    summary = restore_on_ray(listing.items, network, tell=records.append, workers=workers, **options)
    assert len(records) == len({record.input for record in records})  # each is told once
    return summary, {record.input: record for record in records}


@pytest.mark.usefixtures("cluster")
class TestOnTwoWorkers:
    pytestmark = needs_ray

    def test_the_same_as_without(self, files, network):
        with open("in/bad.png", "w") as bad:
            bad.write("bad")
        inputs = "in", "missing.png"
        summary, records = run(network, inputs, strength=0.5)
        told = {}
        restorer = Restorer(network, device="cpu", strength=0.5)
        restore_files(listed(inputs, "alone").items, restorer, tell=lambda r: told.setdefault(r.input, r))
        assert (summary.restored, len(summary.failed), summary.left) == (12, 2, 0)
        check_whole(files)
        check_whole(files, "alone")
        missing = records.pop("missing.png"), told.pop("missing.png")
        assert "missing.png: there is no such file on " in missing[0].reason
        assert "all of them have to see it" in missing[0].reason
        assert records.keys() == told.keys()
        for name, record in told.items():
            other = dataclasses.replace(
                records[name], seconds=record.seconds, output=records[name].output.replace("out", "alone", 1)
            )
            assert other == record
        made = {name: os.stat(f"out/{name}").st_mtime_ns for name in files}
        summary, records = run(network, strength=0.5)
        assert (summary.restored, summary.skipped, len(summary.failed)) == (0, 12, 1)
        assert made == {name: os.stat(f"out/{name}").st_mtime_ns for name in files}

    @pytest.mark.parametrize("when", ["network", "writer"])
    def test_a_worker_is_killed(self, files, tmp_path, when):
        halves, over = [], threading.Event()

        def kill():
            told = tmp_path / "told" / "0"
            while not told.exists():
                if over.wait(0.01):
                    return
            halves.extend((tmp_path / "out").rglob(".new-*"))
            os.kill(int(told.read_text()), signal.SIGKILL)

        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        summary, records = run(Ending(tmp_path / "told", when))
        over.set()
        thread.join()
        assert len(halves) == (when == "writer")  # it was in the middle of it
        assert (summary.restored, summary.failed, summary.left, summary.stopped) == (12, [], 0, None)
        check_whole(files)
        twice = [record.input for record in records.values() if record.notes]
        assert twice == ["in/1/04.png"]
        assert records[twice[0]].notes == ("a worker came to a sudden end at it; this is try 2",)

    def test_a_file_that_ends_every_worker(self, files, tmp_path):
        summary, _ = run(Ending(tmp_path / "told", "always"))
        assert len([*(tmp_path / "told").iterdir()]) == TRIES
        assert summary.restored == 11 and [record.input for record in summary.failed] == ["in/1/04.png"]
        reason = "in/1/04.png: 3 workers came to a sudden end at it, perhaps for want of memory"
        assert summary.failed[0].reason == reason
        del files["1/04.png"]
        check_whole(files)

    def test_a_full_disk_ends_the_run(self, files, tmp_path):
        summary, _ = run(Ending(tmp_path / "told", "full"), workers=Workers(1, 1))
        assert summary.stopped == "no space is left for results"
        assert summary.failed[0].input == "in/1/04.png" and summary.left > 0
        assert summary.restored + len(summary.failed) + summary.left == 12

    def test_what_the_cluster_cannot_hold(self, files, network):
        with pytest.raises(ClusterError, match=r"no machine of the cluster has 1 CPUs and 1 GPUs, .* 2 CPUs"):
            run(network, workers=Workers(gpus=1))
        with pytest.raises(ValueError, match="precision 'fp16' is for GPUs"):
            run(network, precision="fp16")

    def test_a_folder_that_cannot_be_made(self, files, network, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "1").write_text("a file")
        summary, records = run(network)
        assert summary.restored == 8 and len(summary.failed) == 4
        assert records["in/1/04.png"].reason == "in/1/04.png: out/1: File exists"

    def test_the_command_and_ctrl_c(self, cluster, files, tmp_path):
        weights = common.identity(tmp_path)
        command = common.command("restore", "in", "out", "--weights", weights, "--device", "cpu", "--json")
        command += ["--ray", cluster, "--workers", "1", "--worker-cpus", "1"]
        environment = {**common.environment(), "PYTHONPATH": os.pathsep.join([str(common.ROOT), *sys.path])}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, start_new_session=True
        )
        first = json.loads(process.stdout.readline())
        assert first["status"] == "restored"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate()
        rows = [first, *map(json.loads, out.splitlines())]
        assert process.returncode == 130, err
        assert rows[-1]["kind"] == "summary" and rows[-1]["stopped"] == "interrupted"
        assert rows[-1]["restored"] == len(rows) - 1 and rows[-1]["left"] == 12 - len(rows) + 1
        assert not [line for line in err.decode().splitlines() if "weights:" not in line]  # no word from Ray
        done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert rows[-1]["failed"] == 0 and rows[-1]["restored"] + rows[-1]["skipped"] == 12
        check_whole(files)


class TestWithoutCluster:
    pytestmark = needs_ray

    def test_no_cluster_there(self, files, network, monkeypatch):
        ray = foreign.installed("ray")
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "shutdown", lambda: None)
        for address in ("127.0.0.1:1", "nowhere", "nowhere:x"):
            with pytest.raises(ClusterError, match=f"there is no Ray cluster at {address}: "):
                run(network, address=address)


def test_ray_is_not_installed(files, network, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"needs Ray .*; try: pip install 'mirnet-fast\[ray\]'"):
        restore_on_ray(listed(["in"], "out").items, network)


def test_importing_needs_no_ray():
    script = "import sys, mirnet_fast.collection; sys.exit('ray' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(common.ROOT)}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 0
    assert mirnet_fast.Restorer is Restorer
