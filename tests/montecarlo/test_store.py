import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from rmtjax import InputError
from rmtjax.montecarlo import grid, open_result, run
from rmtjax.montecarlo import plan as plan_module
from rmtjax.montecarlo import program as program_module
from rmtjax.montecarlo.store import Store

from .helpers import MEAN, TWO

CELLS = dict(n=[1, 2, 3], shift=[0.0, 1.0])


def _files(store):
    """Every file of a store but the record of who made it when."""
    return {
        str(f.relative_to(store)): f.read_bytes()
        for f in sorted(store.rglob("*"))
        if f.is_file() and f.relative_to(store).parts[0] != "provenance"
    }


def _slow_run(path):
    """Hundreds of chunks, one tile a call, so that a kill lands between them."""
    plan_module._CHUNKS, plan_module._SHORT = 10_000, 10_000
    program_module._CAPACITY = 1
    run(MEAN, grid(**CELLS), trials=40_000, store=path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The store of a run that nobody killed."""
    path = tmp_path_factory.mktemp("store") / "whole"
    process = multiprocessing.get_context("spawn").Process(target=_slow_run, args=(path,))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    return path


def _chunks(path):
    return [f for f in (path / "tiles/count").glob("c.*") if not f.name.endswith(".partial")]


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, undisturbed):
    path = tmp_path / "killed"
    context = multiprocessing.get_context("spawn")
    wanted = len(_chunks(undisturbed))
    assert wanted == 240
    cut = 0
    for share in (0.2, 0.5):
        process = context.Process(target=_slow_run, args=(path,))
        process.start()
        for _ in range(30_000):
            if len(_chunks(path)) > share * wanted or not process.is_alive():
                break
            time.sleep(0.002)
        alive = process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        cut += alive and not (path / "result").exists()
    assert cut > 0, "no kill came before the end; the test proves nothing"
    found = open_result(path)
    assert found.attrs["unfinished"] == 1 and found.attrs["seed"] == 0
    assert 0.2 * wanted * 1000 < found["trials"].sum() < 240_000
    process = context.Process(target=_slow_run, args=(path,))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    # A kill may leave a half-written file under a temporary name, never under its own.
    killed = {k: v for k, v in _files(path).items() if not k.endswith(".partial")}
    assert killed == _files(undisturbed)


def test_a_store_can_be_read_while_it_is_written(tmp_path, monkeypatch):
    """What is there is right; cells without a trial are no numbers."""
    monkeypatch.setattr(plan_module, "_SHORT", 10_000)
    seen = []
    write = Store.write

    def watched(self, chunk, values):
        write(self, chunk, values)
        seen.append((chunk, open_result(tmp_path / "s")))

    monkeypatch.setattr(Store, "write", watched)
    whole = run(MEAN, grid(**CELLS), trials=3000, store=tmp_path / "s")
    assert len(seen) == 18
    blocks = np.zeros(6)
    for chunk, found in seen:
        blocks[chunk // 3] += 1
        trials = found["trials"].values.ravel()
        assert (np.ceil(trials / 1024) == blocks).all()
        assert (np.isfinite(found["mean"]).squeeze() == (found["trials"] > 0)).all()
        assert found["law"].equals(whole["law"])
        assert found.attrs["equation"] == MEAN.equation
        done = found["trials"] == 3000
        for name in ("mean", "se", "z", "min", "max"):
            assert whole[name].where(done).equals(found[name].where(done))
        assert found["shift"].attrs["long_name"] == "mean"
    assert whole.equals(open_result(tmp_path / "s"))
    assert "unfinished" not in open_result(tmp_path / "s").attrs


def test_a_store_without_a_chunk_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(MEAN, trials=10, store=tmp_path / "s")
    with pytest.raises(InputError, match="holds no chunk yet"):
        open_result(tmp_path / "s")


def test_a_finished_store_is_read_not_drawn_again(tmp_path):
    first = run(TWO, trials=500, store=tmp_path / "s")
    before = _files(tmp_path / "s")
    second = run(TWO, trials=500, store=tmp_path / "s")
    assert first.equals(second)
    assert second.attrs["compile_s"] == 0
    assert _files(tmp_path / "s") == before
    opened = open_result(tmp_path / "s")
    assert opened.equals(first)
    assert opened.attrs["seed"] == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(seed=1), "its seed is 0, here it is 1"),
        (dict(trials=501), "its trials is 500, here it is 501"),
        (dict(cells=grid(n=[1.0, 3.0], x=[0.0, 1.0])), "its grid is"),
        (dict(histogram=[0.0, 1.0]), "its statistics is"),
        (dict(claim=MEAN, cells=None), "its claim is 'characteristic-function', here it is 'mean'"),
    ],
)
def test_a_store_of_another_run_is_refused_and_kept(tmp_path, change, says):
    base = dict(claim=TWO, cells=grid(n=[1.0, 2.0], x=[0.0, 1.0]), trials=500, seed=0, store=tmp_path / "s")
    run(**base)
    before = _files(tmp_path / "s")
    with pytest.raises(InputError, match=says):
        run(**{**base, **change})
    assert _files(tmp_path / "s") == before


def test_what_is_not_a_store_is_refused_and_kept(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(InputError, match="is not a run of rmtjax: it is a file"):
        run(MEAN, trials=10, store=file)
    assert file.read_text() == "mine"
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="is not a run of rmtjax"):
        run(MEAN, trials=10, store=folder)
    assert [f.name for f in folder.iterdir()] == ["thesis.tex"]
    import zarr

    zarr.create_group(tmp_path / "other", attributes={"format": "something else"})
    with pytest.raises(InputError, match="its format is 'something else'"):
        run(MEAN, trials=10, store=tmp_path / "other")


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_chunk_is_named(tmp_path, damage):
    path = tmp_path / "s"
    run(MEAN, trials=5000, store=path)
    chunk = next(f for f in sorted((path / "tiles/moments").glob("c.*")))
    data = bytearray(chunk.read_bytes())
    if damage == "truncate":
        chunk.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        chunk.write_bytes(data)
    else:
        chunk.write_bytes(b"")
    with pytest.raises(InputError, match=r"is damaged: a chunk of tiles/moments cannot be read"):
        run(MEAN, trials=5000, store=path)


def test_a_damaged_root_is_named(tmp_path):
    path = tmp_path / "s"
    run(MEAN, trials=10, store=path)
    (path / "zarr.json").write_text((path / "zarr.json").read_text()[:40])
    with pytest.raises(InputError, match=r"zarr\.json cannot be read"):
        run(MEAN, trials=10, store=path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        run(MEAN, trials=10, store=tmp_path / "file" / "s")


def test_a_run_that_cannot_be_leaves_no_store(tmp_path):
    from rmtjax.montecarlo import Claim

    given = {f: getattr(MEAN, f) for f in MEAN.__dataclass_fields__}
    wrong = Claim(**{**given, "samplers": dict(direct=lambda key, n, shift: {"other": n})})
    with pytest.raises(InputError, match="the sampler returns"):
        run(wrong, trials=10, store=tmp_path / "s")
    assert not (tmp_path / "s").exists()
    run(MEAN, trials=10, store=tmp_path / "s")
    before = _files(tmp_path / "s")
    with pytest.raises(InputError, match="holds another run"):
        run(MEAN, trials=11, store=tmp_path / "s")
    assert _files(tmp_path / "s") == before


def test_opening_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_result(tmp_path / "nothing")


def test_missing_chunks_are_drawn_again(tmp_path):
    path = tmp_path / "s"
    first = run(MEAN, trials=5000, store=path)
    whole = _files(path)
    (path / "tiles/count/c.0.0").unlink()
    again = run(MEAN, trials=5000, store=path)
    assert first.equals(again)
    assert _files(path) == whole
    assert np.isfinite(again["mean"]).all()
