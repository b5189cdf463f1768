"""What is trained: a chain of digests, so that the end tells whether every step happened exactly once."""

import hashlib


class Model:
    def __init__(self, state=""):
        self.state = state

    @staticmethod
    def gradient(step, rank):
        return int.from_bytes(hashlib.blake2b(f"{step}.{rank}".encode(), digest_size=8).digest(), "little")

    def step(self, step, total):
        self.state = hashlib.blake2b(f"{self.state}.{step}.{total}".encode(), digest_size=16).hexdigest()
        return 2.0 + 1.0 / (1 + step)


def trained(steps, ranks):
    """The state of an undisturbed run."""
    model = Model()
    for step in range(steps):
        model.step(step, sum(Model.gradient(step, rank) for rank in range(ranks)) % 2**64)
    return model.state
