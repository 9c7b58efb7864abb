"""Which groups validate. A function of each group's own name, so that new files move no old ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_shards.errors import CorpusError

# Rooms and noises may be shared by training and validation when there is only one; voices may not.
SHARED_KINDS = ("rir", "bg")


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of a corpus, int64, ascending. `warning` is one line to show when both are the same rows."""

    train: np.ndarray
    valid: np.ndarray
    warning: str | None = None


def group_hash(group: str) -> float:
    """A number in [0, 1) that depends on the name alone: blake2b, first 8 bytes / 2**64."""
    digest = hashlib.blake2b(group.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_groups(
    kind: str, groups: Sequence[str], group: np.ndarray, valid_fraction: float, place: str
) -> Split:
    """Split rows by group: `group_hash(name) < valid_fraction` validates.

    If no group qualifies, the one with the lowest hash validates; if all do, the one with the highest trains.
    One group alone is shared by both for rir and bg, and an error for fg and pair.

    Args:
        kind: kind of the corpus.
        groups: names.
        group: int [rows], the row's name as a place in `groups`.
        valid_fraction: share of groups kept for validation, in (0, 1).
        place: the corpus, for messages.
    """
    if not 0 < valid_fraction < 1:
        raise ValueError(f"valid_fraction is {valid_fraction}; needed a number between 0 and 1, such as 0.1")
    rows = np.arange(len(group), dtype=np.int64)
    if len(groups) == 1:
        if kind not in SHARED_KINDS:
            raise CorpusError(
                f"{place} has one group only ({groups[0]!r}), so nothing can be kept back for validation. "
                "Add recordings, or build with --group-by file if the folder holds several"
            )
        warning = f"{place} has one group only ({groups[0]!r}): training and validation share it"
        return Split(rows, rows, warning)
    hashes = np.array([group_hash(name) for name in groups])
    is_valid = hashes < valid_fraction
    if not is_valid.any():
        is_valid[np.argmin(hashes)] = True
    elif is_valid.all():
        is_valid[np.argmax(hashes)] = False
    chosen = is_valid[group]
    return Split(rows[~chosen], rows[chosen])
