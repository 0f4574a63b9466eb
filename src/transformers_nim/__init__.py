# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Noisy image modeling (NIM) and the De^3 adversarial defense as transformers models.

Importing the package makes `AutoConfig`, `AutoModel`, `AutoModelForPreTraining`, `AutoModelForImageClassification`,
`AutoImageProcessor` and `pipeline("image-classification")` of transformers know NIM checkpoints.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .model.certification import ABSTAIN, Certificate, SmoothedPrediction
from .model.configuration_nim import NIM_SIZES, NIMConfig, NIMConfigError
from .model.image_processing_nim import NIMImageProcessor, NIMImageProcessorPil
from .model.modeling_nim import (
    NIMForImageClassification,
    NIMForPreTraining,
    NIMForRobustImageClassification,
    NIMModel,
    NIMPreTrainedModel,
)
from .model.noise import (
    ConstantSigma,
    GammaSigma,
    SigmaDistribution,
    UniformSigma,
    add_noise,
    parse_sigma,
    register_sigma_distribution,
)
from .model.outputs_nim import NIMForPreTrainingOutput, RobustImageClassifierOutput
from .model.pipeline_nim import NIMImageClassificationPipeline
from .robustness.report import RobustnessReport
from .utils.versions import VERSION


__version__ = VERSION

__all__ = [
    "ABSTAIN",
    "NIM_SIZES",
    "Certificate",
    "ConstantSigma",
    "GammaSigma",
    "NIMConfig",
    "NIMConfigError",
    "NIMForImageClassification",
    "NIMForPreTraining",
    "NIMForPreTrainingOutput",
    "NIMForRobustImageClassification",
    "NIMImageClassificationPipeline",
    "NIMImageProcessor",
    "NIMImageProcessorPil",
    "NIMModel",
    "NIMPreTrainedModel",
    "RobustImageClassifierOutput",
    "RobustnessReport",
    "SigmaDistribution",
    "SmoothedPrediction",
    "UniformSigma",
    "add_noise",
    "parse_sigma",
    "register_sigma_distribution",
]


class _Classes(tuple):
    """Several classes for one config. Early 5.x releases ask every registered class for its name, tuples too."""

    __slots__ = ()
    __name__ = "NIMForRobustImageClassification"


AutoConfig.register("nim", NIMConfig, exist_ok=True)
AutoModel.register(NIMConfig, NIMModel, exist_ok=True)
AutoModelForPreTraining.register(NIMConfig, NIMForPreTraining, exist_ok=True)
# A checkpoint's own class is chosen; the first is for those that name neither, such as pretraining checkpoints.
AutoModelForImageClassification.register(
    NIMConfig, _Classes((NIMForRobustImageClassification, NIMForImageClassification)), exist_ok=True
)
AutoImageProcessor.register(
    NIMConfig, image_processor_classes={"torchvision": NIMImageProcessor, "pil": NIMImageProcessorPil}, exist_ok=True
)

_task = PIPELINE_REGISTRY.supported_tasks["image-classification"]
# Pipelines of other models stay of the class that stood there (a dotted path is transformers' own class).
if isinstance(_task["impl"], type) and not issubclass(_task["impl"], NIMImageClassificationPipeline):
    NIMImageClassificationPipeline.fallback = _task["impl"]
# A new mapping: the class that stood there keeps the old one as its own registration.
PIPELINE_REGISTRY.supported_tasks["image-classification"] = {**_task, "impl": NIMImageClassificationPipeline}
