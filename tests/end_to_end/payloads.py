"""Contents that execute code where a reader unpickles them or obeys YAML's tags: they make a file."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Touch:
    """Unpickled, it makes the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.marker,)


def payloads(marker: Path) -> dict[str, bytes]:
    """By what would execute them."""
    zipped, legacy, array = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"weight": Touch(marker)}, zipped)
    torch.save({"weight": Touch(marker)}, legacy, _use_new_zipfile_serialization=False)
    np.save(array, np.array([Touch(marker)], object), allow_pickle=True)
    return {
        "pickle": pickle.dumps(Touch(marker)),
        "old pickle": pickle.dumps(Touch(marker), protocol=0),
        "torch": zipped.getvalue(),
        "old torch": legacy.getvalue(),
        "numpy": array.getvalue(),
        "yaml": f"!!python/object/apply:os.system ['touch {marker}']\n".encode(),
    }
