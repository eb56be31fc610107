"""Questions that start from a shared prefix give what they give alone: answers, costs, kept tokens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from methods_with_settings import EVERYWHERE

from harness.core import budget as budgets
from harness.core import flops
from harness.core.errors import PrunebenchError
from harness.engine.prefix import PrefixCache, RoomyLayer, Shared
from harness.method import Method, Reduction, Traits, method_class, register, registered
from harness.models.load import locate_model
from harness.runner.ahead import ahead
from harness.runner.answering import Answerer, Prompt
from harness.runner.features import FeatureCache


@pytest.fixture(scope="module")
def mini():
    return locate_model("mini", "cpu", "float32").load()


@pytest.fixture(scope="module")
def prompts():
    """Three questions of unlike length on each of three images."""
    from tasks import lmms
    from tasks.sources import DataSource

    samples = [
        s for name in ("gqa", "textvqa", "pope") for s in lmms.load_task(name, DataSource.parse("mini"), 18, 0).samples
    ]
    images = list(dict.fromkeys(s.image_key for s in samples))[:3]
    picked = [
        (s, text)
        for i in images
        for s in [s for s in samples if s.image_key == i][:2]
        for text in (s.prompt, "x " * 21)
    ]
    return [Prompt.of_one(f"{s.key}-{n}", text, s.load_image, s.image_key, 5) for n, (s, text) in enumerate(picked)]


def answers(mini, method, prompts, share, batch=5):
    cache = PrefixCache() if share else None
    return {
        a.key: a
        for a in Answerer(mini, method, batch_size=batch, seed=3, features=FeatureCache(), prefixes=cache).answer(
            prompts
        )
    }


@pytest.mark.parametrize("label", EVERYWHERE)
def test_a_shared_prefix_changes_nothing(mini, prompts, label):
    setting = EVERYWHERE[label]
    budget = budgets.parse(setting.asked(48))
    method = locate_model("mini", "cpu", "float32").method(setting.method, budget, setting.knobs)
    alone, shared = answers(mini, method, prompts, False), answers(mini, method, prompts, True)
    assert {k: a.text for k, a in shared.items()} == {k: a.text for k, a in alone.items()}
    assert {k: a.kept for k, a in shared.items()} == {k: a.kept for k, a in alone.items()}
    for key, a in alone.items():
        assert shared[key].cost == pytest.approx(a.cost, rel=0), key


def test_the_prefix_of_another_image_would_be_noticed(mini, prompts):
    """The tests above can fail: answers do depend on the prefix."""
    method = registered()["none"]()
    alone = answers(mini, method, prompts, False)

    class Wrong(PrefixCache):
        def get(self, kind, images, capture):
            return super().get(kind, images, lambda missing: [capture([images[0]])[0]] * len(missing))

    wrong = {a.key: a for a in Answerer(mini, method, batch_size=5, prefixes=Wrong()).answer(prompts)}
    assert {k: a.text for k, a in wrong.items()} != {k: a.text for k, a in alone.items()}


def test_an_image_is_prefilled_once(mini, prompts):
    cache = PrefixCache()
    for name in ("none", "fastv", "sparsevlm"):
        method = locate_model("mini", "cpu", "float32").method(name, budgets.parse(EVERYWHERE[name].asked(48)), {})
        list(Answerer(mini, method, batch_size=3, prefixes=cache).answer(prompts))
    assert cache.captured == len({p.image_key for p in prompts})


def test_a_full_prefix_cache_forgets_the_oldest(mini, prompts):
    method = registered()["none"]()
    one = PrefixCache()
    list(Answerer(mini, method, prefixes=one).answer(prompts[:1]))
    tight = PrefixCache(limit=one.used)
    found = {a.key: a.text for a in Answerer(mini, method, batch_size=1, prefixes=tight).answer(prompts)}
    assert tight.used <= 2 * one.used
    assert found == {k: a.text for k, a in answers(mini, method, prompts, False).items()}


def test_a_question_longer_than_an_image_is_asked_beside_a_short_one(mini, prompts):
    """Its window would reach in front of the other's prefix: they go into batches of their own."""
    first = prompts[0]
    long = replace(first, key="long", content=(None, "x " * 700), max_new_tokens=2)
    method = registered()["none"]()
    both = [first, long]
    found = answers(mini, method, both, True)
    assert {k: a.text for k, a in found.items()} == {k: a.text for k, a in answers(mini, method, both, False).items()}
    assert found["long"].n_input_tokens - found[first.key].n_input_tokens > mini.usual.n_visual


def test_features_of_two_models_are_kept_apart(mini, prompts):
    """One cache may serve a sweep over several models."""
    import dataclasses

    other = dataclasses.replace(mini, fingerprint="another")
    features = FeatureCache()
    for loaded in (mini, other, mini):
        list(Answerer(loaded, registered()["none"](), features=features).answer(prompts[:1]))
    assert features.encoded == 2


def answered(answerer, run, batch):
    """The answers of one batch inside an `attach` of the test's own."""
    with ahead({}) as pictures:
        return answerer._account(answerer._finish(run, answerer._begin(run, batch, pictures)))


def test_only_the_window_runs(mini, prompts):
    """FLOPs executed with a shared prefix are those of the question's own tokens."""
    from harness.engine.attach import attach

    method = registered()["none"]()
    answerer = Answerer(mini, method, batch_size=1, prefixes=PrefixCache())
    ids = mini.prompt_ids(prompts[0].text)
    with attach(mini.model, method) as run:
        answered(answerer, run, [(ids, prompts[0])])
        answer = answered(answerer, run, [(ids, prompts[0])])[0]
        rows = {layer.rows for layer in run.trace.layers}
        executed = flops.prefill_executed(run.shape, run.trace)
    own = len(ids) - 1 - max(i for i, t in enumerate(ids) if t == mini.image_token_id)
    assert rows == {own}
    assert executed < 0.1 * answer.cost["prefill_dense_flops"]


@pytest.mark.parametrize(
    "name", ["uniform", "first", "pooling", "tests/examples/cls_top.py:ClsTop", "tests/examples/centre.py:Centre"]
)
def test_behind_a_reduction_by_the_image_alone_only_the_window_runs(mini, prompts, name):
    from harness.engine.attach import attach

    method = locate_model("mini", "cpu", "float32").method(name, budgets.parse("48"), {})
    cache = PrefixCache()
    answerer = Answerer(mini, method, batch_size=4, prefixes=cache)
    batch = [(mini.prompt_ids(p.text), p) for p in prompts[:4]]
    with attach(mini.model, method, looks=answerer.features.looks) as run:
        shared = answered(answerer, run, batch)
        assert {layer.rows for layer in run.trace.layers} == {run.trace.layers[0].rows}
        assert run.trace.layers[0].rows < 48, "the longest question's own tokens"
        assert run.trace.layers[-1].visual == [48] * 4
    alone = {a.key: a for a in Answerer(mini, method, batch_size=4).answer(prompts[:4])}
    for a in shared:
        assert (a.text, a.kept, a.cost) == (alone[a.key].text, alone[a.key].kept, alone[a.key].cost)
    other = locate_model("mini", "cpu", "float32").method(name, budgets.parse("32"), {})
    list(Answerer(mini, other, batch_size=4, prefixes=cache).answer(prompts[:4]))
    assert cache.captured == 2 * len({p.image_key for p in prompts[:4]}), (
        "what one budget leaves of an image is not another's"
    )


def test_a_later_reduction_by_the_image_alone_shares_up_to_there_with_all_methods(mini, prompts):
    cache = PrefixCache()
    for name, budget, knobs in (
        ("none", None, {}),
        ("tests/examples/centre.py:Centre", "48", {"boundary": 2}),
        ("fastv", "48", {}),
    ):
        method = locate_model("mini", "cpu", "float32").method(name, budgets.parse(budget), knobs)
        list(Answerer(mini, method, prefixes=cache).answer(prompts))
    assert cache.captured == len({p.image_key for p in prompts})


def alike(mini, prompts, method, batch=5):
    """Answers with and without sharing are the same; -> the rows that the last shared prefill ran, by layer."""
    alone, rows = answers(mini, method, prompts, False), []

    class Watched(Answerer):
        def _finish(self, run, begun):
            found = super()._finish(run, begun)
            rows[:] = [layer.rows for layer in run.trace.layers]
            return found

    answerer = Watched(mini, method, batch_size=batch, seed=3, prefixes=PrefixCache())
    shared = {a.key: a for a in answerer.answer(prompts)}
    assert {k: (a.text, a.kept, a.cost) for k, a in shared.items()} == {
        k: (a.text, a.kept, a.cost) for k, a in alone.items()
    }
    return rows


@pytest.mark.parametrize(("name", "knobs"), [("drawn", {}), ("drawn", {"boundary": 3}), ("weighted", {})])
def test_a_method_that_says_the_image_decides_and_lets_the_question_decide_is_answered_alike(
    mini, prompts, name, knobs
):
    from harness.proof import faults as mutations

    alike(mini, prompts, {"drawn": mutations.Drawn, "weighted": mutations.Weighted}[name](keep=48, **knobs))


@dataclass(frozen=True)
class ByImage(Method):
    name = "by_image"
    traits = Traits(query_aware=False, image_only=True)

    case: str = ""

    def on_attention(self, run, layer, attn):
        if layer == 0:
            run.memo["norms"] = attn.visual_values().float().norm(dim=-1).mean(1)
        if layer == 3 and self.case == "seen":
            run.memo["seen"] = attn.visual_probs("visual", heads="mean").values[:, 0].sum(1)

    def at_boundary(self, run, layer, stream):
        asked, keep = stream.after.shape[1] > 0, run.visual_valid
        if self.case in ("prefixes", "questions"):  # one reduces, the other does not
            if layer != 3 or asked == (self.case == "prefixes"):
                return None
            keep[:, ::2] = False
            return Reduction(keep)
        if layer not in (0, 2, 5):
            return None
        order = torch.arange(keep.shape[1])[None]
        if self.case == "seen":  # by what its visual rows attend to, behind a first reduction
            if layer == 5:
                return Reduction(keep & (run.memo["seen"] > run.memo["seen"].mean(1, keepdim=True)))
            return Reduction(keep & (order % 3 > 0)) if layer == 0 else None
        if self.case == "more":  # a question keeps more than its prefix
            return Reduction(keep & (order < 100 - 10 * layer + 4 * asked))
        if self.case == "counts":  # as many as the image says, another number for each
            bright = stream.visual[:, :, 0] > 0
            return (
                Reduction(keep & (bright | (order < 8)))
                if layer == 2
                else Reduction(keep & (order < 200))
                if not layer
                else None
            )
        if self.case == "values":
            return (
                Reduction(keep & (run.memo["norms"] > run.memo["norms"].mean(1, keepdim=True))) if layer == 2 else None
            )
        added = torch.stack([stream.visual[:, :9].mean(1), stream.visual[:, 9:20].mean(1), stream.visual.mean(1)], 1)
        if self.case == "holes":  # other places of as many merged tokens
            valid = torch.tensor([[True, not asked, asked]]).expand(keep.shape[0], 3)
            return Reduction(keep & (order < 90 - 10 * layer), added, valid)
        merged = [added, added[:, :1], None][
            (0, 2, 5).index(layer)
        ]  # "merges": and drops some of what was merged before
        return Reduction(keep & (order < 90 - 10 * layer) | keep & (order == keep.shape[1] - 1), merged)


@pytest.mark.parametrize("case", ["prefixes", "questions", "more", "holes"])
def test_where_a_question_reduces_otherwise_than_its_image_sharing_ends(mini, prompts, case):
    rows = alike(mini, prompts, ByImage(case))
    assert rows[-1] is None, "whole prompts run"


@pytest.mark.parametrize("case", ["merges", "counts", "values"])
@pytest.mark.parametrize("batch", [1, 5])
def test_reductions_in_several_layers_by_the_image_alone_are_shared(mini, prompts, case, batch):
    rows = alike(mini, prompts, ByImage(case), batch)
    assert 0 < rows[-1] < 48


#: of the toys for each question: those that ask about the decoder, whose early layers come from the prefix
ASK_THE_DECODER = (
    ("Coming", {"boundary": 3}),
    ("Pivots", {"boundary": 2}),
    ("Masses", {"boundary": 1}),
    ("Masses", {"boundary": 4}),
    ("Ordered", {}),
)


@pytest.mark.parametrize(("name", "knobs"), ASK_THE_DECODER)
@pytest.mark.parametrize("batch", [1, 5])
def test_a_question_to_the_decoder_is_answered_alike(mini, prompts, name, knobs, batch):
    method = method_class(f"tests/examples/asking.py:{name}")(keep=48, **knobs)
    rows = alike(mini, prompts, method, batch)
    assert rows[0] is not None, "layer 0 ran the questions' own tokens only"


@pytest.mark.parametrize("batch", [1, 5])
def test_rows_of_visual_tokens_are_those_of_the_whole_prompt_behind_a_shared_reduction(mini, prompts, batch):
    rows = alike(mini, prompts, ByImage("seen"), batch)
    assert 0 < rows[-1] < 48


@dataclass(frozen=True)
class Watching(Method):
    """An observer of whole softmax rows: by prompt and layer, a checksum of those of visual tokens and of text."""

    name = "watching"
    seen: dict[tuple[str, int], list[float]] = field(default_factory=dict, compare=False)

    def on_attention(self, run, layer, attn):
        found = []
        for rows in (attn.layout.visual_tokens, attn.layout.after_tokens):
            probs = attn.row_probs(rows).mean(1) * rows.valid[:, :, None]
            found.append((probs * torch.arange(probs.shape[2]).flip(0)).sum((1, 2)))
        for key, values in zip(run.samples, torch.stack(found, 1).tolist(), strict=True):
            self.seen[key, layer] = values


def test_an_observer_sees_the_rows_of_a_shared_prefix(mini, prompts):
    alone, shared = Watching(), Watching()
    answers(mini, alone, prompts[:4], False)
    answers(mini, shared, prompts[:4], True)
    assert shared.seen.keys() >= alone.seen.keys()
    for key, values in alone.seen.items():
        assert shared.seen[key] == pytest.approx(values, rel=1e-4), key


def test_zero_queries_of_a_prefix_would_be_noticed(mini, prompts, monkeypatch):
    """Both tests above can fail: the tokens that stay do depend on what visual rows ask."""
    monkeypatch.setattr(Shared, "queries", lambda self, layer, q, *_: self.widened(q))
    for method in (method_class("tests/examples/asking.py:Masses")(keep=48, boundary=4), ByImage("seen")):
        with pytest.raises(AssertionError):
            alike(mini, prompts, method)


def test_contradictory_traits_are_refused():
    @dataclass(frozen=True)
    class Both(Method):
        name = "both"
        traits = Traits(query_aware=True, image_only=True)
        keep: int = 1

    with pytest.raises(PrunebenchError, match="cannot be both"):
        register(Both)


def test_a_prompt_with_another_beginning_is_refused(mini, prompts):
    from harness.engine.attach import attach

    method = registered()["none"]()
    cache = PrefixCache()
    list(Answerer(mini, method, prefixes=cache).answer(prompts[:1]))
    prefix = next(iter(cache._items.values()))
    ids = torch.tensor([mini.prompt_ids(prompts[0].text)])
    ids[0, 0] = ids[0, 0] + 1
    with attach(mini.model, method) as run, pytest.raises(PrunebenchError, match="goes on after its"):
        run.share([prefix], ids, torch.ones_like(ids))


def test_a_roomy_layer_is_a_cache_layer():
    torch.manual_seed(0)
    layer, parts = RoomyLayer(room=2), [torch.randn(2, 3, n, 4) for n in (5, 1, 1, 1, 3, 1)]
    for i, part in enumerate(parts):
        keys, values = layer.update(part, 2 * part)
        assert torch.equal(keys, torch.cat(parts[: i + 1], 2))
        assert torch.equal(values, 2 * keys)
        assert layer.get_seq_length() == keys.shape[2]
