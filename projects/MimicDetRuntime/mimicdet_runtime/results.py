"""The files of results: a record that grows line by line, and COCO's JSON made from it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .detections import Detections
from .errors import UserError, file_errors
from .files import new_path

RECORD = "detections.jsonl"
RESULTS = "results.json"
IMAGES = "images.json"


class ResultWriter:
    """
    Writes detections to a folder so that a run can be stopped at any moment and gone on with.

    `detections.jsonl` has a header, then a line for each image that is done. `close` makes from it
    `results.json`, COCO's list of results, and `images.json`, the images and categories that its
    numbers mean.
    """

    def __init__(self, folder: Path, header: dict[str, Any], resume: bool = False) -> None:
        """
        Args:
            folder: made if it is missing.
            header: what the detections depend on besides the image.
            resume: keep the record of an earlier run; its header has to be the same.

        Raises:
            UserError: there is a record of another header, or the folder cannot be written to.
        """
        self._folder = folder
        self._images: list[dict[str, Any]] = []
        self._results: list[dict[str, Any]] = []
        with file_errors():
            folder.mkdir(parents=True, exist_ok=True)
        path = folder / RECORD
        lines = _complete_lines(path) if resume and path.is_file() else []
        if lines:
            self._take_over(path, lines, header)
        self._class_names: Sequence[str] = header["class_names"]
        # A new file in the old one's place: a stop right here loses nothing of an earlier run.
        _replace(path, "".join(_to_line(line) for line in lines or [header]))
        self._path = path
        with file_errors(path):
            self._record: BinaryIO = path.open("ab", buffering=0)

    @property
    def done(self) -> set[str]:
        """File names of the images that are recorded."""
        return {image["file_name"] for image in self._images}

    @property
    def num_detections(self) -> int:
        """Detections in all images that are recorded."""
        return len(self._results)

    def add(self, file_name: str, size: tuple[int, int], detections: Detections) -> None:
        """Record one image of (height, width) `size`; it survives whatever happens next."""
        image_id = len(self._images) + 1
        image = {"id": image_id, "file_name": file_name, "height": size[0], "width": size[1]}
        results = detections.to_coco(image_id)
        line = _to_line({"image": image, "results": results}).encode()
        with file_errors(self._path):
            # Not buffered: what a full disk does not take is not tried again at the end.
            while line:
                line = line[self._record.write(line) :]
        self._images.append(image)
        self._results += results

    def close(self) -> None:
        """Write results.json and images.json."""
        self._record.close()
        categories = [{"id": i, "name": name} for i, name in enumerate(self._class_names, 1)]
        _dump(self._folder / RESULTS, self._results)
        _dump(self._folder / IMAGES, {"images": self._images, "categories": categories})

    def _take_over(self, path: Path, lines: list[dict[str, Any]], header: dict[str, Any]) -> None:
        different = [key for key in header if lines[0].get(key) != header[key]]
        if different:
            raise UserError(
                f"{path}: made with another {', '.join(different)}; without --resume it is replaced"
            )
        for line in lines[1:]:
            self._images.append(line["image"])
            self._results += line["results"]


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    """The record's lines; a last one that was cut off in the middle is dropped."""
    with file_errors(path):
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from error


def _to_line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def _dump(path: Path, content: Any) -> None:
    _replace(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader never sees half of it."""
    with file_errors(path), new_path(path) as new:
        new.write_text(text, encoding="utf-8")
