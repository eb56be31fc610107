"""Which model, from where, asked how: names, hub ids and local folders to a loaded model with its processor.

Everything that can be checked without loading weights is checked first, with what to do in the message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.core.budget import Budget
from harness.core.errors import PrunebenchError, unknown
from harness.core.shape import ModelShape, PromptShape
from harness.core.spelling import given
from harness.method import Method, build, method_class
from harness.method.build import own_knobs
from harness.models import jsonfile
from harness.models.adapters import ADAPTERS, ORIGINAL_CLASSES, Adapter, adapter_class, adapter_for
from harness.models.adapters.text_encoder import ClipTextEncoder
from harness.models.config import (
    EMBEDDED,
    ORIGINALS,
    SHOWN,
    ModelConfig,
    calibrated_knobs,
    calibration_key,
    model_config,
)
from harness.models.device import DTYPES, check_quantised, pick_device, pick_dtype, stated_dtype
from harness.models.files import CONFIGS, check_folder, check_weights, weight_files, weight_hash
from harness.models.generation import FILE as GENERATION
from harness.models.generation import check_greedy, end_tokens, repetition_penalty
from harness.models.processor import check_asked, check_packages, check_processor, limited
from harness.models.prompt import Prompter, decided
from harness.models.published import published_prompt
from harness.models.requirements import check, context_of
from harness.models.text_tower import folder_of, with_text_tower
from harness.models.weights import not_finite, stored


@dataclass(frozen=True, kw_only=True)
class LoadedModel(Prompter):
    """A model ready to be asked."""

    model: Any
    adapter: Adapter = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapter", adapter_for(self.model))

    def text_encoder(self, method: Method) -> Callable[[], ClipTextEncoder]:
        """Gives the text encoder that a method reads questions with, loaded when it is first asked for: the one that
        its knob names, else the config's. Raises PrunebenchError where neither does."""
        tower = method.text_tower
        return partial(self._text_encoder, self.config.text_tower if tower is None else tower.source)

    def _text_encoder(self, source: str | None) -> ClipTextEncoder:
        if source is None:
            raise PrunebenchError(
                f"model {self.config.name}: expected text_encoder in its config (the CLIP checkpoint of its vision"
                " tower), for the method reads the question through it; found none: add it to"
                f" configs/models/{self.config.name}.yaml"
            )
        if source not in self._text_encoders:
            self._text_encoders[source] = ClipTextEncoder.load(folder_of(source), self.device, DTYPES[self.dtype])
        return self._text_encoders[source]

    @cached_property
    def _text_encoders(self) -> dict[str, ClipTextEncoder]:
        return {}


@dataclass(frozen=True)
class Located:
    """A model whose files were found and whose config is supported; no weights are loaded yet. `config` has its prompt
    and padding decided."""

    config: ModelConfig
    folder: Path
    revision: str | None
    device: torch.device
    dtype: str

    @cached_property
    def usual(self) -> PromptShape:
        """A prompt of one image as the model is usually asked, without text, from its config alone."""
        config = self._stated
        adapter = adapter_class(config)
        image = adapter.image_of(config) if adapter.one_size else adapter.largest(config, self._processor)
        return adapter.prompt(adapter.shape_of(config, DTYPES[self.dtype].itemsize), image)

    @property
    def _processor(self) -> Any:
        """With the limits that its config sets."""
        own = _processor(self.folder, f"model {self.config.name}")
        return limited(own, self.config, adapter_class(self._stated))

    @property
    def shape(self) -> ModelShape:
        """The decoder's sizes."""
        return self.usual.decoder

    def unproven(self, method: Method | type[Method]) -> str:
        """The family, where the method has official code and no recorded run of it on this family is replayed; else
        ""."""
        adapter = adapter_class(self._stated)
        if method.published is None or adapter.proven is None or method.name in adapter.proven:
            return ""
        return self.architecture

    @property
    def architecture(self) -> str:
        """The model's family, as its checkpoint calls it."""
        return adapter_class(self._stated).architectures[0]

    @cached_property
    def one_size(self) -> bool:
        """Whether every image has the same tokens, whatever its size."""
        return adapter_class(self._stated).one_size

    @property
    def context(self) -> int | None:
        """Tokens that a prompt with its answer may have; None where the config does not say."""
        return context_of(self._stated)

    @property
    def fingerprint(self) -> str:
        """Names the weights: the hub commit, or a hash of the local files that are read."""
        return self.revision or weight_hash(self.folder)

    @property
    def calibration(self) -> str:
        """The name under which knobs that were calibrated for this model are kept."""
        return calibration_key(self.config) or f"{self.config.name}-{self.fingerprint}"

    @property
    def spoken(self) -> str:
        """For the first line of a run: device, number format, prompt and padding."""
        prompt = "Vicuna v1's prompt" if self.config.prompt == "vicuna_v1" else "its own chat template"
        image = "images padded to a square" if self.config.image == "pad" else "images as its processor cuts them"
        for unit, limits in self.config.limits.items():
            least, most = (f"{n:,}" if n else "its own" for n in limits)
            image += f" ({least} to {most} {unit})"
        like = self.config.stands_for
        return f"{self.device} in {self.dtype}, {prompt}, {image}" + (
            f", as {like}" if like and like != self.config.name else ""
        )

    @cached_property
    def _stated(self) -> Any:
        return read_config(self.folder, f"model {self.config.name}")

    def method(
        self,
        name: str,
        budget: Budget,
        knobs: Mapping[str, Any] | None = None,
        n_text: int | None = None,
        usual: PromptShape | None = None,
    ) -> Method:
        """The method at a budget, with this model's own knob defaults below the given ones; checked against its sizes.

        `n_text`: the text length, in tokens, at which a FLOPs budget is solved; such a budget without one raises
        PrunebenchError. `usual`: the prompt that it is solved on, where that is another than the model's own.
        `calibrated` takes the knobs of configs/<method>/<calibration>.yaml below the given ones.
        """
        own = own_knobs(name, self.config.knobs.get(name, {}), self.config.text_tower)
        if budget.unit == "calibrated" and method_class(name).traits.calibrated:
            own |= calibrated_knobs(name, self.calibration)
        if budget.unit == "flops" and n_text is None:
            raise PrunebenchError(
                f"{given('budget', budget)} is solved at a task's mean text length, and no task is known here: use"
                f" `prunebench eval`, or give a number of tokens ({given('budget', 64)} or {given('budget', '64avg')})"
            )
        prompt = (usual or self.usual).with_text(n_text or 0)
        built = build(name, budget, {**own, **(knobs or {})}, prompt)
        return with_text_tower(built, self.usual.images[0].vision.hidden)

    @cached_property
    def prompter(self) -> Prompter:
        """Processor, prompts and names, without weights; raises PrunebenchError where files are broken."""
        processor, label = self._processor, f"model {self.config.name}"
        return Prompter(
            config=self.config,
            stated=self._stated,
            processor=processor,
            device=self.device,
            dtype=self.dtype,
            fingerprint=self.fingerprint,
            revision=self.revision,
            usual=self.usual,
            image_token_id=int(self._stated.image_token_id),
            end_tokens=end_tokens(self.folder, self._stated, processor.tokenizer.eos_token_id, label),
            repetition_penalty=repetition_penalty(self.folder, label),
            context=self.context,
        )

    def load(self) -> LoadedModel:
        """Load the weights, from the hub if need be; raises PrunebenchError where they are broken or do not fit the
        GPU."""
        prompter = self.prompter
        if self.config.hub is not None:
            _fetch(
                self.config.model_copy(update={"revision": self.revision}),
                ["*.safetensors", "*.safetensors.index.json"],
            )
            adapter = adapter_class(self._stated)
            depths, shapes = adapter.depths_of(self._stated), adapter.shapes_of(self._stated)
            check_weights(self.folder, depths, shapes, f"model {self.config.name}")
        _check_memory(self.folder, self.device, self.dtype, stated_dtype(self._stated))
        if self.device.type == "cuda" and self.dtype == "float32":
            # torch lets cuDNN round float32 convolutions to TF32, the tower's patch embedding among them
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        model = _load(self).to(self.device).eval()
        known = {f.name: getattr(prompter, f.name) for f in fields(prompter) if f.init}
        return LoadedModel(**known, model=model)


def locate_model(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    *,
    prompt: str | None = None,
    image: str | None = None,
    stands_for: str | None = None,
) -> Located:
    """Find a model for evaluation. `dtype` auto: the checkpoint's own on CUDA, float32 on the CPU (`pick_dtype`).

    `prompt`, `image` and `stands_for` as in `model_config`. Weights come from safetensors only and no remote code is
    run. Raises PrunebenchError naming what to do for unknown names, unsupported checkpoints, missing files and no hub,
    before anything heavy is loaded.
    """
    config = model_config(name, prompt, image, stands_for)
    target = pick_device(device)
    if dtype not in ("auto", *DTYPES):
        raise unknown("dtype", dtype, DTYPES)
    folder, revision = _locate(config)
    label = f"model {config.name}"
    stated = read_config(folder, label)
    adapter = adapter_class(stated)
    if revision is None:
        check_weights(folder, adapter.depths_of(stated), adapter.shapes_of(stated), label)
    end_tokens(folder, stated, None, label)
    check_greedy(folder, label)
    repetition_penalty(folder, label)
    check_asked(config, adapter, label)
    check_packages(adapter, label)
    processor = limited(_processor(folder, label), config, adapter)
    check_processor(processor, stated, adapter, label)
    config = decided(config, processor, adapter.one_size)
    if config.image == "pad" and not getattr(processor.image_processor, "image_mean", None):
        raise PrunebenchError(
            f"{label}: images are padded with the processor's mean colour; expected image_mean in its"
            f" settings, found none: give {given('image', 'plain')}"
        )
    located = Located(config, folder, revision, target, pick_dtype(dtype, target, stated))
    if stands_for:
        _check_standing(located, stands_for)
    return located


def _check_standing(located: Located, name: str) -> None:
    """Raise PrunebenchError where a checkpoint has other sizes than the shipped config that it is to stand for."""
    usual = published_prompt(name) or locate_model(name, "cpu").usual
    mine, theirs = (replace(p.decoder, bytes_per_value=0) for p in (located.usual, usual))
    if (mine, located.usual.images) != (theirs, usual.images):
        raise PrunebenchError(
            f"{given('as', name)}: expected a model of the sizes of {name} ({usual.depth} layers of {theirs.hidden},"
            f" {usual.n_visual} visual tokens), found {located.config.name} with {located.shape.depth} layers of"
            f" {mine.hidden}, {located.usual.n_visual} visual tokens: leave {given('as')} out"
        )


def _locate(config: ModelConfig) -> tuple[Path, str | None]:
    folder, label = config.folder, f"model {config.name}"
    if folder is not None:
        mend = EMBEDDED.get(config.name, "check the path")
        check_folder(folder, label, mend)
        _check_config(config, folder)
        return folder, None
    _check_config(config, _fetch(config, ["config.json"]))
    folder = _fetch(config, ["*.json", "*.jinja", "*.model"])
    return folder, folder.name


def _fetch(config: ModelConfig, patterns: list[str]) -> Path:
    """The hub's files of these names, in the cache folder named after the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    assert config.hub is not None
    try:
        return Path(snapshot_download(config.hub, revision=config.revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise PrunebenchError(
            f"model {config.name}: {config.hub} could not be fetched from the Hugging Face hub"
            f" ({type(error).__name__}). Connect to the hub, log in if the model is gated, set HF_HOME to a cache that"
            f" holds it, or give a local folder; {given('model', 'mini')} needs no hub"
        ) from None


def _check_config(config: ModelConfig, folder: Path) -> None:
    """Raise PrunebenchError where config.json alone says that a model is not supported."""
    label = f"model {config.name}"
    stated = jsonfile.read(folder / "config.json", label)
    architectures = stated.get("architectures") or ["?"]
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise PrunebenchError(
            f"{label}: {folder / 'config.json'}: expected architectures as a list of names, found"
            f" {jsonfile.kind_of(architectures)}: fetch the model again"
        )
    check_quantised(stated, label)
    if architectures[0] in ORIGINAL_CLASSES:
        raise PrunebenchError(
            f"model {config.name} is an original checkpoint ({architectures[0]}), which transformers does not load: use"
            f" the converted one, as in MODEL=llava-1.5-7b ({ORIGINALS['liuhaotian/llava-v1.5-7b'].twin})"
        )
    if architectures[0] not in ADAPTERS:
        raise PrunebenchError(
            f"model {config.name} is a {architectures[0][:SHOWN]}; prunebench supports {', '.join(ADAPTERS)}"
        )
    check(stated, ADAPTERS[architectures[0]].types, label)


def read_config(folder: Path, label: str) -> Any:
    """The configuration of a checkpoint. Raises PrunebenchError where its family's requirements do not hold."""
    from transformers import AutoConfig

    with _loading(label, folder, "config.json"):
        stated = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    check(stated, adapter_class(stated).requirements, label)
    return stated


def _check_memory(folder: Path, device: torch.device, dtype: str, stored_as: str | None) -> None:
    if device.type != "cuda":
        return
    stored = sum(p.stat().st_size for p in weight_files(folder, f"model {folder.name}"))
    # checkpoints that name no format are stored in 16 bit; activations and the cache of a batch want about a tenth on
    # top
    wider = DTYPES[dtype].itemsize / DTYPES.get(stored_as or "", torch.float16).itemsize
    needed = stored * wider * 1.1
    free, _total = torch.cuda.mem_get_info(device)
    if needed > free:
        raise PrunebenchError(
            f"{folder.name}: expected about {needed / 2**30:.1f} GiB of free memory on {device} for {dtype}, found"
            f" {free / 2**30:.1f}: free the GPU, use {given('dtype', 'bfloat16')}, a smaller model, or"
            f" {given('device', 'cpu')}"
        )


def _mend(label: str) -> str:
    return EMBEDDED.get(label.removeprefix("model "), "fetch the model again, or mend the file")


@contextmanager
def _loading(label: str, folder: Path, what: str = "the files") -> Iterator[None]:
    """Keep transformers quiet, and say which model's files do not load."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except PrunebenchError:
        raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except torch.OutOfMemoryError:
        raise
    except BaseException as error:  # readers of foreign files raise anything; tokenizers' panic is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split()) or "no reason given"
        raise PrunebenchError(
            f"{label}: {what} in {folder} cannot be loaded ({type(error).__name__}: {reason[:240]}): {_mend(label)}"
        ) from None
    finally:
        logging.set_verbosity(verbosity)


def _processor(folder: Path, label: str) -> Any:
    """The processor of a checkpoint; read once as long as its files stay as they are."""
    stamps = tuple(
        (name, seen.st_size, seen.st_mtime_ns)
        for name in CONFIGS
        if (folder / name).exists()
        for seen in [(folder / name).stat()]
    )
    return _read_processor(folder, label, stamps)


@lru_cache(maxsize=4)
def _read_processor(folder: Path, label: str, stamps: tuple[tuple[str, int, int], ...]) -> Any:
    from transformers import AutoProcessor

    with _loading(label, folder, "processor and tokenizer"):
        return AutoProcessor.from_pretrained(folder, use_fast=True, local_files_only=True, trust_remote_code=False)


def _load(located: Located) -> nn.Module:
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, GenerationConfig

    folder, label, dtype = located.folder, f"model {located.config.name}", DTYPES[located.dtype]
    with _loading(label, folder, "the weights"):
        model, info = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(located._stated)].from_pretrained(
            None,
            config=located._stated,
            state_dict=stored(weight_files(folder, label), dtype),
            dtype=dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
        # as from_pretrained does with a folder
        model.name_or_path = model.config.name_or_path = str(folder)
        if (folder / GENERATION).exists():
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    mend = _mend(label)
    if info["mismatched_keys"]:
        name, found, expected = min(info["mismatched_keys"])
        raise PrunebenchError(
            f"{label}: {len(info['mismatched_keys'])} tensors in {folder} have other shapes than config.json says,"
            f" first {name}: expected {tuple(expected)}, found {tuple(found)}: {mend}"
        )
    # from_pretrained gives random values to weights a checkpoint lacks and only warns; a guess is not an answer
    if info["missing_keys"]:
        lacking = sorted(info["missing_keys"])
        raise PrunebenchError(
            f"{label}: the weights in {folder} lack {len(lacking)} tensors, first {lacking[0]}: {mend}"
        )
    # buffers that modules compute themselves, and tied copies, are not among them
    if info["unexpected_keys"]:
        surplus = sorted(info["unexpected_keys"])
        raise PrunebenchError(
            f"{label}: the weights in {folder} hold {len(surplus)} tensors that config.json has no place for, first"
            f" {surplus[0]}: a part of the model would be left out; {mend}"
        )
    stray = not_finite(model)
    if stray is not None:
        raise PrunebenchError(f"{label}: weights of {stray} in {folder} hold nan or inf: {mend}")
    loaded: nn.Module = model
    return loaded
