"""The engine: exactness of the unpruned path and of edits, batches, decoding, and leaving nothing behind."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny import GRID, IMAGE_TOKEN, prompts, tiny_llava
from torch import nn
from transformers import DynamicCache, Gemma2Config, LlamaConfig, LlamaForCausalLM, MistralConfig, PreTrainedConfig

from harness.core.errors import PrunebenchError
from harness.engine.attach import attach
from harness.engine.attention import apply_edits, attend
from harness.engine.layout import Placed, TokenLayout
from harness.method import AttentionEdit, Method, Reduction, method_class

Q1, Q2 = [20, 21, 22, 23], [30, 31, 32, 33, 34, 35, 36]


def none() -> Method:
    return method_class("none")()


def fastv(keep: int = 5, boundary: int = 2) -> Method:
    return method_class("fastv")(keep=keep, boundary=boundary)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("questions", [(Q1,), (Q1, Q2)], ids=["single", "padded"])
def test_unpruned_through_the_engine_is_the_bare_model(kv_heads: int, questions: tuple) -> None:
    model, batch = tiny_llava(kv_heads=kv_heads), prompts(*questions)
    with torch.inference_mode():
        bare = model(**batch).logits
        with attach(model, none()) as run:
            ours = model(**batch).logits
        with attach(model, fastv()):
            pruned = model(**batch).logits
    assert torch.allclose(bare[:, -1], ours[:, -1], atol=1e-5)
    assert not torch.allclose(bare[:, -1], pruned[:, -1], atol=1e-3)
    assert run.trace.layers[0].visual == [GRID**2] * len(questions)


def test_generate_prunes_at_prefill_and_decodes_on_ragged_caches() -> None:
    model, batch = tiny_llava(), prompts(Q1, Q2)
    with attach(model, fastv()) as run:
        together = model.generate(**batch, max_new_tokens=5, do_sample=False)[:, -5:]
        assert run.trace.decode_steps == 4
        assert [layer.visual[0] for layer in run.trace.layers] == [16, 16, 5, 5]
        for row, question in enumerate((Q1, Q2)):
            single = prompts(question)
            single["pixel_values"] = batch["pixel_values"][row : row + 1]
            alone = model.generate(**single, max_new_tokens=5, do_sample=False)[:, -5:]
            assert torch.equal(alone[0], together[row])


def test_decode_equals_a_forward_over_the_whole_sequence_with_the_same_tokens_kept() -> None:
    # FastV at boundary 1: layer 0 sees everything, later layers 5 visual tokens; decoding must attend exactly those
    model, batch = tiny_llava(), prompts(Q1)

    @dataclass(frozen=True)
    class Fixed(Method):
        name = "fixed"

        def at_boundary(self, run, layer, stream):
            if layer != 1:
                return None
            keep = torch.zeros_like(run.visual_valid)
            keep[:, [0, 3, 7, 8, 15]] = True
            return Reduction(keep)

    with torch.inference_mode(), attach(model, Fixed()):
        cache = DynamicCache(config=model.config.text_config)
        first = model(**batch, past_key_values=cache).logits[0, -1].argmax()
        stepped = model(input_ids=first.view(1, 1), past_key_values=cache).logits[0, -1]
        longer = {**batch, "input_ids": torch.cat([batch["input_ids"], first.view(1, 1)], 1)}
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        whole = model(**longer).logits[0, -1]
    assert torch.allclose(stepped, whole, atol=1e-5)


@pytest.mark.parametrize("how", ["zero", "redirect", "mask"])
def test_edits_equal_surgery_on_the_full_attention_matrix(how: str) -> None:
    torch.manual_seed(0)
    n, d, h = 12, 8, 2
    ids = torch.tensor([[0, 9, 4, 4, 4, 4, 9, 9, 9, 9, 9, 9], [9, 9, 9, 4, 4, 4, 4, 9, 9, 9, 9, 9]])
    attention_mask = (ids != 0).long()
    layout = TokenLayout.of_prompt(ids, attention_mask, (4,))
    q, k, v = (torch.randn(2, h, n, d, dtype=torch.float64) for _ in range(3))
    out = attend(q, k, v, layout.mask, d**-0.5, causal=True)
    cols = torch.tensor([[True, True, False, True]] * 2)
    edited, traces = apply_edits([AttentionEdit("after", cols, how, sink=1)], layout, q, k, v, out, d**-0.5)
    scores = (q @ k.transpose(-1, -2)) * d**-0.5
    wanted = scores.masked_fill(~layout.mask, float("-inf")).softmax(-1)
    for row in range(2):
        visual = layout.visual[row].nonzero().flatten()
        struck = visual[cols[row]]
        for r in layout.after[row].nonzero().flatten():
            line = wanted[row, :, r].clone()
            if how == "mask":
                line[:, struck] = 0
                line /= line.sum(-1, keepdim=True)
            else:
                mass = line[:, struck].sum(-1)
                line[:, struck] = 0
                if how == "redirect":
                    line[:, visual[1]] += mass
            wanted[row, :, r] = line
    expected = wanted @ v
    real = layout.valid[:, None, :, None].expand_as(expected)
    assert torch.allclose(edited[real], expected[real], atol=1e-12)
    assert not torch.allclose(edited[real], out[real], atol=1e-3)
    assert traces[0].silenced.tolist() == [
        3 * 6 - (6 if how == "redirect" else 0),
        3 * 5 - (5 if how == "redirect" else 0),
    ]


def test_a_hook_that_raises_leaves_the_model_as_it_was() -> None:
    model, batch = tiny_llava(), prompts(Q1)

    @dataclass(frozen=True)
    class Broken(Method):
        name = "broken"

        def on_attention(self, run, layer, attn):
            raise RuntimeError("in the hook")

    with torch.inference_mode():
        before = model(**batch).logits
        with (
            pytest.raises(
                PrunebenchError,
                match=r"broken at layer 0, a batch of 1 from row 0: RuntimeError: in the hook \(test_engine.py, line",
            ),
            attach(model, Broken()),
        ):
            model(**batch)
        assert torch.equal(model(**batch).logits, before)
    assert model.model.language_model.config._attn_implementation == "sdpa"
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_misuse_is_refused_in_words() -> None:
    model, batch = tiny_llava(), prompts(Q1)
    with attach(model, none()) as run:
        with pytest.raises(PrunebenchError, match="no complete prefill"):
            _ = run.trace
        with pytest.raises(PrunebenchError, match="already attached"), attach(model, fastv()):
            pass
        with pytest.raises(PrunebenchError, match=r"row\(s\) \[0\] hold no image token"), torch.inference_mode():
            model(input_ids=torch.tensor([[1, 20, 21]]))
        right = {k: v.flip(1) if v.ndim == 2 else v for k, v in prompts(Q1, Q2).items()}
        with pytest.raises(PrunebenchError, match="padding_side='left'"), torch.inference_mode():
            model(**right)
        run.samples = ["a", "b"]
        with pytest.raises(PrunebenchError, match="2 keys for 1 rows"), torch.inference_mode():
            model(**batch)
        run.samples = None
        cache = DynamicCache(config=model.config.text_config)
        with torch.inference_mode():
            model(**batch, past_key_values=cache)
            with pytest.raises(PrunebenchError, match="one new token per step"):
                model(input_ids=torch.tensor([[20, 21]]), past_key_values=cache)
    with pytest.raises(PrunebenchError, match="position policy"), attach(model, none(), positions="orginal"):
        pass
    text_only = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(PrunebenchError, match="found LlamaForCausalLM"), attach(text_only, none()):
        pass


def test_a_wrong_reduction_names_method_boundary_and_shapes() -> None:
    model, batch = tiny_llava(), prompts(Q1)

    @dataclass(frozen=True)
    class Wrong(Method):
        name = "wrong"
        kind: str = "shape"

        def at_boundary(self, run, layer, stream):
            if layer != 1:
                return None
            keep = run.visual_valid
            return Reduction({"shape": keep[:, :3], "dtype": keep.float()}[self.kind])

    for kind, says in (("shape", r"\(1, 3\)"), ("dtype", "torch.float32")):
        with (
            pytest.raises(PrunebenchError, match=rf"wrong at boundary 1.*{says}"),
            attach(model, Wrong(kind)),
            torch.inference_mode(),
        ):
            model(**batch)


def test_added_tokens_stand_behind_the_last_kept_one_or_where_the_image_stood() -> None:
    ids = torch.tensor([[9, 9, 4, 4, 4, 9, 9]])
    layout = TokenLayout.of_prompt(ids, None, (4,))
    some = layout.reduce(torch.tensor([[True, False, False]]), Placed(torch.ones(1, 2, dtype=torch.bool)), False)
    assert some.source.tolist() == [[0, 1, 2, 7, 8, 5, 6]]
    assert some.layout.positions[:, :, 0].tolist() == [[0, 1, 2, 3, 3, 5, 6]]
    assert some.layout.origin.tolist() == [[-1, -1, 0, -2, -2, -1, -1]]
    none_kept = layout.reduce(torch.zeros(1, 3, dtype=torch.bool), Placed(torch.ones(1, 1, dtype=torch.bool)), True)
    assert none_kept.source.tolist() == [[0, 1, 7, 5, 6]]
    assert none_kept.layout.positions[:, :, 0].tolist() == [[0, 1, 2, 3, 4]]


# ----------------------------------------------------------------------------------------------------------- the kernel

DECODER = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}


def sliding(window: int | None) -> PreTrainedConfig:
    return MistralConfig(**DECODER, sliding_window=window)


def capped(softcap: float | None) -> PreTrainedConfig:
    full = ["full_attention"] * 3
    return Gemma2Config(
        **DECODER,
        attn_logit_softcapping=softcap,
        layer_types=full,
        final_logit_softcapping=None,
        query_pre_attn_scalar=8,
    )


@pytest.mark.parametrize(
    ("decoder", "value", "found"),
    [(sliding, 6, "sliding_window=6"), (capped, 0.5, r"softcap=0\.5")],
    ids=["sliding window", "softcap"],
)
def test_a_decoder_whose_attention_is_another_is_refused_in_one_line(
    decoder: Callable[..., Any], value: float, found: str
) -> None:
    other, plain, batch = tiny_llava(text=decoder(value)), tiny_llava(text=decoder(None)), prompts(Q1)
    # as transformers computes a softcap
    other.set_attn_implementation("eager")
    with torch.inference_mode():
        bare = other(**batch).logits[:, -1]
        full = plain(**batch).logits[:, -1]
        assert (bare - full).abs().max() > 0.1, "the keyword changes what is computed"
        with attach(plain, none()):
            assert torch.allclose(plain(**batch).logits[:, -1], full, atol=1e-4), (
                "without it the decoder is one of ours"
            )
        with (
            attach(other, none()),
            pytest.raises(
                PrunebenchError,
                match=f"^decoder layer 0: expected plain softmax attention, found {found}, which .* use a model",
            ) as error,
        ):
            other(**batch)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------ positions


def seen_positions(module: nn.Module, into: list[torch.Tensor]) -> Any:
    """Keep the position_ids that a module is called with from now on."""
    return module.register_forward_pre_hook(
        lambda _m, _a, kwargs: into.append(kwargs["position_ids"].clone()), with_kwargs=True
    )


@pytest.mark.parametrize("method", [none(), fastv()], ids=["none", "fastv"])
def test_positions_are_the_models_own_and_a_generated_token_follows_the_prompts_last(method: Method) -> None:
    model, batch, steps = tiny_llava(), prompts(Q1, Q2), 3
    # not 0, 1, 2, ...: images may take fewer positions than tokens, and a prompt may start anywhere
    counted = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    given = counted + 7 + 5 * (batch["input_ids"] == IMAGE_TOKEN).cumsum(1)
    last = given[:, -1:]
    tokens = torch.tensor([[40], [41]])
    text, layer, decoded = [], [], []
    with torch.inference_mode():
        cache = DynamicCache(config=model.config.text_config)
        bare = [model(**batch, position_ids=given, past_key_values=cache).logits[:, -1]]
        mask = batch["attention_mask"]
        for step in range(1, steps + 1):
            mask = torch.cat([mask, torch.ones_like(tokens)], 1)
            bare.append(
                model(input_ids=tokens, attention_mask=mask, position_ids=last + step, past_key_values=cache).logits[
                    :, -1
                ]
            )
        language_model = model.model.language_model
        with attach(model, method) as run:
            handles = [seen_positions(language_model, text), seen_positions(language_model.layers[-1], layer)]
            cache = DynamicCache(config=model.config.text_config)
            ours = [model(**batch, position_ids=given, past_key_values=cache).logits[:, -1]]
            layouts = run.layouts
            for step in range(1, steps + 1):
                # wherever the caller puts a generated token: the engine knows the prompt
                ours.append(model(input_ids=tokens, position_ids=last + 90, past_key_values=cache).logits[:, -1])
                decoded.append(last + step)
        for handle in handles:
            handle.remove()
    assert layouts[0].positions.shape == (2, given.shape[1], 1)
    assert torch.equal(text[0], layouts[0].positions[:, :, 0])
    assert torch.equal(layer[0], layouts[-1].positions[:, :, 0])
    assert all(torch.equal(a, b) for a, b in zip(layer[1:], decoded, strict=True))
    alike = [torch.allclose(a, b, atol=1e-4) for a, b in zip(bare, ours, strict=True)]
    assert alike == [method.name == "none"] * (steps + 1)


def test_positions_on_three_axes_are_kept_and_cannot_be_renumbered() -> None:
    ids = torch.tensor([[9, 9, 4, 4, 4, 4, 9]])
    axes = torch.tensor([[[0, 0, 0], [1, 1, 1], [2, 2, 2], [2, 2, 3], [2, 3, 2], [2, 3, 3], [4, 4, 4]]])
    layout = TokenLayout.of_prompt(ids, None, (4,), axes)
    kept = layout.reduce(
        torch.tensor([[False, True, False, False]]), Placed(torch.ones(1, 1, dtype=torch.bool)), compact=False
    ).layout
    # the added token stands one behind the last kept one, on every axis
    assert kept.positions.tolist() == [[[0, 0, 0], [1, 1, 1], [2, 2, 3], [3, 3, 4], [4, 4, 4]]]
    with pytest.raises(PrunebenchError, match="expected positions on one axis, found a model that rotates by three"):
        _ = layout.compact
