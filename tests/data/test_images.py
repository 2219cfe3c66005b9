import io
import os
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from mmjax.data.example import BadSample, Media
from mmjax.data.images import (
    clip_preprocess,
    crop_box,
    decoded,
    load_image,
    open_image,
    prepare,
    prepared,
)
from mmjax.models.clip import MEAN, STD


def noise(width, height, mode="RGB", seed=0):
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(pixels.squeeze(), mode=None if mode != "CMYK" else "CMYK")


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Media("the picture", file.getvalue())


def photo(width, height):
    """Something with edges and gradients, as a photograph has."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x / width, 255 * y / height
    blue = 255 * ((x // 7 + y // 11) % 2)
    return Image.fromarray(np.stack([red, green, blue], -1).astype(np.uint8))


SIZES = [
    (64, 64),
    (640, 480),
    (333, 500),
    (500, 333),
    (100, 37),
    (37, 100),
    (225, 224),
    (17, 1000),
    (1001, 997),
]


@pytest.mark.parametrize("size", [224, 64, 33])
@pytest.mark.parametrize("image_size", SIZES)
def test_clip_preprocess_equals_transformers(image_size, size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = photo(*image_size)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, do_convert_rgb=True
    )
    expected = processor(image, return_tensors="np")["pixel_values"][0]  # [3 H W]
    pixels = clip_preprocess(image, size)
    assert pixels.shape == (size, size, 3) and pixels.dtype == np.uint8
    ours = (pixels.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(
        STD, np.float32
    )
    np.testing.assert_allclose(ours.transpose(2, 0, 1), expected, atol=1e-5)


@pytest.mark.parametrize("image_size", [(64, 64), (640, 480), (333, 500), (17, 1000), (5, 4)])
def test_squash_is_pillows_resize(image_size):
    """Which is what torchvision's Resize calls for a PIL image and a pair of sizes."""
    image = photo(*image_size)
    for size in (224, 33):
        expected = np.asarray(image.resize((size, size), Image.BICUBIC))
        np.testing.assert_array_equal(prepare(encoded(image), size, "squash"), expected)
    torchvision = pytest.importorskip("torchvision")
    modes = torchvision.transforms.InterpolationMode
    resize = torchvision.transforms.Resize((224, 224), modes.BICUBIC)
    np.testing.assert_array_equal(prepare(encoded(image), 224, "squash"), np.asarray(resize(image)))


class Scripted:
    """Draws that are given, with the ranges that were asked for."""

    def __init__(self, *values):
        self.values, self.asked = list(values), []

    def uniform(self, low, high):
        self.asked.append((low, high))
        return self.values.pop(0)

    def integers(self, high, endpoint):
        assert endpoint
        self.asked.append((0, high))
        return self.values.pop(0)


def test_crop_boxes_by_torchvisions_algorithm():
    log = np.log(4 / 3)
    draw = Scripted(0.5, log, 3, 6)  # share of the area, logarithm of the ratio, top, left
    wide, high = round((2500 * 4 / 3) ** 0.5), round((2500 * 3 / 4) ** 0.5)
    assert crop_box(100, 50, draw) == (6, 3, 6 + wide, 3 + high) == (6, 3, 64, 46)
    assert draw.asked == [(0.5, 1.0), pytest.approx((-log, log)), (0, 50 - 43), (0, 100 - 58)]
    # Nothing fits into a long strip: the middle of it, in the nearest ratio.
    never = Scripted(*[1.0, 0.0] * 10)
    assert crop_box(100, 10, never) == (43, 0, 43 + 13, 10) and not never.values
    assert crop_box(10, 100, Scripted(*[1.0, 0.0] * 10)) == (0, 43, 10, 43 + 13)
    late = Scripted(*[1.0, 0.0] * 9, 0.5, -log, 0, 1)
    assert crop_box(60, 40, late) == (1, 0, 1 + 30, 40)


def test_crop_boxes_as_torchvision_draws_them():
    """The same numbers from torch's generator, if torchvision is there."""
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms")

    class FromTorch:
        def uniform(self, low, high):
            return torch.empty(1).uniform_(low, high).item()

        def integers(self, high, endpoint):
            return torch.randint(0, high + endpoint, size=(1,)).item()

    for seed, size in enumerate([(640, 480), (100, 30), (30, 100), (50, 50)] * 5):
        torch.manual_seed(seed)
        left, top, right, bottom = crop_box(*size, FromTorch())
        torch.manual_seed(seed)
        expected = transforms.RandomResizedCrop.get_params(
            Image.new("RGB", size), [0.5, 1.0], [3 / 4, 4 / 3]
        )
        assert (top, left, bottom - top, right - left) == expected


def test_a_crop_is_a_resized_part():
    image = photo(60, 45)
    crop = prepare(encoded(image), 16, "crop", np.random.default_rng(3))
    box = crop_box(60, 45, np.random.default_rng(3))
    expected = np.asarray(image.crop(box).resize((16, 16), Image.BICUBIC))
    np.testing.assert_array_equal(crop, expected)
    assert box != (0, 0, 60, 45)
    with pytest.raises(ValueError, match="give draw"):
        prepare(encoded(image), 16, "crop")
    with pytest.raises(ValueError, match="preparation is 'zoom', it must be one of clip, center"):
        prepare(encoded(image), 16, "zoom")


def test_frames_of_an_animation_stay_as_they_are():
    """They come out of one buffer, in which the next one is painted."""
    colours, file = ((255, 0, 0), (0, 0, 255)), io.BytesIO()
    first, second = (Image.new("RGB", (8, 8), colour) for colour in colours)
    first.save(file, "PNG", save_all=True, append_images=[second])
    image = open_image(Media("a", file.getvalue()))
    frames = [decoded(image, "a", number) for number in range(2)]
    assert [frame.getpixel((0, 0)) for frame in frames] == list(colours)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("P", (8, 8), index) for index in (0, 1)]
    for frame in frames:
        frame.putpalette([250, 0, 0, 0, 250, 0])
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert load_image(Media("p", file.getvalue())).getpixel((3, 3)) == (250, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_formats(kind):
    image = noise(9, 5)
    loaded = load_image(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(image))


def test_modes_become_rgb(tmp_path):
    grey = noise(6, 4, "L")
    rgb = np.repeat(np.asarray(grey)[..., None], 3, -1)
    np.testing.assert_array_equal(np.asarray(load_image(encoded(grey))), rgb)

    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)  # 16 bit
    assert wide.mode.startswith("I")
    np.testing.assert_array_equal(np.asarray(load_image(encoded(wide))), rgb)

    both = Image.merge("LA", [grey, Image.new("L", grey.size, 7)])
    np.testing.assert_array_equal(np.asarray(load_image(encoded(both))), rgb)

    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    for options in ({}, {"transparency": 1}, {"transparency": b"\x00\x80"}):
        assert load_image(encoded(palette, **options)).getpixel((0, 0)) == (200, 100, 50)

    cmyk = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # cyan
    red, green, blue = load_image(encoded(cmyk, "JPEG")).getpixel((5, 5))
    assert red < 20 and green > 235 and blue > 235

    bilevel = Image.new("1", (4, 4), 1)
    assert load_image(encoded(bilevel)).getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_and_mirroring():
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = load_image(encoded(image, "PNG", exif=exif))
    assert turned.size == (2, 4)
    assert turned.getpixel((1, 0)) == (255, 0, 0)
    media = encoded(image)
    assert load_image(Media("m", media.data, mirrored=True)).getpixel((3, 0)) == (255, 0, 0)


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""

    def chunk(name, data):
        return (
            len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
        )

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"not a picture at all", "no readable JPEG, PNG"),
        (
            png_header(9000, 9000),
            "9000x9000 pixels; the limit is 50 million",
        ),  # Pillow itself would let it pass
        (png_header(60000, 60000), "no readable .*DecompressionBombError"),
        (png_header(1, 100), "1x100 pixels; each side"),
        (png_header(8, 8), "damaged or cut short"),
        (encoded(Image.new("RGB", (1, 1))).data, "1x1 pixels"),
        (encoded(noise(50, 50)).data[:2000], "damaged or cut short"),
        (encoded(noise(50, 50), "JPEG").data[:900], "damaged or cut short"),
        (encoded(noise(8, 8), "TIFF").data, "no readable JPEG, PNG"),
    ],
)
def test_bad_pictures_say_which_and_why(data, reason, tmp_path):
    for media in (Media("the picture", data), Media("key", tmp_path / "the picture.png")):
        if not isinstance(media.data, bytes):
            media.data.write_bytes(data)
        with pytest.raises(BadSample, match=reason) as caught:
            load_image(media)
        assert "the picture" in caught.value.source


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.png", tmp_path / "nowhere" / "none.png"):
        with pytest.raises(BadSample, match="none.png: the file cannot be read"):
            load_image(Media("m", path))
    with pytest.raises(BadSample, match="cannot be read"):
        load_image(Media("m", tmp_path))


def test_damaged_pictures_never_raise_anything_else():
    """Flips bytes all over real files: either it decodes, or it is BadSample."""
    files = [
        encoded(photo(40, 30), "JPEG").data,
        encoded(photo(40, 30)).data,
        encoded(photo(40, 30), "WEBP").data,
        encoded(photo(40, 30).quantize(), "GIF").data,
        encoded(photo(40, 30), "BMP").data,
    ]
    rng = np.random.default_rng(0)
    for data in files:
        for _ in range(60):
            broken = bytearray(data)
            for place in rng.integers(0, len(data), 4):
                broken[place] = rng.integers(0, 256)
            try:
                load_image(Media("m", bytes(broken)))
            except BadSample:
                pass


def test_pillow_globals_are_left_alone():
    from PIL import ImageFile

    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, threading.active_count()
    with pytest.raises(BadSample):
        load_image(Media("m", png_header(9000, 9000)))
    assert before == (
        Image.MAX_IMAGE_PIXELS,
        ImageFile.LOAD_TRUNCATED_IMAGES,
        threading.active_count(),
    )


def test_pictures_without_data_pipes_and_functions(tmp_path):
    with pytest.raises(BadSample, match="7: only the picture's id is known.*stored features"):
        load_image(Media("7", None))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadSample, match="no regular file"):
        load_image(Media("m", tmp_path / "pipe.png"))
    with pytest.raises(BadSample, match="cannot be read .ValueError"):
        load_image(Media("m", tmp_path / "a\0b.png"))
    with pytest.raises(BadSample, match="cannot be read .OSError.*too long"):
        load_image(Media("m", tmp_path / ("x" * 300)))
    sparse = tmp_path / "huge.png"
    with sparse.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(BadSample, match="huge.png: 1099511627776 bytes; expected"):
        load_image(Media("m", sparse))
    media = encoded(noise(5, 4))
    assert load_image(Media("m", lambda: media.data)).size == (5, 4)


def test_center_equals_what_was_recorded_of_lynx():
    """Also where the crop's offset is a half: 1.5 becomes 2, where CLIP's would become 1."""
    recorded = load_file(Path(__file__).with_name("lynx_preprocess.safetensors"))
    for number in range(3):
        image = Image.fromarray(recorded[f"image{number}"])
        pixels = prepared(image, 42, "center")
        assert pixels.shape == (42, 42, 3) and pixels.dtype == np.uint8
        scaled = pixels.astype(np.float32) / 255
        ours = (scaled - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
        expected = recorded[f"image{number}_out"].transpose(1, 2, 0)
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    for long, same in ((101, True), (102, True), (103, False), (105, True)):  # 1/2 becomes 0
        center, clip = (prepared(photo(100, long), 100, how) for how in ("center", "clip"))
        assert np.array_equal(center, clip) == same
