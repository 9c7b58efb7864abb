"""Build the DeepSpeed extensions that training uses on this machine, so that no run waits for a compiler.

Used while an image is built. On a machine without an NVIDIA toolkit only the CPU's shared-memory collectives are built.
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Build, and say what was built; returns the exit code."""
    from deepspeed.ops.op_builder.builder import installed_cuda_version

    builders = []
    if "CUDA_HOME" in os.environ or os.path.isdir("/usr/local/cuda"):
        from deepspeed.ops.op_builder import FusedAdamBuilder

        print(f"CUDA {installed_cuda_version()}: fused Adam", flush=True)
        builders.append(FusedAdamBuilder())
    else:
        from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

        print("no CUDA toolkit: shared-memory collectives for the CPU", flush=True)
        builders.append(ShareMemCommBuilder())
    for builder in builders:
        builder.load(verbose=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
