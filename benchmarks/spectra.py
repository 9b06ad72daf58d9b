"""Spiked and edge samplers, spectral densities and eigenvalues against their targets and their peers.

`python -m benchmarks.spectra [--quick] [--scikit-rmt PYTHON]`, PYTHON that of an environment with scikit-rmt 2.1.1, which
needs NumPy 1 and so one of its own.

- the sweep of `bbp-wigner` at N = 10⁹ and at N = 10³, 19 strengths, after compilation;
- the largest GOE eigenvalue: 10,000 of them at N = 10⁹, their distance to Tracy and Widom's law, and the rate at N = 1000
  beside scikit-rmt's tridiagonal route and SciPy's LAPACK routine for one eigenvalue;
- a histogram of all eigenvalues of a tridiagonal matrix without computing them, N = 10⁶, beside scikit-rmt's;
- the cdf of Tracy and Widom's law, points a second;
- eigenvalues of batches of dense symmetric matrices beside NumPy's, SciPy's and PyTorch's where it is installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from scipy import stats

from benchmarks._common import alternate, ratio, save
from rmtjax.claims.intruder_dimensions.spikes import bbp_wigner
from rmtjax.ensembles.wigner import hermite
from rmtjax.laws.edge import tracy_widom
from rmtjax.linalg.sturm import histogram
from rmtjax.linalg.svd import eigvalsh
from rmtjax.montecarlo import Claim, Sampler, grid, run, size

THETA = np.linspace(1.2, 3, 19)

SCIKIT_RMT = """
import json, sys, time
import numpy as np
from skrmt.ensemble.gaussian_ensemble import GaussianEnsemble
from skrmt.ensemble.tridiagonal_utils import tridiag_eigval_hist
N, repeats, large, bins = map(int, sys.argv[1:])
def timed(work, repeats):
    out = []
    for i in range(repeats + 1):
        began = time.perf_counter()
        work()
        if i: out.append(time.perf_counter() - began)
    return out
sample = lambda: GaussianEnsemble(beta=1, n=N, tridiagonal_form=True).eigvals().max()
matrix = GaussianEnsemble(beta=1, n=large, tridiagonal_form=True).matrix
count = lambda: tridiag_eigval_hist(matrix, interval=(-2 * large**0.5, 2 * large**0.5), bins=bins)
print(json.dumps({"sample_s": timed(sample, repeats), "histogram_s": timed(count, 3)}))
"""


def _scaled(key, N):
    from rmtjax.ensembles.outlier import wigner_edge

    return N ** (2 / 3) * (wigner_edge(key, N) - 2)


edge = Claim(
    name="edge",
    equation=r"N^{2/3}(\lambda_{max} - 2)",
    source="benchmark",
    params=dict(N=size()),
    law=lambda N: tracy_widom.mean(1) + 0 * N,
    samplers=dict(
        compressed=Sampler(_scaled, static=("N",), block=256, width=lambda N: max(8, int(2**20 / N ** (1 / 3) / 16)))
    ),
    grid=dict(N=1000),
)


def spiked(repeats, scikit_rmt):
    """Measure the sweep of the targets, at two sizes."""
    cells = {f"N_1e{k}": grid(N=10.0**k, theta=THETA) for k in (9, 3)}
    times = alternate(repeats, **{k: lambda c=c: run(bbp_wigner, c, trials=10_000) for k, c in cells.items()})
    result = run(bbp_wigner, cells["N_1e9"], trials=10_000)
    return {
        **times,
        "N_1e9_over_N_1e3": ratio(times["N_1e9"], times["N_1e3"]),
        "largest_z": float(np.abs(result["z"]).max()),
        "largest_bias": float(np.abs(result["mean"] - result["law"]).max()),
        "trials_per_s": 19 * 10_000 / times["N_1e9"]["median_s"],
    }


def edges(repeats, scikit_rmt):
    """Measure largest eigenvalues: time and fit at N = 10⁹, rate at N = 1000."""
    drawn = lambda: run(edge, grid(N=1e9), trials=10_000, keep_samples=True)  # noqa: E731
    times = alternate(min(repeats, 3), N_1e9=drawn)
    samples = drawn()["samples"].values.ravel()

    def lapack(count=20):
        rng = np.random.default_rng(0)
        for _ in range(count):
            off = np.sqrt(rng.chisquare(np.arange(999, 0, -1)))
            scipy.linalg.eigvalsh_tridiagonal(rng.normal(0, 2**0.5, 1000), off, select="i", select_range=(999, 999))

    small = alternate(repeats, rmtjax=lambda: run(edge, grid(N=1000), trials=50_000), scipy=lapack)
    ours = small["rmtjax"]["median_s"] / 50_000
    found = {
        **times,
        "ks_p": float(stats.kstest(samples, lambda x: np.asarray(tracy_widom.cdf(x, 1))).pvalue),
        "N_1000": small,
        "N_1000_s_per_sample": ours,
        "scipy_over_rmtjax_N_1000": small["scipy"]["median_s"] / 20 / ours,
    }
    if scikit_rmt:
        found["scikit_rmt_s_per_sample"] = float(np.median(scikit_rmt["sample_s"]))
        found["scikit_rmt_over_rmtjax_N_1000"] = found["scikit_rmt_s_per_sample"] / ours
    return found


def densities(repeats, scikit_rmt, N=1_000_000, bins=100):
    """Measure a histogram of eigenvalues by counting pivots."""
    with jax.enable_x64(True):
        matrix = hermite(jax.random.key(0), N)
        at = jnp.linspace(-2, 2, bins + 1)
        times = alternate(min(repeats, 3), rmtjax=lambda: jax.block_until_ready(histogram(*matrix, at)))
    each = times["rmtjax"]["median_s"] / (N * bins)
    found = {**times, "ns_per_entry_and_bin": 1e9 * each}
    if scikit_rmt:
        theirs = float(np.median(scikit_rmt["histogram_s"])) / (scikit_rmt["large"] * bins)
        found |= {"scikit_rmt_ns_per_entry_and_bin": 1e9 * theirs, "scikit_rmt_over_rmtjax": theirs / each}
    return found


def tracy_widom_cdf(repeats, scikit_rmt, count=1_000_000):
    """Measure points a second of the Tracy–Widom distribution function."""
    x = np.random.default_rng(0).uniform(-8, 6, count)
    times = alternate(repeats, rmtjax=lambda: jax.block_until_ready(tracy_widom.cdf(x, 1)))
    return {**times, "points_per_s": count / times["rmtjax"]["median_s"]}


def dense(repeats, scikit_rmt):
    """Measure eigenvalues of batches, ours against the fastest peer."""
    try:
        import torch
    except ImportError:
        torch = None
    found = {}
    for batch, n in ((64, 128), (16, 512), (1, 2048)):
        a = np.random.default_rng(0).standard_normal((batch, n, n))
        a = a + a.transpose(0, 2, 1)
        with jax.enable_x64(True):
            ours, jitted = jnp.asarray(a), jax.jit(jnp.linalg.eigvalsh)
            others = {
                "jax_numpy": lambda a=ours, f=jitted: f(a).block_until_ready(),
                "numpy": lambda a=a: np.linalg.eigvalsh(a),
                "scipy_evd": lambda a=a: [scipy.linalg.eigvalsh(m, driver="evd", check_finite=False) for m in a],
                "scipy_evr": lambda a=a: [scipy.linalg.eigvalsh(m, driver="evr", check_finite=False) for m in a],
            }
            if torch is not None:
                tensor = torch.from_numpy(a)
                others["torch"] = lambda a=tensor: torch.linalg.eigvalsh(a)
            times = alternate(repeats, rmtjax=lambda a=ours: jax.block_until_ready(eigvalsh(a)), **others)
        best = min(others, key=lambda name: times[name]["median_s"])
        found[f"{batch}x{n}"] = {**times, "fastest_other": best, "over_rmtjax": ratio(times[best], times["rmtjax"])}
    return found


def main(argv: list[str] | None = None) -> None:
    """Run all parts and save what they measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats and no file, to see that it works")
    parser.add_argument("--scikit-rmt", metavar="PYTHON", help="interpreter of an environment with scikit-rmt")
    chosen = parser.parse_args(argv)
    repeats = 1 if chosen.quick else 5
    peer = None
    if chosen.scikit_rmt:
        command = [chosen.scikit_rmt, "-c", SCIKIT_RMT, "1000", str(4 * repeats), "10000", "100"]
        peer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        peer["large"] = 10_000
    content: dict = {"scikit_rmt": peer}
    for part in (spiked, edges, densities, tracy_widom_cdf, dense):
        content[part.__name__] = part(repeats, peer)
        shown = {k: v for k, v in content[part.__name__].items() if not isinstance(v, dict)}
        print(part.__name__, shown or {k: v["over_rmtjax"] for k, v in content[part.__name__].items()}, flush=True)
    if not chosen.quick:
        print(save("spectra", content))


if __name__ == "__main__":
    main()
