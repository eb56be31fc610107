"""A second turn on a pruned cache: equal to the whole dialogue by hand, alone and in a batch, at the costs that torch
counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import qwens
import torch
from tiny import prompts, tiny_llava
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness.core import flops, turn_flops
from harness.core.errors import PrunebenchError
from harness.core.trace import Trace
from harness.engine.attach import attach
from harness.engine.prefix import roomy_cache
from harness.engine.run import EngineRun
from harness.method import Method, Reduction, method_class

Q1, Q2 = [20, 21, 22, 23], [30, 31, 32, 33, 34, 35, 36]
#: rows end their first answer at unlike steps, and go on with turns of unlike length
ANSWERS, TURNS = ([40, 41, 42], [43]), ([50, 51, 52], [53, 54, 55, 56, 57])
SECOND = ([44, 45], [46, 47])
KEPT = [0, 3, 7, 8, 15]


def none() -> Method:
    return method_class("none")()


@dataclass(frozen=True)
class Fixed(Method):
    """Keeps `KEPT` at boundary 2, and hides all but the first from decode steps in layer 3."""

    hides: bool = False
    name = "fixed"

    def at_boundary(self, run: Any, layer: int, stream: Any) -> Reduction | None:
        if layer != 2:
            return None
        keep = torch.zeros_like(run.visual_valid)
        keep[:, KEPT] = True
        return Reduction(keep)

    def hide_in_decode(self, run: Any, layer: int) -> Tensor | None:
        if not self.hides or layer != 3:
            return None
        hide = run.visual_valid
        hide[:, 0] = False
        return hide


class Dialogue(NamedTuple):
    turn: Tensor
    """(b, vocabulary): logits behind the second question."""
    later: Tensor
    """The same behind the second answer's tokens."""
    trace: Trace
    run: EngineRun


def dialogue(
    model: Any, method: Method, batch: dict[str, Tensor], rows: Sequence[int], positions: str = "method"
) -> Dialogue:
    """A prompt, an answer, a second question and an answer, told and not generated."""
    answers, turns, second = ([told[row] for row in rows] for told in (ANSWERS, TURNS, SECOND))
    steps = max(map(len, answers))
    with torch.inference_mode(), attach(model, method, positions=positions) as run:
        cache = roomy_cache(len(model.get_decoder().layers))
        model(**batch, past_key_values=cache)
        for step in range(steps):  # a row that has ended goes on, as it does in a batch
            ids = torch.tensor([[answer[step] if step < len(answer) else 63] for answer in answers])
            model(input_ids=ids, past_key_values=cache)
        turn = model(input_ids=run.follow(answers, turns), past_key_values=cache).logits[:, -1]
        for step in range(len(second[0])):
            ids = torch.tensor([[told[step]] for told in second])
            later = model(input_ids=ids, past_key_values=cache).logits[:, -1]
        return Dialogue(turn, later, run.trace, run)


def row_of(batch: dict[str, Tensor], question: list[int], row: int) -> dict[str, Tensor]:
    return {**prompts(question), "pixel_values": batch["pixel_values"][row : row + 1]}


def whole(batch: dict[str, Tensor], *more: Sequence[int]) -> dict[str, Tensor]:
    """One prompt with the tokens of its dialogue behind it."""
    behind = torch.tensor([[token for part in more for token in part]])
    ids = torch.cat([batch["input_ids"], behind], 1)
    return {**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_an_unpruned_second_turn_is_the_bare_model_on_the_whole_dialogue(kv_heads: int) -> None:
    model, batch = tiny_llava(kv_heads=kv_heads), prompts(Q1, Q2)
    found = dialogue(model, none(), batch, (0, 1))
    for row, question in enumerate((Q1, Q2)):
        told = whole(row_of(batch, question, row), ANSWERS[row], TURNS[row])
        later = whole(row_of(batch, question, row), ANSWERS[row], TURNS[row], SECOND[row])
        with torch.inference_mode():
            assert torch.allclose(found.turn[row], model(**told).logits[0, -1], atol=1e-5)
            assert torch.allclose(found.later[row], model(**later).logits[0, -1], atol=1e-5)


@pytest.mark.parametrize("family", qwens.FAMILIES)
def test_positions_of_three_axes_go_on_as_the_model_counts_them(family: str) -> None:
    model, row = qwens.make(family), qwens.batch(family, qwens.ROWS[:1])
    answer, turn, second = ANSWERS[0], TURNS[0], SECOND[0]
    found = dialogue(model, none(), row, (0,))
    told = whole(row, answer, turn, second)
    told["mm_token_type_ids"] = (told["input_ids"] == qwens.IMAGE).int()
    with torch.inference_mode():
        bare = model(**told).logits[0]
    assert torch.allclose(found.turn[0], bare[-1 - len(second)], atol=1e-4)
    assert torch.allclose(found.later[0], bare[-1], atol=1e-4)


def by_hand(model: Any, told: dict[str, Tensor], hidden_from: int | None, compact: bool) -> Tensor:
    """Logits (tokens, vocabulary) of a whole dialogue whose visual tokens other than `KEPT` are not there from layer 2
    on, and whose text from column `hidden_from` on does not see the kept ones but the first in layer 3."""
    text, entering = model.get_decoder(), list[Tensor]()
    handle = text.layers[0].register_forward_pre_hook(
        lambda _m, args, kwargs: entering.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    model(**told)
    handle.remove()
    hidden, n = entering[0], told["input_ids"].shape[1]
    visual = (told["input_ids"][0] == 4).nonzero().flatten().tolist()
    stays = [column for column in range(n) if column not in visual or column - visual[0] in KEPT]
    columns = list(range(n))
    for number, layer in enumerate(text.layers):
        if number == 2:
            hidden, columns = hidden[:, stays], stays
        positions = torch.tensor([list(range(len(columns))) if compact and number >= 2 else columns])
        allowed = torch.ones(len(columns), len(columns), dtype=torch.bool).tril()
        if number == 3 and hidden_from is not None:
            rows = torch.tensor([column >= hidden_from for column in columns])
            cols = torch.tensor([column in visual and column != visual[0] for column in columns])
            allowed &= ~(rows[:, None] & cols)
        out = layer(
            hidden,
            attention_mask=allowed[None, None],
            position_ids=positions,
            position_embeddings=text.rotary_emb(hidden, positions),
        )
        hidden = (out[0] if isinstance(out, tuple) else out).view_as(hidden)
    logits: Tensor = model.lm_head(text.norm(hidden))[0]
    return logits


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("hides", [False, True], ids=["seen", "hidden"])
def test_a_pruned_second_turn_is_the_dialogue_without_the_dropped_tokens(positions: str, hides: bool) -> None:
    model, batch = tiny_llava(), prompts(Q1, Q2)
    found = dialogue(model, Fixed(hides), batch, (0, 1), positions)
    for row, question in enumerate((Q1, Q2)):
        one = row_of(batch, question, row)
        hidden_from = one["input_ids"].shape[1] if hides else None
        told = whole(one, ANSWERS[row], TURNS[row], SECOND[row])
        with torch.inference_mode():
            logits = by_hand(model, told, hidden_from, positions == "compact")
        assert torch.allclose(found.turn[row], logits[-1 - len(SECOND[row])], atol=1e-5)
        assert torch.allclose(found.later[row], logits[-1], atol=1e-5)
    assert not torch.allclose(found.turn, dialogue(model, none(), batch, (0, 1)).turn, atol=1e-3)


SETTINGS: dict[str, dict[str, Any]] = {
    "fastv": {"keep": 5, "boundary": 2},
    "visipruner": {"keep": 5, "force_fusion_layer": 2, "decode_shallow_visual": False},
    "visionzip": {"dominant": 4, "contextual": 2},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_dialogue_is_the_same_alone_and_in_a_batch(name: str) -> None:
    method, model, batch = method_class(name)(**SETTINGS[name]), tiny_llava(), prompts(Q1, Q2)
    together = dialogue(model, method, batch, (0, 1))
    for row, question in enumerate((Q1, Q2)):
        alone = dialogue(model, method, row_of(batch, question, row), (row,))
        assert torch.allclose(alone.turn[0], together.turn[row], atol=1e-5)
        assert torch.allclose(alone.later[0], together.later[row], atol=1e-5)
        costs = [
            turn_flops.sample_turn(d.run.shape, d.trace, at, len(ANSWERS[row]), 3)
            for d, at in ((alone, 0), (together, row))
        ]
        assert costs[0] == costs[1]


@pytest.mark.parametrize("questions", [(Q2,), (Q1, Q2)], ids=["alone", "padded"])
def test_executed_is_what_the_counter_counts(questions: tuple[list[int], ...]) -> None:
    model, batch, rows = tiny_llava(), prompts(*questions), (1,) if len(questions) == 1 else (0, 1)
    answers, turns, second = ([told[row] for row in rows] for told in (ANSWERS, TURNS, SECOND))
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), attach(model, Fixed()) as run:
        cache = roomy_cache(4)
        model(**batch, past_key_values=cache)
        for step in range(max(map(len, answers)) - 1):
            ids = torch.tensor([[answer[min(step, len(answer) - 1)]] for answer in answers])
            model(input_ids=ids, past_key_values=cache)
        with FlopCounterMode(display=False) as turn:
            model(input_ids=run.follow(answers, turns), past_key_values=cache, logits_to_keep=1)
        with FlopCounterMode(display=False) as decode:
            for step in range(2):
                model(input_ids=torch.tensor([[told[step]] for told in second]), past_key_values=cache)
        trace, shape = run.trace, run.shape
    head = len(rows) * flops.lm_head(shape, 1)
    assert turn.get_total_flops() == turn_flops.turn_executed(shape, trace) + head
    assert decode.get_total_flops() == turn_flops.decode_executed(shape, trace) + 2 * head
    if len(rows) == 1:  # without padding the sample's own form is the batch's
        assert turn_flops.turn(shape, trace, 0) == turn_flops.turn_executed(shape, trace)
        assert turn_flops.decode(shape, trace, 0, 2) == turn_flops.decode_executed(shape, trace)
        held = sum(k.nbytes + v.nbytes for k, v in ((entry.keys, entry.values) for entry in cache.layers))
        a_token = 2 * shape.depth * shape.kv_heads * shape.head_dim * shape.bytes_per_value
        assert turn_flops.kv_bytes(shape, trace, 0) == held - 2 * a_token


def test_what_is_no_second_turn_is_refused() -> None:
    model, batch = tiny_llava(), prompts(Q1)
    with torch.inference_mode(), attach(model, none()) as run:
        with pytest.raises(PrunebenchError, match="expected a prefill and its answer"):
            run.follow([[1]], [[2]])
        cache = roomy_cache(4)
        model(**batch, past_key_values=cache)
        with pytest.raises(PrunebenchError, match=r"answers of at most 1 tokens.*found answers of \[3\] tokens"):
            run.follow([ANSWERS[0]], [TURNS[0]])
        ids = run.follow([[40]], [TURNS[0]])
        assert ids.tolist() == [[40, *TURNS[0]]]
        with pytest.raises(PrunebenchError, match="expected 4 token"):
            model(input_ids=ids[:, :2], past_key_values=cache)
    with torch.inference_mode(), attach(model, none()) as run:
        cache = roomy_cache(4)
        model(**batch, past_key_values=cache)
        model(input_ids=run.follow([[40]], [TURNS[0]]), past_key_values=cache)
        with pytest.raises(PrunebenchError, match="no turn before it"):
            run.follow([[40]], [TURNS[0]])
        with pytest.raises(PrunebenchError, match="expected 1 token"):
            model(input_ids=ids, past_key_values=cache)
        assert run.trace.turn is not None
        model(**batch, past_key_values=roomy_cache(4))
        assert run.trace.turn is None  # of the dialogue before
    with pytest.raises(ValueError, match="expected the trace of a dialogue"):
        turn_flops.turn_executed(run.shape, run.trace)
