"""Commands are rendered from structure and come back whole: through a shell's own rules, and as the same cells."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from factories import asked
from hypothesis import given as given_
from hypothesis import strategies as st

from harness.analysis.study import AnalysisRequest, _command
from harness.bench import settings
from harness.cli.options import pairs
from harness.core.asked import Asked
from harness.core.command import evaluation, rendered
from harness.core.errors import PrunebenchError
from harness.proof.gate.command import BASELINE, CONFIG
from harness.proof.gate.command import _command as gate_command

HOSTILE = [
    "/data/my data",
    "it's",
    'say "hi"',
    "$HOME/x",
    "`id`",
    "a;b",
    "a\nb",
    "a#b  # code 1",
    "a=b c",
    "-n",
    "\\",
    "é",
]


def parts(command: str) -> list[str]:
    return shlex.split(command, comments=True)


@pytest.mark.parametrize("value", HOSTILE)
def test_every_value_comes_back_as_it_was(value: str) -> None:
    made = Asked(
        **asked(method=f"{value}.py:Mine", budget=value, model=value, task=value, limit=value, data=value, dtype=value)
    )
    words = dict(part.partition("=")[::2] for part in parts(evaluation(made, fresh=True, source="abc"))[2:])
    assert words == {
        "METHOD": f"{value}.py:Mine",
        "BUDGET": value,
        "MODEL": value,
        "TASKS": value,
        "LIMIT": value,
        "DATA": value,
        "DTYPE": value,
        "DEVICE": "cpu",
        "FRESH": "1",
    }


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30)
WORDS = TEXTS.map(lambda text: "".join(text.split()).replace(",", "").replace("=", "")).filter(
    lambda text: text and text.lower() != "none"
)


@given_(
    st.fixed_dictionaries(dict.fromkeys(("method", "budget", "model", "limit", "data", "dtype"), TEXTS)),
    st.dictionaries(WORDS, WORDS | st.integers(0, 99) | st.booleans(), max_size=3),
)
def test_any_request_comes_back_through_a_shell(values: dict[str, str], knobs: dict[str, Any]) -> None:
    made = Asked(**asked(**values, knobs=knobs))
    words = dict(part.partition("=")[::2] for part in parts(evaluation(made, source="abc"))[2:])
    names = {"method": "METHOD", "budget": "BUDGET", "model": "MODEL", "limit": "LIMIT", "data": "DATA"}
    assert {words[variable] for variable in words} >= {values[name] for name in names}
    assert all(words[variable] == values[name] for name, variable in names.items())
    assert pairs([words["SET"]] if knobs else []) == {name: str(value) for name, value in knobs.items()}


@pytest.mark.parametrize("value", HOSTILE)
def test_the_commands_of_analyses_benchmarks_and_the_gate_come_back_too(value: str) -> None:
    analysis = _command(AnalysisRequest(model=value, data=value, limit="3", config=Path("c.yaml")))
    assert parts(analysis) == ["prunebench", "analyze", value, "--limit", "3", "--data", value, "--write-config"]
    name, word = f"{value.replace('=', '')}.py:Mine", "".join(value.split())
    timed = parts(settings.Settings(model=value, methods=(name,), knobs={name: {"knob": word}}).command())
    assert timed == ["prunebench", "bench", "--model", value, "--methods", name, "--set", f"{name}.knob={word}"]
    assert settings.knobs_by_method(timed[-1:]) == {name: {"knob": word}}
    assert parts(gate_command("baseline", Path(value), BASELINE)) == ["make", "baseline", f"CONFIG={Path(value)}"]
    assert gate_command("regress", CONFIG, BASELINE) == "make regress"


def test_nothing_is_said_that_was_not_asked() -> None:
    made = Asked(**asked(seed=3, knobs={"boundary": "3", "stages": [1, 2]}, positions="compact"))
    rest = "SET='boundary=3 stages=1,2' SEED=3 POSITIONS=compact DEVICE=cpu"
    assert evaluation(made) == f"make eval METHOD=fastv BUDGET=64 MODEL=mini TASKS=pope {rest}"
    assert (
        evaluation(made.unpruned(), tasks=["gqa", "mme"]) == "make eval METHOD=none MODEL=mini TASKS=gqa,mme DEVICE=cpu"
    )
    assert evaluation(Asked(**asked()), source="0123").endswith(" DEVICE=cpu  # code 0123")
    assert rendered(["make", "x"], {"A": None, "B": ""}) == "make x"


def test_what_a_cell_was_asked_is_read_as_it_was_written() -> None:
    made = Asked(**asked(knobs={"stages": (1, 2)}, data="my data"))
    assert Asked.from_dict(made.to_dict()) == made
    assert made.knobs == {"stages": [1, 2]}
    for broken in (None, {}, asked(more=1), asked(seed=True), asked(method=None), asked(knobs=[])):
        with pytest.raises(PrunebenchError, match="a request as sealed"):
            Asked.from_dict(broken)
    with pytest.raises(PrunebenchError, match="not plain JSON"):
        Asked(**asked(knobs={"a": object()}))
