"""What `make docs` adds to the pages: the reference of keys, the docstrings, and the files that pages link to."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)")  # a link to a file that is not in docs/
DOCUMENTED = (
    "danet.inference.predictor.load",
    "danet.inference.predictor.Predictor",
    "danet.analysis.attention_maps",
    "danet.interfaces",
)


def on_config(config: Any) -> None:
    """Put pages that mkdocs.yml does not name at the end of the contents."""
    pages = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    if others := [page for page in pages if not re.search(rf"\b{page}\b", str(config.nav))]:
        config.nav.append({"More": others})


def on_files(files: Files, config: Any) -> Files:
    """Add the reference, and what the pages link to outside of docs/ with the pictures beside it."""
    files.append(File.generated(config, "keys.md", content=keys()))
    texts = [page.content_string for page in files.documentation_pages()]
    linked = {target for text in texts for target in OUTSIDE.findall(text)}
    results = (path for path in (ROOT / "experiments" / "results").rglob("*") if path.suffix in (".png", ".jpg"))
    pictures = {path.relative_to(ROOT).as_posix() for path in results}
    for target in sorted(linked | pictures):
        if (ROOT / target).is_file():
            files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links out of docs/ to the copies; add docstrings to the page on Python."""
    if page.file.src_uri == "python.md":
        markdown += "\n## Reference\n\n" + "\n\n".join(f"::: {name}" for name in DOCUMENTED)
    return markdown.replace("../docs/", "../") if "/" in page.file.src_uri else markdown.replace("](../", "](")


def keys() -> str:
    """Every configuration file with its comments, by group."""
    parts = ["# All keys", "The files of conf/ and experiments/: every key with its default and what it does."]
    for folder in ("conf", "experiments/recipe", "experiments/ablation", "experiments/scale"):
        for file in sorted((ROOT / folder).rglob("*.yaml"), key=lambda f: (len(f.parts), f.stem != "train", f)):
            if file.is_relative_to(ROOT / "conf" / "hydra") or file.stem == "base":
                continue
            group = file.relative_to(ROOT / folder.partition("/")[0]).parent.as_posix()
            heading = f"## {group}" if group != "." else "## Scripts"
            if heading not in parts:
                parts.append(heading)
            text = file.read_text(encoding="utf-8").partition("\nhydra:\n")[0].strip()
            parts.append(f"### {file.stem}\n\n```yaml\n{text}\n```")
    return "\n\n".join(parts) + "\n"
