"""MODEL.MIMICDET.OPTIMIZER."""

import pytest
import torch

from mimicdet.config import load_config
from mimicdet.engine import MimicTrainer


def optimizer(name):
    cfg = load_config(
        "configs/Base-MimicDet.yaml",
        [
            *("MODEL.MIMICDET.OPTIMIZER", name),
            *("SOLVER.BASE_LR", 0.125, "SOLVER.WEIGHT_DECAY", 0.25),
            *("SOLVER.WEIGHT_DECAY_NORM", 0.0, "SOLVER.CLIP_GRADIENTS.ENABLED", True),
            *("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"),
        ],
    )
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    return MimicTrainer.build_optimizer(cfg, model), model


@pytest.mark.parametrize(("name", "base"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_rates_and_decays_are_the_solver_keys(name, base):
    built, model = optimizer(name)
    assert isinstance(built, base)
    rates = {group["lr"] for group in built.param_groups}
    decay = {id(p): group["weight_decay"] for group in built.param_groups for p in group["params"]}
    assert rates == {0.125}
    assert decay[id(model[0].weight)] == 0.25 and decay[id(model[1].weight)] == 0.0
    assert len(decay) == 4


def test_gradients_are_clipped_with_adamw_too():
    built, model = optimizer("adamw")
    (model[0].weight * 1000).sum().backward()
    built.step()
    assert model[0].weight.grad.norm() == pytest.approx(1.0, rel=1e-4)


def test_an_unknown_optimizer_is_an_error():
    with pytest.raises(ValueError, match="MODEL.MIMICDET.OPTIMIZER"):
        optimizer("adam")
