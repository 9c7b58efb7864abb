"""The STFT against a plain sum, scipy and its own inverse."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enhancer.signal.stft import Stft, num_frames, power_spectrogram


def slow_stft(wave, window_samples, hop_samples, n_fft):
    """The definition, one bin and frame at a time."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_samples) / window_samples)
    count = int(np.ceil(len(wave) / hop_samples)) + 1
    spectrum = np.zeros((n_fft // 2 + 1, count), complex)
    for frame in range(count):
        start = frame * hop_samples - window_samples // 2
        for offset in range(window_samples):
            if 0 <= start + offset < len(wave):
                turn = np.exp(-2j * np.pi * np.arange(n_fft // 2 + 1) * offset / n_fft)
                spectrum[:, frame] += window[offset] * wave[start + offset] * turn
    return spectrum


@pytest.mark.parametrize(
    ("window_samples", "hop_samples", "n_fft"), [(16, 4, None), (12, 6, 16), (20, 5, 32), (21, 7, 22)]
)
def test_it_is_the_sum_of_the_definition(window_samples, hop_samples, n_fft, random):
    wave = torch.randn(50, generator=random, dtype=torch.float64)
    stft = Stft(window_samples, hop_samples, n_fft) if n_fft else Stft(window_samples, hop_samples)
    expected = slow_stft(wave.numpy(), window_samples, hop_samples, n_fft or window_samples)
    np.testing.assert_allclose(stft(wave).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("window_samples", "hop_samples"), [(1680, 420), (400, 100), (1024, 256)])
def test_it_agrees_with_scipy(window_samples, hop_samples, noise_wave):
    ours = Stft(window_samples, hop_samples)(noise_wave)
    _, _, theirs = scipy.signal.stft(
        noise_wave.double().numpy(), nperseg=window_samples, noverlap=window_samples - hop_samples
    )
    # scipy divides by the sum of the window, and ends with the last frame that starts inside the waveform.
    frames = noise_wave.shape[-1] // hop_samples
    np.testing.assert_allclose(
        ours[..., :frames].numpy(), theirs[..., :frames] * window_samples / 2, atol=2e-5
    )


@pytest.mark.parametrize(
    ("window_samples", "hop_samples", "n_fft"),
    [(1680, 420, 1680), (400, 100, 512), (1024, 256, 1024), (64, 32, 64), (63, 21, 64)],
)
@pytest.mark.parametrize("length", [1, 419, 420, 421, 10_007])
def test_the_inverse_returns_the_waveform_to_its_first_and_last_sample(
    window_samples, hop_samples, n_fft, length, random
):
    wave = torch.randn(2, length, generator=random)
    stft = Stft(window_samples, hop_samples, n_fft)
    torch.testing.assert_close(stft.inverse(stft(wave), length), wave, atol=2e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(hop=st.integers(1, 40), overlap=st.integers(2, 6), length=st.integers(1, 300), pad=st.integers(0, 9))
def test_the_inverse_is_exact_for_any_hop_overlap_and_length(hop, overlap, length, pad):
    window = hop * overlap
    stft = Stft(window, hop, 2 * ((window + 1) // 2 + pad))
    wave = torch.randn(length, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    torch.testing.assert_close(stft.inverse(stft(wave), length), wave, atol=1e-9, rtol=0)


def test_a_spectrum_that_no_waveform_has_is_inverted_with_the_least_squared_error(random):
    stft = Stft(16, 4)
    length = 40
    wild = torch.randn(9, num_frames(length, 4), generator=random, dtype=torch.complex128)
    wild[[0, -1]] = wild[[0, -1]].real + 0j
    # All STFTs are A x with a real matrix A once real and imaginary parts are stacked; the answer is lstsq's, where
    # inner bins count twice because they stand for two of the full spectrum, and samples are free outside the cut.
    padded = torch.eye(length + 40, dtype=torch.float64)
    weight = torch.full((9, 1), 2.0**0.5, dtype=torch.float64)
    weight[[0, -1]] = 1
    columns = torch.view_as_real((stft(padded)[..., 5 : 5 + wild.shape[-1]]) * weight).flatten(1).T
    answer = torch.linalg.lstsq(
        columns, torch.view_as_real(wild * weight).flatten()[:, None], driver="gelsd"
    ).solution[:, 0]
    torch.testing.assert_close(stft.inverse(wild, length), answer[20 : 20 + length], atol=1e-9, rtol=0)


def test_a_chunk_cut_at_a_hop_has_the_same_inner_frames(noise_wave):
    stft = Stft(1680, 420)
    whole, chunk = stft(noise_wave), stft(noise_wave[:, 4200:8400])
    torch.testing.assert_close(chunk[..., 2:-2], whole[..., 12:19], atol=1e-5, rtol=0)


def test_the_gradient_of_the_transform_and_its_inverse_is_right(random):
    stft = Stft(8, 4)
    wave = torch.randn(2, 13, generator=random, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: stft.inverse(stft(x) * 2j, 13), (wave,))


def test_a_power_spectrogram_is_the_squared_magnitude(noise_wave):
    power = power_spectrogram(noise_wave, 400, 100, 512)
    expected = Stft(400, 100, 512)(noise_wave).abs().square().transpose(-1, -2)
    torch.testing.assert_close(power, expected, atol=1e-5, rtol=1e-5)


def test_half_precision_is_transformed_in_float32(noise_wave):
    half = noise_wave.bfloat16()
    spectrum = Stft(400, 100)(half)
    assert spectrum.dtype == torch.complex64
    torch.testing.assert_close(spectrum, Stft(400, 100)(half.float()))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1680, 500), "two whole hops"),
        ((420, 420), "two whole hops"),
        ((1680, 0), "two whole hops"),
        ((1680, 420, 1024), "not below the window's 1680"),
        ((1680, 420, 1681), "even"),
    ],
)
def test_impossible_sizes_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        Stft(*arguments)


def test_a_spectrum_of_another_length_is_refused(noise_wave):
    stft = Stft(400, 100)
    with pytest.raises(ValueError, match=r"\(201, 102\); 500 samples have \(201, 6\)"):
        stft.inverse(stft(noise_wave), 500)
