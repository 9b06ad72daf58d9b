"""Programs are traced, lowered and compiled once: for all devices, and for all processes that share a cache."""

import functools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from rmtjax.claims import CLAIMS
from rmtjax.montecarlo import program_files
from rmtjax.montecarlo.program_files import ProgramFiles, Unknown, fingerprint
from rmtjax.montecarlo.programs import ProgramCache

from .helpers import mean_draw

ROOT = Path(__file__).parents[2]


def python(script, *arguments, **environment):
    """Run a script in a process of its own and return the JSON that it prints last."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


COUNTING = """
import collections, json, sys
import jax
events = collections.Counter()
jax.monitoring.register_event_duration_secs_listener(lambda name, _, **about: events.update([name]))
count = lambda: [events[f"/jax/core/compile/{step}_duration"] for step in ("jaxpr_to_mlir_module", "backend_compile")]
"""

SHARED = (
    COUNTING
    + """
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from rmtjax.montecarlo import run
from tests.montecarlo.helpers import TWO
result = run(TWO, trials=20_000, seed=3, progress=False)
assert len(jax.devices()) == int(sys.argv[1])
print(json.dumps([count(), [value.hex() for value in result["mean"].values.ravel()]]))
"""
)


@pytest.mark.thorough
def test_another_device_is_no_reason_to_lower_or_compile_again():
    (one, of_one), (eight, of_eight) = (python(SHARED, devices) for devices in (1, 8))
    assert one == eight and min(one) > 0
    assert of_one == of_eight


LOADED = (
    COUNTING
    + """
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
from rmtjax.montecarlo import Limits, Run
from rmtjax.montecarlo.program import LoweredProgram, Program, checked_draw, computing, tile_function
from tests.montecarlo.helpers import TWO
planned = Run(TWO, trials=1024, seed=3)
draw = checked_draw(TWO, TWO.samplers["direct"], planned.plan.outputs, {}, planned.plan.within.shape)
inputs, within = planned.programs._inputs([(0, 0), (1, 0)]), dict(x=TWO.grid.axes[1].values["x"])
with computing():
    tile = tile_function(draw, planned.plan, 64)
    lowered = LoweredProgram(tile, inputs, within, jax.devices()[0], Limits())
    before = count()
    program = Program.compiled(lowered, False, is_new=sys.argv[1] == "bytes", shared=False)
    program.load(jax.devices())
    after = count()
    results = [program(device, inputs, within, 1024) for device in jax.devices()]
    for device in jax.devices():
        (place,) = jax.tree.leaves(program.on(device).input_shardings)[0].device_set
        assert place == device
for result in results:
    for name in result:
        np.testing.assert_array_equal(result[name], results[0][name])
print(json.dumps([new - old for old, new in zip(before, after)]))
"""
)


def test_devices_that_need_executables_of_their_own_load_the_first_ones():
    """Processors share an executable, as accelerators cannot; here they are made to do as accelerators do."""
    off = dict(JAX_ENABLE_COMPILATION_CACHE="false")  # what JAX has loaded from its cache cannot become bytes
    assert python(LOADED, "bytes", **off) == [0, 1]


@pytest.mark.thorough
def test_devices_that_cannot_load_bytes_compile():
    assert python(LOADED, "none", JAX_ENABLE_COMPILATION_CACHE="false") == [0, 4]  # JAX itself keeps what is lowered


STORED = (
    COUNTING
    + """
from rmtjax.claims import CLAIMS
from rmtjax.montecarlo import grid, run
claim = CLAIMS["bbp-wigner"]
result = run(claim, claim.grid, trials=64, seed=3, progress=False)
print(json.dumps([count(), [value.hex() for value in result["mean"].values.ravel()]]))
"""
)


@pytest.mark.thorough
def test_a_second_process_traces_and_compiles_nothing(tmp_path):
    environment = dict(JAX_COMPILATION_CACHE_DIR=str(tmp_path), RMTJAX_TEST_QUICK="0")
    first, reference = python(STORED, **environment)
    (index,) = [path for path in (tmp_path / "rmtjax-programs").glob("*/*") if path.parent.name != "executables"]
    (stored,) = (tmp_path / "rmtjax-programs/executables").iterdir()
    second, again = python(STORED, **environment)
    assert again == reference
    assert second[0] < first[0]  # what is lowered for the law and the keys remains

    # Without the index the program is traced and lowered, but the executable still need not be compiled.
    index.unlink()
    third, again = python(STORED, **environment)
    assert again == reference and third[0] == first[0] and index.is_file()

    # What is damaged is as if it were not there, and is written again.
    content = stored.read_bytes()
    for damage in (content[: len(content) // 2], b"", content[:-1] + bytes([content[-1] ^ 1])):
        stored.write_bytes(damage)
        _, again = python(STORED, **environment)
        assert again == reference
        assert len(stored.read_bytes()) > len(content) // 2 and stored.read_bytes() != damage


ROUTINES = """
import pickle, re, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from jax import lax
from rmtjax.montecarlo import executable
jax.config.update("jax_enable_x64", True)
matrix = np.array([[4.0, 1, 0], [1, 3, 1], [0, 1, 2]])
functions = dict(
    cholesky=jnp.linalg.cholesky, lu=lambda a: lax.linalg.lu(a)[0], qr=jnp.linalg.qr, solve=lambda a: jnp.linalg.solve(a, a),
    eigh=jnp.linalg.eigh, eigvalsh=jnp.linalg.eigvalsh,
    svd=jnp.linalg.svd, svdvals=lambda a: jnp.linalg.svd(a, compute_uv=False),
    eig=lambda a: lax.linalg.eig(a)[0], schur=lax.linalg.schur, hessenberg=lax.linalg.hessenberg,
    triangular=lambda a: lax.linalg.triangular_solve(a, a),
    tridiagonal=lambda a: lax.linalg.tridiagonal_solve(a[0], a[1], a[0], a),
    reflectors=lambda a: lax.linalg.householder_product(a, a[0]), to_tridiagonal=lambda a: lax.linalg.tridiagonal(a)[1],
)
file, programs = Path(sys.argv[1]), []
if not file.exists():
    for function in functions.values():
        for dtype in ("float32", "float64", "complex64", "complex128"):
            a = matrix.astype(dtype)
            compiled = jax.jit(function).lower(a).compile()
            routines = re.findall('custom_call_target="([^"]+)"', compiled.as_text())
            programs.append((executable.pack(compiled), a, jax.tree.map(np.asarray, compiled(a)), routines))
    file.write_bytes(pickle.dumps(programs))
for data, a, expected, routines in pickle.loads(file.read_bytes()):
    executable._initialize_lapack.cache_clear()
    program, _ = executable.unpack(data, jax.devices()[0])
    assert executable._initialize_lapack.cache_info().misses == bool(routines), routines
    jax.tree.map(np.testing.assert_array_equal, program(a), expected)
    programs.append(routines)
print(sum(map(bool, programs)))
"""


def test_programs_that_call_lapack_run_in_a_process_that_has_lowered_none(tmp_path):
    """They would call address 0."""
    file = tmp_path / "programs"
    python(ROUTINES, file, JAX_ENABLE_COMPILATION_CACHE="false")  # what JAX has loaded itself cannot be packed
    assert python(ROUTINES, file) >= 40


@pytest.mark.thorough
def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "rmtjax-programs").write_text("not a folder")
    first, _ = python(STORED, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    assert min(first) > 0


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(program_files, "_source", lambda: "source")
    return ProgramFiles(tmp_path / "rmtjax-programs", jax.devices()[0])


def test_foreign_files_are_not_followed(files, tmp_path):
    name = files.name(("anything",))
    files.write(name, files.content_name("text", True), b"program")
    assert files.find(name) == b"program" == files.find(files.content_name("text", True))
    assert files.find(files.content_name("text", False)) is None
    (tmp_path / "secret").write_bytes(b"secret")
    for content in (b"../secret", b"executables/" + b"g" * 64, b"\xff", b""):
        (tmp_path / "rmtjax-programs" / name).write_bytes(content)
        assert files.find(name) is None


def test_writers_at_the_same_time_leave_one_whole_file(files):
    name, content_name, data = files.name(1), files.content_name("text", True), os.urandom(1 << 20)
    threads = [threading.Thread(target=files.write, args=(name, content_name, data)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files.find(name) == data
    assert not [path for path in (files._folder / "executables").iterdir() if path.name.startswith(".")]


def test_old_versions_are_dropped_and_nothing_else(files, tmp_path, monkeypatch):
    folder = tmp_path / "rmtjax-programs"
    for name in ("source-0123456789abcdef/notes.txt", "my/data", "executables/data", "data"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("a user's")
    for name in ("executables/data", "source-0123456789abcdef"):
        os.utime(folder / name, (1, 1))
    for i in range(6):
        monkeypatch.setattr(program_files, "_source", lambda i=i: f"source {i}")
        name = files.name(1)
        files.write(name, files.content_name(f"text {i}", True), b"program")
        assert files.find(name) == b"program"
        for path in (folder / name, folder / files.content_name(f"text {i}", True), (folder / name).parent):
            os.utime(path, (1e9 + i, 1e9 + i))
    assert len([path for path in folder.glob("source-*/*") if len(path.name) == 64]) == 3
    assert len([path for path in folder.glob("executables/*") if len(path.name) == 64]) == 1
    for name in ("source-0123456789abcdef/notes.txt", "my/data", "executables/data", "data"):
        assert (folder / name).read_text() == "a user's"


@pytest.mark.parametrize("folder", ["", None, "gs://bucket/programs"])
def test_without_a_folder_for_jax_nothing_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", folder)
    try:
        assert ProgramFiles.beside_jax(jax.devices()[0]).name(1) is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_source_that_may_have_changed_since_the_import_names_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(program_files, "_PACKAGE", tmp_path)
    (tmp_path / "module.py").write_text("x = 1\n")
    program_files._source.cache_clear()
    try:
        assert program_files._source() is None
        assert ProgramFiles(tmp_path, jax.devices()[0]).name(1) is None
        program_files._source.cache_clear()
        os.utime(tmp_path / "module.py", (1e9, 1e9))
        assert program_files._source() is not None
    finally:
        program_files._source.cache_clear()


NAMED = """
import json
from rmtjax.claims import CLAIMS
from rmtjax.montecarlo.program_files import fingerprint
names = {}
for claim in CLAIMS.values():
    for sampler in claim.samplers.values():
        names.setdefault(fingerprint(sampler.draw), set()).add(sampler.draw)
print(json.dumps(sorted(map(len, names.values()))))
"""


def test_every_sampler_of_the_package_has_a_name_and_no_two_share_it():
    """In a process without the checks of shapes, whose functions wrap those of the package."""
    functions = python(NAMED)
    assert len(functions) > 30 and max(functions) == 1


def _made(function, number):
    return functools.partial(function, number)


def test_the_functions_of_users_have_no_name():
    draw = CLAIMS["bbp-wigner"].samplers["compressed"].draw

    @functools.wraps(draw)
    def disguised(*args, **kwargs):
        return draw(*args, **kwargs)

    for function in (mean_draw, lambda key, n: n, disguised, jax.jit(mean_draw), object(), _made(mean_draw, 1)):
        with pytest.raises(Unknown):
            fingerprint(function)
    with pytest.raises(Unknown):
        fingerprint(functools.partial(draw, theta=mean_draw))


def test_what_a_function_closes_over_is_in_its_name():
    draw = CLAIMS["bbp-wigner"].samplers["compressed"].draw
    values = [
        draw,
        *(_made(draw, x) for x in (1, 1.0, True, np.float64(1), np.arange(2), np.arange(2.0), "1", (1,), [1])),
    ]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint(_made(draw, np.arange(2))) == fingerprint(_made(draw, np.arange(2)))


def test_a_program_is_made_once_however_many_ask():
    cache, made, start = ProgramCache(2), [], threading.Barrier(4)

    def make():
        made.append(1)
        return object()

    def ask(results):
        start.wait()
        results.append(cache.get(("key",), make))

    results: list = []
    threads = [threading.Thread(target=ask, args=(results,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(set(map(id, results))) == 1

    def fail():
        raise ValueError

    with pytest.raises(ValueError):
        cache.get(("other",), fail)
    assert cache.get(("other",), lambda: 3) == 3  # an error is not kept
    cache.get(("third",), lambda: 4)
    assert cache.get(("key",), lambda: 5) == 5  # only two are kept


IMPORTS = """
import json, sys, threading
import threadpoolctl
from rmtjax.montecarlo import run, verify
from tests.montecarlo.helpers import TWO

shared = lambda: {name for name, module in list(sys.modules.items()) if str(getattr(module, "__file__", "")).endswith(".so")}
late, walk = [], threadpoolctl.ThreadpoolController.__init__


def watched(self, *arguments, **options):
    before = shared()
    walk(self, *arguments, **options)
    others = [thread.name for thread in threading.enumerate() if "exchange" not in thread.name]
    late.append([sorted(shared() - before), "xarray" in sys.modules, "scipy.stats" in sys.modules, len(others)])


threadpoolctl.ThreadpoolController.__init__ = watched
{call}
print(json.dumps(late))
"""


@pytest.mark.thorough
@pytest.mark.parametrize("call", ["run(TWO, trials=100, progress=False)", "verify([TWO], trials=100, progress=False)"])
def test_nothing_is_imported_while_the_loaded_libraries_are_walked(call):
    """An import in another thread holds the linker's lock that threadpoolctl asks for: one run in ten was a deadlock."""
    seen = python(IMPORTS.replace("{call}", call))
    assert seen
    for loaded, has_xarray, has_scipy, threads in seen:
        assert loaded == [] and has_xarray and (has_scipy or "verify" not in call)
        assert threads == 1 or "verify" in call
