"""The words of a cell from elsewhere against the cell: which data it is of, which knobs its budget makes.

Who sends a cell writes its request. A word that is not in the identity must therefore decide nothing: data are found by
the cell's own fingerprint, and every other word is compared with what the identity says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from harness.core import budget as budgets
from harness.core.cell import canonical_json
from harness.core.errors import PrunebenchError
from harness.core.metric import metric_of
from harness.core.shape import PromptShape, Share
from harness.method import registered, typed_knobs
from harness.method.build import build, own_knobs
from harness.method.knob_values import TextTower, plain
from harness.models.config import ModelConfig, calibrated_knobs, calibration_key, known_models, model_config
from harness.store.sealed import SealedCell
from tasks.choice import has_one_image, is_ours
from tasks.sources import EMBEDDED, TASKS, mini_rows

if TYPE_CHECKING:
    from harness.models.load import Located
    from tasks.lmms import LoadedTask


class NotHereError(PrunebenchError):
    """What a comparison takes is not on this machine."""


def misstated(cell: SealedCell) -> list[str]:
    """Words of a request, all of them plain names, that are not those of the cell."""
    return [*_model(cell), *_knobs(cell), *_metric(cell)]


def _model(cell: SealedCell) -> list[str]:
    from harness.models.prompt import VICUNA_V1

    asked, own, wrong = cell.asked, cell.cell, []
    config = next((one for one in _configs().values() if one.name == own.model), None)
    names = {own.model, *(stem for stem, one in _configs().items() if one is config), config.hub if config else None}
    if asked.model not in names:
        wrong.append(f"its request asks the model {asked.model[:80]!r}, and it is {own.model[:80]!r}")
    expected = asked.stands_for or (config.stands_for if config else "")
    if own.stands_for != expected:
        wrong.append(f"its request makes it stand for {expected[:80]!r}, and it stands for {own.stands_for[:80]!r}")
    if asked.dtype not in (None, own.dtype):
        wrong.append(f"its request asks for dtype {asked.dtype!r}, and it is {own.dtype[:40]!r}")
    if expected in _configs():
        config = _configs()[expected]
    image, done = asked.image or (config and config.image), cell.provenance["processing"]
    found = done.get("image", {}).get("policy")
    if image and image != found:
        wrong.append(f"its request asks for image {image!r}, and its processing says {str(found)[:40]!r}")
    prompt = asked.prompt or (config and config.prompt)
    if prompt and (prompt == "vicuna_v1") != (done.get("template") == VICUNA_V1):
        wrong.append(f"its request asks for prompt {prompt!r}, and its processing has another template")
    return wrong


@cache
def _configs() -> dict[str, ModelConfig]:
    return {name: model_config(name) for name in known_models()}


def _knobs(cell: SealedCell) -> list[str]:
    """Knobs that were asked for and are not those of the cell; a text tower is named there by what is in it."""
    method, own = registered()[cell.cell.method], cell.cell.knobs
    towers = _towers(method)
    asked = {name: value for name, value in cell.asked.knobs.items() if name not in towers}
    try:
        meant = {name: plain(name, value) for name, value in typed_knobs(method, asked)}
    except PrunebenchError as error:
        return [f"its request cannot be made: {error}"]
    later = dict(method.later_knobs)
    return [
        f"its request asks for the knob {name}={value!r}, and it has {own.get(name, 'none')!r}"
        for name, value in meant.items()
        if _text(own.get(name, plain(name, later.get(name)))) != _text(value)
    ]


def _towers(method: Any) -> set[str]:
    """Knobs that are files or folders."""
    return {n for n, hint in get_type_hints(method).items() if {TextTower, Path} & {hint, *get_args(hint)}}


def _text(value: Any) -> str:
    return canonical_json(value)


def _metric(cell: SealedCell) -> list[str]:
    """A headline that is not its task's, and a score that its metric cannot have."""
    wrong = []
    if is_ours(cell.cell.task):
        usual = metric_of(TASKS[cell.cell.task].headline)
        if cell.headline != usual.name:
            wrong.append(f"its headline is {cell.headline[:80]!r}, expected {usual.name!r}")
        elif dict(cell.stated) != usual.stated():
            wrong.append(f"its metric {cell.headline} differs in {str(dict(cell.stated))[:80]}, expected no difference")
        if cell.asked.judge:
            wrong.append(f"its request has judge, and no service scores {cell.cell.task}")
    # of a metric without a maximum nothing is known, and nan is above nothing
    if cell.score > cell.maximum * (1 + 1e-9) or (cell.score < 0 and cell.maximum == cell.maximum):
        wrong.append(f"its {cell.headline[:80]} is {cell.score}, expected 0 to {cell.maximum}")
    return wrong


# ------------------------------------------------------------------------------------------------------------ its data


def data_of(cell: SealedCell, folder: str | None) -> tuple[LoadedTask, list[str]]:
    """The questions whose fingerprint a cell has, of `folder` or of the embedded data, and what its request says of
    them that is not so.

    Raises NotHereError where no data at hand are those.
    """
    asked, own = cell.asked, cell.cell
    if not is_ours(own.task):
        raise NotHereError("a task of lmms-eval without a specification here")
    why = ""
    for source in _sources(own.task, own.n_samples, folder):
        for limit, follow_up, said in _subsets(cell):
            found = _loaded(own.task, source, limit, follow_up)
            if isinstance(found, str):
                why = found if source == folder else why
            elif found.fingerprint == own.data_fingerprint:
                return found, [] if said else [_unlike(cell, follow_up)]
    if why:
        raise NotHereError(why)
    if folder is None and asked.data not in (None, "hub", *EMBEDDED):
        raise NotHereError(f"they are in {asked.data!r} of who measured")
    if folder is None and (asked.data == "hub" or (asked.data is None and own.stands_for not in EMBEDDED)):
        raise NotHereError("they are on the hub")
    raise NotHereError("they are not those that were asked, or were read by another lmms-eval")


def _sources(task: str, n_samples: int, folder: str | None) -> list[str]:
    """Where data are looked for: the folder of who checks, and embedded data that have as many questions.

    Those of the second embedded model are drawn on first use, which a cell of more questions does not need."""
    return [*([] if folder is None else [folder]), *(EMBEDDED if n_samples <= 2 * mini_rows(TASKS[task]) else ())]


def _subsets(cell: SealedCell) -> Iterator[tuple[int | None, bool, bool]]:
    """(limit, whether questions are follow-ups, whether the request says so), as a cell may have been asked.

    A subset of n questions is what the limit n draws, whatever limit was asked. Follow-ups are fewer than their limit.
    """
    from harness.runner.request import parse_limit

    asked = cell.asked
    known = asked.model in _configs()
    default = _configs()[asked.model].default_limit if known else None
    follow_up = asked.follow_up is not None
    with suppress(PrunebenchError):  # as 0: no limit of any cell
        yield parse_limit(asked.limit, default), follow_up, True
    # how many questions a model without a config is asked, nobody here knows
    yield cell.cell.n_samples, False, not known and asked.limit is None and not follow_up
    for limit in (default, None):
        yield limit, True, False


def _unlike(cell: SealedCell, follow_up: bool) -> str:
    asked = cell.asked
    if follow_up != (asked.follow_up is not None):
        told = ("follow-ups", "no follow-ups")
        return f"its request asks for {told[follow_up]}, and its questions are {told[not follow_up]}"
    limit = "no limit" if asked.limit is None else f"limit {asked.limit!r}"
    return f"its request has {limit}, and its data are {cell.cell.n_samples} questions of another limit"


@cache
def _loaded(name: str, source: str, limit: int | None, follow_up: bool) -> LoadedTask | str:
    """Questions of data on this machine, or why there are none."""
    from harness.runner.session import SUBSET_SEED
    from tasks import follow_ups, lmms
    from tasks.sources import DataSource

    try:
        task = lmms.load_task(name, DataSource.parse(source), limit, SUBSET_SEED)
        return follow_ups.follow_ups(task) if follow_up else task
    except PrunebenchError as error:
        return str(error)


# ---------------------------------------------------------------------------------------------------------- its budget


def knobs_unlike(cell: SealedCell, located: Located | None, task: LoadedTask | None) -> list[str]:
    """Knobs that are not those that the budget and the knobs of a request make of the model.

    `located`: the model, where it has a folder here. Raises NotHereError where its sizes or its questions are not at
    hand.
    """
    asked, own = cell.asked, cell.cell
    if asked.model not in _configs():
        raise NotHereError(f"{asked.model} has no config here")
    config = model_config(asked.model, None, None, asked.stands_for)
    try:
        budget = budgets.parse(asked.budget)
        usual = _prompt(cell, budget, located, task)
        method = registered()[own.method]
        given: dict[str, Any] = own_knobs(own.method, config.knobs.get(own.method, {}), None)
        if budget.unit == "calibrated" and method.traits.calibrated:
            key = calibration_key(config) or f"{config.name}-{own.model_fingerprint}"
            try:
                given |= calibrated_knobs(own.method, key)
            except PrunebenchError as error:
                raise NotHereError(str(error)) from None
        towers = _towers(method)
        given |= {name: value for name, value in asked.knobs.items() if name not in towers}
        made = build(own.method, budget, given, usual).knobs()
    except NotHereError:
        raise
    except PrunebenchError as error:
        return [f"its request cannot be made: {error}"]
    wrong = [
        f"its budget {own.budget} makes the knob {name}={value!r}, and it has {own.knobs[name]!r}"
        for name, value in made.items()
        if name in own.knobs and name not in towers and _text(own.knobs[name]) != _text(value)
    ]
    if wrong and budget.unit == "calibrated":  # another person's calibration is no forgery
        raise NotHereError(f"its calibration is not the one here: {wrong[0]}")
    return wrong


def _prompt(cell: SealedCell, budget: budgets.Budget, located: Located | None, task: LoadedTask | None) -> PromptShape:
    """The prompt on which a budget is solved, as `harness/runner/request.py` takes it."""
    from harness.models.published import published_prompt
    from harness.runner import sizes

    usual = located.usual if located is not None else published_prompt(cell.asked.model)
    if usual is None:
        raise NotHereError(f"the sizes of {cell.asked.model} are not at hand")
    counted = budget.unit == "kept" and not isinstance(budget.tokens, Share)
    if not has_one_image(cell.cell.task) and not counted and budget.unit not in ("none", "native"):
        raise NotHereError("the images of each prompt of its task")
    if budget.unit == "flops" or (budget.unit == "avg" and usual.one_of_many):
        if located is None or task is None:
            raise NotHereError(f"the budget {budget} is solved on model and data")
        return sizes.mean_prompt(located, task)
    return usual.with_text(0)
