# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Tiny models and pictures that several test files use."""

import os
import signal

import numpy as np
import pytest
import torch
import transformers
from loopback_hub import LoopbackHub
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from transformers_nim import NIMConfig, NIMForRobustImageClassification, NIMImageProcessor
from transformers_nim.utils import interruption


# `datasets` counts over the net how often its readers of local files are used. Before it is imported.
os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"

# A shell starts what runs in its background with SIGINT ignored, and what tests start would ignore it too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# More threads make tiny models slower, and test runs beside each other much slower.
torch.set_num_threads(1)


@pytest.fixture
def own_signals():
    """Signals are handled afterwards as before, and none has come."""
    before = {number: signal.getsignal(number) for number in interruption.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    interruption._state.__init__()


def tiny_config(**overrides) -> NIMConfig:
    fields = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 64,
        "num_labels": 5,
    }
    return NIMConfig(**{**fields, **overrides})


def tiny_model(cls: type = NIMForRobustImageClassification, **overrides):
    """A random model in eval mode whose predictions differ from picture to picture and from draw to draw."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(tiny_config(**overrides)).eval()
        # A new head is nearly uniform, whatever it sees. This one is neither that nor always of the same opinion.
        torch.nn.init.normal_(model.classifier.weight, std=2.0)
        height, width = model.config.image_shape
        pixel_values = torch.randn(16, model.config.num_channels, height // 8, width // 8)
        with torch.no_grad():
            pixel_values = torch.nn.functional.interpolate(pixel_values, (height, width), mode="nearest")
            model.classifier.bias -= model(pixel_values).logits.mean(dim=0)
    return model


def save_with_processor(model, path) -> str:
    model.save_pretrained(path)
    NIMImageProcessor.from_config(model.config).save_pretrained(path)
    return str(path)


def random_picture(seed: int, size: tuple[int, int] = (40, 40), mode: str = "RGB") -> Image.Image:
    """A picture of coarse random blocks; `size` is (width, height)."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture(autouse=True)
def _transformers_logging():
    """What a command line changes for its process does not reach the next test."""
    verbosity, has_bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    yield
    transformers.logging.set_verbosity(verbosity)
    (transformers.logging.enable_progress_bar if has_bars else transformers.logging.disable_progress_bar)()


@pytest.fixture(scope="session")
def robust_model() -> NIMForRobustImageClassification:
    """Not to be changed by tests."""
    return tiny_model()


@pytest.fixture(scope="session")
def robust_path(robust_model, tmp_path_factory) -> str:
    """A directory with a robust model and its image processor."""
    return save_with_processor(robust_model, tmp_path_factory.mktemp("robust"))


@pytest.fixture(scope="session")
def grey_path(tmp_path_factory) -> str:
    """The same for pictures with one channel."""
    return save_with_processor(tiny_model(num_channels=1), tmp_path_factory.mktemp("grey"))


@pytest.fixture(scope="session")
def vit_path(tmp_path_factory) -> str:
    """A directory with a random ViT of transformers and its image processor."""
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=3, **fields))
        torch.nn.init.normal_(model.classifier.weight)
    path = tmp_path_factory.mktemp("vit")
    model.save_pretrained(path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    return [random_picture(seed, size) for seed, size in enumerate([(40, 40), (50, 33), (32, 32), (64, 80)])]


@pytest.fixture
def loopback_hub():
    """An empty Hugging Face Hub, for the processes that a test starts with `loopback_hub.environment(tmp_path)`."""
    with LoopbackHub() as hub:
        yield hub
