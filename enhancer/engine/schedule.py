"""Learning rate as a pure function of the number of steps taken, and of decays on a plateau."""

from __future__ import annotations


def learning_rate(
    step: int, *, min_lr: float, max_lr: float, warmup_steps: int, max_steps: int | None
) -> float:
    """Rate of the step that follows `step` finished ones: linear up to `max_lr`, then linear down to `min_lr`.

    Without `max_steps` it stays at `max_lr`. The numbers are those of DeepSpeed's WarmupDecayLR (without: WarmupLR)
    with `warmup_type` linear, so that a run has the same rates on either backend: its schedule starts after the first
    step, so the first two steps are both taken at `min_lr`, and its warm-up has at least two steps.
    """
    iteration = max(step - 1, 0)
    warmup = max(2, warmup_steps)
    if iteration < warmup:
        share = iteration / warmup
    elif max_steps is None:
        share = 1.0
    else:
        share = max(0.0, (max_steps - iteration) / max(1.0, max_steps - warmup))
    return min_lr + (max_lr - min_lr) * share


def plateau_rate(decays: int, *, min_lr: float, max_lr: float, factor: float) -> float:
    """Rate after the warm-up once it was lowered `decays` times on a plateau, never below `min_lr`."""
    return max(min_lr, max_lr * factor**decays)
