"""The stages of a model's use of vision, and VisiPruner knobs, from measured outcomes by stated rules; no torch.

A stage is found from knock-outs: what the answers lose when attention from text to vision is cut. Uncertainty is a
bootstrap over images of the whole rule: how often each layer would have been chosen had other images been drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.core.errors import PrunebenchError

Floats = NDArray[np.float64]
RESAMPLES = 1000


class Cut(NamedTuple):
    """Attention to visual tokens cut in layers [start, end): from the text behind the image, or between visual
    tokens."""

    kind: str  # "text_to_vision" or "vision_to_vision"
    start: int
    end: int


TEXT, VISION = "text_to_vision", "vision_to_vision"


@dataclass(frozen=True)
class Outcome:
    """One condition on every sample: `score (n,)` in [0, 1]; `flipped (n,)` bool, the answer is not the unpruned
    one."""

    score: Floats
    flipped: NDArray[np.bool_]


@dataclass(frozen=True)
class Rule:
    """`tolerance`: accuracy that may be lost, `flips`: share of answers that may change, `fusion_flips`: share from
    which a cut counts as felt (all in [0, 1]); `window`: layers of a window cut."""

    tolerance: float = 0.02
    flips: float = 0.02
    fusion_flips: float = 0.05
    window: int = 3

    def words(self) -> dict[str, str]:
        """The rule as text, by stage."""
        x, y, z = (f"{100 * v:g}" for v in (self.tolerance, self.flips, self.fusion_flips))
        return {
            "shallow_end": (
                "the largest l such that cutting text-to-vision attention in all layers < l, for this and every"
                f" smaller l, keeps accuracy within {x} points of the unpruned model; layers 0 to l - 1 are shallow"
            ),
            "not_needed_from": (
                "the smallest l such that taking all visual tokens away at layer l, for this and every larger l,"
                f" changes at most {y} % of the answers; the depth of the model where even the last layer needs them"
            ),
            "fusion": (
                f"the layers between these two whose text-to-vision cut alone changes at least {z} % of the answers,"
                f" and the middle layer of a window of {self.window} whose cut does so although none of its layers does"
                " alone; other layers between the two belong to no stage"
            ),
            "uncertainty": (
                f"share of {RESAMPLES} bootstrap samples of images, seed 0, in which the same rule chooses each layer"
            ),
        }


@dataclass(frozen=True)
class Stages:
    """Layers [0, shallow_end) are shallow, `fusion` layers read vision, from `not_needed_from` on it is not needed.

    `uncertainty[stage]` gives per layer (as text) the share of bootstrap samples that choose it.
    """

    shallow_end: int
    fusion: tuple[int, ...]
    not_needed_from: int
    rule: Mapping[str, str]
    uncertainty: Mapping[str, Mapping[str, float]]

    def as_dict(self) -> dict[str, Any]:
        return {
            "shallow_end": self.shallow_end,
            "fusion": list(self.fusion),
            "not_needed_from": self.not_needed_from,
            "rule": dict(self.rule),
            "uncertainty": {k: dict(v) for k, v in self.uncertainty.items()},
        }


def cuts(
    depth: int, window: int, kinds: Sequence[str] = (TEXT, VISION), layers: tuple[int, int] | None = None
) -> list[Cut]:
    """Single layers, windows, prefixes and suffixes, each once, within `layers` [first, last] (default: all).

    Raises PrunebenchError for layers that the model does not have.
    """
    first, last = (0, depth - 1) if layers is None else layers
    if not 0 <= first <= last < depth:
        raise PrunebenchError(
            f"layers {first}-{last}: expected first-last within 0 to {depth - 1} (the model has {depth} decoder layers)"
        )
    if window < 1:
        raise PrunebenchError(f"window {window}: expected at least 1 layer")
    stop = last + 1
    found: dict[Cut, None] = {}
    for kind in kinds:
        # a cut between visual tokens runs every image again, so all but the single layers stand `window` apart
        stride = 1 if kind == TEXT else window
        spans = [(l, l + 1) for l in range(first, stop)]
        spans += [(l, l + window) for l in range(first, stop - window + 1, stride)]
        spans += [(first, l) for l in [*range(first + stride, stop, stride), stop]]
        spans += [(l, stop) for l in range(first, stop, stride)]
        found.update(dict.fromkeys(Cut(kind, *span) for span in spans))
    return list(found)


def resampled(images: Sequence[str], n: int = RESAMPLES, seed: int = 0) -> Floats:
    """(1 + n, samples) how often each sample counts: once in the first row, in the others by drawing whole images with
    replacement."""
    _, owner = np.unique(np.asarray(images, dtype=str), return_inverse=True)
    count = int(owner.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=n).astype(np.float64)
    return np.concatenate([np.ones((1, len(owner))), drawn[:, owner]])


def means(weights: Floats, values: NDArray[Any]) -> Floats:
    """(resamples, ...) weighted means of `values (samples, ...)`; nan stands for "no value" and is left out."""
    flat = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    known = ~np.isnan(flat)
    total = weights @ np.where(known, flat, 0.0)
    count = weights @ known.astype(np.float64)
    out = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return out.reshape(len(weights), *np.shape(values)[1:])


def interval(weights: Floats, values: NDArray[Any], level: float = 0.95) -> tuple[Floats, Floats, Floats]:
    """(mean, low, high) of `values (samples, ...)` with the percentile interval over the resamples; nan where there is
    no value."""
    drawn = means(weights, values)
    tail = (1 - level) / 2
    blank = np.isnan(drawn).all(0)
    filled = np.where(blank, 0.0, drawn)
    low, high = np.nanquantile(filled[1:], [tail, 1 - tail], axis=0)
    return drawn[0], np.where(blank, np.nan, low), np.where(blank, np.nan, high)


# --------------------------------------------------------------------------------------------------------------- stages


def shallow_end(unpruned: float, prefix: Sequence[float], tolerance: float) -> int:
    """`prefix[l]`: accuracy with layers < l + 1 cut. The number of shallow layers."""
    end = 0
    # the small number: a loss of exactly the tolerance is within it whatever the rounding
    while end < len(prefix) and prefix[end] >= unpruned - tolerance - 1e-9:
        end += 1
    return end


def not_needed_from(suffix: Sequence[float], flips: float) -> int:
    """`suffix[l]`: share of answers that change when vision is gone from layer l on. The first layer that does not need
    it."""
    start = len(suffix)
    while start > 0 and suffix[start - 1] <= flips + 1e-9:
        start -= 1
    return start


def fusion_layers(
    single: Sequence[float], windows: Sequence[float], width: int, least: float, first: int, stop: int
) -> tuple[int, ...]:
    """`single[l]`, `windows[l]`: share of answers that change when layer l, layers l to l + width - 1 are cut; chosen
    in [first, stop)."""
    felt = {l for l, share in enumerate(single) if share >= least - 1e-9}
    for l, share in enumerate(windows):
        if share >= least - 1e-9 and not felt & set(range(l, l + width)):
            felt.add(l + width // 2)
    return tuple(sorted(l for l in felt if first <= l < stop))


def find(
    unpruned: Outcome,
    found: Mapping[Cut, Outcome],
    depth: int,
    images: Sequence[str],
    rule: Rule | None = None,
    n: int = RESAMPLES,
) -> Stages:
    """The stages by `rule`, with the bootstrap over images. `found` must hold every text-to-vision cut of `cuts(depth,
    rule.window)`."""
    rule = rule or Rule()
    missing = [c for c in cuts(depth, rule.window, (TEXT,)) if c not in found]
    if missing:
        raise PrunebenchError(
            f"stages: expected every text-to-vision cut of {depth} layers, found none called {missing[0]}"
        )
    weights = resampled(images, n)

    def score(spans: Sequence[tuple[int, int]]) -> Floats:
        return np.stack([means(weights, found[Cut(TEXT, *s)].score) for s in spans], 1)

    def flips(spans: Sequence[tuple[int, int]]) -> Floats:
        return (
            np.stack([means(weights, found[Cut(TEXT, *s)].flipped) for s in spans], 1)
            if spans
            else np.zeros((len(weights), 0))
        )

    base = means(weights, unpruned.score)
    prefix = score([(0, l + 1) for l in range(depth)])
    suffix = flips([(l, depth) for l in range(depth)])
    single = flips([(l, l + 1) for l in range(depth)])
    windows = flips([(l, l + rule.window) for l in range(depth - rule.window + 1)])
    chosen = []
    for row in range(len(weights)):
        first = shallow_end(base[row], prefix[row], rule.tolerance)
        stop = not_needed_from(suffix[row], rule.flips)
        # where layers stand in for one another the shallow end lies behind the other boundary
        chosen.append(
            (
                first,
                fusion_layers(
                    single[row], windows[row], rule.window, rule.fusion_flips, min(first, stop), max(first, stop)
                ),
                stop,
            )
        )
    first, fusion, stop = chosen[0]
    drawn = chosen[1:]
    uncertainty = {
        "shallow_end": _shares([c[0] for c in drawn], len(drawn)),
        "fusion": _shares([l for c in drawn for l in c[1]], len(drawn)),
        "not_needed_from": _shares([c[2] for c in drawn], len(drawn)),
    }
    return Stages(first, fusion, stop, rule.words(), uncertainty)


def _shares(layers: Sequence[int], of: int) -> dict[str, float]:
    return {str(l): round(layers.count(l) / of, 4) for l in sorted(set(layers))} if of else {}


# ---------------------------------------------------------------------------------------------------------- calibration


@dataclass(frozen=True)
class Tried:
    """What VisiPruner with some knobs does on calibration samples: accuracy in [0, 1] over all and by task, mean kept
    tokens, and dense prefill FLOPs as a share of the unpruned model's."""

    accuracy: float
    by_task: Mapping[str, float]
    kept: float
    flops: float


@dataclass(frozen=True)
class Trial:
    """Calibration samples, `counts` of each task: `evaluate(knobs)` runs VisiPruner on them; `unpruned` is the accuracy
    of each task without it."""

    evaluate: Callable[[Mapping[str, Any]], Tried]
    unpruned: Mapping[str, float]
    counts: Mapping[str, int]

    def holds(self, tried: Tried, tolerance: float, answers: int) -> bool:
        """Does no task lose more than `tolerance`, or more than so many of its answers where that is more?"""
        return all(
            before - tried.by_task[task] <= max(tolerance, answers / self.counts[task]) + 1e-9
            for task, before in self.unpruned.items()
        )


@dataclass(frozen=True)
class Probe:
    """Contributions of visual tokens on the calibration samples, under the shallow stage that was chosen.

    `lowest (samples, depth)`: the lowest cosine of any token; `norms (samples, depth, tokens)`: |C_i| in falling order,
    nan behind those of a prompt with fewer tokens.
    """

    lowest: Floats
    norms: Floats


#: kept tokens that are tried, few first, by a norm threshold that keeps about as many where selection happens; those
#: that leave a token to drop in every prompt, so that each threshold is a mean over the same prompts
KEPT_GRID = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 640, 768, 1024, 1536, 2048)
EXIT_GRID = (0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)
#: quantiles of the fusion layers' lowest cosines that are tried as layer threshold beside the separating one: lower
#: fires later
QUANTILES = (0.75, 0.5, 0.25)


@dataclass(frozen=True)
class Calibrated:
    """`knobs` for configs/visipruner/<model>.yaml, what they do on the samples of the last trial, and every step that
    was tried."""

    knobs: dict[str, Any]
    outcome: Tried
    unpruned: Mapping[str, float]
    steps: tuple[dict[str, Any], ...]
    criterion: str
    notes: tuple[str, ...] = field(default=())


def separate(fusion: Floats, other: Floats) -> tuple[float, float]:
    """The cosine that best tells fusion layers (below it) from the others, and the balanced accuracy it reaches.

    Between two measured values the middle is taken; of equally good ones the lowest. Without others: just above the
    highest fusion value.
    """
    if not fusion.size:
        raise PrunebenchError("calibration: expected cosines of at least one fusion layer, found none")
    values = np.unique(np.concatenate([fusion, other]))
    middles = np.concatenate([(values[1:] + values[:-1]) / 2, [np.nextafter(values[-1], 2.0)]])
    below = np.searchsorted(np.sort(fusion), middles, side="left") / fusion.size
    above = (
        1 - np.searchsorted(np.sort(other), middles, side="left") / other.size if other.size else np.ones(len(middles))
    )
    best = int(np.argmax(below + above))
    return float(middles[best]), float((below[best] + above[best]) / 2)


def calibrate(
    trials: Sequence[Trial],
    probe: Callable[[int], Probe],
    stages: Stages,
    depth: int,
    tolerance: float = 0.01,
    say: Callable[[str], None] = lambda _: None,
) -> Calibrated:
    """VisiPruner's knobs for one model, stage by stage, each with those before it switched on.

    Knobs must hold in every one of `trials`, small ones first: a failure there spares the large ones. `probe(s)`
    measures contributions with `s` shallow layers.
    """
    steps: list[dict[str, Any]] = []
    notes: list[str] = []

    seen: dict[str, tuple[Tried, bool, bool]] = {}

    def judged(n: int, stage: str, knobs: Mapping[str, Any], than: Sequence[Tried] | None) -> tuple[Tried, bool, bool]:
        """What trial `n` measured, whether every task holds, and whether it costs less `than` others."""
        key = f"{n} {dict(knobs)}"
        if key not in seen:
            trial = trials[n]
            tried, count = trial.evaluate(knobs), sum(trial.counts.values())
            # a few samples cannot tell one point: one answer of each task is let through to where they can
            holds = trial.holds(tried, tolerance, 0 if n == len(trials) - 1 else 1)
            cheaper = than is None or tried.flops < than[n].flops
            what = {
                "accuracy": tried.accuracy,
                "by_task": dict(tried.by_task),
                "kept": tried.kept,
                "flops": tried.flops,
            }
            steps.append(
                {"stage": stage, "knobs": dict(knobs), "questions": count, **what, "holds": holds, "cheaper": cheaper}
            )
            worst = 100 * min(tried.by_task[task] - trial.unpruned[task] for task in trial.unpruned)
            named = ", ".join(f"{k}={v}" for k, v in knobs.items())
            say(f"{stage}: {named}: worst task {worst:+.1f} points, FLOPs {tried.flops:.3f}, {count} questions")
            seen[key] = tried, holds, cheaper
        return seen[key]

    def attempt(stage: str, knobs: Mapping[str, Any], than: Sequence[Tried] | None = None) -> tuple[Tried, ...] | None:
        """What every trial measured; None where one says that a task loses too much or that they do not cost less
        `than` others."""
        measured: list[Tried] = []
        for n in range(len(trials)):
            tried, holds, cheaper = judged(n, stage, knobs, than)
            if not (holds and cheaper):
                return None
            measured.append(tried)
        return tuple(measured)

    knobs: dict[str, Any] = {"shallow": False, "shallow_mid_layer": 0, "middle": False, "deep": False}
    best: tuple[Tried, ...] | None = None
    # layers behind s are searched: a fusion layer must be among them, and one layer to prune behind it
    highest = min(stages.shallow_end, depth - 3, *(max(stages.fusion) - 1 for _ in stages.fusion[:1]))
    for s in range(highest, 0, -1):
        tried = attempt("shallow", {**knobs, "shallow": True, "shallow_mid_layer": s})
        if tried is not None:
            knobs, best = {**knobs, "shallow": True, "shallow_mid_layer": s}, tried
            break
    else:
        notes.append("no shallow stage: vision is needed from the first layers on")

    s = int(knobs["shallow_mid_layer"])
    measured = probe(s if knobs["shallow"] else 0)
    searched = list(range(s + 1, depth - 1))
    fusion = [l for l in searched if l in stages.fusion]
    middle = None
    if fusion:
        low = measured.lowest
        split, balanced = separate(low[:, fusion].ravel(), low[:, [l for l in searched if l not in fusion]].ravel())
        notes.append(
            f"a lowest cosine below {split:.6g} tells fusion layers {fusion} from the other layers with balanced"
            f" accuracy {balanced:.3f}"
        )
        thresholds = [split, *(float(q) for q in np.quantile(low[:, fusion], QUANTILES))]
        for threshold in dict.fromkeys(float(f"{t:.6g}") for t in thresholds):
            fires = low[:, searched] < threshold
            fired = np.flatnonzero(fires.any(1))
            if not fired.size:
                continue
            at = np.array(searched)[fires[fired].argmax(1)]
            norms = measured.norms[fired, at]  # (fired, tokens) where each sample selects
            on, than = {**knobs, "middle": True, "layer_threshold": threshold}, None if middle is None else middle[1]
            fewest = int((~np.isnan(norms)).sum(1).min())
            grid = [{**on, "tokens_threshold": float(f"{norms[:, k].mean():.3g}")} for k in KEPT_GRID if k < fewest]
            if not grid:
                few = f"no norm threshold is tried where a prompt has fewer than {KEPT_GRID[0] + 1} visual tokens"
                notes += [few] if few not in notes else []
                continue
            if than is not None and not judged(0, "middle", grid[0], than)[2]:
                continue
            # the fewest tokens that hold in the first trial: fewer lose more, and more cost more
            start, end = 0, len(grid)
            while start < end:
                half = (start + end) // 2
                _, holds, cheaper = judged(0, "middle", grid[half], than)
                start, end = (half + 1, end) if cheaper and not holds else (start, half)
            for more in grid[start:]:
                tried = attempt("middle", more, than)
                if tried is not None:
                    middle = more, tried
                    break
                if not judged(0, "middle", more, than)[2]:
                    break
    else:
        notes.append(f"no fusion layer behind layer {s}: nothing to select by")
    if middle is None:
        notes.append("no middle stage: no thresholds keep the accuracy")
    else:
        knobs, best = middle
        for threshold in EXIT_GRID:
            tried = attempt("deep", {**knobs, "deep": True, "exit_threshold": threshold})
            if tried is not None:
                knobs, best = {**knobs, "deep": True, "exit_threshold": threshold}, tried
                break
        else:
            notes.append("no deep stage: no exit threshold keeps the accuracy")
    counts = [sum(trial.counts.values()) for trial in trials]
    screened = (
        f" (after screening on {counts[0]} questions: at most one answer, or {100 * tolerance:g} point(s), lost per"
        " task)"
        if len(counts) > 1
        else ""
    )
    criterion = (
        f"every stage keeps every task within {100 * tolerance:g} point(s) of the unpruned model's accuracy on"
        f" {counts[-1]} questions{screened}, with the stages before it on. shallow_mid_layer: the largest that does, at"
        " most the shallow end found by knock-out and with a fusion layer behind it. layer_threshold: of the cosine"
        f" that best separates fusion layers from the others and the {', '.join(f'{100 * q:g} %' for q in QUANTILES)}"
        " quantiles of fusion layers, the one with the fewest FLOPs, each with the norm threshold (tokens_threshold)"
        " of the fewest kept tokens that does, over a grid. exit_threshold: the smallest that does, over a grid."
    )
    outcome = trials[-1].evaluate(knobs) if best is None else best[-1]
    return Calibrated(knobs, outcome, trials[-1].unpruned, tuple(steps), criterion, tuple(notes))
