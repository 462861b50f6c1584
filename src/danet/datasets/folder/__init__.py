"""A user's own images and masks, as the common tools leave them: dataset=folder."""

from danet.datasets.folder.dataset import ImageFolder as ImageFolder
