"""Model configs: configs/models/<name>.yaml, and the knobs calibrated for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.core import yamlfile
from harness.core.errors import PrunebenchError, unknown
from harness.core.paths import CHECKOUT, DATA, TOP
from harness.core.spelling import given

MODEL_CONFIGS = DATA / "configs" / "models"


class Converted(NamedTuple):
    """The twin of an original checkpoint that transformers loads, and our name for it."""

    twin: str
    name: str


#: hub ids of checkpoints in LLaVA's own format
ORIGINALS = {
    f"liuhaotian/llava-v1.5-{size}": Converted(f"llava-hf/llava-1.5-{size}-hf", f"llava-1.5-{size}")
    for size in ("7b", "13b")
}


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
    default_limit: yamlfile.Whole | None = None
    #: hub id or folder of the CLIP checkpoint whose text tower belongs to the vision tower
    text_encoder: str | None = None

    @property
    def folder(self) -> Path | None:
        """`path`; a relative one starts where tasks/ lies. None: the model is the hub's."""
        return None if self.path is None else TOP / self.path


class Calibration(BaseModel):
    """One file of configs/<method>/: knobs derived for one model, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    knobs: dict[str, Any]
    derived_by: str


def calibrated_knobs(method: str, model: str) -> dict[str, Any]:
    """The knobs in configs/<method>/<model>.yaml. Raises PrunebenchError where there is no such file, or none that
    fits."""
    own = calibration_file(method, model)
    where = own.relative_to(own.parents[2])
    file = own if own.is_file() else MODEL_CONFIGS.parents[1] / where
    if not file.is_file():
        raise PrunebenchError(
            f"{given('budget', 'calibrated')}: expected knobs of {method} for {model} in {where}; there is no such"
            f" file: `prunebench analyze {model}` derives one, or use {given('budget', 'native')} (the published"
            f" defaults) or {given('budget', 64)}"
        )
    try:
        return dict(Calibration(**yamlfile.read(file, "a calibration file")).knobs)
    except ValidationError as error:
        raise PrunebenchError(f"{where}: not a calibration file: {yamlfile.said(error, {'': Calibration})}") from None


def calibration_file(method: str, model: str) -> Path:
    """configs/<method>/<model>.yaml, in which knobs derived for a model are kept: the checkout's, or the working
    directory's where prunebench is installed."""
    top = Path.cwd() if CHECKOUT is None else MODEL_CONFIGS.parents[1]
    return top / "configs" / method / f"{model.replace('/', '--')}.yaml"


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
        config = model_config(name)
        local = config.folder is not None and Path(source).is_dir() and config.folder.samefile(source)
        if local or (config.hub is not None and config.hub == source):
            return config
    return None


def model_config(name: str) -> ModelConfig:
    """The configuration behind a name, a local folder or a hub id ("owner/model").

    Raises PrunebenchError for an unknown name and for a config file that does not fit.
    """
    file = MODEL_CONFIGS / f"{name}.yaml"
    if file.is_file():
        try:
            return ModelConfig(**yamlfile.read(file, "a model config"))
        except ValidationError as error:
            raise PrunebenchError(f"{file}: not a model config: {yamlfile.said(error, {'': ModelConfig})}") from None
    if Path(name).is_dir():
        return ModelConfig(name=Path(name).resolve().name, path=str(Path(name).resolve()))
    if name in ORIGINALS:
        twin, ours = ORIGINALS[name]
        raise PrunebenchError(
            f"model {name} is an original checkpoint, which transformers does not load: use its converted twin,"
            f" MODEL={ours} ({twin})"
        )
    if name.count("/") == 1 and not name.startswith((".", "/")):
        return ModelConfig(name=name, hub=name)
    raise unknown("model", name, known_models())
