"""Whether a method can run on a family at all: said in one line where it is built, from the sizes of a prompt alone."""

from __future__ import annotations

from harness.core.errors import PrunebenchError
from harness.core.shape import PromptShape, VisionShape
from harness.method.interface import Method, TowerLook, What

#: looks with one row an image
PER_IMAGE: tuple[What, ...] = ("cls_hidden", "cls_query", "cls_key")


class UnfitError(PrunebenchError):
    """A method that images or towers of a family do not serve; `short` says why in a few words, for a table."""

    def __init__(self, message: str, short: str) -> None:
        super().__init__(message)
        self.short = short

    def __reduce__(self) -> tuple[type[UnfitError], tuple[str, str]]:
        return UnfitError, (str(self), self.short)


def unseen(what: str, vision: VisionShape) -> str | None:
    """Why a tower of these sizes cannot show this; None where it can."""
    if vision.prefix == 0 and what in ("cls_row", *PER_IMAGE):
        return "expected a vision tower with a [CLS] token, found one without"
    if vision.merge > 1 and what in ("keys", "hidden"):
        return f"expected a vision tower of one patch a visual token, found one that joins {vision.merge} patches"
    if vision.merge > 1 and what == "mean_hidden" and not vision.one_row:
        return "expected a tower that runs the patches of all images in one row, found another that joins patches"
    if what == "twice_rotated_sums" and not vision.one_row:
        return "expected a vision tower with RoPE, found one of learned positions"
    return None


def check_fits(method: Method, prompt: PromptShape) -> None:
    """Raise PrunebenchError where a method, as `for_model` made it, needs what the towers of prompts like this one do
    not have."""
    vision = prompt.images[0].vision
    for look in method.looks(prompt.decoder):
        why = unseen(look.what, vision) if isinstance(look, TowerLook) else None  # another thing is refused by name
        if why is not None:
            joined = vision.prefix or look.what in ("keys", "hidden", "mean_hidden")
            short = "no RoPE" if look.what == "twice_rotated_sums" else "joined" if joined else "no [CLS]"
            raise UnfitError(f"{method.name} looks at {look.what} of the vision tower: {why} in this model", short)
        if isinstance(look, TowerLook) and look.tiles and vision.resampled:
            raise UnfitError(
                f"{method.name} prunes tile by tile on single patches, found a model that shrinks the raster of its"
                " tiles, where its official code is not ported: choose another method",
                "tiles are shrunk",
            )
    if method.needs_grid and not all(image.whole for image in prompt.images):
        views = prompt.images[0].views
        newlines = " and newlines" if any(view.newline for view in views) else ""
        raise UnfitError(
            f"{method.name} is laid out on one grid of patches an image, found {len(views)} grids{newlines} in this"
            " model, where its official code is not ported: choose another method",
            "one grid",
        )
    if vision.merge > 1 and changes_pixels(method) and not shrinks_pictures(method):
        raise UnfitError(
            f"{method.name} changes pixels (images, 3, h, w), found a model whose images come cut into patches",
            "pixels are patches",
        )


def changes_pixels(method: Method | type[Method]) -> bool:
    """Has the method a hook that changes pixels before the vision tower?"""
    return _has(method, "on_pixels")


def shrinks_pictures(method: Method | type[Method]) -> bool:
    """Has the method a hook that shrinks pictures before the processor, where images differ in tokens?"""
    return _has(method, "picture")


def _has(method: Method | type[Method], name: str) -> bool:
    """Has a method, a class, or what stands in for a method, this hook of its own?"""
    hook = getattr(method, name, None)
    return hook is not None and getattr(hook, "__func__", hook) is not getattr(Method, name)


def check_pictures(method: Method, one_size: bool) -> None:
    """Raise PrunebenchError where a method shrinks pictures, and is to run on what a processor has made of them."""
    if shrinks_pictures(method) and not one_size:
        raise PrunebenchError(
            f"{method.name} shrinks a picture before the processor where images differ in tokens, found pixels that the"
            " processor has made: measure it with `prunebench eval`, or give the processor a smaller picture and leave"
            " the method out"
        )
