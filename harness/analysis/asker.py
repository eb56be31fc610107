"""Ask a model under knock-outs and probes; the journal keeps every answer."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.analysis.stages import TEXT, VISION, Cut
from harness.core.errors import PrunebenchError
from harness.method import Method
from harness.models.load import LoadedModel
from harness.runner.answering import Answer
from harness.runner.execute import Arm, InProcess, prompts_of
from harness.runner.pace import Pace
from harness.runner.session import Session
from methods.knockout import Knockout

#: tokens of an answer that are compared; the tasks want a word, and a model whose vision is cut may ramble
MAX_NEW_TOKENS = 16


# --------------------------------------------------------------------------------------------------- asking and scoring


class Asker:
    """The analysed samples and their model: answers of any method, scored by lmms-eval; answers of finished conditions
    come from the journal."""

    def __init__(self, loaded: LoadedModel, tasks: Sequence[Any], batch: int, journal: Path, identity: str) -> None:
        self.loaded = loaded
        # all images at once: the same ones are asked about again and again, and their prefixes stay where there is room
        self._pace = Pace(batch, chunk=None)
        self._about(tasks)
        self._pass = InProcess(Session())
        self._journal = journal
        self._done, self._numbers = _read_journal(journal, identity)
        #: answers of an earlier run that are not asked for again
        self.resumed = sum(map(len, self._done.values()))

    def _about(self, tasks: Sequence[Any], mark: str = "") -> None:
        self.tasks, self._mark = tasks, mark
        one_size = self.loaded.one_size
        self.prompts = [p for t in tasks for p in prompts_of(t, MAX_NEW_TOKENS, {} if one_size else t.sizes)]
        self.keys = [p.key for p in self.prompts]
        self.images = [p.image_key for p in self.prompts]
        self._scores: dict[tuple[str, str], float] = {}

    def about(self, tasks: Sequence[Any], mark: str) -> Asker:
        """The same model and journal with other samples, whose conditions carry `mark` there."""
        other = copy.copy(self)
        other._about(tasks, mark)
        return other

    def ask(self, method: Method, seen: Callable[[], object] = lambda: None) -> dict[str, Answer]:
        """Answers by key."""
        answers = {}
        arm = Arm(method, 0, "method", method.name, self.prompts)
        with closing(self._pass.ask(self.loaded, [arm], self._pace)) as batches:
            for answer in (answer for _, batch in batches for answer in batch):
                answers[answer.key] = answer
                seen()
        return answers

    def texts(self, name: str, method: Method, seen: Callable[[], object] = lambda: None) -> dict[str, str]:
        """As `ask`, the texts alone, from the journal where it has them under `name`."""
        if not self.done(name):
            self.record(name, {k: a.text for k, a in self.ask(method, seen).items()})
        return self._done[self._mark + name]

    def record(self, name: str, texts: Mapping[str, str], numbers: Mapping[str, float] | None = None) -> None:
        """Write one condition's answers, and what else was measured with them, to the journal."""
        name = self._mark + name
        self._done[name], self._numbers[name] = dict(texts), dict(numbers or {})
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(_line(name, self._done[name], self._numbers[name]))

    def done(self, name: str) -> bool:
        return self._mark + name in self._done

    def numbers(self, name: str) -> dict[str, float] | None:
        """What was recorded with a condition's answers; None where it has not run."""
        return self._numbers.get(self._mark + name)

    def finished(self) -> dict[str, dict[str, str]]:
        """Answers by condition and key."""
        return self._done

    def scores(self, texts: Mapping[str, str]) -> NDArray[np.float64]:
        """Each sample's score in [0, 1], in the order of `keys`; an answer that was scored before is not scored
        again."""
        from tasks import lmms

        for task in self.tasks:
            mine = {s.key: texts[s.key] for s in task.samples}
            if any(pair not in self._scores for pair in mine.items()):
                for key, value in lmms.score(task, mine).scores.items():
                    if value is None:
                        raise PrunebenchError(
                            f"task {task.name}: its metric {task.headline} gives a question no score, and an analysis"
                            " averages over them: name a metric that is a mean, or another task"
                        )
                    self._scores[key, mine[key]] = value
        return np.array([self._scores[key, texts[key]] for key in self.keys])

    def by_task(self, scores: NDArray[np.float64]) -> dict[str, float]:
        """Mean of each task's `scores`, which are in the order of `keys`."""
        ends = np.cumsum([len(task.samples) for task in self.tasks])[:-1]
        return {task.name: float(part.mean()) for task, part in zip(self.tasks, np.split(scores, ends), strict=True)}


def _line(name: str, answers: Mapping[str, str], numbers: Mapping[str, float]) -> str:
    return json.dumps({"condition": name, "answers": answers, "numbers": numbers}) + "\n"


def _read_journal(file: Path, identity: str) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, float]]]:
    """Answers and numbers of the finished conditions of the same analysis; a journal of another one is begun anew."""
    done: dict[str, dict[str, str]] = {}
    numbers: dict[str, dict[str, float]] = {}
    head = json.dumps({"analysis": identity}) + "\n"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    if lines and lines[0] == head:
        # a line that an interruption cut short has no end of line
        for entry in (json.loads(line) for line in lines[1:] if line.endswith("\n")):
            done[entry["condition"]], numbers[entry["condition"]] = entry["answers"], entry["numbers"]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(head + "".join(_line(name, done[name], numbers[name]) for name in done), encoding="utf-8")
    return done, numbers


def knockout(cut: Cut, depth: int) -> Method:
    """The method of a cut. Text cut up to the last layer leaves visual tokens nothing to act on, so there they leave
    the model, which is cheaper."""
    if cut.kind == TEXT and cut.end == depth:
        return Knockout(drop_from=cut.start)
    return Knockout(start=cut.start, stop=cut.end, text_to_vision=cut.kind == TEXT, vision_to_vision=cut.kind == VISION)
