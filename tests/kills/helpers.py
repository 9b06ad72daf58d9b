"""Processes that are killed at random moments. They fork from a server that has done the slow imports."""

import multiprocessing
import os
import time

import jax
import numpy as np

KILLS = int(os.environ.get("RMTJAX_TEST_KILLS", "20"))


def context():
    """Return the context that starts processes."""
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(["jax", "rmtjax.montecarlo", "rmtjax.finetune", "orbax.checkpoint"])
    return forking


def keep_programs(folder):
    """Keep compiled programs in a folder, as the command line does; kills hit their writing, too."""
    jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def whole(target, path):
    """Return the seconds that an undisturbed process takes."""
    began = time.perf_counter()
    process = context().Process(target=target, args=(path,))
    process.start()
    process.join(600)
    assert process.exitcode == 0, f"{target.__name__} ended with {process.exitcode}"
    return time.perf_counter() - began


def killed(target, folder, seconds, check, progress, seed=0, kills=KILLS):
    """Start a process, kill it at a random moment and restart it on the remains, until it ends.

    This is repeated with new folders up to the given number of kills, and the output of each finished process is checked.
    Processes write nothing for most of their start, so every second kill waits until something is written.

    Args:
        target: what a process does, in the folder that it is given.
        folder: where the folders go.
        seconds: how long one takes that is not killed.
        check: called with each folder whose process came to its end.
        progress: how much a folder holds, a number.
        seed: of the moments.
        kills: how many.

    Returns:
        What was there at each kill.
    """
    rng, seen, ended = np.random.default_rng(seed), [], 0
    while len(seen) < kills or progress(folder / str(ended)):
        path = folder / str(ended)
        before = progress(path)
        process = context().Process(target=target, args=(path,))
        process.start()
        if len(seen) % 2 and len(seen) < kills:
            while process.is_alive() and progress(path) == before:
                time.sleep(0.002)
            process.join(rng.uniform(0, seconds / 20))
        else:
            process.join(rng.uniform(0, seconds) if len(seen) < kills else 600)
        if process.is_alive():
            process.kill()
            process.join()
            seen.append(progress(path))
            continue
        assert process.exitcode == 0, f"after {len(seen)} kills it ended with {process.exitcode}"
        check(path)
        ended += 1
    return seen
