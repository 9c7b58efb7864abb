"""Train a preset elsewhere: python launch/submit.py slurm --hparams base --nodes 2 --gpus-per-node 8

The place is one of local (this machine), hosts (machines that ssh reaches), slurm and k8s. Hyper-parameters are those
of train.py and are checked before anything is sent; --dry-run prints what would be sent, and sends nothing. The same
command again goes on with the run. local and hosts stay until the run has ended, and end with its exit code.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launch import submit_hosts, submit_k8s, submit_slurm
from launch.common import reports_user_errors
from launch.node import DEFAULT_GRACE_SECONDS, DEFAULT_PORT
from launch.slurm_job import read_parameters
from launch.submit_plan import Training, plan
from launch.train import load_for_corpus

REPOSITORY = Path(__file__).resolve().parents[1]


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`; the exit code."""
    options = parser().parse_args(argv)
    hosts: list[str] = []
    if options.place == "hosts":
        hosts, slots = submit_hosts.read_hostfile(options.hostfile)
        options.nodes, options.ranks_per_node = len(hosts), slots
    training = _plan(options)
    if options.place == "local":
        return submit_hosts.run_here(training, is_dry=options.dry_run)
    if options.place == "hosts":
        return submit_hosts.run_on_hosts(
            training,
            hosts,
            remote_shell=options.ssh,
            python=options.python,
            folder=options.folder,
            master_addr=options.master_addr,
            is_dry=options.dry_run,
        )
    if options.place == "slurm":
        parameters = read_parameters([text for texts in options.slurm for text in texts])
        return submit_slurm.submit(training, _slurm_resources(options), parameters, is_dry=options.dry_run)
    pods = submit_k8s.Pods(
        image=options.image,
        namespace=options.namespace,
        claims=submit_k8s.read_claims(options.claim),
        cpu=options.cpu,
        memory=options.memory,
        shared_memory=options.shared_memory,
        max_restarts=options.max_restarts,
    )
    return submit_k8s.submit(training, pods, options.kind, is_dry=options.dry_run)


def parser() -> argparse.ArgumentParser:
    """The command line: a place, and what goes with it."""
    made = argparse.ArgumentParser(
        prog="submit.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    places = made.add_subparsers(dest="place", required=True, metavar="PLACE")
    local = places.add_parser("local", parents=[_common()], help="this machine")
    hosts = places.add_parser("hosts", parents=[_common()], help="machines that ssh reaches")
    slurm = places.add_parser("slurm", parents=[_common()], help="a Slurm cluster, from a machine of it")
    k8s = places.add_parser("k8s", parents=[_common()], help="a Kubernetes cluster, through kubectl")
    local.add_argument("--ranks-per-node", type=int, metavar="N", help="processes, one a GPU; default 1")
    local.set_defaults(nodes=1, gpus_per_node=0)
    _add_hosts(hosts)
    for place in (slurm, k8s):
        place.add_argument("--nodes", type=int, default=1, metavar="N", help="machines; default 1")
        place.add_argument("--gpus-per-node", type=int, default=0, metavar="N", help="default 0: no GPUs")
        place.add_argument(
            "--ranks-per-node", type=int, metavar="N", help="processes on each; default one a GPU, or 1"
        )
    _add_slurm(slurm)
    _add_k8s(k8s)
    return made


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--hparams", default="base", metavar="NAME_OR_PATH", help="as of train.py")
    common.add_argument("--run-dir", type=Path, metavar="DIR", help="run folder; default runs/<preset>")
    common.add_argument(
        "--set", action="append", nargs="+", default=[], metavar="KEY=VALUE", help="as of train.py"
    )
    common.add_argument("--init-from", metavar="RUN_OR_SAFETENSORS", help="as of train.py")
    common.add_argument("--allow-data-change", action="store_true", help="as of train.py")
    common.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")
    common.add_argument("--name", help="name of the job; default that of the preset")
    common.add_argument("--port", type=int, default=DEFAULT_PORT, metavar="PORT", help="where ranks meet")
    common.add_argument("--interface", metavar="NAME", help="network interface for gloo and NCCL")
    common.add_argument(
        "--grace-seconds",
        type=int,
        default=int(DEFAULT_GRACE_SECONDS),
        metavar="SECONDS",
        help="time to save and end in, on a preemption; default 120",
    )
    return common


def _add_hosts(hosts: argparse.ArgumentParser) -> None:
    hosts.add_argument(
        "--hostfile", type=Path, required=True, metavar="FILE", help="a line `NAME slots=N` a machine"
    )
    hosts.add_argument(
        "--ssh", default="ssh -o BatchMode=yes", metavar="COMMAND", help="called with HOST COMMAND"
    )
    hosts.add_argument("--python", default=sys.executable, metavar="PATH", help="default: as here")
    hosts.add_argument(
        "--folder",
        type=Path,
        default=REPOSITORY,
        metavar="DIR",
        help="this repository on each machine, to which the paths of data and run are relative; default: as here",
    )
    hosts.add_argument("--master-addr", metavar="HOST", help="address of the first; default its name")
    hosts.set_defaults(gpus_per_node=0)


def _add_slurm(slurm: argparse.ArgumentParser) -> None:
    slurm.add_argument(
        "--time", metavar="TIME", default="24:00:00", help="limit of a start; default 24:00:00"
    )
    slurm.add_argument("--partition", metavar="NAME")
    slurm.add_argument("--account", metavar="NAME")
    slurm.add_argument("--qos", metavar="NAME")
    slurm.add_argument("--cpus-per-node", type=int, metavar="N")
    slurm.add_argument("--memory-gb", type=float, metavar="GB", help="of each node")
    slurm.add_argument(
        "--slurm",
        action="append",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="any parameter of submitit, such as slurm_constraint=a100",
    )


def _add_k8s(k8s: argparse.ArgumentParser) -> None:
    k8s.add_argument("--kind", choices=submit_k8s.KINDS, default="jobset", help="default jobset")
    k8s.add_argument("--image", required=True, metavar="IMAGE", help="built from the Dockerfile")
    k8s.add_argument("--namespace", default="default", metavar="NAME")
    k8s.add_argument(
        "--claim",
        action="append",
        default=[],
        metavar="NAME=/PATH",
        help="mount this persistent volume claim there; data and runs are in /app of the image",
    )
    k8s.add_argument("--cpu", metavar="AMOUNT", help="requested for each pod, such as 16")
    k8s.add_argument("--memory", metavar="AMOUNT", help="requested for each pod, such as 64Gi")
    k8s.add_argument("--shared-memory", default="8Gi", metavar="AMOUNT", help="size of /dev/shm; default 8Gi")
    k8s.add_argument(
        "--max-restarts",
        type=int,
        default=100,
        metavar="N",
        help="of all pods, by preemption too; default 100",
    )


def _plan(options: argparse.Namespace) -> Training:
    flags = [] if options.init_from is None else ["--init-from", options.init_from]
    if options.allow_data_change:
        flags.append("--allow-data-change")
    return plan(
        load_for_corpus,
        preset=options.hparams,
        settings=[text for texts in options.set for text in texts],
        flags=flags,
        run_dir=options.run_dir,
        name=options.name,
        num_nodes=options.nodes,
        ranks_per_node=options.ranks_per_node,
        gpus_per_node=options.gpus_per_node,
        port=options.port,
        interface=options.interface,
        grace_seconds=options.grace_seconds,
    )


def _slurm_resources(options: argparse.Namespace) -> dict[str, object]:
    given = {
        "timeout_min": submit_slurm.minutes(options.time),
        "slurm_partition": options.partition,
        "slurm_account": options.account,
        "slurm_qos": options.qos,
        "cpus_per_task": options.cpus_per_node,
        "mem_gb": options.memory_gb,
    }
    return {name: value for name, value in given.items() if value is not None}


if __name__ == "__main__":
    sys.exit(main())
