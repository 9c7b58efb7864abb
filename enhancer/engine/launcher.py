"""Who started this process, read from the environment that the launchers set. The one place that reads it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PARENT_VARIABLE = "WAVEWRIGHT_PARENT"
"""Set by a sweep for its members, and by who starts ranks without a launcher: its process id."""
NODE_VARIABLE = "WAVEWRIGHT_NODE"
"""Set by `launch/node.py`, which stands above the `deepspeed` command."""


@dataclass(frozen=True)
class Launch:
    """How this process came to be."""

    backend: str
    """The backend that goes with the launcher: `deepspeed` or `accelerate`."""
    local_world_size: int
    """Ranks on this machine."""
    num_ancestors: int
    """How many of the processes above belong to the launcher, so that their end is the end of the run."""
    has_user_threads: bool
    """Whether the number of threads was set by the user and not by the launcher."""
    num_in_session: int = 0
    """How many of them are in the session of this process."""
    parent_pid: int | None = None
    """The process above, where it said so: it may be gone before this one can look."""


def detect() -> Launch:
    """Tell the `deepspeed` launcher, torchrun, `accelerate launch`, a sweep and a plain start apart.

    torchrun (which `accelerate launch` uses for several processes) names its run; DeepSpeed's launch.py sets
    CROSS_RANK, CROSS_SIZE and LOCAL_SIZE, and stands between the `deepspeed` command and its ranks; above that may be
    `launch/node.py`. A program that starts ranks with these variables by itself names itself as their parent.
    """
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        size = int(environment["LOCAL_WORLD_SIZE"])
        return Launch("accelerate", size, 1, _has_user_threads())
    if {"RANK", "CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE"} <= environment.keys():
        size, has_threads = int(environment["LOCAL_SIZE"]), _has_user_threads()
        if environment.get(PARENT_VARIABLE) == str(os.getppid()):
            return Launch("deepspeed", size, 1, has_threads, parent_pid=os.getppid())
        num_ancestors = 3 if NODE_VARIABLE in environment else 2
        return Launch("deepspeed", size, num_ancestors, has_threads, num_in_session=2)
    if "ACCELERATE_MIXED_PRECISION" in environment:
        return Launch("accelerate", 1, 1, _has_user_threads(), num_in_session=1)
    has_threads = "OMP_NUM_THREADS" in environment
    if PARENT_VARIABLE in environment:
        return Launch("accelerate", 1, 1, has_threads, parent_pid=int(environment[PARENT_VARIABLE]))
    return Launch("accelerate", 1, 0, has_threads)


def started_unix() -> float:
    """When this process was started, to a hundredth of a second."""
    import psutil

    if sys.platform != "linux":
        return psutil.Process().create_time()
    # psutil counts from the start of the machine, which Linux tells in whole seconds.
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))


def is_first_rank() -> bool:
    """Whether this process is rank 0 by what its launcher says, for texts before the ranks have met."""
    return os.environ.get("RANK", "0") == "0"


def rank_of(environment: Mapping[str, str]) -> int | None:
    """The rank of this run that a process with `environment` is, or was started by; None for one of another run."""
    names = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")
    if "RANK" not in environment or any(environment.get(name) != os.environ.get(name) for name in names):
        return None
    return int(environment["RANK"])


def _has_user_threads() -> bool:
    """Whether OMP_NUM_THREADS was there before the launcher: torchrun and Accelerate set it to 1 by themselves."""
    import psutil

    if "OMP_NUM_THREADS" not in os.environ:
        return False
    try:
        return "OMP_NUM_THREADS" in psutil.Process().parents()[0].environ()
    except (psutil.Error, IndexError):
        return True


def set_threads(launch: Launch) -> None:
    """Share the cores among the ranks of a machine that has nothing else to compute on."""
    import torch

    if launch.local_world_size == 1 or launch.has_user_threads or torch.cuda.is_available():
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // launch.local_world_size))


def visible_devices() -> list[int] | None:
    """The GPUs that the machine's scheduler has left to this process, by number; None where it names none so."""
    words = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [int(word) for word in words] if all(word.strip().isdigit() for word in words) else None


def node_environment(interface: str | None) -> dict[str, str]:
    """For what `launch/node.py` starts: that it did, and the network `interface` to talk over where one is given."""
    named = {} if interface is None else {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    return {NODE_VARIABLE: "1", **named}


def slurm_place() -> tuple[int, str, int]:
    """(number of this node in its Slurm job, address of the first node, the job's id), inside a task of srun.

    The address is the one srun was called from, which is the first node: node names need not resolve.
    """
    environment = os.environ
    return (
        int(environment["SLURM_NODEID"]),
        environment["SLURM_LAUNCH_NODE_IPADDR"],
        int(environment["SLURM_JOB_ID"]),
    )
