"""What launch/submit.py would send, and what it refuses; see tests/clusters for runs that are really sent."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hparams.load import load
from launch.node import parser as node_parser
from launch.submit import main
from launch.submit_hosts import read_hostfile
from launch.submit_slurm import minutes
from launch.train import parse as parse_train

COMMON = ["--hparams", "base_small", "--run-dir", "runs/mine", "--set", "max_lr=2e-3", "task.width=2"]
K8S = ["k8s", "--image", "registry/wavewright:1", "--claim", "work=/app/runs", "--namespace", "audio"]


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a dry run of the command prints."""
    assert main([*words, "--dry-run"]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def split(words: list[str]) -> tuple[Any, Any]:
    """Options of node.py and of train.py in the command of a machine."""
    end = words.index("--")
    (start,) = [place for place, word in enumerate(words) if word.endswith("launch/node.py")]
    return node_parser().parse_args(words[start + 1 : end]), parse_train(words[end + 1 :])


def test_a_dry_run_here_prints_the_command_of_the_one_machine(capsys: pytest.CaptureFixture[str]) -> None:
    node, train = split(shlex.split(printed(capsys, "local", *COMMON, "--ranks-per-node", "2")))
    assert (node.num_nodes, node.ranks_per_node, node.node_rank) == (1, 2, 0)
    assert (train.hparams, train.run_dir, train.set) == ("base_small", Path("runs/mine"), [COMMON[-2:]])


def test_each_machine_of_a_hostfile_is_told_its_number_and_the_first_ones_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hosts").write_text("# ours\nme@big1 slots=4\nbig2 slots=4 # the other\n\n")
    place = ["hosts", "--hostfile", str(tmp_path / "hosts"), "--folder", "/srv/wave wright"]
    lines = printed(capsys, *place, *COMMON, "--interface", "eth1").splitlines()
    for number, (host, line) in enumerate(zip(("me@big1", "big2"), lines, strict=True)):
        words = shlex.split(line)
        assert words[:4] == ["ssh", "-o", "BatchMode=yes", host]
        assert words[4].startswith("cd '/srv/wave wright' && exec ")
        node, train = split(shlex.split(words[4].partition("exec ")[2]))
        assert (node.num_nodes, node.ranks_per_node, node.node_rank, node.master_addr) == (
            2,
            4,
            number,
            "big1",
        )
        assert node.interface == "eth1" and node.stop_at_eof
        assert train.run_dir == Path("runs/mine")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no machine"),
        ("a slots=2\nb slots=4\n", "slots differ (2 on a, 4 on b)"),
        ("a slots=2\na slots=2\n", "hosts:2: a is there twice"),
        ("a slots=two\n", "hosts:1: 'a slots=two'; needed NAME slots=N"),
        ("-oProxyCommand=x slots=2\n", "needed NAME slots=N"),
        ("a slots=0\n", "hosts:1: 'a slots=0'; needed NAME slots=N"),
    ],
)
def test_a_hostfile_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(Exception, match="hosts") as refused:
        read_hostfile(tmp_path / "hosts")
    assert words in str(refused.value)


def test_the_batch_script_asks_slurm_for_what_was_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # No Slurm is needed for telling what it would be given.
    resources = ["--nodes", "2", "--gpus-per-node", "8", "--partition", "gpu", "--time", "1-12:00:00"]
    script = printed(
        capsys, "slurm", *COMMON, *resources, "--grace-seconds", "300", "--slurm", "slurm_constraint=a100"
    )
    flags = {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert {
        "nodes=2",
        "ntasks-per-node=1",
        "gpus-per-node=8",
        "partition=gpu",
        "time=2160",
        "requeue",
        "signal=USR2@300",
        "constraint=a100",
        "job-name=base-small",
    } <= flags
    node, train = split(shlex.split(script.splitlines()[-1].replace("$SLURM_NODEID", "1"))[1:])
    assert (node.num_nodes, node.ranks_per_node, node.grace_seconds) == (2, 8, 300)
    assert train.run_dir == Path("runs/mine").absolute()
    assert not Path("runs/mine").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90:30", 91), ("24:00:00", 1440), ("2-12", 3600), ("1-00:30", 1470), ("1-00:00:01", 1441)],
)
def test_times_are_read_as_slurm_reads_them(text: str, expected: int) -> None:
    assert minutes(text) == expected


def documents(capsys: pytest.CaptureFixture[str], kind: str, *words: str) -> dict[str, dict[str, Any]]:
    resources = ["--nodes", "2", "--gpus-per-node", "8", "--cpu", "16", "--memory", "64Gi"]
    text = printed(capsys, *K8S, *COMMON, *resources, "--kind", kind, *words)
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


MODELS = {
    "ConfigMap": "IoK8sApiCoreV1ConfigMap",
    "JobSet": "JobsetV1alpha2JobSet",
    "TrainingRuntime": "TrainerV1alpha1TrainingRuntime",
    "TrainJob": "TrainerV1alpha1TrainJob",
}


@pytest.mark.parametrize(
    ("kind", "kinds"),
    [("jobset", ["ConfigMap", "JobSet"]), ("trainjob", ["ConfigMap", "TrainingRuntime", "TrainJob"])],
)
def test_the_objects_are_those_of_the_published_typed_models(
    capsys: pytest.CaptureFixture[str], kind: str, kinds: list[str]
) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install kubeflow_trainer_api")
    found = documents(capsys, kind)
    assert list(found) == kinds
    for name, document in found.items():
        # A key that the model does not have would be lost on the way, and a wrong type is an error.
        assert getattr(models, MODELS[name]).from_dict(document).to_dict() == document


def test_the_typed_models_notice_a_misspelt_key(capsys: pytest.CaptureFixture[str]) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install kubeflow_trainer_api")
    document = documents(capsys, "jobset")["JobSet"]
    document["spec"]["failurePolicy"]["maxRestart"] = 3
    assert models.JobsetV1alpha2JobSet.from_dict(document).to_dict() != document


@pytest.mark.parametrize("kind", ["jobset", "trainjob"])
def test_pods_know_their_number_have_time_to_save_and_are_not_tried_again_in_vain(
    capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    found = documents(capsys, kind, "--grace-seconds", "90")
    spec = (
        found["JobSet"]["spec"] if kind == "jobset" else found["TrainingRuntime"]["spec"]["template"]["spec"]
    )
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 2, 2)
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2, 70]
    assert spec["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] > 90
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert "command" not in container  # The image's entry point stays.
    node, train = split([word.replace("$(NODE_RANK)", "1") for word in container["args"]])
    # <JobSet>-<replicated job>-<its number>-<pod>.<subdomain, which is the JobSet's name>
    assert node.master_addr == f"base-small-{replicated['name']}-0-0.base-small"
    assert (node.num_nodes, node.ranks_per_node, node.grace_seconds) == (2, 8, 90)
    assert train.run_dir == Path("runs/mine")
    assert all(document["metadata"]["namespace"] == "audio" for document in found.values())


def test_the_config_map_holds_the_values_that_were_checked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "hparams.yaml"
    path.write_text(documents(capsys, "jobset")["ConfigMap"]["data"]["hparams.yaml"])
    assert load(path) == load("base_small", ["max_lr=2e-3", "task.width=2"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["local", "--set", "max_stepz=3"], "did you mean max_steps"),
        (["local", "--set", "warmup_steps=0"], "warmup_steps"),
        (["local", "--ranks-per-node", "0"], "--ranks-per-node is 0; needed 1 or more"),
        (["slurm", "--nodes", "0"], "--nodes is 0; needed 1 or more"),
        (["slurm", "--gpus-per-node", "8", "--ranks-per-node", "2"], "leave --ranks-per-node out"),
        (["slurm", "--time", "soon"], "--time soon: needed minutes"),
        (["slurm", "--slurm", "slurm_konstraint=a"], "submitit refuses"),
        (["hosts", "--hostfile", "/nowhere/hosts"], "cannot be read"),
        (["k8s", "--image", "i"], "would be lost with its pod"),
        ([*K8S, "--name", "My_Run"], "--name My_Run: needed at most 40"),
        ([*K8S, "--claim", "runs"], "--claim runs: needed NAME=/PATH"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(
    capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    assert main([*words, "--dry-run"]) == 2
    assert text in capsys.readouterr().err


def test_an_option_of_another_place_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["local", "--partition", "gpu"])
    assert refused.value.code == 2
    assert "--partition" in capsys.readouterr().err


def test_without_kubectl_the_command_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(K8S) == 2
    assert "kubectl is not installed here" in capsys.readouterr().err


def test_the_command_of_a_machine_starts_without_torch() -> None:
    program = "import sys; sys.path.insert(0, '.'); import launch.node; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0
