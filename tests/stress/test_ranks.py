"""Two processes: images without objects on one of them, and what happens when one fails or dies."""

import itertools
import math
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from mimicdet.engine import MimicTrainer, setup_cfg
from tests.distillation.test_mixes import IMAGES, taught
from tests.distillation.tiny_detectors import FAMILIES, losses_of
from tests.engine import tiny_run

START_LIMIT, MIX_LIMIT, DEATH_LIMIT = 300, 60, 120  # seconds
LONG = "SOLVER.MAX_ITER 100000 SOLVER.STEPS () TEST.EVAL_PERIOD 0 SOLVER.CHECKPOINT_PERIOD 3"


# ---------------------------------------------------------------- images without objects


def train_mixes(rank: int, family: str, port: int, folder: str) -> None:
    """One step for each pair of kinds; gradients and losses' names must be the other rank's too."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        world_size=2,
        rank=rank,
        timeout=timedelta(seconds=MIX_LIMIT),  # of each wait for the other
    )
    own = Path(folder) / str(rank)
    own.mkdir()
    model = DistributedDataParallel(taught(own, family), broadcast_buffers=False)
    for kinds in itertools.product(IMAGES, repeat=2):
        model.zero_grad()
        losses = losses_of(model, [IMAGES[kinds[rank]]] * 2)
        sum(losses.values()).backward()
        norms = [p.grad.norm().item() for p in model.parameters() if p.requires_grad]
        assert all(map(math.isfinite, norms)), kinds
        first, second = comm.all_gather((sorted(losses), norms))
        assert first == second, kinds
    distributed.destroy_process_group()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_mix_over_two_ranks(family, tmp_path):
    start = time.monotonic()
    arguments = (family, tiny_run.free_port(), str(tmp_path))
    multiprocessing.spawn(train_mixes, arguments, nprocs=2)
    print(f"{family}: 16 mixes of two ranks in {time.monotonic() - start:.0f} s")


# ---------------------------------------------------------------- a rank that fails


def train_with_fault(config: str, output: str, fault: str) -> None:
    """Train; in iteration 4 the second process fails, and says when by a file `fault`."""
    torch.set_num_threads(1)
    trainer = MimicTrainer(setup_cfg(config, ["OUTPUT_DIR", output, *LONG.split()]))
    trainer.resume_or_load(resume=False)

    def fail(model, inputs, losses):
        if trainer.iter == 4 and comm.get_rank() == 1:
            (Path(output) / "fault").touch()
            if fault == "raises":
                raise RuntimeError("the fault of rank 1")
            return {**losses, "loss_mimic_cls": losses["loss_mimic_cls"] + math.nan}

    trainer._trainer.model.register_forward_hook(fail, prepend=True)
    trainer.train()


@pytest.fixture
def data(tmp_path, clean_catalogs):
    """The tiny data set's config file."""
    return tiny_run.write_config(tmp_path / "tiny.yaml", tiny_run.write_coco(tmp_path / "data"))


def check_resume(data, output, *launcher_options, launcher=()):
    """Two processes go on from the last checkpoint to the end."""
    last = tiny_run.state(output / (output / "last_checkpoint").read_text().strip())["iteration"]
    steps = ["SOLVER.MAX_ITER", last + 3, "SOLVER.STEPS", "()", "TEST.EVAL_PERIOD", 0]
    opts = ["OUTPUT_DIR", output, "SOLVER.IMS_PER_BATCH", 2, *steps]
    process = tiny_run.start(
        "--config-file", data, "--resume", *launcher_options, *opts, launcher=launcher
    )
    code, log = tiny_run.finish(process, START_LIMIT)
    assert code == 0, log[-3000:]
    assert f"Starting training from iteration {last + 1}" in log
    state = tiny_run.state(output / "model_final.pth")
    assert state["iteration"] == last + 2
    assert all(torch.isfinite(x).all() for x in state["model"].values())
    tiny_run.remove(output)


def two_processes():
    return ["--num-gpus", 2, "--dist-url", f"tcp://127.0.0.1:{tiny_run.free_port()}"]


@pytest.mark.parametrize("fault", ["raises", "loss"])
def test_a_rank_that_fails_ends_the_other(data, tmp_path, fault):
    output = tmp_path / "output"
    output.mkdir()
    url = f"tcp://127.0.0.1:{tiny_run.free_port()}"
    with pytest.raises(multiprocessing.ProcessRaisedException) as caught:
        launch(train_with_fault, 2, dist_url=url, args=(str(data), str(output), fault))
    seconds = time.time() - (output / "fault").stat().st_mtime
    assert seconds < DEATH_LIMIT
    message = str(caught.value)
    if fault == "loss":  # whichever process ends first
        assert "at iteration 4: loss_mimic_cls is nan (images " in message
        assert "of rank 1)" in message
    else:
        assert "the fault of rank 1" in message or "Connection closed by peer" in message
    assert sorted(x.name for x in output.glob("*.pth")) == ["model_0000002.pth"]
    print(f"a rank that fails ({fault}): all ended after {seconds:.1f} s")
    check_resume(data, output, *two_processes())


# ---------------------------------------------------------------- a rank that dies


def workers_of(pid: int) -> list[int]:
    """The training processes that a process has started."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        command = Path(f"/proc/{child}/cmdline").read_text()
        if "spawn_main" in command or "train_net.py" in command:
            found.append(int(child))
    return found


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("way", ["--num-gpus", "torchrun"])
def test_a_rank_that_dies_ends_the_other(data, tmp_path, way, rank):
    output, launcher, options = tmp_path / "output", (), two_processes()
    if way == "torchrun":
        port = str(tiny_run.free_port())
        launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port)
        options = []
    opts = ["OUTPUT_DIR", output, "SOLVER.IMS_PER_BATCH", 2, *LONG.split()]
    log_file = tmp_path / "log"
    arguments = ("--config-file", data, *options, *opts)
    process = tiny_run.start(*arguments, launcher=launcher, log=log_file)
    try:
        limit = time.monotonic() + START_LIMIT
        while not (output / "last_checkpoint").exists():
            assert time.monotonic() < limit and process.poll() is None
            time.sleep(0.2)
        pids = workers_of(process.pid)
        assert len(pids) == 2
        os.kill(pids[rank], signal.SIGKILL)
        start = time.monotonic()
        code = process.wait(DEATH_LIMIT)
        seconds = time.monotonic() - start
    finally:
        for pid in [*workers_of(process.pid), process.pid] if process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
    log = log_file.read_text()
    assert code != 0, log[-3000:]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    if way == "--num-gpus":
        assert code == 2 and "terminated with signal SIGKILL; --resume goes on from" in log
    print(f"{way}, rank {rank} killed: exit code {code} after {seconds:.1f} s")
    check_resume(data, output, *(two_processes() if not launcher else ()), launcher=launcher)
