# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from toys import Linear, Noisy

from transformers_nim.attacks import PixelClassifier, draw_logits, image_generators, image_seeds, make_attack
from transformers_nim.attacks.restarts import run_restarts


SMALL = {
    "eot_pgd": {"steps": 2, "restarts": 2, "num_draws": 3},
    "eot_apgd_ce": {"steps": 2, "restarts": 2, "num_draws": 3},
    "square": {"num_queries": 12, "num_draws": 2},
    "patch_statistics": {"steps": 2, "restarts": 1, "num_draws": 3},
    "low_frequency": {"steps": 2, "restarts": 1, "num_draws": 3},
    "vote": {"steps": 2, "restarts": 1, "num_draws": 3},
    "uniform_noise": {},
    "pgd": {"steps": 2},
}


@pytest.mark.parametrize("name", SMALL)
def test_an_image_depends_on_its_seed_alone(name, robust_model):
    """Bit for bit, whatever the other images, their order and their number."""
    num_images = 5
    pixels = torch.rand(num_images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(num_images) % 5
    seeds, classifier = image_seeds(3, num_images), PixelClassifier(robust_model, sigma=30)
    options = SMALL[name] | ({"batch_size": 9} if "steps" in SMALL[name] or name == "square" else {})
    attack = make_attack(name, **options)

    def run(index):
        return attack(classifier, pixels[index], labels[index], norm="Linf", eps=0.1, seeds=[seeds[i] for i in index])

    whole = run(list(range(num_images)))
    for size in (1, 3):
        parts = [run(list(range(start, min(start + size, num_images)))) for start in range(0, num_images, size)]
        assert torch.equal(torch.cat(parts), whole)
    order = [4, 2, 0, 1, 3]
    assert torch.equal(run(order), whole[order])
    # And it does depend on that.
    other = attack(classifier, pixels, labels, norm="Linf", eps=0.1, seeds=image_seeds(4, num_images))
    assert not torch.equal(other, whole)


def shift(by):
    """Return a run that makes images brighter."""
    return lambda clean, labels, generators: [(clean + by).clamp(0, 1)]


def test_the_best_candidate_of_each_image_is_chosen():
    """Images are class 1 from a brightness of 0.5 on, so what helps with one image harms with the other."""

    def classifier(pixels):
        mean = pixels.mean(dim=(1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)

    pixels, labels = torch.tensor([0.4, 0.6, 0.1, 0.9])[:, None, None, None].expand(4, 1, 2, 2), torch.arange(4) % 2
    runs = {"a": shift(0.2), "b": shift(-0.2), "c": shift(0.3), "d": shift(-0.3)}
    found = run_restarts(classifier, pixels, labels, range(4), runs, 1, batch_size=3)
    # The first two images are lost after the first run that turns them; the others keep the highest margin.
    torch.testing.assert_close(found[:, 0, 0, 0], torch.tensor([0.6, 0.4, 0.4, 0.6]))


def test_lost_images_are_not_attacked_again():
    seen = []

    def run(clean, labels, generators):
        seen.append(clean[:, 0, 0, 0].tolist())
        return [clean]

    pixels = torch.tensor([0.1, 0.9, 0.2])[:, None, None, None].expand(3, 1, 2, 2)

    def classifier(images):  # wrong for bright images: the label is 0
        return torch.stack([0.5 - images.mean(dim=(1, 2, 3)), images.mean(dim=(1, 2, 3)) - 0.5], dim=1)

    run_restarts(classifier, pixels, torch.zeros(3, dtype=torch.long), range(3), {"a": run, "b": run}, 1, 4)
    first, second = [sorted({round(value, 3) for value in values}) for values in seen]
    assert first == [0.1, 0.2, 0.9]
    assert second == [0.1, 0.2]
    assert all(len(values) == 4 for values in seen)  # filled up


def test_an_image_with_one_right_draw_is_attacked_again():
    """An image that is wrong in most draws is not lost yet."""
    calls = []

    class Rarely:
        def draw_logits(self, pixels, num_draws, generators):
            draw = torch.arange(num_draws).expand(len(pixels), -1)
            return torch.stack([(draw == 0) * 2.0, torch.ones(draw.shape)], dim=-1)

    def run(clean, labels, generators):
        calls.append(1)
        return [clean]

    runs = {"a": run, "b": run}
    run_restarts(Rarely(), torch.rand(1, 1, 2, 2), torch.tensor([0]), [0], runs, 20)
    assert len(calls) == 2
    calls.clear()
    run_restarts(Rarely(), torch.rand(1, 1, 2, 2), torch.tensor([1]), [0], {"a": run, "b": run}, 20)
    assert len(calls) == 2


def test_candidates_are_compared_on_draws_that_no_run_has_seen():
    seen = {"run": [], "choice": []}
    phase = ["choice"]

    class Recorder:
        def draw_logits(self, pixels, num_draws, generators):
            seen[phase[0]] += [torch.rand(num_draws, generator=generator).tolist() for generator in generators]
            return torch.zeros(len(pixels), num_draws, 2)

    classifier = Recorder()

    def run(clean, labels, generators):
        phase[0] = "run"
        draw_logits(classifier, clean, 3, generators)
        phase[0] = "choice"
        return [clean, clean]

    run_restarts(classifier, torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.long), [0, 1], {"a": run, "b": run}, 3)
    used, chosen = ({value for row in seen[key] for value in row} for key in ("run", "choice"))
    assert used
    assert chosen
    assert not used & chosen
    assert len(chosen) == 2 * 3  # the same draws for all four candidates
    assert len(used) == 2 * 2 * 3  # others for every run


def test_a_single_candidate_costs_no_further_queries():
    classifier = Noisy(Linear(), 0.1)
    run_restarts(classifier, torch.rand(2, 3, 4, 4), torch.tensor([0, 1]), [0, 1], {"a": shift(0.1)}, 5)
    assert classifier.queries == 0


def test_no_images(robust_model):
    for name in SMALL:
        attack = make_attack(name)
        empty = torch.rand(0, 3, 32, 32)
        found = attack(PixelClassifier(robust_model), empty, torch.zeros(0).long(), norm="Linf", eps=0.1, seeds=[])
        assert found.shape == empty.shape


def test_generators_of_other_purposes_differ():
    def numbers(*arguments):
        return [torch.rand(2, generator=generator).tolist() for generator in image_generators(*arguments)]

    assert numbers([1, 2], "a") == numbers([1, 2], "a")
    assert numbers([1, 2], "a") == numbers([2, 1], "a")[::-1]
    values = [tuple(row) for purpose in "ab" for row in numbers(range(50), purpose)]
    assert len(set(values)) == 100
    assert len(set(image_seeds(0, 50)) | set(image_seeds(1, 50))) == 100
    assert image_seeds(7, 5) == image_seeds(7, 9)[:5]
