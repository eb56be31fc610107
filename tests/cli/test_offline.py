"""No command that works on local files looks anything up outside."""

import json
import subprocess
import sys

from harness.core.paths import TOP

#: runs commands with every way out of the process closed and told on; one process, for torch takes seconds to import
CLOSED = """
import json, socket, sys
asked = []
def closed(*args, **more):
    asked.append(str(args[:1]))
    raise OSError(101, "Network is unreachable")
socket.getaddrinfo = socket.create_connection = closed
class Closed(socket.socket):
    def connect(self, address):
        return super().connect(address) if self.family == socket.AF_UNIX else closed(address)
    def connect_ex(self, address):
        return closed(address)
socket.socket = Closed
from harness.cli import main
found = {}
for words in json.loads(sys.argv[1]):
    sys.argv = ["prunebench", *words]
    try:
        main()
    except SystemExit as end:
        found[" ".join(words)] = [end.code, list(asked)]
print("\\n" + json.dumps(found))
"""
COMMANDS = (
    "methods",
    "tasks",
    "models",
    "doctor",
    "cost fastv --budget 64",
    "results list --results results/reference",
    "report --results results/reference --samples 1 --out {}/p.html",
    "show --model mini --sample pope/000000 --method fastv --budget 64 --results results/reference --out {}/p.png",
    "compare fastv@64 dart@64 --results results/reference --out {}/f.csv --page {}/f.html --samples 1",
    "eval --method uniform --budget 64 --tasks pope --limit 3 --results {}/r",
    "leaderboard --results {}/r --no-figures",
    "sweep configs/mini.yaml --dry-run --results {}/r",
)


def test_a_local_command_looks_nothing_up(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked = [command.replace("{}", str(tmp_path)).split() for command in COMMANDS]
    script = [sys.executable, "-c", CLOSED, json.dumps(asked)]
    done = subprocess.run(script, cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {" ".join(words): [0, []] for words in asked}, done.stderr
