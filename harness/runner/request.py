"""The door: a request, as strings that a user typed, becomes settings, typed and checked. Behind it nothing reads a
user's words.

Everything that can be refused is refused here, before weights or data are read (`check`); data are read for a FLOPs
budget only, which is solved at a task's mean text length. The heavy imports are inside, for the tables ask here where
their images are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.core import budget as budgets
from harness.core.asked import Asked
from harness.core.budget import Budget
from harness.core.command import check_no_comma, natural, whole_number, word
from harness.core.errors import PrunebenchError, naming, unknown
from harness.core.shape import Share
from harness.core.spelling import given

if TYPE_CHECKING:
    from harness.core.shape import PromptShape
    from harness.method import Method
    from harness.models.load import Located
    from harness.runner.session import Session
    from harness.runner.setting import Setting
    from tasks.lmms import LoadedTask
    from tasks.sources import DataSource

TASKS = ("gqa", "mme", "pope", "textvqa")
Words = str | Sequence[str]
"""Several words: as one text with commas, or one by one, as a YAML file has them."""


def listed(words: Words) -> tuple[str, ...]:
    """`"64, 128"` -> `("64", "128")`; what comes one by one is not split."""
    return (
        tuple(part.strip() for part in words.split(",") if part.strip())
        if isinstance(words, str)
        else tuple(map(str, words))
    )


@dataclass(frozen=True)
class Request:
    """What a user asks for, as typed: every method at every budget with every seed, beside the unpruned model.

    No budget: the method takes none, or `knobs` say how many tokens it keeps. `limit` "" or None: the model's default;
    "all": every question. `data` None: an embedded model's own, else hub. `knobs` are every method's. `prompt`,
    `image` None: as the model says. `stands_for`: the shipped config that a folder or hub id is. `include`: a folder
    with tasks as YAML. `judge`: a service may score answers. `follow_up`: ask each question behind the first one about
    its image, on the cache that the first one pruned.
    """

    methods: Words
    model: str = "mini"
    budgets: Words = ()
    tasks: Words = TASKS
    limit: str | int | None = None
    seeds: Words = ("0",)
    device: str = "auto"
    dtype: str = "auto"
    data: str | None = None
    positions: str = "method"
    knobs: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    image: str | None = None
    stands_for: str | None = None
    include: str | None = None
    judge: bool = False
    follow_up: bool = False

    def __post_init__(self) -> None:
        for name in ("methods", "budgets", "tasks", "seeds"):
            object.__setattr__(self, name, listed(getattr(self, name)))

    def each(self) -> list[Request]:
        """One request per method, budget and seed. Of several methods, those that take no budget are asked without."""
        from harness.method import method_class

        if not self.methods:
            raise PrunebenchError(
                f"no method was named: give {given('method', 'visipruner')} or several, as in"
                f" {given('method', 'visipruner,fastv')}"
            )
        check_no_comma(self.methods)
        takers = [method for method in self.methods if method_class(method).budget_knobs]
        if len(self.methods) > 1 and not takers and any(budgets.parse(text) != budgets.NONE for text in self.budgets):
            raise PrunebenchError(
                f"{given('budget', ','.join(self.budgets))}: none of {', '.join(self.methods)} takes a budget: leave"
                f" {given('budget')} out"
            )
        found = []
        for method in self.methods:
            without = not self.budgets or (len(self.methods) > 1 and method not in takers)
            for budget in ((),) if without else [(text,) for text in self.budgets]:
                found += [
                    replace(self, methods=(method,), budgets=budget, seeds=(seed,)) for seed in self.seeds or ("0",)
                ]
        return found

    @property
    def model_words(self) -> dict[str, str | None]:
        """What is said of the model beside its name, as `model_config` takes it."""
        return {"prompt": self.prompt, "image": self.image, "stands_for": self.stands_for}

    @property
    def label(self) -> str:
        """For people."""
        text = ",".join(self.methods) + ("@" + ",".join(self.budgets) if self.budgets else "")
        seeds = ",".join(self.seeds)
        return (
            text
            + "".join(f" {k}={v}" for k, v in self.knobs.items())
            + (f" seed {seeds}" if seeds != "0" else "")
            + (" follow-up" if self.follow_up else "")
            + f" on {self.model}"
        )


def resolve(request: Request, session: Session) -> list[Setting]:
    """The settings of a request in table order: per method, budget, seed and task the unpruned model and the method.
    Reads no weights.

    Raises PrunebenchError for anything that a user can mend, before data are read wherever data are not what is wrong.
    """
    asked = request.each()
    return [
        setting
        for mine in resolve_each([(one.label if len(asked) > 1 else "", one) for one in asked], session)
        for setting in mine
    ]


def resolve_each(labelled: Sequence[tuple[str, Request]], session: Session) -> list[list[Setting]]:
    """The settings of several requests, all checked before the first one reads data. What is wrong with one is said
    behind its label."""
    checked: list[tuple[str, list[Checked]]] = []
    for label, request in labelled:
        with naming(label):
            checked.append((label, [check(one) for one in request.each()]))
    found: list[list[Setting]] = []
    for label, several in checked:
        with naming(label):
            found.append([setting for one in several for setting in settings_of(one, session)])
    return found


@dataclass(frozen=True)
class Checked:
    """The words of one of `each`, read once: what they mean, and the `method` that they make for a `usual` prompt of
    the model."""

    request: Request
    spec: str
    """The method by the name that was typed."""
    budget: Budget
    limit: int | None
    seed: int
    source: DataSource
    method: Method
    usual: PromptShape


def check(request: Request) -> Checked:
    """Read one of `each`. Raises PrunebenchError for everything that can be refused with neither device nor data."""
    from harness.engine.attach import POSITION_POLICIES
    from harness.method import build, check_budget, method_class
    from harness.method.build import from_anywhere, own_knobs
    from harness.models.config import calibrated_knobs, calibration_key, model_config
    from harness.models.load import locate_model
    from harness.models.published import published_prompt
    from tasks import choice

    spec, budget = request.methods[0], budgets.parse(request.budgets[0] if request.budgets else None)
    cls = method_class(spec)
    request = replace(request, knobs=from_anywhere(cls, request.knobs))
    _check_spelt(cls, request.knobs)
    check_budget(cls, budget, request.knobs)
    if request.positions not in POSITION_POLICIES:
        raise unknown("position policy", request.positions, POSITION_POLICIES)
    if not request.tasks:
        raise PrunebenchError(f"no task was named: give {given('tasks', ','.join(TASKS))} or some of them")
    request = replace(request, tasks=choice.chosen(request.tasks, request.include, request.judge), include=None)
    if request.follow_up:
        from tasks import follow_ups

        follow_ups.check(request.tasks)
    seed, words = _seed(request.seeds[0]), request.model_words
    config = model_config(request.model, **words)
    limit = parse_limit(request.limit, config.default_limit)
    if budget.unit == "calibrated" and cls.traits.calibrated:  # before the model's files are looked for
        key = calibration_key(config)
        if key is not None:
            calibrated_knobs(spec, key)
    usual = published_prompt(request.model)
    if usual is not None and budget.unit != "calibrated":  # sizes that are known without its files
        own = own_knobs(spec, config.knobs.get(spec, {}), config.text_tower)
        method = build(spec, _asked_before(budget, usual), {**own, **request.knobs}, usual)
        method.check_text_tower()
    else:
        located = locate_model(request.model, "cpu", request.dtype, **words)
        usual = located.usual
        method = located.method(spec, _asked_before(budget, usual), request.knobs, n_text=0)
    from tasks.sources import source_of_data

    source = source_of_data(request.data, config.stands_for)
    choice.check_source(request.tasks, source)
    return Checked(request, spec, budget, limit, seed, source, method, usual)


def settings_of(checked: Checked, session: Session) -> list[Setting]:
    """Per task the unpruned model and the method. Raises PrunebenchError where the model, the device or the data are
    not there."""
    from harness.method import method_class
    from harness.runner.setting import Setting

    request, budget, source, limit = checked.request, checked.budget, checked.source, checked.limit
    located = session.locate(request.model, request.device, request.dtype, **request.model_words)
    unpruned = method_class("none")()
    settings = []
    for task in dict.fromkeys(request.tasks):
        method = _method_of(checked, located, task, partial(session.task, task, source, limit))
        seed, positions = (
            checked.seed if method.uses_seed else 0,
            ("method" if method.name == "none" else request.positions),
        )
        asked = Asked(
            method=checked.spec,
            budget=None if budget.unit == "none" else str(budget),
            model=request.model,
            task=task,
            limit=None if request.limit in (None, "") else str(request.limit),
            knobs=request.knobs,
            seed=seed,
            positions=positions,
            data=request.data or None,
            device=located.device.type,
            dtype=None if request.dtype == "auto" else request.dtype,
            prompt=request.prompt or None,
            image=request.image or None,
            stands_for=request.stands_for or None,
            judge="1" if request.judge else None,
            follow_up="1" if request.follow_up else None,
        )
        if method.name != "none":
            settings.append(
                Setting(located, unpruned, budgets.NONE, task, source, limit, 0, "method", asked.unpruned())
            )
        settings.append(Setting(located, method, budget, task, source, limit, seed, positions, asked))
    return settings


def _asked_before(budget: Budget, usual: PromptShape) -> Budget:
    """What stands for a budget before a task is known, where images differ: a mean in tokens is one of the task's
    prompts, and keeps at most all tokens."""
    mean = usual.one_of_many and budget.unit == "avg" and not isinstance(budget.tokens, Share)
    return Budget("kept", usual.n_visual) if mean else budget


def _method_of(checked: Checked, located: Located, name: str, task: Callable[[], LoadedTask]) -> Method:
    """The method of a task, whose data are read where its prompts decide anything: a share of the FLOPs is solved per
    task, and so is every mean where images differ. What is out of reach without any text is out of reach with it.

    Prompts of several images of a model with one size are many, as those of images that differ are: a share is one of
    each prompt's own tokens."""
    from harness.method.fits import shrinks_pictures
    from harness.runner import sizes
    from tasks.choice import has_one_image

    spec, budget, knobs = checked.spec, checked.budget, checked.request.knobs
    solved = budget.unit == "flops" or (budget.unit == "avg" and not located.one_size)
    usual = sizes.mean_prompt(located, task()) if solved else None
    method = located.method(spec, budget, knobs, n_text=usual.n_text if usual else 0, usual=usual)
    if (located.one_size and has_one_image(name)) or sizes.alike(located, task()):
        return method
    if shrinks_pictures(method):
        sizes.check_shares(method, _shares(method, budget, knobs), task())
    elif located.one_size and usual is None and not (budget.unit == "kept" and isinstance(budget.tokens, int)):
        usual = replace(located.usual, one_of_many=True)
        usual = sizes.mean_prompt(located, task()) if budget.unit == "avg" else usual
        method = located.method(spec, budget, knobs, n_text=usual.n_text, usual=usual)
    if not budget.clamp:
        sizes.check_counts(method, located, task())
    if shrinks_pictures(method) and not located.one_size:
        sizes.check_reach(method, located, task())
    return method


def _shares(method: Method, budget: Budget, knobs: Mapping[str, Any]) -> bool:
    """Is a method asked to keep a share of each prompt's tokens, by its budget or by a knob?"""
    from harness.method import typed_knobs

    said = [value for name, value in typed_knobs(type(method), knobs) if name in method.budget_knobs]
    return any(isinstance(value, Share) for value in [budget.tokens, *said])


def _check_spelt(cls: type[Method], knobs: Mapping[str, Any]) -> None:
    """Raise PrunebenchError for a knob that no command can say: every cell is sealed with the command that measures it
    again."""
    from harness.method import typed_knobs

    for name, value in knobs.items():
        text, meant, read = word(value), dict(typed_knobs(cls, {name: value})), None
        if text.split() == [text]:
            with suppress(PrunebenchError):
                read = dict(typed_knobs(cls, {name: text}))
        if read != meant:
            expected = "expected a value that one word says, as 3, 25%, first, True, 2,5 or none"
            raise PrunebenchError(
                f"{cls.name}: knob {name}={value!r} cannot be spelt in a command ({name}={text}): {expected}"
            )


def _seed(text: str) -> int:
    seed = whole_number(text)
    if seed is None:
        raise PrunebenchError(f"{given('seed', text)}: expected a whole number of at least 0, or several, as in 0,1,2")
    return seed


def parse_limit(limit: str | int | None, default: int | None) -> int | None:
    """The limit as a user writes it; None means every question."""
    if limit is None or limit == "":
        return default
    if str(limit).strip().lower() == "all":
        return None
    number = natural(limit)
    if number is None:
        raise PrunebenchError(f"{given('limit', limit)}: expected a number of questions per task of at least 1, or all")
    return number
