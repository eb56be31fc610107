"""VisiPruner's two variants, knob by knob, and the knock-outs and ablation files behind the paper's tables."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import GRID, IMAGE_TOKEN, prompts, tiny_llava
from torch import Tensor
from transformers import DynamicCache

from harness.core.budget import parse
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES, Grid, PromptShape
from harness.engine.attach import attach
from harness.engine.run import EngineRun
from harness.method import Method, build
from harness.models.adapters import adapter_for
from harness.runner import ablations
from harness.runner.run import Options
from methods import visipruner
from methods.visipruner import VisiPruner

S7, V = SHAPES["llava-1.5-7b"], GRID * GRID
Q1, Q2 = [20, 21, 22, 23], [30, 31, 32, 33, 34, 35, 36]
SHALLOW = {"middle": False, "deep": False, "shallow_mid_layer": 3}
ABLATIONS = sorted((Path(__file__).parents[2] / "configs" / "ablations").glob("*.yaml"))


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llava(depth=6)


def logits(
    model: Any, method: Method, *questions: list[int], seed: int = 0, samples: Sequence[str] | None = None
) -> tuple[EngineRun, Tensor]:
    """The run and the last token's logits (b, vocab)."""
    with attach(model, method, seed) as run, torch.inference_mode():
        run.samples = samples
        return run, model(**prompts(*questions or (Q1,))).logits[:, -1]


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- variants


def test_a_variant_sets_defaults_and_a_knob_given_by_hand_wins() -> None:
    names = ("sink", "shallow_self_attention", "consecutive_votes", "decode_shallow_visual")

    def values(**knobs: Any) -> tuple[object, ...]:
        built = build("visipruner", parse("native"), knobs, S7)
        assert built.for_model(S7.decoder) == built  # `attach` asks a second time
        return tuple(built.knobs()[n] for n in names)

    assert values() == values(variant="code") == ("first", True, False, True)
    assert values(variant="paper") == ("random", False, True, False)
    assert values(variant="paper", sink="287", consecutive_votes="false") == (287, False, False, False)
    assert values(shallow_self_attention="false") == ("first", False, False, True)
    assert values(layer0="half") == (None, True, False, True)


def test_layer_0_goes_by_the_depth_of_the_model() -> None:
    """The official code asks for "13b" in the name of a folder, which may have any name."""
    deep = SHAPES["llava-1.5-13b"]
    for usual, layer0 in ((S7, "merge"), (deep, "half")):
        assert build("visipruner", parse("native"), {}, usual).knobs()["layer0"] == layer0
    assert build("visipruner", parse("native"), {"layer0": "merge"}, deep).knobs()["layer0"] == "merge"


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"sink": "576"}, "expected sink as first, random or 0 to 575, found 576"),
        ({"sink": "-1"}, "expected sink as first, random or 0 to 575, found -1"),
        ({"sink": "last"}, "knob sink='last' is not valid"),
        ({"sink": "first", "layer0": "half"}, "layer0=half takes no sink"),
        ({"variant": "papers"}, "knob variant='papers' is not valid"),
    ],
)
def test_what_a_variant_cannot_be_is_refused(knobs: dict[str, str], says: str) -> None:
    with pytest.raises(PrunebenchError, match=says):
        build("visipruner", parse("native"), knobs, S7)


def test_paper_and_code_differ_on_a_model(model: Any) -> None:
    outputs = {v: logits(model, VisiPruner(keep=5, variant=v))[1] for v in ("code", "paper")}  # type: ignore[arg-type]
    assert not same(outputs["code"], outputs["paper"])


# ----------------------------------------------------------------------------------------------------------------- sink


def test_the_random_sink_depends_on_seed_and_sample_only(model: Any) -> None:
    drawn = VisiPruner(**SHALLOW, sink="random")
    run, alone = logits(model, drawn, Q1, samples=["a"])
    sink = int(torch.randint(V, (1,), generator=run.generator(0)))
    assert same(alone, logits(model, VisiPruner(**SHALLOW, sink=sink), Q1)[1])
    assert not same(alone, logits(model, VisiPruner(**SHALLOW, sink=(sink + 1) % V), Q1)[1])
    # the same image in a batch, in another row, beside a longer question
    batch = prompts(Q2, Q1)
    batch["pixel_values"][1] = prompts(Q1)["pixel_values"][0]
    with attach(model, drawn) as run, torch.inference_mode():
        run.samples = ["b", "a"]
        assert same(model(**batch).logits[1, -1], alone[0])
    others = [logits(model, drawn, Q1, seed=s, samples=["a"])[1] for s in range(1, 5)]
    assert not all(same(alone, other) for other in others)


def test_only_a_random_sink_makes_the_seed_matter() -> None:
    def uses(**knobs: Any) -> bool:
        return build("visipruner", parse("native"), knobs, S7).uses_seed

    assert uses(variant="paper")
    assert uses(sink="random")
    assert not any((uses(), uses(sink=3), uses(variant="paper", sink="first"), uses(sink="random", shallow=False)))


def test_first_is_sink_0(model: Any) -> None:
    first, zero, last = (logits(model, VisiPruner(**SHALLOW, sink=s))[1] for s in ("first", 0, V - 1))
    assert torch.equal(first, zero)
    assert not same(first, last)


# ---------------------------------------------------------------------------------------------------- shallow attention


@pytest.mark.parametrize("attends", [True, False])
def test_visual_self_attention_is_removed_in_all_shallow_layers(model: Any, attends: bool) -> None:
    run, _ = logits(model, VisiPruner(**SHALLOW, shallow_self_attention=attends), Q1)
    pairs, text = V * (V + 1) // 2, V * len(Q1)
    silenced = [layer.silenced[0] for layer in run.trace.layers]
    # layer 0 keeps the sink for text; layer S = 3 is not shallow
    assert silenced == [pairs + text - len(Q1), *[text if attends else pairs + text] * 2, 0, 0, 0]


# ---------------------------------------------------------------------------------------------------------------- votes


def exit_layer(monkeypatch: pytest.MonkeyPatch, votes: list[bool], **knobs: Any) -> int:
    """The exit layer for a row whose fusion is at layer 2 and whose next layers vote like this; -1 = it stays."""
    prompt = _prompt(12)
    method = VisiPruner(keep=2, shallow_mid_layer=1, **knobs).for_model(prompt.decoder)
    valid = torch.ones(1, 4, dtype=torch.bool)
    n_prompt, quota = torch.tensor([4]), lambda keep: torch.tensor([prompt.quota(keep)])
    run = SimpleNamespace(memo={}, visual_valid=valid, n_prompt_visual=n_prompt, shape=prompt.decoder, quota=quota)
    for layer, vote in enumerate([False, *votes], 2):
        cosine = torch.full((1, 4), 1.0 if vote else 0.5)
        monkeypatch.setattr(visipruner, "contributions", lambda *_, c=cosine: (torch.tensor([[3.0, 1, 2, 0]]), c))
        method.on_attention(run, layer, None)  # type: ignore[arg-type]
    assert int(run.memo["fusion"]) == 2
    return int(run.memo["exit"])


def _prompt(depth: int) -> PromptShape:
    """A prompt of four visual tokens."""
    image = replace(S7.images[0], views=(Grid(2, 2),))
    return PromptShape(replace(S7.decoder, depth=depth), (image,))


@pytest.mark.parametrize(
    ("votes", "code", "paper"),
    [
        ([True, True, False], 5, 5),
        ([True, False, True, False], 6, -1),
        ([True, False, True, True], 6, 7),
        ([False, True, False, False], -1, -1),
    ],
)
def test_votes_add_up_in_the_code_and_follow_each_other_in_the_paper(
    monkeypatch: pytest.MonkeyPatch, votes: list[bool], code: int, paper: int
) -> None:
    assert exit_layer(monkeypatch, votes) == code
    assert exit_layer(monkeypatch, votes, variant="paper") == paper
    assert exit_layer(monkeypatch, votes, variant="paper", consecutive_votes=False) == code


def test_a_prompt_that_is_done_is_not_charged_for_one_that_is_not(model: Any) -> None:
    # at these thresholds the two prompts fuse and exit at different layers
    method = VisiPruner(
        keep=3, shallow_mid_layer=1, layer_threshold=0.9, exit_threshold=0.5, exit_votes=1, last_fusion_layer=3
    )
    both, _ = logits(model, method, Q1, Q2)
    batch = prompts(Q1, Q2)
    for row, question in enumerate((Q1, Q2)):
        single = prompts(question)
        single["pixel_values"] = batch["pixel_values"][row : row + 1]
        with attach(model, method) as run, torch.inference_mode():
            model(**single)
        assert run.trace.scoring[0] == both.trace.scoring[row]
    assert len(set(both.trace.notes["exit_layer"])) == 2, "the case this is about"


# --------------------------------------------------------------------------------------------------------------- forced


@pytest.mark.parametrize(("fusion", "exit_"), [(2, 5), (3, 6), (3, 7), (3, -1), (4, -1)])
def test_a_forced_run_has_the_schedule_of_its_plan(fusion: int, exit_: int) -> None:
    model = tiny_llava(depth=8)
    usual = adapter_for(model).usual
    knobs = {"shallow_mid_layer": 1, "last_fusion_layer": 4, "force_fusion_layer": fusion, "force_exit_layer": exit_}
    method = build("visipruner", parse(5), knobs, usual)
    run, _ = logits(model, method, Q1, Q2)
    notes = run.trace.notes
    assert notes["fusion_layer"] == [fusion] * 2
    assert notes["exit_layer"] == [exit_] * 2
    assert notes["forced"] == [1, 1]
    left = 8 if exit_ == -1 else exit_
    schedule = [V] * (fusion + 1) + [5] * (left - fusion - 1) + [0] * (8 - left)
    assert method.plan(usual.with_text(8)) == schedule
    for row, question in enumerate((Q1, Q2)):
        assert [layer.visual[row] for layer in run.trace.layers] == schedule
        assert run.trace.scoring[row] == method.plan_scoring(usual.with_text(3 + len(question)), schedule)


def test_what_is_kept_at_a_forced_layer_is_what_the_method_would_keep_there(model: Any) -> None:
    # with a threshold that nothing falls below, selection happens at the last fusion layer by itself
    free = VisiPruner(keep=5, shallow_mid_layer=1, last_fusion_layer=3, layer_threshold=-1, deep=False)
    method_decides, out = logits(model, free)
    forced_run, forced = logits(model, replace(free, layer_threshold=1.0, force_fusion_layer=3))
    assert torch.equal(out, forced)
    assert torch.equal(method_decides.layouts[-1].origin, forced_run.layouts[-1].origin)
    assert not same(out, logits(model, replace(free, layer_threshold=1.0, force_fusion_layer=2))[1])


def test_a_forced_exit_needs_no_votes_and_never_ignores_them(model: Any) -> None:
    shallow = VisiPruner(keep=5, shallow_mid_layer=0, last_fusion_layer=2, force_fusion_layer=1, exit_votes=1)
    for threshold, exit_, noted in ((1.0, 4, 4), (-1.0, 4, 4), (-1.0, -1, -1), (-1.0, None, 3), (1.0, None, -1)):
        run, _ = logits(model, replace(shallow, exit_threshold=threshold, force_exit_layer=exit_))
        assert run.trace.notes["exit_layer"] == [noted], (threshold, exit_)


def test_thresholds_still_choose_at_a_forced_layer(model: Any) -> None:
    native = VisiPruner(shallow_mid_layer=1, tokens_threshold=0.0, force_fusion_layer=4)
    run, _ = logits(model, native)
    assert run.trace.notes["fusion_layer"] == [4]
    assert run.trace.notes["kept"] == [V]
    assert native.for_model(adapter_for(model).shape).plan(adapter_for(model).usual.with_text(8)) is None


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"force_fusion_layer": 6}, "force_fusion_layer=6: expected 7 to 16 and middle=true"),
        ({"force_fusion_layer": 17}, "force_fusion_layer=17: expected 7 to 16"),
        ({"force_exit_layer": 24}, "force_exit_layer=24 needs force_fusion_layer"),
        (
            {"force_fusion_layer": 14, "force_exit_layer": 16},
            "force_exit_layer=16: expected 17 to 31 after force_fusion_layer=14 and 2 votes",
        ),
        ({"force_fusion_layer": 14, "force_exit_layer": 32}, "force_exit_layer=32: expected 17 to 31"),
        (
            {"force_fusion_layer": 14, "force_exit_layer": 24, "deep": False},
            "force_exit_layer=24: expected 17 to 31 .* deep=true",
        ),
        ({"force_fusion_layer": "late"}, "knob force_fusion_layer='late' is not valid"),
    ],
)
def test_layers_that_cannot_be_forced_are_refused(knobs: dict[str, Any], says: str) -> None:
    with pytest.raises(PrunebenchError, match=says):
        build("visipruner", parse(64), knobs, S7)


def test_the_last_layer_and_a_full_budget_leave_nothing_to_force() -> None:
    with pytest.raises(PrunebenchError, match="force_fusion_layer=31: expected 7 to 30"):
        build("visipruner", parse("native"), {"force_fusion_layer": 31}, S7)
    with pytest.raises(PrunebenchError, match=r"^visipruner: force_exit_layer=24: expected fewer than 576 kept"):
        build("visipruner", parse(576), {"force_fusion_layer": 14, "force_exit_layer": 24}, S7)


def test_unless_forced_the_method_decides() -> None:
    built = build("visipruner", parse(64), {}, S7)
    assert (built.knobs()["force_fusion_layer"], built.knobs()["force_exit_layer"]) == (None, None)
    assert built.plan(S7.with_text(74)) is None


# --------------------------------------------------------------------------------------------------------------- decode


@pytest.mark.parametrize(("attends", "layer"), [(True, 0), (False, 0), (True, 2), (False, 2), (False, 3)])
def test_generated_tokens_see_shallow_vision_only_in_the_code(model: Any, attends: bool, layer: int) -> None:
    batch = prompts(Q1, Q2)
    decoded = []
    for disturb in (False, True):
        cache = DynamicCache(config=model.config.text_config)
        with attach(model, VisiPruner(**SHALLOW, decode_shallow_visual=attends)), torch.inference_mode():
            model(**batch, past_key_values=cache)
            if disturb:
                visual = batch["input_ids"] == IMAGE_TOKEN
                values = cache.layers[layer].values
                values.copy_(torch.where(visual[:, None, :, None], -values, values))
            decoded.append(model(input_ids=torch.tensor([[5], [6]]), past_key_values=cache).logits[:, -1])
    sees = attends or layer >= 3
    assert same(*decoded) != sees


# ------------------------------------------------------------------------------------------------------------ knock-out


def knockout(model: Any, **knobs: Any) -> Tensor:
    return logits(model, build("knockout", parse(None), knobs, adapter_for(model).usual), Q1, Q2)[1]


def test_masking_text_from_vision_everywhere_equals_dropping_vision(model: Any) -> None:
    masked = knockout(model, start=0, stop=6, how="mask")
    assert same(masked, knockout(model, drop_from=0))
    assert not same(masked, knockout(model))
    assert not same(masked, knockout(model, start=0, stop=6, how="zero"))


def test_dropping_at_a_layer_equals_masking_from_it(model: Any) -> None:
    assert same(knockout(model, start=4, stop=6, how="mask"), knockout(model, drop_from=4))
    assert not same(knockout(model, drop_from=3), knockout(model, drop_from=4))


def test_a_knockout_that_cuts_nothing_is_the_unpruned_model(model: Any) -> None:
    assert torch.equal(knockout(model), logits(model, build("none", parse(None), {}, S7), Q1, Q2)[1])


def test_visipruners_shallow_stage_is_a_knockout(model: Any) -> None:
    shallow = logits(model, VisiPruner(**SHALLOW, shallow_self_attention=False, sink=5), Q1, Q2)[1]
    cut = {"stop": 3, "how": "zero", "first_how": "redirect", "vision_to_vision": True}
    assert same(shallow, knockout(model, **cut, sink=5))
    assert not same(shallow, knockout(model, **cut, sink=6))
    assert not same(shallow, knockout(model, **{**cut, "first_how": "zero"}))


def test_generated_tokens_are_cut_off_by_a_mask_too(model: Any) -> None:
    batch, decoded = prompts(Q1), {}
    for name, knobs in {"mask": {"stop": 6, "how": "mask"}, "drop": {"drop_from": 0}}.items():
        cache = DynamicCache(config=model.config.text_config)
        with attach(model, build("knockout", parse(None), knobs, adapter_for(model).usual)), torch.inference_mode():
            model(**batch, past_key_values=cache)
            decoded[name] = model(input_ids=torch.tensor([[5]]), past_key_values=cache).logits[:, -1]
    assert same(decoded["mask"], decoded["drop"])


def test_knockout_layers_scale_and_are_checked() -> None:
    scaled = build(
        "knockout", parse(None), {"start": 0, "stop": 7, "drop_from": 20, "scale_layers": True}, _prompt(12)
    ).knobs()
    assert (scaled["start"], scaled["stop"], scaled["drop_from"]) == (0, 3, 8)
    for knobs, says in (
        ({"start": 3, "stop": 2}, "expected 0 <= start <= stop <= 12"),
        ({"stop": 13}, "expected 0 <= start <= stop <= 12"),
        ({"drop_from": 12}, "drop_from=12 does not fit this model"),
        ({"sink": 4}, "expected sink from 0 to 3, found 4"),
        ({"how": "remove"}, "knob how='remove' is not valid"),
    ):
        with pytest.raises(PrunebenchError, match=says):
            build("knockout", parse(None), knobs, _prompt(12))


# ------------------------------------------------------------------------------------------------------------ ablations


@pytest.mark.parametrize("file", ABLATIONS, ids=lambda file: file.stem)
def test_shipped_ablations_fit_every_model(file: Path) -> None:
    plan = ablations.load(file)
    for prompt in (S7, SHAPES["llava-1.5-13b"], _mini()):
        for variant in plan.variants:
            build(variant.method, parse(variant.budget), variant.knobs, prompt)
    assert any(v.published for v in plan.variants)


def _mini() -> PromptShape:
    return replace(S7, decoder=replace(S7.decoder, depth=12))


def test_there_is_one_ablation_file_per_table() -> None:
    assert [f.stem for f in ABLATIONS] == ["visipruner_table3", "visipruner_table5", "visipruner_table9"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title: t\nsource: s\nvariants: []\n", "variants: Tuple should have at least 1 item"),
        ("title: t\nsource: s\nvariants: [{name: a, metod: fastv}]\n", r"variants\.0\.\w+"),
        (
            "title: t\nsource: s\nvariants: [{name: a, method: none}, {name: a, method: none}]\n",
            "two variants are called 'a'",
        ),
        ("[1, 2]\n", "not an ablation"),
        ("title: [\n", "not an ablation"),
    ],
)
def test_a_file_that_is_no_ablation_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "ablation.yaml"
    file.write_text(text)
    with pytest.raises(PrunebenchError, match=says):
        ablations.load(file)
    with pytest.raises(PrunebenchError, match="found no such file"):
        ablations.load(tmp_path / "missing.yaml")


def test_every_variant_is_checked_before_the_first_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablations.runner, "run", lambda *_: pytest.fail("a variant ran"))
    variants = ({"name": "good", "method": "none"}, {"name": "bad", "method": "knockout", "knobs": {"stop": 99}})
    plan = ablations.Ablation(title="t", source="s", variants=variants)  # type: ignore[arg-type]
    with pytest.raises(PrunebenchError, match="variant 'bad': knockout: expected 0 <= start"):
        ablations.run(plan, ablations.requests(plan), Options())
