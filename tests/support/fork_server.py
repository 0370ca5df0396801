"""Runs ``python -m deltaweights`` and ``python -c`` in processes forked from one that has imported the package already.

Each run has a process of its own, with its memory, signals, limits and descriptors, and starts in a hundredth of a second instead
of half a second. All that a run may notice is that modules are loaded before it begins: tests of that start a new interpreter.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.limits import PATIENCE

ROOT = Path(__file__).parents[2]

AT_START = ("PYTHON", "LC_", "LANG")
"""How variables begin that an interpreter reads when it starts: a run that changes one gets a new interpreter."""

LIGHT = ("numpy", "deltaweights.merge.kernels_cpu")

LEFT_OUT = ("deltaweights.__main__", "deltaweights.merge.kernels_torch")
"""Modules that run something, or load torch."""


class Finished(subprocess.CompletedProcess[str]):
    """A finished process, with ``seconds`` of processor time, and ``peak``, its resident memory in MiB."""

    seconds: float
    peak: float


class ForkServer:
    """A process from which runs are forked, one after the other."""

    def __init__(self, *preloaded: str) -> None:
        self._lock = threading.Lock()
        self._variables = dict(os.environ)
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno()), *preloaded],
                cwd=ROOT,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=self._variables
                | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},  # no thread survives a fork
            )
        self._replies = self._socket.makefile("r", encoding="utf-8")
        atexit.register(self.close)

    def close(self) -> None:
        """End the server."""
        self._replies.close()
        self._socket.close()
        self._process.wait(PATIENCE)

    def takes(self, variables: Mapping[str, str]) -> bool:
        """Return whether an interpreter that starts with these variables would be like the server."""
        changed = {name for name, _ in variables.items() ^ self._variables.items()}
        return not any(name.startswith(AT_START) for name in changed)

    def run(self, command: Sequence[str], cwd: Path, variables: Mapping[str, str], stdin: str = "") -> Finished:
        """Run a command line of this Python."""
        (their_in, our_in), (our_out, their_out), (our_err, their_err) = (os.pipe() for _ in range(3))
        theirs = (their_in, their_out, their_err)
        with ThreadPoolExecutor(3) as pool:
            out, err = (pool.submit(_read, number) for number in (our_out, our_err))
            pool.submit(_write, our_in, stdin)
            try:
                code, seconds, peak = self.run_on(theirs, command, cwd, variables)
            finally:
                for number in theirs:
                    os.close(number)
            done = Finished(list(command), code, out.result(), err.result())
        done.seconds, done.peak = seconds, peak
        return done

    def run_on(
        self, streams: Sequence[int], command: Sequence[str], cwd: Path, variables: Mapping[str, str]
    ) -> tuple[int, float, float]:
        """Run a command line with these descriptors as its streams; return exit code, seconds and peak."""
        request = {"command": list(command), "cwd": str(cwd), "variables": dict(variables)}
        data = json.dumps(request).encode()
        with self._lock:
            socket.send_fds(self._socket, [len(data).to_bytes(8, "little")], streams)
            self._socket.sendall(data)
            pid = int(self._replies.readline())
            timer = threading.Timer(PATIENCE, os.kill, (pid, signal.SIGKILL))
            timer.start()
            try:
                code, seconds, peak = json.loads(self._replies.readline())
            finally:
                timer.cancel()
        return code, seconds, peak


def _read(number: int) -> str:
    with open(number, encoding="utf-8") as file:  # with universal newlines, as subprocess reads text
        return file.read()


def _write(number: int, text: str) -> None:
    try:
        with open(number, "w", encoding="utf-8") as file:
            file.write(text)
    except BrokenPipeError:
        return


@cache
def light_server() -> ForkServer:
    """Return this process's server that has imported all but torch and transformers."""
    return ForkServer(*LIGHT, *_modules())


@cache
def heavy_server() -> ForkServer:
    """Return this process's server that has imported torch and transformers, too."""
    return ForkServer(*LIGHT, *_modules(), "torch", "transformers", "tests.support.tiny_llava")


@cache
def template_server() -> ForkServer:
    """Return this process's server that has imported what renders chat templates."""
    return ForkServer("deltaweights.inference.transformers_loader", "transformers.utils.chat_template_utils", "jinja2")


def run_python_in_fork(
    arguments: list[str], _doing: str, *, stdin: str = "", env: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Do what ``run_python`` of the package does, in a fork."""
    server = template_server() if "deltaweights.inference.rendering" in arguments else heavy_server()
    done = server.run(arguments, ROOT / "src", os.environ if env is None else env, stdin)
    return done.returncode, done.stdout, done.stderr


def _modules() -> list[str]:
    source = ROOT / "src"
    names = (".".join(path.relative_to(source).with_suffix("").parts) for path in sorted(source.rglob("*.py")))
    return [name.removesuffix(".__init__") for name in names if name not in LEFT_OUT]


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    server: ForkServer | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a command as ``subprocess.run`` would, and capture its text; in a fork if it is this Python with -m or -c."""
    line = [str(each) for each in command]
    variables = dict(os.environ if env is None else env)
    server = server or light_server()
    if options or line[:2] not in ([sys.executable, "-m"], [sys.executable, "-c"]) or not server.takes(variables):
        return subprocess.run(
            line, capture_output=True, text=True, timeout=PATIENCE, check=False, env=variables, cwd=cwd, **options
        )
    return server.run(line[1:], cwd or Path.cwd(), variables)


def _serve(requests: socket.socket) -> list[str]:
    """Fork for each request; return in the children, with the command that each is to run."""
    while True:
        head, theirs, _, _ = socket.recv_fds(requests, 8, 3)
        if not head:
            os._exit(0)
        data = b""
        size = int.from_bytes(head, "little")
        while len(data) < size:
            data += requests.recv(size - len(data))
        pid = os.fork()
        if pid == 0:
            requests.close()
            return _become(json.loads(data), theirs)
        for number in theirs:
            os.close(number)
        requests.sendall(f"{pid}\n".encode())
        _, status, usage = os.wait4(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        result = code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
        requests.sendall(json.dumps(result).encode() + b"\n")


def _become(request: dict[str, Any], streams: Sequence[int]) -> list[str]:
    """Give this process the streams, variables and working directory of a request; return its command."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["variables"])
    os.chdir(request["cwd"])
    command: list[str] = request["command"]
    return command


def main() -> None:
    """Import what is to be there, and serve the socket whose number is given; the rest runs in the children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    requests = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a child's collector does not touch, and thereby copy, what it shares
    how, what, *arguments = _serve(requests)
    sys.path[0] = str(Path.cwd()) if how == "-m" else ""
    sys.argv = ["-c", *arguments]
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    if how == "-c":
        exec(compile(what, "<string>", "exec"), vars(module))  # noqa: S102
    else:
        import runpy  # noqa: PLC0415

        runpy.run_module(what, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
