"""Builds the service's image: `bentoml build`, then `bentoml containerize` with the container tool that is there.

    python deploy/image.py [--model FOLDER_OR_HUB_ID] [--torch | --gpu] [--image NAME:TAG]

Settings for machines behind a mirror come from the environment: `BASE_IMAGE`, `PIP_CONF` and `CA_BUNDLE` (mirror.py).
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import bentoml.container
import yaml
from bentoml.exceptions import BentoMLException
from container_tool import ContainerTool, ToolError
from mirror import Mirror

from parley.engine.launch import choose
from parley.engine.model import ModelError, ModelFolder, resolve
from parley.settings import Settings, SettingsError

ROOT = Path(__file__).resolve().parents[1]
LOCK = Path("deploy/requirements-image.lock")
TORCH_LOCK = Path("deploy/requirements-image-torch.lock")
GPU_LOCK = Path("deploy/requirements-image-gpu.lock")
TOOLS_LOCK = Path("requirements-tools.lock")
TORCH_VERSION = "2.13.0"


@dataclass(frozen=True)
class Recipe:
    """What goes into one image."""

    lock: Path
    model: ModelFolder | None = None
    """The model to bake; None for the embedded one."""

    @property
    def torch(self) -> str:
        """The version of torch for the CPU, which is no part of a lock; empty where torch is not needed or locked."""
        return TORCH_VERSION if self.lock == TORCH_LOCK else ""


def recipe(model: str, gpu: bool, torch: bool = False) -> Recipe:
    """Finds or downloads the model, and gives it torch where its engine needs it.

    Args:
        model: what to bake: `pocket`, a folder or a Hugging Face id.
        gpu: the CUDA variant.
        torch: torch in any case, for models that the image gets only when it runs.

    Raises:
        ModelError: when there is no such model, or none of our engines can serve it.
        SettingsError: when `PARLEY_CACHE` cannot be used.
    """
    if model == "pocket":
        return Recipe(GPU_LOCK if gpu else TORCH_LOCK if torch else LOCK)
    cache = {name: value for name, value in os.environ.items() if name == "PARLEY_CACHE"}
    folder = resolve(model, Settings.from_env(cache).cache)
    if gpu:
        return Recipe(GPU_LOCK, folder)
    engine = choose("auto", folder, "cpu", installed=lambda _: True).engine
    return Recipe(LOCK if engine == "openvino" and not torch else TORCH_LOCK, folder)


def stage(recipe: Recipe, context: Path) -> None:
    """Lays out the build context of a Bento: this repository's `bentofile.yaml`, with another lock or model."""
    bentofile = yaml.safe_load((ROOT / "bentofile.yaml").read_text("utf-8"))
    shutil.copytree(ROOT / "parley", context / "parley", ignore=shutil.ignore_patterns("__pycache__"))
    (context / "deploy").mkdir()
    for path in (Path("service.py"), Path("deploy/Dockerfile.template")):
        shutil.copy(ROOT / path, context / path)
    shutil.copy(ROOT / recipe.lock, context / LOCK)
    if recipe.torch:
        shutil.copy(ROOT / TOOLS_LOCK, context / "deploy")
        bentofile["include"].append("deploy/requirements-tools.lock")
    if recipe.model is None:
        shutil.copytree(ROOT / "models", context / "models")
    else:
        bake(recipe.model, context / "models")
        shutil.copy(ROOT / "deploy/baked.py", context)
        bentofile["service"] = "baked:Parley"
        bentofile["include"] += ["baked.py", "models/**"]
    (context / "bentofile.yaml").write_text(yaml.safe_dump(bentofile), "utf-8")
    let_all_read(context)


def let_all_read(context: Path) -> None:
    """The image runs as nobody's user; files made private, as safetensors' are, would be lost to it."""
    for path in context.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def bake(model: ModelFolder, models: Path) -> None:
    """Copies a model under its name, and with it the exports that `parley convert` keeps elsewhere."""
    target = models / model.name
    shutil.copytree(model.path, target)
    for dtype in ("float32", "int8"):
        export = model.exported(dtype)
        if export and not export.is_relative_to(model.path):
            shutil.copytree(export, target / export.name)


def build_bento(recipe: Recipe) -> str:
    """The new Bento's tag."""
    with tempfile.TemporaryDirectory() as folder:
        stage(recipe, Path(folder))
        command = [sys.executable, "-m", "bentoml", "build", "--output", "tag"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PARLEY_")}
        done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ToolError(f"bentoml build ended with status {done.returncode}")
    return done.stdout.strip().removeprefix("__tag__:")


def containerize(bento: str, image: str, torch: str, tool: ContainerTool) -> None:
    """`bentoml containerize` through its Python form: the command line takes each option only once."""
    os.environ.setdefault("BUILDAH_FORMAT", "docker")  # OCI's format has no health check
    mirror = Mirror.from_env()
    # BentoML unpacks the Bento into a temporary folder, and reads a Dockerfile template only below the current one.
    with contextlib.chdir(tempfile.gettempdir()):
        built = bentoml.container.build(
            bento,
            backend=tool.name,
            image_tag=(image,),
            build_arg={"TORCH": torch, **mirror.arguments},
            secret=mirror.secrets,
        )
    if built is None:  # it has logged what was raised
        raise ToolError(f"{tool.name} could not build {image}")


def main() -> None:
    """Entry point; exits with 1 and one line when the image cannot be built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help="a folder or a Hugging Face id to bake in")
    variant = parser.add_mutually_exclusive_group()
    variant.add_argument("--torch", action="store_true", help="with torch, for models that are named at the start")
    variant.add_argument("--gpu", action="store_true", help="the CUDA variant, which has torch")
    parser.add_argument("--image", default="localhost/parley:latest", help="the image's name")
    arguments = parser.parse_args()
    os.umask(0o022)  # the Bento's files keep their modes in the image, where another user reads them
    try:
        tool = ContainerTool.find()
        chosen = recipe(arguments.model, arguments.gpu, arguments.torch)
        containerize(build_bento(chosen), arguments.image, chosen.torch, tool)
        print(tool.report(arguments.image))
    except (ModelError, SettingsError, ToolError, OSError, BentoMLException) as error:
        sys.exit(f"parley: {error}")


if __name__ == "__main__":
    main()
