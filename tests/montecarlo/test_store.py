import errno
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from rmtjax import InputError
from rmtjax.montecarlo import Claim, Limits, Run, grid, merge_results, open_result, run, write_result
from rmtjax.montecarlo import store as store_module
from rmtjax.montecarlo.grid import parse_values
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
    run(MEAN, grid(**CELLS), trials=40_000, store=path, limits=Limits(chunks=10_000, short=10_000, tiles_per_call=1))


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


@pytest.mark.kills
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
    """The stored cells are right; cells without a trial are NaN."""
    seen = []
    write = Store.write

    def watched(self, chunk, values):
        write(self, chunk, values)
        seen.append((chunk, open_result(tmp_path / "s")))

    monkeypatch.setattr(Store, "write", watched)
    whole = run(MEAN, grid(**CELLS), trials=3000, store=tmp_path / "s", limits=Limits(short=10_000))
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


@pytest.mark.parametrize("cells", [None, grid(n=2.0, x=0.5), grid(n=[2.0], x=0.5)], ids=["grid", "one cell", "axis"])
def test_a_finished_store_is_read_not_drawn_again(tmp_path, cells):
    first = run(TWO, cells, trials=500, store=tmp_path / "s")
    before = _files(tmp_path / "s")
    second = run(TWO, cells, trials=500, store=tmp_path / "s")
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
        (dict(grid=grid(n=[1.0, 3.0], x=[0.0, 1.0])), r"its n\[1\] is 2.0, here it is 3.0"),
        (dict(histogram=[0.0, 1.0]), "its statistics is"),
        (dict(claim=MEAN, grid=None), "its claim is 'characteristic-function', here it is 'mean'"),
    ],
)
def test_a_store_of_another_run_is_refused_and_kept(tmp_path, change, says):
    base = dict(claim=TWO, grid=grid(n=[1.0, 2.0], x=[0.0, 1.0]), trials=500, seed=0, store=tmp_path / "s")
    run(**base)
    before = _files(tmp_path / "s")
    with pytest.raises(InputError, match=says):
        run(**{**base, **change})
    assert _files(tmp_path / "s") == before


def test_a_range_of_before_is_refused_by_its_value(tmp_path):
    """The command line held values of ranges as numpy computes them; a Python grid of these goes on."""
    before = grid(n=1.0, shift=np.linspace(0, 1, 11))
    run(MEAN, before, trials=10, store=tmp_path / "s")
    with pytest.raises(InputError, match=r"its shift\[3\] is 0.30000000000000004, here it is 0.3;"):
        run(MEAN, grid(n=1.0, shift=parse_values("shift", "0:1:11")), trials=10, store=tmp_path / "s")
    run(MEAN, before, trials=10, store=tmp_path / "s")


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


def _damage(file, damage):
    data = bytearray(file.read_bytes())
    if damage == "lose":
        file.unlink()
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes({"truncate": data[: len(data) // 2], "flip": data, "empty": b""}[damage])


DAMAGES = ["lose", "truncate", "flip", "empty"]


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """A finished run of seven chunks, and its store."""
    path = tmp_path_factory.mktemp("seven") / "s"
    return run(MEAN, grid(**CELLS), trials=70_000, store=path), path


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("array", ["moments", "count"])
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_chunk_is_drawn_again(tmp_path, monkeypatch, caplog, seven, how, array, finished):
    """That chunk alone, and to the same bytes; whoever runs it is told, whether the run was finished or not."""
    path, drawn, (whole, original) = tmp_path / "s", [], seven
    shutil.copytree(original, path)
    wanted = _files(path)
    chunks = sorted((path / "tiles" / array).glob("c.*"))
    assert len(chunks) == 7
    chunk = int(chunks[2].name.split(".")[1])
    _damage(chunks[2], how)
    if not finished:
        shutil.rmtree(path / "provenance")
        shutil.rmtree(path / "result")
    write = Store.write
    monkeypatch.setattr(Store, "write", lambda self, i, values: (drawn.append(i), write(self, i, values))[1])
    caplog.clear()
    again = run(MEAN, grid(**CELLS), trials=70_000, store=path)
    assert again.equals(whole) and open_result(path).equals(whole)
    assert _files(path) == wanted
    assert drawn == [chunk]
    if finished or (how, array) != ("lose", "count"):  # which is what a kill leaves
        assert f"store {path} is damaged: a file" in caplog.text
        assert f"of chunks [{chunk}]; the run draws them again" in caplog.text and len(caplog.records) == 1
    caplog.clear()
    run(MEAN, grid(**CELLS), trials=70_000, store=path)
    assert not caplog.records


def test_rounds_go_on_from_a_damaged_chunk(tmp_path, caplog):
    """The redrawn part decides on the rounds after it."""
    chosen = dict(grid=grid(n=[1, 4], shift=[0.0]), until_se=0.02)
    whole = run(MEAN, **chosen, store=tmp_path / "s")
    wanted = _files(tmp_path / "s")
    chunks = sorted((tmp_path / "s/tiles/moments").glob("c.*"))
    assert len(chunks) >= 2
    _damage(chunks[0], "flip")
    shutil.rmtree(tmp_path / "s/provenance")
    assert run(MEAN, **chosen, store=tmp_path / "s").equals(whole)
    assert _files(tmp_path / "s") == wanted and "cannot be read of chunks" in caplog.text


def test_all_chunks_may_be_damaged(tmp_path):
    whole = run(MEAN, trials=5000, store=tmp_path / "s")
    wanted = _files(tmp_path / "s")
    for file in (tmp_path / "s/tiles/moments").glob("c.*"):
        _damage(file, "empty")
    assert run(MEAN, trials=5000, store=tmp_path / "s").equals(whole)
    assert _files(tmp_path / "s") == wanted
    shutil.rmtree(tmp_path / "s/tiles/moments")  # with what says how to read it
    assert run(MEAN, trials=5000, store=tmp_path / "s").equals(whole)
    assert _files(tmp_path / "s") == wanted


def test_a_disk_that_damages_again_ends_the_run(tmp_path, monkeypatch):
    write = Store.write

    def damaging(self, chunk, values):
        write(self, chunk, values)
        _damage(next((self.path / "tiles/moments").glob(f"c.{chunk}.*")), "flip")

    monkeypatch.setattr(Store, "write", damaging)
    with pytest.raises(InputError, match=r"is damaged \(.*\); run it again, which draws its damaged chunks again"):
        run(MEAN, trials=5000, store=tmp_path / "s")


def test_a_damaged_chunk_of_an_unfinished_run_is_named_to_a_reader(tmp_path):
    run(MEAN, trials=5000, store=tmp_path / "s")
    shutil.rmtree(tmp_path / "s/provenance")
    _damage(next((tmp_path / "s/tiles/moments").glob("c.*")), "flip")
    before = _files(tmp_path / "s")
    with pytest.raises(InputError, match=r"is damaged .* run it again, which draws its damaged chunks again"):
        open_result(tmp_path / "s")
    assert _files(tmp_path / "s") == before


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_result_is_written_again(tmp_path, caplog, how):
    """From the tiles, to the same bytes; the record of who made it stays."""
    path = tmp_path / "s"
    whole = run(MEAN, trials=5000, store=path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    _damage(next(f for f in (path / "result/mean").rglob("*") if f.is_file() and f.name != "zarr.json"), how)
    with pytest.raises(
        InputError, match="its result has changed since it was written; run it again, which writes it again"
    ):
        open_result(path)
    caplog.clear()
    assert run(MEAN, trials=5000, store=path).equals(whole)
    assert "its result has changed since it was written; it is written again" in caplog.text
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert open_result(path).equals(whole)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("zarr.json", r"its zarr\.json (cannot be read|has changed since it was written)"),
        ("law/value/zarr.json", "its law has changed since it was written"),
        ("tiles/moments/zarr.json", "is damaged"),
        ("provenance/zarr.json", "is damaged"),
    ],
)
@pytest.mark.parametrize("how", ["truncate", "change"])
def test_a_damaged_description_is_an_error(tmp_path, file, says, how):
    """A run's description cannot be drawn again. Nothing is drawn and nothing is changed."""
    path = tmp_path / "s"
    run(MEAN, trials=5000, store=path)
    text = (path / file).read_text()
    changed = text[: len(text) // 2] if how == "truncate" else text.replace("0", "1")
    (path / file).write_text(changed)
    before = _files(path)
    with pytest.raises(InputError, match=f"store .*{says}") as error:
        run(MEAN, trials=5000, store=path)
    assert "\n" not in str(error.value)
    assert _files(path) == before


def test_a_damaged_root_is_named(tmp_path):
    path = tmp_path / "s"
    run(MEAN, trials=10, store=path)
    (path / "zarr.json").write_text((path / "zarr.json").read_text()[:40])
    with pytest.raises(InputError, match=r"zarr\.json cannot be read"):
        run(MEAN, trials=10, store=path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        run(MEAN, trials=10, store=tmp_path / "file" / "s")


def test_a_run_that_cannot_be_leaves_no_store(tmp_path):
    given = {f: getattr(MEAN, f) for f in MEAN.__dataclass_fields__}
    wrong = Claim(**{**given, "samplers": dict(direct=lambda key, n, shift: {"other": n})})
    with pytest.raises(InputError, match="the sampler returns"):
        run(wrong, trials=10, store=tmp_path / "s")
    assert not (tmp_path / "s").exists()
    run(MEAN, trials=10, store=tmp_path / "s")
    before = _files(tmp_path / "s")
    with pytest.raises(InputError, match="holds a different run"):
        run(MEAN, trials=11, store=tmp_path / "s")
    assert _files(tmp_path / "s") == before


def test_what_was_there_stays_there(tmp_path):
    """An empty folder that a run could not use, and folders whose names look like ours."""
    given = {f: getattr(MEAN, f) for f in MEAN.__dataclass_fields__}
    wrong = Claim(**{**given, "samplers": dict(direct=lambda key, n, shift: {"other": n})})
    mine = tmp_path / "s.partial" / "thesis.tex"
    mine.parent.mkdir()
    mine.write_text("years of work")
    (tmp_path / "s").mkdir()
    with pytest.raises(InputError, match="the sampler returns"):
        run(wrong, trials=10, store=tmp_path / "s")
    assert list((tmp_path / "s").iterdir()) == []
    result = run(MEAN, trials=10, store=tmp_path / "s")
    write_result(tmp_path / "m", result)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "s", "s.partial"]
    assert mine.read_text() == "years of work"


def test_one_writes_at_a_time(tmp_path, monkeypatch):
    with_store = Run(MEAN, trials=5000, store=tmp_path / "s")
    with pytest.raises(
        InputError, match=r"store = .*: another run is writing to it; wait until it ends or choose another"
    ):
        run(MEAN, trials=5000, store=tmp_path / "s")
    assert with_store.execute().equals(run(MEAN, trials=5000, store=tmp_path / "s"))  # and then it is free
    failing = Run(MEAN, trials=5000, seed=1, store=tmp_path / "t")
    monkeypatch.setattr(Store, "write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.execute()
    monkeypatch.undo()
    assert run(MEAN, trials=5000, seed=1, store=tmp_path / "t")["trials"].min() == 5000


def _holds(path, ready):
    writing = Run(MEAN, trials=5000, store=path)
    ready.set()
    time.sleep(600)
    writing.execute()


def test_a_lock_ends_with_its_process(tmp_path):
    """Two processes; the one that writes is killed, and the other goes on."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_holds, args=(tmp_path / "s", ready))
    holder.start()
    try:
        assert ready.wait(120)
        before = _files(tmp_path / "s")
        with pytest.raises(InputError, match="another run is writing to it"):
            run(MEAN, trials=5000, store=tmp_path / "s")
        assert _files(tmp_path / "s") == before
    finally:
        holder.kill()
        holder.join()
    assert run(MEAN, trials=5000, store=tmp_path / "s")["trials"].min() == 5000


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, caplog):
    """A run there goes on, and says once that nothing keeps others away."""
    import filelock

    def without(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", without)
    run(MEAN, trials=5000, store=tmp_path / "s")
    assert caplog.text.count("the file system has no locks") == 1 and "no other run writes this folder" in caplog.text


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs the names of open files")
def test_a_run_is_on_the_disk_before_it_is_finished(tmp_path, monkeypatch):
    """Every file and folder of the store, before the provenance is written, and that before the run returns."""
    synced, finished, sync, tell = [], [], os.fsync, store_module.write_sessions

    def watched(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def told(*arguments):
        finished.append(len(synced))
        tell(*arguments)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(store_module, "write_sessions", told)
    path = tmp_path / "s"
    run(MEAN, trials=5000, store=path)
    everything = {str(p) for p in (path, *path.rglob("*"))}
    later = {p for p in everything if f"{path}/provenance" in p}
    assert len(everything) > 40 and everything - later <= set(synced[: finished[0]])
    assert later <= set(synced[finished[0] :])
    write_result(tmp_path / "m", run(MEAN, trials=5000, store=path))
    names = {Path(p).name for p in synced}
    assert {str(tmp_path)} <= set(synced) and {p.name for p in (tmp_path / "m").rglob("*")} <= names


@pytest.mark.thorough
def test_a_folder_that_can_only_be_read(tmp_path):
    """As a user who is not root: nothing can be made there, and what is there opens but cannot go on."""
    store = tmp_path / "s"
    run(MEAN, trials=5000, store=store)
    shutil.rmtree(store / "provenance")  # as a run leaves it that has drawn all and said nothing
    for folder in (tmp_path, *tmp_path.rglob("*")):
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    try:
        context = multiprocessing.get_context("spawn")
        said = context.Queue()
        process = context.Process(target=_as_nobody, args=(tmp_path, said))
        process.start()
        fresh, resumed, opened = (said.get(timeout=120) for _ in range(3))
        process.join()
    finally:
        for folder in (tmp_path, *tmp_path.rglob("*")):
            folder.chmod(0o755 if folder.is_dir() else 0o644)
    assert fresh == f"InputError: store {tmp_path / 'new'} cannot be written: Permission denied"
    assert resumed == f"InputError: store = {store}: the folder cannot be written to"
    assert opened == "30000 trials"


def _as_nobody(folder, queue):
    for parent in (folder, *folder.parents):  # pytest's folders are closed to others
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o005:
            parent.chmod(parent.stat().st_mode | 0o005)
    with (
        tempfile.TemporaryDirectory() as warm
    ):  # nobody may be unable to read Python's own files: all that is needed now
        run(MEAN, trials=5000, store=f"{warm}/s")
        open_result(f"{warm}/s")
        "known".encode("ascii")
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    for path in (folder / "new", folder / "s"):
        try:
            run(MEAN, trials=5000, store=path)
            queue.put("it could be written")
        except Exception as error:
            queue.put(f"{type(error).__name__}: {error}")
    queue.put(f"{open_result(folder / 's')['trials'].sum():.0f} trials")


def test_a_store_of_another_law_is_refused(tmp_path):
    """This holds for finished stores too: their content was compared with the law that they were begun with."""
    run(MEAN, trials=500, store=tmp_path / "s")
    given = {f: getattr(MEAN, f) for f in MEAN.__dataclass_fields__}
    mended = Claim(**{**given, "law": lambda n, shift: shift + 1e-6 + 0 * n})
    with pytest.raises(InputError, match="holds a different run: its law of value has different values"):
        run(mended, trials=500, store=tmp_path / "s")
    with pytest.raises(InputError, match=r"results\[1\] has a different law"):
        merge_results([open_result(tmp_path / "s"), run(mended, trials=500, seed=1)])


def test_a_finished_store_stays_what_it_is(tmp_path):
    """Though the law may come out otherwise in its last bit elsewhere; and a kill between the last two files costs nothing."""
    first = run(MEAN, trials=5000, store=tmp_path / "s")
    given = {f: getattr(MEAN, f) for f in MEAN.__dataclass_fields__}
    elsewhere = Claim(**{**given, "law": lambda n, shift: shift * (1 + 2**-50) + 0 * n})
    again = run(elsewhere, trials=5000, store=tmp_path / "s")
    assert not again["law"].equals(first["law"])
    assert open_result(tmp_path / "s").equals(first)
    provenance = tmp_path / "s/provenance/zarr.json"
    about = json.loads(provenance.read_text())
    assert len(about["attributes"]["sessions"]) == 1  # the second drew nothing
    provenance.write_text(json.dumps({**about, "attributes": {}}))
    assert open_result(tmp_path / "s").attrs["unfinished"] == 1
    assert run(MEAN, trials=5000, store=tmp_path / "s").equals(open_result(tmp_path / "s"))


def test_what_is_lost_is_noticed(tmp_path):
    """Zarr itself gives fill values for a chunk whose file is gone."""
    whole = run(MEAN, trials=5000, store=tmp_path / "s")
    lost = next(f for f in (tmp_path / "s/result/mean").rglob("*") if f.is_file() and f.name != "zarr.json")
    kept = lost.read_bytes()
    lost.unlink()
    with pytest.raises(InputError, match="its result has changed since it was written"):
        open_result(tmp_path / "s")
    lost.write_bytes(kept)
    provenance = tmp_path / "s/provenance/zarr.json"
    before = provenance.read_text()
    assert before.count('"seed": 0') == 1
    provenance.write_text(before.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(InputError, match="its provenance has changed since it was written"):
        open_result(tmp_path / "s")
    provenance.write_text(before)
    assert open_result(tmp_path / "s").equals(whole)
    next((tmp_path / "s/tiles/moments").glob("c.*")).unlink()
    shutil.rmtree(tmp_path / "s/provenance")
    assert run(MEAN, trials=5000, store=tmp_path / "s").equals(whole)


def test_a_store_that_was_mended_is_free(tmp_path):
    run(MEAN, trials=5000, store=tmp_path / "s")
    layout = tmp_path / "s/tiles/count/zarr.json"
    before = layout.read_text()
    layout.write_text(before.replace("float64", "int64"))
    with pytest.raises(InputError, match=r"tiles/count/zarr\.json has changed since it was written") as refused:
        run(MEAN, trials=5000, store=tmp_path / "s")
    layout.write_text(before)
    assert run(MEAN, trials=5000, store=tmp_path / "s")["trials"].min() == 5000 and refused


def test_no_memory_is_not_damage(tmp_path, monkeypatch):
    run(MEAN, trials=5000, store=tmp_path / "s")
    shutil.rmtree(tmp_path / "s/provenance")

    def full(*_):
        raise MemoryError("Unable to allocate 9 bytes")

    monkeypatch.setattr(np, "asarray", full)
    with pytest.raises(MemoryError):
        open_result(tmp_path / "s")


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
