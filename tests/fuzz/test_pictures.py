# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Random pictures, arrays, configs and image processors: answered as the rule says, or refused in a sentence."""

import base64
import copy
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_picture, tiny_config, tiny_model
from PIL import Image, ImageOps
from sentences import CASES, SEED, attempt
from transformers import AutoConfig, AutoImageProcessor

from transformers_nim import (
    NIMConfig,
    NIMForRobustImageClassification,
    NIMImageClassificationPipeline,
    NIMImageProcessor,
    NIMImageProcessorPil,
)
from transformers_nim.data.loading import decode_picture


pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def pipe() -> NIMImageClassificationPipeline:
    model = tiny_model()
    return NIMImageClassificationPipeline(model, image_processor=NIMImageProcessor.from_config(model.config))


def seen(pipe: NIMImageClassificationPipeline, source: Any) -> torch.Tensor:
    """What the model is given, in units of 0..255."""
    values = pipe.preprocess(source)["pixel_values"]
    assert values.shape == (1, 3, 32, 32)
    config = pipe.config
    mean, std = (torch.tensor(value)[:, None, None] for value in (config.image_mean, config.image_std))
    return (values[0] * std + mean) * 255


def assert_answered(case: str, pipe, answer: Any, expected: Image.Image | None, steps: float = 2) -> None:
    """Refused if `expected` is None, else answered as that picture is."""
    if expected is None:
        assert isinstance(answer, Exception), f"{case} has an answer, and should have none"
        return
    assert not isinstance(answer, Exception), f"{case} is refused, and should have an answer: {answer!r}"
    if isinstance(answer, Image.Image):
        difference = np.abs(np.asarray(answer, dtype=float) - np.asarray(expected, dtype=float)).max()
    else:
        difference = (answer - seen(pipe, expected)).abs().max().item()
    assert difference <= steps, f"{case} differs by {difference}"


# Pictures.

MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "I;16",
    "F",
]
FORMATS = ["BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP"]


def picture_of(rng: np.random.Generator) -> Image.Image:
    width, height = rng.choice([1, 2, 3, 8, 31, 32, 33, 64, 90], 2).tolist()
    mode = str(rng.choice(MODES))
    rgb = random_picture(int(rng.integers(2**31)), (width, height))
    if mode in ("I", "I;16"):
        values = rng.integers(0, rng.choice([2, 200, 5000, 65536]), (height, width))
        return Image.fromarray(values.astype(np.int32 if mode == "I" else np.uint16))
    if mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        rgb.putalpha(random_picture(int(rng.integers(2**31)), (width, height), "L"))
        if mode in ("LA", "La", "PA"):
            rgb = rgb.convert("LA").convert(mode) if mode != "LA" else rgb.convert("LA")
        return rgb if rgb.mode == mode else rgb.convert(mode)
    if mode == "LAB":
        return Image.frombytes("LAB", rgb.size, rgb.tobytes())
    picture = rgb.convert(mode)
    if mode in ("P", "L") and rng.random() < 0.3:
        picture.info["transparency"] = int(rng.integers(256))
    if rng.random() < 0.3:
        picture.getexif()[0x0112] = int(rng.integers(0, 10))
    return picture


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    kind = rng.integers(5)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    for _ in range(int(rng.choice([1, 4, 64]))):
        data[rng.integers(len(data) if kind < 3 else min(64, len(data)))] = rng.integers(256)
    if kind == 4:
        place = int(rng.integers(len(data)))
        data[place : place + int(rng.integers(40))] = rng.bytes(int(rng.integers(40)))
    return bytes(data)


def on_white(picture: Image.Image) -> Image.Image | None:
    """The picture in RGB by Pillow alone, or None if its values have no agreed range."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.float64)
        if values.min() < 0 or values.max() > 65535 or (picture.mode == "I" and 0 < values.max() <= 255):
            return None
        if picture.info.get("transparency") is not None:
            values[values == picture.info["transparency"]] = 65535
        return Image.fromarray(np.round(values / 257).astype(np.uint8)).convert("RGB")
    if picture.mode in ("F", "LAB"):
        return None
    if picture.mode == "La":
        picture = picture.convert("LA")
    rgba = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white.convert("RGB")


def expected_of(file: Any) -> Image.Image | None:
    try:
        return on_white(Image.open(file))
    except Exception:
        return None


def is_large(content: bytes) -> bool:
    """Whether damage has made a picture of it that is refused for its size alone, or takes long."""
    try:
        return max(Image.open(io.BytesIO(content)).size) > 2000
    except Exception:
        return False


def test_pictures(pipe, tmp_path):
    rng = np.random.default_rng(SEED)
    counts = {"answered": 0, "refused": 0}
    for number in range(int(5000 * CASES)):
        picture = picture_of(rng)
        kind, content = str(rng.choice(["none", *FORMATS])), None
        case = f"picture {number}: {picture.mode} {picture.size} {kind}"
        if kind != "none":
            file = io.BytesIO()
            try:
                picture.save(file, kind, **({"exif": picture.getexif()} if kind in ("JPEG", "PNG", "WEBP") else {}))
            except Exception:
                continue  # the format has no such mode
            content = file.getvalue()
            if rng.random() < 0.6:
                content, case = damaged(content, rng), f"{case}, damaged"
            if is_large(content):
                attempt(case, lambda content=content: decode_picture(content, 3))
                continue
        if content is None:
            expected, sources = on_white(picture), {"PIL": lambda picture=picture: seen(pipe, picture)}
            sources["row"] = lambda picture=picture: decode_picture(picture, 3)
        else:
            expected, path = expected_of(io.BytesIO(content)), tmp_path / f"{number}.{kind}"
            path.write_bytes(content)
            text = base64.b64encode(content).decode()
            sources = {
                "path": lambda path=path: seen(pipe, str(path)),
                "row": lambda content=content: decode_picture({"bytes": content, "path": "a"}, 3),
                "base64": lambda text=text: seen(pipe, f"data:image/png;base64,{text}"),
            }
        for name, ask in sources.items():
            answer = attempt(f"{case}, {name}", ask)
            # Some of Pillow's readers go before the beginning of broken files, which only those in memory forgive.
            wanted = expected_of(path) if name == "path" else expected
            assert_answered(f"{case}, {name}", pipe, answer, wanted)
            if name == "path" and isinstance(answer, Exception):
                assert str(path) in str(answer), f"{case}: {answer!r}"
        counts["refused" if expected is None else "answered"] += 1
    assert min(counts.values()) > 50 * CASES, counts


# Arrays.

SHAPES = [(0,), (5,), (32, 32), (1, 1), (28, 3), (0, 5), (2, 3, 8, 8), (1, 1, 8, 8, 3)]
NUMPY_TYPES = [
    "u1",
    "i1",
    "<u2",
    ">u2",
    "<i2",
    ">i4",
    "<i8",
    "<u8",
    ">u4",
    "f2",
    "<f4",
    ">f8",
    "longdouble",
    "?",
    "c8",
    "O",
]
TORCH_TYPES = [
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.bool,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn,
]  # fmt: skip
RANGES = [
    "0 to 1",
    "0 to 255",
    "0 to 2",
    "0 to 16",
    "0 to 65535",
    "-1 to 1",
    "-5 to 100",
    "black",
    "rounded",
    "nan",
    "inf",
]


def shape_of(rng: np.random.Generator) -> tuple[int, ...]:
    if rng.random() < 0.3:
        return SHAPES[rng.integers(len(SHAPES))]
    shape = [int(rng.choice([1, 2, 3, 4, 5, 30, 32, 40])) for _ in range(3)]
    if rng.random() < 0.7:
        shape[0 if rng.random() < 0.5 else 2] = int(rng.choice([1, 3, 4]))
    return tuple(shape)


def values_of(shape: tuple[int, ...], kind: str, rng: np.random.Generator) -> np.ndarray:
    low, high = (float(end) for end in kind.split(" to ")) if " to " in kind else (0.0, 1.0)
    values = np.asarray(rng.uniform(low, high, shape))
    if values.size and " to " in kind:
        values.flat[0], values.flat[-1] = low, high
    if kind == "black":
        values[...] = 0
    if kind == "rounded":
        values = values * 1.001 - 0.0005
    if values.size and kind in ("nan", "inf"):
        values.flat[rng.integers(values.size)] = float(kind)
    return values


def array_of(rng: np.random.Generator) -> tuple[str, Any]:
    shape, kind = shape_of(rng), str(rng.choice(RANGES))
    values = values_of(shape, kind, rng)
    library = "numpy" if rng.random() < 0.6 else "torch"
    types = NUMPY_TYPES if library == "numpy" else TORCH_TYPES
    dtype = types[rng.integers(len(types))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if library == "numpy":
            array: Any = values.astype(dtype)
            for change, chance in ((lambda a: a[::-1], 0.2), (np.asfortranarray, 0.2)):
                array = change(array) if array.ndim and rng.random() < chance else array
            array = np.asarray(array)
            array.flags.writeable = rng.random() < 0.5
            if rng.random() < 0.05 and array.size and dtype != "O":
                array = np.ma.masked_array(array, mask=np.ones(array.shape, bool))
        else:
            array = torch.from_numpy(values).to(dtype)
            form = rng.random()
            if form < 0.05:
                array = array.to_sparse() if dtype == torch.float32 else array
            elif form < 0.1:
                array = array.to("meta")
            elif form < 0.2 and dtype == torch.float32:
                array = array.requires_grad_()
    return f"{library} {dtype} {shape} {kind}", array


def rule(array: Any) -> Image.Image | None:
    """The picture that an array is by the rule of NIMImageProcessor, or None if it is refused."""
    if np.ma.is_masked(array):
        return None
    if isinstance(array, torch.Tensor):
        if array.layout != torch.strided or array.device.type == "meta" or array.dtype in (torch.uint16, torch.bool):
            return None
        if array.is_complex():
            return None
        is_float, values = array.is_floating_point(), array.detach().to(torch.float64).numpy()
    else:
        if array.dtype.kind not in "uif" or array.dtype == np.uint16 or array.dtype == np.dtype(">u2"):
            return None
        is_float, values = array.dtype.kind == "f", array.astype(np.float64)
    if values.size == 0 or values.ndim not in (2, 3):
        return None
    if values.ndim == 3:
        first, last = values.shape[0] in (1, 3, 4), values.shape[2] in (1, 3, 4)
        if first == last:
            return None
        values = np.moveaxis(values, 0, -1) if first else values
    if not np.isfinite(values).all():
        return None
    if is_float:
        if values.min() < -0.5 / 255 or values.max() > 1 + 0.5 / 255:
            return None
        values = values.clip(0, 1) * 255
    elif values.min() < 0 or values.max() > 255:
        return None
    pixels = np.round(values).astype(np.uint8)
    return on_white(Image.fromarray(pixels if pixels.ndim == 2 or pixels.shape[2] > 1 else pixels[..., 0]))


def test_arrays(pipe):
    rng = np.random.default_rng(SEED + 1)
    processors = [cls.from_config(pipe.config) for cls in (NIMImageProcessor, NIMImageProcessorPil)]
    std, mean = (torch.tensor(value)[:, None, None] for value in (pipe.config.image_std, pipe.config.image_mean))
    answered = 0
    for number in range(int(6000 * CASES)):
        name, array = array_of(rng)
        case, expected = f"array {number}: {name}", rule(array)
        is_batch = array.ndim == 4
        for way, ask in {
            "pipeline": lambda array=array: seen(pipe, array),
            "data set": lambda array=array: decode_picture(array, 3),
            **{
                type(p).__name__: lambda array=array, p=p: (
                    (p(images=array, return_tensors="pt")["pixel_values"][0].detach() * std + mean) * 255
                )
                for p in processors
                if not is_batch
            },
        }.items():
            answer = attempt(f"{case}, {way}", ask)
            if isinstance(answer, torch.Tensor):
                answer = answer.detach()
            # 8-bit pixels are clipped between the two directions of resizing, which noise of few pixels shows.
            assert_answered(f"{case}, {way}", pipe, answer, expected, steps=40 if " to 255" not in name else 3)
        answered += expected is not None
    assert answered > 100 * CASES


# Configs.

CONFIG_VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 8, 10**9, 2**63, 10**30, 0.5, 1.5, -0.5, 1e-30, 1e30, float("nan"),
    float("inf"), "", "x", "5",
    "gelu", "relu", [], [1], [8, 8], [32, 32], [0, 0], [-8, 8], [10**9, 8], [1.5, 2], ["a"], [None, None], [[1]], {},
    {"a": 1}, {"0": "a", "1": "b"},
    {"5": "a"}, {"type": "constant", "value": 3}, {"type": "gamma"}, {"type": None}, [0.5, 0.5, 0.5], [1e-40] * 3,
    [1e40] * 3, ["a", "b", "c"],
]  # fmt: skip


def size_of(config: NIMConfig) -> int:
    """Roughly the numbers that a model and its answer hold."""
    pixels = config.num_channels * config.image_shape[0] * config.image_shape[1] * config.num_samples
    patches = config.patch_grid[0] * config.patch_grid[1]
    number = pixels + config.num_labels * config.hidden_size
    for p in ("", "decoder_"):
        width, hidden = getattr(config, f"{p}hidden_size"), getattr(config, f"{p}intermediate_size")
        number += getattr(config, f"{p}num_hidden_layers") * (width * (4 * width + 2 * hidden) + patches**2)
    return number + config.num_channels * config.patch_shape[0] * config.patch_shape[1] * config.hidden_size


def test_configs(tmp_path):
    rng = np.random.default_rng(SEED + 2)
    base = tiny_config().to_dict()
    names = sorted(
        {*base, "id2label", "label2id", "dtype", "problem_type", "return_dict", "num_labels"} - {"model_type"}
    )
    made = 0
    for number in range(int(2000 * CASES)):
        fields = {
            str(name): copy.deepcopy(CONFIG_VALUES[rng.integers(len(CONFIG_VALUES))])
            for name in rng.choice(names, int(rng.choice([1, 1, 1, 2])), replace=False)
        }
        case, content = f"config {number}: {fields}", base | fields
        if "num_labels" in fields:
            content.pop("id2label"), content.pop("label2id")
        for way, ask in {
            "class": lambda content=content: NIMConfig(**copy.deepcopy(content)),
            "file": lambda content=content: load_config(tmp_path, content),
        }.items():
            config = attempt(f"{case}, {way}", ask)
        if isinstance(config, Exception) or size_of(config) > 10**6:
            continue
        made += 1
        answer = attempt(case, lambda config=config: answer_of(config))
        if not isinstance(answer, Exception):
            assert torch.isfinite(answer).all(), case
            assert answer.shape == (2, config.num_labels), case
    assert made > 100 * CASES


def load_config(folder: Path, content: dict[str, Any]) -> NIMConfig:
    (folder / "config.json").write_text(json.dumps(content))
    return AutoConfig.from_pretrained(folder)


def answer_of(config: NIMConfig) -> torch.Tensor:
    torch.manual_seed(0)
    model = NIMForRobustImageClassification(config).eval()
    pixels = torch.rand(2, config.num_channels, *config.image_shape)
    with torch.no_grad():
        outputs = model(pixels)
    return outputs[0] if isinstance(outputs, tuple) else outputs.logits


# Image processors.

PROCESSOR_VALUES = [
    None, True, False, 0, 1, 2, 3, 4, 5, 9, -1, 32, 33, 10**6, 0.5, 1 / 255, 1e30, float("nan"), "", "x", "bicubic",
    [], [0.5], [0.5, 0.5, 0.5],
    ["a", "b", "c"], "abc", {}, {"height": 32, "width": 32}, {"height": 31, "width": 31}, {"shortest_edge": 1},
    {"shortest_edge": 40},
    {"shortest_edge": 32, "longest_edge": 33}, {"longest_edge": 32}, {"height": -1, "width": 32},
    {"height": "a", "width": "b"}, [32, 32],
    "NIMImageProcessor", "NIMImageProcessorPil", "ViTImageProcessor", "AutoImageProcessor", "BertTokenizer",
    {"max_height": 32, "max_width": 32},
]  # fmt: skip
# These may differ from those of from_config, within limits.
FREE = {"size", "resample", "image_processor_type", "default_to_square", "do_center_crop", "crop_size"}


def test_image_processors(pipe, tmp_path):
    rng = np.random.default_rng(SEED + 3)
    right = pipe.image_processor
    names = [*right.to_dict(), "do_pad", "pad_size", "do_convert_rgb", "default_to_square", "input_data_format"]
    names += ["do_reduce_labels", "data_format", "device", "do_flip_channel_order"]
    picture, plain = random_picture(4, (50, 41)), Image.new("RGB", (70, 33), (10, 120, 240))
    accepted = 0
    for number in range(int(1500 * CASES)):
        fields = {
            str(name): PROCESSOR_VALUES[rng.integers(len(PROCESSOR_VALUES))]
            for name in rng.choice(names, int(rng.choice([1, 1, 2])), replace=False)
        }
        case = f"image processor {number}: {fields}"
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(right.to_dict() | fields))
        try:
            processor = AutoImageProcessor.from_pretrained(tmp_path)
        except Exception:
            continue  # transformers' own
        other = attempt(case, lambda p=processor: NIMImageClassificationPipeline(pipe.model, image_processor=p))
        if isinstance(other, Exception):
            assert isinstance(other, ValueError), f"{case}: {other!r}"
            continue
        accepted += 1
        for source in [plain] if fields.keys() & FREE else [plain, picture]:
            answer = attempt(case, lambda other=other, source=source: seen(other, source))
            assert_answered(case, pipe, answer, source)
    assert accepted > 50 * CASES
