# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What the models promise beyond what transformers' own tests look at."""

import copy
import math

import pytest
import torch
from conftest import tiny_config, tiny_model
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification
from transformers.modeling_layers import GradientCheckpointingLayer

from transformers_nim import (
    GammaSigma,
    NIMConfig,
    NIMForImageClassification,
    NIMForPreTraining,
    NIMForRobustImageClassification,
    NIMModel,
    UniformSigma,
)
from transformers_nim.model.layers_nim import resize_position_embeddings, sincos_position_embeddings
from transformers_nim.model.outputs_nim import answers, combine_draws


def images(batch=3, channels=3, height=32, width=32, seed=0):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def denoiser():
    torch.manual_seed(0)
    return NIMForPreTraining(tiny_config()).eval()


class TestBlocks:
    def test_position_embeddings_by_the_formula(self):
        """[sin of column | cos of column | sin of row | cos of row], frequencies 10000^(-4i/width); CLS is zero."""
        table = sincos_position_embeddings(8, (2, 3))
        assert table.shape == (1, 7, 8)
        assert table[0, 0].abs().sum() == 0
        row, column = 1, 2
        expected = [f(p * w) for p in (column, row) for f in (math.sin, math.cos) for w in (1, 0.01)]
        torch.testing.assert_close(table[0, 1 + row * 3 + column], torch.tensor(expected))

    def test_interpolated_positions_keep_order_and_ends(self):
        table = sincos_position_embeddings(32, (4, 4))
        assert resize_position_embeddings(table, (4, 4), (4, 4)) is table
        larger = resize_position_embeddings(table, (4, 4), (8, 6))
        assert larger.shape == (1, 49, 32)
        torch.testing.assert_close(larger[:, 0], table[:, 0])
        # Rows of the new grid still differ in the row part alone, columns in the column part.
        grid = larger[0, 1:].unflatten(0, (8, 6))
        torch.testing.assert_close(grid[0, :, :16], grid[7, :, :16], atol=1e-5, rtol=0)
        torch.testing.assert_close(grid[:, 0, 16:], grid[:, 5, 16:], atol=1e-5, rtol=0)

    def test_initialization(self):
        torch.manual_seed(0)
        model = NIMForRobustImageClassification(tiny_config(hidden_size=64, num_labels=10))
        layer = model.denoiser.nim.layers[0]
        fused_bound, bound = math.sqrt(6 / (64 + 3 * 64)), math.sqrt(6 / (64 + 64))
        assert 0.95 * fused_bound < layer.attention.q_proj.weight.abs().max() <= fused_bound
        assert 0.95 * bound < layer.attention.o_proj.weight.abs().max() <= bound
        patches = model.nim.embeddings.patch_embeddings.projection.weight
        assert 0.95 < patches.abs().max() / math.sqrt(6 / (3 * 8 * 8 + 64)) <= 1
        assert model.classifier.weight.std() < 3e-5
        assert model.classifier.bias.abs().max() == 0

    def test_patches_are_in_the_order_row_column_channel(self, denoiser):
        pixels = images(2)
        patches = denoiser._patchify(pixels)
        assert patches.shape == (2, 16, 192)
        assert patches[1, 6, 3 * (2 * 8 + 5) + 1] == pixels[1, 1, 8 + 2, 16 + 5]
        assert torch.equal(denoiser._unpatchify(patches, (4, 4)), pixels)

    def test_drop_path_belongs_to_classifiers(self):
        config = tiny_config(drop_path_rate=0.5, num_hidden_layers=3)
        rates = [layer.drop_path.rate for layer in NIMForImageClassification(config).nim.layers]
        assert rates == [0, 0.25, 0.5]
        robust = NIMForRobustImageClassification(config)
        assert all(layer.drop_path.rate == 0 for layer in robust.denoiser.nim.layers)
        drop = robust.nim.layers[-1].drop_path.train()
        dropped = drop(torch.ones(2000, 1, 1))
        assert set(dropped.unique().tolist()) == {0, 2}
        assert abs(dropped.mean().item() - 1) < 0.1


class TestPreTraining:
    def test_loss_is_the_mean_over_all_patches(self, denoiser):
        pixels, noise = images(), images(seed=1)
        outputs = denoiser(pixels, sigma=50, pixel_noise=noise)
        expected = (outputs.logits - denoiser._patchify(pixels)).pow(2).mean()
        torch.testing.assert_close(outputs.loss, expected)
        torch.testing.assert_close(outputs.denoised_pixel_values, denoiser._unpatchify(outputs.logits, (4, 4)))
        std = torch.tensor(denoiser.config.image_std)[:, None, None]
        torch.testing.assert_close(outputs.noisy_pixel_values, pixels + noise * 50 / 255 / std)
        assert denoiser(pixels, sigma=50, pixel_noise=noise, return_loss=False).loss is None

    def test_normalized_patches_as_target(self):
        model = NIMForPreTraining(tiny_config(norm_pix_loss=True))
        pixels = images()
        outputs = model(pixels, sigma=50, pixel_noise=images(seed=1))
        patches = model._patchify(pixels)
        target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(outputs.loss, F.mse_loss(outputs.logits, target))

    def test_sigma_comes_from_the_config(self, denoiser):
        torch.manual_seed(0)
        sigma = torch.cat([denoiser(images(64)).sigma for _ in range(8)])
        assert abs(sigma.mean().item() - 75) < 3
        assert abs(sigma.std().item() - 15) < 2

    @pytest.mark.parametrize(
        "sigma",
        [30, 30.0, torch.tensor([10.0, 20, 30]), [10, 20, 30], UniformSigma(5, 6), {"type": "constant", "value": 4}],
    )
    def test_forms_of_sigma(self, denoiser, sigma):
        outputs = denoiser(images(), sigma=sigma, generator=generator())
        assert outputs.sigma.shape == (3,)
        if isinstance(sigma, (int, float)):
            assert outputs.sigma.tolist() == [sigma] * 3
        if isinstance(sigma, (list, torch.Tensor)):
            assert outputs.sigma.tolist() == [10, 20, 30]

    @pytest.mark.parametrize("sigma", [-1, float("nan"), [1, 2], torch.tensor([-1.0, 0, 1]), "strong", None, {}])
    def test_wrong_sigma(self, denoiser, sigma):
        with pytest.raises(ValueError, match="sigma"):
            denoiser(images(), sigma=sigma)
        if sigma is not None:
            with pytest.raises(ValueError, match="sigma"):
                NIMForRobustImageClassification(tiny_config())(images(), sigma=sigma)

    def test_denoise_is_clamped_to_pixels(self, denoiser):
        pixels = 4 * images()
        noise = images(seed=1)
        denoised = denoiser.denoise(pixels, 60, pixel_noise=noise)
        mean, std = (torch.tensor(v)[:, None, None] for v in (denoiser.config.image_mean, denoiser.config.image_std))
        values = denoised * std + mean
        assert values.min() >= -1e-6
        assert values.max() <= 1 + 1e-6
        unclamped = denoiser(pixels, sigma=60, pixel_noise=noise).denoised_pixel_values
        torch.testing.assert_close(values, (unclamped * std + mean).clamp(0, 1))

    def test_it_learns_to_denoise(self):
        """On smooth images a few steps must beat leaving the noise in."""
        torch.manual_seed(0)
        model = NIMForPreTraining(tiny_config(pretraining_sigma=70, image_size=16, patch_size=4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

        def smooth():
            return F.interpolate(torch.rand(64, 3, 2, 2), 16, mode="bilinear") * 4 - 2

        for _ in range(60):
            optimizer.zero_grad()
            model(smooth()).loss.backward()
            optimizer.step()
        clean = smooth()
        outputs = model.eval()(clean)
        left = F.mse_loss(outputs.denoised_pixel_values, clean)
        assert left < 0.25 * F.mse_loss(outputs.noisy_pixel_values, clean)


class TestPatchStatistics:
    """With norm_pix_loss something has to say how bright and how contrasty a patch was."""

    def test_noisy_statistics_leak_nothing_of_the_clean_image(self):
        model = NIMForPreTraining(tiny_config(norm_pix_loss=True, patch_statistics="noisy"))
        noisy, sigma = images(), torch.full((3,), 50.0)
        one, other = (model.restore(noisy, sigma, clean)[2] for clean in (images(seed=1), images(seed=2)))
        assert torch.equal(one, other)

    def test_input_statistics_do(self):
        model = NIMForPreTraining(tiny_config(norm_pix_loss=True, patch_statistics="input"))
        noisy, sigma = images(), torch.full((3,), 50.0)
        one, other = (model.restore(noisy, sigma, clean)[2] for clean in (images(seed=1), images(seed=2)))
        assert (one - other).abs().max() > 0.1

    def test_noisy_statistics_estimate_those_of_the_image(self):
        """Over many patches, mean and variance come out right although the noise has ten times the variance."""
        model = NIMForPreTraining(tiny_config(norm_pix_loss=True, image_mean=[0.5] * 3, image_std=[0.2, 0.25, 0.3]))
        torch.manual_seed(0)
        patches = 0.3 * torch.randn(4000, 1, 192) + 0.7
        sigma = torch.full((4000,), 60.0)
        std = torch.tensor([0.2, 0.25, 0.3]).repeat(64)
        noisy = patches + torch.randn_like(patches) * 60 / 255 / std
        mean, deviation = model._patch_statistics(noisy, sigma)
        assert abs(mean.mean().item() - 0.7) < 0.01
        assert abs(deviation.pow(2).mean().item() - 0.09) < 0.015
        assert torch.isfinite(deviation).all()
        assert (deviation > 0).all()


class TestDefense:
    def test_it_is_noise_then_denoiser_then_classifier(self, robust_model):
        pixels, noise = images(), images(seed=1)
        outputs = robust_model(pixels, sigma=40, pixel_noise=noise, output_draws=True)
        denoised = robust_model.denoiser.denoise(pixels, 40, pixel_noise=noise)
        torch.testing.assert_close(outputs.logits, robust_model(denoised, sigma=None).logits)
        torch.testing.assert_close(outputs.denoised_pixel_values[:, 0], denoised)
        assert outputs.sigma.tolist() == [[40]] * 3
        torch.testing.assert_close(outputs.votes[:, 0], outputs.logits.argmax(-1))

    def test_sigma_zero_denoises_and_none_does_not(self, robust_model):
        pixels = images()
        zero = robust_model(pixels, sigma=0, num_samples=5, output_draws=True)
        torch.testing.assert_close(zero.noisy_pixel_values[:, 0], pixels)
        assert zero.draw_logits.shape[1] == 1, "without noise all draws are the same"
        off = robust_model(pixels, sigma=None)
        assert not torch.allclose(zero.logits, off.logits, atol=1e-3)
        undefended = NIMForImageClassification(robust_model.config).eval()
        undefended.load_state_dict(robust_model.state_dict(), strict=False)
        torch.testing.assert_close(undefended(pixels).logits, off.logits)

    def test_default_sigma_depends_on_the_mode(self):
        model = tiny_model(defense_sigma=12, finetuning_sigma={"type": "constant", "value": 34}, num_samples=3)
        assert model.eval()(images(), output_draws=True).sigma.tolist() == [[12] * 3] * 3
        assert model.train()(images(), output_draws=True).sigma.tolist() == [[34]] * 3
        model.config.defense_sigma = None
        torch.testing.assert_close(model.eval()(images()).logits, model(images(), sigma=None).logits)

    def test_sigma_is_drawn_for_every_image_and_draw(self, robust_model):
        outputs = robust_model(images(8), sigma=GammaSigma(25, 3), num_samples=4, output_draws=True)
        assert len(outputs.sigma.unique()) == 32

    def test_vote_by_mean_probability(self, robust_model):
        outputs = robust_model(images(), sigma=60, num_samples=6, generator=generator(), output_draws=True)
        expected = outputs.draw_logits.softmax(-1).mean(1)
        torch.testing.assert_close(outputs.logits.softmax(-1), expected)
        labels = torch.tensor([0, 1, 2])
        loss = robust_model(images(), labels=labels, sigma=60, num_samples=6, generator=generator()).loss
        torch.testing.assert_close(loss, F.nll_loss(expected.log(), labels))

    def test_majority_vote(self):
        draws = torch.tensor([[[9.0, 0, 0], [0, 1, 0], [0, 1, 0]], [[5, 0, 0], [0, 1, 0], [0, 0, 9]]])
        shares = combine_draws(draws, "majority").softmax(-1)
        torch.testing.assert_close(shares[0], torch.tensor([1 / 3, 2 / 3, 0]), atol=1e-3, rtol=0)
        # One vote each: the tie goes to the class with the highest mean probability.
        assert shares[1].argmax() == draws[1].softmax(-1).mean(0).argmax()
        assert combine_draws(draws, "mean")[0].argmax() == 0
        assert torch.isfinite(combine_draws(draws, "majority")).all()

    def test_a_broken_draw_votes_for_no_class(self):
        draws = torch.tensor([[[0.0, 9.0], [torch.nan, 0.0], [0.0, 9.0]]])
        assert answers(draws).tolist() == [[1, -1, 1]]
        for vote in ("mean", "majority"):
            assert combine_draws(draws, vote).isnan().all()

    def test_passes_may_be_split(self, robust_model):
        whole = robust_model(images(), sigma=60, num_samples=5, generator=generator(), max_batch_size=100)
        parts = robust_model(images(), sigma=60, num_samples=5, generator=generator(), max_batch_size=4)
        torch.testing.assert_close(whole.logits, parts.logits)
        states = robust_model(
            images(), sigma=60, num_samples=5, max_batch_size=4, output_hidden_states=True
        ).hidden_states
        assert [state.shape[0] for state in states] == [15, 15, 15]

    def test_a_prediction_does_not_depend_on_its_batch(self, robust_model):
        pixels = images(6)
        together = robust_model(pixels, sigma=60, num_samples=3, generator=generator()).logits
        running = generator()
        split = [
            robust_model(part, sigma=60, num_samples=3, generator=running).logits for part in pixels.split([1, 5])
        ]
        torch.testing.assert_close(torch.cat(split), together)
        others = torch.cat([pixels[:1], images(5, seed=9)])
        torch.testing.assert_close(
            robust_model(others, sigma=60, num_samples=3, generator=generator()).logits[0], together[0]
        )
        own = [generator(seed) for seed in range(6)]
        alone = [robust_model(pixels[i : i + 1], sigma=60, generator=[generator(i)]).logits for i in range(6)]
        torch.testing.assert_close(robust_model(pixels, sigma=60, generator=own).logits, torch.cat(alone))

    def test_noise_is_fresh_without_generator(self, robust_model):
        assert not torch.equal(robust_model(images(), sigma=60).logits, robust_model(images(), sigma=60).logits)

    def test_soft_labels_are_cross_entropy(self, robust_model):
        pixels, hard = images(), torch.tensor([0, 3, 1])
        one_hot = F.one_hot(hard, 5).float()
        a = robust_model(pixels, labels=hard, sigma=None).loss
        torch.testing.assert_close(robust_model(pixels, labels=one_hot, sigma=None).loss, a)
        assert robust_model.config.problem_type is None, "a loss does not change the config"

    def test_gradient_reaches_the_input_through_everything(self, robust_model):
        pixels = images().requires_grad_()
        noise = images(seed=1)
        labels = torch.tensor([0, 1, 2])

        def loss(x):
            return robust_model(x, labels=labels, sigma=40, pixel_noise=noise).loss

        (gradient,) = torch.autograd.grad(loss(pixels), pixels)
        direction = torch.randn(pixels.shape, generator=generator(3))
        step = 1e-2
        with torch.no_grad():
            slope = (loss(pixels + step * direction) - loss(pixels - step * direction)) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=0.05, atol=1e-4)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_samples": 0}, "num_samples .* got 0"),
            ({"num_samples": 2.0}, "num_samples"),
            ({"vote": "median"}, "vote .* 'median'"),
            ({"max_batch_size": 0}, "max_batch_size"),
            ({"pixel_noise": torch.zeros(3, 3, 32, 31)}, "pixel_noise must have the shape"),
        ],
    )
    def test_wrong_arguments(self, robust_model, arguments, message):
        with pytest.raises(ValueError, match=message):
            robust_model(images(), **{"sigma": 10, **arguments})

    @pytest.mark.filterwarnings("ignore:There is a performance drop")
    def test_sigma_0_is_a_function_of_the_image(self, robust_model):
        pixels = images()
        expected = robust_model(pixels, sigma=0).logits
        mapped = torch.vmap(lambda image: robust_model(image[None], sigma=0).logits[0])(pixels)
        torch.testing.assert_close(mapped, expected)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
    @pytest.mark.parametrize("shape", [(3,), (3, 1)])
    def test_labels_are_integers_of_any_kind(self, robust_model, dtype, shape):
        labels = torch.tensor([0, 4, 2])
        outputs = robust_model(images(), labels=labels.to(dtype).view(shape), sigma=0)
        torch.testing.assert_close(outputs.loss, F.cross_entropy(outputs.logits, labels))

    @pytest.mark.parametrize(
        "labels",
        [torch.tensor([0, 1]), torch.tensor([0.0, 1.0, 2.0]), torch.eye(5)[:3].long(), torch.zeros(3, 4)],
        ids=["too few", "floats", "one-hot integers", "too few classes"],
    )
    def test_other_labels_are_refused(self, robust_model, labels):
        with pytest.raises(
            ValueError, match=r"integers of shape \(3,\), or class probabilities, floats of shape \(3, 5\)"
        ):
            robust_model(images(), labels=labels, sigma=0)

    @pytest.mark.parametrize("problem", [{"problem_type": "regression"}, {"num_labels": 1}])
    def test_only_classification(self, problem):
        with pytest.raises(ValueError, match="choose one of at least two labels"):
            NIMForImageClassification(tiny_config(**problem))


class TestFrozenDenoiser:
    def test_training_moves_the_classifier_alone(self):
        model = tiny_model().train()
        assert not model.denoiser.training
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model(images(), labels=torch.tensor([0, 1, 2])).loss.backward()
        optimizer.step()
        moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert not [name for name in moved if name.startswith("denoiser.")]
        assert "nim.embeddings.position_embeddings" in moved, "a classifier trains its position embeddings"

    def test_no_parameter_is_left_without_gradient(self):
        """DDP would stop at one."""
        for cls in (NIMForPreTraining, NIMForImageClassification, NIMForRobustImageClassification):
            model = cls(tiny_config()).train()
            labels = {} if cls is NIMForPreTraining else {"labels": torch.tensor([0, 1, 2])}
            model(images(), **labels).loss.backward()
            assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None], cls

    def test_adapters_in_the_denoiser_are_not_frozen(self):
        model = copy.deepcopy(tiny_model())
        attention = model.denoiser.nim.layers[0].attention
        adapter = torch.nn.Sequential(attention.q_proj, torch.nn.Linear(32, 32))
        attention.q_proj = adapter
        model.requires_grad_().train()
        assert {n for n, p in model.denoiser.named_parameters() if p.requires_grad} == {
            f"nim.layers.0.attention.q_proj.1.{name}" for name in ("weight", "bias")
        }
        assert (adapter[0].training, adapter[1].training) == (False, True)

    def test_another_denoiser_is_frozen_too(self, denoiser):
        model = tiny_model()
        model.denoiser = copy.deepcopy(denoiser).requires_grad_()
        model.train()
        assert not model.denoiser.training
        assert not any(parameter.requires_grad for parameter in model.denoiser.parameters())

    def test_fixed_tables_are_no_parameters(self, tmp_path):
        NIMForPreTraining(tiny_config()).save_pretrained(tmp_path)
        model = NIMForPreTraining.from_pretrained(tmp_path)
        assert not [name for name, _ in model.named_parameters() if "position_embeddings" in name]


@pytest.mark.parametrize(
    "cls", [NIMModel, NIMForPreTraining, NIMForImageClassification, NIMForRobustImageClassification]
)
def test_tuples_are_returned_if_the_config_says_so(cls):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(tiny_config(return_dict=False)).eval()
    given = {} if cls in (NIMModel, NIMForImageClassification) else {"sigma": 0}
    outputs, expected = model(images(), **given), model(images(), **given, return_dict=True)
    assert isinstance(outputs, tuple)
    torch.testing.assert_close(outputs, expected.to_tuple())


class TestShapes:
    @pytest.mark.parametrize("cls", [NIMModel, NIMForPreTraining, NIMForRobustImageClassification])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_non_square_images_and_any_channels(self, cls, channels):
        model = cls(tiny_config(image_size=(16, 24), patch_size=(4, 6), num_channels=channels)).eval()
        outputs = model(images(2, channels, 16, 24))
        if cls is NIMForPreTraining:
            assert outputs.logits.shape == (2, 16, 24 * channels)
            assert outputs.denoised_pixel_values.shape == (2, channels, 16, 24)
        if cls is NIMModel:
            assert outputs.last_hidden_state.shape == (2, 17, 32)

    @pytest.mark.parametrize("cls", [NIMModel, NIMForPreTraining, NIMForRobustImageClassification])
    def test_other_sizes_are_refused_or_interpolated(self, cls):
        model = cls(tiny_config()).eval()
        with pytest.raises(ValueError, match=r"32x32 pixels, got 40x48.*interpolate_pos_encoding=True"):
            model(images(2, 3, 40, 48))
        outputs = model(images(2, 3, 40, 48), interpolate_pos_encoding=True)
        if cls is NIMForPreTraining:
            assert outputs.denoised_pixel_values.shape == (2, 3, 40, 48)
            assert model.denoise(images(2, 3, 40, 48), 10, interpolate_pos_encoding=True).shape == (2, 3, 40, 48)
        with pytest.raises(ValueError, match="40x45 pixels is not divisible"):
            model(images(2, 3, 40, 45), interpolate_pos_encoding=True)

    @pytest.mark.parametrize("cls", [NIMModel, NIMForPreTraining, NIMForRobustImageClassification])
    def test_wrong_channels_and_dimensions(self, cls):
        model = cls(tiny_config()).eval()
        with pytest.raises(ValueError, match="holds no images"):
            model(images(0))
        with pytest.raises(ValueError, match="3 channels, got 1"):
            model(images(2, 1))
        with pytest.raises(ValueError, match="a single image needs a first dimension"):
            model(images(1)[0])


class TestPrecisionAndMemory:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype):
        model = tiny_model().to(dtype)
        reference = tiny_model()
        noise = images(seed=1)
        outputs = model(images().to(dtype), sigma=40, pixel_noise=noise, output_draws=True)
        expected = reference(images(), sigma=40, pixel_noise=noise, output_draws=True)
        assert outputs.logits.dtype == dtype
        difference = outputs.denoised_pixel_values.float() - expected.denoised_pixel_values
        assert difference.abs().mean() < 0.02

    def test_autocast_trains(self):
        for cls in (NIMForPreTraining, NIMForRobustImageClassification):
            model = cls(tiny_config()).train()
            labels = {} if cls is NIMForPreTraining else {"labels": torch.tensor([0, 1, 2])}
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(images(), **labels).loss
            loss.backward()
            assert loss.dtype == torch.float32
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

    def test_gradient_checkpointing_covers_the_decoder_and_changes_nothing(self):
        torch.manual_seed(0)
        model = NIMForPreTraining(tiny_config()).train()
        arguments = {"sigma": 30, "pixel_noise": images(seed=1)}
        model(images(), **arguments).loss.backward()
        plain = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        # Newer releases of transformers deprecate the second name, older ones lack the first.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        assert [layer.gradient_checkpointing for layer in layers] == [True] * 3
        model(images(), **arguments).loss.backward()
        for before, parameter in zip(plain, model.parameters()):
            torch.testing.assert_close(parameter.grad, before)


class WithGivenNoise(torch.nn.Module):
    """The defense as a function of images and noise, as one exports it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, pixel_noise):
        return self.model(pixel_values, sigma=40, pixel_noise=pixel_noise).logits


class TestTracing:
    @pytest.mark.parametrize(
        "sigma",
        [
            70,
            pytest.param(GammaSigma(25, 3), id="gamma", marks=pytest.mark.slow),
            pytest.param(UniformSigma(0, 30), id="uniform", marks=pytest.mark.slow),
        ],
    )
    def test_compile_without_graph_breaks(self, sigma):
        torch._dynamo.reset()
        model = tiny_model(defense_sigma=sigma, pretraining_sigma=sigma)
        with torch.no_grad():
            for traced, arguments in (
                (model, {}),
                (model, {"num_samples": 3, "sigma": 20.0}),
                (model.denoiser, {}),
                (model.nim, {}),
            ):
                torch.compile(traced, fullgraph=True, backend="eager")(images(), **arguments)

    @pytest.mark.slow
    def test_compiled_defense_takes_any_sigma(self):
        """A number that changes from call to call becomes symbolic."""
        torch._dynamo.reset()
        model, noise = tiny_model(), images(seed=1)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        uniform = [{"type": "uniform", "low": low, "high": high} for low, high in ((0, 3), (0, 4), (1.5, 5.0))]
        with torch.no_grad():
            for sigma in (5.0, 6.0, 7.5, 50, 70, 0.0, None):
                expected = model(images(), sigma=sigma, pixel_noise=noise).logits
                torch.testing.assert_close(compiled(images(), sigma=sigma, pixel_noise=noise).logits, expected)
            for sigma in uniform:
                compiled(images(), sigma=sigma)

    @pytest.mark.slow
    def test_compiled_defense_gives_the_same(self):
        torch._dynamo.reset()
        model, noise = tiny_model(), images(seed=1)
        compiled = torch.compile(model, fullgraph=True)
        pixels = images().requires_grad_()
        eager = model(pixels, sigma=40, pixel_noise=noise).logits
        fast = compiled(pixels, sigma=40, pixel_noise=noise).logits
        torch.testing.assert_close(fast, eager, atol=1e-4, rtol=1e-4)
        gradients = [torch.autograd.grad(logits.square().sum(), pixels)[0] for logits in (eager, fast)]
        torch.testing.assert_close(gradients[1], gradients[0], atol=1e-3, rtol=1e-3)

    def test_export_with_given_noise(self):
        model = tiny_model()
        batch = torch.export.Dim("batch", min=2, max=16)
        inputs = {"pixel_values": images(), "pixel_noise": images(seed=1)}

        program = torch.export.export(
            WithGivenNoise(model), (), inputs, dynamic_shapes={name: {0: batch} for name in inputs}, strict=False
        )
        more = {"pixel_values": images(5, seed=2), "pixel_noise": images(5, seed=3)}
        torch.testing.assert_close(program.module()(**more), model(**more, sigma=40).logits, atol=1e-5, rtol=1e-5)

    def test_onnx_with_given_noise(self, tmp_path):
        onnxruntime = pytest.importorskip("onnxruntime")
        model = tiny_model()

        inputs = {"pixel_values": images(), "pixel_noise": images(seed=1)}
        torch.onnx.export(
            WithGivenNoise(model).eval(), (), tmp_path / "defense.onnx", kwargs=inputs, dynamo=True, verbose=False
        )
        session = onnxruntime.InferenceSession(tmp_path / "defense.onnx")
        (logits,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        torch.testing.assert_close(torch.from_numpy(logits), model(**inputs, sigma=40).logits, atol=1e-4, rtol=1e-4)


class TestTrainer:
    @pytest.mark.parametrize("cls", [NIMForPreTraining, NIMForRobustImageClassification])
    def test_transformers_trainer_trains_and_evaluates(self, cls, tmp_path):
        labels = {} if cls is NIMForPreTraining else {"labels": 1}
        data = [{"pixel_values": image, **labels} for image in images(8)]
        model = cls(tiny_config())
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        options = TrainingArguments(
            tmp_path, max_steps=3, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[], use_cpu=True
        )
        trainer = Trainer(model, options, train_dataset=data, eval_dataset=data)
        trainer.train()
        assert math.isfinite(trainer.evaluate()["eval_loss"]), "also for a model without labels"
        shape = (8, 16, 192) if cls is NIMForPreTraining else (8, 5)
        assert trainer.predict(data).predictions.shape == shape, "no pictures are gathered"
        moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert "nim.layers.0.mlp.fc1.weight" in moved
        assert not [name for name in moved if name.startswith("denoiser.")]

    @pytest.mark.parametrize("cls", [NIMForPreTraining, NIMForRobustImageClassification])
    def test_seeds_make_an_evaluation_repeatable(self, cls, tmp_path):
        """A column of seeds: the same noise for every batch size and number of workers."""
        data = [{"pixel_values": image, "labels": row % 5} for row, image in enumerate(images(9))]
        model = cls(tiny_config()) if cls is NIMForPreTraining else tiny_model()

        def losses(data, batch_size, workers=0):
            options = {"per_device_eval_batch_size": batch_size, "dataloader_num_workers": workers}
            arguments = TrainingArguments(tmp_path, report_to=[], use_cpu=True, **options)
            trainer = Trainer(model, arguments, eval_dataset=data)
            return [trainer.evaluate()["eval_loss"] for _ in range(2)]

        first, second = losses(data, 4)
        assert first != second
        seeded = [{**row, "generator": seed} for seed, row in enumerate(data)]
        first, second = losses(seeded, 4)
        assert first == second
        assert losses(seeded, 9) == pytest.approx([first, first], rel=1e-4)
        assert losses(seeded, 3, workers=2) == pytest.approx([first, first], rel=1e-4)

    def test_gradients_accumulate_as_those_of_a_stock_model(self, tmp_path):
        """Losses are means over a batch. A Trainer that takes them for sums goes twice as far with two batches of 2.

        Compared with transformers' ViT, because early 5.x releases halve the step of every model.
        """
        data = [{"pixel_values": image, "labels": label} for label, image in enumerate(images(4))]
        stock_config = ViTConfig(
            image_size=32,
            patch_size=8,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=32,
            num_labels=5,
        )

        def distance(model, batch_size):
            before = model.classifier.weight.detach().clone()
            options = TrainingArguments(
                tmp_path,
                max_steps=1,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=4 // batch_size,
                learning_rate=0.1,
                lr_scheduler_type="constant",
                optim="sgd",
                max_grad_norm=0,
                report_to=[],
                use_cpu=True,
            )
            Trainer(model, options, train_dataset=data).train()
            return (model.classifier.weight.detach() - before).norm()

        ours = [distance(tiny_model(NIMForImageClassification), batch_size) for batch_size in (4, 2)]
        torch.manual_seed(0)
        stock = ViTForImageClassification(stock_config)
        theirs = [distance(copy.deepcopy(stock), batch_size) for batch_size in (4, 2)]
        torch.testing.assert_close(ours[1] / ours[0], theirs[1] / theirs[0], atol=1e-4, rtol=0)


def test_example_sizes_build():
    """The largest paper size, without its memory: every module fits the next."""
    with torch.device("meta"):
        model = NIMForRobustImageClassification(NIMConfig.from_size("huge", num_labels=1000))
    assert model.nim.embeddings.position_embeddings.shape == (1, 257, 1280)
    assert sum(p.numel() for p in model.nim.parameters()) > 6e8


def test_draws_pass_in_parts_of_a_default_size(monkeypatch):
    model, sizes = tiny_model(), []
    classify_noisy = model.classify_noisy

    def counted(noisy_pixel_values, *args, **kwargs):
        sizes.append(len(noisy_pixel_values))
        return classify_noisy(noisy_pixel_values, *args, **kwargs)

    monkeypatch.setattr(model, "classify_noisy", counted)
    pixel_values = torch.randn(2, 3, 32, 32)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    split = model(pixel_values, sigma=20, num_samples=50, generator=generators).logits
    assert sizes == [64, 36]
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    whole = model(pixel_values, sigma=20, num_samples=50, generator=generators, max_batch_size=100).logits
    torch.testing.assert_close(split, whole)
