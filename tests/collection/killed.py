"""Runs of the command, killed at random moments: python -m tests.collection.killed TIMES ARGUMENTS...

Each is a fork of this process, in which nothing has begun but all is imported. The third argument is the
folder of results: a run is killed some milliseconds after a few more are in it. A line is printed, and one
read, after each run that was killed; then the exit status of the last, which nobody kills.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch  # noqa: F401

import mirnet_fast.restorer  # noqa: F401
from mirnet_fast.cli import main
from mirnet_fast.collection import pipeline  # noqa: F401


def run(arguments):
    """The process id of a fork that runs the command."""
    pid = os.fork()
    if pid == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        try:
            main(arguments)
        except SystemExit as error:
            os._exit(error.code)
        os._exit(99)
    return pid


def main_of_test(times, arguments):
    rng, results = random.Random(0), Path(arguments[2])
    for _ in range(times):
        enough = count(results) + rng.randint(1, 4)
        pid = run(arguments)
        while count(results) < enough:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        print(json.dumps({"killed": os.WIFSIGNALED(os.waitpid(pid, 0)[1])}), flush=True)
        input()  # the test looks at what is there
    print(json.dumps({"status": os.waitstatus_to_exitcode(os.waitpid(run(arguments), 0)[1])}), flush=True)


def count(folder):
    return len([*folder.glob("[!.]*")])


if __name__ == "__main__":
    main_of_test(int(sys.argv[1]), sys.argv[2:])
