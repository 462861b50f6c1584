"""Serve the attention page for one's own pictures: `python src/serve.py run=FOLDER`."""

import command_line

from omegaconf import DictConfig

from danet import config


def main(composed: DictConfig) -> None:
    """Serve until Ctrl-C."""
    from danet.services import console
    from danet.tools.serve.options import ServeConfig

    console.setup_logging(None)
    options = config.load_as(ServeConfig, composed)

    from danet.tools.serve import server  # with PyTorch, which takes seconds: what is wrong has been said before

    server.run(options)


if __name__ == "__main__":
    command_line.start(main, "serve", ("run", "checkpoint", "token"))
