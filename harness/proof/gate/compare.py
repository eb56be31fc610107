"""Two snapshots compared sample by sample, with the flips that chance allows."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.core import stats
from harness.core.cell import canonical_json
from harness.proof.gate.snapshot import COUNTS, FLOPS, MODEL, Snapshot, SnapshotCell

LEVEL = 0.05
TIES, FLIPS = 0.02, 0.05
TIES_IN_ALL, FLIPS_IN_ALL = 0.002, 0.002


# ------------------------------------------------------------------------------------------------------------ comparing


@dataclass(frozen=True)
class Flip:
    """A sample whose answer is another one."""

    label: str
    key: str
    old: str
    new: str
    target: str
    image: str
    change: float
    """New score less old, in [-1, 1]."""


@dataclass(frozen=True)
class CellDiff:
    """What differs in one cell, by number of samples. `flops`: the mean dense prefill's change in percent; `reasons`:
    why it fails."""

    label: str
    n: int
    flips: Sequence[Flip]
    wins: int
    losses: int
    p: float
    keeps: Sequence[str]
    counts: Sequence[str]
    costs: Sequence[str]
    flops: float
    seconds: float | None
    reasons: Sequence[str]

    @property
    def changed(self) -> bool:
        return bool(self.flips or self.keeps or self.counts or self.costs or self.wins or self.losses)


@dataclass(frozen=True)
class GateResult:
    """`first`: what makes all the rest suspect (other weights, other data); `notes` fail nothing; `failures` are all
    reasons, cells' included."""

    first: Sequence[str]
    notes: Sequence[str]
    failures: Sequence[str]
    cells: Sequence[CellDiff]

    @property
    def passed(self) -> bool:
        return not self.first and not self.failures

    @property
    def flips(self) -> list[Flip]:
        return [flip for cell in self.cells for flip in cell.flips]


def allowed(share: float, n: int) -> int:
    """How many of `n` may differ: the share of them, one at least."""
    return max(1, math.floor(share * n))


def compare(old: Snapshot, new: Snapshot) -> GateResult:
    """The new run beside the baseline."""
    first: list[str] = []
    for name in sorted(set(old.models) & set(new.models)):
        was, now = old.models[name], new.models[name]
        for field in MODEL:
            if was.get(field) != now[field]:
                what = "weights" if field == "model_fingerprint" else field
                first.append(
                    f"{name}: {what} {was.get(field)} in the baseline, {now[field]} now: what differs below may come"
                    " from that"
                )
    for name in sorted(set(old.tasks) & set(new.tasks)):
        if old.tasks[name] != new.tasks[name]:
            first.append(
                f"{name}: other data or prompts than the baseline's ({old.tasks[name][:12]} in the baseline,"
                f" {new.tasks[name][:12]} now)"
            )
    notes = [
        f"{name}: {old.made_with.get(name)} made the baseline, {value} this run"
        for name, value in new.made_with.items()
        if name != "commit" and old.made_with.get(name) != value
    ]

    pairs, gone, added = _paired(old.cells, new.cells)
    labels = _labels([*(b for _, b in pairs), *gone, *added])
    failures = [f"cell of the baseline that was not run: {labels[id(cell)]}" for cell in gone]
    failures += [f"cell that the baseline lacks: {labels[id(cell)]}" for cell in added]
    seconds = {(b.named[0], b.task): b.seconds for _, b in pairs if b.method == "none"}
    cells = [_diff(a, b, labels[id(b)], new, seconds.get((b.named[0], b.task))) for a, b in pairs]
    corrected = stats.holm([cell.p for cell in cells])
    cells = [_judged(cell, p) for cell, p in zip(cells, corrected, strict=True)]
    failures += [f"{cell.label}: {reason}" for cell in cells for reason in cell.reasons]
    total = sum(cell.n for cell in cells)
    for what, share, n in (
        ("other answers", FLIPS_IN_ALL, sum(len(cell.flips) for cell in cells)),
        ("other kept tokens", TIES_IN_ALL, sum(len(cell.keeps) for cell in cells)),
        ("other costs", TIES_IN_ALL, sum(len({*cell.counts, *cell.costs}) for cell in cells)),
    ):
        if n > allowed(share, total):
            failures.append(
                f"all cells together: {n} of {total} samples have {what}, at most {allowed(share, total)} may"
            )
    return GateResult(first, notes, failures, cells)


def _paired(
    old: Sequence[SnapshotCell], new: Sequence[SnapshotCell]
) -> tuple[list[tuple[SnapshotCell, SnapshotCell]], list[SnapshotCell], list[SnapshotCell]]:
    """Cells of the same name, by equal knobs first; where one is left on either side, its knobs are what changed."""
    pairs: list[tuple[SnapshotCell, SnapshotCell]] = []
    gone: list[SnapshotCell] = []
    added: list[SnapshotCell] = []
    for named in dict.fromkeys(cell.named for cell in [*new, *old]):
        mine = {canonical_json(c.knobs): c for c in new if c.named == named}
        theirs = {canonical_json(c.knobs): c for c in old if c.named == named}
        same = [knobs for knobs in mine if knobs in theirs]
        pairs += [(theirs.pop(knobs), mine.pop(knobs)) for knobs in same]
        if len(mine) == len(theirs) == 1:
            pairs.append((theirs.popitem()[1], mine.popitem()[1]))
        else:
            gone += theirs.values()
            added += mine.values()
    return pairs, gone, added


def _labels(cells: Sequence[SnapshotCell]) -> dict[int, str]:
    """ "pope fastv@64", with the knobs in which cells of that name differ from each other."""
    groups: dict[tuple[Any, ...], list[SnapshotCell]] = {}
    for cell in cells:
        groups.setdefault(cell.named[:4], []).append(cell)
    models = {cell.named[0] for cell in cells}
    labels = {}
    for (model, task, method, budget), group in groups.items():
        telling = _telling([cell.knobs for cell in group])
        for cell in group:
            positions, seed = cell.named[4:]
            text = f"{task} {method}" + ("" if budget == "none" else f"@{budget}")
            text += "".join(f" {name}={json.dumps(cell.knobs.get(name))}".replace('"', "") for name in telling)
            text += "" if positions == "method" else f" positions={positions}"
            text += (f" seed {seed}" if seed else "") + (f" on {model}" if len(models) > 1 else "")
            labels[id(cell)] = text
    return labels


def _telling(knobs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The smallest set of knobs that distinguishes the settings; ties go to the knobs declared first."""
    names = [
        n
        for n in dict.fromkeys(n for one in knobs for n in one)
        if len({canonical_json(one.get(n)) for one in knobs}) > 1
    ]
    wanted = len({canonical_json(one) for one in knobs})
    for size in range(len(names)):
        for some in itertools.combinations(names, size):
            if len({canonical_json([one.get(n) for n in some]) for one in knobs}) == wanted:
                return some
    return tuple(names)


def _diff(old: SnapshotCell, new: SnapshotCell, label: str, run: Snapshot, unpruned: float | None) -> CellDiff:
    """One pair of cells; `p` is not yet corrected for their number."""
    reasons: list[str] = []
    if canonical_json(old.knobs) != canonical_json(new.knobs):
        changed = [n for n in sorted({*old.knobs, *new.knobs}) if old.knobs.get(n) != new.knobs.get(n)]
        reasons.append("other knobs: " + ", ".join(f"{n} {old.knobs.get(n)} -> {new.knobs.get(n)}" for n in changed))
    if old.rows.keys() != new.rows.keys():
        lost, extra = sorted(old.rows.keys() - new.rows.keys()), sorted(new.rows.keys() - old.rows.keys())
        reasons.append(
            f"other samples: {len(lost)} of the baseline's are missing {lost[:3]}, {len(extra)} are new {extra[:3]}"
        )
    keys = [key for key in new.rows if key in old.rows]
    pairs = {key: (old.rows[key], new.rows[key]) for key in keys}
    n = len(keys)
    flips = [
        Flip(label, key, a.answer, b.answer, run.targets.get(key, ""), run.images.get(key, ""), b.score - a.score)
        for key, (a, b) in pairs.items()
        if a.answer != b.answer
    ]
    wins, losses = sum(b.score > a.score for a, b in pairs.values()), sum(b.score < a.score for a, b in pairs.values())
    n_counts = len(COUNTS)
    keeps = [key for key, (a, b) in pairs.items() if a.keeps != b.keeps]
    counts = [key for key, (a, b) in pairs.items() if a.costs[:n_counts] != b.costs[:n_counts]]
    costs = [key for key, (a, b) in pairs.items() if a.costs[n_counts:] != b.costs[n_counts:]]
    ties = allowed(TIES, n)
    judged: Sequence[tuple[str, list[str], bool, tuple[str, ...], int]] = (
        ("tokens in the layers", counts, old.counts_fixed and new.counts_fixed, COUNTS, 0),
        ("FLOPs", costs, old.flops_fixed and new.flops_fixed, FLOPS, n_counts),
    )
    for what, found, fixed, names, start in judged:
        if len(found) > (0 if fixed else ties):
            a, b = pairs[found[0]]
            i = next(i for i in range(len(names)) if a.costs[start + i] != b.costs[start + i])
            values = f"{names[i]} {a.costs[start + i]:,.10g} -> {b.costs[start + i]:,.10g}"
            limit = "none may, for its schedule is stated" if fixed else f"at most {ties} may"
            reasons.append(f"{len(found)} of {n} samples have other {what} ({limit}), as {found[0]}: {values}")
    if len(keeps) > ties:
        reasons.append(f"{len(keeps)} of {n} samples keep other tokens (at most {ties} may), as {keeps[0]}")
    if len(flips) > allowed(FLIPS, n):
        reasons.append(f"{len(flips)} of {n} answers are others (at most {allowed(FLIPS, n)} may)")
    was, now = (sum(pair[i].costs[n_counts] for pair in pairs.values()) for i in (0, 1))
    change = 100 * (now / was - 1) if was else math.nan
    seconds = new.seconds / unpruned if new.seconds is not None and unpruned else None
    return CellDiff(
        label, n, flips, wins, losses, stats.mcnemar(wins, losses), keeps, counts, costs, change, seconds, reasons
    )


def _judged(cell: CellDiff, p: float) -> CellDiff:
    reasons = list(cell.reasons)
    if p < LEVEL:
        reasons.append(
            f"{cell.wins} samples score higher and {cell.losses} lower: exact McNemar p = {p:.2g} after Holm"
        )
    return replace(cell, p=p, reasons=reasons)
