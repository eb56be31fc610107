"""`prunebench results ...` and `leaderboard --format`: what they print, what they refuse, and their exit codes."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from factories import PROCESSING, asked, keys, make_cell, make_record, seal, sealed
from helpers import run

from harness.core.paths import TOP
from harness.store.sealed import SAMPLES, SEAL, SampleScore, SealedCell
from harness.store.store import Store

REFERENCE = TOP / "results" / "reference"
Prunebench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def prunebench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Prunebench:
    return lambda *words: run(capsys, monkeypatch, *map(str, words))


def measured(
    root: Path, method: str = "fastv", right: int = 2, limit: str | None = None, **changes: object
) -> SealedCell:
    """A sealed cell of four questions, with this many right answers."""
    budget = "none" if method == "none" else "64"
    cell = make_cell(method=method, budget=budget, **({"knobs": {}} if method == "none" else {}), **changes)
    scores = {key: SampleScore(float(i < right), str(i), "random", f"q{i}?", "yes") for i, key in enumerate(keys(4))}
    words = {"method": method, "budget": None if method == "none" else "64", "limit": limit, "seed": cell.seed}
    origin = {"request": asked(**words), "started": "2026-01-01", "processing": PROCESSING, "task_settings": {}}
    records = [make_record(i, answer="yes" if i < right else "no") for i in range(4)]
    with Store(root).open(cell, keys(4)) as writer:
        writer.append(*records)
        return seal(
            writer,
            scores=scores,
            metrics={"pope_accuracy": right / 4},
            provenance={**origin, "device": "cpu", "versions": {"torch": "2"}},
        )


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three cells: unpruned, fastv and first; and one that is unfinished."""
    root = tmp_path / "r"
    measured(root, "none", right=4)
    measured(root, "fastv", right=2)
    measured(root, "first", right=1)
    with Store(root).open(make_cell(seed=7), keys(4)) as writer:
        writer.append(make_record(0))
    return root


def of(root: Path, method: str) -> SealedCell:
    (found,) = (sealed for sealed in Store(root).cells() if sealed.cell.method == method)
    return found


def cells(root: Path) -> dict[str, bytes]:
    """The files of the sealed cells."""
    return {str(p.relative_to(root)): p.read_bytes() for s in Store(root).cells() for p in s.folder.iterdir()}


def cut(sealed: SealedCell, name: str) -> None:
    (sealed.folder / name).write_bytes((sealed.folder / name).read_bytes()[:99])


# --------------------------------------------------------------------------------------------------------------- list


def test_list_has_a_line_a_cell_and_fits(prunebench: Prunebench, results: Path) -> None:
    code, out, err = prunebench("results", "list", "--results", results)
    assert (code, err) == (0, "")
    head, _, *lines, unfinished, last = out.splitlines()
    assert head.split()[:4] == ["id", "task", "setting", "budget"]
    assert [line.split()[2:4] for line in lines] == [["none", "none"], ["fastv", "64"], ["first", "64"]]
    assert "50.0 [" in lines[1]
    assert unfinished.startswith("unfinished  pope/org_tiny-fastv-64-")
    assert unfinished.endswith(": 1 answers")
    assert last == "3 sealed, 1 unfinished, 0 damaged"
    assert all(
        of(results, method).identity.startswith(line.split()[0])
        for method, line in zip(("none", "fastv"), lines[:2], strict=True)
    )


def test_a_line_of_the_reference_fits_and_tells_its_settings_apart(prunebench: Prunebench) -> None:
    code, out, _ = prunebench("results", "list", "--results", REFERENCE)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 110
    lines = out.splitlines()[2:-1]
    assert len(lines) == len(list(REFERENCE.glob("cells/*/*/cell.json"))) > 652, "one line a cell"
    assert len({line.split()[0] for line in lines}) == len(lines)
    words = ("--model", "mini", "--method", "random", "--task", "gqa", "--budget", "64")
    code, out, _ = prunebench("results", "list", "--results", REFERENCE, *words)
    assert [line.split()[2:-4] for line in out.splitlines()[2:-1]] == [
        *(["random", "boundary=0", f"seed={i}", "64", "108"] for i in range(1)),
        ["random", "boundary=2", "64", "108"],
        *(["random", "boundary=0", f"seed={i}", "64", "108"] for i in range(1, 5)),
    ]


def test_list_filters(prunebench: Prunebench, results: Path) -> None:
    measured(results, "fastv", limit="4", seed=3)
    for words, methods in (
        (("--method", "fastv,first"), ["fastv", "first", "fastv"]),
        (("--budget", "none"), ["none"]),
        (("--limit", "4"), ["fastv"]),
        (("--full",), ["none", "fastv", "first"]),
        (("--task", "pope", "--model", "org/tiny", "--method", "first"), ["first"]),
    ):
        code, out, _ = prunebench("results", "list", "--results", results, *words, "--format", "csv")
        assert code == 0
        frame = pd.read_csv(io.StringIO(out), dtype=str)
        assert list(frame["method"]) == methods, words
        assert set(frame["state"]) == {"sealed"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--method", "fastw"), "unknown method of these cells 'fastw'; did you mean 'fastv'?"),
        (("--task", "gqa"), "unknown task of these cells 'gqa' (known: pope)"),
        (("--budget", "6x4"), "6x4"),
        (("--budget", "32"), "unknown budget of these cells '32'"),
        (("--limit", "9"), "expected tries with LIMIT=9, found full runs alone"),
        (("--limit", "9", "--full"), "expected a LIMIT or --full, found both"),
        (("--method", "none", "--budget", "64"), "expected cells that all filters take, found none of 3"),
        (("--format", "xml"), "unknown format 'xml'"),
    ],
)
def test_wrong_filters_are_one_line(prunebench: Prunebench, results: Path, words: tuple[str, ...], says: str) -> None:
    code, out, err = prunebench("results", "list", "--results", results, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_list_as_csv_and_json(prunebench: Prunebench, results: Path) -> None:
    _, out, _ = prunebench("results", "list", "--results", results, "--format", "json")
    rows = json.loads(out)
    assert [row["state"] for row in rows] == ["sealed"] * 3 + ["unfinished"]
    assert (rows[1]["score"], rows[1]["score_pct"], rows[1]["n"], rows[3]["n"]) == (0.5, 50, 4, 1)
    assert rows[3]["score"] is None
    _, out, _ = prunebench("results", "list", "--results", results, "--format", "csv")
    assert list(pd.read_csv(io.StringIO(out))["identity"]) == [row["identity"] for row in rows]


@pytest.mark.parametrize(
    "command", [("list",), ("show", "ab"), ("samples", "ab"), ("diff", "ab", "cd"), ("rm", "ab", "--yes"), ("gc",)]
)
def test_no_folder_a_wrong_one_and_an_empty_one_are_one_line(
    prunebench: Prunebench, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "a.txt").write_text("")
    (tmp_path / "empty" / "cells").mkdir(parents=True)
    for name in ("missing", "wrong", "empty", "wrong/a.txt"):
        code, out, err = prunebench("results", *command, "--results", tmp_path / name)
        if (name, command) == ("empty", ("gc",)):
            assert (code, out) == (0, "nothing to remove\n")
            continue
        assert (code, out) == (2, ""), (name, out)
        assert "found none" in err
        assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "wrong"]


def test_files_of_a_person_hide_no_cell(prunebench: Prunebench, results: Path) -> None:
    one = of(results, "fastv")
    (one.folder / "notes.txt").write_text("mine")
    (results / "cells" / "notes.txt").write_text("mine")
    code, out, err = prunebench("results", "list", "--results", results)
    assert out.splitlines()[-1] == "3 sealed, 1 unfinished, 1 damaged"
    assert code == 1
    assert "notes.txt: it belongs to no cell" in err
    assert prunebench("results", "show", one.identity, "--results", results)[1]
    assert prunebench("results", "verify", "--results", results)[1].count("WRONG") >= 2, "verify names both"


# ---------------------------------------------------------------------------------------------------------- one cell


def test_show_has_all_of_a_cell(prunebench: Prunebench, results: Path) -> None:
    one = of(results, "fastv")
    code, out, _ = prunebench("results", "show", one.identity[:6].upper(), "--results", results)
    assert code == 0
    for part in ("cell", "scores", "costs (mean of a sample)", "method", "provenance", "files", "command"):
        assert f"\n{part}\n" in f"\n{out}"
    assert "make eval METHOD=fastv BUDGET=64" in out
    assert "0.5 [" in out
    assert max(map(len, out.splitlines())) <= 110
    _, out, _ = prunebench("results", "show", one.identity, "--results", results, "--format", "json")
    assert json.loads(out)["cell"]["knobs/boundary"] == 2
    _, out, _ = prunebench("results", "show", one.identity, "--results", results, "--format", "csv")
    frame = pd.read_csv(io.StringIO(out)).set_index("name")
    assert frame.loc["kept", "value"] == str(one.costs["kept"])


def test_samples_are_chosen_by_key_and_score(prunebench: Prunebench, results: Path) -> None:
    one = of(results, "first").identity
    for words, found in (
        (("--wrong",), [1, 2, 3]),
        (("--right",), [0]),
        ((), [0, 1, 2, 3]),
        (("--key", "pope/000002"), [2]),
    ):
        code, out, _ = prunebench("results", "samples", one, "--results", results, *words, "--format", "csv")
        assert code == 0
        frame = pd.read_csv(io.StringIO(out))
        assert list(frame["key"]) == [f"pope/{i:06d}" for i in found]
        assert {"answer", "target", "question", "score", "kept"} <= set(frame.columns)
        _, out, _ = prunebench("results", "samples", one, "--results", results, *words)
        assert out.splitlines()[-1] == f"{len(found)} of 4 answers of first at 64"
        assert len(out.splitlines()) == len(found) + 3
    code, _, err = prunebench("results", "samples", one, "--results", results, "--key", "pope/9")
    assert (code, err.count("\n")) == (2, 1)
    assert "key 'pope/9': expected a question of cell" in err
    code, _, err = prunebench("results", "samples", one, "--results", results, "--wrong", "--right")
    assert "expected --wrong or --right, found both" in err


def test_long_answers_and_control_characters_stay_in_their_line(prunebench: Prunebench, tmp_path: Path) -> None:
    records = [make_record(i, answer="\x1b[2J" + "long " * 60 + "\u202e" + "模型" * 40) for i in range(4)]
    sealed(Store(tmp_path), make_cell(), records)
    code, out, _ = prunebench("results", "samples", of(tmp_path, "fastv").identity, "--results", tmp_path)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 110
    assert "\x1b" not in out
    assert "\u202e" not in out


def test_diff_names_settings_processing_and_answers(prunebench: Prunebench, results: Path) -> None:
    one, other = of(results, "fastv"), of(results, "first")
    code, out, _ = prunebench("results", "diff", one.identity, other.identity, "--results", results)
    assert code == 0
    assert "  method  fastv  |  first" in out
    assert "processing: equal" in out
    assert "costs (mean of a sample): equal" in out
    assert "pope_accuracy  0.5  |  0.25" in out
    assert "answers: 1 of 4 differ; 2 is better at 0, worse at 1" in out
    assert "pope/000001  1        0" in out
    assert max(map(len, out.splitlines()[3:])) <= 110
    _, out, _ = prunebench("results", "diff", one.identity, other.identity, "--results", results, "--format", "csv")
    assert list(pd.read_csv(io.StringIO(out))["key"]) == ["pope/000001"]
    _, out, _ = prunebench("results", "diff", one.identity, other.identity, "--results", results, "--format", "json")
    found = json.loads(out)
    assert (found["setting"], found["both"], len(found["answers"])) == ({"method": ["fastv", "first"]}, 4, 1)


def test_diff_refuses_two_tasks(prunebench: Prunebench) -> None:
    cells = {s.cell.task: s.identity for s in Store(REFERENCE).cells() if s.cell.method == "none" and not s.asked.limit}
    code, _, err = prunebench("results", "diff", cells["gqa"], cells["pope"], "--results", REFERENCE)
    assert code == 2
    assert "expected two cells of one task, found gqa" in err


def test_an_identity_that_is_unknown_ambiguous_or_unfinished_is_one_line(prunebench: Prunebench, results: Path) -> None:
    unfinished = Store(results).folder(make_cell(seed=7)).name[-16:]
    for word, says in (
        ("xyz", "found none that begins so among 4"),
        ("", "expected the beginning"),
        (unfinished, "of an unfinished one"),
    ):
        for command in ("show", "samples"):
            code, out, err = prunebench("results", command, word, "--results", results)
            assert (code, out) == (2, "")
            assert says in err
            assert err.count("\n") == 1
    code, _, err = prunebench("results", "show", "b1", "--results", REFERENCE)
    assert code == 2
    assert "cell 'b1': expected one cell, found 3 that begin so: b1c4a2d4bbaac2e4 (gqa/mini-v2drop-native)" in err


# ------------------------------------------------------------------------------------------------------ damaged cells

DAMAGE = {"cell file": SEAL, "samples": SAMPLES}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize(
    "words",
    [
        ("results", "list"),
        ("results", "show", "NONE"),
        ("results", "samples", "NONE"),
        ("results", "diff", "NONE", "FIRST"),
        ("leaderboard", "--no-figures"),
        ("leaderboard", "--format", "markdown"),
        ("report", "--samples", "0"),
    ],
    ids=" ".join,
)
def test_a_damaged_cell_is_named_left_out_and_exit_code_1(
    prunebench: Prunebench, results: Path, words: tuple[str, ...], what: str
) -> None:
    ids = {"NONE": of(results, "none").identity, "FIRST": of(results, "first").identity}
    hurt = of(results, "fastv")
    cut(hurt, DAMAGE[what])
    code, out, err = prunebench(*(ids.get(word, word) for word in words), "--results", results)
    assert code == 1
    assert err.count("left out: ") == 1
    assert hurt.folder.name in err
    assert out or words[0] == "report"
    if words[0] == "leaderboard":
        text = (results / "LEADERBOARD.md").read_text() if "--no-figures" in words else out
        assert "first" in text
        assert "fastv" not in text
    if words[0] == "report":
        assert (results / "report" / "index.html").is_file()


def test_show_of_a_picture_goes_on_without_a_damaged_cell(prunebench: Prunebench, tmp_path: Path) -> None:
    shutil.copytree(REFERENCE / "cells" / "mme", tmp_path / "cells" / "mme")
    hurt = next(s for s in Store(tmp_path).cells() if s.cell.method == "dart")
    cut(hurt, SEAL)
    one = next(s for s in Store(tmp_path).cells([]) if (s.cell.method, s.cell.budget) == ("fastv", "64"))
    key = one.columns("key")["key"][0]
    words = ("--model", "mini", "--method", "fastv", "--budget", "64", "--out", tmp_path / "p.png")
    code, out, err = prunebench("show", "--sample", key, *words, "--results", tmp_path)
    assert code == 1, err
    assert "picture  " in out
    assert hurt.folder.name in err


def test_a_folder_of_damaged_cells_alone_is_refused_with_their_names(prunebench: Prunebench, tmp_path: Path) -> None:
    cut(measured(tmp_path), SEAL)
    code, _, err = prunebench("leaderboard", "--results", tmp_path)
    assert code == 2
    assert err.splitlines()[0].startswith("left out: ")
    assert "expected sealed cells, found none" in err.splitlines()[1]
    assert not (tmp_path / "leaderboard.csv").exists()


def test_show_of_the_damaged_cell_itself_is_refused(prunebench: Prunebench, results: Path) -> None:
    hurt = of(results, "fastv")
    cut(hurt, SAMPLES)
    code, _, err = prunebench("results", "show", hurt.identity, "--results", results)
    assert code == 2
    assert "expected a sealed cell, found a damaged one" in err


# ------------------------------------------------------------------------------------------------- merge, rm and gc


def test_merge_copies_writes_tables_and_names_what_is_left(
    prunebench: Prunebench, results: Path, tmp_path: Path
) -> None:
    into = tmp_path / "into \u6a21"
    measured(into, "fastv", right=3)
    code, out, err = prunebench("results", "merge", results, into)
    assert code == 1
    assert out.splitlines()[0] == f"2 cells copied to {into}, 0 were there, 1 left"
    assert "1 unfinished cells stay in" in out
    assert "expected the samples that" in err
    assert len(pd.read_csv(into / "leaderboard.csv")) == 3
    assert of(into, "fastv").score == 0.75
    code, out, _ = prunebench("results", "merge", results, tmp_path / "new")
    assert (code, out.splitlines()[0]) == (0, f"3 cells copied to {tmp_path / 'new'}, 0 were there, 0 left")
    assert cells(tmp_path / "new") == cells(results), "byte for byte"
    code, _, err = prunebench("results", "merge", tmp_path / "nowhere", into)
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("where", ["folder", "/proc/r"])
def test_merge_into_a_read_only_folder_is_one_line(
    prunebench: Prunebench, results: Path, tmp_path: Path, where: str
) -> None:
    into = Path(where) if where.startswith("/") else tmp_path / where
    if where == "folder":
        into.mkdir(mode=0o555)
        if os.access(into, os.W_OK):
            pytest.skip("root writes into any folder")
    code, out, err = prunebench("results", "merge", results, into)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "cannot write results to" in err


def test_a_filtered_list_counts_what_it_lists(prunebench: Prunebench, results: Path) -> None:
    (of(results, "first").folder / SEAL).write_text("{")
    code, out, err = prunebench("results", "list", "--method", "fastv", "--results", results)
    assert (code, out.splitlines()[-1]) == (1, "1 sealed")
    assert err.startswith("left out: ")
    assert prunebench("results", "list", "--results", results)[1].endswith("\n2 sealed, 1 unfinished, 1 damaged\n")


def test_a_refusal_names_the_folder_and_says_that_all_are_full_runs(prunebench: Prunebench, results: Path) -> None:
    code, out, err = prunebench("results", "show", "dddddd", "--results", results)
    assert (code, out) == (2, "")
    assert f"`prunebench results list --results {results}` shows them" in err
    code, out, err = prunebench("results", "list", "--limit", "12", "--results", results)
    assert (code, out) == (2, "")
    assert "expected tries with LIMIT=12, found full runs alone: leave the limit out" in err
    measured(results, "first", limit="3", data_fingerprint="other")
    assert "known: 3)" in prunebench("results", "list", "--limit", "12", "--results", results)[2]


def test_rm_lists_and_needs_a_yes(prunebench: Prunebench, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    before = len(list(results.rglob("*")))
    code, out, err = prunebench("results", "rm", "--method", "first", "--results", results)
    assert code == 2
    assert "first" in out
    assert "expected --yes to remove 1 cells" in err
    code, out, _ = prunebench("results", "rm", "--method", "first", "--results", results, "--dry-run")
    assert (code, out.splitlines()[-1]) == (0, "1 sealed")
    assert len(list(results.rglob("*"))) == before


@pytest.mark.parametrize(("typed", "gone"), [("y\n", True), ("n\n", False), ("", False), ("\n", False)])
def test_rm_asks_at_a_terminal(
    prunebench: Prunebench, results: Path, monkeypatch: pytest.MonkeyPatch, typed: str, gone: bool
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(typed))
    folder = of(results, "first").folder
    code, out, err = prunebench("results", "rm", of(results, "first").identity[:8], "--results", results)
    assert code == 0
    assert "remove 1 cells? [y/N]" in err
    assert folder.exists() is not gone
    assert ("1 cells removed" in out) is gone
    assert ("nothing was removed" in out) is not gone


def test_rm_removes_by_identity_by_filter_and_what_is_damaged_or_unfinished(
    prunebench: Prunebench, results: Path
) -> None:
    unfinished = Store(results).folder(make_cell(seed=7))
    hurt = of(results, "first")
    cut(hurt, SEAL)
    code, out, _ = prunebench("results", "rm", hurt.identity, unfinished.name[-16:], "--yes", "--results", results)
    assert code == 0
    assert "2 cells removed" in out
    assert not hurt.folder.exists()
    assert not unfinished.exists()
    assert list(pd.read_csv(results / "leaderboard.csv", keep_default_na=False)["method"]) == ["none", "fastv"]
    code, out, _ = prunebench("results", "rm", "--full", "--yes", "--results", results)
    assert (code, "2 cells removed" in out) == (0, True)
    assert "No sealed cells yet." in (results / "LEADERBOARD.md").read_text()


def test_rm_refuses_both_neither_and_a_cell_that_is_held(prunebench: Prunebench, results: Path) -> None:
    for words in ((), ("ab", "--method", "first")):
        code, _, err = prunebench("results", "rm", *words, "--yes", "--results", results)
        assert code == 2
        assert "rm: expected identities or filters, found" in err
    with Store(results).open(make_cell(seed=7), keys(4)) as writer:
        first = of(results, "first").identity
        code, out, err = prunebench("results", "rm", first, writer.folder.name[-16:], "--yes", "--results", results)
        assert code == 1
        assert "1 cells removed" in out
        assert "is being run by process" in err
        assert writer.folder.exists()


def test_rm_leaves_a_file_of_a_person(prunebench: Prunebench, results: Path) -> None:
    one = of(results, "first")
    (one.folder / "notes.txt").write_text("mine")
    code, out, _ = prunebench("results", "rm", one.identity, "--yes", "--results", results)
    assert code == 0
    assert f"note: {one.folder} has other files, and stays" in out
    assert [path.name for path in one.folder.iterdir()] == ["notes.txt"]


def test_gc_lists_sizes_asks_and_removes(
    prunebench: Prunebench, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    prunebench("leaderboard", "--no-figures", "--results", results)
    assert (results / "cache").is_dir()
    folder = Store(results).folder(make_cell(seed=7))
    for words, code in ((("--dry-run",), 0), ((), 2)):
        found, out, _ = prunebench("results", "gc", "--results", results, *words)
        assert found == code
        assert "half-run cell  cells/pope/org_tiny-fastv-64-" in out
        assert ", 1 answers)" in out
        assert "cache  cache  (" in out
        assert folder.exists()
    code, out, _ = prunebench("results", "gc", "--yes", "--results", results)
    assert code == 0
    assert out.splitlines()[-1].endswith(" free")
    assert not folder.exists()
    assert not (results / "cache").exists()
    assert len(Store(results).cells()) == 3
    assert prunebench("results", "gc", "--yes", "--results", results)[:2] == (0, "nothing to remove\n")


# ------------------------------------------------------------------------------------------------ leaderboard --format


@pytest.mark.parametrize(
    ("form", "says"),
    [("markdown", "| method |"), ("csv", "section,limit,"), ("latex", r"\toprule"), ("html", "<table>")],
)
def test_leaderboard_prints_one_table(prunebench: Prunebench, results: Path, form: str, says: str) -> None:
    code, out, err = prunebench("leaderboard", "--format", form, "--results", results)
    assert (code, err) == (0, "")
    assert says in out
    assert not (results / "leaderboard.csv").exists(), "the other files are not written"


def test_leaderboard_writes_a_file_by_its_ending(prunebench: Prunebench, results: Path, tmp_path: Path) -> None:
    for ending, says in (
        (".tex", r"\toprule"),
        (".html", "<table>"),
        (".md", "| method |"),
        (".csv", "section,limit,"),
    ):
        out = tmp_path / "deep" / f"t{ending}"
        code, printed, err = prunebench("leaderboard", "--out", out, "--method", "none,fastv", "--results", results)
        assert (code, printed) == (0, "")
        assert err == f"written {out}\n"
        assert says in out.read_text()
        assert "first" not in out.read_text().replace("first-child", "")
    for words, says in (
        (("--out", tmp_path / "t.doc"), "expected a name that ends in .md, .csv, .tex, .html"),
        (("--out", tmp_path, "--format", "csv"), "expected a file, found a folder"),
        (("--format", "pdf"), "unknown format 'pdf'"),
        (("--method", "fastv"), "filters are for the wide table"),
    ):
        code, printed, err = prunebench("leaderboard", *words, "--results", results)
        assert (code, printed) == (2, "")
        assert says in err
