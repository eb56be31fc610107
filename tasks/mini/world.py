"""The mini world: synthetic scenes and their rendering to pixels. questions.py asks about them.

A scene is 336 x 336 pixels, 24 x 24 patches of 14 px as in LLaVA-1.5. An 8 x 8 lattice of 42 px cells (3 x 3 patches)
holds objects (one of 8 shapes in one of 8 colours, radius 9 to 15 px, jittered inside the cell) and signs (a coloured
panel with a code of 3 characters, one patch per character). A few tokens carry each thing, which is what pruning has to
find. Scenes of other lattices (`RAGGED`) are for models whose images differ in size.

Everything is a pure function of a seed (`random.Random` and numpy's PCG64), so data can be rebuilt bit for bit with the
pinned Pillow. Test scenes and training scenes draw from disjoint seed ranges (`TEST_SEED_BASE`).
"""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

IMAGE_SIZE = 336
PATCH = 14
GRID = IMAGE_SIZE // PATCH  # 24 patches a side
LATTICE = 8
CELL = IMAGE_SIZE // LATTICE  # 42 px = 3 patches
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 222),
    "yellow": (250, 214, 30),
    "purple": (140, 50, 170),
    "orange": (246, 132, 24),
    "white": (250, 250, 250),
    "black": (14, 14, 14),
}
COLOUR_NAMES = tuple(COLOURS)
#: characters on signs; 0/O and 1/I are left out because they look alike at 14 px
CODE_CHARS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
RELATIONS = ("left", "right", "above", "below", "top", "bottom")
#: training seeds lie below, test seeds at or above
TEST_SEED_BASE = 1 << 40
#: shapes and colours drawn more often than others, for POPE's "popular" negatives
FREQUENT_SHAPES = ("circle", "square", "triangle")
FREQUENT_COLOURS = ("red", "green", "blue")


@dataclass(frozen=True)
class Thing:
    """An object: `(x, y)` is its centre and `radius` its size, all in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Sign:
    """A coloured panel filling lattice cell `(column, row)` with one character per patch of the cell's middle row."""

    colour: str
    code: str
    column: int
    row: int


@dataclass(frozen=True)
class Scene:
    seed: int
    things: tuple[Thing, ...]
    signs: tuple[Sign, ...]
    #: lattice cells a row and a column
    lattice: tuple[int, int] = (LATTICE, LATTICE)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.lattice[0] * CELL, self.lattice[1] * CELL

    @property
    def grid(self) -> tuple[int, int]:
        """(columns, rows) of its patches."""
        return self.size[0] // PATCH, self.size[1] // PATCH


# --------------------------------------------------------------------------------------------------------------- scenes


#: (columns, rows) of the lattices of images that differ in size: 108 to 594 patches, sides at most 3 to 1
RAGGED = tuple(
    (columns, rows)
    for columns in range(3, 12)
    for rows in range(3, 12)
    if 12 <= columns * rows <= 66 and max(columns, rows) <= 3 * min(columns, rows)
)


def lattice_of(seed: int) -> tuple[int, int]:
    """One of `RAGGED`, by the scene's seed."""
    return random.Random(f"lattice-{seed}").choice(RAGGED)


def make_scene(
    seed: int,
    n_things: tuple[int, int] = (4, 9),
    n_signs: tuple[int, int] = (0, 2),
    lattice: tuple[int, int] = (LATTICE, LATTICE),
) -> Scene:
    """A random scene; no two objects share both shape and colour, no two signs share a colour.

    A lattice too small for them all holds fewer objects.
    """
    rng = random.Random(f"scene-{seed}")
    columns, rows = lattice
    cells = [(c, r) for r in range(rows) for c in range(columns)]
    rng.shuffle(cells)
    names: set[tuple[str, str]] = set()
    wanted = min(rng.randint(*n_things), len(cells) - n_signs[1])
    while len(names) < wanted:
        frequent = rng.random() < 0.35
        shape = rng.choice(FREQUENT_SHAPES if frequent else SHAPES)
        colour = rng.choice(FREQUENT_COLOURS if frequent else COLOUR_NAMES)
        names.add((shape, colour))
    things = []
    for shape, colour in sorted(names):
        column, row = cells.pop()
        radius = rng.uniform(9, 15)
        slack = CELL / 2 - radius
        x = (column + 0.5) * CELL + rng.uniform(-slack, slack)
        y = (row + 0.5) * CELL + rng.uniform(-slack, slack)
        things.append(Thing(shape, colour, x, y, radius))
    signs = []
    for colour in rng.sample(COLOUR_NAMES, rng.randint(*n_signs)):
        column, row = cells.pop()
        signs.append(Sign(colour, "".join(rng.choice(CODE_CHARS) for _ in range(3)), column, row))
    return Scene(seed, tuple(things), tuple(signs), lattice)


def dense_scene(seed: int, lattice: tuple[int, int] = (LATTICE, LATTICE)) -> Scene:
    """A crowded scene for aligning the vision tower: background teaches nothing, so all cells but a few are filled.

    Colours and shapes repeat freely; it has no questions.
    """
    rng = random.Random(f"dense-{seed}")
    columns, rows = lattice
    cells = [(c, r) for r in range(rows) for c in range(columns)]
    rng.shuffle(cells)
    n_things, n_signs = 40 * len(cells) // 64, 22 * len(cells) // 64
    things = []
    for _ in range(n_things):
        column, row = cells.pop()
        radius = rng.uniform(9, 15)
        slack = CELL / 2 - radius
        things.append(
            Thing(
                rng.choice(SHAPES),
                rng.choice(COLOUR_NAMES),
                (column + 0.5) * CELL + rng.uniform(-slack, slack),
                (row + 0.5) * CELL + rng.uniform(-slack, slack),
                radius,
            )
        )
    signs = []
    for _ in range(n_signs):
        column, row = cells.pop()
        code = "".join(rng.choice(CODE_CHARS) for _ in range(3))
        signs.append(Sign(rng.choice(COLOUR_NAMES), code, column, row))
    return Scene(seed, tuple(things), tuple(signs), lattice)


# ------------------------------------------------------------------------------------------------------------ rendering

_SUPER = 4  # supersampling of shape outlines


def _shape_mask(shape: str, dx: float, dy: float, radius: float) -> Image.Image:
    """Antialiased mask of a shape in a `CELL`-sized tile, centre offset by (dx, dy) from the tile's centre."""
    size = CELL * _SUPER
    mask = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(mask)
    cx, cy, r = size / 2 + dx * _SUPER, size / 2 + dy * _SUPER, radius * _SUPER

    def polygon(points: list[tuple[float, float]]) -> None:
        draw.polygon([(cx + px * r, cy + py * r) for px, py in points], fill=255)

    if shape == "circle":
        draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=255)
    elif shape == "ring":
        draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=255)
        inner = r * 0.55
        draw.ellipse([cx - inner, cy - inner, cx + inner, cy + inner], fill=0)
    elif shape == "square":
        polygon([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)])
    elif shape == "diamond":
        polygon([(0, -1), (0.72, 0), (0, 1), (-0.72, 0)])
    elif shape == "triangle":
        polygon([(0, -1), (1, 0.85), (-1, 0.85)])
    elif shape == "cross":
        a = 0.33
        polygon(
            [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
        )
    elif shape == "star":
        points = []
        for k in range(10):
            rho = 1.0 if k % 2 == 0 else 0.42
            phi = -math.pi / 2 + k * math.pi / 5
            points.append((rho * math.cos(phi), rho * math.sin(phi)))
        polygon(points)
    elif shape == "heart":
        points = []
        for k in range(40):
            t = 2 * math.pi * k / 40
            hx = 16 * math.sin(t) ** 3
            hy = -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
            points.append((hx / 17, hy / 17))
        polygon(points)
    else:
        raise ValueError(f"unknown shape {shape!r}; expected one of {', '.join(SHAPES)}")
    return mask.resize((CELL, CELL), Image.Resampling.BOX)


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=15)  # the font that ships inside Pillow: no system fonts needed


@cache
def _glyph(char: str) -> Image.Image:
    tile = Image.new("L", (PATCH, PATCH), 0)
    draw = ImageDraw.Draw(tile)
    draw.text((PATCH / 2, PATCH / 2), char, fill=255, font=_font(), anchor="mm", stroke_width=0)
    return tile


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB image of its size."""
    rng = np.random.Generator(np.random.PCG64(scene.seed + 77))
    base = rng.uniform(95, 165) + rng.uniform(-18, 18, size=3)
    coarse = base + rng.uniform(-22, 22, size=(7, 7, 3))
    smooth = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8)).resize(scene.size, Image.Resampling.BICUBIC)
    noise = rng.integers(-4, 5, size=(*reversed(scene.size), 1), dtype=np.int16)
    image = Image.fromarray(np.clip(np.asarray(smooth, dtype=np.int16) + noise, 0, 255).astype(np.uint8))
    for thing in scene.things:
        column, row = int(thing.x // CELL), int(thing.y // CELL)
        mask = _shape_mask(thing.shape, thing.x - (column + 0.5) * CELL, thing.y - (row + 0.5) * CELL, thing.radius)
        image.paste(COLOURS[thing.colour], (column * CELL, row * CELL), mask)
    draw = ImageDraw.Draw(image)
    for sign in scene.signs:
        x0, y0 = sign.column * CELL, sign.row * CELL
        draw.rectangle([x0, y0 + PATCH - 5, x0 + CELL - 1, y0 + 2 * PATCH + 4], fill=COLOURS[sign.colour])
        ink = (255, 255, 255) if sum(COLOURS[sign.colour]) < 390 else (0, 0, 0)
        for k, char in enumerate(sign.code):
            image.paste(ink, (x0 + k * PATCH, y0 + PATCH), _glyph(char))
    return image


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


# ---------------------------------------------------------------------------------------- what a patch shows (training)


class PatchLabels(NamedTuple):
    """What each of the patches (576 of a usual scene) shows, -1 where it does not apply; all (patches,) int64.

    `char` indexes CODE_CHARS and `slot` is the character's place 0..2 on its sign; `colour` is the object's or the
    sign's.
    """

    shape: np.ndarray
    colour: np.ndarray
    char: np.ndarray
    slot: np.ndarray


def patches_of(one: Thing | Sign, min_cover: float = 0.2, width: int = GRID) -> list[int]:
    """The patches of an object, whose disc covers `min_cover` of them (or most, if none does), in raster order; those
    of a sign's characters, in their order. `width`: patches in a row of the image."""
    if isinstance(one, Sign):
        return [(one.row * 3 + 1) * width + one.column * 3 + k for k in range(len(one.code))]
    offsets = (np.arange(7) + 0.5) * (PATCH / 7)
    column, row = int(one.x // CELL) * 3, int(one.y // CELL) * 3
    cover = np.zeros((3, 3))
    for j in range(3):
        for i in range(3):
            xs = (column + i) * PATCH + offsets - one.x
            ys = (row + j) * PATCH + offsets - one.y
            cover[j, i] = np.mean(xs[None, :] ** 2 + ys[:, None] ** 2 <= one.radius**2)
    chosen = cover >= min(min_cover, cover.max())
    return [int((row + j) * width + column + i) for j, i in zip(*np.nonzero(chosen), strict=True)]


def patch_labels(scene: Scene, min_cover: float = 0.2) -> PatchLabels:
    """Labels by geometry, of the patches of `patches_of`."""
    width, height = scene.grid
    labels = PatchLabels(*(np.full(width * height, -1, dtype=np.int64) for _ in range(4)))
    for thing in scene.things:
        for p in patches_of(thing, min_cover, width):
            labels.shape[p] = SHAPES.index(thing.shape)
            labels.colour[p] = COLOUR_NAMES.index(thing.colour)
    for sign in scene.signs:
        for k, p in enumerate(patches_of(sign, width=width)):
            labels.char[p] = CODE_CHARS.index(sign.code[k])
            labels.colour[p] = COLOUR_NAMES.index(sign.colour)
            labels.slot[p] = k
    return labels
