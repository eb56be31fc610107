"""The mini LLaVA's architecture: LLaVA-1.5's classes and image geometry at 11 M parameters."""

from __future__ import annotations

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedTokenizerFast,
)

from tasks.mini import world

HIDDEN = 256
N_LAYERS = 12
IMAGE_TOKEN = "<image>"


def text_config(tokenizer: PreTrainedTokenizerFast, n_layers: int = N_LAYERS) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=688,
        num_hidden_layers=n_layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        # 32-dimensional heads and base 10,000 leave only a few dimensions that still match across 576 positions
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )


def llava_config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            image_size=world.IMAGE_SIZE,
            patch_size=world.PATCH,
            projection_dim=192,
        ),
        text_config=text_config(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=world.GRID**2,
        tie_word_embeddings=True,
    )
