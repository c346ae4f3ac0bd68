"""Lists what is in an image, as CycloneDX 1.6 JSON: https://cyclonedx.org/docs/1.6/json/

    python deploy/sbom.py IMAGE > image.cdx.json

Python packages are asked for in the image's own environment and beside its interpreter, Debian's in its package
database, so that what was left out of the image is left out here too.
"""

import json
import sys
import uuid
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from container_tool import ContainerTool, ToolError

_PYTHON_PACKAGES = """
import importlib.metadata as metadata, platform, sys, sysconfig
print("python", platform.python_version(), "PSF-2.0", sep="|")
paths = list(sys.path)
if sys.base_prefix == "/usr/local":  # an interpreter that Debian's database does not know, with an installer
    paths.append(sysconfig.get_path("purelib", vars={"base": sys.base_prefix}))
for each in metadata.distributions(path=paths):
    print(each.name, each.version, each.metadata.get("License-Expression") or "", sep="|")
"""
_DEBIAN_PACKAGES = "dpkg-query -W -f '${Package}\\t${Version}\\t${Architecture}\\n'"


def python_component(line: str) -> dict[str, Any]:
    """One distribution, or the interpreter, from its name, version and licence."""
    name, version, licence = line.split("|")
    purl = f"pkg:{'generic' if name == 'python' else 'pypi'}/{name.lower().replace('_', '-')}@{quote(version)}"
    component = {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}
    return component | ({"licenses": [{"expression": licence}]} if licence else {})


def debian_component(line: str) -> dict[str, Any]:
    """One package, from its name, version and architecture."""
    name, version, architecture = line.split("\t")
    purl = f"pkg:deb/debian/{name}@{quote(version, safe='')}?arch={architecture}"
    return {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}


def bill(image: str, tool: ContainerTool) -> dict[str, Any]:
    """The whole document."""
    python = tool.run(image, "/app/.venv/bin/python", "-c", _PYTHON_PACKAGES).splitlines()
    debian = tool.run(image, "sh", "-c", _DEBIAN_PACKAGES).splitlines()
    components = [*map(python_component, python), *map(debian_component, debian)]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "component": {"type": "container", "name": image, "bom-ref": image},
        },
        "components": sorted({each["purl"]: each for each in components}.values(), key=lambda each: str(each["purl"])),
    }


def main() -> None:
    """Entry point; exits with 1 and one line when the image cannot be read."""
    try:
        print(json.dumps(bill(sys.argv[1], ContainerTool.find()), indent=1))
    except ToolError as error:
        sys.exit(f"parley: {error}")


if __name__ == "__main__":
    main()
