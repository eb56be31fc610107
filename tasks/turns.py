"""A user's turn as lmms-eval's tasks build it: texts and images in order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from harness.core.errors import PrunebenchError, naming
from harness.core.picture import check_size
from tasks.pictures import check_image


def user_turn(messages: Any, key: str) -> tuple[tuple[str | None, ...], list[Image.Image]]:
    """The parts of the one turn of a prompt in order, None standing for the next image, and the images.

    Raises PrunebenchError naming the sample `key` for anything but one user turn of texts and at least one image.
    """
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) and "content" in m for m in messages):
        raise PrunebenchError(f"{key}: expected the prompt as a list of turns, found {type(messages).__name__}")
    if [m.get("role") for m in messages] != ["user"]:
        roles = ", ".join(str(m.get("role")) for m in messages) or "none"
        raise PrunebenchError(
            f"{key}: expected one turn of the user, found {len(messages)} ({roles}); choose tasks of one turn"
        )
    parts = messages[0]["content"]
    parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
    content: list[str | None] = []
    pictures = []
    for part in parts:
        kind = part.get("type")
        if kind == "text":
            content.append(str(part["text"]))
        elif kind == "image":
            content.append(None)
            pictures.append(_picture(part.get("url", part.get("image")), key))
        else:
            raise PrunebenchError(
                f"{key}: expected a prompt of images and text, found {kind} in it; choose tasks that ask about images"
            )
    if not pictures:
        raise PrunebenchError(
            f"{key}: expected a prompt with an image, found text alone; choose tasks that ask about images"
        )
    return tuple(content), pictures


def _picture(value: Any, key: str) -> Image.Image:
    """A decoded image, or the one in a file."""
    if isinstance(value, Image.Image):
        with naming(key):
            check_size(*value.size)
        return value
    if isinstance(value, str | Path) and Path(value).is_file():
        data = Path(value).read_bytes()
        check_image(data, key)
        image: Image.Image = datasets.Image().decode_example({"bytes": data, "path": None})
        return image
    raise PrunebenchError(f"{key}: expected an image in the prompt, found {str(value)[:60]!r}")
