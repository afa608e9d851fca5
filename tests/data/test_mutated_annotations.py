"""Mutated annotation files are named or rightly taken; tests/stress has 10,000 of them."""

import logging

import pytest
from annotation_trials import Trial
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

QUICK = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def trial(tmp_path):
    logging.disable(logging.WARNING)
    yield Trial(tmp_path)
    logging.disable(logging.NOTSET)


@settings(QUICK, max_examples=200)
@given(rng=st.randoms(use_true_random=False))
def test_coco(trial, rng):
    trial.coco(rng)


@settings(QUICK, max_examples=50)
@given(rng=st.randoms(use_true_random=False))
def test_voc(trial, rng):
    trial.xml(rng)


@settings(QUICK, max_examples=50)
@given(rng=st.randoms(use_true_random=False))
def test_kitti(trial, rng):
    trial.labels(rng)
