"""The doors of transformers that the engine goes through: each is missed where it is not there, whatever a signature
says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import prompts, text_config, tiny_llava
from transformers import DynamicLayer, LlavaForConditionalGeneration, MistralConfig, Qwen3Config, StaticCache
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPVisionModel
from transformers.models.llama import modeling_llama as llama
from transformers.models.llava.modeling_llava import LlavaModel

from harness.core.errors import PrunebenchError
from harness.engine import doors
from harness.engine.attach import attach
from harness.engine.prefix import RoomyLayer
from harness.method import method_class

Patch = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kind of model was tried before."""
    monkeypatch.setattr(doors, "passed", set())


def wrapped(cls: type, name: str, change: Callable[..., Any]) -> Patch:
    """Call `change(original, self, *args, **kwargs)` in place of a method."""
    original = getattr(cls, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return change(original, self, *args, **kwargs)

    return lambda patch: patch.setattr(cls, name, method)


def without(*names: str) -> Callable[..., Any]:
    """The original, called without these keywords: they are swallowed."""
    return lambda original, self, *args, **kwargs: original(
        self, *args, **{k: v for k, v in kwargs.items() if k not in names}
    )


def named_and_unread(patch: pytest.MonkeyPatch) -> None:
    original = LlavaModel.forward

    def forward(self: Any, mm_encoder_outputs: Any = None, **kwargs: Any) -> Any:
        return original(self, **kwargs)

    patch.setattr(LlavaModel, "forward", forward)


def half_of_the_features(original: Any, self: Any, mm_encoder_outputs: Any = None, **kwargs: Any) -> Any:
    if mm_encoder_outputs:
        given = mm_encoder_outputs["image"].pooler_output
        mm_encoder_outputs = {"image": SimpleNamespace(pooler_output=[0.5 * one for one in given])}
    return original(self, mm_encoder_outputs=mm_encoder_outputs, **kwargs)


def its_own_stream(original: Any, self: Any, hidden_states: Any, **kwargs: Any) -> Any:
    return original(self, hidden_states.flip(-1), **kwargs)


def unrotated(original: Any, self: Any, hidden_states: Any, position_embeddings: Any, **kwargs: Any) -> Any:
    cos, sin = position_embeddings
    return original(self, hidden_states, position_embeddings=(torch.ones_like(cos), torch.zeros_like(sin)), **kwargs)


def other_mask(original: Any, self: Any, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
    mask = None if attention_mask is None else torch.zeros_like(attention_mask, dtype=torch.float32)
    return original(self, *args, attention_mask=mask, **kwargs)


def eager_only(patch: pytest.MonkeyPatch) -> None:
    interface = SimpleNamespace(get_interface=lambda name, default: default)
    patch.setattr(llama, "ALL_ATTENTION_FUNCTIONS", interface)


def unscaled(patch: pytest.MonkeyPatch) -> None:
    known = llama.ALL_ATTENTION_FUNCTIONS

    def get(name: str, default: Any) -> Any:
        function = known.get_interface(name, default)
        return lambda *args, scaling, **kwargs: function(*args, **kwargs)

    patch.setattr(llama, "ALL_ATTENTION_FUNCTIONS", SimpleNamespace(get_interface=get))


def other_output(patch: pytest.MonkeyPatch) -> None:
    known = llama.ALL_ATTENTION_FUNCTIONS

    def get(name: str, default: Any) -> Any:
        function = known.get_interface(name, default)
        return lambda *args, **kwargs: (2 * function(*args, **kwargs)[0], None)

    patch.setattr(llama, "ALL_ATTENTION_FUNCTIONS", SimpleNamespace(get_interface=get))


def stale_keys(original: Any, self: Any, keys: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
    original(self, keys, values, *args, **kwargs)
    return keys, values


def tuples(original: Any, self: Any, **kwargs: Any) -> Any:
    found = original(self, **kwargs)
    found.pooler_output = torch.cat(list(found.pooler_output))
    return found


def same_pixels(original: Any, self: Any, pixel_values: Any, **kwargs: Any) -> Any:
    return original(self, torch.ones_like(pixel_values), **kwargs)


def keys_first(original: Any, self: Any, hidden_states: Any, **kwargs: Any) -> Any:
    self.k_proj(hidden_states)
    return original(self, hidden_states, **kwargs)


def all_logits(original: Any, self: Any, *args: Any, logits_to_keep: int = 0, **kwargs: Any) -> Any:
    return original(self, *args, **kwargs)


def gone(cls: type, name: str) -> Patch:
    return lambda patch: patch.delattr(cls, name)


def fused(patch: pytest.MonkeyPatch) -> None:
    original = llama.LlamaAttention.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        del self.q_proj

    patch.setattr(llama.LlamaAttention, "__init__", init)


#: how a door goes, and the words that name it
MISSING: dict[str, tuple[Patch, str]] = {
    "swallowed features": (
        wrapped(LlavaModel, "forward", without("mm_encoder_outputs")),
        r"LlavaModel\.forward to put the image features of mm_encoder_outputs .* swallows it unread",
    ),
    "features named and unread": (named_and_unread, r"mm_encoder_outputs .*, found a forward that does not use it"),
    "features changed": (wrapped(LlavaModel, "forward", half_of_the_features), "image features of mm_encoder_outputs"),
    "features not passed on": (
        wrapped(LlavaForConditionalGeneration, "forward", without("mm_encoder_outputs")),
        "mm_encoder_outputs",
    ),
    "ids replaced": (
        wrapped(
            LlavaModel,
            "__call__",
            lambda original, self, input_ids=None, **kwargs: original(self, input_ids=input_ids.clone(), **kwargs),
        ),
        "LlavaModel to be called with input_ids=",
    ),
    "no cache for the core": (
        wrapped(LlavaModel, "__call__", without("past_key_values")),
        "LlavaModel to be called with past_key_values=",
    ),
    "no padding mask for the core": (
        wrapped(LlavaModel, "__call__", without("attention_mask")),
        "LlavaModel to be called with attention_mask=",
    ),
    "no positions for the text": (
        wrapped(llama.LlamaModel, "__call__", without("position_ids")),
        "LlamaModel to be called with position_ids=",
    ),
    "no cache for the text": (
        wrapped(llama.LlamaModel, "__call__", without("past_key_values")),
        "LlamaModel to be called with past_key_values=",
    ),
    "a stream of its own": (
        wrapped(llama.LlamaDecoderLayer, "forward", its_own_stream),
        "LlamaDecoderLayer to .* of its input",
    ),
    "no rotation": (wrapped(llama.LlamaAttention, "forward", unrotated), "position_embeddings that a pre-hook hands"),
    "another mask": (wrapped(llama.LlamaAttention, "forward", other_mask), "attention_mask on to the attention"),
    "its own attention": (eager_only, "the function that AttentionInterface registered"),
    "no scaling": (unscaled, "its attention function with scaling="),
    "another output": (other_output, "o_proj what its attention function returned"),
    "keys of this step alone": (
        wrapped(RoomyLayer, "update", stale_keys),
        "to attend to what past_key_values holds in a decode step",
    ),
    "a cache without lengths": (gone(DynamicLayer, "get_seq_length"), "to run a prefill from mm_encoder_outputs"),
    "no projections": (fused, "q_proj"),
    "no features of an image": (gone(LlavaModel, "get_image_features"), "get_image_features to give the features"),
    "features of all images in one": (wrapped(LlavaModel, "get_image_features", tuples), "pooler_output of each image"),
    "pixels of its own": (
        wrapped(CLIPVisionModel, "forward", same_pixels),
        "CLIPVisionModel to run on the pixels that a forward pre-hook hands it",
    ),
    "keys before queries": (wrapped(CLIPAttention, "forward", keys_first), "get_image_features to give the features"),
    "logits_to_keep unread": (
        wrapped(LlavaForConditionalGeneration, "forward", all_logits),
        "LlavaForConditionalGeneration.forward to keep logits_to_keep logits a prompt",
    ),
    "caches that do not say their kind": (
        lambda patch: patch.setattr(StaticCache, "is_compileable", False),
        r"StaticCache\.is_compileable",
    ),
}


@pytest.fixture
def model() -> Iterator[Any]:
    return tiny_llava()


@pytest.mark.parametrize(("patch", "names"), MISSING.values(), ids=MISSING)
def test_a_missing_door_is_named_before_anything_runs(
    patch: Patch, names: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attach(model, method_class("none")()):
        pass
    patch(monkeypatch)
    doors.passed.clear()
    with pytest.raises(PrunebenchError, match=names) as error, attach(model, method_class("none")()):
        raise AssertionError("attached")
    said = str(error.value)
    assert said.startswith("expected ")
    assert "\n" not in said
    assert f"in transformers {doors.transformers.__version__}: use transformers 5." in said


def test_another_forward_is_another_kind_and_a_known_one_is_not_tried_again(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(doors, "_try", tried.append)
    for _ in range(2):
        with attach(model, method_class("none")()):
            pass
    assert len(tried) == 1
    wrapped(LlavaModel, "forward", without())(monkeypatch)
    with attach(model, method_class("none")()):
        pass
    assert len(tried) == 2


@pytest.mark.parametrize("decoder", [MistralConfig, Qwen3Config], ids=lambda cls: cls.__name__)
def test_other_plain_decoders_have_the_doors(decoder: Any) -> None:
    sizes = text_config(32, 48, 3, 4, vocab_size=64).to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    text = decoder(**{name: sizes[name] for name in names}, num_key_value_heads=2)
    with attach(tiny_llava(text=text), method_class("none")()):
        pass


def test_the_caller_sees_nothing_of_the_trial(model: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    called: list[str] = []
    for module in model.modules():
        module.register_forward_hook(lambda module, args, out: called.append(type(module).__name__))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with FlopCounterMode(display=False) as counter, attach(model, method_class("none")()):
        pass
    assert counter.get_total_flops() == 0
    assert called == []
    assert torch.equal(torch.get_rng_state(), before)
    assert len(doors.passed) == 1
    with torch.inference_mode(), attach(model, method_class("none")()):
        model(**prompts([20, 21]))
