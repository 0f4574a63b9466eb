# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Noisy image modeling (NIM) and the De^3 adversarial defense as transformers models.

Importing the package makes `AutoConfig`, `AutoModel`, `AutoModelForPreTraining`, `AutoModelForImageClassification`,
`AutoImageProcessor` and `pipeline("image-classification")` of transformers know NIM checkpoints. torch and the rest of
transformers are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING

from ._registration import register_with_transformers


__version__ = "0.1.0"

_EXPORTS = {
    "certification": ["ABSTAIN", "Certificate", "SmoothedPrediction"],
    "configuration_nim": ["NIM_SIZES", "NIMConfig", "NIMConfigError"],
    "image_processing_nim": ["NIMImageProcessor", "NIMImageProcessorPil"],
    "modeling_nim": [
        "NIMForImageClassification",
        "NIMForPreTraining",
        "NIMForRobustImageClassification",
        "NIMModel",
        "NIMPreTrainedModel",
    ],
    "noise": [
        "ConstantSigma",
        "GammaSigma",
        "SigmaDistribution",
        "UniformSigma",
        "add_noise",
        "parse_sigma",
        "register_sigma_distribution",
    ],
    "outputs_nim": ["NIMForPreTrainingOutput", "RobustImageClassifierOutput"],
    "pipeline_nim": ["NIMImageClassificationPipeline"],
    "robustness.report": ["RobustnessReport"],
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from .certification import (
        ABSTAIN as ABSTAIN,
        Certificate as Certificate,
        SmoothedPrediction as SmoothedPrediction,
    )
    from .configuration_nim import (
        NIM_SIZES as NIM_SIZES,
        NIMConfig as NIMConfig,
        NIMConfigError as NIMConfigError,
    )
    from .image_processing_nim import (
        NIMImageProcessor as NIMImageProcessor,
        NIMImageProcessorPil as NIMImageProcessorPil,
    )
    from .modeling_nim import (
        NIMForImageClassification as NIMForImageClassification,
        NIMForPreTraining as NIMForPreTraining,
        NIMForRobustImageClassification as NIMForRobustImageClassification,
        NIMModel as NIMModel,
        NIMPreTrainedModel as NIMPreTrainedModel,
    )
    from .noise import (
        ConstantSigma as ConstantSigma,
        GammaSigma as GammaSigma,
        SigmaDistribution as SigmaDistribution,
        UniformSigma as UniformSigma,
        add_noise as add_noise,
        parse_sigma as parse_sigma,
        register_sigma_distribution as register_sigma_distribution,
    )
    from .outputs_nim import (
        NIMForPreTrainingOutput as NIMForPreTrainingOutput,
        RobustImageClassifierOutput as RobustImageClassifierOutput,
    )
    from .pipeline_nim import (
        NIMImageClassificationPipeline as NIMImageClassificationPipeline,
    )
    from .robustness.report import (
        RobustnessReport as RobustnessReport,
    )


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_transformers()
