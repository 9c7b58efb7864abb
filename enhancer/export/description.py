"""What goes along with an exported model: its rate, how good it is, and what gear it is of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from torch import nn

from enhancer.models.context import ContextDevice
from enhancer.models.recurrent import RecurrentDevice
from enhancer.models.wavenet import WaveNetDevice
from hparams.errors import UserError

Device = RecurrentDevice | WaveNetDevice | ContextDevice

GEAR_TYPES = ("amp", "pedal", "pedal_amp", "amp_cab", "amp_pedal_cab", "preamp", "studio")
TONE_TYPES = ("clean", "overdrive", "crunch", "hi_gain", "fuzz")


@dataclass(frozen=True)
class Description:
    """Metadata of an exported model, under the names of `.nam` files. None is left out.

    `gear_type` and `tone_type` are words of that format; raises UserError for any other.
    """

    rate_hz: int
    esr: float | None = None
    """Error-to-signal ratio on the validation stretch."""
    knobs: tuple[str, ...] = ()
    """Names of the model's knobs, in the order of its inputs."""
    settings: tuple[tuple[str, float], ...] = ()
    """Knobs that were fixed for the export, with their values."""
    name: str | None = None
    modeled_by: str | None = None
    gear_make: str | None = None
    gear_model: str | None = None
    gear_type: str | None = None
    tone_type: str | None = None
    input_level_dbu: float | None = None
    output_level_dbu: float | None = None
    loudness: float | None = None
    """dB, and `gain` from 0 to 1: see `enhancer.export.level`."""
    gain: float | None = None
    date: datetime | None = None

    def __post_init__(self) -> None:
        for field, words in (("gear_type", GEAR_TYPES), ("tone_type", TONE_TYPES)):
            value = getattr(self, field)
            if value is not None and value not in words:
                raise UserError(f"{field} is {value!r}; needed one of {', '.join(words)}")

    def gear(self) -> dict[str, Any]:
        """What is known of the gear and its levels, as plain values."""
        fields = (
            "name",
            "modeled_by",
            "gear_make",
            "gear_model",
            "gear_type",
            "tone_type",
            "input_level_dbu",
            "output_level_dbu",
            "loudness",
            "gain",
        )
        values = {field: getattr(self, field) for field in fields}
        return {field: value for field, value in values.items() if value is not None}

    def facts(self) -> dict[str, Any]:
        """Everything that is known, as plain values: the gear, `samplerate`, `esr`, `knobs`, `settings`, `date`."""
        values: dict[str, Any] = {**self.gear(), "samplerate": self.rate_hz}
        if self.esr is not None:
            values["esr"] = self.esr
        if self.knobs:
            values["knobs"] = list(self.knobs)
        if self.settings:
            values["settings"] = dict(self.settings)
        if self.date is not None:
            values["date"] = self.date.isoformat(timespec="seconds")
        return values


@dataclass(frozen=True)
class Exported:
    """A file, and what its user should know about it."""

    data: bytes
    notes: tuple[str, ...] = ()


def require_device(module: nn.Module) -> Device:
    """`module` where it is a model of a device with finite weights; raises UserError otherwise."""
    if not isinstance(module, Device):
        raise UserError(
            f"the run holds a {type(module).__name__}; only models of devices, of the tasks pedal and context, can be "
            "exported"
        )
    broken = [name for name, value in module.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"the model holds NaN or infinite weights ({broken[0]}); export another checkpoint")
    return module


def require_stepwise(module: nn.Module, format_name: str) -> RecurrentDevice | WaveNetDevice:
    """The same for formats whose models go from sample to sample; raises UserError for one that forgets in between."""
    device = require_device(module)
    if isinstance(device, ContextDevice):
        raise UserError(
            f"the model starts anew in a window of {device.context_samples} samples for each sample (task context), "
            f"and {format_name} cannot say that; export onnx, or train the preset pedal_lstm"
        )
    return device


def require_no_knobs(module: Device, knobs: Sequence[str], format_name: str) -> None:
    """Raises UserError where a model has knobs, for formats that have none."""
    if module.num_knobs:
        settings = " ".join(f"--knob {name}=0.5" for name in knobs)
        raise UserError(
            f"the model has the knobs {', '.join(knobs)}, and {format_name} has none; "
            f"fix them for this file, such as with {settings}"
        )


def require_no_skip(module: RecurrentDevice, format_name: str, instead: str) -> None:
    """Raises UserError where a model adds the dry signal, for formats that cannot say so."""
    if module.has_skip:
        raise UserError(
            f"the model adds the dry signal to its output (task.has_skip), and {format_name} cannot say that; {instead}"
        )
