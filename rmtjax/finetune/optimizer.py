"""The optimizer of the adapters and the head."""

from __future__ import annotations

from collections.abc import Sequence

import optax

from rmtjax.adapters import OrthogonalParam, stiefel
from rmtjax.finetune.settings import Settings
from rmtjax.finetune.step import Parts

__all__ = ["optimizer_of"]


def optimizer_of(settings: Settings, parts: Parts, names: Sequence[str], steps: int) -> optax.GradientTransformation:
    """Return AdamW with linear warm-up and decay for adapters and head, on the Stiefel manifold for orthogonal adapters."""
    rising = round(settings.warmup_ratio * steps)
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, settings.learning_rate, max(rising, 1)),
            optax.linear_schedule(settings.learning_rate, 0.0, max(steps - rising, 1)),
        ],
        [rising],
    )
    is_matrix = {name: parts.template[name].ndim > 1 for name in names}
    plain = optax.adamw(schedule, weight_decay=settings.weight_decay, mask=lambda _: is_matrix)
    orthogonal = {name for name in names if isinstance(parts.template[name], OrthogonalParam)}
    if orthogonal:
        labels = {name: "orthogonal" if name in orthogonal else "plain" for name in names}
        kinds = {
            "plain": plain,
            "orthogonal": stiefel(optax.adamw(schedule, weight_decay=0.0)),
        }
        plain = optax.partition(kinds, labels)
    return optax.chain(optax.clip_by_global_norm(settings.max_grad_norm), plain)
