"""What makes executables callable from C and C++: ``native.c``, and a header for each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tvm_ffi.libinfo

from pwopt.ir.types import NUMPY_DTYPES
from pwopt.targets import runtime
from pwopt.targets.machine_code import ALIGNMENT
from pwopt.targets.manifest import Manifest, Port

_FOLDER = Path(__file__).parent
# The kernels' checks report through a function of TVM's; native.c does without it where it is not.
_WRAPPED = "TVMFFIErrorSetRaisedFromCStrParts"


def arguments(manifest: Manifest, folder: Path) -> list[str]:
    """What links ``native.c`` to an executable's parts, for the compiler's command line.

    Args:
        manifest: the executable's.
        folder: where its ``kernels.o`` is, if it has any; a header is written there.
    """
    header, kernels = folder / "model.h", folder / "kernels.o"
    code = kernels.read_bytes() if kernels.exists() else b""
    calls_runtime = any(f"__{name}".encode() in code for name in runtime.FUNCTIONS)
    header.write_text(_header(manifest, calls_runtime or manifest.threads > 1))
    tvm = tvm_ffi.libinfo.find_include_path()
    source = ["-x", "c", str(_FOLDER / "native.c"), "-x", "none"]
    flags = ["-O2", "-I", str(_FOLDER), "-I", str(tvm), f'-DMODEL_H="{header}"']
    # Several executables may live in one process: each takes its own symbols first.
    link = [f"-Wl,--wrap={_WRAPPED},-Bsymbolic,--as-needed", "-lm", "-ldl", "-lpthread"]
    return [*flags, *source, *link]


def _header(manifest: Manifest, needs_runtime: bool) -> str:
    lines = [*_ports("inputs_", manifest.inputs), *_ports("outputs_", manifest.outputs)]
    lines += [f"#define INPUTS {len(manifest.inputs)}", f"#define OUTPUTS {len(manifest.outputs)}"]
    if reason := _reason(manifest):
        return "\n".join([*lines, f"#define REASON {_text(reason)}", ""])
    (segment,) = manifest.segments
    inputs, outputs = [p.key for p in manifest.inputs], [p.key for p in manifest.outputs]
    used = [inputs.index(p.key) for p in segment.inputs]
    made = [outputs.index(p.key) for p in segment.outputs]
    workspace = max(segment.workspace_bytes, ALIGNMENT)
    arrays = (*segment.inputs, *segment.outputs)
    scratch = sum(_rounded(size) + ALIGNMENT for size in (0, workspace, *map(_bytes, arrays)))
    facts = {
        "ENTRY": f"__tvm_ffi_{segment.entry}",
        "LANES": manifest.lanes,
        "BF16": int(manifest.bf16),
        "RUNTIME": int(needs_runtime),
        "THREADS": manifest.threads,
        "USED_INPUTS": len(used),
        "WORKSPACE_BYTES": workspace,
        "SCRATCH_BYTES": scratch,
    }
    lines += [f"#define {name} {value}" for name, value in facts.items()]
    lines += [_array("int", "used_inputs", used), _array("int", "made_outputs", made), ""]
    return "\n".join(lines)


def _reason(manifest: Manifest) -> str:
    """Why an executable cannot run without Python, or nothing."""
    fallback = manifest.report.get("fallback", ())
    if manifest.metadata.get("target", "cpu") != "cpu":
        return "it is for GPUs; run it in Python with pwopt.load_executable"
    if any(not s.entry for s in manifest.segments):
        first = f": {fallback[0]['node']} ({fallback[0]['reason']})" if fallback else ""
        return (
            f"a part of the model runs in ONNX Runtime{first}; run it in Python with "
            "pwopt.load_executable"
        )
    if len(manifest.segments) != 1:
        return "not a single segment; run it in Python with pwopt.load_executable"
    return ""


def _ports(name: str, ports: Sequence[Port]) -> list[str]:
    lines, rows = [], []
    for i, port in enumerate(ports):
        shape = [d for d in port.shape or () if isinstance(d, int)]
        known = port.shape is not None and len(shape) == len(port.shape)
        lines.append(_array("int64_t", f"{name}shape{i}", shape))
        rank = len(shape) if known else -1
        size = _bytes(port) if known else 0
        rows.append(
            f"{{{_text(port.name)}, {_text(port.dtype or '')}, {rank}, {name}shape{i}, {size}}}"
        )
    table = ", ".join(rows or ["{0}"])
    return [*lines, f"static const pwopt_tensor {name}[] = {{{table}}};"]


def _bytes(port: Port) -> int:
    """Of an array; 0 of text, which has no fixed size."""
    dtype = np.dtype(NUMPY_DTYPES.get(port.dtype or "", object))
    return 0 if dtype.hasobject else math.prod(port.shape or ()) * dtype.itemsize


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _array(kind: str, name: str, values: Sequence[int]) -> str:
    return f"static const {kind} {name}[] = {{{', '.join(map(str, values or [0]))}}};"


def _text(value: str) -> str:
    """A C string: printable ASCII as it is, other bytes in octal."""
    plain = (chr(b) if 32 <= b < 127 and b not in b'"\\?' else f"\\{b:03o}" for b in value.encode())
    return f'"{"".join(plain)}"'
