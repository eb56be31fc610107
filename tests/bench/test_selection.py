"""`benchmarks/methods.py`: parts of a selection that add up, timers that leave nothing behind, and tables."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from harness.core import budget as budgets
from harness.core.shape import SHAPES
from harness.engine import tower
from harness.engine.run import EngineRun
from harness.method import Method, build

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "methods.py"
TEXT = SHAPES["llava-1.5-7b"].with_text(20)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script under a name of its own: its file is called as the package of methods."""
    spec = importlib.util.spec_from_file_location("selection_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_part_inside_another_is_not_counted_twice(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]

    def takes(seconds: int) -> None:
        now[0] += seconds

    monkeypatch.setattr(script, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    clock = script.Clock(lambda: None)
    inner = clock.around("products", lambda: takes(5))
    clock.around("ranking or loop", lambda: (takes(2), inner()))()
    clock.around("reduction", inner, lambda _: False)()
    assert clock.seconds == {"products": 10, "ranking or loop": 2, "reduction": 0, "tower look": 0}


@pytest.mark.parametrize("name", ["fastv", "uniform", "visionzip", "visipruner"])
def test_a_timed_method_has_the_hooks_and_knobs_of_its_own(script: ModuleType, name: str) -> None:
    method = build(name, budgets.parse("64"), {}, TEXT)
    timed = script.timed_method(method, script.Clock(lambda: None))
    assert timed.knobs() == method.knobs()
    assert isinstance(timed, type(method))
    assert type(timed.for_model(TEXT.decoder)) is type(timed)
    for hook in script.HOOKS:
        own, mine = getattr(type(method), hook), getattr(type(timed), hook)
        assert (own is getattr(Method, hook)) == (mine is getattr(Method, hook)), hook


def test_timers_leave_nothing_behind(script: ModuleType) -> None:
    def held() -> list[Any]:
        return [tower._summed_rows, *(getattr(EngineRun, n) for n in ("_boundary", "_show", "matmul", "project"))]

    before, own = held(), set(vars(EngineRun))

    def broken() -> None:
        with script.timers(script.Clock(lambda: None)):
            assert held() != before
            raise RuntimeError("seeded")

    with pytest.raises(RuntimeError, match="seeded"):
        broken()
    assert held() == before
    assert set(vars(EngineRun)) == own


def test_the_tables_say_what_was_measured(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--model", "mini", "--layers", "4", "--methods", "visionzip,fastv", "--budget", "16"]
    assert script.main([*asked, "--repeats", "2", "--warmup", "0", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "4 of 12 decoder layers, scaled" in out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows] == ["`visionzip`", "`fastv`"] * 2
    for total, parts in zip(rows[:2], rows[2:], strict=True):
        assert float(total[1]) == pytest.approx(sum(map(float, parts[1:])), abs=0.3 * float(total[1]) + 0.3)
    assert float(rows[2][1]) > 0, "the tower's rows"
    assert float(rows[3][1]) == 0, "FastV does not look at the tower"
    assert float(rows[3][2]) > 0, "FastV's row of attention"
    assert script.main(["--methods", "nobody's"]) == 2
    assert "nobody" in capsys.readouterr().err
