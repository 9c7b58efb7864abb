"""Parts of optimiser states: put together and parted again, against the whole from which they were cut."""

from __future__ import annotations

import pytest
import torch

from enhancer.engine.deepspeed_partitions import parted_again
from hparams.errors import UserError


def parts(lengths: list[int], world_size: int, values: torch.Tensor | None = None) -> list[dict]:
    """States as DeepSpeed writes them, of groups of `lengths` weights; weight k of all is k, its state 1000 + k."""
    states: list[dict] = [
        {
            "single_partition_of_fp32_groups": [],
            "group_paddings": [],
            "loss_scaler": 1.0,
            "partition_count": world_size,
        }
        for _ in range(world_size)
    ]
    for state in states:
        groups = [{"params": [number], "lr": 0.5} for number in range(len(lengths))]
        state["base_optimizer_state"] = {"state": {}, "param_groups": groups}
    first = 0
    for group, length in enumerate(lengths):
        size = -(-length // (2 * world_size)) * 2
        flat = torch.arange(first, first + length, dtype=torch.float32)
        for rank, state in enumerate(states):
            part = flat[rank * size : (rank + 1) * size]
            padding = size - len(part)
            state["single_partition_of_fp32_groups"].append(part)
            state["group_paddings"].append(padding)
            filled = torch.cat([part + 1000, torch.zeros(padding)])
            state["base_optimizer_state"]["state"][group] = {"step": torch.tensor(7.0), "exp_avg": filled}
        first += length
    return states


@pytest.mark.parametrize("lengths", [[1], [2, 3], [17, 64, 5], [1000]])
@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2), (2, 4), (4, 2), (3, 5), (8, 2), (2, 2)])
def test_parts_for_other_ranks_are_those_of_the_same_whole(lengths, before, now):
    for rank, expected in enumerate(parts(lengths, now)):
        own = {
            **expected,
            "single_partition_of_fp32_groups": [
                w * 0 - 1 for w in expected["single_partition_of_fp32_groups"]
            ],
        }
        found = parted_again(iter(parts(lengths, before)), own, rank)
        for group in range(len(lengths)):
            for ours, theirs in (
                (found["single_partition_of_fp32_groups"], expected["single_partition_of_fp32_groups"]),
                *(
                    (
                        [found["base_optimizer_state"]["state"][group][name]],
                        [expected["base_optimizer_state"]["state"][group][name]],
                    )
                    for name in ("step", "exp_avg")
                ),
            ):
                assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
        assert found["group_paddings"] == expected["group_paddings"]
        assert found["partition_count"] == now


@pytest.mark.parametrize("saved", [[16], [64]])
def test_states_of_another_number_of_weights_are_refused(saved):
    own = parts([30], 4)
    refusals = 0
    for rank in range(4):
        try:
            parted_again(iter(parts(saved, 2)), own[rank], rank)
        except UserError as error:
            assert f"saved for {saved[0]} weights" in str(error)
            refusals += 1
    assert refusals
