"""Predictor against Detectron2's DefaultPredictor."""

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor

from mimicdet.engine import Predictor, setup_cfg
from mimicdet.utils.errors import UserError


def noise(height, width, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def make_cfg(run_folder):
    def make(*opts):
        weights = ["MODEL.WEIGHTS", str(run_folder / "model_final.pth")]
        return setup_cfg(str(run_folder / "config.yaml"), [*weights, *opts])

    return make


def assert_same(out, reference, atol):
    assert out.image_size == reference.image_size
    assert len(out) == len(reference) > 0
    assert torch.equal(out.pred_classes, reference.pred_classes)
    torch.testing.assert_close(
        out.pred_boxes.tensor, reference.pred_boxes.tensor, rtol=0, atol=atol
    )
    torch.testing.assert_close(out.scores, reference.scores, rtol=0, atol=atol)


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_agrees_with_default_predictor(make_cfg, order):
    cfg = make_cfg("INPUT.FORMAT", order)
    image = noise(120, 90)
    reference = DefaultPredictor(cfg)(image)["instances"]
    assert_same(Predictor(cfg, optimize=False)(image)["instances"], reference, atol=0)
    assert_same(Predictor(cfg)(image)["instances"], reference, atol=1e-3)


def test_a_batch_gives_what_single_images_give(make_cfg):
    predictor = Predictor(make_cfg())
    images = [noise(64, 96), noise(64, 96, seed=1)]
    for together, image in zip(predictor.predict(images), images):
        assert_same(together, predictor(image)["instances"], atol=1e-3)
    assert predictor.predict([]) == []


def test_class_names_come_from_the_test_set(make_cfg):
    names = Predictor(make_cfg(), optimize=False).class_names
    assert names == ("circle", "square", "triangle", "star", "cross")
    cfg = make_cfg("DATASETS.TRAIN", (), "DATASETS.TEST", ())
    assert Predictor(cfg, optimize=False).class_names == ("0", "1", "2", "3", "4")


def test_options_reach_the_optimized_model(make_cfg):
    model = Predictor(make_cfg(), precision="bfloat16", compile_backbone=True).model
    assert model.backbone.bottom_up.res2[0].conv1.weight.dtype == torch.bfloat16
    assert model.backbone._compiled_call_impl is not None
    assert Predictor(make_cfg()).model.backbone._compiled_call_impl is None
    for options in ({"precision": "bfloat16"}, {"compile_backbone": True}):
        with pytest.raises(ValueError, match="need optimize=True"):
            Predictor(make_cfg(), optimize=False, **options)


def test_a_checkpoint_is_needed(make_cfg):
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        Predictor(make_cfg("MODEL.WEIGHTS", ""))
    with pytest.raises(UserError, match="none.pth"):
        Predictor(make_cfg("MODEL.WEIGHTS", "none.pth"))
