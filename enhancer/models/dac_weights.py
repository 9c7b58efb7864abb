"""The encoder of a codec out of a file's weights: sizes, weight normalisation, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from enhancer.models.dac import DacEncoder

ENCODER = "encoder."
PARAMETRISED = "parametrizations.weight.original"
MOST_LISTED = 6


def encoder_of(weights: Mapping[str, Tensor]) -> DacEncoder:
    """The encoder in the weights of a whole codec, by the names of transformers' `DacModel`; sizes are read off them.

    Weight normalisation is multiplied out, in the form of either of torch's implementations. Raises ValueError that
    lists the names where they are those of another architecture.
    """
    found = _without_weight_norm(
        {name.removeprefix(ENCODER): value for name, value in weights.items() if name.startswith(ENCODER)}
    )
    strides: list[int] = []
    while f"block.{len(strides)}.conv1.weight" in found:
        strides.append(found[f"block.{len(strides)}.conv1.weight"].shape[-1] // 2)
    if "conv1.weight" not in found or "conv2.weight" not in found or not strides:
        raise ValueError(
            f"no encoder of DAC's structure: needed {ENCODER}conv1.weight, {ENCODER}block.0.conv1.weight and so on, as "
            f"transformers' DacModel names them; found {_listed(weights)}"
        )
    # Built without memory first, since what a file says may be of any size.
    with torch.device("meta"):
        encoder = DacEncoder(found["conv1.weight"].shape[0], strides, found["conv2.weight"].shape[0])
    wanted = encoder.state_dict()
    missing = [ENCODER + name for name in wanted if name not in found]
    unknown = [ENCODER + name for name in found if name not in wanted]
    others = [
        f"{ENCODER}{name} {tuple(found[name].shape)} in place of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in found and found[name].shape != value.shape
    ]
    if missing or unknown or others:
        raise ValueError(
            f"an encoder of another architecture: missing {_listed(missing)}; not known {_listed(unknown)}; of another "
            f"shape {_listed(others)}"
        )
    encoder.load_state_dict({name: value.float() for name, value in found.items()}, assign=True)
    return encoder


def _without_weight_norm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` with g v / |v| in the place of g and v."""
    plain = dict(weights)
    for g, v in (("weight_g", "weight_v"), (f"{PARAMETRISED}0", f"{PARAMETRISED}1")):
        for name in [name for name in plain if name.endswith(f".{g}") or name == g]:
            stem = name.removesuffix(g)
            if stem + v in plain:
                plain[f"{stem}weight"] = torch._weight_norm(plain.pop(stem + v), plain.pop(name), 0)
    return plain


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:MOST_LISTED]) + (
        f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else "" if names else "nothing"
    )
