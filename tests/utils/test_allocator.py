"""disable_glibc_trimming (allocator.py): pages of freed tensors are used again."""

import os
import platform
import subprocess
import sys

import pytest
from detectron2.config import get_cfg

from mimicdet.commands import demo
from mimicdet.commands import train as train_net
from mimicdet.utils import allocator

# Page faults of five tensors of 60 MiB, one after the other.
_COUNT = """
import resource, sys, torch
from mimicdet.utils.allocator import disable_glibc_trimming
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert disable_glibc_trimming()
for _ in range(3):
    torch.ones(15 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(15 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
on_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the C library is not glibc"
)


def faults(how):
    env = {key: x for key, x in os.environ.items() if key not in allocator._OWN_SETTINGS}
    command = [sys.executable, "-c", _COUNT, how]
    return int(subprocess.run(command, env=env, check=True, capture_output=True).stdout)


@on_glibc
def test_freed_memory_is_used_again():
    as_ever = faults("as ever")
    if as_ever < 1000:
        pytest.skip("this system maps huge pages by itself: there is little to count")
    assert faults("keep") < as_ever / 20


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_the_environment_has_the_last_word(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda *_: pytest.fail("it was changed"))
    assert not allocator.disable_glibc_trimming()


@pytest.mark.parametrize("error", [OSError, TypeError])
def test_another_c_library_is_left_alone(error, monkeypatch):
    def refuse(*_):
        raise error("no such library")

    for name in allocator._OWN_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", refuse)
    assert not allocator.disable_glibc_trimming()
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda *_: object())  # musl: no such function
    assert not allocator.disable_glibc_trimming()


@pytest.mark.parametrize("device, expected", [("cpu", 1), ("cuda", 0)])
def test_programs_ask_for_it_on_a_cpu(device, expected, monkeypatch):
    called = []
    cfg = get_cfg()
    cfg.MODEL.DEVICE = device

    def stop(*_):
        raise ValueError("far enough")

    for module, last in ((demo, "Predictor"), (train_net, "check_test_sets")):
        monkeypatch.setattr(module, "setup_cfg", lambda *_: cfg)
        monkeypatch.setattr(module, "disable_glibc_trimming", lambda: called.append(1))
        monkeypatch.setattr(module, last, stop)
    for name in ("default_setup", "setup_logger"):
        monkeypatch.setattr(train_net, name, lambda *_, **__: None)
    with pytest.raises(ValueError, match="far enough"):
        demo.load_predictor("a.yaml", [])
    assert len(called) == expected
    with pytest.raises(ValueError, match="far enough"):
        train_net.run(train_net.build_parser().parse_args([]))
    assert len(called) == 2 * expected
