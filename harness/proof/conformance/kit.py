"""The conformance kit, `prunebench check METHOD`: what every pruning method must do, on tiny random models, in seconds on a CPU.

One function per property, each a verdict: ok, FAIL with the values found, or n/a with the reason. Exceptions are granted only
through the traits that a method declares. Models are random LLaVAs of 8 x 8 visual tokens whose query
and key weights are large, so that attention is peaked and no selection is near a tie. What the engine computes is compared with
`reference`, a plain layer loop over the tokens present, without cache, fused kernel or layouts.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, DynamicCache

from harness.core import budget as budgets
from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.core.shape import Grid, ImageShape, ModelShape, PromptShape, VisionShape
from harness.engine.attach import EngineRun, attach
from harness.engine.contract import changed_pixels
from harness.method import AttentionEdit, Method, Reduction, check_budget, method_class, typed_knobs
from harness.models.adapters import Adapter, LlavaAdapter, adapter_for
from harness.models.adapters.llava import plant_beacon
from harness.models.adapters.text_encoder import Encoded

GRID, PATCH = 8, 4
N_VISUAL = GRID * GRID
VOCAB, IMAGE_TOKEN = 128, 127
DEPTH = 12
DEFAULT_BUDGET = 16
#: decode steps that are compared, with given tokens: a greedy choice could flip on rounding
STEPS = 3
#: of logits, whose spread is about 1: the most that another order of float32 sums may change, and the least that is a change
SAME, CHANGED = 1e-3, 1e-2
DEPTHS = (4, 12, 40)


# ----------------------------------------------------------------------------------------------------------- models and prompts


@lru_cache(maxsize=8)
def tiny_model(depth: int = DEPTH, kv_heads: int = 4, dtype: torch.dtype = torch.float32, beacon: bool = False) -> Any:
    """A random LLaVA with peaked attention.

    `beacon`: two channels that no layer writes to carry a constant and a flag, and every head of every layer scores keys by the
    flag, so that the visual token flagged by `flagged` is what all later rows attend to most.
    """
    decoder = ModelShape(depth=depth, hidden=64, heads=4, kv_heads=kv_heads, head_dim=16, mlp=96, vocab=VOCAB, bytes_per_value=4)
    vision = VisionShape(layers_used=2, hidden=32, mlp=32, tokens=N_VISUAL + 1, patch_inputs=3 * PATCH**2, projector_hidden=64)
    usual = PromptShape(decoder, (ImageShape((Grid(GRID, GRID),), vision),))
    config = LlavaAdapter.config_of(
        usual, tower_heads=2, image_token_id=IMAGE_TOKEN, max_position_embeddings=1024, rms_norm_eps=1e-6
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(2)  # the library starts the tower's class embedding; of the first numbers, 1 to 3 leave no method at a tie
        model: Any = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(7)
    decoding = {id(weight) for weight in adapter_for(model).text.parameters()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                fan_in = 1 if "embed" in name and "patch" not in name else weight[0].numel()
                gain = 2.0 if name.endswith(("q_proj.weight", "k_proj.weight")) and id(weight) in decoding else 1.0
                weight.copy_(torch.randn(weight.shape, generator=generator) * gain / fan_in**0.5)
        if beacon:
            plant_beacon(model)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.to(dtype).eval()


@contextmanager
def flagged(model: Any, token: int) -> Iterator[None]:
    """Put the flag of a beacon model on visual token `token` of every image."""

    def flag(_module: Any, _args: Any, out: Tensor) -> Tensor:
        if out.shape[-2] != N_VISUAL:  # features of a method's own
            return out
        out = out.clone()
        out[..., token, 1] = 6.0
        return out

    handle = LlavaAdapter(model).projector.register_forward_hook(flag)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True, eq=False)
class Prompt:
    """`ids` with its image tokens, `pixels (images, 3, h, w)`, and the tokens fed as decode steps."""

    key: str
    ids: list[int]
    pixels: Tensor
    next_ids: list[int]


@cache
def prompt(number: int, n_after: int, images: int = 1) -> Prompt:
    """Random prompt `number`: three text tokens, the images with a token between them, `n_after` text tokens."""
    g = torch.Generator().manual_seed(number)

    def text(n: int) -> list[int]:
        return [int(t) for t in torch.randint(3, VOCAB - 8, (n,), generator=g)]

    ids = text(3)
    for image in range(images):
        ids += (text(1) if image else []) + [IMAGE_TOKEN] * N_VISUAL
    pixels = torch.randn(images, 3, GRID * PATCH, GRID * PATCH, generator=g)
    return Prompt(f"prompt {number}", ids + text(n_after), pixels, text(STEPS))


PROMPTS = (prompt(1, 6), prompt(2, 11), prompt(3, 9))


@dataclass(frozen=True)
class Asked:
    """What the engine did with a batch.

    `logits (b, 1 + steps, vocab)`; `lengths`: KV columns per layer after the prefill; `origins`: per layer and row the visual
    tokens present, by their number in the prompt (-2: added by the method).
    """

    logits: Tensor
    lengths: list[int]
    origins: list[list[list[int]]]
    run: EngineRun


def _batch(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    width = max(len(p.ids) for p in prompts)
    ids = torch.tensor([[0] * (width - len(p.ids)) + p.ids for p in prompts])
    mask = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in prompts])
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.cat([p.pixels for p in prompts])}


def _inputs(model: Any, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    batch = _batch(prompts)
    return batch | {"pixel_values": batch["pixel_values"].to(model.dtype)}


@torch.inference_mode()
def ask_in(run: EngineRun, model: Any, prompts: Sequence[Prompt], steps: int = STEPS) -> Asked:
    """Prefill a batch inside an attached engine and feed `steps` of each prompt's next tokens."""
    run.samples = run.questions = [p.key for p in prompts]
    kv = DynamicCache(config=model.config.text_config)
    out = [model(**_inputs(model, prompts), past_key_values=kv, logits_to_keep=1).logits[:, -1]]
    lengths = [int(layer.keys.shape[2]) for layer in kv.layers]
    for step in range(steps):
        out.append(model(input_ids=torch.tensor([[p.next_ids[step]] for p in prompts]), past_key_values=kv).logits[:, -1])
    origins = [[o[m].tolist() for o, m in zip(layout.origin, layout.visual, strict=True)] for layout in run.layouts]
    return Asked(torch.stack(out, 1).float(), lengths, origins, run)


def ask(
    model: Any, method: Method, prompts: Sequence[Prompt], *, seed: int = 0, positions: str = "method", steps: int = STEPS
) -> Asked:
    """`ask_in` with an engine of its own."""
    with attach(model, method, seed, positions, text_encoder=WordEncoder) as run:
        return ask_in(run, model, prompts, steps)


class WordEncoder:
    """Stands in for a CLIP text tower: a random projection of random word vectors, 32 wide, one piece a word."""

    def encode(self, text: str) -> Encoded:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
        words = torch.randn(len(text.split()), 8, generator=torch.Generator().manual_seed(seed))
        projection = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
        return Encoded(words @ projection, 2 * 8 * 32 * len(words))


@torch.inference_mode()
def unpruned(model: Any, prompts: Sequence[Prompt]) -> Tensor:
    """(b, vocab): last-token logits of the bare model."""
    logits: Tensor = model(**_inputs(model, prompts), logits_to_keep=1).logits[:, -1]
    return logits.float()


def difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


# ------------------------------------------------------------------------------------------------------------------ reference


@dataclass
class Decisions:
    """What a method returned in one prefill, by layer."""

    reductions: dict[int, Reduction] = field(default_factory=dict)
    edits: dict[int, Sequence[AttentionEdit]] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)


class Spy:
    """Stands in for a method, passes everything on, and runs `watch(hook, layer, returned)` after each hook."""

    def __init__(self, method: Method, watch: Callable[[str, int, Any], None]) -> None:
        self._method, self._watch = method, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def for_model(self, shape: ModelShape) -> Spy:
        return Spy(self._method.for_model(shape), self._watch)

    def _passed_on(self, hook: str, run: Any, layer: int, *rest: Any) -> Any:
        returned = getattr(self._method, hook)(run, layer, *rest)
        self._watch(hook, layer, returned)
        return returned

    def edit_attention(self, run: Any, layer: int) -> Any:
        return self._passed_on("edit_attention", run, layer)

    def on_attention(self, run: Any, layer: int, attn: Any) -> Any:
        return self._passed_on("on_attention", run, layer, attn)

    def hide_in_decode(self, run: Any, layer: int) -> Any:
        return self._passed_on("hide_in_decode", run, layer)

    def at_boundary(self, run: Any, layer: int, stream: Any) -> Any:
        return self._passed_on("at_boundary", run, layer, stream)


def spied(method: Method, decided: Decisions) -> Method:
    """`method`, writing down what it returns."""

    def watch(hook: str, layer: int, returned: Any) -> None:
        if hook == "at_boundary" and returned is not None:
            decided.reductions[layer] = returned
        elif hook == "edit_attention" and returned:
            decided.edits[layer] = returned
        elif hook == "hide_in_decode" and returned is not None:
            decided.hidden[layer] = returned

    return cast(Method, Spy(method, watch))


def bomb(method: Method, hook: str, layer: int) -> Method:
    """`method`, whose `hook` raises RuntimeError at `layer`."""

    def watch(at_hook: str, at_layer: int, _returned: Any) -> None:
        if (at_hook, at_layer) == (hook, layer):
            raise RuntimeError("raised by the conformance kit")

    return cast(Method, Spy(method, watch))


class Referred(NamedTuple):
    """`logits (1 + steps, vocab)`, tokens per layer, and visual tokens per layer by number (-2: added)."""

    logits: Tensor
    lengths: list[int]
    origins: list[list[int]]


@dataclass
class Token:
    """A token of a pass from scratch."""

    origin: int  # a visual token's number in the prompt, -2 if added by the method, -1 for text
    position: int
    behind: bool  # text behind the image


@dataclass(frozen=True)
class Inside:
    """One layer of a pass from scratch, prompt tokens only.

    The stream `x (n, d)` that enters it after a reduction; rotated `q`, `k` and `v (heads, n, head_dim)` with grouped heads repeated;
    probabilities `probs (heads, n, n)` before any edit; attention outputs `out (n, heads x head_dim)`.
    """

    tokens: list[Token]
    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    probs: Tensor
    out: Tensor


Visit = Callable[[int, list[Token], Tensor, Inside], None]


@torch.inference_mode()
def reference(model: Any, asked: Prompt, method: Method, decided: Decisions, policy: str, visit: Visit | None = None) -> Referred:
    """The same prompt and next tokens from scratch: one pass over all layers with the full probability matrix and no KV cache.

    It drops, adds and edits what `decided` says. `policy`: "method" as the reductions say, "original" or "compact". `visit` is called for each
    layer with the tokens and their stream before a reduction there, and what the layer did.
    """
    adapter = adapter_for(model)
    pixels = asked.pixels.to(model.dtype)
    changed = changed_pixels(method, pixels)
    features = [image.pooled for image in adapter.encode(pixel_values=pixels if changed is None else changed)]
    image = [i for i, t in enumerate(asked.ids) if t == IMAGE_TOKEN]
    x = model.get_input_embeddings()(torch.tensor(asked.ids + asked.next_ids))
    x[image] = torch.cat(features).to(x.dtype)
    number = {column: i for i, column in enumerate(image)}
    tokens = [Token(number.get(i, -1), i, i > image[-1]) for i in range(len(asked.ids))]
    n_prompt, steps = len(tokens), len(asked.next_ids)
    last = max(decided.reductions, default=None)
    decode = "original" if last is None else decided.reductions[last].decode_positions
    if policy != "method":
        decode = "original" if policy == "original" else "per_layer"
    final = n_prompt
    for reduction in decided.reductions.values():
        final += _n_added(reduction) - int((~reduction.keep[0]).sum())
    lengths, origins = [], []
    for index in range(len(adapter.layers)):
        before = tokens, x[: len(tokens)]
        if index in decided.reductions:
            x, tokens = _reduced(x, tokens, decided.reductions[index], policy)
        n = len(tokens)
        base = {"original": n_prompt, "compact": final, "per_layer": n}[decode]
        positions = torch.tensor([t.position for t in tokens] + [base + s for s in range(steps)])
        x, inside = _layer(adapter, index, x, positions, tokens, decided.edits.get(index, ()), decided.hidden.get(index))
        if visit is not None:
            visit(index, *before, inside)
        lengths.append(n)
        origins.append([t.origin for t in tokens if t.origin != -1])
    logits: Tensor = adapter.head(adapter.text.norm(x[len(tokens) - 1 :]))
    return Referred(logits.float(), lengths, origins)


def _n_added(reduction: Reduction) -> int:
    return sum(len(_real(tokens, valid)) for tokens, valid in _more(reduction))


def _more(reduction: Reduction) -> tuple[tuple[Tensor | None, Tensor | None], ...]:
    return (reduction.added, reduction.added_valid), (reduction.front, reduction.front_valid)


def _real(tokens: Tensor | None, valid: Tensor | None) -> Tensor:
    """(m, d): the added tokens of the first row that are real."""
    if tokens is None:
        return torch.zeros(0)
    return tokens[0] if valid is None else tokens[0][valid[0]]


def _reduced(x: Tensor, tokens: list[Token], reduction: Reduction, policy: str) -> tuple[Tensor, list[Token]]:
    visual = [i for i, t in enumerate(tokens) if t.origin != -1]
    kept = [i for i, keep in zip(visual, reduction.keep[0].tolist(), strict=True) if keep]
    added, front = (_real(*more).to(x.dtype).view(-1, x.shape[1]) for more in _more(reduction))
    # behind the last kept one, at the position after it; where the first visual token stood, if none is kept
    first = tokens[visual[0]].position
    position = tokens[kept[-1]].position + 1 if kept else first
    in_order = kept
    if reduction.order is not None:
        rank = dict(zip(visual, reduction.order[0].tolist(), strict=True))
        in_order = sorted(kept, key=lambda i: rank[i])  # stable: equal ones stay in their old order
    text = [i for i, t in enumerate(tokens) if t.origin == -1]
    # text between images stays between the columns of the kept tokens around it
    moved = dict(zip(kept, in_order, strict=True))
    sequence = [moved.get(i, i) for i in sorted([*text, *kept])]
    ends = [n for n, i in enumerate(sorted([*text, *kept])) if i in moved]
    head, tail = (ends[0], ends[-1] + 1) if kept else (sum(i < visual[0] for i in text),) * 2
    rows = [x[sequence[:head]], front, x[sequence[head:tail]], added, x[sequence[tail:]], x[len(tokens) :]]
    out = [
        *(tokens[i] for i in sequence[:head]),
        *[Token(-2, first, False)] * len(front),
        *(tokens[i] for i in sequence[head:tail]),
        *[Token(-2, position, False)] * len(added),
        *(tokens[i] for i in sequence[tail:]),
    ]
    if policy == "compact" or (policy == "method" and reduction.positions == "compact"):
        out = [dataclasses.replace(t, position=i) for i, t in enumerate(out)]
    return torch.cat(rows), out


def projected(adapter: Adapter, layer: int, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries and keys, and values, of `x (n, d)` in a decoder layer, each (heads, n, head_dim) float32, grouped heads repeated."""
    theta = adapter.text.config.rope_parameters["rope_theta"]
    q, k, v = (part(layer, x[None])[0].float() for part in (adapter.queries, adapter.keys, adapter.values))
    d = q.shape[-1]
    angles = positions[:, None] * theta ** -(torch.arange(0, d, 2) / d)
    groups = q.shape[0] // k.shape[0]
    return rotated_by(q, angles), rotated_by(k, angles).repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)


def causal_probs(q: Tensor, k: Tensor) -> Tensor:
    """(heads, n, n): softmax of QK^T over earlier keys."""
    scores: Tensor = (q @ k.transpose(1, 2)) / q.shape[-1] ** 0.5
    return scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), float("-inf")).softmax(-1)


def _layer(
    adapter: Adapter,
    index: int,
    x: Tensor,
    positions: Tensor,
    tokens: list[Token],
    edits: Sequence[AttentionEdit],
    hidden: Tensor | None,
) -> tuple[Tensor, Inside]:
    total, n = x.shape[0], len(tokens)
    q, k, v = projected(adapter, index, x, positions)
    scores = (q @ k.transpose(1, 2)) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones(total, total, dtype=torch.bool).triu(1), float("-inf"))
    untouched = scores[:, :n, :n].softmax(-1)
    visual = torch.tensor([i for i, t in enumerate(tokens) if t.origin != -1], dtype=torch.long)
    if hidden is not None:
        scores[:, n:, visual[hidden[0]]] = float("-inf")
    rows = {"visual": visual, "after": torch.tensor([i for i, t in enumerate(tokens) if t.behind], dtype=torch.long)}
    columns = [visual if e.cols is None else visual[e.cols[0]] for e in edits]
    for edit, cols in zip(edits, columns, strict=True):
        if edit.how == "mask":
            scores[:, rows[edit.rows][:, None], cols] = float("-inf")
    probs = scores.softmax(-1)
    for edit, cols in zip(edits, columns, strict=True):
        if edit.how in ("zero", "redirect"):
            at = rows[edit.rows][:, None]
            mass = probs[:, at, cols].sum(-1)
            probs[:, at, cols] = 0.0
            if edit.how == "redirect":
                probs[:, rows[edit.rows], int(visual[edit.sink])] += mass
    out = (probs @ v).transpose(0, 1).reshape(total, -1).to(x.dtype)
    inside = Inside(tokens, x[:n], q[:, :n], k[:, :n], v[:, :n], untouched, out[:n])
    x = x + adapter.attention_output(index, out)
    return x + adapter.feed_forward(index, x), inside


def rotated_by(x: Tensor, angles: Tensor) -> Tensor:
    """`x (..., n, head_dim)` by angles (n, head_dim / 2)."""
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def rotated(x: Tensor, positions: Sequence[int], model: Any) -> Tensor:
    """`x (..., n, head_dim)` float32 under the decoder's RoPE."""
    theta, d = adapter_for(model).text.config.rope_parameters["rope_theta"], x.shape[-1]
    return rotated_by(x.float(), torch.tensor(positions)[:, None] * theta ** -(torch.arange(0, d, 2) / d))


# ------------------------------------------------------------------------------------------------------- verdicts and subjects


@dataclass(frozen=True)
class Verdict:
    """One property of one method; `detail` holds the values found, or why it does not apply."""

    name: str
    status: Literal["ok", "FAIL", "n/a"]
    detail: str


class NotApplicableError(Exception):
    """The property does not apply; the message says why."""


class ViolatedError(Exception):
    """The property does not hold; the message holds the values."""


@dataclass(frozen=True)
class Subject:
    """A method class under test with knobs given by hand and the budget to test at."""

    cls: type[Method]
    knobs: Mapping[str, Any]
    budget: int = DEFAULT_BUDGET

    @property
    def edits_pixels(self) -> bool:
        return self.cls.on_pixels is not Method.on_pixels

    @property
    def excused(self) -> str:
        """Why the method may differ from the unpruned model at full budget; "" where it may not."""
        traits = self.cls.traits
        reasons = {
            "edits attention": traits.edits_attention,
            "merges": traits.merges,
            "reorders": traits.reorders,
            "works on the image": self.edits_pixels,
        }
        return " and ".join(reason for reason, holds in reasons.items() if holds)

    def at(self, budget: Budget | int, shape: ModelShape | None = None) -> Method:
        """Raises NotApplicableError where the method refuses the budget."""
        usual = adapter_for(tiny_model()).usual
        shape = usual.decoder if shape is None else shape
        asked = Budget("kept", budget) if isinstance(budget, int) else budget
        try:
            check_budget(self.cls, asked, self.knobs)
            return self.cls.at_budget(asked, dict(self.knobs), dataclasses.replace(usual, decoder=shape)).for_model(shape)
        except PrunebenchError as error:
            raise NotApplicableError(str(error)) from None

    def variants(self, shape: ModelShape | None = None) -> dict[str, Method]:
        """The method at the budget and at its published defaults, as far as it takes them; else as it stands."""
        found: dict[str, Method] = {}
        refused = []
        for label, asked in ((f"budget {self.budget}", Budget("kept", self.budget)), ("native", Budget("native"))):
            try:
                found[label] = self.at(asked, shape)
            except NotApplicableError as error:
                refused.append(str(error))
        if not found:
            try:
                found["as it is"] = self.at(budgets.NONE, shape)
            except NotApplicableError as error:
                raise PrunebenchError(f"{self.cls.name} cannot be built: {'; '.join([*refused, str(error)])}") from None
        return found

    def any(self, shape: ModelShape | None = None) -> Method:
        return next(iter(self.variants(shape).values()))


Property = Callable[[Subject], Verdict]
#: by the name that the table shows, in its order
PROPERTIES: dict[str, Property] = {}


def property_(name: str) -> Callable[[Callable[[Subject], str]], Property]:
    """The function returns what it saw, raises ViolatedError or NotApplicableError; any other exception is a failure too."""

    def wrap(function: Callable[[Subject], str]) -> Property:
        def judged(subject: Subject) -> Verdict:
            try:
                return Verdict(name, "ok", function(subject))
            except NotApplicableError as reason:
                return Verdict(name, "n/a", str(reason))
            except ViolatedError as values:
                return Verdict(name, "FAIL", str(values))
            except Exception as error:  # a kit that dies of one method's bug reports nothing
                return Verdict(name, "FAIL", f"{type(error).__name__}: {error}")

        PROPERTIES[name] = judged
        return judged

    return wrap


def require(holds: bool, values: str) -> None:
    if not holds:
        raise ViolatedError(values)


def _same(label: str, got: Asked, row: int, want: Asked, want_row: int = 0, tolerance: float = SAME) -> float:
    """Row `row` of one batch did what row `want_row` of another did: same tokens in every layer, same logits; the difference."""
    for layer, (a, b) in enumerate(zip(got.origins, want.origins, strict=True)):
        require(a[row] == b[want_row], f"{label}: layer {layer} holds {_few(a[row])}, expected {_few(b[want_row])}")
    gap = difference(got.logits[row], want.logits[want_row])
    require(gap <= tolerance, f"{label}: logits differ by {gap:.2e} (tolerance {tolerance:.0e})")
    return gap


def _few(tokens: Sequence[int]) -> str:
    return f"{len(tokens)} visual tokens {list(tokens[:6])}{'...' if len(tokens) > 6 else ''}"


def _drops(got: Asked) -> bool:
    return (
        any(rows != got.origins[0] for rows in got.origins)
        or any(len(o) % N_VISUAL for o in got.origins[0])
        or any(-2 in o for o in got.origins[0])
    )


# ------------------------------------------------------------------------------------------------------------------ properties


@property_("full budget equals unpruned")
def full_budget(subject: Subject) -> str:
    model = tiny_model()
    try:
        method = subject.at(N_VISUAL)
    except NotApplicableError:
        method = subject.any()
        if _drops(ask(model, method, PROMPTS[:1], steps=0)):
            raise
    gap = difference(ask(model, method, PROMPTS, steps=0).logits[:, 0], unpruned(model, PROMPTS))
    require(gap == gap and gap != float("inf"), f"logits differ by {gap}")
    if subject.excused and gap > SAME:
        raise NotApplicableError(f"{subject.excused}, so that it differs at full budget too, by {gap:.1e}; finite")
    require(gap <= SAME, f"logits differ from the bare model's by {gap:.2e} (tolerance {SAME:.0e})")
    return f"largest difference {gap:.1e}"


@property_("smaller budget changes logits")
def smaller_budget(subject: Subject) -> str:
    gap = difference(
        ask(tiny_model(), subject.at(subject.budget), PROMPTS[:1], steps=0).logits[:, 0], unpruned(tiny_model(), PROMPTS[:1])
    )
    require(gap >= CHANGED, f"at {subject.budget} of {N_VISUAL} tokens the logits differ by {gap:.2e} only")
    return f"by {gap:.2f} at {subject.budget} of {N_VISUAL} tokens"


@property_("kept sorted, unique, in image; text intact")
def order(subject: Subject) -> str:
    for label, method in subject.variants().items():
        got = ask(tiny_model(), method, PROMPTS, steps=0)
        for row, asked in enumerate(PROMPTS):
            present = list(range(N_VISUAL))
            for layer, layout in enumerate(got.run.layouts):
                where = f"{label}, row {row}, layer {layer}"
                kept = [o for o in got.origins[layer][row] if o >= 0]
                require(len(set(kept)) == len(kept), f"{where}: kept {kept} is not unique")
                require(subject.cls.traits.reorders or kept == sorted(kept), f"{where}: kept {kept} does not ascend: declare the trait reorders")
                require(set(kept) <= set(present), f"{where}: {sorted(set(kept) - set(present))} were not there before")
                present = kept
                valid = layout.valid[row]
                text = int((valid & ~layout.visual[row]).sum())
                behind = int(layout.after[row].sum())
                n_text = len(asked.ids) - N_VISUAL
                require(
                    (text, behind) == (n_text, n_text - 3),
                    f"{where}: {text} text tokens, {behind} behind the image; expected {n_text}, {n_text - 3}",
                )
                tail = layout.after[row, -behind:]
                require(bool(tail.all()), f"{where}: the prompt no longer ends with its text")
    return "in every layer"


@property_("asked budget met exactly")
def budget_met(subject: Subject) -> str:
    if subject.edits_pixels:
        got = ask(tiny_model(), subject.at(subject.budget), PROMPTS, steps=0)
        raise NotApplicableError(
            f"works on the image; the language model sees all {got.run.trace.kept(0)} tokens, as the trace says"
        )
    said, met = [], 0
    for tokens in dict.fromkeys((subject.budget, min(2 * subject.budget + 1, N_VISUAL), max(subject.budget // 3, 1))):
        try:
            method = subject.at(tokens)
        except NotApplicableError as error:
            if tokens == subject.budget:
                raise
            said.append(f"{tokens} refused ({error})")
            continue
        got = ask(tiny_model(), method, PROMPTS, steps=0)
        trace = got.run.trace
        kept = [trace.kept(row) for row in range(len(PROMPTS))]
        adaptive = subject.cls.traits.adaptive
        fits = all(k == tokens or (adaptive and 0 <= k <= tokens) for k in kept)
        require(fits, f"asked {tokens} visual tokens, kept {kept}")
        for row, k in enumerate(kept):
            seen = {layer.visual[row] for layer in trace.layers}
            require(k in seen, f"reports {k} kept, but its layers hold {sorted(seen)} visual tokens")
        met += 1
        forced = trace.notes.get("forced")
        said.append(f"{tokens}" + (f" (forced in {int(sum(forced))} of {len(PROMPTS)})" if forced else ""))
    return "kept " + ", ".join(said)


@property_("plan equals trace")
def planned(subject: Subject) -> str:
    unknown = 0
    variants = subject.variants()
    for label, method in variants.items():
        shape = adapter_for(tiny_model()).usual.with_text(len(PROMPTS[0].ids) - N_VISUAL)
        plan = method.plan(shape)
        if plan is None:
            unknown += 1
            continue
        trace = ask(tiny_model(), method, PROMPTS[:1], steps=0).run.trace
        visual = [layer.visual[0] for layer in trace.layers]
        require(plan == visual, f"{label}: planned {plan}, the trace says {visual}")
        scoring = method.plan_scoring(shape, plan)
        require(
            scoring in (None, trace.scoring[0]), f"{label}: planned {scoring} FLOPs of scoring, the trace says {trace.scoring[0]}"
        )
    if unknown == len(variants):
        raise NotApplicableError("adaptive: the prompt decides" if subject.cls.traits.adaptive else "the method states no plan")
    return "visual tokens in every layer"


@property_("most attended token kept")
def most_attended(subject: Subject) -> str:
    if not subject.cls.traits.keeps_most_attended:
        raise NotApplicableError("does not declare keeps_most_attended")
    model, asked = tiny_model(beacon=True), PROMPTS[0]
    method = subject.at(subject.budget)
    text = torch.arange(3 + N_VISUAL, len(asked.ids))
    tokens = range(0, N_VISUAL, GRID + 1)
    for token in tokens:
        with flagged(model, token), torch.inference_mode():
            got = ask(model, method, (asked,), steps=0)
            model.set_attn_implementation("eager")
            try:
                weights = model(**_inputs(model, (asked,)), output_attentions=True).attentions
            finally:
                model.set_attn_implementation("sdpa")
        # the premise, from the bare model's own attention weights
        top = {int(t) for w in weights for t in w[0][:, text, 3 : 3 + N_VISUAL].argmax(-1).unique()}
        if top != {token}:
            raise PrunebenchError(f"the kit's beacon model attends to {sorted(top)} instead of {token}: a bug of the kit")
        first = next((i for i, rows in enumerate(got.origins) if len(rows[0]) < N_VISUAL), None)
        if first is not None:
            require(
                token in got.origins[first][0],
                f"token {token} has the most attention of all text; layer {first} holds {_few(got.origins[first][0])}",
            )
    return f"{len(tokens)} of {len(tokens)} planted tokens"


@property_("kept set depends on the prompt")
def depends(subject: Subject) -> str:
    if not subject.cls.traits.query_aware:
        raise NotApplicableError("not query-aware")
    method = subject.any()
    sets = [ask(tiny_model(), method, (p,), steps=0).origins for p in PROMPTS]
    if not any(rows[0] != list(range(N_VISUAL)) for origins in sets for rows in origins):
        raise NotApplicableError("drops nothing by itself")
    require(any(s != sets[0] for s in sets), f"the same tokens for {len(PROMPTS)} images and questions: {_few(sets[0][-1][0])}")
    return f"{len(PROMPTS)} prompts"


def _batch_equals_singles(model: Any, label: str, method: Method, prompts: Sequence[Prompt], tolerance: float = SAME) -> float:
    together = ask(model, method, prompts)
    return max(
        _same(f"{label}, row {row} of a batch against alone", together, row, ask(model, method, (p,)), tolerance=tolerance)
        for row, p in enumerate(prompts)
    )


@property_("image alone decides")
def image_alone(subject: Subject) -> str:
    if not subject.cls.traits.image_only:
        raise NotApplicableError("does not declare image_only")
    for label, method in subject.variants().items():
        for first, other in pairwise(PROMPTS):
            image = 3 + N_VISUAL
            # the same image with another question and with none, as when questions share it; as other samples
            swapped = dataclasses.replace(first, key=f"{first.key} asked otherwise", ids=first.ids[:image] + other.ids[image:])
            alone = dataclasses.replace(first, key=f"{first.key} not asked", ids=first.ids[:image])
            decided = [Decisions() for _ in range(3)]
            for asked, into in zip((first, swapped, alone), decided, strict=True):
                ask(tiny_model(), spied(method, into), (asked,), steps=0)
            mine = decided[0].reductions
            for theirs, what in ((decided[1].reductions, "another question"), (decided[2].reductions, "no question")):
                require(mine.keys() == theirs.keys(), f"{label}: reduces at {sorted(mine)} for a question, at {sorted(theirs)} for {what}")
                for layer, a in mine.items():
                    b = theirs[layer]
                    kept = [_few(r.keep[0].nonzero().flatten().tolist()) for r in (a, b)]
                    require(torch.equal(a.keep, b.keep), f"{label}: layer {layer} keeps {kept[0]} for a question, {kept[1]} for {what}")
                    one, two = (_merged(r) for r in (a, b))
                    same = one.shape == two.shape and torch.allclose(one, two, atol=SAME)
                    require(same, f"{label}: layer {layer} adds other tokens for {what}")
    return f"{len(PROMPTS) - 1} images with two questions and without"


def _merged(reduction: Reduction) -> Tensor:
    """(m, d): the tokens that a reduction of one row adds."""
    return torch.cat([_real(*more) for more in _more(reduction)])


@property_("padded batch equals singles")
def batch(subject: Subject) -> str:
    gaps = [_batch_equals_singles(tiny_model(), label, method, PROMPTS) for label, method in subject.variants().items()]
    return f"{len(PROMPTS)} text lengths; largest difference {max(gaps):.1e}"


@property_("ragged counts: one and two images")
def ragged(subject: Subject) -> str:
    prompts = (prompt(4, 7), prompt(5, 5, images=2), prompt(6, 9))
    counts = set()
    for tokens in (subject.budget, N_VISUAL + 7):
        try:
            method = subject.at(tokens)
            alone = ask(tiny_model(), method, prompts[1:2])
        except (NotApplicableError, PrunebenchError) as error:
            method = subject.any()
            try:
                alone = ask(tiny_model(), method, prompts[1:2])
            except PrunebenchError:
                raise NotApplicableError(f"refuses two images: {error}") from None
        together = ask(tiny_model(), method, prompts)
        _same(f"at {tokens}, two images in a batch against alone", together, 1, alone)
        for row in (0, 2):
            _same(
                f"at {tokens}, row {row} beside two images against alone",
                together,
                row,
                ask(tiny_model(), method, prompts[row : row + 1]),
            )
        counts |= {tuple(len(o) for o in rows) for rows in together.origins}
    return f"visual tokens per row: {', '.join('/'.join(map(str, c)) for c in sorted(counts, reverse=True)[:4])}"


@property_("no state between prompts")
def state(subject: Subject) -> str:
    model, layer = tiny_model(), adapter_for(tiny_model()).layers[DEPTH // 2]

    def interrupt(_module: Any, _args: Any) -> None:
        raise RuntimeError("raised by the conformance kit")

    for label, method in subject.variants().items():
        with attach(model, method, text_encoder=WordEncoder) as run:
            first = ask_in(run, model, PROMPTS[:1])
            ask_in(run, model, PROMPTS[1:2])
            _same(f"{label}, after another prompt", ask_in(run, model, PROMPTS[:1]), 0, first, tolerance=0)
            ask_in(run, model, PROMPTS[1:])
            _same(f"{label}, after a batch", ask_in(run, model, PROMPTS[:1]), 0, first, tolerance=0)
            handle = layer.register_forward_pre_hook(interrupt)
            try:
                ask_in(run, model, PROMPTS[1:2])
            except RuntimeError:
                pass
            finally:
                handle.remove()
            _same(f"{label}, after an interrupted prefill", ask_in(run, model, PROMPTS[:1]), 0, first, tolerance=0)
        _same(f"{label}, in a new attach()", ask(model, method, PROMPTS[:1]), 0, first, tolerance=0)
    return "after a prompt, a batch, an interrupted prefill"


@property_("same seed same result")
def seeds(subject: Subject) -> str:
    for label, method in subject.variants().items():
        one = ask(tiny_model(), method, PROMPTS[:1], seed=1)
        _same(f"{label}, seed 1 twice", ask(tiny_model(), method, PROMPTS[:1], seed=1), 0, one, tolerance=0)
        two = ask(tiny_model(), method, PROMPTS[:1], seed=2)
        gap = difference(one.logits, two.logits)
        if subject.cls.traits.random:
            require(
                two.origins != one.origins,
                f"{label}: declared random, but seeds 1 and 2 keep the same: {_few(one.origins[-1][0])}",
            )
        elif not method.uses_seed:
            require(gap == 0, f"{label}: uses_seed is false, but seeds 1 and 2 differ by {gap:.2e}")
    if subject.cls.traits.random:
        return "and another one for another seed"
    return "the seed may break ties" if subject.any().uses_seed else "the seed changes nothing, as declared"


@property_("KV length per layer equals trace")
def kv_lengths(subject: Subject) -> str:
    lengths: list[int] = []
    for label, method in subject.variants().items():
        got = ask(tiny_model(), method, PROMPTS, steps=0)
        for layer, (length, traced, layout) in enumerate(zip(got.lengths, got.run.trace.layers, got.run.layouts, strict=True)):
            where = f"{label}, layer {layer}"
            require(length == traced.columns == max(traced.tokens), f"{where}: {length} keys cached, the trace says {traced}")
            n_text = [len(p.ids) - N_VISUAL for p in PROMPTS]
            tokens = [v + t for v, t in zip(traced.visual, n_text, strict=True)]
            require(
                traced.tokens == tokens == layout.counts, f"{where}: {traced.tokens} tokens, expected text + visual = {tokens}"
            )
        lengths = lengths or got.lengths
    return f"{lengths[0]} to {lengths[-1]}"


def _equals_reference(model: Any, label: str, method: Method, asked: Prompt, policy: str, tolerance: float = SAME) -> float:
    decided = Decisions()
    got = ask(model, spied(method, decided), (asked,), positions=policy)
    want = reference(model, asked, method, decided, policy)
    label = f"{label}, positions {policy}"
    require(got.lengths == want.lengths, f"{label}: {got.lengths} tokens by layer, from scratch {want.lengths}")
    for layer, (a, b) in enumerate(zip(got.origins, want.origins, strict=True)):
        require(a[0] == b, f"{label}: layer {layer} holds {_few(a[0])}, from scratch {_few(b)}")
    gaps: list[float] = (got.logits[0] - want.logits).abs().amax(1).tolist()
    for step, gap in enumerate(gaps):
        what = "prefill" if step == 0 else f"decode step {step}"
        require(
            gap <= tolerance,
            f"{label}: logits of {what} differ from a pass from scratch by {gap:.2e} (tolerance {tolerance:.0e})",
        )
    return max(gaps)


@property_("prefill and decode equal a pass from scratch")
def decode(subject: Subject) -> str:
    gaps = [
        _equals_reference(tiny_model(), label, method, PROMPTS[0], policy)
        for label, method in subject.variants().items()
        for policy in ("method", "original", "compact")
    ]
    return f"3 position policies, {STEPS} steps; largest difference {max(gaps):.1e}"


@property_("generate equals a greedy loop")
def generates(subject: Subject) -> str:
    model = tiny_model()
    with attach(model, subject.any(), text_encoder=WordEncoder) as run, torch.inference_mode():
        run.samples = run.questions = [p.key for p in PROMPTS]
        inputs = _inputs(model, PROMPTS)
        whole = model.generate(**inputs, max_new_tokens=STEPS + 1, do_sample=False)
        kv = DynamicCache(config=model.config.text_config)
        chosen = [model(**inputs, past_key_values=kv, logits_to_keep=1).logits[:, -1].argmax(-1)]
        for _ in range(STEPS):
            chosen.append(model(input_ids=chosen[-1][:, None], past_key_values=kv).logits[:, -1].argmax(-1))
    loop, generated = torch.stack(chosen, 1).tolist(), whole[:, -STEPS - 1 :].tolist()
    require(loop == generated, f"generate() says {generated}, the loop {loop}")
    return f"{STEPS + 1} tokens, {len(PROMPTS)} rows"


def _left_behind(model: Any) -> str | None:
    adapter = adapter_for(model)
    hooked = [m for m in (adapter.core, adapter.text, adapter.tower, *adapter.layers) if m._forward_pre_hooks or m._forward_hooks]
    if hooked:
        return f"{len(hooked)} modules still hold hooks"
    implementation = adapter.text.config._attn_implementation
    return None if implementation == "sdpa" else f"the attention implementation is {implementation!r}, expected 'sdpa'"


@property_("exception restores the model")
def restores(subject: Subject) -> str:
    model, method = tiny_model(), subject.any()
    bare, pruned = unpruned(model, PROMPTS[:1]), ask(model, method, PROMPTS[:1])
    places = [
        ("at_boundary", 0),
        ("at_boundary", DEPTH - 1),
        ("on_attention", DEPTH // 2),
        ("edit_attention", 1),
        ("hide_in_decode", DEPTH - 1),
    ]
    for hook, layer in places:
        raised = False
        try:
            ask(model, bomb(method, hook, layer), PROMPTS[:1])
        except PrunebenchError as error:
            raised = "raised by the conformance kit" in str(error)
        where = f"after an exception in {hook} of layer {layer}"
        require(raised, f"{where}: it was swallowed")
        left = _left_behind(model)
        require(left is None, f"{where}: {left}")
        gap = difference(unpruned(model, PROMPTS[:1]), bare)
        require(gap == 0, f"{where}: the bare model's logits differ by {gap:.2e}")
    _same("attached again", ask(model, method, PROMPTS[:1]), 0, pruned, tolerance=0)
    return f"{len(places)} places"


@property_("double attach refused")
def double_attach(subject: Subject) -> str:
    model, method = tiny_model(), subject.any()
    with attach(model, method, text_encoder=WordEncoder) as run:
        before = ask_in(run, model, PROMPTS[:1])
        refused = False
        try:
            with attach(model, method):
                pass
        except PrunebenchError:
            refused = True
        require(refused, "a second attach() to the same model was accepted")
        _same("after the refusal", ask_in(run, model, PROMPTS[:1]), 0, before, tolerance=0)
    left = _left_behind(model)
    require(left is None, str(left))
    return "and the first keeps working"


@property_("position policies differ")
def policies(subject: Subject) -> str:
    method = subject.any()
    ran = {policy: ask(tiny_model(), method, PROMPTS[:1], positions=policy) for policy in ("original", "compact")}
    if not _drops(ran["original"]):
        raise NotApplicableError("no token is dropped, so there is nothing to renumber")
    for policy, got in ran.items():
        for layer, (layout, rows) in enumerate(zip(got.run.layouts, got.origins, strict=True)):
            found = layout.positions[0, :, 0].tolist()
            if policy == "compact":
                require(found == list(range(layout.n)), f"compact, layer {layer}: positions {found}")
            else:
                at = [p for p, v in zip(found, layout.visual[0].tolist(), strict=True) if v]
                own = [(p, o + 3) for p, o in zip(at, rows[0], strict=True) if o >= 0]
                require(all(p == o for p, o in own), f"original, layer {layer}: visual tokens at {at}")
                require(found[-1] == len(PROMPTS[0].ids) - 1, f"original, layer {layer}: the last token stands at {found[-1]}")
    gap = difference(ran["original"].logits, ran["compact"].logits)
    require(gap >= CHANGED, f"original and compact differ by {gap:.2e} only")
    return f"original and compact by {gap:.2f}"


@property_("bfloat16")
def bfloat16(subject: Subject) -> str:
    model = tiny_model(dtype=torch.bfloat16)
    for label, method in subject.variants(adapter_for(model).shape).items():
        logits = ask(model, method, PROMPTS).logits
        require(bool(torch.isfinite(logits).all()), f"{label}: nan or inf in the logits")
    try:
        whole = subject.at(N_VISUAL)
    except NotApplicableError:
        return "finite"
    if subject.excused:
        return "finite"
    gap = difference(ask(model, whole, PROMPTS[:1], steps=0).logits[:, 0], unpruned(model, PROMPTS[:1]))
    require(gap <= 0.1, f"at full budget the logits differ from the bare model's by {gap:.2e}")
    return f"finite; full budget equals unpruned within {gap:.1e}"


@property_("grouped-query heads")
def grouped(subject: Subject) -> str:
    model = tiny_model(kv_heads=2)
    gaps = []
    for label, method in subject.variants(adapter_for(model).shape).items():
        gaps.append(_batch_equals_singles(model, label, method, PROMPTS))
        gaps.append(_equals_reference(model, label, method, PROMPTS[1], "method"))
    return f"batch, prefill and decode; largest difference {max(gaps):.1e}"


@property_("depth 4 to 40")
def depths(subject: Subject) -> str:
    shape = adapter_for(tiny_model()).shape
    by_hand = {name for name, _ in _layer_knobs(subject.cls)}
    subject = dataclasses.replace(subject, knobs={k: v for k, v in subject.knobs.items() if k not in by_hand})
    for depth in range(min(DEPTHS), max(DEPTHS) + 1):
        deep = dataclasses.replace(shape, depth=depth)
        try:
            method = subject.any(deep)
            again = method.for_model(deep)
        except PrunebenchError as error:
            raise ViolatedError(f"{depth} layers: refuses its own defaults: {error}") from None
        require(again == method, f"{depth} layers: for_model() twice gives {again} after {method}")
    for depth in DEPTHS:
        model = tiny_model(depth=depth)
        for label, method in subject.variants(adapter_for(model).shape).items():
            _equals_reference(model, f"{depth} layers, {label}", method, PROMPTS[2], "method")
    return f"defaults fit each; ran at {', '.join(map(str, DEPTHS))}"


def _layer_knobs(cls: type[Method]) -> list[tuple[str, bool]]:
    """(name, is a tuple) of the knobs that hold decoder layers, by their name and type."""
    found = []
    for knob in dataclasses.fields(cls):
        annotation = str(knob.type)
        words = ("layer", "boundary", "stage", "start", "stop", "drop_from")
        if any(w in knob.name for w in words) and "int" in annotation and "Literal" not in annotation:
            found.append((knob.name, "tuple" in annotation))
    return found


@property_("unfit layer knob refused")
def unfit_knobs(subject: Subject) -> str:
    knobs = _layer_knobs(subject.cls)
    if not knobs:
        raise NotApplicableError("no knob holds a layer")
    label = next(iter(subject.variants()))
    asked = {f"budget {subject.budget}": Budget("kept", subject.budget), "native": Budget("native")}.get(label, budgets.NONE)
    for name, many in knobs:
        for layer in (-1, 1000):
            given = {**subject.knobs, name: (layer,) if many else layer}
            try:
                method = dataclasses.replace(subject, knobs=given).at(asked)
            except NotApplicableError as error:
                require(name in str(error) and str(layer) in str(error), f"{name}={layer} is refused without saying so: {error}")
                continue
            raise ViolatedError(f"{name}={layer} on {DEPTH} layers is accepted: {method}")
    return ", ".join(name for name, _ in knobs)


# ---------------------------------------------------------------------------------------------------------------------- the kit


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on many threads, and far slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check(cls: type[Method], budget: int = DEFAULT_BUDGET, knobs: Mapping[str, Any] | None = None) -> list[Verdict]:
    """All verdicts on one method, in a fixed order. Raises PrunebenchError where the method cannot be built at all."""
    from harness.proof.conformance import asking as check_asked  # noqa: F401  (enrols its properties behind the ones here)

    if not 1 <= budget < N_VISUAL:
        raise PrunebenchError(f"budget {budget}: expected 1 to {N_VISUAL - 1}, the check models have {N_VISUAL} visual tokens")
    subject = Subject(cls, dict(typed_knobs(cls, knobs or {})), budget)
    subject.variants()
    with one_thread():
        return [judge(subject) for judge in PROPERTIES.values()]


def check_named(name: str, budget: int = DEFAULT_BUDGET, knobs: Mapping[str, Any] | None = None) -> list[Verdict]:
    """`check` of a registered name, `path/to/file.py:Class` or `package.module:Class`."""
    return check(method_class(name), budget, knobs)


def table(verdicts: Sequence[Verdict], width: int = 100) -> str:
    """Verdicts for a terminal."""
    from tabulate import tabulate

    def shown(v: Verdict) -> str:
        return v.detail if v.status == "FAIL" or len(v.detail) <= width else v.detail[: width - 3] + "..."

    return tabulate([(v.status, v.name, shown(v)) for v in verdicts], headers=("", "property", "found"), tablefmt="simple")
