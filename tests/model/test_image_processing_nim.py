# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The image processor: pictures of every mode, arrays of every layout, and the errors for what cannot be an image."""

import io
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from conftest import random_picture, tiny_config
from PIL import Image
from transformers import AutoImageProcessor

from transformers_nim import NIMConfig, NIMImageProcessor, NIMImageProcessorPil
from transformers_nim.model import image_processing_nim
from transformers_nim.model.image_processing_nim import load_picture


# Means and deviations that no library has as a default.
MEAN, STD = [0.3, 0.4, 0.6], [0.2, 0.25, 0.3]
GREY_MEAN, GREY_STD = [0.35], [0.22]
LUMA = np.array([0.299, 0.587, 0.114])


def rgb_config(**overrides) -> NIMConfig:
    return tiny_config(image_mean=MEAN, image_std=STD, **overrides)


def grey_config(**overrides) -> NIMConfig:
    return tiny_config(num_channels=1, image_mean=GREY_MEAN, image_std=GREY_STD, **overrides)


@pytest.fixture(params=[NIMImageProcessor, NIMImageProcessorPil], ids=["torchvision", "pil"])
def backend(request) -> type:
    return request.param


@pytest.fixture
def rgb(backend):
    return backend.from_config(rgb_config())


@pytest.fixture
def grey(backend):
    return backend.from_config(grey_config())


def pixels(processor, images, **kwargs) -> np.ndarray:
    """What a model is given, back in units of 0..255: `(channels, height, width)` of a single image."""
    values = processor(images=images, return_tensors="pt", **kwargs).pixel_values
    assert values.dtype == torch.float32
    assert values.ndim == 4
    assert len(values) == 1
    mean, std = np.array(processor.image_mean)[:, None, None], np.array(processor.image_std)[:, None, None]
    return (values[0].double().numpy() * std + mean) * 255


def assert_color(result: np.ndarray, color, atol: float = 1e-3) -> None:
    """Every pixel is that color (in 0..255), or for a single channel its grey value."""
    color = np.array(color, dtype=float)
    expected = color if len(result) == 3 else np.array([LUMA @ color])
    assert result.shape == (len(expected), 32, 32)
    np.testing.assert_allclose(result, np.broadcast_to(expected[:, None, None], result.shape), rtol=0, atol=atol)


def palette_picture(color, transparency=None) -> Image.Image:
    picture = Image.new("P", (40, 40), 3)
    picture.putpalette([255, 0, 255] * 3 + list(color))
    if transparency is not None:
        picture.info["transparency"] = transparency
    return picture


def over_white(color, alpha: int) -> list[float]:
    return [value * alpha / 255 + 255 - alpha for value in color]


def color_keyed(mode: str, value) -> Image.Image:
    picture = Image.new(mode, (40, 40), value)
    picture.info["transparency"] = value
    return picture


def sixteen_bit(value: int, mode: str = "I;16") -> Image.Image:
    return Image.frombytes(mode, (40, 40), np.full(1600, value, dtype=">u2" if mode == "I;16B" else "<u2").tobytes())


COLOR = (10, 120, 240)
# Name: picture, the color it shows, and the tolerance (where integer arithmetic of 8 bits is involved).
UNIFORM = {
    "L": (lambda: Image.new("L", (40, 40), 77), (77, 77, 77), 1e-3),
    "RGB": (lambda: Image.new("RGB", (40, 40), COLOR), COLOR, 1e-3),
    "RGBA-opaque": (lambda: Image.new("RGBA", (40, 40), (*COLOR, 255)), COLOR, 1e-3),
    "RGBA-half": (lambda: Image.new("RGBA", (40, 40), (*COLOR, 128)), over_white(COLOR, 128), 1.01),
    "RGBA-clear": (lambda: Image.new("RGBA", (40, 40), (*COLOR, 0)), (255, 255, 255), 1e-3),
    "La-half": (lambda: Image.new("LA", (40, 40), (77, 128)).convert("La"), over_white([77] * 3, 128), 1.01),
    "RGBa-half": (lambda: Image.new("RGBA", (40, 40), (*COLOR, 128)).convert("RGBa"), over_white(COLOR, 128), 2.01),
    "LA-opaque": (lambda: Image.new("LA", (40, 40), (77, 255)), (77, 77, 77), 1e-3),
    "LA-half": (lambda: Image.new("LA", (40, 40), (77, 128)), over_white([77] * 3, 128), 1.01),
    "P": (lambda: palette_picture(COLOR), COLOR, 1e-3),
    "P-other-clear": (lambda: palette_picture(COLOR, transparency=1), COLOR, 1e-3),
    "P-clear": (lambda: palette_picture(COLOR, transparency=3), (255, 255, 255), 1e-3),
    "P-alphas": (lambda: palette_picture(COLOR, bytes([255, 255, 255, 64])), over_white(COLOR, 64), 1.01),
    "RGB-clear": (lambda: color_keyed("RGB", COLOR), (255, 255, 255), 1e-3),
    "L-clear": (lambda: color_keyed("L", 77), (255, 255, 255), 1e-3),
    "CMYK-black": (lambda: Image.new("CMYK", (40, 40), (0, 0, 0, 178)), (77, 77, 77), 1.01),
    "CMYK-cyan": (lambda: Image.new("CMYK", (40, 40), (255, 0, 0, 0)), (0, 255, 255), 1e-3),
    "YCbCr": (lambda: Image.new("YCbCr", (40, 40), (100, 128, 128)), (100, 100, 100), 1.01),
    "1-white": (lambda: Image.new("1", (40, 40), 1), (255, 255, 255), 1e-3),
    "1-black": (lambda: Image.new("1", (40, 40), 0), (0, 0, 0), 1e-3),
    "I;16-mid": (lambda: sixteen_bit(32768), (127.5, 127.5, 127.5), 0.51),
    "I;16-clear": (lambda: color_keyed("I;16", 257 * 20), (255, 255, 255), 1e-3),
    "I-black": (lambda: Image.new("I", (40, 40), 0), (0, 0, 0), 1e-3),
    "I;16-dark": (lambda: sixteen_bit(257 * 20), (20, 20, 20), 1e-3),
    "I;16-white": (lambda: sixteen_bit(65535), (255, 255, 255), 1e-3),
    "I;16B-dark": (lambda: sixteen_bit(257 * 20, "I;16B"), (20, 20, 20), 1e-3),
    "I-mid": (lambda: Image.new("I", (40, 40), 32768), (127.5, 127.5, 127.5), 0.51),
    "I-dark": (lambda: Image.new("I", (40, 40), 257 * 20), (20, 20, 20), 1e-3),
}


# Pictures of every mode.


@pytest.mark.parametrize("name", UNIFORM)
def test_a_uniform_picture_is_its_color_everywhere(rgb, name):
    make, color, atol = UNIFORM[name]
    assert_color(pixels(rgb, make()), color, atol)


@pytest.mark.parametrize("name", UNIFORM)
def test_a_uniform_picture_is_its_grey_value_for_one_channel(grey, name):
    make, color, atol = UNIFORM[name]
    # Greys are rounded to 8 bits.
    assert_color(pixels(grey, make()), color, max(atol, 0.51) if len(set(color)) > 1 else atol)


@pytest.mark.parametrize(("value", "normalized"), [(0, -0.35 / 0.22), (51, (0.2 - 0.35) / 0.22), (255, 0.65 / 0.22)])
def test_normalization(backend, value, normalized):
    result = backend.from_config(grey_config())(images=Image.new("L", (32, 32), value), return_tensors="pt")
    assert list(result) == ["pixel_values"]
    torch.testing.assert_close(result.pixel_values, torch.full((1, 1, 32, 32), normalized), rtol=0, atol=1e-5)


def test_transparency_is_resolved_per_pixel(rgb):
    array = np.zeros((32, 32, 4), dtype=np.uint8)
    array[..., 0], array[..., 3] = 200, np.arange(0, 256, 8, dtype=np.uint8)
    alpha = array[..., 3].astype(float)
    result = pixels(rgb, Image.fromarray(array))
    np.testing.assert_allclose(result[0], 200 * alpha / 255 + 255 - alpha, rtol=0, atol=1.01)
    np.testing.assert_allclose(result[1], 255 - alpha, rtol=0, atol=1.01)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_file(rgb, grey, tmp_path, suffix):
    # One grey value for each of the 1024 pixels, over the whole range.
    values = np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    with Image.open(tmp_path / f"deep.{suffix}") as picture:
        assert picture.mode.startswith("I")
        for processor in (rgb, grey):
            result = pixels(processor, picture)
            np.testing.assert_allclose(result, np.broadcast_to(values / 257, result.shape), rtol=0, atol=0.51)


def test_palette_files_with_transparency(rgb, tmp_path):
    palette_picture(COLOR).save(tmp_path / "clear.gif", transparency=3)
    palette_picture(COLOR).save(tmp_path / "clear.png", transparency=3)
    palette_picture(COLOR).save(tmp_path / "opaque.png")
    for name, color in [("clear.gif", (255, 255, 255)), ("clear.png", (255, 255, 255)), ("opaque.png", COLOR)]:
        with Image.open(tmp_path / name) as picture:
            assert_color(pixels(rgb, picture), color)


def test_floating_point_picture_is_refused(rgb, grey):
    for processor in (rgb, grey):
        with pytest.raises(ValueError, match="mode F"):
            processor(images=Image.new("F", (40, 40), 0.5))


@pytest.mark.parametrize("value", [-1, 65536, 2**31 - 1])
def test_integer_picture_of_more_than_sixteen_bits_is_refused(rgb, value):
    with pytest.raises(ValueError, match=f"16-bit.*{value}"):
        rgb(images=Image.new("I", (40, 40), value))


def test_integer_picture_of_8_or_16_bits_is_refused(rgb):
    # Pillow converts both to mode I without scaling.
    with pytest.raises(ValueError, match=r"mode I .*200.*8 or of 16 bits"):
        rgb(images=Image.new("L", (40, 40), 200).convert("I"))


def saved(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "WEBP"])
def test_broken_file_is_named(rgb, tmp_path, kind):
    path = tmp_path / f"broken.{kind}"
    content = saved(random_picture(1, (400, 300)), kind)
    for broken in (content[: len(content) // 2], content[:20], b"", b"a text"):
        path.write_bytes(broken)
        for source in (str(path), path):
            with pytest.raises(OSError, match=rf"broken\.{kind}") as error:
                rgb(images=source)
            assert "\n" not in str(error.value)
    path.write_bytes(content[: len(content) // 2])
    if kind != "WEBP":  # which is read when it is opened
        with Image.open(path) as opened, pytest.raises(OSError, match=rf"broken\.{kind}"):
            rgb(images=opened)


def test_folder_is_a_folder(rgb, tmp_path):
    for source in (str(tmp_path), tmp_path):
        with pytest.raises(IsADirectoryError, match=f"{tmp_path} is a folder"):
            rgb(images=source)


def png_of(width: int, height: int) -> bytes:
    """A PNG file of black grey pixels, without the memory that Pillow would need."""
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + t + c + struct.pack(">I", zlib.crc32(t + c)) for t, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def test_picture_of_too_many_pixels_is_refused_before_it_is_read(rgb, tmp_path):
    path = tmp_path / "big.png"
    path.write_bytes(png_of(8192, 6145))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"big\.png has 8,192 x 6,145 pixels, more than 50,331,648"):
        rgb(images=str(path))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    with Image.open(path) as picture, pytest.raises(ValueError, match="8,192 x 6,145 pixels"):
        rgb(images=picture)


def test_large_jpeg_is_read_at_a_part_of_its_size(rgb, tmp_path, monkeypatch):
    path = tmp_path / "big.jpg"
    picture = random_picture(3, (160, 120))
    for factor, size in [(1, (160, 120)), (2, (160, 120)), (3, (240, 180)), (8, (160, 120)), (16, (320, 240))]:
        picture.resize((160 * factor, 120 * factor)).save(path, quality=95)
        monkeypatch.setattr(image_processing_nim, "_ENOUGH_PIXELS", 160 * 120)
        opened = load_picture(str(path))
        assert opened.size == size
        result = pixels(rgb, str(path))
        monkeypatch.setattr(image_processing_nim, "_ENOUGH_PIXELS", 2**40)
        assert load_picture(str(path)).size == (160 * factor, 120 * factor)
        np.testing.assert_allclose(result, pixels(rgb, str(path)), rtol=0, atol=4)


# Row 0 and column 0 of the stored picture are these sides of the upright one.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(rgb, tmp_path, suffix, orientation):
    stored = np.full((32, 32, 3), 60, dtype=np.uint8)
    stored[:8, :16] = (240, 20, 20)  # top left, wider than high
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    Image.fromarray(stored).save(tmp_path / f"turned.{suffix}", exif=exif, **options)
    with Image.open(tmp_path / f"turned.{suffix}") as picture:
        result = pixels(rgb, picture)
    expected = np.moveaxis(UPRIGHT[orientation](stored), -1, 0)
    np.testing.assert_allclose(result, expected, rtol=0, atol=8 if suffix == "jpg" else 1e-3)


def test_exif_rotation_swaps_height_and_width(backend):
    stored = Image.new("RGB", (64, 32), (60, 60, 60))
    stored.paste((240, 20, 20), (0, 0, 32, 32))  # the left half, which is the top once it is upright
    stored.getexif()[0x0112] = 6
    result = pixels(backend.from_config(rgb_config(image_size=[64, 32])), stored)
    assert result.shape == (3, 64, 32)
    np.testing.assert_allclose(result[:, 16, 16], (240, 20, 20), rtol=0, atol=1e-3)
    np.testing.assert_allclose(result[:, 48, 16], (60, 60, 60), rtol=0, atol=1e-3)


# Pictures of every size.


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (31, 33), (33, 31), (500, 32), (32, 500)])
def test_any_size_gives_the_models_size(rgb, grey, size):
    assert_color(pixels(rgb, Image.new("RGB", size, COLOR)), COLOR)
    assert_color(pixels(grey, Image.new("L", size, 9)), (9, 9, 9))


def test_large_picture_is_cropped_at_its_center(rgb):
    picture = Image.new("RGB", (6000, 4000), (255, 0, 0))
    picture.paste((100, 100, 100), (1000, 0, 5000, 4000))  # just what the crop keeps
    result = pixels(rgb, picture)
    np.testing.assert_allclose(result[:, :, 2:-2], 100, rtol=0, atol=1.01)
    picture.paste((0, 0, 255), (1000, 0, 1500, 4000))  # 4 of the 32 columns
    blue = pixels(rgb, picture)
    np.testing.assert_allclose(blue[:, :, 1:3].transpose(1, 2, 0), [[[0, 0, 255]] * 2] * 32, rtol=0, atol=20)
    np.testing.assert_allclose(blue[:, :, 6:-2], 100, rtol=0, atol=1.01)


@pytest.mark.parametrize("size", [(2, 40000), (40000, 2)])
def test_elongated_picture_is_refused_if_it_would_become_gigantic(backend, size):
    processor = backend.from_config(tiny_config(image_size=224))
    for picture in (Image.new("RGB", size), np.zeros((3, *size[::-1]), dtype=np.uint8)):
        with pytest.raises(ValueError, match=f"{size[1]}x{size[0]}.*elongated"):
            processor(images=picture)


@pytest.mark.parametrize("size", [(2, 6000), (6000, 2)])
def test_elongated_picture_is_right_if_it_is_processed(rgb, size):
    assert_color(pixels(rgb, Image.new("RGB", size, COLOR)), COLOR)


def test_an_elongated_picture_is_fine_without_aspect_ratio(backend):
    processor = backend.from_config(rgb_config(image_size=[32, 64]))
    result = pixels(processor, Image.new("RGB", (1, 20000), COLOR))
    np.testing.assert_allclose(result, np.broadcast_to(np.array(COLOR)[:, None, None], (3, 32, 64)), atol=1e-3)


@pytest.mark.parametrize("shape", [(0, 32, 3), (32, 0, 3), (3, 0, 32), (3, 32, 0), (0, 0, 1), (1, 0, 5), (4, 0, 5)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_empty_array_is_refused(rgb, grey, shape, dtype):
    for processor in (rgb, grey):
        for image in (np.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=getattr(torch, dtype))):
            with pytest.raises(ValueError, match="empty"):
                processor(images=image)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16", "P"])
def test_empty_picture_is_refused(rgb, mode):
    with pytest.raises(ValueError, match="empty"):
        rgb(images=Image.new(mode, (0, 5)))


# Arrays.

RNG = np.random.default_rng(0)
ARRAYS = {channels: RNG.integers(0, 256, (32, 32, channels), dtype=np.uint8) for channels in (1, 3, 4)}


def shown(array: np.ndarray, num_channels: int, white: float = 255) -> np.ndarray:
    """The colors of an array of shape `(height, width, 1, 3 or 4 channels)`, in its own units, channels first."""
    array = array.astype(float)
    if array.shape[-1] == 4:
        alpha = array[..., 3:] / white
        array = array[..., :3] * alpha + white * (1 - alpha)
    if array.shape[-1] == 1:
        return np.moveaxis(np.repeat(array, num_channels, axis=-1), -1, 0)
    return np.moveaxis(array, -1, 0) if num_channels == 3 else (array @ LUMA)[None]


@pytest.mark.parametrize("channels", ARRAYS)
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_uint8_array(rgb, grey, channels, layout, library):
    array = ARRAYS[channels]
    image = np.ascontiguousarray(np.moveaxis(array, -1, 0)) if layout == "first" else array.copy()
    before = image.copy()
    for processor, num_channels in [(rgb, 3), (grey, 1)]:
        result = pixels(processor, image if library == "numpy" else torch.from_numpy(image))
        # Exact where nothing has to be mixed.
        is_exact = channels == num_channels or channels == 1
        atol = 1e-3 if is_exact else 0.51
        np.testing.assert_allclose(result, shown(array, num_channels), rtol=0, atol=atol)
    np.testing.assert_array_equal(image, before)


def test_array_and_picture_agree(rgb, grey):
    for mode in ("RGB", "L", "RGBA"):
        picture = random_picture(3, (32, 32), mode)
        array = np.array(picture).reshape(32, 32, -1)
        for processor in (rgb, grey):
            np.testing.assert_allclose(pixels(processor, array), pixels(processor, picture), rtol=0, atol=1.01)


def test_array_with_negative_strides(rgb):
    array = ARRAYS[3]
    for flipped in (array[..., ::-1], array[::-1]):
        np.testing.assert_allclose(pixels(rgb, flipped), np.moveaxis(flipped, -1, 0), rtol=0, atol=1e-3)


def test_ambiguous_layout_can_be_told(rgb):
    array = np.zeros((3, 3, 3), dtype=np.uint8)
    array[..., 0] = 250  # red, if channels come last
    assert_color(pixels(rgb, array, input_data_format="channels_last"), (250, 0, 0))


def test_unknown_number_of_channels_is_refused(rgb):
    with pytest.raises(ValueError, match="channel"):
        rgb(images=np.zeros((32, 32, 2), dtype=np.uint8))


def test_two_channels_with_means_for_two(backend):
    processor = backend(image_mean=[0.5, 0.5], image_std=[0.5, 0.5], size={"height": 32, "width": 32})
    with pytest.raises(ValueError, match="2 channels"):
        processor(images=Image.new("RGB", (40, 40)))


def test_batches(rgb):
    batch = np.stack([np.full((40, 50, 3), value, dtype=np.uint8) for value in (10, 100, 250)])
    mean, std = np.array(MEAN), np.array(STD)
    expected = (np.array([10, 100, 250])[:, None] / 255 - mean) / std
    colors = [Image.new("RGB", (30 + index, 60), (value,) * 3) for index, value in enumerate((10, 100, 250))]
    for images in (batch, torch.from_numpy(batch), list(batch), colors):
        values = rgb(images=images, return_tensors="pt").pixel_values
        assert values.shape == (3, 3, 32, 32)
        np.testing.assert_allclose(values.amin(dim=(2, 3)), expected, atol=1e-5)
        np.testing.assert_allclose(values.amax(dim=(2, 3)), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["uint16", "bool", "complex64"])
def test_other_types_are_refused(rgb, dtype):
    array = np.ones((32, 32, 3), dtype=dtype)
    for image in (array, torch.from_numpy(array)):
        with pytest.raises(ValueError, match=f"uint8.*{dtype}$"):
            rgb(images=image)


@pytest.mark.parametrize("dtype", ["S3", "O", "M8[s]"])
def test_arrays_of_no_numbers_are_refused(rgb, dtype):
    with pytest.raises(ValueError, match=r"uint8.*got "):
        rgb(images=np.zeros((32, 32, 3), dtype=dtype))


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint32", ">i4", ">u4"])
def test_integers_of_other_types_are_0_to_255(rgb, dtype):
    array = np.minimum(ARRAYS[3], 127).astype(dtype)
    images = [array] if dtype.startswith(">") else [array, torch.from_numpy(array)]
    for image in images:
        np.testing.assert_allclose(pixels(rgb, image), np.moveaxis(array, -1, 0), rtol=0, atol=1e-3)
    if dtype != "int8":
        array[3, 3, 1] = 256
        with pytest.raises(ValueError, match=r"0\.\.255.* to 256"):
            rgb(images=array)
    if "u" not in dtype:
        array[3, 3, 1] = -1
        with pytest.raises(ValueError, match=r"0\.\.255.* from -1"):
            rgb(images=array)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "longdouble", ">f8"])
@pytest.mark.parametrize("channels", ARRAYS)
def test_float_arrays_are_in_0_to_1(rgb, grey, dtype, channels):
    array = (ARRAYS[channels] / 255).astype(dtype)
    array.flags.writeable = False
    for processor, num_channels in [(rgb, 3), (grey, 1)]:
        for options in ({}, {"do_rescale": False}):
            atol = 0.2 if dtype == "float16" else 1e-2
            result = pixels(processor, array, **options)
            np.testing.assert_allclose(result, shown(ARRAYS[channels], num_channels), rtol=0, atol=atol)


@pytest.mark.parametrize("most", [1.01, 2, 16, 255, 65535, 1e300])
@pytest.mark.parametrize("do_rescale", [True, False])
def test_float_array_beyond_one_is_refused(rgb, most, do_rescale):
    # 0..2 has another white than 0..255, and digits of scikit-learn are 0..16.
    array = np.linspace(0, most, 32 * 32 * 3).reshape(32, 32, 3)
    for image in (array, torch.from_numpy(array)):
        with pytest.raises(ValueError, match=r"in \[0, 1\]|infinite"):
            rgb(images=image, do_rescale=do_rescale)


def test_rounding_is_clipped(rgb):
    array = np.zeros((32, 32, 3), dtype=np.float32)
    array[..., 1], array[..., 2] = -3e-8, 1.001
    assert_color(pixels(rgb, array), (0, 0, 255))


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
def test_two_dimensional_array_is_grey(rgb, grey, make):
    array = ARRAYS[1][..., 0]
    for processor, num_channels in [(rgb, 3), (grey, 1)]:
        expected = shown(ARRAYS[1], num_channels)
        np.testing.assert_allclose(pixels(processor, make(array)), expected, rtol=0, atol=1e-3)
        np.testing.assert_allclose(pixels(processor, make(array / 255)), expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("shape", [(3, 32, 3), (1, 8, 4), (4, 4, 4), (1, 1, 1)])
def test_layout_that_the_shape_does_not_tell_is_refused(rgb, shape):
    array = np.zeros(shape, dtype=np.uint8)
    with pytest.raises(ValueError, match=r"shape \(\d, \d+, \d\) can be its channels.*input_data_format"):
        rgb(images=array)
    for layout in ("channels_first", "channels_last"):
        assert_color(pixels(rgb, array[..., :3], input_data_format="channels_last"), (0, 0, 0))
        assert rgb(images=array, input_data_format=layout, return_tensors="pt").pixel_values.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("shape", [(), (32,), (32, 32, 2), (32, 32, 32), (2, 2, 32, 32, 3)])
def test_other_shapes_are_refused_in_a_short_sentence(rgb, shape):
    with pytest.raises(ValueError, match=r"shape \(height, width\)") as error:
        rgb(images=np.zeros(shape, dtype=np.uint8))
    assert len(str(error.value)) < 200


def test_masked_values_are_refused(rgb):
    array = np.ma.masked_greater(ARRAYS[3], 200)
    with pytest.raises(ValueError, match="masked"):
        rgb(images=array)


@pytest.mark.parametrize("nothing", [[], [[]], np.zeros((0, 32, 32, 3), dtype=np.uint8)])
def test_no_images(rgb, nothing):
    with pytest.raises(ValueError, match="no images"):
        rgb(images=nothing)


def test_black_float_array_is_black(rgb):
    assert_color(pixels(rgb, np.zeros((32, 32, 3), dtype=np.float32)), (0, 0, 0))
    assert_color(pixels(rgb, np.zeros((32, 32, 3), dtype=np.float32), do_rescale=False), (0, 0, 0))


def test_wholly_transparent_float_array_is_white(rgb):
    clear = np.zeros((32, 32, 4), dtype=np.float32)
    assert_color(pixels(rgb, clear, do_rescale=False), (255, 255, 255))
    assert_color(pixels(rgb, clear), (255, 255, 255))


def test_float_and_uint8_array_are_resampled_alike(rgb):
    # Hard edges, of which bicubic resampling makes values beyond the lightest and the darkest. All are upright,
    # because 8-bit values are also clamped between the two directions of resampling.
    array = np.zeros((12, 12, 3), dtype=np.uint8)
    array[:, 4:8] = 255
    expected = pixels(rgb, array)
    assert expected.min() > -1e-3
    assert expected.max() < 255 + 1e-3
    scaled = array.astype(np.float32) / 255
    for options in ({}, {"do_rescale": False}):
        np.testing.assert_allclose(pixels(rgb, scaled, **options), expected, rtol=0, atol=1.01)


def test_float_array_of_zeros_and_ones_is_averaged(rgb):
    array = np.zeros((64, 64, 3), dtype=np.float32)
    array[::2, ::2] = array[1::2, 1::2] = 1  # a chess board, of which half the size is grey
    result = pixels(rgb, array, do_rescale=False)
    np.testing.assert_allclose(result, 127.5, rtol=0, atol=4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("do_rescale", [True, False])
def test_nan_and_infinity_are_refused(rgb, bad, do_rescale):
    array = np.full((32, 32, 3), 0.5, dtype=np.float32)
    array[5, 5, 1] = bad
    for image in (array, torch.from_numpy(array)):
        with pytest.raises(ValueError, match="NaN"):
            rgb(images=image, do_rescale=do_rescale)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_path_gives_what_the_opened_picture_gives(rgb, grey, tmp_path, mode):
    if mode == "I;16":
        picture = Image.fromarray((np.arange(1024, dtype=np.uint16) * 64).reshape(32, 32))
    else:
        picture = random_picture(5, (40, 40), mode)
        if mode == "RGBA":
            picture.putalpha(Image.linear_gradient("L").resize((40, 40)))
    picture.save(tmp_path / "picture.png")
    for processor in (rgb, grey):
        result = pixels(processor, str(tmp_path / "picture.png"))
        np.testing.assert_allclose(result, pixels(processor, picture), rtol=0, atol=1.01)


# Settings.


def test_from_config_of_imagenet_size(backend):
    processor = backend.from_config(NIMConfig())
    assert dict(processor.size) == {"shortest_edge": 256}
    assert dict(processor.crop_size) == {"height": 224, "width": 224}
    assert processor.do_center_crop
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    assert list(processor.image_std) == [0.229, 0.224, 0.225]
    assert processor.resample == Image.Resampling.BICUBIC
    # The defaults of the class are the same.
    assert backend().to_dict() == processor.to_dict()


def test_from_config_of_small_images(backend):
    processor = backend.from_config(rgb_config())
    assert dict(processor.size) == {"shortest_edge": 32}
    assert dict(processor.crop_size) == {"height": 32, "width": 32}
    assert (list(processor.image_mean), list(processor.image_std)) == (MEAN, STD)
    # An image of the model's size is not resampled.
    np.testing.assert_allclose(pixels(processor, ARRAYS[3]), np.moveaxis(ARRAYS[3], -1, 0), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("size", "edge"), [(120, 120), (128, 146), (384, 439)])
def test_default_crop(backend, size, edge):
    assert dict(backend.from_config(tiny_config(image_size=size)).size) == {"shortest_edge": edge}


def test_from_config_of_non_square_images_keeps_the_whole_picture(backend):
    processor = backend.from_config(rgb_config(image_size=[32, 64]))
    picture = Image.new("RGB", (300, 300), COLOR)
    picture.paste((250, 0, 0), (0, 0, 150, 300))
    result = pixels(processor, picture)
    assert result.shape == (3, 32, 64)
    expected = np.where(np.arange(64) < 32, 250, COLOR[0])
    np.testing.assert_allclose(result[0, :, :30], 250, rtol=0, atol=1.01)
    np.testing.assert_allclose(result[0, :, 34:], expected[None, 34:].repeat(32, 0), rtol=0, atol=1.01)


def test_crop_pct(backend):
    array = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    processor = backend.from_config(rgb_config(), crop_pct=0.5)
    # 64 pixels are not resampled, and the middle 32 are kept.
    expected = np.moveaxis(array[16:48, 16:48], -1, 0)
    np.testing.assert_allclose(pixels(processor, array), expected, rtol=0, atol=1e-3)
    assert dict(backend.from_config(NIMConfig(), crop_pct=1.0).size) == {"shortest_edge": 224}


@pytest.mark.parametrize("crop_pct", [0, -0.5, 1.01, 87.5, float("nan")])
def test_bad_crop_pct(backend, crop_pct):
    with pytest.raises(ValueError, match=f"crop_pct.*{crop_pct}"):
        backend.from_config(rgb_config(), crop_pct=crop_pct)


def test_from_config_passes_attributes_on(backend):
    processor = backend.from_config(rgb_config(), resample=Image.Resampling.NEAREST, size={"shortest_edge": 48})
    assert processor.resample == Image.Resampling.NEAREST
    assert dict(processor.size) == {"shortest_edge": 48}
    assert list(processor.image_mean) == MEAN


@pytest.mark.parametrize("make_config", [rgb_config, grey_config, lambda: rgb_config(image_size=[32, 64])])
def test_save_and_load(backend, tmp_path, make_config):
    processor = backend.from_config(make_config(), crop_pct=0.8)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "NIMImageProcessor"
    picture = random_picture(7, (70, 50))
    for name, cls in [("torchvision", NIMImageProcessor), ("pil", NIMImageProcessorPil)]:
        loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=name)
        assert type(loaded) is cls
        assert loaded.to_dict() == processor.to_dict()
        assert type(cls.from_pretrained(tmp_path)) is cls
        if cls is backend:
            np.testing.assert_array_equal(pixels(loaded, picture), pixels(processor, picture))
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is NIMImageProcessor


# A natural picture.


@pytest.fixture(scope="module")
def china() -> Image.Image:
    return Image.fromarray(pytest.importorskip("sklearn.datasets").load_sample_image("china.jpg"))


@pytest.mark.parametrize("size", [224, 32, (32, 64)])
@pytest.mark.parametrize("num_channels", [3, 1])
def test_backends_agree_with_pillow_on_a_natural_picture(china, size, num_channels):
    config = (rgb_config if num_channels == 3 else grey_config)(image_size=size)
    source = china
    if num_channels == 1:
        source = Image.fromarray((np.array(china) @ LUMA).round().astype(np.uint8))
    if isinstance(size, int):
        edge = 256 if size == 224 else size
        resized = source.resize((int(edge * source.width / source.height), edge), Image.Resampling.BICUBIC)
        left, top = (resized.width - size) // 2, (edge - size) // 2
        expected = resized.crop((left, top, left + size, top + size))
    else:
        expected = source.resize(size[::-1], Image.Resampling.BICUBIC)
    expected = np.array(expected, dtype=float)
    expected = np.moveaxis(expected, -1, 0) if num_channels == 3 else expected[None]
    results = [pixels(cls.from_config(config), china) for cls in (NIMImageProcessor, NIMImageProcessorPil)]
    assert results[0].std() > 20
    for result in results:
        np.testing.assert_allclose(result, expected, rtol=0, atol=2)
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=2)


@pytest.mark.parametrize("text", ["5", '"x"', "[]", "null"])
def test_a_file_that_holds_no_fields_is_refused(text, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(OSError, match=r"image processor (of|for) .*"):
        NIMImageProcessor.from_pretrained(tmp_path)
