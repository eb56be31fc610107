"""A process that has the imports behind it and forks one `prunebench` per line of its input: 20 restarts without 20
imports.

Each child starts before anything is loaded: model, tasks, data and results are read by itself, as by a fresh command.
It logs every batch of answers that it hands to a journal before (`ask`) and after (`done`) the store took it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def child(arguments: list[str], log: str, answers: str, flush: int | None) -> int:
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    from harness import cli
    from harness.runner import running
    from harness.store import journal, store

    if flush:
        running.FLUSH = flush
    book = os.open(answers, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    append = store.CellWriter.append

    def noted(self: store.CellWriter, *records: journal.Record) -> None:
        for word in ("ask", "done"):
            lines = "".join(f"{word} {os.getpid()} {self.cell.identity()} {record.key}\n" for record in records)
            os.write(book, lines.encode())  # one write: killed or not, lines are whole
            if word == "ask":
                append(self, *records)

    store.CellWriter.append = noted  # type: ignore[method-assign]
    sys.argv = ["prunebench", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve() -> None:
    import lmms_eval.tasks  # noqa: F401
    import pandas  # noqa: F401
    import transformers.models.llava.modeling_llava  # noqa: F401

    import harness.runner.sweep  # noqa: F401
    import tasks.lmms  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        if "wait" in ask:
            _, status = os.waitpid(ask["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = child(**ask)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        print(pid, flush=True)


if __name__ == "__main__":
    serve()
