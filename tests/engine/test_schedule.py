"""The learning rate against DeepSpeed's own schedulers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from enhancer.engine.schedule import learning_rate

RATES = """
import json, logging, sys, warnings
import torch
from deepspeed.runtime.lr_schedules import WarmupDecayLR, WarmupLR
from deepspeed.utils import logger
logger.setLevel(logging.ERROR)
table = []
for is_falling, warmup, total in json.loads(sys.argv[1]):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    values = (1e-5, 1e-3, warmup, "linear")
    schedule = WarmupDecayLR(optimizer, total, *values) if is_falling else WarmupLR(optimizer, *values)
    rates = []
    for step in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    table.append(rates)
print(json.dumps(table))
"""


CASES = [(True, 1, 5), (True, 2, 6), (True, 7, 20), (True, 10, 11), (False, 1, 6), (False, 7, 20)]


def test_rates_are_those_of_deepspeeds_schedulers():
    done = subprocess.run(
        [sys.executable, "-c", RATES, json.dumps(CASES)], capture_output=True, text=True, check=True
    )
    table = json.loads(done.stdout.splitlines()[-1])
    for (is_falling, warmup_steps, num_steps), expected in zip(CASES, table, strict=True):
        values = {"warmup_steps": warmup_steps, "max_steps": num_steps if is_falling else None}
        found = [learning_rate(step, min_lr=1e-5, max_lr=1e-3, **values) for step in range(num_steps)]
        assert found == pytest.approx(expected, rel=1e-12, abs=0), values


def test_the_rate_is_highest_after_the_warm_up_and_never_below_its_least():
    rates = [
        learning_rate(step, min_lr=1e-5, max_lr=1e-3, warmup_steps=10, max_steps=100) for step in range(120)
    ]
    assert rates.index(max(rates)) == 11
    assert max(rates) == 1e-3
    assert min(rates) == rates[-1] == 1e-5
