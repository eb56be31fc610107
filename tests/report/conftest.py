"""Fixtures of the tests that open the report's page in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from factories import analysis, gauntlet
from report_browser import Browser, opened

from harness.report import page as report


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with opened() as browser:
        yield browser


@pytest.fixture(scope="session")
def big(tmp_path_factory) -> Path:
    """5 methods x 4 budgets x 4 tasks x 100 samples beside the unpruned model."""
    root = gauntlet(tmp_path_factory.mktemp("big"))
    analysis(root)
    report.write(root, say=lambda _: None)
    return root


@pytest.fixture
def page(chromium, big) -> Iterator[Browser]:
    """The big report, freshly opened in light mode; whatever a test did, the console must have stayed silent."""
    chromium.scheme("light")
    chromium.own_size()
    chromium.open(big / "report" / "index.html")
    yield chromium
    assert chromium.errors() == []
