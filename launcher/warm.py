"""The parent of a node's ranks: imports the trainer's modules once and forks ranks from them.

One file, standard library only, Python 3.8 or newer, started by path with the ranks' own Python. It computes
nothing before it forks (one tensor operation in a parent can hang its children for ever), forks from its main
thread only (a parent-death signal is sent when the forking *thread* ends), and ends with its agent.

    warm.py SOCKET [MODULE ...]

SOCKET is the path of the agent's SOCK_SEQPACKET socket, one JSON message a packet: whatever stands between (a container
runtime, other namespaces) need only let the path through. Requests: "fork" (with the file descriptors of stdout and
stderr attached), "store". Answers: "ready", "forked" (from the rank itself: the kernel attaches the pid by which the
agent knows it), "exited", "store".

When the agent is gone the socket closes, and everything that ranks have started is ended.
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
import struct
import sys
import time
import traceback

MAX_PACKET_BYTES = 1 << 20
# A scheduler may send these to every process of a job at once. The agent answers; whoever dies with it ignores them.
ENDS_OF_A_JOB = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
MOST_SWEEPS, SWEEP_S = 100, 0.02  # what is being killed may still be starting others
_PR_SET_PDEATHSIG = 1
_PR_SET_PTRACER = 0x59616D61
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid
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
    """(message, file descriptors, sender's pid) of the next packet; the message is None when the other side is gone.

    The pid is the one by which this process knows the sender, 0 without SO_PASSCRED or when it cannot see it.
    """
    room = socket.CMSG_SPACE(16 * array.array("i").itemsize) + socket.CMSG_SPACE(_CREDENTIALS.size)
    data, ancillary, _, _ = sock.recvmsg(MAX_PACKET_BYTES, room)
    fds, pid = array.array("i"), 0
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            pid = _CREDENTIALS.unpack(content)[0]
    return (json.loads(data) if data else None), list(fds), pid


def kill_all_of(socket_path):
    """Kill all that ranks with this socket, and their descendants, have started in this job; how many there were.

    They are known by their environment, in whatever group or session they are; a job that was submitted from within
    has that too, but is another. 0 where /proc cannot be read, or speaks of another pid namespace than ours: that
    one ends with its first process.
    """
    killed, wanted = 0, [b"OPT_LAUNCH_SOCKET=" + socket_path.encode()]
    if "SLURM_JOB_ID" in os.environ:
        wanted.append(b"SLURM_JOB_ID=" + os.environ["SLURM_JOB_ID"].encode())
    try:
        names = os.listdir("/proc") if os.readlink("/proc/self") == str(os.getpid()) else []
    except OSError:
        names = []
    for name in names:
        if name.isdigit():
            with contextlib.suppress(OSError), open("/proc/" + name + "/environ", "rb") as file:
                if set(file.read().split(b"\0")).issuperset(wanted):
                    os.kill(int(name), signal.SIGKILL)
                    killed += 1
    return killed


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
    try:
        threads = len(os.listdir("/proc/self/task"))
    except OSError:
        return "without /proc nobody knows how many threads are alive"
    if threads != 1:
        return "%d threads are alive after import" % threads
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialised after import"
    return ""


def become_rank(request, fds, warm):
    """In the forked child: a clean process of its own group that runs the command or the target; never returns."""
    code = 1
    try:
        die_with(warm.pid)
        os.setpgid(0, 0)
        send(warm.sock, {"type": "forked", "attempt": request["attempt"], "rank": request["rank"]})
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
        for descriptor in (null, *fds, *warm.descriptors):
            if descriptor > 2:
                os.close(descriptor)
        _libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(request["tracer"]), 0, 0, 0)  # EINVAL without Yama is fine
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(warm.environment)
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


def serve_store(listener, host, warm):
    """In the forked child: hold the rendezvous store of one attempt until killed."""
    try:
        die_with(warm.pid)
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for descriptor in warm.descriptors:
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
    """The loop: requests in, forks, exits out. Ranks start with the environment that this process was given."""

    def __init__(self, sock):
        self.sock, self.pid, self.environment = sock, os.getpid(), dict(os.environ)
        self.ranks = {}  # pid -> (attempt, rank)
        self.stores = {}  # attempt -> (pid, port)
        self.cold = ""
        self.socket_path = ""  # of the ranks
        self.wake_in, wake = os.pipe()
        os.set_blocking(self.wake_in, False)
        os.set_blocking(wake, False)
        self.descriptors = (sock.fileno(), wake, self.wake_in)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in ENDS_OF_A_JOB:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(wake)

    def run(self, modules):
        """Serve until the agent is gone."""
        started = time.monotonic()
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # it would start its own
        error = import_modules(modules)
        self.cold = why_cold() if modules else ""
        message = {"type": "ready", "seconds": time.monotonic() - started, "cold": self.cold}
        try:
            send(self.sock, dict(message, error=list(error) if error else None))
            while self.turn():
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass  # the agent is gone, and we were speaking
        finally:
            self.end_all()

    def turn(self):
        """Wait for what comes next and answer it; whether the agent is still there."""
        readable, _, _ = select.select([self.sock, self.wake_in], [], [])
        if self.wake_in in readable:
            os.read(self.wake_in, 4096)
            self.reap()
        if self.sock in readable:
            message, fds, _ = receive(self.sock)
            if message is None:
                return False
            self.handle(message, fds)
        return True

    def handle(self, message, fds):
        if message["type"] == "fork":
            self.fork(message, fds)
        elif message["type"] == "store":
            self.store(message["attempt"], message["host"])
        elif message["type"] == "end_store":
            self.end_stores(keep=-1)

    def fork(self, request, fds):
        if self.cold and request.get("target"):
            request["command"] = [sys.executable, os.path.abspath(__file__), "--rank", request["target"]]
        pid = os.fork()
        if pid == 0:
            become_rank(request, fds, self)
        for descriptor in fds:
            os.close(descriptor)
        self.ranks[pid] = (request["attempt"], request["rank"])
        self.socket_path = request["env"].get("OPT_LAUNCH_SOCKET", "")

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
                serve_store(listener, host, self)
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
                send(self.sock, {"type": "exited", "attempt": attempt, "rank": rank, "code": code})

    def end_all(self):
        """The agent is gone: so is everything that was started for it, in whatever group or session it is."""
        for pid in [*self.ranks, *(store[0] for store in self.stores.values())]:
            for kill in (os.killpg, os.kill):  # it may not have reached its own group yet
                with contextlib.suppress(OSError):
                    kill(pid, signal.SIGKILL)
        for _ in range(MOST_SWEEPS if self.socket_path else 0):
            if not kill_all_of(self.socket_path):
                break
            time.sleep(SWEEP_S)


def main(argv):
    if argv[0] == "--rank":
        return run_target(argv[1])
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(argv[0])
    except OSError as error:
        print("%s: %s: the ranks' side must see this path" % (argv[0], error.strerror), file=sys.stderr)
        return 1
    # Not SIGKILL: it has to see to the end of others. What the signal is for: a stopped process goes on, and does.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
    if sys.path and os.path.abspath(sys.path[0]) == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]  # nothing of ours may be found by the trainer's imports
    Warm(sock).run(argv[1:])
    os._exit(0)  # what modules do at exit may take its time


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
