"""Settings that have no effect beside the others are refused, and no others are."""

import contextlib
import hashlib
import json
import re

import jax
import numpy as np
import pytest

import rmtjax.finetune.settings as module
from rmtjax import InputError
from rmtjax._random import GENERATOR
from rmtjax.finetune import Settings, finetune
from rmtjax.finetune.records import check_existing
from rmtjax.finetune.run import Run
from rmtjax.finetune.settings import without_effect

from .helpers import settings

OTHERS = {
    "rank": 3, "lora_alpha": 5.0, "target_modules": ("key",), "alpha_share": "self", "epochs": 2, "batch_size": 6,
    "learning_rate": 0.02, "warmup_ratio": 0.5, "weight_decay": 0.1, "max_grad_norm": 0.5, "max_length": 8,
    "alpha_every": 2, "val_split": 0.5, "alpha_learning_rate": 0.02, "alpha_batch_size": 2, "alpha_optimizer": "adamw",
    "guard": 0.05, "guard_top_k": 4, "guard_epsilon": 0.3, "dropout": False, "dtype": "bfloat16", "remat": True,
    "max_samples": 8, "seed": 5,
}  # fmt: skip
"""Another value of each setting than the one that the runs here have."""
FILES = {"task", "data", "model"}
WAYS = {"adapter", "alpha"}
STARTS = [
    {"adapter": "full"},
    {"adapter": "spectral-additive"},
    {"adapter": "lora"},
    {"adapter": "full", "alpha": True},
    {"adapter": "spectral-additive", "alpha": True, "guard": 0.1},
    {"adapter": "alpha-lora"},
    {"adapter": "alpha-lora", "guard": 0.1},
    {"adapter": "rslora"},
    {"adapter": "dora"},
    {"adapter": "orthogonal"},
    {"adapter": "spectral-rotational"},
]


def computation(chosen):
    """Return a hash of all that the result of a run depends on: the first weights, the batches, and the program of a step.

    A run that cannot be has its error in place of it.
    """
    try:
        run = Run(chosen, jax.devices()[:1])
    except InputError as error:
        return str(error)
    trainer = run.trainer
    batches = [run.batches[step] for step in (*range(4), run.batches.steps - 1)]
    program = jax.make_jaxpr(trainer._step)(trainer.start, trainer.frozen, *run.batches[0])
    arrays = jax.tree.leaves((trainer.start, trainer.frozen, batches, list(program.consts), run.batches.steps))
    total = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(program)).encode())
    for array in arrays:
        is_key = isinstance(array, jax.Array) and jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key)
        total.update(np.asarray(jax.random.key_data(array) if is_key else array).tobytes())
    return total.hexdigest()


def test_every_setting_is_compared():
    assert OTHERS.keys() | FILES | WAYS == Settings.__dataclass_fields__.keys()


@pytest.mark.first(1)
@pytest.mark.parametrize("start", STARTS, ids=lambda start: "-".join(map(str, start.values())))
def test_a_setting_without_effect_is_refused_and_no_other(start, base, data, monkeypatch):
    plain = settings(base, data, **start)
    unused = without_effect(plain.to_dict())
    refused = set()
    for name, value in OTHERS.items():
        if name == "guard" and plain.adapter == "full":
            continue  # refused for another reason
        try:
            settings(base, data, **{**start, name: value}).checked()
        except InputError as error:
            refused.add(name)
            shown = re.escape(repr(value))
            assert re.fullmatch(rf"{name} = {shown}: has no effect with(out)? .*; allowed with .*", str(error))
    assert refused == unused.keys()
    with monkeypatch.context() as patch:
        patch.setattr(module, "without_effect", lambda values: {})
        reference = computation(plain)
        assert computation(plain) == reference
        same = {
            name
            for name, value in OTHERS.items()
            if not (name == "guard" and plain.adapter == "full")
            and not (name == "alpha_share" and name in unused)  # `apply_adapters` refuses it as well
            and computation(settings(base, data, **{**start, name: value})) == reference
        }
    assert same == refused - {"alpha_share"}


@pytest.mark.parametrize(
    ("explicit", "changes", "says"),
    [
        ({"alpha_every"}, {}, r"alpha_every = 20: has no effect without alpha; allowed with alpha or the adapter alpha-lora"),
        ({"rank"}, {"adapter": "full"}, "rank = 8: has no effect with the adapter full; allowed with any other"),
        ({"guard_top_k"}, {}, "guard_top_k = 10: has no effect without guard; allowed with guard"),
        (
            {"lora_alpha"},
            {"adapter": "spectral-additive", "lora_alpha": 8.0},
            "lora_alpha = 8.0: has no effect with the adapter spectral-additive; allowed with lora, rslora, alpha-lora,",
        ),
        ({"alpha"}, {"adapter": "alpha-lora"}, "alpha = False: must be True with the adapter alpha-lora"),
    ],
)  # fmt: skip
def test_what_is_set_explicitly_is_refused_at_its_default_too(explicit, changes, says):
    chosen = Settings("mrpc", **changes)
    checked = chosen.checked()
    assert checked.checked() == checked
    with pytest.raises(InputError, match=re.escape(says)):
        chosen.checked(explicit)


def test_records_of_earlier_versions_may_hold_any_value_of_what_has_no_effect():
    record = Settings("mrpc").checked().to_dict() | {"alpha_every": 5, "guard_top_k": 3}
    assert Settings.from_dict(json.loads(json.dumps(record))).checked() == Settings("mrpc").checked()
    record = Settings("rte", adapter="full", seed=3).checked().to_dict() | {"rank": 2, "lora_alpha": 2.0}
    assert Settings.from_dict(record).checked() == Settings("rte", adapter="full", seed=3).checked()
    chosen = Settings("mrpc", adapter="dora", alpha=True, alpha_every=5, rank=4, target_modules=("key",)).checked()
    assert Settings.from_dict(chosen.to_dict()) == chosen


def test_a_run_of_an_earlier_version_resumes_whatever_it_says_of_what_has_no_effect(tmp_path):
    identity = {"settings": Settings("mrpc").checked().to_dict(), "generator": GENERATOR, "steps": 7}
    for name, value, resumed in (("alpha_every", 5, True), ("guard_top_k", 3, True), ("rank", 2, False)):
        record = {**identity, "settings": {**identity["settings"], name: value}}
        (tmp_path / "run.json").write_text(json.dumps({"identity": record}))
        with contextlib.nullcontext() if resumed else pytest.raises(InputError, match="holds a different run: rank = "):
            check_existing(tmp_path, identity, resume=True)


def test_steps_between_checkpoints_need_a_folder(base, data):
    with pytest.raises(InputError, match="save_every = 2: needs out, the folder of the run"):
        finetune(settings(base, data), save_every=2)
