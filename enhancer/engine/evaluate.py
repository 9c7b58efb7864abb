"""Evaluation of the live weights on the fixed validation list, shared by all ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from enhancer.engine import distributed, rng
from enhancer.engine.backend import Backend
from enhancer.engine.batches import raise_failures
from enhancer.engine.guard import Flags
from enhancer.engine.parts import cut, num_equal_parts
from enhancer.engine.pulse import Pulse
from enhancer.engine.stop import Stop
from enhancer.engine.task import Batch, Media, Stream, Task
from enhancer.engine.update import StepModules

Row = dict[str, float]

LABEL = "label_"
"""Values of a row whose names begin so say what the item is, not how well it was done."""
NUM_RESAMPLES = 10_000
"""Resamples of the bootstrap: an end of the interval is then known to 0.03 standard errors of the mean."""


@dataclass(frozen=True)
class Interval:
    """Mean of a metric over the validation list with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """Metrics of every item of the validation list, in its order, the same on every rank."""

    rows: list[Row]
    """One for each item: `item` and the task's metrics."""
    summary: dict[str, Interval]
    seconds: float


def evaluate(
    task: Task,
    stream: Stream,
    backend: Backend,
    stop: Stop,
    media: Media,
    pulse: Pulse | None = None,
    most_rows: int | None = None,
) -> Evaluation | None:
    """Metrics of the validation list, or None when a stop request made all ranks give it up.

    Batches of more than `most_rows` are taken in parts. The first one is given to the task's `show`. Neither the
    modules' modes nor the random generators of training are changed by it.

    Raises DataFailure on every rank when validation data of any rank fail.
    """
    started = time.perf_counter()
    modules = StepModules(backend.raw_modules, backend.raw_modules)
    with _evaluating(modules):
        batches = _checked(stream, most_rows)
        rows = _rows_of_this_rank(task, batches, backend, modules, stop, media, pulse or Pulse())
    if rows is None:
        return None
    gathered = sorted(
        (row for part in distributed.all_gather(rows) for row in part), key=lambda row: row["item"]
    )
    if not gathered:
        raise_failures("the validation list is empty; raise valid_fraction or give more recordings")
    return Evaluation(gathered, summarise(gathered), time.perf_counter() - started)


def summarise(rows: Sequence[Row], seed: int = 0) -> dict[str, Interval]:
    """Mean and 95 % percentile-bootstrap interval of each metric, labels left out.

    A row where a metric is NaN does not count for it.
    """
    summary = {}
    for name in rows[0]:
        if name == "item" or name.startswith(LABEL):
            continue
        values = np.array([row[name] for row in rows], dtype=np.float64)
        values = values[~np.isnan(values)]
        if not len(values):
            summary[name] = Interval(float("nan"), float("nan"), float("nan"))
            continue
        picks = np.random.default_rng(seed).integers(len(values), size=(NUM_RESAMPLES, len(values)))
        low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
        summary[name] = Interval(float(values.mean()), float(low), float(high))
    return summary


@dataclass(frozen=True)
class Group:
    """Rows that have something in common: `name` of the kind `kind`."""

    kind: str
    name: str
    count: int
    summary: dict[str, Interval]


def groups_of_task(task: Any, rows: Sequence[Row]) -> list[Group]:
    """Summaries of `task.grouped_metrics` in each group that `task.groups_of` puts a row in; none for most tasks.

    Metrics that rows do not have, whose package is not installed, are left out.
    """
    if not hasattr(task, "groups_of") or not rows:
        return []
    names = [name for name in task.grouped_metrics if all(name in row for row in rows)]
    members: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        kept = {name: row[name] for name in names}
        for key in task.groups_of(row).items():
            members.setdefault(key, []).append(kept)
    kinds = list(dict.fromkeys(kind for kind, _ in members))
    ordered = sorted(members, key=lambda key: (kinds.index(key[0]), key[1]))
    return [Group(*key, len(members[key]), summarise(members[key])) for key in ordered]


def _rows_of_this_rank(
    task: Task,
    batches: Iterator[tuple[Batch, str]],
    backend: Backend,
    modules: StepModules,
    stop: Stop,
    media: Media,
    pulse: Pulse,
) -> list[Row] | None:
    rows: list[Row] = []
    is_first = True
    for batch, failure in batches:
        pulse.mark("an evaluation")
        agreed = Flags(is_stopping=stop.is_requested, is_missing=bool(failure)).agreed()
        if agreed.is_missing:
            raise_failures(failure)
        if agreed.is_stopping:
            return None
        on_device = {key: value.to(backend.device) for key, value in batch.items()}
        metrics = task.evaluate(modules, on_device)
        items = batch["item"].tolist()
        rows += [{"item": item, **row} for item, row in zip(items, metrics, strict=True) if item >= 0]
        if is_first and (distributed.is_main() or backend.is_sharded):
            task.show(modules, on_device, media)
        is_first = False
    # Without all of its pictures it is not complete: it is done again when the run goes on.
    return None if Flags(is_stopping=media.is_cut).agreed().is_stopping else rows


def _checked(stream: Stream, most_rows: int | None) -> Iterator[tuple[Batch, str]]:
    """Validation batches, or their parts, with an empty text; a failure ends them with its own text."""
    try:
        for batch in stream.validation():
            num_rows = len(batch["item"])
            for part in cut(batch, num_equal_parts(num_rows, most_rows or num_rows)):
                yield part, ""
    except (ValueError, OSError, RuntimeError) as error:
        yield {}, f"{type(error).__name__}: {error}"


@contextmanager
def _evaluating(modules: StepModules) -> Iterator[None]:
    """Eval mode without gradients; modes and random generators are put back as they were."""
    modes = [(part, part.training) for module in modules.values() for part in module.modules()]
    generators = rng.capture()
    for module in modules.values():
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        rng.restore(generators)
