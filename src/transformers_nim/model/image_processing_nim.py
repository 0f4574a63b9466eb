# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Image processor of NIM, from any picture to normalized pixels in the model's size and channels."""

import base64
import binascii
import os
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    PILImageResampling,
    httpx,
    infer_channel_dimension_format,
)

from .configuration_nim import NIMConfig


# Weights of red, green and blue in a grey value (ITU-R BT.601), which are also Pillow's.
_LUMA = (0.299, 0.587, 0.114)


def load_picture(source: str | Image.Image, timeout: float | None = None) -> Image.Image:
    """Open a picture without changing its mode, unlike transformers' `load_image`, which clips 16-bit pictures.

    Args:
        source: A PIL image, path, http(s) URL, or base64 text with or without the prefix `data:image/...,`.
        timeout: Seconds to wait for a URL.

    Raises:
        ValueError: The text is none of these.
        TypeError: The source is neither text nor a PIL image.
    """
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, str):
        raise TypeError(f"an image must be a PIL image, array, path, URL or base64 text, got {type(source).__name__}")
    if source.startswith(("http://", "https://")):
        # Not huggingface_hub's session: it refuses every address in offline mode.
        response = httpx.get(source, timeout=timeout, follow_redirects=True)
        response.raise_for_status()
        try:
            return Image.open(BytesIO(response.content))
        except OSError as error:
            raise ValueError(f"not a picture: {source}") from error
    if os.path.isfile(source):
        return Image.open(source)
    text = source.split(",", 1)[1] if source.startswith("data:image/") and "," in source else source
    try:
        return Image.open(BytesIO(base64.b64decode("".join(text.split()), validate=True)))
    except (binascii.Error, OSError, ValueError) as error:
        shown = source if len(source) <= 80 else f"{source[:80]}..."
        raise ValueError(f"no such image file, and not a URL or a base64 image: {shown!r}") from error


def convert_image(image: Image.Image, num_channels: int) -> Image.Image:
    """Convert a picture of any Pillow mode to the 8-bit mode of a model.

    16-bit grey values are scaled to 8 bits (Pillow would clip them), transparent pixels are put on white, and the EXIF
    orientation is applied.

    Args:
        image: The picture.
        num_channels: 1 for a grey picture, 3 for RGB.

    Raises:
        ValueError: The mode has no agreed range of values, or Pillow has no mode with that many channels.
    """
    if num_channels not in (1, 3):
        raise ValueError(f"a PIL image cannot be given {num_channels} channels; pass an array of that many channels")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("a floating-point image (mode F) has no agreed range; convert it to 8 bits first")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ValueError(f"an integer image must have 16-bit values, got {values.min()} to {values.max()}")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB" if num_channels == 3 else "L")


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

    def fetch_images(self, images):
        # transformers' own loading drops transparency and clips 16 bits.
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        return load_picture(images) if isinstance(images, str) else images

    def process_image(self, image, do_convert_rgb: bool | None = None, **kwargs):
        # The backends' do_convert_rgb clips 16 bits, ignores transparency and cannot make grey images.
        mean, do_rescale = kwargs.get("image_mean", self.image_mean), kwargs.get("do_rescale", self.do_rescale)
        if isinstance(image, np.ndarray):
            image = np.ascontiguousarray(image)  # torch takes no negative strides
        num_channels = len(mean if isinstance(mean, Sequence) else self.image_mean)
        if isinstance(image, Image.Image):
            image = convert_image(image, num_channels)
        elif isinstance(image, (np.ndarray, torch.Tensor)):
            _check_values(torch.as_tensor(image), do_rescale=do_rescale)
            if image.ndim == 3 and kwargs.get("input_data_format") is None:
                # Early 5.x releases know no arrays of four channels.
                layout = infer_channel_dimension_format(image, num_channels=(1, 3, 4))  # type: ignore[arg-type]
                kwargs["input_data_format"] = layout
        processed = super().process_image(image, do_convert_rgb=False, **kwargs)  # type: ignore[misc]
        values = torch.as_tensor(processed)
        white = 255.0 if do_rescale or not values.is_floating_point() else 1.0
        matched = _match_channels(values, num_channels, white)
        _check_elongation(matched, kwargs.get("size"))
        return matched.numpy() if isinstance(processed, np.ndarray) else matched


def _check_values(image: torch.Tensor, do_rescale: bool) -> None:
    """Refuse arrays whose values are not pixels in the range that the image processor expects."""
    if image.is_floating_point():
        if not bool(torch.isfinite(image).all()):
            raise ValueError("the image has values that are NaN or infinite")
        if image.numel() and image.min() < 0:
            raise ValueError(
                f"the image has negative values (down to {image.min():g}); pass pixels, not normalized ones"
            )
        if do_rescale and image.numel() and 0 < image.max() <= 1:
            raise ValueError(
                "a floating-point image with values up to 1 would be divided by 255 once more; pass do_rescale=False,"
                " or values up to 255"
            )
    elif image.dtype != torch.uint8:
        raise ValueError(f"an image array must be uint8 (0..255) or floating-point, got {image.dtype}")


def _check_elongation(image: torch.Tensor, size: Any) -> None:
    """Refuse empty pictures, and those that would be huge after resizing their shorter edge."""
    height, width = image.shape[-2:]
    if not height or not width:
        raise ValueError(f"the image is empty: {height}x{width} pixels")
    limit = Image.MAX_IMAGE_PIXELS
    edge = getattr(size, "shortest_edge", None)
    if limit and edge and edge**2 * max(height, width) / min(height, width) > limit:
        raise ValueError(f"an image of {height}x{width} pixels is too elongated to be resized; crop it first")


class NIMImageProcessor(_NIMImageProcessorMixin, TorchvisionBackend):  # type: ignore[misc]
    """Image processor of NIM on torchvision: resize (bicubic), center crop, rescale to [0, 1], normalize.

    It takes PIL images of any mode and arrays of 1, 3 or 4 channels, and returns as many channels as it has means.
    [`~NIMImageProcessor.from_config`] makes the one that belongs to a model.
    """

    def resize(self, image, *args, **kwargs):
        resized = super().resize(image, *args, **kwargs)
        if not image.is_floating_point():
            return resized
        # Bicubic resampling overshoots at edges. torchvision clamps 8-bit images only.
        dims = (-3, -2, -1)
        return resized.clamp(image.amin(dims, keepdim=True), image.amax(dims, keepdim=True))


class NIMImageProcessorPil(_NIMImageProcessorMixin, PilBackend):  # type: ignore[misc]
    """[`NIMImageProcessor`] on Pillow and NumPy."""

    def resize(self, image, size, resample=None, **kwargs):  # type: ignore[override]
        if not np.issubdtype(image.dtype, np.floating):
            return super().resize(image, size, resample=resample, **kwargs)
        # transformers would round to 8 bits and refuse values above 1. Pillow resizes floats of a single channel.
        height, width = _target_size(image, size)
        channels = [Image.fromarray(c.astype(np.float32)).resize((width, height), resample) for c in image]
        return np.stack([np.asarray(c) for c in channels]).clip(float(image.min()), float(image.max()))


def _target_size(image: np.ndarray, size: Any) -> tuple[int, int]:
    if size.shortest_edge:
        return get_resize_output_image_size(
            image, size=size.shortest_edge, default_to_square=False, input_data_format="channels_first"
        )
    return size.height, size.width


def check_image_processor(image_processor: Any, config: NIMConfig) -> None:
    """Check that an image processor fits a model. Noise is added in pixel units, so their normalization must agree.

    Raises:
        ValueError: Size, scale or normalization differ; the message says which.
    """
    wrong = []
    for name in ("image_mean", "image_std"):
        theirs = getattr(image_processor, name, None)
        ours = getattr(config, name)
        if not isinstance(theirs, Sequence) or len(theirs) != len(ours) or not np.allclose(theirs, ours, atol=1e-6):
            wrong.append(f"{name} is {theirs}, the model's is {ours}")
    for name in ("do_rescale", "do_normalize"):
        if not getattr(image_processor, name, False):
            wrong.append(f"{name} is off")
    if not np.isclose(getattr(image_processor, "rescale_factor", None) or 0, 1 / 255):
        wrong.append(f"rescale_factor is {getattr(image_processor, 'rescale_factor', None)}, not 1/255")
    is_cropped = getattr(image_processor, "do_center_crop", False)
    size = dict(getattr(image_processor, "crop_size" if is_cropped else "size", None) or {})
    if (size.get("height"), size.get("width")) != config.image_shape:
        wrong.append(f"it makes images of size {size}, the model takes {config.image_shape}")
    if wrong:
        raise ValueError(
            f"the image processor does not fit the model: {'; '.join(wrong)}. Use"
            " NIMImageProcessor.from_config(model.config)"
        )


__all__ = ["NIMImageProcessor", "NIMImageProcessorPil"]
