"""Two models' rankings from sealed cells: budgets, methods and tasks that enter, numbers by hand, files and figures."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from factories import answered
from PIL import Image

from harness.core import stats
from harness.core.errors import PrunebenchError
from harness.core.metric import Metric
from harness.store.sealed import SealedCell
from harness.tables import rankings_files, rankings_text, sections
from harness.tables.compare import AVERAGE
from harness.tables.in_common import AskedModel, Left, paired, read_side
from harness.tables.rankings import ALL, Rankings, rankings

TASKS = ("gqa", "pope")
#: share of right answers, far apart
SHARES = {"fastv": 0.9, "dart": 0.7, "visionzip": 0.5, "first": 0.3}
FEW_TOKENS = {"384": "384", "192": "50%", "128": "25%", "64": "12%", "32": "6%"}
N_VISUAL = {"mini": 576, "mini-qwen": 300}


@pytest.fixture(autouse=True)
def fewer_draws(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is most of the work of these tests."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(stats, "DECISIVE", 2000)


def model(
    root: Path,
    name: str,
    shares: Mapping[str, float] = SHARES,
    budgets: Sequence[str] = ("128", "64"),
    tasks: Sequence[str] = TASKS,
    n: int = 120,
    unpruned: bool = True,
    **changes: Any,
) -> list[SealedCell]:
    """Cells of a model: `mini` has budgets in tokens, `mini-qwen` shares of its 300 tokens and images of its own.
    `shares`: how many answers of a method are right, at random places."""
    own: dict[str, Any] = {"model": name, "model_fingerprint": f"weights-{name}", "stands_for": name}
    own["pictures"] = "" if name == "mini" else f"{name} "
    own |= changes
    whole = N_VISUAL.get(name, 576)
    cells = []
    for task in tasks:
        fingerprint = {"data_fingerprint": f"{own['pictures']}{task}"}
        if unpruned:
            costs = {"kept": whole, "mean_visual": whole, "prefill_dense_flops": 5e9, "kv_bytes": 1e6}
            cells.append(answered(root, "none", "none", [1.0] * n, task, costs=costs, **(fingerprint | own)))
        for method, share in shares.items():
            for budget in budgets:
                asked = budget if name == "mini" else FEW_TOKENS[budget]
                kept = int(asked) if asked.isdigit() else round(float(asked[:-1]) / 100 * whole)
                luck = random.Random(f"{name}{method}{task}{budget}{own.get('seed', 0)}")
                scores = [float(luck.random() < share) for _ in range(n)]
                costs = {"kept": kept, "mean_visual": kept, "prefill_dense_flops": 1e9, "kv_bytes": 1e5}
                cells.append(answered(root, method, asked, scores, task, costs=costs, **(fingerprint | own)))
    return cells


def arranged(cells: Sequence[SealedCell]) -> list[sections.Section]:
    return sections.sections(sections.distinct(cells))


def between(cells: Sequence[SealedCell], first: str = "mini", second: str = "mini-qwen", **options: Any) -> Rankings:
    there = arranged(cells)
    return rankings((read_side(first, there), read_side(second, there)), **options)


def refused(cells: Sequence[SealedCell], *names: str, **options: Any) -> str:
    with pytest.raises(PrunebenchError) as error:
        between(cells, *names, **options)
    return str(error.value)


# ------------------------------------------------------------------------------------------------- numbers


def test_rankings_by_hand(tmp_path: Path) -> None:
    other = SHARES | {"fastv": 0.5, "visionzip": 0.9}  # they change places over dart
    found = between(model(tmp_path, "mini") + model(tmp_path, "mini-qwen", other))
    assert [(p.budgets, p.shares) for p in found.pairs] == [
        (("128", "25%"), (pytest.approx(128 / 576), 0.25)),
        (("64", "12%"), (pytest.approx(64 / 576), 0.12)),
    ]
    assert [(one.pair.label, one.task) for one in found.ranked] == [
        *(("128 | 25%", task) for task in (*TASKS, AVERAGE)),
        *(("64 | 12%", task) for task in (*TASKS, AVERAGE)),
    ]
    for one in found.ranked:
        assert one.names == ["dart", "fastv", "first", "visionzip"]
        # fastv > dart > visionzip > first against visionzip > dart > fastv > first: three of six pairs are opposite
        assert one.agreement.tau == 0
        assert one.agreement.ranks[0].tolist() == [2, 1, 4, 3]
        assert one.agreement.ranks[1].tolist() == [2, 3, 4, 1]
        assert one.agreement.changes.tolist() == [0, -2, 0, 2]
        assert [one.agreement.beyond_noise(i) for i in range(4)] == [False, True, False, True]
    assert found.means[ALL][0] == found.means[AVERAGE][0] == found.means["pope"][0] == 0
    assert found.ranked[0].questions == (120, 120)
    assert found.ranked[2].images == (120, 120)
    assert found.left == []


def test_scores_are_percents_of_the_models_own_unpruned_score(tmp_path: Path) -> None:
    cells = model(tmp_path, "mini") + model(tmp_path, "mini-qwen", unpruned=False)
    half = [float(i % 2) for i in range(120)]
    for task in TASKS:
        own = {"model": "mini-qwen", "model_fingerprint": "weights-mini-qwen", "stands_for": "mini-qwen"}
        own |= {"pictures": "mini-qwen ", "data_fingerprint": f"mini-qwen {task}"}
        costs = {"kept": 300, "mean_visual": 300, "prefill_dense_flops": 5e9, "kv_bytes": 1e6}
        cells.append(answered(tmp_path, "none", "none", half, task, costs=costs, **own))
    one = between(cells).ranked[0]
    measured = [c for c in cells if (c.cell.model, c.cell.task, c.cell.budget) == ("mini-qwen", "gqa", "25%")]
    expected = {c.cell.method: 100 * c.score / 0.5 for c in measured}
    assert dict(zip(one.names, one.percents[1], strict=True)) == pytest.approx(expected)


def test_one_model_under_two_names_has_tau_1(tmp_path: Path) -> None:
    close = {f"m{i}": 0.5 + i / 100 for i in range(8)}
    cells = model(tmp_path, "mini", close)
    twin = [
        dataclasses.replace(c, cell=dataclasses.replace(c.cell, model="twin", model_fingerprint="t"), folder=c.folder)
        for c in cells
    ]
    found = between(cells + twin, second="twin")
    assert found.notes == ["gqa, pope: the same images in both models, drawn together"]
    for one in found.ranked:
        assert (one.agreement.tau, one.agreement.low, one.agreement.high) == pytest.approx((1, 1, 1))
        assert one.agreement.swaps == []
    # asked about other images, the same scores say less
    apart = model(tmp_path, "mini-qwen", close)
    drawn = between(cells + apart, pairs=[("128", "25%")])
    assert drawn.notes == []
    assert all(one.agreement.low < 1 for one in drawn.ranked)


def test_ranks_without_relation_have_an_interval_around_0(tmp_path: Path) -> None:
    luck = random.Random(3)
    one, other = ({f"m{i}": luck.uniform(0.3, 0.8) for i in range(12)} for _ in range(2))
    found = between(model(tmp_path, "mini", one, n=60) + model(tmp_path, "mini-qwen", other, n=60))
    tau, low, high = found.means[ALL]
    assert low < 0 < high
    assert low < tau < high
    alike = between(model(tmp_path / "b", "mini", one, n=60) + model(tmp_path / "b", "mini-qwen", one, n=60))
    assert alike.means[ALL][1] > 0.2, "an interval may leave 0 out"


def test_a_seed_decides_the_draws_and_nothing_else(tmp_path: Path) -> None:
    close = {f"m{i}": 0.5 + i / 50 for i in range(5)}
    cells = model(tmp_path, "mini", close, n=60) + model(tmp_path, "mini-qwen", close, n=60)
    frames = [rankings_text.taus_frame(between(cells, seed=seed)) for seed in (0, 0, 1)]
    pd.testing.assert_frame_equal(frames[0], frames[1])
    assert frames[0]["tau"].tolist() == frames[2]["tau"].tolist()
    assert frames[0]["low"].tolist() != frames[2]["low"].tolist()


def test_models_with_equally_many_images_have_draws_of_their_own(tmp_path: Path) -> None:
    close = {f"m{i}": 0.5 + i / 50 for i in range(4)}
    cells = model(tmp_path, "mini", close)
    scores = {(c.cell.method, c.cell.budget, c.cell.task): c.columns("key", "score")["score"] for c in cells}
    others = []
    for c in model(tmp_path / "b", "mini-qwen", close):
        named = {"25%": "128", "12%": "64"}.get(c.cell.budget, "none")
        same = scores[c.cell.method, named, c.cell.task]  # the very answers of mini, about other images
        own = {name: getattr(c.cell, name) for name in ("model", "model_fingerprint", "stands_for", "data_fingerprint")}
        others.append(
            answered(
                tmp_path / "c", c.cell.method, c.cell.budget, same, c.cell.task, costs=c.costs, pictures="q ", **own
            )
        )
    for one in between(cells + others).ranked:
        assert one.agreement.tau == pytest.approx(1)
        assert one.agreement.resampled.std() > 0, "equal draws would give tau 1 every time"


def test_all_seeds_of_random_are_one_line(tmp_path: Path) -> None:
    cells = []
    for name in ("mini", "mini-qwen"):
        cells += model(tmp_path, name)
        for seed in range(3):
            cells += model(tmp_path, name, {"random": 0.2}, unpruned=False, seed=seed)
    found = between(cells)
    for one in found.ranked:
        assert one.names.count("random") == 1
        assert one.agreement.ranks[0][one.names.index("random")] == 5
    mine = [
        c for c in cells if (c.cell.model, c.cell.method, c.cell.task, c.cell.budget) == ("mini", "random", "gqa", "64")
    ]
    one = next(one for one in found.ranked if (one.pair.budgets[0], one.task) == ("64", "gqa"))
    assert one.percents[0][one.names.index("random")] == pytest.approx(100 * sum(c.score for c in mine) / 3)


def test_few_images_have_ranks_and_no_interval(tmp_path: Path) -> None:
    found = between(model(tmp_path, "mini", n=18) + model(tmp_path, "mini-qwen"))
    assert all(math.isnan(one.agreement.low) for one in found.ranked)
    assert not any(math.isnan(one.agreement.tau) for one in found.ranked)
    assert math.isnan(found.means[ALL][1])
    assert [note.partition(":")[0] for note in found.notes] == ["gqa", "pope"]
    assert "fewer than 10 images" in rankings_text.text(found)


def test_methods_that_are_all_alike_have_no_tau(tmp_path: Path) -> None:
    alike = dict.fromkeys(SHARES, 1.0)
    found = between(model(tmp_path, "mini", alike) + model(tmp_path, "mini-qwen"))
    assert all(math.isnan(number) for numbers in found.means.values() for number in numbers)
    assert " -  " in rankings_text.text(found)


@pytest.mark.slow
def test_twenty_methods_at_four_pairs_of_budgets_take_seconds(tmp_path: Path) -> None:
    many = {f"m{i}": 0.4 + i / 50 for i in range(20)}
    budgets = ("192", "128", "64", "32")
    tasks = ("gqa", "mme", "pope", "textvqa_ocr")
    cells = model(tmp_path, "mini", many, budgets, tasks) + model(tmp_path, "mini-qwen", many, budgets, tasks)
    there = arranged(cells)
    sides = read_side("mini", there), read_side("mini-qwen", there)
    start = time.process_time()
    found = rankings(sides, pairs=list(zip(budgets, ("50%", "25%", "12%", "6%"), strict=True)))
    assert time.process_time() - start < 20
    assert len(found.ranked) == 20
    assert len(found.ranked[0].agreement.resampled) == 20_000


# ------------------------------------------------------------------------------------------------- budgets


def sides_of(cells: Sequence[SealedCell]) -> tuple[AskedModel, AskedModel]:
    there = arranged(cells)
    return read_side("mini", there), read_side("mini-qwen", there)


def test_budgets_pair_by_measured_shares_once_each(tmp_path: Path) -> None:
    sides = sides_of(model(tmp_path, "mini") + model(tmp_path, "mini-qwen"))
    left: list[Left] = []
    shares = {"384": 0.67, "128": 0.222, "64": 0.111}, {"50%": 0.5, "25%": 0.25, "20%": 0.2, "12%": 0.12}
    found = paired(sides, shares, 1.25, left)
    assert [pair.budgets for pair in found] == [("128", "20%"), ("64", "12%")], "0.2 is nearer to 0.222 than 0.25 is"
    assert [(one.what, one.why) for one in left] == [
        ("mini at 384", "keeps 67.0 % of the tokens; 50% of mini-qwen keeps 50.0 %, a ratio of 1.34"),
        ("mini-qwen at 50%", "keeps 50.0 % of the tokens; 384 of mini keeps 67.0 %, a ratio of 1.34"),
        ("mini-qwen at 25%", "keeps 25.0 % of the tokens; 128 of mini keeps 22.2 % and has a nearer partner"),
    ]
    assert paired(sides, shares, 1.35, [])[0].budgets == ("384", "50%")


def test_a_budget_is_paired_by_what_was_kept_and_not_by_its_name(tmp_path: Path) -> None:
    cells = model(tmp_path, "mini") + model(tmp_path, "mini-qwen", budgets=["64"])
    cells = [
        dataclasses.replace(c, costs={**c.costs, "kept": 66}) if c.cell.budget == "12%" else c for c in cells
    ]  # 22 %, whatever was asked
    assert [pair.label for pair in between(cells).pairs] == ["128 | 12%"]


def test_budgets_that_do_not_pair_are_refused_with_the_list(tmp_path: Path) -> None:
    cells = model(tmp_path, "mini", budgets=["128"]) + model(tmp_path, "mini-qwen", budgets=["32"])
    said = refused(cells)
    assert "differ by a ratio of at most 1.25, found none" in said
    assert "mini at 128 keeps 22.2 % of the tokens; 6% of mini-qwen keeps 6.0 %, a ratio of 3.70" in said
    assert "pairs='128=25%'" in said
    assert between(cells, pairs=[("128", "6%")]).pairs[0].ratio == pytest.approx(0.2222 / 0.06, rel=1e-3)


def test_other_units_are_in_no_pair(tmp_path: Path) -> None:
    cells = model(tmp_path, "mini") + model(tmp_path, "mini-qwen")
    native = [dataclasses.replace(c, cell=dataclasses.replace(c.cell, budget="native")) for c in cells]
    cells = [other if c.cell.budget == "25%" else c for c, other in zip(cells, native, strict=True)]
    assert [pair.label for pair in between(cells).pairs] == ["64 | 12%"]


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([("99", "25%")], "that mini was measured at (128 (22.2 %), 64 (11.1 %)), found 99"),
        ([("64", "25")], "that mini-qwen was measured at (25% (25.0 %), 12% (12.0 %)), found 25"),
        ([("64", "25%"), ("64", "12%")], "64 of mini is given twice"),
    ],
)
def test_pairs_that_nobody_measured_are_refused(tmp_path: Path, pairs: list[tuple[str, str]], says: str) -> None:
    assert says in refused(model(tmp_path, "mini") + model(tmp_path, "mini-qwen"), pairs=pairs)


# ------------------------------------------------------------------------------------------------- who enters


def test_a_method_that_one_model_lacks_is_left_out_and_named(tmp_path: Path) -> None:
    cells = model(tmp_path, "mini", SHARES | {"cdpruner": 0.1}) + model(tmp_path, "mini-qwen", SHARES | {"holov": 0.1})
    cells += model(tmp_path, "mini-qwen", {"cdpruner": 0.1}, tasks=["gqa"], budgets=["64"], unpruned=False)
    found = between(cells)
    assert all(len(one.entries) == 4 for one in found.ranked)
    assert rankings_text.left_out(found) == [
        "cdpruner: not measured on mini-qwen (at 128 | 25%)",
        "holov: not measured on mini (at 128 | 25%, 64 | 12%)",
        "cdpruner: mini-qwen has no cells of pope (at 64 | 12%)",
    ]
    assert "left out  holov: not measured on mini (at 128 | 25%, 64 | 12%)" in rankings_text.text(found)


def test_lines_with_the_same_settings_belong_together(tmp_path: Path) -> None:
    cells = []
    for name, settings in (("mini", (0, 2)), ("mini-qwen", (2,))):
        cells += model(tmp_path, name)
        for boundary in settings:
            cells += model(tmp_path, name, {"random": 0.1}, unpruned=False, knobs={"boundary": boundary})
    found = between(cells)
    assert found.ranked[0].names == ["dart", "fastv", "first", "random boundary=2", "visionzip"]
    assert rankings_text.left_out(found) == [
        "random boundary=0: mini-qwen has other settings of it: random (at 128 | 25%, 64 | 12%)"
    ]


def test_a_method_that_keeps_another_share_is_left_out(tmp_path: Path) -> None:
    cells = model(tmp_path, "mini", SHARES | {"downsample": 0.6}) + model(
        tmp_path, "mini-qwen", SHARES | {"downsample": 0.6}
    )
    cells = [
        dataclasses.replace(c, costs={**c.costs, "kept": 576})
        if (c.cell.model, c.cell.method) == ("mini", "downsample")
        else c
        for c in cells
    ]
    found = between(cells)
    assert "downsample" not in found.ranked[0].names
    assert found.left[0] == Left(
        "128 | 25%", "downsample", "keeps 100.0 % on mini and 25.0 % on mini-qwen, which is no equal share"
    )


def test_fewer_than_three_methods_are_no_ranking(tmp_path: Path) -> None:
    two = {"fastv": 0.9, "dart": 0.7}
    said = refused(model(tmp_path, "mini") + model(tmp_path, "mini-qwen", two))
    assert "expected 3 methods or more" in said
    assert "128 | 25%: 2 methods fewer than 3 make no ranking" in said
    assert "first not measured on mini-qwen" in said


def test_tasks_that_cannot_be_ranked_are_named(tmp_path: Path) -> None:
    cells = model(tmp_path, "mini", tasks=(*TASKS, "textvqa_ocr")) + model(tmp_path, "mini-qwen")
    worse = Metric("wer", kind="mean", higher_is_better=False)
    for name in ("mini", "mini-qwen"):
        cells += model(tmp_path, name, tasks=["errors"], metric=worse)
    found = between(cells)
    assert found.tasks == ["gqa", "pope"]
    assert [(one.what, one.why.partition(",")[0]) for one in found.left] == [
        ("errors", "lower is better"),
        ("textvqa_ocr", "not measured on mini-qwen"),
    ]
    assert between(cells, tasks=["pope"]).ranked[-1].task == "pope", "no average of one task"
    assert "mini-qwen: unknown task 'textvqa_ocr'" in refused(cells, tasks=["textvqa_ocr"])


def test_models_without_a_task_in_common_are_refused(tmp_path: Path) -> None:
    said = refused(model(tmp_path, "mini", tasks=["gqa"]) + model(tmp_path, "mini-qwen", tasks=["pope"]))
    assert "expected a task that both models were measured on, found none: gqa: not measured on mini-qwen" in said


def test_a_model_without_the_unpruned_row_is_refused(tmp_path: Path) -> None:
    said = refused(model(tmp_path, "mini") + model(tmp_path, "mini-qwen", unpruned=False))
    assert said.startswith("mini-qwen: expected cells of the unpruned model on gqa, pope, found none: `prunebench eval")
    assert "--method none" in said


def test_an_unpruned_score_of_0_is_refused(tmp_path: Path) -> None:
    cells = model(tmp_path, "mini") + model(tmp_path, "mini-qwen")
    cells = [
        dataclasses.replace(c, metrics={c.headline: 0.0})
        if (c.cell.model, c.cell.method, c.cell.task) == ("mini", "none", "pope")
        else c
        for c in cells
    ]
    assert "mini: expected an unpruned score above 0 on pope, found 0" in refused(cells)
    assert between(cells, tasks=["gqa"]).tasks == ["gqa"]


# ------------------------------------------------------------------------------------------------- cells of a model


def test_of_three_models_two_are_compared(tmp_path: Path) -> None:
    cells = [c for name in ("mini", "mini-qwen", "third") for c in model(tmp_path, name, budgets=["384", "192"])]
    found = between(cells, "third", "mini")
    assert found.models == ("third", "mini")
    assert {name for pair in found.pairs for name in pair.budgets} == {"384"}
    assert "unknown model with pruned cells 'mini-quen'; did you mean 'mini-qwen'?" in refused(
        cells, "mini", "mini-quen"
    )
    assert "(known: mini, mini-qwen, third)" in refused(cells, "mini", "x")
    assert "mini and mini are the same cells" in refused(cells, "mini", "mini")


def test_a_model_that_was_asked_in_two_ways_needs_the_setting(tmp_path: Path) -> None:
    cells = model(tmp_path, "mini") + model(tmp_path, "mini-qwen") + model(tmp_path, "mini-qwen", dtype="bfloat16")
    said = refused(cells)
    assert "model 'mini-qwen': expected one way of asking, found 2" in said
    assert "mini-qwen:dtype=bfloat16 or mini-qwen:dtype=float32" in said
    found = between(cells, "mini", "mini-qwen:dtype=bfloat16")
    assert found.sides[1].section.cells[0].cell.dtype == "bfloat16"
    assert between(cells, "mini-qwen:dtype=float32", "mini-qwen:dtype=bfloat16").means[ALL][0] == pytest.approx(1)
    assert "expected a way of asking that was measured" in refused(cells, "mini", "mini-qwen:dtype=float16")
    assert "expected settings such as dtype=bfloat16" in refused(cells, "mini", "mini-qwen:budget=64")


def test_tries_and_follow_ups_stand_back(tmp_path: Path) -> None:
    from factories import PROCESSING, TASK_SETTINGS, asked

    shared = {"started": "2026-01-01", "processing": PROCESSING, "task_settings": TASK_SETTINGS}
    tried = model(tmp_path, "mini", n=40, provenance=shared | {"request": asked(limit="40")})
    cells = model(tmp_path, "mini") + tried + model(tmp_path, "mini-qwen")
    assert between(cells).ranked[0].questions == (120, 120)
    assert between(cells, "mini:limit=40").ranked[0].questions == (40, 120)


# ------------------------------------------------------------------------------------------------- files


def written(tmp_path: Path) -> tuple[Rankings, Path]:
    methods = {"fastv": 0.9, "dart": 0.75, "visionzip": 0.6, "first": 0.45, "cdpruner": 0.3, "mine|<b>": 0.2}
    cells = model(tmp_path / "c", "mini", methods)
    cells += model(tmp_path / "c", "mini-qwen", methods | {"fastv": 0.5})
    found = between(cells)
    rankings_files.write(found, tmp_path / "out")
    return found, tmp_path / "out"


def test_files_hold_the_numbers(tmp_path: Path) -> None:
    found, out = written(tmp_path)
    taus, ranked, swaps = (pd.read_csv(out / f"two-models-{name}.csv") for name in ("tau", "ranks", "swaps"))
    assert len(taus) == 2 * 3 + 4
    assert taus["tau"].iloc[:6].tolist() == pytest.approx([one.agreement.tau for one in found.ranked])
    assert taus.set_index(["budget_first", "task"]).loc[("all", "all"), "tau"] == pytest.approx(found.means[ALL][0])
    assert len(ranked) == 6 * 6
    fastv = ranked[(ranked["method"] == "fastv") & (ranked["task"] == "average")]
    assert fastv["rank_first"].tolist() == [1, 1]
    assert (fastv["change"] < 0).all()
    assert fastv["beyond_noise"].all()
    assert len(swaps) == sum(len(one.agreement.swaps) for one in found.ranked)
    assert set(swaps["ahead"]) == {"fastv"}
    page = (out / "two-models.md").read_text()
    assert "mine/&lt;b&gt;" in page
    table = [line for line in page.splitlines() if line.startswith("| 128 \\| 25% (22.2 % \\| 25.0 %) |")]
    assert len(table) == 3
    low, high = (found.ranked[0].agreement.low, found.ranked[0].agreement.high)
    assert f"{found.ranked[0].agreement.tau:.2f} [{low:.2f}, {high:.2f}]" in table[0]
    assert "](two-models-ranks.png)" in page
    assert "](two-models-tau.png)" in page


def test_figures_are_small_and_the_same_again(tmp_path: Path) -> None:
    found, out = written(tmp_path)
    files = sorted(out.glob("*.png"))
    assert [file.name for file in files] == ["two-models-ranks.png", "two-models-tau.png"]
    for file in files:
        assert file.stat().st_size < 60_000
        image = Image.open(file)
        assert min(image.size) > 200
        assert len(image.convert("RGB").getcolors(10_000)) > 20, "something is drawn"
        assert "Software" not in image.info
    before = [file.read_bytes() for file in files]
    rankings_files.write(found, tmp_path / "again")
    assert [(tmp_path / "again" / file.name).read_bytes() for file in files] == before
    turned = between(model(tmp_path / "c", "mini") + model(tmp_path / "c", "mini-qwen", SHARES | {"fastv": 0.1}))
    rankings_files.write(turned, tmp_path / "other")
    assert (tmp_path / "other" / "two-models-ranks.png").read_bytes() != before[0]


def test_the_table_of_the_terminal_is_no_wider_than_others(tmp_path: Path) -> None:
    found, _ = written(tmp_path)
    text = rankings_text.text(found)
    assert max(map(len, text.splitlines())) <= 110
    assert "fastv is above dart on mini and below on mini-qwen" in text
