r"""Full fine-tuning as a perturbation: W + Δ with Δ dense and small, to first and second order, and the range of validity.

For a symmetric W with eigenvalues :math:`\lambda_i` and orthonormal eigenvectors :math:`v_i`, let
:math:`M_{ji} = v_j^\top\Delta v_i`. The series of Rayleigh and Schrödinger begins with (*Intruder Dimensions*, §III-C, which
stops at the first order)

.. math::
    \lambda_i^{(1)} &= M_{ii}, &
    v_i^{(1)} &= \sum_{j\ne i}\frac{M_{ji}}{\lambda_i-\lambda_j}\,v_j, \\
    \lambda_i^{(2)} &= \sum_{j\ne i}\frac{M_{ji}^2}{\lambda_i-\lambda_j}, &
    v_i^{(2)} &= \sum_{j\ne i}\Big[\sum_{k\ne i}\frac{M_{jk}M_{ki}}{(\lambda_i-\lambda_j)(\lambda_i-\lambda_k)}
        - \frac{M_{ii}M_{ji}}{(\lambda_i-\lambda_j)^2}\Big]v_j - \tfrac12\|v_i^{(1)}\|^2v_i .

Singular values and vectors of a rectangular W follow from the symmetric matrix with W and :math:`W^\top` off its diagonal, whose
eigenvalues are :math:`\pm\sigma_i` and zeros.

Functions of eigenvalues and vectors return the corrections, not the sums; they run in float64. Eigenvalues must be simple.
Derivatives in W or Δ are taken inside ``jax.enable_x64(True)``: JAX cannot transpose a decomposition in float64 outside of it.

Up to which size of Δ this holds is the subject of `rmtjax.laws.perturbation.random_update`.
"""

from rmtjax.laws.perturbation.eigen import (
    first_order_eigenvalues,
    first_order_eigenvectors,
    second_order_eigenvalues,
    second_order_eigenvectors,
)
from rmtjax.laws.perturbation.random_update import (
    Rotation,
    breakdown_delta,
    largest_valid_delta,
    overlap,
    rotation,
    scale,
    singular_rotation,
)
from rmtjax.laws.perturbation.singular import (
    Vectors,
    first_order_singular_values,
    first_order_singular_vectors,
    second_order_singular_values,
)

__all__ = [
    "Rotation",
    "Vectors",
    "breakdown_delta",
    "first_order_eigenvalues",
    "first_order_eigenvectors",
    "first_order_singular_values",
    "first_order_singular_vectors",
    "largest_valid_delta",
    "overlap",
    "rotation",
    "scale",
    "second_order_eigenvalues",
    "second_order_eigenvectors",
    "second_order_singular_values",
    "singular_rotation",
]
