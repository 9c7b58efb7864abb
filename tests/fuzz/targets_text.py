"""What people write: hyper-parameters as YAML and `--set`, sweeps, lists of pairs, another program's configurations."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from data_shards.errors import CorpusError
from data_shards.pedal import read_pairs
from hparams import agam
from hparams.errors import UserError
from hparams.fields import rows
from hparams.load import PRESETS_DIR, dump, load, load_resolved, loads
from hparams.schema import HParams
from hparams.sweep import SWEEPS_DIR, read_sweep
from tests.fuzz.mutations import scalar, spoiled_bytes, spoiled_json, spoiled_text
from tests.fuzz.target import Read, Target

_AGAM = {
    "hidden_size": 20, "unit_type": "LSTM", "loss_fcns": {"ESRPre": 0.75, "DC": 0.25}, "pre_filt": "high_pass",
    "learn_rate": 0.004, "segment_length": 22050, "init_len": 200, "up_fr": 1000, "batch_size": 40, "epochs": 100,
    "validation_f": 2, "validation_p": 25, "skip_con": 1, "input_size": 1, "samplerate": 44100, "seed": None,
}  # fmt: skip


def _check(hp: HParams) -> None:
    """Valid values come back from their text, and make a configuration that DeepSpeed can be given."""
    assert loads(dump(hp)) == hp
    json.dumps(hp.deepspeed_config)
    assert hp.crop_samples > 0 and hp.example_seconds > 0


def _presets(folder: Path) -> Read:
    texts = [path.read_text("utf-8") for path in sorted(PRESETS_DIR.glob("*.yaml"))]
    texts += [dump(load(path.stem)) for path in sorted(PRESETS_DIR.glob("*.yaml"))]
    path = folder / "hparams.yaml"

    def read(rng: Random) -> None:
        path.write_bytes(spoiled_text(rng, rng.choice(texts)))
        _check(rng.choice((load, load_resolved))(path))

    return read


def _overrides(folder: Path) -> Read:
    keys = sorted({*rows("denoise"), *rows("pedal"), *rows("context"), "task", "extends", ""})

    def read(rng: Random) -> None:
        texts = []
        for _ in range(rng.randint(1, 3)):
            text = f"{rng.choice(keys)}{rng.choice(('=', '=', '=', ':', '', '=='))}{scalar(rng)}"
            data = (
                spoiled_bytes(rng, text.encode("utf-8", "surrogatepass"), 2)
                if rng.random() < 0.3
                else text.encode("utf-8", "surrogatepass")
            )
            texts.append(data.decode("utf-8", "surrogateescape"))  # as sys.argv has it
        _check(load(rng.choice(("base", "pedal_lstm", "pedal_context")), texts))

    return read


def _sweeps(folder: Path) -> Read:
    texts = [path.read_text("utf-8") for path in sorted(SWEEPS_DIR.glob("*.yaml"))]
    path = folder / "sweep.yaml"

    def read(rng: Random) -> None:
        path.write_bytes(spoiled_text(rng, rng.choice(texts)))
        sweep = read_sweep(path)
        for member in sweep.members[:3]:
            assert "/" not in member.folder_name and member.folder_name not in ("", ".", "..")
            _check(load(sweep.preset, member.overrides))

    return read


def _configurations(folder: Path) -> Read:
    path = folder / "RNN3.json"
    recordings = agam.Recordings(44_100, 0, (441_000, 88_200))

    def read(rng: Random) -> None:
        path.write_bytes(spoiled_json(rng, _AGAM))
        _check(load(path, (), rng.choice((None, recordings))))

    return read


def _pairs(folder: Path) -> Read:
    path = folder / "pairs.csv"
    text = "dry,wet,drive,tone\ndry-0.wav,wet-0.wav,0.1,0.5\ndry-0.wav,wet-1.wav,0.9,0.5\n"

    def read(rng: Random) -> None:
        path.write_bytes(spoiled_text(rng, text) if rng.random() < 0.5 else spoiled_bytes(rng, text.encode()))
        read_pairs(path)

    return read


TARGETS = {
    "hparams": Target(_presets, (UserError,)),
    "set": Target(_overrides, (UserError,)),
    "sweep": Target(_sweeps, (UserError,)),
    "agam": Target(_configurations, (UserError,)),
    "pairs": Target(_pairs, (CorpusError,)),
}
