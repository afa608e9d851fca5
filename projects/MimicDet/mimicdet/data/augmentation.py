"""Augmentation beside Detectron2's resize, flip and crop, of its own transforms."""

from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ..config import config_check


def add_jitter(cfg: CfgNode, augmentations: list[T.Augmentation]) -> list[T.Augmentation]:
    """
    The list with INPUT.SCALE_JITTER worked into its resize, and INPUT.COLOR_JITTER at its end,
    where the pixels are fewest.
    """
    out: list[T.Augmentation] = []
    for augmentation in augmentations:
        if cfg.INPUT.get("SCALE_JITTER") and isinstance(augmentation, T.ResizeShortestEdge):
            least, most = cfg.INPUT.SCALE_JITTER
            sizes, longest = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN
            shortest = round(min(sizes) * least), round(max(sizes) * most)
            out.append(T.ResizeShortestEdge(shortest, round(longest * most), "range"))
            out.append(T.RandomCrop("absolute", (longest, longest)))
        else:
            out.append(augmentation)
    if strength := cfg.INPUT.get("COLOR_JITTER", 0):
        kinds = (T.RandomBrightness, T.RandomContrast, T.RandomSaturation)
        out += [kind(1 - strength, 1 + strength) for kind in kinds]
    return out


@config_check
def _check_jitter(cfg: CfgNode) -> list[str]:
    problems = []
    if not 0 <= cfg.INPUT.COLOR_JITTER < 1:
        problems.append(f"INPUT.COLOR_JITTER must lie in [0, 1), got {cfg.INPUT.COLOR_JITTER}")
    jitter = cfg.INPUT.SCALE_JITTER
    if jitter and not (len(jitter) == 2 and 0 < jitter[0] <= jitter[1]):
        problems.append(f"INPUT.SCALE_JITTER must be (least, most) > 0 or empty, got {jitter}")
    return problems
