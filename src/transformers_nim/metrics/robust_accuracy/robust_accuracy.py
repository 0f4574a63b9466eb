# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The metric of accuracy of classifiers that draw fresh noise for every prediction.

`evaluate` copies this file out of its folder, so it imports nothing beside it.
"""

import datasets
import evaluate
import numpy as np

from transformers_nim.utils.statistics import mean_accuracy


# The label that losses of PyTorch ignore.
LEFT_OUT = -100

_DESCRIPTION = """
Accuracy of an image classifier whose predictions are random, from several predictions per image under independent
noise: the mean with its interval, the share of images that are right in every draw, and that of a majority vote. It is
the robust accuracy for adversarial images, and the clean accuracy for others.
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `int`, or `list` of `int`): For each image the classes predicted in independent
        noise draws, as many for every image; or one class for each image, which is one draw.
    references (`list` of `int`): True classes. Images whose reference is -100 are left out, whatever their
        predictions are.
    confidence (`float`): Coverage of the interval, between 0 and 1. Defaults to 0.95.

Returns:
    accuracy (`float`): Share of right predictions over images and draws, in [0, 1].
    accuracy_low (`float`): Lower end of its interval.
    accuracy_high (`float`): Upper end of its interval.
    worst_of_draws (`float`): Share of images that are right in all draws: what is left when an attacker may submit
        the same image once for every draw.
    majority (`float`): Share of images whose most frequent prediction is right. A tie counts as wrong.
    num_images (`int`): Images that were counted.
    num_draws (`int`): Predictions of each image.

Raises:
    ValueError: No image is left, images differ in their number of draws or have none, there are not as many
        references as predictions, a value is no whole number (scores instead of classes), a reference is negative, or
        `confidence` is not between 0 and 1.

Example:

    >>> from transformers_nim.metrics import load_metric
    >>> metric = load_metric("robust_accuracy")
    >>> results = metric.compute(predictions=[[3, 3, 3], [1, 1, 0], [2, 0, 1]], references=[3, 1, 2])
    >>> round(results["accuracy"], 3), round(results["worst_of_draws"], 3), round(results["majority"], 3)
    (0.667, 0.333, 0.667)
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS_DESCRIPTION)
class RobustAccuracy(evaluate.Metric):
    def _info(self):
        # Not int64: evaluate would truncate scores that were passed by mistake, and their accuracy would look real.
        classes = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=[
                datasets.Features({"predictions": datasets.Sequence(classes), "references": classes}),
                datasets.Features({"predictions": classes, "references": classes}),
            ],
            license="Apache-2.0",
            reference_urls=["https://arxiv.org/abs/1802.00420"],
        )

    def _infer_feature_from_batch(self, batch):
        # evaluate looks at the first image to tell lists from single classes, and fails if there is none.
        if any(len(column) == 0 for column in batch.values()):
            return self.features[0]
        return super()._infer_feature_from_batch(batch)

    def _compute(self, predictions, references, confidence=0.95):
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
        rows = [row if isinstance(row, list) else [row] for row in predictions]
        kept = [(row, true) for row, true in zip(rows, references) if true != LEFT_OUT]
        if not kept:
            raise ValueError(f"no images are left of {len(references)}; a reference of {LEFT_OUT} leaves an image out")
        lengths = sorted({len(row) for row, _ in kept})
        if len(lengths) > 1 or lengths[0] == 0:
            raise ValueError(f"every image needs the same number of draws, at least one; there are {lengths}")
        # None becomes nan.
        chosen = np.array([row for row, _ in kept], dtype=np.float64)
        true_classes = np.array([[true] for _, true in kept], dtype=np.float64)
        for name, classes in (("predictions", chosen), ("references", true_classes)):
            broken = classes[classes != np.floor(classes)]
            if len(broken):
                raise ValueError(f"{name} must be classes, which are whole numbers, not {broken[0]}")

        if (true_classes < 0).any():
            raise ValueError(f"references must be classes, whole numbers of at least 0, not {true_classes.min()}")
        correct = chosen == true_classes
        # For each draw, how many draws of its image agree with it.
        votes = np.stack([(chosen == column[:, None]).sum(axis=1) for column in chosen.T], axis=1)
        most_wrong_votes = np.where(correct, 0, votes).max(axis=1)
        accuracy = mean_accuracy(correct, confidence=confidence)
        return {
            "accuracy": accuracy.mean,
            "accuracy_low": accuracy.low,
            "accuracy_high": accuracy.high,
            "worst_of_draws": float(correct.all(axis=1).mean()),
            "majority": float((correct.sum(axis=1) > most_wrong_votes).mean()),
            "num_images": correct.shape[0],
            "num_draws": correct.shape[1],
        }
