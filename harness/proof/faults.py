"""Do the tests bite? Seeded faults that the conformance kit or a recorded official run must catch: `prunebench
mutations`.

A fault is one piece of one function's source replaced while the kit and a few golden cases run. The function object
stays and only its code changes, so every module that imported it sees the fault. A fault that nothing catches fails the
command. Faults in what questions about one image share are looked for where they can be seen: in answers with sharing
and without.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import import_module
from importlib.resources import files
from types import FunctionType
from typing import Any

import torch
import yaml

from harness.core.errors import PrunebenchError
from harness.core.paths import TOP
from harness.method import Attention, Method, Reduction, Run, Stream, Traits, method_class
from harness.proof.conformance.kit import check, one_thread
from harness.proof.conformance.tiny import tiny_model
from harness.proof.golden_compare import LOGIT_TOLERANCE, compare
from harness.proof.golden_files import load_index, read_case
from harness.proof.goldens import method_of, replay
from methods.knockout import Knockout
from methods.pooling import Pooling
from methods.random import Random

GOLDENS = TOP / "tests" / "goldens"


@dataclass(frozen=True)
class Fault:
    """`where` is "module:function" or "module:Class.function"; `old` stands once in its source and becomes `new`.

    `method` with `knobs` goes through the kit, `cases` are replayed; where `sharing`, it answers with shared prefixes
    and without instead (neither kit nor cases share any).
    """

    name: str
    where: str
    old: str
    new: str
    method: str
    cases: tuple[str, ...] = ()
    knobs: Mapping[str, Any] = field(default_factory=dict)
    sharing: bool = False


@dataclass(frozen=True)
class Drawn(Random):
    """Draws for every question and says that the image alone decides."""

    name = "drawn"
    traits = Traits(query_aware=False, image_only=True)


@dataclass(frozen=True)
class Weighted(Pooling):
    """Merges otherwise for every question and says that the image alone decides."""

    name = "weighted"

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        reduction = super().at_boundary(run, layer, stream)
        if reduction is None or reduction.added is None:
            return None
        text = (
            stream.after.sum(1, keepdim=True)
            if stream.after.shape[1]
            else torch.zeros(1, device=reduction.added.device)
        )
        return replace(reduction, added=reduction.added + 0.05 * text)


@dataclass(frozen=True)
class Regarded(Method):
    """Drops every third visual token before the first layer, then those that the visual rows of that layer regard
    least."""

    name = "regarded"
    traits = Traits(query_aware=False, image_only=True)
    budget_knobs = ()

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        if layer == 0:
            run.memo["regard"] = attn.visual_probs("visual", heads="mean").values[:, 0].sum(1)

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        valid = run.visual_valid
        if layer == 0:
            return Reduction(valid & (torch.arange(valid.shape[1], device=valid.device) % 3 > 0))
        regard = run.memo["regard"]
        return Reduction(valid & (regard > regard.mean(1, keepdim=True))) if layer == 1 else None


@dataclass(frozen=True)
class Unannounced(Knockout):
    """Edits visual rows and names no prefix for it: it may share up to its first edit only."""

    name = "unannounced"

    def prefix_key(self) -> str:
        return ""


def _read() -> tuple[Fault, ...]:
    """The faults of faults.yaml; a method's file is meant from the repository's root."""
    document = yaml.safe_load((files("harness.proof") / "faults.yaml").read_text(encoding="utf-8"))
    found = []
    for entry in document["faults"]:
        method = str(TOP / entry["method"]) if ".py:" in entry["method"] else entry["method"]
        cases = tuple(case for group in entry.get("cases", ()) for case in document["cases"][group])
        found.append(Fault(**{**entry, "method": method, "cases": cases}))
    return tuple(found)


FAULTS = _read()


@dataclass(frozen=True)
class Caught:
    """`kit`: properties that fail under the fault; `cases`: golden cases that no longer reproduce, of `fault.cases`;
    `sharing`: what differs between answers with shared prefixes and without."""

    fault: Fault
    kit: tuple[str, ...]
    cases: tuple[str, ...]
    sharing: tuple[str, ...] = ()

    @property
    def survived(self) -> bool:
        return not self.kit and not self.cases and not self.sharing


def _function(where: str) -> FunctionType:
    module, _, path = where.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        found = inspect.getattr_static(found, part)
    if isinstance(found, property):
        found = found.fget
    if isinstance(found, cached_property):
        found = found.func
    found = getattr(found, "__func__", found)
    unwrapped = inspect.unwrap(found)
    if not isinstance(unwrapped, FunctionType):
        raise PrunebenchError(f"fault in {where}: expected a function, found {unwrapped!r}")
    return unwrapped


@contextmanager
def seeded(fault: Fault) -> Iterator[None]:
    """The fault is in the code inside the block. Raises PrunebenchError where its `old` does not stand exactly once."""
    function = _function(fault.where)
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(fault.old) != 1:
        raise PrunebenchError(
            f"fault {fault.name!r}: expected {fault.old!r} once in {fault.where}, found it {source.count(fault.old)}"
            " times"
        )
    lines = source.replace(fault.old, fault.new).splitlines(keepends=True)
    while lines[0].startswith("@"):  # decorators are one line each here
        lines.pop(0)
    names: dict[str, Any] = dict(function.__globals__)
    exec(compile("from __future__ import annotations\n" + "".join(lines), f"<fault: {fault.name}>", "exec"), names)
    sound, function.__code__ = function.__code__, names[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = sound


def failing_properties(method: str, knobs: Mapping[str, Any]) -> tuple[str, ...]:
    """The kit's failures; a method that can no longer be built fails as a whole."""
    try:
        return tuple(v.name for v in check(method_class(method), knobs=knobs) if v.status == "FAIL")
    except PrunebenchError:
        return ("can be built",)


def failing_cases(cases: Sequence[str]) -> tuple[str, ...]:
    """The golden cases that do not reproduce; one that raises does not either."""
    files = {entry["id"]: entry["file"] for entry in load_index(GOLDENS)}
    failing = []
    for name in cases:
        case = read_case(GOLDENS, files[name])
        try:
            reproduced = compare(case, replay(GOLDENS, case, method_of(GOLDENS, case))).mismatch is None
        except Exception:  # a fault may raise anything
            reproduced = False
        if not reproduced:
            failing.append(name)
    return tuple(failing)


@cache
def _asked() -> tuple[Any, list[Any]]:
    """The mini model, and questions of unlike length on two of its images."""
    from harness.models.load import locate_model
    from harness.runner.answering import Prompt
    from tasks import lmms
    from tasks.sources import DataSource

    samples = lmms.load_task("textvqa", DataSource.parse("mini"), 24, 0).samples
    images = list({s.image_key: s for s in samples}.values())[:2]
    prompts = [
        Prompt.of_one(f"{s.key}-{n}", s.prompt + n * " x x x", s.load_image, s.image_key, 4)
        for s in images
        for n in (0, 2, 7)
    ]
    return locate_model("mini", "cpu", "float32").load(), prompts


def failing_sharing(method: str, knobs: Mapping[str, Any]) -> tuple[str, ...]:
    """What differs between answers with shared prefixes and without, on the mini model: answers, first logits, kept
    tokens, costs."""
    from harness.core import budget
    from harness.engine.prefix import PrefixCache
    from harness.method import build
    from harness.runner.answering import Answerer

    class Watched(Answerer):
        """Notes the logits of the first new token, by sample: a small error need not change an answer."""

        def _decode(self, logits: Any, cache: Any, batch: Any) -> list[list[int]]:
            first.update({p.key: row.clone() for (_, p), row in zip(batch, logits, strict=True)})
            return super()._decode(logits, cache, batch)

    loaded, prompts = _asked()
    asks = budget.parse("48") if method_class(method).budget_knobs else budget.NONE
    built: Method = build(method, asks, knobs, loaded.usual)
    found = []
    for prefixes in (None, PrefixCache()):
        first: dict[str, Any] = {}
        try:
            answers = list(Watched(loaded, built, batch_size=4, prefixes=prefixes).answer(prompts))
            found.append({a.key: (a.text, first[a.key], a.kept, a.cost) for a in answers})
        except Exception as error:  # a fault may raise anything
            return (f"the run stops ({type(error).__name__})",)
    alone, shared = found
    differs = {
        "answers": any(alone[key][0] != shared[key][0] for key in alone),
        "logits": max(float((alone[key][1] - shared[key][1]).abs().max()) for key in alone) > LOGIT_TOLERANCE,
        "kept tokens": any(alone[key][2] != shared[key][2] for key in alone),
        "costs": any(alone[key][3] != shared[key][3] for key in alone),
    }
    return tuple(name for name, other in differs.items() if other)


def try_fault(fault: Fault) -> Caught:
    """Run the kit and the golden cases, or answers with and without shared prefixes, with the fault in place."""
    if fault.sharing:
        with one_thread(), seeded(fault):
            return Caught(fault, (), (), failing_sharing(fault.method, fault.knobs))
    with one_thread(), seeded(fault):
        kit, cases = failing_properties(fault.method, fault.knobs), failing_cases(fault.cases)
    if "exception restores the model" in kit:
        tiny_model.cache_clear()  # the fault may have left the models spoilt
    return Caught(fault, kit, cases)


def try_sound(faults: Sequence[Fault] = FAULTS) -> None:
    """Raises PrunebenchError unless kit and golden cases pass without a fault: a test that always fails catches
    everything."""
    subjects: list[tuple[str, dict[str, Any], bool]] = []
    for fault in faults:
        subject = fault.method, dict(fault.knobs), fault.sharing
        subjects += [subject] * (subject not in subjects)
    for method, knobs, sharing in subjects:
        failing = (failing_sharing if sharing else failing_properties)(method, knobs)
        if failing:
            test = "answers otherwise with shared prefixes" if sharing else "fails the kit"
            raise PrunebenchError(f"{method} {test} without any fault: {', '.join(failing)}")
    failing = failing_cases(sorted({case for f in faults for case in f.cases}))
    if failing:
        raise PrunebenchError(f"cases that do not reproduce without any fault: {', '.join(failing)}")


def markdown(caught: Sequence[Caught]) -> str:
    """Who caught what, as a table; no numbers that depend on the machine."""
    survived = [c.fault.name for c in caught if c.survived]
    by_kit, by_cases, by_sharing = (
        sum(map(bool, found)) for found in zip(*((c.kit, c.cases, c.sharing) for c in caught), strict=True)
    )
    lines = [
        "# Seeded faults, and what caught them",
        "",
        "Written by `prunebench dev mutations`. Each fault replaces one piece of one function while the conformance",
        "kit (`prunebench check`) and some recorded runs of the official implementations (`tests/goldens`) run.",
        "",
        (
            f"{len(caught) - len(survived)} of {len(caught)} faults caught: {by_kit} by the kit, {by_cases} by recorded"
            f" runs (of the {sum(bool(c.fault.cases) for c in caught)} that were replayed on them), {by_sharing} (of"
            f" {sum(c.fault.sharing for c in caught)} in what"
        ),
        "questions about one image share) by answers with shared prefixes and without.",
        "",
        "| fault | seeded in | kit: failing properties | recorded runs: failing | sharing: what differs |",
        "|---|---|---|---|---|",
    ]
    for c in caught:
        kit = "; ".join(c.kit[:3]) + (f"; {len(c.kit) - 3} more" if len(c.kit) > 3 else "")
        shown = ", ".join(c.cases[:2]) + ("..." if len(c.cases) > 2 else "")
        cases = (
            f"{len(c.cases)} of {len(c.fault.cases)}" + (f" ({shown})" if c.cases else "")
            if c.fault.cases
            else "not replayed"
        )
        kit = kit or ("**SURVIVED**" if c.survived else "not run" if c.fault.sharing else "none")
        sharing = ", ".join(c.sharing) or ("none" if c.fault.sharing else "not run")
        lines.append(f"| {c.fault.name} | `{c.fault.where}` | {kit} | {cases} | {sharing} |")
    return "\n".join(lines) + "\n"
