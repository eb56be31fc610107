"""The conformance kit passes for every registered method and fails for methods that are wrong on purpose.

Some mistakes cannot be made here and so have no bad method: a Reduction is a mask over visual tokens, so kept tokens
cannot be out of order or twice, and text cannot be dropped.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from methods_with_settings import EVERYWHERE, WITH_KNOBS
from torch import Tensor
from typer.testing import CliRunner

from harness.cli import app
from harness.core.errors import PrunebenchError
from harness.method import (
    Attention,
    AttentionEdit,
    Method,
    PromptShape,
    Reduction,
    Run,
    Stream,
    Traits,
    keep_top,
    registered,
)
from harness.proof.conformance import kit, reference, subject, tiny
from methods.fastv import FastV
from methods.random import Random


def failures(cls: type[Method], **knobs: object) -> dict[str, str]:
    return {v.name: v.detail for v in kit.check(cls, knobs=knobs) if v.status == "FAIL"}


@pytest.mark.parametrize("name", registered())
def test_every_registered_method_conforms(name: str) -> None:
    verdicts = kit.check_named(name)
    assert [v for v in verdicts if v.status == "FAIL"] == []
    assert [v.name for v in verdicts] == list(subject.PROPERTIES)
    assert all(v.detail for v in verdicts)


@pytest.mark.parametrize("label", [label for label in WITH_KNOBS if label in EVERYWHERE])
def test_knobs_conform_too(label: str) -> None:
    setting = WITH_KNOBS[label]
    assert failures(registered()[setting.method], **setting.knobs) == {}


def test_knobs_that_do_not_fit_a_depth_are_said_and_not_blamed_on_defaults() -> None:
    of = {v.name: v for v in kit.check(registered()["fitprune"], knobs={"scheme": (5, 0, 9, 1, 0, 12)})}
    assert of["depth 4 to 40"].status == "ok"
    assert of["depth 4 to 40"].detail == "defaults fit each; ran at 12, 40; the knobs given do not fit 4, 5"


def test_fastv_is_granted_no_exception() -> None:
    assert {v.name for v in kit.check(FastV) if v.status == "n/a"} == {
        "images of a prompt decided one by one",
        "merged tokens are combinations of the prompt's",
        "image alone decides",
        "looks equal the tower's own",
    }
    assert {v.name for v in kit.check(registered()["none"]) if v.status == "n/a"} == {
        "images of a prompt decided one by one",
        "merged tokens are combinations of the prompt's",
        "smaller budget changes logits",
        "asked budget met exactly",
        "most attended token kept",
        "kept set depends on the prompt",
        "image alone decides",
        "position policies differ",
        "unfit layer knob refused",
        "answers to its questions equal a pass from scratch",
        "answers in a padded batch equal those alone",
        "looks equal the tower's own",
    }


# ----------------------------------------------------------------------------------------------- methods that are wrong


@dataclass(frozen=True)
class Base(FastV):
    """FastV at layer 2 under another name, for the wrong ones to derive from."""

    name = "wrong"
    boundary: int | None = 2


@dataclass(frozen=True)
class LeastAttended(Base):
    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        return Reduction(keep_top(-run.memo["scores"], self.keep, run.visual_valid)) if layer == self.boundary else None


LEFT_OVER: dict[str, Tensor] = {}


@dataclass(frozen=True)
class Leaking(Base):
    """Ranks by the scores of the prompt before."""

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != self.boundary:
            return None
        scores, before = run.memo["scores"], LEFT_OVER.get("scores")
        LEFT_OVER["scores"] = scores
        fits = before is not None and before.shape == scores.shape
        return Reduction(keep_top(before if fits else scores, self.keep, run.visual_valid))  # type: ignore[arg-type]


@dataclass(frozen=True)
class FirstRow(Base):
    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != self.boundary:
            return None
        scores = run.memo["scores"]
        return Reduction(keep_top(scores[:1].expand_as(scores), self.keep, run.visual_valid))


@dataclass(frozen=True)
class OneShort(Base):
    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        return (
            Reduction(keep_top(run.memo["scores"], self.keep - 1, run.visual_valid)) if layer == self.boundary else None
        )


@dataclass(frozen=True)
class NanScores(Base):
    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != self.boundary:
            return None
        scores = run.memo["scores"].clone()
        scores[-1, 5:8] = float("nan")
        return Reduction(keep_top(scores, self.keep, run.visual_valid))


@dataclass(frozen=True)
class EditsInPlace(Base):
    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer == 1:
            visual = stream.visual
            visual[:, 3] *= 2
        return super().at_boundary(run, layer, stream)


@dataclass(frozen=True)
class WrongShape(Base):
    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        return Reduction(torch.ones(run.visual_valid.shape[0], 3, dtype=torch.bool)) if layer == self.boundary else None


@dataclass(frozen=True)
class WrongType(Base):
    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        return Reduction(run.visual_valid.float()) if layer == self.boundary else None


@dataclass(frozen=True)
class BareMask(Base):
    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        return run.visual_valid if layer == self.boundary else None  # type: ignore[return-value]


@dataclass(frozen=True)
class NanAdded(Base):
    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != self.boundary:
            return None
        added = stream.visual[:, :2].clone()
        added[-1, 0, 0] = float("nan")
        return Reduction(run.visual_valid, added)


@dataclass(frozen=True)
class WrongAddedMask(Base):
    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != self.boundary:
            return None
        return Reduction(run.visual_valid, stream.visual[:, :2], torch.ones(1, 7, dtype=torch.bool))


@dataclass(frozen=True)
class WrongPolicy(Base):
    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        return Reduction(run.visual_valid, positions="dense") if layer == self.boundary else None  # type: ignore[arg-type]


@dataclass(frozen=True)
class WrongColumns(Base):
    def edit_attention(self, run: Run, layer: int) -> tuple[AttentionEdit, ...]:
        return (AttentionEdit("after", torch.ones(run.visual_valid.shape[0], 2, dtype=torch.bool), "zero"),)


@dataclass(frozen=True)
class WrongSink(Base):
    def edit_attention(self, run: Run, layer: int) -> tuple[AttentionEdit, ...]:
        return (AttentionEdit("after", None, "redirect", sink=999),)


@dataclass(frozen=True)
class WrongHidden(Base):
    def hide_in_decode(self, run: Run, layer: int) -> Tensor:
        return torch.ones(1, 2, dtype=torch.bool)


@dataclass(frozen=True)
class SaysRandom(Base):
    traits = Traits(query_aware=False, random=True)


@dataclass(frozen=True)
class HiddenRandom(Random):
    """Draws without the cell's generator and does not say so."""

    name = "wrong"
    traits = Traits(query_aware=False)

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        return (
            Reduction(keep_top(torch.rand(run.visual_valid.shape), self.keep, run.visual_valid)) if layer == 0 else None
        )


@dataclass(frozen=True)
class SaysQueryAware(Random):
    """The same tokens for every prompt."""

    name = "wrong"
    traits = Traits(query_aware=True)

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        scores = -torch.arange(run.visual_valid.shape[1]).float().expand(run.visual_valid.shape)
        return Reduction(keep_top(scores, self.keep, run.visual_valid)) if layer == 0 else None


@dataclass(frozen=True)
class IgnoresDepth(Base):
    boundary: int | None = 30

    def for_model(self, shape: object) -> "IgnoresDepth":
        return self


@dataclass(frozen=True)
class TooDeepByDefault(Base):
    boundary: int | None = 10


@dataclass(frozen=True)
class WrongPlan(Base):
    def plan(self, prompt: PromptShape) -> list[int]:
        return [self.keep] * 12


WRONG: list[tuple[type[Method], str, str]] = [
    (
        LeastAttended,
        "most attended token kept",
        r"token \d+ has the most attention of all text; layer 2 holds 16 visual tokens",
    ),
    (Leaking, "no state between prompts", r"after another prompt: layer 2 holds 16 visual tokens"),
    (FirstRow, "padded batch equals singles", r"row 1 of a batch against alone: layer 2 holds"),
    (OneShort, "asked budget met exactly", r"asked 16 visual tokens, kept \[15, 15, 15\]"),
    (
        NanScores,
        "padded batch equals singles",
        r"wrong at boundary 2, sample 'prompt 3' \(row 2\): .*nan for 3 of 64, first at \[5, 6, 7\]",
    ),
    (
        EditsInPlace,
        "padded batch equals singles",
        r"wrong at boundary 1, sample 'prompt 1' \(row 0\): stream.visual was changed in place",
    ),
    (
        WrongShape,
        "padded batch equals singles",
        r"wrong at boundary 2: expected keep as bool \(3, 64\) on cpu .*found torch.bool \(3, 3\) on cpu",
    ),
    (
        WrongType,
        "padded batch equals singles",
        r"wrong at boundary 2: expected keep as bool .*found torch.float32 \(3, 64\)",
    ),
    (BareMask, "padded batch equals singles", r"wrong at boundary 2: expected a Reduction or None, found Tensor"),
    (
        NanAdded,
        "padded batch equals singles",
        r"wrong at boundary 2, sample 'prompt 3' \(row 2\): added tokens hold nan",
    ),
    (
        WrongAddedMask,
        "padded batch equals singles",
        r"wrong at boundary 2: expected added_valid as bool \(3, 2\) .*found torch.bool \(1, 7\)",
    ),
    (
        WrongPolicy,
        "padded batch equals singles",
        r"wrong at boundary 2: expected positions to be one of original, compact; found 'dense'",
    ),
    (
        WrongColumns,
        "padded batch equals singles",
        r"wrong at layer 0: expected the cols of an AttentionEdit as bool \(3, 64\)",
    ),
    (WrongSink, "padded batch equals singles", r"wrong at layer 0.*: expected a sink from 0 to 63 .*found 999"),
    (WrongHidden, "padded batch equals singles", r"wrong at layer 0: expected hide_in_decode as bool \(3, 64\)"),
    (SaysRandom, "same seed same result", r"declared random, but seeds 1 and 2 keep the same"),
    (HiddenRandom, "same seed same result", r"seed 1 twice"),
    (SaysQueryAware, "kept set depends on the prompt", r"the same tokens for 3 images and questions"),
    (IgnoresDepth, "asked budget met exactly", r"asked 16 visual tokens, kept \[64, 64, 64\]"),
    (IgnoresDepth, "unfit layer knob refused", r"boundary=-1 on 12 layers is accepted"),
    (TooDeepByDefault, "depth 4 to 40", r"4 layers: refuses its own defaults: .*boundary=10"),
    (WrongPlan, "plan equals trace", r"planned \[16, .*the trace says \[64, 64, 16"),
]


@pytest.mark.parametrize(("cls", "name", "message"), WRONG, ids=[f"{c.__name__}-{n.split()[0]}" for c, n, _ in WRONG])
def test_wrong_methods_fail(cls: type[Method], name: str, message: str) -> None:
    with kit.one_thread():
        verdict = subject.PROPERTIES[name](subject.Subject(cls, {}))
    assert verdict.status == "FAIL"
    assert re.search(message, verdict.detail), verdict.detail


def test_a_mask_made_from_what_the_engine_hands_out_is_the_methods_own() -> None:
    """`keep = run.visual_valid; keep[...] = False` must not reach into the engine."""

    @dataclass(frozen=True)
    class WritesItsMask(Random):
        name = "wrong"
        traits = Traits(query_aware=False)

        def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
            keep = run.visual_valid
            keep[:, self.keep :] = False
            stream.after_valid[:] = False
            return Reduction(keep) if layer == 0 else None

    assert failures(WritesItsMask) == {}


def test_an_eye_cannot_change_the_attention_output() -> None:
    @dataclass(frozen=True)
    class Meddles(Random):
        name = "wrong"
        traits = Traits(query_aware=False)

        def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
            attn.last_output()[:] = 0
            attn.visual_values()[:] = 0
            attn.visual_probs("last").values[:] = 0

    assert "full budget equals unpruned" not in failures(Meddles)


# -------------------------------------------------------------------------------------------------- the engine's guards


def test_decoding_after_an_interrupted_prefill_is_refused() -> None:
    from transformers import DynamicCache

    from harness.engine.attach import attach

    model = tiny.tiny_model()
    kv = DynamicCache(config=model.config.text_config)
    with attach(model, subject.Subject(FastV, {}).any()) as run:
        handle = model.model.language_model.layers[4].register_forward_pre_hook(_raise)
        try:
            with pytest.raises(RuntimeError, match="interrupted"):
                model(**tiny._batch(tiny.PROMPTS[:1]), past_key_values=kv)
        finally:
            handle.remove()
        with pytest.raises(PrunebenchError, match="expected a cache that was filled inside"):
            model(input_ids=torch.tensor([[5]]), past_key_values=kv)
        assert tiny.ask_in(run, model, tiny.PROMPTS[:1]).lengths[0] == len(tiny.PROMPTS[0].ids)


def _raise(_module: object, _args: object) -> None:
    raise RuntimeError("interrupted")


def test_in_place_edits_are_found_without_inference_mode_too() -> None:
    from harness.engine.attach import attach

    model = tiny.tiny_model()
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with (
            attach(model, subject.Subject(EditsInPlace, {}).any()),
            mode(),
            pytest.raises(PrunebenchError, match="changed in place"),
        ):
            model(**tiny._batch(tiny.PROMPTS[:1]))


# ---------------------------------------------------------------------------------------------------- reference and kit


def test_the_reference_agrees_with_the_bare_model() -> None:
    model, asked = tiny.tiny_model(), tiny.PROMPTS[0]
    nothing = registered()["none"]()
    logits = reference.reference(model, asked, nothing, reference.Decisions(), "method").logits
    assert tiny.difference(logits[0], tiny.unpruned(model, (asked,))[0]) < 1e-4
    longer = replace(asked, ids=asked.ids + asked.next_ids)
    assert tiny.difference(logits[-1], tiny.unpruned(model, (longer,))[0]) < 1e-4


@pytest.mark.parametrize("budget", [1, 5, 40, 63])
def test_other_budgets_conform(budget: int) -> None:
    assert [v for v in kit.check(FastV, budget) if v.status == "FAIL"] == []


def test_the_kit_says_what_it_cannot_test() -> None:
    with pytest.raises(PrunebenchError, match="expected 1 to 63"):
        kit.check(FastV, 64)
    with pytest.raises(PrunebenchError, match="unknown knob of fastv 'boundry'; did you mean 'boundary'"):
        kit.check(FastV, knobs={"boundry": 2})
    with pytest.raises(PrunebenchError, match=r"fastv cannot be built: .*boundary=40 does not fit this model"):
        kit.check(FastV, knobs={"boundary": 40})


THIRD_PARTY = """
from dataclasses import dataclass
import torch
from harness.method import Method, Reduction, Traits


@dataclass(frozen=True)
class EverySecond(Method):
    name = "every-second"
    traits = Traits(query_aware=False)
    keep: int

    def at_boundary(self, run, layer, stream):
        if layer != 0:
            return None
        valid = run.visual_valid
        n = min(self.keep, int(valid.sum(1).min())) if {same_for_all} else self.keep
        return Reduction(valid & (torch.arange(valid.shape[1]) < n))
"""


@pytest.mark.parametrize(("same_for_all", "code"), [("False", 0), ("True", 1)])
def test_the_command_checks_a_file_outside_the_repository(tmp_path: Path, same_for_all: str, code: int) -> None:
    file = tmp_path / f"mine_{same_for_all.lower()}.py"
    file.write_text(THIRD_PARTY.replace("{same_for_all}", same_for_all))
    result = CliRunner().invoke(app, ["check", f"{file}:EverySecond"])
    assert result.exit_code == code, result.output
    assert ("FAIL" in result.output) == bool(code)
    assert ("not conforming" in result.output) == bool(code)


@pytest.mark.parametrize("arguments", [[], ["fastv", "--all"]])
def test_the_command_wants_one_method_or_all(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["check", *arguments])
    assert isinstance(result.exception, PrunebenchError)


def test_keep_top_refuses_nan_of_real_tokens_only() -> None:
    nan: Callable[[], Tensor] = lambda: torch.tensor([[1.0, 2.0, float("nan")]])  # noqa: E731
    assert keep_top(nan(), 1, torch.tensor([[True, True, False]])).tolist() == [[False, True, False]]
    with pytest.raises(PrunebenchError, match=r"found nan for 1 of 3, first at \[2\]"):
        keep_top(nan(), 1, torch.ones(1, 3, dtype=torch.bool))
