"""What a string loses on its way through one period, as filters that never gain.

The delay line is read between samples by Lagrange interpolation over seven of them, whose magnitude is at most 1 for
delays up to a sample off its middle (V. Välimäki, "Discrete-time modeling of acoustic tubes using fractional delay
filters", 1995, section 3.3). Then come sections in series, each taking the share c = 1 - exp(-nepers) out of one band:

    |1 - c B(f)|² = 1 - (2 c - c²) |B(f)|² = 1 - (1 - exp(-2 nepers)) |B(f)|²

because the band filters B (first-order low-pass and high-pass, second-order band-pass of peak gain 1) lie on the circle
of radius 1/2 around 1/2. So the loss of each section is at least 0 at every frequency, whatever the nepers >= 0 are.

Between two samples Lagrange interpolation loses what is high: 0.04 nepers a period at 12 kHz, more than a bright string
does in all. A last section with c = 2, an all-pass that delays by half a sample, is switched in (`is_half`) so that it
has to go no further than a quarter.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from enhancer.signal.decay import OCTAVE_CENTRES_HZ as OCTAVES_HZ

LOW_SHELF_HZ, HIGH_SHELF_HZ = 44.2, 11_314.0
BELLS_HZ = tuple(62.5 * 2 ** (half / 2) for half in range(15))
NUM_SECTIONS = len(BELLS_HZ) + 2
DC_HZ, DC_NEPERS = 5.0, 0.1
"""A last section that is always there: a string has no mode below f0, and what a recording has there must not stay."""
Q = 2.5
HALF_TANGENT = 2.0
"""A first-order all-pass of 1 / HALF_TANGENT samples at low frequencies."""
ORDER = 6
FIT_HZ = tuple(31.25 * 2 ** (sixth / 6) for sixth in range(56))
FIT_STEPS = 100
LARGEST_NEPERS = 6.0
"""What a section takes at most: what is left by 52 dB more each period is silence."""
CALIBRATIONS = 12
LONGEST_SECONDS = 8.0
HIGHEST_PARTIAL_HZ = 18_000.0
HIGHEST_SHARE = 0.45
"""Band filters are centred below this share of the rate."""

PerBand = Float[Tensor, "batch band"]


def lagrange(offset: Float[Tensor, " batch"]) -> Float[Tensor, "batch 7"]:
    """Weights that read a line `offset` samples before the middle one of seven, the newest sample first.

    Exact for polynomials up to degree 6; |offset| <= 1 for a magnitude of at most 1.
    """
    place = offset + ORDER // 2
    columns = []
    for k in range(ORDER + 1):
        factors = [(place - j) / (k - j) for j in range(ORDER + 1) if j != k]
        columns.append(torch.stack(factors).prod(0))
    return torch.stack(columns, 1)


class BandSections:
    """The sections in series at `rate_hz`: constants of their band filters. Rows of a batch differ in nepers only,

    which are those of NUM_SECTIONS sections and, last, DC_NEPERS. Behind them is the all-pass, which takes none.
    """

    def __init__(self, rate_hz: int) -> None:
        top = HIGHEST_SHARE * rate_hz
        self.rate_hz = rate_hz
        corners = [min(hz, top) for hz in (LOW_SHELF_HZ, *BELLS_HZ, HIGH_SHELF_HZ, DC_HZ)]
        self._tangents = [math.tan(math.pi * hz / rate_hz) for hz in corners]
        self._kinds = ["low", *["bell"] * len(BELLS_HZ), "high", "low"]

    def state_space(self) -> Float[Tensor, "section 9"]:
        """A11 A12 A21 A22 B1 B2 C1 C2 D of each band filter and of the all-pass's (trapezoidal rule), in float64."""
        rows = [_state_space(kind, g) for kind, g in zip(self._kinds, self._tangents, strict=True)]
        return torch.tensor([*rows, _state_space("high", HALF_TANGENT)], dtype=torch.float64)

    @staticmethod
    def cut(nepers: PerBand, is_half: Bool[Tensor, " batch"]) -> Float[Tensor, "batch section"]:
        """What each of `state_space` takes out of its band, 0 to 1, and the all-pass 0 or 2."""
        return torch.cat([-torch.expm1(-nepers), 2 * is_half.to(nepers)[:, None]], 1)

    def half_delay(self, hz: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Samples by which the all-pass delays a sinusoid of `hz`."""
        angle = math.pi * hz.double() / self.rate_hz
        return torch.atan(torch.tan(angle) / HALF_TANGENT) / angle

    def split_delay(
        self, exact: Float[Tensor, " batch"], hz: Float[Tensor, " batch"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"], Bool[Tensor, " batch"]]:
        """(whole samples, what `lagrange` has to do, is_half) that delay a sinusoid of `hz` by `exact` samples."""
        is_half = (exact - exact.detach().round()).abs() > 0.25
        rest = exact - torch.where(is_half, self.half_delay(hz), 0.0)
        whole = rest.detach().round()
        return whole, rest - whole, is_half

    def response(self, hz: Float[Tensor, "*shape"]) -> Complex[Tensor, "*shape section"]:
        """B(f) of each section."""
        warped = torch.tan(math.pi * hz.double().clamp_max(0.499 * self.rate_hz) / self.rate_hz)
        columns = []
        for kind, g in zip(self._kinds, self._tangents, strict=True):
            s = 1j * warped / g
            if kind == "bell":
                columns.append((s / Q) / (s * s + s / Q + 1))
            else:
                columns.append((1 if kind == "low" else s) / (s + 1))
        return torch.stack(columns, -1)

    def loss(self, nepers: PerBand, hz: Float[Tensor, "batch place"]) -> Float[Tensor, "batch place"]:
        """Nepers that all sections together take at `hz`."""
        return _taken(nepers, self.response(hz).abs().square())

    def phase_delay(self, nepers: PerBand, hz: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Samples by which all sections together delay a sinusoid of `hz`; negative where they advance it."""
        through = 1 + torch.expm1(-nepers.double()) * self.response(hz)
        return -torch.angle(through).sum(-1) / (2 * math.pi * hz.double() / self.rate_hz)

    def fit(
        self,
        loss: Float[Tensor, "batch place"],
        hz: Float[Tensor, "batch place"],
        weight: Float[Tensor, "batch place"],
        lost: Float[Tensor, "batch place"],
    ) -> tuple[PerBand, Float[Tensor, " batch"]]:
        """Nepers >= 0 of each section, and of all frequencies alike, that with `lost` make `loss` nepers at `hz`.

        Multiplicative updates, which keep what is not negative so and have a gradient, of the Itakura-Saito divergence,
        which counts relative errors (C. Févotte, N. Bertin, J.-L. Durrieu, "Nonnegative matrix factorization with the
        Itakura-Saito divergence", 2009), weighted by `weight`.
        """
        whole_power = self.response(hz).abs().square()
        power = whole_power[..., :-1]
        wanted = loss.double().clamp(1e-9, LARGEST_NEPERS)
        base = 0.5 * wanted.min(1).values
        nepers = wanted.mean(1, keepdim=True).expand(-1, NUM_SECTIONS) / 4
        at_dc = nepers.new_full((len(nepers), 1), DC_NEPERS)
        for _ in range(FIT_STEPS):
            found = _taken(torch.cat([nepers, at_dc], 1), whole_power) + base[:, None] + lost
            up, down = weight * wanted / found.square(), weight / found
            nepers = nepers * ((power * up[..., None]).sum(1) / (power * down[..., None]).sum(1)).sqrt()
            nepers = nepers.clamp_max(LARGEST_NEPERS)
            base = base * (up.sum(1) / down.sum(1)).sqrt()
        return torch.cat([nepers, at_dc], 1), base


def fractional_loss(
    offset: Float[Tensor, " batch"], hz: Tensor, rate_hz: int
) -> Float[Tensor, "batch place"]:
    """Nepers that `lagrange` weights of `offset` lose at `hz` [B, P]."""
    angle = 2 * math.pi * hz.double() / rate_hz
    number = torch.arange(ORDER + 1, dtype=torch.float64)
    spectrum = lagrange(offset.double())[:, None, :] * torch.exp(-1j * angle[..., None] * number)
    return -torch.log(spectrum.sum(-1).abs().clamp_min(1e-6))


def at_frequencies(
    values: PerBand, places_hz: PerBand, hz: Float[Tensor, "batch place"]
) -> Float[Tensor, "batch place"]:
    """`values` > 0, known at ascending `places_hz`, at `hz`: straight lines between logarithms, level beyond."""
    log_hz, knots = hz.double().log(), places_hz.double().log()
    logs = values.double().log()
    above = torch.searchsorted(knots.contiguous(), log_hz.contiguous()).clamp(1, knots.shape[1] - 1)
    left, right = knots.gather(1, above - 1), knots.gather(1, above)
    share = ((log_hz - left) / (right - left)).clamp(0, 1)
    return torch.exp(logs.gather(1, above - 1) * (1 - share) + logs.gather(1, above) * share)


def band_places(f0_hz: Float[Tensor, " batch"]) -> PerBand:
    """Where in each octave band a tone of `f0_hz` has its partials: their mean, lower ones counting more.

    The centre of a band without partials. A partial k counts 1/k⁴.
    """
    centres = torch.tensor(OCTAVES_HZ, dtype=torch.float64)
    number = torch.arange(1, 1025, dtype=torch.float64)
    partial = f0_hz.double()[:, None] * number
    band = torch.round(torch.log2(partial / centres[0])).clamp(-1, len(OCTAVES_HZ))
    weight = (band[..., None] == torch.arange(len(OCTAVES_HZ))) / number[:, None] ** 4
    total = weight.sum(1)
    mean = (weight * partial.log()[..., None]).sum(1) / total.clamp_min(1e-30)
    return torch.where(total > 0, mean.exp(), centres)


def calibrated(t60: PerBand, f0_hz: Float[Tensor, " batch"]) -> PerBand:
    """Nepers per period at `band_places`, for which octave bands of a tone of `f0_hz` fall as `t60` [seconds] says.

    A band holds partials of different decay, so that its level in dB is no straight line, and the T60 of the line
    through it is that of no one of them. For partials whose amplitudes fall as 1/k that line is computed, and the
    losses are changed until it is right.
    """
    f0, t60 = f0_hz.double()[:, None], t60.double()
    number = torch.arange(1, int(HIGHEST_PARTIAL_HZ / float(f0.min())) + 2, dtype=torch.float64)
    partial = f0 * number
    band = torch.round(torch.log2(partial / OCTAVES_HZ[0])).long().clamp(0, len(OCTAVES_HZ) - 1)
    belongs = (band[..., None] == torch.arange(len(OCTAVES_HZ))).double()
    belongs = belongs * ((partial < HIGHEST_PARTIAL_HZ) / number**2)[..., None]
    is_told = (belongs.sum(1) > 0) & (t60 > 0)
    places = band_places(f0_hz)
    share = torch.linspace(0, 1, 33, dtype=torch.float64)
    # Seconds of the line through each band: until it has fallen by 60 dB, or the note has ended.
    times = t60.clamp_max(LONGEST_SECONDS)[..., None] * share
    times_of_partial = times.gather(1, band[..., None].expand(-1, -1, len(share)))
    loss = 3 * math.log(10) / (f0 * t60)
    for _ in range(CALIBRATIONS):
        exponent = -2 * (at_frequencies(loss, places, partial) * f0)[..., None] * times_of_partial
        level = 10 * torch.log10(torch.einsum("bkt,bko->bot", exponent.exp(), belongs).clamp_min(1e-30))
        weight = (level >= level[..., :1] - 60).double()
        mean_time = (weight * times).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)
        deviation = weight * (times - mean_time)
        slope = (deviation * level).sum(-1) / deviation.square().sum(-1)
        ratio = -60 / slope.clamp_max(-1e-9) / t60
        loss = torch.where(is_told, loss * ratio.clamp(0.5, 2), loss)
    return loss


def filled(values: PerBand, f0_hz: Float[Tensor, " batch"]) -> PerBand:
    """`values` [B, bands] with NaN and what is below the band of f0 replaced.

    From the nearest band that is known, or by a straight line between two, in the logarithm. All NaN: NaN.
    """
    rows = []
    place = torch.arange(values.shape[1], dtype=torch.float64)
    lowest = torch.round(torch.log2(f0_hz.double() / OCTAVES_HZ[0]))
    for row, first in zip(values.double(), lowest, strict=True):
        known = row.isfinite() & (place >= first)
        if not known.any():
            rows.append(row)
            continue
        knots, logs = place[known], row[known].log()
        above = torch.searchsorted(knots, place).clamp(1, max(len(knots) - 1, 1)).clamp_max(len(knots) - 1)
        below = (above - 1).clamp_min(0)
        share = ((place - knots[below]) / (knots[above] - knots[below]).clamp_min(1e-9)).clamp(0, 1)
        rows.append(torch.exp(logs[below] * (1 - share) + logs[above] * share))
    return torch.stack(rows)


def _taken(nepers: PerBand, power: Float[Tensor, "batch place band"]) -> Float[Tensor, "batch place"]:
    """Nepers that sections take where their band filters have |B|² = `power`."""
    return -0.5 * torch.log1p(torch.expm1(-2 * nepers.double())[:, None, :] * power).sum(-1)


def _state_space(kind: str, g: float) -> list[float]:
    """Of one band filter: topology-preserving transforms (V. Zavalishin, "The art of VA filter design", 2018)."""
    if kind == "bell":
        a1 = 1 / (1 + g * (g + 1 / Q))
        a2, a3 = g * a1, g * g * a1
        return [2 * a1 - 1, -2 * a2, 2 * a2, 1 - 2 * a3, 2 * a2, 2 * a3, a1 / Q, -a2 / Q, a2 / Q]
    share = g / (1 + g)
    low = [1 - 2 * share, 0.0, 0.0, 0.0, 2 * share, 0.0, 1 - share, 0.0, share]
    return low if kind == "low" else [*low[:6], share - 1, 0.0, 1 - share]
