"""The DeepSpeed configuration that HParams asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hparams.schema import HParams


def deepspeed_config(hp: HParams) -> dict[str, Any]:
    """DeepSpeed configuration dict of `hp`. Keys beyond the first four appear only when a field asks.

    `gradient_clipping` is always emitted: DeepSpeed clips at 1.0 where it is absent. Warm-up is linear
    because DeepSpeed's own default is logarithmic. With decay on a plateau, which DeepSpeed does not have, the
    schedule is WarmupLR, whose upper end the backend lowers. DeepSpeed's Adam decays weights as AdamW does. Of any
    other optimizer nothing is said here: the backend hands it over ready-made, since DeepSpeed's own Muon takes a 1-d
    convolution for a batch of matrices. What the machine asks for the backend adds, not HParams.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": hp.batch_size_per_gpu,
        "optimizer": {"type": "Adam", "params": {"lr": hp.min_lr}},
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "warmup_min_lr": hp.min_lr,
                "warmup_max_lr": hp.max_lr,
                "warmup_num_steps": hp.warmup_steps,
                "total_num_steps": hp.max_steps,
                "warmup_type": "linear",
            },
        },
        "gradient_clipping": hp.gradient_clipping,
    }
    if hp.optimizer != "adamw":
        del config["optimizer"]
    if hp.lr_plateau_patience:
        config["scheduler"]["type"] = "WarmupLR"
        del config["scheduler"]["params"]["total_num_steps"]
    if hp.gradient_accumulation_steps > 1:
        config["gradient_accumulation_steps"] = hp.gradient_accumulation_steps
    if hp.zero_stage:
        config["zero_optimization"] = {"stage": hp.zero_stage}
    if hp.precision == "bf16":
        config["bf16"] = {"enabled": True}
    return config
