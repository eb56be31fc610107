"""The mini Qwen: its files pass every check of the loader, the bare model computes what the training computed, and it
is trained, exported and evaluated as the mini model is. Weights are random here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import run
from transformers import Qwen2_5_VLForConditionalGeneration

from harness.core.errors import PrunebenchError
from harness.models import config as configs
from harness.models.load import locate_model
from harness.store.store import Store
from tasks.mini import questions, symbols, train, world
from tasks.mini.qwen import export
from tasks.mini.qwen import model as mini
from tasks.mini.qwen import train as qwen


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported random weights, in a folder as tasks/mini/qwen/weights."""
    folder = tmp_path_factory.mktemp("qwen")
    torch.manual_seed(0)
    model: Any = Qwen2_5_VLForConditionalGeneration(mini.config(mini.build_tokenizer()))
    with torch.no_grad():
        for layer in model.model.language_model.layers:  # attention that depends on places, as a trained one's does
            layer.self_attn.q_proj.weight.mul_(12)
            layer.self_attn.k_proj.weight.mul_(12)
    torch.save({"modules": {"qwen": model.state_dict()}}, folder / "joint.pt")
    export.export(folder / "joint.pt", folder / "weights")
    return folder / "weights"


@pytest.fixture
def shipped(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the shipped model `mini-qwen`."""
    shutil.copytree(configs.MODEL_CONFIGS, tmp_path / "configs" / "models")
    file = tmp_path / "configs" / "models" / "mini-qwen.yaml"
    text = file.read_text()
    assert "path: tasks/mini/qwen/weights " in text
    file.write_text(text.replace("path: tasks/mini/qwen/weights ", f"path: {weights} "))
    monkeypatch.setattr(configs, "MODEL_CONFIGS", file.parent)
    return weights


# ------------------------------------------------------------------------------------------------------------ the files


def test_files_are_small_greedy_and_end_where_the_training_does(weights: Path) -> None:
    located = locate_model(str(weights), "cpu")
    assert located.shape.depth == mini.N_LAYERS
    assert sum(p.stat().st_size for p in weights.iterdir()) < 10e6
    model = located.load().model
    settings = model.generation_config
    assert (settings.do_sample, settings.eos_token_id, settings.pad_token_id) == (False, 2, 3)
    processor = export.processor()
    assert processor.image_token == mini.IMAGE_TOKEN
    assert processor.image_token_id == model.config.image_token_id
    assert processor.tokenizer.get_vocab() == mini.build_tokenizer().get_vocab()


def test_the_name_and_the_folder_are_the_shipped_model(shipped: Path) -> None:
    for name in ("mini-qwen", str(shipped)):
        located = locate_model(name, "cpu")
        assert (located.config.name, located.config.stands_for) == ("mini-qwen", "mini-qwen")
        assert located.config.knobs == {"fastv": {"boundary": 2}}


def test_export_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(PrunebenchError, match="dev mini train --model mini-qwen"):
        export.export(tmp_path / "joint.pt", tmp_path / "out")


# ------------------------------------------------------------------------------- what was trained is what is computed


def asked_of(scene: world.Scene, monkeypatch: pytest.MonkeyPatch) -> tuple[symbols.PackedBatch, list[str]]:
    """Two packed questions about a scene in lmms-eval's prompt, and their texts."""
    import random

    drawn: list[questions.WorldQuestion] = []

    def spy(*args: Any) -> questions.WorldQuestion | None:
        found = questions.ask(*args)
        drawn.extend([found] if found else [])
        return found

    with monkeypatch.context() as patch:
        patch.setattr(symbols, "questions", type("Asking", (), {**vars(questions), "ask": staticmethod(spy)}))
        vocab = mini.QwenVocabulary(mini.build_tokenizer())
        packed = symbols.pack(vocab, random.Random(3), [scene], 2, {"exist": 1.0}, -1, False, 1.0)
    return packed, [q.text + questions.POST_PROMPT for q in drawn]


@torch.no_grad()
def test_the_bare_model_through_the_processor_is_the_packed_training(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = next(s for s in range(1, 99) if len(set(world.lattice_of(s))) == 2)
    scene = world.make_scene(seed, lattice=world.lattice_of(seed))
    packed, texts = asked_of(scene, monkeypatch)
    model = locate_model(str(weights), "cpu", "float32").load().model
    processor, vocab = export.processor(), mini.QwenVocabulary(mini.build_tokenizer())
    n = scene.grid[0] * scene.grid[1]
    bare = []
    for segment, text in enumerate(texts):
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
        inputs = processor(text=[prompt], images=[world.render(scene)], return_tensors="pt")
        first = int(packed.answer[0, segment].nonzero()[0])
        ids = [*vocab.prefix, *[model.config.image_token_id] * n, *packed.ids[0, segment, : first + 1].tolist()]
        assert inputs["input_ids"][0].tolist() == ids
        bare.append(model(**inputs).logits[0, -1])
    seen = model.model.visual(
        **qwen.jpeg_inputs(mini.image_processor(), [scene], False),
    ).pooler_output
    visual = torch.zeros(1, packed.visual.shape[1], mini.mini.HIDDEN)
    visual[0, :n] = seen
    model.model.language_model.set_attn_implementation("packed")
    logits, _ = qwen.forward_packed(model.model.language_model, vocab, packed, visual)
    per_segment = packed.answer[0].sum(1).tolist()
    ours = torch.stack([logits[0], logits[per_segment[0]]])
    assert (ours - torch.stack(bare)).abs().max() < 1e-4
    # the same scene taken for one of other sides: other rows and columns
    turned = packed._replace(scenes=[world.Scene(0, (), (), (scene.lattice[1], scene.lattice[0]))])
    other, _ = qwen.forward_packed(model.model.language_model, vocab, turned, visual)
    assert (other[0] - bare[0]).abs().max() > 1e-2


# --------------------------------------------------------------------------------------------------------- the training


def test_every_phase_makes_a_step_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["--out", str(tmp_path), "--device", "cpu", "--images", "1", "--save-every", "1"]
    for phase in qwen.PHASES:
        train.main([*ask, "--phase", phase, "--steps", "1"], "mini-qwen")
        before = torch.load(tmp_path / f"{phase}.pt", weights_only=True)
        assert before["step"] == 1
        train.main([*ask, "--phase", phase, "--steps", "2"], "mini-qwen")
        assert f"{phase}: continues at step 1 of 2" in capsys.readouterr().out
        after = torch.load(tmp_path / f"{phase}.pt", weights_only=True)
        name, module = next(iter(after["modules"].items()))
        assert any(not torch.equal(value, before["modules"][name][key]) for key, value in module.items()), phase
    export.export(tmp_path / "joint.pt", tmp_path / "weights")
    assert locate_model(str(tmp_path / "weights"), "cpu").shape.depth == mini.N_LAYERS


def test_phases_are_those_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model, phase in (("mini", "symbols"), ("mini-qwen", "crowd")):
        with pytest.raises(SystemExit):
            train.main(["--out", str(tmp_path), "--phase", phase], model)
        assert f"invalid choice: '{phase}'" in capsys.readouterr().err


def test_the_maintainers_command_knows_both_models(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, _, err = run(capsys, monkeypatch, "dev", "mini", "export", "--model", "mini-qwen", str(tmp_path))
    assert code == 2
    assert "dev mini train --model mini-qwen" in err
    code, _, err = run(capsys, monkeypatch, "dev", "mini", "train", "--model", "minni", "--out", str(tmp_path))
    assert code == 2
    assert "minni" in err
    code, _, err = run(capsys, monkeypatch, "dev", "mini", "clip", "--model", "mini-qwen")
    assert code == 2
    assert "no text tower" in err


# ------------------------------------------------------------------------------------------------------- the evaluation


def test_it_is_evaluated_on_its_own_data_at_a_share_of_each_prompt(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    ask = ("eval", "--model", "mini-qwen", "--method", "fastv", "--budget", "25%", "--tasks", "gqa", "--limit", "12")
    code, out, err = run(capsys, monkeypatch, *ask, "--results", str(results))
    assert code == 0, err
    assert "mini-qwen data" in out
    frame = pd.read_csv(results / "leaderboard.csv").set_index("method")
    assert (frame["answered"] == 12).all()
    assert frame.loc["fastv", "kept"] == pytest.approx(frame.loc["none", "kept"] / 4, abs=1)
    cells = {sealed.cell.method: sealed for sealed in Store(results).cells()}
    assert {sealed.cell.model for sealed in cells.values()} == {"mini-qwen"}
    grids = cells["none"].provenance["grids"]
    assert len(grids) == 2, "two images of other sizes"
    from harness.tables.relevant import relevant

    whole, pruned = relevant(cells["none"]), relevant(cells["fastv"])
    assert whole is not None
    assert pruned is not None
    assert whole.kept == 100.0 > pruned.kept
