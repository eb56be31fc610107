"""A checkpoint is honoured or refused in one line, from its configuration and before its weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import REMOVED, change, copy, refused, tensors, tiny
from tiny import tiny_llava
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config, SiglipVisionConfig

import prunebench
from harness.core import flops
from harness.engine.attach import attach
from harness.method import method_class
from harness.models.load import LoadedModel, locate_model

CONFIG, PROCESSOR, GENERATION, TOKENIZER = (
    "config.json",
    "processor_config.json",
    "generation_config.json",
    "tokenizer_config.json",
)
ROPE = "text_config.rope_parameters"
#: (file, changes) -> what the line names
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    # the decoder
    (CONFIG, {"text_config.sliding_window": 64}, "sliding_window=64"),
    (CONFIG, {"text_config.model_type": "mistral", "text_config.sliding_window": 4096}, "sliding_window=4096"),
    (CONFIG, {"text_config.layer_types": ["sliding_attention"] * 6 + ["full_attention"] * 6}, "sliding_attention"),
    (CONFIG, {"text_config.attn_logit_softcapping": 50.0}, "softcap of attention"),
    (CONFIG, {"text_config.final_logit_softcapping": 30.0}, "softcap of logits"),
    (CONFIG, {ROPE: {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope_type 'dynamic'"),
    (
        CONFIG,
        {
            ROPE: {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 16,
                "long_factor": [2.0] * 16,
                "factor": 4.0,
                "original_max_position_embeddings": 2048,
            }
        },
        "rope_type 'longrope'",
    ),
    (CONFIG, {f"{ROPE}.partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    (CONFIG, {f"{ROPE}.rope_theta": 0}, "rope_theta=0"),
    (CONFIG, {"text_config.model_type": "gemma2"}, "'gemma2'"),
    (CONFIG, {"text_config.model_type": "mixtral", "text_config.num_local_experts": 8}, "'mixtral'"),
    (CONFIG, {"text_config.model_type": "no-such-type"}, "'no-such-type'"),
    (CONFIG, {"text_config.num_attention_heads": 7}, "heads"),
    (CONFIG, {"text_config.num_key_value_heads": 3}, "8 heads on 3 heads of keys"),
    (CONFIG, {"text_config.head_dim": 31}, "head_dim`=31"),
    (CONFIG, {"text_config.head_dim": 0}, "head_dim"),
    (CONFIG, {"text_config.hidden_act": "no_such"}, "'no_such'"),
    (CONFIG, {"text_config.num_hidden_layers": 6}, "6 more, first 6"),
    (CONFIG, {"text_config.num_hidden_layers": 13}, "1 missing, first 12"),
    (CONFIG, {"text_config.num_hidden_layers": "12"}, "num_hidden_layers"),
    (CONFIG, {"text_config.num_hidden_layers": 10**30}, "num_hidden_layers"),
    (CONFIG, {"text_config.vocab_size": -1}, "vocab_size"),
    (CONFIG, {"return_dict": False}, "return_dict"),
    (CONFIG, {"text_config.vocab_size": 1 << 24}, "embed_tokens.weight of shape (16777216, 256)"),
    (CONFIG, {"text_config.intermediate_size": 1 << 24}, "gate_proj.weight of shape"),
    (CONFIG, {"text_config.head_dim": 64}, "_proj.weight of shape (512, 256)"),
    (CONFIG, {"text_config.num_key_value_heads": 2}, "k_proj.weight of shape (64, 256)"),
    (CONFIG, {"vision_config.intermediate_size": 7}, "fc1.weight of shape (7, 192)"),
    # the tower
    (CONFIG, {"vision_config.model_type": "siglip_vision_model"}, "siglip_vision_model"),
    (CONFIG, {"vision_config.model_type": "dinov2"}, "dinov2"),
    (CONFIG, {"vision_config.model_type": REMOVED, "vision_config": "clip"}, "vision_config 'clip'"),
    (CONFIG, {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy"),
    (CONFIG, {"vision_feature_layer": [-2, -1]}, "[-2, -1]"),
    (CONFIG, {"vision_feature_layer": -6}, "-6 in a tower of 4 layers"),
    (CONFIG, {"vision_feature_layer": 5}, "5 in a tower of 4 layers"),
    (CONFIG, {"vision_config.patch_size": 0}, "patch_size"),
    (CONFIG, {"vision_config.patch_size": 400}, "patches of 400"),
    (CONFIG, {"vision_config.num_channels": 1}, "num_channels"),
    (CONFIG, {"vision_config.num_attention_heads": 5}, "heads"),
    (CONFIG, {"vision_config.num_hidden_layers": 3}, "vision layers"),
    (CONFIG, {"vision_config.image_size": 224}, "position_embedding.weight of shape (257, 192)"),
    (CONFIG, {"projector_hidden_act": "no_such"}, "'no_such'"),
    # the whole
    (CONFIG, {"model_type": "llava_next"}, "'llava_next'"),
    (CONFIG, {"model_type": REMOVED}, "model_type"),
    (CONFIG, {"image_token_index": 460}, "460 in a vocabulary of 460"),
    (CONFIG, {"image_token_index": -1}, "-1 in a vocabulary"),
    (CONFIG, {"image_token_index": 5}, "to be token 5"),
    (CONFIG, {"architectures": "LlavaForConditionalGeneration"}, "architectures as a list"),
    (CONFIG, {"quantization_config": {"quant_method": "awq"}}, "awq"),
    (CONFIG, {"quantization_config": "int4"}, "quantised"),
    (CONFIG, {"text_config.vocab_size": 300}, "embed_tokens.weight of shape (300, 256)"),
    # the processor
    (PROCESSOR, {"image_processor.crop_size": {"height": 224, "width": 224}}, "(3, 224, 224)"),
    (PROCESSOR, {"image_processor.crop_size": {"height": 10**6, "width": 10**6}}, "up to 8192"),
    (PROCESSOR, {"image_processor.do_center_crop": False}, "(3, 336, 448)"),
    (
        PROCESSOR,
        {"image_processor.size": {"height": 336, "width": 300}, "image_processor.do_center_crop": False},
        "300",
    ),
    (PROCESSOR, {"image_processor.do_resize": False, "image_processor.do_center_crop": False}, "(3, 48, 64)"),
    (PROCESSOR, {"image_processor.image_mean": "grey"}, "image processor"),
    (PROCESSOR, {"patch_size": 16}, "patch_size 14"),
    (PROCESSOR, {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy 'default'"),
    (PROCESSOR, {"num_additional_image_tokens": 2}, "num_additional_image_tokens 1"),
    (TOKENIZER, {"image_token": "<picture>"}, "<picture>"),
    # what generate would inherit
    (GENERATION, {"repetition_penalty": 0}, "repetition_penalty as a number above 0, found '0'"),
    (GENERATION, {"repetition_penalty": True}, "repetition_penalty as a number above 0, found 'True'"),
    (GENERATION, {"no_repeat_ngram_size": 3}, "no_repeat_ngram_size=3"),
    (GENERATION, {"suppress_tokens": [5, 6]}, "suppress_tokens"),
    (GENERATION, {"begin_suppress_tokens": [5]}, "begin_suppress_tokens"),
    (GENERATION, {"bad_words_ids": [[7]]}, "bad_words_ids"),
    (GENERATION, {"min_new_tokens": 5}, "min_new_tokens=5"),
    (GENERATION, {"num_beams": 4}, "num_beams=4"),
    (GENERATION, {"forced_bos_token_id": 9}, "forced_bos_token_id=9"),
    (GENERATION, {"eos_token_id": "</s>"}, "eos_token_id"),
    (GENERATION, {"eos_token_id": [2, 99999]}, "eos_token_id"),
    (GENERATION, {"eos_token_id": [2, None]}, "eos_token_id"),
    (GENERATION, {"eos_token_id": {"a": 1}}, "eos_token_id"),
]
#: (file, changes) that change nothing here, or are computed as the checkpoint says
HONOURED: list[tuple[str, dict[str, Any]]] = [
    (CONFIG, {"image_seq_length": 99}),
    (CONFIG, {"vision_feature_layer": 3}),
    (CONFIG, {"vision_feature_layer": -1}),
    (CONFIG, {"text_config.sliding_window": None, "text_config.pretraining_tp": 2}),
    (CONFIG, {"text_config.max_position_embeddings": REMOVED}),
    (CONFIG, {"text_config.model_type": REMOVED}),
    (CONFIG, {f"{ROPE}": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}}),
    (CONFIG, {"dtype": "bfloat16"}),
    (CONFIG, {"dtype": REMOVED, "torch_dtype": "float32"}),
    (PROCESSOR, {"patch_size": REMOVED, "vision_feature_select_strategy": REMOVED}),
    (PROCESSOR, {"num_additional_image_tokens": REMOVED}),
    (GENERATION, {"do_sample": True, "temperature": 0.9, "top_p": 0.6, "max_length": 4096}),
    (GENERATION, {"repetition_penalty": 1.2}),
    (GENERATION, {"repetition_penalty": 1.0, "num_beams": 1, "min_length": 0, "suppress_tokens": []}),
    (GENERATION, {"eos_token_id": REMOVED}),
]


def _id(case: tuple[Any, ...]) -> str:
    said = (f"{name}={'removed' if value is REMOVED else value}" for name, value in case[1].items())
    return "-".join(said)[:70].replace("/", "_")


@pytest.mark.parametrize("case", REFUSED, ids=_id)
def test_what_is_not_computed_is_refused_when_the_model_is_located(case: tuple[Any, ...], tmp_path: Path) -> None:
    file, changes, named = case
    folder = copy(tmp_path / "m")
    change(folder / file, changes)
    said = refused(lambda: locate_model(str(folder), "cpu"))
    assert said.startswith("model m")
    assert named in said


@pytest.mark.parametrize("case", HONOURED, ids=_id)
def test_what_changes_nothing_is_located(case: tuple[Any, ...], tmp_path: Path) -> None:
    folder = copy(tmp_path / "m")
    change(folder / case[0], case[1])
    assert locate_model(str(folder), "cpu").prompter.usual.n_visual == 576


# ------------------------------------------------------------------------------------------------- decoders and towers

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 460,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}


def _rope(**values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 1e4, **values}}


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128, "factor": 8.0}
DECODERS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama with biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama with wide heads": LlamaConfig(**SIZES, head_dim=24),
    "llama tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama with gelu": LlamaConfig(**SIZES, hidden_act="gelu"),
    "linear": LlamaConfig(**SIZES, **_rope(rope_type="linear", factor=4.0)),
    "llama3": LlamaConfig(**SIZES, **_rope(rope_type="llama3", **LLAMA3)),
    "yarn": LlamaConfig(**SIZES, **_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=128)),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=24),
}


@pytest.fixture(params=DECODERS)
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> LoadedModel:
    return locate_model(str(tiny(tmp_path / "m", DECODERS[request.param])), "cpu").load()


def test_decoders_that_are_let_in_equal_the_bare_model_and_their_cost_the_counter(loaded: LoadedModel) -> None:
    model, usual = loaded.model, loaded.usual
    ids = torch.tensor([loaded.prompt_ids("Is there a star?")])
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        bare = model(input_ids=ids, pixel_values=pixels, logits_to_keep=1).logits[:, -1]
        with attach(model, method_class("none")()):
            ours = model(input_ids=ids, pixel_values=pixels, logits_to_keep=1).logits[:, -1]
        with attach(model, method_class("fastv")(keep=4, boundary=1)):
            pruned = model(input_ids=ids, pixel_values=pixels, logits_to_keep=1).logits[:, -1]
        torch.testing.assert_close(ours, bare, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(pruned, bare, atol=1e-3)
        with sdpa_kernel(SDPBackend.MATH), attach(model, method_class("none")()) as run:
            with FlopCounterMode(display=False) as counter:
                model(input_ids=ids, pixel_values=pixels, logits_to_keep=1)
            costs = run.costs()
    vision = usual.images[0].vision
    expected = flops.vision_tower(vision) + flops.projector(usual.decoder, vision) + flops.lm_head(usual.decoder, 1)
    assert counter.get_total_flops() == expected + costs.prefill_executed_flops


def test_a_tower_without_cls_is_refused(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "m", Qwen2Config(**SIZES))
    eye = SiglipVisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2)
    change(
        folder / CONFIG,
        {"vision_config": eye.to_dict(), "vision_feature_select_strategy": "full", "vision_feature_layer": -1},
    )
    assert "siglip_vision_model" in refused(lambda: locate_model(str(folder), "cpu"))


# -------------------------------------------------------------------------------------------------------------- tensors

EMBED = "language_model.model.embed_tokens.weight"
GATE = "language_model.model.layers.0.mlp.gate_proj.weight"
SURPLUS = {
    "a bias": ("language_model.model.layers.0.mlp.gate_proj.bias", 688),
    "an adapter": ("language_model.model.layers.3.mlp.lora_A.weight", 8),
    "another head": ("score.weight", 256),
    "a second projector": ("multi_modal_projector.linear_3.weight", 256),
    "a pooler": ("vision_tower.pooler.dense.weight", 192),
    "a newline": ("image_newline", 256),
}


@pytest.mark.parametrize("name", SURPLUS)
def test_tensors_without_a_place_are_refused(name: str, tmp_path: Path) -> None:
    folder = copy(tmp_path / "m")
    tensor, width = SURPLUS[name]
    tensors(folder, lambda found: found.update({tensor: torch.zeros(width)}))
    said = refused(lambda: locate_model(str(folder), "cpu").load())
    assert "hold 1 tensors that config.json has no place for" in said
    assert tensor.rpartition(".")[2] in said


@pytest.mark.parametrize(
    "name",
    [
        "vision_tower.embeddings.position_ids",
        "vision_tower.vision_model.embeddings.position_ids",
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
        "language_model.model.rotary_emb.inv_freq",
        "language_model.lm_head.weight",
    ],
)
def test_buffers_and_tied_copies_are_no_surplus(name: str, tmp_path: Path) -> None:
    folder = copy(tmp_path / "m")
    tensors(folder, lambda found: found.update({name: found[EMBED].clone()}))
    locate_model(str(folder), "cpu").load()


@pytest.mark.parametrize("name", [EMBED, GATE, "multi_modal_projector.linear_1.weight"])
def test_tensors_of_another_shape_are_refused_by_name(name: str, tmp_path: Path) -> None:
    folder = copy(tmp_path / "m")
    tensors(folder, lambda found: found.update({name: found[name][:-8]}))
    said = refused(lambda: locate_model(str(folder), "cpu").load())
    assert "shape" in said
    assert name.split(".")[-2] in said


def test_a_loaded_model_is_held_to_the_same_list() -> None:
    model = tiny_llava()
    model.config.vision_feature_layer = [-2, -1]

    def prune() -> None:
        with prunebench.prune(model, "fastv", 4):
            pass

    assert "the model: expected vision_feature_layer as one layer of the tower" in refused(prune)
