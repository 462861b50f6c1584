"""Which files an input means, and what their outputs are called."""

import os
from pathlib import Path

import pytest

from danet.schema import ConfigError
from danet.tools.predict.inputs import IMAGE_SUFFIXES, find_inputs

FILES = (
    "b.jpg",
    "a.PNG",
    "sub/deep/c.jpeg",
    "sub/clip.mp4",
    "sub/a.png",
    "notes.txt",
    ".hidden.png",
    "out/a_color.png",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty files, since none is opened; the current directory."""
    for name in FILES:
        (tmp_path / "my, data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "my, data" / name).touch()
    monkeypatch.chdir(tmp_path / "my, data")
    return tmp_path / "my, data"


def found(given: str, folder: Path, lines: list[str] | None = None) -> dict[str, str]:
    """Names by paths below the folder."""
    items = find_inputs(given, folder / "out", lines)
    assert all(item.path.is_absolute() for item in items)
    return {item.path.relative_to(folder).as_posix(): item.name.as_posix() for item in items}


def test_an_image_or_a_video(folder: Path) -> None:
    assert found("sub/deep/c.jpeg", folder) == {"sub/deep/c.jpeg": "c"}
    assert found(str(folder / "sub" / "clip.mp4"), folder) == {"sub/clip.mp4": "clip"}
    assert found("notes.txt", folder) == {"notes.txt": "notes"}  # whatever it is called: it was named


def test_a_folder_gives_its_images_and_videos_sorted(folder: Path) -> None:
    expected = {"a.PNG": "a", "b.jpg": "b", "sub/a.png": "sub/a", "sub/clip.mp4": "sub/clip"}
    expected["sub/deep/c.jpeg"] = "sub/deep/c"
    for given in (".", str(folder), "../my, data/"):
        assert list(found(given, folder).items()) == list(expected.items())


def test_globs(folder: Path) -> None:
    assert found("*.jpg", folder) == {"b.jpg": "b"}
    assert found("**/*", folder).keys() == found(".", folder).keys()
    assert found("sub/*/c.*", folder) == {"sub/deep/c.jpeg": "deep/c"}
    assert found(str(folder / "s?b" / "[ab].png"), folder) == {"sub/a.png": "sub/a"}


def test_a_name_with_wildcards_that_exists_is_that_file(folder: Path) -> None:
    (folder / "b[1].jpg").touch()
    (folder / "b1.jpg").touch()
    assert found("b[1].jpg", folder) == {"b[1].jpg": "b[1]"}


def test_a_list_keeps_its_order_and_is_taken_at_its_word(folder: Path) -> None:
    lines = [
        "sub/deep/c.jpeg\n",
        "\n",
        "sub/a.png\r\n",
        "sub/none.png\n",
        "sub/../sub/a.png\n",
        str(folder / "out/a_color.png"),
    ]
    assert list(found("-", folder, lines).items()) == [
        ("sub/deep/c.jpeg", "sub/deep/c"),
        ("sub/a.png", "sub/a"),
        ("sub/none.png", "sub/none"),  # the reader will say that it is missing
        ("out/a_color.png", "out/a_color"),
    ]


def test_a_list_is_read_from_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", ["b.jpg\n"])
    assert found("-", folder) == {"b.jpg": "b"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a.jpg", "a.png", "b.png"), {"a.jpg", "a.png", "b"}),
        (("A.jpg", "a.png"), {"A.jpg", "a.png"}),  # one file on some systems
        (("a.jpg", "a.png", "a.png.jpg"), {"a.jpg", "a.png", "a.png.jpg"}),
        (("a.jpg", "x/a.png"), {"a", "x/a"}),
        (("a.1.jpg", "a.2.jpg"), {"a.1", "a.2"}),
    ],
)
def test_inputs_of_the_same_name_keep_their_endings(tmp_path: Path, names: list[str], expected: set[str]) -> None:
    items = find_inputs("-", tmp_path, [str(tmp_path / "in" / name) for name in names])
    assert {item.name.as_posix() for item in items} == expected


NONE_FOUND = f"no image or video found ({', '.join(IMAGE_SUFFIXES)} ...)"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        *((given, NONE_FOUND) for given in ("nothing/*.png", "*.txt", "empty")),
        ("-", "no paths on standard input; give one a line"),
        ("other.tif", "no such file or folder"),
        ("sub/deep/c.jpg", "no such file or folder; did you mean 'sub/deep/c.jpeg'?"),
        ("sub/deap/c.jpeg", "no such file or folder; did you mean 'sub/deep'?"),
        ("sub/deep/c.jpeg/x", "no such file or folder; did you mean 'sub/deep/c.jpeg'?"),
        ("https://example.com/b.jpg", "addresses are not fetched; download the file and give its path"),
    ],
)
def test_an_input_that_gives_nothing_is_refused_with_the_reason(folder: Path, given: str, told: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ConfigError) as caught:
        find_inputs(given, folder / "out", ["\n"])
    assert caught.value.problems == [f"input = {given!r}: {told}"]


def test_a_folder_cannot_be_its_own_output(folder: Path) -> None:
    (folder.parent / "link").symlink_to(folder)
    for given in (".", "sub/..", "../link"):
        with pytest.raises(ConfigError, match="predictions need their own folder"):
            find_inputs(given, folder)


def test_the_output_is_no_input_under_another_name(folder: Path) -> None:
    (folder.parent / "link").symlink_to(folder)
    items = find_inputs("../link", folder / "out")
    assert sorted(item.name.as_posix() for item in items) == ["a", "b", "sub/a", "sub/clip", "sub/deep/c"]


def test_an_output_above_the_input_hides_nothing(folder: Path) -> None:
    items = find_inputs("sub", folder)
    assert [item.name.as_posix() for item in items] == ["a", "clip", "deep/c"]
    assert len(find_inputs("*.*", folder)) == 2


# ---- links -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def linked(folder: Path) -> Path:
    """A linked subfolder elsewhere with an image, and links that lead back."""
    (folder.parent / "elsewhere" / "deep").mkdir(parents=True)
    (folder.parent / "elsewhere" / "deep" / "there.png").touch()
    (folder / "linked").symlink_to(folder.parent / "elsewhere", target_is_directory=True)
    (folder.parent / "elsewhere" / "back").symlink_to(folder, target_is_directory=True)
    (folder / "self").symlink_to(".", target_is_directory=True)
    (folder / "sub" / "up").symlink_to("..", target_is_directory=True)
    (folder / "sub" / "top").symlink_to(folder.parent, target_is_directory=True)
    return folder


@pytest.mark.parametrize("given", [".", "**/*", "**/*.*", "**"])
def test_links_to_folders_are_followed_but_not_round_and_round(linked: Path, given: str) -> None:
    expected = {"a.PNG", "b.jpg", "sub/a.png", "sub/clip.mp4", "sub/deep/c.jpeg", "linked/deep/there.png"}
    assert found(given, linked).keys() == expected


def test_what_is_left_out_is_told(linked: Path, caplog: pytest.LogCaptureFixture) -> None:
    found(str(linked), linked)
    told = {record.getMessage().split(": skipped")[0] for record in caplog.records}
    assert told == {str(linked / name) for name in ("linked/back", "self", "sub/up", "sub/top")}


def test_a_folder_that_cannot_be_listed_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def closed(path: str) -> object:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert "sub/deep/c.jpeg" not in found(".", folder)
    assert "sub/deep: skipped: it cannot be listed (Permission denied)" in caplog.text


def test_a_link_to_nothing_is_an_input_that_will_fail(folder: Path) -> None:
    (folder / "gone.png").symlink_to("nowhere.png")
    assert "gone.png" in found(".", folder)
    assert "gone.png" in found("*.png", folder)


def test_predictions_of_a_run_before_are_no_inputs_wherever_a_link_finds_them(folder: Path) -> None:
    output = folder.parent / "elsewhere" / "predictions"
    output.mkdir(parents=True)
    (output / "x_color.png").touch()
    (output.parent / "x.png").touch()
    (folder / "linked").symlink_to(output.parent, target_is_directory=True)
    names = [item.name.as_posix() for item in find_inputs(".", output)]
    assert "linked/x" in names
    assert not [name for name in names if "x_color" in name]
    inside = find_inputs(str(output), output.parent)  # what lies in the output folder may be named
    assert [item.name.as_posix() for item in inside] == ["x_color"]


def test_two_stars_skip_hidden_folders_and_take_special_names(folder: Path) -> None:
    for name in (".cache/no.png", "we[i]rd*/yes.png"):
        (folder / name).parent.mkdir()
        (folder / name).touch()
    names = found("**/*.png", folder)
    assert "we[i]rd*/yes.png" in names
    assert not [name for name in names if "no.png" in name]
    assert found("s*/**/c.*", folder) == {"sub/deep/c.jpeg": "sub/deep/c"}
    assert found("**/deep/**/c.*", folder) == {"sub/deep/c.jpeg": "sub/deep/c"}
