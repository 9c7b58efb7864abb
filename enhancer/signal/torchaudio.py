"""`torchaudio`, made importable beside a CPU-only torch. Nothing else in the project imports it directly.

The published torchaudio wheel is a CUDA build: beside a CPU-only torch its native library cannot be loaded,
and the import fails with OSError. All that is used here is Python over torch, so a CPU-only torch gets a
stand-in for `torchaudio._extension`, the module that loads the library. A torch with CUDA or ROCm gets
torchaudio untouched.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

EXTENSION = "torchaudio._extension"


def _import() -> ModuleType:
    is_cpu_only = torch.version.cuda is None and torch.version.hip is None
    if is_cpu_only and "torchaudio" not in sys.modules:
        sys.modules[EXTENSION] = _stand_in()
    return importlib.import_module("torchaudio")


def _stand_in() -> ModuleType:
    extension = ModuleType(
        EXTENSION, doc="Says that the native library is absent, as a build without it would."
    )
    extension.__dict__.update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        fail_if_no_align=_fail_without_library,
    )
    return extension


def _fail_without_library(function: object) -> object:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError(
            f"{getattr(function, '__name__', function)} needs torchaudio's native library, "
            "which does not load beside a CPU-only torch; install torch and torchaudio of the same build"
        )

    return fail


torchaudio = _import()
