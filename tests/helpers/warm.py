"""`rvqlm` and `python FILE` for scripts, without the seconds that a fresh Python needs for its
imports.

`environment` puts programs of these names first on the PATH. They hand their arguments, folder,
environment and files to a server, which has everything imported; a forked copy of that runs the
command, or the file, as the program itself would. A server for each process of pytest, started with
the first script and gone with the process.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from multiprocessing import get_context
from pathlib import Path

CLIENT = """#!{python} -SE
import json, os, socket, sys
program = os.path.basename(sys.argv[0])
if program == "python" and not (len(sys.argv) > 1 and sys.argv[1].endswith(".py")):
    os.execv({python!r}, sys.argv)  # python -c, python -m
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps([[program, *sys.argv[1:]], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
server.sendall(request)
sys.exit(int(server.recv(16) or 70))  # nothing: the server was killed
"""


def environment() -> dict[str, str]:
    """For scripts of the recipes: this interpreter's environment, one thread, a warm `rvqlm`."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHON"}
    here = Path(sys.executable).parent
    path = f"{_program().parent}:{here}:{os.environ['PATH']}"
    return env | {"VIRTUAL_ENV": sys.prefix, "PATH": path, "OMP_NUM_THREADS": "1"}


@cache
def _program() -> Path:
    """Start the server; the program that asks it."""
    folder = tempfile.TemporaryDirectory(prefix="warm-")  # a socket's path must be short
    address, program = f"{folder.name}/socket", Path(folder.name, "bin", "rvqlm")
    program.parent.mkdir()
    for path in (program, program.with_name("python")):
        path.write_text(CLIENT.format(python=sys.executable, address=address))
        path.chmod(0o755)
    # its input is a pipe of ours: it ends when we do, however we end
    server = subprocess.Popen(
        [sys.executable, __file__, address],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert server.stdout.readline() == b"ready\n"

    def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        folder.cleanup()

    atexit.register(end)
    return program


def _serve(address: str) -> None:
    import pyloudnorm  # noqa: F401  # scipy with it
    import torch
    import torch._dynamo  # optimizers do
    import torch.utils.tensorboard
    from transformers import DacModel, EncodecModel  # noqa: F401  # what codecs are loaded by

    from rvqlm.bin import main

    for name in main.COMMANDS:
        importlib.import_module(f"rvqlm.bin.{main._FILES.get(name, name)}")
    torch.set_num_threads(1)
    gc.freeze()  # or each copy would look through all of it, and make it its own
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _answer(connection, main.main)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    os.killpg(0, signal.SIGKILL)


def _answer(connection: socket.socket, main) -> None:
    """Run the command in a child, and tell its status as a shell would."""
    length, files, _, _ = socket.recv_fds(connection, 4, 3)
    stream = connection.makefile("rb")
    request = json.loads(stream.read(int.from_bytes(length, "big")))
    child = get_context("fork").Process(target=_run, args=(main, files, *request))
    child.start()
    child.join()
    status = child.exitcode if child.exitcode >= 0 else 128 - child.exitcode
    connection.sendall(str(status).encode())
    os._exit(0)


def _run(main, files: list[int], argv: list[str], folder: str, env: dict[str, str]) -> None:
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    program, *argv = argv
    sys.argv = [f"{sys.prefix}/bin/rvqlm", *argv] if program == "rvqlm" else argv
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    atexit._clear()  # what the imports left; the command's own are run, as an interpreter does
    try:
        if program == "rvqlm":
            sys.exit(main(argv))
        sys.path.insert(0, str(Path(argv[0]).resolve().parent))
        # whole: a worker that the script starts imports it from elsewhere
        runpy.run_path(str(Path(argv[0]).resolve()), run_name="__main__")
    finally:
        atexit._run_exitfuncs()


if __name__ == "__main__":
    _serve(sys.argv[1])
