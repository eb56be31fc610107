"""The model class `prunebench` that lmms-eval's own command line runs."""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import ImageFile

from harness.core.command import natural
from harness.core.errors import PrunebenchError
from harness.runner.launch.launchers import check_alone
from tasks.lmms import one_image, sha256

# isort: split
# behind tasks.lmms, which looks whether lmms-eval was imported before it
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms

if TYPE_CHECKING:
    from harness.runner.answering import Answer, Answerer, Prompt

#: tokens for a task that names no limit; llava_hf's 1024 makes TextVQA hours of rambling
MAX_NEW_TOKENS = 16
#: lmms-eval's stop strings for a task whose YAML names none; an answer that begins with a blank line would be empty
UPSTREAM_STOP = ["\n\n"]


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
        max_new_tokens: int = MAX_NEW_TOKENS,
        max_batch_size: int | None = None,
        prompt: str | None = None,
        image: str | None = None,
        stands_for: str | None = None,
        **knobs: Any,
    ) -> None:
        super().__init__()
        with _fatal():
            check_alone("give each GPU its own runs")
            from harness.core import budget as budgets
            from harness.plugin.cache import identity_of, key_by
            from harness.runner.answering import Answerer

            self._max_new_tokens = _whole("max_new_tokens", max_new_tokens)
            self._answerer: Answerer = Answerer.open(
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
            key_by(identity_of(self._answerer))

    def generate_until(self, requests: list[Any]) -> list[GenerationResult]:
        """Answers in the order of the requests. Tasks, splits and generation settings are never mixed in one call
        below."""
        with _fatal():
            return self._generate(requests)

    def _generate(self, requests: list[Any]) -> list[GenerationResult]:
        groups: dict[tuple[str, str, str], dict[str, Prompt]] = {}
        places = []
        for request in requests:
            _, doc_to_messages, settings, doc_id, task, split = request.args
            group = (task, split, json.dumps(settings, sort_keys=True, default=str))
            key = f"{task}/{doc_id:06d}"
            places.append((group, key))
            prompts = groups.setdefault(group, {})
            if key not in prompts:  # `repeats` sends the same request several times
                prompts[key] = self._prompt(
                    key, partial(self._messages, doc_to_messages, task, split, doc_id, key), settings
                )
        answers = {group: self._answer(list(prompts.values())) for group, prompts in groups.items()}
        return [self._result(answers[group][key]) for group, key in places]

    def _messages(self, doc_to_messages: Callable[[Any], Any], task: str, split: str, doc_id: int, key: str) -> Any:
        ImageFile.LOAD_TRUNCATED_IMAGES = False  # lmms_eval.api.task sets it
        try:
            return doc_to_messages(self.task_dict[task][split][doc_id])
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise PrunebenchError(f"{key}: the prompt cannot be built ({reason}); check the data file") from None

    def _prompt(self, key: str, messages: Callable[[], Any], settings: Mapping[str, Any]) -> Prompt:
        from harness.runner.answering import Prompt

        # temperature, top_p and the like say nothing when nothing is sampled
        if settings.get("do_sample") or (settings.get("num_beams") or 1) != 1:
            raise PrunebenchError(
                f"{key}: expected greedy decoding, found {dict(settings)}; drop do_sample and num_beams"
            )
        text, image = one_image(messages(), key)
        until = settings.get("until") or ()
        if list(until) == UPSTREAM_STOP:
            until = ()
        return Prompt.of_one(
            key=key,
            text=text,
            image=lambda: one_image(messages(), key)[1].convert(
                "RGB"
            ),  # decoded again: 10,000 images do not fit in memory
            image_key=sha256(image.mode.encode(), str(image.size).encode(), image.tobytes())[:16],
            max_new_tokens=_whole("max_new_tokens", settings.get("max_new_tokens", self._max_new_tokens)),
            until=(until,) if isinstance(until, str) else tuple(until),
            size=(image.height, image.width),
        )

    def _answer(self, prompts: Sequence[Prompt]) -> dict[str, Answer]:
        answers: dict[str, Answer] = {}
        keys = {p.key for p in prompts}
        for answer in self._answerer.answer(prompts):
            if answer.key not in keys or answer.key in answers:
                raise RuntimeError(f"{answer.key}: answered twice or never asked")
            answers[answer.key] = answer
        lost = [p.key for p in prompts if p.key not in answers]
        if lost:
            raise RuntimeError(f"{len(lost)} of {len(prompts)} samples were not answered, the first {lost[0]}")
        return answers

    @staticmethod
    def _result(answer: Answer) -> GenerationResult:
        return GenerationResult(
            answer.text, TokenCounts(input_tokens=answer.n_input_tokens, output_tokens=answer.n_new_tokens)
        )

    def loglikelihood(self, requests: list[Any]) -> Any:
        raise Abort("prunebench: tasks scored by log-likelihood are not supported; choose tasks that generate text")

    def generate_until_multi_round(self, requests: list[Any]) -> Any:
        raise Abort("prunebench: multi-round tasks are not supported; choose tasks of one turn")

    def clean(self) -> None:
        """Nothing: upstream's deletes the model after the first evaluation."""
