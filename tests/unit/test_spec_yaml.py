"""A job means what its author reads in it: YAML 1.2 scalars, and nothing that YAML's older rules would turn around."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config.yaml_lines import MAX_VALUES, read_scalar, read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-6", 5e-6), ("1E5", 1e5), (".5", 0.5), ("+1.5", 1.5), ("012", 12), ("0o17", 15), ("0x1F", 31), ("-3", -3),
        ("on", "on"), ("off", "off"), ("yes", "yes"), ("No", "No"), ("true", True), ("False", False), ("~", None), ("null", None),
        ("2024-01-01", "2024-01-01"), ("12:30", "12:30"), ("1_000", "1_000"), ("'5e-6'", "5e-6"), ("!!str 5", "5"), ("''", ""),
        ("3.1.8", "3.1.8"), ("<|im_end|>", "<|im_end|>"), ("0.", 0.0), ("e5", "e5"), ("NaN", "NaN"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = read_scalar(text)
    assert read == value
    assert type(read) is type(value)


def test_lines_are_those_of_keys_and_items() -> None:
    document = read_yaml("a:\n  - b: 1\n    c: 2\n  -\n    d: 3\ne: {f: 1,\n  g: 2}\n")
    assert document.lines[("a", 0, "c")] == 3
    assert document.lines[("a", 1)] == 5
    assert document.lines[("e", "g")] == 7
    assert document.line(("a", 0, "missing", "deeper")) == 2


def test_aliases_and_merge_keys_are_read() -> None:
    data = read_yaml("x: &x {a: 1, b: 2}\ny:\n  <<: *x\n  b: 3\nz: *x\n").data
    assert data == {"x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 3}, "z": {"a": 1, "b": 2}}


def test_an_alias_inside_itself_does_not_hang() -> None:
    document = read_yaml("a: &a [1, *a]\n")
    assert document.faults == [(1, ("a", 1), "an alias that contains itself; write the values out")]


def test_a_billion_laughs_end_in_an_error_and_not_in_the_memory() -> None:
    text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for name, before in zip("bcdefgh", "abcdefg", strict=True):
        text += f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n"
    document = read_yaml(text)
    assert any(f"more than {MAX_VALUES:,}" in message for _, _, message in document.faults)


def test_a_second_document_is_not_dropped_in_silence() -> None:
    assert read_yaml("a: 1\n---\na: 2\n").faults == [
        (3, (), "a second document begins here; dolphin reads one per file: remove it")
    ]


def test_tags_that_run_code_are_refused() -> None:
    assert read_yaml("a: !!python/object/apply:os.getcwd []\n").data == {"a": []}
    assert read_yaml("a: !!python/name:os.system x\n").faults


plain = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
words = st.sampled_from(
    ["yes", "on", "5e-6", "1e5", "0o7", "null", "~", "", " a", "a: b", "# c", "é", "<<", "1_000", "[x", "-"]
)
values = st.recursive(
    plain | words | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)


@given(values)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_as_the_same_by_either_version_of_yaml(value: object) -> None:
    text = write_yaml({"key": value})
    assert read_yaml(text).data == {"key": value}
    assert yaml.safe_load(text) == {"key": value}
