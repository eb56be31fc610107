"""A run as the method sees it: `harness.method.Run` over the layout, the prompts and the trace of one prefill."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.core import flops
from harness.core.errors import PrunebenchError
from harness.core.shape import ImageShape, ModelShape, PromptShape, Share, quota
from harness.core.trace import Trace
from harness.engine.capture import CapturedLayer
from harness.engine.layout import TokenLayout, take
from harness.engine.prefix import Shared
from harness.engine.readback import Later, PerRow, charged, read_at_once
from harness.engine.tower import Seen
from harness.engine.untouched import Untouched
from harness.method import AttentionEdit, DecodePositions, Method, Places, Question, ScoresError, raised
from harness.method.registry import NOBODYS
from harness.models.adapters import Adapter
from harness.models.adapters.text_encoder import TextEncoder

if TYPE_CHECKING:
    from harness.engine.turn import Turn

#: token ids of words, each cut alone, without tokens around them
Tokenizer = Callable[[Sequence[str]], Sequence[int]]


class RunView:
    """The state of a run, and everything that `harness.method.Run` offers to a method."""

    def __init__(
        self,
        adapter: Adapter,
        method: Method,
        seed: int,
        positions: str,
        text_encoder: Callable[[], TextEncoder] | None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self._adapter, self._method, self._seed, self._positions = adapter, method, seed, positions
        self._text_encoder, self._tokenizer = text_encoder, tokenizer
        self._untouched = Untouched(adapter.model, method.name)
        self._shape = adapter.shape
        self._depth = len(adapter.layers)
        self.samples: Sequence[str] | None = None
        self.questions: Sequence[str] | None = None
        self.memo: MutableMapping[str, Any] = {}
        self._input_ids: Tensor | None = None
        self._attention_mask: Tensor | None = None
        self._facts: dict[str, Any] = {}
        #: facts of the images whose features were made last, until a prefill takes them
        self._said: dict[str, Any] = {}
        #: of each prompt of the prefill, where they are known beforehand
        self._images: Sequence[tuple[ImageShape, ...]] | None = None
        #: (b or 1, n, axes), where the model put the tokens of the prefill that is coming; None: counted
        self._given_positions: Tensor | None = None
        #: per early layer, what the model adds behind it to each visual token of the batch
        self._deepstack: Sequence[Tensor] = ()
        self._layout: TokenLayout | None = None
        self._prompts: Sequence[PromptShape] | None = None
        self._prompt_places: Tensor | None = None
        self._rotary: tuple[Tensor, Tensor] | None = None
        #: position ids and rotary embeddings of the columns that the layers run now
        self._rotating: tuple[Tensor, tuple[Tensor, Tensor]] | None = None
        self._per_layer: list[TokenLayout] = []
        self._per_layer_prompt: TokenLayout  # as the prompt came, before any reduction
        self._silenced: list[list[Tensor]] = []
        self._notes: dict[str, Tensor | list[float]] = {}
        #: scoring of which the device has the counts
        self._later: list[Later] = []
        #: of each layout of the last prefill, its first layer and the visual tokens' numbers, -1 for others; None until
        #: they are read
        self._origins: list[tuple[int, NDArray[np.float64]]] | None = None
        self._trace: Trace | None = None
        self._decode_positions: DecodePositions = "original"
        self._hidden_in_decode: list[Tensor | None] = []
        self._prefilling = False
        self._steps = 0
        self._turn: Turn | None = None
        self._announced: tuple[Shared, Tensor, Tensor] | None = None
        self._shared: Shared | None = None
        self._edits: Sequence[AttentionEdit] = ()
        self._seen: Sequence[Seen] | None = None
        #: the layers of a prefill inside `capturing`
        self._captured: list[CapturedLayer] | None = None
        self._unreduced: tuple[Tensor, TokenLayout, Tensor] | None = None

    @property
    def shape(self) -> ModelShape:
        return self._shape

    @property
    def layout(self) -> TokenLayout:
        """The layout at the current boundary; raises outside a prefill."""
        if self._layout is None:
            raise PrunebenchError("no prefill has run inside attach() yet")
        return self._layout

    @property
    def visual_valid(self) -> Tensor:
        # a copy: `keep = run.visual_valid; keep[...] = False` is a natural thing to write
        return self.layout.visual_tokens.valid.clone()

    @property
    def n_prompt_visual(self) -> Tensor:
        return self._per_layer_prompt.visual.sum(1)

    @property
    def prompts(self) -> Sequence[PromptShape]:
        if self._prompts is None:
            layout = self._per_layer_prompt
            images = self._images or self._adapter.images(layout.visual_counts, self._facts)
            texts = [n - v for n, v in zip(layout.counts, layout.visual_counts, strict=True)]
            self._prompts = [
                self._adapter.prompt(self._shape, *of, n_text=n_text) for of, n_text in zip(images, texts, strict=True)
            ]
        return self._prompts

    @property
    def places(self) -> Places:
        layout = self.layout
        if self._prompt_places is None:
            rows = [
                torch.tensor(prompt.places(), dtype=torch.long).view(-1, len(Places._fields)) for prompt in self.prompts
            ]
            # one more slot, for tokens that are no token of the prompt
            padded = nn.utils.rnn.pad_sequence(
                [torch.cat([row, -torch.ones_like(row[:1])]) for row in rows], batch_first=True, padding_value=-1
            )
            self._prompt_places = padded.to(layout.valid.device)
        tokens = layout.visual_tokens
        origin = torch.where(tokens.valid, layout.origin.gather(1, tokens.columns), -1)
        index = torch.where(origin >= 0, origin, self.n_prompt_visual[:, None])
        return Places(*take(self._prompt_places, index).unbind(2))

    def quota(self, keep: int | Share) -> Tensor:
        counts, device = self._per_layer_prompt.visual_counts, self._per_layer_prompt.valid.device
        quotas = [quota(keep, n) for n in counts]
        if len(set(quotas)) == 1:  # made on the device: an upload waits for it
            return torch.full((len(quotas),), quotas[0], device=device)
        return torch.tensor(quotas, device=device)

    def generator(self, row: int) -> torch.Generator:
        self._check_row(row)
        key = self.samples[row] if self.samples is not None else str(row)
        digest = hashlib.sha256(f"{self._seed}\0{key}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def matmul(
        self,
        a: Tensor,
        b: Tensor,
        *,
        row: int | Sequence[int] | None = None,
        entries: Sequence[int] | Tensor | None = None,
    ) -> Tensor:
        out = a @ b
        inner, batch = a.shape[-1], self.layout.valid.shape[0]
        per_row = [0] * batch
        if isinstance(row, int):
            self._check_row(row)
            per_row[row] = 2 * out.numel() * inner
        else:
            rows = range(batch) if row is None else row
            if out.ndim < 3 or out.shape[0] != len(rows):
                raise PrunebenchError(
                    f"{self._method.name}: expected a product over the batch of {len(rows)}, found shape"
                    f" {tuple(out.shape)}: say whose row= it is"
                )
            if isinstance(entries, Tensor) and row is None:
                self._count_scoring(
                    2 * out.numel() * inner, Later(entries.to(out.device), [2 * inner] * batch, per_row)
                )
                return out
            real = [out.numel() // len(rows)] * len(rows) if entries is None else list(map(int, entries))
            for of, n in zip(rows, real, strict=True):
                self._check_row(of)
                per_row[of] += 2 * n * inner
        self._count_scoring(2 * out.numel() * inner, per_row)
        return out

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.layout.valid.shape[0]:
            raise PrunebenchError(
                f"{self._method.name}: expected a row from 0 to {self.layout.valid.shape[0] - 1} of the batch, found"
                f" {row}"
            )

    def project(self, features: Tensor, valid: Tensor) -> Tensor:
        vision = self.prompts[0].images[0].vision
        per_token, (b, m) = flops.projector(self._shape, vision, tokens=1), features.shape[:2]
        self._count_scoring(b * m * per_token, charged(valid.sum(1), [per_token] * b))
        projected: Tensor = self._adapter.project(features)
        return projected

    def question(self) -> Question:
        questions, encoder = self._asked(), self._encoder()
        encoded = [encoder.encode(text) for text in questions]
        self._count_scoring(sum(e.flops for e in encoded), [e.flops for e in encoded])
        return self._padded([e.pieces for e in encoded])

    def question_tokens(self, before: str = "") -> Question:
        questions, tokenizer = self._asked(), self._tokenizer
        if tokenizer is None:
            raise PrunebenchError(
                f"{self._method.name} reads the question through the model's tokenizer, and this run has none: give"
                " attach() or prune() tokenizer="
            )
        ids = [tokenizer(f"{before} {text}".split()) for text in questions]
        device = self.layout.valid.device
        return self._padded([self._adapter.embedded(torch.tensor(one, dtype=torch.long, device=device)) for one in ids])

    def _asked(self) -> Sequence[str]:
        """The questions. Raises PrunebenchError where nobody has set them."""
        if self.questions is None:
            raise PrunebenchError(
                f"{self._method.name} reads the question's text, and this run has none: set run.questions, one text a"
                " row, before each batch"
            )
        return self.questions

    def _padded(self, pieces: Sequence[Tensor]) -> Question:
        """Embeddings of questions, (p, width) each."""
        device, pad = self.layout.valid.device, nn.utils.rnn.pad_sequence
        valid = [torch.ones(len(one), dtype=torch.bool, device=device) for one in pieces]
        return Question(pad([one.to(device) for one in pieces], batch_first=True), pad(valid, batch_first=True))

    def joint(self, features: Tensor, valid: Tensor) -> Tensor:
        projected = self._encoder().joint(features)
        per_token = 2 * features.shape[-1] * projected.shape[-1]
        self._count_scoring(valid.numel() * per_token, charged(valid.sum(1), [per_token] * valid.shape[0]))
        return projected

    def _encoder(self) -> TextEncoder:
        if self._text_encoder is None:
            raise PrunebenchError(
                f"{self._method.name} reads the question through a text encoder, and this run has none: name one in the"
                " model's config (text_encoder: a CLIP checkpoint), or give attach() text_encoder= and set"
                " run.questions"
            )
        return self._text_encoder()

    def note(self, name: str, values: Tensor | Sequence[float | int | bool]) -> None:
        found = tuple(values.shape) if isinstance(values, Tensor) else (len(values),)
        if found != (self.layout.valid.shape[0],):
            raise PrunebenchError(
                f"{self._method.name}: note {name!r}: expected one number a row, shape"
                f" {(self.layout.valid.shape[0],)}, found {found}"
            )
        # a copy, of what it is now; it is read behind the prefill
        device = self.layout.valid.device
        self._notes[name] = (
            values.to(device, torch.float64, copy=True) if isinstance(values, Tensor) else [float(x) for x in values]
        )

    def _sample(self, row: int) -> str:
        return f"sample {self.samples[row]!r} (row {row})" if self.samples is not None else f"row {row}"

    @contextmanager
    def _naming(self, where: str) -> Iterator[None]:
        """What a method's hook raises, and scores that hold nan: here it is known by whom, where and for which
        sample."""
        try:
            yield
        except ScoresError as error:
            raise PrunebenchError(f"{self._method.name} at {where}, {self._sample(error.row)}: {error}") from None
        except (PrunebenchError, torch.OutOfMemoryError, *NOBODYS):
            raise
        except BaseException as error:
            batch = f"a batch of {self.layout.valid.shape[0]} from {self._sample(0)}"
            raise PrunebenchError(f"{self._method.name} at {where}, {batch}: {raised(error)}") from error

    def _rotate(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """`vectors (b, heads, n, head_dim)` under RoPE at `positions (b, n, axes)`, in their own dtype, as the model
        rotates."""
        cos, sin = self._adapter.rotary(vectors, positions)
        return self._adapter.rotate(vectors, cos[:, None], sin[:, None])

    def _prefix_queries(self, layer: int, q: Tensor, shared: Shared) -> Tensor:
        """`Shared.queries` of a layer whose window has `q`, charged to what ran and to no prompt: alone, a prompt's own
        prefill has them."""
        a_query = 2 * self._shape.hidden * self._shape.heads * self._shape.head_dim
        self._count_scoring(a_query * sum(shared.under[start] for start, _ in shared.groups), [0] * q.shape[0])
        return shared.queries(
            layer,
            q,
            self.layout.positions,
            lambda stream, positions: self._rotate(self._adapter.queries(layer, stream), positions),
        )

    def _rotated(self, vector: Tensor, positions: Tensor) -> Tensor:
        """(b, n, head_dim) float32: `vector (head_dim,)` under RoPE at `positions (b, n, axes)`."""
        cos, sin = self._adapter.rotary(vector.float()[None, None], positions)
        return self._adapter.rotate(vector.float().expand_as(cos), cos, sin)

    def _count_scoring(self, executed: int, per_row: PerRow) -> None:
        assert self._trace is not None
        self._trace.scoring_executed += executed
        if isinstance(per_row, Later):
            self._later.append(per_row)
        else:
            self._charge(per_row)

    def _charge(self, per_row: Sequence[int]) -> None:
        assert self._trace is not None
        self._trace.scoring = [a + b for a, b in zip(self._trace.scoring, per_row, strict=True)]

    def _settle(self) -> Trace:
        """The trace of the last prefill, with what the device still had of it: read once, the first time it is asked
        for. Raises PrunebenchError before the first prefill is complete."""
        trace = self._trace
        if trace is None or self._prefilling:
            raise PrunebenchError("no complete prefill has run inside attach() yet")
        if self._origins is not None:
            return trace
        starts = [i for i, layout in enumerate(self._per_layer) if not i or layout is not self._per_layer[i - 1]]
        read = iter(
            read_at_once(
                [
                    *(torch.stack(silenced).sum(0) for silenced in self._silenced if silenced),
                    *(later.n for later in self._later),
                    *(values for values in self._notes.values() if isinstance(values, Tensor)),
                    *(torch.where(x.visual, x.origin, -1) for x in (self._per_layer[start] for start in starts)),
                ]
            )
        )
        for layer, silenced in zip(trace.layers, self._silenced, strict=True):
            layer.silenced = [int(s) for s in next(read)] if silenced else [0] * trace.batch
        for later in self._later:
            self._charge(later.known(next(read)))
        trace.notes = {
            name: next(read).tolist() if isinstance(values, Tensor) else values for name, values in self._notes.items()
        }
        self._origins = [(start, next(read)) for start in starts]
        return trace
