"""Notices that a client left, while its request is queued, routed, connecting or streaming, at no cost per request.

One epoll set holds every client socket, watched for EPOLLRDHUP edge-triggered, so a FIN or a reset is seen behind bytes that
nobody has read yet. The set is itself awaited by Trio. A half-closed client counts as gone, as with nginx.

Where there is no epoll, the sockets are peeked at in turn; an end behind unread bytes is then seen only once they are read.
"""

from __future__ import annotations

import select
import socket as stdlib_socket
from typing import Protocol

import trio

POLL = 0.05
"""Seconds between two looks, without epoll."""
_BATCH = 256


class Watched(Protocol):
    """A connection, as the monitor sees it."""

    def hung_up(self) -> None:
        """The client went away: cancel the request at work, and remember it for the next. Must not raise."""
        ...


class HangUpMonitor:
    """Start `run` in the service nursery; `close` when the service has ended."""

    def __init__(self, *, epoll: bool | None = None) -> None:
        """Args: epoll: None takes it where it exists."""
        self._watched: dict[int, Watched] = {}
        self._sockets: dict[int, trio.socket.SocketType] = {}
        use = hasattr(select, "epoll") if epoll is None else epoll
        self._epoll = select.epoll() if use else None

    def __len__(self) -> int:
        return len(self._watched)

    def watch(self, sock: trio.socket.SocketType, holder: Watched) -> None:
        """Synchronous. A client that has already left is reported at the next turn of `run`."""
        number = sock.fileno()
        if number < 0:
            holder.hung_up()
            return
        self._watched[number] = holder
        if self._epoll is not None:
            self._epoll.register(number, select.EPOLLRDHUP | select.EPOLLET)
        else:
            self._sockets[number] = sock

    def unwatch(self, sock: trio.socket.SocketType) -> None:
        """Call it before the socket is closed: its number may be another's at once."""
        number = sock.fileno()
        if self._watched.pop(number, None) is None:
            return
        if self._epoll is not None:
            try:
                self._epoll.unregister(number)
            except OSError:
                pass
        else:
            self._sockets.pop(number, None)

    async def run(self) -> None:
        if self._epoll is None:
            await self._run_polling()
        else:
            await self._run_epoll(self._epoll)

    async def _run_epoll(self, epoll: select.epoll) -> None:
        number = epoll.fileno()
        while True:
            await trio.lowlevel.wait_readable(number)
            for ready, _events in epoll.poll(0, _BATCH):
                holder = self._watched.get(ready)
                if holder is not None:
                    holder.hung_up()

    async def _run_polling(self) -> None:
        while True:
            await trio.sleep(POLL)
            for number, sock in tuple(self._sockets.items()):
                if _has_ended(sock):
                    holder = self._watched.get(number)
                    self._sockets.pop(number, None)
                    if holder is not None:
                        holder.hung_up()

    def close(self) -> None:
        if self._epoll is not None:
            self._epoll.close()


def _has_ended(sock: trio.socket.SocketType) -> bool:
    number = sock.fileno()
    if number < 0:
        return False
    peek = stdlib_socket.socket(fileno=number)  # borrowed: trio's own has no synchronous peek
    try:
        return peek.recv(1, stdlib_socket.MSG_PEEK | getattr(stdlib_socket, "MSG_DONTWAIT", 0)) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        peek.detach()
