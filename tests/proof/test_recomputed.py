"""`results verify` finds every number of a cell that was changed by someone who knows the format, or says which not."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.core.paths import TOP
from harness.proof.recomputed import again
from harness.store import files
from harness.store.sealed import cost_means
from harness.store.verify import verify

REFERENCE = TOP / "results" / "reference"
#: only the run itself knows these; docs/results.md lists them
STATED = {
    ("answering_wall_s",),
    ("provenance", "wall_s"),
    ("provenance", "batch_size"),
    ("provenance", "prefix_sharing"),
    ("provenance", "dirty"),
    ("samples", "prefill_ideal_flops"),
}


def place(task: str, method: str, root: Path) -> Path:
    """A committed cell, alone in a results folder."""
    source = next((REFERENCE / "cells" / task).glob(f"mini-{method}-*"))
    folder = root / "cells" / task / source.name
    shutil.copytree(source, folder)
    return folder


def resign(folder: Path, body: dict[str, Any]) -> None:
    body.pop("checksum", None)
    body["samples_sha256"] = hashlib.sha256((folder / "samples.parquet").read_bytes()).hexdigest()
    (folder / "cell.json").write_text(json.dumps({**body, "checksum": files.checksum(body)}))


def numbers(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every number and switch."""
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(item, (*where, name))
    elif isinstance(value, int | float):
        yield where


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + "x"
    return value + 1 if isinstance(value, int) else value + 1e-3 if abs(value) <= 1 else value * (1 + 1e-6)


def change(body: Any, where: tuple[Any, ...]) -> None:
    *path, last = where
    for name in path:
        body = body[name]
    body[last] = other(body[last])


def found(root: Path) -> bool:
    lines, fine = verify(root, again)
    assert not any("not recomputed" in line for line in lines), lines
    return not fine


@pytest.mark.parametrize(
    ("task", "method"), [("pope", "fastv-64"), ("mme", "visipruner-64"), ("gqa", "random-32"), ("pope", "fitprune-64")]
)
def test_every_number_of_a_cell_file_is_computed_again(tmp_path: Path, task: str, method: str) -> None:
    folder = place(task, method, tmp_path)
    whole = (folder / "cell.json").read_text()
    assert not found(tmp_path)
    missed = set()
    places = list(numbers(json.loads(whole)))
    assert len(places) > 40
    for where in places:
        body = json.loads(whole)
        change(body, where)
        resign(folder, body)
        if not found(tmp_path):
            missed.add(where)
        (folder / "cell.json").write_text(whole)
    assert missed <= STATED
    assert ("answering_wall_s",) in missed, "the list holds nothing that is found"


@pytest.mark.parametrize(("task", "method"), [("pope", "fastv-64"), ("mme", "visipruner-64"), ("textvqa", "none-none")])
def test_every_column_of_the_samples_is_computed_again(tmp_path: Path, task: str, method: str) -> None:
    """One value of one sample; means in the cell file follow, as a forger would have it."""
    folder = place(task, method, tmp_path)
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    body = json.loads((folder / "cell.json").read_text())
    costs = [name for name in rows[0] if name in body["costs"] or f"{name}_share" in body["costs"]]
    missed = set()
    for column in rows[0]:
        changed = [{**rows[0], column: other(rows[0][column])}, *rows[1:]]
        pq.write_table(pa.Table.from_pylist(changed), folder / "samples.parquet")
        means = cost_means({name: [row[name] for row in changed] for name in costs})
        resign(folder, {**body, "costs": means})
        if not found(tmp_path):
            missed.add(("samples", column))
    notes = {("samples", name) for name in ("forced", "exit_layer", "fusion_layer", "fused", "answer")}
    assert missed <= STATED | notes, "an answer with a letter more can be as right as before"


def test_all_right_is_not_believed(tmp_path: Path) -> None:
    """Scores, metrics and interval of a perfect model over the answers of another."""
    folder = place("pope", "fastv-64", tmp_path)
    table = pq.read_table(folder / "samples.parquet")
    at = table.schema.get_field_index("score")
    pq.write_table(table.set_column(at, "score", pa.array([1.0] * len(table))), folder / "samples.parquet")
    body = json.loads((folder / "cell.json").read_text())
    body["metrics"] = dict.fromkeys(body["metrics"], 1.0)
    body["interval"].update(low=0.999, high=1.0)
    resign(folder, body)
    assert found(tmp_path)


def test_where_data_or_model_are_not_at_hand_it_is_said(tmp_path: Path) -> None:
    folder = place("pope", "fastv-64", tmp_path)
    body = json.loads((folder / "cell.json").read_text())
    body["provenance"]["request"].update(data="/no/such/folder", model="org/model")
    resign(folder, body)
    lines, fine = verify(tmp_path, again)
    assert fine, lines
    assert any("scores not recomputed, data not at hand: pope" in line for line in lines), lines
    assert any("costs not recomputed, model not at hand: org/model is on the hub" in line for line in lines)
    body["metrics"]["pope_f1_score"] = 0.5
    body["interval"]["low"] -= 0.01
    resign(folder, body)
    assert not verify(tmp_path, again)[1], "the interval needs no data"


def test_a_method_that_is_gone_leaves_the_dense_flops_as_stated(tmp_path: Path) -> None:
    """Only the method knows whether tokens leave inside a layer."""
    folder = place("pope", "fitprune-64", tmp_path)
    body = json.loads((folder / "cell.json").read_text())
    body["provenance"]["request"].update(method="/no/such/method.py:Gone")
    resign(folder, body)
    lines, fine = verify(tmp_path, again)
    assert fine, lines
    assert any("prefill_dense_flops not recomputed, method not at hand" in line for line in lines), lines


@pytest.mark.parametrize("grids", [None, 5, [[1]], [["a", 2, 3]], [[24, 24]], {}, [[1e300, 1e300, 1]]])
def test_a_forged_shape_is_no_traceback(tmp_path: Path, grids: object) -> None:
    folder = place("pope", "fastv-64", tmp_path)
    body = json.loads((folder / "cell.json").read_text())
    body["provenance"]["grids"] = grids
    resign(folder, body)
    assert found(tmp_path)


def test_a_cell_from_before_a_knob_is_not_wrong() -> None:
    """HiPrune's variants came later than its first cells; a knob that was always there must be in its cell."""
    from harness.method import method_class
    from harness.proof.recomputed import _info
    from harness.runner.running import info_of

    hiprune, cdpruner = method_class("hiprune"), method_class("cdpruner")
    now = info_of(hiprune)
    assert now["variant_knobs"] == {"official": "llava"}
    before = {name: value for name, value in now.items() if name != "variant_knobs"}
    assert _info(hiprune, before) == before
    assert _info(hiprune, now) == now
    assert _info(cdpruner, {}) == info_of(cdpruner)
    assert "variant_knobs" in _info(cdpruner, {})
