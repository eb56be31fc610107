"""The command `prunebench`. Every heavy import is inside the command that needs it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.core.errors import PrunebenchError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130


def _pairs(items: list[str]) -> dict[str, str]:
    """`["a=1 b=2", "c=3"]` -> a dict. Raises PrunebenchError for what is no pair, and for a name that stands twice."""
    out: dict[str, str] = {}
    for item in " ".join(items).split():
        key, eq, value = item.partition("=")
        if not eq or not key or not value:
            raise PrunebenchError(f"--set {item!r}: expected knob=value, as in --set boundary=3")
        if key in out:
            raise PrunebenchError(f"--set {item!r}: {key} is given twice, as {out[key]} before: give it once")
        out[key] = value
    return out


def _one_budget(text: str, command: str) -> None:
    """Raise PrunebenchError for a list of budgets."""
    if "," in text:
        raise PrunebenchError(
            f"--budget {text!r}: {command} takes one budget: give one of them, and call it again for the others"
        )


@app.command("eval")
def eval_command(
    method: Annotated[
        str, typer.Option(help="a name from `prunebench methods`, or path/to/file.py:Class; several with commas")
    ],
    budget: Annotated[
        str,
        typer.Option(
            help="64 (tokens kept), 64avg (mean per layer), 0.35flops, native or calibrated; several with commas"
        ),
    ] = "",
    model: Annotated[str, typer.Option(help="mini, llava-1.5-7b, llava-1.5-13b, a hub id or a local folder")] = "mini",
    tasks: Annotated[
        str, typer.Option(help="of gqa, mme, pope, textvqa, textvqa_ocr; comma-separated")
    ] = "gqa,mme,pope,textvqa",
    limit: Annotated[str, typer.Option(help="questions per task (whole images), or all")] = "",
    batch: Annotated[
        int, typer.Option(help="most prompts a batch (on a CPU 4 for adaptive methods); no effect on answers (float32)")
    ] = 16,
    seed: Annotated[str, typer.Option(help="of the method's randomness; several with commas")] = "0",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (bfloat16 on CUDA, float32 on CPU), float32, bfloat16, float16")
    ] = "auto",
    data: Annotated[str, typer.Option(help="mini, hub or a folder; default: mini for the mini model, else hub")] = "",
    positions: Annotated[
        str, typer.Option(help="of kept tokens: method (as the method does), original or compact")
    ] = "method",
    set_: Annotated[list[str] | None, typer.Option("--set", help="knob=value of the method, repeatable")] = None,
    results: Annotated[Path, typer.Option(help="where cells and tables are written")] = Path("results/local"),
    fresh: Annotated[bool, typer.Option("--fresh", help="measure again what is already sealed")] = False,
    share: Annotated[
        bool, typer.Option("--share/--no-share", help="prefill each image once; no effect on answers (float32)")
    ] = True,
) -> None:
    """Evaluate methods at budgets beside the unpruned model; exit code 2 where another runner holds a cell."""
    from harness.install.doctor import torchvision_problem

    mismatch = torchvision_problem()
    if mismatch:
        raise PrunebenchError(mismatch)
    from harness.runner.evaluate import evaluate
    from harness.runner.pace import Pace
    from harness.runner.request import Request
    from harness.runner.run import Options
    from harness.tables import frame, terminal

    asked = Request(
        methods=method,
        model=model,
        budgets=budget,
        tasks=tasks,
        limit=limit,
        seeds=seed,
        device=device,
        dtype=dtype,
        data=data,
        positions=positions,
        knobs=_pairs(set_ or []),
    )
    finished = evaluate(asked, Options(results, Pace(batch, share), fresh))
    cells = list(finished.cells.values())
    print()
    if cells:
        print(terminal.table(frame.rows(cells)))
        print()
    if finished.reused:
        print(f"{finished.reused} of {len(cells)} cells were sealed before and reused; FRESH=1 measures again")
    for cell in cells:
        print(f"sealed  {cell.folder}")
    print(f"tables  {finished.csv}  {finished.markdown}")
    finished.check_whole()


@app.command("cost")
def cost_command(
    method: Annotated[str, typer.Argument(help="a name from `prunebench methods`, or path/to/file.py:Class")],
    budget: Annotated[str, typer.Option(help="as in eval")] = "",
    model: Annotated[
        str, typer.Option(help="llava-1.5-7b, llava-1.5-13b, mini or a local folder; no weights")
    ] = "llava-1.5-7b",
    text_tokens: Annotated[int, typer.Option(help="text tokens of the prompt, before and behind the image")] = 74,
    text_before: Annotated[
        int, typer.Option(help="how many of them stand before the image; 35 is Vicuna's system prompt")
    ] = 35,
    set_: Annotated[list[str] | None, typer.Option("--set", help="knob=value of the method, repeatable")] = None,
) -> None:
    """What a method costs at a budget, from its schedule: no weights, no GPU, nothing is run.

    Adaptive methods: force what the prompt decides by knobs, for one prompt or several: --set
    force_fusion_layer=13,14,15 --set force_exit_layer=24.
    """
    from harness.core import budget as budgets
    from harness.cost import plan as cost
    from harness.method import build, method_class

    _one_budget(budget, "cost")
    prompt, asked = cost.usual_prompt(model).with_text(text_tokens), budgets.parse(budget or None)
    own = cost.model_knobs(model, method)
    built = [
        build(method, asked, {**own, **knobs}, prompt)
        for knobs in cost.each_prompt(method_class(method), _pairs(set_ or []))
    ]
    print(cost.report(built, prompt, text_before))


@app.command("ablate")
def ablate_command(
    file: Annotated[Path, typer.Argument(help="a YAML file, as in configs/ablations/")],
    model: Annotated[str, typer.Option(help="in place of the file's")] = "",
    tasks: Annotated[str, typer.Option(help="in place of the file's; comma-separated")] = "",
    limit: Annotated[str, typer.Option(help="questions per task (whole images), or all")] = "",
    batch: Annotated[
        int, typer.Option(help="most prompts a batch (on a CPU 4 for adaptive methods); no effect on answers (float32)")
    ] = 16,
    seed: Annotated[str, typer.Option(help="of the methods' randomness")] = "0",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (bfloat16 on CUDA, float32 on CPU), float32, bfloat16, float16")
    ] = "auto",
    data: Annotated[str, typer.Option(help="mini, hub or a folder; default: mini for the mini model, else hub")] = "",
    results: Annotated[Path, typer.Option(help="where cells and tables are written")] = Path("results/local"),
) -> None:
    """Run the variants of an ablation and print them as one table."""
    from harness.runner import ablations
    from harness.runner.pace import Pace
    from harness.runner.run import Options

    names = tuple(t.strip() for t in tasks.split(",") if t.strip())
    plan = ablations.load(file).changed(model=model, tasks=names, limit=limit)
    asked = ablations.requests(plan, device=device, dtype=dtype, seed=seed, data=data or None)
    print(ablations.table(plan, ablations.run(plan, asked, Options(results, Pace(batch)))))


@app.command("analyze")
def analyze_command(
    model: Annotated[
        str, typer.Argument(help="mini, llava-1.5-7b, llava-1.5-13b, a hub id or a local folder")
    ] = "mini",
    tasks: Annotated[
        str, typer.Option("--tasks", "--task", help="of gqa, mme, pope, textvqa, textvqa_ocr; with commas")
    ] = "gqa,mme,pope,textvqa",
    limit: Annotated[str, typer.Option(help="questions per task (whole images), or all; default 36")] = "",
    batch: Annotated[
        int, typer.Option(help="most prompts a batch (on a CPU 4 for adaptive methods); results do not depend on it")
    ] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (bfloat16 on CUDA, float32 on CPU), float32, bfloat16, float16")
    ] = "auto",
    data: Annotated[str, typer.Option(help="the test data, as in eval")] = "",
    calibration_data: Annotated[
        str, typer.Option(help="what is analysed: a folder, hub (train and val splits) or fresh (mini scenes)")
    ] = "",
    layers: Annotated[str, typer.Option(help="first-last: restrict the knock-outs; no stages and no config then")] = "",
    out: Annotated[str, typer.Option(help="default: results/local/analysis/<model>")] = "",
    write_config: Annotated[
        bool, typer.Option("--write-config", help="write configs/visipruner/<model>.yaml, not just to the output")
    ] = False,
    samples: Annotated[bool, typer.Option(help="also write numbers per sample, as parquet")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="do not continue from the journal of an earlier run")] = False,
) -> None:
    """Where a model uses vision: attention, lenses, knock-outs, contributions, stages, and a VisiPruner config from
    them."""
    import json

    from harness.analysis.derive import config_file
    from harness.analysis.study import AnalysisRequest, analyse
    from harness.analysis.text import report
    from harness.models.config import model_config

    names = tuple(t.strip() for t in tasks.split(",") if t.strip())
    file = analyse(
        AnalysisRequest(
            model,
            names,
            limit or None,
            batch,
            device,
            dtype,
            data or None,
            calibration_data or None,
            layers or None,
            Path(out) if out else None,
            config_file(model_config(model).name) if write_config else None,
            samples,
            fresh,
        )
    )
    print()
    print(report(json.loads(file.read_text())))
    print(f"\nanalysis  {file}")


@app.command("methods")
def methods_command() -> None:
    """List the registered methods."""
    import dataclasses

    from harness.method import registered

    for name, cls in registered().items():
        fields = dataclasses.fields(cls)
        knobs = ", ".join(f.name if f.default is dataclasses.MISSING else f"{f.name}={f.default}" for f in fields)
        about = sys.modules[cls.__module__].__doc__ or cls.__doc__ or ""
        print(f"{name:<12} {(about.strip().splitlines() or [''])[0]}")
        print(f"{'':<12} knobs: {knobs or 'none'}")
        said = [trait.replace("_", " ") for trait, holds in dataclasses.asdict(cls.traits).items() if holds]
        print(f"{'':<12} traits: {', '.join(said) or 'none'}" + (f"; paper: {cls.paper}" if cls.paper else ""))


@app.command("doctor")
def doctor_command() -> None:
    """Check this installation; exit code 1 and the mending command where something is wrong."""
    from harness.install.doctor import report

    if not report():
        raise typer.Exit(1)


@app.command("goldens")
def goldens_command(
    folder: Annotated[Path, typer.Argument(help="index.json, models/, inputs/, cases/")] = Path("tests/goldens"),
) -> None:
    """Replay recorded outputs of official implementations; exit code 1 on any mismatch."""
    import torch

    from harness.proof.goldens import run_folder

    torch.manual_seed(0)
    failed = total = 0
    for outcome in run_folder(folder):
        total += 1
        failed += outcome.mismatch is not None
        word = "FAIL" if outcome.mismatch else "ok  "
        print(f"{word}  {outcome.case:<34} {outcome.largest:9.2e}  {outcome.mismatch or ''}".rstrip(), flush=True)
    print(f"{total - failed} of {total} cases reproduce")
    if failed or not total:
        raise typer.Exit(1)


@app.command("check")
def check_command(
    method: Annotated[
        str, typer.Argument(help="a name from `prunebench methods`, file.py:Class or package.module:Class")
    ] = "",
    budget: Annotated[int, typer.Option(help="visual tokens to test at; the check models have 64")] = 16,
    set_: Annotated[list[str] | None, typer.Option("--set", help="knob=value of the method, repeatable")] = None,
    all_: Annotated[bool, typer.Option("--all", help="every registered method")] = False,
) -> None:
    """Test a method against the conformance kit; exit code 1 on a failure."""
    import torch

    from harness.method import registered
    from harness.proof.conformance.kit import check_named, table

    if bool(method) == all_:
        raise PrunebenchError("check: expected one METHOD (see `prunebench methods`) or --all")
    torch.manual_seed(0)
    failed = []
    for name in registered() if all_ else [method]:
        verdicts = check_named(name, budget, _pairs(set_ or []))
        wrong = sum(v.status == "FAIL" for v in verdicts)
        print(f"{name}: {wrong} of {len(verdicts)} properties fail\n{table(verdicts)}\n", flush=True)
        failed += [name] if wrong else []
    if failed:
        print(f"{', '.join(failed)}: not conforming")
        raise typer.Exit(1)


@app.command("mutations")
def mutations_command(
    out: Annotated[Path, typer.Option(help="the table, as Markdown")] = Path("results/local/mutations.md"),
) -> None:
    """Seed faults and write what caught each; minutes; exit code 1 where one survives."""
    import torch

    from harness.proof.faults import FAULTS, markdown, try_fault, try_sound

    torch.manual_seed(0)
    try_sound()
    caught = []
    for fault in FAULTS:
        caught.append(try_fault(fault))
        print(f"{'SURVIVED' if caught[-1].survived else 'caught  '}  {fault.name}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(markdown(caught))
    print(f"table  {out}")
    if any(c.survived for c in caught):
        raise typer.Exit(1)


@app.command("sweep")
def sweep_command(
    file: Annotated[Path, typer.Argument(help="YAML, as configs/mini.yaml")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value of the file: limit=50, budgets=64,32, methods=fastv,random"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show the cells, what is sealed and an estimate; run nothing")
    ] = False,
    limit: Annotated[
        str, typer.Option(help="questions per task (whole images), or all; default: the file's, else the model's")
    ] = "",
    batch: Annotated[
        int, typer.Option(help="most prompts a batch (on a CPU 4 for adaptive methods); no effect on answers (float32)")
    ] = 16,
    workers: Annotated[int, typer.Option(min=1, help="processes: one per GPU, or sharing the CPU")] = 1,
    share: Annotated[
        bool, typer.Option("--share/--no-share", help="prefill each image once; no effect on answers (float32)")
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    results: Annotated[Path, typer.Option(help="where cells and tables are written")] = Path("results/local"),
    fresh: Annotated[bool, typer.Option("--fresh", help="measure again what is already sealed")] = False,
) -> None:
    """Evaluate models x methods x budgets x seeds in one pass; sealed cells are reused, so the same command
    continues."""
    from harness.runner import sweep
    from harness.runner.pace import Pace
    from harness.runner.run import Options

    plan, options = sweep.load(file, set_ or []), Options(results, Pace(batch, share), fresh)
    if dry_run:
        print(sweep.dry_run(plan, options, device=device, limit=limit))
        return
    finished = sweep.run(plan, options, workers=workers, device=device, limit=limit)
    print(f"tables  {finished.csv}  {finished.markdown}")


@app.command("regress")
def regress_command(
    config: Annotated[Path, typer.Argument(help="a sweep as YAML")] = Path("configs/regress.yaml"),
    baseline: Annotated[Path, typer.Option(help="what is expected, from `prunebench baseline`")] = Path(
        "results/reference/regress/baseline.json"
    ),
    out: Annotated[
        Path, typer.Option(help="where regress.md, images of changed answers and the run are written")
    ] = Path("results/local/regress"),
    workers: Annotated[int, typer.Option(min=1, help="processes that share the CPU")] = 1,
    faults: Annotated[
        Path | None, typer.Option(help="instead: which seeded faults the gate catches, written to this file; minutes")
    ] = None,
) -> None:
    """Run a small sweep afresh and compare every sample with the baseline; exit code 1 where it differs."""
    if faults is not None:
        from harness.proof import gate_faults as regress_faults

        tried = regress_faults.try_all(config)
        faults.parent.mkdir(parents=True, exist_ok=True)
        faults.write_text(regress_faults.markdown(tried))
        print(f"table  {faults}")
        strange = regress_faults.unexpected(tried)
        if strange:
            print("\n".join(strange))
            raise typer.Exit(1)
        return
    from harness.proof.gate import command

    if not command.regress(config, baseline, out, workers=workers).passed:
        raise typer.Exit(1)


@app.command("baseline")
def baseline_command(
    config: Annotated[Path, typer.Argument(help="a sweep as YAML")] = Path("configs/regress.yaml"),
    baseline: Annotated[Path, typer.Option(help="the file to renew")] = Path("results/reference/regress/baseline.json"),
    out: Annotated[Path, typer.Option(help="where the run is written")] = Path("results/local/regress"),
    workers: Annotated[int, typer.Option(min=1, help="processes that share the CPU")] = 1,
) -> None:
    """Renew what `prunebench regress` compares with; refused where anything outside results/ is uncommitted."""
    from harness.proof.gate import command

    command.renew(config, baseline, out, workers=workers)


@app.command("bench")
def bench_command(
    model: Annotated[
        str, typer.Option(help="as in eval; with --random-weights llava-1.5-7b, llava-1.5-13b, mini or a local folder")
    ] = "mini",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="the model's real sizes, weights made on the device, no download")
    ] = False,
    layers: Annotated[int | None, typer.Option(help="with --random-weights: that many decoder layers of it")] = None,
    methods: Annotated[
        str, typer.Option(help="comma-separated; the bare model and none are always timed")
    ] = "none,fastv,sparsevlm,visipruner",
    budgets: Annotated[str, typer.Option(help="as --budget in eval; comma-separated")] = "192,128,64",
    batch: Annotated[str, typer.Option(help="prompts a batch; comma-separated")] = "1,8",
    text_tokens: Annotated[int, typer.Option(help="text tokens of a prompt")] = 74,
    new_tokens: Annotated[int, typer.Option(help="tokens to generate, the prefill's own included")] = 16,
    repeats: Annotated[int, typer.Option(help="recorded runs of every row")] = 10,
    warmup: Annotated[int, typer.Option(help="runs of every row before them that are thrown away")] = 2,
    set_: Annotated[list[str] | None, typer.Option("--set", help="METHOD.knob=value, repeatable")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (bfloat16 on CUDA, float32 on CPU), float32, bfloat16, float16")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="of weights, input and the methods' randomness")] = 0,
    out: Annotated[Path, typer.Option(help="where bench.json and BENCH.md are written")] = Path("results/local/bench"),
) -> None:
    """Time methods beside the unpruned model: prefill, decode, memory. The only command whose times may be quoted."""
    from harness.bench import command
    from harness.bench.settings import Settings, knobs_by_method

    def listed(text: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())

    try:
        batches = tuple(int(part) for part in listed(batch))
    except ValueError:
        raise PrunebenchError(f"--batch {batch!r}: expected a number of prompts or several, as in 1,8") from None
    settings = Settings(
        model,
        random_weights,
        layers,
        listed(methods),
        listed(budgets),
        batches,
        text_tokens,
        new_tokens,
        repeats,
        warmup,
        knobs_by_method(set_ or []),
        device,
        dtype,
        seed,
    )
    command.run(settings, out)


@app.command("leaderboard")
def leaderboard_command(
    results: Annotated[Path, typer.Option(help="folder with sealed cells")] = Path("results/local"),
    figures: Annotated[bool, typer.Option(help="draw figures/*.svg and *.png too")] = True,
) -> None:
    """Write leaderboard.csv, LEADERBOARD.md, significance.csv and figures from sealed cells; needs no model."""
    from harness.store.store import Store
    from harness.tables import leaderboard

    cells = Store(results).cells()
    if not cells:
        raise PrunebenchError(
            f"{results}: expected sealed cells, found none: `make eval METHOD=visipruner BUDGET=64` or `make sweep`"
            " makes them"
        )
    csv, markdown = leaderboard.write(cells, results, figures=figures)
    print(f"tables  {csv}  {markdown}")
    if figures:
        print(f"figures {results / 'figures'}")


@app.command("published")
def published_command(
    source: Annotated[
        Path, typer.Argument(help="CSV of collected results: model, method, budget_label, budget_semantics, ...")
    ],
    out: Annotated[Path, typer.Option(help="the cleaned table")] = Path("results/published.csv"),
) -> None:
    """Clean collected published results into tidy columns with our names and budget units."""
    from harness.store.files import write_atomic
    from harness.tables import published as published_results

    text, dropped = published_results.clean(source)
    write_atomic(out, text.encode())
    print(
        f"wrote  {out}: {text.count(chr(10)) - 1} numbers; {dropped} rows left out, whose source names nothing that one"
        " could look up"
    )


@app.command("report")
def report_command(
    results: Annotated[Path, typer.Option(help="folder with sealed cells")] = Path("results/local"),
    samples: Annotated[int, typer.Option(help="samples per task to look at; 0 for none")] = 100,
    data: Annotated[
        str, typer.Option(help="where the images are: mini, hub or a folder; default: where the cells were measured")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="the page; default: RESULTS/report/index.html")] = None,
) -> None:
    """Write one self-contained page: leaderboard, accuracy against FLOPs, samples with their kept tokens, analysis."""
    from harness.report import page as report

    report.write(results, out, samples, data)


@app.command("show")
def show_command(
    sample: Annotated[str, typer.Option(help="as in pope/000123")],
    method: Annotated[str, typer.Option(help="one or several, comma-separated: visipruner,fastv")] = "visipruner",
    budget: Annotated[str, typer.Option(help="as measured; default: the only one, else 64")] = "",
    model: Annotated[str, typer.Option(help="needed where the results hold several")] = "",
    data: Annotated[
        str, typer.Option(help="where the images are: mini, hub or a folder; default: where the cells were measured")
    ] = "",
    results: Annotated[Path, typer.Option(help="folder with sealed cells")] = Path("results/local"),
    out: Annotated[Path | None, typer.Option(help="the picture; default: RESULTS/show/SAMPLE.png")] = None,
) -> None:
    """Write one sample as a picture: which tokens each method kept, layer by layer, and what it answered."""
    from harness.core import budget as budgets
    from harness.report import show

    _one_budget(budget, "show")
    budget = str(budgets.parse(budget)) if budget else ""
    names = [name.strip() for name in method.split(",") if name.strip()]
    path, found = show.write(results, sample.strip(), names, budget, model, data, out)
    print("\n".join(show.lines(found)))
    print(f"picture  {path}")


results_app = typer.Typer(no_args_is_help=True, help="Look at a results folder.")
app.add_typer(results_app, name="results")


@results_app.command("verify")
def results_verify_command(
    results: Annotated[Path, typer.Option(help="folder with cells")] = Path("results/local"),
) -> None:
    """Hash and compute again whatever a cell states; exit code 1 if anything is wrong."""
    from harness.store.verify import verify

    lines, fine = verify(results)
    print("\n".join(lines))
    if not fine:
        raise typer.Exit(1)


@results_app.command("list")
def results_list_command(
    results: Annotated[Path, typer.Option(help="folder with cells")] = Path("results/local"),
) -> None:
    """One line per cell: sealed with its score, unfinished or damaged."""
    from harness.store.verify import overview

    print("\n".join(overview(results)))


dev_app = typer.Typer(no_args_is_help=True, help="For maintainers of results and of methods/.")
app.add_typer(dev_app, name="dev")


@dev_app.command("shipped")
def dev_shipped_command() -> None:
    """Declare the present files in methods/ as the released ones: for a change that moves no result. One that does
    bumps NUMERICS_VERSION."""
    from harness.method import record_shipped

    print(f"wrote {record_shipped()}")


@dev_app.command("migrate")
def dev_migrate_command(
    results: Annotated[Path, typer.Option(help="folder with cells")] = Path("results/local"),
) -> None:
    """Seal cells of the schema before anew, in today's; identities, samples and numbers stay. Can be interrupted and
    run again."""
    from harness.upkeep.migrate import migrate

    lines, fine = migrate(results)
    print("\n".join(lines))
    if not fine:
        raise typer.Exit(1)


@app.command("readme")
def readme_command(
    results: Annotated[Path, typer.Option(help="folder with the sealed cells of the main job")] = Path(
        "results/reference"
    ),
) -> None:
    """Fill the tables of README.md and the model card from sealed cells and schedules."""
    from harness.upkeep.readme import FILES, filled

    for file in map(Path, FILES):
        file.write_text(filled(file.read_text(), results))
        print(f"filled  {file}")


@app.command(
    "lmms-eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def lmms_eval_command(context: typer.Context) -> None:
    """lmms-eval's own command line with our model class and mini tasks; exits non-zero on every failure."""
    from harness.plugin.command import lmms_cli

    raise typer.Exit(lmms_cli(context.args))


@app.command(
    "mini", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def mini_command(context: typer.Context, part: Annotated[str, typer.Argument(help="data, train or export")]) -> None:
    """Rebuild the mini world: its data (bit-identical), its model (same recipe), or the shipped files from a
    checkpoint."""
    if part == "data":
        from tasks.mini import data

        print(f"wrote {data.build(data.FOLDER)}")
    elif part == "train":
        from tasks.mini import train

        train.main(list(context.args))
    elif part == "export":
        from tasks.mini import export

        export.main(list(context.args))
    else:
        raise PrunebenchError(f"mini {part!r}: expected data, train or export")


class Interrupted(BaseException):
    """Ctrl-C. Not a KeyboardInterrupt, which typer would turn into a silent exit."""


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted


def main() -> None:
    """Entry point: errors a user can mend are one line and exit code 2; an interruption says how to continue."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        app(standalone_mode=True)
    except PrunebenchError as error:
        print(f"prunebench: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except Interrupted:
        print("\nprunebench: interrupted; answers so far are kept, the same command continues", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    finally:
        signal.signal(signal.SIGINT, before)
