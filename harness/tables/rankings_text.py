"""A comparison of two models' rankings as text for the terminal, as Markdown, and as frames for CSV."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Sequence

import pandas as pd  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

from harness.core.ranks import STEADY, Swap
from harness.core.shown import in_markdown, printable
from harness.tables.compare import AVERAGE
from harness.tables.in_common import AskedModel
from harness.tables.rankings import ALL, Ranked, Rankings
from harness.tables.terminal import WIDTH, fitted, laid_out
from harness.tables.text import DASH, grid
from harness.tables.versus_text import AVERAGE_SHOWN

MOST = 12
"""Steady opposite pairs that the terminal and the Markdown name at a pair of budgets; the CSV has all."""
STAR, TO = "*", "→"
TAU = (
    "tau is Kendall's tau-b between the two rankings: 1 for the same order, 0 for no agreement, -1 for the opposite."
    " Brackets hold 95 % intervals over images. A model's tau with itself is between two draws of its own images: noise"
    " alone brings tau down to there."
)
PLACES = (
    f"A cell holds a method's rank in the first model {TO} its rank in the second. The percentage says in how many"
    f" draws the rank moves the same way. {STAR}: the move is beyond noise (Holm-corrected p below 0.05)."
)
OPPOSITE = (
    "Two methods are an opposite pair if their order is another one on each model. The pair is steady if both orders"
    f" stay in {100 * STEADY:g} % of the draws or more. {STAR}: beyond noise, corrected over all pairs of methods. A"
    " few pairs are steady by chance."
)


def taus_frame(found: Rankings) -> pd.DataFrame:
    """One row per pair of budgets and task, then the means over pairs; taus in -1..1, shares in percent."""
    records = [
        {
            **_at(found, one),
            "methods": len(one.entries),
            "questions_first": one.questions[0],
            "questions_second": one.questions[1],
            "images_first": one.images[0],
            "images_second": one.images[1],
            "tau": one.agreement.tau,
            "low": one.agreement.low,
            "high": one.agreement.high,
            "itself_first": one.agreement.itself[0],
            "itself_second": one.agreement.itself[1],
            "opposite_pairs": len(one.agreement.swaps),
            "opposite_steady": len(_steady(one)),
            "opposite_beyond_noise": sum(swap.beyond_noise for swap in one.agreement.swaps),
        }
        for one in found.ranked
    ]
    first, second = found.models
    records += [
        {"first": first, "second": second, "budget_first": ALL, "budget_second": ALL, "task": task}
        | dict(zip(("tau", "low", "high"), numbers, strict=True))
        for task, numbers in found.means.items()
    ]
    frame = pd.DataFrame(records)
    counts = ("methods", "questions", "images", "opposite")
    return frame.astype({name: "Int64" for name in frame if str(name).startswith(counts)})


def ranks_frame(found: Rankings) -> pd.DataFrame:
    """One row per pair of budgets, task and method. `change`: places gained from the first model to the second."""
    return pd.DataFrame(
        [
            {
                **_at(found, one),
                "method": name,
                "pct_of_unpruned_first": one.percents[0][i],
                "pct_of_unpruned_second": one.percents[1][i],
                "rank_first": one.agreement.ranks[0][i],
                "rank_second": one.agreement.ranks[1][i],
                "change": one.agreement.changes[i],
                "same_direction": one.agreement.stays[i],
                "p_holm": one.agreement.p_holm[i],
                "beyond_noise": one.agreement.beyond_noise(i),
            }
            for one in found.ranked
            for i, name in enumerate(one.names)
        ]
    )


def swaps_frame(found: Rankings) -> pd.DataFrame:
    """One row per pair of budgets, task and two methods in opposite order: `ahead` is ahead in the first model."""
    head = [*_at(found, found.ranked[0]), "ahead", "behind", "share_of_draws", "p", "p_holm"]
    head += ["steady", "beyond_noise"]
    rows = [
        [
            *_at(found, one).values(),
            one.names[swap.ahead],
            one.names[swap.behind],
            swap.share,
            swap.p,
            swap.p_holm,
            swap.steady,
            swap.beyond_noise,
        ]
        for one in found.ranked
        for swap in one.agreement.swaps
    ]
    return pd.DataFrame(rows, columns=head)


def text(found: Rankings) -> str:
    """All of it for the terminal."""
    models = [printable(f"{which:<7} {side.text}: {', '.join(side.section.short)}") for which, side in _sides(found)]
    parts = ["\n".join(models), textwrap.fill(TAU, WIDTH), _taus(found), textwrap.fill(PLACES, WIDTH), _ranks(found)]
    parts += [textwrap.fill(OPPOSITE, WIDTH), "\n".join(map(printable, _changes(found)))]
    parts += ["\n".join(f"note      {printable(note)}" for note in found.notes)]
    parts += [
        "\n".join(textwrap.fill(f"left out  {one}", WIDTH, subsequent_indent=" " * 10) for one in left_out(found))
    ]
    return "\n\n".join(part for part in parts if part)


def markdown(found: Rankings, figures: Sequence[tuple[str, str]] = ()) -> str:
    """The same as a part of a page, without a heading; `figures` are (alternative text, address)."""
    first, second = map(in_markdown, found.models)
    lines = [
        [
            f"{in_markdown(one.pair.label)} ({in_markdown(_share(one))})",
            _task(one.task),
            str(len(one.entries)),
            _interval(one.agreement.tau, one.agreement.low, one.agreement.high),
            *map(_number, one.agreement.itself),
            _opposite(one),
        ]
        for one in found.ranked
    ]
    lines += [["all", _task(task), "", _interval(*numbers), "", "", ""] for task, numbers in found.means.items()]
    head = [
        f"budgets of {first} and {second} (kept)",
        "task",
        "methods",
        "tau [95 % interval]",
        f"{first} with itself",
        f"{second} with itself",
        "opposite pairs (steady)",
    ]
    parts = [grid(head, list(zip(*lines, strict=True)), left=2)]
    parts += [f"![{alternative}]({address})" for alternative, address in figures]
    rows = _places(found)
    parts += [
        grid(
            ["method", *(in_markdown(pair.label) for pair in found.pairs)],
            list(zip(*([in_markdown(name), *map(in_markdown, values)] for name, values in rows.items()), strict=True)),
        ),
        in_markdown(PLACES),
        in_markdown(OPPOSITE),
    ]
    parts += ["\n".join(f"* {in_markdown(line)}" for line in _changes(found))]
    parts += ["\n".join(f"* {in_markdown(line)}" for line in [*found.notes, *left_out(found)])]
    return "\n\n".join(part for part in parts if part)


def left_out(found: Rankings) -> list[str]:
    """What did not enter and why; what holds at several pairs of budgets once."""
    places: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for one in found.left:
        places[one.what, one.why].append(one.where)
    return [
        f"{what}: {why}" + (f" (at {', '.join(where)})" if any(where) else "") for (what, why), where in places.items()
    ]


def _at(found: Rankings, one: Ranked) -> dict[str, object]:
    return {
        "first": found.models[0],
        "second": found.models[1],
        "budget_first": one.pair.budgets[0],
        "budget_second": one.pair.budgets[1],
        "kept_pct_first": 100 * one.pair.shares[0],
        "kept_pct_second": 100 * one.pair.shares[1],
        "task": one.task,
    }


def _sides(found: Rankings) -> list[tuple[str, AskedModel]]:
    return list(zip(("first", "second"), found.sides, strict=True))


def _taus(found: Rankings) -> str:
    head = ["budgets", "task", "kept tokens\n(%)", "questions\n(images)", "methods", "tau\n[95 % interval]"]
    head += ["tau with itself\nfirst | second", "opposite\npairs\n(steady)"]
    rows = [
        [
            one.pair.label,
            _task(one.task),
            _share(one).replace(" %", ""),
            " | ".join(f"{n:,} ({images:,})" for n, images in zip(one.questions, one.images, strict=True)),
            str(len(one.entries)),
            _interval(one.agreement.tau, one.agreement.low, one.agreement.high),
            " | ".join(map(_number, one.agreement.itself)),
            _opposite(one),
        ]
        for one in found.ranked
    ]
    rows += [["all", _task(task), "", "", "", _interval(*numbers), "", ""] for task, numbers in found.means.items()]
    table = laid_out(head, rows, left=2)
    if max(map(len, table.splitlines())) <= WIDTH:
        return table
    return laid_out(head, [[cell.replace(" | ", " |\n") for cell in row] for row in rows], left=2)


def _places(found: Rankings) -> dict[str, list[str]]:
    """name -> per pair of budgets the ranks at the average; best mean rank in the first model first."""
    wholes = [found.whole(pair) for pair in found.pairs]
    cells: defaultdict[str, list[str]] = defaultdict(lambda: [DASH] * len(wholes))
    order: defaultdict[str, list[float]] = defaultdict(list)
    for column, one in enumerate(wholes):
        first, second = one.agreement.ranks
        for i, name in enumerate(one.names):
            stays = one.agreement.stays[i]
            share = "" if math.isnan(stays) else f" {100 * stays:.0f}%"
            star = STAR if one.agreement.beyond_noise(i) else ""
            cells[name][column] = f"{first[i]:g} {TO} {second[i]:g}{share}{star}"
            order[name].append(first[i])
    return {name: cells[name] for name in sorted(cells, key=lambda n: (sum(order[n]) / len(order[n]), n))}


def _ranks(found: Rankings) -> str:
    rows = _places(found)
    head = ["method", *(pair.label.replace(" | ", " |\n") for pair in found.pairs)]
    return fitted(head, [[printable(name)] for name in rows], list(rows.values()))


def _changes(found: Rankings) -> list[str]:
    """The steady opposite pairs at the average of each pair of budgets."""
    first, second = found.models
    lines = []
    for pair in found.pairs:
        one = found.whole(pair)
        steady, count = _steady(one), len(one.entries) * (len(one.entries) - 1) // 2
        lines.append(
            f"{pair.label}: {len(one.agreement.swaps)} of {count} pairs of methods are opposite at {_task(one.task)},"
            f" {len(steady)} of them steady"
        )
        lines += [
            f"{pair.label}: {one.names[swap.ahead]} is above {one.names[swap.behind]} on {first} and below on {second}"
            f" (in {100 * swap.share:.1f} % of the draws){STAR if swap.beyond_noise else ''}"
            for swap in steady[:MOST]
        ]
        lines += [f"{pair.label}: {len(steady) - MOST} more"] if len(steady) > MOST else []
    return lines


def _steady(one: Ranked) -> list[Swap]:
    return [swap for swap in one.agreement.swaps if swap.steady]


def _opposite(one: Ranked) -> str:
    return f"{len(one.agreement.swaps)} ({len(_steady(one))})"


def _task(task: str) -> str:
    return {AVERAGE: AVERAGE_SHOWN, ALL: "mean over tasks"}.get(task, task)


def _share(one: Ranked) -> str:
    return " | ".join(f"{100 * share:.1f} %" for share in one.pair.shares)


def _interval(tau: float, low: float, high: float) -> str:
    return _number(tau) + ("" if math.isnan(low) else f" [{_number(low)}, {_number(high)}]")


def _number(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")
