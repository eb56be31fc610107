"""Scores of answers that say nothing, and which numbers are lmms-eval's own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from taskdata import changed, rows, write

from harness.core.errors import PrunebenchError
from tasks import lmms, pope
from tasks.sources import DataSource

#: answers of which nothing is left without articles and punctuation
NOTHING = ["", " ", "\n", "\t", ".", "...", "!", "?!", ",", "-", "--", '""', "''", "()", "[]", "a", "an", "the", "The",
           "A.", "a the", "the, a", "/", "\\", ";", ":", "_", "=", "+", "<>", "@", "`", " . ", "a\n"]  # fmt: skip
ARTICLES = [["a"] * 10, ["the"] * 10, ["a"] * 5 + ["an"] * 5, ["A"] * 3 + ["stop"] * 7, ["?"] * 10, ["", "a"] * 5]


@pytest.fixture(scope="module")
def textvqa(tmp_path_factory: pytest.TempPathFactory) -> lmms.LoadedTask:
    table = changed(rows("textvqa"), "answers", pa.array(ARTICLES))
    return lmms.load_task("textvqa", write(tmp_path_factory.mktemp("textvqa"), "textvqa", [table]), None, 0)


@pytest.fixture(scope="module")
def gqa(tmp_path_factory: pytest.TempPathFactory) -> lmms.LoadedTask:
    table = changed(rows("gqa"), "answer", pa.array(["a", "the", "?", ".", "red", "-"]))
    return lmms.load_task("gqa", write(tmp_path_factory.mktemp("gqa"), "gqa", [table]), None, 0)


@pytest.fixture(scope="module", params=["mme", "pope"])
def yes_no(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> lmms.LoadedTask:
    name = str(request.param)
    return lmms.load_task(name, write(tmp_path_factory.mktemp(name), name, [rows(name)]), None, 0)


@pytest.mark.parametrize("answer", NOTHING)
def test_an_answer_that_says_nothing_is_wrong(
    answer: str, textvqa: lmms.LoadedTask, gqa: lmms.LoadedTask, yes_no: lmms.LoadedTask
) -> None:
    """Unless it is, to the letter, what a person wrote."""
    for task in (textvqa, gqa):
        scored = lmms.score(task, {s.key: answer for s in task.samples})
        for sample in task.samples:
            same = answer.strip() and answer.strip().lower() in [t.strip().lower() for t in sample.targets]
            assert (scored.scores[sample.key] > 0) <= bool(same), (task.name, answer, sample.targets)
        assert scored.headline == scored.metrics["exact_match"]
        assert scored.headline == pytest.approx(sum(scored.scores.values()) / len(scored.scores))
        assert (scored.metrics["lmms_eval/exact_match"] or 0.0) >= scored.headline
    assert set(lmms.score(yes_no, {s.key: answer for s in yes_no.samples}).scores.values()) == {0.0}


def test_upstream_takes_nothing_for_an_article(textvqa: lmms.LoadedTask, gqa: lmms.LoadedTask) -> None:
    """The reason for the rule: lmms-eval's own number stays beside ours."""
    for task, least in ((textvqa, 0.8), (gqa, 0.4)):
        scored = lmms.score(task, {s.key: "" for s in task.samples})
        assert scored.headline == 0.0
        assert (scored.metrics["lmms_eval/exact_match"] or 0.0) >= least
    named = lmms.score(gqa, {s.key: s.targets[0] for s in gqa.samples})
    assert named.headline == 1.0, "a symbol that was asked for is an answer"


ANY = st.one_of(st.sampled_from(["yes", "no", "Yes.", "red", "stop", "A stop", *NOTHING]), st.text(max_size=6))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_all_other_scores_are_lmms_evals(data: st.DataObject) -> None:
    """Its own functions, called one by one; no metric is written anew but those that say so."""
    from lmms_eval.tasks.mme.utils import mme_process_results
    from lmms_eval.tasks.pope.utils import pope_process_results
    from lmms_eval.tasks.textvqa.utils import textvqa_process_results

    name = data.draw(st.sampled_from(["mme", "pope", "textvqa"]))
    task = lmms.load_task(name, DataSource.parse("mini"), 20, 0)
    known = st.sampled_from([s.targets[0] for s in task.samples])
    answers = {s.key: data.draw(st.one_of(known, ANY)) for s in task.samples}
    scored = lmms.score(task, answers)
    for sample in task.samples:
        doc = {"answers": list(sample.targets)} if name == "textvqa" else {"answer": sample.targets[0]}
        doc |= {"question_id": sample.question_id, "category": sample.category}
        process = {"mme": mme_process_results, "pope": pope_process_results, "textvqa": textvqa_process_results}[name]
        first = next(iter(process(doc, [answers[sample.key]]).values()))
        assert scored.scores[sample.key] == pytest.approx(first["score"] if isinstance(first, dict) else first)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_popes_numbers_stand_beside_lmms_evals(data: st.DataObject) -> None:
    from lmms_eval.tasks.pope import utils

    task = lmms.load_task("pope", DataSource.parse("mini"), 27, 0)
    answers = [data.draw(ANY) for _ in task.samples]
    scored = lmms.score(task, dict(zip([s.key for s in task.samples], answers, strict=True)))
    targets, subsets = [s.targets[0] for s in task.samples], [s.category for s in task.samples]
    # all of ours follows from what samples.parquet holds
    ours = pope.metrics(answers, targets, subsets)
    assert {k: v for k, v in scored.metrics.items() if not k.startswith("lmms_eval/")} == pytest.approx(ours)
    logged = [{"prediction": a.lower().strip(), "ground_truth": t} for a, t in zip(answers, targets, strict=True)]
    for metric in ("precision", "recall", "f1_score", "yes_ratio"):
        theirs = getattr(utils, f"pope_aggregate_{metric}")(logged)
        assert scored.metrics[f"lmms_eval/pope_{metric}"] == pytest.approx(theirs)


def test_one_right_answer_among_ninety_is_no_perfect_f1() -> None:
    task = lmms.load_task("pope", DataSource.parse("mini"), 90, 0)
    first = next(s.key for s in task.samples if s.targets[0] == "yes")
    metrics = lmms.score(task, {s.key: "maybe" for s in task.samples} | {first: "yes"}).metrics
    yes = Counter(s.targets[0] for s in task.samples)["yes"]
    assert metrics["lmms_eval/pope_f1_score"] == 1.0
    assert metrics["pope_f1_score"] == pytest.approx(2 / (1 + yes))
    assert metrics["pope_recall"] == pytest.approx(1 / yes)
    assert metrics["pope_precision"] == 1.0
    assert metrics["pope_accuracy"] == pytest.approx(1 / 90)


# -------------------------------------------------------------------------------------------------------- stop strings


def test_only_stop_strings_that_a_yaml_names_are_used() -> None:
    """lmms-eval adds a blank line to every task, which would empty an answer that begins with one."""
    stops = {name: lmms.load_task(name, DataSource.parse("mini"), 2, 0).until for name in ("gqa", "mme", "pope")}
    assert stops == dict.fromkeys(stops, ())
    assert lmms.load_task("textvqa", DataSource.parse("mini"), 2, 0).until == ("ASSISTANT:",)


def test_categories_of_mme_are_known(tmp_path: Path) -> None:
    table = changed(rows("mme"), "category", pa.array(["existence"] * 2 + ["Existence"] * 2 + ["count"] * 2))
    with pytest.raises(PrunebenchError, match=r"mme/000002, column category: .* found 'Existence'"):
        lmms.load_task("mme", write(tmp_path, "mme", [table]), None, 0)
