"""What one run of a launch list needs for itself, and its CUDA graphs.

The launches of a segment become one CUDA graph whose edges are true dependencies, so that
independent branches of a network run side by side. It is instantiated once. For NumPy arrays the
graph begins with one copy to the device and ends with one copy back, through pinned memory; for
tensors on the device it holds kernels alone, and their addresses are put into its nodes.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pwopt.errors import CodegenError
from pwopt.targets.cuda.driver import (
    ALIGNMENT,
    SLACK,
    bindings,
    call,
    quietly,
    release,
    rounded,
)
from pwopt.targets.launches import Address, Launch, Window

if TYPE_CHECKING:
    from pwopt.targets.cuda.device import CudaDevice
    from pwopt.targets.cuda.loaded import LoadedLaunches

_PLACES_TRIED = 64


class Session:
    """What one run needs for itself: a stream, a workspace, arrays for copies, and graphs.

    All of it is made with the device's context current.
    """

    def __init__(self, loaded: LoadedLaunches) -> None:
        self._loaded, device = loaded, loaded.device
        driver = self._driver = bindings()
        self._graph: Any = None  # for NumPy, with copies
        self._bare: Any = None  # of kernels alone
        self._nodes: list[Any] = []  # of the latter
        self._timed: Any = None  # of kernels one after the other, with the events between them
        self._marks: list[Any] = []
        with contextlib.ExitStack() as undo:
            self.stream = call(driver.cuStreamCreate, 1)  # does not wait for the default stream
            undo.callback(quietly, driver.cuStreamDestroy, self.stream)
            self._workspace = device.memory(loaded.launches.workspace_bytes)
            undo.callback(quietly, driver.cuMemFree, self._workspace)
            if cleared := loaded.launches.cleared_bytes:
                call(driver.cuMemsetD8Async, self._workspace, 0, cleared, self.stream)
            self._in = _Staging(device, loaded.inputs, undo)
            self._out = _Staging(device, loaded.outputs, undo)
            self._places = (self._in.addresses, self._out.addresses)  # in the bare graph
            self._events = [call(driver.cuEventCreate, 0) for _ in range(2)]
            for event in self._events:
                undo.callback(quietly, driver.cuEventDestroy, event)
            self._undo = undo.pop_all()
        weakref.finalize(self, release, device, self._undo)

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """Runs once, with a copy each way."""
        driver = self._driver
        if self._graph is None:
            self._graph = self._with_copies()
        self._in.fill(inputs)
        call(driver.cuGraphLaunch, self._graph, self.stream)
        call(driver.cuStreamSynchronize, self.stream)
        for array, staged in zip(outputs, self._out.arrays, strict=True):
            np.copyto(array, staged)

    def run_between(
        self, inputs: Sequence[np.ndarray | int], outputs: Sequence[np.ndarray | None]
    ) -> None:
        """Runs once on arrays and addresses; None for outputs that only the device needs."""
        driver, addresses, copied = self._driver, list(self._in.addresses), list[tuple[Any, Any]]()
        for i, (given, staged) in enumerate(zip(inputs, self._in.arrays, strict=True)):
            if isinstance(given, int):
                addresses[i] = given
            elif staged.nbytes:
                np.copyto(staged, given)
                place = staged.ctypes.data, staged.nbytes, self.stream
                call(driver.cuMemcpyHtoDAsync, addresses[i], *place)
        self._place(addresses, self._out.addresses)
        call(driver.cuGraphLaunch, self._bare, self.stream)
        for i, (wanted, staged) in enumerate(zip(outputs, self._out.arrays, strict=True)):
            if wanted is not None and staged.nbytes:
                place = self._out.addresses[i], staged.nbytes, self.stream
                call(driver.cuMemcpyDtoHAsync, staged.ctypes.data, *place)
                copied.append((wanted, staged))
        call(driver.cuStreamSynchronize, self.stream)
        for wanted, staged in copied:
            np.copyto(wanted, staged)

    def output(self, index: int) -> int:
        """Address of an output after a run that did not write it elsewhere."""
        return self._out.addresses[index]

    def run_on_device(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Runs once on memory of the device at these addresses."""
        driver, addresses = self._driver, list(inputs)
        for i, (address, array) in enumerate(zip(inputs, self._loaded.inputs, strict=True)):
            if address % ALIGNMENT and array.nbytes:
                addresses[i] = self._in.addresses[i]
                call(driver.cuMemcpyDtoDAsync, addresses[i], address, array.nbytes, self.stream)
        self._place(addresses, outputs)
        call(driver.cuGraphLaunch, self._bare, self.stream)
        call(driver.cuStreamSynchronize, self.stream)

    def seconds(self, inputs: Sequence[np.ndarray], calls: int) -> float:
        """See :meth:`LoadedLaunches.seconds`."""
        driver = self._driver
        self._place(self._in.addresses, self._out.addresses)
        self._upload(inputs)
        begin, end = self._events
        call(driver.cuEventRecord, begin, self.stream)
        for _ in range(calls):
            call(driver.cuGraphLaunch, self._bare, self.stream)
        call(driver.cuEventRecord, end, self.stream)
        call(driver.cuEventSynchronize, end)
        return float(call(driver.cuEventElapsedTime, begin, end)) * 1e-3 / calls

    def kernel_us(self, inputs: Sequence[np.ndarray]) -> list[float]:
        """See :meth:`LoadedLaunches.kernel_us`."""
        driver = self._driver
        if self._timed is None:
            self._timed = self._with_events()
        self._upload(inputs)
        call(driver.cuGraphLaunch, self._timed, self.stream)
        call(driver.cuStreamSynchronize, self.stream)
        pairs = itertools.pairwise(self._marks)
        times = [1e3 * float(call(driver.cuEventElapsedTime, *pair)) for pair in pairs]
        return [max(t - times[-1], 0.0) for t in times[:-1]]  # less what an event costs

    def _upload(self, inputs: Sequence[np.ndarray]) -> None:
        self._in.fill(inputs)
        staging = self._in
        call(
            self._driver.cuMemcpyHtoDAsync,
            staging.device,
            staging.host.ctypes.data,
            staging.bytes,
            self.stream,
        )
        call(self._driver.cuStreamSynchronize, self.stream)

    # --- graphs ---------------------------------------------------------------------------------

    def _with_copies(self) -> Any:
        """The graph for NumPy arrays: copy, kernels, copy."""
        graph, launches = self._new_graph(), self._loaded.launches.launches
        first = self._copy_node(graph, [], self._in, to_device=True)
        nodes = self._kernel_nodes(graph, first)
        writers = [
            node
            for node, launch in zip(nodes, launches, strict=True)
            if any(a.start.kind == "output" for a in launch.writes)
        ]
        self._copy_node(graph, writers, self._out, to_device=False)
        return self._instance(graph)

    def _with_events(self) -> Any:
        """The graph of one kernel after the other, an event before and after each, two at the end.

        The device waits for nothing but the kernel between two events: all of it is launched once.
        """
        driver, graph, after = self._driver, self._new_graph(), list[Any]()

        def mark() -> None:
            event = call(driver.cuEventCreate, 0)
            self._undo.callback(quietly, driver.cuEventDestroy, event)
            self._marks.append(event)
            after[:] = [call(driver.cuGraphAddEventRecordNode, graph, after, len(after), event)]

        mark()
        for launch in self._loaded.launches.launches:
            with self._node_parameters(launch, self._in.addresses, self._out.addresses) as node:
                after[:] = [call(driver.cuGraphAddKernelNode, graph, after, len(after), node)]
            mark()
        mark()
        return self._instance(graph)

    def _place(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Makes the graph of kernels alone, or moves its inputs and outputs to these addresses.

        Only nodes that use one that moved are touched.
        """
        if self._bare is None:
            graph = self._new_graph()
            self._nodes = self._kernel_nodes(graph, None)
            self._bare = self._instance(graph)
        moved = {
            (kind, index)
            for kind, old, new in zip(
                ("input", "output"), self._places, (inputs, outputs), strict=True
            )
            for index, (before, now) in enumerate(zip(old, new, strict=True))
            if before != now
        }
        for launch, node in zip(self._loaded.launches.launches, self._nodes, strict=True):
            if any(_base(argument).memory in moved for argument in launch.arguments):
                with self._node_parameters(launch, inputs, outputs) as to:
                    call(self._driver.cuGraphExecKernelNodeSetParams, self._bare, node, to)
        self._places = (list(inputs), list(outputs))

    def _new_graph(self) -> Any:
        graph = call(self._driver.cuGraphCreate, 0)
        self._undo.callback(quietly, self._driver.cuGraphDestroy, graph)
        return graph

    def _kernel_nodes(self, graph: Any, first: Any) -> list[Any]:
        """A node per launch; those that read inputs come after ``first``, if there is one."""
        nodes: list[Any] = []
        for launch, after in zip(self._loaded.launches.launches, self._loaded.after, strict=True):
            needed = [nodes[i] for i in after]
            if first is not None and any(a.start.kind == "input" for a in launch.reads):
                needed.append(first)
            places = (self._in.addresses, self._out.addresses)
            with self._node_parameters(launch, *places) as node:
                made = call(self._driver.cuGraphAddKernelNode, graph, needed, len(needed), node)
            nodes.append(made)
        return nodes

    def _instance(self, graph: Any) -> Any:
        instance = call(self._driver.cuGraphInstantiate, graph, 0)
        self._undo.callback(quietly, self._driver.cuGraphExecDestroy, instance)
        return instance

    def _copy_node(
        self, graph: Any, after: Sequence[Any], staging: _Staging, *, to_device: bool
    ) -> Any:
        driver = self._driver
        host, device = driver.CUmemorytype.CU_MEMORYTYPE_HOST, driver.CUmemorytype
        copy = driver.CUDA_MEMCPY3D()
        copy.WidthInBytes, copy.Height, copy.Depth = staging.bytes, 1, 1
        if to_device:
            copy.srcMemoryType, copy.srcHost = host, staging.host.ctypes.data
            copy.dstMemoryType, copy.dstDevice = device.CU_MEMORYTYPE_DEVICE, staging.device
        else:
            copy.srcMemoryType, copy.srcDevice = device.CU_MEMORYTYPE_DEVICE, staging.device
            copy.dstMemoryType, copy.dstHost = host, staging.host.ctypes.data
        context = call(driver.cuCtxGetCurrent)
        return call(driver.cuGraphAddMemcpyNode, graph, list(after), len(after), copy, context)

    @contextlib.contextmanager
    def _node_parameters(
        self, launch: Launch, inputs: Sequence[int], outputs: Sequence[int]
    ) -> Iterator[Any]:
        """A kernel node's parameters, with the inputs and outputs at these addresses."""
        node = self._driver.CUDA_KERNEL_NODE_PARAMS()
        node.func = self._loaded.function(launch)
        node.gridDimX, node.gridDimY, node.gridDimZ = launch.grid
        node.blockDimX, node.blockDimY, node.blockDimZ = launch.threads, 1, 1
        node.sharedMemBytes = launch.shared_bytes
        # The node points to the values but does not keep them: that is for who uses it.
        parameters = self._parameters(launch, inputs, outputs)
        node.kernelParams = parameters
        yield node
        del parameters

    def _parameters(
        self, launch: Launch, inputs: Sequence[int], outputs: Sequence[int]
    ) -> tuple[tuple[Any, ...], tuple[None, ...]]:
        def at(address: Address) -> int:
            if address.kind == "workspace":
                return self._workspace + address.offset
            if address.kind == "constant":
                return self._loaded.constant(address.offset)
            bases = inputs if address.kind == "input" else outputs
            return bases[address.position] + address.offset

        values = tuple(
            _tensor_map(self._driver, argument, at(argument.base))
            if isinstance(argument, Window)
            else self._driver.CUdeviceptr(at(argument))
            for argument in launch.arguments
        )
        return values, (None,) * len(values)  # None: they know their own types


class _Staging:
    """Arrays on the device and their images in pinned memory, each all in one piece.

    Attributes:
        arrays: NumPy views of the pinned memory.
        addresses: of the arrays on the device.
        host: the pinned memory.
        device: address of all arrays on the device.
        bytes: of all arrays.
    """

    def __init__(
        self, device: CudaDevice, arrays: Sequence[np.ndarray], undo: contextlib.ExitStack
    ) -> None:
        driver, starts, total = bindings(), [], 0
        for array in arrays:
            starts.append(total)
            total = rounded(total + array.nbytes + SLACK)
        self.bytes = max(total, 1)
        self.device = device.memory(self.bytes)
        undo.callback(quietly, driver.cuMemFree, self.device)
        self.addresses = [self.device + start for start in starts]
        # Whole pages: the driver pins no page twice.
        self.host = np.frombuffer(mmap.mmap(-1, self.bytes), np.uint8)
        call(driver.cuMemHostRegister, self.host.ctypes.data, self.bytes, 0)
        undo.callback(_unpinned, self.host)
        self.arrays = [
            self.host[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
            for start, a in zip(starts, arrays, strict=True)
        ]

    def fill(self, arrays: Sequence[np.ndarray]) -> None:
        """Copies arrays to the pinned memory."""
        for staged, array in zip(self.arrays, arrays, strict=True):
            np.copyto(staged, array)


def _unpinned(array: np.ndarray) -> None:
    quietly(bindings().cuMemHostUnregister, array.ctypes.data)


def _base(argument: Address | Window) -> Address:
    return argument.base if isinstance(argument, Window) else argument


def _tensor_map(driver: Any, window: Window, address: int) -> Any:
    """The descriptor of a window on memory at an address."""
    types, swizzles = driver.CUtensorMapDataType, driver.CUtensorMapSwizzle
    dtype = getattr(types, f"CU_TENSOR_MAP_DATA_TYPE_{window.dtype.upper()}")
    swizzle = f"{window.swizzle}B" if window.swizzle else "NONE"
    wide, narrow = driver.cuuint64_t, driver.cuuint32_t
    passed_over = []
    for _ in range(_PLACES_TRIED):
        code, made = driver.cuTensorMapEncodeTiled(
            dtype,
            len(window.dims),
            address,
            [wide(n) for n in window.dims],
            [wide(n) for n in window.strides],
            [narrow(n) for n in window.box],
            [narrow(n) for n in window.steps],
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            getattr(swizzles, f"CU_TENSOR_MAP_SWIZZLE_{swizzle}"),
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        if not int(code):
            return made
        # The driver wants descriptors at multiples of 64 bytes, and the bindings put them at
        # multiples of 16: with this one kept, the next lies elsewhere.
        passed_over.append(driver.CUtensorMap())
    raise CodegenError(f"the NVIDIA driver refuses a tensor map ({code.name}): {window}")
