"""A tiny random LLaVA for tests: real classes, 16 visual tokens, peaked attention."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedConfig

IMAGE_TOKEN = 4
GRID = 4


def text_config(hidden: int, mlp: int, depth: int, heads: int, **others: object) -> LlamaConfig:
    """A Llama of these sizes, with as many heads of keys as of queries unless told otherwise."""
    sizes = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": depth, "num_attention_heads": heads}
    return LlamaConfig(**{"num_key_value_heads": heads, **sizes, **others})


def vision_config(hidden: int, mlp: int, depth: int, heads: int, image: int, patch: int) -> CLIPVisionConfig:
    """A CLIP tower of these sizes."""
    sizes = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": depth, "num_attention_heads": heads}
    return CLIPVisionConfig(**sizes, image_size=image, patch_size=patch)


def tiny_llava(
    depth: int = 4,
    heads: int = 4,
    kv_heads: int = 4,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    text: PreTrainedConfig | None = None,
) -> LlavaForConditionalGeneration:
    """`text`: another decoder than the Llama of these sizes."""
    torch.manual_seed(seed)
    text = text or LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        initializer_range=0.2,
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=GRID * 14,
        patch_size=14,
        initializer_range=0.2,
    )
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=GRID * GRID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config).to(dtype).eval()


def prompts(*questions: list[int], before: int = 3, seed: int = 1) -> dict[str, torch.Tensor]:
    """A left-padded batch: `before` text tokens, an image, the question's token ids."""
    rows = [[1, *range(10, 10 + before - 1), *[IMAGE_TOKEN] * GRID**2, *q] for q in questions]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randn(len(rows), 3, GRID * 14, GRID * 14, generator=g)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
