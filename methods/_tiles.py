"""Images in tiles, pruned as official codes of LLaVA-NeXT do: each tile alone, on every patch that the tower saw.

Those codes switch newline tokens and un-padding off. What they keep of the overview comes first; what they keep of the
tiles follows as one raster over all tiles. So no visual token of the prompt stays. The projector makes kept patches
anew from the tower's features, also where a patch is padding and the model itself has no token for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from harness.core.errors import PrunebenchError
from harness.core.shape import ImageShape
from harness.method import PromptShape, Reduction, Run, Share
from methods._select import ByImage, image_quotas


def tiled(prompt: PromptShape) -> bool:
    """Are the prompt's images cut into tiles?"""
    return prompt.images[0].vision.tiles > 1


def tile_quotas(prompt: PromptShape, keep: int | Share) -> list[int]:
    """What each tile keeps of `keep` tokens of a prompt: an equal part of its image's, rounded down, at most all."""
    found = []
    for image, quota in zip(prompt.images, image_quotas(prompt, keep), strict=True):
        found += [min(quota // image.vision.tiles, image.vision.patches)] * image.vision.tiles
    return found


class ByTile(ByImage):
    """The tiles of a batch of prompts as a batch of their own; what `ByImage` says of images holds for tiles, and
    `image` is the number of a tile in its prompt."""

    def __init__(self, run: Run) -> None:
        self._prompts, self._alone = run.prompts, False
        device = run.visual_valid.device
        each = [[image.vision.patches for image in prompt.images for _ in _numbers(image)] for prompt in run.prompts]
        self.row = [row for row, tiles in enumerate(each) for _ in tiles]
        self.image = [tile for tiles in each for tile in range(len(tiles))]
        self.counts = [count for tiles in each for count in tiles]
        if len(set(self.counts)) > 1:
            raise PrunebenchError(f"expected tiles of one size in a batch, found {sorted(set(self.counts))} patches")
        size, width = self.counts[0], max(map(sum, each))
        self._batch = (torch.arange(width)[None] < torch.tensor([sum(tiles) for tiles in each])[:, None]).to(device)
        first = torch.tensor([row * width + tile * size for row, tile in zip(self.row, self.image, strict=True)])
        self._at = (first[:, None] + torch.arange(size)[None]).to(device)
        self.valid = torch.ones_like(self._at, dtype=torch.bool)

    def places(self) -> Tensor:
        """(u, p) long: where each patch stands in its image: those of the overview first, then the raster of all its
        tiles."""
        found = []
        for prompt in self._prompts:
            for image in prompt.images:
                found += _places(image)
        return torch.stack(found).to(self.valid.device)

    def of_image(self) -> Tensor:
        """(u,) long: the image of each tile in its prompt."""
        images = [i for prompt in self._prompts for i, image in enumerate(prompt.images) for _ in _numbers(image)]
        return torch.tensor(images, device=self.valid.device)

    def overview(self) -> Tensor:
        """(u,) bool: the tile is an image's overview."""
        first = [tile == 0 for prompt in self._prompts for image in prompt.images for tile in _numbers(image)]
        return torch.tensor(first, device=self.valid.device)

    def of_tokens(self, x: Tensor) -> Tensor:
        """`x (u, p, ...)` -> (b, v, ...): what belongs to the patch of each visual token of the prompts; 0 for newlines
        and beyond a row's count."""
        first, rows = 0, []
        for prompt in self._prompts:
            numbers = []
            for image in prompt.images:
                numbers.append(_order(image) + first)
                numbers[-1][_order(image) < 0] = -1
                first += image.vision.tiles * image.vision.patches
            rows.append(torch.cat(numbers))
        index = pad_sequence(rows, batch_first=True, padding_value=-1).to(x.device)
        found = x.flatten(0, 1)[index.clamp(min=0)]
        return found.masked_fill((index < 0).view(*index.shape, *[1] * (x.ndim - 2)), 0)

    def placed(self, tokens: Tensor, real: Tensor, place: Tensor) -> Reduction:
        """Puts `tokens (u, m, d)`, those of `real (u, m)`, in the place of all visual tokens: per prompt image by
        image, and in an image by ascending `place (u, m)` long."""
        beyond = torch.iinfo(torch.long).max
        most = int(torch.where(real, place, 0).max()) + 1
        key = torch.where(real, place + most * self.of_image()[:, None], beyond)
        image = self.of_image()[:, None].expand_as(real)
        b, n = len(self._batch), (max(self.image) + 1) * tokens.shape[1]
        whole = tokens.new_zeros(b, max(self.image) + 1, *tokens.shape[1:])
        keys = key.new_full((b, max(self.image) + 1, tokens.shape[1]), beyond)
        images = torch.zeros_like(keys)
        whole[self.row, self.image], keys[self.row, self.image], images[self.row, self.image] = tokens, key, image
        order = keys.view(b, n).argsort(dim=1, stable=True)
        valid = keys.view(b, n).gather(1, order) < beyond
        width = int(valid.sum(1).max())
        order, valid = order[:, :width], valid[:, :width]
        return Reduction(
            torch.zeros(b, self._prompt_width(), dtype=torch.bool, device=tokens.device),
            added=whole.view(b, n, -1).gather(1, order[:, :, None].expand(-1, -1, tokens.shape[2])),
            added_valid=valid,
            added_image=images.view(b, n).gather(1, order) if max(len(p.images) for p in self._prompts) > 1 else None,
            positions="compact",
            decode_positions="compact",
        )

    def _prompt_width(self) -> int:
        return max(prompt.n_visual for prompt in self._prompts)


def _numbers(image: ImageShape) -> range:
    """The tiles of an image by number, the overview first."""
    return range(image.vision.tiles)


def _places(image: ImageShape) -> list[Tensor]:
    """(p,) long per tile: see `ByTile.places`."""
    side, (rows, cols) = image.views[0].rows, image.cut
    whole = side * side + torch.arange(rows * cols * side * side).view(rows, side, cols, side).transpose(1, 2)
    return [torch.arange(side * side), *whole.reshape(rows * cols, side * side)]


def _order(image: ImageShape) -> Tensor:
    """(v,) long: the patch of each visual token, counted through the overview and the tiles; -1 for a newline."""
    side, (rows, cols), grid = image.views[0].rows, image.cut, image.views[1]
    patches = torch.arange(rows * cols * side * side).view(rows, cols, side, side)
    raster = side * side + patches.transpose(1, 2).reshape(rows * side, cols * side)
    # padding stands at both ends alike
    top, left = (rows * side - grid.rows) // 2, (cols * side - grid.cols) // 2
    inside = raster[top : top + grid.rows, left : left + grid.cols]
    return torch.cat([torch.arange(side * side), pad(inside, (0, 1), value=-1).flatten()])


def picked(keep: Tensor) -> tuple[Tensor, Tensor]:
    """(u, k) long and bool: the patches that `keep (u, p)` marks, ascending, k the most of any tile; the real ones."""
    counts = keep.sum(1, keepdim=True)
    most = int(counts.max())
    index = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return index, torch.arange(most, device=keep.device)[None] < counts


def plan_of(prompt: PromptShape, per_tile: Sequence[int]) -> list[int]:
    """The schedule of a prompt whose tiles keep so many tokens each, from the first layer on."""
    return [sum(per_tile)] * prompt.depth
