"""Compile the DeepSpeed extensions that training uses into the environment, for images: no run waits for a compiler.

Training compiles nothing and takes an extension only if DeepSpeed was installed with it. So the installed version is
installed again, from source, with one: beside a CUDA build of torch and nvcc the fused Adam, elsewhere the
shared-memory collectives of the CPU. No GPU is needed; TORCH_CUDA_ARCH_LIST says for which ones to build.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version

# Run afresh: this process may have imported the DeepSpeed that was there before.
_CHECK = """
import sys
from deepspeed.git_version_info import installed_ops
sys.exit(not installed_ops.get(sys.argv[1]))
"""


def main() -> int:
    """Build one extension, and say which; returns the exit code."""
    import torch

    has_cuda = torch.version.cuda is not None and shutil.which("nvcc") is not None
    op, accelerator = ("fused_adam", "cuda") if has_cuda else ("deepspeed_shm_comm", "cpu")
    variable = "DS_BUILD_FUSED_ADAM" if has_cuda else "DS_BUILD_SHM_COMM"
    print(f"building {op} into deepspeed {version('deepspeed')} (some minutes)", flush=True)
    # Without a GPU in sight DeepSpeed would choose the CPU by itself.
    environment = {**os.environ, "DS_ACCELERATOR": accelerator, variable: "1"}
    command = [sys.executable, "-m", "pip", "install", "--no-cache-dir", "--no-deps", "--force-reinstall"]
    # Without isolation it is compiled for the torch that is installed.
    command += ["--no-build-isolation", "--no-binary", "deepspeed", f"deepspeed=={version('deepspeed')}"]
    code = subprocess.run(command, env=environment, check=False).returncode
    if code == 0:
        code = subprocess.run([sys.executable, "-c", _CHECK, op], env=environment, check=False).returncode
    if code:
        print(
            f"error: {op} could not be built. Needed are a C++ compiler, and for CUDA an nvcc of the version that "
            f"torch was built with ({torch.version.cuda}); the reason is above",
            file=sys.stderr,
        )
    return code


if __name__ == "__main__":
    sys.exit(main())
