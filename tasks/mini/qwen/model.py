"""The mini Qwen's architecture: Qwen2.5-VL's classes at 4.2 M parameters, on images that differ in size.

A visual token shows 14 x 14 pixels of the mini world, as in the mini LLaVA: patches of 7 pixels, merged 2 x 2. Windows
are 4 x 4 visual tokens; every second layer of the tower attends to the whole image.
"""

from __future__ import annotations

import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2VLImageProcessor

from tasks.mini import model as mini
from tasks.mini import symbols, tokenizer, world

IMAGE_TOKEN = "<|image_pad|>"
START, END, VIDEO_TOKEN = "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"
#: behind the mini LLaVA's vocabulary, which keeps its ids
SPECIAL = (START, END, IMAGE_TOKEN, VIDEO_TOKEN)
N_LAYERS = 6
HEADS, KV_HEADS = 8, 4
MLP = 384
PATCH = world.PATCH // 2
MERGE = 2
#: fewest and most pixels of an image; the world's images lie between and are never resized
MIN_PIXELS, MAX_PIXELS = 64 * world.PATCH**2, 640 * world.PATCH**2
CHAT_TEMPLATE = tokenizer.CHAT_TEMPLATE.replace("<image>", START + IMAGE_TOKEN + END)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The mini LLaVA's tokenizer with Qwen's four tokens of images behind."""
    made = tokenizer.build()
    made.add_special_tokens(
        {"additional_special_tokens": [AddedToken(token, special=True, normalized=False) for token in SPECIAL]}
    )
    made.chat_template = CHAT_TEMPLATE
    return made


class QwenVocabulary(symbols.Vocabulary):
    """The mini LLaVA's vectors, which its decoder was trained on, with rows for the new tokens behind.

    A symbol has no code of its place: the tower has no absolute positions, so places are those of M-RoPE.
    """

    def __init__(self, made: PreTrainedTokenizerFast, hidden: int = mini.HIDDEN) -> None:
        super().__init__(tokenizer.build(), hidden)
        new = torch.randn(len(SPECIAL), hidden, generator=torch.Generator().manual_seed(1)) * symbols.EMBED_STD
        self.embedding = torch.cat([self.embedding, new])
        self.tokenizer = made
        self.prefix = made("USER: " + START, add_special_tokens=True).input_ids
        self.closing = END


def config(made: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    ids = {token: made.convert_tokens_to_ids(token) for token in SPECIAL}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(made),
            "hidden_size": mini.HIDDEN,
            "intermediate_size": MLP,
            "num_hidden_layers": N_LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "max_position_embeddings": 4096,
            # of 16 pairs of channels 2 turn with the time axis, 7 with rows, 7 with columns; a base of 10,000 leaves
            # columns, which get the slowest pairs, angles that 6 layers can tell apart
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 7, 7]},
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 3,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": 4 * world.PATCH,
            "out_hidden_size": mini.HIDDEN,
            "fullatt_block_indexes": [1, 3],
        },
        image_token_id=ids[IMAGE_TOKEN],
        video_token_id=ids[VIDEO_TOKEN],
        vision_start_token_id=ids[START],
        vision_end_token_id=ids[END],
        tie_word_embeddings=True,
    )


def image_processor() -> Qwen2VLImageProcessor:
    return Qwen2VLImageProcessor(
        size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
    )
