"""`prune`: a model of transformers, pruned by a method's name and a budget inside a `with` block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from harness.core import budget as budgets
from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.engine.attach import attach
from harness.engine.run import EngineRun
from harness.method import Method, build, check_budget, method_class
from harness.method.build import own_knobs
from harness.models.adapters import Adapter, adapter_for
from harness.models.adapters.text_encoder import ClipTextEncoder
from harness.models.config import ModelConfig, calibrated_knobs, config_of_checkpoint
from harness.models.device import check_whole
from harness.models.files import weight_hash
from harness.models.prompt import word_ids
from harness.models.requirements import check
from harness.models.text_tower import folder_of

#: text tokens of LLaVA-1.5's prompt with a short question, at which `prunebench cost` counts as well
TEXT_TOKENS = 74


@contextmanager
def prune(
    model: nn.Module,
    method: str | type[Method] | Method,
    budget: int | str | Budget | None = None,
    *,
    seed: int = 0,
    positions: str = "method",
    text_tokens: int = TEXT_TOKENS,
    text_encoder: str | None = None,
    tokenizer: Any = None,
    **knobs: Any,
) -> Iterator[EngineRun]:
    """Prune every prefill of `model` inside the block; the model is restored on exit, also after an exception.

    `model`: a loaded model of a supported family, as LlavaForConditionalGeneration, on one device. `method`: a name
    from `prunebench methods`, `path/to/file.py:Class`, a subclass of `Method`, or a method object, which is used as it
    stands. `budget`: visual tokens kept (64), or "25%", "64avg", "0.35flops", "native", "calibrated". `knobs`: the
    method's own, below them those that configs/models/ states for this checkpoint. `seed`: of the method's randomness.
    `positions`: "method", "original" or "compact". `text_tokens`: the text length at which a "flops" budget is solved.
    `text_encoder`: hub id or folder of the CLIP checkpoint, for methods that read the question through it.
    `tokenizer`: the model's own, as transformers loads it, for methods that read the question's tokens.

    The block gets the run: `run.costs()` after a prefill says what it cost, `run.stages(row)` which visual tokens each
    layer saw. Set `run.samples` (one key per row) before each batch where the method is random, and `run.questions`
    (one text per row) where it reads them. `forward` and `generate` both work, with batches padded on the left.

    Raises PrunebenchError for everything that a user can mend.
    """
    check_whole(model)
    adapter = adapter_for(model)
    check(model.config, adapter.requirements, "the model")
    for name, value in (("seed", seed), ("text_tokens", text_tokens)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise PrunebenchError(f"{name}={value!r}: expected a whole number of at least 0")
    built = _built(adapter, method, budget, knobs, text_tokens, text_encoder)
    encoder = _encoder(adapter, text_encoder if built.text_tower is None else built.text_tower.source)
    ids = None if tokenizer is None else partial(word_ids, tokenizer)
    with attach(model, built, seed, positions, text_encoder=encoder, tokenizer=ids) as run:
        yield run


def _built(
    adapter: Adapter,
    method: str | type[Method] | Method,
    budget: int | str | Budget | None,
    knobs: dict[str, Any],
    text_tokens: int,
    text_encoder: str | None,
) -> Method:
    if isinstance(method, Method):
        if budget is not None or knobs:
            given = ", ".join([*(["budget"] if budget is not None else []), *knobs])
            raise PrunebenchError(
                f"a {method.name} object has its knobs, so {given} would have no effect: give the method's name"
                f" instead, as in prune(model, {method.name!r}, budget=64)"
            )
        return method
    if not isinstance(method, str) and not (isinstance(method, type) and issubclass(method, Method)):
        raise PrunebenchError(
            f"method: expected a name as 'fastv', 'path/to/file.py:Class', a subclass of prunebench.Method or an object"
            f" of one, found {method!r} ({type(method).__name__})"
        )
    if isinstance(budget, bool) or not isinstance(budget, int | str | Budget | None):
        raise PrunebenchError(
            f"budget: expected a number of visual tokens (64) or a text ('25%', '64avg', '0.35flops', 'native'), found"
            f" {budget!r} ({type(budget).__name__})"
        )
    cls, asked = method_class(method), budget if isinstance(budget, Budget) else budgets.parse(budget)
    check_budget(cls, asked, knobs)
    checkpoint = str(getattr(adapter.model, "name_or_path", "") or "")
    config = config_of_checkpoint(checkpoint)
    own = {} if config is None else own_knobs(cls, config.knobs.get(cls.name, {}), config.text_tower)
    if text_encoder is not None:
        own |= own_knobs(cls, {}, text_encoder)
    if asked.unit == "calibrated" and cls.traits.calibrated:
        own |= calibrated_knobs(cls.name, _calibration(checkpoint, config))
    made = build(method, asked, {**own, **knobs}, adapter.usual.with_text(text_tokens))
    made.check_text_tower()
    return made


def _calibration(checkpoint: str, config: ModelConfig | None) -> str:
    """As `Located.calibration`: a folder's name says nothing about its weights."""
    if config is not None:
        return config.stands_for
    folder = Path(checkpoint)
    return f"{folder.absolute().name}-{weight_hash(folder)}" if checkpoint and folder.is_dir() else checkpoint


def _encoder(adapter: Adapter, source: str | None) -> Callable[[], ClipTextEncoder] | None:
    """Loads the text encoder when it is first asked for; None where none is known, which the run then says."""
    if source is None:
        config = config_of_checkpoint(str(getattr(adapter.model, "name_or_path", "") or ""))
        source = None if config is None else config.text_tower
    if source is None:
        return None
    weight = next(adapter.model.parameters())
    named = source
    return cache(lambda: ClipTextEncoder.load(folder_of(named), weight.device, weight.dtype))
