"""Sentences and their words, out of pages, help, notebooks, and the literals of a module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

#: words of a sentence
LONGEST = 25
#: stands for a value in a literal; one word
VALUE = "X"
#: elements that end a sentence of a page
_BLOCKS = {"p", "li", "h1", "h2", "h3", "summary", "td", "th", "div", "span", "label", "button", "figcaption", "legend"}


def prose(text: str) -> str:
    """A page of Markdown without tables, code, headings, pictures and targets of links."""
    text = re.sub(r"^```.*?^```$|<!--.*?-->", "", text, flags=re.S | re.M)
    lines = ["" if line.startswith(("|", "#", "![", "    ", ":::")) else line for line in text.splitlines()]
    return re.sub(r"\]\([^)]*\)", "]", "\n".join(lines))


def sentences(text: str) -> list[str]:
    """The sentences of a page; an item of a list is a paragraph of its own."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n|\n(?=[*-] |\d+\. )", prose(text)):
        whole = " ".join(paragraph.split()).replace("**", "")
        found += [s for s in re.split(r"(?<=[.!?:])\s+(?=[A-Z`\[(*\"\d])", whole) if s]
    return found


def words(text: str) -> int:
    return len(re.findall(r"\S*\w\S*", text))


def long(texts: list[str]) -> list[str]:
    """The sentences of texts that have more than `LONGEST` words."""
    return [sentence for text in texts for sentence in sentences(text) if words(sentence) > LONGEST]


def literals(source: str) -> list[str]:
    """What the text of a module says to its users: its literals, with `VALUE` for values, and no docstring."""
    tree, found = ast.parse(source), []
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
    }
    # a string behind a constant is the docstring of the constant
    documented |= {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in ast.walk(node) if part is not node}
            if id(node) not in inside:
                parts = (str(p.value) if isinstance(p, ast.Constant) else VALUE for p in node.values)
                found.append("".join(parts))
    found += [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented | inside
    ]
    return found


_FILLED = re.compile(r"\$\{([^{}]*)\}")
_STRINGS = re.compile(r'"((?:[^"\\\n]|\\.)*)"|`([^`]*)`')


def of_script(source: str) -> list[str]:
    """The strings of a script of the page, with `VALUE` for what a template fills in; summed strings are one."""
    source, found = re.sub(r"(^|\s)//.*|/[^/\n]*[\"`][^/\n]*/[gu]*(?=[,.;)])", " ", source), []
    while values := _FILLED.findall(source):
        found += [text for value in values for text in of_script(value)]
        source = _FILLED.sub(VALUE, source)
    end = None
    for match in _STRINGS.finditer(source):
        summed = end is not None and source[end : match.start()].strip() == "+"
        text, end = match[1] or match[2] or "", match.end()
        found.append(found.pop() + text if summed else text)
    return found


def of_help(command: Any, path: tuple[str, ...] = ("prunebench",)) -> Iterator[tuple[str, str]]:
    """The help of a command of typer and of all commands below it: a name, and a text for it or for an option."""
    yield " ".join(path), command.help or ""
    for parameter in command.params:
        if (text := getattr(parameter, "help", None)) is not None:
            yield " ".join((*path, max(parameter.opts, key=len))), text
    for name, below in getattr(command, "commands", {}).items():
        yield from of_help(below, (*path, name))


class _Page(HTMLParser):
    """Collects the text of a page of HTML, block by block, without scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.silent = [""], 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.silent += tag in ("script", "style")
        if tag in _BLOCKS:
            self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        self.silent -= tag in ("script", "style")
        if tag in _BLOCKS:
            self.blocks.append("")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.blocks[-1] += data


def of_html(text: str) -> list[str]:
    """The texts of a page's blocks."""
    page = _Page()
    page.feed(text)
    return [" ".join(block.split()) for block in page.blocks if block.strip()]


def newest(changelog: str) -> str:
    """The newest section of a changelog, from its heading on. Raises ValueError where there is no section."""
    sections = re.split(r"^(?=## )", changelog, flags=re.M)
    if len(sections) < 2:
        raise ValueError("expected a section that begins with '## ', found none")
    return sections[1]


def of_notebook(path: Path) -> list[str]:
    """The texts of a notebook's cells of Markdown."""
    import nbformat

    book = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    return [cell.source for cell in book.cells if cell.cell_type == "markdown"]
