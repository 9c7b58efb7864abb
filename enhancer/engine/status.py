"""Reading `status.json` of a run folder, which `enhancer.engine.run` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enhancer.engine.run import STATUS
from hparams.errors import UserError
from hparams.source import read_json

_TYPES: dict[str, tuple[type, ...]] = {"state": (str,), "step": (int,), "reason": (str,)}


def read_status(folder: Path) -> Mapping[str, Any] | None:
    """Content of a run's `status.json`: `state`, `step`, `reason` and more; None where there is none.

    Raises UserError where it is damaged.
    """
    path = folder / STATUS
    if not path.exists():
        return None
    status = read_json(path, str(path))
    for key, types in _TYPES.items():
        if type(status.get(key)) not in types:
            raise UserError(
                f"{path} is damaged: its {key} is {status.get(key)!r:.60}; remove it, it is only told from"
            )
    return status
