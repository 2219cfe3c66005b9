"""Decoding pictures safely, and making the squares of them that a tower takes.

    preparation   what is kept                              of whom
    clip          the middle, sides in proportion           CLIP; LMEye
    center        the same, its offset rounded              torchvision; Lynx
    squash        everything, sides not in proportion       LAVIS in evaluation; MiniGPT-4, Cheetor
    crop          a random part, nearly in proportion       LAVIS in training; the same two

Whatever is wrong with a picture comes out as `BadSample`, which names the file and the cause;
nothing here changes Pillow's global settings. Channels are treated as the original projects treat
them (`Image.convert("RGB")`: an alpha channel is dropped, not blended), but 16-bit grey is scaled
where Pillow would clip it.
"""

import io
import math
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mmjax.data.example import BadSample, Media

T = TypeVar("T")

PREPARATIONS = ("clip", "center", "squash", "crop")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 50_000_000
MAX_BYTES = 64 * 2**20
MIN_SIDE = 2  # a single row or column is a broken export, and blows up when its short side grows

# What Pillow's decoders raise on files that are cut short or made to break them.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError,
    struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


def load_image(media: Media) -> Image.Image:
    """Decodes a picture (of an animation, the first frame), upright and in RGB.

    Raises:
      BadSample: it is missing, too large, too small, of another format, broken, or a video.
    """
    name = name_of(media)
    if media.is_video:
        raise BadSample(name, None, "a video stands where a picture is wanted")
    image = decoded(open_image(media), name)
    return ImageOps.mirror(image) if media.mirrored else image


def open_image(media: Media) -> Image.Image:
    """A picture of which the header has been read, and found to be within limits.

    Raises:
      BadSample: it is missing, too large, too small, or of another format.
    """
    name = name_of(media)
    data = read(media.data, name)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header only
    except _DECODER_ERRORS as error:
        raise BadSample(
            name, None, f"no readable {', '.join(FORMATS)} picture ({say(error)})"
        ) from error
    check_size(*image.size, name)
    return image


def decoded(image: Image.Image, name: str, frame: int = 0) -> Image.Image:
    """A picture that was opened, or a frame of it, upright and in RGB.

    Raises:
      BadSample: it is broken, or has no such frame.
    """
    try:
        image.seek(frame)
        image.load()  # what a PNG says of its orientation may come last
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
        # A copy takes as long as half the decoding; the frames of an animation share their buffer.
        is_ready = image.mode == "RGB" and not getattr(image, "is_animated", False)
        return image if is_ready else _to_rgb(image)
    except _DECODER_ERRORS as error:
        raise BadSample(
            name, None, f"the picture is damaged or cut short ({say(error)})"
        ) from error


def num_frames(image: Image.Image, name: str) -> int:
    """Of a picture that was opened; 1 if it does not move.

    Raises:
      BadSample: it is broken.
    """
    try:
        return getattr(image, "n_frames", 1)
    except _DECODER_ERRORS as error:
        raise BadSample(
            name, None, f"the animation is damaged or cut short ({say(error)})"
        ) from error


def name_of(media: Media) -> str:
    """Its file or, where it has none, its key; for messages."""
    return str(media.data) if isinstance(media.data, Path) else media.key


def check_size(width: int, height: int, name: str) -> None:
    """Raises BadSample for a picture that is too large or too small to be decoded."""
    if width * height > MAX_PIXELS:
        raise BadSample(
            name, None, f"{width}x{height} pixels; the limit is {MAX_PIXELS / 1e6:.0f} million"
        )
    if min(width, height) < MIN_SIDE:
        raise BadSample(name, None, f"{width}x{height} pixels; each side needs at least {MIN_SIDE}")


def prepare(
    media: Media, size: int, preparation: str = "clip", draw: np.random.Generator | None = None
) -> np.ndarray:
    """Decodes a picture and makes uint8[size size 3] of it.

    Args:
      preparation: one of `PREPARATIONS`.
      draw: where ``crop`` takes its part from; only with it.

    Raises:
      BadSample: see `load_image`.
      ValueError: no such preparation; ``crop`` without ``draw``.
    """
    check_preparation(preparation)
    return prepared(load_image(media), size, preparation, draw)


def prepared(
    image: Image.Image, size: int, preparation: str, draw: np.random.Generator | None = None
) -> np.ndarray:
    """`prepare`, of a picture that is decoded."""
    if preparation == "clip":
        return clip_preprocess(image, size)
    if preparation == "center":
        return center_crop(image, size)
    if preparation == "squash":
        return squash(image, size)
    if draw is None:
        raise ValueError("preparation 'crop' draws its part of a picture: give draw")
    return squash(image.crop(crop_box(*image.size, draw)), size)


def check_preparation(preparation: str) -> None:
    """Raises ValueError if there is none of this name."""
    if preparation not in PREPARATIONS:
        raise ValueError(
            f"preparation is {preparation!r}, it must be one of {', '.join(PREPARATIONS)}"
        )


def squash(image: Image.Image, size: int) -> np.ndarray:
    """All of the picture, whatever its shape: uint8[size size 3], as torchvision's
    ``Resize((size, size), BICUBIC)`` makes it."""
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC))


def crop_box(width: int, height: int, draw: np.random.Generator) -> tuple[int, int, int, int]:
    """A random part of a picture, (left, top, right, bottom), by the algorithm of torchvision's
    `RandomResizedCrop` with LAVIS's numbers (MiniGPT-4 reference, section 6): half to all of the
    area, width to height of 3/4 to 4/3. If ten draws do not fit, the middle, as large as it can be.
    """
    lowest, highest = 3 / 4, 4 / 3
    for _ in range(10):
        area = width * height * draw.uniform(0.5, 1.0)
        ratio = math.exp(draw.uniform(math.log(lowest), math.log(highest)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(draw.integers(height - h, endpoint=True))
            left = int(draw.integers(width - w, endpoint=True))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < lowest:
        h = round(width / lowest)
    elif width / height > highest:
        w = round(height * highest)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def clip_preprocess(image: Image.Image, size: int) -> np.ndarray:
    """What CLIP's image processor does before it scales: uint8[size size 3].

    The short side becomes ``size`` (bicubic); the long side and the crop's offset are rounded down,
    as there. `mmjax.models.clip` scales and normalises on the device.
    """
    resized = _short_side(image, size)
    return _cut(resized, size, *((side - size) // 2 for side in resized.size))


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """As torchvision's ``Resize(size, BICUBIC)`` and ``CenterCrop(size)`` make it: uint8[size size
    3]. Unlike CLIP's, its offset is rounded to the nearest whole number, halves to the even one
    (Lynx reference, section 2)."""
    resized = _short_side(image, size)
    return _cut(resized, size, *(round((side - size) / 2) for side in resized.size))


def _short_side(image: Image.Image, size: int) -> Image.Image:
    """Its short side ``size``, its long side in proportion, rounded down."""
    width, height = image.size
    long = int(size * max(width, height) / min(width, height))
    resized = (size, long) if width <= height else (long, size)
    return image if resized == image.size else image.resize(resized, Image.Resampling.BICUBIC)


def _cut(image: Image.Image, size: int, left: int, top: int) -> np.ndarray:
    return np.asarray(image)[top : top + size, left : left + size].copy()


def read(data: Path | bytes | Callable[[], bytes] | None, name: str) -> bytes:
    """The encoded bytes of a picture called ``name``; raises BadSample if there are none, or too
    many."""
    if data is None:
        raise BadSample(
            name,
            None,
            "only the picture's id is known: it can be used with stored features only "
            "(--config.features=FOLDER, made by python -m conversion features)",
        )
    try:
        if isinstance(data, Path):
            data = _read_file(data, name)
        elif callable(data):
            data = data()
    except (OSError, ValueError) as error:  # ValueError: a null character in a path
        raise BadSample(name, None, f"the file cannot be read ({say(error)})") from error
    return _within_limit(data, len(data), name)


def _read_file(path: Path, name: str) -> bytes:
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):  # reading a pipe would wait for ever
        raise BadSample(name, None, "the file cannot be read (it is no regular file)")
    with path.open("rb") as file:
        return _within_limit(file, state.st_size, name).read(MAX_BYTES + 1)


def _within_limit(data: T, num_bytes: int, name: str) -> T:
    if not 0 < num_bytes <= MAX_BYTES:
        raise BadSample(name, None, f"{num_bytes} bytes; expected 1 to {MAX_BYTES}")
    return data


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip at 255
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(grey // 257, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow asks for the detour; the colours are the same
    return image.convert("RGB")


def say(error: Exception) -> str:
    """A decoder's error in words."""
    if isinstance(error, UnidentifiedImageError):  # its text has an address of the memory
        return "its beginning is none of theirs"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
