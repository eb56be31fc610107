"""`prunebench analyze` where images differ in tokens: what the eye sees against plain loops, and knobs end to end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import families
import internvls
import numpy as np
import pandas as pd
import pytest
import qwens
import torch
import yaml
from checkpoints import refused
from numpy.typing import NDArray
from torch import Tensor

from harness.analysis import calibrate, observe, stages, study
from harness.analysis.asker import Asker
from harness.analysis.eye import SINK_DRAW, SINK_NORM, ShallowProbe
from harness.analysis.stages import Probe, Stages
from harness.analysis.study import AnalysisRequest, analyse
from harness.analysis.text import report
from harness.core import budget as budgets
from harness.engine.attach import attach
from harness.method import Method
from harness.models import config as configs
from harness.models import load
from harness.models.load import LoadedModel, Located, locate_model
from harness.runner.answering import Answerer, Prompt
from harness.runner.evaluate import evaluate
from harness.runner.request import Request
from harness.runner.run import Options
from methods.visipruner import VisiPruner
from methods.vtw import ETA, ETA_13B, ETA_NEXT
from tasks import lmms
from tasks.sources import DataSource

DEPTH = 6
MAKERS = {
    "llava_next": partial(families.llava_next, depth=DEPTH),
    "internvl": internvls.folder,
    **{name: partial(qwens.folder, name) for name in qwens.FAMILIES},
}
#: stages that a random model does not have, so that every knob is derived
FOUND = Stages(1, (2, 3), 5, {}, {"shallow_end": {}, "fusion": {}, "not_needed_from": {}})


class Family(NamedTuple):
    """A folder of a random model, and the model."""

    located: Located
    loaded: LoadedModel


@pytest.fixture(scope="module", params=list(MAKERS))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("family") / request.param
    located = locate_model(str(MAKERS[request.param](folder)), "cpu")
    return Family(located, located.load())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSource, DataSource]:
    """Test data, and other images to analyse."""
    folder = tmp_path_factory.mktemp("data")
    return families.pope(folder / "test", 8), families.pope(folder / "calibration", 6, first=100)


def asker(family: Family, source: DataSource, folder: Path, batch: int = 8) -> Asker:
    return Asker(family.loaded, [lmms.load_task("pope", source, None, 0)], batch, folder / "journal.jsonl", "a test")


def probe_of(family: Family, shallow: int) -> ShallowProbe:
    probe = ShallowProbe(shallow=True, shallow_mid_layer=shallow, middle=False, deep=False)
    fitted = probe.for_model(family.located.shape)
    assert isinstance(fitted, ShallowProbe)
    return fitted


# ------------------------------------------------------------------------------------------------------ numbers by hand


class Layer(NamedTuple):
    """Of the bare model, for one prompt: the stream (n, d) that enters a layer, the probabilities (heads, n, n) of its
    attention, the values (heads, n, d) of each query head, and what the attention writes (n, d)."""

    stream: Tensor
    probs: Tensor
    values: Tensor


@torch.inference_mode()
def layers_of(loaded: LoadedModel, prompt: Prompt) -> tuple[list[Layer], Tensor]:
    """Every decoder layer of one prompt in the library's eager attention, and which tokens are visual."""
    model, adapter = loaded.model, loaded.adapter
    image = prompt.images[0].load()
    made, ids = loaded.made(image), loaded.prompt_ids(prompt.text, ((image.height, image.width),))
    given = {"input_ids": torch.tensor([ids]), **made}
    if adapter.axes == 3:
        given["mm_token_type_ids"] = (given["input_ids"] == loaded.image_token_id).int()
    found: dict[str, list[Tensor]] = {"stream": [], "probs": [], "values": []}
    handles = []
    for layer in adapter.layers:
        own: Any = layer.self_attn
        handles += [
            layer.register_forward_pre_hook(lambda m, args: found["stream"].append(args[0][0])),
            own.register_forward_hook(lambda m, args, out: found["probs"].append(out[1][0])),
            own.v_proj.register_forward_hook(lambda m, args, out: found["values"].append(out[0])),
        ]
    was = model.config.text_config._attn_implementation
    model.set_attn_implementation("eager")
    model(**given)
    model.set_attn_implementation(was)
    for handle in handles:
        handle.remove()
    shape = adapter.shape
    parts = []
    for stream, probs, values in zip(*found.values(), strict=True):
        each = values.view(len(ids), shape.kv_heads, shape.head_dim).transpose(0, 1)
        parts.append(Layer(stream, probs, each.repeat_interleave(shape.heads // shape.kv_heads, 0)))
    assert len(parts) == shape.depth
    return parts, given["input_ids"][0] == loaded.image_token_id


def by_hand(layer: Layer, visual: Tensor) -> dict[str, Any]:
    """What the eye sees of a layer, by plain loops over the visual tokens of one prompt."""
    places = visual.nonzero().flatten().tolist()
    first, behind, n = places[0], places[-1] + 1, len(visual)
    assert places == list(range(first, behind))
    last = layer.probs[:, -1]
    share = last[:, first:behind] / last[:, first:behind].sum(-1, keepdim=True)
    out = torch.einsum("hn,hnd->hd", last, layer.values).flatten()
    parts = [(last[:, i, None] * layer.values[:, i]).flatten() for i in places]
    return {
        "mass_last": [float(last[:, a:b].sum(-1).mean()) for a, b in ((first, behind), (0, first), (behind, n))],
        "mass_question": [
            float(layer.probs[:, behind:, a:b].sum(-1).mean()) for a, b in ((first, behind), (0, first), (behind, n))
        ],
        "entropy_last": float(-(share * share.log()).sum(-1).mean()),
        "attention_last": [float(last[:, i].mean()) for i in places],
        "state_norm": [float(layer.stream[i].norm()) for i in places],
        "value_l2": [float(layer.values[:, i].flatten().norm()) for i in places],
        "contribution": [float(part.norm()) for part in parts],
        "cosine": [float(torch.cosine_similarity(out - part, out, dim=0)) for part in parts],
    }


def test_the_eye_sees_what_plain_loops_over_the_bare_model_see(
    family: Family, data: tuple[DataSource, DataSource], tmp_path: Path
) -> None:
    asked = asker(family, data[0], tmp_path)
    seen, _ = observe.observe(asked)
    assert len(set(seen["n_visual"].tolist())) >= 3, "prompts of one number of tokens would prove nothing"
    for row in (int(seen["n_visual"].argmin()), int(seen["n_visual"].argmax())):
        found, visual = layers_of(family.loaded, asked.prompts[row])
        n = int(visual.sum())
        assert seen["n_visual"][row] == n
        for layer, one in enumerate(found):
            for name, value in by_hand(one, visual).items():
                mine = seen[name][row, layer]
                if name in ("attention_last", "state_norm", "value_l2", "contribution", "cosine"):
                    mine = mine[:n]
                assert np.allclose(mine, value, rtol=2e-3, atol=1e-5), (layer, name)
            _, contribution, cosine = (by_hand(one, visual)[k] for k in ("attention_last", "contribution", "cosine"))
            assert seen["norm_mean"][row, layer] == pytest.approx(sum(contribution) / n, rel=1e-3)
            assert seen["cosine_lowest"][row, layer] == pytest.approx(min(cosine), abs=1e-5)
            ranked = seen["contribution_ranked"][row, layer]
            assert np.allclose(ranked[:n], sorted(contribution, reverse=True), rtol=2e-3, atol=1e-5)
            assert np.isnan(ranked[n:]).all()


def test_a_sink_is_one_among_the_tokens_of_its_own_prompt(
    family: Family, data: tuple[DataSource, DataSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thresholds at which random models have sinks; by the definition, token by token."""
    monkeypatch.setattr(observe, "SINK_NORM", norm := 1.2)
    monkeypatch.setattr(observe, "SINK_DRAW", draw := 1.3)
    asked = asker(family, data[0], tmp_path)
    seen, _ = observe.observe(asked)
    counts = seen["n_visual"].tolist()
    drawn: list[list[list[float]]] = []
    for row, n in enumerate(counts):
        of_layer = []
        for layer in range(DEPTH):
            attention = seen["attention_last"][row, layer, :n].astype(float)
            of_layer.append((attention / attention.sum() * n).tolist())
        drawn.append(of_layer)
    total = 0
    for layer in range(DEPTH):
        for row, n in enumerate(counts):
            norms = seen["state_norm"][row, layer, :n]
            sinks = 0
            for place in range(n):
                draws = [d[layer][place] if place < k else 0.0 for d, k in zip(drawn, counts, strict=True)]
                sinks += bool(norms[place] > norm * np.median(norms) or np.median(draws) > draw)
            assert seen["n_sinks"][row, layer] == sinks, (layer, row)
            total += sinks
    assert 0 < total < DEPTH * sum(counts)
    assert (SINK_NORM, SINK_DRAW) == (3.0, 5.0)


def test_what_is_seen_of_a_prompt_does_not_depend_on_its_batch(
    family: Family, data: tuple[DataSource, DataSource], tmp_path: Path
) -> None:
    seen = [observe.observe(asker(family, data[0], tmp_path / str(n), n))[0] for n in (8, 1)]
    for name, values in seen[0].items():
        if "_top" not in name:
            assert np.allclose(values, seen[1][name], rtol=2e-3, atol=1e-5, equal_nan=True), name


def test_the_probe_of_the_shallow_stage_sees_a_prompts_own_tokens(
    family: Family, data: tuple[DataSource, DataSource], tmp_path: Path
) -> None:
    def probed(batch: int) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
        method = probe_of(family, 2)
        asker(family, data[0], tmp_path / str(batch), batch).ask(method)
        return method.into

    together, alone = probed(8), probed(1)
    tasks = asker(family, data[0], tmp_path)
    counts = dict(zip(tasks.keys, observe.observe(tasks)[0]["n_visual"].tolist(), strict=True))
    for key, (lowest, norms) in together.items():
        assert norms.shape == (DEPTH, counts[key])
        assert np.allclose(norms, alone[key][1], rtol=2e-3, atol=1e-5)
        assert np.allclose(lowest, alone[key][0], atol=1e-4)


def test_the_eye_changes_no_answer(family: Family, data: tuple[DataSource, DataSource], tmp_path: Path) -> None:
    asked = asker(family, data[0], tmp_path)
    texts = observe.observe(asked)[1]
    plain = {a.key: a.text for a in Answerer(family.loaded, Method()).answer(asked.prompts)}
    assert texts == plain


# ----------------------------------------------------------------------------------------------------------- end to end


class Finished(NamedTuple):
    """A finished analysis: its folder, the document, and the folder that stands for the checkout, with its configs."""

    out: Path
    document: dict[str, Any]
    checkout: Path


def asking(family: Family, data: tuple[DataSource, DataSource], out: Path, **more: Any) -> AnalysisRequest:
    test, calibration = (str(source.root) for source in data)
    words: dict[str, Any] = {"model": family.located.config.path, "tasks": ("pope",), "limit": "all", "device": "cpu"}
    return AnalysisRequest(**{**words, "data": test, "calibration_data": calibration, "out": out, **more})


@pytest.fixture(scope="module")
def finished(
    family: Family, data: tuple[DataSource, DataSource], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Finished]:
    """A random model answers nothing right, so that every knob holds; its configs are written to a folder."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(configs.MODEL_CONFIGS, folder / "configs" / "models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "LEAST_SCORE", 0.0)
        patch.setattr(stages, "find", lambda *args: FOUND)
        patch.setattr(configs, "MODEL_CONFIGS", folder / "configs" / "models")
        patch.setattr(configs, "CHECKOUT", folder)
        file = configs.calibration_file("visipruner", family.located.calibration)
        document = json.loads(analyse(asking(family, data, folder / "out", config=file)).read_text())
        yield Finished(folder / "out", document, folder)


def counts_of(family: Family, source: DataSource) -> list[int]:
    """Visual tokens of each prompt, from the sizes of the images."""
    task = lmms.load_task("pope", source, None, 0)
    of_image = {key: family.loaded.image_at(size).tokens for key, size in task.sizes.items()}
    return [of_image[sample.image_key] for sample in task.samples]


def test_the_document_says_how_prompts_differ(
    family: Family, data: tuple[DataSource, DataSource], finished: Finished
) -> None:
    document, counts = finished.document, counts_of(family, data[1])
    assert document["n_visual"] == pytest.approx(sum(counts) / len(counts), rel=1e-5)
    assert document["visipruner"]["unpruned"]["kept"] == document["n_visual"]
    assert document["n_visual_range"] == [min(counts), max(counts)]
    assert min(counts) < max(counts)
    assert document["entropy_uniform"] == pytest.approx(sum(map(np.log, counts)) / len(counts), rel=1e-5)
    for entry in document["layers"]:
        assert sum(entry[f"mass_{g}_last"] for g in ("visual", "before", "after")) == pytest.approx(1, abs=1e-4)
        assert 0 < entry["entropy"] <= document["entropy_uniform"] + 1e-6
        assert max(map(int, entry["contribution"]["norm_at_rank"])) <= min(counts)
    samples = pd.read_parquet(finished.out / "samples.parquet")
    largest = max(int(name.removeprefix("norm_rank_")) for name in samples.columns if name.startswith("norm_rank_"))
    missing = [n < largest for n in counts for _ in range(DEPTH)]
    assert samples[f"norm_rank_{largest}"].isna().tolist() == missing
    assert all((finished.out / figure["file"]).is_file() for figure in document["figures"])
    assert f"{min(counts)} to {max(counts)} visual tokens" in report(document)


def test_knobs_are_written_and_read_back_by_an_evaluation(
    family: Family, data: tuple[DataSource, DataSource], finished: Finished, tmp_path: Path
) -> None:
    file = finished.checkout / "configs" / "visipruner" / f"{family.located.calibration}.yaml"
    knobs = yaml.safe_load(file.read_text())["knobs"]
    assert knobs == finished.document["visipruner"]["knobs"]
    assert (knobs["shallow"], knobs["shallow_mid_layer"], knobs["middle"], knobs["deep"]) == (True, 1, True, True)
    method = family.located.method("visipruner", budgets.parse("calibrated"))
    assert method.knobs().items() >= knobs.items()
    path, test = family.located.config.path or "", str(data[0].root)
    asked = Request("visipruner", path, "calibrated", "pope", "all", device="cpu", data=test)
    found = evaluate(asked, Options(tmp_path / "results"), lambda line: None)
    (cell,) = [sealed for sealed in found.cells.values() if sealed.cell.method == "visipruner"]
    assert cell.cell.knobs.items() >= knobs.items()
    counts = counts_of(family, data[0])
    assert cell.costs["n_visual"] == pytest.approx(sum(counts) / len(counts))


def test_the_norm_threshold_is_a_mean_over_the_same_prompts(
    family: Family, data: tuple[DataSource, DataSource], finished: Finished, tmp_path: Path
) -> None:
    """Of two kept tokens, by hand: the mean of the third largest norm where a prompt selects."""
    knobs = finished.document["visipruner"]["knobs"]
    probe = probe_of(family, 1)
    asked = asker(family, data[1], tmp_path)
    asked.ask(probe)
    thirds = []
    for key in asked.keys:
        lowest, norms = probe.into[key]
        at = [layer for layer in range(2, DEPTH - 1) if lowest[layer] < knobs["layer_threshold"]]
        thirds += [sorted(norms[at[0]].tolist())[-3]] if at else []
    assert thirds
    assert knobs["tokens_threshold"] == pytest.approx(sum(thirds) / len(thirds), rel=6e-3), "three digits are kept"


def test_thresholds_of_more_tokens_than_a_prompt_has_are_not_tried() -> None:
    rng = np.random.default_rng(0)
    of_prompts = [np.sort(rng.random((DEPTH, n)), axis=-1)[:, ::-1] for n in (9, 40, 3000)]
    lowest = np.full((3, DEPTH), 0.9)
    lowest[:, 2] = 0.5
    probe = Probe(lowest, observe.padded(of_prompts, np.nan))
    tried: list[float] = []

    def evaluate(knobs: Any) -> stages.Tried:
        if knobs.get("middle"):
            tried.append(knobs["tokens_threshold"])
        return stages.Tried(0.0 if knobs.get("middle") else 0.9, {"pope": 0.0 if knobs.get("middle") else 0.9}, 1, 0.5)

    def found() -> stages.Calibrated:
        trial = stages.Trial(evaluate, {"pope": 0.9}, {"pope": 1000})
        return stages.calibrate([trial], lambda shallow: probe, Stages(1, (2,), 5, {}, {}), DEPTH)

    found()
    means = [float(f"{np.mean([norms[2, k] for norms in of_prompts]):.3g}") for k in (2, 4, 8)]
    assert set(tried) <= set(means)
    assert means[-1] in tried
    probe.norms[0, :, 2:] = np.nan
    assert "no norm threshold is tried where a prompt has fewer than 3 visual tokens" in found().notes


# ---------------------------------------------------------------------------------------------------- VTW and FitPrune


def test_vtw_is_calibrated_on_any_family(
    family: Family, data: tuple[DataSource, DataSource], finished: Finished, tmp_path: Path
) -> None:
    file = configs.calibration_file("vtw", family.located.calibration)
    analyse(asking(family, data, tmp_path / "out", method="vtw", eta=100.0, config=file))
    assert family.located.method("vtw", budgets.parse("calibrated")).knobs()["layer"] == 5
    document = json.loads((tmp_path / "out" / "vtw.json").read_text())
    assert document["divergence"]["5"] == pytest.approx(_divergence(family, data[1], tmp_path), rel=1e-3)


@torch.inference_mode()
def _divergence(family: Family, source: DataSource, folder: Path) -> float:
    """The mean of KL(withdrawn || full) where visual tokens leave at layer 5, from single prompts under attach()."""
    found = []
    method = family.located.method("vtw", budgets.parse(None), {"layer": 5})
    for prompt in asker(family, source, folder).prompts:
        image = prompt.images[0].load()
        ids = torch.tensor([family.loaded.prompt_ids(prompt.text, ((image.height, image.width),))])
        given = {"input_ids": ids, **family.loaded.made(image)}
        if family.loaded.adapter.axes == 3:
            given["mm_token_type_ids"] = (ids == family.loaded.image_token_id).int()
        full = family.loaded.model(**given).logits[0, -1].double().log_softmax(-1)
        with attach(family.loaded.model, method):
            gone = family.loaded.model(**given).logits[0, -1].double().log_softmax(-1)
        found.append(float((gone.exp() * (gone - full)).sum()))
    return sum(found) / len(found)


def test_vtws_bound_is_the_official_one_of_a_family(family: Family) -> None:
    tiled = family.located.usual.images[0].cut != (0, 0)
    assert tiled == (type(family.loaded.adapter).__name__ == "LlavaNextAdapter")
    assert calibrate.bound(family.located) == (ETA_NEXT if tiled else ETA)
    assert calibrate.bound(locate_model("mini", "cpu")) == ETA
    assert ETA_NEXT < ETA_13B < ETA


def test_fitprune_says_why_it_is_not_calibrated_before_weights_are_read(
    family: Family, data: tuple[DataSource, DataSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load.Located, "load", lambda self: pytest.fail("weights were read"))
    said = refused(lambda: analyse(asking(family, data, tmp_path / "out", method="fitprune")))
    assert "counts the tokens that leave in each layer" in said
    assert "25%" in said
    assert "\n" not in said


# --------------------------------------------------------------------------------------------------- places of a prompt


@pytest.mark.parametrize("layer0", ["merge", "half"])
def test_visipruners_sink_and_half_are_those_of_each_prompt(
    family: Family,
    data: tuple[DataSource, DataSource],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layer0: str,
) -> None:
    """The paper's column 35 is each prompt's first visual token, and column 611 the first text behind its last one."""
    asked = asker(family, data[0], tmp_path)
    counts = observe.observe(asked)[0]["n_visual"].tolist()
    edits: dict[str, Any] = {}
    own = VisiPruner.edit_attention

    def grab(self: VisiPruner, run: Any, layer: int) -> Any:
        found = own(self, run, layer)
        if layer == 0 and run.layout.after.any():
            edits.update({key: (found[1], row, run.layout) for row, key in enumerate(run.samples)})
        return found

    monkeypatch.setattr(VisiPruner, "edit_attention", grab)
    asked.ask(family.located.method("visipruner", budgets.parse("native"), {"layer0": layer0}))
    for key, n in zip(asked.keys, counts, strict=True):
        edit, row, layout = edits[key]
        columns = layout.visual[row].nonzero().flatten()
        assert len(columns) == n
        assert layout.after[row].nonzero()[0] == columns[-1] + 1
        if layer0 == "merge":
            assert (edit.how, edit.sink) == ("redirect", 0)
            assert layout.visual_tokens.columns[row, edit.sink] == columns[0]
        else:
            assert edit.cols[row].tolist() == [i < n // 2 for i in range(len(edit.cols[row]))]


def test_a_sink_that_a_smaller_prompt_lacks_is_refused_with_its_name(
    family: Family, data: tuple[DataSource, DataSource], tmp_path: Path
) -> None:
    asked = asker(family, data[0], tmp_path)
    counts = observe.observe(asked)[0]["n_visual"].tolist()
    most = family.located.usual.n_visual
    assert min(counts) < most
    method = family.located.method("visipruner", budgets.parse("native"), {"sink": min(counts)})
    said = refused(lambda: asked.ask(method))
    assert f"expected a sink from 0 to {min(counts) - 1} (visual tokens present now), found {min(counts)}" in said
