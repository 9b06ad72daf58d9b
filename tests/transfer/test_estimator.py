"""The α-fine-tuned classifier: scikit-learn's rules, the brute-force formula, the law on its own model, and every error."""

import doctest
import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn
from scipy.sparse import csr_matrix
from scipy.special import ndtr
from sklearn.base import clone
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from rmtjax._errors import InputError
from rmtjax.laws import alpha_ftc
from rmtjax.transfer.estimator import ALPHAS, AlphaTransferClassifier, loo_alpha, ridge_classifier, transfer_fit


@parametrize_with_checks(
    [AlphaTransferClassifier(), AlphaTransferClassifier("loo"), AlphaTransferClassifier("cv", cv=2)]
)
def test_scikit_learn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


def draw(rng, mean, n):
    y = rng.choice([-1.0, 1.0], n)
    return y[:, None] * mean + rng.standard_normal((n, len(mean))), y


def small(n, p, k=1, seed=0):
    rng = np.random.default_rng(seed)
    mean = np.r_[1.0, np.zeros(p - 1)]
    X, y = draw(rng, mean, n)
    return X, y, mean + 0.5 * rng.standard_normal((k, p)) / p**0.5


def brute(X, y, W, alpha, gamma):
    """The formula as it is written, with the p×p inverse; the last part is the paper's αγQw̃ + w."""
    n, p = X.shape
    Q = np.linalg.inv(X.T @ X / n + gamma * np.eye(p))
    return Q @ X.T @ y / n + gamma * Q @ W.T @ np.broadcast_to(alpha, len(W))


@pytest.mark.parametrize(("n", "p"), [(30, 12), (12, 30), (15, 15)])
@pytest.mark.parametrize("k", [1, 3])
def test_coefficients_are_the_formula(n, p, k):
    X, y, W = small(n, p, k)
    alpha = np.linspace(0.3, 1.2, k)
    model = AlphaTransferClassifier(alpha, gamma=0.4, source_coef=W).fit(X, y)
    np.testing.assert_allclose(model.coef_[0], brute(X, y, W, alpha, 0.4), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        model.path([0.0, 2.0]), [brute(X, y, W, 0.0, 0.4), brute(X, y, W, 2.0, 0.4)], rtol=1e-9, atol=1e-12
    )
    assert model.path(np.zeros((5, k))).shape == (5, p)


@pytest.mark.parametrize(("n", "p"), [(30, 12), (12, 30)])
def test_it_is_alpha_source_plus_an_adapter_fitted_to_the_residual(n, p):
    """The paper's definition: a minimises the ridge loss of the labels that α w̃ leaves over."""
    X, y, W = small(n, p)
    a = np.linalg.solve(X.T @ X / n + np.eye(p), X.T @ (y - 0.7 * X @ W[0]) / n)
    np.testing.assert_allclose(AlphaTransferClassifier(0.7, source_coef=W[0]).fit(X, y).coef_[0], 0.7 * W[0] + a)


@pytest.mark.parametrize(("n", "p"), [(25, 10), (10, 25)])
def test_leave_one_out_margins_are_those_of_n_fits(n, p):
    X, y, W = small(n, p, 2)
    gamma = 0.6
    found = transfer_fit(X, y, W, gamma).loo
    for i in range(n):
        rest = np.arange(n) != i
        Q = np.linalg.inv(X[rest].T @ X[rest] / n + gamma * np.eye(p))
        own, pulls = Q @ X[rest].T @ y[rest] / n, gamma * Q @ W.T
        np.testing.assert_allclose(found[:, i], y[i] * np.r_[own @ X[i], X[i] @ pulls], rtol=1e-8, atol=1e-11)


def test_loo_alpha_is_the_best_ratio_and_survives_a_useless_target():
    rng = np.random.default_rng(0)
    c, d = 0.3 + rng.standard_normal(500), 0.8 + rng.standard_normal(500)
    found = loo_alpha(np.stack([c, d]))[0]
    ratio = [(c + a * d).mean() / (c + a * d).std() for a in found * np.array([0.9, 1.0, 1.1])]
    assert ratio[1] == max(ratio)
    worse = loo_alpha(np.stack([c - 1.3, d]))[0]
    # The target's part is kept to a thousandth of the spread, and α is a number.
    assert worse * d.std() / c.std() == pytest.approx(1000, rel=0.01)


def test_cross_validation_on_a_grid_finds_the_better_end():
    X, y, W = small(40, 60, seed=1)
    assert AlphaTransferClassifier("cv", source_coef=W, alphas=[0.0, 1.0, 5.0], cv=4).fit(X, y).alpha_[0] > 0
    hostile = AlphaTransferClassifier("cv", source_coef=-W, alphas=[0.0, 1.0, 5.0], cv=4).fit(X, y)
    assert hostile.alpha_ == [0.0]
    # A splitter is taken too, and every fold's score is that of a separate fit.
    model = AlphaTransferClassifier("cv", source_coef=W, cv=LeaveOneOut(), alphas=[0.5, 3.0]).fit(X, y)
    scores = [
        cross_val_score(AlphaTransferClassifier(a, source_coef=W), X, y, cv=LeaveOneOut()).mean() for a in (0.5, 3.0)
    ]
    assert scores[[0.5, 3.0].index(model.alpha_[0])] == max(scores)


def test_no_source_is_the_plain_ridge_classifier():
    X, y, _ = small(20, 7)
    model = AlphaTransferClassifier(gamma=0.3).fit(X, y)
    np.testing.assert_allclose(model.coef_[0], ridge_classifier(X, y, 0.3))
    np.testing.assert_allclose(model.coef_[0], brute(X, y, np.empty((0, 7)), 0, 0.3))
    assert model.alpha_.shape == (0,) and model.source_coef_.shape == (0, 7)
    assert 0.5 < model.predicted_accuracy()[0] < 1


def test_source_data_are_learnt_by_ridge_one_or_several():
    X, y, _ = small(10, 20)
    sources = [small(n, 20, seed=n)[:2] for n in (15, 40)]
    names = np.array(["no", "yes"])
    one = AlphaTransferClassifier(1.0, source_gamma=2.0).fit(X, y, X_source=sources[0][0], y_source=sources[0][1])
    np.testing.assert_allclose(one.source_coef_, [ridge_classifier(*sources[0], 2.0)])
    labels = names[(y > 0).astype(int)]
    several = AlphaTransferClassifier(1.0, source_gamma=2.0).fit(
        X, labels, X_source=[S for S, _ in sources], y_source=[names[(t > 0).astype(int)] for _, t in sources]
    )
    np.testing.assert_allclose(several.source_coef_, [ridge_classifier(*s, 2.0) for s in sources])
    assert set(several.predict(X)) <= set(names)
    np.testing.assert_array_equal(several.predict(X) == "yes", several.decision_function(X) > 0)


def test_parameters_survive_cloning():
    W = np.ones((2, 5))
    model = AlphaTransferClassifier("loo", gamma=2.0, source_coef=W, alphas=[1.0])
    assert clone(model).get_params()["gamma"] == 2.0 and model.source_coef is W
    assert ALPHAS[0] == 0 and len(ALPHAS) == 82


# --- the model's own data: what the law promises, the estimator delivers ---------------------------------------------

P, N, N_SOURCE = 2000, 1000, 2000
MU, BETA, PERP = 1.5, 0.7, 0.8


@pytest.fixture(scope="module")
def mixture():
    """One target sample of the paper's model, its source classifier, and both means; γ = γ̃ = 1."""
    rng = np.random.default_rng(11)
    mean = np.r_[MU, np.zeros(P - 1)]
    target_mean = np.r_[BETA * MU, PERP, np.zeros(P - 2)]
    w = ridge_classifier(*draw(rng, mean, N_SOURCE), 1.0)
    X, y = draw(rng, target_mean, N)
    return X, y, w, target_mean


def true_accuracy(coefs, mean):
    """Exact accuracy on fresh points, Φ(wᵀμ/‖w‖)."""
    return ndtr(coefs @ mean / np.linalg.norm(coefs, axis=1))


def law_for(n):
    source = alpha_ftc.ridge_source(1.0, P / N_SOURCE, MU, BETA)
    return alpha_ftc.scalars(1.0, P / n, (BETA**2 * MU**2 + PERP**2) ** 0.5, source)


@pytest.mark.thorough
def test_estimated_alpha_is_the_laws(mixture):
    rng = np.random.default_rng(0)
    _, _, w, mean = mixture
    found = [AlphaTransferClassifier(source_coef=w).fit(*draw(rng, mean, N)).alpha_[0] for _ in range(8)]
    # One α scatters by 9 %, from the 4.5 % of b and the 5 % of ‖μ_β‖²; so the mean of eight is within 10 % at three of
    # its standard errors, and w̃, one draw itself, adds its own 3 %.
    assert np.mean(found) == pytest.approx(float(alpha_ftc.optimal_alpha(law_for(N))), rel=0.13)
    assert np.std(found) < 0.2 * np.mean(found)


def test_predicted_accuracy_is_that_of_fresh_points(mixture):
    X, y, w, mean = mixture
    model = AlphaTransferClassifier(source_coef=w).fit(X, y)
    alphas = np.array([0.0, 0.3, 1.0, 3.0])
    reached = true_accuracy(model.path(alphas), mean)
    # The errors of b and ‖μ_β‖² make the largest of the four differ by 0.009 ± 0.006 over draws; at the true
    # parameters only the finite size is left, 0.004 ± 0.002.
    np.testing.assert_allclose(model.predicted_accuracy(alphas), reached, atol=0.027)
    np.testing.assert_allclose(alpha_ftc.accuracy(law_for(N), alphas), reached, atol=0.01)
    # The optimum is flat, so 9 % of α cost next to nothing.
    best = true_accuracy(model.path(np.linspace(0, 5, 501)), mean).max()
    assert true_accuracy(model.coef_, mean)[0] > best - 2e-3


@pytest.mark.parametrize("alpha", ["loo", "cv"])
def test_the_ways_without_the_law_come_near_the_best(mixture, alpha):
    X, y, w, mean = mixture
    rows = slice(0, 400)
    model = AlphaTransferClassifier(alpha, source_coef=w).fit(X[rows], y[rows])
    best = true_accuracy(model.path(np.linspace(0, 20, 501)), mean).max()
    assert true_accuracy(model.coef_, mean)[0] > best - (5e-3 if alpha == "loo" else 3e-2)


def test_statistics_are_near_the_truth(mixture):
    X, y, w, mean = mixture
    found = AlphaTransferClassifier(source_coef=w).fit(X, y).statistics_
    assert found["noise"] == pytest.approx(1, abs=4 * (2 / (N * P)) ** 0.5)
    assert abs(found["mean_norm2_unbiased"] - mean @ mean) < 4 * found["mean_norm2_error"]
    assert abs(found["alignment"][0] - w @ mean) < 4 * np.linalg.norm(w) / N**0.5
    assert found["gram"][0, 0] == pytest.approx(w @ w)
    assert found["scalars"].m0 > 0


def test_three_sources_beat_each_alone(mixture):
    X, y, _, mean = mixture
    rng = np.random.default_rng(5)
    W = mean * [[0.5], [0.3], [0.8]] + rng.standard_normal((3, P)) * [[0.02], [0.03], [0.04]]
    model = AlphaTransferClassifier(source_coef=W).fit(X[:200], y[:200])
    assert model.alpha_.shape == (3,) and model.transferred_coef_.shape == (3, P)
    together = true_accuracy(model.coef_, mean)[0]
    for w in W:
        assert together > true_accuracy(AlphaTransferClassifier(source_coef=w).fit(X[:200], y[:200]).coef_, mean)[0]
    assert model.predicted_accuracy()[0] == pytest.approx(together, abs=0.04)


def test_an_uninformative_source_is_left_aside(mixture):
    X, y, w, mean = mixture
    rng = np.random.default_rng(8)
    noise = rng.standard_normal(P)
    noise -= noise @ mean / (mean @ mean) * mean
    noise *= np.linalg.norm(w) / np.linalg.norm(noise)
    for alpha in ("optimal", "loo"):
        useless = AlphaTransferClassifier(alpha, source_coef=noise).fit(X, y).alpha_[0]
        useful = AlphaTransferClassifier(alpha, source_coef=w).fit(X, y).alpha_[0]
        # b is 0 ± ‖w̃‖/√n, so α* is 0 to about a tenth of what an informative source of that norm gets.
        assert abs(useless) < 0.15 * useful


# --- what cannot be used is named -------------------------------------------------------------------------------------

X0, Y0, W0 = small(10, 4)


def refused(message, fit_with=None, y=Y0, **parameters):
    with pytest.raises(InputError, match=message) as error:
        AlphaTransferClassifier(**parameters).fit(X0, y, **(fit_with or {}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["gamma", "source_gamma"])
@pytest.mark.parametrize("value", [0, -1.0, np.nan, np.inf, "1", None, True])
def test_ridge_parameters(name, value):
    refused(rf"^{name} = .*: must be a finite number > 0$", **{name: value})


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"alpha": "optimum"}, "alpha 'optimum' is unknown; did you mean 'optimal'"),
        ({"alpha": np.nan}, "alpha = nan holds a NaN"),
        ({"alpha": None}, "alpha = None: must be "),
        ({"alpha": [1.0, 2.0], "source_coef": W0}, r"alpha = \[1.0, 2.0\] has shape \(2,\); allowed: 1 number"),
        ({"alpha": [1.0]}, "allowed: 0 number"),
        ({"alphas": []}, "alphas = .* at least one"),
        ({"alphas": [0.0, np.inf]}, "alphas = .* infinite"),
        ({"alphas": ["a"]}, "alphas = .*: must be "),
        ({"source_coef": np.ones(3)}, r"source_coef has shape \(3,\); allowed: \(4,\)"),
        ({"source_coef": [np.nan, 0, 0, 0]}, "source_coef has an entry nan: all must be finite"),
        ({"source_coef": [[np.inf, 0, 0, 0]]}, "source_coef has an entry inf: all must be finite"),
        ({"source_coef": "weights"}, "source_coef = 'weights': must be an array of numbers"),
        ({"alpha": "cv", "cv": 1, "source_coef": W0}, "cv = 1: must be "),
        ({"alpha": "cv", "cv": 9, "source_coef": W0}, "cv = 9: must be 2 to"),
        ({"alpha": "cv", "cv": "five", "source_coef": W0}, "cv = 'five': must be "),
    ],
)
def test_parameters(parameters, said):
    refused(said, **parameters)


@pytest.mark.parametrize(
    ("y", "said"), [(np.ones(10), r"holds 1 class"), (np.arange(10) % 3, r"\[0, 1, 2\]; allowed: two")]
)
def test_labels(y, said):
    refused(said, y=y)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"X_source": X0}, "X_source is given and y_source = None"),
        ({"y_source": Y0}, "y_source is given and X_source = None"),
        ({"X_source": X0, "y_source": Y0[:5]}, r"shapes \(10, 4\) and \(5,\)"),
        ({"X_source": X0[:, :3], "y_source": Y0}, r"allowed: \(N, 4\)"),
        ({"X_source": X0 * np.nan, "y_source": Y0}, "X_source or y_source cannot be used .*NaN"),
        ({"X_source": csr_matrix(X0), "y_source": Y0}, "X_source or y_source cannot be used .*[Ss]parse"),
        ({"X_source": X0, "y_source": 2 * Y0}, r"y_source holds the classes \[-2.0, 2.0\]; allowed: those of y"),
        ({"X_source": X0, "y_source": np.ones(10)}, "y_source holds the classes"),
        ({"X_source": [X0, X0], "y_source": [Y0, 2 * Y0]}, r"y_source\[1\] holds the classes"),
        ({"X_source": [X0, X0], "y_source": [Y0]}, "X_source holds 2 data sets and y_source 1"),
        ({"X_source": [X0, X0], "y_source": Y0}, "X_source holds 2 data sets and y_source 'ndarray'"),
        ({"X_source": [], "y_source": []}, "X_source holds 0 data sets"),
    ],
)
def test_source_data(source, said):
    refused(said, source)


# --- names of features ------------------------------------------------------------------------------------------------

NAMES = list("abcd")
X1, Y1, _ = small(30, 4, seed=1)
FRAME0, FRAME1 = pd.DataFrame(X0, columns=NAMES), pd.DataFrame(X1, columns=NAMES)
COEF = pd.Series(W0[0], NAMES)
ROWS = pd.DataFrame([W0[0], 2 * W0[0]], columns=NAMES)
ORDER, OTHER = list("badc"), {"d": "e"}


def renamed(source, change):
    """The same numbers under other names, or the same columns in another order."""
    if isinstance(source, list | tuple):
        return type(source)([*source[:-1], renamed(source[-1], change)])
    if isinstance(source, pd.Series):
        return source[change] if isinstance(change, list) else source.rename(change)
    if isinstance(source, pd.DataFrame):
        return source[change] if isinstance(change, list) else source.rename(columns=change)
    return source[change] if isinstance(change, list) else source.rename(change)


NAMED_SOURCES = {
    "frame": ({}, {"X_source": FRAME1, "y_source": Y1}),
    "list": ({}, {"X_source": [FRAME0, FRAME1], "y_source": [Y0, Y1]}),
    "tuple": ({}, {"X_source": (FRAME0, FRAME1), "y_source": (Y0, Y1)}),
    "polars": ({}, {"X_source": None, "y_source": Y1}),
    "series of coefficients": ({"source_coef": COEF}, {}),
    "frame of coefficients": ({"source_coef": ROWS}, {}),
    "list of coefficients": ({"source_coef": [COEF, 2 * COEF]}, {}),
    "tuple of coefficients": ({"source_coef": (COEF, 2 * COEF)}, {}),
}


def named_source(kind):
    parameters, source = NAMED_SOURCES[kind]
    if kind == "polars":
        source = {**source, "X_source": pytest.importorskip("polars").DataFrame(X1, NAMES)}
    return parameters, source


def _numbers_alone(value):
    if isinstance(value, list | tuple):
        return [np.asarray(part) for part in value]
    return np.asarray(value)


@pytest.mark.parametrize("kind", NAMED_SOURCES)
def test_names_of_features_are_those_of_the_target(kind):
    parameters, source = named_source(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = AlphaTransferClassifier(**parameters).fit(FRAME0, Y0, **source)
        plain = {name: _numbers_alone(value) for name, value in {**parameters, **source}.items()}
        coef = {"source_coef": plain.pop("source_coef")} if parameters else {}
        expected = AlphaTransferClassifier(**coef).fit(X0, Y0, **plain)
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-9)
    assert found.feature_names_in_.tolist() == NAMES


@pytest.mark.parametrize("kind", NAMED_SOURCES)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (ORDER, "must be in the same order"),
        (OTHER, "unseen at fit time: - e Feature names seen at fit time, yet now missing: - d"),
        ({"d": 4}, "only supported if all input features have string names"),
    ],
    ids=["order", "names", "mixed"],
)
def test_other_names_of_features_are_refused(kind, change, said):
    parameters, source = named_source(kind)
    if kind == "polars" and change == {"d": 4}:
        pytest.skip("its names are strings")
    changed = {name: renamed(value, change) for name, value in {**parameters, **source}.items() if name != "y_source"}
    where = "source_coef" if parameters else "X_source"
    where += r"\[1\]" if isinstance(changed[where], list | tuple) else ""
    coef = {"source_coef": changed.pop("source_coef")} if parameters else {}
    with pytest.raises(InputError, match=f"^{where} cannot be used beside X .*{said}") as error:
        AlphaTransferClassifier(**coef).fit(FRAME0, Y0, **{**source, **changed})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [ORDER, OTHER])
def test_other_names_are_refused_at_predict_by_scikit_learn(change):
    model = AlphaTransferClassifier(source_coef=COEF).fit(FRAME0, Y0)
    with pytest.raises(ValueError, match="The feature names should match those that were passed during fit"):
        model.predict(renamed(FRAME1, change))


def test_names_on_one_side_are_said():
    with pytest.warns(UserWarning, match=r"X has feature names, but X_source\[1\] has none"):
        AlphaTransferClassifier().fit(FRAME0, Y0, X_source=[FRAME1, X1], y_source=[Y1, Y1])
    with pytest.warns(UserWarning, match="X_source has feature names, but X has none"):
        AlphaTransferClassifier().fit(X0, Y0, X_source=FRAME1, y_source=Y1)
    with pytest.warns(UserWarning, match="source_coef has feature names, but X has none"):
        AlphaTransferClassifier(source_coef=COEF).fit(X0, Y0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AlphaTransferClassifier(source_coef=W0).fit(FRAME0, Y0)  # what scikit-learn's coef_ is
        AlphaTransferClassifier(source_coef=pd.Series(W0[0])).fit(FRAME0, Y0)  # numbered, not named


@pytest.mark.parametrize("kind", [tuple, list])
def test_several_sources_go_through_a_pipeline(kind):
    """A tuple of sources is scaled as the target is; without the request, or as a list, nothing is scaled silently."""
    with sklearn.config_context(enable_metadata_routing=True):
        last = AlphaTransferClassifier().set_fit_request(X_source=True, y_source=True)
        model = Pipeline([("scale", StandardScaler()), ("transfer", last)], transform_input=["X_source"])
        sources = {"X_source": kind((X1, 3 + X1)), "y_source": kind((Y1, Y1))}
        if kind is list:  # the pipeline takes it for one array
            with pytest.raises(ValueError, match="dim 3"):
                model.fit(X0, Y0, **sources)
            return
        found = model.fit(X0, Y0, **sources)["transfer"]
    scale = StandardScaler().fit(X0)
    parts = [scale.transform(X1), scale.transform(3 + X1)]
    expected = AlphaTransferClassifier().fit(scale.transform(X0), Y0, X_source=parts, y_source=(Y1, Y1))
    np.testing.assert_array_equal(found.coef_, expected.coef_)
    np.testing.assert_array_equal(found.source_coef_, expected.source_coef_)


def test_the_examples_of_the_docstring():
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(AlphaTransferClassifier, globs={"AlphaTransferClassifier": AlphaTransferClassifier})
    assert len(example.examples) >= 8 and doctest.DocTestRunner().run(example).failed == 0


def test_source_twice():
    refused("source_coef and X_source are both given", {"X_source": X0, "y_source": Y0}, source_coef=W0)


def test_target_data():
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        AlphaTransferClassifier().fit(csr_matrix(X0), Y0)
    with pytest.raises(ValueError, match="NaN"):
        AlphaTransferClassifier().fit(np.where(X0 > 1, np.nan, X0), Y0)


@pytest.mark.parametrize("alphas", [[], [[1.0, 2.0]], [np.nan], 1.0, "many"])
def test_path_of_bad_alphas(alphas):
    model = AlphaTransferClassifier(source_coef=W0).fit(X0, Y0)
    for method in (model.path, model.predicted_accuracy):
        with pytest.raises(InputError, match="alphas"):
            method(alphas)


def test_functions_check_too():
    with pytest.raises(InputError, match="gamma = 0"):
        transfer_fit(X0, Y0, W0, 0)
    with pytest.raises(InputError, match="W has shape"):
        transfer_fit(X0, Y0, np.ones(3), 1.0)
    with pytest.raises(InputError, match="gamma = -1"):
        ridge_classifier(X0, Y0, -1)
