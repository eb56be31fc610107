"""Answers for many cells in one pass over the samples, so that no work is done twice.

The order is image by image: a chunk of images is decoded and encoded once, their prefill is computed once per kind of
prefix (harness/engine/prefix.py), and then every arm that still lacks answers about them asks its questions, in batches
of like length. Neither the order nor the sharing is part of a cell's identity: answers do not depend on them. Who keeps
the answers is harness/runner/run.py's matter.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from harness.core.cell import canonical_json
from harness.core.errors import PrunebenchError
from harness.core.shape import PromptShape, Size
from harness.engine.prefix import PrefixCache, prefix_kind
from harness.method import Method, source_of
from harness.models.load import LoadedModel
from harness.models.pictures import pixels_key
from harness.runner.answering import Answer, Answerer, Prompt, PromptImage, batch_for
from harness.runner.pace import Pace
from harness.runner.second import Then
from harness.runner.session import Session
from harness.runner.setting import Setting
from harness.store.journal import Record

if TYPE_CHECKING:
    from tasks.lmms import LoadedTask

Batches = Generator[tuple[str, list[Record]]]
"""(identity of the cell, answers) as they come."""


class Work(NamedTuple):
    """What is left of one cell: the keys of its unanswered samples. Can be pickled."""

    setting: Setting
    identity: str
    left: frozenset[str]


class Executor(Protocol):
    """Who answers, in this process or elsewhere. Journals and seals stay with the caller."""

    def answers(self, work: Sequence[Work], pace: Pace) -> Batches:
        """The answers that are left, of one or more cells of one model, in any order.

        Raises PrunebenchError where one fails, after all the others have been answered. Close it to stop early.
        """


@dataclass(frozen=True)
class Arm:
    """What answers: a method with its seed and positions, and the prompts that it is asked. `label` is for errors."""

    method: Method
    seed: int
    positions: str
    label: str
    prompts: Sequence[Prompt]

    @cached_property
    def by_image(self) -> Mapping[str, Sequence[Prompt]]:
        found: dict[str, list[Prompt]] = {}
        for prompt in self.prompts:
            found.setdefault(prompt.image_key, []).append(prompt)
        return found


class InProcess:
    """Answers in this process, with the session's model and features."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def answers(self, work: Sequence[Work], pace: Pace) -> Batches:
        """As `Executor.answers`: cells that differ in nothing that decides an answer share one."""
        loaded = self._session.model(work[0].setting.located)
        groups: dict[str, list[Work]] = {}
        for one in work:
            groups.setdefault(_arm_name(one.setting), []).append(one)
        wanted = [_wanted(group, self._session) for group in groups.values()]
        arms = [
            Arm(
                group[0].setting.method,
                group[0].setting.seed,
                group[0].setting.positions,
                group[0].setting.label,
                list(prompts.values()),
            )
            for group, (prompts, _) in zip(groups.values(), wanted, strict=True)
        ]
        with closing(self.ask(loaded, arms, pace)) as batches:
            for number, batch in batches:
                prompts, takers = wanted[number]
                records: dict[str, list[Record]] = {}
                for a in batch:
                    record = Record(a.key, prompts[a.key].image_key, a.text, a.n_new_tokens, a.cost, a.wall_s, a.kept)
                    for identity in takers[a.key]:
                        records.setdefault(identity, []).append(record)
                yield from records.items()

    def ask(self, loaded: LoadedModel, arms: Sequence[Arm], pace: Pace) -> Generator[tuple[int, list[Answer]]]:
        """One pass over the images: (number of the arm, answers), a batch at a time.

        An arm that fails is asked no more and the others go on; then raises PrunebenchError with what failed.
        """
        usual = loaded.usual
        room = self._session.prefixes(loaded.device)
        prefixes = room if pace.share else None
        kinds = [
            (prefix_kind(arm.method.for_model(usual.decoder), usual, arm.positions), pixels_key(arm.method))
            for arm in arms
        ]
        # arms of one kind of prefix follow each other, so that one kind is in memory at a time
        order = sorted(range(len(arms)), key=kinds.__getitem__)
        failed: dict[int, PrunebenchError] = {}
        answerers = self._answerers(loaded, arms, prefixes, pace, failed)
        held: tuple[str, str] | None = None
        most = max((len(prompt.images) for arm in arms for prompt in arm.prompts), default=1)
        images = {image for arm in arms for image in arm.by_image}
        for chunk in chunks(images, usual, pace, None if prefixes is None else prefixes.limit, most):
            for number in order:
                if number in failed:
                    continue
                if prefixes is not None and held != kinds[number] and len(set(kinds)) > 1:
                    prefixes.clear()
                held = kinds[number]
                try:
                    for batch in answerers[number].batches(
                        [p for image in chunk for p in arms[number].by_image.get(image, ())]
                    ):
                        yield number, batch
                except PrunebenchError as error:
                    if len(arms) == 1:
                        raise
                    failed[number] = error
        if failed:
            raise _failure(arms, failed)

    def _answerers(
        self,
        loaded: LoadedModel,
        arms: Sequence[Arm],
        prefixes: PrefixCache | None,
        pace: Pace,
        failed: dict[int, PrunebenchError],
    ) -> dict[int, Answerer]:
        """By number of the arm; those that cannot be made are put into `failed`."""
        features, clock = self._session.features, self._session.clock
        made: dict[int, Answerer] = {}
        for number, arm in enumerate(arms):
            try:
                most = batch_for(arm.method, pace.batch, loaded.device)
                made[number] = Answerer(
                    loaded,
                    arm.method,
                    batch_size=most,
                    seed=arm.seed,
                    positions=arm.positions,
                    features=features,
                    prefixes=prefixes,
                    clock=clock,
                )
            except PrunebenchError as error:
                if len(arms) == 1:
                    raise
                failed[number] = error
        return made


def _arm_name(setting: Setting) -> str:
    """Equal for cells that are asked together: 64 and 64avg can be the same method with the same knobs."""
    method = setting.method
    answers = [setting.seed, setting.positions, setting.asked.follow_up]
    return canonical_json([method.name, source_of(type(method)), method.knobs(), *answers])


def _wanted(group: Sequence[Work], session: Session) -> tuple[dict[str, Prompt], dict[str, list[str]]]:
    """The prompts that a group of cells lacks, and which of the cells take each answer, both by key."""
    prompts: dict[str, Prompt] = {}
    takers: dict[str, list[str]] = {}
    for one in group:
        task = session.task(one.setting.task, one.setting.source, one.setting.limit, bool(one.setting.asked.follow_up))
        for prompt in prompts_of(task, sizes={} if one.setting.located.one_size else task.sizes):
            if prompt.key in one.left:
                takers.setdefault(prompt.key, []).append(one.identity)
                prompts.setdefault(prompt.key, prompt)
    return prompts, takers


def prompts_of(
    task: LoadedTask, max_new_tokens: int | None = None, sizes: Mapping[str, Size] = MappingProxyType({})
) -> list[Prompt]:
    """A task's questions as they are asked; answers end after `max_new_tokens` where that is less than the task's
    own. `sizes` of images by their key, as far as they are known."""
    most = task.max_new_tokens if max_new_tokens is None else min(task.max_new_tokens, max_new_tokens)
    until = tuple(task.until)
    openers = task.openers.first if task.openers else {}
    return [
        Prompt(
            s.key,
            openers.get(s.key, s).content,
            tuple(PromptImage(image.key, image.load, sizes.get(image.key)) for image in s.images),
            s.image_key,
            most,
            until,
            Then(s.prompt, openers[s.key].key) if openers else None,
        )
        for s in task.samples
    ]


def chunks(
    images: set[str], usual: PromptShape, pace: Pace, prefix_bytes: int | None, most: int = 1
) -> Iterator[list[str]]:
    """The keys of this shard's images, in parts whose prefixes fit into `prefix_bytes`, if there are any. `most`:
    images that a prompt has, which one key names together."""
    shard, n_shards = pace.shard
    # shards are of images, not of chunks, whose size depends on the memory that each process finds
    mine = sorted(images)[shard::n_shards]
    size = len(mine)
    if pace.chunk is not None:
        size = pace.chunk if prefix_bytes is None else min(pace.chunk, prefix_bytes // (most * _prefix_bytes(usual)))
    size = max(1, size)
    for start in range(0, len(mine), size):
        yield mine[start : start + size]


def _prefix_bytes(usual: PromptShape) -> int:
    """Of one image's prefix; the system prompt is small beside the image."""
    shape = usual.decoder
    per_layer = shape.hidden + 2 * shape.kv_heads * shape.head_dim
    return shape.depth * per_layer * shape.bytes_per_value * (usual.n_visual + 64)


def _failure(arms: Sequence[Arm], failed: Mapping[int, PrunebenchError]) -> PrunebenchError:
    said = [f"{arms[number].label}: {error}" for number, error in failed.items()]
    each = "; ".join(said[:3]) + (f"; and {len(said) - 3} more" if len(said) > 3 else "")
    kept = "" if len(failed) == len(arms) else ", the answers of the others are kept"
    return PrunebenchError(f"{len(failed)} of {len(arms)} settings failed{kept}: {each}")
