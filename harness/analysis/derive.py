"""A VisiPruner config from the stages, screened and tried."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from harness.analysis import stages
from harness.analysis.asker import Asker
from harness.analysis.eye import ShallowProbe
from harness.analysis.observe import padded
from harness.analysis.stages import Calibrated, Probe, Stages, Trial, Tried
from harness.core import budget as budgets
from harness.method import Method
from harness.models.load import Located
from harness.runner.sizes import visual_tokens


def file_name(model: str) -> str:
    return model.replace("/", "--")


# ----------------------------------------------------------------------------------------------------------- the config


def _tried(located: Located, asker: Asker, knobs: Mapping[str, Any]) -> Tried:
    """VisiPruner with these knobs (the model's own defaults below them) on the asker's samples; from the journal where
    it is there."""
    method = located.method("visipruner", budgets.parse("native"), knobs)
    name = "visipruner " + json.dumps(dict(knobs), sort_keys=True)
    known = asker.numbers(name)
    if known is None:
        answers = asker.ask(method)
        unpruned = sum(a.cost["prefill_unpruned_flops"] for a in answers.values())
        known = {
            "kept": sum(a.cost["kept"] for a in answers.values()) / len(answers),
            "flops": sum(a.cost["prefill_dense_flops"] for a in answers.values()) / unpruned,
        }
        asker.record(name, {k: a.text for k, a in answers.items()}, known)
    scores = asker.scores(asker.texts(name, method))
    return Tried(float(scores.mean()), asker.by_task(scores), known["kept"], known["flops"])


def derive(
    located: Located, askers: Sequence[Asker], document: Mapping[str, Any], say: Callable[[str], None]
) -> Calibrated:
    """Knobs that hold on the samples of every asker; the first one's are the analysed ones."""
    found = document["stages"]
    known = Stages(
        found["shallow_end"], tuple(found["fusion"]), found["not_needed_from"], found["rule"], found["uncertainty"]
    )
    first = askers[0]

    def probe(shallow: int) -> Probe:
        method = ShallowProbe(shallow=shallow > 0, shallow_mid_layer=shallow, middle=False, deep=False)
        first.ask(method)
        lowest, norms = zip(*(method.into[key] for key in first.keys), strict=True)
        return Probe(np.stack(lowest), padded(norms, np.nan))

    def trial(asker: Asker) -> Trial:
        unpruned = asker.by_task(asker.scores(asker.texts("unpruned", Method())))
        return Trial(partial(_tried, located, asker), unpruned, {task.name: len(task.samples) for task in asker.tasks})

    return stages.calibrate([trial(asker) for asker in askers], probe, known, located.shape.depth, say=say)


def summary(derived: Calibrated, located: Located, asker: Asker) -> dict[str, Any]:
    def numbers(tried: Tried) -> dict[str, Any]:
        return {"accuracy": tried.accuracy, "by_task": dict(tried.by_task), "kept": tried.kept, "flops": tried.flops}

    counts = [n for task in asker.tasks for n in visual_tokens(located, task)]
    return {
        "knobs": derived.knobs,
        "calibrated": numbers(derived.outcome),
        "scaled_defaults": numbers(_tried(located, asker, {})),
        "unpruned": {"by_task": dict(derived.unpruned), "kept": float(np.mean(counts)), "flops": 1.0},
        "questions": len(asker.keys),
        "criterion": derived.criterion,
        "notes": list(derived.notes),
        "steps": list(derived.steps),
    }


def write_config(file: Path, derived: Calibrated, document: Mapping[str, Any]) -> None:
    """A file that `BUDGET=calibrated` reads: the knobs, and in words how they were derived. The same analysis writes
    the same bytes."""
    split = document["split"]

    def by_task(numbers: Mapping[str, float | int]) -> str:
        return ", ".join(f"{task} {x:.4f}" if isinstance(x, float) else f"{task} {x}" for task, x in numbers.items())

    outcome = derived.outcome
    cost = f"{100 * outcome.flops:.1f} % of the unpruned prefill FLOPs and {outcome.kept:.1f} kept tokens"
    lines = [
        f"command: {document['command']}",
        f"model: {document['model']}, weights {document['fingerprint']}",
        (
            f"split: {split['data']}, disjoint from the test data by image name and SHA-256"
            f" ({split['test_images_compared']} test images compared)"
        ),
        f"analysed: {document['n_samples']} questions about {split['images']} images ({by_task(split['samples'])})",
        f"derived on: {by_task(split['knobs'] or split['samples'])}",
        f"unpruned accuracy: {by_task(derived.unpruned)}",
        f"with these knobs: {by_task(outcome.by_task)}, at {cost}",
        f"criterion: {derived.criterion}",
        *(f"note: {note}" for note in derived.notes),
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    knobs = yaml.safe_dump({"knobs": derived.knobs}, sort_keys=False)
    file.write_text(knobs + "derived_by: |-\n" + "".join(f"  {line}\n" for line in lines), encoding="utf-8")
