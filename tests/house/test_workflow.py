"""The GitHub workflow and the commit hooks check what `make lint` and `make test` do, on every Python we support."""

from __future__ import annotations

import re
import tomllib

import yaml

from harness.core.paths import TOP as REPOSITORY
from harness.install import bootstrap

WORKFLOW = yaml.safe_load((REPOSITORY / ".github/workflows/prunebench.yml").read_text())


def linted() -> list[str]:
    """The commands of `make lint`, each without the folder of the environment."""
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    return [line.strip().removeprefix("@$(VENV)/bin/").removesuffix(" .") for line in recipe.splitlines()]


def test_tests_run_on_every_supported_python() -> None:
    found = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"]
    oldest, newest = bootstrap.OLDEST, bootstrap.NEWEST
    assert found == [f"{oldest[0]}.{minor}" for minor in range(oldest[1], newest[1] + 1)]
    required = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"]
    assert required == f">={found[0]},<{newest[0]}.{newest[1] + 1}"


def test_the_workflow_may_only_read() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in WORKFLOW["jobs"].values())
    checkouts = [s for job in WORKFLOW["jobs"].values() for s in job["steps"] if "checkout" in s.get("uses", "")]
    assert len(checkouts) == len(WORKFLOW["jobs"])
    assert all(step["with"] == {"persist-credentials": False} for step in checkouts)


def test_commit_hooks_are_local_and_are_what_make_lint_runs() -> None:
    repos = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    hooks = repos[0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    entries = [hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude") for hook in hooks]
    assert entries == linted()
