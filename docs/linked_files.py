"""A hook of mkdocs: README.md is the first page, and a file of the repository that a page links is part of the site.

Pages link such files relative to themselves (`../benchmarks/README.md`), as a host of the repository shows them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
DOCS = Path(__file__).resolve().parent
LINK = re.compile(r"(\]\()([^()\s:#]+)((?:#[^()\s]*)?\))")


def _place(target: Path) -> str:
    """Where a file of the repository lies in the site: pages of docs/ at the top, README.md as the first page."""
    if target == ROOT / "README.md":
        return "index.md"
    return (target.relative_to(DOCS) if target.is_relative_to(DOCS) else target.relative_to(ROOT)).as_posix()


def _linked(page: Path) -> list[Path]:
    return [(page.parent / found[2]).resolve() for found in LINK.finditer(page.read_text(encoding="utf-8"))]


def on_files(files: Any, config: Any) -> Any:
    """Add README.md, and every file outside docs/ that a page reaches by links."""
    todo, seen = [ROOT / "README.md", *DOCS.rglob("*.md")], set()
    while todo:
        page = todo.pop()
        if page in seen or not page.is_file() or not page.is_relative_to(ROOT):
            continue
        seen.add(page)
        if not page.is_relative_to(DOCS):
            files.append(File.generated(config, _place(page), abs_src_path=str(page)))
        todo += _linked(page) if page.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links between places in the repository into links between places in the site."""
    source = Path(page.file.abs_src_path)
    here = Path(_place(source)).parent

    def moved(found: re.Match[str]) -> str:
        target = (source.parent / found[2]).resolve()
        if not target.is_relative_to(ROOT):
            return found[0]
        up = "../" * len(here.parts)
        return f"{found[1]}{up}{_place(target)}{found[3]}"

    return LINK.sub(moved, markdown)
