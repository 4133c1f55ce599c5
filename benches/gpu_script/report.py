"""The report as text."""

from rows import table

COMPARED = {"times_eager": "eager", "times_compiled": "torch.compile"}


def lines(record):
    """The report as lines of text."""
    environment = record["environment"]
    yield f"mirnet_fast on {environment.get('gpu') or 'no GPU'}, {record['seconds']:.0f} s"
    if not environment.get("gpu"):
        yield "TRIED WITHOUT A GPU: tiny maps, interpreted and emulated. The times below mean nothing."
    for key, value in environment.items():
        if value not in (None, [], {}):
            yield f"  {key}: {value}"
    yield ""
    for step in record["steps"]:
        counts = ", ".join(f"{n} {outcome.lower()}" for outcome, n in step["counts"].items())
        told = "; ".join(part for part in (step["why"], counts) if part)
        alone = f" and {step['alone']:4.1f} s alone" if step["alone"] else ""
        yield f"{step['status']:>8}  {step['name']:<40} {step['seconds']:6.1f} s{alone}  {told}"
        for text in step["failures"][:20]:
            yield f"            {text}"
        for text in step["skipped"][:5]:
            yield f"            {text}"
    if record["rows"]:
        yield ""
        yield from table(record["rows"])
    for fact in record["facts"]:
        if "text" in fact:
            yield f"{fact['fact']}: {fact['text']}"
    if record["network"]:
        yield ""
        yield "Targets, network: 3 x eager channels_last, 1.5 x the best torch.compile, 0.75 GB a megapixel;"
        yield "training step: 1.5 x, 1.15 x, 60 % of the memory of the best other"
        for t in record["network"]:
            told = [f"{t['times_eager']:.2f} x eager"] if t["times_eager"] else ["no eager"]
            told += [f"{t['times_compiled']:.2f} x compiled"] if t["times_compiled"] else ["no torch.compile"]
            if t["gb_per_megapixel"] is not None:
                told.append(f"{t['gb_per_megapixel']:.2f} GB a megapixel")
            if t["of_the_least_memory_of_others"] is not None:
                told.append(f"{100 * t['of_the_least_memory_of_others']:.0f} % of the memory")
            size = "x".join(map(str, t["size"]))
            verdict = "met" if t["met"] else "MISSED"
            yield f"  {t['op']:<10} {size:<14} {t['dtype']:<9} {', '.join(told)}  {verdict}"
    if record["targets"]:
        yield ""
        yield "Targets, float16 forward: 3 x eager, 1.3 x torch.compile; of copy beyond the L2 cache 90 % for"
        yield "blur_pool and skff_select, 80 % for dau_attention, 85 % for the others"
        for t in record["targets"]:
            size = "x".join(map(str, t["size"]))
            beyond = "beyond L2" if t["larger_than_l2"] else "within L2"
            ratios = [f"{t[k]:.2f} x {n}" if t[k] else f"no {n}" for k, n in COMPARED.items()]
            verdict = "met" if t["met"] else "MISSED"
            share = f"{100 * t['of_copy']:4.0f} % of copy ({beyond})"
            yield f"  {t['op']:<20} {size:<14} {t['backend']:<7} {share}  {', '.join(ratios)}  {verdict}"
