"""Players of the exported formats in plain numpy, written from their descriptions and nothing of ours."""

from __future__ import annotations

import json

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def play_nam(data: bytes, dry: np.ndarray) -> np.ndarray:
    """[T] -> [T]: what a `.nam` file makes of a signal that comes after silence."""
    content = json.loads(data)
    weights = np.array(content["weights"], np.float64)
    play = {"LSTM": _play_nam_lstm, "WaveNet": _play_nam_wavenet}[content["architecture"]]
    return play(content["config"], weights, dry)


def _taker(weights):
    position = 0

    def take(*shape):
        nonlocal position
        size = int(np.prod(shape))
        position += size
        assert position <= len(weights)
        return weights[position - size : position].reshape(shape)

    return take, lambda: len(weights) - position


def _play_nam_lstm(config, weights, dry):
    take, left = _taker(weights)
    size = config["hidden_size"]
    layers = []
    for layer in range(config["num_layers"]):
        inputs = config["input_size"] if layer == 0 else size
        layers.append([take(4 * size, inputs + size), take(4 * size), take(size), take(size)])
    head, bias = take(size), take(1)
    assert left() == 0
    output = []
    for sample in dry:
        x = np.array([sample])
        for layer in layers:
            w, b, h, c = layer
            i, f, g, o = np.split(w @ np.concatenate([x, h]) + b, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            x = h = sigmoid(o) * np.tanh(c)
            layer[2:] = [h, c]
        output.append(head @ x + bias[0])
    return np.array(output)


def _play_nam_wavenet(config, weights, dry):
    assert config["head"] is None
    take, left = _taker(weights)
    silence = sum(
        (array["kernel_size"] - 1) * dilation for array in config["layers"] for dilation in array["dilations"]
    )
    x = condition = np.concatenate([np.zeros(silence), dry])[None]
    head = None
    for array in config["layers"]:
        assert array["activation"] == "Tanh" and array["gated"] is False and array["condition_size"] == 1
        channels, taps = array["channels"], array["kernel_size"]
        x = take(channels, array["input_size"]) @ x
        for dilation in array["dilations"]:
            kernel, bias, mix = take(channels, channels, taps), take(channels, 1), take(channels, 1)
            outer, outer_bias = take(channels, channels), take(channels, 1)
            z = bias + mix @ condition
            for tap in range(taps):
                delay = (taps - 1 - tap) * dilation
                late = np.pad(x, ((0, 0), (delay, 0)))[:, : x.shape[1]]
                z = z + kernel[:, :, tap] @ late
            z = np.tanh(z)
            head = z if head is None else head + z
            x = x + outer @ z + outer_bias
        head = take(array["head_size"], channels) @ head
        if array["head_bias"]:
            head = head + take(array["head_size"], 1)
    scale = take(1)[0]
    assert left() == 0 and np.float32(config["head_scale"]) == np.float32(scale)
    return scale * head[0, silence:]


def play_rtneural(data: bytes, inputs: np.ndarray) -> np.ndarray:
    """[T, inputs] -> [T]: Keras' LSTM and GRU (`reset_after`) and dense layers, from zero states."""
    content = json.loads(data)
    assert content["in_shape"] == [None, None, inputs.shape[1]]
    for layer in content["layers"]:
        weights = [np.array(value, np.float64) for value in layer["weights"]]
        units = layer["shape"][-1]
        if layer["type"] == "dense":
            assert layer["activation"] == ""
            inputs = inputs @ weights[0] + weights[1]
        elif layer["type"] == "lstm":
            inputs = _keras_lstm(inputs, *weights, units)
        else:
            assert layer["type"] == "gru"
            inputs = _keras_gru(inputs, *weights, units)
        assert inputs.shape[1] == units
    return inputs[:, 0]


def _keras_lstm(inputs, kernel, recurrent, bias, units):
    h, c, output = np.zeros(units), np.zeros(units), []
    for x in inputs:
        i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        output.append(h)
    return np.array(output)


def _keras_gru(inputs, kernel, recurrent, biases, units):
    h, output = np.zeros(units), []
    for x in inputs:
        x_z, x_r, x_h = np.split(x @ kernel + biases[0], 3)
        h_z, h_r, h_h = np.split(h @ recurrent + biases[1], 3)
        z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
        h = z * h + (1 - z) * np.tanh(x_h + r * h_h)
        output.append(h)
    return np.array(output)
