"""Methods of other packages: one that is broken names itself, and every other method goes on."""

import sys
from importlib import metadata
from pathlib import Path

import pytest
from helpers import run

from harness.core.errors import PrunebenchError
from harness.method import method_class, registered, registry

GOOD = '''"""A method of another package."""
from dataclasses import dataclass
from harness.method import Method
@dataclass(frozen=True)
class Good(Method):
    name = "good-plugin"
    keep: int = 64
'''
#: what stands behind the entry point, its value, and what is said of it
BROKEN = {
    "raises": ("raise RuntimeError('on import')", "{}:X", "RuntimeError: on import"),
    "exits": ("import sys; sys.exit(0)", "{}:X", "SystemExit: 0"),
    "ends": ("raise BaseException('b')", "{}:X", "BaseException: b"),
    "no-syntax": ("def", "{}:X", "SyntaxError"),
    "no-package": ("import a_package_that_nobody_has", "{}:X", "ModuleNotFoundError"),
    "no-attribute": ("", "{}:X", "AttributeError"),
    "no-module": (None, "{}:X", "ModuleNotFoundError"),
    "a-number": ("X = 3", "{}:X", "expected a subclass of prunebench.Method, found 3"),
    "another-class": ("class X: pass", "{}:X", "expected a subclass"),
    "no-dataclass": (GOOD.replace("@dataclass(frozen=True)", ""), "{}:Good", "a method is a frozen dataclass"),
    "no-name": (GOOD.replace("good-plugin", "No Name!"), "{}:Good", "expected a `name` of lower-case letters"),
    "a-taken-name": (GOOD.replace("good-plugin", "fastv"), "{}:Good", "two methods are called 'fastv'"),
    "half-way": (
        GOOD.replace("@dataclass", "from harness.method import register\n@register\n@dataclass").replace(
            "good-plugin", "half"
        )
        + "1 / 0",
        "{}:Good",
        "ZeroDivisionError",
    ),
    "old": (GOOD + "    def plan(self, shape, n_text): pass\n", "{}:Good", "as in prunebench 0.1"),
}


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every broken plug-in installed beside a good one, the good one last."""
    sources = {**{name: source for name, (source, _, _) in BROKEN.items()}, "zz-good": GOOD}
    values = {**{name: value for name, (_, value, _) in BROKEN.items()}, "zz-good": "{}:Good"}
    info = tmp_path / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    lines = ["[prunebench.methods]"]
    for name, source in sources.items():
        module = f"plugin_{name.replace('-', '_')}"
        if source is not None:
            (tmp_path / f"{module}.py").write_text(source)
        lines.append(f"{name} = {values[name].format(module)}")
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(registry, "_REGISTRY", dict(registered()))
    monkeypatch.setattr(registry, "_PLUGINS_LOADED", False)
    monkeypatch.setattr(registry, "BROKEN", {})
    assert len(metadata.entry_points(group="prunebench.methods")) >= len(sources)


def test_broken_plugins_hurt_nobody_else(plugins: None) -> None:
    before = set(registry._REGISTRY)
    assert set(registered()) == before | {"good-plugin"}
    assert method_class("good-plugin").__module__ == "plugin_zz_good"
    assert method_class("fastv").__module__ == "methods.fastv"
    assert set(registry.BROKEN) == set(BROKEN)


@pytest.mark.parametrize("name", BROKEN)
def test_who_asks_for_a_broken_plugin_learns_whose_it_is(name: str, plugins: None) -> None:
    with pytest.raises(PrunebenchError) as refused:
        method_class(name)
    said = str(refused.value)
    assert said.startswith(f"plug-in {name!r} of the package others (plugin_")
    assert BROKEN[name][2] in said
    assert "\n" not in said


def test_the_list_of_methods_names_them(plugins: None, capsys, monkeypatch) -> None:
    code, out, _ = run(capsys, monkeypatch, "methods")
    assert code == 0
    assert "\nfastv " in out
    assert "\ngood-plugin" in out
    assert out.count("\nnot usable: plug-in ") == len(BROKEN)
