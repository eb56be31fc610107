"""Token ids of prompts: where their last image ends, and which prefixes have one length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence


def prefix_length(ids: Sequence[int], image_token: int) -> int:
    """Tokens of a prompt up to its last image token."""
    return len(ids) - list(reversed(ids)).index(image_token)


def last_row(ids: Sequence[int], image_token: int) -> int:
    """Image tokens in a row at the end of a prompt's last image: all of its tokens, or those of its last part."""
    end = prefix_length(ids, image_token)
    start = end
    while start and ids[start - 1] == image_token:
        start -= 1
    return end - start


def alike(images: Sequence[str], lengths: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Parts of at most `most` images whose prefixes have one length."""
    for length in dict.fromkeys(lengths[image] for image in images):
        same = [image for image in images if lengths[image] == length]
        for start in range(0, len(same), most):
            yield same[start : start + most]
