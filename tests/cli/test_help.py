"""The command line before any work: help, names, versions, wrong words, and how fast the first line is there."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from helpers import run
from rich.text import Text
from sentences import of_help
from typer.main import get_command

from harness.cli import app, options
from harness.cli.main import COMMANDS, DEV, PASSING_ON, RESULTS
from harness.core.paths import TOP as REPOSITORY
from harness.core.spelling import CALLER, command, from_a_terminal, given


def test_the_help_has_one_sentence_and_every_command_in_its_group(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERMINAL_WIDTH", "100")
    code, out, _ = run(capsys, monkeypatch, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    groups = dict(re.findall(r"╭─ (.+?) ─+╮\n(.*?)╰", out, re.S))
    for group, commands in COMMANDS.items():
        listed = re.findall(r"^│ ([a-z-]+) +[^ ]", groups[group], re.M)
        assert set(commands) <= set(listed), group
    assert "--version" in groups["Options"]
    assert "--install-completion" in groups["Options"]
    assert "…" not in out, "no line is cut"
    assert "<bool>" not in out, "a switch takes no value"


def test_each_command_has_a_help(capsys, monkeypatch) -> None:
    names = [(name,) for commands in COMMANDS.values() for name in commands if name not in PASSING_ON]
    names += [("dev", name) for name in DEV if name not in PASSING_ON] + [("results", name) for name in RESULTS]
    for words in names:
        code, out, err = run(capsys, monkeypatch, *words, "--help")
        assert (code, err) == (0, ""), words
        assert f"prunebench {' '.join(words)}" in out
        assert "<bool>" not in out, "a switch takes no value"


def test_no_argument_is_the_help_and_exit_code_2(capsys, monkeypatch) -> None:
    for words in ((), ("results",), ("dev",)):
        code, out, _ = run(capsys, monkeypatch, *words)
        assert code == 2
        assert "Usage: prunebench" in out


def test_no_argument_names_three_commands_to_start_with(capsys, monkeypatch) -> None:
    """At 80 columns each stands on a line of its own, and each is a command that runs as it is typed."""
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 80)
    _, out, _ = run(capsys, monkeypatch)
    (start,) = re.findall(r"start with:\s*\n\s*\n(.*?)\n\s*\n", out, re.S)
    found = [line.strip().split("  ")[0] for line in start.splitlines()]
    assert found == ["prunebench eval --method visipruner --budget 64", "prunebench methods", "prunebench report"]
    for line in found:
        words = line.split()
        options = {option for p in get_command(app).commands[words[1]].params for option in p.opts}  # type: ignore[attr-defined]
        assert {word for word in words if word.startswith("--")} <= options


def test_the_help_of_each_command_says_what_it_gives_on_one_line(capsys, monkeypatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 110)
    groups = {(): [name for commands in COMMANDS.values() for name in commands], ("results",): list(RESULTS)}
    for words, names in groups.items():
        _, out, _ = run(capsys, monkeypatch, *words, "--help")
        for name in names:
            (said,) = re.findall(rf"^│ {name} +(.*?) +│$", out, re.M)
            assert said.endswith("."), f"{name}: {said}"


def test_every_option_has_a_help_that_is_shown_whole() -> None:
    """Words in square brackets are tags of the one who prints, who leaves unknown tags away."""
    texts = dict(of_help(get_command(app)))
    bare = [name for name, text in texts.items() if not text.strip()]
    assert not bare, bare
    hidden = [name for name, text in texts.items() if Text.from_markup(text).plain != text]
    assert not hidden, hidden


def test_version(capsys, monkeypatch) -> None:
    assert run(capsys, monkeypatch, "--version") == (0, f"prunebench {metadata.version('prunebench')}\n", "")


WRONG = {
    "command": (("evla",), "unknown command 'evla'; did you mean 'eval'?"),
    "command of a group": (("results", "lst"), "unknown command of results 'lst'; did you mean 'list'?"),
    "option": (("eval", "--methd", "fastv"), "eval: unknown option '--methd'; did you mean '--method'?"),
    "option of the command itself": (("--foo",), "unknown option '--foo'"),
    "missing option": (("eval",), "eval: expected --method, found none (a name from `prunebench methods`"),
    "missing argument": (("sweep",), "sweep: expected CONFIG, found none"),
    "missing method": (("cost",), "cost: expected METHOD, found none"),
    "missing value": (("eval", "--method"), "--method: expected a value, found none"),
    "value of a switch": (("eval", "--method", "fastv", "--fresh=1"), "--fresh: expected no value, found one"),
    "surplus argument": (("eval", "fastv", "--method", "x"), "eval: expected nothing more, found 'fastv'"),
    "no number": (("eval", "--method", "fastv", "--batch", "x"), "--batch x: expected a whole number"),
    "batch": (("sweep", "x.yaml", "--batch", "0"), "--batch 0: expected a whole number of at least 1"),
    "workers": (("sweep", "x.yaml", "--workers", "-1"), "--workers -1: expected a whole number of at least 1"),
    "layers": (("bench", "--layers", "0"), "--layers 0: expected a whole number of at least 1"),
    "knob": (("eval", "--method", "fastv", "--set", "boundary"), "--set boundary: expected knob=value"),
    "check": (("check",), "expected one METHOD"),
    "mutations": (("mutations",), "mutations: the command has moved: type prunebench dev mutations"),
    "readme": (("readme",), "type prunebench dev readme"),
    "published": (("published", "x.csv"), "type prunebench dev published"),
    "mini": (("mini", "data"), "type prunebench dev mini"),
    "part": (("dev", "mini", "dta"), "mini 'dta': expected data, train, export or clip"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_words_are_answered_with_one_line(case: str, capsys, monkeypatch) -> None:
    words, says = WRONG[case]
    code, out, err = run(capsys, monkeypatch, *words)
    assert (code, out) == (2, "")
    assert err.startswith("prunebench: ")
    assert says in err
    assert err.count("\n") == 1, "no box and no second line"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("sweep", "configs/mini.yaml", "--batch", "0"), "BATCH=0: expected a whole number"),
        (("eval", "--method", "fastv", "--budget", "64", "--limit", "some"), "LIMIT=some: expected a number"),
        (("eval", "--method", "fastv", "--budget", "64", "--seed", "x"), "SEED=x: expected a whole number"),
        (("eval", "--method", "fastv"), "fastv needs a budget, as in BUDGET=64"),
        (("ablate",), "ablate: expected CONFIG, found none"),
        (("sweep", "configs/ablations/visipruner_table5.yaml"), "an ablation: use `make ablate CONFIG=configs/"),
    ],
)
def test_make_is_answered_in_its_own_words(words: tuple[str, ...], says: str, capsys, monkeypatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv(CALLER, "make")
    code, _, err = run(capsys, monkeypatch, *words)
    assert code == 2
    assert says in err


def test_a_sweep_and_an_ablation_are_not_mixed_up(capsys, monkeypatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    _, _, err = run(capsys, monkeypatch, "ablate", "configs/mini.yaml")
    assert "configs/mini.yaml: this is a sweep: use `prunebench sweep configs/mini.yaml`" in err
    _, _, err = run(capsys, monkeypatch, "sweep", "configs/ablations/visipruner_table3.yaml")
    assert "this is an ablation: use `prunebench ablate configs/ablations/visipruner_table3.yaml`" in err


def test_a_value_is_spelt_as_its_caller_types_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CALLER, raising=False)
    assert (given("budget", 64), given("seed", "x"), given("fresh", True), given("limit")) == (
        *("budget=64", "seed='x'", "fresh=True", "limit"),
    )
    with from_a_terminal():
        assert (given("budget", 64), given("seed", "a b"), given("fresh", True), given("limit")) == (
            *("--budget 64", "--seed 'a b'", "--fresh", "--limit"),
        )
        assert given("calibration_data", "hub") == "--calibration-data hub"
        assert (
            command("eval", method="fastv", budget=None, results="a b")
            == "prunebench eval --method fastv --results 'a b'"
        )
        assert command("sweep", config="a.yaml") == "prunebench sweep a.yaml"
    assert given("budget", 64) == "budget=64", "as before"
    monkeypatch.setenv(CALLER, "make")
    with from_a_terminal():
        assert (given("budget", 64), given("set", "a=1"), given("fresh", True), given("limit")) == (
            *("BUDGET=64", "SET='a=1'", "FRESH=1", "LIMIT"),
        )
        assert command("sweep", config="a.yaml") == "make sweep CONFIG=a.yaml"


def test_models_and_tasks_are_listed(capsys, monkeypatch) -> None:
    code, out, _ = run(capsys, monkeypatch, "models")
    assert code == 0
    assert re.search(r"llava-1.5-7b +llava-hf/llava-1.5-7b-hf +32 +576 +none", out)
    assert re.search(r"mini +shipped, tasks/mini/weights +12 +576 +fitprune scheme=", out)
    assert {"fitprune", "visipruner", "vtw"} <= {*re.findall(r"\w+", out)}
    assert "LlavaForConditionalGeneration" in out
    code, out, _ = run(capsys, monkeypatch, "tasks")
    assert code == 0
    assert re.search(r"pope +pope_accuracy +450 +lmms-lab-encoder/POPE \(test\) +yes", out)
    assert re.search(r"textvqa_ocr .* no$", out, re.M)


def test_names_are_completed_behind_commas(capsys, monkeypatch) -> None:
    from harness.method import registered

    assert set(options.complete_method("")) == {
        name for name, cls in registered().items() if cls.__module__.startswith("methods.")
    }
    assert options.complete_method("none,spar") == ["none,sparsevlm"]
    assert options.complete_task("gqa,textvqa") == ["gqa,textvqa", "gqa,textvqa_ocr"]
    assert options.complete_task("gqa,mmst")[0] == "gqa,mmstar"
    assert options.complete_model("llava-1.5-1") == ["llava-1.5-13b"]
    monkeypatch.setenv("_PRUNEBENCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "prunebench eval --method fastv")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert run(capsys, monkeypatch, "")[1].split() == ["fastv"]


def test_one_line_is_there_before_anything_heavy_is_imported() -> None:
    heavy = "'torch', 'transformers', 'lmms_eval', 'pandas', 'pydantic', 'matplotlib'"
    code = (
        "import sys\nfrom harness.cli import app, run\n"
        f"run.loading = lambda: sys.exit(str([m for m in ({heavy}) if m in sys.modules]))\n"
        "app(['sweep', 'configs/mini.yaml'], standalone_mode=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stderr.strip() in ("[]", "['pydantic']"), done.stderr
    started = subprocess.Popen(
        [sys.executable, "-m", "harness.cli", "sweep", "nothing.yaml"],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    _, err = started.communicate()
    assert err.splitlines()[0] == "loading torch, transformers and lmms-eval ..."
    assert err.splitlines()[1].startswith("prunebench: expected a sweep as YAML at nothing.yaml")
    assert started.returncode == 2


def test_every_command_that_the_exit_codes_name_exists() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    text = (Path(REPOSITORY) / "docs" / "exit-codes.md").read_text()
    for row in re.findall(r"^\|.*\| (.*) \|$", text, re.M):
        for name in re.findall(r"`([a-z -]+)`", row):
            first, _, second = name.partition(" ")
            assert first == "prunebench" or first in commands, name
            assert not second or second in commands[first].commands, name
