"""Which model, from where, asked how: names, hub ids and local folders to a loaded model with its processor.

Everything that can be checked without loading weights is checked first, with what to do in the message.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from harness.core import yamlfile
from harness.core.budget import Budget
from harness.core.errors import PrunebenchError, unknown
from harness.core.paths import REPOSITORY
from harness.core.shape import ModelShape, PromptShape
from harness.method import Method, build, method_class
from harness.models.adapters import ADAPTERS, Adapter, adapter_class, adapter_for
from harness.models.adapters.text_encoder import ClipTextEncoder

MODEL_CONFIGS = REPOSITORY / "configs" / "models"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Vicuna v1's conversation as LLaVA-1.5 was trained and evaluated with it
VICUNA_V1 = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the user's questions. USER: <image>\n{text} ASSISTANT:"
)


class ModelConfig(BaseModel):
    """One file of configs/models/. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    path: str | None = None
    hub: str | None = None
    revision: str | None = None
    prompt: Literal["vicuna_v1", "chat_template"] = "vicuna_v1"
    image: Literal["plain", "pad"] = "pad"
    knobs: dict[str, dict[str, Any]] = {}
    default_limit: int | None = None
    #: hub id or folder of the CLIP checkpoint whose text tower belongs to the vision tower
    text_encoder: str | None = None


class Calibration(BaseModel):
    """One file of configs/<method>/: knobs derived for one model, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    knobs: dict[str, Any]
    derived_by: str


def calibrated_knobs(method: str, model: str) -> dict[str, Any]:
    """The knobs in configs/<method>/<model>.yaml. Raises PrunebenchError where there is no such file, or none that fits."""
    file = MODEL_CONFIGS.parent / method / f"{model.replace('/', '--')}.yaml"
    where = file.relative_to(REPOSITORY)
    if not file.is_file():
        raise PrunebenchError(
            f"BUDGET=calibrated: expected knobs of {method} for {model} in {where}; there is no such file: "
            f"`prunebench analyze {model}` derives one, or use BUDGET=native (the published defaults) or BUDGET=64"
        )
    try:
        return dict(Calibration(**yamlfile.read(file, "a calibration file")).knobs)
    except ValidationError as error:
        raise PrunebenchError(f"{where}: not a calibration file: {error}") from None


def known_models() -> list[str]:
    return sorted(p.stem for p in MODEL_CONFIGS.glob("*.yaml"))


def model_config(name: str) -> ModelConfig:
    """The configuration behind a name, a local folder or a hub id ("owner/model").

    Raises PrunebenchError for an unknown name and for a config file that does not fit.
    """
    file = MODEL_CONFIGS / f"{name}.yaml"
    if file.is_file():
        try:
            return ModelConfig(**yamlfile.read(file, "a model config"))
        except ValidationError as error:
            raise PrunebenchError(f"{file}: not a model config: {error}") from None
    if Path(name).is_dir():
        return ModelConfig(name=Path(name).resolve().name, path=str(Path(name).resolve()))
    if name.count("/") == 1 and not name.startswith((".", "/")):
        return ModelConfig(name=name, hub=name)
    raise unknown("model", name, known_models())


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises PrunebenchError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise PrunebenchError(f"DEVICE={device!r} is no device: expected auto, cpu, cuda or cuda:N") from None
    if picked.type == "cuda" and (not torch.cuda.is_available() or (picked.index or 0) >= torch.cuda.device_count()):
        raise PrunebenchError(
            f"DEVICE={device}: expected a CUDA device, found {torch.cuda.device_count()}: use DEVICE=cpu, "
            "or check the driver and the torch build with `prunebench doctor`"
        )
    if picked.type not in ("cpu", "cuda"):
        raise PrunebenchError(f"DEVICE={device!r} is not supported: expected auto, cpu, cuda or cuda:N")
    return picked


@dataclass(frozen=True, kw_only=True)
class Front:
    """What of a model needs no weights: its processor, prompts, and the names under which results are kept.

    `fingerprint` names the weights: the hub commit, or a hash of the local weight files. `usual`: a prompt of one image as the model is asked them.
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
        rendered: str = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
        if rendered.count("{text}") != 1 or rendered.count("<image>") != 1:
            raise PrunebenchError(f"{self.config.name}: its chat template lost the image or the question; it renders {rendered!r}")
        return rendered

    @property
    def template_hash(self) -> str:
        return hashlib.sha256(f"{self.template}\0{self.config.image}".encode()).hexdigest()[:12]

    @property
    def image_backend(self) -> str:
        kind = type(self.processor.image_processor).__name__
        return f"{kind}+{self.config.image}"

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """(1, 3, h, w) on the device, through the model's own image processor."""
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
                f"{self.config.name}: expected {n} image tokens in the prompt, found {found}: does the question itself hold '<image>'?"
            )
        return ids


@dataclass(frozen=True, kw_only=True)
class LoadedModel(Front):
    """A model ready to be asked."""

    model: Any
    adapter: Adapter = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapter", adapter_for(self.model))

    def text_encoder(self) -> ClipTextEncoder:
        """The text encoder of the model's vision tower, loaded when it is first asked for. Raises PrunebenchError where the config names none."""
        return self._text_encoder

    @cached_property
    def _text_encoder(self) -> ClipTextEncoder:
        source = self.config.text_encoder
        if source is None:
            raise PrunebenchError(
                f"model {self.config.name}: expected text_encoder in its config (the CLIP checkpoint of its vision tower), for the method reads the "
                f"question through it; found none: add it to configs/models/{self.config.name}.yaml"
            )
        return ClipTextEncoder.load(source, self.device, DTYPES[self.dtype])


def pad_to_square(image: Image.Image, mean: list[float]) -> Image.Image:
    """Centre the image on a square of the processor's mean colour, as LLaVA-1.5's evaluation does."""
    if image.width == image.height:
        return image
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * m) for m in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


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

    def method(self, name: str, budget: Budget, knobs: Mapping[str, Any] | None = None, n_text: int | None = None) -> Method:
        """The method at a budget, with this model's own knob defaults below the given ones; checked against its sizes.

        `n_text`: the text length, in tokens, at which a FLOPs budget is solved; such a budget without one raises PrunebenchError.
        `calibrated` takes the knobs of configs/<method>/<model>.yaml below the given ones.
        """
        own = dict(self.config.knobs.get(name, {}))
        if budget.unit == "calibrated" and method_class(name).traits.calibrated:
            own |= calibrated_knobs(name, self.config.name)
        if budget.unit == "flops" and n_text is None:
            raise PrunebenchError(
                f"BUDGET={budget} is solved at a task's mean text length, and no task is known here: "
                "use `prunebench eval`, or give a number of tokens (BUDGET=64 or BUDGET=64avg)"
            )
        return build(name, budget, {**own, **(knobs or {})}, self.usual.with_text(n_text or 0))

    @cached_property
    def front(self) -> Front:
        """Processor, prompts and names, without weights; raises PrunebenchError where files are broken."""
        from transformers import AutoConfig

        token = AutoConfig.from_pretrained(self.folder).image_token_id
        return Front(
            config=self.config, processor=_processor(self.config, self.folder), device=self.device, dtype=self.dtype,
            fingerprint=self.revision or weight_hash(self.folder), revision=self.revision, usual=self.usual, image_token_id=int(token),
        )  # fmt: skip

    def load(self) -> LoadedModel:
        """Load the weights, from the hub if need be; raises PrunebenchError where they are broken or do not fit the GPU."""
        if self.config.hub is not None:
            _fetch(self.config.model_copy(update={"revision": self.revision}), ["*.safetensors", "*.safetensors.index.json"])
        _check_memory(self.folder, self.device, self.dtype)
        if self.device.type == "cuda" and self.dtype == "float32":
            # torch lets cuDNN round float32 convolutions to TF32, the tower's patch embedding among them
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        front = self.front
        model = _load(self.config, self.folder, self.dtype).to(self.device).eval()
        known = {f.name: getattr(front, f.name) for f in fields(front) if f.init}
        return LoadedModel(**known, model=model)


def locate_model(name: str, device: str = "auto", dtype: str = "auto") -> Located:
    """Find a model for evaluation: bfloat16 on CUDA and float32 on the CPU unless `dtype` says otherwise.

    Weights come from safetensors only and no remote code is run. Raises PrunebenchError naming what to do for unknown names,
    unsupported architectures, missing files and no hub, before anything heavy is loaded.
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
    if config.path is not None:
        folder = Path(config.path)
        folder = folder if folder.is_absolute() else REPOSITORY / folder
        mend = "run `make mini`, or restore it with `git checkout`" if config.name == "mini" else "check the path"
        for needed in ("config.json", "tokenizer.json", "processor_config.json"):
            if not (folder / needed).is_file():
                raise PrunebenchError(f"model {config.name}: expected {needed} in {folder}, found none: {mend}")
        if not list(folder.glob("*.safetensors")):
            raise PrunebenchError(f"model {config.name}: expected *.safetensors weights in {folder}, found none: {mend}")
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
            f"model {config.name}: {config.hub} could not be fetched from the Hugging Face hub ({type(error).__name__}). "
            "Connect to the hub, log in if the model is gated, set HF_HOME to a cache that holds it, or give a local folder as MODEL; "
            "MODEL=mini needs no hub"
        ) from None


def _check_config(config: ModelConfig, folder: Path) -> None:
    try:
        architectures = json.loads((folder / "config.json").read_text()).get("architectures") or ["?"]
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise PrunebenchError(f"model {config.name}: {folder / 'config.json'} is not JSON: fetch the model again") from None
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
            f"{folder.name}: expected about {needed / 2**30:.1f} GiB of free memory on {device} for {dtype}, found {free / 2**30:.1f}: "
            "free the GPU, use DTYPE=bfloat16, a smaller model, or DEVICE=cpu"
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
        raise PrunebenchError(f"model {config.name}: the weights in {folder} lack {len(lacking)} tensors, first {lacking[0]}: {mend}")
    stray = [n for n, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    if stray:
        raise PrunebenchError(f"model {config.name}: weights of {stray[0]} in {folder} hold nan or inf: {mend}")
    loaded: nn.Module = model
    return loaded
