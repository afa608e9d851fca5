"""Detection over many images or a video: what `mimicdet detect` and demo/demo.py share."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from .detections import Detections
from .drawing import draw_detections
from .errors import ImageError, UserError
from .images import ImageFile, read_image, write_image
from .progress import Progress
from .video import VideoReader, VideoWriter


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
    targets: Mapping[ImageFile, Path | None],
    handle: Callable[[ImageFile, np.ndarray, Detections], bool],
    progress: Progress,
    score: float = 0.0,
    batch_size: int = 1,
) -> list[str]:
    """
    Detect in image files, in order, and draw each to its target; None: no drawing.

    `handle` gets a file, its (H, W, 3) uint8 BGR image and the detections of at least `score` once
    the drawing is written; False stops. Returns a message for each file that could not be read.

    Raises:
        UserError: a file cannot be written, or the detector fails on an image.
    """
    problems: list[str] = []

    def readable() -> Iterator[tuple[ImageFile, np.ndarray]]:
        for file in targets:
            try:
                yield file, read_image(file.path)
            except UserError as error:
                problems.append(str(error))
                progress.say(f"skipped: {error}")
                progress.advance()

    images = readable()
    while group := list(itertools.islice(images, batch_size)):
        try:
            results = detector.detect([image for _, image in group])
        except ImageError as error:
            raise UserError(f"{group[error.index][0].path}: {error}") from error
        for (file, image), result in zip(group, results):
            detections = result.above(score)
            target = targets[file]
            if target is not None:
                write_image(target, draw_detections(image, detections))
            if not handle(file, image, detections):
                return problems
            progress.advance()
    return problems


def run_on_video(
    detector: BatchDetector,
    video: VideoReader,
    target: Path | None,
    handle: Callable[[int, np.ndarray, Detections], bool],
    score: float = 0.0,
) -> None:
    """
    Detect in a video's frames, one after another, and draw them to the video `target`; None: no
    drawing. `handle` gets the number of a frame, counted from 1, the (H, W, 3) uint8 BGR frame and
    the detections of at least `score`; False stops.

    Raises:
        UserError: no frame can be read, or `target` cannot be written.
    """
    number = 0
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(contextlib.closing(Progress(video.num_frames)))
        writer = VideoWriter(target, video.frames_per_second) if target else None
        if writer is not None:
            stack.callback(writer.close)
        for number, frame in enumerate(video, 1):
            try:
                detections = detector.detect([frame])[0].above(score)
            except ImageError as error:
                raise UserError(f"{video.name}, frame {number}: {error}") from error
            if writer is not None:
                writer.write(draw_detections(frame, detections))
            if not handle(number, frame, detections):
                break
            progress.advance()
    if number == 0:
        raise UserError(f"{video.name}: no frame could be read")
