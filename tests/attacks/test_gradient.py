# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from conftest import tiny_model

from transformers_nim import NIMForImageClassification
from transformers_nim.attacks import PixelClassifier, eot_pgd


class TestAdapter:
    def test_normalizes_and_passes_arguments_on(self, robust_model):
        pixels = torch.rand(2, 3, 32, 32)
        classifier = PixelClassifier(robust_model, sigma=None)
        mean = torch.tensor(robust_model.config.image_mean)[:, None, None]
        std = torch.tensor(robust_model.config.image_std)[:, None, None]
        expected = robust_model((pixels - mean) / std, sigma=None).logits
        torch.testing.assert_close(classifier(pixels), expected)

    def test_leaves_the_model_as_it_is(self):
        model = tiny_model()
        classifier = PixelClassifier(model)
        classifier.train().to(torch.float64)
        assert not model.training
        assert model.dtype == torch.float32
        assert not list(classifier.parameters())

    def test_unknown_normalization(self, robust_model):
        other = torch.nn.Identity().eval()
        other.config = type("Config", (), {})()
        with pytest.raises(ValueError, match="config of Identity does not hold the normalization"):
            PixelClassifier(other)
        assert PixelClassifier(other, image_mean=[0.5], image_std=[0.5]).normalize(torch.ones(1, 1, 1, 1)) == 1

    def test_what_would_measure_another_model_is_refused(self, robust_model):
        """transformers models swallow unknown arguments."""
        for wrong in ({"simga": 0}, {"generator": torch.Generator()}):
            with pytest.raises(ValueError, match=r"simga|generator"):
                PixelClassifier(robust_model, **wrong)
        with pytest.raises(ValueError, match=r"\['sigma'\]"):
            PixelClassifier(tiny_model(NIMForImageClassification), sigma=70)
        with pytest.raises(ValueError, match="train mode"):
            PixelClassifier(tiny_model().train())


class TestEOTPGD:
    def linear(self, classes=3, size=4):
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(classes, 3 * size * size, generator=generator)
        return weight, lambda pixels: pixels.flatten(1) @ weight.T

    def test_finds_the_optimum_of_a_linear_classifier(self):
        """Two classes: the worst point of the ball is the corner against the gradient, cut at [0, 1]."""
        weight, classifier = self.linear(classes=2)
        torch.manual_seed(1)
        pixels, labels, eps = torch.rand(8, 3, 4, 4), torch.arange(8) % 2, 0.1
        direction = (weight[1 - labels] - weight[labels]).sign().view(8, 3, 4, 4)
        best = (pixels + eps * direction).clamp(0, 1)
        adversarial = eot_pgd(classifier, pixels, labels, eps, steps=20, num_draws=1)
        torch.testing.assert_close(adversarial, best, atol=1e-6, rtol=0)

    def test_averages_over_noise(self):
        """The noise of each draw turns the gradient's sign half of the time; its mean does not."""
        weight, _ = self.linear(classes=2)

        def noisy(pixels):
            sign_flips = 4 * torch.randn(len(pixels), 1)
            return pixels.flatten(1) @ weight.T * (1 + sign_flips)

        torch.manual_seed(1)
        # A point on the decision boundary, where the loss is as steep in every draw.
        gap = weight[1] - weight[0]
        pixels = torch.full((16, 3, 4, 4), 0.5)
        pixels -= ((pixels.flatten(1) @ gap) / gap.square().sum())[:, None, None, None] * gap.view(3, 4, 4)
        labels, eps = torch.zeros(16, dtype=torch.long), 0.02
        margins = {}
        for draws in (1, 200):
            adversarial = eot_pgd(noisy, pixels, labels, eps, steps=10, num_draws=draws, batch_size=4000)
            margins[draws] = (adversarial.flatten(1) @ gap).mean() / (eps * gap.abs().sum())
        assert margins[200] > margins[1] + 0.2

    @pytest.mark.parametrize("num_draws", [1, 3])
    @pytest.mark.parametrize("keep_best", [True, False])
    def test_stays_in_the_ball_and_in_range(self, robust_model, num_draws, keep_best):
        torch.manual_seed(0)
        pixels = torch.rand(5, 3, 32, 32).round()  # many pixels at the border of the range
        labels = torch.tensor([0, 1, 2, 3, 4])
        for eps in (0.0, 8 / 255, 1.0):
            adversarial = eot_pgd(
                PixelClassifier(robust_model, sigma=30),
                pixels,
                labels,
                eps,
                3,
                num_draws=num_draws,
                keep_best=keep_best,
            )
            assert (adversarial - pixels).abs().max() <= eps + 1e-6
            assert adversarial.min() >= 0
            assert adversarial.max() <= 1

    def test_raises_the_loss_of_the_whole_defense(self, robust_model):
        torch.manual_seed(0)
        pixels = torch.rand(6, 3, 32, 32)
        classifier = PixelClassifier(robust_model, sigma=20, num_samples=16)
        labels = classifier(pixels).argmax(-1)
        adversarial = eot_pgd(PixelClassifier(robust_model, sigma=20), pixels, labels, 16 / 255, 15, num_draws=8)
        noise = pixels + torch.empty_like(pixels).uniform_(-1, 1).sign() * 16 / 255

        def loss(images):
            return torch.nn.functional.cross_entropy(classifier(images.clamp(0, 1)), labels)

        assert loss(adversarial) > loss(noise) + 0.5

    def test_repeatable_without_touching_the_global_state(self, robust_model):
        pixels, labels = torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 2])
        state = torch.get_rng_state()
        attacks = [
            eot_pgd(PixelClassifier(robust_model, sigma=30), pixels, labels, 0.1, 2, num_draws=2, seed=seed)
            for seed in (4, 4, 5)
        ]
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(attacks[0], attacks[1])
        assert not torch.equal(attacks[0], attacks[2])

    def test_needs_no_gradients_of_parameters(self, robust_model):
        labels = torch.tensor([0])
        eot_pgd(PixelClassifier(robust_model, sigma=30), torch.rand(1, 3, 32, 32), labels, 0.1, 1, num_draws=1)
        assert all(parameter.grad is None for parameter in robust_model.parameters())

    def test_wrong_arguments(self, robust_model):
        pixels, labels = torch.rand(1, 3, 32, 32), torch.tensor([0])
        for wrong in ({"eps": -0.1}, {"eps": 0.1, "steps": 0}, {"eps": 0.1, "num_draws": 0}):
            with pytest.raises(ValueError, match="need eps >= 0"):
                eot_pgd(PixelClassifier(robust_model), pixels, labels, **wrong)
        with pytest.raises(ValueError, match=r"pixels must lie in \[0, 1\], got 2.000 to 2.000"):
            eot_pgd(PixelClassifier(robust_model), torch.full_like(pixels, 2), labels, 0.1)
