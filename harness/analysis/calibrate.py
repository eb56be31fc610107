"""Knobs of VTW and FitPrune for a model, by the rules of their official code: `prunebench analyze MODEL --method vtw`.

Neither needs knock-outs: VTW compares next-token distributions, and FitPrune reads attention of the unpruned model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from harness.analysis import fitting, withdrawal
from harness.analysis.asker import Asker
from harness.analysis.observe import rounded
from harness.core.errors import PrunebenchError
from harness.core.spelling import given
from harness.models.load import Located
from methods.fitprune import NATIVE
from methods.vtw import ETA, ETA_13B, ETA_NEXT, FIRST_TRIED, first_within

Say = Callable[[str], None]
#: decoder layers of LLaVA-1.5-13B, which has a bound of its own
LAYERS_OF_13B = 40


@dataclass(frozen=True)
class Derived:
    """`knobs`: None where the rule finds none, and `notes` say why. `measured`: what decided, for the document."""

    knobs: dict[str, Any] | None
    criterion: str
    measured: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def check(eta: float | None, ratio: float | None) -> None:
    """Raise PrunebenchError for a bound or a share of FLOPs that no rule can take; None is the official one."""
    if eta is not None and not eta > 0:
        raise PrunebenchError(f"--eta {eta}: expected a divergence above 0, in nats")
    if ratio is not None and not 0 < ratio < 1:
        raise PrunebenchError(f"--ratio {ratio}: expected the share of FLOPs to save, between 0 and 1")


def check_model(method: str, located: Located) -> None:
    """Raise PrunebenchError where the rule of a method cannot be applied to a model, known from its config alone."""
    depth = located.shape.depth
    if method == "vtw" and not withdrawal.tried_layers(depth):
        raise PrunebenchError(
            f"vtw's rule tries layers from {FIRST_TRIED} on: expected more than that, found {depth} decoder layers"
        )
    if method == "fitprune" and not located.one_size:
        raise PrunebenchError(
            "fitprune's official schedule counts the tokens that leave in each layer: expected images of one number of"
            f" tokens, found images of {located.config.name}, which differ: use {given('budget', '25%')}, a share that"
            " needs no calibration"
        )


def bound(located: Located) -> float:
    """The official bound of VTW's rule for a model: by its decoder layers, and whether the tiles of
    its images make one raster, as LLaVA-NeXT's."""
    if located.shape.depth >= LAYERS_OF_13B:
        return ETA_13B
    return ETA_NEXT if any(view.newline for view in located.usual.images[0].views) else ETA


def vtw(located: Located, asker: Asker, eta: float | None, say: Say) -> Derived:
    """The first layer K whose mean divergence is within `eta`."""
    depth = located.shape.depth
    eta = bound(located) if eta is None else eta

    def distributions(layer: int) -> Mapping[str, Tensor]:
        with withdrawal.recording(asker.loaded.adapter, withdrawal.Withdrawal(layer=layer)) as method:
            asker.ask(method)
        return {key: method.into.samples[key] for key in asker.keys}

    full, of_layers = distributions(depth), []
    for layer in withdrawal.tried_layers(depth):
        of_layers.append(distributions(layer))
        (mean,) = withdrawal.means(withdrawal.divergences(of_layers[-1:], full))
        say(f"vtw: layer={layer}: mean divergence {mean:.6g}")
    means = withdrawal.means(withdrawal.divergences(of_layers, full))
    first, by_layer = first_within(means, eta), dict(zip(withdrawal.tried_layers(depth), means, strict=True))
    notes = ["mean divergence by layer: " + ", ".join(f"{k} {mean:.4g}" for k, mean in by_layer.items())]
    if first is None:
        notes.append(
            f"no layer has a mean divergence of at most {eta:g}; the smallest is {min(means):.6g}: give a larger --eta"
        )
    return Derived(
        None if first is None else {"layer": first},
        f"layer: the first from {FIRST_TRIED} on at which all visual tokens may leave with a divergence of"
        f" at most {eta:g} nats in the next token, as the mean of KL(withdrawn || full) over the questions",
        {"eta": eta, "divergence": {str(k): mean for k, mean in by_layer.items()}},
        notes,
    )


def fitprune(located: Located, asker: Asker, ratio: float | None, say: Say) -> Derived:
    """The last schedule of the bisection that saves `ratio` of the FLOPs of visual tokens."""
    ratio = NATIVE / 100 if ratio is None else ratio
    shape = located.shape
    statistics = fitting.Statistics()
    asker.ask(statistics)
    masses = {key: statistics.into[key] for key in asker.keys}

    def at(alpha: float) -> Sequence[Sequence[int]]:
        method = fitting.Fitting(alpha=alpha, masses=masses)
        asker.ask(method)
        return [method.into[key] for key in asker.keys]

    sizes = fitting.Sizes(shape.hidden, shape.mlp)
    fit = fitting.bisect(at, ratio, sizes, located.usual.n_visual, lambda line: say(f"fitprune: {line}"))
    met, notes = fit.met, []
    if not fit.steps[-1].reached:
        said = f"the last schedule tried misses the budget (alpha {fit.steps[-1].alpha:g})"
        notes.append(said + ("; the last one that met it is taken" if met else "; none met it: give a smaller --ratio"))
    return Derived(
        None if met is None else {"scheme": list(met.scheme)},
        f"scheme: of {len(fit.steps)} shares alpha, tried by bisection, the last whose schedule is forecast to save"
        f" {100 * ratio:g} % of the FLOPs of visual tokens"
        + ("" if met is None else f"; alpha {met.alpha:g}, {sum(met.scheme)} of {located.usual.n_visual} tokens leave"),
        {
            "ratio": ratio,
            "sizes": sizes._asdict(),
            "steps": [step._asdict() for step in fit.steps],
            "cross": _mean([masses[key].cross for key in asker.keys]),
            "self": _mean([masses[key].own for key in asker.keys]),
        },
        notes,
    )


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]


def write(
    method: str, derived: Derived, head: Mapping[str, Any], out: Path, config: Path | None, say: Say
) -> tuple[Path, Path | None]:
    """The document, and the config that `BUDGET=calibrated` reads where knobs were found; the same analysis writes the
    same bytes. Raises PrunebenchError where none were, after the document is written."""
    document = out / f"{method}.json"
    body = {
        **head,
        "method": method,
        "knobs": derived.knobs,
        "criterion": derived.criterion,
        "notes": derived.notes,
        **derived.measured,
    }
    document.write_text(json.dumps(rounded(body), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if derived.knobs is None:
        raise PrunebenchError(f"{method}: no knobs were found and no config was written: {'; '.join(derived.notes)}")
    split = head["split"]
    lines = [
        f"command: {head['command']}",
        f"model: {head['model']}, weights {head['fingerprint']}",
        (
            f"split: {split['data']}, disjoint from the test data by image name and SHA-256"
            f" ({split['test_images_compared']} test images compared)"
        ),
        f"derived on: {sum(split['samples'].values())} questions about {split['images']} images ("
        + ", ".join(f"{task} {n}" for task, n in split["samples"].items())
        + ")",
        f"criterion: {derived.criterion}",
        *(f"note: {note}" for note in derived.notes),
    ]
    file = config or out / f"{method}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    knobs = yaml.safe_dump({"knobs": derived.knobs}, sort_keys=False, default_flow_style=None)
    file.write_text(knobs + "derived_by: |-\n" + "".join(f"  {line}\n" for line in lines), encoding="utf-8")
    say(f"config  {file}")
    return document, file
