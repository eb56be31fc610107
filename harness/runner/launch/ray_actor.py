"""What runs on a node of a Ray cluster: a process with a model that answers chunks of images.

Nothing heavy is imported before a worker knows its surroundings.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.errors import PrunebenchError
from harness.core.spelling import CALLER

if TYPE_CHECKING:
    from harness.runner.execute import Work
    from harness.runner.session import Session

#: ("answers", identity of the cell, records) or ("failed", "", reason)
Said = tuple[str, str, Any]


class RayWorker:
    """`caller` and `folder`: how messages spell options and where relative paths begin, as on the driver. `threads`: of
    the CPU."""

    def __init__(self, device: str, threads: int, caller: str | None, folder: str) -> None:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        if caller is not None:
            os.environ[CALLER] = caller
        if Path(folder).is_dir():  # elsewhere a relative path is refused by what reads it
            os.chdir(folder)
        self._device, self._threads = device, threads

    def prepare(self, order: tuple[Mapping[str, str], bytes]) -> str:
        """Get ready for the driver's work, with the model loaded; "", or what differs from the driver.

        `order`: `environment` of the driver, and pickled: work, cells by identity, and pace.
        """
        surroundings, packed = order
        import torch

        from harness.models.device import pick_device
        from harness.runner.environment import environment
        from harness.runner.session import Session

        torch.set_num_threads(self._threads)
        try:
            found = different(surroundings, environment(pick_device(self._device)))
            if found:
                return found
            self._session = Session()
            work, cells, self._pace = pickle.loads(packed)
            self._work, found = self._here(work, cells, self._session)
            if not found:
                self._session.model(next(iter(self._work.values())).setting.located)
            return found
        except PrunebenchError as error:
            return str(error)

    def _here(
        self, work: list[Work], cells: Mapping[str, Mapping[str, Any]], session: Session
    ) -> tuple[dict[str, Work], str]:
        """The work with the model as this node has it, and what differs from the driver's cells."""
        from harness.runner.jobs import prepare

        asked, dtype = work[0].setting.asked, work[0].setting.located.dtype
        located = session.locate(
            asked.model, self._device, dtype, prompt=asked.prompt, image=asked.image, stands_for=asked.stands_for
        )
        mine = [one._replace(setting=replace(one.setting, located=located)) for one in work]
        for one, job in zip(mine, prepare([one.setting for one in mine], session), strict=True):
            found = different(cells[one.identity], asdict(job.cell))
            if found:
                return {}, f"{one.setting.label}: {found}"
        return {one.identity: one for one in mine}, ""

    def answers(self, asked: Mapping[str, frozenset[str]]) -> Iterator[Said]:
        """Answer keys by identity; what fails is said last."""
        from harness.runner.execute import InProcess

        work = [self._work[identity]._replace(left=keys) for identity, keys in asked.items()]
        try:
            for identity, records in InProcess(self._session).answers(work, self._pace):
                yield "answers", identity, records
        except PrunebenchError as error:
            yield "failed", "", str(error)

    def seen(self) -> None:
        """Can this worker be reached?"""


def different(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """What differs, in words; "" where nothing does."""
    names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    return "; ".join(f"{name}: expected {expected.get(name)}, found {found.get(name)}" for name in names)
