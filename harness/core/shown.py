"""Text from elsewhere as each medium may hold it: names of folders, models and methods, questions, answers, errors.

A terminal gets no control character, a table of Markdown no markup, a spreadsheet no formula. HTML has its own in
harness/report.
"""

from __future__ import annotations

import re

#: a spreadsheet reads a cell that begins so as a formula; blanks before it are skipped by some
_FORMULA = re.compile(r"\s*[=+\-@\t\r\n＝＋－＠]")
#: what GitHub's Markdown would read as markup, a link, HTML or mathematics; an underscore inside a word is none
_MARKUP = re.compile(r"[\\`*<>|&$~#@]|(?<=\])[(\[:]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)

_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def printable(text: object) -> str:
    r"""In one line of a terminal or a figure: a character that does not print is spelt as Python spells it (`\x1b`,
    `\u202e`, `\n`)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def printable_lines(text: object) -> str:
    """Text of ours that may hold names: as `printable`, with its line breaks."""
    return "\n".join(map(printable, str(text).split("\n")))


def one_line(text: object) -> str:
    """An error's text, which may quote another's over several lines: as `printable`, each line break one blank."""
    return printable(re.sub(r"\s*[\r\n]+\s*", " ", str(text).strip()))


def in_markdown(text: object) -> str:
    """In a heading, a paragraph or a cell of a table: the text itself, whatever it holds."""
    return _MARKUP.sub(lambda found: _ENTITIES.get(found[0]) or f"\\{found[0]}", printable(text))


def in_csv(text: str) -> str:
    """In a cell of a CSV file: behind an apostrophe where a spreadsheet would compute it; `from_csv` reads it back."""
    return f"'{text}" if text.startswith("'") or _FORMULA.match(text) else text


def from_csv(text: str) -> str:
    """What `in_csv` was given."""
    return text[1:] if text.startswith("'") else text


def code(text: str) -> str:
    """A word of code of Markdown, between more backticks than `text` holds in a row."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    blank = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{blank}{printable(text)}{blank}{fence}"


def fenced(lines: str, language: str = "") -> str:
    """A block of code of Markdown, whose fence is longer than any that `lines` holds."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))
    return f"{fence}{language}\n{lines}\n{fence}"
