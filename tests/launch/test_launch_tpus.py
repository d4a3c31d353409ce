"""Slices by name, the GKE manifest, and the configurations and architectures of the paper's runs."""

import re
import shutil
import sys

import paths
import pytest
import yaml

from cgrpo_jax.errors import UserError
from cgrpo_jax.models import params
from cgrpo_jax.models.hf import config
from cgrpo_jax.runs import config as config_lib

ROOT = paths.ROOT

sys.path.insert(0, str(ROOT / "launch"))  # as `python launch/render_gke.py` has it
import render_gke  # noqa: E402
import tpus  # noqa: E402

# Sizes of the releases, in parameters; 28, 36, 64 and 28 layers.
RELEASES = {
    "qwen2_5_7b": 7_615_616_512,
    "qwen3_8b": 8_190_735_360,
    "qwen3_32b": 32_762_123_264,
    "llama3_2_3b": 3_212_749_824,
}


# --- slices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chips", "hosts", "per_host"),
    [
        ("v5e:1x1", 1, 1, 1),
        ("v5e:2x2", 4, 1, 4),
        ("v6e:2x4", 8, 1, 8),
        ("v6e:4x4", 16, 4, 4),
        ("v5e:16x16", 256, 64, 4),
        ("v5p:2x2x1", 4, 1, 4),
        ("v4:2x2x2", 8, 2, 4),
        ("v5p:4x4x8", 128, 32, 4),
        ("v5p:16x16x24", 6144, 1536, 4),
        ("tpu7x:2x2x4", 16, 4, 4),
    ],
)
def test_slices_have_the_hosts_that_google_says(name, chips, hosts, per_host):
    found = tpus.find(name)
    assert (found.chips, found.hosts, found.chips_per_host) == (chips, hosts, per_host)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5x:4x4", r"no TPU version 'v5x' \(did you mean v5p\?\); use VERSION:TOPOLOGY, such as v5e:4x4"),
        ("4x4", "no TPU version '4x4'; use VERSION:TOPOLOGY"),
        ("", "no TPU version ''; use VERSION:TOPOLOGY"),
        ("v5e", "v5e has no topology ''; it has 1x1, 2x2, 2x4"),
        ("v5e:3x3", "v5e has no topology '3x3'; it has 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v6e:4x2", "v6e has no topology '4x2'"),
        ("v5p:4x4", "v5p has no topology '4x4'; it has 2x2x1, .* multiples of 4, A <= B <= C, up to 6144 chips"),
        ("v5p:4x4x6", "v5p has no topology '4x4x6'"),
        ("v5p:8x4x4", "v5p has no topology '8x4x4'"),
        ("v5p:16x24x24", "up to 6144 chips"),
        ("v4:0x4x4", "v4 has no topology '0x4x4'"),
        ("v5p:4x4x4x4", "v5p has no topology"),
    ],
)
def test_a_topology_that_does_not_exist_is_one_clear_line(name, message):
    with pytest.raises(UserError, match=message) as caught:
        tpus.find(name)
    assert "\n" not in str(caught.value)


def test_cloud_tpu_is_told_the_shape_where_the_number_of_chips_does_not_say_it():
    assert tpus.find("v5e:4x4").cloud_flags() == ["--accelerator-type=v5litepod-16"]
    assert tpus.find("v5p:2x2x4").cloud_flags() == ["--type=v5p", "--topology=2x2x4"]
    with pytest.raises(UserError, match="tpu7x:2x2x1 is on GKE only; use launch/render_gke.py"):
        tpus.find("tpu7x:2x2x1").cloud_flags()


# --- GKE ----------------------------------------------------------------------------------------------------------

TRAIN = ["python", "-m", "cgrpo_jax.train", "--config=configs/quickstart.py"]
COMMAND = [*TRAIN, "--workdir=/shared/a", '--config.prompts.system=say: "${name}" $(name) $$5 # {x}\n- y']


def rendered(capsys, **changes):
    values = {
        "name": "cgrpo",
        "topology": "v6e:4x8",
        "image": "registry/image:1",
        "namespace": "team",
        "claim": "files",
        "mount": "/shared",
        "service_account": "default",
        "spot": False,
        "max_restarts": 3,
        "apply": False,
        "dry_run": False,
        "command": COMMAND,
    }
    render_gke.main(**values | changes)
    return yaml.safe_load(capsys.readouterr().out)


def test_the_job_set_asks_for_every_host_and_chip_of_the_slice(capsys):
    manifest = rendered(capsys, claim="", command=["python", "x.py"])
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["metadata"]["name"] == "cgrpo" and manifest["metadata"]["namespace"] == "team"
    assert manifest["spec"]["failurePolicy"] == {"maxRestarts": 3}
    (job,) = manifest["spec"]["replicatedJobs"]
    hosts = job["template"]["spec"]
    assert (hosts["completions"], hosts["parallelism"], hosts["backoffLimit"]) == (8, 8, 0)
    pod = hosts["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    (container,) = pod["containers"]
    assert container["resources"] == {"requests": {"google.com/tpu": 4}, "limits": {"google.com/tpu": 4}}
    assert container["image"] == "registry/image:1" and pod["volumes"] == [] == container["volumeMounts"]


def test_an_eviction_restarts_the_hosts(capsys):
    hosts = rendered(capsys)["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = hosts["template"]["spec"]["containers"]
    assert container["env"] == [{"name": "CGRPO_STOPPED_STATUS", "value": "75"}]
    # No status is exempt: the hosts that outlive another end with 2, as after a user's mistake.
    assert "podFailurePolicy" not in hosts and hosts["template"]["spec"]["restartPolicy"] == "Never"


def test_the_command_for_the_logs_asks_for_all_lines_of_all_hosts():
    (line,) = [line.strip() for line in render_gke.__doc__.splitlines() if "kubectl logs" in line]
    hosts = tpus.find(re.search(r"of which (\S+) has", render_gke.__doc__)[1]).hosts
    # Of a selector, kubectl shows ten lines each and follows five hosts unless it is told.
    assert line.split()[-4:] == ["--prefix", "--follow", "--tail=-1", f"--max-log-requests={hosts}"]


def expanded(word, variables):
    """Returns a word of a command as Kubernetes hands it on: $(NAME) is a variable, $$ is $."""

    def meant(match):
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\((\w+)\)", meant, word)


def test_the_command_arrives_as_it_was_given_with_distributed_once(capsys):
    for command in (COMMAND, [*COMMAND, "--distributed"]):
        job = rendered(capsys, command=command)["spec"]["replicatedJobs"][0]
        (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
        assert [expanded(word, {"name": "x"}) for word in container["command"]] == [*COMMAND, "--distributed"]


def test_a_bucket_needs_no_claim(capsys):
    job = rendered(capsys, claim="", command=[*TRAIN, "--workdir=gs://mine/a"])["spec"]["replicatedJobs"][0]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert "--workdir=gs://mine/a" in container["command"] and container["volumeMounts"] == []


def test_spot_nodes_and_a_claim_are_asked_for(capsys):
    job = rendered(capsys, spot=True, mount="/data", command=[*TRAIN, "--workdir=/data/a"])["spec"]["replicatedJobs"][0]
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert {"key": "cloud.google.com/gke-spot", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": "files"}}]
    assert pod["containers"][0]["volumeMounts"] == [{"name": "shared", "mountPath": "/data"}]


def test_apply_hands_the_manifest_to_kubectl_and_a_dry_run_only_says_so(capfd, tmp_path, monkeypatch):
    kubectl = tmp_path / "kubectl"
    cat = shutil.which("cat")
    kubectl.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n{cat} > {tmp_path}/manifest\nexit 5\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))  # nothing else is on it: no test may ever reach a real kubectl
    shown = rendered(capfd, apply=True, dry_run=True)
    assert not (tmp_path / "arguments").exists()
    with pytest.raises(SystemExit) as caught:
        rendered(capfd, apply=True)
    assert caught.value.code == 5  # kubectl's
    assert (tmp_path / "arguments").read_text() == "apply -f -\n"
    assert yaml.safe_load((tmp_path / "manifest").read_text()) == shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topology": "v6e:3x3"}, "v6e has no topology '3x3'"),
        ({"name": "My_Job"}, "--name=My_Job can't name a JobSet; use at most 40 of a-z"),
        ({"name": "a" * 41}, "can't name a JobSet"),
        ({"max_restarts": -1}, "--max-restarts=-1 is negative"),
        ({"mount": "shared"}, "--mount=shared is not an absolute path"),
        ({"command": []}, "no command to run; write it after --"),
        ({"name": "a-"}, "--name=a- can't name a JobSet"),
        ({"command": ["python", "-m", "cgrpo_jax.trian"]}, "cgrpo_jax.trian is no program .*did you mean cgrpo_jax.tr"),
        ({"command": ["A=b", *TRAIN]}, "A=... is no program; write env before it, as no shell reads it"),
        ({"command": [*TRAIN]}, "cgrpo_jax.train would fail on v6e:4x8: missing --workdir"),
        ({"command": [*COMMAND, "--config.mesh.tensor=3"]}, "tensor 3 takes 30 devices, there are 32"),
        (
            {"topology": "v6e:4x4", "command": [*COMMAND, "--config.mesh.gen_tensor=3"]},
            "cgrpo_jax.train would fail on v6e:4x4: mesh.gen_tensor 3 cuts no mesh of fsdp 16 x tensor 1; use one of",
        ),
        (
            {"topology": "tpu7x:2x2x1", "command": [*COMMAND, "--config.mesh.fsdp=4"]},  # two devices a chip
            "takes 4 devices, there are 8",
        ),
        ({"command": [*COMMAND, "--config.objective.aggregate=papre"]}, "objective.aggregate 'papre' is unknown"),
        ({"command": [*TRAIN, "--workdir=runs/x"]}, "--workdir=runs/x would go with the pod; .* is at /shared"),
        ({"mount": "/data"}, "--workdir=/shared/a would go with the pod; the claim's volume is at /data"),
        ({"command": [*TRAIN, "--workdir=/shared/../x"]}, "--workdir=/shared/../x would go with the pod"),
        ({"command": [*TRAIN, "--workdir=s3://x/a"]}, "s3://x/a is on s3://, which is not supported"),
        ({"claim": ""}, "--workdir=/shared/a would go with the pod; give the --claim of a volume, which is at /shared"),
    ],
)
def test_a_mistake_in_a_job_set_is_one_clear_line(capsys, changes, message):
    with pytest.raises(UserError, match=message):
        rendered(capsys, **changes)
    assert capsys.readouterr().out == ""


# --- configurations and architectures -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RELEASES)
def test_an_architecture_file_is_read_as_a_config_json_and_has_the_release_s_size(name, tmp_path):
    shutil.copy(ROOT / "cgrpo_jax" / "assets" / "architectures" / f"{name}.json", tmp_path / "config.json")
    shape = config.read_config(tmp_path)
    assert params.num_params(shape) == RELEASES[name]


@pytest.mark.parametrize("name", RELEASES)
def test_a_paper_configuration_has_the_paper_s_values_and_a_mesh_that_its_model_and_slice_allow(name, tmp_path):
    path = ROOT / "configs" / f"{name}.py"
    c = config_lib.load(path)
    assert (c.num_responses, c.refine.num_kept, c.questions_per_iteration, c.optimizer.updates_per_batch) == (
        7,
        1,
        128,
        2,
    )
    assert (c.max_prompt_length, c.max_response_length) == (2048, 6144)
    assert (c.optimizer.learning_rate, c.objective.gamma, c.refine.max_pass) == (1e-6, 0.1, 0.0)
    # A model that has no critic of its own in the paper learns from the verdict and the answer.
    assert c.critique.kind == ("indicative_gt" if name == "qwen2_5_7b" else "cot")
    assert c.model.architecture == name
    shutil.copy(ROOT / "cgrpo_jax" / "assets" / "architectures" / f"{name}.json", tmp_path / "config.json")
    shape = config.read_config(tmp_path)
    assert shape.num_kv_heads % c.mesh.tensor == 0 and shape.num_heads % c.mesh.tensor == 0
    assert max(c.critic.max_prompt_length, c.refine.max_prompt_length) + 6144 <= shape.max_context
    # The docstring's command names a slice that exists, and this very file.
    text = path.read_text()
    topology = text.partition("--topology=")[2].split()[0]
    assert tpus.find(topology).chips % c.mesh.tensor == 0
    assert text.count(topology) >= 3 and f"--config=configs/{name}.py" in text
