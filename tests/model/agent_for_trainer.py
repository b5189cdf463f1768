"""The launcher's half of a checkpoint, for tests of the trainer alone: takes parts, asks for the last act, commits."""

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import xxhash

from launcher.reporter import PAGE_BYTES, read_page, receive_frame, send_frame


class FakeAgent:
    """One socket and one page per rank; keeps every message. `commits`: {step: (folder, digest of its manifest)}."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.folder, self.ranks = folder, ranks
        self.messages: list[dict[str, Any]] = []
        self.commits: dict[int, tuple[str, str]] = {}
        self.finish_twice = False
        self._parts: dict[int, dict[int, dict[str, Any]]] = {}
        self._peers: dict[int, socket.socket] = {}
        self._lock = threading.Condition()
        folder.mkdir(parents=True, exist_ok=True)
        for rank in range(ranks):
            (folder / f"page{rank}").write_bytes(bytes(PAGE_BYTES))
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.bind(str(folder / f"s{rank}"))
            server.listen()
            threading.Thread(target=self._serve, args=(server, rank), daemon=True).start()

    def environment(self, rank: int) -> dict[str, str]:
        """What the reporter of a rank needs."""
        return {"OPT_LAUNCH_PAGE": str(self.folder / f"page{rank}"), "OPT_LAUNCH_SOCKET": str(self.folder / f"s{rank}")}

    def page(self, rank: int) -> tuple[int, int, float, float, str] | None:
        """What the progress page of a rank says now."""
        return read_page((self.folder / f"page{rank}").read_bytes())

    def ask(self, rank: int, bits: int) -> None:
        """Tell one rank what is wanted."""
        self.tell(rank, {"type": "wanted", "bits": bits})

    def tell(self, rank: int, message: dict[str, Any]) -> None:
        """Send one rank a message."""
        send_frame(self._peers[rank], message)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """All messages of one type so far."""
        with self._lock:
            return [message for message in self.messages if message["type"] == kind]

    def wait_for(self, kind: str, count: int = 1, limit_s: float = 60.0) -> list[dict[str, Any]]:
        """The messages of a type, once there are `count`. Raises TimeoutError."""
        deadline = time.monotonic() + limit_s
        with self._lock:
            while len(found := [m for m in self.messages if m["type"] == kind]) < count:
                if not self._lock.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"{len(found)} messages {kind} of {count} after {limit_s} s")
            return found

    def _serve(self, server: socket.socket, rank: int) -> None:
        peer, _ = server.accept()
        self._peers[rank] = peer
        stream = peer.makefile("rb")
        while (message := receive_frame(stream)) is not None:
            with self._lock:
                self._take(rank, message)
                self.messages.append(message | {"rank": rank})
                self._lock.notify_all()

    def _take(self, rank: int, message: dict[str, Any]) -> None:
        if message["type"] == "save_part":
            parts = self._parts.setdefault(message["step"], {})
            parts[rank] = message
            if len(parts) == self.ranks:
                results = {str(number): part["results"] for number, part in parts.items()}
                request = {"type": "finish", "step": message["step"], "directory": message["directory"]}
                for _ in range(1 + self.finish_twice):
                    send_frame(self._peers[0], request | {"results": results})
        if message["type"] == "save_finished":
            self._commit(message)

    def _commit(self, message: dict[str, Any]) -> None:
        parts = self._parts[message["step"]]
        chunks = [chunk for part in parts.values() for chunk in part["chunks"]]
        manifest = {
            "schema": 1,
            "run": "test",
            "step": message["step"],
            "attempt": 1,
            "parent": None,
            "world_size": self.ranks,
            "files": {},
            "metadata": message["files"][".metadata"],
            "chunks": chunks,
            "state": parts[0]["state"],
        }
        data = json.dumps(manifest).encode()
        (Path(message["directory"]) / "manifest.json").write_bytes(data)
        self.commits[message["step"]] = (message["directory"], xxhash.xxh3_128_hexdigest(data))
