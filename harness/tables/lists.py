"""What `prunebench results` says of cells: a list, one cell in full, its answers, and what two cells differ in."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

from harness.core.command import evaluation
from harness.core.errors import PrunebenchError, unknown
from harness.core.shown import printable
from harness.store.choose import digits, identity
from harness.store.sealed import SealedCell
from harness.store.verify import Found
from harness.tables.frame import rows
from harness.tables.sections import SHORT
from harness.tables.terminal import NAMES, WIDTH, fitted
from harness.tables.text import csv_text, score_with_interval, significant

#: columns of a list as CSV or JSON
LISTED = (
    *("identity", "state", "task", "model", "method", "setting", "knobs", "budget", "seed", "limit", "n", "metric"),
    *("score", "low", "high", "max", "score_pct", "started", "device", "folder"),
)
#: how well an answer that counts as right is answered at least
RIGHT = 0.5
#: answers that differ and are shown as text
MOST = 20
COSTS = "costs (mean of a sample)"
#: the score that a table shows, and what is said of it
HEADLINE = "headline"
HEADLINE_FACTS = ("metric", "score", "low", "high", "maximum")
Flat = dict[str, Any]


def listed(found: Sequence[Found], cells: Sequence[SealedCell]) -> pd.DataFrame:
    """One row per folder of `found`: columns `LISTED`, empty where an unfinished or damaged cell does not tell. Sealed
    cells come first, in the order of leaderboard.csv.

    `cells`: all sealed cells, which names of settings depend on.
    """
    known = {row["identity"]: row for row in rows(cells).to_dict("records")}
    order = {name: i for i, name in enumerate(known)}
    records = []
    for one in sorted(found, key=lambda one: order[one.cell.identity] if one.cell else len(order)):
        state = "damaged" if one.wrong else "unfinished" if one.cell is None else "sealed"
        record: Flat = {"identity": identity(one), "state": state, "folder": str(one.path)}
        if one.cell is None:
            record |= {"task": one.path.parent.name, "n": one.answered}
        else:
            row = known[one.cell.identity]
            record |= {name: row[name] for name in LISTED if name in row}
            record["started"] = one.cell.provenance.get("started", "")
        records.append(record)
    frame = pd.DataFrame(records, columns=list(LISTED))
    return frame.astype({"seed": "Int64", "limit": "Int64", "n": "Int64"})


def listing(found: Sequence[Found], cells: Sequence[SealedCell], root: Path, *, filtered: bool = False) -> str:
    """The list as text within `WIDTH`: sealed cells in a table, unfinished and damaged ones a line each.

    `filtered`: others than sealed cells were left out, and are not counted.
    """
    frame = listed(found, cells)
    short = digits(found)
    sealed: list[Flat] = [row for row in frame.to_dict("records") if row["state"] == "sealed"]  # type: ignore[misc, unused-ignore]
    lines = [_table(sealed, short)] if sealed else []
    for one in found:
        where = one.path.relative_to(root / "cells")
        if one.wrong:
            lines.append(f"damaged     {where}: {one.wrong[0]}")
        elif one.cell is None:
            lines.append(f"unfinished  {where}: {one.answered} answers")
    states = ("sealed",) if filtered else ("sealed", "unfinished", "damaged")
    counts = {state: int((frame["state"] == state).sum()) for state in states}
    return "\n".join([*lines, ", ".join(f"{n} {state}" for state, n in counts.items())])


def _table(sealed: Sequence[Mapping[str, Any]], short: int) -> str:
    optional = [name for name in ("model", "limit") if len({str(row[name]) for row in sealed}) > 1]
    head = ["id", "task", *(["model"] if "model" in optional else []), "setting", "budget"]
    head += [*(["LIMIT"] if "limit" in optional else []), "questions", "score [95 % interval]"]
    names, values = [], []
    for row in sealed:
        names.append([row["identity"][:short], row["task"], *([row["model"]] if "model" in optional else [])])
        names[-1].append(row["setting"])
        limit = [] if "limit" not in optional else ["-" if pd.isna(row["limit"]) else str(row["limit"])]
        values.append([row["budget"], *limit, f"{row['n']:,}", score_with_interval(row)])
    return fitted(head, [[printable(name) for name in row] for row in names], values, (48, 32, *NAMES))


# --------------------------------------------------------------------------------------------------------- one cell


def flat(value: Any, name: str = "") -> Flat:
    """Nested mappings as one: `processing/image/policy`. A list stays one value."""
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    found: Flat = {}
    for key, inner in value.items():
        found |= flat(inner, f"{name}/{key}" if name else str(key))
    return found


def facts(sealed: SealedCell, cells: Sequence[SealedCell]) -> dict[str, Flat]:
    """All of a cell in parts: what it is, its scores, its costs and where it comes from. `cells`: all sealed ones."""
    row = next(row for row in rows(cells).to_dict("records") if row["identity"] == sealed.identity)
    provenance = {name: value for name, value in sealed.provenance.items() if name != "grids"}
    headline = {"metric": sealed.headline, "score": sealed.score, "low": row["low"], "high": row["high"]}
    return {
        "cell": {"identity": sealed.identity, "setting": row["setting"], "section": row["section"]}
        | flat({name: value for name, value in sealed.cell.to_dict().items() if name != "identity"}),
        "scores": flat(headline | {"maximum": sealed.maximum}, HEADLINE)
        | {name: value for name, value in sealed.metrics.items() if name != sealed.headline}
        | {"per cent of unpruned": row["pct_of_unpruned"]}
        | {f"questions {name}": n for name, n in sealed.counts.items()},
        COSTS: dict(sorted(sealed.costs.items())),
        "method": flat(dict(sealed.method_info)),
        "provenance": flat(provenance),
        "files": {"folder": str(sealed.folder), "samples_sha256": sealed.samples_sha256},
        "command": {"measures it again": evaluation(sealed.asked, fresh=True, source=sealed.cell.method_source)},
    }


def _told(scores: Flat) -> Flat:
    """The scores as text has them: metric, score, interval and maximum of the headline in one line."""
    names = [f"{HEADLINE}/{name}" for name in HEADLINE_FACTS]
    metric, score, low, high, maximum = (scores[name] for name in names)
    spread = "" if math.isnan(low) else f" [{low:.6g}, {high:.6g}]"
    bound = "" if math.isnan(maximum) else f" of {maximum:g}"
    rest = {name: value for name, value in scores.items() if name not in names}
    return {f"{metric} ({HEADLINE})": f"{score:.6g}{spread}{bound}"} | rest


def facts_frame(parts: Mapping[str, Flat]) -> pd.DataFrame:
    """The parts as one row for each value."""
    found = [[part, name, value] for part, values in parts.items() for name, value in values.items()]
    return pd.DataFrame(found, columns=["part", "name", "value"])


def facts_text(parts: dict[str, Flat]) -> str:
    """The parts as text within `WIDTH`: a value stands behind its name. A command is one line, whatever its length."""
    lines: list[str] = []
    for part, values in (parts | {"scores": _told(parts["scores"])}).items():
        lines += ["", part] if lines else [part]
        width = max(map(len, values), default=0)
        for name, value in values.items():
            text = _said(value, rounded=part == COSTS)
            pieces = [text] if part == "command" else textwrap.wrap(text, max(40, WIDTH - width - 4)) or ["-"]
            lines += [f"  {(name if n == 0 else '').ljust(width)}  {piece}" for n, piece in enumerate(pieces)]
    return "\n".join(lines)


def _said(value: Any, *, rounded: bool = False) -> str:
    if isinstance(value, float):
        usual = rounded and (abs(value) >= 0.01 or not value)
        return "-" if value != value else significant(value) if usual else f"{value:.6g}"
    if isinstance(value, str):
        return printable(value) or "-"
    return "-" if value is None else json.dumps(value, ensure_ascii=False)


# ---------------------------------------------------------------------------------------------------------- answers


def answers(sealed: SealedCell, keys: Sequence[str] = (), *, wrong: bool = False, right: bool = False) -> pd.DataFrame:
    """The samples of a cell, kept tokens aside: those of these keys, or answered this well (`RIGHT`).

    Raises PrunebenchError for a key that the cell lacks, and where its samples have no scores of their own.
    """
    frame = sealed.samples().drop(columns="keeps")
    if keys:
        known = set(frame["key"])
        for key in keys:
            if key not in known:
                raise _no_key(key, sealed, frame)
        frame = frame[frame["key"].isin(keys)]
    if wrong or right:
        if frame["score"].isna().any():
            raise PrunebenchError(
                f"{sealed.headline} of {sealed.cell.task} is no mean over questions, and its samples have no score of"
                " their own: leave out --wrong and --right"
            )
        well = sealed.metric.how_well(frame["score"])
        frame = frame[(well >= RIGHT) if right else (well < RIGHT)]
    return frame.reset_index(drop=True)


def _no_key(key: str, sealed: SealedCell, frame: pd.DataFrame) -> PrunebenchError:
    first, last = frame["key"].min(), frame["key"].max()
    return PrunebenchError(
        f"key {key!r}: expected a question of cell {sealed.identity[:SHORT]}, found none such among its {len(frame)}"
        f" ({first} to {last})"
    )


def table_of_texts(frame: pd.DataFrame, widths: Mapping[str, int]) -> str:
    """Columns of a frame within `WIDTH`: each at most as wide as said, the last as wide as there is room; longer texts
    end in an ellipsis."""
    names = list(widths)
    cells = [[_shown(value) for value in row] for row in frame[names].itertuples(index=False)]
    wide = [min(widths[name], max([len(name), *(len(row[i]) for row in cells)])) for i, name in enumerate(names)]
    wide[-1] = max(8, min(wide[-1], WIDTH - sum(wide[:-1]) - 2 * (len(wide) - 1)))
    lines = [names, ["-" * n for n in wide], *cells]
    return "\n".join("  ".join(_cut(t, n).ljust(n) for t, n in zip(row, wide, strict=True)).rstrip() for row in lines)


def _shown(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:g}" if isinstance(value, float) else printable(value)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


ANSWER_WIDTHS = {"key": 32, "category": 14, "score": 6, "target": 18, "answer": 24, "question": WIDTH}


# ------------------------------------------------------------------------------------------------------- two cells


class Difference(NamedTuple):
    """What two cells differ in; each mapping is name -> (of the first, of the second)."""

    setting: dict[str, tuple[Any, Any]]
    processing: dict[str, tuple[Any, Any]]
    """What is done to samples, and what the task says about an answer."""
    provenance: dict[str, tuple[Any, Any]]
    scores: dict[str, tuple[Any, Any]]
    costs: dict[str, tuple[Any, Any]]
    both: int
    """Questions that both answered."""
    alone: tuple[int, int]
    """Questions that only the first, and only the second, answered."""
    answers: pd.DataFrame
    """Questions with other answers or scores: key, question, target, and each one's answer and score."""


def difference(one: SealedCell, other: SealedCell) -> Difference:
    """Compare two cells of one task. Raises PrunebenchError for cells of two tasks."""
    if one.cell.task != other.cell.task:
        raise PrunebenchError(
            f"expected two cells of one task, found {one.cell.task} ({one.identity[:SHORT]}) and"
            f" {other.cell.task} ({other.identity[:SHORT]}): give two of one task"
        )
    steps = ("processing", "task_settings")
    a, b = (
        {name: value for name, value in sealed.provenance.items() if name not in ("grids", *steps)}
        for sealed in (one, other)
    )
    done = [{name: sealed.provenance.get(name) for name in steps} for sealed in (one, other)]
    first, second = (sealed.samples().set_index("key") for sealed in (one, other))
    both = [key for key in first.index if key in second.index]
    left, right = first.loc[both], second.loc[both]
    frame = pd.DataFrame(
        {
            "key": both,
            "question": list(left["question"]),
            "target": list(left["target"]),
            "answer_1": list(left["answer"]),
            "answer_2": list(right["answer"]),
            "score_1": list(left["score"]),
            "score_2": list(right["score"]),
            "same_question": [q == w for q, w in zip(left["question"], right["question"], strict=True)],
        }
    )
    scores = frame["score_1"].eq(frame["score_2"]) | (frame["score_1"].isna() & frame["score_2"].isna())
    changed = frame[~(frame["answer_1"].eq(frame["answer_2"]) & scores & frame["same_question"])]
    return Difference(
        _apart(flat(one.cell.to_dict()), flat(other.cell.to_dict())),
        _apart(flat(done[0]), flat(done[1])),
        _apart(flat(a), flat(b)),
        _apart(dict(one.metrics), dict(other.metrics)),
        _apart(dict(one.costs), dict(other.costs)),
        len(both),
        (len(first) - len(both), len(second) - len(both)),
        changed.reset_index(drop=True),
    )


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*one, *(name for name in other if name not in one)]
    pairs = {name: (one.get(name), other.get(name)) for name in names}
    return {name: (a, b) for name, (a, b) in pairs.items() if a != b and (a == a or b == b)}  # two NaN are equal


def difference_text(found: Difference, one: SealedCell, other: SealedCell) -> str:
    """The difference as text: the first cell's value, then the second's."""
    lines = [f"1  {one.folder}", f"2  {other.folder}"]
    parts = {"settings": found.setting, "processing": found.processing, "scores": found.scores}
    parts |= {COSTS: found.costs, "provenance": found.provenance}
    for part, values in parts.items():
        lines += ["", part if values else f"{part}: equal"]
        width = max(map(len, values), default=0)
        for name, (a, b) in values.items():
            pair = (_said(value, rounded=part == COSTS) for value in (a, b))
            lines.append(f"  {name.ljust(width)}  {'  |  '.join(pair)}")
    ahead = one.metric.ahead * (found.answers["score_2"] - found.answers["score_1"])
    better, worse = int((ahead > 0).sum()), int((ahead < 0).sum())
    strangers = int((~found.answers["same_question"]).sum())
    lines += ["", f"answers: {len(found.answers)} of {found.both} differ; 2 is better at {better}, worse at {worse}"]
    lines += [f"  only 1 asks {found.alone[0]} questions, only 2 asks {found.alone[1]}"] if any(found.alone) else []
    lines += [f"  {strangers} keys stand for other questions: the data differ"] if strangers else []
    if len(found.answers):
        widths = {"key": 32, "score_1": 7, "score_2": 7, "target": 16, "answer_1": 22, "answer_2": 22}
        lines.append(table_of_texts(found.answers.head(MOST), widths))
    if len(found.answers) > MOST:
        lines.append(f"{len(found.answers) - MOST} more: --format csv has all")
    return "\n".join(lines)


def exported(frame: pd.DataFrame, form: str) -> str:
    """A frame as CSV, or as a JSON list with an object for each row; a number that is not there is null."""
    if form == "csv":
        return csv_text(frame).removesuffix("\n")
    return str(frame.to_json(orient="records", indent=1, force_ascii=False, double_precision=15))


def json_text(value: Any) -> str:
    """Nested mappings and sequences as JSON; a number that is not there is null, as JSON has no NaN."""
    return json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def checked_format(form: str, known: Sequence[str]) -> None:
    """Raises PrunebenchError for an unknown format."""
    if form not in known:
        raise unknown("format", form, known)
