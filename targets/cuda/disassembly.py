"""Machine code as text, to see which instructions a kernel is made of."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from pwopt.errors import CodegenError
from pwopt.targets.cuda.toolchain import find_tool

_INSTRUCTION = re.compile(
    r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE
)


def disassemble(image: bytes) -> dict[str, str]:
    """The SASS of each kernel of a cubin, by name.

    Raises:
        CodegenError: cuobjdump or nvdisasm, which it calls, is missing, or the image is no cubin.
    """
    cuobjdump, nvdisasm = find_tool("cuobjdump"), find_tool("nvdisasm")
    if cuobjdump is None or nvdisasm is None:
        raise CodegenError(
            "disassembling needs cuobjdump and nvdisasm: "
            "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
        )
    path = os.pathsep.join((str(nvdisasm.parent), os.environ.get("PATH", os.defpath)))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(image)
        done = subprocess.run(
            [str(cuobjdump), "-sass", file.name],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PATH": path},
        )
    parts = re.split(r"^\s*Function : (\w+)\s*$", done.stdout, flags=re.MULTILINE)
    if done.returncode or len(parts) < 3:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise CodegenError(f"cuobjdump cannot read the cubin: {lines[0]}")
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def instructions(sass: str) -> Counter[str]:
    """How often each instruction stands in a kernel, without its modifiers, e.g. ``HMMA``."""
    return Counter(_INSTRUCTION.findall(sass))
