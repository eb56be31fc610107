"""Model configs: configs/models/<name>.yaml, and the knobs calibrated for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.core import yamlfile
from harness.core.errors import PrunebenchError, unknown
from harness.core.paths import REPOSITORY
from harness.core.spelling import given

MODEL_CONFIGS = REPOSITORY / "configs" / "models"


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
    """The knobs in configs/<method>/<model>.yaml. Raises PrunebenchError where there is no such file, or none that
    fits."""
    file = MODEL_CONFIGS.parent / method / f"{model.replace('/', '--')}.yaml"
    where = file.relative_to(REPOSITORY)
    if not file.is_file():
        raise PrunebenchError(
            f"{given('budget', 'calibrated')}: expected knobs of {method} for {model} in {where}; there is no such"
            f" file: `prunebench analyze {model}` derives one, or use {given('budget', 'native')} (the published"
            f" defaults) or {given('budget', 64)}"
        )
    try:
        return dict(Calibration(**yamlfile.read(file, "a calibration file")).knobs)
    except ValidationError as error:
        raise PrunebenchError(f"{where}: not a calibration file: {error}") from None


def calibrated_methods(model: str) -> dict[str, dict[str, Any]]:
    """The calibrated knobs of a model by method: every configs/<method>/<model>.yaml."""
    kinds = (MODEL_CONFIGS.name, "ablations")  # the other folders of configs/
    files = sorted(MODEL_CONFIGS.parent.glob(f"*/{model.replace('/', '--')}.yaml"))
    return {f.parent.name: calibrated_knobs(f.parent.name, model) for f in files if f.parent.name not in kinds}


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
