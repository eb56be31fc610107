"""Answer-relevant patches: the scenes say which, and cells which of them were kept."""

from __future__ import annotations

import io
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories import sealed_cell
from PIL import Image

from harness.core import keeps
from harness.core.keeps import Stage
from harness.core.paths import TOP
from harness.store.sealed import SealedCell
from harness.store.store import Store
from harness.tables.relevant import Relevant, relevant
from tasks.mini import data, world
from tasks.mini import relevant as scenes

OBJECTS = (world.Thing("circle", "red", 21, 21, 12), world.Thing("circle", "blue", 63, 21, 12))
SIGN = world.Sign("white", "AB2", 3, 2)
SCENE = world.Scene(7, (*OBJECTS, world.Thing("square", "red", 21, 63, 12)), (SIGN,))


@pytest.mark.parametrize(
    ("question", "names"),
    [
        ("Is there a red circle in the image?", ["red circle"]),
        ("Is there a green circle in the image?", []),
        ("What color is the square?", ["red square"]),
        ("Is the square blue?", ["red square"]),
        ("What shape is the blue object?", ["blue circle"]),
        ("Are there exactly two circles in the image? Please answer yes or no.", ["red circle", "blue circle"]),
        ("Is the square above or below the blue circle?", ["blue circle", "red square"]),
        ("what is written on the white sign?\nReference: a red square", ["AB2"]),
        ("what is written on the black sign?", []),
    ],
)
def test_a_question_names_the_things_of_its_scene(question: str, names: list[str]) -> None:
    found = scenes.named(SCENE, question)
    assert [one.name if isinstance(one, world.Thing) else one.code for one in found] == names


def test_every_image_of_the_shipped_data_is_its_scene() -> None:
    """A scene that was made with other numbers of objects would be another picture."""
    known = scenes.scenes()
    assert len(known) == sum(data.IMAGES.values())
    for name in ("GQA/testdev_balanced_images/testdev", "MME/data/test", "POPE/data/test", "textvqa/data/validation"):
        (path,) = data.FOLDER.glob(f"{name}-*.parquet")
        encoded = pq.read_table(path, columns=["image"]).slice(0, 1).to_pylist()[0]["image"]["bytes"]
        scene = known[sha256(encoded).hexdigest()[:16]]
        stored = np.asarray(Image.open(io.BytesIO(encoded)), dtype=float)
        assert np.abs(stored - np.asarray(world.render(scene), dtype=float)).mean() < 4, name


def test_shipped_questions_name_something_unless_the_answer_is_no() -> None:
    (path,) = (data.FOLDER / "textvqa").rglob("*.parquet")
    rows = pq.read_table(path).to_pylist()
    keys = {name: sha256(row["image"]["bytes"]).hexdigest()[:16] for row in rows for name in [row["image_id"]]}
    assert {len(scenes.patches(keys[row["image_id"]], row["question"]) or ()) for row in rows} == {3}, "characters"
    (path,) = (data.FOLDER / "POPE").rglob("*.parquet")
    for row in pq.read_table(path).to_pylist():
        key = sha256(row["image"]["bytes"]).hexdigest()[:16]
        assert bool(scenes.patches(key, row["question"])) == (row["answer"] == "yes")


def test_patches_are_those_of_the_labels() -> None:
    """The labels that the vision tower was trained on."""
    scene = next(iter(scenes.scenes().values()))
    labels = world.patch_labels(scene)
    every = sorted(p for one in (*scene.things, *scene.signs) for p in world.patches_of(one))
    assert every == np.flatnonzero((labels.shape >= 0) | (labels.char >= 0)).tolist()


# ------------------------------------------------------------------------------------------------------------ the cells


def a_cell(folder: Path, rows: list[tuple[str, str, list[Stage]]], **changes: Any) -> SealedCell:
    """A cell of the mini model's geometry: image key, question and stages of each sample."""
    columns = {
        "key": [f"gqa/{i:06d}" for i in range(len(rows))],
        "image": [image for image, _, _ in rows],
        "question": [question for _, question, _ in rows],
        "keeps": [keeps.encode(stages) for _, _, stages in rows],
    }
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "samples.parquet")
    body = (folder / "samples.parquet").read_bytes()
    values: dict[str, Any] = {
        "samples_sha256": sha256(body).hexdigest(),
        "folder": folder,
        "costs": {"n_visual": 576.0},
        "provenance": {"decoder_layers": 4, "grids": [[24, 24, False]]},
    }
    return sealed_cell("fastv", "64", "gqa", **(values | changes))


def of_image() -> tuple[str, str, tuple[int, ...]]:
    """An image of the mini data, a question about it, and its patches."""
    for key, scene in scenes.scenes().items():
        if scene.signs:
            question = f"What is written on the {scene.signs[0].colour} sign?"
            found = scenes.patches(key, question)
            assert found
            return key, question, found
    raise AssertionError("no image has a sign")


def mask(*kept: int) -> np.ndarray:
    found = np.zeros(576, dtype=bool)
    found[list(kept)] = True
    return found


def test_the_share_is_over_patches_layers_and_questions(tmp_path: Path) -> None:
    key, question, (first, *others) = of_image()
    away = next(i for i in range(576) if i not in (first, *others))
    # all in layer 0, one of three from layer 1 on, nothing at all in layer 3
    late = [Stage(0, np.ones(576, dtype=bool), 0), Stage(1, mask(first, away), 5), Stage(3, mask(), 0)]
    early = [Stage(0, mask(first, *others), 0)]
    absent = (key, "Is there a pink thing in the image?", early)
    found = relevant(a_cell(tmp_path / "a", [(key, question, late), (key, question, early), absent]))
    assert found == Relevant(2, pytest.approx(100 * (1 / 3 + 1) / 2), pytest.approx(100 * ((1 + 2 / 3) / 4 + 1) / 2))


def test_a_merged_token_counts_for_no_patch(tmp_path: Path) -> None:
    key, question, _ = of_image()
    assert relevant(a_cell(tmp_path / "a", [(key, question, [Stage(0, mask(), 64)])])) == Relevant(1, 0.0, 0.0)


def test_it_is_not_known_of_other_images_grids_and_records(tmp_path: Path) -> None:
    key, question, _ = of_image()
    stages = [Stage(0, np.ones(576, dtype=bool), 0)]
    whole = [(key, question, stages)]
    assert relevant(a_cell(tmp_path / "whole", whole)) == Relevant(1, 100.0, 100.0)
    assert relevant(a_cell(tmp_path / "image", [*whole, ("0" * 16, question, stages)])) is None
    assert relevant(a_cell(tmp_path / "records", [*whole, (key, question, [])])) is None
    assert relevant(a_cell(tmp_path / "names", [(key, "Why?", stages)])) is None
    assert relevant(a_cell(tmp_path / "tokens", whole, costs={"n_visual": 144.0})) is None
    assert relevant(a_cell(tmp_path / "depth", whole, provenance={"grids": [[24, 24, False]]})) is None
    for grids in ([[12, 48, False]], [[24, 24, True]], [[24, 24, False]] * 2):
        grid = {"decoder_layers": 4, "grids": grids}
        assert relevant(a_cell(tmp_path / str(grids), whole, provenance=grid)) is None


def test_measured_cells_say_so_as_a_draw_and_a_ranking_must() -> None:
    """A random draw keeps the share of its tokens; a ranking by [CLS] finds objects, and a diverse choice fewer."""
    found: dict[str, float] = {}
    for sealed in Store(TOP / "results" / "reference").cells():
        cell = sealed.cell
        if (cell.task, cell.budget, cell.seed) == ("gqa", "64", 0) and cell.method in (
            "random",
            "fastervlm",
            "divprune",
        ):
            share = relevant(sealed)
            assert share is not None
            found[cell.method] = share.kept
    assert found["random"] == pytest.approx(100 * 64 / 576, abs=3)
    assert found["fastervlm"] > 90 > found["divprune"] > 2 * found["random"]
