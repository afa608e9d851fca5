"""Reading of images: golden arrays of every mode, refusals that name the file."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mimicdet_runtime import UserError, images, read_image
from mimicdet_runtime.images import decode_image, write_image


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey16(values, mode="I;16"):
    return Image.fromarray(np.array(values, np.uint16)).convert(mode)


def palette():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    return image


def frames(kind):
    first, second = (Image.new("RGB", (2, 1), color) for color in ("red", "blue"))
    return encoded(first, kind, save_all=True, append_images=[second], duration=50)


def rgb16_png():
    """2 x 1 pixels of 16 bits a channel, which Pillow does not write."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    row = struct.pack(">B6H", 0, 0x01FF, 0x0280, 0x0300, 0xFFFF, 0x8000, 0)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


# Content of a file and the BGR values of its one row.
GOLDEN = {
    "RGB": (encoded(Image.new("RGB", (1, 1), (1, 2, 3))), [[3, 2, 1]]),
    "RGB of 16 bits": (rgb16_png(), [[3, 2, 1], [0, 128, 255]]),
    "RGBA": (encoded(Image.new("RGBA", (1, 1), (1, 2, 3, 0))), [[3, 2, 1]]),
    "L": (encoded(Image.new("L", (1, 1), 7)), [[7, 7, 7]]),
    "LA": (encoded(Image.new("LA", (1, 1), (7, 0))), [[7, 7, 7]]),
    "1": (encoded(Image.new("1", (1, 1), 1)), [[255, 255, 255]]),
    "P": (encoded(palette()), [[30, 20, 10], [60, 50, 40]]),
    "P with transparency": (encoded(palette(), transparency=0), [[30, 20, 10], [60, 50, 40]]),
    "CMYK": (encoded(Image.new("CMYK", (1, 1), (255, 0, 0, 55)), "TIFF"), [[200, 200, 0]]),
    "I;16 PNG": (encoded(grey16([[255, 256, 65535]])), [[0] * 3, [1] * 3, [255] * 3]),
    "I;16 TIFF": (encoded(grey16([[511, 512]]), "TIFF"), [[1] * 3, [2] * 3]),
    "I": (encoded(grey16([[511, 65535]], "I"), "TIFF"), [[1] * 3, [255] * 3]),
    "animated GIF": (frames("GIF"), [[0, 0, 255]] * 2),
    "animated PNG": (frames("PNG"), [[0, 0, 255]] * 2),
    "TIFF of two pages": (frames("TIFF"), [[0, 0, 255]] * 2),
    "animated WebP": (
        encoded(
            Image.new("RGB", (2, 1), "red"),
            "WEBP",
            save_all=True,
            append_images=[Image.new("RGB", (2, 1), "blue")],
            lossless=True,
        ),
        [[0, 0, 255]] * 2,
    ),
}


@pytest.mark.parametrize("mode", GOLDEN)
def test_every_mode_becomes_known_bgr_values(mode):
    content, expected = GOLDEN[mode]
    image = decode_image(content, "the image")
    assert image.dtype == np.uint8 and image.flags.writeable
    assert image.tolist() == [expected]


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_every_orientation_of_exif_is_turned_upright(mode):
    pixels = np.arange(6, dtype=np.uint16).reshape(2, 3) * 256
    image = (
        Image.fromarray(pixels) if mode == "I;16" else Image.fromarray((pixels // 256).astype("u1"))
    )
    upright = pixels // 256
    turned = {
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright[::-1].T,
        7: upright[::-1, ::-1].T,
        8: upright.T[::-1],
    }
    for orientation in (0, 1, 9, *turned):
        exif = Image.Exif()
        exif[0x0112] = orientation
        found = decode_image(encoded(image, exif=exif), "the image")
        assert np.array_equal(found[:, :, 0], turned.get(orientation, upright)), orientation


def noise(kind):
    return encoded(Image.effect_noise((40, 30), 90).convert("RGB"), kind)


REFUSED = {
    "float.tiff": (encoded(Image.new("F", (2, 2), 0.5), "TIFF"), "not whole numbers"),
    "beyond.tiff": (encoded(Image.new("I", (2, 2), 65536), "TIFF"), "beyond 16 bits"),
    "negative.tiff": (encoded(Image.new("I", (2, 2), -1), "TIFF"), "beyond 16 bits"),
    "empty.png": (b"", "not an image that can be read"),
    "cut.png": (noise("PNG")[:2000], "not an image that can be read"),
    "cut.jpg": (noise("JPEG")[:-200], "not an image that can be read"),
    "cut.webp": (noise("WEBP")[:-100], "not an image that can be read"),
    "thread.png": (encoded(Image.new("1", (65536, 1))), "65536 x 1 pixels are more than"),
    "script.eps": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "not an image",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_usable_image_is_named(tmp_path, name):
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: .*{message}"):
        read_image(tmp_path / name)


def test_pixels_are_counted_before_they_are_unpacked(monkeypatch):
    image = encoded(Image.new("L", (40, 50)))
    monkeypatch.setattr(images, "MAX_PIXELS", 2000)
    assert decode_image(image, "x").shape == (50, 40, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 1999)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("unpacked"))
    with pytest.raises(UserError, match="x: 40 x 50 pixels are more than 1999"):
        decode_image(image, "x")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(UserError, match="x: more than 1999 pixels"):
        decode_image(image, "x")


SEEDS = [noise(kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM")]
SEEDS += [content for content, _ in GOLDEN.values()]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(SEEDS), st.data())
def test_damaged_files_are_read_or_refused(seed, data):
    content = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        image = decode_image(content, "damaged")
    except UserError as error:
        assert str(error).startswith("damaged: ")
    else:
        assert image.ndim == 3 and image.dtype == np.uint8


def test_what_a_format_cannot_hold_is_told_and_not_written(tmp_path):
    for name in ("large.webp", "odd.nothing"):
        with pytest.raises(UserError, match=f"{name}: 20000 x 2 pixels cannot be written"):
            write_image(tmp_path / name, np.zeros((2, 20000, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []
