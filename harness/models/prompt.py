"""A model's face without its weights: configuration, processor and prompts."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from harness.core.errors import PrunebenchError
from harness.core.picture import check_size
from harness.core.shape import PromptShape
from harness.models.config import ModelConfig
from harness.models.device import DTYPES

#: Vicuna v1's conversation as LLaVA-1.5 was trained and evaluated with it
VICUNA_V1 = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and"
    " polite answers to the user's questions. USER: <image>\n{text} ASSISTANT:"
)


@dataclass(frozen=True, kw_only=True)
class Prompter:
    """What of a model needs no weights: its processor, prompts, and the names under which results are kept.

    `fingerprint` names the weights: the hub commit, or a hash of the local weight files. `usual`: a prompt of one image
    as the model is asked them.
    """

    config: ModelConfig
    processor: Any
    device: torch.device
    dtype: str
    fingerprint: str
    revision: str | None
    usual: PromptShape
    image_token_id: int
    _prompts: dict[str, array[int]] = field(init=False, repr=False, compare=False, default_factory=dict)

    @cached_property
    def template(self) -> str:
        """The prompt around a question, with `{text}` where it goes."""
        if self.config.prompt == "vicuna_v1":
            return VICUNA_V1
        content = [{"type": "image"}, {"type": "text", "text": "{text}"}]
        rendered: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        if rendered.count("{text}") != 1 or rendered.count("<image>") != 1:
            raise PrunebenchError(
                f"{self.config.name}: its chat template lost the image or the question; it renders {rendered!r}"
            )
        return rendered

    @property
    def template_hash(self) -> str:
        return hashlib.sha256(f"{self.template}\0{self.config.image}".encode()).hexdigest()[:12]

    @property
    def image_backend(self) -> str:
        kind = type(self.processor.image_processor).__name__
        return f"{kind}+{self.config.image}"

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """(1, 3, h, w) on the device, through the model's own image processor. Raises PrunebenchError for a size that
        would take too much memory."""
        check_size(image.width, image.height)
        if self.config.image == "pad":
            image = pad_to_square(image, self.processor.image_processor.image_mean)
        out: torch.Tensor = self.processor.image_processor(images=image, return_tensors="pt")["pixel_values"]
        return out.to(self.device, DTYPES[self.dtype])

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of the whole prompt with one image's placeholders expanded; each text is tokenised once."""
        known = self._prompts.get(text)
        if known is None:
            known = self._prompts[text] = array("i", self._tokenised(text))
        return known.tolist()

    def _tokenised(self, text: str) -> list[int]:
        n = self.usual.n_visual
        full = self.template.replace("{text}", text)
        expanded = full.replace("<image>", "<image>" * n, 1)
        ids: list[int] = self.processor.tokenizer(expanded)["input_ids"]
        found = ids.count(self.image_token_id)
        if found != n:
            raise PrunebenchError(
                f"{self.config.name}: expected {n} image tokens in the prompt, found {found}: does the question itself"
                " hold '<image>'?"
            )
        return ids


def pad_to_square(image: Image.Image, mean: list[float]) -> Image.Image:
    """Centre the image on a square of the processor's mean colour, as LLaVA-1.5's evaluation does."""
    if image.width == image.height:
        return image
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * m) for m in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
