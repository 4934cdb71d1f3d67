"""A fixture `machine` for pytest: a virtual machine to test in.

Within a test of Guestline (GUESTLINE_SOCKET is set) it is that test's machines. Else one is started for the session and
taken down after it, with `guestline up` and `guestline down`; GUESTLINE_IMAGE says which image (tiny), GUESTLINE_PROGRAM
which program (guestline).

    pip install pytest && pytest scripts/examples/pytest
"""

import os
import subprocess
import sys

import pytest

# `guestline sdk python` writes it; here it is beside the examples.
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "lib"))
import guestline

PROGRAM = os.environ.get("GUESTLINE_PROGRAM", "guestline")


def call(*words, **options):
    return subprocess.run([PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def must(*words):
    done = call(*words)
    if done.returncode != 0:
        raise guestline.Error("failed", "guestline %s: %s" % (words[0], done.stderr.decode("utf-8", "replace")))
    return done


class NamedMachine:
    """A machine of `guestline up`, with the verbs of guestline.Machine that tests use most."""

    def __init__(self, name):
        self.name = name

    def exec(self, command, **options):
        result = self.try_exec(command, **options)
        if not result.ok:
            raise guestline.CommandFailed(command, result)
        return result

    def try_exec(self, command, input=None, timeout=None):
        words = [command] if isinstance(command, str) else list(command)
        options = ["--shell"] if isinstance(command, str) else []
        if input is None:
            options.append("-n")
        elif isinstance(input, str):
            input = input.encode()
        if timeout is not None:
            options += ["--timeout", "%dms" % max(1, timeout * 1000)]
        done = call("exec", *options, self.name, "--", *words, input=input)
        if done.returncode == 255:
            raise guestline.Error("failed", done.stderr.decode("utf-8", "replace"))
        signal = done.returncode - 128 if done.returncode > 128 else None
        return guestline.Result(done.returncode, signal, done.stdout, done.stderr)

    def push(self, from_, to):
        must("push", self.name, str(from_), str(to))

    def pull(self, from_, to):
        must("pull", self.name, str(from_), str(to))


@pytest.fixture(scope="session")
def machine():
    if os.environ.get("GUESTLINE_SOCKET"):
        yield guestline.Machines()
        return
    name = "pytest-%d" % os.getpid()
    must("up", name, "--image", os.environ.get("GUESTLINE_IMAGE", "tiny"))
    try:
        yield NamedMachine(name)
    finally:
        must("down", "--force", name)
