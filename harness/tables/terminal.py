"""The table that a terminal shows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages
from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]

from harness.core.shown import printable
from harness.tables.sections import SHORT
from harness.tables.text import decimal, score_with_interval, significant, unproven

#: columns of characters that a table keeps to, unless its names are longer
WIDTH = 110
#: a longer name is wrapped: the first of these that makes a table fit, else the last
NAMES = (24, 16, 12, 10, 8)
Row = Mapping[str, Any]


def table(df: pd.DataFrame, wide: bool = False) -> str:
    """The frame of `rows` as a table for the terminal; model, method, budget, positions and seed are shown where they
    differ, and settings behind the method where they tell two rows apart.

    The narrow table keeps to `WIDTH`; names are wrapped, never cut, and a line below says so where they do not fit.
    `wide`: every column, and no name is wrapped.
    """
    if df.empty:
        return "no sealed cells yet"
    records: list[dict[str, Any]] = [
        {str(name): printable(value) if isinstance(value, str) else value for name, value in row.items()}
        for row in df.to_dict("records")
    ]
    records = [row | {"model": name} for row, name in zip(records, _models(records), strict=True)]
    settings = _telling(records)
    if any(settings):
        records = [
            row | {"method": f"{row['method']} {more}".strip()} for row, more in zip(records, settings, strict=True)
        ]
    varying = [name for name in ("model", "method", "budget", "positions", "seed") if _differs(records, name)]
    if wide:
        return "\n\n".join([_wide(records, varying), *_unproven(records)])
    if "seed" in varying:  # in the method's column
        varying.remove("seed")
        drawn = {row["method"] for row in records if row["seed"]}
        named = [f"{row['method']} seed={row['seed']}" if row["method"] in drawn else row["method"] for row in records]
        records = [row | {"method": name} for row, name in zip(records, named, strict=True)]
        varying = [name for name in ("model", "method", "budget", "positions") if _differs(records, name)]
    return "\n\n".join([_narrow(records, varying), *_unproven(records)])


def _unproven(records: Sequence[Row]) -> list[str]:
    """A line for each family on which methods are not proven."""
    families: dict[str, list[str]] = {}
    for row in records:
        if row["unproven"] != "none":
            families.setdefault(row["unproven"], []).append(row["method"].split()[0])
    return [unproven(family, names) for family, names in families.items()]


def _models(records: Sequence[Row]) -> list[str]:
    """The model of each row, with its weights where two models share a name."""
    weights: dict[str, set[str]] = {}
    for row in records:
        weights.setdefault(row["model"], set()).add(row["model_fingerprint"])
    return [
        f"{row['model']} {row['model_fingerprint'][:SHORT]}" if len(weights[row["model"]]) > 1 else row["model"]
        for row in records
    ]


def _differs(records: Sequence[Row], name: str) -> bool:
    return len({row[name] for row in records}) > 1


def _telling(records: Sequence[Row]) -> list[str]:
    """Per row, its settings that differ within the rows of the same names: `boundary=2`."""
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in records:
        alike.setdefault(_names(row), []).append(json.loads(row["knobs"]))
    said = []
    for row in records:
        mine, others = json.loads(row["knobs"]), alike[_names(row)]
        telling = [knob for knob in mine if any(other.get(knob) != mine[knob] for other in others)]
        said.append(" ".join(f"{knob}={mine[knob]}" for knob in telling))
    return said


def _names(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("model", "method", "budget", "positions", "task", "dtype", "device"))


def _narrow(records: Sequence[Row], varying: Sequence[str]) -> str:
    head = [
        *varying,
        "task",
        "score\n[95 % interval]",
        "% of\nunpruned\nscore",
        "kept\ntokens",
        "mean\nvisual\ntokens/\nlayer",
        "% of\nunpruned\nLLM\nFLOPs",
        "% of\nunpruned\ntower +\nLLM\nFLOPs",
        "answers",
    ]
    values = [
        [
            row["task"],
            score_with_interval(row).replace(" of ", "/"),
            decimal(row["pct_of_unpruned"]),
            decimal(row["kept"]),
            decimal(row["mean_visual"]),
            decimal(row["pct_of_unpruned_flops"]),
            decimal(row["pct_of_unpruned_tower_and_prefill"]),
            _answered(row),
        ]
        for row in records
    ]
    return fitted(head, [[str(row[name]) for name in varying] for row in records], values)


def fitted(
    head: Sequence[str],
    names: Sequence[Sequence[str]],
    values: Sequence[Sequence[str]],
    widths: Sequence[int] = NAMES,
) -> str:
    """A table of `WIDTH` columns of characters: per row its names, which are wrapped and flush left, and its values, of
    which the first is flush left too. A line below says so where it does not fit.

    `widths`: characters above which a name is wrapped, the first that makes the table fit.
    """
    for longest in widths:
        wrapped = [[_wrapped(name, longest) for name in row] for row in names]
        body = [[*name, *value] for name, value in zip(wrapped, values, strict=True)]
        text = laid_out(head, body, left=len(names[0]) + 1)
        width = max(map(len, text.splitlines()))
        if width <= WIDTH:
            return text
    return f"{text}\n\nThis table has {width} columns of characters and not {WIDTH}, for its names are long."


def _answered(row: Row) -> str:
    """`108`, or `100/108` for a cell that lacks answers."""
    whole = row["answered"] == row["expected"]
    return str(row["expected"]) if whole else f"{row['answered']}/{row['expected']}"


def _wrapped(name: str, longest: int) -> str:
    """A long name on several lines, parted behind blanks, slashes, commas and hyphens; a piece is never cut."""
    if len(name) <= longest:
        return name
    lines = [""]
    for piece in re.findall(r"[^ /,-]*[ /,-]?", name):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > longest:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def laid_out(head: Sequence[str], body: Sequence[Sequence[str]], left: int) -> str:
    """Columns two blanks apart, the first `left` of them flush left; a cell may hold several lines."""
    widths = [max(len(line) for row in (head, *body) for line in row[i].split("\n")) for i in range(len(head))]

    def lines(row: Sequence[str]) -> list[str]:
        parts = [cell.split("\n") for cell in row]
        height = max(map(len, parts))
        filled = [part + [""] * (height - len(part)) for part in parts]
        return [
            "  ".join(
                part[n].ljust(width) if i < left else part[n].rjust(width)
                for i, (part, width) in enumerate(zip(filled, widths, strict=True))
            ).rstrip()
            for n in range(height)
        ]

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([*lines(head), rule, *(line for row in body for line in lines(row))])


def _wide(records: Sequence[Row], varying: Sequence[str]) -> str:
    head = [
        *varying,
        "task",
        "metric",
        "score [95 % interval]",
        "% of unpruned",
        "kept\n(tokens)",
        "mean visual\n(tokens/layer)",
        "prefill dense\n(GFLOPs)",
        "% of unpruned\nLLM FLOPs",
        "tower + prefill\n(GFLOPs)",
        "% of unpruned\ntower + LLM FLOPs",
        "KV\n(MiB)",
        "answered/\nexpected",
    ]
    body = [
        [
            *(str(row[name]) for name in varying),
            row["task"],
            row["metric"],
            score_with_interval(row),
            decimal(row["pct_of_unpruned"]),
            decimal(row["kept"]),
            decimal(row["mean_visual"]),
            significant(row["prefill_dense_gflops"]),
            decimal(row["pct_of_unpruned_flops"]),
            significant(row["tower_and_prefill_gflops"]),
            decimal(row["pct_of_unpruned_tower_and_prefill"]),
            significant(row["kv_mib"]),
            f"{row['answered']}/{row['expected']}",
        ]
        for row in records
    ]
    align = ["left"] * (len(varying) + 2) + ["right"] * (len(head) - len(varying) - 2)
    return str(tabulate(body, headers=head, disable_numparse=True, colalign=align))
