"""One version everywhere: pyproject.toml names the last release, and CHANGELOG.md may begin with the next one.

README.md and CITATION.cff cite the version of pyproject.toml. CHANGELOG.md begins with that version and its day, or
with a later one that is `(unreleased)` and has that version next.
"""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml
from packaging.version import Version

from harness.core.paths import TOP

PAGES = {name: (TOP / name).read_text() for name in ("pyproject.toml", "README.md", "CITATION.cff", "CHANGELOG.md")}


def faults(pages: dict[str, str]) -> list[str]:
    """What breaks the rule."""
    ours = tomllib.loads(pages["pyproject.toml"])["project"]["version"]
    cited = re.findall(r"^  version = \{(.*)\},$", pages["README.md"], re.M)
    found = [f"README.md cites {cited}"] if cited != [ours] else []
    cff = yaml.safe_load(pages["CITATION.cff"])
    if cff.get("version") != ours:
        found.append(f"CITATION.cff has {cff.get('version')}")
    heads = re.findall(r"^## (\S+) \((.*)\)$", pages["CHANGELOG.md"], re.M)
    days = [day for _, day in heads]
    if heads[0][1] == "unreleased":
        if Version(heads[0][0]) <= Version(ours):
            found.append(f"{heads[0][0]} is not later than {ours}")
        heads = heads[1:]
    if heads[0][0] != ours:
        found.append(f"the last release of CHANGELOG.md is {heads[0][0]}")
    if str(cff.get("date-released")) != heads[0][1]:
        found.append(f"CITATION.cff was released on {cff.get('date-released')}")
    if "unreleased" in days[1:] or days[1:] != sorted(days[1:], reverse=True):
        found.append(f"days of CHANGELOG.md are {days}")
    return found


def test_the_version_is_the_same_everywhere() -> None:
    assert faults(PAGES) == []


@pytest.mark.parametrize(
    ("page", "before", "after", "says"),
    [
        ("pyproject.toml", 'version = "', 'version = "9', "README.md cites"),
        ("README.md", "  version = {", "  version = {9", "README.md cites"),
        ("CITATION.cff", "\nversion: ", "\nversion: 9", "CITATION.cff has 9"),
        ("CITATION.cff", "\ndate-released: 2", "\ndate-released: 1", "CITATION.cff was released on 1"),
        ("CHANGELOG.md", "\n## ", "\n## 0.0.1 (unreleased)\n\n## ", "0.0.1 is not later than"),
        ("CHANGELOG.md", "\n## ", "\n## 99 (2099-01-01)\n\n## ", "the last release of CHANGELOG.md is 99"),
    ],
)
def test_a_version_that_is_forgotten_is_named(page: str, before: str, after: str, says: str) -> None:
    assert before in PAGES[page]
    changed = {**PAGES, page: PAGES[page].replace(before, after, 1)}
    assert any(says in fault for fault in faults(changed)), faults(changed)
