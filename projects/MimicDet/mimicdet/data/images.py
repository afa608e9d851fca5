"""
The one place where this package reads image files of data sets, and what it refuses.

Detectron2's own reader clips images of 16 bits to white, rounds float images to black, and takes a
PNG whose data are broken as black. Here an image is read right or refused by name.
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image

from ..utils.errors import UserError

# Pillow's names of what is read: 8 bits a channel, as Pillow converts it, without transparency.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBX", "RGBA", "CMYK", "YCbCr")
# Read by the high byte, as OpenCV and Pillow's own reading of 16-bit RGB do.
MODES_OF_16_BITS = ("I;16", "I;16L", "I;16B", "I;16N")

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF: width and height change places

# What Pillow's decoders raise for a file that is not what its header says.
_DECODER_ERRORS = (
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # where warnings are errors
    EOFError,
    NotImplementedError,
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
)


def read_image(file: str | Path, image_format: str = "BGR") -> np.ndarray:
    """
    Read an image file, turned upright by its EXIF orientation.

    Args:
        image_format: as of Detectron2's read_image; "BGR" and "RGB" are (H, W, 3) uint8.

    Raises:
        UserError: the file is missing, truncated or not decodable, has more than Pillow's
            Image.MAX_IMAGE_PIXELS pixels, or a mode that is in neither MODES nor MODES_OF_16_BITS.
    """
    with _opened(file) as image:
        # Before the orientation: looking for that, Detectron2 swallows what decoding raises.
        image.load()
        upright = detection_utils._apply_exif_orientation(image)
    if upright.mode in MODES_OF_16_BITS:
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    return detection_utils.convert_PIL_to_numpy(upright, image_format)


def image_size(file: str | Path) -> tuple[int, int]:
    """
    (width, height) of the upright image by the file's header; UserError as read_image, but for
    faults that only decoding shows. EXIF data behind a PNG's pixels are not seen.
    """
    with _opened(file) as image:
        # Pillow decodes a PNG to look for EXIF data behind its pixels.
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
        return image.size[::-1] if exif.get(_ORIENTATION) in _TURNED else image.size


def read_record(record: dict[str, Any], image_format: str = "BGR") -> np.ndarray:
    """
    Read the image of one of Detectron2's records, as read_image does.

    The record gets width and height where it has none: those of the upright image, which a
    record's own width and height are of, too.

    Raises:
        UserError: as read_image, and for an image of another size; names the file and image_id.
    """
    try:
        image = read_image(record["file_name"], image_format)
        detection_utils.check_image_size(record, image)
    except detection_utils.SizeMismatchError as error:
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise UserError(
            f"{record['file_name']}: the image is {size} (width x height), its record says "
            f"{record.get('width')} x {record.get('height')}{_of_record(record)}"
        ) from error
    except UserError as error:
        raise UserError(f"{error}{_of_record(record)}") from error
    return image


def _of_record(record: Mapping[str, Any]) -> str:
    return f" (image_id {record['image_id']})" if "image_id" in record else ""


def check_pixels(width: float, height: float) -> str:
    """What is wrong with an image of that many pixels; empty: nothing."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None or width * height <= limit:
        return ""
    return f"{width} x {height} pixels are more than the {limit} that are read"


@contextmanager
def _opened(file: str | Path) -> Iterator[Image.Image]:
    """The image with its header read and found readable; decoding inside raises UserError, too."""
    try:
        with PathManager.open(str(file), "rb") as stream, Image.open(stream) as image:
            if problem := check_pixels(*image.size):
                raise UserError(f"{file}: {problem}")
            if image.mode not in (*MODES, *MODES_OF_16_BITS):
                raise UserError(
                    f"{file}: images of mode {image.mode} are not read; convert it to 8 bits"
                )
            yield image
    except UserError:
        raise
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{file}: not an image that can be read") from error
    except _DECODER_ERRORS as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{file}: not an image that can be read: {reason}") from error
