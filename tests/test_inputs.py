"""Which files an input means, and what their outputs are called."""

from pathlib import Path

import pytest

from danet.schema import ConfigError
from danet.tools.predict.inputs import find_inputs

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


@pytest.mark.parametrize("given", ["none.png", "nothing/*.png", "*.txt", "empty", "-"])
def test_an_input_that_gives_nothing_is_refused(folder: Path, given: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"input = '[^']+': no image or video found"):
        find_inputs(given, folder / "out", ["\n"])


def test_a_folder_cannot_be_its_own_output(folder: Path) -> None:
    (folder.parent / "link").symlink_to(folder)
    for given in (".", "sub/..", "../link"):
        with pytest.raises(ConfigError, match="predictions need a folder of their own"):
            find_inputs(given, folder)


def test_the_output_is_no_input_under_another_name(folder: Path) -> None:
    (folder.parent / "link").symlink_to(folder)
    items = find_inputs("../link", folder / "out")
    assert sorted(item.name.as_posix() for item in items) == ["a", "b", "sub/a", "sub/clip", "sub/deep/c"]


def test_an_output_above_the_input_hides_nothing(folder: Path) -> None:
    items = find_inputs("sub", folder)
    assert [item.name.as_posix() for item in items] == ["a", "clip", "deep/c"]
    assert len(find_inputs("*.*", folder)) == 2
