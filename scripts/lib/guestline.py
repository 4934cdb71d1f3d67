"""Drive the machines of a Guestline test from Python: guest protocol 1, with nothing but the standard library.

A test is a module with functions that take the machines:

    def run(m):
        m.push("service.py", "/opt/")
        m.exec("systemctl start service")
        m.wait(port=8080)
        assert "ok" in m.exec("curl -s localhost:8080").stdout
        m["db"].exec("pg_isready")          # another machine, by its name

    python3 guestline.py TEST.py [setup|run|teardown]

runs one of them, within a test of Guestline, which sets GUESTLINE_SOCKET. Its exit status is 0 when the function
returns, 77 after skip(), 1 with a traceback after any other exception, 255 when Guestline itself failed.

`guestline sdk python` writes this file. Python 3.7 or later.
"""

import base64
import importlib.util
import json
import os
import socket
import sys
import traceback

__all__ = [
    "CommandFailed", "Error", "Failed", "Machine", "Machines", "Result", "Skip", "TimedOut",
    "await_key", "fail", "log", "send", "skip", "sync",
]

VERSION = 1
MAX_PIECE = 64 * 1024


class Error(Exception):
    """Guestline could not do it. `kind` is the protocol's word for why."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


class TimedOut(Error):
    """The time for it was over. `stdout` and `stderr` have what was said until then, as str."""

    def __init__(self, kind, message, stdout="", stderr=""):
        super().__init__(kind, message)
        self.stdout = stdout
        self.stderr = stderr

    def __str__(self):
        return _with_output(super().__str__(), self.stdout, self.stderr)


class CommandFailed(Exception):
    """A command ended with another status than 0. `result` has all of it."""

    def __init__(self, command, result):
        super().__init__(command, result)
        self.command = command
        self.result = result

    def __str__(self):
        how = "signal %d" % self.result.signal if self.result.signal else "status %d" % self.result.status
        return _with_output("%s: %r" % (how, self.command), self.result.stdout, self.result.stderr)


class Skip(Exception):
    """The test does not apply here."""


class Failed(AssertionError):
    """The test has failed."""


class Result:
    """What a command gave: `status` (128 and the number for a signal), `signal`, `stdout` and `stderr` as str, where
    bytes that are no UTF-8 are surrogates, and `stdout_bytes` and `stderr_bytes`."""

    def __init__(self, status, signal, stdout, stderr):
        self.status = status
        self.signal = signal
        self.stdout_bytes = stdout
        self.stderr_bytes = stderr

    @property
    def stdout(self):
        return self.stdout_bytes.decode("utf-8", "surrogateescape")

    @property
    def stderr(self):
        return self.stderr_bytes.decode("utf-8", "surrogateescape")

    @property
    def ok(self):
        return self.status == 0

    def __repr__(self):
        return "Result(status=%d, stdout=%r, stderr=%r)" % (self.status, self.stdout, self.stderr)


class Machine:
    """A machine of the test. Without a name, the only one there is."""

    def __init__(self, name=None):
        self.name = name

    def __repr__(self):
        return "%s(%r)" % (type(self).__name__, self.name)

    def exec(self, command, **options):
        """Runs a command, as try_exec(), and raises CommandFailed when its status is not 0."""
        result = self.try_exec(command, **options)
        if not result.ok:
            raise CommandFailed(command, result)
        return result

    def try_exec(self, command, input=None, user=None, cwd=None, env=None, timeout=None):
        """Runs a command: a line for the guest's shell, or a list of a program and its arguments. `input` is what it
        reads, str or bytes; `env` a dict in which None takes a variable out; `timeout` in seconds."""
        if isinstance(command, (str, bytes)):
            what = {"line": _data(command)}
        else:
            what = {"argv": [_data(word) for word in command]}
        request = self._request("exec", command=what)
        if input is not None:
            request["stdin"] = True
        if user is not None:
            request["user"] = str(user)
        if cwd is not None:
            request["cwd"] = _data(os.fspath(cwd))
        if env:
            request["env"] = {key: None if value is None else _data(value) for key, value in env.items()}
        _put_timeout(request, timeout)
        last, stdout, stderr = _ask(request, input)
        return Result(last["status"], last.get("signal"), stdout, stderr)

    def push(self, from_, to):
        """Copies files of the host into the machine, as cp would: one path, or a list of them."""
        return self._copy("push", [_host(path) for path in _paths(from_)], _data(os.fspath(to)))

    def pull(self, from_, to):
        """Copies files of the machine to the host, as cp would: one path, or a list of them."""
        return self._copy("pull", [_data(os.fspath(path)) for path in _paths(from_)], _host(to))

    def wait(self, line=None, port=None, file=None, unit=None, timeout=None):
        """Waits until a line for the guest's shell succeeds, a TCP port of 127.0.0.1 takes connections, a file is
        there, or a unit of systemd is active; 60 seconds unless `timeout` says otherwise. Raises TimedOut."""
        until = {}
        if line is not None:
            until["line"] = _data(line)
        if port is not None:
            until["port"] = port
        if file is not None:
            until["file"] = _data(os.fspath(file))
        if unit is not None:
            until["unit"] = unit
        if len(until) != 1:
            raise TypeError("wait() takes one of line, port, file and unit")
        request = self._request("wait", until=until)
        _put_timeout(request, timeout)
        _ask(request)

    def reboot(self, timeout=None):
        """Reboots the machine and waits until its agent answers again."""
        request = self._request("reboot")
        _put_timeout(request, timeout)
        _ask(request)

    def poweroff(self):
        """Powers the machine off."""
        _ask(self._request("poweroff"))

    def facts(self):
        """What the machine is, as a dict."""
        return _ask(self._request("facts"))[0]["facts"]

    def log(self, text):
        """Says something in the test's log, with the machine's name before it."""
        log("%s: %s" % (self.name, text) if self.name else text)

    def _request(self, verb, **fields):
        request = dict(fields, request=verb)
        if self.name is not None:
            request["machine"] = self.name
        return request

    def _copy(self, verb, from_, to):
        copied = _ask(dict(self._request(verb), **{"from": from_, "to": to}))[0]
        if copied.get("trouble_count"):
            troubles = ["%s: %s" % (_bytes(one["path"]).decode("utf-8", "replace"), one["error"])
                        for one in copied.get("troubles", [])]
            raise Error("refused", "%d could not be copied: %s" % (copied["trouble_count"], "; ".join(troubles)))
        return copied


class Machines(Machine):
    """All machines of the test: m["web"], m.machines["web"]; m itself has the verbs of the only one."""

    def __init__(self):
        super().__init__()
        connection, hello = _connect()
        connection.close()
        self.side = hello["side"]
        self.machines = {name: Machine(name) for name in hello["machines"]}

    def __getitem__(self, name):
        return self.machines[name]

    def __iter__(self):
        return iter(self.machines.values())

    def __len__(self):
        return len(self.machines)


def log(text):
    """Says something in the test's log."""
    _ask({"request": "log", "text": str(text)})


def skip(reason):
    """Ends the test: it does not apply here."""
    _ask({"request": "skip", "reason": str(reason)})
    raise Skip(reason)


def fail(reason):
    """Ends the test: it has failed."""
    _ask({"request": "fail", "reason": str(reason)})
    raise Failed(reason)


def sync(name, timeout=None):
    """Waits until every side of the test is at the same point."""
    request = {"request": "sync", "name": name}
    _put_timeout(request, timeout)
    _ask(request)


def send(key, value):
    """Leaves a value, str or bytes, for the other sides of the test."""
    _ask({"request": "send", "key": key, "value": _data(value)})


def await_key(key, timeout=None):
    """Waits for a value of another side, and returns it as str."""
    request = {"request": "await", "key": key}
    _put_timeout(request, timeout)
    return _bytes(_ask(request)[0]["value"]).decode("utf-8", "surrogateescape")


# The protocol (docs/guest.md): a connection for each request, so that threads and forks need no care.


def _connect():
    path = os.environ.get("GUESTLINE_SOCKET")
    if not path:
        raise Error("no-test", "GUESTLINE_SOCKET is not set: this runs only within a test: guestline run …")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise Error("ended", "nobody answers at `%s`: %s; has its test ended?" % (path, error)) from None
    lines = connection.makefile("rb")
    try:
        # A controller that has no room says so before it has read this.
        _say(connection, {"request": "hello", "version": VERSION, "client": "guestline.py"})
    except OSError:
        pass
    try:
        hello = _hear(lines)
        if hello["reply"] == "error":
            raise Error(hello["kind"], hello["message"])
    except BaseException:
        lines.close()
        connection.close()
        raise
    return _Connection(connection, lines), hello


class _Connection:
    def __init__(self, connection, lines):
        self.socket = connection
        self.lines = lines

    def close(self):
        self.lines.close()
        self.socket.close()


def _say(connection, request):
    connection.sendall(json.dumps(request).encode() + b"\n")


def _hear(lines):
    try:
        line = lines.readline()
    except OSError as error:
        raise Error("ended", "the connection is lost: %s" % error) from None
    if not line.endswith(b"\n"):
        raise Error("ended", "the connection is lost: the controller hung up")
    return json.loads(line.decode())


def _ask(request, input=None):
    """The last reply, and what was output before it."""
    connection, _ = _connect()
    try:
        return _converse(connection, request, input)
    finally:
        connection.close()


def _converse(connection, request, input):
    rest = _encoded(input) if input is not None else b""
    stdout, stderr = bytearray(), bytearray()

    def feed(rest):
        if input is None:
            return rest
        piece, rest = rest[:MAX_PIECE], rest[MAX_PIECE:]
        _say(connection.socket, {"request": "input", "data": _data(piece)} if piece else {"request": "end"})
        return rest

    try:
        _say(connection.socket, request)
        rest = feed(rest)
    except OSError as error:
        raise Error("ended", "the connection is lost: %s" % error) from None
    while True:
        reply = _hear(connection.lines)
        word = reply["reply"]
        if word == "output":
            (stdout if reply["stream"] == "stdout" else stderr).extend(_bytes(reply["data"]))
        elif word == "taken":
            try:
                rest = feed(rest)
            except OSError:
                pass  # Why is told by the next reply.
        elif word == "error" and reply["kind"] == "timeout":
            texts = [bytes(said).decode("utf-8", "surrogateescape") for said in (stdout, stderr)]
            raise TimedOut(reply["kind"], reply["message"], *texts)
        elif word == "error":
            raise Error(reply["kind"], reply["message"])
        else:
            return reply, bytes(stdout), bytes(stderr)


def _encoded(text):
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)


def _data(text):
    """Bytes as the protocol has them: text as it is, anything else as base64."""
    encoded = _encoded(text)
    try:
        return encoded.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(encoded).decode()}


def _bytes(data):
    return base64.b64decode(data["base64"]) if isinstance(data, dict) else data.encode()


def _paths(paths):
    return [paths] if isinstance(paths, (str, bytes, os.PathLike)) else list(paths)


def _host(path):
    """An absolute path; what ends with a slash still does, for that means a folder."""
    path = _encoded(os.fspath(path))
    return _data(os.path.join(os.fsencode(os.getcwd()), path))


def _put_timeout(request, seconds):
    if seconds is not None:
        request["timeout_ms"] = max(1, int(seconds * 1000))


def _with_output(text, stdout, stderr):
    for name, said in (("stdout", stdout), ("stderr", stderr)):
        if said:
            text += "\n--- %s\n%s" % (name, said.rstrip("\n"))
    return text


def main(words):
    """The launcher."""
    phases = ("setup", "run", "teardown")
    if len(words) not in (1, 2) or words[1:] and words[1] not in phases:
        print("usage: python3 guestline.py TEST.py [setup|run|teardown]", file=sys.stderr)
        return 255
    path, phase = words[0], (words[1:] or ["run"])[0]
    # What the test imports by this name is this module, so that its exceptions are these.
    sys.modules["guestline"] = sys.modules[__name__]
    try:
        sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
        machines = Machines()
        spec = importlib.util.spec_from_file_location("test", path)
        if spec is None or not os.path.isfile(path):
            raise Error("usage", "there is no Python module `%s`" % path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = getattr(module, phase, None)
        if function is None and phase == "run":
            raise Error("usage", "`%s` has no function run(m)" % path)
        if function is not None:
            function(machines)
    except Skip as why:
        print("skipped: %s" % why)
        return 77
    except Error as error:
        if not isinstance(error, TimedOut):
            traceback.print_exc()
            return 255
        traceback.print_exc()
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
