import logging
import os
import time

import pytest

from imago.run import logs
from imago.run.logs import LogFile, logging_to
from imago.terminal import closed_output_survived


def test_the_file_has_debug_and_the_console_has_not(tmp_path, capsys):
    with logging_to(tmp_path / "train.log"):
        logging.getLogger("mine").debug("for the file")
        logging.getLogger("mine").info("for both, \x1b[31mred\x1b[0m\r")
        logging.getLogger("lightning.pytorch").info("Lightning's remark")
    console = capsys.readouterr().out
    file = (tmp_path / "train.log").read_text()
    assert "for both, red" in console
    assert "for the file" not in console
    assert "remark" not in console
    for words in ("DEBUG   mine: for the file", "INFO    mine: for both, red", "Lightning's remark"):
        assert words in file
    assert "\x1b" not in file + console
    assert "\r" not in file + console


def test_verbose_shows_debug(tmp_path, capsys):
    with logging_to(tmp_path / "train.log", verbose=True):
        logging.getLogger("mine").debug("for both")
    assert "for both" in capsys.readouterr().out


def test_the_root_logger_is_as_before(tmp_path):
    root = logging.getLogger()
    before = list(root.handlers), root.level
    with logging_to(tmp_path / "train.log"):
        pass
    assert (list(root.handlers), root.level) == before


def test_a_large_log_is_rotated_and_old_ones_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "MEGABYTES", 1 / 2**10)  # 1 KiB
    old = tmp_path / "train.log.7"
    old.touch()
    os.utime(old, (time.time() - 31 * 24 * 3600,) * 2)
    handler = LogFile(tmp_path / "train.log")
    for number in range(30):
        handler.emit(logging.makeLogRecord({"msg": f"line {number} " + "x" * 100}))
    handler.close()
    parts = sorted(tmp_path.iterdir())
    assert 3 <= len(parts) <= 5
    assert "line 29" in (tmp_path / "train.log").read_text()
    assert sum(part.read_text().count("line") for part in parts) == 30
    assert not any("line 0 " in part.read_text() for part in parts[:1])


@pytest.mark.filterwarnings("default")
def test_what_libraries_deprecate_among_themselves_is_not_logged(tmp_path):
    code = "import warnings\nwarnings.warn('x is deprecated', FutureWarning)"
    with logging_to(tmp_path / "train.log"):
        for module in ("lightning.pytorch.utilities._pytree", "my_models"):
            exec(code, {"__name__": module})
    assert (tmp_path / "train.log").read_text().count("x is deprecated") == 1


def test_a_closed_output_ends_nothing_and_is_logged_once(tmp_path, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output, monkeypatch.context() as patched:
        patched.setattr("sys.stdout", output)
        with closed_output_survived(), logging_to(tmp_path / "train.log"):
            for number in range(3):
                logging.getLogger("imago").info("epoch %d", number)
                print("scores", flush=True)
    text = (tmp_path / "train.log").read_text()
    assert text.count("The output is closed") == 1
    assert "epoch 2" in text
