"""Convolutions of well-known networks, as the CUDA kernels see them."""

from __future__ import annotations

from dataclasses import dataclass

from pwopt.ir.program import Program
from pwopt.targets.cuda.kernels.geometry import Geometry
from pwopt.targets.views import View
from pwopt.targets.windows import Window
from tests.targets.cuda.conv_cases import ADD_RELU, RELU


@dataclass(frozen=True)
class Layer:
    """A convolution with padding that keeps the size at stride 1; an even one pads less below."""

    size: int
    channels: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    groups: int = 1
    residual: bool = False
    batch: int = 1

    def geometry(self, dtype: str) -> Geometry:
        """Its operands in memory of their own; an image of 3 channels has dense pixels of 4."""
        chunk = 4 if dtype == "float32" else 8
        inputs, outputs = self.channels
        if inputs == 3 and chunk == 8:
            inputs, pixel = 4, 4
        else:
            pixel = -(-inputs // chunk) * chunk
        size = -(-self.size // self.stride)
        x = _image(self.batch, self.size, inputs, pixel, dtype)
        y = _image(self.batch, size, outputs, -(-outputs // chunk) * chunk, dtype)
        pads = (self.kernel[0] // 2, self.kernel[1] // 2)
        window = Window(self.kernel, (self.stride, self.stride), pads=pads)
        return Geometry(x, y, (y,) if self.residual else (), window, self.groups)

    @property
    def program(self) -> Program:
        return ADD_RELU if self.residual else RELU


def _image(batch: int, size: int, channels: int, pixel: int, dtype: str) -> View:
    strides = (size * size * pixel, size * pixel, pixel, 1)
    return View((batch, size, size, channels), strides, 0, dtype)


LAYERS = {
    "resnet_stem": Layer(224, (3, 64), (7, 7), 2),
    "resnet_256_64_56": Layer(56, (256, 64)),
    "resnet_64_256_56": Layer(56, (64, 256), residual=True),
    "resnet_3x3_64_56": Layer(56, (64, 64), (3, 3)),
    "resnet_3x3_128_s2": Layer(56, (128, 128), (3, 3), 2),
    "resnet_1024_256_14": Layer(14, (1024, 256)),
    "resnet_512_2048_7": Layer(7, (512, 2048), residual=True),
    "resnet_3x3_512_7": Layer(7, (512, 512), (3, 3)),
    "resnet_1024_2048_s2": Layer(14, (1024, 2048), stride=2),
    "resnet_b32_256_64_56": Layer(56, (256, 64), batch=32),
    "resnet_b32_3x3_256_14": Layer(14, (256, 256), (3, 3), batch=32),
    "resnet_b32_512_2048_7": Layer(7, (512, 2048), residual=True, batch=32),
    "mobilenet_stem": Layer(224, (3, 32), (3, 3), 2),
    "mobilenet_16_96_112": Layer(112, (16, 96)),
    "mobilenet_24_144_56": Layer(56, (24, 144)),
    "mobilenet_960_320_7": Layer(7, (960, 320)),
    "squeezenet_64_16_55": Layer(55, (64, 16)),
    "squeezenet_3x3_16_64_55": Layer(55, (16, 64), (3, 3)),
    "squeezenet_512_1000_13": Layer(13, (512, 1000)),
    "inception_5x5_16_32_28": Layer(28, (16, 32), (5, 5)),
    "inception_7x1_192_17": Layer(17, (192, 192), (7, 1)),
    "inception_480_16_14": Layer(14, (480, 16)),
    "densenet_3x3_128_32_56": Layer(56, (128, 32), (3, 3)),
    "densenet_992_128_7": Layer(7, (992, 128)),
    "shufflenet_116_116_14": Layer(14, (116, 116)),
    "resnext_3x3_128_56": Layer(56, (128, 128), (3, 3), groups=32),
}
