"""Files and folders that appear whole or not at all."""

import os

import pytest

from mimicdet.utils.files import durable_path, new_path


def test_a_file_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "folder" / "a.json"
    with new_path(target) as path:
        assert path.name == "a.json" and not path.exists()
        path.write_text("half")
        assert not target.exists()
        path.write_text("whole")
    assert target.read_text() == "whole"
    with new_path(str(target)) as path:
        path.write_text("other")
    assert target.read_text() == "other"
    assert [x.name for x in target.parent.iterdir()] == ["a.json"]


def test_a_failure_leaves_what_was_there(tmp_path):
    target = tmp_path / "a.json"
    target.write_text("before")
    with pytest.raises(RuntimeError, match="disk"), new_path(target) as path:
        path.write_text("half")
        raise RuntimeError("disk")
    assert [x.name for x in tmp_path.iterdir()] == ["a.json"]
    assert target.read_text() == "before"


def test_of_two_folders_the_first_stays(tmp_path):
    target = tmp_path / "data"
    with new_path(target) as path:
        path.mkdir()
        (path / "file").write_text("second")
        target.mkdir()
        (target / "file").write_text("first")
    assert (target / "file").read_text() == "first"
    assert [x.name for x in tmp_path.iterdir()] == ["data"]


def test_a_file_is_not_dropped_for_a_folder(tmp_path):
    with pytest.raises(OSError), new_path(tmp_path / "data") as path:
        path.write_text("file")
        (tmp_path / "data").mkdir()


def test_a_durable_file_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    steps, replace = [], os.replace

    def recorded(source, target):
        steps.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "replace", recorded)
    monkeypatch.setattr(os, "fsync", lambda x: steps.append(os.readlink(f"/proc/self/fd/{x}")))
    with durable_path(tmp_path / "a.json") as path:
        path.write_text("whole")
    assert steps == [str(path), "replace", str(tmp_path)]
    assert (tmp_path / "a.json").read_text() == "whole"


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    mask = os.umask(0o022)
    try:
        with new_path(tmp_path / "file") as path:
            path.write_text("")
        with new_path(tmp_path / "folder") as path:
            path.mkdir()
    finally:
        os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755
