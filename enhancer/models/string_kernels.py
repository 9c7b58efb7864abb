"""The loop of a string, compiled by numba: sample after sample forward, and backward through the delay line.

Each row is one string. Arrays are C-contiguous and of one floating type. Nothing is allocated per sample; matrix-vector
products run over contiguous output units, so that they become vector instructions. `enhancer.models.string_reference`
is the same in plain torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

NUM_RECENT = 3
NUM_TAPS = 7
NUM_QUARTER = 3
LIMIT = 8.0
"""No sample of a loop is further from zero; beyond it there is no gradient either."""
SWING = 2.0
"""A network multiplies the loss of a period by exp(-SWING) to exp(SWING)."""
SMALLEST = 1e-25
"""What is smaller is zero: denormal numbers cost time and are not heard."""
SMALLEST_ENERGY = 1e-20
CLAMP = 7.90531110763549805
# A rational approximation of tanh by odd and even polynomials, good to a few float32 roundings (Eigen's ptanh).
TANH_ODD = (
    4.89352455891786e-03, 6.37261928875436e-04, 1.48572235717979e-05, 5.12229709037114e-08,
    -8.60467152213735e-11, 2.00018790482477e-13, -2.76076847742355e-16,
)  # fmt: skip
TANH_EVEN = (4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06)


def compiled(**options: Any) -> Callable[[Any], Any]:
    """`numba.njit` that keeps what it compiled on disk, if there is a place where it can be written."""

    def decorate(function: Any) -> Any:
        # The check for a division by zero would keep loops from becoming vector instructions.
        options["error_model"] = "numpy"
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # numba's word for "no locator available": neither beside the file nor at home
            return njit(**options)(function)

    return decorate


FAST = {"reassoc", "contract", "arcp", "nsz"}  # not nnan: a NaN has to stay one


@compiled(fastmath=FAST)
def squash(values, odd, even, clamp):
    """tanh in place."""
    if values.itemsize == 8:
        for h in range(values.shape[0]):
            values[h] = math.tanh(values[h])
        return
    p0, p1, p2, p3, p4, p5, p6 = odd[0], odd[1], odd[2], odd[3], odd[4], odd[5], odd[6]
    q0, q1, q2, q3 = even[0], even[1], even[2], even[3]
    for h in range(values.shape[0]):
        x = min(max(values[h], -clamp), clamp)
        u = x * x
        p = p0 + u * (p1 + u * (p2 + u * (p3 + u * (p4 + u * (p5 + u * p6)))))
        values[h] = x * p / (q0 + u * (q1 + u * (q2 + u * q3)))


@compiled(fastmath=FAST)
def affine(out, bias, weight, x):
    """out [O] = bias [O] + x [I] @ weight [I, O], four inputs at a time."""
    size, count = out.shape[0], x.shape[0]
    for h in range(size):
        out[h] = bias[h]
    whole = count - count % 4
    for i in range(0, whole, 4):
        x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
        for h in range(size):
            out[h] += (
                weight[i, h] * x0 + weight[i + 1, h] * x1 + weight[i + 2, h] * x2 + weight[i + 3, h] * x3
            )
    for i in range(whole, count):
        x0 = x[i]
        for h in range(size):
            out[h] += weight[i, h] * x0


@compiled(fastmath=FAST)
def dot(one, other):
    """Inner product of two vectors."""
    total = one[0] * other[0]
    for h in range(1, one.shape[0]):
        total += one[h] * other[h]
    return total


@compiled(fastmath=FAST)
def delayed(line, mask, n, delay, fir, recent):
    """What comes back from the delay line at sample n: taps around one period, and the last samples."""
    total = fir[0] * line[(n - delay + 3) & mask]
    for j in range(1, NUM_TAPS):
        total += fir[j] * line[(n - delay + 3 - j) & mask]
    for j in range(NUM_RECENT):
        total += recent[j] * line[(n - 1 - j) & mask]
    return total


@compiled(fastmath=FAST)
def cut_bands(x, cut, sections, states, kept):
    """x through all sections, x - cut * band(x) each; their outputs go into kept [K]."""
    for k in range(cut.shape[0]):
        s = sections[k]
        s1, s2 = states[k, 0], states[k, 1]
        band = s[6] * s1 + s[7] * s2 + s[8] * x
        states[k, 0] = s[0] * s1 + s[1] * s2 + s[4] * x
        states[k, 1] = s[2] * s1 + s[3] * s2 + s[5] * x
        kept[k] = band
        x -= cut[k] * band
    return x


@compiled(fastmath=FAST)
def follow(energy, sample, rates):
    """Two running means of the square: fast and slow."""
    square = sample * sample
    energy[0] += rates[0] * (square - energy[0])
    energy[1] += rates[1] * (square - energy[1])


@compiled(fastmath=FAST)
def listen(x, line, mask, n, delay, quarter, sign, has_quarter, has_state, energy, scale):
    """The inputs of the network at sample n: last samples, taps around a period, around a quarter, decay state."""
    for j in range(NUM_RECENT):
        x[j] = sign * line[(n - 1 - j) & mask]
    for j in range(NUM_TAPS):
        x[NUM_RECENT + j] = sign * line[(n - delay + 3 - j) & mask]
    place = NUM_RECENT + NUM_TAPS
    if has_quarter:
        for j in range(NUM_QUARTER):
            x[place + j] = sign * line[(n - quarter + 1 - j) & mask]
        place += NUM_QUARTER
    if has_state:
        small = SMALLEST_ENERGY
        fast = math.log(energy[0] + small)
        x[place] = scale[0] * (fast - scale[1])
        x[place + 1] = min(max(scale[2] * (math.log(energy[1] + small) - fast) - 1.0, -4.0), 4.0)


@compiled()
def warm_up(line, length, delay, fir, recent, cut, sections, states, energy, rates, scale, kept):
    """Fill the states of each row's filters and energies from its history, line [B, length].

    The slow energy is too slow for that: it begins where a decay as fast as the average would have it.
    """
    for row in range(line.shape[0]):
        total = 0.0
        for n in range(length):
            total += line[row, n] * line[row, n]
        energy[row, :] = total / length
        for n in range(delay[row] + 4, length):
            x = delayed(line[row], -1, n, delay[row], fir[row], recent)
            cut_bands(x, cut[row], sections, states[row], kept)
            follow(energy[row], line[row, n - 1], rates[row])
        energy[row, 1] = energy[row, 0] * math.exp(1 / scale[row, 2])


@compiled(fastmath=FAST)
def forward(
    line, mask, first, count, delay, quarter, fir, recent, cut, sections, loss, bias1, w1, b2, w2, w3, b3,
    num_layers, flags, states, energy, rates, scale, odd, even, x, h1, h2, valve, kept, has_store,
):  # fmt: skip
    """Run each row for `count` samples from sample number `first` on.

    line [B, R]: the delay line, sample n at n & mask. flags: is_additive, is_odd,
    has_quarter, has_state. With has_store the inputs x [B, count, I], activations h1, h2 [B, count, H], the valve's
    position and the sample before it, valve [B, count, 2], and the bands kept [B, count, K] stay for `backward`;
    without it they are as long as one sample.
    """
    is_additive, is_odd, has_quarter, has_state = flags
    clamp, swing = odd[7], odd[8]
    for row in range(line.shape[0]):
        for step in range(count):
            n = first + step
            at = step if has_store else 0
            u = delayed(line[row], mask, n, delay[row], fir[row], recent)
            v = cut_bands(u, cut[row], sections, states[row], kept[row, at])
            follow(energy[row], line[row, (n - 1) & mask], rates[row])
            sign = odd[9]
            if is_odd and v < 0:
                sign = -sign
            m = b3 - b3
            if num_layers > 0:
                listen(x[row, at], line[row], mask, n, delay[row], quarter[row], sign, has_quarter, has_state,
                       energy[row], scale[row])  # fmt: skip
                affine(h1[row, at], bias1[row], w1, x[row, at])
                squash(h1[row, at], odd, even, clamp)
                top = h1[row, at]
                if num_layers > 1:
                    affine(h2[row, at], b2, w2, top)
                    squash(h2[row, at], odd, even, clamp)
                    top = h2[row, at]
                m = b3 + dot(w3, top)
            if is_additive:
                y = v + sign * m
                valve[row, at, 0] = m
            else:
                opening = math.tanh(m / swing)
                y = v * math.exp(-loss[row] * math.exp(swing * opening))
                valve[row, at, 0] = opening
            valve[row, at, 1] = v
            y = min(max(y, -LIMIT), LIMIT)
            if abs(y) < SMALLEST:
                y = 0.0
            line[row, n & mask] = y


@compiled(fastmath=FAST)
def backward(
    line, first, count, grad, delay, quarter, fir, recent, cut, sections, loss, w1, w2t, w3, num_layers, flags,
    one, zeros, h1, h2, valve, kept, adjoint, g_fir, g_recent, g_cut, g_loss, d_m, d1, d2, d_x,
):  # fmt: skip
    """Back through `count` samples from sample number `first` on, with what `forward` stored of them.

    grad [B, T], of all samples of `line`, takes what flows to earlier ones; adjoint [B, K, 2] that of the sections'
    states. Deltas of this stretch go into d_m [B, L, 2], d1, d2 [B, L, H], from which the weights' gradients are matrix
    products. w2t is [O, I]. The decay state passes no gradient.
    """
    is_additive, is_odd, has_quarter, _ = flags
    for row in range(line.shape[0]):
        for at in range(count - 1, -1, -1):
            n = first + at
            y, opening, v = line[row, n], valve[row, at, 0], valve[row, at, 1]
            g = grad[row, n]
            if y >= LIMIT or y <= -LIMIT:
                g = g * 0
            sign = one
            if is_odd and v < 0:
                sign = -one
            if is_additive:
                g_v = g
                g_m = g * sign
            else:
                factor = math.exp(SWING * opening)
                decay = loss[row] * factor
                g_v = g * math.exp(-decay)
                g_loss[row] -= g * y * factor
                g_m = -g * y * decay * (1 - opening * opening)
            if num_layers > 0:
                d_m[row, at, 0] = g_m
                delta = d1[row, at]
                if num_layers > 1:
                    above = d2[row, at]
                    for h in range(above.shape[0]):
                        above[h] = g_m * w3[h] * (one - h2[row, at, h] * h2[row, at, h])
                    affine(delta, zeros, w2t, above)
                else:
                    for h in range(delta.shape[0]):
                        delta[h] = g_m * w3[h]
                for h in range(delta.shape[0]):
                    delta[h] *= one - h1[row, at, h] * h1[row, at, h]
                for j in range(NUM_RECENT + NUM_TAPS + NUM_QUARTER * has_quarter):
                    d_x[j] = sign * dot(w1[j], delta)
                for j in range(NUM_RECENT):
                    grad[row, n - 1 - j] += d_x[j]
                for j in range(NUM_TAPS):
                    grad[row, n - delay[row] + 3 - j] += d_x[NUM_RECENT + j]
                if has_quarter:
                    for j in range(NUM_QUARTER):
                        grad[row, n - quarter[row] + 1 - j] += d_x[NUM_RECENT + NUM_TAPS + j]
            g_u = g_v
            for k in range(cut.shape[1] - 1, -1, -1):
                s = sections[k]
                g_band = -cut[row, k] * g_u
                g_cut[row, k] -= g_u * kept[row, at, k]
                a1, a2 = adjoint[row, k, 0], adjoint[row, k, 1]
                g_u += s[8] * g_band + s[4] * a1 + s[5] * a2
                adjoint[row, k, 0] = s[0] * a1 + s[2] * a2 + s[6] * g_band
                adjoint[row, k, 1] = s[1] * a1 + s[3] * a2 + s[7] * g_band
            for j in range(NUM_TAPS):
                place = n - delay[row] + 3 - j
                g_fir[row, j] += g_u * line[row, place]
                grad[row, place] += g_u * fir[row, j]
            for j in range(NUM_RECENT):
                g_recent[j] += g_u * line[row, n - 1 - j]
                grad[row, n - 1 - j] += g_u * recent[j]


def tanh_constants(dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that the kernels need in their own floating type: those of tanh, then its clamp, the swing, and 1."""
    return np.array([*TANH_ODD, CLAMP, SWING, 1.0], dtype), np.array(TANH_EVEN, dtype)
