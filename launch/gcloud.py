"""The gcloud commands of one Cloud TPU slice."""

import dataclasses
from collections.abc import Sequence

import on_hosts
import tpus


@dataclasses.dataclass(frozen=True)
class Pod:
    """A slice; each method returns a command."""

    name: str
    slice: tpus.Slice
    zone: str
    project: str
    create_flags: Sequence[str]

    def _resource(self, verb: str, *flags: str) -> list[str]:
        place = [f"--zone={self.zone}", f"--project={self.project}"]
        return ["gcloud", "compute", "tpus", "queued-resources", verb, self.name, *place, *flags]

    def _node(self, verb: str, *arguments: str) -> list[str]:
        place = [f"--zone={self.zone}", f"--project={self.project}"]
        return ["gcloud", "compute", "tpus", "tpu-vm", verb, *arguments, *place]

    def create(self) -> list[str]:
        flags = [f"--node-id={self.name}", *self.slice.cloud_flags(), *self.create_flags, "--quiet"]
        return self._resource("create", *flags)

    def state(self) -> list[str]:
        return self._resource("describe", "--format=value(state.state)")

    def node_state(self) -> list[str]:
        return self._node("describe", self.name, "--format=value(state)")

    def delete(self) -> list[str]:
        return self._resource("delete", "--force", "--quiet")

    def ship(self, archive: str) -> list[str]:
        return self._node("scp", archive, f"{self.name}:{on_hosts.ARCHIVE}", "--worker=all", "--quiet")

    def ship_environment(self, file: str) -> list[str]:
        return self._node("scp", file, f"{self.name}:{on_hosts.ENVIRONMENT}", "--worker=all", "--quiet")

    def ssh(self, script: str, *flags: str) -> list[str]:
        return self._node("ssh", self.name, "--worker=all", "--quiet", f"--command={script}", *flags)
