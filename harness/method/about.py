"""What a table says about a method, read from its class: nothing of it is typed a second time.

Counts and layers are those of LLaVA-1.5-7B, on which the methods here were published.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

from harness.core.budget import NONE, Budget
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES, PromptShape, VisionShape
from harness.method.build import build
from harness.method.fits import PER_IMAGE
from harness.method.interface import Method, Published, TowerLook, What
from harness.method.knob_values import TextTower
from harness.method.registry import blaming

SHAPE = "llava-1.5-7b"
#: text tokens of the prompt that schedules are made for, and the budget at which a method's looks are asked
TEXT_TOKENS, TOKENS = 74, 64
#: looks that need a tower with [CLS], and looks in words
OF_CLS: tuple[What, ...] = ("cls_row", *PER_IMAGE)
LOOKS: dict[What, str] = {
    "cls_row": "[CLS] row",
    "column_sums": "all attention rows, some at a time,",
    "whole_column_sums": "all attention rows over the whole image, some at a time,",
    "keys": "keys",
    "twice_rotated_sums": "all attention rows under twice the RoPE, some at a time,",
    "hidden": "states",
    "mean_hidden": "states",
    "cls_hidden": "[CLS] state",
    "cls_query": "[CLS] query",
    "cls_key": "[CLS] key",
}
#: columns of a terminal
WIDTH = 110


@dataclass(frozen=True)
class About:
    """What is known of one method. Texts are for people; an empty one is not known, or does not apply."""

    name: str
    summary: str
    paper: str
    published: Published | None
    kind: str
    """Where it decides: "image" (the tokens of the image before the language model), "tower" (what the vision tower
    says of them), "language model", "adaptive" (in layers that the prompt decides); or "control", "study"."""
    query_aware: bool
    needs_cls: bool
    beside: str
    """What is computed or read beside the fused attention kernels, which every method keeps."""
    native: str
    knobs: tuple[str, ...]
    traits: tuple[str, ...]
    differs: str
    on_mini: str
    """A reason why the mini model is no fair ground for the method."""

    @property
    def official(self) -> str:
        """The official code in one word: "pkunlp-icler/FastV @ d1659729"."""
        return f"{self.published.repository} @ {self.published.commit}" if self.published else ""

    @property
    def official_link(self) -> str:
        return f"https://github.com/{self.published.repository}/tree/{self.published.commit}" if self.published else ""


def about(cls: type[Method]) -> About:
    """What a class says of itself, and what it does on LLaVA-1.5-7B."""
    prompt = SHAPES[SHAPE].with_text(TEXT_TOKENS)
    method = _example(cls, prompt)
    with blaming(cls.name):
        looks = tuple(method.looks(prompt.decoder)) if method is not None else ()
    text = _document(cls)
    said = [trait.replace("_", " ") for trait, holds in dataclasses.asdict(cls.traits).items() if holds]
    return About(
        cls.name,
        " ".join(text.split("\n\n")[0].split()),
        cls.paper,
        cls.published,
        _kind(cls, method, looks, prompt),
        cls.traits.query_aware,
        any(look.what in OF_CLS for look in looks),
        _beside(cls, looks, prompt.images[0].vision),
        _native(cls, prompt),
        tuple(_knob(f) for f in dataclasses.fields(cls)),
        tuple(said),
        differs(text),
        _behind("On mini:", text),
    )


def differs(text: str) -> str:
    """The known differences from the official code in the text of a method's file: all behind "Differs:" in its
    paragraph."""
    return _behind("Differs:", text)


def _behind(word: str, text: str) -> str:
    found = re.search(rf"\b{word}\s*(.*?)(?:\n\s*\n|\Z)", text, re.S)
    return " ".join(found[1].split()) if found else ""


def _document(cls: type[Method]) -> str:
    return (sys.modules[cls.__module__].__doc__ or cls.__doc__ or "").strip()


def _knob(field: dataclasses.Field[Any]) -> str:
    return field.name if field.default is dataclasses.MISSING else f"{field.name}={field.default}"


def _example(cls: type[Method], prompt: PromptShape) -> Method | None:
    """The method as it is usually asked; None where it cannot be built without knobs of the user."""
    try:
        return build(cls, Budget("kept", TOKENS) if cls.budget_knobs else NONE, {}, prompt)
    except PrunebenchError:
        return None


def _kind(cls: type[Method], method: Method | None, looks: tuple[TowerLook, ...], prompt: PromptShape) -> str:
    if cls.published is None and cls.__module__.startswith("methods."):  # a stranger's method is of its own kind
        return "study" if cls.paper and not cls.budget_knobs else "control"
    if looks:
        return "tower"
    plan = method.plan(prompt) if method is not None else None
    if plan is not None and plan[0] < prompt.n_visual:
        return "image"
    return "adaptive" if cls.traits.adaptive else "language model"


def _beside(cls: type[Method], looks: tuple[TowerLook, ...], vision: VisionShape) -> str:
    layers: dict[What, list[int]] = {}
    for look in looks:
        layers.setdefault(look.what, []).append(look.layer % vision.layers_used)
    at: dict[str, list[str]] = {}
    for what, found in layers.items():
        at.setdefault(" and ".join(map(str, found)), []).append(LOOKS[what])
    parts = [f"{', '.join(seen)} of tower layer{'s' * (' ' in where)} {where}" for where, seen in at.items()]
    if any(hint is TextTower or TextTower in get_args(hint) for hint in get_type_hints(cls).values()):
        parts.append("the text tower")
    # at a boundary a method asks for rows of the coming layer by this name
    if cls.on_attention is not Method.on_attention or "coming_probs" in cls.at_boundary.__code__.co_names:
        parts.append("attention rows of the decoder")
    if cls.traits.edits_attention:
        parts.append("edited rows a second time")
    return ", ".join(parts) or "nothing"


def _native(cls: type[Method], prompt: PromptShape) -> str:
    """The tokens that stay under the published defaults, and their mean over the layers where that is another
    number."""
    try:
        plan = build(cls, Budget("native"), {}, prompt).plan(prompt)
    except PrunebenchError:
        return "none"
    if plan is None:
        return "by the prompt" if cls.traits.query_aware else "by the image"
    mean = sum(plan) / len(plan)
    return f"{plan[-1]}" if mean == plan[-1] else f"{plan[-1]} ({mean:.1f} a layer)"


# --------------------------------------------------------------------------------------------------------- the terminal


def table(found: Iterable[About]) -> str:
    """One line a method."""
    head = ["method", "kind", "reads the\nquestion", "needs\n[CLS]", "tokens at native", "venue", "paper"]
    rows = [
        [
            one.name,
            one.kind,
            "yes" if one.query_aware else "no",
            "yes" if one.needs_cls else "no",
            one.native,
            one.published.venue if one.published else "",
            re.sub(r"^https://arxiv\.org/abs/", "arXiv ", one.paper),
        ]
        for one in found
    ]
    return str(tabulate(rows, headers=head, disable_numparse=True))


def card(one: About) -> str:
    """One method in full."""
    made = one.published
    lines = {
        "": one.summary,
        "kind": one.kind,
        "paper": ", ".join(filter(None, (one.paper, made.venue if made else ""))),
        "official code": one.official_link,
        "licence there": made.licence if made else "",
        "question": "read" if one.query_aware else "not read",
        "[CLS]": "needed" if one.needs_cls else "not needed",
        "SDPA": f"kept; beside the fused kernel: {one.beside}",
        "native": f"{one.native}: tokens of {SHAPE}" if one.native[0].isdigit() else one.native,
        "knobs": ", ".join(one.knobs) or "none",
        "traits": ", ".join(one.traits) or "none",
        "differs": one.differs,
        "on mini": one.on_mini,
    }
    return "\n".join(_entry(what or one.name, text) for what, text in lines.items() if text)


def _entry(what: str, text: str) -> str:
    indent = 15
    first = f"{what:<{indent}}" if len(what) < indent else f"{what}  "
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
