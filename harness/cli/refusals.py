"""What a person typed wrong, in one line: unknown commands and options, missing and strange values."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from harness.core.errors import PrunebenchError, unknown
from harness.core.spelling import BY_POSITION, given

#: commands that have moved, by the name that they had
MOVED = {name: f"dev {name}" for name in ("mutations", "readme", "published", "mini")}
#: the error of the parser below typer's public one: a usage error, whatever the version
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class _Switches:
    """Help shows no type beside a switch: `--wide <bool>` reads as if a value followed."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for one in params:
            if getattr(one, "is_flag", False):
                one.metavar = ""
        return params


class Command(_Switches, TyperCommand):
    """A command."""


class Group(_Switches, TyperGroup):
    """A group of commands that names the nearest one for an unknown one, and the new name of a moved one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As the base class. Raises PrunebenchError for an unknown name."""
        name, above = args[0], ctx.command_path.split()[1:]
        if name in self.commands or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        if not above and name in MOVED:
            raise PrunebenchError(f"{name}: the command has moved: type prunebench {MOVED[name]}")
        shown = [key for key, command in self.commands.items() if not command.hidden]
        raise unknown(f"command of {' '.join(above)}" if above else "command", name, shown)


def said(error: Any) -> str:
    """A usage error of the parser as one line: the command, what was expected, what was found."""
    context = error.ctx
    if context is None:
        return _reason(error, None)
    path = context.command_path.split()[1:]
    where = f"{path[-1]}: " if path else ""
    return f"{where}{_reason(error, context)}; `{' '.join(['prunebench', *path])} --help` lists what it takes"


def _reason(error: Any, context: Any) -> str:
    kind, parameter = type(error).__name__, getattr(error, "param", None)
    message = " ".join(str(error.format_message()).split())
    if kind == "NoSuchOption" and context:
        options = [p for p in context.command.params if p.param_type_name == "option"]
        known = [name for option in options for name in (*option.opts, *option.secondary_opts)]
        return str(unknown("option", error.option_name, known)).partition(" (known")[0]
    if kind == "BadOptionUsage":
        none = "not take" in message
        return f"{error.option_name}: expected {'no value, found one' if none else 'a value, found none'}"
    if kind == "MissingParameter" and parameter is not None:
        return f"expected {_named(parameter)}, found none" + (f" ({parameter.help})" if parameter.help else "")
    if kind == "BadParameter" and parameter is not None:
        reason = message.partition(": ")[2].rstrip(".") or message
        if "valid int" not in reason:
            return f"{_named(parameter)}: {reason}"
        cause = error.__cause__
        found = cause.errors()[0]["input"] if hasattr(cause, "errors") else ""
        return f"{given(parameter.name, found)}: expected a whole number"
    extra = re.match(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", message)
    if extra:
        return f"expected nothing more, found {extra[1]!r}"
    return message.rstrip(".")


def _named(parameter: Any) -> str:
    if parameter.param_type_name == "option":
        return given(parameter.name.rstrip("_"))
    name = str(parameter.name)
    return given(name) if name in BY_POSITION else str(parameter.metavar or name.upper()).strip("[]")
