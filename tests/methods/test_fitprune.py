"""FitPrune: the least product of two sums of attention leaves in every layer, as many as a schedule says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from decoder_in_float64 import Seen, engine, walk

from harness.core import flops
from harness.core.budget import cost_of, parse
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES
from harness.cost.plan import planned_trace
from harness.method import build
from harness.models.published import published_prompt
from methods.fitprune import SCHEMES, FitPrune

S7, S13 = SHAPES["llava-1.5-7b"], SHAPES["llava-1.5-13b"]
SCHEME = (40, 0, 200, 90, 10, 0, 60, 50, 20, 5, 30, 7)


def by_hand(seen: Seen, heads: str = "max", rows: str = "both") -> list[float]:
    """The score of each visual token that is present."""
    scores = []
    for token in seen.visual:
        reduced = seen.attention[:, :, token].max(0) if heads == "max" else seen.attention[:, :, token].mean(0)
        cross = sum(reduced[row] for row in seen.after)
        own = sum(reduced[row] for row in seen.visual) / len(seen.visual)
        scores.append(float(cross * own if rows == "both" else cross))
    return scores


def leaving(scheme: tuple[int, ...], **how: str) -> Any:
    def chosen(seen: Seen) -> list[int]:
        n = scheme[seen.layer] if seen.layer < len(scheme) - 1 else 0
        scores = by_hand(seen, **how)
        return [seen.visual[i] for i in sorted(range(len(scores)), key=lambda i: scores[i])[:n]]

    return chosen


def test_a_mini_sample_by_hand() -> None:
    want, got = walk(leaving(SCHEME)), engine(FitPrune(scheme=SCHEME))
    assert got.entering == want.entering
    assert [len(tokens) for tokens in got.entering] == [576, 536, 536, 336, 246, 236, 236, 176, 126, 106, 101, 71]
    assert np.abs(got.logits - want.logits).max() < 1e-3
    for other in ({"heads": "mean"}, {"rows": "cross"}):
        assert walk(leaving(SCHEME, **other)).entering != want.entering


def test_the_last_layer_changes_nothing() -> None:
    last = engine(FitPrune(scheme=(*SCHEME[:-1], 0)))
    got = engine(FitPrune(scheme=SCHEME))
    assert (got.entering, got.logits.tolist()) == (last.entering, last.logits.tolist())


def test_native_is_the_official_ratio_of_60() -> None:
    method = build("fitprune", parse("native"), {}, S7)
    assert method.knobs() == {"keep": None, "reduction_ratio": 60, "scheme": None}
    plan = method.plan(S7)
    assert plan is not None
    # the averages of layers' inputs that the official schedules have
    assert abs(sum(plan) / 32 - 245) < 1
    assert plan[-1] == 127


@pytest.mark.parametrize(("ratio", "mean"), [(30, 423), (50, 302), (70, 188), (80, 131), (90, 73)])
def test_official_schedules(ratio: int, mean: int) -> None:
    plan = build("fitprune", parse(None), {"reduction_ratio": ratio}, S7).plan(S7)
    assert plan is not None
    assert abs(sum(plan) / 32 - mean) < 1
    assert len(SCHEMES[ratio]) == 32


def test_the_official_count_by_number_is_the_official_schedule() -> None:
    assert FitPrune(keep=127).plan(S7) == FitPrune(reduction_ratio=60).plan(S7)


@pytest.mark.parametrize("prompt", [S7, S13])
@pytest.mark.parametrize("keep", [1, 16, 64, 575, 576])
def test_a_number_enters_the_last_layer(prompt: Any, keep: int) -> None:
    plan = build("fitprune", parse(str(keep)), {}, prompt).plan(prompt)
    assert plan is not None
    assert (plan[0], plan[-1], len(plan)) == (576, keep, prompt.depth)
    assert plan == sorted(plan, reverse=True)


def test_dense_counts_a_layer_as_the_official_code_runs_it() -> None:
    prompt, d = S7.with_text(60), S7.decoder
    method = FitPrune(scheme=(100, *[0] * 30, 9))
    plan = method.plan(prompt)
    trace = planned_trace(method, prompt, plan, 35)
    later = 476 + 60
    saved = 100 * 2 * (d.hidden * d.heads * d.head_dim + 3 * d.hidden * d.mlp)
    assert flops.prefill_dense(d, trace, 0) == flops.layer(d, 636) - saved + 31 * flops.layer(d, later)
    assert flops.prefill_executed(d, trace) == flops.layer(d, 636) + 31 * flops.layer(d, later)
    stated = cost_of(method, prompt)
    assert stated is not None
    assert stated.prefill_flops == flops.prefill_dense(d, trace, 0) + method.known_scoring(prompt, plan)


@pytest.mark.parametrize(
    ("budget", "knobs", "says"),
    [
        (
            "native",
            {},
            r"^fitprune: its published schedules are those of 32 layers, and this model has 40: give .*cali",
        ),
        (None, {"reduction_ratio": 60}, r"^fitprune: reduction_ratio=60 has no official schedule of 40 layers"),
        (None, {"scheme": (1,) * 41}, r"^fitprune: expected scheme as at most 40 numbers from 0, one a decoder layer,"),
        (
            None,
            {"scheme": ",".join(["-1"] * 40)},
            r"^fitprune: expected scheme as at most 40 numbers .* from -1",
        ),
        (None, {"scheme": ",".join(["0"] * 39 + ["5"])}, r"deletes nothing before the last layer"),
        (None, {}, r"^fitprune needs a budget"),
        ("64", {"scheme": (1,) * 40}, r"^fitprune: knob 'scheme' is what the budget sets"),
        (None, {"keep": 5, "reduction_ratio": 60}, r"^fitprune: give exactly one of keep"),
    ],
)
def test_refusals_are_one_line_that_says_what_works(budget: str | None, knobs: dict[str, Any], says: str) -> None:
    with pytest.raises(PrunebenchError, match=says) as refused:
        build("fitprune", parse(budget), knobs, S13)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("knobs", [{}, {"scheme": (5, 5, 5)}], ids=["native", "scheme"])
def test_a_schedule_of_counts_is_refused_where_images_differ(knobs: dict[str, Any]) -> None:
    """On LLaVA-NeXT the schedule for 576 tokens would save a fraction of what it promises."""
    usual = published_prompt("llava-v1.6-vicuna-7b")
    assert usual is not None
    budget = "none" if knobs else "native"
    with pytest.raises(PrunebenchError, match="images of this model differ: give a share"):
        build("fitprune", parse(budget), knobs, usual)
    plan = build("fitprune", parse("25%"), {}, usual).plan(usual)
    assert plan is not None
    assert plan[-1] == usual.n_visual // 4
    assert build("fitprune", parse(budget), knobs, S7).plan(S7) is not None
