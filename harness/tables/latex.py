r"""Tables of LaTeX with booktabs, for pdflatex and every other engine: text that is escaped, and no unicode.

A file of `document` is both a part of a paper (`\input`, with booktabs and longtable in its preamble) and a document of
its own.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

#: rows from which a table may not fit a page, and is parted over pages
MOST_ROWS = 40
#: sizes of letters, with the characters of a line that fit a page of 17 cm
SIZES = ((100, r"\small"), (112, r"\footnotesize"), (125, r"\scriptsize"))
SMALLEST = r"\tiny"
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
_BEGIN = r"""% A part of a paper: \usepackage{booktabs,longtable}, then \input this file. It compiles alone, too.
% A table over several pages is aligned in the second run of LaTeX.
\expandafter\ifx\csname @nodocument\endcsname\relax\else
  \documentclass[a4paper]{article}
  \usepackage[margin=2cm]{geometry}
  \usepackage{booktabs,longtable}
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
    caption: str, corner: str, heads: Sequence[tuple[str, str]], blocks: Sequence[tuple[str, Sequence[Sequence[str]]]]
) -> str:
    """One table. `caption` and the rows' texts are LaTeX; `heads` (name, unit) and the blocks' names are plain text.

    A table of few rows floats over both columns of a page; a longer one is a longtable, which needs one column.
    """
    width = len(heads) + 1
    head = _head(corner, heads)
    body: list[str] = []
    for name, rows in blocks:
        body += [r"\midrule"] if body else []
        body += [rf"\multicolumn{{{width}}}{{l}}{{\emph{{{escaped(name)}}}}} \\*"] if name else []
        body += [" & ".join(row) + r" \\" for row in rows]
    spread = f"{{l*{{{width - 1}}}{{r}}}}"
    setting = [_size(heads, blocks), r"\setlength{\tabcolsep}{4pt}"]
    if len(body) + len(head) <= MOST_ROWS:
        lines = [r"\begin{table*}", r"\centering", *setting, rf"\caption{{{caption}}}", rf"\begin{{tabular}}{spread}"]
        lines += [r"\toprule", *head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table*}"]
    else:
        lines = [r"\begingroup", *setting, rf"\begin{{longtable}}{spread}", rf"\caption{{{caption}}} \\"]
        lines += [r"\toprule", *head, r"\midrule", r"\endfirsthead", r"\toprule", *head, r"\midrule", r"\endhead"]
        lines += [r"\bottomrule", r"\endfoot", *body, r"\end{longtable}", r"\endgroup"]
    return "\n".join(lines)


def _head(corner: str, heads: Sequence[tuple[str, str]]) -> list[str]:
    """The rows of the head: long names parted behind underscores, each column's lines at its foot; then the units."""
    names = [_parted(name) for name, _ in heads]
    height = max(map(len, names))
    rows = [
        ["", *(escaped(name[n - height + len(name)]) if n >= height - len(name) else "" for name in names)]
        for n in range(height)
    ]
    rows.append([escaped(corner), *(escaped(f"({unit})") if unit else "" for _, unit in heads)])
    return [" & ".join(row) + r" \\" for row in rows]


def _parted(name: str) -> list[str]:
    lines = [""]
    for piece in name.replace("_", "_\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(piece) > HEAD:
            lines.append("")
        lines[-1] += piece
    return lines


def _size(heads: Sequence[tuple[str, str]], blocks: Sequence[tuple[str, Sequence[Sequence[str]]]]) -> str:
    """The largest letters at which the table fits, by its characters."""
    labels = [row[0] for _, rows in blocks for row in rows]
    columns = [max([8, len(unit), *map(len, _parted(name))]) for name, unit in heads]
    total = max(map(len, labels), default=0) + sum(columns) + len(columns)
    return next((size for most, size in SIZES if total <= most), SMALLEST)
