"""The parent of a node's ranks: imports the trainer's modules once and forks ranks from them.

One file, standard library only, Python 3.8 or newer, started by path with the ranks' own Python. It computes
nothing before it forks (one tensor operation in a parent can hang its children for ever), forks from its main
thread only (a parent-death signal is sent when the forking *thread* ends), and dies with its agent.

    warm.py FD PARENT_PID [MODULE ...]

FD is a SOCK_SEQPACKET socket to the agent, one JSON message a packet. Requests: "fork" (with the file descriptors of
stdout and stderr attached), "store", "port". Answers: "ready", "forked", "exited", "store".
"""

import array
import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
import time
import traceback

MAX_PACKET_BYTES = 1 << 20
# A scheduler may send these to every process of a job at once. The agent answers; whoever dies with it ignores them.
ENDS_OF_A_JOB = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1
_PR_SET_PTRACER = 0x59616D61
_libc = ctypes.CDLL(None, use_errno=True)


def die_with(parent_pid):
    """End this process when its parent ends; at once if that has already happened."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def send(sock, message, fds=()):
    """Send one packet, with file descriptors attached."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([json.dumps(message).encode()], rights)


def receive(sock):
    """(message, file descriptors) of the next packet; (None, []) when the other side is gone."""
    data, ancillary, _, _ = sock.recvmsg(MAX_PACKET_BYTES, socket.CMSG_SPACE(16 * array.array("i").itemsize))
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return (json.loads(data) if data else None), list(fds)


def import_modules(names):
    """Import the trainer's modules; the first error, as (type, text), or None. Ranks will meet it again themselves."""
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException as error:
            return type(error).__name__, str(error)
    return None


def why_cold():
    """Why ranks must not be forked from this process; "" if they may."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        return "%d threads are alive after import" % threads
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialised after import"
    return ""


def become_rank(request, fds, parent_pid, inherited):
    """In the forked child: a clean process of its own group that runs the command or the target; never returns."""
    code = 1
    try:
        die_with(parent_pid)
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        if not request.get("target"):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a target is told by its agent what is to be done
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(fds[0], 1)
        os.dup2(fds[1], 2)
        for descriptor in (null, *fds, *inherited):
            if descriptor > 2:
                os.close(descriptor)
        _libc.prctl(_PR_SET_PTRACER, request["agent_pid"], 0, 0, 0)  # EINVAL without Yama is fine
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        if request.get("cpus"):
            os.sched_setaffinity(0, request["cpus"])
        command = request.get("command")
        if command:
            try:
                os.execvpe(command[0], command, os.environ)
            except OSError as error:
                os.write(2, ("%s: %s: %s\n" % (type(error).__name__, command[0], error.strerror)).encode())
                os._exit(127)
        sys.stdout = os.fdopen(1, "w", 1)
        sys.stderr = os.fdopen(2, "w", 1)
        faulthandler.enable()
        code = run_target(request["target"])
    except BaseException:  # the child must never return into the loop of its parent
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def run_target(target):
    """Call "module:function" with the environment; its result is the exit status."""
    module, _, function = target.partition(":")
    try:
        result = getattr(importlib.import_module(module), function)(os.environ)
    except SystemExit as exit_:
        if exit_.code is None or isinstance(exit_.code, int):
            return exit_.code or 0
        print(exit_.code, file=sys.stderr)
        return 1
    return result if isinstance(result, int) else 0


def serve_store(listener, host, parent_pid, inherited):
    """In the forked child: hold the rendezvous store of one attempt until killed."""
    try:
        die_with(parent_pid)
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for descriptor in inherited:
            os.close(descriptor)
        from datetime import timedelta

        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        port = listener.getsockname()[1]
        limit = timedelta(seconds=300)
        store = TCPStore(host, port, None, True, limit, wait_for_workers=False, master_listen_fd=listener.detach())
        while store is not None:
            signal.pause()
    finally:
        os._exit(1)


def free_port(host):
    """A port outside the ephemeral range that nobody uses now; the range's first lies at 32768 on Linux."""
    for _ in range(200):
        port = random.SystemRandom().randrange(15000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise OSError("no free port between 15000 and 32000 on " + host)


class Warm:
    """The loop: requests in, forks, exits out."""

    def __init__(self, sock, agent_pid):
        self.sock, self.agent_pid, self.pid = sock, agent_pid, os.getpid()
        self.ranks = {}  # pid -> rank
        self.stores = {}  # attempt -> (pid, port)
        self.cold = ""
        wake_in, self.wake = os.pipe()
        os.set_blocking(wake_in, False)
        os.set_blocking(self.wake, False)
        self.wake_in = wake_in
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in ENDS_OF_A_JOB:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(self.wake)

    def run(self, modules):
        started = time.monotonic()
        error = import_modules(modules)
        self.cold = why_cold() if modules else ""
        message = {"type": "ready", "seconds": time.monotonic() - started, "cold": self.cold}
        send(self.sock, dict(message, error=list(error) if error else None))
        while True:
            readable, _, _ = select.select([self.sock, self.wake_in], [], [])
            if self.wake_in in readable:
                os.read(self.wake_in, 4096)
                self.reap()
            if self.sock in readable:
                message, fds = receive(self.sock)
                if message is None:
                    return self.end_all()
                self.handle(message, fds)

    def handle(self, message, fds):
        if message["type"] == "fork":
            self.fork(message, fds)
        elif message["type"] == "store":
            self.store(message["attempt"], message["host"])
        elif message["type"] == "port":
            answer = {"type": "store", "attempt": message["attempt"], "port": free_port(message["host"])}
            send(self.sock, answer)
        elif message["type"] == "end_store":
            self.end_stores(keep=-1)

    def fork(self, request, fds):
        if self.cold and request.get("target"):
            request["command"] = [sys.executable, os.path.abspath(__file__), "--rank", request["target"]]
        pid = os.fork()
        if pid == 0:
            inherited = (self.sock.fileno(), self.wake, self.wake_in)
            become_rank(request, fds, self.pid, inherited)
        for descriptor in fds:
            os.close(descriptor)
        self.ranks[pid] = (request["attempt"], request["rank"])
        send(self.sock, {"type": "forked", "attempt": request["attempt"], "rank": request["rank"], "pid": pid})

    def store(self, attempt, host):
        self.end_stores(keep=attempt)
        if attempt not in self.stores:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, 0))
            listener.listen(1024)
            port = listener.getsockname()[1]
            pid = os.fork()
            if pid == 0:
                inherited = (self.sock.fileno(), self.wake, self.wake_in)
                serve_store(listener, host, self.pid, inherited)
            listener.close()  # ranks forked later must not keep the port open
            self.stores[attempt] = (pid, port)
        send(self.sock, {"type": "store", "attempt": attempt, "port": self.stores[attempt][1]})

    def end_stores(self, keep):
        for attempt in [a for a in self.stores if a != keep]:
            os.kill(self.stores.pop(attempt)[0], signal.SIGKILL)

    def reap(self):
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
            if pid in self.ranks:
                attempt, rank = self.ranks.pop(pid)
                send(self.sock, {"type": "exited", "attempt": attempt, "rank": rank, "pid": pid, "code": code})

    def end_all(self):
        """The agent is gone. Ranks would be ended by the kernel too, but not through every kind of wrapper."""
        for pid in [*self.ranks, *(store[0] for store in self.stores.values())]:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)


def main(argv):
    if argv[0] == "--rank":
        return run_target(argv[1])
    sock = socket.socket(fileno=int(argv[0]))
    sock.setblocking(True)
    die_with(int(argv[1]))
    if sys.path and os.path.abspath(sys.path[0]) == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]  # nothing of ours may be found by the trainer's imports
    Warm(sock, int(argv[1])).run(argv[2:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
