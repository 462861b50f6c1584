"""Puts experiments/ and the user's extensions behind conf/ where Hydra looks for options.

Not by `hydra.searchpath` in conf/train.yaml: one on the command line would replace it, and Hydra allows it in a primary
configuration only, so that nobody's own one could begin with ours.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from danet.config import REPOSITORY
from danet.registry import extension_folders


class ExperimentsSearchPath(SearchPathPlugin):
    """Adds these folders to the scripts here, to nobody else's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders if conf/ is where the script's own configuration is."""
        main = [entry.path.removeprefix("file://") for entry in search_path.get_path() if entry.provider == "main"]
        if main == [str(REPOSITORY / "conf")]:
            for folder in (REPOSITORY / "experiments", *extension_folders()):
                search_path.append("danet", f"file://{folder}")
