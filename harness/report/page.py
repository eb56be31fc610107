"""One self-contained page from sealed cells: leaderboard, accuracy against FLOPs, sample by sample, and the analysis of
the model.

The page needs no server and no network. Texts of data sets and models enter it as JSON with `<`, `>` and `&` escaped,
and the page's script puts them into the document as text only. What a task's samples say is compressed and unpacked
when it is looked at.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from harness.core.command import evaluation, rendered
from harness.core.errors import PrunebenchError
from harness.core.spelling import command, given
from harness.report import agreements, studies, views, whole
from harness.report.analyses import read_analyses
from harness.report.embedded import embed_json, finite, packed
from harness.report.samples import SIZES, ImageSize, SamplesReader
from harness.store.files import write_atomic
from harness.store.sealed import SealedCell
from harness.store.store import Store
from harness.store.submission import Records, records
from harness.tables import frame
from harness.tables.follow_up import NOTE, follow_up_rows
from harness.tables.kept import Kept
from harness.tables.sections import budget_order

MAX_BYTES = 25_000_000
SAMPLES = 100
#: the files of the page's script; `start` runs what the others declare
SCRIPTS = (
    *("tools", "keys", "copy", "download", "header", "link", "state", "studies", "leaderboard", "figure"),
    *("versus", "equal", "agreements", "explorer", "packing", "analysis", "requests", "follow_ups", "start"),
)


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

    `out`: a file as page.html, or a folder for index.html. `damaged` takes what is said of damaged cells and records,
    which are left out.

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
    page = fitting(cells, results, samples, data, say=say, out=out, damaged=damaged)
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
    out: Path | None = None,
    damaged: list[str] | None = None,
) -> Page:
    """The page with at most `samples` samples per task that stays within `max_bytes`; `out` is where it will be.

    Images get smaller first, then samples fewer; `say` is told of both. Raises PrunebenchError where the page does not
    fit without any sample."""
    builder = _Builder(cells, results, data, out, records(results, damaged))
    asked, limit = samples, f"{max_bytes / 1e6:.0f} MB"
    for size in SIZES:
        page = builder.page(samples, size)
        if page.n_bytes <= max_bytes:
            if size != SIZES[0]:
                say(
                    f"for the page to have at most {limit}, its images have {size.side} pixels and more loss than usual"
                )
            return page
    while page.n_bytes > max_bytes and samples > 0:
        found = page.n_bytes
        # a little below the proportional share: other parts of the page do not shrink
        samples = min(samples - 1, int(samples * max_bytes / found * 0.95))
        page = builder.page(samples, SIZES[-1])
        if page.n_bytes <= max_bytes:
            say(
                f"with --samples {asked} the page would have more than {limit}. It shows {samples} samples per task, in"
                f" images of {SIZES[-1].side} pixels. Fewer cells in --results leave room for more."
            )
    if page.n_bytes > max_bytes:
        raise PrunebenchError(
            f"the page has {page.n_bytes / 1e6:.1f} MB without any sample, expected at most {max_bytes / 1e6:.0f}: "
            "report on fewer cells with --results"
        )
    return page


class _Content(NamedTuple):
    """All of a page but its images, which are named by their keys."""

    meta: Mapping[str, Any]
    chunks: Sequence[str]
    images: Sequence[str]
    n_samples: int
    notes: tuple[str, ...]


class _Builder:
    """Reads the cells once; pages with fewer samples come from the same reading."""

    def __init__(
        self, cells: Sequence[SealedCell], results: Path, data: str, out: Path | None, collected: Records
    ) -> None:
        self.protocols = views.protocols(cells)
        self.results = results
        self._collected = collected
        self.rows = {row["identity"]: row for row in frame.rows(cells).to_dict("records")}
        self.analyses = read_analyses(results)
        self._samples = SamplesReader(data)
        folder = None if results == Path("results/local") else str(results)
        asked = {"RESULTS": folder, "OUT": str(out) if out else None, "DATA": data, "SAMPLES": str(SAMPLES)}
        self._make_samples = rendered(["make", "report"], asked)
        self._contents: dict[int, _Content] = {}
        self._known, self._kept = {sealed.identity: sealed for sealed in cells}, Kept(results, write=False)
        self._requests = [whole.of_protocol(protocol, self._samples.frame) for protocol in self.protocols]
        self._studied = studies.studied(cells, self._kept)
        arranged = [one.section for one in self._studied]
        self._agreements = agreements.of_models(self.protocols, arranged, self._kept)

    def page(self, samples: int, size: ImageSize = SIZES[0]) -> Page:
        """The page with at most `samples` samples of each set of questions, and images of a size."""
        if samples not in self._contents:
            self._contents = {samples: self._content(samples)}  # pages of other image sizes share the rest
        found = self._contents[samples]
        meta = {**found.meta, "images": f"image/{size.form.lower()}"}
        html = _render(meta, found.chunks, [self._samples.encoded(key, size) for key in found.images])
        return Page(html, sum(len(p.cells) for p in self.protocols), found.n_samples, found.notes)

    def _content(self, samples: int) -> _Content:
        notes: list[str] = list(self._agreements.notes)
        images: dict[str, int] = {}  # image key -> its number in the page
        chunks: list[str] = []
        models = []
        studied: list[studies.StudyOfPage] = []
        total = 0
        for protocol, requests in zip(self.protocols, self._requests, strict=True):
            named, looks = views.lines(protocol), views.looks(protocol)
            order = list(dict.fromkeys(named[s.identity] for s in sorted(protocol.cells, key=_line_order)))
            budgets = sorted({s.cell.budget for s in protocol.cells}, key=budget_order)
            sets: list[dict[str, Any]] = []
            records: list[dict[str, Any]] = []
            places: dict[str, studies.Place] = {}
            compared = {questions.label for questions in views.compared(protocol)}
            for number, questions in enumerate(protocol.questions):
                # the page's menus offer no others
                most = samples if questions.label in compared else 0
                chunk, said, without_image = self._samples.chunk(questions, most, images, named)
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
                        "max": finite(first.maximum),
                        "lower": not first.metric.higher_is_better,
                        "chunk": len(chunks),
                        "make_baseline": unpruned,
                        "no_image": without_image,
                        "images": first.interval.n_clusters if first.interval else first.counts.get("images", 1),
                    }
                )
                chunks.append(packed({**chunk, "first_cell": len(records)}))
                for sealed in questions.cells:
                    extra = {**said[sealed.identity], "request": requests.cells.get(sealed.identity)}
                    line, budget = order.index(named[sealed.identity]), budgets.index(sealed.cell.budget)
                    place = places[sealed.identity] = studies.Place(number, line, budget)
                    records.append(self._cell(sealed, place, extra))
            found = [one for each in self._studied if (one := studies.of_page(each, places))]
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
                    "studies": [one.meta for one in found],
                    "requests": requests.tables,
                    "follow_ups": self._follow_ups(protocol, named),
                    **self._analysis(protocol),
                }
            )
            studied += found
        for one in studied:
            if one.chunk["blocks"]:
                one.meta["chunk"] = len(chunks)
                chunks.append(packed(one.chunk))
        meta = {
            "models": models,
            "agreements": self._agreements.pairs,
            "right": views.RIGHT,
            "make_samples": self._make_samples,
            "version": _version(),
        }
        return _Content(meta, chunks, tuple(images), total, tuple(dict.fromkeys(notes)))

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

    def _cell(self, sealed: SealedCell, place: studies.Place, extra: Mapping[str, Any]) -> dict[str, Any]:
        row = self.rows[sealed.identity]
        cell = sealed.cell
        return {
            **place._asdict(),
            "seed": cell.seed,
            "unpruned": cell.method == "none",
            "score": finite(row["score"]),
            "low": finite(row["low"]),
            "high": finite(row["high"]),
            "pct": finite(row["pct_of_unpruned"]),
            "kept": finite(row["kept"]),
            "mean_visual": finite(row["mean_visual"]),
            "gflops": finite(row["prefill_dense_gflops"]),
            "pct_flops": finite(row["pct_of_unpruned_flops"]),
            "kv_mib": finite(row["kv_mib"]),
            "command": evaluation(sealed.asked, fresh=True, source=cell.method_source),
            **extra,
            **self._names(sealed),
        }

    def _names(self, sealed: SealedCell) -> dict[str, Any]:
        """Who measured a cell and who reproduced it; nothing where no submissions were collected."""
        origin = self._collected.origin(sealed) if self._collected else None
        return {"measured": origin.measured, "reproduced": origin.reproduced} if origin else {}


def _line_order(sealed: SealedCell) -> tuple[bool, str, str]:
    return (sealed.cell.method != "none", sealed.cell.method, json.dumps(sealed.cell.settings, sort_keys=True))


def _missing(protocol: views.Protocol, named: Mapping[str, str]) -> list[dict[str, str]]:
    """Lines that some tasks have at a budget and others have not, each with the command that measures the rest."""
    wanted = {q.task: q for q in views.compared(protocol) if q.primary}
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
