"""What is to be restored: recordings that were band-limited, clipped, overdriven, equalised, in a room, or coded badly.

Each row has its own kinds in its own order (`<kind>_place`: 0 is off, else the place in the order, from 1 on). No kind
delays: what it leaves of a recording lies where it was. None changes the gain of what it leaves alone either, so that a
model may copy it: what passes the band limit, what does not clip, the direct sound of a room. Overdrive, whose gain is
arbitrary, keeps the level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from enhancer.signal.convolution import RirBank, fast_fft_length
from enhancer.signal.distortion import band_limit, overdrive, peaking_eq
from enhancer.signal.levels import db_to_gain, gain_for_level, gain_for_snr, power_db
from enhancer.signal.mdct import inverse_mdct, mdct
from enhancer.signal.mixing import MAX_GAIN_DB, MAX_MAKEUP_DB, PEAK, Mix, in_room, to_float
from enhancer.signal.types import PerRow, RowIndex, WaveBatch

FIRST_REFLECTION_SECONDS = 0.002
"""Between the direct sound and the reverberation of a synthetic room."""
CODEC_WINDOW_SECONDS = 0.0464
"""Two hops of a codec's transform: 2048 samples at 44.1 kHz, as of AAC."""
SPREAD_UP_DB, SPREAD_DOWN_DB = 10.0, 25.0
"""By how much a band hides the one above it and the one below it less than itself, per Bark."""

Columns = Mapping[str, Tensor]


def _band(wave: WaveBatch, own: Columns, rate_hz: int) -> WaveBatch:
    return band_limit(wave, own["lowpass_hz"], own["highpass_hz"], rate_hz)


def _clip(wave: WaveBatch, own: Columns, rate_hz: int) -> WaveBatch:
    return clip(wave, own["clip_db"])


def _drive(wave: WaveBatch, own: Columns, rate_hz: int) -> WaveBatch:
    driven = overdrive(wave, own["drive_db"])
    gain_db = (power_db(wave) - power_db(driven)).clamp(max=MAX_MAKEUP_DB)
    return driven * db_to_gain(gain_db)[:, None]


def _eq(wave: WaveBatch, own: Columns, rate_hz: int) -> WaveBatch:
    return peaking_eq(wave, own["eq_hz"], own["eq_gain_db"], own["eq_q"], rate_hz)


def _reverb(wave: WaveBatch, own: Columns, rate_hz: int) -> WaveBatch:
    return reverberate(wave, own["reverb_seconds"], own["reverb_db"], own["reverb_seed"], rate_hz)


def _codec(wave: WaveBatch, own: Columns, rate_hz: int) -> WaveBatch:
    return quantise(wave, own["codec_db"], own["codec_hz"], rate_hz)


APPLY: dict[str, Callable[[WaveBatch, Columns, int], WaveBatch]] = {
    "band": _band,
    "clip": _clip,
    "drive": _drive,
    "eq": _eq,
    "reverb": _reverb,
    "codec": _codec,
}
PARAMETERS = (
    "lowpass_hz",
    "highpass_hz",
    "clip_db",
    "drive_db",
    "eq_hz",
    "eq_gain_db",
    "eq_q",
    "reverb_seconds",
    "reverb_db",
    "codec_db",
    "codec_hz",
)
UNDAMAGED: dict[str, float | int] = {
    "clip_db": 0.0,
    "reverb_seconds": 0.0,
    "reverb_db": -math.inf,
    "reverb_seed": 0,
    "codec_db": math.inf,
    "codec_hz": math.inf,
    **{f"{kind}_place": 0 for kind in APPLY},
}
"""The columns that mixes without damage do not have, with every kind off."""
INTEGERS = ("reverb_seed", *(f"{kind}_place" for kind in APPLY))


def damaged(wave: WaveBatch, columns: Columns, rate_hz: int) -> WaveBatch:
    """`wave` [B, T] with what the columns of each row say, in its order: PARAMETERS and INTEGERS, [B] each.

    Rows with every kind off are returned bit for bit. A row does not depend on its neighbours, but for rounding.
    """
    # Two transfers, and not a wait for each column.
    floats = torch.stack([columns[name].float() for name in PARAMETERS]).cpu()
    integers = torch.stack([columns[name].long() for name in INTEGERS]).cpu()
    host = dict(zip(PARAMETERS, floats, strict=True)) | dict(zip(INTEGERS, integers, strict=True))
    for place in range(1, len(APPLY) + 1):
        for kind, apply in APPLY.items():
            rows = (host[f"{kind}_place"] == place).nonzero().squeeze(1)
            if len(rows):
                own = {name: column[rows] for name, column in host.items()}
                there = rows.to(wave.device)
                wave = wave.index_copy(0, there, apply(wave.index_select(0, there), own, rate_hz))
    return wave


def damaged_mix(batch: Columns, bank: RirBank | None, rate_hz: int, early_samples: int = 1) -> Mix:
    """Damaged mixtures and clean targets of a batch of a task with the values of `hparams.damage`.

    Foreground, then the recorded room (`rir`), then the background at `snr_db` below that, then the damage: what spoils
    a recording spoils all that is on it. Other keys as for `mixing.mix`; the target is the foreground, with the first
    `early_samples` taps of its room, at `level_db` (RMS, at most MAX_GAIN_DB up), and the mixture has the same gain,
    which is less where a peak of one of them would pass PEAK. A silent foreground leaves the background as recorded.
    """
    background = to_float(batch["bg"])
    rooms = {name: batch[name].cpu() for name in ("rir", "room_gain_db")}
    heard, target = in_room(to_float(batch["fg"]), bank, rooms, early_samples)
    gain = gain_for_snr(heard, background, batch["snr_db"].to(heard))
    mixture = damaged(torch.addcmul(heard, background, gain[:, None]), batch, rate_hz)
    gain = gain_for_level(target, batch["level_db"].to(target), MAX_GAIN_DB)
    peak = torch.maximum(mixture.abs().amax(-1), target.abs().amax(-1))
    gain = (gain * (PEAK / (gain * peak)).clamp(max=1))[:, None]
    return Mix(mixture=mixture * gain, target=target * gain)


def labels(columns: Columns) -> list[str]:
    """What happened to each row: `clean`, the name of the one kind, `background`, `room`, or `several`."""
    flags = _flags(columns)
    table = torch.stack(list(flags.values())).T.tolist()
    found = []
    for row in table:
        names = [name for name, is_on in zip(flags, row, strict=True) if is_on]
        found.append("clean" if not names else names[0] if len(names) == 1 else "several")
    return found


def damage_shares(columns: Columns) -> dict[str, Tensor]:
    """For the metrics of a step: `damage_<kind>`, the share of rows that have it, as a scalar each.

    A background and a recorded room are told so too.
    """
    return {f"damage_{kind}": is_on.float().mean() for kind, is_on in _flags(columns).items()}


def _flags(columns: Columns) -> dict[str, Tensor]:
    """What each row has, by name."""
    flags = {kind: columns[f"{kind}_place"] > 0 for kind in APPLY}
    return flags | {"background": columns["has_bg"], "room": columns["rir"] >= 0}


def clip(wave: WaveBatch, overload_db: PerRow) -> WaveBatch:
    """Hard clipping `overload_db` below the peak of each row; 0 dB leaves it as it is."""
    limit = wave.abs().amax(-1) * db_to_gain(-overload_db.to(wave))
    return torch.minimum(torch.maximum(wave, -limit[:, None]), limit[:, None])


def reverberate(wave: WaveBatch, seconds: PerRow, tail_db: PerRow, seed: RowIndex, rate_hz: int) -> WaveBatch:
    """A synthetic room: the direct sound at gain 1, and Gaussian noise that decays by 60 dB in `seconds`.

    The noise begins FIRST_REFLECTION_SECONDS later and has `tail_db` more energy than the direct sound. It comes from
    a generator of the row's own `seed`, on the CPU. What rings on behind the end is lost.
    """
    length = wave.shape[-1]
    first = min(max(1, round(FIRST_REFLECTION_SECONDS * rate_hz)), length)
    tails = [
        _tail(float(t60) * rate_hz, float(gain), first, length, int(row_seed))
        for t60, gain, row_seed in zip(seconds, tail_db, seed, strict=True)
    ]
    # As long for every row of any batch, so that none is rounded otherwise beside others.
    n_fft = fast_fft_length(2 * length - 1)
    response = torch.stack(tails).to(wave)
    response[:, 0] = 1
    return torch.fft.irfft(torch.fft.rfft(wave, n=n_fft) * torch.fft.rfft(response, n=n_fft), n=n_fft)[
        :, :length
    ]


def _tail(t60_samples: float, gain_db: float, first: int, length: int, seed: int) -> Tensor:
    """[length]: noise from sample `first` on until it is 60 dB down, cut at `length`."""
    count = max(1, math.ceil(t60_samples))
    noise = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    noise *= torch.pow(10.0, torch.arange(count) * (-3 / max(t60_samples, 1.0)))
    noise *= 10 ** (gain_db / 20) / torch.linalg.vector_norm(noise).clamp(min=1e-6)
    tail = torch.zeros(max(length, first + count))
    tail[first : first + count] = noise
    return tail[:length]


def quantise(wave: WaveBatch, noise_db: PerRow, cutoff_hz: PerRow, rate_hz: int) -> WaveBatch:
    """What a codec of a low bit rate leaves: an MDCT whose coefficients are rounded, coarsely where it is loud.

    The rounding noise of each Bark band of each frame lies `noise_db` below the band's level as its neighbours mask it
    (SPREAD_UP_DB, SPREAD_DOWN_DB): so a band that a louder one hides is lost, holes open and close from frame to frame,
    and noise comes before attacks. Above `cutoff_hz` nothing is left, as if cut by a wall.
    """
    hop = 1 << max(3, round(math.log2(CODEC_WINDOW_SECONDS * rate_hz)) - 1)
    coefficients = mdct(wave, hop)
    member, masks = _bark_bands(hop, rate_hz, wave.device, wave.dtype)
    # Mean squares of bands, [B, N, bands], and what of them is heard through the others.
    power = coefficients.square() @ (member / member.sum(0))
    noise = (power @ masks) * db_to_gain(-2 * noise_db.to(wave))[:, None, None]
    # A uniform quantiser of step s makes noise of s^2 / 12.
    step = ((12 * noise).sqrt() @ member.T).clamp(min=torch.finfo(wave.dtype).eps ** 2)
    hz = (torch.arange(hop, device=wave.device) + 0.5) * (rate_hz / 2 / hop)
    kept = (hz < cutoff_hz.to(wave)[:, None])[:, None]
    return inverse_mdct(torch.round(coefficients / step) * step * kept, wave.shape[-1])


@lru_cache(maxsize=8)
def _bark_bands(hop: int, rate_hz: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Which bin is in which band, [hop, bands], and how much of each band's power counts in each, columns adding to 1.

    Bark of Hz: H. Traunmueller, "Analytical expressions for the tonotopic sensory scale" (1990).
    """
    hz = (torch.arange(hop, dtype=torch.float64) + 0.5) * (rate_hz / 2 / hop)
    bark = (26.81 * hz / (1960 + hz) - 0.53).clamp(min=0)
    numbers = bark.floor().long().unique(return_inverse=True)[1]
    member = torch.nn.functional.one_hot(numbers).double()
    centre = (bark @ member) / member.sum(0)
    apart = centre[None, :] - centre[:, None]
    spread = torch.pow(10.0, -torch.where(apart > 0, SPREAD_UP_DB * apart, -SPREAD_DOWN_DB * apart) / 10)
    return member.to(device, dtype), (spread / spread.sum(0)).to(device, dtype)
