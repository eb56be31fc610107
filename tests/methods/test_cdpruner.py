"""CDPruner: unlike tokens, weighted by how little they are like the question."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from by_hand import images_alone, mini, projected, question, recorded, tower
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPTextModelWithProjection
from transformers.utils import logging

from harness.core.budget import parse
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES
from harness.method import TextTower, build
from harness.models.config import model_config
from harness.models.files import weight_hash
from harness.proof.conformance.tiny import N_VISUAL, PROMPTS, ask, tiny_model
from methods.cdpruner import CDPruner, greedy_map, stretched

S7 = SHAPES["llava-1.5-7b"]
CLIP = Path(model_config("mini").text_tower or "")
ENDING = "\nAnswer the question using a single word or phrase."


@cache
def relevance(number: int = 0) -> NDArray[np.float64]:
    """Of each patch of a mini sample: 0 like the question, 1 unlike it."""
    logging.set_verbosity_error()  # the checkpoint holds more than a text tower
    model, tokenizer = CLIPTextModelWithProjection.from_pretrained(CLIP).eval(), AutoTokenizer.from_pretrained(CLIP)
    ids = tokenizer(question(number).text.replace(ENDING, ""))["input_ids"]
    assert len(ids) <= 77, "one piece"
    with torch.inference_mode():
        text = model(input_ids=torch.tensor([ids])).text_embeds[0].double().numpy()
    weights = {k: v.double().numpy() for k, v in load_file(CLIP / "model.safetensors").items()}
    found = []
    for patch in tower(number).hidden[-2][1:].astype(np.float64):
        normed = (patch - patch.mean()) / np.sqrt(patch.var() + 1e-5)
        normed = normed * weights["vision_model.post_layernorm.weight"] + weights["vision_model.post_layernorm.bias"]
        image = weights["visual_projection.weight"] @ normed
        found.append(-(image @ text) / np.linalg.norm(image) / np.linalg.norm(text))
    unlike = np.array(found)
    return (unlike - unlike.min() + 1e-6) / (unlike.max() - unlike.min())


def by_hand(weight: NDArray[np.float64], n: int) -> list[int]:
    tokens = projected(list(tower().hidden[-2][1:])).double().numpy()
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    cosines = tokens @ tokens.T
    np.fill_diagonal(cosines, 1)
    return sorted(picked(weight[:, None] * cosines * weight[None], n))


def picked(kernel: NDArray[np.float64], n: int) -> list[int]:
    """Greedy MAP inference by the determinant's own definition: the variance of each token given the picks."""
    chosen: list[int] = []
    while len(chosen) < n:
        variance = kernel.diagonal().copy()
        if chosen:
            cross = kernel[chosen]
            variance -= (cross * np.linalg.solve(kernel[np.ix_(chosen, chosen)], cross)).sum(0)
            variance[chosen] = -np.inf
        chosen.append(int(variance.argmax()))
    return chosen


def test_a_mini_sample_by_hand() -> None:
    wanted, without = by_hand(relevance(), 64), by_hand(np.ones(576), 64)
    with_clip = recorded("cdpruner", clip=str(CLIP))
    assert with_clip.kept == wanted
    assert recorded("cdpruner").kept == wanted, "the model's own text tower"
    assert recorded("cdpruner", relevance="none").kept == without
    assert len({tuple(kept) for kept in (wanted, without, recorded("divprune").kept)}) == 3
    assert by_hand(1.000001 - relevance(), 64) != wanted, "negated"


def test_questions_decide_unless_left_out() -> None:
    """Two questions about one image."""
    one, two = PROMPTS[0], replace(PROMPTS[0], key="something else entirely")
    kept = [[ask(tiny_model(), method, (p,), steps=0).origins[0][0] for p in (one, two)] for method in METHODS]
    assert kept[0][0] != kept[0][1]
    assert kept[1][0] == kept[1][1]


METHODS = (CDPruner(16), CDPruner(16, relevance="none"))


@pytest.mark.parametrize("relevance", ["clip", "none"])
@pytest.mark.parametrize(("keep", "shares"), [(1, [0, 1]), (33, [16, 17]), (2 * N_VISUAL, [N_VISUAL] * 2)])
def test_images_of_a_prompt_keep_their_own(keep: int, shares: list[int], relevance: str) -> None:
    def method(n: int) -> CDPruner:
        return CDPruner(n, relevance=relevance)  # type: ignore[arg-type]

    together, alone = images_alone(method(keep), [method(n) for n in shares if n])
    assert together == [[]] * shares.count(0) + alone


@pytest.mark.parametrize("method", METHODS, ids=["clip", "none"])
def test_beyond_the_rank_places_go_to_the_highest_weight(method: CDPruner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of rank 5 of which 16 are kept: at most 5 picks mean something, the others are stated and distinct."""
    import methods.cdpruner as module

    true = module.normalize

    def flat(x: torch.Tensor, dim: int) -> torch.Tensor:
        if x.shape[-1] == tiny_model().config.text_config.hidden_size:
            x = x.clone()
            x[..., 5:] = 0
        return true(x, dim=dim)

    seen = {}

    def spy(weight: torch.Tensor, missing: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        seen.update(weight=weight, missing=missing, left=left, filled=keep_top(weight, missing, left))
        return seen["filled"]

    keep_top = module.keep_top
    monkeypatch.setattr(module, "normalize", flat)
    monkeypatch.setattr(module, "keep_top", spy)
    got = ask(tiny_model(), method, PROMPTS, steps=0)
    assert [len(set(o)) for o in got.origins[0]] == [16] * 3
    assert got.run.trace.notes["filled"] == [11.0] * 3 == seen["missing"].tolist()
    for weight, left, filled in zip(seen["weight"], seen["left"], seen["filled"], strict=True):
        assert filled[left].sum() == 11
        assert weight[filled].min() >= weight[left & ~filled].max()


def test_within_the_rank_nothing_is_filled() -> None:
    assert ask(tiny_model(), METHODS[1], PROMPTS[:1], steps=0).run.trace.notes["filled"] == [0.0]


def test_inference_is_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a float32 kernel whose variances shrink below its rounding, as those of real images do."""
    tokens = torch.randn(1, 200, 96, generator=torch.Generator().manual_seed(0))
    tokens *= 0.8 ** torch.arange(96)
    units = torch.nn.functional.normalize(tokens, dim=-1)
    kernel = units @ units.transpose(1, 2)
    run = SimpleNamespace(matmul=lambda a, b, **_: a @ b)
    images = SimpleNamespace(valid=torch.ones(1, 200, dtype=torch.bool), counts=[200], row=[0])
    wanted = picked(kernel[0].double().numpy(), 40)
    assert greedy_map(run, kernel, images, [40]).picks[0].tolist() == wanted  # type: ignore[arg-type]
    monkeypatch.setattr(torch.Tensor, "double", lambda x: x)
    assert greedy_map(run, kernel, images, [40]).picks[0].tolist() != wanted  # type: ignore[arg-type]


def test_stretching_where_all_patches_are_alike() -> None:
    valid = torch.tensor([[True, True, False], [True, True, True]])
    got = stretched(torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 3.0]]), valid)
    assert got.tolist() == [[1, 1, 0], pytest.approx([1e-6 / 3, 1 / 3, 1.0], rel=1e-5)]


def test_costs_of_scoring_on_llava() -> None:
    cosines = 2 * 576**2 * 4096
    greedy = sum(2 * done * 576 for done in range(64))
    assert CDPruner(64, relevance="none").plan_scoring(S7, []) == cosines + greedy
    assert CDPruner(64).plan_scoring(S7, []) is None, "the question's length decides"


def test_a_text_tower_is_named_by_what_is_in_it(tmp_path: Path) -> None:
    """Not by its path; the model's own is the default; one that is not read makes no other cell."""
    from harness.models.load import locate_model

    located = locate_model("mini", "cpu", "float32")
    own = located.method("cdpruner", parse("64")).knobs()
    assert own["clip"] == {"fingerprint": weight_hash(CLIP)}
    (tmp_path / "copy").symlink_to(CLIP)
    assert located.method("cdpruner", parse("64"), {"clip": str(tmp_path / "copy")}).knobs() == own
    for knobs in ({}, {"clip": str(CLIP)}):
        left_out = located.method("cdpruner", parse("64"), {"relevance": "none", **knobs})
        assert left_out.knobs()["clip"] is None
        assert left_out.image_only
    assert replace(CDPruner(64), clip=TextTower("a/b", "c" * 40)).knobs()["clip"] == {
        "hub": "a/b",
        "fingerprint": "c" * 40,
    }


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"clip": "none"}, r"this model names none: .*clip=FOLDER.*relevance=none"),
        ({"clip": "no-folder"}, "expected a CLIP checkpoint, as a folder that is there or a hub id"),
        ({"clip": ""}, "expected a CLIP checkpoint, as a folder that is there or a hub id"),
        ({"clip": "tasks/mini/weights"}, "cdpruner: clip=.*weights: expected a CLIP checkpoint, found none with a"),
        ({"relevance": "some"}, "knob relevance='some' is not valid"),
    ],
)
def test_knobs_that_are_refused(knobs: dict[str, str], says: str) -> None:
    from harness.models.load import locate_model

    with pytest.raises(PrunebenchError, match=says):
        locate_model("mini", "cpu", "float32").method("cdpruner", parse("64"), knobs)


def test_a_checkpoint_of_another_tower_is_refused() -> None:
    """The tiny model's tower is 32 wide, the mini model's 192."""
    from harness.models.adapters.text_encoder import ClipTextEncoder

    encoder = ClipTextEncoder.load(CLIP, torch.device("cpu"), torch.float32)
    with pytest.raises(PrunebenchError, match="of width 32; found one of width 192"):
        encoder.joint(torch.zeros(1, 4, 32))


def test_native_has_no_defaults() -> None:
    with pytest.raises(PrunebenchError, match="cdpruner has no published defaults"):
        build("cdpruner", parse("native"), {}, mini().usual)


def test_a_flops_budget_counts_what_is_known_of_the_question() -> None:
    """Cosines and picks are known before a run, the text tower's share is not: both settings keep alike."""
    prompt = mini().usual.with_text(40)
    asked = [("cdpruner", {"relevance": "clip"}), ("cdpruner", {"relevance": "none"}), ("fastervlm", {})]
    kept = [build(name, parse("0.35flops"), knobs, prompt).plan(prompt) for name, knobs in asked]
    assert kept[0] == kept[1] < kept[2]
    assert CDPruner(64).plan_scoring(prompt, []) is None


def test_a_relative_folder_is_sealed_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of a row works from any folder."""
    from harness.runner.request import Request, check

    (tmp_path / "copy").symlink_to(CLIP)
    monkeypatch.chdir(tmp_path)
    checked = check(Request(("cdpruner",), "mini", ("64",), ("pope",), device="cpu", knobs={"clip": "copy"}))
    assert checked.request.knobs == {"clip": str(tmp_path / "copy")}
