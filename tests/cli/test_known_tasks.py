"""`prunebench tasks`: what there is, parts of names, groups, one task, and what cannot run."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import run
from yamltask import write_task

from tasks.sources import TASKS
from tasks.verified import NOTE, VERIFIED


@pytest.fixture
def listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def ask(*words: str) -> str:
        code, out, err = run(capsys, monkeypatch, "tasks", *words)
        assert code == 0, err
        return out

    return ask


def test_the_overview_names_ours_and_the_verified_and_counts_the_rest(listed) -> None:
    out = listed()
    for name in (*TASKS, *VERIFIED):
        assert f"\n{name} " in out
    assert NOTE in out
    assert "more tasks of the installed lmms-eval run by name" in out


def test_a_part_of_a_name_lists_tasks_and_whether_they_run(listed) -> None:
    lines = listed("vista_testmini").splitlines()
    assert [line.split()[0] for line in lines[2:6]] == [
        f"mathvista_testmini_{end}" for end in ("cot", "cot_reasoning", "format", "solution")
    ]
    assert all("no: a judge scores its answers" in line for line in lines[2:6])
    assert "refcoco_bbox_rec_val" in listed("refcoco_bbox_rec_*")
    assert "group refcoco_bbox_rec: 4" in listed("refcoco_bbox_rec")
    assert "textvqa_ocr" in listed("textvqa_o")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "mmstar:average",
            ("headline  average, a number of all answers together", "1024 tokens, as its file names none"),
        ),
        ("seedbench:seed_all", ("a mean of its questions' scores (tasks/seedbench/utils.py:27)", NOTE)),
        ("mmvet", ("with --allow-judge: a judge scores its answers", "OPENAI_API_KEY")),
        ("videomme", ("no: it shows videos",)),
        ("textvqa_ocr", ("columns   question_id, ", "16 tokens", "specified here")),
        ("pope", ("headline  pope_accuracy", "lmms-lab-encoder/POPE (test)")),
    ],
)
def test_a_name_describes_one_task(word: str, said: tuple[str, ...], listed) -> None:
    out = listed(word)
    for text in said:
        assert text in out


def test_a_file_is_described_too(listed, tmp_path: Path) -> None:
    sampled = {"do_sample": True, "temperature": 1}
    out = listed(str(write_task(tmp_path, generation_kwargs=sampled)))
    assert "exact_match, length (lower is better)" in out
    assert "greedy, though its file asks for do_sample, temperature=1" in out


def test_an_unknown_word_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run(capsys, monkeypatch, "tasks", "mmstarr")
    assert code == 2
    assert "did you mean 'mmstar" in err
