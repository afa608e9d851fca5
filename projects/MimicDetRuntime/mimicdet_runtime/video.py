"""Reading and writing videos with OpenCV."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .errors import UserError, file_errors
from .files import new_path
from .images import import_cv2


class VideoReader:
    """
    The frames of a video file, or of a camera given by its number.

    Attributes:
        name: the file, or which camera.
        frames_per_second: 25 where the source does not say.
        num_frames: as the file says; 0 where it does not.

    Raises:
        UserError: the source cannot be opened.
    """

    def __init__(self, source: Path | int) -> None:
        cv2 = import_cv2()
        self.name = f"camera {source}" if isinstance(source, int) else str(source)
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            raise UserError(f"{self.name}: cannot be opened as a video")
        self.frames_per_second = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        self.num_frames = max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 BGR frames."""
        while True:
            more, frame = self._capture.read()
            if not more:
                return
            yield frame

    def close(self) -> None:
        """Let the file or the camera go."""
        self._capture.release()


class VideoWriter:
    """
    Writes frames to an .mp4 file, which takes its place when it is closed; the first frame sets the
    size. UserError where the file cannot be written.
    """

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self._path, self._frames_per_second = path, frames_per_second
        self._writer, self._num_frames = None, 0
        self._files = contextlib.ExitStack()

    def write(self, frame: np.ndarray) -> None:
        """Add a (H, W, 3) uint8 BGR frame."""
        if self._writer is None:
            self._writer = self._open(frame.shape[1], frame.shape[0])
        self._writer.write(frame)
        self._num_frames += 1

    def _open(self, width: int, height: int):
        cv2 = import_cv2()
        self._files.enter_context(file_errors(self._path))
        self._new = self._files.enter_context(new_path(self._path))
        codec = cv2.VideoWriter_fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(self._new), codec, self._frames_per_second, (width, height))
        if not writer.isOpened():
            self._files.close()
            raise UserError(f"{self._path}: cannot be written as a video")
        return writer

    def close(self) -> None:
        """Complete the file; UserError where the disk did not take all of it."""
        if self._writer is None:
            return
        with self._files:
            self._writer.release()
            # OpenCV does not tell that a disk is full.
            written = import_cv2().VideoCapture(str(self._new))
            num_frames = int(written.get(import_cv2().CAP_PROP_FRAME_COUNT))
            written.release()
            if num_frames != self._num_frames:
                raise UserError(f"{self._path}: could not be written whole; is the disk full?")
