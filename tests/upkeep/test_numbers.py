"""Tables and numbers of the pages are those of the committed results, and a number that drifts is noticed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers import run

from harness.core.errors import PrunebenchError
from harness.core.paths import TOP
from harness.upkeep import numbers
from harness.upkeep.numbers import NUMBERS, Number, counted
from harness.upkeep.readme import PAGES, made

REFERENCE = TOP / "results" / "reference"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_that_of_the_committed_results(page: str) -> None:
    text = (TOP / page).read_text()
    assert made(page, text, REFERENCE) == text, "run `prunebench dev readme`"


@pytest.mark.parametrize("number", NUMBERS, ids=lambda one: f"{one.page}-{one.words}")
def test_a_number_that_drifts_is_counted_anew(number: Number) -> None:
    text = (TOP / number.page).read_text()
    found = re.search(re.sub(" +", r"\\s+", number.words), text)
    assert found is not None
    wrong = text[: found.start(1)] + ("Ninety" if found[1].isalpha() else "3.1 to 3.2" if " to " in found[1] else "7")
    drifted = wrong + text[found.end(1) :]
    assert drifted != text
    assert counted(number.page, drifted, REFERENCE) == text


def test_a_sentence_that_changes_says_where_its_number_is_counted() -> None:
    text = (TOP / "README.md").read_text().replace("measured cells", "cells")
    with pytest.raises(PrunebenchError, match=r"found them 0 times.*harness/upkeep/numbers\.py"):
        counted("README.md", text, REFERENCE)
    with pytest.raises(PrunebenchError, match="found them 2 times"):
        Number("x.md", r"of (\d+)", numbers.cells).put("of 1 of 2", REFERENCE)


def test_numbers_come_from_files(tmp_path: Path) -> None:
    assert numbers.cells(tmp_path) == "0"
    cell = tmp_path / "cells" / "gqa" / "one" / "cell.json"
    cell.parent.mkdir(parents=True)
    cell.write_text("{}")
    assert numbers.cells(tmp_path) == "1"
    (tmp_path / "index.json").write_text(json.dumps([{}, {}]))
    assert numbers.recorded(tmp_path / "index.json")(tmp_path) == "2"
    with pytest.raises(PrunebenchError, match=r"faults\.md: expected a line"):
        numbers.gate_faults(0)(tmp_path)
    assert [numbers.word(n) for n in (4, 20, 21)] == ["four", "twenty", "21"]


def test_an_embedded_model_has_as_many_values_as_it_is_said_to() -> None:
    from transformers import LlavaForConditionalGeneration

    n = LlavaForConditionalGeneration.from_pretrained(numbers.EMBEDDED["mini"]).num_parameters()
    assert numbers.parameters("mini")(REFERENCE) == f"{n / 1e6:.1f}"


def test_another_folder_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, monkeypatch, "dev", "readme", "--results", str(REFERENCE))
    assert (code, out) == (2, "")
    assert "expected the top of a checkout as working directory, found no README.md in" in err


def test_a_stale_page_is_named_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for page in PAGES:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / page).write_text((TOP / page).read_text())
    monkeypatch.chdir(tmp_path)
    ask = ("dev", "readme", "--check", "--results", str(REFERENCE))
    assert run(capsys, monkeypatch, *ask)[:2] == (0, "")
    text = (tmp_path / "README.md").read_text()
    stale = text.replace("This repository holds ", "This repository holds 1")
    assert stale != text
    (tmp_path / "README.md").write_text(stale)
    code, out, _ = run(capsys, monkeypatch, *ask)
    line = stale[: stale.index("This repository holds")].count("\n") + 1
    assert (code, out) == (1, f"stale   README.md, from line {line}: run `prunebench dev readme`\n")
    assert (tmp_path / "README.md").read_text() == stale
