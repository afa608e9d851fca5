"""A MimicDet in ONNX Runtime, called like the model that it was exported from."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...export.formats import DEFAULT_OPSET, write_onnx
from ...modeling.meta_arch.mimicdet import MimicDet


class OnnxModel(nn.Module):
    """
    The exported student of a model on the CPU, with as many threads as PyTorch has.

    Its threads sleep between two runs: by default they keep a core busy for a while, and whatever
    is measured next would pay for it.
    """

    def __init__(self, model: MimicDet):
        import onnxruntime  # only this row of the tables needs the extra "export"

        super().__init__()
        metadata = {
            "opset": DEFAULT_OPSET,
            "precision": "float32",
            "includes_resize": False,
            "mimicdet_version": "benchmark",
        }
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            write_onnx(model, path, metadata)
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[np.ndarray]:
        """The four outputs of export.OUTPUT_NAMES for images of Detectron2's dicts."""
        images = [x["image"].numpy() for x in batched_inputs]
        sizes = np.array([x.shape[1:] for x in images], dtype=np.int64)
        height, width = sizes.max(axis=0)
        canvas = np.zeros((len(images), 3, height, width), dtype=np.float32)
        for target, image in zip(canvas, images):
            target[:, : image.shape[1], : image.shape[2]] = image
        return self._session.run(None, {"images": canvas, "image_sizes": sizes})
