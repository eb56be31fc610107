"""Where a model uses vision: attention, lenses, knock-outs and contributions per layer, its stages, and a VisiPruner config for it.

`analyse(AnalysisRequest(...))` asks every question once unpruned under an eye that reduces each layer's tensors on the device to a few numbers
per sample (per visual token: seven), then once per knock-out. Knock-outs of text start from the image's cached prefill, because attention
is causal: text behind the image cannot change what the image left in the cache. Answers go to a journal after every condition,
so the same command continues after an interruption. The questions do not go through `runner.run`: knock-outs are conditions of one analysis,
with that journal and without sealed cells. harness/analysis/stages.py turns the outcomes into stages and knobs.

Cost: 62 knock-outs for 12 layers, 183 for 32; then some twenty settings of VisiPruner, of which those that look good run on `KNOBS` times the
questions. Knock-outs of text run a question's own tokens; one between visual tokens runs each image again, so these stand a window apart. Of
activations the host holds 7 x layers x visual tokens x 4 bytes a sample (0.5 MB for LLaVA-1.5-7B). The device holds the model, one batch, and
cached prefills of images in at most 4 GiB, on CUDA a quarter of what is free beside the model; less only costs time. What a run took is in
the document under `cost`.

Definitions. A cut between visual tokens takes a visual token's own key from it too. Masses are softmax probabilities averaged over heads,
of the prompt's last token and of all text rows behind the image (`question`, averaged over rows), on visual tokens, text before and text
behind the image; the three add up to 1. Entropy is that of the probabilities over visual tokens alone, renormalised, per head, in nats. A
visual token is a sink in a layer where its residual state is more than `SINK_NORM` times as long as the median visual token's, or where
its place in the image draws more than `SINK_DRAW` times a visual token's fair share of the last row's visual attention in at least half
of the samples. The logit lens reads the residual stream of the last token behind a layer through the final norm and the head; the
value-output lens reads what attention alone adds there (attention output through W_O) in the same way. A contribution is VisiPruner's: |C_i|,
and the cosine of the last token's attention output with and without visual token i.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from harness.analysis import stages
from harness.analysis.stages import TEXT, VISION, Calibrated, Cut, Outcome, Probe, Stages, Trial, Tried
from harness.core import budget as budgets
from harness.core.command import rendered
from harness.core.errors import PrunebenchError
from harness.engine.attach import EngineRun
from harness.engine.attention import LayerAttention
from harness.method import Attention, Method, Reduction, Run, Stream
from harness.models.adapters import Adapter
from harness.models.load import MODEL_CONFIGS, LoadedModel, Located, locate_model
from harness.runner.answering import Answer
from harness.runner.execute import Arm, InProcess, prompts_of
from harness.runner.pace import Pace, check_batch
from harness.runner.request import TASKS, parse_limit, source_of_data
from harness.runner.session import SUBSET_SEED, Session
from methods.knockout import Knockout
from methods.visipruner import VisiPruner, contributions

SINK_NORM, SINK_DRAW = 3.0, 5.0
#: ranks of |C_i| that samples.parquet holds
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: of VisiPruner, for counting tokens that pass
COSINE, NORM = 0.995, 0.2
#: tokens of an answer that are compared; the tasks want a word, and a model whose vision is cut may ramble
MAX_NEW_TOKENS = 16
DEFAULT_LIMIT = 36
#: knobs must hold on so many times the analysed questions, which alone cannot tell a loss of one point
KNOBS = 3
LENS_TOKENS = 5


@dataclass(frozen=True)
class AnalysisRequest:
    """What a user asks for; strings as typed.

    `data` is the test data (default: mini for the mini model, else hub). `calibration_data` is what is analysed: a folder, "hub" for its
    train and val splits, or "fresh" for new scenes of the mini world (the default there). Without it the test data itself is analysed and
    no config is derived. `layers` ("2-5") restricts the knock-outs; stages need all.
    """

    model: str = "mini"
    tasks: Sequence[str] = TASKS
    limit: str | int | None = None
    #: not 16 as elsewhere: what the eye sees is rounded at the sixth digit, which is to stay that of documents made before
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


# ----------------------------------------------------------------------------------------------------------------- the eye


@dataclass
class Observed:
    """What the eye saw, by sample key: arrays (depth, ...) on the host. `pending` is the prefill whose last layer has run."""

    samples: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    pending: Run | None = None


@dataclass(frozen=True)
class Observer(Method):
    """Looks at every layer and changes nothing. Not registered: it is no method, and its fields are no knobs."""

    name = "observer"
    budget_knobs = ()

    into: Observed = field(default_factory=Observed)
    adapter: Adapter | None = None

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        valid = stream.after_valid
        if not valid.shape[1]:
            return None  # the prefill of an image alone, for the cache
        if layer == 0:
            run.memo.update(state=[], state_norm=[], value_output=[], seen=[])
        run.memo["state"].append(stream.after[torch.arange(len(valid)), valid.sum(1) - 1])
        run.memo["state_norm"].append(stream.visual.float().norm(dim=-1))
        return None

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        if "seen" not in run.memo:
            return
        assert self.adapter is not None
        assert isinstance(attn, LayerAttention)
        run.memo["seen"].append(_reduced(attn))
        run.memo["value_output"].append(self.adapter.attention_output(layer, attn.last_output().flatten(1)))
        if layer == run.shape.depth - 1:
            self.into.pending = run

    def finish(self, final: Tensor) -> None:
        """`final (b, d)`: the last token's state behind the last layer. Takes one batch's numbers to the host."""
        run, self.into.pending = self.into.pending, None
        assert isinstance(run, EngineRun)
        assert self.adapter is not None
        assert run.samples is not None
        memo = run.memo
        read = _lenses(self.adapter, [*memo["state"], final], memo["value_output"])
        read["state_norm"] = torch.stack(memo["state_norm"])
        for name in memo["seen"][0]:
            read[name] = torch.stack([layer[name] for layer in memo["seen"]])
        host = {name: values.transpose(0, 1).cpu().numpy() for name, values in read.items()}
        for row, key in enumerate(run.samples):
            self.into.samples[key] = {name: values[row] for name, values in host.items()}


def _reduced(attn: LayerAttention) -> dict[str, Tensor]:
    """One layer as small tensors: (b,), (b, 3) or (b, v)."""
    layout = attn.layout
    rows, visual = layout.after_tokens, layout.visual_tokens
    probs = attn.row_probs(rows)
    b, heads, _, _ = probs.shape
    last = probs[torch.arange(b), :, rows.valid.sum(1) - 1]  # (b, heads, n)
    real = rows.valid[:, None, :, None].float()
    question = (probs * real).sum(2) / real.sum(2)  # (b, heads, n), averaged over rows
    groups = torch.stack([layout.visual, layout.valid & ~layout.visual & ~layout.after, layout.after], 1).float()  # (b, 3, n)
    each = torch.einsum("bhrn,bgn->bhrg", probs, groups[:, :1])[..., 0]  # (b, heads, rows): visual mass
    on_visual = probs.gather(3, visual.columns[:, None, None, :].expand(-1, heads, probs.shape[2], -1)) * visual.valid[:, None, None, :]
    within = on_visual / each.clamp(min=1e-30)[..., None]
    entropy = -(within * within.clamp(min=1e-30).log()).sum(-1)  # (b, heads, rows)
    values = attn.visual_values().float().transpose(1, 2).flatten(2)  # (b, v, heads x d)
    norm, cosine = contributions(attn, torch.ones(b, dtype=torch.bool, device=probs.device))
    columns = visual.columns[:, None, :].expand(-1, heads, -1)
    return {
        "mass_last": torch.einsum("bhn,bgn->bg", last, groups) / heads,
        "mass_question": torch.einsum("bhn,bgn->bg", question, groups) / heads,
        "entropy_last": entropy[torch.arange(b), :, rows.valid.sum(1) - 1].mean(1),
        "entropy_question": ((entropy * real[..., 0]).sum(2) / real[..., 0].sum(2)).mean(1),
        "attention_last": last.gather(2, columns).mean(1),
        "attention_question": question.gather(2, columns).mean(1),
        "value_l1": values.abs().sum(-1),
        "value_l2": values.norm(dim=-1),
        "contribution": norm,
        "cosine": cosine,
    }


def lens(adapter: Adapter, state: Tensor) -> Tensor:
    """(b, vocab) float32: logits read from a residual stream `state (b, d)` through the final norm and the head."""
    logits: Tensor = adapter.head(adapter.text.norm(state))
    return logits.float()


def _lenses(adapter: Adapter, states: Sequence[Tensor], outputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Per boundary (depth + 1, b) and per layer (depth, b): top token, its probability, and the probability of the final answer token."""
    answer = lens(adapter, states[-1]).argmax(-1)
    read: dict[str, list[Tensor]] = {}
    for prefix, stream in (("lens", states), ("value_lens", outputs)):
        for state in stream:
            probs = lens(adapter, state).softmax(-1)
            top = probs.max(-1)
            read.setdefault(f"{prefix}_top", []).append(top.indices)
            read.setdefault(f"{prefix}_top_p", []).append(top.values)
            read.setdefault(f"{prefix}_answer_p", []).append(probs.gather(1, answer[:, None])[:, 0])
    return {name: torch.stack(parts) for name, parts in read.items()}


@contextmanager
def watching(adapter: Adapter, observer: Observer) -> Iterator[None]:
    """Hands the observer the state behind the last layer, which no boundary shows. Goes around the observer's attach()."""

    def hook(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        # not while decoding, and not when the lens itself uses the norm
        if observer.into.pending is not None:
            observer.finish(args[0][:, -1])

    handle = adapter.text.norm.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class ShallowProbe(VisiPruner):
    """VisiPruner's shallow stage alone, recording contributions. Not registered."""

    into: dict[str, tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=dict)

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        assert isinstance(run, EngineRun)
        if not bool(run.layout.after.any()):
            return
        if layer == 0:
            run.memo["probe"] = []
        norm, cosine = contributions(attn, torch.ones(run.visual_valid.shape[0], dtype=torch.bool, device=run.visual_valid.device))
        run.memo["probe"].append((norm.sort(1, descending=True).values, cosine.amin(1)))
        if layer == run.shape.depth - 1:
            assert run.samples is not None
            norms, lowest = (torch.stack(x, 1).cpu().numpy() for x in zip(*run.memo["probe"], strict=True))
            for row, key in enumerate(run.samples):
                self.into[key] = (lowest[row], norms[row])

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        return None


# ------------------------------------------------------------------------------------------------------- asking and scoring


class Asker:
    """The analysed samples and their model: answers of any method, scored by lmms-eval; answers of finished conditions come from the journal."""

    def __init__(self, loaded: LoadedModel, tasks: Sequence[Any], batch: int, journal: Path, identity: str) -> None:
        self.loaded = loaded
        # all images at once: the same ones are asked about again and again, and their prefixes stay where there is room
        self._pace = Pace(batch, chunk=None)
        self._about(tasks)
        self._pass = InProcess(Session())
        self._journal = journal
        self._done, self._numbers = _read_journal(journal, identity)
        #: answers of an earlier run that are not asked for again
        self.resumed = sum(map(len, self._done.values()))

    def _about(self, tasks: Sequence[Any], mark: str = "") -> None:
        self.tasks, self._mark = tasks, mark
        self.prompts = [prompt for t in tasks for prompt in prompts_of(t, MAX_NEW_TOKENS)]
        self.keys = [p.key for p in self.prompts]
        self.images = [p.image_key for p in self.prompts]
        self._scores: dict[tuple[str, str], float] = {}

    def about(self, tasks: Sequence[Any], mark: str) -> Asker:
        """The same model and journal with other samples, whose conditions carry `mark` there."""
        other = copy.copy(self)
        other._about(tasks, mark)
        return other

    def ask(self, method: Method, seen: Callable[[], object] = lambda: None) -> dict[str, Answer]:
        """Answers by key."""
        answers = {}
        arm = Arm(method, 0, "method", method.name, self.prompts)
        with closing(self._pass.ask(self.loaded, [arm], self._pace)) as batches:
            for answer in (answer for _, batch in batches for answer in batch):
                answers[answer.key] = answer
                seen()
        return answers

    def texts(self, name: str, method: Method, seen: Callable[[], object] = lambda: None) -> dict[str, str]:
        """As `ask`, the texts alone, from the journal where it has them under `name`."""
        if not self.done(name):
            self.record(name, {k: a.text for k, a in self.ask(method, seen).items()})
        return self._done[self._mark + name]

    def record(self, name: str, texts: Mapping[str, str], numbers: Mapping[str, float] | None = None) -> None:
        """Write one condition's answers, and what else was measured with them, to the journal."""
        name = self._mark + name
        self._done[name], self._numbers[name] = dict(texts), dict(numbers or {})
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(_line(name, self._done[name], self._numbers[name]))

    def done(self, name: str) -> bool:
        return self._mark + name in self._done

    def numbers(self, name: str) -> dict[str, float] | None:
        """What was recorded with a condition's answers; None where it has not run."""
        return self._numbers.get(self._mark + name)

    def finished(self) -> dict[str, dict[str, str]]:
        """Answers by condition and key."""
        return self._done

    def scores(self, texts: Mapping[str, str]) -> NDArray[np.float64]:
        """Each sample's score in [0, 1], in the order of `keys`; an answer that was scored before is not scored again."""
        from tasks import lmms

        for task in self.tasks:
            mine = {s.key: texts[s.key] for s in task.samples}
            if any(pair not in self._scores for pair in mine.items()):
                for key, value in lmms.score(task, mine).scores.items():
                    self._scores[key, mine[key]] = value
        return np.array([self._scores[key, texts[key]] for key in self.keys])

    def by_task(self, scores: NDArray[np.float64]) -> dict[str, float]:
        """Mean of each task's `scores`, which are in the order of `keys`."""
        ends = np.cumsum([len(task.samples) for task in self.tasks])[:-1]
        return {task.name: float(part.mean()) for task, part in zip(self.tasks, np.split(scores, ends), strict=True)}


def _line(name: str, answers: Mapping[str, str], numbers: Mapping[str, float]) -> str:
    return json.dumps({"condition": name, "answers": answers, "numbers": numbers}) + "\n"


def _read_journal(file: Path, identity: str) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, float]]]:
    """Answers and numbers of the finished conditions of the same analysis; a journal of another one is begun anew."""
    done: dict[str, dict[str, str]] = {}
    numbers: dict[str, dict[str, float]] = {}
    head = json.dumps({"analysis": identity}) + "\n"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    if lines and lines[0] == head:
        # a line that an interruption cut short has no end of line
        for entry in (json.loads(line) for line in lines[1:] if line.endswith("\n")):
            done[entry["condition"]], numbers[entry["condition"]] = entry["answers"], entry["numbers"]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(head + "".join(_line(name, done[name], numbers[name]) for name in done), encoding="utf-8")
    return done, numbers


def knockout(cut: Cut, depth: int) -> Method:
    """The method of a cut. Text cut up to the last layer leaves visual tokens nothing to act on, so there they leave the model, which is cheaper."""
    if cut.kind == TEXT and cut.end == depth:
        return Knockout(drop_from=cut.start)
    return Knockout(start=cut.start, stop=cut.end, text_to_vision=cut.kind == TEXT, vision_to_vision=cut.kind == VISION)


# -------------------------------------------------------------------------------------------------------------- the command


def parse_layers(text: str | None, depth: int) -> tuple[int, int] | None:
    """`"2-5"` or `"4"` as first and last layer; None for all. Raises PrunebenchError for anything else and layers the model lacks."""
    if not text:
        return None
    parts = text.split("-")
    if len(parts) > 2 or not all(p.strip().isdigit() for p in parts):
        raise PrunebenchError(f"layers {text!r}: expected first-last, as in 0-{depth - 1}")
    first, last = int(parts[0]), int(parts[-1])
    stages.cuts(depth, 1, (TEXT,), (first, last))  # raises where they are out of range
    return first, last


def analyse(request: AnalysisRequest, say: Callable[[str], None] = print) -> Path:
    """Run the analysis and return the path of analysis.json. Raises PrunebenchError for anything a user can mend, before weights are read."""
    from tasks import calibration
    from tasks.sources import task_spec

    began = time.perf_counter()
    for name in request.tasks:
        task_spec(name)
    if not request.tasks:
        raise PrunebenchError(f"no task was named: give TASKS={','.join(TASKS)} or some of them")
    check_batch(request.batch)
    located = locate_model(request.model, request.device, request.dtype)
    depth = located.shape.depth
    layers = parse_layers(request.layers, depth)
    limit = parse_limit(request.limit, DEFAULT_LIMIT)
    test = source_of_data(request.data, located.config.name)
    chosen = request.calibration_data or ("fresh" if test.name == "mini" else None)
    if request.config is not None and (chosen is None or layers is not None):
        raise PrunebenchError(
            "a config is derived from all layers on data that is no test data: give --calibration-data (a folder, or hub) and leave --layers out"
        )
    if chosen == "fresh" and test.name != "mini":
        raise PrunebenchError("--calibration-data fresh draws new scenes of the mini world: give a folder or hub for this model's data")
    # beside a whole analysis, not in place of it
    part = "" if layers is None else f"-layers-{layers[0]}-{layers[1]}"
    out = request.out or Path("results/local/analysis") / (_file_name(located.config.name) + part)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        # what knobs are derived on as well, unless all there is was analysed
        source = larger = test
        if chosen == "fresh":
            source = calibration.mini(Path(folder) / "analysis", limit or 108)
            larger = calibration.mini(Path(folder) / "knobs", KNOBS * limit) if limit else source
        elif chosen == "hub":
            source = larger = calibration.hub(Path(folder), request.tasks, KNOBS * limit if limit else 108)
        elif chosen is not None:
            source = larger = source_of_data(chosen, located.config.name)
        compared = None if chosen is None else max(calibration.check_disjoint(request.tasks, s, test) for s in {source, larger})
        from tasks import lmms

        names = list(dict.fromkeys(request.tasks))
        tasks = [lmms.load_task(name, source, limit, SUBSET_SEED) for name in names]
        more: list[lmms.LoadedTask] = []
        if limit and chosen is not None and layers is None:
            more = [lmms.load_task(name, larger, KNOBS * limit, SUBSET_SEED) for name in names]
            more = [] if [t.fingerprint for t in more] == [t.fingerprint for t in tasks] else more
        n_images = len({s.image_key for t in tasks for s in t.samples})
        if n_images < 2:
            raise PrunebenchError("an analysis averages over images: expected at least 2, found 1; raise LIMIT")
        loaded = located.load()
        split = {
            "data": "the test data" if chosen is None else "fresh scenes of the mini world" if chosen == "fresh" else f"calibration data {chosen}",
            "samples": {t.name: len(t.samples) for t in tasks},
            "images": n_images,
            "fingerprints": {t.name: t.fingerprint for t in tasks},
            "test_images_compared": compared,
            "knobs": {t.name: len(t.samples) for t in more},
        }
        # without what knobs are derived on as well: no knock-out depends on it, and its conditions are marked in the journal
        identity = _identity(loaded, {k: v for k, v in split.items() if k != "knobs"})
        journal = out / "journal.jsonl"
        if request.fresh:
            journal.unlink(missing_ok=True)
        asker = Asker(loaded, tasks, request.batch, journal, identity)
        say(
            f"analysis of {loaded.config.name} ({depth} layers, {loaded.device} in {loaded.dtype}) on {len(asker.keys)} questions about {n_images} "
            f"images: {', '.join(request.tasks)}; {split['data']}"
        )
        rule = stages.Rule(window=min(stages.Rule().window, depth))
        document, frames = _measured(request, loaded, asker, rule, layers, say)
        document["split"] = split
        if document["stages"] and chosen is not None:
            askers = [asker]
            if more:
                digest = hashlib.sha256("".join(t.fingerprint for t in more).encode()).hexdigest()[:8]
                askers.append(asker.about(more, f"on {digest}: "))
            derived = _derived(located, askers, document, say)
            document["visipruner"] = _summary(derived, located, askers[-1])
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
    document = _rounded(document)
    document["figures"] = draw(document, out)
    if request.samples:
        for name, frame in frames.items():
            frame.to_parquet(out / f"{name}.parquet", compression="zstd", index=False)
    file = out / "analysis.json"
    file.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return file


def _file_name(model: str) -> str:
    return model.replace("/", "--")


def config_file(model: str) -> Path:
    """Where BUDGET=calibrated looks for this model's VisiPruner knobs."""
    return MODEL_CONFIGS.parent / "visipruner" / f"{_file_name(model)}.yaml"


def _identity(loaded: LoadedModel, split: Mapping[str, Any]) -> str:
    """Of everything that may change an answer."""
    model = [loaded.config.name, loaded.fingerprint, loaded.dtype, loaded.device.type, loaded.template_hash, loaded.image_backend]
    parts = [*model, MAX_NEW_TOKENS, split]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _command(request: AnalysisRequest) -> str:
    """The command that measures this again."""
    words = ["prunebench", "analyze", request.model]
    if tuple(request.tasks) != TASKS:
        words += ["--tasks", ",".join(request.tasks)]
    for name in ("limit", "data", "calibration_data", "layers"):
        value = getattr(request, name)
        if value not in (None, ""):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return rendered([*words, "--write-config"] if request.config is not None else words)


def _measured(
    request: AnalysisRequest, loaded: LoadedModel, asker: Asker, rule: stages.Rule, layers: tuple[int, int] | None, say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Everything but the config: the JSON document and the tables of samples.parquet and knockouts.parquet."""
    depth = loaded.adapter.shape.depth
    planned = stages.cuts(depth, rule.window, layers=layers)
    left = sum(not asker.done(_name(cut)) for cut in planned)
    with tqdm(total=(1 + left) * len(asker.keys), desc="analysis", unit="q", file=sys.stderr, dynamic_ncols=True, mininterval=1) as bar:
        observed, texts = observe(asker, bar.update)
        asker.record("unpruned", texts)
        outcomes: dict[Cut, Outcome] = {}
        unpruned = Outcome(asker.scores(texts), np.zeros(len(asker.keys), dtype=bool))
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
        "n_visual": loaded.usual.n_visual,
        "accuracy": _three(stages.interval(weights, unpruned.score)),
        "stages": {} if found is None else found.as_dict(),
        "interval": "95 % percentile bootstrap over images",
        "rules": {"sink_norm": SINK_NORM, "sink_draw": SINK_DRAW, "cosine": COSINE, "norm": NORM},
        "layers": _layers(observed, weights, loaded),
        "knockouts": [_knockout_row(*cut, outcome, weights) for cut, outcome in {Cut("none", 0, 0): unpruned, **outcomes}.items()],
    }
    # vision that text cannot attend from layer l on and vision that is gone from layer l on are the same thing to the answer
    document["knockouts"] += [_knockout_row("leave", c.start, depth, o, weights) for c, o in outcomes.items() if c.kind == TEXT and c.end == depth]
    return document, {"samples": _sample_table(observed, asker, loaded), "knockouts": _knockout_table(asker, texts, unpruned, answers, outcomes)}


def _name(cut: Cut) -> str:
    return f"{cut.kind} {cut.start} {cut.end}"


def observe(asker: Asker, seen: Callable[[], object] = lambda: None) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Arrays (samples, depth, ...) by name, in the order of the asker's keys, and the unpruned answers."""
    adapter = asker.loaded.adapter
    observer = Observer(adapter=adapter)
    with watching(adapter, observer):
        texts = {key: a.text for key, a in asker.ask(observer, seen).items()}
    rows = [observer.into.samples[key] for key in asker.keys]
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return _with_sinks(arrays), texts


def _with_sinks(seen: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Adds what follows from the rule for sinks: their number, share of the last row's visual attention, and value norms."""
    draw = seen["attention_last"] / np.maximum(seen["attention_last"].sum(-1, keepdims=True), 1e-30)
    shared = np.median(draw, axis=0) * draw.shape[-1] > SINK_DRAW
    sink = (seen["state_norm"] > SINK_NORM * np.median(seen["state_norm"], axis=-1, keepdims=True)) | shared[None]
    seen["n_sinks"] = sink.sum(-1)
    seen["sink_share"] = (draw * sink).sum(-1)
    for name in ("value_l1", "value_l2"):
        for kind, where in (("sink", sink), ("other", ~sink)):
            count = where.sum(-1)
            total = (seen[name] * where).sum(-1)
            seen[f"{name}_{kind}"] = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    norms = -np.sort(-seen["contribution"], axis=-1)
    seen["contribution_ranked"] = norms
    seen["norm_max"], seen["norm_mean"] = norms[..., 0], norms.mean(-1)
    seen["cosine_lowest"] = seen["cosine"].min(-1)
    seen["n_cosine_below"] = (seen["cosine"] < COSINE).sum(-1)
    seen["n_norm_above"] = (seen["contribution"] > NORM).sum(-1)
    return seen


def _three(found: tuple[Any, Any, Any]) -> dict[str, float | None]:
    mean, low, high = (None if np.isnan(x) else float(x) for x in found)
    return {"mean": mean, "low": low, "high": high}


def _layers(seen: Mapping[str, NDArray[Any]], weights: NDArray[np.float64], loaded: LoadedModel) -> list[dict[str, Any]]:
    """One entry per layer; every mean with its interval."""
    tokenizer = loaded.processor.tokenizer
    n, depth = seen["n_sinks"].shape

    def word(token: int) -> str:
        return str(tokenizer.decode([token])).strip() or "(space)"

    def common(tokens: NDArray[Any]) -> list[list[Any]]:
        # by count, then by token, so that ties have an order
        counts = sorted(Counter(int(t) for t in tokens).items(), key=lambda item: (-item[1], item[0]))
        return [[word(t), c / n] for t, c in counts[:LENS_TOKENS]]

    out = []
    for layer in range(depth):
        entry: dict[str, Any] = {"layer": layer}

        def add(name: str, values: NDArray[Any], entry: dict[str, Any] = entry) -> None:
            three = _three(stages.interval(weights, values))
            entry.update({name: three["mean"], f"{name}_low": three["low"], f"{name}_high": three["high"]})

        for rows in ("last", "question"):
            for g, group in enumerate(("visual", "before", "after")):
                add(f"mass_{group}_{rows}", seen[f"mass_{rows}"][:, layer, g])
        add("entropy", seen["entropy_last"][:, layer])
        add("entropy_question", seen["entropy_question"][:, layer])
        for name in ("sink_share", "n_sinks"):
            add(name, seen[name][:, layer])
        for kind in ("sink", "other"):
            add(f"value_norm_{kind}", seen[f"value_l2_{kind}"][:, layer])
            add(f"value_norm_l1_{kind}", seen[f"value_l1_{kind}"][:, layer])
        # behind this layer: boundary 0 is the input
        entry["lens_top"] = common(seen["lens_top"][:, layer + 1])
        add("lens_answer_p", seen["lens_answer_p"][:, layer + 1])
        entry["value_lens_top"] = common(seen["value_lens_top"][:, layer])
        add("value_lens_answer_p", seen["value_lens_answer_p"][:, layer])
        contribution: dict[str, Any] = {}
        for name in ("norm_max", "norm_mean", "cosine_lowest", "n_cosine_below", "n_norm_above"):
            add(name, seen[name][:, layer], contribution)
        ranked = seen["contribution_ranked"][:, layer]
        contribution["norm_at_rank"] = {str(r): float(ranked[:, r - 1].mean()) for r in RANKS if r <= ranked.shape[1]}
        entry["contribution"] = contribution
        out.append(entry)
    return out


def _knockout_row(kind: str, start: int, end: int, outcome: Outcome, weights: NDArray[np.float64]) -> dict[str, Any]:
    accuracy, low, high = stages.interval(weights, outcome.score)
    flips, flips_low, flips_high = stages.interval(weights, outcome.flipped)
    return {
        "kind": kind,
        "start": start,
        "end": end,
        "accuracy": float(accuracy),
        "low": float(low),
        "high": float(high),
        "flips": float(flips),
        "flips_low": float(flips_low),
        "flips_high": float(flips_high),
        "n": len(outcome.score),
    }


def _sample_table(seen: Mapping[str, NDArray[Any]], asker: Asker, loaded: LoadedModel) -> Any:
    """One row per sample and layer."""
    import pandas as pd

    n, depth = seen["n_sinks"].shape
    columns: dict[str, Any] = {
        "key": np.repeat(asker.keys, depth),
        "image": np.repeat(asker.images, depth),
        "layer": np.tile(np.arange(depth, dtype=np.int16), n),
    }
    for rows in ("last", "question"):
        for g, group in enumerate(("visual", "before", "after")):
            columns[f"mass_{group}_{rows}"] = seen[f"mass_{rows}"][:, :, g].ravel()
        columns[f"entropy_{rows}"] = seen[f"entropy_{rows}"].ravel()
    for name in (
        "sink_share", "n_sinks", "value_l1_sink", "value_l1_other", "value_l2_sink", "value_l2_other",
        "norm_max", "norm_mean", "cosine_lowest", "n_cosine_below", "n_norm_above",
    ):  # fmt: skip
        columns[name] = seen[name].ravel()
    for rank in (r for r in RANKS if r <= seen["contribution"].shape[-1]):
        columns[f"norm_rank_{rank}"] = seen["contribution_ranked"][:, :, rank - 1].ravel()
    vocabulary = loaded.processor.tokenizer.convert_ids_to_tokens
    for prefix, first in (("lens", 1), ("value_lens", 0)):
        columns[f"{prefix}_top"] = vocabulary([int(t) for t in seen[f"{prefix}_top"][:, first:].ravel()])
        for name in ("top_p", "answer_p"):
            columns[f"{prefix}_{name}"] = seen[f"{prefix}_{name}"][:, first:].ravel()
    frame = pd.DataFrame(columns)
    narrow = {c: "int32" if c.startswith("n_") else "float32" for c in frame.columns if frame[c].dtype in (np.float64, np.int64)}
    return frame.astype(narrow)


def _knockout_table(
    asker: Asker, texts: Mapping[str, str], unpruned: Outcome, answers: Mapping[Cut, Mapping[str, str]], outcomes: Mapping[Cut, Outcome]
) -> Any:
    """One row per sample and cut."""
    import pandas as pd

    parts = [("none", 0, 0, texts, unpruned), *((*cut, answers[cut], outcome) for cut, outcome in outcomes.items())]
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "kind": kind,
                    "start": np.int16(start),
                    "end": np.int16(end),
                    "key": asker.keys,
                    "answer": [said[key] for key in asker.keys],
                    "score": outcome.score.astype(np.float32),
                    "flipped": outcome.flipped,
                }
            )
            for kind, start, end, said, outcome in parts
        ],
        ignore_index=True,
    )


# --------------------------------------------------------------------------------------------------------------- the config


def _tried(located: Located, asker: Asker, knobs: Mapping[str, Any]) -> Tried:
    """VisiPruner with these knobs (the model's own defaults below them) on the asker's samples; from the journal where it is there."""
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


def _derived(located: Located, askers: Sequence[Asker], document: Mapping[str, Any], say: Callable[[str], None]) -> Calibrated:
    """Knobs that hold on the samples of every asker; the first one's are the analysed ones."""
    found = document["stages"]
    known = Stages(found["shallow_end"], tuple(found["fusion"]), found["not_needed_from"], found["rule"], found["uncertainty"])
    first = askers[0]

    def probe(shallow: int) -> Probe:
        method = ShallowProbe(shallow=shallow > 0, shallow_mid_layer=shallow, middle=False, deep=False)
        first.ask(method)
        lowest, norms = zip(*(method.into[key] for key in first.keys), strict=True)
        return Probe(np.stack(lowest), np.stack(norms))

    def trial(asker: Asker) -> Trial:
        unpruned = asker.by_task(asker.scores(asker.texts("unpruned", Method())))
        return Trial(partial(_tried, located, asker), unpruned, {task.name: len(task.samples) for task in asker.tasks})

    return stages.calibrate([trial(asker) for asker in askers], probe, known, located.shape.depth, say=say)


def _summary(derived: Calibrated, located: Located, asker: Asker) -> dict[str, Any]:
    def numbers(tried: Tried) -> dict[str, Any]:
        return {"accuracy": tried.accuracy, "by_task": dict(tried.by_task), "kept": tried.kept, "flops": tried.flops}

    return {
        "knobs": derived.knobs,
        "calibrated": numbers(derived.outcome),
        "scaled_defaults": numbers(_tried(located, asker, {})),
        "unpruned": {"by_task": dict(derived.unpruned), "kept": float(located.usual.n_visual), "flops": 1.0},
        "questions": len(asker.keys),
        "criterion": derived.criterion,
        "notes": list(derived.notes),
        "steps": list(derived.steps),
    }


def write_config(file: Path, derived: Calibrated, document: Mapping[str, Any]) -> None:
    """A file that `BUDGET=calibrated` reads: the knobs, and in words how they were derived. The same analysis writes the same bytes."""
    split = document["split"]

    def by_task(numbers: Mapping[str, float | int]) -> str:
        return ", ".join(f"{task} {x:.4f}" if isinstance(x, float) else f"{task} {x}" for task, x in numbers.items())

    outcome = derived.outcome
    cost = f"{100 * outcome.flops:.1f} % of the unpruned prefill FLOPs and {outcome.kept:.1f} kept tokens"
    lines = [
        f"command: {document['command']}",
        f"model: {document['model']}, weights {document['fingerprint']}",
        f"split: {split['data']}, disjoint from the test data by image name and SHA-256 ({split['test_images_compared']} test images compared)",
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


def _rounded(value: Any) -> Any:
    """Six significant digits, and null for what is not a number."""
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def report(document: Mapping[str, Any]) -> str:
    """What a terminal shows: the stages and one line per layer."""
    from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

    by_cut = {(k["kind"], k["start"], k["end"]): k for k in document["knockouts"]}
    depth = document["depth"]
    rows = []
    for entry in document["layers"]:
        l = entry["layer"]
        single, prefix, suffix = (by_cut.get((TEXT, *span)) for span in ((l, l + 1), (0, l + 1), (l, depth)))
        rows.append(
            [
                l, entry["mass_visual_last"], entry["entropy"], entry["sink_share"], entry["lens_answer_p"], entry["contribution"]["cosine_lowest"],
                *(None if k is None else 100 * k[what] for k, what in ((single, "flips"), (prefix, "accuracy"), (suffix, "flips"))),
            ]
        )  # fmt: skip
    heads = [
        "layer", "visual mass\n(last row)", "entropy\n(nats)", "share on\nsinks", "answer\n(lens)", "lowest\ncosine",
        "% flips\ncut alone", "% accuracy\ncut 0..layer", "% flips\nvision gone",
    ]  # fmt: skip
    text: str = tabulate(rows, headers=heads, floatfmt=("d", ".3f", ".2f", ".3f", ".3f", ".4f", ".1f", ".1f", ".1f"), missingval="-")
    text += f"\n\nunpruned accuracy {100 * document['accuracy']['mean']:.1f} % of {document['n_samples']} questions"
    found = document["stages"]
    if found:
        text += (
            f"\nshallow: {found['shallow_end']} layers; fusion: {', '.join(map(str, found['fusion'])) or 'none'}; "
            f"vision not needed from layer {found['not_needed_from']}"
        )
    pruner = document.get("visipruner")
    if pruner is not None:
        text += f"\nvisipruner on {pruner['questions']} questions:"
        for name in ("unpruned", "calibrated", "scaled_defaults"):
            accuracy = ", ".join(f"{task} {100 * value:.1f} %" for task, value in pruner[name]["by_task"].items())
            cost = f"{100 * pruner[name]['flops']:.1f} % of unpruned FLOPs, {pruner[name]['kept']:.1f} tokens kept"
            text += f"\n  {name.replace('_', ' ')}: {accuracy}; {cost}"
    return text
