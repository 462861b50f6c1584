"""Configuration: from what Hydra composed to one checked, frozen RunConfig; all problems at once."""

from danet.config.command_line import (
    check_arguments,
    with_changes_of_resume,
    with_dataset_of_run,
    without_empty_groups,
)
from danet.config.load import check_beside, load
from danet.config.quoting import quoted, shell_word, unquoted
from danet.config.resolve import OUTPUTS, REPOSITORY
from danet.config.resume import changes_of_run, identity_of_run, of_run, record_changes
from danet.config.run_config import (
    RunConfig,
    as_trained,
    image_reading,
    load_as,
    load_section,
    model_sections,
    model_yaml,
    protocol_options,
)
from danet.config.runs import named, remember, require_run, run_folders, with_run_folders, with_sweep_folder
from danet.schema import ConfigError

__all__ = [
    "OUTPUTS",
    "REPOSITORY",
    "ConfigError",
    "RunConfig",
    "as_trained",
    "changes_of_run",
    "check_arguments",
    "check_beside",
    "identity_of_run",
    "image_reading",
    "load",
    "load_as",
    "load_section",
    "model_sections",
    "model_yaml",
    "named",
    "of_run",
    "protocol_options",
    "quoted",
    "record_changes",
    "remember",
    "require_run",
    "run_folders",
    "shell_word",
    "unquoted",
    "with_changes_of_resume",
    "with_dataset_of_run",
    "with_run_folders",
    "with_sweep_folder",
    "without_empty_groups",
]
