"""The README's table: what "64 tokens" costs under each unit of budget, for one model, from the methods' own
schedules."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

from harness.core.budget import Budget, cost_of
from harness.core.errors import PrunebenchError
from harness.core.shape import PromptShape
from harness.method import build


def units_table(
    prompt: PromptShape,
    tokens: int = 64,
    methods: Sequence[str] = ("uniform", "fastv", "sparsevlm", "downsample"),
) -> str:
    """Markdown: per unit and method the `keep` that meets the budget, mean visual tokens, prefill TFLOPs and their
    share.

    The FLOPs budget is what `tokens` before the language model cost, so all three lines of a method mean "64" to
    somebody.
    """
    before_llm = cost_of(build(methods[0], Budget("kept", tokens), {}, prompt), prompt)
    assert before_llm is not None
    budgets = [Budget("kept", tokens), Budget("avg", tokens), Budget("flops", ratio=round(before_llm.ratio, 3))]
    lines = []
    for budget in budgets:
        for name in methods:
            try:
                method = build(name, budget, {}, prompt)
            except PrunebenchError:
                lines.append([f"`{budget}`", name, "not reachable", "", "", ""])
                continue
            found = cost_of(method, prompt)
            assert found is not None
            lines.append(
                [
                    f"`{budget}`",
                    name,
                    f"keep={method.knobs()['keep']}",
                    f"{found.mean_visual:.1f}",
                    f"{found.prefill_flops / 1e12:.2f}",
                    f"{100 * found.ratio:.1f}",
                ]
            )
    head = ["BUDGET", "method", "solved", "mean visual (tokens/layer)", "prefill (TFLOPs)", "of unpruned (%)"]
    align = ["left"] * 3 + ["right"] * 3
    return str(tabulate(lines, headers=head, tablefmt="github", disable_numparse=True, colalign=align))
