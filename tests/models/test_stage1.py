"""Stage 1: what its normaliser sees, where it starts, how far it hears; and what the discriminators look at."""

from __future__ import annotations

import math

import pytest
import torch

from enhancer.inference import ChunkedModel
from enhancer.models.discriminators import PeriodDiscriminator, WaveDiscriminator, rows_of
from enhancer.models.mel_autoencoder import MelAutoencoder
from enhancer.models.stage1 import MOST_COUNTED, Normaliser, Stage1
from enhancer.models.vocoder import SpectralVocoder
from enhancer.signal.mel import MelSpectrogram
from hparams.stft import StftConfig

RATE_HZ = 44_100


def stage1(num_latents: int = 64, stir: float = 0.0) -> Stage1:
    torch.manual_seed(3)
    model = Stage1(
        MelSpectrogram(RATE_HZ),
        RATE_HZ,
        MelAutoencoder(num_latents=num_latents, num_extra=4, width=16, num_blocks=1, scale=2.0),
        SpectralVocoder(inputs=132, width=16, num_blocks=2, scale=2.0),
    )
    if stir:
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(stir * torch.randn_like(weight))
    return model.eval()


def tones(seconds: float = 0.5) -> torch.Tensor:
    at = torch.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return 0.1 * torch.stack(
        [sum(torch.sin(2 * math.pi * hz * k * at) / k for k in range(1, 30)) for hz in (110, 261.6)]
    )


def test_there_are_64_latents_105_times_a_second():
    assert stage1().encode(tones(1.0)).shape == (2, 105 + 1, 64)


def test_the_normaliser_knows_mean_and_spread_of_all_it_saw():
    normaliser = Normaliser()
    generator = torch.Generator().manual_seed(1)
    batches = 0.3 + 0.2 * torch.randn(40, 500, generator=generator)
    for batch in batches:
        normaliser.observe(torch.stack([batch.mean(), batch.square().mean()]))
    assert float(normaliser.mean) == pytest.approx(float(batches.mean()), rel=1e-4)
    assert float(normaliser.spread()) == pytest.approx(float(batches.std()), rel=1e-3)
    normal = normaliser(batches)
    assert float(normal.mean()) == pytest.approx(0, abs=1e-3)
    torch.testing.assert_close(normaliser.inverse(normal), batches)


def test_the_normaliser_forgets_slowly_once_it_has_seen_enough():
    normaliser = Normaliser()
    normaliser.num_seen.fill_(MOST_COUNTED)
    before = float(normaliser.mean)
    normaliser.observe(torch.tensor([before + 1, 2.0]))
    assert float(normaliser.mean) == pytest.approx(before + 1 / MOST_COUNTED, rel=1e-4)
    assert float(normaliser.num_seen) == MOST_COUNTED


def test_an_untrained_model_with_as_many_latents_as_bands_has_the_right_spectrum():
    """Nothing is lost on the way to the vocoder, whose magnitudes are the envelope's: levels per band to 3 dB or so."""
    model, wave = stage1(num_latents=128), tones()
    mel = MelSpectrogram(RATE_HZ)
    with torch.no_grad():
        estimate = model(wave)
    assert estimate.shape == wave.shape
    difference = (mel(estimate) - mel(wave))[..., 5:-5].mean(-1)
    assert float(difference.abs().median()) < 4.0
    assert float((mel(0.1 * wave) - mel(wave))[..., 5:-5].mean(-1).abs().median()) > 10


def test_a_short_row_and_one_of_no_whole_hops_come_back_at_their_length():
    model = stage1()
    for length in (1, 419, 420, 1301):
        assert model(torch.randn(1, length)).shape == (1, length)


def test_cutting_a_recording_into_chunks_changes_nothing():
    model = stage1(stir=0.05)
    wave = torch.randn(1, 2 * RATE_HZ, generator=torch.Generator().manual_seed(7)) * 0.1
    with torch.no_grad():
        whole = model(wave)
    pieces = ChunkedModel(model, RATE_HZ, chunk_seconds=0.3).whole(wave)
    torch.testing.assert_close(pieces, whole, atol=2e-5, rtol=0)


def test_no_sample_hears_further_than_the_context():
    model = stage1(stir=0.5)
    wave = 0.01 * torch.randn(1, 60 * 420, generator=torch.Generator().manual_seed(3))
    other = wave.clone()
    middle = 30 * 420
    other[:, middle] += 0.5
    with torch.no_grad():
        changed = (model(other) - model(wave)).abs()[0] > 0
    places = changed.nonzero()[:, 0]
    assert int(places.min()) >= middle - model.context_samples
    assert int(places.max()) <= middle + model.context_samples
    # And not much less far than it says.
    assert int(places.max()) > middle + model.context_samples - 6 * 420


def test_silence_passes_with_finite_gradients():
    model = stage1()
    model.normaliser.observe(torch.tensor([0.0, 0.0]))
    estimate, restored, frames = model(torch.zeros(1, 4200), with_frames=True)
    (estimate.square().mean() + (restored - frames).square().mean()).backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in model.parameters())


def discriminator() -> WaveDiscriminator:
    torch.manual_seed(5)
    return WaveDiscriminator((2, 3), [StftConfig(n_fft=512, hop_length=100, win_length=400)], 2, 2)


def test_each_discriminator_judges_and_rows_do_not_meet():
    model, waves = discriminator(), tones(0.1)
    judged = model(waves)
    assert len(judged) == 3
    for row in (0, 1):
        alone = model(waves[row : row + 1])
        for (scores, features), (own, own_features) in zip(
            rows_of(judged, slice(row, row + 1)), alone, strict=True
        ):
            torch.testing.assert_close(scores, own, atol=1e-5, rtol=1e-4)
            for feature, own_feature in zip(features, own_features, strict=True):
                torch.testing.assert_close(feature, own_feature, atol=1e-5, rtol=1e-4)


def test_a_period_discriminator_looks_along_one_column():
    """A change to one sample changes the features at its phase of the period alone."""
    model = PeriodDiscriminator(3, 2)
    wave = torch.randn(1, 300)
    other = wave.clone()
    other[0, 151] += 1.0
    for one, two in zip(model(wave)[1], model(other)[1], strict=True):
        differing = (one != two).any(1).any(1)[0]
        assert differing.tolist() == [False, True, False]


def test_the_discriminators_hear_silence_with_finite_gradients():
    model = discriminator()
    wave = torch.zeros(1, 4000, requires_grad=True)
    sum(scores.sum() for scores, _ in model(wave)).backward()
    assert bool(wave.grad.isfinite().all())


def test_full_width_has_the_published_sizes():
    """Figures of the reference system: 17.7 M parameters of the discriminators, about 102 M of the autoencoder."""
    from hparams.enhance import EnhanceHParams

    own = EnhanceHParams()
    with torch.device("meta"):
        judge = WaveDiscriminator(
            own.periods,
            [StftConfig(512, 100, 400), StftConfig(1024, 256, 1024), StftConfig(2048, 512, 2048)],
            own.period_width,
            own.resolution_width,
        )
        autoencoder = MelAutoencoder()

    def millions(module):
        return sum(weight.numel() for weight in module.parameters()) / 1e6

    assert millions(judge) == pytest.approx(17.7, abs=0.3)
    assert millions(autoencoder) == pytest.approx(102, abs=4)


def test_phases_are_not_rounded_to_bf16():
    """The head works in float32 under autocast: rounded to bf16, phases all around the circle cost 40 to 50 dB."""
    network = stage1(stir=0.5).vocoder.network
    features = torch.randn(1, 50, network.embed.in_channels, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(features)
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())
