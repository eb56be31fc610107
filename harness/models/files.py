"""The files of a local checkpoint that transformers reads, and the hash that names their content."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.core.errors import PrunebenchError
from harness.models import jsonfile

#: files beside the weights that decide what a model answers
CONFIGS = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
NEEDED = ("config.json", "tokenizer.json", "processor_config.json")
#: what older checkpoints have in place of a file that is needed
OLDER = {"processor_config.json": "preprocessor_config.json"}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
#: the file of a folder that holds differences to another checkpoint; transformers would load both
LORA = "adapter_config.json"
#: bytes a read, and of files in all from which on their hash is kept on disk
CHUNK, WORTH_KEEPING = 1 << 22, 256 << 20
_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks)\.(\d+)\.")


def check_folder(folder: Path, label: str, mend: str) -> None:
    """Raise PrunebenchError where a file that is needed is missing, or one that is read is no regular file of its
    kind."""
    for needed in NEEDED:
        if not any(os.path.lexists(folder / name) for name in (needed, OLDER.get(needed, needed))):
            raise PrunebenchError(f"{label}: expected {needed} in {folder}, found none: {mend}")
    if os.path.lexists(folder / LORA):
        raise PrunebenchError(
            f"{label}: {folder} holds {LORA}, the difference to another checkpoint: merge both and give the result"
        )
    for name in CONFIGS:
        if os.path.lexists(folder / name):
            if name.endswith(".json") and name != "tokenizer.json":
                jsonfile.read(folder / name, label)
            else:
                jsonfile.check_regular(folder / name, label)
    weight_files(folder, label, mend)


def weight_files(folder: Path, label: str, mend: str = "fetch the model again") -> list[Path]:
    """The files that hold the weights: the single one, or those that the index names. Raises PrunebenchError where one
    is missing."""
    if os.path.lexists(folder / WEIGHTS):
        names = [WEIGHTS]
    elif os.path.lexists(folder / INDEX):
        names = _shards(jsonfile.read(folder / INDEX, label), f"{label}: {folder / INDEX}")
    else:
        raise PrunebenchError(
            f"{label}: expected *.safetensors weights ({WEIGHTS}, or {INDEX} and its files) in {folder}, found none:"
            f" {mend}"
        )
    for name in names:
        if not os.path.lexists(folder / name):
            raise PrunebenchError(f"{label}: expected {name} in {folder}, which {INDEX} names, found none: {mend}")
        jsonfile.check_regular(folder / name, label)
    return [folder / name for name in names]


def _shards(index: Mapping[str, Any], label: str) -> list[str]:
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise PrunebenchError(f"{label}: expected a weight_map from tensors to files, found none: fetch the file again")
    strange = next((p for p in places.values() if not isinstance(p, str) or not re.fullmatch(r"[\w.-]+", p)), None)
    if strange is not None:
        raise PrunebenchError(
            f"{label}: expected names of files in the weight_map, found {str(strange)[:80]!r}: fetch the file again"
        )
    return sorted(set(places.values()))


def check_weights(folder: Path, depths: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], label: str) -> None:
    """Raise PrunebenchError where the weights hold other layers than `depths` (part -> layers, "vision" and "decoder")
    says, or a tensor whose name ends as in `shapes` has another shape; reads names and shapes only."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, set[int]] = {part: set() for part in depths}
    for file in weight_files(folder, label):
        try:
            with safe_open(file, framework="pt") as stored:
                names = stored.keys()
                found_shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise PrunebenchError(f"{label}: {file} holds no weights that can be read ({reason}): restore it") from None
        for name, shape in found_shapes.items():
            expected = next((value for end, value in shapes.items() if name.endswith(end)), shape)
            if shape != expected:
                raise PrunebenchError(
                    f"{label}: expected {name} of shape {expected}, as config.json says, found {shape} in {file.name}:"
                    " mend config.json, or give the whole checkpoint"
                )
            layer = _LAYER.search(name)
            if layer is not None:
                found["vision" if "vision" in name or "visual" in name else "decoder"].add(int(layer[1]))
    for part, layers in found.items():
        if layers != set(range(depths[part])):
            more = sorted(layers - set(range(depths[part])))
            lacking = sorted(set(range(depths[part])) - layers)
            wrong = f"{len(more)} more, first {more[0]}" if more else f"{len(lacking)} missing, first {lacking[0]}"
            raise PrunebenchError(
                f"{label}: expected {depths[part]} {part} layers in the weights, as config.json says, found"
                f" {len(layers)} ({wrong}): mend config.json, or give the whole checkpoint"
            )


# ----------------------------------------------------------------------------------------------------------------- hash


def weight_hash(folder: Path) -> str:
    """16 hex of SHA-256 over the files that decide what a local model answers; links are followed, other files do not
    count.

    Reads in pieces. A known result is kept by path, size and time of every file: in this process, and for large models
    in the user's cache folder. Raises PrunebenchError for what is no regular file.
    """
    files = loaded_files(folder)
    stamps = _stamps(files)
    key = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
    kept = _kept(key) if sum(size for _, _, size, *_ in stamps) >= WORTH_KEEPING else None
    if key not in _KNOWN:
        _KNOWN[key] = _read_kept(kept) or _hashed(files)
        if _stamps(files) != stamps:
            del _KNOWN[key]
            raise PrunebenchError(f"model {folder.name}: its files changed while they were read: try again")
        if kept is not None:
            _keep(kept, _KNOWN[key])
    return _KNOWN[key]


def loaded_files(folder: Path) -> list[Path]:
    """The files that transformers reads from a folder, by name."""
    label = f"model {folder.name}"
    found = [folder / name for name in CONFIGS if os.path.lexists(folder / name)] + weight_files(folder, label)
    if found[-1].name != WEIGHTS:
        found.append(folder / INDEX)
    for file in found:
        jsonfile.check_regular(file, label)
    return sorted(found)


_KNOWN: dict[str, str] = {}


def _stamps(files: Sequence[Path]) -> list[tuple[str, str, int, int, int]]:
    found = []
    for file in files:
        seen = file.stat()
        found.append((file.name, os.path.realpath(file), seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns))
    return found


def _hashed(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            while piece := stream.read(CHUNK):
                digest.update(piece)
    return digest.hexdigest()[:16]


def _kept(key: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "prunebench" / "weights" / key


def _read_kept(file: Path | None) -> str | None:
    if file is None:
        return None
    with suppress(OSError, ValueError):
        text = file.read_text(encoding="ascii")
        return text if re.fullmatch("[0-9a-f]{16}", text) else None
    return None


def _keep(file: Path, digest: str) -> None:
    with suppress(OSError):  # a cache that cannot be written costs time, no result
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}")
        part.write_text(digest, encoding="ascii")
        part.replace(file)
