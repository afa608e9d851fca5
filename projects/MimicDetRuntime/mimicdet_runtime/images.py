"""Finding and reading image files."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import UserError, file_errors

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
# OpenCV reads this when it is imported; it keeps a small file from unpacking into all memory.
MAX_PIXELS = 200_000_000


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
    """OpenCV, imported at first use, with a limit on the size of images; UserError without it."""
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
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
    The (H, W, 3) uint8 BGR image in a file's content, turned upright by its EXIF orientation as
    Detectron2 does; UserError that holds `name` for what OpenCV cannot read.
    """
    cv2 = import_cv2()
    image = None
    if data:
        try:
            image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:
            pass  # what it says is about its own source files
    if image is None:
        raise UserError(f"{name}: not an image that can be read")
    return image


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as `decode_image` does; UserError also where it is missing."""
    with file_errors():
        data = Path(path).read_bytes()
    return decode_image(data, str(path))


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a (H, W, 3) uint8 BGR image in the format of the file's ending, making its folder."""
    _, data = import_cv2().imencode(path.suffix, image)
    with file_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.tobytes())


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
