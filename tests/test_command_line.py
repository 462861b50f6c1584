"""Command lines: paths as they were typed, options of the user's own, W&B's spelling."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import command_line
from command_line import plugins
from command_line.options import split
from command_line.paths import quote_paths

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.override_parser.overrides_parser import OverridesParser

import danet.config
from conftest import TINY, environment, load, run_folders, train_command
from danet.analysis.attention_options import AttentionConfig
from danet.analysis.summary import SummaryConfig
from danet.arguments import ExistingFile, ExistingFolder, Folder, takes
from danet.config import REPOSITORY, ConfigError, RunConfig, quoted, shell_word, unquoted
from danet.evaluation.scoring import ScoringConfig
from danet.registry import keyword_parameters
from danet.tools.convert.options import ConvertConfig
from danet.tools.export.export import ExportConfig
from danet.tools.predict.prediction import PredictConfig
from danet.tools.report.report import ReportConfig
from danet.tools.serve.options import ServeConfig
from danet_benchmark.settings import BenchmarkConfig
from hydra_plugins.danet_search_path import ExperimentsSearchPath

ODD = [
    *("a b/*.jpg", "a,b.jpg", "a=b", "~/x", "[a](b){c}", "[a]", "12", "1e3", "true", "it's", "Straße/人.png", "a\\"),
    *("\\'", "a#b;c&d!", "-", "**/*.png", "x:y", " a", "a ", '"', "a\\\\'b'", "My Data (v2)", "epoch=3,lr=0.1", "50%"),
    *("数据集", "C:\\data\\x", "choice(a,b)", "a$b", "`a`", "{a: 1}", "null.png", "a\tb", "'a'b", "über,alles=1"),
]


def values(override: str) -> Any:
    """What Hydra takes an override's value for; of a sweep all values."""
    read = OverridesParser.create().parse_override(override)
    if not read.is_sweep_override():
        return read.value()
    return [OverridesParser.create().parse_override(f"x={text}").value() for text in read.sweep_string_iterator()]


@pytest.mark.parametrize("path", ODD)
def test_paths_arrive_as_they_were_typed(path: str) -> None:
    (argument,) = quote_paths([f"input={path}"], ("input",))
    assert argument.startswith("input=")
    assert values(argument) == path
    assert not OverridesParser.create().parse_override(argument).is_sweep_override()
    assert quote_paths([argument], ("input",)) == [argument]  # quoted once
    assert unquoted(quoted(path)) == path
    assert shlex.split(shell_word(f"input={path}")) == [f"input={path}"]


@pytest.mark.parametrize("path", ["Straße/人.pt", "My Data (v2)", "epoch=3,lr=0.1", "it's", "a#b;c", "C:\\数据\\"])
def test_a_value_that_the_grammar_refuses_is_a_text_whatever_its_key(path: str) -> None:
    (argument,) = quote_paths([f"+backbone.new={path}"], ())
    assert values(argument) == path


def test_other_arguments_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = ("run", "input", "output")
    given = ["write=[labels,color]", "run=null", "input=", "output='a b'", 'run="c d"', "hydra.x=a b", "~train.steps"]
    given += ["x=[1,", "x={a:1", "backbone.pretrained=false", "output=x", "seed=0,1"]
    assert quote_paths(given, paths) == given
    swept = ["run=a,b", "seed=0,1,2", "x=choice(a,b)", "x=glob(*)", "optimizer.lr=tag(log,interval(1e-4,1e-1))"]
    swept += ["head.cam=true,false", "run='a,b','c'", "augment.crop_size=[8,8],[9,9]", "input=null"]
    assert quote_paths(swept, paths, multirun=True) == swept


def test_hydras_own_backslashes_still_work(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    given = [f"input={tmp_path}/a\\=b"]
    assert quote_paths(given, ("input",)) == given
    (tmp_path / "a\\=b").mkdir()  # a folder that is called so is meant first
    (argument,) = quote_paths(given, ("input",))
    assert values(argument) == f"{tmp_path}/a\\=b"


def test_commas_of_a_sweep_separate_those_of_a_path_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b", "a", "数据 (x=1)", "it's, mine"):
        Path(name).mkdir()
    cases = {
        "a,b": "a,b",
        "a,a,b": ["a", "a,b"],
        "数据 (x=1),a,b,a": ["数据 (x=1)", "a,b", "a"],
        "it's, mine,a": ["it's, mine", "a"],
        f"{tmp_path}/数据 (x=1)": f"{tmp_path}/数据 (x=1)",
        "无,有": ["无", "有"],  # none of them is there
        "null,a": [None, "a"],
    }
    for typed, expected in cases.items():
        (argument,) = quote_paths([f"dataset.root={typed}"], ("dataset.root",), multirun=True)
        assert values(argument) == expected, typed
    (argument,) = quote_paths(["backbone.pretrained=false,/x/数=据.pth"], (), multirun=True)
    assert values(argument) == [False, "/x/数=据.pth"]
    (argument,) = quote_paths(["tracking.group=实验,b"], (), multirun=True)
    assert values(argument) == ["实验", "b"]


def test_lists_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b", "c", "数据 (x=1)"):
        Path(name).mkdir()
    cases = {"[c]": ["c"], "[a,b]": ["a,b"], "[c, 数据 (x=1),a,b]": ["c", "数据 (x=1)", "a,b"], "[x=1,c]": ["x=1", "c"]}
    for typed, expected in cases.items():
        (argument,) = quote_paths([f"runs={typed}"], (), ("runs",))
        assert values(argument) == expected, typed
    (argument,) = quote_paths(["tracking.tags=[a,实验, b c]"], ())
    assert values(argument) == ["a", "实验", "b c"]
    assert values(*quote_paths(["runs=c"], (), ("runs",))) == ["c"]
    assert values(*quote_paths(["hydra.searchpath=a,b"], ())) == ["a,b"]
    for stays in ("runs=[]", "runs=[c,d]", "runs=[[c]", "runs=null"):
        assert quote_paths([stays], (), ("runs",)) == [stays]


@pytest.mark.parametrize(
    ("line", "overrides", "options"),
    [
        ("a=1 -m b=2", ["a=1", "b=2"], ["-m"]),
        ("--optimizer.lr=0.1 --seed=1 -m", ["optimizer.lr=0.1", "seed=1"], ["-m"]),
        ("--in=x --run=y --resume=auto", ["in=x", "run=y", "resume=auto"], []),
        ("--epochs 3 --train.steps 4 a=1", ["epochs=3", "train.steps=4", "a=1"], []),
        ("--config-dir x=y a=1", ["a=1"], ["--config-dir", "x=y"]),
        ("a=1 --config-dir=x=y", ["a=1"], ["--config-dir=x=y"]),
        ("-cd x -cn y a=1", ["a=1"], ["-cd", "x", "-cn", "y"]),
        ("--config-d x a=1 --multi", ["a=1"], ["--config-dir", "x", "--multirun"]),
        ("a=1 --cfg job --resolve -p head", ["a=1"], ["--cfg", "job", "--resolve", "-p", "head"]),
        ("--info a=1", ["a=1"], ["--info"]),
        ("--info defaults a=1", ["a=1"], ["--info", "defaults"]),
        ("--help", [], ["--help"]),
    ],
)
def test_options_are_hydras_the_rest_are_overrides(line: str, overrides: list[str], options: list[str]) -> None:
    assert split(line.split()) == (overrides, options)


def test_runs_are_found_by_name_and_the_newest_as_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danet.config.runs.OUTPUTS", tmp_path)
    with pytest.raises(ConfigError, match="run = 'latest': there is no run with a best checkpoint in"):
        danet.config.with_run_folders(["run=latest"])
    places = ["2026-01-02/10-00-00_b", "2026-01-01/10-00-00_a", "sweeps/s/fcn/seed0", "2026-01-03/10-00-00_b"]
    for age, place in enumerate(places):
        (tmp_path / place).mkdir(parents=True)
        file = tmp_path / place / "config.yaml"
        file.write_text("")
        os.utime(file, (1000 - age, 1000 - age))
        (tmp_path / place / "checkpoints").mkdir()
        (tmp_path / place / "checkpoints" / "best.pt").touch()
    (tmp_path / "2026-01-04" / "10-00-00_stopped").mkdir(parents=True)  # before its first evaluation
    (tmp_path / "2026-01-04" / "10-00-00_stopped" / "config.yaml").touch()
    folders = [tmp_path / place for place in places]
    changed = danet.config.with_run_folders(["x=1", "run=latest", "run=a", "latest"])
    assert changed == ["x=1", f"run='{folders[1]}'", f"run='{folders[1]}'", "latest"]
    assert danet.config.with_run_folders(["run=latest"]) == [f"run='{folders[0]}'"]
    assert danet.config.with_run_folders(["run=10-00-00_a"]) == [f"run='{folders[1]}'"]
    for stays in (["run=null"], ["run=c"], ["run=a,b"], [f"run={folders[3]}"], ["split=test"]):
        assert danet.config.with_run_folders(stays) == stays
    with pytest.raises(ConfigError, match=r"run = .b.: 2 runs have this name: .*00_b, .*00_b; give a folder"):
        danet.config.with_run_folders(["run=b"])
    with pytest.raises(ConfigError, match=r"is no run's folder, for it has no config\.yaml; the newest run is .*04/10"):
        danet.config.require_run([f"run={tmp_path}"])
    sweep = f"sweep='{tmp_path / 'sweeps' / 's'}'"
    assert danet.config.with_sweep_folder(["a=1", "sweep=s", "sweep=none"]) == ["a=1", sweep, "sweep=none"]
    danet.config.require_run([f"run={folders[0]}"])


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of the user's own with a recipe, a head and a primary configuration."""
    folder = tmp_path / "my conf (1)"
    for name, text in {
        "recipe/mine": "# @package _global_\nname: mine\ntrain: {steps: 2, batch_size: 2}\n",
        "head/tuned": "defaults: [danet]\nname: danet\nreduction: 4\nown_key: 1\n",
        "own": "defaults:\n  - train\n  - override recipe: mine\n  - _self_\ntrain: {steps: 3}\nmine: {new: 0}\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_folders_of_ones_own_are_looked_into(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given: list[tuple[list[str], list[str]]] = [
        ([], ["--config-dir", "my conf (1)"]),
        ([], [f"--config-dir={mine}"]),
        ([], ["-cd", str(mine)]),
        ([f"hydra.searchpath=[file://{mine}]"], []),
        ([f"hydra.searchpath=[file://x,'file://{mine}']"], []),
    ]
    for overrides, options in given:
        folders = command_line.config_folders(overrides, options)
        assert folders is not None
        assert folders[-1].absolute() == mine
        Path("x").mkdir(exist_ok=True)
        danet.config.check_arguments(
            ["recipe=mine", "head=tuned", "head.own_key=2", "recipe=quickstart"], "train", folders
        )
        with pytest.raises(ConfigError) as caught:
            danet.config.check_arguments(["recipe=mnie", "head=tunde"], "train", folders)
        assert [line.rpartition("; ")[2] for line in caught.value.problems] == [
            "did you mean 'mine'?",
            "did you mean 'tuned'?",
        ]
    for overrides in (["hydra.searchpath=[pkg://my.conf]"], ["hydra.searchpath=[${oc.env:MINE}]"]):
        assert command_line.config_folders(overrides, []) is None  # Hydra knows better
    danet.config.check_arguments(["recipe=whatever", "train.batch_size=4"], "train", None)


def told(*arguments: str, folder: Path, own_primary: str | None = None) -> list[str]:
    """What is wrong with arguments, where a folder of the user's is given."""
    try:
        danet.config.check_arguments(arguments, "train", [folder], own_primary=own_primary)
    except ConfigError as error:
        return error.problems
    return []


def test_the_keys_of_ones_own_primary_configuration_are_known(mine: Path) -> None:
    assert not told("train.steps=4", "head.reduction=2", "mine.new=1", folder=mine, own_primary="own")
    assert told("head.reducton=3", "mine.nwe=1", folder=mine, own_primary="own.yaml") == [
        "head.reducton: unknown key; did you mean 'head.reduction'?",
        "mine.nwe: unknown key; did you mean 'mine.new'?",
    ]
    assert told(folder=mine, own_primary="onw") == ["--config-name onw: no such file; did you mean 'own'?"]
    missing = told(folder=mine / "nowhere", own_primary="own")
    assert missing[0] == f"{mine / 'nowhere'}: no such folder of configuration"
    assert missing[1].endswith("--config-dir=FOLDER says where it is")


def test_an_option_has_the_keys_of_those_it_begins_with(mine: Path) -> None:
    assert not told("head=tuned", "head.pam=false", "head.own_key=2", folder=mine)
    assert told("head=tuned", "head.bottleneck=2", folder=mine)
    (mine / "head" / "far.yaml").write_text("defaults: [/somewhere/else@_here_]\n")
    assert not told("head=far", "head.whatever=2", folder=mine)


def test_own_files_that_would_be_passed_over_are_told(mine: Path) -> None:
    for name, text in {"recipe/local": "name: x\n", "head/danet": "name: danet\n", "train": "seed: 1\n"}.items():
        (mine / f"{name}.yaml").write_text(text)
    assert told("recipe=local", folder=mine) == [
        f"{mine}/head/danet.yaml, {mine}/train.yaml: not used, because there are ours of this name, which come first; "
        "rename yours",
        f"{mine}/recipe/local.yaml: needs the first line '# @package _global_', as every recipe does",
    ]


def test_an_option_that_is_chosen_already_is_not_added() -> None:
    with pytest.raises(ConfigError) as caught:
        danet.config.check_arguments(["+recipe=none", "+ablation=attention", "+head.new=1", "+other=1"])
    assert caught.value.problems == [
        "+recipe=none: recipe has an option already; leave out the +: recipe=none",
        "+ablation=attention: ablation has an option already; leave out the +: ablation=attention",
    ]


@pytest.mark.parametrize("primary", ["evaluate", "prepare", "report"])
def test_a_script_without_run_folders_refuses_one(primary: str) -> None:
    with pytest.raises(ConfigError, match=r"hydra\.run\.dir: this script makes no run folder; --help shows"):
        danet.config.check_arguments(["hydra.run.dir=x"], primary)
    danet.config.check_arguments(["hydra.run.dir=x", "hydra.sweep.dir=x", "hydra.verbose=true"], "train")


def test_prepare_knows_its_keys() -> None:
    with pytest.raises(ConfigError, match="did you mean 'dataset.root'"):
        danet.config.check_arguments(["dataset.rot=x"], "prepare")
    with pytest.raises(ConfigError, match="dataste: unknown key; did you mean 'dataset'"):
        danet.config.check_arguments(["dataste=camvid"], "prepare")
    danet.config.check_arguments(["dataset=camvid", "dataset.root=/x/a=b"], "prepare")


def script(name: str, *arguments: str, cwd: Path) -> dict[str, Any]:
    """The configuration that a script composes."""
    command = [sys.executable, str(REPOSITORY / "src" / f"{name}.py"), *arguments, "--cfg", "job"]
    done = subprocess.run(
        command, cwd=cwd, env=environment(cwd / "outputs"), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return yaml.safe_load(done.stdout)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("head.dropout=2", ["head.dropout = 2: must be less than 1"]),
        ("head.dropuot=0.1 train.steps=-1", ["head.dropuot: unknown key; did", "train.steps = -1: must be"]),
        ("head.dropuot=0.1 backbone=resnet_tiny backbone.widths=[1]", ["head.dropuot", "backbone.widths"]),
        (
            "backbone=resnet101 backbone.output_stride=7 schedule.warmup=long seed=-1",
            ["backbone.output_stride = 7", "schedule.warmup = 'long': not a valid", "seed = -1: must be"],
        ),
        ("loss.weights={main:-1} optimizer.lr=0", ["loss.weights.main = -1: must be", "optimizer.lr = 0: must be"]),
    ],
)
def test_wrong_values_are_told_without_the_seconds_of_pytorchs_import(
    line: str, told: list[str], tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('imported')")
    command = [sys.executable, str(REPOSITORY / "src" / "train.py"), *line.split()]
    found = {**environment(tmp_path), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=found, capture_output=True, text=True, timeout=60)
    first, *lines = done.stderr.splitlines()
    assert first.startswith(f"ConfigError: {len(told)} problem")
    for wanted, given in zip(told, lines, strict=True):
        assert given.strip().startswith(wanted)


@pytest.mark.parametrize("line", ["head=fcn head.reduction=4 seed=-1", "head.reduction=4 head=danet,fcn seed=-1 -m"])
def test_keys_that_a_chosen_option_lacks_are_told(line: str, tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "src" / "train.py"), *line.split()]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=60)
    assert "  head.reduction: head=fcn has no such key; it has head.align_corners, head.dropout" in done.stderr
    assert ("seed = -1: must be" in done.stderr) == ("-m" not in line)  # a sweep's runs are checked as they begin
    assert "HYDRA_FULL_ERROR" not in done.stderr


def test_unknown_names_are_told_also_where_hydra_only_prints(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "src" / "train.py"), "head.aux_los=true", "--cfg", "job"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "head.aux_los: unknown key; did you mean 'head.aux_loss'?" in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-m --cfg job seed=0,1", "-m and --cfg: do not go together; --cfg shows a single run: leave out -m"),
        ("--info -r", "--info and -r: do not go together"),
        ("--resolve", "--resolve: is a part of --cfg; write --cfg job --resolve"),
        ("hydra/launcher=slurm -m", "hydra/launcher=slurm: unknown option; "),
        ("hydra/sweeper=optun -m", "hydra/sweeper=optun: unknown option; did you mean 'optuna'?"),
        (
            "hydra/sweeper=optuna hydra.sweeper.n_trails=3 -m",
            "hydra.sweeper.n_trails: hydra/sweeper=optuna has no such key; did you mean 'n_trials'?",
        ),
        (
            "hydra.sweeper.n_trials=3 -m",
            "hydra.sweeper.n_trials: hydra/sweeper=variants has no such key; add hydra/sweeper=optuna",
        ),
        ("hydra.launcher.n_jobs=3 -m", "hydra.launcher.n_jobs: hydra/launcher=basic has no such key"),
        (
            "hydra.sweeper.n_trials=3",
            "hydra.sweeper.n_trials=3: has no effect without -m: python src/train.py -m ",
        ),
        ("head=null --help", "head=null: an option is needed"),
    ],
)
def test_what_hydra_would_answer_with_a_listing_is_told_in_a_line(
    line: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *line.split()])
    with pytest.raises(SystemExit) as ended:
        command_line.start(pytest.fail, "train")
    assert said in str(ended.value.code)


def test_a_launcher_that_is_not_installed_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "_plugins", lambda *_: {"basic": set()})
    (line,) = plugins.plugin_problems(["hydra/launcher=ray"], [], None)
    assert line == "hydra/launcher=ray: is not installed; run pip install 'danet[ray]'"
    monkeypatch.setattr(plugins, "_plugins", lambda *_: {"basic": set(), "submitit_slurm": set()})
    (line,) = plugins.plugin_problems(["hydra/launcher=slurm"], [], None)
    assert line == "hydra/launcher=slurm: unknown option; did you mean 'submitit_slurm'?"
    monkeypatch.undo()
    own = tmp_path / "hydra" / "launcher" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("_target_: mine\nslots: 2\n")
    given = ["hydra/launcher=mine", "hydra.launcher.slots=3"]
    assert not plugins.plugin_problems(given, [tmp_path], None)
    assert not plugins.plugin_problems(["hydra.launcher.slots=3"], [tmp_path], "own")  # which may choose one
    assert plugins.plugin_problems(["hydra/launcher=mien"], [tmp_path], None)


def test_ablation_null_is_taken_as_no_ablation(tmp_path: Path) -> None:
    assert script("train", "ablation=null", "scale=null", cwd=tmp_path)["name"] == "quickstart"


def test_own_options_and_an_own_primary_configuration_compose(mine: Path, tmp_path: Path) -> None:
    found = script("train", "--config-dir", str(mine), "recipe=mine", "--seed=3", f"init_from={mine}", cwd=tmp_path)
    assert (found["name"], found["train"]["steps"], found["seed"], found["init_from"]) == ("mine", 2, 3, str(mine))
    found = script("train", "--config-dir", mine.name, "--config-name", "own", "head=tuned", cwd=tmp_path)
    assert (found["name"], found["train"]["steps"], found["head"]["reduction"]) == ("mine", 3, 4)
    # What the command line adds does not take the place of experiments/.
    found = script("train", f"hydra.searchpath=[file://{mine}]", "recipe=camvid_cpu", "head=tuned", cwd=tmp_path)
    assert (found["name"], found["head"]["reduction"]) == ("camvid_cpu", 4)


def test_the_project_in_the_documentation_composes(tmp_path: Path) -> None:
    text, mine = (REPOSITORY / "docs" / "configuration.md").read_text(), tmp_path / "mine"
    recipe, primary = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    pooled = "defaults: [danet]\nreduction: 4\n"
    for name, content in {"recipe/night": recipe, "myconf": primary, "head/pooled": pooled}.items():
        (mine / f"{name}.yaml").parent.mkdir(parents=True, exist_ok=True)
        (mine / f"{name}.yaml").write_text(content)
    found = script("train", "extensions=mine", "--config-name", "myconf", "head.pam=false", cwd=tmp_path)
    assert (found["name"], found["seed"], found["train"]["epochs"]) == ("night", 7, 20)
    assert (found["head"]["reduction"], found["head"]["pam"]) == (4, False)


def test_experiments_are_found_by_the_scripts_here_alone() -> None:
    for main, expected in (("conf", ["danet"]), ("tests", [])):
        search_path = ConfigSearchPathImpl()
        search_path.append("main", str(REPOSITORY / main))
        ExperimentsSearchPath().manipulate_search_path(search_path)
        assert [entry.provider for entry in search_path.get_path()][1:] == expected


@pytest.mark.parametrize("name", ["数据集", "My Data (v2)", "epoch=3,lr=0.1", 'it\'s \\ "50%" [1]'])
def test_a_runs_data_set_is_passed_on_wherever_it_is(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    config = load(["dataset=camvid", *quote_paths([f"dataset.root={folder}"], ("dataset.root",))])
    assert config.dataset["root"] == str(folder)
    (folder / "config.yaml").write_text(config.yaml())
    overrides = quote_paths(danet.config.with_dataset_of_run([f"run={folder}"]), ("run", "dataset.root"))
    assert len(overrides) > 2
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        composed = compose("evaluate", overrides=overrides)
    assert composed.run == str(folder)
    assert dict(composed.dataset) == config.dataset
    resumed = load(
        quote_paths([f"resume={folder}", f"runtime.cache={folder}"], ("resume", "runtime.cache", "dataset.root"))
    )
    assert resumed.resume == resumed.runtime.cache == str(folder)
    assert resumed.dataset == config.dataset


# ---- every script ----------------------------------------------------------------------------------------------------

DATASET_PATHS = {"dataset.root", "dataset.images", "dataset.labels", "dataset.group"}
SCHEMAS: dict[str, Any] = {
    "train": RunConfig,
    "evaluate": ScoringConfig,
    "predict": PredictConfig,
    "attention": AttentionConfig,
    "export": ExportConfig,
    "convert": ConvertConfig,
    "summary": SummaryConfig,
    "report": ReportConfig,
    "serve": ServeConfig,
    "benchmark": BenchmarkConfig,
    "inspect_data": RunConfig,
}


def holds_path(annotation: Any) -> bool:
    """Whether a type or one inside of it is a path's."""
    return any(takes(annotation, kind) for kind in (ExistingFile, ExistingFolder, Folder))


def path_keys(schema: Any) -> set[str]:
    """The keys of a configuration that are paths by their type."""
    found = set()
    for name, parameter in keyword_parameters(schema).items():
        key = name.removesuffix("_")
        if is_dataclass(parameter.annotation):
            found |= {f"{key}.{inner}" for inner in path_keys(parameter.annotation)}
        elif holds_path(parameter.annotation):
            found.add(key)
    return found


def declared(name: str) -> set[str]:
    """The keys that a script names to `command_line.start`, read from its source."""
    tree = ast.parse((REPOSITORY / "src" / f"{name}.py").read_text())
    constants = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}  # type: ignore[attr-defined]
    (call,) = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "command_line.start"]
    assert ast.literal_eval(call.args[1]) == name
    given = [*call.args[2:], *(keyword.value for keyword in call.keywords if keyword.arg == "lists")]
    return {key for node in given for key in ast.literal_eval(constants.get(ast.unparse(node), node))}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_path_of_a_script_is_taken_literally(name: str) -> None:
    keys = path_keys(SCHEMAS[name])
    if "dataset" in keyword_parameters(SCHEMAS[name]):
        keys |= DATASET_PATHS if name != "convert" else set()
    assert keys <= declared(name)


def test_all_scripts_start_in_the_same_way() -> None:
    scripts = {path.stem for path in (REPOSITORY / "src").glob("*.py")}
    assert scripts == {*SCHEMAS, "prepare"}
    assert declared("prepare") == DATASET_PATHS


# ---- whole runs ------------------------------------------------------------------------------------------------------


def run_script(name: str, arguments: Sequence[str], outputs: Path) -> str:
    command = [sys.executable, str(REPOSITORY / "src" / f"{name}.py"), *arguments]
    done = subprocess.run(command, env=environment(outputs), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_sweep_in_a_folder_of_any_name(tmp_path: Path) -> None:
    """Its jobs, a second start, and the command for the report that it prints."""
    outputs = tmp_path / 'My 数据 (a,b)=it\'s 50% "q" \\x'
    caches = [tmp_path / "缓存 (1)", tmp_path / "a=b, c"]
    for cache in caches:
        cache.mkdir()
    tiny = [option for option in TINY if not option.startswith("train.steps")]
    arguments = ["-m", *tiny, "train.epochs=0.5", f"runtime.cache={','.join(map(str, caches))}", "sweep.name=any"]
    first = run_script("train", arguments, outputs)
    assert "2 of 2 runs to do" in first
    results = sorted((outputs / "sweeps" / "any").rglob("result.json"))
    assert len(results) == 2
    assert {json.loads(path.read_text())["step"] for path in results} == {3}  # epochs, not the recipe's steps
    configs = [yaml.safe_load((path.parent / "config.yaml").read_text()) for path in results]
    assert {config["runtime"]["cache"] for config in configs} == set(map(str, caches))
    assert "0 of 2 runs to do" in run_script("train", arguments, outputs)
    (command,) = [line for line in first.splitlines() if line.startswith("table: ")]
    name, *rest = shlex.split(command.removeprefix("table: python "))
    assert Path(name).stem == "report"
    assert "wrote" in run_script("report", rest, outputs)


@pytest.mark.slow
def test_the_printed_command_resumes_a_run_in_a_folder_of_any_name(tmp_path: Path) -> None:
    outputs = tmp_path / 'My 数据 (a,b)=it\'s 50% "q" \\x'
    tiny = [option for option in TINY if not option.startswith("train.steps")]
    process = subprocess.Popen(
        train_command(*tiny, "train.steps=100000"), env=environment(outputs), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    shown = ""
    for line in process.stdout:
        shown += line
        if line.startswith("step "):
            process.terminate()
    assert process.wait() == 75
    command = shown.rpartition("python src/train.py ")[2]
    again = subprocess.Popen(
        train_command(*shlex.split(command)), env=environment(outputs), stdout=subprocess.PIPE, text=True
    )
    assert again.stdout is not None
    for line in again.stdout:
        if line.startswith("step "):
            again.terminate()
    assert again.wait() == 75
    assert len(run_folders(outputs)) == 1
