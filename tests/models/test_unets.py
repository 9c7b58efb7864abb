"""The ConvNeXt U-Nets: any length, chunks, the identity they start from, and a block written out by hand."""

from __future__ import annotations

import pytest
import scipy.signal
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enhancer.inference import ChunkedModel
from enhancer.models.convnext import Block, ConvNextUNet, Lengthen, Shorten
from enhancer.models.spec_unet import SpecUNet, _compressed, _expanded
from enhancer.models.wave_unet import WaveUNet, _deemphasised, _emphasised

SHIFT = torch.tensor([3.0, -7.0])


def wave_unet(**values) -> WaveUNet:
    small = {"channels": (1, 4, 8, 12), "blocks": (1, 2, 1), "factors": (4, 2, 3), "kernel_size": 5}
    return WaveUNet(**{**small, **values})


def spec_unet(**values) -> SpecUNet:
    small = {
        "channels": (2, 4, 8),
        "blocks": (1, 1),
        "factors": (4, 2),
        "frame_factors": (1, 2),
        "kernel_size": 3,
    }
    return SpecUNet(**{**small, "window_samples": 96, "hop_samples": 24, **values})


def perturbed(model: nn.Module, seed: int = 0, size: float = 0.2) -> nn.Module:
    """`model` with every weight moved at random, so that nothing is zero any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def noise(length: int, rows: int = 2) -> Tensor:
    return 0.1 * torch.randn(rows, length, generator=torch.Generator().manual_seed(length))


def test_the_preset_has_about_22_million_parameters() -> None:
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in model.parameters()) for model in (WaveUNet(), SpecUNet())]
    assert sizes[0] == pytest.approx(22e6, rel=0.05) and sizes[1] == pytest.approx(22e6, rel=0.15)


def test_pointwise_layers_are_linears_and_all_convolutions_depthwise() -> None:
    for model in (wave_unet(), spec_unet()):
        convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
        assert convolutions and all(conv.groups == conv.in_channels for conv in convolutions)
        shapes = {p.ndim for name, p in model.named_parameters() if "depthwise" not in name}
        assert shapes == {1, 2}


@pytest.mark.parametrize("model", [wave_unet(), spec_unet()], ids=["wave", "spec"])
@pytest.mark.parametrize("length", [1, 23, 24, 25, 47, 48, 49, 1000])
def test_any_length_comes_out_as_long_and_at_first_as_it_was(model: nn.Module, length: int) -> None:
    wave = noise(length)
    torch.testing.assert_close(model(wave, SHIFT), wave, atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [wave_unet, spec_unet], ids=["wave", "spec"])
@pytest.mark.parametrize("length", [1, 23, 24, 25, 1000])
def test_a_length_that_no_factor_divides_is_filled_up_with_silence(make, length: int) -> None:
    """The rule: what comes out is the start of what the recording with silence behind it gives."""
    model = perturbed(make())
    wave = noise(length)
    whole = F.pad(wave, (0, -length % model.stride_samples))
    found = model(wave, SHIFT)
    assert found.shape == wave.shape
    if isinstance(model, WaveUNet):
        torch.testing.assert_close(found, model(whole, SHIFT)[:, :length], atol=1e-6, rtol=0)
    else:
        # The last frames of a spectrogram see the end; further inside there is no difference.
        inside = max(0, length - model.context_samples)
        torch.testing.assert_close(found[:, :inside], model(whole, SHIFT)[:, :inside], atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [wave_unet, spec_unet], ids=["wave", "spec"])
def test_a_recording_in_chunks_is_the_recording_at_once(make) -> None:
    model = perturbed(make())
    wave = noise(20_001, rows=1)

    class Told(nn.Module):
        stride_samples, context_samples = model.stride_samples, model.context_samples

        def forward(self, heard: Tensor) -> Tensor:
            return model(heard, SHIFT[:1])

    chunked = ChunkedModel(Told(), rate_hz=24_000, chunk_seconds=0.05)
    with torch.no_grad():
        torch.testing.assert_close(chunked.whole(wave), model(wave, SHIFT[:1]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [wave_unet, spec_unet], ids=["wave", "spec"])
def test_what_lies_beyond_the_context_has_no_influence_and_what_lies_inside_has(make) -> None:
    model = perturbed(make())
    wave, at = noise(12_000, rows=1), 6000
    changed = wave.clone()
    changed[:, at] += 1
    with torch.no_grad():
        moved = (model(changed, SHIFT[:1]) - model(wave, SHIFT[:1])).abs()[0]
    far = torch.arange(12_000).sub(at).abs() > model.context_samples
    assert moved[far].max() < 1e-5
    assert moved[~far].max() > 1e-3
    reached = (torch.nonzero(moved > 1e-7).squeeze(1) - at).abs().max()
    assert reached > 0.3 * model.context_samples, "the context is far larger than what is reached"


@pytest.mark.parametrize("make", [wave_unet, spec_unet], ids=["wave", "spec"])
def test_the_semitones_of_a_row_change_that_row(make) -> None:
    model = perturbed(make())
    wave = noise(500)
    first = model(wave, SHIFT)
    second = model(wave, torch.tensor([3.0, 7.0]))
    torch.testing.assert_close(first[0], second[0])
    assert (first[1] - second[1]).abs().max() > 1e-4
    with pytest.raises(ValueError, match="give semitones"):
        model(wave)
    blind = perturbed(make(is_conditioned=False))
    torch.testing.assert_close(blind(wave), blind(wave, SHIFT))


@pytest.mark.parametrize("make", [wave_unet, spec_unet], ids=["wave", "spec"])
def test_a_model_of_the_signal_does_not_start_from_its_input(make) -> None:
    torch.manual_seed(0)
    model = make(predict="signal")
    wave = noise(960)
    assert (model(wave, SHIFT) - wave).abs().mean() > 0.02
    silence = torch.zeros_like(wave)
    difference = perturbed(make(predict="difference"))
    signal = make(predict="signal")
    signal.load_state_dict(difference.state_dict())
    if isinstance(difference, WaveUNet):
        torch.testing.assert_close(difference(wave, SHIFT) - wave, signal(wave, SHIFT), atol=1e-5, rtol=0)
    torch.testing.assert_close(difference(silence, SHIFT), signal(silence, SHIFT), atol=1e-5, rtol=0)


def test_a_block_is_what_the_paper_says() -> None:
    """Depthwise convolution, layer norm, linear, GELU, linear, as loud as before the norm, added; sample by sample."""
    block = perturbed(Block(3, (1, 5), 4.0, is_conditioned=False))
    features = torch.randn(1, 1, 11, 3, generator=torch.Generator().manual_seed(1))
    kernel = block.depthwise.weight[:, 0, 0]
    padded = F.pad(features[0, 0].t(), (2, 2))
    expected = []
    for place in range(11):
        mixed = torch.stack([(kernel[c] * padded[c, place : place + 5]).sum() for c in range(3)])
        level = mixed.std(unbiased=False)
        normed = (mixed - mixed.mean()) / level
        hidden = block.widen.weight @ (normed * block.norm.weight + block.norm.bias) + block.widen.bias
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
        expected.append(features[0, 0, place] + level * (block.narrow.weight @ hidden + block.narrow.bias))
    torch.testing.assert_close(block(features, None)[0, 0], torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_patches_are_strided_convolutions() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 8, 12, 3)
    shorten, lengthen = Shorten(3, 5, (4, 2)), Lengthen(5, 3, (4, 2))
    conv = nn.Conv2d(3, 5, (4, 2), stride=(4, 2), bias=False)
    conv.weight.data = shorten.linear.weight.reshape(5, 4, 2, 3).permute(0, 3, 1, 2)
    short = shorten(features)
    torch.testing.assert_close(
        short.permute(0, 3, 1, 2), conv(features.permute(0, 3, 1, 2)), atol=1e-5, rtol=1e-5
    )
    back = nn.ConvTranspose2d(5, 3, (4, 2), stride=(4, 2), bias=False)
    back.weight.data = lengthen.linear.weight.reshape(4, 2, 3, 5).permute(3, 2, 0, 1)
    expected = back(short.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(lengthen(short), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gain", [0.1, 30.0])
def test_a_quieter_recording_comes_out_as_much_quieter(gain: float) -> None:
    """So that what goes unheard in a loud passage does not fill up one near silence."""
    model = perturbed(wave_unet(predict="signal"))
    wave = noise(2000)
    expected = gain * model(wave, SHIFT)
    assert expected.abs().max() > 0.01 * gain
    torch.testing.assert_close(model(gain * wave, SHIFT), expected, atol=1e-4 * gain, rtol=0)


@pytest.mark.parametrize("length", [1, 2, 500, 3000])
def test_deemphasis_is_the_recursive_filter_that_undoes_preemphasis(length: int) -> None:
    """Against scipy's y[t] = x[t] + 0.97 y[t - 1], which has no end, and there and back."""
    wave = noise(length).double()
    expected = torch.from_numpy(scipy.signal.lfilter([1.0], [1.0, -0.97], wave.numpy()))
    torch.testing.assert_close(_deemphasised(wave), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(_deemphasised(_emphasised(wave)), wave, atol=1e-6, rtol=0)


def test_deemphasis_does_not_round_what_a_network_gives_in_bf16() -> None:
    model = wave_unet(predict="signal")
    given = _emphasised(torch.sin(torch.arange(4096) * 0.0157)[None]).bfloat16()
    model.network.forward = lambda *args: given[:, None, :, None]  # type: ignore[method-assign]
    expected = scipy.signal.lfilter([1], [1, -0.97], given.double().numpy())
    torch.testing.assert_close(
        model(torch.zeros(1, 4096)), torch.from_numpy(expected).float(), atol=1e-4, rtol=0
    )


def test_compressed_spectra_expand_to_themselves() -> None:
    spectrum = torch.randn(2, 5, 7, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    parts = _compressed(spectrum)
    torch.testing.assert_close(parts.square().sum(-1), spectrum.abs(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(_expanded(parts), spectrum, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"channels": (2, 4, 8, 12)}, "a waveform has 1"),
        ({"blocks": (1, 2)}, "one more channel than blocks"),
        ({"kernel_size": 4}, "odd sides"),
        ({"predict": "both"}, "signal or difference"),
    ],
)
def test_what_no_network_can_be_is_refused(values: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        wave_unet(**values)


def test_the_grid_of_a_network_is_that_of_its_patches() -> None:
    network = ConvNextUNet((2, 4, 8), (1, 1), ((4, 1), (2, 3)), (3, 3))
    assert network.multiple == (8, 3)
