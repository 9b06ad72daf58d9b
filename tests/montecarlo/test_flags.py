"""No flag of JAX that a user may have set changes a draw, a chunk or a store."""

import json
import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zarr

from rmtjax import InputError
from rmtjax.montecarlo import Claim, grid, open_result, real, run
from rmtjax.montecarlo.keys import cell_keys
from rmtjax.montecarlo.store_files import signed

from ..helpers import HOSTILE, flags
from .helpers import BOTH

CELLS = dict(a=[0.0, 0.3])


def _claim():
    """Of new functions, so that no program that is compiled already serves."""

    def draw(key, a):
        """Whole numbers below 2³⁵: the bits themselves."""
        return jnp.sum(jax.random.bits(key, (3,), jnp.uint32) * jnp.array([1.0, 2.0, 4.0])) + 0 * a

    def product(key, a):
        """Return a product that fewer digits, or refused promotion, would change."""
        x = jax.random.normal(key, (1, 9, 9), jnp.float64)
        return jnp.sum(x @ x + jnp.arange(9)) + 0 * a

    return Claim(
        name="bits",
        equation="x",
        source="none",
        params=dict(a=real()),
        law=lambda a: 0 * a,
        samplers=dict(direct=draw, product=product),
        grid=CELLS,
    )


def _product():
    return run(_claim(), trials=40, sampler="product")["mean"].values


def test_the_bits_are_those_that_were_recorded():
    """By version 0.1.0 under the default flags of JAX 0.10: tables and stores of before stay what they are."""
    drawn = run(_claim(), trials=3, seed=5, keep_samples=True)["samples"].values
    assert drawn.tolist() == [
        [[23111205382, 6487855491, 9136723617], [17335591498, 11468106965, 8592233533]],
    ]
    keys = cell_keys(2**32 - 1, "bits:direct", {"a": np.array([0.0, 0.3])})
    assert keys.tolist() == [[575795642, 1159403250], [2890413789, 3034663915]]


@pytest.mark.first(3)
@pytest.mark.parametrize("name", [*HOSTILE, "all"])
def test_a_flag_changes_no_draw(name):
    wanted = _product()
    with flags(HOSTILE if name == "all" else {name: HOSTILE[name]}):
        test_the_bits_are_those_that_were_recorded()
        assert np.array_equal(_product(), wanted)


@pytest.mark.thorough
def test_numbers_do_not_depend_on_memory(monkeypatch):
    """That is, on how many trials are drawn at once, which changes what the generator rbg draws."""
    with flags(HOSTILE):
        wanted = run(BOTH, grid(n=[512], shift=[0.0]), trials=512, sampler="dense")["mean"]
        assert run(BOTH, grid(n=[512], shift=[0.0]), trials=512, sampler="dense", memory=2e5)["mean"].equals(wanted)


def test_a_run_goes_on_under_other_flags(tmp_path):
    whole = run(_claim(), trials=5000, store=tmp_path / "whole")
    with flags(HOSTILE):
        run(_claim(), trials=5000, store=tmp_path / "s")
    (tmp_path / "s/tiles/count/c.0.0").unlink()
    (tmp_path / "s/provenance/zarr.json").unlink()
    assert run(_claim(), trials=5000, store=tmp_path / "s").equals(whole)
    assert open_result(tmp_path / "s").attrs["generator"] == "threefry2x32, partitionable"


def _rewrite(store, change):
    """A store whose description is another, signed as if it had been written so."""
    root = zarr.open_group(store, mode="r+", zarr_format=3)
    about = {key: value for key, value in root.attrs.items() if key != "digest"}
    change(about)
    root.attrs.put(signed(about))


def test_the_generator_is_recorded_and_another_is_refused(tmp_path):
    run(_claim(), trials=10, store=tmp_path / "s")
    _rewrite(tmp_path / "s", lambda about: about.update(generator="rbg"))
    with pytest.raises(InputError, match=r"its generator is 'rbg', here it is 'threefry2x32, partitionable'"):
        run(_claim(), trials=10, store=tmp_path / "s")


def test_a_store_of_before_is_taken_for_the_default_generators(tmp_path, caplog):
    whole = run(_claim(), trials=5000, store=tmp_path / "s")
    _rewrite(tmp_path / "s", lambda about: about.pop("generator"))
    (tmp_path / "s/tiles/count/c.0.0").unlink()
    (tmp_path / "s/provenance/zarr.json").unlink()
    caplog.clear()
    assert run(_claim(), trials=5000, store=tmp_path / "s").equals(whole)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "does not say which generator it was drawn with; it is taken to be threefry2x32" in caplog.text


@pytest.mark.thorough
def test_environment_variables_change_no_sweep():
    """The whole command with every variable set before JAX starts."""
    command = [
        sys.executable, "-m", "rmtjax.cli", "sweep", "bbp-wigner", "--set", "N=1000", "--set", "theta=1.5",
        "--trials", "200", "--json", "-",
    ]  # fmt: skip
    printed = []
    for more in ({}, {name.upper(): str(int(v) if isinstance(v, bool) else v) for name, v in HOSTILE.items()}):
        done = subprocess.run(command, env=os.environ | more, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        printed.append(json.loads(done.stdout)["cells"])
    assert printed[0] == printed[1]
