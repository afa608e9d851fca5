"""The detector: an ONNX file of MimicDet's export behind a call with an image."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .detections import Detections, rescale
from .errors import UserError
from .metadata import ModelInfo, parse_metadata

DEVICES = ("cpu", "cuda")
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_INPUTS = {"images", "image_sizes"}
_OUTPUTS = ["boxes", "scores", "classes", "num_detections"]


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
    ) -> None:
        """
        Args:
            model: path of an ONNX file, or its content.
            device: "cpu" or "cuda".
            threads: threads inside an operator; 0: ONNX Runtime's choice.
            name: how messages call the model; None: its path.

        Raises:
            UserError: no such file, not MimicDet's, or the device is not to be had.
        """
        self.name = name or (str(model) if not isinstance(model, bytes) else "the model")
        self._session = _open_session(model, self.name, device, threads)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.info: ModelInfo = parse_metadata(metadata, self.name)
        inputs = {entry.name for entry in self._session.get_inputs()}
        outputs = {entry.name for entry in self._session.get_outputs()}
        if inputs != _INPUTS or not outputs.issuperset(_OUTPUTS):
            raise UserError(
                f"{self.name}: inputs {sorted(inputs)} and outputs {sorted(outputs)} are not "
                "those of a MimicDet model"
            )

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
            UserError: an array is no such image, or a model that resizes inside gets several.
        """
        for image in images:
            _check_image(image)
        if self.info.includes_resize and len(images) > 1:
            raise UserError(f"{self.name}: resizes inside the graph, so it takes one image a run")
        if not images:
            return []
        resized = [self._resized(image) for image in images]
        outputs = self._session.run(_OUTPUTS, make_batch(resized, self.info))
        results = []
        for image, from_image, boxes, scores, classes, count in zip(images, resized, *outputs):
            boxes, has_area = rescale(boxes[:count], from_image.shape[:2], image.shape[:2])
            kept = (boxes[has_area], scores[:count][has_area], classes[:count][has_area])
            results.append(Detections(*kept, self.class_names))
        return results

    def _resized(self, image: np.ndarray) -> np.ndarray:
        if self.info.includes_resize:
            return image
        height, width = self.info.resize.output_size(*image.shape[:2])
        # As Detectron2 does: OpenCV's INTER_LINEAR looks at four pixels whatever the factor.
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(resized)


def make_batch(images: Sequence[np.ndarray], info: ModelInfo) -> dict[str, np.ndarray]:
    """
    Put images into the top-left corners of one canvas, as the graph's inputs.

    Args:
        images: each (H, W, 3) uint8 BGR, already of the size that the graph takes.

    Returns:
        images (N, 3, H, W) float32 in the model's order of channels; image_sizes (N, 2) int64,
        (height, width) in pixels.
    """
    sizes = np.array([image.shape[:2] for image in images], dtype=np.int64)
    height, width = sizes.max(axis=0)
    if not info.includes_resize:
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
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name}: ONNX Runtime cannot load it: {reason}") from error
