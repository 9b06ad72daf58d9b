"""A fine-tuning that is killed at any moment ends with the weights of an undisturbed one."""

import pytest

from rmtjax.finetune import finetune

from ..finetune.helpers import assert_same, checkpoints, left, settings, write_base, write_task
from .helpers import KILLS, keep_programs, killed, whole

pytestmark = pytest.mark.kills


def tune(folder):
    """Twenty steps, each with a checkpoint; compiled programs are kept beside the data."""
    home = folder.parent
    keep_programs(home)
    chosen = settings(home, home, adapter="alpha-lora", epochs=5, alpha_every=3, max_length=16)
    finetune(chosen, folder, resume=True, save_every=1)


def steps(folder):
    """The last step that has a checkpoint."""
    return (checkpoints(folder) or [0])[-1]


def test_kills(tmp_path):
    write_base(tmp_path)
    write_task(tmp_path)
    whole(tune, tmp_path / "first")  # compiles
    seconds = whole(tune, tmp_path / "whole")
    wanted, last = left(tmp_path / "whole"), steps(tmp_path / "whole")
    assert last > 20
    files = [tmp_path / "whole/adapter" / f for f in ("adapter_model.safetensors", "alpha.safetensors")]

    def check(path):
        assert_same(left(path), wanted)
        for file in files:
            assert (path / "adapter" / file.name).read_bytes() == file.read_bytes()

    seen = killed(tune, tmp_path, seconds, check, steps)
    print(f"killed after {sorted(seen)} of {last} steps")
    assert len(seen) >= KILLS and sum(0 < n < last for n in seen) >= KILLS / 5, "few kills came in the middle"
