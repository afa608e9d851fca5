"""MimicDet where a caller, not MimicTrainer, trains it or chooses its precision."""

import logging

import pytest
import torch

from mimicdet import build_distiller, optimize_for_inference
from mimicdet.utils.errors import UserError
from tests.helpers import MIMIC_KEYS, make_input, small_cfg, small_model

WARNING = "adds no mimic loss"


def test_training_without_a_distiller_warns_once(caplog):
    caplog.set_level(logging.WARNING)
    model = small_model()
    for _ in range(2):
        assert not MIMIC_KEYS & set(model([make_input()]))
    assert [WARNING in x.message for x in caplog.records] == [True]


@pytest.mark.parametrize("mimic", [True, False])
def test_no_warning_where_nothing_is_missing(mimic, caplog):
    caplog.set_level(logging.WARNING)
    opts = ("MODEL.MIMICDET.MIMIC.ENABLED", mimic)
    losses = build_distiller(small_cfg(*opts), small_model(*opts)).train()([make_input()])
    assert MIMIC_KEYS <= set(losses) if mimic else not MIMIC_KEYS & set(losses)
    assert not any(WARNING in x.message for x in caplog.records)


def test_inference_leaves_a_callers_precision_alone():
    model, dtypes = small_model().eval(), []
    model.proposal_generator.conv.register_forward_hook(lambda *call: dtypes.append(call[2].dtype))
    model([make_input()])
    assert set(dtypes) == {torch.float32}
    dtypes.clear()
    with torch.autocast("cpu", torch.bfloat16):
        model([make_input()])
    assert set(dtypes) == {torch.bfloat16}


def test_a_copy_for_inference_says_why_it_has_no_t_head():
    with pytest.raises(UserError, match="'teacher'.*a copy for inference, which holds one head"):
        optimize_for_inference(small_model().eval()).set_eval_head("teacher")
