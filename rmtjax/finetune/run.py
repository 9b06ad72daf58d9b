"""A fine-tuning run, read and built, and its evaluation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from rmtjax._errors import InputError
from rmtjax._random import GENERATOR
from rmtjax.adapters import alpha_updater, apply_adapters, count_parameters, project_spectral_norm
from rmtjax.checkpoints.folders import model_folder, weights_folder
from rmtjax.datasets import glue
from rmtjax.finetune.data import Batches, Layout, Sequences, choose_lengths
from rmtjax.finetune.flags import default_flags
from rmtjax.finetune.optimizer import optimizer_of
from rmtjax.finetune.settings import Settings
from rmtjax.finetune.step import Parts, Trainer, TrainState, data_mesh, loss_of
from rmtjax.intruders import intruder_limits
from rmtjax.models import EncoderConfig, load_classifier
from rmtjax.models.tokenizer import Tokenizer

__all__ = ["Run", "predict"]


@default_flags()
def predict(trainer: Trainer, state: TrainState, layout: Layout, data: Sequences, batch: int = 64) -> np.ndarray:
    """Return logits of all examples, (n, outputs), computed in batches of similar length."""
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
    """Return a hash of a base model's configuration and weights."""
    total = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("model*.safetensors")]):
        total.update(path.name.encode())
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def _digest_of(parts: Mapping[str, Sequences]) -> str:
    """Return a hash of the tokens and labels of data."""
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
    """Return at most `max_samples` examples, in the order of the file."""
    if settings.max_samples is None or len(examples) <= settings.max_samples:
        return examples
    chosen = np.sort(np.random.default_rng(settings.seed).permutation(len(examples))[: settings.max_samples])
    second = None if examples.second is None else [examples.second[i] for i in chosen]
    return glue.Examples([examples.first[i] for i in chosen], second, examples.labels[chosen], examples.skipped)


class Run:
    """A fine-tuning run with everything read and built, ready to train.

    Args:
        settings: the settings of the run.
        devices: all by default.
        piece: tokens that are computed at once on a device; by default few on processors, whose caches are small, and a
            whole batch elsewhere.

    Raises:
        InputError: for settings, a model, data or a task that cannot be used.
    """

    @default_flags()
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
                f"data is not given and no GLUE folder exists: give --data DIR with {self.task.folder}/train.tsv"
            )
        self.data = Path(data)
        names = ["dev_matched", "dev_mismatched"] if settings.task == "mnli" else ["dev"]
        splits = {name: _some(glue.load_glue(settings.task, data, name), settings) for name in ["train", *names]}
        read = {name: _encode(some, tokenizer, settings.max_length) for name, some in splits.items()}
        self.train, self.dev = read.pop("train"), read
        model, self.loaded = load_classifier(
            self.folder, self.task.num_labels, dtype=settings.dtype, remat=settings.remat, seed=settings.seed
        )
        apply_adapters(
            model,
            settings.adapter,
            target_modules=settings.target_modules,
            rank=settings.rank,
            lora_alpha=settings.lora_alpha,
            alpha=settings.alpha,
            alpha_share=settings.alpha_share,
            train=["classifier"],
            seed=settings.seed,
        )
        self.count = count_parameters(model)
        mesh = data_mesh(devices)
        self.devices = list(mesh.devices.flat)
        every = np.concatenate([s.lengths() for s in (self.train, *self.dev.values())])
        lengths = choose_lengths(every, longest=min(config.max_length, settings.max_length))
        on_cpu = self.devices[0].platform == "cpu"
        piece = piece or ((2048 if settings.adapter == "full" else 512) if on_cpu else 1 << 30)
        share = math.ceil(settings.batch_size / len(self.devices))
        size = max(1, min(share, piece // lengths[-1]))
        self.layout = Layout(lengths, size, len(self.devices), tokenizer.pad)
        alpha = (settings.alpha_batch_size, settings.alpha_every, settings.val_split) if settings.alpha else None
        self.batches = Batches(self.train, self.layout, settings.batch_size, settings.epochs, settings.seed, alpha)
        parts, weights, _, _ = Parts.of(model)
        updater = None
        if settings.alpha:
            alpha_optimizer = {"adam": optax.adam, "adamw": optax.adamw}[settings.alpha_optimizer]
            updater = alpha_updater(alpha_optimizer(settings.alpha_learning_rate), settings.alpha_every)
        optimizer = optimizer_of(settings, parts, sorted(weights), self.batches.steps)
        if settings.guard is not None:
            limits = intruder_limits(
                model, probability=settings.guard, threshold_epsilon=settings.guard_epsilon, top_k=settings.guard_top_k
            )
            optimizer = optax.chain(optimizer, project_spectral_norm(model, limits))
        self.trainer = Trainer(
            model, optimizer, updater, loss_of(self.task.regression), self.layout, mesh, settings.seed, settings.dropout
        )  # fmt: skip

    def __str__(self) -> str:
        """Return the model, the data and the settings of the training in three lines."""
        settings, batches = self.settings, self.batches
        sizes = [f"{len(self.train):,} to train on", *(f"{len(data):,} in {name}" for name, data in self.dev.items())]
        lengths = ", ".join(map(str, self.layout.lengths))
        new = f"; new: {', '.join(self.loaded.new)}" if self.loaded.new else ""
        devices = f"{len(self.devices)} {self.devices[0].device_kind} device{'s' * (len(self.devices) > 1)}"
        return (
            f"{self.task.name} in {self.data}: {', '.join(sizes)}; lengths {lengths}\n"
            f"{settings.model}: {self.count}{new}\n"
            f"{settings.epochs} epochs of {batches.steps_per_epoch:,} steps of {settings.batch_size} on {devices}"
        )

    def identity(self) -> dict[str, Any]:
        """Return everything that must agree for a run to be resumed."""
        if self._identity is None:
            self._identity = {
                "settings": self.settings.to_dict(),
                "generator": GENERATOR,
                "base": _digest(self.folder),
                "steps": self.batches.steps,
                "dataset": _digest_of({"train": self.train, **self.dev}),
            }
        return self._identity

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Return GLUE's metrics on the development set."""
        metrics: dict[str, float] = {}
        for name, data in self.dev.items():
            logits = predict(self.trainer, state, self.layout, data)
            answers = logits[:, 0] if self.task.regression else logits.argmax(-1)
            after = "_mismatched" if name == "dev_mismatched" else ""
            metrics |= {
                metric + after: value for metric, value in glue.score(self.task.name, answers, data.labels).items()
            }
        return metrics

    def alphas(self, state: TrainState) -> dict[str, np.ndarray]:
        """Return the vectors α by the paths of their layers."""
        return {name.removesuffix(".alpha"): np.asarray(x) for name, x in state.alpha.items()}
