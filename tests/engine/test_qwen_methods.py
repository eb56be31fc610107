"""Every registered method on Qwen-VL: it runs, a batch being its rows, or says in one line why not."""

from __future__ import annotations

import pytest
import torch
from qwens import FAMILIES, ROWS, batch, make

from harness.core import budget as budgets
from harness.core.errors import PrunebenchError
from harness.engine.attach import attach
from harness.method import Method, build, method_class, registered
from harness.models.adapters import adapter_for
from harness.proof.conformance.tiny import word_numbers

#: methods that need the tower's [CLS], or one patch a visual token -> what is said of that
REFUSED = {
    "fastervlm": "a [CLS] token",
    "holov": "a [CLS] token",
    "prumerge": "a [CLS] token",
    "visionzip": "a [CLS] token",
    "vispruner": "a [CLS] token",
    "cdpruner": "one patch a visual token",
}
#: `downsample` needs the picture: tests/runner/test_shrunk_pictures.py
#: methods that a share of the tokens says nothing to
BUDGETS = {"none": None, "knockout": None, "vtw": "native"}


def built(name: str, method: str) -> Method:
    budget = budgets.parse(BUDGETS.get(method, "40%"))
    return build(method, budget, {}, adapter_for(make(name)).usual)


@pytest.mark.parametrize("method", REFUSED)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_method_that_does_not_fit_says_why(name: str, method: str) -> None:
    with pytest.raises(PrunebenchError) as refused:
        built(name, method)
    said = str(refused.value)
    assert said.startswith(method)
    assert REFUSED[method] in said
    assert "\n" not in said


@pytest.mark.parametrize("method", [m for m in registered() if m not in (*REFUSED, "downsample")])
@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_every_other_method_runs_and_a_batch_is_its_rows(name: str, method: str) -> None:
    model, chosen = make(name), built(name, method)
    with attach(model, chosen, tokenizer=word_numbers) as run:
        run.samples, run.questions = ["a", "b", "c"], ["What?", "Is it red there?", "Why?"]
        together = model(**batch(name, ROWS)).logits[:, -1]
        costs, visual = run.costs(), [layer.visual for layer in run.trace.layers]
        positions = run.layouts[-1].positions
    assert positions.shape[2] == 3
    for row, one in enumerate(ROWS):
        with attach(model, chosen, tokenizer=word_numbers) as run:
            run.samples, run.questions = ["abc"[row]], [["What?", "Is it red there?", "Why?"][row]]
            alone = model(**batch(name, [one])).logits[0, -1]
            assert [layer.visual[0] for layer in run.trace.layers] == [layer[row] for layer in visual]
            assert {key: v[0] for key, v in run.costs().items()} == pytest.approx({k: v[row] for k, v in costs.items()})
        torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=0)
    prunes = method_class(method).budget_knobs or method == "vtw"
    assert bool(prunes) == (visual[-1] != visual[0] or visual[0] != [8, 22, 15])
