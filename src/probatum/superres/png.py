"""PNG by strips and in 16 bits: what Pillow does not do (it reads 16-bit colour as 8 bits, and writes only whole
images).

>>> import io, numpy as np
>>> file, rows = io.BytesIO(), np.arange(18, dtype=np.uint16).reshape(2, 3, 3) * 3000
>>> with Writer(file, 3, 2, channels=3, depth=16) as writer:
...     writer.write(rows)
>>> bool((decode(file.getvalue()).pixels == rows).all())
True
"""

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from probatum.errors import ProbatumError

__all__ = ["SIGNATURE", "Decoded", "Writer", "decode", "header"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> colour type
CHANNELS = {kind: count for count, kind in COLOUR_TYPES.items()}


@dataclass(frozen=True)
class Decoded:
    """Pixels (H, W, C) uint16 (C: 1 grey, 2 with alpha, 3 RGB, 4 with alpha), ICC profile and EXIF (TIFF part), if
    any."""

    pixels: np.ndarray
    icc: bytes | None
    exif: bytes | None


def header(start: bytes) -> tuple[int, int, int, int, int] | None:
    """(width, height, bit depth, colour type, interlaced) from the first 33 bytes of a PNG; None if it is none."""
    if len(start) < 33 or not start.startswith(SIGNATURE) or start[12:16] != b"IHDR":
        return None
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", start[16:29])
    return width, height, depth, kind, interlaced


def decode(data: bytes) -> Decoded:
    """Read a 16-bit PNG that is not interlaced, with its checksums.

    Raises:
        ProbatumError: truncated, damaged, interlaced, or not 16-bit.
    """
    found = header(data[:33])
    if found is None or found[2] != 16 or found[3] not in CHANNELS:
        raise ProbatumError("not a 16-bit PNG")
    width, height, _, kind, interlaced = found
    if interlaced:
        raise ProbatumError("an interlaced 16-bit PNG: save it without interlacing")
    bodies: dict[bytes, list[bytes]] = {}
    at = len(SIGNATURE)
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at) if at + 12 <= len(data) else (1 << 32, b"")
        body, tail = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if len(tail) < 4:
            raise ProbatumError("a truncated PNG")
        if zlib.crc32(name + body) != int.from_bytes(tail, "big"):
            raise ProbatumError(f"a damaged PNG: checksum of {name.decode('latin-1')}")
        bodies.setdefault(name, []).append(body)
        at += 12 + length
        if name == b"IEND":
            break
    if b"IEND" not in bodies:
        raise ProbatumError("a truncated PNG")
    try:
        raw = np.frombuffer(zlib.decompress(b"".join(bodies.get(b"IDAT", []))), np.uint8)
        step = 2 * CHANNELS[kind]
        pixels = _unfilter(raw.reshape(height, 1 + width * step), step)
    except (zlib.error, ValueError) as error:
        raise ProbatumError(f"a damaged PNG: {error}") from None
    icc = None
    if b"iCCP" in bodies:
        icc = zlib.decompress(bodies[b"iCCP"][0].partition(b"\0")[2][1:])
    exif = bodies[b"eXIf"][0] if b"eXIf" in bodies else None
    return Decoded(pixels.reshape(height, width, CHANNELS[kind], 2).view(">u2")[..., 0].astype(np.uint16), icc, exif)


def _unfilter(rows: np.ndarray, step: int) -> np.ndarray:
    """Undo PNG's row filters, all rows at once along anti-diagonals: a pixel needs its left, upper and upper left
    neighbours only."""
    kinds, height = rows[:, 0], len(rows)
    if kinds.max(initial=0) > 4:
        raise ValueError(f"row filter {kinds.max()}")
    width = (rows.shape[1] - 1) // step
    # pixel (y, x) stands at [y + 1, x + 1], so that what lies outside reads as zero
    out = np.zeros((height + 1, width + 1, step), np.int16)
    out[1:, 1:] = rows[:, 1:].reshape(height, width, step)
    masks = [(kinds == kind)[:, None] for kind in range(5)]
    for diagonal in range(width + height - 1):
        y = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        x = diagonal - y
        a, b, c = out[y + 1, x], out[y, x + 1], out[y, x]
        p = a + b - c
        pa, pb, pc = np.abs(p - a), np.abs(p - b), np.abs(p - c)
        paeth = np.where((pa <= pb) & (pa <= pc), a, np.where(pb <= pc, b, c))
        _, sub, up, average, fourth = (mask[y] for mask in masks)
        guess = sub * a + up * b + average * ((a + b) >> 1) + fourth * paeth
        out[y + 1, x + 1] = (out[y + 1, x + 1] + guess) & 255
    return np.ascontiguousarray(out[1:, 1:]).astype(np.uint8)


class Writer:
    """Writes a PNG strip by strip.

    Args:
        file: opened for writing bytes. `width`, `height`: of the whole image. `channels`: 1 to 4. `depth`: 8 or 16.
        icc, exif: profile and EXIF (TIFF part) to store.
        level: of zlib.
    """

    def __init__(
        self, file: BinaryIO, width: int, height: int, *, channels: int, depth: int = 8, icc: bytes | None = None,
        exif: bytes | None = None, level: int = 6,
    ) -> None:  # fmt: skip
        self.file, self.width, self.left, self.depth, self.channels = file, width, height, depth, channels
        self.packer = zlib.compressobj(level)
        self.step = channels * depth // 8
        self.above = np.zeros((1, width * self.step), np.uint8)
        file.write(SIGNATURE)
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, COLOUR_TYPES[channels], 0, 0, 0))
        if icc:
            self._chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
        if exif:
            self._chunk(b"eXIf", exif)

    def _chunk(self, name: bytes, body: bytes) -> None:
        self.file.write(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))

    def write(self, rows: np.ndarray) -> None:
        """The next rows: (h, W, C), or (h, W) with one channel; uint8 or uint16 as `depth` says."""
        rows = np.ascontiguousarray(rows, ">u2" if self.depth == 16 else np.uint8)
        bytes_ = rows.reshape(len(rows), -1).view(np.uint8)
        if bytes_.shape[1] != self.width * self.step or len(rows) > self.left:
            raise ProbatumError(f"rows must be at most {self.left} of {self.width} x {self.channels}, got {rows.shape}")
        for begin in range(0, len(bytes_), 64):  # the filters' copies stay small
            part = bytes_[begin : begin + 64]
            body = self.packer.compress(self._filtered(part).tobytes())
            if body:
                self._chunk(b"IDAT", body)
        self.left -= len(rows)

    def _filtered(self, rows: np.ndarray) -> np.ndarray:
        """Each row with the filter (Sub, Up or Paeth) whose differences are smallest in sum, the usual guess of what
        packs best."""
        above = np.concatenate([self.above, rows[:-1]])
        self.above = rows[-1:].copy()
        a = np.zeros(rows.shape, np.int16)
        a[:, self.step :] = rows[:, : -self.step]
        c = np.zeros(rows.shape, np.int16)
        c[:, self.step :] = above[:, : -self.step]
        b = above.astype(np.int16)
        pa, pb, pc = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
        paeth = np.where((pa <= pb) & (pa <= pc), a, np.where(pb <= pc, b, c))
        tries = np.stack([(rows - guess).astype(np.uint8) for guess in (a, b, paeth)])
        cost = np.abs(tries.view(np.int8).astype(np.int16)).sum(2, dtype=np.int64)
        best = cost.argmin(0)
        out = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
        out[:, 0] = np.array([1, 2, 4], np.uint8)[best]
        out[:, 1:] = tries[best, np.arange(len(rows))]
        return out

    def close(self) -> None:
        """Finish the file; all rows must have been written."""
        if self.left:
            raise ProbatumError(f"{self.left} rows are missing")
        self._chunk(b"IDAT", self.packer.flush())
        self._chunk(b"IEND", b"")

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
