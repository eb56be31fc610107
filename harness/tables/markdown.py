"""The sections of LEADERBOARD.md."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from harness.core import stats
from harness.core.asked import Asked
from harness.core.cell import canonical_json
from harness.core.command import evaluation
from harness.core.costs import request_flops, with_tower
from harness.core.paths import TOP
from harness.core.shown import fenced, in_markdown
from harness.store.sealed import SealedCell
from harness.tables import equal
from harness.tables.compare import ABOVE, AVERAGE, BELOW, OPEN, SAME, TOO_FEW, Comparison, Findings, Hard, Power
from harness.tables.matrix import matrix_text
from harness.tables.sections import (
    FOLLOW_UP,
    NAN,
    QUESTIONS,
    Block,
    Line,
    Section,
    amortised_flops,
    average,
    mean,
    percent_of_flops,
    percent_with_tower,
)
from harness.tables.text import (
    DASH,
    decimal,
    grid,
    interval_text,
    mark_best,
    seeds_score,
    seeds_spread,
    significant,
    unit_of,
    unproven,
)

FRONT = "† on the Pareto front: no other line here has as few dense prefill FLOPs and as high an Avg %."
UNTRAINED = (
    "`prumerge` scores patches by the last layer of the vision tower. The training of `mini` never changed that layer:"
    " `prunebench methods prumerge` has the figures."
)
INTERPOLATED = (
    "~ marks a number that is interpolated between two neighbouring measured points of the same line. - marks a share"
    " outside the line's measured range. Shares are of the unpruned dense prefill FLOPs."
)
RANKED_FROM = 20
"""Questions of a hard subset from which on its best is marked."""
FOOTER = """\
## Reading this

Every number comes from sealed cells. Only cells of one model, prompt, dtype, device and set of questions share a section.

* **71.4 [66.0, 76.8]**: a score with its 95 % interval over images. **71.4 ±1.2 sd**: mean and standard deviation over seeds.
* **Avg %**: the score in per cent of the unpruned score, averaged over all tasks of the table.
* **bold** is best in a block and <u>underlined</u> is second, by the number as printed. **-**: not measured.
* **>** better, **<** worse, **≈** not told apart, blank not measured: signs of a matrix, the row against the column.
* **≈R** / **≈U**: no significant difference from `random` / from the unpruned model with this many questions.

{page} explains every column, mark and test. `leaderboard.csv` has a row for each cell; `significance.csv` has every comparison; `equal_flops.csv` names the points between which Avg % was interpolated.
"""  # noqa: E501 (Markdown)


def footer(folder: Path) -> str:
    """The words under a leaderboard in `folder`; the page of all words is a link inside a checkout, else a name."""
    page, here = TOP / "docs" / "leaderboard.md", folder.resolve()
    if not page.is_file() or not here.is_relative_to(TOP):
        return FOOTER.format(page="The page docs/leaderboard.md of prunebench")
    return FOOTER.format(page=f"[docs/leaderboard.md]({Path(os.path.relpath(page, here)).as_posix()})")


def section_text(
    section: Section, found: Findings | None, figures: Sequence[str], pairs: Sequence[Comparison] = ()
) -> str:
    """Everything of one section: figures, an overview, the front, a block per budget with its `pairs` of lines, the
    power of the comparison, published numbers."""
    parts = [f"## {in_markdown(', '.join(section.short))}", f"Protocol: {in_markdown(section.title)}."]
    parts += _metrics(section)
    parts += [f"![{Path(path).stem.replace('-', ' ')}]({path})" for path in figures if path.endswith(".png")]
    blocks = section.blocks()
    pruned = any(line.method != "none" for block in blocks for line in block.lines)
    if pruned:
        front = _front(section, blocks)
        parts += ["### Avg % at a glance", _glance(section, blocks, found, front), *([FRONT] if front else [])]
        parts += _caveats(section)
        parts += _equal_flops(section)
        parts += ["### Pareto front", _front_table(front)] if front else []
    for block in blocks:
        parts += _block(section, block, found, pairs)
    if found and found.power:
        parts += ["### How many questions a one-point claim needs", _power_table(found.power)]
    parts += _published(section, blocks)
    return _folded(section, parts) if section.limit else "\n\n".join(parts) + "\n"


def _folded(section: Section, parts: Sequence[str]) -> str:
    """A try: its heading says so, and the rest is folded away."""
    most = max(section.of_task(task).cell.n_samples for task in section.tasks)
    folded = f"<details><summary>a try, with at most {most:,} questions of a task</summary>"
    return "\n\n".join([f"{parts[0]} (a try)", folded, *parts[1:], "</details>"]) + "\n"


class _Point(NamedTuple):
    line: Line
    gflops: float
    percent: float


def _front(section: Section, blocks: Sequence[Block]) -> list[_Point]:
    """The lines on the Pareto front of Avg % against dense prefill FLOPs, cheapest first."""
    points = [_Point(line, _gflops(line), average(line, section)) for block in blocks for line in block.lines]
    return [points[i] for i in stats.pareto([p.gflops for p in points], [p.percent for p in points])]


def _front_table(front: Sequence[_Point]) -> str:
    columns = [
        [in_markdown(p.line.label) for p in front],
        [DASH if p.line.budget == "none" else p.line.budget for p in front],
    ]
    columns += [[significant(p.gflops) for p in front], [decimal(p.percent) for p in front]]
    return grid(["method", "budget", "prefill dense (GFLOPs)", "Avg (% of unpruned)"], columns)


def _glance(section: Section, blocks: Sequence[Block], found: Findings | None, front: Sequence[_Point]) -> str:
    """Avg % of every method at every budget; best and second of a column marked, and what is on the front."""
    budgets = [block.budget for block in blocks if any(line.method != "none" for line in block.lines)]
    first = {id(p.line) for p in front}
    series = [s for s in section.series() if s.method != "none"]
    columns = [[in_markdown(s.label) for s in series]]
    for budget in budgets:
        at = [next((line for line in s.lines if line.budget == budget), None) for s in series]
        points = mark_best([decimal(average(line, section)) if line else DASH for line in at], [True] * len(at))
        signs = [
            (same_signs(found, budget, line.name, AVERAGE) + (" †" if id(line) in first else "") if line else "")
            for line in at
        ]
        columns.append([point + sign for point, sign in zip(points, signs, strict=True)])
    return grid(["method", *budgets], columns)


def _caveats(section: Section) -> list[str]:
    """A sentence for each method that the model is no fair ground for."""
    on_mini = any("mini" in (s.cell.model, s.cell.stands_for) for s in section.cells)
    said = [UNTRAINED] if on_mini and any(s.cell.method == "prumerge" for s in section.cells) else []
    families = sorted({s.unproven for s in section.cells if s.unproven})
    return said + [
        in_markdown(unproven(one, [s.cell.method for s in section.cells if s.unproven == one])) for one in families
    ]


def _equal_flops(section: Section) -> list[str]:
    """Avg % of every line at equal shares of the unpruned dense prefill, and the range that the line was measured
    in."""
    series = [s for s in section.series() if s.method != "none"]
    points = [equal.measured(section, s) for s in series]
    if not any(points):
        return []
    columns = [[in_markdown(s.label) for s in series]]
    for share in equal.SHARES:
        found = [equal.at(p, share) for p in points]
        shown = mark_best([decimal(one.average) for one in found], [True] * len(found))
        columns.append([f"~{text}" if one.interpolated else text for text, one in zip(shown, found, strict=True)])
    columns.append([f"{p[0].flops:.1f} to {p[-1].flops:.1f}" if p else DASH for p in points])
    head = ["method", *(f"{share} % of FLOPs" for share in equal.SHARES), "measured (% of FLOPs)"]
    return ["### Avg % at equal FLOPs", grid(head, columns), INTERPOLATED]


def _gflops(line: Line) -> float:
    return line.mean(lambda sealed: sealed.costs.get("prefill_dense_flops", NAN)) / 1e9


def _block(section: Section, block: Block, found: Findings | None, pairs: Sequence[Comparison]) -> list[str]:
    """Scores, what they say, method against method, agreement and the hard subset, costs and properties, commands."""
    unpruned = block.budget == "none"
    parts = [f"### {'unpruned' if unpruned else f'budget {block.budget}'}", _scores(section, block, found)]
    if found and any(line.method != "none" for line in block.lines):
        parts += [
            *_said(section, block, found),
            *matrix_text(section, block, found, pairs),
            _answers(section, block, found),
        ]
    return [*parts, _costs(section, block, found), _commands(block)]


def _scores(section: Section, block: Block, found: Findings | None) -> str:
    tasks, ranked = section.tasks, [line.method != "none" for line in block.lines]
    head = ["method", *(_task_header(section.of_task(task)) for task in tasks), "Avg %"]
    columns = [[in_markdown(line.label) for line in block.lines]]
    for task in tasks:
        seeds = [line.cells.get(task, ()) for line in block.lines]
        scores = [seeds_score(cells) for cells in seeds]
        marked = mark_best(scores, ranked, section.of_task(task).metric.higher_is_better)
        signs = [same_signs(found, block.budget, line.name, task) for line in block.lines]
        columns.append(
            [point + seeds_spread(cells) + sign for point, cells, sign in zip(marked, seeds, signs, strict=True)]
        )
    column = []
    for line, point in zip(
        block.lines, mark_best([decimal(average(line, section)) for line in block.lines], ranked), strict=True
    ):
        low, high = (
            found.averages.get((block.budget, line.name), (NAN, NAN)) if found and line.method != "none" else (NAN, NAN)
        )
        spread = "" if point == DASH or math.isnan(low) else f" [{decimal(low)}, {decimal(high)}]"
        column.append(point + spread + same_signs(found, block.budget, line.name, AVERAGE))
    return grid(head, [*columns, column])


def same_signs(found: Findings | None, budget: str, line: str, task: str) -> str:
    """The marks of a line at a task or at `AVERAGE`, each behind a space: what it is not told apart from."""
    if found is None:
        return ""
    same = [sign for sign, none in (("≈R", False), ("≈U", True)) if found.verdict(budget, line, task, none) == SAME]
    return "".join(f" {sign}" for sign in same)


def _said(section: Section, block: Block, found: Findings) -> list[str]:
    """What the comparisons with `random` and with the unpruned model come to, method by method."""
    parts = []
    reference = found.references.get(block.budget)
    if reference:
        parts.append(
            _verdicts(section, block, found, reference, "random", f"Against {in_markdown(reference)} at this budget:")
        )
    elif block.budget != "none":
        parts.append(f"Not compared with random: there is no cell of it at budget {block.budget}.")
    parts.append(_verdicts(section, block, found, "none", "the unpruned model", "Against the unpruned model:"))
    return parts


def _verdicts(section: Section, block: Block, found: Findings, against: str, name: str, title: str) -> str:
    here: dict[str, list[Comparison]] = {line.name: [] for line in block.lines}
    for c in found.comparisons:
        if c.budget == block.budget and c.against == against:
            here[c.line].append(c)
    words = {
        SAME: f"indistinguishable from {name}",
        OPEN: f"undecided against {name}",
        BELOW: f"below {name}",
        ABOVE: f"above {name}",
        TOO_FEW: f"no verdict, {TOO_FEW}",
    }
    items = []
    for verdict, phrase in words.items():
        named = []
        for line in block.lines:
            tasks = [c.task for c in here[line.name] if c.verdict == verdict]
            single = [task for task in tasks if task != AVERAGE]
            shown = [f"all {len(single)} tasks"] if len(single) == len(section.tasks) > 1 else single
            shown = [*shown, *(["Avg %"] if AVERAGE in tasks else [])]
            named += [f"{in_markdown(line.name)} ({', '.join(shown)})"] if shown else []
        items += [f"* **{phrase}**: {'; '.join(named)}"] if named else []
    compared = {name for name, mine in here.items() if any(c.task == AVERAGE for c in mine)}
    absent = [
        in_markdown(line.name)
        for line in block.lines
        if line.method != "none" and line.name not in compared and line.label != against
    ]
    items += [f"* Avg % not compared, a task is missing or has {TOO_FEW}: {', '.join(absent)}"] if absent else []
    return "\n".join([title, "", *items]) if items else f"{title} nothing to compare."


def _answers(section: Section, block: Block, found: Findings) -> str:
    """Agreement and the hard subset; the unpruned model has a row, because it is what the others can hope for."""
    tasks = section.tasks
    unpruned = [cell for cell in (section.baseline(task) for task in tasks) if cell]
    lines = list(block.lines)
    if block.budget != "none" and unpruned:
        lines.insert(0, Line("none", "none", block.budget, "method", {}, {cell.cell.task: [cell] for cell in unpruned}))
    ranked = [line.method != "none" for line in lines]
    columns = [[in_markdown(line.label) for line in lines]]
    agreement = [decimal(line.mean(lambda s: found.agreement.get(s.identity, NAN))) for line in lines]
    columns.append(mark_best(agreement, ranked))
    head = ["method", "agreement (%)"]
    for task in tasks:
        hard = [
            [found.hard.get((block.budget, s.identity), Hard(-1, NAN)) for s in line.cells.get(task, ())]
            for line in lines
        ]
        size = max((value.n for values in hard for value in values), default=-1)
        head.append(f"hard: {in_markdown(task)} (%, n={size if size >= 0 else DASH})")
        marked = [r and size >= RANKED_FROM for r in ranked]
        columns.append(mark_best([decimal(mean([value.percent for value in values])) for values in hard], marked))
    return grid(head, columns)


def _costs(section: Section, block: Block, found: Findings | None) -> str:
    head = [
        "method",
        "kept (tokens)",
        "mean visual (tokens/layer)",
        "prefill dense (GFLOPs)",
        "of unpruned FLOPs (%)",
        "tower + prefill (GFLOPs)",
        "of unpruned tower + prefill (%)",
        "request (GFLOPs)",
        f"request at {QUESTIONS} questions an image (GFLOPs)",
        "KV (MiB)",
    ]
    columns = [[in_markdown(line.label) for line in block.lines]]
    numbers: list[tuple[Callable[[float], str], Callable[[SealedCell], float]]] = [
        (decimal, lambda s: s.costs.get("kept", NAN)),
        (decimal, lambda s: s.costs.get("mean_visual", NAN)),
        (significant, lambda s: s.costs.get("prefill_dense_flops", NAN) / 1e9),
        (decimal, lambda s: percent_of_flops(s, section.baseline(s.cell.task))),
        (significant, lambda s: with_tower(s.costs) / 1e9),
        (decimal, lambda s: percent_with_tower(s, section.baseline(s.cell.task))),
        (significant, lambda s: request_flops(s.costs) / 1e9),
        (significant, lambda s: amortised_flops(s) / 1e9),
        (significant, lambda s: s.costs.get("kv_bytes", NAN) / 2**20),
    ]
    if found and found.relevant:
        head.append("relevant patches kept (%)")
        numbers.append((decimal, lambda s: r.kept if (r := found.relevant.get(s.identity)) else NAN))
        head.append("relevant patches, mean over layers (%)")
        numbers.append((decimal, lambda s: r.layers if (r := found.relevant.get(s.identity)) else NAN))
    head += ["positions", "query-aware", "vision attention", "seeds"]
    columns += [[shown(line.mean(value)) for line in block.lines] for shown, value in numbers]
    columns.append([line.positions for line in block.lines])
    columns += [[_flag(line, name) for line in block.lines] for name in ("query_aware", "needs_vision_attention")]
    return grid(head, [*columns, [line.seeds for line in block.lines]])


def _flag(line: Line, name: str) -> str:
    values = {sealed.method_info.get(name) for seeds in line.cells.values() for sealed in seeds}
    return "yes" if values == {True} else "no" if values == {False} else DASH


def _commands(block: Block) -> str:
    """The commands that made the block, folded away; those that differ in their task only are one."""
    tasks: dict[str, list[str]] = {}
    made: dict[str, tuple[Asked, str]] = {}
    for line in block.lines:
        for seeds in line.cells.values():
            for sealed in seeds:
                source = sealed.cell.method_source
                same = canonical_json([replace(sealed.asked, task="").to_dict(), source])
                made[same] = sealed.asked, source
                tasks.setdefault(same, []).append(sealed.asked.task)
    shown = [
        evaluation(asked, tasks=list(dict.fromkeys(tasks[same])), fresh=True, source=source)
        for same, (asked, source) in made.items()
    ]
    code = fenced("\n".join(shown), "sh")
    return f"<details><summary>commands</summary>\n\n{code}\n\n</details>"


def _power_table(power: Sequence[Power]) -> str:
    tests = f"{power[0].tests:,}"
    head = [
        "task",
        "questions here",
        "images here",
        "pairs",
        "discordant (%)",
        "design effect",
        "**questions needed**",
        "images needed",
    ]
    head += [
        "smallest detectable difference (points)",
        f"questions needed among {tests} tests",
        f"smallest detectable among {tests} tests (points)",
    ]
    columns = [
        [in_markdown(p.task) for p in power],
        [f"{p.n:,}" for p in power],
        [f"{p.images:,}" for p in power],
        [f"{p.pairs:,}" for p in power],
        [decimal(100.0 * p.discordant) for p in power],
        [f"{p.effect:.2f}" for p in power],
        [f"{p.needed:,}" for p in power],
        [f"{p.needed_images:,}" for p in power],
        [decimal(p.detectable) for p in power],
        [f"{p.needed_in_family:,}" for p in power],
        [decimal(p.detectable_in_family) for p in power],
    ]
    return grid(head, columns)


def _published(section: Section, blocks: Sequence[Block]) -> list[str]:
    """Published numbers beside ours, where model, task, metric and budget unit agree; nothing for models without
    any."""
    from harness.tables.published import beside, load, ours

    model = ours(section.cells[0].cell.stands_for)
    if model is None or FOLLOW_UP in section.facts:
        return []
    matches = beside(load(), model, [line for block in blocks for line in block.lines])
    if not matches:
        return []
    sources = list(dict.fromkeys(source for match in matches for _, source in match.values))
    head = ["method", "budget", "task: metric", "n", "measured here", "published [source]"]
    body = []
    for match in matches:
        where: dict[str, list[str]] = {}
        for value, source in match.values:
            where.setdefault(value, []).append(str(sources.index(source) + 1))
        published = "; ".join(f"{value} [{', '.join(numbers)}]" for value, numbers in where.items())
        here = decimal(match.measured) + (
            interval_text(match.low, match.high, 100.0) if not math.isnan(match.low) else ""
        )
        body.append(
            [
                in_markdown(match.line),
                match.budget,
                in_markdown(f"{match.task}: {match.metric}"),
                f"{match.n:,}",
                here,
                published,
            ]
        )
    listed = "\n".join(f"{i}. {source}" for i, source in enumerate(sources, start=1))
    note = (
        "The published numbers come from `published.csv`. That file names the place of each number. Published and"
        " measured numbers differ in prompts, image preprocessing, settings and code. No average and no test uses a"
        " published number."
    )
    return [
        "### Published beside measured",
        note,
        grid(head, list(zip(*body, strict=True)), left=3),
        f"Sources:\n\n{listed}",
    ]


def _task_header(sealed: SealedCell) -> str:
    return in_markdown(f"{sealed.cell.task}: {sealed.headline} ({unit_of(sealed)}, n={sealed.counts['headline']})")


def _metrics(section: Section) -> list[str]:
    """What is to be known of metrics that are no mean where higher is better."""
    lower = [task for task in section.tasks if task not in section.averaged]
    untested = [task for task in section.tasks if not section.of_task(task).metric.tested]
    said = [f"Lower is better, and not in Avg %: {in_markdown(', '.join(lower))}."] if lower else []
    if untested:
        said.append(
            "Computed from all answers at once, so without interval, test and verdict, as is an Avg % over it:"
            f" {in_markdown(', '.join(untested))}."
        )
    return said
