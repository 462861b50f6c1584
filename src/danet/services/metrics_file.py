"""metrics.jsonl: the metrics of a run, one row per logged step or evaluation."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danet.services.atomic_files import json_text, naming, write_text


class MetricsFile:
    """metrics.jsonl, the source of all tables and results of a run: one JSON object per line, with its "step".

    Args:
        path: the file; it is created with the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row and write it to the file at once. NaN and infinities become null."""
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json_text(row))

    def rows(self) -> list[dict[str, Any]]:
        """All rows, without a last line that a killed process left incomplete.

        Raises:
            ValueError: a line other than the last is not JSON.
        """
        if not self.path.exists():
            return []
        *lines, torn = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{self.path}, line {number} is not JSON ({error}): repair or delete it") from None
        return rows

    def truncate(self, step: int, *, evaluated: int, score: str) -> None:
        """Drop the rows that a resumed run will write again, and an incomplete last line.

        Args:
            step: step of the checkpoint.
            evaluated: the last step that was evaluated before the checkpoint was saved.
            score: the key that makes a row an evaluation, such as "val/miou".
        """

        def is_kept(row: Mapping[str, Any]) -> bool:
            return row["step"] <= step and not (score in row and row["step"] > evaluated)

        if self.path.exists():
            write_text(self.path, "".join(json_text(row) for row in itertools.takewhile(is_kept, self.rows())))
