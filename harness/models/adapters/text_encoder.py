"""The text encoder that belongs to a CLIP vision tower: questions and patches in one space, for methods that ask
`Run.question` and `Run.joint`.

LLaVA's checkpoints hold the vision tower alone. The text tower and both projections come from the CLIP checkpoint that
the tower was taken from. A model's config names it (`text_encoder:`), or a method's knob of type `TextTower`.

Texts are encoded as CDPruner's official code does (Theia-4869/CDPruner @ 9541616c), its quirks included: see
`ClipTextEncoder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from harness.core.errors import PrunebenchError

#: what CDPruner's official code takes off a question; hints in the same question stay
ENDING = "\nAnswer the question using a single word or phrase."


class EncodedText(NamedTuple):
    """A text as embeddings of its pieces, `pieces (p, width)`, and the FLOPs (1 multiply-add = 2) of encoding it."""

    pieces: Tensor
    flops: int


class TextEncoder(Protocol):
    """What `Run.question` and `Run.joint` ask."""

    def encode(self, text: str) -> EncodedText: ...

    def joint(self, features: Tensor) -> Tensor:
        """`features (..., width)` of the vision tower in the space of the texts: (..., e), one matrix product."""


class ClipTextEncoder:
    """CLIP's text tower with its projection, and the projection of its vision tower.

    Texts are read as CDPruner's official code reads them. `ENDING` is taken off, nothing is truncated. Start token,
    tokens and end token are cut into pieces as long as the tower has positions (77), each encoded from position 0. A
    piece is pooled at its largest id: at the end token where there is one, whose id is the largest in CLIP. The first
    piece of a longer text has none and is pooled at its start token, so that it says nothing of the text. A piece in
    the middle is pooled at some word. The official code fills pieces up with masked tokens, which change nothing; here
    they are left out.

    `model`: a transformers `CLIPTextModelWithProjection`; `tokenizer` gives ids without special tokens and has the
    tower's start and end token. `norm` and `projection`: `post_layernorm` and `visual_projection` of the checkpoint.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, norm: nn.Module, projection: nn.Module) -> None:
        self._model: Any = model
        self._tokenizer = tokenizer
        self._norm, self._projection = norm, projection
        self._known: dict[str, EncodedText] = {}

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> ClipTextEncoder:
        """From a checkpoint's folder (`harness.models.text_tower.folder_of`). Raises PrunebenchError where it cannot be
        loaded, with what to do."""
        from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPVisionConfig
        from transformers import CLIPVisionModelWithProjection as Vision
        from transformers.utils import logging

        where: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        safe = any(folder.glob("*.safetensors"))
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            weights = {**where, "dtype": dtype, "use_safetensors": safe, "output_loading_info": True}
            model, text = CLIPTextModelWithProjection.from_pretrained(folder, **weights)
            # what is behind the vision tower's layers alone: the model that is pruned has the tower
            stated = CLIPVisionConfig.from_pretrained(folder, **where)
            stated.num_hidden_layers = 0
            vision, seen = Vision.from_pretrained(folder, config=stated, **weights)
            tokenizer = AutoTokenizer.from_pretrained(folder, **where)
        except Exception as error:  # readers of foreign files raise anything
            raise PrunebenchError(
                f"text tower {folder}: expected a CLIP checkpoint with its tokenizer, found none that loads"
                f" ({type(error).__name__}): name another"
            ) from None
        finally:
            logging.set_verbosity(verbosity)
        needed = ("post_layernorm", "visual_projection")
        lacking = [*text["missing_keys"], *(k for k in seen["missing_keys"] if any(part in k for part in needed))]
        if lacking:
            raise PrunebenchError(
                f"text tower {folder}: expected a CLIP checkpoint with text tower, post_layernorm and"
                f" visual_projection, found no {min(lacking)} ({len(lacking)} tensors are missing): name another"
            )
        norm, projection = vision.vision_model.post_layernorm, vision.visual_projection
        return cls(model.to(device).eval(), tokenizer, norm.to(device).eval(), projection.to(device).eval())

    @classmethod
    def of_weights(
        cls, text: Mapping[str, Any], vision: Mapping[str, Any], weights: Mapping[str, Tensor], tokenizer: Any
    ) -> ClipTextEncoder:
        """From the text and vision config of a CLIP checkpoint, and its tensors under their names there."""
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        model = CLIPTextModelWithProjection(CLIPTextConfig(**text))
        model.load_state_dict({k: v for k, v in weights.items() if k.startswith(("text_model.", "text_projection."))})
        norm = nn.LayerNorm(vision["hidden_size"], eps=vision.get("layer_norm_eps", 1e-5))
        norm.load_state_dict({k: weights[f"vision_model.post_layernorm.{k}"] for k in ("weight", "bias")})
        projection = nn.Linear(vision["hidden_size"], text["projection_dim"], bias=False)
        projection.load_state_dict({"weight": weights["visual_projection.weight"]})
        return cls(model.eval(), tokenizer, norm, projection)

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Move the weights; texts are encoded anew."""
        for module in (self._model, self._norm, self._projection):
            module.to(device=device, dtype=dtype)
        self._known.clear()
        return self

    @torch.inference_mode()
    def encode(self, text: str) -> EncodedText:
        if text not in self._known:
            self._known[text] = self._encoded(text.replace(ENDING, ""))
        return self._known[text]

    @torch.inference_mode()
    def joint(self, features: Tensor) -> Tensor:
        """As `TextEncoder.joint`; raises PrunebenchError where the tower has another width than the checkpoint."""
        expected: int = self._projection.in_features  # type: ignore[assignment]
        if features.shape[-1] != expected:
            raise PrunebenchError(
                f"text tower: expected the CLIP checkpoint of this model's vision tower, of width {features.shape[-1]};"
                f" found one of width {expected}: name the checkpoint that the tower was taken from"
            )
        dtype = self._projection.weight.dtype
        projected: Tensor = self._projection(self._norm(features.to(dtype)))  # type: ignore[arg-type]
        return projected

    def _encoded(self, text: str) -> EncodedText:
        tokenizer, room = self._tokenizer, self._model.config.max_position_embeddings
        words: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [tokenizer.bos_token_id, *words, tokenizer.eos_token_id]
        device = next(self._model.parameters()).device
        pieces, cost = [], 0
        for start in range(0, len(ids), room):
            part = ids[start : start + room]
            states = self._model.text_model(input_ids=torch.tensor([part], device=device)).last_hidden_state
            pieces.append(self._model.text_projection(states[0, part.index(max(part))]))
            cost += self._flops(len(part))
        return EncodedText(torch.stack(pieces), cost)

    def _flops(self, n: int) -> int:
        """Of one piece of `n` tokens: every layer's projections, feed-forward and attention, and the projection of one
        token."""
        config = self._model.config
        d, m = config.hidden_size, config.intermediate_size
        per_layer = 2 * n * (4 * d * d + 2 * d * m) + 4 * n * n * d
        return int(config.num_hidden_layers * per_layer + 2 * d * config.projection_dim)
