"""Slurm for tests: munged, slurmctld and two slurmd on this machine, all files and sockets of theirs in one folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
SEARCH = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
# Two partitions on the same nodes: what is submitted to `urgent` takes the nodes from jobs of `all`, which are queued
# again after GraceTime seconds. A short cred_expire shortens the two minutes that a job waits in the queue after that.
CONFIGURATION = """
ClusterName=simulated
SlurmctldHost={host}
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
CryptoType=crypto/munge
SlurmdParameters=config_overrides
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SchedulerParameters=sched_interval=5,batch_sched_delay=1
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmdSpoolDir={root}/spool-%n
StateSaveLocation={root}/state
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
NodeName=n1 NodeHostname={host} Port={port1} CPUs=1 RealMemory=1000 State=UNKNOWN
NodeName=n2 NodeHostname={host} Port={port2} CPUs=1 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=45
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Why no cluster can be simulated here; nothing where one can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]
    if absent:
        return f"no {', '.join(absent)} here: apt-get install slurm-wlm munge"
    return "" if os.getuid() == 0 else "Slurm's daemons need root"


class Cluster:
    """A running cluster of the nodes n1 and n2."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._munged: subprocess.Popen[bytes] | None = None
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the daemons and return when both nodes are idle."""
        for name in ("state", "spool-n1", "spool-n2"):
            (self.root / name).mkdir()
        (self.root / "munge.key").write_bytes(os.urandom(1024))
        (self.root / "munge.key").chmod(0o400)
        ports = [_free_port() for _ in range(3)]
        text = CONFIGURATION.format(
            root=self.root,
            host=socket.gethostname().partition(".")[0],
            port=ports[0],
            port1=ports[1],
            port2=ports[2],
        )
        (self.root / "slurm.conf").write_text(text)
        munged = ["munged", "--foreground", "--force", f"--socket={self.root}/munge.socket"]
        munged += [f"--key-file={self.root}/munge.key", f"--pid-file={self.root}/munged.pid"]
        munged += [f"--seed-file={self.root}/munge.seed", f"--log-file={self.root}/munged.log"]
        self._start(munged)
        self._await(lambda: (self.root / "munge.socket").exists(), 20)
        self._start(["slurmctld", "-D"])
        for node in ("n1", "n2"):
            self._start(["slurmd", "-D", "-N", node])
        self._await(lambda: self.tell("sinfo", "-h", "-p", "all", "-o", "%T %D").split() == ["idle", "2"], 60)

    def stop(self) -> None:
        """End all jobs, then the daemons, last started first."""
        subprocess.run(
            ["scancel", "--full", "--signal=KILL", "-u", "root"], env=self.environment(), check=False
        )
        time.sleep(2)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def tell(self, *words: str) -> str:
        """What a command of Slurm prints; raises where it fails."""
        done = subprocess.run(words, env=self.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0 or words[0] == "sinfo", f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def field(self, job: str, name: str) -> str:
        """One field of `scontrol show job`; empty where the job is not known any more."""
        done = subprocess.run(
            ["scontrol", "show", "job", job],
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        fields = dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)
        return fields.get(name, "")

    def environment(self, **values: str) -> dict[str, str]:
        """For Slurm's commands and what they start."""
        return {**os.environ, "PATH": SEARCH, "SLURM_CONF": str(self.root / "slurm.conf"), **values}

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-1500:]}" for path in self.root.glob("*.log"))

    def _start(self, words: list[str]) -> None:
        with (self.root / f"{words[0]}.out").open("ab") as out:
            self._daemons.append(
                subprocess.Popen(
                    words, env=self.environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=out
                )
            )

    def _await(self, condition: object, seconds: float) -> None:
        assert callable(condition)
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"the cluster is not up after {seconds} s:\n{self.logs()}"
            time.sleep(0.5)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
