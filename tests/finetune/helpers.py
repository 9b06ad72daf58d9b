"""A BERT of a few hundred weights, a toy task in GLUE's format, and functions that inspect the folder of a run."""

import functools
import json
import re
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from rmtjax.adapters import TRAINABLE, AlphaParam, apply_adapters
from rmtjax.finetune import Settings
from rmtjax.finetune.data import Sequences
from rmtjax.models import Encoder, EncoderConfig, SequenceClassifier, save_model
from tests.helpers import array

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "red", "green", "blue", "black", "white"]


def config(**changes):
    """Return sizes small enough that a step takes a millisecond, and weights large enough that inputs matter."""
    sizes = dict(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, initializer_range=0.2,
    )  # fmt: skip
    return EncoderConfig(**{**sizes, **changes})


def write_base(folder, **changes):
    """Write a base model as Hugging Face stores it, with a WordPiece vocabulary."""
    model = Encoder(config(**changes), pooler=True, rngs=nnx.Rngs(0))
    save_model(model, folder)
    (Path(folder) / "vocab.txt").write_text("".join(f"{word}\n" for word in SPECIAL + WORDS))
    return Path(folder)


def write_task(folder, train=21, dev=9, seed=0, name="MRPC"):
    """Write pairs whose second sentence is of Greek letters (label 0, or score 1) or of colours (label 1, score 4)."""
    rng = np.random.default_rng(seed)
    columns = {
        "MRPC": ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
        "STS-B": ("sentence1", "sentence2", "score"),
        "MNLI": ("sentence1", "sentence2", "gold_label"),
    }[name]
    files = {"train": train, **({"dev_matched": dev, "dev_mismatched": dev + 2} if name == "MNLI" else {"dev": dev})}
    place = Path(folder) / name
    place.mkdir(parents=True, exist_ok=True)
    for split, count in files.items():
        lines = ["\t".join(columns)]
        for i in range(count):
            kind = i % 2
            first = " ".join(rng.choice(WORDS, rng.integers(1, 8)))
            second = " ".join(rng.choice(WORDS[5 * kind : 5 * kind + 5], rng.integers(3, 8)))
            row = {
                "MRPC": (kind, i, i, first, second),
                "STS-B": (first, second, 1 + 3 * kind),
                "MNLI": (first, second, ("entailment", "contradiction")[kind]),
            }[name]
            lines.append("\t".join(map(str, row)))
        (place / f"{split}.tsv").write_text("".join(f"{line}\n" for line in lines))
    return Path(folder)


def settings(base, data, **changes):
    """Return settings that suit the toy task."""
    usual = dict(
        task="mrpc", data=str(data), model=str(base), epochs=3, batch_size=4, learning_rate=1e-2, max_length=32
    )  # fmt: skip
    if changes.get("adapter") != "full":
        usual["rank"] = 2
    if changes.get("alpha") or changes.get("adapter") == "alpha-lora":
        usual["alpha_every"] = 3
    return Settings(**{**usual, **changes})


def sequences(lengths, regression=False, seed=0):
    """Return random examples of given lengths."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1, 15, n).astype(np.int32) for n in lengths]
    types = [(np.arange(n) >= n // 2).astype(np.int32) for n in lengths]
    labels = rng.uniform(0, 5, len(lengths)).astype(np.float32) if regression else rng.integers(0, 2, len(lengths))
    return Sequences(ids, types, labels if regression else labels.astype(np.int32))


def new(config, outputs):
    """A classifier with the weights that it begins with, all made by one program."""
    return nnx.clone(_new(config, outputs))


@functools.cache
def _new(config, outputs):
    return nnx.jit(lambda: SequenceClassifier(config, outputs, rngs=nnx.Rngs(0)))()


def adapted(method="lora", outputs=2, alpha=False, seed=1, **changes):
    """Return an adapted classifier away from its start, where many gradients are zero."""
    model = new(config(**changes), outputs)
    apply_adapters(model, method, rank=2, alpha=alpha, train=["classifier"])
    rng = np.random.default_rng(seed)
    state = nnx.state(model, nnx.Any(TRAINABLE, AlphaParam))
    moved = jax.tree.map(lambda x: np.asarray(x) + 0.1 * rng.standard_normal(x.shape, np.float32), state)
    nnx.update(model, jax.tree.map(array, moved))
    return model


class Shared:
    """Lets runs of the same settings share one compiled step; pass it as `announce`."""

    def __init__(self):
        self.first = None

    def __call__(self, run):
        self.first = self.first or run.trainer
        run.trainer.step, run.trainer.logits = self.first.step, self.first.logits


def left(out):
    """Return a run's output that must not depend on where it was stopped: arrays and measured numbers."""
    import orbax.checkpoint as ocp

    out = Path(out)
    result = json.loads((out / "result.json").read_text())
    kept, reader = out / "checkpoints" / str(checkpoints(out)[-1]) / "default", ocp.PyTreeCheckpointer()
    about = reader.metadata(kept)
    about = getattr(about, "item_metadata", about)  # which older versions of orbax return by itself
    plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), about.tree)
    state = reader.restore(kept, restore_args=plain)
    arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(state)}
    for file in sorted(out.glob("adapter/*.safetensors")):
        arrays |= {f"{file.name}: {name}": x for name, x in load_file(file).items()}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    measured = {
        "history": [{k: v for k, v in line.items() if k != "seconds"} for line in result["history"]],
        "metrics": [{k: v for k, v in line.items() if k != "seconds"} for line in lines],
        **{k: result[k] for k in ("alpha", "finished", "steps", "best", "last", "best_epoch", "parameters")},
    }
    return arrays, measured


def assert_same(run, other):
    """Check that two runs left bit-identical output."""
    (arrays, measured), (wanted, numbers) = run, other
    assert arrays.keys() == wanted.keys()
    for name, x in arrays.items():
        assert x.dtype == wanted[name].dtype and x.tobytes() == wanted[name].tobytes(), name
    assert measured == numbers


def checkpoints(out):
    """Return the steps of the finished checkpoints of a run."""
    folder = Path(out) / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if re.fullmatch(r"\d+", p.name)) if folder.is_dir() else []


def files(folder):
    """Return every file below a folder, or the file itself, with its content."""
    folder = Path(folder)
    return {p: p.read_bytes() for p in ([folder] if folder.is_file() else sorted(folder.rglob("*"))) if p.is_file()}
