"""A plucked string: a delay line that feeds back through a loss filter and a small network that opens and closes it.

K. Karplus and A. Strong, "Digital synthesis of plucked-string and drum timbres" (1983), with the loss of one period

    y[n] = v[n] exp(-loss exp(m[n])),  v = what is left of y one period ago after the filters of `string_filter`,

made of what is known of a note. m is the network, bounded, and hears the last samples, those around one period ago and
how far the note has decayed. No sample is larger than v[n] and no filter gains at any frequency, so that the energy of
a rollout never grows, at any level and for any weights; zero goes to zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from enhancer.models.string_filter import (
    FIT_HZ,
    OCTAVES_HZ,
    BandSections,
    at_frequencies,
    band_places,
    calibrated,
    filled,
    fractional_loss,
    lagrange,
)
from enhancer.models.string_loop import Loop, generate, rollout
from enhancer.models.string_outlook import Outlook
from enhancer.models.string_stages import Stages, later_drop, slower, split_history
from enhancer.models.string_tuning import tuned

LARGEST_SHARE = 0.8
"""Of the loss at f0 that the filters take; the rest is lost at all frequencies alike, and the network's to modulate."""
MIDDLE_HZ, MIDDLE_SECONDS = 220.0, 2.0
LARGEST_CORRECTION, OF_MEASURED = 1.5, 0.5
"""By which a loss is corrected, up to a factor of its exponential: a guessed decay, and one that was measured."""
CORRECTION_UNITS = 16
FAST_PERIODS, SLOW_PERIODS = 4.0, 32.0
NEPERS_PER_T60 = 3 * math.log(10)
LEAST_PERIOD_SAMPLES = 8
PerRow = Float[Tensor, " batch"]


class PluckedString(nn.Module):
    """A string's free decay from a stretch of it.

    Args:
        rate_hz: sample rate.
        controls: what it hears of `f0`, `velocity`, `position` and `t60`. f0 tunes the loop in any case.
        num_layers: hidden tanh layers, 0 to 2. With 0 the loop is a linear filter.
        hidden_size: units of each.
        is_bounded: False takes a network whose output is added and a delay line whose taps have any weights, which
            may gain: for comparison.
        is_odd: -x makes -y, by construction.
        has_quarter_taps: it hears samples a quarter of a period ago.
        has_decay_state: it hears how far the note has decayed and how fast.
        has_two_stages: two bounded loops side by side, for what falls fast at first and what rings on.
        outlook_seconds: of a note's beginning, from which `outlook` foretells the T60 that it is to be told.
    """

    def __init__(
        self,
        rate_hz: int = 44_100,
        controls: Sequence[str] = ("f0", "velocity", "position", "t60"),
        num_layers: int = 2,
        hidden_size: int = 64,
        is_bounded: bool = True,
        is_odd: bool = True,
        has_quarter_taps: bool = False,
        has_decay_state: bool = True,
        has_two_stages: bool = False,
        outlook_seconds: float = 1.0,
    ) -> None:
        super().__init__()
        self.rate_hz, self.controls = rate_hz, tuple(controls)
        self.num_layers, self.is_bounded, self.is_odd = num_layers, is_bounded, is_odd
        self.has_quarter_taps, self.has_decay_state = has_quarter_taps, has_decay_state
        self.sections = BandSections(rate_hz)
        self.outlook = Outlook(rate_hz, outlook_seconds) if "t60" in self.controls else None
        bands = len(OCTAVES_HZ)
        num_features = sum(bands if name == "t60" else 1 for name in self.controls)
        self.hear = nn.Linear(num_features, CORRECTION_UNITS)
        self.correct = nn.Linear(CORRECTION_UNITS, bands)
        nn.init.zeros_(self.correct.weight)
        nn.init.zeros_(self.correct.bias)
        if "t60" not in self.controls:
            self.log_t60 = nn.Parameter(math.log(4.0) - 0.35 * torch.arange(bands).float())
        num_inputs = 10 + 3 * has_quarter_taps + 2 * has_decay_state
        hidden = hidden_size if num_layers else 1
        if num_layers:
            self.inputs = nn.Linear(num_inputs + num_features, hidden)
            self.output = nn.Linear(hidden, 1)
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.output.bias)
        if num_layers > 1:
            self.hidden = nn.Linear(hidden, hidden)
        others = len([name for name in self.controls if name != "t60"])
        self.stages = Stages(others) if has_two_stages and is_bounded else None
        if not is_bounded:
            self.taps = nn.Parameter(torch.zeros(7))
            self.recent = nn.Parameter(torch.zeros(3))
        self._num_inputs, self._hidden_size = num_inputs, hidden

    def forward(
        self,
        history: Float[Tensor, "batch past"],
        num_samples: int,
        f0_hz: PerRow,
        velocity: PerRow,
        position: PerRow,
        t60: Float[Tensor, "batch band"],
        decay_db: PerRow,
        t60_range_db: Float[Tensor, "batch band"] | None = None,
        time: PerRow | None = None,
    ) -> Float[Tensor, "batch sample"]:
        """What the string does after `history`, `num_samples` long, with nothing going in any more.

        Without gradients, a bounded string that hears `t60` is tuned by trial runs until it has it (`string_tuning`).

        Args:
            history: two periods of each string or more.
            f0_hz: at most an eighth of the rate.
            velocity: 0 to 1; NaN where it is not known.
            position: 0 to 1 of the string's length; NaN where it is not known.
            t60: seconds in the bands of OCTAVES_HZ; NaN where it is not known, but not in all bands of a row if it is
                among the controls.
            decay_db: level of the history against that at the start of the note.
            t60_range_db: how far each band had fallen where the line that `t60` is of ended; NaN or None: 60 dB.
            time: seconds since the note began when the history begins; None: 0.

        Raises ValueError where a string is too high or its history too short.
        """
        self._check(history, f0_hz)
        controls = (f0_hz, velocity, position, t60, decay_db)
        seconds = torch.zeros_like(f0_hz) if time is None else time

        def ring(change: Tensor | None, count: int) -> Tensor:
            return self._ring(history.float(), count, controls, seconds, change)

        if torch.is_grad_enabled() or not (self.is_bounded and "t60" in self.controls):
            return ring(None, num_samples)
        change, wave = tuned(ring, num_samples, self.rate_hz, f0_hz, t60, t60_range_db)
        return ring(change, num_samples) if wave is None else wave

    def _ring(
        self,
        history: Tensor,
        count: int,
        controls: tuple[Tensor, ...],
        seconds: Tensor,
        change: Tensor | None,
    ) -> Tensor:
        run = rollout if torch.is_grad_enabled() else generate
        f0_hz, velocity, position, t60, decay_db = controls
        if self.stages is None:
            return run(self.loop(history, f0_hz, velocity, position, t60, decay_db, change), history, count)
        features = self._features(f0_hz, velocity, position, t60)
        loss = self._loss_per_band(features, f0_hz, t60)
        others = self._features(f0_hz, velocity, position, None)
        drop, log_ratio = self.stages(others, f0_hz, loss)
        own = slower(drop, log_ratio, loss, f0_hz)
        change = own if change is None else own + change
        drop = later_drop(drop, log_ratio, loss * change.exp(), f0_hz * seconds)
        both = torch.cat(split_history(history, drop, f0_hz, self.sections))
        twice = [torch.cat([each, each]) for each in (*controls, change)]
        twice[5][len(history) :] += log_ratio
        loop = self.loop(both, twice[0], twice[1], twice[2], twice[3], twice[4], twice[5])
        waves = run(loop, both, count)
        return waves[: len(history)] + waves[len(history) :]

    def loop(
        self,
        history: Tensor,
        f0_hz: PerRow,
        velocity: PerRow,
        position: PerRow,
        t60: Float[Tensor, "batch band"],
        decay_db: PerRow,
        change: Float[Tensor, "batch band"] | None = None,
    ) -> Loop:
        """The loop of each row, as it begins after `history`; losses are multiplied by exp(change) in each band."""
        features = self._features(f0_hz, velocity, position, t60)
        wanted = self._loss_per_band(features, f0_hz, t60)
        if change is not None:
            wanted = wanted * change.exp()
        delay, fir, cut, base = self._filters(wanted, f0_hz)
        period = self.rate_hz / f0_hz.double()
        recent = fir.new_zeros(3)
        if not self.is_bounded:
            # Of the filters what delays is left.
            cut = torch.cat([torch.zeros_like(cut[:, :-1]), cut[:, -1:]], 1)
            fir, base = fir + self.taps.double(), torch.zeros_like(base)
            recent = self.recent
        at_f0 = at_frequencies(wanted, band_places(f0_hz), f0_hz[:, None])[:, 0]
        energy = history.double().square().mean(1) + 1e-20
        mean_periods = torch.tensor([FAST_PERIODS, SLOW_PERIODS], dtype=torch.float64)
        scale = torch.stack(
            [
                torch.full_like(period, 1 / NEPERS_PER_T60),
                energy.log() - decay_db.double() * math.log(10) / 10,
                1 / (2 * (SLOW_PERIODS - FAST_PERIODS) * at_f0.detach()),
            ],
            1,
        )
        network = {name: value.float() for name, value in self._network(features).items()}
        return Loop(
            fir=fir.float(),
            recent=recent.float(),
            cut=cut.float(),
            loss=base.float(),
            **network,
            delay=delay,
            quarter=(period / 4).round().long().clamp_min(2),
            sections=self.sections.state_space().float(),
            rates=(1 / (mean_periods * period[:, None])).float(),
            scale=scale.float(),
            num_layers=self.num_layers,
            is_additive=not self.is_bounded,
            is_odd=self.is_odd,
            has_quarter=self.has_quarter_taps,
            has_state=self.has_decay_state,
        )

    def _network(self, features: Tensor) -> dict[str, Tensor]:
        """Weights of the network as a loop takes them, with what is constant over a note in the first bias."""
        size, batch = self._hidden_size, len(features)
        if not self.num_layers:
            empty = {
                "w1": (self._num_inputs, size),
                "b2": (size,),
                "w2": (size, size),
                "w3": (size,),
                "b3": (1,),
            }
            return {
                name: features.new_zeros(shape) for name, shape in (empty | {"bias1": (batch, size)}).items()
            }
        heard, constant = self.inputs.weight.split([self._num_inputs, features.shape[1]], 1)
        is_deep = self.num_layers > 1
        return {
            "w1": heard.T,
            "bias1": self.inputs.bias + features.to(constant) @ constant.T,
            "w2": self.hidden.weight.T if is_deep else features.new_zeros(size, size),
            "b2": self.hidden.bias if is_deep else features.new_zeros(size),
            "w3": self.output.weight[0],
            "b3": self.output.bias,
        }

    def _features(self, f0_hz: Tensor, velocity: Tensor, position: Tensor, t60: Tensor | None) -> Tensor:
        """The controls as a network hears them; without those of `t60` where it is None."""
        columns = {
            "f0": 0.5 * torch.log2(f0_hz / MIDDLE_HZ)[:, None],
            "velocity": (2 * velocity.nan_to_num(0.5) - 1)[:, None],
            "position": (4 * (position.nan_to_num(0.25) - 0.25))[:, None],
        }
        if t60 is not None and "t60" in self.controls:
            columns["t60"] = (filled(t60, f0_hz) / MIDDLE_SECONDS).log().clamp(-4, 4)
        return torch.cat([columns[name].float() for name in self.controls if name in columns], 1)

    def _loss_per_band(self, features: Tensor, f0_hz: Tensor, t60: Tensor) -> Tensor:
        """Nepers per period that each octave band should lose, float64 [B, bands]."""
        if "t60" in self.controls:
            loss = calibrated(filled(t60, f0_hz), f0_hz)
        else:
            loss = NEPERS_PER_T60 / (f0_hz.double()[:, None] * self.log_t60.double().exp())
        units = torch.tanh(self.hear(features.to(self.hear.weight)))
        largest = OF_MEASURED if "t60" in self.controls else LARGEST_CORRECTION
        correction = largest * torch.tanh(self.correct(units).double() / largest)
        return loss * correction.exp()

    def _filters(self, wanted: Tensor, f0_hz: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """delay [B], fir [B, 7], cut [B, sections], base [B]: at f0 one period long and as lossy as wanted."""
        batch, own_hz = len(f0_hz), f0_hz.double()[:, None]
        places = band_places(f0_hz)
        grid = torch.tensor(FIT_HZ, dtype=torch.float64).clamp_max(0.48 * self.rate_hz).expand(batch, -1)
        grid = torch.cat([grid, own_hz * torch.arange(1.0, 4.0)], 1)
        # Nothing sounds below f0; the lowest partials are what is heard longest.
        weight = torch.where(grid < 0.9 * own_hz, 0.0, 1.0)
        weight[:, len(FIT_HZ) :] = 3.0
        on_grid, at_f0 = at_frequencies(wanted, places, grid), at_frequencies(wanted, places, own_hz)[:, 0]
        period = self.rate_hz / own_hz[:, 0]
        _, offset, is_half = self.sections.split_delay(period, own_hz[:, 0])
        for _ in range(2):
            lost = fractional_loss(offset.detach(), grid, self.rate_hz)
            nepers, _ = self.sections.fit(on_grid, grid, weight, lost)
            nepers, at_dc = nepers[:, :-1], nepers[:, -1:]
            for _ in range(3):
                taken = self.sections.loss(torch.cat([nepers, at_dc], 1), own_hz)[:, 0]
                nepers = nepers * (LARGEST_SHARE * at_f0 / taken).clamp_max(1)[:, None]
            nepers = torch.cat([nepers, at_dc], 1)
            base = (at_f0 - self.sections.loss(nepers, own_hz)[:, 0]).clamp_min(0)
            exact = period - self.sections.phase_delay(nepers, own_hz[:, 0])
            delay, offset, is_half = self.sections.split_delay(exact, own_hz[:, 0])
        return delay.long(), lagrange(offset), self.sections.cut(nepers, is_half), base

    def _check(self, history: Tensor, f0_hz: Tensor) -> None:
        highest, longest = float(f0_hz.max()), self.rate_hz / float(f0_hz.min())
        if not highest <= self.rate_hz / LEAST_PERIOD_SAMPLES:
            raise ValueError(
                f"a string of {highest:g} Hz has periods of {self.rate_hz / highest:.1f} samples at {self.rate_hz} Hz; "
                f"needed {LEAST_PERIOD_SAMPLES}: leave the note out, or take a higher rate"
            )
        if history.shape[1] < 2 * longest:
            raise ValueError(
                f"a history of {history.shape[1]} samples is below two periods of {longest:.1f}; make it longer"
            )
