"""The transfer engine against its targets and its peers: `python -m benchmarks.transfer [--quick]`.

- the compressed sweep of `alpha-ftc` at p = 10⁹ and at p = 10³, after compilation;
- χ draws: ours, `jax.random.gamma`, `numpy.random.Generator.chisquare`;
- one dense trial at p = 1000, n = 500, N = 2000: ours, and the best NumPy we could write, both on all cores;
- memory and compile time of 10⁶ compressed trials, in a process of its own; start-up of `rmtjax --help`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from threadpoolctl import threadpool_limits

from benchmarks._common import alternate, ratio, save
from rmtjax._machine import cores
from rmtjax.claims.alpha_lora.classifier import alpha_ftc
from rmtjax.ensembles.chi import chi
from rmtjax.montecarlo import grid, run

FIXED = dict(beta=0.8, mu=1.0, mu_perp=0.6, gamma=1.0, gamma_source=1.0)
ALPHA = np.linspace(-3, 6, 41)


def sweep(p, trials, sampler="compressed", **settings):
    """Run the sweep of the targets."""
    return run(alpha_ftc, grid(p=p, n=p / 2, N=2 * p, **FIXED, alpha=ALPHA), trials=trials, sampler=sampler, **settings)


# --- the peer: the same statistic in NumPy and SciPy -------------------------------------------------------------------


class Numpy:
    """One dense trial: w̃, w and γQw̃ by one Cholesky factorisation a side, and from them every α."""

    def __init__(self, p, n, N, threads):
        self.p, self.n, self.N, self.threads = p, n, N, threads
        self.generators = [np.random.Generator(np.random.SFC64(i)) for i in range(threads)]
        self.pool = ThreadPoolExecutor(threads)
        self.mean = np.full(p, p**-0.5)
        across = np.where(np.arange(p) < p // 2, p**-0.5, -(p**-0.5))
        self.target = FIXED["beta"] * self.mean + FIXED["mu_perp"] * across
        self.buffers = [(np.empty((p, N)), np.empty((p, n))) for _ in range(threads)]

    def noise(self, out):
        """Fill a matrix with normals, one band of rows per thread."""
        bands = zip(self.generators, np.array_split(out, self.threads), strict=True)
        list(self.pool.map(lambda job: job[0].standard_normal(out=job[1]), bands))

    def statistic(self, source, target):
        """Return the accuracy at every α from two noise matrices, which are overwritten."""
        p, n, N = self.p, self.n, self.N
        source += self.mean[:, None]
        system = scipy.linalg.blas.dsyrk(1 / N, source.T, trans=1, lower=1)
        system.flat[:: p + 1] += FIXED["gamma_source"]
        w_source = scipy.linalg.lapack.dposv(system, source.sum(1) / N, lower=1, overwrite_a=1)[1]
        target += self.target[:, None]
        system = scipy.linalg.blas.dsyrk(1 / n, target.T, lower=1)
        system.flat[:: n + 1] += FIXED["gamma"]
        rhs = np.stack([target.sum(1) / n, FIXED["gamma"] * w_source], 1)
        inner = scipy.linalg.lapack.dposv(system, target.T @ rhs, lower=1, overwrite_a=1)[1]
        w, u = ((rhs - target @ inner / n) / FIXED["gamma"]).T
        m = w @ self.target + ALPHA * (u @ self.target)
        v = w @ w + 2 * ALPHA * (w @ u) + ALPHA**2 * (u @ u)
        return scipy.special.ndtr(m / np.sqrt(v))

    def threads_inside(self, trials):
        """Run trials with all cores on each one: normals by bands, BLAS with its own threads."""
        source, target = self.buffers[0]
        out = []
        for _ in range(trials):
            self.noise(source)
            self.noise(target)
            out.append(self.statistic(source, target))
        return np.mean(out, 0)

    def threads_outside(self, trials):
        """Run one trial per core: NumPy and BLAS release the interpreter's lock."""

        def share(worker):
            generator, (source, target) = self.generators[worker], self.buffers[worker]
            out = []
            for _ in range(worker, trials, self.threads):
                generator.standard_normal(out=source)
                generator.standard_normal(out=target)
                out.append(self.statistic(source, target))
            return np.sum(out, 0)

        with threadpool_limits(1):
            return sum(self.pool.map(share, range(self.threads))) / trials


# --- the parts ---------------------------------------------------------------------------------------------------------


def compressed(repeats):
    """Measure time and cost ratio of the compressed sweep, and the bias at p = 10⁹."""
    times = alternate(repeats, p_1e9=lambda: sweep(1e9, 10_000), p_1e3=lambda: sweep(1e3, 10_000))
    result = sweep(1e9, 10_000)
    one = next(iter(alternate(3, once=lambda: sweep(1e9, 1_000_000)).values()))
    return {
        **times,
        "p_1e3_over_p_1e9": ratio(times["p_1e3"], times["p_1e9"]),
        "largest_bias_p_1e9": float(np.abs(result["mean"] - result["law"]).max()),
        "largest_z_p_1e9": float(np.abs(result["z"]).max()),
        "trials_per_s": 1e6 / one["median_s"],
    }


def draws(repeats, count=1_000_000):
    """Measure a million χ draws with 500 degrees of freedom."""
    keys = jax.random.split(jax.random.key(0), count // 10)
    with jax.enable_x64(True):
        dof = jnp.full(10, 500.0)
        ours = jax.jit(jax.vmap(lambda key: chi(key, dof)))
        theirs = jax.jit(lambda key: jnp.sqrt(2 * jax.random.gamma(key, 250.0, (count,), jnp.float64)))
        rng = np.random.default_rng(0)
        times = alternate(
            repeats,
            rmtjax=lambda: ours(keys).block_until_ready(),
            jax_random_gamma=lambda: theirs(keys[0]).block_until_ready(),
            numpy=lambda: np.sqrt(rng.chisquare(500, count)),
        )
    return {
        **times,
        "over_jax_random_gamma": ratio(times["jax_random_gamma"], times["rmtjax"]),
        "over_numpy": ratio(times["numpy"], times["rmtjax"]),
    }


def dense(repeats, trials=32):
    """Measure the seconds of a dense trial, ours and NumPy's, and the savings by compression."""
    peer = Numpy(1000, 500, 2000, cores())
    times = alternate(
        repeats,
        rmtjax=lambda: sweep(1000, trials, "dense"),
        numpy_threads_inside=lambda: peer.threads_inside(trials),
        numpy_threads_outside=lambda: peer.threads_outside(trials),
    )
    many = next(iter(alternate(3, compressed=lambda: sweep(1000, 1_000_000)).values()))
    best = min((times[k] for k in times if k.startswith("numpy")), key=lambda t: t["median_s"])
    law = sweep(1000, 2)["law"].values.ravel()
    return {
        **{name: {**t, "s_per_trial": t["median_s"] / trials} for name, t in times.items()},
        "trials": trials,
        "numpy_over_rmtjax": ratio(best, times["rmtjax"]),
        "dense_over_compressed_per_trial": times["rmtjax"]["median_s"] / trials / (many["median_s"] / 1e6),
        "numpy_over_compressed_per_trial": best["median_s"] / trials / (many["median_s"] / 1e6),
        "numpy_distance_to_law": float(np.abs(peer.threads_outside(trials) - law).max()),
    }


def large():
    """Run in a process of its own: 10⁶ trials from a cold start."""
    began = time.perf_counter()
    result = sweep(1e9, 1_000_000)
    print(
        json.dumps(
            {
                "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
                "compile_s": result.attrs["compile_s"],
                "wall_s": time.perf_counter() - began,
            }
        )
    )


def start_up(repeats):
    """Measure the seconds until `rmtjax --help` has answered."""
    command = [sys.executable, "-m", "rmtjax.cli", "--help"]
    return next(iter(alternate(repeats, help=lambda: subprocess.run(command, stdout=subprocess.DEVNULL)).values()))


def main(argv: list[str] | None = None) -> None:
    """Run all parts and save what they measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats and no file, to see that it works")
    parser.add_argument("--part", choices=["large"], help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if chosen.part == "large":
        large()
        return
    repeats = 1 if chosen.quick else 5
    own = subprocess.run([sys.executable, __file__, "--part", "large"], capture_output=True, text=True, check=True)
    content = {"large": json.loads(own.stdout.splitlines()[-1]), "help": start_up(repeats)}
    for part in (compressed, draws, dense):
        content[part.__name__] = part(repeats)
        print(part.__name__, {k: v for k, v in content[part.__name__].items() if not isinstance(v, dict)}, flush=True)
    print(json.dumps({k: content[k] for k in ("large",)}))
    if not chosen.quick:
        print(save("transfer", content))


if __name__ == "__main__":
    main()
