"""Exports a model for the OpenVINO engine: `python -m parley.convert MODEL`, which `parley convert` runs."""

import argparse
import os
from collections.abc import Sequence

from parley.engine.export.exporter import export
from parley.engine.model import ModelError, resolve
from parley.settings import Settings, SettingsError
from parley.startup import fail, one_line


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits with 1 and one line when the model cannot be exported."""
    parser = argparse.ArgumentParser(prog="parley convert", description="Export a model for the OpenVINO engine.")
    parser.add_argument("model", help="a local folder, or a Hugging Face id")
    parser.add_argument("--dtype", choices=["float32", "int8"], default="float32", help="default: %(default)s")
    chosen = parser.parse_args(arguments)
    try:
        settings = Settings.from_env(os.environ)
        folder = resolve(chosen.model, settings.cache)
        made = folder.exported(chosen.dtype) or export(folder, chosen.dtype, settings.cache)
    except (SettingsError, ModelError, OSError) as error:
        fail(one_line(error))
    except ModuleNotFoundError as error:
        fail(f"{error.name} is not installed: pip install {error.name}")
    print(f"{folder.name} is exported in {chosen.dtype}: {made}")


if __name__ == "__main__":
    main()
