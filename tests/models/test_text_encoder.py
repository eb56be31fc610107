"""The text encoder reads a question as CDPruner's official code does, and its FLOPs are what runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from harness.core.errors import PrunebenchError
from harness.models.adapters.text_encoder import ENDING, ClipTextEncoder
from harness.models.config import model_config

ROOM = 16
CPU = torch.device("cpu")


class Letters:
    """One token a character; the tower's start and end token have the largest ids."""

    bos_token_id, eos_token_id = 97, 98

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(c) % 90 + 1 for c in text]}


def ids_of(text: str) -> list[int]:
    return [97, *Letters()(text, add_special_tokens=False)["input_ids"], 98]


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=ROOM,
        projection_dim=24,
        eos_token_id=2,  # as in the config of CLIP's checkpoints: pooled at the largest id
        bos_token_id=0,
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config).eval()


@pytest.fixture
def encoder(model: Any) -> ClipTextEncoder:
    return ClipTextEncoder(model, Letters(), torch.nn.LayerNorm(20), torch.nn.Linear(20, 24, bias=False))


def official(model: Any, text: str) -> torch.Tensor:
    """Pieces as the official code makes them: filled up with masked tokens of id 0 to a whole number of pieces."""
    ids = torch.tensor(ids_of(text))
    n = -(-len(ids) // ROOM)
    padded = torch.cat([ids, torch.zeros(n * ROOM - len(ids), dtype=torch.long)]).view(n, ROOM)
    mask = (torch.arange(n * ROOM) < len(ids)).long().view(n, ROOM)
    with torch.inference_mode():
        return model(input_ids=padded, attention_mask=mask).text_embeds


@pytest.mark.parametrize("length", [1, 13, 14, 15, 30, 31, 45])
def test_pieces_are_the_official_ones(model: Any, encoder: ClipTextEncoder, length: int) -> None:
    text = "is it red, or is it rather blue or green, or gray?"[:length]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        got = encoder.encode(text)
    assert got.flops == counter.get_total_flops()
    assert torch.allclose(got.pieces, official(model, text), atol=1e-5)
    assert len(got.pieces) == -(-(length + 2) // ROOM)


def test_the_first_piece_of_a_long_question_says_nothing(encoder: ClipTextEncoder) -> None:
    """It holds no end token and is pooled at the start token, which sees no other."""
    one, other = encoder.encode("is it red, or is it blue?"), encoder.encode("what is on the yellow sign?")
    assert torch.allclose(one.pieces[0], other.pieces[0], atol=1e-6)
    assert not torch.allclose(one.pieces[1], other.pieces[1], atol=1e-3)


def test_only_the_words_of_the_short_answer_are_taken_off(encoder: ClipTextEncoder) -> None:
    assert torch.equal(encoder.encode("is it red?" + ENDING).pieces, encoder.encode("is it red?").pieces)
    assert len(encoder.encode("red?" + ENDING.replace("\n", " ")).pieces) > 1


def test_patches_of_another_tower_are_refused(encoder: ClipTextEncoder) -> None:
    assert encoder.joint(torch.ones(2, 5, 20)).shape == (2, 5, 24)
    with pytest.raises(PrunebenchError, match="of width 19; found one of width 20"):
        encoder.joint(torch.ones(2, 5, 19))


def test_the_mini_models_tower_is_a_clip_checkpoint(tmp_path: Path) -> None:
    folder = Path(model_config("mini").text_tower or "")
    encoder = ClipTextEncoder.load(folder, CPU, torch.float32)
    weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    features = torch.randn(2, 3, 192, generator=torch.Generator().manual_seed(0))
    norm = (weights[f"vision_model.post_layernorm.{k}"] for k in ("weight", "bias"))
    with torch.inference_mode():
        by_hand = torch.nn.functional.layer_norm(features, (192,), *norm) @ weights["visual_projection.weight"].T
    assert torch.allclose(encoder.joint(features), by_hand, atol=1e-5)
    assert encoder.encode("Is there a RED circle?").pieces.equal(encoder.encode("is there a red circle?").pieces)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for lost in ("visual_projection.weight", "text_projection.weight"):
        rest = {k: v for k, v in weights.items() if k != lost}
        save_file(rest, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(PrunebenchError, match=f"found no {lost}"):
            ClipTextEncoder.load(tmp_path, CPU, torch.float32)
    with pytest.raises(PrunebenchError, match="found none that loads"):
        ClipTextEncoder.load(tmp_path / "none", CPU, torch.float32)
