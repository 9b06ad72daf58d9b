"""Optax transformations for adapters: the α-updater, orthonormal columns, and a bound on the update's norm."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from rmtjax._checks import whole
from rmtjax._errors import InputError, shown
from rmtjax.adapters.layers import adapted_layers
from rmtjax.adapters.methods import OrthogonalLoRA

__all__ = ["alpha_updater", "project_spectral_norm", "stiefel"]


def alpha_updater(optimizer: optax.GradientTransformation, every: int = 20) -> optax.GradientTransformationExtraArgs:
    r"""Update α every `every` steps with its own optimizer (α-LoRA, Algorithm 1); leave it unchanged otherwise.

    With :math:`g_t` the gradient with respect to α over a batch that is fresh at step :math:`t`,

    .. math::

        \alpha_t = \alpha_{t-1} + \begin{cases} \mathrm{optimizer}(g_t) & T \mid t \\ 0 & \text{otherwise.}\end{cases}

    It is `optax.conditionally_mask` of the optimizer, whose state it has, with a gradient that may be a function and then is
    evaluated only in the steps that need it. In the steps between, neither α nor moments, schedules or weight decay of its
    optimizer move.

    Args:
        optimizer: α's own, such as `optax.adam(5e-3)`. Its schedules count moves of α, not steps.
        every: T ≥ 1.

    Returns:
        A `GradientTransformationExtraArgs`. Its `update` takes a keyword `alpha_gradient`, a function without arguments
        that returns the gradient over the fresh batch (a tree like `updates`, or in `optax.partition` like all of the
        gradients); it is called within `jax.lax.cond`. Without it `updates` themselves are the gradient.

        In a `chain`, what stands before it does not see that fresh gradient, and what stands after it meets zeros between
        moves: clipping and the like belong into `optimizer`, `alpha_updater(optax.chain(optax.clip(1.0), optax.adam(5e-3)))`.

    Raises:
        InputError: if `every` is no whole number of 1 or more.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> from rmtjax.adapters import alpha_updater
        >>> tx = alpha_updater(optax.sgd(0.1), every=2)
        >>> alpha = jnp.ones(2)
        >>> state = tx.init(alpha)
        >>> for step in range(2):
        ...     updates, state = tx.update(jnp.zeros(2), state, alpha, alpha_gradient=lambda: jnp.ones(2))
        ...     print(updates)
        [0. 0.]
        [-0.1 -0.1]

    References:
        *α-LoRA: Effective fine-tuning via base model rescaling*, §5.2 and Appendix E.
    """
    whole("every", every)
    inner = optax.with_extra_args_support(optimizer)

    def move(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        gradient: Callable[[], optax.Updates],
        **extra: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        return inner.update(gradient(), state, params, **extra)

    masked = optax.conditionally_mask(
        optax.GradientTransformationExtraArgs(inner.init, move), lambda step: (step + 1) % every == 0
    )

    def update_fn(
        updates: optax.Updates,
        state: optax.ConditionallyMaskState,
        params: optax.Params | None = None,
        *,
        alpha_gradient: Callable[[], optax.Updates] | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.ConditionallyMaskState]:
        def gradient() -> optax.Updates:
            if alpha_gradient is None:
                return updates
            return jax.tree.map(  # inside a partition, keep only the parts that are ours
                lambda ours, g: ours if isinstance(ours, optax.MaskedNode) else g.astype(ours.dtype),
                updates,
                alpha_gradient(),
                is_leaf=lambda x: isinstance(x, optax.MaskedNode),
            )

        # The optimizer may return other types than it receives, such as steps in the precision of α, or moments in that of the
        # gradient. Its step decides, and both branches must have its types; the fresh gradient is not traced for it.
        types, inner_types = jax.eval_shape(lambda: inner.update(updates, state.inner_state, params, **extra))
        zeros = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), types)
        inner_state = jax.tree.map(
            lambda x, like: x if x.dtype == like.dtype else x.astype(like.dtype), state.inner_state, inner_types
        )
        return masked.update(zeros, state._replace(inner_state=inner_state), params, gradient=gradient, **extra)

    return optax.GradientTransformationExtraArgs(masked.init, update_fn)


def orthonormal(x: Float[Array, "n r"], turns: int = 12) -> Float[Array, "n r"]:
    """Return the nearest matrix with orthonormal columns, x (xᵀx)^(−1/2), by Newton–Schulz steps on the r × r matrix.

    Only products, so it costs nothing beside a step of training and runs alike everywhere. Exact to rounding if the
    condition number of x is below 30, which a step from an orthonormal matrix that is not wild never exceeds.
    """
    gram = x.T @ x
    bound = jnp.max(jnp.sum(jnp.abs(gram), axis=0))  # at least the largest eigenvalue
    y, z, eye = gram / bound, jnp.eye(x.shape[1]), jnp.eye(x.shape[1])
    for _ in range(turns):  # y → (gram/bound)^(1/2), z → its inverse
        t = 1.5 * eye - 0.5 * z @ y
        y, z = y @ t, t @ z
    x = x @ z / jnp.sqrt(bound)
    return x @ (1.5 * eye - 0.5 * x.T @ x)  # a last step for full precision


def stiefel(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Let an optimizer move matrices with orthonormal columns so that they stay orthonormal.

    The gradient is first projected on the tangent space of the Stiefel manifold, :math:`G - X\,\mathrm{sym}(X^\top G)`,
    and the step :math:`U` that the optimiser makes of it is replaced by :math:`R(X + U) - X` with the polar retraction
    :math:`R(Y) = Y(Y^\top Y)^{-1/2}`, the nearest such matrix. No penalty is involved.

    Args:
        optimizer: for parameters of which all leaves are matrices (n, r) with orthonormal columns, r ≤ n.

    Raises:
        InputError: from its `init`, if a leaf is not such a matrix.

    References:
        Absil, Mahony & Sepulchre, *Optimization Algorithms on Matrix Manifolds* (2008), §3.6.1 and §4.1.1.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init_fn(params):
        for leaf in jax.tree.leaves(params):
            if leaf.ndim != 2 or leaf.shape[0] < leaf.shape[1]:
                raise InputError(f"stiefel: a parameter has shape {list(leaf.shape)}; must be (n, r) with r ≤ n")
        return inner.init(params)

    def project(gradient, x):
        along = x.T @ gradient
        return gradient - x @ (along + along.T) / 2

    def update_fn(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("stiefel: update needs the parameters; pass params")
        steps, state = inner.update(jax.tree.map(project, updates, params), state, params, **extra)
        return jax.tree.map(lambda u, x: orthonormal(x + u) - x, steps, params), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _leaf_name(path: tuple) -> str:
    """Return the dotted name of a leaf of any tree."""
    parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    return ".".join(parts[:-1] if parts[-1] in ("value", "raw_value") and len(parts) > 1 else parts)


def project_spectral_norm(model: nnx.Module, limits: Mapping[str, float]) -> optax.GradientTransformation:
    r"""Keep each layer's update below a limit, :math:`\|\Delta W\|_2 \le \ell`, whatever step the optimizer takes.

    It goes last in a chain: the step is changed so that the bound holds after it. Singular values of LoRA's and DoRA's update
    above the limit are cut to it, which is the projection; the parameters of the other adapters are scaled down together.
    α is not touched, and DoRA's bound is that of BA before rows are rescaled.

    Args:
        model: with adapters.
        limits: ℓ by dotted path of the adapted layers, such as `rmtjax.intruders.intruder_limits` gives; layers without one
            are free.

    Returns:
        A transformation of trees whose leaves are named as the model's parameters: `nnx.State`, or a dict by dotted path.

    Raises:
        InputError: for a limit that is not a positive number, of a layer that is not adapted, or below what an orthogonal
            adapter always has, a/r.
    """
    layers = adapted_layers(model)
    parts: dict[str, tuple[Any, Any, float]] = {}
    for path, limit in limits.items():
        if path not in layers or layers[path].update is None:
            raise InputError(f"limits: {path} is not a layer with an adapter")
        if not (isinstance(limit, numbers.Real) and limit > 0):
            raise InputError(f"limits: {path} = {shown(limit)}: must be above 0")
        update = layers[path].update
        if isinstance(update, OrthogonalLoRA):
            strength = abs(update.scale / update.rank)
            if strength > limit:
                raise InputError(
                    f"limits: {path}: an orthogonal adapter's singular values are all a/r = {strength:g}, but the"
                    f" limit is {limit:.3g}; choose a smaller scale"
                )
            continue
        graph, state = nnx.split(update)
        parts[path] = (graph, nnx.to_flat_state(state), float(limit))

    def init_fn(params: optax.Params) -> optax.EmptyState:
        return optax.EmptyState()

    def update_fn(updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None):
        if params is None:
            raise ValueError("project_spectral_norm: update needs the parameters; pass params")
        flat, tree = jax.tree_util.tree_flatten_with_path(params)
        where = {_leaf_name(path): i for i, (path, _) in enumerate(flat)}
        steps = jax.tree.leaves(updates)
        for path, (graph, variables, limit) in parts.items():
            at = {name[0]: where.get(f"{path}.update.{name[0]}") for name, _ in variables}
            moved = [
                (name, variable if at[name[0]] is None else variable.replace(flat[at[name[0]]][1] + steps[at[name[0]]]))
                for name, variable in variables
            ]
            for name, value in nnx.merge(graph, nnx.from_flat_state(moved)).bounded(limit).items():
                if at[name] is None:
                    raise InputError(
                        f"params: {path}.update.{name} must be among the optimized parameters for its limit to hold"
                    )
                steps[at[name]] = value - flat[at[name]][1]
        return jax.tree.unflatten(tree, steps), state

    return optax.GradientTransformation(init_fn, update_fn)
