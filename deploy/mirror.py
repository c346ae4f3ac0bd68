"""Where an image build gets its base and packages from, on machines that reach no public registry."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Mirror:
    """Settings of the environment, all of them optional; the files are build secrets, and stay out of the image."""

    base_image: str | None
    """`BASE_IMAGE`: an image with Python 3.11 and pip."""
    pip_conf: str | None
    """`PIP_CONF`: pip's configuration file, with the index to use."""
    ca_bundle: str | None
    """`CA_BUNDLE`: the certificates to trust, PEM."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Mirror":
        """Reads the three variables; an empty one counts as absent."""
        return cls(*(environ.get(name) or None for name in ("BASE_IMAGE", "PIP_CONF", "CA_BUNDLE")))

    @property
    def arguments(self) -> dict[str, str]:
        """Build arguments."""
        return {"BASE_IMAGE": self.base_image} if self.base_image else {}

    @property
    def secrets(self) -> tuple[str, ...]:
        """Build secrets, as the container tools' `--secret` takes them."""
        files = {"pip": self.pip_conf, "ca": self.ca_bundle}
        return tuple(f"id={name},src={path}" for name, path in files.items() if path)
