"""Intruder Dimensions: the effect of every way of fine-tuning on a spectrum, and how much the model forgets, run by run.

`python -m experiments.intruder_dimensions.intruder_study_runs [--methods …] [--seeds 0,1] [--pilot] [--minutes M]` does what
`results/intruder-study/` does not hold yet. Each way is trained on MRPC, then what came out of that on QNLI, then on CoLA, every
task with a head of its own. After each stage it is written down: the score on its task; Matthews' correlation, which is 0 for
whoever always says the same, on this task and on the earlier ones with the heads they had; the intruders (10 leading vectors,
ε = 0.5) in the layers that were adapted and in all others, measured and predicted; effective rank and strength of the update;
and how far the model has moved on text that it was never trained on, the development set of SST-2: the mean cosine of its
sentence embeddings with the pre-trained ones (mean over tokens, what all-MiniLM is for), and the correlation of all similarities
of pairs before and after.

The pilot chooses the learning rate of each way among three or four, by two epochs of MRPC, at a seed that nothing else has.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file
from sklearn.metrics import matthews_corrcoef

from experiments._common import HERE
from experiments.alpha_lora.glue_runs import ALPHA_RATE, PILOT, RATE, SPLIT, qnli_folder
from rmtjax._files import write_json
from rmtjax._startup import device_for_each_core, keep_programs
from rmtjax.adapters import merged_copy
from rmtjax.datasets.glue import find_glue, load_glue
from rmtjax.finetune import Settings, finetune
from rmtjax.finetune.checkpoints import Checkpoints
from rmtjax.finetune.run import Run, predict
from rmtjax.finetune.step import TrainState
from rmtjax.intruders import scan
from rmtjax.models import EncoderConfig, load_encoder, model_folder, save_model
from rmtjax.models.tokenizer import Tokenizer

METHODS: dict[str, dict[str, Any]] = {
    "full": {"adapter": "full"},
    "lora-r1": {"adapter": "lora", "rank": 1},
    "lora-r8": {"adapter": "lora"},
    "lora-r64": {"adapter": "lora", "rank": 64},
    "rslora-r8": {"adapter": "rslora"},
    "alpha-lora-r8": {
        "adapter": "lora", "alpha": True, "alpha_every": 5, "alpha_learning_rate": ALPHA_RATE, "val_split": SPLIT
    },
    "orthogonal-r8": {"adapter": "orthogonal"},
    "spectral-additive-r8": {"adapter": "spectral-additive"},
    "spectral-rotational-r8": {"adapter": "spectral-rotational"},
    "guarded-lora-r8": {"adapter": "lora", "guard": 0.05},
}  # fmt: skip
"""Ways of fine-tuning. LoRA's factor a/r is 1 at every rank; rsLoRA's a/√r with a = 8 is 2.8."""
RATES: dict[str, float] = {
    "full": 5e-5, "lora-r1": 4e-3, "lora-r64": 1e-3, "orthogonal-r8": 4e-3,
    "spectral-additive-r8": 1e-3, "spectral-rotational-r8": 1.6e-2,
}  # fmt: skip
"""Learning rates: the pilot's better ones; that of Table 2 for methods not listed."""
TRIED = {
    "full": (1.25e-5, 5e-5, 2e-4), "lora-r1": (1e-3, 4e-3, 1.6e-2), "lora-r64": (2.5e-4, 1e-3, 4e-3),
    "orthogonal-r8": (1e-3, 4e-3, 1.6e-2), "spectral-additive-r8": (2.5e-4, 1e-3, 4e-3),
    "spectral-rotational-r8": (1e-3, 4e-3, 1.6e-2, 6.4e-2),
}  # fmt: skip
"""The pilot's learning rates; α-LoRA, rsLoRA and the guarded LoRA keep that of the LoRA they are compared with."""
SEQUENCE = {"mrpc": 3, "qnli": 2, "cola": 3}
"""The tasks in order, and epochs of each, in which this model learns them (RTE it hardly does)."""
PILOT_EPOCHS = 2
TOP, THRESHOLD = 10, 0.5
ADAPTED = r"attention\.self\.(query|value)"


def settings(name: str, task: str, seed: int, epochs: int, **more: Any) -> Settings:
    """Return the training settings of a method on a task."""
    rate = {"learning_rate": RATES.get(name, RATE)}
    return Settings(task, seed=seed, epochs=epochs, **{**METHODS[name], **rate, **more})


# -- what is measured ----------------------------------------------------------------------------------------------------


def spectra(tuned: Path) -> dict[str, Any]:
    """Return intruders and updates against the packaged base, in the adapted layers and in the others."""
    found = scan("minilm", tuned, top_k=TOP, threshold_epsilon=THRESHOLD)
    told = {}
    adapted = [layer for layer in found.layers if re.search(ADAPTED, layer.name)]
    for kind, layers in (("adapted", adapted), ("all", found.layers)):
        moved = [layer for layer in layers if layer.update.frobenius > 0]
        told[kind] = {
            "layers": len(layers),
            "intruders": sum(layer.intruders for layer in layers),
            "predicted": sum(layer.predicted for layer in layers),
            "effective_rank": float(np.mean([layer.update.effective_rank for layer in moved])) if moved else 0.0,
            "stable_rank": float(np.mean([layer.update.stable_rank for layer in moved])) if moved else 0.0,
            "frobenius": float(np.sqrt(sum(layer.update.frobenius**2 for layer in moved))),
            "strongest_over_threshold": max(
                (float(layer.update.strengths[0] / layer.prediction.threshold) for layer in moved), default=0.0
            ),
        }
    return told


def embeddings(folder: Path, texts: list[str], batch: int = 64) -> np.ndarray:
    """Return the means over tokens of the last states, normalised to length 1, (texts, d)."""
    encoder, _ = load_encoder(folder)
    tokenizer = Tokenizer(folder, EncoderConfig.read(folder))
    ids, _ = tokenizer(texts, None, 64)
    longest = max(map(len, ids))
    padded = np.full((len(ids), longest), tokenizer.pad, np.int32)
    mask = np.zeros((len(ids), longest), np.int32)
    for i, tokens in enumerate(ids):
        padded[i, : len(tokens)], mask[i, : len(tokens)] = tokens, 1

    graph, weights = nnx.split(
        encoder
    )  # as constants of the program they would be folded, and it compiled anew for each model

    @jax.jit
    def pooled(weights, ids, mask):
        states = nnx.merge(graph, weights)(ids, mask) * mask[:, :, None]
        mean = states.sum(1) / mask.sum(1, keepdims=True)
        return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)

    room = -len(ids) % batch  # one shape, one program
    padded, mask = (np.concatenate([x, x[:1].repeat(room, 0)]) for x in (padded, mask))
    parts = [pooled(weights, padded[i : i + batch], mask[i : i + batch]) for i in range(0, len(mask), batch)]
    return np.concatenate([np.asarray(part) for part in parts])[: len(ids)]


def drift(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Return the share of the embeddings' behaviour that is left: 1 and 1 if all of it."""
    pairs = np.triu_indices(len(before), 1)
    similarity = [(x @ x.T)[pairs] for x in (before, after)]
    return {
        "cosine": float(np.mean(np.sum(before * after, 1))),
        "similarities_kept": float(np.corrcoef(*similarity)[0, 1]),
    }


# -- one run -------------------------------------------------------------------------------------------------------------


def trained(run: Run, folder: Path):
    """Return the model of a finished run, adapters merged."""
    checkpoints = Checkpoints(folder / "checkpoints")
    state = checkpoints.latest(run.trainer.start)
    checkpoints.close()
    return merged_copy(run.trainer.model(state))


def split_head(folder: Path) -> None:
    """Split a classifier's folder into an encoder, `model.safetensors`, and the head, `head.safetensors`.

    The head is written last, and is the sign that all is done.
    """
    weights = load_file(folder / "model.safetensors")
    head = {name: x for name, x in weights.items() if name.startswith("classifier.")}
    save_file(head, folder / "head.part")
    save_file(
        {n: x for n, x in weights.items() if n not in head}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    (folder / "head.part").rename(folder / "head.safetensors")


def correlation(run: Run, state: TrainState) -> float:
    """Return Matthews' correlation of the answers on the development set; 0 if they are all the same."""
    data = run.dev["dev"]
    answers = predict(run.trainer, state, run.layout, data).argmax(-1)
    return float(matthews_corrcoef(np.asarray(data.labels), np.asarray(answers)))


def score_with(encoder: Path, head: Path, of: Settings, where: Path) -> float:
    """Return the correlation on a task with the encoder of one stage and the head of another."""
    where.mkdir(parents=True, exist_ok=True)
    for file in encoder.iterdir():
        if file.is_file() and file.name not in ("model.safetensors", "head.safetensors"):
            (where / file.name).write_bytes(file.read_bytes())
    weights = load_file(encoder / "model.safetensors") | load_file(head / "head.safetensors")
    save_file(weights, where / "model.safetensors", metadata={"format": "pt"})
    plain = Settings(of.task, data=of.data, model=str(where), adapter="lora", epochs=1, max_length=of.max_length)
    run = Run(plain)  # a LoRA that has not been trained changes nothing
    return correlation(run, run.trainer.start)


def stages(name: str, seed: int, data: Path, runs: Path, sequence: dict[str, int], texts: list[str]) -> dict[str, Any]:
    """Train a method on one task after another and measure after each."""
    before = embeddings(model_folder(), texts)
    base: Path | None = None
    done: list[dict[str, Any]] = []
    earlier: list[tuple[Settings, Path]] = []
    for k, (task, epochs) in enumerate(sequence.items()):
        where = qnli_folder(data, runs.parent) if task == "qnli" else data
        chosen = settings(name, task, seed, epochs, data=str(where), model="minilm" if base is None else str(base))
        folder = runs / f"{name}-{seed}" / f"{k}-{task}"
        if k == 0:
            folder = _of_table2(name, chosen, runs.parent) or folder
        result = finetune(chosen, folder, resume=(folder / "run.json").exists(), base_copy=False)
        encoder = runs / f"{name}-{seed}" / f"{k}-{task}-merged"
        if not (encoder / "head.safetensors").exists():
            run = Run(chosen)
            save_model(trained(run, folder), encoder, labels=run.task.labels, tokenizer=run.folder)
            split_head(encoder)
        scores = {task: score_with(encoder, encoder, chosen, runs / f"{name}-{seed}" / "scored")}
        for other, head in earlier:
            scores[other.task] = score_with(encoder, head, other, runs / f"{name}-{seed}" / "scored")
        done.append(
            {
                "task": task,
                "score": result["last"],
                "correlations": scores,
                "forgetting": drift(before, embeddings(encoder, texts)),
                "spectra": spectra(encoder),
                "parameters": result["parameters"],
                "seconds": result["seconds"],
            }
        )
        earlier.append((chosen, encoder))
        base = encoder
    told = {k: v for k, v in chosen.checked().to_dict().items() if k not in ("data", "model", "task", "epochs")}
    return {
        "name": name,
        "seed": seed,
        "settings": told,
        "sequence": sequence,
        "texts": len(texts),
        "stages": done,
        "made_with": result["made_with"],
    }


def _of_table2(name: str, chosen: Settings, runs: Path) -> Path | None:
    """Return the folder of the run for Table 2 with exactly these settings, if there is one."""
    folder = runs / f"{chosen.task}-{name.removesuffix('-r8')}-{chosen.seed}"
    try:
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))["settings"]
    except OSError:
        return None
    found = Settings.from_dict(found).checked().to_dict()  # with later additions
    told = chosen.checked().to_dict()
    return folder if all(found[key] == told[key] for key in told if key not in ("data", "model")) else None


def check_same(file: Path, chosen: Settings, sequence: dict[str, int], texts: int) -> None:
    """Stop if the existing file is the result of other settings."""
    found = json.loads(file.read_text(encoding="utf-8"))
    told = {k: v for k, v in chosen.checked().to_dict().items() if k in found["settings"]}
    wanted = {**told, "sequence": sequence, "texts": texts}
    there = {**found["settings"], "sequence": found["sequence"], "texts": found.get("texts")}
    if list(there["sequence"].items()) != list(sequence.items()) or there != wanted:
        differs = sorted(key for key in wanted if there.get(key) != wanted[key]) or ["sequence"]
        raise SystemExit(f"{file} is of another {', '.join(differs)}; move it away, or choose another --out")


def pilot(data: Path, runs: Path, results: Path, methods: list[str]) -> None:
    """Run MRPC at each method's candidate learning rates."""
    for name in methods:
        for rate in TRIED.get(name, ()):
            file = results / f"pilot-{name}-rate{rate:g}.json"
            if file.exists():
                continue
            chosen = dataclasses.replace(
                settings(name, "mrpc", PILOT, PILOT_EPOCHS, data=str(data)), learning_rate=rate
            )
            folder = runs / file.stem
            result = finetune(chosen, folder, resume=(folder / "run.json").exists(), base_copy=False)
            write_json(
                file, {"name": name, "learning_rate": rate, "last": result["last"], "history": result["history"]}
            )
            print(f"{name} at {rate:g}: {100 * result['last']:.2f}, {result['seconds']:.0f} s", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Do the missing runs, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(METHODS), help="some of %(default)s")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument("--tasks", help="with epochs, such as mrpc:3,rte:3, for another sequence")
    parser.add_argument(
        "--texts", type=int, default=832, help="sentences to measure forgetting by (default: %(default)s)"
    )
    parser.add_argument("--pilot", action="store_true", help="the pilot's runs instead")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so many minutes")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for results/ and runs/ (default: this one)")
    args = parser.parse_args(argv)
    methods = args.methods.split(",")
    if set(methods) - set(METHODS):
        parser.error(f"methods: {sorted(set(methods) - set(METHODS))[0]} is none of {', '.join(METHODS)}")
    keep_programs()
    device_for_each_core()
    data, began = find_glue(), time.perf_counter()
    if data is None:
        parser.error("no folder of GLUE was found: set RMTJAX_DATA to the folder that holds glue/")
    sequence = SEQUENCE
    if args.tasks:
        sequence = {task: int(epochs) for task, epochs in (pair.split(":") for pair in args.tasks.split(","))}
    results, runs = args.out / "results" / "intruder-study", args.out / "runs" / "study"
    results.mkdir(parents=True, exist_ok=True)
    if args.pilot:
        pilot(data, runs, results, methods)
        return
    if args.texts < 2:
        parser.error(f"texts = {args.texts}: must be 2 or more")
    texts = load_glue("sst2", data, "dev").first[: args.texts]
    for seed in map(int, args.seeds.split(",")):
        for name in methods:
            file = results / f"{name}-{seed}.json"
            if file.exists():
                check_same(file, settings(name, next(iter(sequence)), seed, 1, data=str(data)), sequence, len(texts))
                continue
            if time.perf_counter() - began > 60 * args.minutes:
                return
            found = stages(name, seed, data, runs, sequence, texts)
            write_json(file, found)
            last = found["stages"][-1]
            print(
                name,
                seed,
                {t: round(100 * s, 2) for t, s in last["correlations"].items()},
                last["forgetting"],
                flush=True,
            )


if __name__ == "__main__":
    main()
