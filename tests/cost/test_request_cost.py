"""Whole requests: every term against torch's counter and the tensors of a run, break-even against a search, the command
against both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch
from factories import HOSTILE
from PIL import Image
from tiny import prompts, tiny_llava
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache
from typer.testing import CliRunner

from harness.cli import app
from harness.core import budget as budgets
from harness.core import flops
from harness.core.costs import request_flops
from harness.core.errors import PrunebenchError
from harness.core.requests import (
    Machine,
    TokenRates,
    WholeRequest,
    saving_batch,
    saving_outputs,
    step_speedup,
)
from harness.core.shape import SHAPES, PromptShape
from harness.cost import plan, timed
from harness.cost.request import BOUND, NO_SCORING, PLAN, chosen, machine, planned, unpruned
from harness.engine.attach import attach
from harness.engine.prefix import PrefixCache
from harness.method import Method, build
from harness.models.adapters import adapter_for
from harness.models.load import locate_model
from harness.proof.conformance.kit import one_thread
from harness.runner.answering import Answerer, Prompt
from harness.runner.features import FeatureCache
from harness.store.store import Store
from harness.tables.requests import measured, of_cells, token_rates
from harness.tables.sections import amortised_flops, distinct
from methods.fastv import FastV
from methods.none import Unpruned
from methods.visionzip import VisionZip
from methods.visipruner import VisiPruner

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
B7 = SHAPES["llava-1.5-7b"].with_text(74)
BEFORE, QUESTION = 3, [20, 21, 22, 23]
#: each drops tokens, and edits no attention, whose extra calls are in no request
METHODS = {
    "none": Unpruned(),
    "fastv": FastV(keep=5, boundary=2),
    "visionzip": VisionZip(keep=6),
    "visipruner": VisiPruner(keep=5, shallow=False, force_fusion_layer=3, force_exit_layer=6),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def llava() -> object:
    return tiny_llava(depth=8, kv_heads=2)


def request_of(llava: object, method: Method) -> WholeRequest:
    prompt = adapter_for(llava).usual.with_text(BEFORE + len(QUESTION))
    return planned(method.for_model(prompt.decoder), "", prompt, BEFORE).request


def counted(llava: torch.nn.Module, method: Method, new_tokens: int) -> tuple[int, int]:
    """FLOPs of a request that runs under the counter, and bytes of its cache at the end."""
    given = prompts(QUESTION, before=BEFORE)
    cache = DynamicCache(config=llava.config.text_config)
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        attach(llava, method),
        FlopCounterMode(display=False) as counter,
    ):
        llava(**given, past_key_values=cache, logits_to_keep=1)
        for _ in range(new_tokens - 1):
            llava(input_ids=given["input_ids"][:, -1:], past_key_values=cache)
    return counter.get_total_flops(), sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))


# ------------------------------------------------------------------------------------------------------ against a run


@pytest.mark.parametrize("new_tokens", [1, 2, 7])
@pytest.mark.parametrize("name", METHODS)
def test_a_request_costs_what_the_counter_counts_and_the_cache_holds(llava, name: str, new_tokens: int) -> None:
    request = request_of(llava, METHODS[name])
    assert (request.flops(new_tokens), request.kv_at(new_tokens)) == counted(llava, METHODS[name], new_tokens)


@pytest.mark.parametrize("part", ["tower_flops", "projector_flops", "prefill_flops", "kv_bytes"])
@pytest.mark.parametrize("rate", ["linear_flops", "pair_flops", "head_flops"])
def test_a_term_left_out_is_noticed(llava, part: str, rate: str) -> None:
    request = request_of(llava, METHODS["fastv"])
    total, _ = counted(llava, METHODS["fastv"], 3)
    assert request.flops(3) == total
    assert replace(request, **{part: 0}).flops(3) < total
    assert replace(request, rates=replace(request.rates, **{rate: 0})).flops(3) < total


def test_scoring_is_part_of_the_prefill(llava) -> None:
    request = request_of(llava, METHODS["visipruner"])
    assert 0 < request.scoring_flops < request.prefill_flops
    total, _ = counted(llava, METHODS["visipruner"], 1)
    assert replace(request, prefill_flops=request.prefill_flops - request.scoring_flops).flops(1) < total


def test_a_step_reads_the_matrices_and_the_cache(llava) -> None:
    layers = [p for name, p in llava.named_parameters() if ".layers." in name and "vision" not in name and p.ndim == 2]
    matrices = sum(p.nbytes for p in (*layers, llava.lm_head.weight))
    for method in METHODS.values():
        request = request_of(llava, method)
        assert request.rates.weight_bytes == matrices
        for step in (1, 4):
            _, cache = counted(llava, method, step + 1)
            assert request.step_bytes(step) == matrices + cache
            assert request.step_bytes(step, 5) == matrices + 5 * cache


@pytest.mark.parametrize("name", METHODS)
def test_questions_share_what_none_of_them_changes(llava, name: str) -> None:
    method = METHODS[name]
    shape, image = adapter_for(llava).shape, adapter_for(llava).usual.images[0]
    seen = flops.vision_tower(image.vision) + flops.projector(shape, image.vision)
    visual = {"none": [16] * 8, "fastv": [16] * 2, "visionzip": [6] * 8, "visipruner": [16] * 4}[name]
    request = request_of(llava, method)
    own = sum(flops.layer(shape, v) for v in visual) + (request.scoring_flops if name == "visionzip" else 0)
    assert request.shared_flops == seen + own
    for questions in (1, 6, 18):
        each = request.flops(4, questions)
        assert questions * each == pytest.approx(questions * request.flops(4) - (questions - 1) * (seen + own))


def _looks(method: Method, prompt: PromptShape) -> int:
    vision = prompt.images[0].vision
    found = method.for_model(prompt.decoder).looks(prompt.decoder)
    return sum(flops.look(vision, look.what, look.layer) for look in found)


@pytest.mark.parametrize("name", ["none", "fastv", "visionzip"])
def test_the_runner_shares_what_a_request_says_and_the_text_in_front(name: str) -> None:
    """FLOPs of one more question about an image, as the runner asks it, under the counter."""
    located = locate_model("mini", "cpu", "float32")
    loaded, usual = located.load(), located.usual
    method = located.method(name, budgets.parse("64" if name != "none" else "none"), {})
    picture = Image.new("RGB", (80, 60), (200, 30, 90))

    def total(n: int) -> int:
        asked = [Prompt.of_one(f"p/{i}", "Is it red?", lambda: picture, "image", 1) for i in range(n)]
        answerer = Answerer(loaded, method, batch_size=1, features=FeatureCache(), prefixes=PrefixCache())
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            assert len(list(answerer.answer(asked))) == n
        return counter.get_total_flops()

    ids = loaded.prompt_ids("Is it red?")
    v, n = usual.n_visual, len(ids)
    before = ids.index(loaded.image_token_id)
    request = planned(method, "", usual.with_text(n - v), before).request
    more = total(3) - total(2)
    assert more == total(2) - total(1)
    rates, own = request.rates, request.flops(1) - request.shared_flops
    # the text in front of the image, and the products of both with the question's keys, are the runner's own saving
    kept, layers = (64, 1.0) if name == "visionzip" else (v, method.plan(usual.with_text(n - v)).count(v) / usual.depth)
    n -= v - kept
    front = layers * (rates.linear_flops * before + rates.pair_flops * ((before + kept) * n - kept * kept))
    # looks at the tower are kept with the image; products of these are made again
    again = 0 if name != "visionzip" else request.scoring_flops - _looks(method, usual)
    assert more == own - front + again
    assert 0 < front < 0.6 * own


# ------------------------------------------------------------------------------------------------------------- bounds


def test_no_choice_of_a_prompt_costs_more_than_the_bound() -> None:
    method = build("visipruner", budgets.parse("64"), {}, B7)
    bound = planned(method, "64", B7, 35)
    assert (bound.source, bound.bound) == (BOUND, "<= ")
    assert len(chosen(method, B7)) > 50
    nearest = dict.fromkeys((1, 18), 1e9)
    for fusion, exit_layer in product((7, 10, 16), (-1, 20, 31)):
        forced = replace(method, force_fusion_layer=fusion, force_exit_layer=exit_layer).for_model(B7.decoder)
        one = planned(forced, "64", B7, 35)
        assert one.source == PLAN
        for new_tokens, questions in product((1, 512), nearest):
            over = bound.request.flops(new_tokens, questions) / one.request.flops(new_tokens, questions)
            assert over >= 1
            nearest[questions] = min(nearest[questions], over)
        assert bound.request.kv_bytes >= one.request.kv_bytes
    assert nearest[1] == 1, "the latest choice is the bound"


def test_a_schedule_that_only_the_prompt_knows_is_refused() -> None:
    method = build("visipruner", budgets.parse("native"), {}, B7)
    with pytest.raises(PrunebenchError, match="visipruner: expected a schedule, found that the prompt decides"):
        planned(method, "native", B7, 35)


# --------------------------------------------------------------------------------------------------------- break-even


def priced(name: str, prompt: PromptShape = B7) -> WholeRequest:
    return planned(build(name, budgets.parse("64"), {}, prompt), "64", prompt, 35).request


@pytest.mark.parametrize("questions", [1, 6, 18])
@pytest.mark.parametrize("name", ["fastv", "visionzip", "cdpruner"])
@pytest.mark.parametrize("saving", [0.02, 0.1, 0.5])
def test_break_even_is_where_a_search_finds_it(name: str, questions: int, saving: float) -> None:
    base = unpruned(B7, 35).request
    one = priced(name)

    def saves(n: int) -> bool:
        return one.flops(n, questions) <= (1 - saving) * base.flops(n, questions)

    grid = [n for n in range(1, 40_000, 7) if saves(n)]
    ends = saving_outputs(one, base, saving, questions)
    if ends is None:
        assert grid == []
        return
    first, last = ends
    assert saves(first)
    assert saves(last)
    assert not saves(last + 1)
    assert first == 1 or not saves(first - 1)
    assert all(first <= n <= last for n in grid)


def test_a_method_may_need_a_long_answer_first() -> None:
    """Costly scoring is paid back by each step: the savings start late, and end."""
    base = unpruned(B7, 35).request
    costly = replace(base, prefill_flops=base.prefill_flops * 1.001, kv_bytes=base.kv_bytes / 4)
    first, last = saving_outputs(costly, base, 0.005) or (0, 0)
    assert 1 < first < last
    for n, saves in ((first - 1, False), (first, True), (last, True), (last + 1, False)):
        assert (costly.flops(n) <= 0.995 * base.flops(n)) == saves
    assert saving_outputs(base, base, 0.005) is None


@pytest.mark.parametrize("saving", [0.02, 0.1, 0.5])
def test_the_batch_is_the_smallest_whose_step_reads_less(saving: float) -> None:
    base, one = unpruned(B7, 35).request, priced("fastv")
    batch = saving_batch(one, base, saving)
    assert batch is not None
    assert one.step_bytes(1, batch) <= (1 - saving) * base.step_bytes(1, batch)
    assert batch == 1 or one.step_bytes(1, batch - 1) > (1 - saving) * base.step_bytes(1, batch - 1)
    assert saving_batch(base, base, saving) is None
    assert saving_batch(one, base, 0.9) is None, "no batch reads fewer bytes than the cache alone"
    assert step_speedup(one, base, batch) >= 1 / (1 - saving)


def test_the_least_time_is_the_slower_of_arithmetic_and_memory() -> None:
    request = unpruned(B7, 35).request
    weights, head = request.rates.weight_bytes, request.rates.head_flops
    # memory without end: FLOPs alone; arithmetic without end: the weights of each pass, and the cache of each step
    assert Machine(1e30, 1e12).seconds(request, 3, 6, 2) == pytest.approx(2 * request.flops(3, 6) / 1e12)
    steps = sum(request.step_bytes(step, 2) for step in (1, 2))
    assert Machine(1e9, 1e30).seconds(request, 3, 6, 2) == pytest.approx((weights + steps) / 1e9)
    mixed = Machine(4.8e12, 989e12)
    found = mixed.seconds(request, 2) - mixed.seconds(request, 1)
    assert found == pytest.approx(request.step_bytes(1) / 4.8e12)
    assert found > (request.step_flops(1) + head) / 989e12


# ------------------------------------------------------------------------------------------------------ sealed cells


@pytest.fixture(scope="module")
def known() -> dict[str, object]:
    found = distinct(Store(REFERENCE).cells())
    return {
        i: s
        for i, s in found.items()
        if s.cell.task == "textvqa" and s.cell.model == "mini" and s.cell.budget in ("none", "64")
    }


def test_cells_tell_the_rates_of_their_model(known) -> None:
    base = next(s for s in known.values() if s.cell.method == "none")
    assert token_rates(base, base.samples()) == TokenRates.of(plan.usual_prompt("mini").decoder)
    assert token_rates(base, base.samples().drop(columns="keeps")) is None


def test_a_cells_request_is_the_mean_of_its_prompts(known) -> None:
    usual = plan.usual_prompt("mini")
    rates = TokenRates.of(usual.decoder)
    for name in ("fastv", "visionzip", "cdpruner"):
        sealed = next(s for s in known.values() if s.cell.method == name)
        knobs = {k: v for k, v in sealed.cell.knobs.items() if k not in sealed.method_info["budget_knobs"]}
        samples = sealed.samples()
        found = measured(sealed, samples, rates)
        expected = []
        for n_text in samples["n_text"]:
            prompt = usual.with_text(int(n_text))
            expected.append(planned(build(name, budgets.parse("64"), knobs, prompt), "64", prompt, 3))
        assert {one.source for one in expected} <= {PLAN, NO_SCORING}
        # what a plan does not know of a method that reads the question's text
        scoring = found.scoring_flops - sum(one.request.scoring_flops for one in expected) / len(expected)
        for new_tokens, questions in product((1, 16, 512), (1, 6)):
            mean = sum(one.request.flops(new_tokens, questions) for one in expected) / len(expected)
            assert found.flops(new_tokens, questions) == pytest.approx(mean + scoring, rel=1e-9)
        assert found.kv_at(16) == pytest.approx(sum(one.request.kv_at(16) for one in expected) / len(expected))


def test_requests_are_those_of_the_leaderboard_at_the_answers_lengths(known) -> None:
    """`request_flops` and the amortised column count the same request at the tokens that were generated."""
    found = of_cells(known.values(), known, lambda sealed: sealed.samples())
    assert len(found) == len(known) > 20
    asked = 0
    for identity, (request, _) in found.items():
        sealed = known[identity]
        samples = sealed.samples()
        if not (samples["n_new_tokens"] <= 1).all():
            n = samples["n_new_tokens"].clip(lower=1)
            more = sealed.costs["decode_flops"] + request.rates.head_flops * (n.mean() - 1)
        else:
            more = 0
        assert request.flops(1) + more == pytest.approx(request_flops(sealed.costs), rel=1e-9)
        if not sealed.method_info["query_aware"]:
            asked += 1
            assert request.flops(1, 6) + more == pytest.approx(amortised_flops(sealed), rel=1e-9)
        else:
            assert request.shared_flops < sealed.costs["vision_flops"] + sealed.costs["prefill_dense_flops"]
    assert asked > 5


# -------------------------------------------------------------------------------------------------------- the command


def said(*words: str) -> str:
    done = CliRunner().invoke(app, ["cost", *words])
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.output


def refused(*words: str) -> str:
    done = CliRunner().invoke(app, ["cost", *words])
    assert isinstance(done.exception, PrunebenchError), done.output
    return str(done.exception)


def test_the_command_prints_what_the_functions_say(tmp_path: Path) -> None:
    out = tmp_path / "costs.csv"
    text = said("fastv,visipruner", "--budget", "64,128", "--request", "--out", str(out), "--batch", "1,8")
    assert "32 layers, 576 visual and 74 text tokens (35 before the image)" in text
    assert "<= the prompt decides" in text
    frame = pd.read_csv(out, keep_default_na=False)
    assert len(frame) == (1 + 2 * 2) * 4 * 3 * 2
    one = priced("fastv")
    row = frame.query("method == 'fastv' and budget == '64' and new_tokens == 128 and questions == 6 and batch == 8")
    assert row["request_flops"].item() == pytest.approx(one.flops(128, 6))
    assert row["kv_bytes_at_end"].item() == one.kv_at(128)
    assert row["least_seconds_of_batch"].item() == pytest.approx(
        machine("4.8TB/s", "989TFLOPS").seconds(one, 128, 6, 8)
    )
    parts = ("vision_flops", "projector_flops", "prefill_dense_flops", "decode_flops", "lm_head_flops")
    whole = frame[frame["questions"] == 1]
    assert (sum(whole[name] for name in parts) - whole["request_flops"]).abs().max() < 1
    assert set(frame["source"]) == {PLAN, BOUND}


def test_cells_take_the_place_of_schedules() -> None:
    words = ("visipruner,fastv", "--budget", "64", "--request", "--model", "mini", "--results", str(REFERENCE))
    text = said(*words)
    assert text.startswith("mini, float32, cpu")
    assert "means over gqa, mme, pope, textvqa" in text
    assert "<=" not in text
    assert said(f"none,{words[0]}", *words[1:]) == text, "the unpruned request is there anyway"
    assert "expected cells of mini, ghost at 64" in refused("ghost", *words[1:])
    assert "found none" in refused("fastv", "--budget", "25%", *words[3:]), "a share is no count"
    assert "cells have prompts and settings of their own" in refused(*words, "--text-tokens", "30")


def test_measured_times_add_up_by_output_length(tmp_path: Path) -> None:
    def row(name: str, budget: str, prefill: float) -> dict[str, object]:
        times = {"vision_ms": 6.0, "prefill_ms": prefill, "decode_ms_per_token": 2.0}
        return {"name": name, "budget": budget} | {key: {"median": value} for key, value in times.items()}

    raw = {
        "settings": {"model": "llava-1.5-7b"},
        "batches": [
            {"batch": 8, "rows": [row("bare model", "", 40.0), row("fastv", "64", 10.0), row("dart", "64", 9.0)]}
        ],
    }
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(raw))
    bare, fastv = timed.read(file, "llava-1.5-7b", ["fastv"])
    assert [bare.ms(1), bare.ms(16), fastv.ms(16), fastv.ms(16, 6)] == [46, 76, 46, 41]
    text = said("fastv", "--budget", "64", "--request", "--times", str(file))
    line = next(line for line in text.splitlines() if line.startswith("fastv") and " 8 " in line and "(34.8)" in line)
    assert line.split()[:4] == ["fastv", "64", "8", "1"]
    for wrong in ("", "[]", '{"settings": {}}', json.dumps({"settings": {"model": HOSTILE}, "batches": [{}]})):
        bad = tmp_path / "bad.json"
        bad.write_text(wrong)
        with pytest.raises(PrunebenchError, match=r"expected the bench\.json"):
            timed.read(bad, "mini", [])
    with pytest.raises(PrunebenchError, match="expected times of mini, found those of llava"):
        timed.read(file, "mini", [])
    with pytest.raises(PrunebenchError, match="expected times of vtw, found none"):
        timed.read(file, "llava-1.5-7b", ["vtw"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--new-tokens", "0"), "expected whole numbers from 1 to 100,000"),
        (("--new-tokens", "1,x"), "expected whole numbers with commas"),
        (("--questions", "9" * 30), "expected whole numbers with commas"),
        (("--batch", ","), "expected whole numbers with commas"),
        (("--saving", "100%"), "expected more than 0% and less than 100%"),
        (("--saving", "0.1"), "expected more than 0% and less than 100%"),
        (("--bandwidth", "4.8"), "expected a rate as in"),
        (("--bandwidth", "0GB/s"), "expected a rate as in"),
        (("--peak", "fast"), "expected a rate as in"),
    ],
)
def test_wrong_words_are_refused(words: tuple[str, str], says: str) -> None:
    assert says in refused("fastv", "--budget", "64", "--request", *words)
    assert "beside it, found none" in refused("fastv", "--budget", "64", *words), "only whole requests take it"


def test_no_method_is_refused() -> None:
    assert "expected METHODS with commas" in refused(" , ", "--budget", "64", "--request")


def test_a_damaged_cell_is_named_and_left_out(tmp_path: Path) -> None:
    for name in ("none", "fastv-64", "fastv-32"):
        for cell in (REFERENCE / "cells" / "pope").glob(f"mini-{name}-*"):
            shutil.copytree(cell, tmp_path / "cells" / "pope" / cell.name)
    broken = next((tmp_path / "cells" / "pope").glob("mini-fastv-32-*"))
    (broken / "samples.parquet").write_bytes(b"")
    done = CliRunner().invoke(app, ["cost", "fastv", "--request", "--model", "mini", "--results", str(tmp_path)])
    assert done.exit_code == 1
    assert "means over pope" in done.output
    assert f"left out: {broken}" in done.output
