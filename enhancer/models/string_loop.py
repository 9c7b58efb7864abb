"""Rollouts of a string's loop as a differentiable function of what its samples are made of."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

CHUNK_SAMPLES = 512
"""Stretch of a rollout that is gone back through at once."""
BLOCK_SAMPLES = 512


@dataclass(frozen=True, eq=False)
class Loop:
    """All that a rollout of B strings needs beside its history. H hidden units, I inputs, K filter sections.

    The inputs of the network are the last three samples, seven around one period ago, with `has_quarter` three around
    a quarter of it, and with `has_state` two numbers on the decay; what is constant over a note comes in by `bias1`.
    """

    fir: Float[Tensor, "batch 7"]
    """Weights of the samples n - delay + 3 ... n - delay - 3."""
    recent: Float[Tensor, 3]
    """Weights of the samples n - 1, n - 2, n - 3."""
    cut: Float[Tensor, "batch section"]
    """What each section takes out of its band: 1 - exp(-nepers)."""
    loss: Float[Tensor, " batch"]
    """Loss of a period in nepers, at all frequencies, that the network modulates."""
    bias1: Float[Tensor, "batch hidden"]
    w1: Float[Tensor, "input hidden"]
    b2: Float[Tensor, " hidden"]
    w2: Float[Tensor, "hidden hidden"]
    """[input, output]."""
    w3: Float[Tensor, " hidden"]
    b3: Float[Tensor, 1]
    delay: Int64[Tensor, " batch"]
    quarter: Int64[Tensor, " batch"]
    sections: Float[Tensor, "section 9"]
    """State space of each section's band filter: A11 A12 A21 A22 B1 B2 C1 C2 D."""
    rates: Float[Tensor, "batch 2"]
    """Coefficients of the fast and the slow mean of the square."""
    scale: Float[Tensor, "batch 3"]
    """Of the decay state: of the accumulated decay, the logarithm of the energy it counts from, of the current one."""
    num_layers: int
    is_additive: bool
    """The network's output is added; otherwise it modulates `loss`."""
    is_odd: bool
    has_quarter: bool
    has_state: bool

    @property
    def flags(self) -> tuple[bool, bool, bool, bool]:
        """What the kernels take as one."""
        return self.is_additive, self.is_odd, self.has_quarter, self.has_state


LEARNED = ("fir", "recent", "cut", "loss", "bias1", "w1", "b2", "w2", "w3", "b3")
"""What gradients go to."""


def rollout(loop: Loop, history: Float[Tensor, "batch past"], count: int) -> Float[Tensor, "batch count"]:
    """What the loop makes of `history` on its own, `count` samples; gradients go to LEARNED and to the history.

    The filters begin with states that the history leaves in them, which are taken as given.
    """
    learned = [getattr(loop, name) for name in LEARNED]
    rest = {field.name: getattr(loop, field.name) for field in fields(loop) if field.name not in LEARNED}
    return _Rollout.apply(history, count, rest, *learned)


def generate(loop: Loop, history: Float[Tensor, "batch past"], count: int) -> Float[Tensor, "batch count"]:
    """The same without gradients, from a ring buffer, BLOCK_SAMPLES at a time."""

    arrays = _Arrays(loop)
    batch, past = history.shape
    mask = (1 << (max(past, int(loop.delay.max()) + 8) + BLOCK_SAMPLES).bit_length()) - 1
    ring = np.zeros((batch, mask + 1), arrays.dtype)
    ring[:, :past] = _array(history)
    states = arrays.warm_up(ring[:, :past])
    out = np.empty((batch, count), arrays.dtype)
    kept = arrays.stores(batch, 1)
    for start in range(0, count, BLOCK_SAMPLES):
        size = min(BLOCK_SAMPLES, count - start)
        arrays.forward(ring, mask, past + start, size, states, kept, False)
        out[:, start : start + size] = ring[:, (past + start + np.arange(size)) & mask]
    return torch.from_numpy(out).to(history)


class _Rollout(torch.autograd.Function):
    """Forward keeps the states at the start of each chunk; backward runs each chunk again and then back through it."""

    @staticmethod
    def forward(ctx: Any, history: Tensor, count: int, rest: dict[str, Any], *learned: Tensor) -> Tensor:
        values: dict[str, Any] = dict(zip(LEARNED, learned, strict=True)) | rest
        arrays = _Arrays(Loop(**values))
        batch, past = history.shape
        line = np.empty((batch, past + count), arrays.dtype)
        line[:, :past] = _array(history)
        states = arrays.warm_up(line[:, :past])
        kept = arrays.stores(batch, 1)
        starts = {}
        for first in range(past, past + count, CHUNK_SAMPLES):
            starts[first] = {name: state.copy() for name, state in states.items()}
            size = min(CHUNK_SAMPLES, past + count - first)
            arrays.forward(line, -1, first, size, states, kept, False)
        ctx.arrays, ctx.line, ctx.starts = arrays, line, starts
        ctx.like = [history, *learned]
        return torch.from_numpy(line[:, past:].copy()).to(history)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        past = ctx.like[0].shape[1]
        flow = np.zeros_like(ctx.line)
        flow[:, past:] = _array(grad)
        found = ctx.arrays.backward(ctx.line, flow, ctx.starts)
        found["history"] = flow[:, :past]
        gradients = [
            torch.from_numpy(np.ascontiguousarray(found[name])).to(like).reshape(like.shape)
            for name, like in zip(("history", *LEARNED), ctx.like, strict=True)
        ]
        return gradients[0], None, None, *gradients[1:]


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


class _Arrays:
    """A loop's tensors as the arrays that the kernels take."""

    def __init__(self, loop: Loop) -> None:
        from enhancer.models import string_kernels as kernels

        self.kernels, self.loop = kernels, loop
        floating = {
            field.name: _array(value)
            for field in fields(loop)
            if isinstance(value := getattr(loop, field.name), Tensor)
        }
        self.of = floating
        self.dtype = floating["fir"].dtype
        self.odd, self.even = kernels.tanh_constants(self.dtype)
        self.num_hidden = len(floating["w3"])

    def stores(self, batch: int, count: int) -> dict[str, np.ndarray]:
        """Room for what `backward` needs of `count` samples."""
        loop = self.loop
        widths = {"x": len(self.of["w1"]), "valve": 2, "kept": len(self.of["sections"])}
        widths |= {"h1": self.num_hidden if loop.num_layers > 0 else 1}
        widths |= {"h2": self.num_hidden if loop.num_layers > 1 else 1}
        has_layer = {"x": loop.num_layers > 0, "h1": loop.num_layers > 0, "h2": loop.num_layers > 1}
        return {
            name: np.empty((batch, count if has_layer.get(name, True) else 1, width), self.dtype)
            for name, width in widths.items()
        }

    def warm_up(self, history: np.ndarray) -> dict[str, np.ndarray]:
        """States of the filters and energies after `history`."""
        of, batch = self.of, len(history)
        states = np.zeros((batch, len(of["sections"]), 2), self.dtype)
        energy = np.zeros((batch, 2), self.dtype)
        kept = np.zeros(len(of["sections"]), self.dtype)
        self.kernels.warm_up(
            np.ascontiguousarray(history), history.shape[1], of["delay"], of["fir"], of["recent"], of["cut"],
            of["sections"], states, energy, of["rates"], of["scale"], kept,
        )  # fmt: skip
        return {"states": states, "energy": energy}

    def forward(
        self,
        line: np.ndarray,
        mask: int,
        first: int,
        count: int,
        states: dict[str, np.ndarray],
        kept: dict[str, np.ndarray],
        has_store: bool,
    ) -> None:
        """Go on with the line for `count` samples from number `first` on."""
        of = self.of
        self.kernels.forward(
            line, mask, first, count, of["delay"], of["quarter"], of["fir"], of["recent"], of["cut"], of["sections"],
            of["loss"], of["bias1"], of["w1"], of["b2"], of["w2"], of["w3"], of["b3"][0], self.loop.num_layers,
            self.loop.flags, states["states"], states["energy"], of["rates"], of["scale"], self.odd, self.even,
            kept["x"], kept["h1"], kept["h2"], kept["valve"], kept["kept"], has_store,
        )  # fmt: skip

    def backward(
        self, line: np.ndarray, flow: np.ndarray, starts: dict[int, dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Gradients of LEARNED; `flow`, the gradient of the line, is completed. `starts`: states by sample number."""
        of, batch, end = self.of, len(line), line.shape[1]
        found = {name: np.zeros_like(of[name]) for name in LEARNED}
        size = min(CHUNK_SAMPLES, end - min(starts))
        kept, delta = self.stores(batch, size), self.stores(batch, size)
        adjoint = np.zeros((batch, len(of["sections"]), 2), self.dtype)
        d_x = np.zeros(len(of["w1"]), self.dtype)
        w2t, zeros = np.ascontiguousarray(of["w2"].T), np.zeros(self.num_hidden, self.dtype)
        for first in sorted(starts, reverse=True):
            count = min(size, end - first)
            states = {name: state.copy() for name, state in starts[first].items()}
            self.forward(line, -1, first, count, states, kept, True)
            self.kernels.backward(
                line, first, count, flow, of["delay"], of["quarter"], of["fir"], of["recent"], of["cut"],
                of["sections"], of["loss"], of["w1"], w2t, of["w3"], self.loop.num_layers, self.loop.flags,
                self.odd[9], zeros, kept["h1"], kept["h2"], kept["valve"], kept["kept"], adjoint, found["fir"],
                found["recent"], found["cut"], found["loss"], delta["valve"], delta["h1"], delta["h2"], d_x,
            )  # fmt: skip
            if self.loop.num_layers:
                self._weights(found, delta, kept, count)
        return found

    def _weights(
        self,
        found: dict[str, np.ndarray],
        delta: dict[str, np.ndarray],
        kept: dict[str, np.ndarray],
        count: int,
    ) -> None:
        """Add the gradients of the network's weights over a chunk of `count` samples."""

        def flat(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array[:, :count]).reshape(-1, array.shape[-1])

        d_m, d1 = flat(delta["valve"])[:, 0], flat(delta["h1"])
        found["w3"] += (d_m @ flat(kept["h2" if self.loop.num_layers > 1 else "h1"])).numpy()
        found["b3"] += d_m.sum().numpy()
        found["w1"] += (flat(kept["x"]).T @ d1).numpy()
        found["bias1"] += delta["h1"][:, :count].sum(1)
        if self.loop.num_layers > 1:
            d2 = flat(delta["h2"])
            found["w2"] += (flat(kept["h1"]).T @ d2).numpy()
            found["b2"] += d2.sum(0).numpy()
