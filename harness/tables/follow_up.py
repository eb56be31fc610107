"""Follow-up questions beside the same questions asked afresh: what a second answer loses, and what it costs."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

import numpy as np

from harness.core import stats
from harness.core.cell import processing_digest
from harness.core.costs import request_flops
from harness.core.shown import in_markdown
from harness.store.sealed import SealedCell
from harness.tables.difference import tested
from harness.tables.frame import setting_names
from harness.tables.kept import Kept
from harness.tables.sections import FOLLOW_UP, Section
from harness.tables.text import DASH, decimal, grid, significant

NOTE = (
    "A follow-up question comes after the first question about its image and the first answer. The question runs on the"
    " cache that the first question pruned. Scores of this section are of follow-up questions. Costs in other tables of"
    " this section are of the first question. *Afresh*: the same method on the same questions, each with a prompt of"
    " its own. p is the exact McNemar test, not corrected. FLOPs of a second turn count its tokens and its answer."
    " FLOPs afresh count a whole request."
)
#: what `request_flops` reads
_REQUEST = (
    *("vision_flops", "projector_flops", "prefill_dense_flops", "lm_head_flops", "decode_flops"),
    *("scoring_flops", "prefill_paper_macs"),
)


class Beside(NamedTuple):
    """A cell of follow-ups beside the same questions afresh; scores and their difference in per cent."""

    score: float
    afresh: float
    low: float
    high: float
    better: float
    worse: float
    p: float
    afresh_flops: float
    """Of a whole request."""


def afresh(sealed: SealedCell, known: Mapping[str, SealedCell]) -> SealedCell | None:
    """The cell in which the same setting was asked the whole task, each question afresh; None where it is not there."""
    settings, processing = dict(sealed.provenance["task_settings"]), dict(sealed.provenance["processing"])
    told = settings.pop("follow_up")
    del processing["turn_ids"]
    cell = replace(
        sealed.cell,
        data_fingerprint=told["data_fingerprint"],
        n_samples=told["n_samples"],
        task_settings=processing_digest(settings),
        processing=processing_digest(processing),
    )
    return known.get(cell.identity())


def beside(sealed: SealedCell, other: SealedCell, kept: Kept) -> Beside:
    """Both cells on the questions of the follow-ups, which `other` has all asked."""

    def compute() -> Beside:
        mine = sealed.columns("key", "image", "category", "question_id", "score")
        theirs = other.columns("key", "score", *_REQUEST)
        at = {key: row for row, key in enumerate(theirs["key"])}
        rows = [at[key] for key in mine["key"]]
        scores = [np.asarray(mine["score"], float), np.asarray([theirs["score"][row] for row in rows], float)]
        units = stats.units(sealed.metric, mine["image"], mine["category"], mine["question_id"])
        both = [units.clustered(one) for one in scores]
        images = both[0].n_clusters
        drawn = kept.draws(images, zlib.crc32(sealed.cell.task.encode()))
        low, high, better, worse, p = tested(
            scores[:1],
            scores[1:],
            lambda: 100.0 * np.subtract(*stats.resample_together(both, drawn)),
            images,
            100.0 * stats.unlike(images),
        )
        costs = {name: fmean(theirs[name][row] for row in rows) for name in _REQUEST}
        points = [100.0 * float(one.mean()) for one in scores]
        return Beside(points[0], points[1], low, high, better, worse, p, request_flops(costs))

    return Beside(*kept.of(kept.key("follow-up", [sealed, other]), compute))


def follow_up_rows(
    cells: Iterable[SealedCell], known: Mapping[str, SealedCell], names: Mapping[str, str], kept: Kept
) -> tuple[list[str], list[list[str]]]:
    """The heads of the columns, of which the first three are words, and a row for each cell of follow-ups. `names` of
    methods by identity; `known`: cells by identity, among which those asked afresh are looked for."""
    head = ["method", "budget", "task", "questions", "images", "follow-up (%)", "afresh (%)"]
    head += ["follow-up - afresh (points)", "p", "second turn (tokens)", "second turn (GFLOPs)", "afresh (GFLOPs)"]
    head += ["KV behind the second question (MiB)"]
    body = []
    for sealed in cells:
        other, costs = afresh(sealed, known), sealed.costs
        found = None if other is None else beside(sealed, other, kept)
        turn = costs["turn_flops"] + costs["turn_lm_head_flops"] + costs["turn_decode_flops"]
        budget = DASH if sealed.cell.budget == "none" else sealed.cell.budget
        row = [names[sealed.identity], budget, sealed.cell.task, f"{sealed.cell.n_samples:,}"]
        row += [f"{sealed.interval.n_clusters if sealed.interval else 1:,}", decimal(100.0 * sealed.score)]
        if found is None:
            row += [DASH, DASH, DASH]
        else:
            apart = "" if math.isnan(found.low) else f" [{decimal(found.low)}, {decimal(found.high)}]"
            row += [decimal(found.afresh), decimal(found.score - found.afresh) + apart, f"{found.p:.3g}"]
        row += [decimal(costs["turn_tokens"]), significant(turn / 1e9)]
        row += [DASH if found is None else significant(found.afresh_flops / 1e9)]
        body.append([*row, significant(costs["turn_kv_bytes"] / 2**20)])
    return head, body


def follow_up_text(section: Section, kept: Kept) -> list[str]:
    """The table of a section of follow-ups, as parts of Markdown; none for other sections."""
    if FOLLOW_UP not in section.facts:
        return []
    cells = (s for block in section.blocks() for line in block.lines for seeds in line.cells.values() for s in seeds)
    names = {identity: in_markdown(name) for identity, name in setting_names(section).items()}
    head, body = follow_up_rows(cells, section.known, names, kept)
    return [
        "### Follow-up questions beside the same asked afresh",
        NOTE,
        grid(head, list(zip(*body, strict=True)), left=3),
    ]
