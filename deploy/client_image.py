"""Builds the Streamlit client's image; the settings are those of `deploy/image.py`.

python deploy/client_image.py [--image NAME:TAG]
"""

import argparse
import sys
from pathlib import Path

from container_tool import ContainerTool, ToolError
from mirror import Mirror

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Entry point; exits with 1 and one line when the image cannot be built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="localhost/parley-client:latest", help="the image's name")
    arguments = parser.parse_args()
    try:
        tool = ContainerTool.find()
        tool.build(ROOT / "deploy/client/Dockerfile", ROOT, arguments.image, Mirror.from_env())
        print(tool.report(arguments.image))
    except ToolError as error:
        sys.exit(f"parley: {error}")


if __name__ == "__main__":
    main()
