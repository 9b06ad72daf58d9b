"""Means, scans and training steps are those that were recorded before the house was rebuilt (`tests/oracles/golden.py`).

The record is compared up to rounding here, since the last bits depend on the processor; the script compares them to the bit.
"""

import json

import jax
import numpy as np
import pytest

from tests.oracles.golden import RECORD, parts

pytestmark = pytest.mark.golden
PARTS = dict(parts())


def assert_close(value, recorded, where):
    """Two values of JSON are the same, and their numbers up to rounding."""
    if isinstance(recorded, dict):
        assert value.keys() == recorded.keys(), where
        for key in recorded:
            assert_close(value[key], recorded[key], f"{where}: {key}")
    elif isinstance(recorded, list):
        assert len(value) == len(recorded), where
        for one, other in zip(value, recorded, strict=True):
            assert_close(one, other, where)
    elif (isinstance(recorded, str) and "0x" in recorded) or recorded in ("nan", "inf", "-inf"):
        np.testing.assert_allclose(float.fromhex(value), float.fromhex(recorded), rtol=1e-5, atol=1e-7, err_msg=where)
    elif isinstance(recorded, float):
        np.testing.assert_allclose(value, recorded, rtol=1e-3, atol=1e-4, err_msg=where)
    else:
        assert value == recorded, where


@pytest.fixture(autouse=True)
def free_programs():
    yield
    jax.clear_caches()


def test_every_part_is_recorded():
    assert json.loads(RECORD.read_text(encoding="utf-8"))["parts"].keys() == PARTS.keys()


@pytest.mark.parametrize("name", PARTS)
def test_numbers_are_those_recorded(name):
    assert_close(PARTS[name](), json.loads(RECORD.read_text(encoding="utf-8"))["parts"][name], name)
