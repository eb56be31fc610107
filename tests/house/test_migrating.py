"""A method written for prunebench 0.1 gets one line that says what to change, from `check` and from `eval`."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import run as prunebench

from harness.core.shape import SHAPES

HEAD = """
from dataclasses import dataclass
import torch
from harness.method import Method, Reduction, Traits


@dataclass(frozen=True)
class Old(Method):
    name = "old"
    traits = Traits(query_aware=False)
    keep: int
"""
PLAN = """
    def plan(self, shape, n_text):
        return [self.keep] * shape.depth
"""
SCORING = """
    def plan(self, prompt):
        return [self.keep] * prompt.depth

    def plan_scoring(self, shape, n_text, visual):
        return 0
"""
PLAN_WITH = """
    def plan(self, prompt):
        return None

    def plan_with(self, shape, n_text, fusion_layer, exit_layer):
        return [self.keep] * shape.depth
"""
HOOK = """
    def at_boundary(self, run, layer, stream):
        if layer:
            return None
        return Reduction(torch.arange(run.shape.n_visual).expand(run.visual_valid.shape) < self.keep)
"""
SAYS = {
    "plan": (
        PLAN,
        ("expected plan(self, prompt), found plan(self, shape, n_text) as in prunebench 0.1", "prompt.n_visual"),
    ),
    "plan_scoring": (
        SCORING,
        (
            (
                "expected plan_scoring(self, prompt, visual), found plan_scoring(self, shape, n_text, visual) as in"
                " prunebench 0.1"
            ),
            "prompt.decoder",
        ),
    ),
    "plan_with": (PLAN_WITH, ("found plan_with as in prunebench 0.1", "choices(self, shape)", "plan(self, prompt)")),
}


@pytest.mark.parametrize("command", ["check", "eval"])
@pytest.mark.parametrize("hook", SAYS)
def test_a_class_of_0_1_gets_one_line(
    hook: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    body, says = SAYS[hook]
    code, out, err = ask(command, body, tmp_path, capsys, monkeypatch)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1, err
    for part in ("Old", *says, "docs/migrating.md"):
        assert part in err


@pytest.mark.parametrize("command", ["check", "eval"])
def test_a_hook_that_asks_the_decoder_for_visual_tokens_is_told_whom_to_ask(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = ask(command, HOOK, tmp_path, capsys, monkeypatch)
    said = out if command == "check" else err
    assert code == (1 if command == "check" else 2), said
    lines = [line for line in said.splitlines() if "docs/migrating.md" in line]
    assert lines
    for line in lines:
        for part in (
            "old at boundary 0",
            "a decoder has no n_visual since prunebench 0.2: ask the prompt",
            "(mine.py, line 16)",
        ):
            assert part in line


def test_a_decoder_has_no_visual_tokens_and_says_who_has() -> None:
    decoder = SHAPES["llava-1.5-7b"].decoder
    for name in ("n_visual", "vision"):
        with pytest.raises(
            AttributeError,
            match=rf"a decoder has no {name} since prunebench 0\.2: ask the prompt .* see docs/migrating\.md",
        ):
            getattr(decoder, name)
    with pytest.raises(AttributeError, match="'ModelShape' object has no attribute 'widht'"):
        getattr(decoder, "widht")  # noqa: B009


def test_the_same_classes_pass_once_they_are_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mended = HOOK.replace("run.shape.n_visual", "run.visual_valid.shape[1]") + PLAN.replace(
        "shape, n_text", "prompt"
    ).replace("shape", "prompt")
    code, out, err = ask("check", mended, tmp_path, capsys, monkeypatch)
    assert code == 0, out + err


def ask(
    command: str, body: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    file = tmp_path / "mine.py"
    file.write_text(HEAD + body)
    spec = f"{file}:Old"
    if command == "check":
        return prunebench(capsys, monkeypatch, "check", spec)
    options = (
        "--budget",
        "32",
        "--model",
        "mini",
        "--tasks",
        "pope",
        "--limit",
        "2",
        "--results",
        str(tmp_path / "results"),
    )
    return prunebench(capsys, monkeypatch, "eval", "--method", spec, *options)
