"""MMTok: greedy coverage of the question and the image, what is spared, and how a question comes to its tokens."""

from __future__ import annotations

import pytest
import torch

from harness.core.budget import parse
from harness.core.errors import PrunebenchError
from harness.core.paths import TOP
from harness.core.shape import SHAPES
from harness.engine.attach import attach
from harness.method import build
from harness.models.prompt import word_ids
from harness.proof.conformance.families import family_model
from harness.proof.conformance.tiny import PROMPTS, ask_in, model_inputs, tiny_model, word_numbers
from methods.mmtok import MMTok, covering

S7 = SHAPES["llava-1.5-7b"]
QWEN = family_model("Qwen2_5_VLForConditionalGeneration")


def greedy(rows: torch.Tensor, n: int) -> list[int]:
    """Pick by pick, the sum over rows of the largest value among the picks."""
    picks: list[int] = []
    for _ in range(n):
        gains = {
            token: sum(max(row[i] for i in [*picks, token]) for row in rows.tolist())
            for token in range(rows.shape[1])
            if token not in picks
        }
        picks.append(max(gains, key=lambda token: (round(gains[token], 12), -token)))
    return picks


def test_picks_are_those_of_a_loop() -> None:
    rows = torch.rand(2, 9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[1, 8:] = False
    found = covering(rows * valid[:, None], valid, 6)
    assert found[0].tolist() == greedy(rows[0], 6)
    assert found[1].tolist() == greedy(rows[1, :, :8], 6)
    assert covering(torch.zeros(1, 3, 5), torch.ones(1, 5, dtype=torch.bool), 5)[0].tolist() == [0, 1, 2, 3, 4]


def test_what_stays() -> None:
    prompt = QWEN.shape_of(QWEN.prompts[1])
    assert prompt.n_visual == 32

    def kept(asked: str | None = None, **knobs: object) -> int:
        return build("mmtok", parse(asked), knobs, prompt).n_kept(prompt)  # type: ignore[attr-defined, no-any-return]

    assert kept(ratio=0.3) == 32, "64 tokens and fewer are spared"
    assert kept(ratio=0.3, spared=32) == 32
    assert kept(ratio=0.3, spared=31) == 9, "rounded down"
    assert kept(ratio=0.3, select="tower-distance") == 9
    assert kept("30%") == 10
    assert kept("5") == 5
    assert build("mmtok", parse("64"), {}, S7).plan(S7) == [64] * 32
    assert build("mmtok", parse(None), {"ratio": 0.2}, S7).plan(S7) == [115] * 32


def refused(*, asked: str | None = None, of: object = S7, **knobs: object) -> str:
    with pytest.raises(PrunebenchError) as said:
        build("mmtok", parse(asked), knobs, of).plan(of)  # type: ignore[arg-type]
    assert "\n" not in str(said.value)
    return str(said.value)


def test_what_does_not_fit_is_refused_before_a_run() -> None:
    assert "ratio=0.001 of a prompt of 576 tokens is none: expected 0.0018 or more" in refused(ratio=0.001)
    assert "expected a share of a prompt's tokens" in refused(ratio=1.5)
    assert "mmtok needs a budget" in refused()
    assert "exactly one of keep (a number of tokens) and ratio" in refused(keep=5, ratio=0.5)
    assert "expected text_temperature above 0, found 0" in refused(asked="64", text_temperature=0)
    assert "expected vision_temperature above 0, found -1" in refused(asked="64", vision_temperature=-1)
    assert "expected alpha of 0 or more" in refused(asked="64", alpha=-0.5)
    assert "tower_layer=24 does not fit this model: expected 0 to 23" in refused(asked="64", tower_layer=24)
    tiles = family_model("LlavaNextForConditionalGeneration")
    assert "one grid of patches" in refused(asked="25%", of=tiles.shape_of(tiles.prompts[0]))
    assert "has no published defaults" in refused(asked="native")


def kept(question: str, method: MMTok) -> list[int]:
    model = tiny_model()
    with attach(model, method, tokenizer=word_numbers) as run:
        prompt = type(PROMPTS[0])(question, PROMPTS[0].ids, PROMPTS[0].pixels, PROMPTS[0].next_ids)
        origins: list[int] = ask_in(run, model, (prompt,), steps=0).origins[0][0]
    return origins


def test_the_question_has_a_say_and_the_selection_by_distance_does_not_ask() -> None:
    cover, spread = MMTok(keep=20, tower_layer=0), MMTok(keep=20, tower_layer=0, select="tower-distance")
    assert kept("what is red", cover) != kept("how many dogs are there", cover)
    assert kept("what is red", spread) == kept("how many dogs are there", spread) != kept("what is red", cover)
    picture = MMTok(keep=20, tower_layer=0, alpha=1e6)
    assert kept("what is red", picture) == kept("how many dogs are there", picture)


def test_a_run_without_question_or_tokenizer_says_so() -> None:
    model, method = tiny_model(), MMTok(keep=20, tower_layer=0)
    with attach(model, method, tokenizer=word_numbers), pytest.raises(PrunebenchError, match=r"set run\.questions"):
        model(**model_inputs(model, PROMPTS[:1]))
    with attach(model, method) as run, pytest.raises(PrunebenchError, match="tokenizer="):
        ask_in(run, model, PROMPTS[:1], steps=0)


def test_words_are_cut_one_by_one() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOP / "tasks" / "mini" / "weights")
    words = ["Question:", "Is", "it", "red?"]
    alone = [token for word in words for token in tokenizer([word], is_split_into_words=True)["input_ids"][1:]]
    assert word_ids(tokenizer, words) == alone
    assert tokenizer.bos_token_id not in word_ids(tokenizer, words)
