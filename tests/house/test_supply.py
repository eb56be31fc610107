"""The supply chain: the lock is in step with what is declared, builds are pinned, and nothing is run by a movable
name."""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness.core.paths import TOP
from harness.install import bootstrap
from harness.models.adapters import ADAPTERS
from harness.upkeep.licences import locked

LOCK = (TOP / "requirements.lock").read_text()
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())
SHA256 = re.compile(r"    --hash=sha256:[0-9a-f]{64}")


def pins(lines: str) -> dict[str, str]:
    """Version by package of a constraints file."""
    found = (line.partition("==") for line in lines.splitlines() if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version.strip() for name, _, version in found}


CONSTRAINTS = pins((TOP / "constraints.txt").read_text())


def faults(lock: str) -> list[str]:
    """What is wrong with a lock file."""
    found: list[str] = []
    versions: dict[str, str] = {}
    for entry in locked(lock):
        name = canonicalize_name(entry.name)
        if name in versions:
            found.append(f"{name} twice")
        versions[name] = entry.version
        # packages for systems that constraints.txt was not made on may lack there
        if CONSTRAINTS.get(name, "" if not entry.marker else entry.version) != entry.version:
            found.append(f"{name} {entry.version} is not what constraints.txt says")
    project = PROJECT["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"].values())]
    for wanted in (Requirement(text) for group in groups for text in group):
        version = versions.get(canonicalize_name(wanted.name))
        if version is None or version not in wanted.specifier:
            found.append(f"{wanted} is not met by {version}")
    found += [f"{name} of constraints.txt lacks" for name in CONSTRAINTS if name not in versions]
    lines = lock.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("#") or SHA256.fullmatch(line.removesuffix(" \\")):
            continue
        if not re.fullmatch(r"[\w.-]+==[^\s;]+(?: ; [^\\]+)? \\", line):
            found.append(f"line {number + 1}: {line}")
        elif number + 1 == len(lines) or not SHA256.match(lines[number + 1]):
            found.append(f"line {number + 1}: no hash")
    if re.search(r"://|--(?:index|find|extra|trusted)", lock):
        found.append("an address")
    return found


def test_the_lock_is_in_step_with_what_is_declared() -> None:
    assert faults(LOCK) == []
    for name, least in (("torch", 6), ("numpy", 20), ("pandas", 20)):
        block = LOCK.partition(f"\n{name}==")[2].split("==")[0]
        assert block.count("--hash") >= least, f"{name}: the files of three Pythons and several systems"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.replace("\npandas==3.1.1", "\npandas==3.1.0"), "pandas 3.1.0"),
        (lambda s: s.replace("\npandas==3.1.1", "\npandass==3.1.1"), "pandas"),
        (lambda s: re.sub(r"\ntorch==(.*)\\\n(    --hash.*\n)+", r"\ntorch==\1\\\n", s), "no hash"),
        (lambda s: re.sub(r"\ntorch==(.*) \\\n(    --hash.*\n)+", r"\ntorch==\1\n", s), "torch"),
        (lambda s: s.replace("--hash=sha256:", "--hash=md5:", 1), "line"),
        (lambda s: s + "six==1.17.0 \\\n    --hash=sha256:" + "0" * 64 + "\n", "six twice"),
        (lambda s: "--index-url https://example.org/simple\n" + s, "an address"),
        (lambda s: s.replace("\nsetuptools==81.0.0", "\nsetuptools==60.0"), "setuptools"),
        (lambda s: s + "evil @ file:///tmp/evil.whl\n", "evil"),
    ],
)
def test_a_lock_out_of_step_is_found(change: object, named: str) -> None:
    changed = change(LOCK)  # type: ignore[operator]
    assert changed != LOCK
    assert any(named in fault for fault in faults(changed)), faults(changed)


#: packages whose name is not that of the module
PACKAGES = {"PIL": "pillow", "yaml": "pyyaml"}
#: what only commands for maintainers import, inside a function, from the extra `dev`
OF_MAINTAINERS = {"selenium"}


def test_what_is_imported_is_declared() -> None:
    project = PROJECT["project"]
    texts = [*project["dependencies"], *project["optional-dependencies"]["ray"]]
    declared = {canonicalize_name(Requirement(text).name) for text in texts}
    ours = {"harness", "methods", "prunebench", "tasks"}
    imported: set[str] = set()
    for folder in ours:
        for file in (TOP / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    imported.add(node.module.partition(".")[0])
    foreign = imported - ours - set(sys.stdlib_module_names)
    # what the processor of a family imports
    foreign |= {package for adapter in ADAPTERS.values() for package in adapter.packages}
    assert {Requirement(text).name for text in project["optional-dependencies"]["dev"]} >= OF_MAINTAINERS
    assert foreign >= OF_MAINTAINERS
    assert {canonicalize_name(PACKAGES.get(name, name)) for name in foreign - OF_MAINTAINERS} == declared


def test_the_constraints_are_without_hashes_and_exact() -> None:
    lines = [line for line in (TOP / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!+]+", line) for line in lines)


def test_the_parts_are_the_whole_lock_and_builders_come_first(tmp_path: Path) -> None:
    parts = bootstrap.locked_parts(LOCK)
    assert sorted("".join(parts).splitlines()) == sorted(LOCK.splitlines())
    names = [[entry.name for entry in locked(part)] for part in parts]
    assert names[0] == ["setuptools"]
    assert {"torch", "triton", "nvidia-cublas"} <= set(names[1])
    assert "torchvision" in names[2]
    commands = bootstrap.locked_commands(str(TOP), str(tmp_path))
    *installs, own = commands
    assert all("--require-hashes" in c and "--no-build-isolation" in c and "--no-deps" in c for c in installs)
    assert own == ["--no-deps", "--no-build-isolation", "-e", "."]


def test_pip_refuses_a_file_of_another_hash(tmp_path: Path) -> None:
    """The flag does what we think: the same command with one hash changed installs nothing."""
    package = tmp_path / "thing"
    package.mkdir()
    (package / "thing.py").write_text("x = 1\n")
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "thing"\nversion = "1.0"\n[tool.hatch.build.targets.wheel]\ninclude = ["thing.py"]\n'
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, package], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    wanted = tmp_path / "wanted.txt"
    for said, code in ((digest, 0), (digest[::-1], 1)):
        wanted.write_text(f"thing==1.0 \\\n    --hash=sha256:{said}\n")
        options = ["--require-hashes", "--no-deps", "--no-index", "--find-links", str(tmp_path)]
        done = subprocess.run(
            [*pip, "install", *options, "--target", tmp_path / f"site-{code}", "-r", wanted],
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
    assert "DO NOT MATCH" in done.stderr


def test_build_requirements_are_pinned_as_constrained() -> None:
    for text in PROJECT["build-system"]["requires"]:
        wanted = Requirement(text)
        assert str(wanted.specifier) == f"=={CONSTRAINTS[canonicalize_name(wanted.name)]}"


def unpinned(workflow: str) -> list[str]:
    """The `uses:` lines that name no commit, or no version beside it."""
    used = re.findall(r"^\s*(?:- )?[\"']?uses[\"']?:\s*(.*)$", workflow, re.MULTILINE)
    return [u for u in used if not re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*", u)]


def test_actions_are_named_by_commit() -> None:
    files = [file for file in (TOP / ".github").rglob("*") if file.suffix in (".yml", ".yaml")]
    assert files
    assert {file.name: bad for file in files if (bad := unpinned(file.read_text()))} == {}
    assert sum(file.read_text().count("uses:") for file in files) >= 7


@pytest.mark.parametrize(
    "used",
    [
        "actions/checkout@v4",
        "actions/checkout@main",
        "actions/checkout",
        "actions/checkout@11bd719",
        f"actions/checkout@{'a' * 40}",
        f"actions/checkout@{'a' * 39}g # v4",
        "docker://alpine:3.20",
        f"'actions/checkout@{'a' * 40}'",
    ],
)
def test_an_action_by_a_movable_name_is_found(used: str) -> None:
    assert unpinned(f"    steps:\n      - uses: {used}\n") == [used]
    assert unpinned(f"      - uses: actions/cache@{'a' * 40} # v4.2\n") == []


def test_the_workflow_installs_locked() -> None:
    text = (TOP / ".github/workflows/prunebench.yml").read_text()
    runs = re.findall(r"run: (make .*)$", text, re.MULTILINE)
    assert len(runs) == 3
    assert all(run.startswith("make venv LOCKED=1 && make ") for run in runs)


def test_the_licence_list_is_in_step_with_the_lock() -> None:
    page = (TOP / "docs/licences.md").read_text()
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (\S+) \| (.+) \|$", page, re.MULTILINE)
    assert [(name, version) for name, version, _ in rows] == [
        (canonicalize_name(entry.name), entry.version) for entry in locked(LOCK)
    ]
    markers = {canonicalize_name(entry.name): entry.marker for entry in locked(LOCK)}
    assert not [name for name, _, said in rows if said.startswith("not read") and not markers[name]]
    # what a package states of itself and a short list of what cannot be known
    assert {name for name, _, said in rows if said == "not stated"} <= {
        "cuda-toolkit",
        "hf-transfer",
        "math-verify",
        "zss",
    }
