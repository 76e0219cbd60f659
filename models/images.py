"""Pictures to feed networks with: seeded natural-looking ones, rendered text, and preprocessing."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from pwopt.errors import UsageError

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
CAFFE_MEAN_BGR = np.array([104.0, 117.0, 123.0], np.float32)

_WORDS = (
    *("fast", "model", "kernel", "tensor", "channel", "window", "layer", "stride", "pixel"),
    *("Network", "Reading", "Graph", "Signal", "Harbour", "Garden", "2048", "1x1", "River"),
)


def photo(size: int = 224, seed: int = 0) -> np.ndarray:
    """A seeded picture with the spectrum of a natural one: (size, size, 3), RGB, 0..255.

    White noise would be a poor stand-in: neighbouring pixels of photos are alike, and trained
    filters answer to that.
    """
    rng = np.random.default_rng([seed, size])
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = np.inf
    planes = []
    for plane in rng.standard_normal((4, size, size)):
        shaped = np.fft.irfft2(np.fft.rfft2(plane) / frequency, s=(size, size))
        planes.append(shaped / shaped.std())
    grey, colours = planes[0], np.stack(planes[1:], axis=-1)
    image: np.ndarray = 118.0 + 55.0 * (0.85 * grey[..., None] + 0.5 * colours)
    return image.clip(0, 255).astype(np.float32)


def text_line(
    text: str, height: int = 48, width: int = 192, seed: int = 0, *, rotate: bool = False
) -> np.ndarray:
    """A rendered line of dark text on a light ground: (height, width, 3), RGB, 0..255.

    ``rotate`` turns it upside down.
    """
    rng = np.random.default_rng(seed)
    image_module, draw_module, font_module = _pillow()
    size = int(rng.integers(24, 34))
    font = font_module.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    length = max(int(right - left) + 12, 1)
    ground = tuple(int(v) for v in rng.integers(200, 256, 3))
    ink = tuple(int(v) for v in rng.integers(0, 90, 3))
    line = image_module.new("RGB", (length, height), ground)
    y = (height - (bottom - top)) / 2 - top + float(rng.integers(-2, 3))
    draw_module.Draw(line).text((6 - left, y), text, fill=ink, font=font)
    if length > width:
        line = line.resize((width, height), image_module.Resampling.BILINEAR)
    if rotate:
        line = line.transpose(image_module.Transpose.ROTATE_180)
    # The network was trained on lines padded on the right with mid grey.
    padded = np.full((height, width, 3), 127.5, np.float32)
    padded[:, : line.width] = np.asarray(line, np.float32)
    return padded


def text_page(size: int = 480, seed: int = 0) -> np.ndarray:
    """A page of rendered lines: (size, size, 3), RGB, 0..255."""
    rng = np.random.default_rng(seed)
    image_module, draw_module, font_module = _pillow()
    page = image_module.new("RGB", (size, size), (245, 243, 238))
    draw, y = draw_module.Draw(page), 16
    while y < size - 48:
        points = int(rng.integers(16, 36))
        draw.text(
            (int(rng.integers(8, size // 4)), y),
            phrase(rng),
            fill=(25, 25, 35),
            font=font_module.load_default(points),
        )
        y += points + int(rng.integers(10, 30))
    return np.asarray(page, np.float32)


def phrase(rng: np.random.Generator) -> str:
    """Two or three words."""
    return " ".join(rng.choice(_WORDS, int(rng.integers(2, 4))))


def imagenet(image: np.ndarray) -> np.ndarray:
    """RGB 0..255 -> normalized (1, 3, H, W), as torchvision's networks want it."""
    return _nchw((image / np.float32(255) - IMAGENET_MEAN) / IMAGENET_STD)


def caffe_nhwc(image: np.ndarray) -> np.ndarray:
    """RGB 0..255 -> BGR minus the mean, (1, H, W, 3), as open-nsfw wants it."""
    return np.ascontiguousarray((image[..., ::-1] - CAFFE_MEAN_BGR)[None], np.float32)


def paddle_ocr(image: np.ndarray) -> np.ndarray:
    """RGB 0..255 -> BGR in -1..1, (1, 3, H, W), as PP-OCR's networks want it."""
    return _nchw(image[..., ::-1] / np.float32(127.5) - np.float32(1))


def _nchw(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)


def read_photo(path: str, resize: int, crop: int) -> np.ndarray:
    """A photo from a file, shorter side scaled to ``resize``, centre ``crop``: RGB, 0..255."""
    image_module, _, _ = _pillow()
    with image_module.open(path) as opened:
        image = opened.convert("RGB")
    scale = resize / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), image_module.Resampling.BILINEAR)
    left, top = (width - crop) // 2, (height - crop) // 2
    return np.asarray(image.crop((left, top, left + crop, top + crop)), np.float32)


def read_grey(path: str) -> np.ndarray:
    """A grey picture from a file: (H, W), 0..255."""
    image_module, _, _ = _pillow()
    with image_module.open(path) as image:
        return np.asarray(image.convert("L"), np.float32)


def _pillow() -> tuple[ModuleType, ModuleType, ModuleType]:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise UsageError("pictures need Pillow: pip install pillow") from None
    return Image, ImageDraw, ImageFont
