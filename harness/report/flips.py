"""One page of flipped answers: each question with its image, and the tokens that both sides kept.

The page holds everything itself. Texts of data sets and models are escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import partial
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from harness.core.errors import PrunebenchError
from harness.report import show, views
from harness.tables.sections import baseline
from harness.tables.sides import Side
from harness.tables.versus import FlippedAnswer, Versus

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

    from harness.store.sealed import SealedCell

_STYLE = """
body { font: 16px/1.5 sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #1d1c1a;
  background: #fcfbf8 }
figure { margin: 0 0 2.5em; border-top: 1px solid #ccc; padding-top: 1em }
img { max-width: 100%; display: block; margin-top: .5em }
code, dt { color: #5e5a53 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1em; margin: .5em 0 }
dd { margin: 0; overflow-wrap: anywhere }
"""


class FlipPage(NamedTuple):
    """A finished page: how many answers it shows, of how many; `notes` say what it lacks."""

    html: str
    shown: int
    all: int
    notes: tuple[str, ...]


def page(found: Sequence[Versus], most: int, data: str = "") -> FlipPage:
    """The flipped answers of all pairs, `most` at most, which the pairs share. `data`: where the images are now.

    A picture that cannot be had is named in a note, and its answers are shown as text.
    """
    drawer = _Drawer(data)
    parts, shown = [], 0
    share = max(1, most // max(1, len(found)))
    for v in found:
        title = f"{v.one.label} against {v.other.label}"
        chosen = _by_turns(v, share)[: max(0, most - shown)]
        shown += len(chosen)
        parts.append(f"<h2>{escape(title)}</h2><p>{len(chosen)} of {len(v.flips)} flipped answers.</p>")
        parts += [drawer.figure(v, flip) for flip in chosen]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>Flipped answers</title><style>{_STYLE}</style>"
    html = "\n".join([head, "<h1>Flipped answers</h1>", *parts, "</html>\n"])
    return FlipPage(html, shown, sum(len(v.flips) for v in found), tuple(dict.fromkeys(drawer.notes)))


def _by_turns(v: Versus, most: int) -> list[FlippedAnswer]:
    """The first flips, of each direction by turns."""
    ahead = [f for f in v.flips if f.first]
    behind = [f for f in v.flips if not f.first]
    half = max(most - len(behind), (most + 1) // 2)
    return [*ahead[:half], *behind[: most - len(ahead[:half])]]


class _Drawer:
    """Draws flips; reads the samples of a cell, and the table of images, once."""

    def __init__(self, data: str) -> None:
        self.notes: list[str] = []
        self._pictures = views.Pictures(partial(views.data_of, data))
        self._frames: dict[tuple[str, str], pd.DataFrame] = {}
        self._lost: dict[tuple[str, str], str] = {}

    def figure(self, v: Versus, flip: FlippedAnswer) -> str:
        facts = [("question", flip.question), ("expected", flip.target)]
        sides = zip((v.one, v.other), flip.answers, flip.scores, strict=True)
        facts += [(side.label, f"{answer} (score {score:g})") for side, answer, score in sides]
        listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(said)}</dd>" for name, said in facts)
        image = self._image(v, flip)
        return f"<figure><code>{escape(flip.key)}</code><dl>{listed}</dl>{image}</figure>"

    def _image(self, v: Versus, flip: FlippedAnswer) -> str:
        cells = [side.cells[flip.task][0] for side in (v.one, v.other)]
        table = str(cells[0].folder), flip.task
        if table in self._lost:
            return ""
        try:
            picture = self._pictures.square(cells[0], flip.key, flip.image, show.SIDE)
        except PrunebenchError as error:
            self._lost[table] = str(error)
            self.notes.append(f"{flip.task} without pictures: {error}")
            return ""
        try:
            sheet = show.picture(self._sample(v, flip, cells, picture.resize((show.SIDE, show.SIDE))))
        except PrunebenchError as error:
            self.notes.append(f"{flip.key} without its tokens: {error}")
            sheet = picture
        data = io.BytesIO()
        sheet.save(data, "JPEG", quality=80)
        return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'

    def _sample(self, v: Versus, flip: FlippedAnswer, cells: Sequence[SealedCell], image: object) -> show.ShownSample:
        base = baseline(cells[0], v.one.folder.known)
        unpruned = self._shown("none", base, flip.key, None) if base else None
        was = unpruned.right if unpruned else None
        sides: tuple[Side, Side] = v.one, v.other
        rows = [self._shown(side.label, cell, flip.key, was) for side, cell in zip(sides, cells, strict=True)]
        return show.ShownSample(flip.key, flip.question, flip.target, image, unpruned, tuple(rows))  # type: ignore[arg-type]

    def _shown(self, name: str, sealed: SealedCell, key: str, was: bool | None) -> show.Shown:
        place = str(sealed.folder), sealed.identity
        if place not in self._frames:
            self._frames[place] = sealed.samples().set_index("key")
        return show.shown(name, sealed, self._frames[place].loc[key].to_dict(), was)
