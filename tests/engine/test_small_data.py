"""What small data sets need: averaged weights, early stopping, a slower backbone, augmentation."""

import logging

import pytest
import tiny_run
import torch
from detectron2.data import transforms as T

from mimicdet.commands.train import main
from mimicdet.config import check_config, load_config
from mimicdet.data import MimicDatasetMapper
from mimicdet.engine import MimicTrainer, setup_cfg
from mimicdet.engine.hooks import EarlyStopping
from mimicdet.utils.errors import UserError

THREE = "SOLVER.MAX_ITER 3 SOLVER.STEPS () SOLVER.WARMUP_ITERS 0 SOLVER.CHECKPOINT_PERIOD 1".split()
AVERAGED = ["SOLVER.EMA.ENABLED", "True", "SOLVER.EMA.DECAY", "0.2"]


@pytest.fixture(scope="module")
def averaged(data, tmp_path_factory):
    """A run of three iterations with SOLVER.EMA and a checkpoint of each."""
    output = tmp_path_factory.mktemp("averaged")
    with tiny_run.loggers_restored():
        opts = ["OUTPUT_DIR", str(output), "TEST.EVAL_PERIOD", "0", *THREE, *AVERAGED]
        assert main(["--config-file", str(data.config), *opts]) == 0
    yield output
    tiny_run.remove(output)


def test_the_checkpoint_holds_the_average_and_the_weights_that_train(averaged):
    before, after = (tiny_run.state(averaged / f"model_000000{i}.pth") for i in (0, 1))
    decay = 0.2  # below (1 + 2) / (10 + 2)
    for name, average in after["model"].items():
        trained = after["average"]["trained"][name]
        if average.is_floating_point():
            expected = decay * before["model"][name] + (1 - decay) * trained
            torch.testing.assert_close(average, expected)
        else:
            assert average == trained
    key = "backbone.fpn_output3.weight"
    assert not after["model"][key].equal(after["average"]["trained"][key])


def test_the_average_is_evaluated_and_resumed(averaged, data, tmp_path):
    copied = tmp_path / "copy"
    copied.mkdir()
    (copied / "model_0000001.pth").write_bytes((averaged / "model_0000001.pth").read_bytes())
    (copied / "last_checkpoint").write_text("model_0000001.pth")
    cfg = setup_cfg(str(data.config), ["OUTPUT_DIR", str(copied), *THREE, *AVERAGED])
    trainer = MimicTrainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.average.before_train()
    saved = tiny_run.state(copied / "model_0000001.pth")
    for model, state in (
        (trainer.evaluated_model, saved["model"]),
        (trainer.model.student, saved["average"]["trained"]),
    ):
        assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    evaluated = []
    trainer.test = lambda cfg, model: evaluated.append(model)
    trainer._evaluate()
    assert evaluated == [trainer.average.average] and not evaluated[0].training


def test_training_begins_with_the_loaded_weights(averaged, data, tmp_path):
    weights = ["MODEL.WEIGHTS", str(averaged / "model_final.pth"), "OUTPUT_DIR", str(tmp_path)]
    trainer = MimicTrainer(setup_cfg(str(data.config), [*weights, *AVERAGED]))
    trainer.resume_or_load(resume=False)
    trainer.average.before_train()
    saved = tiny_run.state(averaged / "model_final.pth")["model"]
    trained = trainer.model.student.state_dict()
    assert all(value.equal(saved[name]) for name, value in trained.items())


def test_training_ends_when_the_value_stays(data, tmp_path, monkeypatch, caplog):
    values = iter([10.0, 30.0, 20.0, 25.0, 99.0])
    monkeypatch.setattr(MimicTrainer, "test", lambda *_: {"bbox": {"AP": next(values)}})
    opts = "SOLVER.MAX_ITER 9 SOLVER.STEPS () TEST.EVAL_PERIOD 1 TEST.PATIENCE 2 VIS_PERIOD 0"
    with tiny_run.loggers_restored(), caplog.at_level(logging.INFO, "mimicdet"):
        arguments = ["--config-file", str(data.config), "OUTPUT_DIR", str(tmp_path)]
        assert main([*arguments, *opts.split()]) == 0
    assert next(values) == 99.0
    assert tiny_run.state(tmp_path / "model_final.pth")["iteration"] == 3
    assert tiny_run.state(tmp_path / "model_best.pth")["iteration"] == 1
    log = (tmp_path / "log.txt").read_text()
    assert "Training ends after 4 iterations" in log and "Exception" not in log
    tiny_run.remove(tmp_path)


def test_other_processes_stop_with_the_main_one(monkeypatch):
    hook = EarlyStopping(5, 2, None)
    hook.trainer = type("Trainer", (), {"iter": 9, "max_iter": 100})
    hook.after_step()  # nobody says that it is time
    monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda own: [2, own])
    with pytest.raises(BaseException, match="after 10 iterations"):
        hook.after_step()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("pyramid", [True, False])
def test_the_backbone_has_its_own_rate(kind, pyramid):
    opts = ["SOLVER.BASE_LR", 0.5, "SOLVER.BACKBONE_LR_FACTOR", 0.1]
    cfg = load_config("configs/Base-MimicDet.yaml", ["MODEL.MIMICDET.OPTIMIZER", kind, *opts])
    model = torch.nn.Module()
    model.head, model.backbone = torch.nn.Linear(1, 1), torch.nn.Module()
    model.backbone.bottom_up = torch.nn.Linear(1, 1)
    if not pyramid:
        model.backbone = model.backbone.bottom_up
    optimizer = MimicTrainer.build_optimizer(cfg, model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    slow = {id(p) for p in model.backbone.parameters()}
    assert all(rate == (0.05 if key in slow else 0.5) for key, rate in rates.items())
    assert len(rates) == 4


def jitter_config(*opts):
    return load_config("", ["INPUT.MIN_SIZE_TRAIN", "(60,)", "INPUT.MAX_SIZE_TRAIN", "80", *opts])


def test_jitter_is_built_of_detectron2s_transforms():
    cfg = jitter_config("INPUT.COLOR_JITTER", "0.25", "INPUT.SCALE_JITTER", "(0.5, 2.0)")
    augmentations = MimicDatasetMapper(cfg, is_train=True).augmentations.augs
    assert [type(x) for x in augmentations] == [
        *(T.ResizeShortestEdge, T.RandomCrop, T.RandomFlip),
        *(T.RandomBrightness, T.RandomContrast, T.RandomSaturation),
    ]
    assert {(x.intensity_min, x.intensity_max) for x in augmentations[3:]} == {(0.75, 1.25)}
    resize = augmentations[0]
    assert (resize.short_edge_length, resize.max_size, resize.is_range) == ((30, 120), 160, True)
    assert augmentations[1].crop_size == (80, 80)
    assert len(MimicDatasetMapper(cfg, is_train=False).augmentations.augs) == 1


def test_without_the_keys_the_augmentations_are_detectron2s():
    augmentations = MimicDatasetMapper(jitter_config(), is_train=True).augmentations.augs
    assert [type(x) for x in augmentations] == [T.ResizeShortestEdge, T.RandomFlip]


@pytest.mark.parametrize(
    ("key", "value"),
    [("COLOR_JITTER", "1.0"), ("COLOR_JITTER", "-0.1"), ("SCALE_JITTER", "(2.0, 0.5)")]
    + [("SCALE_JITTER", "(0.0, 1.0)"), ("SCALE_JITTER", "(1.0,)")],
)
def test_jitter_that_cannot_be_is_named(key, value):
    with pytest.raises(UserError, match=f"INPUT.{key} must"):
        check_config(jitter_config(f"INPUT.{key}", value))
