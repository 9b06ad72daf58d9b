"""Sweeps that die at any moment, of anything, go on to the bytes of an undisturbed run."""

import importlib
import resource
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from rmtjax.montecarlo import Limits, grid, open_result, plan, run
from rmtjax.montecarlo.programs import Programs
from rmtjax.montecarlo.store import Store

from ..montecarlo.helpers import BOTH, MEAN
from .helpers import KILLS, context, keep_programs, killed, whole

pytestmark = pytest.mark.kills


def files(path):
    """Every file of a store but the record of who made it when, and what a kill leaves half written under another name."""
    return {
        str(f.relative_to(path)): f.read_bytes()
        for f in sorted(path.rglob("*"))
        if f.is_file() and f.relative_to(path).parts[0] != "provenance" and not f.name.endswith(".partial")
    }


def chunks(path):
    """Return the number of stored chunks."""
    return sum(not f.name.endswith(".partial") for f in (path / "tiles" / "count").glob("c.*"))


def in_small_steps(path, *arguments, **settings):
    """Run with hundreds of chunks and one tile a call."""
    keep_programs(path.parent)
    limits = Limits(chunks=10_000, short=10_000, tiles_per_call=1)
    run(*arguments, store=path, limits=limits, **settings)


def fixed(path):
    """Hundreds of chunks, one tile a call."""
    in_small_steps(path, MEAN, grid(n=[1, 2, 3], shift=[0.0, 1.0]), trials=40_000, histogram=[-1.0, 0.0, 1.0])


def adaptive(path):
    """Rounds that depend on what was drawn, two tiles a chunk."""
    module, make_plan = importlib.import_module("rmtjax.montecarlo.run"), plan.make_plan
    module.make_plan = lambda *arguments: replace(make_plan(*arguments), chunk=2)
    in_small_steps(path, MEAN, grid(n=[1, 4, 400], shift=[0.0, 1.0]), until_se=0.005)


@pytest.mark.parametrize(("target", "kills"), [(fixed, KILLS), (adaptive, KILLS // 2)])
def test_kills(target, kills, tmp_path):
    whole(target, tmp_path / "first")  # compiles
    undisturbed = tmp_path / "whole"
    seconds = whole(target, undisturbed)
    wanted, count = files(undisturbed), chunks(undisturbed)
    assert count > 50

    def check(path):
        assert files(path) == wanted
        assert open_result(path).equals(open_result(undisturbed))

    seen = killed(target, tmp_path, seconds, check, chunks, kills=kills)
    print(f"{target.__name__}: killed with {sorted(seen)} of {count} chunks stored")
    assert len(seen) >= kills and sum(0 < n < count for n in seen) >= kills / 5, "few kills came in the middle"


def _full(path, at=4096):
    """A file that grows beyond some bytes is refused by the system, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))
    kept(path)


def kept(path):
    """With samples, whose files are long."""
    in_small_steps(path, MEAN, grid(n=[1, 2], shift=[0.0]), trials=8192, keep_samples=True)


def test_a_file_that_cannot_grow(tmp_path):
    whole(kept, tmp_path / "whole")
    longest = max(map(len, files(tmp_path / "whole").values()))
    assert longest > 2 * 4096
    process = context().Process(target=_full, args=(tmp_path / "s",))
    process.start()
    process.join(300)
    assert process.exitcode == 1
    assert chunks(tmp_path / "s") < chunks(tmp_path / "whole")
    whole(kept, tmp_path / "s")
    assert files(tmp_path / "s") == files(tmp_path / "whole")


def hungry(path):
    """The last cells need thousands of times what the first do."""
    in_small_steps(path, BOTH, grid(n=[64, 1_000_000], shift=[0.0]), trials=512, sampler="dense")


def _starved(path):
    """Hardly any memory is left when the last cells begin and a chunk is stored."""
    stored, write, compute = threading.Event(), Store.write, Programs.compute

    def told(self, chunk, values):
        write(self, chunk, values)
        stored.set()

    def last(self, device, static, part):
        if 1_000_000 in static:
            assert stored.wait(60)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, resource.RLIM_INFINITY))
        return compute(self, device, static, part)

    Store.write, Programs.compute = told, last
    hungry(path)


def test_memory_that_runs_out(tmp_path):
    whole(hungry, tmp_path / "whole")
    process = context().Process(target=_starved, args=(tmp_path / "s",))
    process.start()
    process.join(300)
    assert process.exitcode not in (0, None), "it did not run out"
    assert 0 < chunks(tmp_path / "s") < chunks(tmp_path / "whole")
    whole(hungry, tmp_path / "s")
    assert files(tmp_path / "s") == files(tmp_path / "whole")
