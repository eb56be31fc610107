"""The closed form of costs equals torch's `FlopCounterMode` to the integer, for every registered method; plans equal
traces.

The counter looks at dispatched operators. On the CPU a fused SDPA is one operator that it counts as 0, so everything
here runs under the math backend, where attention is two matrix products. It counts matrix products and convolutions
only, as the closed form does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from methods_with_settings import WITH_KNOBS
from tiny import text_config, vision_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    DynamicCache,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from harness.core import budget as budgets
from harness.core import flops
from harness.core.costs import sample_cost
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES, ModelShape, PromptShape, VisionShape
from harness.core.trace import Trace
from harness.cost import plan as cost
from harness.engine.attach import attach
from harness.method import Method, build, registered
from harness.models.adapters import LlavaAdapter, adapter_for
from harness.models.adapters.text_encoder import ClipTextEncoder
from harness.proof.conformance.kit import one_thread
from harness.proof.conformance.tiny import word_numbers
from methods.fastv import FastV
from methods.sparsevlm import SparseVLM
from methods.visipruner import VisiPruner

B7 = SHAPES["llava-1.5-7b"]
IMAGE_TOKEN, N_BEFORE = 99, 5
#: text tokens behind the image, row by row: a batch of three with padding on the left
RAGGED = (11, 4, 7)
BUDGETS = (64, 32, 9)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small take many times longer where threads fight for cores."""
    with one_thread():
        yield


@functools.cache
def model(kv_heads: int = 4, depth: int = 8) -> LlavaForConditionalGeneration:
    """A random LLaVA, 64 visual tokens; no two sizes are alike, so that a mixed-up formula cannot be right by
    accident."""
    torch.manual_seed(0)
    more = {"num_key_value_heads": kv_heads, "head_dim": 16, "vocab_size": 100, "initializer_range": 0.3}
    text, vision = text_config(48, 112, depth, 4, **more), vision_config(32, 40, 3, 2, image=56, patch=7)
    return LlavaForConditionalGeneration(
        LlavaConfig(text_config=text, vision_config=vision, image_token_id=IMAGE_TOKEN)
    ).eval()


def shape_of(llava: LlavaForConditionalGeneration) -> ModelShape:
    return adapter_for(llava).shape


def prompt_of(llava: LlavaForConditionalGeneration, n_text: int = 0) -> PromptShape:
    """A prompt of one image."""
    return adapter_for(llava).usual.with_text(n_text)


def vision_of(llava: LlavaForConditionalGeneration) -> VisionShape:
    return prompt_of(llava).images[0].vision


@dataclass(frozen=True)
class Counted:
    flops: int
    trace: Trace
    images: int
    logit_positions: int

    def closed_form(self, llava: LlavaForConditionalGeneration) -> int:
        shape, vision = shape_of(llava), vision_of(llava)
        encoded = self.images * (flops.vision_tower(vision) + flops.projector(shape, vision))
        return (
            flops.prefill_executed(shape, self.trace)
            + flops.decode_executed(shape, self.trace)
            + flops.lm_head(shape, self.logit_positions)
            + encoded
        )


class Letters:
    """One token a character."""

    bos_token_id, eos_token_id = 97, 98

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 90 + 1 for c in text]}


def text_encoder(width: int) -> ClipTextEncoder:
    """A random CLIP of 8 positions, so that questions come in pieces."""
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = CLIPTextConfig(**sizes, num_attention_heads=4, max_position_embeddings=8, projection_dim=24)
    torch.manual_seed(0)
    model = CLIPTextModelWithProjection(config).eval()
    return ClipTextEncoder(model, Letters(), torch.nn.LayerNorm(width), torch.nn.Linear(width, 24, bias=False))


def run(
    llava: LlavaForConditionalGeneration,
    method: Method,
    after: tuple[int, ...] = RAGGED,
    steps: int = 0,
    all_logits: bool = False,
) -> Counted:
    """Prefill and decode a batch with one image a row, `after` text tokens behind it, under the counter."""
    draw = torch.Generator().manual_seed(1)
    batch, width = len(after), N_BEFORE + 64 + max(after)
    ids = torch.randint(1, 90, (batch, width), generator=draw)
    mask = torch.zeros_like(ids)
    for row, n in enumerate(after):
        start = max(after) - n
        ids[row, start + N_BEFORE : start + N_BEFORE + 64] = IMAGE_TOKEN
        mask[row, start:] = 1
        ids[row, :start] = 0
    pixels = torch.randn(batch, 3, 56, 56, generator=draw)
    cache = DynamicCache(config=llava.config.text_config)
    encoder = text_encoder(vision_of(llava).hidden)
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        attach(llava, method, text_encoder=lambda: encoder, tokenizer=word_numbers) as attached,
        FlopCounterMode(display=False) as counter,
    ):
        keep = 0 if all_logits else 1
        attached.questions = [f"{n} tokens?" for n in after]
        out = llava(input_ids=ids, attention_mask=mask, pixel_values=pixels, past_key_values=cache, logits_to_keep=keep)
        positions = out.logits.shape[0] * out.logits.shape[1]
        for _ in range(steps):
            llava(input_ids=ids[:, -1:], past_key_values=cache)
            positions += batch
        trace = attached.trace
    return Counted(counter.get_total_flops(), trace, batch, positions)


def at_budget(name: str, tokens: int, prompt: PromptShape) -> Method:
    """Any registered method: at a count where it takes one, otherwise with its defaults."""
    refused = []
    for asked in (str(tokens), "none", "native"):
        try:
            return build(name, budgets.parse(asked), {}, prompt)
        except PrunebenchError as error:
            refused.append(str(error))
    pytest.fail(f"{name} takes no budget at all: {refused}")


#: tokens that stay where a setting with knobs asks for a count
FEW = 13
CASES = [pytest.param(name, tokens, id=f"{name}-{tokens}") for name in registered() for tokens in BUDGETS] + [
    pytest.param(label, 0, id=label) for label in WITH_KNOBS
]


def method_of(name: str, tokens: int, llava: LlavaForConditionalGeneration) -> Method:
    prompt = prompt_of(llava)
    return at_budget(name, tokens, prompt) if tokens else WITH_KNOBS[name].build(FEW, prompt)


@pytest.mark.parametrize("kv_heads", [4, 2], ids=["mha", "gqa"])
@pytest.mark.parametrize(("name", "tokens"), CASES)
def test_executed_is_what_the_counter_counts(name: str, tokens: int, kv_heads: int) -> None:
    llava = model(kv_heads)
    counted = run(llava, method_of(name, tokens, llava), steps=2)
    assert counted.trace.decode_steps == 2
    assert counted.closed_form(llava) == counted.flops


@pytest.mark.parametrize(("name", "tokens"), CASES)
def test_dense_is_executed_at_batch_1_without_edits(name: str, tokens: int) -> None:
    llava = model(2)
    shape = shape_of(llava)
    method = method_of(name, tokens, llava)
    counted = run(llava, method, after=(6,), all_logits=True)
    assert counted.closed_form(llava) == counted.flops
    executed, dense = flops.prefill_executed(shape, counted.trace), flops.prefill_dense(shape, counted.trace, 0)
    ideal = flops.prefill_ideal(shape, counted.trace, 0)
    edited = any(t.edit_rows for t in counted.trace.layers)
    assert edited <= method.traits.edits_attention
    if edited:
        assert ideal < dense < executed
    elif method.drops_inside:
        layers = counted.trace.layers
        gone = sum(now.tokens[0] - later.tokens[0] for now, later in pairwise(layers))
        assert gone > 0 or tokens == 64
        # the official code runs neither output projection nor feed-forward of the layer for a token that leaves in it
        assert ideal == dense == executed - gone * 2 * (48 * 4 * 16 + 3 * 48 * 112)
    else:
        assert ideal == dense == executed
    assert flops.prefill_paper_macs(shape, counted.trace, 0) < dense / 2


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("all_logits", [False, True])
def test_logits_and_decode_steps(steps: int, all_logits: bool) -> None:
    llava = model(2)
    counted = run(llava, FastV(keep=7), steps=steps, all_logits=all_logits)
    # the last layer holds 5 + 7 + 11 columns of each row
    assert counted.logit_positions == len(RAGGED) * ((N_BEFORE + 7 + max(RAGGED) if all_logits else 1) + steps)
    assert counted.closed_form(llava) == counted.flops
    alone = run(llava, FastV(keep=7), after=(6,), steps=steps)
    assert flops.decode_executed(shape_of(llava), alone.trace) == flops.decode(shape_of(llava), alone.trace, 0, steps)


def test_a_sample_costs_the_same_alone_and_in_a_batch() -> None:
    llava = model(2)
    shape = shape_of(llava)
    for method in (FastV(keep=7), VisiPruner(keep=5), VisiPruner(keep=5, layer0="half"), Method()):
        together = run(llava, method).trace
        for row, after in enumerate(RAGGED):
            alone = run(llava, method, after=(after,)).trace
            for column in (flops.prefill_dense, flops.prefill_ideal, flops.prefill_paper_macs, flops.kv_bytes):
                assert column(shape, together, row) == column(shape, alone, 0), (method.name, after, column.__name__)


WRONG: dict[str, tuple[str, Callable[..., int]]] = {
    "two feed-forward matrices": (
        "linear_per_token",
        lambda s: (
            2 * (2 * s.hidden * s.heads * s.head_dim + 2 * s.hidden * s.kv_heads * s.head_dim + 2 * s.hidden * s.mlp)
        ),
    ),
    "no grouped heads": (
        "linear_per_token",
        lambda s: 2 * (4 * s.hidden * s.heads * s.head_dim + 3 * s.hidden * s.mlp),
    ),
    "causal half": ("attention_pairs", lambda s, rows, columns: 2 * s.heads * s.head_dim * rows * columns),
    "width for heads x head_dim": ("attention_pairs", lambda s, rows, columns: 4 * s.hidden * rows * columns),
    "no patch embedding": (
        "vision_tower",
        lambda v: (
            v.layers_used * (2 * v.tokens * (4 * v.hidden**2 + 2 * v.hidden * v.mlp) + 4 * v.tokens**2 * v.hidden)
        ),
    ),
    "[CLS] projected": (
        "projector",
        lambda s, v: 2 * v.tokens * (v.hidden * v.projector_hidden + v.projector_hidden * s.hidden),
    ),
    "dense for executed": (
        "prefill_executed",
        lambda s, t: sum(flops.prefill_dense(s, t, row) for row in range(t.batch)),
    ),
    "no scoring": ("prefill_executed", lambda s, t: _without(t, s, scoring=False)),
    "no edits": ("prefill_executed", lambda s, t: _without(t, s, edits=False)),
    "no decode": ("decode_executed", lambda s, t: 0),
    "decode misses the new key": (
        "decode_executed",
        lambda s, t: (
            t.batch
            * sum(
                s.depth * flops.linear_per_token(s) + sum(flops.attention_pairs(s, 1, x.columns + i) for x in t.layers)
                for i in range(2)
            )
        ),
    ),
}


def _without(trace: Trace, shape: ModelShape, scoring: bool = True, edits: bool = True) -> int:
    total = trace.scoring_executed if scoring else 0
    for t in trace.layers:
        rows = sum(t.edit_rows) if edits else 0
        total += trace.batch * (flops.layer(shape, t.columns) + flops.attention_pairs(shape, rows, t.columns))
    return total


@pytest.fixture(scope="module")
def telling() -> Counted:
    """A run in which every term of the closed form is at work: edits, scoring, padding, grouped heads, decoding."""
    return run(model(2), method_of("visipruner fires and exits", 0, model(2)), steps=2)


@pytest.mark.parametrize("wrong", list(WRONG))
def test_a_wrong_formula_is_caught(wrong: str, telling: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    llava = model(2)
    assert telling.closed_form(llava) == telling.flops
    name, formula = WRONG[wrong]
    monkeypatch.setattr(flops, name, formula)
    assert telling.closed_form(llava) != telling.flops


def test_uncounted_scoring_is_caught() -> None:
    """A method that makes its matrix products past `run.matmul` does not pass."""

    class Sly(FastV):
        def on_attention(self, run: Any, layer: int, attn: Any) -> None:
            super().on_attention(run, layer, attn)
            values = attn.visual_values()
            values @ values.transpose(2, 3)

    llava = model(2)
    counted = run(llava, Sly(keep=7))
    assert counted.flops > counted.closed_form(llava)


# ---------------------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize("depth", [8, 20])
@pytest.mark.parametrize(("name", "tokens"), CASES)
def test_a_plan_is_what_happens(name: str, tokens: int, depth: int) -> None:
    llava = model(2, depth)
    shape = shape_of(llava)
    method, after = method_of(name, tokens, llava), 6
    prompt = prompt_of(llava, N_BEFORE + after)
    trace = run(llava, method, after=(after,)).trace
    visual = method.plan(prompt)
    if visual is None and trace.notes.get("fusion_layer", [-1.0])[0] >= 0 and getattr(method, "keep", None) is not None:
        # the plan of a run that is forced to where the prompt led
        chosen = {
            knob: int(trace.notes[note][0])
            for knob, note in (("force_fusion_layer", "fusion_layer"), ("force_exit_layer", "exit_layer"))
        }
        assert chosen.keys() == method.choices(shape).keys()
        method = replace(method, **chosen).for_model(shape)  # type: ignore[arg-type]
        visual = method.plan(prompt)
        assert visual is not None
    if visual is None:
        pytest.skip(f"{name} decides by the prompt and says so")
    assert visual == [t.visual[0] for t in trace.layers]
    scoring = method.plan_scoring(prompt, visual)
    assert scoring in (None, trace.scoring[0])
    planned = cost.planned_trace(method, prompt, visual, N_BEFORE)
    assert planned.layers == trace.layers
    if scoring is not None:
        for column in (flops.prefill_dense, flops.prefill_ideal, flops.prefill_paper_macs):
            assert column(shape, planned, 0) == column(shape, trace, 0)
        assert flops.prefill_executed(shape, planned) == flops.prefill_executed(shape, trace)


@pytest.mark.parametrize("retain", [192, 128, 96, 64])
@pytest.mark.parametrize("plus", [False, True])
def test_official_sparsevlm_schedules(retain: int, plus: bool) -> None:
    """Averages of the true schedule, recycled tokens included."""
    mean = sum(SparseVLM(retain=retain, plus=plus).for_model(B7.decoder).plan(B7.with_text(74))) / 32
    if not plus:
        assert round(mean, 1) == {192: 206.5, 128: 145.4, 96: 114.1, 64: 82.2}[retain]


def test_visipruner_refuses_layers_it_cannot_choose() -> None:
    prompt = B7.with_text(74)

    def plan(exit_: int, fusion: int = 14, keep: int | None = 10) -> list[int] | None:
        return (
            VisiPruner(keep=keep, force_fusion_layer=fusion, force_exit_layer=exit_)
            .for_model(prompt.decoder)
            .plan(prompt)
        )

    free = VisiPruner(keep=10).for_model(prompt.decoder)
    assert free.plan(prompt) is None
    assert plan(24) == [576] * 15 + [10] * 9 + [0] * 8
    assert plan(-1) == [576] * 15 + [10] * 17
    for fusion, exit_ in ((6, 24), (17, 24), (14, 16), (14, 32)):
        with pytest.raises(PrunebenchError, match=r"expected [0-9]+ to [0-9]+"):
            plan(exit_, fusion)
    assert plan(24, keep=None) is None, "thresholds decide how many stay"
    with pytest.raises(PrunebenchError, match="visipruner lets the prompt decide: give a number of tokens"):
        cost.schedule(VisiPruner(force_fusion_layer=14, force_exit_layer=24).for_model(prompt.decoder), prompt)
    assert FastV(keep=10).choices(prompt.decoder) == {}
    with pytest.raises(PrunebenchError, match="unknown knob of fastv 'force_fusion_layer'"):
        build("fastv", budgets.parse(10), {"force_fusion_layer": 14}, prompt)


# --------------------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(("name", "sizes"), [("llava-1.5-7b", (4096, 11008, 32)), ("llava-1.5-13b", (5120, 13824, 40))])
def test_known_shapes_are_those_of_the_configs(name: str, sizes: tuple[int, int, int]) -> None:
    hidden, mlp, depth = sizes
    text = text_config(hidden, mlp, depth, heads=depth, vocab_size=32064)
    vision = vision_config(1024, 4096, 24, 16, image=336, patch=14)
    config = LlavaConfig(text_config=text, vision_config=vision)
    assert SHAPES[name] == PromptShape(LlavaAdapter.shape_of(config, 2), (LlavaAdapter.image_of(config),))


def test_vision_tower_in_units_of_the_literature() -> None:
    shape, vision = B7.decoder, B7.images[0].vision
    # papers count the 23 layers before the feature and no patch embedding
    used = replace(vision, layers_used=23, patch_inputs=0)
    assert flops.vision_tower(used) / 2e12 == pytest.approx(0.183, abs=5e-4)
    assert flops.projector(shape, vision) / 2e12 == pytest.approx(0.012, abs=5e-4)
    assert flops.lm_head(shape, 1) / 2e12 == pytest.approx(0.00013, abs=5e-6)


def test_sample_cost_has_the_columns() -> None:
    llava = model(2)
    shape = shape_of(llava)
    trace = run(llava, VisiPruner(keep=5), steps=2).trace

    for row, after in enumerate(RAGGED):
        found = sample_cost(prompt_of(llava, N_BEFORE + after), trace, row, 3)
        assert found["prefill_ideal_flops"] == flops.prefill_ideal(shape, trace, row) < found["prefill_dense_flops"]
        assert found["prefill_paper_macs"] == flops.prefill_paper_macs(shape, trace, row)
        assert found["prefill_unpruned_flops"] == flops.prefill_unpruned(shape, N_BEFORE + 64 + after)
