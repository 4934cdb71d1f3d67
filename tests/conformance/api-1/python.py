#: tags = ["python"]
import guestline


def setup(m):
    m.exec("echo ready > /tmp/state")


def run(m):
    assert m.exec("cat /tmp/state").stdout == "ready\n"
    assert m.try_exec(["sh", "-c", "exit 4"]).status == 4
    m.wait("test -f /tmp/state")
    guestline.log("half way")


def teardown(m):
    m.exec("rm /tmp/state")
