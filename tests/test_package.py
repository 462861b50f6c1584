"""The package as `pip install` brings it, without the checkout; and the command `danet`."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import danet
from conftest import REPOSITORY, TINY, environment

Danet = Callable[..., str]


def test_the_command_of_a_checkout_names_its_scripts(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "danet", *arguments]
        env = {**environment(tmp_path), "PYTHONPATH": str(REPOSITORY / "src")}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    listed = run().stdout
    for script in (REPOSITORY / "src").glob("*.py"):
        assert (f"\n  {script.stem} " in listed) == (script.stem != "benchmark")
    assert "did you mean 'train'?" in run("trian").stderr
    assert run("--version").stdout == f"danet {danet.__version__}\n"


def test_what_is_missing_is_installed_in_words_that_need_no_checkout() -> None:
    """pip takes the danet that is installed, editable or not, and adds what the extra needs."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    told = 0
    for folder in ("src", "conf", "experiments"):
        for file in (REPOSITORY / folder).rglob("*"):
            if file.suffix in (".py", ".yaml"):
                text = file.read_text(encoding="utf-8")
                assert "pip install -e" not in text, file
                found = re.findall(r"danet\[([^]{]+)\]'", text)
                assert set(found) <= set(extras), file
                told += len(found)
    assert told > 10


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Danet:
    """Runs `danet` of a wheel in an environment of its own, where nothing of the checkout can be imported."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("package")
    wheels, venv = folder / "wheels", folder / "venv"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(wheels)]
    subprocess.run([*build, str(REPOSITORY)], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    install = [*pip, "--python", str(python), "install", "--no-deps", "--no-index", *map(str, wheels.glob("*.whl"))]
    subprocess.run(install, check=True)
    query = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip())
    # PyTorch and the others come from here; the .pth files there, such as an editable install's, are not read.
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (own / "others.pth").write_text("\n".join([*others, *_appended(others)]))
    left_out = ("PYTHONPATH", "DANET_OUTPUTS", "DANET_EXTENSIONS")
    env = {name: value for name, value in os.environ.items() if name not in left_out}

    def run(*arguments: str, cwd: Path) -> str:
        command = [str(venv / "bin" / "danet"), *arguments]
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def _appended(folders: set[str]) -> list[str]:
    """The environments that a .pth file of this one names, as a contributor may have it; not the checkout's source."""
    lines = [line for folder in folders for file in Path(folder).glob("*.pth") for line in file.read_text().split("\n")]
    return [line for line in lines if line.endswith("site-packages")]


@pytest.mark.slow
def test_the_wheel_trains_and_evaluates_in_any_folder(installed: Danet, tmp_path: Path) -> None:
    assert installed("--version", cwd=tmp_path) == f"danet {danet.__version__}\n"
    told = installed("train", *TINY, "head=danet", cwd=tmp_path)
    (folder,) = (file.parent for file in (tmp_path / "outputs").glob("*/*/result.json"))
    assert "src/" not in told
    environment_of_run = (folder / "environment.json").read_text()
    assert '"commit": null' in environment_of_run
    other = tmp_path / "other"
    other.mkdir()
    installed("evaluate", f"run={folder}", "runtime.device=cpu", cwd=other)
    assert list(folder.glob("evaluations/*/result.json"))
    assert f"{other}/data/camvid" in installed("train", "recipe=camvid_cpu", "--cfg", "job", "--resolve", cwd=other)
    # Plugins of Hydra, ablations, and a page's templates are there, too.
    sweep = ["-m", "head=danet,fcn", "sweep.name=two", *TINY, "train.steps=2", "train.eval_every=2"]
    assert "danet report sweep=" in installed("train", *sweep, cwd=other)
    installed("report", "sweep=outputs/sweeps/two", cwd=other)
    shown = installed("train", "--help", cwd=other)
    assert "danet train recipe=" in shown
    assert "python src/" not in shown
    installed("attention", f"run={folder}", "sample=0", "page=page.html", "runtime.device=cpu", cwd=other)
    assert (other / "page.html").is_file()
