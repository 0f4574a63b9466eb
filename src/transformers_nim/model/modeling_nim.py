# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""NIM: a vision transformer pretrained to denoise, and the De^3 defense made of it.

Noisy image modeling (arXiv 2302.01056) pretrains a ViT encoder and a light decoder to restore images from Gaussian
noise of a random scale sigma. De^3 keeps both: it adds noise to an image, denoises it, and classifies the result with
an encoder that was fine-tuned on denoised images.
"""

import copy
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .checks_nim import check_counts, check_vote
from .configuration_nim import NIMConfig
from .external_classifier_nim import OtherClassifierMixin, describe_classifier, is_nim_checkpoint, load_classifier
from .layers_nim import (
    NIMAttention,
    NIMDecoder,
    NIMEmbeddings,
    NIMLayer,
    check_image_shape,
    sincos_position_embeddings,
)
from .loading_nim import (
    check_same_architecture,
    check_whole,
    load_derived_weights,
    readable,
    refuse_other_classifier,
    saved_class,
    saved_config,
    set_fields,
    source_arguments,
)
from .noise import (
    FROM_CONFIG,
    ConstantSigma,
    Generators,
    Sigma,
    SigmaDistribution,
    add_noise,
    default_batch_size,
    draw_noise,
    resolve_sigma,
)
from .outputs_nim import (
    NIMForPreTrainingOutput,
    RobustImageClassifierOutput,
    answers,
    combine_draws,
    concatenate_states,
)
from .pixel_classifier_nim import PixelClassifier
from .pixels_nim import per_channel
from .smoothing_nim import SmoothingMixin


logger = logging.get_logger(__name__)

# Added to the variance by which patches are normalized, as in the authors' code.
_PATCH_VARIANCE_EPS = 1e-6

_DEFENSE_OFF = {"defense_sigma": None, "finetuning_sigma": None}


@auto_docstring(custom_intro="Base class of the NIM models: initialization, loading and supported features.")
class NIMPreTrainedModel(PreTrainedModel):
    config: NIMConfig
    base_model_prefix = "nim"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    # Losses are means over the batch, so a Trainer that accumulates gradients must divide them itself.
    accepts_loss_kwargs = False
    _no_split_modules = ["NIMEmbeddings", "NIMLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": NIMLayer, "attentions": NIMAttention}
    _input_embed_layer = "patch_embeddings"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load a checkpoint.

        Arguments, returns and errors are those of `PreTrainedModel.from_pretrained`; damaged weights are an OSError.
        """
        with readable(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight, gain=getattr(module, "init_gain", 1.0))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            # Xavier's bound for the flattened matrix. Initializing a view of it would overwrite loaded weights.
            bound = math.sqrt(6.0 / (module.weight[0].numel() + module.out_channels))
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, NIMEmbeddings):
            init.normal_(module.cls_token, std=self.config.initializer_range)
            init.copy_(module.position_embeddings, sincos_position_embeddings(self.config.hidden_size, module.grid))
        elif isinstance(module, NIMDecoder):
            width = self.config.decoder_hidden_size
            init.copy_(module.position_embeddings, sincos_position_embeddings(width, module.grid))


@auto_docstring(custom_intro="The NIM encoder: a vision transformer over all patches, without a head.")
class NIMModel(NIMPreTrainedModel):
    # Heads of the models that contain this one.
    _keys_to_ignore_on_load_unexpected = [r"^(decoder|denoiser|fc_norm|classifier)\."]

    def __init__(self, config: NIMConfig, for_classification: bool = False):
        r"""
        for_classification (`bool`, *optional*, defaults to `False`):
            Whether this is the encoder of a classifier. It has trainable position embeddings, stochastic depth and no
            final layer norm, because the head has its own.
        """
        super().__init__(config)
        self.embeddings = NIMEmbeddings(config, trainable_position_embeddings=for_classification)
        depth = config.num_hidden_layers
        last_rate = config.drop_path_rate if for_classification else 0.0
        self.layers = nn.ModuleList(
            NIMLayer(
                config,
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                drop_path_rate=last_rate * index / max(depth - 1, 1),
            )
            for index in range(depth)
        )
        self.layernorm = (
            nn.Identity() if for_classification else nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        )
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load the encoder of any NIM checkpoint; of a classifier, the classifier's encoder.

        Arguments, returns and errors are those of `PreTrainedModel.from_pretrained`.
        """
        refuse_other_classifier(saved_config(pretrained_model_name_or_path, kwargs, cls.config_class))
        saved_class(pretrained_model_name_or_path, kwargs)  # checks that the weights can be read
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
            Images from [`NIMImageProcessor`]: pixels in [0, 1], normalized by `config.image_mean` and
            `config.image_std`.
        """
        dtype = self.embeddings.patch_embeddings.projection.weight.dtype
        hidden_states = self.embeddings(pixel_values.to(dtype), interpolate_pos_encoding)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return BaseModelOutput(last_hidden_state=self.layernorm(hidden_states))


@auto_docstring(
    custom_intro="""
    NIM for pretraining (arXiv 2302.01056): add Gaussian noise of a random scale to images and learn to restore them.
    The pretrained model is the denoiser of [`NIMForRobustImageClassification`].
    """
)
class NIMForPreTraining(NIMPreTrainedModel):
    _keys_to_ignore_on_load_unexpected = [r"^(fc_norm|classifier)\."]

    def __init__(self, config: NIMConfig):
        super().__init__(config)
        self.nim = NIMModel(config)
        self.decoder = NIMDecoder(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load a pretraining checkpoint, or the denoiser of a [`NIMForRobustImageClassification`] checkpoint.

        Arguments, returns and errors are those of `PreTrainedModel.from_pretrained`.
        """
        config = saved_config(pretrained_model_name_or_path, kwargs, cls.config_class)
        kind = saved_class(pretrained_model_name_or_path, kwargs, config)
        if kind == "NIMForPreTraining":
            with_info: Any = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, **kwargs | {"output_loading_info": True}
            )
            model, info = with_info
            check_whole(pretrained_model_name_or_path, info, [name for name, _ in model.named_parameters()])
            return with_info if kwargs.get("output_loading_info") else model
        if kind != "NIMForRobustImageClassification":
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        if config is not None and not config.denoise:
            raise ValueError(
                f"{pretrained_model_name_or_path} has no denoiser: it was made with denoise=False. Load a pretraining"
                " checkpoint, or a classifier that denoises"
            )
        # A plain load would pair the classifier's encoder, the checkpoint's `nim`, with a new decoder.
        prefix, weights = "denoiser.", kwargs.get("state_dict")
        if weights is None:
            weights = NIMForRobustImageClassification.from_pretrained(
                pretrained_model_name_or_path, **source_arguments(kwargs)
            ).state_dict()
        state_dict = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        return load_derived_weights(
            super().from_pretrained, state_dict, pretrained_model_name_or_path, model_args, kwargs, cls.config_class
        )

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        sigma: Sigma | str = FROM_CONFIG,
        pixel_noise: torch.Tensor | None = None,
        generator: Generators | None = None,
        interpolate_pos_encoding: bool = False,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> NIMForPreTrainingOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
            Clean images from [`NIMImageProcessor`].
        sigma (number, `torch.Tensor` of shape `(batch_size,)`, mapping or [`SigmaDistribution`], *optional*):
            Noise scale in units of 0..255 pixels. Drawn from `config.pretraining_sigma` by default.
        pixel_noise (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`, *optional*):
            Standard normal noise to use instead of drawing it.
        generator (`torch.Generator`, a list with one per image or a tensor of `batch_size` seeds, *optional*):
            Source of the noise, and of sigma if it is drawn. A single generator gives each image its own seed.
        return_loss (`bool`, *optional*, defaults to `True`):
            Whether to compute the loss.

        Example:

        ```python
        >>> import torch
        >>> from transformers_nim import NIMConfig, NIMForPreTraining

        >>> model = NIMForPreTraining(NIMConfig.from_size("tiny-patch4-32"))
        >>> outputs = model(torch.randn(2, 3, 32, 32))
        >>> tuple(outputs.denoised_pixel_values.shape)
        (2, 3, 32, 32)
        >>> tuple(model.denoise(torch.randn(2, 3, 32, 32), sigma=25).shape)
        (2, 3, 32, 32)
        ```"""
        sigma, noisy = self._add_noise(pixel_values, sigma, pixel_noise, generator, interpolate_pos_encoding)
        outputs, logits, denoised = self.restore(noisy, sigma, pixel_values, interpolate_pos_encoding, **kwargs)
        loss = None
        if return_loss:
            loss = nn.functional.mse_loss(logits.to(torch.float32), self.patch_targets(pixel_values))
        return NIMForPreTrainingOutput(
            loss=loss,
            logits=logits,
            denoised_pixel_values=denoised.to(pixel_values.dtype),
            noisy_pixel_values=noisy.to(pixel_values.dtype),
            sigma=sigma,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def denoise(
        self,
        pixel_values: torch.Tensor,
        sigma: Sigma | str = FROM_CONFIG,
        pixel_noise: torch.Tensor | None = None,
        generator: Generators | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> torch.Tensor:
        """Add noise to images and denoise them: the purification step of De^3.

        Args:
            pixel_values: Normalized images of shape `(batch, channels, height, width)`.
            sigma: Scale of the added noise in units of 0..255 pixels. 0 denoises without adding noise. Drawn from
                `config.pretraining_sigma` by default.
            pixel_noise: Standard normal noise of the images' shape, to use instead of drawing it.
            generator: Source of the noise, one for the batch or one per image.
            interpolate_pos_encoding: Whether to accept other image sizes than the configured one.

        Returns:
            The denoised images, clamped to pixels in [0, 1] and normalized, in the shape and dtype of `pixel_values`.

        Raises:
            ValueError: sigma, the images' shape or the noise's shape is wrong.
        """
        sigma, noisy = self._add_noise(pixel_values, sigma, pixel_noise, generator, interpolate_pos_encoding)
        _, _, denoised = self.restore(noisy, sigma, pixel_values, interpolate_pos_encoding)
        return self.clamp_pixels(denoised).to(pixel_values.dtype)

    def restore(
        self,
        noisy_pixel_values: torch.Tensor,
        sigma: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[BaseModelOutput, torch.Tensor, torch.Tensor]:
        """Denoise noisy images.

        Args:
            noisy_pixel_values: Normalized noisy images of shape `(batch, channels, height, width)`.
            sigma: Scale of their noise in units of 0..255 pixels, shape `(batch,)`, for `patch_statistics="noisy"`.
            pixel_values: The images before noise was added, for `patch_statistics="input"` only.
            interpolate_pos_encoding: Whether to accept other image sizes than the configured one.

        Returns:
            The encoder's outputs, the decoder's raw prediction for each patch, and the denoised images in float32,
            normalized and not clamped.
        """
        # `return_dict=False` of the config is about the outermost output alone.
        outputs = self.nim(
            noisy_pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
        )
        size = noisy_pixel_values.shape[-2:]
        patch_height, patch_width = self.config.patch_shape
        grid = (size[0] // patch_height, size[1] // patch_width)
        logits = self.decoder(outputs.last_hidden_state, grid)
        patches = logits.to(torch.float32)
        if self.config.norm_pix_loss:
            if self.config.patch_statistics == "input":
                assert pixel_values is not None
                mean, std = self._patch_statistics(self._patchify(pixel_values.to(torch.float32)))
            else:
                mean, std = self._patch_statistics(self._patchify(noisy_pixel_values), sigma)
            patches = patches * std + mean
        return outputs, logits, self._unpatchify(patches, grid)

    def patch_targets(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the decoder's targets for clean images, float32, shape `(batch, patches, values of a patch)`."""
        target = self._patchify(pixel_values.to(torch.float32))
        if self.config.norm_pix_loss:
            mean, std = self._patch_statistics(target)
            target = (target - mean) / std
        return target

    def clamp_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Clamp normalized images to pixels in [0, 1]."""
        mean, std = (per_channel(v, pixel_values) for v in (self.config.image_mean, self.config.image_std))
        return torch.clamp(pixel_values, -mean / std, (1 - mean) / std)

    def _add_noise(
        self, pixel_values, sigma, pixel_noise, generator, interpolate_pos_encoding
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # First, because noise of three channels would broadcast an image of one.
        check_image_shape(self.config, pixel_values, interpolate_pos_encoding)
        resolved = resolve_sigma(sigma, self.config.pretraining_sigma, pixel_values.shape[0])
        if resolved is None:
            raise ValueError("a denoiser needs a sigma; pass 0 to denoise without adding noise")
        drawn, noise = draw_noise(pixel_values, resolved, 1, pixel_noise, generator)
        noisy = add_noise(pixel_values, drawn[:, 0], noise[:, 0], self.config.image_std)
        return drawn[:, 0], noisy

    def _patch_statistics(
        self, patches: torch.Tensor, sigma: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of each patch, without the variance of noise of scale `sigma`."""
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        if sigma is not None:
            noise = sum((1 / 255 / std) ** 2 for std in self.config.image_std) / self.config.num_channels
            variance = (variance - noise * sigma[:, None, None] ** 2).clamp(min=0)
        return mean, (variance + _PATCH_VARIANCE_EPS).sqrt()

    def _patchify(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Cut `(batch, channels, height, width)` into `(batch, patches, patch_height * patch_width * channels)`."""
        height, width = self.config.patch_shape
        patches = pixel_values.unflatten(3, (-1, width)).unflatten(2, (-1, height))
        return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def _unpatchify(self, patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Undo `_patchify`."""
        patches = patches.unflatten(2, (*self.config.patch_shape, self.config.num_channels)).unflatten(1, grid)
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


@auto_docstring(
    custom_intro="""
    The NIM encoder with a classification head on its mean-pooled patches: a classifier without the defense.
    """
)
class NIMForImageClassification(NIMPreTrainedModel):
    # A pretraining checkpoint has a final norm and a decoder, a robust one a denoiser.
    _keys_to_ignore_on_load_unexpected = [r"^(nim\.)?layernorm\.", r"^(decoder|denoiser)\."]

    def __init__(self, config: NIMConfig):
        super().__init__(config)
        if config.problem_type not in (None, "single_label_classification") or (config.num_labels or 0) < 2:
            raise ValueError(
                "NIM classifiers choose one of at least two labels; got"
                f" problem_type={config.problem_type!r}, num_labels={config.num_labels}"
            )
        self.num_labels = config.num_labels
        self._make_classifier(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load the classifier of any NIM checkpoint; its head is new if the checkpoint has none.

        Arguments, returns and errors are those of `PreTrainedModel.from_pretrained`.
        """
        kind = saved_class(pretrained_model_name_or_path, kwargs)
        # Auto classes hand over the config, and go by the name in it.
        named = getattr(kwargs.get("config"), "architectures", None) or []
        if kind == "NIMForRobustImageClassification" and "NIMForImageClassification" in named:
            logger.warning(
                f"{pretrained_model_name_or_path} has a denoiser, which is left out, because its config names"
                f" NIMForImageClassification; {kind}.from_pretrained loads all of it"
            )
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    def _make_classifier(self, config: NIMConfig) -> None:
        refuse_other_classifier(config)
        self.nim = NIMModel(config, for_classification=True)
        self.fc_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 0)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is getattr(self, "classifier", None):
            # Fine-tuning starts from a uniform prediction, as in the authors' code.
            init.trunc_normal_(module.weight, std=2e-5)

    def as_pixel_classifier(self, **options: Any) -> PixelClassifier:
        """Return the model as attack libraries want it: a module from pixels in [0, 1] to logits.

        Args:
            options: Those of [`PixelClassifier`](model/pixel_classifier_nim.py), such as `sigma`, `num_samples`,
                `vote` and `fixed_noise` of a De^3 model.

        Raises:
            ValueError: The model is in train mode, or an option is unknown or out of range.

        Example:

        ```python
        >>> import torch
        >>> from transformers_nim import NIMConfig, NIMForRobustImageClassification

        >>> model = NIMForRobustImageClassification(NIMConfig.from_size("tiny-patch4-32", num_labels=10)).eval()
        >>> classifier = model.as_pixel_classifier(sigma=50, num_samples=4)
        >>> tuple(classifier(torch.rand(2, 3, 32, 32)).shape)
        (2, 10)
        ```
        """
        return PixelClassifier(self, **options)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
            Images from [`NIMImageProcessor`].
        labels (`torch.Tensor` of shape `(batch_size,)` or `(batch_size, num_labels)`, *optional*):
            Class indices, or class probabilities such as mixup's, for the cross-entropy loss.
        """
        outputs, logits = self._classify(pixel_values, interpolate_pos_encoding, **kwargs)
        return ImageClassifierOutput(
            loss=self._loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _classify(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[BaseModelOutput, torch.Tensor]:
        outputs = self.nim(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs)
        return outputs, self.classifier(self.fc_norm(outputs.last_hidden_state[:, 1:].mean(dim=1)))

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor | None:
        # Not transformers' loss_function, which takes float labels for a multi-label problem.
        if labels is None:
            return None
        are_probabilities = labels.is_floating_point()
        if not are_probabilities and labels.shape == (logits.shape[0], 1):
            labels = labels.squeeze(1)
        if labels.shape != (logits.shape if are_probabilities else logits.shape[:1]):
            raise ValueError(
                f"labels must be class indices, integers of shape ({logits.shape[0]},), or class probabilities, floats"
                f" of shape {tuple(logits.shape)}; got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        labels = labels.to(logits.device, torch.float32 if are_probabilities else torch.long)
        return nn.functional.cross_entropy(logits.to(torch.float32), labels)


@auto_docstring(
    custom_intro="""
    De^3 (arXiv 2302.01056): add noise to an image, denoise it with a frozen [`NIMForPreTraining`] and classify the
    result. The noise scale sigma, chosen at call time, is the strength of the defense.

    A pretraining checkpoint fills the denoiser and starts the classifier's encoder. A [`NIMForImageClassification`]
    checkpoint fills the classifier alone; [`~NIMForRobustImageClassification.from_denoiser`] puts a trained denoiser
    in front of it, or of a classifier of another kind.
    """
)
class NIMForRobustImageClassification(SmoothingMixin, OtherClassifierMixin, NIMForImageClassification):
    _keys_to_ignore_on_load_unexpected = [r"^(nim\.)?layernorm\."]

    def __init__(self, config: NIMConfig):
        # `nim` comes before `denoiser`, because tools take the first layers that they find for trained ones.
        super().__init__(config)
        self.denoiser = NIMForPreTraining(config) if config.denoise else None
        if self.denoiser is None:
            self._keys_to_ignore_on_load_unexpected = [*self._keys_to_ignore_on_load_unexpected, r"^denoiser\."]
        # Layers of adapters, which others put into the denoiser later, are not among them.
        self._denoiser_modules: list[nn.Module] = []
        self.post_init()
        self.train(self.training)

    def train(self, mode: bool = True) -> "NIMForRobustImageClassification":
        """Set train or eval mode. With `config.freeze_denoiser`, the denoiser stays frozen and in eval mode.

        The field is read when the model is made or loaded; changed later, it does not unfreeze the denoiser. Adapters
        that were added to the denoiser are trained.
        """
        super().train(mode)
        if self.denoiser is None or not self.config.freeze_denoiser:
            return self
        if not self._denoiser_modules or self._denoiser_modules[0] is not self.denoiser:
            self._denoiser_modules = list(self.denoiser.modules())
        # Not only in __init__, because from_pretrained makes loaded parameters trainable.
        for module in self._denoiser_modules:
            module.training = False
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        return self

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load a checkpoint of this class, of [`NIMForPreTraining`] or of [`NIMForImageClassification`].

        A pretraining checkpoint fills the denoiser and starts the classifier's encoder, so only `fc_norm` and
        `classifier` are new. A checkpoint without a denoiser gives a model without one (`denoise=False`), whose
        defense is off. Arguments, returns and errors are those of `PreTrainedModel.from_pretrained`.
        """
        config = saved_config(pretrained_model_name_or_path, kwargs, cls.config_class)
        kind = saved_class(pretrained_model_name_or_path, kwargs, config)
        denoise = kwargs.get("denoise", getattr(kwargs.get("config"), "denoise", config is None or config.denoise))
        if config is not None and denoise and not config.denoise:
            raise ValueError(
                f"{pretrained_model_name_or_path} has no denoiser: it was made with denoise=False, so leave out"
                f" denoise=True, or use {cls.__name__}.from_denoiser(denoiser, classifier=...)"
            )
        if kind == "NIMForPreTraining":
            weights = kwargs.get("state_dict")
            if weights is None:
                weights = NIMForPreTraining.from_pretrained(
                    pretrained_model_name_or_path, **source_arguments(kwargs)
                ).state_dict()
            return load_derived_weights(
                cls._load, _robust_state_dict(weights), pretrained_model_name_or_path, model_args, kwargs,
                cls.config_class,
            )  # fmt: skip
        has_weights = pretrained_model_name_or_path is not None or kind is not None
        if denoise and has_weights and kind != "NIMForRobustImageClassification":
            for name in ("denoise", *_DEFENSE_OFF):
                if kwargs.get(name):
                    raise ValueError(
                        f"{pretrained_model_name_or_path} has no denoiser, so leave out {name}={kwargs[name]!r}, or"
                        f" use {cls.__name__}.from_denoiser(denoiser, classifier=...)"
                    )
            others = "" if kind else " (and no weights of a NIM model at all; names of a wrapped one begin otherwise)"
            logger.warning(
                f"{pretrained_model_name_or_path} has no denoiser{others}, and a random one would be no defense: the"
                " model has none (denoise=False), and the defense is off (sigma=None)."
                f" {cls.__name__}.from_denoiser(denoiser, classifier=...) puts a denoiser in front."
            )
            off = {"denoise": False, **_DEFENSE_OFF}
            if isinstance(kwargs.get("config"), PreTrainedConfig):
                kwargs["config"] = copy.deepcopy(kwargs["config"])
                set_fields(kwargs["config"], off)
            else:
                kwargs |= off
        return cls._load(pretrained_model_name_or_path, *model_args, **kwargs)

    @classmethod
    def _load(cls, source, *model_args, output_loading_info: bool = False, **kwargs):
        """Load weights by their names.

        Raises:
            ValueError: They are not all that a denoiser has.
        """
        loaded: Any = super().from_pretrained(source, *model_args, output_loading_info=True, **kwargs)
        model, info = loaded
        weights = {name for name, _ in model.named_parameters() if name.startswith("denoiser.")}
        check_whole(source, info, weights)
        if weights & {name for name, *_ in info["mismatched_keys"]}:
            set_fields(model.config, _DEFENSE_OFF)
            logger.warning(
                "weights of the denoiser have other sizes than the model's, which are random: the defense is off"
                " (sigma=None) until the denoiser is trained"
            )
        return loaded if output_loading_info else model

    @classmethod
    def from_denoiser(
        cls,
        denoiser: NIMForPreTraining | str,
        classifier: nn.Module | str | None = None,
        classifier_image_processor: Any = None,
        **config_overrides,
    ) -> "NIMForRobustImageClassification":
        """Put a pretrained denoiser in front of any image classifier.

        Args:
            denoiser: A pretrained model or the name or path of its checkpoint.
            classifier: A [`NIMForImageClassification`] of the same size, any other image classifier of transformers
                or timm (which becomes `model.classifier_model`), or the name or path of its checkpoint. Code from the
                Hub is not run. By default, a new NIM classifier starts from the denoiser's encoder, to be fine-tuned.
            classifier_image_processor: Image processor of a classifier of another kind. By default, that of its
                checkpoint. Its normalization and size are used, but not its crop: the denoiser's image processor
                crops the picture, and the classifier sees the whole denoised image, resized.
            config_overrides: Fields of the config to change, such as `num_labels` or `defense_sigma`.

        Returns:
            A model in eval mode, in the denoiser's dtype, that shares no weights with its arguments.

        Raises:
            ValueError: The classifier does not fit the denoiser or is no image classifier, its normalization is
                unknown or cannot be reproduced, or a config field is wrong.
        """
        if not config_overrides.get("denoise", True):
            raise ValueError("from_denoiser makes a model that denoises; for denoise=False use from_pretrained")
        pretrained: NIMForPreTraining = (
            denoiser if isinstance(denoiser, NIMForPreTraining) else NIMForPreTraining.from_pretrained(denoiser)
        )
        if isinstance(classifier, (str, os.PathLike)) and is_nim_checkpoint(classifier):
            classifier = NIMForImageClassification.from_pretrained(classifier)
        config = copy.deepcopy(pretrained.config)
        config.classifier_config, config.classifier_input, config.denoise = None, None, True
        if classifier is not None and not isinstance(classifier, NIMForImageClassification):
            other = load_classifier(classifier)
            set_fields(config, describe_classifier(other, classifier_image_processor, config) | config_overrides)
            return cls._with_other_classifier(config, pretrained, other)
        state_dict, fields = _robust_state_dict(pretrained.state_dict()), {}
        if classifier is not None:
            check_same_architecture(config, classifier.config)
            fields = {name: getattr(classifier.config, name) for name in ("id2label", "label2id", "drop_path_rate")}
            own = {k: v for k, v in classifier.state_dict().items() if not k.startswith("denoiser.")}
            state_dict = {k: v for k, v in state_dict.items() if k.startswith("denoiser.")} | own
        set_fields(config, fields | config_overrides)
        # transformers does not copy the tensors of a state dict.
        state_dict = {name: tensor.detach().clone() for name, tensor in state_dict.items()}
        return cls.from_pretrained(None, config=config, state_dict=state_dict, dtype=pretrained.dtype)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        sigma: Sigma | str = FROM_CONFIG,
        num_samples: int | None = None,
        vote: str | None = None,
        pixel_noise: torch.Tensor | None = None,
        generator: Generators | None = None,
        interpolate_pos_encoding: bool = False,
        max_batch_size: int | None = None,
        output_draws: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RobustImageClassifierOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
            Images from [`NIMImageProcessor`].
        labels (`torch.Tensor` of shape `(batch_size,)` or `(batch_size, num_labels)`, *optional*):
            Class indices, or class probabilities such as mixup's, for the cross-entropy loss.
        sigma (number, `torch.Tensor` of shape `(batch_size,)`, mapping, [`SigmaDistribution`] or `None`, *optional*):
            Scale of the added noise in units of 0..255 pixels. 0 denoises without adding noise. `None` switches the
            defense off: the classifier sees the image itself. By default `config.defense_sigma` in eval mode and
            `config.finetuning_sigma` in train mode.
        num_samples (`int`, *optional*):
            Noise draws per image. By default `config.num_samples`, and 1 in train mode. With sigma 0 one is made.
        vote (`"mean"` or `"majority"`, *optional*):
            How draws are combined: by mean probability, or by the number that chose each class (ties go to the higher
            mean probability). `config.vote` by default. Only `"mean"` has useful gradients.
        pixel_noise (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`, *optional*):
            Standard normal noise to use instead of drawing it. For several draws, its shape is
            `(batch_size, num_samples, num_channels, height, width)`.
        generator (`torch.Generator`, a list with one per image or a tensor of `batch_size` seeds, *optional*):
            Source of the noise, and of sigma if it is drawn. A single generator gives each image its own seed, so a
            prediction does not depend on the rest of the batch. Seeds can be a column of a data set, which makes the
            evaluation of a `Trainer` repeatable (docs/own_loop.md).
        max_batch_size (`int`, *optional*):
            Noisy images per pass through the network. By default a single draw is one pass, and several draws are
            split into passes of 256, or of 64 on a CPU.
        output_draws (`bool`, *optional*, defaults to `False`):
            Whether to return logits, vote, sigma, noisy and denoised image of every draw. `sigma=None` has no draws.

        Example:

        ```python
        >>> import torch
        >>> from transformers_nim import NIMConfig, NIMForRobustImageClassification

        >>> model = NIMForRobustImageClassification(NIMConfig.from_size("tiny-patch4-32", num_labels=10)).eval()
        >>> images = torch.randn(2, 3, 32, 32)
        >>> tuple(model(images, sigma=25, num_samples=8).logits.shape)
        (2, 10)
        >>> undefended = model(images, sigma=None).logits
        ```"""
        resolved, num_samples, vote = self._resolve_options(sigma, num_samples, vote, max_batch_size, pixel_values)
        draws: dict[str, torch.Tensor] = {}
        if resolved is None:
            outputs, logits = self._classify(pixel_values, interpolate_pos_encoding, **kwargs)
            passes = [outputs]
        else:
            check_image_shape(self.config, pixel_values, interpolate_pos_encoding)
            if pixel_noise is None and isinstance(resolved, SigmaDistribution) and resolved == ConstantSigma(0):
                num_samples = 1
            drawn, noise = draw_noise(pixel_values, resolved, num_samples, pixel_noise, generator)
            passes, draws = self._classify_draws(
                pixel_values, drawn, noise, interpolate_pos_encoding, max_batch_size, output_draws, **kwargs
            )
            logits = combine_draws(draws["draw_logits"], vote)
        return RobustImageClassifierOutput(
            loss=self._loss(logits, labels),
            logits=logits,
            hidden_states=concatenate_states([outputs.hidden_states for outputs in passes]),
            attentions=concatenate_states([outputs.attentions for outputs in passes]),
            **(draws if output_draws else {}),
        )

    def _resolve_options(
        self,
        sigma: Sigma | str,
        num_samples: int | None,
        vote: str | None,
        max_batch_size: int | None,
        pixel_values: torch.Tensor,
    ) -> tuple[torch.Tensor | SigmaDistribution | None, int, str]:
        """Return sigma, number of draws and vote after defaults and checks."""
        default = self.config.finetuning_sigma if self.training else self.config.defense_sigma
        resolved = resolve_sigma(sigma, default, pixel_values.shape[0])
        if num_samples is None:
            num_samples = 1 if self.training else self.config.num_samples
        check_counts(num_samples=num_samples, max_batch_size=max_batch_size)
        check_vote(vote)
        return resolved, num_samples, vote or self.config.vote

    def _classify_draws(
        self,
        pixel_values: torch.Tensor,
        sigma: torch.Tensor,
        noise: torch.Tensor,
        interpolate_pos_encoding: bool,
        max_batch_size: int | None,
        output_draws: bool,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[list[BaseModelOutput], dict[str, torch.Tensor]]:
        """Classify each image under several draws of noise, in as many passes as `max_batch_size` needs.

        Args:
            pixel_values: Images of shape `(batch, channels, height, width)`.
            sigma: Noise scale of each draw, shape `(batch, num_samples)`.
            noise: Standard normal noise of each draw, shape `(batch, num_samples, channels, height, width)`.

        Returns:
            The outputs of the classifier's encoder in each pass, and `draw_logits`; with `output_draws` also the other
            fields of [`RobustImageClassifierOutput`] that describe draws.
        """
        num_samples = sigma.shape[1]
        noisy = add_noise(pixel_values.unsqueeze(1), sigma, noise, self.config.image_std).flatten(0, 1)
        clean = None
        if self.config.leaks_patch_statistics:
            clean = pixel_values.unsqueeze(1).expand(-1, num_samples, -1, -1, -1).flatten(0, 1)
        if max_batch_size is None and num_samples > 1:
            max_batch_size = default_batch_size(pixel_values.device)

        def split(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
            return [tensor] if max_batch_size is None else tensor.split(max_batch_size)

        parts = split(noisy)
        clean_parts = [None] * len(parts) if clean is None else split(clean)
        passes, logits, denoised = [], [], []
        for part, part_sigma, part_clean in zip(parts, split(sigma.flatten()), clean_parts):
            outputs, part_logits, purified = self.classify_noisy(
                part, part_sigma, part_clean, pixel_values.dtype, interpolate_pos_encoding, **kwargs
            )
            passes.append(outputs)
            logits.append(part_logits)
            denoised.append(purified)
        draw_logits = torch.cat(logits).unflatten(0, (-1, num_samples))
        draws = {"draw_logits": draw_logits}
        if output_draws:
            draws |= {
                "votes": answers(draw_logits),
                "sigma": sigma,
                "noisy_pixel_values": noisy.to(pixel_values.dtype).unflatten(0, (-1, num_samples)),
                "denoised_pixel_values": torch.cat(denoised).unflatten(0, (-1, num_samples)),
            }
        return passes, draws

    def classify_noisy(
        self,
        noisy_pixel_values: torch.Tensor,
        sigma: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[BaseModelOutput, torch.Tensor, torch.Tensor]:
        """Denoise and classify noisy images: one draw of De^3. With `config.denoise=False`, classify them as they are.

        Args:
            noisy_pixel_values, sigma, pixel_values, interpolate_pos_encoding: As for
                [`~NIMForPreTraining.restore`].
            dtype: Dtype of the denoised images; by default that of the noisy ones.

        Returns:
            The outputs of the classifier's encoder, the logits, and the denoised images that the classifier saw.
        """
        purified = noisy_pixel_values
        if self.denoiser is not None:
            _, _, restored = self.denoiser.restore(
                noisy_pixel_values,
                sigma,
                pixel_values,
                interpolate_pos_encoding,
                output_hidden_states=False,
                output_attentions=False,
            )
            purified = self.denoiser.clamp_pixels(restored)
        purified = purified.to(dtype or noisy_pixel_values.dtype)
        outputs, logits = self._classify(purified, interpolate_pos_encoding, **kwargs)
        return outputs, logits, purified


def _robust_state_dict(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights of a De^3 model from a pretrained one's: those of its denoiser and its classifier's encoder."""
    state_dict = {f"denoiser.{name}": tensor for name, tensor in weights.items()}
    is_encoder = [name for name in weights if name.startswith("nim.") and not name.startswith("nim.layernorm.")]
    return state_dict | {name: weights[name].clone() for name in is_encoder}


for _model in (NIMModel, NIMForPreTraining, NIMForImageClassification, NIMForRobustImageClassification):
    # auto_docstring knows only the configs of models inside transformers.
    _model.forward.__doc__ = (_model.forward.__doc__ or "").replace("([`None`])", "([`NIMConfig`])")

__all__ = [
    "NIMForImageClassification",
    "NIMForPreTraining",
    "NIMForRobustImageClassification",
    "NIMModel",
    "NIMPreTrainedModel",
]
