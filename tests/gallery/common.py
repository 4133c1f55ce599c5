"""Photos to compare, and what a page holds."""

import base64
import json
import re

import cv2
import numpy as np

HOSTILE = "<script>alert(1)<\u2215script> \"quotes' & größe 写真 %%data%% --><!--"


def photo(height=40, width=60, seed=0):
    """Smooth, so that it is not noise alone: (H, W, 3) uint8."""
    small = np.random.default_rng(seed).integers(0, 255, (5, 6, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def noisy(pixels, sigma=20):
    noise = np.random.default_rng(1).normal(0, sigma, pixels.shape)
    return (pixels + noise).clip(0, 255).round().astype(np.uint8)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(path.suffix, pixels[:, :, ::-1] if pixels.ndim == 3 else pixels)
    assert done
    path.write_bytes(data.tobytes())
    return path


def data_of(page):
    """What the page's script is given, and {number: pixels (H, W, 3 or 4)} of its pictures."""
    text = page.read_text()
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    pictures = re.findall(r'<script type="text/plain" id="picture-(\d+)">([\w+/=]*)</script>', text)
    return json.loads(data), {int(number): decoded(picture) for number, picture in pictures}


def decoded(picture):
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(picture), np.uint8), cv2.IMREAD_UNCHANGED)
    return pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
