"""Make a network that was trained one that comes with the package: python benches/ship.py RUN --task denoise

RUN is the folder of its training by mirnet_fast/pretrained/TASK.yaml. Its weights, in half precision, and its
log are put beside that. What benches/quality.py measures goes into the card there, in the words of
benches/cards/TASK.md, and some of its pictures into docs/pictures, where docs/pictures.md shows them.

Needs what benches/quality.py needs, and what that only takes if it is there: bm3d.
"""

import argparse
import csv
import functools
import shutil
import string
import tempfile
from pathlib import Path

import photos
import pictures
import plain_tools
import quality
import torch
from conditions import BEFORE
from safetensors.torch import save_file

from mirnet_fast import pretrained
from mirnet_fast._files import replaced
from mirnet_fast.checkpoints import CheckpointError, read_state_dict
from mirnet_fast.training import RecipeError, read_recipe

ROOT = Path(__file__).resolve().parents[1]
CARDS = Path(__file__).with_name("cards")
WEIGHTS, LOG = "best.safetensors", "log.csv"
LOGGED = 50  # steps from one loss that is kept to the next
CAMERA = "another camera, ISO 12800, JPEG 92"
DARK = "another camera, a tenth of the light"
HALF = "half the size and back, bicubic"


def worst(condition, rows, over=None):
    """The photo with the network's least PSNR, or least lead in it over a method.

    Args:
        rows: of a quality.Report.
    """
    psnr = {(row[1], row[2]): float(row[4]) for row in rows if (row[0], row[3]) == (condition, "psnr")}
    leads = {
        photo: value - (psnr[photo, over] if over else 0)
        for (photo, method), value in psnr.items()
        if method == quality.NETWORK
    }
    return min(leads, key=leads.get)


# {task: {name of a picture: (condition, photo or function of the condition and a Report's rows)}}
SHOWN = {
    "denoise": {
        "face": ("sigma 25", "grace_hopper"),
        "fur": ("sigma 25", "squirrel"),
        "bricks": ("sigma 25", "home"),
        "foliage": ("sigma 25", "plant"),
        "text": ("sigma 25", "shop_sign"),
        "night": (CAMERA, "bridge_at_night"),
        "phone": (CAMERA, "street"),
        "worst_camera": (CAMERA, functools.partial(worst, over=BEFORE)),
    },
    "enhance": {
        "face": (DARK, "grace_hopper"),
        "text": (DARK, "shop_sign"),
        "phone": (DARK, "street"),
        "worst": (DARK, functools.partial(worst, over="gamma")),
    },
    "sharpen": {
        "face": (HALF, "grace_hopper"),
        "bricks": (HALF, "home"),
        "text": (HALF, "shop_sign"),
        "worst": (HALF, functools.partial(worst, over="unsharp mask")),
    },
}


def kept_log(rows):
    """Of a training's log, dictionaries: every 50th loss, and all validations."""
    return [row for row in rows if int(row["step"]) % LOGGED == 0 or row["psnr"]]


def card(task, report, rows, weights, held_out):
    """The card's text.

    Args:
        report: quality.Report.
        rows: of the log.
        weights: their file.
        held_out: the photos judged, {name: (H, W, 3)}.
    """
    manifest = photos.read_manifest(photos.MANIFEST)
    validations = [row for row in rows if row["psnr"]]
    best = max(validations, key=lambda row: float(row["psnr"]))
    network = pretrained.network_in(weights)
    entries = [entry for package in manifest.packages for entry in package.photos]
    facts = {
        "parameters": f"{sum(parameter.numel() for parameter in network.parameters()):,}",
        "steps": f"{int(rows[-1]['step']):,}",
        "best_step": f"{int(best['step']):,}",
        "best_psnr": f"{float(best['psnr']):.2f}",
        "best_ssim": f"{float(best['ssim']):.3f}",
        "trained_on": sum(entry.use == "train" for entry in entries),
        "held_out": len(held_out),
        "megapixels": f"{sum(photo[..., 0].size for photo in held_out.values()) / 1e6:.1f}",
        "asked": "\n".join(report.asked),
        "tables": "\n".join(report.text).strip(),
        "notes": " ".join(quality.NOTES[task]),
        "credits": photos.credits(manifest),
    }
    return string.Template((CARDS / f"{task}.md").read_text()).substitute(facts)


def ship(run, task, held_out, package, shown, only):
    """Copy and write all of it; the Report.

    Args:
        run: folder of a training.
        held_out: photos, as quality.read gives them.
        package, shown: folders for weights, log and card, and for pictures.
        only: sections of quality.py.

    Raises:
        OSError: a file is not there, or cannot be written.
        CheckpointError: the weights are not those of a MIRNet.
        ValueError: a picture's photo is not there, or the log has no validation.
    """
    with (run / LOG).open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not any(row["psnr"] for row in rows):
        raise ValueError(f"{run / LOG} has no validation")
    recipe = read_recipe(ROOT / "mirnet_fast" / "pretrained" / f"{task}.yaml")
    if int(rows[-1]["step"]) < recipe.steps:
        print(f"ship: {run} is at step {rows[-1]['step']} of {recipe.steps}, so only try with it", flush=True)
    weights = package / f"{task}.safetensors"
    state = read_state_dict(run / WEIGHTS)
    with replaced(weights) as new:  # in half the bytes; what that changes lies far below a grey level
        save_file({name: value.half().contiguous() for name, value in state.items()}, new)
    with replaced(weights.with_suffix(".csv")) as new, new.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept_log(rows))
    with tempfile.TemporaryDirectory() as folder:
        report = quality.report_on(task, weights, held_out, only, pictures_folder=folder)
        shown.mkdir(parents=True, exist_ok=True)
        for name, (condition, photo) in SHOWN[task].items():
            photo = photo(condition, report.rows) if callable(photo) else photo
            file = Path(folder) / pictures.name_of(photo, condition)
            if not file.exists():
                raise ValueError(f"there is no picture of {photo}, {condition}, for {name}")
            with replaced(shown / f"{task}_{name}.webp") as new:
                shutil.copyfile(file, new)
    with replaced(weights.with_suffix(".md")) as new:
        new.write_text(card(task, report, rows, weights, held_out))
    return report


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the training")
    parser.add_argument("--task", choices=SHOWN, default="denoise")
    parser.add_argument("--photos", type=Path, default=ROOT / quality.PHOTOS, metavar="FOLDER")
    parser.add_argument("--threads", type=int, help="of torch; its own choice if not given")
    given = parser.parse_args(arguments)
    missing = plain_tools.bm3d(0).missing()
    if missing and given.task == "denoise":
        parser.error(f"pip install {missing}, whose licence is for non-commercial use, to compare with it")
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    try:
        report = ship(
            given.run,
            given.task,
            quality.read(given.photos),
            ROOT / "mirnet_fast" / "pretrained",
            ROOT / "docs" / "pictures",
            list(quality.sections(given.task)),
        )
    except (CheckpointError, RecipeError, ValueError, OSError) as error:
        parser.exit(1, f"ship: {error}\n")
    print("\n".join(report.asked))


if __name__ == "__main__":
    main()
