"""Which installed versions were tested, which are only noted, and which are refused."""

from __future__ import annotations

import importlib.metadata
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from harness.core import tested
from harness.core.paths import TOP
from harness.core.tested import VersionRange

RANGES = {
    "transformers": VersionRange("transformers", SpecifierSet(">=5.18,<6"), Version("5.23.0")),
    "torch": VersionRange("torch", SpecifierSet(">=2.11,!=2.13.0"), Version("2.12.0")),
    "lmms-eval": VersionRange("lmms-eval", SpecifierSet("==0.7.3"), Version("0.7.3")),
    "pandas": VersionRange("pandas", SpecifierSet(">=2.2"), Version("3.1.1")),
}
WELL, NOTED, REFUSED = "well", "noted", "refused"


@pytest.mark.parametrize(
    ("name", "version", "verdict"),
    [
        ("transformers", "5.18.0", WELL),
        ("transformers", "5.18", WELL),
        ("transformers", "5.20.2.post1", WELL),
        ("transformers", "5.23.0", WELL),
        ("transformers", "v5.23.0", WELL),
        ("transformers", "5.23.0+local.1", WELL),
        ("transformers", "5.19.0.dev0", WELL),
        ("transformers", "5.23.0rc1", WELL),
        ("transformers", "5.17.0", REFUSED),
        ("transformers", "5.17.99.post3", REFUSED),
        ("transformers", "5.18.0.dev0", REFUSED),
        ("transformers", "5.18.0rc1", REFUSED),
        ("transformers", "5.18.0a0+g1234", REFUSED),
        ("transformers", "4.57.6", REFUSED),
        ("transformers", "5.23.0.post1", NOTED),
        ("transformers", "5.24.0.dev0", NOTED),
        ("transformers", "5.24.0", NOTED),
        ("transformers", "5.99", NOTED),
        ("transformers", "6.0.0", REFUSED),
        ("transformers", "6.0.0.dev0", REFUSED),
        ("transformers", "1!5.20", REFUSED),
        ("torch", "2.12.0+cu130", WELL),
        ("torch", "2.11.0+cpu", WELL),
        ("torch", "2.12.0a0+git0f9e3b1", WELL),
        ("torch", "2.10.1+cu126", REFUSED),
        ("torch", "2.11.0a0", REFUSED),
        ("torch", "2.13.0", REFUSED),
        ("torch", "2.13.0+cpu", REFUSED),
        ("torch", "2.13.1", NOTED),
        ("torch", "2.14.1+cu130", NOTED),
        ("torch", "1!0.1", NOTED),
        ("lmms-eval", "0.7.3", WELL),
        ("lmms-eval", "0.7.2", REFUSED),
        ("lmms-eval", "0.7.4", REFUSED),
        ("lmms-eval", "0.7.3.post1", REFUSED),
        ("pandas", "2.2.0", WELL),
        ("pandas", "10.0", NOTED),
        ("pandas", "2.1.4", REFUSED),
        ("pandas", "", REFUSED),
        ("pandas", None, REFUSED),
        ("pandas", "unknown", REFUSED),
        ("pandas", "3.1.1-custom-build", REFUSED),
    ],
)
def test_a_version_is_judged(name: str, version: str | None, verdict: str) -> None:
    found = RANGES[name].outside(version)
    assert (WELL if found is None else REFUSED if found.refused else NOTED) == verdict
    if found is not None:
        assert found.text.startswith(name)
        assert "\n" not in found.text


def test_an_old_version_is_named_with_the_range() -> None:
    found = RANGES["transformers"].outside("5.17.0")
    assert found is not None
    assert found.text == (
        "transformers 5.17.0 is outside the tested range 5.18 to 5.23.0 and not in the declared one, <6,>=5.18"
    )
    assert RANGES["lmms-eval"].span == "0.7.3"


def test_the_ranges_are_pyproject_and_the_constraints() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    declared = {canonicalize_name(r.name): r.specifier for r in map(Requirement, project["dependencies"])}
    found = tested.tested_ranges()
    assert {name: one.declared for name, one in found.items()} == declared
    for name, one in found.items():
        assert one.declared.contains(one.newest), f"{name}: the tested version is one of the declared ones"
        assert one.floor <= one.newest, name
        assert one.outside(str(one.newest)) is None
        assert one.outside(str(one.floor)) is None


def test_an_installed_package_declares_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["torch>=2.11", "pytest>=8; extra == 'dev'", "pyyaml>=6"]
    monkeypatch.setattr(tested, "CHECKOUT", None)
    monkeypatch.setattr(tested, "DATA", TOP)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: declared)
    tested.tested_ranges.cache_clear()
    try:
        assert list(tested.tested_ranges()) == ["torch", "pyyaml"]
        assert "pip install torch==" in tested.tested("torch").mend
    finally:
        tested.tested_ranges.cache_clear()


@pytest.mark.parametrize(
    ("versions", "code", "said"),
    [
        ({"transformers": "5.17.0"}, 1, "transformers 5.17.0 is outside the tested range"),
        ({"pandas": "1.5.3"}, 1, "pandas 1.5.3 is outside the tested range"),
        ({"transformers": "5.99.0"}, 0, "note           transformers 5.99.0 is outside the tested range"),
        ({"torch": "2.13.0"}, 1, "torch 2.13.0 is outside the tested range"),
        ({}, 0, "all well"),
    ],
)
def test_doctor_and_the_first_line_of_a_run_name_it(
    versions: dict[str, str],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from harness.cli import say
    from harness.install import doctor

    wanted = {name: str(one.newest) for name, one in tested.tested_ranges().items()} | versions
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: wanted.get(canonicalize_name(name)) or real(name))
    assert doctor.report() == (code == 0)
    assert said in capsys.readouterr().out
    say.loading()
    first = capsys.readouterr().err.splitlines()
    assert (
        first == [] if not versions else first[0].startswith("note: ") and said.removeprefix("note").strip() in first[0]
    )
