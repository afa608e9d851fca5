"""The server under crowds, silence, bombs and signals: its own process, measured from outside."""

import http.client
import io
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from tests.runtime.mock_model import write_mock

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Server:
    """`mimicdet serve` and what /proc says of it."""

    def __init__(self, model):
        command = [sys.executable, "-m", "mimicdet_runtime", "serve", str(model), "--port", "0"]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(ROOT / "projects" / "MimicDetRuntime")},
        )
        self.address = (
            "127.0.0.1",
            int(self.process.stdout.readline().split(":")[2].split("/")[0]),
        )

    def status(self, name):
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(x for x in text.splitlines() if x.startswith(name + ":")).split()[1])

    def resident(self, name="VmRSS"):
        return self.status(name) / 1024

    def forget_peak(self):
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def post(self, path, body, timeout=60):
        """(status, content, seconds)"""
        start = time.monotonic()
        connection = http.client.HTTPConnection(*self.address, timeout=timeout)
        connection.request("POST", path, body, {"X-MimicDet": "1"})
        response = connection.getresponse()
        content = json.loads(response.read())
        connection.close()
        return response.status, content, time.monotonic() - start

    def detect(self, body):
        return self.post("/api/detect?model=1", body)


@pytest.fixture
def server(tmp_path):
    with serving(write_mock(tmp_path / "mock.onnx")) as started:
        yield started


@contextmanager
def serving(model):
    server = Server(model)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(width=640, height=480):
    return encoded(Image.effect_noise((width, height), 50).convert("RGB"))


def in_threads(count, work):
    """Results of `work()` called at the same time; the error in place of a result."""
    results, barrier = [None] * count, threading.Barrier(count)

    def run(index):
        barrier.wait()
        try:
            results[index] = work()
        except OSError as error:
            results[index] = (repr(error), None, 0.0)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    return threads, results


def test_fifty_at_once_get_fifty_answers(server):
    body = photo()
    for _ in range(3):
        threads, results = in_threads(50, lambda: server.detect(body))
        for thread in threads:
            thread.join()
        assert [status for status, _, _ in results] == [200] * 50
    slowest = max(seconds for _, _, seconds in results)
    print(
        f"3 x 50 concurrent requests: 150 answers, slowest of the last 50 {slowest:.2f} s, "
        f"{server.status('Threads')} threads"
    )


def test_a_crowd_beyond_the_line_is_told_and_never_reset(server):
    body = photo()
    threads, results = in_threads(200, lambda: server.detect(body))
    for thread in threads:
        thread.join()
    told = {status: sum(x[0] == status for x in results) for status in {x[0] for x in results}}
    assert set(told) <= {200, 503} and told[200] >= 64, told
    print(f"200 concurrent requests: {told}")


HALF_REQUESTS = {
    "uploads": b"POST /api/detect?model=1 HTTP/1.1\r\nHost: localhost\r\nX-MimicDet: 1\r\n"
    b"Content-Length: 30000000\r\n\r\n" + b"0" * 1000,
    "headers": b"POST /api/detect?model=1 HTTP/1.1\r\nHost: loc",
    "silent connections": b"",
}


@pytest.mark.parametrize("kind", HALF_REQUESTS)
def test_half_open_requests_hold_up_nobody(server, kind):
    body = photo()
    server.detect(body)
    before = server.resident()
    with ExitStack() as stack:
        for _ in range(300):
            half = stack.enter_context(socket.create_connection(server.address))
            half.sendall(HALF_REQUESTS[kind])
        seconds = []
        for _ in range(20):
            status, _, took = server.detect(body)
            assert status == 200
            seconds.append(took)
        threads = server.status("Threads")
        grown = server.resident() - before
    assert max(seconds) < 1 and threads < 20
    print(
        f"300 half-open {kind}: slowest of 20 healthy requests {max(seconds):.3f} s, "
        f"{threads} threads, {grown:.0f} MiB more"
    )


def png_bomb(side):
    """A black PNG of one bit a pixel."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    pixels = zlib.compress(bytes((side // 8 + 1) * side), 9)
    header = struct.pack(">IIBBBBB", side, side, 8 if side < 20000 else 1, 0, 0, 0, 0)
    if side < 20000:
        pixels = zlib.compress(bytes((side + 1) * side), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def tiled_tiff():
    """10 x 10 pixels in a tile of 60000 x 60000."""
    tags = [
        (256, 10),
        (257, 10),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, 60000),
        (323, 60000),
    ]
    tile = zlib.compress(bytes(2**22))
    end = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags += [(324, end), (325, len(tile))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + tile


def zip_text_png():
    """A small PNG with text that unpacks to 200 MB."""
    text = b"a\0\0" + zlib.compress(bytes(200 * MIB), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + text))
    small = encoded(Image.new("L", (8, 8)), "PNG")
    return small[:33] + chunk + small[33:]


def bombs():
    wide = Image.new("L", (14000, 14000))
    return {
        "PNG 14000 x 14000": png_bomb(14000),
        "PNG 40000 x 40000": png_bomb(40000),
        "PNG of 9500 x 9500": png_bomb(9500),
        "JPEG 14000 x 14000": encoded(wide, quality=1),
        "WebP 16383 x 16383": encoded(
            Image.new("RGB", (16383, 16383)), "WEBP", lossless=True, method=0
        ),
        "GIF 14000 x 14000": encoded(wide, "GIF"),
        "TIFF 14000 x 14000": encoded(wide, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF with a tile of 60000 x 60000": tiled_tiff(),
        "BMP header 30000 x 30000": encoded(Image.new("1", (8, 8)), "BMP").replace(
            struct.pack("<ii", 8, 8), struct.pack("<ii", 30000, 30000)
        ),
        "PPM header 50000 x 50000": b"P6 50000 50000 255\n" + bytes(1000),
        "PNG with 200 MB of text": zip_text_png(),
    }


def test_bombs_are_refused_by_their_headers(server):
    server.detect(photo())
    for name, body in bombs().items():
        server.forget_peak()
        before = server.resident()
        status, content, seconds = server.detect(body)
        grown = server.resident("VmHWM") - before
        print(f"{name} ({len(body) / 1000:.0f} kB): {status} in {seconds:.3f} s, {grown:.0f} MiB")
        assert status == 422, content
        assert seconds < 1 and grown < 200
    server.forget_peak()
    before = server.resident()
    status, _, seconds = server.detect(png_bomb(9400))
    grown = server.resident("VmHWM") - before
    print(f"beside them, the largest image taken, 9400 x 9400: {seconds:.1f} s, {grown:.0f} MiB")
    assert status == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_requests_in_flight_have_their_answers(server, number):
    body = photo(3000, 2000)
    server.detect(body)
    threads, results = in_threads(20, lambda: server.detect(body))
    with socket.create_connection(server.address) as half:
        half.sendall(HALF_REQUESTS["uploads"])
        time.sleep(0.5)
        assert not any(results[10:]) or not all(results), "the signal comes in the middle"
        start = time.monotonic()
        server.process.send_signal(number)
        code = server.process.wait(40)
        seconds = time.monotonic() - start
    for thread in threads:
        thread.join()
    assert [status for status, _, _ in results] == [200] * 20 and code == 0
    print(f"{number.name} amid 20 requests: 20 answers, exit code {code} after {seconds:.1f} s")


def heavy_model(path):
    """The small model with a product of 40 MiB of weights in front of its scores."""
    model = onnx.load(write_mock(path))
    graph = model.graph
    node = helper.make_node
    weights = np.random.default_rng(0).random((3, 40 * MIB // 12), dtype=np.float32)
    graph.initializer.append(numpy_helper.from_array(weights, "weights"))
    graph.initializer.append(numpy_helper.from_array(np.float32(1e-12), "tiny"))
    graph.node[3].output[0] = "real_brightest"
    extra = [
        node("ReduceMean", ["images"], ["mean"], axes=[2, 3], keepdims=0),
        node("MatMul", ["mean", "weights"], ["product"]),
        node("ReduceMax", ["product"], ["largest"], axes=[1], keepdims=0),
        node("Mul", ["largest", "tiny"], ["nothing"]),
        node("Add", ["real_brightest", "nothing"], ["brightest"]),
    ]
    nodes = [*graph.node[:4], *extra, *graph.node[4:]]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def test_twelve_uploaded_models_hold_no_more_than_three(server, tmp_path):
    content, body = heavy_model(tmp_path / "heavy.onnx"), photo()
    server.detect(body)
    sizes = [server.resident()]
    for _ in range(12):
        status, model, _ = server.post("/api/models?name=heavy.onnx", content)
        assert status == 200, model
        assert server.post(f"/api/detect?model={model['id']}", body)[0] == 200
        sizes.append(server.resident())
    print("RSS in MiB before and after each of 12 uploads of 40 MiB:", *(round(x) for x in sizes))
    assert sizes[-1] - sizes[0] < 8 * 40
    assert max(sizes) < sizes[4] + 2 * 40, "no growth after the fourth"
