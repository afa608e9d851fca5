"""The detector: an ONNX file of MimicDet's export behind a call with an image."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .detections import Detections, rescale
from .errors import ImageError, UserError
from .metadata import ModelInfo, ResizeRule, parse_metadata

DEVICES = ("cpu", "cuda")
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# Type and shape of the graph's inputs and outputs; None: any number, N images or K detections.
_INPUTS = {
    "images": ("tensor(float)", (None, 3, None, None)),
    "image_sizes": ("tensor(int64)", (None, 2)),
}
_OUTPUTS = {
    "boxes": ("tensor(float)", (None, None, 4)),
    "scores": ("tensor(float)", (None, None)),
    "classes": ("tensor(int64)", (None, None)),
    "num_detections": ("tensor(int64)", (None,)),
}


class Detector:
    """
    Detects objects with an exported model.

        detector = Detector("model.onnx")
        for index in range(len(detections := detector(image))): ...

    Attributes:
        info: what the model says about itself.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        device: str = "cpu",
        threads: int = 0,
        name: str | None = None,
        seconds: float | None = None,
    ) -> None:
        """
        Args:
            model: path of an ONNX file, or its content.
            device: "cpu" or "cuda".
            threads: threads inside an operator; 0: ONNX Runtime's choice.
            name: how messages call the model; None: its path.
            seconds: that a run of the model may take; None: any.

        Raises:
            UserError: no such file, not MimicDet's, damaged, or the device is not to be had.
        """
        self.name = name or (str(model) if not isinstance(model, bytes) else "the model")
        self._session = _open_session(model, self.name, device, threads)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.info: ModelInfo = parse_metadata(metadata, self.name)
        self._seconds = seconds
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        names = {entry.name for entry in inputs}, {entry.name for entry in outputs}
        if names[0] != _INPUTS.keys() or not names[1] >= _OUTPUTS.keys():
            raise UserError(
                f"{self.name}: inputs {sorted(names[0])} and outputs {sorted(names[1])} are not "
                "those of a MimicDet model"
            )
        _check_declared(self.name, inputs, _INPUTS)
        _check_declared(self.name, outputs, _OUTPUTS)
        height, width = next(x for x in inputs if x.name == "images").shape[2:]
        # A file of fixed size takes one image, on a canvas of this size.
        fixed = isinstance(height, int) and isinstance(width, int)
        self._resize = replace(self.info.resize, canvas=(height, width) if fixed else None)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers."""
        return self.info.class_names

    def __call__(self, image: np.ndarray) -> Detections:
        """
        Detect in one (H, W, 3) uint8 image, BGR as OpenCV reads it; UserError for another array.
        """
        return self.detect([image])[0]

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """
        Detect in several (H, W, 3) uint8 BGR images at once; sizes may differ.

        Raises:
            UserError: an array is no such image, a model that resizes inside gets several, the
                model fails or takes too long. ImageError: what it finds in an image makes no sense.
        """
        for image in images:
            _check_image(image)
        if self.info.includes_resize and len(images) > 1:
            raise UserError(f"{self.name}: resizes inside the graph, so it takes one image a run")
        if not images:
            return []
        resized = [self._resized(image) for image in images]
        canvas = self._resize.canvas
        batches = [[x] for x in resized] if canvas else [resized]
        outputs = (self._run(make_batch(batch, self.info, canvas)) for batch in batches)
        rows = (row for output in outputs for row in zip(*output))
        results = []
        for index, (image, from_image, found) in enumerate(zip(images, resized, rows)):
            boxes, scores, classes = self._checked(index, *found)
            boxes, has_area = rescale(boxes, from_image.shape[:2], image.shape[:2])
            kept = (boxes[has_area], scores[has_area], classes[has_area])
            results.append(Detections(*kept, self.class_names))
        return results

    def _run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        with _run_options(self._seconds) as options:
            try:
                outputs = self._session.run(list(_OUTPUTS), inputs, options)
            # Its errors share no base class but Exception.
            except Exception as error:
                if options.terminate:
                    raise UserError(f"{self.name}: took more than {self._seconds} s") from error
                raise UserError(f"{self.name}: fails: {_first_line(error)}") from error
        shapes = [output.shape for output in outputs]
        images, most = len(inputs["images"]), shapes[0][1] if len(shapes[0]) > 1 else 0
        if shapes != [(images, most, 4), (images, most), (images, most), (images,)]:
            raise UserError(
                f"{self.name}: the shapes of its outputs for {images} images do not fit each "
                f"other: {', '.join(f'{name} {shape}' for name, shape in zip(_OUTPUTS, shapes))}"
            )
        return outputs

    def _checked(
        self, index: int, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Those of the first `count` rows, which have to be numbers that mean something."""
        if not 0 <= count <= len(scores):
            raise ImageError(index, f"{self.name} gives {count} of {len(scores)} detections")
        boxes, scores, classes = boxes[:count], scores[:count], classes[:count]
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ImageError(index, f"{self.name} gives boxes or scores that are not finite")
        if count and not 0 <= classes.min() <= classes.max() < len(self.class_names):
            raise ImageError(
                index,
                f"{self.name} gives class {classes.min()} to {classes.max()}, "
                f"but names {len(self.class_names)}",
            )
        return boxes, scores, classes

    def _resized(self, image: np.ndarray) -> np.ndarray:
        if self.info.includes_resize:
            return image
        return resize_image(image, self._resize)


def resize_image(image: np.ndarray, rule: ResizeRule) -> np.ndarray:
    """(H, W, 3) uint8 in the size of the rule, with Detectron2's pixels."""
    height, width = rule.output_size(*image.shape[:2])
    # As Detectron2 does: OpenCV's INTER_LINEAR looks at four pixels whatever the factor.
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def make_batch(
    images: Sequence[np.ndarray], info: ModelInfo, canvas: tuple[int, int] | None = None
) -> dict[str, np.ndarray]:
    """
    Put images into the top-left corners of one canvas, as the graph's inputs.

    Args:
        images: each (H, W, 3) uint8 BGR, already of the size that the graph takes.
        canvas: (height, width) that hold all of them; None: as large as need be.

    Returns:
        images (N, 3, H, W) float32 in the model's order of channels; image_sizes (N, 2) int64,
        (height, width) in pixels.
    """
    sizes = np.array([image.shape[:2] for image in images], dtype=np.int64)
    height, width = canvas or sizes.max(axis=0)
    if not (info.includes_resize or canvas):
        height, width = (
            -(-side // info.size_divisor) * info.size_divisor for side in (height, width)
        )
    canvas = np.zeros((len(images), 3, height, width), dtype=np.float32)
    for slot, image in zip(canvas, images):
        pixels = image if info.input_format == "BGR" else image[:, :, ::-1]
        slot[:, : image.shape[0], : image.shape[1]] = pixels.transpose(2, 0, 1)
    return {"images": canvas, "image_sizes": sizes}


def _check_image(image: Any) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise UserError(f"an image has to be a uint8 array, not {kind}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(f"an image has to be of shape (H, W, 3), not {image.shape}")


def _open_session(model: Any, name: str, device: str, threads: int) -> Any:
    if device not in _PROVIDERS:
        raise UserError(f"device {device!r}: choose one of {', '.join(DEVICES)}")
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise UserError(f"{name}: no such file")
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"onnxruntime is needed (pip install onnxruntime): {error}") from error
    if _PROVIDERS[device] not in onnxruntime.get_available_providers():
        raise UserError(
            f"--device {device}: this onnxruntime has only "
            f"{', '.join(onnxruntime.get_available_providers())} (pip install onnxruntime-gpu)"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: warnings are for those who export
    try:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=list(dict.fromkeys([_PROVIDERS[device], _PROVIDERS["cpu"]])),
        )
    # Its errors share no base class but Exception.
    except Exception as error:
        raise UserError(f"{name}: ONNX Runtime cannot load it: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def _run_options(seconds: float | None) -> Iterator[Any]:
    """Options of a run that ends it after a time; None: never."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    if seconds is None:
        yield options
        return
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.start()
    try:
        yield options
    finally:
        timer.cancel()


def _check_declared(model: str, entries: Sequence[Any], expected: dict[str, Any]) -> None:
    """UserError for an input or output of another type or shape; a symbolic size fits any."""
    for entry in entries:
        if entry.name not in expected:
            continue
        kind, shape = expected[entry.name]
        fits = len(entry.shape) == len(shape) and all(
            want in (None, size) or not isinstance(size, int)
            for want, size in zip(shape, entry.shape)
        )
        if entry.type != kind or not fits:
            raise UserError(
                f"{model}: {entry.name} is {entry.type} of shape {entry.shape}, not {kind} of "
                f"shape {['any' if size is None else size for size in shape]}"
            )
