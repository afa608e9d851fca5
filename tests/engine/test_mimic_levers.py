"""A run with MODEL.MIMICDET.MIMIC's own parameters: saved, resumed, and not in the student."""

import pytest
import tiny_run
import torch
from detectron2.utils.env import seed_all_rng

from mimicdet.engine import MimicTrainer, setup_cfg

M = "MODEL.MIMICDET.MIMIC."
LEVERS = [
    *(f"{M}TEACHER_EMA", "0.9", f"{M}PROJECTOR", "True", f"{M}SAMPLES", "sampled_and_mined"),
    *(f"{M}TERMS.SCORES", "1.0", f"{M}TERMS.BOXES", "1.0", f"{M}WEIGHTING", "['balanced']"),
    *(f"{M}START_ITER", "1", f"{M}WARMUP_ITERS", "2", f"{M}STOP_ITER", "5"),
]
RUN = "SOLVER.MAX_ITER 5 SOLVER.STEPS () SOLVER.WARMUP_ITERS 0 SOLVER.CHECKPOINT_PERIOD 3".split()


def train(config, output, *opts, resume=False):
    own = [*LEVERS, *RUN, "TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "()", *opts]
    seed_all_rng(7)
    trainer = MimicTrainer(setup_cfg(str(config), [*own, "OUTPUT_DIR", str(output)]))
    trainer.resume_or_load(resume)
    with tiny_run.loggers_restored():
        trainer.train()


@pytest.mark.parametrize("opts", [[], ["SOLVER.EMA.ENABLED", "True"]], ids=["plain", "averaged"])
def test_a_resumed_run_ends_as_one_that_was_not_stopped(data, tmp_path, opts):
    train(data.config, tmp_path / "whole", *opts)
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (tmp_path / "whole" / "model_0000002.pth").rename(stopped / "model_0000002.pth")
    (stopped / "last_checkpoint").write_text("model_0000002.pth")
    middle = tiny_run.state(stopped / "model_0000002.pth")
    train(data.config, stopped, *opts, resume=True)
    states = [tiny_run.state(tmp_path / x / "model_final.pth") for x in ("whole", "stopped")]
    parts = [
        {**x["model"], **x["distillation"]["methods"], **x.get("average", {}).get("trained", {})}
        for x in states
    ]
    assert parts[0].keys() == parts[1].keys()
    assert [key for key, value in parts[0].items() if not torch.equal(value, parts[1][key])] == []
    # They did train, apart from the student.
    layer = "0.projectors.box_features.weight"
    before = middle["distillation"]["methods"][layer]
    assert not torch.equal(before, torch.eye(len(before)))
    assert not torch.equal(before, parts[0][layer])
    assert any(key.startswith("averaged_teacher.head.") for key in parts[0])
    assert not [key for key in states[0]["model"] if "projector" in key]
    for folder in ("whole", "stopped"):
        tiny_run.remove(tmp_path / folder)
