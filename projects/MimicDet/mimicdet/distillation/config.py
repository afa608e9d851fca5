"""The node DISTILLATION: a frozen teacher from outside and the methods that it teaches by."""

from detectron2.config import CfgNode as CN

from ..config import config_check, config_defaults
from .methods.base import DISTILLATION_REGISTRY, SCHEDULE


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
    # A method may come once more as "Name:label", which appends _label to its losses' names.
    _C.METHODS = []
    # What a label changes in the settings of its method: a node for each label, with some keys of
    # DISTILLATION.<Name>. A file names them, overrides of a command line may change them:
    #   METHODS: ["FeatureImitation", "FeatureImitation:coarse"]
    #   LABELS: {coarse: {LEVELS: [3, 4], LOSS_WEIGHT: 0.01}}
    _C.LABELS = CN(new_allowed=True)

    # ---------------------------------------------------------------- the teacher
    _C.TEACHER = CN()
    # Config file and checkpoint of a trained detector. It is never trained or saved.
    _C.TEACHER.CONFIG_FILE = ""
    _C.TEACHER.WEIGHTS = ""
    # Its forward in half precision: float16 on a GPU, bfloat16 on a CPU.
    _C.TEACHER.AMP = False

    # Whether a new run's student starts with what the teacher has by the same name and shape,
    # norms' statistics too: all but the network below the pyramid, which stays as MODEL.WEIGHTS or
    # chance made it. It needs no method. Not in the papers.
    _C.INHERIT = False

    # ---------------------------------------------------------------- a node for each method
    for name, method in sorted(DISTILLATION_REGISTRY):
        settings = method.default_config()
        if settings is None:
            continue
        _C[name] = CN()
        # Factor of each of its losses.
        _C[name].LOSS_WEIGHT = 1.0
        # Above 0, in place of LOSS_WEIGHT: so many times the factor at which the gradient of the
        # sum of its losses on the student's maps has the norm of that of the student's own losses,
        # found anew in each step. It takes another backward pass through the head, and one for all
        # methods together. Not in the papers.
        _C[name].GRADIENT_RATIO = 0.0
        # Before this iteration the losses are 0.
        _C[name].START_ITER = 0
        # From there the factor grows in a straight line from 0 over so many iterations; 0: it does
        # not.
        _C[name].WARMUP_ITERS = 0
        # From this iteration on the losses are 0; 0: they stay to the end.
        _C[name].STOP_ITER = 0
        _C[name].update(settings)


def split_entry(entry: str) -> tuple[str, str]:
    """(name, label) of an entry of METHODS, "Name" or "Name:label"; the label may be ""."""
    name, _, label = entry.partition(":")
    return name, label


def with_label(cfg: CN, entry: str) -> CN:
    """
    The config for a method's entry in METHODS: DISTILLATION.<Name> holds what its label changes.
    Raises KeyError or ValueError for keys that the method lacks and values of another type.
    """
    name, label = split_entry(entry)
    if label:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DISTILLATION[name].merge_from_other_cfg(cfg.DISTILLATION.LABELS[label])
    return cfg


@config_check
def check_distillation_config(cfg: CN) -> list[str]:
    """Every contradiction in DISTILLATION, a line each; no file is looked at."""
    node = cfg.DISTILLATION
    problems = [problem for entry in node.METHODS for problem in _check_entry(cfg, entry)]
    if len(set(node.METHODS)) < len(node.METHODS):
        problems.append(
            f"DISTILLATION.METHODS {list(node.METHODS)} names a method twice: the second can be "
            '"Name:label", see DISTILLATION.LABELS'
        )
    for key in ("METHODS", "INHERIT"):
        if node[key] and not (node.TEACHER.CONFIG_FILE and node.TEACHER.WEIGHTS):
            problems.append(f"DISTILLATION.{key} needs TEACHER.CONFIG_FILE and TEACHER.WEIGHTS")
    unused = not (node.METHODS or node.INHERIT)
    if unused and (node.TEACHER.CONFIG_FILE or node.TEACHER.WEIGHTS):
        problems.append("DISTILLATION.TEACHER is set, but METHODS is empty and INHERIT is False")
    return problems


def _check_entry(cfg: CN, entry: str) -> list[str]:
    node = cfg.DISTILLATION
    nodes = {key for key, value in node.items() if isinstance(value, CN)}
    known = sorted(nodes - {"LABELS", "TEACHER"})
    name, label = split_entry(entry)
    if name not in known:
        return [f"DISTILLATION.METHODS names {name!r}, which is none of {', '.join(known)}"]
    if label and label not in node.LABELS:
        return [f"DISTILLATION.METHODS names {entry!r}, but there is no node LABELS.{label}"]
    try:
        settings = with_label(cfg, entry).DISTILLATION[name]
    except (KeyError, ValueError) as error:  # of a merge of configs, which says which key
        return [f"DISTILLATION.LABELS.{label}, for {name}: {error.args[0]}"]
    source = f"LABELS.{label}" if label else name
    if 0 < settings.STOP_ITER <= settings.START_ITER:
        return [
            f"DISTILLATION.{source}.STOP_ITER {settings.STOP_ITER} must be above START_ITER "
            f"{settings.START_ITER}"
        ]
    return [
        f"DISTILLATION.{source}.{key} is {settings[key]}, below 0"
        for key in SCHEDULE
        if settings[key] < 0
    ]
