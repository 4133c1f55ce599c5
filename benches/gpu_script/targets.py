"""What is asked of a large GPU, and how far the rows meet it."""

from .preferences import by_backend


def targets(rows, l2):
    """How far the rows meet what is asked of a large GPU: one entry for each forward in float16.

    Of the better backend, which the picker will use where it is the better one throughout.
    """
    asked = {"blur_pool": 0.9, "skff_select": 0.9, "dau_attention": 0.8}  # else 0.85
    result = []
    for row in rows:
        if row["direction"] != "forward" or row["dtype"] != "float16" or row.get("layout") != "channels_last":
            continue
        times = by_backend(row)
        best = min(times, key=times.get)
        gain = row["ms"]["mirnet_fast"] / times[best]
        entry = {"op": row["op"], "size": row["size"], "backend": best, "of_copy": gain * row["of_copy"]}
        # The map of the op, once in and once out, does not fit.
        entry["larger_than_l2"] = l2 is not None and row["floor_mb"] > l2
        for key, rival in (("times_eager", "eager channels_last"), ("times_compiled", "torch.compile")):
            entry[key] = gain * row["ratio"][rival] if rival in row["ratio"] else None
        entry["asked"] = asked.get(row["op"], 0.85)
        entry["met"] = (
            (entry["of_copy"] >= entry["asked"] or not entry["larger_than_l2"])
            and (entry["times_eager"] or 0) >= 3
            and (entry["times_compiled"] or 0) >= 1.3
        )
        result.append(entry)
    return result


def network_targets(rows):
    """The same of the network and of its training: one entry for each size and dtype.

    Ratios are of times in the same row, as what is timed in others had its turns at another time; ours is
    the fastest of ours, the memory that of mirnet_fast itself.
    """
    asked = {"network": (3, 1.5), "training": (1.5, 1.15)}  # times eager, times the best torch.compile
    found = {}
    for row in rows:
        if row["op"] not in asked:
            continue
        key = row["op"], tuple(row["size"]), row["dtype"]
        entry = found.setdefault(key, {"eager": [], "compiled": [], "gb_per_megapixel": None, "of_eager": []})
        ours = min(ms for name, ms in row["ms"].items() if name.startswith("mirnet_fast"))
        for name, ms in row["ms"].items():
            if name == "eager channels_last":
                entry["eager"].append(ms / ours)
            if name.startswith("torch.compile"):
                entry["compiled"].append(ms / ours)
        peaks = row.get("peak_mb") or {}
        if peaks.get("mirnet_fast"):
            entry["gb_per_megapixel"] = peaks["mirnet_fast"] * 1e3 / (row["size"][0] * _area(row["size"]))
            rivals = [mb for name, mb in peaks.items() if not name.startswith("mirnet_fast") and mb]
            entry["of_eager"] += [peaks["mirnet_fast"] / min(rivals)] if rivals else []
    result = []
    for (op, size, dtype), entry in found.items():
        eager, compiled = (min(entry[name], default=None) for name in ("eager", "compiled"))
        least_eager, least_compiled = asked[op]
        memory, share = entry["gb_per_megapixel"], max(entry["of_eager"], default=None)
        fits = (memory is not None and memory <= 0.75) if op == "network" else (share or 1) <= 0.6
        met = (eager or 0) >= least_eager and (compiled or 0) >= least_compiled and fits
        result.append(
            {
                "op": op,
                "size": list(size),
                "dtype": dtype,
                "times_eager": eager,
                "times_compiled": compiled,
                "gb_per_megapixel": memory,
                "of_the_least_memory_of_others": share,
                "met": met,
            }
        )
    return result


def _area(size):
    return size[-1] * size[-2]
