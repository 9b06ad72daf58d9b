"""Which singular vectors of a tuned checkpoint the pre-trained one did not have, layer by layer."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from rmtjax._errors import InputError
from rmtjax._machine import cores
from rmtjax._progress import Report, Reporter
from rmtjax.intruders.clusters import close_values, cosine_range
from rmtjax.intruders.pairs import ZERO, ZERO_AFTER, Pair, Pairs, Skipped, largest
from rmtjax.intruders.predict import Prediction, bulk_edge, check_question, predict
from rmtjax.linalg.krylov import (
    OUT_OF_CACHE_ENTRIES,
    LowRankUpdated,
    Matrix,
    Ritz,
    full_width,
    largest_cosines,
    top_singular,
)
from rmtjax.linalg.svd import one_blas_thread, svdvals
from rmtjax.spectra.bulk_fit import BulkFit, bulk_fit
from rmtjax.spectra.ranks import effective_rank, stable_rank

__all__ = ["LayerScan", "Scan", "Update", "gram_values", "scan", "scan_layer"]

_DENSE = 1024
"""Smaller side up to which the Gram matrix of an update is one of double precision."""
_VALUES = 512
"""Smaller side up to which all singular values of a base are computed; above it a quadrature stands for them."""
_ASTRAY = 0.2
"""Angle that a vector may be off by, where singular values all but coincide; the bounds on its cosines allow for it."""
_FULL = 400
"""Smaller side up to which a processor has all eigenvectors of a Gram matrix sooner than a Krylov space."""
_BACKWARD = 1e-6
"""Error of a decomposition in single precision, of its largest value: what `--exact` leaves open, too."""
_SMALL = 1 << 20
"""Entries of a matrix up to which BLAS's threads bring less than a matrix for each core."""


class Update(NamedTuple):
    """What was added to a matrix.

    Attributes:
        strengths: its largest singular values, descending; all that do not vanish if it is a product BA.
        frobenius: its Frobenius norm.
        effective_rank: exp of the entropy of the normalised singular values (Roy & Vetterli 2007).
        stable_rank: squared Frobenius norm over squared largest singular value.
    """

    strengths: np.ndarray
    frobenius: float
    effective_rank: float
    stable_rank: float


@dataclasses.dataclass(frozen=True)
class LayerScan:
    """One weight matrix before and after.

    Attributes:
        name: of the weight.
        shape: (outputs n, inputs m).
        values: the k largest singular values after tuning.
        cosines: of each of their left vectors, the largest absolute one with any left singular vector of before.
        lower, upper: bounds on the cosines; an intruder's upper one is below the threshold, a known one's lower one is not.
        verdicts: "intruder" or "known"; "null" of a matrix whose rank is smaller, where there is no singular vector;
            "undecidable" where singular values coincide up to rounding, so that the vectors are not defined, and the verdict
            depends on which are taken (`rmtjax.intruders.clusters`).
        method: "bounds" or, for a small matrix, "eigh"; where they did not decide or were not asked, "svd".
        similarity: absolute cosines of the k leading vectors of after (rows) and before (columns).
        base_values: the k largest singular values of before.
        update: what was added.
        bulk: fit of the random part of the base.
        prediction: what an update of these strengths does to a matrix of this spectrum.
        vectors: the k leading left singular vectors of after, as columns (n, k).
        seconds: that it took.
    """

    name: str
    shape: tuple[int, int]
    values: np.ndarray
    cosines: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    verdicts: tuple[str, ...]
    method: str
    similarity: np.ndarray
    base_values: np.ndarray
    update: Update
    bulk: BulkFit
    prediction: Prediction
    vectors: np.ndarray
    seconds: float

    def scaled(self, by: float) -> LayerScan:
        """What it would be of a layer that is so much larger."""
        update, bulk, prediction = self.update, self.bulk, self.prediction
        return dataclasses.replace(
            self,
            values=by * self.values.astype(float),
            base_values=by * self.base_values,
            update=update._replace(strengths=by * update.strengths, frobenius=by * update.frobenius),
            bulk=bulk._replace(
                sigma=by * bulk.sigma, sigma_error=by * bulk.sigma_error, lower=by * bulk.lower, upper=by * bulk.upper,
                threshold=by * bulk.threshold,
            ),
            prediction=prediction._replace(threshold=by * prediction.threshold, outliers=by * prediction.outliers),
        )  # fmt: skip

    @property
    def intruders(self) -> int:
        """How many of the k are."""
        return self.verdicts.count("intruder")

    @property
    def open(self) -> bool:
        """Whether all verdicts are undecidable, so that there is no count to expect."""
        return set(self.verdicts) == {"undecidable"}

    @property
    def predicted(self) -> float:
        """How many were to be expected; NaN if that is not known (`Prediction.intruders`)."""
        return self.prediction.intruders

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "intruders": self.intruders,
            "which": [i for i, verdict in enumerate(self.verdicts) if verdict == "intruder"],
            "cosines": self.cosines,
            "lower": self.lower,
            "upper": self.upper,
            "verdicts": list(self.verdicts),
            "method": self.method,
            "singular_values": self.values,
            "base_singular_values": self.base_values,
            "similarity": self.similarity,
            "update": self.update._asdict(),
            "bulk": {"sigma": self.bulk.sigma, "edge": self.bulk.upper, "spikes": self.bulk.count},
            "predicted": self.prediction._asdict(),
            "seconds": self.seconds,
        }


@dataclasses.dataclass(frozen=True)
class Scan:
    """All layers of a checkpoint.

    Attributes:
        layers: those that were compared.
        skipped: tensors that were not, and why.
        remarks: what makes one doubt that base and tuned belong together.
        incomplete: names of updates and layers that should have been compared and could not be; `skipped` says why.
        settings: base, tuned, top, threshold, exact.
        seconds: from beginning to end, reading included.
    """

    layers: tuple[LayerScan, ...]
    skipped: tuple[Skipped, ...]
    remarks: tuple[str, ...]
    incomplete: tuple[str, ...]
    settings: dict[str, Any]
    seconds: float

    @property
    def intruders(self) -> int:
        """In all layers."""
        return sum(layer.intruders for layer in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """Plain values: `layers`, `total`, `skipped`, and how it was made."""
        total = {
            "layers": len(self.layers),
            "intruders": self.intruders,
            "vectors": sum(len(layer.verdicts) for layer in self.layers),
            "predicted": sum(layer.predicted for layer in self.layers if not layer.open),
            "undecidable": sum(layer.verdicts.count("undecidable") for layer in self.layers),
            "skipped": len(self.skipped),
        }
        layers = [layer.as_dict() for layer in self.layers]
        skipped = [skip._asdict() for skip in self.skipped]
        left_out = {"skipped": skipped, "remarks": list(self.remarks), "incomplete": list(self.incomplete)}
        return {"layers": layers, "total": total, **left_out, **self.settings, "seconds": self.seconds}


# -- spectra -------------------------------------------------------------------------------------------------------------


def gram_values(matrix: Matrix, dtype: type = np.float32) -> np.ndarray:
    """All singular values, descending, by the Gram matrix: below the root of the dtype's precision they are rounding.

    That is enough for a bulk and its spikes; the ranks of an update want more.
    """
    if isinstance(matrix, jax.Array):
        with jax.enable_x64(True):
            return np.asarray(svdvals(matrix.astype(dtype), algorithm="gram")).astype(float)
    side = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T).astype(dtype, copy=False)
    gram = side @ side.T
    del matrix, side
    if (
        len(gram) <= _DENSE
    ):  # NumPy's and SciPy's BLAS each have threads, which wait for work on the cores that others need
        values = np.linalg.eigvalsh(gram)
    else:  # in place
        values = scipy.linalg.eigvalsh(gram.T, overwrite_a=True, check_finite=False, driver="evd")
    return np.sqrt(np.maximum(values[::-1], 0)).astype(float)


def _stand_in(ritz: Ritz, columns: np.ndarray, matrix: Matrix, noise: float = 1e-3) -> np.ndarray:
    """min(n, m) numbers distributed as the singular values, from the measures of random columns of a Krylov space.

    The space is that of the shorter side. The largest Ritz values that have converged are themselves; the others follow the
    distribution function that the Gauss quadrature of the columns, averaged, gives; together they have the matrix's energy.
    """
    count = min(matrix.shape)
    theta, weight = np.maximum(ritz.values, 0), (ritz.first[columns] ** 2).mean(0)
    weight = weight / weight.sum()
    settled = 0
    while settled < min(len(theta) // 2, count) and ritz.residuals[-1 - settled] < noise * theta[-1 - settled]:
        settled += 1
    body = slice(0, len(theta) - settled)
    level = (np.cumsum(weight[body]) - weight[body] / 2) / weight[body].sum()
    level, theta_body = np.append(0, level), np.append(max(1.5 * theta[0] - theta[1] / 2, 0), theta[body])
    wanted = (np.arange(count - settled) + 0.5) / (count - settled)
    rest = np.interp(wanted, level, theta_body)[::-1]
    known = theta[len(theta) - settled :][::-1]
    on_host = isinstance(matrix, np.ndarray)
    energy = sum(float(row @ row) for row in matrix) if on_host else float(jnp.sum(matrix * matrix))
    rest *= max(energy - known.sum(), 0) / max(rest.sum(), np.finfo(float).tiny)
    return np.sqrt(np.concatenate([known, np.minimum(rest, known[-1] if settled else np.inf)]))


def _ranks(values: np.ndarray, keep: int | None = None) -> Update:
    frobenius = float(np.sqrt(np.sum(values**2)))
    if frobenius == 0:
        return Update(values[:0], 0.0, 0.0, 0.0)
    real = values[values > values[0] * (1e-6 if values.size <= _DENSE else 1e-3)]
    return Update(
        real if keep is None else real[:keep], frobenius, float(effective_rank(real)), float(stable_rank(values))
    )


def _update_of(pair: Pair, top: int) -> Update:
    if pair.factors is not None:
        left, right = pair.factors
        return _ranks(np.linalg.svd(np.linalg.qr(left)[1] @ np.linalg.qr(right.T)[1].T, compute_uv=False))
    # In double precision as far as memory allows.
    return _ranks(
        gram_values(pair.update(), np.float64 if min(pair.shape) <= _DENSE else np.float32), keep=max(top, 16)
    )


# -- one layer -----------------------------------------------------------------------------------------------------------


def _gap(pair: Pair, largest_value: float, precision: float = float(np.finfo(np.float32).eps)) -> float:
    """Return the distance of singular values below which their vectors are one space.

    The error of a decomposition in this precision moves vectors between them, and so does the rounding of what was stored.
    """
    stored = 0.0
    if pair.rounding > precision:
        stored = pair.rounding * float(np.linalg.norm(np.asarray(pair.base))) / math.sqrt(math.prod(pair.shape))
    return max(4 * precision * largest_value, stored)


def _decomposed(matrix: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return left singular vectors and singular values.

    Raises:
        np.linalg.LinAlgError: if neither of LAPACK's two algorithms converges.
    """
    if isinstance(matrix, np.ndarray):
        try:
            return np.linalg.svd(matrix, full_matrices=False)[:2]
        except np.linalg.LinAlgError:
            return scipy.linalg.svd(matrix, full_matrices=False, lapack_driver="gesvd")[:2]
    u, s, _ = jnp.linalg.svd(matrix, full_matrices=False)
    return np.asarray(u), np.asarray(s)


def _exact(pair: Pair, top: int, threshold: float, dtype: type = np.float32):
    """Everything from two singular value decompositions; in double precision where single leaves a verdict open."""
    base, tuned = pair.base, pair.tuned.dense()
    if dtype is np.float64:
        base, tuned = (np.asarray(x).astype(dtype) for x in (base, tuned))
    (u, s), (tuned_u, tuned_s) = _decomposed(base), _decomposed(tuned)
    precision = float(np.finfo(dtype).eps)
    real = s > s[0] * max(pair.shape) * np.finfo(np.float32).eps  # the null space has no vectors of its own
    groups = close_values(s[real], _gap(pair, float(s[0]), precision))
    tuned_groups = close_values(tuned_s, _gap(pair, float(tuned_s[0]), precision))
    tuned_groups = [group for group in tuned_groups if group.start < top]
    signed = u.T @ tuned_u[:, : tuned_groups[-1].stop]
    lower, upper = (bound[:top] for bound in cosine_range(signed[real], groups, tuned_groups))
    if dtype is np.float32 and not _decided(lower, upper, threshold):
        return _exact(pair, top, threshold, np.float64)
    every = np.abs(signed[:, :top])
    cosines = every[real].max(0, initial=0)
    # A copy, since a view would keep all the vectors of every layer.
    vectors = tuned_u[:, :top].astype(np.float32)
    lower, upper = np.minimum(lower, cosines), np.maximum(upper, cosines)
    return tuned_s[:top], cosines, lower, upper, every[:top].T.copy(), s.astype(float), vectors


def _decided(lower: np.ndarray, upper: np.ndarray, threshold: float) -> bool:
    return bool(((lower >= threshold) | (upper < threshold)).all())


def _by_eigh(pair: Pair, top: int, threshold: float):
    """The same from the eigenvectors of the Gram matrices of the shorter side; None if they leave a verdict open.

    What these and an SVD in single precision find are eigenvectors of matrices that differ by ρ = 3·10⁻⁶ λ₁ at most: vector j of
    one holds a share ρ/|λᵢ − λⱼ| of each other vector i of the other, and any mixture of those that are closer than that. Of what
    belongs to eigenvalues below ρ nobody knows whether it is a singular vector or the null space.
    """
    n, m = pair.shape
    k = min(n, m)

    def gram(matrix):
        short = matrix.T if n > m else matrix
        return short @ short.T

    with one_blas_thread():  # more of them only wait for one another
        squares, inside = np.linalg.eigh(gram(pair.base))  # other layers go on beside it; SciPy would keep them from it
        tuned = pair.tuned.dense()
        tuned_squares, vectors = scipy.linalg.eigh(
            gram(tuned).T,
            driver="evr",
            subset_by_index=[max(k - top - 1, 0), k - 1],
            overwrite_a=True,
            check_finite=False,
        )
    if len(tuned_squares) < min(top + 1, k):  # `evr` may return fewer than it was asked for where eigenvalues coincide
        return None
    squares, inside = np.maximum(squares[::-1].astype(float), 0), inside[:, ::-1]
    tuned_squares, vectors = np.maximum(tuned_squares[::-1].astype(float), 0), vectors[:, ::-1][:, :top]
    noise, tuned_noise = 3 * _BACKWARD * squares[0], 3 * _BACKWARD * tuned_squares[0]
    known = squares > 2 * noise
    if known.sum() < top or tuned_squares[top - 1] <= 2 * tuned_noise:
        return None
    s, t = np.sqrt(squares), np.sqrt(tuned_squares[:top])
    gap = _gap(pair, float(s[0]))
    if (-np.diff(np.sqrt(tuned_squares)) <= gap).any():
        return None
    # By how much of each other vector one may be off; those that were not computed are farther than the last that was.
    apart = np.abs(tuned_squares[:top, None] - tuned_squares)
    np.fill_diagonal(apart, np.inf)
    weight = np.sqrt(tuned_squares / tuned_squares[:top, None]) if n > m else 1  # images of long vectors are longer
    errors = np.minimum(tuned_noise * (weight / np.maximum(apart, np.finfo(float).tiny)).max(1, initial=0), 1)
    if errors.max() > _ASTRAY:
        return None
    if n > m:  # left vectors are the images of these
        vectors = tuned @ vectors / t.astype(tuned.dtype)
        held = np.abs(inside.T @ (pair.base.T @ vectors)).astype(float)
        scale, least, most = s, np.sqrt(np.maximum(squares - noise, 0)), np.sqrt(squares + noise)
    else:
        held = np.abs(inside.T @ vectors).astype(float)
        scale = least = most = np.ones(k)
    every = np.minimum(held / np.maximum(scale, s[0] * _BACKWARD)[:, None], 1)
    distance = np.abs(squares[known][:, None] - squares)
    near = distance <= 8 * noise
    upper = (np.sqrt(near @ held**2) + np.where(near, 0, noise / np.where(near, 1, distance)) @ held) / least[known][
        :, None
    ]
    rest = np.sqrt(np.maximum(1 - np.sum(every[known] ** 2, 0), 0) if n > m else np.sum(held[~known] ** 2, 0))
    upper = np.maximum(upper.max(0), rest if not known.all() else 0)
    distance[np.arange(known.sum()), np.flatnonzero(known)] = np.inf
    sine = np.minimum(noise / np.maximum(distance.min(1), np.finfo(float).tiny), 1)[:, None]
    others = np.sqrt(np.maximum(np.sum(held**2, 0) - held[known] ** 2, 0))
    lower = ((held[known] * np.sqrt(1 - sine**2) - others * sine) / most[known][:, None]).max(0)
    lower, upper = np.maximum(lower - errors, 0), np.minimum(upper + errors, 1)
    spaces = [group for group in close_values(s, gap) if group.stop - group.start > 1]
    if any((np.linalg.norm(every[space], axis=0) >= threshold).any() for space in spaces):
        return None
    if not _decided(lower, upper, threshold):
        return None
    return t, np.clip(every[known].max(0), lower, upper), lower, upper, every[:top].T.copy(), s, vectors


def _bounded(pair: Pair, top: int, threshold: float):
    """The same from Krylov spaces; None if they leave a verdict open."""
    n, m = pair.shape
    tuned = top_singular(pair.tuned, top)
    if tuned.errors.max() > _ASTRAY or (-np.diff(tuned.values) <= _gap(pair, float(tuned.values[0]))).any():
        return None
    dense = min(n, m) <= _VALUES
    beside = 1 if dense else 4 if n * m < OUT_OF_CACHE_ENTRIES else full_width(top + 4) - top
    found = largest_cosines(
        LowRankUpdated(pair.base), tuned.vectors, threshold=threshold, errors=tuned.errors, n_random=beside, n_leading=top,
        min_steps=max(8, tuned.steps - 4),  # the base's leading vectors take about as many
    )  # fmt: skip
    if not _decided(found.lower, found.upper, threshold):
        return None
    s = gram_values(pair.base) if dense else _stand_in(found.ritz, top + np.arange(beside), pair.base)
    estimate = np.clip(found.estimate, found.lower, found.upper)
    similarity = np.abs(found.cosines[:, : -top - 1 : -1])
    return tuned.values, estimate, found.lower, found.upper, similarity, s, np.asarray(tuned.vectors)


def scan_layer(pair: Pair, *, top: int = 10, threshold: float = 0.5, exact: bool = False) -> LayerScan:
    r"""Count the intruders of one layer: of its `top` leading left singular vectors after tuning, those whose absolute cosine
    with every left singular vector of before is below the threshold (Shuttleworth et al. 2024).

    An intruder's cosines are bounded from above by the Christoffel function of a block Lanczos process, which assumes nothing
    but that its products are exact to single precision; the others' from below by a Ritz vector that has converged among the
    leading ones, all of which the process has seen (`rmtjax.linalg.krylov.cosine_lower_bounds`). Where that leaves a
    verdict open, as it does for vectors that are those of small singular values of before, the layer is done by two SVDs.
    Vectors of a null space, of before or after, are nobody's singular vectors and do not count. On a processor, small
    matrices are decomposed by way of their Gram matrices, which takes less time than either. SVDs do those, too, whose
    smaller side is below 8 (top + 2), where Krylov spaces have no room.

    Args:
        pair: the layer before and after.
        top: k, at most min(n, m).
        threshold: ε in (0, 1).
        exact: do the SVDs.

    Returns:
        `LayerScan`.

    Raises:
        InputError: for a threshold outside (0, 1), a `top` that the layer does not have, or numbers that are not finite.
    """
    check_question(top, threshold)
    if top > min(pair.shape):
        raise InputError(f"top = {top}: must be at most {min(pair.shape)}, the smaller side of {pair.name}")
    parts = (pair.base, pair.tuned.weight, pair.tuned.scale, pair.tuned.left, pair.tuned.right)
    for part in parts[1:] if pair.tuned.weight is pair.base else parts:
        if part is not None and not math.isfinite(largest(part)):
            raise InputError(f"{pair.name}: holds NaN or infinite numbers")
    began = time.perf_counter()
    pair, unit = pair.plain()
    n, m = pair.shape
    update = _update_of(pair, top)
    found, method = None, "svd"
    if not exact and min(n, m) <= _FULL and isinstance(pair.base, np.ndarray):
        found, method = _by_eigh(pair, top, threshold), "eigh"
    elif not exact and min(n, m) >= 8 * (top + 2):
        found, method = _bounded(pair, top, threshold), "bounds"
    if found is None:
        found, method = _exact(pair, top, threshold), "svd"
    values, cosines, lower, upper, similarity, s, vectors = found
    null = values <= values[0] * max(n, m) * np.finfo(np.float32).eps
    sure = np.where(upper < threshold, "intruder", np.where(lower >= threshold, "known", "undecidable"))
    verdicts = tuple(np.where(null, "null", sure).tolist())
    bulk = bulk_fit(s, n, m)
    prediction = predict(update.strengths, s, (n, m), bulk_edge(s, bulk), threshold, top=top)
    found = LayerScan(
        pair.name, (n, m), values, cosines, lower, upper, verdicts, method, similarity, s[:top], update, bulk, prediction,
        vectors, time.perf_counter() - began,
    )  # fmt: skip
    return found if unit == 1 else found.scaled(unit)


# -- a checkpoint --------------------------------------------------------------------------------------------------------


def scan(
    base: str | os.PathLike | None,
    tuned: str | os.PathLike,
    *,
    top: int = 10,
    threshold: float = 0.5,
    layers: str | None = None,
    exact: bool = False,
    progress: Report = None,
) -> Scan:
    """Find the intruders in every weight matrix of a checkpoint. See `scan_layer`.

    Args:
        base: safetensors file, folder or hub id; None for the packaged all-MiniLM-L6-v2.
        tuned: the same, or a folder of a PEFT adapter or of a run of `rmtjax finetune`.
        top: k, how many leading vectors are looked at.
        threshold: ε, the cosine below which a vector is an intruder.
        layers: regular expression that names must contain.
        exact: two SVDs a layer.
        progress: True draws a bar on standard error, None (the default) on a terminal only; or a function of a `Progress`.

    Returns:
        `Scan`, its layers in the order of their names.

    Raises:
        InputError: for files that cannot be compared, a threshold outside (0, 1), or a `top` that no layer has.
    """
    check_question(top, threshold)
    began = time.perf_counter()
    pairs = Pairs(base, tuned, layers)
    skipped = list(pairs.skipped)
    short = [name for name in pairs.names if min(pairs.shape(name)) < top]
    if len(short) == len(pairs.names):
        most = max(min(pairs.shape(name)) for name in short)
        raise InputError(f"top = {top}: must be at most {most}, the smaller side of the largest layer")
    skipped += [Skipped(name, f"smaller than top = {top}") for name in short]
    names = [name for name in pairs.names if name not in set(short)]

    accelerated = jax.default_backend() != "cpu"

    def one(name: str) -> LayerScan | Skipped:
        pair = pairs.read(name)
        if isinstance(pair, Skipped):
            return pair
        pair = pair.on_device() if accelerated else pair
        try:
            return scan_layer(pair, top=top, threshold=threshold, exact=exact)
        except np.linalg.LinAlgError as error:
            return Skipped(name, f"not decomposed by LAPACK ({error})")

    done: list[LayerScan | Skipped] = []

    def note(result):
        done.append(result)
        reporter.show(len(done), len(names), result.name)

    small = [name for name in names if math.prod(pairs.shape(name)) <= _SMALL]
    with Reporter(len(names), "layers", progress, unit="layers") as reporter:
        if len(small) > 1:
            with one_blas_thread(), ThreadPoolExecutor(cores()) as pool:
                for result in pool.map(one, small):
                    note(result)
        for name in names if len(small) < 2 else [name for name in names if name not in set(small)]:
            note(one(name))
    order = {name: i for i, name in enumerate(names)}
    found = sorted((r for r in done if isinstance(r, LayerScan)), key=lambda r: order[r.name])
    skipped += [r for r in done if isinstance(r, Skipped)]
    if not found:
        raise InputError(f"tuned = {tuned}: nothing to scan, {skipped[-1].name} is {skipped[-1].reason}")
    # A layer of the adapter is named as the adapter has it, a matrix that could not be read as the base has it.
    unread = [r.name for r in done if isinstance(r, Skipped) and r.reason not in (ZERO, ZERO_AFTER)]
    incomplete = tuple(dict.fromkeys([*pairs.incomplete, *unread]))
    base = "minilm" if base is None else str(base)
    settings = {"base": base, "tuned": str(tuned), "top": top, "threshold": threshold, "exact": exact}
    return Scan(tuple(found), tuple(skipped), tuple(pairs.remarks), incomplete, settings, time.perf_counter() - began)
