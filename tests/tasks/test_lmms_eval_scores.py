"""The verified tasks' metrics equal those of lmms-eval's own evaluator, which runs beside in a process of its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from hubdata import HUB_TASKS, answers, write

from tasks.verified import VERIFIED

NAMES = list(HUB_TASKS)
JAVA = ("flickr30k_test_lite",)  # METEOR starts Java anew in every evaluation: 10 s each


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def reference(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, answers.Scores]:
    """Way -> task -> lmms-eval's own metrics."""
    asked = answers.given([name for name in NAMES if name not in JAVA])
    for way in ("mixed", "spoiled"):
        asked[way] |= {name: answers.WAYS[way](name) for name in JAVA}
    return answers.lmms_eval_scores(root, tmp_path_factory.mktemp("reference"), asked)


def of(reference: Mapping[str, answers.Scores], way: str, name: str) -> dict[str, float]:
    """lmms-eval's metrics without the names of its filters, of which each of these tasks has one."""
    metrics = {key.split(",")[0]: value for key, value in reference[way][name].items()}
    assert len(metrics) == len(reference[way][name])
    return metrics


@pytest.mark.parametrize("name", NAMES)
def test_lmms_eval_has_these_metrics(name: str, reference: Mapping[str, answers.Scores]) -> None:
    for way in ("mixed", "spoiled"):
        assert sorted(of(reference, way, name)) == sorted(a.metric for a in VERIFIED[name].metrics)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in JAVA])
def test_right_answers_have_the_best_value(name: str, reference: Mapping[str, answers.Scores]) -> None:
    made, found = HUB_TASKS[name], of(reference, "right", name)
    headline = VERIFIED[name].metrics[0]
    best = headline.maximum if headline.total is None else headline.scale_of(len(made.right))
    votes = any("answers" in row and len(row["answers"]) == 10 for row in made.rows)  # annotators disagree
    # boxes are written with six digits
    assert found[headline.metric] == pytest.approx(0.8 if votes else best, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_one_wrong_answer_moves_lmms_eval(name: str, reference: Mapping[str, answers.Scores]) -> None:
    headline = VERIFIED[name].papers or VERIFIED[name].headline
    before, after = (of(reference, way, name)[headline] for way in ("mixed", "spoiled"))
    assert after < before - 1e-4


def test_captions_need_java() -> None:
    assert shutil.which("java"), "flickr30k_test_lite is scored by pycocoevalcap, which starts Java: install a JRE"
