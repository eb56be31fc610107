"""A pruning method: a frozen dataclass of knobs with a few hooks, the questions it may ask, the orders it may return.

Eyes (`on_image`, `on_attention`) look and return nothing. Hands (`edit_attention`, `at_boundary`, ...) return an order,
and the engine carries it out: the engine owns every tensor of the model. A method speaks visual coordinates 0..v-1; `v`
is the number of visual tokens present now, in order. A method never sees a sequence index. State of one prompt batch
lives in `run.memo`, which dies with the prefill.

Most methods rank tokens at one layer: they derive from `Ranking` (harness/method/ranking.py) and write `score` alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.core.shape import ModelShape, PromptShape, Share, Size
from harness.core.spelling import given
from harness.method.knob_values import TextTower, plain

Positions = Literal["original", "compact"]
DecodePositions = Literal["original", "compact", "per_layer"]
#: query rows: the prompt's last token; every text token behind the image; every visual token; (b, t) bool over the text
#: behind the image; or (b, r) long: visual tokens by number and, counted on from the most of the batch, that text
Rows = Literal["last", "after", "visual"] | Tensor
Heads = Literal["each", "mean", "max"]
Sums = Literal["column_sums", "whole_column_sums", "twice_rotated_sums"]
What = Literal["cls_row", "cls_hidden", "cls_query", "cls_key", "keys", "hidden", "mean_hidden", Sums]


@dataclass(frozen=True)
class AttentionEdit:
    """Change what some queries get from some visual keys in one layer of the prefill.

    `rows`: "after" (text behind the image) or "visual". `cols (b, v)` bool, None = all visual tokens. `how`:
    "mask" removes the columns before softmax; "zero" removes their probability after softmax, nothing renormalised;
    "redirect" gives their whole probability to visual token `sink` (one index, or (b,) long), nothing renormalised.
    """

    rows: Literal["after", "visual"]
    cols: Tensor | None
    how: Literal["mask", "zero", "redirect"]
    sink: int | Tensor = 0


@dataclass(frozen=True)
class Reduction:
    """What stays of the visual tokens at a boundary.

    `keep (b, v)` bool over the visual tokens present now; text cannot be lost. `order (b, v)`: kept tokens stand in
    ascending `order`, equal ones in their old order; None leaves the old order. `added (b, m, d)`: merged or recycled
    tokens, placed behind the last kept one; `front (b, m, d)`: tokens placed before the first kept one; `added_valid`,
    `front_valid (b, m)` bool where rows differ in number. `added_image`, `front_image (b, m)` long: the image of the
    prompt to which each of them belongs, behind or before whose kept tokens it is placed; None: all visual tokens of
    the prompt. `values (b, v, d)`: what kept tokens become; None: they stay as they are. `positions`: RoPE positions of
    what stays from here on, kept ("original") or renumbered in the new order ("compact"). Kept in place, an added token
    stands one behind the position of the last kept token of the old order, a front one where the first visual token
    stood. `decode_positions`: where generated tokens stand: the absolute count of the unpruned prompt, the length of
    the final sequence, or each layer's own cache length.
    """

    keep: Tensor
    added: Tensor | None = None
    added_valid: Tensor | None = None
    positions: Positions = "original"
    decode_positions: DecodePositions = "original"
    order: Tensor | None = None
    front: Tensor | None = None
    front_valid: Tensor | None = None
    added_image: Tensor | None = None
    front_image: Tensor | None = None
    values: Tensor | None = None


class Probabilities(NamedTuple):
    """Softmax rows: `values (b, heads, r, v)` float32, 0 beyond a row's count, heads 1 where reduced; `rows (b, r)`
    bool marks real query rows."""

    values: Tensor
    rows: Tensor


class Places(NamedTuple):
    """Where the visual tokens present now stand, each (b, v) long.

    The `image` of the prompt, the `view` (grid) of the image, `row` and `col` in it, and its size, `rows` and `cols`. A
    newline token has row and col -1. An added token has -1 everywhere, and so has a slot beyond a row's count.
    """

    image: Tensor
    view: Tensor
    row: Tensor
    col: Tensor
    rows: Tensor
    cols: Tensor


class TowerLook(NamedTuple):
    """Something of the vision tower that a method asks to see: `what` of its layer `layer`, counted from 0, or back
    from -1, the last.

    Per patch: "keys": the layer's key projection, heads side by side; "hidden": the stream leaving the layer; that of
    layer -2 is what LLaVA-1.5 projects; "cls_row": the softmax row of [CLS] over all tokens, without [CLS] itself, one
    row a head, float32; "column_sums": the same summed over the rows of all tokens, [CLS] included, as the layer
    attends; "whole_column_sums": as if it attended over the whole image where it attends within windows;
    "twice_rotated_sums": these again, with queries and keys under the tower's RoPE twice, for a tower that has one. Per
    image: "cls_hidden", "cls_query", "cls_key": stream, query and key of [CLS]. Of an image in tiles [CLS] is the
    overview's, "cls_row" of a patch is that of its own tile, and a newline token has 0.

    Where the projector joins patches into one visual token, there are column sums and "mean_hidden" alone: the mean of
    its patches. "mean_hidden" is "hidden" where a patch is a token.

    `tiles`: as the tower ran instead, tile by tile: every patch of each, also where padding is no token, no newline,
    and [CLS] of each. The same where an image is no tiles.
    """

    what: What
    layer: int
    tiles: bool = False


class Attention(Protocol):
    """What `on_attention` sees of one layer's prefill: the real post-RoPE tensors, by visual coordinates."""

    def visual_probs(self, rows: Rows, of: Tensor | None = None, heads: Heads = "each") -> Probabilities:
        """Exact softmax probabilities of the asked query rows on the visual tokens (over all keys, before any edit).

        `of (b,)` bool: the prompts of the batch that need it; the others read 0 and are not charged. `heads`: all of
        them, or their mean or maximum. Its cost, one product of the asked rows with all keys, is added to the trace.
        """

    def visual_values(self, heads: slice | None = None) -> Tensor:
        """(b, heads, v, head_dim): value vectors of the visual tokens, grouped heads repeated; `heads`: of these query
        heads alone, for a method that need not hold all."""

    def visual_keys(self) -> Tensor:
        """(b, heads, v, head_dim): rotated key vectors of the visual tokens, grouped heads repeated, 0 beyond a row's
        count."""

    def after_keys(self) -> Tensor:
        """(b, heads, t, head_dim): rotated key vectors of the text behind the image, grouped heads repeated, 0 beyond a
        row's count."""

    def last_output(self) -> Tensor:
        """(b, heads, head_dim): the attention output of the last token before o_proj."""

    def rotated(self, vector: Tensor, at: Rows) -> Tensor:
        """(b, r, head_dim) float32: `vector (head_dim,)` under this model's RoPE at the positions of these tokens."""


class Stream(Protocol):
    """The residual stream entering a layer, by token kind."""

    @property
    def visual(self) -> Tensor:
        """(b, v, d): hidden states of the visual tokens present now, 0 beyond a row's count."""

    @property
    def after(self) -> Tensor:
        """(b, t, d): hidden states of the text behind the image."""

    @property
    def after_valid(self) -> Tensor:
        """(b, t) bool."""

    @property
    def normed(self) -> Stream:
        """The same states under the model's final norm."""

    def coming_probs(
        self, rows: Rows = "last", of: Tensor | None = None, heads: Heads = "each", rotated: bool = True
    ) -> Probabilities:
        """`Attention.visual_probs` of the layer that the stream is about to enter: its norm, projections and RoPE at
        the present positions; not `rotated`: without RoPE.

        Its cost is added to the trace: keys of all tokens, queries of the asked rows, and their product.
        """


class Question(NamedTuple):
    """A prompt's question: `embeddings (b, p, width)` of its p pieces or tokens, `valid (b, p)` bool."""

    embeddings: Tensor
    valid: Tensor


#: output numbers of a product that are no padding
Entries = Sequence[int] | Tensor | None


class Run(Protocol):
    """The engine as a method sees it during one prefill."""

    memo: MutableMapping[str, Any]

    @property
    def shape(self) -> ModelShape:
        """The decoder."""

    @property
    def prompts(self) -> Sequence[PromptShape]:
        """The prompts of the batch, before any reduction."""

    @property
    def visual_valid(self) -> Tensor:
        """(b, v) bool: which of the v slots hold a visual token of this row, at the current boundary."""

    @property
    def n_prompt_visual(self) -> Tensor:
        """(b,) long: visual tokens of the prompt before any reduction."""

    @property
    def places(self) -> Places:
        """Image, view, row and column of each visual token present now, and the size of its view."""

    def quota(self, keep: int | Share) -> Tensor:
        """(b,) long: how many of its own visual tokens each prompt keeps: a count, at most all of them, or a share."""

    def generator(self, row: int) -> torch.Generator:
        """A CPU generator that depends on (seed, sample of this row) only: the same draw at any batch size and
        device."""

    def matmul(
        self, a: Tensor, b: Tensor, *, row: int | Sequence[int] | None = None, entries: Entries = None
    ) -> Tensor:
        """`a @ b`, its FLOPs added to the trace as scoring; a method makes its matrix products here.

        `row`: the product belongs to this row of the batch alone; several: one for each entry of the first axis
        (`ByImage.row`). None: the first axis is the batch. `entries`: how many output numbers of each are no padding
        (default: all); a tensor (b,) is read later.
        """

    def project(self, features: Tensor, valid: Tensor) -> Tensor:
        """(b, m, d): `features (b, m, width)` of the vision tower through the model's projector; `valid (b, m)` bool
        are charged to the trace."""

    def question(self) -> Question:
        """The questions through the text encoder that belongs to the vision tower; its cost is added to the trace.

        Raises PrunebenchError where the run has no text encoder, with how to name one.
        """

    def question_tokens(self, before: str = "") -> Question:
        """The words of `before` and of the questions as the model's tokenizer cuts each word alone, and as they enter
        the decoder: its input embeddings, which cost no matrix product. No token is added.

        Raises PrunebenchError where the run has no questions or no tokenizer, with how to give them.
        """

    def joint(self, features: Tensor, valid: Tensor) -> Tensor:
        """(b, v, e): `features (b, v, width)` of the vision tower in the space of `question().embeddings`, through the
        norm and projection of the text encoder's checkpoint; `valid (b, v)` bool are charged to the trace.

        Neither side is normalised. Raises PrunebenchError where the checkpoint is that of another tower.
        """

    def note(self, name: str, values: Tensor | Sequence[float | int | bool]) -> None:
        """Record one number per row with the sample's result (fusion layer, forced, ...); a tensor is read later."""


@dataclass(frozen=True)
class Traits:
    """What a table says about a method; declared by the method, checked by the conformance tests.

    `merges`: it adds tokens that were none of the image's. `reorders`: kept tokens do not stand in the order of the
    image. `keeps_most_attended`: at a budget, a visual token that all text attends to most, in every head and layer,
    stays. `image_only`: what it keeps and merges depends on the image alone, not on text or a draw, so that questions
    about an image share the prefill behind its reductions if the first is before layer 0 (harness/engine/prefix.py).
    `per_image`: each image of a prompt gets its share of the budget, and no other image changes what it keeps and
    merges. `calibrated`: BUDGET=calibrated gives it knobs derived for one model.
    """

    query_aware: bool
    needs_vision_attention: bool = False
    adaptive: bool = False
    edits_attention: bool = False
    merges: bool = False
    reorders: bool = False
    random: bool = False
    keeps_most_attended: bool = False
    image_only: bool = False
    per_image: bool = False
    calibrated: bool = False


class Published(NamedTuple):
    """Where a method was published, for `prunebench methods` and docs/methods.md.

    `venue` as "CVPR 2025". `repository` as "dvlab-research/VisionZip", `commit` as its first eight hex digits: the
    official code that the method's file was read from and its recorded runs were made with. `licence` of that code,
    "none" where the repository has none.
    """

    venue: str
    repository: str
    commit: str
    licence: str


@dataclass(frozen=True)
class Method:
    """Base of all methods: knobs are dataclass fields with the paper's defaults. Without hooks it prunes nothing.

    Subclasses set `name` (lower case, as the paper is called), `paper` (its link), `published` (its official code) and
    `traits`, and override the hooks they need. Layers are knobs: None is the official layer at the same relative depth
    of this model, a layer given by hand is literal, and a stage at or beyond the model's depth does not happen. Knobs
    under which no stage would happen are refused.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    published: ClassVar[Published | None] = None
    traits: ClassVar[Traits] = Traits(query_aware=False)
    #: knobs that the budget sets; giving one by hand beside a budget is refused
    budget_knobs: ClassVar[tuple[str, ...]] = ("keep",)
    #: knobs that make another method when they are not at their default: tables always name them then
    variant_knobs: ClassVar[tuple[str, ...]] = ()
    #: knobs that came after results were kept, with the value that those results had: at that value they are no part of
    #: `knobs()`, so that the cells keep their identity
    later_knobs: ClassVar[Mapping[str, Any]] = {}
    #: a budget that the method takes, for messages: a number of visual tokens, or "native" where none stays by number
    usual_budget: ClassVar[int | str] = 64
    #: every image must be one grid of patches, without newlines: what the method does is laid out on it
    needs_grid: ClassVar[bool] = False
    #: `at_budget` gets `avg` and `flops` budgets as they are: no number of tokens decides the schedule
    solves_budgets: ClassVar[bool] = False
    #: in the official code, tokens that leave at a boundary leave inside the layer before, ahead of its output
    #: projection: `dense` FLOPs count that layer so
    drops_inside: ClassVar[bool] = False

    # ------------------------------------------------------------------------------------------------ budget and checks

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Self:
        """The method with its knobs set for a budget; raises PrunebenchError where the method cannot reach it.

        `prompt`: one as the model is asked them, its text not counted. The default takes `kept` budgets into the knob
        `keep` and refuses `native`, and `calibrated` where its traits do not say so; `avg` and `flops` have been solved
        for a kept count before they come here.
        """
        if budget.unit == "none" or (budget.unit == "calibrated" and cls.traits.calibrated):
            return cls(**knobs)
        if budget.unit == "kept":
            return cls(**{"keep": budget.tokens, **knobs})
        if budget.unit == "native":
            raise PrunebenchError(
                f"{cls.name} has no published defaults, so {given('budget', 'native')} means nothing: give a number, as"
                f" in {given('budget', 64)}"
            )
        if budget.unit == "calibrated":
            raise PrunebenchError(
                f"{cls.name} has nothing to calibrate, so {given('budget', 'calibrated')} means nothing: give a"
                f" number ({given('budget', 64)})"
            )
        raise PrunebenchError(
            f"{cls.name} takes a number of visual tokens as budget ({given('budget', 64)}); found {budget}"
        )

    def for_model(self, shape: ModelShape) -> Self:
        """The method with depth-dependent defaults filled in for this decoder, checked: raises PrunebenchError on a bad
        knob."""
        return self

    def knobs(self) -> dict[str, Any]:
        """All knobs with their values, defaults included but for `later_knobs`; a share as it is spelt ("0.25kept"), a
        file (a knob of type `Path`) as its name and what is in it, a text tower as its fingerprint."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        later = self.later_knobs.items()
        return {name: plain(name, value) for name, value in values.items() if (name, value) not in later}

    @property
    def uses_seed(self) -> bool:
        """Does the seed change anything? A method that draws nothing is one cell whatever the seed."""
        return self.traits.random

    @property
    def image_only(self) -> bool:
        """Does the image alone decide, with these knobs? `traits.image_only` says so of all knobs."""
        return self.traits.image_only

    @property
    def text_tower(self) -> TextTower | None:
        """The text tower that a knob names."""
        return next(
            (value for f in dataclasses.fields(self) if isinstance(value := getattr(self, f.name), TextTower)), None
        )

    def check_text_tower(self) -> None:
        """Raise PrunebenchError where these knobs need a text tower, and neither a knob nor the model named one.

        Asked when a model is known, and before its weights are loaded.
        """

    def prefix_key(self) -> str:
        """Names what this method's attention edits do to visual rows, where that depends on knobs only; "" for nothing.

        Questions about one image share the prefill of the image up to the first reduction (harness/engine/prefix.py),
        among all methods of one key. Optional: without a key the results are the same, and less of
        its work is shared.
        """
        return ""

    def choices(self, shape: ModelShape) -> Mapping[str, Any]:
        """What the prompt would decide, as knobs that force it, at usual values: how an adaptive method is timed on
        random input.

        With these knobs set `plan` knows the schedule. Empty where the prompt decides nothing, or nothing can be
        forced.
        """
        return {}

    # --------------------------------------------------------------------------------------------------- before any run

    def plan(self, prompt: PromptShape) -> list[int] | None:
        """Visual tokens entering each decoder layer for this prompt: what the trace will say.

        One number per layer; merged tokens included. None where the content of the prompt decides (adaptive methods) or
        the method does not say. Ask a method that went through `for_model(shape)`; plain Python, no tensors. Raises
        PrunebenchError where the prompt does not fit the knobs.
        """
        return None

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int | None:
        """FLOPs of one prompt's scoring under the plan `visual`: what `trace.scoring` will say; None where the prompt
        decides.

        The default knows that a method without eyes and without reductions scores nothing.
        """
        silent = type(self).on_attention is Method.on_attention and type(self).at_boundary is Method.at_boundary
        return 0 if silent else None

    def known_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        """FLOPs of one prompt's scoring as far as they are known before a run: what a budget of FLOPs counts.

        The default is `plan_scoring`, and 0 where that is None.
        """
        return self.plan_scoring(prompt, visual) or 0

    # ------------------------------------------------------------------------------------------------------------ hooks

    def looks(self, shape: ModelShape) -> Sequence[TowerLook]:
        """What `on_image` wants to see of the vision tower. It is kept with the image's features, which are computed
        once.

        A "cls_row" costs one query's product with all keys and image, column sums those of all queries; `flops.look`
        says how much, and all are added to the trace.
        """
        return ()

    def on_image(self, run: Run, tower: Mapping[TowerLook, Tensor]) -> None:
        """Eye, before boundary 0, for methods with `looks`: "cls_row" and column sums as (b, heads, v) float32,
        "keys" and "hidden" as (b, v, width), what is per image as (b, images, width).

        `v` as in `run.visual_valid`: the patches of a prompt's images in order, 0 beyond a row's count.
        """

    def edit_attention(self, run: Run, layer: int) -> Sequence[AttentionEdit]:
        """Hand, before a layer's attention in the prefill; the edits of one layer must not share rows."""
        return ()

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        """Eye, after a layer's attention in the prefill, before o_proj."""

    def on_pixels(self, pixels: Tensor) -> Tensor | None:
        """Hand, before the vision tower: `pixels (images, 3, h, w)` as the processor made them -> same shape, or
        None."""
        return None

    def picture(self, size: Size, tokens: Callable[[Size], int]) -> Size | None:
        """Hand, before the processor, where images differ in tokens: the (height, width) to which a picture of `size`
        is shrunk, or None.

        `tokens` says how many visual tokens a picture of some size has. A method with this hook changes no pixels
        there: its `on_pixels` is asked where all images have one size. Raises PictureError where too many tokens stay.
        """
        return None

    def hide_in_decode(self, run: Run, layer: int) -> Tensor | None:
        """Hand, once per layer after the prefill: `(b, v)` bool over the visual tokens in this layer's cache that
        generated tokens must not attend, or None."""
        return None

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        """Hand, at the stream entering `layer` in the prefill; boundary 0 is the language model's input."""
        return None
