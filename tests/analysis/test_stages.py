"""Stages and VisiPruner knobs from outcomes, on outcomes whose right answer is known."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from harness.analysis import stages
from harness.analysis.stages import TEXT, VISION, Cut, Outcome, Probe, Rule, Stages, Trial, Tried
from harness.core.errors import PrunebenchError

DEPTH = 8


def reader(
    reads: set[int], n: int = 40, redundant: set[int] = frozenset()
) -> tuple[Outcome, dict[Cut, Outcome], list[str]]:
    """A model that answers right when it reads vision in every layer of `reads` and in at least one of `redundant`; two
    samples an image."""
    whole = Outcome(np.ones(n), np.zeros(n, dtype=bool))
    found = {}
    for cut in stages.cuts(DEPTH, 3, (TEXT,)):
        gone = set(range(cut.start, cut.end))
        wrong = bool(gone & reads) or bool(redundant and redundant <= gone)
        found[cut] = Outcome(np.full(n, 0.0 if wrong else 1.0), np.full(n, wrong))
    return whole, found, [f"image-{i // 2}" for i in range(n)]


def test_cuts_are_every_span_once() -> None:
    found = stages.cuts(6, 3, (TEXT,))
    spans = [(c.start, c.end) for c in found]
    assert len(set(spans)) == len(spans)
    wanted = (
        {(l, l + 1) for l in range(6)}
        | {(l, l + 3) for l in range(4)}
        | {(0, l) for l in range(1, 7)}
        | {(l, 6) for l in range(6)}
    )
    assert set(spans) == wanted
    longer = {(c.start, c.end) for c in stages.cuts(7, 3, (VISION,)) if c.end - c.start > 1}
    assert longer == {(0, 3), (3, 6), (0, 6), (0, 7), (3, 7)}, "those between visual tokens stand a window apart"
    assert {(0, 7)} | {(l, l + 1) for l in range(7)} <= {(c.start, c.end) for c in stages.cuts(7, 3, (VISION,))}
    assert {(c.start, c.end) for c in stages.cuts(6, 3, (TEXT,), (2, 3))} == {(2, 3), (3, 4), (2, 4)}


@pytest.mark.parametrize("layers", [(0, 6), (-1, 2), (4, 3)])
def test_layers_out_of_range_are_refused(layers: tuple[int, int]) -> None:
    with pytest.raises(PrunebenchError, match="expected first-last within 0 to 5"):
        stages.cuts(6, 3, (TEXT,), layers)


def test_a_boundary_ends_at_the_first_failure() -> None:
    # layer 3 passes again by chance, which counts for nothing
    assert stages.shallow_end(0.9, [0.9, 0.88, 0.5, 0.9], 0.02) == 2
    assert stages.shallow_end(0.9, [0.87, 0.9], 0.02) == 0
    assert stages.shallow_end(0.9, [0.9, 0.9], 0.02) == 2
    assert stages.not_needed_from([0.5, 0.0, 0.3, 0.02, 0.0], 0.02) == 3
    assert stages.not_needed_from([0.5, 0.3], 0.02) == 2
    assert stages.not_needed_from([0.0, 0.0], 0.02) == 0


def test_fusion_layers_by_single_cuts_and_by_windows_of_redundant_layers() -> None:
    single = [0.0, 0.2, 0.0, 0.0, 0.0, 0.0]
    # windows of 3: [0,3) and [1,4) hold layer 1; [2,5) is felt although none of 2, 3, 4 is
    assert stages.fusion_layers(single, [0.3, 0.3, 0.2, 0.0], 3, 0.05, 0, 6) == (1, 3)
    assert stages.fusion_layers(single, [0.3, 0.3, 0.2, 0.0], 3, 0.05, 2, 6) == (3,)
    assert stages.fusion_layers(single, [0.0] * 4, 3, 0.25, 0, 6) == ()


def test_stages_of_a_model_that_reads_two_layers() -> None:
    found = stages.find(*_swap(reader({2, 4})))
    assert (found.shallow_end, found.fusion, found.not_needed_from) == (2, (2, 4), 5)
    assert found.uncertainty["shallow_end"] == {"2": 1.0}
    assert found.uncertainty["fusion"] == {"2": 1.0, "4": 1.0}
    redundant = stages.find(*_swap(reader(set(), redundant={3, 4, 5})))
    assert (redundant.shallow_end, redundant.fusion, redundant.not_needed_from) == (5, (4,), 4), "any of 3, 4, 5 does"


def _swap(parts: tuple[Outcome, dict[Cut, Outcome], list[str]]) -> tuple[Outcome, dict[Cut, Outcome], int, list[str]]:
    whole, found, images = parts
    return whole, found, DEPTH, images


def test_uncertainty_says_how_often_other_images_would_decide_otherwise() -> None:
    whole, found, images = reader({4})
    # cutting layer 2 costs one question of one image in twenty: the tolerance of 2 % is passed when that image is drawn
    for cut in found:
        if cut.start <= 2 < cut.end and cut.start <= 2:
            found[cut].score[0] = 0.0
            found[cut].flipped[0] = True
    result = stages.find(whole, found, DEPTH, images, Rule())
    assert result.shallow_end == 2
    shares = result.uncertainty["shallow_end"]
    assert set(shares) == {"2", "4"}
    # an image out of 20 is drawn at least once in 20 draws with probability 0.642
    assert shares["2"] == pytest.approx(1 - 0.95**20, abs=0.05)
    assert sum(shares.values()) == pytest.approx(1)


def test_stages_need_every_cut() -> None:
    whole, found, images = reader({2})
    del found[Cut(TEXT, 1, 4)]
    with pytest.raises(PrunebenchError, match="start=1, end=4"):
        stages.find(whole, found, DEPTH, images)


def test_resamples_draw_whole_images() -> None:
    weights = stages.resampled(["a", "b", "a", "c"], 50)
    assert weights.shape == (51, 4)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 2]).all()
    assert len({tuple(w) for w in weights[1:]}) > 5
    assert (weights[1:, 0] + weights[1:, 1] + weights[1:, 3] == 3).all()


def test_means_leave_out_what_has_no_value() -> None:
    weights = np.array([[1.0, 1.0, 1.0], [2.0, 1.0, 0.0]])
    values = np.array([[1.0, np.nan], [4.0, np.nan], [np.nan, np.nan]])
    found = stages.means(weights, values)
    assert found[:, 0].tolist() == [2.5, 2.0]
    assert np.isnan(found[:, 1]).all()
    mean, low, high = stages.interval(stages.resampled(list("abcdefgh")), np.arange(8.0))
    assert mean == 3.5
    assert low < 3.5 < high
    assert low > 1.5
    assert high < 5.5
    assert all(np.isnan(x) for x in stages.interval(stages.resampled(list("ab")), np.array([np.nan, np.nan])))


def test_the_separating_cosine() -> None:
    split, balanced = stages.separate(np.array([0.5, 0.6, 0.7]), np.array([0.9, 0.95]))
    assert 0.7 < split < 0.9
    assert balanced == 1
    split, balanced = stages.separate(np.array([0.5, 0.92]), np.array([0.9, 0.95]))
    assert 0.5 < split < 0.95
    assert balanced == 0.75
    assert stages.separate(np.array([0.5, 0.7]), np.array([]))[0] > 0.7
    with pytest.raises(PrunebenchError, match="no"):
        stages.separate(np.array([]), np.array([0.9]))


# ---------------------------------------------------------------------------------------------------------- calibration


class Simulated:
    """VisiPruner on a model whose layers below `shallow` are, whose answers need `tokens` tokens, and whose vision is
    done when cos >= `done`."""

    def __init__(self, shallow: int = 2, tokens: int = 10, done: float = 0.95) -> None:
        self.shallow, self.tokens, self.done = shallow, tokens, done
        rng = np.random.default_rng(0)
        self.norms = np.tile(np.sort(rng.random(64) * 2)[::-1], (20, DEPTH, 1))
        self.lowest = np.full((20, DEPTH), 0.9999)
        self.lowest[:, 4] = np.linspace(0.90, 0.93, 20)
        self.lowest[:, 5] = np.linspace(0.80, 0.83, 20)
        self.probed: list[int] = []

    def probe(self, shallow: int) -> Probe:
        self.probed.append(shallow)
        return Probe(self.lowest, self.norms)

    def evaluate(self, knobs: Mapping[str, Any]) -> Tried:
        accuracy, flops, kept = 0.9, 1.0, 64.0
        if knobs.get("shallow"):
            accuracy -= 0.3 * max(0, knobs["shallow_mid_layer"] - self.shallow)
        if knobs.get("middle"):
            fires = self.lowest[0] < knobs["layer_threshold"]
            if fires.any():
                layer = int(fires.argmax())
                kept = float((self.norms[0, layer] > knobs["tokens_threshold"]).sum())
                accuracy -= 0.2 if kept < self.tokens else 0
                flops = (layer + 1 + (DEPTH - layer - 1) * kept / 64) / DEPTH
        if knobs.get("deep"):
            accuracy -= 0.1 if knobs["exit_threshold"] < self.done else 0
            flops -= 0.05
        return Tried(accuracy, {"gqa": accuracy}, kept, flops)


STAGES = Stages(3, (4, 5), 6, {}, {})


def trial(evaluate: Callable[[Mapping[str, Any]], Tried]) -> list[Trial]:
    return [Trial(evaluate, {"gqa": 0.9}, {"gqa": 1000})]


def test_calibration_finds_each_knob_and_keeps_the_accuracy() -> None:
    model = Simulated()
    found = stages.calibrate(trial(model.evaluate), model.probe, STAGES, DEPTH)
    assert found.knobs["shallow"] is True
    assert found.knobs["shallow_mid_layer"] == 2, (
        "3 was found by knock-out, and VisiPruner's own stage loses accuracy there"
    )
    assert model.probed == [2], "contributions are measured under the shallow stage that was chosen"
    assert 0.93 < found.knobs["layer_threshold"] < 0.9999, (
        "the separating cosine fires first, in layer 4: the fewest FLOPs"
    )
    kept = (model.norms[0, 4] > found.knobs["tokens_threshold"]).sum()
    assert 10 <= kept <= 16
    assert found.knobs["exit_threshold"] == 0.95
    assert found.outcome.accuracy == pytest.approx(0.9)
    assert found.outcome.flops < 0.7
    failed = [s for s in found.steps if not s["holds"]]
    assert {s["stage"] for s in failed} == {"shallow", "middle", "deep"}


def test_a_later_selection_wins_where_the_first_layer_loses() -> None:
    model = Simulated()
    whole = model.evaluate

    def evaluate(knobs: Mapping[str, Any]) -> Tried:
        tried = whole(knobs)
        early = knobs.get("middle") and knobs["layer_threshold"] > 0.85
        return replace(tried, by_task={"gqa": tried.accuracy - 0.3}) if early else tried

    found = stages.calibrate(trial(evaluate), model.probe, STAGES, DEPTH)
    assert found.knobs["layer_threshold"] < 0.85
    assert found.outcome.accuracy == pytest.approx(0.9)


def test_no_task_is_paid_for_by_another_and_a_large_trial_has_the_last_word() -> None:
    """Pooled, a loss of 3 points on one of four tasks is less than 1; of 36 answers one is 2.8 points, of 144 it is
    0.7."""
    model = Simulated()

    def of(n: int, lost: Callable[[float], int]) -> Trial:
        def evaluate(knobs: Mapping[str, Any]) -> Tried:
            tried = model.evaluate(knobs)
            codes = 1 - (lost(tried.kept) if knobs.get("middle") else 0) / n
            return replace(
                tried, accuracy=(3 + codes) / 4, by_task={"gqa": 1.0, "mme": 1.0, "pope": 1.0, "textvqa": codes}
            )

        tasks = ("gqa", "mme", "pope", "textvqa")
        return Trial(evaluate, dict.fromkeys(tasks, 1.0), dict.fromkeys(tasks, n))

    small = of(36, lambda kept: 2 if kept < 10 else 1 if kept < 28 else 0)
    large = of(144, lambda kept: 8 if kept < 10 else 4 if kept < 20 else 1)
    alone = stages.calibrate([small], model.probe, STAGES, DEPTH)
    kept = (model.norms[0, 4] > alone.knobs["tokens_threshold"]).sum()
    assert kept >= 28, "one of 36 answers is more than a point"
    both = stages.calibrate([small, large], model.probe, STAGES, DEPTH)
    kept = (model.norms[0, 4] > both.knobs["tokens_threshold"]).sum()
    assert 20 <= kept < 28, "the small trial lets one answer through, the large one finds 16 kept tokens too few"
    assert both.outcome.by_task["textvqa"] == 1 - 1 / 144
    asked = [(s["questions"], s["holds"]) for s in both.steps if s["stage"] == "middle"]
    assert (144, False) in asked, "lost at least two answers on the small trial: not asked on the large one"
    assert sum(not holds for questions, holds in asked if questions == 576) >= 1
    assert "576 questions" in both.criterion
    assert "on 144" in both.criterion
    assert "576" not in alone.criterion


def test_stages_that_cannot_keep_the_accuracy_stay_off() -> None:
    nothing = Simulated(shallow=0, tokens=1000, done=2.0)
    found = stages.calibrate(trial(nothing.evaluate), nothing.probe, STAGES, DEPTH)
    assert found.knobs == {"shallow": False, "shallow_mid_layer": 0, "middle": False, "deep": False}
    assert found.outcome.accuracy == pytest.approx(0.9)
    assert {n.split(":")[0] for n in found.notes} >= {"no shallow stage", "no middle stage"}
    undone = Simulated(done=2.0)
    found = stages.calibrate(trial(undone.evaluate), undone.probe, STAGES, DEPTH)
    assert found.knobs["middle"] is True
    assert found.knobs["deep"] is False
    # the only fusion layer lies at the shallow end, so that the shallow stage ends one layer earlier for it to be
    # searched
    single = stages.calibrate(trial(Simulated(4).evaluate), Simulated().probe, Stages(4, (4,), 5, {}, {}), DEPTH)
    assert single.knobs["shallow_mid_layer"] == 3
    assert single.knobs["middle"] is True
    blind = Simulated()
    found = stages.calibrate(trial(blind.evaluate), blind.probe, Stages(DEPTH, (), 0, {}, {}), DEPTH)
    assert found.knobs["middle"] is False


def test_the_rule_is_stated_with_its_numbers() -> None:
    words = Rule(0.03, 0.04, 0.06, 5).words()
    assert "3 points" in words["shallow_end"]
    assert "4 %" in words["not_needed_from"]
    assert "6 %" in words["fusion"]
    assert "window of 5" in words["fusion"]
