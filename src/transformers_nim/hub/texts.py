# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What cards say in words: by the class of a model, not by what was measured."""

TEMPLATE = """---
{{ card_data }}
---

# {{ model_name }}

{{ sections }}
"""

CITATION = """\
The method is that of You, Liu, Han and Xu, *Beyond Pretrained Features: Noisy Image Modeling Provides Adversarial
Defense*, NeurIPS 2023, [arXiv 2302.01056](https://arxiv.org/abs/2302.01056); transformers-nim is an independent
implementation.

```bibtex
@inproceedings{you2023beyond,
  title = {Beyond Pretrained Features: Noisy Image Modeling Provides Adversarial Defense},
  author = {You, Zunzhi and Liu, Daochang and Han, Bohyung and Xu, Chang},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2023},
  eprint = {2302.01056},
  archivePrefix = {arXiv}
}
```"""

# By the kind of model; `{name}` is its name and `{sigma}` the argument that gives the sigma of its defense.
USAGE = {
    "pretraining": """```python
from transformers_nim import NIMForPreTraining, NIMForRobustImageClassification

denoiser = NIMForPreTraining.from_pretrained("{name}")
# The start of fine-tuning: the denoiser is there, the head is new.
model = NIMForRobustImageClassification.from_pretrained("{name}", num_labels=10)
```""",
    "masked": """```python
from transformers_nim import NIMForImageClassification

# The start of fine-tuning without a defense: the encoder is there, the head is new.
model = NIMForImageClassification.from_pretrained("{name}", num_labels=10)
```""",
    "undefended": """```python
import transformers_nim  # makes transformers know this model
from transformers import pipeline

pipe = pipeline("image-classification", model="{name}")
```""",
    "defended": """```python
import transformers_nim  # makes transformers know this model
from transformers import pipeline

# The path of this folder, or its name on the Hub.
pipe = pipeline("image-classification", model="{name}"{sigma})
```

`sigma` is the scale of the noise that the defense adds before it denoises, in units of 0..255 pixels. 0 denoises
without adding noise, `None` switches the defense off.""",
}

USAGE_OFF = """\
The configuration of this model has no `sigma`: the defense is off, and the bare classifier answers, until one is given
(`pipe(image, sigma=...)`)."""

USAGE_WITHOUT_WEIGHTS = "Once the weights are there, this works:"

FOREIGN = """\
Only the denoiser is a NIM model. The classifier behind it is a `{kind}` that was made elsewhere. The license of the
whole folder, this classifier included, is given as `{license}`."""

USAGE_WITH_CODE = """\
The folder carries the code of transformers-nim {version}, for those who have not installed it: transformers executes
it if you pass `trust_remote_code=True` in place of the import. Read the Python files first, and pin a `revision`."""

INTENDED = {
    "pretraining": "A denoiser for research on adversarial defense by denoising: the frozen first half of a De^3"
    " classifier, and the start of its fine-tuning. It classifies nothing by itself.",
    "masked": "A baseline for research: the encoder of a classifier that is to be compared with one that was"
    " pretrained to denoise. Its decoder is no denoiser.",
    "plain": "A baseline for research on adversarial defenses: it has none itself.",
    "noisy": "A baseline for research on adversarial defenses: a classifier that was trained on noisy images, without"
    " a denoiser.",
    "adversarial": "A baseline for research on adversarial defenses: a classifier that was trained on attacked images,"
    " without a denoiser.",
    "unknown": "A baseline for research on adversarial defenses: a classifier without a denoiser.",
    "defended": "Research on adversarial robustness: classification of images that somebody may have perturbed"
    " slightly{within}. It is no sole safeguard where wrong answers harm somebody.",
}
# Of the last, by whether attacks or certificates were measured.
WITHIN = {
    True: ", within the kinds and sizes of perturbations that are listed under Evaluation",
    False: ". How well it withstands them has not been measured yet",
}

LIMITS = {
    "pretraining": [],
    "masked": [],
    "plain": ["No defense: small perturbations change its answers."],
    "noisy": [
        "No denoiser, and no noise when it predicts: training on noisy images makes a classifier used to noise. How"
        " far it withstands perturbations that are made on purpose, only attacks on it can tell.",
    ],
    "adversarial": [
        "No denoiser: whatever it withstands it owes to its training on attacked images ({attack}). How much that is,"
        " only attacks on it can tell. It was not trained on larger perturbations, nor on other norms.",
    ],
    "unknown": ["No denoiser. Unless its training has hardened it, small perturbations change its answers."],
    "defended": [
        "Perturbations that are larger than those of its evaluation, or bounded by other norms.",
        "Attackers with more steps, restarts or noise draws than its evaluation tries: an accuracy under attack is an"
        " upper bound.",
        "Resubmission: noise is drawn anew for every prediction, so whoever may try the same image often needs one"
        " lucky draw. A fixed `seed` makes predictions repeatable and the noise known to an attacker.",
        "Other threats: poisoned training data, backdoors, patches stuck on objects, images unlike those of training.",
    ],
}
LEAKS = (
    'Per-patch brightness and contrast: with `norm_pix_loss` and `patch_statistics="input"` they bypass the noise, and'
    " nothing can be certified."
)

NO_WEIGHTS = """\
**There are no weights here yet.** This folder holds the configuration and the image processor alone. These commands
make the weights, here for 8 A100 (other GPUs: `examples/plan_run.py`), from folders of images in `imagenet/train` and
`imagenet/val`. What they leave in the last `--output_dir` takes the place of this folder."""

PROTOCOL = {
    "defended": """\
A trained model is evaluated by `examples/evaluate_robustness.py`: white-box attacks with exact gradients, averaged
over many noise draws; accuracy over noise that the attack never saw, with its interval, beside the clean accuracy; and
checks of the attacks themselves. Certificates are made by `examples/certify.py`. Their result files become tables here
and entries of the metadata, with norm, eps, steps, noise draws, sigma and interval.""",
    "pretraining": """\
A trained denoiser is measured in dB of its denoised images on validation images at several sigmas, while it is
trained; robustness is measured on the classifiers that are made of it.""",
}
