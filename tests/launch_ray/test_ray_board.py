"""Chunks: handed out, given back, set aside, and no answer taken twice."""

from __future__ import annotations

import re

import pytest

from harness.core.errors import PrunebenchError
from harness.runner.launch.ray_board import DEATHS, Board
from harness.store.journal import Record

QUESTIONS = {f"image{i:02}": [("a", f"{i}/0"), ("a", f"{i}/1"), ("b", f"{i}/0")] for i in range(20)}


def record(key: str) -> Record:
    return Record(key, "image", "yes", 1, {}, 0.1)


def test_chunks_hold_every_image_once_and_shrink_towards_the_end() -> None:
    board = Board(QUESTIONS, 4)
    chunks = []
    while board.waiting:
        chunks.append(board.next(2).images)
    assert sorted(image for chunk in chunks for image in chunk) == sorted(QUESTIONS)
    sizes = [len(chunk) for chunk in chunks]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 2
    assert sizes[-1] == 1
    assert len(Board(QUESTIONS, 1).next(1).images) == 1, "never more than the most"


def test_an_answer_counts_once() -> None:
    board = Board(QUESTIONS, 1)
    chunk = board.next(1)
    assert board.asked(chunk) == {"a": {"0/0", "0/1"}, "b": {"0/0"}}
    assert [r.key for r in board.new("a", [record("0/0")])] == ["0/0"]
    assert board.new("a", [record("0/0")]) == []
    assert board.asked(chunk) == {"a": {"0/1"}, "b": {"0/0"}}


def test_what_a_dead_worker_left_is_asked_again_after_the_others() -> None:
    board = Board(dict(list(QUESTIONS.items())[:2]), 1)
    lost = board.next(1)
    board.new("a", [record("0/0")])
    board.back(lost, "on n1")
    other = board.next(1)
    assert other.images == ["image01"]
    assert board.next(1) is lost
    assert board.asked(lost) == {"a": {"0/1"}, "b": {"0/0"}}
    for identity, keys in board.asked(lost).items():
        board.new(identity, [record(key) for key in keys])
    board.back(lost, "on n1")
    assert not board.waiting, "nothing of it is open"
    board.check()


def test_a_chunk_that_ends_three_workers_is_set_aside_and_named() -> None:
    board = Board(dict(list(QUESTIONS.items())[:2]), 1)
    deadly, other = board.next(1), board.next(1)
    for i in range(DEATHS):
        assert not board.waiting
        board.back(deadly, f"on n{i}")
        if i < DEATHS - 1:
            assert board.next(1) is deadly
    assert not board.waiting
    for identity, keys in board.asked(other).items():
        board.new(identity, [record(key) for key in keys])
    with pytest.raises(PrunebenchError, match=re.escape("2 questions on 1 images ended 3 workers")) as error:
        board.check()
    assert "0/0, 0/1 (on n0; on n1; on n2)" in str(error.value)


def test_a_worker_out_of_sight_is_no_death() -> None:
    board = Board(dict(list(QUESTIONS.items())[:1]), 1)
    chunk = board.next(1)
    for _ in range(DEATHS + 1):
        board.back(chunk)
        assert board.next(1) is chunk


def test_a_setting_that_failed_is_asked_no_more() -> None:
    board = Board(dict(list(QUESTIONS.items())[:2]), 1)
    chunk = board.next(1)
    board.new("a", [record("0/0"), record("0/1")])
    board.failed(chunk, "pope b: no")
    assert board.asked(board.next(1)) == {"a": {"1/0", "1/1"}}
    with pytest.raises(PrunebenchError, match="pope b: no; the other answers are kept"):
        board.check()
