"""Saving that survives a kill, and loading that says what does not fit."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..utils.errors import UserError
from ..utils.files import durable_path
from ..utils.timm_networks import from_torchvision
from .integrity import check_whole, non_finite, remove_leftovers, write_checkpoint
from .packages import load_backbone
from .pickles import load_arrays
from .registry import BACKBONE_SCHEMES, fetch, read_state_dict
from .resume import BEST_PREFIX, LAST_FILE, has_checkpoint, newest_checkpoint


class MimicCheckpointer(DetectionCheckpointer):
    """
    DetectionCheckpointer that raises where Detectron2 warns: no file, no checkpoint, a checkpoint
    of another architecture and, if strict, parameters that are missing, of another shape or not
    finite. It runs no code that lies in a file: tensors and arrays are read and nothing else.

    A checkpoint appears whole, with its digest beside it, and never with values that are not
    finite; see integrity.py. The best one does not become the last one, which --resume goes on
    from.
    """

    # Parameters that training needs and inference does not.
    TRAINING_ONLY = ("roi_heads.", "averaged_teacher.")

    def __init__(self, model: nn.Module, save_dir: str = "", *, strict: bool = False, **kwargs):
        """
        Args:
            strict: every parameter that inference of the model uses must be in the file, finite.
            kwargs: see DetectionCheckpointer.
        """
        super().__init__(model, save_dir, **kwargs)
        self.strict = strict
        self._path = ""
        self._content: dict[str, Any] | None = None  # of the checkpoint to resume from

    def save(self, name: str, **kwargs: Any) -> None:
        """
        As Detectron2's. Raises UserError for values that are not finite and for a disk that is full
        or cannot be written to; the checkpoints that were there stay as they are.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict()}
        content |= {key: x.state_dict() for key, x in self.checkpointables.items()} | kwargs
        path = os.path.join(self.save_dir, f"{name}.pth")
        if tensor := non_finite(content):
            raise UserError(f"{path} is not written: {tensor} holds values that are not finite")
        self.logger.info("Saving checkpoint to %s", path)
        with self._save_errors(path):
            remove_leftovers(self.save_dir)
            write_checkpoint(content, path)
        if not name.startswith(BEST_PREFIX):
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """As Detectron2's; the file appears whole."""
        path = os.path.join(self.save_dir, LAST_FILE)
        with self._save_errors(path), durable_path(path) as new:
            new.write_text(last_filename_basename)

    @contextlib.contextmanager
    def _save_errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{path} cannot be written: {reason}; what was there stays") from error

    def load(self, path: str, *args, **kwargs):
        """
        As Detectron2's. Raises UserError that names a file that is missing, no checkpoint, damaged
        or does not fit the model, and for an address that `fetch` refuses.
        """
        self._path = path
        if path.startswith(BACKBONE_SCHEMES) and not self.strict:
            load_backbone(self.model, path)
            return {}
        if path:
            address, _, query = path.partition("?")
            query, _, fragment = query.partition("#")
            path = fetch(address + (f"#{fragment}" if fragment else ""))
            path += f"?{query}" if query else ""
        try:
            return super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None  # Detectron2 leaves it behind an error

    def has_checkpoint(self) -> bool:
        """Whether a training run has left a checkpoint in save_dir, or the name of one."""
        return has_checkpoint(self.save_dir)

    def resume_or_load(self, path: str, *, resume: bool = True):
        """
        As Detectron2's, from the newest checkpoint that is whole; see newest_checkpoint. Resuming
        is strict, since it continues this very model.
        """
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        strict, keys = self.strict, ["model", "iteration", *{"trainer"} & {*self.checkpointables}]
        found = newest_checkpoint(self.save_dir, self._read, keys)
        try:
            self.strict, self._content = True, found.content
            return self.load(str(found.path))
        finally:
            self.strict, self._content = strict, None

    def _load_file(self, filename: str):
        return self._content or self._read(filename)

    def _read(self, filename: str) -> dict[str, Any]:
        named = self._path if self._parsed_url_during_load else filename
        try:
            check_whole(filename)
            if filename.endswith(".safetensors"):
                return {"model": read_state_dict(filename)}
            if filename.endswith(".pkl"):
                return _from_model_zoo(load_arrays(filename))
            if filename.endswith(".pyth"):
                state = self._torch_load(filename)["model_state"]
                state = {k: x for k, x in state.items() if not k.endswith("num_batches_tracked")}
                return {"model": state, "__author__": "pycls", "matching_heuristics": True}
            if self._parsed_url_during_load:
                return super()._load_file(filename)
            return self._torch_load(filename)
        except Exception as error:  # a file that is none fails in as many ways as there are formats
            reason = str(error).split(". ")[0].splitlines()[:1] or [type(error).__name__]
            raise UserError(f"{named} is no checkpoint that can be read: {reason[0]}") from error

    def _torch_load(self, f: str):
        return torch.load(f, map_location="cpu", weights_only=True)

    def _load_model(self, checkpoint):
        if not isinstance(checkpoint["model"], dict):
            raise UserError(f"{self._path} holds no state_dict under the key 'model'")
        entries = sorted(map(str, checkpoint["model"]))
        for key in entries:  # of a MobileNetV2 or VGG from before timm's were used
            if (name := from_torchvision(key)) != key:
                checkpoint["model"][name] = checkpoint["model"].pop(key)
        incompatible = super()._load_model(checkpoint)
        # Parameters, not buffers: PyTorch makes up a batch norm's counter where a file has none.
        parameters = {name for name, _ in self.model.named_parameters()}
        reshaped = {item[0] for item in incompatible.incorrect_shapes}
        if parameters and not parameters - set(incompatible.missing_keys) - reshaped:
            raise UserError(
                f"{self._path} is a checkpoint of another architecture: none of its "
                f"{len(entries)} entries fits a parameter of the model "
                f"(it has {_some(entries)}; the model {_some(sorted(parameters))})"
            )
        if self.strict:
            self._check_complete(incompatible)
        return incompatible

    def _check_complete(self, incompatible) -> None:
        uses_teacher = getattr(self.model, "eval_head", "student") == "teacher"
        unused = () if uses_teacher else self.TRAINING_ONLY
        used = {k: x for k, x in self.model.state_dict().items() if not k.startswith(unused)}
        if name := non_finite(used):
            raise UserError(f"{self._path}: {name} holds values that are not finite")
        missing = [key for key in incompatible.missing_keys if not key.startswith(unused)]
        shapes = [
            f"{key}: {tuple(in_file)} in the file, {tuple(in_model)} in the model"
            for key, in_file, in_model in incompatible.incorrect_shapes
            if not key.startswith(unused)
        ]
        if missing or shapes:
            raise UserError(
                f"{self._path} does not fit the model. "
                + (f"Missing: {_some(missing)}. " if missing else "")
                + (f"Other shapes: {_some(shapes)}. " if shapes else "")
                + "Is it a checkpoint of this config, with as many classes?"
            )


def _from_model_zoo(data: Any) -> dict[str, Any]:
    """What Detectron2 makes of a .pkl: its own model zoo's, or Caffe2's and Detectron1's."""
    if "model" in data and "__author__" in data:
        return data
    data = data.get("blobs", data)
    model = {key: value for key, value in data.items() if not key.endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}


def load_weights(model: nn.Module, path: str, strict: bool = True) -> None:
    """Load a checkpoint into a model for inference; see MimicCheckpointer for the errors."""
    MimicCheckpointer(model, strict=strict).load(path)


def _some(names: list[str], at_most: int = 3) -> str:
    shown = ", ".join(names[:at_most])
    return shown + (f" and {len(names) - at_most} more" if len(names) > at_most else "")
