"""MODEL.INIT_BY_NAME: what two configs share starts alike, and the data come in one order."""

import pytest
import torch
from torch import nn

from mimicdet.engine import MimicTrainer, setup_cfg
from mimicdet.engine.initial import build_by_name
from tests.engine.tiny_run import write_coco, write_config

ALONE = ["MODEL.MIMICDET.TEACHER.ENABLED", "False", "MODEL.MIMICDET.MIMIC.ENABLED", "False"]
# Another alignment layer is built before the rest of the S-head and draws other numbers.
OTHER = ["MODEL.MIMICDET.STUDENT.ALIGNMENT", "conv"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("initial")
    return str(write_config(root / "tiny.yaml", write_coco(root)))


def parameters(config, *opts):
    model = MimicTrainer.build_model(setup_cfg(config, ["MODEL.INIT_BY_NAME", "True", *opts]))
    return dict(model.named_parameters())


def alike(a, b):
    """Names that both have in one shape -> whether the values are equal."""
    shared = [name for name in a if name in b and a[name].shape == b[name].shape]
    return {name: torch.equal(a[name], b[name]) for name in shared}


def test_two_configs_share_what_they_have_in_common(config):
    with_teacher = parameters(config)
    for opts in (ALONE, [*ALONE, *OTHER]):
        torch.rand(7)  # whatever was drawn before does not matter
        equal = alike(with_teacher, parameters(config, *opts))
        assert all(equal.values())
        assert sum(name.startswith("student_head.") for name in equal) > 6
        assert sum(name.startswith("backbone.") for name in equal) > 30
    without_names = [*OTHER, "MODEL.INIT_BY_NAME", "False"]
    torch.manual_seed(2)
    first = parameters(config, "MODEL.INIT_BY_NAME", "False")
    torch.manual_seed(2)
    assert not all(alike(first, parameters(config, *without_names)).values())


def test_seed_and_distribution_still_count(config):
    first = parameters(config)
    other_seed = alike(first, parameters(config, "SEED", "3"))
    assert not any(same for name, same in other_seed.items() if first[name].unique().numel() > 1)
    gaussian = alike(first, parameters(config, "MODEL.MIMICDET.STUDENT.INIT", "gaussian"))
    assert {name.split(".")[0] for name, same in gaussian.items() if not same} == {"student_head"}
    with pytest.raises(ValueError, match="INIT_BY_NAME needs a SEED of at least 0, got -1"):
        parameters(config, "SEED", "-1")


def test_values_differ_between_names_and_random_numbers_go_on():
    state = torch.get_rng_state()
    model = build_by_name(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(model[0].weight, model[1].weight)
    # Uniform within 1/sqrt(4), as nn.Linear draws it.
    values = build_by_name(lambda: nn.Linear(4, 1000), 1).weight
    assert values.abs().max() <= 0.5 and abs(values.std().item() - 0.5 / 3**0.5) < 0.01


def test_a_model_that_changes_its_mind_is_refused():
    for sizes in ([2, 1], [1, 2]):
        with pytest.raises(ValueError, match="not built alike"):
            build_by_name(
                lambda: nn.Sequential(*(nn.Linear(2, 2) for _ in range(sizes.pop()))),  # noqa: B023
                1,
            )


def test_both_arms_see_the_same_images(config):
    def image_ids(*opts):
        loader = MimicTrainer.build_train_loader(
            setup_cfg(config, ["SOLVER.IMS_PER_BATCH", "1", *opts])
        )
        batches = iter(loader)
        return [next(batches)[0]["image_id"] for _ in range(9)]

    assert image_ids() == image_ids(*ALONE, *OTHER)
    assert image_ids() != image_ids("SEED", "3")
