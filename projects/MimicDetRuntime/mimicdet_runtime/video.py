"""Reading and writing videos with OpenCV."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .errors import UserError, file_errors
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
    Writes frames to an .mp4 file; the first one sets the size, and raises UserError where the file
    cannot be written.
    """

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self._path, self._frames_per_second = path, frames_per_second
        self._writer = None

    def write(self, frame: np.ndarray) -> None:
        """Add a (H, W, 3) uint8 BGR frame."""
        if self._writer is None:
            self._writer = self._open(frame.shape[1], frame.shape[0])
        self._writer.write(frame)

    def _open(self, width: int, height: int):
        cv2 = import_cv2()
        with file_errors():
            self._path.parent.mkdir(parents=True, exist_ok=True)
        codec = cv2.VideoWriter_fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(self._path), codec, self._frames_per_second, (width, height))
        if not writer.isOpened():
            raise UserError(f"{self._path}: cannot be written as a video")
        return writer

    def close(self) -> None:
        """Complete the file."""
        if self._writer is not None:
            self._writer.release()
