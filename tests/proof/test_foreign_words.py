"""Words of a request that are not in a cell's identity decide nothing: each lie beside the cell is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import run
from published import forged, place, published, samples_with
from test_foreign import looked, of, put

from harness.proof.foreign import Checker
from harness.proof.foreign_request import _loaded
from harness.store.collect import collect
from harness.store.foreign import HOLDS, REFUSED
from harness.store.store import Store
from harness.store.submission import FOLDER


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
        put("provenance", "unproven", value="another family"),
        "its provenance has unproven 'another family', expected ''",
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


# ------------------------------------------------------------------------------------------ beside cells that are there


def of_other_data(new: dict[str, Any]) -> None:
    """Data that nobody here has: no check reads them."""
    new["cell"]["data_fingerprint"] = "f" * 64
    new["provenance"]["request"]["data"] = "copy"


def of_others_data(folder: Path, change: Callable[[Any], None] | None = None) -> Path:
    """The pruned cell of a folder alone, on data that are not here."""
    shutil.rmtree(place(folder, "none"))
    samples = None if change is None else samples_with(place(folder), change)
    forged(folder, of_other_data, samples)
    return folder


def another_method(folder: Path) -> Path:
    """The same as `of_others_data` of another cell."""

    def native(new: dict[str, Any]) -> None:
        new["cell"]["seed"] = new["provenance"]["request"]["seed"] = 7

    forged(folder, native)
    return folder


@pytest.mark.parametrize("column", ["key", "image"])
@pytest.mark.parametrize("first", [True, False], ids=["honest first", "hostile first"])
def test_a_cell_with_other_questions_is_left_and_the_tables_are_made(
    good: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    column: str,
    first: bool,
) -> None:
    """It names the data of honest cells, which are not here to compare it with: tables of both would not be made."""

    def renamed(frame: Any) -> None:
        frame[column] = [f"z{text}" for text in frame[column]]

    honest = another_method(of_others_data(good))
    hostile = of_others_data(published(tmp_path / "mallory"), renamed)
    assert [one.state for one in looked(hostile).cells] == [HOLDS], "alone it has no fault"
    folders = (honest, hostile) if first else (hostile, honest)
    root, page = tmp_path / "r", tmp_path / "page.html"
    code, out, err = run(capsys, monkeypatch, "results", "collect", *map(str, folders), "--into", str(root))
    assert code == 1, out
    assert f"left out: {folders[1]}/cells/pope/" in err
    assert "since both cells name the data ffffffffffffffff, found other keys or images" in err
    (here,) = Store(root).cells()
    assert str(here.folder) in err
    assert (root / "LEADERBOARD.md").is_file()
    assert run(capsys, monkeypatch, "report", "--results", str(root), "--samples", "1", "--out", str(page))[0] == 0
    # the way out that the message names
    words = ("results", "rm", here.identity, "--results", str(root))
    assert f"`prunebench {' '.join(words)}` removes the other: collect again" in err
    assert run(capsys, monkeypatch, *words, "--yes")[0] == 0
    assert run(capsys, monkeypatch, "results", "collect", str(folders[1]), "--into", str(root))[0] == 0


def test_a_second_collect_writes_the_same_bytes(good: Path, tmp_path: Path) -> None:
    root = tmp_path / "r"

    def kept() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (root / FOLDER).iterdir()}

    collect([good], root, Checker())
    before = kept()
    assert not any(b"equals" in text for text in before.values())
    collect([good], root, Checker())
    assert kept() == before


def test_a_later_collect_that_takes_fewer_cells_forgets_none(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "r"
    collect([good], root, Checker())
    (record,) = (root / FOLDER).iterdir()
    before = record.read_bytes()
    (place(good) / "strange").touch()  # the same submission, of which one cell is refused now
    assert collect([good], root, Checker())[0].there == 1
    assert record.read_bytes() == before
