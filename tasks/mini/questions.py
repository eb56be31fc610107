"""Questions about scenes of the mini world, with exact answers.

A question follows from a scene and a `random.Random`; scenes and their rendering are in world.py.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import NamedTuple

from tasks.mini.world import CELL, CODE_CHARS, COLOUR_NAMES, FREQUENT_COLOURS, FREQUENT_SHAPES, SHAPES, Scene, Thing


class WorldQuestion(NamedTuple):
    """`kind` names the skill (logged per kind in training), `answer` is lower case except for codes."""

    kind: str
    text: str
    answer: str


def article(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word


def _unique(scene: Scene, attribute: str) -> list[Thing]:
    counts = Counter(getattr(t, attribute) for t in scene.things)
    return [t for t in scene.things if counts[getattr(t, attribute)] == 1]


def _reference(rng: random.Random, scene: Scene, thing: Thing) -> str:
    """How a question names the object: by its full name, or by its shape alone where that is unambiguous."""
    if rng.random() < 0.3 and thing in _unique(scene, "shape"):
        return thing.shape
    return thing.name


def _separated(a: Thing, b: Thing, axis: str) -> bool:
    gap: float = abs(getattr(a, axis) - getattr(b, axis))
    return gap >= CELL


def _pair(rng: random.Random, scene: Scene, axis: str) -> tuple[Thing, Thing] | None:
    pairs = [(a, b) for a in scene.things for b in scene.things if a is not b and _separated(a, b, axis)]
    return rng.choice(pairs) if pairs else None


def negative_name(rng: random.Random, scene: Scene, how: str) -> tuple[str, str] | None:
    """(shape, colour) of an object that is not there; `how` is random, popular or adversarial (POPE's three splits)."""
    present = {(t.shape, t.colour) for t in scene.things}
    if how == "random":
        pool = [(s, c) for s in SHAPES for c in COLOUR_NAMES]
    elif how == "popular":
        pool = [(s, c) for s in FREQUENT_SHAPES for c in FREQUENT_COLOURS]
    elif how == "adversarial":  # both words occur in the scene, on different objects
        shapes, colours = {t.shape for t in scene.things}, {t.colour for t in scene.things}
        pool = [(s, c) for s in sorted(shapes) for c in sorted(colours)]
    else:
        raise ValueError(f"unknown kind of negative {how!r}; expected random, popular or adversarial")
    pool = [n for n in pool if n not in present]
    return rng.choice(pool) if pool else None


NEGATIVES = ("random", "popular", "adversarial")
#: `code_is` and `starts` (comparing codes) are neither trained nor asked in the shipped data, see train.py; their words
#: are in the vocabulary
KINDS = (
    "exist",
    "colour",
    "shape",
    "relation",
    "side",
    "verify",
    "position",
    "count",
    "code",
    "code_is",
    "same",
    "starts",
)


def ask(
    kind: str, scene: Scene, rng: random.Random, positive: bool | None = None, negative: str | None = None
) -> WorldQuestion | None:
    """One question of a kind about a scene, or None where the scene has nothing to ask it about.

    `positive` fixes the answer of yes/no questions (default: a fair coin), `negative` the kind of absent object.
    """
    things = scene.things
    yes = rng.random() < 0.5 if positive is None else positive
    say = "yes" if yes else "no"
    if kind == "exist":
        if yes:
            thing = rng.choice(things)
            name = f"{thing.colour} {thing.shape}"
        else:
            absent = negative_name(rng, scene, negative or rng.choice(NEGATIVES))
            if absent is None:
                return None
            name = f"{absent[1]} {absent[0]}"
        return WorldQuestion(kind, f"Is there {article(name)} in the image?", say)
    if kind == "colour":
        pool = _unique(scene, "shape")
        return WorldQuestion(kind, f"What color is the {(t := rng.choice(pool)).shape}?", t.colour) if pool else None
    if kind == "shape":
        pool = _unique(scene, "colour")
        return (
            WorldQuestion(kind, f"What shape is the {(t := rng.choice(pool)).colour} object?", t.shape)
            if pool
            else None
        )
    if kind == "relation":
        axis = rng.choice("xy")
        pair = _pair(rng, scene, axis)
        if pair is None:
            return None
        a, b = pair
        names = _reference(rng, scene, a), _reference(rng, scene, b)
        if axis == "x":
            text = f"Is the {names[0]} to the left or to the right of the {names[1]}?"
            return WorldQuestion(kind, text, "left" if a.x < b.x else "right")
        return WorldQuestion(
            kind, f"Is the {names[0]} above or below the {names[1]}?", "above" if a.y < b.y else "below"
        )
    if kind == "side":  # where one object is; also the stepping stone towards comparing two
        axis = rng.choice("xy")
        middle = scene.size["xy".index(axis)] / 2
        pool = [t for t in things if abs(getattr(t, axis) - middle) > CELL / 2]
        if not pool:
            return None
        t = rng.choice(pool)
        low = getattr(t, axis) < middle
        name = _reference(rng, scene, t)
        if axis == "x":
            return WorldQuestion(
                kind, f"Is the {name} on the left or on the right side of the image?", "left" if low else "right"
            )
        return WorldQuestion(
            kind, f"Is the {name} at the top or at the bottom of the image?", "top" if low else "bottom"
        )
    if kind == "verify":
        pool = _unique(scene, "shape")
        if not pool:
            return None
        t = rng.choice(pool)
        colour = t.colour if yes else rng.choice([c for c in COLOUR_NAMES if c != t.colour])
        return WorldQuestion(kind, f"Is the {t.shape} {colour}?", say)
    if kind == "position":
        axis = rng.choice("xy")
        pair = _pair(rng, scene, axis)
        if pair is None:
            return None
        a, b = pair
        before = getattr(a, axis) < getattr(b, axis)
        word = {
            ("x", True): "to the left of",
            ("x", False): "to the right of",
            ("y", True): "above",
            ("y", False): "below",
        }[axis, before == yes]
        return WorldQuestion(kind, f"Is the {a.name} {word} the {b.name}?", say)
    if kind == "count":
        words = ("no", "one", "two", "three", "four")
        shape = rng.choice(SHAPES)
        n = min(sum(t.shape == shape for t in things), 4)
        if n == 0:
            shape = rng.choice(things).shape
            n = min(sum(t.shape == shape for t in things), 4)
        said = n if yes else rng.choice([k for k in (1, 2, 3) if k != n])
        if said == 4:
            return None
        noun = shape if said == 1 else (shape + "es" if shape.endswith("s") else shape + "s")
        return WorldQuestion(
            kind, f"{'Is' if said == 1 else 'Are'} there exactly {words[said]} {noun} in the image?", say
        )
    if kind == "same":
        if len(things) < 2:
            return None
        pairs = [
            (a, b)
            for a in things
            for b in things
            if a is not b and (a.shape == b.shape) == yes and a.colour != b.colour
        ]
        unique = set(_unique(scene, "colour"))
        pairs = [(a, b) for a, b in pairs if a in unique and b in unique]
        if not pairs:
            return None
        a, b = rng.choice(pairs)
        return WorldQuestion(kind, f"Do the {a.colour} object and the {b.colour} object have the same shape?", say)
    if not scene.signs:
        return None
    sign = rng.choice(scene.signs)
    if kind == "code":
        return WorldQuestion(kind, f"What is written on the {sign.colour} sign?", sign.code)
    if kind == "code_is":
        code = sign.code if yes else "".join(rng.choice(CODE_CHARS) for _ in range(3))
        return WorldQuestion(
            kind, f"Is the code on the {sign.colour} sign {code}?", "yes" if code == sign.code else "no"
        )
    if kind == "starts":
        char = sign.code[0] if yes else rng.choice([c for c in CODE_CHARS if c != sign.code[0]])
        return WorldQuestion(kind, f"Does the code on the {sign.colour} sign start with {char}?", say)
    raise ValueError(f"unknown kind of question {kind!r}; expected one of {', '.join(KINDS)}")


#: what lmms-eval's tasks append to every question of these four data sets
POST_PROMPT = "\nAnswer the question using a single word or phrase."


def ocr_suffix(scene: Scene) -> str:
    """What the TextVQA task inserts after the question when OCR tokens are on."""
    return f"\nReference OCR token: {', '.join(s.code for s in scene.signs)}"
