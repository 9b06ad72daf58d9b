"""Checkpoints of the training state."""

from __future__ import annotations

from pathlib import Path

import jax

from rmtjax._errors import InputError, shown
from rmtjax._files import settle
from rmtjax.finetune.step import TrainState

__all__ = ["Checkpoints"]


class Checkpoints:
    """Orbax checkpoints of the training state."""

    def __init__(self, folder: Path) -> None:
        import orbax.checkpoint as ocp

        self._ocp, self._folder = ocp, folder
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def latest(self, state: TrainState) -> TrainState | None:
        """Return the newest state, laid out as `state` is; None without one.

        Raises:
            InputError: if it cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        like = jax.tree.map(_abstract, state._asdict())
        try:
            return TrainState(**self._manager.restore(step, args=self._ocp.args.StandardRestore(like)))
        except (ValueError, OSError, KeyError, TypeError) as error:
            raise InputError(
                f"out: the checkpoint {self._folder / str(step)} cannot be read ({shown(str(error))}); delete that folder"
                " to resume from the previous one"
            ) from None

    def save(self, step: int, state: TrainState) -> None:
        """Write a state in the background, whole or not at all."""
        if self._manager.latest_step() != step:
            self._manager.save(step, args=self._ocp.args.StandardSave(state._asdict()))

    def close(self) -> None:
        """Wait until all pending writes are on the disk."""
        self._manager.wait_until_finished()
        self._manager.close()
        settle(self._folder)


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    """Return the shape, dtype and place of an array."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
