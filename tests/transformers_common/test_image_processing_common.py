# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""transformers' own tests of image processors (ImageProcessingTestMixin) on both backends of NIMImageProcessor."""

import io
import types
import unittest
from unittest import mock

import numpy as np
from PIL import Image

from transformers_nim import NIMConfig, NIMImageProcessor, NIMImageProcessorPil

from .mixins import import_mixin


image_processing = import_mixin("test_image_processing_common")


def _photograph() -> Image.Image:
    """Smooth, with edges and some grain, as a picture taken by a camera is."""
    rows, columns = np.mgrid[0:480, 0:640] / 480
    waves = np.stack([np.sin(9 * rows + phase) * np.cos(7 * columns - phase) for phase in range(3)], axis=-1)
    pixels = 128 + 70 * waves + 40 * (columns > rows)[..., None]
    pixels += np.random.default_rng(0).normal(0, 4, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


class NIMImageProcessingTester:
    """Settings and inputs, with the attributes that the mixin asks for."""

    batch_size = 4
    num_channels = 3

    def __init__(self):
        processor = NIMImageProcessor.from_config(NIMConfig(image_size=18, patch_size=6), crop_pct=0.9)
        self.settings = {
            "do_resize": True,
            "size": {"shortest_edge": processor.size["shortest_edge"]},
            "do_center_crop": True,
            "crop_size": {"height": 18, "width": 18},
            "do_rescale": True,
            "do_normalize": True,
            "image_mean": list(processor.image_mean),
            "image_std": list(processor.image_std),
        }

    def prepare_image_processor_dict(self):
        return dict(self.settings)

    def prepare_image_inputs(self, equal_resolution=False, numpify=False, torchify=False):
        return image_processing.prepare_image_inputs(
            batch_size=self.batch_size,
            num_channels=self.num_channels,
            # Well above the size they are resized to: for small reductions the backends' own bicubic kernels differ.
            min_resolution=48,
            max_resolution=96,
            equal_resolution=equal_resolution,
            numpify=numpify,
            torchify=torchify,
        )

    def prepare_processor_inputs(self, **kwargs):
        return {"images": self.prepare_image_inputs(**kwargs)}

    def expected_output_image_shape(self, images):
        return self.num_channels, 18, 18


class NIMImageProcessingTest(image_processing.ImageProcessingTestMixin, unittest.TestCase):
    image_processing_classes = None
    image_processor_dict = None
    test_cast_dtype = True

    def setUp(self):
        # Not the mixin's: it looks for the classes by the name of this folder, among those of transformers.
        self.image_processor_tester = NIMImageProcessingTester()
        self.image_processor_dict = self.image_processor_tester.prepare_image_processor_dict()
        self.image_processing_classes = {"torchvision": NIMImageProcessor, "pil": NIMImageProcessorPil}

    def test_backends_equivalence(self):
        """The mixin's, on a picture made here instead of a downloaded one."""
        picture, file = _photograph(), io.BytesIO()
        picture.save(file, "PNG")
        web = types.SimpleNamespace(get=lambda *args, **kwargs: types.SimpleNamespace(content=file.getvalue()))
        # Newer versions have the function, older ones ask for the address themselves.
        with (
            mock.patch.object(image_processing, "load_test_image", create=True, return_value=picture),
            mock.patch.object(image_processing, "httpx", web, create=True),
        ):
            super().test_backends_equivalence()

    @unittest.skip(reason="runs without torchvision, which this package depends on")
    def test_pil_can_run_without_torchvision(self):
        pass
