"""Whether a method can run on a family at all: said in one line where it is built, from the sizes of a prompt alone."""

from __future__ import annotations

from harness.core.errors import PrunebenchError
from harness.core.shape import PromptShape, VisionShape
from harness.method.interface import Method, TowerLook, What

#: looks with one row an image
PER_IMAGE: tuple[What, ...] = ("cls_hidden", "cls_query", "cls_key")


def unseen(what: str, vision: VisionShape) -> str | None:
    """Why a tower of these sizes cannot show this; None where it can."""
    if vision.prefix == 0 and what in ("cls_row", *PER_IMAGE):
        return "expected a vision tower with a [CLS] token, found one without"
    if vision.merge > 1 and what in ("keys", "hidden"):
        return f"expected a vision tower of one patch a visual token, found one that joins {vision.merge} patches"
    return None


def resizes(method: Method) -> bool:
    """Does a method show images in other sizes, where images differ in tokens?"""
    return type(method).shown_size is not Method.shown_size


def check_fits(method: Method, prompt: PromptShape) -> None:
    """Raise PrunebenchError where a method, as `for_model` made it, needs what the towers of prompts like this one do
    not have."""
    vision = prompt.images[0].vision
    for look in method.looks(prompt.decoder):
        why = unseen(look.what, vision) if isinstance(look, TowerLook) else None  # another thing is refused by name
        if why is not None:
            raise PrunebenchError(f"{method.name} looks at {look.what} of the vision tower: {why} in this model")
    if method.needs_grid and not all(image.whole for image in prompt.images):
        raise PrunebenchError(
            f"{method.name} is laid out on one grid of patches an image, found {len(prompt.images[0].views)} grids and"
            " newlines in this model, where its official code is not ported: choose another method"
        )
    if vision.merge > 1 and type(method).on_pixels is not Method.on_pixels and not resizes(method):
        raise PrunebenchError(
            f"{method.name} changes pixels (images, 3, h, w), found a model whose images come cut into patches"
        )
