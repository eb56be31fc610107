"""Results as papers print them, in our names where these fit: cleaned into results/published.csv, shown beside measured
ones.

A published number stands beside one of ours only where model, method, task, metric and budget *with its unit* agree.
Where a source does not say enough, the field is empty and nothing is matched: "F1/acc as reported" is no metric, "22 %"
no budget.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import NamedTuple

from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.core.paths import DATA
from harness.core.shape import Share
from harness.store.sealed import SealedCell
from harness.tables.sections import NAN, Line, mean

PATH = DATA / "results" / "published.csv"
RAW = (
    "model",
    "method",
    "budget_label",
    "budget_semantics",
    "task",
    "metric",
    "value",
    "flops_T",
    "flops_reduction_pct",
    "source",
    "note",
)
"""Columns of the collected table that is cleaned."""
MODELS = {"LLaVA-1.5-7B": "llava-1.5-7b", "LLaVA-1.5-13B": "llava-1.5-13b", "Qwen2.5-VL-7B": "qwen2.5-vl-7b"}
METHODS = {
    "vanilla": "none",
    "Random": "random",
    "Pooling": "pooling",
    "FastV": "fastv",
    "FastV (official code)": "fastv",
    "SparseVLM": "sparsevlm",
    "VisiPruner": "visipruner",
    "VisionZip": "visionzip",
    "FasterVLM": "fastervlm",
    "VisPruner": "vispruner",
    "DivPrune": "divprune",
    "CDPruner": "cdpruner",
    "PruMerge": "prumerge",
    "PruMerge (training-free)": "prumerge",
    "PruMerge+": "prumerge plus=true",
    "HiPrune": "hiprune",
    "HoloV": "holov",
    "VScan": "vscan",
    "MMTok": "mmtok",
    "PyramidDrop": "pyramiddrop",
    "DART": "dart",
    "V2Drop": "v2drop",
    "VTW": "vtw",
    "FitPrune": "fitprune",
}
"""Names in tables, and ours. Finetuned checkpoints and combinations of methods have none of ours."""
VARIANTS = {
    ("prumerge", "plus", True): "prumerge plus=true",
    ("sparsevlm", "plus", True): "",
    ("cdpruner", "relevance", "none"): "",
    ("visipruner", "variant", "paper"): "",
    ("vscan", "official", "qwen-flash"): "",
    ("vscan", "official", "next-code"): "",
    ("mmtok", "select", "tower-distance"): "",
}
"""Knobs that make another method of one of ours: the name under which it was published, "" where it was not."""
METRICS = {
    ("GQA", "acc"): ("gqa", "exact_match"),
    ("POPE", "F1"): ("pope", "pope_f1_score_mean"),
    ("POPE", "accuracy"): ("pope", "pope_accuracy"),
    ("POPE", "F1/acc as reported"): ("pope", ""),
    ("MME", "perception"): ("mme", "mme_perception_score"),
    ("MME", "cognition"): ("mme", "mme_cognition_score"),
    ("MME", "total"): ("mme", "mme_total_score"),
}
IN_LLM = ("FastV", "SparseVLM", "PyramidDrop", "VTW", "FitPrune", "V2Drop")
"""Drop inside the language model: a bare number in a table means their average per layer."""
PRE_LLM = (
    "VisionZip",
    "VisPruner",
    "DivPrune",
    "CDPruner",
    "PruMerge",
    "PruMerge+",
    "HoloV",
    "TRIM",
    "FasterVLM",
    "HiRED",
    "HiPrune",
    "Random",
    "Pooling",
)
SHORT = {
    "exact visual tokens fed to all LLM layers (pre-LLM)": "visual tokens before the language model",
    "as labelled in the table (in-LLM methods: layer average; pre-LLM methods: exact)": (
        "average per layer, or before the language model"
    ),
    "layer-averaged visual tokens": "average per layer",
}
"""Budget semantics that most rows have, in fewer words."""
LLAVA = tuple(name for name in MODELS if name.startswith("LLaVA-1.5"))
WITH_OCR = 50.0  # LLaVA-1.5 reaches about 46 % of TextVQA without OCR tokens in the prompt, 58 % with them


@dataclass(frozen=True)
class Printed:
    """One printed number; an empty field is one that the source does not settle, or that we have no name for."""

    model: str
    """Ours where there is one in `MODELS`, else as published."""
    method: str
    """The registry's name, with the knob of `VARIANTS` that makes it another method."""
    method_as_published: str
    budget: str
    """In our units: "64", "0.25kept", "64avg", "native", "none"."""
    budget_as_published: str
    task: str
    task_as_published: str
    metric: str
    """Our name where the source says which it is; empty for "F1/acc as reported"."""
    metric_as_published: str
    value: str
    """Percent, or points for MME; as printed."""
    flops_T: str  # noqa: N815  (the column's name)
    """10^12, by the source's own convention."""
    source: str
    note: str


class Match(NamedTuple):
    """One measured number and what was published for it."""

    line: str
    budget: str
    task: str
    metric: str
    n: int
    measured: float
    low: float
    high: float
    values: Sequence[tuple[str, str]]
    """(value as printed, source)."""


def clean(source: Path) -> tuple[str, int]:
    """The text of published.csv from a collected table with the columns `RAW`, and how many rows had no source one
    could cite.

    Raises PrunebenchError for another header, or a value that is not a number.
    """
    try:
        with source.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, header = list(reader), tuple(reader.fieldnames or ())
    except OSError as error:
        raise PrunebenchError(f"cannot read {source}: {error.strerror}; give a CSV file of published results") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise PrunebenchError(f"{source}: expected a CSV file as UTF-8 text, found another ({error})") from None
    if header != RAW:
        raise PrunebenchError(f"{source}: expected the columns {', '.join(RAW)}, found {', '.join(header)}")
    with_ocr = {
        r["source"]
        for r in rows
        if r["task"] == "TextVQA" and r["model"] in LLAVA and _number(source, r["value"]) > WITH_OCR
    }
    kept: dict[Printed, None] = {}
    dropped = 0
    for row in rows:
        _number(source, row["value"])
        if row["flops_T"]:
            _number(source, row["flops_T"])
        cited = _source(row["source"])
        if not cited:
            dropped += 1
            continue
        task, metric = METRICS.get((row["task"], row["metric"]), ("", ""))
        if row["task"] == "TextVQA" and row["model"] in LLAVA and row["metric"] == "acc":
            task, metric = ("textvqa_ocr" if row["source"] in with_ocr else "textvqa"), "exact_match"
        if metric == "pope_f1_score_mean":
            metric = _pope_f1(row["source"], row["note"])
        semantics, _, remark = row["budget_semantics"].partition("; MMStar")
        asked = (
            row["budget_label"]
            if semantics == "no pruning"
            else f"{row['budget_label']}: {SHORT.get(semantics, semantics)}"
        )
        notes = [
            "" if row["note"] == "unit-test target" else row["note"],
            f"MMStar{remark}" if remark and row["task"] == "MMStar" else "",
        ]
        kept[
            Printed(
                MODELS.get(row["model"], row["model"]),
                METHODS.get(row["method"], ""),
                row["method"],
                budget(row["method"], row["budget_label"], semantics),
                asked,
                task,
                row["task"],
                metric,
                row["metric"],
                row["value"],
                row["flops_T"],
                cited,
                "; ".join(filter(None, notes)),
            )
        ] = None
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([f.name for f in fields(Printed)])
    writer.writerows(astuple(row) for row in kept)
    return out.getvalue(), dropped


def budget(method: str, label: str, semantics: str) -> str:
    """A published budget in our units, or "" where it does not say which it is."""
    number = re.match(r"\d+", label)
    if semantics == "no pruning":
        return "none"
    if semantics.startswith("dynamic") and method == "VisiPruner":
        return "native"
    share = re.fullmatch(r"([0-9.]+)%", label)
    if share and semantics == "share of the prompt's visual tokens, before the language model":
        return str(Budget("kept", Share(float(f"{share[1]}e-2"))))
    if semantics.startswith("layer-averaged"):
        plain = re.fullmatch(r"(\d+)( avg)?", label)
        return f"{plain[1]}avg" if plain else ""
    if semantics.startswith("exact visual tokens") or re.match(r"\d+ retained", semantics):
        return label if label.isdigit() else ""
    if semantics.startswith("as labelled") and number and label.isdigit():
        return f"{label}avg" if method in IN_LLM else label if method in PRE_LLM else ""
    if method == "DART":
        # of 128 its code keeps 4 + 8 * 16 from layer 2 on; a bare number in another table may be this or a mean
        said = label.isdigit() and re.search(r"kept after layer 2\b", semantics)
        return "" if not said else "native" if label == "128" else str(4 + int(label) // 8 * 8)
    after = re.match(r"(\d+) (?:kept )?after layer (\d+)", semantics)
    if after and method.startswith(
        "FastV"
    ):  # a count is ours only at our K = 2, where half of 576 is what FastV itself published
        return "" if after[2] != "2" else "native" if after[1] == "288" else after[1]
    return after[1] if after else ""


def _pope_f1(source: str, note: str) -> str:
    """Papers print the mean over POPE's subsets; numbers of one subset, or of lmms-eval itself, say so."""
    subset = re.search(r"POPE (adversarial|popular|random) split", note)
    if subset:
        return f"pope_f1_score/{subset[1]}"
    return "lmms_eval/pope_f1_score" if "lmms-eval" in source else "pope_f1_score_mean"


def _source(text: str) -> str:
    """Without record numbers of a search index; "" where nothing that one could look up is left."""
    text = re.sub(r"\s*\(index ids? [\d, +]*\d\)", "", text)
    text = re.sub(r" via index id \d+", ", at second hand", text)
    text = re.sub(r",? index ids? \d+(?:\s*[+,]\s*\d+)*", "", f" {text}").strip(" ,")
    return "" if text.startswith(("independent reproduction", "table at")) else text


def _number(source: Path, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise PrunebenchError(f"{source}: expected a number, found {text!r}") from None


def load(path: Path = PATH) -> list[Printed]:
    """The rows of published.csv. Raises PrunebenchError if it is not there or not as `prunebench dev published` writes
    it."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            return [Printed(**row) for row in reader]
    except OSError as error:
        raise PrunebenchError(f"cannot read {path}: {error.strerror}; restore it from the repository") from None
    except TypeError as error:
        raise PrunebenchError(
            f"{path}: expected what `prunebench dev published` writes, found other columns ({error}); restore it"
        ) from None


def ours(stands_for: str) -> str | None:
    """The name in published.csv of the configuration that a model stands for, if results of it were published."""
    return stands_for if stands_for in MODELS.values() else None


def beside(published: Iterable[Printed], model: str, lines: Iterable[Line]) -> list[Match]:
    """Measured numbers that published ones exist for, in the order of the lines.

    A line with a position policy of its own is nobody's published method. The interval is given where the metric is the
    headline and there is one seed.
    """
    rows = [row for row in published if row.model == model and row.method and row.budget and row.task and row.metric]
    found = []
    for line in lines:
        if line.positions != "method":
            continue
        for task, seeds in sorted(line.cells.items()):
            name = _published_name(line.method, seeds[0])
            here = [row for row in rows if (row.method, row.budget, row.task) == (name, line.budget, task)]
            for metric in dict.fromkeys(row.metric for row in here):
                values = [_measured(sealed, metric) for sealed in seeds]
                if None in values:
                    continue
                unit = 1.0 if metric.startswith("mme_") else 100.0
                measured = unit * mean([value for value in values if value is not None])
                interval = seeds[0].interval if len(seeds) == 1 and metric == seeds[0].headline else None
                ends = (unit * interval.low, unit * interval.high) if interval else (NAN, NAN)
                printed = list(dict.fromkeys((row.value, row.source) for row in here if row.metric == metric))
                found.append(
                    Match(line.label, line.budget, task, metric, seeds[0].counts["headline"], measured, *ends, printed)
                )
    return found


def _published_name(method: str, sealed: SealedCell) -> str:
    """The name in published.csv of a method with the knobs of a cell."""
    knobs = sealed.cell.knobs
    names = [name for (of, knob, value), name in VARIANTS.items() if of == method and knobs.get(knob) == value]
    return names[0] if names else method


def _measured(sealed: SealedCell, metric: str) -> float | None:
    """A metric of a cell in its own unit; MME's total is the sum of its parts, as papers print it."""
    if metric == "mme_total_score" and metric not in sealed.metrics:
        parts = [sealed.metrics.get(f"mme_{part}_score") for part in ("perception", "cognition")]
        return sum(part for part in parts if part is not None) if None not in parts else None
    return sealed.metrics.get(metric)
