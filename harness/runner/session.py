"""What several settings share in one process: loaded models, tasks, vision features and prefixes. Answers do not depend
on it."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import torch

from harness.engine.prefix import PrefixCache
from harness.models.load import LoadedModel, Located, locate_model
from harness.runner.clock import Clock
from harness.runner.features import FeatureCache
from harness.runner.pace import cache_room

if TYPE_CHECKING:
    from tasks.lmms import LoadedTask
    from tasks.sources import DataSource

#: questions are drawn with this seed whatever SEED says, so that all seeds of a method answer the same questions
SUBSET_SEED = 0


class Session:
    """Models and tasks are loaded when they are first needed; `clock` is charged with the time."""

    def __init__(self) -> None:
        self._located: dict[tuple[str | None, ...], Located] = {}
        self._models: dict[tuple[str | None, ...], LoadedModel] = {}
        self._tasks: dict[tuple[str, str, int | None, bool], LoadedTask] = {}
        self.features = FeatureCache()
        self._prefixes: PrefixCache | None = None
        self.clock = Clock()

    def locate(self, model: str, device: str, dtype: str, **words: str | None) -> Located:
        """Without its weights; `words` as `locate_model` takes them. Raises PrunebenchError as `locate_model`."""
        key = (model, device, dtype, *(words.get(name) for name in ("prompt", "image", "stands_for")))
        if key not in self._located:
            self._located[key] = locate_model(model, device, dtype, **words)
        return self._located[key]

    def model(self, located: Located) -> LoadedModel:
        """With its weights. Raises PrunebenchError as `Located.load`."""
        config = located.config
        key = (str(located.folder), str(located.device), located.dtype, config.name, config.prompt, config.image)
        if key not in self._models:
            with self.clock("load model"):
                self._models[key] = located.load()
        return self._models[key]

    def prefixes(self, device: torch.device) -> PrefixCache:
        """Prefills of images on a device. They and the features live in what it can spare when they are first asked
        for, with the model loaded."""
        if self._prefixes is None:
            room = cache_room(device)
            self._prefixes, self.features.limit = PrefixCache(room.prefixes), room.features
        return self._prefixes

    def release(self) -> None:
        """Forget models, features and prefixes, so that the next model finds the device as it was."""
        self._models.clear()
        self.features, self._prefixes = FeatureCache(), None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def task(self, name: str, source: DataSource, limit: int | None, follow_up: bool = False) -> LoadedTask:
        """Its questions, with a seeded subset where there is a limit; `follow_up`: the later ones about each image.
        Raises PrunebenchError where the data are missing or broken."""
        from tasks import follow_ups, lmms  # heavy: lmms-eval

        key = (name, str(source), limit, follow_up)
        if key not in self._tasks:
            if follow_up:
                self._tasks[key] = follow_ups.follow_ups(self.task(name, source, limit))
            else:
                with self.clock("load data"):
                    self._tasks[key] = lmms.load_task(name, source, limit, SUBSET_SEED)
        return self._tasks[key]
