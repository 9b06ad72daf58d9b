"""The command line. Each command is one call of a public function; what takes long to import is imported inside."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer
import typer.core

from rmtjax._errors import HostError, InputError, Stopped
from rmtjax._startup import choose_platform, chosen_devices, device_for_each_core, join_hosts, keep_programs, leave
from rmtjax._text import close_output, prepare_streams, say


class _Commands(typer.core.TyperGroup):
    """Says at Ctrl-C how far a command has come, and knows a reader that has gone. Typer itself ends without a word."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except Stopped as stopped:
            say(str(stopped))
        except KeyboardInterrupt:
            say("stopped")
        except BrokenPipeError:
            _no_reader()
        leave(130)


app = typer.Typer(
    cls=_Commands,
    help="Random-matrix laws checked against Monte Carlo at scale, and what they say about fine-tuning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Seed = Annotated[int, typer.Option(help="Whole number; with it every draw is fixed.")]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the numbers as JSON; - for standard output.")
]

Coordinator = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="Share the work of several hosts; `auto` on SLURM, Open MPI, Kubernetes, TPU pods."
    ),
]
Processes = Annotated[int | None, typer.Option("--num-processes", help="How many processes there are in all.")]
Process = Annotated[int | None, typer.Option("--process-id", help="Which of them this is, from 0, which writes.")]

Platform = Annotated[str | None, typer.Option(help="cpu, gpu, cuda, rocm or tpu; by default what JAX prefers.")]
Devices = Annotated[int | None, typer.Option(help="Local devices to use, of processors cores; all by default.")]


def _console(quiet: bool = False):
    from rmtjax._console import Console

    # Into a file or a pipe a table is as wide as it needs to be; a terminal wraps it.
    return Console(quiet=quiet, width=None if sys.stdout.isatty() else 200)


def _no_reader() -> None:
    """End as a program does that writes into a closed pipe."""
    close_output()
    leave(141)


@app.command()
def claims() -> None:
    """List every claim with its equation, parameters and samplers."""
    from rich.text import Text

    from rmtjax.claims import CLAIMS
    from rmtjax.report.text import plain_equation

    console = _console()
    for claim in CLAIMS.values():
        console.print(Text(claim.name, "bold"), Text(f" {claim.source}", "dim"), sep="")
        console.print(Text(f"  {plain_equation(claim.equation)}"))
        console.print(Text(f"  parameters: {', '.join(claim.params)}"))
        console.print(Text(f"  samplers:   {', '.join(claim.samplers)}\n"))


@app.command()
def verify(
    claim: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CLAIM|GROUP|FILE.py]...",
            help="Claims by name, groups (transfer, spectra, updates, errata), or Python files that define some; all by default.",
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Draws per cell; by default what each sampler says.")] = None,
    seed: Seed = 0,
    level: Annotated[float, typer.Option(help="Probability that anything true is refuted.")] = 0.01,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Also write a page, a table and figures into this folder.")
    ] = None,
    json: Json = None,
    coordinator: Coordinator = None,
    num_processes: Processes = None,
    process_id: Process = None,
    platform: Platform = None,
    devices: Devices = None,
) -> None:
    """Test laws against Monte Carlo. Exit status 1 if one is refuted, or a known misprint is not."""
    from rmtjax._files import prepare_file, prepare_folder, write_json
    from rmtjax.claims import find_claims
    from rmtjax.montecarlo import verify
    from rmtjax.report import verdict as report

    choose_platform(platform, devices)
    first = join_hosts(coordinator, num_processes, process_id)
    crew = chosen_devices(platform, devices)
    chosen = find_claims(claim or [])
    folder = None if out is None or not first else prepare_folder("out", out)
    target = None if json is None or not first else prepare_file("json", json)
    console = _console(quiet=target == "-" or not first)
    verdict = verify(chosen, trials=trials, seed=seed, level=level, progress=None if first else False, devices=crew)
    written = [] if folder is None else report.write_report(verdict, chosen, folder)
    if target is not None:
        write_json(target, report.as_dict(verdict))
    console.print(report.table(verdict))
    console.print(f"\n{report.summary(verdict)}")
    if written:
        console.print(f"wrote {len(written)} files into {folder}")
    if not verdict.holds:
        raise typer.Exit(1)


@app.command("report")
def report_stores(
    store: Annotated[list[str], typer.Argument(metavar="STORE.zarr...", help="What sweep --out has left.")],
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder for report.html.")],
    claim: Annotated[
        list[str] | None, typer.Option(metavar="FILE.py", help="Where claims of the stores are defined, if not here.")
    ] = None,
    level: Annotated[float, typer.Option(help="Probability that anything true is refuted.")] = 0.01,
) -> None:
    """One HTML page of stored runs, which needs no network: verdicts, equations, figures, data."""
    from rmtjax._files import prepare_folder
    from rmtjax.claims import find_claims
    from rmtjax.montecarlo import judge, open_result
    from rmtjax.report.page import write_page

    known = [*find_claims([]), *(find_claims(claim) if claim else [])]
    results = [open_result(path).assign_attrs(store=path) for path in store]
    folder = prepare_folder("out", out)
    path = write_page(judge(results, known, level=level), folder / "report.html", known)
    _console().print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)", soft_wrap=True)


@app.command()
def sweep(
    claim: Annotated[str, typer.Argument(help="A claim's name, or a Python file that defines one.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=SPEC", help="Values of a parameter: a number, a,b,c or start:stop:count."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Draws per cell; 10,000, or at most so many with --until-se.")
    ] = None,
    until_se: Annotated[
        list[str] | None,
        typer.Option("--until-se", metavar="SE|OUTPUT=SE", help="Draw in each cell until its standard error is this."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, measured on a little of it, and stop.")
    ] = False,
    method: Annotated[
        str | None,
        typer.Option(
            help="Sampler, such as compressed or dense (`rmtjax claims` lists them); the claim's first by default."
        ),
    ] = None,
    entries: Annotated[
        str | None, typer.Option(help="Entries of dense matrices: gaussian, rademacher, uniform, student-t, sparse.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A further option of the sampler, such as test=1000.")
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        str | None, typer.Option(metavar="STORE.zarr", help="Store the run chunk by chunk; run again to go on.")
    ] = None,
    json: Json = None,
    coordinator: Coordinator = None,
    num_processes: Processes = None,
    process_id: Process = None,
    platform: Platform = None,
    devices: Devices = None,
) -> None:
    """Draw a claim's sampler over a grid and set the result beside the law."""
    from rmtjax._files import prepare_file, write_json
    from rmtjax.claims import find_claims
    from rmtjax.montecarlo import Run, cells_of, estimate, run
    from rmtjax.report import sweep as report

    choose_platform(platform, devices)
    first = join_hosts(coordinator, num_processes, process_id)
    crew = chosen_devices(platform, devices)
    found = find_claims([claim])
    if len(found) > 1:
        raise InputError(f"claim = {claim}: the file defines {len(found)} claims, sweep takes one")
    one = found[0]
    options = _pairs("option", option or [])
    if entries is not None:
        options["entries"] = entries
    if method is None and options:
        fitting = [name for name, sampler in one.samplers.items() if set(options) <= set(sampler.options)]
        method = fitting[0] if fitting else None
    cells = one.grid.override(**_values(one, _pairs("set", set_ or [])))
    target = None if json is None or not first else prepare_file("json", json)
    console = _console(quiet=target == "-" or not first)
    until = _targets(until_se or [])
    how = dict(
        trials=trials, until_se=until, seed=seed, method=method, options=options, store=out, devices=crew
    )  # fmt: skip
    if dry_run:
        planned = Run(one, cells, **{**how, "store": out if out is not None and os.path.exists(out) else None})
        found_out = estimate(planned)
        planned.discard()
        if target is not None:
            write_json(target, found_out._asdict())
        console.print(report.plan(planned, found_out))
        return
    result = run(one, cells, progress=None if first else False, **how)
    rows = cells_of(result)
    if target is not None:
        made = {k: v for k, v in result.attrs.items() if k not in ("claim", "wall_s", "compile_s")}
        write_json(
            target,
            {
                "claim": one.name,
                "cells": rows,
                "wall_s": result.attrs["wall_s"],
                "compile_s": result.attrs["compile_s"],
                **made,
            },
        )
    console.print(report.table(rows))
    console.print(f"\n{report.summary(result, until)}")


@app.command()
def merge(
    stores: Annotated[list[str], typer.Argument(metavar="STORE.zarr...", help="Runs of one sweep with several seeds.")],
    out: Annotated[str, typer.Option(metavar="STORE.zarr", help="Where the result of all their trials goes.")],
    json: Json = None,
) -> None:
    """Put runs of the same sweep with different seeds together."""
    from rmtjax._files import prepare_file, write_json
    from rmtjax.montecarlo import cells_of, merge_results, open_result, write_result
    from rmtjax.report import sweep as report

    target = None if json is None else prepare_file("json", json)
    console = _console(quiet=target == "-")
    result = merge_results([open_result(store) for store in stores])
    write_result(out, result)
    rows = cells_of(result)
    if target is not None:
        write_json(target, {"claim": result.attrs["claim"], "seeds": result.attrs["seed"], "cells": rows})
    console.print(report.table(rows))
    console.print(f"\nseeds {', '.join(map(str, result.attrs['seed']))}; wrote {out}")


@app.command()
def transfer(
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the Amazon reviews; found, or else digits, by default.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Source domain alone: books, dvd, electronics or kitchen.")] = None,
    target: Annotated[str | None, typer.Option(help="Target domain alone.")] = None,
    n: Annotated[int | None, typer.Option("-n", "--samples", help="Target samples; 100 reviews or 8 digits.")] = None,
    gamma: Annotated[float, typer.Option(help="Ridge parameter of the target.")] = 1.0,
    source_gamma: Annotated[float, typer.Option(help="Ridge parameter of the source.")] = 1.0,
    features: Annotated[str, typer.Option(help="counts, log, binary or tfidf.")] = "counts",
    words: Annotated[int, typer.Option(help="Most frequent words kept, 1 to 5000.")] = 5000,
    seeds: Annotated[int, typer.Option(help="Draws of the target samples.")] = 5,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Also write the table and a figure into this folder.")
    ] = None,
    json: Json = None,
) -> None:
    """Transfer a classifier between Amazon review domains: Table 1 and Figure 3 of the α-LoRA paper."""
    from rmtjax._files import prepare_file, prepare_folder, write_json
    from rmtjax.report import transfer as report
    from rmtjax.transfer.domains import run_transfer

    folder = None if out is None else prepare_folder("out", out)
    file = None if json is None else prepare_file("json", json)
    console = _console(quiet=file == "-")
    result = run_transfer(
        data, source=source, target=target, n=n, gamma=gamma, source_gamma=source_gamma, features=features, words=words,
        seeds=seeds,
    )  # fmt: skip
    written = [] if folder is None else report.write_report(result, folder)
    if file is not None:
        write_json(file, report.as_dict(result))
    if result.attrs["data"] != "amazon":
        console.print(
            "No folder of Amazon reviews was found (--data DIR); these are scikit-learn's handwritten digits.\n"
        )
    console.print(report.table(result))
    console.print(f"\n{report.gains(result)}")
    if written:
        console.print(f"wrote {len(written)} files into {folder}")


@app.command()
def finetune(
    task: Annotated[str, typer.Option(help="mnli, qnli, mrpc, rte, sst2, qqp, cola, stsb or wnli.")],
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the task (official TSV or datasets); found by default.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR|ID", help="BERT or RoBERTa, folder or hub id; the packaged MiniLM by default."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="lora, rslora, alpha-lora, dora, orthogonal, spectral-additive, spectral-rotational or full."
        ),
    ] = "alpha-lora",
    alpha: Annotated[bool, typer.Option("--alpha", help="Put α on top of the method.")] = False,
    rank: Annotated[int, typer.Option(help="Rank r of the updates.")] = 8,
    scale: Annotated[float | None, typer.Option(help="a of the factor a/r (PEFT's lora_alpha); r by default.")] = None,
    target: Annotated[str, typer.Option(help="Names of the adapted layers, with commas.")] = "query,value",
    alpha_share: Annotated[
        str, typer.Option(help="Layers that share one α: module (none), self or attention.")
    ] = "module",
    epochs: Annotated[int | None, typer.Option(help="Passes over the data; 10, or 3 for the large tasks.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples in a step.")] = 32,
    learning_rate: Annotated[float | None, typer.Option(help="At its peak; 1e-3, or 5e-5 for full.")] = None,
    warmup: Annotated[float, typer.Option(help="Share of the steps in which the rate rises to its peak.")] = 0.06,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    max_length: Annotated[int, typer.Option(help="Tokens of an example; longer ones are cut.")] = 128,
    every: Annotated[int, typer.Option("--every", "-T", help="T, steps between two moves of α.")] = 20,
    val_split: Annotated[float, typer.Option(help="Share of the training set kept for α; 1 shares all of it.")] = 0.2,
    alpha_learning_rate: Annotated[float, typer.Option(help="Learning rate of α.")] = 5e-3,
    alpha_batch_size: Annotated[
        int | None, typer.Option(help="Examples in a batch for α; --batch-size by default.")
    ] = None,
    alpha_optimizer: Annotated[str, typer.Option(help="adam or adamw.")] = "adam",
    guard: Annotated[
        float | None,
        typer.Option(metavar="P", help="Keep updates so weak that each layer's chance of an intruder is at most P."),
    ] = None,
    guard_top: Annotated[int, typer.Option(help="Leading singular vectors that count for --guard.")] = 10,
    guard_threshold: Annotated[
        float, typer.Option(help="Cosine below which a vector is an intruder for --guard.")
    ] = 0.5,
    dtype: Annotated[str, typer.Option(help="Of activations: float32 or bfloat16.")] = "float32",
    remat: Annotated[bool, typer.Option("--remat", help="Less memory, more time.")] = False,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Use only N examples of each data set, to see that all works.")
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Folder for checkpoints, adapter, metrics, curves; TASK-METHOD-SEED by default."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints; an epoch by default.")] = None,
    json: Json = None,
    platform: Platform = None,
    devices: Devices = None,
) -> None:
    """Fine-tune BERT or RoBERTa on a GLUE task with LoRA, α-LoRA or one of their relatives."""
    from rmtjax._files import prepare_file, write_json
    from rmtjax.finetune import Settings
    from rmtjax.finetune import finetune as run
    from rmtjax.report import finetune as report

    choose_platform(platform, devices)
    device_for_each_core()
    crew = chosen_devices(platform, devices)
    file = None if json is None else prepare_file("json", json)
    console = _console(quiet=file == "-")
    settings = Settings(
        task=task, data=data, model=model, method=method, alpha=alpha, rank=rank, scale=scale,
        target=tuple(name.strip() for name in target.split(",") if name.strip()), alpha_share=alpha_share, epochs=epochs,
        batch_size=batch_size, learning_rate=learning_rate, warmup=warmup, weight_decay=weight_decay, clip=clip,
        max_length=max_length, every=every, val_split=val_split, alpha_learning_rate=alpha_learning_rate,
        alpha_batch_size=alpha_batch_size, alpha_optimizer=alpha_optimizer, guard=guard, guard_top=guard_top,
        guard_threshold=guard_threshold, dtype=dtype, remat=remat, limit=limit, seed=seed,
    )  # fmt: skip
    if out is None:
        chosen = settings.checked()
        out = f"{chosen.task}-{'alpha-' if chosen.alpha else ''}{chosen.method}-{chosen.seed}"
    result = run(
        settings,
        out,
        resume=resume,
        save_every=save_every,
        devices=crew,
        announce=lambda r: console.print(f"{r}\n"),
    )
    if file is not None:
        write_json(file, result)
    console.print(report.table(result))
    console.print(f"\n{report.summary(result)}")
    console.print(f"wrote {', '.join(report.files(out))} into {out}")


@app.command()
def doctor(json: Json = None) -> None:
    """What there is to compute with, what is wrong, and the cure. Exit status 1 if something is."""
    from rich.text import Text

    from rmtjax._console import Table
    from rmtjax._files import prepare_file, write_json
    from rmtjax.doctor import as_dict, examine

    target = None if json is None else prepare_file("json", json)
    console = _console(quiet=target == "-")
    found = examine()
    if target is not None:
        write_json(target, as_dict(found))
    shown = Table(box=None, show_header=False, pad_edge=False)
    for name, value in found.found.items():
        shown.add_row(name, value)
    console.print(shown)
    for problem in found.problems:
        console.print(
            Text.assemble("\n", ("wrong", "bold red"), f"  {problem.what}\n", ("cure", "bold"), f"   {problem.cure}")
        )
    if found.problems:
        raise typer.Exit(1)
    console.print("\nnothing is wrong")


class _ScanFirst(typer.core.TyperGroup):
    """`intruders BASE TUNED` is `intruders scan BASE TUNED`."""

    def parse_args(self, ctx, args):
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["scan", *args]
        return super().parse_args(ctx, args)


intruders = typer.Typer(cls=_ScanFirst, no_args_is_help=True)
app.add_typer(
    intruders,
    name="intruders",
    help="Singular vectors that fine-tuning planted: `intruders BASE TUNED` finds them, `mend` shrinks them.",
)

Base = Annotated[
    str, typer.Argument(help="Before: safetensors file, folder or hub id; `minilm` for the packaged model.")
]
Tuned = Annotated[str, typer.Argument(help="After: the same, or a folder of a PEFT adapter or of a run of finetune.")]
Top = Annotated[int, typer.Option(help="Leading singular vectors that are looked at.")]
Threshold = Annotated[float, typer.Option(help="Cosine below which a vector is an intruder.")]
Layers = Annotated[str | None, typer.Option(metavar="PATTERN", help="Regular expression that names must contain.")]
Exact = Annotated[bool, typer.Option("--exact", help="Two SVDs a layer.")]


def _tuned(name: str) -> str:
    from rmtjax.models import model_folder

    return str(model_folder(None)) if name == "minilm" else name


@intruders.command("scan")
def scan_intruders(
    base: Base,
    tuned: Tuned,
    top: Top = 10,
    threshold: Threshold = 0.5,
    layers: Layers = None,
    exact: Exact = False,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Also write the numbers and pictures into this folder.")
    ] = None,
    json: Json = None,
) -> None:
    """Find the leading singular vectors of a tuned checkpoint that the base does not have, beside what theory expects."""
    from rmtjax._files import prepare_file, prepare_folder, write_json
    from rmtjax.intruders import scan
    from rmtjax.report import intruders as report

    folder = None if out is None else prepare_folder("out", out)
    file = None if json is None else prepare_file("json", json)
    console = _console(quiet=file == "-")
    before = None if base == "minilm" else base
    found = scan(before, _tuned(tuned), top=top, threshold=threshold, layers=layers, exact=exact)
    written = [] if folder is None else report.write_report(found, folder)
    if file is not None:
        write_json(file, found.as_dict())
    console.print(report.table(found, width=console.width))
    console.print(f"\n{report.KEY}\n", style="dim")
    console.print(report.summary(found), soft_wrap=True)
    if written:
        console.print(f"wrote {', '.join(path.name for path in written)} into {folder}")
    if found.incomplete:  # the summary names what is missing
        raise typer.Exit(1)


@intruders.command("mend")
def mend_intruders(
    base: Base,
    tuned: Tuned,
    out: Annotated[str, typer.Option(metavar="DIR", help="New folder for the mended adapter or model.")],
    scale: Annotated[
        float, typer.Option(help="What intruders' singular values are multiplied by: at least 0, below 1.")
    ] = 0.75,
    top: Top = 10,
    threshold: Threshold = 0.5,
    layers: Layers = None,
    exact: Exact = False,
) -> None:
    """Write a copy of an adapter (for PEFT) or model in which intruders are scaled down."""
    from rmtjax.intruders import mend, scan
    from rmtjax.report import intruders as report

    console, before = _console(), None if base == "minilm" else base
    asked = {"top": top, "threshold": threshold, "exact": exact}
    found = mend(before, _tuned(tuned), out, scale=scale, layers=layers, **asked)
    with_some = [layer.name for layer in found.layers if layer.intruders]
    what = f"{found.intruders} intruder{'s' * (found.intruders != 1)} in {len(with_some)} of {len(found.layers)} layers"
    left = ""
    if with_some:
        made = Path(out, Path(tuned).name) if Path(tuned).is_file() else out  # a file has become one of the same name
        after = scan(before, made, layers="|".join(f"^{re.escape(name)}$" for name in with_some), **asked)
        left = f"; {after.intruders} there now"
    console.print(f"{what} scaled by {scale:g}{left}: {out}", soft_wrap=True)
    for line in report.doubts(found):
        console.print(line, soft_wrap=True)


def _pairs(what: str, texts: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise InputError(f"{what} = {text!r}: must be NAME=VALUE")
        if name.strip() in pairs:
            raise InputError(f"{what} = {text!r}: {name.strip()} is given twice")
        pairs[name.strip()] = value.strip()
    return pairs


def _targets(texts: list[str]) -> dict[str, float] | float | None:
    def number(text):
        try:
            return float(text)
        except ValueError:
            raise InputError(f"until-se = {text!r}: must be a number > 0, or OUTPUT=NUMBER") from None

    if len(texts) == 1 and "=" not in texts[0]:
        return number(texts[0])
    return {name: number(value) for name, value in _pairs("until-se", texts).items()} or None


def _values(claim, pairs: dict[str, str]):
    from rmtjax._errors import unknown
    from rmtjax.montecarlo.grid import parse_values

    for name in pairs:
        if name not in claim.params:
            raise unknown(f"claim {claim.name!r}: parameter", name, claim.params)
    return {name: parse_values(name, text) for name, text in pairs.items()}


def main() -> None:
    """Run the command line; bad input ends with one line and exit status 2."""
    keep_programs()
    prepare_streams()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here an error is told; at the interpreter's end it would be a traceback
    except InputError as error:
        say(f"error: {error}")
        leave(2)
    except HostError as error:
        say(f"error: {error}; a run with --out goes on where it stopped when all are started again")
        leave(1)
    except BrokenPipeError:
        _no_reader()
    except (OSError, MemoryError, RuntimeError) as error:  # a full disk, say: what a store holds by then stays good
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).partition("\n")[0]
        say(f"error: {'out of memory: ' * (not isinstance(error, OSError))}{reason}".rstrip(": "))
        leave(1)
