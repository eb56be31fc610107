"""The text encoder that belongs to a CLIP vision tower: questions and patches in one space, for methods that ask
`Run.question`.

LLaVA's checkpoints hold the vision tower alone; the text tower and both projections come from the CLIP checkpoint that
the tower was taken from, which a model's config names (`text_encoder:`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from harness.core.errors import PrunebenchError


class EncodedText(NamedTuple):
    """A text as embeddings of its pieces, `pieces (p, width)`, and the FLOPs (1 multiply-add = 2) of encoding it."""

    pieces: Tensor
    flops: int


class TextEncoder(Protocol):
    """What `Run.question` asks."""

    def encode(self, text: str) -> EncodedText: ...


class ClipTextEncoder:
    """CLIP's text tower with its projection. A text of more tokens than the tower has positions is encoded in several
    pieces.

    `model`: a transformers `CLIPTextModelWithProjection`; `tokenizer` gives ids without special tokens and has the
    tower's start and end token.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self._model: Any = model
        self._tokenizer = tokenizer
        self._known: dict[str, EncodedText] = {}

    @classmethod
    def load(cls, source: str, device: torch.device, dtype: torch.dtype) -> ClipTextEncoder:
        """From a hub id or a local folder. Raises PrunebenchError where it cannot be loaded, with what to do."""
        from transformers import AutoTokenizer, CLIPTextModelWithProjection

        try:
            here = Path(source).is_dir()
            model = CLIPTextModelWithProjection.from_pretrained(
                source, dtype=dtype, use_safetensors=True, local_files_only=here, trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=here, trust_remote_code=False)
        except Exception as error:  # readers of foreign files raise anything
            where = "the folder" if Path(source).is_dir() else "the Hugging Face hub"
            raise PrunebenchError(
                f"text_encoder {source}: expected a CLIP checkpoint with its tokenizer from {where}, found none that"
                f" loads ({type(error).__name__}): connect to the hub, or set text_encoder to a local folder"
            ) from None
        return cls(model.to(device).eval(), tokenizer)

    @torch.inference_mode()
    def encode(self, text: str) -> EncodedText:
        if text not in self._known:
            self._known[text] = self._encoded(text)
        return self._known[text]

    def _encoded(self, text: str) -> EncodedText:
        config, tokenizer = self._model.config, self._tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        room = config.max_position_embeddings - 2
        parts = [ids[start : start + room] for start in range(0, max(len(ids), 1), room)]
        device = next(self._model.parameters()).device
        pieces, cost = [], 0
        for part in parts:
            whole = torch.tensor([[tokenizer.bos_token_id, *part, tokenizer.eos_token_id]], device=device)
            states = self._model.text_model(input_ids=whole).last_hidden_state
            # at the end token: pooled by place, for tokenizers differ in which id is the largest
            pieces.append(self._model.text_projection(states[:, -1])[0])
            cost += self._flops(whole.shape[1])
        return EncodedText(torch.stack(pieces), cost)

    def _flops(self, n: int) -> int:
        """Of one piece of `n` tokens: every layer's projections, feed-forward and attention, and the projection of one
        token."""
        config = self._model.config
        d, m = config.hidden_size, config.intermediate_size
        per_layer = 2 * n * (4 * d * d + 2 * d * m) + 4 * n * n * d
        return int(config.num_hidden_layers * per_layer + 2 * d * config.projection_dim)
