"""The node DISTILLATION: a frozen teacher from outside and the methods that it teaches by."""

from detectron2.config import CfgNode as CN

from ..config import config_check, config_defaults
from .methods.base import DISTILLATION_REGISTRY


@config_defaults
def add_distillation_config(cfg: CN) -> None:
    """
    Add DISTILLATION to a config, in place, with a node of settings for every registered method. A
    method that is registered later than a config was made is unknown to that config.
    """
    cfg.DISTILLATION = CN()
    _C = cfg.DISTILLATION

    # Methods of the teacher below, each by the name of its class and of its node of settings;
    # empty: none. MimicDet's own mimic loss is MODEL.MIMICDET.MIMIC and is not listed here.
    _C.METHODS = []

    # ---------------------------------------------------------------- the teacher
    _C.TEACHER = CN()
    # Config file and checkpoint of a trained detector. It is never trained or saved.
    _C.TEACHER.CONFIG_FILE = ""
    _C.TEACHER.WEIGHTS = ""
    # Its forward in half precision: float16 on a GPU, bfloat16 on a CPU.
    _C.TEACHER.AMP = False

    # ---------------------------------------------------------------- a node for each method
    for name, method in sorted(DISTILLATION_REGISTRY):
        settings = method.default_config()
        if settings is not None:
            _C[name] = _with_schedule(settings)


def _with_schedule(settings: CN) -> CN:
    node = CN()
    # Factor of each of its losses.
    node.LOSS_WEIGHT = 1.0
    # The factor grows in a straight line from 0 over so many iterations; 0: it is there at once.
    node.WARMUP_ITERS = 0
    # From this iteration on the losses are 0; 0: they stay to the end.
    node.STOP_ITER = 0
    for key, value in settings.items():
        node[key] = value
    return node


@config_check
def check_distillation_config(cfg: CN) -> list[str]:
    """Every contradiction in DISTILLATION, a line each; no file is looked at."""
    node = cfg.DISTILLATION
    known = sorted(name for name in node if name not in ("METHODS", "TEACHER"))
    problems = []
    for name in node.METHODS:
        if name not in known:
            problems.append(
                f"DISTILLATION.METHODS names {name!r}, which is none of {', '.join(known)}"
            )
            continue
        for key in ("LOSS_WEIGHT", "WARMUP_ITERS", "STOP_ITER"):
            if node[name][key] < 0:
                problems.append(f"DISTILLATION.{name}.{key} is {node[name][key]}, below 0")
    if len(set(node.METHODS)) < len(node.METHODS):
        problems.append(f"DISTILLATION.METHODS {list(node.METHODS)} names a method twice")
    if node.METHODS and not (node.TEACHER.CONFIG_FILE and node.TEACHER.WEIGHTS):
        problems.append("DISTILLATION.METHODS needs TEACHER.CONFIG_FILE and TEACHER.WEIGHTS")
    if not node.METHODS and (node.TEACHER.CONFIG_FILE or node.TEACHER.WEIGHTS):
        problems.append("DISTILLATION.TEACHER is set, but METHODS is empty")
    return problems
