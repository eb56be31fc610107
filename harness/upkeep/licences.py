"""The licences of everything that is installed beside prunebench: `prunebench dev licences` writes docs/licences.md.

Names and versions come from requirements.lock, licences from the metadata of the installed packages.
"""

from __future__ import annotations

import importlib.metadata
import re
from typing import NamedTuple

from packaging.utils import canonicalize_name

from harness.core.errors import PrunebenchError
from harness.core.paths import TOP

LOCK = TOP / "requirements.lock"
FILE = TOP / "docs" / "licences.md"
HEAD = """# Licences

prunebench is under Apache-2.0. Its wheel holds no code of other packages; pip installs them beside it. The table lists
what `requirements.lock` installs, with the licence that each package states of itself. `prunebench dev licences` writes
this page.

Files in `methods/` are written from descriptions and recorded numbers, and hold no code of the official repositories.
[Methods](methods.md) names the licence of each repository.

| Package | Version | Licence |
|---|---|---|
"""
#: a longer entry is the text of a licence and not its name
LONGEST = 80
UNSTATED = "not stated"


class Locked(NamedTuple):
    """One entry of requirements.lock: `marker` says on which systems it is installed, "" for all."""

    name: str
    version: str
    marker: str


def locked(lock: str) -> list[Locked]:
    """The entries of a lock file, in its order."""
    entries = re.findall(r"^([\w.-]+)==([^\s;]+)(?: ; (.*?))? \\$", lock, re.MULTILINE)
    return [Locked(*entry) for entry in entries]


def licence(name: str) -> str | None:
    """What an installed package says of its licence: its expression, its classifiers or its field; None where it is not
    installed."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    classifiers = [c.split(" :: ")[-1] for c in metadata.get_all("Classifier") or [] if c.startswith("License :: ")]
    named = [c for c in classifiers if c != "OSI Approved"]
    field = " ".join(" ".join(metadata.get_all("License") or []).split())
    stated = (
        " ".join(metadata.get_all("License-Expression") or []) or "; ".join(named) or field.partition(" Copyright")[0]
    )
    return stated[:LONGEST] or UNSTATED


def page(lock: str) -> str:
    """The whole page for a lock file. A package for other systems has its condition in place of a licence.

    Raises PrunebenchError where a package of every system is not installed.
    """
    rows = []
    for entry in locked(lock):
        said = licence(entry.name)
        if said is None and not entry.marker:
            raise PrunebenchError(
                f"expected every package of requirements.lock, found no {entry.name}: run `make clean-venv && make venv"
                " LOCKED=1` first"
            )
        said = said or f"not read: only installed where {entry.marker}"
        rows.append(f"| {canonicalize_name(entry.name)} | {entry.version} | {said.replace('|', '/')} |\n")
    return HEAD + "".join(rows)
