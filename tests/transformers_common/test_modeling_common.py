# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""transformers' own tests of models and configs (ModelTesterMixin, ConfigTester) on all four NIM models.

The models that add noise are given it here (`pixel_noise` and one `sigma` per image), because most of these tests
compare two calls. That predictions are random without it, and repeatable with a generator, is tested elsewhere.
"""

import copy
import inspect
import unittest
from unittest import mock

import torch
from transformers.models.auto import modeling_auto
from transformers.testing_utils import torch_device

from transformers_nim import (
    NIMConfig,
    NIMForImageClassification,
    NIMForPreTraining,
    NIMForRobustImageClassification,
    NIMModel,
)

from .mixins import import_mixin


modeling = import_mixin("test_modeling_common")
configuration = import_mixin("test_configuration_common")

_NOISY = (NIMForPreTraining, NIMForRobustImageClassification)

# The tests know by these tables which classes have no loss and which take labels. NIM is registered with the Auto
# classes, which does not add names to them; without these entries several tests would pass over our models.
_NAMES = {
    "MODEL_MAPPING_NAMES": "NIMModel",
    "MODEL_FOR_PRETRAINING_MAPPING_NAMES": "NIMForPreTraining",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": ("NIMForImageClassification", "NIMForRobustImageClassification"),
}


def _without_initializer_range(config: NIMConfig) -> NIMConfig:
    """In place of `_config_zero_init`, which takes `image_std` for the scale of an initializer too."""
    config = copy.deepcopy(config)
    config.initializer_range = 1e-10
    return config


def _name_arguments(model: torch.nn.Module, names) -> None:
    """Gives `forward` a signature of these names alone; torch.export cannot match shapes with its `**kwargs`."""
    forward = model.forward

    def named_forward(**kwargs):
        return forward(**kwargs)

    named_forward.__signature__ = inspect.Signature(
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    )
    model.forward = named_forward


class NIMModelTester:
    """Tiny configs and inputs, with the attributes that the mixin asks for."""

    batch_size = 3
    num_channels = 3
    num_labels = 10
    num_hidden_layers = 2
    hidden_size = 32
    num_attention_heads = 4
    is_training = True

    def __init__(self, image_size=(24, 24), patch_size=(6, 6), **overrides):
        self.image_size, self.patch_size, self.overrides = image_size, patch_size, overrides
        # Patches and the CLS token.
        self.seq_length = (image_size[0] // patch_size[0]) * (image_size[1] // patch_size[1]) + 1

    def get_config(self) -> NIMConfig:
        fields = {
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "num_channels": self.num_channels,
            "num_labels": self.num_labels,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": 40,
            # Not the encoder's, so that one cannot be taken for the other.
            "decoder_hidden_size": 24,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 36,
        }
        return NIMConfig(**fields | self.overrides)

    def prepare_config_and_inputs_for_common(self):
        pixel_values = torch.rand(self.batch_size, self.num_channels, *self.image_size, device=torch_device)
        return self.get_config(), {"pixel_values": pixel_values}


class NIMModelTest(modeling.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (NIMModel, NIMForPreTraining, NIMForImageClassification, NIMForRobustImageClassification)
    # There are no token embeddings.
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = self.make_model_tester()
        for table, names in _NAMES.items():
            # In place, because modules and Auto classes hold on to the tables themselves.
            patch = mock.patch.dict(getattr(modeling_auto, table), {"nim": names})
            patch.start()
            self.addCleanup(patch.stop)
        patch = mock.patch.object(modeling, "_config_zero_init", _without_initializer_range)
        patch.start()
        self.addCleanup(patch.stop)

    def make_model_tester(self) -> NIMModelTester:
        return NIMModelTester(norm_pix_loss=True)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if model_class in _NOISY:
            images = inputs["pixel_values"]
            # Always the same, in float32 whatever the images' dtype.
            noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
            inputs["pixel_noise"] = noise.to(images.device)
            inputs["sigma"] = torch.linspace(20.0, 100.0, len(images), device=images.device)
        return inputs

    def test_config(self):
        tester = configuration.ConfigTester(
            self, config_class=NIMConfig, has_text_modality=False, hidden_size=36, num_attention_heads=4
        )
        tester.run_common_tests()

    @unittest.skip(reason="needs the token ids of a text model; a vision model takes pixels")
    def test_inputs_embeds(self):
        pass

    def test_model_get_set_embeddings(self):
        """As in transformers' tests of its vision models: the input embeddings are no `nn.Embedding`."""
        config = self.model_tester.get_config()
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__):
                model = model_class(config)
                self.assertIsInstance(model.get_input_embeddings(), torch.nn.Module)
                replacement = torch.nn.Identity()
                model.set_input_embeddings(replacement)
                self.assertIs(model.get_input_embeddings(), replacement)
                output = model.get_output_embeddings()
                self.assertTrue(output is None or isinstance(output, torch.nn.Linear))

    def test_problem_types(self):
        """In place of the mixin's, which trains on multi-label problems and regression: NIM refuses these."""
        for model_class in (NIMForImageClassification, NIMForRobustImageClassification):
            for problem_type, num_labels in (("multi_label_classification", 2), ("regression", 1), (None, 1)):
                with self.subTest(f"{model_class.__name__}, {problem_type}"):
                    config = self.model_tester.get_config()
                    config.problem_type, config.num_labels = problem_type, num_labels
                    with self.assertRaisesRegex(ValueError, "one of at least two labels"):
                        model_class(config)

    def _model_and_inputs(self, model_class):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        return model_class(config).to(torch_device).eval(), self._prepare_for_class(inputs, model_class)

    def _assert_same_outputs(self, actual, expected):
        compared = [name for name, value in expected.items() if isinstance(value, torch.Tensor)]
        self.assertTrue(compared)
        for name in compared:
            torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=1e-5)

    def test_export_to_torch(self):
        """In place of ExportTesterMixin, which is not in the source distribution."""
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__), torch.no_grad():
                model, inputs = self._model_and_inputs(model_class)
                exported = torch.export.export(model, args=(), kwargs=inputs, strict=False)
                self._assert_same_outputs(exported.module()(**inputs), model(**inputs))

    def test_export_to_torch_with_any_batch_size(self):
        batch = torch.export.Dim("batch", min=2, max=64)
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__), torch.no_grad():
                model, inputs = self._model_and_inputs(model_class)
                fewer = {name: value[:2] for name, value in inputs.items()}
                expected = model(**fewer)
                _name_arguments(model, inputs)
                shapes = {name: {0: batch} for name in inputs}
                exported = torch.export.export(model, args=(), kwargs=inputs, strict=False, dynamic_shapes=shapes)
                self._assert_same_outputs(exported.module()(**fewer), expected)


class NIMVariantTest(NIMModelTest):
    """The same with the other options: images and patches that are not square, grey, raw targets, no qkv bias."""

    def make_model_tester(self) -> NIMModelTester:
        tester = NIMModelTester(image_size=(12, 32), patch_size=(6, 8), norm_pix_loss=False, qkv_bias=False)
        tester.num_channels = 1
        return tester
