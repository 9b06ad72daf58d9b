"""Keys that the package makes, and what draws from them, are not subject to JAX's flags."""

import re
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rmtjax
from rmtjax._random import fixed_normal, key_of, pinned, wrapped
from rmtjax.adapters import apply_adapters
from rmtjax.ensembles.haar import orthogonal
from rmtjax.linalg.svd import svd
from rmtjax.models import load_classifier
from rmtjax.spectra.esd_test import esd_test

from .finetune.helpers import write_base
from .helpers import GENERATORS, HOSTILE, flags


@pytest.mark.parametrize("seed", [0, 5, 2**31, 2**32 - 1, 2**40 + 3, -1, -(2**40), np.int64(7)])
def test_keys_are_those_of_jax(seed):
    """In double precision, where JAX takes a seed's 64 bits."""
    with jax.enable_x64(True):
        wanted = jax.random.key_data(jax.random.key(seed))
    with flags({k: v for k, v in HOSTILE.items() if k not in ("jax_enable_x64", "jax_disable_jit")}):
        key = key_of(seed)
        assert np.array_equal(jax.random.key_data(key), wanted)
        assert str(jax.random.key_impl(key)) == "threefry2x32"
        assert np.array_equal(jax.random.key_data(wrapped(wanted)), wanted)


def test_a_traced_seed_is_a_seed():
    traced = jax.jit(lambda step: jax.random.key_data(key_of(step)))(jnp.int32(5))
    assert np.array_equal(traced, jax.random.key_data(jax.random.key(5)))


def _drawn():
    """Of seeds alone, by every part of the package that makes a key of one."""
    matrix = np.random.default_rng(0).normal(size=(60, 40)).astype(np.float32)
    low = (matrix[:, :3] @ matrix[:3]).astype(np.float64)
    return {
        "fixed": fixed_normal(3, (7,), jnp.float32),
        "traced": jax.jit(lambda step: fixed_normal(step, (7,), jnp.float32))(np.int32(3)),
        "randomized": svd(matrix, algorithm="randomized", k=3, key=key_of(2**40 + 1)).S,
        "completed": svd(low, algorithm="gram").U,
        "test": esd_test(np.linspace(-2, 2, 30), draws=19).null,
    }


@pytest.mark.thorough
@pytest.mark.parametrize("names", [*((name,) for name in GENERATORS), GENERATORS])
def test_flags_change_nothing_that_follows_from_seeds(names, tmp_path):
    base = write_base(tmp_path)

    def model():
        weights = {}
        for method in ("lora", "orthogonal"):
            classifier, _ = load_classifier(base, 2, seed=3)
            apply_adapters(classifier, method, rank=2, seed=2**32 + 5)
            leaves = jax.tree.leaves(nnx.state(classifier))
            weights |= {f"{method}: weight {i}": x for i, x in enumerate(leaves)}
        return weights

    wanted = _drawn() | model()
    jax.clear_caches()
    with flags({name: HOSTILE[name] for name in names}):
        found = _drawn() | model()
    for part, x in wanted.items():
        assert np.array_equal(np.asarray(x), np.asarray(found[part])), part


def test_a_users_key_keeps_the_users_generator():
    with flags({"jax_default_prng_impl": "rbg"}):
        theirs = jax.random.key(0)
        assert str(jax.random.key_impl(theirs)) == "rbg"
        one = orthogonal(theirs, 8)
    assert not np.array_equal(one, orthogonal(jax.random.key(0), 8))


def test_only_this_thread_is_pinned():
    seen = []
    with flags({"jax_default_prng_impl": "rbg"}), pinned():
        other = threading.Thread(target=lambda: seen.append(str(jax.random.key_impl(jax.random.key(0)))))
        other.start()
        other.join()
        assert str(jax.random.key_impl(jax.random.key(0))) == "threefry2x32"
        assert seen == ["rbg"]


def test_keys_are_made_in_one_place():
    """A key made of a seed elsewhere in the package would follow the user's flags."""
    making = re.compile(r"(?<!`)jax\.random\.(key|PRNGKey|wrap_key_data)\(")
    root = Path(rmtjax.__file__).parent
    others = {
        str(file.relative_to(root))
        for file in root.rglob("*.py")
        if any(
            making.search(line.partition("#")[0])
            for line in file.read_text(encoding="utf-8").splitlines()
            if not line.lstrip().startswith(">>>")  # examples are the user's code
        )
    }
    assert others <= {"_random.py", "spectra/esd_test.py"}  # in the latter's docstring
