"""POPE: an answer that is neither yes nor no is wrong, over all questions, in each subset, and by LLaVA's rule."""

from __future__ import annotations

import math

import pytest
from helpers import HEAVY, imported_with
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tasks import pope

SUBSETS = ("adversarial", "popular", "random")
ANSWERS = ("yes", "no", "Yes", " NO\n", "yes.", "No, there is not", "maybe", "", "I do not know", "none", "y", "True")
TARGETS = ("yes", "no", "Yes", "no ")
ROWS = st.lists(st.tuples(*map(st.sampled_from, (ANSWERS, TARGETS, SUBSETS))), min_size=1)


def plainly(rows: list[tuple[str, str, str]]) -> dict[str, float | None]:
    """Counted one by one."""
    right = said = true = both = 0
    for answer, target, _ in rows:
        answer, target = answer.strip().lower(), target.strip().lower()
        right += answer == target
        said += answer == "yes"
        true += target == "yes"
        both += answer == "yes" and target == "yes"
    precision, recall = both / said if said else None, both / true if true else None
    if not said and not true:
        f1 = None
    elif not both:
        f1 = 0.0
    else:
        assert precision is not None
        assert recall is not None
        f1 = 2 / (1 / precision + 1 / recall)
    numbers = (right / len(rows), precision, recall, f1, said / len(rows))
    return dict(zip(("accuracy", "precision", "recall", "f1_score", "yes_ratio"), numbers, strict=True))


def measured(rows: list[tuple[str, str, str]]) -> dict[str, float | None]:
    return pope.metrics(*zip(*rows, strict=True))


@given(ROWS)
def test_every_number_is_that_of_a_plain_loop(rows: list[tuple[str, str, str]]) -> None:
    found = measured(rows)
    parts = {s: [row for row in rows if row[2] == s] for s in SUBSETS}
    parts = {s: of for s, of in parts.items() if of}
    for name, value in plainly(rows).items():
        assert found[f"pope_{name}"] == (None if value is None else pytest.approx(value)), name
        each = {s: plainly(of)[name] for s, of in parts.items()}
        for subset, part in each.items():
            assert found[f"pope_{name}/{subset}"] == (None if part is None else pytest.approx(part))
        whole = None if None in each.values() else sum(v for v in each.values() if v is not None) / len(each)
        assert found[f"pope_{name}_mean"] == (None if whole is None else pytest.approx(whole))


@given(ROWS)
def test_shares_are_shares_and_an_unread_answer_never_helps(rows: list[tuple[str, str, str]]) -> None:
    found = measured(rows)
    assert all(value is None or 0 <= value <= 1 for value in found.values())
    unread = measured([("perhaps", *row[1:]) for row in rows])
    for name in ("pope_accuracy", "pope_recall", "pope_f1_score", "pope_yes_ratio"):
        assert (unread[name] or 0.0) == 0.0
    for i, (answer, target, subset) in enumerate(rows):
        if answer.strip().lower() == target.strip().lower() == "yes":  # a right yes becomes a sentence
            worse = measured([*rows[:i], ("It is there", target, subset), *rows[i + 1 :]])
            for name in ("pope_accuracy", "pope_recall", "pope_f1_score"):
                assert (worse[name] or 0.0) < (found[name] or 0.0), name


def upstream(rows: list[tuple[str, str, str]]) -> dict[str, float]:
    """lmms-eval's own functions."""
    from lmms_eval.tasks.pope import utils

    logged = [utils.pope_process_results({"answer": t, "question_id": "0"}, [a])["pope_accuracy"] for a, t, _ in rows]
    names = ("accuracy", "precision", "recall", "f1_score")
    return {name: getattr(utils, f"pope_aggregate_{name}")(logged) for name in names}


@settings(deadline=None)  # the first call imports lmms-eval
@given(ROWS)
def test_where_all_answers_are_read_upstream_says_the_same(rows: list[tuple[str, str, str]]) -> None:
    read = [row for row in rows if row[0].strip().lower() in ("yes", "no")]
    assume(read)
    found = measured(read)
    for name, value in upstream(read).items():
        assert (found[f"pope_{name}"] or 0.0) == pytest.approx(value), name
    # the headline agrees on any answers
    assert measured(rows)["pope_accuracy"] == pytest.approx(upstream(rows)["accuracy"])


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["maybe", "", "yes, I think", "The star"]))
def test_upstream_loses_unread_answers(right: int, unread: int, answer: str) -> None:
    """The reason for the numbers of our own: they differ wherever a yes question has an unread answer."""
    rows = [("yes", "yes", "random")] * right + [(answer, "yes", "random")] * unread
    assert upstream(rows)["f1_score"] == upstream(rows)["recall"] == 1.0
    found = measured(rows)
    assert found["pope_recall"] == pytest.approx(right / (right + unread))
    assert found["pope_f1_score"] == pytest.approx(2 * right / (2 * right + unread))


def test_nothing_to_divide_by_is_none() -> None:
    never = measured([("no", "yes", "random"), ("no", "no", "random")])
    assert (never["pope_precision"], never["pope_recall"], never["pope_f1_score"]) == (None, 0.0, 0.0)
    assert never["pope_precision_mean"] is None
    negative = measured([("no", "no", "random"), ("yes", "yes", "popular")])
    assert (negative["pope_recall/random"], negative["pope_f1_score/random"]) == (None, None)
    assert (negative["pope_f1_score"], negative["pope_f1_score_mean"]) == (1.0, None)


def test_papers_print_the_mean_over_subsets() -> None:
    """Which is not the F1 of all questions."""
    rows = [("yes", "yes", "random")] * 3 + [("no", "yes", "popular")] * 2 + [("yes", "yes", "popular")] * 4
    rows += [("yes", "no", "adversarial")] * 3 + [("yes", "yes", "adversarial")]
    found = measured(rows)
    each = [1.0, 2 * 4 / (4 + 6), 2 * 1 / (4 + 1)]
    assert found["pope_f1_score_mean"] == pytest.approx(sum(each) / 3)
    assert not math.isclose(found["pope_f1_score_mean"] or 0, found["pope_f1_score"] or 0, abs_tol=0.01)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes", "yes"),
        ("no", "no"),
        ("No", "no"),
        ("NO", "yes"),  # case by case, as it is written there
        ("No.", "no"),
        ("No, there is none", "no"),
        ("Yes. No.", "yes"),
        ("There is no dog. Yes", "no"),
        ("It is not there", "no"),
        ("Not at all", "yes"),
        ("nothing", "yes"),
        ("", "yes"),
        (".no", "yes"),
        ("  no  ", "no"),
        ("no!", "yes"),
        ("no\nyes", "yes"),
        ("I see no, dog", "no"),
        ("none", "yes"),
        ("cannot", "yes"),
        ("yes no", "no"),
    ],
)
def test_llavas_rule(answer: str, said: str) -> None:
    assert pope.llava(answer) == said
    found = measured([(answer, said, "random"), ("yes", "yes", "random")])
    assert found["llava/pope_accuracy"] == found["llava/pope_f1_score"] == found["llava/pope_f1_score_mean"] == 1.0


def test_numbers_need_no_lmms_eval() -> None:
    assert imported_with("from tasks import pope; pope.metrics(['yes'], ['no'], ['random'])", *HEAVY) == []
