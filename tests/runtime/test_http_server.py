"""The limits of the server: bad requests, slow and silent visitors, a full line, stopping."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from mimicdet_runtime import server
from mimicdet_runtime.detections import Detections
from mimicdet_runtime.http_server import Limits
from mimicdet_runtime.server import Models, PageServer
from tests.runtime.test_server import png, request, running


class SlowModel:
    """Finds nothing, as soon as it is let go."""

    class_names = ("a",)

    def __init__(self):
        self.go, self.started = threading.Event(), threading.Semaphore(0)

    def __call__(self, image):
        self.started.release()
        assert self.go.wait(20)
        return Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), self.class_names)


@contextmanager
def serving(**limits):
    model, models = SlowModel(), Models(lambda source, name: model)
    models.put(model, "slow")
    with running(models, Limits(**limits)) as page:
        page.model = model
        try:
            yield page
        finally:
            model.go.set()


@contextmanager
def connected(page, *parts):
    with socket.create_connection(page.server_address, timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
        yield connection


def answer(connection):
    """(status, headers, content as JSON) of the next answer."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.headers, json.loads(response.read())


def head(length=None, path="/api/detect?model=1", host="localhost", **headers):
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "X-MimicDet: 1"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def detect_in_thread(page, answers):
    thread = threading.Thread(
        target=lambda: answers.append(request(page, "POST", "/api/detect?model=1", png())[0])
    )
    thread.start()
    return thread


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


BAD_REQUESTS = [
    (head("9" * 5000), 400),
    (head("-5"), 400),
    (head("+5"), 400),
    (head("five"), 400),
    (head("\xb2"), 400),
    (head(""), 400),
    (head("5\r\nContent-Length: 6"), 400),
    (head("9" * 18), 413),
    (head(2**25 + 1), 413),
    (head(), 411),
    (head(5, Transfer_Encoding="chunked"), 411),
    (head(5, host="localhost:port"), 400),
    (head(5, host="localhost:99999"), 400),
    (head(5, host="[::1"), 400),
    (head(5, host=""), 403),
    (head(5, host="evil.example"), 403),
    (head(5, path="/api/detect?model=7"), 404),
    (head(5, path="/api/none"), 404),
    (b"GET / HTTP/1.1\r\n\r\n", 403),
    (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
    (b"GET //[ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    (b"GET /\r\n\r\n", 400),
    (b"\xff\xfe\r\n\r\n", 400),
    (b"\x16\x03\x01" + b"\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 400),
    (b"GET / HTTP/1.1\r\nA: " + b"b" * 2**17, 431),
]


@pytest.mark.parametrize("sent, status", BAD_REQUESTS, ids=range(len(BAD_REQUESTS)))
def test_bad_requests_get_their_status_and_a_line(bad_request_page, sent, status):
    with connected(bad_request_page, sent) as connection:
        got, headers, content = answer(connection)
        assert got == status and len(content["error"].splitlines()) == 1
        assert headers["Connection"] == "close" and connection.recv(1) == b"", "then it is closed"
    assert request(bad_request_page, "GET", "/api/models")[0] == 200


@pytest.fixture(scope="module")
def bad_request_page():
    with serving() as page:
        yield page


def test_a_connection_takes_several_requests_and_may_ask_to_go_on():
    with serving() as page, connected(page) as connection:
        page.model.go.set()
        for _ in range(2):
            connection.sendall(head(len(png()), Expect="100-continue"))
            assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(png())
            assert answer(connection)[0] == 200
        connection.sendall(b"GET /api/models HTTP/1.0\r\nHost: [::1]:80\r\n\r\n")
        assert answer(connection)[0] == 200 and connection.recv(1) == b""


def test_a_full_line_is_told_and_no_request_is_lost():
    answers = []
    with serving(queue=3) as page:
        threads = [detect_in_thread(page, answers) for _ in range(3)]
        wait_until(lambda: page._queued == 3)
        # The whole body is sent before the answer is read.
        status, content, headers = request(page, "POST", "/api/detect?model=1", b"0" * 2**21)
        assert status == 503 and int(headers["Retry-After"]) > 0 and "busy" in content["error"]
        assert request(page, "GET", "/api/models")[0] == 200, "needs no worker"
        page.model.go.set()
        for thread in threads:
            thread.join()
    assert answers == [200] * 3


def test_who_waited_too_long_in_line_is_told():
    answers = []
    with serving(workers=1, queue_seconds=0.1) as page:
        first = detect_in_thread(page, answers)
        page.model.started.acquire()
        second = detect_in_thread(page, answers)
        wait_until(lambda: page._queued == 2)
        time.sleep(0.2)
        page.model.go.set()
        first.join()
        second.join()
    assert answers == [200, 503]


def test_slow_visitors_are_told_and_silent_ones_dropped():
    with serving(idle_seconds=0.2, head_seconds=0.2, body_seconds=0.2) as page:
        for parts in ([b"POST /api/det"], [head(9), b"12345678"]):
            with connected(page, *parts) as connection:
                status, _, content = answer(connection)
                assert status == 408 and "too long" in content["error"]
        with connected(page) as connection:
            assert connection.recv(1) == b""


def test_the_connection_that_waited_longest_makes_room():
    with serving(connections=3) as page, connected(page) as silent:
        wait_until(lambda: len(page._connections) == 1)
        with connected(page, head(9)) as half, connected(page, head(9)):
            wait_until(lambda: len(page._connections) == 3)
            assert request(page, "GET", "/api/models")[0] == 200
            assert silent.recv(1) == b""
            wait_until(lambda: len(page._connections) == 2)
            with connected(page), connected(page):
                assert answer(half)[0] == 503


def test_the_largest_upload_makes_room_when_memory_is_used_up():
    with serving(body_bytes=2**20) as page:
        page.model.go.set()
        with connected(page, head(2**20), b"0" * (2**20 - 1000)) as large:
            wait_until(lambda: page._held_bytes == 2**20 - 1000)
            body = png() + b"0" * 2000
            assert request(page, "POST", "/api/detect?model=1", body)[0] == 200
            assert answer(large)[0] == 503
        assert request(page, "POST", "/api/detect?model=1", b"0" * (2**20 + 1))[0] == 503
        wait_until(lambda: page._held_bytes == 0)


def test_a_stop_waits_for_answers_and_not_for_silence():
    answers = []
    with serving(stop_upload_seconds=0.2) as page:
        threads = [detect_in_thread(page, answers) for _ in range(4)]
        wait_until(lambda: page._queued == 4)
        with connected(page) as silent, connected(page, head(9)) as half:
            wait_until(lambda: len(page._connections) == 6)
            page.shutdown()
            assert silent.recv(1) == b"" and answer(half)[0] == 503
        page.model.go.set()
        for thread in threads:
            thread.join()
    assert answers == [200] * 4


def test_a_stop_has_a_deadline():
    with serving(stop_seconds=0.2) as page:
        with connected(page, head(len(png())), png()) as connection:
            page.model.started.acquire()
            start = time.monotonic()
            page.shutdown()
            assert connection.recv(1) == b"" and time.monotonic() - start < 5


_SERVE = """
import sys, threading, time
import numpy as np
from mimicdet_runtime.detections import Detections
from mimicdet_runtime.server import Models, serve

class Model:
    class_names = ("a",)

    def __call__(self, image):
        print("started", flush=True)
        time.sleep(0.5)
        return Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), self.class_names)

models = Models(None)
models.put(Model(), "slow")
serve(models, "127.0.0.1", 0)
print("ended", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_server_after_its_answers(number):
    with subprocess.Popen([sys.executable, "-c", _SERVE], stdout=subprocess.PIPE, text=True) as run:
        port = int(run.stdout.readline().split("/")[2].split(":")[1])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(head(len(png())) + png())
            assert run.stdout.readline() == "started\n"
            run.send_signal(number)
            assert answer(connection)[0] == 200
        assert run.wait(10) == 0 and run.stdout.read().endswith("ended\n")


def test_uploaded_models_are_bounded_in_size(monkeypatch):
    monkeypatch.setattr(server, "MAX_UPLOADED_BYTES", 100)
    models = Models(lambda source, name: SlowModel())
    models.add("own.onnx", "own")
    for size in (40, 50, 60, 100):
        models.add(b"0" * size, str(size), uploaded=True)
        kept = [model["name"] for model in models.describe()]
        assert kept[0] == "own", "given on the command line"
        assert kept[1:] == {40: ["40"], 50: ["40", "50"], 60: ["60"], 100: ["100"]}[size]


def test_a_page_that_never_served_is_closed():
    with PageServer(Models(None), port=0) as page:
        page.shutdown()
        page.serve_forever()
    with pytest.raises(OSError):
        socket.create_connection(page.server_address, timeout=1)
