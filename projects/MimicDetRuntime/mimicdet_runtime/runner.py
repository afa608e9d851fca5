"""Detection over many images or a video: what `mimicdet detect` and demo/demo.py share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from .detections import Detections
from .drawing import draw_detections
from .errors import InputError
from .images import ImageFile, read_image, write_image
from .progress import Progress
from .results import ResultWriter
from .video import VideoReader, VideoWriter


class BatchDetector(Protocol):
    """Anything that detects: an ONNX file's Detector, or a PyTorch model behind the same call."""

    class_names: tuple[str, ...]

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detections of each (H, W, 3) uint8 BGR image."""
        ...


@dataclass(frozen=True)
class RunSettings:
    """What happens to every image."""

    score_threshold: float = 0.0
    batch_size: int = 1
    draw: bool = True


def drawing_path(file: ImageFile, output: Path) -> Path:
    """Where the picture of `file` with its boxes goes.

    Raises:
        InputError: that is the input itself.
    """
    target = output / file.name
    if target.resolve() == file.path.resolve():
        raise InputError(f"{target}: the drawing would replace the image; choose another -o")
    return target


def run_on_images(
    detector: BatchDetector,
    files: Sequence[ImageFile],
    output: Path,
    writer: ResultWriter,
    settings: RunSettings,
    progress: Progress,
) -> list[str]:
    """
    Detect in image files, record the results and draw them.

    Returns:
        a message for each file that could not be read; the others are done.
    """
    problems: list[str] = []

    def readable() -> Iterator[tuple[ImageFile, np.ndarray]]:
        for file in files:
            try:
                yield file, read_image(file.path)
            except InputError as error:
                problems.append(str(error))
                progress.say(f"skipped: {error}")
                progress.advance()

    for group in _groups(readable(), settings.batch_size):
        results = detector.detect([image for _, image in group])
        for (file, image), found in zip(group, results):
            found = found.above(settings.score_threshold)
            if settings.draw:
                write_image(drawing_path(file, output), draw_detections(image, found))
            # After the drawing: an image that is recorded is complete.
            writer.add(file.name, image.shape[:2], found)
            progress.advance()
    return problems


def _groups(
    items: Iterator[tuple[ImageFile, np.ndarray]], size: int
) -> Iterator[list[tuple[ImageFile, np.ndarray]]]:
    group = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def run_on_video(
    detector: BatchDetector,
    video: VideoReader,
    settings: RunSettings,
    progress: Progress,
    record: Callable[[int, np.ndarray, Detections], None] | None = None,
    show: Callable[[np.ndarray], bool] | None = None,
    output: VideoWriter | None = None,
) -> int:
    """
    Detect in the frames of a video, one after another.

    Args:
        record: called with the number of a frame, counted from 1, the frame and its detections.
        show: called with a frame and its boxes drawn; False stops.
        output: gets the frames with their boxes drawn.

    Returns:
        the number of frames.
    """
    number = 0
    for number, frame in enumerate(video, 1):
        found = detector.detect([frame])[0].above(settings.score_threshold)
        if record is not None:
            record(number, frame, found)
        if output is not None or show is not None:
            picture = draw_detections(frame, found)
            if output is not None:
                output.write(picture)
            if show is not None and not show(picture):
                break
        progress.advance()
    return number
