"""torchaudio works beside this torch, and a torch with an accelerator gets the real one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout.strip()


def test_a_fresh_process_can_import_and_resample():
    printed = run_python(
        "from enhancer.signal.torchaudio import torchaudio; import torch;"
        "print(torchaudio.functional.resample(torch.ones(1, 480), 48000, 24000).shape[-1])"
    )
    assert printed == "240"


@pytest.mark.parametrize("field", ["cuda", "hip"])
def test_a_torch_with_an_accelerator_gets_no_stand_in(field):
    printed = run_python(
        f"import importlib, sys, torch; torch.version.{field} = '13.0'\n"
        "class Real: pass\n"
        "importlib.import_module, real = (lambda name: Real), importlib.import_module\n"
        "from enhancer.signal.torchaudio import torchaudio\n"
        "print(torchaudio is Real, 'torchaudio._extension' in sys.modules)"
    )
    assert printed == "True False"


def test_a_torchaudio_that_is_already_imported_is_left_alone():
    printed = run_python(
        "import sys, types; sys.modules['torchaudio'] = theirs = types.ModuleType('torchaudio')\n"
        "from enhancer.signal.torchaudio import torchaudio\n"
        "print(torchaudio is theirs, 'torchaudio._extension' in sys.modules)"
    )
    assert printed == "True False"


@pytest.mark.skipif(
    torch.version.cuda is not None or torch.version.hip is not None, reason="this torch gets the real library"
)
def test_what_needs_the_native_library_says_so():
    from enhancer.signal.torchaudio import torchaudio

    with pytest.raises(RuntimeError, match="forced_align needs torchaudio's native library"):
        torchaudio.functional.forced_align(torch.zeros(1, 2, 3), torch.zeros(1, 1))
