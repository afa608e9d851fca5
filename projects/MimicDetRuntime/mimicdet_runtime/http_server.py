"""
A small HTTP/1.1 server of the standard library, with a limit to all that a visitor can use up.

One thread reads and writes all connections with asyncio, so that a slow or silent visitor costs no
thread. Requests that are complete are answered by a few worker threads; the others wait in line.
"""

import asyncio
import enum
import http.client
import io
import re
import socket
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from email.message import Message
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .errors import UserError

_MIB = 2**20
_READ_SIZE = 2**18
_RETRY_SECONDS = 5


@dataclass(frozen=True)
class Limits:
    """What the visitors of a server can use up."""

    connections: int = 256  # beyond it the one that has kept the server waiting longest is dropped
    queue: int = 64  # requests that wait for a worker or are being answered; beyond it: 503
    workers: int = 2
    head_bytes: int = 2**16  # request line and headers
    body_bytes: int = 512 * _MIB  # bodies of all requests together, as far as they have arrived
    idle_seconds: float = 60.0  # between two requests of a connection
    head_seconds: float = 10.0
    body_seconds: float = 60.0  # and one second more for each MiB
    queue_seconds: float = 120.0
    send_seconds: float = 30.0
    close_seconds: float = 5.0  # for a visitor to read an answer and close, still sending or not
    stop_upload_seconds: float = 2.0  # for uploads that are under way when the server stops
    stop_seconds: float = 30.0  # for all answers then


class RequestError(Exception):
    """A request that is answered by a status and one line."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def busy() -> RequestError:
    """The answer of a server that has as much to do as it takes on."""
    return RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "the server is busy; try again")


@dataclass(frozen=True)
class Request:
    """One request; of a parameter that is given twice, the last value counts."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Message
    keeps_alive: bool
    body: bytes = b""

    def content_length(self) -> int | None:
        """Bytes of the body, None where it is not told; RequestError for what is no length."""
        given = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or not given:
            return None
        if len(given) > 1 or not re.fullmatch("[0-9]{1,18}", given[0]):
            raise RequestError(HTTPStatus.BAD_REQUEST, "Content-Length is not a length")
        return int(given[0])


def parse_head(head: bytes) -> Request:
    """A request from its first line and headers; RequestError 400 where they are none."""
    try:
        line, _, rest = head.partition(b"\r\n")
        method, target, version = line.decode("ascii").split(" ")
        url = urlsplit(target)
        headers = http.client.parse_headers(io.BytesIO(rest))
    except (ValueError, http.client.HTTPException) as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, "not a request") from error
    if version not in ("HTTP/1.0", "HTTP/1.1"):
        raise RequestError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "speak HTTP/1.1")
    query = {key: values[-1] for key, values in parse_qs(url.query).items()}
    closes = version == "HTTP/1.0" or headers.get("Connection", "").lower() == "close"
    return Request(method, url.path, query, headers, not closes)


@dataclass(frozen=True)
class Answer:
    """Content and its media type."""

    content: bytes
    kind: str
    status: HTTPStatus = HTTPStatus.OK


class _State(enum.Enum):
    IDLE = "waits for a request"
    READING = "reads a request"
    WORKING = "waits for its answer"
    CLOSING = "sends its last answer"


@dataclass(eq=False)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    task: "asyncio.Task[None]"
    state: _State = _State.IDLE
    since: float = 0.0  # when the state began
    held_bytes: int = 0  # of the request's body

    def enter(self, state: _State) -> None:
        self.state, self.since = state, asyncio.get_running_loop().time()


class HttpServer:
    """
    Answers requests by the methods `check` and `answer` of a subclass.

    Attributes:
        server_address: (host, port) that it listens at, from the beginning.
    """

    headers: Mapping[str, str] = {}  # of every answer

    def __init__(self, host: str, port: int, limits: Limits | None = None) -> None:
        """Listen at an address; port 0: any that is free. OSError: it cannot be had."""
        self.limits = limits or Limits()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server(
            (host, port), family=family, backlog=self.limits.connections
        )
        self.server_address: tuple[str, int] = self._listener.getsockname()[:2]
        self._workers = ThreadPoolExecutor(self.limits.workers, "answer")
        self._connections: set[_Connection] = set()
        self._queued = self._held_bytes = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._stopping = False

    def check(self, request: Request) -> int:
        """The most bytes that the body of a request may have; RequestError to refuse it unread."""
        raise NotImplementedError

    def answer(self, request: Request) -> Answer:
        """Answer a request: a GET at once, a POST in a worker thread. RequestError, UserError."""
        raise NotImplementedError

    def error_answer(self, status: HTTPStatus, message: str) -> Answer:
        """The answer that tells of an error in one line."""
        raise NotImplementedError

    def __enter__(self) -> "HttpServer":
        return self

    def __exit__(self, *error: object) -> None:
        self.server_close()

    def server_close(self) -> None:
        """Give the address and the threads back."""
        self._listener.close()
        self._workers.shutdown(wait=False, cancel_futures=True)

    def serve_forever(self) -> None:
        """Answer until `shutdown`."""
        asyncio.run(self._serve())

    def shutdown(self) -> None:
        """Let serve_forever answer what it has, then end; from any thread or signal handler."""
        self._stopping = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(
            self._connected,
            sock=self._listener,
            limit=self.limits.head_bytes,
            backlog=self.limits.connections,
        )
        if not self._stopping:
            await self._stop.wait()
        await asyncio.sleep(0.05)  # lets in those who have knocked already
        self._loop = None
        server.close()
        for connection in self._connections:
            if connection.state is _State.IDLE:
                connection.task.cancel()
        asyncio.get_running_loop().call_later(self.limits.stop_upload_seconds, self._drop_uploads)
        if tasks := [connection.task for connection in self._connections]:
            await asyncio.wait(tasks, timeout=self.limits.stop_seconds)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(reader, writer, task)
        self._make_room()
        self._connections.add(connection)
        writer.transport.set_write_buffer_limits(0)  # `drain` waits until all is sent
        try:
            while await self._exchange(connection):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            pass  # the visitor is gone
        except asyncio.CancelledError:
            pass  # dropped; asyncio of Python 3.11 would print it as an error
        finally:
            self._connections.discard(connection)
            self._release(connection)
            writer.close()

    async def _exchange(self, connection: _Connection) -> bool:
        """Answer one request; whether there may be another."""
        connection.enter(_State.IDLE)
        first = await asyncio.wait_for(connection.reader.read(1), self.limits.idle_seconds)
        if not first:
            return False
        connection.enter(_State.READING)
        keep = False
        try:
            request = await self._read(connection, first)
            answer = await self._answer(connection, request)
            keep = request.keeps_alive and not self._stopping
        except RequestError as error:
            answer = self.error_answer(error.status, str(error))
        self._release(connection)
        connection.enter(_State.CLOSING)
        connection.writer.write(self._encode(answer, keep))
        await asyncio.wait_for(connection.writer.drain(), self.limits.send_seconds)
        if not keep:
            await asyncio.wait_for(_take_rest(connection), self.limits.close_seconds)
        return keep

    async def _read(self, connection: _Connection, first: bytes) -> Request:
        try:
            until_blank = connection.reader.readuntil(b"\r\n\r\n")
            rest = await asyncio.wait_for(until_blank, self.limits.head_seconds)
            request = parse_head(first + rest)
            most = self.check(request)
            length = request.content_length()
            if request.method == "GET" and not length:
                return request
            if length is None:
                raise RequestError(
                    HTTPStatus.LENGTH_REQUIRED, "the length of the upload is missing"
                )
            if length > most:
                raise RequestError(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"the file is larger than {most // _MIB} MB",
                )
            if self._queued >= self.limits.queue:
                raise busy()
            if request.headers.get("Expect", "").lower() == "100-continue":
                connection.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            seconds = self.limits.body_seconds + length / _MIB
            body = await asyncio.wait_for(self._read_body(connection, length), seconds)
        except asyncio.LimitOverrunError as error:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise RequestError(status, "the headers are too large") from error
        except asyncio.TimeoutError as error:
            raise RequestError(HTTPStatus.REQUEST_TIMEOUT, "the upload took too long") from error
        return replace(request, body=body)

    async def _read_body(self, connection: _Connection, length: int) -> bytes:
        body = io.BytesIO()
        while body.tell() < length:
            piece = await connection.reader.read(min(length - body.tell(), _READ_SIZE))
            if not piece:
                raise ConnectionError("the upload broke off")
            connection.held_bytes += len(piece)
            self._held_bytes += len(piece)
            if self._held_bytes > self.limits.body_bytes:
                uploads = [x for x in self._connections if x.state is _State.READING]
                largest = max(uploads, key=lambda x: x.held_bytes)
                if largest is connection:
                    raise busy()
                self._drop(largest)
            body.write(piece)
        return body.getvalue()

    async def _answer(self, connection: _Connection, request: Request) -> Answer:
        connection.enter(_State.WORKING)
        if request.method == "GET":
            return self._try_answer(request)
        if self._queued >= self.limits.queue:
            raise busy()
        self._queued += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._workers, self._answer_in_time, request, loop, loop.time()
            )
        finally:
            self._queued -= 1

    def _answer_in_time(
        self, request: Request, loop: asyncio.AbstractEventLoop, since: float
    ) -> Answer:
        if loop.time() - since > self.limits.queue_seconds:
            raise busy()
        return self._try_answer(request)

    def _try_answer(self, request: Request) -> Answer:
        try:
            return self.answer(request)
        except RequestError:
            raise
        except UserError as error:
            raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
        except Exception as error:  # the server goes on, and the visitor learns that it failed
            print(f"mimicdet: {request.path}: {error!r}", file=sys.stderr)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            raise RequestError(status, "the server failed") from error

    def _encode(self, answer: Answer, keep: bool) -> bytes:
        headers: dict[str, Any] = {
            "Server": "mimicdet",
            "Date": formatdate(usegmt=True),
            "Content-Type": answer.kind,
            "Content-Length": len(answer.content),
            **self.headers,
        }
        if not keep:
            headers["Connection"] = "close"
        if answer.status is HTTPStatus.SERVICE_UNAVAILABLE:
            headers["Retry-After"] = _RETRY_SECONDS
        lines = [f"HTTP/1.1 {answer.status.value} {answer.status.phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "\r\n"]).encode("latin-1") + answer.content

    def _release(self, connection: _Connection) -> None:
        self._held_bytes -= connection.held_bytes
        connection.held_bytes = 0

    def _make_room(self) -> None:
        """Drop the connection that has kept the server waiting longest if there are too many."""
        if len(self._connections) >= self.limits.connections:
            waiting = [x for x in self._connections if x.state is not _State.WORKING]
            if waiting:
                self._drop(min(waiting, key=lambda x: x.since))

    def _drop_uploads(self) -> None:
        for connection in list(self._connections):
            if connection.state is _State.READING:
                self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        if connection.state is _State.READING:
            error = busy()
            answer = self.error_answer(error.status, str(error))
            connection.writer.write(self._encode(answer, keep=False))
        connection.task.cancel()
        self._connections.discard(connection)


async def _take_rest(connection: _Connection) -> None:
    """
    Read what a visitor still sends until they close. Closing first would reset the connection, and
    the answer might be lost with it.
    """
    connection.writer.write_eof()
    while await connection.reader.read(_READ_SIZE):
        pass
