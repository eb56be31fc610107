"""examples/new_method.ipynb: committed as a clean text, and run from the top to the bottom."""

from __future__ import annotations

import base64
import io
import os
import re
import resource
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient
from PIL import Image

from harness.core.paths import TOP

NOTEBOOK = TOP / "examples" / "new_method.ipynb"
MOST_BYTES = 60_000
#: CPU time of a run of all cells, and how long one cell may take on a busy machine
SECONDS, PATIENCE_S = 180, 600


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


def faults(text: str) -> list[str]:
    """What keeps the text of a notebook from being committed."""
    book = nbformat.reads(text, as_version=nbformat.NO_CONVERT)
    nbformat.validate(book)
    found = [f"{len(text.encode())} bytes"] if len(text.encode()) > MOST_BYTES else []
    found += [f"kernel {book.metadata.kernelspec.name}"] if book.metadata.kernelspec.name != "python3" else []
    for cell in book.cells:
        if cell.cell_type == "code" and (cell.outputs or cell.execution_count is not None):
            found.append(f"{cell.id} has outputs")
        # a drive or a folder of a machine; "/" alone and paths of the repository are fine
        found += [f"{cell.id}: {path}" for path in re.findall(r"(?<![\w./}:])(?:/\w[\w.-]*/|[A-Z]:\\)", cell.source)]
    return found


def test_the_committed_notebook_is_clean() -> None:
    assert faults(NOTEBOOK.read_text()) == []
    assert [c.id for c in read().cells if "parameters" in c.metadata.get("tags", [])] == ["folder"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda book: book.cells[-1].update(source="see /home/me/x"), "/home/"),
        (lambda book: book.metadata.kernelspec.update(name="mine"), "kernel mine"),
        (
            lambda book: next(c for c in book.cells if c.cell_type == "code").update(execution_count=3),
            "has outputs",
        ),
        (lambda book: book.cells[0].update(source="x" * MOST_BYTES), "bytes"),
    ],
)
def test_an_unclean_notebook_is_named(change: Any, says: str) -> None:
    book = read()
    change(book)
    assert any(says in fault for fault in faults(nbformat.writes(book)))


def test_it_shows_the_method_of_the_page() -> None:
    """docs/adding-a-method.md and the notebook have one method: neither is to be changed alone."""
    page = (TOP / "docs" / "adding-a-method.md").read_text()
    (written,) = (c.source for c in read().cells if c.source.startswith("%%writefile"))

    def statements(text: str) -> list[str]:
        lines = (re.sub(r"\s*#.*", "", line) for line in text.splitlines())
        return [line for line in lines if line.strip()]

    (block,) = (found for found in re.findall(r"```python\n(.*?)```", page, re.S) if "class Contrast(" in found)
    assert statements(block) == statements(written.partition("\n")[2])


def run(book: Any, place: str, out: Path) -> dict[str, Any]:
    """The cells by their names after a run in a folder of the checkout."""
    next(cell for cell in book.cells if cell.id == "folder").source = f"FOLDER = {str(out)!r}"
    # the kernel is a Python of its own, and takes prunebench from this checkout
    env = os.environ | {"PYTHONPATH": str(TOP), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    client = NotebookClient(
        book, timeout=PATIENCE_S, kernel_name="python3", resources={"metadata": {"path": TOP / place}}
    )
    client.execute(env=env)
    return {cell.id: cell for cell in book.cells}


@pytest.mark.slow
@pytest.mark.parametrize("place", [".", "examples", "examples/slurm"])
def test_it_finds_the_repository_from_its_folders(place: str, tmp_path: Path) -> None:
    book = read()
    last = [cell.id for cell in book.cells].index("setup")
    book.cells = [*book.cells[: last + 1], nbformat.v4.new_code_cell("print(ROOT, FOLDER)")]
    *_, shown = run(book, place, tmp_path / "out").values()
    assert printed(shown).split() == [str(TOP), str(tmp_path / "out")]
    assert (tmp_path / "out").is_dir()


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path: Path) -> None:
    out, before = tmp_path / "a folder", cpu_seconds()
    cells = run(read(), "examples", out)
    assert 1 < cpu_seconds() - before < SECONDS, "of the kernel and of the commands that it started"
    assert "answers CEG" in printed(cells["ask"])
    costs = frame(cells["prune"])
    assert list(costs["answer"]) == ["CEG", "CEG", "yes"]
    assert list(costs["kept"]) == [576, 64, 64]
    assert costs.loc["fastv", "% of FLOPs"] < costs.loc["visipruner", "% of FLOPs"] < 100
    for name in ("look", "try"):
        assert drawn(cells[name]).std() > 20, "the picture has dark and bright patches"
    assert "0 of 29 properties fail" in printed(cells["check"])
    assert (out / "contrast.py").is_file()

    table = frame(cells["read"])
    assert sorted(set(table["method"])) == ["contrast", "fastv", "none", "random"]
    assert len(table) == 8
    assert set(table.loc[table["method"] != "none", "kept"]) == {64.0}
    assert (table["low_pct"] <= table["score_pct"]).all()
    pairs = frame(cells["compare"])
    assert len(pairs) == 9, "three pairs on two tasks and the average"
    first = pairs[(pairs["a"] == "contrast@64") & (pairs["b"] == "random@64") & (pairs["task"] == "textvqa")].iloc[0]
    assert 0 < first["low"] < first["difference"] < first["high"]
    assert first["verdict"] == "above"


def cpu_seconds() -> float:
    """Of processes that this one started and that have ended: other jobs of the machine do not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def frame(cell: Any) -> pd.DataFrame:
    (html,) = (o.data["text/html"] for o in cell.outputs if "text/html" in o.get("data", {}))
    (found,) = pd.read_html(io.StringIO(html), index_col=0)
    return found


def drawn(cell: Any) -> np.ndarray:
    (png,) = (o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {}))
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("L"), dtype=float)
