"""Finding, reading and writing image files."""

import io
import os
import struct
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import UserError, file_errors
from .files import new_path

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
# Of one image: keeps a small file from unpacking into all memory. Pillow refuses twice as many.
MAX_PIXELS = 89_478_485
_MAX_SIDE = 65_535  # as of JPEG: animated WebP takes time with the square of its width
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # tags of TIFF
# What Pillow's readers raise for damaged content; its own code expects the same of them.
_READ_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    MemoryError,
    struct.error,
)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # refused by us


@dataclass(frozen=True)
class ImageFile:
    """A file and the name under which results list it: its path inside the folder given."""

    path: Path
    name: str


def find_images(
    inputs: Iterable[str | os.PathLike[str]], output: Path | None = None
) -> list[ImageFile]:
    """
    List the images of files and folders, folders with all that is below them, sorted by name. What
    lies in the folder of results, `output`, is left out of the folders given.

    Raises:
        UserError: an input is missing, a folder holds no image, or two images share a name.
    """
    images: dict[str, ImageFile] = {}
    output = output.resolve() if output else None
    for given in map(Path, inputs):
        if given.is_dir():
            files = _images_below(given, output)
            if not files:
                raise UserError(f"{given}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder")
        elif given.is_file():
            files = [ImageFile(given, given.name)]
        else:
            raise UserError(f"{given}: no such file or folder")
        for file in files:
            other = images.setdefault(file.name, file)
            if other.path.resolve() != file.path.resolve():
                raise UserError(f"{other.path} and {file.path}: two images named {file.name}")
    return list(images.values())


def _images_below(folder: Path, output: Path | None) -> list[ImageFile]:
    inside = output is not None and output != folder.resolve()
    return [
        ImageFile(path, path.relative_to(folder).as_posix())
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not (inside and path.resolve().is_relative_to(output))
    ]


def import_cv2():
    """OpenCV, imported at first use; UserError without it."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # a broken file is reported by us
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"OpenCV is needed (pip install opencv-python-headless): {error}"
        ) from error
    return cv2


def decode_image(data: bytes, name: str) -> np.ndarray:
    """
    The (H, W, 3) uint8 BGR image in a file's content, the pixels that training sees.

    It is turned upright by its EXIF orientation. Pillow's conversion makes RGB of 8-bit modes, and
    transparency is dropped; of 16-bit grey the upper 8 bits count; of several frames the first.

    Raises:
        UserError, which holds `name`: Pillow cannot read all of it, it is too large, or has values
        beyond 16 bits.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            tags = getattr(image, "tag_v2", {})
            tile = (tags.get(_TILE_WIDTH, 1), tags.get(_TILE_HEIGHT, 1))
            for width, height in (image.size, tile):
                if width * height > MAX_PIXELS or max(width, height) > _MAX_SIDE:
                    raise UserError(
                        f"{name}: {width} x {height} pixels are more than {MAX_PIXELS}, "
                        f"or than {_MAX_SIDE} a side"
                    )
            image.load()
            return _to_bgr(image, name)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: more than {MAX_PIXELS} pixels") from error
    except _READ_ERRORS as error:
        raise UserError(f"{name}: not an image that can be read") from error


def _to_bgr(image: Image.Image, name: str) -> np.ndarray:
    turn = _TURNS.get(_exif_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F":
        raise UserError(f"{name}: its values are not whole numbers")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"{name}: its values are beyond 16 bits")
        return np.repeat((values // 256).astype(np.uint8)[:, :, None], 3, axis=2)
    pixels = image.convert("RGB").tobytes("raw", "BGR")
    return np.frombuffer(bytearray(pixels), np.uint8).reshape(image.height, image.width, 3)


def _exif_orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except _READ_ERRORS:
        return None  # the pixels are good without it


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as `decode_image` does; UserError also where it is missing."""
    with file_errors(path):
        data = Path(path).read_bytes()
    return decode_image(data, str(path))


def write_image(path: Path, image: np.ndarray) -> None:
    """
    Write a (H, W, 3) uint8 BGR image in the format of the file's ending, making its folder.

    Raises:
        UserError: the file cannot be written, which leaves the one that was there, or the format
            cannot hold the image.
    """
    cv2 = import_cv2()
    try:
        done, data = cv2.imencode(path.suffix, image)
    except cv2.error:
        done = False
    if not done:
        height, width = image.shape[:2]
        raise UserError(f"{path}: {width} x {height} pixels cannot be written in this format")
    with file_errors(path), new_path(path) as new:
        new.write_bytes(data.tobytes())


def split_inputs(inputs: Sequence[str]) -> tuple[Path | None, Sequence[str]]:
    """
    (the video, no images) or (None, the images' paths); UserError for a video among other inputs or
    one that is missing.
    """
    paths = map(Path, inputs)
    videos = [x for x in paths if x.suffix.lower() in VIDEO_SUFFIXES and not x.is_dir()]
    if not videos:
        return None, inputs
    if len(inputs) > 1:
        raise UserError(f"{videos[0]}: a video has to be the only input")
    if not videos[0].is_file():
        raise UserError(f"{videos[0]}: no such file")
    return videos[0], []
