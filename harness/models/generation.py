"""generation_config.json: the tokens that end an answer, and the settings that would change a greedy answer.

One of these is computed: `repetition_penalty`, which Qwen2.5-VL's checkpoints state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import PrunebenchError
from harness.models import jsonfile

FILE = "generation_config.json"
#: settings of `generate` that change what greedy decoding answers -> values beside null that change nothing
CHANGES_GREEDY: dict[str, tuple[Any, ...]] = {
    "begin_suppress_tokens": ([],),
    "bad_words_ids": ([],),
    "constraints": ([],),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_decoder_ids": ([],),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "sequence_bias": ([], {}),
    "stop_strings": ([], ""),
    "suppress_tokens": ([],),
    "token_healing": (False,),
    "watermarking_config": (),
}


def end_tokens(folder: Path, config: Any, tokenizer_eos: int | None, label: str) -> tuple[int, ...]:
    """Ids at which an answer ends: those of generation_config.json, or of the decoder where there is no such file, and
    the tokenizer's.

    Raises PrunebenchError where an id is none of the vocabulary.
    """
    file = folder / FILE
    if file.exists():
        where, stated = FILE, jsonfile.read(file, label).get("eos_token_id")
    else:
        where, stated = "config.json", getattr(config.text_config, "eos_token_id", None)
    several = stated if isinstance(stated, list | tuple) else [] if stated is None else [stated]
    vocabulary = int(config.text_config.vocab_size)
    for token in several:
        if type(token) is not int or not 0 <= token < vocabulary:
            raise PrunebenchError(
                f"{label}: {where}: expected eos_token_id as ids from 0 to {vocabulary - 1}, found"
                f" {str(stated)[:80]!r}: mend the file"
            )
    return tuple(sorted({*several, *([] if tokenizer_eos is None else [tokenizer_eos])}))


def repetition_penalty(folder: Path, label: str) -> float:
    """What logits of tokens that a prompt or its answer holds are divided by (multiplied with, where they are negative)
    before the next one is chosen; 1 for nothing. Raises PrunebenchError where it is no positive number."""
    file = folder / FILE
    value = jsonfile.read(file, label).get("repetition_penalty") if file.exists() else None
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise PrunebenchError(
            f"{label}: {FILE}: expected repetition_penalty as a number above 0, found {str(value)[:40]!r}: mend"
        )
    return float(value)


def penalised(logits: Tensor, ids: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """`logits (b, vocabulary)` under a repetition penalty on the tokens `ids` of each row."""
    if penalty == 1:
        return logits
    logits, said = logits.float(), torch.zeros_like(logits, dtype=torch.bool)
    for row, tokens in enumerate(ids):
        said[row, torch.tensor(sorted({*tokens}), device=logits.device)] = True
    return torch.where(said, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def check_greedy(folder: Path, label: str) -> None:
    """Raise PrunebenchError where generation_config.json changes greedy answers. Sampling, which is never used here,
    says nothing."""
    file = folder / FILE
    if not file.exists():
        return
    stated = jsonfile.read(file, label)
    found = [f"{name}={str(stated[name])[:40]}" for name in _changing(stated)]
    if found:
        raise PrunebenchError(
            f"{label}: {FILE}: expected plain greedy decoding, found {', '.join(found)}, which changes answers and"
            " which prunebench does not compute: take it out of the file"
        )


def _changing(stated: dict[str, Any]) -> Iterable[str]:
    for name, neutral in CHANGES_GREEDY.items():
        value = stated.get(name)
        same = [v for v in neutral if v == value and isinstance(v, bool) == isinstance(value, bool)]
        if value is not None and not same:
            yield name
