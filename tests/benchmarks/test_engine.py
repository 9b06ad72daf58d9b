"""`benchmarks/engine.py`, small: what it measures is what it says."""

import pytest

from benchmarks import engine


@pytest.mark.thorough
def test_storing(tmp_path):
    found = engine.storing(4096, 1, tmp_path)
    assert found["bytes"] > 1000 and found["over_plain"] > 0 and not (tmp_path / "s").exists()


def test_resuming(tmp_path):
    found = engine.resuming(40, 2, tmp_path)
    assert found["chunks"] == 40 and len(found["ready"]["times_s"]) == 2
    assert len(list((tmp_path / "many/tiles/count").glob("c.*"))) == 40


@pytest.mark.thorough
def test_starting(tmp_path):
    found = engine.starting("doctor --json -", 1, tmp_path)
    assert found["again_over_import_jax"] > 0 and found["first_s"] > 0


@pytest.mark.thorough
def test_devices():
    found = engine.devices([1, 3], 2048, 1)
    assert (found["cells"], found["trials_per_cell"]) == (40, 2048)
    assert found["over_one_device"][1] == 1 and set(found["devices"]) == {1, 3}
    for row in found["devices"].values():
        assert 0 < row["compile_s"]["median_s"] < row["to_draw_s"]["median_s"] < row["total_s"]["median_s"]
