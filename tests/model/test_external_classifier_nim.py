# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Classifiers of other kinds behind the denoiser."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import random_picture, save_with_processor, tiny_config, tiny_model
from other_classifiers import KINDS, LABELS, LARGER, MEAN, NAMES, SAME_SIZE, STD, other_classifier
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    EfficientNetImageProcessor,
    MobileViTImageProcessor,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
    pipeline,
)

from transformers_nim import NIMConfig, NIMForImageClassification, NIMForPreTraining, NIMForRobustImageClassification
from transformers_nim.attacks import PixelClassifier
from transformers_nim.conversion import __main__ as conversion
from transformers_nim.model import external_classifier_nim
from transformers_nim.model.external_classifier_nim import (
    load_classifier,
    measure_image_processor,
    to_classifier_input,
)
from transformers_nim.training.optimization import parameter_groups


# Of values of order 1, on CPU in float32.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def denoiser():
    """Not to be changed by tests."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return NIMForPreTraining(tiny_config(num_labels=2)).eval()


@pytest.fixture(scope="module")
def pixels():
    """Pictures in [0, 1], with black and white in them."""
    return torch.stack([torch.from_numpy(np.array(random_picture(seed, (32, 32)))) for seed in range(3)]).permute(
        0, 3, 1, 2
    ) / torch.tensor(255.0)


def per_channel(values):
    return torch.tensor(values)[:, None, None]


def normalized(pixels, mean=None, std=None):
    """As the denoiser takes them."""
    config = NIMConfig()
    return (pixels - per_channel(mean or config.image_mean)) / per_channel(std or config.image_std)


def defended(denoiser, kind, **config):
    classifier, processor = other_classifier(kind)
    return (
        NIMForRobustImageClassification.from_denoiser(
            denoiser, classifier, classifier_image_processor=processor, **config
        ),
        classifier,
        processor,
    )


def by_hand(denoiser, classifier, processor, pixel_values):
    """Denoise, go to pixels, resize, normalize, classify: outside of the model."""
    config = denoiser.config
    denoised = denoiser.denoise(pixel_values, sigma=0)
    pixels = (denoised * per_channel(config.image_std) + per_channel(config.image_mean)).clamp(0, 1)
    if processor is LARGER:
        pixels = nn.functional.interpolate(pixels, (48, 48), mode="bicubic", antialias=True).clamp(0, 1)
    return classifier((pixels - per_channel(MEAN)) / per_channel(STD)).logits


def saturated(denoiser):
    """A denoiser that often leaves the range of pixels, so that a missing clamp shows."""
    other = NIMForPreTraining(denoiser.config)
    other.load_state_dict(denoiser.state_dict())
    with torch.no_grad():
        other.decoder.projection.weight.mul_(8)
    return other.eval()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_sigma_0_is_the_steps_by_hand(denoiser, pixels, kind):
    denoiser = saturated(denoiser)
    model, classifier, processor = defended(denoiser, kind)
    expected = by_hand(denoiser, classifier, processor, normalized(pixels))
    assert expected.std(dim=0).min() > 1e-3, "the pictures must matter"
    torch.testing.assert_close(model(normalized(pixels), sigma=0).logits, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_off_is_the_classifier_itself(denoiser, pixels, kind):
    """With the classifier's own processor outside, where sizes agree and so no resizing differs."""
    model, classifier, _ = defended(denoiser, kind)
    processor = ViTImageProcessor(image_mean=MEAN, image_std=STD, size={"height": 32, "width": 32})
    if kind in ("convnext", "resnet"):
        model = NIMForRobustImageClassification.from_denoiser(denoiser, classifier, processor)
    pictures = (pixels * 255).round().to(torch.uint8)
    expected = classifier(**processor(list(pictures), return_tensors="pt")).logits
    torch.testing.assert_close(model(normalized(pixels), sigma=None).logits, expected, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_smaller_images_are_resized_as_image_processors_do(denoiser, pixels):
    """With antialiasing, up to the rounding to 8 bits that is theirs."""
    classifier, _ = other_classifier("resnet")
    processor = ViTImageProcessor(image_mean=MEAN, image_std=STD, size={"height": 12, "width": 12})
    model = NIMForRobustImageClassification.from_denoiser(denoiser, classifier, processor)
    pictures = (pixels * 255).round().to(torch.uint8)
    expected = processor(list(pictures), return_tensors="pt")["pixel_values"]
    seen = to_classifier_input(normalized(pixels), model.config)
    assert (seen - expected).abs().max() < 1 / 255 / min(STD)
    assert (seen - expected).abs().mean() < 0.5 / 255 / min(STD)


RELOAD = """
import sys, torch
from transformers import AutoModelForImageClassification
import transformers_nim

# As the process that asks: with other threads, sums are rounded otherwise.
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    pixel_values, expected = torch.load(folder + "/expected.pt", weights_only=True)
    for cls in (transformers_nim.NIMForRobustImageClassification, AutoModelForImageClassification):
        model, info = cls.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], info
        logits = model(pixel_values, sigma=40, generator=torch.Generator().manual_seed(0)).logits
        print(torch.equal(logits, expected), [model.config.id2label[i] for i in range(4)], model.training)
"""


def test_one_folder_is_all_that_a_new_process_needs(denoiser, pixels, tmp_path):
    folders = [tmp_path / kind for kind in KINDS]
    for kind, folder in zip(KINDS, folders):
        model, _, _ = defended(denoiser, kind)
        model.save_pretrained(folder)
        logits = model(normalized(pixels), sigma=40, generator=torch.Generator().manual_seed(0)).logits.detach()
        torch.save((normalized(pixels), logits), folder / "expected.pt")
    done = subprocess.run([sys.executable, "-c", RELOAD, *map(str, folders)], capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"True {NAMES} False"] * 2 * len(KINDS), done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_one_folder_holds_both(denoiser, pixels, kind, tmp_path):
    model, classifier, _ = defended(denoiser, kind, defense_sigma=33)
    model.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = NIMForRobustImageClassification.from_pretrained(tmp_path)
    assert loaded.config.defense_sigma == {"type": "constant", "value": 33}
    assert loaded.config.classifier_config["model_type"] == kind
    assert not any(parameter.requires_grad for parameter in loaded.denoiser.parameters())
    assert all(parameter.requires_grad for parameter in loaded.classifier_model.parameters())
    ours = loaded.classifier_model.state_dict()
    assert ours.keys() == classifier.state_dict().keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in classifier.state_dict().items())
    prefixes = {name.split(".")[0] for name in load_file(tmp_path / "model.safetensors")}
    assert prefixes == {"classifier_model", "denoiser"}


def test_shares_nothing_and_draws_nothing(denoiser):
    classifier, processor = other_classifier("resnet")
    state = torch.get_rng_state()
    model = NIMForRobustImageClassification.from_denoiser(denoiser, classifier, processor)
    assert torch.equal(torch.get_rng_state(), state)
    theirs = {tensor.data_ptr() for module in (denoiser, classifier) for tensor in module.state_dict().values()}
    assert not theirs & {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert denoiser.config.classifier_config is None
    assert model.config.num_labels == 4
    assert model.config.label2id == LABELS["label2id"]


def test_parts_of_the_folder(denoiser, pixels, tmp_path):
    """The denoiser alone can be had from it; there is no NIM classifier to be had."""
    model, classifier, processor = defended(denoiser, "vit")
    model.save_pretrained(tmp_path)
    loaded = NIMForPreTraining.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in denoiser.state_dict().items())
    assert loaded.config.classifier_config is None
    for cls in (NIMForImageClassification, AutoModel):
        with pytest.raises(ValueError, match="classifier of this model is a vit"):
            cls.from_pretrained(tmp_path)
    # Another classifier behind the same denoiser, and a new NIM classifier.
    again = NIMForRobustImageClassification.from_denoiser(str(tmp_path), classifier, processor)
    torch.testing.assert_close(
        again(normalized(pixels), sigma=0).logits, model(normalized(pixels), sigma=0).logits, rtol=0, atol=0
    )
    fresh = NIMForRobustImageClassification.from_denoiser(model.denoiser, num_labels=3)
    assert fresh.config.classifier_config is None
    assert fresh.classifier.out_features == 3


def test_pipeline(denoiser, tmp_path):
    model, _, _ = defended(denoiser, "convnext")
    folder = save_with_processor(model, tmp_path)
    pipe = pipeline("image-classification", model=folder, sigma=25, num_samples=4, seed=0)
    answers = pipe(random_picture(0), top_k=4, return_denoised=True)
    assert {answer["label"] for answer in answers} == set(NAMES)
    assert sum(answer["score"] for answer in answers) == pytest.approx(1)
    assert answers[0]["denoised"].size == (32, 32)
    pixel_values = pipe.image_processor(random_picture(0), return_tensors="pt")["pixel_values"]
    off = {answer["label"]: answer["score"] for answer in pipe(random_picture(0), sigma=None)}
    expected = model(pixel_values, sigma=None).logits.softmax(-1)[0]
    assert [off[name] for name in NAMES] == pytest.approx(expected.tolist(), abs=1e-5)


def test_certify(denoiser, pixels):
    pytest.importorskip("scipy")
    model, _, _ = defended(denoiser, "vit")
    options = {"sigma": 63.75, "n0": 4, "n": 24, "alpha": 0.1}
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    certificates = model.certify(normalized(pixels), generator=generators, **options)
    for certificate, image, seed in zip(certificates, normalized(pixels), range(3)):
        noise = torch.stack([torch.empty(3, 32, 32) for _ in range(28)])
        generator = torch.Generator().manual_seed(seed)
        for draw in noise:
            draw.normal_(generator=generator)
        with torch.no_grad():
            votes = model(image.expand(28, -1, -1, -1), sigma=63.75, pixel_noise=noise).logits.argmax(-1)
        if not certificate.abstained:
            assert certificate.label == votes[:4].mode().values
            assert certificate.radius > 0
    assert any(not certificate.abstained for certificate in certificates)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_pixels(denoiser, pixels, kind):
    model, classifier, processor = defended(denoiser, kind)
    attacked = PixelClassifier(model, sigma=0)
    ours, theirs = pixels.clone().requires_grad_(), pixels.clone().requires_grad_()
    nn.functional.cross_entropy(attacked(ours), torch.tensor([0, 1, 2])).backward()
    logits = by_hand(denoiser, classifier, processor, normalized(theirs))
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    assert theirs.grad.abs().max() > 0
    assert (ours.grad - theirs.grad).abs().max() < 1e-3 * theirs.grad.abs().max()
    ours.grad = None
    PixelClassifier(model, sigma=30, num_samples=2)(ours).sum().backward()
    assert ours.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["convnext", "vit"])
def test_white_and_black_pixels_keep_their_gradient(denoiser, kind):
    """An attack on the bare classifier can move every pixel, those at the ends of the range too."""
    model, _, _ = defended(denoiser, kind)
    for value in (0.0, 1.0):
        pixels = torch.full((1, 3, 32, 32), value, requires_grad=True)
        logits = PixelClassifier(model, gradient="classifier")(pixels)
        (gradient,) = torch.autograd.grad(logits[0, 0], pixels)
        assert (gradient != 0).float().mean() > 0.99


def test_loss_and_training(denoiser, pixels):
    model, classifier, _ = defended(denoiser, "resnet")
    labels = torch.tensor([0, 3, 1])
    outputs = model(normalized(pixels), labels=labels, sigma=0)
    torch.testing.assert_close(outputs.loss, nn.functional.cross_entropy(outputs.logits, labels))
    soft = nn.functional.one_hot(labels, 4) * 0.9 + 0.025
    soft_loss = model(normalized(pixels), labels=soft, sigma=0).loss
    torch.testing.assert_close(soft_loss, nn.functional.cross_entropy(outputs.logits, soft))

    # In eval mode nothing has moved; in train mode batch norms and weights of the classifier do, and nothing else.
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert all(torch.equal(before[f"classifier_model.{name}"], t) for name, t in classifier.state_dict().items())
    model.train()
    assert model.classifier_model.training
    assert not model.denoiser.training
    groups = parameter_groups(model, 0.1, 0.05)
    names = {name for group in groups for name in group["parameter_names"]}
    assert names == {f"classifier_model.{name}" for name, _ in classifier.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(normalized(pixels), labels=labels).loss.backward()
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if name.startswith("classifier_model.")}
    with pytest.raises(ValueError, match=r"layer_decay 0\.65.*another kind; pass 1"):
        parameter_groups(model, 0.1, 0.05, layer_decay=0.65)


@pytest.mark.parametrize("kind", ["vit", "timm_wrapper"])
def test_gradient_checkpointing(denoiser, pixels, kind):
    model, _, _ = defended(denoiser, kind)

    def gradients():
        model.zero_grad()
        calls.clear()
        model(normalized(pixels), labels=torch.tensor([0, 1, 2]), sigma=0).loss.backward()
        return [
            parameter.grad.clone() for parameter in model.classifier_model.parameters() if parameter.grad is not None
        ]

    calls: list[int] = []
    # Part of a layer: transformers' checkpoints lie within a layer's own hooks.
    names = ("layers.1.attention", "layer.1.attention", "blocks.1.attn")
    layers = [module for name, module in model.classifier_model.named_modules() if name.endswith(names)]
    layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    model.train()
    plain = gradients()
    assert len(calls) == 1
    # Not by its older name, of which newer releases warn.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable()
    checkpointed = gradients()
    assert len(calls) == 2, "the layer must have been computed once more on the way back"
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one, other)


def test_no_gradient_checkpointing_where_the_classifier_has_none(denoiser):
    model, _, _ = defended(denoiser, "convnext")
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    with pytest.raises(ValueError, match="does not support"):
        enable()


def test_dtypes(denoiser, pixels, tmp_path):
    model, _, _ = defended(denoiser, "swin")
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float32):
        loaded = NIMForRobustImageClassification.from_pretrained(tmp_path, dtype=dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
        assert loaded(normalized(pixels).to(dtype), sigma=20).logits.isfinite().all()
    assert NIMForRobustImageClassification.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_hidden_states_and_draws(denoiser, pixels):
    model, _, _ = defended(denoiser, "convnext")
    outputs = model(normalized(pixels), sigma=20, num_samples=2, output_hidden_states=True, output_draws=True)
    assert outputs.draw_logits.shape == (3, 2, 4)
    assert outputs.attentions is None
    seen = outputs.denoised_pixel_values.flatten(0, 1)
    expected = model(seen, sigma=None, output_hidden_states=True)
    for ours, theirs in zip(outputs.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs)
    vit, _, _ = defended(denoiser, "vit")
    vit = NIMForRobustImageClassification.from_pretrained(
        None, config=vit.config, state_dict=vit.state_dict(), attn_implementation="eager"
    )
    assert vit.classifier_model.config._attn_implementation == "eager"
    attentions = vit(normalized(pixels), sigma=20, num_samples=2, output_attentions=True).attentions
    assert [tuple(layer.shape) for layer in attentions] == [(6, 2, 17, 17)] * 2


def test_images_of_other_sizes(denoiser):
    model, _, _ = defended(denoiser, "vit")
    larger = torch.randn(1, 3, 48, 40)
    for sigma in (None, 10):
        with pytest.raises(ValueError, match="takes images of 32x32 pixels, got 48x40"):
            model(larger, sigma=sigma)
        assert model(larger, sigma=sigma, interpolate_pos_encoding=True).logits.shape == (1, 4)


def test_new_head(denoiser, tmp_path):
    """Labels are those of the outer config, also for a classifier that is to learn others."""
    model, _, _ = defended(denoiser, "vit")
    model.save_pretrained(tmp_path)
    other = NIMForRobustImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert other.classifier_model.classifier.out_features == 7
    assert other.classifier_model.config.num_labels == 7
    layer = "vit.embeddings.patch_embeddings.projection.weight"
    assert torch.equal(other.classifier_model.state_dict()[layer], model.classifier_model.state_dict()[layer])


def test_the_class_is_kept_where_a_config_has_several(denoiser, tmp_path):
    config = DeiTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, **LABELS
    )  # fmt: skip
    for cls in (DeiTForImageClassification, DeiTForImageClassificationWithTeacher):
        model = NIMForRobustImageClassification.from_denoiser(denoiser, cls(config), SAME_SIZE)
        model.save_pretrained(tmp_path)
        assert type(NIMForRobustImageClassification.from_pretrained(tmp_path).classifier_model) is cls


# Where classifiers come from.


@pytest.mark.parametrize("kind", KINDS)
def test_classifier_from_a_folder(denoiser, pixels, kind, tmp_path):
    """A folder on the Hub holds the image processor too; timm's is in its config."""
    classifier, processor = other_classifier(kind)
    if kind == "timm_wrapper":
        classifier.config.pretrained_cfg = {
            "input_size": [3, 32, 32], "mean": MEAN, "std": STD, "interpolation": "bicubic", "crop_pct": 0.9,
        }  # fmt: skip
    else:
        processor.save_pretrained(tmp_path)
    classifier.save_pretrained(tmp_path)
    expected = NIMForRobustImageClassification.from_denoiser(denoiser, classifier, processor)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    denoiser.save_pretrained(tmp_path / "denoiser")
    for given in (str(tmp_path), tmp_path, loaded):
        model = NIMForRobustImageClassification.from_denoiser(str(tmp_path / "denoiser"), given)
        assert model.config.classifier_input["size"] == expected.config.classifier_input["size"]
        torch.testing.assert_close(
            model(normalized(pixels), sigma=0).logits, expected(normalized(pixels), sigma=0).logits, rtol=0, atol=1e-6
        )
    assert [model.config.id2label[index] for index in range(4)] == NAMES


def test_timm_model(denoiser, pixels):
    timm = pytest.importorskip("timm")
    for arguments in ({"img_size": 32}, {"img_size": 32, "patch_size": 8}):
        theirs = timm.create_model("test_vit", num_classes=4, **arguments).train()
        if "patch_size" in arguments:
            with pytest.raises(ValueError, match="TimmWrapperForImageClassification instead"):
                NIMForRobustImageClassification.from_denoiser(denoiser, theirs)
            continue
        model = NIMForRobustImageClassification.from_denoiser(denoiser, theirs)
        assert theirs.training
        mean, std = theirs.pretrained_cfg["mean"], theirs.pretrained_cfg["std"]
        assert model.config.classifier_input["image_mean"] == list(mean)
        expected = theirs.eval()(normalized(pixels, mean, std))
        torch.testing.assert_close(model(normalized(pixels), sigma=None).logits, expected, rtol=0, atol=TOLERANCE)
    with pytest.raises(ValueError, match="no classification head"):
        NIMForRobustImageClassification.from_denoiser(denoiser, timm.create_model("test_vit", num_classes=0))


def test_what_is_no_classifier(denoiser, tmp_path):
    vit, _ = other_classifier("vit")
    for wrong in (nn.Linear(2, 2), denoiser, vit.vit, 3):
        with pytest.raises(ValueError, match=f"got a {type(wrong).__name__}"):
            NIMForRobustImageClassification.from_denoiser(denoiser, wrong, SAME_SIZE)
    ViTModel(vit.config).save_pretrained(tmp_path)
    SAME_SIZE.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no trained image classifier.*classifier\.bias"):
        NIMForRobustImageClassification.from_denoiser(denoiser, tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        NIMForRobustImageClassification.from_denoiser(denoiser, str(tmp_path / "nowhere"))
    multi_label, _ = other_classifier("vit", problem_type="multi_label_classification")
    with pytest.raises(ValueError, match="problem_type='multi_label_classification'"):
        NIMForRobustImageClassification.from_denoiser(denoiser, multi_label, SAME_SIZE)


def test_code_of_a_checkpoint_is_not_run(denoiser, tmp_path):
    vit, _ = other_classifier("vit")
    vit.save_pretrained(tmp_path)
    SAME_SIZE.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "something_new"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        NIMForRobustImageClassification.from_denoiser(denoiser, tmp_path)
    assert not (tmp_path / "executed").exists()


def test_what_does_not_fit(denoiser):
    grey, _ = other_classifier("vit", num_channels=1)
    with pytest.raises(ValueError, match="images have 3 channels, the classifier's 1"):
        NIMForRobustImageClassification.from_denoiser(denoiser, grey, SAME_SIZE)
    vit, _ = other_classifier("vit")
    with pytest.raises(ValueError, match="Pass classifier_image_processor="):
        NIMForRobustImageClassification.from_denoiser(denoiser, vit)
    with pytest.raises(ValueError, match=r"\(vit\) cannot take images of size \[48, 48\]"):
        NIMForRobustImageClassification.from_denoiser(denoiser, vit, LARGER)
    with pytest.raises(ValueError, match="weights do not fit"):
        NIMForRobustImageClassification.from_denoiser(denoiser, vit, SAME_SIZE, num_labels=3)
    with pytest.raises(ValueError, match="no field 'defence_sigma'"):
        NIMForRobustImageClassification.from_denoiser(denoiser, vit, SAME_SIZE, defence_sigma=3)


def test_normalization_of_the_config(denoiser, pixels):
    """Some configs hold it themselves, and then no image processor is needed."""
    vit, _ = other_classifier("vit")
    expected = NIMForRobustImageClassification.from_denoiser(denoiser, vit, SAME_SIZE)
    vit.config.image_mean, vit.config.image_std = MEAN, STD
    model = NIMForRobustImageClassification.from_denoiser(denoiser, vit)
    assert model.config.classifier_input == expected.config.classifier_input | {"resample": "bicubic"}


# Image processors.


def test_measured_image_processors():
    config = tiny_config()
    plain = {"image_mean": MEAN, "image_std": STD, "size": [32, 32], "resample": "bilinear", "bgr": False}
    assert measure_image_processor(SAME_SIZE, config) == plain
    assert measure_image_processor(LARGER, config) == plain | {"size": [48, 48], "resample": "bicubic"}
    without = ViTImageProcessor(do_normalize=False, size={"height": 32, "width": 32})
    found = measure_image_processor(without, config)
    np.testing.assert_allclose([found["image_mean"], found["image_std"]], [[0] * 3, [1] * 3], atol=1e-6)
    # From -1 to 1 by a factor of its own.
    halves = ViTImageProcessor(
        rescale_factor=1 / 127.5, image_mean=[1] * 3, image_std=[1] * 3, size={"height": 8, "width": 16}
    )
    found = measure_image_processor(halves, config)
    np.testing.assert_allclose([found["image_mean"], found["image_std"]], [[0.5] * 3, [0.5] * 3], atol=1e-6)
    assert found["size"] == [8, 16]
    # Normalizes twice.
    twice = EfficientNetImageProcessor(image_mean=MEAN, image_std=STD, size={"height": 32, "width": 32})
    found = measure_image_processor(twice, config)
    np.testing.assert_allclose(found["image_mean"], MEAN, atol=1e-6)
    np.testing.assert_allclose(found["image_std"], np.square(STD), atol=1e-6)
    grey = ViTImageProcessor(image_mean=[0.5], image_std=[0.25], size={"height": 32, "width": 32})
    assert measure_image_processor(grey, tiny_config(num_channels=1))["image_std"] == [0.25]


def test_blue_before_red(denoiser, pixels):
    classifier, _ = other_classifier("vit")
    processor = MobileViTImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    model = NIMForRobustImageClassification.from_denoiser(denoiser, classifier, processor)
    pictures = (pixels.detach() * 255).round().to(torch.uint8)
    expected = classifier(**processor(list(pictures), return_tensors="pt")).logits
    torch.testing.assert_close(model(normalized(pixels), sigma=None).logits, expected, rtol=0, atol=TOLERANCE)


def test_image_processors_that_cannot_be_reproduced(denoiser):
    vit, _ = other_classifier("vit")
    sizes = {"size": {"height": 32, "width": 32}}
    pads = ViTImageProcessor(
        image_mean=MEAN, image_std=STD, do_resize=False, do_center_crop=True, crop_size={"height": 48, "width": 48}
    )

    def gamma(picture, return_tensors):
        values = (np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 255) ** 2
        return {"pixel_values": torch.from_numpy(values)}

    def grey(picture, return_tensors):
        values = np.asarray(picture.convert("L").convert("RGB"), np.float32).transpose(2, 0, 1)[None] / 255
        return {"pixel_values": torch.from_numpy(values)}

    for processor, message in (
        (pads, "pads or adds"),
        (gamma, "no scale and shift"),
        (grey, "mixes colors"),
        (ViTImageProcessor(image_mean=[0.5], image_std=[0.5, 0.1], **sizes), "cannot process"),
        (lambda picture, return_tensors: {"pixel_values": torch.zeros(1, 1, 32, 32)}, r"of shape \(1, 1, 32, 32\)"),
    ):
        with pytest.raises(ValueError, match=message):
            NIMForRobustImageClassification.from_denoiser(denoiser, vit, processor)


# The config.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier_input": None}, "belong together"),
        ({"classifier_config": None}, "belong together"),
        ({"classifier_config": {}}, "model_type"),
        ({"classifier_config": {"model_type": "vit", "hidden_size": 10**9}}, r"classifier_config.hidden_size must be"),
        (
            {"classifier_config": {"model_type": "vit", "num_hidden_layers": 10**6}},
            "num_hidden_layers must be at most",
        ),
        ({"classifier_config": {"model_type": "resnet", "depths": [3, 10**6]}}, "classifier_config.depths must be at"),
        (
            {"classifier_config": {"model_type": "clip", "vision_config": {"embed_dim": 10**9}}},
            "vision_config.embed_dim",
        ),
        ({"classifier_config": {"model_type": "vit", "hidden_size": 2**16, "num_hidden_layers": 999}}, "parameters"),
        ({"image_mean": [0.5]}, "classifier_input: image_mean must have one value for each of 3 channels"),
        ({"image_std": [0.5, 0.5, 0]}, "classifier_input: image_std must be finite and positive"),
        ({"size": [32]}, "size must be two positive ints"),
        ({"size": [32, 0]}, "size must be two positive ints"),
        ({"resample": "nearest"}, 'resample must be "bilinear" or "bicubic"'),
        ({"bgr": 1}, "bgr must be"),
        ({"crop": 1}, "classifier_input must have"),
    ],
)
def test_wrong_configs(change, message):
    given = {"image_mean": MEAN, "image_std": STD, "size": [32, 32], "resample": "bicubic", "bgr": False}
    fields = {"classifier_config": {"model_type": "vit"}, "classifier_input": given}
    for name, value in change.items():
        if name in fields:
            fields[name] = value
        else:
            given[name] = value
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)


def test_classifiers_that_this_release_does_not_know(denoiser):
    model, _, _ = defended(denoiser, "vit")
    model.config.classifier_config["model_type"] = "made_up"
    with pytest.raises(ValueError, match="no models of type 'made_up'"):
        NIMForRobustImageClassification(model.config)


def test_nim_classifiers_stay_as_they_are(denoiser):
    plain = tiny_model(NIMForImageClassification)
    model = NIMForRobustImageClassification.from_denoiser(denoiser, plain)
    assert model.config.classifier_config is None
    assert torch.equal(model.classifier.weight, plain.classifier.weight)
    other, _, _ = defended(denoiser, "vit")
    with pytest.raises(ValueError, match="whose classifier_model it is"):
        NIMForRobustImageClassification.from_denoiser(denoiser, other)
    assert isinstance(other.classifier_model, ViTForImageClassification)


def test_lost_statistics_of_batch_normalization_are_noticed(tmp_path):
    classifier, processor = other_classifier("resnet")
    classifier.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = {name: tensor for name, tensor in weights.items() if "running_var" not in name}
    save_file(lost, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has no weights for .*running_var"):
        load_classifier(tmp_path)


def test_nothing_is_certified_while_a_part_is_in_train_mode(denoiser):
    classifier, processor = other_classifier("resnet")
    model = NIMForRobustImageClassification.from_denoiser(denoiser, classifier, processor)
    pixel_values = torch.zeros(1, 3, *model.config.image_shape)
    assert len(model.certify(pixel_values, 25, n0=5, n=10)) == 1
    model.classifier_model.train()
    with pytest.raises(ValueError, match="train mode"):
        model.certify(pixel_values, 25, n0=5, n=10)


def test_the_image_processor_is_that_of_the_classifiers_commit(denoiser, monkeypatch):
    classifier, processor = other_classifier("convnext")
    classifier.config.name_or_path, classifier.config._commit_hash = "name/classifier", "abc123"
    asked = []

    def from_pretrained(name, **kwargs):
        asked.append((name, kwargs))
        return processor

    monkeypatch.setattr(external_classifier_nim.AutoImageProcessor, "from_pretrained", from_pretrained)
    NIMForRobustImageClassification.from_denoiser(denoiser, classifier)
    assert asked == [("name/classifier", {"revision": "abc123", "trust_remote_code": False})]


def test_another_way_of_resizing_is_told(denoiser, caplog, monkeypatch):
    # transformers' loggers do not reach the root by themselves.
    monkeypatch.setattr(logging.getLogger(external_classifier_nim.logger.name.split(".")[0]), "propagate", True)
    processor = ViTImageProcessor(image_mean=MEAN, image_std=STD, size={"height": 32, "width": 32}, resample=0)
    given = measure_image_processor(processor, denoiser.config)
    assert given["resample"] == "bicubic"
    assert "denoised ones will be by bicubic" in caplog.text


def test_command_line(denoiser, tmp_path):
    classifier, processor = other_classifier("vit")
    for part, folder in ((classifier, "vit"), (processor, "vit"), (denoiser, "nim")):
        part.save_pretrained(tmp_path / folder)
    arguments = ["--classifier", str(tmp_path / "vit"), "--output_dir", str(tmp_path / "de3")]
    conversion.main(["--denoiser", str(tmp_path / "nim"), *arguments])
    model = NIMForRobustImageClassification.from_pretrained(tmp_path / "de3")
    pixel_values = torch.randn(2, 3, *model.config.image_shape)
    with torch.no_grad():
        expected = by_hand(denoiser, classifier, processor, pixel_values)
        assert torch.allclose(model(pixel_values, sigma=0).logits, expected, atol=1e-5)
    with pytest.raises(SystemExit):
        conversion.main(arguments)
