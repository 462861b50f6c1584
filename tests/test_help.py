"""--help of every script: its groups, its keys with what they mean, examples."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import environment
from danet.config import REPOSITORY, help
from danet.config.names import known_names

SCRIPTS = sorted(path.stem for path in (REPOSITORY / "src").glob("*.py"))


def shown(script: str, *arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a script prints, run in this process."""
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "src" / f"{script}.py"), run_name="__main__")
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("script", [s if s == "train" else pytest.param(s, marks=pytest.mark.slow) for s in SCRIPTS])
def test_every_key_is_explained(
    script: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(script, capsys=capsys, monkeypatch=monkeypatch)
    keys = text.partition(help.KEYS)[2].partition("\nExamples")[0].splitlines()
    unexplained = [line for line in keys if re.match(r" +[\w.]+: \S", line) and "  # " not in line]
    assert not [line for line in unexplained if not line.strip().startswith("name: ")]  # chosen by its group
    assert text.count(f"\n  python src/{script}.py") + text.count(f"| python src/{script}.py") >= 3


def test_all_groups_are_listed_those_of_experiments_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown("train", "head=fcn", capsys=capsys, monkeypatch=monkeypatch)
    groups = " ".join(text.partition("Groups")[2].partition(help.KEYS)[0].split())
    for part in ("camvid_article, camvid_cpu", "ablation attention, aux_loss", "scale camvid, small"):
        assert part in groups
    assert "    reduction: 8" not in text  # head=fcn has none


def test_comments_are_those_of_the_chosen_option(tmp_path: Path) -> None:
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "mine.yaml").write_text("# A head of mine.\nname: mine\nnew: 1  # what is new\n")
    (tmp_path / "own.yaml").write_text("defaults: [train]\nseed: 3  # of mine\n")
    composed = "\n\nseed: 3\nhead:\n  name: mine\n  new: 1\n  pam: true\nx:\n- a\n- b\n"
    text = help.help_text(f"About\n{help.KEYS}{composed}\n\n\nExamples\n", known_names("train", [tmp_path], "own"))
    for line in ("seed: 3 # of mine", "head: # A head of mine.", "name: mine\n", "new: 1 # what is new", "x: [a, b]"):
        assert line in re.sub(r"(?<=\S) +", " ", text)
    assert re.search(r"pam: true +# position attention", text)
    assert help.help_text("another template", known_names("train")) == "another template"


@pytest.mark.parametrize("options", [["-r"], ["--info"], ["-p", "head"], ["-m"]], ids=str)
def test_other_options_beside_it_change_nothing(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown("evaluate", *options, capsys=capsys, monkeypatch=monkeypatch).startswith("Score a trained model")


@pytest.mark.slow
def test_a_primary_configuration_may_have_a_help_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [train, _self_]\nhydra: {help: {template: 'Mine $FLAGS_HELP'}}\n")
    own = ("--config-dir", str(tmp_path), "--config-name", "mine", "--help")
    command = [sys.executable, str(REPOSITORY / "src" / "train.py"), *own]  # Hydra's own help closes pytest's log
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("Mine --help,-h")


def test_the_shell_completes_options(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "src" / "train.py"), "-sc", "query=bash"]
    line = {"COMP_LINE": "train.py head=dan", "COMP_POINT": "17"}
    done = subprocess.run(command, env={**environment(tmp_path), **line}, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["head=danet", "head=danet_article", "head=danet_clgd", "head=danet_gated"]
