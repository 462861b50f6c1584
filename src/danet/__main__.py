"""The command `danet`: `danet train key=value ...` is `python src/train.py key=value ...`, wherever it is installed."""

import ast
import runpy
import sys

from danet import __version__
from danet.registry import did_you_mean
from danet.services.places import OUTPUTS, SCRIPTS

NOT_INSTALLED = "benchmark"  # compares with other code, for which it needs a checkout


def main() -> None:
    """Run the script that the first argument names, with the others."""
    names = sorted(file.stem for file in SCRIPTS.glob("*.py") if file.stem != NOT_INSTALLED)
    given = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if given in ("-h", "--help"):
        print(_help(names))
    elif given in ("-V", "--version"):
        print(f"danet {__version__}")
    elif given not in names:
        sys.exit(f"danet {given}: unknown command; {did_you_mean(given, names)}")
    else:
        script = str(SCRIPTS / f"{given}.py")
        sys.argv[:2] = [script]
        sys.path.insert(0, str(SCRIPTS))  # as Python does for a script
        runpy.run_path(script, run_name="__main__")


def _help(names: list[str]) -> str:
    """All commands with the first sentence of their scripts."""
    lines = ["usage: danet COMMAND [key=value ...]; danet COMMAND --help lists the keys", ""]
    for name in names:
        text = ast.get_docstring(ast.parse((SCRIPTS / f"{name}.py").read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:10} {text.partition(':')[0]}")
    return "\n".join([*lines, "", f"Results go to {OUTPUTS}; the environment variable DANET_OUTPUTS changes that."])


if __name__ == "__main__":
    main()
