"""From a config and an image file's pixels to detections."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances

from ..checkpoint import load_weights
from ..data import class_names
from ..export.optimize import optimize_for_inference
from ..utils.errors import UserError


class Predictor:
    """
    Detectron2's DefaultPredictor, for several images at once and with a model made faster.

    Attributes:
        model: in evaluation mode.
        class_names: see data.class_names.
    """

    def __init__(
        self,
        cfg: CfgNode,
        optimize: bool = True,
        precision: str = "float32",
        compile_backbone: bool = False,
    ) -> None:
        """
        Args:
            cfg: complete, see `setup_cfg`; MODEL.WEIGHTS names the checkpoint.
            optimize: run what `optimize_for_inference` makes of the model; its results differ from
                the model's by rounding.
            precision, compile_backbone: its options; ValueError without optimize.

        Raises:
            UserError: MODEL.WEIGHTS is missing or does not fit the config.
        """
        if not cfg.MODEL.WEIGHTS:
            raise UserError("MODEL.WEIGHTS is empty: name a checkpoint")
        if not optimize and (precision != "float32" or compile_backbone):
            raise ValueError("precision and compile_backbone need optimize=True")
        model = build_model(cfg).eval()
        load_weights(model, cfg.MODEL.WEIGHTS)
        if optimize:
            model = optimize_for_inference(
                model, precision=precision, compile_backbone=compile_backbone
            )
        self.model = model
        self.class_names = class_names(cfg)
        self._input_format = cfg.INPUT.FORMAT
        self._resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    def __call__(self, image: np.ndarray) -> dict[str, Instances]:
        """As DefaultPredictor: {"instances": Instances} of one (H, W, 3) uint8 BGR image."""
        return {"instances": self.predict([image])[0]}

    @torch.no_grad()
    def predict(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """Detections of each (H, W, 3) uint8 BGR image, in its pixels."""
        if not images:
            return []
        outputs = self.model([self.preprocess(image) for image in images])
        return [output["instances"] for output in outputs]

    def preprocess(self, image: np.ndarray) -> dict[str, Any]:
        """The model's input dict of a (H, W, 3) uint8 BGR image: resized, in its channel order."""
        height, width = image.shape[:2]
        if self._input_format == "RGB":
            image = image[:, :, ::-1]
        resized = self._resize.get_transform(image).apply_image(image)
        pixels = np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32)
        return {"image": torch.from_numpy(pixels), "height": height, "width": width}
