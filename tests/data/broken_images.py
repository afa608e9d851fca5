"""
Image files that cannot be trained on, one function a kind.

    BROKEN[kind](path)

puts such a file in the place of an image that data_folders.write_image wrote (64 x 48), so that
reading it fails; a data set's check at start-up, which opens no image, still takes all but
"missing" and "a folder".
"""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

BROKEN: dict[str, Callable[[Path], None]] = {}
SIZE = (64, 48)


def _kind(name: str) -> Callable:
    def add(function: Callable[[Path], None]) -> Callable[[Path], None]:
        BROKEN[name] = function
        return function

    return add


def encoded(image_format: str, size: tuple[int, int] = SIZE, mode: str = "RGB") -> bytes:
    """A file's content: noise, which does not compress."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    buffer = io.BytesIO()
    Image.frombytes(mode, size, pixels.tobytes()).save(buffer, image_format)
    return buffer.getvalue()


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG (8-bit grey) whose header says width and height; body: its raw rows."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@_kind("missing")
def missing(path: Path) -> None:
    path.unlink()


@_kind("a folder")
def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@_kind("empty file")
def empty_file(path: Path) -> None:
    path.write_bytes(b"")


@_kind("no image")
def no_image(path: Path) -> None:
    path.write_bytes(b"<html>404</html>")


@_kind("truncated JPEG")
def truncated_jpeg(path: Path) -> None:
    data = encoded("JPEG")
    path.write_bytes(data[: len(data) // 2])


@_kind("truncated PNG")
def truncated_png(path: Path) -> None:
    data = encoded("PNG")
    path.write_bytes(data[: len(data) // 2])


@_kind("truncated TIFF")
def truncated_tiff(path: Path) -> None:
    data = encoded("TIFF")
    path.write_bytes(data[: len(data) // 2])


@_kind("header alone")
def header_alone(path: Path) -> None:
    path.write_bytes(encoded("PNG")[:33])


@_kind("undecodable")
def undecodable(path: Path) -> None:
    data = bytearray(encoded("PNG"))
    start = data.index(b"IDAT") + 4
    data[start : start + 64] = bytes(64)
    path.write_bytes(bytes(data))


@_kind("0x0")
def no_pixels(path: Path) -> None:
    path.write_bytes(png(0, 0))


@_kind("90 Mpx")
def above_the_warning(path: Path) -> None:
    path.write_bytes(png(9500, 9500))


@_kind("196 Mpx")
def above_the_limit(path: Path) -> None:
    path.write_bytes(png(14000, 14000))


@_kind("other size")
def other_size(path: Path) -> None:
    path.write_bytes(encoded("PNG", (48, 64)))


@_kind("float")
def floating_point(path: Path) -> None:
    Image.fromarray(np.full((48, 64), 0.5, np.float32)).save(path, "TIFF")


@_kind("32-bit")
def integers_of_32_bits(path: Path) -> None:
    Image.fromarray(np.full((48, 64), 1 << 20, np.int32)).save(path, "TIFF")


@_kind("LAB")
def lab(path: Path) -> None:
    path.write_bytes(encoded("TIFF", mode="LAB"))
