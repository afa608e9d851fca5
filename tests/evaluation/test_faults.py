"""Evaluation of a model that detects nothing, and of one whose predictions are not finite."""

import json
import math
from unittest import mock

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from torch import nn

from mimicdet.data import register_datasets
from mimicdet.engine import MimicTrainer, setup_cfg
from mimicdet.evaluation import finite_predictions
from mimicdet.utils.errors import UserError
from tests.distillation.tiny_detectors import FAMILIES, INPUTS, build_tiny
from tests.engine import tiny_run


def nothing_found(size=(96, 96), number=0):
    found = Instances(size)
    found.pred_boxes, found.scores = Boxes(torch.ones(number, 4)), torch.ones(number)
    found.pred_classes = torch.zeros(number, dtype=torch.int64)
    return {"instances": found}


def evaluate_nothing(address, output):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(output)
    evaluator = MimicTrainer.build_evaluator(cfg, address)
    evaluator.reset()
    for record in DatasetCatalog.get(address):
        evaluator.process([record], [nothing_found()])
    return evaluator.evaluate()["bbox"]


def registered(address):
    cfg = get_cfg()
    cfg.DATASETS.TEST = (address,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 0  # taken from the data
    register_datasets(cfg)
    return address


def test_coco_without_a_detection(tmp_path, clean_catalogs):
    content = tiny_run.coco_content()
    content["categories"].append({"id": 3, "name": "cross"})  # of which there is no object
    address = registered(tiny_run.write_coco(tmp_path / "data", content))
    results = evaluate_nothing(address, tmp_path)
    zero = {"AP", "AP50", "AP75", "APm", "AP-disc", "AP-square"}
    assert {name for name, value in results.items() if value == 0} == zero
    assert {name for name, x in results.items() if math.isnan(x)} == {"APs", "APl", "AP-cross"}
    assert json.loads((tmp_path / "inference/coco_instances_results.json").read_text()) == []


def test_voc_without_a_detection(tmp_path, clean_catalogs):
    address = registered(tiny_run.write_voc(tmp_path / "data"))
    assert set(evaluate_nothing(address, tmp_path).values()) == {0}


def test_kitti_without_a_detection(tmp_path, clean_catalogs):
    line = "Car 0 0 0 0 0 50 50 1 1 1 1 1 1 0"
    (tmp_path / "000007.txt").write_text(line)
    address = f"kitti:{tmp_path}:images"
    MetadataCatalog.get(address).set(label_dir=str(tmp_path), evaluator_type="kitti")
    DatasetCatalog.register(address, lambda: [{"image_id": "000007"}])
    results = evaluate_nothing(address, tmp_path)
    assert results["AP"] == results["AP-Car-easy"] == results["AP40"] == 0
    assert math.isnan(results["AP-Cyclist-easy"])  # none is there


# ---------------------------------------------------------------- predictions that are not finite


def call(model):
    """Each of INPUTS by itself."""
    for number, x in enumerate(INPUTS):
        with torch.no_grad():
            model([{**x, "file_name": f"image{number}.jpg"}])


def output_layers(model):
    """Layers that no other one follows, and one of the backbone."""
    last = ("cls_score", "bbox_pred", "ctrness", "class_logits", "box_values", "centerness")
    last += ("objectness_logits", "anchor_deltas", "box_deltas")
    found = [(n, m) for n, m in model.named_modules() if n.split(".")[-1] in last]
    used = [(n, m) for n, m in found if not n.startswith("roi_heads.") or "predictor" in n]
    convs = [(n, m) for n, m in model.backbone.named_modules() if isinstance(m, nn.Conv2d)]
    return [*used, convs[-1]]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_output_layer_of_each_family(family):
    model = build_tiny(family).eval()
    layers = output_layers(model)
    assert len(layers) > 2
    for name, layer in layers:
        before = layer.weight.data.clone()
        layer.weight.data.view(-1)[0] = math.nan
        with finite_predictions(model) as watched, pytest.raises(UserError) as caught:
            call(watched)
        assert "image0.jpg: the model's predictions are not finite" in str(caught.value), name
        layer.weight.data = before
    with finite_predictions(model) as watched:
        call(watched)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("field", ["pred_boxes", "scores"])
def test_a_detection_that_is_not_finite(field):
    outputs = [nothing_found(number=2), nothing_found(number=2)]
    found = outputs[1]["instances"].get(field)
    model = nn.Identity()
    model.forward = lambda _: outputs
    with finite_predictions(model) as watched:
        assert watched([{"image_id": 3}, {"image_id": 7}]) is outputs
        (found.tensor if field == "pred_boxes" else found)[1] = math.inf
        with pytest.raises(UserError, match="^7: the model's predictions are not finite"):
            watched([{"image_id": 3}, {"image_id": 7}])


def test_other_errors_and_the_mode_stay():
    model = nn.Linear(1, 1).eval()
    with finite_predictions(model) as watched:
        assert not watched.training
    model.forward = mock.Mock(side_effect=AssertionError("another"))
    with finite_predictions(model) as watched, pytest.raises(AssertionError, match="another"):
        watched([])


def test_there_is_no_table_of_ap_for_it(tmp_path, clean_catalogs):
    address = tiny_run.write_coco(tmp_path / "data")
    path = tiny_run.write_config(tmp_path / "tiny.yaml", address)
    cfg = setup_cfg(str(path), ["OUTPUT_DIR", str(tmp_path)])
    model = MimicTrainer.build_model(cfg)
    model.student_head.class_logits.bias.data.fill_(math.nan)
    with pytest.raises(UserError, match=r"images/1\.jpg: the model's predictions are not finite"):
        MimicTrainer.test(cfg, model)
    assert not (tmp_path / "inference" / "coco_instances_results.json").exists()
