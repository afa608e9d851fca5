"""The boundary between what a user can put right and faults of the program."""

import importlib
import inspect
import pkgutil
import runpy
from pathlib import Path

import pytest

import mimicdet.commands
from mimicdet.utils import errors
from mimicdet.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def main_that_raises(error):
    @errors.command
    def main(argv=None):
        raise error

    return main


def test_the_users_error_is_one_line_and_2(capsys):
    assert main_that_raises(UserError("none.yaml: no such file"))([]) == 2
    assert capsys.readouterr() == ("", "error: none.yaml: no such file\n")


def test_ctrl_c_is_a_short_line_and_130(capsys):
    assert main_that_raises(KeyboardInterrupt())([]) == 130
    assert capsys.readouterr().err.strip() == "stopped"


@pytest.mark.parametrize("kind", [KeyError, AssertionError, OSError, ValueError, TypeError])
def test_any_other_error_keeps_its_traceback(kind):
    with pytest.raises(kind, match="p2"):
        main_that_raises(kind("p2"))([])


def test_the_exit_code_and_the_arguments_pass():
    @errors.command
    def main(argv=None):
        """Run it."""
        return len(argv)

    assert main(["a", "b", "c"]) == 3 and main.__doc__ == "Run it."


def commands():
    """(module, main) of every command: a module of mimicdet.commands, or a folder's cli.py."""
    package = mimicdet.commands
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        name = f"{info.name}.cli" if info.ispkg else info.name
        yield name, importlib.import_module(name).main


@pytest.mark.parametrize(("name", "main"), list(commands()))
def test_every_command_is_wrapped(name, main):
    assert main.__code__ is main_that_raises(None).__code__
    assert main.__wrapped__.__module__ == name
    assert list(inspect.signature(main).parameters) == ["argv"]


def test_the_runtimes_command_is_wrapped():
    from mimicdet_runtime import cli

    assert cli.main.__wrapped__.__module__ == "mimicdet_runtime.cli"


SCRIPTS = [*sorted((ROOT / "tools").glob("*.py")), *sorted((ROOT / "demo").glob("*.py"))]


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / "train_net.py"], ids=lambda path: path.stem)
def test_scripts_only_call_a_command(script):
    content = runpy.run_path(str(script), run_name="not_main")
    names = [name for name in content if not name.startswith("__") and name != "sys"]
    assert names == ["main"]
    assert content["main"].__module__.startswith("mimicdet.commands.")


def test_file_errors_name_the_file(tmp_path):
    path = tmp_path / "none.txt"
    with pytest.raises(UserError, match=f"{path}: No such file"):
        errors.read_text(path)
    with pytest.raises(UserError, match="^disk$"), errors.file_errors():
        raise OSError("disk")
    with pytest.raises(KeyError), errors.file_errors():
        raise KeyError("p2")


def test_files_of_another_kind(tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=f"{path} is no UTF-8 text"):
        errors.read_json(path)
    path.write_text("[")
    with pytest.raises(UserError, match=f"{path} is not JSON"):
        errors.read_json(path)
    path.write_text("[1]")
    assert errors.read_json(path) == [1]


def test_folders(tmp_path, monkeypatch):
    errors.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=str(tmp_path / "file")):
        errors.make_folder(tmp_path / "file")
    monkeypatch.setattr(errors.os, "access", lambda *_: False)
    with pytest.raises(UserError, match=f"{tmp_path}: .*cannot be written"):
        errors.make_folder(tmp_path)


def test_choices():
    errors.check_choice("KEY", "a", {"a": 1, "b": 2})
    with pytest.raises(UserError, match="^KEY must be one of a, b, got 'c'$"):
        errors.check_choice("KEY", "c", ("a", "b"))
    errors.check_choices("KEY", ["a", "b"], iter("ab"))
    with pytest.raises(UserError, match="^KEY must be one of p3, p4, got 'p8', 'p9'$"):
        errors.check_choices("KEY", ["p3", "p8", "p9"], ["p3", "p4"])


def test_optional_packages():
    errors.check_installed("it", "json")
    with pytest.raises(UserError, match="^it needs no_such_package: .*extra 'export'"):
        errors.check_installed("it", "json", "no_such_package")
