r"""Block Lanczos for :math:`AA^\top`: the largest singular triplets of a matrix, and how much of a vector any one singular
vector can hold, without an SVD.

Started from a block X of orthonormal columns, k steps give an orthonormal basis Q and the band matrix
:math:`T = Q^\top AA^\top Q` with :math:`AA^\top Q = QT + Q_{k+1}B E_k^\top`. What is known after that:

- A Ritz pair :math:`(\vartheta, y = Qs)` has the residual :math:`\rho = \|B s_k\|`; within ρ of ϑ there is an eigenvalue, and
  y is within :math:`\rho/\text{gap}` of its eigenvector.
- **No atom is larger than the Christoffel function allows.** A left singular vector u with :math:`\sigma^2 = x` has in the basis
  the coordinates :math:`z = -(T - x)^{-1}E_kB^\top q`, q being those in the next block. Since
  :math:`\|z\|^2 + \|q\|^2 \le 1`,

  .. math::
      \langle X_i, u\rangle^2 \le \big[A_1(I + A^\top A)^{-1}A_1^\top\big]_{ii}, \qquad A = -(T-x)^{-1}E_kB^\top,

  :math:`A_1` the rows of the first block. The largest value over all x bounds the squared cosine of :math:`X_i` with *every* left
  singular vector, seen or not. Rounding is one unknown more (`_christoffel`), which decides where x is below it.

A tall matrix (n > m) has a null space on the left, of which vectors may hold much, and no number of steps tells it from singular
vectors of vanishing σ. There the process runs on the right side, from :math:`A^\top X`, whose inner products with right singular
vectors are σ times the cosines; and that there is no singular value below some x at all is shown by a Cholesky factor of
:math:`A^\top A - x`.

Golub & Underwood, *The block Lanczos method for computing eigenvalues* (1977); Golub & Meurant, *Matrices, Moments and
Quadrature* (2010), for one vector and its measure. On processors the work is NumPy's, whose products need no compilation, so
that thousands of shapes cost nothing; arrays on an accelerator stay there.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmtjax._errors import InputError, shown
from rmtjax._random import fixed_normal

__all__ = [
    "FAR",
    "BlockLanczos",
    "Cosines",
    "Flipped",
    "Gram",
    "Matrix",
    "Operator",
    "Ritz",
    "TopSingular",
    "atom_bounds",
    "atom_floors",
    "full_width",
    "largest_cosines",
    "top_singular",
]

Matrix = np.ndarray | jax.Array
"""On processors NumPy's, on an accelerator JAX's."""
FAR = 1 << 22
"""Entries of a matrix that caches hold no longer."""
_PART = 512
"""Rows of such a matrix that are multiplied by from both sides while they are in one, so that it is read once."""
_NOISE = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-14}
"""Residual over the largest eigenvalue below which the products' own rounding hides the rest."""


def _far(weight: Matrix) -> bool:
    return isinstance(weight, np.ndarray) and weight.size >= FAR


def full_width(columns: int) -> int:
    """So many columns or up to 7 more, a multiple of 8: BLAS's kernels multiply a large matrix by these in the same time."""
    return -(-columns // 8) * 8


def _exactly(method: Any) -> Any:
    """Products on an accelerator in full single precision, which the default there is not."""

    @functools.wraps(method)
    def call(self, *arguments):
        with jax.default_matmul_precision("highest"):
            return method(self, *arguments)

    return call


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight", "scale", "left", "right"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Operator:
    r"""A matrix :math:`\mathrm{diag}(d)W + BA` that is multiplied and never formed.

    Attributes:
        weight: W, shape (n, m).
        scale: d, shape (n,); None for ones.
        left, right: B (n, r) and A (r, m); None for no update.
    """

    weight: Matrix
    scale: Matrix | None = None
    left: Matrix | None = None
    right: Matrix | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape

    @_exactly
    def __matmul__(self, x: Matrix) -> Matrix:
        """The product with x (m, k)."""
        y = self.weight @ x
        y = y if self.scale is None else self.scale[:, None] * y
        return y if self.left is None else y + self.left @ (self.right @ x)

    @_exactly
    def transposed(self, x: Matrix) -> Matrix:
        """The product of the transpose with x (n, k)."""
        y = self.weight.T @ (x if self.scale is None else self.scale[:, None] * x)
        return y if self.left is None else y + self.right.T @ (self.left.T @ x)

    def gram(self, x: Matrix) -> Matrix:
        """The product of the matrix times its transpose with x (n, k)."""
        return self @ self.transposed(x)

    def transposed_gram(self, x: Matrix) -> Matrix:
        """The product of the transpose times the matrix with x (m, k)."""
        if not _far(self.weight):
            return self.transposed(self @ x)
        low, inner = None if self.left is None else self.right @ x, 0.0
        y = np.zeros_like(x)
        for row in range(0, self.shape[0], _PART):
            part = slice(row, row + _PART)
            weight = self.weight[part]
            z = weight @ x
            z = z if self.scale is None else self.scale[part, None] * z
            if low is not None:
                z += self.left[part] @ low
                inner = inner + self.left[part].T @ z
            y += weight.T @ (z if self.scale is None else self.scale[part, None] * z)
        return y if low is None else y + self.right.T @ inner

    @_exactly
    def dense(self) -> Matrix:
        """The matrix itself."""
        w = self.weight if self.scale is None else self.scale[:, None] * self.weight
        return w if self.left is None else w + self.left @ self.right


class Gram:
    r"""A matrix known by :math:`AA^\top` alone, formed: worth it where A is long and its other side short.

    Args:
        gram: :math:`AA^\top`, shape (n, n).
    """

    def __init__(self, gram: Matrix) -> None:
        self.weight, self.shape = gram, gram.shape

    def gram(self, x: Matrix) -> Matrix:
        """The product with x (n, k)."""
        return self.weight @ x


class Flipped:
    """The transpose of an operator."""

    def __init__(self, operator: Operator) -> None:
        self.operator, self.weight, self.shape = operator, operator.weight, operator.shape[::-1]

    def gram(self, x: Matrix) -> Matrix:
        """The product of the matrix times its transpose with x."""
        return self.operator.transposed_gram(x)


_TALL = 1.1
"""From what ratio of the sides on a matrix is taken by its right side. Below it the null space on the left holds little."""
_LONG, _FORMED, _SPIKED = 1.5, 1024, 50
"""From what ratio of the sides, and up to what shorter one, the Gram matrix is formed; and up to what ratio of its Frobenius
norm to the mean eigenvalue beside: the rounding of a few large ones would drown the others."""


def _short_side(operator: Operator) -> tuple[Operator | Gram | Flipped, bool]:
    """What has the same singular values, and for left vectors those of the shorter side; and whether that is the right one."""
    n, m = operator.shape
    if isinstance(operator.weight, np.ndarray) and min(n, m) <= _FORMED and max(n, m) >= _LONG * min(n, m):
        dense = operator.dense()
        gram = dense.T @ dense if n > m else dense @ dense.T
        largest = np.linalg.norm(gram)
        if largest <= _SPIKED * max(np.trace(gram) - largest, 0) / len(gram):
            return Gram(gram), n > m
    flipped = n > _TALL * m and isinstance(operator.weight, np.ndarray)
    return (Flipped(operator) if flipped else operator), flipped


def _qr(xp: Any, block: Matrix) -> tuple[Matrix, Matrix]:
    """Orthonormal columns and coefficients; by the Gram matrix, twice, which is products where reflections are not.

    Its condition is squared on the way, so columns that all but depend on one another are left to the reflections.
    """
    q, r = block, np.eye(block.shape[1])
    for _ in range(2 if xp is np else 0):
        try:
            lower = np.linalg.cholesky((q.T @ q).astype(np.float64))
        except np.linalg.LinAlgError:
            return np.linalg.qr(block)
        size = np.diagonal(lower)
        if not size.min() > 1e-2 * size.max():
            return np.linalg.qr(block)
        q, r = q @ np.linalg.inv(lower).T.astype(q.dtype), lower.T @ r
    return (q, r) if xp is np else xp.linalg.qr(block)


def _next_block(xp: Any, basis: Matrix, block: Matrix, step: Any) -> tuple[Matrix, Matrix, Matrix]:
    """Orthonormal columns for what of a block is outside a basis, and its coefficients in them and in the basis; on processors
    in the last two blocks of it.
    """
    if xp is not np:
        q, r, first, second = _twice(xp, basis, block)
        little = abs(xp.diagonal(r)).min() <= 1e-3 * abs(first).max()
        return *jax.lax.cond(little, functools.partial(_filled, jnp), _cleaned, basis, q, r, step), first + second
    # But for rounding it has coefficients in the last two blocks alone.
    near = 2 * block.shape[1]
    first = basis[:, -near:].T @ block
    left = block - basis[:, -near:] @ first
    second = basis.T @ left
    q, r = _qr(np, left - basis @ second)
    # Where much of what was left was rounding, the second pass left some of it in turn.
    if abs(second).max() > 0.1 * abs(np.diagonal(r)).min():
        q, r, first, second = _twice(np, basis, block)
    little = abs(np.diagonal(r)).min() <= 1e-3 * max(abs(first).max(), abs(second).max())
    return *(_filled(np, basis, q, r, step) if little else (q, r)), first[-near:] + second[-near:]


def _twice(xp: Any, basis: Matrix, block: Matrix) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """The same by the whole basis, two times, and the coefficients of either."""
    first = basis.T @ block
    block = block - basis @ first
    second = basis.T @ block
    return *_qr(xp, block - basis @ second), first, second


def _signs(xp: Any, turn: Matrix) -> Matrix:
    """Signs of a triangular factor's diagonal; 1 for 0, which must not take a column away."""
    return xp.where(xp.diagonal(turn) < 0, -1, 1).astype(turn.dtype)


def _cleaned(basis: Matrix, q: Matrix, r: Matrix, _: Any) -> tuple[Matrix, Matrix]:
    q, turn = jnp.linalg.qr(q - basis @ (basis.T @ q))
    return q * _signs(jnp, turn), r


def _filled(xp: Any, basis: Matrix, q: Matrix, r: Matrix, step: Any) -> tuple[Matrix, Matrix]:
    """The same product q r, up to rounding, where next to nothing was left outside the basis in some directions.

    Such directions are rounding, and not orthogonal to the basis. What is outside of it is kept; what is inside gives way to
    random ones, with which the process goes on.
    """
    u, s, vt = xp.linalg.svd(r)
    q, r = q @ u.astype(q.dtype), (s[:, None] * vt).astype(r.dtype)
    if xp is np:
        fresh = np.random.default_rng(step).standard_normal(q.shape).astype(q.dtype)
    else:
        fresh = fixed_normal(step, q.shape, q.dtype)
    outside = q - basis @ (basis.T @ q)
    q = xp.where(xp.linalg.norm(outside, axis=0) > 0.5, outside, fresh)
    for _ in range(2):
        q, turn = xp.linalg.qr(q - basis @ (basis.T @ q))
        q = q * _signs(xp, turn)
    return q, r


@functools.partial(jax.jit, donate_argnums=1)
def _device_step(operator: Operator, basis: jax.Array, step: jax.Array, block: jax.Array):
    """One step on an accelerator: the basis is one buffer, zero where it is not filled yet."""
    with jax.default_matmul_precision("highest"):
        q, r, h = _next_block(jnp, basis, operator.gram(block), step)
        return jax.lax.dynamic_update_slice(basis, q, (0, (step + 1) * block.shape[1])), q, r, h


class Ritz(NamedTuple):
    """What a Krylov space says of the spectrum.

    Attributes:
        values: Ritz values of A Aᵀ, ascending, shape (k,).
        vectors: their coordinates in the basis, shape (k, k).
        first: those in the start block, shape (b, k).
        last: of what they leave, in the next block, shape (b, k); its columns' norms are the residuals, no less than noise.
        noise: of the residuals, by rounding, shape (k,).
    """

    values: np.ndarray
    vectors: np.ndarray
    first: np.ndarray
    last: np.ndarray
    noise: np.ndarray

    @property
    def residuals(self) -> np.ndarray:
        """ρ of each pair."""
        return np.linalg.norm(self.last, axis=0)

    def gaps(self) -> np.ndarray:
        """Distance of each value to the nearest other one."""
        steps = np.diff(self.values, prepend=-np.inf, append=np.inf)
        return np.minimum(steps[:-1], steps[1:])


class BlockLanczos:
    r"""A Krylov space of :math:`AA^\top`, grown block by block and kept orthonormal.

    Args:
        operator: A, shape (n, m), in float32 or float64.
        start: X, shape (n, b), of full rank; its columns are made orthonormal, in order.
        most: blocks there is room for beside the first one; at most n/b − 1.

    Raises:
        InputError: if the start has no columns, or not n rows.
    """

    def __init__(self, operator: Operator | Gram | Flipped, start: Matrix, most: int) -> None:
        n, b = start.shape
        if n != operator.shape[0] or b == 0:
            raise InputError(f"start has shape {[n, b]}: must be ({operator.shape[0]}, b) with b at least 1")
        self.operator, self.width, self.steps = operator, b, 0
        self.most = max(0, min(most, n // b - 1))
        self._xp = np if isinstance(operator.weight, np.ndarray) else jnp
        q, turn = self._xp.linalg.qr(start)
        self._block = q * _signs(self._xp, turn)
        # On an accelerator one buffer from the beginning, for which one step is compiled.
        columns = b if self._xp is np else b * (self.most + 1)
        self._basis, self._band = self._xp.zeros((n, 0), start.dtype), np.zeros((0, 0))
        self._make_room(columns)
        if self._xp is np:
            self._basis[:, :b] = self._block
        else:
            self._basis = self._basis.at[:, :b].set(self._block)

    def _make_room(self, columns: int) -> None:
        """For a basis of so many, and a band."""
        used = self._band.shape[0]
        if columns <= used:
            return
        band = np.zeros((columns, columns))
        band[:used, :used] = self._band
        self._band = band
        if self._xp is np:
            # By columns: a block is one piece of memory.
            basis = np.empty((len(self._block), columns), self._block.dtype, order="F")
            basis[:, :used] = self._basis
            self._basis = basis
        else:
            self._basis = jnp.zeros((len(self._block), columns), self._block.dtype)

    def grow(self, steps: int) -> bool:
        """Take more steps; False if there was no room for all of them."""
        b, steps = self.width, min(steps, self.most - self.steps)
        self._make_room(b * (self.steps + steps + 1))
        for _ in range(steps):
            low, high = self.steps * b, (self.steps + 1) * b
            if self._xp is np:
                q, r, h = _next_block(np, self._basis[:, :high], self.operator.gram(self._block), self.steps)
                self._basis[:, high : high + b] = q
            else:
                self._basis, q, r, h = _device_step(self.operator, self._basis, self.steps, self._block)
                h = h[:high]
            self._block, self.steps = q, self.steps + 1
            # Only the last two blocks of h are not rounding, and the upper one is known.
            own = np.asarray(h, np.float64)[-b:]
            self._band[low:high, low:high] = (own + own.T) / 2
            self._band[high : high + b, low:high] = r
            self._band[low:high, high : high + b] = np.asarray(r, np.float64).T
        return self.steps < self.most

    def ritz(self) -> Ritz:
        """Values and vectors after the steps so far, at least one."""
        k, b = self.steps * self.width, self.width
        values, vectors = np.linalg.eigh(self._band[:k, :k])
        last = self._band[k : k + b, k - b : k] @ vectors[-b:]
        # No residual is known to be below the rounding of the products. That of A(Aᵀq) is of the order of ‖A‖‖Aᵀq‖, which is
        # much less than of ‖A‖² for what is orthogonal to a few large singular vectors; that of a formed Gram matrix is not.
        # Where Aᵀq is smaller than for most q, its own rounding is not: terms of the usual size have cancelled.
        top, squares = max(values[-1], 0), np.diagonal(self._band)[:k]
        usual = min(max(np.median(squares), 0), top)
        parts = top if isinstance(self.operator, Gram) else squares.clip(usual, top) @ vectors**2
        noise = self.noise * np.sqrt(top * parts) * np.ones(k)
        rho = np.linalg.norm(last, axis=0)
        last = np.where(rho > 0, last * (np.maximum(rho, noise) / np.where(rho > 0, rho, 1)), noise / np.sqrt(b))
        return Ritz(values, vectors, vectors[:b], last, noise)

    @_exactly
    def combine(self, coordinates: np.ndarray) -> Matrix:
        """Vectors (n, j) from their coordinates in the basis (k, j)."""
        basis = self._basis[:, : len(coordinates)]
        return basis @ self._xp.asarray(coordinates, basis.dtype)

    @property
    def noise(self) -> float:
        """Of a product, relative to the norms of its factors."""
        return _NOISE[np.dtype(self._basis.dtype)]


class TopSingular(NamedTuple):
    """The largest singular values and their left vectors.

    Attributes:
        values: descending, shape (k,).
        vectors: as columns, shape (n, k).
        errors: bound on the sine of the angle between each vector and the true one.
        steps: of Lanczos.
    """

    values: np.ndarray
    vectors: Matrix
    errors: np.ndarray
    steps: int


def _angles(ritz: Ritz) -> np.ndarray:
    """Bounds on the sines between Ritz vectors and eigenvectors: residual over gap."""
    return np.minimum(ritz.residuals / np.maximum(ritz.gaps(), np.finfo(float).tiny), 1.0)


def top_singular(
    operator: Operator, k: int, *, tolerance: float = 2e-3, width: int | None = None, most: int = 96, seed: int = 0
) -> TopSingular:
    """The k largest singular values and left vectors, by block Lanczos from a random start.

    Args:
        operator: A, shape (n, m).
        k: how many.
        tolerance: stop when every angle is below it.
        width: columns of a block, by default k + 2, of large matrices a multiple of 8, from k + 4. Fewer need fewer products
            in all, and miss copies of values that are repeated more often.
        most: blocks at most.
        seed: of the start.

    Returns:
        What was reached; `errors` above the tolerance say that it was not.

    Raises:
        InputError: if the matrix has too few rows for three blocks.
    """
    short, transposed = _short_side(operator)
    n = short.shape[0]
    # Where both sides are as short, the right one is read once a step.
    if n == operator.shape[1] and _far(operator.weight):
        short, transposed = Flipped(operator), True
    if width is None:
        width = k + 2
        if math.prod(operator.shape) >= FAR and n >= 40 * full_width(k + 4):  # or there is no room to converge in
            width = full_width(k + 4)
    if k < 1 or n < 3 * max(width, k + 2):
        raise InputError(f"k = {shown(k)}: must be 1 to {max(n // 3 - 2, 0)} for {n} rows or columns")
    start = np.random.default_rng(seed).standard_normal((n, width)).astype(operator.weight.dtype)
    space = BlockLanczos(
        short, start if isinstance(operator.weight, np.ndarray) else jnp.asarray(start), max(most, k // width + 1)
    )
    # Before that there is little to see, even of matrices with few strong directions.
    wanted, before, room = math.ceil(8 * (k + 2) / width) + 4, None, True
    while True:
        room = space.grow(wanted - space.steps)
        ritz = space.ritz()
        errors = _angles(ritz)[-k:]
        worst = errors.max()
        # No step helps where residuals are the rounding of products.
        settled = (ritz.residuals <= 1.01 * ritz.noise)[-k:].all()
        if worst <= tolerance or settled or not room:
            break
        # Residuals fall geometrically: look again when they should have arrived.
        rate = 0.0 if before is None or worst >= before[1] else math.log(before[1] / worst) / (space.steps - before[0])
        more = math.log(worst / tolerance) / rate if rate else 4.0
        before = (space.steps, worst)
        wanted = space.steps + math.ceil(min(max(more, 24 / width), 96 / width))
    values = np.sqrt(np.maximum(ritz.values[: -k - 1 : -1], 0))
    vectors = space.combine(ritz.vectors[:, : -k - 1 : -1])
    if transposed:
        vectors = (operator @ vectors) / np.maximum(values, np.finfo(vectors.dtype).tiny).astype(vectors.dtype)
    return TopSingular(values, vectors, errors[::-1], space.steps)


_SHARES, _LITTLE = (0.02, 0.1), 1e-2
"""τ: of the length of a singular vector so much, squared, is given for the rounding, which weighs more where σ² is below this
share of the largest."""


def _christoffel(ritz: Ritz, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    r"""The bound at each x, shape (x, c).

    A singular vector of value x has coordinates y along the Ritz vectors, w in the next block and z in the rounding E of the
    process, with (θⱼ − x) yⱼ + ℓⱼᵀw + ηⱼzⱼ = 0: ℓⱼ is what the Ritz pair leaves in the next block, ηⱼ the length of its
    rounding, and ‖y‖² + ‖w‖² ≤ 1, ‖z‖ ≤ 1. With ‖y‖² + ‖w‖² + τ²‖z‖² ≤ 1 + τ² in place of these, the largest (rᵀy)² is

    .. math::
        (1+\tau^2)\Big[\sum_j\frac{r_j^2\epsilon_j^2}{g_j^2+\epsilon_j^2} + v^\top\Big(1 + \sum_j
        \frac{\ell_j\ell_j^\top}{g_j^2+\epsilon_j^2}\Big)^{-1}v\Big],\qquad
        v = \sum_j\frac{g_jr_j\ell_j}{g_j^2+\epsilon_j^2},\quad g = \theta-x,\ \epsilon = \eta/\tau,

    and without rounding, ε = 0, the Christoffel function.
    """
    b, k = ritz.last.shape
    last, first = ritz.last.T, rows.T  # (k, b), (k, c)
    squares = (last[:, :, None] * last[:, None, :]).reshape(k, -1)
    mixed = (last[:, :, None] * first[:, None, :]).reshape(k, -1)
    found = np.empty((x.size, len(rows)))
    little = x <= _LITTLE * ritz.values[-1]
    for share, which in zip(_SHARES, (~little, little), strict=True):
        blur = np.maximum(ritz.noise / share, 1e-7 * ritz.residuals) ** 2
        which = np.flatnonzero(which)
        for part in np.array_split(which, max(1, which.size * k // 1_000_000)):
            gap = ritz.values - x[part, None]
            near = gap * gap
            near += blur
            np.divide(1, near, out=near)
            inner = (near @ squares).reshape(-1, b, b) + np.eye(b)
            rounding = near @ (blur[:, None] * first**2)
            seen = (np.multiply(gap, near, out=gap) @ mixed).reshape(-1, b, len(rows))
            found[part] = (1 + share**2) * (rounding + np.sum(seen * np.linalg.solve(inner, seen), axis=1))
    return found


def atom_bounds(
    ritz: Ritz, rows: np.ndarray, floor: float = 0.0, *, transposed: bool = False, enough: np.ndarray | float = np.inf
) -> np.ndarray:
    r"""Upper bounds on the squared cosines of vectors in the start block with any one left singular vector (the module's
    second point).

    As a function of x the bound has a peak of the width of the residual at each Ritz value that has begun to converge, and
    is smooth elsewhere: it is looked at accordingly, then more and more closely wherever it comes near its largest value,
    and what may still lie between is allowed for by three quarters of a per cent.

    Args:
        ritz: of a space whose start block the vectors are in.
        rows: their coordinates along the Ritz vectors, shape (c, k); of a start vector itself a row of `ritz.first`.
        floor: singular vectors with σ² at or below it do not count.
        transposed: the space is that of Aᵀ, and the vectors in it are Aᵀ times those that are asked about: their inner
            products with right singular vectors are σ times the cosines.
        enough: a bound that is no smaller than this need not be looked for, and is told as 1.

    Returns:
        Shape (c,).
    """
    found = np.ones(len(rows))
    enough = np.broadcast_to(enough, found.shape)
    theta, rho = ritz.values, ritz.residuals
    if theta[-1] <= floor:
        return 0 * found
    low, high = min(floor, theta[0]), theta[-1] + max(theta[-1] - theta[-2], rho[-1])
    least = max(floor * (1 + 1e-9), 1e-30 * high)
    steps = np.diff(theta, prepend=low, append=high)
    narrow = rho < 4 * np.maximum(steps[:-1], steps[1:])
    weight = (lambda x: 1 / x) if transposed else np.ones_like

    def at(x):
        x = np.unique(x[x > floor])
        return x, _christoffel(ritz, rows, x) * weight(x)[:, None]

    def beside(which, near):
        return (theta[which, None] + rho[which, None] * np.concatenate([-near, near])).ravel()

    between = np.append(low, theta)[:, None] + steps[:, None] * np.array([0.1, 0.5, 0.9])
    # Towards zero the images of unit vectors vanish, and what is allowed grows as 1/x.
    first = max(theta[theta > floor][0], least)
    small = np.geomspace(least, first, 8 + int(4 * np.log10(first / least)))
    x, bound = at(np.concatenate([beside(narrow, np.array([1e-5])), between.ravel(), small]))
    open_ = np.flatnonzero(bound.max(0) < enough)
    if not open_.size:
        return found
    rows, enough, bound = rows[open_], enough[open_], bound[:, open_]
    # The rest of a peak only where it may be the highest.
    tall = np.zeros(theta.size, bool)
    tall[np.abs(theta - x[(bound > 0.5 * bound.max(0)).any(1), None]).argmin(1)] = True
    near = np.array([1e-4, 1e-3, 4e-3, 0.02, 0.1, 0.3, 0.8])
    more, there = at(beside(narrow & tall, near))
    order = np.argsort(np.concatenate([x, more]))
    x, bound = np.concatenate([x, more])[order], np.concatenate([bound, there])[order]
    best = bound.max(0)
    fenced = np.pad(bound, ((1, 1), (0, 0)))
    peak = (bound >= fenced[:-2]) & (bound >= fenced[2:]) & (bound >= 0.8 * best) & (best < enough)
    place, column = np.nonzero(peak)
    left, right = x[np.maximum(place - 1, 0)], x[np.minimum(place + 1, x.size - 1)]
    every = np.linspace(0, 1, 7)[1:-1]
    for _ in range(3 if place.size else 0):
        closer = left[:, None] + (right - left)[:, None] * every
        value = _christoffel(ritz, rows, closer.ravel()).reshape(*closer.shape, -1)
        value = value[np.arange(place.size), :, column] * weight(np.maximum(closer, floor))
        np.maximum.at(best, column, value.max(1))
        middle, step = closer[np.arange(place.size), value.argmax(1)], (right - left) / 6
        left, right = middle - step, middle + step
    found[open_] = np.where(best < enough, np.minimum(1.0075 * best, 1.0), 1.0)
    return found


_SETTLED = 0.05
"""Angle within which all leading Ritz vectors are taken for those of the largest singular values, with none missing."""


def atom_floors(cosine: np.ndarray, ritz: Ritz, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest cosines of vectors with Ritz vectors, given all of them (c, k); what is certain; what would be if no singular
    value hid behind another; all of shape (c,).

    A Ritz vector at cosine w from a start vector, and within angle φ of a singular vector, shows one at cosine
    w cos φ − √(1 − w²) sin φ or more. For φ the nearest other eigenvalue counts, and of n eigenvalues k Ritz values do not
    show all: between two of them a share k/n of the gap is taken for the distance to the nearest. Inside the spectrum there may
    be two much closer than that, and a vector made of both looks like one; from the largest down to the first Ritz vector that
    has not settled, the random columns of the start would have shown them.
    """
    cosine = np.minimum(np.abs(cosine), 1.0)
    angles = _angles(ritz)
    settled = np.cumprod(angles[::-1] <= _SETTLED)[::-1] > 0
    sine = np.minimum(angles * max(1.0, n / ritz.values.size), 1.0)
    sure = np.maximum(cosine * np.sqrt(1 - sine**2) - np.sqrt(1 - cosine**2) * sine, 0.0)
    return cosine.max(axis=1), np.where(settled, sure, 0).max(axis=1), sure.max(axis=1)


def _none_below(operator: Operator, gram: Matrix | None, x: float, noise: float) -> bool:
    """Whether AᵀA − x is positive definite, whatever its rounding: all min(n, m) singular values are then above √x.

    Args:
        operator: A, with more rows than columns.
        gram: AᵀA if it is known.
        x: a square.
        noise: of the products.
    """
    if gram is None:
        dense = operator.dense()
        with jax.default_matmul_precision("highest"):
            gram = dense.T @ dense
    if isinstance(gram, jax.Array):
        shifted = gram - (x + noise) * jnp.eye(len(gram), dtype=gram.dtype)
        return bool(jnp.isfinite(jnp.linalg.cholesky(shifted)).all())
    diagonal = np.diagonal(gram) - (x + noise)
    kept, gram.flat[:: len(gram) + 1] = np.diagonal(gram).copy(), diagonal
    try:
        np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        return False
    finally:
        gram.flat[:: len(gram) + 1] = kept
    return True


class Cosines(NamedTuple):
    """The largest absolute cosine of each vector with the left singular vectors of a matrix.

    Attributes:
        estimate: the largest Ritz weight's, shape (c,).
        lower, upper: bounds.
        cosines: with the left vector of each Ritz pair, shape (c, k).
        steps: of Lanczos.
        ritz: what is known of the matrix besides; for a matrix with more rows than columns that of its transpose.
    """

    estimate: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    cosines: np.ndarray
    steps: int
    ritz: Ritz


def largest_cosines(
    operator: Operator,
    vectors: Matrix,
    *,
    threshold: float | None = None,
    errors: np.ndarray | float = 0.0,
    tolerance: float = 1e-3,
    beside: int = 1,
    leading: int = 0,
    first: int = 8,
    most: int = 64,
    seed: int = 0,
) -> Cosines:
    """Bound the largest absolute cosine of given vectors with any left singular vector, by block Lanczos from them.

    Args:
        operator: A, shape (n, m).
        vectors: orthonormal columns, shape (n, c).
        threshold: stop as soon as every cosine is known to be above or below it; None goes on to the tolerance.
        errors: sines of angles that the vectors may be off by, which the bounds then allow for.
        tolerance: width of the bounds at which to stop.
        beside: random columns in the start block, which see what the vectors do not.
        leading: go on until so many of the largest singular vectors are known, too, to an angle of 0.05.
        first: steps before the first look at the bounds.
        most: blocks at most.
        seed: of those columns.

    Returns:
        `Cosines`; where lower < threshold ≤ upper it is not known on which side a cosine is.
    """
    (n, c), m = vectors.shape, operator.shape[1]
    random = np.random.default_rng(seed).standard_normal((n, beside)).astype(vectors.dtype)
    numpy = isinstance(vectors, np.ndarray)
    short, transposed = _short_side(operator)
    mixing, inside = np.eye(c), vectors
    if transposed:  # the process runs on the right side, from the images of the vectors there
        random = random[: short.shape[0]]
        inside, mixing = np.linalg.qr(operator.transposed(vectors))
    start = np.concatenate([inside, random], axis=1) if numpy else jnp.concatenate([inside, jnp.asarray(random)], 1)
    space = BlockLanczos(short, start, most)
    errors = np.broadcast_to(np.asarray(errors, float), (c,))
    lower, upper, done = np.zeros(c), np.ones(c), np.zeros(c, bool)
    wanted, room, empty, refused = first, True, 0.0, np.inf
    while True:
        room = space.grow(wanted - space.steps)
        ritz = space.ritz()
        wanted = space.steps + 4
        if leading and room and _angles(ritz)[-leading:].max() > 0.05:
            continue
        floor = (max(operator.shape) * np.finfo(vectors.dtype).eps) ** 2 * ritz.values[-1]
        rows = mixing.T @ ritz.first[:c]
        sigma = np.sqrt(np.maximum(ritz.values, floor) + np.finfo(float).tiny)
        cosines = rows / sigma if transposed else rows
        above = np.where(ritz.values > floor, cosines, 0)
        estimate, sure, guess = atom_floors(above, ritz, short.shape[0])
        # A vector at angle φ from the one that was meant has cosines that differ by sin φ at most.
        lower = np.maximum(lower, sure - errors)
        done |= lower >= (1 if threshold is None else threshold)
        if not done.all():
            open_, noise = np.flatnonzero(~done), space.noise * ritz.values[-1]
            # A null space on the left hides small singular values, until it is known that there are none.
            real = ritz.values[ritz.values > noise]
            if n > _TALL * m and not empty and real.size and real[0] < refused / 2:
                gram = short.weight if isinstance(short, Gram) else None
                if _none_below(operator, gram, real[0] / 4, 8 * noise):
                    empty = real[0] / 4
                else:
                    refused = real[0]
            enough = np.inf if threshold is None else np.maximum(threshold - errors[open_], 0) ** 2
            bounds = np.sqrt(atom_bounds(ritz, rows[open_], max(floor, empty), transposed=transposed, enough=enough))
            upper[open_] = np.minimum(upper[open_], bounds + errors[open_])
        done |= upper - lower <= tolerance + 2 * errors
        if threshold is not None:
            done |= upper < threshold
        # Nor does a step more tell one singular vector inside the spectrum from two.
        hopeless = threshold is not None and bool((done | (guess - errors >= threshold)).all())
        if done.all() or hopeless or not room:
            return Cosines(estimate, lower, np.maximum(upper, lower), cosines, space.steps, ritz)
