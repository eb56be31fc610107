"""Methods that look at the vision tower see what the bare tower computes, once per image, at a cost that is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import GRID, IMAGE_TOKEN, prompts, tiny_llava
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from harness.core import flops
from harness.core.errors import PrunebenchError
from harness.core.shape import VisionShape
from harness.engine.attach import attach
from harness.engine.prefix import PrefixCache
from harness.method import Method, TowerLook, method_class
from harness.models.adapters import Features, adapter_for
from harness.models.load import locate_model
from harness.proof.conformance import kit
from harness.runner.answering import Answerer, Prompt
from harness.runner.features import EncodedImage, FeatureCache

SPEC = f"{Path(__file__).parents[1] / 'examples' / 'cls_top.py'}:ClsTop"
ClsTop = method_class(SPEC)
LOOKS = (TowerLook("cls_row", -2), TowerLook("cls_row", 0), TowerLook("keys", 1), TowerLook("hidden", -2))
N = GRID * GRID


class Looking(Method):
    """Writes down what it sees."""

    name = "looking"

    def __init__(self, *looks: TowerLook) -> None:
        object.__setattr__(self, "asked", looks)
        object.__setattr__(self, "saw", [])

    def looks(self, shape: Any) -> Any:
        return self.asked

    def on_image(self, run: Any, tower: Any) -> None:
        self.saw.append(dict(tower))


@pytest.fixture(scope="module")
def llava() -> Any:
    return tiny_llava()


def vision_of(llava: Any) -> VisionShape:
    return adapter_for(llava).usual.images[0].vision


@torch.inference_mode()
def bare(llava: Any, pixels: torch.Tensor) -> dict[TowerLook, torch.Tensor]:
    """The same from the tower's own eager attention weights and hidden states."""
    tower = llava.model.vision_tower
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        out = tower(pixel_values=pixels, output_attentions=True, output_hidden_states=True)
    finally:
        tower.set_attn_implementation(before)
    layer = tower.encoder.layers[1]
    keys = layer.self_attn.k_proj(layer.layer_norm1(out.hidden_states[1]))[:, 1:]
    rows = [out.attentions[i][:, :, 0, 1:] for i in (-2, 0)]
    return dict(zip(LOOKS, (*rows, keys, out.hidden_states[-2][:, 1:]), strict=True))


@torch.inference_mode()
def prefill(llava: Any, given: dict[str, torch.Tensor]) -> Any:
    return llava(**given, past_key_values=DynamicCache(config=llava.config.text_config), logits_to_keep=1).logits[:, -1]


def test_looks_are_the_bare_towers(llava: Any) -> None:
    given = prompts([11, 12, 13], [14, 15])
    method = Looking(*LOOKS)
    with attach(llava, method):
        prefill(llava, given)
    want = bare(llava, given["pixel_values"])
    (saw,) = method.saw
    assert saw.keys() == want.keys()
    for look, tensor in want.items():
        torch.testing.assert_close(saw[look], tensor, rtol=0, atol=1e-6)
    other = bare(llava, given["pixel_values"].flip(0))
    assert all((saw[look] - tensor).abs().max() > 1e-3 for look, tensor in other.items()), (
        "another image would not be noticed"
    )
    assert saw[LOOKS[0]].shape == (2, 2, N)
    assert bool((saw[LOOKS[0]].sum(-1) < 1).all()), "[CLS] attends to itself as well"


def test_patches_of_two_images_follow_each_other_and_missing_ones_are_zero(llava: Any) -> None:
    one, two = prompts([11, 12]), prompts([13], seed=5)
    ids = [*one["input_ids"][0].tolist()]
    double = [1, *[IMAGE_TOKEN] * N, 9, *[IMAGE_TOKEN] * N, 13]
    width = max(len(ids), len(double))
    rows = [[0] * (width - len(r)) + r for r in (ids, double)]
    mask = [[0] * (width - len(r)) + [1] * len(r) for r in (ids, double)]
    pixels = torch.cat([one["pixel_values"], two["pixel_values"], one["pixel_values"]])
    method = Looking(*LOOKS)
    with attach(llava, method) as run:
        prefill(llava, {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask), "pixel_values": pixels})
        scoring = run.trace.scoring
    per_image = 2 * flops.cls_row(vision_of(llava))
    assert scoring == [per_image, 2 * per_image]
    want = bare(llava, pixels)
    (saw,) = method.saw
    for look in LOOKS:
        heads = look.what == "cls_row"
        got = saw[look].movedim(-1, 1) if heads else saw[look]
        images = want[look].movedim(-1, 1) if heads else want[look]
        torch.testing.assert_close(got[0, :N], images[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(got[1], torch.cat([images[1], images[2]]), rtol=0, atol=1e-6)
        assert not got[0, N:].any()


def test_the_most_attended_patches_stay(llava: Any) -> None:
    given = prompts([11, 12, 13])
    with attach(llava, ClsTop(keep=5)) as run:
        pruned = prefill(llava, given)
        (kept,) = [layout.origin[0][layout.visual[0]].tolist() for layout in run.layouts[:1]]
        planned = run._method.plan_scoring(adapter_for(llava).usual.with_text(6), [5] * run.shape.depth)
        assert run.trace.scoring == [planned] == [flops.cls_row(vision_of(llava))]
    scores = bare(llava, given["pixel_values"])[TowerLook("cls_row", -2)].mean(1)[0]
    assert kept == sorted(scores.topk(5).indices.tolist())
    assert not torch.allclose(pruned, prefill(llava, given), atol=1e-3), "the unpruned model would pass"


def test_the_row_is_counted_as_it_ran(llava: Any) -> None:
    given, shape = prompts([11, 12], [13, 14]), adapter_for(llava).shape
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        attach(llava, ClsTop(keep=5)) as run,
        FlopCounterMode(display=False) as counter,
    ):
        prefill(llava, given)
        encoded = 2 * (flops.vision_tower(vision_of(llava)) + flops.projector(shape, vision_of(llava)))
        assert counter.get_total_flops() == encoded + flops.prefill_executed(shape, run.trace) + flops.lm_head(shape, 2)


def test_the_conformance_kit_passes() -> None:
    verdicts = kit.check(ClsTop)
    assert [v for v in verdicts if v.status == "FAIL"] == []
    assert {v.name: v.status for v in verdicts}["ragged counts: one and two images"] == "ok"


def test_features_made_elsewhere_are_refused_and_those_of_encode_are_not(llava: Any) -> None:
    given = prompts([11, 12, 13])

    def with_features(features: list[Features]) -> Any:
        made = adapter_for(llava).outputs(features)
        return prefill(llava, {k: v for k, v in given.items() if k != "pixel_values"} | {"mm_encoder_outputs": made})

    with torch.inference_mode():
        elsewhere = adapter_for(llava).encode(pixel_values=given["pixel_values"])
    with attach(llava, ClsTop(keep=5)) as run, torch.inference_mode():
        want = prefill(llava, given)
        # what was seen for that prefill does not serve this one
        with pytest.raises(
            PrunebenchError,
            match="cls_top looks at the vision tower, but this prefill came with features made elsewhere",
        ):
            with_features(elsewhere)
        features, seen = run.encode(pixel_values=given["pixel_values"])
        run.see([*seen, *seen])
        with pytest.raises(
            PrunebenchError, match="expected one vision-tower output for each of the prompts' 1 images, found 2"
        ):
            with_features(features)
        run.see(seen)
        assert torch.equal(with_features(features), want)


def test_unfit_looks_are_refused_and_hooks_are_taken_away() -> None:
    llava, look = tiny_llava(), TowerLook("keys", 3)
    with (
        pytest.raises(PrunebenchError, match=r"expected a layer from -3 to 2 \(of the vision tower\), found 3"),
        attach(llava, Looking(look)),
    ):
        pass

    def hooked() -> bool:
        return any(m._forward_hooks or m._forward_pre_hooks for m in llava.modules())

    assert not hooked()
    with attach(llava, Looking(*LOOKS)):
        assert hooked()
    assert not hooked()

    class Undeclared(Looking):
        def on_image(self, run: Any, tower: Any) -> None:
            tower[TowerLook("keys", 0)]

    with (
        attach(llava, Undeclared(LOOKS[0])),
        pytest.raises(
            PrunebenchError,
            match=r"layer=0, tiles=False\) was not asked for: return it from looks\(\) as well",
        ),
    ):
        prefill(llava, prompts([11]))


def test_what_a_method_writes_into_a_look_does_not_reach_the_next(llava: Any) -> None:
    given = prompts([11, 12])

    class Writing(Looking):
        def on_image(self, run: Any, tower: Any) -> None:
            super().on_image(run, {k: v.clone() for k, v in tower.items()})
            for tensor in tower.values():
                tensor.zero_()

    method = Writing(*LOOKS)
    with attach(llava, method) as run, torch.inference_mode():
        features, seen = run.encode(pixel_values=given["pixel_values"])
        made = adapter_for(llava).outputs(features)
        for _ in range(2):
            run.see(seen)
            prefill(llava, {k: v for k, v in given.items() if k != "pixel_values"} | {"mm_encoder_outputs": made})
    first, second = method.saw
    assert all(torch.equal(first[look], second[look]) and bool(first[look].any()) for look in LOOKS)


# --------------------------------------------------------------------------------------------------------- one encoding


@pytest.fixture(scope="module")
def mini() -> Any:
    return locate_model("mini", "cpu", "float32").load()


@pytest.fixture(scope="module")
def asked() -> list[Prompt]:
    from tasks import lmms
    from tasks.sources import DataSource

    samples = lmms.load_task("gqa", DataSource.parse("mini"), 12, 0).samples
    return [Prompt.of_one(s.key, s.prompt, s.load_image, s.image_key, 4) for s in samples]


def answered(mini: Any, asked: list[Prompt], features: FeatureCache, prefixes: PrefixCache | None) -> dict[str, Any]:
    method = ClsTop(keep=48)
    found = Answerer(mini, method, batch_size=5, features=features, prefixes=prefixes).answer(asked)
    return {a.key: (a.text, a.kept, a.cost) for a in found}


def test_sharing_and_caching_change_nothing(mini: Any, asked: list[Prompt]) -> None:
    alone = answered(mini, asked, FeatureCache(), None)
    assert alone == answered(mini, asked, FeatureCache(), PrefixCache())
    assert alone == answered(mini, asked, FeatureCache(limit=1), PrefixCache())
    assert len({kept for _, kept, _ in alone.values()}) == len({p.image_key for p in asked}), (
        "the kept tokens tell images apart"
    )


def test_images_are_encoded_once_also_for_methods_that_look(mini: Any, asked: list[Prompt]) -> None:
    images = len({p.image_key for p in asked})
    together = FeatureCache()
    none, looking = (
        Answerer(mini, m, features=together, prefixes=PrefixCache()) for m in (method_class("none")(), ClsTop(keep=48))
    )
    for answerer in (none, looking):  # both are known before the first image, as in a sweep
        list(answerer.answer(asked))
    assert together.encoded == images < len(asked)
    later = FeatureCache()
    list(Answerer(mini, method_class("none")(), features=later).answer(asked))
    list(Answerer(mini, ClsTop(keep=48), features=later).answer(asked))
    assert later.encoded == 2 * images, "what was not kept is computed again"
    assert later.used == together.used


def test_looks_count_towards_the_caches_limit() -> None:
    row = torch.zeros(2, 50)
    image = EncodedImage(Features(torch.zeros(100)), {LOOKS[0]: row})
    cache = FeatureCache(limit=2 * image.nbytes)
    assert image.nbytes == 800
    for name in "abc":
        cache.get([name], lambda missing: [image for _ in missing])
    assert cache.used == 2 * image.nbytes
    assert cache.encoded == 3


def test_a_look_by_tiles_is_the_plain_look_where_there_are_no_tiles() -> None:
    """VisionZip asks by tiles and VisPruner does not: LLaVA-1.5's tower shows both the same, once."""
    from harness.method import method_class
    from harness.proof.conformance.family_models import family_model

    kept = {}
    for family in ("LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration"):
        adapter = family_model(family).adapter
        asked = [method_class(name)(keep=4).looks(adapter.shape) for name in ("visionzip", "vispruner")]
        kept[family] = [{adapter.plain(look) for look in looks} for looks in asked]
    one, other = kept["LlavaForConditionalGeneration"]
    assert one > other
    assert not set.intersection(*kept["LlavaNextForConditionalGeneration"])
