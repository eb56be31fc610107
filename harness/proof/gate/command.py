"""The regression gate: run configs/regress.yaml afresh and compare every sample with the committed baseline (`make regress`).

Nothing is taken from sealed cells: a stale one would hide a regression. What must be equal, and how far it may be off because another
processor or another build of torch may round otherwise:

* visual tokens kept per layer, as numbers, and bytes of cache: exactly, where the method states its schedule (`Method.plan`).
* prefill FLOPs: exactly, where it also states its scoring (`Method.plan_scoring`).
* which tokens were kept, and the two above where the prompt decides: in all but `TIES` of a cell's samples (one at least), and all but
  `TIES_IN_ALL` of all samples: scores that are equal up to rounding may be ranked otherwise.
* answers: in all but `FLIPS` of a cell's samples (one at least), and in all but `FLIPS_IN_ALL` of all.
* right or wrong: exact McNemar test per cell (stats.mcnemar), Holm over cells, in either direction.

The allowance is for real ties, and small: torch held to AVX2 kernels, MKL to its compatible ones and prompts in batches of 5, not 16, changed
no answer, no kept token and no cost of 1,800 samples against the AVX-512 run. The caps stand beside the test because a test of a few
samples is weak: of 24, twelve must turn the same way before it says anything among 88 cells. Times are shown beside the unpruned model's of
the same run and never fail: cells share prefixes, so they are no measurement.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from harness.core import stats
from harness.core.cell import Cell, canonical_json
from harness.core.command import rendered
from harness.core.errors import PrunebenchError
from harness.store.store import SealedCell, write_atomic

FORMAT = 1
CONFIG = Path("configs/regress.yaml")
BASELINE = Path("results/reference/regress/baseline.json")
OUT = Path("results/local/regress")
LEVEL = 0.05
TIES, FLIPS = 0.02, 0.05
TIES_IN_ALL, FLIPS_IN_ALL = 0.002, 0.002
#: costs that follow from how many tokens are where, and those that hold scoring too
COUNTS = ("kept", "mean_visual", "kv_bytes")
FLOPS = ("prefill_dense_flops", "prefill_ideal_flops")
SHOWN = 60
_NAMED = ("model", "task", "method", "budget", "positions", "seed")
_MODEL = ("model_fingerprint", "prompt_template", "dtype", "image_backend", "kernel", "device_type")


class Row(NamedTuple):
    """One sample of a cell. `keeps`: 8 hex digits of the SHA-256 of the text of kept tokens; `costs` in the order of COUNTS + FLOPS."""

    answer: str
    score: float
    keeps: str
    costs: tuple[float, ...]


@dataclass(frozen=True)
class Measured:
    """A cell without what only a machine is: `named` says which (the fields of `_NAMED`), rows are by sample key.

    `counts_fixed`, `flops_fixed`: does the schedule follow from knobs and text length? `seconds` is None in a baseline.
    """

    named: tuple[Any, ...]
    knobs: Mapping[str, Any]
    counts_fixed: bool
    flops_fixed: bool
    rows: Mapping[str, Row]
    seconds: float | None = None

    @property
    def task(self) -> str:
        return str(self.named[1])

    @property
    def method(self) -> str:
        return str(self.named[2])


@dataclass(frozen=True)
class Snapshot:
    """All cells of one run, or a baseline. `models`: by name what else decides answers; `tasks`: by name the data's fingerprint.

    `images` and `targets` are by sample key; targets are not in a baseline.
    """

    made_with: Mapping[str, Any]
    models: Mapping[str, Mapping[str, str]]
    tasks: Mapping[str, str]
    images: Mapping[str, str]
    cells: Sequence[Measured]
    targets: Mapping[str, str]


# ---------------------------------------------------------------------------------------------------------------- measuring


def snapshot(cells: Iterable[SealedCell]) -> Snapshot:
    """What the gate compares of some sealed cells. Raises PrunebenchError where one lacks its kept tokens."""
    import torch

    from harness.core.provenance import device_name, git_state, versions

    cells = sorted(cells, key=lambda c: _order(c.cell))
    models = {c.cell.model: {name: str(getattr(c.cell, name)) for name in _MODEL} for c in cells}
    images: dict[str, str] = {}
    targets: dict[str, str] = {}
    measured = []
    for sealed in cells:
        frame = sealed.samples()
        if not frame["keeps"].astype(bool).all():
            raise PrunebenchError(f"{sealed.folder}: expected kept tokens with every sample, found none: measure it again")
        images.update(zip(frame["key"], frame["image"], strict=True))
        targets.update(zip(frame["key"], frame["target"].fillna(""), strict=True))
        costs = zip(*(frame[name].tolist() for name in COUNTS + FLOPS), strict=True)
        rows = {
            key: Row(answer, float(score), hashlib.sha256(keeps.encode()).hexdigest()[:8], tuple(float(x) for x in cost))
            for key, answer, score, keeps, cost in zip(frame["key"], frame["answer"], frame["score"], frame["keeps"], costs, strict=True)
        }
        counts_fixed, flops_fixed = _fixed(sealed.cell.model, sealed.asked.method, canonical_json(sealed.cell.knobs))
        named = tuple(getattr(sealed.cell, name) for name in _NAMED)
        measured.append(Measured(named, sealed.cell.knobs, counts_fixed, flops_fixed, rows, float(sealed.provenance["wall_s"])))
    made_with = {
        "commit": git_state()["git"], "device": device_name(torch.device("cpu")), **versions(("torch", "transformers", "lmms-eval", "pillow")),
    }  # fmt: skip
    return Snapshot(made_with, models, {c.cell.task: c.cell.data_fingerprint for c in cells}, images, measured, targets)


def _order(cell: Cell) -> tuple[Any, ...]:
    return (*(getattr(cell, name) for name in _NAMED), canonical_json(cell.knobs))


@lru_cache(maxsize=256)
def _fixed(model: str, method: str, knobs: str) -> tuple[bool, bool]:
    from harness.method import method_class, typed_knobs
    from harness.models.load import locate_model

    cls, prompt = method_class(method), locate_model(model, "cpu").usual.with_text(1)
    built = cls(**dict(typed_knobs(cls, json.loads(knobs)))).for_model(prompt.decoder)
    plan = built.plan(prompt)
    return plan is not None, plan is not None and built.plan_scoring(prompt, plan) is not None


def measure(
    config: Path, folder: Path, overrides: Sequence[str] = (), *, batch: int = 16, workers: int = 1, say: Callable[[str], None] = print
) -> Snapshot:
    """Run a sweep on the CPU into `folder`, which must hold no cells yet."""
    from harness.method import method_class
    from harness.runner import sweep
    from harness.runner.pace import Pace
    from harness.runner.run import Options

    if (folder / "cells").exists():
        raise PrunebenchError(f"expected a results folder without cells for a fresh run, found some in {folder}")
    plan = sweep.load(config, overrides)
    specs: dict[str, str] = {}
    for entry in plan.methods:
        name = method_class(entry.method).name
        if specs.setdefault(name, entry.method) != entry.method:
            raise PrunebenchError(f"{config}: {specs[name]} and {entry.method} are both called {name!r}, and a baseline goes by names: rename one")
    finished = sweep.run(plan, Options(folder, Pace(batch), fresh=True), say, workers=workers, device="cpu")
    finished.check_whole()
    return snapshot(finished.cells.values())


# ----------------------------------------------------------------------------------------------------------------- baseline


def dump(found: Snapshot) -> str:
    """A snapshot as JSON with one line per cell, so that its diff can be read; what repeats is written once."""
    samples = {task: sorted(key for key in found.images if key.split("/")[0] == task) for task in found.tasks}
    head = {
        "format": FORMAT,
        "made_with": dict(found.made_with),
        "models": {name: dict(fields) for name, fields in found.models.items()},
        "tasks": {
            task: {"fingerprint": fingerprint, "keys": samples[task], "images": [found.images[key] for key in samples[task]]}
            for task, fingerprint in found.tasks.items()
        },
        "costs": [*COUNTS, *FLOPS],
    }
    lines = []
    for cell in found.cells:
        rows = [cell.rows[key] for key in samples[cell.task]]
        body = {
            **dict(zip(_NAMED, cell.named, strict=True)), "knobs": dict(cell.knobs), "counts_fixed": cell.counts_fixed,
            "flops_fixed": cell.flops_fixed, "answer": _coded([r.answer for r in rows]), "score": _coded([r.score for r in rows]),
            "keeps": _coded([r.keeps for r in rows]), "cost": _coded([list(map(_plain, r.costs)) for r in rows]),
        }  # fmt: skip
        lines.append(json.dumps(body, separators=(",", ":"), allow_nan=False))
    text = json.dumps(head, separators=(",", ":"), allow_nan=False)
    return text[:-1].replace(',"', ',\n"', 1) + ',\n"cells":[\n' + ",\n".join(lines) + "\n]}\n"


def _plain(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def _coded(values: list[Any]) -> dict[str, Any]:
    """Distinct values and which row has which; no index where all are one, none either where hardly any repeat."""
    distinct: dict[str, Any] = {}
    for value in values:
        distinct.setdefault(json.dumps(value), value)
    if len(distinct) == 1:
        return {"all": values[0]}
    if 2 * len(distinct) > len(values):
        return {"each": values}
    number = {text: i for i, text in enumerate(distinct)}
    return {"values": list(distinct.values()), "index": [number[json.dumps(value)] for value in values]}


def _decoded(coded: Mapping[str, Any], n: int) -> list[Any]:
    if "all" in coded:
        return [coded["all"]] * n
    values = coded["each"] if "each" in coded else [coded["values"][i] for i in coded["index"]]
    if len(values) != n:
        raise ValueError(f"{len(values)} values for {n} samples")
    return list(values)


def load(file: Path) -> Snapshot:
    """Read a baseline. Raises PrunebenchError where there is none or it cannot be read."""
    if not file.is_file():
        raise PrunebenchError(f"expected a baseline to compare with at {file}, found none: `make baseline` on the commit that is right writes it")
    try:
        body = json.loads(file.read_text())
        if body["format"] != FORMAT:
            raise PrunebenchError(f"{file}: expected format {FORMAT}, found {body['format']}: renew it with `make baseline`")
        costs = [*COUNTS, *FLOPS]
        if body["costs"] != costs:
            raise PrunebenchError(f"{file}: expected the costs {', '.join(costs)}, found {', '.join(body['costs'])}: renew it with `make baseline`")
        images = {key: image for task in body["tasks"].values() for key, image in zip(task["keys"], task["images"], strict=True)}
        cells = []
        for cell in body["cells"]:
            keys = body["tasks"][cell["task"]]["keys"]
            columns = (_decoded(cell[name], len(keys)) for name in ("answer", "score", "keeps", "cost"))
            rows = {
                key: Row(answer, float(score), keeps, tuple(float(x) for x in cost))
                for key, answer, score, keeps, cost in zip(keys, *columns, strict=True)
            }
            named = tuple(cell[name] for name in _NAMED)
            cells.append(Measured(named, cell["knobs"], cell["counts_fixed"], cell["flops_fixed"], rows))
        fingerprints = {name: task["fingerprint"] for name, task in body["tasks"].items()}
        return Snapshot(body["made_with"], body["models"], fingerprints, images, cells, {})
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise PrunebenchError(
            f"{file}: not a baseline ({type(error).__name__}: {error}): restore it with git, or renew it with `make baseline`"
        ) from None


# ---------------------------------------------------------------------------------------------------------------- comparing


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
    """What differs in one cell, by number of samples. `flops`: the mean dense prefill's change in percent; `reasons`: why it fails."""

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
class Comparison:
    """`first`: what makes all the rest suspect (other weights, other data); `notes` fail nothing; `failures` are all reasons, cells' included."""

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


def compare(old: Snapshot, new: Snapshot) -> Comparison:
    """The new run beside the baseline."""
    first: list[str] = []
    for name in sorted(set(old.models) & set(new.models)):
        was, now = old.models[name], new.models[name]
        for field in _MODEL:
            if was.get(field) != now[field]:
                what = "weights" if field == "model_fingerprint" else field
                first.append(f"{name}: {what} {was.get(field)} in the baseline, {now[field]} now: what differs below may come from that")
    for name in sorted(set(old.tasks) & set(new.tasks)):
        if old.tasks[name] != new.tasks[name]:
            first.append(f"{name}: other data or prompts than the baseline's ({old.tasks[name][:12]} in the baseline, {new.tasks[name][:12]} now)")
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
            failures.append(f"all cells together: {n} of {total} samples have {what}, at most {allowed(share, total)} may")
    return Comparison(first, notes, failures, cells)


def _paired(old: Sequence[Measured], new: Sequence[Measured]) -> tuple[list[tuple[Measured, Measured]], list[Measured], list[Measured]]:
    """Cells of the same name, by equal knobs first; where one is left on either side, its knobs are what changed."""
    pairs: list[tuple[Measured, Measured]] = []
    gone: list[Measured] = []
    added: list[Measured] = []
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


def _labels(cells: Sequence[Measured]) -> dict[int, str]:
    """"pope fastv@64", with the knobs in which cells of that name differ from each other."""
    groups: dict[tuple[Any, ...], list[Measured]] = {}
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
    """The fewest knobs that tell these settings apart, the first declared ones of as many: others follow from them."""
    names = [n for n in dict.fromkeys(n for one in knobs for n in one) if len({canonical_json(one.get(n)) for one in knobs}) > 1]
    wanted = len({canonical_json(one) for one in knobs})
    for size in range(len(names)):
        for some in itertools.combinations(names, size):
            if len({canonical_json([one.get(n) for n in some]) for one in knobs}) == wanted:
                return some
    return tuple(names)


def _diff(old: Measured, new: Measured, label: str, run: Snapshot, unpruned: float | None) -> CellDiff:
    """One pair of cells; `p` is not yet corrected for their number."""
    reasons: list[str] = []
    if canonical_json(old.knobs) != canonical_json(new.knobs):
        changed = [n for n in sorted({*old.knobs, *new.knobs}) if old.knobs.get(n) != new.knobs.get(n)]
        reasons.append("other knobs: " + ", ".join(f"{n} {old.knobs.get(n)} -> {new.knobs.get(n)}" for n in changed))
    if old.rows.keys() != new.rows.keys():
        lost, extra = sorted(old.rows.keys() - new.rows.keys()), sorted(new.rows.keys() - old.rows.keys())
        reasons.append(f"other samples: {len(lost)} of the baseline's are missing {lost[:3]}, {len(extra)} are new {extra[:3]}")
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
    return CellDiff(label, n, flips, wins, losses, stats.mcnemar(wins, losses), keeps, counts, costs, change, seconds, reasons)


def _judged(cell: CellDiff, p: float) -> CellDiff:
    reasons = list(cell.reasons)
    if p < LEVEL:
        reasons.append(f"{cell.wins} samples score higher and {cell.losses} lower: exact McNemar p = {p:.2g} after Holm")
    return replace(cell, p=p, reasons=reasons)


# ---------------------------------------------------------------------------------------------------------------- reporting


def table(cells: Sequence[CellDiff], markdown: bool = False) -> str:
    """Every cell with what differs in it."""
    from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]

    head = ["cell", "n", "answers\nchanged", "better/\nworse", "McNemar p\n(Holm)", "keep\nothers", "other\ncounts", "other\nFLOPs",
            "mean dense\nFLOPs", "time / none\n(shared; no\nmeasurement)", ""]  # fmt: skip
    if markdown:
        head = [name.replace("\n", " ") for name in head]
    body = [
        [
            c.label, c.n, len(c.flips) or "", f"{c.wins}/{c.losses}" if c.wins or c.losses else "", f"{c.p:.2g}" if c.wins or c.losses else "",
            len(c.keeps) or "", len(c.counts) or "", len(c.costs) or "", f"{c.flops:+.3g} %" if c.costs else "",
            "" if c.seconds is None else f"{c.seconds:.2f}", "FAIL" if c.reasons else "",
        ]
        for c in cells
    ]  # fmt: skip
    align = ["left", *["right"] * 9, "left"]
    return str(tabulate(body, headers=head, disable_numparse=True, colalign=align, tablefmt="github" if markdown else "simple"))


def flip_lines(flips: Sequence[Flip], pictures: Mapping[str, Path]) -> list[str]:
    """One line per changed answer, with where its image is."""
    lines = []
    for flip in sorted(flips, key=lambda f: (f.change, f.key)):
        word = "worse" if flip.change < 0 else "better" if flip.change > 0 else "same score"
        where = pictures.get(flip.key, f"image {flip.image}")
        lines.append(f"{flip.key}  {flip.old!r} -> {flip.new!r}  (right: {flip.target!r}; {word})  {flip.label}  {where}")
    return lines


def write_pictures(flips: Sequence[Flip], config: Path, overrides: Sequence[str], folder: Path) -> dict[str, Path]:
    """The images of samples whose answer changed, one file each; -> path by sample key. Samples that the data lack are left out."""
    from harness.runner import sweep
    from harness.runner.request import parse_limit, source_of_data
    from harness.runner.session import Session

    plan, session = sweep.load(config, overrides), Session()
    source, limit = source_of_data(plan.data, "mini"), parse_limit(plan.limit, None)
    written: dict[str, Path] = {}
    for name in sorted({flip.key.split("/")[0] for flip in flips}):
        wanted = {flip.key for flip in flips}
        for sample in session.task(name, source, limit).samples:
            if sample.key in wanted:
                path = folder / f"{sample.key}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                sample.load_image().save(path)
                written[sample.key] = path
    return written


def report(found: Comparison, pictures: Mapping[str, Path], whole: Path | None = None) -> str:
    """The comparison for a terminal: what makes it suspect first, then cells, reasons, samples and the verdict."""
    lines = [f"FIRST: {text}" for text in found.first] + [f"note: {text}" for text in found.notes]
    lines += ["", table(found.cells), ""]
    flips = flip_lines(found.flips, pictures)
    if flips:
        lines.append(f"{len(flips)} answers changed:")
        lines += [f"  {text}" for text in flips[:SHOWN]]
        if len(flips) > SHOWN:
            lines.append(f"  ... and {len(flips) - SHOWN} more" + (f" in {whole}" if whole else ""))
        lines.append("")
    changed, total = sum(cell.changed for cell in found.cells), sum(cell.n for cell in found.cells)
    if found.passed:
        state = "nothing differs" if not changed else f"{changed} differ within what ties of rounding may do"
        return "\n".join([*lines, f"PASS: {len(found.cells)} cells, {total} samples as in the baseline; {state}"]).strip()
    reasons = [*found.first, *found.failures]
    lines.append(f"FAIL: {len(reasons)} reason{'s' * (len(reasons) != 1)}; {changed} of {len(found.cells)} cells differ from the baseline")
    lines += [f"  {text}" for text in reasons[:SHOWN]]
    if len(reasons) > SHOWN:
        lines.append(f"  ... and {len(reasons) - SHOWN} more" + (f" in {whole}" if whole else ""))
    return "\n".join(lines).strip()


def report_markdown(found: Comparison, pictures: Mapping[str, Path]) -> str:
    """The same, whole, as Markdown."""
    verdict = "passed" if found.passed else "FAILED"
    lines = [f"# Regression gate: {verdict}", ""]
    for name, texts in (
        ("First of all", found.first), ("Reasons", found.failures), ("Changed answers", flip_lines(found.flips, pictures)), ("Notes", found.notes),
    ):  # fmt: skip
        if texts:
            lines += [f"## {name}", "", *(f"* {text}" for text in texts), ""]
    return "\n".join([*lines, "## Cells", "", table(found.cells, markdown=True), ""])


# ----------------------------------------------------------------------------------------------------------------- commands


def regress(
    config: Path = CONFIG, baseline: Path = BASELINE, out: Path = OUT, *, batch: int = 16, workers: int = 1, say: Callable[[str], None] = print
) -> Comparison:
    """Run the sweep afresh and compare; `out` gets regress.md, the images of changed answers and the run itself under run/.

    Raises PrunebenchError where there is no baseline, before anything is run.
    """
    old = load(baseline)
    new = _fresh_run(config, out, batch, workers, say)
    found = compare(old, new)
    shutil.rmtree(out / "images", ignore_errors=True)
    pictures = write_pictures(found.flips, config, (), out / "images") if found.flips else {}
    whole = out / "regress.md"
    write_atomic(whole, report_markdown(found, pictures).encode())
    say("")
    say(report(found, pictures, whole))
    if not found.passed:
        say(f"If this is meant, commit the change and renew the baseline: {_command('baseline', config, baseline)}")
    say(f"written  {whole}")
    return found


def _command(target: str, config: Path, baseline: Path) -> str:
    """How a person calls a target of the gate on these files."""
    asked = [("GATE", config, CONFIG), ("BASELINE", baseline, BASELINE)]
    return rendered(["make", target], {name: str(path) for name, path, default in asked if path != default})


def renew(
    config: Path = CONFIG, baseline: Path = BASELINE, out: Path = OUT, *, batch: int = 16, workers: int = 1, say: Callable[[str], None] = print
) -> None:
    """Run the sweep afresh, say how it differs from the old baseline and write the new one.

    Raises PrunebenchError, before anything is run, where this checkout holds changes that no commit has: nobody could measure it again.
    """
    from harness.core.paths import REPOSITORY

    dirty = changed_files(REPOSITORY)
    if dirty:
        names = ", ".join(dirty[:5]) + (f" and {len(dirty) - 5} more" if len(dirty) > 5 else "")
        raise PrunebenchError(f"a baseline is made from a commit; expected no uncommitted changes outside results/, found {names}: commit them first")
    new = _fresh_run(config, out, batch, workers, say)
    say("")
    if baseline.is_file():
        try:
            found = compare(load(baseline), new)
            say(report(found, {}))
        except PrunebenchError as error:
            say(f"the old baseline cannot be compared with: {error}")
    else:
        say(f"no baseline before: {len(new.cells)} cells, {sum(len(cell.rows) for cell in new.cells)} samples")
    baseline.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(baseline, dump(new).encode("ascii"))
    say(f"written  {baseline}: commit it with what it belongs to")


def changed_files(repository: Path) -> list[str]:
    """Files outside results/ that differ from the last commit, new Python files of the packages included.

    Raises PrunebenchError outside a git checkout.
    """

    def git(*args: str) -> list[str]:
        try:
            done = subprocess.run(["git", *args], cwd=repository, capture_output=True, text=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            detail = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            why = detail[0] if detail else error
            raise PrunebenchError(f"a baseline is made from a commit; expected a git checkout at {repository}: {why}") from None
        return done.stdout.splitlines()

    tracked = git("diff", "--name-only", "HEAD", "--", ".", ":(exclude)results")
    packages = [name for name in ("harness", "methods", "tasks", "configs") if (repository / name).is_dir()]
    new = git("ls-files", "--others", "--exclude-standard", "--", *packages) if packages else []
    return sorted({*tracked, *(name for name in new if name.endswith((".py", ".yaml")))})


def _fresh_run(config: Path, out: Path, batch: int, workers: int, say: Callable[[str], None]) -> Snapshot:
    """Measure into an empty folder, which then replaces `out`/run."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".run-") as temporary:
        found = measure(config, Path(temporary) / "run", batch=batch, workers=workers, say=say)
        shutil.rmtree(out / "run", ignore_errors=True)
        (Path(temporary) / "run").rename(out / "run")
    return found
