"""README and docs/ show what the repository does, in short sentences."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from sentences import LONGEST, prose, sentences, words

from harness import cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))
NAMED = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")
#: every page that people read first or look something up in
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (*(ROOT / name for name in NAMED), *PAGES)}
MOST_WORDS, MOST_COLUMNS = 900, 110
EXAMPLE = ROOT / "tests" / "examples" / "centre.py"


def test_worked_example_is_the_file_that_is_tested() -> None:
    assert EXAMPLE.read_text().strip() in README


def test_worked_example_is_short_and_imports_two_names() -> None:
    tree = ast.parse(EXAMPLE.read_text())
    of_prunebench = [
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "prunebench"
        for alias in node.names
    ]
    assert of_prunebench == ["Ranking", "Traits"]
    documented = [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef))]
    words = {
        line
        for node in documented
        if ast.get_docstring(node)
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    lines = {n for n, line in enumerate(EXAMPLE.read_text().splitlines(), 1) if line.strip() and n not in words}
    assert len(lines) < 15


def test_worked_example_runs_and_passes_its_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for args in (
        [
            "eval",
            "--method",
            f"{EXAMPLE}:Centre",
            "--budget",
            "64",
            "--tasks",
            "gqa",
            "--limit",
            "6",
            "--results",
            str(tmp_path),
        ],
        ["check", f"{EXAMPLE}:Centre"],
    ):
        monkeypatch.setattr("sys.argv", ["prunebench", *args])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code, capsys.readouterr()
    frame = pd.read_csv(tmp_path / "leaderboard.csv").set_index("method")
    assert frame.loc["centre", "kept"] == frame.loc["centre", "mean_visual"] == 64


@pytest.mark.parametrize("name", ["Contrast", "Last"])
def test_the_methods_of_the_page_pass_their_check(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXTS["docs/adding-a-method.md"], re.S)
    file = tmp_path / "mine.py"
    file.write_text(next(block for block in blocks if f"class {name}(" in block))
    monkeypatch.setattr("sys.argv", ["prunebench", "check", f"{file}:{name}"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code, capsys.readouterr()


def test_the_lines_of_python_run_as_they_stand() -> None:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "prunebench.prune" in block)
    assert len(code.strip().splitlines()) <= 15
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "CEG" in done.stdout, "VisiPruner at 64 tokens reads the sign, as in the picture"


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_to_a_file(name: str) -> None:
    folder = (ROOT / name).parent
    for path in re.findall(r"\]\(([^()\s:#]+)(?:#[^()\s]*)?\)", TEXTS[name]):
        assert (folder / path).exists(), path


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_named_exists(name: str) -> None:
    """Paths of the repository in code within a sentence; results/local is the reader's."""
    for path in re.findall(
        r"`((?:harness|methods|tasks|tests|configs|docs|benchmarks|results/reference|\.github)/[\w./-]+)", TEXTS[name]
    ):
        if name != "docs/migrating.md":  # speaks of files that were
            assert (ROOT / path).exists(), path


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r"^ +- (?:Home: )?([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(named) == sorted(["index.md", *(page.name for page in PAGES)])


def test_sentences_are_told_apart() -> None:
    page = "# Head\n\nOne two. Three\nfour: `five` six.\n\n* seven\n* eight [nine](ten.md)\n\n| a |\n```\nmake x\n```\n"
    assert sentences(page) == ["One two.", "Three four:", "`five` six.", "* seven", "* eight [nine]"]
    assert words(prose(page)) == 9


def test_the_readme_is_short() -> None:
    assert words(prose(README)) <= MOST_WORDS
    table = [line for line in README.splitlines() if line.startswith("|")]
    for line in README.splitlines():
        assert len(line) <= MOST_COLUMNS or line in table, line


@pytest.mark.parametrize("name", TEXTS)
def test_sentences_are_short(name: str) -> None:
    long = [sentence for sentence in sentences(TEXTS[name]) if words(sentence) > LONGEST]
    assert not long, f"{len(long)} sentences of more than {LONGEST} words: {long}"
