"""What a fine-tuning is told to do."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

from rmtjax._checks import one_of
from rmtjax._errors import InputError, shown
from rmtjax.adapters.apply import SHARING
from rmtjax.adapters.methods import METHODS

__all__ = ["ALL_METHODS", "Settings"]

ALL_METHODS = ("lora", "rslora", "alpha-lora", "dora", "orthogonal", "spectral-additive", "spectral-rotational", "full")
assert set(ALL_METHODS) == {*METHODS, "alpha-lora", "full"}

_DTYPES = ("float32", "bfloat16")
_OPTIMISERS = ("adam", "adamw")
_LARGE = ("mnli", "qnli", "qqp", "sst2")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a run's result depends on, beside the model's and the data's files.

    Attributes:
        task: one of GLUE's.
        data: folder of the data; found by itself if None.
        model: folder or hub id; the packaged MiniLM if None.
        method: see `rmtjax.adapters.adapt`.
        alpha: whether α is on top of the method.
        rank: r.
        scale: a, by default r.
        target: layers that are adapted, as PEFT's `target_modules`.
        alpha_share: which layers share one α: module, self or attention.
        epochs: passes over the training set; by default 3 for the four large tasks and 10 for the others.
        batch_size: examples in a step.
        learning_rate: at its peak; by default 5e-5 for full fine-tuning and 1e-3 otherwise.
        warmup: share of the steps in which the rate rises from 0; it falls to 0 in the others, both linearly.
        weight_decay: of AdamW, for matrices.
        clip: largest norm of the gradient.
        max_length: tokens of an example.
        every: T, steps between two moves of α.
        val_split: share of the training set kept for α; 1 gives all of it to both.
        alpha_learning_rate: of α's optimiser, constant.
        alpha_batch_size: examples in a batch for α; by default `batch_size`.
        alpha_optimizer: adam or adamw.
        guard: largest probability of an intruder in a layer that updates may have (`rmtjax.intruders.intruder_limits`);
            None leaves them free.
        guard_top: leading singular vectors that count.
        guard_threshold: cosine below which a vector is an intruder.
        dropout: whether to use the model's rates, or none.
        dtype: of activations, float32 or bfloat16.
        remat: compute activations of a layer again for its gradient, to save memory.
        limit: examples to keep of the training set and of each development set, drawn by the seed; all if None.
        seed: of the head, the adapters, the order of the data and the dropout masks.
    """

    task: str
    data: str | None = None
    model: str | None = None
    method: str = "lora"
    alpha: bool = False
    rank: int = 8
    scale: float | None = None
    target: tuple[str, ...] = ("query", "value")
    alpha_share: str = "module"
    epochs: int | None = None
    batch_size: int = 32
    learning_rate: float | None = None
    warmup: float = 0.06
    weight_decay: float = 0.0
    clip: float = 1.0
    max_length: int = 128
    every: int = 20
    val_split: float = 0.2
    alpha_learning_rate: float = 5e-3
    alpha_batch_size: int | None = None
    alpha_optimizer: str = "adam"
    guard: float | None = None
    guard_top: int = 10
    guard_threshold: float = 0.5
    dropout: bool = True
    dtype: str = "float32"
    remat: bool = False
    limit: int | None = None
    seed: int = 0

    def checked(self) -> Settings:
        """These settings with every default filled in.

        Raises:
            InputError: for a value that is not allowed.
        """
        from rmtjax.datasets.glue import task

        self._check_kinds()
        name = task(self.task).name
        method, alpha = ("lora", True) if self.method == "alpha-lora" else (self.method, self.alpha)
        filled = dataclasses.replace(
            self,
            task=name,
            data=None if self.data is None else str(self.data),
            model=None if self.model is None else str(self.model),
            method=method,
            alpha=alpha,
            scale=float(self.rank) if self.scale is None else float(self.scale),
            target=tuple(self.target),
            epochs=(3 if name in _LARGE else 10) if self.epochs is None else self.epochs,
            learning_rate=(5e-5 if method == "full" else 1e-3) if self.learning_rate is None else self.learning_rate,
            alpha_batch_size=self.batch_size if self.alpha_batch_size is None else self.alpha_batch_size,
        )
        filled._check()
        return filled

    def _check_kinds(self) -> None:
        for name, field in self.__dataclass_fields__.items():
            value, kind = getattr(self, name), field.type.split(" | ")[0]
            if value is None and field.default is None:
                continue
            if name in ("data", "model"):
                kinds, what = (str, os.PathLike), "a path"
            elif name == "target":
                if not isinstance(value, (list, tuple)) or not all(isinstance(t, str) for t in value):
                    raise InputError(f"target = {shown(value)}: must be a list of ends of paths")
                continue
            else:
                kinds, what = {
                    "str": (str, "a name"), "bool": (bool, "True or False"), "int": (int, "a whole number"),
                    "float": ((int, float), "a number"),
                }[kind]  # fmt: skip
            if not isinstance(value, kinds) or (isinstance(value, bool) and kind != "bool"):
                raise InputError(f"{name} = {shown(value)}: must be {what}")

    def _check(self) -> None:
        choices = {
            "method": ALL_METHODS, "alpha_share": SHARING, "dtype": _DTYPES, "alpha_optimizer": _OPTIMISERS,
        }  # fmt: skip
        for name, known in choices.items():
            one_of(name, getattr(self, name), known)
        for name in ("rank", "epochs", "batch_size", "alpha_batch_size", "every", "guard_top", "limit"):
            value = getattr(self, name)
            if name == "limit" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} = {shown(value)}: must be a whole number, 1 or more")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise InputError(f"seed = {shown(self.seed)}: must be a whole number from 0 to {2**31 - 1}")
        positive = {"scale": math.inf, "learning_rate": 10.0, "alpha_learning_rate": 10.0, "clip": math.inf}
        for name, most in positive.items():
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and 0 < value <= most):
                raise InputError(
                    f"{name} = {shown(value)}: must be above 0" + (f", at most {most:g}" if most < math.inf else "")
                )
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(f"weight_decay = {shown(self.weight_decay)}: must be 0 or more")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup = {shown(self.warmup)}: must be in [0, 1)")
        if not 0 < self.val_split <= 1:
            raise InputError(f"val_split = {shown(self.val_split)}: must be in (0, 1]")
        if self.guard is not None:
            if not (isinstance(self.guard, (int, float)) and 0 < self.guard < 1):
                raise InputError(f"guard = {shown(self.guard)}: must be between 0 and 1")
            if self.method == "full":
                raise InputError(f"guard = {self.guard:g}: needs an adapter; method full trains the weights themselves")
        if not 0 < self.guard_threshold < 1:
            raise InputError(f"guard_threshold = {shown(self.guard_threshold)}: must be between 0 and 1")
        if not self.target:
            raise InputError("target is empty: must name layers such as query,value")

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        values = dataclasses.asdict(self)
        return {**values, "target": list(self.target)}
