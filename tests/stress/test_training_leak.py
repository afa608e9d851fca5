"""Long trainings of a tiny MimicDet with all hooks: memory stays level, half precision finite."""

import math
import resource
from pathlib import Path

import pytest
import torch
from detectron2.engine.hooks import CallbackHook

from mimicdet.engine import MimicTrainer, setup_cfg
from tests.engine import tiny_run

STEPS, FROM, LIMIT_MIB = 2000, 200, 50


def resident_mib() -> float:
    """Memory of this process that is in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@pytest.fixture
def trainer_of(tmp_path, clean_catalogs):
    def build(steps, *opts):
        address = tiny_run.write_coco(tmp_path / "data")
        path = tiny_run.write_config(tmp_path / "tiny.yaml", address)
        output = tmp_path / "output"
        output.mkdir()
        own = ["OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", str(steps), "SOLVER.STEPS", "()"]
        cfg = setup_cfg(str(path), [*own, "SOLVER.IMS_PER_BATCH", "2", *opts])
        torch.set_num_threads(1)
        trainer = MimicTrainer(cfg)
        trainer.resume_or_load(resume=False)
        return trainer

    yield build
    tiny_run.remove(tmp_path / "output")


def test_2000_steps_do_not_grow(trainer_of):
    """With an evaluation, a checkpoint and pictures every 200 steps."""
    periods = ["TEST.EVAL_PERIOD", "200", "SOLVER.CHECKPOINT_PERIOD", "500", "VIS_PERIOD", "200"]
    trainer = trainer_of(STEPS, *periods)
    sizes = []

    def measure(trainer):
        if (trainer.iter + 1) % FROM == 0:
            sizes.append(resident_mib())

    trainer.register_hooks([CallbackHook(after_step=measure)])
    trainer.train()
    growth = max(sizes) - sizes[0]
    print(
        f"{STEPS} training steps: {sizes[0]:.0f} MiB after step {FROM}, {sizes[-1]:.0f} MiB at the "
        f"end, at most {growth:.1f} MiB more"
    )
    assert len(sizes) == STEPS // FROM and growth < LIMIT_MIB, sizes


def test_200_steps_of_bfloat16_are_finite(trainer_of, bfloat16_cpu):
    trainer = trainer_of(200, "SOLVER.AMP.ENABLED", "True", "TEST.EVAL_PERIOD", "0")
    trainer.train()
    lines = tiny_run.metrics(Path(trainer.cfg.OUTPUT_DIR))
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    print(f"200 steps under bfloat16: loss {losses[0]:.2f} to {losses[-1]:.2f}, all finite")
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    assert all(torch.isfinite(x).all() for x in trainer.checkpointer.model.state_dict().values())
