"""How the ranks of this trainer find each other: a package that happens to be called launcher."""

import socket
import struct
import time

NUMBERS = struct.Struct("<QQ")


class Group:
    """All ranks in a star around rank 0."""

    def __init__(self, rank, ranks, host, port):
        self.rank = rank
        if rank == 0:
            with socket.socket() as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind((host, port))
                server.listen(ranks)
                self.peers = [server.accept()[0] for _ in range(ranks - 1)]
        else:
            self.peers = [connected(host, port)]
        for peer in self.peers:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def reduce(self, number, bits=0):
        """The sum of the numbers and the union of the bits of all ranks."""
        if self.rank:
            self.peers[0].sendall(NUMBERS.pack(number, bits))
            return receive(self.peers[0])
        for peer in self.peers:
            theirs, their_bits = receive(peer)
            number, bits = (number + theirs) % 2**64, bits | their_bits
        for peer in self.peers:
            peer.sendall(NUMBERS.pack(number, bits))
        return number, bits


def connected(host, port):
    deadline = time.monotonic() + 30
    while True:
        peer = socket.socket()
        try:
            peer.connect((host, port))
        except OSError:
            peer.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return peer


def receive(peer):
    data = b""
    while len(data) < NUMBERS.size:
        more = peer.recv(NUMBERS.size - len(data))
        if not more:
            raise ConnectionError("Connection closed by peer")
        data += more
    return NUMBERS.unpack(data)
