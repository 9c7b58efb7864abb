"""What is submitted: a validated training command, and how many machines and processes it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hparams.errors import UserError
from hparams.load import Override, preset_name
from hparams.schema import HParams

NODE = Path(__file__).resolve().with_name("node.py")
Load = Callable[[str, Sequence[Override]], HParams]


@dataclass(frozen=True)
class Training:
    """A run to submit. Build it by `plan`, which has looked at the hyper-parameters."""

    hp: HParams
    preset: str
    settings: tuple[str, ...]
    """Texts of --set."""
    flags: tuple[str, ...]
    """Other words for train.py, such as --init-from."""
    run_dir: Path
    name: str
    num_nodes: int
    ranks_per_node: int
    gpus_per_node: int
    port: int
    interface: str | None
    grace_seconds: int
    """How long the ranks may take to save and end after they were told to."""

    @property
    def train_words(self) -> list[str]:
        """The command line of train.py, after its name."""
        values = ["--set", *self.settings] if self.settings else []
        return ["--hparams", self.preset, "--run-dir", str(self.run_dir), *values, *self.flags]

    def node_words(
        self,
        python: str,
        node: str | Path,
        node_rank: int | str,
        master_addr: str,
        train_words: Sequence[str] | None = None,
    ) -> list[str]:
        """The command of one machine, `node` being the path of node.py there; `train_words` replace the own ones."""
        interface = ["--interface", self.interface] if self.interface else []
        return [
            *(python, str(node)),
            *("--num-nodes", str(self.num_nodes), "--ranks-per-node", str(self.ranks_per_node)),
            *("--node-rank", str(node_rank), "--master-addr", master_addr),
            *("--master-port", str(self.port), *interface),
            *("--grace-seconds", str(self.grace_seconds), "--"),
            *(self.train_words if train_words is None else train_words),
        ]


def plan(
    load: Load,
    *,
    preset: str,
    settings: Sequence[str],
    flags: Sequence[str],
    run_dir: Path | None,
    name: str | None,
    num_nodes: int,
    ranks_per_node: int | None,
    gpus_per_node: int,
    port: int,
    interface: str | None,
    grace_seconds: int,
) -> Training:
    """A checked `Training`. Raises UserError for hyper-parameters or resources that cannot be."""
    numbers = {
        "--nodes": num_nodes,
        "--ranks-per-node": 1 if ranks_per_node is None else ranks_per_node,
        "--grace-seconds": grace_seconds,
    }
    for option, number in numbers.items():
        if number < 1:
            raise UserError(f"{option} is {number}; needed 1 or more")
    if gpus_per_node < 0:
        raise UserError(f"--gpus-per-node is {gpus_per_node}; needed 0 (no GPUs) or more")
    if gpus_per_node and ranks_per_node not in (None, gpus_per_node):
        raise UserError(
            f"--ranks-per-node is {ranks_per_node} but --gpus-per-node is {gpus_per_node}; a rank has one GPU, so "
            "leave --ranks-per-node out"
        )
    if not 1024 <= port <= 65535:
        raise UserError(f"--port is {port}; needed 1024 to 65535")
    hp = load(preset, settings)
    word = preset_name(preset)
    return Training(
        hp=hp,
        preset=preset,
        settings=tuple(settings),
        flags=tuple(flags),
        run_dir=run_dir or Path("runs") / word,
        name=name or word.replace("_", "-"),
        num_nodes=num_nodes,
        ranks_per_node=ranks_per_node or gpus_per_node or 1,
        gpus_per_node=gpus_per_node,
        port=port,
        interface=interface,
        grace_seconds=grace_seconds,
    )
