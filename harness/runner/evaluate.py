"""One evaluation: a sweep of one entry, which says what it is about to do."""

from __future__ import annotations

from harness.runner.launch.launchers import check_alone
from harness.runner.launch.processes import executor
from harness.runner.request import Request, resolve
from harness.runner.run import Finished, Options, Say, run
from harness.runner.session import Session
from harness.runner.setting import Setting


def evaluate(request: Request, options: Options | None = None, say: Say = print, *, workers: int = 1) -> Finished:
    """Run (or reuse) the cells of a request: per task every method and the unpruned model, and write the tables.
    `workers` > 1 spreads the images over processes, one per GPU or CPU share.

    Cells that another runner holds are left to it and named; `Finished.check_whole` raises for them. Raises
    PrunebenchError for anything a user can mend; answers that were journalled by then are kept, and the same request
    continues.
    """
    check_alone()  # before data and models are looked for
    session = Session()
    settings = resolve(request, session)
    say(_banner(request, settings))
    return run(settings, session, executor(workers, session), options or Options(), say)


def _banner(request: Request, settings: list[Setting]) -> str:
    first = settings[0]
    located, spelt = first.located, ", ".join(request.budgets) or "none"
    if len(request.methods) == len(request.budgets) == 1:
        spelt = str(settings[-1].budget)
    plan = ", ".join(request.methods) + (
        "" if all(s.budget.unit == "none" for s in settings) else f" at budget {spelt}"
    )
    plan += f" with seeds {', '.join(request.seeds)}" if len(request.seeds) > 1 else ""
    count = "every question" if first.limit is None else f"about {first.limit} questions (whole images)"
    return (
        f"{plan} on {located.config.name} ({located.spoken}), {first.source.name} data:"
        f" {', '.join(request.tasks)}, {count} per task, beside the unpruned model."
    )
