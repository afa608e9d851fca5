"""The table of fvcore that register_flops adds to."""

from importlib import import_module

import pytest

from mimicdet.modeling.layers.flops import register_flops


@pytest.fixture
def table(monkeypatch):
    """A copy of fvcore's table in its place, and the module that holds it."""
    module = import_module("fvcore.nn.flop_count")
    monkeypatch.setattr(module, "_DEFAULT_SUPPORTED_OPS", dict(module._DEFAULT_SUPPORTED_OPS))
    return module


def test_a_registered_operator_is_counted(table):
    register_flops("aten::cos", lambda inputs, outputs: 7)
    assert table._DEFAULT_SUPPORTED_OPS["aten::cos"]([], []) == 7


def test_what_fvcore_counts_itself_stays(table):
    handle = table._DEFAULT_SUPPORTED_OPS["aten::addmm"]
    register_flops("aten::addmm", lambda inputs, outputs: 7)
    assert table._DEFAULT_SUPPORTED_OPS["aten::addmm"] is handle


def test_a_version_without_the_table(table, monkeypatch):
    monkeypatch.delattr(table, "_DEFAULT_SUPPORTED_OPS")
    register_flops("aten::cos", lambda inputs, outputs: 7)
    assert not hasattr(table, "_DEFAULT_SUPPORTED_OPS")  # nothing is made in its place
