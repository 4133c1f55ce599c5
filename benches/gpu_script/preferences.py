"""Which backend was faster for what."""


def by_backend(row):
    """{backend: its milliseconds} of a row."""
    others = {
        n.removeprefix("mirnet_fast "): ms for n, ms in row["ms"].items() if n.startswith("mirnet_fast ")
    }
    return {row["backend"]: row["ms"]["mirnet_fast"]} | others


def preferences(rows):
    """What mirnet_fast/preferences.json says of a GPU: see mirnet_fast/backends.py.

    {"op dtype": the backend that took less time over all its rows}, where there were several, and
    {"convolution dtype inputs outputs": {number of pixels: "triton" or "cudnn"}}.
    """
    total, convolutions = {}, {}
    for row in rows:
        if "cudnn" in row["ms"] and "outputs" in row:
            (n, inputs, height, width), ms = row["size"], row["ms"]
            measured = convolutions.setdefault(f"{row['op']} {row['dtype']} {inputs} {row['outputs']}", {})
            faster = "triton" if ms["mirnet_fast"] <= ms["cudnn"] else "cudnn"
            measured[str(n * height * width)] = faster
        if "backend" not in row:  # the network's, which is of both
            continue
        times = total.setdefault(f"{row['op']} {row['dtype']}", {})
        for backend, ms in by_backend(row).items():
            times[backend] = times.get(backend, 0) + ms
    return {name: min(times, key=times.get) for name, times in total.items() if len(times) > 1} | convolutions
