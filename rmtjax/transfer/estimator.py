r"""The α-fine-tuned classifier as a scikit-learn estimator.

Given K source classifiers, the rows of :math:`\tilde W` (K×p), and n target samples, the rows of X (n×p),

.. math::
    w_\alpha = w + \gamma Q\tilde W^\top\alpha, \qquad w = \tfrac1nQX^\top y, \qquad Q = (\tfrac1nX^\top X + \gamma)^{-1},

which is the ridge classifier pulled towards :math:`\tilde W^\top\alpha` instead of 0. It is linear in α, so one factorisation
gives every α, and every leave-one-out margin too. Source: *α-LoRA: Effective Fine-Tuning via Base Model Rescaling*, §3.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float
from scipy.linalg import cho_factor, cho_solve
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import check_cv
from sklearn.utils import check_array
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from rmtjax._checks import number, one_of
from rmtjax._errors import InputError, shown
from rmtjax.transfer import moments
from rmtjax.transfer.moments import TargetMoments

__all__ = ["ALPHAS", "AlphaTransferClassifier", "TransferFit", "loo_alpha", "ridge_classifier", "transfer_fit"]

ALPHAS = (0.0, *np.geomspace(0.02, 200, 81).tolist())
"""The default grid of α: 0, and 81 values from 0.02 to 200 evenly spaced in log α."""

_METHODS = ("optimal", "loo", "cv")


class TransferFit(NamedTuple):
    r"""Both parts of :math:`w_\alpha`, and statistics of the sample.

    Attributes:
        target: w, shape (p,).
        transferred: the rows :math:`\gamma Q\tilde w_k`, (K, p), so that :math:`w_\alpha` is ``target + alpha @ transferred``.
        loo: leave-one-out margins, (1 + K, n): of w, then of each :math:`\gamma Q\tilde w_k`; at α they are
            ``loo[0] + alpha @ loo[1:]``.
        moments: the sample's statistics.
    """

    target: Float[Array, "p"]
    transferred: Float[Array, "K p"]
    loo: Float[Array, "1+K n"]
    moments: TargetMoments


def transfer_fit(X: Float[Array, "n p"], y: Float[Array, "n"], W: Float[Array, "K p"], gamma: float) -> TransferFit:
    r"""Fit both parts of the classifier by one Cholesky factorisation of order min(p, n).

    With :math:`B = (\frac1nXX^\top + \gamma)^{-1}` (n×n), the margin on sample i of the classifier that has not seen it is
    :math:`1 - y_i(By)_i/B_{ii}` for w and :math:`y_i(BX\tilde w)_i/B_{ii}` for :math:`\gamma Q\tilde w`. Leaving one out
    keeps the divisor n, so the penalty's weight nγ does not move.

    Args:
        X: target samples as rows, finite, n ≥ 2.
        y: labels, ±1.
        W: source classifiers as rows, (K, p), K ≥ 0.
        gamma: ridge parameter γ > 0.

    Raises:
        InputError: as `rmtjax.transfer.moments.mean_norm2`; W does not have p columns; γ is not a positive number.
    """
    X, y = moments.checked_sample(X, y)
    return fit_transfer(X, y, moments.checked_weights(W, X.shape[1]), number("gamma", gamma, 0, open_low=True))


def ridge_classifier(X: Float[Array, "n p"], y: Float[Array, "n"], gamma: float) -> Float[Array, "p"]:
    r"""Return the ridge classifier :math:`\frac1n(\frac1nX^\top X+\gamma)^{-1}X^\top y`, by one factorisation of order min(p, n).

    Args:
        X: samples as rows, finite, n ≥ 2.
        y: labels, ±1.
        gamma: ridge parameter γ > 0.

    Raises:
        InputError: as `transfer_fit`.

    Source:
        α-LoRA, eq. (5).
    """
    X, y = moments.checked_sample(X, y)
    return fit_ridge(X, y, number("gamma", gamma, 0, open_low=True), moments.small_gram(X))


def loo_alpha(loo: Float[Array, "1+K n"]) -> Float[Array, "K"]:
    r"""Return the α whose leave-one-out margins have the largest ratio of mean to standard deviation.

    .. math::
        \alpha = a_{1\dots K}/a_0, \qquad a = \operatorname{cov}(\ell)^+\operatorname{mean}(\ell)

    Where :math:`a_0 \le 0`, the target's own classifier hurts and the best direction is the source's alone, α = ∞. The
    α returned is then finite: w keeps a thousandth of the margins' spread.

    Args:
        loo: leave-one-out margins of the two parts, as `transfer_fit` returns them.
    """
    scale = loo.std(1)
    scale[scale == 0] = 1.0
    unit = loo / scale[:, None]
    a = np.linalg.pinv(np.atleast_2d(np.cov(unit)), rcond=1e-12, hermitian=True) @ unit.mean(1)
    floor = 1e-3 * np.abs(a[1:]).max(initial=0.0)
    return a[1:] / max(a[0], floor, np.finfo(float).tiny) * scale[0] / scale[1:]


class AlphaTransferClassifier(ClassifierMixin, BaseEstimator):
    r"""A binary ridge classifier pulled towards α times the source classifiers.

    .. math::
        w_\alpha = w + \gamma Q\tilde W^\top\alpha, \qquad w = \tfrac1nQX^\top y, \qquad Q = (\tfrac1nX^\top X+\gamma)^{-1}

    with samples as rows of X, source classifiers as rows of :math:`\tilde W` and the classes as ∓1. There is no
    intercept, as in the paper: the model puts the class means at ±μ, so centre the data first, for instance with
    `sklearn.preprocessing.StandardScaler`. Without a source it is the plain ridge classifier.

    Args:
        alpha: strength of the pull towards the sources. ``"optimal"``, the law's :math:`\alpha^\star` at moments estimated from
            the sample; ``"loo"``, the best ratio of mean to spread of the leave-one-out margins; ``"cv"``, the best
            cross-validated accuracy on `alphas`, one α for all sources; a number, for all sources; or K numbers.
        gamma: ridge parameter γ > 0 of the target, in units of the features' variance.
        source_coef: given source classifiers, (p,) or (K, p); None to learn them from data at `fit`, or to have none. Where
            they name their features (a Series by its index, a DataFrame by its columns), the names must be those of X.
        source_gamma: ridge parameter γ̃ > 0 of source classifiers learnt at `fit`.
        cv: folds of ``"cv"``, an integer of at least 2, a scikit-learn splitter or an iterable of splits.
        alphas: grid of ``"cv"``; None for `ALPHAS`.

    Attributes:
        classes_: the two classes; the second is +1.
        coef_: :math:`w_\alpha`, (1, p).
        intercept_: 0, (1,).
        alpha_: the α in use, (K,).
        target_coef_: w, (p,).
        source_coef_: :math:`\tilde W`, (K, p).
        transferred_coef_: :math:`\gamma Q\tilde w_k`, (K, p).
        loo_margins_: leave-one-out margins of w and of each transferred part, (1 + K, n).
        statistics_: dict of the estimates: ``noise`` σ², ``mean_norm2`` :math:`\|\mu_\beta\|^2` as the law is given
            it, ``mean_norm2_unbiased``, ``mean_norm2_error``, ``mean_norm2_floor``, ``alignment`` b (K,), ``gram`` (K, K),
            ``eta`` p/n, and ``scalars``, the law's :math:`m_0, m_1, v_0, v_1, V_2` for noise of variance 1.
        n_features_in_: p.
        feature_names_in_: names of the features, (p,); only where X has some.

    Source:
        α-LoRA, §3, Theorem 4.4 and Appendices C and D.

    Examples:
        >>> from sklearn.datasets import make_classification
        >>> X, y = make_classification(300, 20, random_state=0)
        >>> model = AlphaTransferClassifier().fit(X[200:220], y[200:220], X_source=X[:200], y_source=y[:200])
        >>> model.path([0.0, 1.0]).shape
        (2, 20)

        A `Pipeline` transforms the target samples only. To send the source samples through its steps as well, route them
        and name them in ``transform_input`` (scikit-learn 1.6 or newer); give several sources as a tuple, of which the
        pipeline transforms each member.

        >>> import sklearn
        >>> from sklearn.pipeline import Pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> with sklearn.config_context(enable_metadata_routing=True):
        ...     last = AlphaTransferClassifier().set_fit_request(X_source=True, y_source=True)
        ...     model = Pipeline([("scale", StandardScaler()), ("transfer", last)], transform_input=["X_source"])
        ...     sources = {"X_source": (X[:100], X[100:200]), "y_source": (y[:100], y[100:200])}
        ...     model.fit(X[200:220], y[200:220], **sources)["transfer"].alpha_.shape
        (2,)
    """

    def __init__(
        self,
        alpha: str | float | Sequence[float] = "optimal",
        *,
        gamma: float = 1.0,
        source_coef: Float[Array, "K p"] | None = None,
        source_gamma: float = 1.0,
        cv: Any = 5,
        alphas: Sequence[float] | None = None,
    ):
        self.alpha = alpha
        self.gamma = gamma
        self.source_coef = source_coef
        self.source_gamma = source_gamma
        self.cv = cv
        self.alphas = alphas

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def fit(self, X, y, X_source=None, y_source=None) -> AlphaTransferClassifier:
        r"""Learn from target samples and, if given, source samples.

        Args:
            X: target samples, (n, p).
            y: their labels, (n,), of two classes.
            X_source: source samples, (N, p), or a list or tuple of K such arrays; not together with `source_coef`.
                Where X and the source both name their features, the names and their order must be the same; a warning
                says that only one of them has names.
            y_source: their labels, of the same two classes; a list or tuple where `X_source` is one.

        Raises:
            InputError: a parameter or the sources cannot be used, the features of the sources have other names or
                another order than those of X, or `y` does not have two classes.
        """
        method = self._checked_method()
        gamma = number("gamma", self.gamma, 0, open_low=True)
        source_gamma = number("source_gamma", self.source_gamma, 0, open_low=True)
        grid = checked_grid("alphas", ALPHAS if self.alphas is None else self.alphas)
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) != 2:
            raise InputError(
                f"Only binary classification is supported. y holds {len(self.classes_)} class(es), "
                f"{shown(self.classes_.tolist())}; allowed: two"
            )
        signs = np.where(y == self.classes_[1], 1.0, -1.0)
        W = self._sources(X.shape[1], X_source, y_source, source_gamma)
        # A wrong length is an error before anything is factorised.
        alpha = None if method else self._given_alpha(len(W))

        fit = fit_transfer(X, signs, W, gamma)
        self.source_coef_, self.target_coef_, self.transferred_coef_ = W, fit.target, fit.transferred
        self.loo_margins_, self._moments = fit.loo, fit.moments
        self.statistics_ = {**fit.moments._asdict(), "scalars": moments.law_scalars(fit.moments, gamma)}
        if method == "optimal":
            alpha = moments.law_alpha(fit.moments, gamma)
        elif method == "loo":
            alpha = loo_alpha(fit.loo)
        elif method == "cv":
            alpha = np.full(len(W), self._cross_validated(X, signs, W, gamma, grid) if len(W) else 0.0)
        self.alpha_ = alpha
        self.coef_ = self.path([alpha])
        self.intercept_ = np.zeros(1)
        self._gamma = gamma
        return self

    def decision_function(self, X) -> Float[Array, "m"]:
        """Return scores, (m,); positive for the second class.

        Args:
            X: samples, (m, p).
        """
        check_is_fitted(self)
        return validate_data(self, X, dtype=np.float64, reset=False) @ self.coef_[0]

    def predict(self, X) -> np.ndarray:
        """Return classes, (m,).

        Args:
            X: samples, (m, p).
        """
        positive = self.decision_function(X) > 0
        return self.classes_[positive.astype(int)]

    def path(self, alphas) -> Float[Array, "m p"]:
        r"""Return the classifiers :math:`w_\alpha` of many α at once, without refitting.

        Args:
            alphas: (m,), each for all sources; or (m, K).

        Returns:
            One classifier per row.

        Raises:
            InputError: `alphas` is empty, not finite or of another shape.
        """
        check_is_fitted(self, "transferred_coef_")
        return self.target_coef_ + self._alphas(alphas) @ self.transferred_coef_

    def predicted_accuracy(self, alphas=None) -> Float[Array, "m"]:
        r"""Return the law's accuracy on fresh target points at the estimated moments, :math:`\Phi(m_\alpha/\sqrt{v_\alpha})`.

        It trusts the model: Gaussian classes of one isotropic covariance. On other data it ranks the α better than it
        predicts the accuracy.

        Args:
            alphas: as in `path`; None for the fitted `alpha_` alone.

        Returns:
            A share, 0 to 1, for each α.

        Raises:
            InputError: as `path`.
        """
        check_is_fitted(self)
        alphas = self.alpha_[None] if alphas is None else self._alphas(alphas)
        return moments.law_accuracy(self._moments, self._gamma, alphas)

    def _checked_method(self) -> str | None:
        """Return the name in `alpha`; None if it holds numbers."""
        return one_of("alpha", self.alpha, _METHODS) if isinstance(self.alpha, str) else None

    def _given_alpha(self, k: int) -> np.ndarray:
        alpha = _numbers(
            "alpha", self.alpha, f"{', '.join(map(repr, _METHODS))}, a finite number or one for each source"
        )
        if alpha.ndim == 0:
            return np.full(k, float(alpha))
        if alpha.shape != (k,):
            raise InputError(
                f"alpha = {shown(self.alpha)} has shape {alpha.shape}; allowed: {k} number(s), one per source"
            )
        return alpha

    def _alphas(self, alphas) -> np.ndarray:
        k = len(self.transferred_coef_)
        # An array of α for no source has no entry, but is still a grid of one or more α.
        grid = _numbers("alphas", alphas, "finite numbers")
        if grid.ndim == 1:
            grid = np.repeat(grid[:, None], k, 1)
        if grid.ndim != 2 or grid.shape[1] != k or not len(grid):
            raise InputError(f"alphas has shape {np.shape(alphas)}; allowed: (m,) or (m, {k}), m at least 1")
        return grid

    def _sources(self, p: int, X_source, y_source, gamma: float) -> np.ndarray:
        if self.source_coef is not None:
            if X_source is not None or y_source is not None:
                raise InputError("source_coef and X_source are both given; allowed: one of them")
            rows = self.source_coef if isinstance(self.source_coef, list | tuple) else [self.source_coef]
            for k, row in enumerate(rows):
                where = f"source_coef[{k}]" if rows is self.source_coef else "source_coef"
                # scikit-learn looks for names in columns; those of a Series are in its index.
                self._check_feature_names(
                    where,
                    row.to_frame().T if hasattr(row, "index") and hasattr(row, "to_frame") else row,
                    expected=False,
                )
            return moments.checked_weights(self.source_coef, p, "source_coef").copy()
        if (X_source is None) != (y_source is None):
            present, missing = ("X_source", "y_source") if y_source is None else ("y_source", "X_source")
            raise InputError(f"{present} is given and {missing} = None; allowed: both or neither")
        if X_source is None:
            return np.empty((0, p))
        several = isinstance(X_source, list | tuple) and all(np.ndim(part) == 2 for part in X_source)
        if not several:
            X_source, y_source = [X_source], [y_source]
        if not len(X_source) or not isinstance(y_source, list | tuple) or len(y_source) != len(X_source):
            labels = len(y_source) if isinstance(y_source, list | tuple) else shown(type(y_source).__name__)
            raise InputError(
                f"X_source holds {len(X_source)} data sets and y_source {labels}; allowed: as many, 1 or more"
            )
        rows = []
        for k, (X, y) in enumerate(zip(X_source, y_source, strict=True)):
            where = f"[{k}]" if several else ""
            self._check_feature_names(f"X_source{where}", X)
            try:
                X = check_array(X, dtype=np.float64, ensure_min_samples=2)
                y = column_or_1d(y)
            except (TypeError, ValueError) as error:
                reason = shown(str(error), 120)
                raise InputError(f"X_source{where} or y_source{where} cannot be used ({reason})") from error
            if X.shape[1] != p or y.shape != X.shape[:1]:
                raise InputError(
                    f"X_source{where} and y_source{where} have shapes {X.shape} and {y.shape}; allowed: (N, {p}) and (N,)"
                )
            if not np.array_equal(np.unique(y), self.classes_):
                raise InputError(
                    f"y_source{where} holds the classes {shown(np.unique(y).tolist())}; "
                    f"allowed: those of y, {shown(self.classes_.tolist())}"
                )
            rows.append(fit_ridge(X, np.where(y == self.classes_[1], 1.0, -1.0), gamma, moments.small_gram(X)))
        return np.stack(rows)

    def _check_feature_names(self, where: str, source: Any, *, expected: bool = True) -> None:
        """Raise InputError if a source names its features differently from X; scikit-learn reports the differences.

        Args:
            where: name of the source in messages.
            source: samples or coefficients.
            expected: whether to warn of a source without names where X has names.
        """
        named = hasattr(self, "feature_names_in_")
        try:
            probe = BaseEstimator()
            if hasattr(source, "__dataframe__") or hasattr(source, "columns"):
                validate_data(probe, source, skip_check_array=True)
            if hasattr(probe, "feature_names_in_") and named:
                validate_data(self, source, skip_check_array=True, reset=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"{where} cannot be used beside X ({' '.join(str(error).split())})") from error
        if hasattr(probe, "feature_names_in_") and not named:
            warnings.warn(f"{where} has feature names, but X has none to compare with", stacklevel=4)
        elif named and expected and not hasattr(probe, "feature_names_in_"):
            warnings.warn(f"X has feature names, but {where} has none to compare with", stacklevel=4)

    def _cross_validated(self, X, y, W, gamma: float, grid: np.ndarray) -> float:
        """Return the α of the best cross-validated accuracy; the middle one if several are equally good."""
        smallest = int(min((y > 0).sum(), (y < 0).sum()))
        if isinstance(self.cv, Integral) and not 2 <= self.cv <= smallest:
            raise InputError(f"cv = {shown(self.cv)}: must be 2 to {smallest}, the smaller class's size")
        try:
            splits = list(check_cv(self.cv, y, classifier=True).split(X, y))
        except (TypeError, ValueError) as error:
            allowed = "an integer from 2, a splitter or an iterable of splits"
            raise InputError(f"cv = {shown(self.cv)}: must be {allowed}") from error
        right = np.zeros(len(grid))
        for train, test in splits:
            fit = fit_transfer(X[train], y[train], W, gamma)
            target_scores, pulled = X[test] @ fit.target, X[test] @ fit.transferred.sum(0)
            right += ((target_scores + grid[:, None] * pulled) * y[test] > 0).sum(1)
        best = np.flatnonzero(right == right.max())
        return float(grid[best[len(best) // 2]])


def fit_ridge(
    X: Float[Array, "n p"], y: Float[Array, "n"], gamma: float, small: Float[Array, "m m"]
) -> Float[Array, "p"]:
    """Return `ridge_classifier` of checked arguments, given their `small_gram`."""
    n, p = X.shape
    factor = cho_factor(small / n + gamma * np.eye(len(small)), lower=True, overwrite_a=True, check_finite=False)
    return X.T @ cho_solve(factor, y, check_finite=False) / n if n <= p else cho_solve(factor, X.T @ y) / n


def fit_transfer(X: Float[Array, "n p"], y: Float[Array, "n"], W: Float[Array, "K p"], gamma: float) -> TransferFit:
    """Return `transfer_fit` of arguments that are checked already."""
    n, p = X.shape
    small = moments.small_gram(X)
    sample_moments = moments.unchecked_moments(X, y, W, small)
    factor = cho_factor(small / n + gamma * np.eye(len(small)), lower=True, check_finite=False)

    def solve(rhs):
        return cho_solve(factor, rhs, check_finite=False)

    scores = np.column_stack([y, X @ W.T])
    if n <= p:
        B = solve(np.eye(n))
        diagonal, weights = B.diagonal(), B @ scores
    else:
        # B = (I − XQXᵀ/n)/γ moves the n×n inverse to the p×p side.
        diagonal = (1 - (X * solve(X.T).T).sum(1) / n) / gamma
        weights = (scores - X @ solve(X.T @ scores) / n) / gamma
    pulls = X.T @ weights / n
    loo = (weights * y[:, None] / diagonal[:, None]).T
    loo[0] = 1 - loo[0]
    return TransferFit(pulls[:, 0], W - pulls[:, 1:].T, loo, sample_moments)


def _numbers(name: str, value: Any, allowed: str) -> np.ndarray:
    try:
        numbers = np.asarray(value)
        if numbers.dtype.kind not in "iuf":
            raise TypeError
    except (TypeError, ValueError):
        raise InputError(f"{name} = {shown(value)}: must be {allowed}") from None
    if not np.isfinite(numbers).all():
        raise InputError(f"{name} = {shown(value)} holds a NaN or infinite number; allowed: {allowed}")
    return numbers.astype(np.float64)


def checked_grid(name: str, value: Any) -> np.ndarray:
    """Return a flat array of finite numbers, at least one.

    Raises:
        InputError: for any other value.
    """
    grid = _numbers(name, value, "finite numbers, at least one")
    if grid.ndim != 1 or not grid.size:
        raise InputError(f"{name} = {shown(value)}: must be a flat sequence of finite numbers, at least one")
    return grid
