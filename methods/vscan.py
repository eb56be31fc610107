"""VScan: what a shallow tower layer attends to in each window and a deep one anywhere, and of these what the prompt
attends to in the middle of the decoder.

Paper: https://arxiv.org/abs/2505.22654 (TMLR 2026). Official code: Tencent/SelfEvolvingAgent @ a82450e1, VScan,
llava/model and qwen/model. Of the k tokens of an image, half are the best by the local look, so many of each window,
and the others the best by the global look. Every other token is averaged into the kept one of the most similar cosine,
in the language model's space. Before layer p the last token of the prompt attends under the norm and the projections of
layer p, mean over heads, and the best tokens stay.

LLaVA-1.5: [CLS] of tower layer 5 of 24, counted from 0, and of the second-last; windows of 6 x 6, int(k / 2) divided by
their number from each, rounded down; positions renumbered. `counts` are the official numbers: 96, then 32 from layer 16
of 32. Qwen2.5-VL: column sums of the first layer that attends over the whole image, and of the last; windows of 4 x 4
tokens, of which the last ones take rows and columns left over; k // 2 local tokens by descending score, at most
ceil(k // 2 / windows) of each window. `ratios` are the official shares, each of the tokens there, rounded down: 0.167,
then 0.333 from layer 14 of 28. There layer p ranks without RoPE, and positions stay. The script for MMBench asks for
flash attention, which rotates queries and keys of the tower's scores a second time: `official` is "qwen-flash".

`BUDGET=k` is ours: three times k tokens stay behind the tower, the proportion of 96 to 32, and k from layer p on.
On tiles (LLaVA-NeXT) each tile alone keeps `counts[0]` patches. Patches of the padding are lost when the raster is
un-padded; every row keeps its newline. `official` "next-code" is the code there, which ranks as if one tile had come:
the first `counts[0]` visual tokens alone, by the row that is the last one of such a prompt, mostly a visual one. The
paper's setting keeps 354 tokens of a 2 x 2 image so. "next", the default, is ours: it ranks all visual tokens by the
last token of the prompt, and counts[1] x tiles stay.
Differs: an image with a side of less than a window has one window there, where the code for Qwen stops. Each of several
images has its share and its windows, where the code stops; the decoder ranks them together. A share that rounds to no
token is refused. A local token is left out of the global look instead of scored 0. A stage beyond the last layer does
not happen, where the code fails. Scores and means are float32 at least. Equal scores go to the lower index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from harness.core import flops
from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.core.shape import Grid, ModelShape, VisionShape
from harness.method import (
    Method,
    PromptShape,
    Published,
    Reduction,
    Rows,
    Run,
    Share,
    Stream,
    TowerLook,
    Traits,
    What,
    check_keep,
    keep_top,
    register,
)
from methods._select import ByImage, exact, image_quotas, least_ratio
from methods._stages import check_ratios, stage_layers
from methods._tiles import ByTile, tiled

#: the decoder layer of 32; defaults of the scripts for LLaVA and for Qwen2.5-VL
LAYERS, COUNTS, RATIOS = (16,), (96, 32), (0.167, 0.333)
#: tokens behind the tower for each one that stays at last
FACTOR = 3
#: by tower: the layer of the local look, counted from 1, of how many layers; the layer of the global look; the window
CLS, SUMS = (6, 24, -2, 6), (8, 32, -1, 4)
#: what the model projects
FEATURES = TowerLook("hidden", -2, tiles=True)


@register
@dataclass(frozen=True)
class VScan(Method):
    """One of `keep`, `counts` and `ratios` says how many tokens stay behind the tower and from each of `layers` on.

    `counts`: of an image or a tile, first behind the tower. `ratios`: of the tokens there. `local_layer` counts from 0;
    None moves the official one to the same relative depth, and is Qwen's first layer of full attention. `window`: its
    side in visual tokens; None is the official one. `official`: the code whose ways it goes; a budget chooses it.
    """

    name = "vscan"
    paper = "https://arxiv.org/abs/2505.22654"
    published = Published("TMLR 2026", "Tencent/SelfEvolvingAgent", "a82450e1", "MIT")
    traits = Traits(query_aware=True, needs_vision_attention=True)
    budget_knobs = ("keep", "counts", "ratios")
    variant_knobs = ("official",)

    keep: int | Share | None = None
    counts: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    layers: tuple[int, ...] | None = None
    local_layer: int | None = None
    window: int | None = None
    official: Literal["llava", "next", "next-code", "qwen", "qwen-flash"] = "llava"

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Self:
        vision = prompt.images[0].vision
        own = "next" if tiled(prompt) else "llava" if vision.prefix else "qwen"
        given = {"official": own, **knobs}
        if budget.unit == "native":
            built = cls(**{**({"ratios": RATIOS} if own == "qwen" else {"counts": COUNTS}), **given})
        else:
            built = super().at_budget(budget, given, prompt)
        built._check_fits(prompt)
        layer = built._default_look(vision) if built.local_layer is None else built.local_layer
        if not 0 <= layer < vision.layers_used:
            raise PrunebenchError(
                f"vscan: local_layer={layer} does not fit this model: expected 0 to {vision.layers_used - 1}, a layer"
                " of the vision tower"
            )
        return replace(built, local_layer=layer, window=built._tower[3] if built.window is None else built.window)

    def for_model(self, shape: ModelShape) -> VScan:
        given = {name: getattr(self, name) for name in self.budget_knobs if getattr(self, name) is not None}
        if len(given) != 1:
            found = ", ".join(f"{name}={value}" for name, value in given.items()) or "none"
            raise PrunebenchError(f"vscan: expected one of keep, counts and ratios, found {found}")
        if self.keep is not None:
            check_keep(self.name, self.keep)
        if self.counts is not None and (not self.counts or min(self.counts) < 1):
            raise PrunebenchError(
                f"vscan: expected counts of at least one token, behind the tower and at each of layers; found"
                f" {self.counts}"
            )
        if self.window is not None and self.window < 1:
            raise PrunebenchError(f"vscan: expected window >= 1, the side of a window in tokens; found {self.window}")
        stages = 1 if self.keep is not None else len(self.counts or self.ratios or ()) - 1
        if self.layers is None and stages > 1:
            raise PrunebenchError(f"vscan: expected layers for {stages} stages in the decoder, found none")
        # () is asked for as it is, or by one number alone: no stage in the decoder
        layers = self.layers if self.layers == () or not stages else stage_layers(self.name, self.layers, LAYERS, shape)
        layers = () if layers is None else layers
        if self.ratios is not None:
            check_ratios(self.name, self.ratios, (0, *layers))
        elif self.counts is not None and len(self.counts) != len(layers) + 1:
            raise PrunebenchError(
                f"vscan: expected {len(layers) + 1} counts, behind the tower and at each of layers; found {self.counts}"
            )
        elif self.keep is not None and len(layers) > 1:
            raise PrunebenchError(f"vscan: expected one of layers with keep, found {layers}: give counts or ratios")
        return replace(self, layers=layers)

    @property
    def _tower(self) -> tuple[int, int, int, int]:
        return SUMS if self.official.startswith("qwen") else CLS

    def _default_look(self, vision: VisionShape) -> int:
        layer, of, _, _ = self._tower
        if self._tower is SUMS and vision.windows:
            return vision.whole_layers[0]
        return max(0, round(layer * vision.layers_used / of) - 1)

    def _check_fits(self, prompt: PromptShape) -> None:
        """Raise PrunebenchError where `official` is the code for another kind of images or knobs."""
        if self.official.startswith("next") != tiled(prompt):
            found, fits = ("tiles", "next or next-code") if tiled(prompt) else ("no tiles", "llava or qwen")
            raise PrunebenchError(
                f"vscan: official={self.official}: expected official={fits}, found a model with {found}: a budget"
                " chooses it, as build() does"
            )
        if tiled(prompt) and self.ratios is not None:
            raise PrunebenchError(
                "vscan: expected keep or counts on tiles, found ratios, which its code for Qwen takes"
            )
        if self.official != "next-code":
            return
        if self.counts is None:
            raise PrunebenchError(
                "vscan: official=next-code: expected counts, of which its code takes the first for all visual tokens:"
                " give counts=96,32, BUDGET=native, or official=next"
            )
        if len(prompt.images) > 1:
            raise PrunebenchError(
                f"vscan: official=next-code: expected one image a prompt, found {len(prompt.images)}: give"
                " official=next"
            )

    # ----------------------------------------------------------------------------------------------------------- counts

    def _behind_tower(self, prompt: PromptShape) -> list[int]:
        """Patches that each image, or each tile, keeps."""
        if self.keep is not None:
            factor = FACTOR if self.layers else 1
            parts = zip(prompt.images, image_quotas(prompt, self.keep), strict=True)
            return [
                min(factor * quota // image.vision.tiles, _most(image)) for image, quota in parts for _ in _units(image)
            ]
        units = [_most(image) for image in prompt.images for _ in _units(image)]
        if self.counts is not None:
            return [min(self.counts[0], n) for n in units]
        assert self.ratios is not None
        return [self._share(n, self.ratios[0], "an image") for n in units]

    def _share(self, n: int, ratio: float, what: str) -> int:
        found = int(n * ratio)
        if not found:
            raise PrunebenchError(
                f"vscan: a ratio of {ratio:g} of {what} of {n} tokens is none: expected {least_ratio(n):g} or more"
            )
        return found

    def _later(self, prompt: PromptShape, n: int) -> list[int]:
        """Tokens that stay at each of `layers`, of `n` behind the tower."""
        if self.ratios is not None:
            found = list[int]()
            for ratio in self.ratios[1:]:
                found.append(self._share([n, *found][-1], ratio, "a prompt"))
            return found
        if self.counts is None:
            return [prompt.quota(self.keep or 0)] if self.layers else []
        units = sum(image.vision.tiles for image in prompt.images)
        return [min(n, count * units) for count in self.counts[1:]]

    def plan(self, prompt: PromptShape) -> list[int] | None:
        behind = self._behind_tower(prompt)
        if tiled(prompt):
            return None  # which of the kept patches are padding, the image decides
        found, later = [sum(behind)] * prompt.depth, self._later(prompt, sum(behind))
        for layer, n in zip(self.layers or (), later, strict=True):
            if layer < prompt.depth:  # a stage beyond the last layer does not happen
                found[layer:] = [min(n, found[layer])] * (prompt.depth - layer)
        return found

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        shape, units = prompt.decoder, [image for image in prompt.images for _ in _units(image)]
        cost = sum(flops.look(i.vision, x.what, x.layer) for x in self.looks(shape) for i in prompt.images)
        for image, k in zip(units, self._behind_tower(prompt), strict=True):
            cost += 4 * shape.hidden * k * (_most(image) - k)
            if tiled(prompt):
                cost += flops.projector(shape, image.vision, tokens=_most(image))
        for layer in self._happening(prompt):
            tokens = visual[layer - 1] + prompt.n_text
            projections = shape.hidden * (shape.kv_heads * tokens + shape.heads)  # all keys, one query
            cost += 2 * shape.head_dim * (projections + shape.heads * tokens)
        return cost

    def _happening(self, prompt: PromptShape) -> list[int]:
        return [layer for layer in self.layers or () if layer < prompt.depth]

    # ------------------------------------------------------------------------------------------------------------ hooks

    def looks(self, shape: ModelShape) -> Sequence[TowerLook]:
        if self.local_layer is None:
            raise PrunebenchError(
                "vscan: local_layer=None is a relative depth of the vision tower, which is known where a budget is set:"
                " use build(), or give the layer (5 of 24)"
            )
        kinds: dict[str, What] = {"qwen": "column_sums", "qwen-flash": "twice_rotated_sums"}
        what, on_tiles = kinds.get(self.official, "cls_row"), self.official.startswith("next")
        found = [TowerLook(what, layer, tiles=on_tiles) for layer in (self.local_layer, self._tower[2])]
        return (*found, FEATURES) if on_tiles else found

    def on_image(self, run: Run, tower: Mapping[TowerLook, Tensor]) -> None:
        near, far, *features = self.looks(run.shape)
        run.memo.update({"local": tower[near].sum(1), "global": tower[far].sum(1)})
        run.memo["features"] = tower[features[0]] if features else None

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer == 0:
            return self._at_tower(run, stream)
        if self.layers is None or layer not in self.layers:
            return None
        stage, code, valid = self.layers.index(layer), self.official == "next-code", run.visual_valid
        rows: Rows = self._row_of_one_tile(run, stream, stage) if code else "last"
        scores = stream.coming_probs(rows, heads="mean", rotated=self._tower is CLS).values[:, 0, 0]
        run.memo.setdefault("stages", []).append(scores)
        if not code:
            n = [self._later(prompt, sum(self._behind_tower(prompt)))[stage] for prompt in run.prompts]
            keep = keep_top(scores, torch.tensor(n, device=scores.device), valid)
        else:
            among, stay = self._window(stage)
            window = valid & (torch.arange(valid.shape[1], device=valid.device) < among)
            keep = keep_top(scores, stay, window) | (valid & ~window)
        return Reduction(keep, positions="compact", decode_positions="per_layer")

    def _at_tower(self, run: Run, stream: Stream) -> Reduction | None:
        for prompt in run.prompts:
            self._check_fits(prompt)
        on_tiles = tiled(run.prompts[0])
        by = ByTile(run) if on_tiles else ByImage(run)
        quotas = [k for prompt in run.prompts for k in self._behind_tower(prompt)]
        if not on_tiles and quotas == by.counts:
            return None
        grids = [image.views[0] for prompt in run.prompts for image in prompt.images for _ in _units(image)]
        kept = self._scanned(run, by, quotas, grids)
        run.memo["tiles"] = kept if on_tiles else None
        visual = stream.visual
        if isinstance(by, ByTile):
            tokens = by.projected(run, by.split(run.memo["features"]), by.valid)
        else:
            tokens = by.split(visual)
        values = tokens.clone()
        for unit, (row, n, k) in enumerate(zip(by.row, by.counts, quotas, strict=True)):
            if 0 < k < n:
                values[unit, :n] = merged(run, row, tokens[unit, :n], kept[unit, :n], k)
        if isinstance(by, ByTile):
            newline = (run.places.row < 0) & run.visual_valid
            keep = by.of_tokens(kept) | newline
            values = torch.where(newline[:, :, None], visual, by.of_tokens(values).to(visual.dtype))
        else:
            keep, values = by.join(kept), by.join(values)
        return Reduction(keep, values=values, positions="compact", decode_positions="per_layer")

    def _scanned(self, run: Run, by: ByImage, quotas: Sequence[int], grids: Sequence[Grid]) -> Tensor:
        """(u, p) bool: what each image or tile keeps, the best of its windows and then the best of all."""
        side, device = self.window or self._tower[3], by.valid.device
        near, far = by.split(run.memo["local"]), by.split(run.memo["global"])
        window, n_windows = windows(grids, side, by.valid.shape[1])
        if self._tower is SUMS:
            most = [-(-(k // 2) // n) for k, n in zip(quotas, n_windows, strict=True)]
            local = [k // 2 for k in quotas]
        else:
            most = [k // 2 // n for k, n in zip(quotas, n_windows, strict=True)]
            local = [each * n for each, n in zip(most, n_windows, strict=True)]
        limit = torch.tensor(most, device=device)[:, None]
        inside = by.valid & (places_within(near, window.to(device), by.valid) < limit)
        first = by.top(near, local, inside)
        run.memo["first"] = first
        left = torch.tensor(quotas, device=device) - first.sum(1)
        return first | by.top(far, left, by.valid & ~first)

    def _window(self, stage: int) -> tuple[int, int]:
        """The number of first visual tokens that the code for LLaVA-1.5 takes for all, and how many of them stay."""
        assert self.counts is not None
        return self.counts[stage], self.counts[stage + 1]

    def _row_of_one_tile(self, run: Run, stream: Stream, stage: int) -> Tensor:
        """(b, 1) long: the row that the code takes for the last: of a prompt with its text and that window alone."""
        valid = run.visual_valid
        present, behind = valid.sum(1), stream.after_valid.sum(1)
        # counted from the first visual token on; what is beyond the visual ones is text
        row = torch.minimum(self._window(stage)[0] - 1 + behind, present + behind - 1)
        return torch.where(row < present, row, row - present + valid.shape[1])[:, None]


def _units(image: Any) -> range:
    """The image, or its tiles."""
    return range(image.vision.tiles)


def _most(image: Any) -> int:
    """Tokens of an image, or of a tile of it."""
    return int(image.tokens if image.vision.tiles == 1 else image.vision.patches)


def windows(grids: Sequence[Grid], side: int, width: int) -> tuple[Tensor, list[int]]:
    """(u, `width`) long: the window of each token of a grid, -1 beyond its tokens; and the number of windows.

    Windows are `side` x `side`; rows and columns left over belong to the last ones.
    """
    found, counts = torch.full((len(grids), width), -1), []
    for at, grid in enumerate(grids):
        down, across = max(1, grid.rows // side), max(1, grid.cols // side)
        row = (torch.arange(grid.rows) // side).clamp(max=down - 1)
        col = (torch.arange(grid.cols) // side).clamp(max=across - 1)
        found[at, : grid.rows * grid.cols] = (row[:, None] * across + col).flatten()
        counts.append(down * across)
    return found, counts


def places_within(scores: Tensor, window: Tensor, valid: Tensor) -> Tensor:
    """(u, p) long: the rank of each token by `scores (u, p)` among the `valid` ones of its `window (u, p)`, 0 the
    highest; the lower index wins a tie."""
    best = scores.masked_fill(~valid, float("-inf")).argsort(dim=1, descending=True, stable=True)
    # from the best of the first window to the last of the last one
    order = best.gather(1, window.gather(1, best).argsort(dim=1, stable=True))
    of = window.gather(1, order)
    place = torch.arange(of.shape[1], device=of.device).expand_as(of)
    starts = torch.ones_like(of, dtype=torch.bool)
    starts[:, 1:] = of[:, 1:] != of[:, :-1]
    first = torch.where(starts, place, 0).cummax(1).values
    return torch.empty_like(order).scatter_(1, order, place - first)


def merged(run: Run, row: int, tokens: Tensor, kept: Tensor, k: int) -> Tensor:
    """(n, d), float32 at least: `tokens (n, d)` of a prompt `row` with the mean of each of the `k` that `kept (n,)`
    marks and of the others that are most like it in its place."""
    tokens = exact(tokens)
    order = (~kept).to(torch.uint8).argsort(stable=True)
    index, others = order[:k], order[k:]
    units = normalize(tokens, dim=1)
    nearest = run.matmul(units[others], units[index].T, row=row).argmax(1)
    joins = one_hot(nearest, k).T.to(tokens.dtype)
    means = (tokens[index] + run.matmul(joins, tokens[others], row=row)) / (1 + joins.sum(1, keepdim=True))
    return tokens.index_copy(0, index, means)
