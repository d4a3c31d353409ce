"""Renders the GKE JobSet that runs a command on all hosts of a TPU slice, and submits it if asked to.

    python launch/render_gke.py --name=cgrpo --topology=v6e:8x8 --image=IMAGE --claim=shared --spot -- \\
        python -m cgrpo_jax.train --config=configs/qwen3_8b.py --workdir=/shared/qwen3_8b ... > jobset.yaml

  --name             of the JobSet
  --topology         such as v6e:4x4 (v4, v5e, v5p, v6e, tpu7x)
  --image            container image with this project installed (launch/Dockerfile); the command runs in its
                     working directory
  --namespace        (default: default)
  --claim, --mount   persistent volume claim with workdir, model and data, and where it is mounted (default: /shared)
  --service-account  Kubernetes service account (default: default)
  --spot             on spot nodes, which can be preempted
  --max-restarts     of all hosts, after a preemption or a failure (default: 10)
  --apply            submit it with kubectl instead of printing it
  --dry-run          with --apply, print it and the kubectl command, and submit nothing

What can't run is refused: a program that does not exist, a configuration that is wrong, a mesh that does not divide the
slice's devices, a --workdir that is neither in a bucket nor under --mount. Paths in the image are taken to be those of
this repository.
The command gets --distributed, and CGRPO_STOPPED_STATUS=75: a training run that is evicted fails, and is restarted.
The logs of all hosts, of which v6e:8x8 has 16:

    kubectl logs -l jobset.sigs.k8s.io/jobset-name=NAME --prefix --follow --tail=-1 --max-log-requests=16
"""

import functools
import json
import pathlib
import shlex
import string
import subprocess
import sys
from collections.abc import Sequence

import command_line
import preflight
import tpus

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import cli

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEMPLATE = pathlib.Path(__file__).with_name("gke_jobset.yaml")
KUBECTL = ("kubectl", "apply", "-f", "-")


def render(
    *,
    name: str,
    slice: tpus.Slice,
    image: str,
    namespace: str,
    claim: str,
    mount: str,
    service_account: str,
    spot: bool,
    max_restarts: int,
    command: Sequence[str],
) -> str:
    """Returns the manifest. Every value is written as JSON, which YAML reads as it is: nothing in it can break out."""
    selector = {
        "cloud.google.com/gke-tpu-accelerator": slice.generation.gke,
        "cloud.google.com/gke-tpu-topology": slice.topology,
    }
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if spot:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append({"key": "cloud.google.com/gke-spot", "operator": "Exists", "effect": "NoSchedule"})
    whole = [*command, *["--distributed"] * ("--distributed" not in command)]
    values = {
        "name": name,
        "namespace": namespace,
        "max_restarts": max_restarts,
        "hosts": slice.hosts,
        "node_selector": selector,
        "tolerations": tolerations,
        "service_account": service_account,
        "image": image,
        "command": [_as_is(word) for word in whole],
        "stopped_status": str(command_line.STOPPED_STATUS),  # Kubernetes takes strings only
        "chips_per_host": slice.chips_per_host,
        "volume_mounts": [{"name": "shared", "mountPath": mount}] if claim else [],
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": claim}}] if claim else [],
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    return string.Template(template).substitute({key: json.dumps(value) for key, value in values.items()})


def _as_is(word: str) -> str:
    """Returns a word of a command for Kubernetes, which puts variables in the place of $(NAME), and $ in that of $$."""
    return word.replace("$", "$$")


def main(
    name: str,
    topology: str,
    image: str,
    namespace: str,
    claim: str,
    mount: str,
    service_account: str,
    spot: bool,
    max_restarts: int,
    apply: bool,
    dry_run: bool,
    command: Sequence[str],
) -> None:
    """Prints the manifest, or submits it."""
    found = tpus.find(topology)
    # A host's name is NAME-slice-0-HOST, and Kubernetes allows 63 characters.
    preflight.check_name("--name", name, what="a JobSet", limit=40)
    preflight.check_not_negative("--max-restarts", max_restarts)
    if not mount.startswith("/"):
        raise UserError(f"--mount={mount} is not an absolute path; use one such as /shared")
    on_claim = functools.partial(preflight.check_on_claim, claim=claim, mount=mount)
    preflight.check_command(command, where=found, root=ROOT, check_folder=on_claim)
    manifest = render(
        name=name,
        slice=found,
        image=image,
        namespace=namespace,
        claim=claim,
        mount=mount,
        service_account=service_account,
        spot=spot,
        max_restarts=max_restarts,
        command=command,
    )
    if not apply or dry_run:
        sys.stdout.write(manifest)
    if apply and dry_run:
        sys.stderr.write(f"would run: {shlex.join(KUBECTL)}\n")
    elif apply:
        try:
            status = subprocess.run(KUBECTL, input=manifest, text=True).returncode
        except FileNotFoundError as error:
            raise UserError("kubectl is not installed; install it, or leave --apply out") from error
        sys.exit(status)


if __name__ == "__main__":
    command_line.run(
        main,
        doc=__doc__,
        require=("name", "topology", "image"),
        flags={
            "name": cli.Flag("of the JobSet"),
            "topology": cli.Flag("such as v6e:4x4"),
            "image": cli.Flag("container image"),
            "namespace": cli.Flag("namespace", str, "default"),
            "claim": cli.Flag("persistent volume claim", str, ""),
            "mount": cli.Flag("where the claim is mounted", str, "/shared"),
            "service_account": cli.Flag("Kubernetes service account", str, "default"),
            "spot": cli.Flag("on spot nodes", bool, False),
            "max_restarts": cli.Flag("of all hosts", int, 10),
            "apply": cli.Flag("submit it", bool, False),
            "dry_run": command_line.DRY_RUN,
        },
    )
