"""Machine code of the convolutions of well-known networks, and the tiles that they get."""

from __future__ import annotations

import math

import pytest

from pwopt.targets.cuda.arch import ARCHS, usual_gpu
from pwopt.targets.cuda.codegen import source
from pwopt.targets.cuda.disassembly import disassemble, instructions
from pwopt.targets.cuda.kernels.conv import conv
from pwopt.targets.cuda.kernels.tiling import (
    Tile,
    candidates,
    choose_tile,
    counters,
    grid,
    steps,
    workspace_bytes,
)
from pwopt.targets.cuda.toolchain import compile_sources
from tests.targets.cuda.layers import LAYERS, Layer

OTHERS = (  # beside float16, of which every layer is compiled
    ("bfloat16", True, ("resnet_3x3_64_56", "resnet_b32_512_2048_7")),
    ("float32", True, ("resnet_stem", "resnet_256_64_56", "resnet_b32_3x3_256_14")),
    ("float32", False, ("resnet_stem", "resnet_256_64_56", "resnet_b32_3x3_256_14")),
)


def _layers() -> list[tuple[str, str, bool]]:
    """Layer, element type, whether on tensor cores."""
    layers = [(name, "float16", True) for name in LAYERS]
    return layers + [(name, dtype, cores) for dtype, cores, names in OTHERS for name in names]


@pytest.mark.parametrize("name", ["sm_80", "sm_90"])
def test_tensor_cores_without_spills(name: str) -> None:
    arch = ARCHS[name]
    tiles, kernels = {}, {}
    for layer, dtype, tensor_cores in _layers():
        key = f"{layer}_{dtype}_{'mma' if tensor_cores else 'ffma'}"
        geometry = LAYERS[layer].geometry(dtype)
        tiles[key] = choose_tile(geometry, arch, tensor_cores=tensor_cores)
        kernels[key] = conv(geometry, LAYERS[layer].program, tiles[key])
    [cubin] = compile_sources([source(kernels, name)], name)
    assert not cubin.warnings
    text = disassemble(cubin.image)
    for key, kernel in kernels.items():
        usage, counts = cubin.kernels[key], instructions(text[key])
        assert usage.spill_bytes == usage.stack_bytes == 0, key
        shared = usage.shared_bytes + kernel.shared_bytes
        assert arch.blocks(kernel.threads, usage.registers, shared) >= 1, key
        assert counts["LDGSTS"] > 0, key
        if tiles[key].tensor_cores:
            assert counts["HMMA"] > 0, key
            assert counts["LDSM"] > 0, key
        else:
            assert counts["HMMA"] == 0, key
            assert counts["FFMA"] >= 64, key


@pytest.mark.parametrize("layer", LAYERS)
def test_every_candidate_is_consistent(layer: str) -> None:
    for name, arch in ARCHS.items():
        geometry = LAYERS[layer].geometry("float16")
        tiles = list(candidates(geometry, arch))
        assert tiles, name
        for tile in tiles:
            assert tile.shared_bytes <= arch.shared_per_block
            assert tile.threads <= 256
            # Every part of a split reduction has work.
            each = math.ceil(steps(geometry, tile) / tile.split)
            assert each * (tile.split - 1) < steps(geometry, tile)
            assert (workspace_bytes(geometry, tile) > 0) == (tile.split > 1)
            assert counters(geometry, tile) == (
                math.prod(grid(geometry, tile)) // tile.split if tile.split > 1 else 0
            )


def test_the_smallest_convolution_has_a_tile_everywhere() -> None:
    geometry = Layer(1, (8, 1)).geometry("float16")
    for arch in ARCHS.values():
        assert choose_tile(geometry, arch).bm <= 32
    assert not choose_tile(
        Layer(1, (4, 1)).geometry("float32"), arch, tensor_cores=False
    ).tensor_cores


@pytest.mark.parametrize("layer", ["resnet_1024_256_14", "resnet_3x3_512_7"])
def test_few_pixels_still_fill_the_gpu(layer: str) -> None:
    arch = ARCHS["sm_80"]
    geometry = LAYERS[layer].geometry("float16")
    blocks = math.prod(grid(geometry, choose_tile(geometry, arch)))
    assert blocks >= 0.7 * usual_gpu(arch).multiprocessors


def test_a_large_batch_of_large_maps_has_a_grid() -> None:
    """32 maps of 512 x 512 and few channels: more tiles than an axis but the first may have."""
    geometry = Layer(512, (8, 8), batch=32).geometry("float16")
    for name, arch in ARCHS.items():
        for tile in candidates(geometry, arch):
            x, y, z = grid(geometry, tile)
            assert x > 65535 or tile.bm > 128, name
            assert x < 2**31, name
            assert max(y, z) <= 65535, name
        choose_tile(geometry, arch)


def test_large_batches_get_large_tiles() -> None:
    geometry = LAYERS["resnet_b32_3x3_256_14"].geometry("float16")
    tile = choose_tile(geometry, ARCHS["sm_80"])
    assert tile.bm * tile.bn >= 128 * 128
    assert tile.split == 1
    wide = LAYERS["resnet_b32_3x3_256_14"].geometry("float32")
    assert choose_tile(wide, ARCHS["sm_80"], tensor_cores=False).accumulators == 64


def test_an_image_wastes_less_than_its_padding_to_16_bytes() -> None:
    """147 products per output: 224 of the 392 that pixels of 16 bytes would take."""
    geometry = LAYERS["resnet_stem"].geometry("float16")
    assert geometry.chunks * geometry.chunk == 7 * 8 * 4
    assert steps(geometry, Tile(64, 64, 2, 2, 64)) * 32 == 224
