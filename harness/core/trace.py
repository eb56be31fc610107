"""What a prefill really did, layer by layer; the only source of costs. Plain Python numbers, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LayerTrace:
    """One decoder layer of one prefill batch.

    `columns`: padded length every row was run at; `rows`: query rows run, None for all columns (fewer where a prefix is
    shared). `tokens`, `visual`: per row, tokens and visual tokens without padding. `edit_rows`: query rows (padded) of
    each extra attention call that an edit made. `silenced`: per row, causal (query, key) pairs whose probability an
    edit removed. `behind`: per row, tokens for which the official code runs the output projection and the feed-forward;
    empty where it runs them for all `tokens`.
    """

    columns: int
    tokens: list[int]
    visual: list[int]
    rows: int | None = None
    edit_rows: list[int] = field(default_factory=list)
    silenced: list[int] = field(default_factory=list)
    behind: list[int] = field(default_factory=list)


@dataclass
class TurnTrace:
    """A second turn of a dialogue, run on the cache of a prefill and of the decode steps behind it.

    `columns`: padded length that every row was run at. `tokens`: per row, tokens without padding. `said`: per row,
    tokens of the first answer that the turn found in the cache. `decode_steps`: those behind the turn.
    """

    columns: int
    tokens: list[int]
    said: list[int]
    decode_steps: int = 0


@dataclass
class Trace:
    """A prefill of `batch` rows and the decode steps after it, up to its `turn` where there is one.

    `scoring_executed` / `scoring` are FLOPs (1 multiply-add = 2) of the matrix products methods asked for: as run on
    the padded batch, and per row without padding. `notes[name]` holds one number per row (fusion layer, forced, ...).
    """

    batch: int
    layers: list[LayerTrace]
    n_prompt_visual: list[int]
    scoring_executed: int = 0
    scoring: list[int] = field(default_factory=list)
    notes: dict[str, list[float]] = field(default_factory=dict)
    decode_steps: int = 0
    turn: TurnTrace | None = None

    def kept(self, row: int) -> int:
        """Visual tokens after the method's last content-based selection; methods that choose late note it, or the last
        layer's count."""
        noted = self.notes.get("kept")
        return int(noted[row]) if noted is not None else self.layers[-1].visual[row]

    def mean_visual(self, row: int) -> float:
        """Visual tokens present per decoder layer, averaged over layers."""
        return sum(layer.visual[row] for layer in self.layers) / len(self.layers)
