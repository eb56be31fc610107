r"""Tables of LaTeX with booktabs, for pdflatex and every other engine: text that is escaped, and no unicode.

A file of `document` is both a part of a paper (`\input`, with booktabs and graphicx in its preamble) and a document of
its own.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

#: rows of a float: with its head and caption it fits a page
MOST_ROWS = 40
#: sizes of letters, with the characters of a line that fit a page of 17 cm; a wider table is shrunk
SIZES = ((95, r"\small"), (105, r"\footnotesize"), (118, r"\scriptsize"))
#: characters of a line of a column's head
HEAD = 12
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\textasciigrave{}",
    "-": "-{}",  # two of them would be a dash
    "'": "'{}",
    "[": "{[}",  # behind the end of a row it would be an option, as the star
    "*": "{*}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "†": r"\dag{}",
    "×": r"$\times$",
    "µ": r"$\mu$",
    "°": r"$^\circ$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}
_ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0327": "c",
}
# Inside a document \@nodocument is \relax: then this is a part of it.
_BEGIN = r"""% A part of a paper: \usepackage{booktabs,graphicx}, then \input this file. It compiles alone, too.
\expandafter\ifx\csname @nodocument\endcsname\relax\else
  \documentclass[a4paper]{article}
  \usepackage[margin=2cm]{geometry}
  \usepackage{booktabs,graphicx}
  \begin{document}
  \def\prunebenchalone{}
\fi"""
_END = r"""\ifx\prunebenchalone\undefined\let\prunebenchend\relax\else\def\prunebenchend{\end{document}}\fi
\prunebenchend"""


def escaped(text: str) -> str:
    """Text as LaTeX prints it. A letter with an accent keeps the accent; any other character that a font of the default
    encoding lacks becomes its code point."""
    return "".join(map(_letter, unicodedata.normalize("NFC", text)))


def _letter(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isascii():
        return character if character.isprintable() else " "
    parts = unicodedata.normalize("NFD", character)
    if len(parts) == 2 and parts[1] in _ACCENTS and parts[0].isascii() and parts[0].isalpha():
        return f"\\{_ACCENTS[parts[1]]}{{{parts[0]}}}"
    return rf"\texttt{{U+{ord(character):04X}}}"


def document(tables: Sequence[str]) -> str:
    """The file that holds these tables."""
    return "\n\n".join([_BEGIN, *tables, _END]) + "\n"


def table(
    caption: str, corner: str, heads: Sequence[Sequence[str]], blocks: Sequence[tuple[str, Sequence[Sequence[str]]]]
) -> str:
    """One table as floats over both columns of a page, each with at most `MOST_ROWS` rows below its head.

    `caption` and the rows' texts are LaTeX. `heads` are plain text: per column its name, and what stands below the
    name. The blocks' names are plain text, too; a block that is parted has its name in each part.
    """
    shaped = _shape(heads, blocks)
    floats = []
    for n, part in enumerate(_parts(blocks)):
        body: list[str] = []
        for name, rows in part:
            body += [r"\midrule"]
            body += [rf"\multicolumn{{{len(heads) + 1}}}{{l}}{{\emph{{{escaped(name)}}}}} \\"] if name else []
            body += [" & ".join(row) + r" \\" for row in rows]
        said = caption if n == 0 else f"{caption} Continued."
        tabular = [rf"\begin{{tabular}}{{l*{{{len(heads)}}}{{r}}}}", r"\toprule", *_head(corner, heads), *body]
        tabular += [r"\bottomrule", r"\end{tabular}"]
        if shaped is None:
            tabular = [r"\resizebox{\textwidth}{!}{", *tabular, "}"]
        lines = [r"\begin{table*}", r"\centering", shaped or r"\scriptsize", r"\setlength{\tabcolsep}{4pt}"]
        floats.append("\n".join([*lines, rf"\caption{{{said}}}", *tabular, r"\end{table*}"]))
    return "\n\n".join(floats)


def _parts(blocks: Sequence[tuple[str, Sequence[Sequence[str]]]]) -> list[list[tuple[str, Sequence[Sequence[str]]]]]:
    """The blocks in parts of at most `MOST_ROWS` rows; only a block that has more is parted itself."""
    parts: list[list[tuple[str, Sequence[Sequence[str]]]]] = []
    free = 0
    for name, rows in blocks:
        for start in range(0, len(rows), MOST_ROWS):
            some = rows[start : start + MOST_ROWS]
            if len(some) > free or not parts:
                parts.append([])
                free = MOST_ROWS
            parts[-1].append((name, some))
            free -= len(some) + 1
    return parts


def _head(corner: str, heads: Sequence[Sequence[str]]) -> list[str]:
    """The rows of the head: names, parted behind underscores, stand on the line above what is below them."""
    names = [_parted(name) for name, *_ in heads]
    height, below = max(map(len, names)), max(len(rest) for _, *rest in heads)
    columns = [
        [*[""] * (height - len(name)), *name, *rest, *[""] * (below - len(rest))]
        for name, (_, *rest) in zip(names, heads, strict=True)
    ]
    rows = list(zip(["", *[""] * (height + below - 2), corner], *columns, strict=True))
    return [" & ".join(map(escaped, row)) + r" \\" for row in rows]


def _parted(name: str) -> list[str]:
    lines = [""]
    for piece in name.replace("_", "_\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(piece) > HEAD:
            lines.append("")
        lines[-1] += piece
    return lines


def _shape(heads: Sequence[Sequence[str]], blocks: Sequence[tuple[str, Sequence[Sequence[str]]]]) -> str | None:
    """The largest letters at which the table fits a page, by its characters; None if it fits with none."""
    labels = [row[0] for _, rows in blocks for row in rows]
    columns = [max([8, *map(len, rest), *map(len, _parted(name))]) for name, *rest in heads]
    total = max(map(len, labels), default=0) + sum(columns) + len(columns)
    return next((size for most, size in SIZES if total <= most), None)
