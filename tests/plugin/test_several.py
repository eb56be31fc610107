"""Prompts of several images, and images that differ in tokens, through the model class of lmms-eval's command."""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest
import qwens
import several

from harness.core.errors import PrunebenchError
from harness.plugin import cache, log
from harness.plugin.importing import import_run
from harness.plugin.model import PrunebenchLmms
from harness.runner.evaluate import evaluate
from harness.runner.request import Request
from harness.runner.run import Options
from harness.store.sealed import SealedCell
from harness.store.verify import verify
from tasks import lmms

FAMILIES = ("qwen2_5_vl", "llava_next", "mini")


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("several")
    several.data(found / "data")
    families.llava_next(found / "llava_next")
    qwens.folder("qwen2_5_vl", found / "qwen2_5_vl")
    return found


@pytest.fixture(autouse=True)
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "key_by", lambda identity: None)
    several.patch(monkeypatch)


def messages(sample: lmms.Sample) -> list[dict[str, Any]]:
    images = iter(sample.images)
    content = [
        {"type": "image", "url": next(images).load()} if part is None else {"type": "text", "text": part}
        for part in sample.content
    ]
    return [{"role": "user", "content": content}]


def logged(folder: Path, task: lmms.LoadedTask, **words: Any) -> Path:
    """What lmms-eval would write of a run: its files, with the entries that the class gives."""
    model = PrunebenchLmms(device="cpu", batch_size=2, **words)
    model.task_dict = {"pope": {"test": task.samples}}
    settings = {"max_new_tokens": task.max_new_tokens, "until": ["\n\n"]}
    requests = [
        types.SimpleNamespace(args=("", messages, settings, place, "pope", "test"))
        for place in range(len(task.samples))
    ]
    results = model.generate_until(requests)
    answers = {sample.key: result.text for sample, result in zip(task.samples, results, strict=True)}
    metrics = lmms.score(task, answers).metrics
    folder.mkdir()
    config = {"model": "prunebench", "resolved_cli_args": {}}
    found = {f"{name.removeprefix('lmms_eval/')},none": value for name, value in metrics.items()}
    whole = {"config": config, "configs": {"pope": {}}, "results": {"pope": found}, "date": "today"}
    (folder / "1_results.json").write_text(json.dumps(whole))
    lines = [
        {"doc_id": place, "filtered_resps": result.text, "token_counts": [result.token_counts.to_dict()]}
        for place, result in enumerate(results)
    ]
    (folder / "1_samples_pope.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def both(top: Path, tmp_path: Path) -> Callable[..., tuple[list[SealedCell], SealedCell]]:
    """The imported cell and the measured one of a setting."""

    def made(name: str, method: str, budget: str) -> tuple[list[SealedCell], SealedCell]:
        place, data = (name if name == "mini" else str(top / name)), str(top / "data")
        asked = Request(method, model=place, budgets=budget, tasks="pope", data=data, device="cpu", limit="all")
        finished = evaluate(asked, Options(tmp_path / "own"), lambda line: None)
        task = lmms.load_task("pope", several.data(top / "data"), None, 0)
        folder = logged(tmp_path / "out", task, pretrained=place, method=method, budget=budget)
        cells = import_run(folder, tmp_path / "r", data, lambda line: None)
        return cells, next(cell for cell in finished.cells.values() if cell.cell.method == method)

    return made


@pytest.mark.parametrize(("name", "budget"), [("qwen2_5_vl", "30%"), ("llava_next", "30%"), ("mini", "64")])
def test_a_run_with_several_images_becomes_the_cell_that_an_evaluation_seals(
    name: str, budget: str, both: Any, tmp_path: Path
) -> None:
    (cell,), own = both(name, "random", budget)
    assert cell.identity == own.identity
    assert cell.samples_sha256 == own.samples_sha256
    assert cell.provenance["grids"] == own.provenance["grids"]
    assert (cell.metrics, cell.costs, cell.interval) == (own.metrics, own.costs, own.interval)
    lines, sound = verify(tmp_path / "r")
    assert sound, lines


@pytest.mark.parametrize(("name", "budget"), [("qwen2_5_vl", "12avg"), ("mini", "25%"), ("mini", "64avg")])
def test_a_budget_that_each_task_solves_is_refused(name: str, budget: str, both: Any) -> None:
    with pytest.raises(PrunebenchError, match="is solved for each task where prompts differ in visual tokens"):
        both(name, "random", budget)


def test_a_prompt_that_does_not_fit_is_refused_before_the_first_answer(top: Path, tmp_path: Path) -> None:
    model = PrunebenchLmms(device="cpu", pretrained=str(top / "qwen2_5_vl"), method="none")
    long = [
        {"role": "user", "content": [*messages(first_of(top))[0]["content"], {"type": "text", "text": "why " * 9000}]}
    ]
    model.task_dict = {"pope": {"test": [messages(first_of(top)), long]}}
    asked = [
        types.SimpleNamespace(args=("", lambda doc: doc, {"max_new_tokens": 4}, place, "pope", "test"))
        for place in (0, 1)
    ]
    model._opened.answerer.answer = None  # type: ignore[assignment, method-assign]
    with pytest.raises(SystemExit, match="sample pope/000001: expected at most"):
        model.generate_until(asked)


def first_of(top: Path) -> lmms.Sample:
    return lmms.load_task("pope", several.data(top / "data"), None, 0).samples[0]


def test_the_digest_of_a_turn_tells_order_and_images_apart() -> None:
    turns = [
        log.asked((None, "a"), ["1"]),
        log.asked(("a", None), ["1"]),
        log.asked((None, "a"), ["2"]),
        log.asked((None, None, "a"), ["1", "2"]),
        log.asked((None, None, "a"), ["2", "1"]),
    ]
    assert len(set(turns)) == len(turns)
