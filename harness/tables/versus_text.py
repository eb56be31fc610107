"""A comparison of sides as a frame, as text for the terminal, and its flipped answers as rows."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

from harness.core.costs import with_tower
from harness.core.shown import printable
from harness.tables.compare import ABOVE, AVERAGE, BELOW, SAME, TOO_FEW, Comparison
from harness.tables.sections import NAN, baseline, mean, percent_of_flops
from harness.tables.sides import Side
from harness.tables.terminal import WIDTH, laid_out
from harness.tables.text import DASH, decimal, significant
from harness.tables.versus import FlippedAnswer, OnTask, Versus

AVERAGE_SHOWN = "Avg %"
NEAR = 0.01
"""Two costs that differ by less than this share are equal."""
LONGEST = 40
"""Characters of a side's name in a table."""
LONGEST_TASK = 16
"""Characters of a task's name in a table."""
COSTS = {
    "kept": lambda side, s: s.costs.get("kept", NAN),
    "mean_visual": lambda side, s: s.costs.get("mean_visual", NAN),
    "prefill_dense_gflops": lambda side, s: s.costs.get("prefill_dense_flops", NAN) / 1e9,
    "pct_of_unpruned_flops": lambda side, s: percent_of_flops(s, baseline(s, side.folder.known)),
    "tower_and_prefill_gflops": lambda side, s: with_tower(s.costs) / 1e9,
}
"""Of a cell of a side: means over its questions, named as in leaderboard.csv."""


def costs(side: Side, tasks: Iterable[str]) -> dict[str, float]:
    """The costs of a side over seeds, then over these tasks; NaN where a cell lacks one."""

    def cost(of: Any) -> float:
        return mean([mean([of(side, sealed) for sealed in side.cells[task]]) for task in tasks])

    tasks = list(tasks)
    return {name: cost(of) for name, of in COSTS.items()}


def frame(found: Iterable[Versus]) -> pd.DataFrame:
    """One row per pair of sides and task, and one for their average: `a` and `b` are the sides, `difference` is a less
    b."""
    records = []
    for v in found:
        for task in [*(on.task for on in v.tasks), *([AVERAGE] if AVERAGE in v.comparisons else [])]:
            on = next((on for on in v.tasks if on.task == task), None)
            tasks = [task] if on else [one.task for one in v.tasks]
            records.append(_record(v, task, on) | _costs_of(v, tasks))
    whole = dict.fromkeys(("n", "images", "n_a", "n_b"), "Int64")
    return pd.DataFrame(records).astype(whole)


def _record(v: Versus, task: str, on: OnTask | None) -> dict[str, Any]:
    c = v.comparisons.get(task)
    return {
        "a": v.one.label,
        "b": v.other.label,
        "task": task,
        "metric": on.metric if on else "pct_of_unpruned",
        "n": on.common if on else c and c.n,
        "images": on.images if on else c and c.images,
        "n_a": on.n[0] if on else None,
        "n_b": on.n[1] if on else None,
        "score_a": (on.points if on else v.percents)[0],
        "score_b": (on.points if on else v.percents)[1],
        "difference": c.difference if c else NAN,
        "low": c.low if c else NAN,
        "high": c.high if c else NAN,
        "better": c.better if c else NAN,
        "worse": c.worse if c else NAN,
        "p": c.p if c else NAN,
        "p_holm": c.p_holm if c else NAN,
        "verdict": c.verdict if c else f"no test: {on.untested if on else ''}",
    }


def _costs_of(v: Versus, tasks: Sequence[str]) -> dict[str, float]:
    mine, theirs = costs(v.one, tasks), costs(v.other, tasks)
    return {f"{name}_{end}": values[name] for name in COSTS for end, values in (("a", mine), ("b", theirs))}


def flips_frame(found: Iterable[Versus]) -> pd.DataFrame:
    """One row per flipped answer."""
    head = ["a", "b", "task", "key", "image", "question", "target"]
    head += ["answer_a", "answer_b", "score_a", "score_b", "better"]
    rows = [
        [v.one.label, v.other.label, *flip[:5], *flip.answers, *flip.scores, "a" if flip.first else "b"]
        for v in found
        for flip in v.flips
    ]
    return pd.DataFrame(rows, columns=head)


# ------------------------------------------------------------------------------------------------------- the terminal


def text(found: Sequence[Versus], most: int) -> str:
    """All of a comparison for the terminal; `most` flipped answers of each direction are shown of a pair."""
    sides = list({id(side): side for v in found for side in (v.one, v.other)}.values())
    letters = {id(side): _letter(i) for i, side in enumerate(sides)}
    tasks = {id(side): [on.task for v in found if side in (v.one, v.other) for on in v.tasks] for side in sides}
    own = [costs(side, dict.fromkeys(tasks[id(side)])) for side in sides]
    parts = [_places(sides, letters), _sides(sides, letters, own)]
    parts += ["\n".join(dict.fromkeys(textwrap.fill(_equal(v, letters), WIDTH) for v in found))]
    parts += [_comparisons(found, letters)]
    notes = dict.fromkeys(f"note    {_named(note, v, letters)}" for v in found for note in v.notes)
    parts += ["\n".join(notes)] if notes else []
    parts += [_flips(v, letters, most) for v in found]
    return "\n\n".join(part for part in parts if part)


def _places(sides: Sequence[Side], letters: dict[int, str]) -> str:
    """Where the sides stand: model, dtype, device, questions and folder; once where they are the same."""
    said = {id(side): printable(f"{', '.join(side.section.short)} in {side.folder.root}") for side in sides}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return "\n".join(f"{letters[id(side)]}  {said[id(side)]}" for side in sides)


def _letter(i: int) -> str:
    """A, B, ... Z, A1, B1, ..."""
    return chr(ord("A") + i % 26) + (str(i // 26) if i >= 26 else "")


def _named(note: str, v: Versus, letters: dict[int, str]) -> str:
    """A note about two of several sides says which."""
    return note if len(letters) == 2 else f"{letters[id(v.one)]}, {letters[id(v.other)]}: {note}"


def _short(value: str, longest: int = LONGEST) -> str:
    shown = printable(" ".join(value.split()))
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def _sides(sides: Sequence[Side], letters: dict[int, str], own: Sequence[dict[str, float]]) -> str:
    head = ["", "side", "kept\ntokens", "mean visual\ntokens/layer", "prefill\nGFLOPs", "% of unpruned\nprefill FLOPs"]
    head += ["tower + prefill\nGFLOPs", "seeds"]
    shown = (decimal, decimal, significant, decimal, significant)
    rows = [
        [
            letters[id(side)],
            _short(side.label),
            *(f(v) for f, v in zip(shown, c.values(), strict=True)),
            side.line.seeds,
        ]
        for side, c in zip(sides, own, strict=True)
    ]
    table = laid_out(head, rows, left=2)
    long = [f"{letters[id(s)]}  {printable(s.label)}" for s in sides if len(printable(s.label)) > LONGEST]
    return "\n".join([table, *long])


def _equal(v: Versus, letters: dict[int, str]) -> str:
    """Whether two sides have equal tokens and equal FLOPs, in a sentence."""
    tasks = [on.task for on in v.tasks]
    mine, theirs = costs(v.one, tasks), costs(v.other, tasks)
    a, b = letters[id(v.one)], letters[id(v.other)]
    tokens = _close(mine["kept"], theirs["kept"])
    flops = _close(mine["prefill_dense_gflops"], theirs["prefill_dense_gflops"])
    if tokens is None or flops is None:
        return f"{a} and {b}: whether tokens and FLOPs are equal is not known, for a cell lacks a cost."
    kept = f"{a} keeps {decimal(mine['kept'])} tokens, {b} {decimal(theirs['kept'])}"
    spent = _times(a, b, mine["prefill_dense_gflops"], theirs["prefill_dense_gflops"])
    if tokens and flops:
        return f"{a} and {b}: equal tokens and equal prefill FLOPs, within {NEAR:.0%}."
    if tokens:
        return f"Equal tokens, unequal FLOPs: {a} and {b} both keep {decimal(mine['kept'])} tokens, and {spent}."
    if flops:
        return f"Equal FLOPs, unequal tokens: the prefills of {a} and {b} cost the same, and {kept}."
    return f"Neither tokens nor FLOPs are equal: {kept}; {spent}."


def _times(a: str, b: str, mine: float, theirs: float) -> str:
    more, less, ratio = (a, b, mine / theirs) if mine >= theirs else (b, a, theirs / mine)
    return f"the prefill of {more} costs {ratio:.2f} times that of {less}"


def _close(mine: float, theirs: float) -> bool | None:
    """None where one is not known."""
    if math.isnan(mine) or math.isnan(theirs):
        return None
    return abs(mine - theirs) <= NEAR * max(mine, theirs)


def _comparisons(found: Sequence[Versus], letters: dict[int, str]) -> str:
    """The table of all tasks. Where it has more than `WIDTH` columns, intervals stand below differences, and long names
    of tasks are cut."""
    for between, longest in ((" ", LONGEST_TASK), ("\n", LONGEST_TASK), ("\n", 10), ("\n", 6)):
        table = _table(found, letters, between, longest)
        if max(map(len, table.splitlines())) <= WIDTH:
            break
    return table


def _table(found: Sequence[Versus], letters: dict[int, str], between: str, longest: int) -> str:
    head = ["task", "questions\n(images)", "first", "second", "difference\n[95 % interval]"]
    head += ["better\nfirst : second", "p", "p\n(Holm)", "verdict"]
    rows = []
    for v in found:
        one = letters[id(v.one)]
        pair = f"{one} : {letters[id(v.other)]}"
        for on in v.tasks:
            rows.append([pair, _short(on.task, longest), *_row(on, v.comparisons.get(on.task), one, between)])
        if AVERAGE in v.comparisons:
            c = v.comparisons[AVERAGE]
            points = [decimal(percent) for percent in v.percents]
            rows.append([pair, AVERAGE_SHOWN, f"{c.n:,} ({c.images:,})", *points, *_tested(c, one, between)])
    if len(found) == 1:  # its two sides are the first and the second
        (one, other), rows = (letters[id(side)] for side in (found[0].one, found[0].other)), [row[1:] for row in rows]
        head = [name.replace("first", one).replace("second", other) for name in head]
        return laid_out(head, rows, left=1)
    return laid_out(["pair", *(name.replace("first : second", "1st : 2nd") for name in head)], rows, left=2)


def _row(on: OnTask, c: Comparison | None, one: str, between: str) -> list[str]:
    unit = 100.0 if on.maximum == 1 else 1.0
    points = [decimal(unit * point) for point in on.points]
    sizes = f"{on.common:,} ({f'{on.images:,}' if on.images else DASH})"
    return [sizes, *points, *(_tested(c, one, between) if c else [*[DASH] * 4, "no test"])]


def _tested(c: Comparison, one: str, between: str) -> list[str]:
    spread = "" if math.isnan(c.low) else f"{between}[{c.low:+.1f}, {c.high:+.1f}]"
    counts = [DASH if math.isnan(n) else f"{n:.0f}" if n == round(n) else f"{n:.1f}" for n in (c.better, c.worse)]
    better = DASH if counts == [DASH] * 2 else " : ".join(counts)
    words = {ABOVE: f"{one} better", BELOW: f"{one} worse", SAME: "not told apart", TOO_FEW: "few images"}
    return [f"{c.difference:+.1f}{spread}", better, _p(c.p), _p(c.p_holm), words.get(c.verdict, c.verdict)]


def _p(value: float) -> str:
    return DASH if math.isnan(value) else "<0.0001" if value < 1e-4 else f"{value:.4f}"


def _flips(v: Versus, letters: dict[int, str], most: int) -> str:
    """How many answers flipped, and the first of each direction."""
    a, b = letters[id(v.one)], letters[id(v.other)]
    ahead = [flip for flip in v.flips if flip.first]
    behind = [flip for flip in v.flips if not flip.first]
    images = len({(flip.task, flip.image) for flip in v.flips})
    seeds = "" if v.one.line.seeds == v.other.line.seeds == "1" else " (first seed of each)"
    head = f"{a} : {b}  {len(v.flips):,} answers flipped, on {images:,} images{seeds}"
    lines = [f"{head}: {a} is better on {len(ahead):,}, {b} on {len(behind):,}"]
    for which, flips in ((a, ahead), (b, behind)):
        lines += [f"  {which} better  {_flip(flip, a, b)}" for flip in flips[:most]]
        lines += [f"  {which} better  {len(flips) - most:,} more"] if len(flips) > most > 0 else []
    return "\n".join(lines)


def _flip(flip: FlippedAnswer, a: str, b: str) -> str:
    answers = "  ".join(f"{name}: {_short(said, 16)}" for name, said in zip((a, b), flip.answers, strict=True))
    rest = f"  expected: {_short(flip.target, 16)}  {answers}"
    room = max(10, WIDTH - len(f"  {a} better  {flip.key}  ") - len(rest))
    return f"{flip.key}  {_short(flip.question, room)}{rest}"
