"""Several models side by side, for the page: scores of the methods on both of two models, and whether their rankings
agree.

The numbers are those of `prunebench compare-models` (harness/tables/rankings.py). Models are compared in pairs, each
asked in one way, with its section of most questions.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from harness.core.errors import PrunebenchError
from harness.report import views
from harness.report.embedded import finite
from harness.tables.compare import AVERAGE
from harness.tables.in_common import AskedModel, read_side
from harness.tables.kept import Kept
from harness.tables.rankings import ALL, Ranked, Rankings, rankings
from harness.tables.rankings_text import OPPOSITE, PLACES, TAU, left_out
from harness.tables.sections import FOLLOW_UP, Section


class Agreements(NamedTuple):
    """The pairs of models as the page holds them, and why others are none."""

    pairs: Sequence[Mapping[str, Any]]
    notes: Sequence[str]


def of_models(protocols: Sequence[views.Protocol], arranged: Sequence[Section], kept: Kept) -> Agreements:
    """Every two protocols of other models or weights whose lines can be compared."""
    sides: list[AskedModel] = []
    pairs: list[dict[str, Any]] = []
    notes: list[str] = []
    for protocol in protocols:
        try:
            sides += _side(protocol, arranged)
        except PrunebenchError as error:
            notes.append(f"{protocol.label} is in no comparison of models: {error}")
    for one, other in itertools.combinations(sides, 2):
        if (one.section.model, one.section.weights) == (other.section.model, other.section.weights):
            continue
        try:
            pairs.append(_packed(rankings((one, other), kept=kept)))
        except PrunebenchError as error:
            notes.append(f"rankings: {error}")
    return Agreements(pairs, notes)


def _side(protocol: views.Protocol, arranged: Sequence[Section]) -> list[AskedModel]:
    """A protocol's section of most questions; none where nothing is pruned, and for follow-up questions."""
    mine = {sealed.identity for sealed in protocol.cells}
    here = [s for s in arranged if FOLLOW_UP not in s.facts and any(c.identity in mine for c in s.cells)]
    here = [s for s in here if any(c.cell.method != "none" for c in s.cells)]
    return [read_side(protocol.model, here)._replace(text=protocol.label)] if here else []


def _packed(found: Rankings) -> dict[str, Any]:
    return {
        "models": found.models,
        "budgets": [
            {"label": pair.label, "shares": [finite(100 * share) for share in pair.shares]} for pair in found.pairs
        ],
        "ranked": [_ranked(found, one) for one in found.ranked],
        "means": [[task, *map(finite, numbers)] for task, numbers in found.means.items()],
        "left": [f"left out: {one}" for one in left_out(found)],
        "notes": list(found.notes),
        "average": AVERAGE,
        "all": ALL,
        "rules": {"tau": TAU, "places": PLACES, "opposite": OPPOSITE},
    }


def _ranked(found: Rankings, one: Ranked) -> dict[str, Any]:
    agreement = one.agreement
    return {
        "budget": found.pairs.index(one.pair),
        "task": one.task,
        "tau": [finite(agreement.tau), finite(agreement.low), finite(agreement.high)],
        "itself": [finite(tau) for tau in agreement.itself],
        "opposite": [
            len(agreement.swaps),
            sum(swap.steady for swap in agreement.swaps),
            sum(swap.beyond_noise for swap in agreement.swaps),
        ],
        "methods": [
            {
                "name": entry.name,
                "percents": [finite(side[i]) for side in one.percents],
                "ranks": [finite(side[i]) for side in agreement.ranks],
                "stays": finite(agreement.stays[i]),
                "beyond": bool(agreement.beyond_noise(i)),
            }
            for i, entry in enumerate(one.entries)
        ],
    }
