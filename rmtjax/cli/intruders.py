"""`rmtjax intruders scan` and `rmtjax intruders mitigate`."""

from __future__ import annotations

from typing import Annotated

import typer
import typer.core

from rmtjax.cli._app import Json, console_for

__all__ = ["mitigate", "register", "scan"]


class _ScanByDefault(typer.core.TyperGroup):
    """The group in which `intruders BASE TUNED` is `intruders scan BASE TUNED`."""

    def parse_args(self, ctx, args):
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["scan", *args]
        return super().parse_args(ctx, args)


Base = Annotated[
    str, typer.Argument(help="Before: safetensors file, folder or hub id; `minilm` for the packaged model.")
]
Tuned = Annotated[str, typer.Argument(help="After: the same, or a folder of a PEFT adapter or of a run of finetune.")]
TopK = Annotated[int, typer.Option(help="Number of leading singular vectors to look at.")]
Epsilon = Annotated[float, typer.Option(help="Cosine below which a vector is an intruder.")]
Layers = Annotated[str | None, typer.Option(metavar="PATTERN", help="Regular expression that names must contain.")]
Exact = Annotated[bool, typer.Option("--exact", help="Compute two SVDs for each layer.")]


def scan(
    base: Base,
    tuned: Tuned,
    top_k: TopK = 10,
    threshold_epsilon: Epsilon = 0.5,
    layers: Layers = None,
    exact: Exact = False,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Also write the numbers and pictures into this folder.")
    ] = None,
    json: Json = None,
) -> None:
    """Find the leading singular vectors of a tuned checkpoint that the base does not have, beside the theory's prediction."""
    from rmtjax._files import prepare_file, prepare_folder, write_json
    from rmtjax.intruders import scan
    from rmtjax.report import intruders as report

    folder = None if out is None else prepare_folder("out", out)
    target = None if json is None else prepare_file("json", json)
    console = console_for(target)
    result = scan(base, tuned, top_k=top_k, threshold_epsilon=threshold_epsilon, layers=layers, exact=exact)
    written = [] if folder is None else report.write_report(result, folder)
    if target is not None:
        write_json(target, result.to_dict())
    console.print(report.table(result, width=console.width))
    console.print(f"\n{report.KEY}\n", style="dim")
    console.print(report.summary(result), soft_wrap=True)
    if written:
        console.print(f"wrote {', '.join(path.name for path in written)} into {folder}")
    if result.incomplete:  # the summary lists missing parts
        raise typer.Exit(1)


def mitigate(
    base: Base,
    tuned: Tuned,
    out: Annotated[str, typer.Option(metavar="DIR", help="New folder for the mitigated adapter or model.")],
    mitigation_lambda: Annotated[
        float, typer.Option(help="Factor on the singular values of intruders: at least 0, below 1.")
    ] = 0.75,
    top_k: TopK = 10,
    threshold_epsilon: Epsilon = 0.5,
    layers: Layers = None,
    exact: Exact = False,
) -> None:
    """Write a copy of an adapter (for PEFT) or model in which intruders are scaled down."""
    from rmtjax.intruders import mitigate
    from rmtjax.report import intruders as report

    console = console_for()
    result = mitigate(
        base,
        tuned,
        out,
        mitigation_lambda=mitigation_lambda,
        top_k=top_k,
        threshold_epsilon=threshold_epsilon,
        layers=layers,
        exact=exact,
    )
    for line in report.mitigated(result):
        console.print(line, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the two commands."""
    group = typer.Typer(cls=_ScanByDefault, no_args_is_help=True)
    group.command()(scan)
    group.command()(mitigate)
    app.add_typer(
        group,
        name="intruders",
        help="Singular vectors that fine-tuning planted: `intruders BASE TUNED` finds them, `mitigate` scales them down.",
    )
