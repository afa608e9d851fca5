"""
The web page: one page, no outside address, on the server of http_server.py.

    GET  /                      the page; /app.js, /style.css, /icon.svg
    GET  /api/models            the models to choose from
    POST /api/models?name=...   body: an ONNX file; answers the new model
    POST /api/detect?model=ID   body: an image file; answers its detections
    POST /api/sampling?model=ID&box=X0,Y0,X1,Y1
                                body: the same image; answers the points sampled for that box

Errors are JSON {"error": "one line"} with a 4xx status. A POST needs the header X-MimicDet, which a
page of another site cannot send without being asked for leave first, and it never gets leave. While
listening on this machine alone, only this machine's names are accepted as Host, so that no foreign
name can be pointed here. 503 with Retry-After: as many requests wait as the server takes.
"""

import ipaddress
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from importlib import resources
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np

from .detections import Detections
from .errors import UserError
from .http_server import Answer, HttpServer, Limits, Request, RequestError
from .images import decode_image

MAX_IMAGE_BYTES = 32 * 2**20
MAX_MODEL_BYTES = 512 * 2**20
# Of uploaded models the newest stay, as many as fit both limits.
MAX_UPLOADED_MODELS = 2
MAX_UPLOADED_BYTES = 512 * 2**20
MODEL_SECONDS = 60.0  # that a model may take for an image
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


class Models:
    """The models of one server by their ids; safe to use from several threads.

    A model in use while it is dropped stays until its answer is given.
    """

    def __init__(self, load: Callable[[Any, str], ServedModel] | None) -> None:
        """load: makes a model of (path or content, name); None: no model can be uploaded."""
        self._load = load
        self._models: dict[str, tuple[str, ServedModel]] = {}
        self._uploaded: dict[str, int] = {}  # sizes of the files in bytes, oldest first
        self._count = 0
        self._lock = threading.Lock()
        self._loading = threading.Lock()  # one at a time: loading takes several times the file

    @property
    def takes_uploads(self) -> bool:
        """Whether visitors can bring a model."""
        return self._load is not None

    def add(self, source: Any, name: str, uploaded: bool = False) -> dict[str, Any]:
        """Load a model from a path, or an upload from its content; returns its description."""
        if self._load is None:
            raise UserError("this server takes no models")
        with self._loading:
            return self.put(self._load(source, name), name, len(source) if uploaded else None)

    def put(self, model: ServedModel, name: str, upload_bytes: int | None = None) -> dict[str, Any]:
        """
        Add a model that is loaded; returns its description. An upload, of `upload_bytes`, may take
        the place of older ones.
        """
        with self._lock:
            self._count += 1
            key = str(self._count)
            self._models[key] = (name, model)
            if upload_bytes is not None:
                self._uploaded[key] = upload_bytes
            while (
                len(self._uploaded) > MAX_UPLOADED_MODELS
                or sum(self._uploaded.values()) > MAX_UPLOADED_BYTES
            ):
                oldest = next(iter(self._uploaded))
                del self._uploaded[oldest], self._models[oldest]
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


class PageServer(HttpServer):
    """
    The server; one image is unpacked and worked on at a time, since each uses all the processor
    has, and a large one much of the memory.
    """

    headers = _HEADERS

    def __init__(
        self,
        models: Models,
        host: str = "127.0.0.1",
        port: int = 8000,
        limits: Limits | None = None,
    ) -> None:
        """Offer models at an address; port 0: any that is free. OSError: it cannot be had."""
        super().__init__(host, port, limits)
        self.models = models
        self._host = host
        self.is_local = _is_loopback(host)
        self._busy = threading.RLock()

    def check(self, request: Request) -> int:
        """The most bytes of the body; RequestError for what is refused whatever the body is."""
        self._check_host(request.headers.get("Host", ""))
        if request.method == "GET":
            return 0
        if request.method != "POST":
            raise RequestError(HTTPStatus.METHOD_NOT_ALLOWED, "GET and POST are answered")
        if "X-MimicDet" not in request.headers:
            raise RequestError(HTTPStatus.FORBIDDEN, "the header X-MimicDet is missing")
        if request.path == "/api/models":
            return MAX_MODEL_BYTES
        if request.path in ("/api/detect", "/api/sampling"):
            self.models.get(request.query.get("model", ""))
            return MAX_IMAGE_BYTES
        raise RequestError(HTTPStatus.NOT_FOUND, "no such page")

    def answer(self, request: Request) -> Answer:
        """The page, or what its script asks for."""
        if request.method == "POST":
            return _json(self._post(request))
        if request.path == "/api/models":
            return _json(self.describe())
        if request.path not in _STATIC:
            raise RequestError(HTTPStatus.NOT_FOUND, "no such page")
        name, kind = _STATIC[request.path]
        return Answer((resources.files(__package__) / "static" / name).read_bytes(), kind)

    def error_answer(self, status: HTTPStatus, message: str) -> Answer:
        """JSON with one line."""
        return _json({"error": message}, status)

    def _post(self, request: Request) -> dict[str, Any]:
        if request.path == "/api/models":
            name = request.query.get("name", "")[:100] or "uploaded model"
            return self.models.add(request.body, name, uploaded=True)
        model = self.models.get(request.query.get("model", ""))
        if request.path == "/api/detect":
            with self._busy:
                return self.detect(model, decode_image(request.body, "the upload"))
        box = _parse_box(request.query.get("box", ""))
        with self._busy:
            return self.sampling(model, decode_image(request.body, "the upload"), box)

    def _check_host(self, text: str) -> None:
        try:
            url = urlsplit(f"//{text}")
            _ = url.port  # raises ValueError as urlsplit does
        except ValueError as error:
            raise RequestError(HTTPStatus.BAD_REQUEST, "Host is not a name and port") from error
        if self.is_local and not _is_loopback(url.hostname or ""):
            raise RequestError(HTTPStatus.FORBIDDEN, "this server answers to localhost only")

    @property
    def address(self) -> str:
        """What to type into a browser."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.server_address[1]}/"

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
    with server, _stops(server):
        print(f"Open {server.address} in a browser; Ctrl-C stops.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # a second one: the answers are not waited for
            pass
    print()


@contextmanager
def _stops(server: HttpServer) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the server once it has answered; a second one ends it at once."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: Any) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        server.shutdown()

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _json(content: Any, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    return Answer(json.dumps(content).encode(), "application/json", status)
