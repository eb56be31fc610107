"""The mini data sets: GQA, MME, POPE and TextVQA look-alikes in the exact columns of the lmms-lab ones.

`python -m tasks.mini.data` writes them as parquet with embedded JPEGs, laid out as the hub repositories are, so that a
folder of real copies can take their place. Everything follows from a seed: the same versions of Pillow and pyarrow
(named in manifest.json) write the same bytes. Scenes come from seeds at or above `world.TEST_SEED_BASE`, in a range of
its own per data set, so no test image was seen in training and no two data sets share one.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import PIL
import pyarrow as pa
import pyarrow.parquet as pq

from harness.core.errors import PrunebenchError
from tasks.mini import questions, world

if TYPE_CHECKING:
    from datasets import Features

#: raise when what `build` writes changes
VERSION = 1
#: where the shipped copy lives
FOLDER = Path(__file__).parent / "data"
#: images per data set in the shipped copy: 420, 410, 450 and 405 questions in less than 9 MB
IMAGES: Mapping[str, int] = {"GQA": 70, "MME": 205, "POPE": 50, "textvqa": 136}
#: how many objects and signs the scenes of a data set have, where `make_scene`'s own numbers are not theirs
SCENES: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "GQA": {},
    "MME": {"n_signs": (1, 2)},
    "POPE": {"n_things": (5, 9)},
    "textvqa": {"n_signs": (2, 4)},
}
#: scenes of data set n start at TEST_SEED_BASE + (4 * seed + n) * this
SEED_RANGE = 1 << 20
GQA_PER_IMAGE = 6
POPE_PER_CATEGORY = 3
#: open answers (colour, shape) and places (relation, side) 40 % each, yes/no 20 %; walked through image after image
GQA_KINDS = ("relation", "colour", "side", "shape", "verify", "relation", "shape", "side", "colour", "exist")
#: GQA's own words for what a question is about: structural and semantic type
GQA_TYPES = {
    "relation": ("choose", "rel"),
    "side": ("choose", "rel"),
    "colour": ("query", "attr"),
    "shape": ("query", "attr"),
    "verify": ("verify", "attr"),
    "exist": ("verify", "obj"),
}
#: MME's categories and the kind of question that fills them; the last counts as cognition. OCR and code reasoning are
#: left out: the model reads codes (TextVQA) but did not learn to compare them, and a category at chance is noise in a
#: sum of categories
MME_KINDS = {
    "existence": "exist",
    "count": "count",
    "position": "position",
    "color": "verify",
    "commonsense_reasoning": "same",
}
#: lmms-eval replaces exactly this by its own instruction
MME_SUFFIX = " Please answer yes or no."
#: codes that the VQA metric would rewrite: an article vanishes, a number word becomes a digit, a contraction its
#: apostrophe
UNFAIR_CODES = frozenset({"THE", "TEN", "HED", "HES"})
TRIES = 40

T = TypeVar("T")


class SceneKind(NamedTuple):
    """Scenes of one kind: `lattice` gives a scene's lattice by its seed, `name` begins the file name of each image."""

    name: str
    lattice: Callable[[int], tuple[int, int]]

    def file_of(self, seed: int) -> str:
        """The file name of a scene's image, which holds the seed."""
        return f"{self.name}_{seed - world.TEST_SEED_BASE:08d}.jpg"

    def seed_of(self, file: str) -> int:
        """The seed in such a name."""
        return world.TEST_SEED_BASE + int(file.removeprefix(f"{self.name}_").removesuffix(".jpg"))


SQUARE = SceneKind("mini", lambda seed: (world.LATTICE, world.LATTICE))
RAGGED = SceneKind("ragged", world.lattice_of)


class _File(NamedTuple):
    path: str
    features: Features
    rows: list[dict[str, Any]]


# -------------------------------------------------------------------------------------------------------------- schemas


def _features() -> dict[str, Features]:
    """Columns per file, types as on the lmms-lab cards (`datasets` is imported here: only building needs it)."""
    from datasets import Features, Image, List, Value

    text, texts = Value("string"), List(Value("string"))
    pair = {"objectId": text, "value": text}
    return {
        "GQA questions": Features(
            {
                "id": text,
                "imageId": text,
                "question": text,
                "answer": text,
                "fullAnswer": text,
                "isBalanced": Value("bool"),
                "groups": {"global": text, "local": text},
                "entailed": text,
                "equivalent": text,
                "types": {"structural": text, "semantic": text, "detailed": text},
                "annotations": {"question": List(pair), "answer": List(pair), "fullAnswer": List(pair)},
                "semantic": List({"operation": text, "argument": text, "dependencies": List(Value("int32"))}),
                "semanticStr": text,
            }
        ),
        "GQA images": Features({"id": text, "image": Image()}),
        "MME": Features({"question_id": text, "image": Image(), "question": text, "answer": text, "category": text}),
        "POPE": Features(
            {
                "id": text,
                "question_id": text,
                "question": text,
                "answer": text,
                "image_source": text,
                "image": Image(),
                "category": text,
            }
        ),
        "textvqa": Features(
            {
                "image_id": text,
                "question_id": Value("int32"),
                "question": text,
                "question_tokens": texts,
                "image": Image(),
                "image_width": Value("int32"),
                "image_height": Value("int32"),
                "flickr_original_url": text,
                "flickr_300k_url": text,
                "answers": texts,
                "image_classes": texts,
                "set_name": text,
                "ocr_tokens": texts,
            }
        ),
    }


# ------------------------------------------------------------------------------------------------------------ questions


def _ask(
    kind: str,
    scene: world.Scene,
    rng: random.Random,
    asked: set[str],
    *,
    positive: bool | None = None,
    negative: str | None = None,
) -> questions.WorldQuestion | None:
    """A question that this image has not been asked yet, with the answer wanted, or None after `TRIES` draws."""
    for _ in range(TRIES):
        q = questions.ask(kind, scene, rng, positive=positive, negative=negative)
        # a random wrong code can turn out to be the right one, so the answer is compared rather than trusted
        if q is None or q.text in asked or (positive is not None and q.answer != ("yes" if positive else "no")):
            continue
        asked.add(q.text)
        return q
    return None


class _Draw(NamedTuple):
    """Of which scenes a data set is made: the first `images` from a seed on that have all the questions wanted."""

    first_seed: int
    images: int
    features: dict[str, Features]
    kind: SceneKind


def _usable(
    draw: _Draw,
    wanted: Callable[[int, world.Scene, random.Random], list[T] | None],
    **scene: tuple[int, int],
) -> Iterator[tuple[world.Scene, dict[str, Any], list[T]]]:
    """The scenes of a draw, each with the image cell of a row and its questions."""
    seeds = itertools.count(draw.first_seed)
    for index in range(draw.images):
        while True:
            seed = next(seeds)
            made = world.make_scene(seed, **scene, lattice=draw.kind.lattice(seed))
            asked = wanted(index, made, random.Random(f"questions-{seed}"))
            if asked is not None:
                break
        image = {"bytes": world.jpeg(world.render(made)), "path": draw.kind.file_of(seed)}
        yield made, image, asked


def _name(image: dict[str, Any]) -> str:
    return str(image["path"]).removesuffix(".jpg")


def _gqa(draw: _Draw) -> list[_File]:
    def wanted(index: int, scene: world.Scene, rng: random.Random) -> list[questions.WorldQuestion] | None:
        slots = range(index * GQA_PER_IMAGE, (index + 1) * GQA_PER_IMAGE)
        asked: set[str] = set()
        found = []
        for slot in slots:
            kind = GQA_KINDS[slot % len(GQA_KINDS)]
            # whole rounds of the ten kinds alternate, so that yes and no are equally frequent in both yes/no kinds
            positive = slot // len(GQA_KINDS) % 2 == 0 if kind in ("verify", "exist") else None
            found.append(_ask(kind, scene, rng, asked, positive=positive))
        return None if None in found else [q for q in found if q is not None]

    rows: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for _, image, asked in _usable(draw, wanted, **SCENES["GQA"]):
        images.append({"id": _name(image), "image": image})
        for q in asked:
            structural, semantic = GQA_TYPES[q.kind]
            rows.append(
                {
                    "id": f"{len(rows):08d}",
                    "imageId": _name(image),
                    "question": q.text,
                    "answer": q.answer,
                    "fullAnswer": f"The answer is {q.answer}.",
                    "isBalanced": True,
                    "groups": {"global": None, "local": f"{q.kind}-{_name(image)}"},
                    "entailed": "[]",
                    "equivalent": "[]",
                    "types": {"structural": structural, "semantic": semantic, "detailed": q.kind},
                    "annotations": {"question": [], "answer": [], "fullAnswer": []},
                    "semantic": [{"operation": structural, "argument": q.kind, "dependencies": []}],
                    "semanticStr": f"{structural}: {q.kind}",
                }
            )
    return [
        _File("GQA/testdev_balanced_instructions/testdev-00000-of-00001.parquet", draw.features["GQA questions"], rows),
        _File("GQA/testdev_balanced_images/testdev-00000-of-00001.parquet", draw.features["GQA images"], images),
    ]


def _mme(draw: _Draw) -> list[_File]:
    """One pair per image. Categories take turns, so that also the first rows of the file hold all of them."""
    categories = tuple(MME_KINDS)

    def wanted(index: int, scene: world.Scene, rng: random.Random) -> list[questions.WorldQuestion] | None:
        kind, asked = MME_KINDS[categories[index % len(categories)]], set[str]()
        found = [_ask(kind, scene, rng, asked, positive=positive) for positive in (True, False)]
        return None if None in found else [q for q in found if q is not None]

    rows: list[dict[str, Any]] = []
    for index, (_, image, asked) in enumerate(_usable(draw, wanted, **SCENES["MME"])):
        category = categories[index % len(categories)]
        for q in asked:
            rows.append(
                {
                    "question_id": f"{category}/{index // len(categories):04d}.jpg",
                    "image": image,
                    "question": q.text + MME_SUFFIX,
                    "answer": q.answer.capitalize(),
                    "category": category,
                }
            )
    return [_File("MME/data/test-00000-of-00001.parquet", draw.features["MME"], rows)]


def _pope(draw: _Draw) -> list[_File]:
    def wanted(index: int, scene: world.Scene, rng: random.Random) -> list[tuple[str, questions.WorldQuestion]] | None:
        asked: set[str] = set()
        found = []
        for c, category in enumerate(questions.NEGATIVES):
            for k in range(POPE_PER_CATEGORY):
                # 5 yes and 4 no on even images, the reverse on odd ones
                q = _ask("exist", scene, rng, asked, positive=(index + c + k) % 2 == 0, negative=category)
                if q is None:
                    return None
                found.append((category, q))
        return found

    rows: list[dict[str, Any]] = []
    for _, image, asked in _usable(draw, wanted, **SCENES["POPE"]):
        for category, q in asked:
            rows.append(
                {
                    "id": str(len(rows)),
                    "question_id": str(len(rows) + 1),
                    "question": q.text,
                    "answer": q.answer,
                    "image_source": _name(image),
                    "image": image,
                    "category": category,
                }
            )
    return [_File("POPE/data/test-00000-of-00001.parquet", draw.features["POPE"], rows)]


def _ten_answers(code: str, rng: random.Random) -> list[str]:
    """Ten people's answers: all right, some in lower case, now and then one misread. The right code always scores 1."""
    answers = [code.lower() if rng.random() < 0.2 else code for _ in range(10)]
    if rng.random() < 0.2:
        slot = rng.randrange(3)
        other = rng.choice([c for c in world.CODE_CHARS if c != code[slot]])
        misread = code[:slot] + other + code[slot + 1 :]
        if misread not in UNFAIR_CODES:
            answers[rng.randrange(10)] = misread
    return answers


def _textvqa(draw: _Draw) -> list[_File]:
    def wanted(
        index: int, scene: world.Scene, rng: random.Random
    ) -> list[tuple[questions.WorldQuestion, list[str]]] | None:
        if any(sign.code in UNFAIR_CODES for sign in scene.signs):
            return None
        asked: set[str] = set()
        found = []
        for _ in scene.signs:  # every sign once, in random order
            q = _ask("code", scene, rng, asked)
            if q is None:
                return None
            found.append((q, _ten_answers(q.answer, rng)))
        return found

    rows: list[dict[str, Any]] = []
    for scene, image, asked in _usable(draw, wanted, **SCENES["textvqa"]):
        for q, answers in asked:
            rows.append(
                {
                    "image_id": _name(image),
                    "question_id": len(rows),
                    "question": q.text.lower(),
                    "question_tokens": q.text.lower().rstrip("?").split(),
                    "image": image,
                    "image_width": scene.size[0],
                    "image_height": scene.size[1],
                    "flickr_original_url": "",
                    "flickr_300k_url": "",
                    "answers": answers,
                    "image_classes": ["Sign"],
                    "set_name": "val",
                    "ocr_tokens": [sign.code for sign in scene.signs],
                }
            )
    return [_File("textvqa/data/validation-00000-of-00001.parquet", draw.features["textvqa"], rows)]


_MAKERS = {"GQA": _gqa, "MME": _mme, "POPE": _pope, "textvqa": _textvqa}

# -------------------------------------------------------------------------------------------------------- files on disk


def _write(path: Path, file: _File) -> None:
    """One row group with one dictionary, so that an image asked about several times is stored once."""
    table = pa.Table.from_pylist(file.rows, schema=file.features.arrow_schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table,
        path,
        row_group_size=len(file.rows),
        compression="zstd",
        use_dictionary=True,
        dictionary_pagesize_limit=1 << 30,  # past the default of 1 MB larger builds would fall back to a copy per row
        write_statistics=False,  # smallest and largest JPEG would be written out once more
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def build(out: Path, seed: int = 0, images: Mapping[str, int] = IMAGES, kind: SceneKind = SQUARE) -> Path:
    """Write the data sets named in `images` (number of images each) to `out` and return the manifest's path.

    The manifest is written last: a folder with one is complete.
    """
    features = _features()
    entries: dict[str, dict[str, Any]] = {}
    for n, (name, maker) in enumerate(_MAKERS.items()):
        if name not in images:
            continue
        first_seed = world.TEST_SEED_BASE + (len(_MAKERS) * seed + n) * SEED_RANGE
        for file in maker(_Draw(first_seed, images[name], features, kind)):
            path = out / file.path
            _write(path, file)
            entries[file.path] = {"sha256": _sha256(path), "bytes": path.stat().st_size, "rows": len(file.rows)}
    manifest = {
        "generator": "tasks.mini.data",
        "version": VERSION,
        "seed": seed,
        "images": {name: images[name] for name in _MAKERS if name in images},
        "pillow": PIL.__version__,
        "pyarrow": pa.__version__,
        "licence": "CC0-1.0",
        "files": entries,
    }
    path = out / "manifest.json"
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return path


def verify(folder: Path = FOLDER) -> None:
    """Raise PrunebenchError naming the first file that is missing or differs from the manifest, and how to mend it."""
    mend = "run `make mini` to rebuild the mini data, or restore the folder with git"
    path = folder / "manifest.json"
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        expected = {name: str(entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        raise PrunebenchError(f"mini data: expected {path}, found no such file; {mend}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise PrunebenchError(f"mini data: {path} cannot be read as a manifest ({error!r}); {mend}") from None
    for name, sha256 in expected.items():
        file = folder / name
        if not file.is_file():
            raise PrunebenchError(f"mini data: {file} is listed in the manifest but missing; {mend}")
        found = _sha256(file)
        if found != sha256:
            raise PrunebenchError(
                f"mini data: {file} is corrupt: expected sha256 {sha256[:12]}..., found {found[:12]}... "
                f"({file.stat().st_size} bytes); {mend}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write the mini data sets (parquet with embedded images) and their manifest."
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default: the shipped copy's)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    manifest = build(options.out, options.seed)
    verify(options.out)
    for name, entry in json.loads(manifest.read_text(encoding="utf-8"))["files"].items():
        print(f"{entry['rows']:5d} rows {entry['bytes'] / 1e6:6.2f} MB  {name}")


if __name__ == "__main__":
    main()
