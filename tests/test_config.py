"""One configuration: everything wrong is said at once, in words that help; everything in the repository is right."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import danet.config
import danet.config.cross_checks
from conftest import load
from danet import registry
from danet.arguments import ExistingFile
from danet.config import REPOSITORY, ConfigError
from danet.config.sections import EvaluateConfig, InferenceConfig, RuntimeConfig, TrackingConfig, TrainConfig
from danet.evaluation.options import ScoringOptions
from danet.losses.segmentation_loss import OUTPUT_WEIGHTS
from danet.registry import HEADS, keyword_parameters
from danet.schema import COMPONENTS, check_component
from danet.services.tracking import artifacts
from danet.training import run_folder

# Of components and tracking; the other groups have tests of their own.
OTHER = ("protocol", "device", "inference", "runtime")
GROUP_FILES = sorted(p for p in (REPOSITORY / "conf").glob("*/*.yaml") if p.parent.name not in OTHER)
RECIPES = sorted((REPOSITORY / "experiments" / "recipe").glob("*.yaml"))


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(overrides, probe=True)
    return caught.value.problems


def test_every_problem_is_reported_at_once_in_words_that_help() -> None:
    found = problems(
        "+head.aux_los=true",
        "head.dropout=1.5",
        "train.batch_size=eight",
        "train.log_every=2 days",
        "schedule.power=-1",
        "+evaluete=1",
        "init_from=/no/such/file.pt",
        "optimizer.name=sdg",
        "loss.weights={main: 1.0, pam: minus}",
        "dataset.size=yes",
    )
    expected = [
        ("head.aux_los:", "did you mean 'aux_loss'"),
        ("head.dropout = 1.5", "less than 1"),
        ("train.batch_size = 'eight'", "whole number"),
        ("train.log_every = '2 days'", "epochs"),
        ("schedule.power = -1", "greater than 0"),
        ("evaluete:", "did you mean 'evaluate'"),
        ("init_from = '/no/such/file.pt'", "/no/such/file.pt"),
        ("optimizer.name = 'sdg'", "did you mean 'sgd'"),
        ("loss.weights", "number"),
        ("dataset.size = 'yes'", "whole number"),
    ]
    assert len(found) == len(expected), found
    for beginning, hint in expected:
        [line] = [line for line in found if line.startswith(beginning)]
        assert hint in line
        assert "\n" not in line


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.batch_size=6", "train.accumulate_steps=4"], "train.batch_size = 6.*multiple"),
        (["head.pam=false", "head.cam=false"], "head.*fcn"),
        (["~loss.weights.cam"], "loss.weights: .*'cam'"),
        (["auxiliary_head=true", "~loss.weights.aux"], "loss.weights: .*'aux'"),
        (["+loss.weights.pma=1.0"], "loss.weights.pma: .*'pam'"),
        (["loss.weights={main: 0, pam: 0, cam: 0}"], "loss.weights: all are 0"),
        (["head.reduction=64"], "reduction=64"),
        (["dataset=camvid", "dataset.root=/no/such/folder"], "dataset: .*/no/such/folder"),
        (["name=a/../b"], "name = "),
        (["train.eval_every=0"], "train.eval_every = 0"),
        (["seed=100000000000000000000000"], "seed"),
        (["augment=standard", "augment.transforms.0.RandomScaleCrop.flip=often"], "augment.*RandomScaleCrop.flip"),
        (["backbone=resnet50", "backbone.multi_grid=[4,8]"], "backbone.multi_grid.*3"),
        (["backbone=resnet50", "backbone.stem=deep", "backbone.pretrained=imagenet"], "backbone.*stem"),
        (["loss.class_weights=[1.0,2.0]"], "loss.class_weights: 2 .*shapes has 9"),
        (["augment=standard", "augment.crop_size=96"], "augment.crop_size = 96: .*height, width"),
        (["augment=crop", "augment.crop_size=[64]"], r"augment.crop_size = \[64\]: must be .height, width"),
        (["resume=/no/such/run"], "resume = '/no/such/run'.*config.yaml"),
        (["seed=-1"], "seed = -1"),
        (["seed=???"], "seed.*required"),
        (["train=3"], "train = 3"),
        (["name=${nothing.here}"], "nothing.here|name"),
    ],
)
def test_rules_between_keys(overrides: list[str], words: str) -> None:
    found = problems(*overrides)
    assert len(found) == 1
    assert re.search(words, found[0]), found


def test_seed_zero_and_numbers_without_a_point_are_as_good_as_others() -> None:
    config = load(["seed=0", "optimizer.lr=1", "train.max_grad_norm=5"])
    assert config.seed == 0
    assert config.optimizer["lr"] == 1
    assert config.train.max_grad_norm == 5


def test_a_schedule_that_never_takes_effect_is_warned_of() -> None:
    article = load(["recipe=camvid_article", "schedule.warmup=10"])
    [warning] = danet.config.cross_checks.warnings(article, num_images=369)
    assert "step (every=50 epochs" in warning
    assert "never takes effect in 2307 steps (50.0163 epochs)" in warning
    earlier = load(["recipe=camvid_article", "schedule.every=49 epochs"])
    assert not danet.config.cross_checks.warnings(earlier, num_images=369)
    steps = ["schedule=step", "schedule.every=30 epochs", "train.batch_size=4"]
    assert danet.config.cross_checks.warnings(
        load([*steps, "train.steps=7500"]), num_images=1000
    )  # 30 epochs are 7500 steps
    assert not danet.config.cross_checks.warnings(load([*steps, "train.steps=7502"]), num_images=1000)
    assert not danet.config.cross_checks.warnings(load(["schedule=constant"]), num_images=1000)
    [warning] = danet.config.cross_checks.warnings(load(["train.steps=50", "schedule.warmup=50"]), num_images=8)
    assert warning == "schedule.warmup = 50: the run of 50 steps ends before the warm-up does"
    for count in (1, 2, 3):
        few = [f"train.steps={count}", "schedule.warmup=0"]
        assert not danet.config.cross_checks.warnings(load(few), num_images=8)
        epochs = ["recipe=none", f"train.epochs={count}", "train.batch_size=8"]
        assert not danet.config.cross_checks.warnings(load(epochs), num_images=7)


def test_what_tensorboard_does_not_take_is_told() -> None:
    given = ["tracking=tensorboard", "tracking.alerts=[nan,crash]", "tracking.log_checkpoint=true"]
    text = "tracking.alerts, tracking.log_checkpoint: without effect in TensorBoard"
    assert text in danet.config.cross_checks.warnings(load(given), 100)
    assert text not in danet.config.cross_checks.warnings(load([*given, "tracking=disabled"]), 100)


def test_frozen_random_weights_are_told() -> None:
    frozen = ["backbone=resnet18", "backbone.freeze=2", "backbone.freeze_batchnorm=true"]
    text = "backbone.freeze, backbone.freeze_batchnorm: freezes random weights; set backbone.pretrained or init_from"
    assert text in danet.config.cross_checks.warnings(load([*frozen, "backbone.pretrained=false"]), 100)
    assert text not in danet.config.cross_checks.warnings(load([*frozen, "backbone.pretrained=imagenet"]), 100)


def test_the_saved_yaml_gives_the_same_configuration() -> None:
    config = load(["augment=strong", "augment.crop_size=[96,64]", "train.ema_decay=0.99"])
    again = danet.config.load(OmegaConf.create(config.yaml()))  # type: ignore[arg-type]
    assert again == config
    crop = config.augment["transforms"][0]["RandomScaleCrop"]
    assert (crop["height"], crop["width"]) == (96, 64)


def test_layer_decay_needs_a_backbone_with_layer_groups() -> None:
    assert load(["optimizer.layer_decay=0.8"]).optimizer["layer_decay"] == 0.8
    (line,) = problems("optimizer.layer_decay=0.8", "backbone=mit")
    assert line == "optimizer.layer_decay = 0.8: backbone mit has no layer groups. Set it to null"


def test_the_weights_of_all_losses_are_one_file_and_one_key_can_be_set() -> None:
    for name in ("cross_entropy", "dice"):
        loss = load([f"loss={name}", "loss.weights.aux=0.7"]).loss
        assert loss["weights"] == OUTPUT_WEIGHTS | {"aux": 0.7}


def test_identity_ignores_where_and_how_but_not_what() -> None:
    base = load().identity()
    assert load(["runtime.num_workers=0", "tracking=disabled", "name=other"]).identity() == base
    assert load(["seed=1"]).identity() != base
    assert load(["head.dropout=0.2"]).identity() != base


def test_a_file_of_classes_belongs_to_a_run_by_its_content(tmp_path: Path) -> None:
    registry.DATASETS["folder"].tiny(tmp_path / "data")  # type: ignore[attr-defined]
    moved, other = tmp_path / "moved.txt", tmp_path / "other.txt"
    moved.write_text((tmp_path / "data" / "classes.txt").read_text())
    other.write_text("background\nroad\ncloud\n")
    data = ["dataset=folder", f"dataset.root={tmp_path / 'data'}"]
    found = [load([*data, f"dataset.classes={file}"]) for file in (tmp_path / "data" / "classes.txt", moved, other)]
    assert len({config.identity() for config in found}) == 1
    assert found[0].identity() != load([*data, "dataset.classes=[background,road,sky]"]).identity()
    same, again, changed = (run_folder.open_split(config, "train").fingerprint() for config in found)
    assert same == again != changed


@pytest.mark.parametrize("path", GROUP_FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_group_files_have_exactly_the_keys_of_their_signature(path: Path) -> None:
    group, section = path.parent.name, yaml.safe_load(path.read_text())
    if group == "tracking":
        assert set(section) == set(keyword_parameters(TrackingConfig))
    elif group == "augment":
        assert set(section) - {"classes"} == {"name", "crop_size", "transforms"}
        assert section["name"] == path.stem
    else:
        added = {name for entry in section.pop("defaults", []) if isinstance(entry, dict) for name in entry}
        assert {*section, *added} == {"name", *COMPONENTS[group].schema(section["name"])}
    load([f"{group}={path.stem}"])


def test_every_registered_component_has_its_file() -> None:
    registered = {f"{kind}/{name}" for kind, components in COMPONENTS.items() for name in components}
    files = {f"{p.parent.name}/{p.stem}" for p in GROUP_FILES if p.parent.name in COMPONENTS}
    assert registered <= files  # others are named choices of options, such as backbone/mobilenetv2


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_load_and_say_what_they_need(path: Path) -> None:
    header = path.read_text().split("\n\n")[0]
    assert header.startswith("# @package _global_\n")
    for word in ("Command:", "Hardware:", "Expected:"):
        assert word in header
    assert f"recipe={path.stem}" in header
    assert load([f"recipe={path.stem}"]).name == ("run" if path.stem == "none" else path.stem)


def test_the_command_line_wins_over_the_recipe() -> None:
    config = load(["recipe=cityscapes_danet", "backbone=resnet18", "train.batch_size=4", "backbone.multi_grid=null"])
    assert config.backbone["name"] == "resnet18"
    assert config.train.batch_size == 4
    assert config.train.epochs == 240


@pytest.mark.parametrize(
    ("overrides", "steps", "epochs"),
    [
        ([], 300, 40),
        (["train.epochs=2"], None, 2),
        (["recipe=camvid_cpu", "train.epochs=0.5"], None, 0.5),
        (["recipe=cityscapes_mmseg", "++train.epochs=3"], None, 3),
        (["train={epochs: 3, batch_size: 4}"], None, 3),
        (["recipe=cityscapes_danet", "train.epochs=3"], None, 3),
        (["recipe=cityscapes_danet", "train.steps=7"], 7, 240),
        (["train.steps=7"], 7, 40),
        (["train.epochs=2", "train.steps=null"], None, 2),
        (["~train.steps", "train.epochs=2"], None, 2),
    ],
    ids=str,
)
def test_epochs_on_the_command_line_win_over_a_recipes_steps(overrides: list[str], steps: Any, epochs: float) -> None:
    config = load(overrides)
    assert (config.train.steps, config.train.epochs) == (steps, epochs)


@pytest.mark.parametrize(
    "both", [["train.epochs=1", "train.steps=5"], ["train={steps: 5}", "++train.epochs=1"]], ids=str
)
def test_epochs_and_steps_on_one_command_line_are_a_problem(both: list[str]) -> None:
    for overrides in (both, both[::-1]):
        assert problems(*overrides) == [
            "train.epochs, train.steps: both are on the command line and say how long; give one of them"
        ]


def test_epochs_do_not_change_a_run_that_goes_on(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(load(["train.steps=9"]).yaml())
    [line] = problems(f"resume={tmp_path}", "train.epochs=40")  # the run's epochs, which its steps replace
    assert line.startswith(f"train.steps = None: the run in {tmp_path} has 9 and can only be resumed as it is")
    (tmp_path / "config.yaml").write_text(load(["train.epochs=3"]).yaml())
    assert load([f"resume={tmp_path}", "train.epochs=3"]).train == load(["train.epochs=3"]).train
    assert load([f"resume={tmp_path}", "train.log_every=3"]).train.epochs == 3
    [line] = problems(f"resume={tmp_path}", "train.epochs=4")
    assert line.startswith("train.epochs = 4.0: the run in")


@pytest.mark.parametrize(
    ("script", "section", "schema"),
    [
        ("train", "train", TrainConfig),
        ("train", "evaluate", EvaluateConfig),
        ("train", "runtime", RuntimeConfig),
        ("evaluate", "evaluate", ScoringOptions),
        ("evaluate", "runtime", RuntimeConfig),
        ("predict", "inference", InferenceConfig),
    ],
    ids=str,
)
def test_defaults_in_code_and_in_yaml_agree(script: str, section: str, schema: type) -> None:
    overrides = ["recipe=none"] if script == "train" else []
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        composed = OmegaConf.to_container(compose(script, overrides=overrides)[section])
    declared = {name: p.default for name, p in keyword_parameters(schema).items()}
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in declared.items()} == composed


def test_the_command_line_is_checked_for_names_before_hydra_sees_it() -> None:
    with pytest.raises(ConfigError) as caught:
        danet.config.check_arguments(
            ["backbone=resnet1o1", "-m", "head=danet,fnc", "head.aux_los=true", "recipe=camvid_dannet", "seed=1"]
        )
    for line, hint in zip(
        caught.value.problems, ("'resnet101'", "'fcn'", "'head.aux_loss'", "'camvid_danet'"), strict=True
    ):
        assert f"did you mean {hint}" in line
    danet.config.check_arguments(
        ["backbone=resnet18,resnet50", "loss.weights.pam=0", "augment.crop_size=[8,8]", "+head.new=1", "--cfg", "job"]
    )


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("train.step=4", "train.step: unknown key; did you mean 'train.steps'?"),
        ("lr=0.1", "lr: unknown key; did you mean 'optimizer.lr'?"),
        ("epochs=3", "epochs: unknown key; did you mean 'train.epochs'?"),
        ("experiment=x", "experiment: unknown key; did you mean 'recipe'?"),
        ("logger=x", "logger: unknown key; did you mean 'tracking'?"),
        ("loss.weights.pma=1", "loss.weights.pma: unknown key; did you mean 'loss.weights.pam'?"),
        (
            "seed=${oc.env:NO_SUCH_SEED}",
            "seed=${oc.env:NO_SUCH_SEED}: the environment has no NO_SUCH_SEED; set it, or give a default, "
            "${oc.env:NO_SUCH_SEED,VALUE}",
        ),
        ("model=danet", "model: unknown key; did you mean 'head'?"),
        ("pretrained=true", "pretrained: unknown key; did you mean 'backbone.pretrained'?"),
        ("num_classes=3", "num_classes: unknown key; the data set has its classes"),
        ("trainer.max_epochs=3", "trainer.max_epochs: unknown key; did you mean 'train.epochs'?"),
        ("inference=default", "inference: unknown key; did you mean 'inference@evaluate'?"),
        ("loss=cross-entropy", "loss=cross-entropy: unknown option; did you mean 'cross_entropy'?"),
        ("backbone=resnet-50", "backbone=resnet-50: unknown option; did you mean 'resnet50'?"),
        ("recipe=", "recipe=: unknown option; known: ade20k_mmseg, camvid_article"),
        ("recipe=null", "recipe=null: write recipe=none"),
        ("tracking=null", "tracking=null: write tracking=disabled"),
        ("optimizer=null", "optimizer=null: an option is needed; leave it out for the default, or choose one: adamw"),
        ("inference@evaluate=null", "inference@evaluate=null: an option is needed"),
        ("scale=small,null", "scale=null: null is not an option; leave the group out, or write ~scale"),
        ("head.name=fcn", "head.name=fcn: the other keys would stay as they are; write head=fcn"),
        ("ablation=attention", "ablation=attention: is a sweep of several runs, and needs -m: python src/train.py -m "),
        ("seed=0,1", "seed=0,1: several values are several runs, and need -m: python src/train.py -m seed=0,1"),
    ],
)
def test_what_other_tools_taught_is_answered_in_one_line(argument: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        danet.config.check_arguments([argument, "train.stes=2"], multirun=False)
    *lines, other = caught.value.problems
    assert lines[-1].startswith(hint)
    assert other == "train.stes: unknown key; did you mean 'train.steps'?"


def not_in_this_mode(*arguments: str, multirun: bool, typed: list[str] | None = None, primary: str = "train") -> Any:
    """What goes only with -m, or without it."""
    try:
        danet.config.check_arguments(arguments, primary, multirun=multirun, typed=typed)
    except ConfigError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    "argument", ["evaluate.scales=0.75,1", "tracking.tags=a,b", "train.rare_classes=disc,square", "evaluate.stride=6,6"]
)
def test_a_list_without_brackets_is_no_sweep(argument: str) -> None:
    key, _, value = argument.partition("=")
    assert not_in_this_mode(argument, multirun=False) == [f"{argument}: for one list write {key}=[{value}]"]
    (line,) = not_in_this_mode(argument, multirun=True)
    assert line.startswith(f"{argument}: each value must be a list; write {key}=[{value}] for one list, or [...],[...]")
    assert not not_in_this_mode(f"{key}=[{value}]", multirun=True)


def test_the_command_with_m_is_the_whole_one() -> None:
    typed = ["--config-dir", "my conf", "seed=0,1", "augment.crop_size=64,64", "dataset.bands=1,2", "loss.gamma=2,3"]
    assert not_in_this_mode(*typed[2:-1], multirun=False, typed=typed) == [
        "seed=0,1: several values are several runs, and need -m: python src/train.py -m --config-dir 'my conf' "
        "seed=0,1 augment.crop_size=[64,64] dataset.bands=1,2 loss.gamma=2,3",
        "augment.crop_size=64,64: for one list write augment.crop_size=[64,64]",
        "dataset.bands=1,2: several values are several runs, and need -m; for one list write dataset.bands=[1,2]",
    ]
    (line,) = not_in_this_mode("loss.class_weights=1,2", multirun=False)
    assert line.endswith("; for one list write loss.class_weights=[1,2]")  # which may be a text, too
    (line,) = not_in_this_mode("train.max_grad_norm=1,2", multirun=False)
    assert line.endswith("python src/train.py -m train.max_grad_norm=1,2")


def test_settings_of_sweeps_need_m_and_those_of_runs_refuse_it() -> None:
    of_sweeps = ["hydra/launcher=joblib", "hydra/sweeper=optuna", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_trials=3"]
    of_sweeps += ["hydra.sweep.dir=x", "hydra.sweep.subdir=x", "sweep.seeds=[0,1]", "sweep.name=x"]
    for argument in of_sweeps:
        assert not_in_this_mode(argument, multirun=False) == [
            f"{argument}: has no effect without -m: python src/train.py -m {argument}"
        ]
        assert not not_in_this_mode(argument, multirun=True)
    assert not_in_this_mode("hydra.run.dir=x", multirun=True) == [
        "hydra.run.dir=x: has no effect with -m; hydra.sweep.dir=FOLDER is where a sweep goes"
    ]
    assert not not_in_this_mode("hydra.run.dir=x", multirun=False)
    assert not_in_this_mode("hydra.sweep.dir=x", multirun=False, primary="evaluate")
    assert not not_in_this_mode("sweep=outputs/x", multirun=False, primary="evaluate")


def test_null_is_none_where_a_group_begins_with_none() -> None:
    given = ["ablation=null", "scale=null", "head=null", "seed=null"]
    assert danet.config.without_empty_groups(given, "train") == ["head=null", "seed=null"]
    assert danet.config.without_empty_groups(["protocol=null", "head=null"], "evaluate") == []
    assert danet.config.without_empty_groups(given, "train", "mine") == given


def test_a_key_must_be_one_of_the_option_that_is_chosen() -> None:
    with pytest.raises(ConfigError) as caught:
        danet.config.check_arguments(["head=fcn", "head.cam=false", "backbone=resnet50", "backbone.widths=[8]"])
    assert [line.partition(";")[0] for line in caught.value.problems] == [
        "head.cam: head=fcn has no such key",
        "backbone.widths: backbone=resnet50 has no such key",
    ]
    known = ["head=fcn", "head.dropout=0", "augment.transforms.0.Resize.height=9", "seed=1,2"]
    known += [
        "sweep.variants.a.overrides=[x]",
        "evaluate.flip=true",
        "~head.dropout",
        "++head.cam=1",
        "hydra/sweeper=x",
    ]
    danet.config.check_arguments(known)


def test_registry_names_what_may_be_meant() -> None:
    with pytest.raises(KeyError, match="did you mean 'danet'"):
        HEADS["danett"]
    with pytest.raises(ValueError, match="registered twice"):
        HEADS.register("danet")(object)
    assert isinstance(registry.BACKBONES, registry.Registry)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("head.pam=maybe", "head.pam = 'maybe': must be true or false"),
        ("backbone.widths=abc", "backbone.widths = 'abc': must be a list, such as backbone.widths=[abc]"),
        ("train.batch_size=1.5", "train.batch_size = 1.5: must be a whole number"),
        ("train.rare_classes=Pole", "train.rare_classes = 'Pole': must be a list, such as train.rare_classes=[Pole]"),
        ("evaluate.scales=2", "evaluate.scales = 2: must be a list, such as evaluate.scales=[2]"),
        ("evaluate.scales=[]", "evaluate.scales = []: must have at least 1 value"),
        ("evaluate.scales=[1,x]", "evaluate.scales = [1, 'x']: 'x' in it must be a number"),
        ("evaluate.crop_size=[1,2,3]", "evaluate.crop_size = [1, 2, 3]: must have at most 2 values"),
        ("runtime.device=gpu", "runtime.device = 'gpu': must be 'auto', 'cpu', 'cuda' or 'mps'"),
        ("name='a b'", "name = 'a b': may only have letters, digits and _ . -"),
        ("loss.weights.main=x", "loss.weights.main = 'x': must be a number"),
        ("loss.class_weights=median", "loss.class_weights = 'median': must be 'none' or 'median_frequency' or a list"),
        ("optimizer.betas=0.9", "optimizer.betas = 0.9: must be a list, such as optimizer.betas=[0.9]"),
        ("train.steps=0", "train.steps = 0: must be greater than 0"),
        ("tracking.group=true", "tracking.group = True: must be text; quote it"),
        ("backbone.pretrained=nofile.pt", "backbone.pretrained = 'nofile.pt': must be false or an existing file"),
        ("train=3", "train = 3: a section with keys is needed here"),
        ("schedule.warmup=soon", "schedule.warmup = 'soon': not a valid duration"),
        ("train.max_grad_norm=.inf", "train.max_grad_norm = '.inf': must be a number"),
    ],
)
def test_wrong_values_are_told_in_the_words_of_a_configuration(argument: str, said: str) -> None:
    (line,) = problems(argument)
    assert line.startswith(said)
    assert not re.search("Input|instance|Sequence|pydantic|valid (integer|number|list|boolean)|torch", line)


def test_missing_data_is_listed_with_everything_else() -> None:
    found = problems("dataset=camvid", "dataset.root=/no/such/folder", "train.batch_size=eight", "head.reduction=99")
    assert [line.split()[0] for line in found] == ["train.batch_size", "dataset:", "head"]
    assert "prepare.py" in found[1]


@pytest.mark.parametrize(
    "override",
    [
        *("optimizer.lr", "optimizer.weight_decay", "optimizer.head_lr_factor", "loss.weights.main", "train.epochs"),
        *("train.max_grad_norm", "schedule.power", "schedule.warmup_factor", "runtime.cache_gib", "head.dropout"),
    ],
)
@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
def test_numbers_are_finite(override: str, number: str) -> None:
    [line] = problems(f"{override}={number}")
    assert line.startswith(override.removesuffix(".main"))
    assert "must be a finite number" in line


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["loss.class_weights=[1,1,1,1,1,1,1,1,inf]"], "loss.class_weights", "finite"),
        (["loss.class_weights=[0,0,0,0,0,0,0,0,0.0]"], "loss.class_weights", "all are 0; nothing would train"),
        (["evaluate.scales=[1.0,inf]"], "evaluate.scales", "finite"),
        (["optimizer=adamw", "optimizer.betas=[0.9,nan]"], "optimizer.betas", "finite"),
        (["loss=focal", "loss.gamma=inf"], "loss.gamma", "finite"),
        (["schedule=step", "schedule.gamma=1e10", "schedule.every=1"], "schedule.gamma", "less than or equal to 1"),
        (["train.epochs=1e300"], "train.epochs", "less than or equal to 1000000000"),
        ([f"train.steps=1{'0' * 400}"], "train.steps", "less than"),
        ([f"train.log_every=1{'0' * 400}"], "train.log_every", "longer than any run"),
        (["train.eval_every='1000000000000 epochs'"], "train.eval_every", "longer than any run"),
    ],
    ids=str,
)
def test_numbers_that_could_only_fail_later_are_refused(overrides: list[str], key: str, words: str) -> None:
    [line] = problems(*overrides)
    assert line.startswith(key)
    assert words in line


def test_a_number_may_be_a_name() -> None:
    config = load(["name=123", "tracking.project=2024", "tracking.tags=[7,a]"])
    assert (config.name, config.tracking.project, list(config.tracking.tags)) == ("123", "2024", ["7", "a"])
    assert load_yaml(config) == config


@pytest.mark.parametrize(("value", "text"), [("inf", "inf"), ("1.5", "1.5"), ("true", "True")])
def test_what_is_no_name_says_how_it_could_be_one(value: str, text: str) -> None:
    assert problems(f"name={value}") == [f"name = {text}: must be text; quote it to have it as text: 'name=\"{text}\"'"]
    assert load([f'name="{text}"']).name == text
    assert problems(f"tracking.tags=[a,{value}]") == [
        f"tracking.tags = ['a', {text}]: {text} in it must be text; "
        f"quote it to have it as text: 'tracking.tags=[\"{text}\"]'"
    ]


def load_yaml(config: Any) -> Any:
    return danet.config.load(OmegaConf.create(config.yaml()))


def test_one_class_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Road(registry.DATASETS["shapes"]):  # type: ignore[misc]
        class_names = ("road",)

    monkeypatch.setitem(registry.DATASETS._components, "shapes", Road)
    assert [line for line in problems("loss.weights.pam=0") if line.startswith("dataset")] == [
        "dataset shapes: has one class (road), which is always right; name the background as a class of its own"
    ]


def test_a_secret_of_the_environment_gets_into_no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("MY_NAME", "0123456789")
    assert load(["tracking.tags=['${oc.env:MY_NAME}']"]).tracking.tags == ["0123456789"]
    with pytest.raises(ConfigError) as raised:
        load(["tracking.tags=[one,'key ${oc.env:WANDB_API_KEY}']"])
    (line,) = raised.value.problems
    assert line.startswith("tracking.tags.1: has the value of the environment variable WANDB_API_KEY, which would be")
    assert "0123456789abcdef" not in line


def test_online_tracking_without_a_key_is_refused_before_the_run(monkeypatch, tmp_path):
    import wandb

    wandb.teardown()  # it reads the environment once
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="tracking.mode = 'online': no API key .* `wandb login`"):
        load(["tracking.mode=online"], probe=True)
    assert load(probe=True).tracking.mode == "auto"
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert load(["tracking.mode=online"], probe=True).tracking.mode == "online"


def test_weights_of_an_artifact_become_a_file(monkeypatch, outputs, tmp_path):
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "best.pt")
    asked = []

    def download(reference, cache):
        asked.append((reference, cache))
        if "missing" in reference:
            raise ValueError("cannot be downloaded: not found")
        return tmp_path / "best.pt"

    monkeypatch.setattr(artifacts, "download", download)
    assert load(["init_from='wandb:me/danet/model:best'"]).init_from == str(tmp_path / "best.pt")
    assert asked == [("me/danet/model:best", outputs / ".cache/wandb")]
    with pytest.raises(ConfigError, match="init_from = 'wandb:me/danet/missing:best': cannot be downloaded: not found"):
        load(["init_from='wandb:me/danet/missing:best'"])


def test_a_file_without_a_default_is_refused_for_a_trained_model_could_not_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mine(*, weights: ExistingFile, other: ExistingFile | None = None) -> None: ...

    list(HEADS)  # so that the package's own are there
    monkeypatch.setitem(HEADS._components, "mine", mine)
    (tmp_path / "weights.pt").touch()
    found: list[str] = []
    check_component("head", {"name": "mine", "weights": str(tmp_path / "weights.pt"), "other": None}, found)
    assert found == [
        "head.weights: this file has no default, but a trained model must load without it; give it one, such as None"
    ]
