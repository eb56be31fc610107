"""A model's face without its weights: configuration, processor and prompts."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from PIL import Image

from harness.core.errors import PrunebenchError, naming
from harness.core.picture import check_size
from harness.core.shape import ImageShape, PromptShape, Size
from harness.core.spelling import given
from harness.method import Method
from harness.method.fits import shrinks_pictures
from harness.models.adapters import Adapter, adapter_class
from harness.models.config import ModelConfig, Padding, Template
from harness.models.device import DTYPES
from harness.models.pictures import pixels_key, shown_size

#: Vicuna v1's conversation as LLaVA-1.5 was trained and evaluated with it
VICUNA_V1 = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and"
    " polite answers to the user's questions. USER: <image>\n{text} ASSISTANT:"
)
#: a question whose token ids say how a tokenizer cuts words, numbers, signs and another script
PROBE = "What is written on sign no. 1234,  \u00e9t\u00e9 \u4e2d?\nAnswer the question using a single word or phrase."
#: (height, width) of the image of a prompt that stands for all
PROBED: Size = (480, 640)
#: of the images of a prompt, in order
Sizes = tuple[Size, ...]
#: the parts of a user's turn in order: texts, and None for the next image
Content = tuple[str | None, ...]
#: settings of an image processor that decide pixels, beside its switches (do_...)
PIXEL_SETTINGS = (
    "size",
    "crop_size",
    "pad_size",
    "resample",
    "rescale_factor",
    "image_mean",
    "image_std",
    "default_to_square",
    "size_divisor",
    "image_grid_pinpoints",
    "patch_size",
    "merge_size",
    "temporal_patch_size",
    "max_image_size",
    "crop_to_patches",
    "min_patches",
    "max_patches",
)


@dataclass(frozen=True, kw_only=True)
class Prompter:
    """What of a model needs no weights: its processor, prompts, and the names under which results are kept.

    `stated`: the checkpoint's configuration. `fingerprint` names the weights: the hub commit, or a hash of the local
    weight files. `usual`: a prompt of one image as the model is asked them. `end_tokens`: ids at which an answer ends.
    `context`: tokens that a prompt with its answer may have; None where the checkpoint does not say.
    `repetition_penalty` as in harness/models/generation.py.
    """

    config: ModelConfig
    stated: Any
    processor: Any
    device: torch.device
    dtype: str
    fingerprint: str
    revision: str | None
    usual: PromptShape
    image_token_id: int
    end_tokens: tuple[int, ...]
    context: int | None
    repetition_penalty: float = 1.0
    _prompts: dict[tuple[Content, Sizes], array[int]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _images: dict[tuple[type[Adapter], Size], ImageShape] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _shown: dict[tuple[str, type[Adapter], Size], Size] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    @property
    def family(self) -> type[Adapter]:
        return adapter_class(self.stated)

    @property
    def one_size(self) -> bool:
        """Whether every image has the same tokens, whatever its size."""
        return self.family.one_size

    def image_at(self, size: Size, n_images: int = 1) -> ImageShape:
        """An image of this size as the model gets it in a prompt of `n_images`, padding of ours included, without its
        pixels."""
        key = self.family.among(n_images), size
        if key not in self._images:
            self._images[key] = key[0].image_at(self.stated, self.processor, self._padded(size))
        return self._images[key]

    def images_at(self, sizes: Sequence[Size]) -> tuple[ImageShape, ...]:
        """The images of one prompt as the model gets them: `image_at` of each."""
        return tuple(self.image_at(size, len(sizes)) for size in sizes)

    def tokens_at(self, size: Size, n_images: int = 1) -> int:
        """Visual tokens of an image of this size as the model gets it in a prompt of `n_images`."""
        return self.family.among(n_images).tokens_at(self.stated, self.processor, self._padded(size))

    def shown(self, method: Method, size: Size, n_images: int = 1) -> Size:
        """The (height, width) of a picture of this size, in a prompt of `n_images`, as a method leaves it to the
        processor. Raises as `Method.picture`."""
        if self.one_size or not shrinks_pictures(method):
            return size
        key = pixels_key(method), self.family.among(n_images), size
        if key not in self._shown:
            self._shown[key] = shown_size(method, size, lambda shown: self.tokens_at(shown, n_images))
        return self._shown[key]

    def all_shown(self, method: Method, sizes: Sequence[Size]) -> Sizes:
        """The pictures of one prompt as a method leaves them to the processor: `shown` of each."""
        return tuple(self.shown(method, size, len(sizes)) for size in sizes)

    def way_of(self, n_images: int) -> str:
        """Names the way in which an image of a prompt of `n_images` is cut; "" for that of one alone in its prompt."""
        return "" if self.family.among(n_images) is self.family.among(1) else " of several"

    def _padded(self, size: Size) -> Size:
        return (max(size), max(size)) if self.config.image == "pad" else size

    @cached_property
    def template(self) -> str:
        """The prompt around a question, with `{text}` where it goes."""
        if self.config.prompt == "vicuna_v1":
            return VICUNA_V1
        return chat_template(self.processor, self.config.name, self.config.system)

    @property
    def template_hash(self) -> str:
        return hashlib.sha256(f"{self.template}\0{self.config.image}".encode()).hexdigest()[:12]

    @property
    def image_backend(self) -> str:
        kind = type(self.processor.image_processor).__name__
        return f"{kind}+{self.config.image}" + "".join(
            f" {least} to {most} {unit}" for unit, (least, most) in self.config.limits.items()
        )

    @cached_property
    def processing(self) -> Mapping[str, Any]:
        """Everything that makes input of a question and an image, and an answer's end, as JSON values.

        An open description: a new step adds a key. Equal in every process, and free of paths and names of folders.
        """
        with naming(f"model {self.config.name}"):
            ids = self.prompt_ids(PROBE, (PROBED,))
        runs = [(token, len(list(same))) for token, same in groupby(ids)]
        image = self.processor.image_processor
        settings = {name: _plain(value) for name, value in image.to_dict().items() if _decides_pixels(name)}
        return {
            "template": self.template,
            # image tokens stand in a row: [id, how many]
            "prompt_ids": [part for t, n in runs for part in ([[t, n]] if t == self.image_token_id else [t] * n)],
            "end_tokens": list(self.end_tokens),
            **({"repetition_penalty": self.repetition_penalty} if self.repetition_penalty != 1 else {}),
            "image": {
                "policy": self.config.image,
                **({"pad_colour": list(pad_colour(image.image_mean))} if self.config.image == "pad" else {}),
                "processor": type(image).__name__,
                "settings": {name: value for name, value in sorted(settings.items()) if value is not None},
                "n_tokens": self.image_at(PROBED).tokens,
                **({"n_tokens_of_several": self.image_at(PROBED, 2).tokens} if self.way_of(2) else {}),
            },
        }

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """`pixel_values` of `made`: (1, 3, h, w) where all images have one size."""
        pixels: torch.Tensor = self.made(image)["pixel_values"]
        return pixels

    def made(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """What the model's own image processor makes of an image, on the device: its pixels, and the family's facts of
        how it was cut. Raises PrunebenchError for a size that would take too much memory."""
        return self.uploaded(self.processed(image))

    def processed(self, image: Image.Image, n_images: int = 1) -> dict[str, torch.Tensor]:
        """`made`, of an image of a prompt of `n_images`, in host memory, which any thread may do."""
        check_size(image.width, image.height)
        if self.config.image == "pad":
            image = pad_to_square(image, self.processor.image_processor.image_mean)
        out = self.family.among(n_images).processed(self.processor, image)
        pixels = out["pixel_values"].to(DTYPES[self.dtype])
        size = image.height, image.width
        return {"pixel_values": pixels, **self.family.facts_made(out, self.stated, self.processor, size)}

    def uploaded(self, processed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What `processed` made, on the device."""
        return {name: values.to(self.device) for name, values in processed.items()}

    def asked(self, key: str, content: Content | str, max_new_tokens: int, sizes: Sizes | None = None) -> list[int]:
        """`prompt_ids` of a sample. Raises PrunebenchError naming the sample where its text holds the image token, or
        where prompt and answer are longer than the context."""
        with naming(f"sample {key}"):
            ids = self.prompt_ids(content, sizes)
        if self.context is not None and len(ids) + max_new_tokens > self.context:
            raise PrunebenchError(
                f"sample {key}: expected at most {self.context - max_new_tokens:,} tokens (a context of"
                f" {self.context:,} less {max_new_tokens} to answer with), found a prompt of {len(ids):,} tokens"
                f"{_of_images(content)}: shorten its question, or use a model of a longer context than"
                f" {self.config.name}"
            )
        return ids

    def prompt_ids(self, content: Content | str, sizes: Sizes | None = None) -> list[int]:
        """Token ids of the whole prompt with the placeholder of each image expanded to its own tokens; tokenised once.

        `content`: the parts of the turn in order, None for an image; a text alone stands behind its one image. `sizes`:
        (height, width) of each image as its file has it; None for a model whose images all have the same tokens. Raises
        PrunebenchError where sizes are needed and missing, or are not those of the images.
        """
        content = (None, content) if isinstance(content, str) else content
        n_images = content.count(None)
        if sizes is None and not self.one_size:
            raise PrunebenchError(
                f"{self.config.name}: expected the size of each image, on which its tokens depend; found none"
            )
        if not n_images or len(sizes or content[:n_images]) != n_images:
            raise PrunebenchError(
                f"{self.config.name}: expected a prompt of one or more images and the size of each, found {n_images}"
                f" image(s) and {len(sizes or ())} size(s)"
            )
        # where sizes decide nothing, prompts of all sizes are one
        key = (content, (PROBED,) * n_images if self.one_size or sizes is None else sizes)
        known = self._prompts.get(key)
        if known is None:
            known = self._prompts[key] = array("i", self._tokenised(*key))
        return known.tolist()

    def _prompt(self, content: Content) -> str:
        """The whole prompt as text. A chat template is a program that may look at the question: it renders each one."""
        if self.config.prompt == "vicuna_v1":
            # LLaVA's own code leaves an image where it was put, and has a line break between one in front and the text
            parts = ["<image>" if part is None else part for part in content]
            return VICUNA_V1.replace("<image>\n{text}", "\n".join(parts))
        return rendered(self.processor, content, self.config.name, self.config.system)

    def prompt_and_next(self, content: Content, answer: str, question: str) -> tuple[str, str]:
        """The whole prompt as text, and that of a second question behind it and its answer."""
        asked = self._prompt(content)
        if self.config.prompt == "vicuna_v1":
            # LLaVA's own code ends an answer with the end token, and has no space behind it
            return asked, f"{asked} {answer}</s>USER: {question} ASSISTANT:"
        more = (("assistant", answer), ("user", question))
        return asked, rendered(self.processor, content, self.config.name, self.config.system, more)

    def word_ids(self, words: Sequence[str]) -> list[int]:
        """Token ids of words, each cut alone, without tokens around them."""
        return word_ids(self.processor.tokenizer, words)

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a prompt as text, with one placeholder for each image."""
        tokenizer = self.processor.tokenizer
        # as transformers does it: a template that spells the start token gets no second one
        spelt = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
        ids: list[int] = tokenizer(text, add_special_tokens=not spelt)["input_ids"]
        return ids

    def _tokenised(self, content: Content, sizes: Sizes) -> list[int]:
        text = self._prompt(content)
        ids = self.text_ids(text)
        found = ids.count(self.image_token_id)
        if found != len(sizes):
            expected = "one image token" if len(sizes) == 1 else f"{len(sizes)} image tokens"
            raise PrunebenchError(
                f"{self.config.name}: expected {expected} in the prompt, found {found}: does the question itself hold"
                f" {self.processor.image_token!r}?"
            )
        if self.family.framed:
            return self._framed(text, sizes)
        video = self.processor.tokenizer.get_vocab().get(getattr(self.processor, "video_token", None))
        if video is not None and video in ids:
            raise PrunebenchError(
                f"{self.config.name}: expected a prompt without videos, found {self.processor.video_token!r} in it"
            )
        # behind the tokenizer: hundreds of image tokens take it 20 times as long, and `check_processor` compares both
        left = iter(self.images_at(sizes))
        whole: list[int] = []
        for token in ids:
            if token == self.image_token_id:
                whole += self.family.placeholders(self.processor, token, next(left))
            else:
                whole.append(token)
        return whole

    def _framed(self, text: str, sizes: Sizes) -> list[int]:
        """Token ids of a prompt whose images have text between their tokens: the text goes through the tokenizer with
        one image token for each run, for what stands beside a run may depend on it."""
        processor, images = self.processor, self.images_at(sizes)
        video = getattr(processor, "video_token", None)
        if video is not None and video in text:
            raise PrunebenchError(
                f"{self.config.name}: expected images, found {video!r} in the prompt: videos are not supported"
            )
        whole, *parts = text.split(processor.image_token)
        runs: list[int] = []
        for image, part in zip(images, parts, strict=True):
            around = ["".join(self.family.spelling(m, processor) for m in marks) for marks in self.family.frame(image)]
            whole += processor.image_token.join(around) + part
            runs += [image.tokens // (len(around) - 1)] * (len(around) - 1)
        left, ids = iter(runs), list[int]()
        for token in self.text_ids(whole):
            ids += [token] * (next(left) if token == self.image_token_id else 1)
        return ids


def word_ids(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """Token ids of words, each cut alone by a tokenizer of transformers, without tokens around them."""
    ids: list[int] = tokenizer(list(words), is_split_into_words=True, add_special_tokens=False)["input_ids"]
    return ids


def words(content: Content) -> str:
    """The texts of a turn without its images."""
    return "\n".join(part for part in content if part is not None)


def _of_images(content: Content | str) -> str:
    """What to say of a prompt of several images."""
    n = 1 if isinstance(content, str) else content.count(None)
    return f" with {n} images" if n > 1 else ""


def check_prompts(
    prompter: Prompter, questions: Iterable[tuple[str, Content | str, Sizes | None]], max_new_tokens: int
) -> None:
    """Tokenise the (key, content, sizes of images) of every question, before weights are loaded. Raises PrunebenchError
    as `Prompter.asked`."""
    for key, content, sizes in questions:
        prompter.asked(key, content, max_new_tokens, sizes)


def decided(config: ModelConfig, processor: Any, one_size: bool = True) -> ModelConfig:
    """The config with `prompt` and `image` decided where it leaves them open: the checkpoint's own chat template and
    image processor.

    A template that is Vicuna's is asked as LLaVA-1.5 is evaluated, on padded images where a model sees all of them in
    `one_size`. Raises PrunebenchError where there is no chat template.
    """
    prompt: Template = config.prompt or "chat_template"
    own = VICUNA_V1 if prompt == "vicuna_v1" else chat_template(processor, config.name, config.system)
    image: Padding = config.image or ("pad" if own == VICUNA_V1 and one_size else "plain")
    return config.model_copy(update={"prompt": "vicuna_v1" if own == VICUNA_V1 else prompt, "image": image})


def chat_template(processor: Any, name: str, system: str | None = None) -> str:
    """A checkpoint's own prompt around a question, `{text}`, under a system prompt. Raises PrunebenchError where it has
    none that works."""
    mend = f"give {given('prompt', 'vicuna_v1')}, or put a chat template into the folder"
    if not getattr(processor, "chat_template", None):
        raise PrunebenchError(f"model {name}: expected a chat template beside the weights, found none: {mend}")
    prompt, again, other = (
        rendered(processor, (None, text), name, system) for text in ("{text}", "{text}", "Another question?")
    )
    if prompt.count(processor.image_token) != 1 or prompt == other:
        raise PrunebenchError(
            f"model {name}: its chat template lost the image or the question; it renders {prompt[:200]!r}: {mend}"
        )
    if system is not None and system not in prompt:
        raise PrunebenchError(
            f"model {name}: its chat template lost the system prompt {system[:80]!r}: leave `system` out of its config"
        )
    if prompt != again:
        raise PrunebenchError(f"model {name}: its chat template renders another prompt each time: {mend}")
    return prompt


def rendered(
    processor: Any, content: Content, name: str, system: str | None = None, more: Iterable[tuple[str, str]] = ()
) -> str:
    """The prompt that a checkpoint's chat template makes of a question, images and texts in the order of `content`,
    under a system prompt; `more`: (role, text) of the turns behind. Raises PrunebenchError if it makes none."""
    parts = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in content]
    before = [] if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}]
    behind = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in more]
    try:
        prompt = processor.apply_chat_template(
            [*before, {"role": "user", "content": parts}, *behind], add_generation_prompt=True, tokenize=False
        )
        if not isinstance(prompt, str):
            raise TypeError(f"expected a text, found {str(prompt)[:80]!r}")
    except Exception as error:  # a template is a program of the checkpoint's author
        reason = " ".join(str(error).split())[:120]
        raise PrunebenchError(
            f"model {name}: its chat template does not render ({type(error).__name__}: {reason}): give"
            f" {given('prompt', 'vicuna_v1')}, or mend the template"
        ) from None
    return prompt


def pad_colour(mean: Iterable[float]) -> tuple[int, ...]:
    """The processor's mean colour, in whole steps of 255."""
    return tuple(int(255 * m) for m in mean)


def pad_to_square(image: Image.Image, mean: Iterable[float]) -> Image.Image:
    """Centre the image on a square of the processor's mean colour, as LLaVA-1.5's evaluation does."""
    if image.width == image.height:
        return image
    side = max(image.size)
    square = Image.new("RGB", (side, side), pad_colour(mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _decides_pixels(name: str) -> bool:
    return name.startswith("do_") or name in PIXEL_SETTINGS


def _plain(value: Any) -> Any:
    """A setting in JSON's types."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in sorted(value.items()) if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
