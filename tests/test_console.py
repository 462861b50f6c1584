import io
import logging
import math
import re

import pytest
from rich.console import Console

from danet.services import console, failures, score_tables


@pytest.fixture(autouse=True)
def restored_logger():
    yield
    ours = logging.getLogger("danet")
    for handler in ours.handlers[:]:
        ours.removeHandler(handler)
        handler.close()
    ours.propagate = True
    ours.setLevel(logging.NOTSET)


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch):
    """A terminal 100 columns wide; what is written to it."""
    text = io.StringIO()
    screen = Console(file=text, force_terminal=True, width=100, soft_wrap=True, highlight=False)
    monkeypatch.setattr(console, "_console", lambda: screen)
    return text


def test_plain_lines_of_training_come_with_its_metrics(capsys, clock):
    console.setup_logging(None)
    with console.Progress(1000, 200) as bar:
        for step in range(201, 1001):
            clock[0] += 0.5
            if step % 20 == 0:
                bar.update(step, loss=0.25, images_per_second=31.44)
            else:
                bar.update(step)
            if step == 600:
                bar.update(step, miou=0.512)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step  220/1000  loss 0.250  31.4 img/s  0:06:30 left"  # (1000 - 220) * 0.5 s
    assert lines[-1] == "step 1000/1000  loss 0.250  best mIoU 0.512  31.4 img/s  0:00:00 left"
    steps = [int(re.match(r"step +(\d+)", line)[1]) for line in lines]
    assert steps == list(range(220, 1001, 20))


def test_plain_lines_of_a_task_come_at_intervals(capsys, clock):
    console.setup_logging(None)
    with console.Progress(100, task="scoring val", interval=10) as bar:
        for done in range(1, 101):
            clock[0] += 0.5
            bar.update(done)
    lines = capsys.readouterr().out.splitlines()
    assert 4 <= len(lines) <= 7  # 50 s, a line every 10
    assert lines[-1] == "scoring val 100/100  0:00:00 left"


def test_other_processes_are_silent(capsys):
    console.setup_logging(None)
    with console.Progress(1, enabled=False) as bar:
        bar.update(1, loss=1.0)
    assert capsys.readouterr().out == ""


def test_terminal_shows_a_bar_and_prints_logs_above_it(terminal):
    console.setup_logging(None)
    with console.Progress(20) as bar:
        bar.update(10, loss=0.5, miou=0.25, images_per_second=8.0)
        logging.getLogger("danet.training.loop").info("saved [step] 10")
        bar.update(20)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    lines = shown.replace("\r", "\n").splitlines()
    assert any(line.strip() == "saved [step] 10" for line in lines)
    assert re.search(r"━ 20/20 loss 0.500  best mIoU 0.250  8.0 img/s  0:00:00 left", shown)
    assert shown.rindex("saved") < shown.rindex("20/20")
    assert all(len(line) <= 100 for line in lines)


def test_items_are_counted_with_the_time_left(capsys, clock):
    console.setup_logging(None)
    seen = []
    for item in console.track("abcdefgh", 8, "scoring"):
        clock[0] += 6
        seen.append(item)
    assert "".join(seen) == "abcdefgh"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "scoring 1/8  0:00:42 left"
    assert lines[-1] == "scoring 8/8  0:00:00 left"
    assert [line.split()[1] for line in lines] == ["1/8", "3/8", "5/8", "7/8", "8/8"]  # ten seconds apart or more
    assert list(console.track("ab", 2, "scoring", enabled=False)) == ["a", "b"]
    assert capsys.readouterr().out == ""


def test_terminal_shows_the_name_of_the_work(terminal):
    assert list(console.track([1, 2], 2, "drawing {[x]}")) == [1, 2]
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert re.search(r"drawing \{\[x\]\} ━+ 2/2 0:00:00 left", shown)


def test_a_transient_bar_shows_bytes_and_is_removed(terminal, clock):
    with console.Progress(2_000_000, task="camvid.zip", transient=True, in_bytes=True) as bar:
        clock[0] += 5
        bar.update(500_000)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert re.search(r"camvid.zip .* 0.5/2.0 MB 0:00:15 left", shown)
    assert terminal.getvalue().endswith("\x1b[2K")  # the line is erased


def test_a_transient_bar_writes_no_lines(capsys):
    console.setup_logging(None)
    assert list(console.track("ab", 2, "checking", transient=True)) == ["a", "b"]
    with console.Progress(None, task="camvid.zip", transient=True, in_bytes=True) as bar:
        bar.update(100)
    assert capsys.readouterr().out == ""


def test_a_table_has_a_row_per_part_and_one_for_the_total(capsys):
    console.print_table("parts", ("part", "count"), [("stem", "7"), ("head", "12")], last_row=("all", "19"))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "parts"
    rows = [re.findall(r"[^\s|]+", line) for line in lines if line.startswith("|")]
    assert rows == [["part", "count"], ["stem", "7"], ["head", "12"], ["all", "19"]]
    assert "|     7 |" in lines[4]  # aligned to the right


def test_all_scores_of_an_evaluation(capsys):
    result = {
        "iou": {"Sky": 0.5, "Tram": math.nan},
        "accuracy": {"Sky": 0.75, "Tram": math.nan},
        "boundary_iou": {"Sky": 0.25, "Tram": math.nan},
        "pixels": {"Sky": 4, "Tram": 0},
        **{"miou": 0.5, "mean_accuracy": 0.75, "boundary_miou": 0.25},
        **{"frequency_weighted_iou": 0.123, "pixel_accuracy": 0.875},
    }
    score_tables.print_evaluation("val", result)
    shown = capsys.readouterr().out
    rows = [re.split(r"[\s|]{2,}", line.strip(" |")) for line in shown.splitlines()]
    assert ["class", "IoU %", "accuracy %", "boundary IoU %", "pixels %"] in rows
    assert ["Sky", "50.00", "75.00", "25.00", "100.00"] in rows
    assert ["Tram", "n/a", "n/a", "n/a", "0.00"] in rows
    assert ["mean", "50.00", "75.00", "25.00"] in rows
    assert "frequency-weighted IoU 12.30 %   pixel accuracy 87.50 %" in shown


@pytest.mark.parametrize("on_terminal", [True, False])
def test_scores(request, capsys, on_terminal):
    text = request.getfixturevalue("terminal") if on_terminal else None
    score_tables.print_scores(
        "val, step 7",
        ["Sky", "CartLuggagePram"],
        [0.98765, math.nan],
        [0.5, math.nan],
        [30, 0],
        miou=0.98765,
        pixel_accuracy=0.5,
    )
    shown = text.getvalue() if text else capsys.readouterr().out
    shown = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    rows = [re.split(r"[\s|│]{2,}", line.strip(" |│")) for line in shown.splitlines()]
    assert ["val, step 7"] in rows
    assert ["Sky", "98.77", "50.00", "100.00"] in rows  # rounded from 98.765
    assert ["CartLuggagePram", "n/a", "n/a", "0.00"] in rows
    assert ["mean IoU, pixel accuracy", "98.77", "50.00"] in rows


def test_each_job_of_a_sweep_logs_to_its_own_folder_once(tmp_path, capsys):
    logger = logging.getLogger("danet.training.loop")
    for job in ("a", "b"):
        console.setup_logging(tmp_path / job)
        logger.info("job %s", job)
        logger.warning("odd %s", job)
    assert capsys.readouterr().out.splitlines() == ["job a", "WARNING: odd a", "job b", "WARNING: odd b"]
    for job in ("a", "b"):
        first, second = (tmp_path / job / "train.log").read_text().splitlines()
        assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ INFO job {job}", first)
        assert second.endswith(f"WARNING odd {job}")


def test_quiet_messages_go_to_the_file_only(tmp_path, capsys):
    console.setup_logging(tmp_path)
    logging.getLogger("danet.training.loop").warning("details", extra={"quiet": True})
    logging.getLogger("danet.training.loop").info("news", extra={"quiet": False})
    assert capsys.readouterr().out.splitlines() == ["news"]
    first, second = (tmp_path / "train.log").read_text().splitlines()
    assert first.endswith("WARNING details")
    assert second.endswith("INFO news")


def test_names_of_any_bytes_are_shown_and_kept(tmp_path, monkeypatch):
    """Also on a terminal that knows English letters alone."""
    raw = io.BytesIO()
    text = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    monkeypatch.setattr(console, "_console", lambda: Console(file=text, width=100, soft_wrap=True, highlight=False))
    console.setup_logging(tmp_path)
    logging.getLogger("danet").info("reading %s and %s", "\udcd5.png", "照片.png")
    assert raw.getvalue() == b"reading \\udcd5.png and \\u7167\\u7247.png\n"
    assert (tmp_path / "train.log").read_text().endswith("reading \\udcd5.png and 照片.png\n")


def test_control_characters_of_names_reach_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[31m\r\x9b.png"
    console.setup_logging(None)
    console.print_text(name)
    console.logger.warning("%s: skipped", name)
    console.print_table("title", ["file"], [[name]])
    text = capsys.readouterr().out
    assert text.count(r"a\x1b[31m\x0d\x9b.png") == 3
    assert not set(text) & {"\x1b", "\r", "\x9b"}
    with pytest.raises(SystemExit) as end, failures.one_line():
        raise ValueError(f"{name}: no image")
    assert end.value.code == r"ValueError: a\x1b[31m\x0d\x9b.png: no image"
