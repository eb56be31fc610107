"""The clock of `prunebench bench`: what takes its turn, in which order, what is timed, and what the report says of
it."""

import json
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_llava
from torch import nn

from harness.bench import command, measure, random_model, tables
from harness.bench.measure import Contender, CudaDevice, Device, PassTimes, TimedRun
from harness.bench.settings import BARE, Settings, knobs_by_method
from harness.cli import app
from harness.core import flops
from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.core.paths import TOP as REPOSITORY
from harness.core.shape import SHAPES, PromptShape, Share
from harness.gpu_check import timing
from harness.method import Attention, Method, Reduction, Stream, Traits, build, method_class
from harness.method import Run as MethodRun
from harness.models.adapters import ADAPTERS, LlavaAdapter, adapter_for
from harness.proof.conformance.family_models import VOCAB, family_model

S7 = SHAPES["llava-1.5-7b"]
CPU = Device(torch.device("cpu"))
BARE_TURN, NONE_TURN = Contender(BARE, "", None), Contender("none", "", method_class("none")())


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llava(depth=6)


@pytest.fixture(scope="module")
def small() -> Settings:
    """A mini model of random weights, fast enough for whole runs."""
    return Settings(
        random_weights=True,
        methods=("none", "fastv"),
        budgets=("64",),
        batches=(1,),
        text_tokens=8,
        new_tokens=2,
        repeats=2,
        warmup=1,
    )


def sample(seconds: float, peak: int | None = None) -> PassTimes:
    return PassTimes(seconds / 2, seconds, seconds / 10, peak)


@dataclass(frozen=True)
class Sleeper(Method):
    """Prunes nothing and sleeps where it is told to."""

    name = "sleeper"
    where: str = ""
    seconds: float = 0.3

    def on_pixels(self, pixels: torch.Tensor) -> None:
        if self.where == "pixels":
            time.sleep(self.seconds)

    def on_attention(self, run: MethodRun, layer: int, attn: Attention) -> None:
        if self.where == "attention" and layer == 0:
            time.sleep(self.seconds)


# ------------------------------------------------------------------------------------------------------------ the clock


@pytest.mark.parametrize(("where", "slow"), [("pixels", "vision_s"), ("attention", "prefill_s")])
def test_a_method_that_sleeps_is_slower_where_it_sleeps(model: Any, where: str, slow: str) -> None:
    given = random_model.random_input(model, 2, 8, 0)
    turns = [BARE_TURN, Contender("sleeper", "", Sleeper(where)), Contender("sleeper", "", Sleeper())]
    got = measure.measure(lambda c: measure.run_once(model, c, given, CPU, 3, 0), turns, repeats=3, warmup=1)
    for key in ("vision_s", "prefill_s", "decode_s"):
        bare, asleep, awake = (statistics.median(getattr(s, key) for s in m.samples) for m in got)
        assert (asleep - awake > 0.2) == (key == slow), (key, asleep, awake)
        assert bare > 0


def test_decode_is_timed_per_token(model: Any) -> None:
    given = random_model.random_input(model, 1, 8, 0)
    calls: list[int] = []

    def slow_step(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        calls.append(kwargs["inputs_embeds"].shape[1])
        time.sleep(0.1 if calls[-1] == 1 else 1.5)

    handle = model.model.language_model.register_forward_pre_hook(slow_step, with_kwargs=True)
    try:
        timed = measure.run_once(model, NONE_TURN, given, CPU, 5, 0).sample
    finally:
        handle.remove()
    assert calls == [24, 1, 1, 1, 1]
    assert timed.prefill_s > 1.5
    assert 0.1 < timed.decode_s < 0.3


def test_every_contender_takes_its_turn_in_rotating_order() -> None:
    assert [measure.order(3, r) for r in range(4)] == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]
    seen: list[str] = []

    def once(contender: Contender) -> TimedRun:
        seen.append(contender.name)
        return TimedRun(sample(len(seen)), 0, None)

    turns = [Contender(name, "", None) for name in "abc"]
    measured = measure.measure(once, turns, repeats=2, warmup=1)
    assert "".join(seen) == "abc" + "bca" + "cab"
    # the warm-up is thrown away, and each sample is its own contender's
    assert [[s.prefill_s for s in m.samples] for m in measured] == [[6, 8], [4, 9], [5, 7]]


def test_medians_and_quartiles_are_of_the_samples() -> None:
    assert tables.spread([5, 1, 4, 2, 3]) == (3, 2, 4, 1, 5)
    assert tables.spread([3.0]) == (3, 3, 3, 3, 3)
    assert tables.spread([1.0, 2.0]) == (1.5, 1, 2, 1, 2)


def test_a_row_is_what_its_samples_and_its_trace_say(model: Any) -> None:
    prompt = adapter_for(model).usual.with_text(8)
    given = random_model.random_input(model, 2, 8, 0)
    method = method_class("fastv")(keep=4, boundary=2)  # type: ignore[call-arg]
    ran = measure.run_once(model, Contender("fastv", "4", method), given, CPU, 3, 0)
    assert ran.trace is not None

    def of(contender: Contender, *seconds: float, run: TimedRun) -> measure.Times:
        return measure.Times(contender, [sample(s, int(100 * s)) for s in seconds], run.kv_bytes, run.trace)

    bare_run = measure.run_once(model, BARE_TURN, given, CPU, 3, 0)
    bare, none = (
        of(BARE_TURN, 1, 8, 6, run=bare_run),
        of(NONE_TURN, 8, 7, 9, run=measure.run_once(model, NONE_TURN, given, CPU, 3, 0)),
    )
    row = tables.summary(of(Contender("fastv", "4", method), 2, 4, 3, run=ran), bare, none, prompt, 2)
    assert row["prefill_ms"]["samples"] == [2000, 4000, 3000]
    assert (row["prefill_ms"]["median"], row["prefill_ms"]["low"], row["prefill_ms"]["high"]) == (3000, 2000, 4000)
    assert row["decode_ms_per_token"]["median"] == pytest.approx(300)
    assert (row["prefill_speedup"], row["prefill_speedup_over_none"]) == (2, pytest.approx(8 / 3))
    assert row["visual_per_layer"] == [16, 16, 4, 4, 4, 4]
    assert (
        row["flops_ratio"]
        == flops.prefill_unpruned(prompt.decoder, 24) / flops.prefill_dense(prompt.decoder, ran.trace, 0)
        > 1
    )
    assert row["realised_share"] == pytest.approx(2 / row["flops_ratio"])
    assert row["peak_bytes"] == 400
    # 2 x 24 layers' tokens less 12 in four layers, times keys and values of 32 numbers of 4 bytes
    assert row["kv_bytes"] == row["kv_bytes_closed_form"] == 2 * (6 * 24 - 4 * 12) * 2 * 32 * 4
    whole = tables.summary(bare, bare, none, prompt, 2)
    assert whole["kv_bytes"] == whole["kv_bytes_closed_form"] == 2 * 6 * 24 * 2 * 32 * 4
    assert (whole["flops_ratio"], whole["realised_share"], whole["knobs"]) == (1, 1, None)
    cost = tables.overhead([whole, tables.summary(none, bare, none, prompt, 2)])
    assert cost["prefill_ms"] == 2000
    assert cost["prefill_share"] == pytest.approx(1 / 3)


def test_a_cache_that_is_not_what_the_closed_form_says_is_named(model: Any) -> None:
    given = random_model.random_input(model, 1, 8, 0)
    runs = [measure.run_once(model, c, given, CPU, 2, 0) for c in (BARE_TURN, NONE_TURN)]
    measured = [
        measure.Times(c, [sample(1)], r.kv_bytes, r.trace) for c, r in zip((BARE_TURN, NONE_TURN), runs, strict=True)
    ]
    prompt = adapter_for(model).usual.with_text(8)

    def remark(off: int) -> str:
        changed = [measured[0], replace(measured[1], kv_bytes=measured[1].kv_bytes + off)]
        return tables.remarks([tables.summary(m, *measured, prompt, 1) for m in changed])[1]

    assert remark(0) == "KV bytes of the cache tensors equal the closed form in all 2 rows"
    assert remark(8).startswith("KV bytes differ from the closed form: none : ")


def test_a_noisy_clock_is_called_noisy(model: Any) -> None:
    given = random_model.random_input(model, 1, 8, 0)
    run, prompt = measure.run_once(model, NONE_TURN, given, CPU, 2, 0), adapter_for(model).usual.with_text(8)

    def remarks(*times: float) -> str:
        both = [measure.Times(c, [sample(t) for t in times], run.kv_bytes, run.trace) for c in (BARE_TURN, NONE_TURN)]
        return "\n".join(tables.remarks([tables.summary(m, *both, prompt, 1) for m in both]))

    assert "NOISY" not in remarks(1.0, 1.05, 1.1, 1.05)
    assert "NOISY, quote nothing of these: quartiles more than 20 % of the median apart in bare model, none" in remarks(
        1, 1, 2, 3
    )


def test_nothing_is_shared_between_runs(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    filled, encoded, encode = [], [], LlavaAdapter.encode
    monkeypatch.setattr(LlavaAdapter, "encode", lambda self, **inputs: encoded.append(1) or encode(self, **inputs))

    def look(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["inputs_embeds"].shape[1] > 1:
            assert kwargs["past_key_values"].get_seq_length() == 0
            filled.append(kwargs["past_key_values"])

    handle = model.model.language_model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        given = random_model.random_input(model, 1, 8, 0)
        measure.measure(
            lambda c: measure.run_once(model, c, given, CPU, 2, 0), [BARE_TURN, NONE_TURN], repeats=2, warmup=1
        )
    finally:
        handle.remove()
    assert len({id(cache) for cache in filled}) == len(filled) == len(encoded) == 6


def test_a_bare_turn_runs_without_the_engine_and_leaves_nothing_behind(model: Any) -> None:
    given = random_model.random_input(model, 1, 8, 0)
    kernels: list[str] = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda m, _: kernels.append(m.config._attn_implementation)
    )
    try:
        for turn in (NONE_TURN, BARE_TURN):
            assert (measure.run_once(model, turn, given, CPU, 2, 0).trace is None) == (turn is BARE_TURN)
    finally:
        handle.remove()
    assert kernels == ["prunebench"] * 2 + ["sdpa"] * 2


def test_logits_that_are_not_finite_are_no_result(model: Any) -> None:
    given = random_model.random_input(model, 1, 8, 0)
    handle = model.lm_head.register_forward_hook(lambda _m, _a, out: out.fill_(float("nan")))
    try:
        with pytest.raises(PrunebenchError, match="bench of bare model: nan or inf"):
            measure.run_once(model, BARE_TURN, given, CPU, 2, 0)
    finally:
        handle.remove()


# ----------------------------------------------------------------------------------------------------------- the device


def test_on_cuda_every_time_waits_for_the_device_and_the_peak_is_of_the_run(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda d: log.append(f"wait {d}"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda d: log.append(f"reset {d}"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda d: log.append(f"peak {d}") or 12345)
    clock = time.perf_counter
    monkeypatch.setattr(measure.time, "perf_counter", lambda: log.append("clock") or clock())
    handle = model.model.language_model.register_forward_pre_hook(lambda m, _: log.append("model"))
    try:
        ran = measure.run_once(
            model, NONE_TURN, random_model.random_input(model, 1, 8, 0), measure.device_of(device), 3, 0
        )
    finally:
        handle.remove()
    assert ran.sample.peak_bytes == 12345
    short = " ".join(log).replace(" cuda:0", "")
    assert short == "wait reset clock wait clock model wait clock wait clock model model wait clock peak"


def test_a_cpu_says_that_its_peak_is_not_measured() -> None:
    assert measure.device_of(torch.device("cpu")).peak_bytes() is None
    assert isinstance(measure.device_of(torch.device("cuda")), CudaDevice)


# ------------------------------------------------------------------------------------------------------------ the model


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-1.5-13b"])
def test_random_weights_have_the_real_sizes(name: str) -> None:
    config = random_model.random_config(Settings(name, random_weights=True))
    assert PromptShape(LlavaAdapter.shape_of(config, 2), (LlavaAdapter.image_of(config),)) == SHAPES[name]
    assert (config.image_token_id, config.vision_config.image_size, config.vision_config.num_attention_heads) == (
        32000,
        336,
        16,
    )
    assert config.vision_feature_layer == -2
    four = random_model.random_config(Settings(name, random_weights=True, layers=4))
    assert LlavaAdapter.shape_of(four, 2) == replace(SHAPES[name].decoder, depth=4)
    with torch.device("meta"):
        model = random_model.AutoModelForImageTextToText.from_config(config)
    assert (
        sum(p.numel() for p in model.parameters())
        == {"llava-1.5-7b": 7_063_427_072, "llava-1.5-13b": 13_351_494_656}[name]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_weights_are_made_in_their_dtype_and_follow_the_seed(dtype: torch.dtype) -> None:
    config = random_model.random_config(Settings(random_weights=True, layers=4))
    models = [random_model.random_model(config, torch.device("cpu"), dtype, seed) for seed in (0, 0, 1)]
    first, same, other = (dict(m.named_parameters()) for m in models)
    assert {p.dtype for p in first.values()} == {dtype}
    assert all(torch.equal(first[n], same[n]) for n in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    for name, weight in first.items():
        values = weight.detach().float()
        if weight.ndim > 1:
            assert 0.016 < float(values.std()) < 0.024, name
        else:  # norms scale by 1; biases and the class embedding are 0
            assert set(values.tolist()) == {float(name.endswith("weight"))}, name
    out = models[0](**_inputs(models[0]))
    assert bool(torch.isfinite(out.logits).all())
    # rotary frequencies are no parameters, and must not be left unset
    assert torch.equal(models[0].model.language_model.rotary_emb.inv_freq, tiny_inv_freq(config))


def _inputs(model: Any) -> dict[str, torch.Tensor]:
    given = random_model.random_input(model, 1, 8, 0)
    return {"input_ids": given.ids, **given.images}


def tiny_inv_freq(config: Any) -> torch.Tensor:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    return LlamaRotaryEmbedding(config.text_config).inv_freq


def test_prompts_are_random_and_hold_one_whole_image(model: Any) -> None:
    ids = random_model.random_input(model, 4, 80, 0).ids
    visual = ids == 4
    assert visual.sum(1).tolist() == [16] * 4
    assert visual[:, 35:51].all()
    text = ids[~visual]
    assert (int(text.min()), int(text.max())) == (0, 63)
    assert not torch.equal(ids[0], ids[1])
    assert torch.equal(random_model.random_input(model, 4, 80, 0).ids, ids)
    assert (random_model.random_input(model, 1, 8, 0).ids == 4).nonzero()[0, 1] == 4, (
        "a short prompt has text on both sides"
    )


def test_a_model_that_does_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_model, "no_init_weights", lambda: pytest.fail("26 GiB were asked for"))
    monkeypatch.setattr(Path, "read_text", lambda _: "MemTotal: 9 kB\nMemAvailable:    8388608 kB\n")
    with pytest.raises(
        PrunebenchError,
        match=r"expected about 28\.9 GiB of free memory on cpu for 26\.3 GiB of float32 weights, found 8\.0",
    ):
        random_model.random_model(LlavaAdapter.config_of(S7), torch.device("cpu"), torch.float32, 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**33, 2**34))
    with pytest.raises(
        PrunebenchError,
        match=r"expected about 14\.5 GiB of free memory on cuda for 13\.2 GiB of bfloat16 weights, found 8\.0",
    ):
        random_model.random_model(LlavaAdapter.config_of(S7), torch.device("cuda"), torch.bfloat16, 0)


# ----------------------------------------------------------------------------------------------------------- contenders


def schedules(settings: Settings, **changes: Any) -> dict[str, list[int] | None]:
    prompt = replace(S7, decoder=replace(S7.decoder, **changes)).with_text(74)
    return {c.label: c.method.plan(prompt) for c in measure.contenders(settings, prompt, {}) if c.method is not None}


def test_contenders_are_the_unpruned_model_twice_and_every_method_at_every_budget() -> None:
    turns = measure.contenders(Settings(), S7, {})
    assert [c.label for c in turns[:2]] == ["bare model", "none"]
    assert [c.label for c in turns[2:]] == [
        f"{m} {b}" for m in ("fastv", "sparsevlm", "visipruner") for b in (192, 128, 64)
    ]
    assert [c.name for c in measure.contenders(Settings(methods=("knockout",)), S7, {})] == [BARE, "none", "knockout"]


def test_adaptive_methods_are_forced_to_layers_that_the_model_has() -> None:
    one = Settings(methods=("visipruner",), budgets=("64",))
    n = 576
    assert schedules(one)["visipruner 64"] == [n] * 15 + [64] * 9 + [0] * 8
    assert schedules(one, depth=12)["visipruner 64"] == [n] * 6 + [64] * 3 + [0] * 3
    # four layers leave no room for two votes and an exit
    assert schedules(one, depth=4)["visipruner 64"] == [n] * 3 + [64]

    def by_hand(**knobs: str) -> Settings:
        return replace(one, knobs={"visipruner": knobs})

    assert schedules(by_hand(force_fusion_layer="9"))["visipruner 64"] == [n] * 10 + [64] * 14 + [0] * 8
    assert (
        schedules(by_hand(force_fusion_layer="9", force_exit_layer="13"))["visipruner 64"]
        == [n] * 10 + [64] * 3 + [0] * 19
    )
    with pytest.raises(
        PrunebenchError, match=r"bench of visipruner at 64 on 4 layers: .*force_exit_layer=3: expected 5 to 3"
    ):
        schedules(by_hand(force_fusion_layer="2", force_exit_layer="3"), depth=4)
    with pytest.raises(
        PrunebenchError, match=r"bench of visipruner at 64 on 32 layers: .*force_exit_layer=24 needs force_fusion_layer"
    ):
        schedules(by_hand(force_exit_layer="24"))
    with pytest.raises(PrunebenchError, match="depends on the prompt, which is random here"):
        schedules(replace(one, budgets=("native",)))


def test_an_adaptive_method_that_cannot_be_forced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Wanderer(Method):
        name = "wanderer"
        traits = Traits(query_aware=True, adaptive=True)
        keep: int = 1

        def at_boundary(self, run: MethodRun, layer: int, stream: Stream) -> Reduction | None:
            return None

    for module in (measure, sys.modules["harness.method.build"]):
        monkeypatch.setattr(module, "method_class", lambda name: Wanderer if name == "wanderer" else method_class(name))
    with pytest.raises(
        PrunebenchError,
        match=r"bench of wanderer at 64 on 32 layers: it lets the prompt decide, .* choices\(\) names no knobs",
    ):
        measure.contenders(Settings(methods=("wanderer",), budgets=("64",)), S7, {})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--methods", "fastw"], "unknown method 'fastw'; did you mean 'fastv'"),
        (["--methods", "fastv,fastv"], "--methods: expected one or several different ones, found fastv, fastv"),
        (["--methods", ""], "--methods: expected one or several different ones, found none"),
        (["--budgets", "600"], "bench of fastv at 600 on 12 layers: budget 600: expected 1 to 576"),
        (["--budgets", "2"], "bench of sparsevlm at 2 on 12 layers: .*leave sparsevlm out of --methods"),
        (["--batch", "0"], "batch='0': expected a number of prompts"),
        (["--batch", "a"], "batch='a': expected a number of prompts"),
        (["--repeats", "0"], "--repeats 0: expected at least 1"),
        (["--warmup", "-1"], "--warmup -1: expected at least 0"),
        (["--new-tokens", "1"], "--new-tokens 1: expected at least 2"),
        (["--text-tokens", "1"], "--text-tokens 1: expected at least 2"),
        (["--layers", "4"], "--layers 4 works only with --random-weights"),
        (["--random-weights", "--layers", "13"], "--layers 13: expected at most 12, the depth of mini"),
        (["--random-weights", "--layers", "1"], "bench of fastv at 192 on 1 layers: fastv: boundary=2 does not fit"),
        (
            ["--random-weights", "--model", "llava-1.5-7b", "--layers", "2", "--methods", "sparsevlm"],
            (
                r"bench of sparsevlm at 192 on 2 layers: sparsevlm: stages=\(1,\) do not fit this model: .*leave"
                r" sparsevlm out"
            ),
        ),
        (
            ["--random-weights", "--model", "owner/model"],
            "expected .*llava-1.5-13b, llava-1.5-7b, .*qwen3-vl-8b, .*mini or a local folder .* found a hub id",
        ),
        (["--set", "fastv=3"], "--set fastv=3: expected METHOD.knob=value"),
        (["--set", "fastv.boundary=3 fastv.boundary=4"], r"fastv\.boundary=4: it is given twice, as 3 before"),
        (["--set", "fastv.boundary="], "--set fastv.boundary=: expected METHOD.knob=value"),
        (["--methods", "/gone/a,b.py:X"], "a method's path holds a comma"),
        (["--set", "random.boundary=3"], r"unknown method in --set METHOD\.knob=value 'random'"),
        (["--set", "fastv.boundary=12"], "boundary=12 does not fit"),
        (["--device", "tpu"], "device='tpu': expected auto, cpu"),
        (["--dtype", "float64"], "unknown dtype 'float64'"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_made(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("a model was made")

    monkeypatch.setattr(command, "random_model", never)
    monkeypatch.setattr("harness.models.load._load", never)
    with pytest.raises(PrunebenchError, match=says):
        app(["bench", *arguments, "--out", str(tmp_path)], standalone_mode=False)


# ----------------------------------------------------------------------------------------------------------- whole runs


def test_a_run_writes_a_table_that_names_device_settings_and_command(small: Settings, tmp_path: Path) -> None:
    said: list[str] = []
    result = command.run(replace(small, batches=(1, 2)), tmp_path / "new", said.append)
    written = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert written == json.loads(json.dumps(result))
    assert [b["batch"] for b in written["batches"]] == [1, 2]
    for batch in written["batches"]:
        assert [(r["name"], r["budget"]) for r in batch["rows"]] == [("bare model", ""), ("none", ""), ("fastv", "64")]
        for row in batch["rows"]:
            assert len(row["prefill_ms"]["samples"]) == 2
            assert row["prefill_ms"]["median"] == statistics.median(row["prefill_ms"]["samples"]) > 0
            assert row["kv_bytes"] == row["kv_bytes_closed_form"] > 0
            assert row["peak_bytes"] is None
    assert written["batches"][1]["rows"][2]["kv_bytes"] == 2 * written["batches"][0]["rows"][2]["kv_bytes"]
    text = (tmp_path / "new" / "BENCH.md").read_text()
    where = written["where"]
    machine = (where["device"], f"torch {torch.__version__}", "float32", f"{torch.get_num_threads()} threads")
    for needed in (*machine, "8 random text tokens", "not measured"):
        assert needed in text, needed
    assert f"`{written['command']}`" in text
    assert "## Batch 1" in text
    assert "engine overhead of `none` over the bare model: prefill" in text
    assert "fastv 64: 576 x 2, 64 x 10" in text
    assert any("realised" in line for line in said)


def test_the_recorded_command_gives_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shlex

    asked: list[Settings] = []
    monkeypatch.setattr(command, "run", lambda settings, *_: asked.append(settings))
    changed = Settings(
        "llava-1.5-7b",
        True,
        8,
        ("fastv", "visipruner"),
        ("64", "0.5flops"),
        (1, 4),
        80,
        4,
        3,
        1,
        {"fastv": {"boundary": "3"}, "visipruner": {"force_fusion_layer": "4", "force_exit_layer": "-1"}},
        "cpu",
        "bfloat16",
        7,
    )
    for settings in (Settings(), changed):
        app(shlex.split(settings.command())[1:], standalone_mode=False)
        assert asked[-1] == settings
    assert Settings().command() == "prunebench bench"


def test_knobs_and_the_models_own_reach_the_methods(small: Settings, tmp_path: Path) -> None:
    settings = replace(small, methods=("fastv", "sparsevlm"), knobs={"fastv": {"boundary": "3"}}, repeats=1, warmup=0)
    rows = command.run(settings, tmp_path, lambda _: None)["batches"][0]["rows"]
    assert rows[2]["visual_per_layer"] == [576] * 3 + [64] * 9
    # the official stages at the same relative depth
    assert list(rows[3]["knobs"]["stages"]) == [1, 2, 6]


def test_neither_lmms_eval_nor_data_sets_are_needed(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom harness.cli import app\napp(sys.argv[1:], standalone_mode=False)\nbad = [m for m in"
        " ('lmms_eval', 'datasets', 'tasks', 'harness.runner.run', 'harness.runner.answering') if m in"
        " sys.modules]\nsys.exit(str(bad) if bad else 0)"
    )
    arguments = [
        "bench",
        "--random-weights",
        "--methods",
        "none",
        "--batch",
        "1",
        "--repeats",
        "1",
        "--warmup",
        "0",
        "--new-tokens",
        "2",
        "--out",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "batch 1: repeat 1 of 1" in done.stderr


@pytest.mark.slow
def test_a_slice_of_the_7b_model_runs(tmp_path: Path) -> None:
    settings = Settings(
        "llava-1.5-7b",
        random_weights=True,
        layers=3,
        methods=("fastv",),
        budgets=("64",),
        batches=(1,),
        new_tokens=2,
        repeats=1,
        warmup=1,
        knobs={"fastv": {"boundary": "2"}},
        device="cpu",
    )
    result = command.run(settings, tmp_path, lambda _: None)
    rows = result["batches"][0]["rows"]
    assert result["shape"]["hidden"] == 4096
    assert [r["visual_per_layer"] for r in rows] == [[576] * 3, [576] * 3, [576, 576, 64]]
    per_token = 2 * 4096 * 4
    assert [r["kv_bytes"] for r in rows] == [650 * 3 * per_token] * 2 + [(650 * 2 + 138) * per_token]
    assert rows[2]["prefill_ms"]["median"] < rows[0]["prefill_ms"]["median"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_peak_is_measured(small: Settings, tmp_path: Path) -> None:
    result = command.run(replace(small, device="cuda"), tmp_path, lambda _: None)
    assert result["where"]["dtype"] == "bfloat16"
    assert timing.bench_faults(result) == []


def test_knobs_are_read_as_they_are_printed() -> None:
    """Also those of a method whose file has a blank in its name; what could not be read is refused."""
    knobs = {"it's mine.py:Good": {"boundary": "1"}, "fastv": {"boundary": "3", "keep": "25%"}}
    words = shlex.split(Settings(methods=tuple(knobs), knobs=knobs).command())
    items = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    assert len(items) == 3
    assert knobs_by_method(items) == knobs_by_method([" ".join(items[1:]), items[0]]) == knobs
    for name, value in (("a=b.py:X", "1"), ("fastv", "1 2"), ("fastv", "")):
        with pytest.raises(
            PrunebenchError, match="cannot be spelt: expected a method's name without =, and a value without blanks"
        ):
            Settings(methods=(name,), knobs={name: {"boundary": value}})


@pytest.mark.parametrize("family", [name for name, adapter in ADAPTERS.items() if not adapter.one_size])
def test_random_input_of_any_size_is_an_image_of_640_x_480(family: str) -> None:
    """Two prompts that the tower and the model take, whose caches are as long as the trace says."""
    tiny = family_model(family)
    given = random_model.random_input(tiny.model, 2, 8, 0)
    image = random_model.image_of(ADAPTERS[family], tiny.model.config)
    assert ((given.ids == tiny.adapter.image_token_ids[0]).sum(1) == image.tokens).all()
    marks = len(tiny.adapter.image_ids(image, 0, lambda mark: 0)) - image.tokens
    assert given.ids.shape == (2, image.tokens + marks + 8)
    fastv = Contender("fastv", "0.25kept", build("fastv", Budget("kept", Share(0.25)), {}, tiny.adapter.usual))
    for turn in (BARE_TURN, fastv):
        timed = measure.run_once(tiny.model, turn, given, CPU, 2, 0)
        assert timed.kv_bytes > 0
    assert timed.trace is not None
    assert timed.trace.kept(0) == int(0.25 * image.tokens + 0.5)
    assert set(random_model.random_input(tiny.model, 1, 80, 1).ids[0].tolist()) < set(range(VOCAB))


def test_published_checkpoints_have_random_weights_of_their_sizes() -> None:
    for name, hidden in (("qwen2.5-vl-7b", 3584), ("qwen3-vl-4b", 2560), ("llava-v1.6-vicuna-7b", 4096)):
        config = random_model.random_config(Settings(model=name, random_weights=True, layers=2))
        assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (hidden, 2)
