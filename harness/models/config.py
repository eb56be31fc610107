"""Model configs: configs/models/<name>.yaml, and the knobs calibrated for a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.core import yamlfile
from harness.core.errors import PrunebenchError, unknown
from harness.core.paths import CHECKOUT, DATA, TOP
from harness.core.spelling import given

MODEL_CONFIGS = DATA / "configs" / "models"
#: the models whose weights are in this repository, and what mends their folders
EMBEDDED = {
    "mini": "run `make mini`, or restore it with `git checkout`",
    "mini-qwen": "run `make mini MODEL=mini-qwen`, or restore it with `git checkout`",
}


class Converted(NamedTuple):
    """The twin of an original checkpoint that transformers loads, and our name for it."""

    twin: str
    name: str


#: hub ids of checkpoints in LLaVA's own format
ORIGINALS = {
    f"liuhaotian/llava-v1.5-{size}": Converted(f"llava-hf/llava-1.5-{size}-hf", f"llava-1.5-{size}")
    for size in ("7b", "13b")
}


Template = Literal["vicuna_v1", "chat_template"]
Padding = Literal["plain", "pad"]


class ModelConfig(BaseModel):
    """One file of configs/models/, or a checkpoint that has none. Unknown keys are refused.

    `prompt` and `image` None: as the checkpoint itself says, which is decided where its files are read. `system`: the
    system prompt that its chat template is given; None: none, which a template may fill. `min_pixels`, `max_pixels`: of
    an image as the processor resizes it, for families of images of any size; `min_patches`, `max_patches`: of the tiles
    that it is cut into, as InternVL's processor calls them; None: as its own settings say.
    `stands_for`: the file of configs/models/ that it is, or was said to be; "" for none. A name decides nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    path: str | None = None
    hub: str | None = None
    revision: str | None = None
    prompt: Template | None = None
    image: Padding | None = None
    system: str | None = None
    min_pixels: Annotated[yamlfile.Whole, Field(ge=1)] | None = None
    max_pixels: Annotated[yamlfile.Whole, Field(ge=1)] | None = None
    min_patches: Annotated[yamlfile.Whole, Field(ge=1)] | None = None
    max_patches: Annotated[yamlfile.Whole, Field(ge=1)] | None = None
    stands_for: str = ""
    knobs: dict[str, dict[str, Any]] = {}
    default_limit: yamlfile.Whole | None = None
    #: hub id or folder of the CLIP checkpoint whose text tower belongs to the vision tower; a relative folder as `path`
    text_encoder: str | None = None

    @property
    def folder(self) -> Path | None:
        """`path`; a relative one starts where tasks/ lies. None: the model is the hub's."""
        return None if self.path is None else TOP / self.path

    @property
    def limits(self) -> dict[str, tuple[int | None, int | None]]:
        """What it limits of an image: the least and the most by unit, "pixels" or "tiles"."""
        found = {"pixels": (self.min_pixels, self.max_pixels), "tiles": (self.min_patches, self.max_patches)}
        return {unit: limits for unit, limits in found.items() if limits != (None, None)}

    @property
    def text_tower(self) -> str | None:
        """`text_encoder` as it is loaded: a hub id, or a folder from anywhere."""
        if self.text_encoder is None or not (TOP / self.text_encoder).is_dir():
            return self.text_encoder
        return str(TOP / self.text_encoder)


class Calibration(BaseModel):
    """One file of configs/<method>/: knobs derived for one model, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    knobs: dict[str, Any]
    derived_by: str


def calibrated_knobs(method: str, key: str) -> dict[str, Any]:
    """The knobs in configs/<method>/<key>.yaml. Raises PrunebenchError where there is no such file, or none that
    fits. `key`: `Located.calibration`."""
    own = calibration_file(method, key)
    where = own.relative_to(own.parents[2])
    file = own if own.is_file() else MODEL_CONFIGS.parents[1] / where
    if not file.is_file():
        raise PrunebenchError(
            f"{given('budget', 'calibrated')}: expected knobs of {method} for {key} in {where}; there is no such"
            f" file: `prunebench analyze MODEL --method {method} --write-config` derives one, or use"
            f" {given('budget', 'native')} (the published defaults) or {given('budget', 64)}"
        )
    try:
        return dict(Calibration(**yamlfile.read(file, "a calibration file")).knobs)
    except ValidationError as error:
        raise PrunebenchError(f"{where}: not a calibration file: {yamlfile.said(error, {'': Calibration})}") from None


def calibration_key(config: ModelConfig) -> str | None:
    """The name under which knobs calibrated for a model are kept: the shipped config that it stands for, or its hub id.

    None for a folder, whose name says nothing about its weights: its name with its fingerprint is the key.
    """
    return config.stands_for or config.hub


def calibration_file(method: str, key: str) -> Path:
    """configs/<method>/<key>.yaml, in which knobs derived for a model are kept: the checkout's, or the working
    directory's where prunebench is installed."""
    top = Path.cwd() if CHECKOUT is None else MODEL_CONFIGS.parents[1]
    return top / "configs" / method / f"{key.replace('/', '--')}.yaml"


def calibrated_methods(model: str) -> dict[str, dict[str, Any]]:
    """The calibrated knobs of a model by method: every configs/<method>/<model>.yaml."""
    kinds = (MODEL_CONFIGS.name, "ablations")  # the other folders of configs/
    files = sorted(MODEL_CONFIGS.parent.glob(f"*/{model.replace('/', '--')}.yaml"))
    return {f.parent.name: calibrated_knobs(f.parent.name, model) for f in files if f.parent.name not in kinds}


def known_models() -> list[str]:
    return sorted(p.stem for p in MODEL_CONFIGS.glob("*.yaml"))


def config_of_checkpoint(source: str) -> ModelConfig | None:
    """The config in configs/models/ of a checkpoint that was loaded from this hub id or folder; None where there is
    none."""
    for name in known_models():
        try:
            config = _shipped(name)
        except PrunebenchError:  # said where it is asked for by its name, and no reason to refuse another model
            continue
        folder = config.folder
        if config.hub == source or (folder is not None and _is_folder(source) and _same(folder, Path(source))):
            return config
    return None


def model_config(
    name: str, prompt: str | None = None, image: str | None = None, stands_for: str | None = None
) -> ModelConfig:
    """The configuration behind a name, a local folder or a hub id ("owner/model").

    `prompt` and `image` are used in place of its own. `stands_for`: the shipped config whose knobs, calibration,
    prompt and padding hold for this checkpoint. Raises PrunebenchError for an unknown name, and for a config file that
    does not fit.
    """
    config = _named(name)
    changes: dict[str, Any] = {}
    if stands_for:
        shipped = _standing(stands_for)
        asked = ("prompt", "image", "system", "min_pixels", "max_pixels", "min_patches", "max_patches")
        keys = (*asked, "knobs", "default_limit", "text_encoder", "stands_for")
        changes = {key: getattr(shipped, key) for key in keys}
    for option, value, kinds in (("prompt", prompt, Template), ("image", image, Padding)):
        if value:
            if value not in get_args(kinds):
                raise unknown(option, value[:SHOWN], get_args(kinds))
            changes[option] = value
    return config.model_copy(update=changes)


#: characters of a strange name that are shown
SHOWN = 80
_PLAIN = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def _named(name: str) -> ModelConfig:
    if _PLAIN.fullmatch(name) and (MODEL_CONFIGS / f"{name}.yaml").is_file():
        return _shipped(name)
    if _is_folder(name):
        known = config_of_checkpoint(name)
        return known or ModelConfig(name=_folder_name(name), path=str(Path(name).absolute()))
    if name in ORIGINALS:
        twin, ours = ORIGINALS[name]
        raise PrunebenchError(
            f"model {name} is an original checkpoint, which transformers does not load: use its converted twin,"
            f" MODEL={ours} ({twin})"
        )
    if name.startswith((".", "/", "~")):
        raise PrunebenchError(f"{given('model', name[:SHOWN])}: expected a folder, found none there: check the path")
    if "/" in name:
        return config_of_checkpoint(name) or _of_hub(name)
    raise unknown("model", name[:SHOWN], known_models())


def _of_hub(name: str) -> ModelConfig:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
        if name.count("/") != 1 or not name.isprintable():
            raise HFValidationError
    except HFValidationError:
        raise PrunebenchError(
            f"{given('model', name[:SHOWN])}: expected a name ({', '.join(known_models())}), a folder that is there, or"
            f" a hub id as owner/model in letters, digits, '-', '_' and '.'"
        ) from None
    return ModelConfig(name=name, hub=name)


def _standing(name: str) -> ModelConfig:
    if name not in known_models():
        raise unknown("model", name[:SHOWN], known_models())
    return _shipped(name)


def _shipped(name: str) -> ModelConfig:
    """A file of configs/models/, which stands for itself."""
    file = MODEL_CONFIGS / f"{name}.yaml"
    body = yamlfile.read(file, "a model config")
    if "stands_for" in body:
        raise PrunebenchError(f"{file}: not a model config: stands_for is no key of one: take it out")
    try:
        return ModelConfig(**body, stands_for=name)
    except ValidationError as error:
        raise PrunebenchError(f"{file}: not a model config: {yamlfile.said(error, {'': ModelConfig})}") from None


def _is_folder(name: str) -> bool:
    try:
        return bool(name) and Path(name).is_dir()
    except (OSError, ValueError):  # longer than a name of a file may be, or no text of one
        return False


def _same(one: Path, other: Path) -> bool:
    return one.is_dir() and one.samefile(other)


def _folder_name(name: str) -> str:
    """The last part of the path as it was given: a link's own name, not that of the folder it leads to."""
    last = Path(name).absolute().name
    return (Path(name).resolve().name if last in ("", "..") else last) or "root"
