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


def recorded(name: str, folder: str = "hiprune") -> Callable[[], None]:
    def check() -> None:
        case = read_case(FOLDER, f"cases/{folder}/{name}.json")
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
        'if look.what in ("whole_column_sums", "twice_rotated_sums"):',
        "if False:",
        recorded("hq_33_a40_o3_qc"),
    ),
    "VScan ranks under RoPE": Mistake(
        "methods.vscan:VScan.at_boundary", "rotated=self._tower is CLS", "rotated=True", recorded("vq_off_qa", "vscan")
    ),
    "VScan's local look without windows": Mistake(
        "methods.vscan:VScan._scanned", "-(-(k // 2) // n)", "k // 2", recorded("vq_off_qc", "vscan")
    ),
    "rows left over are windows of their own": Mistake(
        "methods.vscan:windows", ".clamp(max=down - 1)", "", recorded("vq_40_none_qc", "vscan")
    ),
    "VScan drops without averaging": Mistake(
        "methods.vscan:merged", "tokens.index_copy(0, index, means)", "tokens", recorded("vq_off_qa", "vscan")
    ),
    "VScan averages with the tokens that join alone": Mistake(
        "methods.vscan:merged", "(1 + joins.sum", "(0.5 + joins.sum", recorded("vq_off_qa", "vscan")
    ),
    "scores of flash attention rotated once": Mistake(
        "harness.engine.tower:TowerEye.__init__",
        '2 if look.what == "twice_rotated_sums" else 1',
        "1",
        recorded("vq_off_fa_qa", "vscan"),
    ),
    "the code for one tile ranks by the last token": Mistake(
        "methods.vscan:VScan._row_of_one_tile",
        "self._window(stage)[0] - 1 + behind",
        "present + behind - 1",
        recorded("vn_64_20_nb", "vscan_next"),
    ),
    "patches of the padding stay": Mistake(
        "methods._tiles:_order",
        "(rows * side - grid.rows) // 2, (cols * side - grid.cols) // 2",
        "0, 0",
        recorded("vn_64_20_nb", "vscan_next"),
    ),
    "MMTok's rows of the question are not divided": Mistake(
        "methods.mmtok:MMTok._of_question", " / n_tokens[:, None, None]", "", recorded("mq_20_qa", "mmtok")
    ),
    "MMTok without alpha": Mistake(
        "methods.mmtok:MMTok._of_image", "self.alpha * valid", "1.0 * valid", recorded("mq_20_qa", "mmtok")
    ),
    "coverage of all picks adds up": Mistake(
        "methods.mmtok:covering", "torch.maximum(covered", "torch.add(covered", recorded("mq_20_t2_qc", "mmtok")
    ),
    "less coverage counts against a token": Mistake(
        "methods.mmtok:covering", ".clamp(min=0)", "", recorded("mq_20_qa", "mmtok")
    ),
    "64 tokens are pruned": Mistake(
        "methods.mmtok:MMTok.n_kept", "n <= self.spared", "n < 0", recorded("mq_10_qb", "mmtok")
    ),
    "the first of joined patches for all": Mistake(
        "harness.engine.tower:_joined", "values[at].mean(1)", "values[at][:, 0]", recorded("dq_20_qa", "divprune_mmtok")
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
