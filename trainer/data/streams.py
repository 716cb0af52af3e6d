"""Bytes of an input file: opened, decompressed, and as UTF-8 whatever the file was saved in.

Owns compression and encodings. Refuses to know rows. A file that is damaged or ends too early is an OSError or EOFError,
never a shorter file.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from trainer.data import remote

_READ_BYTES = 1 << 20
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks; that of UTF-32 begins with that of UTF-16."""


@contextmanager
def opened(url: str, compression: str, is_local: bool) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed. Raises OSError or EOFError where they are damaged, then or while reading."""
    with open(url, "rb") if is_local else remote.opened(url) as raw:
        if compression == ".gz":
            with gzip.open(raw, "rb") as unzipped:
                try:
                    yield io.BufferedReader(unzipped, _READ_BYTES)
                except zlib.error as error:
                    raise OSError(f"the compressed data is damaged ({error})") from error
        elif compression == ".zst":
            yield io.BufferedReader(_Zstandard(raw), _READ_BYTES)
        else:
            yield raw


@contextmanager
def opened_as_utf8(url: str, compression: str, is_local: bool) -> Iterator[IO[bytes]]:
    """As `opened`, without a byte order mark, and in UTF-8 where the mark says UTF-16 or UTF-32."""
    with opened(url, compression, is_local) as handle:
        head = handle.read(4)
        mark, encoding = encoding_of(head)
        behind = io.BufferedReader(_Joined(head[mark:], handle), _READ_BYTES)
        yield behind if encoding == "utf-8" else io.BufferedReader(_AsUtf8(behind, encoding), _READ_BYTES)


def encoding_of(head: bytes) -> tuple[int, str]:
    """(bytes of the byte order mark, encoding) of a file that begins with these four bytes."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return len(mark), encoding
    if len(head) == 4 and head[1] == head[3] == 0 and head[0]:  # ASCII in two bytes a character, the mark left out
        return 0, "utf-16-le"
    if len(head) == 4 and head[0] == head[2] == 0 and head[1]:
        return 0, "utf-16-be"
    return 0, "utf-8"


class _Reader(io.RawIOBase):
    """A stream of chunks as Python's own file type."""

    def __init__(self) -> None:
        self._held = b""

    @abstractmethod
    def chunk(self) -> bytes:
        """Some bytes; none at the end."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._held:
            self._held = self.chunk()
        size = min(len(buffer), len(self._held))
        buffer[:size] = self._held[:size]
        self._held = self._held[size:]
        return size


class _Joined(_Reader):
    """The first bytes, which have been read already, and the rest."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        super().__init__()
        self._held = head
        self._rest = rest

    def chunk(self) -> bytes:
        return self._rest.read(_READ_BYTES)


class _AsUtf8(_Reader):
    """Text of another encoding. Half a character stays one, for its row to be refused, not the file."""

    def __init__(self, source: IO[bytes], encoding: str) -> None:
        super().__init__()
        self._source = source
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")

    def chunk(self) -> bytes:
        while piece := self._source.read(_READ_BYTES):
            if text := self._decoder.decode(piece):
                return text.encode("utf-8", "surrogatepass")
        return self._decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")


class _Zstandard(_Reader):
    """Frames behind one another. The library's own reader takes a frame that breaks off for a complete one."""

    def __init__(self, source: IO[bytes]) -> None:
        super().__init__()
        self._source = source
        self._frame: Any = None
        self._ahead = b""

    def chunk(self) -> bytes:
        import zstandard

        while True:
            piece, self._ahead = self._ahead or self._source.read(_READ_BYTES), b""
            if not piece:
                if self._frame is not None:
                    raise EOFError("the compressed data ends before its end")
                return b""
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            try:
                out = self._frame.decompress(piece)
            except zstandard.ZstdError as error:
                raise OSError(f"the compressed data is damaged ({error})") from error
            if self._frame.eof:
                self._ahead, self._frame = self._frame.unused_data, None
            if out:
                return bytes(out)
