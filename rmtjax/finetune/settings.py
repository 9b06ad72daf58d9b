"""The settings of a fine-tuning. The command line has one option for each field, with the same default."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from rmtjax._errors import InputError, shown

__all__ = ["ADAPTERS", "Settings", "without_effect"]

ADAPTERS = ("lora", "rslora", "alpha-lora", "dora", "orthogonal", "spectral-additive", "spectral-rotational", "full")
"""Ways to fine-tune; alpha-lora is lora with α."""

_DTYPES = ("float32", "bfloat16")
_OPTIMIZERS = ("adam", "adamw")
_LARGE = ("mnli", "qnli", "qqp", "sst2")
_SCALED = ("lora", "rslora", "alpha-lora", "dora", "orthogonal")
_OF_ALPHA = ("alpha_share", "alpha_every", "val_split", "alpha_learning_rate", "alpha_batch_size", "alpha_optimizer")
_OF_GUARD = ("guard_top_k", "guard_epsilon")


def _setting(help: str, default: Any = dataclasses.MISSING, **metadata: Any) -> Any:
    """Return a field with its help text and further metadata for the command line."""
    return dataclasses.field(default=default, metadata={"help": help, **metadata})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that determines the result of a run, besides the files of the model and of the data.

    None stands for a default that depends on other settings; `checked` fills it in.
    """

    task: str = _setting("Task of GLUE: mnli, qnli, mrpc, rte, sst2, qqp, cola, stsb or wnli.")
    data: str | None = _setting("Folder of the task (official TSV or datasets); found by default.", None, metavar="DIR")
    model: str = _setting(
        "BERT or RoBERTa, a folder or hub id; minilm is the packaged all-MiniLM-L6-v2.", "minilm", metavar="DIR|ID"
    )
    adapter: str = _setting(f"Way to fine-tune: {', '.join(ADAPTERS[:-1])} or {ADAPTERS[-1]}.", "lora")
    alpha: bool = _setting("Put α on top of the adapter.", False)
    rank: int = _setting("Rank r of the updates.", 8)
    lora_alpha: float | None = _setting("a of the factor a/r; r by default.", None)
    target_modules: tuple[str, ...] = _setting("Ends of the names of the adapted layers.", ("query", "value"))
    alpha_share: str = _setting("Layers that share one α: module (none), self or attention.", "module")
    epochs: int | None = _setting("Passes over the data; by default 3 for the four large tasks, else 10.", None)
    batch_size: int = _setting("Examples in a step.", 32)
    learning_rate: float | None = _setting("Learning rate at its peak; by default 1e-3, or 5e-5 for full.", None)
    warmup_ratio: float = _setting(
        "Share of the steps in which the rate rises linearly to its peak; it falls to 0 in the others.", 0.06
    )
    weight_decay: float = _setting("Weight decay of AdamW, for matrices.", 0.0)
    max_grad_norm: float = _setting("Largest norm of the gradient.", 1.0)
    max_length: int = _setting("Tokens of an example; longer ones are cut.", 128)
    alpha_every: int = _setting("T, steps between two moves of α.", 20, flags=("-T",))
    val_split: float = _setting("Share of the training set kept for α; 1 gives all of it to both.", 0.2)
    alpha_learning_rate: float = _setting("Learning rate of α, constant.", 5e-3)
    alpha_batch_size: int | None = _setting("Examples in a batch for α; the batch size by default.", None)
    alpha_optimizer: str = _setting("Optimizer of α: adam or adamw.", "adam")
    guard: float | None = _setting(
        "Keep updates so weak that each layer's probability of an intruder is at most P.", None, metavar="P"
    )
    guard_top_k: int = _setting("Leading singular vectors that count for the guard.", 10)
    guard_epsilon: float = _setting("Cosine below which a vector is an intruder for the guard.", 0.5)
    dropout: bool = _setting("Use the model's dropout rates.", True)
    dtype: str = _setting("Type of activations: float32 or bfloat16.", "float32")
    remat: bool = _setting("Compute the activations of a layer again for its gradient: less memory, more time.", False)
    max_samples: int | None = _setting(
        "Use only N examples of the training set and of each development set, drawn by the seed.", None, metavar="N"
    )
    seed: int = _setting("Seed of the head, the adapters, the order of the data and the dropout masks.", 0)

    def checked(self, explicit: Collection[str] = ()) -> Settings:
        """Return these settings with every default filled in.

        Args:
            explicit: names of settings that were set explicitly, such as options on the command line; a setting with
                another value than its default always counts as such.

        Raises:
            InputError: for a value that is not allowed, or a setting that is set explicitly and has no effect beside the others.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, check in _checks().items():
            optional = self.__dataclass_fields__[name].default is None
            if not (optional and values[name] is None):
                values[name] = check(name, values[name])
        unused = without_effect(values)
        if values["adapter"] == "alpha-lora":
            if "alpha" in explicit and not values["alpha"]:
                raise InputError("alpha = False: must be True with the adapter alpha-lora, which is lora with alpha")
            values |= {"adapter": "lora", "alpha": True}
        full = values["adapter"] == "full"
        defaults = {
            "lora_alpha": float(values["rank"]),
            "epochs": 3 if values["task"] in _LARGE else 10,
            "learning_rate": 5e-5 if full else 1e-3,
            "alpha_batch_size": values["batch_size"],
        }
        for name, default in defaults.items():
            values[name] = default if values[name] is None else values[name]
        if full and self.guard is not None:
            raise InputError(
                f"guard = {self.guard:g}: needs an adapter; full fine-tuning trains the weights themselves"
            )
        for name, reason in unused.items():
            if name in explicit or values[name] != defaults.get(name, self.__dataclass_fields__[name].default):
                raise InputError(f"{name} = {shown(values[name])}: has no effect {reason}")
        return Settings(**values)

    @property
    def run_name(self) -> str:
        """The name of a run with these settings, such as mrpc-alpha-lora-0."""
        checked = self.checked()
        return f"{checked.task}-{'alpha-' if checked.alpha else ''}{checked.adapter}-{checked.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return {**dataclasses.asdict(self), "target_modules": list(self.target_modules)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Settings:
        """Return the settings of a record that `to_dict` has written.

        Settings without an effect get their defaults, since earlier versions recorded any value of them.
        """
        settings = cls(**{**record, "target_modules": tuple(record["target_modules"])})
        unused = without_effect(settings.to_dict())
        return dataclasses.replace(settings, **{name: cls.__dataclass_fields__[name].default for name in unused})


Settings.__doc__ = f"{Settings.__doc__}\n    Attributes:\n" + "\n".join(
    f"        {field.name}: {field.metadata['help']}" for field in dataclasses.fields(Settings)
)


def without_effect(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the settings that have no effect beside the others, each with the reason and what is allowed."""
    adapter, full = settings["adapter"], settings["adapter"] == "full"
    alpha = settings["alpha"] or adapter == "alpha-lora"
    unused = {}
    if not alpha:
        unused |= dict.fromkeys(_OF_ALPHA, "without alpha; allowed with alpha or the adapter alpha-lora")
    if full:
        unused["rank"] = "with the adapter full; allowed with any other"
    if full and not alpha:
        unused["target_modules"] = "with the adapter full; allowed with alpha or any other adapter"
    if adapter not in _SCALED:
        unused["lora_alpha"] = f"with the adapter {adapter}; allowed with {', '.join(_SCALED)}"
    if settings["guard"] is None:
        unused |= dict.fromkeys(_OF_GUARD, "without guard; allowed with guard")
    return unused


def _checks() -> dict[str, Callable[[str, Any], Any]]:
    """Return the checks of all settings, functions of name and value that return the value to use.

    The imports are here so that the command line lists the settings before JAX is imported.
    """
    from rmtjax._checks import flag, number, one_of, path, whole
    from rmtjax.adapters.apply import SHARING
    from rmtjax.datasets.glue import task

    positive = partial(number, low=0, open_low=True)
    rate = partial(number, low=0, high=10, open_low=True)
    share = partial(number, low=0, high=1, open_low=True, open_high=True)
    return {
        "task": lambda name, value: task(value).name,
        "data": path,
        "model": path,
        "adapter": lambda name, value: one_of(name, value, ADAPTERS),
        "alpha": flag,
        "rank": whole,
        "lora_alpha": positive,
        "target_modules": _ends_of_paths,
        "alpha_share": lambda name, value: one_of(name, value, SHARING),
        "epochs": whole,
        "batch_size": whole,
        "learning_rate": rate,
        "warmup_ratio": partial(number, low=0, high=1, open_high=True),
        "weight_decay": partial(number, low=0),
        "max_grad_norm": positive,
        "max_length": whole,
        "alpha_every": whole,
        "val_split": partial(number, low=0, high=1, open_low=True),
        "alpha_learning_rate": rate,
        "alpha_batch_size": whole,
        "alpha_optimizer": lambda name, value: one_of(name, value, _OPTIMIZERS),
        "guard": share,
        "guard_top_k": whole,
        "guard_epsilon": share,
        "dropout": flag,
        "dtype": lambda name, value: one_of(name, value, _DTYPES),
        "remat": flag,
        "max_samples": whole,
        "seed": partial(whole, low=0, high=2**31 - 1),
    }


def _ends_of_paths(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(end, str) for end in value):
        raise InputError(f"{name} = {shown(value)}: must be a list of path suffixes, such as query and value")
    return tuple(value)
