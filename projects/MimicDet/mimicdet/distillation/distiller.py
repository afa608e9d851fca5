"""Distillation in a training step: the student's losses and every method's, in one dict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from ..config import check_config
from ..modeling.layers import mixed_precision
from ..modeling.meta_arch.mimicdet import MimicDet
from ..utils.errors import UserError
from .adapters import DetectorAdapter, build_adapter
from .balance import GradientBalance
from .config import split_entry, with_label
from .inherit import inherit
from .methods.base import DISTILLATION_REGISTRY, SCHEDULE, DistillationMethod, settings_of
from .pairing import check_pair
from .teacher import FrozenTeacher, build_separate_teacher, build_teacher, load_teacher_config
from .tensors import DetectorTensors

Value = TypeVar("Value")


@dataclass(frozen=True)
class Term:
    """A method at work: who teaches, and how much its losses count at which iteration."""

    method: DistillationMethod
    teacher: FrozenTeacher | None = None  # None: the student's own second head (MimicDet)
    loss_weight: float = 1.0
    gradient_ratio: float = 0.0  # above 0: in place of loss_weight, see GradientBalance
    start_iter: int = 0
    warmup_iters: int = 0
    stop_iter: int = 0
    label: str = ""  # tells the losses and metrics of a method's second term from its first's

    def labelled(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Losses or metrics of the method by the names that the trainer sees."""
        suffix = self.label and f"_{self.label}"
        return {f"{name}{suffix}": value for name, value in values.items()}

    def share(self, iteration: int) -> float:
        """Of the losses' full factor; it reaches 1 after warmup_iters iterations."""
        if self.idle(iteration):
            return 0.0
        done = iteration + 1 - self.start_iter
        return min(1.0, done / max(self.warmup_iters, 1))

    def weight(self, result: Mapping[str, Tensor], balance: GradientBalance) -> float | Tensor:
        """The full factor of the method's losses, result."""
        if not self.gradient_ratio:
            return self.loss_weight
        return self.gradient_ratio * balance.weight(sum(result.values()))

    def idle(self, iteration: int) -> bool:
        """Whether the method has not started yet or has stopped."""
        return iteration < self.start_iter or 0 < self.stop_iter <= iteration


class Distiller(nn.Module):
    """
    What a trainer trains: calls the student and adds each method's losses to its loss dict.

    It wraps the student as a module, so that DistributedDataParallel sees one forward with all
    parameters that train, the methods' adaptation layers included. Evaluation is the student's. A
    teacher runs at most once a step, and not at all while its methods are idle.
    """

    def __init__(
        self,
        student: nn.Module,
        terms: Sequence[Term] = (),
        adapter: DetectorAdapter | None = None,
        autocast_dtype: torch.dtype | None = None,
    ):
        """
        Args:
            student: any Detectron2 model.
            terms: what to add; none: the student's losses alone.
            adapter: the student's; needed where there are terms.
            autocast_dtype: mixed precision of the training forward. It is here for a CPU, where
                bfloat16 needs no loss scaling; on a GPU Detectron2's AMPTrainer does it.
        """
        super().__init__()
        if terms and adapter is None:
            raise ValueError("a student that is taught needs an adapter, see build_adapter")
        self.student = student
        self.adapter = adapter
        self.terms = tuple(terms)
        self.methods = nn.ModuleList(term.method for term in terms)
        self.autocast_dtype = autocast_dtype
        names = [x for term in terms for x in term.labelled(dict.fromkeys(term.method.loss_names))]
        if len(set(names)) < len(names):
            raise UserError(f"two distillation methods write the same loss: {sorted(names)}")

    def forward(self, batched_inputs: list[dict[str, Any]]):
        """Detectron2's contract: a dict of losses in training, detections in evaluation."""
        if not self.training:
            return self.student(batched_inputs)
        if self.autocast_dtype is None:
            return self._losses(batched_inputs)
        with torch.autocast(self.student.device.type, dtype=self.autocast_dtype):
            return self._losses(batched_inputs)

    def _losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        if not self.terms:
            return self.student(batched_inputs)
        losses, student = self.adapter.forward_training(batched_inputs)
        # The trainer's storage counts the iterations, and goes on where a resumed run left off.
        storage = get_event_storage() if has_event_storage() else None
        iteration = storage.iter if storage else 0
        seen: dict[FrozenTeacher | None, DetectorTensors] = {None: student}
        balance = GradientBalance(sum(losses.values()), student)
        for term in self.terms:
            if term.idle(iteration):
                _add(losses, term.method.zeros(self.student.device), term, 0.0)
                continue
            if term.teacher not in seen:
                seen[term.teacher] = term.teacher(batched_inputs)
            result = term.method(student, seen[term.teacher])
            weight = term.share(iteration) * term.weight(result, balance)
            _add(losses, result, term, weight)
            if storage:  # metrics make the CPU wait for a GPU
                metrics = term.method.metrics(result)
                if term.gradient_ratio:
                    metrics |= {f"weight/{type(term.method).__name__}": float(weight)}
                storage.put_scalars(**term.labelled(metrics), smoothing_hint=True)
        return losses

    @property
    def teachers(self) -> list[FrozenTeacher]:
        """Teachers from outside, each once."""
        return list(dict.fromkeys(term.teacher for term in self.terms if term.teacher))


def _add(
    losses: dict[str, Tensor], result: dict[str, Tensor], term: Term, weight: float | Tensor
) -> None:
    name = type(term.method).__name__
    if set(result) != set(term.method.loss_names):
        raise ValueError(
            f"{name} returned the losses {sorted(result)} and announced "
            f"{sorted(term.method.loss_names)}"
        )
    added = term.labelled({key: weight * loss for key, loss in result.items()})
    twice = losses.keys() & added.keys()
    if twice:
        raise ValueError(f"{name} writes losses twice: {sorted(twice)}")
    losses.update(added)


class DistillationState:
    """
    What a checkpoint keeps of a distillation beside the student: the methods' adaptation layers and
    which teacher it was. For the checkpointer: state_dict and load_state_dict.
    """

    def __init__(self, distiller: Distiller):
        self._distiller = distiller

    def state_dict(self) -> dict[str, Any]:
        return {
            "methods": self._distiller.methods.state_dict(),
            "teachers": {t.source: t.fingerprint for t in self._distiller.teachers},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError where a teacher has other weights than when the run began."""
        for teacher in self._distiller.teachers:
            before = state["teachers"].get(teacher.source, teacher.fingerprint)
            if before != teacher.fingerprint:
                raise UserError(
                    f"--resume: the weights of the teacher {teacher.source} are not those that "
                    "this run began with"
                )
        self._distiller.methods.load_state_dict(state["methods"])


def build_distiller(cfg: CfgNode, student: nn.Module) -> Distiller:
    """
    The student with the methods that the config asks for, on MODEL.DEVICE. SOLVER.AMP.ENABLED on a
    CPU means bfloat16, where it has that; Detectron2's AMPTrainer is for CUDA alone.

    Raises:
        UserError: a teacher's file is missing; student, teacher and methods do not fit together.
    """
    half = mixed_precision("SOLVER.AMP.ENABLED", cfg.SOLVER.AMP.ENABLED, cfg.MODEL.DEVICE)
    dtype = torch.bfloat16 if half and cfg.MODEL.DEVICE == "cpu" else None
    check_config(cfg)
    mimics = cfg.MODEL.MIMICDET.MIMIC.ENABLED and isinstance(student, MimicDet)
    if not (mimics or cfg.DISTILLATION.METHODS):
        return Distiller(student, autocast_dtype=dtype).to(cfg.MODEL.DEVICE)
    adapter = build_adapter(student, cfg.INPUT.FORMAT)
    terms = _mimic_terms(cfg, adapter) if mimics else []
    if cfg.DISTILLATION.METHODS:
        terms += _taught_terms(cfg, adapter)
    return Distiller(student, terms, adapter, dtype).to(cfg.MODEL.DEVICE)


def _mimic_terms(cfg: CfgNode, adapter: DetectorAdapter) -> list[Term]:
    """MODEL.MIMICDET.MIMIC: the T-head in the student, or Table 5's from outside."""
    keys = cfg.MODEL.MIMICDET
    teacher = build_separate_teacher(cfg) if keys.SEPARATE_TEACHER.CONFIG_FILE else None
    teacher_layout = teacher.adapter.layout if teacher else adapter.layout
    method = DISTILLATION_REGISTRY.get("HeadMimic")(cfg, adapter.layout, teacher_layout)
    if teacher is not None:
        check_pair([method], adapter, teacher.adapter, teacher.source)
    return [Term(method, teacher, **_schedule(keys.MIMIC))]


def _taught_terms(cfg: CfgNode, adapter: DetectorAdapter) -> list[Term]:
    """DISTILLATION: every method of METHODS with the teacher of TEACHER."""
    teacher = _build_taught_teacher(cfg)
    terms = []
    for entry in cfg.DISTILLATION.METHODS:
        name, label = split_entry(entry)
        own_cfg = with_label(cfg, entry)
        method = DISTILLATION_REGISTRY.get(name)(own_cfg, adapter.layout, teacher.adapter.layout)
        schedule = _schedule(settings_of(own_cfg, type(method)))
        terms.append(Term(method, teacher, **schedule, label=label))
    check_pair([term.method for term in terms], adapter, teacher.adapter, teacher.source)
    return terms


def _build_taught_teacher(cfg: CfgNode) -> FrozenTeacher:
    node = cfg.DISTILLATION.TEACHER
    return build_teacher(cfg, load_teacher_config(cfg, node, "DISTILLATION.TEACHER"), node)


def inherit_from_teacher(cfg: CfgNode, distiller: Distiller, model: nn.Module) -> None:
    """
    DISTILLATION.INHERIT: give the model what it has in common with the teacher of TEACHER, see
    inherit.

    Args:
        distiller: of the run, which has that teacher already where METHODS has methods.
        model: the student, or the average of its weights that training begins with.
    """
    taught = cfg.DISTILLATION.METHODS  # their terms come last
    teacher = distiller.terms[-1].teacher if taught else _build_taught_teacher(cfg)
    inherit(model, teacher.model, teacher.source)


def _schedule(node: CfgNode) -> dict[str, Any]:
    """The keys of SCHEDULE in a node of settings, as arguments of Term."""
    return {key.lower(): node[key] for key in SCHEDULE}
