"""Which input files go into which shard, under which keys: fixed before anything is built.

The plan follows from the sorted files and their headers alone. So any number of processes may build shards in
any order and get the same bytes, and a second run knows which shards are finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_shards.dataset import hash_texts
from data_shards.errors import CorpusError
from data_shards.format import BLOCK_BYTES, frame_bytes, members_of, shard_name
from data_shards.ingest import AudioHeader, RejectedInput, probe, segment_lengths
from data_shards.notes import NoteTake
from data_shards.options import BuildOptions
from data_shards.scan import AUDIO_EXTENSIONS, FoundFile, find_audio
from data_shards.sidecar import Reject
from data_shards.takes import DeviceTake, Take

# Typical share of the PCM bytes that FLAC keeps.
FLAC_SHARE = 0.6
PROBE_THREADS = 8
PROBE_CHUNK = 256

Report = Callable[[str, int, int], None]
"""`report(stage, done, total)`: called now and then while a build works."""


@dataclass(frozen=True)
class InputItem:
    """One input file, for a pair its target, and for a pedal or a string what was found out about it."""

    file: FoundFile
    target: FoundFile | None = None
    take: Take | None = None

    def identity(self) -> str:
        """Changes when the content may have changed (size or time) or would be called otherwise."""
        files = [self.file] if self.target is None else [self.file, self.target]
        lines = [f"{file.source}\0{file.stem}\0{file.size}\0{file.mtime_ns}" for file in files]
        return "\n".join(lines if self.take is None else [*lines, self.take.as_text()])


@dataclass(frozen=True)
class PlannedFile:
    """An input with the keys `first_key` to `first_key + num_keys - 1` set aside for its pieces."""

    file: FoundFile
    header: AudioHeader
    target: FoundFile | None
    target_header: AudioHeader | None
    group: str
    first_key: int
    num_keys: int
    take: Take | None = None


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be. `work` is the frames to decode for it, at the corpus rate."""

    name: str
    files: tuple[PlannedFile, ...]
    inputs_hash: str
    work: int


@dataclass(frozen=True)
class Inputs:
    """All that was found: items to build from, and files that are rejected for want of a partner."""

    items: tuple[InputItem, ...]
    rejects: tuple[Reject, ...]

    @property
    def hash(self) -> str:
        """Changes with any input file."""
        return hash_texts(
            [item.identity() for item in self.items] + [reject.source for reject in self.rejects]
        )

    @property
    def num_files(self) -> int:
        """Items and rejects."""
        return len(self.items) + len(self.rejects)


def find_inputs(inputs: Sequence[Path], targets: Sequence[Path]) -> Inputs:
    """Audio files below the folders; with `targets`, paired by relative stem, folder by folder."""
    labels = _labels(inputs)
    found = [find_audio(folder, label) for folder, label in zip(inputs, labels, strict=True)]
    if not any(found):
        raise CorpusError(
            f"No audio below {', '.join(map(str, inputs))}. Looked for {' '.join(AUDIO_EXTENSIONS)} "
            "in all folders there"
        )
    if not targets:
        items = [InputItem(file) for files in found for file in files]
        return Inputs(tuple(sorted(items, key=lambda item: item.file.source)), ())
    items, rejects = [], []
    for files, folder, label in zip(found, targets, labels, strict=True):
        paired, alone = _pair_up(files, find_audio(folder, label), folder)
        items += paired
        rejects += alone
    return Inputs(tuple(sorted(items, key=lambda item: item.file.source)), tuple(rejects))


def _labels(folders: Sequence[Path]) -> list[str]:
    """For one folder nothing; for several, the shortest ends of their paths that tell them apart."""
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) != len(resolved):
        raise CorpusError(f"A folder is given twice: {', '.join(map(str, folders))}. Give each once")
    for inner in resolved:
        for outer in resolved:
            if outer in inner.parents:
                raise CorpusError(
                    f"{inner} lies inside {outer}, so its files would count twice. Give one of them"
                )
    if len(folders) == 1:
        return [""]
    parts = 1
    while len({path.parts[-parts:] for path in resolved}) < len(resolved):
        parts += 1
    return ["/".join(path.parts[-parts:]).lstrip("/") for path in resolved]


def _pair_up(
    files: list[FoundFile], targets: list[FoundFile], folder: Path
) -> tuple[list[InputItem], list[Reject]]:
    """Items whose stem is there exactly once on both sides, and a reject for every other file."""
    by_stem: dict[str, tuple[list[FoundFile], list[FoundFile]]] = {}
    for side, listed in enumerate((files, targets)):
        for file in listed:
            by_stem.setdefault(file.stem, ([], []))[side].append(file)
    items, rejects = [], []
    for stem, (heard, wanted) in sorted(by_stem.items()):
        if len(heard) == len(wanted) == 1:
            items.append(InputItem(heard[0], wanted[0]))
        elif not wanted:
            rejects += [Reject(file.source, f"no target of the same name below {folder}") for file in heard]
        elif not heard:
            rejects += [Reject(file.source, "a target without an input of the same name") for file in wanted]
        else:
            names = ", ".join(file.source for file in heard + wanted)
            rejects += [Reject(file.source, f"{stem} is there several times: {names}") for file in heard]
    return items, rejects


def plan_shards(
    inputs: Inputs, options: BuildOptions, report: Report
) -> tuple[list[ShardPlan], list[Reject]]:
    """All shards, and the files whose header is already a reason to reject them.

    Files are taken in order; a shard ends before it would pass `shard_mb`. A recording is never torn in two.
    """
    plans: list[ShardPlan] = []
    rejects = list(inputs.rejects)
    files: list[PlannedFile] = []
    items: list[InputItem] = []
    size, work, key = 0.0, 0, 0

    def close() -> None:
        names = [options.shard_hash, *(item.identity() for item in items), str(files[0].first_key)]
        plans.append(ShardPlan(shard_name(options.kind, len(plans)), tuple(files), hash_texts(names), work))

    for item, probed in zip(inputs.items, _probe_all(inputs.items, report), strict=True):
        if isinstance(probed, Reject):
            rejects.append(probed)
            continue
        num_keys, item_size = _extent(probed[0], options, item.take)
        if files and size + item_size > options.shard_mb * 1e6:
            close()
            files, items, size, work = [], [], 0.0, 0
        group = (
            item.take.group if isinstance(item.take, NoteTake) else _group(item.file.stem, options.group_by)
        )
        planned = PlannedFile(item.file, probed[0], item.target, probed[1], group, key, num_keys, item.take)
        files.append(planned)
        items.append(item)
        size, key = size + item_size, key + num_keys
        work += sum(header.frames_at(options.rate_hz) for header in probed if header is not None)
    if files:
        close()
    return plans, rejects


Headers = tuple[AudioHeader, AudioHeader | None]


def _probe_item(item: InputItem) -> Headers | Reject:
    try:
        return probe(item.file), None if item.target is None else probe(item.target)
    except RejectedInput as error:
        return Reject(item.file.source, str(error))


def _probe_all(items: Sequence[InputItem], report: Report) -> Iterable[Headers | Reject]:
    # libsndfile works outside the interpreter lock, and on a network disk each open waits.
    with ThreadPoolExecutor(PROBE_THREADS) as pool:
        for first in range(0, len(items), PROBE_CHUNK):
            report("reading headers", first, len(items))
            yield from pool.map(_probe_item, items[first : first + PROBE_CHUNK])


def _extent(header: AudioHeader, options: BuildOptions, take: Take | None = None) -> tuple[int, float]:
    """(keys to set aside, bytes to expect)."""
    frames = header.frames_at(options.rate_hz)
    num_keys = len(segment_lengths(frames, options.segment_frames))
    if options.kind == "rir":
        num_keys = header.channels
        frames = num_keys * min(frames, options.rate_hz)
    if isinstance(take, DeviceTake):
        num_keys = len(take.stretches(frames))
    elif isinstance(take, NoteTake):
        num_keys, frames = 1, take.frames
    if options.kind == "pitch":
        num_keys, frames = num_keys * options.shift.copies, frames * options.shift.copies
    members = len(members_of(options.kind, options.codec))
    share = FLAC_SHARE if options.codec == "flac" else 1.0
    width = (frame_bytes(options.codec) or 2) * share
    return num_keys, members * (num_keys * 2 * BLOCK_BYTES + frames * width)


def _group(stem: str, group_by: str) -> str:
    return stem if group_by == "file" else str(PurePosixPath(stem).parent)
