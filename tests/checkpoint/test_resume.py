"""Which checkpoint --resume goes on from, and what it says of the others."""

import argparse
import logging
import os

import pytest
import torch
from torch import nn

from mimicdet.checkpoint import MimicCheckpointer
from mimicdet.commands import quickstart, train
from mimicdet.commands.train import wants_resume
from mimicdet.utils.errors import UserError
from tests.helpers import small_cfg


class State:
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def checkpointer(folder):
    return MimicCheckpointer(nn.Linear(2, 2), str(folder), trainer=State())


@pytest.fixture
def run(tmp_path):
    """The folder of a run with checkpoints of iterations 9, 19 and 29, written in this order."""
    folder = tmp_path / "output"
    folder.mkdir()
    for number in (9, 19, 29):
        save(folder, f"model_{number:07d}", number)
    return folder


def save(folder, name, iteration, age=None):
    checkpointer(folder).save(name, iteration=iteration)
    when = 1_000_000 + iteration if age is None else age
    for file in (f"{name}.pth", "last_checkpoint"):
        os.utime(folder / file, (when, when))


def resumed(folder):
    return checkpointer(folder).resume_or_load("", resume=True)["iteration"]


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_last_one(run, caplog):
    caplog.set_level(logging.INFO)
    assert resumed(run) == 29
    assert f"--resume goes on from {run / 'model_0000029.pth'}" in caplog.text
    assert "skips" not in caplog.text


def test_a_damaged_one_is_skipped_and_named(run, caplog):
    damage(run / "model_0000029.pth")
    (run / "model_0000019.pth").write_bytes(b"PK\x03\x04")
    assert resumed(run) == 9
    for number in (29, 19):
        assert f"skips {run}/model_00000{number}.pth is no checkpoint" in caplog.text


def test_one_with_values_that_are_not_finite_is_skipped(run, caplog):
    content = torch.load(run / "model_0000029.pth", weights_only=True)
    content["model"]["bias"][0] = float("nan")
    torch.save(content, run / "model_0000029.pth")
    (run / "model_0000029.pth.sha256").unlink()
    assert resumed(run) == 19
    assert "model_0000029.pth: model.bias holds values that are not finite" in caplog.text


def test_last_checkpoint_is_lost_or_broken(run, tmp_path):
    for text in ("", "\0\0\0\0", "x" * 999, "\udcff"):
        (run / "last_checkpoint").write_text(text, errors="surrogateescape")
        assert resumed(run) == 29
    (tmp_path / "last_checkpoint").touch()
    with pytest.raises(UserError, match="to go on from: last_checkpoint names none"):
        resumed(tmp_path)
    (run / "last_checkpoint").unlink()
    assert resumed(run) == 29


@pytest.mark.parametrize("way", ["../other.pth", "absolute", "link"])
def test_what_lies_outside_is_not_followed(run, tmp_path, caplog, way):
    other = tmp_path / "other.pth"
    torch.save({"model": nn.Linear(2, 2).state_dict(), "iteration": 77, "trainer": {}}, other)
    if way == "link":
        (run / "model_0000077.pth").symlink_to(other)
        way = "model_0000077.pth"
    name = str(other) if way == "absolute" else way
    (run / "last_checkpoint").write_text(name)
    assert resumed(run) == 29
    assert f"{run / name}: it lies outside {run}, which is not followed" in caplog.text


def test_a_save_that_was_cut_before_its_name_was_written(run):
    """Newer than last_checkpoint, and later."""
    (run / "last_checkpoint").write_text("model_0000019.pth")
    os.utime(run / "last_checkpoint", (1_000_019, 1_000_019))
    assert resumed(run) == 29


def test_last_checkpoint_that_a_user_has_changed_is_followed(run):
    (run / "last_checkpoint").write_text("model_0000009.pth")  # now
    assert resumed(run) == 9


def test_a_copied_folder_whose_times_are_lost(run):
    save(run, "model_final", 15)  # of an earlier, shorter stage of the run
    (run / "last_checkpoint").write_text("model_0000029.pth")
    for age, name in enumerate(["last_checkpoint", "model_0000029.pth", "model_final.pth"]):
        os.utime(run / name, (age, age))
    assert resumed(run) == 29


def test_checkpoints_of_a_longer_run_that_was_started_anew_are_not_gone_on_from(run):
    save(run, "model_0000004", 4, age=2_000_000)
    assert resumed(run) == 4
    (run / "last_checkpoint").unlink()
    assert resumed(run) == 4
    damage(run / "model_0000004.pth")
    assert resumed(run) == 29


def test_others_are_not_taken(run, caplog):
    """The best one, a student alone, and another program's file."""
    save(run, "model_best", 99)
    torch.save({"model": nn.Linear(2, 2).state_dict()}, run / "model_student.pth")
    torch.save({"model": {}, "iteration": 99, "trainer": {}}, run / "pretrained.pth")
    (run / "last_checkpoint").unlink()
    assert resumed(run) == 29
    assert "model_student.pth: no training run wrote it, it has no iteration, trainer" in (
        caplog.text
    )


def test_those_of_earlier_versions_have_no_digest(run):
    for path in run.glob("*.sha256"):
        path.unlink()
    assert resumed(run) == 29
    (run / "model_0000029.pth").write_bytes((run / "model_0000029.pth").read_bytes()[:-1])
    assert resumed(run) == 19


def test_none_that_is_whole(run):
    for path in run.glob("*.pth"):
        path.write_bytes(b"")
    for name in ("model_0000029.pth", "nothing.pth"):
        (run / "last_checkpoint").write_text(name)
        with pytest.raises(UserError, match=f"no checkpoint in .*{name}.*model_0000009.pth is no"):
            checkpointer(run).resume_or_load("", resume=True)


@pytest.mark.parametrize("parser", [train.build_parser(), quickstart.build_parser()])
def test_resume_without_a_checkpoint(parser, run, tmp_path):
    def wanted(*flags, folder=tmp_path):
        return wants_resume(parser.parse_args(flags), str(folder))

    assert not wanted() and not wanted(folder=run)
    assert wanted("--resume", folder=run) and wanted("--resume-or-start", folder=run)
    assert wanted("--resume-or-start")
    with pytest.raises(UserError, match=f"no checkpoint in OUTPUT_DIR {tmp_path}; --resume-or-st"):
        wanted("--resume")
    assert checkpointer(tmp_path).resume_or_load("", resume=True) == {}


@pytest.mark.parametrize("command", ["train", "quickstart"])
def test_the_commands_ask_before_they_write(command, tmp_path, monkeypatch, capsys):
    def refuse(args: argparse.Namespace, folder: str) -> bool:
        raise UserError(f"asked {folder}")

    output = tmp_path / "output"
    (tmp_path / "x.yaml").write_text(small_cfg().dump())
    config = ["--config-file", str(tmp_path / "x.yaml"), "--resume"]
    if command == "train":
        monkeypatch.setattr(train, "wants_resume", refuse)
        opts = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "OUTPUT_DIR", str(output)]
        assert train.main([*config, *opts]) == 2
        assert not output.exists()
    else:
        monkeypatch.setattr(quickstart, "wants_resume", refuse)
        monkeypatch.setattr(quickstart, "start_log", lambda folder: folder.mkdir())
        cfg = small_cfg("OUTPUT_DIR", str(output))
        monkeypatch.setattr(quickstart, "make_data", lambda *_: cfg)
        assert quickstart.main([*config, "--output", str(output)]) == 2
        assert {x.name for x in output.iterdir()} == {"log.txt"}
    assert f"error: asked {output}" in capsys.readouterr().err
