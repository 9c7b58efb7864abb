"""Building one shard: pieces to members, tar under a temporary name, then the sidecar."""

from __future__ import annotations

import io
import math
import os
import zlib
from pathlib import Path

import numpy as np

from data_shards.dataset import ShardInfo, shard_info
from data_shards.errors import CorpusError
from data_shards.format import FULL_SCALE, TarWriter, member_name, members_of, wav_header
from data_shards.ingest import RejectedInput
from data_shards.options import BuildOptions
from data_shards.pieces import Dropped, Piece, Tick, pieces_of
from data_shards.plan import PlannedFile, ShardPlan
from data_shards.sidecar import (
    MemberEntry,
    Reject,
    SampleEntry,
    Sidecar,
    columns_of,
    parse_sidecar,
    sidecar_bytes,
    sidecar_path,
)
from data_shards.strict_json import publish, rename_durably


def build_shard(
    plan: ShardPlan, options: BuildOptions, folder: Path, tick: Tick
) -> tuple[Sidecar, ShardInfo]:
    """Build and publish one shard; nothing with a final name is there before it is whole.

    `tick` is called with frames as they are decoded; when it raises, the temporary file is removed.
    """
    path = folder / plan.name
    temporary = folder / f"{plan.name}.tmp-{os.getpid()}"
    try:
        with temporary.open("w+b") as stream:
            sidecar = _write(plan, options, TarWriter(stream), tick)
            stream.flush()
            os.fsync(stream.fileno())
        rename_durably(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    data = sidecar_bytes(sidecar)
    publish(sidecar_path(path), data)
    return sidecar, shard_info(sidecar, data)


def finished_shard(plan: ShardPlan, options: BuildOptions, folder: Path) -> tuple[Sidecar, ShardInfo] | None:
    """The shard as an earlier build left it, if it is whole and made from the same files and options."""
    path = folder / plan.name
    if not path.is_file() or not sidecar_path(path).is_file():
        return None
    data = sidecar_path(path).read_bytes()
    try:
        sidecar = parse_sidecar(data, str(sidecar_path(path)))
    except CorpusError:
        # A broken sidecar is no proof of a finished shard: it is built again.
        return None
    found = (sidecar.tar, sidecar.size, sidecar.options_hash, sidecar.inputs_hash)
    if found != (plan.name, path.stat().st_size, options.shard_hash, plan.inputs_hash):
        return None
    return sidecar, shard_info(sidecar, data)


def _write(plan: ShardPlan, options: BuildOptions, tar: TarWriter, tick: Tick) -> Sidecar:
    samples: list[SampleEntry] = []
    rejects: list[Reject] = []
    clipped = 0
    for planned in plan.files:
        mark = tar.mark()
        added: list[SampleEntry] = []
        dropped: list[Reject] = []
        file_clipped = 0
        try:
            for piece in pieces_of(planned, options, tick):
                if isinstance(piece, Dropped):
                    dropped.append(Reject(planned.file.source, piece.reason, piece.name))
                else:
                    added.append(_add(tar, planned, planned.first_key + len(added), piece, options))
                    file_clipped += piece.clipped
        except RejectedInput as error:
            # A recording is in the corpus whole or not at all.
            tar.rollback(mark)
            rejects.append(Reject(planned.file.source, str(error)))
            continue
        samples += added
        rejects += dropped
        clipped += file_clipped
    sha256 = tar.finish()
    return Sidecar(
        kind=options.kind,
        rate_hz=options.rate_hz,
        codec=options.codec,
        tar=plan.name,
        size=tar.position,
        sha256=sha256,
        options_hash=options.shard_hash,
        inputs_hash=plan.inputs_hash,
        num_files=len(plan.files),
        clipped=clipped,
        rejects=tuple(rejects),
        **columns_of(samples, members_of(options.kind, options.codec)),
    )


def _add(tar: TarWriter, planned: PlannedFile, key: int, piece: Piece, options: BuildOptions) -> SampleEntry:
    # Keys of the next file start behind those set aside for this one.
    assert key < planned.first_key + planned.num_keys
    members = {}
    for member, wave in zip(members_of(options.kind, options.codec), piece.waves, strict=True):
        data = encode(wave, options.rate_hz, options.codec)
        offset = tar.add(member_name(key, member), data)
        peak, rms = levels(wave)
        members[member] = MemberEntry(offset, len(data), zlib.crc32(data), peak, rms)
    return SampleEntry(
        key=key,
        source=planned.file.source,
        group=piece.side or planned.group,
        start=piece.start,
        frames=len(piece.waves[0]),
        source_rate_hz=planned.header.rate_hz,
        source_channels=planned.header.channels,
        members=members,
        take=planned.take or piece.take,
    )


def levels(samples: np.ndarray) -> tuple[float, float]:
    """(peak, RMS) re full scale of int16 or float32 [frames]; exact sums, so the same on every machine."""
    if samples.dtype == np.float32:
        squares = samples.astype(np.float64) ** 2
        return float(np.max(np.abs(samples), initial=0)), math.sqrt(math.fsum(squares) / max(len(samples), 1))
    wide = samples.astype(np.int64)
    peak = int(np.max(np.abs(wide), initial=0))
    rms = math.sqrt(int(np.dot(wide, wide)) / max(len(wide), 1))
    return peak / FULL_SCALE, rms / FULL_SCALE


def encode(samples: np.ndarray, rate_hz: int, codec: str) -> bytes:
    """A mono WAV file with a 44-byte header, or a FLAC file, that holds exactly these samples [frames]: int16, for
    wav32f float32.
    """
    if codec == "wav32f":
        return wav_header(len(samples), rate_hz, codec) + samples.astype("<f4").tobytes()
    if codec == "wav":
        return wav_header(len(samples), rate_hz) + samples.astype("<i2").tobytes()
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, samples, rate_hz, format="FLAC", subtype="PCM_16")
    return stream.getvalue()
