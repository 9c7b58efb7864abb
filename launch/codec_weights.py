"""The weights of the networks that a run's losses listen with: a codec's encoder, and CDPAM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hparams.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from hparams.schema import HParams

HOW_TO_GET_ONE = (
    "Train one with `python launch/train.py --hparams codec_small`, which ends in runs/codec_small, or give a "
    ".safetensors file with the weights of transformers' DacModel, such as model.safetensors of descript/dac_44khz"
)


def listening_constants(hp: HParams) -> dict[str, Tensor]:
    """The weights that the losses of a run of `hp` listen with, as constants of its task; none for most tasks."""
    from hparams.pitch import PitchHParams

    if not isinstance(hp.task, PitchHParams):
        return {}
    constants: dict[str, Tensor] = {}
    if hp.task.codec_weights is not None:
        constants |= codec_constants(hp.task.codec_weights, hp.wav_rate)
    if hp.task.perceptual_weights is not None:
        constants |= cdpam_constants(hp.task.perceptual_weights)
    return constants


def cdpam_constants(path: Path) -> dict[str, Tensor]:
    """CDPAM's weights in the .safetensors file `path`, as task constants. Raises UserError for any other."""
    from enhancer.engine.weights import read_weights_file
    from enhancer.models.cdpam import cdpam_of
    from enhancer.tasks.pitch import CDPAM

    if not path.is_file():
        raise UserError(
            f"task.perceptual_weights is {path}, which is not there; give CDPAM's checkpoint as a .safetensors file "
            "(docs/codec.md says how to convert it), or set task.perceptual_weight to 0"
        )
    weights = read_weights_file(path)
    try:
        cdpam_of(weights)
    except ValueError as error:
        raise UserError(f"task.perceptual_weights {path} holds {error}") from error
    return {CDPAM + name: value for name, value in weights.items()}


def codec_constants(path: Path, rate_hz: int) -> dict[str, Tensor]:
    """The encoder's weights in `path`, a run folder, a checkpoint folder or a .safetensors file, as task constants.

    Raises UserError that says how to get or to train a codec where there is none, and lists the names of the weights
    where they are of another architecture.
    """
    from enhancer.engine.resume import read_weights
    from enhancer.models.dac_weights import encoder_of
    from enhancer.tasks.pitch import CODEC

    if not path.exists():
        raise UserError(f"task.codec_weights is {path}, which is not there. {HOW_TO_GET_ONE}")
    _require_same_rate(path, rate_hz)
    try:
        encoder = encoder_of(read_weights(path, "codec"))
    except UserError as error:
        raise UserError(f"task.codec_weights: {error}. {HOW_TO_GET_ONE}") from error
    except ValueError as error:
        raise UserError(f"task.codec_weights {path} holds {error}. {HOW_TO_GET_ONE}") from error
    return {f"{CODEC}encoder.{name}": value for name, value in encoder.state_dict().items()}


def _require_same_rate(path: Path, rate_hz: int) -> None:
    """Raises UserError where `path` is a run of another task or rate; a file does not say what it was trained at."""
    from hparams.load import load_resolved

    file = path / "hparams.yaml"
    if not file.is_file():
        return
    hp = load_resolved(file)
    if hp.task.name != "codec":
        raise UserError(f"task.codec_weights {path} is a {hp.task.name} run, not a codec's. {HOW_TO_GET_ONE}")
    if hp.wav_rate != rate_hz:
        raise UserError(
            f"task.codec_weights {path} was trained at {hp.wav_rate} Hz, but wav_rate is {rate_hz}; train a codec at "
            f"this rate: --hparams codec_small --set wav_rate={rate_hz}"
        )
