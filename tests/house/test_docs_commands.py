"""Every command of the pages is in `docs_commands.yaml`, parses, and does what the page says, or has a reason why not.

The fast tests parse. The slow ones type the commands into a copy of the repository, offline, page by page.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from docs_commands import PYTHON, REASONS, ROOT, Block, Command, Entry, blocks, commands, pages, table
from docs_server import Copy
from typer.main import get_command

from harness.cli import app
from harness.method import registered
from harness.models.config import known_models

PAGES = pages()
TABLE = table()
COMMANDS = {page: commands(page, text) for page, text in PAGES.items()}
BLOCKS = {page: blocks(page, text) for page, text in PAGES.items()}
#: of these a page may name programs of others, whose options are not ours to know
OTHERS = {
    "hf",
    "lmms-eval",
    "rsync",
    "rm",
    "tar",
    "unzip",
    "less",
    "git",
    "head",
    "cd",
    "scancel",
    "pip",
    "scontrol",
    "env",
}
CLI = get_command(app)
MAKE = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "GNUMAKEFLAGS"}
REPOSITORY = r"(?:harness|methods|tasks|tests|configs|docs|benchmarks|examples|results/reference|\.ci)/[\w./-]+"


def entry(command: Command) -> Entry | None:
    return TABLE.get(command.page, {}).get(command.text)


def is_name(words: list[str]) -> bool:
    """Words that name a command and say nothing more: `make eval`, `prunebench results verify`."""
    if Path(words[0]).name == "prunebench":
        at: Any = CLI
        for word in words[1:]:
            at = getattr(at, "commands", {}).get(word)
            if at is None:
                return False
        return True
    return len(words) <= 2 or (words[0] == "make" and all(word.isalpha() for word in words))


def expected(page: str) -> list[str]:
    """What a page needs entries for."""
    named = [c.text for c in COMMANDS[page] if c.in_block or not is_name(c.text.split())]
    return [*named, *(block.name for block in BLOCKS[page] if block.language in PYTHON)]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_has_an_entry(page: str) -> None:
    lacking = [text for text in expected(page) if text not in TABLE.get(page, {})]
    assert not lacking, f"{page}: run them in tests/house/docs_commands.yaml, or say why not: {lacking}"


def test_every_entry_has_a_command_and_a_reason_that_counts() -> None:
    assert TABLE.keys() <= PAGES.keys()
    for page, entries in TABLE.items():
        known = {*(c.text for c in COMMANDS[page]), *(block.name for block in BLOCKS[page])}
        assert entries.keys() <= known, f"no longer on {page}: {entries.keys() - known}"
        for text, one in entries.items():
            assert not one.left or one.left in REASONS, f"{page}: {text}: {one.left}"
            if one.elsewhere:
                file, _, test = one.elsewhere.partition("::")
                there = (ROOT / file).read_text()
                assert (f"def {test}(" if test else text.removeprefix(".venv/bin/")) in there, f"{page}: {text}"


def test_most_commands_are_run() -> None:
    every = [one for entries in TABLE.values() for one in entries.values()]
    assert sum(one.run for one in every) > len(every) / 2


def test_a_new_command_is_noticed() -> None:
    block = "```sh\n# first\nmake eval \\\n    METHOD=fastv # try\n```\n"
    text = f"So:\n\n{block}\n`make eval` is, `prunebench methods x` too.\n"
    found = commands("x.md", text)
    assert [(c.text, c.line, c.in_block) for c in found] == [
        ("make eval METHOD=fastv", 5, True),
        ("make eval", 9, False),
        ("prunebench methods x", 9, False),
    ]
    assert [is_name(c.text.split()) for c in found] == [False, True, False]
    assert [block.code for block in blocks("x.md", "1. a\n\n    ```sh\n    b\n    ```\n")] == ["b\n"]


def test_no_command_stands_outside_a_block() -> None:
    """An indented line is code without a language, which nothing here would read."""
    for page, text in PAGES.items():
        outside = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.S | re.M)
        assert not re.search(r"^(?: {4}|\t)(?:make|prunebench|python\S*|pip|ray|\.venv/\S+) ", outside, re.M), page


def problem_of_prunebench(words: list[str]) -> str | None:
    """What is wrong with the words behind `prunebench`; their values are looked at where a typo would show late."""
    context: Any = None
    at: Any = CLI
    words = list(words)
    try:
        while True:
            context = at.make_context(at.name or "prunebench", words, parent=context)
            if not hasattr(at, "commands"):
                break
            rest = [*context._protected_args, *context.args]
            if not rest:
                return None
            _, at, words = at.resolve_command(context, rest)
            if at is None:
                return f"no command {rest[0]}"
    except Exception as error:  # typer has classes of its own for those of click
        return None if type(error).__name__ == "Exit" else f"{type(error).__name__}: {error}"
    for name, known in (("method", registered()), ("model", known_models())):
        said = context.params.get(name)
        for value in said.split(",") if isinstance(said, str) else ():
            if value and ":" not in value and value not in known:
                return f"no {name} {value}"
    return None


def problem(words: list[str]) -> str | None:
    """What is wrong with a simple command, as far as parsing tells."""
    program = Path(words[0]).name
    words = words[: words.index(">")] if ">" in words else words
    if program == "prunebench":
        if is_name(words):
            return None
        return problem_of_prunebench(words[1:])
    if program == "make":
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, env=without_make())
        if done.returncode:
            return done.stderr
        if is_name(words):
            return None
        recipe = (line for line in done.stdout.splitlines() if line.startswith(".venv/bin/prunebench"))
        return next((said for line in recipe if (said := problem(shlex.split(line)))), None)
    if program in ("srun", "sbatch"):
        behind = next((n for n, word in enumerate(words) if word == "prunebench"), 0)
        scripts = [n for n, word in enumerate(words) if word.endswith(".sbatch")]
        if scripts:
            return problem_of_prunebench(["sweep", *words[scripts[0] + 1 :]])
        return problem(words[behind:]) if behind else None
    if program == "ray":
        return problem_of_ray(words[1:])
    if program == "torchrun":
        return problem_of_python(words[words.index("-m") :])
    if re.fullmatch(r"python[\d.]*", program):
        return problem_of_python(words[1:])
    known = program in OTHERS or words[0].startswith((".ci/", "/tmp/release/bin/"))
    return None if known else f"no program that the test knows: {program}"


def problem_of_ray(words: list[str]) -> str | None:
    scripts = pytest.importorskip("ray.scripts.scripts")
    command = scripts.cli.commands.get(words[0])
    if command is None:
        return f"ray has no command {words[0]}"
    known = {option for parameter in command.params for option in parameter.opts}
    strange = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    return f"ray {words[0]} does not know {strange}" if strange else None


def problem_of_python(words: list[str]) -> str | None:
    words = [word for word in words if word != "-P"]
    if words[:1] == ["-m"]:
        if words[1] in ("build", "pip", "venv", "http.server") or words[2:] == ["..."]:
            return None
        if find_spec(words[1]) is None:
            return f"no module {words[1]}"
        return problem_of_flags(words[2:], ROOT / Path(*words[1].split("."))) if "harness" in words[1] else None
    if not words or not words[0].endswith(".py"):
        return None
    file = ROOT / words[0]
    return problem_of_flags(words[1:], file) if file.exists() else None  # others are files that the reader saves


def problem_of_flags(words: list[str], place: Path) -> str | None:
    """Flags that no string of a script, or of its package, names."""
    files = [place] if place.suffix else sorted(place.glob("*.py"))
    trees = (ast.walk(ast.parse(file.read_text())) for file in files)
    strings = {node.value for tree in trees for node in tree if isinstance(node, ast.Constant)}
    lacking = [word for word in words if word.startswith("--") and word not in strings]
    return f"{place.name} does not know {lacking}" if lacking else None


def without_make() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in MAKE}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_parses(page: str) -> None:
    wrong = []
    for command in COMMANDS[page]:
        one = entry(command) or Entry(run=True)
        text = command.text
        for before, after in one.edit.items():
            text = text.replace(before, after)
        if one.left in ("past", "pattern"):
            continue
        for words in Command(page, command.line, text, command.in_block).parts():
            if said := problem(words):
                wrong.append(f"{page}:{command.line}: {command.text}: {said}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_of_the_repository_in_a_command_exists(page: str) -> None:
    for command in COMMANDS[page]:
        if (entry(command) or Entry(run=True)).left == "past":
            continue
        for path in re.findall(rf"(?:^|[\s='\"])({REPOSITORY})", re.sub(r"\b(?:OUT|PAGE)=\S+", "", command.text)):
            assert (ROOT / path).exists(), f"{page}:{command.line}: {path}"


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.language in PYTHON for b in BLOCKS[page])])
def test_every_python_block_compiles_and_imports_what_exists(page: str) -> None:
    for block in BLOCKS[page]:
        if block.language in PYTHON:
            assert problem_of_code(block.code) is None, f"{page}:{block.line}: {problem_of_code(block.code)}"


def problem_of_code(code: str) -> str | None:
    """A name that an import of ours does not find, or an attribute that `prunebench` lacks."""
    ours = ("prunebench", "harness", "methods", "tasks")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ours:
            module = importlib.import_module(node.module or "")
            lacking = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            if lacking:
                return f"{node.module} has no {', '.join(lacking)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            lacking = [name for name in named if find_spec(name.split(".")[0]) is None]
            if lacking:
                return f"no package {', '.join(lacking)}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "prunebench":
            import prunebench

            if not hasattr(prunebench, node.attr):
                return f"prunebench has no {node.attr}"
    return None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("make eval METHOD=fastv BUGDET=64", "does not take BUGDET"),
        ("make evil", "no target evil"),
        ("make eval METHOD=fastvv BUDGET=64", "no method fastvv"),
        ("prunebench eval --method fastv --bugdet 64", "--bugdet"),
        ("prunebench evil", "evil"),
        ("prunebench results rn b1f783", "rn"),
        ("prunebench cost fastv --budget 64 --model lava", "no model lava"),
        ("srun -n 1 prunebench sweep x.yaml --executer ray", "--executer"),
        ("sbatch examples/slurm/sweep.sbatch x.yaml --limits 3", "--limits"),
        (".venv/bin/python benchmarks/tables.py --smal", "--smal"),
        ("python -m harness.gpu_chek", "harness.gpu_chek"),
        ("frobnicate --x", "no program"),
    ],
)
def test_a_wrong_command_is_told_apart(line: str, says: str) -> None:
    (words,) = Command("x.md", 1, line, True).parts()
    assert says in (problem(words) or "")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("from prunebench import Rankin", "prunebench has no Rankin"),
        ("import prunebench\nprunebench.prun", "prunebench has no prun"),
        ("import pandaz", "no package pandaz"),
    ],
)
def test_wrong_python_is_told_apart(code: str, says: str) -> None:
    assert problem_of_code(code) == says


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    if any(shutil.which(program) is None for program in ("make", "bash")):
        pytest.fail("the pages need make and bash")
    with Copy(tmp_path_factory.mktemp("docs")) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("page", TABLE)
def test_the_commands_of_a_page_run(page: str, copy: Copy, record_property: Any) -> None:
    code = {block.name: edited(block, TABLE[page].get(block.name, Entry(run=True))) for block in BLOCKS[page]}
    for text, one in TABLE[page].items():
        if not one.run:
            continue
        if one.save:
            file = copy.top / one.save
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(code[text])
            continue
        if text in code:
            whole = "\n".join([one.before, *(code[name] for name in one.after), code[text]])
            for name in one.after:
                whole = f"{TABLE[page][name].before}\n{whole}"
            script = f".venv/bin/python -c {shlex.quote(whole)}"
        else:
            for before, after in one.edit.items():
                text = text.replace(before, after)
            script = f"{one.before}\n{text} {one.add}"
            if one.before:
                script = f"set -e\n{script}"
        done = copy.run(script, limit_s=150)
        record_property(text, round(done.seconds, 1))
        assert done.code == one.code, f"{page}: {text}: exit code {done.code}\n{done.said[-3000:]}"


def edited(block: Block, one: Entry) -> str:
    code = block.code
    for before, after in one.edit.items():
        assert before in code, f"{block.page}: {block.name} has no {before!r} any more"
        code = code.replace(before, after)
    return code


@pytest.mark.slow
def test_a_command_that_fails_is_noticed(copy: Copy) -> None:
    assert copy.run("prunebench methods fastvv", limit_s=60).code == 2
    assert copy.run("make methods METHOD=fastvv", limit_s=60).code == 2
    assert copy.run(".venv/bin/python -c 'raise ValueError'", limit_s=60).code == 1
    assert copy.run("sleep 9", limit_s=0.2).code == 124
    done = copy.run("prunebench --version", limit_s=60)
    assert (done.code, done.said.split()[:1]) == (0, ["prunebench"]), done.said
    assert str(copy.top) in copy.run(".venv/bin/python -c 'import harness; print(harness.__file__)'", limit_s=60).said
