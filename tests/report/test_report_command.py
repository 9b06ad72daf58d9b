"""`rmtjax report` and the page of `verify --out`, as a user meets them."""

import pytest

LAW = r"""
import jax, jax.numpy as jnp
from rmtjax import Claim, positive, size

mean = Claim(
    name="mean", equation=r"E\bar x = \mu", source="mine",
    params=dict(n=size(), mu=positive()),
    law=lambda n, mu: 0.5 + mu + 0 * n,
    samplers=dict(direct=lambda key, n, mu: mu + jax.random.normal(key) / jnp.sqrt(n)),
    grid=dict(n=[1, 100], mu=[1.0, 2.0]),
    bias_bound=lambda n, mu: 0.5 + 0 * mu,
)
"""


@pytest.fixture
def run(command):
    """The command line."""
    return command


@pytest.fixture
def law(tmp_path):
    path = tmp_path / "mylaw.py"
    path.write_text(LAW)
    return path


def test_a_page_of_stores(run, law, tmp_path):
    stores = [tmp_path / "one.zarr", tmp_path / "two.zarr"]
    for seed, store in enumerate(stores):
        assert run("sweep", law, "--trials", 300, "--seed", seed, "--out", store)[0] == 0
    status, out, _ = run("report", *stores, "--out", tmp_path / "page")
    assert status == 0
    path = tmp_path / "page/report.html"
    assert out.startswith(f"wrote {path} (0.")
    assert out.endswith(" MB)\n")
    html = path.read_text("utf-8")
    assert html.count('class="claim"') == 2
    assert all(str(store) in html for store in stores)
    assert "was not at hand" in html
    # The claim states how far its law is off, which the store does not.
    assert "0 of 2 claims hold" in html
    assert run("report", *stores, "--claim", law, "--out", tmp_path / "page")[0] == 0
    html = path.read_text("utf-8")
    assert "2 of 2 claims hold" in html
    assert "was not at hand" not in html


def test_a_page_of_a_verdict(run, law, tmp_path):
    status, _, _ = run("verify", law, "--trials", 300, "--out", tmp_path / "page")
    assert status == 0
    html = (tmp_path / "page/report.html").read_text("utf-8")
    assert "1 of 1 claims hold" in html


def test_what_is_no_store(run, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("mine")
    for store, says in ((tmp_path / "none.zarr", "does not exist"), (tmp_path / "folder", "is not a run of rmtjax")):
        status, out, err = run("report", store, "--out", tmp_path / "page")
        assert status == 2
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert says in err
        assert not out
    assert not (tmp_path / "page").exists()
    assert run("report", tmp_path / "none.zarr", "--level", "2", "--out", tmp_path / "page")[0] == 2
