"""A run as Kubernetes objects: a JobSet, or a TrainJob of Kubeflow Trainer with the runtime it needs.

The hyper-parameters travel as a ConfigMap, resolved, so that what was checked here is what is trained, whatever presets
the image has. Pods are numbered by an Indexed Job; the first one's name in the JobSet's headless service is the address
they meet at. An exit code of 2 or 70 fails the whole at once; any other end but 0 starts all pods again, and the run
goes on from its last checkpoint.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from hparams.errors import UserError
from hparams.load import dump
from launch.slurm_job import NOT_AGAIN
from launch.submit_plan import Training

KINDS = ("jobset", "trainjob")
NODE = "node"
"""Name of the replicated job and of its container; Kubeflow Trainer wants it so."""
SPACE = "/etc/wavewright"
HPARAMS = "hparams.yaml"
IMAGE_NODE = "launch/node.py"
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
# A pod's name, <name>-node-0-<number>-<five letters>, is a label of 63 characters at most.
MAX_NAME = 40
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Pods:
    """What a pod is given, beside the command."""

    image: str
    namespace: str
    claims: Mapping[str, str]
    """Where each persistent volume claim is mounted, by its name."""
    cpu: str | None
    memory: str | None
    shared_memory: str
    max_restarts: int


def submit(training: Training, pods: Pods, kind: str, *, is_dry: bool) -> int:
    """Apply the objects of `training` with kubectl, or print them; kubectl's exit code."""
    text = yaml.safe_dump_all(manifests(training, pods, kind), sort_keys=False, width=120)
    if is_dry:
        print(text, end="")
        return 0
    try:
        return subprocess.run(["kubectl", "apply", "-f", "-"], input=text, text=True, check=False).returncode
    except FileNotFoundError as error:
        raise UserError(
            "kubectl is not installed here; install it, or write the objects with --dry-run and apply them elsewhere"
        ) from error


def manifests(training: Training, pods: Pods, kind: str) -> list[Manifest]:
    """The objects of `training` as `kind`, one of KINDS. Raises UserError for what Kubernetes would refuse."""
    if not _LABEL.fullmatch(training.name) or len(training.name) > MAX_NAME:
        raise UserError(
            f"--name {training.name}: needed at most {MAX_NAME} of a-z, 0-9 and -, a letter first, for it names pods"
        )
    if not training.run_dir.is_absolute() and not pods.claims:
        raise UserError(
            f"the run folder {training.run_dir} would be lost with its pod; mount a volume that all pods share, "
            "such as --claim runs=/app/runs"
        )
    settings = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(f"{training.name}-hparams", pods),
        "data": {HPARAMS: dump(training.hp)},
    }
    spec = _jobset_spec(training, pods)
    if kind == "jobset":
        job_set = {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": _metadata(training.name, pods),
            "spec": spec,
        }
        return [settings, job_set]
    runtime = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": _metadata(training.name, pods, {"trainer.kubeflow.org/framework": "deepspeed"}),
        "spec": {"mlPolicy": {"numNodes": training.num_nodes}, "template": {"spec": spec}},
    }
    train_job = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": _metadata(training.name, pods),
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "TrainingRuntime",
                "name": training.name,
            },
            "trainer": {"image": pods.image, "numNodes": training.num_nodes},
        },
    }
    return [settings, runtime, train_job]


def _metadata(name: str, pods: Pods, labels: Mapping[str, str] | None = None) -> Manifest:
    return {"name": name, "namespace": pods.namespace, **({"labels": dict(labels)} if labels else {})}


def _jobset_spec(training: Training, pods: Pods) -> Manifest:
    job = {
        "completionMode": "Indexed",
        "completions": training.num_nodes,
        "parallelism": training.num_nodes,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": NODE, "operator": "In", "values": list(NOT_AGAIN)},
                }
            ]
        },
        "template": {
            # By this label Kubeflow Trainer finds the job that trains.
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": _pod_spec(training, pods),
        },
    }
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {
            "maxRestarts": pods.max_restarts,
            "rules": [
                {
                    "name": "notAgain",
                    "action": "FailJobSet",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                }
            ],
        },
        "replicatedJobs": [
            {
                "name": NODE,
                "replicas": 1,
                "template": {
                    "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                    "spec": job,
                },
            }
        ],
    }


def _pod_spec(training: Training, pods: Pods) -> Manifest:
    first = f"{training.name}-{NODE}-0-0.{training.name}"
    words = ["--hparams", f"{SPACE}/{HPARAMS}", "--run-dir", str(training.run_dir), *training.flags]
    volumes = [
        {"name": "hparams", "configMap": {"name": f"{training.name}-hparams"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pods.shared_memory}},
    ]
    mounts: list[Manifest] = [
        {"name": "hparams", "mountPath": SPACE, "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    for number, (claim, path) in enumerate(pods.claims.items()):
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": f"claim-{number}", "mountPath": path})
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    container = {
        "name": NODE,
        "image": pods.image,
        # Arguments, not a command: the image's own entry point reaps processes that lost their parent.
        "args": training.node_words("python", IMAGE_NODE, "$(NODE_RANK)", first, words),
        "env": [{"name": "NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": index}}}],
        "ports": [{"containerPort": training.port, "protocol": "TCP"}],
        "resources": _resources(training, pods),
        "volumeMounts": mounts,
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": training.grace_seconds + 30,
        "securityContext": {"fsGroup": 1000},
        "containers": [container],
        "volumes": volumes,
    }


def _resources(training: Training, pods: Pods) -> Manifest:
    asked = {"cpu": pods.cpu, "memory": pods.memory}
    requests = {name: amount for name, amount in asked.items() if amount is not None}
    limits = {"nvidia.com/gpu": str(training.gpus_per_node)} if training.gpus_per_node else {}
    return {key: value for key, value in {"requests": requests, "limits": limits}.items() if value}


def read_claims(texts: Sequence[str]) -> dict[str, str]:
    """Mount paths by claim, from texts such as `runs=/app/runs`. Raises UserError for another form."""
    claims: dict[str, str] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not _LABEL.fullmatch(name) or not path.startswith("/"):
            raise UserError(f"--claim {text}: needed NAME=/PATH, such as runs=/app/runs")
        claims[name] = path
    return claims
