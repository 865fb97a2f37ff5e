"""pytest -m slow tests/serve/test_process.py: a real process: signals, slow and damaged connections."""

import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import vismoe
from vismoe.serve.process import MOST_CONNECTIONS

from .conftest import IMAGES, encoded, network

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")]
PNG = encoded(IMAGES[0])
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + PNG + b"\r\n--x--\r\n"
)  # fmt: skip
HEAD = (
    f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    f"Content-Length: {len(FORM)}\r\n"
).encode()


class Process:
    """A running `vismoe serve`."""

    def __init__(self, model, *options):
        command = [sys.executable, "-m", "vismoe", "serve", str(model), "--port", "0", *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.popen = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        line = self.popen.stdout.readline()
        assert line.startswith("vismoe: ready at http://127.0.0.1:"), line + self.popen.stderr.read()
        self.port = int(line.rpartition(":")[2])
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.popen.stderr))
        self.reader.start()

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), 20)

    def ask(self):
        """The probabilities for an image."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/predict",
            FORM,
            {"Content-Type": "multipart/form-data; boundary=x"},
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            return [each["probability"] for each in json.load(response)["predictions"][0]]

    def status(self):
        """The status of a request."""
        try:
            return 200 if self.ask() else 0
        except urllib.error.HTTPError as error:
            return error.code

    def stop(self):
        if self.popen.poll() is None:
            self.popen.terminate()
        code = self.popen.wait(20)
        self.reader.join(20)
        self.popen.stdout.close()
        self.popen.stderr.close()
        return code


@pytest.fixture
def start():
    processes = []

    def started(*arguments):
        processes.append(Process(*arguments))
        return processes[-1]

    yield started
    for process in processes:
        process.stop()


def answer(connection):
    """The status and the error's code of an answer; the connection is closed after it or left open."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        assert piece, f"closed without an answer: {received!r}"
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    values = json.loads(body)
    return int(head.split()[1]), values["error"]["code"] if "error" in values else ""


def test_slow_and_damaged_connections(start, folder):
    """A client that sends its head or body too slowly is told so, and its connection closed; others are answered
    meanwhile. Heads that are too large or no HTTP are refused, in JSON."""
    process = start(folder, "--request-timeout", "1", "--max-body", "100KB")
    slow_head, slow_body, silent = process.connect(), process.connect(), process.connect()
    slow_head.sendall(b"GET /healthz HTTP/1.1\r\nHost: ")
    slow_body.sendall(HEAD + b"\r\n" + FORM[:50])
    started = time.monotonic()
    assert process.ask()
    assert answer(slow_head) == (408, "timeout")
    assert answer(slow_body) == (408, "timeout")
    assert 0.5 < time.monotonic() - started < 10
    assert silent.recv(100) == b""  # closed
    for connection in (slow_head, slow_body, silent):
        connection.close()

    for content, expected in (
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 100_000, (431, "head_too_large")),
        (b"hello\r\n\r\n", (400, "bad_request")),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", (400, "bad_request")),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", (400, "bad_request")),
        (b"GET /healthz HTTP/1.1\r\n\r\n", (400, "bad_request")),  # no Host
    ):
        with process.connect() as connection:
            connection.sendall(content)
            assert answer(connection) == expected, content[:60]

    with process.connect() as connection:  # the answer is not lost although the client sends all before it reads
        connection.sendall(HEAD.replace(str(len(FORM)).encode(), b"5000000") + b"\r\n" + bytes(5_000_000))
        assert answer(connection) == (413, "too_large")
    assert process.ask()
    assert process.stop() == 0


def test_sigterm_finishes_what_has_begun(start, folder):
    """A request whose body is still on its way when the signal comes is answered; new connections are not accepted; the
    exit code is 0, and each line of the log is JSON."""
    process = start(folder)
    connection = process.connect()
    connection.sendall(HEAD + b"\r\n" + FORM[:50])
    time.sleep(0.3)
    process.popen.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    with pytest.raises(ConnectionError):
        process.connect().close()
    assert process.popen.poll() is None
    connection.sendall(FORM[50:])
    assert answer(connection) == (200, "")
    connection.close()
    assert process.popen.wait(20) == 0
    process.reader.join(20)
    events = [json.loads(line) for line in process.lines]
    assert [event["status"] for event in events if event["event"] == "request"] == [200]


def test_sighup_loads_the_model_again(start, tmp_path):
    """While clients ask; none is refused. If the new model is broken, the old one stays."""
    path = vismoe.save(network(0), tmp_path / "model")
    old, new = (vismoe.Predictor(network(seed)).predict(IMAGES[0])[0].probabilities for seed in (0, 1))
    process = start(path)
    assert process.ask() == pytest.approx(old, abs=1e-5)
    vismoe.save(network(1), path)
    process.popen.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 20
    while process.ask() != pytest.approx(new, abs=1e-5):
        assert time.monotonic() < deadline
    (path / "config.json").write_text("{")
    process.popen.send_signal(signal.SIGHUP)
    while not any("reload failed" in line for line in process.lines):
        assert process.ask() == pytest.approx(new, abs=1e-5)
        assert time.monotonic() < deadline
    assert process.stop() == 0


def test_an_answer_does_not_wait_for_an_acknowledgement(start, folder):
    """On a connection that is kept, answers come at once: the operating system does not hold back their last part
    until the client has acknowledged the first, which takes 40 ms."""
    process = start(folder)
    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=20)
    seconds = []
    for _ in range(60):
        started = time.perf_counter()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        seconds.append(time.perf_counter() - started)
    connection.close()
    assert statistics.median(seconds) < 0.02


def test_connections_beyond_the_limit_are_refused(start, folder):
    """One client that opens connections and sends nothing does not take the service's files; the refusal is JSON."""
    process = start(folder)
    idle = [process.connect() for _ in range(MOST_CONNECTIONS)]
    with process.connect() as further:
        assert answer(further) == (503, "busy")
    idle.pop().close()
    deadline = time.monotonic() + 10
    while (status := process.status()) != 200:
        assert status == 503
        assert time.monotonic() < deadline
    for connection in idle:
        connection.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the ignored signals from /proc")
def test_a_hangup_during_the_start_does_not_end_the_service(folder):
    """SIGHUP loads the models again once there are some; before, it is ignored."""
    command = [sys.executable, "-m", "vismoe", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as popen:
        state = Path(f"/proc/{popen.pid}/status")
        deadline = time.monotonic() + 60
        while not int(state.read_text().partition("SigIgn:")[2].split()[0], 16) & 1:  # SIGHUP is number 1
            assert time.monotonic() < deadline
            time.sleep(0.01)
        popen.send_signal(signal.SIGHUP)
        assert popen.stdout.readline().startswith("vismoe: ready at")
        popen.terminate()
        assert popen.wait(20) == 0
