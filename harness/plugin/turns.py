"""A user's turn as lmms-eval's chat tasks build it: texts and images in order."""

from __future__ import annotations

from typing import Any

from PIL import Image

from harness.core.errors import PrunebenchError, naming
from harness.core.picture import check_size


def turn(messages: Any, key: str) -> tuple[tuple[str | None, ...], list[Image.Image]]:
    """The parts of a turn in order, None standing for the next image, and the images in RGB.

    Raises PrunebenchError naming the sample for anything but one user turn of texts and at least one decoded image.
    """
    turns = list(messages or [])
    roles = [str(one.get("role")) for one in turns]
    if roles != ["user"] or not isinstance(turns[0].get("content"), list):
        raise PrunebenchError(
            f"{key}: expected one turn of a user, found {', '.join(roles) or 'none'}; choose tasks of one turn"
        )
    kinds = [str(part.get("type")) for part in turns[0]["content"]]
    strange = sorted(set(kinds) - {"image", "text"})
    if strange or "image" not in kinds:
        found = strange or kinds
        raise PrunebenchError(
            f"{key}: expected texts and at least one image, found {', '.join(found) or 'nothing'}; choose tasks that"
            " ask about images"
        )
    content: list[str | None] = []
    images: list[Image.Image] = []
    for part in turns[0]["content"]:
        if part["type"] == "text":
            content.append(str(part["text"]))
            continue
        image = part["url"]
        if not isinstance(image, Image.Image):
            raise PrunebenchError(f"{key}: expected a decoded image in the prompt, found {type(image).__name__}")
        with naming(key):
            check_size(*image.size)
        content.append(None)
        images.append(image.convert("RGB"))
    return tuple(content), images
