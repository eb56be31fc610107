"""Does the regression gate bite? Every seeded fault of harness.proof.faults in a cut-down gate: `prunebench regress
--faults FILE`.

The cells of the methods concerned are measured without a fault and with it, on a few questions, and compared as `make
regress` compares.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.proof.faults import FAULTS, Fault, seeded
from harness.proof.gate import command
from harness.proof.gate.command import measure
from harness.proof.gate.compare import compare
from harness.proof.gate.snapshot import Snapshot

#: fewer questions and tasks than the gate has
CUT = ("limit=12", "tasks=gqa,textvqa")
#: methods in whose cells a fault is looked for, where that is not its own
ELSEWHERE: Mapping[str, str] = {
    "a prefix is used under edits that it was not computed with": "knockout",
    "a question goes on from what a prefix kept, whatever it keeps itself": "uniform",
    "what a question merges is not compared with its prefix": "pooling",
    "behind a reduction a prefix goes on unreduced": "uniform",
}
#: faults that the gate cannot see, and why
BLIND: Mapping[str, str] = {
    "decode attends padding": (
        "padding dilutes a generated token's attention a little; no answer to these questions changes"
    ),
    "prefill attends padding": (
        "padding dilutes the attention of what is left after a reduction a little; no answer to these questions changes"
    ),
    "shallow keys hidden from generated tokens are attended": (
        "only tokens after the first see them; no answer to these questions changes"
    ),
    "the model's attention kernel is not restored": "the gate runs nothing outside a method's block",
    "a second attach is accepted": "the gate attaches one method at a time",
    "a prefix is used under edits that it was not computed with": (
        "every shipped method that edits visual rows names the prefix they make"
    ),
    "a question goes on from what a prefix kept, whatever it keeps itself": (
        "every shipped method that says image_only keeps by the image alone"
    ),
    "what a question merges is not compared with its prefix": (
        "every shipped method that says image_only merges by the image alone"
    ),
    "behind a reduction a prefix goes on unreduced": (
        "no shipped method that says image_only looks at the layer in which it reduces"
    ),
    "a quota of the first prompt's tokens for every prompt": "all prompts of the gate have as many visual tokens",
}
UNASKED = "no shipped method asks this"


def blind(fault: Fault) -> str | None:
    """Why the gate cannot see a fault; None where it must."""
    return BLIND.get(fault.name) or (UNASKED if _unasked(fault) else None)


def _unasked(fault: Fault) -> bool:
    """Is the fault looked for in a method that is not shipped?"""
    return ".py:" in fault.method


@dataclass(frozen=True)
class FaultInGate:
    """`reasons`: why the gate fails under the fault; none: it does not."""

    fault: Fault
    reasons: tuple[str, ...]


def sound(fault: Fault, config: Path) -> Snapshot:
    """The cut-down run for a fault, without it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        return measure(config, Path(folder), _cut(fault), say=_silent)


def try_gate(fault: Fault, config: Path, before: Snapshot) -> FaultInGate:
    """The gate under the fault. A run that stops is a failure as well."""
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()), seeded(fault):
            after = measure(config, Path(folder), _cut(fault), say=_silent)
    except Exception as error:  # a fault may raise anything
        return FaultInGate(
            fault, (f"the run stops: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",)
        )
    found = compare(before, after)
    return FaultInGate(fault, (*found.first, *found.failures))


def _cut(fault: Fault) -> tuple[str, ...]:
    name = ELSEWHERE.get(fault.name, fault.method)
    return (*CUT, f"methods={name}")


def _silent(text: str) -> None:
    """Says nothing."""


def try_all(
    config: Path = command.CONFIG, faults: Sequence[Fault] = FAULTS, say: Callable[[str], None] = print
) -> list[FaultInGate]:
    """Every fault in turn; minutes."""
    before: dict[tuple[str, ...], Snapshot] = {}
    tried = []
    for fault in faults:
        if _unasked(fault):
            tried.append(FaultInGate(fault, ()))
            continue
        if _cut(fault) not in before:
            before[_cut(fault)] = sound(fault, config)
        tried.append(try_gate(fault, config, before[_cut(fault)]))
        say(
            f"{'caught  ' if tried[-1].reasons else 'not seen'}  {fault.name}"
            + (f": {tried[-1].reasons[0]}" if tried[-1].reasons else "")
        )
    return tried


def unexpected(tried: Sequence[FaultInGate]) -> list[str]:
    """Faults that the gate did not see without a known reason, and known reasons that do not hold."""
    return [
        f"{t.fault.name}: " + ("caught, although listed as invisible" if t.reasons else "not seen")
        for t in tried
        if bool(t.reasons) == (blind(t.fault) is not None)
    ]


def markdown(tried: Sequence[FaultInGate]) -> str:
    """Which faults the gate catches, by what, and which it cannot."""
    caught = [t for t in tried if t.reasons]
    lines = [
        "# Seeded faults and the regression gate",
        "",
        (
            "Written by `prunebench regress --faults`. Each fault replaces one piece of one function while a part of"
            " configs/regress.yaml runs"
        ),
        f"({' '.join(CUT)}, the methods concerned), and the result is compared with the same run without it.",
        "",
        f"{len(caught)} of {len(tried)} faults caught.",
        "",
        "| fault | seeded in | caught | first reason, of how many |",
        "|---|---|---|---|",
    ]
    for t in tried:
        why = f"{t.reasons[0].replace('|', '/')} ({len(t.reasons)})" if t.reasons else blind(t.fault) or "**unknown**"
        lines.append(f"| {t.fault.name} | `{t.fault.where}` | {'yes' if t.reasons else '**no**'} | {why} |")
    return "\n".join(lines) + "\n"
