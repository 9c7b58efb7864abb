"""Starting DeepSpeed on this machine without compiling anything and without its log lines."""

from __future__ import annotations

import logging
import os
import socket

import torch

from enhancer.engine import distributed


def start() -> torch.device:
    """Join (or make) the process group and choose the device. Nothing is compiled, nothing is logged."""
    if not torch.cuda.is_available():
        # Else DeepSpeed warns that it has found no accelerator.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    _fill_environment()
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    if not _is_built("deepspeed_shm_comm"):
        # With no op marked compatible, init_distributed does not compile the shared-memory all-reduce for a minute
        # (or fail without a compiler) and gloo does that work. Nothing else asks this table.
        deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(
        dist_backend=get_accelerator().communication_backend_name(),
        auto_mpi_discovery=False,
        verbose=False,
        timeout=distributed.COLLECTIVE_TIMEOUT,
    )
    local_rank = int(os.environ["LOCAL_RANK"])
    get_accelerator().set_device(local_rank)
    return torch.device(get_accelerator().device_name(local_rank))


def can_use_fused_adam() -> bool:
    """Whether DeepSpeed's fused Adam was built beforehand; else torch's AdamW takes its place."""
    return torch.cuda.is_available() and _is_built("fused_adam")


def _is_built(op: str) -> bool:
    """Whether DeepSpeed was installed with `op` prebuilt, so that it needs no compiling."""
    from deepspeed.git_version_info import installed_ops

    return bool(installed_ops.get(op, False))


def _fill_environment() -> None:
    """Describe a run of one process where no launcher has described any."""
    if "RANK" in os.environ:
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
