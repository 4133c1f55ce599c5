"""A step: a process, its limits, and what its output says of it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SKIP = "MIRNET_GPU_SKIP"  # the cases that a process of a step leaves out: an earlier one had them
BROKEN = 75  # the exit status of a process whose GPU context a case broke
OVER = ("passed", "failed", "cut off", "not run")
STATUSES = ("waiting", "running", "paused", "ready", "alone", *OVER)


class Step:
    """A command, its limits in seconds, and what became of it.

    Args:
        alone: seconds of its measurements, for which the GPU is its own once it says READY; None where it
            measures nothing.
    """

    def __init__(self, name, command, limit, env=None, why_not=None, alone=None):
        self.name, self.command, self.env = name, [str(c) for c in command], env or {}
        self.limit, self.limit_alone = limit, alone
        self.status, self.why = ("not run", why_not) if why_not else ("waiting", None)
        self.seconds, self.alone_seconds, self.output = 0, 0, ""
        self.process = None
        self._clock = self._path = None
        self._read, self._begins, self._done_before = 0, 0, None

    def start(self, folder, base):
        self._path = folder / f"{self.name.replace('/', '-').replace(' ', '-')}.log"
        skipped = {SKIP: json.dumps(self.done())}
        self._begins = len(self.output)
        with self._path.open("a") as file:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env={**base, **self.env, **skipped},
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if self.limit_alone is None:
            self.process.stdin.close()
        self._clock, self.status = time.monotonic(), "running"

    def go(self):
        """Let it measure."""
        self._clock, self.status = time.monotonic(), "alone"
        try:
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # it has ended, as look() finds
            pass

    def pause(self):
        self.seconds += time.monotonic() - self._clock
        self.status = "paused"
        self._signal(signal.SIGSTOP)

    def resume(self):
        self._signal(signal.SIGCONT)
        self._clock, self.status = time.monotonic(), "running"

    def stop(self, why):
        """Not run, or cut off where it is."""
        if self.process is None:
            self.status, self.why = "not run", why
            return
        self._signal(signal.SIGKILL)
        self.process.wait()
        self._take_output()
        case = self._case()
        self.status, self.why = "cut off", f"{why}, in {case}" if case else why

    def look(self, folder, base):
        """Take note of its output, its end and its limit; whether there was something new."""
        new = self._take_output()
        if self.status in ("waiting", "paused") or self.status in OVER:
            return new
        now = time.monotonic()
        if self.status != "ready":
            spent, self._clock = now - self._clock, now
            if self.status == "alone":
                self.alone_seconds += spent
            else:
                self.seconds += spent
        code = self.process.poll()
        if code is not None:
            self._take_output()
            self._ended(code, folder, base)
            return True
        if self.status == "running" and self.seconds >= self.limit:
            self.stop(f"after {self.seconds:.0f} s")
        elif self.status == "alone" and self.alone_seconds >= self.limit_alone:
            self.stop(f"after {self.alone_seconds:.0f} s of measuring")
        elif self.status == "running" and self.limit_alone and self._says("READY"):
            self.status = "ready"
        return new or self.status in OVER

    def _ended(self, code, folder, base):
        self.process.stdin.close()
        lost = self._case()
        if lost:
            with self._path.open("a") as file:
                print(f"FAILED {lost} - exit status {code} in it", f"ENDED {lost}", sep="\n", file=file)
            self._take_output()
        done = self.done()
        if (lost or code == BROKEN) and done != self._done_before:
            self._done_before = done
            self.start(folder, base)
            return
        failed = code != 0 or "FAILED" in self.counts
        self.status = "failed" if failed else "passed"
        self.why = f"exit status {code}" if code not in (0, 1) else None

    def done(self):
        """The cases that need not be tried again."""
        return list(
            dict.fromkeys(re.findall(r"^(?:PASSED|FAILED|SKIPPED) (.*?)(?: - .*)?$", self.output, re.M))
        )

    def _case(self):
        """The case that the process is in, or None."""
        marks = re.findall(r"^(BEGAN|ENDED) (.*)$", self.output[self._begins :], re.M)
        return marks[-1][1] if marks and marks[-1][0] == "BEGAN" else None

    def _says(self, line):
        return f"\n{line}\n" in "\n" + self.output[self._begins :]

    def _signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _take_output(self):
        if self._path is None:
            return False
        with self._path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        # Not half of a line, which may be half of a row.
        text = text[: text.rfind(b"\n") + 1] if self.process.poll() is None else text
        self._read += len(text)
        self.output += text.decode(errors="replace")
        return bool(text)

    @property
    def counts(self):
        """{outcome: how many} of the tests or cases that the output names."""
        # pytest names the test first, and the failed ones once more at the end.
        start = r"^\S+::.* " if re.search(r"^\S+::", self.output, re.M) else "^"
        found = re.findall(start + r"(PASSED|FAILED|ERROR|SKIPPED)\b", self.output, re.M)
        return {outcome: found.count(outcome) for outcome in dict.fromkeys(found)}

    def failures(self):
        lines = re.findall(r"^(?:FAILED|ERROR) .*$", self.output, re.M)
        if self.status == "failed" and not lines:
            lines = self.output.strip().splitlines()[-3:]
        return [line[:400] for line in dict.fromkeys(lines)]

    def skips(self):
        return list(dict.fromkeys(re.findall(r"^SKIPPED .*$", self.output, re.M)))

    def records(self, kind):
        """The dicts that the step has printed, one a line, whose first key is `kind`: "op" or "fact"."""
        start = f'{{"{kind}"'
        return [json.loads(line) for line in self.output.splitlines() if line.startswith(start)]

    def summary(self):
        return {
            "name": self.name,
            "status": self.status,
            "why": self.why,
            "seconds": round(self.seconds, 1),
            "alone": round(self.alone_seconds, 1),
            "counts": self.counts,
            "failures": self.failures(),
            "skipped": self.skips(),
        }
