"""Detection over many images or a video: what `mimicdet detect` and demo/demo.py share."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from .detections import Detections
from .errors import UserError
from .images import ImageFile, read_image
from .progress import Progress


class BatchDetector(Protocol):
    """Anything that detects: an ONNX file's Detector, or a PyTorch model behind the same call."""

    class_names: tuple[str, ...]

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detections of each (H, W, 3) uint8 BGR image."""
        ...


def drawing_path(file: ImageFile, output: Path) -> Path:
    """The picture of `file` in the folder `output`; UserError where that is the input itself."""
    target = output / file.name
    if target.resolve() == file.path.resolve():
        raise UserError(f"{target}: the drawing would replace the image; choose another output")
    return target


def run_on_images(
    detector: BatchDetector,
    files: Sequence[ImageFile],
    handle: Callable[[ImageFile, np.ndarray, Detections], bool],
    progress: Progress,
    batch_size: int = 1,
) -> list[str]:
    """
    Detect in image files, in order. `handle` gets a file, its (H, W, 3) uint8 BGR image and the
    detections; False stops. Returns a message for each file that could not be read.
    """
    problems: list[str] = []

    def readable() -> Iterator[tuple[ImageFile, np.ndarray]]:
        for file in files:
            try:
                yield file, read_image(file.path)
            except UserError as error:
                problems.append(str(error))
                progress.say(f"skipped: {error}")
                progress.advance()

    images = readable()
    while group := list(itertools.islice(images, batch_size)):
        results = detector.detect([image for _, image in group])
        for (file, image), detections in zip(group, results):
            if not handle(file, image, detections):
                return problems
            progress.advance()
    return problems


def run_on_video(
    detector: BatchDetector,
    frames: Iterable[np.ndarray],
    handle: Callable[[int, np.ndarray, Detections], bool],
    progress: Progress,
) -> int:
    """
    Detect in (H, W, 3) uint8 BGR frames one after another; returns their number. `handle` gets the
    number of a frame, counted from 1, the frame and its detections; False stops.
    """
    number = 0
    for number, frame in enumerate(frames, 1):
        if not handle(number, frame, detector.detect([frame])[0]):
            break
        progress.advance()
    return number
