"""CUDA source to machine code without a GPU: NVRTC, nvcc, resource usage, cache, errors."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from pwopt.errors import CodegenError
from pwopt.targets.cuda import toolchain
from pwopt.targets.cuda.disassembly import disassemble, instructions
from pwopt.targets.cuda.toolchain import (
    Compiler,
    Nvcc,
    Nvrtc,
    Usage,
    compile_sources,
    find_compiler,
    find_tool,
    nvrtc_include_folders,
    read_usage,
    trim_cache,
)

# The head of what TVM emits, for both compilers, then tensor-core products and a tensor map.
HEAD = """
#ifdef __CUDACC_RTC__
  #include <cuda/std/cstdint>
  #include <cuda/std/type_traits>
  using cuda::std::uint32_t;
  namespace std { using cuda::std::is_same_v; using cuda::std::is_signed; }
#else
  #include <cstdint>
  #include <type_traits>
  #include <cuda.h>
#endif
#include <cuda_fp16.h>
#include <cuda_bf16.h>
static_assert(std::is_same_v<uint32_t, unsigned int> && std::is_signed<int>::value, "");
"""
PRODUCT = (
    HEAD
    + """
extern "C" __global__ void __launch_bounds__(32) product_kernel(
    uint32_t* __restrict__ a, float* __restrict__ c) {
  __shared__ float s[64];
  uint32_t* x = a + 6 * threadIdx.x;
  float y[4] = {0, 0, 0, 0};
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},"
    "{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
    : "+f"(y[0]), "+f"(y[1]), "+f"(y[2]), "+f"(y[3])
    : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(x[4]), "r"(x[5]));
  s[threadIdx.x] = y[0] + y[1]; s[threadIdx.x + 32] = y[2] + y[3];
  __syncthreads();
  c[threadIdx.x] = s[63 - threadIdx.x];
}
"""
)
MAP = (
    HEAD
    + """
extern "C" __global__ void map_kernel(const __grid_constant__ CUtensorMap m0, float* p0) {
  p0[0] = (float)((const unsigned char*)&m0)[threadIdx.x];
}
"""
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def compilers() -> list[Compiler]:
    """NVRTC, which the tests' extra brings, and nvcc where it is."""
    headers = nvrtc_include_folders()
    assert headers is not None
    nvcc = find_tool("nvcc")
    return [Nvrtc(headers), *([Nvcc(nvcc)] if nvcc and shutil.which("g++") else [])]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_90a"])
def test_sources_become_machine_code(arch: str) -> None:
    for compiler in compilers():
        product, map_ = compile_sources([PRODUCT, MAP], arch, compiler=compiler)
        usage = product.kernels["product_kernel"]
        assert 0 < usage.registers <= 64
        assert (usage.spill_bytes, usage.shared_bytes) == (0, 256)
        assert list(map_.kernels) == ["map_kernel"]
        sass = disassemble(product.image)
        assert instructions(sass["product_kernel"])["HMMA"] == 1
        assert instructions(sass["product_kernel"])["BAR"] >= 1
        assert not product.warnings


def test_nvrtc_is_preferred() -> None:
    assert find_compiler().identity.startswith("NVRTC")


def test_without_a_compiler_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    with pytest.raises(CodegenError, match=r"pip install 'pwopt\[cuda\]'") as caught:
        find_compiler()
    assert "\n" not in str(caught.value)


def test_nvcc_is_found_in_cuda_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho Build V12.9.1\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv("CUDA_HOME", "")
        monkeypatch.setenv("CUDA_PATH", "")
        monkeypatch.setenv(variable, str(tmp_path / "toolkit"))
        assert find_tool("nvcc") == nvcc
        assert find_compiler().identity == "nvcc 12.9.1"


def test_a_source_that_is_refused_names_the_first_error() -> None:
    for compiler in compilers():
        with pytest.raises(CodegenError, match=r"refuses a kernel for sm_80: .*undefined_thing"):
            compile_sources(
                ["__global__ void f() { undefined_thing(); }"], "sm_80", compiler=compiler
            )


def test_spills_are_read_from_the_log() -> None:
    log = """
ptxas info    : Compiling entry function 'a_kernel' for 'sm_80'
ptxas info    : Function properties for a_kernel
    48 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 1024 bytes smem, 384 bytes cmem[0]
ptxas info    : Compiling entry function 'b_kernel' for 'sm_80'
ptxas info    : Used 16 registers, 384 bytes cmem[0]
"""
    assert read_usage(log) == {"a_kernel": Usage(255, 32, 48, 1024), "b_kernel": Usage(16)}


class Counting:
    """A compiler that counts its calls."""

    identity = "counting 1"

    def __init__(self, inner: Compiler) -> None:
        self._inner = inner
        self.calls = 0

    def compile(self, source: str, arch: str) -> tuple[bytes, str]:
        self.calls += 1
        return self._inner.compile(source, arch)


def test_what_was_compiled_is_kept_by_source_architecture_and_compiler() -> None:
    compiler = Counting(find_compiler())
    (first,) = compile_sources([PRODUCT], "sm_80", compiler=compiler)
    (again,) = compile_sources([PRODUCT], "sm_80", compiler=compiler)
    assert first == again
    assert compiler.calls == 1
    compile_sources([PRODUCT], "sm_90", compiler=compiler)
    compile_sources([PRODUCT + "\n"], "sm_80", compiler=compiler)
    compiler.identity = "counting 2"
    compile_sources([PRODUCT], "sm_80", compiler=compiler)
    assert compiler.calls == 4


def test_a_damaged_file_of_the_cache_is_compiled_again() -> None:
    compiler = Counting(find_compiler())
    (first,) = compile_sources([PRODUCT], "sm_80", compiler=compiler)
    (file,) = toolchain.cache_folder().glob("*/*")
    whole = file.read_bytes()
    for damaged in (whole[:-1], b"", b"{}\n", whole[:200] + b"?" + whole[201:]):
        file.write_bytes(damaged)
        assert compile_sources([PRODUCT], "sm_80", compiler=compiler) == [first]
        assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (made,) = compile_sources([PRODUCT], "sm_80")
    assert made.image.startswith(b"\x7fELF")


def test_several_threads_fill_one_cache() -> None:
    compiler = Counting(find_compiler())
    made: list[object] = []
    workers = [
        threading.Thread(
            target=lambda: made.extend(compile_sources([PRODUCT, MAP], "sm_80", compiler=compiler))
        )
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert made[0:2] == made[2:4] == made[4:6]
    files = list(toolchain.cache_folder().glob("*/*"))
    assert len(files) == 2  # nothing half-written stays


def test_the_cache_loses_what_was_used_the_longest_ago() -> None:
    compile_sources([PRODUCT, MAP], "sm_80")
    files = sorted(toolchain.cache_folder().glob("*/*"), key=lambda f: f.stat().st_size)
    os.utime(files[1], (1, 1))
    trim_cache(files[0].stat().st_size)
    assert list(toolchain.cache_folder().glob("*/*")) == [files[0]]


def test_what_is_no_cubin_is_not_disassembled() -> None:
    with pytest.raises(CodegenError, match="cuobjdump cannot read the cubin"):
        disassemble(b"not a cubin")
