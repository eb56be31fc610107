"""What `prunebench results` says of cells: answers by how well they are answered, and two cells beside each other."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from factories import answered, make_cell, sealed
from helpers import run

from harness.core.metric import Metric
from harness.store.sealed import SealedCell
from harness.store.store import Store
from harness.tables import lists

ERRORS = Metric("distance", higher_is_better=False)
SCORES = [0.0, 0.2, 0.5, 0.9, 1.0]


def cell(root: Path, method: str, scores: list[float], metric: Metric = ERRORS) -> SealedCell:
    return answered(root, method, "64", scores, metric=metric)


@pytest.mark.parametrize(
    ("metric", "right"), [(Metric("accuracy"), [0.5, 0.9, 1.0]), (ERRORS, [0.0, 0.2, 0.5])], ids=lambda m: str(m)[:24]
)
def test_right_and_wrong_go_by_how_well_a_question_is_answered(
    metric: Metric, right: list[float], tmp_path: Path
) -> None:
    one = cell(tmp_path, "fastv", SCORES, metric)
    assert list(lists.answers(one, right=True)["score"]) == right
    assert list(lists.answers(one, wrong=True)["score"]) == [score for score in SCORES if score not in right]


def test_fewer_errors_are_better_in_a_difference(tmp_path: Path) -> None:
    one, other = cell(tmp_path, "fastv", SCORES), cell(tmp_path, "dart", [0.0, 0.1, 0.4, 0.8, 1.0])
    assert "2 is better at 3, worse at 0" in lists.difference_text(lists.difference(one, other), one, other)
    assert "2 is better at 0, worse at 3" in lists.difference_text(lists.difference(other, one), other, one)
    plain, more = (
        cell(tmp_path / "up", m, s, Metric("accuracy")) for m, s in (("fastv", [0.2] * 4), ("dart", [1] * 4))
    )
    assert "2 is better at 4, worse at 0" in lists.difference_text(lists.difference(plain, more), plain, more)


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_json_of_cells_has_null_and_no_nan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A metric is NaN, and there is no unpruned cell for a per cent."""
    one = sealed(Store(tmp_path), make_cell(method="fastv"))
    other = sealed(Store(tmp_path), make_cell(method="first"), metrics={"pope_accuracy": one.score, "more": 1.0})
    where = ("--results", str(tmp_path), "--format", "json")
    code, out, err = run(capsys, monkeypatch, "results", "show", one.identity, *where)
    assert (code, err) == (0, "")
    assert strict(out)["scores"]["pope_f1_score"] is None
    assert strict(out)["scores"]["per cent of unpruned"] is None
    code, out, err = run(capsys, monkeypatch, "results", "diff", one.identity, other.identity, *where)
    assert (code, err) == (0, "")
    assert strict(out)["scores"]["more"] == [None, 1.0]
    twin = sealed(Store(tmp_path), make_cell(method="dart"))
    assert lists.difference(one, twin).scores == {}, "two numbers that are not there are equal"


def test_the_headline_of_show_is_numbers_for_programs_and_one_line_for_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = sealed(Store(tmp_path), make_cell(), metrics={"pope_accuracy": 0.5})
    assert one.interval is not None
    numbers = {"score": 0.5, "low": one.interval.low, "high": one.interval.high, "maximum": 1.0}
    words = ("results", "show", one.identity, "--results", str(tmp_path))
    _, out, _ = run(capsys, monkeypatch, *words, "--format", "json")
    scores = strict(out)["scores"]
    assert {name: scores[f"headline/{name}"] for name in numbers} == numbers
    assert scores["headline/metric"] == "pope_accuracy"
    _, out, _ = run(capsys, monkeypatch, *words, "--format", "csv")
    values = pd.read_csv(io.StringIO(out)).set_index("name")["value"]
    assert {name: float(values[f"headline/{name}"]) for name in numbers} == numbers
    _, out, _ = run(capsys, monkeypatch, *words)
    spread = f"[{numbers['low']:.6g}, {numbers['high']:.6g}]"
    assert f"  pope_accuracy (headline)  0.5 {spread} of 1\n" in out
    assert "headline/" not in out


def test_the_headline_of_a_metric_over_all_answers_has_no_interval(tmp_path: Path) -> None:
    one = answered(tmp_path, "fastv", "64", [None] * 4, metric=Metric("cider", "corpus"), value=0.731)
    text = lists.facts_text(lists.facts(one, [one]))
    (line,) = [line for line in text.splitlines() if "(headline)" in line]
    assert line.split() == ["cider", "(headline)", "0.731"]
