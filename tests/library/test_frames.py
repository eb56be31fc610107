"""`prunebench.results` and `prunebench.samples`: sealed cells as data frames."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

import prunebench
from harness.core import keeps
from harness.core.paths import TOP
from harness.store.store import Store

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
LATER = ["agreement_pct", "hard_n", "hard_pct", "relevant_n", "relevant_kept_pct", "relevant_layers_pct"]


def test_results_are_the_rows_of_the_leaderboard(tmp_path: Path) -> None:
    written = pd.read_csv(REFERENCE / "leaderboard.csv")
    frame = prunebench.results(REFERENCE)
    assert list(frame.columns) == [name for name in written.columns if name not in LATER]
    assert list(frame["identity"]) == list(written["identity"])
    assert frame["score"].to_numpy() == pytest.approx(written["score"].to_numpy())
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "pope").symlink_to(REFERENCE / "cells" / "pope")
    few = prunebench.results(str(tmp_path), answers=True)
    assert list(few.columns) == list(written.columns)
    assert len(few) == (written["task"] == "pope").sum()


def test_samples_have_their_kept_tokens_decoded() -> None:
    frame = prunebench.samples(REFERENCE, task="pope", method=["fastv", "none"], budget=["64", "none"], model="mini")
    assert set(frame["method"]) == {"fastv", "none"}
    assert "keeps" not in frame
    (sealed,) = [
        c for c in Store(REFERENCE).cells() if (c.cell.task, c.cell.method, c.cell.budget) == ("pope", "fastv", "64")
    ]
    mine = frame[frame["identity"] == sealed.identity].reset_index(drop=True)
    plain = sealed.samples()
    assert list(mine["key"]) == list(plain["key"])
    assert list(mine["score"]) == list(plain["score"])
    row = mine.iloc[3]
    stages = keeps.decode(plain["keeps"][3], 576)
    assert list(row["kept_tokens"]) == [stage.layer for stage in stages] == list(row["added_tokens"])
    assert len(stages) > 1
    last = row["kept_tokens"][stages[-1].layer]
    assert len(last) == row["kept"] == 64
    assert stages[-1].keep[last].all()
    assert sorted(set(last)) == list(last)
    unpruned = frame[frame["method"] == "none"].iloc[0]
    assert [len(tokens) for tokens in unpruned["kept_tokens"].values()] == [576]


def test_a_filter_takes_numbers_and_identities() -> None:
    one = prunebench.samples(REFERENCE, task="mme", method="fastv", budget=64)
    assert one["identity"].nunique() == 1
    again = prunebench.samples(REFERENCE, identity=one["identity"][0])
    assert list(again["answer"]) == list(one["answer"])


def test_what_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    for read in (prunebench.results, prunebench.samples):
        with pytest.raises(prunebench.PrunebenchError, match="expected sealed cells below cells/, found none"):
            read(tmp_path)
        with pytest.raises(prunebench.PrunebenchError, match=r"folder: expected a path, found 3 \(int\)"):
            read(3)  # type: ignore[arg-type]
    with pytest.raises(prunebench.PrunebenchError, match=r"no cell with method 'fastw'; there are .*fastv"):
        prunebench.samples(REFERENCE, method="fastw")


@pytest.mark.parametrize("name", ["model", "task", "method", "budget", "limit", "identity", "key"])
def test_a_filter_without_a_value_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(prunebench.PrunebenchError, match=f"^{name}: expected one value or more, found none: leave"):
        prunebench.samples(REFERENCE, **{name: []})  # type: ignore[arg-type]


def test_the_wide_example_of_the_page_has_a_row_for_each_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TOP)
    (example,) = re.findall(r"```python\n(one = .*?)```", (TOP / "docs" / "library.md").read_text(), re.DOTALL)
    names = {"prunebench": prunebench}
    exec(example, names)
    wide = names["wide"]
    assert list(wide["key"]) == ["pope/000002", "pope/000003"]
    assert wide[["target", "none", "fastv@64", "random boundary=2@64"]].notna().all(axis=None)


def test_a_limit_is_a_filter() -> None:
    frame = prunebench.samples(REFERENCE, key="pope/000002", model="mini", limit="all")
    assert list(frame["method"]) == ["none"]
    assert frame["section"].str.endswith("LIMIT=all").all()
    both = prunebench.samples(REFERENCE, key="pope/000002", model="mini", limit=["all", "default"], method="none")
    assert len(both) == 2
    with pytest.raises(prunebench.PrunebenchError, match="no cell with limit '7'; there are all, default"):
        prunebench.samples(REFERENCE, limit=7)


def test_samples_and_wide_columns_are_in_the_order_of_results() -> None:
    """Five seeds of two settings, whose identities say nothing of their order."""
    chosen = {"task": "pope", "method": "random", "budget": 64}
    results = prunebench.results(REFERENCE)
    mine = results[(results["task"] == "pope") & (results["method"] == "random") & (results["budget"] == "64")]
    long = prunebench.samples(REFERENCE, **chosen)
    assert list(dict.fromkeys(long["identity"])) == list(mine["identity"])
    wide = prunebench.samples(REFERENCE, **chosen, wide="answer")
    assert list(wide)[6:] == [f"{setting}@64" for setting in mine["setting"]]
    assert len({name.partition(" seed=")[0] for name in wide}) < len(wide.columns), "several seeds"
    assert list(wide["key"]) == list(dict.fromkeys(long["key"]))
