"""Pushes images to a registry and prints what each is called there, by digest.

    python deploy/push.py REGISTRY IMAGE...

`PUSH_OPTIONS` goes to the container tool's `push` as it is, such as `--tls-verify=false` for a registry on loopback.
"""

import os
import shlex
import sys

from container_tool import ContainerTool, ToolError


def main() -> None:
    """Entry point; exits with 1 and one line when an image cannot be pushed."""
    registry, *images = sys.argv[1:]
    options = shlex.split(os.environ.get("PUSH_OPTIONS", ""))
    try:
        tool = ContainerTool.find()
        for image in images:
            name = image.removeprefix("localhost/")
            digest = tool.push(image, f"{registry}/{name}", options)
            print(f"{registry}/{name.partition(':')[0]}@{digest}")
    except ToolError as error:
        sys.exit(f"parley: {error}")


if __name__ == "__main__":
    main()
