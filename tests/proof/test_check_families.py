"""Methods x families: two methods conform on every family, each property can fail, and the matrix says what runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from harness.cli import app
from harness.core.shape import Share, VisionShape
from harness.engine.run import EngineRun
from harness.method import Method, Reduction, Run, Stream, method_class, registered
from harness.models import matrix
from harness.models.adapters import ADAPTERS
from harness.proof.conformance.families import CHECKS, fits
from harness.proof.conformance.family_models import SIZES, family_model

ROOT = Path(__file__).resolve().parents[2]
QWEN3 = "Qwen3VLForConditionalGeneration"
FULL, KEPT, BATCH, SCRATCH, SHARED, CHARGED = CHECKS


@pytest.mark.parametrize("name", ["fastv", "visipruner"])
@pytest.mark.parametrize("family", ADAPTERS)
def test_two_methods_conform_on_every_family(name: str, family: str) -> None:
    (fit,) = fits(method_class(name), [family])
    assert not fit.refused
    assert [(v.name, v.detail) for v in fit.verdicts if v.status == "FAIL"] == []
    assert [v.name for v in fit.verdicts] == list(CHECKS)


def test_images_of_a_family_are_unlike() -> None:
    for family in ADAPTERS:
        tiny = family_model(family)
        tokens = {tiny.image(number).tokens for number in range(len(SIZES))}
        assert len(tokens) == 1 if tiny.adapter.one_size else len(tokens) >= 3, family


# ---------------------------------------------------------------------------------------------- every property can fail


def failing(cls: type[Method], family: str = QWEN3) -> set[str]:
    (fit,) = fits(cls, [family])
    assert not fit.refused, fit.refused
    return {verdict.name for verdict in fit.verdicts if verdict.status == "FAIL"}


@dataclass(frozen=True)
class FirstOnes(Method):
    """Keeps the first tokens from layer 1 on, as asked; its children do not."""

    name = "first-ones"
    keep: int | Share
    budget_knobs = ("keep",)

    def plan(self, prompt: object) -> None:
        return None

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        return Reduction(self.kept(run)) if layer == 1 else None

    def kept(self, run: Run) -> torch.Tensor:
        place = torch.arange(run.visual_valid.shape[1])[None]
        return (place < run.quota(self.keep)[:, None]) & run.visual_valid


@dataclass(frozen=True)
class TooMany(FirstOnes):
    def kept(self, run: Run) -> torch.Tensor:
        place = torch.arange(run.visual_valid.shape[1])[None]
        return (place <= run.quota(self.keep)[:, None]) & run.visual_valid


@dataclass(frozen=True)
class OfTheBatch(FirstOnes):
    def kept(self, run: Run) -> torch.Tensor:
        place = torch.arange(run.visual_valid.shape[1])[None]
        return (place < run.quota(self.keep).min()) & run.visual_valid


@dataclass(frozen=True)
class Nothing(FirstOnes):
    def kept(self, run: Run) -> torch.Tensor:
        return run.visual_valid


@pytest.mark.parametrize(("cls", "property_"), [(TooMany, KEPT), (OfTheBatch, BATCH), (Nothing, FULL)])
def test_a_wrong_method_is_caught(cls: type[Method], property_: str) -> None:
    assert failing(FirstOnes) == set()
    assert property_ in failing(cls)


def no_deepstack(patch: pytest.MonkeyPatch) -> None:
    adapter = ADAPTERS[QWEN3]
    take = adapter.take_deepstack
    patch.setattr(adapter, "take_deepstack", lambda self, given: take(self, given)[:0])


def a_patch_too_few(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VisionShape, "patches", property(lambda self: self.tokens - 1 - self.prefix))


def a_token_later(patch: pytest.MonkeyPatch) -> None:
    share = EngineRun.share
    patch.setattr(EngineRun, "share", lambda self, prefixes, ids, mask: share(self, prefixes, ids.roll(1, 1), mask))


@pytest.mark.parametrize(
    ("change", "property_"), [(no_deepstack, SCRATCH), (a_patch_too_few, CHARGED), (a_token_later, SHARED)]
)
def test_a_wrong_engine_is_caught(
    change: Callable[[pytest.MonkeyPatch], None], property_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch)
    assert property_ in failing(method_class("fastv"))


# ----------------------------------------------------------------------------------------------------------- the matrix


def test_the_matrix_says_what_is_proven_by_recorded_cases() -> None:
    of = {"q25": "Qwen2.5-VL", "q25w": "Qwen2.5-VL", "q2": "Qwen2-VL"}
    cases = json.loads((ROOT / "tests" / "goldens-families" / "index.json").read_text())
    # MMTok's repository calls a selection of its own DivPrune
    names = [c["method"].removeprefix("divprune_") for c in cases]
    recorded = {
        (of.get(c["model"], "LLaVA-NeXT"), name.partition("_")[0]) for c, name in zip(cases, names, strict=True)
    } - {(family, "vanilla") for family in matrix.FAMILIES}
    proven = {
        (family, cls.name)
        for family in matrix.FAMILIES
        for cls in registered().values()
        if matrix.fitted(cls, family).short == matrix.PROVEN
    }
    assert {one for one in proven if one[0] != "LLaVA-1.5"} == recorded
    cases = json.loads((ROOT / "tests" / "goldens" / "index.json").read_text())
    assert {name for family, name in proven if family == "LLaVA-1.5"} == {c["method"] for c in cases} - {"vanilla"}


def test_every_family_is_in_the_matrix_and_every_refusal_is_one_line() -> None:
    assert list(matrix.FAMILIES) == list(dict.fromkeys(adapter.title for adapter in ADAPTERS.values()))
    for cls in registered().values():
        for family in matrix.FAMILIES:
            found = matrix.fitted(cls, family)
            assert (found.short in (matrix.PROVEN, matrix.RUNS, matrix.OWN)) == (not found.reason)
            assert "\n" not in found.reason
            assert not found.reason or cls.name in found.reason


def test_the_commands_show_the_matrix_and_check_it() -> None:
    said = CliRunner().invoke(app, ["methods", "--families"])
    assert said.exit_code == 0, said.output
    assert max(map(len, said.output.splitlines())) <= 130
    row = next(line for line in said.output.splitlines() if line.startswith("fastervlm"))
    assert row.split("  ")[0] == "fastervlm"
    assert row.count("no [CLS]") == 5
    checked = CliRunner().invoke(app, ["check", "first", "--families"])
    assert checked.exit_code == 0, checked.output
    assert checked.output.count("0 of 6 properties fail") == len(ADAPTERS)
    for more in (["--budget", "8"], ["--set", "keep=3"]):
        refused = CliRunner().invoke(app, ["check", "first", "--families", *more])
        assert "leave --set and --budget out" in str(refused.exception)
    assert "found both" in str(CliRunner().invoke(app, ["methods", "fastv", "--families"]).exception)
