"""Runs commands on nodes of a Slurm job of ours, a step for each beside what runs there (`srun --overlap`); or here."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence

from launcher.backends.slurm_calls import plain
from launcher.errors import LaunchError, Unreachable
from launcher.remote.answer import Output

_END_S = 5.0  # srun ends its step on SIGTERM
# Beside whatever else the job runs there, and bound to nothing.
_FLAGS = ("--overlap", "--nodes=1", "--ntasks=1", "--mpi=none", "--cpu-bind=none", "--gpu-bind=none", "--input=none")


class Here:
    """As processes of this machine, whatever the host is called."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()

    def run(self, host: str, command: Sequence[str], limit_s: float, /) -> Output:
        words = self._command(host, command)
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                errors="replace", env=plain(os.environ), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise LaunchError(f"{words[0]} cannot be started: {(error.strerror or str(error)).lower()}") from error
        self._running.add(process)
        try:
            text, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise Unreachable(f"no answer within {limit_s:g} s") from None
        finally:
            self._end(process)
        return Output(process.returncode, text)

    def close(self) -> None:
        """End what still runs."""
        for process in [*self._running]:
            self._end(process)

    def _command(self, host: str, command: Sequence[str]) -> list[str]:  # noqa: ARG002
        return [*command]

    def _end(self, process: subprocess.Popen[str]) -> None:
        self._running.discard(process)
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
                return
            process.kill()
            process.wait()


class Steps(Here):
    """As steps of the job with this number."""

    def __init__(self, job: str) -> None:
        super().__init__()
        self._job = job

    def run(self, host: str, command: Sequence[str], limit_s: float, /) -> Output:
        output = super().run(host, command, limit_s)
        if output.code and (said := _refusal(output.text)):
            raise Unreachable(f"srun: {said}", hint=f"squeue -j {self._job} tells whether the job has the node")
        return output

    def _command(self, host: str, command: Sequence[str]) -> list[str]:
        return ["srun", f"--jobid={self._job}", f"--nodelist={host}", *_FLAGS, *command]


def _refusal(text: str) -> str:
    """What srun itself says, if nothing but srun said anything."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or not all(line.startswith(("srun: ", "slurmstepd: ")) for line in lines):
        return ""
    return lines[0].removeprefix("srun: ").removeprefix("error: ")
