"""The little of pytest that the benchmarks use, where it is not installed."""

import sys
import types


def stand_in():
    class Skipped(Exception):
        pass

    def skip(reason):
        raise Skipped(reason)

    skip.Exception = Skipped

    def parametrize(names, values, ids=None):
        def mark(function):
            function.pytestmark = [types.SimpleNamespace(args=(names, values))]
            return function

        return mark

    module = types.ModuleType("pytest")

    def skipif(condition, reason):
        return lambda function: function

    module.mark, module.skip = types.SimpleNamespace(parametrize=parametrize, skipif=skipif), skip
    sys.modules["pytest"] = module
