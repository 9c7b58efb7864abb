"""All targets by name, and how many inputs each gets."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fuzz import targets_audio, targets_corpus, targets_frozen, targets_run, targets_text


def shares(names: Sequence[str], count: int) -> dict[str, int]:
    """`count` inputs shared between the targets by their weights, one for each at least."""
    whole = sum(TARGETS[name].weight for name in names)
    counts = {name: max(1, int(count * TARGETS[name].weight / whole)) for name in names}
    counts[names[0]] += max(0, count - sum(counts.values()))
    return counts


TARGETS = {
    **targets_text.TARGETS,
    **targets_corpus.TARGETS,
    **targets_audio.TARGETS,
    **targets_run.TARGETS,
    **targets_frozen.TARGETS,
}
