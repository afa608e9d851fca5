"""Paired differences, their intervals, and which row is clearly worse."""

import math

import pytest

from mimicdet.commands.compare_runs.plan import Pair
from mimicdet.commands.compare_runs.records import Dropped
from mimicdet.commands.compare_runs.statistics import (
    clearly_worse,
    head_gains,
    pair_gains,
    paired_difference,
    student_t_quantile,
)
from tests.commands.compare_runs.conftest import run_record


# Table of Student's t, two-sided 95 %.
@pytest.mark.parametrize(
    ("freedom", "value"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (7, 2.365), (10, 2.228), (120, 1.980)],
)
def test_quantiles_of_the_table(freedom, value):
    assert student_t_quantile(freedom) == pytest.approx(value, abs=5e-4)
    if freedom == 4:
        assert student_t_quantile(4, 0.99) == pytest.approx(4.604, abs=5e-4)


def test_quantiles_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for freedom in range(1, 40):
        for confidence in (0.5, 0.9, 0.95, 0.999):
            expected = stats.t.ppf(0.5 + confidence / 2, freedom)
            assert student_t_quantile(freedom, confidence) == pytest.approx(expected, rel=1e-9)


def test_only_common_seeds_count():
    difference = paired_difference({1: 3.0, 2: 5.0, 3: 7.0, 9: 99.0}, {3: 4.0, 2: 3.0, 1: 2.0})
    # 1, 2 and 3: mean 2, deviation 1, so that half the interval is 4.303 / sqrt(3).
    assert (difference.mean, difference.count) == (2.0, 3)
    assert difference.high - 2 == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert 2 - difference.low == pytest.approx(difference.high - 2)
    single = paired_difference({1: 3.0}, {1: 4.0, 2: 1.0})
    assert single.mean == -1.0 and math.isnan(single.low) and math.isnan(single.high)
    assert paired_difference({1: 3.0}, {2: 3.0}) is None


def test_gains_of_both_heads_and_of_one_over_the_other(results):
    found = [*pair_gains(results, "cells"), *head_gains(results, "cells")]
    gains = {gain.label: gain for gain in found}
    assert list(gains) == [
        "taught - alone, S-head",
        "taught - alone, T-head",
        "alone: S-head - T-head",
        "taught: S-head - T-head",
    ]
    student, teacher = list(gains.values())[:2]
    assert student.seeds == (1, 2, 3)
    assert list(student.differences) == ["AP", "AP50", "AP-disc"]  # no square was there
    assert [student.differences[x].mean for x in student.differences] == [2.0, 2.0, 2.0]
    assert teacher.differences["AP"].mean == pytest.approx(4.0)
    assert gains["alone: S-head - T-head"].differences["AP"].mean == pytest.approx(-8.0)
    assert [gain.label for gain in pair_gains(results, "fish")] == ["taught - alone"]
    assert head_gains(results, "fish") == []


def test_a_row_is_dropped_after_three_seeds_below_its_baseline(results):
    pairs = [Pair("taught", "alone")]
    assert clearly_worse(results, pairs) == []
    results.runs = [run_record("alone", seed, 40.0 + seed) for seed in (1, 2, 3)]
    for seed, worse in ((1, 5.0), (2, 6.0)):
        results.runs.append(run_record("taught", seed, 40.0 + seed - worse))
    assert clearly_worse(results, pairs) == []  # two are too few
    results.runs.append(run_record("taught", 3, 37.5))
    (dropped,) = clearly_worse(results, pairs)
    assert dropped == Dropped("cells", "taught", "alone", 3, dropped.high)
    assert dropped.high == pytest.approx(-5.5 + 4.3027 * 0.5 / math.sqrt(3), abs=1e-3)
    # Others are compared with it.
    assert clearly_worse(results, [*pairs, Pair("waiting", "taught")]) == []
