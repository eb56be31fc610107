"""Image down-sampling: throw pixels away instead of tokens, the control that beats many pruning methods in VTC-Bench.

Paper: https://arxiv.org/abs/2510.07143 (VTC-Bench), which shrinks the input of models with native resolution by a whole
factor (PIL BICUBIC). Where images differ in tokens, the picture is shrunk before the processor to the largest size of
its shape with at most `keep` tokens, and the tower gets cheaper too. LLaVA-1.5 has one resolution, so the image is
shrunk until it holds as much as `keep` patches and enlarged to its input size again: the detail is gone, the tokens are
all there, and the cost honestly shows all of them.
Differs: any `keep`, not whole factors only (sides are rounded to whole pixels of the same shape). With one resolution
it works on the normalised pixels, by antialiased bicubic interpolation in float32 without rounding to 8 bits or
clamping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any, ClassVar, Self

from torch import Tensor
from torch.nn.functional import interpolate

from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.core.shape import Size, quota
from harness.method import Method, PictureError, PromptShape, Share, Traits, check_keep, register

#: how far whole pixels may change the ratio of a picture's sides
SHAPE = 0.005


@register
@dataclass(frozen=True)
class Downsample(Method):
    """Shows the model an image of at most `keep` tokens. Where all images have one size, it has the detail of `keep`
    patches; `side`, the pixels it is shrunk to there, follows from `keep` and the image. `fewest`: a picture that has
    more tokens at any size of its shape is shrunk to the fewest, and is not refused."""

    name = "downsample"
    paper = "https://arxiv.org/abs/2510.07143"
    traits = Traits(query_aware=False)

    variant_knobs = ("fewest",)
    later_knobs: ClassVar[Mapping[str, Any]] = {"fewest": False}

    keep: int | Share
    side: int | None = None
    fewest: bool = False

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Self:
        method = super().at_budget(budget, knobs, prompt)
        check_keep("downsample", method.keep)
        image = prompt.images[0]
        patch = isqrt(image.vision.patch_inputs // 3)
        side = min(round(patch * quota(method.keep, image.tokens) ** 0.5), patch * image.views[0].rows)
        expected = None if prompt.one_of_many else side
        if method.side not in (None, expected):
            raise PrunebenchError(
                f"downsample: keep={method.keep} makes side={expected}, found side={method.side}: leave side out"
            )
        if method.fewest and not prompt.one_of_many:
            raise PrunebenchError(
                "downsample: expected fewest where images differ in tokens, found a model whose images have one size:"
                " leave fewest out"
            )
        return replace(method, side=expected)

    def plan(self, prompt: PromptShape) -> list[int]:
        return [prompt.quota(self.keep) if prompt.one_of_many else prompt.n_visual] * prompt.depth

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        return 0

    def picture(self, size: Size, tokens: Callable[[Size], int]) -> Size | None:
        own = tokens(size)
        most = quota(self.keep, own)
        if most == own:
            return None
        fewest, reached = own, None
        for smaller in _smaller(size):
            found = tokens(smaller)
            if found <= most:
                return smaller
            if found < fewest:
                fewest, reached = found, smaller
        if self.fewest:
            return reached
        raise PictureError(
            most,
            fewest,
            f"downsample: keep={self.keep}: expected at least {fewest} of the {own} visual tokens of a picture of"
            f" {size[1]} x {size[0]} pixels, the fewest of a smaller one of its shape, found {most}: keep more, or give"
            " fewest=true, which takes the fewest where it must",
        )

    def on_pixels(self, pixels: Tensor) -> Tensor | None:
        if self.side is None:
            raise PrunebenchError(
                "downsample: expected a side in pixels, found none: make it with build() or at_budget(), which know the"
                " image"
            )
        height, width = pixels.shape[-2:]
        if self.side >= min(height, width):
            return None
        small = interpolate(pixels.float(), size=(self.side, self.side), mode="bicubic", antialias=True)
        return interpolate(small, size=(height, width), mode="bicubic", antialias=True).to(pixels.dtype)


def _smaller(size: Size) -> Iterator[Size]:
    """Every smaller (height, width) of the same shape, up to `SHAPE`, the largest first; sides are rounded, halves up.

    Of a few pixels rounding makes another shape, to which a processor may give fewer tokens: no picture is made so
    small for that.
    """
    height, width = size
    longer = max(size)
    for side in range(longer - 1, 0, -1):
        h, w = ((2 * length * side + longer) // (2 * longer) for length in size)
        if min(h, w) and abs(h * width - w * height) <= SHAPE * w * height:
            yield h, w
