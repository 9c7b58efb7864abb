"""Configurations of Automated-GuitarAmpModelling: what each key becomes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hparams.agam import KNOWN, Recordings
from hparams.errors import UserError
from hparams.fields import flat_values
from hparams.load import converted, difference, dump, load, loads, preset_name

ONE_PAIR = Recordings(rate_hz=44_100, num_knobs=0, train_frames=(18 * 44_100,))
# What every run of theirs has: no warm-up, and torch's ReduceLROnPlateau with factor 0.5 and patience 5.
ALWAYS = {"warmup_steps": 1, "lr_plateau_patience": 6}


def config(folder: Path, content: Any, name: str = "RNN3.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def changes(path: Path, recordings: Recordings | None = None, *overrides: str) -> dict[str, Any]:
    """What the configuration changes in pedal_lstm."""
    found = difference(load("pedal_lstm"), load(path, overrides, recordings))
    return {key: new for key, _, new in found}


def test_the_configuration_of_the_field_and_the_preset_are_the_same_model_and_loss(tmp_path):
    content = {
        "hidden_size": 96,
        "unit_type": "LSTM",
        "loss_fcns": {"ESR": 0.75, "DC": 0.10, "HFHinge": 0.15},
        "pre_filt": "None",
        "device": "ds1",
        "file_name": "ds1",
        "learn_rate": 5e-4,
        "gradient_clip": 3.0,
        "weight_decay": 1e-4,
        "hf_hinge_fmin": 10000,
        "hf_hinge_strength": 0.5,
        "segment_length": 22050,
        "batch_size": 50,
        "cuda": 1,
    }
    assert changes(config(tmp_path, content)) == {"max_lr": 5e-4, **ALWAYS}


# The files Configs/RNN3.json and Configs/ht11.json of Alec-Wright's repository, and one of a fork for fine-tuning.
RNN3 = (
    '{"hidden_size": 32, "unit_type": "LSTM", "loss_fcns": {"ESR": 0.75, "DC": 0.25}, "pre_filt": "None", '
    '"device": "ht1", "file_name": "ht1"}'
)
HT11 = {
    "device": "ht1", "data_location": "Data", "config_location": "Configs", "file_name": "ht1", "seg_len": 44100,
    "learn_rate": 0.0005, "epochs": 500, "batch_size": 25, "validation_f": 5, "loss_fcns": {"ESRPre": 0.5, "DC": 0.5},
    "up_fr": 1024, "init_len": 200, "in_size": 1, "num_blocks": 1, "hidden_size": 32, "unit_type": "LSTM",
}  # fmt: skip
FINETUNE = {
    "hidden_size": 64, "unit_type": "GRU", "loss_fcns": {"ESR": 0.60, "DC": 0.10, "Spectral": 0.30}, "skip_con": 1,
    "pre_filt": "A-Weighting", "learn_rate": 5e-6, "hf_hinge_fmin": 8000, "hf_hinge_strength": 1.0, "seed": 39,
    "num_layers": 2, "gradient_clip": None, "validation_p": 25, "iter_num": None, "model": "SimpleRNN",
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (RNN3, {"task.hidden_size": 32, "task.dc_weight": 0.25, "task.hf_hinge_weight": 0.0}),
        (
            HT11,
            {
                "training_seconds": 1.0,
                "batch_size_per_gpu": 25,
                "max_lr": 5e-4,
                # 18 segments of a second are one batch, of (44100 - 200) / 1024 updates, rounded up.
                "max_steps": 500 * 43,
                "eval_every": 5 * 43,
                "task.hidden_size": 32,
                "task.warmup_samples": 200,
                "task.update_samples": 1024,
                "task.esr_weight": 0.0,
                "task.preemphasis_esr_weight": 0.5,
                "task.dc_weight": 0.5,
                "task.hf_hinge_weight": 0.0,
            },
        ),
        (
            FINETUNE,
            {
                "min_lr": 5e-6,
                "max_lr": 5e-6,
                "gradient_clipping": 0.0,
                "early_stop_patience": 26,
                "seed": 39,
                "task.model": "gru",
                "task.hidden_size": 64,
                "task.num_layers": 2,
                "task.has_skip": True,
                "task.esr_weight": 0.6,
                "task.preemphasis_filter": "a_weighting",
                "task.hf_hinge_weight": 0.3,
                "task.hf_hinge_fmin": 8000.0,
                "task.hf_hinge_strength": 1.0,
            },
        ),
    ],
)
def test_configurations_of_their_repositories_are_read(tmp_path, content, expected):
    assert changes(config(tmp_path, content), ONE_PAIR) == {**expected, **ALWAYS}


def test_values_of_set_win(tmp_path):
    found = changes(
        config(tmp_path, HT11), ONE_PAIR, "max_steps=77", "task.hidden_size=8", "lr_plateau_patience=0"
    )
    assert (found["max_steps"], found["task.hidden_size"]) == (77, 8)
    assert "lr_plateau_patience" not in found


def test_an_epoch_is_as_long_as_the_recordings(tmp_path):
    path = config(
        tmp_path, {"epochs": 3, "validation_f": 2, "init_len": 200, "up_fr": 1000, "batch_size": 20}
    )
    # At 48 kHz, half a second is 24,000 samples: 24 updates a batch; 100 + 30 whole segments are 7 batches of 20.
    recordings = Recordings(48_000, 0, (100 * 24_000 + 23_999, 30 * 24_000))
    found = changes(path, recordings)
    assert (found["max_steps"], found["eval_every"]) == (3 * 24 * 7, 2 * 24 * 7)
    assert not {"max_steps", "eval_every"} & changes(path).keys()
    assert "epochs 3 " in converted(path).text and "pair_dir is not there yet" in converted(path).text


def test_a_segment_keeps_its_samples_at_any_rate(tmp_path):
    path = config(tmp_path, {"segment_length": 22050})
    for rate_hz in (44_100, 48_000, 96_000):
        hp = load(path, [f"wav_rate={rate_hz}"], Recordings(rate_hz, 0, (rate_hz * 60,)))
        assert round(hp.training_seconds * rate_hz) == 22050


def test_it_says_what_became_of_every_key(tmp_path):
    content = {**FINETUNE, **HT11, "loss_fcns": {"ESR": 0.7, "Spectral": 0.3}, "cuda": 0}
    path = config(tmp_path, content)
    text = converted(path, ONE_PAIR).text
    for key in content:
        assert f"\n  {key} " in text, key
    assert "learn_rate 0.0005          -> max_lr = 0.0005\n" in text
    assert (
        "loss_fcns Spectral 0.3     -> task.hf_hinge_weight = 0.3  (Spectral is deprecated: HFHinge" in text
    )
    assert "cuda 0                     ignored: the machine decides\n" in text
    assert "init_len 200" not in text.split("What it does not say")[1]
    assert "up_fr 1000" in converted(config(tmp_path, RNN3)).text.split("What it does not say")[1]
    assert converted("pedal_lstm") is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"hiden_size": 32}, ["the key hiden_size, which is not known; did you mean hidden_size?"]),
        ({"xyzzy": {"a": 1}}, ["the key xyzzy", "known are", "hidden_size", "validation_f"]),
        ({"loss_fcns": {"ESRpre": 1}}, ["the loss ESRpre, which is not known; did you mean ESRPre?"]),
        ({"loss_fcns": {"ESR": "0.75"}}, ["RNN3.json loss_fcns ESR: task.esr_weight is text '0.75'"]),
        ({"loss_fcns": {"HFHinge": 0.1, "Spectral": 0.1}}, ["both give task.hf_hinge_weight; remove one"]),
        ({"loss_fcns": {"ESRPre": 1}, "pre_filt": "None"}, ["ESRPre but pre_filt is None", "high_pass"]),
        ({"loss_fcns": {"ESR": 0}}, ["are all 0"]),
        ({"loss_fcns": [1]}, ["loss_fcns is [1]", '{"ESR": 0.75, "DC": 0.25}']),
        ({"pre_filt": [0.1, 1]}, ["pre_filt is [0.1, 1]; needed one of high_pass"]),
        ({"unit_type": "RNN"}, ["unit_type is RNN; needed one of LSTM, GRU"]),
        ({"model": "GatedConvNet"}, ["model is GatedConvNet; needed SimpleRNN", "pedal_wavenet"]),
        ({"output_size": 2}, ["output_size is 2; needed 1", "mono"]),
        ({"iter_num": 10}, ["iter_num is 10; needed null", "batch_size"]),
        ({"in_size": 3}, ["in_size is 3", "the 0 knobs of pair_dir make 1"]),
        ({"samplerate": 48000}, ["samplerate is 48000, but pair_dir was recorded at 44100 Hz"]),
        ({"skip": 1, "skip_con": 1}, ["both give task.has_skip"]),
        ({"skip_con": 2}, ["skip_con is 2; needed one of 0, 1"]),
        ({"segment_length": 0}, ["segment_length is 0; needed a number of samples above 0"]),
        ({"segment_length": 10**400}, ["needed a number of samples above 0"]),
        ({"segment_length": 500}, ["RNN3.json segment_length", "task.warmup_samples 1000 leaves nothing"]),
        ({"hidden_size": 0}, ["RNN3.json hidden_size: task.hidden_size is 0; needed integer > 0"]),
        ({"epochs": "10"}, ["RNN3.json epochs: max_steps is text '10'"]),
        ({"validation_p": -1}, ["RNN3.json validation_p: early_stop_patience is -1"]),
        ({"learn_rate": True}, ["RNN3.json learn_rate: max_lr is true"]),
        ({"unit_type": "RNN", "hiden_size": 1}, ["2 things are wrong", "unit_type", "hiden_size"]),
        ({"model_data": {}, "state_dict": {}}, ["is a trained model, not a configuration"]),
        ("[1]", ["must be a JSON object"]),
        ('{\n"epochs": 3, // all\n}', ["RNN3.json:2: not valid JSON"]),
        ('{"epochs": 3, "epochs": 4}', ["the key 'epochs' is given twice"]),
        ('{"learn_rate": NaN}', ["NaN is no number of JSON"]),
        ('{"device": "\\ud800"}', ["control character"]),
        ("[" * 100_000, ["cannot be read as JSON"]),
    ],
)
def test_what_it_does_not_know_is_refused(tmp_path, content, words):
    with pytest.raises(UserError) as caught:
        load(config(tmp_path, content), [], ONE_PAIR)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path):
    with pytest.raises(UserError, match=r"RNN4\.json: no such file"):
        load("RNN4.json")
    (tmp_path / "x.json").write_bytes(b'{"device": "\xe9"}')
    with pytest.raises(UserError, match=r"x\.json: cannot be read as JSON"):
        load(tmp_path / "x.json")


def test_the_run_is_called_after_the_file():
    assert preset_name("some/RNN3.json") == preset_name("RNN3.json") == "RNN3"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["LSTM", "None", "1", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["ESR", "DC", "a"]), inner),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=3), values, max_size=5), st.booleans())
@settings(deadline=None, max_examples=80)
def test_any_object_gives_sound_hparams_or_a_user_error(tmp_path_factory, content, has_recordings):
    path = config(tmp_path_factory.getbasetemp(), content, "any.json")
    try:
        hp = load(path, [], ONE_PAIR if has_recordings else None)
    except UserError:
        return
    assert loads(dump(hp)) == hp
    assert flat_values(hp)["task.name"] == "pedal"
