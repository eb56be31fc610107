"""make hands each value to the program as typed, evaluates none of them, and reads no variable of the environment."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.main import get_command

from harness.cli import app
from harness.core.spelling import CALLER

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
#: every variable of every command, beside its option; "--" is an argument given by position
TAKES = {
    "eval": {
        "METHOD": "--method",
        "BUDGET": "--budget",
        "MODEL": "--model",
        "TASKS": "--tasks",
        "LIMIT": "--limit",
        "BATCH": "--batch",
        "WORKERS": "--workers",
        "SEED": "--seed",
        "DEVICE": "--device",
        "DTYPE": "--dtype",
        "DATA": "--data",
        "PROMPT": "--prompt",
        "IMAGE": "--image",
        "AS": "--as",
        "INCLUDE": "--include",
        "POSITIONS": "--positions",
        "SET": "--set",
        "RESULTS": "--results",
    },
    "sweep": {
        "SET": "--set",
        "LIMIT": "--limit",
        "BATCH": "--batch",
        "WORKERS": "--workers",
        "DEVICE": "--device",
        "RESULTS": "--results",
        "EXECUTOR": "--executor",
        "ADDRESS": "--address",
        "GPUS_PER_WORKER": "--gpus-per-worker",
        "CONFIG": "--",
    },
    "ablate": {
        "MODEL": "--model",
        "TASKS": "--tasks",
        "LIMIT": "--limit",
        "BATCH": "--batch",
        "DEVICE": "--device",
        "RESULTS": "--results",
        "CONFIG": "--",
    },
    "analyze": {
        "METHOD": "--method",
        "TASKS": "--tasks",
        "LIMIT": "--limit",
        "BATCH": "--batch",
        "DEVICE": "--device",
        "DATA": "--data",
        "CALIBRATION_DATA": "--calibration-data",
        "OUT": "--out",
        "MODEL": "--",
    },
    "cost": {
        "BUDGET": "--budget",
        "MODEL": "--model",
        "IMAGE": "--image",
        "SET": "--set",
        "NEW_TOKENS": "--new-tokens",
        "QUESTIONS": "--questions",
        "BATCH": "--batch",
        "SAVING": "--saving",
        "BANDWIDTH": "--bandwidth",
        "PEAK": "--peak",
        "RESULTS": "--results",
        "TIMES": "--times",
        "OUT": "--out",
        "METHOD": "--",
    },
    "goldens": {"DIR": "--"},
    "bench": {"MODEL": "--model", "DEVICE": "--device", "DTYPE": "--dtype"},
    "regress": {"BASELINE": "--baseline", "WORKERS": "--workers", "CONFIG": "--"},
    "baseline": {"BASELINE": "--baseline", "WORKERS": "--workers", "CONFIG": "--"},
    "leaderboard": {"FORMAT": "--format", "OUT": "--out", "RESULTS": "--results"},
    "report": {"SAMPLES": "--samples", "DATA": "--data", "OUT": "--out", "RESULTS": "--results"},
    "compare": {
        "TASKS": "--tasks",
        "MODEL": "--model",
        "RESULTS": "--results",
        "OUT": "--out",
        "PAGE": "--page",
        "SAMPLES": "--samples",
        "DATA": "--data",
    },
    "compare-models": {
        "TASKS": "--tasks",
        "PAIRS": "--pairs",
        "TOLERANCE": "--tolerance",
        "SEED": "--seed",
        "RESULTS": "--results",
        "OUT": "--out",
    },
    "show": {
        "SAMPLE": "--sample",
        "METHOD": "--method",
        "BUDGET": "--budget",
        "MODEL": "--model",
        "DATA": "--data",
        "OUT": "--out",
        "RESULTS": "--results",
    },
}
SWITCHES = {
    "cost": {"REQUEST": "--request"},
    "eval": {"CLAMP": "--clamp", "JUDGE": "--judge", "FOLLOW_UP": "--follow-up", "FRESH": "--fresh", "WIDE": "--wide"},
    "sweep": {"CLAMP": "--clamp", "FRESH": "--fresh", "DRY_RUN": "--dry-run", "WIDE": "--wide"},
}
HOSTILE = (
    "a'b",
    'a"b',
    "''",
    '"',
    "'\"'\"'",
    "$HOME",
    "$$",
    "$",
    "${HOME}",
    "$x",
    "$(METHOD)",
    "$(shell touch pwned)",
    "$(touch pwned)",
    "`touch pwned`",
    '";touch pwned;"',
    "';touch pwned;'",
    "x;touch pwned",
    "x|touch pwned",
    "x&touch pwned&",
    ">pwned",
    "x>pwned",
    "$(file >pwned,x)",
    "$(error x)",
    "#x",
    "a#b",
    r"a\#b",
    "a b",
    "a  b\tc ",
    "a\nb",
    "a\n",
    "a\n\ttouch pwned\n",
    "a\\\nb",
    "a\\",
    "\\",
    "\\\\'",
    "a\rb",
    "a\x0bb\x0c",
    "*",
    "~",
    "!x",
    "{a,b}",
    "=",
    "a=b",
    ":=x",
    "a,b",
    "64,128",
    "a=1 b=2",
    "-x",
    "--help",
    "--",
    "@x",
    "+x",
    "%",
    "a%b",
    "(",
    ")",
    "$(",
    "${",
    "$(call quote,x)",
    "$(value SET",
    "é ü",
    "日本語",
    "\x01\x7f",
    "x" * 5000,
)
COMPOUND = "a'\"$x`touch pwned`$(shell touch pwned);#\\\n b"


class Bench:
    """A folder with a copy of the Makefile, and a program in place of prunebench that records its arguments."""

    def __init__(self, folder: Path, makefile: str = MAKEFILE) -> None:
        self.folder, self.record = folder / "copy", folder / "record"
        (self.folder / ".venv" / "bin").mkdir(parents=True)
        (self.folder / "Makefile").write_text(makefile)
        self.program(".venv/bin/prunebench")
        self.program("python")
        for file in ("pyproject.toml", "constraints.txt"):
            (self.folder / file).touch()
            os.utime(self.folder / file, (1, 1))
        (self.folder / ".venv" / ".installed").touch()
        self.files = self.listing()

    def program(self, name: str) -> None:
        file = self.folder / name
        file.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" >> '{self.record}'\nenv > '{self.record}.env'\n")
        file.chmod(0o755)

    def listing(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}

    def make(self, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        self.record.unlink(missing_ok=True)
        outer = {
            k: v
            for k, v in os.environ.items()
            if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "GNUMAKEFLAGS")
        }
        return subprocess.run(
            ["make", *words],
            cwd=self.folder,
            env={**outer, **(env or {})},
            capture_output=True,
            text=True,
            errors="replace",
        )

    def argv(self, *words: str, env: dict[str, str] | None = None) -> list[str]:
        """What the program gets from `make *words`. Raises AssertionError if make fails or any file comes to be."""
        done = self.make(*words, env=env)
        assert done.returncode == 0, done.stderr
        assert self.listing() == self.files, self.listing() - self.files
        return self.record.read_bytes().decode().split("\0")[:-1]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("make"))


def typed(values: dict[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in values.items()]


def options(argv: list[str]) -> dict[str, str]:
    """`["--a", "1", "--", "2"]` -> {"--a": "1", "--": "2"}."""
    return dict(zip(argv[::2], argv[1::2], strict=True))


def arrive(bench: Bench, command: str, values: dict[str, str]) -> None:
    """Raises AssertionError unless each value stands beside its option, as typed and unevaluated."""
    name, *rest = (word for word in bench.argv(command, *typed(values)) if word != "--write-config")
    assert name == command
    assert options(rest) == {TAKES[command][variable]: value for variable, value in values.items()}


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_a_value_arrives_as_typed(bench: Bench, value: str) -> None:
    arrive(bench, "eval", {variable: value + variable * (variable != "METHOD") for variable in TAKES["eval"]})


@pytest.mark.parametrize("command", TAKES)
def test_each_variable_of_each_command_arrives_as_typed(bench: Bench, command: str) -> None:
    arrive(bench, command, {variable: COMPOUND + variable for variable in TAKES[command]})


VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.fixed_dictionaries(dict.fromkeys(TAKES["eval"], VALUES)))
def test_any_text_arrives_as_typed_but_for_white_space_before_it(bench: Bench, values: dict[str, str]) -> None:
    name, *rest = bench.argv("eval", *typed(values))
    kept = {variable: value.lstrip(" \t\n\r\v\f") for variable, value in values.items()}
    expected = {"--method": "visipruner"} | {
        TAKES["eval"][variable]: value for variable, value in kept.items() if value
    }
    assert [name, options(rest)] == ["eval", expected]


@pytest.mark.parametrize("value", ["$(shell touch pwned)", "`touch pwned`", "$HOME", 'a"b'])
def test_a_recipe_that_pastes_the_value_fails_this_test(tmp_path: Path, value: str) -> None:
    pasted = MAKEFILE.replace("@$(RUN) $@ $($@.also) $(arguments)", '@$(RUN) eval --method "$(METHOD)"')
    assert pasted != MAKEFILE
    arrive(Bench(tmp_path / "plain", pasted), "eval", {"METHOD": "fastv"})
    with pytest.raises(AssertionError):
        arrive(Bench(tmp_path / "hostile", pasted), "eval", {"METHOD": value})


def test_the_command_is_told_that_make_calls_it_and_the_tests_are_not(bench: Bench) -> None:
    bench.argv("eval")
    assert f"{CALLER}=make\n" in Path(f"{bench.record}.env").read_text()
    bench.argv("mini-data")
    assert CALLER not in Path(f"{bench.record}.env").read_text()


@pytest.mark.parametrize("gone", ["unexport $(given)\n", "MAKEOVERRIDES :=\n"])
def test_a_makefile_that_exports_the_values_is_noticed(tmp_path: Path, gone: str) -> None:
    assert gone in MAKEFILE
    sound, spoilt = Bench(tmp_path / "sound"), Bench(tmp_path / "spoilt", MAKEFILE.replace(gone, ""))
    words = ("eval", "METHOD=unheard-of")
    for bench, seen in ((sound, False), (spoilt, True)):
        bench.argv(*words)
        assert ("unheard-of" in Path(f"{bench.record}.env").read_text()) == seen


def test_bench_gets_words_and_the_shell_reads_none_of_them(bench: Bench) -> None:
    assert bench.argv("bench", "BENCH=--batch 1  `touch pwned`\n$HOME \"a b\" ';'") == [
        "bench",
        "--batch",
        "1",
        "`touch",
        "pwned`",
        "$HOME",
        '"a',
        'b"',
        "';'",
    ]


@pytest.mark.parametrize(
    ("value", "on"), [("1", True), ("yes", True), ("$(shell touch pwned)", True), ("0", False), ("", False)]
)
def test_switches(bench: Bench, value: str, on: bool) -> None:
    for command, switches in SWITCHES.items():
        for variable, option in switches.items():
            assert (option in bench.argv(command, f"{variable}={value}")) == on


def test_empty_values_count_as_not_given_and_defaults_hold(bench: Bench) -> None:
    defaults = {
        "cost": ["--", "visipruner"],
        "eval": ["--method", "visipruner"],
        "sweep": ["--", "configs/mini.yaml"],
        "show": ["--method", "visipruner"],
    }
    for command, takes in TAKES.items():
        expected = defaults.get(command, []) if command != "analyze" else ["--write-config", "--", "mini"]
        assert bench.argv(command) == [command, *expected]
        assert bench.argv(command, *typed(dict.fromkeys(takes, ""))) == [command, *expected]


@pytest.mark.parametrize(
    ("words", "writes"),
    [
        (["MODEL=mini"], True),
        (["MODEL=mini-qwen"], True),
        (["MODEL=qwen"], False),
        (["MODEL=copied mini"], False),
        (["MODEL=x"], False),
        (["MODEL=x", "CALIBRATION_DATA=a b"], True),
    ],
)
def test_analyze_writes_the_config_of_a_model_that_has_calibration_data(
    bench: Bench, words: list[str], writes: bool
) -> None:
    assert ("--write-config" in bench.argv("analyze", *words)) == writes


def test_both_embedded_models_are_rebuilt(bench: Bench) -> None:
    data = ["dev", "mini", "data", "dev", "mini", "data", "--model", "mini-qwen"]
    folder = "results/local/mini-training"
    train = ["dev", "mini", "train", "--out", folder, "dev", "mini", "export", folder]
    assert bench.argv("mini-data") == data
    assert bench.argv("mini") == [*data, *train, "dev", "mini", "clip"]
    for name in ("mini-qwen", "$HOME 'x'"):
        folder = f"results/local/{name}-training"
        train = ["dev", "mini", "train", "--model", name, "--out", folder]
        assert bench.argv("mini", f"MODEL={name}") == [*data, *train, "dev", "mini", "export", "--model", name, folder]


def test_the_environment_does_not_count(bench: Bench) -> None:
    everything = {variable for takes in (*TAKES.values(), *SWITCHES.values()) for variable in takes} | {
        "BENCH",
        "PYTHON",
    }
    env = dict.fromkeys(everything, "$(shell touch pwned)`touch pwned`") | {"BASH_FUNC_x%%": "() { :\n}"}
    for command in TAKES:
        for flags in ((), ("-e",)):
            assert bench.argv(command, *flags, env=env) == bench.argv(command)
    assert bench.argv("eval", "BUDGET=64", env=env) == ["eval", "--method", "visipruner", "--budget", "64"]


@pytest.mark.parametrize("value", [value for value in HOSTILE if len(value) < 100], ids=range(len(HOSTILE) - 1))
def test_no_value_of_the_environment_counts_or_runs(bench: Bench, value: str) -> None:
    names = [*TAKES["eval"], *SWITCHES["eval"], "CONFIG", "OUT", "WORKERS", "SAMPLE", "DIR", "BASELINE", "BENCH", "RUN"]
    assert bench.argv("eval", "BUDGET=64", env=dict.fromkeys(names, value)) == [
        "eval",
        "--method",
        "visipruner",
        "--budget",
        "64",
    ]


def test_what_a_parent_make_was_told_counts_as_typed(bench: Bench) -> None:
    value = "a'\"$x;#\\ b"  # a parent may evaluate it
    (bench.folder.parent / "parent.mk").write_text(
        f"all:\n\t@$(MAKE) --no-print-directory -C '{bench.folder}' eval SEED=3\n"
    )
    assert options(bench.argv("-f", "../parent.mk", f"METHOD={value}")[1:]) == {"--method": value, "--seed": "3"}


@pytest.mark.parametrize("value", ["python3.12", COMPOUND])
def test_the_python_of_a_new_environment_is_one_word(tmp_path: Path, value: str) -> None:
    bench = Bench(tmp_path)
    (bench.folder / ".venv" / ".installed").unlink()
    bench.program(f"./{value}")
    bench.files = bench.listing()
    assert bench.argv("venv", f"PYTHON=./{value}") == ["harness/install/bootstrap.py", ".venv"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["eval", "BUGDET=64"], "`make eval` does not take BUGDET, it takes AS BATCH BUDGET CLAMP DATA"),
        (["eval", "-j", "BUGDET=64", "TASKS=x"], "does not take BUGDET,"),
        (["methods", "LIMIT=3"], "`make methods` does not take LIMIT, it takes METHOD PYTHON."),
        (["LIMIT=3"], "`make help` does not take LIMIT"),
        (["test", "RUN=$(shell touch pwned)"], "`make test` does not take RUN"),
        (["eval", "VENV=$(shell touch pwned)"], "`make eval` does not take VENV"),
        (["ablate", "FILE=x"], "FILE is called CONFIG in every target: `make ablate CONFIG=...`"),
        (["regress", "GATE=x"], "GATE is called CONFIG in every target: `make regress CONFIG=...`"),
        (["eval", "DATA=/my", "data"], "no target data: `make help` lists them; a value with blanks needs quotes"),
        (["eval", "MODEL=/copied", "mini"], "`make mini` overwrites the shipped weights: call it alone"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_runs(bench: Bench, words: list[str], says: str) -> None:
    done = bench.make(*words)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not bench.record.exists()
    assert bench.listing() == bench.files


def test_several_goals_take_the_variables_of_all(bench: Bench) -> None:
    assert bench.argv("sweep", "leaderboard", "RESULTS=a b", "LIMIT=3") == [
        "sweep",
        "--limit",
        "3",
        "--results",
        "a b",
        "--",
        "configs/mini.yaml",
        "leaderboard",
        "--results",
        "a b",
    ]


def test_compare_takes_several_sides_and_two_folders(bench: Bench) -> None:
    assert bench.argv("compare", "METHODS=fastv@64 random@64:boundary=2,seed=1 $HOME", "RESULTS=a b", "RESULTS2=c") == [
        "compare",
        "--results",
        "a b",
        "--results",
        "c",
        "fastv@64",
        "random@64:boundary=2,seed=1",
        "$HOME",
    ]


def test_compare_models_takes_two_models(bench: Bench) -> None:
    assert bench.argv("compare-models", "MODELS=mini mini-qwen:dtype=bfloat16", "PAIRS=128=25%,64=12%") == [
        "compare-models",
        "--pairs",
        "128=25%,64=12%",
        "mini",
        "mini-qwen:dtype=bfloat16",
    ]


def test_a_dry_run_of_make_runs_nothing(bench: Bench) -> None:
    done = bench.make("-n", "eval", "METHOD=$(shell touch pwned)")
    assert "prunebench eval" in done.stdout
    assert not bench.record.exists()
    assert bench.listing() == bench.files


def test_the_help_names_variables_that_the_command_takes(bench: Bench) -> None:
    listed = bench.make().stdout.splitlines()
    assert {line.split()[1] for line in listed} == set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.M)) > set(TAKES)
    for line in listed:
        command = line.split()[1]
        named = set(re.findall(r"([A-Z_]+)=", line))
        own = {
            "bench": {"BENCH"},
            "compare": {"METHODS"},
            "compare-models": {"MODELS"},
            "venv": {"LOCKED"},
            "gpu-check": {"OUT", "DEVICE", "WHEELS"},
            "methods": {"METHOD"},
            "mini": {"MODEL"},
        }.get(command, set())
        assert named <= TAKES.get(command, {}).keys() | SWITCHES.get(command, {}).keys() | own, line


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_the_gpu_check_gets_its_values_as_typed(bench: Bench, value: str) -> None:
    """By the first Python that has torch, which the recorder says of itself twice: when it is asked, and when it
    runs."""
    argv = bench.argv("gpu-check", "PYTHON=./python", f"OUT=o{value}", "DEVICE=cpu", "WHEELS=1")
    assert argv[0] == "-c"
    assert argv[2:] == ["-m", "harness.gpu_check", "--out", f"o{value}", "--device", "cpu", "--wheels"]


def test_the_program_knows_every_option() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for command, takes in TAKES.items():
        known = {option for parameter in commands[command].params for option in parameter.opts}
        by_position = [parameter for parameter in commands[command].params if parameter.param_type_name == "argument"]
        asked = set(takes.values()) | set(SWITCHES.get(command, {}).values())
        assert asked - {"--"} <= known
        # METHODS of compare and MODELS of compare-models are given by position too, and are no one value
        assert len(by_position) == ("--" in asked or command in ("compare", "compare-models"))
