"""The report's data and page without a browser, and the picture of one sample."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import io
import json
import re
from pathlib import Path

import pytest
from factories import DEPTH, HOSTILE, N_VISUAL, analysis, drawn, gauntlet, rows
from helpers import run
from PIL import Image

from harness.core.errors import PrunebenchError
from harness.report import page as report
from harness.report import samples, show, views
from harness.store.store import Store
from harness.tables import style
from tasks import sources

CENTRE = Path(__file__).parents[1] / "examples" / "centre.py"


def build(root: Path, samples: int = 100, **options) -> report.Page:
    return report.fitting(Store(root).cells(), root, samples, **options)


def meta(page: report.Page | str) -> dict:
    html = page if isinstance(page, str) else page.html
    found = re.search(r'<script type="application/json" id="meta">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def chunk(page: report.Page, number: int) -> dict:
    found = re.search(rf'id="chunk-{number}">([^<]*)<', page.html)
    assert found
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return gauntlet(tmp_path_factory.mktemp("small"), ("visipruner", "fastv"), (64, 32), ("mme", "pope"), 20)


# texts


@pytest.mark.parametrize(
    "text",
    ["</script>", "<script>", "<img onerror=x>", "&lt;", "\u2028\u2029", "<!--", "]]>", "é", "\x00\x7f", "\ud800"],
)
def test_embedded_json_says_the_same_without_a_character_of_markup(text):
    written = report.embed_json({text: [text]})
    assert not re.search("[<>&\u2028\u2029\x00-\x1f\ud800-\udfff]", written)
    assert json.loads(written) == {text: [text]}


def test_hostile_texts_do_not_reach_the_page_as_markup(tmp_path):
    method = "evil/<img src=x onerror=window.hacked=1>.py:</script>"
    drawn(tmp_path, "none", "none", "pope", 6, hostile=True)
    drawn(tmp_path, method, "64", "pope", 6, hostile=True, request={"method": HOSTILE})
    page = build(tmp_path)
    assert "<img" not in page.html
    assert "hacked=1</script>" not in page.html
    images = len(set(re.findall(r'id="image-\d+"', page.html)))
    assert page.html.count("<script") == page.html.count("</script>") == 1 + 1 + images + 1, (
        "meta, one chunk, images, the program"
    )
    assert method in meta(page)["models"][0]["lines"]
    assert chunk(page, 0)["samples"][0]["question"] == HOSTILE + "0"
    assert chunk(page, 0)["samples"][0]["category"] == HOSTILE


def test_page_needs_nothing_from_outside_and_runs_one_script_only(small):
    html = build(small, 4).html
    assert "default-src 'none'" in html
    assert "unsafe" not in html
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", html)
    assert "@import" not in html
    assert "innerHTML" not in html
    assert "insertAdjacent" not in html
    assert "document.write" not in html


# content


def test_numbers_are_those_of_the_cells(small):
    page = build(small)
    model = meta(page)["models"][0]
    assert [s["label"] for s in model["sets"]] == ["mme", "pope"]
    assert model["depth"] == DEPTH
    for sealed in Store(small).cells():
        line, budget = model["lines"].index(sealed.cell.method), model["budgets"].index(sealed.cell.budget)
        number = [s["task"] for s in model["sets"]].index(sealed.cell.task)
        found = next(c for c in model["cells"] if (c["set"], c["line"], c["budget"]) == (number, line, budget))
        assert found["score"] == pytest.approx(sealed.score)
        assert found["low"] == pytest.approx(sealed.interval.low)
        assert found["gflops"] == pytest.approx(sealed.costs["prefill_dense_flops"] / 1e9)
        base = Store(small).sealed(sealed.cell.baseline()).samples().set_index("key")["score"]
        mine = sealed.samples().set_index("key")["score"]
        assert found["lost"] == sum(base[k] == 1 and mine[k] == 0 for k in base.index)
        assert found["gained"] == sum(base[k] == 0 and mine[k] == 1 for k in base.index)
    assert sum(c["lost"] for c in model["cells"]) > 0, "nothing was compared"
    # each cell's answers stand at its own place in the chunk
    for number, of in enumerate(model["sets"]):
        data = chunk(page, of["chunk"])
        for i, cell in enumerate(c for c in model["cells"] if c["set"] == number):
            right = sum(s >= 0.5 for s in data["cells"][i]["score"])
            assert model["cells"][data["first_cell"] + i] == cell
            if of["task"] == "pope":
                assert right / 20 == pytest.approx(cell["score"])


def test_images_are_embedded_once_and_small(small):
    page = build(small)
    shown = [base64.b64decode(text) for text in re.findall(r'id="image-\d+">([^<]*)<', page.html)]
    keys = {image for task in ("mme", "pope") for _, image, *_ in rows(task)[:20]}
    assert len(shown) == len(keys)
    assert len(set(shown)) == len(keys)
    for data in shown:
        image = Image.open(io.BytesIO(data))
        assert image.format == "JPEG"
        assert image.size == (336, 336)


def test_data_that_cannot_be_read_cost_no_other_model_its_images(tmp_path, monkeypatch):
    """Neither was asked with DATA=, and so the one's are on the hub and the other's are the mini data."""
    read = sources.read

    def offline(spec, source):
        if source.name == "hub":
            raise PrunebenchError("the hub cannot be reached")
        return read(spec, source)

    monkeypatch.setattr(sources, "read", offline)
    for model in ("a/tiny", "mini"):
        drawn(tmp_path, "none", "none", "pope", 6, model=model)
    page = build(tmp_path)
    lost, shown = ([s["no_image"] for s in model["sets"]] for model in meta(page)["models"])
    assert (lost, shown) == (["the hub cannot be reached"], [""])
    assert {s["image"] for s in chunk(page, 0)["samples"]} == {-1}
    assert -1 not in {s["image"] for s in chunk(page, 1)["samples"]}


def test_same_cells_give_the_same_bytes(small):
    assert build(small).html == build(small).html


def test_samples_are_limited_and_spread(small):
    page = build(small, 5)
    assert page.n_samples == 10
    assert [s["key"] for s in chunk(page, 1)["samples"]] == [f"pope/{i:06d}" for i in (0, 4, 8, 12, 16)]
    assert meta(page)["models"][0]["sets"][1]["shown"] == 5
    assert build(small, 0).n_samples == 0


def test_a_page_that_is_too_large_has_smaller_images_then_fewer_samples_and_says_so(small):
    said = []
    whole, bare = build(small).n_bytes, build(small, 0).n_bytes
    page = build(small, max_bytes=whole - 1, say=said.append)
    assert page.n_bytes < whole
    assert page.n_samples == 40, "images get smaller first"
    assert meta(page)["images"] == "image/webp"
    assert "its images have 336 pixels and more loss than usual" in said.pop()
    page = build(small, max_bytes=bare + (whole - bare) // 10, say=said.append)
    assert page.n_bytes <= bare + (whole - bare) // 10
    assert 0 < page.n_samples < 40
    assert len(said) == 1
    assert "--samples 100" in said[0]
    assert f"images of {samples.SIZES[-1].side} pixels" in said[0]
    data = base64.b64decode(re.search(r'id="image-0">([^<]*)<', page.html)[1])
    assert Image.open(io.BytesIO(data)).size == (samples.SIZES[-1].side,) * 2
    with pytest.raises(PrunebenchError, match=r"without any sample, expected at most .*--results"):
        build(small, max_bytes=bare - 1)


def test_depth_is_what_the_cells_say(small, tmp_path):
    (protocol,) = views.protocols(Store(small).cells())
    assert views.depth(protocol) == DEPTH
    first = protocol.questions[0]
    unsaid = dataclasses.replace(first, cells=(dataclasses.replace(first.cells[0], provenance={}),))
    assert views.depth(dataclasses.replace(protocol, questions=(unsaid,))) is None


def test_knobs_tell_lines_apart_only_where_they_must_and_seeds_share_one(tmp_path):
    drawn(tmp_path, "random", "64", "pope", 6, seed=0)
    drawn(tmp_path, "random", "64", "pope", 6, seed=1)
    drawn(tmp_path, "fastv", "64", "pope", 6, knobs={"keep": 64, "boundary": 2})
    drawn(tmp_path, "fastv", "64", "pope", 6, knobs={"keep": 64, "boundary": 3})
    drawn(tmp_path, "fastv", "32", "pope", 6, knobs={"keep": 32, "boundary": 2})
    (protocol,) = views.protocols(Store(tmp_path).cells())
    named = views.lines(protocol)
    assert sorted(set(named.values())) == ["fastv boundary=2", "fastv boundary=3", "random"]
    assert sum(name == "fastv boundary=2" for name in named.values()) == 2


# bad input


def test_lines_look_on_the_page_as_in_the_figures(small):
    (model,) = meta(build(small))["models"]
    named = dict(zip(model["lines"], model["looks"], strict=True))
    for name, seen in named.items():
        method = name.split(" ")[0]
        assert (seen["colour"], seen["mark"]) == (style.look(method)[0], style.outline(method))
        assert re.fullmatch(r"(M|L|Q|C|z|[-0-9.,])+", seen["mark"])
        numbers = [abs(float(n)) for n in re.findall(r"-?[0-9.]+", seen["mark"])]
        assert max(numbers) == 1, "as large as any other"
    methods = {name.split(" ")[0] for name in named}
    assert len({seen["mark"] for seen in named.values()}) == len(methods)
    assert "model.looks[line]" in report.script()


def test_no_cells_say_which_command_makes_them(tmp_path, capsys, monkeypatch):
    code, _, err = run(capsys, monkeypatch, "report", "--results", str(tmp_path))
    assert code == 2
    assert "`prunebench eval --method visipruner --budget 64` makes some" in err
    assert "--results names another folder" in err
    code, _, err = run(capsys, monkeypatch, "show", "--results", str(tmp_path), "--sample", "pope/000001")
    assert code == 2
    assert "--results names another folder" in err


def test_negative_samples_are_refused(small):
    with pytest.raises(PrunebenchError, match="at least 0"):
        report.write(small, samples=-1)


def test_no_unpruned_cell_is_said_with_the_command_that_makes_it(tmp_path):
    drawn(tmp_path, "fastv", "64", "pope", 6, request={"knobs": {"boundary": "3"}, "seed": 4})
    page = build(tmp_path)
    assert (
        meta(page)["models"][0]["sets"][0]["make_baseline"]
        == "make eval METHOD=none MODEL=mini TASKS=pope LIMIT=6 DEVICE=cpu"
    )
    assert any("no unpruned cell" in note for note in page.notes)
    assert meta(page)["models"][0]["cells"][0]["pct"] is None
    assert "lost" not in meta(page)["models"][0]["cells"][0]


def test_rows_with_missing_tasks_are_said_with_the_command(tmp_path):
    gauntlet(tmp_path, ("visipruner",), (64,), ("mme", "pope"), 6)
    drawn(tmp_path, "fastv", "64", "pope", 6, request={"knobs": {"boundary": "3", "keep": "4"}})
    page = build(tmp_path)
    (missing,) = meta(page)["models"][0]["missing"]
    assert missing["what"] == "fastv at 64 on mme"
    assert (
        missing["command"]
        == "make eval METHOD=fastv BUDGET=64 MODEL=mini TASKS=mme LIMIT=6 SET='boundary=3 keep=4' DEVICE=cpu"
    )
    assert any("fastv at 64 on mme missing" in note for note in page.notes)


def test_several_models_are_kept_apart(tmp_path):
    gauntlet(tmp_path, ("fastv",), (64,), ("pope",), 6)
    gauntlet(tmp_path, ("fastv",), (64,), ("pope",), 6, model="other", model_fingerprint="w2", request={"data": "mini"})
    gauntlet(tmp_path, ("fastv",), (64,), ("pope",), 6, dtype="bfloat16")
    models = meta(build(tmp_path))["models"]
    assert [m["label"] for m in models] == ["mini, dtype bfloat16", "mini, dtype float32", "other"]
    assert [len(m["cells"]) for m in models] == [2, 2, 2]
    with pytest.raises(PrunebenchError, match=r"several models: name one with model \(of mini, other\)"):
        show.find(Store(tmp_path).cells(), "pope/000001", ["fastv"])
    assert show.find(Store(tmp_path).cells(), "pope/000001", ["fastv"], model="other").methods[0].name == "fastv at 64"


def test_a_model_that_alone_has_what_is_asked_needs_no_name(tmp_path):
    gauntlet(tmp_path, ("fastv",), (64,), ("pope",), 6)
    gauntlet(
        tmp_path, ("random",), (32, 64), ("pope",), 6, model="other", model_fingerprint="w2", request={"data": "mini"}
    )
    cells = Store(tmp_path).cells()
    assert show.find(cells, "pope/000001", ["fastv"]).methods[0].name == "fastv at 64", "mini alone has fastv"
    assert show.find(cells, "pope/000001", ["random"], "32").methods[0].name == "random at 32"
    with pytest.raises(PrunebenchError, match=r"name one with model \(of mini, other\)"):
        show.find(cells, "pope/000001", ["none"])


def test_two_sets_of_questions_of_a_task_are_two_tasks(tmp_path):
    gauntlet(tmp_path, ("fastv",), (64, 32), ("pope",), 6)
    gauntlet(tmp_path, ("fastv",), (64,), ("pope",), 8)
    (model,) = meta(build(tmp_path))["models"]
    assert [(s["label"], s["n"], s["primary"]) for s in model["sets"]] == [
        ("pope", 6, True),
        ("pope (8 questions)", 8, False),
    ]
    assert model["missing"] == []


def test_images_that_are_not_those_measured_are_left_out(tmp_path):
    drawn(tmp_path, "none", "none", "pope", 6, image="0" * 16)
    page = build(tmp_path)
    assert 'id="image-0"' not in page.html
    assert {s["image"] for s in chunk(page, 0)["samples"]} == {-1}
    assert any("not the one that was measured" in note and "--data" in note for note in page.notes)
    with pytest.raises(PrunebenchError, match="not the one that was measured"):
        show.find(Store(tmp_path).cells(), "pope/000001", ["none"])


def test_data_folder_that_is_gone_is_said(small):
    page = build(small, 4, data="/no/such/folder")
    assert any("/no/such/folder" in note for note in page.notes)
    assert page.n_samples == 8


@pytest.mark.parametrize(("padding", "expected"), [("pad", (122, 116, 104)), ("plain", (200, 0, 0))])
def test_images_are_squared_as_the_model_saw_them(tmp_path, monkeypatch, padding, expected):
    sealed = drawn(tmp_path, "none", "none", "pope", 6, padding=padding)
    buffer = io.BytesIO()
    Image.new("RGB", (400, 200), (200, 0, 0)).save(buffer, "PNG")
    pictures = views.Pictures(lambda _: pytest.fail("no data is read"))
    monkeypatch.setattr(pictures, "encoded", lambda *_: buffer.getvalue())
    square = pictures.square(sealed, "pope/000000", "x", 336)
    assert square.width == square.height <= 336
    assert square.getpixel((square.width // 2, 2)) == expected
    assert square.getpixel((square.width // 2, square.height // 2)) == (200, 0, 0)


# analysis


def test_analysis_is_inlined(tmp_path):
    drawn(tmp_path, "none", "none", "pope", 6)
    assert meta(build(tmp_path))["models"][0]["analysis"] is None
    analysis(tmp_path)
    page = build(tmp_path)
    found = meta(page)["models"][0]["analysis"]
    assert found["stages"]["fusion"] == [3, 4]
    assert found["figures"][0]["alt"] == "an alternative"
    assert found["layers"] == [{"layer": 0, "entropy": 0.5, "entropy_low": 0.25, "entropy_high": 0.75}]
    assert base64.b64decode(found["figures"][0]["src"].removeprefix("data:image/svg+xml;base64,")).startswith(b"<svg")
    assert "hacked=1</script>" not in page.html


def test_analysis_of_other_weights_is_not_shown(tmp_path):
    drawn(tmp_path, "none", "none", "pope", 6)
    analysis(tmp_path, fingerprint="other")
    model = meta(build(tmp_path))["models"][0]
    assert model["analysis"] is None
    assert model["analysis_of"] == "other"
    assert model["make_analysis"] == f"make analyze MODEL=mini OUT={tmp_path}/analysis/mini"


def test_analysis_of_some_layers_names_no_stage(tmp_path):
    drawn(tmp_path, "none", "none", "pope", 6)
    analysis(tmp_path, stages={})
    assert meta(build(tmp_path))["models"][0]["analysis"]["stages"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"stages": {"fusion": []}},
        *({"figures": [{"file": name}]} for name in ("../../secret.svg", "a.html", "none.svg")),
    ],
)
def test_broken_analysis_says_which_command_writes_it_again(tmp_path, changes):
    drawn(tmp_path, "none", "none", "pope", 6)
    analysis(tmp_path, **changes)
    (tmp_path / "secret.svg").write_text("<svg/>")
    with pytest.raises(PrunebenchError, match="`make analyze` writes it again"):
        build(tmp_path)


# show


def test_show_writes_a_picture_and_says_what_is_in_it(small, tmp_path, capsys, monkeypatch):
    out = tmp_path / "deep" / "x.png"
    code, said, err = run(
        capsys,
        monkeypatch,
        "show",
        "--results",
        str(small),
        "--sample",
        "pope/000003",
        "--method",
        "visipruner,fastv",
        "--out",
        str(out),
    )
    assert code == 0, err
    assert said.splitlines()[-1] == f"picture  {out}"
    assert rows("pope")[3][4] in said
    assert "kept 576 from layer 0, 64 from layer 4, 0 from layer 8; fusion layer 3, exit layer 8" in said
    assert "fastv at 64" in said
    image = Image.open(out)
    assert image.format == "PNG"
    assert image.width >= 3 * show.SIDE, "three stages side by side"
    assert image.height >= 3 * show.SIDE, "the image and two methods"


@pytest.mark.parametrize(("name", "kind"), [("x.png", "PNG"), ("x.jpg", "JPEG"), ("X.JPEG", "JPEG")])
def test_the_ending_says_how_a_picture_is_written(small, tmp_path, name, kind):
    path, _ = show.write(small, "pope/000003", ["visipruner"], "64", out=tmp_path / name)
    with Image.open(path) as drawn:
        assert (path.name, drawn.format) == (name, kind)


def test_show_fades_exactly_the_dropped_patches(small):
    sample = show.find(Store(small).cells(), "pope/000003", ["fastv"], "32")
    (shown,) = sample.methods
    stage = shown.stages[-1]
    assert int(stage.keep.sum()) == 32
    drawn = show.shaded(sample.image, stage, sample.methods[0].raster)
    patch = show.SIDE // 24
    for token in range(N_VISUAL):
        at = (token % 24 * patch + 3, token // 24 * patch + 3)
        assert (drawn.getpixel(at) == sample.image.getpixel(at)) == bool(stage.keep[token]), token


def test_show_default_name_and_budget(small):
    path, sample = show.write(small, "pope/000003", ["visipruner"])
    assert path == small / "show" / "pope-000003-visipruner.png"
    assert sample.methods[0].name == "visipruner at 64"


@pytest.mark.parametrize(
    ("key", "methods", "budget", "message"),
    [
        (
            "pope/000099",
            ["fastv"],
            "",
            r"no sample 'pope/000099' was measured; near it: pope/000017, pope/000018, pope/000019 \(20 samples",
        ),
        ("pope/fastv", ["fastv"], "", r"near it: pope/0000"),
        ("gqa/000001", ["fastv"], "", r"no cell of task 'gqa' is sealed \(tasks: mme, pope\)"),
        ("pope/000003", ["fastv", "fastw"], "", r"^unknown method 'fastw'; did you mean 'fastv'\?"),
        (
            "pope/000003",
            ["first"],
            "",
            r"measured: .*`make eval METHOD=first BUDGET=\d+ MODEL=mini TASKS=pope LIMIT=20 .*` measures it",
        ),
        (
            "pope/000003",
            ["knockout"],
            "",
            r"`make eval METHOD=knockout MODEL=mini TASKS=pope LIMIT=20 DEVICE=cpu RESULTS=\S+` measures it",
        ),
        (
            "pope/000003",
            [f"{CENTRE}:Centre"],
            "",
            rf"not measured with 'centre'.*`make eval METHOD={CENTRE}:Centre BUDGET=\d+ MODEL=mini",
        ),
        (
            "pope/000003",
            ["fastv"],
            "16",
            r"at 64, 32, not at 16.*`make eval METHOD=fastv BUDGET=16 MODEL=mini TASKS=pope LIMIT=20 \S+ RESULTS=\S+`",
        ),
        ("pope/000003", [], "", "no method was named"),
    ],
)
def test_show_says_what_was_not_measured(small, key, methods, budget, message):
    with pytest.raises(PrunebenchError, match=message):
        show.find(Store(small).cells(), key, methods, budget)


def test_the_commands_of_show_can_be_run(tmp_path):
    """A method of a file by that file, also where its name alone is given; a budget in place of the knob that says the
    same."""
    drawn(tmp_path, "none", "none", "pope", 6)
    drawn(
        tmp_path,
        "fastv",
        "none",
        "pope",
        6,
        knobs={"keep": 64, "boundary": 3},
        request={"budget": None, "knobs": {"keep": 64, "boundary": 3}},
    )
    drawn(tmp_path, "centre", "64", "gqa", 6, request={"method": f"{CENTRE}:Centre"})
    cells = Store(tmp_path).cells()
    ours = "make eval METHOD=fastv BUDGET=32 MODEL=mini TASKS=pope LIMIT=6 SET='boundary=3' DEVICE=cpu"
    with pytest.raises(PrunebenchError, match=re.escape(f"`{ours} RESULTS={tmp_path}`")):
        show.find(cells, "pope/000003", ["fastv"], "32")
    with pytest.raises(
        PrunebenchError, match=rf"not measured with 'centre'.*`make eval METHOD={CENTRE}:Centre BUDGET=64 MODEL=mini "
    ):
        show.find(cells, "pope/000003", ["centre"])


def test_the_commands_of_show_leave_out_the_folder_that_is_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = Path("results/local")
    drawn(root, "fastv", "64", "pope", 6)
    with pytest.raises(PrunebenchError, match=r"LIMIT=6 DEVICE=cpu`$"):
        show.find(Store(root).cells(), "pope/000003", ["fastv"], "32")


def test_show_without_recorded_tokens_says_so(tmp_path):
    drawn(tmp_path, "fastv", "64", "pope", 6, recorded=False)
    _, sample = show.write(tmp_path, "pope/000001", ["fastv"])
    assert sample.methods[0].stages == ()
    assert "kept not recorded" in "\n".join(show.lines(sample))


def test_a_report_goes_to_a_file_or_into_a_folder(small, tmp_path):
    (tmp_path / "v1.2").mkdir()
    places = {"demo": "demo/index.html", "a/page.html": "a/page.html", "v1.2": "v1.2/index.html"}
    for out, file in places.items():
        assert report.write(small, tmp_path / out, samples=0) == tmp_path / file
        assert (tmp_path / file).is_file()


def test_report_command_writes_where_it_says(small, capsys, monkeypatch):
    code, out, err = run(capsys, monkeypatch, "report", "--results", str(small), "--samples", "4")
    assert code == 0, err
    path = small / "report" / "index.html"
    assert f"report  {path}" in out
    assert meta(path.read_text())["models"][0]["sets"][0]["shown"] == 4
