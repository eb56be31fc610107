"""lmms-eval's response cache (`--use_cache`) with our model class: answers are found again by all that decides them.

Upstream's key holds the words of `--model_args`. Behind the same words may be another method, once its file was edited,
other weights, or another prunebench: an answer of before would be served as one of now. There is no door for a model to
add to the key, so the cache's constructor is wrapped.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from lmms_eval.caching.response_cache import ResponseCache

from harness.core.cell import canonical_json
from harness.method import source_of
from harness.plugin import MODEL_ID
from harness.runner.environment import environment

if TYPE_CHECKING:
    from harness.runner.answering import Answerer

_create = ResponseCache.create.__func__


def identity_of(answerer: Answerer) -> str:
    """16 hex of SHA-256 over what decides the answers of a model with a method, beside the question."""
    loaded, method = answerer.loaded, answerer.method
    values = {
        "model": [loaded.fingerprint, loaded.dtype, loaded.image_backend, loaded.template_hash],
        "method": [method.name, method.knobs(), source_of(type(method))],
        "run": [answerer.seed, answerer.positions],
        "environment": environment(loaded.device),
    }
    return hashlib.sha256(canonical_json(values).encode("ascii")).hexdigest()[:16]


def key_by(identity: str) -> None:
    """From now on a response cache for our model class keeps the answers of `identity` apart."""

    def create(
        cls: type[ResponseCache], /, cache_root: str, *, model: Any = "", model_args: Any = "", **rest: Any
    ) -> Any:
        if model == MODEL_ID:
            model_args = {"model_args": model_args, "prunebench": identity}
        return _create(cls, cache_root, model=model, model_args=model_args, **rest)

    ResponseCache.create = classmethod(create)
