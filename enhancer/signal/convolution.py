"""Rooms: causal convolution of a batch with impulse responses chosen per row, in the frequency domain."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from enhancer.signal.types import Impulses, RowIndex, WaveBatch

CACHE_BYTES = 512 * 2**20
"""A bank keeps its spectra up to this size per FFT length; a larger bank makes them for each batch."""


def fast_fft_length(num_samples: int) -> int:
    """Smallest even length of at least `num_samples` whose only prime factors are 2, 3, 5 and 7.

    FFT libraries have fast kernels for those; a length with a large prime factor can cost ten times as much.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; an FFT needs at least 1 sample")
    length = num_samples + num_samples % 2
    while not _is_smooth(length):
        length += 2
    return length


def _is_smooth(length: int) -> bool:
    for prime in (2, 3, 5, 7):
        while length % prime == 0:
            length //= prime
    return length == 1


class RirBank:
    """Room impulse responses [R, L], direct path at tap 0, with their spectra cached per FFT length.

    A response shorter than L is followed by zeros. Raises ValueError where `rirs` is no such table.
    """

    def __init__(self, rirs: Impulses) -> None:
        if rirs.ndim != 2 or not rirs.numel():
            raise ValueError(f"rirs has shape {tuple(rirs.shape)}; needed [rooms, taps], both at least 1")
        self.rirs = rirs
        self._spectra: dict[tuple[int, int], Tensor] = {}

    def to(self, device: torch.device) -> RirBank:
        """This bank on `device`."""
        return self if self.rirs.device == device else RirBank(self.rirs.to(device))

    def __len__(self) -> int:
        return self.rirs.shape[0]

    def apply(self, wave: WaveBatch, index: RowIndex) -> WaveBatch:
        """Rows convolved with the responses `index` names, cut to T: no delay, the tail beyond T is lost.

        Rows of index -1 are returned bit for bit. `index` may live on another device than `wave`; on the CPU
        it costs no wait for the accelerator. Raises ValueError where an index names no response.
        """
        return self.apply_first(wave, index, (self.rirs.shape[1],))[0]

    def apply_first(self, wave: WaveBatch, index: RowIndex, taps: Sequence[int]) -> list[WaveBatch]:
        """As `apply`, once for each number in `taps`, with the responses cut to so many taps."""
        rows = (index >= 0).nonzero().squeeze(1)
        if not len(rows):
            return [wave for _ in taps]
        rooms = index[rows]
        if int(rooms.max()) >= len(self):
            raise ValueError(f"rir index {int(rooms.max())} but the bank holds {len(self)} responses")
        rooms, rows = rooms.to(self.rirs.device), rows.to(wave.device)
        length = wave.shape[-1]
        # Taps from T on cannot reach a sample that is kept.
        taps = [min(number, length, self.rirs.shape[1]) for number in taps]
        n_fft = fast_fft_length(length + max(taps) - 1)
        spectrum = torch.fft.rfft(wave.index_select(0, rows), n=n_fft)
        return [
            wave.index_copy(
                0, rows, torch.fft.irfft(spectrum * self._spectrum(rooms, number, n_fft), n=n_fft)[:, :length]
            )
            for number in taps
        ]

    def _spectrum(self, rooms: Tensor, taps: int, n_fft: int) -> Tensor:
        if len(self) * (n_fft // 2 + 1) * 8 > CACHE_BYTES:
            return torch.fft.rfft(self.rirs.index_select(0, rooms)[:, :taps], n=n_fft)
        if (taps, n_fft) not in self._spectra:
            self._spectra[taps, n_fft] = torch.fft.rfft(self.rirs[:, :taps], n=n_fft)
        return self._spectra[taps, n_fft].index_select(0, rooms)
