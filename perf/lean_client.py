"""A client of gRPC that costs next to nothing: on the machine of the server, a client's work is the server's loss.

It knows as much of HTTP/2 as one kind of call needs: one connection, one thread that reads, and for each call the
moments at which its answers came.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass, field

from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelStreamInferResponse

from shardyard.endpoint import Endpoint
from shardyard.errors import MeasurementError
from shardyard.triton.front import frames
from shardyard.triton.front.frames import Frame, FrameReader, window_update, write_frame
from shardyard.triton.front.header_blocks import HeaderBlocks, write_headers

__all__ = ["Call", "LeanClient"]

_PATH = b"/inference.GRPCInferenceService/ModelStreamInfer"
_PREFIX = struct.Struct(">BI")
#: The setting of streams' windows, and the most that it can be.
_WINDOW, _MOST = 4, (1 << 31) - 1
#: What a connection's window is at first.
_FIRST = (1 << 16) - 1


@dataclass
class Call:
    """``times``: of ``time.perf_counter`` a moment for each answer, as they come. ``ended``: no more will.

    ``came``: what has come, still to be parsed. ``size``: of its whole answers.
    """

    came: bytearray = field(default_factory=bytearray)
    times: list[float] = field(default_factory=list)
    size: int = 0
    status: bytes = b""
    ended: threading.Event = field(default_factory=threading.Event)


class LeanClient:
    """Streams of ``ModelStreamInfer``, any number at once, from any thread."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self._timeout = timeout_s
        self._authority = endpoint.grpc_address.encode()
        self._socket = socket.create_connection((endpoint.host, endpoint.grpc_port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lock, self._next = threading.Lock(), 1
        self._calls: dict[int, Call] = {}
        self._blocks = HeaderBlocks()
        settings = write_frame(frames.SETTINGS, 0, 0, struct.pack(">HI", _WINDOW, _MOST))
        self._socket.sendall(frames.PREFACE + settings + window_update(0, _MOST - _FIRST))
        threading.Thread(target=self._read, daemon=True).start()

    def times(self, request: ModelInferRequest) -> list[float]:
        """Send a request and return the moments, of ``time.perf_counter``, at which its answers came.

        Raises:
            MeasurementError: it was refused, or has no end.
        """
        call = self.begin(request)
        if not call.ended.wait(self._timeout):
            raise MeasurementError("the endpoint has not answered", why=f"nothing ended in {self._timeout:g} s")
        if call.status != b"0":
            raise MeasurementError("the endpoint broke a stream off", why=f"its status is {call.status.decode()!r}")
        self._check(call)
        return call.times

    def begin(self, request: ModelInferRequest) -> Call:
        """Send a request and return what becomes of it."""
        data = request.SerializeToString()
        call = Call()
        fields = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", _PATH),
            (b":authority", self._authority),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
        ]
        with self._lock:
            stream, self._next = self._next, self._next + 2
            self._calls[stream] = call
            body = write_frame(frames.DATA, frames.END_STREAM, stream, _PREFIX.pack(0, len(data)) + data)
            self._socket.sendall(write_headers(stream, fields, end=False) + body)
        return call

    def close(self) -> None:
        """End the connection, and with it the calls."""
        with contextlib.suppress(OSError):  # It has ended.
            self._socket.shutdown(socket.SHUT_RDWR)  # Which closing does not while the other thread reads.
        self._socket.close()

    def _check(self, call: Call) -> None:
        at = 0
        while at < len(call.came):
            size = _PREFIX.unpack_from(call.came, at)[1]
            answer = ModelStreamInferResponse.FromString(bytes(call.came[at + 5 : at + 5 + size]))
            at += 5 + size
            if answer.error_message:
                raise MeasurementError("the endpoint refused a request", why=answer.error_message)

    def _read(self) -> None:
        reader = FrameReader()
        try:
            while data := self._socket.recv(1 << 16):
                for frame in reader.read(data):
                    self._take(frame)
        except (OSError, frames.FrameError):
            self._socket.close()
        for call in list(self._calls.values()):
            call.ended.set()

    def _take(self, frame: Frame) -> None:
        if frame.kind == frames.DATA:
            self._answer(self._calls[frame.stream], frame.payload)
        elif frame.kind in (frames.HEADERS, frames.CONTINUATION):
            whole = self._blocks.take(frame)
            if whole and whole[1]:
                call = self._calls.pop(frame.stream)
                call.status = dict(whole[0]).get(b"grpc-status", b"")
                call.ended.set()
        elif frame.kind in (frames.SETTINGS, frames.PING) and not frame.flags & frames.ACK:
            payload = frame.payload if frame.kind == frames.PING else b""
            with self._lock:
                self._socket.sendall(write_frame(frame.kind, frames.ACK, 0, payload))

    def _answer(self, call: Call, data: bytes) -> None:
        call.came += data
        while len(call.came) - call.size >= _PREFIX.size:
            end = call.size + _PREFIX.size + _PREFIX.unpack_from(call.came, call.size)[1]
            if end > len(call.came):
                return
            call.size = end
            call.times.append(time.perf_counter())
