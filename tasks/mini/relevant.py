"""Which patches show the things that a question of the embedded models' data names.

The data hold no boxes. An image's file name holds the seed of its scene, and a seed makes its scene again. An image is
known by its key (the first 16 hex digits of the sha256 of its file), so no other data set is taken for these. The data
of the mini Qwen need not be drawn: their manifest lists keys and seeds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache

from tasks.mini import data, world
from tasks.mini.qwen import data as qwen

_NAMED = re.compile(rf"\b(?:({'|'.join(world.COLOUR_NAMES)}) )?({'|'.join(world.SHAPES)}|object|sign)(?:e?s)?\b")


@lru_cache(maxsize=1)
def scenes() -> Mapping[str, world.Scene]:
    """Image key -> scene, of every image in the shipped mini data. Raises PrunebenchError where a file is missing."""
    import pyarrow.parquet as pq

    data.verify()
    found: dict[str, world.Scene] = {}
    for path in sorted(data.FOLDER.rglob("*.parquet")):
        if "image" not in pq.read_schema(path).names:
            continue
        of_set = data.SCENES[path.relative_to(data.FOLDER).parts[0]]
        images = pq.read_table(path, columns=["image"])["image"].combine_chunks()
        names = images.field("path").to_pylist()
        for name in dict.fromkeys(names):  # an image is in the row of each of its questions
            encoded = images.field("bytes")[names.index(name)].as_py()
            found[hashlib.sha256(encoded).hexdigest()[:16]] = world.make_scene(data.SQUARE.seed_of(name), **of_set)
    return found


def named(scene: world.Scene, question: str) -> tuple[world.Thing | world.Sign, ...]:
    """The things and signs of a scene that a question names, in the scene's order; a thing that is not there is none.

    A shape alone names every thing of the shape: the one that is asked about, or all that are counted. Lines behind the
    first are instructions.
    """
    found: list[world.Thing | world.Sign] = []
    for colour, word in _NAMED.findall(question.splitlines()[0].lower()):
        if word == "sign":
            found += [sign for sign in scene.signs if sign.colour == colour]
        else:
            found += [t for t in scene.things if word in (t.shape, "object") and colour in (t.colour, "")]
    return tuple(one for one in (*scene.things, *scene.signs) if one in found)


@lru_cache(maxsize=1)
def ragged() -> Mapping[str, world.Scene]:
    """Image key -> scene, of every image of the mini Qwen's data."""
    return qwen.scenes()


@lru_cache(maxsize=1 << 14)
def patches(image: str, question: str, rows: int = world.GRID, columns: int = world.GRID) -> tuple[int, ...] | None:
    """The patches of a grid, in raster order, that show the things that the question names.

    An object's are those whose area its disc covers by a fifth or more, a sign's are those of its characters
    (`world.patches_of`). Empty where the question names nothing that is there; None where the image is not of the
    embedded models' data, or has another grid there.
    """
    square = (rows, columns) == (world.GRID, world.GRID)
    scene = (scenes().get(image) if square else None) or ragged().get(image)
    if scene is None or scene.grid != (columns, rows):
        return None
    return tuple(sorted({patch for one in named(scene, question) for patch in world.patches_of(one, width=columns)}))
