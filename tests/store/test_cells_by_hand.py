"""Hostile and broken cells that were put into a results folder by hand: each is named, and left out of the tables."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories import make_cell, sealed
from helpers import run
from published import REFERENCE, body, reference, resealed, samples_with
from test_hostile_texts import MARKUP, Change, put

from harness.core.errors import PrunebenchError
from harness.store.journal import JOURNAL
from harness.store.sealed import SAMPLES, SEAL
from harness.store.store import Store
from harness.tables import leaderboard

TEXT = f"={MARKUP}\x1b[2J\u202e"
NONE = "none-none-d4c5b2fc41781c0b"


def placed(root: Path, cell: Path, change: Change = lambda new: None, samples: bytes | None = None) -> Path:
    """Copy a cell into a results folder, and seal it again with a change."""
    folder = Path(shutil.copytree(cell, root / "cells" / "pope" / cell.name))
    new = body(folder)
    change(new)
    if samples is not None:
        (folder / SAMPLES).write_bytes(samples)
        new["samples_sha256"] = hashlib.sha256(samples).hexdigest()
    resealed(folder, new)
    return folder


#: changes that are sealed again, and what is said of them
SEALED: list[tuple[Change, str]] = [
    (put("costs", "prefill_dense_flops", value="x"), "costs/prefill_dense_flops: a cost from 0 to 1e+21"),
    (put("costs", "kept", value=-5), "costs/kept: a cost from 0"),
    (put("costs", "kv_bytes", value=1e306), "costs/kv_bytes: a cost from 0"),
    (put("costs", "mine", value=10**400), "costs/mine: a number up to 1e+21"),
    (put("costs", value=[]), "costs: an object"),
    (put("metrics", "pope_accuracy", value="<b>"), "metrics/pope_accuracy: a number up to 1e+21"),
    (put("maximum", value="1"), "maximum: a number up to 1e+21"),
    (put("interval", "low", value="x"), "interval/low: a float"),
    (lambda new: new["counts"].pop("headline"), "counts: answered, expected, headline"),
    (put("counts", "headline", value="x"), "counts/headline: a count"),
    (put("provenance", "decoder_layers", value="x"), "decoder_layers: 1 to 1000"),
    (put("provenance", "processing", "image", value=[1]), "provenance/processing/image: an object"),
    (put("provenance", "grids", value="x"), "expected grids as [rows, columns, newline]"),
    (put("provenance", "grids", value={"9999 of 24x24 24x24": []}), "at most 10,000 grids of a prompt"),
    (put("provenance", "request", "limit", value="\u00b2"), "a number of at most 18 digits"),
]
SAMPLED: list[tuple[Callable[[Any], Any], str]] = [
    (lambda frame: frame.drop(columns="score"), "expected the column 'score', found none"),
    (lambda frame: frame.assign(keeps=None), "keeps: expected a value in every row, found none in 108"),
    (lambda frame: frame.assign(key="one"), "key: expected 108 different ones, found 1"),
    (lambda frame: frame.assign(keeps="junk"), "keeps: expected a record of kept tokens, found 'junk'"),
    (lambda frame: frame.assign(mine=math.inf), "mine: expected finite numbers"),
    (lambda frame: frame.iloc[:5], "expected 108 rows"),
]


def replaced(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / SEAL).write_text((folder / SEAL).read_text().replace(old, new, 1))


def linked(folder: Path) -> None:
    (folder / SAMPLES).unlink()
    (folder / SAMPLES).symlink_to("/dev/zero")


def piped(folder: Path) -> None:
    (folder / SEAL).unlink()
    os.mkfifo(folder / SEAL)


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (replaced("{", ""), "not a cell file"),
    (replaced('"git": ', f'"git": {"[" * 900}{"]" * 900}, "old": '), "not a cell file"),
    (replaced('"schema_version": ', '"schema_version": ' + "9" * 5000), "not a cell file"),
    (replaced('"schema_version": ', f'"schema_version": {json.dumps(TEXT)}, "old": '), "expected schema and key"),
    (replaced('"maximum": 1.0', '"maximum": NaN'), "not a cell file"),
    (replaced('"maximum": 1.0', '"maximum": 1e400'), "not a cell file"),
    (linked, "expected a file, found something else"),
    (piped, "expected a file, found something else"),
    (lambda folder: os.truncate(folder / SEAL, 2**30), "expected at most 67,108,864 bytes, found 1,073,741,824"),
]


def test_each_is_named_and_the_others_have_tables_and_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, page = tmp_path / "r", tmp_path / "page.html"
    for name in (NONE, reference().folder.name[5:]):
        placed(root, reference(name).folder)
    fresh = iter(sorted((REFERENCE / "cells" / "pope").glob("mini-[d-m]*")))
    expected = {placed(root, next(fresh), change): why for change, why in SEALED}
    for edit, why in SAMPLED:
        cell = next(fresh)
        expected[placed(root, cell, samples=samples_with(cell, edit))] = why
    for damage, why in BROKEN:
        damage(folder := placed(root, next(fresh)))
        expected[folder] = why
    words = ("--results", str(root))
    for command in (("leaderboard", *words, "--no-figures"), ("report", *words, "--out", str(page))):
        code, _, err = run(capsys, monkeypatch, *command)
        lines = [line for line in err.splitlines() if line.startswith("left out: ")]
        assert (code, len(lines)) == (1, len(expected))
        assert not re.search("[\x1b\u202e]", err)
        for folder, why in expected.items():
            assert any(line.startswith(f"left out: {folder}/") and why in line for line in lines), (why, lines)
    assert (root / "leaderboard.csv").read_text().count("\n") == 3
    assert "visipruner" in page.read_text()
    code, out, _ = run(capsys, monkeypatch, "results", "list", *words)
    assert (code, "\x1b" in out, out.count("\ndamaged ")) == (1, False, len(SEALED) + len(BROKEN))


def test_odd_and_honest_cells_have_tables(tmp_path: Path) -> None:
    """What a method notes and a task computes is theirs."""
    changes = (
        put("costs", "saved_flops", value=-3.5),
        put("metrics", "perplexity", value=5e12),
        put("provenance", "request", "limit", value="1000000000000000"),
        put("metrics", "undefined", value=None),
    )
    cells = sorted((REFERENCE / "cells" / "pope").glob("mini-[d-m]*"))
    for cell, change in zip(cells, changes, strict=False):
        placed(tmp_path, cell, change)
    damaged: list[str] = []
    csv, _ = leaderboard.rewrite(tmp_path, damaged)
    assert (damaged, csv.read_text().count("\n")) == ([], 1 + len(changes))


def test_a_task_may_have_any_name_that_is_a_text(tmp_path: Path) -> None:
    for name in ("\u5f62\u3000\u72b6", "a\u00a0b", "\U0001f468\u200d\U0001f469"):
        assert sealed(Store(tmp_path), make_cell(task=name)).cell.task == name
    assert len(Store(tmp_path).cells()) == 3


def test_what_would_be_damaged_is_not_sealed_and_its_answers_stay(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(PrunebenchError, match=r"cannot seal .*task: a text without control signs.*stay in its journal"):
        sealed(store, make_cell(task="a\x1bb"))
    assert len(list(tmp_path.rglob(JOURNAL))) == 1
    assert not list(tmp_path.rglob(SEAL))


def test_texts_are_no_escape_no_markup_and_no_formula(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(new: dict[str, Any]) -> None:
        new["provenance"] |= dict.fromkeys(("device", "kernels", "git", "model_source", "unproven", "origin"), TEXT)
        new["provenance"]["processing"]["image"] |= {"policy": TEXT, "processor": TEXT}
        new["provenance"]["request"] |= {"prompt": TEXT, "data": TEXT}
        new["costs"][TEXT] = 1.0

    one, root, page = reference(), tmp_path / "r", tmp_path / "page.html"
    samples = samples_with(one.folder, lambda frame: frame.assign(answer=TEXT, question=TEXT, target=TEXT))
    placed(root, one.folder, change, samples)
    for command in ("leaderboard", "results list", f"results show {one.identity}", f"report --out {page}"):
        code, out, err = run(capsys, monkeypatch, *command.split(), "--results", str(root))
        assert (code, err) == (0, "")
        assert not re.search("[\x1b\u202e]", out)
    markdown = re.sub(r"```.*?```", "", (root / "LEADERBOARD.md").read_text(), flags=re.DOTALL)
    assert not re.search(r"(?<!\\)\]\(https://evil|[\x1b\u202e]|<img", markdown)
    assert not re.search(r'(^|,)"?[=+@]', (root / "leaderboard.csv").read_text(), re.MULTILINE)
    assert "<img src=x" not in page.read_text()


def test_what_ends_every_table_is_refused_with_its_cell(tmp_path: Path) -> None:
    placed(tmp_path, reference(NONE).folder)
    folder = placed(tmp_path, reference().folder, put("costs", "agreement_pct", value=1.0))
    with pytest.raises(PrunebenchError, match=f"{re.escape(str(folder))}: expected costs of names of their own"):
        leaderboard.rewrite(tmp_path, [])
    shutil.rmtree(folder)
    samples = samples_with(reference().folder, lambda frame: frame.assign(image="x"))
    placed(tmp_path, reference().folder, samples=samples)
    with pytest.raises(PrunebenchError, match=rf"{re.escape(str(folder))}: expected the 108 questions of .*{NONE}"):
        leaderboard.rewrite(tmp_path, [])
