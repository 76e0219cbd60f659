"""A compiler for the emulated driver: kernels of the right parameters that do nothing."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

_KERNEL = re.compile(r'extern "C" __global__ [^(]*\([^)]*\) (\w+)\(([^)]*)\) \{')
_BODY = """
#include <stddef.h>
const size_t {name}_sizes[] = {{{sizes}, 0}};
void {name}(void** parameters, const unsigned* grid, unsigned threads, unsigned shared) {{}}
"""


class EmptyKernels:
    """See :class:`pwopt.targets.cuda.toolchain.Compiler`."""

    identity = "kernels that do nothing"

    def compile(self, source: str, arch: str) -> tuple[bytes, str]:
        text = log = ""
        for name, parameters in _KERNEL.findall(source):
            sizes = ("128" if "CUtensorMap" in p else "8" for p in parameters.split(","))
            text += _BODY.format(name=name, sizes=", ".join(sizes))
            log += f"Compiling entry function '{name}'\nUsed 32 registers\n"
        assert text, source
        with tempfile.TemporaryDirectory() as folder:
            code, library = Path(folder) / "kernels.c", Path(folder) / "kernels.so"
            code.write_text(text)
            command = ["gcc", "-shared", "-fPIC", "-nostdlib", "-o", str(library), str(code)]
            subprocess.run(command, check=True)
            return library.read_bytes(), log
