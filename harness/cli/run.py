"""Commands that run a model: eval, sweep, ablate, analyze, bench and lmms-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options as given_as
from harness.cli.options import MOST, RESULTS, TASKS, at_least_one, listed, pairs
from harness.cli.say import finished as say_finished
from harness.cli.say import loading, put
from harness.core.budget import clamped
from harness.core.command import natural
from harness.core.errors import PrunebenchError
from harness.core.spelling import given


def evaluate(
    method: given_as.Methods,
    budget: given_as.Budget = "",
    model: given_as.Model = "mini",
    tasks: given_as.Tasks = TASKS,
    include: given_as.Include = "",
    limit: given_as.Limit = "",
    batch: given_as.Batch = 16,
    workers: given_as.Workers = 1,
    seed: given_as.Seeds = "0",
    device: given_as.Device = "auto",
    dtype: given_as.Dtype = "auto",
    data: given_as.Data = "",
    prompt: given_as.Prompt = "",
    image: given_as.Padding = "",
    stands_for: given_as.StandsFor = "",
    positions: given_as.Positions = "method",
    set_: given_as.Knobs = None,
    results: given_as.WriteTo = RESULTS,
    fresh: given_as.Fresh = False,
    share: given_as.Share = True,
    wide: given_as.Wide = False,
    clamp: given_as.Clamp = False,
    judge: given_as.Judge = False,
    follow_up: given_as.FollowUp = False,
) -> None:
    """Measure methods at budgets beside the unpruned model: a table of scores and costs.

    Each method at a budget on a task is one cell of the results folder. A cell that is there already is not measured
    again, and an interrupted command continues. Exit code 2 if another runner holds one of the cells.
    """
    knobs = pairs(set_ or [])
    loading()
    from harness.install.doctor import torchvision_problem

    mismatch = torchvision_problem()
    if mismatch:
        raise PrunebenchError(mismatch)
    from harness.runner import evaluate as runner
    from harness.runner.pace import Pace
    from harness.runner.request import Request
    from harness.runner.request import listed as words
    from harness.runner.run import Options

    asked = Request(
        methods=method,
        model=model,
        budgets=clamped(words(budget)) if clamp else budget,
        tasks=tasks,
        limit=limit,
        seeds=seed,
        device=device,
        dtype=dtype,
        data=data,
        prompt=prompt,
        image=image,
        stands_for=stands_for,
        positions=positions,
        knobs=knobs,
        include=include or None,
        judge=judge,
        follow_up=follow_up,
    )
    finished = runner.evaluate(asked, Options(results, Pace(batch, share), fresh), put, workers=workers)
    say_finished(finished, results, wide)
    finished.check_whole()


def sweep(
    config: given_as.Config,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="a key of CONFIG: limit=50, budgets=64,32, methods=fastv,random"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show the cells, the sealed ones and an estimate; run nothing")
    ] = False,
    limit: given_as.Limit = "",
    batch: given_as.Batch = 16,
    workers: given_as.WorkersOrAll = None,
    executor: given_as.Executor = "processes",
    address: given_as.Address = "",
    gpus_per_worker: given_as.GpusPerWorker = 1.0,
    share: given_as.Share = True,
    device: given_as.Device = "auto",
    results: given_as.WriteTo = RESULTS,
    fresh: given_as.Fresh = False,
    wide: given_as.Wide = False,
    clamp: given_as.Clamp = False,
) -> None:
    """Measure all that a YAML file names, models x methods x budgets x seeds, as one table.

    Sealed cells are reused: the same command continues an interrupted sweep.
    """
    loading()
    from harness.runner import sweep as runner
    from harness.runner.launch.ray_cluster import chosen
    from harness.runner.pace import Pace
    from harness.runner.run import Options

    cluster = chosen(executor, address, gpus_per_worker, workers)
    plan, options = runner.load(config, set_ or []), Options(results, Pace(batch, share), fresh)
    plan = plan.clamped() if clamp else plan
    if dry_run:
        put(runner.dry_run(plan, options, device=device, limit=limit))
        return
    finished = runner.run(plan, options, put, workers=workers or 1, cluster=cluster, device=device, limit=limit)
    say_finished(finished, results, wide)


def ablate(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="an ablation as YAML, as in configs/ablations/", show_default=False)
    ],
    model: given_as.ModelInstead = "",
    tasks: given_as.TasksInstead = "",
    limit: given_as.Limit = "",
    batch: given_as.Batch = 16,
    seed: given_as.Seeds = "0",
    device: given_as.Device = "auto",
    dtype: given_as.Dtype = "auto",
    data: given_as.Data = "",
    results: given_as.WriteTo = RESULTS,
) -> None:
    """Measure the variants of one method that a YAML file names, as one table."""
    loading()
    from harness.runner import ablations
    from harness.runner.pace import Pace
    from harness.runner.run import Options

    plan = ablations.load(config).changed(model=model, tasks=listed(tasks), limit=limit)
    asked = ablations.requests(plan, device=device, dtype=dtype, seed=seed, data=data or None)
    put(ablations.table(plan, ablations.run(plan, asked, Options(results, Pace(batch)), put)))


def analyze(
    model: given_as.ModelArgument = "mini",
    tasks: given_as.Tasks = TASKS,
    limit: Annotated[
        str, typer.Option(metavar="N", help="questions per task, as 100 (whole images), or all; default: 36")
    ] = "",
    batch: given_as.Batch = 8,
    device: given_as.Device = "auto",
    dtype: given_as.Dtype = "auto",
    data: Annotated[str, typer.Option(metavar="SOURCE", help="where the tasks' data come from, as in eval")] = "",
    calibration_data: Annotated[
        str,
        typer.Option(
            metavar="SOURCE", help="the data to analyse: a folder, hub (train and val splits) or fresh (mini scenes)"
        ),
    ] = "",
    layers: Annotated[
        str,
        typer.Option(
            metavar="FIRST-LAST", help="layers to knock out, as 8-11; then no stages and no config are derived"
        ),
    ] = "",
    out: Annotated[
        str, typer.Option(metavar="FOLDER", help="where the analysis is written; default: results/local/analysis/MODEL")
    ] = "",
    write_config: Annotated[
        bool,
        typer.Option("--write-config", help="write configs/METHOD/MODEL.yaml, in place of a copy beside the analysis"),
    ] = False,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="whose knobs are derived: visipruner, vtw or fitprune")
    ] = "visipruner",
    eta: Annotated[
        float | None, typer.Option(metavar="NATS", help="of vtw: the mean divergence that a layer may cause, as 0.003")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(metavar="SHARE", help="of fitprune: the share of FLOPs to save; default 0.6")
    ] = None,
    samples: Annotated[bool, typer.Option(help="also write numbers per sample, as parquet")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="begin anew, in place of continuing an earlier run")] = False,
) -> None:
    """Find the layers that use vision, and derive settings of VisiPruner, VTW or FitPrune.

    Attention, lenses, knock-outs and contributions per layer give the stages; the stages give the config.
    """
    loading()
    import json

    from harness.analysis.study import AnalysisRequest, analyse
    from harness.analysis.text import report
    from harness.models.config import calibration_file
    from harness.models.load import locate_model

    file = analyse(
        AnalysisRequest(
            model,
            listed(tasks),
            limit or None,
            batch,
            device,
            dtype,
            data or None,
            calibration_data or None,
            layers or None,
            Path(out) if out else None,
            calibration_file(method, locate_model(model, "cpu").calibration) if write_config else None,
            samples,
            fresh,
            method,
            eta,
            ratio,
        ),
        put,
    )
    if method != "visipruner":
        put(f"\ncalibration  {file}")
        return
    put()
    put(report(json.loads(file.read_text())))
    put(f"\nanalysis  {file}")


def bench(
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="a model, as in eval; with --random-weights: llava-1.5-7b, llava-1.5-13b, mini or a local folder",
            autocompletion=given_as.complete_model,
        ),
    ] = "mini",
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights", help="the model's real sizes with weights made on the device; nothing is downloaded"
        ),
    ] = False,
    layers: Annotated[
        int | None,
        typer.Option(metavar="N", callback=at_least_one, help="with --random-weights: decoder layers to make, as 4"),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="methods, with commas; the bare model and none are always timed",
            autocompletion=given_as.complete_method,
        ),
    ] = "none,fastv,sparsevlm,visipruner",
    budgets: Annotated[str, typer.Option(metavar="BUDGETS", help="budgets, as in eval, with commas")] = "192,128,64",
    batch: Annotated[str, typer.Option(metavar="N", help="prompts in a batch; several with commas")] = "1,8",
    text_tokens: given_as.TextTokens = 74,
    new_tokens: Annotated[
        int, typer.Option(metavar="N", help="tokens to generate, the first of them by the prefill")
    ] = 16,
    repeats: Annotated[int, typer.Option(metavar="N", help="timed runs of each row of the table")] = 10,
    warmup: Annotated[int, typer.Option(metavar="N", help="runs of each row before the timed ones, not recorded")] = 2,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="METHOD.KNOB=VALUE", help="a knob of one method, as fastv.boundary=3; repeatable"
        ),
    ] = None,
    device: given_as.Device = "auto",
    dtype: given_as.Dtype = "auto",
    seed: Annotated[int, typer.Option(metavar="N", help="seed of weights, input and the methods' randomness")] = 0,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="where bench.json and BENCH.md are written")] = Path(
        "results/local/bench"
    ),
) -> None:
    """Time methods beside the unpruned model: milliseconds of prefill and decode, and memory.

    This is the only command whose times may be quoted.
    """
    loading()
    from harness.bench import command
    from harness.bench.settings import Settings, knobs_by_method

    batches = tuple(natural(part) or 0 for part in listed(batch))
    if not all(1 <= n <= MOST for n in batches):
        raise PrunebenchError(f"{given('batch', batch)}: expected a number of prompts or several, as in 1,8")
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
    command.run(settings, out, put)


def lmms_eval(context: typer.Context) -> None:
    """Run lmms-eval's own command line, with prunebench's models and the mini tasks.

    The exit code is not 0 on every failure.
    """
    loading()
    from harness.plugin.command import lmms_cli

    raise typer.Exit(lmms_cli(context.args))


def import_run(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="the folder of --output_path, or a *_results.json in it", show_default=False
        ),
    ],
    data: given_as.Data = "",
    results: given_as.WriteTo = RESULTS,
) -> None:
    """File a run of lmms-eval's own command line as cells of a results folder.

    The run needs --model prunebench, --log_samples and every question of its tasks.
    """
    loading()
    from harness.plugin.importing import import_run as importer
    from harness.tables import frame, terminal

    cells = importer(path, results, data or None, put)
    put()
    put(terminal.table(frame.rows(cells)))
