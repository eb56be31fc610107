"""What the trained mini Qwen was built to reach, from the committed cells of results/reference."""

from __future__ import annotations

import pytest

from harness.core.paths import TOP
from harness.store.sealed import SealedCell
from harness.store.store import Store

FLOORS = {"pope": 0.90, "gqa": 0.75, "mme": 0.75, "textvqa": 0.50}


def cells(method: str, budget: str, limit: str | None = None) -> dict[str, SealedCell]:
    """The cells of a method by task: of all questions where `limit` is "all", else of the sweep's."""
    found = {
        sealed.cell.task: sealed
        for sealed in Store(TOP / "results" / "reference").cells()
        if (sealed.cell.model, sealed.cell.method, sealed.cell.budget, sealed.cell.seed)
        == ("mini-qwen", method, budget, 0)
        and sealed.asked.limit == limit
        and sealed.cell.knobs.get("boundary", 0) == 0
    }
    assert set(found) == set(FLOORS), "run `make sweep CONFIG=configs/mini-qwen.yaml RESULTS=results/reference`"
    return found


def share(sealed: SealedCell) -> float:
    """The score as a share of its maximum."""
    score = sealed.metrics[sealed.headline]
    assert score is not None
    return float(score) / sealed.maximum


@pytest.mark.parametrize("task", FLOORS)
def test_the_unpruned_model_reaches_its_floor(task: str) -> None:
    assert share(cells("none", "none", "all")[task]) >= FLOORS[task]


def test_a_random_draw_of_12_percent_loses_15_points_somewhere() -> None:
    whole, drawn = cells("none", "none"), cells("random", "0.12kept")
    assert max(share(whole[task]) - share(drawn[task]) for task in FLOORS) >= 0.15
