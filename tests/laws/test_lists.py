"""Every public function of the laws takes Python lists and tuples where it takes arrays, with the same answer."""

import importlib
import inspect
import pkgutil

import jax
import numpy as np
import pytest

import rmtjax.laws
from rmtjax import InputError
from rmtjax.laws import marchenko_pastur, perturbation, semicircle, spikes
from rmtjax.laws.alpha_ftc import SourceStatistics, scalars

VALUES = dict(
    x=[0.5, 1.0], q=[0.2, 0.7], p=[0.2, 0.7], z=[3.0, 4.0 + 1j], m=[0.1, 0.2], w=[0.1, 0.2], c=[0.3, 0.5],
    sigma=[1.0, 1.25], gamma=[1.0, 2.0], eta=[0.5, 0.25], mean_norm=[1.0, 2.0], norm=[1.0, 2.0], beta=[1.0, 2.0],
    theta=[1.5, 2.0], outlier=[2.5, 3.0], ell=[3.0, 4.0], cosine=[0.5, 0.25], eps=[0.4, 0.5], N=[40, 50], n=[40, 50],
    alpha=[0.5, 1.0], delta=[0.1, 0.2], y=[1.0, 2.0], mu=[1.0, 2.0], probability=[0.4, 0.5], values=[1.0, 2.0, 4.0],
    left=[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], right=[[1.0, 0.6], [0.0, 0.8], [0.0, 0.0]], Delta=[[0.1, 0.2], [0.2, 0.3]],
    base=[[1.0, 0.5], [0.5, 3.0]], mean=[1.0, 0.0, 2.0], old=[1.0, 2.0, 4.0], new=[1.5, 2.5, 5.0],
    scales=[1.0, 0.5, 1.5],
)  # fmt: skip
"""Of an argument by its name; those of a single function's own are below."""

OWN = {
    "alpha_ftc.covariance_scalars": dict(
        sigma=[1.0, 2.0, 3.0],
        source_sigma=[[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]],
        n=3.0,
        gamma=1.0,
        source_mean=[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]],
        N=[3.0, 4.0],
        source_gamma=[1.0, 2.0],
    ),
    "alpha_ftc.covariance_scalars_for_coef": dict(
        sigma=[1.0, 2.0, 3.0], n=3.0, gamma=1.0, source_coef=[[0.0, 1.0, 0.0]]
    ),
    "alpha_ftc.resolvent_equivalent": dict(gamma=1.0, eta=0.5),
    "intruders.rectangular_overlap_profile": dict(c=[0.3, 0.5], s=[0.5, 1.0]),
    "intruders.rectangular_intruder_probability": dict(m=[50, 60]),
    "intruders.rectangular_intruder_threshold": dict(m=[50, 60]),
    "marchenko_pastur.stieltjes": dict(z=[15.0, 16.0 + 1j]),
    "perturbation.overlap": dict(new=[1.0, 2.0, 4.0], old=[1.5, 2.5, 5.0], delta=0.5, sigma=1.0),
    "perturbation.rotation": dict(delta=[[0.1], [0.2]]),
    "perturbation.breakdown_delta": dict(N=[100.0, 200.0]),
    "perturbation.singular_rotation": dict(delta=[[0.1], [0.2]], n=3, m=4),
    "rescaled_rows.companion_transform": dict(z=[30.0, 40.0]),
    "spikes.update_strengths": dict(theta=[1.0, -2.0]),
}
"""Arguments of functions with special needs."""


def _functions():
    """Yield all of them as parameters of a test, those of a package under the package's name."""
    tried = []
    for module in pkgutil.walk_packages(rmtjax.laws.__path__, "rmtjax.laws."):
        if any(part.startswith("_") for part in module.name.split(".")) or module.name.startswith(tuple(tried)):
            continue
        owner = importlib.import_module(module.name)
        if module.ispkg and hasattr(owner, "__all__"):
            tried.append(f"{module.name}.")
        for name in getattr(owner, "__all__", ()):
            function = getattr(owner, name)
            if inspect.isfunction(function):
                yield pytest.param(function, id=f"{module.name.split('.')[-1]}.{name}")


def _arguments(label, function):
    own = OWN.get(label, {})
    arguments = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name in own or name in VALUES:
            arguments[name] = own.get(name, VALUES.get(name))
        elif name == "k":
            arguments[name] = 2
        elif name == "source":
            arguments[name] = SourceStatistics([1.0, 2.0], [0.5, 0.25])
        elif name == "law":
            arguments[name] = scalars(1.0, 0.5, 1.0, SourceStatistics(1.0, 0.5))
        elif parameter.default is inspect.Parameter.empty:
            raise AssertionError(f"{label}: say above what {name} may be")
    if label.startswith("tracy_widom"):
        arguments["beta"] = 2
    return arguments


@pytest.mark.thorough
@pytest.mark.parametrize("function", list(_functions()))
def test_lists_are_arrays(function, request):
    arguments = _arguments(request.node.callspec.id, function)
    lists = {name: v for name, v in arguments.items() if isinstance(v, list)}
    tuples = {name: tuple(tuple(row) if isinstance(row, list) else row for row in v) for name, v in lists.items()}
    wanted = _leaves(function(**{**arguments, **{name: np.asarray(v) for name, v in lists.items()}}))
    for given in (lists, tuples):
        for one, other in zip(_leaves(function(**{**arguments, **given})), wanted, strict=True):
            assert one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
            assert not np.isnan(one).all()


def _leaves(answer):
    return [np.asarray(x) for x in jax.tree.leaves(answer)]


def test_every_function_of_the_laws_is_tried():
    """The enumeration above finds them, and hardly any takes no array at all."""
    labels = [parameter.id for parameter in _functions()]
    assert len(labels) >= 80
    without = [p.id for p in _functions() if not any(isinstance(v, list) for v in _arguments(p.id, *p.values).values())]
    assert all(label.startswith(("tracy_widom", "alpha_ftc")) for label in without)


def test_named_tuples_of_lists():
    wanted = scalars(np.array([1.0, 2.0]), 0.5, 1.0, SourceStatistics(np.array([1.0, 2.0]), np.array([0.5, 0.25])))
    for one, other in zip(scalars([1, 2], 0.5, 1, SourceStatistics([1, 2], [0.5, 0.25])), wanted, strict=True):
        assert np.array_equal(one, other)


def test_a_base_in_parts_is_not_taken_for_a_matrix():
    values, vectors, Delta = [1.0, 3.0], [[1.0, 0.0], [0.0, 1.0]], [[0.1, 0.2], [0.2, 0.3]]
    wanted = perturbation.first_order_eigenvalues((np.array(values), np.array(vectors)), np.array(Delta))
    for base in ((values, vectors), [values, vectors], (np.array(values), vectors)):
        assert np.array_equal(perturbation.first_order_eigenvalues(base, Delta), wanted)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: semicircle.pdf([[1.0], [1.0, 2.0]]), r"x = \[\[1.0\], \[1.0, 2.0\]\]: must be a number or an array"),
        (lambda: semicircle.stieltjes(["a"]), r"z = \['a'\]: must be a number or an array"),
        (lambda: marchenko_pastur.pdf(1.0, ["b", 1.0]), r"c = \['b', 1.0\]: must be"),
        (lambda: spikes.wigner_outlier([None]), r"theta = \[None\]: must be"),
        (lambda: semicircle.pdf([1.0], sigma=[1.0, 0.0]), r"sigma = 0: must be a finite number > 0"),
    ],
)
def test_lists_that_are_no_arrays_are_named(call, says):
    with pytest.raises(InputError, match=says):
        call()


def test_lists_of_traced_numbers():
    slope = jax.grad(lambda t: semicircle.pdf([t, 2 * t])[1])(0.25)
    assert np.isclose(slope, 2 * jax.grad(semicircle.pdf)(0.5), rtol=1e-6)
