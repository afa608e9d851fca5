"""Images with and without objects in every mix: the same losses, and each parameter a gradient."""

import pytest
import torch

from mimicdet.distillation import DISTILLATION_REGISTRY, build_distiller
from mimicdet.utils.errors import UserError
from tests.distillation.tiny_detectors import (
    FAMILIES,
    build_tiny,
    distiller_of,
    losses_of,
    taught_cfg,
    tiny_cfg,
    write_teacher,
)
from tests.helpers import P3_BOX, P4_BOX, make_input

IMAGES = {
    "empty": make_input(boxes=[]),
    "objects": make_input(boxes=[P3_BOX, P4_BOX], seed=1),
    "crowd": make_input(boxes=[], crowds=[[8.0, 8.0, 60.0, 56.0]], seed=2),
    "tiny": make_input(boxes=[[10.0, 10.0, 12.0, 11.0], [20.0, 20.0, 20.01, 20.5]], seed=3),
}
MIXES = [*((kind, kind) for kind in IMAGES), ("empty", "objects"), tuple(IMAGES)]
SOME = [("empty", "crowd"), ("tiny", "tiny"), tuple(IMAGES)]
METHODS = [name for name, x in DISTILLATION_REGISTRY if x.default_config() is not None]
VARIANTS = {
    "conv": {"MIMICDET__STUDENT__ALIGNMENT": "conv"},
    "deform": {"MIMICDET__STUDENT__ALIGNMENT": "deform"},
    "guidance trains": {"MIMICDET__STUDENT__DETACH_GUIDANCE": False},
    "dense": {"MIMICDET__STUDENT__SPARSE": False},
    "one path": {"MIMICDET__STUDENT__DUAL_PATH": False, "MIMICDET__TEACHER__HEAD": "light"},
    "heavy": {"MIMICDET__STUDENT__DUAL_PATH": False, "MIMICDET__TEACHER__HEAD": "heavy"},
    "teacher learns": {"MIMICDET__MIMIC__DETACH_TEACHER": False},
    "no teacher": {"MIMICDET__TEACHER__ENABLED": False, "MIMICDET__MIMIC__ENABLED": False},
    "two-stage": {
        "MIMICDET__STUDENT__ENABLED": False,
        "MIMICDET__MIMIC__ENABLED": False,
        "MIMICDET__EVAL_HEAD": "teacher",
    },
    "nearest anchors": {
        "MIMICDET__REFINEMENT__MATCH_NEAREST": True,
        "MIMICDET__REFINEMENT__CLS_NORMALIZER": "anchors",
        "MIMICDET__STUDENT__REG_NORMALIZER": "positives",
    },
}


def taught(folder, family):
    """A student of the family with every method that can teach it, MimicDet's own too."""
    write_teacher(folder, family)
    fitting = []
    for name in METHODS:
        try:
            distiller_of(taught_cfg(folder, family, [name]))
        except UserError:
            continue
        fitting.append(name)
    assert fitting
    return distiller_of(taught_cfg(folder, family, fitting))


def check(distiller, mixes):
    """Losses and gradients of each mix; returns the losses' names."""
    keys = None
    for mix in mixes:
        distiller.zero_grad()
        torch.manual_seed(0)
        losses = losses_of(distiller, [IMAGES[name] for name in mix])
        keys = keys or set(losses)
        assert set(losses) == keys, mix
        assert all(torch.isfinite(x) and x.requires_grad for x in losses.values()), (mix, losses)
        sum(losses.values()).backward()
        for name, parameter in distiller.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, (mix, name)
                assert torch.isfinite(parameter.grad).all(), (mix, name)
    return keys


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_every_method(family, tmp_path):
    distiller = taught(tmp_path, family)
    assert {x for method in distiller.methods for x in method.loss_names} < check(distiller, MIXES)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_mimicdet(variant):
    changes = VARIANTS[variant]
    model = build_tiny("MimicDet", **changes)
    check(build_distiller(tiny_cfg("MimicDet", **changes), model).train(), SOME)
