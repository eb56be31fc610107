"""One self-contained page from sealed cells: leaderboard, accuracy against FLOPs, sample by sample, and the analysis of
the model.

The page needs no server and no network. Texts of data sets and models enter it as JSON with `<`, `>` and `&` escaped,
and the page's script puts them into the document as text only. What a task's samples say is compressed and unpacked
when it is looked at.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.command import evaluation, rendered
from harness.core.errors import PrunebenchError
from harness.core.spelling import command, given
from harness.report import views, whole
from harness.store.files import write_atomic
from harness.store.sealed import SealedCell
from harness.store.store import Store
from harness.tables import frame
from harness.tables.follow_up import NOTE, follow_up_rows
from harness.tables.kept import Kept
from harness.tables.sections import budget_order

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

MAX_BYTES = 25_000_000
SIDE = 336  # pixels of an embedded image
QUALITY = 75  # JPEG
SAMPLES = 100
#: the files of the page's script; `start` runs what the others declare
SCRIPTS = (
    *("tools", "keys", "copy", "download", "header", "link", "state"),
    *("leaderboard", "figure", "explorer", "analysis", "requests", "follow_ups", "start"),
)
_PER_SAMPLE = ("kept", "mean_visual", "forced")
_PNG, _SVG = "image/png", "image/svg+xml"


@dataclass(frozen=True)
class Page:
    """A finished page. `notes` say what it lacks and how to add it."""

    html: str
    n_cells: int
    n_samples: int
    notes: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        return len(self.html.encode())


def write(
    results: Path,
    out: Path | None = None,
    samples: int = SAMPLES,
    data: str = "",
    say: Callable[[str], None] = print,
    damaged: list[str] | None = None,
) -> Path:
    """Write the page of a results folder and return its path; `samples` per task, fewer where it would exceed 25 MB.

    `out`: a file as page.html, or a folder for index.html. `damaged` takes what is said of damaged cells, which are
    left out.

    Raises PrunebenchError where there are no sealed cells, or where they do not fit a page even without samples.
    """
    cells = Store(results).cells([] if damaged is None else damaged)
    if not cells:
        raise PrunebenchError(
            f"{results}: expected sealed cells for the report, found none;"
            f" `{command('eval', method='visipruner', budget='64')}` makes some, and {given('results')} names another"
            " folder"
        )
    if samples < 0:
        raise PrunebenchError(f"--samples {samples}: expected a number of samples per task of at least 0")
    page = fitting(cells, results, samples, data, say=say)
    for note in page.notes:
        say(f"note    {note}")
    path = out or results / "report"
    if path.is_dir() or not path.suffix:
        path /= "index.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrunebenchError(
            f"cannot create {path.parent}: {error.strerror}; choose a file that you can write with --out"
        ) from None
    write_atomic(path, page.html.encode())
    say(f"report  {path}  ({page.n_bytes / 1e6:.1f} MB, {page.n_cells} cells, {page.n_samples} samples to look at)")
    return path


def fitting(
    cells: Sequence[SealedCell],
    results: Path,
    samples: int,
    data: str = "",
    max_bytes: int = MAX_BYTES,
    say: Callable[[str], None] = print,
) -> Page:
    """The page with at most `samples` samples per task that stays within `max_bytes`."""
    builder = _Builder(cells, results, data)
    page, asked = builder.page(samples), samples
    while page.n_bytes > max_bytes and samples > 0:
        found = page.n_bytes
        # a little below the proportional share: other parts of the page do not shrink
        samples = min(samples - 1, int(samples * max_bytes / found * 0.95))
        page = builder.page(samples)
        if page.n_bytes <= max_bytes:
            say(
                f"with --samples {asked} the page would have more than {max_bytes / 1e6:.0f} MB: it shows {samples}"
                " samples per task; fewer cells in --results leave room for more"
            )
    if page.n_bytes > max_bytes:
        raise PrunebenchError(
            f"the page has {page.n_bytes / 1e6:.1f} MB without any sample, expected at most {max_bytes / 1e6:.0f}: "
            "report on fewer cells with --results"
        )
    return page


def _raster(sealed: SealedCell, image: str, n_visual: int) -> list[int] | None:
    """[rows, cols, newline, start] of the finest grid of a sample's tokens, as the page draws them."""
    found = views.raster_of(sealed, image, n_visual)
    return found and [*map(int, found.grid), found.start]


class _Builder:
    """Reads the cells once; pages with fewer samples come from the same reading."""

    def __init__(self, cells: Sequence[SealedCell], results: Path, data: str) -> None:
        self.protocols = views.protocols(cells)
        self.results = results
        self.pictures = views.Pictures(partial(views.data_of, data))
        self.rows = {row["identity"]: row for row in frame.rows(cells).to_dict("records")}
        self.analyses = read_analyses(results)
        self._frames: dict[str, pd.DataFrame] = {}
        self._jpegs: dict[str, str] = {}
        self._lost: dict[tuple[str, str], str] = {}  # table whose images cannot be had -> why
        self._known, self._kept = {sealed.identity: sealed for sealed in cells}, Kept(results, write=False)
        self._requests = [whole.of_protocol(protocol, self._frame) for protocol in self.protocols]

    def page(self, samples: int) -> Page:
        """The page with at most `samples` samples of each set of questions."""
        notes: list[str] = []
        images: dict[str, int] = {}  # image key -> its number in the page
        chunks: list[str] = []
        models = []
        total = 0
        for protocol, requests in zip(self.protocols, self._requests, strict=True):
            named, looks = views.lines(protocol), views.looks(protocol)
            order = list(dict.fromkeys(named[s.identity] for s in sorted(protocol.cells, key=_line_order)))
            budgets = sorted({s.cell.budget for s in protocol.cells}, key=budget_order)
            sets: list[dict[str, Any]] = []
            records: list[dict[str, Any]] = []
            for number, questions in enumerate(protocol.questions):
                chunk, said, without_image = self._chunk(questions, samples, images)
                total += len(chunk["samples"])
                notes += [f"{questions.label}: {without_image}"] if without_image else []
                unpruned = "" if questions.baseline else views.command(questions.cells[0], unpruned=True)
                if unpruned:
                    notes.append(
                        f"{protocol.label}, {questions.label}: no unpruned cell to compare with; `{unpruned}` makes it"
                    )
                first = questions.cells[0]
                sets.append(
                    {
                        "task": questions.task,
                        "label": questions.label,
                        "primary": questions.primary,
                        "n": questions.n,
                        "scored": first.counts["headline"],
                        "shown": len(chunk["samples"]),
                        "metric": first.headline,
                        "max": _finite(first.maximum),
                        "lower": not first.metric.higher_is_better,
                        "chunk": len(chunks),
                        "make_baseline": unpruned,
                        "no_image": without_image,
                        "images": first.interval.n_clusters if first.interval else first.counts.get("images", 1),
                    }
                )
                chunks.append(_packed({**chunk, "first_cell": len(records)}))
                for sealed in questions.cells:
                    extra = {**said[sealed.identity], "request": requests.cells.get(sealed.identity)}
                    records.append(self._cell(sealed, number, order.index(named[sealed.identity]), budgets, extra))
            missing = _missing(protocol, named)
            notes += [f"{protocol.label}: {m['what']} missing; `{m['command']}` makes them" for m in missing]
            models.append(
                {
                    "model": protocol.model,
                    "label": protocol.label,
                    "facts": protocol.facts,
                    "depth": views.depth(protocol),
                    "lines": order,
                    "looks": [looks[name] for name in order],
                    "budgets": budgets,
                    "sets": sets,
                    "cells": records,
                    "missing": missing,
                    "requests": requests.tables,
                    "follow_ups": self._follow_ups(protocol, named),
                    **self._analysis(protocol),
                }
            )
        meta = {"models": models, "right": views.RIGHT, "version": _version()}
        encoded = [self._jpegs[key] for key in images]
        return Page(
            _render(meta, chunks, encoded),
            sum(len(p.cells) for p in self.protocols),
            total,
            tuple(dict.fromkeys(notes)),
        )

    def _analysis(self, protocol: views.Protocol) -> dict[str, Any]:
        """The analysis of the model with these very weights, and the command that makes it where there is none."""
        out = (
            None
            if self.results == Path("results/local")
            else str(self.results / "analysis" / protocol.model.replace("/", "--"))
        )
        found = self.analyses.get(protocol.model)
        other = (
            found["fingerprint"] if found and found["fingerprint"] not in (None, protocol.facts["weights"]) else None
        )
        make = rendered(["make", "analyze"], {"MODEL": protocol.model, "OUT": out})
        return {"analysis": None if other else found, "analysis_of": other, "make_analysis": make}

    def _follow_ups(self, protocol: views.Protocol, named: Mapping[str, str]) -> dict[str, Any] | None:
        """The table of a protocol of follow-up questions; None for another."""
        asked = [sealed for sealed in sorted(protocol.cells, key=_line_order) if sealed.asked.follow_up]
        if not asked:
            return None
        head, rows = follow_up_rows(asked, self._known, named, self._kept)
        return {"head": head, "rows": rows, "note": NOTE.replace("*", "")}

    def _frame(self, sealed: SealedCell) -> pd.DataFrame:
        if sealed.identity not in self._frames:
            self._frames[sealed.identity] = sealed.samples()
        return self._frames[sealed.identity]

    def _cell(
        self, sealed: SealedCell, number: int, line: int, budgets: Sequence[str], extra: Mapping[str, Any]
    ) -> dict[str, Any]:
        row = self.rows[sealed.identity]
        cell = sealed.cell
        return {
            "set": number,
            "line": line,
            "budget": budgets.index(cell.budget),
            "seed": cell.seed,
            "unpruned": cell.method == "none",
            "score": _finite(row["score"]),
            "low": _finite(row["low"]),
            "high": _finite(row["high"]),
            "pct": _finite(row["pct_of_unpruned"]),
            "kept": _finite(row["kept"]),
            "mean_visual": _finite(row["mean_visual"]),
            "gflops": _finite(row["prefill_dense_gflops"]),
            "pct_flops": _finite(row["pct_of_unpruned_flops"]),
            "kv_mib": _finite(row["kv_mib"]),
            "n": sealed.counts["answered"],
            "knobs": ", ".join(f"{k}={json.dumps(v)}" for k, v in sorted(cell.settings.items())),
            "command": evaluation(sealed.asked, fresh=True, source=cell.method_source),
            **extra,
        }

    def _chunk(
        self, questions: views.Questions, samples: int, images: dict[str, int]
    ) -> tuple[dict[str, Any], dict[str, dict[str, int]], str]:
        """What the page shows of a set's samples, how often each cell flips (over all samples), and why images lack, if
        they do."""
        first = self._frame(questions.cells[0]).set_index("key")
        # evenly over the questions, so that a task's last categories are seen as well
        n = min(samples, len(first))
        keys = [first.index[i * len(first) // n] for i in range(n)]
        shown: list[dict[str, Any]] = []
        lost = ""
        for key in keys:
            row = first.loc[key]
            try:
                picture = self._picture(questions.cells[0], key, row["image"], images)
            except PrunebenchError as error:
                picture, lost = -1, lost or str(error)
            shown.append(
                {
                    "key": key,
                    "image": picture,
                    "category": row["category"] or "",
                    "question": row["question"],
                    "target": row["target"],
                    "n_visual": (n_visual := int(row["n_visual"]) if "n_visual" in row else 0),
                    "grid": _raster(questions.cells[0], str(row["image"]), n_visual),
                }
            )
        base = (
            questions.baseline.metric.how_well(self._frame(questions.baseline).set_index("key")["score"]) >= views.RIGHT
            if questions.baseline
            else None
        )
        cells, flips = [], {}
        for sealed in questions.cells:
            frame = self._frame(sealed).set_index("key")
            well = sealed.metric.how_well(frame["score"])
            right = well >= views.RIGHT
            was = base.loc[right.index] if base is not None else right
            flips[sealed.identity] = (
                {"lost": int((was & ~right).sum()), "gained": int((~was & right).sum())} if base is not None else {}
            )
            part = frame.loc[keys]
            own = {
                i: {"n_visual": int(n), "grid": _raster(sealed, str(part["image"].iloc[i]), int(n))}
                for i, n in enumerate(part.get("n_visual", ()))
            }
            own = {i: seen for i, seen in own.items() if any(seen[name] != shown[i][name] for name in seen)}
            cells.append(
                {
                    "answer": [str(a) for a in part["answer"]],
                    "score": [_finite(s) for s in well.loc[keys]],
                    "keeps": [k or "" for k in part["keeps"]] if "keeps" in part else [],
                    # of samples whose picture this cell's method has shrunk, by their number
                    **({"seen": own} if own else {}),
                    # what a method notes of layers, as a layer that it chose
                    **{
                        name: [_finite(v) for v in part[name]]
                        for name in part.columns
                        if name in _PER_SAMPLE or name.endswith("_layer")
                    },
                }
            )
        return {"samples": shown, "cells": cells}, flips, lost

    def _picture(self, sealed: SealedCell, key: str, image: str, images: dict[str, int]) -> int:
        """The number of the sample's image in the page; encoded once, however many samples and pages show it."""
        views.check_one_image(sealed, key, image)
        where = self.pictures.table(sealed)
        if where in self._lost:
            raise PrunebenchError(self._lost[where])
        if image not in self._jpegs:
            try:
                picture = self.pictures.square(sealed, key, image, SIDE)
            except PrunebenchError as error:
                self._lost[where] = str(error)  # hundreds of samples of one table would say the same
                raise
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
            self._jpegs[image] = base64.b64encode(buffer.getvalue()).decode()
        return images.setdefault(image, len(images))


def read_analyses(results: Path) -> dict[str, dict[str, Any]]:
    """What `<results>/analysis/*/analysis.json` says, by model, figures inlined as data URLs.

    Raises PrunebenchError for a file that is not what the analysis writes, naming the command that writes it again.
    """
    found = {}
    for path in sorted((results / "analysis").glob("*/analysis.json")):
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            json.dumps(raw, allow_nan=False)  # the page holds it, and JSON knows neither NaN nor infinity
            figures = [
                # the PNG, where there is one: half of the bytes
                {
                    **{k: str(f.get(k, "")) for k in ("title", "alt")},
                    "src": _data_url(path.parent, str(f.get("png") or f["file"])),
                }
                for f in raw["figures"]
            ]
            # nothing where the analysis was restricted to some layers
            parts = ("shallow_end", "fusion", "not_needed_from", "rule", "uncertainty")
            stages = {name: raw["stages"][name] for name in parts} if raw["stages"] else None
            kept = {name: raw.get(name) for name in ("fingerprint", "n_samples", "tasks", "command", "depth")}
            tables = {name: [_scalars(row) for row in raw.get(name, [])] for name in ("layers", "knockouts")}
            found[str(raw["model"])] = {**kept, **tables, "stages": stages, "figures": figures}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PrunebenchError(
                f"{path}: expected the analysis of a model with its figures, found {type(error).__name__}: {error}; "
                "`make analyze` writes it again, or move the folder elsewhere"
            ) from None
    return found


def _scalars(row: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a row that fit a table's cell."""
    return {name: value for name, value in row.items() if isinstance(value, str | int | float)}


def _data_url(folder: Path, name: str) -> str:
    path = (folder / name).resolve()
    kind = {".svg": _SVG, ".png": _PNG}.get(path.suffix)
    if kind is None or not path.is_relative_to(folder.resolve()):
        raise ValueError(f"figure {name!r}: expected an SVG or PNG beside the file")
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _line_order(sealed: SealedCell) -> tuple[bool, str, str]:
    return (sealed.cell.method != "none", sealed.cell.method, json.dumps(sealed.cell.settings, sort_keys=True))


def _missing(protocol: views.Protocol, named: Mapping[str, str]) -> list[dict[str, str]]:
    """Lines that some tasks have at a budget and others have not, each with the command that measures the rest."""
    wanted = {q.task: q for q in protocol.questions if q.primary}
    have: dict[tuple[str, str], list[SealedCell]] = {}
    for questions in wanted.values():
        for sealed in questions.cells:
            have.setdefault((named[sealed.identity], sealed.cell.budget), []).append(sealed)
    out = []
    for (name, budget), cells in sorted(have.items()):
        lacking = sorted(set(wanted) - {s.cell.task for s in cells})
        if lacking and name != "none":
            what = f"{name} at {budget} on {', '.join(lacking)}"
            out.append({"what": what, "command": views.command(cells[0], tasks=lacking)})
    return out


def _finite(value: Any) -> float | int | None:
    """JSON has no NaN; eight digits are more than a page shows."""
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else float(f"{number:.8g}")


def embed_json(value: Any) -> str:
    """JSON that may stand inside a script element whatever its texts are: no `<`, `>`, `&`, U+2028 or U+2029
    remains."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda m: f"\\u{ord(m[0]):04x}", text)


def _packed(value: Any) -> str:
    """JSON, gzip, base64; the same bytes for the same value."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
    return base64.b64encode(gzip.compress(text, 9, mtime=0)).decode()


def script() -> str:
    """The page's script: the files of `assets/script` in this order, as one closure."""
    folder = files("harness.report") / "assets" / "script"
    parts = [(folder / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    return "\n".join(['"use strict";', "(() => {", *parts, "})();", ""])


def _render(meta: Mapping[str, Any], chunks: Iterable[str], images: Iterable[str]) -> str:
    folder = files("harness.report") / "assets"
    html, css = ((folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css"))
    js = script()

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    # only this script runs and nothing is fetched, whatever a text might contain
    policy = (
        f"default-src 'none'; script-src {hashed(js)}; style-src {hashed(css)}; img-src data:; base-uri 'none';"
        " form-action 'none'"
    )
    blocks = [f'<script type="application/json" id="meta">{embed_json(meta)}</script>']
    blocks += [f'<script type="text/plain" id="chunk-{i}">{text}</script>' for i, text in enumerate(chunks)]
    blocks += [f'<script type="text/plain" id="image-{i}">{text}</script>' for i, text in enumerate(images)]
    parts = {"POLICY": policy, "STYLE": css, "DATA": "\n".join(blocks), "SCRIPT": js}
    return re.sub(r"%%([A-Z]+)%%", lambda m: parts[m[1]], html)


def _version() -> str:
    from importlib.metadata import version

    return version("prunebench")
