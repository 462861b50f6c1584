"""Who may import whom, and what is heavy: read from the source, so that it holds for new files too."""

import ast
import subprocess
import sys
from pathlib import Path

from danet.config import REPOSITORY

SOURCE = REPOSITORY / "src"
PACKAGE = SOURCE / "danet"
COMPONENTS = [
    *PACKAGE.glob("backbones/*.py"),
    *PACKAGE.glob("heads/*.py"),
    *PACKAGE.glob("losses/*.py"),
    PACKAGE / "optimizers.py",
    PACKAGE / "schedules.py",
]
SCRIPTS = {path.name for path in SOURCE.glob("*.py")}
SWEEPER = "hydra_plugins/danet_sweeper.py"
ONLY_IN = {
    "hydra": {SWEEPER, "hydra_plugins/danet_search_path.py", *SCRIPTS},
    "omegaconf": {"danet/config.py", SWEEPER, *SCRIPTS},
    "wandb": {"danet/tracking.py"},
    "torch.distributed": {"danet/distributed.py"},
    "albumentations": {"danet/data/augment.py"},
    "optuna": {"danet/search.py", "danet/trial.py"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_each_library_has_its_place() -> None:
    for path in SOURCE.rglob("*.py"):
        place = path.relative_to(SOURCE).as_posix()
        for library, allowed in ONLY_IN.items():
            if place not in allowed:
                used = {name for name in imports(path) if name == library or name.startswith(f"{library}.")}
                assert not used, f"{place} imports {used}; only {sorted(allowed)} may"


def test_components_know_the_registry_and_the_reader_of_files_and_nothing_else_of_ours() -> None:
    for path in COMPONENTS:
        ours = {name for name in imports(path) if name.split(".")[0] == "danet"}
        family = f"danet.{path.parent.name}."  # a file may use its own family
        known = ("danet.registry", "danet.interfaces", "danet.ops", "danet.state_dicts", family)
        strange = {n for n in ours if not n.startswith(known)} - {"danet"}
        assert not strange, f"{path.name} imports {strange}"


def test_services_import_services_alone() -> None:
    services = ("metrics", "schedules", "checkpoint", "distributed", "tracking", "records", "figures", "signals")
    for name in services:
        ours = {i for i in imports(PACKAGE / f"{name}.py") if i.startswith("danet.")}
        assert {i.split(".")[1] for i in ours} <= {"registry", "interfaces", *services}, name


def test_help_does_not_wait_for_heavy_imports() -> None:
    heavy = ("torch", "torchvision", "albumentations", "wandb", "matplotlib", "cv2")
    code = (
        f"import sys, runpy; sys.argv = ['train.py', '--cfg', 'job']\n"
        f"""
try:
    runpy.run_path({str(SOURCE / "train.py")!r}, run_name="__main__")
finally:
    print("LOADED", [name for name in {heavy!r} if name in sys.modules])
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout
