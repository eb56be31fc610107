"""Words of a request that are not in a cell's identity decide nothing: each lie beside the cell is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published import forged, place, published, samples_with
from test_foreign import looked, of, put

from harness.proof.foreign_request import _loaded
from harness.store.foreign import HOLDS, REFUSED


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return published(tmp_path / "alice")


def asked(**words: Any) -> Callable[[dict[str, Any]], None]:
    """Other words of the request."""
    return lambda new: new["provenance"]["request"].update(words)


def corpus(score: float) -> Callable[[dict[str, Any]], None]:
    """A headline that no scores of samples make."""

    def change(new: dict[str, Any]) -> None:
        new.update(metric={"kind": "corpus", "maximum": 1.0}, interval=None)
        new["metrics"]["pope_accuracy"] = score

    return change


def stated(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda new: new.update(values)


WORDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "limit": (asked(limit="50"), "its request has limit '50', and its data are 108 questions of another limit"),
    "limit of nothing": (
        asked(limit="0"),
        "its request has limit '0', and its data are 108 questions of another limit",
    ),
    "follow-up": (asked(follow_up="1"), "its request asks for follow-ups, and its questions are no follow-ups"),
    "judge": (asked(judge="1"), "its request has judge, and no service scores pope"),
    "model with code": (
        asked(model="evil/llava-with-code"),
        "its request asks the model 'evil/llava-with-code', and it is 'mini'",
    ),
    "stands for": (
        asked(stands_for="mini-qwen"),
        "its request makes it stand for 'mini-qwen', and it stands for 'mini'",
    ),
    "stands for unasked": (
        put("cell", "stands_for", value="llava-1.5-7b"),
        "its request makes it stand for 'mini', and it stands for 'llava-1.5-7b'",
    ),
    "dtype": (asked(dtype="float16"), "its request asks for dtype 'float16', and it is 'float32'"),
    "image": (asked(image="pad"), "its request asks for image 'pad', and its processing says 'plain'"),
    "prompt": (
        asked(prompt="vicuna_v1"),
        "its request asks for prompt 'vicuna_v1', and its processing has another template",
    ),
    "knob": (
        asked(knobs={"exit_votes": 9}),
        "its request asks for the knob exit_votes=9, and it has 2",
    ),
    "knob as text": (
        asked(knobs={"exit_votes": "9"}),
        "its request asks for the knob exit_votes=9, and it has 2",
    ),
    "no value of a knob": (
        asked(knobs={"exit_votes": "many"}),
        "its request cannot be made: visipruner: knob exit_votes='many' is not valid",
    ),
    "knob that the budget sets": (
        put("cell", "knobs", "keep", value=256),
        "its budget 128 makes the knob keep=128, and it has 256",
    ),
    "knob that nobody asked for": (
        put("cell", "knobs", "exit_votes", value=3),
        "its budget 128 makes the knob exit_votes=2, and it has 3",
    ),
    "unproven": (
        put("provenance", "unproven", value="[official](https://evil.example)"),
        "its provenance has unproven '[official](https://evil.example)', expected ''",
    ),
    "kind of metric": (
        corpus(9.5),
        "its metric pope_accuracy differs in {'kind': 'corpus', 'maximum': 1.0}, expected no difference",
    ),
    "score above its maximum": (
        corpus(9.5),
        "its pope_accuracy is 9.5, expected 0 to 1.0",
    ),
    "score below 0": (
        corpus(-1.0),
        "its pope_accuracy is -1.0, expected 0 to 1.0",
    ),
    "direction of metric": (
        stated(metric={"higher_is_better": False}),
        "its metric pope_accuracy differs in {'higher_is_better': False}, expected no difference",
    ),
    "another headline": (
        stated(headline="pope_recall"),
        "its headline is 'pope_recall', expected 'pope_accuracy'",
    ),
}


@pytest.mark.parametrize("kind", WORDS)
def test_a_word_that_is_not_so_is_refused_and_the_other_cell_holds(good: Path, kind: str) -> None:
    change, expected = WORDS[kind]
    forged(good, change)
    found = looked(good)
    assert of(found).state == REFUSED
    assert any(why.startswith(expected) for why in of(found).wrong), of(found).wrong
    assert of(found, "none").state == HOLDS


@pytest.mark.parametrize("words", [{}, {"data": "x"}, {"data": "hub"}, {"limit": "108"}], ids=str)
def test_forged_scores_are_found_whatever_the_request_says_of_the_data(good: Path, words: dict[str, Any]) -> None:
    """No word switches the check of scores off: a cell's fingerprint says which data it is of."""

    def score(frame: Any) -> None:
        frame.loc[0, "answer"] = "maybe"

    forged(good, asked(**words), samples_with(place(good), score))
    assert "score of pope/000000 is 1.0, but its data and its answer give 0.0" in of(looked(good)).wrong
    honest = published(good.parent / "honest")
    forged(honest, asked(**words))
    assert of(looked(honest)).state == HOLDS


def test_a_subset_is_found_by_its_size_alone() -> None:
    """What limit n draws of a subset of n questions is that subset, whatever limit drew it."""
    for task in ("pope", "mme", "textvqa"):
        for limit in (1, 7, 50, 64, 200):
            drawn = _loaded(task, "mini", limit, False)
            assert not isinstance(drawn, str)
            again = _loaded(task, "mini", len(drawn.samples), False)
            assert not isinstance(again, str)
            assert again.fingerprint == drawn.fingerprint, (task, limit)
