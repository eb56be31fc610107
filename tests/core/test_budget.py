"""Budgets with units: reading them, solving for them, and refusing what cannot be reached."""

import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.core.budget import NONE, Budget, cost_of, parse, solve
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES, PromptShape, Share
from harness.cost.units import units_table
from harness.method import Method, build, registered
from harness.models import config as model_config
from harness.models import load
from harness.runner.sizes import mean_text

S7, S13 = SHAPES["llava-1.5-7b"], SHAPES["llava-1.5-13b"]
MINI = replace(S7, decoder=replace(S7.decoder, depth=12, hidden=256, heads=8, kv_heads=8, head_dim=32, mlp=688))


# -------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("64", Budget("kept", 64)),
        (64, Budget("kept", 64)),
        (" 64AVG ", Budget("avg", 64)),
        ("0.25kept", Budget("kept", Share(0.25))),
        ("100%", Budget("kept", Share(1.0))),
        ("0.25avg", Budget("avg", Share(0.25))),
        ("0.35flops", Budget("flops", ratio=0.35)),
        ("1flops", Budget("flops", ratio=1.0)),
        ("native", Budget("native")),
        ("Calibrated", Budget("calibrated")),
        ("none", NONE),
        (None, NONE),
    ],
)
def test_a_budget_is_read_with_its_unit_and_written_canonically(text: str | int | None, budget: Budget) -> None:
    assert parse(text) == budget
    assert parse(str(budget)) == budget
    assert str(budget) == ("none" if text is None else str(text).strip().lower())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("64agv", "unknown unit 'agv'; did you mean 'avg'?"),
        ("64 tokens", "unknown unit ' tokens'"),
        ("0.35flop", "did you mean 'flops'?"),
        ("nativ", "did you mean 'native'?"),
        ("", "unknown budget ''"),
        ("0", "keeps no visual token"),
        ("-3", "keeps no visual token"),
        ("0avg", "keeps no visual token"),
        ("64.5", "not a whole number"),
        ("nan", "not a number"),
        ("inf", "not a number"),
    ],
)
def test_a_budget_that_cannot_be_read_names_the_known_units(text: str, says: str) -> None:
    with pytest.raises(PrunebenchError) as error:
        parse(text)
    assert says in str(error.value)
    for known in ("64avg", "25%", "0.35flops", "native", "calibrated", "none"):
        assert known in str(error.value)


@pytest.mark.parametrize("text", ["0flops", "1.5flops", "64flops", "-0.1flops"])
def test_a_share_of_flops_lies_above_0_and_at_most_at_1(text: str) -> None:
    with pytest.raises(PrunebenchError, match="above 0 and at most 1"):
        parse(text)


def test_budgets_need_no_torch() -> None:
    code = "import sys, harness.core.budget; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -------------------------------------------------------------------------------------------------------------- solving


@pytest.mark.parametrize(
    ("prompt", "boundary", "table"),
    [
        (S7, 2, {192: 166, 128: 98, 64: 30}),
        (S7, 3, {192: 152, 128: 82, 64: 11}),
        (S13, 2, {192: 172, 128: 104, 64: 37, 32: 3}),
    ],
    ids=["7B K=2", "7B K=3", "13B K=2"],
)
def test_fastv_keeps_what_the_conversion_table_says(prompt: PromptShape, boundary: int, table: dict[int, int]) -> None:
    solved = {b: build("fastv", parse(f"{b}avg"), {"boundary": boundary}, prompt).knobs()["keep"] for b in table}
    assert solved == table


@pytest.mark.parametrize(("boundary", "floor"), [(2, "36.0"), (3, "54.0")])
def test_what_fastv_cannot_average_is_refused_with_floor_and_range(boundary: int, floor: str) -> None:
    with pytest.raises(PrunebenchError) as error:
        build("fastv", parse("32avg"), {"boundary": boundary}, S7)
    text = str(error.value)
    assert (
        f"fastv with boundary={boundary} cannot average 32 of 576 tokens: its floor is {floor} ({boundary} of 32"
        in text
    )
    lowest = int(text.split("give budget='")[1].split("avg")[0])
    assert build("fastv", parse(f"{lowest}avg"), {"boundary": boundary}, S7).knobs()["keep"] == 1
    with pytest.raises(PrunebenchError, match="cannot average"):
        build("fastv", parse(f"{lowest - 1}avg"), {"boundary": boundary}, S7)


def test_sparsevlms_nominal_budgets_average_more_than_they_say() -> None:
    means = {}
    for retain in (192, 128, 96, 64):
        plan = build("sparsevlm", NONE, {"retain": retain}, S7).plan(S7.with_text(40))
        assert plan is not None
        means[retain] = round(sum(plan) / len(plan), 1)
        assert plan[:3] == [576] * 3  # layers 0, 1, 2 are full, also the one that scores
    assert means == {192: 206.5, 128: 145.4, 96: 114.1, 64: 82.2}  # 82.25


@pytest.mark.parametrize("name", ["uniform", "random", "fastv", "sparsevlm", "pooling"])
@pytest.mark.parametrize("text", ["100avg", "300avg", "0.35flops", "0.8flops", "1flops"])
def test_the_solver_finds_the_nearest_whole_token(name: str, text: str) -> None:
    budget, prompt = parse(text), S7.with_text(74)
    solved = build(name, budget, {}, prompt)

    def off(keep: int) -> float:
        try:
            cost = cost_of(build(name, Budget("kept", keep), {}, prompt), prompt)
        except PrunebenchError:
            return float("inf")
        assert cost is not None
        return abs(cost.mean_visual - budget.asked(576) if budget.tokens else cost.ratio - (budget.ratio or 0))

    keep = solved.knobs()["keep"]
    assert off(keep) == min(off(k) for k in range(max(keep - 5, 1), min(keep + 5, 576) + 1))
    assert off(keep) <= (0.5 if budget.tokens else 0.5 / 576)


def test_a_flops_budget_keeps_fewer_tokens_beside_more_text() -> None:
    keeps = [
        build("uniform", parse("0.35flops"), {}, S7.with_text(n_text)).knobs()["keep"] for n_text in (0, 40, 80, 160)
    ]
    assert all(a > b for a, b in pairwise(keeps))
    with pytest.raises(PrunebenchError, match="no task is known here"):
        load.Located(model_config.ModelConfig(name="mini"), Path(), None, None, "float32").method(
            "uniform", parse("0.35flops")
        )
    with pytest.raises(
        PrunebenchError, match=r"cannot cost 0.1 of the unpruned FLOPs at 160 text tokens: its floor is 0\.2"
    ):
        build("uniform", parse("0.1flops"), {}, S7.with_text(160))


@pytest.mark.parametrize("text", ["64avg", "0.35flops"])
def test_methods_without_a_schedule_refuse_what_must_be_solved(text: str) -> None:
    with pytest.raises(
        PrunebenchError,
        match=r"visipruner does not say before it runs .* give the number of tokens to keep \(budget=64\)",
    ):
        build("visipruner", parse(text), {}, S7.with_text(74))
    with pytest.raises(
        PrunebenchError, match=r"downsample cannot .* whatever it keeps it (averages 576.0|costs 1.000)"
    ):
        build("downsample", parse(text), {}, S7.with_text(74))


def test_the_solver_asks_only_for_a_schedule_that_falls_with_keep() -> None:
    @dataclass(frozen=True)
    class Steps(Method):
        keep: int = 1

        def plan(self, prompt: PromptShape) -> list[int]:
            if self.keep < 9:
                raise PrunebenchError("too few")
            return [576] * 16 + [self.keep] * 16

    def at(keep: int) -> Method:
        return Steps(keep)

    assert solve(parse("300avg"), at, S7, "steps") == 24
    with pytest.raises(
        PrunebenchError, match=r"keeping 9 to 576 tokens it reaches 292\.5 to 576\.0: give budget='293avg' to"
    ):
        solve(parse("290avg"), at, S7, "steps")


# ------------------------------------------------------------------------------------------------- budget against knobs


@pytest.mark.parametrize(
    ("name", "text", "knobs", "says"),
    [
        ("fastv", None, {}, "fastv needs a budget"),
        ("fastv", "64", {"keep": "5"}, "give either budget='64' or keep, not both"),
        ("sparsevlm", "native", {"retain": 64}, "give either budget='native' or retain, not both"),
        ("none", "64", {}, "none prunes nothing to a count, so it takes no budget; found budget='64'"),
        ("knockout", "native", {}, "knockout prunes nothing to a count, so it takes no budget"),
        ("sparsevlm", "2", {}, "sparsevlm cannot keep 2 visual tokens: expected a budget of at least 7 "),
        ("sparsevlm", "6", {}, "expected a budget of at least 7 "),
        ("uniform", "native", {}, "no published defaults"),
        ("uniform", "calibrated", {}, "nothing to calibrate"),
        ("uniform", "577", {}, "576 visual tokens"),
        ("uniform", "577avg", {}, "576 visual tokens"),
    ],
)
def test_a_budget_and_the_knobs_it_sets_are_one_or_the_other(
    name: str, text: str | None, knobs: dict, says: str
) -> None:
    with pytest.raises(PrunebenchError, match=says):
        build(name, parse(text), knobs, S7)


def test_the_fewest_tokens_that_a_refusal_names_can_be_kept() -> None:
    assert build("sparsevlm", parse("7"), {}, S7).plan(S7)[-1] == 7  # type: ignore[index]


def test_a_knob_may_stand_for_the_budget_and_every_method_takes_one_or_none() -> None:
    assert build("fastv", NONE, {"keep": "5"}, S7).knobs() == {"keep": 5, "boundary": 2}
    for name, cls in registered().items():
        built = build(name, parse(cls.usual_budget) if cls.budget_knobs else NONE, {}, S7)
        plan = built.plan(S7.with_text(74))
        assert plan is None or len(plan) == S7.depth, name


def test_calibrated_takes_the_models_file_below_the_given_knobs(tmp_path, monkeypatch) -> None:
    located = load.Located(model_config.ModelConfig(name="mini", stands_for="mini"), tmp_path, None, None, "float32")
    located.__dict__.update({"usual": MINI, "one_size": True})  # cached properties: no weights here
    monkeypatch.setattr(model_config, "MODEL_CONFIGS", tmp_path / "configs" / "models")
    calibrated = parse("calibrated")
    with pytest.raises(
        PrunebenchError, match=r"no such file: `prunebench analyze MODEL --method visipruner --write-config`"
    ) as error:
        located.method("visipruner", calibrated)
    assert "configs/visipruner/mini.yaml" in str(error.value)
    folder = tmp_path / "configs" / "visipruner"
    folder.mkdir(parents=True)
    (folder / "mini.yaml").write_text(
        "knobs: {tokens_threshold: 0.7, exit_votes: 3}\nderived_by: hand, for this test\n"
    )
    knobs = located.method("visipruner", calibrated, {"exit_votes": 4}).knobs()
    assert (knobs["tokens_threshold"], knobs["exit_votes"], knobs["keep"]) == (0.7, 4, None)
    (folder / "mini.yaml").write_text("knobs: {tokens_treshold: 0.7}\nderived_by: hand\n")
    with pytest.raises(PrunebenchError, match="did you mean 'tokens_threshold'"):
        located.method("visipruner", calibrated)
    (folder / "mini.yaml").write_text("tokens_threshold: 0.7\n")
    with pytest.raises(PrunebenchError, match="not a calibration file"):
        located.method("visipruner", calibrated)


# ------------------------------------------------------------------------------------------------------------- using it


def test_a_tasks_text_length_is_the_mean_of_its_tokenised_prompts() -> None:
    prompter = SimpleNamespace(prompt_ids=lambda content, sizes: [1] * 576 + [0] * len(content[1]), image_token_id=1)
    task = SimpleNamespace(samples=[SimpleNamespace(content=(None, "x" * n), images=[None]) for n in (10, 20, 33)])
    assert mean_text(SimpleNamespace(prompter=prompter, one_size=True), task) == 21  # type: ignore[arg-type]


def test_the_readmes_table_says_what_64_costs_under_each_unit() -> None:
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in units_table(S7.with_text(74)).splitlines()
    ]
    rows = {(line[0], line[1]): line[2:] for line in lines[2:]}
    assert rows["`64`", "fastv"][:2] == ["keep=64", "96.0"]
    assert rows["`64avg`", "fastv"][:2] == ["keep=30", "64.1"]
    assert rows["`64avg`", "downsample"][0] == "not reachable"
    shares = {name: float(rows["`64`", name][3]) for name in ("uniform", "fastv", "downsample")}
    assert shares["uniform"] < shares["fastv"] < shares["downsample"] == 100
