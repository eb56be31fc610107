"""The files of a comparison of two models: tables as CSV and Markdown, and figures."""

from __future__ import annotations

from pathlib import Path

from harness.core.paths import make_folder
from harness.store.files import write_changed
from harness.tables import rankings_text
from harness.tables.rankings import Rankings
from harness.tables.text import csv_text

STEM = "two-models"


def figures(found: Rankings, folder: Path) -> list[tuple[str, str]]:
    """(alternative text, file name) of the figures, which are drawn into the folder."""
    from harness.tables import rankings_figures  # matplotlib

    make_folder(folder)
    drawn = {"ranks": rankings_figures.slopes(found), "tau": rankings_figures.taus(found)}
    for name, data in drawn.items():
        write_changed(folder / f"{STEM}-{name}.png", data)
    return figure_names(found)


def figure_names(found: Rankings) -> list[tuple[str, str]]:
    """(alternative text, file name) of the figures."""
    first, second = found.models
    return [
        (f"Ranks of the methods on {first} and on {second}", f"{STEM}-ranks.png"),
        ("Tau by task and pair of budgets, with intervals", f"{STEM}-tau.png"),
    ]


def write(found: Rankings, folder: Path) -> list[Path]:
    """Write all of them; returns the paths. Raises PrunebenchError if the folder cannot be written."""
    shown = figures(found, folder)
    frames = {
        "tau": rankings_text.taus_frame(found),
        "ranks": rankings_text.ranks_frame(found),
        "swaps": rankings_text.swaps_frame(found),
    }
    for name, frame in frames.items():
        write_changed(folder / f"{STEM}-{name}.csv", csv_text(frame).encode(errors="backslashreplace"))
    write_changed(folder / f"{STEM}.md", f"{rankings_text.markdown(found, shown)}\n".encode(errors="backslashreplace"))
    names = [f"{STEM}.md", *(f"{STEM}-{name}.csv" for name in frames), *(name for _, name in shown)]
    return [folder / name for name in names]
