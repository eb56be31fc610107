"""The one runner: settings in, sealed cells and tables out. Evaluations, sweeps, ablations and the gate all come here.

Cells that are sealed are reused, cells that another runner holds are left to it and named, and a method that fails does
not stop the others. Killed at any moment, the same settings continue.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from harness.core.errors import PrunebenchError
from harness.method.fits import changes_pixels, shrinks_pictures
from harness.runner.environment import environment
from harness.runner.execute import Executor
from harness.runner.jobs import Job, prepare, provenance
from harness.runner.launch.launchers import check_alone
from harness.runner.pace import Pace
from harness.runner.running import Flusher, RunningCell
from harness.runner.session import Session
from harness.runner.setting import Setting
from harness.runner.sizes import several_images
from harness.store.files import check_place
from harness.store.lease import CellBusy
from harness.store.sealed import SealedCell
from harness.store.store import CellSealed, Store
from harness.tables import leaderboard
from harness.tables.kept import Kept
from harness.tables.sections import baseline

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """Where results go and how to get them; nothing here changes an answer. `fresh`: measure again what is sealed."""

    results: Path = Path("results/local")
    pace: Pace = field(default_factory=Pace)
    fresh: bool = False


class Busy(NamedTuple):
    """A cell that another runner holds, and who that is."""

    label: str
    why: CellBusy


@dataclass(frozen=True)
class Finished:
    """`cells` by identity, in the order of the settings, `reused` of which were sealed before; the files that were
    written."""

    cells: Mapping[str, SealedCell]
    reused: int
    busy: Sequence[Busy]
    csv: Path
    markdown: Path
    identities: Mapping[Setting, str]

    def of(self, settings: Sequence[Setting]) -> list[SealedCell]:
        """The cells of some of the settings, each once."""
        wanted = dict.fromkeys(self.identities[setting] for setting in settings)
        return [self.cells[identity] for identity in wanted if identity in self.cells]

    def check_whole(self) -> None:
        """Raise PrunebenchError naming who holds a cell, where all of them are needed."""
        if self.busy:
            raise PrunebenchError(
                f"{len(self.busy)} of {len(self.busy) + len(self.cells)} cells are another runner's: {self.busy[0].why}"
            )


def run(settings: Sequence[Setting], session: Session, executor: Executor, options: Options, say: Say) -> Finished:
    """Run what is not sealed, one pass per model, and write the tables of the results folder.

    Raises PrunebenchError at the end, with the tables written, where data or a model cannot be read and where a method
    failed. What was answered is kept.
    """
    check_alone()
    check_place(options.results, *leaderboard.FILES)
    store = Store(options.results)
    done: dict[str, SealedCell] = {}
    identities: dict[Setting, str] = {}
    busy: list[Busy] = []
    failed: list[str] = []
    reused = 0
    groups = _by_model(settings)
    for mine in groups:
        model = mine[0].asked.model
        try:
            jobs = prepare(mine, session)
            identities |= {job.setting: job.identity for job in jobs}
            unique = list({job.identity: job for job in jobs}.values())
            for task in {job.task.name: job.task for job in unique if job.task.sampling}.values():
                say(f"note: task {task.name} asks for {task.sampling}: answers are greedy here, as its cells say")
            said = dict.fromkeys(several_images(job.setting.located.prompter, job.task) for job in unique)
            for note in filter(None, said):
                say(f"note: {note}")
            passed = _pass(unique, store, session, executor, options, say)
        except PrunebenchError as stopped:
            failed.append(f"{model}: {stopped}" if len(groups) > 1 else str(stopped))
            continue
        finally:
            session.release()
        done |= {job.identity: passed.cells[job.identity] for job in unique if job.identity in passed.cells}
        reused += passed.reused
        busy += passed.busy
        for label, why in passed.busy:
            say(f"left to another runner: {label}: {why}")
        for note in missed(unique, done):
            say(f"note: {note}")
    try:
        with session.clock("tables"):
            csv, markdown = write_tables(store, say)
    except PrunebenchError as unwritten:
        if failed:  # what came first is what is to be mended
            raise PrunebenchError("; ".join(failed)) from unwritten
        raise
    if failed:
        raise PrunebenchError("; ".join(failed))
    return Finished(done, reused, busy, csv, markdown, identities)


def _by_model(settings: Sequence[Setting]) -> list[list[Setting]]:
    """The settings of each model that has to be loaded: two folders of one name are two models."""
    groups: dict[tuple[str | None, ...], list[Setting]] = {}
    for setting in settings:
        located = setting.located
        place = (str(located.folder), str(located.device), located.dtype)
        groups.setdefault((*place, located.config.name, located.config.prompt, located.config.image), []).append(
            setting
        )
    return list(groups.values())


class _Passed(NamedTuple):
    cells: dict[str, SealedCell]
    reused: int
    busy: list[Busy]


def _pass(
    jobs: Sequence[Job], store: Store, session: Session, executor: Executor, options: Options, say: Say
) -> _Passed:
    """Run the jobs of one model that are not sealed."""
    sealed: dict[str, SealedCell] = {}
    busy: list[Busy] = []
    with ExitStack() as stack:
        running: dict[str, RunningCell] = {}
        for job in jobs:
            try:
                found = None if options.fresh else store.sealed(job.cell)
                if found is None:
                    running[job.identity] = stack.enter_context(_opened(job, store, session, options, say))
                else:
                    sealed[job.identity] = found
            except CellBusy as error:
                busy.append(Busy(job.setting.label, error))
            except CellSealed:  # by another runner, since we looked
                found = store.sealed(job.cell)
                assert found is not None
                sealed[job.identity] = found
        reused = len(sealed)
        _answer(running, sealed, executor, options.pace)
    store.tidy()
    return _Passed(sealed, reused, busy)


@contextmanager
def _opened(job: Job, store: Store, session: Session, options: Options, say: Say) -> Iterator[RunningCell]:
    if options.fresh:
        store.discard(job.cell)
    here = environment(job.setting.located.device)
    with store.open(job.cell, [s.key for s in job.task.samples], here) as writer:
        for note in writer.notes:
            say(f"note: {note}")
        yield RunningCell(job, writer, provenance(job.setting, job.task, options.pace), session.clock)


def _answer(running: Mapping[str, RunningCell], sealed: dict[str, SealedCell], executor: Executor, pace: Pace) -> None:
    """Get the answers that are left into the journals, and seal each cell as soon as it has all of them."""
    for identity, one in running.items():
        if one.complete:  # all answers were there when a run ended
            sealed[identity] = one.seal()
    left = {identity: one for identity, one in running.items() if identity not in sealed}
    if not left:
        return
    total, done = (
        sum(one.job.cell.n_samples for one in left.values()),
        sum(len(one.writer.done) for one in left.values()),
    )
    label = next(iter(left.values())).job.setting.label if len(left) == 1 else f"{len(left)} cells"
    # a log file gets a line now and then, a terminal a bar that moves
    often = 0.2 if sys.stderr.isatty() else 30.0
    bar = tqdm(total=total, initial=done, desc=label, unit="q", dynamic_ncols=True, smoothing=0.05, mininterval=often)
    # the executor is closed at once on an error: it is inside attach(), or has processes
    answers = executor.answers([one.work for one in left.values()], pace)
    with bar, Flusher(left.values()) as flusher, closing(answers):
        for identity, records in answers:
            left[identity].add(records)
            bar.update(len(records))
            if left[identity].complete:
                sealed[identity] = left[identity].seal()
            flusher.check()
    unfinished = [one.job.setting.label for identity, one in left.items() if identity not in sealed]
    if unfinished:
        raise PrunebenchError(
            f"{len(unfinished)} of {len(left)} cells lack answers after the pass, as {unfinished[0]}: run it again"
        )


def write_tables(store: Store, say: Say) -> tuple[Path, Path]:
    """The tables of all cells that are as they were sealed; `say` names those that are not. Raises as
    `leaderboard.write`."""
    damaged: list[str] = []
    kept = Kept(store.root)
    written = leaderboard.write(store.cells(damaged, kept.check), store.root, kept=kept)
    if damaged:
        say(
            f"note: {len(damaged)} cells, damaged or of another version, are left out of the tables; first:"
            f" {damaged[0]}"
        )
    return written


def missed(jobs: Sequence[Job], cells: Mapping[str, SealedCell]) -> list[str]:
    """What a person should know about cells whose method did not keep what was asked. Methods that change pixels, and
    not pictures, keep every token by design."""
    said = []
    for job in jobs:
        sealed, budget, label = cells.get(job.identity), job.setting.budget, job.setting.label
        if sealed is None:
            continue
        shrinks = not job.setting.located.one_size and shrinks_pictures(job.setting.method)
        if changes_pixels(job.setting.method) and not shrinks:
            continue
        whole = baseline(sealed, cells) if shrinks else sealed  # pictures as they were
        if whole is None:
            continue
        costs = sealed.costs
        share = costs["prefill_dense_flops"] / whole.costs["prefill_unpruned_flops"]
        tokens = budget.asked(whole.costs["n_visual"])
        if budget.unit == "kept" and abs(costs["kept"] - tokens) > 0.5:
            said.append(f"{label} kept {costs['kept']:.1f} visual tokens on average, {tokens:g} were asked")
        elif budget.unit == "avg" and abs(costs["mean_visual"] - tokens) > 1:
            said.append(
                f"{label} has {costs['mean_visual']:.1f} visual tokens per layer on average, {tokens:g} were asked"
            )
        elif budget.unit == "flops" and abs(share - (budget.ratio or 0)) > 0.02:
            said.append(f"{label} costs {share:.3f} of the unpruned FLOPs, {budget.ratio} were asked")
    return said
