"""Checks of plain values against signatures and dataclasses: all problems at once, a line each.

The signature is the schema: keyword-only parameters are the keys that a section may have.
"""

import dataclasses
import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import pydantic

from danet import registry
from danet.arguments import ExistingFile, takes
from danet.registry import did_you_mean, keyword_parameters, options_of

T = TypeVar("T")

COMPONENTS = {
    r.kind: r
    for r in (
        registry.BACKBONES,
        registry.HEADS,
        registry.LOSSES,
        registry.DATASETS,
        registry.OPTIMIZERS,
        registry.SCHEDULES,
    )
}


class ConfigError(Exception):
    """The configuration cannot run; the text has a line for every problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        """Join the problems, a line each."""
        self.problems = list(problems)
        count = len(self.problems)
        super().__init__(
            f"{count} problem{'s' if count > 1 else ''} in the configuration:\n  " + "\n  ".join(self.problems)
        )


def check_dataclass(schema: type[T], values: Mapping[str, Any], problems: list[str], prefix: str = "") -> T | None:
    """Check the values of a configuration, or of a section of it, against a dataclass.

    Args:
        schema: keyword-only. Its method `problems`, if any, returns what is wrong between keys, a line each.
        values: plain.
        problems: gets a line for every problem.
        prefix: of the keys, such as "train.".

    Returns:
        The dataclass; None where there is a problem.
    """
    before = len(problems)
    fields = check_fields(schema, values, problems, prefix)
    if len(problems) > before:
        return None
    result = schema(**fields)
    if rules := getattr(result, "problems", None):
        problems += [prefix + line for line in rules()]
    return result if len(problems) == before else None


def check_fields(
    schema: type, values: Mapping[str, Any], problems: list[str], prefix: str = "", *, components: bool = True
) -> dict[str, Any]:
    """Check values against the fields of a dataclass. Arguments as for `check_dataclass`.

    Without `components`, their sections are left out: to check one, its module is imported, and PyTorch with it.

    A field whose type is a dataclass is a section of its own; one called as a kind of component (such as "head") is
    that component's section, or None where the field allows it. A field whose key is a Python keyword, such as
    "from", has an underscore at its end.

    Returns:
        By field; None for a section with problems, and no other fields if one of those has a problem.
    """
    parameters = {name.removesuffix("_"): p for name, p in keyword_parameters(schema).items()}
    sections: dict[str, Any] = {}
    for key, parameter in parameters.items():
        given = values.get(key)
        if dataclasses.is_dataclass(parameter.annotation):
            sections[key] = _check_section(typing.cast(type, parameter.annotation), key, given, problems)
        elif key in COMPONENTS and (given is not None or parameter.default is parameter.empty):
            sections[key] = check_component(key, given, problems) if components else None
    rest = {str(key): value for key, value in values.items() if key not in sections}
    own = {key: parameter for key, parameter in parameters.items() if key not in sections}
    checked = {**check_values(rest, own, prefix, problems, known=sorted(parameters)), **sections}
    return {name: checked[key] for name in keyword_parameters(schema) if (key := name.removesuffix("_")) in checked}


def _check_section(schema: type[T], key: str, values: Any, problems: list[str]) -> T | None:
    if isinstance(values, dict):
        return check_dataclass(schema, values, problems, f"{key}.")
    problems.append(f"{key} = {values!r}: a section with keys is needed here")
    return None


def check_values(
    values: Mapping[str, Any],
    parameters: Mapping[str, inspect.Parameter],
    prefix: str,
    problems: list[str],
    known: list[str] | None = None,
) -> dict[str, Any]:
    """Check values against the parameters' names and annotations.

    Returns:
        The values as the annotations convert them; empty where one is wrong.
    """
    fields: dict[str, Any] = {
        name: (p.annotation, ... if p.default is p.empty else p.default) for name, p in parameters.items()
    }
    # Strict: no "yes" for true, no 1.0 for a count. Extra keys are reported by us, with a suggestion.
    rules: Any = {"strict": True, "allow_inf_nan": False, "protected_namespaces": ()}
    model = pydantic.create_model("section", __config__=rules, **fields)
    for key in values:
        if key not in parameters:
            hint = did_you_mean(key, known or list(parameters))
            problems.append(f"{prefix}{key}: unknown key; {hint} (if it is a recipe's: ~{prefix}{key} removes it)")
    given = {k: v for k, v in values.items() if k in parameters and v != "???"}  # OmegaConf's mark of a missing value
    try:
        checked = model.model_validate(given)
    except pydantic.ValidationError as error:
        messages: dict[str, list[str]] = {}
        for detail in error.errors():
            place, value = _place(given, detail["loc"])
            shown = f" = {value!r}" if detail["type"] != "missing" else ""
            messages.setdefault(f"{prefix}{place}{shown}", []).append(_in_words(detail, f"{prefix}{place}", value))
        problems += [f"{place}: {_joined(texts)}" for place, texts in messages.items()]
        return {}
    return {name: getattr(checked, name) for name in fields}


def _place(given: Mapping[str, Any], location: Sequence[int | str]) -> tuple[str, Any]:
    """The dotted key that a problem is at, as far as its sections go, and the value there."""
    key, *inner = location
    place, value = str(key), given.get(str(key))
    for part in inner:
        if isinstance(value, Mapping) and part in value:
            place, value = f"{place}.{part}", value[part]
    return place, value


# What pydantic calls by Python's words, by its kind of error; the rest reads well without "Input".
WORDS = {
    "missing": "is required",
    "none_required": "must be null",
    "string_type": "must be text",
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("dict_type", "mapping_type"), "must be a section, such as {key: value}"),
    "string_pattern_mismatch": "may only have letters, digits and _ . -",
    "finite_number": "must be a finite number",
}
LIST_ERRORS = ("list_type", "sequence_str", "is_instance_of", "tuple_type")


def reason(detail: Any) -> str:
    """What pydantic found wrong, in the words of a configuration."""
    text = WORDS.get(detail["type"]) or detail["msg"].replace("Input should be", "must be")
    return text.removeprefix("Value error, ").replace("must be False", "must be false")


def _in_words(detail: Any, key: str, value: Any) -> str:
    """The same, where the key is known and may take a list."""
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    of_list = isinstance(value, Sequence) and not isinstance(value, str) and given != value
    if kind in LIST_ERRORS:
        text = "must be a list" if of_list else f"must be a list, such as {key}=[{given}]"
    elif kind in ("too_short", "too_long"):
        word, count = ("least", context["min_length"]) if kind == "too_short" else ("most", context["max_length"])
        text = f"must have at {word} {count} value{'s' if count > 1 else ''}"
    elif kind == "string_type" and isinstance(given, bool | float):
        quoted = f'["{given}"]' if of_list else f'"{given}"'
        text = f"must be text; quote it to have it as text: '{key}={quoted}'"
    else:
        text = reason(detail)
    return f"{given!r} in it {text}" if of_list else text


def _joined(texts: Sequence[str]) -> str:
    """Alternatives, such as "must be 'auto' or a number"."""
    first, *others = dict.fromkeys(texts)
    return " or ".join([first, *(text.removeprefix("must be ") for text in others)])


def check_component(kind: str, section: Any, problems: list[str]) -> dict[str, Any] | None:
    """Check one component's section against its signature, then against its own rules between keys."""
    components = COMPONENTS[kind]
    if not isinstance(section, dict) or not isinstance(section.get("name"), str):
        problems.append(f"{kind}: a section with a name is needed here, such as {kind}={next(iter(components))}")
        return None
    name = section["name"]
    if name not in components:
        problems.append(f"{kind}.name = {name!r}: unknown; {did_you_mean(name, list(components))}")
        return None
    before, parameters = len(problems), components.schema(name)
    problems += [
        f"{kind}.{key}: this file has no default, but a trained model must load without it; give it one, such as None"
        for key, parameter in parameters.items()
        if takes(parameter.annotation, ExistingFile) and parameter.default is parameter.empty
    ]
    checked = check_values(options_of(section), parameters, f"{kind}.", problems)
    if len(problems) == before and (rules := getattr(components[name], "problems", None)):
        problems += [f"{kind}.{line}" for line in rules(checked)]
    return {"name": name, **checked} if len(problems) == before else None
