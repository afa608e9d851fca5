"""Detectron2's own pieces on a trained model: predictor, writers, counts, and what they show."""

import json
import math

import cv2
import pytest
import tiny_run
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.utils.analysis import FlopCountAnalysis, parameter_count
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mimicdet.engine import setup_cfg

COUNTS = [f"refine/num_positives_p{level}" for level in range(3, 8)]
COUNTS += ["student/num_foreground", "teacher/num_foreground"]
COSINES = ["mimic/cosine_cls", "mimic/cosine_loc"]


def test_default_predictor_finds_what_evaluation_found(data, trained):
    config = str(trained.output / "config.yaml")
    cfg = setup_cfg(config, ["MODEL.WEIGHTS", str(trained.output / "model_final.pth")])
    predictor = DefaultPredictor(cfg)
    assert predictor.metadata.thing_classes == list(tiny_run.CLASSES)
    found = predictor(cv2.imread(str(data.folder / "images" / "3.jpg")))["instances"]
    file = trained.output / "inference" / "coco_instances_results.json"
    evaluated = [x for x in json.loads(file.read_text()) if x["image_id"] == 3]
    assert len(found) == len(evaluated) > 0 and found.image_size == (96, 96)
    boxes = torch.tensor([x["bbox"] for x in evaluated])
    boxes[:, 2:] += boxes[:, :2]  # COCO's are XYWH
    torch.testing.assert_close(found.pred_boxes.tensor, boxes, rtol=1e-4, atol=1e-2)
    scores = torch.tensor([x["score"] for x in evaluated])
    torch.testing.assert_close(found.scores, scores, rtol=1e-4, atol=1e-5)
    assert [x["category_id"] - 1 for x in evaluated] == found.pred_classes.tolist()


@pytest.fixture(scope="module")
def events(trained):
    accumulator = EventAccumulator(str(trained.output), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def test_tensorboard_has_losses_counts_and_ap(events, trained):
    wanted = {*COUNTS, *COSINES, "total_loss", "bbox/AP", "bbox/AP50", "lr"}
    wanted |= {f"loss_mimic_{x}" for x in ("cls", "loc")}
    assert wanted <= set(events.Tags()["scalars"])
    lines = {x["iteration"]: x for x in tiny_run.metrics(trained.output)}
    written = {x.step: x.value for x in events.Scalars("bbox/AP")}
    assert math.isclose(written[40], lines[40]["bbox/AP"], rel_tol=1e-5)


def test_the_json_writer_has_the_same(trained):
    last = [x for x in tiny_run.metrics(trained.output) if "total_loss" in x][-1]
    # Boxes of 40 to 48 px are the finest level's (32 to 64 px), and no other level's.
    assert last["refine/num_positives_p3"] > 1
    assert all(last[key] == 0 for key in COUNTS[1:5])
    # The T-head draws 32 boxes an image, a quarter of them foreground at most.
    assert 0 < last["teacher/num_foreground"] <= 8
    assert last["teacher/num_foreground"] <= last["student/num_foreground"] <= 500
    # The mimic loss is 1 - cosine; both writers give medians over 20 steps of it.
    for branch in ("cls", "loc"):
        assert -1 <= last[f"mimic/cosine_{branch}"] <= 1
        total = last[f"mimic/cosine_{branch}"] + last[f"loss_mimic_{branch}"]
        assert math.isclose(total, 1, abs_tol=1e-3)


def test_pictures_of_proposals_at_vis_period(events):
    tags = [tag for tag in events.Tags()["images"] if "proposals" in tag]
    assert len(tags) == 1
    pictures = events.Images(tags[0])
    assert [x.step for x in pictures] == [0, 20]
    assert all(x.width >= 2 * 96 and x.height >= 96 for x in pictures)


def model_and_inputs(data, sparse):
    cfg = setup_cfg(str(data.config), ["MODEL.MIMICDET.STUDENT.SPARSE", str(sparse)])
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 128, 128), generator=generator, dtype=torch.uint8)
    return build_model(cfg).eval(), [{"image": image}]


def flops(data, sparse):
    model, inputs = model_and_inputs(data, sparse)
    # Every box is its anchor: none is empty and left out.
    torch.nn.init.zeros_(model.proposal_generator.anchor_deltas.weight)
    analysis = FlopCountAnalysis(model, inputs).unsupported_ops_warnings(False)
    return analysis.tracer_warnings("none").by_module_and_operator()


def test_flops_of_the_alignment_layers(data):
    """The multiply-adds of a 3x3 on P3 and 5x5 on P4..P7, 32 to 32 channels, on 128 x 128 px."""
    areas = [16**2, 8**2, 4**2, 2**2, 1]
    by_hand = 32 * 32 * (9 * areas[0] + 25 * sum(areas[1:]))
    # The offsets' 1x1 convs are linear layers on locations, and so are those of both branches.
    offsets = sum(areas) * (4 * 64 + 64 * 128) + 128 * 2 * by_hand // 32**2
    linear = sum(areas) * (2 * 32 * 32 + 32 * 3 + 32 * 4) + offsets
    dense = flops(data, sparse=False)["model.student_head"]
    assert dense["linear"] == linear and dense["deform_conv2d"] == by_hand
    # All 341 locations are requested, so that the sampled form does the same products.
    sparse = flops(data, sparse=True)["model.student_head"]
    assert sparse["deform_conv2d"] == 0
    assert sparse["linear"] == linear + by_hand
    # Sampling itself: four weighted rows of 32 channels a point.
    points = 9 * areas[0] + 25 * sum(areas[1:])
    assert sparse["embedding_bag"] == points * 4 * 32


def test_parameter_count(data):
    model, _ = model_and_inputs(data, sparse=True)
    counts = parameter_count(model)
    assert counts[""] == sum(p.numel() for p in model.parameters())
    # k3, k5: weights, biases and the offsets' three 1x1 convs; two features; logits; deltas.
    offsets = [4 * 64 + 64 + 64 * 128 + 128 + 128 * 2 * k * k + 2 * k * k for k in (3, 5)]
    convs = [32 * 32 * k * k + 32 for k in (3, 5)]
    assert counts["student_head"] == sum(offsets) + sum(convs) + 2 * (32 * 33) + 33 * 3 + 33 * 4
