"""Whole requests of sealed cells: means over the samples of a cell, at any output length and number of questions.

A cell names no sizes of its model. Its unpruned cell tells them: the visual tokens' own products and the whole prefill
of one sample are two equations for the FLOPs of a token and of a pair of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from harness.core.errors import PrunebenchError
from harness.core.requests import TokenRates, WholeRequest
from harness.core.spelling import given
from harness.store.sealed import SealedCell
from harness.tables.sections import Line, Section, baseline, distinct, mean, sections

VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_COSTS = ("vision_flops", "projector_flops", "prefill_dense_flops", "prefill_paper_macs", "scoring_flops", "kv_bytes")
_NEEDED = (*_COSTS, "n_visual", "n_text", "keeps", "lm_head_flops", "n_new_tokens", "prefill_unpruned_flops")


def token_rates(unpruned: SealedCell, samples: Any) -> TokenRates | None:
    """What a token costs, from the samples (a frame) of an unpruned cell; None where they do not tell."""
    if not {*_NEEDED} <= {*samples.columns} or unpruned.cell.dtype not in VALUE_BYTES:
        return None
    told = samples[(samples["n_visual"] > 0) & (samples["n_text"] > 0)]
    if told.empty:
        return None
    one = told.iloc[0]
    visual, tokens = float(one["n_visual"]), float(one["n_visual"] + one["n_text"])
    each, of_visual = float(one["prefill_unpruned_flops"]) / tokens, 2 * float(one["prefill_paper_macs"]) / visual
    pair = (each - of_visual) / (tokens - visual)
    # in a dialogue these costs are of the first question
    n_new = one["first_new_tokens" if "first_new_tokens" in samples.columns else "n_new_tokens"]
    head = float(one["lm_head_flops"]) / max(int(n_new), 1)
    kv = float(one["kv_bytes"]) / tokens
    return TokenRates(each - pair * tokens, pair, head, kv, VALUE_BYTES[unpruned.cell.dtype])


def measured(sealed: SealedCell, samples: Any, rates: TokenRates) -> WholeRequest | None:
    """The mean request of a cell, from its samples (a frame); None where a column is missing."""
    depth = sealed.provenance.get("decoder_layers")
    if not {*_NEEDED} <= {*samples.columns} or not depth or not samples["keeps"].astype(bool).all():
        return None
    reduced = samples["keeps"].map(lambda text: min(_first_reduction(text), depth))
    visual = samples["n_visual"].astype(float)
    front = (rates.linear_flops * visual + rates.pair_flops * visual**2) * reduced / depth
    costs: Mapping[str, float] = {name: float(samples[name].mean()) for name in _COSTS}
    query_aware = bool(sealed.method_info.get("query_aware", True))
    return WholeRequest.from_costs(costs, rates, query_aware=query_aware, front_flops=float(front.mean()))


def _first_reduction(keeps: str) -> float:
    """The layer in front of which tokens first leave, of a text of harness/core/keeps.py; infinity for none."""
    for stage in keeps.split(";"):
        layer, added, mask = stage.split(":")
        if mask != "*" or int(added):
            return int(layer)
    return float("inf")


def of_cells(
    cells: Iterable[SealedCell], known: Mapping[str, SealedCell], samples: Callable[[SealedCell], Any]
) -> dict[str, tuple[WholeRequest, WholeRequest]]:
    """By identity: the mean request of each cell, and of its unpruned cell; cells without one are left out. `samples`
    gives the frame of a cell."""
    bases: dict[str, WholeRequest | None] = {}
    found: dict[str, tuple[WholeRequest, WholeRequest]] = {}
    for sealed in cells:
        unpruned = baseline(sealed, known)
        if unpruned is None:
            continue
        if unpruned.identity not in bases:
            rates = token_rates(unpruned, samples(unpruned))
            bases[unpruned.identity] = measured(unpruned, samples(unpruned), rates) if rates else None
        base = bases[unpruned.identity]
        one = measured(sealed, samples(sealed), base.rates) if base else None
        if one and base:
            found[sealed.identity] = one, base
    return found


def mean_request(requests: Sequence[WholeRequest]) -> WholeRequest:
    """The mean of requests to one model; it costs their mean at every output length."""
    names = [f.name for f in fields(WholeRequest) if f.name != "rates"]
    return WholeRequest(requests[0].rates, *(mean([getattr(one, name) for one in requests]) for name in names))


def measured_lines(
    cells: Iterable[SealedCell], model: str, methods: Sequence[str], budgets: Sequence[str]
) -> tuple[str, WholeRequest, list[tuple[str, str, WholeRequest]]]:
    """What was measured, the unpruned request, and (line, budget, request) of each line of `methods` at `budgets` ([]
    for all); means over tasks, in each of which every line and the unpruned model were measured.

    The cells are those of the first section of a leaderboard that has most of the methods. Raises PrunebenchError for a
    method without such cells.
    """
    known = distinct(cells)
    sets = sections({identity: sealed for identity, sealed in known.items() if sealed.cell.model == model})
    wanted = [(section, _asked(section, methods, budgets)) for section in sets]
    section, lines = max(wanted, key=lambda one: len({line.method for line in one[1]}), default=(None, []))
    lacking = [name for name in methods if name not in {line.method for line in lines}]
    if section is None or not lines or lacking:
        at = f" at {', '.join(budgets)}" if budgets else ""
        have = ", ".join(sorted({sealed.cell.model for sealed in known.values()})) or "no model"
        raise PrunebenchError(
            f"expected cells of {model}, {', '.join(lacking or methods)}{at}, found none (the cells are of {have}): run"
            f" them, or name another folder with {given('results')}"
        )
    frames: dict[str, Any] = {}

    def samples(sealed: SealedCell) -> Any:
        return frames.setdefault(sealed.identity, sealed.samples())

    mine = [sealed for line in lines for seeds in line.cells.values() for sealed in seeds]
    found = of_cells(mine, known, samples)
    tasks = [task for task in section.tasks if all(_whole(line, task, found) for line in lines)]
    if not tasks:
        raise PrunebenchError(
            f"expected a task with cells of {', '.join(line.label for line in lines)} and of the unpruned model, found"
            f" none in {section.title}: run them"
        )
    bases = [found[lines[0].cells[task][0].identity][1] for task in tasks]
    rows = [
        (
            line.label,
            line.budget,
            mean_request([mean_request([found[s.identity][0] for s in line.cells[task]]) for task in tasks]),
        )
        for line in lines
    ]
    return f"{section.title}; means over {', '.join(tasks)}", mean_request(bases), rows


def _asked(section: Section, methods: Sequence[str], budgets: Sequence[str]) -> list[Line]:
    lines = [line for block in section.blocks() for line in block.lines if line.method != "none"]
    return [line for line in lines if line.method in methods and (not budgets or line.budget in budgets)]


def _whole(line: Line, task: str, found: Mapping[str, object]) -> bool:
    return bool(line.cells.get(task)) and all(sealed.identity in found for sealed in line.cells[task])
