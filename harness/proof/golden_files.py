"""Read the files of a golden folder, plain or packed with xz; `python -m harness.proof.goldens pack FOLDER` packs them.

    plain                                   packed
    cases/<method>/<id>.json                cases/<method>.jsonl.xz: one case a line, in the order of ids
    models/*.safetensors, inputs/*.safetensors    the same names and .xz
    index.json, models/models.json          as they are

index.json names the plain files in both forms. A plain file is read first, so a new case can lie beside an archive
until the next `pack`.
"""

from __future__ import annotations

import json
import lzma
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from harness.core.errors import PrunebenchError
from harness.core.paths import CHECKOUT
from harness.store.files import write_atomic

_TEXT = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
#: numbers of 2 and 4 bytes: bytes are predicted by their place in the number, not by their neighbours (4 % smaller than
#: the preset)
_NUMBERS = [{**_TEXT[0], "lc": 0, "lp": 2, "pb": 2}]
MEND = "restore it with git, or fetch it again"


class Packed(NamedTuple):
    """Bytes of all files of a folder, before and after."""

    before: int
    after: int


def load_index(folder: Path) -> list[dict[str, Any]]:
    """The cases of a golden folder: dicts with `file`. Raises PrunebenchError if index.json is missing or something
    else."""
    index = folder / "index.json"
    if not index.is_file():
        ours = "" if CHECKOUT else "; those of prunebench are in a checkout of its repository, not in the package"
        raise PrunebenchError(f"expected a folder of recorded cases with an index.json; found none at {index}{ours}")
    cases = _parsed(index.read_bytes(), index)
    if not isinstance(cases, list) or not all(isinstance(c, dict) and isinstance(c.get("file"), str) for c in cases):
        raise PrunebenchError(f"{index}: expected a list of cases with a `file` each: {MEND}")
    return cases


def read_case(folder: Path, file: str) -> dict[str, Any]:
    """The case that index.json calls `file`, from that file or its archive. Raises PrunebenchError if it is missing or
    damaged."""
    if (folder / file).is_file():
        return _case((folder / file).read_bytes(), folder / file)
    archive = _archive(folder, file)
    if not archive.is_file():
        raise PrunebenchError(f"expected the case {file} or its archive {archive}, found neither: {MEND}")
    line = _lines(archive, archive.stat().st_mtime_ns).get(Path(file).stem)
    if line is None:
        raise PrunebenchError(f"{archive}: expected the case {Path(file).stem}, found none of that id: {MEND}")
    return _case(line, archive)


def read_bytes(path: Path) -> bytes:
    """The content of `path`, or of `path`.xz. Raises PrunebenchError if both are missing or the archive is damaged."""
    if path.is_file():
        return path.read_bytes()
    archive = path.with_name(f"{path.name}.xz")
    if not archive.is_file():
        raise PrunebenchError(f"expected {path} or {archive.name} beside it, found neither: {MEND}")
    return _unpacked(archive)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises PrunebenchError if it is missing or damaged."""
    return _parsed(read_bytes(path), path)


def pack(folder: Path) -> Packed:
    """Pack a folder's cases, models and inputs; the same content gives the same bytes, and what is packed already
    stays.

    Each archive is read back before the plain files go. Raises PrunebenchError if index.json lacks a case of the
    folder.
    """
    before, cases = _size(folder), _grouped(folder)
    plain = _plain(folder, cases)
    for archive, lines in cases.items():
        _write(archive, b"".join(lines[name] for name in sorted(lines)), _TEXT)
    tensors = [path for part in ("models", "inputs") for path in sorted((folder / part).glob("*.safetensors"))]
    for path in tensors:
        _write(path.with_name(f"{path.name}.xz"), path.read_bytes(), _NUMBERS)
    for path in [*plain, *tensors]:
        path.unlink()
    for parent in {path.parent for path in plain}:
        if not any(parent.iterdir()):
            parent.rmdir()
    return Packed(before, _size(folder))


def main(arguments: Sequence[str]) -> None:
    """`pack FOLDER`; errors are one line and exit code 2."""
    if len(arguments) != 2 or arguments[0] != "pack":
        sys.exit("usage: python -m harness.proof.goldens pack FOLDER")
    try:
        packed = pack(Path(arguments[1]))
    except PrunebenchError as error:
        print(f"prunebench: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"packed  {arguments[1]}: {packed.before:,} bytes before, {packed.after:,} now")


def _archive(folder: Path, file: str) -> Path:
    return folder / f"{Path(file).parent}.jsonl.xz"


def _grouped(folder: Path) -> dict[Path, dict[str, bytes]]:
    """The lines of each archive by id: all cases of index.json, plain or packed."""
    cases: dict[Path, dict[str, bytes]] = {}
    for file in (entry["file"] for entry in load_index(folder)):
        case, name = read_case(folder, file), Path(file).stem
        if not Path(file).match("cases/*/*.json") or case.get("id") != name:
            raise PrunebenchError(
                f"{file}: expected cases/<method>/<id>.json with that id, found the id {case.get('id')!r}: rename it"
            )
        cases.setdefault(_archive(folder, file), {})[name] = json.dumps(case, separators=(",", ":")).encode() + b"\n"
    return cases


def _plain(folder: Path, cases: dict[Path, dict[str, bytes]]) -> list[Path]:
    """The plain files of `cases`. Raises PrunebenchError if the folder holds a case or an archive that is not among
    them."""
    named = {
        archive.with_name(archive.name.removesuffix(".jsonl.xz")) / f"{name}.json"
        for archive, lines in cases.items()
        for name in lines
    }
    found = {*(folder / "cases").rglob("*.json")}
    stray = (found - named) | ({*(folder / "cases").rglob("*.jsonl.xz")} - cases.keys())
    if stray:
        raise PrunebenchError(
            f"{min(stray)}: not in index.json ({len(stray)} such files): add it there or remove it, then pack again"
        )
    return sorted(found)


@lru_cache(maxsize=64)
def _lines(archive: Path, _stamp: int) -> dict[str, bytes]:
    """Lines by id; `_stamp` is the time of the file's last change."""
    return {str(_case(line, archive).get("id")): line for line in _unpacked(archive).splitlines()}


def _case(text: bytes, path: Path) -> dict[str, Any]:
    case = _parsed(text, path)
    if not isinstance(case, dict):
        raise PrunebenchError(f"{path}: expected a case as a JSON object, found {type(case).__name__}: {MEND}")
    return case


def _parsed(text: bytes, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PrunebenchError(f"{path}: expected JSON, found a damaged file ({error}): {MEND}") from None


def _unpacked(archive: Path) -> bytes:
    try:
        return lzma.decompress(archive.read_bytes(), lzma.FORMAT_XZ)
    except lzma.LZMAError as error:
        raise PrunebenchError(
            f"{archive}: expected a whole xz file, found a damaged or cut one ({error}): {MEND}"
        ) from None


def _write(archive: Path, content: bytes, filters: list[dict[str, int]]) -> None:
    write_atomic(archive, lzma.compress(content, lzma.FORMAT_XZ, filters=filters))
    if _unpacked(archive) != content:
        raise PrunebenchError(
            f"{archive}: does not read back as written; no plain file was removed: check the disk, then pack again"
        )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
