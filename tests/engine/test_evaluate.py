"""Evaluation: every item once, in order, whatever the batch; the interval; what training is left with."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_guard import make_backend
from toy import NUM_ITEMS, ToyStream, ToyTask

from enhancer.engine.batches import DataFailure
from enhancer.engine.evaluate import NUM_RESAMPLES, Interval, evaluate, summarise
from enhancer.engine.media import NoMedia
from enhancer.engine.stop import Stop


@pytest.mark.parametrize("batch_size", [1, 4, 8, 16])
def test_every_item_is_there_once_in_order_and_fillers_are_not(batch_size):
    task = ToyTask()
    evaluation = evaluate(task, ToyStream(batch_size=batch_size), make_backend(task), Stop(), NoMedia())
    assert evaluation is not None
    assert [row["item"] for row in evaluation.rows] == list(range(NUM_ITEMS))
    errors = [row["error"] for row in evaluation.rows]
    assert evaluation.summary["error"].mean == pytest.approx(np.mean(errors), rel=1e-12)
    assert task.shown == [item if item < NUM_ITEMS else -1 for item in range(batch_size)]


def test_modes_and_random_generators_are_as_before():
    task = ToyTask()
    backend = make_backend(task)
    backend.raw_modules["generator"][1].eval()
    modes = [module.training for module in backend.raw_modules["generator"].modules()]
    state = torch.get_rng_state()
    first = evaluate(task, ToyStream(), backend, Stop(), NoMedia())
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in backend.raw_modules["generator"].modules()] == modes
    second = evaluate(task, ToyStream(), backend, Stop(), NoMedia())
    assert first is not None and second is not None
    assert first.rows == second.rows  # dropout is off


def test_a_stop_request_gives_it_up():
    task, stop = ToyTask(), Stop()
    stop.request("asked")
    assert evaluate(task, ToyStream(), make_backend(task), stop, NoMedia()) is None


def test_one_whose_pictures_were_cut_short_is_given_up():
    class Cut(NoMedia):
        is_cut = True

    task = ToyTask()
    assert evaluate(task, ToyStream(batch_size=16), make_backend(task), Stop(), Cut()) is None


def test_damaged_validation_data_and_an_empty_list_say_so():
    class Damaged(ToyStream):
        def validation(self):
            yield next(super().validation())
            raise ValueError("shard-000001.tar is damaged")

    class Empty(ToyStream):
        def validation(self):
            return iter(())

    task = ToyTask()
    with pytest.raises(DataFailure, match="shard-000001"):
        evaluate(task, Damaged(), make_backend(task), Stop(), NoMedia())
    with pytest.raises(DataFailure, match="valid_fraction"):
        evaluate(task, Empty(), make_backend(task), Stop(), NoMedia())


def test_the_interval_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(7).normal(3.0, 2.0, size=60)
    rows = [{"item": item, "error": value} for item, value in enumerate(values)]
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=200_000, method="percentile", rng=1, batch=20_000
    ).confidence_interval
    intervals = [summarise(rows, seed)["error"] for seed in range(40)]
    assert intervals[0].mean == pytest.approx(values.mean())
    # Standard error of a resampled 2.5 % point of a normal: sqrt(p (1 - p) / n) / density there.
    spread = math.sqrt(0.025 * 0.975 / NUM_RESAMPLES) / scipy.stats.norm.pdf(1.96)
    spread *= values.std() / math.sqrt(len(values))
    for name in ("low", "high"):
        errors = np.array([getattr(each, name) for each in intervals]) - getattr(expected, name)
        # The reference has an error of its own, of 20 times as many resamples.
        assert abs(errors.mean()) < 4 * spread * math.sqrt(1 / 40 + 1 / 20), (name, errors.mean(), spread)
        assert np.abs(errors).max() < 5 * spread, (name, errors, spread)


def test_the_interval_is_the_same_each_time_and_a_row_without_a_value_does_not_count():
    rows = [{"item": item, "error": float(item)} for item in range(5)]
    assert summarise(rows) == summarise(rows)
    with_gap = summarise([*rows, {"item": 5, "error": math.nan}])
    assert with_gap == summarise(rows)
    empty = summarise([{"item": 0, "error": math.nan}])["error"]
    assert isinstance(empty, Interval) and math.isnan(empty.mean)
