"""Inference without gradients: a graph of steps, a plan of their memory, a run.

`graph` has what is computed, `eligibility` whether it may be, `schedule` in which order and in which bands
of rows, `memory` where it lies, `plan` the list of kernel calls that comes of it, `bound` the calls, those
of a device in `cpu` and `cuda`. `cost` says what they should take on one of `devices`, `explain` what of all
this a model's forward would come to. Where memory is short, `segments`, `flow` and `strips` take the place of
the plan, by the rules of `rows` and within a `budget`, and `strip_run` runs them, with a `store` in a file.
"""

from .explain import explain
from .explanation import Explanation
from .plan import EngineStats, Plan, engine_stats, plan_of, release_workspace, run

__all__ = [
    "EngineStats",
    "Explanation",
    "Plan",
    "engine_stats",
    "explain",
    "plan_of",
    "release_workspace",
    "run",
]
