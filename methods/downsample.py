"""Image down-sampling: throw pixels away instead of tokens, the control that beats many pruning methods in VTC-Bench.

Paper: https://arxiv.org/abs/2510.07143 (VTC-Bench), which shrinks the input of models with native resolution by a whole factor
(PIL BICUBIC). LLaVA-1.5 has one resolution, so the image is shrunk until it holds as much as `keep` patches and enlarged to its
input size again: the detail is gone, the tokens are all there, and the cost honestly shows all of them.
Differs: works on the normalised pixels, by antialiased bicubic interpolation in float32 without rounding to 8 bits or clamping;
any `keep`, not whole factors only (the shrunk side is rounded to whole pixels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt

from torch import Tensor
from torch.nn.functional import interpolate

from harness.errors import PrunebenchError
from harness.method import Method, Traits, register
from harness.shape import ModelShape


@register
@dataclass(frozen=True)
class Downsample(Method):
    """Shows the model an image with the detail of `keep` patches; `side`, the pixels it is shrunk to, follows from `keep`."""

    name = "downsample"
    paper = "https://arxiv.org/abs/2510.07143"
    traits = Traits(query_aware=False)

    keep: int
    side: int | None = None

    def for_model(self, shape: ModelShape) -> Downsample:
        if self.keep < 1:
            raise PrunebenchError(f"downsample: expected keep >= 1, found {self.keep}")
        patch = isqrt(shape.vision.patch_inputs // 3)
        side = min(round(patch * self.keep**0.5), patch * isqrt(shape.n_visual))
        if self.side not in (None, side):
            raise PrunebenchError(f"downsample: keep={self.keep} makes side={side}, found side={self.side}: leave side out")
        return replace(self, side=side)

    def plan(self, shape: ModelShape, n_text: int) -> list[int]:
        return [shape.n_visual] * shape.depth

    def plan_scoring(self, shape: ModelShape, n_text: int, visual: Sequence[int]) -> int:
        return 0

    def on_pixels(self, pixels: Tensor) -> Tensor | None:
        assert self.side is not None
        height, width = pixels.shape[-2:]
        if self.side >= min(height, width):
            return None
        small = interpolate(pixels.float(), size=(self.side, self.side), mode="bicubic", antialias=True)
        return interpolate(small, size=(height, width), mode="bicubic", antialias=True).to(pixels.dtype)
