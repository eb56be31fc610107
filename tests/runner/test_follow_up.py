"""Follow-up questions from the command to the table: which questions, on which cache, with which answers and costs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import several
import torch
from helpers import run

from harness.core.command import evaluation
from harness.core.errors import PrunebenchError
from harness.method import Method, method_class
from harness.models.load import LoadedModel, locate_model
from harness.models.second_turn import turn_ids
from harness.proof.recomputed import again
from harness.report import page, show, views
from harness.runner.answering import Answerer, Prompt
from harness.runner.evaluate import evaluate
from harness.runner.execute import prompts_of
from harness.runner.jobs import prepare
from harness.runner.request import Request, resolve
from harness.runner.run import Options
from harness.runner.session import Session
from harness.runner.sweep import load, requests
from harness.store.sealed import SealedCell
from harness.store.store import Store
from harness.store.verify import verify
from harness.tables.follow_up import afresh
from harness.tables.requests import token_rates
from tasks import follow_ups, lmms
from tasks.sources import DataSource, source_of_data

MINI = source_of_data(None, "mini")
#: nine questions about one image
ASK = Request("random", budgets="64", tasks="pope", limit=9)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return locate_model("mini", "cpu", "float32").load()


@pytest.fixture(scope="module")
def task() -> lmms.LoadedTask:
    return follow_ups.follow_ups(lmms.load_task("pope", MINI, 9, 0))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells of `ASK` and of its follow-ups."""
    folder: Path = tmp_path_factory.mktemp("follow-up")
    for asked in (replace(ASK, follow_up=True), ASK):
        evaluate(asked, Options(folder), lambda _: None)
    return folder


def cells_of(results: Path, method: str) -> tuple[SealedCell, SealedCell]:
    """The cell of follow-ups, and the one asked afresh."""
    mine = [cell for cell in Store(results).cells() if cell.cell.method == method]
    (follow,) = [cell for cell in mine if cell.asked.follow_up]
    (fresh,) = [cell for cell in mine if not cell.asked.follow_up]
    return follow, fresh


def short(prompts: list[Prompt], n: int = 4) -> list[Prompt]:
    return [replace(prompt, max_new_tokens=n) for prompt in prompts]


def test_every_question_but_an_images_first_is_asked_behind_it(task: lmms.LoadedTask) -> None:
    assert task.openers is not None
    whole = task.openers.afresh
    assert [s.key for s in task.samples] == [s.key for s in whole.samples[1:]]
    assert {first.key for first in task.openers.first.values()} == {whole.samples[0].key}
    prompts = prompts_of(task)
    assert {p.text for p in prompts} == {whole.samples[0].prompt}, "the first question prunes"
    assert [p.then and p.then.text for p in prompts] == [s.prompt for s in whole.samples[1:]]
    assert lmms.score(task, {s.key: s.targets[0] for s in task.samples}).headline == 1.0
    assert task.fingerprint != whole.fingerprint


def test_an_unpruned_follow_up_is_the_bare_models_answer_in_the_whole_dialogue(
    loaded: LoadedModel, task: lmms.LoadedTask
) -> None:
    prompts = short(prompts_of(task)[:3])
    told = {a.key: a for a in Answerer(loaded, method_class("none")(), batch_size=3).answer(prompts)}
    tokenizer, pixels = loaded.processor.tokenizer, loaded.pixels(task.samples[0].load_image())

    def generated(ids: list[int]) -> list[int]:
        asked = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        out = loaded.model.generate(**asked, pixel_values=pixels, max_new_tokens=4, do_sample=False)
        return [token for token in out[0, len(ids) :].tolist() if token not in loaded.end_tokens]

    for prompt in prompts:
        assert prompt.then is not None
        first = loaded.asked(prompt.key, prompt.content, 4)
        answer = generated(first)
        text = f" USER: {prompt.then.text} ASSISTANT:"
        turn = tokenizer(f"ASSISTANT: x{text}", add_special_tokens=False)["input_ids"]
        turn = turn[len(tokenizer("ASSISTANT: x", add_special_tokens=False)["input_ids"]) :]
        second = generated([*first, *answer, *turn])
        found = told[prompt.key]
        assert (found.text, found.n_new_tokens) == (tokenizer.decode(second).strip(), len(second))
        assert found.cost["first_new_tokens"] == len(answer)
        assert found.cost["turn_tokens"] == len(turn) + 1, "the answer's last token runs with the turn"


@pytest.mark.parametrize("name", ["fastv", "random"])
def test_a_follow_up_is_the_same_alone_and_shared(name: str, loaded: LoadedModel, task: lmms.LoadedTask) -> None:
    session, prompts = Session(), short(prompts_of(task)[:3])
    method = loaded_method(name, loaded)
    alone = list(Answerer(loaded, method, batch_size=1).answer(prompts))
    shared = Answerer(loaded, method, batch_size=3, prefixes=session.prefixes(loaded.device)).answer(prompts)
    found = {a.key: (a.text, a.n_new_tokens, a.cost, a.kept) for a in shared}
    assert found == {a.key: (a.text, a.n_new_tokens, a.cost, a.kept) for a in alone}
    assert len({a.kept for a in alone}) == 1, "the first question prunes for all of them"


def loaded_method(name: str, loaded: LoadedModel) -> Method:
    return method_class(name)(keep=64).for_model(loaded.usual.decoder)


def test_cells_of_follow_ups_stand_beside_those_afresh(results: Path) -> None:
    for method in ("none", "random"):
        follow, fresh = cells_of(results, method)
        assert follow.cell.n_samples == follow.counts["answered"] == fresh.cell.n_samples - 1
        assert afresh(follow, {c.identity: c for c in Store(results).cells()}) is not None
        assert afresh(follow, {}) is None
        assert follow.samples()["key"].tolist() == fresh.samples()["key"].tolist()[1:]
        assert set(follow.samples()["keeps"]) == {fresh.samples()["keeps"][0]}, "drawn as the first question's are"
        assert follow.costs["turn_flops"] < fresh.costs["prefill_dense_flops"] / 3
        assert not {"turn_flops", "first_new_tokens"} & set(fresh.costs)
        assert evaluation(follow.asked).split().count("FOLLOW_UP=1") == 1
    lines, whole = verify(results, again)
    assert whole, lines


def test_a_number_of_a_second_turn_that_was_changed_is_found(results: Path) -> None:
    follow, _ = cells_of(results, "none")
    frame = follow.samples()
    assert again(follow, frame)[0] == []
    for name in ("turn_tokens", "turn_decode_flops", "first_new_tokens"):
        wrong = frame.copy()
        wrong.loc[0, name] += 1
        assert again(follow, wrong)[0], name


def test_the_leaderboard_has_a_section_and_a_table_of_follow_ups(results: Path) -> None:
    text = (results / "LEADERBOARD.md").read_text()
    assert "\n## mini, float32, cpu, LIMIT=9, follow-up questions (a try)\n" in text
    table = text.partition("### Follow-up questions beside the same asked afresh\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    assert [row[:5] for row in rows[2:]] == [["none", "-", "pope", "8", "1"], ["random", "64", "pope", "8", "1"]]
    follow, fresh = cells_of(results, "random")
    again_on = fresh.samples()["score"][1:].mean()
    assert rows[3][5:7] == [f"{100 * follow.score:.1f}", f"{100 * again_on:.1f}"]
    assert rows[3][9] == f"{follow.costs['turn_tokens']:.1f}"


def test_a_sweep_and_a_command_ask_follow_ups(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("methods: [none]\ntasks: [pope]\nfollow_up: true\n")
    (asked,) = requests(load(file))
    assert asked.follow_up
    (asked,) = requests(load(file, ["follow_up=false"]))
    assert not asked.follow_up


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tasks", "gqa,mme"), "task mme: no follow-up questions: its score counts pairs of questions"),
        (("--tasks", "mmmu_val", "--data", "hub"), "task mmmu_val: no follow-up questions: it is a task by name"),
    ],
)
def test_tasks_without_follow_ups_are_refused(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run(capsys, monkeypatch, "eval", "--method", "none", "--follow-up", *words)
    assert code == 2
    assert said in err
    assert "--tasks gqa,pope,textvqa" in err.replace("'", "")


def test_images_with_one_question_and_prompts_of_several_images_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: lmms.LoadedTask
) -> None:
    assert task.openers is not None
    whole = task.openers.afresh
    with pytest.raises(PrunebenchError, match="expected several questions about an image, found 1 questions about 1"):
        follow_ups.follow_ups(lmms.only(whole, whole.samples[:1], "one"))
    several.patch(monkeypatch)
    source = several.data(tmp_path / "data")
    session = Session()
    asked = Request("none", tasks="pope", data=str(tmp_path / "data"), limit="all", follow_up=True)
    assert isinstance(source, DataSource)
    with pytest.raises(PrunebenchError, match="expected one image in a follow-up question, found 2"):
        prepare(resolve(asked, session), session)


def template(body: str) -> Any:
    """What `turn_ids` reads of a model whose template renders `body` around each turn."""
    loaded = locate_model("mini", "cpu", "float32")
    processor = SimpleNamespace(
        tokenizer=loaded.prompter.processor.tokenizer,
        image_token=loaded.prompter.processor.image_token,
        apply_chat_template=lambda messages, **_: _rendered(body, messages),
    )
    return replace(loaded.prompter, processor=processor)


def _rendered(body: str, messages: list[Mapping[str, Any]]) -> str:
    from jinja2 import Template

    turns = [(m["role"], "".join(c.get("text", "<image>\n") for c in m["content"])) for m in messages]
    return Template(body).render(turns=turns)


def words(tokenizer: Any, ids: list[int]) -> str:
    """What ids say, without spaces, which decoding mends."""
    return "".join(tokenizer.decode(ids).split())


def test_the_second_turn_is_what_the_template_renders_behind_the_answer() -> None:
    prompter = locate_model("mini", "cpu", "float32").prompter
    tokenizer = prompter.processor.tokenizer
    content, question = (None, "Is it red?"), "Is it blue?"
    assert words(tokenizer, turn_ids(prompter, content, question)) == "USER:Isitblue?ASSISTANT:"
    vicuna = replace(prompter, config=prompter.config.model_copy(update={"prompt": "vicuna_v1"}))
    ids = turn_ids(vicuna, content, question)
    assert ids[0] == tokenizer.eos_token_id, "LLaVA's own code ends an answer with its end token"
    assert words(tokenizer, ids[1:]) == "USER:Isitblue?ASSISTANT:"


@pytest.mark.parametrize(
    "body",
    [
        # only the last question
        "{{ turns[-1][1] }} ASSISTANT:",
        # a first turn that another turn changes
        "{% for role, text in turns %}{{ loop.length }} {{ role }}: {{ text }} {% endfor %}ASSISTANT:",
        # what stands behind an answer depends on it
        "{% for role, text in turns %}{{ role }}: {{ text }} {{ text|length }} {% endfor %}assistant:",
    ],
)
def test_a_template_that_does_not_go_on_is_refused(body: str) -> None:
    with pytest.raises(PrunebenchError, match="expected a chat template that leaves a first question and its answer"):
        turn_ids(template(body), (None, "Is it red?"), "Is it blue?")


def test_a_template_that_goes_on_is_taken() -> None:
    body = "{% for role, text in turns %}{{ role }}: {{ text }} {% endfor %}assistant:"
    prompter = template(body)
    ids = turn_ids(prompter, (None, "Is it red?"), "Is it blue?")
    assert words(prompter.processor.tokenizer, ids) == "user:Isitblue?assistant:"


def test_the_report_tells_follow_ups_apart(results: Path) -> None:
    found = views.protocols(Store(results).cells())
    assert sorted(p.label for p in found) == ["mini", "mini, follow-up questions"]
    follow, fresh = (cell.samples().set_index("key")["answer"] for cell in cells_of(results, "random"))
    key = next(key for key in follow.index if follow[key] != fresh[key])
    shown = show.find(list(Store(results).cells()), key, ["random"], "64")
    assert shown.methods[0].answer == fresh[key], "a sample is shown as it was answered afresh"


def test_the_page_has_the_table_of_follow_ups_beside_those_afresh(results: Path) -> None:
    html = page.fitting(Store(results).cells(), results, samples=0).html
    body = re.search(r'<script type="application/json" id="meta">(.*?)</script>', html, re.S)
    assert body is not None
    alone, follow = sorted((m["follow_ups"] for m in json.loads(body[1])["models"]), key=bool)
    assert alone is None
    named = [dict(zip(follow["head"], row, strict=True)) for row in follow["rows"]]
    assert [(row["method"], row["budget"], row["task"]) for row in named] == [
        ("none", "-", "pope"),
        ("random", "64", "pope"),
    ]
    cell, fresh = cells_of(results, "random")
    assert named[1]["follow-up (%)"] == f"{100 * cell.score:.1f}"
    assert named[1]["afresh (%)"] == f"{100 * fresh.samples()['score'][1:].mean():.1f}"


def test_a_tokens_cost_is_that_of_the_first_question(results: Path) -> None:
    """Whatever the lengths of the second answers: the logits that are counted there are the first question's."""
    follow, fresh = cells_of(results, "none")
    frame = follow.samples()
    rates = token_rates(follow, frame.assign(n_new_tokens=frame["n_new_tokens"] + 5))
    assert rates == token_rates(fresh, fresh.samples())
