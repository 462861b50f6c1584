"""Whether a model is traced to be exported, for operations that an exported graph must write otherwise."""

import torch


def is_exporting() -> bool:
    """Whether torch.export is tracing, and not torch.compile, of which PyTorch 2.11 says so, too."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
