"""`prunebench analyze --method vtw` and `--method fitprune`: what the command writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from harness.cli.main import app
from harness.core.errors import PrunebenchError
from harness.method import registered

FEW = ("analyze", "mini", "--tasks", "mme", "--limit", "4")


def asked(out: Path, *words: str) -> Result:
    return CliRunner().invoke(app, [*FEW, "--out", str(out), *words])


@pytest.mark.parametrize(
    ("method", "words", "file", "says"),
    [
        ("vtw", ("--eta", "100"), "vtw.yaml", "at most 100 nats"),
        ("fitprune", ("--ratio", "0.3"), "fitprune.yaml", "save 30 % of the FLOPs"),
    ],
)
def test_knobs_are_written_with_what_they_were_derived_from(
    tmp_path: Path, method: str, words: tuple[str, ...], file: str, says: str
) -> None:
    done = asked(tmp_path, "--method", method, *words)
    assert done.exit_code == 0, done.output
    written: dict[str, Any] = yaml.safe_load((tmp_path / file).read_text())
    assert says in written["derived_by"]
    assert "weights" in written["derived_by"]
    document = json.loads((tmp_path / f"{method}.json").read_text())
    assert document["knobs"] == written["knobs"]
    knobs = {name: tuple(v) if isinstance(v, list) else v for name, v in written["knobs"].items()}
    assert registered()[method](**knobs).knobs().items() >= knobs.items()


def test_a_bound_that_no_layer_meets_leaves_the_measurements_and_no_config(tmp_path: Path) -> None:
    done = asked(tmp_path, "--method", "vtw", "--eta", "1e-9")
    assert isinstance(done.exception, PrunebenchError)
    assert "give a larger --eta" in str(done.exception)
    assert json.loads((tmp_path / "vtw.json").read_text())["divergence"]
    assert not (tmp_path / "vtw.yaml").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--method", "fastv"), "visipruner"),
        (("--method", "vtw", "--eta", "0"), "above 0"),
        (("--method", "fitprune", "--ratio", "1"), "between 0 and 1"),
        (("--method", "fitprune", "--eta", "0.1"), "--eta"),
        (("--method", "vtw", "--ratio", "0.1"), "--ratio"),
        (("--method", "vtw", "--layers", "1-2"), "--layers"),
    ],
)
def test_what_a_rule_does_not_take_is_refused(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    done = asked(tmp_path, *words)
    assert isinstance(done.exception, PrunebenchError), done.output
    assert says in str(done.exception)
    assert "\n" not in str(done.exception)
