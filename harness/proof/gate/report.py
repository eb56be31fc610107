"""The result of the gate as text, Markdown and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.core.shown import in_markdown
from harness.proof.gate.compare import CellDiff, Flip, GateResult

SHOWN = 60


# ------------------------------------------------------------------------------------------------------------ reporting


def table(cells: Sequence[CellDiff], markdown: bool = False) -> str:
    """Every cell with what differs in it."""
    from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]

    head = [
        "cell",
        "n",
        "answers\nchanged",
        "better/\nworse",
        "McNemar p\n(Holm)",
        "keep\nothers",
        "other\ncounts",
        "other\nFLOPs",
        "mean dense\nFLOPs",
        "time / none\n(shared; no\nmeasurement)",
        "",
    ]
    if markdown:
        head = [name.replace("\n", " ") for name in head]
    body = [
        [
            c.label,
            c.n,
            len(c.flips) or "",
            f"{c.wins}/{c.losses}" if c.wins or c.losses else "",
            f"{c.p:.2g}" if c.wins or c.losses else "",
            len(c.keeps) or "",
            len(c.counts) or "",
            len(c.costs) or "",
            f"{c.flops:+.3g} %" if c.costs else "",
            "" if c.seconds is None else f"{c.seconds:.2f}",
            "FAIL" if c.reasons else "",
        ]
        for c in cells
    ]
    align = ["left", *["right"] * 9, "left"]
    return str(
        tabulate(body, headers=head, disable_numparse=True, colalign=align, tablefmt="github" if markdown else "simple")
    )


def flip_lines(flips: Sequence[Flip], pictures: Mapping[str, Path]) -> list[str]:
    """One line per changed answer, with where its image is."""
    lines = []
    for flip in sorted(flips, key=lambda f: (f.change, f.key)):
        word = "worse" if flip.change < 0 else "better" if flip.change > 0 else "same score"
        where = pictures.get(flip.key, f"image {flip.image}")
        lines.append(
            f"{flip.key}  {flip.old!r} -> {flip.new!r}  (right: {flip.target!r}; {word})  {flip.label}  {where}"
        )
    return lines


def write_pictures(flips: Sequence[Flip], config: Path, overrides: Sequence[str], folder: Path) -> dict[str, Path]:
    """The images of samples whose answer changed, one file each; -> path by sample key. Samples that the data lack are
    left out. All models of a gate read the same data."""
    from harness.runner import sweep
    from harness.runner.request import parse_limit
    from harness.runner.session import Session
    from tasks.sources import source_of_data

    plan, session = sweep.load(config, overrides), Session()
    source, limit = source_of_data(plan.data, plan.models[0]), parse_limit(plan.limit, None)
    written: dict[str, Path] = {}
    for name in sorted({flip.key.split("/")[0] for flip in flips}):
        wanted = {flip.key for flip in flips}
        for sample in session.task(name, source, limit).samples:
            if sample.key in wanted:
                path = folder / f"{sample.key}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                sample.load_image().save(path)
                written[sample.key] = path
    return written


def report(found: GateResult, pictures: Mapping[str, Path], whole: Path | None = None) -> str:
    """The comparison for a terminal: what makes it suspect first, then cells, reasons, samples and the verdict."""
    lines = [f"FIRST: {text}" for text in found.first] + [f"note: {text}" for text in found.notes]
    lines += ["", table(found.cells), ""]
    flips = flip_lines(found.flips, pictures)
    if flips:
        lines.append(f"{len(flips)} answers changed:")
        lines += [f"  {text}" for text in flips[:SHOWN]]
        if len(flips) > SHOWN:
            lines.append(f"  ... and {len(flips) - SHOWN} more" + (f" in {whole}" if whole else ""))
        lines.append("")
    changed, total = sum(cell.changed for cell in found.cells), sum(cell.n for cell in found.cells)
    if found.passed:
        state = "nothing differs" if not changed else f"{changed} differ within what ties of rounding may do"
        return "\n".join(
            [*lines, f"PASS: {len(found.cells)} cells, {total} samples as in the baseline; {state}"]
        ).strip()
    reasons = [*found.first, *found.failures]
    lines.append(
        f"FAIL: {len(reasons)} reason{'s' * (len(reasons) != 1)}; {changed} of {len(found.cells)} cells differ from the"
        " baseline"
    )
    lines += [f"  {text}" for text in reasons[:SHOWN]]
    if len(reasons) > SHOWN:
        lines.append(f"  ... and {len(reasons) - SHOWN} more" + (f" in {whole}" if whole else ""))
    return "\n".join(lines).strip()


def report_markdown(found: GateResult, pictures: Mapping[str, Path]) -> str:
    """The same, whole, as Markdown."""
    verdict = "passed" if found.passed else "FAILED"
    lines = [f"# Regression gate: {verdict}", ""]
    for name, texts in (
        ("First of all", found.first),
        ("Reasons", found.failures),
        ("Changed answers", flip_lines(found.flips, pictures)),
        ("Notes", found.notes),
    ):
        if texts:
            lines += [f"## {name}", "", *(f"* {in_markdown(text)}" for text in texts), ""]
    return "\n".join([*lines, "## Cells", "", table(found.cells, markdown=True), ""])
