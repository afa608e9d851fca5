"""
Stopped at five places and resumed each time in new processes, a run sees the same images as the one
that was not stopped, and ends with the same weights, bit by bit.
"""

import multiprocessing
import os
import sys
import time

import pytest

from tests.engine import resume_run, tiny_run

# Checkpoints are written after 2, 4, ... iterations, evaluations run after 4, 8 and 12: right
# behind a checkpoint, behind an evaluation, before one with a step to repeat, behind one, the end.
# An epoch has 10 images, a step 2 or 4: none of these is the end of one but the last with 1 rank.
STOPS = (2, 4, 7, 8, 11)


def work(rank, ranks, port, config, output, opts, stop):
    """One process of a run, as torchrun starts it, ended by os._exit before iteration `stop`."""
    # As in train_net.py; a server would keep the workers of a loader alive when this process ends.
    multiprocessing.set_start_method("fork", force=True)
    sys.stdout = sys.stderr = open(output.with_suffix(f".{rank}.log"), "a")  # noqa: SIM115
    if ranks > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks),
            LOCAL_WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
    resume_run.train(config, output, *opts, stop=stop, ends=lambda: os._exit(9))


def run(ranks, config, output, opts, stop=-1):
    """All processes of a run; they have imported the package, and nothing else has run in them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mimicdet.commands.train"])
    arguments = (ranks, tiny_run.free_port(), config, output, opts, stop)
    processes = [context.Process(target=work, args=(r, *arguments)) for r in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()  # one that hangs fails the test and must not stay
        process.join()
    log = output.with_suffix(".0.log").read_text()
    expected = 0 if stop < 0 else 9
    # One rank may die of the other's end before it has come to its own.
    assert expected in [p.exitcode for p in processes], log[-3000:]
    assert all((p.exitcode == 0) == (expected == 0) for p in processes), log[-3000:]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("model", [*resume_run.MODELS, "ema"])
def test_five_stops(model, ranks, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Detectron2's focal loss is TorchScript, whose first calls in a process round differently.
    monkeypatch.setenv("PYTORCH_JIT", "0")
    monkeypatch.setenv("MIMICDET_CACHE", str(tmp_path / "cache"))
    start = time.time()
    config = resume_run.write_data(tmp_path / "data")
    settings = {**resume_run.MODELS.get(model, {}), "SOLVER.IMS_PER_BATCH": 2 * ranks}
    if model == "ema":
        settings["SOLVER.EMA.ENABLED"] = True
    opts = [x for item in settings.items() for x in item]
    whole = tmp_path / "whole"
    run(ranks, config, whole, opts)
    for workers in (0, 2):
        stopped = tmp_path / f"workers_{workers}"
        own = [*opts, "DATALOADER.NUM_WORKERS", workers]
        for stop in STOPS:
            run(ranks, config, stopped, own, stop)
        run(ranks, config, stopped, own)
        log = stopped.with_suffix(".0.log").read_text()
        begun = [x.split()[-1] for x in log.splitlines() if "Starting training from" in x]
        assert list(dict.fromkeys(begun)) == ["0", "2", "4", "6", "8", "10"]
        resume_run.assert_same(whole, stopped, ranks)
    checkpoint = tiny_run.state(whole / "model_final.pth")
    ranks_saved = checkpoint["trainer"]["hooks"]["ResumableState"]["ranks"]
    assert len(ranks_saved) == ranks
    images = sum(
        len(names) for r in range(ranks) for names, _ in resume_run.seen(whole, r).values()
    )
    print(
        f"{model}, {ranks} rank(s): 5 stops with 0 and with 2 workers, {images} images and "
        f"{len(checkpoint['model'])} tensors the same, {time.time() - start:.0f} s"
    )
    for folder in tmp_path.iterdir():
        tiny_run.remove(folder)
