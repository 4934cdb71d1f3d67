"""Every verb of the module, against the real server and agent. Said by tests/guest/python.rs."""

import os
import threading

import guestline


def raised(kind, function, *arguments, **named):
    try:
        function(*arguments, **named)
    except kind as error:
        return error
    raise AssertionError("%s was not raised" % kind.__name__)


def setup(m):
    guestline.log("set up")


def run(m):
    assert m.side == "host" and [machine.name for machine in m] == ["web"] and len(m) == 1
    result = m.exec("echo out; echo err >&2")
    assert (result.status, result.stdout, result.stderr) == (0, "out\n", "err\n"), result
    assert m["web"].exec(["printf", "%s", "a  b"]).stdout == "a  b"
    assert m.machines["web"].try_exec("exit 3").status == 3
    assert m.try_exec("kill -9 $$").signal == 9
    error = raised(guestline.CommandFailed, m.exec, "echo said; echo why >&2; exit 4")
    assert "status 4" in str(error) and "said" in str(error) and "why" in str(error), error
    big = os.urandom(300000)
    assert m.exec("cat", input=big).stdout_bytes == big
    assert m.exec("wc -c", input="").stdout.strip() == "0"
    assert m.exec("pwd; echo $A; id -u", cwd="/usr", env={"A": "b"}, user="nobody").stdout == "/usr\nb\n65534\n"
    error = raised(guestline.TimedOut, m.exec, "echo begun; sleep 100", timeout=0.3)
    assert error.kind == "timeout" and error.stdout == "begun\n", error
    assert raised(guestline.Error, m.exec, ["/no/such"]).kind == "not-found"

    here = os.getcwd()
    with open("file", "w") as file:
        file.write("content")
    m.push("file", here + "/there/")
    m.pull([here + "/there/file"], "back")
    with open("back") as file:
        assert file.read() == "content"
    m.wait(file=here + "/there/file")
    m.wait("test -e %s/there/file" % here)
    error = raised(guestline.TimedOut, m.wait, "echo not yet; false", timeout=0.2)
    assert "not yet" in str(error) and "status 1" in str(error), error
    raised(TypeError, m.wait)
    assert m.facts()["hostname"]
    m["web"].log("hello")

    found = []
    waiting = threading.Thread(target=lambda: found.append(guestline.await_key("key")))
    waiting.start()
    guestline.send("key", "välue")
    waiting.join()
    assert found == ["välue"], found
    raised(guestline.TimedOut, guestline.sync, "alone", timeout=0.1)
    assert raised(guestline.Error, guestline.Machine("db").facts).kind == "no-machine"


def teardown(m):
    guestline.skip("not here")
