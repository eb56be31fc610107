"""Mistakes that Qwen-VL invites, seeded one by one: each is caught by the tests of these families."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import test_qwens as held
from qwens import ROWS

from harness.core.errors import PrunebenchError
from harness.proof.faults import Fault, seeded
from harness.proof.golden_families import compare, method_of, prepared, replay
from harness.proof.golden_files import read_case
from harness.proof.goldens import CPU

FOLDER = Path(__file__).parents[1] / "goldens-families"
ADAPTERS = "harness.models.adapters"


def recorded(name: str) -> Callable[[], None]:
    def check() -> None:
        case = read_case(FOLDER, f"cases/hiprune/{name}.json")
        given = prepared(FOLDER, case, CPU)
        assert compare(case, replay(case, given, method_of(case, given))).mismatch is None

    return check


def unpruned(family: str) -> Callable[[], None]:
    return lambda: held.test_unpruned_is_the_bare_model(family, ROWS[1:2])


def by_hand(family: str, boundary: int) -> Callable[[], None]:
    return lambda: held.test_pruned_is_a_forward_over_the_kept_tokens(family, boundary)


class Mistake(NamedTuple):
    """A piece of a function, what it becomes, and the test that sees it."""

    where: str
    old: str
    new: str
    check: Callable[[], None]


MISTAKES = {
    "DeepStack of another row": Mistake(
        "harness.engine.layout:TokenLayout.with_features",
        "(counts.cumsum(0) - counts)[:, None]",
        "(0 * counts)[:, None]",
        lambda: held.test_a_batch_is_its_rows("qwen3_vl", "none"),
    ),
    "DeepStack by place instead of token": Mistake(
        "harness.engine.layout:TokenLayout.with_features",
        "self.origin.clamp(min=0)",
        "(self.visual.long().cumsum(1) - 1).clamp(min=0)",
        by_hand("qwen3_vl", 1),
    ),
    "DeepStack taken and not added": Mistake(
        f"{ADAPTERS}.qwen3_vl:Qwen3VLAdapter.take_deepstack", "list(taken or ())", "[]", unpruned("qwen3_vl")
    ),
    "DeepStack missing in a prefix": Mistake(
        "harness.engine.capture:captured_prefixes",
        "[features[mine] for features in deepstack]",
        "[]",
        lambda: held.test_a_shared_prefix_changes_nothing("qwen3_vl", "fastv"),
    ),
    "the text's own count as time axis": Mistake(
        f"{ADAPTERS}.qwen_vl:QwenVLAdapter.positions", "given[-3:]", "given[:3]", unpruned("qwen2_5_vl")
    ),
    "the time axis on all axes": Mistake(
        f"{ADAPTERS}.qwen_vl:QwenVLAdapter.rotary",
        "positions.expand(-1, -1, 3)",
        "positions[:, :, :1].expand(-1, -1, 3)",
        unpruned("qwen2_vl"),
    ),
    "decode at the number of tokens": Mistake(
        "harness.engine.run:EngineRun._decode_inputs",
        "last.positions[:, -1:] + step",
        "last.positions[:, -1:] * 0 + last.n - 1 + step",
        unpruned("qwen3_vl"),
    ),
    "renumbered where a method asks for it": Mistake(
        "harness.engine.run:EngineRun._boundary",
        'self._positions == "original" or self._adapter.axes > 1',
        'self._positions == "original"',
        by_hand("qwen2_5_vl", 0),
    ),
    "wrong places go through": Mistake(
        f"{ADAPTERS}.qwen_places:_grid",
        "if rows * columns != len(places) or any(",
        "if any(x is None for x in grid) or 0 and any(",
        lambda: held.test_features_without_facts_are_refused("qwen2_5_vl", "forward", "mm_token_type_ids"),
    ),
    "looks in the order of windows": Mistake(
        f"{ADAPTERS}.qwen25_vl:Qwen25VLAdapter.reordered", ".argsort()", "", recorded("hq_33_qa")
    ),
    "looks without rotation": Mistake(
        f"{ADAPTERS}.qwen_tower:QwenTower.watch_attention",
        "self.rotate(x.float(), cos, sin)",
        "x.float()",
        recorded("hq_33_qa"),
    ),
    "whole sums within windows": Mistake(
        "harness.engine.tower:TowerEye._sums",
        'if look.what == "whole_column_sums":',
        "if False:",
        recorded("hq_33_a40_o3_qc"),
    ),
    "chosen ones are excluded": Mistake(
        "methods.hiprune:HiPrune._kept", "scores - first.to(scores)", "scores - 9 * first", recorded("hq_33_qa")
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_caught(name: str) -> None:
    where, old, new, check = MISTAKES[name]
    check()
    with (
        seeded(Fault(name, where, old, new, "none")),
        pytest.raises((AssertionError, PrunebenchError, RuntimeError, pytest.fail.Exception)),
    ):
        check()
