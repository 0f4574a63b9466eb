# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The metric of accuracy that is certified against every perturbation up to a radius.

`evaluate` copies this file out of its folder, so it imports nothing beside it.
"""

import datasets
import evaluate
import numpy as np

from transformers_nim.utils.statistics import certified_accuracy


# The label that losses of PyTorch ignore.
LEFT_OUT = -100

_DESCRIPTION = """
Certified accuracy of a smoothed image classifier (randomized smoothing): the share of images whose class is right and
is proven not to change under any perturbation up to a radius, at one or several radii.
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions (`list` of `int`): The class certified for each image, -1 where the classifier abstains.
    certified_radii (`list` of `float`): The certified radius of each image, at least 0.
    references (`list` of `int`): True classes. Images whose reference is -100 are left out.
    radii (`list` of `float`): Radii at which to tell the accuracy, in the unit of `certified_radii`. Defaults to
        0, 0.25, 0.5, 0.75, 1.
    confidence (`float`): Coverage of the intervals, between 0 and 1. Defaults to 0.95.

Returns:
    radii (`list` of `float`): As given.
    certified_accuracy (`list` of `float`): For each radius the share of images, in [0, 1], that are right and whose
        certified radius is at least as large.
    certified_accuracy_low (`list` of `float`): Lower ends of their intervals (Wilson).
    certified_accuracy_high (`list` of `float`): Upper ends.
    average_certified_radius (`float`): Mean over images of the radius, 0 for wrong classes (ACR).
    abstained (`float`): Share of images without an answer.
    num_images (`int`): Images that were counted.

Raises:
    ValueError: No image is left, numbers of predictions, radii and references differ, a class is no whole number or is
        negative (other than -1 and -100 as said), a radius is negative or no finite number, or `confidence` is not
        between 0 and 1.

Example:

    >>> from transformers_nim.metrics import load_metric
    >>> metric = load_metric("certified_accuracy")
    >>> results = metric.compute(
    ...     predictions=[3, 1, -1, 2], certified_radii=[0.6, 0.3, 0.0, 0.9], references=[3, 1, 4, 5], radii=[0, 0.5]
    ... )
    >>> results["certified_accuracy"], round(results["average_certified_radius"], 3), results["abstained"]
    ([0.5, 0.25], 0.225, 0.25)
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS_DESCRIPTION)
class CertifiedAccuracy(evaluate.Metric):
    def _info(self):
        # Not int64: evaluate would truncate scores that were passed by mistake, and their accuracy would look real.
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": number, "certified_radii": number, "references": number}),
            license="Apache-2.0",
            reference_urls=["https://arxiv.org/abs/1902.02918"],
        )

    def _compute(self, predictions, certified_radii, references, radii=(0, 0.25, 0.5, 0.75, 1), confidence=0.95):
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
        # None becomes nan.
        true_classes = np.array(references, dtype=np.float64)
        kept = true_classes != LEFT_OUT
        if not kept.any():
            raise ValueError(f"no images are left of {len(kept)}; a reference of {LEFT_OUT} leaves an image out")
        true_classes = true_classes[kept]
        chosen, proven = (np.array(column, dtype=np.float64)[kept] for column in (predictions, certified_radii))
        for name, classes, lowest in (("predictions", chosen, -1), ("references", true_classes, 0)):
            broken = classes[~((classes == np.floor(classes)) & (classes >= lowest))]
            if len(broken):
                raise ValueError(f"{name} must be classes, whole numbers of at least {lowest}, not {broken[0]}")
        asked = np.array(radii, dtype=np.float64).reshape(-1)
        for name, values in (("certified_radii", proven), ("radii", asked)):
            broken = values[~(np.isfinite(values) & (values >= 0))]
            if len(broken):
                raise ValueError(f"{name} must be finite and at least 0, not {broken[0]}")
        return certified_accuracy(chosen, proven, true_classes, asked, confidence)
