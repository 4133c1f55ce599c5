"""Who runs when, and the files of the report."""

import json
import os
import tempfile
import time
from pathlib import Path

from .preferences import preferences
from .report import lines
from .step import OVER, ROOT, STATUSES
from .targets import network_targets, targets

REPORT_EVERY = 3  # seconds


class Run:
    """The steps, their report, and the time that they may take."""

    def __init__(self, folder, seconds):
        self.folder, self.begin = folder, time.monotonic()
        self.deadline = self.begin + seconds
        self.steps, self.environment = [], {}
        folder.mkdir(parents=True, exist_ok=True)
        self.scratch = Path(tempfile.mkdtemp(prefix="mirnet-gpu-"))
        self.base = {
            k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "MIRNET_FAST_BACKEND")
        }
        self.base |= {
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "400",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        # What one step compiles the others find.
        self.base["TRITON_CACHE_DIR"] = str(self.scratch / "triton")

    def do(self, steps, workers):
        """Run steps, so many at a time beside those that wait for the GPU, until they or the time end."""
        steps = list(steps)
        self.steps += steps
        reported, new = 0, False
        try:
            while left := [s for s in steps if s.status not in OVER]:
                if time.monotonic() >= self.deadline:
                    break
                self._advance(left, workers)
                time.sleep(0.1)
                new |= any([s.look(self.scratch, self.base) for s in left])
                if new and time.monotonic() - reported > REPORT_EVERY:
                    self.report()
                    reported, new = time.monotonic(), False
        finally:
            for step in steps:
                if step.status not in OVER:
                    step.stop("no time was left")
            self.report()

    def _advance(self, left, workers):
        """Start what can start; the first step that is READY goes alone."""
        by_status = {name: [s for s in left if s.status == name] for name in STATUSES}
        if by_status["alone"]:
            return
        if by_status["ready"]:
            for step in by_status["running"]:
                step.pause()
            time.sleep(0.2)  # the GPU ends what it has of them
            by_status["ready"][0].go()
            return
        for step in by_status["paused"]:
            step.resume()
        free = workers - len(by_status["running"]) - len(by_status["paused"])
        for step in by_status["waiting"][: max(free, 0)]:
            step.start(self.scratch, self.base)

    def report(self):
        rows = [row for step in self.steps for row in step.records("op")]
        facts = [fact for step in self.steps for fact in step.records("fact")]
        record = {
            "environment": self.environment,
            "seconds": round(time.monotonic() - self.begin, 1),
            "steps": [step.summary() for step in self.steps],
            "targets": targets(rows, self.environment.get("L2 in MB")),
            "network": network_targets(rows),
            "rows": rows,
            "facts": facts,
        }
        self._write("report.json", json.dumps(record, indent=1) + "\n")
        self._write("report.txt", "\n".join(lines(record)) + "\n")
        log = [f"=== {s.name}: {' '.join(s.command)}\n{s.output}" for s in self.steps if s.output]
        self._write("log.txt", "\n".join(log)[-8_000_000:])
        if rows:
            chosen = {self.environment.get("gpu"): preferences(rows)}
            self._write("preferences.json", json.dumps(chosen, indent=1, sort_keys=True) + "\n")
            machine = json.dumps(self.environment, indent=1)
            text = ",\n".join(f"  {json.dumps(row)}" for row in rows)
            self._write("results.json", f'{{\n"machine": {machine},\n"rows": [\n{text}\n]\n}}\n')
        return record

    def _write(self, name, text):
        """Whole or not at all: it may be killed at any time."""
        new = self.scratch / name
        new.write_text(text)
        target = self.folder / name
        try:
            new.replace(target)
        except OSError:  # the folder is on another disk
            target.write_text(text)
