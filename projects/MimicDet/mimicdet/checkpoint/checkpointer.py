"""Loading of checkpoints that says what does not fit."""

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..utils.errors import UserError
from .registry import fetch, read_state_dict


class MimicCheckpointer(DetectionCheckpointer):
    """
    DetectionCheckpointer that raises where Detectron2 warns: no file, no checkpoint, a checkpoint
    of another architecture and, if strict, parameters that are missing or of another shape.
    """

    # Parameters that training needs and inference does not.
    TRAINING_ONLY = ("roi_heads.",)

    def __init__(self, model: nn.Module, save_dir: str = "", *, strict: bool = False, **kwargs):
        """
        Args:
            strict: every parameter that inference of the model uses must be in the file.
            kwargs: see DetectionCheckpointer.
        """
        super().__init__(model, save_dir, **kwargs)
        self.strict = strict

    def load(self, path: str, *args, **kwargs):
        """
        As Detectron2's. Raises UserError that names a file that is missing, no checkpoint or does
        not fit the model.
        """
        self._path = path
        if path:
            fetch(path.split("?")[0])
        return super().load(path.removeprefix("file://"), *args, **kwargs)

    def resume_or_load(self, path: str, *, resume: bool = True):
        """As Detectron2's; resuming is strict, since it continues this very model."""
        strict, self.strict = self.strict, self.strict or (resume and self.has_checkpoint())
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self.strict = strict

    def _load_file(self, filename: str):
        try:
            if filename.endswith(".safetensors"):
                return {"model": read_state_dict(filename)}
            return super()._load_file(filename)
        except Exception as error:  # a file that is none fails in as many ways as there are formats
            reason = str(error).split(". ")[0].splitlines()[:1] or [type(error).__name__]
            raise UserError(
                f"{self._path} is no checkpoint that can be read: {reason[0]}"
            ) from error

    def _load_model(self, checkpoint):
        if not isinstance(checkpoint["model"], dict):
            raise UserError(f"{self._path} holds no state_dict under the key 'model'")
        entries = sorted(map(str, checkpoint["model"]))
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


def load_weights(model: nn.Module, path: str, strict: bool = True) -> None:
    """Load a checkpoint into a model for inference; see MimicCheckpointer for the errors."""
    MimicCheckpointer(model, strict=strict).load(path)


def _some(names: list[str], at_most: int = 3) -> str:
    shown = ", ".join(names[:at_most])
    return shown + (f" and {len(names) - at_most} more" if len(names) > at_most else "")
