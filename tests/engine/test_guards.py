"""A loss or gradient that is not finite stops training before it reaches a weight or a file."""

import math
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import tiny_run
import torch
from detectron2.engine import AMPTrainer

from mimicdet.engine import MimicTrainer, guards, setup_cfg
from mimicdet.utils.errors import UserError
from tests.helpers import LOSS_KEYS, MIMIC_KEYS

STEPS = "SOLVER.MAX_ITER 3 SOLVER.STEPS () SOLVER.WARMUP_ITERS 0 SOLVER.CHECKPOINT_PERIOD 1".split()
LAST = 2  # the last iteration
TERMS = (*LOSS_KEYS, *MIMIC_KEYS, "loss_feature")
PARAMETER = "student_head.class_logits.weight"


@pytest.fixture(scope="module")
def taught(data, tmp_path_factory):
    """Overrides that let another tiny MimicDet teach the tiny MimicDet."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    teacher = MimicTrainer.build_model(setup_cfg(str(data.config)))
    torch.save({"model": teacher.state_dict()}, path)
    yield [
        *("DISTILLATION.METHODS", "['FeatureImitation']"),
        *("DISTILLATION.TEACHER.CONFIG_FILE", str(data.config)),
        *("DISTILLATION.TEACHER.WEIGHTS", str(path)),
    ]
    path.unlink()


@pytest.fixture
def trainer_of(data, tmp_path):
    """A trainer of three iterations of two images that saves after each, and then evaluates."""
    output = tmp_path / "output"
    output.mkdir()

    def build(*opts, resume=False):
        own = ["OUTPUT_DIR", str(output), "SOLVER.IMS_PER_BATCH", "2", *STEPS]
        trainer = MimicTrainer(setup_cfg(str(data.config), [*own, *opts]))
        trainer.resume_or_load(resume=resume)
        return trainer

    yield build
    tiny_run.remove(output)


def inject_loss(trainer, key, iteration, value=math.nan):
    """Let one loss be not finite in one iteration, as if the model had returned it."""

    def change(model, inputs, losses):
        if model.training and trainer.iter == iteration:
            return {**losses, key: losses[key] + value}

    trainer._trainer.model.register_forward_hook(change, prepend=True)


def inject_gradient(trainer, iterations, value=math.nan):
    """Let one gradient be not finite in these iterations."""
    parameter = trainer.checkpointer.model.get_parameter(PARAMETER)
    parameter.register_hook(lambda x: x + value if trainer.iter in iterations else x)


def message_of(trainer):
    with pytest.raises(UserError) as caught:
        trainer.train()
    assert "\n" not in str(caught.value) and "--resume goes on from" in str(caught.value)
    return str(caught.value)


def check_files(trainer, last):
    """Checkpoints up to iteration `last`, finite, and no other weights."""
    folder = Path(trainer.cfg.OUTPUT_DIR)
    names = [f"model_{i:07}.pth" for i in range(last + 1)]
    assert sorted(x.name for x in folder.glob("*.pth")) == names
    assert (folder / "last_checkpoint").read_text().strip() == names[-1]
    for name in names:
        state = tiny_run.state(folder / name)["model"]
        assert all(torch.isfinite(x).all() for x in state.values())


@pytest.mark.parametrize("term", sorted(TERMS))
def test_a_loss_of_the_last_step_leaves_the_checkpoints_before_it(trainer_of, data, taught, term):
    trainer = trainer_of(*taught)
    inject_loss(trainer, term, LAST, math.inf if term == "loss_feature" else math.nan)
    before = []
    trainer.model.register_forward_pre_hook(
        lambda *_: before.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
    )
    message = message_of(trainer)
    value = "inf" if term == "loss_feature" else "nan"
    assert f"at iteration {LAST}: {term} is {value} (images {data.folder}" in message
    assert message.count(".jpg") == 2
    check_files(trainer, LAST - 1)
    for name, parameter in trainer.model.named_parameters():  # those of the step before
        assert torch.equal(parameter, before[LAST][name])
    assert len(before) == LAST + 1 and not hasattr(trainer, "_last_eval_results")


@pytest.mark.parametrize("value", [math.nan, -math.inf], ids=str)
def test_a_gradient_names_its_parameter_and_training_resumes(trainer_of, value):
    trainer = trainer_of()
    inject_gradient(trainer, [1], value)
    assert f"at iteration 1: the gradient of {PARAMETER} is not finite (images " in message_of(
        trainer
    )
    check_files(trainer, 0)
    again = trainer_of(resume=True)
    assert again.start_iter == 1
    again.train()
    saved = tiny_run.state(Path(again.cfg.OUTPUT_DIR) / "model_final.pth")
    assert saved["iteration"] == LAST
    assert all(torch.isfinite(x).all() for x in saved["model"].values())


def test_a_model_that_finds_it_itself_is_named_alike(trainer_of):
    """The refinement module and Detectron2's RPN raise FloatingPointError in the forward pass."""
    trainer = trainer_of()
    with torch.no_grad():
        trainer.checkpointer.model.proposal_generator.anchor_deltas.bias.fill_(math.nan)
    message = message_of(trainer)
    assert "at iteration 0: The refinement module predicts boxes" in message
    assert "(images " in message


def test_a_large_finite_gradient_is_no_fault(trainer_of):
    """Its norm overflows float32."""
    trainer = trainer_of("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value")
    inject_gradient(trainer, [0], 1e30)
    trainer.train()
    assert trainer.guard.skipped == 0


# ---------------------------------------------------------------- several processes


@pytest.fixture
def second_of_two(monkeypatch):
    """Let a guard take this process for rank 1; what rank 0 says is put into the list."""
    others = []
    monkeypatch.setattr(guards.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(guards.comm, "get_rank", lambda: 1)
    monkeypatch.setattr(guards.comm, "all_gather", lambda own: [*others, own])
    return others


def diverged(guard, losses, gradient):
    guard._images, guard._losses = ["a.jpg", "b.jpg"], losses
    for _, parameter in guard._parameters:
        parameter.grad = torch.full_like(parameter, gradient)
    with pytest.raises(UserError) as caught:
        guard.after_backward()
    return str(caught.value)


def test_the_rank_whose_loss_it_is_names_its_images(second_of_two):
    guard = guards.NonFiniteGuard(torch.nn.Linear(1, 1))
    guard.trainer = SimpleNamespace(iter=5)
    good, bad = {"loss": torch.tensor(1.0)}, {"loss": torch.tensor(math.nan)}
    second_of_two.append(("", "images c.jpg of rank 0"))
    own = "at iteration 5: loss is nan (images a.jpg, b.jpg of rank 1). "
    assert own in diverged(guard, bad, math.nan)
    assert own in diverged(guard, bad, 1.0)  # a loss without a gradient: the others do not know
    # Gradients are shared: they do not tell of whose images they are.
    both = "of weight is not finite (images c.jpg of rank 0; images a.jpg, b.jpg of rank 1). "
    assert both in diverged(guard, good, math.nan)
    second_of_two[:] = [("loss is inf", "images c.jpg of rank 0")]
    theirs = "at iteration 5: loss is inf (images c.jpg of rank 0). "
    assert theirs in diverged(guard, good, math.nan)
    guard.trainer.grad_scaler = torch.amp.GradScaler("cpu")  # which skips no step of such a loss
    assert theirs in diverged(guard, good, math.nan)


# ---------------------------------------------------------------- loss scaling


class ScaledOnCPU(AMPTrainer):
    """Detectron2's step with loss scaling, which asks for a GPU, where there is none."""

    def run_step(self):
        with mock.patch.object(torch.cuda, "is_available", lambda: True):
            super().run_step()


@pytest.fixture
def scaled(trainer_of):
    """`trainer_of` with a loss scale."""

    def build():
        trainer = trainer_of("SOLVER.AMP.ENABLED", "True")
        step, scaler = trainer._trainer, torch.amp.GradScaler("cpu")
        trainer._trainer = ScaledOnCPU(
            step.model, step.data_loader, step.optimizer, grad_scaler=scaler
        )
        trainer._trainer.register_hooks([trainer.guard])
        return trainer

    return build


def steps_written(trainer):
    values = [x.get("amp/skipped_steps") for x in tiny_run.metrics(Path(trainer.cfg.OUTPUT_DIR))]
    return [x for x in values if x is not None]


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")
def test_an_overflow_is_skipped_and_counted(scaled, caplog):
    trainer = scaled()
    inject_gradient(trainer, [0, 2], math.inf)
    weight = trainer.checkpointer.model.get_parameter(PARAMETER)
    seen = []
    trainer.model.register_forward_pre_hook(lambda *_: seen.append(weight.detach().clone()))
    trainer.train()
    assert trainer.guard.skipped == 2 and steps_written(trainer)[-1] == 2
    assert torch.equal(seen[0], seen[1])  # skipped
    assert not torch.equal(seen[1], seen[2])
    assert torch.equal(seen[2], weight)
    assert trainer._trainer.grad_scaler.get_scale() == 2.0**14
    assert sum("gradients overflowed" in x.message for x in caplog.records) == 1


def test_overflows_without_an_end_stop(scaled, monkeypatch):
    monkeypatch.setattr(guards, "MAX_SKIPPED", 3)
    trainer = scaled()
    inject_gradient(trainer, range(3))
    assert "at iteration 2: gradients overflowed in 3 steps in a row" in message_of(trainer)


def test_a_loss_stops_under_loss_scaling_too(scaled):
    trainer = scaled()
    inject_loss(trainer, "loss_student_cls", 1)
    assert "at iteration 1: loss_student_cls is nan" in message_of(trainer)
    check_files(trainer, 0)
