"""GPUs through the CUDA driver: what is loaded once, what a run needs, and the graph of a segment.

The launches of a segment become one CUDA graph whose edges are true dependencies, so that
independent branches of a network run side by side. It is instantiated once. For NumPy arrays the
graph begins with one copy to the device and ends with one copy back, through pinned memory; for
tensors on the device it holds kernels alone, and their addresses are put into its nodes.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import mmap
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pwopt.errors import CodegenError, UsageError
from pwopt.ir.types import NUMPY_DTYPES
from pwopt.targets.cuda.arch import ARCHS, DEFAULT_ARCH, native
from pwopt.targets.executable import Port
from pwopt.targets.launches import Address, Launch, LaunchList, Window, dependencies

ALIGNMENT = 64  # bytes; what kernels expect of every pointer
_APART = 256  # bytes between the starts of arrays that share an allocation
SLACK = 64  # bytes that kernels may read past the end of any array
_PLACES_TRIED = 64


def current() -> CudaDevice:
    """The GPU of this thread's context, else the first one.

    Raises:
        CodegenError: there is no driver or no GPU, or the driver's bindings are not installed.
    """
    driver = _driver()
    context = _call(driver.cuCtxGetCurrent)
    ordinal = int(_call(driver.cuCtxGetDevice)) if int(context) else 0
    return _device(ordinal)


def usual_arch() -> tuple[str, str]:
    """The architecture to generate code for where none was named, and a remark or nothing.

    Raises:
        UsageError: there is no code for the GPU here.
    """
    try:
        gpu = current()
    except CodegenError:
        return DEFAULT_ARCH, f"for {DEFAULT_ARCH}, as there is no GPU here; --arch names others"
    arch = native(gpu.capability)
    if arch is None:
        version = ".".join(map(str, gpu.capability))
        raise UsageError(
            f"pwopt has no code for {gpu.name} (compute capability {version}); name another "
            f"architecture with --arch: {', '.join(ARCHS)}"
        )
    return arch, ""


def name_of_gpu() -> str | None:
    """The driver's name of the GPU here, or None where there is none."""
    try:
        return str(current().name)
    except CodegenError:
        return None


@functools.cache
def _driver() -> Any:
    """The driver's bindings, once the driver is there."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise CodegenError("cuda-bindings is not installed: pip install 'pwopt[cuda]'") from error
    try:
        (code,) = driver.cuInit(0)
    except Exception as error:  # the bindings have several errors for a library that is missing
        raise CodegenError("no NVIDIA driver was found") from error
    if int(code):
        raise CodegenError(f"the NVIDIA driver finds no GPU that it can use ({code.name})")
    return driver


@functools.cache
def _device(ordinal: int) -> CudaDevice:
    return CudaDevice(ordinal)


def _call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """What a function of the driver returns beside its code.

    Raises:
        CodegenError: the code is that of an error.
    """
    code, *results = function(*arguments)
    if int(code):
        raise CodegenError(f"the NVIDIA driver's {function.__name__} failed: {code.name}")
    return results[0] if len(results) == 1 else None


class CudaDevice:
    """A GPU; its primary context, which other libraries use as well.

    Attributes:
        name: the driver's.
        capability: compute capability.
        driver_version: CUDA version that the driver supports, e.g. 13000.
    """

    def __init__(self, ordinal: int) -> None:
        driver = self._driver = _driver()
        if ordinal >= _call(driver.cuDeviceGetCount):
            raise CodegenError(f"there is no GPU {ordinal}")
        self.ordinal = ordinal
        handle = _call(driver.cuDeviceGet, ordinal)
        name = _call(driver.cuDeviceGetName, 256, handle)
        self.name = name.split(b"\0")[0].decode()
        attribute = driver.CUdevice_attribute
        self.capability = (
            self._attribute(handle, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            self._attribute(handle, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )
        self.driver_version = int(_call(driver.cuDriverGetVersion))
        self._context = _call(driver.cuDevicePrimaryCtxRetain, handle)

    def _attribute(self, handle: Any, which: Any) -> int:
        return int(_call(self._driver.cuDeviceGetAttribute, which, handle))

    @contextlib.contextmanager
    def active(self) -> Iterator[Any]:
        """Makes this GPU's context the thread's for a while; gives the driver's bindings."""
        _call(self._driver.cuCtxPushCurrent, self._context)
        try:
            yield self._driver
        finally:
            _call(self._driver.cuCtxPopCurrent)

    def load(
        self,
        launches: LaunchList,
        kernels: Mapping[str, bytes],
        constants: np.ndarray,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[np.ndarray],
    ) -> LoadedLaunches:
        """See :class:`pwopt.targets.cuda.segment.Device`."""
        return LoadedLaunches(self, launches, kernels, constants, inputs, outputs)

    def memory(self, size: int) -> int:
        """Address of new memory on the device, of at least one byte."""
        return int(_call(self._driver.cuMemAlloc, max(size, 1) + SLACK))

    def free_bytes(self) -> int:
        """Memory of the device that nobody has taken."""
        with self.active() as driver:
            code, free, _ = driver.cuMemGetInfo()
            if int(code):
                raise CodegenError(f"the NVIDIA driver's cuMemGetInfo failed: {code.name}")
            return int(free)


class LoadedLaunches:
    """A launch list on a GPU: its code and constants, and a pool of what runs need."""

    def __init__(
        self,
        device: CudaDevice,
        launches: LaunchList,
        kernels: Mapping[str, bytes],
        constants: np.ndarray,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[np.ndarray],
    ) -> None:
        self.device, self.launches = device, launches
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.after = dependencies(launches.launches)
        self._resident = _Resident(launches.launches)
        with device.active() as driver, contextlib.ExitStack() as undo:
            self._functions = _functions(driver, launches.launches, kernels, undo)
            self._constants = device.memory(self._resident.bytes)
            undo.callback(_quietly, driver.cuMemFree, self._constants)
            for start, size, at in self._resident.pieces:
                piece = np.ascontiguousarray(constants[start : start + size])
                target = self._constants + at
                _call(driver.cuMemcpyHtoD, target, piece.ctypes.data, piece.nbytes)
            _call(driver.cuCtxSynchronize)  # copies may end later, and streams of runs do not wait
            weakref.finalize(self, _release, device, undo.pop_all())
        self._pool: list[_Session] = []

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """See :class:`pwopt.targets.cuda.segment.Loaded`."""
        with self._session() as session:
            session.run(inputs, outputs)

    def run_on_device(
        self, inputs: Sequence[tuple[Port, Any]], outputs: Sequence[tuple[Port, Any]]
    ) -> list[Any]:
        """Runs on tensors that lie on the device, and waits for the end.

        Args:
            inputs: objects with ``__dlpack__`` or ``__cuda_array_interface__``.
            outputs: likewise, to be written; None for new ones.

        Returns:
            The outputs given, else new ones with ``__dlpack__``.
        """
        with self._session() as session:
            stream = int(session.stream)
            sources = [_tensor(port, value, stream, self.device) for port, value in inputs]
            results = [
                value if value is not None else _new_tensor(self.device, port)
                for port, value in outputs
            ]
            targets = [
                _tensor(port, value, stream, self.device)
                for (port, _), value in zip(outputs, results, strict=True)
            ]
            for (port, _), target in zip(outputs, targets, strict=True):
                if target.ptr % ALIGNMENT:
                    raise UsageError(f"output {port}: its memory is not aligned to 64 bytes")
            session.run_on_device([s.ptr for s in sources], [t.ptr for t in targets])
        return results

    def seconds(self, inputs: Sequence[np.ndarray], calls: int) -> float:
        """Mean time of a run without copies, by events around ``calls`` runs in a row."""
        with self._session() as session:
            return session.seconds(inputs, calls)

    def kernel_us(self, inputs: Sequence[np.ndarray]) -> list[float]:
        """Microseconds of each launch, one after the other, less what measuring costs."""
        with self._session() as session:
            return session.kernel_us(inputs)

    def function(self, launch: Launch) -> Any:
        """The driver's handle of a launch's kernel."""
        return self._functions[launch.kernel]

    def constant(self, offset: int) -> int:
        """Where a constant lies on the device, by its place in the executable."""
        return self._constants + self._resident.place(offset)

    @contextlib.contextmanager
    def _session(self) -> Iterator[_Session]:
        with self.device.active():
            try:
                session = self._pool.pop()
            except IndexError:
                session = _Session(self)
            yield session  # one that failed is not used again
            self._pool.append(session)


class _Resident:
    """The pieces of an executable's constants that the launches read, moved together.

    Attributes:
        pieces: (start in the executable, size, start on the device), in bytes.
        bytes: of all together.
    """

    def __init__(self, launches: Sequence[Launch]) -> None:
        ranges = sorted(
            {
                (a.start.offset, a.start.offset + a.extent)
                for launch in launches
                for a in launch.reads
                if a.start.kind == "constant"
            }
        )
        merged: list[tuple[int, int]] = []
        for start, end in ranges:
            if merged and start <= merged[-1][1] + SLACK:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        self.pieces: list[tuple[int, int, int]] = []
        self.bytes = 0
        for start, end in merged:
            at = self.bytes + (start - self.bytes) % ALIGNMENT
            self.pieces.append((start, end - start, at))
            self.bytes = _rounded(at + end - start + SLACK)
        self._starts = [start for start, _, _ in self.pieces]

    def place(self, offset: int) -> int:
        """Where a byte of the constants lies on the device."""
        start, _, at = self.pieces[bisect_right(self._starts, offset) - 1]
        return at + offset - start


class _Session:
    """What one run needs for itself: a stream, a workspace, arrays for copies, and graphs.

    All of it is made with the device's context current.
    """

    def __init__(self, loaded: LoadedLaunches) -> None:
        self._loaded, device = loaded, loaded.device
        driver = self._driver = _driver()
        self._graph: Any = None  # for NumPy, with copies
        self._bare: Any = None  # of kernels alone
        self._nodes: list[Any] = []  # of the latter
        self._timed: Any = None  # of kernels one after the other, with the events between them
        self._marks: list[Any] = []
        with contextlib.ExitStack() as undo:
            self.stream = _call(driver.cuStreamCreate, 1)  # does not wait for the default stream
            undo.callback(_quietly, driver.cuStreamDestroy, self.stream)
            self._workspace = device.memory(loaded.launches.workspace_bytes)
            undo.callback(_quietly, driver.cuMemFree, self._workspace)
            if cleared := loaded.launches.cleared_bytes:
                _call(driver.cuMemsetD8Async, self._workspace, 0, cleared, self.stream)
            self._in = _Staging(device, loaded.inputs, undo)
            self._out = _Staging(device, loaded.outputs, undo)
            self._places = (self._in.addresses, self._out.addresses)  # in the bare graph
            self._events = [_call(driver.cuEventCreate, 0) for _ in range(2)]
            for event in self._events:
                undo.callback(_quietly, driver.cuEventDestroy, event)
            self._undo = undo.pop_all()
        weakref.finalize(self, _release, device, self._undo)

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        driver = self._driver
        if self._graph is None:
            self._graph = self._with_copies()
        self._in.fill(inputs)
        _call(driver.cuGraphLaunch, self._graph, self.stream)
        _call(driver.cuStreamSynchronize, self.stream)
        for array, staged in zip(outputs, self._out.arrays, strict=True):
            np.copyto(array, staged)

    def run_on_device(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        driver, addresses = self._driver, list(inputs)
        for i, (address, array) in enumerate(zip(inputs, self._loaded.inputs, strict=True)):
            if address % ALIGNMENT and array.nbytes:
                addresses[i] = self._in.addresses[i]
                _call(driver.cuMemcpyDtoDAsync, addresses[i], address, array.nbytes, self.stream)
        self._place(addresses, outputs)
        _call(driver.cuGraphLaunch, self._bare, self.stream)
        _call(driver.cuStreamSynchronize, self.stream)

    def seconds(self, inputs: Sequence[np.ndarray], calls: int) -> float:
        driver = self._driver
        self._place(self._in.addresses, self._out.addresses)
        self._upload(inputs)
        begin, end = self._events
        _call(driver.cuEventRecord, begin, self.stream)
        for _ in range(calls):
            _call(driver.cuGraphLaunch, self._bare, self.stream)
        _call(driver.cuEventRecord, end, self.stream)
        _call(driver.cuEventSynchronize, end)
        return float(_call(driver.cuEventElapsedTime, begin, end)) * 1e-3 / calls

    def kernel_us(self, inputs: Sequence[np.ndarray]) -> list[float]:
        driver = self._driver
        if self._timed is None:
            self._timed = self._with_events()
        self._upload(inputs)
        _call(driver.cuGraphLaunch, self._timed, self.stream)
        _call(driver.cuStreamSynchronize, self.stream)
        pairs = itertools.pairwise(self._marks)
        times = [1e3 * float(_call(driver.cuEventElapsedTime, *pair)) for pair in pairs]
        return [max(t - times[-1], 0.0) for t in times[:-1]]  # less what an event costs

    def _upload(self, inputs: Sequence[np.ndarray]) -> None:
        self._in.fill(inputs)
        staging = self._in
        _call(
            self._driver.cuMemcpyHtoDAsync,
            staging.device,
            staging.host.ctypes.data,
            staging.bytes,
            self.stream,
        )
        _call(self._driver.cuStreamSynchronize, self.stream)

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
            event = _call(driver.cuEventCreate, 0)
            self._undo.callback(_quietly, driver.cuEventDestroy, event)
            self._marks.append(event)
            after[:] = [_call(driver.cuGraphAddEventRecordNode, graph, after, len(after), event)]

        mark()
        for launch in self._loaded.launches.launches:
            with self._node_parameters(launch, self._in.addresses, self._out.addresses) as node:
                after[:] = [_call(driver.cuGraphAddKernelNode, graph, after, len(after), node)]
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
                    _call(self._driver.cuGraphExecKernelNodeSetParams, self._bare, node, to)
        self._places = (list(inputs), list(outputs))

    def _new_graph(self) -> Any:
        graph = _call(self._driver.cuGraphCreate, 0)
        self._undo.callback(_quietly, self._driver.cuGraphDestroy, graph)
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
                made = _call(self._driver.cuGraphAddKernelNode, graph, needed, len(needed), node)
            nodes.append(made)
        return nodes

    def _instance(self, graph: Any) -> Any:
        instance = _call(self._driver.cuGraphInstantiate, graph, 0)
        self._undo.callback(_quietly, self._driver.cuGraphExecDestroy, instance)
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
        context = _call(driver.cuCtxGetCurrent)
        return _call(driver.cuGraphAddMemcpyNode, graph, list(after), len(after), copy, context)

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
        driver, starts, total = _driver(), [], 0
        for array in arrays:
            starts.append(total)
            total = _rounded(total + array.nbytes + SLACK)
        self.bytes = max(total, 1)
        self.device = device.memory(self.bytes)
        undo.callback(_quietly, driver.cuMemFree, self.device)
        self.addresses = [self.device + start for start in starts]
        # Whole pages: the driver pins no page twice.
        self.host = np.frombuffer(mmap.mmap(-1, self.bytes), np.uint8)
        _call(driver.cuMemHostRegister, self.host.ctypes.data, self.bytes, 0)
        undo.callback(_unpinned, self.host)
        self.arrays = [
            self.host[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
            for start, a in zip(starts, arrays, strict=True)
        ]

    def fill(self, arrays: Sequence[np.ndarray]) -> None:
        """Copies arrays to the pinned memory."""
        for staged, array in zip(self.arrays, arrays, strict=True):
            np.copyto(staged, array)


def _functions(
    driver: Any,
    launches: Sequence[Launch],
    kernels: Mapping[str, bytes],
    undo: contextlib.ExitStack,
) -> dict[str, Any]:
    """Handles of the kernels, by symbol."""
    found: dict[str, Any] = {}
    limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    for launch in launches:
        if launch.kernel not in found:
            module = _call(driver.cuModuleLoadData, kernels[launch.kernel])
            undo.callback(_quietly, driver.cuModuleUnload, module)
            function = _call(driver.cuModuleGetFunction, module, launch.kernel.encode())
            if launch.shared_bytes:  # 48 KiB are free, but static memory counts towards them
                _call(driver.cuFuncSetAttribute, function, limit, launch.shared_bytes)
            found[launch.kernel] = function
    return found


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


# --- tensors on the device ------------------------------------------------------------------------


def _tensor(port: Port, value: Any, stream: int, device: CudaDevice) -> Any:
    """A view of somebody's tensor; ``stream`` waits for what they still do to it."""
    from cuda.core.utils import StridedMemoryView

    if isinstance(value, np.ndarray) or not (
        hasattr(value, "__dlpack__") or hasattr(value, "__cuda_array_interface__")
    ):
        kind = type(value).__name__
        raise UsageError(f"{port} must lie on the GPU as the others do, got {kind}")
    view = StridedMemoryView.from_any_interface(value, stream_ptr=stream)
    if not view.is_device_accessible or view.device_id != device.ordinal:
        raise UsageError(f"{port} must lie on GPU {device.ordinal}, {device.name}")
    shape = tuple(view.shape)
    if view.dtype != np.dtype(NUMPY_DTYPES[str(port.dtype)]) or shape != tuple(port.shape or ()):
        raise UsageError(f"{port} got {view.dtype}[{'x'.join(map(str, shape))}]")
    if not _is_row_major(shape, view.strides):
        raise UsageError(f"{port} must be contiguous, its strides are {tuple(view.strides)}")
    return view


def _is_row_major(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    if strides is None or 0 in shape:
        return True
    step = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != step:
            return False
        step *= extent
    return True


def _new_tensor(device: CudaDevice, port: Port) -> Any:
    """A tensor on the device with ``__dlpack__``, whose memory it owns."""
    from cuda.core import Buffer
    from cuda.core.utils import StridedMemoryView

    dtype = np.dtype(NUMPY_DTYPES[str(port.dtype)])
    shape = tuple(int(size) for size in port.shape or ())
    size = max(math.prod(shape) * dtype.itemsize, 1)
    owner = _Allocation(device, size)
    buffer = Buffer.from_handle(owner.address, size, owner=owner)
    return StridedMemoryView.from_buffer(buffer, shape, dtype=dtype)


class _Allocation:
    """Memory on the device that is freed with this object."""

    def __init__(self, device: CudaDevice, size: int) -> None:
        self.address = device.memory(size)
        undo = contextlib.ExitStack()
        undo.callback(_quietly, _driver().cuMemFree, self.address)
        weakref.finalize(self, _release, device, undo)


def _release(device: CudaDevice, undo: contextlib.ExitStack) -> None:
    with contextlib.suppress(CodegenError), device.active():  # the process may be ending
        undo.close()


def _unpinned(array: np.ndarray) -> None:
    _quietly(_driver().cuMemHostUnregister, array.ctypes.data)


def _quietly(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> None:
    function(*arguments)  # nobody could act on what it returns


def _rounded(size: int) -> int:
    return -(-size // _APART) * _APART
