"""A device that is not the CPU: no tensor is left behind."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from mimicdet import optimize_for_inference
from mimicdet.distillation import Distiller, Term, build_adapter, build_distiller
from mimicdet.distillation.methods.head_mimic import HeadMimic
from mimicdet.modeling.layers.sparse_conv import RowLayout
from tests import stand_in_gpu
from tests.distillation.test_taught import EVERYWHERE
from tests.distillation.tiny_detectors import INPUTS, build_tiny, taught_cfg, write_teacher
from tests.helpers import make_input, randomise_refinement, small_model
from tests.stand_in_gpu import StandIn, real

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="there is a GPU: the stand-in would be in its way"
)


@pytest.fixture
def forgotten():
    """What is kept by device is forgotten before and after."""
    RowLayout.of.cache_clear()
    yield
    RowLayout.of.cache_clear()


def inputs():
    return [make_input((96, 130)), make_input((70, 61), seed=1)]


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize(
    "alignment, eval_head",
    [("guided", "student"), ("deform", "student"), ("conv", "student"), ("guided", "teacher")],
)
def test_detections_on_a_stand_in_for_a_gpu(
    optimized, alignment, eval_head, monkeypatch, forgotten
):
    opts = ["MODEL.MIMICDET.STUDENT.ALIGNMENT", alignment, "MODEL.MIMICDET.EVAL_HEAD", eval_head]
    if alignment != "guided":
        opts += ["MODEL.MIMICDET.STUDENT.OFFSET_INIT", "random"]
    model = small_model(*opts).eval()
    randomise_refinement(model, std=0.05)
    if eval_head == "teacher":  # the T-head's features are large
        for layer, std in (
            (model.roi_heads.class_logits, 5e-3),
            (model.roi_heads.box_deltas, 5e-4),
        ):
            layer.weight.data.normal_(std=std, generator=torch.Generator().manual_seed(1))
    if optimized:
        model = optimize_for_inference(model)
    expected = model(inputs())
    model.proposal_generator._kept_anchors.clear()
    stand_in_gpu.move(model)
    with stand_in_gpu.gpu(monkeypatch) as copies:
        model(inputs())
        copies.clear()
        actual = model(inputs())
    for detection, reference in zip(actual, expected, strict=True):
        detection, reference = detection["instances"], reference["instances"]
        assert len(detection) == len(reference) > 20
        assert isinstance(detection.pred_boxes.tensor, StandIn) and isinstance(
            detection.scores, StandIn
        )
        boxes, scores = real(detection.pred_boxes.tensor), real(detection.scores)
        torch.testing.assert_close(boxes, reference.pred_boxes.tensor, rtol=0, atol=0.1)
        torch.testing.assert_close(scores, reference.scores, rtol=0, atol=1e-4)
    assert sum(copies.values()) <= 1  # how many locations each image has


@pytest.mark.parametrize("sparse", [True, False])
def test_losses_on_a_stand_in_for_a_gpu(sparse, monkeypatch, forgotten):
    """One training step's losses, the mimic loss and the logs; not the backward pass."""
    alignment = "guided" if sparse else "conv"  # dense, the others need Detectron2's CUDA operator
    opts = ["MODEL.MIMICDET.STUDENT.SPARSE", sparse, "MODEL.MIMICDET.STUDENT.ALIGNMENT", alignment]
    model = small_model(*opts, "MODEL.MIMICDET.STUDENT.OFFSET_INIT", "random")
    randomise_refinement(model, std=0.05)
    distiller = Distiller(model, [Term(HeadMimic(dual_path=True))], build_adapter(model, "BGR"))
    distiller.train()
    boxes = [[10.0, 10.0, 50.0, 60.0], [40.0, 20.0, 90.0, 80.0]]
    batch = [make_input((96, 130), boxes, crowds=[[60, 0, 90, 30]]), make_input((70, 61), seed=1)]

    def losses():
        torch.manual_seed(0)
        with torch.no_grad(), EventStorage() as storage:
            return distiller(batch), storage.latest()

    expected, expected_logs = losses()
    model.proposal_generator._kept_anchors.clear()
    stand_in_gpu.move(distiller)
    with stand_in_gpu.gpu(monkeypatch):
        actual, logs = losses()
    assert actual.keys() == expected.keys() and len(actual) == 8 and logs == expected_logs
    for key, value in actual.items():
        assert isinstance(value, StandIn), key
        torch.testing.assert_close(real(value), expected[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["RetinaNet", "FCOS", "ATSS", "GFL"])
def test_teaching_on_a_stand_in_for_a_gpu(family, tmp_path, monkeypatch):
    """The losses of every method between two detectors."""
    methods = EVERYWHERE + ["LD"] * (family == "GFL")
    write_teacher(tmp_path, family)
    torch.manual_seed(0)
    distiller = build_distiller(taught_cfg(tmp_path, family, methods), build_tiny(family)).train()
    with torch.no_grad(), EventStorage():
        expected = distiller(INPUTS)
    for model in (distiller, *(teacher.model for teacher in distiller.teachers)):
        stand_in_gpu.move(model)
    with stand_in_gpu.gpu(monkeypatch), EventStorage():
        actual = distiller(INPUTS)
    assert actual.keys() == expected.keys()
    assert all(isinstance(value, StandIn) for value in actual.values())
    taught = [key for key in actual if not key.startswith(("loss_cls", "loss_box", "loss_fcos"))]
    assert len(taught) >= 6  # without Detectron2's own, whose normalizers are running means
    for key in taught:
        torch.testing.assert_close(real(actual[key]), expected[key], rtol=1e-4, atol=1e-7)


def test_the_stand_in_finds_what_is_left_on_the_cpu(monkeypatch):
    with stand_in_gpu.gpu(monkeypatch):
        x = torch.zeros(3, device="cuda")
        assert isinstance(x, StandIn) and x.device.type == "cuda"
        assert isinstance((x + 1)[x == 0], StandIn) and not isinstance(x.cpu(), StandIn)
        assert isinstance(torch.ones(2).to(x.device), StandIn)
        for mixed in (
            lambda: x + torch.ones(3),
            lambda: torch.cat([x, torch.ones(3)]),
            lambda: x[torch.zeros(1, dtype=torch.int64)],
            lambda: torch.ones(3)[x.long()],
        ):
            with pytest.raises(RuntimeError, match="tensors of the CPU"):
                mixed()
