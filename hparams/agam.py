"""Configurations of Automated-GuitarAmpModelling (JSON, such as its Configs/RNN3.json) as values of the pedal task.

Names and meanings are those of `dist_model_recnet.py` in Alec-Wright/Automated-GuitarAmpModelling (2019) and of its
forks, among them the one with the HFHinge loss. What a file does not say is as in the preset `pedal_lstm`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hparams.errors import UserError
from hparams.source import Located, read_json

BASE = "pedal_lstm"
SUFFIX = ".json"
USUAL_RATE_HZ = 44_100

_RENAMED = {
    "hidden_size": "task.hidden_size",
    "num_layers": "task.num_layers",
    "learn_rate": "max_lr",
    "gradient_clip": "gradient_clipping",
    "weight_decay": "task.weight_decay",
    "hf_hinge_fmin": "task.hf_hinge_fmin",
    "hf_hinge_strength": "task.hf_hinge_strength",
    "init_len": "task.warmup_samples",
    "up_fr": "task.update_samples",
    "batch_size": "batch_size_per_gpu",
    "seed": "seed",
}
_SKIPS = ("task.has_skip", {"0": False, "1": True, "false": False, "true": True})
_HIGH_PASS = dict.fromkeys(("high_pass", "[-0.85, 1]", "[-0.85, 1.0]"), "highpass")
_A_WEIGHTING = dict.fromkeys(("A-Weighting", "A-weighting"), "a_weighting")
# Our key, and its value by the text of theirs.
_CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "unit_type": ("task.model", {"LSTM": "lstm", "GRU": "gru"}),
    "skip_con": _SKIPS,
    "skip": _SKIPS,
    "pre_filt": ("task.preemphasis_filter", {**_HIGH_PASS, **_A_WEIGHTING}),
}
# What alone is possible here, and what to do with anything else.
_ONLY = {
    "model": ("SimpleRNN", "for a convolution network use --hparams pedal_wavenet instead of this file"),
    "output_size": ("1", "models here are mono"),
    "iter_num": ("null", "give batch_size, the segments in a batch"),
}
_SEGMENT, _INPUTS, _EPOCHS = (
    ("segment_length", "seg_len"),
    ("input_size", "in_size"),
    ("epochs", "validation_f"),
)
_LOSSES = {
    "ESR": "task.esr_weight",
    "ESRPre": "task.preemphasis_esr_weight",
    "DC": "task.dc_weight",
    "HFHinge": "task.hf_hinge_weight",
    "Spectral": "task.hf_hinge_weight",
}
_OTHER_LOSSES = ("task.mse_weight", "task.mae_weight", "task.stft_weight")
_DATA = "the recordings are those of pair_dir"
_IGNORED = {
    "device": "a label; --run-dir names the run",
    "file_name": _DATA,
    "data_location": _DATA,
    "config_location": "--hparams takes a path",
    "load_config": "--hparams takes a path",
    "save_location": "--run-dir is the place",
    "load_model": "the same command goes on by itself; --init-from starts from other weights",
    "cuda": "the machine decides",
    "val_chunk": "validation needs no chunks",
    "test_chunk": "validation needs no chunks",
    "num_blocks": "a SimpleRNN has one",
}
_OTHERS = ("loss_fcns", "validation_p", "samplerate")
KNOWN = (*_RENAMED, *_CHOICES, *_ONLY, *_SEGMENT, *_INPUTS, *_EPOCHS, *_OTHERS, *_IGNORED)
# Where they differ from the preset's; told when a file relies on them.
_SCRIPT_DEFAULTS = {
    "hidden_size": 16,
    "skip_con": 1,
    "loss_fcns": {"ESRPre": 0.75, "DC": 0.25},
    "learn_rate": 0.005,
    "gradient_clip": None,
    "init_len": 200,
    "up_fr": 1000,
    "epochs": 2000,
    "validation_f": 2,
    "validation_p": 25,
}


@dataclass(frozen=True)
class Recordings:
    """What is known of the corpus to train on. train_frames: the training stretch of each pair."""

    rate_hz: int
    num_knobs: int
    train_frames: tuple[int, ...]


@dataclass
class Conversion:
    """A configuration in our words. `table` has the values by dotted key; `text` says what became of each key."""

    name: str
    recordings: Recordings | None
    table: dict[str, Located] = field(default_factory=dict)
    text: str = ""
    _lines: list[str] = field(default_factory=list)
    _problems: list[str] = field(default_factory=list)

    def finish(self, missing: Sequence[str]) -> Conversion:
        """Itself with its text; `missing` are defaults of the script. Raises UserError that lists all problems."""
        if self._problems:
            count = f"{len(self._problems)} things are wrong:\n  " if len(self._problems) > 1 else ""
            raise UserError(count + "\n  ".join(self._problems))
        last = [f"  What it does not say is as in the preset {BASE}"]
        last[0] += f" (the script itself would have {', '.join(missing)})." if missing else "."
        head = f"{self.name} is read as a configuration of Automated-GuitarAmpModelling:"
        self.text = "\n".join([head, *self._lines, *last])
        return self

    def put(self, old: str, value: Any, key: str, new: Any, note: str = "") -> None:
        """`old`, which is `value` in the file, becomes `key` = `new`."""
        place = Located(new, f"{self.name} {old}")
        if key in self.table:
            self.refuse(f"{old} and {self.table[key].where} both give {key}; remove one")
        self.table[key] = place
        self._lines.append(
            f"  {f'{old} {_shown(value)}':<26} -> {key} = {_shown(new)}{note and f'  ({note})'}"
        )

    def ignore(self, old: str, value: Any, reason: str) -> None:
        """`old`, which is `value` in the file, means nothing here."""
        self._lines.append(f"  {f'{old} {_shown(value)}':<26} ignored: {reason}")

    def refuse(self, text: str) -> None:
        """Something is wrong: `text`."""
        self._problems.append(f"{self.name} {text}")


def convert(
    path: Path, name: str, base: Mapping[str, Any], recordings: Recordings | None = None
) -> Conversion:
    """The configuration at `path`, which messages call `name`.

    `base` are the values, by dotted key, of what the file does not say. Lengths in epochs need `recordings`: without,
    they are left out. Raises UserError that lists everything it does not know.
    """
    given, done = read_json(path, name), Conversion(name, recordings)
    if "state_dict" in given:
        raise UserError(
            f"{name} is a trained model, not a configuration; give the file that it was trained with"
        )
    for old, value in given.items():
        _convert_key(done, old, value, base)
    if isinstance(given.get("loss_fcns"), dict):
        _finish_losses(done, given)
    _convert_epochs(done, given, base)
    rate = given.get("learn_rate")
    if _is_size(rate) and rate < base["min_lr"]:
        done.put("learn_rate", rate, "min_lr", rate, "else above it")
    done.put("always", "there", "warmup_steps", 1, "no warm-up")
    done.put("always", "there", "lr_plateau_factor", 0.5)
    done.put("always", "there", "lr_plateau_patience", 6, "its patience of 5 lets five pass")
    return done.finish(
        [f"{key} {_shown(value)}" for key, value in _SCRIPT_DEFAULTS.items() if key not in given]
    )


def _convert_key(done: Conversion, old: str, value: Any, base: Mapping[str, Any]) -> None:
    if old == "seed" and value is None:
        done.ignore(old, value, "a run always has one")
    elif old in _RENAMED:
        note = f"recurrent ones keep {base['task.recurrent_weight_decay']:g}" if old == "weight_decay" else ""
        is_off = old == "gradient_clip" and value is None
        done.put(old, value, _RENAMED[old], 0.0 if is_off else value, note)
    elif old == "pre_filt" and value in (None, "None"):
        done.ignore(old, value, "only ESRPre has a filter")
    elif old in _CHOICES:
        key, choices = _CHOICES[old]
        if _shown(value) in choices:
            done.put(old, value, key, choices[_shown(value)])
        else:
            done.refuse(f"{old} is {_shown(value)}; needed one of {', '.join(choices)}")
    elif old in _ONLY:
        needed, remedy = _ONLY[old]
        if _shown(value) != needed:
            done.refuse(f"{old} is {_shown(value)}; needed {needed}: {remedy}")
        done.ignore(old, value, "nothing else is possible")
    elif old in _IGNORED:
        done.ignore(old, value, _IGNORED[old])
    elif old == "loss_fcns":
        _convert_losses(done, old, value)
    elif old == "validation_p":
        patience = value + 1 if type(value) is int and value > 0 else value or 0
        done.put(old, value, "early_stop_patience", patience, "in a row; it lets so many pass")
    elif old in (*_SEGMENT, *_INPUTS, "samplerate"):
        _convert_shape(done, old, value)
    elif old not in _EPOCHS:
        near = _nearest(old, KNOWN) or f"known are {', '.join(sorted(KNOWN))}"
        done.refuse(f"has the key {_shown(old)}, which is not known; {near}")


def _convert_losses(done: Conversion, old: str, value: Any) -> None:
    if not isinstance(value, dict) or not value:
        done.refuse(
            f'{old} is {_shown(value)}; needed losses with weights, such as {{"ESR": 0.75, "DC": 0.25}}'
        )
        return
    for loss, weight in value.items():
        if loss in _LOSSES:
            note = "Spectral is deprecated: HFHinge takes its place" if loss == "Spectral" else ""
            done.put(f"{old} {loss}", weight, _LOSSES[loss], weight, note)
        else:
            near = _nearest(loss, list(_LOSSES)) or f"known are {', '.join(_LOSSES)}"
            done.refuse(f"{old} has the loss {_shown(loss)}, which is not known; {near}")


def _finish_losses(done: Conversion, given: Mapping[str, Any]) -> None:
    """Losses that loss_fcns does not name have no weight."""
    others = [key for key in dict.fromkeys((*_LOSSES.values(), *_OTHER_LOSSES)) if key not in done.table]
    for key in others:
        done.table[key] = Located(0.0, f"{done.name} loss_fcns")
    if given["loss_fcns"].get("ESRPre") and given.get("pre_filt", "") in (None, "None"):
        done.refuse("loss_fcns has ESRPre but pre_filt is None; name a filter, such as high_pass, or use ESR")


def _convert_shape(done: Conversion, old: str, value: Any) -> None:
    """Keys that have to fit the recordings."""
    recordings = done.recordings
    rate_hz = recordings.rate_hz if recordings else USUAL_RATE_HZ
    if old in _SEGMENT:
        if _is_size(value):
            done.put(old, value, "training_seconds", value / rate_hz, f"samples at {rate_hz} Hz")
        else:
            done.refuse(f"{old} is {_shown(value)}; needed a number of samples above 0")
    elif old == "samplerate":
        if recordings and value != rate_hz:
            done.refuse(
                f"{old} is {_shown(value)}, but pair_dir was recorded at {rate_hz} Hz; remove the key"
            )
        done.put(old, value, "wav_rate", value)
    else:
        if recordings and value != 1 + recordings.num_knobs:
            done.refuse(
                f"{old} is {_shown(value)}, but the dry signal and the {recordings.num_knobs} knobs of pair_dir make "
                f"{1 + recordings.num_knobs}; give the corpus that it was written for, or remove the key"
            )
        done.ignore(old, value, "the knobs are those of the corpus")


def _convert_epochs(done: Conversion, given: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    """Last, for the length of an epoch in steps depends on other keys."""
    steps = _steps_per_epoch({**base, **{key: located.value for key, located in done.table.items()}}, done)
    for old, key in (("epochs", "max_steps"), ("validation_f", "eval_every")):
        if old not in given:
            continue
        if steps:
            value = given[old]
            new = value * steps if type(value) is int else value
            done.put(old, value, key, new, f"{steps} steps in an epoch")
        else:
            done.ignore(old, given[old], "an epoch is as long as the corpus, and pair_dir is not there yet")


def _steps_per_epoch(values: Mapping[str, Any], done: Conversion) -> int:
    """Updates in one pass over all whole segments; 0 without recordings, 1 where a value is wrong, as told later."""
    if done.recordings is None:
        return 0
    names = ("batch_size_per_gpu", "task.warmup_samples", "task.update_samples")
    batch, warmup, update = (values[name] if type(values[name]) is int else 0 for name in names)
    segment = round(values["training_seconds"] * done.recordings.rate_hz)
    if min(batch, update, segment - warmup) <= 0:
        return 1
    num_segments = max(1, sum(frames // segment for frames in done.recordings.train_frames))
    return -(-num_segments // batch) * -(-(segment - warmup) // update)


def _nearest(word: str, words: Sequence[str]) -> str:
    close = difflib.get_close_matches(word[:100], words, n=1)
    return f"did you mean {close[0]}?" if close else ""


def _is_size(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 2**53


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
