"""`prunebench.prune`: names, budgets and knobs on a model of transformers; refusals of one line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from tiny import prompts, tiny_llava

import harness.method
import prunebench
from harness.core.errors import PrunebenchError
from harness.engine.attach import attach
from harness.method import source_of
from harness.models import config as model_config
from harness.models import load
from methods.fastv import FastV

CENTRE = Path(__file__).parents[1] / "examples" / "centre.py"
INPUTS = prompts([20, 21], [22, 23, 24])


@pytest.fixture(scope="module")
def llava() -> Any:
    return tiny_llava(depth=6)


@torch.inference_mode()
def last_logits(model: Any, **inputs: Any) -> torch.Tensor:
    out: torch.Tensor = model(**(inputs or INPUTS)).logits[:, -1]
    return out


def pruned(model: Any, *asked: Any, **knobs: Any) -> tuple[torch.Tensor, prunebench.Costs]:
    with prunebench.prune(model, *asked, **knobs) as run:
        logits = last_logits(model)
        return logits, run.costs()


def test_a_name_and_a_budget_prune_and_the_model_is_whole_again(llava: Any) -> None:
    before = last_logits(llava)
    logits, costs = pruned(llava, "fastv", 4, boundary=2)
    assert costs["kept"] == (4, 4)
    assert costs["n_visual"] == (16, 16)
    assert costs["mean_visual"] == (8.0, 8.0)
    assert not torch.allclose(logits, before, atol=1e-4)
    assert torch.equal(last_logits(llava), before)
    with attach(llava, FastV(keep=4, boundary=2)):
        assert torch.equal(last_logits(llava), logits)


@pytest.mark.parametrize(
    ("asked", "kept"),
    [((64,), 16), ((4,), 4), (("4",), 4), (("25%",), 4), (("native",), None), (("8avg",), None), (("0.9flops",), None)],
)
def test_every_spelling_of_a_budget_works(llava: Any, asked: tuple[Any, ...], kept: int | None) -> None:
    if asked == (64,):
        with refused("expected 1 to 16"):
            pruned(llava, "fastv", *asked)
        return
    costs = pruned(llava, "fastv", *asked)[1]
    assert kept is None or costs["kept"] == (kept, kept)
    if asked == ("8avg",):
        assert abs(costs["mean_visual"][0] - 8) <= 0.5


def test_a_share_of_the_flops_is_solved_at_the_text_that_is_named(llava: Any) -> None:
    costs = pruned(llava, "fastv", "0.6flops", text_tokens=5)[1]
    assert costs["n_text"][0] == 5
    assert abs(costs["prefill_dense_flops"][0] / costs["prefill_unpruned_flops"][0] - 0.6) < 0.02


def test_a_method_comes_as_a_name_a_file_a_class_or_an_object(llava: Any) -> None:
    reference = pruned(llava, "fastv", 4)[0]
    assert torch.equal(pruned(llava, FastV, 4)[0], reference)
    assert torch.equal(pruned(llava, FastV(keep=4))[0], reference)
    assert pruned(llava, f"{CENTRE}:Centre", 4)[1]["kept"] == (4, 4)


def test_costs_are_named_columns_of_the_batch(llava: Any) -> None:
    costs = pruned(llava, "fastv", 4)[1]
    frame = pd.DataFrame(dict(costs))
    assert len(frame) == 2
    assert {"kept", "mean_visual", "prefill_dense_flops", "prefill_unpruned_flops", "kv_bytes"} <= set(frame)
    assert (frame["prefill_dense_flops"] < frame["prefill_unpruned_flops"]).all()
    assert list(frame["n_text"]) == [5, 6]
    # the batch as it ran has the padding of the shorter row, and FastV's own attention call
    assert costs.prefill_executed_flops >= frame["prefill_dense_flops"].sum()
    assert costs.decode_executed_flops == 0
    assert "kept" in str(costs)


def test_generating_counts_the_steps(llava: Any) -> None:
    with torch.inference_mode(), prunebench.prune(llava, "fastv", 4) as run:
        out = llava.generate(**INPUTS, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        costs = run.costs()
        assert [stage.keep.sum() for stage in run.stages(0)] == [16, 4]
    assert out.shape[1] == INPUTS["input_ids"].shape[1] + 4
    assert costs["decode_flops"][0] > 0
    assert costs.decode_executed_flops >= sum(costs["decode_flops"])


def test_knobs_stated_for_a_checkpoint_hold(llava: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stated = model_config.ModelConfig(name="tiny", hub="org/tiny", knobs={"fastv": {"boundary": 5}})
    monkeypatch.setattr("harness.library.pruning.config_of_checkpoint", lambda source: stated)
    assert pruned(llava, "fastv", 4)[1]["mean_visual"][0] == (5 * 16 + 4) / 6
    assert pruned(llava, "fastv", 4, boundary=1)[1]["mean_visual"][0] == (16 + 5 * 4) / 6


def test_a_loaded_checkpoint_is_known_by_its_folder_or_hub_id() -> None:
    folder = model_config.model_config("mini").folder
    assert folder is not None
    known = {source: model_config.config_of_checkpoint(source) for source in (str(folder), "llava-hf/llava-1.5-13b-hf")}
    assert [config and config.name for config in known.values()] == ["mini", "llava-1.5-13b"]
    assert model_config.config_of_checkpoint("org/other") is None
    assert model_config.config_of_checkpoint("") is None


# ---------------------------------------------------------------------------------------------------------- refusals


def refused(match: str) -> Any:
    return pytest.raises(PrunebenchError, match=match)


@pytest.mark.parametrize(
    ("asked", "knobs", "match"),
    [
        (("fastw", 4), {}, "did you mean 'fastv'"),
        ((5, 4), {}, r"method: expected a name as 'fastv'.*found 5 \(int\)"),
        ((int, 4), {}, "method: expected a name"),
        (("fastv", 0.25), {}, r"budget: expected a number.*found 0.25 \(float\)"),
        (("fastv", True), {}, "budget: expected a number"),
        (("fastv",), {}, "fastv needs a budget"),
        (("fastv", "64 tokens"), {}, "unit"),
        (("fastv", 4), {"boundry": 2}, "did you mean 'boundary'"),
        (("fastv", 4), {"seed": -1}, "seed=-1: expected a whole number"),
        (("fastv", 4), {"positions": 3}, "unknown position policy '3'"),
        ((FastV(keep=4), 4), {}, "a fastv object has its knobs, so budget would have no effect"),
    ],
)
def test_bad_input_is_one_line(llava: Any, asked: tuple[Any, ...], knobs: dict[str, Any], match: str) -> None:
    with refused(match) as error:
        pruned(llava, *asked, **knobs)
    assert "\n" not in str(error.value)


def test_what_is_no_model_of_ours_is_refused() -> None:
    with refused("expected a loaded model of transformers, found 'llava-1.5-7b'"):
        pruned("llava-1.5-7b", "fastv", 4)
    with refused("found Linear, which prunebench does not support yet"):
        pruned(torch.nn.Linear(2, 2), "fastv", 4)


def test_attach_says_that_it_takes_objects(llava: Any) -> None:
    with refused(r"expected a method object, found 'fastv': prunebench.prune"), attach(llava, "fastv"):  # type: ignore[arg-type]
        pass


def test_a_model_in_parts_quantised_or_elsewhere_is_refused() -> None:
    model = tiny_llava(depth=2)
    model.model.language_model.layers[1].to("meta")
    with refused("on one device, found one spread over cpu, meta: load it without device_map"):
        pruned(model, "fastv", 4)
    with refused(r"on the CPU or on CUDA, found meta"):
        pruned(model.to("meta"), "fastv", 4)
    model = tiny_llava(depth=2)
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with refused(r"quantised ones \(bitsandbytes load_in_4bit\): use the unquantised"):
        pruned(model, "fastv", 4)
    del model.config.quantization_config
    module = model.model.language_model.layers[0].mlp.up_proj
    module.weight = torch.nn.Parameter(module.weight.detach().to(torch.uint8), requires_grad=False)
    with refused("found a quantised model"):
        pruned(model, "fastv", 4)


def test_devices_and_checkpoints_that_are_not_supported_are_refused(tmp_path: Path) -> None:
    with refused("device='mps' is not supported.*use device='cpu'"):
        load.locate_model("mini", "mps")
    for size in ("7b", "13b"):
        with refused(rf"original checkpoint.*MODEL=llava-1.5-{size} \(llava-hf/llava-1.5-{size}-hf\)"):
            load.locate_model(f"liuhaotian/llava-v1.5-{size}", "cpu")
    for name in ("tokenizer.json", "processor_config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "config.json").write_text('{"architectures": ["LlavaLlamaForCausalLM"]}')
    with refused(r"original checkpoint \(LlavaLlamaForCausalLM\).*llava-hf/llava-1.5-7b-hf"):
        load.locate_model(str(tmp_path), "cpu")
    (tmp_path / "config.json").write_text(
        '{"architectures": ["LlavaForConditionalGeneration"], "quantization_config": {"quant_method": "gptq"}}'
    )
    with refused(r"found quantised ones \(gptq\)"):
        load.locate_model(str(tmp_path), "cpu")


# ------------------------------------------------------------------------------------------------------ own methods


def executed(name: str, **namespace: Any) -> type[prunebench.Method]:
    """A method's class as a notebook's cell makes it."""
    code = CENTRE.read_text().replace('"centre"', repr(name)).replace("harness.method", "prunebench")
    exec(compile(code, "<ipython-input-1>", "exec"), namespace)
    cls: type[prunebench.Method] = namespace["Centre"]
    return cls


@pytest.mark.parametrize("module", [{}, {"__name__": "a_notebook"}])
def test_a_notebooks_class_prunes_and_files_no_results(
    llava: Any, module: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "a_notebook", SimpleNamespace(__name__="a_notebook"))
    prunebench.registered()
    monkeypatch.setattr(harness.method.registry, "_REGISTRY", dict(harness.method.registry._REGISTRY))
    cls = executed("of_a_notebook", **module)
    assert prunebench.register(cls) is cls
    again = prunebench.register(executed("of_a_notebook", **module))  # the cell is run again
    assert prunebench.registered()["of_a_notebook"] is again
    assert pruned(llava, "of_a_notebook", 4)[1]["kept"] == (4, 4)
    assert pruned(llava, cls, 4)[1]["kept"] == (4, 4)
    with refused("expected a class in a file, whose code its results are filed under: put it in one and name it as"):
        source_of(cls)


def test_a_class_given_to_prune_is_checked(llava: Any) -> None:
    class Loose(prunebench.Ranking):
        name = "loose"

    with refused("a method is a frozen dataclass"):
        pruned(llava, Loose, 4)

    @dataclass(frozen=True)
    class Empty(prunebench.Ranking):
        name = "empty"

    with refused("a Ranking needs a method score"):
        pruned(llava, Empty, 4)


# ---------------------------------------------------------------------------------------------------------- package


def test_everything_that_methods_need_is_exported() -> None:
    assert set(harness.method.__all__) <= set(prunebench.__all__)
    for name in prunebench.__all__:
        assert getattr(prunebench, name) is not None, name
    assert prunebench.Ranking is harness.method.Ranking
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        prunebench.prun  # noqa: B018


def test_type_checkers_see_the_names_that_are_imported_late() -> None:
    source = Path(prunebench.__file__).read_text()
    late = source.partition("if TYPE_CHECKING:")[2].partition("\n#:")[0]
    missing = [name for name in prunebench.__all__ if name not in late.replace(",", " ").split()]
    assert missing == []


def test_importing_it_is_light() -> None:
    heavy = {"torch", "pandas", "transformers", "typer"}
    code = f"import sys, prunebench; bad = {heavy} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
