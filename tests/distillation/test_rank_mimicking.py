"""Which numbers rank mimicking ranks: the object's own class, and the IoU with its own box."""

from types import SimpleNamespace

import pytest
import torch

from mimicdet.distillation import Positives
from mimicdet.distillation.losses import rank_loss
from mimicdet.distillation.methods.rank_mimicking import RankMimicking

FOUND = Positives(
    images=torch.zeros(5, dtype=torch.int64),
    anchors=torch.arange(5),
    objects=torch.tensor([0, 0, 1, 1, 1]),
    gt_boxes=torch.tensor([[0.0, 0, 10, 10]] * 2 + [[20.0, 0, 40, 20]] * 3),
    gt_classes=torch.tensor([2, 2, 0, 0, 0]),
    num_objects=2,
)
SHIFTS = {"student": [0.0, 2, 0, 5, 10], "teacher": [5.0, 0, 10, 2, 0]}


def side(name, seed, width):
    """A detector whose boxes are the objects', shifted to the right."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, width, generator=generator)
    shift = torch.tensor(SHIFTS[name])[:, None] * torch.tensor([[1.0, 0, 1, 0]])
    return logits, SimpleNamespace(
        positives=FOUND,
        class_logits_at=lambda asked: logits,
        pred_boxes_at=lambda asked: FOUND.gt_boxes + shift,
    )


@pytest.mark.parametrize(
    "reading, scores, width",
    [
        ("sigmoid", "probability", 3),
        ("joint", "logit", 3),
        ("softmax", "probability", 4),
        ("softmax", "logit", 4),
    ],
)
def test_class_rank_is_of_the_objects_class(reading, scores, width):
    method = RankMimicking(
        class_rank=True, box_rank=False, class_scores=scores, student=reading, teacher=reading
    )
    logits, sides = zip(side("student", 1, width), side("teacher", 2, width))
    values = []
    for table in logits:
        if scores == "probability":
            table = table.softmax(1) if reading == "softmax" else table.sigmoid()
        values.append(torch.stack([table[i, c] for i, c in enumerate([2, 2, 0, 0, 0])]))
    losses = method(*sides)
    assert list(losses) == ["loss_rank_cls"]
    torch.testing.assert_close(losses["loss_rank_cls"], rank_loss(*values, FOUND.objects, 2))


def test_box_rank_is_of_the_iou_with_the_object():
    method = RankMimicking(
        class_rank=False, box_rank=True, class_scores="logit", student="", teacher=""
    )
    (_, student), (_, teacher) = side("student", 1, 3), side("teacher", 2, 3)
    values = []
    for name in ("student", "teacher"):
        widths = [10, 10, 20, 20, 20]
        values.append(torch.tensor([(w - s) / (w + s) for w, s in zip(widths, SHIFTS[name])]))
    expected = rank_loss(*values, FOUND.objects, 2)
    assert expected > 0.01
    torch.testing.assert_close(method(student, teacher)["loss_rank_loc"], expected)
    assert method.loss_names == ("loss_rank_loc",) and "classes" not in method.agrees_on
