# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""evaluate_robustness on models whose robustness is known, and on all that it takes."""

import math
import os
import random
from types import SimpleNamespace

import pytest
import torch
from attacks.toys import Linear, boundary_points
from conftest import random_picture, tiny_model
from torch.utils.data import DataLoader
from transformers import ViTForImageClassification, pipeline

from transformers_nim import NIMForImageClassification, NIMImageProcessor
from transformers_nim.attacks import PixelClassifier
from transformers_nim.model.noise import ConstantSigma
from transformers_nim.robustness import RobustnessReport, evaluate_robustness
from transformers_nim.robustness.protocol import HEADLINE, NOISE_KNOWN


SHAPE = (3, 4, 4)
LINEAR = Linear(classes=2, shape=SHAPE)
GAP = LINEAR.weight[1] - LINEAR.weight[0]
TINY = {"steps": 1, "num_draws": 1, "num_queries": 2, "num_check_images": 1}


class LinearModule(torch.nn.Module):
    """A linear classifier, with noise of its own if asked for."""

    def __init__(self, noise=0.0, generator=None):
        super().__init__()
        self.weight = torch.nn.Parameter(LINEAR.weight.flatten(1))
        self.noise, self.generator = noise, generator
        self.eval()

    def forward(self, pixels):
        if self.noise:
            pixels = pixels + self.noise * torch.randn(pixels.shape, generator=self.generator)
        return pixels.flatten(1) @ self.weight.T


@pytest.mark.parametrize(("norm", "eps", "order"), [("Linf", 8 / 255, 1), ("L2", 0.4, 2)])
def test_a_linear_model_is_as_robust_as_its_margins(norm, eps, order):
    """In a ball of eps its margin rises by eps times the dual norm of its slope, and not more."""
    reach = eps * torch.linalg.vector_norm(GAP.flatten(), ord=order).item()
    images = torch.cat([boundary_points(LINEAR, 3, 0.9 * reach), boundary_points(LINEAR, 5, 1.1 * reach)])
    state, budget = torch.get_rng_state(), {"steps": 10, "num_queries": 16, "num_check_images": 2}
    report = evaluate_robustness(
        LinearModule(), images, torch.zeros(8, dtype=torch.long), eps=eps, norm=norm, budget=budget, progress=False
    )
    assert report.row("clean", None).accuracy.mean == 1
    assert report.strongest(None).row.accuracy.mean == 5 / 8
    assert report.correct(HEADLINE, None)[:, 0].tolist() == [False] * 3 + [True] * 5
    assert report.settings["eps"] == pytest.approx(255 * eps, abs=1e-9)
    assert (report.settings["split"], report.settings["image_processor"]["mean"]) == ("as given", None)
    assert "own_noise" not in report.settings
    assert not any("is_random" in cell for cell in report.cells)
    assert torch.equal(state, torch.get_rng_state())
    assert len(report.samples) == 6
    assert report.samples[0]["adversarial_prediction"] == 1


class TestNoiseOfItsOwn:
    """A model that draws noise by itself meets the protocol of random defenses."""

    SCALE = 0.2

    def evaluate(self, generator=None):
        # Right with probability 0.8, as the margin under noise is Gaussian.
        distance = 0.8416 * self.SCALE * torch.linalg.vector_norm(GAP).item()
        images = boundary_points(LINEAR, 8, distance)
        budget = {**TINY, "num_draws": 4, "num_queries": 8, "num_evaluations": 22, "num_check_images": 8}
        model = LinearModule(self.SCALE, generator)
        return evaluate_robustness(model, images, [0] * 8, eps=4 / 255, budget=budget, progress=False)

    def test_known_by_its_seed(self):
        report = self.evaluate()
        assert report.settings["own_noise"] == "seeded"
        clean = report.row("clean", None)
        assert clean.num_draws == 22
        assert clean.accuracy.mean == pytest.approx(0.8, abs=0.08)
        assert clean.worst_of_10.mean < 0.5
        assert report.row(HEADLINE, None).accuracy.mean < clean.accuracy.mean - 0.05
        # Who knows the noise attacks a model without any.
        known = report.configuration(NOISE_KNOWN)
        assert (known.fixed_noise, known.is_random, known.is_deterministic) == (True, True, True)
        assert not report.configuration(HEADLINE).is_deterministic
        assert report.row(NOISE_KNOWN, None).num_draws == 1
        (agree,) = [check for check in report.checks if check["name"].startswith("gradients agree")]
        assert agree["passed"]
        assert "noise of its own" in str(report)
        assert RobustnessReport.from_dict(report.to_dict()) == report

    def test_known_by_nobody(self):
        report = self.evaluate(torch.Generator())
        assert report.settings["own_noise"] == "unseeded"
        assert report.row("clean", None).num_draws == 22
        assert not any(cell["fixed_noise"] for cell in report.cells)
        assert "attacks that know the noise: no seed" in " ".join(report.left_out)
        (agree,) = [check for check in report.checks if check["name"].startswith("gradients agree")]
        assert agree["passed"] is None

    def test_records_do_not_depend_on_batches(self):
        images, labels = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0)), [0, 1, 0]
        options = {"eps": 4 / 255, "budget": {**TINY, "num_draws": 2, "num_queries": 8}, "progress": False}
        found = []
        for batch_size in (1, 3):
            # As a surrogate too.
            options["surrogates"] = {"other": SharedNoise()}
            report = evaluate_robustness(SharedNoise(), images, labels, batch_size=batch_size, **options)
            records = [{**record, "seconds": 0} for record in report.records]
            found.append(sorted(records, key=lambda record: (record["cell"], record["row"])))
        assert found[0] == found[1]

    def test_of_a_surrogate_is_averaged_over(self):
        images, labels = torch.rand(2, *SHAPE), [0, 1]
        surrogates = {"random": LinearModule(self.SCALE), "plain": LinearModule()}
        budget = {**TINY, "num_draws": 3, "num_queries": 8}
        report = evaluate_robustness(
            LinearModule(), images, labels, surrogates=surrogates, budget=budget, progress=False
        )
        noisy, plain = (report.configuration(f"transfer from {name}") for name in surrogates)
        assert noisy.options["options"] == {"steps": 1, "restarts": 1, "num_draws": 3, "batch_size": 3}
        assert plain.options["options"] == {"steps": 1, "restarts": 1, "batch_size": 8}
        assert noisy.cost == tuple(3 * passes for passes in plain.cost)
        assert "own_noise" not in report.settings

    def test_told_by_the_caller(self):
        model = LinearModule(self.SCALE)
        report = tiny_evaluation(model, *GIVEN, random=False)
        assert "own_noise" not in report.settings
        assert "that it has none (random=False) is taken on trust" in " ".join(report.left_out)
        for given, options in ((LinearModule(), {"random": True}), (PixelClassifier(LinearModule(), random=True), {})):
            assert tiny_evaluation(given, *GIVEN, **options).settings["own_noise"] == "seeded"

    def test_on_pictures(self, pictures):
        """What only normalizes and counts classes asks for no noise."""
        model = torch.nn.Sequential(Noise(), torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2)).eval()
        assert tiny_evaluation(model, pictures[0]).settings["own_noise"] == "seeded"


class SharedNoise(LinearModule):
    """Gives a whole batch the same noise, on which the signs of gradients depend."""

    def forward(self, pixels):
        return super().forward((pixels - 0.5 + torch.randn(pixels.shape[1:])) ** 2)


class Noise(torch.nn.Module):
    def forward(self, pixels):
        return pixels + torch.randn_like(pixels)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of pictures per class, 32x32, and the same pictures in memory."""
    root, made = tmp_path_factory.mktemp("pictures"), []
    for seed in range(6):
        name, picture = f"LABEL_{seed % 2}", random_picture(seed, (32, 32))
        (root / name).mkdir(exist_ok=True)
        picture.save(root / name / f"{seed}.png")
        made.append((picture, seed % 2))
    return root, made


def tiny_evaluation(*args, **options):
    options = {"budget": TINY, "num_images": 3, "progress": False, **options}
    return evaluate_robustness(*args, **options)


def hashes(report):
    return {image["image"]: image["label"] for image in report.images}


def test_images_of_all_kinds(pictures, tmp_path):
    datasets = pytest.importorskip("datasets")
    root, pairs = pictures
    model = tiny_model(NIMForImageClassification)
    whole = datasets.Dataset.from_dict(
        {"image": [picture for picture, _ in pairs], "label": [label for _, label in pairs]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=5)}),
    )
    processor = NIMImageProcessor.from_config(model.config)
    values = processor([picture for picture, _ in pairs], do_normalize=False, return_tensors="pt")["pixel_values"]
    labels = torch.tensor([label for _, label in pairs])
    given = hashes(tiny_evaluation(model, values, labels, num_images=6))
    assert sorted(given.values()) == [0, 0, 0, 1, 1, 1]
    loader = DataLoader(list(zip(values, labels)), batch_size=2)
    by_index = {"labels_by_index": True}
    kinds = {
        "Dataset": (whole, by_index), "DatasetDict": (datasets.DatasetDict(train=whole, test=whole), by_index),
        "folder": (root, {}), "pairs": (Pairs(pairs), {}), "DataLoader": (loader, {}),
    }  # fmt: skip
    for kind, (images, options) in kinds.items():
        found = tiny_evaluation(model, images, image_processor=processor, **options)
        assert len(found.images) == 3, kind
        assert hashes(found).items() <= given.items(), kind
    assert found.settings["dataset"] == "tensors"
    # A module without an image processor sees pictures as they are.
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2)).eval()
    found = tiny_evaluation(module, root, name="linear")
    assert hashes(found).items() <= given.items()
    assert (found.classes, found.settings["model"], found.settings["split"]) == (
        ["LABEL_0", "LABEL_1"],
        "linear",
        "train",
    )
    assert found.settings["dataset"] == root.name
    with pytest.raises(ValueError, match="there is no split 'test'"):
        tiny_evaluation(module, root, split="test")
    random_picture(9, (20, 20)).save(root / "LABEL_0" / "small.png")
    with pytest.raises(ValueError, match="the pictures have different sizes, such as"):
        tiny_evaluation(module, root, num_images=7)


class Pairs(torch.utils.data.Dataset):
    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, row):
        return self.pairs[row]


def test_a_data_set_whose_transform_is_random_is_refused(pictures):
    class Random(Pairs):
        def __getitem__(self, row):
            picture, label = self.pairs[row]
            return picture.rotate(random.choice([0, 90])), label

    random.seed(0)
    with pytest.raises(
        ValueError, match="of Random gives other pixels when it is read again: its transform is random"
    ):
        tiny_evaluation(torch.nn.Flatten().eval(), Random(pictures[1] * 4), num_images=24)


def test_models_of_all_kinds(robust_model, robust_path, vit_path):
    images, labels = torch.rand(1, 3, 32, 32), torch.tensor([1])
    defense = {"sigma": 30, "num_samples": 2, "vote": "majority"}
    pipe = pipeline("image-classification", robust_path, **defense)
    reports = [
        tiny_evaluation(model, images, labels, sigmas=[], **options)
        for model, options in (
            (robust_path, defense), (torch.nn.DataParallel(robust_model), defense), (pipe, {}),
            (robust_model.as_pixel_classifier(**defense), {}),
        )
    ]  # fmt: skip
    constant = robust_model.as_pixel_classifier(**{**defense, "sigma": ConstantSigma(30)})
    reports.append(tiny_evaluation(constant, images, labels, sigmas=[]))
    for report in reports:
        assert [report.settings[name] for name in defense] == list(defense.values())
        assert report.settings["model_class"] == "NIMForRobustImageClassification"
        assert report.settings["model_hash"] == reports[0].settings["model_hash"]
        assert report.predictions("clean", 30).tolist() == reports[0].predictions("clean", 30).tolist()
        assert report.samples is not None
    surrogates = {"same": vit_path, "module": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 3)).eval()}
    report = tiny_evaluation(vit_path, images, labels, surrogates=surrogates)
    assert report.settings["model"] == os.path.basename(vit_path)
    assert {cell["source"] for cell in report.cells} == {None, "same", "module"}
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=3).eval()
    report = tiny_evaluation(model, images, labels, num_images=1)
    assert report.settings["image_processor"]["mean"] == list(model.pretrained_cfg["mean"])
    assert report.settings["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_goes_on_in_its_folder(tmp_path):
    images, labels = torch.rand(3, *SHAPE), [0, 1, 0]
    first = tiny_evaluation(LinearModule(), images, labels, output_dir=tmp_path)
    again = tiny_evaluation(LinearModule(), images, labels, output_dir=tmp_path)
    assert [record["seconds"] for record in again.records] == [record["seconds"] for record in first.records]
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        tiny_evaluation(LinearModule(), images, labels, output_dir=tmp_path, seed=1)
    with pytest.raises(ValueError, match="holds the records of an earlier run"):
        tiny_evaluation(LinearModule(), images, labels, output_dir=tmp_path, resume=False)


def test_a_time_budget_is_kept_without_a_folder():
    report = tiny_evaluation(LinearModule(), torch.rand(3, *SHAPE), [0, 1, 0], budget_minutes=60)
    assert report.cut == []
    assert not math.isnan(report.wall_time)


GIVEN = (torch.rand(2, *SHAPE), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((LinearModule(), (255 * GIVEN[0]).byte(), GIVEN[1]), {}, r"pixels in \[0, 1\], got torch.uint8"),
        ((LinearModule(), 255 * GIVEN[0], GIVEN[1]), {}, r"got values from .* pass images / 255"),
        ((LinearModule(), 4 * GIVEN[0] - 2, GIVEN[1]), {}, "as they are before the normalization"),
        ((LinearModule(), GIVEN[0][0], GIVEN[1]), {}, r"shape \(images, channels, height, width\)"),
        ((LinearModule(), GIVEN[0]), {}, "needs labels"),
        ((LinearModule(), GIVEN[0], GIVEN[1][:1]), {}, "labels must be 2 class numbers"),
        ((LinearModule(), GIVEN[0], [0, 2]), {}, "labels must be class numbers from 0 to 1, got 2"),
        ((LinearModule(), torch.rand(2, 3, 5, 5), [0, 1]), {}, "LinearModule cannot classify images of 3x5x5"),
        ((LinearModule(), SimpleNamespace(), None), {}, "images must be a tensor"),
        ((lambda pixels: pixels, *GIVEN), {}, "the model must be a torch.nn.Module"),
        ((LinearModule().train(), *GIVEN), {}, "call model.eval()"),
        ((LinearModule(), *GIVEN), {"sigma": 50}, r"LinearModule has no defense: leave sigma \(50\) out"),
        ((LinearModule(), *GIVEN), {"sigmas": [50]}, r"LinearModule has no defense: leave sigmas \(\[50\]\) out"),
        ((LinearModule(), *GIVEN), {"num_samples": 4}, "num_samples and vote are for a defense"),
        ((LinearModule(), *GIVEN), {"eps": 8}, r"for pixels in \[0, 1\]; got 8"),
        ((LinearModule(), *GIVEN), {"norm": "L1"}, "norm must be one of"),
        ((LinearModule(), *GIVEN), {"suite": "long"}, "suite must be one of"),
        ((LinearModule(), *GIVEN), {"budget": {"step": 3}}, "budget has no field 'step'; it has"),
        ((LinearModule(), *GIVEN), {"attacks": ["deepfool"]}, "unknown attack 'deepfool'"),
        ((LinearModule(), *GIVEN), {"image_mean": [0.5]}, "pass image_mean and image_std"),
        ((tiny_model(), *GIVEN), {"random": True}, "is for models without a sigma"),
        ((LinearModule(), *GIVEN), {"budget_minutes": 0}, "budget_minutes must be positive"),
        ((LinearModule(), *GIVEN), {"attack_precision": "bf16"}, "is for attacks on a random defense"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(args, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_robustness(*args, progress=False, **options)


def test_a_model_of_transformers_needs_its_normalization(vit_path):
    model = ViTForImageClassification.from_pretrained(vit_path).eval()
    with pytest.raises(ValueError, match="pass image_mean and image_std of its image processor, or image_processor"):
        evaluate_robustness(model, torch.rand(1, 3, 32, 32), [0])


def test_memory_that_runs_out_is_no_matter_of_the_images():
    class Hungry(torch.nn.Module):
        def forward(self, pixels):
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        evaluate_robustness(Hungry().eval(), *GIVEN, progress=False)
