"""A page of 20 methods at 5 budgets on 8 tasks and 2 models holds 100 samples a task within its limit."""

from __future__ import annotations

from pathlib import Path

import bigpage
import pytest

from harness.report import page as report
from harness.report import views

pytestmark = pytest.mark.slow


def test_the_whole_page_fits_with_every_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept tokens are random, which nothing compresses, and images as detailed as photographs."""
    monkeypatch.setattr(views.Pictures, "square", bigpage.Photographs().square)
    cells = list(bigpage.cells(tmp_path / "answers"))
    assert len(cells) == 2 * 8 * (20 * 5 + 1)
    said: list[str] = []
    page = report.fitting(cells, tmp_path, 100, say=said.append)
    assert page.n_bytes <= report.MAX_BYTES == 25_000_000
    assert page.n_samples == 2 * 8 * 100
    assert page.n_cells == len(cells)
    assert not any("samples per task" in line for line in said), "no sample is left out"
