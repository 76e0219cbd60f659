"""From the CUDA C++ text that kernels are emitted as to C++ for the CPU.

Everything but PTX is C++ already: the header of the emulator gives meaning to the rest. Each
``asm`` function of the text becomes a call of the emulator; one that it does not know fails when it
is called, not when it is translated.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A kernel of a translated text.

    Attributes:
        name: its symbol.
        parameters: names, in order.
        static_bytes: shared memory that it declares with a size.
        cluster: blocks that run together.
    """

    name: str
    parameters: tuple[str, ...]
    static_bytes: int
    cluster: int


Names = list[str]
# What an instruction becomes, by the parameters of the function around it and its match. The first
# one that matches counts. Instructions that only order memory accesses become nothing.
_INSTRUCTIONS: list[tuple[str, Callable[[Names, re.Match[str]], str]]] = [
    (
        r"cp\.async\.c[ag]\.shared\.global\S* \[%0\], \[%1\], (\d+)",
        lambda p, m: f"emu::cp_async({p[0]}, {p[1]}, {m[1]}, {p[2] if len(p) > 2 else m[1]});",
    ),
    (r"cp\.async\.commit_group", lambda p, m: "emu::commit_group();"),
    (r"cp\.async\.wait_group (\d+)", lambda p, m: f"emu::wait_group({m[1]});"),
    (r"cp\.async\.wait_all", lambda p, m: "emu::wait_all();"),
    (r"ldmatrix\.\S*\.x([124])(\.trans)?", lambda p, m: _ldmatrix(p, int(m[1]), bool(m[2]))),
    (
        r"mma\.sync\.aligned\.m16n8k(?:8|16)\.row\.col\.f32\.(f16|bf16|tf32)\.\1\.f32",
        lambda p, m: (
            f"emu::mma<emu::{m[1].upper()}>({{{{{_addresses(p[:4])}}}, {{{', '.join(p[4:8])}}}, "
            f"{{{', '.join(p[8:10])}}}, {{{', '.join(p[10:14])}}}}});"
        ),
    ),
    (
        r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k\d+\.f32\.(f16|bf16|tf32)\.",
        lambda p, m: _wgmma(p, int(m[1]), m[2]),
    ),
    (r"wgmma\.commit_group", lambda p, m: "emu::wgmma_commit();"),
    (r"wgmma\.wait_group\S* (\d+)", lambda p, m: f"emu::wgmma_wait({m[1]});"),
    (r"mbarrier\.init", lambda p, m: f"emu::mbarrier_init({p[0]}, {p[1]});"),
    (r"mbarrier\.arrive\.expect_tx", lambda p, m: f"emu::mbarrier_arrive({p[-2]}, {p[-1]});"),
    (r"mbarrier\.expect_tx", lambda p, m: f"emu::mbarrier_expect({p[-2]}, {p[-1]});"),
    (
        r"mapa\.shared::cluster\.u32 .*mbarrier\.arrive\.release\.cluster",
        lambda p, m: f"emu::mbarrier_arrive(emu::mapa({p[0]}, {p[1]}));",
    ),
    (r"barrier\.cluster\.arrive", lambda p, m: "emu::cluster_barrier();"),
    (r"mbarrier\.arrive", lambda p, m: f"emu::mbarrier_arrive({p[0]});"),
    (
        r"cp\.async\.bulk\.tensor\.\dd\.shared\S*multicast::cluster",
        lambda p, m: (
            f"emu::tma_multicast({p[0]}, (const void*){p[1]}, {{{', '.join(p[2:-2])}}}, "
            f"{p[-2]}, {p[-1]});"
        ),
    ),
    (
        r"cp\.async\.bulk\.tensor\.\dd\.shared\S*mbarrier::complete_tx::bytes",
        lambda p, m: (
            f"emu::tma_load({p[0]}, (const void*){p[1]}, {{{', '.join(p[2:-1])}}}, {p[-1]});"
        ),
    ),
    (
        r"(max|min)\.NaN\.f32",
        lambda p, m: (
            f"return {p[0]} != {p[0]} ? {p[0]} : {p[1]} != {p[1]} ? {p[1]} : "
            f"{m[1]}({p[0]}, {p[1]});"
        ),
    ),
    (r"cvt\.rna\.tf32\.f32", lambda p, m: f"emu::round_tf32((uint*){p[0]});"),
    (r"bar(?:rier)?\.sync", lambda p, m: f"emu::named_barrier({p[0]}, {p[1]});"),
    (r"fence|setmaxnreg|prefetch|griddepcontrol|^$", lambda p, m: ""),
]


def translate(text: str) -> tuple[str, list[Entry]]:
    """C++ that runs the kernels of a CUDA text, after ``emulator.h``, and what they are.

    Each kernel becomes an exported function ``NAME(arguments, grid, block, shared, timing)`` that
    returns what went wrong, if anything.
    """
    text = text[_end_of_preamble(text) :]
    text = re.sub(r"\(\s*__cvta_generic_to_shared", "(emu::shared_address", text)
    text = re.sub(r"\b__cvta_generic_to_shared", "emu::shared_address", text)
    text = _FUNCTION.sub(_function, text)
    text = re.sub(r'extern "C" __global__ [^;{]*;\n', "", text)  # declarations
    entries: list[Entry] = []
    pieces = re.split(r'(?=extern "C" __global__)', text)
    result = ['#include "emulator.h"\n', pieces[0]]
    for piece in pieces[1:]:
        body, entry = _kernel(piece)
        entries.append(entry)
        result += [body, _entry_point(piece, entry)]
    return "".join(result), entries


def _end_of_preamble(text: str) -> int:
    """Where TVM's own definitions end."""
    found = re.search(r"#define ushort unsigned short\s*#endif\n", text)
    return found.end() if found else 0


_FUNCTION = re.compile(
    r"^((?:__forceinline__ |__device__ |static |inline |__noinline__ )+)([\w ]+?[ *&]+)(\w+)"
    r"\(([^)]*)\) \{\n(.*?)^\}",
    re.MULTILINE | re.DOTALL,
)


def _function(found: re.Match[str]) -> str:
    """A ``__device__`` function with the emulator's call in place of its instruction."""
    _, result, name, parameters, body = found.groups()
    if "asm" not in body:
        return found[0]
    declared = [p.strip() for p in parameters.split(",")] if parameters.strip() else []
    names = [re.split(r"[\s&*]+", p)[-1] for p in declared]
    head = f"static inline {result}{name}({parameters}) {{ "
    if "mbarrier.try_wait" in body:  # a loop until the phase is over
        address = f"emu::shared_address({names[0]})" if "void" in declared[0] else names[0]
        return f"{head}emu::mbarrier_wait({address}, {names[1]}); }}"
    if "elect.sync" in body:
        return f"{head}return emu::current->linear % 32 == 0; }}"
    literals = re.findall(r'"((?:[^"\\]|\\.)*)"', body.split("asm", 1)[1].split(":", 1)[0])
    quoted = re.search(r'asm volatile\(\s*((?:"(?:[^"\\]|\\.)*"\s*)+)', body)
    if quoted:
        literals = re.findall(r'"((?:[^"\\]|\\.)*)"', quoted[1])
    instruction = re.sub(r"\s+", " ", "".join(literals)).strip()
    for pattern, statement in _INSTRUCTIONS:
        if known := re.search(pattern, instruction):
            return f"{head}{statement(names, known)} }}"
    return f'{head}emu::fail("no emulation of {instruction[:60]}"); }}'


def _addresses(names: Names) -> str:
    return ", ".join(f"&{n}" for n in names)


def _ldmatrix(names: Names, count: int, transposed: bool) -> str:
    registers = [f"&{n}" for n in names[:count]] + ["nullptr"] * (4 - count)
    flag = "true" if transposed else "false"
    return f"emu::ldmatrix({', '.join(registers)}, {names[count]}, {count}, {flag});"


def _wgmma(names: Names, columns: int, dtype: str) -> str:
    registers, (a, b, add) = names[: columns // 2], names[columns // 2 : columns // 2 + 3]
    operands = f"{{{{{_addresses(registers)}}}, {a}, {b}, (bool){add}}}"
    return f"emu::wgmma<emu::{dtype.upper()}>({operands}, {columns});"


_HEAD = (
    r'extern "C" __global__ void (?:__cluster_dims__\((\d+).*?\) )?(?:__launch_bounds__\(.*?\) )?'
    r"(\w+)\((.*?)\) \{"
)
_SIZES = {"uint64_t": 8, "uchar": 1, "half": 2, "nv_bfloat16": 2, "uint4": 16, "uint2": 8}


def _kernel(piece: str) -> tuple[str, Entry]:
    """A kernel with its shared memory bound to the emulator's."""
    head = re.match(_HEAD, piece)
    assert head, piece[:200]
    static = 0

    def place(found: re.Match[str]) -> str:
        nonlocal static
        align, kind, name, count = found.groups()
        unit = int(align or 16)
        static = -(-static // unit) * unit
        at = static
        static += _SIZES.get(kind, 4) * int(count)
        return f"auto& {name} = emu::static_shared<{kind}[{count}]>({at});"

    piece = re.sub(
        r"extern __shared__(?: __align__\(\d+\))? (\w+) (\w+)\[\];",
        r"\1* \2 = (\1*)(emu::memory + emu::dynamic_at);",
        piece,
    )
    declared = r"__shared__ (?:alignas\((\d+)\) |__align__\(\d+\) )?(\w+) (\w+)\[(\d+)\];"
    piece = re.sub(declared, place, piece)
    parameters = tuple(p.strip().split(" ")[-1].lstrip("*") for p in head[3].split(","))
    entry = Entry(head[2], parameters, static, int(head[1] or 1))
    return piece.replace('extern "C" __global__ void', "static void", 1), entry


def _entry_point(piece: str, entry: Entry) -> str:
    head = re.match(_HEAD, piece)
    assert head
    values = []
    for i, parameter in enumerate(head[3].split(",")):
        kind = re.sub(r"\b(const|__grid_constant__|__restrict__)\b", "", parameter)
        kind = kind.strip().rsplit(" ", 1)[0].strip()
        values.append(f"({kind})emu_a[{i}]" if kind.endswith("*") else f"*({kind}*)emu_a[{i}]")
    call = f"{entry.name}({', '.join(values)})"
    return (
        f'\nextern "C" const char* {entry.name}_run(void** emu_a, const int* grid, '
        f"const int* block, size_t shared, int timing) {{\n"
        f"  return emu::launch([](void** emu_a) {{ {call}; }}, emu_a, grid, block, "
        f"{entry.static_bytes}, shared, {entry.cluster}, timing);\n}}\n"
    )
