"""kill -9 inside saves and training, damaged files, and a disk that fills up: every run goes on."""

import logging
import multiprocessing
import os
import random
import signal
import subprocess
import time

import pytest
import torch
from torch import nn

from mimicdet.checkpoint import MimicCheckpointer
from mimicdet.utils.errors import UserError
from tests.engine import tiny_run

SIZE = 1500  # a checkpoint of 18 MB, half of it the optimizer's


class Trainer:
    """The part of a trainer that is saved: its optimizer."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def state_dict(self):
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state["optimizer"])


def make_run(folder):
    model = nn.Linear(SIZE, SIZE)
    trainer = Trainer(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    return MimicCheckpointer(model, str(folder), trainer=trainer), trainer


def step(checkpointer, trainer, iteration):
    """Weights and momentum that tell the iteration that they are of."""
    for parameter in checkpointer.model.parameters():
        nn.init.constant_(parameter, iteration)
        trainer.optimizer.state[parameter]["momentum_buffer"] = torch.full_like(
            parameter, iteration
        )


def slowed(function):
    """So that kills between the writing and the renaming are as likely as inside the writing."""

    def run(*args, **kwargs):
        time.sleep(0.02)
        result = function(*args, **kwargs)
        time.sleep(0.02)
        return result

    return run


def train_until_killed(folder, numbered, start, progress):
    """Save in a loop; `progress` is [iteration whose save has begun, and ended]."""
    for name in ("fsync", "replace"):
        setattr(os, name, slowed(getattr(os, name)))
    checkpointer, trainer = make_run(folder)
    for iteration in range(start, start + 1000):
        step(checkpointer, trainer, iteration)
        progress[0] = iteration
        checkpointer.save(
            f"model_{iteration:07d}" if numbered else "model_final", iteration=iteration
        )
        progress[1] = iteration
        time.sleep(0.01)


def kill_once(folder, numbered, start, rng):
    """Kill a run after some saves; (iteration of the last save that had ended, inside a save)."""
    context = multiprocessing.get_context("fork")
    progress = context.Array("i", [start - 1, start - 1], lock=False)
    process = context.Process(
        target=train_until_killed, args=(str(folder), numbered, start, progress)
    )
    process.start()
    while progress[1] < start:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.6))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return progress[1], progress[0] > progress[1]


def check_resumes(folder, ended):
    """Resume; return the iteration, of which all that was loaded has to be."""
    checkpointer, trainer = make_run(folder)
    iteration = checkpointer.resume_or_load("", resume=True)["iteration"]
    assert iteration in (ended, ended + 1)
    for parameter in checkpointer.model.parameters():
        assert (parameter == iteration).all()
        assert (trainer.optimizer.state[parameter]["momentum_buffer"] == iteration).all()
    return iteration


def test_kills_inside_saves(tmp_path):
    rng, inside, resumed, leftovers = random.Random(12), 0, 0, 0
    for numbered in (False, True):
        folder, start = tmp_path / str(numbered), 0
        folder.mkdir()
        for _ in range(15):
            ended, was_inside = kill_once(folder, numbered, start, rng)
            inside += was_inside
            leftovers += any(x.name.startswith(".") for x in folder.iterdir())
            start = check_resumes(folder, ended) + 1
            resumed += 1
            for path in sorted(folder.glob("model_*.pth"))[:-2]:  # 18 MB each
                path.unlink()
    print(f"kill -9: {resumed} of 30 resume, {inside} inside a save, {leftovers} left a half file")
    assert resumed == 30 and inside >= 10 and leftovers >= 5
    checkpointer, trainer = make_run(folder)
    step(checkpointer, trainer, start)
    checkpointer.save("model_final", iteration=start)
    assert not [x for x in folder.iterdir() if x.name.startswith(".")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Config file of the tiny data set."""
    folder = tmp_path_factory.mktemp("tiny")
    return tiny_run.write_config(folder / "tiny.yaml", tiny_run.write_coco(folder))


def test_kills_of_train_net(data, tmp_path):
    """One run to its end over six kills, each after some iterations."""
    rng, output = random.Random(3), tmp_path / "output"
    opts = "SOLVER.CHECKPOINT_PERIOD 1 TEST.EVAL_PERIOD 0 VIS_PERIOD 0 SOLVER.MAX_ITER 60".split()
    opts += ["DATASETS.TEST", "()", "OUTPUT_DIR", output]
    reached = []
    for _ in range(6):
        log = (
            tmp_path / "console.txt"
        )  # nobody reads a pipe meanwhile, and a full one stops the run
        process = tiny_run.start("--config-file", data, "--resume-or-start", *opts, log=log)
        before = {x.name for x in output.glob("model_*.pth")}
        while {x.name for x in output.glob("model_*.pth")} <= before:
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1))
        process.kill()
        process.wait()
        reached.append(max(int(x.stem[6:]) for x in output.glob("model_0*.pth")))
        for path in sorted(output.glob("model_0*.pth"))[:-2]:
            path.unlink()
    code, log = tiny_run.finish(tiny_run.start("--config-file", data, "--resume", *opts))
    assert code == 0, log[-3000:]
    starts = [
        int(line.rsplit(" ", 1)[1])
        for line in (output / "log.txt").read_text().splitlines()
        if "Starting training from iteration" in line
    ]
    print(f"kill -9 of train_net.py: starts {starts}, newest checkpoints at the kills {reached}")
    assert starts[0] == 0 and len(starts) == 7
    assert all(b - a in (0, 1) for a, b in zip(reached, starts[1:]))
    assert tiny_run.state(output / "model_final.pth")["iteration"] == 59


@pytest.mark.parametrize("with_digest", [True, False])
def test_damage_is_seen(tmp_path, with_digest, caplog):
    """100 cuts and 100 flipped bits; without a digest what lies between the tensors is unseen."""
    caplog.set_level(logging.ERROR, "mimicdet")
    checkpointer, trainer = make_run(tmp_path)
    checkpointer.model = model = nn.Linear(300, 300)
    trainer.optimizer = torch.optim.SGD(model.parameters(), 0.1)
    checkpointer.save("model_final", iteration=1)
    path, rng, seen = tmp_path / "model_final.pth", random.Random(5), 0
    if not with_digest:
        (tmp_path / "model_final.pth.sha256").unlink()
    whole = path.read_bytes()
    for number in range(200):
        damaged = bytearray(whole)
        if number % 2:
            del damaged[rng.randrange(len(whole)) :]
        else:
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            checkpointer.resume_or_load("", resume=True)
        except UserError as error:
            assert "model_final.pth" in str(error)
            seen += 1
    print(f"damaged files, digest {with_digest}: {seen} of 200 are seen")
    assert seen == 200 if with_digest else seen >= 190


def test_a_full_disk(data, tmp_path):
    """A file system of its own, too small for the second checkpoint; then a larger one."""
    output = tmp_path / "small"
    output.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150m", "tmpfs", output])
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        opts = (
            "SOLVER.CHECKPOINT_PERIOD 1 TEST.EVAL_PERIOD 0 VIS_PERIOD 0 SOLVER.MAX_ITER 6".split()
        )
        opts += ["DATASETS.TEST", "()", "OUTPUT_DIR", output]
        code, log = tiny_run.finish(tiny_run.start("--config-file", data, *opts))
        names = sorted(x.name for x in output.iterdir() if "model" in x.name)
        print(f"full disk: exit code {code}, {log.splitlines()[-1]!r}, left {names}")
        assert code == 2
        assert "cannot be written: No space left on device; what was there stays" in log
        assert not [x for x in output.iterdir() if x.name.startswith(".")]
        subprocess.run(["mount", "-o", "remount,size=900m", output], check=True)
        code, log = tiny_run.finish(tiny_run.start("--config-file", data, "--resume", *opts))
        assert code == 0, log[-3000:]
        assert f"Starting training from iteration {int(names[-2][6:13]) + 1}" in log
        subprocess.run(["mount", "-o", "remount,ro", output], check=True)
        code, log = tiny_run.finish(tiny_run.start("--config-file", data, "--resume", *opts))
        print(f"read-only folder: exit code {code}, {log.splitlines()[-1]!r}")
        assert code == 2 and "Read-only file system" in log.splitlines()[-1]
    finally:
        subprocess.run(["umount", output], check=True)
