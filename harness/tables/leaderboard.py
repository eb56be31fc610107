"""Tables from sealed cells: a pure function of what the cells hold, without torch or a model.

`rows` and `table` read cell.json only; `write` also reads the samples, for what only answers can tell
(harness/tables/compare.py). A number that cannot be had (no baseline, a task missing) is NaN in the frame, empty in the
CSV and "-" in text; it is never filled in. The baseline of a cell is the sealed `none` cell with identity
`cell.baseline().identity()`: same data, prompt, dtype and device, or none at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

from harness.core.paths import make_folder
from harness.store.files import write_changed
from harness.store.sealed import SealedCell
from harness.store.store import Store
from harness.store.submission import records
from harness.tables import equal
from harness.tables.compare import Comparison, Findings, study
from harness.tables.follow_up import follow_up_text
from harness.tables.frame import rows
from harness.tables.kept import Kept
from harness.tables.markdown import footer, section_text
from harness.tables.measured import measured_text, with_names
from harness.tables.models import models_text
from harness.tables.pairs import study_pairs
from harness.tables.sections import NAN, Section, distinct, sections
from harness.tables.text import csv_text

CSV, MARKDOWN, EQUAL_FLOPS, SIGNIFICANCE = FILES = (
    "leaderboard.csv",
    "LEADERBOARD.md",
    "equal_flops.csv",
    "significance.csv",
)


def write(
    cells: Iterable[SealedCell],
    folder: Path,
    *,
    samples: bool = True,
    figures: bool = False,
    kept: Kept | None = None,
    damaged: list[str] | None = None,
) -> tuple[Path, Path]:
    """Write leaderboard.csv (one row per cell), LEADERBOARD.md, equal_flops.csv and significance.csv into the folder;
    returns the first two.

    Each file is replaced whole or not at all, one that would not change stays untouched, and equal cells give equal
    bytes. `figures` draws into the folder's figures/ too and shows them in the Markdown. `samples=False` reads
    cell.json only: no comparisons, agreement or hard subset. Statistics come from `kept`, by default the folder's own
    (harness/tables/kept.py), which is written back. Where submissions were collected into the folder, both tables name
    who measured; records that say nothing of it are said in `damaged`. Raises PrunebenchError if the folder cannot be
    written, samples are not those that were sealed, or without `damaged` a record is none.
    """
    known = distinct(cells)
    collected = records(folder, damaged)
    kept = kept or Kept(folder)
    arranged = sections(known)
    studied: list[tuple[Section, Findings | None]] = []
    pairs: list[list[Comparison]] = []
    for section in arranged:
        found, two = study_pairs(section, kept) if samples else (None, [])
        studied.append((section, found))
        pairs.append(two)
    csv, markdown = folder / CSV, folder / MARKDOWN
    make_folder(folder, "results")
    drawn: list[list[str]] = [[] for _ in studied]
    if figures:
        from harness.tables.figures import draw  # matplotlib

        drawn = draw(studied, folder, kept)
    frame = rows(known.values(), arranged)
    if samples:
        _with_answers(frame, studied)
        write_changed(folder / SIGNIFICANCE, _csv(_significance(studied, pairs)))
    with_names(frame, [*known.values()], collected)
    write_changed(folder / EQUAL_FLOPS, _csv(equal.frame(section for section, _ in studied)))
    write_changed(csv, _csv(frame))
    parts = ["# Leaderboard\n"] + ([] if known else ["No sealed cells yet.\n"])
    parts += [f"{part}\n" for part in models_text(studied)]
    for (section, found), shown, two in zip(studied, drawn, pairs, strict=True):
        parts.append(section_text(section, found, shown, two))
        parts += [f"{part}\n" for part in follow_up_text(section, kept)] if samples else []
    parts += [part] if (part := measured_text(arranged, collected)) else []
    write_changed(markdown, "\n".join([*parts, footer(folder)]).encode(errors="backslashreplace"))
    if samples or figures:
        kept.save()
    return csv, markdown


def rewrite(folder: Path, damaged: list[str]) -> tuple[Path, Path]:
    """`write` from all cells and records of a results folder that are as they were written; the others are said in
    `damaged`."""
    kept = Kept(folder)
    return write(Store(folder).cells(damaged, kept.check), folder, kept=kept, damaged=damaged)


def whole_rows(cells: Iterable[SealedCell], kept: Kept | None = None) -> pd.DataFrame:
    """The frame that `write` writes as leaderboard.csv; statistics that `kept` knows are not computed again."""
    known = distinct(cells)
    arranged = sections(known)
    frame = rows(known.values(), arranged)
    _with_answers(frame, [(section, study(section, kept)) for section in arranged])
    return frame


def _csv(frame: pd.DataFrame) -> bytes:
    return csv_text(frame).encode(errors="backslashreplace")


def _with_answers(frame: pd.DataFrame, studied: Sequence[tuple[Section, Findings | None]]) -> None:
    """Put agreement, the hard subset and the answer-relevant patches into the frame of `rows`, behind the KV cache."""
    agreement = {identity: percent for _, found in studied if found for identity, percent in found.agreement.items()}
    hard = {key: value for _, found in studied if found for key, value in found.hard.items()}
    mine = [hard.get(key) for key in zip(frame["budget"], frame["identity"], strict=True)]
    at = list(frame.columns).index("kv_mib") + 1
    frame.insert(at, "agreement_pct", [agreement.get(identity, NAN) for identity in frame["identity"]])
    frame.insert(at + 1, "hard_n", pd.Series([value.n if value else None for value in mine], dtype="Int64"))
    frame.insert(at + 2, "hard_pct", [value.percent if value else NAN for value in mine])
    shares = {identity: share for _, found in studied if found for identity, share in found.relevant.items()}
    kept = [shares.get(identity) for identity in frame["identity"]]
    frame.insert(at + 3, "relevant_n", pd.Series([one.questions if one else None for one in kept], dtype="Int64"))
    frame.insert(at + 4, "relevant_kept_pct", [one.kept if one else NAN for one in kept])
    frame.insert(at + 5, "relevant_layers_pct", [one.layers if one else NAN for one in kept])


def _significance(
    studied: Sequence[tuple[Section, Findings | None]], pairs: Sequence[Sequence[Comparison]]
) -> pd.DataFrame:
    """One row per comparison, its section first; in a section the pairs of lines stand last."""
    records = [
        {"section": section.title} | {f.name: getattr(c, f.name) for f in fields(c)}
        for (section, found), two in zip(studied, pairs, strict=True)
        if found
        for c in (*found.comparisons, *two)
    ]
    return pd.DataFrame(records, columns=["section", *(f.name for f in fields(Comparison))])
