"""Serve the attention page for one's own pictures: `python src/serve.py run=FOLDER`."""

from omegaconf import DictConfig

import command_line
from danet import config


def main(composed: DictConfig) -> None:
    """Serve until Ctrl-C."""
    from danet.services import console  # imported here, so that `--help` answers at once
    from danet.tools import serve

    console.setup_logging(None)
    serve.run(config.load_as(serve.ServeConfig, composed))


if __name__ == "__main__":
    command_line.start(main, "serve", ("run", "checkpoint", "token"))
