"""The verified tasks' metrics equal those of lmms-eval's own evaluator, which runs beside in a process of its own."""

from __future__ import annotations

import gc
import random
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy
import pytest
from hubdata import HUB_TASKS, answers, write

from harness.core.errors import PrunebenchError
from tasks.lmms import LoadedTask, Scored, load_task, score
from tasks.sources import DataSource
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


# ------------------------------------------------------------------------------------------------------- ours beside it


@pytest.fixture(scope="module")
def loaded(root: Path) -> Mapping[str, LoadedTask]:
    """By name, and as `name:metric` where papers print another metric than the first."""
    source = DataSource.parse(str(root))
    named = [f"{name}:{VERIFIED[name].papers}" for name in NAMES if VERIFIED[name].papers]
    return {name: load_task(name, source, None, 0) for name in (*NAMES, *named)}


@pytest.fixture(scope="module")
def ours(loaded: Mapping[str, LoadedTask]) -> Callable[[str, str], Scored]:
    """Our scores of the same answers, each made once."""
    return cache(lambda name, way: scored(loaded[name], way))


def scored(task: LoadedTask, way: str) -> Scored:
    """Questions stand in the order of the source."""
    texts = answers.WAYS[way](task.name)
    return score(task, {sample.key: text for sample, text in zip(task.samples, texts, strict=True)})


def theirs(found: Scored) -> dict[str, float | None]:
    """lmms-eval's own numbers: those beside ours where ours is mended, which are named after it."""
    mended = {name.removeprefix("lmms_eval/"): value for name, value in found.metrics.items() if "/" in name}
    return {name: value for name, value in found.metrics.items() if "/" not in name} | mended


ASKED = [(name, way) for name in NAMES for way in answers.WAYS if name not in JAVA or way in ("mixed", "spoiled")]


@pytest.mark.parametrize(("name", "way"), ASKED)
def test_every_metric_equals_lmms_eval(
    name: str,
    way: str,
    ours: Callable[[str, str], Scored],
    loaded: Mapping[str, LoadedTask],
    reference: Mapping[str, answers.Scores],
) -> None:
    generators = random.getstate(), numpy.random.get_state()[1].tolist()
    found, own = ours(name, way), of(reference, way, name)
    assert theirs(found) == pytest.approx(own, abs=1e-9)
    headline = VERIFIED[name].metrics[0]
    assert loaded[name].headline == headline.metric
    assert found.headline == found.metrics[headline.metric]
    # lmms-eval rounds MMMU's mean to five digits; ours is the mean itself, with lmms-eval's beside it
    assert found.headline == pytest.approx(own[headline.metric], abs=5e-6 if name == "mmmu_val" else 1e-9)
    if headline.kind == "mean":
        values = [value for value in found.scores.values() if value is not None]
        assert len(values) == len(loaded[name].samples)
        scale = headline.scale_of(len(values))
        assert found.headline == pytest.approx(scale * sum(values) / len(values), abs=1e-9)
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == generators


@pytest.mark.parametrize("name", NAMES)
def test_one_wrong_answer_moves_both_alike(
    name: str,
    ours: Callable[[str, str], Scored],
    loaded: Mapping[str, LoadedTask],
    reference: Mapping[str, answers.Scores],
) -> None:
    """In the metric that papers print, which can be the headline."""
    metric = VERIFIED[name].papers or VERIFIED[name].headline
    assert loaded[f"{name}:{metric}" if VERIFIED[name].papers else name].headline == metric
    before, after = (ours(name, way).metrics[metric] for way in ("mixed", "spoiled"))
    assert before is not None
    assert after is not None
    expected = of(reference, "spoiled", name)[metric] - of(reference, "mixed", name)[metric]
    assert after - before < -1e-4
    assert after - before == pytest.approx(expected, abs=1e-5 if name == "mmmu_val" else 1e-9)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in JAVA])
def test_nothing_carries_over_to_the_next_scores(name: str, loaded: Mapping[str, LoadedTask]) -> None:
    """lmms-eval's OCRBench adds up in a global; its MMMU switches its prompts for good and guesses at random; its
    MMBench sets the seed."""
    first = scored(loaded[name], "odd")
    scored(loaded[name], "right")
    assert scored(loaded[name], "odd") == first


@pytest.mark.slow
@pytest.mark.parametrize("way", ["right", "odd"])
def test_captions_of_every_kind_equal_lmms_eval(
    way: str, root: Path, loaded: Mapping[str, LoadedTask], tmp_path: Path
) -> None:
    (name,) = JAVA
    own = answers.lmms_eval_scores(root, tmp_path, answers.given([name], [way]))
    assert theirs(scored(loaded[name], way)) == pytest.approx(of(own, way, name), abs=1e-9)


def test_captions_are_refused_without_java(root: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrunebenchError, match="needs the program java, which is not installed: install it, or"):
        load_task(*JAVA, DataSource.parse(str(root)), None, 0)
    gc.collect()
    assert "Exception ignored" not in capfd.readouterr().err
