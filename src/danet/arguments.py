"""Types that a component's signature may use for its options: ranges of numbers, names, durations, paths."""

import re
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

# Ranges that a signature can state; plain types to whoever calls the component from Python. No configuration takes NaN
# or infinity (schema.py).
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]  # of dropping: dropping everything is an error
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveInt = Annotated[int, Field(gt=0, lt=2**63)]
Temperature = Literal["auto"] | PositiveFloat  # of the softmax; auto: as fitted to the weights, else 1
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**63)]
Void = Literal["ignore", "count"]  # pixels that the truth leaves out; count: as false positives


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_text)]  # a name; Hydra makes a number of one such as 2024


LONGEST = 1e9  # steps or epochs of a duration


def parse_duration(value: int | str) -> tuple[float, Literal["steps", "epochs"]]:
    """500, "500" and "500 steps" are steps, "2 epochs" and ".5 epochs" epochs.

    Raises:
        ValueError: the value is none of these.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(epochs?|steps?)?\s*", str(value))
    if match:
        number = float(match[1])
        if number > LONGEST:
            raise ValueError(f"{value!r} is longer than any run; {LONGEST:.0e} steps or epochs are the most")
        if (match[2] or "steps").startswith("epoch"):
            return number, "epochs"
        if number.is_integer():
            return number, "steps"
    raise ValueError(f"not a valid duration: {value!r}. Use a number of steps (500) or epochs ('2 epochs')")


def _check_duration(value: int | str) -> int | str:
    parse_duration(value)
    return value


def _check_positive(value: int | str) -> int | str:
    if parse_duration(value)[0] == 0:
        raise ValueError(f"not a positive duration: {value!r}. Use a number of steps (500) or epochs ('2 epochs')")
    return value


Duration = Annotated[int | str, AfterValidator(_check_duration)]
PositiveDuration = Annotated[int | str, AfterValidator(_check_positive)]


def _existing_file(path: str) -> str:
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise ValueError(f"must be an existing file (there is none at {file})")
    return str(file)


def _existing_folder(path: str) -> str:
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise ValueError(f"must be an existing folder (there is none at {folder})")
    return str(folder)


def _existing_path(path: str) -> str:
    place = Path(path).expanduser().absolute()
    if not place.exists():
        raise ValueError(f"must be an existing file or folder (there is none at {place})")
    return str(place)


def _folder(path: str) -> str:
    return str(Path(path).expanduser().resolve())


ExistingFile = Annotated[Text, AfterValidator(_existing_file)]  # a path; becomes absolute
ExistingFolder = Annotated[Text, AfterValidator(_existing_folder)]  # likewise
ExistingPath = Annotated[Text, AfterValidator(_existing_path)]  # of either; likewise
Folder = Annotated[Text, AfterValidator(_folder)]  # likewise, but may be missing: its reader says what belongs there


def takes(annotation: Any, kind: Any) -> bool:
    """Whether an annotation is `kind`, such as ExistingFile, or has it among its alternatives."""
    return annotation == kind or any(takes(part, kind) for part in typing.get_args(annotation))
