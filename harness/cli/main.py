"""The command `prunebench`: which commands there are, in which group, and what becomes of an error.

Every heavy import is inside the command that needs it.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Annotated, Any

import typer

from harness.cli import dev, known_tasks, look, results, run, understand
from harness.cli.compare import compare
from harness.cli.encoding import settle
from harness.cli.guard import DEBUG, EXIT_BAD_INPUT, guarded, refused, sturdy
from harness.cli.rankings import compare_models
from harness.cli.refusals import Command, Group, UsageError, said
from harness.cli.say import put
from harness.cli.signals import ending
from harness.core.errors import Interrupted, PrunebenchError
from harness.core.spelling import from_a_terminal

MEASURE, READ, LOOK_UP, CHECK, BESIDE = "Measure", "Read results", "Look up", "Check", "With lmms-eval"
COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    MEASURE: {
        "eval": run.evaluate,
        "sweep": run.sweep,
        "bench": run.bench,
        "ablate": run.ablate,
        "analyze": run.analyze,
    },
    READ: {
        "report": look.report,
        "leaderboard": look.leaderboard,
        "compare": compare,
        "compare-models": compare_models,
        "show": look.show,
    },
    LOOK_UP: {
        "methods": look.methods,
        "models": look.models,
        "tasks": known_tasks.tasks,
        "cost": understand.cost,
    },
    CHECK: {
        "doctor": understand.doctor,
        "check": understand.check,
        "goldens": understand.goldens,
        "regress": understand.regress,
        "baseline": understand.baseline,
    },
    BESIDE: {
        "lmms-eval": run.lmms_eval,
        "import": run.import_run,
    },
}
RESULTS: dict[str, Callable[..., None]] = results.COMMANDS
DEV: dict[str, Callable[..., None]] = {
    "licences": dev.licences,
    "mutations": dev.mutations,
    "readme": dev.readme,
    "screenshots": dev.screenshots,
    "published": dev.published,
    "shipped": dev.shipped,
    "migrate": dev.migrate,
    "mini": dev.mini,
}
#: these hand what they are given to a command line of their own
_PASSES_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
PASSING_ON = ("lmms-eval", "mini")

app = typer.Typer(cls=Group, no_args_is_help=True, pretty_exceptions_enable=False)


def _group(commands: dict[str, Callable[..., None]], about: str) -> typer.Typer:
    group = typer.Typer(cls=Group, no_args_is_help=True, help=about)
    _add(group, commands)
    return group


def _add(group: typer.Typer, commands: dict[str, Callable[..., None]], panel: str | None = None) -> None:
    for name, function in commands.items():
        settings: dict[str, Any] | None = _PASSES_ON if name in PASSING_ON else None
        said = _paragraphs(function)
        group.command(name, cls=Command, rich_help_panel=panel, context_settings=settings, help=said)(function)


def _paragraphs(function: Callable[..., None]) -> str:
    """A command's docstring as help, each paragraph as one line: a terminal breaks lines where its own width ends."""
    parts = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in parts)


for _panel, _commands in COMMANDS.items():
    _add(app, _commands, _panel)
app.add_typer(
    _group(RESULTS, "List, show, check, merge and remove cells: single results of a folder."),
    name="results",
    rich_help_panel=READ,
)
app.add_typer(
    _group(DEV, "Maintain methods/, committed results and the mini world."),
    name="dev",
    rich_help_panel=CHECK,
)


def _version(on: bool) -> None:
    if on:
        try:
            put(f"prunebench {metadata.version('prunebench')}")
        except metadata.PackageNotFoundError:
            raise PrunebenchError("expected an installed prunebench, found its files alone: see `doctor`") from None
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="print the version; `doctor` prints all others"
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help=f"show the traceback of an error, as {DEBUG}=1 does; at any place")
    ] = False,
) -> None:
    """Evaluate visual-token pruning of multimodal language models: accuracy on real tasks beside measured cost.

    Three commands to start with:

        prunebench eval --method visipruner --budget 64   a first table of results
        prunebench methods                                all methods, their needs
        prunebench report                                 your results as one page
    """


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted  # not a KeyboardInterrupt, which typer would turn into a silent exit


def main() -> None:
    """Entry point: errors a user can mend are one line and exit code 2; an interruption says how to continue; any other
    error is one line too, and its traceback goes to a file."""
    settle()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sturdy()
    words, debug = _without_debug(sys.argv[1:])
    shown = os.environ.get(DEBUG)
    if debug:
        os.environ[DEBUG] = "1"
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        with from_a_terminal(), ending():
            # a command line of its own parses its words, and a shell that completes is answered by an exit
            own = bool(_passing_on(words)) or "_PRUNEBENCH_COMPLETE" in os.environ
            sys.exit(guarded(lambda: _run(words), own))
    finally:
        signal.signal(signal.SIGINT, before)
        if debug:
            os.environ.pop(DEBUG)
            os.environ |= {DEBUG: shown} if shown is not None else {}


def _passing_on(words: Sequence[str]) -> int:
    """How many words name a command that hands the rest to a command line of its own; 0 for any other command."""
    return next((n for n in (1, 2) if " ".join(words[:n]) in ("lmms-eval", "dev mini")), 0)


def _without_debug(words: Sequence[str]) -> tuple[list[str], bool]:
    """The words without the switch --debug, which every command takes at any place, and whether it was there."""
    # the words of another command line are its own, and so is what stands behind --
    named = [word for word in words if word != "--debug"]
    ends = [words.index("--")] if "--" in words else []
    ends += [words.index(named[_passing_on(named) - 1])] if _passing_on(named) else []
    end = min(ends, default=len(words))
    head = [word for word in words[:end] if word != "--debug"]
    return [*head, *words[end:]], len(head) < end


def _run(words: Sequence[str]) -> int:
    """The exit code of what was typed."""
    try:
        return app(args=list(words), prog_name="prunebench", standalone_mode=False) or 0
    except PrunebenchError as error:
        return refused(str(error))
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            put(error)
            return EXIT_BAD_INPUT
        return refused(said(error))
    except typer.Abort:
        return refused("aborted")
