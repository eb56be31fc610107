"""Tasks whose questions have one image, two or three, with text between them: POPE's questions, asked so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import families
import pytest

from harness.proof import recomputed
from tasks import choice, lmms
from tasks.sources import DataSource

#: turns, None for the next image: leading images, text between images, text in front of all, one image
TURNS: Sequence[Sequence[str | None]] = (
    (None, None, "{}"),
    ("Image 1:", None, "Image 2:", None, "{}"),
    (None, "{}"),
    ("{}", None, None, None),
)


def content(row: int, question: str) -> tuple[str | None, ...]:
    """The turn of a row; two rows in a row have the same."""
    return tuple(part and part.format(question) for part in TURNS[row // 2 % len(TURNS)])


def with_several(task: lmms.LoadedTask) -> lmms.LoadedTask:
    """The task with its images shared out anew: row i begins with its own. A task that has been so stays."""
    if any(len(sample.images) > 1 for sample in task.samples):
        return task
    own = {sample.images[0].key: sample.images[0] for sample in task.samples}
    images = list(own.values())
    samples = []
    for row, sample in enumerate(task.samples):
        asked = content(row, sample.prompt)
        first = images.index(own[sample.images[0].key])
        taken = tuple(images[(first + n) % len(images)] for n in range(asked.count(None)))
        samples.append(replace(sample, content=asked, images=taken))
    return replace(task, samples=tuple(samples), fingerprint=lmms.sha256(task.fingerprint.encode(), b"several"))


def patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every task be loaded so, and be known for it."""
    load = lmms.load_task
    recomputed._task.cache_clear()  # of the same words, loaded without this
    monkeypatch.setattr(choice, "has_one_image", lambda word: False)
    monkeypatch.setattr(lmms, "load_task", lambda *words: with_several(load(*words)))


def data(folder: Path, n: int = 8) -> DataSource:
    return families.pope(folder, n)
