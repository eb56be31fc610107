"""Fill the tables and numbers of README.md, docs/ and the cards: `prunebench dev readme`. No number is typed by hand.

Tables come from sealed cells, from schedules, and from what is registered: methods, adapters of model families, tasks.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]

from harness.core.errors import PrunebenchError, unknown
from harness.core.shape import SHAPES
from harness.cost.units import units_table
from harness.method import registered
from harness.method.about import about
from harness.models import matrix
from harness.models.adapters import ADAPTERS
from harness.models.config import known_models
from harness.store.sealed import SealedCell
from harness.store.store import Store
from harness.tables import markdown, rankings_text, terminal
from harness.tables.frame import rows
from harness.tables.in_common import read_side
from harness.tables.rankings import Rankings, rankings
from harness.tables.rankings_files import figure_names, figures
from harness.tables.sections import Section, distinct, sections
from harness.tables.text import grid
from harness.upkeep.numbers import GOLDENS, NUMBERS, counted
from tasks import sources

#: the main job of the README's first screen
METHOD, BUDGET = "visipruner", "64"
TEXT_TOKENS = 74
TASKS = ["gqa", "mme", "pope", "textvqa"]
#: files with marked tables
FILES = (
    "README.md",
    "docs/analysis.md",
    "docs/budgets.md",
    "docs/methods.md",
    "docs/two-models.md",
    "tasks/mini/MODEL_CARD.md",
    "tasks/mini/qwen/MODEL_CARD.md",
)
#: every page that the command writes
PAGES = tuple(dict.fromkeys((*FILES, *(number.page for number in NUMBERS))))
#: of docs/two-models.md, and the folder of its figures, as the page names it
MODELS = ("mini", "mini-qwen")
IMAGES = "images"


def _at_defaults(results: Path) -> list[SealedCell]:
    """The cells of `mini` in a run without LIMIT and POSITIONS: what the README shows."""
    every = (c for c in Store(results).cells() if c.cell.model == "mini")
    return [c for c in every if c.asked.limit is None and c.cell.positions == "method"]


def main_table(results: Path) -> str:
    """The terminal table of the main job, from the cells in `results`. Raises PrunebenchError where a cell is
    missing."""
    shown = (("none", "none"), (METHOD, BUDGET))
    cells = [c for c in _at_defaults(results) if (c.cell.method, c.cell.budget) in shown]
    table = rows(cells)
    for task in TASKS:
        found = sorted(table.loc[table["task"] == task, "method"])
        if found != ["none", METHOD]:
            command = f"make eval METHOD={METHOD} BUDGET={BUDGET} RESULTS={results}"
            raise PrunebenchError(
                f"{results}: expected one cell of none and one of {METHOD} for {task}, found {found}: run `{command}`"
            )
    return terminal.table(_ordered(table))


def glance(results: Path) -> str:
    """The head of the leaderboard: Avg % of every method at every budget, and what is on the Pareto front, as
    LEADERBOARD.md has them.

    Raises PrunebenchError where that file is missing or holds no such table.
    """
    file = results / "LEADERBOARD.md"
    text = file.read_text() if file.is_file() else ""
    table = re.search(rf"^### Avg % at a glance\n\n(.*?\n\n{re.escape(markdown.FRONT)})$", text, re.M | re.S)
    if table is None:
        raise PrunebenchError(
            f"{file}: expected a leaderboard with pruned methods: run `make sweep leaderboard RESULTS={results}`"
        )
    return table[1]


def stages(results: Path) -> str:
    """The stages that `make analyze` found on the mini model, and what VisiPruner does with its scaled defaults and
    with the derived knobs.

    Raises PrunebenchError where the analysis or the cells are missing.
    """
    file = results / "analysis" / "mini" / "analysis.json"
    if not file.is_file():
        raise PrunebenchError(f"{file}: expected the analysis of the mini model: run `make analyze OUT={file.parent}`")
    found = json.loads(file.read_text())
    at, sure = found["stages"], found["stages"]["uncertainty"]
    first, until = at["shallow_end"], at["not_needed_from"]
    lines = [
        ["shallow", f"0 to {first - 1}" if first else "none", f"{100 * sure['shallow_end'].get(str(first), 0):.0f}"],
        [
            "fusion",
            ", ".join(map(str, at["fusion"])),
            ", ".join(f"{100 * sure['fusion'].get(str(layer), 0):.0f}" for layer in at["fusion"]),
        ],
        [
            "vision not needed",
            f"{until} to {found['depth'] - 1}",
            f"{100 * sure['not_needed_from'].get(str(until), 0):.0f}",
        ],
    ]
    table = tabulate(
        lines, headers=["stage", "layers", "bootstrap samples that agree (%)"], tablefmt="github", disable_numparse=True
    )
    frame = rows(c for c in _at_defaults(results) if c.cell.method in (METHOD, "none"))
    plain = frame[frame["method"] == "none"].set_index("task").loc[TASKS]
    effect = [["unpruned", *_scores(plain), f"{plain['kept'].mean():.1f}", "100.0", "100.0"]]
    for budget, name in (
        ("native", "scaled defaults (`native`)"),
        ("calibrated", "derived from this analysis (`calibrated`)"),
    ):
        mine = frame[(frame["method"] == METHOD) & (frame["budget"] == budget)].set_index("task")
        if set(TASKS) != set(mine.index) or len(mine) != len(TASKS) or mine["pct_of_unpruned_flops"].isna().any():
            raise PrunebenchError(
                f"{results}: expected none and {METHOD} at {budget} on {', '.join(TASKS)}: run `make sweep"
                f" RESULTS={results}`"
            )
        mine = mine.loc[TASKS]
        means = [mine[of].mean() for of in ("kept", "pct_of_unpruned_flops", "pct_of_unpruned_tower_and_prefill")]
        effect.append([name, *_scores(mine), *(f"{value:.1f}" for value in means)])
    head = [
        "VisiPruner's knobs",
        "gqa (%)",
        "mme (points)",
        "pope (%)",
        "textvqa (%)",
        "kept (tokens)",
        "of unpruned FLOPs (%)",
        "of unpruned tower + LLM FLOPs (%)",
    ]
    return f"{table}\n\n{tabulate(effect, headers=head, tablefmt='github', disable_numparse=True)}"


def _scores(frame: Any) -> list[str]:
    """`97.2 [94.4, 100.0]` per row: per cent, or points where the maximum is not 1."""
    shown = []
    for score, low, high, top in zip(
        *(frame[name].astype(float) for name in ("score", "low", "high", "max")), strict=True
    ):
        unit = 1 if top > 1 else 100
        shown.append(f"{unit * score:.1f} [{unit * low:.1f}, {unit * high:.1f}]")
    return shown


def card_table(results: Path, model: str = "mini") -> str:
    """An unpruned embedded model on every question. Raises PrunebenchError where a cell is missing, but says so in the
    table of a model other than `mini` that has none at all."""
    ours = [c for c in Store(results).cells() if c.cell.model == model]
    cells = [c for c in ours if c.cell.method == "none" and c.asked.limit == "all"]
    if model != "mini" and not ours:
        return f"no cells of {model}"
    if not set(TASKS) <= {c.cell.task for c in cells}:
        named = "" if model == "mini" else f" MODEL={model}"
        raise PrunebenchError(
            f"{results}: expected the unpruned model on all questions: run `make eval METHOD=none{named} LIMIT=all"
            f" RESULTS={results}`"
        )
    return terminal.table(_ordered(rows(cells)))


def two_models(results: Path) -> str:
    """Whether rankings of methods agree between `MODELS`; a sentence where `results` lacks one of them. Raises as
    `rankings`."""
    arranged = sections(distinct(Store(results).cells()))
    found = _rankings(arranged)
    if found is None:
        there = {c.cell.model for s in arranged for c in s.cells if c.cell.method != "none"}
        lacking = " and ".join(f"`{model}`" for model in MODELS if model not in there)
        return f"The committed cells cannot be compared: there are no pruned cells of {lacking}."
    return rankings_text.markdown(found, [(said, f"{IMAGES}/{name}") for said, name in figure_names(found)])


def draw_two_models(results: Path, folder: Path) -> list[Path]:
    """Draw the figures of `two_models` into the folder; returns their paths, none where there is nothing to draw."""
    found = _rankings(sections(distinct(Store(results).cells())))
    return [folder / name for _, name in figures(found, folder)] if found else []


def _rankings(arranged: Sequence[Section]) -> Rankings | None:
    """None where a model has no pruned cells."""
    if not {c.cell.model for s in arranged for c in s.cells if c.cell.method != "none"} >= set(MODELS):
        return None
    first, second = (read_side(model, arranged) for model in MODELS)
    return rankings((first, second))


def supported() -> str:
    """Which methods, model families, named models and tasks there are, one line each."""
    named: dict[str, Iterable[str]] = {
        "methods": registered(),
        "model families": ADAPTERS,
        "models with a name": known_models(),
        "tasks of lmms-eval": sources.TASKS,
    }
    return grid(["what", "names"], [list(named), [_code(names) for names in named.values()]], left=2)


def methods() -> str:
    """Every registered method: where it comes from, where it decides, what it needs, and how many runs of its official
    code are recorded."""
    recorded = Counter(case["method"] for case in json.loads(GOLDENS.read_text()))
    lines = []
    for one in map(about, registered().values()):
        paper = f"[{one.paper.rpartition('/')[2]}]({one.paper})" if one.paper else ""
        made = one.published
        code = f"[{made.repository}]({one.official_link}) @ {made.commit}" if made else ""
        lines.append(
            [
                f"`{one.name}`",
                one.kind,
                paper,
                made.venue if made else "",
                code,
                made.licence if made else "",
                _yes(one.query_aware),
                _yes(one.needs_cls),
                one.beside,
                one.native,
                str(recorded[one.name] or ""),
            ]
        )
    head = [
        "method",
        "kind",
        "paper",
        "venue",
        "official code",
        "licence there",
        "reads the question",
        "needs [CLS]",
        "beside the fused kernel",
        "tokens at `native`",
        "recorded runs",
    ]
    return grid(head, list(zip(*lines, strict=True)), left=len(head) - 1)


def knobs() -> str:
    """Every registered method: its knobs with their defaults, and its traits."""
    lines = [[f"`{one.name}`", _code(one.knobs), ", ".join(one.traits)] for one in map(about, registered().values())]
    return grid(["method", "knobs", "traits"], list(zip(*lines, strict=True)), left=3)


def differences() -> str:
    """What each method with official code does otherwise than that code, and a caveat on the mini model, as its file
    says."""
    found = [one for one in map(about, registered().values()) if one.published]
    said = {one.name: f"{one.differs} On `mini`: {one.on_mini}" if one.on_mini else one.differs for one in found}
    lines = [[f"`{name}`", text.replace("|", "\\|")] for name, text in said.items()]
    return grid(["method", "differs from the official code"], list(zip(*lines, strict=True)), left=2)


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _ordered(table: Any) -> Any:
    return table[table["task"].isin(TASKS)].sort_values("task", key=lambda s: s.map(TASKS.index), kind="stable")


def made(page: str, text: str, results: Path) -> str:
    """A page with its tables and the numbers of its sentences made anew. Raises as `filled` and `counted`."""
    return counted(page, filled(text, results) if page in FILES else text, results)


def filled(text: str, results: Path) -> str:
    """`text` with its marked tables made anew."""
    makers: dict[str, Callable[[], str]] = {
        "main": lambda: f"```\n{main_table(results)}\n```",
        "glance": lambda: glance(results),
        "stages": lambda: stages(results),
        "supported": supported,
        "methods": methods,
        "families": lambda: matrix.matrix(registered().values(), "github"),
        "knobs": knobs,
        "differences": differences,
        "units": lambda: units_table(SHAPES["llava-1.5-7b"].with_text(TEXT_TOKENS)),
        "two_models": lambda: two_models(results),
        "card": lambda: f"```\n{card_table(results)}\n```",
        "card_qwen": lambda: f"```\n{card_table(results, 'mini-qwen')}\n```",
    }
    marked = re.findall(r"<!-- table:(\w+) -->", text)
    if not marked:
        raise PrunebenchError(
            "expected markers such as <!-- table:main --> and <!-- /table:main --> in the text, found none"
        )
    for name in marked:
        if name not in makers:
            raise unknown("table", name, makers)
        table = makers[name]()
        pattern = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- /table:{name} -->)", re.S)
        text, n = pattern.subn(lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text)  # type: ignore[misc]
        if n != 1:
            raise PrunebenchError(f"expected one <!-- table:{name} --> with its <!-- /table:{name} -->, found {n}")
    return text
