"""Do the tests bite? Seeded faults that the conformance kit or a recorded official run must catch: `prunebench mutations`.

A fault is one piece of one function's source replaced while the kit and a few golden cases run. The function object stays and
only its code changes, so every module that imported it sees the fault. A fault that nothing catches fails the command. Faults in
what questions about one image share are looked for where they can be seen: in answers with sharing and without.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import import_module
from types import FunctionType
from typing import Any

import torch

from harness.core.errors import PrunebenchError
from harness.core.paths import REPOSITORY
from harness.method import Method, Reduction, Run, Stream, Traits, method_class
from harness.proof.conformance.kit import check, one_thread, tiny_model
from harness.proof.golden_files import load_index, read_case
from harness.proof.goldens import LOGIT_TOLERANCE, compare, method_of, replay
from methods.knockout import Knockout
from methods.pooling import Pooling
from methods.random import Random

GOLDENS = REPOSITORY / "tests" / "goldens"
#: small methods, one for each question that a method may ask
ASKING = str(GOLDENS.parent / "examples" / "asking.py")

FASTV = ("fv_kvcache_k2_r64_mha8_p24", "fv_kvcache_k3_r144_mha8_p24", "fv_kvcache_k2_r144_gqa_p24")
SPARSEVLM = ("sv_v1_r64_mha8_p24", "sv_v1_r128_mha16_p24", "sv_v1_r64_mha8_p24_noise")
SPARSEVLM_PLUS = ("sv_v2_r64_mha16_p24", "sv_v2_r192_mha16_p24")
VISIPRUNER = ("vp_SMD_7b_t1_mha8_p24", "vp_SMD_13b_t2_mha8_p24", "vp_S_7b_t2_mha8_p24", "vp_SMD_7b_g1_gqa_p24")
#: without the shallow stage: votes, thresholds and layers by themselves
VOTES = (
    "vp_MD_keepall_7b_mha8_p24b",
    "vp_MD_sml9_7b_mha8_p24",
    "vp_MD_7b_t1_mha8_p24",
    "vp_D_only_7b_mha8_p24b",
    "vp_MD_sml1_7b_mha8_p24",
)


@dataclass(frozen=True)
class Fault:
    """`where` is "module:function" or "module:Class.function"; `old` stands once in its source and becomes `new`.

    `method` with `knobs` goes through the kit, `cases` are replayed; where `sharing`, it answers with shared prefixes and without
    instead (neither kit nor cases share any).
    """

    name: str
    where: str
    old: str
    new: str
    method: str
    cases: tuple[str, ...] = ()
    knobs: Mapping[str, Any] = field(default_factory=dict)
    sharing: bool = False


@dataclass(frozen=True)
class Drawn(Random):
    """Draws for every question and says that the image alone decides."""

    name = "drawn"
    traits = Traits(query_aware=False, image_only=True)


@dataclass(frozen=True)
class Weighted(Pooling):
    """Merges otherwise for every question and says that the image alone decides."""

    name = "weighted"

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        reduction = super().at_boundary(run, layer, stream)
        if reduction is None or reduction.added is None:
            return None
        text = stream.after.sum(1, keepdim=True) if stream.after.shape[1] else torch.zeros(1, device=reduction.added.device)
        return replace(reduction, added=reduction.added + 0.05 * text)


@dataclass(frozen=True)
class Unannounced(Knockout):
    """Edits visual rows and names no prefix for it: it may share up to its first edit only."""

    name = "unannounced"

    def prefix_key(self) -> str:
        return ""


_SHARED = "harness.engine.prefix:Shared."
_ENGINE, _LAYOUT, _ATTENTION = "harness.engine.attach:EngineRun.", "harness.engine.layout:TokenLayout.", "harness.engine.attention:"
_RANKING = "harness.method.ranking:"
_FASTV, _SPARSEVLM, _VISIPRUNER = "methods.fastv:FastV.", "methods.sparsevlm:SparseVLM.", "methods.visipruner:VisiPruner."

FAULTS = (
    # selection
    Fault(
        "top-k ascending: the least important tokens stay",
        _RANKING + "keep_top",
        "descending=True",
        "descending=False",
        "fastv",
        FASTV,
    ),
    Fault(
        "scores of batch row 0 for every row",
        _FASTV + "on_attention",
        ".mean(1)[:, 0]",
        ".mean(1)[:1, 0].expand(run.visual_valid.shape)",
        "fastv",
    ),
    Fault(
        "kept count one short",
        _RANKING + "Ranking.at_boundary",
        "run.quota(self.keep)",
        "run.quota(self.keep) - 1",
        "fastv",
        FASTV,
    ),
    # the engine
    Fault(
        "kept tokens in reverse order",
        _LAYOUT + "reduce",
        "order_key = torch.where(stays, 4 * (column + 1), 0)",
        "order_key = torch.where(stays, 4 * (torch.where(kept_visual, (first + last)[:, None] - column, column) + 1), 0)",
        "fastv",
        FASTV,
    ),
    Fault("positions renumbered where they stay", _LAYOUT + "reduce", "if compact else", "if True else", "fastv", FASTV),
    Fault("positions stay where they are renumbered", _LAYOUT + "reduce", "if compact else", "if False else", "sparsevlm", SPARSEVLM),
    Fault(
        "a text token lost in a reduction",
        _LAYOUT + "reduce",
        "n_new = int(stays.sum(1).max())",
        "n_new = int(stays.sum(1).max()) - 1",
        "fastv",
        FASTV,
    ),
    Fault(
        "merged tokens at the position of the last kept one",
        _LAYOUT + "reduce",
        "take(positions, last.clamp(min=0)[:, None]) + 1, place)",
        "take(positions, last.clamp(min=0)[:, None]), place)",
        "sparsevlm",
        SPARSEVLM,
    ),
    Fault("decode positions off by one", _ENGINE + "_decode_inputs", "+ self._steps", "+ self._steps + 1", "fastv", FASTV),
    Fault(
        "decode attends padding", _ENGINE + "_decode_inputs", "layout.padded or hidden_tokens", "hidden_tokens", "fastv", FASTV
    ),
    Fault(
        "shallow keys hidden from generated tokens are attended",
        _ENGINE + "_decode_inputs",
        "seen = seen & ~layout.visual_to_columns(hidden_tokens)",
        "seen = seen.clone()",
        "visipruner",
        knobs={"variant": "paper"},
    ),
    Fault(
        "prefill attends padding",
        _LAYOUT + "mask",
        "allowed = causal & self.valid[:, None, :]",
        "allowed = causal.expand(len(self.valid), n, n)",
        "fastv",
    ),
    Fault(
        "scores include padding",
        _ATTENTION + "softmax_rows",
        "(key_index <= asked.columns[:, :, None]) & layout.valid[:, None, :]",
        "(key_index <= asked.columns[:, :, None]).expand(-1, -1, layout.n)",
        "fastv",
    ),
    Fault(
        "cache of one key too few in the trace",
        _ENGINE + "_boundary",
        "LayerTrace(layout.n, layout.counts,",
        "LayerTrace(layout.n - 1, [c - 1 for c in layout.counts],",
        "fastv",
    ),
    Fault(
        "state of one prompt reaches the next",
        _ENGINE + "_begin_prefill",
        "self.memo = {}",
        "self.memo.pop('keep', None)",
        "visipruner",
        VISIPRUNER,
    ),
    Fault(
        "the model's attention kernel is not restored",
        "harness.engine.attach:attach",
        "text_config._attn_implementation = before",
        "pass",
        "fastv",
    ),
    Fault(
        "a second attach is accepted",
        "harness.engine.attach:attach",
        "if any(id(a) in _ACTIVE for a in attentions):",
        "if not attentions:",
        "fastv",
    ),
    Fault("the seed is ignored", _ENGINE + "generator", "{self._seed}", "0", "random"),
    Fault(
        "draws depend on the row of the batch",
        _ENGINE + "generator",
        "self.samples[row] if self.samples is not None else str(row)",
        "str(row)",
        "random",
    ),
    Fault("changed pixels are not used", _ENGINE + "_on_tower", "pixels if changed is None else changed", "pixels", "downsample"),
    # attention edits
    Fault(
        "shallow stage renormalised",
        _ATTENTION + "apply_edits",
        "values = v.masked_fill(cols[:, None, :, None], 0)",
        "allowed = allowed & ~cols[:, None, :]",
        "visipruner",
        VISIPRUNER,
    ),
    Fault(
        "redirect to the next token",
        _ATTENTION + "sink_columns",
        "visual[:, edit.sink]",
        "visual[:, edit.sink + 1]",
        "visipruner",
        VISIPRUNER,
    ),
    # FastV
    Fault("FastV scores one layer early", _FASTV + "on_attention", "self.boundary - 1", "self.boundary - 2", "fastv", FASTV),
    Fault(
        "FastV prunes one layer late",
        _RANKING + "Ranking.at_boundary",
        "layer != self.boundary",
        "layer != (self.boundary or 0) + 1",
        "fastv",
        FASTV,
    ),
    Fault(
        "FastV takes the largest head, not the mean", _FASTV + "on_attention", ".mean(1)[:, 0]", ".amax(1)[:, 0]", "fastv", FASTV
    ),
    # VisiPruner
    Fault(
        "VisiPruner's votes must be consecutive",
        _VISIPRUNER + "on_attention",
        "if self.consecutive_votes:",
        "if True:",
        "visipruner",
        VOTES + VISIPRUNER,
    ),
    Fault(
        "VisiPruner tests layer S too",
        _VISIPRUNER + "on_attention",
        "layer <= self.shallow_mid_layer",
        "layer < self.shallow_mid_layer",
        "visipruner",
        VOTES + VISIPRUNER,
    ),
    Fault(
        "VisiPruner exits although all tokens were kept",
        _VISIPRUNER + "on_attention",
        '& (memo["kept"] < run.n_prompt_visual)',
        "",
        "visipruner",
        VOTES,
    ),
    Fault(
        "VisiPruner exits after one vote",
        _VISIPRUNER + "on_attention",
        ">= self.exit_votes)",
        ">= 1)",
        "visipruner",
        VOTES + VISIPRUNER,
    ),
    Fault(
        "VisiPruner keeps tokens below its threshold",
        _VISIPRUNER + "on_attention",
        "norm > self.tokens_threshold",
        "norm <= self.tokens_threshold",
        "visipruner",
        VOTES + VISIPRUNER,
    ),
    Fault(
        "VisiPruner halves where it merges",
        _VISIPRUNER + "edit_attention",
        'self.layer0 == "merge"',
        'self.layer0 != "merge"',
        "visipruner",
        VISIPRUNER,
    ),
    Fault(
        "VisiPruner silences layer S too",
        _VISIPRUNER + "edit_attention",
        "layer >= self.shallow_mid_layer",
        "layer > self.shallow_mid_layer",
        "visipruner",
        VISIPRUNER,
    ),
    Fault(
        "VisiPruner ranks by attention without values",
        "methods.visipruner:contributions",
        "return each.norm(dim=-1)",
        "return probs.norm(dim=1)",
        "visipruner",
        VOTES + VISIPRUNER,
    ),
    # SparseVLM
    Fault(
        "SparseVLM's recycled tokens are dropped",
        _SPARSEVLM + "at_boundary",
        "Reduction(keep, added, added_valid,",
        "Reduction(keep, None, None,",
        "sparsevlm",
        SPARSEVLM,
    ),
    Fault(
        "SparseVLM sums its clusters",
        "methods.sparsevlm:cluster_means",
        "(sums / torch.bincount(member, minlength=n)[:, None])",
        "sums",
        "sparsevlm",
        SPARSEVLM,
    ),
    Fault(
        "SparseVLM recycles the worst tokens",
        _SPARSEVLM + "_recycle",
        "descending=True",
        "descending=False",
        "sparsevlm",
        SPARSEVLM,
    ),
    Fault(
        "SparseVLM's raters match less than average",
        _SPARSEVLM + "_raters",
        "relevance > mean",
        "relevance < mean",
        "sparsevlm",
        SPARSEVLM,
    ),
    Fault(
        "SparseVLM is rated by the last token alone",
        _SPARSEVLM + "_raters",
        "return (relevance > mean) & text_valid",
        "return text_valid & (text_valid.long().cumsum(1) == text_valid.sum(1, keepdim=True))",
        "sparsevlm",
        SPARSEVLM,
    ),
    Fault(
        "SparseVLM decodes at one position for all layers",
        _SPARSEVLM + "at_boundary",
        'decode_positions="per_layer"',
        'decode_positions="original"',
        "sparsevlm",
        SPARSEVLM,
    ),
    Fault(
        "SparseVLM+ without RoPE's bias",
        _SPARSEVLM + "on_attention",
        "probs / bias",
        "probs",
        "sparsevlm",
        SPARSEVLM_PLUS,
        {"plus": True},
    ),
    Fault(
        "SparseVLM+ takes all heads",
        _SPARSEVLM + "on_attention",
        "mass.topk(min(self.max_heads, mass.shape[1])",
        "mass.topk(mass.shape[1]",
        "sparsevlm",
        SPARSEVLM_PLUS,
        {"plus": True},
    ),
    # what a method may ask, and what it may return
    Fault(
        "the coming layer's scores are those of the layer before",
        "harness.engine.stream:BoundaryStream.coming_probs",
        "adapter.keys(layer, hidden)",
        "adapter.keys(layer - 1, hidden)",
        f"{ASKING}:Coming",
    ),
    Fault(
        "the coming layer's keys are not rotated",
        "harness.engine.stream:BoundaryStream.coming_probs",
        "self._rotate(adapter.keys(layer, hidden), layout.positions)",
        "adapter.keys(layer, hidden)",
        f"{ASKING}:Coming",
    ),
    Fault(
        "states under the final norm are the bare ones",
        "harness.engine.stream:BoundaryStream._gathered",
        "if self._under_norm:",
        "if False:",
        f"{ASKING}:Pivots",
    ),
    Fault(
        "values for keys",
        _ATTENTION + "LayerAttention.visual_keys",
        "self._k",
        "self._v",
        f"{ASKING}:Pivots",
    ),
    Fault(
        "the mean head for the largest",
        _ATTENTION + "visual_probs",
        "values.amax(1, keepdim=True)",
        "values.mean(1, keepdim=True)",
        f"{ASKING}:Masses",
    ),
    Fault(
        "column sums of the first queries only",
        "harness.engine.tower:_summed_rows",
        "else total + rows",
        "else total",
        f"{ASKING}:Sums",
    ),
    Fault("an order is not followed", _LAYOUT + "reduce", "if order is not None:", "if False:", f"{ASKING}:Ordered"),
    Fault(
        "front tokens stand behind the kept ones",
        _LAYOUT + "reduce",
        "4 * (head + 1) - 1",
        "4 * (last + 1) + 1",
        f"{ASKING}:Fronted",
    ),
    Fault(
        "the projection of a method's features costs nothing",
        _ENGINE + "project",
        "b * m * per_token",
        "0 * b * m * per_token",
        f"{ASKING}:Fronted",
    ),
    Fault(
        "a quota of the first prompt's tokens for every prompt",
        _ENGINE + "quota",
        "for n in counts",
        "for n in [counts[0]] * len(counts)",
        "fastv",
    ),
    # shared prefixes
    Fault(
        "a prefix's keys and values one column off",
        _SHARED + "fill",
        "known[:, :under]",
        "known.roll(1, 1)[:, :under]",
        "fastv",
        sharing=True,
    ),
    Fault(
        "questions with a prefix attend padding",
        _SHARED + "mask",
        "allowed[None] & self._valid[:, None, :]",
        "allowed[None].expand(len(self.pads), -1, -1)",
        "fastv",
        sharing=True,
    ),
    Fault(
        "padding beside a prefix is left as it was found",
        _SHARED + "fill",
        "buffer[start:end, :, :pad] = 0",
        "buffer[start:end, :, :pad] = float('nan')",
        "fastv",
        sharing=True,
    ),
    Fault(
        "prefix tokens beside a shorter question are not set anew",
        _SHARED + "corrected",
        "hidden[row, :inside] = self._entering(prefix, layer)[under:]",
        "pass",
        "fastv",
        sharing=True,
    ),
    Fault(
        "a reduction finds the image as it was at layer 0",
        _SHARED + "whole",
        "(self.prefixes[start], layer)[:under]",
        "(self.prefixes[start], 0)[:under]",
        "fastv",
        sharing=True,
    ),
    Fault(
        "a prefix is used under edits that it was not computed with",
        _SHARED + "knows",
        "return all(",
        "return True or all(",
        "harness.proof.faults:Unannounced",
        knobs={"start": 1, "stop": 4, "vision_to_vision": True},
        sharing=True,
    ),
    Fault(
        "a question goes on from what a prefix kept, whatever it keeps itself",
        _SHARED + "reduced",
        "(places == known.source).all()",
        "(places >= 0).all()",
        "harness.proof.faults:Drawn",
        sharing=True,
    ),
    Fault(
        "what a question merges is not compared with its prefix",
        _SHARED + "reduced",
        "if not _close(",
        "if False and not _close(",
        "harness.proof.faults:Weighted",
        sharing=True,
    ),
    Fault(
        "behind a reduction a prefix goes on unreduced",
        _SHARED + "_entering",
        "or layer == self.since",
        "or layer < self.since",
        "uniform",
        sharing=True,
    ),
    Fault(
        "pairs silenced in a prefix are paid for",
        _ENGINE + "_attention",
        "known = [p.silenced[layer] for p in shared.prefixes]",
        "known = [0 for p in shared.prefixes]",
        "visipruner",
        sharing=True,
    ),
)


@dataclass(frozen=True)
class Caught:
    """`kit`: properties that fail under the fault; `cases`: golden cases that no longer reproduce, of `fault.cases`; `sharing`: what
    differs between answers with shared prefixes and without."""

    fault: Fault
    kit: tuple[str, ...]
    cases: tuple[str, ...]
    sharing: tuple[str, ...] = ()

    @property
    def survived(self) -> bool:
        return not self.kit and not self.cases and not self.sharing


def _function(where: str) -> FunctionType:
    module, _, path = where.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        found = inspect.getattr_static(found, part)
    if isinstance(found, property):
        found = found.fget
    if isinstance(found, cached_property):
        found = found.func
    found = getattr(found, "__func__", found)
    unwrapped = inspect.unwrap(found)
    if not isinstance(unwrapped, FunctionType):
        raise PrunebenchError(f"fault in {where}: expected a function, found {unwrapped!r}")
    return unwrapped


@contextmanager
def seeded(fault: Fault) -> Iterator[None]:
    """The fault is in the code inside the block. Raises PrunebenchError where its `old` does not stand exactly once."""
    function = _function(fault.where)
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(fault.old) != 1:
        raise PrunebenchError(
            f"fault {fault.name!r}: expected {fault.old!r} once in {fault.where}, found it {source.count(fault.old)} times"
        )
    lines = source.replace(fault.old, fault.new).splitlines(keepends=True)
    while lines[0].startswith("@"):  # decorators are one line each here
        lines.pop(0)
    names: dict[str, Any] = dict(function.__globals__)
    exec(compile("from __future__ import annotations\n" + "".join(lines), f"<fault: {fault.name}>", "exec"), names)
    sound, function.__code__ = function.__code__, names[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = sound


def failing_properties(method: str, knobs: Mapping[str, Any]) -> tuple[str, ...]:
    """The kit's failures; a method that can no longer be built fails as a whole."""
    try:
        return tuple(v.name for v in check(method_class(method), knobs=knobs) if v.status == "FAIL")
    except PrunebenchError:
        return ("can be built",)


def failing_cases(cases: Sequence[str]) -> tuple[str, ...]:
    """The golden cases that do not reproduce; one that raises does not either."""
    files = {entry["id"]: entry["file"] for entry in load_index(GOLDENS)}
    failing = []
    for name in cases:
        case = read_case(GOLDENS, files[name])
        try:
            reproduced = compare(case, replay(GOLDENS, case, method_of(case))).mismatch is None
        except Exception:  # a fault may raise anything
            reproduced = False
        if not reproduced:
            failing.append(name)
    return tuple(failing)


@cache
def _asked() -> tuple[Any, list[Any]]:
    """The mini model, and questions of unlike length on two of its images."""
    from harness.models.load import locate_model
    from harness.runner.answering import Prompt
    from tasks import lmms
    from tasks.sources import DataSource

    samples = lmms.load_task("textvqa", DataSource.parse("mini"), 24, 0).samples
    images = list({s.image_key: s for s in samples}.values())[:2]
    prompts = [Prompt(f"{s.key}-{n}", s.prompt + n * " x x x", s.load_image, s.image_key, 4) for s in images for n in (0, 2, 7)]
    return locate_model("mini", "cpu", "float32").load(), prompts


def failing_sharing(method: str, knobs: Mapping[str, Any]) -> tuple[str, ...]:
    """What differs between answers with shared prefixes and without, on the mini model: answers, first logits, kept tokens, costs."""
    from harness.core import budget
    from harness.engine.prefix import PrefixCache
    from harness.method import build
    from harness.runner.answering import Answerer

    class Watched(Answerer):
        """Notes the logits of the first new token, by sample: a small error need not change an answer."""

        def _decode(self, logits: Any, cache: Any, prompts: Any) -> list[list[int]]:
            first.update({p.key: row.clone() for p, row in zip(prompts, logits, strict=True)})
            return super()._decode(logits, cache, prompts)

    loaded, prompts = _asked()
    asks = budget.parse("48") if method_class(method).budget_knobs else budget.NONE
    built: Method = build(method, asks, knobs, loaded.usual)
    found = []
    for prefixes in (None, PrefixCache()):
        first: dict[str, Any] = {}
        try:
            answers = list(Watched(loaded, built, batch_size=4, prefixes=prefixes).answer(prompts))
            found.append({a.key: (a.text, first[a.key], a.kept, a.cost) for a in answers})
        except Exception as error:  # a fault may raise anything
            return (f"the run stops ({type(error).__name__})",)
    alone, shared = found
    differs = {
        "answers": any(alone[key][0] != shared[key][0] for key in alone),
        "logits": max(float((alone[key][1] - shared[key][1]).abs().max()) for key in alone) > LOGIT_TOLERANCE,
        "kept tokens": any(alone[key][2] != shared[key][2] for key in alone),
        "costs": any(alone[key][3] != shared[key][3] for key in alone),
    }
    return tuple(name for name, other in differs.items() if other)


def try_fault(fault: Fault) -> Caught:
    """Run the kit and the golden cases, or answers with and without shared prefixes, with the fault in place."""
    if fault.sharing:
        with one_thread(), seeded(fault):
            return Caught(fault, (), (), failing_sharing(fault.method, fault.knobs))
    with one_thread(), seeded(fault):
        kit, cases = failing_properties(fault.method, fault.knobs), failing_cases(fault.cases)
    if "exception restores the model" in kit:
        tiny_model.cache_clear()  # the fault may have left the models spoilt
    return Caught(fault, kit, cases)


def try_sound(faults: Sequence[Fault] = FAULTS) -> None:
    """Raises PrunebenchError unless kit and golden cases pass without a fault: a test that always fails catches everything."""
    for method, knobs, sharing in {(f.method, tuple(f.knobs.items()), f.sharing) for f in faults}:
        failing = (failing_sharing if sharing else failing_properties)(method, dict(knobs))
        if failing:
            test = "answers otherwise with shared prefixes" if sharing else "fails the kit"
            raise PrunebenchError(f"{method} {test} without any fault: {', '.join(failing)}")
    failing = failing_cases(sorted({case for f in faults for case in f.cases}))
    if failing:
        raise PrunebenchError(f"cases that do not reproduce without any fault: {', '.join(failing)}")


def markdown(caught: Sequence[Caught]) -> str:
    """Who caught what, as a table; no numbers that depend on the machine."""
    survived = [c.fault.name for c in caught if c.survived]
    by_kit, by_cases, by_sharing = (sum(map(bool, found)) for found in zip(*((c.kit, c.cases, c.sharing) for c in caught), strict=True))
    lines = [
        "# Seeded faults, and what caught them",
        "",
        "Written by `prunebench mutations`. Each fault replaces one piece of one function while the conformance kit",
        "(`prunebench check`) and some recorded runs of the official implementations (`tests/goldens`) run.",
        "",
        f"{len(caught) - len(survived)} of {len(caught)} faults caught: {by_kit} by the kit, {by_cases} by recorded runs (of the "
        f"{sum(bool(c.fault.cases) for c in caught)} that were replayed on them), {by_sharing} (of {sum(c.fault.sharing for c in caught)} in what",
        "questions about one image share) by answers with shared prefixes and without.",
        "",
        "| fault | seeded in | kit: failing properties | recorded runs: failing | sharing: what differs |",
        "|---|---|---|---|---|",
    ]
    for c in caught:
        kit = "; ".join(c.kit[:3]) + (f"; {len(c.kit) - 3} more" if len(c.kit) > 3 else "")
        shown = ", ".join(c.cases[:2]) + ("..." if len(c.cases) > 2 else "")
        cases = (
            f"{len(c.cases)} of {len(c.fault.cases)}" + (f" ({shown})" if c.cases else "") if c.fault.cases else "not replayed"
        )
        kit = kit or ("**SURVIVED**" if c.survived else "not run" if c.fault.sharing else "none")
        sharing = ", ".join(c.sharing) or ("none" if c.fault.sharing else "not run")
        lines.append(f"| {c.fault.name} | `{c.fault.where}` | {kit} | {cases} | {sharing} |")
    return "\n".join(lines) + "\n"
