"""The container tool of this machine: `CONTAINER_TOOL`, or whichever is there of podman, buildah and docker."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mirror import Mirror

BACKENDS = ("podman", "buildah", "docker")

_THROW_AWAY = ("--rm", "--no-healthcheck", "--network=none", "--user=0")
_PARTS = "/usr /home /app/.venv/lib/python*/site-packages/*"
_LARGEST = 8


class ToolError(Exception):
    """A container tool is missing or failed; the message is one line, the tool's own output went to the terminal."""


@dataclass(frozen=True)
class ContainerTool:
    """One of `BACKENDS`."""

    name: str

    @classmethod
    def find(cls) -> "ContainerTool":
        """The one that `CONTAINER_TOOL` names, or the first one on the PATH; raises `ToolError` when there is none."""
        chosen = os.environ.get("CONTAINER_TOOL")
        if chosen and chosen not in BACKENDS:
            raise ToolError(f"CONTAINER_TOOL={chosen!r}: name one of {', '.join(BACKENDS)}")
        names = (chosen,) if chosen else BACKENDS
        for name in names:
            if shutil.which(name):
                return cls(name)
        raise ToolError(f"no container tool found; install {' or '.join(names)}")

    def build(self, dockerfile: Path, context: Path, image: str, mirror: Mirror) -> None:
        """Builds an image from a Dockerfile."""
        labelled = [] if self.name == "docker" else ["--format=docker"]  # OCI's format has no health check
        arguments = [f"--build-arg={key}={value}" for key, value in mirror.arguments.items()]
        secrets = [f"--secret={secret}" for secret in mirror.secrets]
        command = ["build", *labelled, *arguments, *secrets, "-t", image, "-f", str(dockerfile), str(context)]
        if subprocess.run([self.name, *command], check=False).returncode:
            raise ToolError(f"{self.name} could not build {image}")

    def size(self, image: str) -> int:
        """Bytes of all layers, unpacked."""
        if self.name == "buildah":
            sizes = json.loads(self._output("images", "--json", image))[0]["size"]
            number, unit = sizes.split()
            return int(float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit])
        return int(self._output("image", "inspect", "--format", "{{.Size}}", image))

    def run(self, image: str, *command: str) -> str:
        """What a command prints in a throw-away container of the image, without network."""
        if self.name == "buildah":
            container = self._output("from", image).strip()
            try:
                return self._output("run", "--user", "0", container, "--", *command)
            finally:
                self._output("rm", container)
        return self._output("run", *_THROW_AWAY, f"--entrypoint={command[0]}", image, *command[1:])

    def report(self, image: str) -> str:
        """The image's size and its largest parts, in MB."""
        listing = self.run(image, "sh", "-c", f"du -sm {_PARTS} 2>/dev/null | sort -rn | head -n {_LARGEST}")
        rows = [line.split("\t") for line in listing.splitlines()]
        lines = [f"{size:>7} MB  {path}" for size, path in rows]
        return "\n".join([f"{self.size(image) / 1e6:7.0f} MB  {image}, of which", *lines])

    def push(self, image: str, target: str, options: Sequence[str] = ()) -> str:
        """Pushes the image as `target` (registry/name:tag) and returns the digest that the registry keeps."""
        if self.name == "docker":
            self._output("tag", image, target)
            self._output("push", *options, target)
            return self._output("inspect", "--format", "{{index .RepoDigests 0}}", target).strip().rpartition("@")[2]
        with tempfile.NamedTemporaryFile("r", suffix=".digest") as digest:
            self._output("push", *options, "--digestfile", digest.name, image, f"docker://{target}")
            return digest.read().strip()

    def _output(self, *arguments: str) -> str:
        done = subprocess.run([self.name, *arguments], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise ToolError(f"{self.name} {arguments[0]} ended with status {done.returncode}")
        return done.stdout
