"""A student taught from outside, by train_net.py: train, resume, evaluate; and two processes."""

import math

import ddp_worker
import pytest
import tiny_run
import torch
import yaml
from torch import multiprocessing

from mimicdet.commands.train import main
from mimicdet.engine import MimicTrainer, setup_cfg
from tests.distillation.tiny_detectors import NARROW, RETINANET

METHODS = ["RankMimicking", "PredictionGuided", "FineGrained", "PKD", "CWD", "BCKD", "CrossKD"]
TAUGHT = (
    *("loss_rank_cls", "loss_rank_loc", "loss_pfi", "loss_fine_grained", "loss_pkd", "loss_cwd"),
    *("loss_bckd_cls", "loss_bckd_loc", "loss_crosskd_cls", "loss_crosskd_loc"),
)


def write_detector(path, address, seed, **content):
    """A RetinaNet's yaml on the tiny data set."""
    nested = {"DATASETS": {"TRAIN": [address], "TEST": [address]}, "SEED": seed, **content}
    nested["DATALOADER"] = {"NUM_WORKERS": 0}
    nested["INPUT"] = {"MIN_SIZE_TRAIN": [tiny_run.SIZE], "MIN_SIZE_TEST": tiny_run.SIZE}
    nested["SOLVER"] = {"IMS_PER_BATCH": 2, "BASE_LR": 0.001}
    own = {
        "MODEL.ROI_HEADS.NUM_CLASSES": 0,  # from the data, the teacher's too
        "MODEL.RETINANET.NUM_CLASSES": 80,
        "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 20,
    }
    for key, value in {**NARROW, **RETINANET, **own}.items():
        node = nested
        *parts, last = key.split(".")
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = value
    path.write_text(yaml.safe_dump(nested))
    return path


@pytest.fixture(scope="module")
def pair(data, tmp_path_factory):
    """The teacher trained by the first command, and the student's yaml."""
    folder = tmp_path_factory.mktemp("pair")
    teacher = write_detector(folder / "teacher.yaml", data.address, 3)
    with tiny_run.loggers_restored():
        output = ["OUTPUT_DIR", str(folder / "teacher")]
        assert main(["--config-file", str(teacher), *output, *tiny_run.SHORT]) == 0
    weights = str(folder / "teacher" / "model_final.pth")
    distillation = {
        "METHODS": METHODS,
        "TEACHER": {"CONFIG_FILE": str(teacher), "WEIGHTS": weights, "AMP": True},
        "FineGrained": {"WARMUP_ITERS": 4},
    }
    yield write_detector(folder / "student.yaml", data.address, 4, DISTILLATION=distillation)
    tiny_run.remove(folder / "teacher")


RUN = "SOLVER.MAX_ITER 4 SOLVER.STEPS () SOLVER.WARMUP_ITERS 0 SOLVER.CHECKPOINT_PERIOD 2".split()


@pytest.fixture(scope="module")
def taught(pair, tmp_path_factory):
    output = tmp_path_factory.mktemp("taught")
    with tiny_run.loggers_restored():
        opts = ["OUTPUT_DIR", str(output), "TEST.EVAL_PERIOD", "2", *RUN]
        assert main(["--config-file", str(pair), *opts]) == 0
    yield output
    tiny_run.remove(output)


def test_metrics_and_evaluation_on_the_way(taught):
    written = {k: v for line in tiny_run.metrics(taught) for k, v in line.items()}
    assert all(math.isfinite(written[key]) for key in TAUGHT) and "bbox/AP" in written
    assert (taught / "log.txt").read_text().count("Evaluation results for bbox") == 2


def test_checkpoints_hold_the_student_and_apart_from_it_the_rest(taught, pair):
    saved = tiny_run.state(taught / "model_final.pth")
    cfg = setup_cfg(str(pair))
    assert set(saved["model"]) == set(MimicTrainer.build_model(cfg).state_dict())
    assert set(saved["distillation"]["methods"]) == {
        f"2.adaptation.{level}.{name}" for level in range(5) for name in ("weight", "bias")
    }
    assert list(saved["distillation"]["teachers"]) == [cfg.DISTILLATION.TEACHER.CONFIG_FILE]


def test_plain_evaluation_knows_no_teacher(taught, pair, tmp_path, capfd):
    """--eval-only without DISTILLATION, or with it and the teacher's files out of reach."""
    content = yaml.safe_load(pair.read_text())
    del content["DISTILLATION"]
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(content))
    weights = ["MODEL.WEIGHTS", str(taught / "model_final.pth"), "OUTPUT_DIR", str(tmp_path)]
    assert main(["--config-file", str(tmp_path / "plain.yaml"), "--eval-only", *weights]) == 0
    assert "Evaluation results for bbox" in capfd.readouterr().out
    away = ["DISTILLATION.TEACHER.WEIGHTS", "none/such.pth", *weights]
    away += ["DISTILLATION.INHERIT", "True"]
    assert main(["--config-file", str(pair), "--eval-only", *away]) == 0


def test_resume_goes_on_with_the_adaptation_layers(taught, pair, tmp_path):
    interrupted = tiny_run.copy_until(taught, tmp_path / "resumed", "model_0000001.pth")
    opts = ["OUTPUT_DIR", str(interrupted), "TEST.EVAL_PERIOD", "0", *RUN]
    cfg = setup_cfg(str(pair), opts)
    trainer = MimicTrainer(cfg)
    trainer.resume_or_load(resume=True)
    saved = tiny_run.state(interrupted / "model_0000001.pth")
    assert trainer.start_iter == 2
    for key, value in trainer.model.methods.state_dict().items():
        assert torch.equal(value, saved["distillation"]["methods"][key])
    teacher = trainer.model.teachers[0].model
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    for model in (teacher, trainer.checkpointer.model):  # on a CPU
        weight = model.head.cls_subnet[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
    trainer.train()
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert tiny_run.state(interrupted / "model_final.pth")["iteration"] == 3
    tiny_run.remove(interrupted)


BELOW = "backbone.bottom_up."


def begun(pair, output, *opts, resume=False):
    """The model that a run would train, and the teacher's values, before the first step."""
    opts = ["OUTPUT_DIR", str(output), "DISTILLATION.INHERIT", "True", *RUN, *opts]
    cfg = setup_cfg(str(pair), opts)
    trainer = MimicTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    for hook in trainer._hooks:
        if hook is trainer.average:
            hook.before_train()
    given = tiny_run.state(cfg.DISTILLATION.TEACHER.WEIGHTS)["model"]
    return trainer.model.student.state_dict(), given


@pytest.mark.parametrize(
    "opts", [[], ["DISTILLATION.METHODS", "[]"], ["SOLVER.EMA.ENABLED", "True"]]
)
def test_a_new_run_can_inherit(pair, taught, tmp_path, opts):
    """The network below the pyramid is that of MODEL.WEIGHTS."""
    weights = str(taught / "model_final.pth")
    own, given = begun(pair, tmp_path, "MODEL.WEIGHTS", weights, *opts)
    loaded = tiny_run.state(weights)["model"]
    for name, value in own.items():
        assert torch.equal(value, (loaded if name.startswith(BELOW) else given)[name]), name
    assert not torch.equal(loaded["head.cls_score.weight"], given["head.cls_score.weight"])


def test_a_resumed_run_does_not_inherit_again(pair, taught, tmp_path):
    interrupted = tiny_run.copy_until(taught, tmp_path / "resumed", "model_0000001.pth")
    own, _ = begun(pair, interrupted, resume=True)
    saved = tiny_run.state(interrupted / "model_0000001.pth")["model"]
    assert all(torch.equal(value, saved[name]) for name, value in own.items())
    tiny_run.remove(interrupted)


def test_resume_with_another_teacher_is_refused(taught, pair, tmp_path, capfd):
    interrupted = tiny_run.copy_until(taught, tmp_path / "resumed", "model_0000001.pth")
    cfg = setup_cfg(str(pair))
    other = tiny_run.state(cfg.DISTILLATION.TEACHER.WEIGHTS)["model"]
    other["head.cls_score.bias"] += 1
    torch.save({"model": other}, tmp_path / "other.pth")
    opts = ["OUTPUT_DIR", str(interrupted), *RUN]
    opts += ["DISTILLATION.TEACHER.WEIGHTS", str(tmp_path / "other.pth")]
    assert main(["--config-file", str(pair), "--resume", *opts]) == 2
    error = capfd.readouterr().err
    assert "error: --resume: the weights of the teacher" in error and "Traceback" not in error
    tiny_run.remove(interrupted)


def test_a_missing_teacher_is_one_line(pair, tmp_path, capfd):
    opts = ["DISTILLATION.TEACHER.WEIGHTS", "none/such.pth", "OUTPUT_DIR", str(tmp_path)]
    assert main(["--config-file", str(pair), *opts]) == 2
    error = capfd.readouterr().err
    assert "error: DISTILLATION.TEACHER.WEIGHTS: there is no file 'none/such.pth'" in error


def test_ddp_gradients_are_the_mean_of_the_processes_own(pair, tmp_path):
    """Rank 1 has no object; no parameter may be left without a gradient on either."""
    arguments = (str(pair), [], tiny_run.free_port(), str(tmp_path))
    multiprocessing.spawn(ddp_worker.work, arguments, nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["keys"] == second["keys"] == first["ddp_keys"] == second["ddp_keys"]
    assert set(TAUGHT) < set(first["keys"])
    for name, own in first["alone"].items():
        mean = (own + second["alone"][name]) / 2
        scale = mean.abs().max().clamp(min=1e-6)
        torch.testing.assert_close(
            first["shared"][name] / scale, mean / scale, rtol=1e-3, atol=1e-4, msg=name
        )
        torch.testing.assert_close(second["shared"][name], first["shared"][name], rtol=0, atol=0)
    layer = first["alone"]["methods.2.adaptation.0.weight"]
    assert layer.any() and not second["alone"]["methods.2.adaptation.0.weight"].any()
