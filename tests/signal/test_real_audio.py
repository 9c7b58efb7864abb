"""The promises of mixing and the STFT on real recordings."""

from __future__ import annotations

import pytest
import soundfile
import torch

from enhancer.signal.convolution import RirBank
from enhancer.signal.levels import power_db
from enhancer.signal.mixing import mix
from enhancer.signal.resample import resample
from enhancer.signal.stft import Stft

RATE_HZ = 44_100


def recordings(folder, count):
    """The loudest second of each of `count` files, mixed down: int16 rows at 44.1 kHz."""
    rows = []
    for path in sorted(folder.iterdir()):
        samples, rate_hz = soundfile.read(path, dtype="float32", frames=400_000)
        wave = torch.from_numpy(samples.reshape(len(samples), -1).mean(1))
        wave = resample(wave, rate_hz, RATE_HZ)
        if wave.shape[0] >= RATE_HZ:
            loudest = wave.unfold(0, RATE_HZ, RATE_HZ).square().mean(-1).argmax() * RATE_HZ
            rows.append(wave[loudest : loudest + RATE_HZ])
        if len(rows) == count:
            return (torch.stack(rows) * 32767).clamp(-32768, 32767).to(torch.int16)
    pytest.skip(f"{folder} has fewer than {count} recordings of a second")


def test_real_recordings_are_mixed_at_their_ratio_and_level(shared_audio):
    foreground, background = recordings(shared_audio / "fg", 4), recordings(shared_audio / "bg", 4)
    batch = {
        "fg": foreground,
        "bg": background,
        "is_pair": torch.zeros(4, dtype=torch.bool),
        "rir": torch.tensor([0, -1, 0, -1]),
        "room_gain_db": torch.zeros(4),
        "snr_db": torch.tensor([-12.0, 0.0, 6.0, 12.0]),
        "level_db": torch.full((4,), -30.0),
        "eq_hz": torch.full((4,), 1000.0),
        "eq_gain_db": torch.zeros(4),
        "eq_q": torch.ones(4),
        "lowpass_hz": torch.full((4,), torch.inf),
        "highpass_hz": torch.zeros(4),
        "drive_db": torch.zeros(4),
        "noise_snr_db": torch.full((4,), torch.inf),
        "noise_seed": torch.zeros(4, dtype=torch.int64),
    }
    impulse = torch.zeros(1, 1000)
    impulse[0, 0], impulse[0, 700] = 1.0, 0.5
    mixed = mix(batch, RirBank(impulse), RATE_HZ)
    torch.testing.assert_close(power_db(mixed.mixture), batch["level_db"], atol=1e-2, rtol=0)

    echo = torch.nn.functional.pad(mixed.target, (700, 0))[:, :RATE_HZ] * 0.5
    heard = mixed.target + echo * (batch["rir"] >= 0)[:, None]
    ratio_db = power_db(heard) - power_db(mixed.mixture - heard)
    torch.testing.assert_close(ratio_db, batch["snr_db"], atol=2e-2, rtol=0)


def test_real_recordings_survive_the_transform(shared_audio):
    wave = recordings(shared_audio / "fg", 2) / 32768
    stft = Stft(1680, 420)
    torch.testing.assert_close(stft.inverse(stft(wave), RATE_HZ), wave, atol=1e-6, rtol=0)
