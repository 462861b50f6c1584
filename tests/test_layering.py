"""Who may import whom, and what is heavy: read from the source, so that it holds for new files too."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

from danet.config import REPOSITORY

SOURCE = REPOSITORY / "src"
PACKAGE = SOURCE / "danet"
SCRIPTS = {
    path.relative_to(SOURCE).as_posix() for folder in ("", "command_line") for path in (SOURCE / folder).glob("*.py")
}
PLUGINS = {f"hydra_plugins/{path.name}" for path in (SOURCE / "hydra_plugins").glob("*.py")}
SWEEPER = "hydra_plugins/_danet_sweeps.py"
ONLY_IN = {
    "hydra": {*SCRIPTS, *PLUGINS},
    "omegaconf": {"danet/config/resolve.py", SWEEPER, *SCRIPTS},
    "wandb": {f"danet/services/tracking/{name}.py" for name in ("artifacts", "connection", "wandb_mirror")},
    "torch.distributed": {"danet/services/distributed.py"},
    "albumentations": {"danet/data/augment.py"},
    "optuna": {"danet/sweeps/search.py", "danet/sweeps/trial.py"},
    "rich": {"danet/services/console.py"},
}

# The floors of the house; CONTRIBUTING.md has the table.
FLOORS = {
    **dict.fromkeys(("interfaces", "arguments", "registry", "schema", "metrics", "services"), 0),
    **dict.fromkeys(("ops", "backbones", "heads", "losses", "datasets", "optimizers", "schedules"), 1),
    **dict.fromkeys(("model", "data"), 2),
    **dict.fromkeys(("config", "sweeps"), 3),
    "inference": 4,
    "analysis": 5,
    "evaluation": 6,
    "training": 7,
    **dict.fromkeys(("tools", "__main__"), 8),
}
COMPONENTS = ("backbones", "heads", "losses", "datasets", "optimizers", "schedules")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def part(name: str) -> str:
    """The module or folder right below the package."""
    return name.split(".")[1]


def modules() -> dict[str, set[str]]:
    """What each file of the package imports of it, by module."""
    known = {".".join(("danet", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in PACKAGE.rglob("*.py")}
    known |= {name.removesuffix(".__init__") for name in known}
    return {
        path.relative_to(PACKAGE).as_posix(): {name for name in imports(path) if name in known - {"danet"}}
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py"
    }


def test_each_library_has_its_place() -> None:
    for path in SOURCE.rglob("*.py"):
        place = path.relative_to(SOURCE).as_posix()
        for library, allowed in ONLY_IN.items():
            if place not in allowed:
                used = {name for name in imports(path) if name == library or name.startswith(f"{library}.")}
                assert not used, f"{place} imports {used}; only {sorted(allowed)} may"


def test_no_two_classes_have_one_name() -> None:
    trees = [ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")]
    names = Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert not [name for name, count in names.items() if count > 1]


def may_import(own: str, other: str) -> bool:
    """Its own folder and what is below it; the ground floor all of itself, components also ops."""
    return other == own or FLOORS[other] < max(FLOORS[own], 1) or (own in COMPONENTS and other == "ops")


def test_nothing_imports_what_is_above_or_beside_it() -> None:
    found = set()
    for file, names in modules().items():
        own = file.removesuffix(".py").split("/")[0]
        found |= {(file, name) for name in names if not may_import(own, part(name))}
    assert not found


def test_tools_do_not_import_each_other() -> None:
    for file, names in modules().items():
        if file.startswith("tools/") and file != "tools/__init__.py":
            own = file.removesuffix(".py").split("/")[1]
            others = {name for name in names if part(name) == "tools" and name.split(".")[2:3] not in ([], [own])}
            assert not others, f"{file} imports {others}"


def test_the_package_knows_nothing_of_its_benchmark() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not any(name.startswith("danet_benchmark") for name in imports(path)), path


def test_wrong_values_are_told_before_pytorch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("dataset: {name: shapes}\n")
    wrong = {
        "train": ["train.batch_size=0"],
        "evaluate": [f"run={tmp_path}", "split=tset"],
        "predict": [f"run={tmp_path}", "input=x", "output=y", "opacity=2"],
        "attention": [f"run={tmp_path}", "sample=0", "split=tset"],
        "export": [f"run={tmp_path}", "out=x.onnx", "to=onx"],
        "serve": [f"run={tmp_path}", "port=70000"],
        "summary": ["batch_size=0"],
        "convert": ["from=x", "in=y", "out=z"],
    }
    code = f"""
import runpy, sys
sys.path.insert(0, {str(SOURCE)!r})
for script, arguments in {wrong!r}.items():
    sys.argv = [script + ".py", *arguments]
    try:
        runpy.run_path({str(SOURCE)!r} + "/" + script + ".py", run_name="__main__")
    except SystemExit as ended:
        print(script, "TOLD" if "in the configuration" in str(ended.code) else ended.code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines() == [f"{script} TOLD False" for script in wrong]


def test_help_does_not_wait_for_heavy_imports() -> None:
    heavy = ("torch", "torchvision", "albumentations", "wandb", "matplotlib", "cv2", "torchmetrics", "timm")
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
