"""Tiny floats are zero while training, and only then."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from enhancer.engine.denormals import flushed

TINY = torch.tensor([1e-30, 1e-20, 1.0])


def test_results_below_the_smallest_normal_float_are_zero_inside_only():
    expected = [1e-40, 1e-30, 1e-10]
    assert (TINY * 1e-10).tolist() == pytest.approx(expected, rel=1e-4, abs=0)
    with flushed():
        assert (TINY * 1e-10).tolist() == pytest.approx([0, *expected[1:]], rel=1e-4, abs=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.finfo(np.float32), np.finfo(np.float64)
    assert (TINY * 1e-10)[0] > 0


def test_an_lstm_learns_the_same_but_for_what_is_nothing():
    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(0)
        network = torch.nn.LSTM(1, 8)
        _, (hidden, _) = network(torch.randn(400, 2, 1))
        hidden.sum().backward()
        return [parameter.grad for parameter in network.parameters()]

    plain = gradients()
    with flushed():
        for ours, theirs in zip(gradients(), plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-30)
