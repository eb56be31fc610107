"""An evaluation on images of four sizes by a model whose tokens follow from them: budgets, tables and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import refused
from families import SIZES, llava_next, pope

from harness.core import budget as budgets
from harness.core import grids
from harness.core.errors import PrunebenchError
from harness.core.shape import Grid
from harness.core.spelling import from_a_terminal
from harness.proof.recomputed import again
from harness.report import show
from harness.runner import sweep as sweeps
from harness.runner.evaluate import evaluate
from harness.runner.pace import Pace
from harness.runner.request import Request, resolve
from harness.runner.run import Finished, Options
from harness.runner.session import Session
from harness.runner.sizes import mean_prompt, visual_tokens
from harness.store.verify import verify

#: visual tokens of the images of `SIZES`
TOKENS = (16 + 4 * 9, 16 + 8 * 5, 16 + 8 * 9, 16 + 4 * 5)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("any")
    llava_next(top / "m")
    pope(top / "data")
    return top


def asked(place: Path, method: str, budget: str = "", **others: Any) -> Request:
    others = {"tasks": "pope", "data": str(place / "data"), "device": "cpu"} | others
    return Request(method, model=str(place / "m"), budgets=budget, **others)


def run(place: Path, request: Request, results: str = "r", **pace: Any) -> Finished:
    return evaluate(request, Options(place / results, Pace(**pace)), lambda line: None)


def test_an_evaluation_is_sealed_with_grids_and_costs_of_each_image(place: Path) -> None:
    finished = run(place, asked(place, "fastv,uniform", "0.25kept"), batch=3)
    assert len(finished.cells) == 3
    # a control has no official code, and FastV's was not recorded on tiles
    family = "LlavaNextForConditionalGeneration"
    assert {c.cell.method: c.unproven for c in finished.cells.values()} == {"none": "", "uniform": "", "fastv": family}
    assert f"Not proven against official code on {family}: fastv." in (place / "r" / "LEADERBOARD.md").read_text()
    for sealed in finished.cells.values():
        frame = sealed.samples()
        assert sorted(set(frame["n_visual"])) == sorted(TOKENS)
        assert len(set(frame["vision_flops"])) == 2, "five tiles, and three"
        if sealed.cell.method != "none":
            assert (frame["kept"] == (frame["n_visual"] / 4 + 0.5).astype(int)).all()
        for image, n in zip(frame["image"], frame["n_visual"], strict=True):
            assert sum(grid.tokens for grid in grids.of_image(sealed.provenance["grids"], image)) == n
    lines, sound = verify(place / "r", again)
    assert sound, lines
    assert not [line for line in lines if "costs not recomputed" in line]
    assert "0.25kept" in (place / "r" / "LEADERBOARD.md").read_text()


def test_a_forged_size_is_found(place: Path) -> None:
    """Costs are computed again from each image's own size."""
    (sealed,) = [
        cell for cell in run(place, asked(place, "fastv", "0.25kept")).cells.values() if cell.cell.method != "none"
    ]
    wrong, left = again(sealed, sealed.samples().assign(vision_flops=sealed.samples()["vision_flops"].max()))
    assert not left
    assert "vision_flops" in wrong[0]


def test_sharing_and_batches_change_no_answer(place: Path) -> None:
    request = asked(place, "fastv,random", "0.25kept")
    one = run(place, request, "alone", batch=1, share=False)
    other = run(place, request, "shared", batch=8, share=True)
    assert one.cells.keys() == other.cells.keys()
    for identity, sealed in one.cells.items():
        mine, theirs = (cell.samples().set_index("key") for cell in (sealed, other.cells[identity]))
        for column in ("answer", "keeps", "kept", "n_visual", "prefill_dense_flops", "vision_flops", "kv_bytes"):
            assert mine[column].tolist() == theirs.loc[mine.index, column].tolist(), column


def test_a_count_above_the_fewest_tokens_is_refused_before_anything_runs(place: Path) -> None:
    with from_a_terminal():
        said = refused(lambda: run(place, asked(place, "fastv", "40"), "none"))
    for part in (
        "keep=40",
        f"at most {min(TOKENS)}",
        f"{min(TOKENS)} to {max(TOKENS)}",
        "mean 58.0",
        "0.25kept",
        "--clamp",
    ):
        assert part in said
    assert not (place / "none").exists() or not list((place / "none").rglob("cell.json"))
    assert "keep=40" in refused(lambda: run(place, asked(place, "fastv", knobs={"keep": "40"}), "none"))
    assert len(run(place, asked(place, "fastv", str(min(TOKENS))), "r").cells) == 2


def test_a_clamped_count_says_so_and_is_another_cell(place: Path) -> None:
    (spelt,) = budgets.clamped(["40"])
    assert spelt == "40clamped" == str(budgets.parse(spelt))
    finished = run(place, asked(place, "fastv", spelt), "r")
    (sealed,) = [cell for cell in finished.cells.values() if cell.cell.method == "fastv"]
    frame = sealed.samples()
    assert (frame["kept"] == frame["n_visual"].clip(upper=40)).all()
    assert sealed.cell.budget == "40clamped"
    assert "40clamped" in (place / "r" / "LEADERBOARD.md").read_text()
    assert sealed.asked.budget == "40clamped"
    assert "found 25%" in refused(lambda: budgets.clamped(["25%"]))
    assert "nothing to clamp" in refused(
        lambda: resolve(Request("fastv", budgets="64clamped", tasks="pope"), Session())
    )
    assert "to clamp" in refused(lambda: budgets.parse("25%clamped"))


def test_a_sweep_clamps_its_counts(place: Path) -> None:
    file = place / "sweep.yaml"
    file.write_text(
        f"models: [{place / 'm'}]\ntasks: [pope]\ndata: {place / 'data'}\nbudgets: [40, 25%]\n"
        "methods: [fastv, {method: uniform, budgets: [50]}]\n"
    )
    plan = sweeps.load(file, []).clamped()
    assert [str(b) for b in plan.budgets] == ["40clamped", "25%"]
    assert "to run: 4 cells, 32 questions" in sweeps.dry_run(plan, Options(place / "dry"), device="cpu")
    finished = sweeps.run(plan, Options(place / "swept"), lambda line: None, device="cpu")
    assert sorted(cell.cell.budget for cell in finished.cells.values()) == [
        "0.25kept",
        "40clamped",
        "50clamped",
        "none",
    ]


def test_means_and_shares_of_flops_are_solved_at_the_tasks_mean_prompt(place: Path) -> None:
    session = Session()
    for budget in ("0.5avg", "30avg", "0.6flops"):
        (setting,) = [s for s in resolve(asked(place, "fastv", budget), session) if s.method.name == "fastv"]
        task = session.task("pope", setting.source, None)
        assert sorted(set(visual_tokens(setting.located, task))) == sorted(TOKENS)
        prompt = mean_prompt(setting.located, task)
        assert prompt.n_visual == round(sum(TOKENS) / 4)
        found = budgets.cost_of(setting.method, prompt)
        assert found is not None
        wanted = {"0.5avg": 0.5 * prompt.n_visual, "30avg": 30, "0.6flops": 0.6}[budget]
        assert (found.ratio if budget.endswith("flops") else found.mean_visual) == pytest.approx(wanted, rel=0.02)
        assert ("kept" in str(setting.method.knobs()["keep"])) == (budget != "30avg")
    (native,) = [s for s in resolve(asked(place, "fastv", "native"), session) if s.method.name == "fastv"]
    assert native.method.knobs()["keep"] == "0.5kept"
    said = refused(lambda: resolve(asked(place, "fastv", "60avg"), session))
    assert "the mean prompt has 58" in said


def test_a_picture_shows_the_finest_grid(place: Path) -> None:
    run(place, asked(place, "fastv", "0.25kept"))
    path, sample = show.write(place / "r", "pope/000004", ["fastv"], "0.25kept", data=str(place / "data"))
    assert path.is_file()
    raster = sample.methods[0].raster
    assert raster == (Grid(8, 8, newline=True), 16)
    stage = sample.methods[0].stages[-1]
    drawn = show.shaded(sample.image, stage, raster)
    step, grid = show.SIDE / 8, stage.keep[16:].reshape(8, 9)
    for row in range(8):
        for col in range(8):
            at = (int(col * step + step / 2), int(row * step + step / 2))
            assert (drawn.getpixel(at) == sample.image.getpixel(at)) == bool(grid[row, col])


def test_recorded_grids_are_read_back() -> None:
    next_one, qwen = [Grid(24, 24), Grid(36, 48, True)], [Grid(5, 7)]
    prompts = {"a": [next_one], "b": [qwen], "c": [qwen], "d": [qwen, next_one], "e": [qwen, qwen]}
    record = json.loads(json.dumps(grids.recorded(prompts)))
    assert record == {
        "24x24 36x48+1": ["a"],
        "5x7": ["b", "c"],
        "5x7 | 24x24 36x48+1": ["d"],
        "5x7 | 5x7": ["e"],
    }
    assert {key: grids.by_image(record, key) for key in prompts} == prompts
    assert grids.of_image(record, "d") == [*qwen, *next_one]
    assert (grids.of_image(record, "f"), grids.by_image(record, "f")) == ([], [])
    assert not grids.one_size(record)
    for broken in ({"5x": ["a"]}, {"5x7": 3}, [[1, 2]], 7, {"5x7 | ": ["a"]}, {"2 of": ["a"]}, {"5x7|5x7": ["a"]}):
        with pytest.raises(PrunebenchError, match="expected grids"):
            grids.read(broken)


def test_grids_of_images_of_one_size_are_recorded_once() -> None:
    image = [Grid(24, 24)]
    assert grids.recorded({"a": [image], "b": [image]}, one_size=True) == [[24, 24, False]]
    prompts = {"a": [image], "b": [image, image, image], "c": [image] * 3}
    record = json.loads(json.dumps(grids.recorded(prompts, one_size=True)))
    assert record == {"1 of 24x24": ["a"], "3 of 24x24": ["b", "c"]}
    assert {key: grids.by_image(record, key) for key in prompts} == prompts
    assert grids.of_image([[2, 3, False]], "any") == [Grid(2, 3)]
    assert grids.by_image([[2, 3, False]], "any") == [[Grid(2, 3)]]
    assert all(map(grids.one_size, (record, [[2, 3, False]])))


def test_the_images_are_of_four_shapes() -> None:
    assert len(set(SIZES)) == len(set(TOKENS)) == 4
