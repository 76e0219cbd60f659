"""What machine code of the CUDA target is made of, kernel by kernel: no GPU is needed.

Registers, spills and shared memory are ptxas's, instructions are counted in the disassembly, and
occupancy follows from both. Predicted times are the least that a GPU's peaks allow, or the launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pwopt import driver
from pwopt.errors import CodegenError
from pwopt.ir.graph import Graph
from pwopt.models.registry import entry
from pwopt.targets.cuda.arch import Arch, arch
from pwopt.targets.cuda.disassembly import disassemble, instructions
from pwopt.targets.cuda.lowering import CudaLowering
from pwopt.targets.cuda.module import Code, generate
from pwopt.targets.cuda.rules import RULES
from pwopt.targets.cuda.toolchain import Cubin, compile_sources
from pwopt.targets.plan import Plan, assign_offsets, pack_constants

NETWORKS = ("resnet", "mobilenet_v2_seeded", "squeezenet_v1_1", "googlenet", "densenet")
BATCHES = (1, 32)
ARCHS = ("sm_80", "sm_90a")
PRODUCTS = ("conv", "wgmma")
TENSOR_CORES = ("HMMA", "HGMMA")


@dataclass(frozen=True)
class KernelEvidence:
    """One distinct kernel of a network.

    Attributes:
        network, batch: what it is of.
        arch: what it is compiled for.
        kernel: kind and number.
        calls: of it in an inference.
        registers, spill_bytes, stack_bytes: of a thread.
        shared_bytes: of a block, static and dynamic.
        threads, blocks: of a launch.
        tensor_core_instructions: in its machine code.
        occupancy: resident warps over the most that there can be.
        predicted_us: of all calls together, by the roofline of ``gpu``.
        gpu: whose peaks.
    """

    network: str
    batch: int
    arch: str
    kernel: str
    calls: int
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    threads: int
    blocks: int
    tensor_core_instructions: int
    occupancy: float
    predicted_us: float
    gpu: str

    @property
    def kind(self) -> str:
        """The template that made it."""
        return self.kernel.split("_", 1)[1]

    @property
    def problem(self) -> str:
        """What a kernel of this kind must not have, or nothing."""
        if self.spill_bytes or self.stack_bytes:
            return f"{self.spill_bytes} bytes spilled, stack of {self.stack_bytes}"
        if self.kind in PRODUCTS and not self.tensor_core_instructions:
            return "no tensor cores"
        return "" if self.occupancy else "does not fit a multiprocessor"


def measure(
    networks: Sequence[str] = NETWORKS,
    batches: Sequence[int] = BATCHES,
    archs: Sequence[str] = ARCHS,
    precision: str = "fp16",
    progress: Callable[[str], None] = lambda line: None,
) -> Iterator[KernelEvidence]:
    """Compiles and disassembles every kernel of some networks.

    Args:
        networks: names in the registry.
        batches: of an inference.
        archs: to compile for.
        precision: of products.
        progress: called with a line for each network.

    Raises:
        CodegenError: there is no compiler or disassembler, or a node has no kernel.
    """
    for name in networks:
        for batch in batches:
            graph = driver.optimize(
                entry(name).build(batch=batch), target="cuda", verify=False
            ).graph
            for wanted in archs:
                progress(f"{name}, batch {batch}, {wanted}")
                yield from _of_network(graph, name, batch, arch(wanted), precision)


def _of_network(
    graph: Graph, name: str, batch: int, wanted: Arch, precision: str
) -> list[KernelEvidence]:
    lowering = CudaLowering(graph, wanted, precision)
    rejected = lowering.run(RULES)
    if rejected:
        node, reason = next(iter(rejected.items()))
        raise CodegenError(f"{node.label}: {reason}")
    plan = lowering.plan
    assign_offsets(plan)
    pack_constants([plan])
    code = generate([plan], wanted.name)
    names = list(code.sources)
    made = compile_sources([code.sources[n] for n in names], wanted.name)
    cubins = dict(zip(names, made, strict=True))
    return [_row(name, batch, wanted, code, plan, k, cubins[k], lowering.gpu.name) for k in names]


def _row(
    network: str,
    batch: int,
    wanted: Arch,
    code: Code,
    plan: Plan,
    kernel: str,
    cubin: Cubin,
    gpu: str,
) -> KernelEvidence:
    launches = [launch for each in code.launches for launch in each.launches]
    calls = [(s, c) for s, c in zip(plan.steps, launches, strict=True) if c.kernel == kernel]
    usage, (_, launch) = cubin.kernels[kernel], calls[0]
    counted = instructions(disassemble(cubin.image)[kernel])
    shared = launch.shared_bytes + usage.shared_bytes
    x, y, z = launch.grid
    return KernelEvidence(
        network,
        batch,
        wanted.name,
        kernel,
        len(calls),
        usage.registers,
        usage.spill_bytes,
        usage.stack_bytes,
        shared,
        launch.threads,
        x * y * z,
        sum(counted[i] for i in TENSOR_CORES),
        wanted.occupancy(launch.threads, usage.registers, shared),
        sum(step.predicted_us for step, _ in calls),
        gpu,
    )
