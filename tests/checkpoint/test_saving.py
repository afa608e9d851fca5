"""Checkpoints appear whole, with a digest, and hold finite numbers; a failed save costs nothing."""

import errno
import os
import resource
import subprocess

import pytest
import torch
from torch import nn

from mimicdet.checkpoint import MimicCheckpointer, integrity, load_weights
from mimicdet.commands.train import output_errors
from mimicdet.utils.errors import UserError


class State:
    """A checkpointable."""

    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return self.value

    def load_state_dict(self, value):
        self.value = value


def saver(folder, value=1.0, **state):
    model = nn.Linear(64, 64)
    nn.init.constant_(model.weight, value)
    return MimicCheckpointer(model, str(folder), trainer=State({"step": 3, **state}))


def content(folder):
    return {x.name: x.read_bytes() for x in folder.iterdir()}


def value(path):
    return torch.load(path, weights_only=True)["model"]["weight"][0, 0].item()


def test_a_digest_lies_beside_each_checkpoint(tmp_path):
    saver(tmp_path).save("model_0000009", iteration=9)
    assert set(content(tmp_path)) == {
        *("model_0000009.pth", "model_0000009.pth.sha256", "last_checkpoint")
    }
    digest = tmp_path / "model_0000009.pth.sha256"
    path = tmp_path / "model_0000009.pth"
    assert digest.read_text() == f"{integrity.file_sha256(path)}  model_0000009.pth\n"
    done = subprocess.run(["sha256sum", "-c", digest.name], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0
    assert os.stat(path).st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("with_digest", [True, False])
def test_a_changed_bit_and_a_cut_are_seen(tmp_path, with_digest):
    """Without a digest the CRC-32 of the tensors is left."""
    saver(tmp_path).save("model_final")
    path, whole = tmp_path / "model_final.pth", (tmp_path / "model_final.pth").read_bytes()
    if not with_digest:
        (tmp_path / "model_final.pth.sha256").unlink()
    load_weights(nn.Linear(64, 64), str(path))
    middle = whole.index(torch.ones(8).numpy().tobytes()) + 100
    flipped = whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
    for damaged in (flipped, whole[:-1], whole[: len(whole) // 2], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="model_final.pth is no checkpoint that can be read"):
            load_weights(nn.Linear(64, 64), str(path))


def test_a_file_that_was_replaced_by_hand_says_what_to_do(tmp_path):
    saver(tmp_path).save("model_final")
    torch.save({"model": nn.Linear(64, 64).state_dict()}, tmp_path / "model_final.pth")
    with pytest.raises(UserError, match="was replaced.* model_final.pth.sha256, which you can"):
        load_weights(nn.Linear(64, 64), str(tmp_path / "model_final.pth"))
    (tmp_path / "model_final.pth.sha256").unlink()
    load_weights(nn.Linear(64, 64), str(tmp_path / "model_final.pth"))


@pytest.mark.parametrize("name", ["model_final", "model_0000019"])
@pytest.mark.parametrize("at", range(4))
def test_a_save_that_ends_before_each_of_its_steps(tmp_path, monkeypatch, name, at):
    """With a fixed name and a new one; the real kills are in tests/stress/test_kill.py."""
    saver(tmp_path, 1.0).save("model_final", iteration=9)
    steps = []

    def counted(step):
        def run(*args, **kwargs):
            if len(steps) == at:
                raise KeyboardInterrupt
            steps.append(args)
            return step(*args, **kwargs)

        return run

    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(integrity.Path, "unlink", counted(integrity.Path.unlink))
    with pytest.raises(KeyboardInterrupt):
        saver(tmp_path, 2.0).save(name, iteration=19)
    monkeypatch.undo()
    assert len(steps) == at
    checkpointer = saver(tmp_path, 0.0)
    assert checkpointer.resume_or_load("")["iteration"] in (9, 19)
    assert checkpointer.model.weight[0, 0].item() in (1.0, 2.0)
    assert not [x for x in os.listdir(tmp_path) if x.startswith(".")]


@pytest.mark.parametrize("where", ["model", "trainer"])
def test_values_that_are_not_finite_are_never_written(tmp_path, where):
    saver(tmp_path).save("model_final", iteration=9)
    before = content(tmp_path)
    broken = saver(tmp_path, float("nan") if where == "model" else 1.0)
    if where == "trainer":
        buffers = [torch.zeros(2), torch.tensor([0.0, float("-inf")])]
        broken.checkpointables["trainer"].value["optimizer"] = {"state": buffers}
    name = "model.weight" if where == "model" else "trainer.optimizer.state.1"
    with pytest.raises(UserError, match=f"model_final.pth is not written: {name} holds values"):
        broken.save("model_final", iteration=19)
    assert content(tmp_path) == before


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(tmp_path):
    saver(tmp_path).save("model_final", iteration=9)
    before = content(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))  # below the file's 20 kB
    try:
        for name in ("model_final", "model_0000019"):
            with pytest.raises(UserError, match=f"{name}.pth cannot be written: File too large"):
                saver(tmp_path, 2.0).save(name, iteration=19)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(tmp_path) == before
    assert saver(tmp_path).resume_or_load("")["iteration"] == 9


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "x"))

    saver(tmp_path).save("model_final", iteration=9)
    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(UserError, match="model_final.pth cannot be written: Read-only file"):
        saver(tmp_path, 2.0).save("model_final", iteration=19)
    monkeypatch.undo()
    assert value(tmp_path / "model_final.pth") == 1.0


def test_what_else_a_run_writes_on_a_full_disk():
    with pytest.raises(UserError, match="OUTPUT_DIR out: No space left on device"):
        with output_errors("out"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="Broken pipe"), output_errors("out"):
        raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))


def test_what_killed_saves_and_deleted_checkpoints_left_is_removed(tmp_path):
    saver(tmp_path).save("model_0000009", iteration=9)
    (tmp_path / "model_0000009.pth").unlink()  # as PeriodicCheckpointer(max_to_keep=...) does
    (tmp_path / ".model_0000019.pth-abcd1_23").mkdir()
    (tmp_path / ".model_0000019.pth-abcd1_23" / "model_0000019.pth").write_bytes(b"half")
    (tmp_path / ".last_checkpoint-abcd1_23").mkdir()
    kept = [tmp_path / ".detections.json-abcd1_23", tmp_path / ".git"]  # others' work
    for folder in kept:
        folder.mkdir()
    saver(tmp_path).save("model_0000029", iteration=29)
    assert {x.name for x in tmp_path.iterdir()} == {
        *("model_0000029.pth", "model_0000029.pth.sha256", "last_checkpoint"),
        *(x.name for x in kept),
    }


def test_the_best_checkpoint_is_not_the_last(tmp_path):
    saver(tmp_path).save("model_best", iteration=9)
    assert not (tmp_path / "last_checkpoint").exists()


def test_values_that_are_not_finite_are_not_evaluated(tmp_path):
    model = nn.Linear(4, 4)
    nn.init.constant_(model.bias, float("inf"))
    torch.save({"model": model.state_dict()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="x.pth: bias holds values that are not finite"):
        load_weights(nn.Linear(4, 4), str(tmp_path / "x.pth"))
    load_weights(nn.Linear(4, 4), str(tmp_path / "x.pth"), strict=False)
