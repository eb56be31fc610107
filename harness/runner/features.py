"""Vision features of images: kept between questions and settings, and made for several images of one shape at a
time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import NamedTuple

import torch
from torch import Tensor

from harness.engine.tower import Seen
from harness.method import TowerLook
from harness.models.adapters import Features

#: images in one pass of the vision tower on a GPU
TOGETHER = 8


class Picture(NamedTuple):
    """An image as the model's processor made it, in host memory. `sample`: the key of the prompt that asks for it."""

    sample: str
    made: Mapping[str, Tensor]


class EncodedImage(NamedTuple):
    """An image's features and what methods asked to see of the tower."""

    features: Features
    seen: Seen

    @property
    def nbytes(self) -> int:
        return self.features.nbytes + sum(t.nbytes for t in self.seen.values())


class FeatureCache:
    """Projected image features by image, least recently used out first; `limit` bytes. `looks`: what is kept of the
    tower beside them."""

    def __init__(self, limit: int = 2 << 30) -> None:
        self.limit, self.used, self.encoded = limit, 0, 0
        self.looks: set[TowerLook] = set()
        self._items: OrderedDict[str, EncodedImage] = OrderedDict()

    def knows(self, key: str, looks: Iterable[TowerLook] = ()) -> bool:
        """Whether image `key` is here with these looks."""
        found = self._items.get(key)
        return found is not None and found.seen.keys() >= set(looks)

    def get(
        self,
        keys: Sequence[str],
        encode: Callable[[list[str]], Iterable[EncodedImage]],
        looks: Iterable[TowerLook] = (),
    ) -> list[EncodedImage]:
        """Images `keys`, in order. Those that are missing, or were encoded before `looks` were asked for, come from one
        call of `encode`."""
        looks = set(looks)
        missing = [key for key in dict.fromkeys(keys) if not self.knows(key, looks)]
        if missing:
            for key, image in zip(missing, encode(missing), strict=True):
                self._drop(key)
                self._items[key] = image
                self.used += image.nbytes
            self.encoded += len(missing)
        for key in keys:
            self._items.move_to_end(key)
        found = [self._items[key] for key in keys]
        while self.used > self.limit and len(self._items) > 1:
            self._drop(next(iter(self._items)))
        return found

    def _drop(self, key: str) -> None:
        old = self._items.pop(key, None)
        self.used -= 0 if old is None else old.nbytes

    def clear(self) -> None:
        """Forget every image."""
        self._items.clear()
        self.used = 0


def together(pictures: Iterable[Picture], device: torch.device) -> Iterator[list[Picture]]:
    """The pictures in order, in parts of one shape for one pass of the tower.

    A CPU gets one at a time: more are no faster there, and may round in another way than the answers that are
    committed.
    """
    most = 1 if device.type == "cpu" else TOGETHER
    for _, alike in groupby(pictures, lambda picture: {name: t.shape for name, t in picture.made.items()}):
        while some := list(islice(alike, most)):
            yield some


def stacked(pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """What the processor would have made of these images, of one shape, together."""
    return {name: torch.cat([picture.made[name] for picture in pictures]) for name in pictures[0].made}
