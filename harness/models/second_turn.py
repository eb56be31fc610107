"""The tokens that a model's prompt has between a first answer and a second one: the answer's end and the next question.

They run on the cache of the first prompt and its answer, so they must not depend on either.
"""

from __future__ import annotations

from harness.core.errors import PrunebenchError
from harness.core.spelling import given
from harness.models.prompt import Content, Prompter

#: answers that a prompt is tried with
TRIED = ("Yes", "a red car, 12")


def turn_ids(prompter: Prompter, content: Content, question: str) -> list[int]:
    """Token ids behind the answer to the question in `content`, up to where the answer to the next `question` begins.

    Raises PrunebenchError where the prompt of two questions does not begin with that of the first and its answer, or
    ends in other tokens behind another answer.
    """
    found = [_behind(prompter, content, answer, question) for answer in TRIED]
    if not found[0] or found[0] != found[1]:
        _, text = prompter.prompt_and_next(content, TRIED[0], question)
        raise PrunebenchError(
            f"model {prompter.config.name}: expected a chat template that leaves a first question and its answer as"
            f" they are when a second question follows; it renders {text[-200:]!r}: leave {given('follow_up')} out, or"
            f" give {given('prompt', 'vicuna_v1')} to a model that was trained with it"
        )
    return found[0]


def _behind(prompter: Prompter, content: Content, answer: str, question: str) -> list[int]:
    """`turn_ids` behind this answer; empty where the dialogue does not begin with the prompt and the answer."""
    asked, whole = prompter.prompt_and_next(content, answer, question)
    space, found, _ = whole.removeprefix(asked).partition(answer)
    if not whole.startswith(asked) or space.strip() or not found:
        return []
    prompt, said, ids = map(prompter.text_ids, (asked, asked + space + answer, whole))
    return ids[len(said) :] if said[: len(prompt)] == prompt and ids[: len(said)] == said else []
