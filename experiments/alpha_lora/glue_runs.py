"""α-LoRA, §5.2: the fine-tunings behind Table 2, Figures 4, 5, 7–9 and the ablations, run one by one.

`python -m experiments.alpha_lora.glue_runs [PLAN …] [--seeds 5] [--minutes M]` does what `results/glue/` does not hold yet,
seed by seed, so that whatever there is can be compared. Each run leaves a small file there, and its adapter in `runs/`, which is
not kept under version control. The plans: table2, relatives (α on rsLoRA and DoRA), every (T), split (`val_split`), pilot.

The model is the packaged all-MiniLM-L6-v2, 6 layers and 22.7 million weights (the paper's RoBERTa-base: 12 and 125). Of
QNLI only the development set is at hand: a fixed fifth of it is for testing and the rest for training.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments._common import HERE
from rmtjax._files import write_json
from rmtjax._startup import device_for_each_core, keep_programs
from rmtjax.datasets.glue import find_glue
from rmtjax.finetune import Settings, finetune

EPOCHS = {"mrpc": 3, "rte": 3, "cola": 3, "qnli": 3, "sst2": 1}
"""Passes over each task's data here, chosen for two cores; the paper's are 40, 40, –, 10 and 10."""
EVERY = {"mrpc": 5, "rte": 5, "cola": 5, "qnli": 5, "sst2": 20}
"""T, by which α moves 47 to 160 times in a run; the paper's T = 20 gave it about 115 moves on MRPC."""
RATE = 2e-3
"""Learning rate of adapters and head: the best of four for plain LoRA in the pilot, which has a seed of its own."""
ALPHA_RATE, SPLIT = 2e-2, 1.0
"""α's learning rate and share of the data: the best of four pairs in the pilot."""
PILOT = 100


def _settings(task: str, method: str, seed: int, **more) -> Settings:
    chosen = {"epochs": EPOCHS[task], "learning_rate": RATE}
    if method == "alpha-lora" or more.get("alpha"):
        chosen |= {"alpha_every": EVERY[task], "alpha_learning_rate": ALPHA_RATE, "val_split": SPLIT}
    return Settings(task, adapter=method, seed=seed, **{**chosen, **more})


def table2(seed: int) -> Iterator[tuple[str, Settings]]:
    """Plan LoRA and α-LoRA on every task."""
    for task in EPOCHS:
        yield f"{task}-lora", _settings(task, "lora", seed)
        yield f"{task}-alpha-lora", _settings(task, "alpha-lora", seed)


def relatives(seed: int) -> Iterator[tuple[str, Settings]]:
    """Plan α on top of rsLoRA and DoRA."""
    for method in ("rslora", "dora"):
        for alpha in (False, True):
            yield f"mrpc-{'alpha-' if alpha else ''}{method}", _settings("mrpc", method, seed, alpha=alpha)


def every(seed: int) -> Iterator[tuple[str, Settings]]:
    """Plan runs with several T; that of table2 is 5."""
    for steps in (1, 20, 80):
        yield f"mrpc-alpha-lora-T{steps}", _settings("mrpc", "alpha-lora", seed, alpha_every=steps)


def split(seed: int) -> Iterator[tuple[str, Settings]]:
    """Plan several shares of the training set for α; that of table2 is 1, which gives all of it to both."""
    for share in (0.05, 0.2, 0.5, 0.8):
        yield f"mrpc-alpha-lora-split{share}", _settings("mrpc", "alpha-lora", seed, val_split=share)


def pilot(seed: int) -> Iterator[tuple[str, Settings]]:
    """Plan the runs that choose settings for plain LoRA and then for α: four each on MRPC, at a seed of their own."""
    if seed == 0:
        for rate in (1e-3, 2e-3, 4e-3, 8e-3):
            yield f"mrpc-lora-rate{rate:g}", _settings("mrpc", "lora", PILOT, learning_rate=rate)
        for rate, share in itertools.product((5e-3, 2e-2), (0.2, 1.0)):
            more = {"alpha_learning_rate": rate, "val_split": share}
            yield f"mrpc-alpha-lora-alpharate{rate:g}-split{share}", _settings("mrpc", "alpha-lora", PILOT, **more)


PLANS = {plan.__name__: plan for plan in (table2, relatives, every, split, pilot)}


def _told(settings: Settings) -> dict:
    """Return the settings of a file of results, without the locations of files."""
    return {k: v for k, v in settings.checked().to_dict().items() if k not in ("data", "model")}


def qnli_folder(data: Path, where: Path) -> Path:
    """Return the folder of QNLI's development set split into a training and a test set, always in the same way."""
    folder = where / "QNLI"
    if not (folder / "train.tsv").exists():
        folder.mkdir(parents=True, exist_ok=True)
        header, *lines = (data / "QNLI" / "dev.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
        # Questions about one paragraph are neighbours; whole stretches are set apart so that no paragraph is on both sides.
        stretches = np.array_split(np.arange(len(lines)), 50)
        test = set(np.concatenate([stretches[i] for i in np.random.default_rng(0).permutation(50)[:10]]).tolist())
        (folder / "dev.tsv").write_text(header + "".join(x for i, x in enumerate(lines) if i in test), encoding="utf-8")
        (folder / "train.tsv").write_text(
            header + "".join(x for i, x in enumerate(lines) if i not in test), encoding="utf-8"
        )
    return folder


def main(argv: list[str] | None = None) -> None:
    """Do the missing runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plans", nargs="*", metavar="PLAN", help=f"{', '.join(PLANS)}; table2 by default")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, … (default: %(default)s)")
    parser.add_argument("--tasks", help="only these, with commas")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so many minutes")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for results/ and runs/ (default: this one)")
    args = parser.parse_args(argv)
    if set(args.plans) - set(PLANS):
        parser.error(f"plan {sorted(set(args.plans) - set(PLANS))[0]}: must be one of {', '.join(PLANS)}")
    keep_programs()
    device_for_each_core()
    data, began = find_glue(), time.perf_counter()
    if data is None:
        parser.error("no folder of GLUE was found: set RMTJAX_DATA to the folder that holds glue/")
    results = args.out / "results" / "glue"
    results.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        for plan in args.plans or ["table2"]:
            for name, settings in PLANS[plan](seed):
                file = results / f"{name}-{settings.seed}.json"
                if args.tasks and settings.task not in args.tasks.split(","):
                    continue
                told = _told(settings)
                if file.exists():
                    before = json.loads(file.read_text(encoding="utf-8"))["settings"]
                    if _told(Settings.from_dict(before)) != told:
                        parser.error(f"{file} was made with other settings than the plan's: move it away")
                    continue
                if time.perf_counter() - began > 60 * args.minutes:
                    return
                folder = qnli_folder(data, args.out / "runs") if settings.task == "qnli" else data
                run = args.out / "runs" / f"{name}-{settings.seed}"
                settings = dataclasses.replace(settings, data=str(folder))
                result = finetune(settings, run, resume=(run / "run.json").exists(), base_copy=False)
                result["settings"] = told
                write_json(file, result)
                print(
                    f"{name} {seed}: {result['headline']} {100 * result['last']:.2f}, {result['seconds']:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
