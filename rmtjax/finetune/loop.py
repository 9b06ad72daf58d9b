"""Fine-tuning of an encoder on a GLUE task, from input files to output files."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmtjax._checks import whole
from rmtjax._errors import InputError, stopping
from rmtjax._files import lock_folder, prepare_folder, settle, write_json, write_text
from rmtjax._progress import Report, Reporter
from rmtjax._provenance import provenance
from rmtjax.adapters import merged_copy, save_peft
from rmtjax.finetune.checkpoints import Checkpoints
from rmtjax.finetune.flags import default_flags
from rmtjax.finetune.records import METRICS, RESULT, RUN, check_existing, read_history
from rmtjax.finetune.run import Run
from rmtjax.finetune.settings import Settings
from rmtjax.finetune.step import TrainState
from rmtjax.models import save_model
from rmtjax.report.finetune import curves

__all__ = ["finetune"]


def finetune(
    settings: Settings,
    out: str | os.PathLike | None = None,
    *,
    resume: bool = False,
    save_every: int | None = None,
    stop_after: int | None = None,
    base_copy: bool = True,
    devices: Sequence[jax.Device] | None = None,
    progress: Report = None,
    announce: Callable[[Run], None] | None = None,
) -> dict[str, Any]:
    """Fine-tune an encoder and return the result, evaluating after each epoch.

    Into `out` go `run.json` (what was done), `metrics.jsonl` (a line for each evaluation), `checkpoints/` (Orbax),
    `curves.png`, `result.json`, the adapters for PEFT in `adapter/` and, where a base had to be changed (full
    fine-tuning), the model for `transformers` in `model/`.

    Args:
        settings: the settings of the run.
        out: a folder for files; None writes none.
        resume: resume the run in `out`, which then ends as if it had never stopped.
        save_every: steps between checkpoints; by default an epoch.
        stop_after: stop after so many steps in all, as if killed, but with a checkpoint.
        base_copy: with α, also write the base with α merged, 4 bytes a weight, without which PEFT answers otherwise.
        devices: all by default.
        progress: True draws a bar on standard error, None (the default) on a terminal only; or a function of a `Progress`.
        announce: called with the `Run` before training begins.

    Returns:
        Settings, counts, history, the last and best scores, statistics of α, and provenance.

    Raises:
        InputError: before anything is compiled or written, for what cannot be used.
    """
    for name, value in (("save_every", save_every), ("stop_after", stop_after)):
        if value is not None:
            whole(name, value)
    if resume and out is None:
        raise InputError("resume: needs out, the folder of the run")
    if save_every is not None and out is None:
        raise InputError(f"save_every = {save_every}: needs out, the folder of the run")
    run = Run(settings, devices)
    how = dict(resume=resume, save_every=save_every, stop_after=stop_after, base_copy=base_copy)
    if out is None:
        return _train(run, None, None, **how, progress=progress, announce=announce)
    check_existing(Path(out), run.identity(), resume)
    folder = prepare_folder("out", out).resolve()  # the adapter's config names the base by its path
    release = lock_folder("out", folder)
    try:
        check_existing(folder, run.identity(), resume)  # again: another run may just have ended in this folder
        write_json(folder / RUN, {"identity": run.identity(), "made_with": _made_with(run)})
        checkpoints = Checkpoints(folder / "checkpoints")
        return _train(run, folder, checkpoints, **how, progress=progress, announce=announce)
    finally:
        release()


@default_flags()
def _train(
    run: Run,
    folder: Path | None,
    checkpoints: Checkpoints | None,
    *,
    resume: bool,
    save_every: int | None,
    stop_after: int | None,
    base_copy: bool,
    progress: Report,
    announce: Callable[[Run], None] | None,
) -> dict[str, Any]:
    """Run the remaining steps and return the result."""
    if announce is not None:
        announce(run)
    identity, history = run.identity(), []
    trainer, state = run.trainer, run.trainer.start
    if checkpoints is not None and resume:
        with contextlib.ExitStack() as on_error:
            on_error.callback(checkpoints.close)
            restored = checkpoints.latest(state)
            if restored is not None:
                state, history = restored, read_history(folder, int(restored.step), run.batches.steps_per_epoch)
            on_error.pop_all()
    began = step = int(state.step)
    before = history[-1].get("seconds", 0.0) if history else 0.0
    last = run.batches.steps if stop_after is None else min(stop_after, run.batches.steps)
    per_epoch, started, losses = run.batches.steps_per_epoch, time.perf_counter(), []
    headline = run.task.headline

    def how_far() -> str:
        if folder is None:
            return f"stopped after step {step} of {run.batches.steps}: nothing is kept; only a run with a folder can be resumed"
        saved_step = max((int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()), default=0)
        return (
            f"stopped after step {step} of {run.batches.steps}: {folder} has a checkpoint of step {saved_step}; use --resume"
            if saved_step
            else f"stopped after step {step} of {run.batches.steps}: {folder} has no checkpoint yet; --resume starts over"
        )

    with (
        stopping(how_far),
        contextlib.nullcontext() if checkpoints is None else contextlib.closing(checkpoints),
        Reporter(run.batches.steps, f"{run.task.name} {_name(run.settings)}", progress, unit="steps") as bar,
    ):
        bar.show(step, run.batches.steps)
        for batch, fresh in run.batches.iterate(step, last):
            state, loss = trainer.step(
                state, trainer.frozen, trainer.put(batch), None if fresh is None else trainer.put(fresh)
            )
            step += 1
            losses = [*losses[-1:], loss]
            bar.show(step, run.batches.steps)
            # Waiting for the previous step's loss keeps the queue short and the device busy.
            previous_loss = float(losses[0])
            if not math.isfinite(previous_loss if step % per_epoch else float(state.loss)):
                rate = run.settings.learning_rate
                raise InputError(f"learning_rate = {rate:g}: the loss is not finite by step {step}; try a smaller one")
            bar.note(f"loss {previous_loss:.3f}" + (f", {headline} {history[-1][headline]:.4f}" if history else ""))
            if step % per_epoch == 0:
                line = {
                    "step": step,
                    "epoch": step // per_epoch,
                    "loss": float(state.loss) / per_epoch,
                    **run.evaluate(state),
                    "seconds": before + time.perf_counter() - started,
                }
                values = np.concatenate([a.ravel() for a in run.alphas(state).values()] or [np.ones(0)])
                if values.size:
                    line |= {
                        "alpha_mean": float(values.mean()),
                        "alpha_min": float(values.min()),
                        "alpha_max": float(values.max()),
                    }
                history.append(line)
                state = state._replace(loss=jnp.zeros_like(state.loss))
                if folder is not None:
                    write_text(folder / METRICS, "".join(json.dumps(entry) + "\n" for entry in history))
            if checkpoints is not None and (step % (save_every or per_epoch) == 0 or step == last):
                checkpoints.save(step, state)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - started
    result = {
        **identity,
        "parameters": {"trainable": run.count.trainable, "total": run.count.total},
        "examples": {"train": len(run.train), **{name: len(data) for name, data in run.dev.items()}},
        "lengths": list(run.layout.lengths),
        "history": history,
        "finished": step == run.batches.steps,
        "alpha": {
            name: {"mean": float(a.mean()), "sd": float(a.std()), "min": float(a.min()), "max": float(a.max())}
            for name, a in run.alphas(state).items()
        },
        "seconds": before + seconds,
        "steps_per_second": (step - began) / seconds if step > began else None,
        "made_with": _made_with(run),
    }
    if history:
        best = max(history, key=lambda line: line[headline])
        result |= {
            "headline": headline,
            "last": history[-1][headline],
            "best": best[headline],
            "best_epoch": best["epoch"],
        }
    if folder is not None and result["finished"]:
        _write(run, state, folder, result, base_copy)
    return result


def _name(settings: Settings) -> str:
    return f"{'α-' if settings.alpha else ''}{settings.adapter}"


def _made_with(run: Run) -> dict[str, str]:
    return provenance(run.devices, "flax", "optax", "orbax-checkpoint", "tokenizers")


def _write(run: Run, state: TrainState, folder: Path, result: dict[str, Any], base_copy: bool) -> None:
    model = run.trainer.model(state)
    if run.settings.adapter == "full":
        save_model(merged_copy(model), folder / "model", labels=run.task.labels, tokenizer=run.folder)
    else:
        base = run.folder.resolve()
        save_base = functools.partial(save_model, tokenizer=base) if base_copy else None
        save_peft(model, folder / "adapter", base=base, task_type="SEQ_CLS", save_base=save_base)
    curves(result, folder / "curves.png")
    settle(folder)
    write_json(folder / RESULT, result)  # written last: it marks the run as finished
