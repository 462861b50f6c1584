"""The report of a conversion."""

from dataclasses import dataclass, field

Shape = tuple[int, ...]


@dataclass(kw_only=True)
class ConversionReport:
    """A conversion, tensor by tensor.

    Attributes:
        title: source and target file.
        facts: properties of the model that were inferred or assumed, as (name, text).
        moved: (source key, target key, target shape) of every tensor.
        filled: target keys that are missing in the source and were set to 0.
        dropped: (source key, why it was not converted).
        notes: other remarks.
    """

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    moved: list[tuple[str, str, Shape]] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """The report without individual keys: tensors are counted per part of the model."""
        parts: dict[str, list[tuple[str, str, Shape]]] = {}
        for row in self.moved:
            parts.setdefault(_part(row[1]), []).append(row)
        table = [("to", "tensors", "numbers", "from")]
        for part, rows in parts.items():
            sources = ", ".join(dict.fromkeys(_part(source) for source, _, _ in rows))
            table.append((part, str(len(rows)), f"{sum(_size(shape) for *_, shape in rows):,}", sources))
        total = sum(_size(shape) for *_, shape in self.moved)
        table.append(("all", str(len(self.moved)), f"{total:,}", ""))
        left, middle, right = (max(len(row[column]) for row in table) for column in range(3))
        lines = [self.title, ""]
        lines += [f"{name:{max(len(n) for n, _ in self.facts)}}  {text}" for name, text in self.facts]
        lines += [""] + [f"{a:{left}}  {b:>{middle}}  {c:>{right}}  {d}".rstrip() for a, b, c, d in table] + [""]
        if self.filled:
            lines.append(f"{len(self.filled)} batch counters (num_batches_tracked) are not in the source; set to 0")
        lines += [f"dropped: {key} ({why})" for key, why in self.dropped]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines).rstrip() + "\n"

    def text(self) -> str:
        """The summary, followed by every key."""
        width = max(len(source) for source, _, _ in self.moved)
        lines = [f"{source:{width}}  ->  {target}  {shape}" for source, target, shape in self.moved]
        lines += [f"{'0':{width}}  ->  {target}" for target in self.filled]
        return self.summary() + "\n" + "\n".join(lines) + "\n"


def _part(key: str) -> str:
    """The first two components of a key, three if the second says little."""
    names = key.split(".")
    return ".".join(names[: 3 if names[1] in ("branches", "aux_classifiers") else 2])


def _size(shape: Shape) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
