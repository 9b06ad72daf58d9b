"""Fine-tuning an encoder on a GLUE task, from files to files."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmtjax._errors import InputError, shown, stopping
from rmtjax._files import lock_folder, prepare_folder, settle, write_json, write_text
from rmtjax._precision import single
from rmtjax._progress import Report, Reporter
from rmtjax._provenance import commit, hardware, versions
from rmtjax._random import GENERATOR, pinned
from rmtjax.adapters import (
    OrthogonalParam,
    adapt,
    alpha_updater,
    count_parameters,
    keep_below,
    merged,
    save_peft,
    stiefel,
)
from rmtjax.checkpoints.folders import model_folder, weights_folder
from rmtjax.datasets import glue
from rmtjax.finetune.data import Batches, Layout, Sequences, choose_lengths
from rmtjax.finetune.settings import Settings
from rmtjax.finetune.step import Parts, Trainer, TrainState, data_mesh, loss_of
from rmtjax.intruders import intruder_limits
from rmtjax.models import EncoderConfig, load_classifier, save_model
from rmtjax.models.tokenizer import Tokenizer
from rmtjax.report.finetune import curves

__all__ = ["Checkpoints", "Run", "finetune", "optimizer_of", "predict"]

_RUN, _METRICS, _RESULT = "run.json", "metrics.jsonl", "result.json"
_FILES = (_RESULT, "adapter", "model", "curves.png")


@contextlib.contextmanager
def _by_default() -> Iterator[None]:
    """JAX's flags at their defaults, single precision among them: a run follows from its settings and files alone."""
    with pinned(), single():
        yield


def optimizer_of(settings: Settings, parts: Parts, names: Sequence[str], steps: int) -> optax.GradientTransformation:
    """AdamW with a linear schedule and warm-up for adapters and head; on the Stiefel manifold where they are orthogonal."""
    rising = round(settings.warmup * steps)
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, settings.learning_rate, max(rising, 1)),
            optax.linear_schedule(settings.learning_rate, 0.0, max(steps - rising, 1)),
        ],
        [rising],
    )
    is_matrix = {name: parts.template[name].ndim > 1 for name in names}
    plain = optax.adamw(schedule, weight_decay=settings.weight_decay, mask=lambda _: is_matrix)
    orthogonal = {name for name in names if isinstance(parts.template[name], OrthogonalParam)}
    if orthogonal:
        labels = {name: "orthogonal" if name in orthogonal else "plain" for name in names}
        kinds = {
            "plain": plain,
            "orthogonal": stiefel(optax.adamw(schedule, weight_decay=0.0)),
        }
        plain = optax.partition(kinds, labels)
    return optax.chain(optax.clip_by_global_norm(settings.clip), plain)


@_by_default()
def predict(trainer: Trainer, state: TrainState, layout: Layout, data: Sequences, batch: int = 64) -> np.ndarray:
    """Logits of all examples, (n, outputs), computed in batches of like length."""
    order = np.argsort(data.lengths(), kind="stable")
    pieces = layout.pieces(min(batch, len(order)))
    out: np.ndarray | None = None
    for start in range(0, len(order), batch):
        which = order[start : start + batch]
        arranged = layout.arrange(data, which, pieces)
        logits = np.asarray(trainer.logits(state, trainer.frozen, trainer.put(arranged)))
        out = np.zeros((len(order), logits.shape[-1]), np.float32) if out is None else out
        real = arranged.weight > 0
        out[which[arranged.number[real]]] = logits[real]
    assert out is not None
    return out


def _digest(folder: Path) -> str:
    """What identifies a base model: a hash of its configuration and weights."""
    total = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("model*.safetensors")]):
        total.update(path.name.encode())
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def _digest_of(parts: Mapping[str, Sequences]) -> str:
    """What identifies data: a hash of their tokens and labels."""
    total = hashlib.sha256()
    for name, data in parts.items():
        total.update(f"{name} {len(data.labels)} ".encode())
        for array in (*data.ids, *data.types, np.asarray([len(i) for i in data.ids]), np.asarray(data.labels)):
            total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]


def _encode(examples: glue.Examples, tokenizer: Tokenizer, max_length: int) -> Sequences:
    ids, types = tokenizer(examples.first, examples.second, max_length)
    return Sequences(ids, types, examples.labels)


def _some(examples: glue.Examples, settings: Settings) -> glue.Examples:
    """As many as the settings' limit allows, in the order of the file."""
    if settings.limit is None or len(examples) <= settings.limit:
        return examples
    kept = np.sort(np.random.default_rng(settings.seed).permutation(len(examples))[: settings.limit])
    second = None if examples.second is None else [examples.second[i] for i in kept]
    return glue.Examples([examples.first[i] for i in kept], second, examples.labels[kept], examples.skipped)


class Run:
    """A fine-tuning with everything read and built, ready to train.

    Args:
        settings: what to do.
        devices: all by default.
        piece: tokens that are computed at once on a device; by default few on processors, whose caches are small, and a
            whole batch elsewhere.

    Raises:
        InputError: for settings, a model, data or a task that cannot be used.
    """

    @_by_default()
    def __init__(
        self, settings: Settings, devices: Sequence[jax.Device] | None = None, piece: int | None = None
    ) -> None:
        self.settings = settings = settings.checked()
        self._identity: dict[str, Any] | None = None
        self.task = glue.task(settings.task)
        self.folder = weights_folder(model_folder(settings.model))
        config = EncoderConfig.read(self.folder)
        tokenizer = Tokenizer(self.folder, config)
        data = settings.data or glue.find_glue()
        if data is None:
            raise InputError(
                f"data is not given and no folder of GLUE was found: --data DIR with {self.task.folder}/train.tsv"
            )
        self.data = Path(data)
        names = ["dev_matched", "dev_mismatched"] if settings.task == "mnli" else ["dev"]
        splits = {name: _some(glue.load_glue(settings.task, data, name), settings) for name in ["train", *names]}
        read = {name: _encode(some, tokenizer, settings.max_length) for name, some in splits.items()}
        self.train, self.dev = read.pop("train"), read
        model, self.loaded = load_classifier(
            self.folder, self.task.num_labels, dtype=settings.dtype, remat=settings.remat, seed=settings.seed
        )
        adapt(
            model, settings.method, target=settings.target, rank=settings.rank, scale=settings.scale, alpha=settings.alpha,
            alpha_share=settings.alpha_share, train=["classifier"], seed=settings.seed,
        )  # fmt: skip
        self.count = count_parameters(model)
        mesh = data_mesh(devices)
        self.devices = list(mesh.devices.flat)
        every = np.concatenate([s.lengths() for s in (self.train, *self.dev.values())])
        lengths = choose_lengths(every, longest=min(config.max_length, settings.max_length))
        on_cpu = self.devices[0].platform == "cpu"
        piece = piece or ((2048 if settings.method == "full" else 512) if on_cpu else 1 << 30)
        share = math.ceil(settings.batch_size / len(self.devices))
        size = max(1, min(share, piece // lengths[-1]))
        self.layout = Layout(lengths, size, len(self.devices), tokenizer.pad)
        alpha = (settings.alpha_batch_size, settings.every, settings.val_split) if settings.alpha else None
        self.batches = Batches(self.train, self.layout, settings.batch_size, settings.epochs, settings.seed, alpha)
        parts, weights, _, _ = Parts.of(model)
        updater = None
        if settings.alpha:
            own = {"adam": optax.adam, "adamw": optax.adamw}[settings.alpha_optimizer]
            updater = alpha_updater(own(settings.alpha_learning_rate), settings.every)
        optimizer = optimizer_of(settings, parts, sorted(weights), self.batches.steps)
        if settings.guard is not None:
            limits = intruder_limits(
                model, probability=settings.guard, threshold=settings.guard_threshold, top=settings.guard_top
            )
            optimizer = optax.chain(optimizer, keep_below(model, limits))
        self.trainer = Trainer(
            model, optimizer, updater, loss_of(self.task.regression), self.layout, mesh, settings.seed, settings.dropout
        )  # fmt: skip

    def __str__(self) -> str:
        """What is about to be trained, on what, and how, in three lines."""
        settings, batches = self.settings, self.batches
        sizes = [f"{len(self.train):,} to train on", *(f"{len(data):,} in {name}" for name, data in self.dev.items())]
        lengths = ", ".join(map(str, self.layout.lengths))
        new = f"; new: {', '.join(self.loaded.new)}" if self.loaded.new else ""
        devices = f"{len(self.devices)} {self.devices[0].device_kind} device{'s' * (len(self.devices) > 1)}"
        return (
            f"{self.task.name} in {self.data}: {', '.join(sizes)}; lengths {lengths}\n"
            f"{settings.model or 'all-MiniLM-L6-v2 (packaged)'}: {self.count}{new}\n"
            f"{settings.epochs} epochs of {batches.steps_per_epoch:,} steps of {settings.batch_size} on {devices}"
        )

    def identity(self) -> dict[str, Any]:
        """What must agree for a run to go on where another stopped."""
        if self._identity is None:
            self._identity = {
                "settings": self.settings.as_dict(),
                "generator": GENERATOR,
                "base": _digest(self.folder),
                "steps": self.batches.steps,
                "dataset": _digest_of({"train": self.train, **self.dev}),
            }
        return self._identity

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """GLUE's metrics on the development set."""
        found: dict[str, float] = {}
        for name, data in self.dev.items():
            logits = predict(self.trainer, state, self.layout, data)
            answers = logits[:, 0] if self.task.regression else logits.argmax(-1)
            after = "_mismatched" if name == "dev_mismatched" else ""
            found |= {
                metric + after: value for metric, value in glue.score(self.task.name, answers, data.labels).items()
            }
        return found

    def alphas(self, state: TrainState) -> dict[str, np.ndarray]:
        """The vectors α by the paths of their layers."""
        return {name.removesuffix(".alpha"): np.asarray(x) for name, x in state.alpha.items()}


_LATER = ("guard_top", "guard_threshold", "limit")
"""Settings that the first runs did not have, which did as their defaults say."""


def _existing(out: Path, identity: dict[str, Any], resume: bool) -> None:
    """Check a folder for the run of an earlier call.

    Raises:
        InputError: if it holds one that was not to be resumed, or another one.
    """
    path = out / _RUN
    if not path.exists():
        ours = [name for name in ("checkpoints", _METRICS, *_FILES) if (out / name).exists()]
        if ours:
            raise InputError(f"out = {out}: holds {ours[0]} without {_RUN}; choose another folder")
        return
    if not resume:
        raise InputError(f"out = {out}: holds a run already; --resume goes on with it, or choose another folder")
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["identity"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"out = {out}: {_RUN} cannot be read ({shown(str(error))})") from None
    if not (isinstance(before, dict) and isinstance(before.get("settings"), dict)):
        raise InputError(f"out = {out}: {_RUN} cannot be read (it names no settings)")
    old, new = ({**i["settings"], **{k: v for k, v in i.items() if k != "settings"}} for i in (before, identity))
    moved = ("data", "model")  # where files lie may change; what they hold may not
    old = {f.name: f.default for f in dataclasses.fields(Settings) if f.name in _LATER} | {"generator": GENERATOR} | old
    for name in new:
        if name not in moved and old.get(name) != new[name]:
            raise InputError(
                f"out = {out}: holds the run of another {name} ({shown(old.get(name))}, now {shown(new[name])});"
                " its checkpoints cannot be gone on with"
            )


class Checkpoints:
    """Orbax checkpoints of the training state."""

    def __init__(self, folder: Path) -> None:
        import orbax.checkpoint as ocp

        self._ocp, self._folder = ocp, folder
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def latest(self, state: TrainState) -> TrainState | None:
        """The newest state, laid out as `state` is; None if there is none.

        Raises:
            InputError: if it cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        like = jax.tree.map(_abstract, state._asdict())
        try:
            return TrainState(**self._manager.restore(step, args=self._ocp.args.StandardRestore(like)))
        except (ValueError, OSError, KeyError, TypeError) as error:
            raise InputError(
                f"out: the checkpoint {self._folder / str(step)} cannot be read ({shown(str(error))}); without that folder"
                " the run goes on from the one before"
            ) from None

    def save(self, step: int, state: TrainState) -> None:
        """Write a state in the background, whole or not at all."""
        if self._manager.latest_step() != step:
            self._manager.save(step, args=self._ocp.args.StandardSave(state._asdict()))

    def close(self) -> None:
        """Wait until what is being written is on the disk."""
        self._manager.wait_until_finished()
        self._manager.close()
        settle(self._folder)


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    """Shape, dtype and place of an array."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


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
    """Fine-tune, evaluating after each epoch.

    Into `out` go `run.json` (what was done), `metrics.jsonl` (a line for each evaluation), `checkpoints/` (Orbax),
    `curves.png`, `result.json`, the adapters for PEFT in `adapter/` and, where a base had to be changed (full
    fine-tuning), the model for `transformers` in `model/`.

    Args:
        settings: what to do.
        out: a folder for files; None writes none.
        resume: go on with the run in `out`, which then ends as if it had never stopped.
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
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"{name} = {shown(value)}: must be a whole number, 1 or more")
    if resume and out is None:
        raise InputError("resume: needs out, the folder of the run")
    run = Run(settings, devices)
    how = dict(resume=resume, save_every=save_every, stop_after=stop_after, base_copy=base_copy)
    if out is None:
        return _train(run, None, None, **how, progress=progress, announce=announce)
    _existing(Path(out), run.identity(), resume)
    folder = prepare_folder("out", out).resolve()  # PEFT is told where the base lies
    release = lock_folder("out", folder)
    try:
        _existing(folder, run.identity(), resume)  # again: another run may just have ended there
        write_json(folder / _RUN, {"identity": run.identity(), "made_with": _made_with(run)})
        checkpoints = Checkpoints(folder / "checkpoints")
        return _train(run, folder, checkpoints, **how, progress=progress, announce=announce)
    finally:
        release()


@_by_default()
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
    """The run itself, which nothing stands in the way of."""
    if announce is not None:
        announce(run)
    identity, history = run.identity(), []
    trainer, state = run.trainer, run.trainer.start
    if checkpoints is not None and resume:
        with contextlib.ExitStack() as on_error:
            on_error.callback(checkpoints.close)
            restored = checkpoints.latest(state)
            if restored is not None:
                state, history = restored, _history(folder, int(restored.step), run.batches.steps_per_epoch)
            on_error.pop_all()
    began = step = int(state.step)
    before = history[-1].get("seconds", 0.0) if history else 0.0
    last = run.batches.steps if stop_after is None else min(stop_after, run.batches.steps)
    per_epoch, started, losses = run.batches.steps_per_epoch, time.perf_counter(), []
    headline = run.task.headline

    def how_far() -> str:
        if folder is None:
            return f"stopped after step {step} of {run.batches.steps}: nothing is kept; a run with a folder can go on"
        kept = max((int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()), default=0)
        return (
            f"stopped after step {step} of {run.batches.steps}: {folder} has a checkpoint of step {kept}; --resume goes on"
            if kept
            else f"stopped after step {step} of {run.batches.steps}: {folder} has no checkpoint yet; --resume starts anew"
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
            seen = float(losses[0])  # that of the step before: waiting for it keeps the queue short and the device busy
            if not math.isfinite(seen if step % per_epoch else float(state.loss)):
                rate = run.settings.learning_rate
                raise InputError(f"learning_rate = {rate:g}: the loss is not finite by step {step}; try a smaller one")
            bar.note(f"loss {seen:.3f}" + (f", {headline} {history[-1][headline]:.4f}" if history else ""))
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
                    write_text(folder / _METRICS, "".join(json.dumps(one) + "\n" for one in history))
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
    return f"{'α-' if settings.alpha else ''}{settings.method}"


def _made_with(run: Run) -> dict[str, str]:
    packages = ("flax", "optax", "orbax-checkpoint", "tokenizers")
    return {"device": hardware(run.devices), "versions": versions(*packages), "git_commit": commit()}


def _history(folder: Path, step: int, per_epoch: int) -> list[dict[str, Any]]:
    """What was measured up to a step.

    Raises:
        InputError: if it is not all there.
    """
    path, epochs = folder / _METRICS, step // per_epoch
    if not epochs:
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:epochs]]
        steps = [line["step"] for line in lines]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"out = {folder}: {_METRICS} cannot be read ({shown(str(error))})") from None
    if steps != [per_epoch * (k + 1) for k in range(epochs)]:
        raise InputError(
            f"out = {folder}: {_METRICS} lacks some of the {epochs} epochs that the checkpoint has behind it"
        )
    return lines


def _write(run: Run, state: TrainState, folder: Path, result: dict[str, Any], base_copy: bool) -> None:
    model = run.trainer.model(state)
    if run.settings.method == "full":
        save_model(merged(model), folder / "model", labels=run.task.labels, tokenizer=run.folder)
    else:
        base = run.folder.resolve()
        save_base = functools.partial(save_model, tokenizer=base) if base_copy else None
        save_peft(model, folder / "adapter", base=base, task_type="SEQ_CLS", save_base=save_base)
    curves(result, folder / "curves.png")
    settle(folder)
    write_json(folder / _RESULT, result)  # last: with it the run is finished
