"""The scan of a checkpoint."""

from __future__ import annotations

import math
import os
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from rmtjax._errors import InputError
from rmtjax._machine import cores
from rmtjax._progress import Report, Reporter
from rmtjax.intruders.pair import Skipped
from rmtjax.intruders.pairs import ZERO, ZERO_AFTER, Pairs
from rmtjax.intruders.predict.prediction import check_question
from rmtjax.intruders.scan.layer import scan_layer
from rmtjax.intruders.scan.result import LayerScan, Scan
from rmtjax.intruders.scan.verdict import ScanLimits
from rmtjax.linalg.svd import one_blas_thread

__all__ = ["scan"]


def scan(
    base: str | os.PathLike,
    tuned: str | os.PathLike,
    *,
    top_k: int = 10,
    threshold_epsilon: float = 0.5,
    layers: str | None = None,
    exact: bool = False,
    progress: Report = None,
    limits: ScanLimits = ScanLimits(),  # noqa: B008, it is frozen
) -> Scan:
    """Return the intruders in every weight matrix of a checkpoint. See `scan_layer`.

    Args:
        base: safetensors file, folder or hub id; "minilm" for the packaged all-MiniLM-L6-v2.
        tuned: the same, or a folder of a PEFT adapter or of a run of `rmtjax finetune`.
        top_k: k, the number of leading vectors to look at.
        threshold_epsilon: ε, the cosine below which a vector is an intruder.
        layers: regular expression that names must contain.
        exact: whether to compute two SVDs for each layer.
        progress: True draws a bar on standard error, None (the default) on a terminal only; or a function of a `Progress`.
        limits: see `scan_layer`.

    Returns:
        `Scan`, its layers in the order of their names.

    Raises:
        InputError: for files that cannot be compared, a threshold outside (0, 1), or a `top_k` that no layer has.
    """
    check_question(top_k, threshold_epsilon)
    began = time.perf_counter()
    pairs = Pairs(base, tuned, layers)
    skipped = list(pairs.skipped)
    short = [name for name in pairs.names if min(pairs.shape(name)) < top_k]
    if len(short) == len(pairs.names):
        most = max(min(pairs.shape(name)) for name in short)
        raise InputError(f"top_k = {top_k}: must be at most {most}, the smaller side of the largest layer")
    skipped += [Skipped(name, f"smaller than top_k = {top_k}") for name in short]
    names = [name for name in pairs.names if name not in set(short)]

    accelerated = jax.default_backend() != "cpu"

    def scan_named(name: str) -> LayerScan | Skipped:
        pair = pairs.read(name)
        if isinstance(pair, Skipped):
            return pair
        pair = pair.on_device() if accelerated else pair
        try:
            return scan_layer(pair, top_k=top_k, threshold_epsilon=threshold_epsilon, exact=exact, limits=limits)
        except np.linalg.LinAlgError as error:
            return Skipped(name, f"LAPACK failed to decompose it ({error})")

    results: list[LayerScan | Skipped] = []

    def note(result):
        results.append(result)
        reporter.show(len(results), len(names), result.name)

    small = [name for name in names if math.prod(pairs.shape(name)) <= limits.single_thread_entries]
    with Reporter(len(names), "layers", progress, unit="layers") as reporter:
        if len(small) > 1:
            with one_blas_thread(), ThreadPoolExecutor(cores()) as pool:
                for result in pool.map(scan_named, small):
                    note(result)
        for name in names if len(small) < 2 else [name for name in names if name not in set(small)]:
            note(scan_named(name))
    order = {name: i for i, name in enumerate(names)}
    scans = sorted((r for r in results if isinstance(r, LayerScan)), key=lambda r: order[r.name])
    skipped += [r for r in results if isinstance(r, Skipped)]
    if not scans:
        raise InputError(f"tuned = {tuned}: nothing to scan, {skipped[-1].name} is {skipped[-1].reason}")
    # A layer of the adapter keeps the adapter's name; a matrix that could not be read keeps the base's name.
    unread = [r.name for r in results if isinstance(r, Skipped) and r.reason not in (ZERO, ZERO_AFTER)]
    incomplete = tuple(dict.fromkeys([*pairs.incomplete, *unread]))
    settings = {
        "base": str(base),
        "tuned": str(tuned),
        "top_k": top_k,
        "threshold_epsilon": threshold_epsilon,
        "exact": exact,
    }
    return Scan(tuple(scans), tuple(skipped), tuple(pairs.remarks), incomplete, settings, time.perf_counter() - began)
