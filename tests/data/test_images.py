"""Image files: 8- and 16-bit modes by golden arrays, and every fault named in training and test."""

import cv2
import numpy as np
import pytest
from broken_images import BROKEN, png
from data_folders import write_image
from detectron2.data import detection_utils
from PIL import Image

from mimicdet.data import MimicDatasetMapper
from mimicdet.data.images import image_size, read_image
from mimicdet.utils.errors import UserError

PALETTE = [10, 20, 30, 40, 50, 60, 70, 80, 90]
INDICES = [[0, 1, 2], [2, 1, 0]]
FROM_PALETTE = [
    [[10, 20, 30], [40, 50, 60], [70, 80, 90]],
    [[70, 80, 90], [40, 50, 60], [10, 20, 30]],
]
COLOURS = [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[1, 2, 3], [128, 0, 7], [255, 255, 255]]]
GREYS = [[0, 1, 128], [200, 254, 255]]


def grey(rows):
    return [[[v, v, v] for v in row] for row in rows]


def with_alpha(rows):
    return [[[*np.atleast_1d(v), 0 if x else 77] for x, v in enumerate(row)] for row in rows]


def image(values, mode, dtype=np.uint8):
    made = Image.frombytes(mode, (3, 2), np.array(values, dtype).tobytes())
    if mode in ("P", "PA"):
        made.putpalette(PALETTE)
    return made


def exif(orientation):
    made = Image.Exif()
    made[0x0112] = orientation
    return made


# 3 x 2 images: what is stored, file format, what else is saved, the RGB pixels that are read.
GOLDEN = {
    "1": (Image.fromarray(np.array([[0, 1, 0], [1, 1, 0]], bool)), "PNG", {}, "1",
          grey([[0, 255, 0], [255, 255, 0]])),
    "L": (image(GREYS, "L"), "PNG", {}, "L", grey(GREYS)),
    "LA": (image(with_alpha(GREYS), "LA"), "PNG", {}, "LA", grey(GREYS)),
    "P": (image(INDICES, "P"), "PNG", {}, "P", FROM_PALETTE),
    "P, transparent": (image(INDICES, "P"), "PNG", {"transparency": 1}, "P", FROM_PALETTE),
    "PA": (image(with_alpha(INDICES), "PA"), "TIFF", {}, "PA", FROM_PALETTE),
    "RGB": (image(COLOURS, "RGB"), "PNG", {}, "RGB", COLOURS),
    "RGBA": (image(with_alpha(COLOURS), "RGBA"), "PNG", {}, "RGBA", COLOURS),
    # Each colour is what its ink and black leave: (255 - K) - ink * (255 - K) / 255.
    "CMYK": (image([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0]],
                    [[0, 0, 0, 255], [100, 0, 200, 55], [255, 255, 255, 255]]], "CMYK"),
             "TIFF", {}, "CMYK",
             [[[255, 255, 255], [0, 255, 255], [255, 0, 0]],
              [[0, 0, 0], [122, 200, 43], [0, 0, 0]]]),
    # JFIF: red is Y + 1.402 (Cr - 128), blue Y + 1.772 (Cb - 128).
    "YCbCr": (image([[[0, 128, 128], [100, 128, 128], [255, 128, 128]],
                     [[76, 85, 255], [150, 44, 21], [29, 255, 107]]], "YCbCr"),
              "TIFF", {}, "YCbCr",
              [[[0, 0, 0], [100, 100, 100], [255, 255, 255]],
               [[254, 0, 0], [0, 255, 1], [0, 0, 254]]]),
    "grey of 16 bits": (image([[0, 255, 256], [511, 65279, 65535]], "I;16", np.uint16),
                        "PNG", {}, "I;16", grey([[0, 0, 1], [1, 254, 255]])),
    "grey of 16 bits, TIFF": (image([[0, 255, 256], [511, 65279, 65535]], "I;16", np.uint16),
                              "TIFF", {}, "I;16", grey([[0, 0, 1], [1, 254, 255]])),
    "EXIF": (image(COLOURS, "RGB"), "PNG", {"exif": exif(6)}, "RGB",
             [[[1, 2, 3], [255, 0, 0]], [[128, 0, 7], [0, 255, 0]],
              [[255, 255, 255], [0, 0, 255]]]),
    "EXIF, 16 bits": (image([[0, 256, 512], [768, 1024, 1280]], "I;16", np.uint16),
                      "PNG", {"exif": exif(8)}, "I;16", grey([[2, 5], [1, 4], [0, 3]])),
}  # fmt: skip


@pytest.mark.parametrize("kind", GOLDEN)
def test_golden_arrays(tmp_path, kind):
    stored, file_format, options, mode, expected = GOLDEN[kind]
    path = tmp_path / "image"
    stored.save(path, file_format, **options)
    with Image.open(path) as opened:  # the file is what the case says
        assert opened.mode == mode and ("transparency" in opened.info) == ("transp" in kind)
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[:, :, ::-1], expected)
    np.testing.assert_array_equal(read_image(path, "RGB"), expected)
    if "16" not in kind:
        theirs = detection_utils.read_image(str(path), "BGR")
        np.testing.assert_array_equal(theirs, pixels)
    assert image_size(path) == pixels.shape[1::-1]
    record = {"file_name": str(path), "width": pixels.shape[1], "height": pixels.shape[0]}
    mapper = MimicDatasetMapper(False, augmentations=[], image_format="RGB")
    np.testing.assert_array_equal(mapper(record)["image"].permute(1, 2, 0), expected)


def test_colours_of_16_bits_are_read_by_their_high_byte(tmp_path):
    path = str(tmp_path / "image.png")
    cv2.imwrite(path, np.array([[[255, 256, 65535], [0, 511, 512]]], np.uint16))
    np.testing.assert_array_equal(read_image(path), [[[0, 1, 255], [0, 1, 2]]])


def record_of(path):
    return {"file_name": str(path), "image_id": 31, "width": 64, "height": 48, "annotations": []}


REASONS = {
    "missing": "No such file",
    "a folder": "Is a directory",
    "other size": "the image is 48 x 64 (width x height), its record says 64 x 48",
    "90 Mpx": "9500 x 9500 pixels are more than the 89478485 that are read",
    "196 Mpx": "exceeds limit",
    "float": "mode F ",
    "32-bit": "mode I ",
    "LAB": "mode LAB ",
}


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_images_are_named(tmp_path, kind, is_train):
    path = tmp_path / "image.png"
    write_image(path)
    mapper = MimicDatasetMapper(is_train, augmentations=[], image_format="BGR")
    assert mapper(record_of(path))["image"].shape == (3, 48, 64)
    BROKEN[kind](path)
    with pytest.raises(UserError) as error:
        mapper(record_of(path))
    message = str(error.value)
    assert message.startswith(f"{path}: ") and message.endswith(" (image_id 31)")
    assert REASONS.get(kind, "not an image that can be read") in message
    assert "\n" not in message and " object at 0x" not in message


def test_broken_data_are_not_taken_as_black(tmp_path):
    """Detectron2's reader does so: its look for EXIF data swallows the error."""
    path = tmp_path / "image.png"
    BROKEN["undecodable"](path)
    assert (detection_utils.read_image(str(path), "BGR") == 0).all()
    with pytest.raises(UserError, match="image.png: not an image that can be read"):
        read_image(path)


def test_the_limit_is_pillows(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    path.write_bytes(png(3, 2, b"\0\7\7\7" * 2))
    assert (read_image(path) == 7).all()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6)
    assert read_image(path).shape == (2, 3, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(UserError, match="3 x 2 pixels are more than the 5 that are read"):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(path).shape == (2, 3, 3)


@pytest.mark.parametrize("given", [{}, {"width": 6, "height": 4}])
def test_width_and_height_are_of_the_upright_image(tmp_path, given):
    path = tmp_path / "image.jpg"
    Image.new("RGB", (4, 6)).save(path, exif=exif(6))
    mapper = MimicDatasetMapper(False, augmentations=[], image_format="BGR")
    out = mapper({"file_name": str(path), **given})
    assert image_size(path) == (out["width"], out["height"]) == (6, 4) and out["image"].shape == (
        3,
        4,
        6,
    )


def test_other_errors_keep_their_traceback(tmp_path):
    path = tmp_path / "image.png"
    write_image(path)
    with pytest.raises(ValueError) as error:  # no mode of Pillow's: a fault of the caller
        read_image(path, "no mode")
    assert not isinstance(error.value, UserError)
