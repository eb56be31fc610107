"""The model class `prunebench` that lmms-eval's own command line runs."""

from __future__ import annotations

import contextlib
import json
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image, ImageFile

from harness.core.command import natural
from harness.core.errors import PrunebenchError
from harness.plugin import log, names
from harness.store.journal import Record
from tasks.named import MAX_NEW_TOKENS
from tasks.pictures import cluster_key
from tasks.turns import user_turn

# isort: split
# behind tasks.lmms, which looks whether lmms-eval was imported before it
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms

if TYPE_CHECKING:
    import torch

    from harness.plugin.opened import Opened
    from harness.runner.answering import Answer, Prompt

#: tokens for TextVQA, which names no limit: `MAX_NEW_TOKENS` would be hours of rambling
SHORT = 16
#: lmms-eval's stop strings for a task whose YAML names none; an answer that begins with a blank line would be empty
UPSTREAM_STOP = ["\n\n"]
#: a task's own code builds prompts, also in the threads that read images ahead
_ONE_AT_A_TIME = threading.RLock()


class Abort(SystemExit):
    """A failure that must end the process: lmms-eval's `except Exception` turns anything less into exit code 0."""


@contextlib.contextmanager
def _fatal() -> Iterator[None]:
    """Turn any failure inside into Abort; one that the user cannot mend shows its traceback first."""
    try:
        yield
    except PrunebenchError as error:
        raise Abort(f"prunebench: {error}") from error
    except Exception as error:
        traceback.print_exc()
        raise Abort(f"prunebench: {type(error).__name__}: {error}") from error


class LoggedPrompt(NamedTuple):
    """A prompt, with what the log says of it: its task and document, the digest of the turn, and the grids of its
    images' tokens."""

    prompt: Prompt
    task: str
    doc_id: int
    digest: str
    grids: list[str]


@dataclass
class LoggedCounts(TokenCounts):  # type: ignore[misc]
    """Token counts that spell out the whole entry of the log."""

    entry: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), **self.entry}


def _turn(messages: Callable[[], Any], key: str) -> tuple[tuple[str | None, ...], list[Image.Image]]:
    """A prompt's turn as `user_turn` reads it, with the images in RGB."""
    content, pictures = user_turn(messages(), key)
    return content, [picture.convert("RGB") for picture in pictures]


def _whole(name: str, value: Any) -> int:
    number = natural(value)
    if number is None:
        raise PrunebenchError(f"{name}: expected a whole number of at least 1, found {value!r}")
    return number


class PrunebenchLmms(lmms):  # type: ignore[misc]
    """`--model prunebench`: a pruned model for lmms-eval's command line.

    model_args: pretrained (mini, llava-1.5-7b, a hub id or a folder), method, budget (64, 64avg, 0.35flops, native),
    dtype, seed, positions, prompt, image, stands_for, max_new_tokens (for tasks that name none); whatever else is given
    is a knob of the method.
    Every failure leaves the process with a non-zero exit code; no sample is ever answered with an empty string instead.
    """

    is_simple = False  # requests carry doc_to_messages

    def __init__(
        self,
        pretrained: str = "mini",
        method: str = "none",
        budget: str | int | float | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: str | int = 1,
        seed: int = 0,
        positions: str = "method",
        max_new_tokens: int | None = None,
        max_batch_size: int | None = None,
        prompt: str | None = None,
        image: str | None = None,
        stands_for: str | None = None,
        **knobs: Any,
    ) -> None:
        super().__init__()
        with _fatal():
            from harness.core import budget as budgets
            from harness.plugin.cache import identity_of, key_by
            from harness.plugin.opened import opened

            self._longest = None if max_new_tokens is None else _whole("max_new_tokens", max_new_tokens)
            self._opened: Opened = opened(
                pretrained,
                method=method,
                budget=budgets.parse(None if budget is None else str(budget)),  # lmms-eval has parsed 64 to an int
                knobs=knobs,
                device=device,
                dtype=dtype,
                batch_size=_whole("batch_size", batch_size),
                seed=int(seed),
                positions=positions,
                prompt=prompt,
                image=image,
                stands_for=stands_for,
            )
            self._run = self._opened.run  # says when it began
            key_by(identity_of(self._opened.answerer))

    @property
    def device(self) -> torch.device:
        """lmms-eval makes the tensors here that its ranks exchange."""
        return self._opened.located.device

    def generate_until(self, requests: list[Any]) -> list[GenerationResult]:
        """Answers in the order of the requests. Tasks, splits and generation settings are never mixed in one call
        below."""
        with _fatal():
            return self._generate(requests)

    def _generate(self, requests: list[Any]) -> list[GenerationResult]:
        groups: dict[tuple[str, str, str], dict[str, LoggedPrompt]] = {}
        places = []
        for request in requests:
            _, doc_to_messages, settings, doc_id, task, split = request.args
            group = (task, split, json.dumps(settings, sort_keys=True, default=str))
            key = f"{names.own(task)}/{doc_id:06d}"
            places.append((group, key))
            prompts = groups.setdefault(group, {})
            if key not in prompts:  # `repeats` sends a request several times, and so do ranks that pad their share
                messages = partial(self._messages, doc_to_messages, task, split, doc_id, key)
                prompts[key] = self._asked(key, task, doc_id, messages, settings)
        for asked in groups.values():
            self._opened.check(one.prompt for one in asked.values())
        results: dict[tuple[str, str, str], dict[str, GenerationResult]] = {}
        described: set[str] = set()  # in each call: an instance may be evaluated several times
        for group, asked in groups.items():
            answers = self._answer([one.prompt for one in asked.values()])
            results[group] = {key: self._result(one, answers[key], described) for key, one in asked.items()}
        return [results[group][key] for group, key in places]

    def _messages(self, doc_to_messages: Callable[[Any], Any], task: str, split: str, doc_id: int, key: str) -> Any:
        ImageFile.LOAD_TRUNCATED_IMAGES = False  # lmms_eval.api.task sets it
        try:
            with _ONE_AT_A_TIME:
                return doc_to_messages(self.task_dict[task][split][doc_id])
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise PrunebenchError(f"{key}: the prompt cannot be built ({reason}); check the data file") from None

    def _asked(
        self, key: str, task: str, doc_id: int, messages: Callable[[], Any], settings: Mapping[str, Any]
    ) -> LoggedPrompt:
        from harness.runner.answering import Prompt, PromptImage

        # temperature, top_p and the like say nothing when nothing is sampled
        if settings.get("do_sample") or (settings.get("num_beams") or 1) != 1:
            raise PrunebenchError(
                f"{key}: expected greedy decoding, found {dict(settings)}; drop do_sample and num_beams"
            )
        content, images = _turn(messages, key)
        until = settings.get("until") or ()
        if list(until) == UPSTREAM_STOP:
            until = ()
        shown = [log.pixels(image.mode, image.size, image.tobytes()) for image in images]
        sizes = [(image.height, image.width) for image in images]

        def load(place: int) -> Image.Image:
            # decoded again: 10,000 images do not fit in memory
            return _turn(messages, key)[1][place]

        prompt = Prompt(
            key=key,
            content=content,
            images=tuple(
                PromptImage(name, partial(load, place), size)
                for place, (name, size) in enumerate(zip(shown, sizes, strict=True))
            ),
            image_key=cluster_key(shown),
            max_new_tokens=_whole("max_new_tokens", settings.get("max_new_tokens") or self._unnamed(task)),
            until=(until,) if isinstance(until, str) else tuple(until),
        )
        return LoggedPrompt(prompt, task, doc_id, log.asked(content, shown), self._opened.grids(sizes))

    def _unnamed(self, task: str) -> int:
        """Tokens of an answer for a task that names no limit: as typed, else as `prunebench eval` has them."""
        return self._longest or (SHORT if names.own(task) in names.SHIPPED else MAX_NEW_TOKENS)

    def _answer(self, prompts: Sequence[Prompt]) -> dict[str, Answer]:
        answers: dict[str, Answer] = {}
        keys = {p.key for p in prompts}
        for answer in self._opened.answerer.answer(prompts):
            if answer.key not in keys or answer.key in answers:
                raise RuntimeError(f"{answer.key}: answered twice or never asked")
            answers[answer.key] = answer
        lost = [p.key for p in prompts if p.key not in answers]
        if lost:
            raise RuntimeError(f"{len(lost)} of {len(prompts)} samples were not answered, the first {lost[0]}")
        return answers

    def _result(self, asked: LoggedPrompt, answer: Answer, described: set[str]) -> GenerationResult:
        """The answer with its entry in the log; the first of a task describes the run."""
        task, opened = asked.task, self._opened
        run = None if task in described else self._run
        described.add(task)
        record = Record(answer.key, "", answer.text, answer.n_new_tokens, answer.cost, answer.wall_s, answer.kept)
        entry = log.entry(
            record,
            task=task,
            doc_id=asked.doc_id,
            settings=log.digest(opened.settings),
            asked=asked.digest,
            until=asked.prompt.until,
            max_new_tokens=asked.prompt.max_new_tokens,
            n_input_tokens=answer.n_input_tokens,
            grids=asked.grids,
            run=run,
        )
        return GenerationResult(answer.text, LoggedCounts(answer.n_input_tokens, answer.n_new_tokens, entry=entry))

    def loglikelihood(self, requests: list[Any]) -> Any:
        raise Abort("prunebench: tasks scored by log-likelihood are not supported; choose tasks that generate text")

    def generate_until_multi_round(self, requests: list[Any]) -> Any:
        raise Abort("prunebench: multi-round tasks are not supported; choose tasks of one turn")

    def clean(self) -> None:
        """Nothing: upstream's deletes the model after the first evaluation."""
