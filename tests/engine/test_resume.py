"""A run that was stopped ends as the one that was not; tests/stress/test_resume.py does more."""

import logging
import shutil
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import AMPTrainer
from detectron2.engine.hooks import PreciseBN
from torch import nn

from mimicdet.data import TrainLoader
from mimicdet.engine import MimicTrainer, setup_cfg
from mimicdet.engine.resume import ResumableState
from mimicdet.engine.trainer import SAMPLERS
from tests.distillation.tiny_detectors import build_tiny
from tests.engine import resume_run, tiny_run

SHORT = ["SOLVER.MAX_ITER", 6, "SOLVER.STEPS", (3,), "TEST.EVAL_PERIOD", 3]
VARIANTS = {
    # No SEED: what is drawn at the start has to come from the checkpoint.
    "sgd": (3, ["SEED", -1, "DATALOADER.NUM_WORKERS", 2]),
    "retinanet": (1, ["SOLVER.EMA.ENABLED", True, "MODEL.MIMICDET.OPTIMIZER", "adamw"]),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return resume_run.write_data(tmp_path_factory.mktemp("resume") / "data")


def stopped_after(reference, target, iteration):
    """The output folder as a run left it that was stopped after this checkpoint."""
    target.mkdir()
    name = f"model_{iteration:07d}.pth"
    shutil.copy(reference / name, target)
    (target / "last_checkpoint").write_text(name)
    return target


@pytest.mark.parametrize("model", VARIANTS)
def test_the_same_images_weights_and_ap(config, tmp_path, model, capfd):
    last, changes = VARIANTS[model]
    opts = [x for item in resume_run.MODELS[model].items() for x in item] + changes + SHORT
    resume_run.train(config, tmp_path / "whole", *opts, "DATALOADER.NUM_WORKERS", 0)
    stopped = stopped_after(tmp_path / "whole", tmp_path / "stopped", last)
    resume_run.train(config, stopped, *opts)
    resume_run.assert_same(tmp_path / "whole", stopped, start=last + 1)
    state = tiny_run.state(stopped / "model_final.pth")["trainer"]["hooks"]["ResumableState"]
    names = ["0.student.loss_normalizer"] if model == "retinanet" else []
    assert list(state["ranks"][0]) == names
    capfd.readouterr()

    stopped_after(tmp_path / "whole", tmp_path / "other", last)
    other = "sgd" if "adamw" in changes else "adamw"
    with pytest.raises(AssertionError):
        resume_run.train(config, tmp_path / "other", *opts, "MODEL.MIMICDET.OPTIMIZER", other)
    captured = capfd.readouterr()
    assert "error: --resume: the run in OUTPUT_DIR trained with MODEL.MIMICDET.OPT" in captured.err
    assert "Traceback" not in captured.err + captured.out
    for folder in ("whole", "stopped", "other"):
        tiny_run.remove(tmp_path / folder)


@pytest.fixture
def cfg(config):
    cfg = setup_cfg(str(config)).clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.SOLVER.IMS_PER_BATCH = (16, 24), 2
    return cfg


def batches(loader, start, count, seed=5):
    """Names and pixels of batches `start`, `start` + 1, ..."""
    loader.restart(seed, start)
    found = [batch for batch, _ in zip(loader, range(count))]
    return [[(x["file_name"], x["image"].tolist()) for x in batch] for batch in found]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_goes_on_where_it_was(cfg, sampler):
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.8
    loader = MimicTrainer.build_train_loader(cfg)
    whole = batches(loader, 0, 9)
    assert batches(MimicTrainer.build_train_loader(cfg), 4, 5) == whole[4:]
    assert batches(loader, 0, 9, seed=6) != whole


def hook_of(models, start=0, loader=None, further=()):
    """A ResumableState in what stands for a trainer."""
    hook = ResumableState(models, 7, (2, 0))
    inner = SimpleNamespace(data_loader=loader, reset_data_loader=lambda builder: builder())
    hook.trainer = SimpleNamespace(
        start_iter=start, iter=start, max_iter=9, _trainer=inner, _hooks=list(further)
    )
    return hook


def test_random_choices_of_a_step_depend_on_its_number_alone():
    hook = hook_of([nn.Linear(1, 1)])
    drawn = []
    for iteration in (3, 4, 3):
        hook.trainer.iter = iteration
        hook.before_step()
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[2] != drawn[1]


def test_a_checkpoint_without_the_state_resumes_and_says_so(cfg, caplog):
    loader = MimicTrainer.build_train_loader(cfg)
    hook = hook_of([nn.Linear(1, 1)], 3, loader)
    with caplog.at_level(logging.WARNING):
        hook.before_train()
    assert "data come in another order" in caplog.text and loader.start == 3
    caplog.clear()
    hook.load_state_dict({"seed": 8, "ranks": [{}]})
    hook.before_train()
    assert not caplog.text and loader.seed == 8


def test_other_numbers_of_processes(caplog):
    """Each process has its own running values; in another number of them, those of the first."""
    detector = build_tiny("RetinaNet")
    detector.loss_normalizer = 4.0
    hook = hook_of([nn.Sequential(detector, nn.BatchNorm2d(2))], 3, [])
    first = hook.state_dict()["ranks"][0]
    assert first == {"0.0.loss_normalizer": 4.0}
    hook.load_state_dict({"seed": 7, "ranks": [{"0.0.loss_normalizer": 5.0}, {}]})
    hook.before_train()
    assert detector.loss_normalizer == 5.0
    assert "had 2 processes and goes on in 1" in caplog.text


def test_values_of_each_process(monkeypatch):
    from mimicdet.engine import resume

    monkeypatch.setattr(resume.comm, "get_rank", lambda: 1)
    monkeypatch.setattr(resume.comm, "get_world_size", lambda: 2)
    norm, gathered = nn.BatchNorm2d(2), []
    nn.init.constant_(norm.running_mean, 3.0)
    hook = hook_of([norm], 0, [])
    monkeypatch.setattr(resume.comm, "all_gather", lambda x: gathered.append(x) or [{}, x])
    for hook.trainer.iter in range(9):
        hook.after_step()
    assert len(gathered) == 5  # after 2, 4, 6, 8 and 9 iterations
    state = hook.state_dict()
    nn.init.zeros_(norm.running_mean)
    assert len(state["ranks"]) == 2
    hook.load_state_dict(state)
    hook.before_train()
    assert norm.running_mean.tolist() == [3.0, 3.0]


def test_precise_batch_norm_goes_on_with_its_own_data(cfg):
    loaders = [MimicTrainer.build_train_loader(cfg) for _ in range(2)]
    precise = PreciseBN(2, nn.BatchNorm2d(2), loaders[1], num_iter=3)
    hook_of([nn.Linear(1, 1)], 5, loaders[0], [precise]).before_train()
    assert [x.start for x in loaders] == [5, 6] and isinstance(loaders[1], TrainLoader)


def test_resume_with_amp_of_a_run_without():
    """No GPU is needed to load; the scale is then the one to begin with."""
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    trainer = MimicTrainer.__new__(MimicTrainer)
    trainer._hooks = []
    trainer._trainer = AMPTrainer(layer, [], optimizer, grad_scaler=torch.amp.GradScaler("cpu"))
    trainer._trainer.grad_scaler._lazy_init_scale_growth_tracker(torch.device("cpu"))
    saved = {"iteration": 3, "optimizer": optimizer.state_dict()}
    trainer.load_state_dict({"iteration": 3, "_trainer": saved})
    assert trainer.iter == 3
    saved = trainer._trainer.state_dict()
    saved["grad_scaler"]["scale"] = 8.0
    trainer.load_state_dict({"iteration": 3, "_trainer": saved})
    assert trainer._trainer.grad_scaler.state_dict()["scale"] == 8.0
