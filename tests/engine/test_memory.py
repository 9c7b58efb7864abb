"""Memory that is kept: counted by the page faults that the system reports, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from enhancer.engine.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
# Small blocks may lie between the first large ones; after some rounds all have found their place.
print(min(faults() for _ in range(8)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_a_block_that_was_freed_is_used_again_without_a_page_fault():
    """Four tensors of 64 MB, one after another, each on the pages of the one before."""
    found = {}
    for way in ("given back", "kept"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=True
        )
        found[way] = int(done.stdout)
    assert found["kept"] < 100
    assert found["given back"] > 100 * found["kept"]
