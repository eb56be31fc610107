"""The mini data sets: the schema of the originals, honest answers, one copy per image, the same bytes on every
build."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.core.errors import PrunebenchError
from tasks.mini import data, questions, world

FILES = {
    "GQA questions": "GQA/testdev_balanced_instructions/testdev-00000-of-00001.parquet",
    "GQA images": "GQA/testdev_balanced_images/testdev-00000-of-00001.parquet",
    "MME": "MME/data/test-00000-of-00001.parquet",
    "POPE": "POPE/data/test-00000-of-00001.parquet",
    "textvqa": "textvqa/data/validation-00000-of-00001.parquet",
}
SMALL = {"GQA": 3, "MME": 7, "POPE": 2, "textvqa": 3}
#: what each maker passes to make_scene
SCENES: dict[str, dict[str, tuple[int, int]]] = {
    "GQA images": {},
    "MME": {"n_signs": (1, 2)},
    "POPE": {"n_things": (5, 9)},
    "textvqa": {"n_signs": (2, 4)},
}


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, Any]]]:
    return {name: pq.read_table(data.FOLDER / path).to_pylist() for name, path in FILES.items()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("small")
    data.build(out, images=SMALL)
    return out


def scene_of(name: str, image: dict[str, Any]) -> world.Scene:
    seed = world.TEST_SEED_BASE + int(re.fullmatch(r"mini_(\d{8})\.jpg", image["path"])[1])  # type: ignore[index]
    return world.make_scene(seed, **SCENES[name])


def test_shipped_copy_is_intact_and_small() -> None:
    data.verify()
    assert sum(p.stat().st_size for p in data.FOLDER.rglob("*") if p.is_file()) <= 9e6


def test_files_carry_the_originals_columns_as_hf_features() -> None:
    expected = data._features()
    for name, path in FILES.items():
        schema = pq.read_schema(data.FOLDER / path)
        assert datasets.Features.from_arrow_schema(schema) == expected[name], name
    assert set(expected["POPE"]) == {"id", "question_id", "question", "answer", "image_source", "image", "category"}
    assert set(expected["MME"]) == {"question_id", "image", "question", "answer", "category"}
    assert {"id", "imageId", "question", "answer", "fullAnswer", "types", "semanticStr"} <= set(
        expected["GQA questions"]
    )
    assert {"image_id", "question_id", "question", "image", "answers", "ocr_tokens", "set_name"} <= set(
        expected["textvqa"]
    )


def test_datasets_reads_them_back_with_decoded_images(tmp_path: Path) -> None:
    path = str(data.FOLDER / FILES["POPE"])
    loaded = datasets.load_dataset("parquet", data_files={"test": path}, split="test", cache_dir=str(tmp_path))
    assert len(loaded) == 450
    assert isinstance(loaded[0]["image"], Image.Image)
    assert loaded[0]["image"].size == (336, 336)


def test_counts(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert all(len(rows[name]) >= 400 for name in FILES if name != "GQA images")
    per_image = Counter(r["imageId"] for r in rows["GQA questions"])
    assert set(per_image) == {r["id"] for r in rows["GQA images"]}
    assert min(per_image.values()) >= 6
    assert min(Counter(r["image_source"] for r in rows["POPE"]).values()) >= 6
    assert min(Counter(r["image_id"] for r in rows["textvqa"]).values()) >= 2
    kinds = Counter(r["types"]["detailed"] for r in rows["GQA questions"])
    assert kinds["relation"] + kinds["side"] == kinds["colour"] + kinds["shape"] == 0.4 * len(rows["GQA questions"])


def test_yes_and_no_are_balanced(rows: dict[str, list[dict[str, Any]]]) -> None:
    for category in questions.NEGATIVES:
        answers = Counter(r["answer"] for r in rows["POPE"] if r["category"] == category)
        assert answers["yes"] == answers["no"] > 0
    pairs = defaultdict(list)
    for r in rows["MME"]:
        assert r["question"].endswith(" Please answer yes or no.")
        pairs[r["category"], r["question_id"]].append(r)
    for pair in pairs.values():
        assert sorted(r["answer"] for r in pair) == ["No", "Yes"]
        assert pair[0]["image"] == pair[1]["image"]
        assert pair[0]["question"] != pair[1]["question"]
    assert {category for category, _ in pairs} == set(data.MME_KINDS)


def test_answers_are_true_of_the_scene(rows: dict[str, list[dict[str, Any]]]) -> None:
    for r in rows["POPE"]:
        colour, shape = re.fullmatch(r"Is there an? (\w+) (\w+) in the image\?", r["question"]).groups()  # type: ignore[union-attr]
        there = any((t.colour, t.shape) == (colour, shape) for t in scene_of("POPE", r["image"]).things)
        assert r["answer"] == ("yes" if there else "no")
    for r in rows["textvqa"]:
        colour = re.fullmatch(r"what is written on the (\w+) sign\?", r["question"])[1]  # type: ignore[index]
        code = next(s.code for s in scene_of("textvqa", r["image"]).signs if s.colour == colour)
        assert len(r["answers"]) == 10
        assert sum(a.upper() == code for a in r["answers"]) >= 9
        assert code in r["ocr_tokens"]


def test_no_question_is_asked_twice_of_an_image(rows: dict[str, list[dict[str, Any]]]) -> None:
    for name, image in (("GQA questions", "imageId"), ("POPE", "image_source"), ("textvqa", "image_id")):
        assert max(Counter((r[image], r["question"]) for r in rows[name]).values()) == 1


def test_images_show_test_scenes_and_no_two_data_sets_share_one(rows: dict[str, list[dict[str, Any]]]) -> None:
    seen: set[str] = set()
    for name in SCENES:
        images = {r["image"]["path"]: r["image"] for r in rows[name]}
        assert not seen & set(images)
        seen |= set(images)
        assert all(scene_of(name, image).seed >= world.TEST_SEED_BASE for image in images.values())
        first = next(iter(images.values()))
        assert world.jpeg(world.render(scene_of(name, first))) == first["bytes"]


def test_an_image_is_stored_once_however_often_it_is_asked_about(rows: dict[str, list[dict[str, Any]]]) -> None:
    distinct = {r["image"]["bytes"] for r in rows["POPE"]}
    assert len(distinct) == data.IMAGES["POPE"]
    assert (data.FOLDER / FILES["POPE"]).stat().st_size < 1.1 * sum(map(len, distinct))


def test_rebuild_is_bit_identical(small: Path, tmp_path: Path) -> None:
    data.build(tmp_path, images=SMALL)
    names = [p.relative_to(small) for p in sorted(small.rglob("*")) if p.is_file()]
    assert len(names) == 6
    assert all((tmp_path / n).read_bytes() == (small / n).read_bytes() for n in names)


def test_shipped_copy_comes_from_this_generator(small: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    for name, path in FILES.items():
        part = pq.read_table(small / path).to_pylist()
        assert part == rows[name][: len(part)], name


def test_another_seed_gives_other_scenes(small: Path, tmp_path: Path) -> None:
    data.build(tmp_path, seed=1, images={"POPE": 1})
    other = pq.read_table(tmp_path / FILES["POPE"]).to_pylist()
    assert other[0]["image"] != pq.read_table(small / FILES["POPE"]).to_pylist()[0]["image"]
    data.verify(tmp_path)


@pytest.mark.parametrize("damage", ["corrupt", "file missing", "manifest missing", "manifest broken"])
def test_verify_names_the_file_and_the_command(small: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(small, folder)
    data.verify(folder)
    target = folder / FILES["POPE"] if "manifest" not in damage else folder / "manifest.json"
    if damage == "corrupt":
        content = bytearray(target.read_bytes())
        content[len(content) // 2] ^= 1
        target.write_bytes(content)
    elif damage == "manifest broken":
        target.write_text(json.dumps({"files": ["x"]}))
    else:
        target.unlink()
    with pytest.raises(PrunebenchError, match=r"make mini") as caught:
        data.verify(folder)
    assert str(target) in str(caught.value)
    if damage == "corrupt":
        assert "expected sha256" in str(caught.value)


def test_images_decode_to_the_rendered_scene(rows: dict[str, list[dict[str, Any]]]) -> None:
    image = rows["MME"][0]["image"]
    decoded = Image.open(io.BytesIO(image["bytes"])).convert("RGB")
    drawn = world.render(scene_of("MME", image))
    pairs = zip(decoded.tobytes(), drawn.tobytes(), strict=True)
    assert sum(abs(a - b) for a, b in pairs) / len(drawn.tobytes()) < 5
