"""The template of a repository for results of many people: its workflows hold their rules.

tests/proof/test_repository_steps.py runs their steps.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from test_supply import unpinned

from harness.core.paths import TOP

TEMPLATE = TOP / "examples" / "results-repository"
FILES = {path.name: path for path in sorted((TEMPLATE / ".github" / "workflows").glob("*.yml"))}
#: what names no text of a pull request: hashes, numbers and places of the runner
HARMLESS = {
    "github.event.pull_request.base.sha",
    "github.event.pull_request.number",
    "steps.deployment.outputs.page_url",
    "runner.temp",
}


def parsed(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text)
    found["on"] = found.pop(True)  # YAML reads the word as a truth value
    return found


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def faults(name: str, text: str) -> list[str]:
    """What in a workflow breaks the rules for content that strangers send."""
    found = [f"not pinned: {used}" for used in unpinned(text)]
    workflow = parsed(text)
    if set(workflow["on"]) - {"pull_request", "push"}:
        found.append(f"started by {sorted(workflow['on'])}")
    if workflow.get("permissions") != {"contents": "read"}:
        found.append("permissions of the workflow")
    strangers = "pull_request" in workflow["on"]
    for job in workflow["jobs"].values():
        allowed = job.get("permissions", {})
        writes = {scope for scope, kind in allowed.items() if kind != "read"}
        if writes - {"pages", "id-token"} or (writes and strangers):
            found.append(f"permissions {allowed}")
        if writes and any("checkout" in step.get("uses", "") or "run" in step for step in job["steps"]):
            found.append("a job that may write runs something of the repository")
    for step in steps(workflow):
        run = str(step.get("run", ""))
        if "${{" in run or "$GITHUB_HEAD_REF" in run:
            found.append(f"an expression in a command: {run[:60]}")
        if "checkout" in step.get("uses", "") and step["with"].get("persist-credentials") is not False:
            found.append("a checkout keeps the token")
        if "checkout" in step.get("uses", "") and step["with"].get("submodules"):
            found.append("submodules are fetched")
        for line in run.splitlines():
            word = line.split()[0] if line.split() else ""
            if re.search(r"\b(?:pip|install)\b", line) and line.strip() != (
                "pip install --requirement trusted/requirements.txt"
            ):
                found.append(f"installs: {line.strip()}")
            if re.search(r"\b(?:source|eval|bash|sh|python3?|make)\b|^\s*\.?/", line) and word != "#":
                found.append(f"runs: {line.strip()}")
    for expression in re.findall(r"\$\{\{\s*(.*?)\s*\}\}", text):
        if expression not in HARMLESS:
            found.append(f"expression {expression}")
    if re.search(r"\bsecrets\.\w", text):
        found.append("secrets")
    return found


@pytest.mark.parametrize("name", FILES)
def test_the_workflows_hold_their_rules(name: str) -> None:
    assert faults(name, FILES[name].read_text()) == []


def test_there_are_two_and_each_has_its_event() -> None:
    events = {name: parsed(path.read_text())["on"] for name, path in FILES.items()}
    assert events == {"pages.yml": {"push": {"branches": ["main"]}}, "verify.yml": {"pull_request": None}}
    verify = steps(parsed(FILES["verify.yml"].read_text()))
    trusted, proposed = (step["with"] for step in verify if "checkout" in step.get("uses", ""))
    assert (trusted["path"], trusted["ref"]) == ("trusted", "${{ github.event.pull_request.base.sha }}")
    assert proposed["path"] == "proposed"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("on:\n  pull_request:", "on:\n  pull_request_target:"),
        ("contents: read", "contents: write"),
        ("persist-credentials: false", "persist-credentials: true"),
        ("trusted/requirements.txt", "proposed/requirements.txt"),
        ("pip install --requirement trusted", "pip install ./proposed && pip install --requirement trusted"),
        (
            "          prunebench results verify",
            "          echo ${{ github.head_ref }}\n          prunebench results verify",
        ),
        (
            "          prunebench results verify",
            "          python proposed/check.py\n          prunebench results verify",
        ),
        (" # v4.2.2", ""),
        ("@11bd71901bbe5b1630ceea73d27597364c9af683 # v4.2.2", "@v4"),
        ("fetch-depth: 2", "submodules: true"),
        ('PYTHONSAFEPATH: "1"', "TOKEN: ${{ secrets.TOKEN }}"),
    ],
)
def test_a_workflow_that_breaks_a_rule_is_found(old: str, new: str) -> None:
    text = FILES["verify.yml"].read_text()
    assert old in text
    assert faults("verify.yml", text.replace(old, new)) != []


def test_prunebench_is_pinned_by_the_base_branch_alone() -> None:
    lines = [line for line in (TEMPLATE / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 1
    assert re.fullmatch(r"prunebench==\d+\.\d+\.\d+", lines[0])
    assert (TEMPLATE / ".gitattributes").read_text().splitlines()[-1] == "submissions/** -text"
