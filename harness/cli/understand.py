"""Commands that explain and test: cost, check, goldens, regress, baseline and doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import kernels, whole
from harness.cli import options as given_as
from harness.cli.damage import naming_damaged, sound
from harness.cli.options import one_budget, pairs
from harness.cli.say import loading, put
from harness.core.errors import PrunebenchError

REGRESS = Path("configs/regress.yaml")
BASELINE = Path("results/reference/regress/baseline.json")
OUT = Path("results/local/regress")
#: text tokens of a prompt, and those of them before the image: LLaVA-1.5's own
TEXT, TEXT_BEFORE = 74, 35
Small = Annotated[Path, typer.Argument(metavar="CONFIG", help="a small sweep as YAML")]


def cost(
    method: given_as.MethodArgument,
    budget: Annotated[str, typer.Option(metavar="BUDGET", help="a budget, as in eval")] = "",
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="a name from `prunebench models`, or a local folder; no weights",
            autocompletion=given_as.complete_model,
        ),
    ] = "llava-1.5-7b",
    text_tokens: given_as.TextTokens = TEXT,
    text_before: Annotated[
        int,
        typer.Option(metavar="N", help="text tokens in front of the image; 35 is Vicuna's system prompt"),
    ] = TEXT_BEFORE,
    image: Annotated[
        str,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="pixels of the image, as in 640x480; default: an image of the most tokens",
        ),
    ] = "",
    set_: given_as.Knobs = None,
    request: Annotated[
        bool,
        typer.Option(
            "--request", help="print the cost of whole requests; METHOD and BUDGET may then be several with commas"
        ),
    ] = False,
    new_tokens: whole.NewTokens = "",
    questions: whole.Questions = "",
    batch: whole.Batches = "",
    saving: whole.Saving = "",
    bandwidth: whole.Bandwidth = "",
    peak: whole.Peak = "",
    results: whole.Measured = None,
    times: whole.Times = None,
    out: whole.Out = None,
) -> None:
    """Compute what a method costs at a budget, from its schedule; nothing is run.

    Neither weights nor a GPU are needed. An adaptive method decides for each prompt. Knobs fix the decisions of one
    prompt or of several: --set force_fusion_layer=13,14,15 --set force_exit_layer=24.
    """
    words = {"new_tokens": new_tokens, "questions": questions, "batch": batch, "saving": saving}
    words |= {"bandwidth": bandwidth, "peak": peak}
    if request:
        wanted = whole.read(words, method)
        with naming_damaged() as damaged:
            if results is not None:
                whole.refuse_beside_results((text_tokens, text_before) != (TEXT, TEXT_BEFORE) or bool(image or set_))
                priced = whole.from_cells(sound(results, damaged), model, method, budget)
            else:
                loading()
                priced = whole.from_plans(model, method, budget, text_tokens, text_before, image, pairs(set_ or []))
            whole.say(priced, wanted, out)
            if times is not None:
                whole.say_times(times, model, method, wanted)
        return
    whole.refuse_without_request({**words, "results": results, "times": times, "out": out})
    one_budget(budget, "cost")
    loading()
    from harness.core import budget as budgets
    from harness.cost import plan
    from harness.method import build, method_class

    asked = budgets.parse(budget or None)
    size = plan.size_of(image) if image else None
    prompt = plan.usual_prompt(model, size).with_text(text_tokens)
    own = plan.model_knobs(model, method)
    built = [
        build(method, asked, {**own, **knobs}, prompt)
        for knobs in plan.each_prompt(method_class(method), pairs(set_ or []))
    ]
    put(plan.report(built, prompt, text_before, plan.seen_prompts(model, built, size)))


def check(
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD",
            help="a name from `prunebench methods`, file.py:Class or package.module:Class",
            autocompletion=given_as.complete_method,
            show_default=False,
        ),
    ] = "",
    budget: Annotated[int, typer.Option(metavar="N", help="visual tokens to test at; the check models have 64")] = 16,
    set_: given_as.Knobs = None,
    all_: Annotated[bool, typer.Option("--all", help="test every registered method")] = False,
    families: Annotated[
        bool,
        typer.Option("--families", help="test on a tiny model of every family instead, with images of unlike sizes"),
    ] = False,
) -> None:
    """Test a method, your own or a shipped one; exit code 1 if a property fails."""
    if bool(method) == all_:
        raise PrunebenchError("check: expected one METHOD (see `prunebench methods`) or --all")
    if families and (set_ or budget != 16):
        raise PrunebenchError("check --families tests half of each prompt's tokens: leave --set and --budget out")
    loading()
    import torch

    from harness.method import method_class, registered
    from harness.proof.conformance.kit import check_families, check_named, table

    torch.manual_seed(0)
    failed = []
    if families:
        for name in registered() if all_ else [method]:
            for fit in check_families(method_class(name)):
                if fit.refused:
                    put(f"{fit.method} on {fit.family}: does not run: {fit.refused}", flush=True)
                    continue
                put(f"{fit.method} on {fit.family}: {fit.failed} of {len(fit.verdicts)} properties fail", flush=True)
                if fit.failed or not all_:
                    put(f"{table(fit.verdicts)}\n")
                failed += [f"{fit.method} on {fit.family}"] if fit.failed else []
        if failed:
            put(f"{', '.join(failed)}: not conforming")
            raise typer.Exit(1)
        return
    for name in registered() if all_ else [method]:
        verdicts = check_named(name, budget, pairs(set_ or []))
        wrong = sum(v.status == "FAIL" for v in verdicts)
        put(f"{name}: {wrong} of {len(verdicts)} properties fail\n{table(verdicts)}\n", flush=True)
        failed += [name] if wrong else []
    if failed:
        put(f"{', '.join(failed)}: not conforming")
        raise typer.Exit(1)


def goldens(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="folder of the recordings: index.json, models/, inputs/ and cases/"),
    ] = Path("tests/goldens"),
) -> None:
    """Replay recorded outputs of official code; exit code 1 if one differs."""
    loading()
    import torch

    from harness.proof.goldens import run_folder

    torch.manual_seed(0)
    failed = total = 0
    for outcome in run_folder(folder):
        total += 1
        failed += outcome.mismatch is not None
        word = "FAIL" if outcome.mismatch else "ok  "
        put(f"{word}  {outcome.case:<34} {outcome.largest:9.2e}  {outcome.mismatch or ''}".rstrip(), flush=True)
    put(f"{total - failed} of {total} cases reproduce")
    if failed or not total:
        raise typer.Exit(1)


def regress(
    config: Small = REGRESS,
    baseline: given_as.Baseline = BASELINE,
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="where regress.md, images of changed answers and the run are written"),
    ] = OUT,
    workers: given_as.Workers = 1,
    faults: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="write into this file which seeded faults the comparison catches instead; takes minutes",
        ),
    ] = None,
) -> None:
    """Measure a small sweep afresh; exit code 1 if an answer differs from the baseline."""
    kernels.hold()
    loading()
    if faults is not None:
        from harness.proof import gate_faults

        tried = gate_faults.try_all(config)
        faults.parent.mkdir(parents=True, exist_ok=True)
        faults.write_text(gate_faults.markdown(tried))
        put(f"table  {faults}")
        strange = gate_faults.unexpected(tried)
        if strange:
            put("\n".join(strange))
            raise typer.Exit(1)
        return
    from harness.proof.gate import command

    if not command.regress(config, baseline, out, workers=workers, say=put).passed:
        raise typer.Exit(1)


def baseline(
    config: Small = REGRESS,
    baseline: Annotated[Path, typer.Option(metavar="FILE", help="the file to renew")] = BASELINE,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="where the run is written")] = OUT,
    workers: given_as.Workers = 1,
) -> None:
    """Renew the baseline of `prunebench regress`.

    The command is refused if a file outside results/ is uncommitted.
    """
    kernels.hold()
    loading()
    from harness.proof.gate import command

    command.renew(config, baseline, out, workers=workers, say=put)


def doctor() -> None:
    """Check this installation; exit code 1 and the mending command if it is broken."""
    loading()
    from harness.install.doctor import report

    if not report(put):
        raise typer.Exit(1)
