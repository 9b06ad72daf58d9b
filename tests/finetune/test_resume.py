"""A run that was stopped, broken off or killed ends as if nothing had happened, to the bit."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from rmtjax import InputError
from rmtjax.finetune import finetune
from rmtjax.finetune.checkpoints import Checkpoints

from ..helpers import HOSTILE, flags
from .helpers import Shared, assert_same, checkpoints, files, left, settings, write_base, write_task

STEPS, PER_EPOCH, T = 15, 5, 3  # 17 examples in batches of 4 (α keeps 4 of 21), three epochs


@pytest.fixture(scope="module")
def chosen(base, data):
    return settings(base, data, adapter="alpha-lora", alpha_every=T, max_length=16)


@pytest.fixture(scope="module")
def shared():
    return Shared()


@pytest.fixture(scope="module")
def undisturbed(chosen, shared, tmp_path_factory):
    """Return the output of an undisturbed run."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    result = finetune(chosen, out, announce=shared)
    assert result["steps"] == STEPS and len(result["history"]) == STEPS / PER_EPOCH
    assert checkpoints(out)[-1] == STEPS
    return left(out)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("stops", "save_every"),
    [
        ((T - 1, T, 7), None),  # before α moves, after it has, mid-epoch
        ((PER_EPOCH, 6, 2 * PER_EPOCH), 3),  # the ends of epochs, and one step after
        ((1, 14, STEPS), 1),  # the last stop is the end
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(stops, save_every, chosen, shared, undisturbed, tmp_path):
    out, options = tmp_path / "out", dict(resume=True, save_every=save_every, announce=shared)
    for stop in stops:
        result = finetune(chosen, out, stop_after=stop, **options)  # the first finds nothing
        assert result["finished"] is (stop == STEPS) is (out / "result.json").exists()
        assert checkpoints(out)[-1] == stop
        assert [line["step"] for line in result["history"]] == list(range(PER_EPOCH, stop + 1, PER_EPOCH))
        assert result["alpha"]["bert.encoder.layer.0.attention.self.query"]["sd"] > 0 if stop >= T else True
    seconds = [line["seconds"] for line in result["history"]]
    result = finetune(chosen, out, **options)
    assert_same(left(out), undisturbed)
    assert [line["seconds"] for line in result["history"]][: len(seconds)] == seconds  # what was measured stays
    assert seconds == sorted(seconds) and result["seconds"] >= result["history"][-1]["seconds"]
    assert len(checkpoints(out)) <= 2


@pytest.mark.thorough
def test_an_optimiser_of_two_kinds_goes_on_too(base, data, tmp_path):
    chosen, shared = settings(base, data, adapter="orthogonal", epochs=1, max_length=16), Shared()  # six steps
    finetune(chosen, tmp_path / "whole", announce=shared)
    finetune(chosen, tmp_path / "cut", stop_after=4, announce=shared)
    finetune(chosen, tmp_path / "cut", resume=True, announce=shared)
    assert_same(left(tmp_path / "cut"), left(tmp_path / "whole"))


class Broken(Exception):
    """The exception that ends a run in the middle."""


def test_a_run_broken_off_goes_on_from_its_checkpoint(chosen, shared, undisturbed, tmp_path):
    out = tmp_path / "out"

    def breaks_at(stop):
        def watch(run):
            shared(run)
            step, count = run.trainer.step, [0]

            def broken(*args):
                if count[0] == stop:
                    raise Broken
                count[0] += 1
                return step(*args)

            run.trainer.step = broken

        return watch

    for done, kept in ((2, []), (7, [3, 6])):  # the second begins at nothing again, as nothing was kept
        with pytest.raises(Broken):
            finetune(chosen, out, resume=True, save_every=3, announce=breaks_at(done))
        assert checkpoints(out) == kept
        assert not (out / "result.json").exists()
    with pytest.raises(Broken):
        finetune(chosen, out, resume=True, save_every=3, announce=breaks_at(5))  # at 11, from 6
    assert checkpoints(out) == [6, 9]
    finetune(chosen, out, resume=True, announce=shared)
    assert_same(left(out), undisturbed)


def test_an_epoch_measured_but_not_kept_is_measured_again(chosen, shared, undisturbed, tmp_path, monkeypatch):
    out, save = tmp_path / "out", Checkpoints.save

    def broken(self, step, state):
        if step == 12:
            raise Broken
        save(self, step, state)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", broken)
        with pytest.raises(Broken):
            finetune(chosen, out, save_every=4, announce=shared)
    assert checkpoints(out) == [4, 8] and len((out / "metrics.jsonl").read_text().splitlines()) == 2
    result = finetune(chosen, out, resume=True, stop_after=9, announce=shared)
    assert len(result["history"]) == 1
    finetune(chosen, out, resume=True, announce=shared)
    assert_same(left(out), undisturbed)


def test_a_finished_run_is_left_as_it_is(chosen, shared, undisturbed, tmp_path):
    out = tmp_path / "out"
    first = finetune(chosen, out, announce=shared)
    (out / "adapter/adapter_model.safetensors").unlink()  # as if killed while it wrote the adapter
    again = finetune(chosen, out, resume=True, announce=shared)
    assert again["history"] == first["history"] and again["steps_per_second"] is None and again["finished"]
    assert_same(left(out), undisturbed)


def test_a_run_can_move(chosen, shared, undisturbed, base, data, tmp_path):
    finetune(chosen, tmp_path / "out", stop_after=7, announce=shared)
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    moved = settings(tmp_path / "base", tmp_path / "data", adapter="alpha-lora", alpha_every=T, max_length=16)
    finetune(moved, tmp_path / "elsewhere", resume=True, announce=shared)
    assert_same(left(tmp_path / "elsewhere"), undisturbed)


def test_a_run_of_other_settings_is_not_resumed(chosen, shared, tmp_path):
    out = tmp_path / "out"
    finetune(chosen, out, stop_after=7, announce=shared)
    with pytest.raises(InputError, match=r"max_samples = None, here 5"):
        finetune(dataclasses.replace(chosen, max_samples=5), out, resume=True, announce=shared)


@pytest.mark.thorough
def test_a_run_goes_on_under_other_flags_of_jax(chosen, undisturbed, tmp_path):
    """Whatever generator, x64 mode and promotion a user has set. How precise products are, and whether anything is
    compiled, is the user's choice.
    """
    chosen_by_user = ("jax_default_matmul_precision", "jax_disable_jit")
    out, hostile = tmp_path / "out", {k: v for k, v in HOSTILE.items() if k not in chosen_by_user}
    with flags(hostile):
        finetune(chosen, out, stop_after=7)
    assert json.loads((out / "run.json").read_text())["identity"]["generator"] == "threefry2x32, partitionable"
    finetune(chosen, out, stop_after=12, resume=True)
    with flags(hostile):
        finetune(chosen, out, resume=True)
    assert_same(left(out), undisturbed)


def test_a_run_of_another_generator_does_not_go_on(chosen, shared, undisturbed, tmp_path):
    out = tmp_path / "out"
    finetune(chosen, out, stop_after=7, announce=shared)
    written = json.loads((out / "run.json").read_text())
    written["identity"]["generator"] = "rbg"
    (out / "run.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match=r"generator = 'rbg', here 'threefry2x32, partitionable'"):
        finetune(chosen, out, resume=True, announce=shared)
    del written["identity"]["generator"]  # as runs of before
    (out / "run.json").write_text(json.dumps(written))
    finetune(chosen, out, resume=True, announce=shared)
    assert_same(left(out), undisturbed)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs the names of open files")
def test_a_run_is_on_the_disk_before_it_says_so(chosen, shared, tmp_path, monkeypatch):
    """Checkpoints when a run stops; everything before the result is written, with which it is finished."""
    synced, sync, out = [], os.fsync, tmp_path / "out"

    def watched(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    finetune(chosen, out, stop_after=7, announce=shared)
    assert {str(p) for p in (out / "checkpoints").rglob("*")} <= set(synced)
    finetune(chosen, out, resume=True, announce=shared)
    result = max(i for i, path in enumerate(synced) if os.path.basename(path).startswith(".result.json"))
    everything = {str(p) for p in (out, *out.rglob("*"))} - {str(out / "result.json")}
    assert str(out / "curves.png") in everything and everything <= set(synced[:result])
    assert synced[result + 1] == str(out)


# --- what is no run to go on with ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(chosen, shared, tmp_path_factory):
    """A run stopped at 7 of 15 steps, with a checkpoint at 5 as well."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    finetune(chosen, out, stop_after=7, announce=shared)
    assert checkpoints(out) == [5, 7]
    return out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(seed=1), r"seed = 0, here 1"),
        (dict(adapter="dora", alpha=True), r"adapter = 'lora', here 'dora'"),
        (dict(adapter="lora"), r"alpha = True, here False"),
        (dict(epochs=4), r"epochs = 3, here 4"),
        (dict(val_split=0.5), r"val_split = 0.2, here 0.5"),
        (
            dict(target_modules=("query",)),
            r"target_modules = \['query', 'value'\], here \['query'\]",
        ),
        (dict(dropout=False), r"dropout = True, here False"),
    ],
)
def test_other_settings_do_not_go_on(change, says, base, data, stopped):
    before = files(stopped)
    usual = dict(adapter="alpha-lora", max_length=16)
    with pytest.raises(InputError, match=f"out = .*: holds a different run: {says}"):
        finetune(settings(base, data, **{**usual, **change}), stopped, resume=True)
    assert files(stopped) == before


def test_another_base_or_data_of_another_size_do_not_go_on(base, data, stopped, tmp_path):
    before = files(stopped)
    other = write_base(tmp_path / "base", layer_norm_eps=1e-6)
    with pytest.raises(InputError, match=r"holds a different run: base = "):
        finetune(settings(other, data, adapter="alpha-lora", alpha_every=T, max_length=16), stopped, resume=True)
    more = write_task(tmp_path / "more", train=40)
    with pytest.raises(InputError, match=r"holds a different run: steps = 15, here 24"):
        finetune(settings(base, more, adapter="alpha-lora", alpha_every=T, max_length=16), stopped, resume=True)
    same = write_task(tmp_path / "same", seed=1)
    with pytest.raises(InputError, match=r"holds a different run: dataset = "):
        finetune(settings(base, same, adapter="alpha-lora", alpha_every=T, max_length=16), stopped, resume=True)
    assert files(stopped) == before


def test_a_folder_with_a_run_is_not_begun_again(chosen, stopped, tmp_path):
    before = files(stopped)
    with pytest.raises(InputError, match=r"out = .*: already holds a run; resume it with --resume"):
        finetune(chosen, stopped)
    assert files(stopped) == before
    for name in ("checkpoints", "metrics.jsonl", "adapter", "model", "result.json", "curves.png"):
        out = tmp_path / name
        (out / name).mkdir(parents=True)
        for resume in (False, True):
            with pytest.raises(InputError, match=rf"out = .*: holds {name} without run.json"):
                finetune(chosen, out, resume=resume)
        assert [p.name for p in out.rglob("*")] == [name]
    (tmp_path / "file").write_text("mine")
    for resume in (False, True):
        with pytest.raises(InputError, match=r"out = .*file: cannot be used as an output folder"):
            finetune(chosen, tmp_path / "file", resume=resume)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("run.json", "{", r"run.json cannot be read"),
        ("run.json", '{"identity": []}', r"run.json cannot be read"),
        ("run.json", '{"identity": {"settings": 1}}', r"run.json cannot be read"),
        ("metrics.jsonl", None, r"metrics.jsonl cannot be read"),
        ("metrics.jsonl", "{nonsense\n", r"metrics.jsonl cannot be read"),
        ("metrics.jsonl", "", r"metrics.jsonl lacks some of the 1 epochs"),
        ("checkpoints/7/default/_METADATA", "", r"the checkpoint .*checkpoints/7 cannot be read .* the previous one"),
        (
            "checkpoints/7/default/manifest.ocdbt",
            "",
            r"the checkpoint .*checkpoints/7 cannot be read .* the previous one",
        ),
    ],
)
def test_damaged_files_are_named(name, content, says, chosen, shared, stopped, undisturbed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    if content is None:
        (out / name).unlink()
    else:
        (out / name).write_text(content)
    with pytest.raises(InputError, match=says) as error:
        finetune(chosen, out, resume=True, announce=shared)
    assert "\n" not in str(error.value)
    if name.endswith("_METADATA"):  # as it says
        shutil.rmtree(out / "checkpoints/7")
        finetune(chosen, out, resume=True, announce=shared)
        assert_same(left(out), undisturbed)


@pytest.mark.parametrize("name", ["save_every", "stop_after"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_steps_that_cannot_be(name, value, chosen, tmp_path):
    with pytest.raises(InputError, match=f"{name} = {value}: must be a whole number ≥ 1"):
        finetune(chosen, tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()


def test_resume_needs_a_folder(chosen):
    with pytest.raises(InputError, match="resume: needs out"):
        finetune(chosen, resume=True)


# --- real kills ---------------------------------------------------------------------------------------------------


@pytest.mark.kills
def test_a_killed_command_goes_on_to_the_same_bytes(base, data, tmp_path, programs):
    """SIGKILL while it compiles, and at random moments of a run that keeps every step; each core is a device."""
    command = [
        sys.executable, "-m", "rmtjax.cli", "finetune", "--task", "mrpc", "--adapter", "alpha-lora", "--data", data,
        "--model", base, "--rank", "2", "--epochs", "4", "--batch-size", "4", "--max-length", "16", "-T", "3",
        "--learning-rate", "0.01", "--resume", "--save-every", "1", "--json", "-", "--out",
    ]  # fmt: skip
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(programs)}

    def start(out):
        return subprocess.Popen([*command, out], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def finish(out):
        process = start(out)
        printed, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
        result = json.loads(printed)  # and nothing else was printed
        assert result == json.loads((out / "result.json").read_text())
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        assert result["made_with"]["device"].startswith(f"{cores} × ") and result["steps"] == 20

    finish(tmp_path / "whole")
    out, rng, cut = tmp_path / "killed", np.random.default_rng(0), []
    for _ in range(3):
        process = start(out)
        more = (checkpoints(out) or [0])[-1] + int(rng.integers(2, 9)) if cut else 0
        while process.poll() is None and not ((out / "run.json").exists() and (checkpoints(out) or [0])[-1] >= more):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        if process.returncode == -signal.SIGKILL and not (out / "result.json").exists():
            cut.append((checkpoints(out) or [0])[-1])
    assert len(cut) >= 2 and cut[-1] > cut[0], f"killed at {cut}: the test proves little"
    finish(out)
    assert_same(left(out), left(tmp_path / "whole"))
    for name in ("adapter_model.safetensors", "alpha.safetensors", "base/model.safetensors"):
        assert (out / "adapter" / name).read_bytes() == (tmp_path / "whole/adapter" / name).read_bytes()
