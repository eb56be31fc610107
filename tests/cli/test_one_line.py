"""Whatever is typed, and whatever stands in the files that are named: one line on stderr and a documented exit code."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import run

from harness.cli import guard, known_tasks
from harness.cli.main import _without_debug
from harness.core.errors import PrunebenchError
from harness.core.paths import TOP

MANY, LONG = "1" * 5000, "9" * 25
#: digits of another script, which Python's int() reads
ARABIC = "\u0663\u0664"
DEEP = "[" * 100_000
METHOD = '''"""T."""
from dataclasses import dataclass
from harness.method import Method
@dataclass(frozen=True)
class M(Method):
    """M."""
    name = "m"
'''


def written(folder: Path, name: str, content: str | bytes = "") -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(file)


def goldens(content: str | bytes, case: str | bytes | None = None) -> Callable[[Path], list[str]]:
    def words(folder: Path) -> list[str]:
        written(folder, "g/index.json", content)
        if case is not None:
            written(folder, "g/cases/fastv/a.json", case)
        return ["goldens", str(folder / "g")]

    return words


def ev(*words: str) -> Callable[[Path], list[str]]:
    return lambda folder: ["eval", "--tasks", "pope", "--limit", "9", "--results", str(folder / "r"), *words]


def bench(*words: str) -> Callable[[Path], list[str]]:
    usual = ["--model", "mini", "--methods", "none", "--budgets", "64", "--repeats", "1", "--warmup", "0"]
    return lambda folder: ["bench", *usual, "--out", str(folder / "b"), *words]


def analysed(content: str) -> Callable[[Path], list[str]]:
    def words(folder: Path) -> list[str]:
        shutil.copytree(TOP / "results" / "reference" / "cells" / "pope", folder / "r" / "cells" / "pope")
        written(folder, "r/analysis/mini/analysis.json", content)
        return ["report", "--results", str(folder / "r"), "--samples", "0"]

    return words


CASE = '[{"file": "cases/fastv/a.json"}]'
HOSTILE: dict[str, Callable[[Path], list[str]]] = {
    # a method's place
    "a file that is no Python": ev("--budget", "64", "--method", "/etc/passwd:X"),
    "a folder": lambda d: ev("--budget", "64", "--method", f"{d}:X")(d),
    "a folder that ends in .py": lambda d: ev("--budget", "64", "--method", f"{(d / 'a.py').mkdir() or d}/a.py:X")(d),
    "a path with two colons": lambda d: ev("--budget", "64", "--method", f"{written(d, 'a:b.py', METHOD)}:M:N")(d),
    "a path with a colon": lambda d: ev("--budget", "64", "--method", f"{written(d, 'a:b.py', METHOD)}:X")(d),
    "nul in a method": ev("--budget", "64", "--method", "a\0b:X"),
    "nul in a file's path": ev("--budget", "64", "--method", "a\0b.py:X"),
    "dots": ev("--budget", "64", "--method", "..:X"),
    "a relative module": ev("--budget", "64", "--method", ".a:X"),
    "a module with blanks": ev("--budget", "64", "--method", "a b:X"),
    "an attribute with a dot": lambda d: ev("--budget", "64", "--method", f"{written(d, 'a.py', METHOD)}:M.name")(d),
    "a long path": ev("--budget", "64", "--method", f"{'a' * 5000}.py:X"),
    "nul in the file": lambda d: ev("--budget", "64", "--method", f"{written(d, 'a.py', METHOD + chr(0))}:M")(d),
    "bytes that are no text": lambda d: ev("--budget", "64", "--method", written(d, "a.py", b"\xff\xfe") + ":M")(d),
    "a bracket hell": lambda d: ev("--budget", "64", "--method", written(d, "a.py", "x = " + DEEP) + ":M")(d),
    "a pipe": lambda d: ev("--budget", "64", "--method", f"{os.mkfifo(d / 'p.py') or d}/p.py:M")(d),
    "a surrogate": ev("--budget", "64", "--method", "a\udc80.py:X"),
    # numbers
    **{
        f"budget {number[:12]!r}": ev("--method", "uniform", f"--budget={number}")
        for number in (
            MANY,
            LONG,
            ARABIC,
            "-0",
            "-1",
            "1e999",
            "1e3",
            "0x10",
            f"0.{MANY}kept",
            f"{MANY}%",
            f"{MANY}avg",
        )
    },
    **{f"budget {number[:12]!r}f": ev("--method", "uniform", f"--budget={number}flops") for number in (MANY, "1e999")},
    "limit with many digits": ev("--method", "none", "--limit", MANY),
    "limit in another script": ev("--method", "none", "--limit", "\u0663"),
    "limit below nothing": ev("--method", "none", "--limit=-0"),
    "limit as a fraction": ev("--method", "none", "--limit", "1e999"),
    "seed with many digits": ev("--method", "random", "--budget", "64", "--seed", MANY),
    "seed in another script": ev("--method", "random", "--budget", "64", "--seed", ARABIC),
    "a seed that is none": ev("--method", "random", "--budget", "64", "--seed", "1e999"),
    "batch with many digits": ev("--method", "none", "--batch", MANY),
    "batch below one": ev("--method", "none", "--batch=-0"),
    "a knob with many digits": ev("--method", "fastv", "--budget", "64", "--set", f"boundary={MANY}"),
    "a knob of 25 digits": ev("--method", "fastv", "--budget", "64", "--set", f"boundary={LONG}"),
    "a knob beyond all floats": ev("--method", "visipruner", "--budget=calibrated", "--set=layer_threshold=1e999"),
    "text of 5,000 digits": lambda d: ["cost", "fastv", "--budget", "64", "--text-tokens", MANY],
    "text of 25 digits": lambda d: ["cost", "fastv", "--budget", "64", "--text-tokens", LONG],
    "text before of 25 digits": lambda d: ["cost", "fastv", "--budget", "64", "--text-before", LONG],
    "text before below nothing": lambda d: ["cost", "fastv", "--budget", "64", "--text-before=-5"],
    "bench seed": bench("--batch", "1", "--seed", LONG),
    "bench batch": bench("--batch", LONG),
    "bench batch, many digits": bench("--batch", MANY),
    "bench text": bench("--batch", "1", "--text-tokens", LONG),
    "bench new tokens": bench("--batch", "1", "--new-tokens", LONG),
    "bench new tokens below one": bench("--batch", "1", "--new-tokens=-1"),
    "bench repeats below one": bench("--batch", "1", "--repeats", "0"),
    "bench warmup below nothing": bench("--batch", "1", "--warmup=-1"),
    "bench layers": bench("--batch", "1", "--layers", LONG, "--random-weights"),
    "bench onto a file": lambda d: bench("--batch", "1", "--out", written(d, "f"))(d),
    "a check beyond all counts": lambda d: ["check", "uniform", "--budget", LONG],
    "a check at nothing": lambda d: ["check", "uniform", "--budget", "0"],
    "samples below nothing": lambda d: [
        "report",
        "--results",
        "results/reference",
        "--samples=-3",
        "--out",
        str(d / "p"),
    ],
    # places
    "analyze onto a file": lambda d: (
        ["analyze", "mini", "--tasks", "pope", "--limit", "36", "--layers", "3-4", "--out", written(d, "f")]
    ),
    "analyze below a file": lambda d: (
        ["analyze", "mini", "--tasks", "pope", "--layers", "3-4", "--out", written(d, "f") + "/deeper"]
    ),
    "layers with many digits": lambda d: ["analyze", "mini", "--layers", f"{MANY}-{MANY}", "--out", str(d)],
    "layers of text": lambda d: ["analyze", "mini", "--layers", "a-b", "--out", str(d)],
    "regress onto a file": lambda d: ["regress", "--out", written(d, "f")],
    "a page below a file": lambda d: (
        ["report", "--results", "results/reference", "--samples", "0", "--out", written(d, "f") + "/p.html"]
    ),
    "results on a file": lambda d: ["leaderboard", "--results", written(d, "f")],
    "nul in results": lambda d: ["leaderboard", "--results", "a\0b"],
    "long results": lambda d: ["leaderboard", "--results", "a" * 5000],
    "sides on a file": lambda d: ["compare", "fastv@64", "dart@64", "--results", written(d, "f")],
    "sides with nul": lambda d: ["compare", "fastv@64\0", "dart@64", "--results", "results/reference"],
    "a side of many digits": lambda d: ["compare", f"fastv@{MANY}", "dart@64", "--results", "results/reference"],
    "a long side": lambda d: ["compare", "a" * 5000, "dart@64:b=c", "--results", "results/reference"],
    "no side": lambda d: ["compare", "--results", "results/reference"],
    "flips onto a folder": lambda d: (
        ["compare", "fastv@64", "dart@64", "--results", "results/reference", "--out", str(d)]
    ),
    "flips below a file": lambda d: (
        ["compare", "fastv@64", "dart@64", "--results", "results/reference", "--page", written(d, "f") + "/p.html"]
    ),
    "no pictures": lambda d: ["compare", "fastv@64", "dart@64", "--results", "results/reference", "--samples", "0"],
    "three results folders": lambda d: (
        ["compare", "fastv@64", "--results", "results/reference", "--results", str(d), "--results", "a"]
    ),
    "a list of a file": lambda d: ["results", "list", "--results", written(d, "f")],
    "verify with nul": lambda d: ["results", "verify", "--results", "\0"],
    "a picture onto a folder": lambda d: (
        ["show", "--sample", "pope/000000", "--results", "results/reference/mini", "--out", str(d)]
    ),
    "a sample of many digits": lambda d: ["show", "--sample", f"pope/{MANY}", "--results", "results/reference"],
    # files
    **{
        f"goldens with {name}": goldens(content)
        for name, content in {
            "nothing": "",
            "null": "null",
            "an object": "{}",
            "half a list": CASE[:9],
            "a number": "1",
            "no bytes of text": b"\xff\x00",
            "depth": DEEP,
            "a case that is absent": CASE,
            "a file as number": '[{"file": 3}]',
            "a way out": '[{"file": "../../../etc/passwd"}]',
            "nul": '[{"file": "a\\u0000b"}]',
            "an empty name": '[{"file": ""}]',
            "a long name": json.dumps([{"file": "a" * 5000}]),
        }.items()
    },
    **{
        f"a case that is {name}": goldens(CASE, content)
        for name, content in {
            "nothing": "",
            "null": "null",
            "a list": "[]",
            "deep": DEEP,
            "an empty object": "{}",
            "of no method": '{"method": ["fastv"]}',
            "a vanilla of nothing": '{"method": "vanilla"}',
            "without a model": '{"method": "vanilla", "model": 3, "input": 4, "tokens": 5, "logits": 6}',
            "of a wrong K": '{"method": "fastv", "K": "x"}',
            "of a wrong count": '{"method": "fastv", "K": 3, "n_kept": null}',
            "a visipruner without a config": '{"method": "visipruner", "pruning_config": 3}',
            "a sparsevlm without stages": '{"method": "sparsevlm", "retain": 9, "version": "2_0"}',
        }.items()
    },
    **{
        f"a baseline that is {name}": (
            lambda d, content=content: ["regress", "--baseline", written(d, "b.json", content), "--out", str(d / "o")]
        )
        for name, content in {
            "empty": "",
            "null": "null",
            "a list": "[]",
            "deep": DEEP,
            "no text": b"\xff\x00",
            "an object": "{}",
            "of another format": '{"format": {}}',
            "a long number": "1" * 6000,
        }.items()
    },
    **{
        f"an analysis that {name}": analysed(content)
        for name, content in {
            "is NaN": '{"model": "mini", "figures": [], "stages": null, "n_samples": NaN}',
            "holds NaN": '{"model": "mini", "figures": [], "stages": null, "layers": [{"a": NaN}], "depth": -Infinity}',
            "is too large": '{"model": "mini", "figures": [], "stages": null, "depth": 1e999}',
            "is deep": DEEP,
            "is a list": "[]",
            "is nothing": "",
            "has a figure elsewhere": '{"model": "mini", "stages": null, "figures": [{"file": "a\\u0000b"}]}',
        }.items()
    },
    **{
        f"collected results that are {name}": (
            lambda d, content=content: ["dev", "published", written(d, "c.csv", content), "--out", str(d / "o.csv")]
        )
        for name, content in {
            "binary": b"\x00\xff\x01\n" * 50,
            "nul": b"model,method\0\n1,2\n",
            "empty": b"",
            "one long field": b"model,method\n" + b"x" * 200_000 + b"\n",
            "one quote": b'model,"method\n',
        }.items()
    },
    "collected results that are a folder": lambda d: ["dev", "published", str(d), "--out", str(d / "o.csv")],
    "collected results that are absent": lambda d: ["dev", "published", str(d / "absent"), "--out", str(d / "o.csv")],
    "a part of the mini world": lambda d: ["dev", "mini", "\x1b[2J"],
    # hub ids
    **{
        f"model {name[:12]!r}": ev("--method", "none", "--model", name)
        for name in ("x" * 5000, "a//b", "a/b/c", "\0", "-", "")
    },
    "sweep without a file": lambda d: ["sweep", str(d / "absent.yaml")],
    "sweep of a folder": lambda d: ["sweep", str(d)],
    "sweep with nul": lambda d: ["sweep", "a\0b"],
    "ablate a long name": lambda d: ["ablate", "a" * 5000],
    "a data folder with nul": ev("--method", "none", "--data", "a\0b"),
    "a long data folder": ev("--method", "none", "--data", "a" * 5000),
    "a device of many digits": ev("--method", "none", "--device", f"cuda:{MANY}"),
    "a device that is none": ev("--method", "none", "--device", "\u0663"),
    "a dtype that is none": ev("--method", "none", "--dtype", "float\0"),
}
DOCUMENTED = {int(n) for n in re.findall(r"^\| (\d+) \|", (TOP / "docs" / "exit-codes.md").read_text(), re.M)}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_input_is_refused_in_one_line(name: str, tmp_path, capsys, monkeypatch) -> None:
    code, out, err = run(capsys, monkeypatch, *HOSTILE[name](tmp_path))
    said = [line for line in err.splitlines() if line.startswith("prunebench:")]
    assert "Traceback" not in out + err
    assert code in DOCUMENTED
    assert code in (1, 2), err
    assert len(said) == (code == 2), err
    assert all(len(line) < 1500 for line in said), "a value of thousands of characters is quoted in part"
    assert all(c.isprintable() or c in "\n\r" for c in err)


class OddError(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyError("x"), 70, "KeyError: 'x' (tests/cli/test_one_line.py"),
        (RuntimeError("two\nlines\x1b[2J"), 70, r"RuntimeError: two lines\x1b[2J"),
        (RuntimeError("x" * 9000), 70, f"{'x' * 300} ..."),
        (RecursionError(), 70, "RecursionError"),
        (MemoryError(), 70, "MemoryError"),
        (OddError(), 70, "OddError"),
        (BaseException("b"), 70, "BaseException: b"),
        (GeneratorExit(), 70, "GeneratorExit"),
        (SystemExit(0), 70, "SystemExit: 0"),
        (SystemExit(), 70, "SystemExit"),
        (SystemExit("text"), 70, "SystemExit: text"),
        (OSError("no number"), 70, "OSError: no number"),
        (PermissionError(errno.EACCES, "Permission denied", "/a\x1b"), 2, r"/a\x1b: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device"),
        (PrunebenchError("expected a,\n  found \u202e b"), 2, r"prunebench: expected a, found \u202e b"),
        (guard.Interrupted(), 130, "interrupted"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    ],
)
@pytest.mark.parametrize("shown", ["", "--debug", guard.DEBUG])
def test_any_error_of_a_command_is_one_line(error, code, says, shown, tmp_path, capsys, monkeypatch) -> None:
    def fail(*_args: object, **_more: object) -> None:
        raise error

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("tabulate.tabulate", fail)
    if shown == guard.DEBUG:
        monkeypatch.setenv(guard.DEBUG, "1")
    found, _, err = run(capsys, monkeypatch, "tasks", *([shown] if shown.startswith("-") else []))
    assert found == code
    assert says in err
    assert ("Traceback" in err) == (bool(shown) and code in (2, 70))
    if not shown:
        assert len(err.strip().splitlines()) == (code != 141)
    kept = list(tmp_path.glob("prunebench-traceback-*.txt"))
    assert len(kept) == (code == 70)
    if kept:
        assert str(kept[0]) in err
        assert "Traceback" in kept[0].read_text()
        assert kept[0].stat().st_mode & 0o077 == 0, "others need not read it"


def test_a_fault_whose_traceback_cannot_be_kept_is_one_line_all_the_same(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    monkeypatch.setattr(known_tasks, "_USUAL", None)
    code, _, err = run(capsys, monkeypatch, "tasks")
    assert code == 70
    assert "no file holds its traceback (FileNotFoundError): --debug shows it" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "left", "found"),
    [
        (["--debug", "eval"], ["eval"], True),
        (["eval", "--method", "x", "--debug"], ["eval", "--method", "x"], True),
        (["eval", "--", "--debug"], ["eval", "--", "--debug"], False),
        (["lmms-eval", "--debug"], ["lmms-eval", "--debug"], False),
        (["--debug", "lmms-eval", "--debug"], ["lmms-eval", "--debug"], True),
        (["dev", "--debug", "mini", "train", "--debug"], ["dev", "mini", "train", "--debug"], True),
        (["analyze", "mini", "--debug"], ["analyze", "mini"], True),
        ([], [], False),
    ],
)
def test_debug_stands_anywhere_but_in_another_command_line(words, left, found) -> None:
    assert _without_debug(words) == (left, found)


@pytest.mark.parametrize(
    ("shell", "code", "says"),
    [
        ("{} tasks | true; exit ${{PIPESTATUS[0]}}", 141, ""),
        ("{} tasks > /dev/full", 2, "prunebench: cannot read or write: No space left on device"),
        ("{} tasks >&-", 0, ""),
        ("{} tasks 2>&- >/dev/null", 0, ""),
        ("{} nothing 2>&-", 2, ""),
        ("{} nothing 2>/dev/full", 2, ""),
        ("{} nothing >&- 2>&-", 2, ""),
        ("{} tasks <&- >&- 2>&-", 0, ""),
        ("PYTHONIOENCODING=ascii {} show --sample $'\\u65e5\\udc80' --results results/reference", 2, "prunebench: "),
    ],
)
def test_standard_streams_that_are_full_closed_or_narrow(shell: str, code: int, says: str) -> None:
    done = subprocess.run(
        ["bash", "-c", shell.format(f"'{sys.executable}' -m prunebench")], cwd=TOP, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (code, bool(says)), done.stderr
    assert says in done.stderr
