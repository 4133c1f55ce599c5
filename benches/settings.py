"""How the benchmarks run, by environment variables, each optional.

MIRNET_BENCH_DEVICE   cpu or cuda; cuda where there is one
MIRNET_BENCH_ROUNDS   timed rounds of every row; otherwise as many as a few seconds hold
MIRNET_BENCH_COMPILE  0: no torch.compile anywhere; 1: also of the network, which takes minutes;
                      default: only its default mode
MIRNET_BENCH_QUICK    1: few rounds of small maps, without torch.compile, other runtimes and memory: a look
                      in one to two minutes, as `make bench QUICK=1` takes it
MIRNET_BENCH_TINY     1: tiny maps and networks, to try the harness itself
"""

import os

import torch

DEVICE = os.environ.get("MIRNET_BENCH_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = int(os.environ.get("MIRNET_BENCH_ROUNDS") or 0)
QUICK = os.environ.get("MIRNET_BENCH_QUICK") == "1"
COMPILE = os.environ.get("MIRNET_BENCH_COMPILE", "0" if QUICK else "")
TINY = os.environ.get("MIRNET_BENCH_TINY") == "1"
