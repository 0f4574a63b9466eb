# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from conftest import tiny_model
from toys import Linear, share_right

from transformers_nim.attacks import EOTPGD, LowFrequency, PatchStatistics, PixelClassifier, Vote, image_generators
from transformers_nim.attacks.adaptive import LowFrequencyFamily, PatchFamily
from transformers_nim.attacks.geometry import perturbation_norm


def families(norm):
    clean = torch.rand(3, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    clean[1, :, :4, :6] = 0.3  # a patch of one color
    return clean, [PatchFamily(clean, norm, (4, 6)), LowFrequencyFamily(clean, norm, 3)]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_families_are_linear_and_fill_the_ball(norm):
    clean, made = families(norm)
    for family in made:
        a, b = torch.randn(2, 3, *family.shape, generator=torch.Generator().manual_seed(1))
        both = family.perturbation(2 * a - b)
        torch.testing.assert_close(both, 2 * family.perturbation(a) - family.perturbation(b), atol=1e-4, rtol=1e-4)
        assert both.shape == clean.shape
        projected = family.project(4 * a)
        size = perturbation_norm(family.perturbation(projected), norm)
        assert (size <= 1 + 1e-5).all()
        assert (size > 0.5).all()
        torch.testing.assert_close(family.project(projected), projected, atol=1e-5, rtol=1e-5)


def test_only_brightness_and_contrast_of_patches_change():
    model = tiny_model()  # patches of 8 pixels
    pixels = 0.3 + 0.4 * torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for norm, eps in (("Linf", 0.1), ("L2", 1.0)):
        attack = PatchStatistics(steps=5, num_draws=2, restarts=1)
        adversarial = attack(PixelClassifier(model, sigma=10), pixels, torch.tensor([0, 1]), norm=norm, eps=eps)
        patches, changed = (
            images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3)
            for images in (pixels, adversarial)
        )
        a = changed.std(dim=-1, keepdim=True) / patches.std(dim=-1, keepdim=True)
        expected = a * (patches - patches.mean(dim=-1, keepdim=True)) + changed.mean(dim=-1, keepdim=True)
        torch.testing.assert_close(changed, expected, atol=1e-4, rtol=0)
        assert (a - 1).abs().max() > 0.02
        assert (changed.mean(dim=-1) - patches.mean(dim=-1)).abs().max() > 0.02


def test_patch_statistics_find_the_best_brightness():
    """The logits are the brightness of patches, so the optimum changes it by eps."""

    class Bright:
        is_deterministic, patch_shape = True, (2, 2)

        def __call__(self, pixels):
            total = pixels[:, :, :2].sum(dim=(1, 2, 3)) - pixels[:, :, 2:].sum(dim=(1, 2, 3))
            return torch.stack([-total, total], dim=1)

    pixels = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) / 2 + 0.25
    adversarial = PatchStatistics(restarts=1)(Bright(), pixels, torch.tensor([0, 1]), eps=0.1)
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0])[None, None, :, None] * torch.tensor([1.0, -1.0])[:, None, None, None]
    torch.testing.assert_close(adversarial, pixels + 0.1 * sign.expand_as(pixels), atol=3e-3, rtol=0)


def test_low_frequency_finds_the_best_smooth_perturbation():
    class Bright:
        is_deterministic = True

        def __call__(self, pixels):
            # A checkerboard, which no smooth perturbation can follow, and a slope, which one can.
            slope = torch.linspace(-1, 1, 8)
            checkers = 20 * (-1.0) ** torch.arange(8)
            total = (pixels.mean(dim=(1, 2)) * (slope + checkers)).sum(dim=-1)
            return torch.stack([-total, total], dim=1)

    pixels, labels = torch.full((1, 1, 8, 8), 0.5), torch.tensor([0])
    options = {"restarts": 1, "losses": ("margin",)}
    smooth = LowFrequency(resolution=2, **options)(Bright(), pixels, labels, eps=0.1) - pixels
    # A perturbation of two columns is a ramp: its second differences vanish between their centers.
    assert smooth[..., 2:6].diff(n=2, dim=-1).abs().max() < 1e-6
    assert smooth.abs().max() > 0.099
    free = EOTPGD(**options)(Bright(), pixels, labels, eps=0.1) - pixels
    assert torch.equal(free[0, 0, 0].sign(), (-1.0) ** torch.arange(8))


def test_statistics_of_patches_bypass_the_noise():
    """Attacking them works even under noise that hides all else."""
    pixels = 0.3 + 0.4 * torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    falls = {}
    for statistics in ("input", "noisy"):
        classifier = PixelClassifier(tiny_model(norm_pix_loss=True, patch_statistics=statistics), sigma=5000)
        with torch.no_grad():
            draws = classifier.draw_logits(pixels, 32, image_generators(range(6), "labels"))
        labels = draws.softmax(dim=-1).mean(dim=1).argmax(dim=-1)
        attack = PatchStatistics(steps=10, num_draws=4, restarts=1, losses=("ce",))
        adversarial = attack(classifier, pixels, labels, eps=0.1)
        falls[statistics] = share_right(classifier, pixels, labels, 32) - share_right(
            classifier, adversarial, labels, 32
        )
    assert falls["input"] > falls["noisy"] + 0.3, falls


def test_the_vote_attack_turns_votes():
    """The mean loss is spent on draws that are wrong already; the others decide the vote."""

    class Split:
        def draw_logits(self, pixels, num_draws, generators):
            first, second = pixels[:, 0, 0, 0], pixels[:, 0, 0, 1]
            # 45 % of the draws are wrong by far and can be made worse; the others are just right.
            far = torch.stack([-20 - 40 * (first - 0.5), 20 + 40 * (first - 0.5)], dim=1)
            near = torch.stack([2 - 30 * (second - 0.5), -2 + 30 * (second - 0.5)], dim=1)
            both = near + 30 * (first - 0.5)[:, None] * torch.tensor([1.0, -1.0])
            kind = torch.arange(num_draws)[None, :, None] < 0.45 * num_draws
            return torch.where(kind, far[:, None], both[:, None])

    pixels, labels = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
    attacks = Vote(restarts=1, steps=20), EOTPGD(losses=("margin",), restarts=1, steps=20)
    by_vote, by_mean = (attack(Split(), pixels, labels, eps=0.1, seeds=[0]) for attack in attacks)

    def votes(images):
        return Split().draw_logits(images, 20, None).softmax(dim=-1).mean(dim=1)[0, 1]

    assert votes(by_vote) > 0.9
    assert votes(by_mean) < 0.6


def test_wrong_arguments():
    pixels, labels = torch.rand(1, 3, 4, 4), torch.tensor([0])
    with pytest.raises(ValueError, match="does not tell the size of its patches"):
        PatchStatistics()(Linear(), pixels, labels, eps=0.1)
    with pytest.raises(ValueError, match=r"patch_size \(3, 3\) must divide"):
        PatchStatistics(patch_size=3)(Linear(), pixels, labels, eps=0.1)
    for size in (0, (2, 0), (2, 1.5)):
        with pytest.raises(ValueError, match="of patch_size must be an int of at least 1"):
            PatchStatistics(patch_size=size)
    with pytest.raises(ValueError, match="resolution must be an int of at least 1, got 0"):
        LowFrequency(resolution=0)
    with pytest.raises(ValueError, match="resolution 5 must be at most"):
        LowFrequency(resolution=5)(Linear(), pixels, labels, eps=0.1)
    attack = PatchStatistics(patch_size=(2, 4), steps=1)
    assert attack(Linear(), pixels, labels, eps=0.1).shape == pixels.shape
