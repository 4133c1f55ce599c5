"""How well a network restores photos that it never saw: python benches/quality.py --task denoise

Prints tables for the network's card, and last, for each thing that is asked of it, the worst case and whether
it is met. All noise is seeded, and the same for every method. Everything is judged as a file of 8 bits, by
mirnet_fast.evaluation alone. The photos are those that `make photos` prepares.

Needs `pip install 'mirnet-fast[bench,train]'`; and bm3d, whose licence is for non-commercial use, to compare.
"""

import argparse
import csv
import operator
import statistics
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pictures
import plain_tools
import torch
from conditions import BEFORE, conditions
from tqdm import tqdm

from mirnet_fast import evaluation, images, inference, measure, pretrained
from mirnet_fast._files import replaced
from mirnet_fast.checkpoints import CheckpointError

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = Path("photos/held_out")
CACHE = ROOT / "build" / "quality"
NETWORK = "network"
BLOCK = 16  # side of what is called flat
FLAT = 2.0  # grey levels of standard deviation below which it is
TIMES = 8  # as large as it is, a clean photo's change is shown
SIDE = 1000  # of the photo that is timed: one megapixel

OF_TOOLS = "Of the plain tools each has the setting, of a few, that suits the photo best."
OF_BM3D = (
    "BM3D (Mäkinen, Azzari and Foi, IEEE TIP 2020; package bm3d) is told the strength of the noise, "
    "the network is not."
)
# Of a task, for below its tables.
NOTES = {"denoise": [OF_BM3D, OF_TOOLS], "enhance": [OF_TOOLS], "sharpen": [OF_TOOLS]}


@dataclass
class Report:
    """What was found: Markdown, the same as rows of a table, and what was asked, in lines."""

    text: list = field(default_factory=list)
    rows: list = field(default_factory=list)
    asked: list = field(default_factory=list)

    def table(self, title, header, lines):
        self.text += ["", f"### {title}", "", _line(header), _line(["---"] * len(header))]
        self.text += map(_line, lines)

    def row(self, condition, photo, method, **measures):
        for what, value in measures.items():
            self.rows.append([condition, photo, method, what, f"{value:.6g}"])

    def ask(self, what, cells, holds, bound, unit=""):
        """Note whether the worst of {where: value} is as it should be; nothing of no cells.

        holds: of operator, ge or gt where more is better, le or lt where less is.
        """
        if cells:
            where = (min if holds in (operator.ge, operator.gt) else max)(cells, key=cells.get)
            verdict = "met" if holds(cells[where], bound) else "missed"
            self.asked.append(f"- {verdict}: {what}: {cells[where]:.3g}{unit} ({where})")


def _line(cells):
    return f"| {' | '.join(cells)} |"


def seed_of(photo):
    """The seed of a photo's noise, by its name: another photo in the folder changes nothing."""
    return zlib.crc32(photo.encode())


def sections(task):
    """{name: [Condition] or what else is measured} of a task."""
    return conditions(task) | {name: None for name in (*["clean"] * (task == "denoise"), "speed")}


def judge(section, photos, restore, cache, report, draw=None):
    """Judge the network and the tools under the conditions of a section, into the report.

    Args:
        photos: {name: (H, W, 3) float32 from 0 to 1}.
        restore: function of such a photo, the network's result.
        draw: function of a condition's name, a photo's name and {label: image}, for the pictured ones.
    """
    by_condition, missing = [], {}
    for condition in section:
        scores = {}
        for name, clean in tqdm(photos.items(), condition.name, unit="photo", disable=None):
            given, target = condition.spoil(clean, seed_of(name))
            tools = condition.tools(given, target)
            missing |= {name: tool.missing() for name, tool in tools.items() if tool.missing()}
            results = {BEFORE: given, NETWORK: restore(given)}
            results |= {t: tool.best(given, target, cache) for t, tool in tools.items() if t not in missing}
            scores[name] = {
                method: evaluation.score(name, image, target) for method, image in results.items()
            }
            if draw and condition.pictured:
                shown = {
                    f"{method}, {scores[name][method].psnr:.1f} dB": image
                    for method, image in results.items()
                    if method not in plain_tools.SMOOTHING
                }
                draw(condition.name, name, shown | {"clean": target})
        _tell(condition.name, scores, report)
        by_condition.append((condition, scores))
    for condition, scores in by_condition:
        if condition.gain is not None:
            gains = {name: by[NETWORK].psnr - by[BEFORE].psnr for name, by in scores.items()}
            what = f"{condition.name}: at least +{condition.gain:g} dB on every photo"
            report.ask(what, gains, operator.ge, condition.gain, " dB")
    for rival in dict.fromkeys(rival for condition in section for rival in condition.rivals):
        if rival in missing:
            continue
        cells = {
            f"{name}, {condition.name}": (by[NETWORK], by[rival])
            for condition, scores in by_condition
            for name, by in scores.items()
        }
        psnr = {where: ours.psnr - theirs.psnr for where, (ours, theirs) in cells.items()}
        ssim = {where: ours.ssim - theirs.ssim for where, (ours, theirs) in cells.items()}
        report.ask(f"PSNR ahead of {rival} everywhere", psnr, operator.gt, 0, " dB")
        report.ask(f"SSIM ahead of {rival} everywhere", ssim, operator.gt, 0)
        lead = section[0].lead
        if lead is not None:
            mean = {"mean of all": statistics.mean(psnr.values())}
            report.ask(f"{lead:g} dB ahead of {rival} on average", mean, operator.ge, lead, " dB")
    for name, package in missing.items():
        report.asked.append(f"- not judged: {name}: the package {package} is not installed")


def _tell(condition, scores, report):
    """Put {photo: {method: Score}} into the report."""
    methods = list(next(iter(scores.values())))
    means = {method: evaluation.mean([by[method] for by in scores.values()]) for method in methods}
    lines = [
        [name, *(f"{by[method].psnr:.2f}, {by[method].ssim:.3f}" for method in methods)]
        for name, by in (scores | {"mean": means}).items()
    ]
    report.table(f"{condition} (PSNR in dB, SSIM)", ["photo", *methods], lines)
    for name, by in scores.items():
        for method, score in by.items():
            report.row(condition, name, method, psnr=score.psnr, ssim=score.ssim)


def flat_colours():
    """(H, W, 3): 27 colours in squares of 64 pixels, each flat, as photos rarely are."""
    levels = np.array([30, 128, 225], np.float32) / 255
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(3, 9, 3)
    return colours.repeat(64, 0).repeat(64, 1)


def flatness(clean, restored):
    """What became of the blocks of 16 x 16 pixels that are flat, and 8 pixels around them too.

    Returns:
        Their number; and in grey levels, the largest of all, how far the mean of a channel moved and how much
        its standard deviation grew: NaN without such blocks.
    """
    if min(clean.shape[:2]) < 2 * BLOCK:
        return 0, float("nan"), float("nan")

    def windows(image):
        image = 255 * evaluation.as_file(image)
        views = np.lib.stride_tricks.sliding_window_view(image, (2 * BLOCK, 2 * BLOCK), (0, 1))
        return views[::BLOCK, ::BLOCK].reshape(-1, 3, 2 * BLOCK, 2 * BLOCK)

    before, after = windows(clean), windows(restored)
    flat = before.std((2, 3)).max(1) < FLAT
    if not flat.any():
        return 0, float("nan"), float("nan")
    inside = slice(BLOCK // 2, -BLOCK // 2)
    before, after = (blocks[flat][:, :, inside, inside] for blocks in (before, after))
    shift = np.abs(after.mean((2, 3)) - before.mean((2, 3))).max()
    return int(flat.sum()), float(shift), float((after.std((2, 3)) - before.std((2, 3))).max())


def judge_clean(photos, restore, report, draw=None):
    """What the network does to photos that need nothing; `draw` as of `judge`."""
    lines, psnr, change, shift, added = [], {}, {}, {}, {}
    chart = "flat colours"
    for name, clean in tqdm((photos | {chart: flat_colours()}).items(), "clean", unit="photo", disable=None):
        after, before = evaluation.as_file(restore(clean)), evaluation.as_file(clean)
        measures = {}
        if name != chart:  # whose edges no photo has
            measures["psnr"] = psnr[name] = evaluation.psnr(after, before)
            measures["change"] = change[name] = 255 * np.abs(after - before).mean()
            if draw:
                difference = 0.5 + TIMES * (after - before)
                results = {f"{NETWORK}, {psnr[name]:.1f} dB": after, f"difference x {TIMES}": difference}
                draw("clean", name, {"clean": before, **results})
        blocks, moved, grown = flatness(before, after)
        if blocks:
            measures["shift"], measures["added"] = shift[name], added[name] = moved, grown
        report.row("clean", name, NETWORK, blocks=blocks, **measures)
        columns = (psnr, change, {name: blocks}, shift, added)
        formats = ("{:.2f}", "{:.2f}", "{}", "{:.2f}", "{:.2f}")
        cells = [f.format(by[name]) if name in by else "" for f, by in zip(formats, columns, strict=True)]
        lines.append([name, *cells])
    header = ["photo", "PSNR to itself", "mean change", "flat blocks", "colour shift", "deviation added"]
    report.table("no noise at all (dB, grey levels)", header, lines)
    report.ask("a clean photo: at least 42 dB to itself", psnr, operator.ge, 42, " dB")
    report.ask("a clean photo: changed by less than 1 grey level on average", change, operator.lt, 1)
    report.ask("flat areas: no colour shift above 0.5 grey levels", shift, operator.le, 0.5)
    report.ask("flat areas: no pattern above 0.5 grey levels", added, operator.le, 0.5)


def one_megapixel(weights, task, threads):
    """The call that is timed, and whose memory is measured in a process of its own."""
    torch.set_num_threads(threads)
    network = pretrained.network_in(weights)
    photo = np.random.default_rng(0).random((SIDE, SIDE, 3), np.float32)
    return lambda: restored(network, task, photo)


def judge_speed(weights, task, report):
    """Time and memory of a photo of one megapixel, on all threads of torch."""
    arguments = weights, task, torch.get_num_threads()
    times = measure.interleave({NETWORK: one_megapixel(*arguments)}, 5)[NETWORK]
    seconds = statistics.median(times) / (SIDE**2 / 1e6)
    mebibytes = measure.peak_memory(one_megapixel, *arguments) / 2**20 / (SIDE**2 / 1e6)
    size = weights.stat().st_size / 1e6
    here = measure.machine()
    where = f"{here['cpu']} ({here['cpu_isa']}), {here['threads']} threads, torch {here['torch']}"
    header = ["seconds a megapixel", "MiB a megapixel", "MB of weights"]
    report.table(f"speed and size ({where})", header, [[f"{seconds:.2f}", f"{mebibytes:.0f}", f"{size:.1f}"]])
    report.row("speed", where, NETWORK, seconds=seconds, mebibytes=mebibytes, megabytes=size)
    report.ask("at most 1.5 s a megapixel", {where: seconds}, operator.le, 1.5, " s")
    report.ask("at most 4 MB of weights", {weights.name: size}, operator.le, 4, " MB")


def restored(network, task, rgb):
    """What the network makes of a photo, (H, W, 3) from 0 to 1, as `mirnet-fast restore --task` runs it."""
    x = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)[None], np.float32))
    strength = "auto" if task == "denoise" else 1.0
    return inference.restore(network, x, strength=strength)[0].permute(1, 2, 0).numpy()


def read(folder, crop=None):
    """{name: (H, W, 3) float32 from 0 to 1} of the photos in a folder, or of their middles of that side."""
    found = {}
    for path in images.photos_below(folder):
        rgb = images.read_photo(path).rgb[0].permute(1, 2, 0).numpy()
        top, left = (max(0, (size - (crop or size)) // 2) for size in rgb.shape[:2])
        found[path.stem] = rgb[top:, left:][:crop, :crop].copy()
    return found


def report_on(task, weights, photos, only, cache=CACHE, pictures_folder=None):
    """The Report of a network.

    Args:
        task: of pretrained.TASKS.
        weights: file of a MIRNet from RGB to RGB.
        photos: as `read` gives them.
        only: names of the task's sections.
        cache: folder for what does not depend on the network.
        pictures_folder: where the pictures go, None for none.
    """
    report = Report()
    network = pretrained.network_in(weights)
    all_sections = sections(task)

    def restore(rgb):
        return restored(network, task, rgb)

    def write(condition, photo, results):
        pictures.write(pictures_folder, condition, photo, results)

    draw = write if pictures_folder else None
    for name in only:
        if name == "clean":
            judge_clean(photos, restore, report, draw)
        elif name == "speed":
            judge_speed(weights, task, report)
        else:
            judge(all_sections[name], photos, restore, cache, report, draw)
    return report


def _write(path, report, lines):
    with replaced(path) as new:
        if path.suffix == ".csv":
            with new.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["condition", "photo", "method", "measure", "value"])
                writer.writerows(report.rows)
        else:
            new.write_text("\n".join(lines) + "\n")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=pretrained.TASKS, default="denoise")
    parser.add_argument(
        "--weights", help="a checkpoint, or the name of one that comes along, else the task's"
    )
    parser.add_argument("--photos", type=Path, default=PHOTOS, metavar="FOLDER", help=f"default: {PHOTOS}")
    parser.add_argument("--crop", type=int, metavar="SIDE", help="take the middle of each photo alone")
    names = "; ".join(f"{task}: {', '.join(sections(task))}" for task in pretrained.TASKS)
    parser.add_argument("--only", metavar="SECTION,...", help=f"of {names}")
    parser.add_argument("--out", type=Path, metavar="FILE", help=".md: what is printed; .csv: every number")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="for results side by side")
    parser.add_argument("--threads", type=int, help="of torch; its own choice if not given")
    given = parser.parse_args(arguments)
    there = list(sections(given.task))
    only = given.only.split(",") if given.only else there
    if unknown := [name for name in only if name not in there]:
        parser.error(f"--only: {given.task} has {', '.join(there)}; got {', '.join(unknown)}")
    if given.out and given.out.suffix not in (".md", ".csv"):
        parser.error(f"--out: must end in .md or .csv; got {given.out}")
    if not given.photos.is_dir():
        parser.error(f"--photos: there is no folder {given.photos}; `make photos` makes {PHOTOS}")
    if given.crop is not None and given.crop < 2 * BLOCK:
        parser.error(f"--crop: must be at least {2 * BLOCK} pixels; got {given.crop}")
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    try:
        name = given.weights or given.task
        weights = Path(name) if Path(name).is_file() else pretrained.weights_of(name)
        photos = read(given.photos, given.crop)
        if given.out:
            given.out.parent.mkdir(parents=True, exist_ok=True)
        report = report_on(given.task, weights, photos, only, CACHE, given.pictures)
        pixels = sum(photo.shape[0] * photo.shape[1] for photo in photos.values())
        what = f"{len(photos)} photos of {given.photos}, {pixels / 1e6:.1f} megapixels"
        lines = [
            f"## {given.task}: {weights.stem}",
            "",
            what,
            *report.text,
            "",
            *NOTES[given.task],
            "",
            *report.asked,
        ]
        print("\n".join(lines))
        if given.out:
            _write(given.out, report, lines)
    except (CheckpointError, ValueError, OSError) as error:  # ImageError is a ValueError
        parser.exit(1, f"quality: {error}\n")


if __name__ == "__main__":
    main()
