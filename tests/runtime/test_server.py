"""The server behind the web page, over HTTP."""

import http.client
import json
import re
import threading
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from mimicdet_runtime import Detector, UserError, server
from mimicdet_runtime.server import Models, PageServer
from tests.runtime.mock_model import make_metadata, write_mock


@contextmanager
def running(models, limits=None):
    page = PageServer(models, port=0, limits=limits)
    thread = threading.Thread(target=page.serve_forever)
    thread.start()
    try:
        yield page
    finally:
        page.shutdown()
        thread.join()
        page.server_close()


@pytest.fixture
def page(model_file):
    models = Models(lambda source, name: Detector(source, name=name))
    models.add(model_file, "mock.onnx")
    with running(models) as started:
        yield started


def request(page, method, path, body=None, headers=None):
    """(status, content as JSON or text, headers)"""
    connection = http.client.HTTPConnection(*page.server_address[:2], timeout=10)
    given = {"X-MimicDet": "1"} if headers is None else headers
    connection.request(method, path, body, given)
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    if answer.headers["Content-Type"] == "application/json":
        content = json.loads(content)
    return answer.status, content, answer.headers


def png(height=60, width=80, value=204):
    return cv2.imencode(".png", np.full((height, width, 3), value, np.uint8))[1].tobytes()


def test_the_page_names_no_other_address(page):
    for path in ("/", "/app.js", "/style.css", "/icon.svg"):
        status, content, headers = request(page, "GET", path)
        assert status == 200
        addresses = re.findall(r"https?://[^\s\"')]+", content)
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, "a name space, not fetched"
        assert headers["Content-Security-Policy"].startswith("default-src 'self'")


@pytest.mark.parametrize(
    "path", ["/server.py", "/../server.py", "/%2e%2e/server.py", "//etc/passwd", "/api/none"]
)
def test_only_the_pages_own_files_are_served(page, path):
    status, content, _ = request(page, "GET", path)
    assert status == 404 and content == {"error": "no such page"}


def test_detection(page):
    _, listed, _ = request(page, "GET", "/api/models")
    (model,) = listed["models"]
    assert model["class_names"] == ["circle", "square"] and model["nms_threshold"] == 0.6
    assert listed["uploads"] and not model["has_sampling"]
    status, found, _ = request(page, "POST", f"/api/detect?model={model['id']}", png())
    assert status == 200
    assert (found["width"], found["height"]) == (80, 60)
    assert [one["class"] for one in found["detections"]] == [1, 0]
    assert found["detections"][0]["box"] == pytest.approx([20, 15, 60, 45], abs=0.01)
    assert found["detections"][0]["score"] == pytest.approx(0.8)


def test_uploaded_models_are_used_and_the_newest_stay(page, model_file, monkeypatch):
    monkeypatch.setattr(server, "MAX_UPLOADED_MODELS", 2)
    content = model_file.read_bytes()
    keys = []
    for name in ("one.onnx", "two.onnx", "three.onnx"):
        status, model, _ = request(page, "POST", f"/api/models?name={name}", content)
        assert status == 200 and model["name"] == name
        keys.append(model["id"])
    _, listed, _ = request(page, "GET", "/api/models")
    names = [model["name"] for model in listed["models"]]
    assert names == ["mock.onnx", "two.onnx", "three.onnx"]
    assert request(page, "POST", f"/api/detect?model={keys[2]}", png())[0] == 200
    status, answer, _ = request(page, "POST", f"/api/detect?model={keys[0]}", png())
    assert status == 404 and "gone" in answer["error"]


def test_errors_are_one_line_each(page, tmp_path):
    foreign = write_mock(tmp_path / "foreign.onnx", make_metadata(), key="other").read_bytes()
    for path, body, status, message in [
        ("/api/detect?model=1", b"no image", 422, "not an image"),
        ("/api/detect?model=1", b"", 422, "not an image"),
        ("/api/detect?model=9", png(), 404, "gone"),
        ("/api/detect", png(), 404, "gone"),
        ("/api/models?name=x.onnx", b"no model", 422, "x.onnx: ONNX Runtime cannot load it"),
        ("/api/models?name=f.onnx", foreign, 422, "f.onnx: not written by MimicDet's export"),
        ("/api/sampling?model=1&box=1,2,3,4", png(), 404, "cannot be shown"),
        ("/api/sampling?model=1&box=1,2,nan,4", png(), 400, "four numbers"),
        ("/api/sampling?model=1&box=1,2", png(), 400, "four numbers"),
    ]:
        got, answer, _ = request(page, "POST", path, body)
        assert got == status and message in answer["error"] and "\n" not in answer["error"]


def test_too_large_uploads_are_refused_unread(page, monkeypatch):
    monkeypatch.setattr(server, "MAX_IMAGE_BYTES", 2**20)
    # The body is announced alone: the server answers before it would read it.
    headers = {"X-MimicDet": "1", "Content-Length": str(2**20 + 1)}
    status, answer, _ = request(page, "POST", "/api/detect?model=1", b"x", headers=headers)
    assert status == 413 and answer["error"] == "the file is larger than 1 MB"


def test_other_sites_are_kept_out(page):
    path = "/api/detect?model=1"
    assert request(page, "POST", path, png(), headers={})[0] == 403
    rebound = {"Host": "evil.example", "X-MimicDet": "1"}
    assert request(page, "POST", path, png(), headers=rebound)[0] == 403
    assert request(page, "GET", "/api/models", headers=rebound)[0] == 403
    assert request(page, "GET", "/api/models", headers={"Host": "localhost:1"})[0] == 200


def test_a_failing_model_does_not_end_the_server(model_file, capsys):
    class Failing:
        class_names = ("a",)

        def __call__(self, image):
            raise RuntimeError("inside")

    models = Models(None)
    models.put(Failing(), "failing")
    with running(models) as page:
        status, answer, _ = request(page, "POST", "/api/detect?model=1", png())
        assert status == 500 and answer == {"error": "the server failed"}
        assert request(page, "GET", "/api/models")[1]["uploads"] is False
        status, answer, _ = request(page, "POST", "/api/models", model_file.read_bytes())
        assert status == 422 and "takes no models" in answer["error"]
    assert "RuntimeError('inside')" in capsys.readouterr().err


def test_a_port_in_use_is_one_line(page):
    with pytest.raises(UserError, match="cannot listen at 127.0.0.1"):
        server.serve(Models(None), "127.0.0.1", page.server_address[1])
    assert Path(server.__file__).with_name("static").is_dir()
