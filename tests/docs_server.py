"""A copy of the repository in which the commands of the pages are typed, and a process that starts them fast.

`prunebench` and `python` of the copy's .venv are a few lines that hand their words, folder, environment and streams to
a server. The server has torch and transformers behind it and forks one process for each command. Such a process reads
everything else from the copy, so that a command may write into its checkout.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
#: the folders and files of a checkout that commands read; .venv is made, and results/local begins empty
PARTS = (
    *("benchmarks", "configs", "docs", "examples", "harness", "methods", "prunebench", "tasks", "tests"),
    *("results/published.csv", "results/reference", ".ci"),
    *("Makefile", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "mkdocs.yml"),
    *("pyproject.toml", "constraints.txt", "requirements.lock"),
)
STUB = """#!{python} -SEI
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
ask = json.dumps([{program!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(ask).to_bytes(4, "big")], [0, 1, 2])
server.sendall(ask)
code = server.recv(4)
sys.exit(int.from_bytes(code, "big") if code else 70)
"""


class Done(NamedTuple):
    code: int
    said: str
    seconds: float


class Copy:
    """A context: the copy in `folder` and its server. Raises RuntimeError where the server does not start."""

    def __init__(self, folder: Path) -> None:
        self.top = folder / "copy"
        self.address = str(folder / "s")
        for part in PARTS:
            if (ROOT / part).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / part, self.top / part, ignore=ignored)
            else:
                (self.top / part).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / part, self.top / part)
        binaries = self.top / ".venv" / "bin"
        binaries.mkdir(parents=True)
        for program in ("prunebench", "python"):
            stub = STUB.format(python=sys.executable, address=self.address, program=program)
            (binaries / program).write_text(stub)
            (binaries / program).chmod(0o755)
        for stamp in (".installed", ".docs"):  # make has nothing to set up
            (self.top / ".venv" / stamp).touch()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTEST"))}
        self.env = kept | {
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.top),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self) -> Copy:
        words = [sys.executable, str(Path(__file__).resolve()), self.address]
        self.server = subprocess.Popen(words, cwd=self.top, env=self.env, stdout=subprocess.PIPE, text=True)
        assert self.server.stdout is not None
        if self.server.stdout.readline() != "ready\n":
            raise RuntimeError(f"expected a server of commands, found exit code {self.server.wait()}")
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.server.terminate()
        self.server.wait()
        shutil.rmtree(self.top)

    def run(self, script: str, limit_s: float) -> Done:
        """What a shell in the copy says to a script; code 124 where it did not end in time."""
        began = time.monotonic()
        process = subprocess.Popen(
            ["bash", "-o", "pipefail", "-c", script],
            cwd=self.top,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=limit_s)
            code = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, code = f"no end within {limit_s:.0f} s", 124
        return Done(code, said, time.monotonic() - began)


def become(program: str, words: Sequence[str]) -> None:
    """Do as `prunebench WORDS` or `python WORDS` does, in this process."""
    if program == "prunebench":
        from prunebench.__main__ import main

        sys.argv = ["prunebench", *words]
        main()
    elif words[0] == "-m":
        sys.argv = [words[1], *words[2:]]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, os.getcwd())
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = list(words)
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


def child(client: socket.socket) -> int:
    """Take over the streams, folder and environment of the caller, and run its words. The exit code."""
    head, streams, _, _ = socket.recv_fds(client, 4, 3)
    size, ask = int.from_bytes(head, "big"), b""
    while len(ask) < size:
        ask += client.recv(size - len(ask))
    program, words, folder, environment = json.loads(ask)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin, sys.stdout, sys.stderr = (
        open(n, mode, buffering=-1 if n < 2 else 1, closefd=False)  # noqa: SIM115
        for n, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    try:
        become(program, words)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return int(stop.code or 0)
    return 0


def serve(address: str) -> None:
    """Answer callers until the process is terminated."""
    import pandas  # noqa: F401
    import torch  # noqa: F401
    import transformers.models.llava.modeling_llava  # noqa: F401
    from lmms_eval import tasks  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    while True:
        client, _ = listener.accept()
        if os.fork() == 0:
            code = 1
            listener.close()
            try:
                code = child(client)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                client.sendall(code.to_bytes(4, "big"))
                os._exit(code)
        client.close()
        while True:  # those that ended meanwhile
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                break


if __name__ == "__main__":
    serve(sys.argv[1])
