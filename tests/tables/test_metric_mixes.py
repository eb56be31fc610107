"""Tables of tasks whose metrics differ in kind, unit and direction, in any mix."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from factories import answered

from harness.core.metric import Metric
from harness.report import page
from harness.store.sealed import SealedCell
from harness.tables import compare, leaderboard, paper, sections
from harness.tables.compare import ABOVE, AVERAGE, BELOW, SAME
from harness.tables.frame import rows
from harness.tables.sections import Section
from harness.tables.terminal import table

N = 120
#: task -> its metric; None: the task's own
METRICS: dict[str, Metric | None] = {
    "pope": None,
    "mme": None,
    "hundred": Metric("accuracy", scale=100.0),
    "errors": Metric("distance", higher_is_better=False),
    "cider": Metric("cider", "corpus"),
    "f1": Metric("f1", "corpus", maximum=1.0),
    "wer": Metric("wer", "corpus", higher_is_better=False),
}
#: share of questions that are answered well
GOOD = {"none": 0.9, "fastv": 0.8, "random": 0.3}


def scores(method: str, metric: Metric | None) -> list[float | None]:
    if metric is not None and metric.kind == "corpus":
        return [None] * N
    well = [float((37 * i) % 100 < 100 * GOOD[method]) for i in range(N)]
    return [1.0 - s for s in well] if metric and not metric.higher_is_better else list(well)


def cells(root: Path, tasks: Sequence[str]) -> list[SealedCell]:
    """Each method at 64 tokens beside the unpruned model."""
    found = []
    for task, (method, good) in itertools.product(tasks, GOOD.items()):
        metric = METRICS[task]
        value = None if metric is None or metric.tested else good if metric.higher_is_better else 1.0 - good
        budget = "none" if method == "none" else "64"
        found.append(answered(root, method, budget, scores(method, metric), task, metric=metric, value=value, knobs={}))
    return found


def section_of(root: Path, *tasks: str) -> Section:
    (found,) = sections.sections(sections.distinct(cells(root, tasks)))
    return found


def text_of(root: Path, tasks: Sequence[str]) -> str:
    _, markdown = leaderboard.write(cells(root / "answers", tasks), root / "out")
    return markdown.read_text()


@pytest.mark.parametrize("n", [1, 2, len(METRICS)])
def test_tables_of_any_mix_are_written(tmp_path: Path, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.tables.figures.draw", lambda studied, *words: [[] for _ in studied])
    for tasks in itertools.combinations(METRICS, n):
        root = tmp_path / "-".join(tasks)
        text = text_of(root, tasks)
        assert "nan" not in text, tasks
        assert "| fastv |" in text
        frame = pd.read_csv(root / "out" / "leaderboard.csv")
        assert len(frame) == 3 * n
        assert frame["max"].isna().sum() == 3 * len({"cider", "wer"} & set(tasks))
        assert (frame["images"] == N // 2).all()
        assert (frame["low"].isna() == frame["task"].isin(["cider", "f1", "wer"])).all()
        assert "nan" not in table(rows(cells(root / "answers", tasks)))


def test_every_metric_is_drawn(tmp_path: Path) -> None:
    """Figures, and the page with its samples."""
    made = cells(tmp_path / "answers", list(METRICS))
    leaderboard.write(made, tmp_path / "out", figures=True)
    assert list((tmp_path / "out" / "figures").glob("*.png"))
    # factories' cells record no sizes of prompts, and their data are nowhere
    sets = page.fitting(made, tmp_path / "out", samples=0).html
    assert '"max":null' in sets
    assert '"lower":true' in sets
    assert "NaN" not in sets[sets.index('"sets"') : sets.index('"missing"')]


def test_the_average_is_over_tasks_where_higher_is_better(tmp_path: Path) -> None:
    section = section_of(tmp_path, "pope", "hundred", "errors", "f1")
    assert section.averaged == ["f1", "hundred", "pope"]
    line = next(line for block in section.blocks() for line in block.lines if line.method == "fastv")
    each = [100 * s.score / section.baseline(task).score for task in section.averaged for s in line.cells[task]]  # type: ignore[union-attr]
    assert sections.average(line, section) == pytest.approx(sum(each) / 3)
    assert math.isnan(sections.average(line, section_of(tmp_path / "lower", "errors")))
    (at,) = line.cells["errors"]
    assert sections.percent_of_unpruned(at, section.baseline("errors")) > 100


def verdicts(section: Section, against_none: bool) -> dict[tuple[str, str], str]:
    found = compare.study(section)
    return {(c.line, c.task): c.verdict for c in found.comparisons if (c.against == "none") == against_none}


def test_fewer_errors_are_ahead(tmp_path: Path) -> None:
    """As the same answers are ahead in a score where higher is better."""
    section = section_of(tmp_path, "pope", "hundred", "errors")
    found = compare.study(section)
    against = {(c.line, c.task): c for c in found.comparisons if c.against != "none"}
    up, hundred, down = (against["fastv", task] for task in ("pope", "hundred", "errors"))
    assert up.verdict == hundred.verdict == down.verdict == ABOVE
    assert (down.better, down.worse, down.p) == (up.better, up.worse, up.p)
    for other in (hundred, down):
        assert other.difference == pytest.approx(up.difference)
        assert (other.low, other.high) == (pytest.approx(up.low, abs=2.0), pytest.approx(up.high, abs=2.0))
    below = verdicts(section, True)
    assert {below["random", task] for task in ("pope", "hundred", "errors", AVERAGE)} == {BELOW}


def test_a_metric_of_all_answers_has_no_verdict_and_no_average_with_it_has_one(tmp_path: Path) -> None:
    section = section_of(tmp_path, "pope", "cider")
    found = compare.study(section)
    assert {c.task for c in found.comparisons} == {"pope"}
    assert not found.averages
    assert [p.task for p in found.power] == ["pope"]
    assert set(found.agreement) >= {s.identity for s in section.cells}
    line = next(line for block in section.blocks() for line in block.lines if line.method == "fastv")
    assert not math.isnan(sections.average(line, section))
    alone = compare.study(section_of(tmp_path / "alone", "cider", "wer"))
    assert not alone.comparisons
    assert not alone.power


def test_a_lower_task_leaves_the_average_its_verdict(tmp_path: Path) -> None:
    found = verdicts(section_of(tmp_path, "pope", "errors", "wer"), False)
    assert found["fastv", AVERAGE] == found["fastv", "pope"] == ABOVE
    assert ("fastv", "wer") not in found
    assert SAME not in found.values()


def test_the_fewest_errors_are_bold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.tables.figures.draw", lambda studied, *words: [[] for _ in studied])
    text = text_of(tmp_path, ("errors", "pope", "cider", "wer"))
    part = text[text.index("### budget 64") :]
    head, _, *body = [line for line in part.splitlines() if line.startswith("|")][:4]
    names = [cell.strip().split(":")[0] for cell in head.split("|")[2:6]]
    found = {row.split("|")[1].strip(): dict(zip(names, row.split("|")[2:6], strict=True)) for row in body}
    for task in ("errors", "pope", "cider", "wer"):
        assert "**" in found["fastv"][task], task
        assert "<u>" in found["random"][task], task
    assert "distance (%, lower is better, n=120)" in head
    assert "cider (points, n=120)" in head
    assert "wer (points, lower is better, n=120)" in head
    assert "**0.800**" in found["fastv"]["cider"]
    assert "[" not in found["fastv"]["cider"]
    assert "Lower is better, and not in Avg %: errors, wer." in text
    assert "without interval, test and verdict, as is an Avg % over it: cider, wer." in text


def test_a_frame_says_native_scores(tmp_path: Path) -> None:
    frame = rows(cells(tmp_path, ["hundred", "cider"])).set_index(["task", "method"])
    assert frame.loc[("hundred", "none"), "max"] == 100
    assert frame.loc[("cider", "none"), "score"] == 0.9
    assert json.loads(json.dumps(frame.loc[("cider", "fastv"), "pct_of_unpruned"])) == pytest.approx(800 / 9)


def test_the_lowest_negative_number_is_best_where_lower_is_better(tmp_path: Path) -> None:
    """A metric of all answers may be below 0, in the leaderboard and in a paper's table."""
    metric = Metric("loss", "corpus", higher_is_better=False)
    lines = (("none", "none", -0.75), ("dart", "64", -0.25), ("fastv", "64", -0.5), ("first", "64", 0.125))
    made = [answered(tmp_path, m, b, [None] * N, metric=metric, value=v, knobs={}) for m, b, v in lines]
    for text in (leaderboard.write(made, tmp_path / "out")[1].read_text(), paper.render(made, "markdown")):
        assert "| **-0.500** |" in text
        assert "| <u>-0.250</u> |" in text
        assert "--" not in text.replace("---", "")
