"""A YAML file is read as a person wrote it, or refused in one line that names file and line."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.core import yamlfile
from harness.core.errors import PrunebenchError
from harness.core.paths import TOP
from harness.method import Method, typed_knobs
from harness.models.config import ModelConfig
from harness.runner import ablations, sweep

SHIPPED = sorted((TOP / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(TOP)))
def test_the_shipped_files_mean_what_they_meant(file: Path) -> None:
    assert yamlfile.read(file, "a file") == yaml.safe_load(file.read_text())


#: what is written, what is read
AS_WRITTEN: dict[str, Any] = {
    "64": 64,
    "-3": -3,
    "+5": 5,
    "0": 0,
    "0.25": 0.25,
    ".5": 0.5,
    "5.": 5.0,
    "1e3": 1000.0,
    "1.5E-3": 0.0015,
    "0.0": 0.0,
    "true": True,
    "False": False,
    "TRUE": True,
    "null": None,
    "~": None,
    "": None,
    "Null": None,
    "yes": "yes",
    "no": "no",
    "On": "On",
    "off": "off",
    "y": "y",
    "N": "N",
    "tRue": "tRue",
    "1:30": "1:30",
    "190:20:30": "190:20:30",
    "0x1F": "0x1F",
    "0o12": "0o12",
    "0b11": "0b11",
    "1_000": "1_000",
    "1,000": "1,000",
    "2024-13-45": "2024-13-45",
    "2024-01-01": "2024-01-01",
    "2024-01-01T25:61:00Z": "2024-01-01T25:61:00Z",
    ".inf": ".inf",
    "-.INF": "-.INF",
    ".nan": ".nan",
    "64avg": "64avg",
    "25%": "25%",
    "0.35flops": "0.35flops",
    "=": "=",
    "<<": "<<",
    "'012'": "012",
    '"true"': "true",
    "'64'": "64",
    "none": "none",
    "\u0663": "\u0663",
    "1.2.3": "1.2.3",
    "e5": "e5",
    "- .": ["."],
    "[64, 0.5, no, ~]": [64, 0.5, "no", None],
    "{a: yes, b: {c: 1e2}}": {"a": "yes", "b": {"c": 100.0}},
    "|\n  012\n": "012\n",
    "é 日本": "é 日本",
}


@pytest.mark.parametrize("written", AS_WRITTEN)
def test_a_value_is_read_as_written(written: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"a: {written}\n" if not written.startswith("-  ") else written)
    if written == "- .":
        (tmp_path / "a.yaml").write_text("a:\n- .\n")
    found = yamlfile.read(tmp_path / "a.yaml", "a sweep")["a"]
    assert (found, type(found)) == (AS_WRITTEN[written], type(AS_WRITTEN[written]))


@given(st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none())
def test_numbers_and_truth_come_back(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    file = tmp_path_factory.getbasetemp() / "numbers.yaml"
    file.write_text(yaml.safe_dump({"a": value}))
    assert yamlfile.read(file, "a sweep") == {"a": value}


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_text_in_quotes_comes_back(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    file = tmp_path_factory.getbasetemp() / "texts.yaml"
    file.write_text(yaml.safe_dump({"a": value}, default_style='"'), encoding="utf-8", newline="\n")
    assert yamlfile.read(file, "a sweep") == {"a": value}


def bomb(levels: int, wide: int) -> str:
    lines = ["a0: &a0 [" + ",".join("x" * wide) + "]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * wide)}]" for i in range(1, levels)]
    return "\n".join([*lines, f"methods: *a{levels - 1}"])


#: what is written, at which line it is refused (0: no line is named), and a word of why
REFUSED: dict[str, tuple[str | bytes, int, str]] = {
    "octal": ("a: 1\nlimit: 012", 2, "begins with 0"),
    "negative octal": ("limit: -07", 1, "begins with 0"),
    "nines with zeros": ("limit: 099", 1, "begins with 0"),
    "float with zeros": ("limit: 00.5", 1, "begins with 0"),
    "many digits": ("limit: " + "1" * 6000, 1, "a number of 6,000 characters"),
    "infinite": ("a: 1e999", 1, "beyond all numbers"),
    "a key twice": ("a: 1\nb: 2\na: 3", 3, "'a' stands twice"),
    "a key twice below": ("a:\n  - {b: 1, c: 2, b: 3}", 2, "'b' stands twice"),
    "a key twice in quotes": ("a: 1\n'a': 2", 2, "'a' stands twice"),
    "a key twice in a key": ("a: 1\n? {b: 1, b: 2}\n: 3", 2, "'b' stands twice"),
    "a merge": ("a: &a {x: 1}\nb: {<<: *a, y: 2}", 2, "merge key"),
    "a number as key": ("a: 1\n1: 2", 2, "expected a name as key"),
    "truth as key": ("true: 2", 1, "expected a name as key"),
    "nothing as key": ("~: 2", 1, "expected a name as key"),
    "a list as key": ("? [a]\n: 2", 1, "expected a name as key"),
    "int of text": ("limit: !!int abc", 1, "a tag"),
    "python": ("a: !!python/object/apply:os.system ['true']", 1, "a tag"),
    "own tag": ("a: !own 3", 1, "a tag"),
    "binary": ("a: !!binary aGVsbG8=", 1, "a tag"),
    "set": ("a: !!set {x, y}", 1, "a tag"),
    "unknown handle": ("a: !e!x 3", 1, "tag"),
    "bomb": (bomb(10, 10), 0, "aliases multiply"),
    "narrow bomb": (bomb(60, 2), 0, "aliases multiply"),
    "bomb of keys": (
        "\n".join(["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}" for i in range(1, 30))]),
        0,
        "aliases multiply",
    ),
    "wide": ("methods: [" + "x," * 30_000 + "]", 0, "more than 20,000 values"),
    "itself": ("a: &a [*a]", 1, "inside of what it names"),
    "itself below": ("a: &a {b: {c: *a}}", 1, "inside of what it names"),
    "unknown alias": ("a: *b", 1, "undefined alias"),
    "deep lists": ("methods: " + "[" * 5000, 1, "nested"),
    "deep closed": ("methods: " + "[" * 900 + "]" * 900, 1, "nested"),
    "deep mappings": ("a: " + "{a: " * 5000, 1, "nested"),
    "deep dashes": ("a:\n" + "- " * 900 + "x", 2, "nested"),
    "two documents": ("a: 1\n---\nb: 2", 2, "document"),
    "a tab": ("a:\n\tb: 1", 2, "cannot start any token"),
    "nul": ("a: \0", 0, "special characters"),
    "escape": ("a: \x1b", 0, "special characters"),
    "no utf-8": (b"a: 1\nb: \xff", 2, "UTF-8"),
    "utf-16": ("a: 1".encode("utf-16"), 1, "UTF-8"),
    "nothing": ("", 0, "found nothing"),
    "a comment": ("# x", 0, "found nothing"),
    "a list": ("- a", 0, "found one list"),
    "a value": ("a", 0, "found one value"),
    "an open quote": ("a: 'b", 1, "quoted scalar"),
    "an open list": ("a: [1,\nb: 2", 2, ""),
    "too long": ("a: " + "x" * 1_000_001, 0, "at most 1,000,000 bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_read_otherwise_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    content, line, why = REFUSED[name]
    file = tmp_path / "a.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    began = time.process_time()
    with pytest.raises(PrunebenchError) as refused:
        yamlfile.read(file, "a sweep")
    assert time.process_time() - began < 5
    said = str(refused.value)
    assert said.startswith(f"{file}, line {line}: not a sweep: " if line else str(file))
    assert why in said
    assert "\n" not in said
    assert len(said) < 400


@pytest.mark.parametrize(
    "content", ["\ufeffa: 1\n", "a: 1\r\n", "a: 1", "---\na: 1\n...\n", "%YAML 1.1\n---\na: 1", "a: &x 1"]
)
def test_files_of_other_editors_are_read(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(content.encode())
    assert yamlfile.read(tmp_path / "a.yaml", "a sweep") == {"a": 1}


def test_a_few_aliases_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &few [64, 32]\nb: *few\nc: {d: *few}\n")
    assert yamlfile.read(tmp_path / "a.yaml", "a sweep")["c"] == {"d": [64, 32]}


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), tmp_path / "absent"):
        with pytest.raises(PrunebenchError, match=r"not a sweep: (expected a file|No such file)"):
            yamlfile.read(place, "a sweep")


@pytest.mark.parametrize(
    "content",
    [
        "limit: true",
        "limit: no",
        "limit: 1:30",
        "limit: [1]",
        "limit: {a: 1}",
        "limit: 0.5",
        "budgets: [true]",
        "budgets: [[64]]",
        "budgets: [0.25]",
        "budgets: 64",
        "models: [7]",
        "models: [true]",
        "models: 2024-01-01",
        "tasks: []",
        "tasks: ~",
        "data: 3",
        "dtype: no",
        "methods: [{method: random, seeds: [yes]}]",
        "methods: [{method: random, seeds: [true]}]",
        "methods: [{method: random, seeds: [0x10]}]",
        "methods: [{method: random, seeds: [1:30]}]",
        "methods: [{method: random, seeds: [1.5]}]",
        "methods: [{method: fastv, knobs: {boundary: true}}]",
        "methods: [{method: fastv, knobs: {boundary: yes}}]",
        "methods: [{method: fastv, knobs: {boundary: 1:30}}]",
        "methods: [{method: fastv, knobs: {boundary: .inf}}]",
        "methods: [{method: fastv, knobs: {boundary: [3]}}]",
        "methods: [{method: fastv, knobs: {boundary: ''}}]",
        "methods: [{method: fastv, positions: yes}]",
        "methods: [true]",
        "methods: [~]",
        "methods: {method: fastv}",
    ],
)
def test_a_sweep_takes_no_value_for_another(content: str, tmp_path: Path) -> None:
    usual = {"methods": "methods: [fastv]\n", "budgets": "budgets: [64]\n"}
    file = tmp_path / "a.yaml"
    file.write_text("".join(text for key, text in usual.items() if not content.startswith(key)) + content)
    with pytest.raises(PrunebenchError) as refused:
        sweep.check(sweep.requests(sweep.load(file)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [True, False])
def test_a_knob_that_counts_takes_no_truth(value: bool) -> None:
    from methods.sparsevlm import SparseVLM

    assert dict(typed_knobs(SparseVLM, {"plus": value})) == {"plus": value}
    with pytest.raises(PrunebenchError, match=r"retain=.* expected no truth value"):
        dict(typed_knobs(SparseVLM, {"retain": value}))
    assert issubclass(SparseVLM, Method)


def test_errors_of_many_values_are_few_clauses(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("methods: [" + "1," * 9000 + "]")
    with pytest.raises(PrunebenchError, match="and 8995 more") as refused:
        sweep.load(tmp_path / "a.yaml")
    assert len(str(refused.value)) < 1000


def test_ablations_and_models_take_no_truth_for_a_number(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("title: t\nsource: s\nvariants: [{name: a, method: none, published: true}]")
    with pytest.raises(PrunebenchError, match="expected a number, found true"):
        ablations.load(file)
    with pytest.raises(ValidationError):
        ModelConfig(name="x", default_limit=True)
