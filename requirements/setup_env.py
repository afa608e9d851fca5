"""Installs whatever MimicDet still lacks and prints the interpreter to run it with.

    python3 requirements/setup_env.py [--extra test|dev] [--fallback]

Standard library only. A virtual or conda environment that runs this file is used as it is; any
other interpreter gets `.venv` in the checkout, which sees the interpreter's own packages so that
its torch and Detectron2 are kept. Progress goes to stderr, and stdout holds one line: the
interpreter. `.setup.json` records what was found after the last installation; as long as that is
still so, a call installs nothing and imports nothing heavy.

With --fallback, where Detectron2 can't be installed, it says so and installs the runtime and the
packages of `runtime.txt` alone. Nothing records that: the next call tries Detectron2 again.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STAMP = ROOT / ".setup.json"
RUNTIME = ROOT / "projects" / "MimicDetRuntime"
PACKAGES = {
    "mimicdet": ROOT / "projects" / "MimicDet" / "mimicdet",
    "mimicdet_runtime": RUNTIME / "mimicdet_runtime",
}
EXTRAS = ("test", "dev")  # each holds the ones before it
DETECTRON2_MODULES = ("torch", "torchvision", "detectron2", "detectron2._C")


class SetupError(Exception):
    """A condition that the user has to change; the text says how."""


class NoDetectron2(SetupError):
    """Detectron2 is missing, and can't be installed here."""


def age_problem(version: tuple) -> str:
    """Says that a Python of this version, (major, minor, ...), is too old, or returns ""."""
    if tuple(version[:2]) >= (3, 10):
        return ""
    return (
        "MimicDet needs Python 3.10 or newer; "
        f"{sys.executable} is Python {version[0]}.{version[1]}.\n"
        "Name another one: make demo PYTHON=python3.12"
    )


# Here, because an older Python stumbles over the annotations below.
if age_problem(sys.version_info):
    sys.exit(age_problem(sys.version_info))


# Decisions: functions of what was found, without side effects.


def venv_problem(version: tuple, modules: list[str]) -> str:
    """Says what keeps an interpreter from making `.venv`, or returns "".

    Args:
        version: (major, minor, ...) of the interpreter.
        modules: those of venv and ensurepip that it has.
    """
    if {"venv", "ensurepip"} <= set(modules):
        return ""
    return (
        f"{sys.executable} has no working venv module, so no .venv can be made.\n"
        "On Debian and Ubuntu: sudo apt-get install python3-venv "
        f"(or python{version[0]}.{version[1]}-venv).\n"
        "Or run make from inside a virtual or conda environment of your own."
    )


def installs_in_place(prefix: str, base_prefix: str, conda_prefix: str | None) -> bool:
    """True if the interpreter is that of a virtual or of the active conda environment."""
    if prefix != base_prefix:
        return True
    return conda_prefix is not None and Path(conda_prefix).resolve() == Path(prefix).resolve()


def keeps_torch(
    versions: dict[str, str | None], pinned: dict[str, str], detectron2_works: bool
) -> bool:
    """True if the torch and torchvision that are there stay.

    They do when the installed Detectron2 loads with them (it was built for them), or when both
    work and are the tested releases. A local version such as ``+cu128`` says how a release was
    built and does not count.

    Args:
        versions: package -> installed version, None or missing if it can't be imported.
        pinned: package -> tested version.
        detectron2_works: whether Detectron2 with its compiled part can be imported.
    """
    if detectron2_works:
        return True
    return all((versions.get(name) or "").split("+")[0] == pinned[name] for name in pinned)


def missing_build_tools(
    which: Callable[[str], str | None] = shutil.which, include: str | None = None
) -> list[str]:
    """What compiling Detectron2 needs and this machine lacks, in words.

    Args:
        which: finds a program in the search path.
        include: Python's header folder; None for that of the running interpreter.
    """
    include = sysconfig.get_path("include") if include is None else include
    compiler = os.environ.get("CXX", "").split()[:1] or ["g++", "c++", "clang++"]
    missing = [] if which("git") else ["git"]
    if not any(which(name) for name in compiler):
        missing.append("a C++ compiler (g++)")
    if not (Path(include) / "Python.h").is_file():
        missing.append("the Python headers (Python.h)")
    return missing


def is_ready(stamp: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """True if the recorded set-up is the wanted one or more than it.

    Args:
        stamp: what `.setup.json` holds, {} if there is none.
        wanted: the same keys, as found now: python, inputs, state, extra.
    """
    if any(stamp.get(key) != wanted[key] for key in ("python", "inputs", "state")):
        return False
    return stamp.get("extra") in EXTRAS[EXTRAS.index(wanted["extra"]) :]


def read_pins(path: Path) -> dict[str, str]:
    """package -> version of the lines ``package==version``."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE))


def detectron2_help(reason: str, python: str) -> str:
    """What to do where Detectron2 could not be installed for the interpreter `python`."""
    requirement, address, commit = detectron2_source()
    return (
        f"Detectron2 can't be installed here: {reason}\n\n"
        "MimicDet needs Detectron2, which is compiled on this machine. That takes git, a C++\n"
        "compiler, the Python headers (Debian and Ubuntu: sudo apt-get install git g++\n"
        f"python3-dev) and a network that reaches {address}.\n"
        "With these, run the same command again, or install it by hand:\n"
        f"  {python} -m pip install --no-cache-dir --no-build-isolation '{requirement}'\n"
        "Without such a network, bring a checkout of that commit and install from it:\n"
        f"  git clone {address} && git -C detectron2 checkout {commit}\n"
        f"  {python} -m pip install --no-build-isolation ./detectron2\n"
        "An nvcc on this machine has to be of torch's CUDA major release (torch.version.cuda).\n"
        "A Detectron2 that can be imported is kept as it is."
    )


def detectron2_source() -> tuple[str, str, str]:
    """The requirement of detectron2.txt, and the address and the commit in it."""
    text = (ROOT / "requirements" / "detectron2.txt").read_text(encoding="utf-8")
    (requirement,) = [line for line in text.splitlines() if line and not line.startswith("#")]
    address, commit = requirement.split("git+", 1)[1].rsplit("@", 1)
    return requirement, address, commit


# What there is.


def fingerprint(root: Path) -> str:
    """Digest of the files that say what to install; it changes when one of them does."""
    digest = hashlib.sha256()
    parts = (root, root / "projects" / "MimicDetRuntime")
    files = [part / name for part in parts for name in ("setup.py", "pyproject.toml")]
    for path in [*files, *sorted((root / "requirements").iterdir())]:
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def describe() -> dict[str, Any]:
    """Releases and places of this interpreter's packages, found without importing any of them."""
    # Here, because a Python that has no such module has to get as far as `age_problem`.
    import importlib.metadata

    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    def folder(name: str) -> list[str] | None:
        spec = importlib.util.find_spec(name)
        return list(spec.submodule_search_locations or [])[:1] if spec else None

    names = {"torch", "torchvision", "detectron2", "setuptools", "wheel", "ninja"}
    for package in ("mimicdet", "mimicdet-runtime"):
        requirements = importlib.metadata.requires(package) or [] if version(package) else []
        names.update([package, *(re.split(r"[^\w.-]", x, maxsplit=1)[0] for x in requirements)])
    modules = {name: folder(name) for name in ("torch", "detectron2", "cv2", *PACKAGES)}
    compiled = [str(p) for at in modules["detectron2"] or [] for p in Path(at).glob("_C*.so")]
    versions = {name: version(name) for name in sorted(names)}
    return {"versions": versions, "modules": modules, "compiled": compiled}


def describe_in(python: str) -> dict[str, Any]:
    """`describe` as another interpreter answers it."""
    command = [python, str(Path(__file__).resolve()), "--describe"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def import_problem(python: str, modules: Iterable[str]) -> str:
    """The last line of what another interpreter says when it imports modules; "" if it can."""
    command = [python, "-c", "import " + ", ".join(modules)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
    return lines[-1] if result.returncode else ""


def detectron2_obstacle() -> str:
    """Says what keeps Detectron2 from being fetched and compiled here, or returns ""."""
    missing = missing_build_tools()
    if missing:
        return "This machine lacks " + ", ".join(missing) + "."
    address = detectron2_source()[1]
    try:
        code = subprocess.run(
            ["git", "ls-remote", address, "HEAD"],
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        ).returncode
    except subprocess.TimeoutExpired:
        code = 1
    return f"{address} can't be reached." if code else ""


def read_stamp(path: Path) -> dict[str, Any]:
    """The record of the last set-up; {} if there is none that can be read."""
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


# What to do.


def say(text: str) -> None:
    """Prints progress to stderr: stdout is for the interpreter alone."""
    print(f"[mimicdet] {text}", file=sys.stderr, flush=True)


def has_command(python: str) -> bool:
    """True if the interpreter's environment has the command `mimicdet`."""
    return (Path(python).parent / "mimicdet").exists()


def has_pip(python: str) -> bool:
    """True if the interpreter can run pip."""
    command = [python, "-m", "pip", "--version"]
    return (
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
        == 0
    )


def environment_python() -> str:
    """The interpreter to install for; makes `.venv` where the running one has no environment."""
    in_place = installs_in_place(sys.prefix, sys.base_prefix, os.environ.get("CONDA_PREFIX"))
    if in_place:
        return sys.executable
    python = str(ROOT / ".venv" / "bin" / "python")
    if not os.access(python, os.X_OK):
        make_environment()
    base = subprocess.run(
        [python, "-c", "import sys; print(sys.base_prefix, *sys.version_info[:2])"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    if base != f"{sys.base_prefix} {sys.version_info[0]} {sys.version_info[1]}":
        raise SetupError(
            f"{ROOT / '.venv'} was made by another Python than {sys.executable}.\n"
            "Remove that folder to have it made anew, or name its Python: "
            "make demo PYTHON=.venv/bin/python"
        )
    return python


def make_environment() -> None:
    """Makes `.venv`, or completes one that was interrupted."""
    modules = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name)]
    problem = venv_problem(sys.version_info, modules)
    if problem:
        raise SetupError(problem)
    say("making .venv (it keeps the packages that this Python has)")
    command = [sys.executable, "-m", "venv", "--system-site-packages", str(ROOT / ".venv")]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise SetupError(
            f"This failed: {' '.join(command)}\n"
            "Its reason is above. Where a .venv from before is broken, remove that folder."
        )


def pip_install(python: str, arguments: list[str], failure: SetupError) -> None:
    """Runs pip, its output going to stderr; raises `failure` where pip fails."""
    settings = {"PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [python, "-m", "pip", "install", *arguments]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **settings, "GIT_TERMINAL_PROMPT": "0"},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
    )
    if result.returncode:
        raise failure


def install_torch(python: str, works: bool) -> bool:
    """Installs build tools, and the tested pair of torch and torchvision unless a fit one is there.

    Takes and returns whether Detectron2 works.
    """
    folder = ROOT / "requirements"
    arguments = ["-r", str(folder / "build.txt")]
    pins = read_pins(folder / "torch.txt")
    found = {} if import_problem(python, tuple(pins)) else describe_in(python)["versions"]
    if keeps_torch(found, pins, works):
        say(f"torch {found['torch']} and torchvision {found['torchvision']} are there")
        arguments.append("--quiet")
    else:
        say("installing " + ", ".join(f"{name} {version}" for name, version in pins.items()))
        arguments += ["-r", str(folder / "torch.txt")]
    pip_install(
        python,
        arguments,
        SetupError(
            "pip could not install the packages of requirements/build.txt and torch.txt; its "
            "reason\nis above. Can a package registry be reached, does it have this torch for "
            f"Python {sys.version_info[0]}.{sys.version_info[1]},\n"
            "and is there enough disk space (torch takes 6 GB)?"
        ),
    )
    return works and not import_problem(python, DETECTRON2_MODULES)


def install_detectron2(python: str, broken: bool) -> None:
    """Fetches and compiles Detectron2; `broken`: one is there but can't be imported."""
    say("fetching and compiling Detectron2; this takes some minutes")
    listed = str(ROOT / "requirements" / "detectron2.txt")
    # pip's cache may hold a build for another torch: the commit is the same, the binary is not.
    options = ["--no-build-isolation", "--no-cache-dir", "-r", listed]
    reason = "It could not be fetched or compiled; pip's reason is above."
    failure = NoDetectron2(detectron2_help(reason, python))
    if broken:
        pip_install(python, ["--force-reinstall", "--no-deps", *options], failure)
    pip_install(python, options, failure)
    problem = import_problem(python, DETECTRON2_MODULES)
    if problem:
        reason = f"It was installed but can't be loaded: {problem}"
        raise NoDetectron2(detectron2_help(reason, python))


def install_packages(python: str, *arguments: str) -> None:
    """Installs packages with the build tools that are there."""
    pip_install(
        python,
        ["--quiet", "--no-build-isolation", *arguments],
        SetupError("pip could not install a package that is needed; its reason is above."),
    )


def install(python: str, extra: str) -> None:
    """Installs everything that is not there, step by step."""
    if not has_pip(python):
        raise SetupError(
            f"{python} has no pip. Add it with: {python} -m ensurepip --upgrade\n"
            "(or by your environment's manager: conda install pip, uv pip install pip)."
        )
    works = not import_problem(python, DETECTRON2_MODULES)
    # Before gigabytes of torch are fetched in vain.
    obstacle = "" if works else detectron2_obstacle()
    if obstacle:
        raise NoDetectron2(detectron2_help(obstacle, python))
    if install_torch(python, works):
        say("Detectron2 is there")
    else:
        install_detectron2(python, broken=bool(describe_in(python)["versions"]["detectron2"]))
    say(f"installing mimicdet, its runtime and its extra '{extra}'")
    install_packages(python, "-e", str(RUNTIME), "-e", f"{ROOT}[{extra}]")
    if not has_command(python):
        # pip replaced a package that held the command, and took it along after it was written.
        install_packages(python, "--no-deps", "-e", str(RUNTIME))
    problem = import_problem(python, ("cv2", "pycocotools.mask", "fvcore", "tensorboard"))
    if problem:
        raise SetupError(
            f"A package that was installed can't be loaded: {problem}\n"
            "If it is cv2 that lacks a shared library such as libGL: "
            f"{python} -m pip install --force-reinstall opencv-python-headless"
        )


def install_runtime(python: str) -> None:
    """Installs what needs only package registries: the runtime, what its tests and demo need."""
    folder = ROOT / "requirements"
    install_packages(python, "-r", str(folder / "build.txt"))
    install_packages(python, "-r", str(folder / "runtime.txt"), "-e", str(RUNTIME))


def run(extra: str, fallback: bool = False) -> str:
    """Sets up if need be, with `fallback` the runtime at least; returns the interpreter."""
    python = environment_python()
    wanted = {"python": python, "inputs": fingerprint(ROOT), "extra": extra}
    stamp = read_stamp(STAMP)
    if is_ready(stamp, {**wanted, "state": describe_in(python)}):
        return python
    if stamp.get("extra") in EXTRAS[EXTRAS.index(extra) :]:
        wanted["extra"] = stamp["extra"]
    try:
        install(python, wanted["extra"])
    except NoDetectron2 as error:
        if not fallback:
            raise
        say(f"{error}\n\nUntil then only the runtime is set up, which needs no Detectron2.")
        install_runtime(python)
        return python
    state = describe_in(python)
    for name, package in PACKAGES.items():
        if state["modules"][name] != [str(package)]:
            raise SetupError(f"{name} is imported from {state['modules'][name]}, not {package}.")
    STAMP.write_text(json.dumps({**wanted, "state": state}, indent=1) + "\n", encoding="utf-8")
    say("set-up is complete")
    return python


def main() -> None:
    """Command line; the exit status is 1 with a message where the user has to act."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extra", choices=EXTRAS, default="test", help="what to install besides")
    parser.add_argument("--fallback", action="store_true", help="the runtime at least")
    parser.add_argument("--describe", action="store_true", help="print this interpreter's packages")
    args = parser.parse_args()
    if args.describe:
        print(json.dumps(describe()))
        return
    try:
        print(run(args.extra, args.fallback))
    except SetupError as error:
        sys.exit(f"\nmimicdet's set-up stopped.\n{error}")


if __name__ == "__main__":
    main()
