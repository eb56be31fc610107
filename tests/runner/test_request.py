"""The door: words become settings once, everything wrong is refused there, and a setting can go to another process."""

from __future__ import annotations

import json
import os
import pickle
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import run

from harness.cli.options import pairs
from harness.core.asked import Asked
from harness.core.command import evaluation
from harness.core.errors import PrunebenchError
from harness.method import method_class, typed_knobs
from harness.runner.evaluate import evaluate
from harness.runner.jobs import prepare
from harness.runner.pace import Pace
from harness.runner.request import TASKS, Request, check, resolve
from harness.runner.run import Options
from harness.runner.session import Session
from harness.runner.setting import Setting
from harness.runner.sizes import mean_text
from harness.store.store import Store

CENTRE = (Path(__file__).parents[1] / "examples" / "centre.py").read_text()


@pytest.fixture(scope="module")
def session() -> Session:
    return Session()


def again(asked: Asked) -> Request:
    """The request that a sealed cell holds."""
    budgets = () if asked.budget is None else (asked.budget,)
    return Request(
        (asked.method,),
        asked.model,
        budgets,
        (asked.task,),
        asked.limit,
        str(asked.seed),
        asked.device,
        asked.dtype or "auto",
        asked.data,
        asked.positions,
        asked.knobs,
        asked.prompt,
        asked.image,
        asked.stands_for,
    )


def identities(settings: list[Setting], session: Session) -> list[str]:
    return [job.identity for job in prepare(settings, session)]


def test_lists_are_every_method_at_every_budget_with_every_seed(session: Session) -> None:
    found = resolve(Request("none, random,fastv", budgets="64,32", seeds="0,1", tasks="pope,gqa", limit="6"), session)
    pruned = [(s.method.name, str(s.budget), s.seed, s.task) for s in found if s.method.name != "none"]
    random = [("random", b, seed, t) for b in ("64", "32") for seed in (0, 1) for t in ("pope", "gqa")]
    # a seed changes nothing of a method that draws nothing: the same cells
    fastv = [("fastv", b, 0, t) for b in ("64", "32") for _ in (0, 1) for t in ("pope", "gqa")]
    assert pruned == random + fastv
    assert [s.method.name for s in found[:4]] == ["none"] * 4, (
        "of several methods, one that takes no budget is asked without"
    )
    assert [s.method.name for s in found[4:6]] == ["none", "random"], "each beside the unpruned model"
    assert len(set(identities(found, session))) == 2 + 8 + 4


def test_words_one_by_one_are_not_split() -> None:
    assert Request(("my,file.py:Mine",), budgets=("64",)).methods == ("my,file.py:Mine",)
    assert Request("a").tasks == TASKS


def test_a_comma_in_a_path_is_said(tmp_path: Path) -> None:
    """A list of methods cannot spell it, nor could the command of its cells."""
    (tmp_path / "a,b,c.py").write_text(CENTRE)
    here = os.path.relpath(tmp_path / "a,b,c.py")
    for methods in (
        f"{tmp_path}/a,b,c.py:Centre",
        f"fastv,{here}:Centre",
        (f"{tmp_path}/a,b,c.py:Centre",),
        "/gone/a,b.py:X",
    ):
        with pytest.raises(PrunebenchError, match=r"a method's path holds a comma .*rename the file"):
            Request(methods, budgets="64").each()
    with pytest.raises(PrunebenchError, match="name the class in it as well"):
        Request("methods/fastv.py,random", budgets="64").each()


def test_a_method_of_a_file_stands_anywhere_in_a_list(tmp_path: Path) -> None:
    (tmp_path / "centre.py").write_text(CENTRE)
    mine = f"{tmp_path}/centre.py:Centre"
    asked = Request(f"random,{mine},first,fastv", budgets="64").each()
    assert [one.methods for one in asked] == [("random",), (mine,), ("first",), ("fastv",)]


def test_every_budget_is_read(session: Session) -> None:
    for budget, message in (
        ("foo", "budget 'foo'"),
        ("64", "budget='64': none of none, knockout takes a budget"),
        ("none,0", "budget '0'"),
    ):
        with pytest.raises(PrunebenchError, match=message):
            resolve(Request("none,knockout", budgets=budget, tasks="pope", limit=6), session)
    assert {
        s.method.name for s in resolve(Request("none,knockout", budgets="none", tasks="pope", limit=6), session)
    } == {"none", "knockout"}


@pytest.mark.parametrize(
    ("method", "budget", "knobs"),
    [
        ("sparsevlm", (), {"keep": "25%", "retain": None, "stages": [2, 5]}),
        ("sparsevlm", (), {"keep": 40, "stages": [3]}),
        ("sparsevlm", ("native",), {"stages": None}),
        ("fastv", ("64",), {"boundary": None}),  # the model's configuration says 2
        ("random", ("64",), {"boundary": None}),
        ("random", ("50%",), {"boundary": "None"}),
        (
            "visipruner",
            ("48",),
            {"sink": "random", "consecutive_votes": False, "layer_threshold": 0.99, "tokens_threshold": 1e-05},
        ),
        ("visipruner", ("48",), {"shallow_mid_layer": None, "sink": 3}),
        ("none", (), {}),
    ],
)
def test_the_command_of_a_cell_makes_the_same_cell(
    method: str,
    budget: tuple[str, ...],
    knobs: dict[str, Any],
    session: Session,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting = resolve(Request((method,), budgets=budget, tasks="pope", limit=6, knobs=knobs, seeds="3"), session)[-1]
    sealed = Asked.from_dict(json.loads(json.dumps(setting.asked.to_dict())))
    words = dict(part.split("=", 1) for part in shlex.split(evaluation(sealed))[2:])
    found: list[Request] = []

    def record(request: Request, *_: object, **__: object) -> None:
        found.append(request)
        raise PrunebenchError("read, which is enough")

    monkeypatch.setattr("harness.runner.evaluate.evaluate", record)
    run(capsys, monkeypatch, "eval", *(part for name, value in words.items() for part in (f"--{name.lower()}", value)))
    (read,) = found
    again = resolve(read, session)[-1]
    assert again.method == setting.method
    assert identities([again], session) == identities([setting], session)
    if knobs:
        cls = method_class(method)
        assert dict(typed_knobs(cls, pairs([words["SET"]]))) == dict(typed_knobs(cls, knobs))


def test_a_knob_that_no_command_can_say_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CENTRE.replace("    def score", "    word: str = 'a'\n\n    def score"))
    mine = f"{tmp_path}/mine.py:Centre"
    for value in ("", "two words", "a,b", ["a b"], [], {"a": 1}):
        with pytest.raises(PrunebenchError, match=r"centre: knob word="):
            check(Request((mine,), budgets=("32",), knobs={"word": value}))
    for value in ("one", "none", "it's", "a=b"):
        check(Request((mine,), budgets=("32",), knobs={"word": value}))
    says = r"sparsevlm: knob stages=\[\] cannot be spelt in a command \(stages=\): expected a value that one word says"
    with pytest.raises(PrunebenchError, match=says):
        check(Request(("sparsevlm",), budgets=("64",), knobs={"stages": []}))


def test_a_setting_is_typed_and_holds_what_was_typed(session: Session) -> None:
    request = Request(
        "random",
        budgets="0.5flops",
        tasks="pope",
        limit=6,
        seeds="3",
        positions="compact",
        knobs={"boundary": "2"},
        data="mini",
    )
    unpruned, pruned = resolve(request, session)
    assert (unpruned.budget.unit, unpruned.seed, unpruned.positions, unpruned.label) == (
        "none",
        0,
        "method",
        "pope none",
    )
    assert (pruned.budget.ratio, pruned.limit, pruned.seed, pruned.positions, pruned.source.name) == (
        0.5,
        6,
        3,
        "compact",
        "mini",
    )
    assert pruned.method.knobs()["boundary"] == 2
    assert pruned.asked == Asked(
        method="random",
        budget="0.5flops",
        model="mini",
        task="pope",
        limit="6",
        knobs={"boundary": "2"},
        seed=3,
        positions="compact",
        data="mini",
        device=pruned.located.device.type,
    )
    assert unpruned.asked == pruned.asked.unpruned()


def test_a_share_of_the_flops_is_solved_per_task(session: Session) -> None:
    found = [
        s
        for s in resolve(Request("fastv", budgets="0.5flops", tasks="gqa,textvqa", limit=12), session)
        if s.method.name != "none"
    ]
    texts = {s.task: mean_text(s.located, session.task(s.task, s.source, s.limit)) for s in found}
    assert len(set(texts.values())) == 2, "tasks with texts of one length would prove nothing"
    for setting in found:
        assert setting.method == setting.located.method("fastv", setting.budget, {}, n_text=texts[setting.task])


def test_nothing_is_read_before_all_is_checked(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "task", lambda *_: pytest.fail("data were read"))
    for request, message in (
        (Request("fastv", budgets="0.5flops,577"), "fastv@577 on mini: budget 577"),
        (Request("fastv,fastw", budgets="0.5flops"), "did you mean 'fastv'"),
        (Request("fastv", budgets="0.5flops", seeds="0,-1"), "fastv@0.5flops seed -1 on mini: seed='-1'"),
        (Request("fastv", budgets="0.5flops", limit="some"), "limit='some'"),
        (Request("fastv", budgets="0.5flops", tasks=""), "no task was named"),
        (Request("fastv", budgets="0.5flops", positions="compct"), "did you mean 'compact'"),
        (Request(" , ", budgets="64"), "no method was named"),
        (Request("none", budgets="64"), "none prunes nothing to a count"),
        (Request("fastv", model="llava-1.5-7b", budgets="64", knobs={"boundary": 40}), "boundary=40 does not fit"),
        (Request("fastv", budgets="64", data="mimi"), "did you mean 'mini'"),
    ):
        with pytest.raises(PrunebenchError, match=message):
            resolve(request, session)
    with pytest.raises(PrunebenchError, match="batch=0: expected at least 1 prompt"):
        Pace(0)


@pytest.mark.parametrize("spec", ["random", "{}/mine.py:Centre"])
def test_a_setting_survives_another_process(spec: str, tmp_path: Path, session: Session) -> None:
    (tmp_path / "mine.py").write_text(CENTRE)
    name = spec.format(tmp_path)
    settings = resolve(Request((name,), budgets="32", tasks="pope", limit=6, knobs={"boundary": 3}, seeds="1"), session)
    wanted = identities(settings, session)  # what this caches does not travel
    packed = pickle.dumps(settings)
    assert len(packed) < 20_000
    copies = pickle.loads(packed)
    assert identities(copies, Session()) == wanted
    assert [c.asked for c in copies] == [s.asked for s in settings]


def test_a_worker_refuses_work_that_is_another_cell_there(tmp_path: Path, session: Session) -> None:
    from harness.runner.execute import Work
    from harness.runner.launch.processes import here

    settings = resolve(Request("random", budgets="32", tasks="pope", limit=6), session)
    work = [Work(s, identity, frozenset()) for s, identity in zip(settings, identities(settings, session), strict=True)]
    assert [w.identity for w in here(work, "cpu", session)] == [w.identity for w in work]
    other = [work[0], work[1]._replace(setting=replace(work[1].setting, seed=7))]
    with pytest.raises(
        PrunebenchError,
        match=r"expected the cells of the parent, found .* \(pope random@32\): were model, data or the code",
    ):
        here(other, "cpu", session)


def test_a_sealed_cell_is_asked_for_again_by_what_it_holds(tmp_path: Path) -> None:
    asked = Request(
        "random,fastv",
        budgets="32,0.5flops",
        seeds="0,1",
        tasks="pope",
        limit=6,
        positions="compact",
        knobs={"boundary": "2"},
    )
    finished = evaluate(asked, Options(tmp_path), lambda _: None)
    fresh = Session()
    for sealed in Store(tmp_path).cells():
        made = identities(resolve(again(sealed.asked), fresh), fresh)
        assert made[-1] == sealed.identity
    assert len(finished.cells) == 1 + 4 + 2
