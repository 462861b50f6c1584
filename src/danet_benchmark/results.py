"""The results of a benchmark: a JSON file that is complete after every row, so that an interruption loses nothing."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from danet.services import atomic_files
from danet_benchmark.timing import in_words

Row = dict[str, Any]

RATES = ("matmul", "copy")  # of the machine, which are measured with the sections: they differ from hour to hour


class Results:
    """The sections' rows, and who measured them.

    Sections that were measured on the same machine with the same versions earlier are kept until they are measured
    again.

    Args:
        path: the JSON file.
        machine: what the figures depend on; None: as it was when they were measured.
        written: called whenever the file has changed.

    Attributes:
        machine: as given, without its rates, which are the sections'.
        sections: by name: "state" (running, done, failed or interrupted), "rows", "error", "commit", "rates" and more.

    Raises:
        FileNotFoundError: `machine` is None, and nothing has been measured.
        ValueError: the file is not JSON.
    """

    def __init__(self, path: Path, machine: dict[str, Any] | None, written: Callable[[], None] = lambda: None) -> None:
        self.path, self.written = path, written
        earlier: dict[str, Any] = {"machine": None, "sections": {}}
        if path.exists():
            earlier = json.loads(path.read_text())
            for section in earlier["sections"].values():  # of an older version, which kept the newest rates alone
                section.setdefault(
                    "rates", {key: earlier["machine"][key] for key in RATES if key in earlier["machine"]}
                )
        if machine is None and earlier["machine"] is None:
            raise FileNotFoundError(f"{path} is not there: nothing has been measured yet; name sections")
        described: dict[str, Any] = machine or earlier["machine"]
        self.machine = {key: value for key, value in described.items() if key not in RATES}
        self._rates = {key: described[key] for key in RATES if key in described}
        same = all(
            self.machine.get(key) == (earlier["machine"] or {}).get(key) for key in ("device", "cpu", "versions")
        )
        self.sections: dict[str, dict[str, Any]] = earlier["sections"] if same else {}

    @contextlib.contextmanager
    def section(self, name: str, commit: str | None) -> Iterator[None]:
        """While the section's rows are measured. Its failure is noted and does not leave; an interruption does."""
        section: dict[str, Any] = {
            "state": "running",
            "error": None,
            "commit": commit,
            "command": [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]],  # without the place of the interpreter
            "rates": self._rates,
            "rows": [],
        }
        self.sections[name] = section
        begin = time.monotonic()
        try:
            self._write()
            yield
            section["state"] = "done"
        except Exception as error:  # whatever a foreign library raises
            section.update(state="failed", error=in_words(error))
        except BaseException:
            section["state"] = "interrupted"
            raise
        finally:
            section["seconds"] = time.monotonic() - begin
            self._write()

    def add(self, name: str, rows: Iterable[Row]) -> None:
        """Add rows to a section, each as soon as it is there."""
        for row in rows:
            self.sections[name]["rows"].append(row)
            self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.write_json(self.path, {"machine": self.machine, "sections": self.sections})
        self.written()
