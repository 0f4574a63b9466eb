# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Prepare the work that is timed, done by the package or by an alternative to it.

Models have random weights: their speed does not depend on them.
"""

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Work
from plain import PlainDe3, PlainNIM
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from transformers_nim import Certificate, NIMConfig, NIMForPreTraining, NIMForRobustImageClassification
from transformers_nim.attacks import PixelClassifier, make_attack
from transformers_nim.data.augmentation import pretraining_transform
from transformers_nim.data.images import training_batches
from transformers_nim.data.loading import ImageSource
from transformers_nim.model.layers_nim import unfused_attention_forward
from transformers_nim.training.optimization import make_optimizer, parameter_groups
from transformers_nim.utils.extras import require
from transformers_nim.utils.memory import keep_freed_memory


SIGMA = 50.0


def training_step(
    size: str,
    batch_size: int,
    side: str,
    precision: str,
    overrides: dict[str, Any] | None = None,
    data: str | None = None,
    keep: bool = True,
    attention: str | None = None,
) -> Work:
    """Prepare updates of pretraining: noise, loss, gradients and optimizer, without clipping, logs and schedule.

    Args:
        size: A name of `NIM_SIZES`.
        batch_size: Images per step.
        side: `"ours"` with the scripts' optimizer, `"plain"` with torch's unfused AdamW, or `"vit_mae"`: transformers'
            model with nothing masked and the fused AdamW of its Trainer.
        precision: `"fp32"` or `"bf16"` (autocast).
        overrides: Fields of the config.
        data: A folder of images, which one worker reads batch after batch. By default a single batch in memory is used
            for every step.
        keep: Whether to keep freed memory, as the scripts do.
        attention: Attention implementation of `"vit_mae"`; transformers' default if left out.
    """
    torch.manual_seed(0)
    if keep:
        keep_freed_memory()
    config = NIMConfig.from_size(size, **(overrides or {}))
    ours = NIMForPreTraining(config)
    batches = itertools.repeat(torch.randn(batch_size, 3, *config.image_shape))
    if data is not None:
        batches = _pipeline(config, batch_size, data, num_workers=1)
    flops = 0.0
    if side == "ours":
        few = next(batches)[:2]
        flops = _count_flops(ours, lambda: ours(few, sigma=SIGMA).loss.backward()) * batch_size / 2
        optimizer: torch.optim.Optimizer = make_optimizer(parameter_groups(ours, 1e-4, 0.05), betas=(0.9, 0.95))

        def loss(pixel_values: torch.Tensor) -> torch.Tensor:
            return ours(pixel_values, sigma=SIGMA).loss

    elif side == "plain":
        plain = PlainNIM(ours)
        optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, weight_decay=0.05, foreach=False, fused=False)

        def loss(pixel_values: torch.Tensor) -> torch.Tensor:
            return plain.loss(pixel_values, torch.randn_like(pixel_values), SIGMA)

    else:
        masked = vit_mae(config)
        if attention is not None:
            masked.set_attn_implementation(attention)
        optimizer = torch.optim.AdamW(masked.parameters(), lr=1e-4, weight_decay=0.05, fused=True)

        def loss(pixel_values: torch.Tensor) -> torch.Tensor:
            noisy = pixel_values + torch.randn_like(pixel_values) * SIGMA / 255
            outputs = masked.vit(noisy)
            logits = masked.decoder(outputs.last_hidden_state, outputs.ids_restore).logits
            return ((logits - masked.patchify(pixel_values)) ** 2).mean()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            value = loss(next(batches))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Work(step, batch_size, flops)


def repeated_step(steps: int, **arguments: Any) -> Work:
    """Prepare several updates in a row; see [`training_step`]."""
    work = training_step(**arguments)
    return Work(lambda: [work.run() for _ in range(steps)], steps * work.items, steps * work.flops)


def input_pipeline(size: str, batch_size: int, data: str) -> Work:
    """Prepare decoding and augmenting a batch in this process, as one worker does it."""
    batches = _pipeline(NIMConfig.from_size(size), batch_size, data, num_workers=0)
    return Work(lambda: next(batches), batch_size)


def _pipeline(config: NIMConfig, batch_size: int, data: str, num_workers: int) -> Iterator[torch.Tensor]:
    images = ImageSource(data, train_val_split=0).load()
    transform = pretraining_transform(config)
    return (
        batch["pixel_values"]
        for batch in training_batches(images, 3, transform, batch_size, 0, num_workers=num_workers)
    )


def attention(batch_size: int, num_tokens: int, side: str) -> Work:
    """Prepare one layer's attention of ViT-B in bfloat16, forward and backward.

    `side` is `"ours"`, or `"fused"` for torch's kernel.
    """
    query, key, value = (
        torch.randn(batch_size, 12, num_tokens, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    module = nn.Identity().train()

    def run() -> None:
        if side == "ours":
            output, _ = unfused_attention_forward(module, query, key, value, None, scaling=0.125)
        else:
            output = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        torch.autograd.grad(output.sum(), (query, key, value))

    return Work(run, batch_size, 3 * 4 * batch_size * 12 * num_tokens**2 * 64)


def vit_mae(config: NIMConfig) -> ViTMAEForPreTraining:
    """Return transformers' ViT-MAE in the size of `config`, with nothing masked."""
    return ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            image_size=config.image_shape[0],
            patch_size=config.patch_shape[0],
            decoder_hidden_size=config.decoder_hidden_size,
            decoder_num_hidden_layers=config.decoder_num_hidden_layers,
            decoder_num_attention_heads=config.decoder_num_attention_heads,
            decoder_intermediate_size=config.decoder_intermediate_size,
            mask_ratio=0.0,
        )
    )


def prediction(
    size: str,
    num_images: int,
    num_draws: int,
    side: str,
    precision: str,
    max_batch_size: int | None = None,
) -> Work:
    """Prepare a prediction of De^3.

    `side` is `"ours"`, `"plain"` (one draw after the other) or `"plain batch"` (all draws at once).
    """
    # For every side: otherwise the allocator's state at the start decides which one asks the system again and again.
    keep_freed_memory()
    model = _robust(size)
    pixel_values = torch.randn(num_images, 3, *model.config.image_shape)
    rows = num_images * num_draws
    if side != "ours":
        plain = PlainDe3(model).eval()

        def run() -> None:
            with torch.inference_mode():
                if side == "plain":
                    plain(pixel_values, torch.randn(num_images, num_draws, *pixel_values.shape[1:]), SIGMA)
                else:
                    repeated = pixel_values.repeat_interleave(num_draws, dim=0)
                    logits = plain.draw(repeated, torch.randn_like(repeated), SIGMA)
                    logits.softmax(dim=-1).unflatten(0, (num_images, num_draws)).mean(dim=1)

        return Work(run, rows)
    flops = _count_flops(model, lambda: model(pixel_values[:1], sigma=SIGMA, num_samples=1)) * rows
    if precision == "bf16":
        model = model.to(torch.bfloat16)

    def run() -> None:
        with torch.inference_mode():
            model(pixel_values, sigma=SIGMA, num_samples=num_draws, max_batch_size=max_batch_size)

    return Work(run, rows, flops)


def eot_step(size: str, num_images: int, num_draws: int, side: str, batch_size: int = 60) -> Work:
    """Prepare a step of EOT-PGD in float32: `side` is `"ours"` or `"torchattacks"`.

    Raises:
        ValueError: Groups of `batch_size` noisy images do not divide the work. Ours would fill the last one up, and do
            more than the other side.
    """
    keep_freed_memory()
    model = _robust(size).requires_grad_(False)
    pixels = torch.rand(num_images, 3, *model.config.image_shape)
    labels = torch.zeros(num_images, dtype=torch.long)
    rows, eps = num_images * num_draws, 8 / 255
    if side == "torchattacks":
        theirs = require("torchattacks").EOTPGD(_Pixels(model), eps=eps, alpha=eps / 4, steps=1, eot_iter=num_draws)
        return Work(lambda: theirs(pixels, labels), rows)
    flops = _count_flops(model, lambda: _input_gradient(model, pixels[:1])) * rows
    group = batch_size // num_draws * num_draws
    if rows % group:
        raise ValueError(
            f"{rows} noisy images do not fill groups of {group}, which ours would fill up; choose a batch_size that"
            " divides them"
        )
    attack = make_attack(
        "eot_pgd",
        steps=1,
        step_size=eps / 4,
        num_draws=num_draws,
        losses=("ce",),
        restarts=1,
        keep_best=False,
        batch_size=batch_size,
    )
    classifier, seeds = PixelClassifier(model, sigma=SIGMA), list(range(num_images))
    return Work(lambda: attack(classifier, pixels, labels, norm="Linf", eps=eps, seeds=seeds), rows, flops)


class _Pixels(nn.Module):
    """Classify pixels in [0, 1], as a user of torchattacks would wrap the model."""

    def __init__(self, model: NIMForRobustImageClassification):
        super().__init__()
        self.model = model
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(model.config, f"image_{name}"))[:, None, None])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model((pixels - self.mean) / self.std, sigma=SIGMA, num_samples=1).logits


def certification(size: str, num_images: int, n: int, side: str) -> Work:
    """Prepare certificates of a radius of half of sigma, for images on which all votes agree.

    `side` is `"fixed n"`, which takes all draws (Cohen et al.), or `"ours"`, which stops once the radius is reached.
    The fact `cost` is the number of noisy images of one run.
    """
    model = _robust(size)
    pixel_values = torch.randn(num_images, 3, *model.config.image_shape)
    options = {} if side == "fixed n" else {"sequential": True, "target_radius": 0.5 * SIGMA / 255}
    facts: dict[str, float] = {}

    def certify(images: torch.Tensor) -> list[Certificate]:
        generator = torch.Generator().manual_seed(0)
        return model.certify(images, SIGMA, 100, n, 0.001, generator=generator, **options)

    def run() -> None:
        certificates = certify(pixel_values)
        if min(certificate.radius for certificate in certificates) < 0.5 * SIGMA / 255:
            raise ValueError(
                "not all images reach a radius of half of sigma, so the two sides would do different work"
            )
        facts["cost"] = sum(certificate.num_draws for certificate in certificates)

    return Work(run, num_images, facts=facts, warm_up=lambda: certify(pixel_values[:1]))


def loading(folder: str, side: str) -> Work:
    """Prepare loading a model: `"ours"` and `"vit_mae"` by `from_pretrained`, `"plain"` by `torch.load`."""
    if side == "plain":
        config = NIMConfig.from_pretrained(folder)

        def load() -> None:
            model = NIMForPreTraining(config)
            model.load_state_dict(torch.load(Path(folder) / "plain.pt", weights_only=True))

        return Work(load)
    return Work(partial({"ours": NIMForPreTraining, "vit_mae": ViTMAEForPreTraining}[side].from_pretrained, folder))


def importing(module: str) -> Work:
    """Prepare a new interpreter that imports a module."""
    return Work(lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True))


def _robust(size: str) -> NIMForRobustImageClassification:
    torch.manual_seed(0)
    model = NIMForRobustImageClassification(NIMConfig.from_size(size, num_labels=10)).eval()
    # The logits of a new classifier are almost equal, so votes would be chance.
    nn.init.normal_(model.classifier.weight)
    return model


def _input_gradient(model: NIMForRobustImageClassification, images: torch.Tensor) -> None:
    images = images.clone().requires_grad_()
    # The counter does not support autograd.grad.
    model(images, sigma=SIGMA, num_samples=1).logits.sum().backward()


def _count_flops(model: Any, run: Callable[[], object]) -> float:
    """Return the floating point operations of matrix products in `run`."""
    usual = model.config._attn_implementation
    # The counter does not know the fused kernel for CPUs.
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        run()
    model.set_attn_implementation(usual)
    model.zero_grad()
    return counter.get_total_flops()
