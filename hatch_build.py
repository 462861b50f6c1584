"""Puts what lies beside the package into the wheel; danet/services/places.py finds it there."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):
    """Adds conf/, experiments/ without the results, and the scripts to the package `danet`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files; an editable install reads those of the checkout."""
        if version == "editable":
            return
        root = Path(self.root)
        folders = ("conf", "experiments/recipe", "experiments/ablation", "experiments/scale")
        build_data["force_include"] |= {str(root / folder): f"danet/{folder}" for folder in folders}
        scripts = (file for file in (root / "src").glob("*.py") if file.stem != "benchmark")
        shipped = [*scripts, root / "src" / "command_line"]
        build_data["force_include"] |= {str(path): f"danet/scripts/{path.name}" for path in shipped}
