# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Image processor of NIM, from any picture to normalized pixels in the model's size and channels."""

import asyncio
import base64
import binascii
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from numbers import Real
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    httpx,
)

from .configuration_nim import NIMConfig


# Pixels that a picture may have when it is decoded, those of a 50-megapixel camera. It may be changed here, as
# Pillow's own limit may (89 million, at which it only warns).
MAX_PIXELS = 8192 * 6144
# JPEGs of more than four times as many are decoded at a half, a quarter or an eighth of their size.
_ENOUGH_PIXELS = 2048 * 2048
# Bytes that a URL may send.
MAX_BYTES = 100 * 2**20
# Seconds that a URL may take, unless the caller says otherwise.
DEFAULT_TIMEOUT = 30.0

# Weights of red, green and blue in a grey value (ITU-R BT.601), which are also Pillow's.
_LUMA = (0.299, 0.587, 0.114)
# Half a step of 8 bits: how far rounding may carry a floating-point value out of [0, 1].
_ROUNDING = 0.5 / 255


async def _fetch(url: str) -> bytes:
    content = bytearray()
    async with (
        httpx.AsyncClient(follow_redirects=True, timeout=None) as client,
        client.stream("GET", url) as response,
    ):
        response.raise_for_status()
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > MAX_BYTES:
                raise OSError(f"it sends more than {MAX_BYTES:,} bytes")
    return bytes(content)


def download(url: str, timeout: float | None = None) -> bytes:
    """Return what an http(s) URL sends.

    Args:
        url: The address.
        timeout: Seconds for all of it; `DEFAULT_TIMEOUT` by default.

    Raises:
        OSError: There is no answer in time, it is an error, or it is longer than `MAX_BYTES`.
    """
    # Not huggingface_hub's session: it refuses every address in offline mode. httpx's own time limits start anew with
    # every byte. In a thread, because notebooks have a running loop already.
    timeout = DEFAULT_TIMEOUT if timeout is None else timeout
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}")
    try:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: asyncio.run(asyncio.wait_for(_fetch(url), timeout))).result()
    except TimeoutError as error:
        raise TimeoutError(f"timed out after {timeout:g} seconds: {url}; a longer timeout may help") from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, UnicodeError) as error:
        reason = f"{error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else error
        raise OSError(f"cannot read {url}: {reason}") from error


def open_picture(file: Any, name: str = "") -> Image.Image:
    """Open a picture of which the pixels are not read yet.

    A JPEG of more than 16 megapixels will be decoded at a half, a quarter or an eighth of its size, so that at least
    4 megapixels remain.

    Args:
        file: Path or binary file.
        name: What messages call it; the path by default.

    Raises:
        OSError: It is no picture.
    """
    name = name or str(file)
    try:
        picture = Image.open(file)
    except Exception as error:  # Pillow's readers raise almost anything when a file is broken
        if isinstance(error, OSError) and name in str(error):
            raise
        reason = "not a picture" if isinstance(error, UnidentifiedImageError) else _one_line(error)
        raise OSError(f"cannot read the picture {name}: {reason}") from error
    picture.filename = name
    scale = 2 ** int(math.log2(max(1, picture.width * picture.height / _ENOUGH_PIXELS)) / 2)
    if scale > 1:
        # Other formats do nothing.
        picture.draft(None, (max(1, picture.width // scale), max(1, picture.height // scale)))
    return picture


def load_picture(source: str | os.PathLike | Image.Image, timeout: float | None = None) -> Image.Image:
    """Open a picture without changing its mode, unlike transformers' `load_image`, which clips 16-bit pictures.

    Args:
        source: A PIL image, path, http(s) URL, or base64 text with or without the prefix `data:image/...,`.
        timeout: Seconds to wait for a URL; `DEFAULT_TIMEOUT` by default.

    Raises:
        ValueError: The text is none of these.
        OSError: The file or URL cannot be read, or is no picture.
        TypeError: The source is neither text nor a PIL image.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, str):
        raise TypeError(f"an image must be a PIL image, array, path, URL or base64 text, got {type(source).__name__}")
    if source.startswith(("http://", "https://")):
        return open_picture(BytesIO(download(source, timeout)), source)
    if os.path.isdir(source):
        raise IsADirectoryError(f"{source} is a folder, not a picture")
    if os.path.isfile(source):
        return open_picture(source)
    shown = source if len(source) <= 80 else f"{source[:80]}..."
    text = source.split(",", 1)[1] if source.startswith("data:image/") and "," in source else source
    try:
        return open_picture(BytesIO(base64.b64decode("".join(text.split()), validate=True)), repr(shown))
    except (binascii.Error, OSError, ValueError) as error:
        raise ValueError(f"no such image file, and not a URL or a base64 image: {shown!r}") from error


def convert_image(image: Image.Image, num_channels: int) -> Image.Image:
    """Convert a picture of any Pillow mode to the 8-bit mode of a model.

    16-bit grey values are scaled to 8 bits (Pillow would clip them), transparent pixels are put on white, and the EXIF
    orientation is applied.

    Args:
        image: The picture.
        num_channels: 1 for a grey picture, 3 for RGB.

    Raises:
        ValueError: The mode has no agreed range of values, the picture has more than `MAX_PIXELS`, or Pillow has no
            mode with that many channels.
        OSError: The file is broken; the message names it.
    """
    if num_channels not in (1, 3):
        raise ValueError(f"a PIL image cannot be given {num_channels} channels; pass an array of that many channels")
    name = f"the picture {getattr(image, 'filename', '')}".strip()
    if not image.width or not image.height:
        raise ValueError(f"{name} is empty: {image.height}x{image.width} pixels")
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"{name} has {image.width:,} x {image.height:,} pixels, more than {MAX_PIXELS:,}; resize it first"
        )
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's decoders raise almost anything when a file is broken
        raise OSError(f"cannot read {name}: {_one_line(error)}") from error
    if image.mode in ("F", "LAB"):
        raise ValueError(f"{name} is of mode {image.mode}, which has no agreed range; convert it to 8 bits first")
    if image.mode.startswith("I"):
        image = _from_sixteen_bits(image, name)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB" if num_channels == 3 else "L")
    # The picture is upright and opaque now. Its orientation would be read again, and may be damaged.
    image.info = {}
    return image


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def _from_sixteen_bits(image: Image.Image, name: str) -> Image.Image:
    values, clear = np.asarray(image).astype(np.int64), image.info.get("transparency")
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"{name} must have 16-bit values, got {values.min()} to {values.max()}")
    # Pillow makes mode I of 8-bit and of 16-bit pictures alike, without scaling.
    if image.mode == "I" and 0 < values.max() <= 255:
        raise ValueError(
            f"{name} is of mode I with values up to {values.max()}, and may be of 8 or of 16 bits; convert it to mode"
            " L or I;16 first"
        )
    if isinstance(clear, int):
        values[values == clear] = 65535
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def read_array(
    array: np.ndarray | torch.Tensor, num_channels: int = 3, layout: str | ChannelDimension | None = None
) -> torch.Tensor:
    """Read an array as one picture, by the rule for arrays that [`NIMImageProcessor`] states.

    Values that leave [0, 1] by less than half an 8-bit step are rounding, and are clipped. uint16 is refused because
    Pillow makes 16-bit pictures of it.

    Args:
        array: The picture.
        num_channels: Channels of the model. If it has neither 1 nor 3, pictures must have as many.
        layout: `"channels_first"` or `"channels_last"`, for shapes that do not tell.

    Returns:
        Pixels of shape `(channels, height, width)`: uint8, or float32 in [0, 1].

    Raises:
        ValueError: The array is refused.
    """
    shape, allowed = tuple(array.shape), (1, 3, 4) if num_channels in (1, 3) else (num_channels,)
    if 0 in shape:
        raise ValueError(f"the image is empty: an array of shape {shape}")
    if len(shape) == 2:
        array, layout = array[None], ChannelDimension.FIRST
    elif len(shape) != 3 or not (layout or shape[0] in allowed or shape[2] in allowed):
        raise ValueError(
            "an image array must have the shape (height, width), (height, width, channels) or (channels, height,"
            f" width), with {' or '.join(map(str, allowed))} channels, got {shape}"
        )
    elif layout is None:
        if shape[0] in allowed and shape[2] in allowed:
            raise ValueError(
                f"the first or the last number of an array's shape {shape} can be its channels; pass a PIL image, or"
                " input_data_format to the image processor"
            )
        layout = ChannelDimension.FIRST if shape[0] in allowed else ChannelDimension.LAST
    pixels = _to_tensor(array)
    return pixels if ChannelDimension(layout) == ChannelDimension.FIRST else pixels.permute(2, 0, 1)


def _to_tensor(array: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Convert pixels in their range to uint8, or to float32 in [0, 1]."""
    if np.ma.is_masked(array):
        raise ValueError("the image has masked values; fill them first")
    refused = ValueError(
        f"an image array must hold uint8 (0..255), other integers of that range except uint16, or floating-point"
        f" values in [0, 1], got {array.dtype}"
    )
    if isinstance(array, np.ndarray):
        # A copy in native order, because torch takes neither other byte orders nor negative strides nor read-only
        # memory.
        types = {"u": np.uint8 if array.dtype == np.uint8 else np.int64, "i": np.int64, "f": np.float32}
        if array.dtype.kind not in types or (array.dtype.kind, array.dtype.itemsize) == ("u", 2):
            raise refused
        with np.errstate(over="ignore"):
            array = torch.from_numpy(np.array(array, dtype=types[array.dtype.kind], order="C"))
    if array.layout != torch.strided or array.is_meta or array.is_quantized:
        raise ValueError("an image array must be dense, and hold values")
    if array.dtype == torch.uint8:
        return array
    if array.is_floating_point():
        array, low, high = array.to(torch.float32), -_ROUNDING, 1 + _ROUNDING
        if not bool(torch.isfinite(array).all()):
            raise ValueError("the image has values that are NaN or infinite")
    elif array.is_complex() or array.dtype in (torch.bool, torch.uint16):
        raise refused
    else:
        array, low, high = array.to(torch.int64), 0, 255
    least, most = array.min().item(), array.max().item()
    if least < low or most > high:
        kind, needed = ("floating-point", "in [0, 1]") if array.is_floating_point() else ("integer", "in 0..255")
        raise ValueError(
            f"an image array of {kind} values must be {needed}, got values from {least:g} to {most:g}; divide them by"
            " that of white, or pass uint8"
        )
    return array.clamp(0, 1) if array.is_floating_point() else array.to(torch.uint8)


def array_to_picture(array: np.ndarray | torch.Tensor, layout: str | ChannelDimension | None = None) -> Image.Image:
    """Convert an array that [`read_array`] takes to an 8-bit PIL image.

    Raises:
        ValueError: The array is refused.
    """
    pixels = read_array(array, layout=layout)
    if pixels.is_floating_point():
        pixels = pixels.mul(255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).cpu().numpy())


def _match_channels(image: torch.Tensor, num_channels: int, white: float) -> torch.Tensor:
    """Convert an array of shape `(1, 3 or 4 channels, height, width)` to the model's number of channels."""
    if image.shape[0] == num_channels:
        return image
    values = image.to(torch.float32)
    if values.shape[0] == 4:
        alpha = values[3:] / white
        values = values[:3] * alpha + white * (1 - alpha)
    if num_channels == 1 and values.shape[0] == 3:
        values = torch.tensordot(torch.tensor(_LUMA), values, dims=1)[None]
    elif num_channels == 3 and values.shape[0] == 1:
        values = values.expand(3, -1, -1)
    if values.shape[0] != num_channels:
        raise ValueError(f"cannot convert an image with {image.shape[0]} channels to the model's {num_channels}")
    return (values if image.is_floating_point() else values.round()).to(image.dtype)


def _flat(images: Any) -> Iterator[Any]:
    """Yield the pictures of nested lists and of batches."""
    if isinstance(images, (list, tuple)) or (isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4):
        for image in images:
            yield from _flat(image)
    else:
        yield images


class _NIMImageProcessorMixin:
    resample = PILImageResampling.BICUBIC
    image_mean: Any = IMAGENET_DEFAULT_MEAN
    image_std: Any = IMAGENET_DEFAULT_STD
    size: Any = {"shortest_edge": 256}
    crop_size: Any = {"height": 224, "width": 224}
    default_to_square = False
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Read `preprocessor_config.json`, as in transformers, and check that it holds fields.

        Raises:
            OSError: There is no such file, or it holds no JSON object.
        """
        try:
            content, unused = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)  # type: ignore
            if isinstance(content, dict):
                return content, unused
        except (TypeError, AttributeError):
            pass
        raise OSError(f"the image processor of {pretrained_model_name_or_path} is no JSON object of fields and values")

    @classmethod
    def from_config(cls, config: NIMConfig, crop_pct: float | None = None, **kwargs: Any):
        """Make the image processor of a model.

        For a model of square images, it resizes the shorter edge to the model's size divided by `crop_pct` and crops
        the center. For a model of other images, it resizes to the model's size.

        Args:
            config: Config with the size, channels and normalization of the images.
            crop_pct: Part of the resized shorter edge that the crop keeps, in (0, 1]. By default 0.875 for models of
                128 pixels and more, as is customary on ImageNet, and 1 for smaller ones.
            kwargs: Other attributes of the image processor.

        Raises:
            ValueError: `crop_pct` is out of range.
        """
        height, width = config.image_shape
        if crop_pct is None:
            crop_pct = 0.875 if min(height, width) >= 128 else 1.0
        if not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct must be greater than 0 and at most 1, got {crop_pct}")
        settings: dict[str, Any] = {"image_mean": list(config.image_mean), "image_std": list(config.image_std)}
        if height == width:
            settings["size"] = {"shortest_edge": round(height / crop_pct)}
            settings["crop_size"] = {"height": height, "width": width}
        else:
            settings["size"] = {"height": height, "width": width}
            settings["do_center_crop"] = False
        return cls(**{**settings, **kwargs})

    def _prepare_image_like_inputs(self, images, *args, expected_ndims: int = 3, **kwargs):
        # transformers' own loading drops transparency, clips 16 bits, and takes neither grey arrays nor paths.
        processed = [self.process_image(image, *args, **kwargs) for image in _flat(images)]
        if not processed:
            raise ValueError("there are no images")
        return processed

    def process_image(self, image, do_convert_rgb: bool | None = None, input_data_format=None, **kwargs):
        # The backends' do_convert_rgb clips 16 bits, ignores transparency and cannot make grey images.
        mean, do_rescale = kwargs.get("image_mean", self.image_mean), kwargs.get("do_rescale", self.do_rescale)
        num_channels = len(mean if isinstance(mean, Sequence) else self.image_mean)
        if isinstance(image, (np.ndarray, torch.Tensor)):
            image = read_array(image, num_channels, input_data_format)
            if do_rescale and image.is_floating_point():
                image = image * 255
            if isinstance(self, PilBackend):
                image = image.detach().cpu()
        else:
            # As a tensor, because early 5.x releases misread the layout of a PIL image.
            pixels = np.array(convert_image(load_picture(image), num_channels))
            image = torch.from_numpy(pixels.reshape(*pixels.shape[:2], num_channels)).permute(2, 0, 1).contiguous()
        processed = super().process_image(  # type: ignore[misc]
            image, do_convert_rgb=False, input_data_format=ChannelDimension.FIRST, **kwargs
        )
        values = torch.as_tensor(processed)
        white = 255.0 if do_rescale or not values.is_floating_point() else 1.0
        matched = _match_channels(values, num_channels, white)
        _check_elongation(matched, kwargs.get("size"))
        return matched.numpy() if isinstance(processed, np.ndarray) else matched


def _check_elongation(image: torch.Tensor, size: Any) -> None:
    """Refuse pictures that would be huge after resizing their shorter edge."""
    height, width = image.shape[-2:]
    edge = getattr(size, "shortest_edge", None)
    if edge and edge**2 * max(height, width) / min(height, width) > MAX_PIXELS:
        raise ValueError(f"an image of {height}x{width} pixels is too elongated to be resized; crop it first")


class NIMImageProcessor(_NIMImageProcessorMixin, TorchvisionBackend):  # type: ignore[misc]
    """Image processor of NIM on torchvision: resize (bicubic), center crop, rescale to [0, 1], normalize.

    It takes PIL images of any mode, paths, http(s) URLs, base64 texts and arrays, and lists of these, and returns as
    many channels as it has means. [`~NIMImageProcessor.from_config`] makes the one that belongs to a model.

    The rule for arrays of NumPy and torch, which also holds in pipelines and data sets:

    - Range: integers are 0..255, of any type but uint16 and bool; floating-point values are in [0, 1].
    - Layout: `(height, width)`, `(height, width, channels)` or `(channels, height, width)`, with 1 channel (grey),
      3 (RGB) or 4 (RGB and opacity). An array of four dimensions is a batch of such pictures.
    - A ValueError refuses everything else: other values, types and shapes, NaN, masked values, empty arrays, and
      shapes whose first and last number can both be channels, unless `input_data_format` tells.

    With `do_rescale=False`, values are taken as they are and not divided by 255; floating-point ones are in [0, 1] all
    the same. Pictures of more than 50 megapixels are refused. JPEGs of more than 16 megapixels are decoded at a half,
    a quarter or an eighth of their size, so that at least 4 megapixels remain.
    """

    def resize(self, image, *args, **kwargs):
        resized = super().resize(image, *args, **kwargs)
        if not image.is_floating_point():
            return resized
        # Bicubic resampling overshoots at edges. torchvision clamps 8-bit images only. The unit is 1 or 255.
        white = torch.where(image.amax((-3, -2, -1), keepdim=True) > 1, 255.0, 1.0)
        return resized.clamp(torch.zeros_like(white), white)


class NIMImageProcessorPil(_NIMImageProcessorMixin, PilBackend):
    """[`NIMImageProcessor`] on Pillow and NumPy."""

    def resize(self, image, size, resample=None, **kwargs):  # type: ignore[override]
        if not np.issubdtype(image.dtype, np.floating):
            return super().resize(image, size, resample=resample, **kwargs)
        # transformers would round to 8 bits and refuse values above 1. Pillow resizes floats of a single channel.
        height, width = _target_size(image, size)
        channels = [Image.fromarray(c.astype(np.float32)).resize((width, height), resample) for c in image]
        return np.stack([np.asarray(c) for c in channels]).clip(0, 255 if image.max() > 1 else 1)


def _target_size(image: np.ndarray, size: Any) -> tuple[int, int]:
    if size.shortest_edge:
        return get_resize_output_image_size(
            image, size=size.shortest_edge, default_to_square=False, input_data_format="channels_first"
        )
    return size.height, size.width


def reads_arrays(image_processor: Any) -> bool:
    """Tell whether an image processor follows the rule of [`read_array`]; transformers' own have others."""
    # By name, because transformers loads the modules of a checkpoint that carries its code more than once.
    return any(base.__name__ == _NIMImageProcessorMixin.__name__ for base in type(image_processor).__mro__)


def check_image_processor(image_processor: Any, config: NIMConfig) -> None:
    """Check that an image processor fits a model. Noise is added in pixel units, so their normalization must agree.

    Raises:
        ValueError: Size, scale, normalization or resampling differ; the message says which.
    """
    wrong = []
    for name in ("image_mean", "image_std"):
        theirs, ours = getattr(image_processor, name, None), getattr(config, name)
        if not _are_close(theirs, ours, 1e-6):
            wrong.append(f"{name} is {theirs}, the model's is {ours}")
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if not getattr(image_processor, name, False):
            wrong.append(f"{name} is off")
    factor = getattr(image_processor, "rescale_factor", None)
    if not _are_close([factor], [1 / 255], 1e-7):
        wrong.append(f"rescale_factor is {factor}, not 1/255")
    resample = getattr(image_processor, "resample", None)
    # Of Pillow or, by name, of torchvision. No model of pictures is trained with the nearest pixel.
    allowed = [known for known in PILImageResampling if known != PILImageResampling.NEAREST]
    if not (resample is None or resample in allowed or getattr(resample, "name", None) in [r.name for r in allowed]):
        wrong.append(
            f"resample is {resample!r}, none of {', '.join(f'{known:d} ({known.name})' for known in allowed)}"
        )
    is_cropped = getattr(image_processor, "do_center_crop", False)
    size, crop = (_size_of(image_processor, name) for name in ("size", "crop_size"))
    made = crop if is_cropped else size
    if (made.get("height"), made.get("width")) != config.image_shape:
        wrong.append(f"it makes images of size {made}, the model takes {config.image_shape}")
    elif is_cropped:
        edges = [size.get("shortest_edge") or size.get(name) or 0 for name in ("height", "width")]
        if any(not isinstance(edge, int) or edge < needed for edge, needed in zip(edges, config.image_shape)):
            wrong.append(f"it crops {crop} from pictures resized to {size}")
    if not wrong and config.num_channels in (1, 3):
        wrong = _try_colors(image_processor, config)
    if wrong:
        raise ValueError(
            f"the image processor does not fit the model: {'; '.join(wrong)}. Use"
            " NIMImageProcessor.from_config(model.config)"
        )


def _size_of(image_processor: Any, name: str) -> dict[str, Any]:
    size = getattr(image_processor, name, None)
    try:
        return dict(size or {})
    except (TypeError, ValueError):
        return {name: size}


def _are_close(theirs: Any, ours: Sequence[float], tolerance: float) -> bool:
    return (
        isinstance(theirs, Sequence)
        and len(theirs) == len(ours)
        and all(isinstance(value, Real) for value in theirs)
        and np.allclose(theirs, ours, rtol=0, atol=tolerance)
    )


def _try_colors(image_processor: Any, config: NIMConfig) -> list[str]:
    """Say what is wrong with the image of a picture of one color: settings that this package does not know count."""
    color = (51, 102, 204)[: config.num_channels]
    height, width = config.image_shape
    picture = Image.new("RGB" if len(color) == 3 else "L", (width + 3, height + 1), color if len(color) == 3 else 51)
    try:
        image = np.asarray(image_processor(images=picture, return_tensors="pt")["pixel_values"], dtype=np.float64)
    except Exception as error:  # of any library
        return [f"it cannot process a picture ({type(error).__name__}: {_one_line(error)})"]
    expected = (np.array(color) / 255 - config.image_mean) / config.image_std
    shape = (1, len(color), height, width)
    if image.shape != shape:
        return [f"it makes images of shape {image.shape}, the model takes {shape}"]
    if not np.allclose(image, expected[:, None, None], atol=0.02 / min(config.image_std)):
        return ["it changes colors, or pads"]
    return []


__all__ = ["NIMImageProcessor", "NIMImageProcessorPil"]
