"""From a name, a budget and knobs to a method that fits a model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args, get_type_hints

from harness.core import spelling
from harness.core.budget import NONE, Budget, amount, lowest, solve
from harness.core.errors import PrunebenchError, unknown
from harness.core.shape import PromptShape, Share
from harness.method.fits import check_fits
from harness.method.interface import Method
from harness.method.knob_values import TextTower
from harness.method.registry import blaming, method_class


def check_budget(cls: type[Method], budget: Budget, knobs: Iterable[str]) -> None:
    """Raise PrunebenchError unless a budget and the knobs that a budget would set are given one at a time.

    A method without such knobs takes no budget; any other needs one of the two.
    """
    given = [k for k in cls.budget_knobs if k in knobs]
    if budget.unit == "none":
        if cls.budget_knobs and not given:
            unit = " (visual tokens)" if isinstance(cls.usual_budget, int) else ""
            raise PrunebenchError(
                f"{cls.name} needs a budget, as in {spelling.given('budget', cls.usual_budget)}{unit}"
            )
    elif not cls.budget_knobs:
        raise PrunebenchError(
            f"{cls.name} prunes nothing to a count, so it takes no budget; found"
            f" {spelling.given('budget', budget)}: leave {spelling.given('budget')} out"
        )
    elif given:
        either = f"give either {spelling.given('budget', budget)} or {given[0]}, not both"
        raise PrunebenchError(f"{cls.name}: knob {given[0]!r} is what the budget sets; {either}")


def build(name: str | type[Method], budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Method:
    """The method `name`, or the class given in its place, at `budget` with `knobs` (values or strings), checked against
    prompts like this one.

    `avg` and `flops` budgets are solved on `prompt`. Where that is one of many, a share of the FLOPs becomes a share of
    each prompt's own tokens. Raises PrunebenchError for unknown methods and knobs, values of the wrong type, and
    budgets out of reach.
    """
    cls = method_class(name)
    shares = prompt.one_of_many
    typed = dict(typed_knobs(cls, knobs))
    # calibrated knobs come with the budget; who asks has checked those of the user
    check_budget(cls, budget, () if budget.unit == "calibrated" else typed)
    if budget.clamp and not shares:
        raise PrunebenchError(
            f"{spelling.given('budget', budget)}: every prompt of this model has {prompt.n_visual} visual tokens, so"
            f" there is nothing to clamp: give {spelling.given('budget', budget.tokens)}"
        )
    if budget.asked(prompt.n_visual) > prompt.n_visual and not budget.clamp:
        has = "a prompt has at most" if shares and budget.unit == "kept" else "an image of this model has"
        has = "the mean prompt has" if shares and budget.unit == "avg" else has
        raise PrunebenchError(
            f"budget {budget}: expected 1 to {prompt.n_visual}, {has} {prompt.n_visual} visual tokens"
        )

    _check_shares(cls, budget)

    def at(keep: int | Share) -> Method:
        return _made(cls, Budget("kept", keep), typed, prompt)

    if budget.unit in ("avg", "flops") and not cls.solves_budgets:
        # for errors: the knobs that say where the method prunes, which are layers and sizes, not what is derived from
        # the count
        with blaming(cls.name):
            now, half = (at(max(prompt.n_visual // part, 1)).knobs() for part in (1, 2))
        placed = [k for k, v in now.items() if k not in cls.budget_knobs and type(v) in (int, tuple) and half[k] == v]
        label = cls.name + (" with " + ", ".join(f"{k}={now[k]}" for k in placed) if placed else "")
        with blaming(cls.name):
            try:
                solved = solve(budget, at, prompt, label)
            except PrunebenchError as error:
                # a floor comes from the layers before the first selection
                raise PrunebenchError(f"{error}, or earlier layers" if "layers" in placed else str(error)) from None
        # asked as a share of any prompt, it is a share of any prompt
        share = isinstance(budget.tokens, Share) or (shares and budget.unit == "flops")
        return at(Share(solved / prompt.n_visual) if share else solved)
    built = _made(cls, budget, typed, prompt)
    try:
        with blaming(cls.name):
            plan = built.plan(prompt)
    except PrunebenchError as error:
        if budget.unit != "kept":
            raise
        with blaming(cls.name):
            at(prompt.n_visual).plan(prompt)  # raises where another knob is at fault, which no budget mends
            least = lowest(at, prompt)
        if budget.asked(prompt.n_visual) >= least:
            raise
        raise PrunebenchError(
            f"{cls.name} cannot keep {budget} visual tokens: expected a budget of at least {least} ({error})"
        ) from None
    if plan is not None and len(plan) != prompt.depth:
        raise PrunebenchError(
            f"{cls.name}: expected a plan of {prompt.depth} numbers, one a decoder layer, found {len(plan)}"
        )
    return built


def usually(cls: type[Method], prompt: PromptShape, share: Share) -> Method:
    """The method as a table asks it: at a share of the prompt's tokens, else at its published defaults, else as it
    stands. Raises the first PrunebenchError where none can be built."""
    refused: PrunebenchError | None = None
    for budget in (Budget("kept", share), Budget("native"), NONE):
        try:
            return build(cls, budget, {}, prompt)
        except PrunebenchError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _made(cls: type[Method], budget: Budget, typed: Mapping[str, Any], prompt: PromptShape) -> Method:
    """The method at a budget that is solved, fitted to the model."""
    with blaming(cls.name):
        made = cls.at_budget(budget, typed, prompt).for_model(prompt.decoder)
        check_fits(made, prompt)
    return made


def _check_shares(cls: type[Method], budget: Budget) -> None:
    """Raise PrunebenchError where a share is asked of a method whose knobs hold counts only."""
    if cls.solves_budgets:
        return
    hints = get_type_hints(cls)
    if isinstance(budget.tokens, Share) and not any(Share in get_args(hints[knob]) for knob in cls.budget_knobs):
        knobs = " and ".join(cls.budget_knobs)
        mend = f"give a number ({spelling.given('budget', 64)}), or declare {knobs}: int | Share"
        raise PrunebenchError(f"{cls.name} takes no share of the tokens, for {knobs} holds a count: {mend}")


def own_knobs(name: str | type[Method], knobs: Mapping[str, Any], text_tower: str | None) -> dict[str, Any]:
    """What a model says of a method's knobs: `knobs`, and below them its text tower (a hub id or a folder) for a knob
    of that type."""
    hints = get_type_hints(method_class(name))
    towers = [f for f, hint in hints.items() if TextTower in get_args(hint)] if text_tower else []
    return {**dict.fromkeys(towers, text_tower), **knobs}


def from_anywhere(cls: type[Method], knobs: Mapping[str, Any]) -> dict[str, Any]:
    """`knobs` as a command in any folder may say them: files and folders by their absolute paths."""
    found = dict(knobs)
    for name, value in typed_knobs(cls, knobs):
        if isinstance(value, TextTower):
            found[name] = value.source
        elif isinstance(value, Path):
            found[name] = str(value.absolute())
    return found


def typed_knobs(cls: type[Method], knobs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(knob, value of the declared type) for each of `knobs`; raises PrunebenchError for unknown knobs and unfit
    values.

    As text, `none` is None where the knob may be None, and commas part the values of a knob that holds several.
    """
    from types import NoneType, UnionType
    from typing import Union, get_args, get_origin, get_type_hints

    from pydantic import TypeAdapter, ValidationError

    hints = get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}
    for key, value in knobs.items():
        if key not in fields:
            raise unknown(f"knob of {cls.name}", key, fields)
        if isinstance(value, bool) and not _takes_truth(hints[key]):
            raise PrunebenchError(f"{cls.name}: knob {key}={value!r} is not valid: expected no truth value")
        try:
            # of `X | Y`: X and Y
            kinds = get_args(hints[key]) if get_origin(hints[key]) in (Union, UnionType) else (hints[key],)
            if isinstance(value, str) and value.lower() == "none" and NoneType in kinds:
                value = None
            elif TextTower in kinds and isinstance(value, str):
                value = _text_tower(cls, key, value)
            elif isinstance(value, str) and ("," in value or any(get_origin(kind) is tuple for kind in kinds)):
                value = [part.strip() for part in value.split(",")]
            elif Share in kinds and not isinstance(value, Share) and value is not None:
                value = _amount(cls, key, value)
            typed = TypeAdapter(hints[key]).validate_python(value)
            if isinstance(typed, Path) and not typed.is_file():
                raise PrunebenchError(f"{cls.name}: knob {key}={str(typed)!r} is not valid: expected a file")
            yield key, typed
        except ValidationError as error:
            raise PrunebenchError(
                f"{cls.name}: knob {key}={value!r} is not valid: {error.errors()[0]['msg']}"
            ) from None


def _takes_truth(hint: Any) -> bool:
    """Whether a knob of this type may be true: Python would count it as 1 elsewhere."""
    return hint is bool or hint is Any or any(map(_takes_truth, get_args(hint)))


def _text_tower(cls: type[Method], knob: str, source: str) -> TextTower:
    """A hub id or a folder as a user writes it; nothing is looked up on the hub."""
    with suppress(OSError, ValueError):  # longer than a name of a file may be, or no text of one
        if source and Path(source).is_dir():
            return TextTower(str(Path(source).absolute()))
        if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            return TextTower(source)
    raise PrunebenchError(
        f"{cls.name}: knob {knob}={source[:80]!r} is not valid: expected a CLIP checkpoint, as a folder that is there"
        " or a hub id (owner/model)"
    )


def _amount(cls: type[Method], knob: str, value: Any) -> int | Share:
    """A knob's number of tokens, or share of them, as a user writes it."""
    try:
        if type(value) is int:
            return value  # whether it is enough, the method knows
        if isinstance(value, str):
            return amount(value)
        raise PrunebenchError("neither")
    except PrunebenchError:
        expected = "a number of visual tokens (64) or a share of each prompt's own, which has a unit (25%)"
        raise PrunebenchError(f"{cls.name}: knob {knob}={value!r} is not valid: expected {expected}") from None
