"""Items of the validation list to hear and to look at: what runs make of the same input, put together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from enhancer.charts import BASELINES, Wave, moments, overlay_samples
from enhancer.report.record import RunRecord, number

EXCERPT_SECONDS = 5.0
DECAY_SECONDS = 8.0
_SOUND = re.compile(r"(\d+)_([\w -]+)\.wav")
_JUDGED = ("estimate", "target", *BASELINES)


@dataclass(frozen=True, eq=False)
class Heard:
    """One item through one run.

    `waves`: [T] by the task's names: estimate, target, what the model hears, and with some tasks one of BASELINES.
    """

    run: RunRecord
    item: int
    title: str
    rate_hz: int
    waves: dict[str, Tensor]
    origin: str
    """Which weights made it, in words."""

    @property
    def input_name(self) -> str:
        """What the task calls that which the model hears."""
        return next(name for name in self.waves if name not in _JUDGED)


@dataclass(eq=False)
class Example:
    """Runs that were given the same input and target."""

    first: Heard
    heard: list[Heard] = field(default_factory=list)

    @property
    def target(self) -> Tensor:
        """[T]."""
        return self.first.waves["target"]

    def waves(self) -> list[Wave]:
        """Input, target and the estimate of each run, under the names of the players."""
        name = self.first.input_name
        both = [Wave(name, "input", self.first.waves[name]), Wave("target", "target", self.target)]
        return both + self.estimates()

    def estimates(self) -> list[Wave]:
        """The estimate of each run, with one run called just that, and what a plain model makes of it."""
        is_alone = len(self.heard) == 1
        found = [
            Wave(
                "estimate" if is_alone else f"estimate of {each.run.name}",
                each.run.tone,
                each.waves["estimate"],
            )
            for each in self.heard
        ]
        plain = [name for name in BASELINES if name in self.first.waves]
        return found + [Wave(name, "baseline", self.first.waves[name]) for name in plain]

    def excerpt(self) -> tuple[int, int]:
        """First sample and length of what is played: all, or EXCERPT_SECONDS around the worst of the first run.

        Of a string the first DECAY_SECONDS."""
        rate_hz, length = self.first.rate_hz, self.target.shape[-1]
        if self.first.run.hp.task.name == "string":
            # A decay is heard from its start on.
            return 0, min(length, round(DECAY_SECONDS * rate_hz))
        count = min(length, round(EXCERPT_SECONDS * rate_hz))
        near = overlay_samples(rate_hz)
        worst = moments(self.first.waves["estimate"], self.target, near)["worst"] + near // 2
        return min(max(0, worst - count // 2), length - count), count


def grouped(heard: Iterable[Heard]) -> list[Example]:
    """Examples in the order of their first run; items whose input and target are alike to 16 bit are one."""
    examples: dict[str, Example] = {}
    for each in heard:
        key = hashlib.sha256(f"{each.rate_hz} {each.input_name}".encode())
        for name in (each.input_name, "target"):
            key.update((torch.nan_to_num(each.waves[name]) * 32767).round().short().numpy().tobytes())
        examples.setdefault(key.hexdigest(), Example(each)).heard.append(each)
    return list(examples.values())


def chosen_items(run: RunRecord, count: int) -> list[int]:
    """`count` items spread evenly from the worst to the best by the best metric; all where there are no more."""
    sign = 1 if run.best_is_higher else -1
    known = [(sign * number(row.get(run.best_metric)), int(row["item"])) for row in run.rows]
    ranked = [item for value, item in sorted(known, key=lambda pair: (not np.isnan(pair[0]), pair[0]))]
    if len(ranked) <= count:
        return ranked
    return [ranked[place] for place in np.linspace(0, len(ranked) - 1, count).round().astype(int)]


def from_samples(run: RunRecord, count: int) -> tuple[list[Heard], list[str]]:
    """The first `count` items whose sounds were kept when the run was judged, and what is to be said about it."""
    import soundfile

    folder = run.samples
    if folder is None:
        return [], ["no sounds were kept in its folder samples/"]
    found: dict[int, dict[str, Tensor]] = {}
    rates: dict[int, int] = {}
    notes = []
    for path in sorted(folder.glob("*.wav")):
        match = _SOUND.fullmatch(path.name)
        if not match:
            continue
        try:
            if (
                soundfile.info(path).frames > path.stat().st_size
            ):  # of WAV, as training keeps them, a byte at least
                raise OSError("its header promises more than the file holds")
            wave, rate_hz = soundfile.read(path, dtype="float32")
        except (OSError, soundfile.LibsndfileError) as error:
            notes.append(f"{folder.name}/{path.name} cannot be read: {error}")
            continue
        row = int(match[1])
        rates[row] = rate_hz
        found.setdefault(row, {})[match[2]] = torch.from_numpy(np.atleast_1d(wave))
    heard = [
        Heard(run, row, f"item {row}", rates[row], waves, f"kept when judged at {folder.name}")
        for row, waves in sorted(found.items())
        if is_whole(waves)
    ]
    if not heard:
        notes.append(f"samples/{folder.name} holds no item with input, estimate and target")
    return heard[:count], notes


def is_whole(waves: dict[str, Tensor]) -> bool:
    """Whether there are an estimate, a target and one input, of one channel and one length; maybe a baseline."""
    shapes = {tuple(wave.shape) for wave in waves.values()}
    names = set(waves) - set(BASELINES)
    return (
        {"estimate", "target"} < names
        and len(names) == 3
        and len(shapes) == 1
        and len(next(iter(shapes))) == 1
    )


def title(sources: Mapping[str, str]) -> str:
    """One line of the files behind an item, given by what they are."""
    return " · ".join(f"{kind} {name}" for kind, name in sources.items())
