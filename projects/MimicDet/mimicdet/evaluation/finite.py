"""Evaluation that stops at predictions that are not finite, in place of an AP without them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.errors import UserError


class _Watched(nn.Module):
    """
    A model that raises UserError, naming the image, where predictions hold NaN or infinity.

    Detectors drop such predictions before they make detections of the others, so the layers behind
    the backbone are looked at too.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        self.finite: Tensor | bool = True

    def see(self, layer: nn.Module, inputs: Any, out: Tensor) -> None:
        """A forward hook of a layer; the CPU does not wait for a GPU."""
        self.finite = torch.isfinite(out).all() & self.finite

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.finite, outputs = True, []
        try:
            outputs = self.model(batched_inputs)
        except AssertionError:  # Detectron2's boxes refuse to be clipped
            if self.finite:
                raise
        wrong = [i for i, output in enumerate(outputs) if not _is_finite(output["instances"])]
        if not wrong and not self.finite:
            wrong = list(range(len(batched_inputs)))
        if wrong:
            images = [batched_inputs[i] for i in wrong]
            names = [str(x.get("file_name", x.get("image_id"))) for x in images]
            raise UserError(
                f"{', '.join(names)}: the model's predictions are not finite (NaN or infinite), "
                "so that it cannot be evaluated"
            )
        return outputs


def _is_finite(instances: Any) -> bool:
    fields = (instances.pred_boxes.tensor, instances.scores)
    return all(bool(torch.isfinite(field).all()) for field in fields)


@contextmanager
def finite_predictions(model: nn.Module) -> Iterator[nn.Module]:
    """The model, which inside the context raises UserError for predictions that are not finite."""
    watched = _Watched(model)
    handles = [
        layer.register_forward_hook(watched.see)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and "backbone" not in name.split(".")
    ]
    try:
        yield watched
    finally:
        for handle in handles:
            handle.remove()
