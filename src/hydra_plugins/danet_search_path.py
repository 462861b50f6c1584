"""Puts experiments/ behind conf/ where Hydra looks for options.

Not by `hydra.searchpath` in conf/train.yaml: one on the command line would replace it, and Hydra allows it in a primary
configuration only, so that nobody's own one could begin with ours.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from danet.config import REPOSITORY


class ExperimentsSearchPath(SearchPathPlugin):
    """Adds experiments/ to the scripts here, to nobody else's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder if conf/ is where the script's own configuration is."""
        main = [entry.path.removeprefix("file://") for entry in search_path.get_path() if entry.provider == "main"]
        if main == [str(REPOSITORY / "conf")]:
            search_path.append("danet", f"file://{REPOSITORY / 'experiments'}")
