# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
import transformers
from conftest import tiny_model

from transformers_nim import NIMForImageClassification, NIMForRobustImageClassification, NIMImageProcessor
from transformers_nim.attacks import PixelClassifier, image_generators
from transformers_nim.model.outputs_nim import combine_draws


@pytest.fixture
def pixels():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class TestSetup:
    def test_normalizes_and_passes_arguments_on(self, robust_model, pixels):
        classifier = PixelClassifier(robust_model, sigma=None)
        mean = torch.tensor(robust_model.config.image_mean)[:, None, None]
        std = torch.tensor(robust_model.config.image_std)[:, None, None]
        expected = robust_model((pixels - mean) / std, sigma=None).logits
        torch.testing.assert_close(classifier(pixels), expected)
        torch.testing.assert_close(classifier.to_pixels(classifier.normalize(pixels)), pixels)

    def test_unknown_normalization(self):
        other = torch.nn.Identity().eval()
        other.config, other.device = type("Config", (), {})(), torch.device("cpu")
        with pytest.raises(ValueError, match="config of Identity does not hold the normalization"):
            PixelClassifier(other)
        assert PixelClassifier(other, image_mean=[0.5], image_std=[0.5]).normalize(torch.ones(1, 1, 1, 1)) == 1

    def test_normalization_of_an_image_processor(self, robust_model, pixels):
        processor = NIMImageProcessor.from_config(robust_model.config, image_mean=[0.1, 0.2, 0.3])
        classifier = PixelClassifier(robust_model, image_processor=processor)
        assert classifier.image_mean == [0.1, 0.2, 0.3]
        assert classifier.image_std == list(processor.image_std)
        processor.do_normalize = False
        plain = PixelClassifier(robust_model, image_processor=processor)
        torch.testing.assert_close(plain.normalize(pixels), pixels)
        processor.rescale_factor = 1 / 127.5
        with pytest.raises(ValueError, match=r"rescale_factor=0.0078"):
            PixelClassifier(robust_model, image_processor=processor)

    def test_what_would_measure_another_model_is_refused(self, robust_model):
        """transformers models swallow unknown arguments."""
        for wrong in ({"simga": 0}, {"generator": torch.Generator()}, {"pixel_noise": None}):
            with pytest.raises(ValueError, match=r"simga|generator|pixel_noise"):
                PixelClassifier(robust_model, **wrong)
        undefended = tiny_model(NIMForImageClassification)
        for wrong, message in (
            ({"sigma": 70}, r"\['sigma'\]"),
            ({"num_samples": 2}, r"\['num_samples'\]"),
            ({"gradient": "bpda"}, "has no defense to leave out"),
        ):
            with pytest.raises(ValueError, match=message):
                PixelClassifier(undefended, **wrong)
        for wrong, message in (
            ({"gradient": "half"}, "gradient must be one of"),
            ({"num_samples": 0}, "num_samples must be"),
            ({"vote": "plurality"}, "vote must be"),
            ({"sigma": -1}, "sigma must be"),
        ):
            with pytest.raises(ValueError, match=message):
                PixelClassifier(robust_model, **wrong)

    def test_train_mode(self, pixels):
        model = tiny_model()
        classifier = PixelClassifier(model)
        model.train()
        with pytest.raises(ValueError, match="train mode"):
            classifier(pixels)
        with pytest.raises(ValueError, match="train mode"):
            PixelClassifier(model)
        # The mode of a part counts as much: its dropout would be on.
        model.eval()
        model.fc_norm.train()
        with pytest.raises(ValueError, match="the part 'fc_norm' of the model is in train mode"):
            PixelClassifier(model)

    @pytest.mark.parametrize("name", ["ViT", "ConvNext", "ResNet"])
    def test_other_image_classifiers(self, name, pixels):
        sizes = {
            "ViT": {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "intermediate_size": 16},
            "ConvNext": {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2},
            "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"},
        }  # fmt: skip
        config = getattr(transformers, f"{name}Config")(**sizes[name])
        model = getattr(transformers, f"{name}ForImageClassification")(config).eval()
        classifier = PixelClassifier(model, image_mean=[0.4] * 3, image_std=[0.2] * 3)
        assert classifier.is_deterministic
        pixels.requires_grad_()
        logits = classifier(pixels)
        torch.testing.assert_close(logits, model((pixels - 0.4) / 0.2).logits)
        logits[:, 0].sum().backward()
        assert pixels.grad.abs().sum() > 0
        assert classifier.draw_logits(pixels, 5).shape == (3, 1, 2)


class TestSideEffects:
    def test_leaves_the_model_as_it_is(self):
        model = tiny_model()
        classifier = PixelClassifier(model)
        classifier.train().requires_grad_(False)
        assert not model.training
        assert any(parameter.requires_grad for parameter in model.parameters())
        # Other libraries read the device off a parameter, which is empty.
        assert sum(parameter.numel() for parameter in classifier.parameters()) == 0
        assert next(classifier.parameters()).device == model.device

    def test_moves_take_the_model_along(self, pixels):
        model = tiny_model()
        flags = [parameter.requires_grad for parameter in model.parameters()]
        classifier = PixelClassifier(model, sigma=None).double()
        assert model.dtype == next(classifier.parameters()).dtype == torch.float64
        expected = model(classifier.normalize(pixels.double()), sigma=None).logits
        assert torch.equal(classifier(pixels.double()), expected)
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
        assert not model.training
        assert PixelClassifier(torch.nn.Flatten().eval()).to("meta").where_the_model_is.device.type == "meta"

    @pytest.mark.parametrize("options", [{}, {"gradient": "bpda"}, {"gradient": "classifier"}, {"fixed_noise": True}])
    def test_random_state_and_parameters(self, options, pixels):
        model = tiny_model()
        flags = [parameter.requires_grad for parameter in model.parameters()]
        state = torch.get_rng_state()
        logits = PixelClassifier(model, sigma=30, num_samples=2, **options)(pixels.requires_grad_())
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
        logits.sum().backward()
        assert torch.equal(state, torch.get_rng_state())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert pixels.grad.abs().sum() > 0

    def test_no_graph_of_parameters_is_built(self, pixels):
        model = tiny_model()
        assert not PixelClassifier(model)(pixels).requires_grad
        # An error in the model does not leave parameters frozen.
        flags = [parameter.requires_grad for parameter in model.parameters()]
        with pytest.raises(ValueError, match=r"16|size|shape"):
            PixelClassifier(model)(pixels[..., :16])
        assert [parameter.requires_grad for parameter in model.parameters()] == flags


class TestNoise:
    def test_draws(self, robust_model, pixels):
        classifier = PixelClassifier(robust_model, sigma=30)
        assert not classifier.is_deterministic
        seeds = [5, 6, 7]
        draws = classifier.draw_logits(pixels, 4, image_generators(seeds, "test"))
        assert draws.shape == (3, 4, 5)
        assert draws.std(dim=1).min() > 0
        # The model itself gives the same numbers.
        expected = robust_model(
            classifier.normalize(pixels),
            sigma=30,
            num_samples=4,
            generator=image_generators(seeds, "test"),
            output_draws=True,
        ).draw_logits
        torch.testing.assert_close(draws, expected)
        # Fresh noise in every call, and another object repeats it.
        own = [classifier(pixels) for _ in range(2)]
        assert not torch.equal(*own)
        assert torch.equal(own[0], PixelClassifier(robust_model, sigma=30)(pixels))
        assert not torch.equal(own[0], PixelClassifier(robust_model, sigma=30, seed=1)(pixels))

    def test_several_samples_are_combined(self, robust_model, pixels):
        for vote in ("mean", "majority"):
            classifier = PixelClassifier(robust_model, sigma=30, num_samples=8, vote=vote)
            logits = classifier(pixels, image_generators([5, 6, 7], "test"))
            single = PixelClassifier(robust_model, sigma=30, num_samples=1)
            draws = single.draw_logits(pixels, 8, image_generators([5, 6, 7], "test"))
            expected = draws.softmax(dim=-1).mean(dim=1)
            if vote == "majority":
                expected = torch.nn.functional.one_hot(draws.argmax(dim=-1), 5).float().mean(dim=1)
            torch.testing.assert_close(logits.softmax(dim=-1), expected, atol=2e-3, rtol=0)

    @pytest.mark.parametrize("vote", ["mean", "majority"])
    def test_draws_of_a_vote_are_votes(self, robust_model, pixels, vote):
        classifier = PixelClassifier(robust_model, sigma=30, num_samples=4, vote=vote)
        assert classifier.num_samples == 4
        votes = classifier.draw_logits(pixels, 3, image_generators([5, 6, 7], "test"))
        single = PixelClassifier(robust_model, sigma=30, num_samples=1)
        draws = single.draw_logits(pixels, 12, image_generators([5, 6, 7], "test")).unflatten(1, (3, 4))
        expected = [combine_draws(draws[:, index], vote) for index in range(3)]
        torch.testing.assert_close(votes, torch.stack(expected, dim=1))
        known = PixelClassifier(robust_model, sigma=30, num_samples=4, vote=vote, fixed_noise=True, seed=9)
        noise = [torch.Generator().manual_seed(9) for _ in pixels]
        model_draws = robust_model(
            known.normalize(pixels), sigma=30, num_samples=4, generator=noise, output_draws=True
        ).draw_logits
        torch.testing.assert_close(known(pixels), combine_draws(model_draws, vote))

    def test_a_majority_has_the_gradient_of_the_mean(self, robust_model, pixels):
        gradients, values = {}, {}
        for vote in ("mean", "majority"):
            classifier = PixelClassifier(robust_model, sigma=30, num_samples=4, vote=vote, fixed_noise=True)
            images = pixels.clone().requires_grad_()
            values[vote] = classifier(images)
            (gradients[vote],) = torch.autograd.grad(values[vote][:, 0].sum(), images)
            assert torch.equal(values[vote], classifier(pixels))
        torch.testing.assert_close(gradients["majority"], gradients["mean"])
        assert not torch.equal(values["majority"], values["mean"])

    def test_fixed_noise(self, robust_model, pixels):
        classifier = PixelClassifier(robust_model, sigma=30, num_samples=2, fixed_noise=True)
        assert classifier.is_deterministic
        same = pixels[:1].repeat(3, 1, 1, 1).requires_grad_()
        gradients = []
        for _ in range(2):
            logits = classifier(same)
            gradients.append(torch.autograd.grad(logits[:, 0].sum(), same)[0])
            torch.testing.assert_close(logits, logits[:1].expand_as(logits))
        assert torch.equal(*gradients)
        draws = classifier.draw_logits(same, 20, image_generators([1, 2, 3], "ignored"))
        assert torch.equal(draws, logits[:, None])
        other = PixelClassifier(robust_model, sigma=30, num_samples=2, fixed_noise=True, seed=1)
        assert not torch.equal(other(same), logits)

    @pytest.mark.parametrize(("sigma", "deterministic"), [(None, True), (0, True), (30, False)])
    def test_deterministic_without_noise(self, robust_model, pixels, sigma, deterministic):
        for gradient in ("full", "bpda"):
            classifier = PixelClassifier(robust_model, sigma=sigma, gradient=gradient)
            assert classifier.is_deterministic == deterministic
            assert classifier.draw_logits(pixels, 3).shape == (3, 1 if deterministic else 3, 5)
            assert torch.equal(classifier(pixels), classifier(pixels)) == deterministic
        # sigma 0 still denoises.
        off = PixelClassifier(robust_model, sigma=None)(pixels)
        assert torch.equal(PixelClassifier(robust_model, sigma=sigma)(pixels), off) == (sigma is None)


class TestGradients:
    def gradient(self, classifier, images, direction=0):
        images = images.detach().clone().requires_grad_()
        return torch.autograd.grad(classifier(images)[:, direction].sum(), images)[0]

    @pytest.mark.parametrize("overrides", [{}, {"norm_pix_loss": True, "patch_statistics": "input"}])
    def test_finite_differences_at_fixed_noise(self, overrides, pixels):
        """Along random directions: the whole defense is differentiated, statistics of patches included."""
        model = tiny_model(**overrides)
        classifier = PixelClassifier(model, sigma=20, fixed_noise=True)
        pixels = 0.25 + pixels / 2  # denoised pixels that are clamped have no gradient
        gradient = self.gradient(classifier, pixels)
        generator = torch.Generator().manual_seed(3)
        for smooth in (4, 32):
            direction = torch.randn(3, 3, smooth, smooth, generator=generator)
            direction = torch.nn.functional.interpolate(direction, (32, 32)) + gradient / gradient.std()
            step = 2e-3 * direction
            with torch.no_grad():
                difference = (classifier(pixels + step) - classifier(pixels - step))[:, 0] / 2
            predicted = (gradient * step).sum(dim=(1, 2, 3))
            torch.testing.assert_close(difference, predicted, rtol=0.05, atol=1e-4)

    @pytest.mark.parametrize("sigma", [0, 30])
    def test_bpda_is_the_classifiers_gradient_at_the_purified_image(self, robust_model, pixels, sigma):
        full = PixelClassifier(robust_model, sigma=sigma, fixed_noise=True)
        bpda = PixelClassifier(robust_model, sigma=sigma, fixed_noise=True, gradient="bpda")
        torch.testing.assert_close(bpda(pixels), full(pixels))
        with torch.no_grad():
            purified = robust_model(
                full.normalize(pixels),
                sigma=sigma,
                output_draws=True,
                generator=[torch.Generator().manual_seed(0) for _ in pixels],
            ).denoised_pixel_values[:, 0]
        bare = PixelClassifier(robust_model, sigma=None)
        expected = self.gradient(bare, bare.to_pixels(purified))
        torch.testing.assert_close(self.gradient(bpda, pixels), expected, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(self.gradient(full, pixels), expected, rtol=1e-2, atol=1e-4)

    def test_bpda_averages_over_draws(self, robust_model, pixels):
        bpda = PixelClassifier(robust_model, sigma=30, gradient="bpda")
        images = pixels.clone().requires_grad_()
        draws = bpda.draw_logits(images, 4, image_generators([1, 2, 3], "test"))
        full = PixelClassifier(robust_model, sigma=30).draw_logits(pixels, 4, image_generators([1, 2, 3], "test"))
        torch.testing.assert_close(draws, full)
        parts = [torch.autograd.grad(draws[:, i, 0].sum(), images, retain_graph=True)[0] for i in range(4)]
        whole = torch.autograd.grad(draws[..., 0].sum(), images)[0]
        torch.testing.assert_close(whole, sum(parts))
        assert not torch.equal(parts[0], parts[1])

    def test_gray_box_is_the_bare_classifier(self, robust_model, pixels):
        gray = PixelClassifier(robust_model, sigma=30, num_samples=4, gradient="classifier")
        assert gray.is_deterministic
        torch.testing.assert_close(gray(pixels), PixelClassifier(robust_model, sigma=None)(pixels))


class TestAutocast:
    """Half precision, an approximation for the search of adversarial images."""

    @staticmethod
    def logits_and_gradient(classifier, pixels):
        pixels = pixels.clone().requires_grad_()
        logits = classifier(pixels)
        (gradient,) = torch.autograd.grad(logits.log_softmax(dim=-1)[:, 0].sum(), pixels)
        return logits.detach(), gradient

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("gradient", ["full", "bpda", "classifier", None])
    def test_agrees_with_the_models_dtype(self, gradient, dtype, pixels):
        model = tiny_model(NIMForImageClassification if gradient is None else NIMForRobustImageClassification)
        options = {"sigma": 30, "num_samples": 2, "gradient": gradient, "fixed_noise": True} if gradient else {}
        exact, half = (
            self.logits_and_gradient(PixelClassifier(model, **options, autocast_dtype=chosen), pixels)
            for chosen in (None, dtype)
        )
        assert half[0].dtype == half[1].dtype == torch.float32
        assert not torch.equal(half[0], exact[0])
        # Logits differ by a few roundings of the largest to 8 bits.
        assert (half[0] - exact[0]).abs().max() < 8 * 2**-8 * exact[0].abs().max()
        cosine = torch.nn.functional.cosine_similarity(half[1].flatten(1), exact[1].flatten(1))
        assert cosine.min() > 0.95
        assert next(model.parameters()).dtype == torch.float32

    def test_draws_and_noise_are_the_same(self, robust_model, pixels):
        exact, half = (
            PixelClassifier(robust_model, sigma=60, autocast_dtype=chosen).draw_logits(
                pixels, 4, image_generators([1, 2, 3], "test")
            )
            for chosen in (None, torch.bfloat16)
        )
        assert half.dtype == torch.float32
        # Other noise would change them much more.
        assert (half - exact).abs().mean() < 0.1 * exact.std(dim=1).mean()

    def test_left_out_it_changes_nothing(self, robust_model, pixels):
        classifier = PixelClassifier(robust_model, sigma=30, fixed_noise=True)
        logits, gradient = self.logits_and_gradient(classifier, pixels)
        images = pixels.clone().requires_grad_()
        generators = [torch.Generator().manual_seed(0) for _ in pixels]
        expected = robust_model(
            classifier.normalize(images), sigma=30, num_samples=1, generator=generators, output_draws=True
        ).draw_logits[:, 0]
        assert torch.equal(logits, expected)
        assert torch.equal(gradient, torch.autograd.grad(expected.log_softmax(dim=-1)[:, 0].sum(), images)[0])
        assert classifier.autocast_dtype is None

    @pytest.mark.parametrize("wrong", ["bf16", torch.float32, torch.int8, True])
    def test_other_dtypes_are_refused(self, robust_model, wrong):
        with pytest.raises(
            ValueError, match=r"autocast_dtype must be one of \[None, torch.bfloat16.*got .*leave it out"
        ):
            PixelClassifier(robust_model, autocast_dtype=wrong)


class Sequential(torch.nn.Sequential):
    """A module of nobody's library, with or without noise of its own."""

    def __init__(self, noise=0.0, shared=False, source=None):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4))
        generator = torch.Generator().manual_seed(1)
        torch.nn.init.normal_(self[1].weight, std=0.05, generator=generator)
        self.noise, self.shared, self.source = noise, shared, source
        self.eval()

    def forward(self, pixels):
        shape = (1, *pixels.shape[1:]) if self.shared else pixels.shape
        noise = torch.randn(shape, generator=self.source) if self.noise else 0
        return super().forward(pixels + self.noise * noise)


class TestAnyModule:
    def test_takes_pixels_as_they_are_or_normalized(self, pixels):
        model = Sequential()
        torch.testing.assert_close(PixelClassifier(model)(pixels), model(pixels))
        normalized = PixelClassifier(model, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])
        mean, std = torch.tensor([0.1, 0.2, 0.3])[:, None, None], torch.tensor([0.5, 0.6, 0.7])[:, None, None]
        torch.testing.assert_close(normalized(pixels), model((pixels - mean) / std))
        assert PixelClassifier(model).num_samples == 1
        assert PixelClassifier(model).patch_shape is None
        with pytest.raises(ValueError, match="pass image_mean and image_std"):
            PixelClassifier(model, image_mean=[0.5])
        with pytest.raises(ValueError, match=r"Sequential.forward cannot be given \['sigma'\]"):
            PixelClassifier(model, sigma=30)

    def test_half_precision_and_other_outputs(self, pixels):
        model = Sequential()
        expected = PixelClassifier(model)(pixels)
        half = PixelClassifier(model).to(torch.bfloat16)(pixels)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.05)
        for wrong in (torch.nn.Identity(), torch.nn.Flatten(0)):
            with pytest.raises(ValueError, match=r"must return logits of shape \(batch, classes\)"):
                PixelClassifier(wrong.eval())(pixels)

    def test_timm(self, pixels):
        timm = pytest.importorskip("timm")
        model = timm.create_model("resnet10t", num_classes=3).eval()
        mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        classifier = PixelClassifier(model)
        assert (classifier.image_mean, classifier.image_std) == (list(mean), list(std))
        values = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        torch.testing.assert_close(classifier(pixels), model(values))
        config = transformers.TimmWrapperConfig(architecture="resnet10t", num_labels=3)
        config.pretrained_cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
        wrapper = transformers.TimmWrapperForImageClassification(config).eval()
        assert PixelClassifier(wrapper).image_mean == [0.1, 0.2, 0.3]
        processor = transformers.TimmWrapperImageProcessor(model.pretrained_cfg)
        assert PixelClassifier(wrapper, image_processor=processor).image_mean == list(mean)

    def test_return_dict_off(self, pixels):
        for model in (tiny_model(), tiny_model(NIMForImageClassification)):
            expected = PixelClassifier(model)(pixels)
            model.config.return_dict = False
            assert isinstance(model(pixels), tuple)
            assert torch.equal(PixelClassifier(model)(pixels), expected)

    def test_pipeline(self, robust_path, pixels):
        pipe = transformers.pipeline("image-classification", robust_path, sigma=30, num_samples=3, vote="majority")
        classifier = PixelClassifier(pipe)
        assert classifier.forward_kwargs == {"sigma": 30, "num_samples": 3, "vote": "majority"}
        expected = PixelClassifier(pipe.model, sigma=30, num_samples=3, vote="majority")(pixels)
        assert torch.equal(classifier(pixels), expected)
        assert PixelClassifier(pipe, sigma=10).forward_kwargs["sigma"] == 10

    def test_the_model_names_its_classifier(self, robust_model, pixels):
        options = {"sigma": 30, "num_samples": 2}
        expected = PixelClassifier(robust_model, **options)(pixels)
        assert torch.equal(robust_model.as_pixel_classifier(**options)(pixels), expected)
        assert tiny_model(NIMForImageClassification).as_pixel_classifier()(pixels).shape == (3, 5)


class TestWrappedModels:
    """torch.compile, DataParallel and PEFT hide forward and config, and take tensors better than generators."""

    # peft asks transformers for an attribute that it renames.
    @pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
    @pytest.mark.parametrize(
        "wrappers", [["compile"], ["data_parallel"], ["peft"], ["peft", "data_parallel", "compile"]]
    )
    def test_options_and_noise_stay(self, wrappers, robust_model, pixels):
        model = robust_model
        if "peft" in wrappers:
            peft = pytest.importorskip("peft")
            model = peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["classifier"])).eval()
        if "data_parallel" in wrappers:
            model = torch.nn.DataParallel(model)
        if "compile" in wrappers:
            model = torch.compile(model)
        with torch.compiler.set_stance("force_eager"):
            self.check(model, robust_model, pixels)

    @pytest.mark.slow
    def test_compiled(self, robust_model, pixels):
        self.check(torch.compile(robust_model, backend="aot_eager"), robust_model, pixels)

    @staticmethod
    def check(model, plain, pixels):
        for options in ({"vote": "majority"}, {"gradient": "bpda"}, {"fixed_noise": True}):
            results, determined = [], []
            for one in (model, plain):
                classifier = PixelClassifier(one, sigma=30, num_samples=2, **options)
                images = pixels.clone().requires_grad_()
                logits = classifier.draw_logits(images, 2, image_generators([5, 6, 7], "test"))
                results.append([logits, *torch.autograd.grad(logits[..., 0].sum(), images)])
                determined.append(classifier.is_deterministic)
            torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
            assert determined[0] == determined[1]
        gamma = {"type": "gamma", "concentration": 25, "scale": 3}
        found, expected = (PixelClassifier(one, sigma=gamma)(pixels) for one in (model, plain))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match=r"cannot be given \['sgima'\]"):
            PixelClassifier(model, sgima=30)


class TestNoiseOfItsOwn:
    """A random defense of someone else, which takes its noise from the global generator."""

    def test_is_noticed(self, pixels):
        classifier = PixelClassifier(Sequential(noise=0.1))
        with pytest.raises(ValueError, match="gives equal pixels different logits: pass random=True"):
            classifier(pixels)
        unseeded = PixelClassifier(Sequential(noise=0.1, source=torch.Generator()))
        models = PixelClassifier(Sequential()), classifier, unseeded
        state = torch.get_rng_state()
        found = [one.find_noise(pixels) for one in models]
        assert found == [None, "seeded", "unseeded"]
        assert torch.equal(state, torch.get_rng_state())

    def test_a_coin_for_the_whole_batch_is_noticed_whatever_the_seed(self, pixels):
        class Coin(torch.nn.Module):
            asked = 0

            def forward(self, pixels):
                self.asked += 1
                return pixels.flatten(1)[:, :2] * (1 if torch.rand(()) < 0.5 else -1)

        found = []
        for seed in range(8):
            torch.manual_seed(seed)
            found.append(PixelClassifier(Coin().eval(), random=False).find_noise(pixels))
        assert found == ["seeded"] * 8
        known = Coin().eval()
        assert PixelClassifier(known, random=True).find_noise(pixels, known=True) == "seeded"
        assert known.asked == 16

    @pytest.mark.parametrize("shared", [False, True])
    def test_draws(self, shared, pixels):
        """Of independent noise, even if a module gives a whole batch the same."""
        classifier = PixelClassifier(Sequential(noise=0.1, shared=shared), random=True)
        assert not classifier.is_deterministic
        same = pixels[:1].repeat(2, 1, 1, 1)
        draws = classifier.draw_logits(same, 400, image_generators([1, 2], "test"))
        assert draws.shape == (2, 400, 4)
        exact, weight = Sequential()(pixels[:1]), Sequential()[1].weight
        torch.testing.assert_close(draws.mean(dim=1), exact.expand(2, -1), atol=0.1, rtol=0)
        torch.testing.assert_close(draws.std(dim=1), 0.1 * weight.norm(dim=1).expand(2, -1), rtol=0.15, atol=0)
        assert torch.equal(draws, classifier.draw_logits(same, 400, image_generators([1, 2], "test")))
        assert not torch.equal(classifier(pixels), classifier(pixels))

    def test_fixed_noise_does_not_depend_on_the_batch(self, pixels):
        classifier = PixelClassifier(Sequential(noise=0.1), random=True, fixed_noise=True, seed=4)
        assert classifier.is_deterministic
        logits = classifier(pixels)
        torch.testing.assert_close(classifier(pixels[1:]), logits[1:])
        assert not torch.allclose(logits, Sequential()(pixels), atol=1e-3)

    def test_refused_for_a_model_with_a_sigma(self, robust_model):
        with pytest.raises(ValueError, match="has a sigma; leave out random"):
            PixelClassifier(robust_model, random=True)


@pytest.mark.parametrize("options", [{"sigma": None}, {"sigma": 0}, {"sigma": 30}, {"gradient": "bpda"}])
def test_no_images_are_refused(options, robust_model):
    classifier, none = PixelClassifier(robust_model, **options), torch.empty(0, 3, 32, 32)
    for ask in (classifier, lambda pixels: classifier.draw_logits(pixels, 3)):
        with pytest.raises(ValueError, match="the batch holds no images"):
            ask(none)
    plain = PixelClassifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval(), random=True)
    with pytest.raises(ValueError, match="the batch holds no images"):
        plain.draw_logits(torch.empty(0, 3, 2, 2), 2)
