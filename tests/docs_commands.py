"""The commands that README, docs/ and their neighbours tell a reader to type, and what the table says of each.

`docs_commands.yaml` beside test_docs_commands.py has one entry for each command of each page. An entry either runs the
command, names the test that runs the command, or gives a reason for which nothing here can run the command.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tests" / "house" / "docs_commands.yaml"
#: why a command is neither run here nor by another test
REASONS = {
    "gpu": "needs a CUDA device",
    "hub": "needs files of the hub",
    "cluster": "needs other machines, or a running Ray or SLURM",
    "long": "takes a minute or more on one idle core",
    "network": "asks a package index or a remote",
    "interactive": "waits for a person",
    "destructive": "changes the reader's repository, or takes away what the test stands on",
    "past": "is how an earlier version spelt a command, or belongs to another version",
    "pattern": "has a placeholder, which the reader replaces",
}
#: first words that make code in a sentence a command
PROGRAMS = ("make", "prunebench", "python", "ray", "sbatch", "srun", "scancel", "scontrol", "pip", "hf", "lmms-eval")
#: blocks of these languages are commands, or Python to be run
SHELL, PYTHON = ("sh", "bash", "console"), ("python",)
SEPARATORS = ("&&", "||", "|", ";", "(", ")", "&")


@dataclass(frozen=True)
class Command:
    """A command as a page shows it: `text` without its comment; `line` counts from 1."""

    page: str
    line: int
    text: str
    in_block: bool

    def parts(self) -> list[list[str]]:
        """The words of each simple command in it, without variables of the environment and redirections."""
        reader = shlex.shlex(self.text, posix=True, punctuation_chars="();&|")
        reader.whitespace_split = True
        found: list[list[str]] = [[]]
        for word in reader:
            if word in SEPARATORS:
                found.append([])
            elif found[-1] or not re.fullmatch(r"[A-Z_]+=.*", word):
                found[-1].append(word)
        return [words for words in found if words]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: `number` counts the page's blocks of the language from 1."""

    page: str
    line: int
    language: str
    number: int
    code: str

    @property
    def name(self) -> str:
        return f"{self.language} {self.number}"


@dataclass(frozen=True)
class Entry:
    """What the table says of one command.

    `add` are words that the run appends, `before` is a script that comes first, and `code` the exit code.
    `edit` replaces text of the command. A Python block may `save` itself as a file instead of being run. `after` names
    the blocks of the page whose code precedes its own.
    """

    run: bool = False
    left: str = ""
    elsewhere: str = ""
    add: str = ""
    before: str = ""
    save: str = ""
    after: tuple[str, ...] = ()
    edit: dict[str, str] = field(default_factory=dict)
    code: int = 0

    @classmethod
    def read(cls, said: Any) -> Entry:
        """An entry as YAML has it: the word `run`, or a mapping. Raises ValueError for anything else."""
        if said == "run":
            return cls(run=True)
        if not isinstance(said, dict):
            raise ValueError(f"expected `run` or a mapping, found {said!r}")
        named = {"after": tuple(said["after"])} if "after" in said else {}
        unknown = said.keys() - cls.__dataclass_fields__.keys()
        if unknown:
            raise ValueError(f"expected {', '.join(cls.__dataclass_fields__)}, found {', '.join(sorted(unknown))}")
        entry = cls(**{"run": not {"left", "elsewhere"} & said.keys(), **said, **named})
        if [entry.run, bool(entry.left), bool(entry.elsewhere)].count(True) != 1:
            raise ValueError(f"expected one of run, left and elsewhere, found {said!r}")
        return entry


def pages() -> dict[str, str]:
    """The text of every page whose commands a reader types, by its path."""
    files = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
    files += sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "examples").rglob("README*"))
    return {file.relative_to(ROOT).as_posix(): file.read_text() for file in files}


def blocks(page: str, text: str) -> list[Block]:
    """The fenced blocks of a page, also those that an item of a list indents."""
    found, count = [], dict[str, int]()
    for match in re.finditer(r"^( *)```([\w-]*)[^\n]*\n(.*?)^ *```$", text, re.S | re.M):
        indent, language, code = match[1], match[2], match[3]
        count[language] = count.get(language, 0) + 1
        code = "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))
        found.append(Block(page, _line(text, match.start(3)), language, count[language], code))
    return found


def commands(page: str, text: str) -> list[Command]:
    """The commands of a page in its order: the lines of shell blocks, and code in sentences that begins with a
    program of ours and says more than the name of a command."""
    found = []
    for block in blocks(page, text):
        if block.language in SHELL:
            number = block.line
            for line in re.split(r"(?<!\\)\n", block.code.rstrip("\n")):
                if words := plain(line.replace("\\\n", " ").removeprefix("$ ")):
                    found.append(Command(page, number, words, True))
                number += line.count("\n") + 1
    prose = re.sub(r"^ *```.*?^ *```$", lambda m: "\n" * m[0].count("\n"), text, flags=re.S | re.M)
    for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", prose):
        words = plain(match[1].replace("\\|", "|"))
        first = next((word for word in words.split() if not re.match(r"[A-Z_]+=", word)), "")
        if first.removeprefix(".venv/bin/") in PROGRAMS or first.startswith(".ci/"):
            found.append(Command(page, _line(prose, match.start()), words, False))
    return sorted(found, key=lambda one: one.line)


def plain(line: str) -> str:
    """A line without its comment and with single blanks; "" for a comment alone."""
    return " ".join(re.sub(r"(^|\s+)#(\s.*)?$", "", line.strip()).split())


def table() -> dict[str, dict[str, Entry]]:
    """The entries of every page, by command."""
    read = yaml.safe_load(TABLE.read_text())
    return {page: {str(text): Entry.read(said) for text, said in one.items()} for page, one in read.items()}


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1
