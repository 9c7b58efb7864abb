"""Run-time checks of shapes and types in the audio packages, and what several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

REPOSITORY = Path(__file__).resolve().parents[1]

# Before anything imports them: every annotation of these packages is checked at every call, in tests only.
install_import_hook(
    [
        "enhancer.signal",
        "enhancer.losses",
        "enhancer.metrics",
        "enhancer.string_metrics",
        "enhancer.repair_metrics",
    ],
    "beartype.beartype",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped, with the reason, where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def random() -> torch.Generator:
    """A generator of its own for each test, always of the same seed."""
    return torch.Generator().manual_seed(20)


@pytest.fixture
def noise_wave(random: torch.Generator) -> torch.Tensor:
    """Two rows of white noise at -20 dBFS, of an awkward length."""
    return 0.1 * torch.randn(2, 10_007, generator=random)


@pytest.fixture(scope="session")
def shared_audio() -> Path:
    """Folder of real recordings: `audio` under $WAVEWRIGHT_SHARED, or under ../shared beside the repository."""
    shared = Path(os.environ.get("WAVEWRIGHT_SHARED", REPOSITORY.parent / "shared"))
    if not (shared / "audio").is_dir():
        pytest.skip(
            f"no folder of real recordings at {shared / 'audio'}; set WAVEWRIGHT_SHARED to the folder above it"
        )
    return shared / "audio"
