"""What a sealed cell states, computed again from its answers: `prunebench results verify`.

Where the task's data are at hand (the mini data, or the folder that was named), the answers are scored again with
lmms-eval, and so are all metrics; questions, targets and images are compared with the data. Where the model's folder is
at hand, every cost that follows from kept tokens and lengths is computed again. Nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.core import keeps
from harness.core.costs import dialogue_cost
from harness.core.errors import PrunebenchError
from harness.core.trace import LayerTrace, Trace, TurnTrace
from harness.method import Method, method_class, source_of, typed_knobs
from harness.method.fits import shrinks_pictures
from harness.runner.running import info_of, scored
from harness.runner.sizes import sizes_of
from harness.store.sealed import SealedCell, defined
from harness.store.verify import same

if TYPE_CHECKING:
    import pandas as pd

    from harness.models.load import Located
    from tasks.lmms import LoadedTask

#: costs of a sample that its kept tokens and lengths decide; its method's scoring and edits decide the others
_FROM_LENGTHS = (
    "prefill_paper_macs",
    "prefill_unpruned_flops",
    "projector_flops",
    "vision_flops",
    "lm_head_flops",
    "decode_flops",
    "kv_bytes",
)
#: the same of a second turn
_FROM_TURNS = ("turn_flops", "turn_decode_flops", "turn_lm_head_flops", "turn_kv_bytes")


def again(
    cell: SealedCell,
    frame: pd.DataFrame,
    closed: Mapping[str, str] = MappingProxyType({}),
    task: LoadedTask | None = None,
) -> tuple[list[str], list[str]]:
    """What a cell states that its answers do not bear out, and what could not be computed.

    `closed`: why the "data" or the "model" that the cell names are not looked for. `task`: its questions, where
    somebody found them by another way than the cell's words.
    """
    wrong, left = [], []
    try:
        if "data" in closed:
            raise PrunebenchError(closed["data"])
        if task is None:
            words = (cell.asked.task, cell.asked.data, cell.asked.model, cell.asked.limit)
            task = _task(*words, cell.asked.follow_up is not None)
        if task.fingerprint != cell.cell.data_fingerprint:
            task = None
            raise PrunebenchError("they are not those that were asked, or were read by another lmms-eval")
        wrong += _scores(cell, frame, task)
    except PrunebenchError as error:
        left.append(f"scores not recomputed, data not at hand: {cell.cell.task}: {error}")
    try:
        method = method_class(cell.asked.method)
    except PrunebenchError:
        method = None  # from elsewhere, and gone: its code is in the identity
    if method is not None and source_of(method) == cell.cell.method_source:
        wrong += _unlike("method_info", cell.method_info, _info(method, cell.method_info))
    try:
        if "model" in closed:
            raise PrunebenchError(closed["model"])
        located = located_here(cell.asked.model, cell.cell.dtype, cell.cell.model_fingerprint)
        if method is None:
            left.append(f"prefill_dense_flops not recomputed, method not at hand: {cell.asked.method}")
        wrong += _costs(cell, frame, located, task, method)
    except PrunebenchError as error:
        left.append(f"costs not recomputed, model not at hand: {error}")
    return wrong, left


def _info(method: type[Method], stated: Mapping[str, Any]) -> dict[str, Any]:
    """What a cell holds of a method, without knobs that came later than the cell."""
    found, known = info_of(method), stated.get("variant_knobs", {})
    knobs = {n: v for n, v in found.pop("variant_knobs", {}).items() if n in known or n not in method.later_knobs}
    return found | ({"variant_knobs": knobs} if knobs else {})


@cache
def _task(name: str, data: str | None, model: str, limit: str | None, follow_up: bool) -> LoadedTask:
    """The questions of a request. Raises PrunebenchError where they are not on this machine."""
    from harness.models.config import model_config
    from harness.runner.request import parse_limit
    from harness.runner.session import SUBSET_SEED
    from tasks import follow_ups, lmms
    from tasks.sources import source_of_data

    source = source_of_data(data, model)
    if source.root is None:
        raise PrunebenchError("they are on the hub")
    task = lmms.load_task(name, source, parse_limit(limit, model_config(model).default_limit), SUBSET_SEED)
    return follow_ups.follow_ups(task) if follow_up else task


@cache
def located_here(model: str, dtype: str, fingerprint: str) -> Located:
    """A model in a folder. Raises PrunebenchError where it is not on this machine."""
    from harness.models.config import model_config
    from harness.models.load import locate_model

    if model_config(model).folder is None:
        raise PrunebenchError(f"{model} is on the hub")
    located = locate_model(model, "cpu", dtype)
    if located.prompter.fingerprint != fingerprint:
        raise PrunebenchError(f"{model} is not the model that was asked")
    return located


def _scores(cell: SealedCell, frame: pd.DataFrame, task: LoadedTask) -> list[str]:
    keys = frame["key"].tolist()
    if keys != [sample.key for sample in task.samples]:
        return ["its samples are not the questions of its data, in their order"]
    metrics, scores = scored(task, dict(zip(keys, frame["answer"].tolist(), strict=True)))
    expected: dict[str, list[Any]] = {
        name: [getattr(scores[key], name) for key in keys]
        for name in ("score", "question_id", "category", "question", "target")
    }
    expected["image"] = [sample.image_key for sample in task.samples]
    wrong = []
    for name, values in expected.items():
        for key, told, found in zip(keys, frame[name].tolist(), values, strict=True):
            stated = None if isinstance(told, float) and math.isnan(told) else told  # a sample without a score
            if not same(stated, found):
                wrong.append(f"{name} of {key} is {stated!r}, but its data and its answer give {found!r}")
                break
    if task.headline != cell.headline:
        wrong.append(f"its headline is {cell.headline}, expected {task.headline}")
    elif task.metric != cell.metric:
        wrong.append(f"its metric {cell.headline} differs in {cell.stated}, expected {task.metric.stated()}")
    again = defined(metrics)
    wrong += _unlike("metric", cell.metrics, again)
    return wrong


def _costs(
    cell: SealedCell, frame: pd.DataFrame, located: Located, task: LoadedTask | None, method: type[Method] | None
) -> list[str]:
    """The costs of each sample, from a trace with the layers that its record of kept tokens tells.

    `method` says whether tokens leave inside a layer. Where it is None, the dense FLOPs, which depend on that, are
    taken as stated. Raises PrunebenchError where images differ in size and the task's data are not at hand.
    """
    usual = located.usual
    if task is None and (not located.one_size or isinstance(cell.provenance.get("grids"), Mapping)):
        raise PrunebenchError("it takes the sizes of the images, whose data are not")
    samples = {} if task is None else {sample.key: sample for sample in task.samples}
    if cell.provenance["decoder_layers"] != usual.depth:
        return [f"decoder_layers is {cell.provenance['decoder_layers']}, but the model has {usual.depth}"]
    inside = method is not None and method.drops_inside
    shrinks = method is not None and not located.one_size and shrinks_pictures(method)
    asked = method(**dict(typed_knobs(method, cell.cell.knobs))) if method is not None and shrinks else Method()
    for row in frame.to_dict("records"):
        stages = keeps.decode(row["keeps"], int(row["n_visual"]))
        if not stages:
            continue
        text = int(row["n_text"])
        visual = keeps.per_layer(stages, usual.depth)
        trace = Trace(
            1,
            [
                LayerTrace(text + n, [text + n], [n], behind=[text + after] if inside else [])
                for n, after in zip(visual, [*visual[1:], visual[-1]], strict=True)
            ],
            [int(row["n_visual"])],
            scoring=[int(row["scoring_flops"])],
        )
        prompt = usual
        if task is not None:
            sizes = sizes_of(located, task, samples[str(row["key"])])
            images = located.prompter.images_at(located.prompter.all_shown(asked, sizes))
            prompt = replace(usual, images=images)
            if method is None and prompt.n_visual != int(row["n_visual"]):
                raise PrunebenchError("it takes the method, which may have shrunk the images")
        lengths = [int(row["n_new_tokens"])]
        names = [*_FROM_LENGTHS, *(["prefill_dense_flops"] if method else [])]
        if cell.asked.follow_up:
            lengths.insert(0, int(row["first_new_tokens"]))
            trace.turn = TurnTrace(int(row["turn_tokens"]), [int(row["turn_tokens"])], [max(lengths[0] - 1, 0)])
            names += _FROM_TURNS
        found = dialogue_cost(prompt, trace, 0, lengths)
        wrong = _unlike(f"{row['key']}: cost", {n: row[n] for n in names}, {n: found[n] for n in names})
        if row["prefill_ideal_flops"] > row["prefill_dense_flops"]:
            wrong.append(f"{row['key']}: cost prefill_ideal_flops is above prefill_dense_flops")
        if wrong:
            return wrong
    return []


def _unlike(what: str, stated: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    return [
        f"{what} {name} is {stated.get(name, 'not there')}, but computed again it is {found.get(name, 'not there')}"
        for name in sorted({*stated, *found})
        if name not in stated or name not in found or not same(stated[name], found[name], 1e-9)
    ]
