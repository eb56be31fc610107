"""The data of the mini Qwen: drawn on first use, equal on every draw, held to the manifest, and no scene of another
set."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow.parquet as pq
import pytest

from harness.core.errors import PrunebenchError
from tasks import calibration, choice
from tasks import sources as src
from tasks.mini import data, relevant, world
from tasks.mini.qwen import data as qwen
from tasks.mini.qwen import model

SMALL = {"GQA": 1, "MME": 1, "POPE": 1, "textvqa": 1}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the data were drawn once."""
    base = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(base))
        qwen.ready()
    return base


@pytest.fixture
def drawn(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return qwen.folder()


@pytest.fixture
def little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest of four images and an empty cache: what takes seconds takes none."""
    made = tmp_path / "made"
    monkeypatch.setattr(data, "IMAGES", SMALL)
    data.build(made, qwen.SEED, SMALL, data.RAGGED)
    stated = {"pillow": PIL.__version__, "content": qwen.content(made), "scenes": {}}
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(stated))
    monkeypatch.setattr(qwen, "MANIFEST", manifest)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return manifest


# ------------------------------------------------------------------------------------------------------------ the data


def test_what_is_drawn_is_the_manifests_and_is_drawn_once(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stated = qwen.manifest()
    assert qwen.content(drawn) == stated["content"]
    rows = {name.split("/")[0]: entry["rows"] for name, entry in stated["content"].items() if "images" not in name}
    assert rows == {"GQA": 420, "MME": 410, "POPE": 450, "textvqa": 404}
    before = {path: path.stat().st_mtime_ns for path in drawn.rglob("*.parquet")}
    assert qwen.ready() == drawn
    assert {path: path.stat().st_mtime_ns for path in drawn.rglob("*.parquet")} == before
    assert capsys.readouterr().err == ""


def test_every_image_has_108_to_594_tokens_as_the_processor_counts(drawn: Path) -> None:
    processor, sizes = model.image_processor(), set()
    for (path,) in (list(drawn.glob(f"{name}/*/*.parquet"))[-1:] for name in ("MME", "POPE", "textvqa")):
        sizes |= {
            (scene.size[1], scene.size[0])
            for image in {row["path"]: row for row in pq.read_table(path)["image"].to_pylist()}
            for scene in [scene_of(path, image)]
        }
    sizes |= {(scene.size[1], scene.size[0]) for scene in qwen.scenes().values()}
    counts = set()
    for height, width in sizes:
        patches = processor.get_number_of_image_patches(height, width, {})
        counts.add(patches // model.MERGE**2)
        grid = processor(images=[np.zeros((height, width, 3), np.uint8)], return_tensors="np")["image_grid_thw"][0]
        assert grid.tolist() == [1, height // model.PATCH, width // model.PATCH], "resized"
    assert len(counts) > 20
    assert min(counts) >= 108
    assert max(counts) <= 594


def scene_of(path: Path, name: str) -> world.Scene:
    seed = data.RAGGED.seed_of(name)
    of_set = data.SCENES[next(part for part in path.parts if part in data.SCENES)]
    return world.make_scene(seed, **of_set, lattice=world.lattice_of(seed))


def test_images_show_the_scenes_that_the_manifest_names(drawn: Path) -> None:
    known = qwen.scenes()
    assert len(known) == sum(data.IMAGES.values())
    for name in data.IMAGES:
        path = next(p for p in sorted(drawn.glob(f"{name}/*/*.parquet")) if "image" in pq.read_schema(p).names)
        image = pq.read_table(path, columns=["image"]).slice(0, 1).to_pylist()[0]["image"]
        scene = known[qwen._hashed(image["bytes"])[:16]]
        assert scene == scene_of(path, image["path"])
        assert world.jpeg(world.render(scene)) == image["bytes"]


def test_no_scene_is_that_of_another_set() -> None:
    """Seeds of builds: each set has a range of its own, also where questions skip some scenes."""
    span = len(data.IMAGES) * data.SEED_RANGE
    builds = {
        "mini": (0, 1),
        "calibration": (calibration.MINI_SEED, calibration.MINI_SEED + calibration.SEEDS),
        "ragged calibration": (calibration.QWEN_SEED, calibration.QWEN_SEED + calibration.SEEDS),
        "ragged": (qwen.SEED, qwen.SEED + 1),
    }
    ends = [world.TEST_SEED_BASE + edge * span for pair in builds.values() for edge in pair]
    assert ends == sorted(ends)
    assert ends[0] >= world.TEST_SEED_BASE > 1 << 39, "training draws below"
    seeds = [scene.seed for scene in qwen.scenes().values()]
    assert len(set(seeds)) == len(seeds)
    assert all(ends[-2] <= seed < ends[-1] for seed in seeds)


def test_calibration_scenes_are_ragged_and_disjoint(drawn: Path, tmp_path: Path) -> None:
    source = calibration.mini(tmp_path / "fresh", 2, like="mini-qwen")
    assert calibration.check_disjoint(("gqa", "pope"), source, src.DataSource.parse("mini-qwen")) > 0
    rows = src.read(src.TASKS["pope"], source)
    assert rows.docs["image_source"][0].startswith("ragged_")
    with pytest.raises(PrunebenchError, match="seed 65536"):
        calibration.mini(tmp_path / "far", 2, seed=calibration.SEEDS)


# --------------------------------------------------------------------------------------------------------- the drawing


def test_another_pillow_is_named_with_what_to_do(little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Pillow that encodes otherwise, and says another version."""
    monkeypatch.setattr(PIL, "__version__", "99.0")
    monkeypatch.setattr(world, "jpeg", lambda image, quality=90: _encoded(image))
    with pytest.raises(PrunebenchError) as caught:
        qwen.ready()
    said = str(caught.value)
    shown = json.loads(little.read_text())["pillow"]
    assert f"which Pillow {shown} drew" in said
    assert "drawn by Pillow 99.0" in said
    assert f"pip install pillow=={shown}" in said
    assert not list((qwen.folder().parent).iterdir()), "nothing is left behind"


def _encoded(image: Any) -> bytes:
    import io

    out = io.BytesIO()
    image.save(out, "JPEG", quality=50)
    return out.getvalue()


def test_another_pillow_with_the_same_content_is_fine(little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL, "__version__", "99.0")
    assert qwen.content(qwen.ready()) == qwen.manifest()["content"]


def test_a_changed_generator_is_another_message(little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "jpeg", lambda image, quality=90: _encoded(image))
    with pytest.raises(PrunebenchError, match="who changed the generator: run `prunebench dev mini data"):
        qwen.ready()


@pytest.mark.parametrize("damage", ["bytes", "file", "manifest"])
def test_a_damaged_copy_is_drawn_again_and_said(little: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = qwen.ready()
    whole = qwen.content(place)
    assert "drawing them once" in capsys.readouterr().err
    target = next(place.glob("POPE/*/*.parquet")) if damage != "manifest" else place / "manifest.json"
    if damage == "bytes":
        content = bytearray(target.read_bytes())
        content[len(content) // 2] ^= 1
        target.write_bytes(content)
    else:
        target.unlink()
    assert qwen.ready() == place
    said = capsys.readouterr().err
    assert "damaged, drawing them again" in said
    assert said.count("\n") == 1
    assert qwen.content(place) == whole
    assert list(place.parent.iterdir()) == [place], "no remains"


def _draw(base: str, manifest: str, go: Any, out: Any) -> None:
    os.environ["XDG_CACHE_HOME"] = base
    qwen.MANIFEST = Path(manifest)
    data.IMAGES = SMALL
    go.wait()
    try:
        out.put(sorted(qwen.content(qwen.ready())))
    except Exception as error:
        out.put(repr(error))


def test_processes_at_once_share_one_copy(little: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    go, out = context.Event(), context.Queue()
    base = str(tmp_path / "cache")
    workers = [context.Process(target=_draw, args=(base, str(little), go, out)) for _ in range(3)]
    for worker in workers:
        worker.start()
    go.set()
    found = [out.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
    assert found == [sorted(qwen.manifest()["content"])] * 3
    assert list(qwen.folder().parent.iterdir()) == [qwen.folder()]


def test_a_cache_that_cannot_be_written_says_so(little: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(PrunebenchError, match="set XDG_CACHE_HOME to a folder that can be written"):
        qwen.ready()


# ---------------------------------------------------------------------------------------------------- the data's name


def test_mini_means_the_data_of_the_embedded_model_that_is_asked(drawn: Path) -> None:
    for model_name, asked, found in (
        ("mini", None, "mini"),
        ("mini", "mini", "mini"),
        ("mini", "mini-qwen", "mini-qwen"),
        ("mini-qwen", None, "mini-qwen"),
        ("mini-qwen", "mini", "mini-qwen"),
        ("llava-1.5-7b", "mini", "mini"),
        ("llava-1.5-7b", "mini-qwen", "mini-qwen"),
        ("llava-1.5-7b", None, "hub"),
        ("", None, "hub"),
    ):
        assert src.source_of_data(asked, model_name).name == found, (model_name, asked)
    local = src.source_of_data(str(data.FOLDER), "mini-qwen")
    assert (local.name, local.root) == ("local", data.FOLDER.resolve())
    with pytest.raises(PrunebenchError, match="the mini-qwen data hold gqa"):
        choice.check_source(["mmstar"], src.DataSource.parse("mini-qwen"))


def test_asking_where_the_data_are_draws_nothing(little: Path) -> None:
    assert not src.source_of_data(None, "mini-qwen").root.exists()  # type: ignore[union-attr]


def test_relevant_patches_are_known_of_ragged_images_on_their_own_grid() -> None:
    key, scene = next((key, scene) for key, scene in qwen.scenes().items() if scene.signs and scene.grid != (24, 24))
    columns, rows = scene.grid
    sign = scene.signs[0]
    question = f"What is written on the {sign.colour} sign?"
    first = (sign.row * 3 + 1) * columns + sign.column * 3
    assert relevant.patches(key, question, rows, columns) == (first, first + 1, first + 2)
    assert relevant.patches(key, question) is None, "24 x 24 is another grid"
    assert relevant.patches("0" * 16, question, rows, columns) is None


def test_lmms_evals_command_line_knows_the_tasks(drawn: Path, tmp_path: Path) -> None:
    from lmms_eval.utils import load_yaml_config

    from harness.plugin import command, names

    assert command.mini_task_files(tmp_path, "_mini_qwen") == [f"{name}_mini_qwen" for name in names.SHIPPED]
    for name in names.SHIPPED:
        task = f"{name}_mini_qwen"
        assert (names.own(task), names.data_of(task)) == (name, "mini-qwen")
        assert (names.own(f"{name}_mini"), names.data_of(f"{name}_mini")) == (name, "mini")
        config = load_yaml_config(str(tmp_path / f"{task}.yaml"), mode="full")
        ((file,),) = config["dataset_kwargs"]["data_files"].values()
        assert Path(file).is_relative_to(drawn)
    assert names.data_of("pope") is None
    questions = src.read(src.TASKS["gqa"], src.DataSource.parse("mini-qwen")).docs.select(range(7))
    joined = src.join_gqa_mini_qwen(questions)
    sizes = {image.size for image in joined["image"]}
    assert len(sizes) == 2, "six questions an image"
    assert (336, 336) not in sizes


def test_a_gate_reads_one_data_set() -> None:
    """Samples go by their keys, which two data sets share."""
    from factories import sealed_cell

    from harness.proof.gate.snapshot import snapshot

    cells = [sealed_cell("none", "none", model=name, data_fingerprint=name) for name in ("mini", "mini-qwen")]
    with pytest.raises(PrunebenchError, match="give each embedded model a gate of its own"):
        snapshot(cells)
