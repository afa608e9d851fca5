"""Runs as processes of their own: so many at a time, resumable, ended together with the command."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ...utils.errors import UserError, file_errors, read_json
from ...utils.files import new_path
from .plan import PlannedRun
from .records import (
    EXECUTION,
    final_results,
    has_second_head,
    is_finished,
    teacher_results,
)

# As `python train_net.py` and `tools/report.py --eval-teacher`: nothing of one run stays for
# another.
_TRAIN = "import sys; from mimicdet.commands.train import main; sys.exit(main())"
_EVALUATE_TEACHER = """
import sys
from detectron2.utils.logger import setup_logger
from mimicdet.commands.report.cli import evaluate_teacher
setup_logger()
evaluate_teacher(sys.argv[1])
"""
_POLL = 0.2  # seconds
_GRACE = 15.0  # seconds between being asked to end and being killed


def check_settings(run: PlannedRun) -> None:
    """Raise UserError where the folder holds a run with other settings."""
    path = run.folder / "config.yaml"
    if path.is_file() and path.read_text() != run.cfg.dump():
        raise UserError(
            f"{run.folder} holds a run with other settings: remove it, or choose another --output"
        )


def next_command(run: PlannedRun) -> list[str] | None:
    """What is to be done next: train, then evaluate the T-head; None: nothing."""
    if final_results(run) is None:
        arguments = ["--config-file", run.row.config_file, "--resume-or-start", *run.all_opts]
        return [sys.executable, "-c", _TRAIN, *arguments]
    if has_second_head(run) and teacher_results(run) is None:
        return [sys.executable, "-c", _EVALUATE_TEACHER, str(run.folder)]
    return None


def code_commit() -> str | None:
    """Commit of the checkout that the package lies in, "+" behind it: changed; None: no git."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", ":/")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


class Execution:
    """The processes of one run, one after the other; what they print goes to console.txt."""

    def __init__(self, run: PlannedRun, lock: int):
        """
        Args:
            lock: file descriptor that lives as long as a process does.
        """
        self.run, self._lock = run, lock
        self._begun, self._commit = time.monotonic(), code_commit()
        with file_errors():
            run.folder.mkdir(parents=True, exist_ok=True)
            self._console: IO[bytes] = (run.folder / "console.txt").open("wb")
        self._command = next_command(run)
        self._process = self._start()

    def _start(self) -> subprocess.Popen | None:
        if self._command is None:
            return None
        # One thread a run, several runs at a time. A group of its own can be ended as a whole.
        return subprocess.Popen(
            self._command,
            stdout=self._console,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": "1", **os.environ},
            start_new_session=True,
            pass_fds=[self._lock],
        )

    def poll(self) -> str | None:
        """None: at work; else what went wrong, "": nothing."""
        if self._process is not None:
            status = self._process.poll()
            if status is None:
                return None
            if status:
                return self._ended(f"exit status {status}: {self._last_line()}")
            done, self._command = self._command, next_command(self.run)
            if self._command == done:
                return self._ended("no bbox/AP in metrics.json; one test set is needed")
            self._process = self._start()
        return None if self._process is not None else self._ended("")

    def _last_line(self) -> str:
        text = (self.run.folder / "console.txt").read_text(errors="replace").strip()
        return text.rpartition("\n")[2]

    def _ended(self, problem: str) -> str:
        """Note time and commit, added to those of earlier processes of the run."""
        self._console.close()
        path = self.run.folder / EXECUTION
        before = read_json(path)["seconds"] if path.is_file() else 0.0
        seconds = round(before + time.monotonic() - self._begun, 1)
        with file_errors(), new_path(path) as new:
            new.write_text(json.dumps({"commit": self._commit, "seconds": seconds}))
        return f"{self.run.folder}: {problem}" if problem else ""

    def ask_to_end(self) -> None:
        self._signal(signal.SIGTERM)

    def end(self, deadline: float) -> None:
        """Wait until a time of time.monotonic(), then kill."""
        if self._process is not None:
            try:
                self._process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                pass
            self._signal(signal.SIGKILL)  # what the first process has left behind, too
            self._process.wait()
        self._ended("")

    def _signal(self, number: int) -> None:
        if self._process is not None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                pass


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """
    The folder is this command's alone; yields the descriptor that keeps it so. Handed on to the
    processes it keeps the folder locked as long as one of them lives, also where the command was
    killed. UserError where another has it.
    """
    path = folder / ".lock"
    with file_errors(path), path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: a comparison is at work in it") from None
        yield file.fileno()


@contextmanager
def stops_as_interrupt() -> Iterator[None]:
    """SIGTERM and a closed terminal end the command as Ctrl-C does: with its processes."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = {x: signal.signal(x, interrupt) for x in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_all(
    runs: Sequence[PlannedRun],
    jobs: int,
    lock: int,
    skip: Callable[[PlannedRun], bool] = lambda run: False,
) -> Iterator[tuple[PlannedRun, str | None]]:
    """
    Execute what is not finished, so many at a time, from the last checkpoint where there is one.
    Yields each run with None when it starts, and when it has ended with what went wrong ("":
    nothing); one that fails does not keep the others from running. Whatever ends the loop ends the
    processes: SIGTERM to all, SIGKILL to what is left after 15 s.

    Args:
        lock: see `locked`.
        skip: asked when a run is about to start.
    """
    waiting = [run for run in runs if not is_finished(run)][::-1]
    active: list[Execution] = []
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                run = waiting.pop()
                if not skip(run):
                    active.append(Execution(run, lock))
                    yield run, None
            for execution in list(active):
                problem = execution.poll()
                if problem is not None:
                    active.remove(execution)
                    yield execution.run, problem
            time.sleep(_POLL if active else 0)
    finally:
        for execution in active:
            execution.ask_to_end()
        deadline = time.monotonic() + _GRACE
        for execution in active:
            execution.end(deadline)


def remove_weights(run: PlannedRun) -> None:
    """Remove the checkpoints of a finished run; its results stay."""
    for path in (*run.folder.glob("model_*.pth*"), run.folder / "last_checkpoint"):
        with file_errors():
            path.unlink(missing_ok=True)
