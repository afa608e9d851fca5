"""The exportable graph, still in PyTorch, against the eager model."""

import pytest
import torch
from detectron2.layers import batched_nms

from mimicdet.export.detector import ExportableDetector
from mimicdet.export.nms import kept_by_nms
from mimicdet.export.verify import to_batch
from mimicdet.modeling.layers import ALIGNMENTS
from tests.export.conftest import assert_same, decided_model, eager, noise

KERNELS = "MODEL.MIMICDET.STUDENT.KERNEL_SIZES"
ALIGNMENT = "MODEL.MIMICDET.STUDENT.ALIGNMENT"
MIMIC = "MODEL.MIMICDET.MIMIC.ENABLED"
FINER = ("MODEL.MIMICDET.STUDENT.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"])


def run(detector, images):
    return detector(*map(torch.from_numpy, to_batch(images)))


@pytest.mark.parametrize(
    "opts",
    [
        (),
        (KERNELS, [5, 5, 5, 5, 5]),
        (KERNELS, [1, 3, 5, 3, 1]),
        *((ALIGNMENT, name) for name in sorted(ALIGNMENTS)),
        ("MODEL.MIMICDET.STUDENT.DUAL_PATH", False, "MODEL.MIMICDET.TEACHER.HEAD", "light"),
        ("MODEL.MIMICDET.TEACHER.ENABLED", False, MIMIC, False),
        FINER,
        (*FINER, ALIGNMENT, "deform", "MODEL.MIMICDET.TEACHER.ENABLED", False, MIMIC, False),
    ],
)
def test_agrees_with_the_eager_model(opts):
    model = decided_model(*opts)
    images = [noise(90, 120, 1), noise(64, 64, 2), noise(131, 75, 3)]
    expected = eager(model, images)
    assert sum(map(len, expected)) > 20
    assert_same(run(ExportableDetector(model), images), expected)


def test_nothing_found():
    model = decided_model("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0)
    outputs = run(ExportableDetector(model), [noise(64, 96, 0)])
    assert [tuple(x.shape) for x in outputs] == [(1, 40, 4), (1, 40), (1, 40), (1,)]
    assert not any(x.any() for x in outputs)


def test_more_detections_wanted_than_there_are_boxes_and_classes():
    opts = ("TEST.DETECTIONS_PER_IMAGE", 100, "MODEL.RPN.POST_NMS_TOPK_TEST", 20)
    model = decided_model(*opts, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    images = [noise(64, 96, 0)]
    outputs = run(ExportableDetector(model), images)
    assert outputs[0].shape == (1, 100, 4)
    assert_same(outputs, eager(model, images))


@pytest.mark.parametrize("std", [[2.0, 2.0, 2.0], [1.0, 2.0, 4.0]])
def test_what_lies_outside_an_image_does_not_matter(std):
    model = decided_model("MODEL.PIXEL_STD", std)
    detector, images = ExportableDetector(model), [noise(64, 64, 0), noise(90, 120, 1)]
    pixels, sizes = map(torch.from_numpy, to_batch(images))
    expected = detector(pixels, sizes)
    assert_same(expected, eager(model, images))
    pixels[0, :, 64:], pixels[0, :, :, 64:] = 1e30, 255.0
    for actual, reference in zip(detector(pixels, sizes), expected):
        assert torch.equal(actual, reference)


def test_holds_the_student_alone_and_leaves_the_model_as_it_was():
    model = decided_model()
    names = set(model.state_dict())
    own = set(ExportableDetector(model).state_dict())
    assert set(model.state_dict()) == names
    assert not [name for name in own if "roi_heads" in name or "lateral2" in name]
    assert any("fpn_lateral3" in name for name in own)


def test_teacher_is_refused():
    model = decided_model()
    model.set_eval_head("teacher")
    with pytest.raises(ValueError, match="EVAL_HEAD.*'teacher'.*'student'"):
        ExportableDetector(model)


def test_nms_keeps_what_detectron2_keeps():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(3, 60, 2, generator=generator) * 50
    boxes = torch.cat([corners, corners + 5 + 30 * torch.rand(3, 60, 2, generator=generator)], 2)
    scores = torch.rand(3, 60, 4, generator=generator)
    kept = kept_by_nms(boxes, scores, 0.3, 0.5, 100)
    for i in range(3):
        box, label = torch.nonzero(scores[i] > 0.3).unbind(1)
        keep = batched_nms(boxes[i, box], scores[i, box, label], label, 0.5)
        expected = torch.zeros(60, 4, dtype=torch.bool)
        expected[box[keep], label[keep]] = True
        assert torch.equal(kept[i], expected)
    assert 0 < kept.sum() < (scores > 0.3).sum()


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_exported_nms_may_keep_none(count):
    class Kept(torch.nn.Module):
        def forward(self, boxes, scores):
            return kept_by_nms(boxes, scores, 0.3, 0.5, 100)

    corners = torch.arange(10.0).reshape(1, 5, 2) * 20  # apart from each other
    boxes, scores = torch.cat([corners, corners + 9], dim=2), torch.full((1, 5, 3), 0.9)
    program = torch.export.export(Kept(), (boxes, scores)).module()
    scores = torch.zeros(1, 5, 3)
    scores[0, :count, 1] = 0.9
    assert torch.equal(program(boxes, scores), scores > 0.3)


def test_float16_moves_the_boxes_a_little():
    model = decided_model()
    images = [noise(90, 120, 1)]
    half = run(ExportableDetector(model, precision="float16"), images)
    full = run(ExportableDetector(model), images)
    assert half[0].dtype == torch.float32
    assert 0 < (half[1] - full[1]).abs().max() < 0.05
