"""Where configuration, scripts and results lie: in a checkout, or where `pip install` put them."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = (PACKAGE / "conf").is_dir()  # the wheel has conf/ inside the package, a checkout at its top
REPOSITORY = PACKAGE if INSTALLED else PACKAGE.parents[1]  # the folder of conf/ and experiments/
WORK = Path.cwd() if INSTALLED else REPOSITORY  # where data and results are looked for by default
SCRIPTS = PACKAGE / "scripts" if INSTALLED else REPOSITORY / "src"
OUTPUTS = Path(os.environ.get("DANET_OUTPUTS", WORK / "outputs")).absolute()


def command(script: str) -> str:
    """How a user starts a script: `python src/train.py`, or `danet train` where the package is installed."""
    return f"danet {script}" if INSTALLED else f"python src/{script}.py"
