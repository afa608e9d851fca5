"""What a model says of itself: every value that cannot be is named, none ends in a traceback."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimicdet_runtime import Detector, UserError
from mimicdet_runtime.metadata import format_metadata, parse_metadata
from tests.runtime.mock_model import make_metadata, write_mock

HUGE = 10**400
NOT_TEXT = [None, 1, True, "", "a\nb", "\x1b[2J", "\ud800", "x" * 1001, [], {}]
NOT_NUMBERS = [None, "1", True, [], {}, float("nan"), float("inf"), -HUGE, HUGE]
NOT_SIZES = [*NOT_NUMBERS, 1.5, -1]
NOT_THREE = [None, 5, "abc", [], [1, 1], [1, 1, 1, 1], [1, 1, None], [1, 1, float("nan")]]
# For each key the values that it must not have.
MUTATIONS = {
    "format_version": [*NOT_NUMBERS, 0, 2, 1.0],
    "mimicdet_version": NOT_TEXT,
    "class_names": [None, 3, "ab", {}, [], [1], [None], ["a", ""], ["a", "b\n"], ["a", ["b"]]],
    "input_format": [None, 1, "", "bgr", "GBR", ["BGR"], {}],
    "pixel_mean": NOT_THREE,
    "pixel_std": [*NOT_THREE, [1, 1, 0], [1, -1, 1]],
    "resize": [None, 1, "a", []],
    "resize.min_size": [*NOT_SIZES, 4097, 10**9],
    "resize.max_size": [*NOT_SIZES, 0, 4097, 10**9],
    "resize.interpolation": [None, 1, "", "nearest"],
    "includes_resize": [None, 0, 1, "", "false", []],
    "size_divisor": [*NOT_SIZES, 1025],
    "score_threshold": [*NOT_NUMBERS, -0.1, 1.1],
    "nms_threshold": [*NOT_NUMBERS, -0.1, 1.1],
    "detections_per_image": [*NOT_SIZES, 0, 10**6],
    "precision": [None, 1, "", "int4", []],
    "weights_sha256": [None, 1, "", "0" * 63, "g" * 64, "0" * 64 + "\n"],
    "config": NOT_TEXT,
    "opset": [0, -1, 1.5, "17", True, []],
}


def parse(metadata):
    return parse_metadata({"mimicdet": json.dumps(metadata)}, "m.onnx")


def changed(key, value=None, remove=False):
    metadata = copy.deepcopy(make_metadata())
    outer, _, inner = key.partition(".")
    table, last = (metadata[outer], inner) if inner else (metadata, outer)
    table.pop(last) if remove else table.update({last: value})
    return metadata


def test_the_table_of_mutations_has_every_key():
    keys = set(make_metadata()) | {f"resize.{key}" for key in make_metadata()["resize"]}
    assert set(MUTATIONS) == keys
    parse(make_metadata())


@pytest.mark.parametrize("key", MUTATIONS)
def test_every_mutation_is_named(key):
    for value in MUTATIONS[key]:
        with pytest.raises(UserError) as error:
            parse(changed(key, value))
        message = str(error.value)
        assert message.startswith("m.onnx: ") and key.partition(".")[0].split("_")[0] in message
        assert message.isprintable() and len(message) < 250, "whatever the value was"
    with pytest.raises(UserError, match=f"^m.onnx: its metadata lack '{key}'$"):
        parse(changed(key, remove=True))


@pytest.mark.parametrize(
    "key, value",
    [
        ("class_names", ["手", "façade", "a [b]"]),
        ("pixel_std", [57, 58.5, 59]),
        ("resize.min_size", 0),
        ("size_divisor", 0),
        ("score_threshold", 0),
        ("nms_threshold", 1),
        ("opset", None),
        ("precision", "bfloat16"),
        ("precision", "int8"),
        ("something_new", {"a": [1, "\x1b[2J"]}),
    ],
)
def test_values_that_make_sense_are_taken(key, value):
    assert format_metadata(parse(changed(key, value))).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "damaged"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "[" * 500 + "]" * 500 + "}", "nested too deeply"),
        ('{"format_version": ' + "1" * 5000 + "}", "damaged"),
        (" " * 2**20 + "{}", "longer than"),
        ("null", "no table"),
    ],
)
def test_texts_that_are_no_metadata_are_named(text, message):
    with pytest.raises(UserError, match=f"m.onnx: its metadata are .*{message}"):
        parse_metadata({"mimicdet": text}, "m.onnx")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted(MUTATIONS)), VALUES)
def test_any_value_is_taken_or_named(key, value):
    try:
        info = parse(changed(key, value))
    except UserError as error:
        assert str(error).startswith("m.onnx: ") and str(error).isprintable()
    else:
        assert 0 <= info.resize.min_size <= 4096 and 1 <= info.resize.max_size <= 4096
        assert all(isinstance(name, str) for name in info.class_names)
        assert format_metadata(info)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_damaged_character_is_taken_or_named(data):
    text = list(json.dumps(make_metadata()))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place] = data.draw(st.sampled_from(["", "0", "9", "-", '"', "{", "]", ",", "e", "x"]))
    try:
        parse_metadata({"mimicdet": "".join(text)}, "m.onnx")
    except UserError as error:
        assert str(error).startswith("m.onnx: ") and str(error).isprintable()


def test_the_file_is_named(tmp_path):
    path = write_mock(tmp_path / "huge.onnx", changed("resize.min_size", 10**6))
    with pytest.raises(UserError, match="huge.onnx: its metadata are damaged: resize.min_size is"):
        Detector(path)
