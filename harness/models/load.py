"""Which model, from where, asked how: names, hub ids and local folders to a loaded model with its processor.

Everything that can be checked without loading weights is checked first, with what to do in the message.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.core.budget import Budget
from harness.core.errors import PrunebenchError, unknown
from harness.core.shape import ModelShape, PromptShape
from harness.core.spelling import given
from harness.method import Method, build, method_class
from harness.models.adapters import ADAPTERS, ORIGINAL_CLASSES, Adapter, adapter_class, adapter_for
from harness.models.adapters.text_encoder import ClipTextEncoder
from harness.models.config import ORIGINALS, ModelConfig, calibrated_knobs, model_config
from harness.models.device import DTYPES, check_quantised, pick_device
from harness.models.prompt import Prompter


@dataclass(frozen=True, kw_only=True)
class LoadedModel(Prompter):
    """A model ready to be asked."""

    model: Any
    adapter: Adapter = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapter", adapter_for(self.model))

    def text_encoder(self) -> ClipTextEncoder:
        """The text encoder of the model's vision tower, loaded when it is first asked for. Raises PrunebenchError where
        the config names none."""
        return self._text_encoder

    @cached_property
    def _text_encoder(self) -> ClipTextEncoder:
        source = self.config.text_encoder
        if source is None:
            raise PrunebenchError(
                f"model {self.config.name}: expected text_encoder in its config (the CLIP checkpoint of its vision"
                " tower), for the method reads the question through it; found none: add it to"
                f" configs/models/{self.config.name}.yaml"
            )
        return ClipTextEncoder.load(source, self.device, DTYPES[self.dtype])


def weight_hash(folder: Path) -> str:
    """16 hex of SHA-256 over the weight and tokenizer files that decide what a local model answers."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json", ".jinja")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Located:
    """A model whose files were found and whose config is supported; no weights are loaded yet."""

    config: ModelConfig
    folder: Path
    revision: str | None
    device: torch.device
    dtype: str

    @cached_property
    def usual(self) -> PromptShape:
        """A prompt of one image as the model is usually asked, without text, from its config alone."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.folder)
        adapter = adapter_class(config)
        return PromptShape(adapter.shape_of(config, DTYPES[self.dtype].itemsize), (adapter.image_of(config),))

    @property
    def shape(self) -> ModelShape:
        """The decoder's sizes."""
        return self.usual.decoder

    def method(
        self, name: str, budget: Budget, knobs: Mapping[str, Any] | None = None, n_text: int | None = None
    ) -> Method:
        """The method at a budget, with this model's own knob defaults below the given ones; checked against its sizes.

        `n_text`: the text length, in tokens, at which a FLOPs budget is solved; such a budget without one raises
        PrunebenchError. `calibrated` takes the knobs of configs/<method>/<model>.yaml below the given ones.
        """
        own = dict(self.config.knobs.get(name, {}))
        if budget.unit == "calibrated" and method_class(name).traits.calibrated:
            own |= calibrated_knobs(name, self.config.name)
        if budget.unit == "flops" and n_text is None:
            raise PrunebenchError(
                f"{given('budget', budget)} is solved at a task's mean text length, and no task is known here: use"
                f" `prunebench eval`, or give a number of tokens ({given('budget', 64)} or {given('budget', '64avg')})"
            )
        return build(name, budget, {**own, **(knobs or {})}, self.usual.with_text(n_text or 0))

    @cached_property
    def prompter(self) -> Prompter:
        """Processor, prompts and names, without weights; raises PrunebenchError where files are broken."""
        from transformers import AutoConfig

        token = AutoConfig.from_pretrained(self.folder).image_token_id
        return Prompter(
            config=self.config,
            processor=_processor(self.config, self.folder),
            device=self.device,
            dtype=self.dtype,
            fingerprint=self.revision or weight_hash(self.folder),
            revision=self.revision,
            usual=self.usual,
            image_token_id=int(token),
        )

    def load(self) -> LoadedModel:
        """Load the weights, from the hub if need be; raises PrunebenchError where they are broken or do not fit the
        GPU."""
        if self.config.hub is not None:
            _fetch(
                self.config.model_copy(update={"revision": self.revision}),
                ["*.safetensors", "*.safetensors.index.json"],
            )
        _check_memory(self.folder, self.device, self.dtype)
        if self.device.type == "cuda" and self.dtype == "float32":
            # torch lets cuDNN round float32 convolutions to TF32, the tower's patch embedding among them
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        prompter = self.prompter
        model = _load(self.config, self.folder, self.dtype).to(self.device).eval()
        known = {f.name: getattr(prompter, f.name) for f in fields(prompter) if f.init}
        return LoadedModel(**known, model=model)


def locate_model(name: str, device: str = "auto", dtype: str = "auto") -> Located:
    """Find a model for evaluation: bfloat16 on CUDA and float32 on the CPU unless `dtype` says otherwise.

    Weights come from safetensors only and no remote code is run. Raises PrunebenchError naming what to do for unknown
    names, unsupported architectures, missing files and no hub, before anything heavy is loaded.
    """
    config = model_config(name)
    target = pick_device(device)
    if dtype == "auto":
        dtype = "bfloat16" if target.type == "cuda" else "float32"
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    folder, revision = _locate(config)
    _check_config(config, folder)
    return Located(config, folder, revision, target, dtype)


def _locate(config: ModelConfig) -> tuple[Path, str | None]:
    folder = config.folder
    if folder is not None:
        mend = "run `make mini`, or restore it with `git checkout`" if config.name == "mini" else "check the path"
        for needed in ("config.json", "tokenizer.json", "processor_config.json"):
            if not (folder / needed).is_file():
                raise PrunebenchError(f"model {config.name}: expected {needed} in {folder}, found none: {mend}")
        if not list(folder.glob("*.safetensors")):
            raise PrunebenchError(
                f"model {config.name}: expected *.safetensors weights in {folder}, found none: {mend}"
            )
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
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise PrunebenchError(
            f"model {config.name}: {config.hub} could not be fetched from the Hugging Face hub"
            f" ({type(error).__name__}). Connect to the hub, log in if the model is gated, set HF_HOME to a cache that"
            f" holds it, or give a local folder; {given('model', 'mini')} needs no hub"
        ) from None


def _check_config(config: ModelConfig, folder: Path) -> None:
    try:
        stated = json.loads((folder / "config.json").read_text())
        architectures = stated.get("architectures") or ["?"]
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise PrunebenchError(
            f"model {config.name}: {folder / 'config.json'} is not JSON: fetch the model again"
        ) from None
    check_quantised(stated, f"model {config.name}")
    if architectures[0] in ORIGINAL_CLASSES:
        raise PrunebenchError(
            f"model {config.name} is an original checkpoint ({architectures[0]}), which transformers does not load: use"
            f" the converted one, as in MODEL=llava-1.5-7b ({ORIGINALS['liuhaotian/llava-v1.5-7b'].twin})"
        )
    if architectures[0] not in ADAPTERS:
        raise PrunebenchError(f"model {config.name} is a {architectures[0]}; prunebench supports {', '.join(ADAPTERS)}")


def _check_memory(folder: Path, device: torch.device, dtype: str) -> None:
    if device.type != "cuda":
        return
    stored = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    # checkpoints are stored in 16 bit; activations and the cache of a batch want about a tenth on top
    needed = stored * (2 if dtype == "float32" else 1) * 1.1
    free, _total = torch.cuda.mem_get_info(device)
    if needed > free:
        raise PrunebenchError(
            f"{folder.name}: expected about {needed / 2**30:.1f} GiB of free memory on {device} for {dtype}, found"
            f" {free / 2**30:.1f}: free the GPU, use {given('dtype', 'bfloat16')}, a smaller model, or"
            f" {given('device', 'cpu')}"
        )


def _mend(config: ModelConfig) -> str:
    return "run `make mini`, or restore it with `git checkout`" if config.name == "mini" else "fetch the model again"


@contextmanager
def _loading(config: ModelConfig, folder: Path) -> Iterator[None]:
    """Keep transformers quiet, and say which model's files do not load."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PrunebenchError(
            f"model {config.name}: the files in {folder} do not load ({type(error).__name__}: {first}): {_mend(config)}"
        ) from None
    finally:
        logging.set_verbosity(verbosity)


def _processor(config: ModelConfig, folder: Path) -> Any:
    from transformers import AutoProcessor

    with _loading(config, folder):
        return AutoProcessor.from_pretrained(folder, use_fast=True)


def _load(config: ModelConfig, folder: Path, dtype: str) -> nn.Module:
    from transformers import AutoModelForImageTextToText

    with _loading(config, folder):
        model, info = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=DTYPES[dtype], use_safetensors=True, attn_implementation="sdpa", output_loading_info=True
        )
    mend = _mend(config)
    # from_pretrained gives random values to weights a checkpoint lacks and only warns; a guess is not an answer
    if info["missing_keys"]:
        lacking = sorted(info["missing_keys"])
        raise PrunebenchError(
            f"model {config.name}: the weights in {folder} lack {len(lacking)} tensors, first {lacking[0]}: {mend}"
        )
    stray = [n for n, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    if stray:
        raise PrunebenchError(f"model {config.name}: weights of {stray[0]} in {folder} hold nan or inf: {mend}")
    loaded: nn.Module = model
    return loaded
