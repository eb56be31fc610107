"""Where a model uses vision: attention, lenses, knock-outs and contributions per layer, its stages, and a VisiPruner
config for it.

`analyse(AnalysisRequest(...))` asks every question once unpruned under an eye that reduces each layer's tensors on the
device to a few numbers per sample (per visual token: seven), then once per knock-out. Knock-outs of text start from the
image's cached prefill, because attention is causal: text behind the image cannot change what the image left in the
cache. Answers go to a journal after every condition, so the same command continues after an interruption. The questions
do not go through `runner.run`: knock-outs are conditions of one analysis, with that journal and without sealed cells.
harness/analysis/stages.py turns the outcomes into stages and knobs.

Cost: 62 knock-outs for 12 layers, 183 for 32; then some twenty settings of VisiPruner, of which those that look good
run on `KNOBS` times the questions. Knock-outs of text run a question's own tokens; one between visual tokens runs each
image again, so these stand a window apart. Of activations the host holds 7 x layers x visual tokens x 4 bytes a sample
(0.5 MB for LLaVA-1.5-7B). The device holds the model, one batch, and cached prefills of images in at most 4 GiB, on
CUDA a quarter of what is free beside the model; less only costs time. What a run took is in the document under `cost`.

Definitions. A cut between visual tokens takes a visual token's own key from it too. Masses are softmax probabilities
averaged over heads, of the prompt's last token and of all text rows behind the image (`question`, averaged over rows),
on visual tokens, text before and text behind the image; the three add up to 1. Entropy is that of the probabilities
over visual tokens alone, renormalised, per head, in nats. A visual token is a sink in a layer where its residual state
is more than `SINK_NORM` times as long as the median visual token's, or where its place in the image draws more than
`SINK_DRAW` times a visual token's fair share of the last row's visual attention in at least half of the samples. The
logit lens reads the residual stream of the last token behind a layer through the final norm and the head; the
value-output lens reads what attention alone adds there (attention output through W_O) in the same way. A contribution
is VisiPruner's: |C_i|, and the cosine of the last token's attention output with and without visual token i.

Where prompts differ in visual tokens, medians, fair shares, ranks and means are of a prompt's own tokens. A place in
the image is then the token's number from the first visual token; a prompt without that place does not draw there.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from harness.analysis import calibrate, stages
from harness.analysis.asker import MAX_NEW_TOKENS, Asker, knockout
from harness.analysis.derive import derive, file_name, summary, write_config
from harness.analysis.eye import COSINE, KNOBS, NORM, SINK_DRAW, SINK_NORM
from harness.analysis.observe import (
    by_layer,
    knockout_row,
    knockout_table,
    observe,
    rounded,
    sample_table,
    token_counts,
    with_bounds,
)
from harness.analysis.stages import TEXT, Cut, Outcome
from harness.core.command import rendered, whole_number
from harness.core.errors import PrunebenchError, unknown
from harness.core.paths import make_folder
from harness.core.spelling import given
from harness.models.load import LoadedModel, locate_model
from harness.runner.launch.launchers import check_alone
from harness.runner.pace import check_batch
from harness.runner.request import TASKS, parse_limit
from harness.runner.session import SUBSET_SEED
from tasks.sources import source_of_data

DEFAULT_LIMIT = 36
#: of the unpruned model, below which no knobs are derived
LEAST_SCORE = 0.1


@dataclass(frozen=True)
class AnalysisRequest:
    """What a user asks for; strings as typed.

    `data` is the test data (default: an embedded model's own, else hub). `calibration_data` is what is analysed: a
    folder, "hub" for its train and val splits, or "fresh" for new scenes of the mini world (the default there). Without
    it the test data itself is analysed and no config is derived. `layers` ("2-5") restricts the knock-outs; stages need
    all.
    """

    model: str = "mini"
    tasks: Sequence[str] = TASKS
    limit: str | int | None = None
    #: not 16 as elsewhere: what the eye sees is rounded at the sixth digit, which is to stay that of documents made
    #: before
    batch: int = 8
    device: str = "auto"
    dtype: str = "auto"
    data: str | None = None
    calibration_data: str | None = None
    layers: str | None = None
    out: Path | None = None
    config: Path | None = None
    samples: bool = True
    fresh: bool = False
    #: whose knobs are derived: VisiPruner's from the whole analysis; those of others from a short one of their own
    method: str = "visipruner"
    #: VTW's bound and FitPrune's share of FLOPs to save; None: as in their official code
    eta: float | None = None
    ratio: float | None = None


METHODS = ("visipruner", "vtw", "fitprune")


# ---------------------------------------------------------------------------------------------------------- the command


def parse_layers(text: str | None, depth: int) -> tuple[int, int] | None:
    """`"2-5"` or `"4"` as first and last layer; None for all. Raises PrunebenchError for anything else and layers the
    model lacks."""
    if not text:
        return None
    parts = [whole_number(part) for part in text.split("-")]
    first, last = parts[0], parts[-1]
    if len(parts) > 2 or first is None or last is None:
        raise PrunebenchError(f"layers {text!r}: expected first-last, as in 0-{depth - 1}")
    stages.cuts(depth, 1, (TEXT,), (first, last))  # raises where they are out of range
    return first, last


def analyse(request: AnalysisRequest, say: Callable[[str], None] = print) -> Path:
    """Run the analysis and return the path of analysis.json. Raises PrunebenchError for anything a user can mend,
    before weights are read."""
    from tasks import calibration, choice
    from tasks.sources import TASKS as KNOWN

    began = time.perf_counter()
    check_alone()
    _check_method(request)
    request = replace(request, tasks=choice.chosen(request.tasks))
    if not request.tasks:
        raise PrunebenchError(f"no task was named: give {given('tasks', ','.join(TASKS))} or some of them")
    check_batch(request.batch)
    located = locate_model(request.model, request.device, request.dtype)
    calibrate.check_model(request.method, located)
    depth = located.shape.depth
    layers = parse_layers(request.layers, depth)
    limit = parse_limit(request.limit, DEFAULT_LIMIT)
    test = source_of_data(request.data, located.config.stands_for)
    choice.check_source(request.tasks, test)
    chosen = request.calibration_data or ("fresh" if test.embedded else None)
    by_name = [name for name in request.tasks if not choice.is_ours(name)]
    if by_name and chosen is not None:
        raise PrunebenchError(
            f"task {by_name[0]}: knobs are derived on calibration data of {', '.join(KNOWN)} only, whose images are"
            " compared with the test data's: leave --calibration-data out, or name those tasks"
        )
    if request.config is not None and (chosen is None or layers is not None):
        raise PrunebenchError(
            "a config is derived from all layers on data that is no test data: give --calibration-data (a folder, or"
            " hub) and leave --layers out"
        )
    if chosen == "fresh" and not test.embedded:
        raise PrunebenchError(
            "--calibration-data fresh draws new scenes of the mini world: give a folder or hub for this model's data"
        )
    # beside a whole analysis, not in place of it
    part = "" if layers is None else f"-layers-{layers[0]}-{layers[1]}"
    if request.method != "visipruner":
        part = f"-{request.method}"
    out = request.out or Path("results/local/analysis") / (file_name(located.config.name) + part)
    make_folder(out)
    with tempfile.TemporaryDirectory() as folder:
        # what knobs are derived on as well, unless all there is was analysed
        source = larger = test
        if chosen == "fresh":
            source = calibration.mini(Path(folder) / "analysis", limit or 108, like=test.name)
            larger = calibration.mini(Path(folder) / "knobs", KNOBS * limit, like=test.name) if limit else source
        elif chosen == "hub":
            source = larger = calibration.hub(Path(folder), request.tasks, KNOBS * limit if limit else 108)
        elif chosen is not None:
            source = larger = source_of_data(chosen, located.config.stands_for)
        compared = (
            None
            if chosen is None
            else max(calibration.check_disjoint(request.tasks, s, test) for s in {source, larger})
        )
        from tasks import lmms

        names = list(dict.fromkeys(request.tasks))
        tasks = [lmms.load_task(name, source, limit, SUBSET_SEED) for name in names]
        more: list[lmms.LoadedTask] = []
        if limit and chosen is not None and layers is None and request.method == "visipruner":
            more = [lmms.load_task(name, larger, KNOBS * limit, SUBSET_SEED) for name in names]
            more = [] if [t.fingerprint for t in more] == [t.fingerprint for t in tasks] else more
        several = next((s for t in [*tasks, *more] for s in t.samples if len(s.images) > 1), None)
        if several is not None:
            raise PrunebenchError(
                f"{several.key}: expected questions about one image each, which an analysis follows through the layers,"
                f" found {len(several.images)} images: leave {several.task} out of {given('tasks')}"
            )
        n_images = len({s.image_key for t in tasks for s in t.samples})
        if n_images < 2:
            raise PrunebenchError("an analysis averages over images: expected at least 2, found 1; raise LIMIT")
        loaded = located.load()
        split = {
            "data": (
                "the test data"
                if chosen is None
                else "fresh scenes of the mini world"
                if chosen == "fresh"
                else f"calibration data {chosen}"
            ),
            "samples": {t.name: len(t.samples) for t in tasks},
            "images": n_images,
            "fingerprints": {t.name: t.fingerprint for t in tasks},
            "test_images_compared": compared,
            "knobs": {t.name: len(t.samples) for t in more},
        }
        # without what knobs are derived on as well: no knock-out depends on it, and its conditions are marked in the
        # journal
        identity = _identity(loaded, {k: v for k, v in split.items() if k != "knobs"})
        journal = out / "journal.jsonl"
        if request.fresh:
            journal.unlink(missing_ok=True)
        asker = Asker(loaded, tasks, request.batch, journal, identity)
        say(
            f"analysis of {loaded.config.name} ({depth} layers, {located.spoken}) on {len(asker.keys)}"
            f" questions about {n_images} images: {', '.join(request.tasks)}; {split['data']}"
        )
        if request.method != "visipruner":
            head = {
                "model": loaded.config.name,
                "fingerprint": loaded.fingerprint,
                "command": _command(request),
                "split": split,
            }
            found = (
                calibrate.vtw(located, asker, request.eta, say)
                if request.method == "vtw"
                else calibrate.fitprune(located, asker, request.ratio, say)
            )
            return calibrate.write(request.method, found, head, out, request.config, say)[0]
        rule = stages.Rule(window=min(stages.Rule().window, depth))
        deriving = chosen is not None and layers is None
        document, frames = _measured(request, loaded, asker, rule, layers, say, deriving)
        document["split"] = split
        if document["stages"] and chosen is not None:
            askers = [asker]
            if more:
                digest = hashlib.sha256("".join(t.fingerprint for t in more).encode()).hexdigest()[:8]
                askers.append(asker.about(more, f"on {digest}: "))
            derived = derive(located, askers, document, say)
            document["visipruner"] = summary(derived, located, askers[-1])
            file = request.config or out / "visipruner.yaml"
            write_config(file, derived, document)
            say(f"config  {file}")
    answers = sum(len(texts) for texts in asker.finished().values())
    document["cost"] = {
        "answers": answers - asker.resumed,
        "answers_from_an_earlier_run": asker.resumed,
        "seconds": round(time.perf_counter() - began, 1),
        "device": str(loaded.device.type),
    }
    if loaded.device.type == "cuda":
        document["cost"]["peak_memory_bytes"] = int(torch.cuda.max_memory_allocated(loaded.device))
    from harness.analysis.figures import draw

    # from what the file will hold, so that the file alone draws the same figures again
    document = rounded(document)
    document["figures"] = draw(document, out)
    if request.samples:
        for name, frame in frames.items():
            frame.to_parquet(out / f"{name}.parquet", compression="zstd", index=False)
    file = out / "analysis.json"
    file.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return file


def _check_method(request: AnalysisRequest) -> None:
    """Raise PrunebenchError for a method that has nothing to calibrate, and for options that say nothing to one."""
    if request.method not in METHODS:
        raise unknown("method with calibrated knobs", request.method, METHODS)
    for option, value, of in (("eta", request.eta, "vtw"), ("ratio", request.ratio, "fitprune")):
        if value is not None and request.method != of:
            raise PrunebenchError(
                f"--{option} {value} is {of}'s, and knobs of {request.method} are derived: leave it out"
            )
    if request.layers and request.method != "visipruner":
        raise PrunebenchError(f"--layers is about knock-outs, and {request.method} needs none: leave it out")
    calibrate.check(request.eta, request.ratio)


def _identity(loaded: LoadedModel, split: Mapping[str, Any]) -> str:
    """Of everything that may change an answer."""
    model = [
        loaded.config.name,
        loaded.fingerprint,
        loaded.dtype,
        loaded.device.type,
        loaded.template_hash,
        loaded.image_backend,
    ]
    parts = [*model, MAX_NEW_TOKENS, split]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def check_answers(model: str, score: float, n: int) -> None:
    """Raise PrunebenchError for a model whose answers say nothing: any knobs keep a score of 0."""
    if not score >= LEAST_SCORE:
        raise PrunebenchError(
            f"{model} answers {100 * score:.1f} % of {n} questions right, unpruned: knobs are derived from"
            f" {100 * LEAST_SCORE:g} % on; check prompt, weights and data, or leave the calibration data out to derive"
            " none"
        )


def _command(request: AnalysisRequest) -> str:
    """The command that measures this again."""
    words = ["prunebench", "analyze", request.model]
    if tuple(request.tasks) != TASKS:
        words += ["--tasks", ",".join(request.tasks)]
    if request.method != "visipruner":
        words += ["--method", request.method]
    for name in ("limit", "data", "calibration_data", "layers", "eta", "ratio"):
        value = getattr(request, name)
        if value not in (None, ""):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return rendered([*words, "--write-config"] if request.config is not None else words)


def _measured(
    request: AnalysisRequest,
    loaded: LoadedModel,
    asker: Asker,
    rule: stages.Rule,
    layers: tuple[int, int] | None,
    say: Callable[[str], None],
    deriving: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Everything but the config: the JSON document and the tables of samples.parquet and knockouts.parquet.

    `deriving`: knobs come next. Raises PrunebenchError where the model's answers could not choose any.
    """
    depth = loaded.adapter.shape.depth
    planned = stages.cuts(depth, rule.window, layers=layers)
    left = sum(not asker.done(_name(cut)) for cut in planned)
    with tqdm(
        total=(1 + left) * len(asker.keys),
        desc="analysis",
        unit="q",
        file=sys.stderr,
        dynamic_ncols=True,
        mininterval=1,
    ) as bar:
        observed, texts = observe(asker, bar.update)
        asker.record("unpruned", texts)
        outcomes: dict[Cut, Outcome] = {}
        unpruned = Outcome(asker.scores(texts), np.zeros(len(asker.keys), dtype=bool))
        if deriving:
            check_answers(loaded.config.name, float(np.mean(unpruned.score)), len(asker.keys))
        answers = {}
        for cut in planned:
            bar.set_postfix_str(_name(cut), refresh=False)
            answers[cut] = asker.texts(_name(cut), knockout(cut, depth), bar.update)
            flipped = np.array([answers[cut][key] != texts[key] for key in asker.keys])
            outcomes[cut] = Outcome(asker.scores(answers[cut]), flipped)
    weights = stages.resampled(asker.images)
    found = stages.find(unpruned, outcomes, depth, asker.images, rule) if layers is None else None
    document: dict[str, Any] = {
        "model": loaded.config.name,
        "fingerprint": loaded.fingerprint,
        "n_samples": len(asker.keys),
        "tasks": list(request.tasks),
        "command": _command(request),
        "depth": depth,
        **token_counts(observed["n_visual"]),
        "accuracy": with_bounds(stages.interval(weights, unpruned.score)),
        "stages": {} if found is None else found.as_dict(),
        "interval": "95 % percentile bootstrap over images",
        "rules": {"sink_norm": SINK_NORM, "sink_draw": SINK_DRAW, "cosine": COSINE, "norm": NORM},
        "layers": by_layer(observed, weights, loaded),
        "knockouts": [
            knockout_row(*cut, outcome, weights) for cut, outcome in {Cut("none", 0, 0): unpruned, **outcomes}.items()
        ],
    }
    # vision that text cannot attend from layer l on and vision that is gone from layer l on are the same thing to the
    # answer
    document["knockouts"] += [
        knockout_row("leave", c.start, depth, o, weights)
        for c, o in outcomes.items()
        if c.kind == TEXT and c.end == depth
    ]
    return document, {
        "samples": sample_table(observed, asker, loaded),
        "knockouts": knockout_table(asker, texts, unpruned, answers, outcomes),
    }


def _name(cut: Cut) -> str:
    return f"{cut.kind} {cut.start} {cut.end}"
