"""JSON from elsewhere, read as data of a bounded size and shape."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from harness.core.errors import PrunebenchError
from harness.store.kinds import COUNTS, MOST_NUMBER, check_kinds, number
from harness.store.probe import MOST_COST
from harness.store.sealed import KEYS, METRIC
from harness.store.sealed import sealed as as_written

#: levels of lists and objects; a cell file has nine
DEEPEST = 32
_LARGEST = 2**63
_HASH = re.compile(r"[0-9a-f]{64}")
#: a word of a request, as the name of a model or of data: no shell, terminal or log reads more into it
PLAIN_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,95}")
#: a hub id has one /
MODEL_WORD = re.compile(rf"{PLAIN_WORD.pattern}(?:/{PLAIN_WORD.pattern})?")
#: a name that stands in tables as it is: no markup
_NAME = re.compile(r"[A-Za-z0-9_./ ,()+-]{1,80}")
_STARTED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9:.+Z-]{1,30})?")
#: sizes of images in a record of grids, and the images of one prompt
MOST_SIZES, MOST_IMAGES = 20_000, 100
#: characters of one text, apart from prompts and settings
LONGEST = 1000
#: of provenance: what a store, an import of lmms-eval's logs or `results publish` writes
_MEASURED = ["started", "batch_size", "prefix_sharing", "device", "kernels", "versions", "python", "git", "dirty"]
_MODEL = ["model_source", "revision", "processing", "decoder_layers", "unproven"]
_PROVENANCE = {*_MEASURED, *_MODEL, "request", "task_settings", "grids", "wall_s", "origin", "imported", "published"}
_CATEGORY = "category/"
_PLAIN = "a name of at most 80 letters, digits, blanks and _./,()+-"


def parsed(data: bytes, name: str) -> Any:
    """The value of a JSON file. Raises PrunebenchError unless it is ASCII, not deep, has each key once, and numbers
    that are finite and fit 64 bits."""

    def bad(what: str) -> PrunebenchError:
        return PrunebenchError(f"{name}: expected JSON as prunebench writes it, found {what}")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise bad(f"the key {twice[:60]!r} twice")
        return found

    def constant(word: str) -> Any:
        raise bad(f"the number {word}")

    def whole(text: str) -> int:
        if len(text) > 20 or not -_LARGEST <= int(text) < _LARGEST:
            raise bad(f"a number of {len(text)} digits")
        return int(text)

    def real(text: str) -> float:
        if len(text) > 60 or not math.isfinite(float(text)):
            raise bad(f"the number {text[:30]}")
        return float(text)

    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise bad("bytes that are not ASCII") from None
    try:
        _check_depth(text)
        return json.loads(text, object_pairs_hook=once, parse_constant=constant, parse_int=whole, parse_float=real)
    except _Deep:
        raise bad(f"more than {DEEPEST} levels") from None
    except PrunebenchError:
        raise
    except (ValueError, RecursionError) as error:
        raise bad(f"another text ({type(error).__name__}: {str(error)[:80]})") from None


class _Deep(Exception):  # noqa: N818 - said as an error of the file
    pass


def _check_depth(text: str) -> None:
    """Raise before the parser recurses."""
    depth = 0
    # a text without an end is taken whole and once: a search for its end from each of its quotes would be quadratic
    for mark in re.finditer(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', text, re.DOTALL):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark[0], 0)
        if depth > DEEPEST:
            raise _Deep


def check_cell(body: Any, data: bytes) -> None:
    """Raise PrunebenchError unless a cell file from elsewhere, parsed from `data`, has values of the kinds that a store
    writes. Its identity and checksum are `load`'s matter."""
    if not isinstance(body, dict) or set(body) - {METRIC} != KEYS | {"checksum"}:
        names = sorted(set(body) ^ (KEYS | {"checksum"}))[:3] if isinstance(body, dict) else [type(body).__name__]
        raise _other("the keys of a cell file", names)
    _need(isinstance(body["cell"], dict), "cell: an object", body["cell"])
    _need(isinstance(body["cell"].get("knobs"), dict), "cell/knobs: an object", body["cell"].get("knobs"))
    try:
        check_kinds(body)
    except PrunebenchError as error:
        raise PrunebenchError(f"cell.json: {error}; result files are never edited") from None
    _need(len(body["metrics"]) <= 10_000, "at most 10,000 metrics", len(body["metrics"]))
    fine = body["maximum"] is None or number(body["maximum"], -MOST_NUMBER)
    _need(fine, "maximum: a number up to 1e12", body["maximum"])
    for name, value in body["metrics"].items():
        _need(value is None or number(value, -MOST_NUMBER), f"metrics/{name}: a number up to 1e12", value)
        # the data name their categories
        _need(name.startswith(_CATEGORY) or bool(_NAME.fullmatch(name)), f"metrics: {_PLAIN}", name)
    for name, value in body["costs"].items():
        _need(re.fullmatch(r"[a-z][a-z0-9_]{0,80}", name) is not None, "costs: names of small letters", name)
        least = -1 if name.endswith("_layer") else 0  # a layer that there is none of is -1
        _need(number(value, least, MOST_COST), f"costs/{name}: a cost from {least} to {MOST_COST:.0e}", value)
    strange = sorted(body["counts"].keys() - COUNTS - {"images"})
    _need(not strange, f"counts of {sorted(COUNTS)} and images", strange)
    _need(number(body["answering_wall_s"], 0), "answering_wall_s: seconds", body["answering_wall_s"])
    _need(bool(_NAME.fullmatch(body["headline"])), f"headline: {_PLAIN}", body["headline"])
    _check_provenance(body["provenance"])
    for name in ("samples_sha256", "checksum"):
        _need(isinstance(body[name], str) and bool(_HASH.fullmatch(body[name])), f"{name}: a hash", body[name])
    most = body["cell"].get("max_new_tokens")
    _need(type(most) is int and most <= 1_000_000, "cell/max_new_tokens: at most 1,000,000", most)
    _check_texts(body)
    rest = {name: value for name, value in body.items() if name != "checksum"}
    if as_written(rest) != data and json.loads(as_written(rest))["checksum"] == body["checksum"]:
        raise _other("the bytes that prunebench writes for this content", "other ones")


def _check_provenance(said: Mapping[str, Any]) -> None:
    unknown = sorted(set(said) - _PROVENANCE)
    _need(not unknown, "provenance of the keys that prunebench writes", unknown[:3])
    for name in ("device", "python", "model_source", "kernels", "origin"):
        _need(isinstance(said.get(name, ""), str), f"provenance/{name}: a text", said.get(name))
    family = said.get("unproven", "none")
    fine = isinstance(family, str) and bool(_NAME.fullmatch(family))
    _need(fine, f"provenance/unproven: {_PLAIN}", family)
    for name in ("revision", "git"):
        _need(said.get(name) is None or isinstance(said[name], str), f"provenance/{name}: a text", said.get(name))
    for name in ("dirty", "prefix_sharing"):
        fine = said.get(name) is None or isinstance(said[name], bool)
        _need(fine, f"provenance/{name}: true or false", said.get(name))
    batch = said.get("batch_size", 1)
    _need(type(batch) is int and 0 < batch <= 1_000_000, "provenance/batch_size: 1 to 1,000,000", batch)
    _need(said.get("wall_s") is None or number(said["wall_s"], 0), "provenance/wall_s: seconds", said.get("wall_s"))
    check_published(said.get("published", {"checksum": "0" * 64, "rewrote": []}))
    for name in ("processing", "task_settings"):
        _need(isinstance(said.get(name), dict), f"provenance/{name}: an object", said.get(name))
    started = said.get("started")
    _need(isinstance(started, str) and bool(_STARTED.fullmatch(started)), "provenance/started: a time", started)
    for name in ("versions", "imported"):
        told = said.get(name, {})
        fine = isinstance(told, dict) and all(isinstance(value, str) for value in told.values())
        _need(fine, f"provenance/{name}: a text for each name", told)
    record = said.get("grids")
    sizes: Sequence[Any] = list(record) if isinstance(record, list | dict) else ()
    _need(len(sizes) <= MOST_SIZES, f"provenance/grids: at most {MOST_SIZES:,} sizes", len(sizes))
    if isinstance(record, dict):
        for words, keys in record.items():
            fine = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
            _need(fine, "provenance/grids: the images of each size", keys)
            several = re.match(r"([0-9]+) of ", words)
            few = words.count("x") <= MOST_IMAGES * 8 and (several is None or len(several[1]) <= 3)
            _need(few, f"provenance/grids: at most {MOST_IMAGES} images a prompt", words)


def check_published(mark: Any) -> None:
    """Raise PrunebenchError unless this is what `results publish` says of a cell that it sealed anew."""
    fine = isinstance(mark, dict) and set(mark) == {"checksum", "rewrote"}
    fine = fine and isinstance(mark["checksum"], str) and bool(_HASH.fullmatch(mark["checksum"]))
    fine = fine and isinstance(mark["rewrote"], list) and all(isinstance(place, str) for place in mark["rewrote"])
    _need(fine, "provenance/published: checksum, a hash, and rewrote, a list of texts", mark)


def _check_texts(value: Any, place: str = "") -> None:
    """No character that a terminal obeys, and no long text. Prompts and stop strings have line breaks."""
    many = place.startswith(("provenance/processing/", "provenance/task_settings/"))
    if isinstance(value, str):
        _need(many or len(value) <= LONGEST, f"{place or 'a text'}: at most {LONGEST:,} characters", len(value))
        for char in value:
            if not char.isprintable() and not (many and (char in "\n\r\t" or char.isspace())):
                raise _other(f"{place or 'a text'}: characters that print", repr(char))
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check_texts(name, place)
            _check_texts(inner, f"{place}/{name}".lstrip("/"))
    elif isinstance(value, list):
        for inner in value:
            _check_texts(inner, place)


def _need(fine: bool, expected: str, found: Any) -> None:
    if not fine:
        raise _other(expected, repr(found)[:80])


def _other(expected: str, found: Any) -> PrunebenchError:
    return PrunebenchError(f"cell.json: expected {expected}, found {found}; result files are never edited")
