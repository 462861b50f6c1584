"""Look at a data set before training: `python src/inspect_data.py recipe=finetune dataset=folder dataset.root=DIR`.

Not called inspect.py, which would take the place of the standard library's module in all scripts here.
"""

import command_line

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from danet import config

PATHS = (
    "dataset.root",
    "dataset.images",
    "dataset.labels",
    "dataset.group",
    "init_from",
    "resume",
    "runtime.cache",
    "output",
)
OWN = ("output", "inspect")  # the keys that src/train.py does not have


def main(composed: DictConfig) -> None:
    """Write the page."""
    from danet.services import console  # imported here, so that `--help` answers at once
    from danet.tools.inspect_data import inspection

    console.setup_logging(None)
    overrides = list(HydraConfig.get().overrides.task)
    own = config.load_as(inspection.InspectionConfig, OmegaConf.masked_copy(composed, list(OWN)))
    of_run = OmegaConf.masked_copy(composed, [str(key) for key in composed if key not in OWN])
    inspection.run(config.load(of_run, overrides, probe=True), own, overrides)


if __name__ == "__main__":
    command_line.start(main, "inspect_data", PATHS)
