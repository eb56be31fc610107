"""The analysis: what the eye sees, what knock-outs do, data that is no test data, and the command from end to end."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import IMAGE_TOKEN, prompts, tiny_llava
from typer.testing import CliRunner

from harness.analysis import asker, derive, eye, observe, stages, study, text
from harness.analysis.asker import knockout
from harness.analysis.eye import Observer
from harness.analysis.stages import TEXT, VISION, Calibrated, Cut, Tried
from harness.analysis.study import AnalysisRequest, analyse, check_answers
from harness.cli import app
from harness.core.errors import PrunebenchError
from harness.core.paths import TOP as REPOSITORY
from harness.engine.attach import attach
from harness.engine.attention import LayerAttention
from harness.engine.prefix import PrefixCache
from harness.method import Attention, Method, Run
from harness.models import config as model_config
from harness.models import load
from harness.models.adapters import adapter_for
from harness.models.load import locate_model
from harness.runner.answering import Answerer, Prompt
from methods.knockout import Knockout
from tasks import calibration
from tasks.mini import data as mini_data
from tasks.mini import world
from tasks.sources import DataSource

DEPTH = 4
LEAST = study.LEAST_SCORE


@pytest.fixture(scope="module", autouse=True)
def _knobs_of_random_models() -> Iterator[None]:
    """The tiny models here answer nothing right, and the derivation is tested on them all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "LEAST_SCORE", 0.0)
        yield


QUESTIONS = ([20, 21, 22], [23, 24, 25, 26, 27, 28], [29])


def seen(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """What the observer sees of each row, and the model's last logits."""
    adapter = adapter_for(model)
    observer = Observer(adapter=adapter)
    with torch.inference_mode(), eye.watching(adapter, observer), attach(model, observer) as run:
        run.samples = [str(i) for i in range(len(inputs["input_ids"]))]
        logits = model(**inputs).logits[:, -1]
    return [observer.into.samples[str(i)] for i in range(len(logits))], logits


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_masses_are_those_of_eager_attention_and_sum_to_one(kv_heads: int) -> None:
    model, inputs = tiny_llava(DEPTH, kv_heads=kv_heads), prompts(*QUESTIONS)
    rows, _ = seen(model, inputs)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        attentions = model(**inputs, output_attentions=True).attentions
    for row, found in enumerate(rows):
        assert np.allclose(found["mass_last"].sum(-1), 1, atol=1e-5)
        assert np.allclose(found["mass_question"].sum(-1), 1, atol=1e-5)
        ids, mask = inputs["input_ids"][row], inputs["attention_mask"][row].bool()
        visual = ids == IMAGE_TOKEN
        last_visual = int(visual.nonzero()[-1])
        after = torch.arange(len(ids)) > last_visual
        for layer in range(DEPTH):
            probs = attentions[layer][row]
            on = probs[:, -1, visual]
            assert found["mass_last"][layer, 0] == pytest.approx(float(on.sum(-1).mean()), abs=1e-5)
            assert found["mass_last"][layer, 1] == pytest.approx(
                float(probs[:, -1, mask & ~visual & ~after].sum(-1).mean()), abs=1e-5
            )
            assert found["mass_question"][layer, 2] == pytest.approx(
                float(probs[:, after][:, :, after].sum(-1).mean()), abs=1e-5
            )
            assert np.allclose(found["attention_last"][layer], on.mean(0).numpy(), atol=1e-5)
            share = on / on.sum(-1, keepdim=True)
            assert found["entropy_last"][layer] == pytest.approx(float(-(share * share.log()).sum(-1).mean()), abs=1e-4)
    assert len({round(float(r["mass_last"][0, 0]), 4) for r in rows}) == 3, (
        "rows that all look alike would prove nothing"
    )


def test_the_lens_behind_the_last_layer_is_the_model_itself() -> None:
    model = tiny_llava(DEPTH)
    rows, logits = seen(model, prompts(*QUESTIONS))
    probs = logits.softmax(-1)
    for row, found in enumerate(rows):
        assert found["lens_top"].shape == (DEPTH + 1,)
        assert found["value_lens_top"].shape == (DEPTH,)
        assert int(found["lens_top"][-1]) == int(probs[row].argmax())
        assert found["lens_answer_p"][-1] == pytest.approx(float(probs[row].max()), rel=1e-5)
    assert any(r["lens_top"][0] != r["lens_top"][-1] for r in rows)


def test_the_value_output_lens_reads_what_attention_writes() -> None:
    model, inputs = tiny_llava(DEPTH), prompts(*QUESTIONS)
    rows, logits = seen(model, inputs)
    written = {}
    handles = [
        layer.self_attn.register_forward_hook(lambda m, a, out, l=l: written.__setitem__(l, out[0][:, -1]))
        for l, layer in enumerate(adapter_for(model).layers)
    ]
    with torch.inference_mode():
        model(**inputs)
    for handle in handles:
        handle.remove()
    answer = logits.argmax(-1)
    for layer in range(DEPTH):
        with torch.inference_mode():
            probs = model.lm_head(model.model.language_model.norm(written[layer])).softmax(-1)
        for row, found in enumerate(rows):
            assert found["value_lens_answer_p"][layer] == pytest.approx(
                float(probs[row, answer[row]]), rel=1e-3, abs=1e-6
            )


def test_numbers_do_not_depend_on_the_batch() -> None:
    model, inputs = tiny_llava(DEPTH), prompts(*QUESTIONS)
    together, _ = seen(model, inputs)
    for row, question in enumerate(QUESTIONS):
        one = prompts(question)
        one["pixel_values"] = inputs["pixel_values"][row : row + 1]
        alone = seen(model, one)[0][0]
        for name, values in alone.items():
            assert np.allclose(together[row][name], values, rtol=1e-3, atol=1e-5), name


def test_sinks_by_norm_and_by_place() -> None:
    n, depth, v = 6, 2, 40
    rng = np.random.default_rng(0)
    arrays = {
        "attention_last": rng.random((n, depth, v)) * 0.01,
        "state_norm": np.ones((n, depth, v)),
        "value_l1": np.ones((n, depth, v)),
        "value_l2": np.full((n, depth, v), 2.0),
        "contribution": rng.random((n, depth, v)),
        "cosine": rng.random((n, depth, v)),
        "n_visual": np.full(n, v),
    }
    arrays["state_norm"][0, 0, 3] = 3.5  # one sample's outlier
    arrays["attention_last"][:, 1, 7] = 0.5  # a place that every sample attends
    arrays["attention_last"][2, 1, 9] = 0.9  # what one sample attends is no sink
    arrays["value_l2"][:, 1, 7] = 0.25
    found = observe._with_sinks(arrays)
    assert found["n_sinks"].tolist() == [[1, 1], *[[0, 1]] * 5]
    assert found["sink_share"][1, 0] == 0
    assert found["sink_share"][1, 1] > 0.5
    assert found["value_l2_sink"][1, 1] == 0.25
    assert found["value_l2_other"][1, 1] == 2.0
    assert np.isnan(found["value_l2_sink"][1, 0])


# ------------------------------------------------------------------------------------------------------------ knock-out


def logits_under(model: Any, method: Method, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode(), attach(model, method):
        return model(**inputs).logits[:, -1]


def test_cutting_all_visual_attention_takes_away_all_that_vision_does() -> None:
    model, inputs = tiny_llava(DEPTH), prompts(*QUESTIONS)
    other = {
        **inputs,
        "pixel_values": torch.randn(inputs["pixel_values"].shape, generator=torch.Generator().manual_seed(9)),
    }
    plain = logits_under(model, Method(), inputs)
    assert (plain - logits_under(model, Method(), other)).abs().max() > 1e-2, "the image must matter"
    cut = Knockout(start=0, stop=DEPTH)
    assert torch.allclose(logits_under(model, cut, inputs), logits_under(model, cut, other), atol=1e-5)
    gone = logits_under(model, Knockout(drop_from=0), inputs)
    assert torch.allclose(logits_under(model, cut, inputs), gone, atol=1e-5)
    assert (plain - gone).abs().max() > 1e-2


@pytest.mark.parametrize("layer", range(DEPTH))
def test_text_cut_up_to_the_last_layer_is_vision_leaving(layer: int) -> None:
    model, inputs = tiny_llava(DEPTH), prompts(*QUESTIONS)
    left = knockout(Cut(TEXT, layer, DEPTH), DEPTH)
    assert left == Knockout(drop_from=layer), "the cheaper of two equal runs"
    assert torch.allclose(
        logits_under(model, Knockout(start=layer, stop=DEPTH), inputs), logits_under(model, left, inputs), atol=1e-5
    )


def test_vision_cut_leaves_each_visual_token_alone_with_the_text_before_it() -> None:
    model, inputs = tiny_llava(DEPTH), prompts(QUESTIONS[0])

    class Grab(Knockout):
        def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
            assert isinstance(attn, LayerAttention)
            outputs.append(attn._out[0, :, run.layout.visual[0]])

    ids = inputs["input_ids"][0]
    before = int((ids == IMAGE_TOKEN).nonzero()[0])
    outputs: list[torch.Tensor] = []
    logits_under(model, Grab(start=1, stop=2, text_to_vision=False, vision_to_vision=True), inputs)
    probs_only_text = outputs[1]
    # what a visual token gets in the cut layer is a mixture of the values of the text before the image
    values: list[torch.Tensor] = []

    class Values(Method):
        def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
            assert isinstance(attn, LayerAttention)
            values.append(attn._v[0, :, :before])

    logits_under(model, Values(), inputs)
    for head in range(values[1].shape[0]):
        basis = values[1][head]
        weights = torch.linalg.lstsq(basis.T, probs_only_text[head].T).solution
        assert torch.allclose(basis.T @ weights, probs_only_text[head].T, atol=1e-4)
        assert torch.allclose(weights.sum(0), torch.ones(weights.shape[1]), atol=1e-3)
    plain = outputs.copy()
    outputs.clear()
    logits_under(model, Grab(), inputs)
    assert not torch.allclose(plain[1], outputs[1], atol=1e-2)
    assert torch.allclose(plain[0], outputs[0], atol=1e-5), "layers outside the cut are as they were"


def test_cut_prefixes_are_shared_only_between_equal_cuts() -> None:
    vision = {"text_to_vision": False, "vision_to_vision": True}
    keys = [Knockout(start=a, stop=b, **vision).prefix_key() for a, b in ((0, 1), (1, 2), (0, 2))]  # type: ignore[arg-type]
    keys.append(Knockout(start=0, stop=1, how="zero", **vision).prefix_key())  # type: ignore[arg-type]
    assert len(set(keys)) == 4
    assert "" not in keys
    assert Knockout(start=0, stop=2).prefix_key() == "", "text behind the image changes nothing of it"
    assert Knockout(start=0, stop=0, **vision).prefix_key() == ""  # type: ignore[arg-type]


def test_shared_prefixes_do_not_change_answers_under_cuts() -> None:
    loaded = locate_model("mini", "cpu").load()
    from tasks import lmms

    task = lmms.load_task("textvqa", DataSource.parse("mini"), 3, 0)
    ask = [Prompt.of_one(s.key, s.prompt, s.load_image, s.image_key, 3) for s in task.samples]
    plain = {a.key: a.text for a in Answerer(loaded, Method()).answer(ask)}
    changed = 0
    for cut in (Cut(VISION, 0, 4), Cut(TEXT, 1, 12)):
        method = knockout(cut, 12)
        alone = {a.key: a.text for a in Answerer(loaded, method, batch_size=1).answer(ask)}
        shared = {a.key: a.text for a in Answerer(loaded, method, batch_size=3, prefixes=PrefixCache()).answer(ask)}
        assert alone == shared
        changed += alone != plain
    assert changed, "cuts that change nothing prove nothing"


# ----------------------------------------------------------------------------------------------------- calibration data


def test_fresh_scenes_are_none_of_the_test_or_training_scenes(tmp_path: Path) -> None:
    source = calibration.mini(tmp_path / "a", 6)
    assert calibration.check_disjoint(("gqa", "mme", "pope", "textvqa"), source, DataSource.parse("mini")) == sum(
        mini_data.IMAGES.values()
    )
    assert source.root is not None
    first = world.TEST_SEED_BASE + 4 * calibration.MINI_SEED * mini_data.SEED_RANGE
    names = pd.read_parquet(next((source.root / "POPE").rglob("*.parquet")))["image_source"]
    assert all(int(n.removeprefix("mini_")) >= first - world.TEST_SEED_BASE for n in names)
    again = calibration.mini(tmp_path / "b", 6)
    assert again.root is not None
    assert (source.root / "manifest.json").read_text() == (again.root / "manifest.json").read_text()


def test_test_images_are_refused_by_name_and_by_content(tmp_path: Path) -> None:
    mini = DataSource.parse("mini")
    with pytest.raises(PrunebenchError, match="carry a name of the test data"):
        calibration.check_disjoint(("pope",), mini, mini)
    fresh = calibration.mini(tmp_path, 6)
    assert fresh.root is not None
    file = next((fresh.root / "POPE").rglob("*.parquet"))
    assert mini.root is not None
    rows, test = pd.read_parquet(file), pd.read_parquet(next((mini.root / "POPE").rglob("*.parquet")))
    rows.at[len(rows) - 1, "image"] = test.at[3, "image"]
    rows.to_parquet(file)
    with pytest.raises(PrunebenchError, match="is one of pope's test images"):
        calibration.check_disjoint(("pope",), fresh, mini)
    # across tasks too
    with pytest.raises(PrunebenchError, match="is one of pope's test images"):
        calibration.check_disjoint(("pope", "mme"), fresh, mini)


class _Stream(list[dict[str, Any]]):
    def cast_column(self, name: str, kind: object) -> "_Stream":
        return self

    def select_columns(self, names: list[str]) -> "_Stream":
        return _Stream({k: row[k] for k in names} for row in self)


def test_hub_calibration_reads_other_splits_and_only_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked = []
    image = {"bytes": b"x", "path": None}

    def load_dataset(hub_id: str, name: str | None, *, split: str, token: object, streaming: bool) -> _Stream:
        assert streaming
        asked.append((hub_id, name, split))
        if name == "val_balanced_images":
            return _Stream({"id": f"i{k}", "image": image} for k in range(50))
        if name == "val_balanced_instructions":
            return _Stream({"id": str(k), "imageId": f"i{k // 3}", "question": "q", "answer": "a"} for k in range(150))
        columns = {"question": "q", "answers": ["a"] * 10, "ocr_tokens": ["t"]}
        return _Stream({"question_id": k, "image_id": f"t{k // 2}", "image": image, **columns} for k in range(150))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = calibration.hub(tmp_path, ("gqa", "textvqa"), 8)
    assert {(name, split) for _, name, split in asked} == {
        ("val_balanced_instructions", "val"),
        ("val_balanced_images", "val"),
        (None, "train"),
    }
    from tasks import sources

    for task, images in (("gqa", 2), ("textvqa", 4)):
        rows = sources.read(sources.task_spec(task), source)
        assert len(set(rows.docs[sources.task_spec(task).group])) == images
        assert 6 <= len(rows.docs) <= 9
    with pytest.raises(PrunebenchError, match="test split only"):
        calibration.hub(tmp_path, ("pope",), 8)


# ----------------------------------------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 4 layers with the mini model's tokenizer, processor and image size: the whole command in
    seconds."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    folder = tmp_path_factory.mktemp("model") / "little"
    weights = REPOSITORY / "tasks" / "mini" / "weights"
    shutil.copytree(weights, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = LlavaConfig.from_pretrained(folder)
    text, vision = config.text_config, config.vision_config
    (
        text.hidden_size,
        text.intermediate_size,
        text.num_hidden_layers,
        text.num_attention_heads,
        text.num_key_value_heads,
    ) = (32, 48, 4, 2, 2)
    text.head_dim, text.initializer_range = 16, 0.2
    (
        vision.hidden_size,
        vision.intermediate_size,
        vision.num_hidden_layers,
        vision.num_attention_heads,
        vision.projection_dim,
    ) = (16, 24, 2, 2, 16)
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


def request(folder: Path, out: Path, **more: Any) -> AnalysisRequest:
    return AnalysisRequest(
        **{
            "model": str(folder),
            "tasks": ("mme", "pope"),
            "limit": 4,
            "data": "mini",
            "device": "cpu",
            "out": out,
            **more,
        }
    )


@pytest.fixture(scope="module")
def finished(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return analyse(
        request(
            model_folder, tmp_path_factory.mktemp("analysis"), config=tmp_path_factory.mktemp("config") / "little.yaml"
        )
    )


def test_the_document_keeps_its_contract(finished: Path) -> None:
    document = json.loads(finished.read_text())
    assert set(document) >= {
        "model",
        "fingerprint",
        "n_samples",
        "tasks",
        "command",
        "stages",
        "layers",
        "knockouts",
        "figures",
        "visipruner",
    }
    assert set(document["stages"]) == {"shallow_end", "fusion", "not_needed_from", "rule", "uncertainty"}
    assert [e["layer"] for e in document["layers"]] == [0, 1, 2, 3]
    for entry in document["layers"]:
        for rows in ("last", "question"):
            assert sum(entry[f"mass_{g}_{rows}"] for g in ("visual", "before", "after")) == pytest.approx(1, abs=1e-4)
        assert entry["mass_visual_last_low"] <= entry["mass_visual_last"] <= entry["mass_visual_last_high"]
        assert {
            "entropy",
            "sink_share",
            "value_norm_sink",
            "value_norm_other",
            "lens_top",
            "value_lens_top",
            "contribution",
        } <= set(entry)
        assert 0 < sum(share for _, share in entry["lens_top"]) <= 1 + 1e-6
    by_cut = {(k["kind"], k["start"], k["end"]): k for k in document["knockouts"]}
    assert len(by_cut) == len(document["knockouts"])
    assert {k for k, _, _ in by_cut} == {"none", TEXT, VISION, "leave"}
    assert by_cut["none", 0, 0]["flips"] == 0
    for layer in range(4):
        assert {(TEXT, layer, layer + 1), (VISION, layer, layer + 1), (TEXT, 0, layer + 1), (TEXT, layer, 4)} <= set(
            by_cut
        )
        assert {k: v for k, v in by_cut["leave", layer, 4].items() if k != "kind"} == {
            k: v for k, v in by_cut[TEXT, layer, 4].items() if k != "kind"
        }
    assert all(0 <= k["low"] <= k["accuracy"] <= k["high"] <= 1 for k in by_cut.values())


def test_tables_hold_every_sample(finished: Path) -> None:
    document = json.loads(finished.read_text())
    samples = pd.read_parquet(finished.parent / "samples.parquet")
    assert len(samples) == 4 * document["n_samples"]
    per_layer = samples.groupby("layer")["mass_visual_last"].mean()
    assert np.allclose(per_layer, [e["mass_visual_last"] for e in document["layers"]], atol=1e-5)
    cuts = pd.read_parquet(finished.parent / "knockouts.parquet")
    unpruned = cuts[cuts["kind"] == "none"].set_index("key")["answer"]
    for row in document["knockouts"]:
        mine = cuts[(cuts["kind"] == row["kind"]) & (cuts["start"] == row["start"]) & (cuts["end"] == row["end"])]
        if row["kind"] != "leave":
            assert (mine.set_index("key")["answer"] != unpruned).mean() == pytest.approx(row["flips"], abs=1e-5)
            assert mine["score"].mean() == pytest.approx(row["accuracy"], abs=1e-5)


def test_figures_are_small_described_and_the_same_each_time(finished: Path, tmp_path: Path) -> None:
    from harness.analysis.figures import draw

    document = json.loads(finished.read_text())
    assert [f["file"] for f in document["figures"]] == [
        "attention.svg",
        "lens.svg",
        "knockouts.svg",
        "contributions.svg",
    ]
    assert draw(document, tmp_path) == document["figures"]
    for figure in document["figures"]:
        assert len(figure["alt"]) > 80
        for name in (figure["file"], figure["png"]):
            assert (tmp_path / name).read_bytes() == (finished.parent / name).read_bytes()
            assert 2000 < (tmp_path / name).stat().st_size < 80_000


def test_an_interrupted_analysis_continues_and_says_the_same(
    finished: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = (finished.parent / "journal.jsonl").read_text().splitlines(keepends=True)
    # as if stopped in the middle of writing the tenth condition
    (tmp_path / "journal.jsonl").write_text("".join(journal[:10]) + journal[10][:30])
    asked = []
    whole = asker.Asker.ask
    monkeypatch.setattr(
        asker.Asker, "ask", lambda self, method, *a: asked.append(method.name) or whole(self, method, *a)
    )
    again = json.loads(analyse(request(model_folder, tmp_path, batch=3)).read_text())
    before = json.loads(finished.read_text())
    n_cuts = len(stages.cuts(4, 3))
    assert asked.count("knockout") == n_cuts - 8, "eight of nine whole entries are cuts, the first is the unpruned run"
    earlier = sum(len(json.loads(line)["answers"]) for line in journal[1:10])
    assert again["cost"]["answers_from_an_earlier_run"] == earlier > 0, "the seconds are of this run"
    assert again["cost"]["answers"] + earlier == before["cost"]["answers"]
    assert before["cost"]["answers_from_an_earlier_run"] == 0
    for key in ("stages", "knockouts"):
        assert again[key] == before[key]
    for mine, theirs in zip(again["layers"], before["layers"], strict=True):
        assert mine["mass_visual_last"] == pytest.approx(theirs["mass_visual_last"], rel=1e-3), "batches of 3 and of 8"
        assert mine["contribution"]["norm_max"] == pytest.approx(theirs["contribution"]["norm_max"], rel=1e-3)


def test_a_journal_of_another_analysis_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    assert asker._read_journal(file, "one") == ({}, {})
    with file.open("a") as out:
        out.write(asker._line("unpruned", {"a": "yes"}, {"flops": 1.0}))
    assert asker._read_journal(file, "one") == ({"unpruned": {"a": "yes"}}, {"unpruned": {"flops": 1.0}})
    assert asker._read_journal(file, "two") == ({}, {})
    assert asker._read_journal(file, "one") == ({}, {})


def test_restricted_layers_give_knockouts_and_no_stages(model_folder: Path, tmp_path: Path) -> None:
    document = json.loads(analyse(request(model_folder, tmp_path, tasks=("mme",), layers="1-2")).read_text())
    assert document["stages"] == {}
    assert {(k["start"], k["end"]) for k in document["knockouts"]} == {(0, 0), (1, 2), (2, 3), (1, 3)}
    assert not (tmp_path / "visipruner.yaml").exists()
    assert text.report(document)


def test_the_config_is_what_a_calibrated_budget_reads(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads(finished.read_text())
    stages_on = {"shallow": True, "shallow_mid_layer": 2, "middle": True, "deep": True}
    knobs = {**stages_on, "layer_threshold": 0.97, "tokens_threshold": 1.25, "exit_threshold": 0.98}
    derived = Calibrated(
        knobs, Tried(0.9, {"mme": 0.91}, 12.0, 0.4), {"mme": 0.915}, (), "stated: a criterion", ("a note: one",)
    )
    monkeypatch.setattr(model_config, "MODEL_CONFIGS", tmp_path / "configs" / "models")
    file = model_config.calibration_file("visipruner", "owner/little")
    derive.write_config(file, derived, document)
    assert model_config.calibrated_knobs("visipruner", "owner/little") == knobs
    first = file.read_bytes()
    derive.write_config(file, derived, document)
    assert file.read_bytes() == first
    text = file.read_text()
    for said in (document["command"], document["fingerprint"], "stated: a criterion", "a note: one", "disjoint"):
        assert said in text


@contextmanager
def refused(match: str) -> Iterator[None]:
    with pytest.raises(PrunebenchError, match=match):
        yield


def test_bad_input_is_refused_before_weights_are_read(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load.Located, "load", lambda self: pytest.fail("weights were read"))
    for layers in ("2-4", "9", "3-1"):
        with refused("within 0 to 3"):
            analyse(request(model_folder, tmp_path, layers=layers))
    with refused("expected first-last"):
        analyse(request(model_folder, tmp_path, layers="all"))
    with refused("unknown task"):
        analyse(request(model_folder, tmp_path, tasks=("gqq",)))
    with refused("no task"):
        analyse(request(model_folder, tmp_path, tasks=()))
    with refused("batch=0"):
        analyse(request(model_folder, tmp_path, batch=0))
    with refused("carry a name of the test data"):
        analyse(request(model_folder, tmp_path, tasks=("pope",), calibration_data=str(mini_data.FOLDER)))
    copy = tmp_path / "copy"
    shutil.copytree(mini_data.FOLDER, copy)
    with refused("data that is no test data"):
        analyse(request(model_folder, tmp_path, data=str(copy), config=tmp_path / "c.yaml"))
    with refused("mini world"):
        analyse(request(model_folder, tmp_path, data=str(copy), calibration_data="fresh"))
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["Gemma3ForConditionalGeneration"]}))
    with refused("supports LlavaForConditionalGeneration"):
        analyse(request(other, tmp_path))
    done = CliRunner().invoke(app, ["analyze", "mini", "--layers", "30-40", "--out", str(tmp_path / "o")])
    assert isinstance(done.exception, PrunebenchError)


def test_observer_and_probe_are_no_registered_methods() -> None:
    from harness.method import registered

    assert {"observer"}.isdisjoint(registered())
    assert registered()["visipruner"] is not eye.ShallowProbe
    assert dataclasses.is_dataclass(eye.ShallowProbe)


@pytest.mark.parametrize("score", [0.0, 0.01, 0.0999, float("nan")])
def test_no_knobs_are_derived_from_a_model_that_answers_nothing_right(
    score: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "LEAST_SCORE", LEAST)
    with pytest.raises(PrunebenchError, match=r"^blank answers .*% of 143 questions right.* from 10 % on"):
        check_answers("blank", score, 143)


@pytest.mark.parametrize("score", [0.1, 0.5, 1.0])
def test_knobs_are_derived_from_a_model_that_answers(score: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "LEAST_SCORE", LEAST)
    check_answers("fit", score, 143)
