"""Tests in a virtual machine, with the fixture of conftest.py."""

import guestline
import pytest


def test_it_is_another_kernel(machine):
    assert machine.exec("uname -s").stdout.strip() == "Linux"
    assert machine.exec(["cat"], input="said\n").stdout == "said\n"


def test_files_go_in_and_come_out(machine, tmp_path):
    file = tmp_path / "file"
    file.write_text("content\n")
    machine.push(file, "/tmp/pushed")
    assert machine.exec("cat /tmp/pushed").stdout == "content\n"
    machine.exec("rev /tmp/pushed > /tmp/rev 2>/dev/null || cp /tmp/pushed /tmp/rev")
    machine.pull("/tmp/rev", tmp_path / "pulled")
    assert (tmp_path / "pulled").exists()


def test_what_fails_shows_its_output(machine):
    with pytest.raises(guestline.CommandFailed, match="why"):
        machine.exec("echo why >&2; exit 3")
    assert machine.try_exec("exit 3").status == 3
