"""What the README shows is what the repository does."""

import ast
import re
from pathlib import Path

import pandas as pd
import pytest

from harness import cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLE = ROOT / "tests" / "examples" / "centre.py"


def test_worked_example_is_the_file_that_is_tested() -> None:
    assert EXAMPLE.read_text().strip() in README


def test_worked_example_is_short_and_imports_two_names() -> None:
    tree = ast.parse(EXAMPLE.read_text())
    of_prunebench = [
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "harness.method"
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


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"`make ([a-z-]+)", README)) | set(re.findall(r"^make ([a-z-]+)", README, re.M))
    assert named <= targets, named - targets
    assert {"eval", "test"} <= named


def test_every_file_named_exists() -> None:
    for path in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / path).exists(), path


def test_tables_are_those_of_the_committed_results() -> None:
    from harness.upkeep.readme import FILES, filled

    for file in FILES:
        text = (ROOT / file).read_text()
        assert filled(text, ROOT / "results" / "reference") == text, "run `prunebench dev readme`"
