"""A GPU behind TVM's RPC tracker.

``python -m pwopt.targets.cuda.server --tracker HOST:PORT --key NAME``. It takes machine code and
launches, and returns times; compilers are where the tuner runs. The GPU is driven by our own
runtime, so TVM needs no CUDA here. As with every RPC server of TVM, whoever reaches it may run
anything on the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

from pwopt.errors import CodegenError, UsageError
from pwopt.targets.cuda.measure import here
from pwopt.targets.cuda.package import Package

PREFIX = "pwopt.cuda."
_loaded: dict[int, Callable[[], list[float]]] = {}
_handles = itertools.count()


def gpu() -> str:
    """JSON of the GPU: its name and compute capability."""
    from pwopt.targets.cuda.device import current

    device = current()
    return json.dumps({"name": device.name, "capability": device.capability})


def load(header: str, data: bytes) -> str:
    """Loads what :meth:`~.package.Package.pack` packed; JSON of a handle, or of what went wrong."""

    def put() -> int:
        handle = next(_handles)
        _loaded[handle] = here(Package.unpack(header, bytes(data)))
        return handle

    return _answer(put)


def times(handle: int) -> str:
    """Runs once; JSON of the microseconds of each launch, or of what went wrong."""
    return _answer(_loaded[handle])


def _answer(function: Callable[[], Any]) -> str:
    """A failure of the GPU must not look like the loss of the machine."""
    try:
        return json.dumps({"result": function()})
    except CodegenError as error:
        return json.dumps({"problem": str(error)})


def unload(handle: int) -> None:
    """Gives back what a handle holds."""
    del _loaded[handle]


def register() -> None:
    """Makes the functions known to TVM; no GPU is touched, for sessions are forked processes."""
    import tvm_ffi

    multiprocessing.set_start_method("fork", force=True)
    for function in (gpu, load, times, unload):
        tvm_ffi.register_global_func(PREFIX + function.__name__, function, override=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m pwopt.targets.cuda.server")
    parser.add_argument("--tracker", metavar="HOST:PORT", required=True, help="to register with")
    parser.add_argument("--key", required=True, help="under which the tuner asks for it")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen at")
    parser.add_argument("--port", type=int, default=9090, help="the first one to try")
    parser.add_argument("--port-end", type=int, default=9199, help="after the last one")
    options = parser.parse_args(arguments)
    host, _, port = options.tracker.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--tracker {options.tracker}: write HOST:PORT")
    from tvm import rpc

    from pwopt.targets.cuda import server as module  # not __main__, which would be copied

    served = rpc.Server(
        options.host,
        options.port,
        options.port_end,
        key=options.key,
        tracker_addr=(host, int(port)),
        server_init_callback=module.register,
    )
    served.proc.join()


if __name__ == "__main__":
    main()
