"""The wide table of a paper in four formats, and the CSV that a spreadsheet or pandas pivots."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from factories import PROCESSING, asked, sealed_cell

import prunebench
from harness.core.paths import TOP
from harness.store.sealed import SealedCell
from harness.store.store import Store
from harness.tables import latex, leaderboard, paper
from harness.tables.frame import rows, setting_names
from harness.tables.sections import distinct, sections

REFERENCE = TOP / "results" / "reference"
#: what a name may hold: everything that LaTeX, HTML, Markdown or a spreadsheet reads as its own
HOSTILE = r"""a_b%c&d#e$f{g}h~i^j\k<l>m|n"o`p'q--r[s]*t é ü ß ≈ ± 模 型 =1+1 @x"""


def board(**changes: object) -> list[SealedCell]:
    scores = {"none": (0.9, 1600.0), "fastv": (0.81, 1200.0), "visipruner": (0.855, 1300.0), "random": (0.5, 800.0)}
    cells = []
    for method, row in scores.items():
        for budget in ("none",) if method == "none" else ("128", "64"):
            tasks = zip(("pope", "mme"), row, strict=True)
            cells += [sealed_cell(method, budget, task, score, **changes) for task, score in tasks]
    return cells


def tried(**changes: object) -> list[SealedCell]:
    """Cells of a LIMIT of 12, measured later than those of `board`."""
    origin = {"request": asked(limit="12"), "started": "2027", "processing": PROCESSING, "device": "CPU"}
    same = {"provenance": origin, "data_fingerprint": "few", "n": 12}
    return [
        sealed_cell("none", "none", score=1.0, **(same | changes)),
        sealed_cell("fastv", "64", score=1.0, **(same | changes)),
    ]


# ------------------------------------------------------------------------------------------------------ the long table


@pytest.fixture(scope="module")
def reference() -> list[SealedCell]:
    return Store(REFERENCE).cells()


def test_the_naive_pivot_of_every_section_has_one_value_a_place(reference: list[SealedCell]) -> None:
    frame = pd.read_csv(StringIO(leaderboard._csv(rows(reference)).decode()))
    assert frame["section"].nunique() == 4, "two models, each with all and with the usual questions"
    for name, part in frame.groupby("section"):
        wide = part.pivot(index=["setting", "budget"], columns="task", values="score")
        assert int(wide.notna().sum().sum()) == len(part), name
    full = frame[frame["section"].str.endswith("LIMIT=default") & (frame["model"] == "mini")]
    wide = full.pivot(index=["setting", "budget"], columns="task", values="score")
    assert {"random boundary=2", *(f"random boundary=0 seed={i}" for i in range(5))} <= set(wide.index.levels[0])
    knobs = full[full["setting"] == "random boundary=2"]["knobs"]
    assert all('"boundary":2' in text for text in knobs), "no setting is mixed with another"
    for _, same in full.groupby(["setting", "task", "budget"]):
        assert len(same) == 1


def test_the_pivot_would_fail_without_the_setting(reference: list[SealedCell]) -> None:
    frame = rows(reference)
    part = frame[frame["section"] == frame["section"].iloc[0]]
    with pytest.raises(ValueError, match="duplicate entries"):
        part.pivot(index=["method", "budget"], columns="task", values="score")


def test_a_setting_is_one_text_over_budgets_and_tasks(reference: list[SealedCell]) -> None:
    whole, *_ = sections(distinct(reference))
    names = setting_names(whole)
    assert set(names) == {sealed.identity for sealed in whole.cells}
    random = {names[s.identity] for s in whole.cells if s.cell.method == "random"}
    assert random == {"random boundary=2", *(f"random boundary=0 seed={i}" for i in range(5))}


def test_two_cells_that_are_spelt_alike_get_their_identities() -> None:
    cells = [sealed_cell("fastv", "64", knobs={"a": "x|y"}), sealed_cell("fastv", "64", knobs={"a": "x/y"})]
    names = rows(cells)["setting"]
    assert names.nunique() == 2
    assert all(name.startswith("fastv a=") for name in names)


def test_percent_stands_beside_the_metrics_own_unit() -> None:
    frame = rows(board()).set_index(["method", "budget", "task"])
    mme = frame.loc[("fastv", "64", "mme")]
    assert (mme["score"], mme["max"], mme["score_pct"]) == (1200, 2000, 60)
    assert (mme["low_pct"], mme["high_pct"]) == pytest.approx((mme["low"] / 20, mme["high"] / 20))
    assert frame.loc[("fastv", "64", "pope")]["score_pct"] == pytest.approx(81)


def test_limit_and_n_tell_tries_from_full_runs() -> None:
    few = {"expected": 12, "answered": 12, "headline": 9}
    frame = rows([*board(), *tried(counts=few)])
    assert set(frame[frame["limit"].isna()]["n"]) == {100}
    cut = frame[frame["limit"].notna()]
    assert (set(cut["limit"]), set(cut["n"])) == ({12}, {9})
    assert list(frame.index[frame["limit"].notna()]) == [len(frame) - 2, len(frame) - 1], "tries come last"
    whole = {"request": asked(limit="all"), "started": "2027", "processing": PROCESSING}
    assert rows([sealed_cell("none", "none", provenance=whole)])["limit"].isna().all()


# ------------------------------------------------------------------------------------------------- sections by size


def test_full_runs_come_first_and_tries_are_folded_at_the_end(tmp_path: Path) -> None:
    large = [dataclasses.replace(s, cell=dataclasses.replace(s.cell, n_samples=500)) for s in board(dtype="float16")]
    alone = [sealed_cell("none", "none", n_samples=9000, dtype="bfloat16")]
    cells = [*tried(), *board(), *alone, *large]
    found = sections(distinct(cells))
    assert [(s.cells[0].cell.dtype, s.limit) for s in found] == [
        ("float16", ""),  # most questions
        ("float32", ""),
        ("bfloat16", ""),  # compares nothing
        ("float32", "12"),
    ]
    _, markdown = leaderboard.write(cells, tmp_path, samples=False, figures=True)
    text = markdown.read_text()
    parts = text.split("\n## ")[1:-1]
    assert [part.partition("\n")[0].endswith("(a try)") for part in parts] == [False, False, False, True]
    assert [part.count("<details><summary>a try, with at most 12 questions of a task") for part in parts] == [
        0,
        0,
        0,
        1,
    ]
    assert all(part.count("<details>") == part.count("</details>") for part in parts)
    assert parts[3].rstrip().endswith("</details>")
    assert ("![" in parts[0], "![" in parts[3]) == (True, False), "a try has no figures"
    assert not list((tmp_path / "figures").glob("*12*"))


# ----------------------------------------------------------------------------------------------------------- formats

ROW = re.compile(r"(?<!\\)&")
#: LaTeX's own characters that may stand in our tables only as a command, a group or a column
STRAY = re.compile(r"(?<!\\)[%#_~^]|[^\x00-\x7f]")


def strictly(text: str) -> list[list[list[str]]]:
    """The rows of every table of a LaTeX file of ours. Raises AssertionError unless environments and braces are
    balanced, every row has as many columns as its table says, and nothing is left unescaped."""
    body = text[text.index("\n\n") :]
    opened: list[str] = []
    depth = 0
    for token in re.findall(r"\\begin\{(\w+\*?)\}|\\end\{(\w+\*?)\}|(\\\\|\\[{}]|[{}])", body):
        if token[0]:
            opened.append(token[0])
        elif token[1] and token[1] != "document":
            assert opened.pop() == token[1]
        elif token[2] in ("{", "}"):
            depth += 1 if token[2] == "{" else -1
            assert depth >= 0
    assert not opened
    assert depth == 0
    assert not STRAY.search(body.replace(r"\ifx\prunebenchalone", "")), STRAY.search(body)
    tables = []
    for n, inside in re.findall(r"\\begin\{tabular\}\{l\*\{(\d+)\}\{r\}\}\n(.*?)\\end\{tabular\}", body, re.S):
        found = []
        for line in inside.splitlines():
            if line in (r"\toprule", r"\midrule", r"\bottomrule"):
                continue
            assert line.endswith(r" \\"), line
            line = line.removesuffix(r"\\").strip()
            wide = re.fullmatch(r"\\multicolumn\{(\d+)\}\{l\}\{\\emph\{(.*)\}\}", line)
            if wide:
                assert int(wide[1]) == int(n) + 1
                found.append([wide[2]])
            else:
                parts = [part.strip() for part in ROW.split(line)]
                assert len(parts) == int(n) + 1, line
                assert "$" not in re.sub(r"\\\$|\$\\(pm|approx|times|mu)\$", "", line)
                found.append(parts)
        tables.append(found)
    assert len(tables) == body.count(r"\toprule") == body.count(r"\begin{table*}") > 0
    return tables


def compiled(text: str, folder: Path) -> str:
    """The words of the PDF that pdflatex makes of a file; "" where no TeX is at hand."""
    if not shutil.which("pdflatex"):
        return ""
    (folder / "table.tex").write_text(text, encoding="ascii")
    (folder / "paper.tex").write_text(
        "\\documentclass[twocolumn]{article}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\nText.\n"
        + "\\input{table}\nMore.\n\\end{document}\n"
    )
    for name in ("table", "paper"):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Overfull" not in done.stdout, done.stdout[-2000:]
        assert "incomplete" not in done.stdout
    if not shutil.which("pdftotext"):
        return ""
    told = subprocess.run(["pdftotext", "-layout", "table.pdf", "-"], cwd=folder, capture_output=True, text=True)
    return told.stdout


def test_latex_has_blocks_by_budget_the_unpruned_row_first_and_marks() -> None:
    (table,) = strictly(paper.render(board(), "latex"))
    assert table[:3] == [["", "mme", "pope", r"Avg \%"], ["", "of 2000", r"\%", ""], ["method", "n=100", "n=100", ""]]
    assert table[3] == ["none", "1600.0", "90.0", "100.0"]
    assert [row[0] for row in table[4:]] == [
        *("budget 128", "fastv", "random", "visipruner"),
        *("budget 64", "fastv", "random", "visipruner"),
    ]
    assert table[5] == ["fastv", r"\underline{1200.0}", r"\underline{81.0}", r"\underline{82.5}"]
    assert table[7] == ["visipruner", r"\textbf{1300.0}", r"\textbf{85.5}", r"\textbf{88.1}"]


def test_latex_compiles_with_every_cell_of_the_reference(reference: list[SealedCell], tmp_path: Path) -> None:
    text = paper.render(reference, "latex")
    *whole, alone = strictly(text)
    several = sections(distinct(reference))[:-1]
    lines = [line for section in several for block in section.blocks() for line in block.lines]
    assert sum(len(row) > 1 for part in whole for row in part[3:]) == len(lines)
    assert max(len(part) for part in whole) <= 3 + latex.MOST_ROWS + 9
    assert whole[0][3][0] == alone[3][0] == "none"
    words = compiled(text, tmp_path)
    if words:
        assert "random boundary=0 (5 seeds)" in words
        assert "budget 384" in words


@pytest.mark.parametrize("where", ["model", "method", "task"])
def test_names_are_text_in_every_format(where: str, tmp_path: Path) -> None:
    same = {"costs": {}, where: HOSTILE} if where == "model" else {}
    task = HOSTILE if where == "task" else "pope"
    method = HOSTILE if where == "method" else "fastv"
    cells = [sealed_cell("none", "none", task, 0.9, **same), sealed_cell(method, "64", task, 0.8, **same)]
    text = paper.render(cells, "latex")
    strictly(text)
    words = compiled(text, tmp_path)
    if words:
        shown = "".join(words.split())
        assert "b%c&d#e$f{g}h" in shown
        assert "U+6A21" in shown or where == "task", "a letter that the font lacks is its code point"
    said = HOSTILE.replace("|", "/") if where == "method" else HOSTILE  # as in all tables
    page = read(paper.render(cells, "html"))
    assert any(said in cell for cell in page.texts) or where == "model"
    if where == "model":
        assert HOSTILE in page.title
    markdown = paper.render(cells, "markdown")
    assert all(line.count(" | ") == markdown.splitlines()[2].count(" | ") for line in markdown.splitlines()[2:6])
    table = pd.read_csv(StringIO(paper.render(cells, "csv")))
    assert said in {"model": "".join(table["section"]), "method": set(table["method"]), "task": set(table)}[where]


def test_many_tasks_and_long_names_fit_a_page(tmp_path: Path) -> None:
    tasks = [
        "mmbench_en_dev_static",
        "vqav2_val_lite",
        "ok_vqa_val2014_lite",
        "refcoco_bbox_rec_val",
        "flickr30k_test_lite",
    ]
    tasks += [f"task{i}" for i in range(11)]
    cells = [sealed_cell(m, b, t, 0.5) for m, b in (("none", "none"), ("fastv", "64")) for t in tasks]
    text = paper.render(cells, "latex")
    (table,) = strictly(text)
    assert {"mmbench\\_en\\_", "dev\\_static"} <= {part for row in table[:2] for part in row}
    compiled(text, tmp_path)


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        ("\\", r"\textbackslash{}"),
        ("é", r"\'{e}"),
        ("e\u0301", r"\'{e}"),
        ("模", r"\texttt{U+6A21}"),
        ("\x1b", " "),
        ("ß", r"\texttt{U+00DF}"),
    ],
)
def test_a_character_of_latex(character: str, shown: str) -> None:
    assert latex.escaped(character) == shown


class Page(HTMLParser):
    """The tables of a page, and whether its elements are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[int] = []
        self.texts: list[str] = []
        self.title = ""
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outside += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag in ("meta", "br"):
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append(0)
        if tag in ("td", "th"):
            self.rows[-1] += int(dict(attrs).get("colspan") or 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] in (["h2"], ["summary"]):
            self.title += data
        elif self.open:
            self.texts.append(data)


def read(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open
    return page


def test_html_is_one_page_without_anything_else() -> None:
    text = paper.render([*board(), *tried()], "html")
    page = read(text)
    assert page.outside == []
    assert "<script" not in text
    assert set(page.rows) == {4, 3}
    assert text.index("<h2>") < text.index("<details><summary>mini, float32, cpu, LIMIT=12 (a try)")
    assert "<b>1300.0</b>" in text
    assert "<u>1200.0</u>" in text


def test_csv_has_numbers_in_their_own_units() -> None:
    frame = pd.read_csv(StringIO(paper.render([*board(), *tried()], "csv")))
    assert list(frame.columns) == ["section", "limit", "budget", "method", "seeds", "mme", "pope", "avg_pct"]
    row = frame[(frame["method"] == "fastv") & (frame["budget"] == "64")].iloc[0]
    assert (row["mme"], row["pope"], row["avg_pct"]) == pytest.approx((1200, 0.81, 82.5))
    assert list(frame["limit"].dropna()) == [12, 12]


def test_a_filter_keeps_the_unpruned_score_behind_avg() -> None:
    cells = board()
    few = [s for s in cells if s.cell.method == "fastv" and s.cell.budget == "64"]
    frame = pd.read_csv(StringIO(paper.render(few, "csv", cells)))
    assert frame["avg_pct"].tolist() == pytest.approx([82.5])


# ------------------------------------------------------------------------------------------------------- the library


def test_the_answers_of_one_question_over_all_methods() -> None:
    key = "pope/000123"
    frame = prunebench.samples(
        REFERENCE, key=key, model="mini", method=["none", "fastv", "random"], budget=["none", 64]
    )
    assert set(frame["key"]) == {key}
    assert frame["question"].nunique() == 1
    wide = prunebench.samples(REFERENCE, key=key, model="mini", wide="answer")
    assert list(wide["key"]) == [key]
    both = prunebench.samples(REFERENCE, key=["pope/000002", "pope/000000"], model="mini", wide="answer")
    (one,) = both[both["section"].str.endswith("default") & (both["key"] == "pope/000002")].to_dict("records")
    long = prunebench.samples(REFERENCE, key="pope/000002", model="mini", budget=64)
    shown = {f"{row['setting']}@64": row["answer"] for row in long.to_dict("records")}
    assert len(shown) == len(long) > 20
    assert {name: one[name] for name in shown} == shown
    assert "none" in both


def test_wrong_words_for_the_wide_form_are_answered() -> None:
    with pytest.raises(prunebench.PrunebenchError, match="no answer with key 'pope/1': expected the key of a question"):
        prunebench.samples(REFERENCE, key="pope/1", task="pope")
    with pytest.raises(prunebench.PrunebenchError, match="unknown column for the wide form 'answr'; did you mean 'ans"):
        prunebench.samples(REFERENCE, key="pope/000000", wide="answr", method="fastv")


def test_a_damaged_cell_is_left_out_with_a_warning(tmp_path: Path) -> None:
    shutil.copytree(REFERENCE / "cells" / "mme", tmp_path / "cells" / "mme")
    first = sorted(tmp_path.glob("cells/mme/*/samples.parquet"))[0]
    first.write_bytes(first.read_bytes()[:-9])
    with pytest.warns(UserWarning, match=f"left out: .*{first.parent.name}"):
        assert len(prunebench.results(tmp_path)) == len(list(tmp_path.glob("cells/mme/*"))) - 1
