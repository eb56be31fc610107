"""From a name, a budget and knobs to a method that fits a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from harness.budget import Budget, amount, lowest, solve
from harness.errors import PrunebenchError, unknown
from harness.method.interface import Method
from harness.method.registry import method_class
from harness.shape import PromptShape, Share


def check_budget(cls: type[Method], budget: Budget, knobs: Iterable[str]) -> None:
    """Raise PrunebenchError unless a budget and the knobs that a budget would set are given one at a time.

    A method without such knobs takes no budget; any other needs one of the two.
    """
    given = [k for k in cls.budget_knobs if k in knobs]
    if budget.unit == "none":
        if cls.budget_knobs and not given:
            raise PrunebenchError(f"{cls.name} needs a budget, as in BUDGET=64 (visual tokens)")
    elif not cls.budget_knobs:
        raise PrunebenchError(f"{cls.name} prunes nothing to a count, so it takes no budget; found BUDGET={budget}: leave BUDGET out")
    elif given:
        either = f"give either BUDGET={budget} or {given[0]}, not both"
        raise PrunebenchError(f"{cls.name}: knob {given[0]!r} is what the budget sets; {either}")


def build(name: str, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Method:
    """The method `name` at `budget` with `knobs` (values or strings), checked against prompts like this one.

    `avg` and `flops` budgets are solved on `prompt`. Raises PrunebenchError for unknown methods and
    knobs, values of the wrong type, and budgets out of reach.
    """
    cls = method_class(name)
    typed = dict(typed_knobs(cls, knobs))
    check_budget(cls, budget, typed)
    if budget.asked(prompt.n_visual) > prompt.n_visual:
        raise PrunebenchError(f"budget {budget}: expected 1 to {prompt.n_visual}, an image of this model has {prompt.n_visual} visual tokens")

    def at(keep: int | Share) -> Method:
        return cls.at_budget(Budget("kept", keep), typed, prompt).for_model(prompt.decoder)

    if budget.unit in ("avg", "flops"):
        # for errors: the knobs that say where the method prunes, which are layers and sizes, not what is derived from the count
        now, half = (at(max(prompt.n_visual // part, 1)).knobs() for part in (1, 2))
        placed = [k for k, v in now.items() if k not in cls.budget_knobs and type(v) in (int, tuple) and half[k] == v]
        label = cls.name + (" with " + ", ".join(f"{k}={now[k]}" for k in placed) if placed else "")
        solved = solve(budget, at, prompt, label)
        # asked as a share of any prompt, it is a share of any prompt
        return at(Share(solved / prompt.n_visual) if isinstance(budget.tokens, Share) else solved)
    built = cls.at_budget(budget, typed, prompt).for_model(prompt.decoder)
    try:
        built.plan(prompt)
    except PrunebenchError as error:
        if budget.unit != "kept":
            raise
        least = lowest(at, prompt)
        if budget.asked(prompt.n_visual) >= least:
            raise
        raise PrunebenchError(f"{name} cannot keep {budget} visual tokens: expected a budget of at least {least} ({error})") from None
    return built


def typed_knobs(cls: type[Method], knobs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(knob, value of the declared type) for each of `knobs`; raises PrunebenchError for unknown knobs and unfit values.

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
        try:
            # of `X | Y`: X and Y
            kinds = get_args(hints[key]) if get_origin(hints[key]) in (Union, UnionType) else (hints[key],)
            if isinstance(value, str) and value.lower() == "none" and NoneType in kinds:
                value = None
            elif isinstance(value, str) and ("," in value or any(get_origin(kind) is tuple for kind in kinds)):
                value = [part.strip() for part in value.split(",")]
            elif isinstance(value, str) and Share in kinds:
                value = amount(value)
            yield key, TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            raise PrunebenchError(f"{cls.name}: knob {key}={value!r} is not valid: {error.errors()[0]['msg']}") from None
