"""`prunebench compare` as a user types it: two sides, two folders, files with flips, and results that are damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from factories import drawn
from helpers import run

import prunebench
from harness.core.shown import from_csv

TASKS = ("pope", "gqa")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for task in TASKS:
        drawn(tmp_path / "r", "none", "none", task, 120)
        for method in ("fastv", "sparsevlm", "uniform"):
            drawn(tmp_path / "r", method, "64", task, 120)
    return tmp_path / "r"


def test_two_sides_with_all_flips_in_a_file_and_on_a_page(results: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    where = ["--results", str(results), "--out", str(tmp_path / "o" / "f.csv"), "--page", str(tmp_path / "f.html")]
    code, out, err = run(capsys, monkeypatch, "compare", "fastv@64", "sparsevlm@64", *where, "--samples", "5")
    assert (code, err) == (0, "")
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 110
    frame = prunebench.compare("fastv@64", "sparsevlm@64", folder=results)
    assert frame["task"].tolist() == ["gqa", "pope", "average"]
    for row in frame.to_dict("records"):
        assert f"{row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]" in out
    flips = pd.read_csv(tmp_path / "o" / "f.csv")
    n = int(frame["better"].sum() + frame["worse"].sum())
    assert len(flips) == n > 5
    assert f"{n} answers flipped" in out
    assert flips["better"].value_counts().to_dict() == {"a": frame["better"].sum(), "b": frame["worse"].sum()}
    again = prunebench.compare("fastv@64", "sparsevlm@64", folder=results, flips=True)
    assert flips["answer_a"].map(from_csv).tolist() == again["answer_a"].tolist()
    page = (tmp_path / "f.html").read_text()
    assert page.count("<img alt") == page.count("<figure>") == 5
    assert f"page    {tmp_path / 'f.html'}  (5 of {n} flipped answers)" in out


def test_texts_of_data_and_models_are_text_on_the_page(tmp_path: Path, capsys, monkeypatch) -> None:
    for method in ("fastv", "sparsevlm"):
        drawn(tmp_path / "r", method, "64", "gqa", 40, hostile=True)
    words = [
        "compare",
        "fastv@64",
        "sparsevlm@64",
        "--results",
        str(tmp_path / "r"),
        "--page",
        str(tmp_path / "p.html"),
    ]
    assert run(capsys, monkeypatch, *words)[0] == 0
    page = (tmp_path / "p.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;window.hacked=1" in page


def test_an_image_that_is_not_there_is_said_and_the_page_goes_on(tmp_path: Path, capsys, monkeypatch) -> None:
    for method in ("fastv", "sparsevlm"):
        drawn(tmp_path / "r", method, "64", "gqa", 40, image="0" * 16)
    words = [
        "compare",
        "fastv@64",
        "sparsevlm@64",
        "--results",
        str(tmp_path / "r"),
        "--page",
        str(tmp_path / "p.html"),
    ]
    code, out, _ = run(capsys, monkeypatch, *words)
    assert code == 0
    assert out.count("gqa without pictures: gqa/") == 1
    page = (tmp_path / "p.html").read_text()
    assert "<img" not in page
    assert page.count("<figure>") > 1


def test_one_side_in_two_folders(results: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    later = tmp_path / "later"
    shutil.copytree(results, later)
    for cell in later.glob("cells/*/*fastv*"):
        shutil.rmtree(cell)
    for task in TASKS:
        drawn(later, "fastv", "64", task, 120, method_source="fedcba987654", seed=1)
    for words in (["--results", str(results), str(later)], ["--results", str(results), "--results", str(later)]):
        code, out, _ = run(capsys, monkeypatch, "compare", "fastv@64", *words)
        assert code == 0
        assert f"A  fastv@64 in {results}" in out
        assert f"B  fastv@64 in {later}" in out
    frame = prunebench.compare("fastv@64", folder=[results, later], task="pope")
    assert len(frame) == 1
    assert frame["better"][0] + frame["worse"][0] > 0, "another seed answers otherwise"


def test_damaged_cells_are_named_and_left_out(results: Path, capsys, monkeypatch) -> None:
    (torn,) = results.glob("cells/pope/*fastv*/samples.parquet")
    torn.write_bytes(torn.read_bytes()[:-5])
    (edited,) = results.glob("cells/pope/*uniform*/cell.json")
    edited.write_text(edited.read_text().replace("float32", "float16"))
    code, out, err = run(capsys, monkeypatch, "compare", "fastv@64", "sparsevlm@64", "--results", str(results))
    assert code == 1
    assert "pope is not compared: the samples of fastv@64 are damaged" in out
    assert "A better" in out, "the other task is compared"
    assert [line.partition(":")[0] for line in err.splitlines()] == ["left out"] * 2
    assert str(torn) in err
    assert str(edited) in err
    code, _, err = run(
        capsys, monkeypatch, "compare", "fastv@64", "uniform@64", "--results", str(results), "--task", "pope"
    )
    assert code == 2
    *damage, said = err.splitlines()
    assert all(line.startswith("left out: ") for line in damage)
    assert said.startswith("prunebench: ")


def test_what_is_missing_for_it_is_damaged_is_called_so(results: Path, capsys, monkeypatch) -> None:
    (torn,) = results.glob("cells/pope/*fastv*/cell.json")
    torn.write_text("{")
    name = f"pope/{torn.parent.name}"
    where = ["fastv@64", "sparsevlm@64", "--results", str(results)]
    _, out, _ = run(capsys, monkeypatch, "compare", *where)
    assert f"note    pope is not compared: a cell of fastv@64 is damaged ({name})" in " ".join(out.split("\n"))
    assert "was measured on pope" not in out
    _, _, err = run(capsys, monkeypatch, "compare", *where, "--task", "pope")
    assert f"found cells of gqa alone; damaged and left out: {name}" in err
    _, _, err = run(capsys, monkeypatch, "compare", torn.parent.name[-16:-8], *where[1:])
    assert err.splitlines()[-1].endswith(f"; damaged and left out: {name}")
    _, _, err = run(capsys, monkeypatch, "compare", "uniform@64", *where[1:], "--task", "gqa")
    assert "pope is" not in err
    for cell in results.glob("cells/gqa/*fastv*"):
        shutil.rmtree(cell)
    _, _, err = run(capsys, monkeypatch, "compare", *where)
    assert "unknown method of these cells 'fastv'" in err
    assert err.splitlines()[-1].endswith(f"; damaged and left out: {name}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fastv@64"], "expected two sides or more, as in fastv@64 sparsevlm@64, found 1"),
        (["fastv@64", "fastv@64"], "are the same cells"),
        (["fastw@64", "fastv@64"], "did you mean 'fastv'?"),
        (["fastv@32", "uniform@64"], "a budget at which fastv was measured (64), found 32"),
        (["fastv@64", "uniform@64", "--results", "{}", "--results", "{}"], "expected two folders, found one twice"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    words: list[str], said: str, results: Path, capsys, monkeypatch
) -> None:
    words = [word.replace("{}", str(results)) for word in words]
    where = [] if "--results" in words else ["--results", str(results)]
    code, out, err = run(capsys, monkeypatch, "compare", *words, *where)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "flips.html"], "expected a file that ends in .csv, found 'flips.html'"),
        (["--page", "flips.csv"], "expected a file that ends in .html or .htm, found 'flips.csv'"),
        (["--out", "x", "--page", "x"], "expected a file that ends in .csv, found 'x'"),
    ],
)
def test_a_file_of_another_ending_is_refused_before_anything_is_read(
    words: list[str], said: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, monkeypatch, "compare", "a@64", "b@64", "--results", "nowhere", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "f.html").symlink_to(tmp_path / "f.csv")
    _, _, err = run(capsys, monkeypatch, "compare", "a@64", "b@64", "--out", "f.csv", "--page", "f.html")
    assert "expected two files, found one" in err


def test_python_says_the_same(results: Path) -> None:
    with pytest.raises(prunebench.PrunebenchError, match="two sides or more of one folder"):
        prunebench.compare("fastv@64", folder=results)
    with pytest.raises(prunebench.PrunebenchError, match="did you mean 'fastv'"):
        prunebench.compare("fastw@64", "uniform@64", folder=results)
    frame = prunebench.compare("fastv@64", "sparsevlm@64", "uniform@64", folder=results, task=["pope"])
    assert len(frame) == 3
    assert (frame["p_holm"] >= frame["p"]).all()


def test_python_warns_of_damage_and_of_notes(results: Path) -> None:
    (torn,) = results.glob("cells/pope/*fastv*/samples.parquet")
    torn.write_bytes(torn.read_bytes()[:-5])
    (edited,) = results.glob("cells/pope/*uniform*/cell.json")
    edited.write_text(edited.read_text().replace("float32", "float16"))
    with pytest.warns(UserWarning, match="is not compared") as said:
        frame = prunebench.compare("fastv@64", "sparsevlm@64", folder=results)
    assert list(frame["task"]) == ["gqa", "pope"]
    texts = [str(one.message) for one in said]
    assert {one.filename for one in said} == {__file__}
    assert sorted(text.partition(":")[0] for text in texts if str(results) in text) == ["left out"] * 2
    assert any(str(torn) in text for text in texts)
    assert any(str(edited) in text for text in texts)
    assert "fastv@64 and sparsevlm@64: pope is not compared: the samples of fastv@64 are damaged" in texts
    with (
        pytest.warns(UserWarning, match="left out") as said,
        pytest.raises(prunebench.PrunebenchError, match="questions that both"),
    ):
        prunebench.compare("fastv@64", "sparsevlm@64", folder=results, task="pope")
    assert any(str(torn) in str(one.message) for one in said)
