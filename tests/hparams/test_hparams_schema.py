"""Defaults, the DeepSpeed dict and the STFT resolutions, to the letter."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from hparams.errors import UserError
from hparams.load import load
from hparams.schema import HParams
from hparams.stft import scaled_resolutions
from hparams.tasks import DenoiseHParams


def test_the_defaults_are_those_of_the_field():
    hp = HParams()
    expected = {
        "fg_dir": Path("data/fg"),
        "bg_dir": Path("data/bg"),
        "rir_dir": Path("data/rir"),
        "load_fg_only": False,
        "praat_augment_prob": 0,
        "wav_rate": 44_100,
        "n_fft": 2048,
        "win_size": 2048,
        "hop_size": 420,
        "num_mels": 128,
        "stft_magnitude_min": 1e-4,
        "preemphasis": 0.97,
        "mix_alpha_range": (0.2, 0.8),
        "nj": 64,
        "training_seconds": 1.0,
        "batch_size_per_gpu": 16,
        "min_lr": 1e-5,
        "max_lr": 1e-4,
        "warmup_steps": 1000,
        "max_steps": 1_000_000,
        "gradient_clipping": 1.0,
    }
    assert {name: getattr(hp, name) for name in expected} == expected


def test_the_deepspeed_dict_has_exactly_the_documented_keys():
    assert HParams().deepspeed_config == {
        "train_micro_batch_size_per_gpu": 16,
        "optimizer": {"type": "Adam", "params": {"lr": 1e-5}},
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "warmup_min_lr": 1e-5,
                "warmup_max_lr": 1e-4,
                "warmup_num_steps": 1000,
                "total_num_steps": 1000000,
                "warmup_type": "linear",
            },
        },
        "gradient_clipping": 1.0,
    }


def test_further_deepspeed_keys_appear_only_when_asked_for():
    plain = HParams().deepspeed_config
    sharded = replace(HParams(), zero_stage=2, precision="bf16").deepspeed_config
    extra = {key: value for key, value in sharded.items() if key not in plain}
    assert extra == {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}


def test_deepspeed_holds_the_rate_after_the_warm_up_where_it_falls_on_plateaus():
    scheduler = replace(HParams(), lr_plateau_patience=6).deepspeed_config["scheduler"]
    names = {"warmup_min_lr": 1e-5, "warmup_max_lr": 1e-4, "warmup_num_steps": 1000, "warmup_type": "linear"}
    assert scheduler == {"type": "WarmupLR", "params": names}


def test_the_stft_resolutions_have_an_fft_no_shorter_than_the_window():
    found = [(cfg.n_fft, cfg.hop_length, cfg.win_length) for cfg in HParams().stft_cfgs]
    assert found == [(512, 100, 400), (1024, 256, 1024), (2048, 512, 2048)]


def test_scaled_resolutions_last_as_long_at_any_rate():
    assert scaled_resolutions(44_100) == HParams().stft_cfgs
    found = [(cfg.n_fft, cfg.hop_length, cfg.win_length) for cfg in scaled_resolutions(48_000)]
    assert found == [(512, 109, 436), (2048, 279, 1116), (4096, 557, 2228)]
    for rate_hz in (8000, 96_000):
        for cfg, usual in zip(scaled_resolutions(rate_hz), HParams().stft_cfgs, strict=True):
            assert cfg.win_length / rate_hz == pytest.approx(usual.win_length / 44_100, rel=0.01)
            assert cfg.n_fft >= cfg.win_length == 4 * cfg.hop_length


def test_the_stft_resolutions_are_refused_at_another_rate():
    with pytest.raises(ValueError, match=r"48000 Hz.*44100"):
        _ = replace(HParams(), wav_rate=48_000).stft_cfgs


def test_hparams_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        HParams().max_lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"win_size": 4096}, "win_size 4096 is above n_fft 2048"),
        ({"mix_alpha_range": (0.8, 0.2)}, "mix_alpha_range"),
        ({"mix_alpha_range": (0.0, 0.5)}, "mix_alpha_range"),
        ({"min_lr": 1e-3}, "min_lr 0.001 is above max_lr"),
        ({"warmup_steps": 10, "max_steps": 10}, "warmup_steps 10 is not below max_steps"),
    ],
)
def test_rules_across_fields_say_what_to_do(values, text):
    with pytest.raises(ValueError, match=text):
        replace(HParams(), **values)


def test_a_task_without_a_loss_is_refused():
    with pytest.raises(ValueError, match="nothing would be learned"):
        DenoiseHParams(l1_weight=0.0, stft_weight=0.0)


@pytest.mark.parametrize("window_samples", [420, 1000])
def test_a_window_that_is_no_whole_number_of_hops_is_refused_with_one_that_is(window_samples):
    with pytest.raises(UserError, match=r"task\.window_size .* such as 1680"):
        load("base", [f"task.window_size={window_samples}"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("[1.2,0.8]", "first value must not be above"),
        ("[0.4,1.0]", "from 0.5 to 2"),
        ("[1.0,2.5]", "from 0.5 to 2"),
    ],
)
def test_speeds_out_of_order_or_range_are_refused(value, text):
    with pytest.raises(UserError, match=text):
        load("base", [f"task.speed_range={value}"])
