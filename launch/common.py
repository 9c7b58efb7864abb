"""What the commands share: how errors are told, and the choice of device and checkpoint of a trained run."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hparams.errors import UserError

if TYPE_CHECKING:
    import torch

    from hparams.schema import HParams

Command = Callable[..., int]
INTERRUPTED = 130
# As when a corpus is built (`data_shards.ingest`), which commands that only use a model do not import.
SOURCE_RATES_HZ = (1_000, 768_000)
MOST_FRAMES_PER_BYTE = 8192
HIGHEST_LEVEL = 1e6


def reports_user_errors(command: Command) -> Command:
    """Tell wrong input and what the system refuses (OSError) as one text and exit with 2.

    Ctrl-C ends with 130.
    """

    @functools.wraps(command)
    def wrapped(argv: list[str] | None = None) -> int:
        try:
            return command(argv)
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            return INTERRUPTED

    return wrapped


def open_data(hp: HParams, **place: Any) -> Any:
    """The data stream of the task that `hp` names; `place` as in `data_shards.stream.open_stream`."""
    from hparams.tasks import DeviceHParams

    if isinstance(hp.task, DeviceHParams):
        from data_shards.context_stream import open_context_stream
        from data_shards.pedal_stream import open_pedal_stream

        stream = (open_context_stream if hp.task.name == "context" else open_pedal_stream)(hp, **place)
        found, needed = (stream.rate_hz, stream.knob_names), (hp.wav_rate, hp.task.knobs)
        if found != needed:
            raise UserError(
                f"{hp.pair_dir} was recorded at {found[0]} Hz with the knobs {list(found[1])}, but wav_rate is "
                f"{needed[0]} and task.knobs is {list(needed[1])}; use a corpus of the same device, or leave these "
                "two out of --set"
            )
        return stream
    if hp.task.name == "string":
        from data_shards.string_stream import open_string_stream

        return open_string_stream(hp, **place)
    if hp.task.name == "pitch":
        from data_shards.pitch_stream import open_pitch_stream

        return open_pitch_stream(hp, **place)
    from data_shards.stream import open_stream

    return open_stream(hp, **place)


def knob_values(names: Sequence[str], given: Sequence[str]) -> torch.Tensor:
    """The values [K] of the knobs `names` from texts such as `drive=0.5`; raises UserError for any other set."""
    import torch

    values: dict[str, float] = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            values[name] = float(number)
        except ValueError:
            raise UserError(f"--knob {text}: needed NAME=NUMBER, such as --knob drive=0.5") from None
    if set(values) != set(names):
        wanted = " ".join(f"--knob {name}=0.5" for name in names) or "no --knob"
        raise UserError(f"the model has the knobs {', '.join(names) or 'none'}; give {wanted}")
    return torch.tensor([values[name] for name in names], dtype=torch.float32)


def choose_device(name: str) -> torch.device:
    """The device called `name`; `auto` is CUDA, else MPS, else the CPU. Raises UserError where it is not there."""
    import torch

    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": has_mps}
    kind = name.partition(":")[0]
    if not there.get(kind, False):
        usable = ", ".join(device for device, is_there in there.items() if is_there)
        raise UserError(f"--device {name} is not to be had here; use one of: {usable}")
    return torch.device(name)


def checkpoint_folder(run_dir: Path, name: str | None) -> Path | None:
    """The folder of the checkpoint called `name`; None for None. Raises UserError that lists what there is."""
    if name is None:
        return None
    if run_dir.is_file():
        raise UserError(f"--checkpoint {name}: {run_dir} is a bundle, which has one; leave --checkpoint out")
    folder = run_dir / "checkpoints" / Path(name).name
    if not folder.is_dir():
        there = sorted(path.name for path in (run_dir / "checkpoints").glob("step-*"))
        raise UserError(f"{run_dir} has no checkpoint {name}; it has {', '.join(there) or 'none'}")
    return folder


def require_plausible(path: Path, info: Any) -> None:
    """Raises UserError where soundfile's `info` of `path` is of no recording: memory is set aside by what it says."""
    low, high = SOURCE_RATES_HZ
    if not low <= info.samplerate <= high:
        raise UserError(f"{path} cannot be used: implausible sample rate of {info.samplerate} Hz")
    if info.frames > MOST_FRAMES_PER_BYTE * path.stat().st_size:
        raise UserError(
            f"{path} cannot be used: its header promises {info.frames} frames, more than the file can hold"
        )
