"""Every format reloaded and compared with the model; what a format cannot say; what goes along."""

from __future__ import annotations

import json
import sys
import warnings
from datetime import datetime
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from enhancer.export import nam, onnx, proteus, rtneural
from enhancer.export.description import Description
from enhancer.export.fixed_knobs import at_knobs
from enhancer.export.level import REST_SAMPLES, loudness_and_gain, loudness_recording
from enhancer.models.denoiser import MaskUNet
from hparams.errors import UserError
from tests.export.devices import RATE, context, output, recurrent, riff, wavenet
from tests.export.readers import play_nam, play_rtneural

PLAIN = Description(RATE)
FULL = Description(
    RATE,
    esr=0.0125,
    name="Distortion",
    modeled_by="me",
    gear_make="Maker",
    gear_model="One",
    gear_type="pedal",
    tone_type="fuzz",
    input_level_dbu=12.5,
    loudness=-17.25,
    gain=0.5,
    settings=(("drive", 0.5),),
    date=datetime(2026, 11, 20, 13, 5, 59),
)


def after_silence(device) -> tuple:
    with torch.no_grad():
        return device(torch.zeros(1, REST_SAMPLES))[1]


NAM_MODELS = {
    "lstm": lambda: recurrent(),
    "lstm of two layers": lambda: recurrent(num_layers=2),
    "wavenet": lambda: wavenet(),
    "small wavenet": lambda: wavenet(channels=(6, 4, 2), kernel_size=2, dilations=(1, 3), head_scale=0.03),
}


@pytest.fixture(params=NAM_MODELS, name="nam_model")
def _nam_model(request):
    """A model, and its state after silence, in which a plugin begins."""
    device = NAM_MODELS[request.param]()
    return device, after_silence(device) if "lstm" in request.param else None


def test_a_nam_file_read_by_numpy_is_the_model(nam_model):
    device, state = nam_model
    dry = riff(6000)
    expected = output(device, dry, state=state)
    found = play_nam(nam.export(device, PLAIN).data, dry[0].double().numpy())
    assert np.abs(found - expected).max() <= 1e-6


def test_a_nam_file_read_by_neural_amp_modeler_is_the_model(nam_model):
    # Its imports warn about their own dependencies.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = pytest.importorskip("nam.models", reason="needs wavewright[export-test]")
        device, state = nam_model
        dry = riff(6000)
        theirs = models.init_from_nam(json.loads(nam.export(device, FULL).data)).eval()
        with torch.no_grad():
            found = theirs(dry)[0].numpy()
    assert np.abs(found - output(device, dry, state=state)).max() <= 1e-6
    assert theirs.sample_rate == RATE


def test_loudness_and_gain_are_those_of_neural_amp_modeler(nam_model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = pytest.importorskip("nam.models", reason="needs wavewright[export-test]")
        device, _ = nam_model
        theirs = models.init_from_nam(json.loads(nam.export(device, PLAIN).data)).eval()
        recording = soundfile.read(loudness_recording(), dtype="float32")[0]
        with torch.no_grad():
            expected = (theirs._metadata_loudness(), theirs._metadata_gain())
    found = loudness_and_gain(device, torch.from_numpy(recording))
    assert found is not None
    assert found[0] == pytest.approx(expected[0], abs=1e-3) and found[1] == pytest.approx(
        expected[1], abs=1e-4
    )


class Bend(nn.Module):
    """tanh at a gain, then one of 1/2, without memory."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, dry, knobs, state):
        return 0.5 * torch.tanh(self.gain * dry) if self.gain else 0.5 * dry, state


def test_a_wire_has_no_gain_and_a_clipper_much_of_it():
    square = torch.ones(4800) * torch.tensor([1.0, -1.0]).repeat(2400)
    wire = loudness_and_gain(Bend(0.0), square)
    assert wire == (pytest.approx(-6.0206, abs=1e-3), pytest.approx(0, abs=1e-6))
    # As loud at every gain but 0: ten elevenths of the rectangle.
    clipper = loudness_and_gain(Bend(1e6), square)
    assert clipper == (pytest.approx(-6.0206, abs=1e-3), pytest.approx((10 - 5.5) / 5.5, abs=1e-6))
    by_hand = [0.5 * np.tanh(3 * gain) for gain in np.linspace(0, 1, 11)]
    bent = loudness_and_gain(Bend(3.0), square)
    assert bent is not None
    assert bent[1] == pytest.approx(sum(by_hand) / (5.5 * by_hand[-1]) - 1, abs=1e-6)
    assert loudness_and_gain(Bend(3.0), 0 * square) is None


def test_a_nam_file_of_one_layer_has_the_number_of_weights_of_the_format():
    size = 32
    content = json.loads(nam.export(recurrent(hidden_size=size), PLAIN).data)
    assert len(content["weights"]) == 4 * size * (1 + size) + 4 * size + 2 * size + size + 1 == 4449
    assert len(json.loads(nam.export(wavenet(), PLAIN).data)["weights"]) == 13_802


def test_metadata_goes_along():
    content = json.loads(nam.export(recurrent(), FULL).data)
    assert content["sample_rate"] == RATE and content["version"] == "0.5.4"
    assert content["metadata"] == {
        "name": "Distortion",
        "modeled_by": "me",
        "gear_make": "Maker",
        "gear_model": "One",
        "gear_type": "pedal",
        "tone_type": "fuzz",
        "input_level_dbu": 12.5,
        "loudness": -17.25,
        "gain": 0.5,
        "date": {"year": 2026, "month": 11, "day": 20, "hour": 13, "minute": 5, "second": 59},
        "training": {"validation_esr": 0.0125, "settings": {"knobs": {"drive": 0.5}}},
    }
    for module in (rtneural, proteus):
        metadata = json.loads(module.export(recurrent(), FULL).data)["metadata"]
        assert (metadata["samplerate"], metadata["esr"], metadata["gear_type"]) == (RATE, 0.0125, "pedal")
        assert (metadata["loudness"], metadata["gain"]) == (-17.25, 0.5)
        assert metadata["settings"] == {"drive": 0.5} and metadata["date"] == "2026-11-20T13:05:59"


@pytest.mark.parametrize("field", ["gear_type", "tone_type"])
def test_words_that_players_do_not_know_are_refused(field):
    with pytest.raises(UserError, match=f"{field} is 'toaster'; needed one of"):
        Description(RATE, **{field: "toaster"})


@pytest.mark.parametrize(
    "options", [{}, {"unit": "gru"}, {"num_layers": 2}, {"unit": "gru", "num_layers": 2}], ids=str
)
@pytest.mark.parametrize("num_knobs", [0, 2])
def test_an_rtneural_file_read_by_numpy_is_the_model(options, num_knobs):
    device = recurrent(num_knobs=num_knobs, **options)
    dry, knobs = riff(3000), torch.rand(1, num_knobs, generator=torch.Generator().manual_seed(4))
    inputs = np.concatenate([dry[0, :, None], knobs.expand(3000, -1)], axis=1).astype(np.float64)
    found = play_rtneural(rtneural.export(device, PLAIN).data, inputs)
    # In float64 on both sides: a GRU that remembers 2000 samples sums up their rounding in float32.
    expected = output(device.double(), dry.double(), knobs.double())
    assert np.abs(found - expected).max() <= 1e-6


@pytest.mark.parametrize(("num_knobs", "has_skip"), [(0, True), (0, False), (2, True)])
def test_a_proteus_file_loaded_into_torch_is_the_model(num_knobs, has_skip):
    """By the names and rules of the trainer that the format comes from."""
    device = recurrent(num_knobs=num_knobs, has_skip=has_skip)
    dry, knobs = riff(3000), torch.rand(1, num_knobs, generator=torch.Generator().manual_seed(4))
    content = json.loads(proteus.export(device, PLAIN).data)
    model = content["model_data"]
    assert (model["model"], model["unit_type"], model["num_layers"]) == ("SimpleRNN", "LSTM", 1)
    assert model["output_size"] == 1 and model["bias_fl"] is True and model["skip"] == int(has_skip)
    theirs = nn.ModuleDict(
        {"rec": nn.LSTM(model["input_size"], model["hidden_size"]), "lin": nn.Linear(model["hidden_size"], 1)}
    )
    theirs.load_state_dict({name: torch.tensor(value) for name, value in content["state_dict"].items()})
    inputs = torch.cat([dry[0, :, None], knobs.expand(3000, -1)], dim=1).unsqueeze(1)
    with torch.no_grad():
        found = theirs["lin"](theirs["rec"](inputs)[0])[:, 0, 0] + model["skip"] * dry[0]
    assert np.abs(found.numpy() - output(device, dry, knobs)).max() <= 1e-6


def test_what_the_proteus_plugins_do_with_a_file_is_said():
    notes = proteus.export(recurrent(hidden_size=96), PLAIN).notes
    assert (
        len(notes) == 2 and "Proteus plays 40 units" in notes[0] and "always add the dry signal" in notes[1]
    )
    assert proteus.export(recurrent(hidden_size=40, has_skip=True), PLAIN).notes == ()


ONNX_MODELS = {
    "lstm": lambda: recurrent(),
    "lstm, knobs, layers, skip": lambda: recurrent(num_knobs=2, num_layers=2, has_skip=True),
    "gru, knobs, layers": lambda: recurrent(unit="gru", num_knobs=1, num_layers=2),
    "wavenet": lambda: wavenet(),
    "wavenet, knobs": lambda: wavenet(num_knobs=2),
    "context": lambda: context(),
    "context, knobs": lambda: context(num_knobs=2),
}


@pytest.mark.parametrize("name", ONNX_MODELS)
def test_an_onnx_file_run_by_onnxruntime_block_by_block_is_the_model(name):
    """Two rows at a time, in blocks of changing length, the states handed on."""
    pytest.importorskip("onnx", reason="needs wavewright[onnx]")
    runtime = pytest.importorskip("onnxruntime", reason="needs wavewright[export-test]")
    device = ONNX_MODELS[name]()
    data = onnx.export(device, FULL).data
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    dry, knobs = (
        riff(4000, rows=2),
        torch.rand(2, device.num_knobs, generator=torch.Generator().manual_seed(4)),
    )
    names = [value.name for value in session.get_inputs()]
    states = {
        value.name: np.zeros([2 if size == "batch" else size for size in value.shape], np.float32)
        for value in session.get_inputs()
        if value.name not in ("dry", "knobs")
    }
    outputs = [value.name for value in session.get_outputs()]
    lead = device.receptive_field if "wavenet" in name else 0
    wave = torch.cat([torch.zeros(2, lead), dry], dim=1).numpy()
    blocks, start = [], 0
    for size in [1, 64, 500, 1000, 10**6]:
        block = {"dry": wave[:, start : start + size], **states}
        if "knobs" in names:
            block["knobs"] = knobs.numpy()
        values = dict(zip(outputs, session.run(None, block), strict=True))
        blocks.append(values["wet"])
        states = {state: values[f"{state}_after"] for state in states}
        start += size
    found = np.concatenate(blocks, axis=1)[:, lead:]
    with torch.no_grad():
        expected, _ = device(dry, knobs)
    assert np.abs(found - expected.numpy()).max() <= 1e-5
    facts = session.get_modelmeta().custom_metadata_map
    assert (facts["samplerate"], facts["esr"], facts["gear_make"]) == (str(RATE), "0.0125", "Maker")


def test_without_the_package_onnx_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install 'wavewright\[onnx\]'"):
        onnx.export(recurrent(), PLAIN)


@pytest.mark.parametrize("unit", ["lstm", "gru", "wavenet", "context"])
def test_a_model_at_fixed_knobs_is_the_model_with_these_knobs(unit):
    options = {"num_knobs": 2}
    models = {"wavenet": wavenet, "context": context}
    device = models.get(unit, partial(recurrent, unit=unit, num_layers=2))(**options)
    dry, values = riff(3000), [0.3, 0.9]
    fixed = at_knobs(device, values)
    assert fixed.num_knobs == 0
    expected = output(device, dry, torch.tensor([values]))
    assert np.abs(output(fixed, dry) - expected).max() <= 1e-6
    assert np.abs(expected - output(device, dry, torch.tensor([[0.9, 0.3]]))).max() > 1e-3


@pytest.mark.parametrize(
    ("module", "device", "text"),
    [
        (nam, recurrent(has_skip=True), "a .nam file cannot say that"),
        (nam, recurrent(unit="gru"), "a .nam file has no GRU"),
        (
            nam,
            recurrent(num_knobs=1),
            r"a .nam file has none; fix them for this file, such as with --knob drive=0.5",
        ),
        (nam, wavenet(num_knobs=1), "a .nam file has none"),
        (rtneural, recurrent(has_skip=True), "a chain of layers, cannot say that"),
        (rtneural, wavenet(), "a WaveNet has ways around its layers"),
        (proteus, recurrent(num_layers=2), "plays one layer and this model has 2"),
        (proteus, recurrent(unit="gru"), "plays LSTMs only and this is a GRU"),
        (proteus, wavenet(), "plays LSTMs only and this is a WaveNet"),
        (proteus, recurrent(num_knobs=3), "up to 2 knobs and this model 3"),
        *(
            (module, context(), r"a window of 40 samples for each sample.*export onnx")
            for module in (nam, rtneural, proteus)
        ),
        *((module, MaskUNet(2), "only models of devices") for module in (nam, rtneural, proteus)),
    ],
)
def test_what_a_format_cannot_say_is_refused(module, device, text):
    description = Description(RATE, knobs=("drive",) * getattr(device, "num_knobs", 0))
    with pytest.raises(UserError, match=text):
        module.export(device, description)


@pytest.mark.parametrize("module", [nam, rtneural, proteus])
def test_a_broken_model_is_refused(module):
    device = recurrent()
    with torch.no_grad():
        device.head.bias.fill_(float("nan"))
    with pytest.raises(UserError, match=r"NaN or infinite weights \(head.bias\)"):
        module.export(device, PLAIN)
