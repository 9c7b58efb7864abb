"""Building a corpus: find, plan, build what is not finished, publish `dataset.json` and `rejects.jsonl`."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_shards.build_pool import build_all
from data_shards.dataset import DATASET_NAME, DatasetInfo, ShardInfo, parse_dataset, write_dataset
from data_shards.errors import CorpusError
from data_shards.format import KINDS
from data_shards.options import BuildOptions
from data_shards.plan import Inputs, Report, find_inputs, plan_shards
from data_shards.scan import require_local
from data_shards.shard import finished_shard
from data_shards.shifters import require_engine
from data_shards.sidecar import Reject, Sidecar, sidecar_path
from data_shards.strict_json import publish

REJECTS_NAME = "rejects.jsonl"
LOCK_NAME = ".build.lock"
OWN_NAMES = (DATASET_NAME, REJECTS_NAME, LOCK_NAME)
SHOWN_REJECTS = 5

_SHARD_FILE = re.compile(rf"(?:{'|'.join(KINDS)})-\d{{6,9}}\.tar(?:\.json)?")
_TEMPORARY = re.compile(rf"(?:{_SHARD_FILE.pattern}|dataset\.json|rejects\.jsonl)\.tmp-\d+")


@dataclass(frozen=True)
class BuildResult:
    """What a build did. `num_built` shards were made now; 0 with `up_to_date` when nothing had changed."""

    folder: Path
    info: DatasetInfo
    num_built: int
    up_to_date: bool


def build_corpus(
    kind: str,
    inputs: Sequence[Path | str],
    output: Path | str,
    options: BuildOptions | None = None,
    *,
    targets: Sequence[Path | str] = (),
    report: Report | None = None,
) -> BuildResult:
    """Build a corpus from the audio below the folders `inputs`; goes on where an earlier build stopped.

    Args:
        kind: fg, bg, rir, pair or pitch; for pedal see `data_shards.pedal`, for string `data_shards.string_notes`.
        inputs: folders; for a pair the recordings a model hears.
        output: folder of the corpus; made when it is missing.
        options: how; by default `BuildOptions(kind)`.
        targets: for a pair the folders with what the model should give, one for each of `inputs`.
        report: called now and then with (stage, done, total).

    Raises:
        CorpusError: a folder is missing or holds no audio, `output` holds other things, or more than
            `options.max_reject` of the files cannot be used.
        UserError: a pitch shifter that is asked for is not installed.
    """
    options = options or BuildOptions(kind)
    folder = Path(output)
    sources, wanted = [Path(path) for path in inputs], [Path(path) for path in targets]
    _check_arguments(kind, options, sources, wanted)
    check_output(folder, kind)
    report = report or no_report
    report("finding files", 0, 0)
    return build_found(find_inputs(sources, wanted), folder, options, report)


def build_found(found: Inputs, folder: Path, options: BuildOptions, report: Report) -> BuildResult:
    """Build a corpus from inputs that are known by name; `check_output` was called before.

    Raises: CorpusError when more than `options.max_reject` of the files cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        info = _unchanged(folder, options, found)
        if info is not None:
            return BuildResult(folder, info, num_built=0, up_to_date=True)
        return _build(folder, options, found, report)


def _build(folder: Path, options: BuildOptions, found: Inputs, report: Report) -> BuildResult:
    plans, rejects = plan_shards(found, options, report)
    # From here on the folder is no whole corpus until the end.
    (folder / DATASET_NAME).unlink(missing_ok=True)
    finished = {plan.name: finished_shard(plan, options, folder) for plan in plans}
    _remove_stale(folder, {name for name, shard in finished.items() if shard is not None})
    shards = {name: shard for name, shard in finished.items() if shard is not None}
    missing = [plan for plan in plans if plan.name not in shards]
    with closing(build_all(missing, options, folder, report)) as building:
        for plan, sidecar, shard in building:
            shards[plan.name] = (sidecar, shard)
    ordered = [shards[plan.name] for plan in plans]
    for sidecar, _ in ordered:
        rejects += sidecar.rejects
    _publish_rejects(folder, rejects)
    info = _describe(options, found, rejects, ordered)
    _check_rejects(folder, options, info, rejects)
    write_dataset(folder, info)
    return BuildResult(folder, info, num_built=len(missing), up_to_date=False)


def _describe(
    options: BuildOptions,
    found: Inputs,
    rejects: Sequence[Reject],
    shards: Sequence[tuple[Sidecar, ShardInfo]],
) -> DatasetInfo:
    return DatasetInfo(
        kind=options.kind,
        rate_hz=options.rate_hz,
        codec=options.codec,
        options_hash=options.corpus_hash,
        inputs_hash=found.hash,
        num_files=found.num_files,
        num_rejected_files=sum(reject.piece is None for reject in rejects),
        clipped=sum(sidecar.clipped for sidecar, _ in shards),
        shards=tuple(shard for _, shard in shards),
    )


def _check_rejects(folder: Path, options: BuildOptions, info: DatasetInfo, rejects: Sequence[Reject]) -> None:
    whole = [reject for reject in rejects if reject.piece is None]
    if info.num_samples and info.num_rejected_files <= options.max_reject * info.num_files:
        return
    shown = "".join(f"\n  {reject.source}: {reject.reason}" for reject in whole[:SHOWN_REJECTS])
    rest = len(whole) - SHOWN_REJECTS
    more = f"\n  and {rest} more, all in {folder / REJECTS_NAME}" if rest > 0 else ""
    what = f"{len(whole)} of {info.num_files} files cannot be used"
    if info.num_samples == 0:
        raise CorpusError(f"{what}, so the corpus would be empty:{shown}{more}")
    raise CorpusError(
        f"{what}, more than --max-reject {options.max_reject:g} allows. Mend or remove them, or raise "
        f"--max-reject; the shards that are finished are kept:{shown}{more}"
    )


def _check_arguments(
    kind: str, options: BuildOptions, inputs: Sequence[Path], targets: Sequence[Path]
) -> None:
    if options.kind != kind:
        raise ValueError(f"options are for kind {options.kind!r}, but kind {kind!r} is to be built")
    check_inputs([*inputs, *targets])
    if kind == "pair" and len(inputs) != len(targets):
        raise CorpusError(
            f"{len(inputs)} --input and {len(targets)} --target folders; "
            "a pair corpus needs one --target for each --input"
        )
    for heard, wanted in zip(inputs, targets, strict=False):
        if heard.resolve() == wanted.resolve():
            raise CorpusError(
                f"{heard} is both --input and --target, so every recording would be its own target. "
                "Give the folder of the targets with --target"
            )
    if kind == "pitch":
        for name in options.shift.engines:
            require_engine(name)
    if kind != "pair" and targets:
        raise CorpusError(f"--target belongs to kind pair, not to {kind}")


def check_inputs(folders: Sequence[Path]) -> None:
    """Raise CorpusError when there is no folder, or one that is not there."""
    if not folders:
        raise CorpusError("No input folder given. Give one with --input")
    for folder in folders:
        require_local(folder, "The input folder")
        if not folder.is_dir():
            what = "is a file; give the folder it lies in" if folder.exists() else "does not exist"
            raise CorpusError(f"The input folder {folder} {what}")


def check_output(folder: Path, kind: str) -> None:
    """Raise CorpusError when `folder` cannot become, or go on being, a corpus of `kind`."""
    require_local(folder, "The output")
    if folder.exists() and not folder.is_dir():
        raise CorpusError(f"The output {folder} is a file; give a folder")
    if not folder.is_dir():
        return
    for entry in sorted(folder.iterdir()):
        if not (
            entry.name in OWN_NAMES or _SHARD_FILE.fullmatch(entry.name) or _TEMPORARY.fullmatch(entry.name)
        ):
            raise CorpusError(
                f"The output {folder} holds other things than a corpus, such as {entry.name}. "
                "Give a new or empty folder, or the corpus to go on with"
            )
        if _SHARD_FILE.fullmatch(entry.name) and not entry.name.startswith(f"{kind}-"):
            raise CorpusError(
                f"The output {folder} is a corpus of kind {entry.name.split('-')[0]}, not {kind}. "
                "Give another folder, or remove that one first"
            )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder against a second build; the lock ends with the process, however it ends."""
    with (folder / LOCK_NAME).open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CorpusError(
                f"Another build is writing to {folder}. Wait for it, or give another --output"
            ) from error
        except OSError as error:
            # Some cluster file systems have no locks; there two builds at once are the user's to avoid.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
        yield


def _unchanged(folder: Path, options: BuildOptions, found: Inputs) -> DatasetInfo | None:
    """The finished corpus, when inputs and options are as they were and no file of it is missing or cut."""
    path = folder / DATASET_NAME
    if not path.is_file():
        return None
    try:
        info = parse_dataset(path.read_bytes(), str(path))
    except CorpusError:
        # What it should say is found out by building: finished shards are kept.
        return None
    same = (info.options_hash, info.inputs_hash) == (options.corpus_hash, found.hash)
    if not same or info.num_rejected_files > options.max_reject * info.num_files:
        return None
    listed = {name for shard in info.shards for name in (shard.tar, f"{shard.tar}.json")}
    present = {entry.name for entry in folder.iterdir()} - set(OWN_NAMES)
    if listed != present or not (folder / REJECTS_NAME).is_file():
        return None
    return info if all(_is_whole(folder, shard) for shard in info.shards) else None


def _is_whole(folder: Path, shard: ShardInfo) -> bool:
    tar = folder / shard.tar
    if tar.stat().st_size != shard.size:
        return False
    return hashlib.sha256(sidecar_path(tar).read_bytes()).hexdigest() == shard.sidecar_sha256


def _remove_stale(folder: Path, kept: set[str]) -> None:
    """Remove temporary files and shards that are not wanted; a sidecar goes before its tar."""
    for entry in sorted(folder.iterdir(), key=lambda entry: (not entry.name.endswith(".json"), entry.name)):
        name = entry.name.removesuffix(".json")
        if _TEMPORARY.fullmatch(entry.name) or (_SHARD_FILE.fullmatch(entry.name) and name not in kept):
            entry.unlink()


def _publish_rejects(folder: Path, rejects: Sequence[Reject]) -> None:
    lines = [json.dumps(reject.as_json(), ensure_ascii=False) + "\n" for reject in rejects]
    publish(folder / REJECTS_NAME, "".join(sorted(lines)).encode())


def no_report(stage: str, done: int, total: int) -> None:
    """For callers that want no progress."""
