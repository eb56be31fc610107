"""Image down-sampling: throw pixels away instead of tokens, the control that beats many pruning methods in VTC-Bench.

Paper: https://arxiv.org/abs/2510.07143 (VTC-Bench), which shrinks the input of models with native resolution by a whole
factor (PIL BICUBIC). LLaVA-1.5 has one resolution, so the image is shrunk until it holds as much as `keep` patches and
enlarged to its input size again: the detail is gone, the tokens are all there, and the cost honestly shows all of them.
Where images differ in tokens (Qwen-VL), the image is shrunk before the processor, and the prompt has fewer tokens: the
largest of 256 scales at which it has at most `keep` of them, PIL BICUBIC as in the paper. FLOPs of the unpruned prompt
are those of the image at its own size.
Differs: works on the normalised pixels, by antialiased bicubic interpolation in float32 without rounding to 8 bits or
clamping; any `keep`, not whole factors only (the shrunk side is rounded to whole pixels).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any, Self

from torch import Tensor
from torch.nn.functional import interpolate

from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.core.shape import Size, quota
from harness.method import Method, PromptShape, Share, Traits, check_keep, register

#: steps in which an image is shrunk
SCALES = 256


@register
@dataclass(frozen=True)
class Downsample(Method):
    """Shows the model an image with the detail of `keep` patches; `side`, the pixels it is shrunk to, follows from
    `keep` and the image."""

    name = "downsample"
    paper = "https://arxiv.org/abs/2510.07143"
    traits = Traits(query_aware=False)

    keep: int | Share
    side: int | None = None

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Self:
        method = super().at_budget(budget, knobs, prompt)
        check_keep("downsample", method.keep)
        views = [view for image in prompt.images for view in image.views]
        if prompt.one_of_many and all(image.whole for image in prompt.images):
            if method.side is not None:
                raise PrunebenchError(
                    f"downsample: side={method.side} is of a model with one image size, found one whose images differ:"
                    " leave side out"
                )
            return method
        if len(views) != 1 or views[0].newline or views[0].rows != views[0].cols:
            raise PrunebenchError(
                f"downsample: expected one square grid of visual tokens, found {len(views)} of other shapes: leave this"
                " method out"
            )
        patch = isqrt(prompt.images[0].vision.patch_inputs // 3)
        side = min(round(patch * prompt.quota(method.keep) ** 0.5), patch * views[0].rows)
        if method.side not in (None, side):
            raise PrunebenchError(
                f"downsample: keep={method.keep} makes side={side}, found side={method.side}: leave side out"
            )
        return replace(method, side=side)

    def plan(self, prompt: PromptShape) -> list[int]:
        return [prompt.quota(self.keep) if prompt.one_of_many else prompt.n_visual] * prompt.depth

    def shown_size(self, size: Size, tokens: Callable[[Size], int]) -> Size:
        n = tokens(size)
        most, fewest = quota(self.keep, n), n
        for scale in range(SCALES, 0, -1):
            shown = (max(1, round(size[0] * scale / SCALES)), max(1, round(size[1] * scale / SCALES)))
            fewest = min(fewest, tokens(shown))
            if tokens(shown) <= most:
                return shown
        raise PrunebenchError(
            f"downsample: expected an image that shrinks to {most} of its {n} visual tokens, found at least {fewest} at"
            " any size: give a larger budget"
        )

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        return 0

    def on_pixels(self, pixels: Tensor) -> Tensor | None:
        if self.side is None and pixels.ndim == 2:  # patches of an image that was shrunk before
            return None
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
