"""Whether a model and a split fit together."""

from danet.inference.predictor import Predictor
from danet.interfaces import SegmentationDataset
from danet.schema import ConfigError
from danet.services.text import composed

VOID = ("void", "unlabelled", "unlabeled")  # names of an output for pixels of no class


def check_classes(predictor: Predictor, dataset: SegmentationDataset) -> None:
    """Check that the model has the data's classes; one more at the end may have a name in `VOID`.

    Raises:
        ConfigError: their number or their names differ.
    """
    own, wanted = (tuple(map(composed, names)) for names in (predictor.class_names, dataset.class_names))
    if len(own) == len(wanted) + 1 and own[-1].lower() in VOID:
        own = own[:-1]
    where = f"{predictor.facts['checkpoint']} does not fit {dataset.description}"
    remedy = "use the data set that it was trained on (dataset=...)"
    if len(own) != len(wanted):
        raise ConfigError([f"{where}: it has {len(own)} classes, the data {len(wanted)}; {remedy}"])
    unnamed = tuple(f"class {index}" for index in range(len(own)))  # the names of a file that has none
    pairs = zip(range(len(own)), own, wanted, strict=True)
    differ = [f"class {index} is {a!r}, in the data {b!r}" for index, a, b in pairs if a != b]
    if own != unnamed and differ:
        raise ConfigError([f"{where}: {'; '.join(differ[:3])}; {remedy}"])
