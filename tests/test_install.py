"""The set-up script's decisions and steps, the package's metadata, the Makefile."""

import importlib.metadata
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = ROOT / "projects" / "MimicDetRuntime"
COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
ADDRESS = "https://github.com/facebookresearch/detectron2.git"
PINS = {"torch": "2.11.0", "torchvision": "0.26.0"}


@pytest.fixture
def env():
    """The set-up script as a module."""
    path = ROOT / "requirements" / "setup_env.py"
    spec = importlib.util.spec_from_file_location("mimicdet_setup_env", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_setup_py(*arguments, cwd=ROOT):
    """Runs setup.py of the package in a folder of the checkout; returns what it prints."""
    command = [sys.executable, "setup.py", "-q", *arguments]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def written_metadata(cwd, folder):
    """The .egg-info that setup.py in `cwd` writes into a folder."""
    run_setup_py("egg_info", "--egg-base", str(folder), cwd=cwd)
    (info,) = folder.glob("*.egg-info")
    return info


# Decisions


@pytest.mark.parametrize("version", [(2, 7), (3, 6, 15), (3, 9, 18)])
def test_old_python_is_named(env, version):
    assert f"is Python {version[0]}.{version[1]}." in env.age_problem(version)


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 13, 1), (4, 0)])
def test_new_python_is_fine(env, version):
    assert env.age_problem(version) == ""


def test_missing_venv_names_the_debian_package(env):
    assert env.venv_problem((3, 12), ["venv", "ensurepip"]) == ""
    message = env.venv_problem((3, 12), ["venv"])
    assert "python3-venv" in message and "python3.12-venv" in message


def test_only_an_environment_is_installed_into(env, tmp_path):
    assert env.installs_in_place("/home/me/env", "/usr", None)
    assert not env.installs_in_place("/usr", "/usr", None)
    conda = tmp_path / "conda"
    conda.mkdir()
    (tmp_path / "link").symlink_to(conda)
    assert env.installs_in_place(str(conda), str(conda), str(tmp_path / "link"))
    assert not env.installs_in_place("/usr", "/usr", str(conda))
    assert not env.installs_in_place("/usr", "/usr", "")


@pytest.mark.parametrize(
    "versions, detectron2_works, kept",
    [
        ({}, False, False),
        (PINS, False, True),
        ({"torch": "2.11.0+cpu", "torchvision": "0.26.0+cpu"}, False, True),
        ({"torch": "2.11.0", "torchvision": "0.25.0"}, False, False),
        ({"torch": "2.11.0", "torchvision": None}, False, False),
        ({"torch": "2.4.0", "torchvision": "0.19.0"}, False, False),
        ({"torch": "2.4.0", "torchvision": "0.19.0"}, True, True),
    ],
)
def test_which_torch_is_kept(env, versions, detectron2_works, kept):
    assert env.keeps_torch(versions, PINS, detectron2_works) is kept


def test_missing_build_tools(env, tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    lacking = env.missing_build_tools(lambda name: None, str(tmp_path))
    assert lacking == ["git", "a C++ compiler (g++)", "the Python headers (Python.h)"]
    (tmp_path / "Python.h").touch()
    assert env.missing_build_tools(lambda name: name, str(tmp_path)) == []
    only_clang = {"git": "git", "clang++": "clang++"}.get
    assert env.missing_build_tools(only_clang, str(tmp_path)) == []
    monkeypatch.setenv("CXX", "icpx -O2")
    assert env.missing_build_tools(only_clang, str(tmp_path)) == ["a C++ compiler (g++)"]


def test_ready_until_something_changes(env):
    wanted = {"python": "p", "inputs": "a", "state": {"torch": "2.11.0"}, "extra": "test"}
    assert env.is_ready(dict(wanted), wanted)
    assert env.is_ready({**wanted, "extra": "dev"}, wanted)
    assert not env.is_ready(dict(wanted), {**wanted, "extra": "dev"})
    for key, other in (("python", "q"), ("inputs", "b"), ("state", {"torch": None})):
        assert not env.is_ready({**wanted, key: other}, wanted)
    assert not env.is_ready({}, wanted)


def test_fingerprint_follows_the_inputs(env, tmp_path):
    runtime = tmp_path / "projects" / "MimicDetRuntime"
    files = [
        folder / name for folder in (tmp_path, runtime) for name in ("setup.py", "pyproject.toml")
    ]
    files.append(tmp_path / "requirements" / "a.txt")
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    before = env.fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("no input")
    assert env.fingerprint(tmp_path) == before
    for path in files:
        path.write_text("y")
        assert env.fingerprint(tmp_path) != before
        path.write_text("x")
    assert env.fingerprint(tmp_path) == before


def test_an_unreadable_stamp_counts_as_none(env, tmp_path):
    path = tmp_path / "stamp.json"
    assert env.read_stamp(path) == {}
    for text in ("{half", "[1]"):
        path.write_text(text)
        assert env.read_stamp(path) == {}


def test_describe_knows_this_interpreter(env):
    state = env.describe_in(sys.executable)
    torch = importlib.util.find_spec("torch")
    assert state["modules"]["torch"] == [str(Path(torch.origin).parent)]
    assert state["versions"]["torch"] and state["versions"]["detectron2"]
    assert state["compiled"]


def test_import_problem_is_the_last_line(env):
    assert env.import_problem(sys.executable, ("json", "os")) == ""
    problem = env.import_problem(sys.executable, ("json", "no_such_module"))
    assert problem == "ModuleNotFoundError: No module named 'no_such_module'"


# Steps


class Machine:
    """Stands in for pip and the imports of the interpreter that is set up."""

    def __init__(self, env, monkeypatch, working, detectron2=None):
        self.working, self.calls = set(working), []
        self.state = {
            "versions": {**PINS, "detectron2": detectron2},
            "modules": {name: [str(path)] for name, path in env.PACKAGES.items()},
        }
        self.loses_command = False
        self.failing = set()  # names that pip cannot install
        monkeypatch.setattr(env, "pip_install", self.pip_install)
        monkeypatch.setattr(env, "import_problem", self.import_problem)
        monkeypatch.setattr(env, "describe_in", lambda python: self.state)
        monkeypatch.setattr(env, "has_pip", lambda python: True)
        monkeypatch.setattr(env, "has_command", lambda python: not self.loses_command)
        monkeypatch.setattr(env, "detectron2_obstacle", lambda: "")

    def import_problem(self, python, modules):
        return "".join(f"no {name}" for name in modules if name not in self.working)

    def pip_install(self, python, arguments, failure):
        names = [Path(argument).name for argument in arguments]
        self.calls.append(names)
        if not self.failing.isdisjoint(names):
            raise failure
        if "torch.txt" in names:
            self.working |= {"torch", "torchvision"}
        if "detectron2.txt" in names:
            self.working |= {"detectron2", "detectron2._C"}
        if "-e" in names:
            self.working |= {"cv2", "pycocotools.mask", "fvcore", "tensorboard"}


def test_bare_machine_gets_everything_in_order(env, monkeypatch):
    machine = Machine(env, monkeypatch, working=[])
    env.install("python", "test")
    tools, detectron2, package = machine.calls
    assert tools == ["-r", "build.txt", "-r", "torch.txt"]
    assert {"--no-build-isolation", "detectron2.txt"} <= set(detectron2)
    assert "--force-reinstall" not in detectron2
    assert package[-4:] == ["-e", "MimicDetRuntime", "-e", f"{ROOT.name}[test]"]
    assert "--no-build-isolation" in package


def test_working_detectron2_and_its_torch_are_kept(env, monkeypatch):
    machine = Machine(env, monkeypatch, working=env.DETECTRON2_MODULES, detectron2="0.6")
    machine.state["versions"].update(torch="2.4.0", torchvision="0.19.0")
    env.install("python", "dev")
    assert not any({"torch.txt", "detectron2.txt"} & set(call) for call in machine.calls)
    assert len(machine.calls) == 2


def test_broken_detectron2_is_replaced(env, monkeypatch):
    working = ("torch", "torchvision", "detectron2")
    machine = Machine(env, monkeypatch, working=working, detectron2="0.6")
    env.install("python", "test")
    forced = [call for call in machine.calls if "--force-reinstall" in call]
    assert len(forced) == 1 and {"--no-deps", "detectron2.txt"} <= set(forced[0])
    assert not any("torch.txt" in call for call in machine.calls)


def test_an_obstacle_stops_before_anything_is_installed(env, monkeypatch):
    machine = Machine(env, monkeypatch, working=[])
    monkeypatch.setattr(env, "detectron2_obstacle", lambda: "This machine lacks git.")
    with pytest.raises(env.NoDetectron2) as error:
        env.install("/my/python", "test")
    message = str(error.value)
    assert message.startswith("Detectron2 can't be installed here: This machine lacks git.")
    assert "/my/python -m pip install --no-cache-dir --no-build-isolation 'detectron2 @" in message
    assert message.count(COMMIT) == 2 and "python3-dev" in message
    assert machine.calls == []


def test_obstacles(env, monkeypatch):
    monkeypatch.setattr(env, "missing_build_tools", lambda: ["git", "a C++ compiler (g++)"])
    assert env.detectron2_obstacle() == "This machine lacks git, a C++ compiler (g++)."
    monkeypatch.setattr(env, "missing_build_tools", lambda: [])
    calls = []

    def git(command, **options):
        calls.append(command)
        if len(calls) == 3:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, returncode=[0, 128][len(calls) - 1])

    monkeypatch.setattr(env.subprocess, "run", git)
    assert env.detectron2_obstacle() == ""
    for _ in range(2):
        assert env.detectron2_obstacle() == f"{ADDRESS} can't be reached."
    assert calls == [["git", "ls-remote", ADDRESS, "HEAD"]] * 3


@pytest.mark.parametrize("cause", ["obstacle", "build"])
def test_fallback_installs_the_runtime_alone(env, monkeypatch, tmp_path, capsys, cause):
    machine = Machine(env, monkeypatch, working=[])
    monkeypatch.setattr(env, "environment_python", lambda: "python")
    monkeypatch.setattr(env, "STAMP", tmp_path / "stamp.json")
    if cause == "obstacle":
        monkeypatch.setattr(env, "detectron2_obstacle", lambda: "no network")
    else:
        machine.failing = {"detectron2.txt"}
    with pytest.raises(env.NoDetectron2):
        env.run("test")
    machine.calls.clear()
    assert env.run("test", fallback=True) == "python"
    before, (*_, tools), runtime = machine.calls[:-2], machine.calls[-2], machine.calls[-1]
    assert bool(before) == (cause == "build")
    assert tools == "build.txt" and runtime[-4:] == ["-r", "runtime.txt", "-e", "MimicDetRuntime"]
    said = capsys.readouterr()
    assert "Detectron2 can't be installed here" in said.err and said.out == ""
    assert not (tmp_path / "stamp.json").exists(), "the next call has to try again"
    machine.failing, machine.calls = {"build.txt"}, []
    with pytest.raises(env.SetupError, match="pip could not install"):
        env.run("test", fallback=True)


def test_failed_pip_ends_with_our_words(env, monkeypatch, capsys):
    def run(extra, fallback):
        env.pip_install(sys.executable, ["-r"], env.SetupError("HELP"))

    monkeypatch.setattr(env, "run", run)
    monkeypatch.setattr(sys, "argv", ["setup_env.py"])
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(env.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(SystemExit) as stop:
        env.main()
    assert str(stop.value.code).endswith("HELP")
    assert capsys.readouterr().out == ""


def test_second_run_installs_nothing(env, monkeypatch, tmp_path):
    machine = Machine(env, monkeypatch, working=env.DETECTRON2_MODULES, detectron2="0.6")
    monkeypatch.setattr(env, "environment_python", lambda: "python")
    monkeypatch.setattr(env, "STAMP", tmp_path / "stamp.json")

    def installs(extra):
        machine.calls.clear()
        assert env.run(extra) == "python"
        return bool(machine.calls)

    assert installs("test")
    assert not installs("test")
    assert installs("dev")
    assert not installs("test"), "dev holds test"
    machine.state["versions"]["torch"] = "2.12.0"
    assert installs("test")
    assert f"{ROOT.name}[dev]" in machine.calls[-1], "an extra once installed stays"
    monkeypatch.setattr(env, "fingerprint", lambda root: "other inputs")
    assert installs("test")


def test_a_command_that_pip_took_along_is_installed_again(env, monkeypatch):
    machine = Machine(env, monkeypatch, working=env.DETECTRON2_MODULES, detectron2="0.6")
    machine.loses_command = True
    env.install("python", "test")
    assert machine.calls[-1][-3:] == ["--no-deps", "-e", "MimicDetRuntime"]


@pytest.mark.parametrize("name", ["mimicdet", "mimicdet_runtime"])
def test_package_of_another_checkout_is_an_error(env, monkeypatch, tmp_path, name):
    machine = Machine(env, monkeypatch, working=env.DETECTRON2_MODULES, detectron2="0.6")
    monkeypatch.setattr(env, "environment_python", lambda: "python")
    monkeypatch.setattr(env, "STAMP", tmp_path / "stamp.json")
    machine.state["modules"][name] = [f"/elsewhere/{name}"]
    with pytest.raises(env.SetupError, match=f"{name} is imported from .*/elsewhere/{name}'"):
        env.run("test")
    assert not (tmp_path / "stamp.json").exists()


# Package


def test_pins(env):
    assert env.read_pins(ROOT / "requirements" / "torch.txt") == PINS
    requirement = f"detectron2 @ git+{ADDRESS}@{COMMIT}"
    assert env.detectron2_source() == (requirement, ADDRESS, COMMIT)
    assert "<82" in (ROOT / "requirements" / "build.txt").read_text()


def test_detectron2_is_no_plain_requirement(tmp_path):
    info = written_metadata(ROOT, tmp_path)
    plain, *extras = (info / "requires.txt").read_text().split("\n\n")
    assert {"torch>=2.6", "torchvision", "fvcore", "pycocotools"} <= set(plain.split())
    assert "detectron2" not in plain
    names = [part.split("]")[0].strip() for part in extras]
    assert names == ["[detectron2", "[dev", "[export", "[pretrained", "[test"]
    assert COMMIT in extras[0]


def test_built_package_carries_the_configs(tmp_path):
    run_setup_py("build_py", "--build-lib", str(tmp_path))
    built = tmp_path / "mimicdet" / "model_zoo" / "configs"
    source = ROOT / "configs"
    expected = sorted(path.relative_to(source) for path in source.rglob("*.yaml"))
    assert (
        expected and sorted(path.relative_to(built) for path in built.rglob("*.yaml")) == expected
    )
    assert (tmp_path / "mimicdet" / "config" / "defaults.py").is_file()
    assert not (ROOT / "projects/MimicDet/mimicdet/model_zoo/configs").exists()


def test_only_the_runtime_has_the_command(tmp_path):
    """Else pip would delete the command of one package with the other."""
    full, runtime = tmp_path / "full", tmp_path / "runtime"
    for folder, cwd in ((full, ROOT), (runtime, RUNTIME)):
        folder.mkdir()
        run_setup_py("build_py", "--build-lib", str(folder / "lib"), cwd=cwd)
    assert [path.name for path in (full / "lib").iterdir()] == ["mimicdet"]
    assert [path.name for path in (runtime / "lib").iterdir()] == ["mimicdet_runtime"]
    assert not [*tmp_path.rglob("*.jpg")], "data/bccd stays out of the wheels"
    assert not [x for x in tmp_path.rglob("*.*") if x.suffix in (".onnx", ".safetensors")]
    assert (runtime / "lib" / "mimicdet_runtime" / "registry.json").is_file()
    page = runtime / "lib" / "mimicdet_runtime" / "static"
    assert {"index.html", "app.js", "style.css"} <= {path.name for path in page.iterdir()}
    info = written_metadata(ROOT, full)
    assert not (info / "entry_points.txt").exists()
    command = (written_metadata(RUNTIME, runtime) / "entry_points.txt").read_text()
    assert "mimicdet = mimicdet_runtime.cli:main" in command
    version = run_setup_py("--version", cwd=RUNTIME).strip()
    assert run_setup_py("--version").strip() == version
    assert f"mimicdet-runtime=={version}" in (info / "requires.txt").read_text().split()


@pytest.mark.parametrize("cwd, title", [(ROOT, "# MimicDet"), (RUNTIME, "# mimicdet-runtime")])
def test_packages_describe_themselves(tmp_path, cwd, title):
    text = (written_metadata(cwd, tmp_path) / "PKG-INFO").read_text(encoding="utf-8")
    for line in (
        "License: Apache-2.0",
        "License-File: LICENSE",
        "Project-URL: Paper, https://arxiv.org/abs/2009.11528",
        "Classifier: License :: OSI Approved :: Apache Software License",
        "Description-Content-Type: text/markdown",
    ):
        assert f"\n{line}\n" in text
    assert f"\n{title}" in text
    assert (cwd / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize(
    "distribution, module, expected",
    [
        (True, True, ["onnxruntime>=1.17", "opencv-python-headless>=4.8"]),
        (False, False, ["onnxruntime>=1.17", "opencv-python-headless>=4.8"]),
        (False, True, []),  # of onnxruntime-gpu, opencv-python
    ],
)
def test_what_another_package_brings_is_not_required(monkeypatch, distribution, module, expected):
    def find_distribution(name):
        if not distribution:
            raise importlib.metadata.PackageNotFoundError(name)

    required = []
    monkeypatch.setattr(
        "setuptools.setup", lambda install_requires: required.extend(install_requires)
    )
    monkeypatch.setattr(importlib.metadata, "distribution", find_distribution)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: module or None)
    runpy.run_path(str(RUNTIME / "setup.py"))
    assert required == ["numpy", "Pillow>=9.1", *expected]


# Makefile and CI


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    "target, command",
    [
        ("setup", "my-python requirements/setup_env.py"),
        ("demo", "tools/quickstart.py"),
        ("demo", "-m mimicdet_runtime.evaluation models/"),
        ("test", "-m pytest tests -n auto --maxprocesses 8 --dist loadfile -k some"),
        ("lint", "-m mypy"),
    ],
)
def test_make_uses_the_chosen_python(target, command):
    call = ["make", "-n", target, "PYTHON=my-python", "PYTEST_ARGS=-k some"]
    # Without the variables of a make that may have started the tests.
    outer = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    outer.pop("MFLAGS", None)
    result = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True, env=outer)
    assert "my-python requirements/setup_env.py" in result.stdout
    assert command in result.stdout
    # What .ci/run calls first has to stop where Detectron2 is missing.
    assert ("--fallback" in result.stdout) == (target in ("demo", "test"))


def test_without_detectron2_the_tests_that_need_it_are_left_out_and_counted(tmp_path):
    for name in ("torch", "detectron2"):
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    paths = ["runtime/test_evaluation.py", "runtime/test_detector.py", "utils", "commands"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *(f"tests/{path}" for path in paths)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    # test_detector.py compares with Detectron2 once, and once for each orientation of a photo.
    assert result.returncode == 0, result.stdout
    files = sum(len([*(ROOT / "tests" / x).rglob("test_*.py")]) for x in ("utils", "commands"))
    assert f"LEFT OUT: {files} test files and 9 tests of other files" in result.stdout
    assert "missing: detectron2, " in result.stdout


def test_ci_runs_lint_and_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[0].endswith("bash") and "set -euo pipefail" in lines
    names = [line.split("  #")[0] for line in lines]
    assert names.index("make lint") < names.index("make test")
