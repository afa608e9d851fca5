"""
The web page: a small HTTP server of the standard library, one page, no outside address.

    GET  /                      the page; /app.js, /style.css, /icon.svg
    GET  /api/models            the models to choose from
    POST /api/models?name=...   body: an ONNX file; answers the new model
    POST /api/detect?model=ID   body: an image file; answers its detections
    POST /api/sampling?model=ID&box=X0,Y0,X1,Y1
                                body: the same image; answers the points sampled for that box

Errors are JSON {"error": "one line"} with a 4xx status. A POST needs the header X-MimicDet, which a
page of another site cannot send without being asked for leave first, and it never gets leave. While
listening on this machine alone, only this machine's names are accepted as Host, so that no foreign
name can be pointed here.
"""

import ipaddress
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import numpy as np

from .detections import Detections
from .errors import UserError
from .images import decode_image

MAX_IMAGE_BYTES = 32 * 2**20
MAX_MODEL_BYTES = 1024 * 2**20
MAX_UPLOADED_MODELS = 4
_TIMEOUT_SECONDS = 60
_STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class ServedModel(Protocol):
    """
    A model as the page needs it.

    A model whose sampling can be shown also has `sampling(image, box)`, which returns what
    /api/sampling answers: {"points": [[x, y], ...], "anchor": [x0, y0, x1, y1] or None}, in pixels.
    """

    class_names: tuple[str, ...]

    def __call__(self, image: np.ndarray) -> Detections:
        """Detections of a (H, W, 3) uint8 BGR image."""
        ...


class RequestError(Exception):
    """A request that is answered by a status and one line."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Models:
    """The models of one server by their ids; safe to use from several threads."""

    def __init__(self, load: Callable[[Any, str], ServedModel] | None) -> None:
        """load: makes a model of (path or content, name); None: no model can be uploaded."""
        self._load = load
        self._models: dict[str, tuple[str, ServedModel]] = {}
        self._uploaded: list[str] = []
        self._count = 0
        self._lock = threading.Lock()

    @property
    def takes_uploads(self) -> bool:
        """Whether visitors can bring a model."""
        return self._load is not None

    def add(self, source: Any, name: str, uploaded: bool = False) -> dict[str, Any]:
        """Load a model from a path or a file's content; of uploads the newest four stay."""
        if self._load is None:
            raise UserError("this server takes no models")
        return self.put(self._load(source, name), name, uploaded)

    def put(self, model: ServedModel, name: str, uploaded: bool = False) -> dict[str, Any]:
        """Add a model that is loaded; returns its description."""
        with self._lock:
            self._count += 1
            key = str(self._count)
            self._models[key] = (name, model)
            if uploaded:
                self._uploaded.append(key)
                if len(self._uploaded) > MAX_UPLOADED_MODELS:
                    del self._models[self._uploaded.pop(0)]
        return _describe(key, name, model)

    def get(self, key: str) -> ServedModel:
        """The model of an id; RequestError where there is none."""
        with self._lock:
            if key not in self._models:
                raise RequestError(HTTPStatus.NOT_FOUND, "this model is gone; choose another one")
            return self._models[key][1]

    def describe(self) -> list[dict[str, Any]]:
        """All models, in the order they were added."""
        with self._lock:
            return [_describe(key, name, model) for key, (name, model) in self._models.items()]


def _describe(key: str, name: str, model: ServedModel) -> dict[str, Any]:
    info = getattr(model, "info", None)
    return {
        "id": key,
        "name": name,
        "class_names": list(model.class_names),
        "score_threshold": info.score_threshold if info else 0.0,
        "nms_threshold": info.nms_threshold if info else 1.0,
        "precision": info.written.get("precision") if info else None,
        "has_sampling": hasattr(model, "sampling"),
    }


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection; the server holds the models."""

    server: "PageServer"
    server_version = "mimicdet"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_SECONDS

    def do_GET(self) -> None:
        """The page's files and the list of models."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Uploads and detection."""
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: the terminal shows the address and real errors only."""

    def _answer(self, work: Callable[[str, dict[str, str]], None]) -> None:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        try:
            self._check_host()
            work(url.path, query)
        except RequestError as error:
            self._send_json({"error": str(error)}, error.status)
        except UserError as error:
            self._send_json({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:  # the server goes on, and the visitor learns that it failed
            print(f"mimicdet: {self.path}: {error!r}", file=sys.stderr)
            self._send_json({"error": "the server failed"}, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _get(self, path: str, query: dict[str, str]) -> None:
        if path in _STATIC:
            name, kind = _STATIC[path]
            content = (resources.files(__package__) / "static" / name).read_bytes()
            self._send(content, kind)
        elif path == "/api/models":
            self._send_json(self.server.describe())
        else:
            raise RequestError(HTTPStatus.NOT_FOUND, "no such page")

    def _post(self, path: str, query: dict[str, str]) -> None:
        if "X-MimicDet" not in self.headers:
            raise RequestError(HTTPStatus.FORBIDDEN, "the header X-MimicDet is missing")
        if path == "/api/models":
            name = query.get("name", "")[:100] or "uploaded model"
            content = self._body(MAX_MODEL_BYTES)
            self._send_json(self.server.models.add(content, name, uploaded=True))
        elif path == "/api/detect":
            model = self.server.models.get(query.get("model", ""))
            self._send_json(self.server.detect(model, self._image()))
        elif path == "/api/sampling":
            model = self.server.models.get(query.get("model", ""))
            box = _parse_box(query.get("box", ""))
            self._send_json(self.server.sampling(model, self._image(), box))
        else:
            raise RequestError(HTTPStatus.NOT_FOUND, "no such page")

    def _check_host(self) -> None:
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        if self.server.is_local and not _is_loopback(host):
            raise RequestError(HTTPStatus.FORBIDDEN, "this server answers to localhost only")

    def _image(self) -> np.ndarray:
        return decode_image(self._body(MAX_IMAGE_BYTES), "the upload")

    def _body(self, limit: int) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True
            raise RequestError(HTTPStatus.LENGTH_REQUIRED, "the length of the upload is missing")
        if int(length) > limit:
            self.close_connection = True
            megabytes = limit // 2**20
            raise RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the file is larger than {megabytes} MB"
            )
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionError("the upload broke off")
        return body

    def _send_json(self, content: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        if status >= HTTPStatus.BAD_REQUEST and self.command == "POST":
            # A body that was not read would be taken for the next request.
            self.close_connection = True
        self._send(json.dumps(content).encode(), "application/json", status)

    def _send(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


class PageServer(ThreadingHTTPServer):
    """The server; one image is worked on at a time, since each uses all the processor has."""

    daemon_threads = True

    def __init__(self, models: Models, host: str = "127.0.0.1", port: int = 8000) -> None:
        """Offer models at an address; port 0: any that is free. OSError: it cannot be had."""
        self.models = models
        self._host = host
        self.is_local = _is_loopback(host)
        self._busy = threading.Lock()
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    @property
    def address(self) -> str:
        """What to type into a browser."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.server_port}/"

    def describe(self) -> dict[str, Any]:
        """The answer of GET /api/models."""
        return {
            "models": self.models.describe(),
            "uploads": self.models.takes_uploads,
            "max_image_bytes": MAX_IMAGE_BYTES,
            "max_model_bytes": MAX_MODEL_BYTES,
        }

    def detect(self, model: ServedModel, image: np.ndarray) -> dict[str, Any]:
        """The answer of /api/detect."""
        with self._busy:
            start = time.perf_counter()
            result = model(image)
            seconds = time.perf_counter() - start
        detections = [
            {"box": [round(float(v), 2) for v in box], "score": float(score), "class": int(number)}
            for box, score, number in zip(result.boxes, result.scores, result.classes)
        ]
        height, width = image.shape[:2]
        return {"width": width, "height": height, "seconds": seconds, "detections": detections}

    def sampling(self, model: ServedModel, image: np.ndarray, box: list[float]) -> dict[str, Any]:
        """The answer of /api/sampling."""
        show = getattr(model, "sampling", None)
        if show is None:
            raise RequestError(HTTPStatus.NOT_FOUND, "this model's sampling cannot be shown")
        with self._busy:
            return show(image, box)


def _parse_box(text: str) -> list[float]:
    try:
        box = [float(part) for part in text.split(",")]
    except ValueError:
        box = []
    if len(box) != 4 or not np.isfinite(box).all():
        raise RequestError(HTTPStatus.BAD_REQUEST, "box has to be four numbers")
    return box


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(models: Models, host: str, port: int) -> None:
    """Print the address and answer until Ctrl-C; UserError where the address cannot be had."""
    try:
        server = PageServer(models, host, port)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen at {host}:{port}: {error}") from error
    with server:
        print(f"Open {server.address} in a browser; Ctrl-C stops.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
