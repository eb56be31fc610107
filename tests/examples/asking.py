"""One small method for each question that a method may ask and each thing that it may return; the conformance kit holds
all of them.

None is a method to use. Each is the shape of published ones, which are named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from harness.core import flops
from harness.method import Method, Ranking, Reduction, TowerLook, Traits, keep_top
from methods._select import ByImage, image_quotas

PRE_LLM = {"positions": "compact", "decode_positions": "compact"}


@dataclass(frozen=True)
class Coming(Ranking):
    """Ranks by what the last token will attend to in the coming layer, as PyramidDrop does."""

    name = "coming"
    traits = Traits(query_aware=True, keeps_most_attended=True)

    boundary: int | None = 3

    def score(self, run, stream):
        return stream.coming_probs("last").values.mean(1)[:, 0]

    def plan_scoring(self, prompt, visual):
        shape, tokens = prompt.decoder, prompt.n_visual + prompt.n_text
        projections = 2 * shape.hidden * shape.head_dim * (shape.kv_heads * tokens + shape.heads)
        return projections + 2 * shape.heads * shape.head_dim * tokens


@dataclass(frozen=True)
class Pivots(Ranking):
    """Keeps tokens unlike the one with the longest rotated key, seen under the final norm, as DART does."""

    name = "pivots"
    traits = Traits(query_aware=True)
    least = 1

    boundary: int | None = 2

    def on_attention(self, run, layer, attn):
        if layer == self.boundary - 1:
            text = attn.after_keys().abs().sum((1, 3))
            run.memo["length"] = attn.visual_keys().abs().sum((1, 3)) + text.amax(1, keepdim=True)

    def score(self, run, stream):
        states = torch.nn.functional.normalize(stream.normed.visual.float(), dim=-1)
        # of a padded slot the length is that of the text alone: shorter than any token's
        pivot = run.memo["length"].masked_fill(~run.visual_valid, 0).argmax(1)
        one = states.gather(1, pivot[:, None, None].expand(-1, 1, states.shape[2]))
        return -run.matmul(states, one.transpose(1, 2), entries=run.visual_valid.sum(1).tolist())[:, :, 0]

    def plan_scoring(self, prompt, visual):
        return 2 * prompt.decoder.hidden * prompt.n_visual


@dataclass(frozen=True)
class Masses(Ranking):
    """Ranks by attention from all text rows times that from all visual rows, the largest head of each, as FitPrune
    does."""

    name = "masses"
    traits = Traits(query_aware=True)
    least = 1

    boundary: int | None = 2

    def on_attention(self, run, layer, attn):
        if layer == self.boundary - 1:
            text, vision = (attn.visual_probs(rows, heads="max").values[:, 0].sum(1) for rows in ("after", "visual"))
            run.memo["scores"] = text * vision / run.visual_valid.sum(1, keepdim=True)

    def score(self, run, stream):
        return run.memo["scores"]

    def plan_scoring(self, prompt, visual):
        return None  # the text behind the image is not all text


@dataclass(frozen=True)
class Sums(Ranking):
    """Ranks by column sums of two layers of the tower, mean over heads, as HiPrune does."""

    name = "sums"
    traits = Traits(query_aware=False, needs_vision_attention=True, image_only=True)
    boundary: ClassVar[int] = 0
    LOOKS: ClassVar[tuple[TowerLook, ...]] = (TowerLook("column_sums", 0), TowerLook("column_sums", -1))

    def looks(self, shape):
        return self.LOOKS

    def on_image(self, run, tower):
        run.memo["scores"] = sum(tower[look].mean(1) for look in self.LOOKS)

    def score(self, run, stream):
        return run.memo["scores"]

    def plan_scoring(self, prompt, visual):
        return sum(2 * flops.column_sums(image.vision) for image in prompt.images)


@dataclass(frozen=True)
class Ordered(Method):
    """Keeps the patches that [CLS] attends to most, the most attended first, as HoloV and PruMerge hand them over."""

    name = "ordered"
    traits = Traits(query_aware=False, needs_vision_attention=True, reorders=True, image_only=True)
    LOOK: ClassVar[TowerLook] = TowerLook("cls_row", -2)

    keep: int
    compact: bool = True

    def looks(self, shape):
        return (self.LOOK,)

    def on_image(self, run, tower):
        run.memo["scores"] = tower[self.LOOK].mean(1)

    def plan(self, prompt):
        return [prompt.quota(self.keep)] * prompt.depth

    def at_boundary(self, run, layer, stream):
        if layer:
            return None
        scores = run.memo["scores"]
        return Reduction(
            keep_top(scores, run.quota(self.keep), run.visual_valid), order=-scores, **(PRE_LLM if self.compact else {})
        )


@dataclass(frozen=True)
class Fronted(Method):
    """Puts the projected [CLS] of each image in front and the mean of what is dropped behind, as VisionZip does."""

    name = "fronted"
    traits = Traits(query_aware=False, needs_vision_attention=True, merges=True, image_only=True)
    LOOKS: ClassVar[dict[str, TowerLook]] = {
        what: TowerLook(what, -2) for what in ("cls_hidden", "cls_query", "cls_key", "keys", "hidden")
    }

    keep: int
    positions: str = "compact"

    def looks(self, shape):
        return tuple(self.LOOKS.values())

    def on_image(self, run, tower):
        run.memo.update({what: tower[look] for what, look in self.LOOKS.items()})

    def plan(self, prompt):
        kept = max(prompt.quota(self.keep) - len(prompt.images) - 1, 0)
        return [kept + len(prompt.images) + 1] * prompt.depth

    def at_boundary(self, run, layer, stream):
        if layer:
            return None
        memo, valid = run.memo, run.visual_valid
        images = torch.tensor([len(prompt.images) for prompt in run.prompts], device=valid.device)
        # without a split into heads, as PruMerge has it
        scores = (memo["keys"] * memo["cls_query"][:, :1]).sum(2)
        keep = keep_top(scores, (run.quota(self.keep) - images - 1).clamp(min=0), valid)
        gone = (valid & ~keep)[:, :, None]
        merged = (memo["hidden"] * gone).sum(1, keepdim=True) / gone.sum(1, keepdim=True).clamp(min=1)
        front_valid = torch.arange(int(images.max()), device=valid.device)[None] < images[:, None]
        front = run.project(memo["cls_hidden"], front_valid)
        added = run.project(merged, torch.ones_like(front_valid[:, :1]))
        policy = PRE_LLM if self.positions == "compact" else {}
        return Reduction(keep, added=added, front=front, front_valid=front_valid, **policy)


@dataclass(frozen=True)
class Remade(Method):
    """Gives kept patches the mean of their image's features too, the most attended first, as PruMerge does.

    Behind each image stands the mean of its dropped patches, before it its projected [CLS].
    """

    name = "remade"
    traits = Traits(
        query_aware=False, needs_vision_attention=True, merges=True, reorders=True, image_only=True, per_image=True
    )
    LOOKS: ClassVar[dict[str, TowerLook]] = {what: TowerLook(what, -2) for what in ("cls_row", "cls_hidden", "hidden")}

    keep: int
    compact: bool = True

    def looks(self, shape):
        return tuple(self.LOOKS.values())

    def on_image(self, run, tower):
        run.memo.update({what: tower[look] for what, look in self.LOOKS.items()})

    def plan(self, prompt):
        return [sum(max(n, 2) for n in image_quotas(prompt, self.keep))] * prompt.depth

    def at_boundary(self, run, layer, stream):
        if layer:
            return None
        images, valid = ByImage(run), run.visual_valid
        own = [n for prompt in run.prompts for n in image_quotas(prompt, self.keep)]
        scores, features = images.split(run.memo["cls_row"].mean(1)), images.split(run.memo["hidden"])
        keep = keep_top(scores, torch.tensor([max(n - 2, 0) for n in own], device=valid.device), images.valid)
        gone = (images.valid & ~keep)[:, :, None]
        mean = (features * gone).sum(1, keepdim=True) / gone.sum(1, keepdim=True).clamp(min=1)
        added, real, image = images.gathered(mean, torch.ones_like(gone[:, :1, 0]))
        cls_valid = torch.arange(real.shape[1], device=valid.device)[None] < real.sum(1, keepdim=True)
        values = run.project(images.join(features + mean), valid)
        # one image behind the other
        order = images.join(torch.tensor(images.image, device=valid.device)[:, None] * 2 - scores)
        return Reduction(
            images.join(keep),
            added=run.project(added, real),
            added_valid=real,
            added_image=image,
            front=run.project(run.memo["cls_hidden"], cls_valid),
            front_valid=cls_valid,
            front_image=torch.arange(real.shape[1], device=valid.device)[None].expand_as(real),
            values=values,
            order=order,
            **(PRE_LLM if self.compact else {}),
        )


@dataclass(frozen=True)
class Asking(Ranking):
    """Ranks patches by the question's embedding, as CDPruner's relevance does."""

    name = "asking"
    traits = Traits(query_aware=True)
    boundary: ClassVar[int] = 0

    def score(self, run, stream):
        question = run.question()
        mean = (question.embeddings * question.valid[:, :, None]).sum(1) / question.valid.sum(1, keepdim=True)
        return (stream.visual.float()[:, :, : mean.shape[1]] * mean[:, None]).sum(2)

    def plan_scoring(self, prompt, visual):
        return None  # the question's length in words decides


@dataclass(frozen=True)
class Rings(Ranking):
    """Ranks by place: a slope over rows and columns, images and views."""

    name = "rings"
    traits = Traits(query_aware=False, image_only=True)

    def score(self, run, stream):
        place = run.places
        return (1.0 * place.row - 3.7 * place.col + 11.3 * place.image + 5.1 * place.view).masked_fill(
            place.row < 0, -1e3
        )
