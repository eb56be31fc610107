"""A second turn of a dialogue on the cache that a prefill pruned and an answer went on.

Every layer holds another number of columns there. Behind them come the decode steps of the first answer, of which rows
that had ended leave columns that are none of theirs, then the turn, padded on the left, then the second answer. A token
of the turn attends what a decode step would attend, and the turn up to itself. Nothing is pruned again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.core.errors import PrunebenchError
from harness.core.trace import TurnTrace
from harness.engine.view import RunView


class Turn:
    """The columns behind a prompt: `answer (b, steps)` and `turn (b, w)` bool, True on tokens of the dialogue. `calls`
    counts those that ran since it was announced, the turn's own among them."""

    def __init__(self, answer: Tensor, turn: Tensor) -> None:
        self.width, self.calls = turn.shape[1], 0
        self._said, self._tokens = answer.sum(1), turn.sum(1)
        self._valid = torch.cat([answer, turn], 1)

    @classmethod
    def behind(
        cls, steps: int, answers: Sequence[Sequence[int]], turns: Sequence[Sequence[int]], device: torch.device
    ) -> tuple[Turn, Tensor]:
        """A turn behind `steps` decode steps, and the ids (b, w) to run.

        `answers`: tokens of each row's first answer; `turns`: the tokens behind it. The last token of an answer runs
        with the turn, whether or not a decode step has run it: costs then do not depend on the batch. Raises
        PrunebenchError for an answer that the steps did not run.
        """
        said = [max(len(answer) - 1, 0) for answer in answers]
        rows = [[*answer[n:], *turn] for answer, n, turn in zip(answers, said, turns, strict=True)]
        if max(said) > steps or not all(turns):
            raise PrunebenchError(
                f"expected answers of at most {steps + 1} tokens, as were decoded, and a turn behind each; found"
                f" answers of {[*map(len, answers)]} tokens and turns of {[*map(len, turns)]}"
            )
        width = max(map(len, rows))
        ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
        for row, tokens in enumerate(rows):
            ids[row, width - len(tokens) :] = torch.tensor(tokens)
            mask[row, width - len(tokens) :] = 1
        answered = torch.arange(steps)[None] < torch.tensor(said)[:, None]
        return cls(answered.to(device), mask.bool().to(device)), ids.to(device)

    def begin(self, shape: Sequence[int]) -> None:
        """One more call, of `(b, w)` tokens. Raises PrunebenchError for another shape than the one announced."""
        expected = (self._valid.shape[0], 1 if self.calls else self.width)
        if tuple(shape) != expected:
            raise PrunebenchError(
                f"expected {expected[1]} token(s) of {expected[0]} row(s) at call {self.calls} behind a first answer,"
                f" found {tuple(shape)}: run what follow() returned, then one token per step"
            )
        self.calls += 1

    def offsets(self) -> Tensor:
        """(b, w or 1): how far the call's tokens stand behind their prompt's last one."""
        if self.calls == 1:
            return self._valid.long().cumsum(1)[:, -self.width :]
        return (self._said + self._tokens + self.calls - 1)[:, None]

    def mask(self, seen: Tensor) -> Tensor:
        """(b, 1, w or 1, columns) bool for SDPA in a layer whose prompt columns are `seen (b, n)` bool."""
        if self.calls > 1:
            new = self._valid.new_ones(len(seen), self.calls - 1)
            return torch.cat([seen, self._valid, new], 1)[:, None, None]
        before = self._valid[:, : -self.width]
        causal = torch.ones(self.width, self.width, dtype=torch.bool, device=seen.device).tril()
        # a padded token attends the prompt, so its softmax is defined; nothing attends it
        front = torch.cat([seen, before], 1)[:, None].expand(-1, self.width, -1)
        return torch.cat([front, causal & self._valid[:, None, -self.width :]], 2)[:, None]

    def trace(self) -> TurnTrace:
        """What ran, as costs read it."""
        return TurnTrace(self.width, self._tokens.tolist(), self._said.tolist(), self.calls - 1)


class Dialogue(RunView):
    """A run whose prompts may be followed by a second turn."""

    def follow(self, answers: Sequence[Sequence[int]], turns: Sequence[Sequence[int]]) -> Tensor:
        """Announce that the next call goes on with each row's dialogue on the cache as it is; -> ids (b, w) to call the
        model with, and nothing else.

        `answers`: the tokens that were generated; `turns`: those of the dialogue behind them. Raises PrunebenchError
        before a prefill, for a third turn, and for answers that were not decoded.
        """
        if not self._per_layer or self._turn is not None:
            raise PrunebenchError("expected a prefill and its answer in front of a second turn, and no turn before it")
        self._turn, ids = Turn.behind(self._steps, answers, turns, self.layout.valid.device)
        return ids
