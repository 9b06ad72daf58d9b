"""`benchmarks/engine.py`, small: what it measures is what it says."""

import importlib

import pytest

from rmtjax.montecarlo import plan


@pytest.fixture
def engine(monkeypatch):
    """The module, and the plan's constants as they were afterwards."""
    for name in ("_CHUNKS", "_SHORT"):
        monkeypatch.setattr(plan, name, getattr(plan, name))
    return importlib.import_module("benchmarks.engine")


def test_storing(engine, tmp_path):
    found = engine.storing(4096, 1, tmp_path)
    assert found["bytes"] > 1000 and found["over_plain"] > 0 and not (tmp_path / "s").exists()


def test_resuming(engine, tmp_path):
    found = engine.resuming(40, 2, tmp_path)
    assert found["chunks"] == 40 and len(found["ready"]["times_s"]) == 2
    assert len(list((tmp_path / "many/tiles/count").glob("c.*"))) == 40
