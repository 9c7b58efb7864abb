"""The codec against transformers' DacModel with the same random weights, and what chunked use promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from enhancer.models.dac import Dac, Snake

STRIDES = (2, 4, 8)
SIZES = {"encoder_width": 8, "decoder_width": 64, "num_codebooks": 3, "codebook_size": 64, "codebook_dim": 4}


@pytest.fixture
def peer() -> Any:
    """A small DacModel whose weights are large enough for all layers to matter."""
    transformers = pytest.importorskip("transformers", reason="needs the extra [codec]")
    config = transformers.DacConfig(
        encoder_hidden_size=8,
        decoder_hidden_size=64,
        downsampling_ratios=list(STRIDES),
        n_codebooks=3,
        codebook_size=64,
        codebook_dim=4,
        sampling_rate=44_100,
    )
    torch.manual_seed(5)
    model = transformers.DacModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("alpha"):
                weight.uniform_(0.3, 3.0)
            elif weight.ndim > 1:
                weight.normal_(std=(1 / weight[0].numel()) ** 0.5)
            else:
                weight.normal_(std=0.1)
    return model


@pytest.fixture
def codec(peer: Any) -> Dac:
    """Ours with the weights of the peer."""
    codec = Dac(strides=STRIDES, **SIZES).eval()
    codec.load_state_dict(peer.state_dict())
    return codec


@pytest.fixture
def wave() -> torch.Tensor:
    return 0.3 * torch.randn(2, 64 * 40, generator=torch.Generator().manual_seed(9))


def test_the_feature_after_every_residual_unit_is_that_of_transformers(
    peer: Any, codec: Dac, wave: torch.Tensor
) -> None:
    theirs: list[torch.Tensor] = []
    for block in peer.encoder.block:
        for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
            unit.register_forward_hook(lambda _module, _inputs, output: theirs.append(output))
    hidden, ours = wave[:, None], []
    with torch.no_grad():
        peer.encoder(wave[:, None])
        for stage, is_feature in codec.encoder.stages(range(len(STRIDES))):
            hidden = stage(hidden)
            if is_feature:
                ours.append(hidden)
    assert len(ours) == len(theirs) == 9
    for own, other in zip(ours, theirs, strict=True):
        assert other.std() > 0.1
        torch.testing.assert_close(own, other, atol=1e-5, rtol=0)


def test_codes_latents_and_waveform_are_those_of_transformers(
    peer: Any, codec: Dac, wave: torch.Tensor
) -> None:
    with torch.no_grad():
        encoded = peer.encode(wave[:, None])
        decoded = peer.decode(encoded.quantized_representation).audio_values
        assert torch.equal(codec.encode(wave), encoded.audio_codes)
        assert len(encoded.audio_codes.unique()) > 30
        estimate = codec(wave)
        torch.testing.assert_close(estimate, decoded, atol=1e-5, rtol=0)
        from_codes = codec.decode(encoded.audio_codes, wave.shape[-1])
        theirs = peer.decode(audio_codes=encoded.audio_codes).audio_values
        torch.testing.assert_close(from_codes, theirs, atol=1e-5, rtol=0)
        assert decoded.std() > 0.05


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_codebooks_are_those_of_transformers_with_its_losses(
    peer: Any, codec: Dac, wave: torch.Tensor, count: int
) -> None:
    with torch.no_grad():
        encoded = peer.encode(wave[:, None], n_quantizers=count)
        decoded = peer.decode(encoded.quantized_representation).audio_values
        estimate, commitment, codebook = codec(wave, torch.full((2,), count))
    torch.testing.assert_close(estimate, decoded, atol=1e-5, rtol=0)
    torch.testing.assert_close(0.25 * commitment + codebook, encoded.loss.mean(), atol=1e-5, rtol=1e-5)


def test_each_row_of_a_batch_uses_its_own_number_of_codebooks(codec: Dac, wave: torch.Tensor) -> None:
    with torch.no_grad():
        both = codec(wave, torch.tensor([1, 3]))[0]
        alone = [codec(wave, torch.full((2,), count))[0] for count in (1, 3)]
    torch.testing.assert_close(both, torch.stack([alone[0][0], alone[1][1]]), atol=1e-6, rtol=0)


def test_the_gradient_goes_straight_through_the_quantiser(codec: Dac, wave: torch.Tensor) -> None:
    """That of the sum of the quantised latents is what the projections of all codebooks make of ones."""
    quantizer = codec.quantizer.quantizers[0]
    latents = codec.encoder(wave[:, None]).detach().requires_grad_()
    quantizer(latents)[0].sum().backward()
    by_code = quantizer.out_proj.weight[:, :, 0].sum(0)
    expected = quantizer.in_proj.weight[:, :, 0].t() @ by_code
    torch.testing.assert_close(latents.grad, expected[None, :, None].expand_as(latents), atol=1e-5, rtol=1e-5)


def test_the_slopes_of_the_snake_are_those_of_its_formula() -> None:
    snake = Snake(3).double()
    nn.init.uniform_(snake.alpha, 0.2, 2.0)
    hidden = torch.randn(2, 3, 11, dtype=torch.float64, requires_grad=True)

    def of(hidden: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(snake, {"alpha": alpha}, (hidden,))

    assert torch.autograd.gradcheck(of, (hidden, snake.alpha))
    torch.testing.assert_close(
        snake(hidden), hidden + (snake.alpha * hidden).sin().square() / snake.alpha, atol=1e-8, rtol=0
    )


@pytest.mark.parametrize("num_samples", [1, 63, 64, 1000])
def test_any_length_comes_back_as_long(num_samples: int) -> None:
    codec = Dac(strides=STRIDES, **SIZES).eval()
    assert codec(torch.zeros(2, num_samples)).shape == (2, num_samples)
    assert codec.encode(torch.zeros(2, num_samples)).shape == (2, 3, -(-num_samples // 64))


def test_nothing_beyond_the_context_is_heard(codec: Dac) -> None:
    """By what of the input the middle of the output depends on: that much and no more."""
    reach = codec.context_samples
    length = 64 * (2 * reach // 64 + 9)
    middle = length // 128 * 64
    latents: list[torch.Tensor] = []
    codec.quantizer.register_forward_pre_hook(lambda _module, inputs: latents.append(inputs[0]))
    # Quantising is put aside, for its codes change by steps.
    torch.manual_seed(1)
    wave = (0.3 * torch.randn(1, length)).requires_grad_()
    output = codec.decoder(codec.encoder(wave[:, None]))[:, 0]
    output[0, middle : middle + 64].sum().backward()
    heard = wave.grad[0].abs().nonzero().squeeze(1)
    first, last = int(heard[0]), int(heard[-1])
    assert middle - reach <= first and last < middle + 64 + reach
    assert first < middle - reach // 2


def test_a_block_that_is_not_there_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"\[3\] are asked for; needed some of \[0, 1, 2\]"):
        Dac(strides=STRIDES, **SIZES).encoder.stages([3])


def test_odd_strides_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="needed even strides"):
        Dac(strides=(2, 3))
