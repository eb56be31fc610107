"""The gate's baseline: every sample of every cell, small enough to commit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from harness.core.cell import Cell, canonical_json
from harness.core.errors import PrunebenchError
from harness.core.paths import resolved
from harness.store.sealed import SealedCell

FORMAT = 1
#: costs that follow from how many tokens are where, and those that hold scoring too
COUNTS = ("kept", "mean_visual", "kv_bytes")
FLOPS = ("prefill_dense_flops", "prefill_ideal_flops")
_NAMED = ("model", "task", "method", "budget", "positions", "seed")
MODEL = ("model_fingerprint", "stands_for", "processing", "dtype", "kernel", "device_type")


class Row(NamedTuple):
    """One sample of a cell. `keeps`: 8 hex digits of the SHA-256 of the text of kept tokens; `costs` in the order of
    COUNTS + FLOPS."""

    answer: str
    score: float
    keeps: str
    costs: tuple[float, ...]


@dataclass(frozen=True)
class SnapshotCell:
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
    """All cells of one run, or a baseline. `models`: by name what else decides answers; `tasks`: by name the data's
    fingerprint.

    `images` and `targets` are by sample key; targets are not in a baseline.
    """

    made_with: Mapping[str, Any]
    models: Mapping[str, Mapping[str, str]]
    tasks: Mapping[str, str]
    images: Mapping[str, str]
    cells: Sequence[SnapshotCell]
    targets: Mapping[str, str]


# ------------------------------------------------------------------------------------------------------------ measuring


def snapshot(cells: Iterable[SealedCell]) -> Snapshot:
    """What the gate compares of some sealed cells. Raises PrunebenchError where one lacks its kept tokens."""
    import torch

    from harness.core.provenance import git_state, versions
    from harness.models.device import device_name

    cells = sorted(cells, key=lambda c: _order(c.cell))
    models = {c.cell.model: {name: str(getattr(c.cell, name)) for name in MODEL} for c in cells}
    for task in sorted({c.cell.task for c in cells}):
        if len({c.cell.data_fingerprint for c in cells if c.cell.task == task}) > 1:
            raise PrunebenchError(
                f"a gate compares samples by their keys: expected the same {task} data for every model, found several:"
                " give each embedded model a gate of its own"
            )
    images: dict[str, str] = {}
    targets: dict[str, str] = {}
    measured = []
    for sealed in cells:
        frame = sealed.samples()
        if not frame["keeps"].astype(bool).all():
            raise PrunebenchError(
                f"{sealed.folder}: expected kept tokens with every sample, found none: measure it again"
            )
        images.update(zip(frame["key"], frame["image"], strict=True))
        targets.update(zip(frame["key"], frame["target"].fillna(""), strict=True))
        costs = zip(*(frame[name].tolist() for name in COUNTS + FLOPS), strict=True)
        rows = {
            key: Row(
                answer, float(score), hashlib.sha256(keeps.encode()).hexdigest()[:8], tuple(float(x) for x in cost)
            )
            for key, answer, score, keeps, cost in zip(
                frame["key"], frame["answer"], frame["score"], frame["keeps"], costs, strict=True
            )
        }
        asked = sealed.asked
        counts_fixed, flops_fixed = _fixed(asked.model, asked.method, asked.budget, canonical_json(asked.knobs))
        named = tuple(getattr(sealed.cell, name) for name in _NAMED)
        measured.append(
            SnapshotCell(named, sealed.cell.knobs, counts_fixed, flops_fixed, rows, float(sealed.provenance["wall_s"]))
        )
    made_with = {
        "commit": git_state()["git"],
        "device": device_name(torch.device("cpu")),
        **versions(("torch", "transformers", "lmms-eval", "pillow")),
    }
    return Snapshot(made_with, models, {c.cell.task: c.cell.data_fingerprint for c in cells}, images, measured, targets)


def _order(cell: Cell) -> tuple[Any, ...]:
    return (*(getattr(cell, name) for name in _NAMED), canonical_json(cell.knobs))


@lru_cache(maxsize=256)
def _fixed(model: str, method: str, budget: str | None, knobs: str) -> tuple[bool, bool]:
    """Are counts and FLOPs known before a run, of the method as it was asked?"""
    from harness.core import budget as budgets
    from harness.models.load import locate_model

    located = locate_model(model, "cpu")
    asked = budgets.parse(budget) if budget else budgets.NONE
    built, prompt = located.method(method, asked, json.loads(knobs), n_text=1), located.usual.with_text(1)
    plan = built.plan(prompt)
    return plan is not None, plan is not None and built.plan_scoring(prompt, plan) is not None


# ------------------------------------------------------------------------------------------------------------- baseline


def dump(found: Snapshot) -> str:
    """A snapshot as JSON with one line per cell, so that its diff can be read; what repeats is written once."""
    samples = {task: sorted(key for key in found.images if key.split("/")[0] == task) for task in found.tasks}
    head = {
        "format": FORMAT,
        "made_with": dict(found.made_with),
        "models": {name: dict(fields) for name, fields in found.models.items()},
        "tasks": {
            task: {
                "fingerprint": fingerprint,
                "keys": samples[task],
                "images": [found.images[key] for key in samples[task]],
            }
            for task, fingerprint in found.tasks.items()
        },
        "costs": [*COUNTS, *FLOPS],
    }
    lines = []
    for cell in found.cells:
        rows = [cell.rows[key] for key in samples[cell.task]]
        body = {
            **dict(zip(_NAMED, cell.named, strict=True)),
            "knobs": dict(cell.knobs),
            "counts_fixed": cell.counts_fixed,
            "flops_fixed": cell.flops_fixed,
            "answer": _coded([r.answer for r in rows]),
            "score": _coded([r.score for r in rows]),
            "keeps": _coded([r.keeps for r in rows]),
            "cost": _coded([list(map(_plain, r.costs)) for r in rows]),
        }
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
    file = resolved(file)
    if not file.is_file():
        raise PrunebenchError(
            f"expected a baseline to compare with at {file}, found none: `make baseline` on the commit that is right"
            " writes it"
        )
    try:
        body = json.loads(file.read_text())
        if body["format"] != FORMAT:
            raise PrunebenchError(
                f"{file}: expected format {FORMAT}, found {body['format']}: renew it with `make baseline`"
            )
        costs = [*COUNTS, *FLOPS]
        if body["costs"] != costs:
            raise PrunebenchError(
                f"{file}: expected the costs {', '.join(costs)}, found {', '.join(body['costs'])}: renew it with `make"
                " baseline`"
            )
        images = {
            key: image
            for task in body["tasks"].values()
            for key, image in zip(task["keys"], task["images"], strict=True)
        }
        cells = []
        for cell in body["cells"]:
            keys = body["tasks"][cell["task"]]["keys"]
            columns = (_decoded(cell[name], len(keys)) for name in ("answer", "score", "keeps", "cost"))
            rows = {
                key: Row(answer, float(score), keeps, tuple(float(x) for x in cost))
                for key, answer, score, keeps, cost in zip(keys, *columns, strict=True)
            }
            named = tuple(cell[name] for name in _NAMED)
            cells.append(SnapshotCell(named, cell["knobs"], cell["counts_fixed"], cell["flops_fixed"], rows))
        fingerprints = {name: task["fingerprint"] for name, task in body["tasks"].items()}
        return Snapshot(body["made_with"], body["models"], fingerprints, images, cells, {})
    except PrunebenchError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise PrunebenchError(
            f"{file}: not a baseline ({type(error).__name__}: {error}): restore it with git, or renew it with `make"
            " baseline`"
        ) from None
