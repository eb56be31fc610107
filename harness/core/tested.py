"""The versions that prunebench was tested with: from the floor that pyproject.toml declares up to constraints.txt's."""

from __future__ import annotations

import importlib.metadata
import tomllib
from dataclasses import dataclass
from functools import cache

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from harness.core.paths import CHECKOUT, DATA


@dataclass(frozen=True)
class Outside:
    """An installed version that was not tested; `refused` where the declared range excludes it."""

    text: str
    refused: bool


@dataclass(frozen=True)
class VersionRange:
    """The range of one package: what is declared, and the newest version that was tried."""

    name: str
    declared: SpecifierSet
    newest: Version

    @property
    def floor(self) -> Version:
        """The lowest declared version."""
        return max(Version(one.version) for one in self.declared if one.operator in (">=", "=="))

    @property
    def span(self) -> str:
        """The range in words, as in `5.18.0 to 5.23.0`."""
        return str(self.newest) if self.floor == self.newest else f"{self.floor} to {self.newest}"

    @property
    def mend(self) -> str:
        """Say how a tested version is installed."""
        how = f"pip install {self.name}=={self.newest}" if CHECKOUT is None else "make clean-venv && make venv"
        return f"use {self.name} {self.span} (`{how}`)"

    def outside(self, found: str | None) -> Outside | None:
        """Judge an installed version; None for one that was tested or lies between two that were.

        A build's local label (+cu130) counts for nothing. A preview counts as older than its release.
        """
        try:
            version = Version(found or "")
        except InvalidVersion:
            return Outside(f"{self.name}: expected a version number, found {found!r}", refused=True)
        said = f"{self.name} {version} is outside the tested range {self.span}"
        if not self.declared.contains(version, prereleases=True):
            declared = ",".join(sorted(map(str, self.declared)))
            return Outside(f"{said} and not in the declared one, {declared}", refused=True)
        return Outside(said, refused=False) if Version(version.public) > self.newest else None


@cache
def tested_ranges() -> dict[str, VersionRange]:
    """By package: every direct dependency, under its normalised name."""
    pins = {}
    for line in (DATA / "constraints.txt").read_text().splitlines():
        name, separator, version = line.partition("==")
        if separator:
            pins[canonicalize_name(name)] = Version(version)
    found = {}
    for text in _declared():
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            name = canonicalize_name(wanted.name)
            found[str(name)] = VersionRange(name, wanted.specifier, pins[name])
    return found


def tested(name: str) -> VersionRange:
    """The range of one direct dependency."""
    return tested_ranges()[canonicalize_name(name)]


def untested() -> list[Outside]:
    """The installed versions of direct dependencies that lie outside their ranges; a missing package is none of
    them."""
    found = []
    for name, versions in tested_ranges().items():
        try:
            outside = versions.outside(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
        if outside is not None:
            found.append(outside)
    return found


def _declared() -> list[str]:
    """The direct dependencies; in a checkout as the file says now, and not as it said when it was installed."""
    if CHECKOUT is None:
        return importlib.metadata.requires("prunebench") or []
    dependencies: list[str] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    return dependencies
