"""The data sets of the mini Qwen: those of the mini data, on images of many sizes, drawn on first use.

The generator is that of tasks/mini/data.py: same schemas, columns and layout, scenes of `world.lattice_of`. The files
are not in the repository. Its manifest holds a hash of the content of each table, and whoever draws them anew is held
to the manifest. They lie in `$XDG_CACHE_HOME/prunebench/mini-qwen/`, or under `~/.cache`.

Seeds: training draws below `world.TEST_SEED_BASE`. Above it, in builds of `data.build`: 0 is the mini data, from
`1 << 16` on are calibration scenes of the mini LLaVA, from `1 << 20` on those of the mini Qwen, and `SEED` is this.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import PIL
import pyarrow.parquet as pq

from harness.core.errors import PrunebenchError
from harness.core.paths import checkout
from tasks.mini import data, world

SEED = 1 << 24
MANIFEST = Path(__file__).parent / "manifest.json"
REMAKE = "run `prunebench dev mini data --model mini-qwen`"


def folder() -> Path:
    """Where the data lie once they are drawn. Its name holds a hash of the manifest, so that releases do not share
    one."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "prunebench" / "mini-qwen" / hashlib.sha256(_text().encode()).hexdigest()[:16]


def ready() -> Path:
    """The folder with the data, drawn where they are not there or damaged; says so in one line on stderr.

    Several processes may ask at once: each draws into a folder of its own, and the first one's is taken. Raises
    PrunebenchError where the data drawn here are not those of the manifest, and where the folder cannot be written.
    """
    place, why = folder(), "drawing them once"
    if place.exists():
        try:
            data.verify(place)
            return place
        except PrunebenchError:
            why = "the copy is damaged, drawing them again"
    sys.stderr.write(f"mini-qwen data: {why}, a few seconds, into {place}\n")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        drawn = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))
    except OSError as error:
        raise _unwritable(place, error) from None
    try:
        data.build(drawn, SEED, data.IMAGES, data.RAGGED)
        check(drawn)
        drawn.chmod(0o755)  # mkdtemp's are for one user alone
        _put(drawn, place)
    except OSError as error:
        raise _unwritable(place, error) from None
    finally:
        shutil.rmtree(drawn, ignore_errors=True)
    return place


def state() -> str:
    """In words, without drawing: `complete`, `damaged`, or which Pillow would draw them."""
    stated = manifest()
    if folder().exists():
        try:
            data.verify(folder())
            return f"complete, in {folder()}"
        except PrunebenchError:
            return f"damaged in {folder()}, drawn again on next use"
    return f"not drawn yet, by Pillow {PIL.__version__} on first use (the manifest's: {stated['pillow']})"


def _put(drawn: Path, place: Path) -> None:
    """Move a whole folder to its place; one that another process put there since stays, a damaged one goes."""
    for _ in range(8):
        try:
            drawn.rename(place)
            return
        except OSError:
            if not place.exists():
                raise
        with suppress(PrunebenchError):
            data.verify(place)
            return
        # under another name first, so that no one reads a folder that is half gone
        damaged = Path(tempfile.mkdtemp(prefix=f"{place.name}.damaged.", dir=place.parent))
        with suppress(OSError):  # another process was faster
            place.rename(damaged / "it")
        shutil.rmtree(damaged, ignore_errors=True)
    raise PrunebenchError(f"mini-qwen data: {place} cannot be replaced: remove the folder")


def _unwritable(place: Path, error: OSError) -> PrunebenchError:
    return PrunebenchError(
        f"mini-qwen data: expected to write {place}, found {error.strerror or error}: set XDG_CACHE_HOME to a folder"
        " that can be written"
    )


def content(folder: Path) -> dict[str, dict[str, Any]]:
    """By file of a build: its rows, and a sha256 over rows as canonical JSON, where an image is its file name and the
    sha256 of its bytes.

    It does not depend on how parquet stores them.
    """
    found = {}
    for path in sorted(folder.rglob("*.parquet")):
        rows = pq.read_table(path).to_pylist()
        digest = hashlib.sha256()
        for row in rows:
            digest.update(json.dumps(row, sort_keys=True, default=_hashed).encode("ascii") + b"\n")
        found[path.relative_to(folder).as_posix()] = {"sha256": digest.hexdigest(), "rows": len(rows)}
    return found


def _scenes(folder: Path) -> dict[str, dict[str, int]]:
    """By data set: the key of each image (the first 16 hex digits of the sha256 of its file) and the seed of its scene
    less `world.TEST_SEED_BASE`."""
    found: dict[str, dict[str, int]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        if "image" in pq.read_schema(path).names:
            images = pq.read_table(path, columns=["image"])["image"].to_pylist()
            found[path.relative_to(folder).parts[0]] = {
                _hashed(image["bytes"])[:16]: data.RAGGED.seed_of(image["path"]) - world.TEST_SEED_BASE
                for image in images
            }
    return found


def scenes() -> dict[str, world.Scene]:
    """Image key -> scene, of every image of the data, as the manifest says: nothing is drawn."""
    found = {}
    for name, images in manifest()["scenes"].items():
        for key, offset in images.items():
            seed = world.TEST_SEED_BASE + int(offset)
            found[key] = world.make_scene(seed, **data.SCENES[name], lattice=data.RAGGED.lattice(seed))
    return found


def _hashed(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


def manifest() -> Mapping[str, Any]:
    """The manifest in the repository. Raises PrunebenchError where it cannot be read."""
    try:
        stated: dict[str, Any] = json.loads(_text())
        return {"pillow": str(stated["pillow"]), "content": dict(stated["content"]), "scenes": dict(stated["scenes"])}
    except (ValueError, KeyError, TypeError) as error:
        raise PrunebenchError(
            f"mini-qwen data: {MANIFEST} cannot be read as a manifest ({error!r}); restore it with git"
        ) from None


def _text() -> str:
    try:
        return MANIFEST.read_text(encoding="utf-8")
    except OSError as error:
        raise PrunebenchError(
            f"mini-qwen data: expected {MANIFEST}, found {error.strerror or error}; restore it with git"
        ) from None


def check(drawn: Path) -> None:
    """Raise PrunebenchError unless a build holds the content of the manifest."""
    stated, found = manifest(), content(drawn)
    if found == stated["content"]:
        return
    differs = sorted(name for name in {*found, *stated["content"]} if found.get(name) != stated["content"].get(name))
    mend = (
        f"install Pillow {stated['pillow']}: `pip install pillow=={stated['pillow']}`"
        if stated["pillow"] != PIL.__version__
        else f"restore tasks/mini with git; who changed the generator: {REMAKE}"
    )
    raise PrunebenchError(
        f"mini-qwen data: expected the content of the manifest, which Pillow {stated['pillow']} drew; found other"
        f" content in {', '.join(differs)}, drawn by Pillow {PIL.__version__}: {mend}"
    )


def remake() -> Path:
    """Draw the data and write their manifest; -> its path. Raises PrunebenchError outside a checkout."""
    checkout("the manifest of the mini-qwen data")
    with tempfile.TemporaryDirectory() as drawn:
        data.build(Path(drawn), SEED, data.IMAGES, data.RAGGED)
        written = {
            "generator": "tasks.mini.qwen.data",
            "version": data.VERSION,
            "seed": SEED,
            "images": dict(data.IMAGES),
            "pillow": PIL.__version__,
            "licence": "CC0-1.0",
            "content": content(Path(drawn)),
            "scenes": _scenes(Path(drawn)),
        }
    before = manifest() if MANIFEST.is_file() else written
    if before["pillow"] != PIL.__version__ and before["content"] != written["content"]:
        raise PrunebenchError(
            f"mini-qwen data: expected the manifest's content, drawn by Pillow {before['pillow']}, found another by"
            f" Pillow {PIL.__version__}: install that version, or every cell of mini-qwen would be of other data"
        )
    MANIFEST.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return MANIFEST
