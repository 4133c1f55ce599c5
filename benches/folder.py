"""What reading and writing take from the speed of the network: python benches/folder.py

Restores a folder of noisy JPEGs, and runs the network alone on as many photos of that size that are in
memory, in turns of a minute, as the speed of a machine wanders. Prints megapixels a second of both, and what
share of the network's own speed the folder has: it should be ASKED at least.
"""

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch

import mirnet_fast
from mirnet_fast import demonstration, measure
from mirnet_fast.collection import listed, restore_files
from mirnet_fast.images import read_photo

ASKED = 0.95
SIZE = (1632, 1224)  # 2 megapixels
NOISE = 15  # grey levels
DIFFERENT = 5  # photos, each of which is there several times


def make_photos(folder, count, size):
    """A folder of `count` JPEGs."""
    clean = cv2.resize(skimage.data.astronaut()[:, :, ::-1], size, interpolation=cv2.INTER_CUBIC)
    for seed in range(min(count, DIFFERENT)):
        noisy = demonstration.add_noise(clean.astype(np.float32) / 255, NOISE, seed)
        path = folder / f"{seed:03}.jpg"
        pixels = np.round(255 * noisy.clip(0, 1)).astype(np.uint8)
        cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])
        for copy in range(seed + DIFFERENT, count, DIFFERENT):
            shutil.copy(path, folder / f"{copy:03}.jpg")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10, help="photos in the folder")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place, "in"), Path(place, "out")
        folder.mkdir()
        make_photos(folder, given.count, given.size)
        restorer = mirnet_fast.Restorer()
        photos = [read_photo(path).rgb.to(restorer.device) for path in sorted(folder.iterdir())[:DIFFERENT]]

        mirnet_fast.restore(restorer.network, photos[0])  # makes the plan

        def network():
            for number in range(given.count):
                mirnet_fast.restore(restorer.network, photos[number % len(photos)])

        def whole():
            shutil.rmtree(out, ignore_errors=True)
            summary = restore_files(listed([str(folder)], str(out)).items, restorer)
            assert summary.restored == given.count, summary

        synchronize = torch.cuda.synchronize if restorer.device.type == "cuda" else None
        times = measure.interleave({"network alone": network, "folder": whole}, given.rounds, 0, synchronize)
    megapixels = given.count * given.size[0] * given.size[1] / 1e6
    for name, seconds in times.items():
        rounds = ", ".join(f"{megapixels / value:.3f}" for value in seconds)
        print(f"{name:<14} {megapixels / statistics.median(seconds):.3f} megapixels a second ({rounds})")
    share = statistics.median(times["network alone"]) / statistics.median(times["folder"])
    verdict = "met" if share >= ASKED else "NOT MET"
    print(f"share of the network's speed: {share:.3f}, asked {ASKED}: {verdict}")


if __name__ == "__main__":
    main()
