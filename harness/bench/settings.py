"""What `prunebench bench` is asked for, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields

from harness.core.command import check_no_comma, rendered
from harness.core.errors import PrunebenchError, unknown
from harness.runner.pace import check_batch

BARE, NONE = "bare model", "none"
PACKAGES = ("prunebench", "transformers")
#: of tokens and repeats
MOST = 1_000_000


@dataclass(frozen=True)
class Settings:
    """What a user asks for. `layers` None: the model's own depth."""

    model: str = "mini"
    random_weights: bool = False
    layers: int | None = None
    methods: Sequence[str] = ("none", "fastv", "sparsevlm", "visipruner")
    budgets: Sequence[str] = ("192", "128", "64")
    batches: Sequence[int] = (1, 8)
    text_tokens: int = 74
    new_tokens: int = 16
    repeats: int = 10
    warmup: int = 2
    knobs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by method
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"text_tokens": 2, "new_tokens": 2, "repeats": 1, "warmup": 0, "layers": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= MOST:
                bound = f"at least {low}" if value < low else f"at most {MOST:,}"
                raise PrunebenchError(f"--{name.replace('_', '-')} {value}: expected {bound}")
        if not 0 <= self.seed < 2**63:  # a generator of torch takes no other
            raise PrunebenchError(f"--seed {self.seed}: expected a whole number from 0 to {2**63 - 1}")
        for option, listed in (("methods", self.methods), ("budgets", self.budgets), ("batch", self.batches)):
            if not listed or len(set(listed)) < len(listed):
                raise PrunebenchError(
                    f"--{option}: expected one or several different ones, found {', '.join(map(str, listed)) or 'none'}"
                )
        check_batch(min(self.batches))
        if self.layers is not None and not self.random_weights:
            raise PrunebenchError(
                f"--layers {self.layers} works only with --random-weights: a trained model cut to its first layers"
                " gives meaningless output"
            )
        check_no_comma(self.methods)
        for name, knobs in self.knobs.items():
            if name not in self.methods:
                raise unknown("method in --set METHOD.knob=value", name, self.methods)
            for knob, value in knobs.items():
                _check_spelt(name, knob, value)

    def command(self) -> str:
        """The command line that gives these settings; defaults left out."""
        words = ["prunebench", "bench"]
        for f in fields(self):
            value, option = getattr(self, f.name), "--" + {"batches": "batch"}.get(f.name, f.name).replace("_", "-")
            if f.name == "knobs":
                words += [
                    w for name, knobs in value.items() for k, v in knobs.items() for w in ("--set", f"{name}.{k}={v}")
                ]
            elif f.name == "random_weights":
                words += [option] if value else []
            elif value != f.default:
                words += [
                    option,
                    (
                        ",".join(map(str, value))
                        if isinstance(value, Sequence) and not isinstance(value, str)
                        else str(value)
                    ),
                ]
        return rendered(words)


def knobs_by_method(items: Sequence[str]) -> dict[str, dict[str, str]]:
    """`["fastv.boundary=3 random.boundary=2", "my file.py:Mine.keep=1"]` -> knobs by method. A method's name may hold
    blanks, and no =.

    Raises PrunebenchError for what is not METHOD.knob=value, and for a knob that stands twice.
    """
    found: dict[str, dict[str, str]] = {}
    for item in items:
        rest = item
        while rest.strip():
            pair = re.match(r"\s*([^=]*\S)\.([^=.\s]+)=(\S+)", rest)
            if pair is None:
                raise PrunebenchError(f"--set {rest.strip()}: expected METHOD.knob=value, as in --set fastv.boundary=3")
            name, knob, value = pair.groups()
            if knob in found.setdefault(name, {}):
                raise PrunebenchError(
                    f"--set {name}.{knob}={value}: it is given twice, as {found[name][knob]} before: give it once"
                )
            found[name][knob] = value
            rest = rest[pair.end() :]
    return found


def _check_spelt(name: str, knob: str, value: str) -> None:
    """Raise PrunebenchError for a knob that `Settings.command` could not say."""
    said = f"{name}.{knob}={value}"
    with suppress(PrunebenchError):
        if knobs_by_method([said]) == {name: {knob: value}}:
            return
    raise PrunebenchError(
        f"--set {said!r} cannot be spelt: expected a method's name without =, and a value without blanks: rename the"
        " file"
    )
