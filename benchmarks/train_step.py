"""A step of LoRA training of MiniLM, ours beside PyTorch with PEFT: tokens a second, α's cost, memory.

`python -m benchmarks.train_step [--quick] [--minutes 10] [--batch 32] [--length 128] [--dtype float32]`, in an environment with
`pip install 'rmtjax[peers]'`. It says on standard error what it is at, and after `--minutes` begins no further round.

Both train LoRA on query and value and the head with AdamW, dropout on, on the same random tokens, alternately in one process;
on processors both use all cores, on a GPU both may use TF32 for float32. Compilation is apart. Memory is the peak of a
process of its own for each, which loads the model and takes four steps, two of them with a move of α where there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from importlib.util import find_spec

import jax
import numpy as np

from benchmarks._common import ratio, save, summary
from benchmarks._timing import PAUSE

RANK, LEARNING_RATE = 8, 1e-4


class Clock:
    """The elapsed time of the benchmark and its limit."""

    def __init__(self, minutes: float) -> None:
        self._began, self._limit = time.monotonic(), 60 * minutes

    def say(self, message: str) -> None:
        """Print the next step on standard error."""
        print(f"[{time.monotonic() - self._began:4.0f} s] {message}", file=sys.stderr, flush=True)

    def is_over(self, share: float) -> bool:
        """Return whether the given share of the allowed time has passed."""
        return time.monotonic() - self._began > share * self._limit


def rounds(clock: Clock, share: float, repeats: int, **steps) -> dict:
    """Return times of functions that alternate as in `benchmarks._timing.alternate`, for a share of the allowed time.

    At least one round counts.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(repeats + 1):
        if i > 1 and clock.is_over(share):
            clock.say(f"no more rounds: {i - 1} of {repeats} are done")
            break
        clock.say(f"a step of each of {', '.join(steps)}: " + (f"round {i} of {repeats}" if i else "to warm up"))
        for name, step in steps.items():
            time.sleep(PAUSE)
            began = time.perf_counter()
            step()
            if i:
                times[name].append(time.perf_counter() - began)
    return {name: summary(t) for name, t in times.items()}


def _batch(batch: int, length: int):
    random = np.random.default_rng(0)
    ids = random.integers(1000, 30000, (batch, length)).astype(np.int32)
    return ids, random.integers(0, 2, batch).astype(np.int32)


def ours(method: str, batch: int, length: int, dtype: str, every: int = 20, whole: bool = False, plain: bool = False):
    """Return a function that takes a step and waits for it, and its compilation time.

    `whole` computes the batch in one piece on one device, as a program without pieces would; `plain` uses the functions of JAX
    and Flax in the place of those written for processors.
    """
    import optax

    from rmtjax.adapters import alpha_updater, apply_adapters
    from rmtjax.finetune.data import Layout, Sequences
    from rmtjax.finetune.step import Trainer, data_mesh, loss_of
    from rmtjax.models import load_classifier, plain_functions

    model, _ = load_classifier("minilm", 2, dtype=dtype)
    apply_adapters(model, method, rank=RANK, train=["classifier"])
    mesh = data_mesh(jax.devices()[:1] if whole else None)
    devices = mesh.devices.size
    small = jax.devices()[0].platform == "cpu" and not whole
    layout = Layout((length,), max(1, 512 // length) if small else batch // devices, devices, 0)
    ids, labels = _batch(batch, length)
    data = Sequences(list(ids), [np.zeros(length, np.int32)] * batch, labels)
    updater = alpha_updater(optax.adam(5e-3), every) if method == "alpha-lora" else None
    trainer = Trainer(model, optax.adamw(LEARNING_RATE), updater, loss_of(False), layout, mesh)
    arranged = trainer.put(layout.arrange(data, np.arange(batch)))
    fresh = None if updater is None else arranged
    began = time.perf_counter()
    with plain_functions() if plain else contextlib.nullcontext():
        lowered = trainer.step.lower(trainer.start, trainer.frozen, arranged, fresh)
    compiled = lowered.compile()
    compile_s = time.perf_counter() - began
    state = trainer.start

    def step():
        nonlocal state
        state, loss = compiled(state, trainer.frozen, arranged, fresh)
        return float(loss)

    return step, compile_s


def peft(batch: int, length: int, dtype: str):
    """Return the same step in PyTorch, transformers and PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    from rmtjax.models import model_folder

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cuda = torch.cuda.is_available() and jax.devices()[0].platform != "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    device = "cuda" if cuda else "cpu"
    model = AutoModelForSequenceClassification.from_pretrained(model_folder(), num_labels=2)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["query", "value"], task_type="SEQ_CLS")
    model = get_peft_model(model, config).to(device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    ids, labels = (torch.from_numpy(x).long().to(device) for x in _batch(batch, length))
    mask = torch.ones_like(ids)

    def step():
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def memory(which: str, batch: int, length: int, dtype: str) -> None:
    """Take three steps and print the peak of memory in bytes: of the process, and of the accelerator if there is one."""
    step = peft(batch, length, dtype) if which == "peft" else ours(which, batch, length, dtype, every=2)[0]
    for _ in range(4):
        step()
    device = jax.devices()[0]
    if device.platform == "cpu":
        # Not ru_maxrss, which starts at the peak of the process's parent.
        with open("/proc/self/status", encoding="ascii") as lines:
            peak = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    elif which == "peft":
        import torch

        peak = torch.cuda.max_memory_allocated()
    else:
        peak = device.memory_stats()["peak_bytes_in_use"]
    print(json.dumps(int(peak)))


def cycles_in_turn(clock: Clock, share: float, cycles: int, every: int, **steps) -> dict:
    """Return times of steps that leave α and of those that move it, and the mean of the T steps in a cycle.

    There are as many cycles as a share of the time allowed has room for, and one at least.

    The candidates take turns step by step so that all meet the same weather. Medians are taken of each kind of step by
    itself: a sum of T steps is as far off as the worst of them.
    """
    for step in steps.values():
        step()  # the first of T, so that the last one of each round below moves α
    times = {name: ([], []) for name in steps}
    for cycle in range(cycles):
        if cycle and clock.is_over(share):
            clock.say(f"no more cycles: {cycle} of {cycles} are done")
            break
        clock.say(f"{every} steps of each of {', '.join(steps)}: cycle {cycle + 1} of {cycles}")
        for i in range(1, every + 1):
            for name, step in steps.items():
                began = time.perf_counter()
                step()
                times[name][i % every == every - 1].append(time.perf_counter() - began)
    return {name: _cycle(every, *kinds) for name, kinds in times.items()}


def _cycle(every: int, stays: list[float], moves: list[float]) -> dict:
    found = {"stays": summary(stays), "moves": summary(moves)}
    return {**found, "median_s": ((every - 1) * found["stays"]["median_s"] + found["moves"]["median_s"]) / every}


def measure(clock: Clock, batch: int, length: int, dtype: str, repeats: int, cycles: int, every: int) -> dict:
    """Measure all timings and the peaks of memory."""
    tokens = batch * length
    clock.say("compiling a step of LoRA, in pieces, in one piece and with plain functions")
    mine, compile_s = ours("lora", batch, length, dtype)
    whole, _ = ours("lora", batch, length, dtype, whole=True)
    plain, plain_compile_s = ours("lora", batch, length, dtype, plain=True)
    if find_spec("peft") is None:
        clock.say("PEFT is not installed: there is nothing to compare with")
        peers = {}
    else:
        clock.say("loading PyTorch, transformers and PEFT")
        peers = {"peft": peft(batch, length, dtype)}
    times = rounds(clock, 0.4, repeats, rmtjax=mine, rmtjax_in_one_piece=whole, rmtjax_plain=plain, **peers)
    clock.say("compiling a step of α-LoRA")
    with_alpha, _ = ours("alpha-lora", batch, length, dtype, every)

    cycled = cycles_in_turn(clock, 0.85, cycles, every, lora=mine, alpha_lora=with_alpha)
    peaks = {}
    for which in ("lora", "alpha-lora", *peers):
        clock.say(f"memory of {which}, in a process of its own")
        command = [sys.executable, __file__, "--memory", which, "--batch", batch, "--length", length, "--dtype", dtype]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        peaks[which] = json.loads(done.stdout.splitlines()[-1])
    return {
        "batch": batch,
        "length": length,
        "dtype": dtype,
        "compile_s": compile_s,
        "plain_compile_s": plain_compile_s,
        "steps": times,
        "tokens_per_s": {name: tokens / t["median_s"] for name, t in times.items()},
        "peft_over_rmtjax": ratio(times["peft"], times["rmtjax"]) if peers else None,
        "one_piece_over_rmtjax": ratio(times["rmtjax_in_one_piece"], times["rmtjax"]),
        "plain_over_rmtjax": ratio(times["rmtjax_plain"], times["rmtjax"]),
        "cycles_of_T": cycled,
        "T": every,
        "alpha_lora_over_lora": cycled["alpha_lora"]["median_s"] / cycled["lora"]["median_s"],
        "peak_bytes": peaks,
    }


def main(argv: list[str] | None = None) -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats and no file, to see that it works")
    parser.add_argument("--minutes", type=float, default=10.0, help="about how long it may take, compilation included")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--every", type=int, default=20, help="T")
    parser.add_argument("--memory", choices=("lora", "alpha-lora", "peft"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if chosen.every < 2:
        parser.error(f"--every {chosen.every}: must be 2 or more, so that α stays in some steps")
    if not chosen.minutes > 0:
        parser.error(f"--minutes {chosen.minutes:g}: must be above 0")
    from rmtjax._startup import device_for_each_core

    device_for_each_core()
    if chosen.memory:
        memory(chosen.memory, chosen.batch, chosen.length, chosen.dtype)
        return
    every = 2 if chosen.quick else chosen.every
    most = 1 if chosen.quick else 9
    content = measure(Clock(chosen.minutes), chosen.batch, chosen.length, chosen.dtype, most, most, every)
    for name in (
        "tokens_per_s",
        "peft_over_rmtjax",
        "one_piece_over_rmtjax",
        "plain_over_rmtjax",
        "alpha_lora_over_lora",
        "peak_bytes",
        "compile_s",
    ):
        print(f"{name}: {content[name]}")
    if not chosen.quick:
        packages = ("torch", "transformers", "peft", "flax", "optax")
        from rmtjax._provenance import versions

        print(save(f"train-step-{chosen.dtype}", {**content, "more_versions": versions(*packages)}))


if __name__ == "__main__":
    main()
