"""The kinds of the values in a cell file, which tables and page compute with.

A store writes no others. A cell file that was sealed with others, by whomever, is damaged: one number that is a text
would end every table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from harness.core import grids
from harness.core.errors import PrunebenchError
from harness.store.probe import MOST_COST, MOST_LAYERS

#: as `MOST_COST` of any other number that somebody else states
MOST_NUMBER = 1e12
#: grids of all images of one prompt: "9999 of ..." stands for 9,999 times the text behind it
MOST_GRIDS = 10_000
COUNTS = frozenset({"expected", "answered", "headline"})
#: names that figures print, and what no font has
_SHOWN, _UNSHOWN = ("task", "budget", "headline"), re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
#: costs of the engine that tables compute with; a note of a method may be any number
_COMPUTED = frozenset(
    {"kept", "mean_visual", "n_visual", "vision_flops", "projector_flops", "prefill_dense_flops", "prefill_paper_macs"}
    | {"scoring_flops", "kv_bytes", "turn_flops", "turn_decode_flops", "turn_lm_head_flops", "turn_kv_bytes"}
)


def check_kinds(body: Mapping[str, Any]) -> None:
    """Raise PrunebenchError unless a cell file's values are of the kinds that a store writes."""
    for name in ("metrics", "costs", "counts", "method_info", "provenance"):
        need(isinstance(body[name], Mapping), f"{name}: an object", body[name])
    for name, text in {**body["cell"], "headline": body["headline"]}.items():
        if name in _SHOWN:
            need(isinstance(text, str) and not _UNSHOWN.search(text), f"{name}: a text without control signs", text)
    for name, value in body["metrics"].items():
        fine = value is None or number(value, -MOST_COST, MOST_COST)
        need(fine, f"metrics/{name}: a number up to {MOST_COST:.0e}", value)
    fine = body["maximum"] is None or number(body["maximum"], -MOST_COST, MOST_COST)
    need(fine, f"maximum: a number up to {MOST_COST:.0e}", body["maximum"])
    for name, value in body["costs"].items():
        least, what = (0, "a cost from 0") if name in _COMPUTED else (-MOST_COST, "a number up")
        need(number(value, least, MOST_COST), f"costs/{name}: {what} to {MOST_COST:.0e}", value)
    need(body["counts"].keys() >= COUNTS, f"counts: {', '.join(sorted(COUNTS))}", body["counts"])
    for name, value in body["counts"].items():
        need(type(value) is int and 0 <= value <= MOST_NUMBER, f"counts/{name}: a count from 0", value)
    _check_interval(body["interval"])
    whole = {name: body["cell"][name] for name in ("seed", "n_samples", "max_new_tokens")}
    need(max(whole.values()) < 2**63, "cell: whole numbers of 64 bits", whole)
    said = body["provenance"]
    limit = said["request"]["limit"]
    fine = limit is None or not limit.isdigit() or bool(re.fullmatch("[0-9]{1,18}", limit))
    need(fine, "provenance/request/limit: a number of at most 18 digits", limit)
    depth = said.get("decoder_layers")
    need(
        depth is None or (type(depth) is int and 0 < depth <= MOST_LAYERS), f"decoder_layers: 1 to {MOST_LAYERS}", depth
    )
    image = said["processing"].get("image", {}) if isinstance(said.get("processing"), Mapping) else None
    fine = isinstance(image, Mapping) and all(isinstance(image.get(name, ""), str) for name in ("policy", "processor"))
    need(fine, "provenance/processing/image: an object with policy and processor", image)
    record = said.get("grids")
    for words in record if isinstance(record, Mapping) else ():
        several = re.match(r"([0-9]{1,4}) of ", words)
        n = words.count("x") * (int(several[1]) if several else 1)
        need(n <= MOST_GRIDS, f"provenance/grids: at most {MOST_GRIDS:,} grids of a prompt", n)
    grids.read(record)


def _check_interval(value: Any) -> None:
    if value is None:
        return
    kinds = {"metric": str, "low": float, "high": float, "level": float, "method": str, "n_clusters": int}
    need(isinstance(value, dict) and set(value) == set(kinds), f"interval: {', '.join(kinds)}", value)
    for name, kind in kinds.items():
        fine = number(value[name]) if kind is float else type(value[name]) is kind
        need(fine, f"interval/{name}: a {kind.__name__}", value[name])


def number(value: Any, least: float = -math.inf, most: float = MOST_NUMBER) -> bool:
    """Whether it is a number between these."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def need(fine: bool, expected: str, found: Any) -> None:
    """Raise PrunebenchError unless `fine`."""
    if not fine:
        raise PrunebenchError(f"expected {expected}, found {repr(found)[:80]}")
