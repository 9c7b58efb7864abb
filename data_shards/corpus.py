"""An opened corpus: every sample's place as numpy arrays, and the split into training and validation.

Opening stats each shard and parses each sidecar; no audio is read. `data_shards.verify` reads every byte.
A corpus at a URL is opened alike; its shards are fetched into the cache of the machine when first read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.cache import SIZE_VARIABLE, CachedShard, ShardCache
from data_shards.dataset import DATASET_NAME, DatasetInfo, ShardInfo, hash_texts, parse_dataset
from data_shards.errors import CorpusError
from data_shards.format import is_shard_name, members_of
from data_shards.notes import NoteTake
from data_shards.remote import RemoteFolder, RemoteMissing
from data_shards.scan import first_audio_file, require_local
from data_shards.shifts import ShiftTake
from data_shards.sidecar import Sidecar, parse_sidecar, sidecar_path
from data_shards.split import Split, split_groups
from data_shards.takes import TRAIN_SIDE, VALID_SIDE, DeviceTake
from hparams.place import is_url


@dataclass(frozen=True, eq=False)
class MemberTable:
    """One member (such as `wav`) of every sample. All arrays have shape [samples].

    offset: int64, where its data start in the tar. size: int64, bytes. crc32: uint32 of those bytes.
    peak, rms: float32, re full scale.
    """

    offset: np.ndarray
    size: np.ndarray
    crc32: np.ndarray
    peak: np.ndarray
    rms: np.ndarray


@dataclass(frozen=True, eq=False)
class Corpus:
    """All samples of a corpus, in the order of its shards. Arrays have shape [samples]; can be pickled.

    key: int64. shard: int32, row of `shards`. frames: int64, at `rate_hz`. group: int32, row of `groups`.
    source: int32, row of `sources` (paths relative to the folder that was built from).
    members: `wav` or `flac`; for pairs `input.wav` and `target.wav` (or `.flac`).
    takes, notes, shifts: what is known of each sample, for kind `pedal`, `string` and `pitch`; else empty.
    """

    folder: Path | str
    """A str is a URL."""
    kind: str
    rate_hz: int
    codec: str
    fingerprint: str
    shards: tuple[Path, ...] | tuple[CachedShard, ...]
    groups: tuple[str, ...]
    sources: tuple[str, ...]
    key: np.ndarray
    shard: np.ndarray
    frames: np.ndarray
    group: np.ndarray
    source: np.ndarray
    members: dict[str, MemberTable]
    takes: tuple[DeviceTake, ...] = ()
    notes: tuple[NoteTake, ...] = ()
    shifts: tuple[ShiftTake, ...] = ()

    @classmethod
    def open(cls, folder: Path | str, kind: str, rate_hz: int | None = None) -> Corpus:
        """Open `folder`, which must hold a finished corpus of `kind` at `rate_hz` (None: any rate).

        Args:
            folder: a folder of this machine; as text also a URL that fsspec knows, such as `s3://bucket/fg`.

        Raises CorpusError, saying what to do, when the folder is missing, empty, plain audio, an unfinished
        build, of another kind or rate, or when a shard or sidecar is missing, cut, or of another file.
        """
        remote = RemoteFolder(folder) if isinstance(folder, str) and is_url(folder) else None
        folder = Path(folder).expanduser() if remote is None else remote.url
        info = _read_remote_dataset(remote, kind) if remote else read_dataset(Path(folder), kind)
        if info.kind != kind:
            raise CorpusError(
                f"{folder} is a corpus of kind {info.kind}, but kind {kind} is needed here. "
                f"Give the {kind} corpus, or build one: {build_command(kind, 'DIR', Path('data') / kind)}"
            )
        if rate_hz is not None and info.rate_hz != rate_hz:
            raise CorpusError(
                f"{folder} is at {info.rate_hz} Hz, but {rate_hz} Hz is needed. "
                f"Rebuild it with --rate {rate_hz}, or set wav_rate to {info.rate_hz}"
            )
        sidecars, shards = _open_remote(remote, info) if remote else _open_local(Path(folder), info)
        if info.num_samples == 0:
            raise CorpusError(f"{folder} holds no samples. Rebuild it from audio that is not silent")
        return _join(folder, info, sidecars, shards)

    def __len__(self) -> int:
        return len(self.key)

    @property
    def seconds(self) -> float:
        """Audio of all samples, seconds (of a pair: of one side)."""
        return float(self.frames.sum()) / self.rate_hz

    @property
    def cache(self) -> ShardCache | None:
        """Where the shards of a remote corpus are kept; None for a corpus of this machine."""
        return next((shard.cache for shard in self.shards if isinstance(shard, CachedShard)), None)

    def split(self, valid_fraction: float) -> Split:
        """Rows for training and for validation, by a stable hash of the group. See `split_groups`.

        A pedal corpus was split when it was built: its groups are the sides. What is kept for a test is in neither.
        Raises CorpusError when there is only one group and the kind is fg or pair.
        """
        if self.kind == "pedal":
            train, valid = (
                np.flatnonzero(np.array([name == side for name in self.groups])[self.group]).astype(np.int64)
                for side in (TRAIN_SIDE, VALID_SIDE)
            )
            return Split(train, valid)
        return split_groups(self.kind, self.groups, self.group, valid_fraction, str(self.folder))


def build_command(kind: str, source: Path | str, output: Path | str) -> str:
    """The shell command that builds a corpus."""
    if kind == "pedal":
        return f"python launch/build_shards.py pedal --dry IN.wav --wet OUT.wav --output {output}"
    target = " --target DIR" if kind == "pair" else ""
    return f"python launch/build_shards.py {kind} --input {source}{target} --output {output}"


def read_dataset(folder: Path, kind: str | None = None) -> DatasetInfo:
    """`dataset.json` of `folder`. Raises CorpusError with the command to run when there is none."""
    wanted = kind or "fg"
    name = f"{kind} corpus" if kind else "corpus"
    require_local(folder, f"The {name}")
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise CorpusError(f"The {name} {folder} {what}. Build it: {build_command(wanted, 'DIR', folder)}")
    path = folder / DATASET_NAME
    if path.is_file():
        require_inside(folder, path)
        return parse_dataset(path.read_bytes(), str(path))
    if not any(folder.iterdir()):
        raise CorpusError(f"The {name} {folder} is empty. Build it: {build_command(wanted, 'DIR', folder)}")
    if any(is_shard_name(entry.name) for entry in folder.iterdir()):
        raise CorpusError(
            f"{folder} has shards but no {DATASET_NAME}: its build did not finish. "
            "Run the same build command again; it goes on where it stopped"
        )
    if first_audio_file(folder) is not None:
        raise CorpusError(
            f"{folder} holds plain audio, not shards. Build a corpus from it and give that instead: "
            f"{build_command(wanted, folder, Path('data') / wanted)}"
        )
    raise CorpusError(
        f"{folder} is no corpus: it has no {DATASET_NAME}. "
        f"Build one: {build_command(wanted, 'DIR', Path('data') / wanted)}"
    )


def read_shard_sidecar(folder: Path, info: DatasetInfo, shard: ShardInfo) -> Sidecar:
    """The sidecar of `shard`. Raises CorpusError when it is missing, broken, or of another shard."""
    path = sidecar_path(folder / shard.tar)
    if not path.is_file():
        raise CorpusError(
            f"{path} is missing, so the samples of {shard.tar} cannot be found. "
            "Copy it from where the corpus is whole, or run the build again"
        )
    require_inside(folder, path)
    return check_sidecar(path.read_bytes(), str(path), info, shard)


def check_sidecar(data: bytes, path: str, info: DatasetInfo, shard: ShardInfo) -> Sidecar:
    """The sidecar of `shard` in `data`. Raises CorpusError, naming `path`, when it is broken or of another shard."""
    sidecar = parse_sidecar(data, path)
    expected = (shard.tar, shard.sha256, shard.size, info.kind, info.rate_hz, info.codec)
    found = (sidecar.tar, sidecar.sha256, sidecar.size, sidecar.kind, sidecar.rate_hz, sidecar.codec)
    if found != expected:
        raise CorpusError(
            f"{path} is the sidecar of another file: {sidecar.tar}, {sidecar.kind}, {sidecar.rate_hz} Hz, "
            f"sha256 {sidecar.sha256[:12]}…; {DATASET_NAME} wants {shard.tar}, {info.kind}, "
            f"{info.rate_hz} Hz, sha256 {shard.sha256[:12]}…. Copy the right one, or run the build again"
        )
    if hashlib.sha256(data).hexdigest() != shard.sidecar_sha256:
        raise CorpusError(
            f"{path} was changed after the build: its sha256 is not the one in {DATASET_NAME}. "
            "Copy it again from where the corpus is whole, or run the build again"
        )
    if hash_texts(sidecar.split_texts) != shard.groups_sha256:
        raise CorpusError(f"{path} has other groups than {DATASET_NAME} says. Run the build again")
    return sidecar


def require_inside(folder: Path, path: Path) -> None:
    """Raise CorpusError when `path`, a file in `folder`, is a link that leads out of it."""
    if path.is_symlink() and folder.resolve() not in path.resolve().parents:
        raise CorpusError(
            f"{path} is a link to {path.resolve()}, outside of the corpus. Put the file itself there, or give the "
            "folder that the links lead to"
        )


def check_size(folder: Path, shard: ShardInfo) -> None:
    """Raise CorpusError when the tar of `shard` is missing or has another size."""
    path = folder / shard.tar
    if not path.is_file():
        raise CorpusError(
            f"{path} is missing. Copy it from where the corpus is whole, or run the build again"
        )
    require_inside(folder, path)
    _compare_size(str(path), path.stat().st_size, shard.size)


def _compare_size(path: str, found: int, needed: int) -> None:
    if found != needed:
        what = "cut short" if found < needed else "too long"
        raise CorpusError(
            f"{path} is {what}: {found} bytes, needed {needed}. "
            "Copy it again from where it is whole, or run the build again"
        )


def _open_local(folder: Path, info: DatasetInfo) -> tuple[list[Sidecar], tuple[Path, ...]]:
    sidecars = [read_shard_sidecar(folder, info, shard) for shard in info.shards]
    for shard in info.shards:
        check_size(folder, shard)
    return sidecars, tuple(folder / shard.tar for shard in info.shards)


def _read_remote_dataset(remote: RemoteFolder, kind: str) -> DatasetInfo:
    try:
        (data,) = remote.read([DATASET_NAME])
    except RemoteMissing as error:
        raise CorpusError(
            f"The {kind} corpus {remote.url} has no {DATASET_NAME}, or is not there. Check the URL, "
            f"or build a corpus and copy it there: {build_command(kind, 'DIR', Path('data') / kind)}"
        ) from error
    return parse_dataset(data, remote.at(DATASET_NAME))


def _open_remote(remote: RemoteFolder, info: DatasetInfo) -> tuple[list[Sidecar], tuple[CachedShard, ...]]:
    cache = ShardCache.of_environment()
    largest = max((shard.size for shard in info.shards), default=0)
    if largest > cache.max_bytes:
        raise CorpusError(
            f"{remote.url} has a shard of {largest / 1e9:.3g} GB, but the cache {cache.folder} may hold "
            f"{cache.max_bytes / 1e9:.3g} GB. Set ${SIZE_VARIABLE} higher, best to the size of all corpora"
        )
    tars = [shard.tar for shard in info.shards]
    names = [sidecar_path(Path(tar)).name for tar in tars]
    sidecars = [
        check_sidecar(data, remote.at(name), info, shard)
        for data, name, shard in zip(remote.read(names), names, info.shards, strict=True)
    ]
    for shard, found in zip(info.shards, remote.sizes(tars), strict=True):
        if found is not None:
            _compare_size(remote.at(shard.tar), found, shard.size)
    return sidecars, tuple(
        CachedShard(remote, shard.tar, shard.size, shard.sha256, cache) for shard in info.shards
    )


def _join(
    folder: Path | str,
    info: DatasetInfo,
    sidecars: list[Sidecar],
    shards: tuple[Path, ...] | tuple[CachedShard, ...],
) -> Corpus:
    groups, group = _codes(name for sidecar in sidecars for name in sidecar.group)
    sources, source = _codes(name for sidecar in sidecars for name in sidecar.source)
    takes = [take for sidecar in sidecars for take in sidecar.take]
    key = np.concatenate([np.asarray(sidecar.key, np.int64) for sidecar in sidecars])
    if np.any(np.diff(key) <= 0):
        raise CorpusError(f"{folder} has the same key in two shards. Run the build again")
    return Corpus(
        folder=folder,
        kind=info.kind,
        rate_hz=info.rate_hz,
        codec=info.codec,
        fingerprint=info.fingerprint,
        shards=shards,
        groups=groups,
        sources=sources,
        key=key,
        shard=np.repeat(np.arange(len(sidecars), dtype=np.int32), [len(sidecar) for sidecar in sidecars]),
        frames=np.concatenate([np.asarray(sidecar.frames, np.int64) for sidecar in sidecars]),
        group=group,
        source=source,
        members={name: _table(sidecars, name) for name in members_of(info.kind, info.codec)},
        takes=tuple(take for take in takes if isinstance(take, DeviceTake)),
        notes=tuple(take for take in takes if isinstance(take, NoteTake)),
        shifts=tuple(take for take in takes if isinstance(take, ShiftTake)),
    )


def _table(sidecars: list[Sidecar], member: str) -> MemberTable:
    columns = [sidecar.members[member] for sidecar in sidecars]
    return MemberTable(
        offset=np.concatenate([np.asarray(column.offset, np.int64) for column in columns]),
        size=np.concatenate([np.asarray(column.size, np.int64) for column in columns]),
        crc32=np.concatenate([np.asarray(column.crc32, np.uint32) for column in columns]),
        peak=np.concatenate([np.asarray(column.peak, np.float32) for column in columns]),
        rms=np.concatenate([np.asarray(column.rms, np.float32) for column in columns]),
    )


def _codes(names: Iterable[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The distinct names in order of appearance, and for each name its row among them (int32)."""
    rows: dict[str, int] = {}
    codes = np.fromiter((rows.setdefault(name, len(rows)) for name in names), np.int32)
    return tuple(rows), codes
