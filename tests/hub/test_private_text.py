# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Secrets and paths in texts are found, and nothing is found in honest ones."""

import base64
import hashlib
import json
import random
import string
from pathlib import Path

import pytest
import transformers

from transformers_nim.hub.private_text import SecretScanner, private_parts


ROOT = Path(__file__).parents[2]
LETTERS = string.ascii_letters + string.digits
HEX = "0123456789abcdef"


def made_up(length: int, alphabet: str = LETTERS) -> str:
    """A part of a secret, made when it is needed: no file of this repository looks as if it had one."""
    return "".join(random.Random(f"{length} {alphabet}").choices(alphabet, k=length))


def encoded(content: dict) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def secrets() -> dict[str, str]:
    upper = string.ascii_uppercase + string.digits
    begin = "-----BEGIN"
    return {
        "Hugging Face": "hf_" + made_up(34),
        "Hugging Face, variable": "HF_TOKEN=hf_" + made_up(34),
        "Hugging Face, organization": "api_org_" + made_up(34),
        **{f"GitHub, {kind}": f"gh{kind}_" + made_up(36) for kind in "pousr"},
        "GitHub, fine-grained": "github_pat_" + made_up(22) + "_" + made_up(59),
        "GitLab": "glpat-" + made_up(20),
        "AWS, identifier": "AKIA" + made_up(16, upper),
        "AWS, temporary": "ASIA" + made_up(16, upper),
        "AWS, key": made_up(40, LETTERS + "/+"),
        "Azure": "DefaultEndpointsProtocol=https;AccountKey=" + made_up(86, LETTERS + "+") + "==",
        "Google": "AIza" + made_up(35, LETTERS + "-_"),
        "OpenAI": "sk-" + made_up(20) + "T3Blbk" + "FJ" + made_up(20),
        "Anthropic": "sk-ant-api03-" + made_up(93, LETTERS + "-_") + "AA",
        "Slack": "xoxb-" + made_up(12, string.digits) + "-" + made_up(11, string.digits) + "-" + made_up(24),
        "Slack, webhook": f"https://hooks.slack.com/services/T{made_up(8, upper)}/B{made_up(9, upper)}/{made_up(24)}",
        "PyPI": "pypi-AgEIcHlwaS5vcmc" + made_up(80),
        "npm": "//registry.npmjs.org/:_authToken=npm_" + made_up(36),
        "Stripe": "sk_live_" + made_up(24),
        "Twilio": "SK" + made_up(32, HEX),
        "SendGrid": "SG." + made_up(22) + "." + made_up(43),
        "Mailchimp": made_up(32, HEX) + "-us12",
        "Telegram": made_up(9, string.digits) + ":" + made_up(35),
        "Discord": "M" + made_up(23) + "." + made_up(6) + "." + made_up(27),
        "JSON Web Token": f"{encoded({'alg': 'HS256'})}.{encoded({'sub': '1'})}.{made_up(43)}",
        "in an address": "https://me:" + made_up(12) + "@example.com/x",
        "RSA": f"{begin} RSA PRIVATE KEY-----",
        "OpenSSH": f"{begin} OPENSSH PRIVATE KEY-----",
        "PKCS 8": f"{begin} PRIVATE KEY-----",
        "PKCS 8, encrypted": f"{begin} ENCRYPTED PRIVATE KEY-----\n" + made_up(64, LETTERS + "/+"),
        "password": f'"password": "{made_up(10)}"',
        "key of an experiment tracker": f'"wandb_api_key": "{made_up(40, HEX)}"',
        "Artifactory": "AKC" + made_up(30),
        "Square": "sq0csp-" + made_up(43),
        "IBM": f'ibm_api_key = "{made_up(44)}"',
    }


@pytest.fixture(scope="module")
def scanner():
    return SecretScanner()


@pytest.mark.parametrize("kind", secrets())
def test_secrets(kind, scanner, monkeypatch):
    """In prose, in JSON (as a string of its own and escaped in another), in YAML and in Markdown."""
    # Some detectors can ask the service whether a secret is real.
    monkeypatch.setattr("requests.sessions.Session.request", None)
    secret = secrets()[kind]
    texts = {
        "a.txt": f"1\n{secret}",
        "b.json": json.dumps({"a": 1, "b": f"x {secret}"}, indent=1),
        "c.jsonl": json.dumps({"a": "1"}) + "\n" + json.dumps({"a": [secret]}),
        "d.yaml": f"a: 1\nb: x {secret}",
        "e.md": f"# Use\nSay `{secret}` 'here'.",
    }
    for name, text in texts.items():
        (problem,) = private_parts(name, text, [], scanner)
        # The second line of a key is what gives it away, where its lines are not escaped.
        line = 3 if name == "b.json" or ("\n" in secret and name != "c.jsonl") else 2
        assert problem.startswith(f"{name}, line {line}: this looks like a secret (")
        assert secret not in problem


def test_unlucky_tokens_are_rare(scanner):
    tokens = ["hf_" + "".join(random.Random(seed).choices(LETTERS, k=34)) for seed in range(1000)]
    assert sum(scanner.find("a.txt", token) is None for token in tokens) <= 20


def test_own_tokens():
    (problem,) = private_parts("a.txt", "1\n2 one 3", ["zero", "one"], None)
    assert problem.startswith("a.txt, line 2: this looks like a secret (your token of the Hub)")
    assert private_parts("a.txt", "1\n2 one 3", ["zero"], None) == []


SHIPPED = [
    path
    for path in sorted([*(ROOT / "model_cards").rglob("*"), *ROOT.glob("*/*.md"), *ROOT.glob("*/configs/*.yaml")])
    if path.suffix in (".json", ".md", ".yaml")
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_of_this_repository_are_honest(path, scanner):
    assert scanner.find(path.name, path.read_text()) is None


def test_names_of_classes_are_no_secrets(scanner):
    """Those of classifiers from elsewhere stand in configurations."""
    names = [name for name in dir(transformers) if name.endswith(("ForImageClassification", "ImageProcessor"))]
    assert len(names) > 50
    assert scanner.find("config.json", json.dumps({"architectures": names}, indent=1)) is None


@pytest.mark.parametrize(
    "honest",
    [
        {"model_hash": hashlib.sha256(b"1").hexdigest()[:16], "image": hashlib.sha256(b"2").hexdigest()},
        {"commit": hashlib.sha1(b"3").hexdigest(), "md5": hashlib.md5(b"4").hexdigest()},
        {"run": "01234567-89ab-cdef-0123-456789abcdef", "version": "2.14.1.3", "time": "2026-05-01T12:34:56.789012Z"},
        {"output_dir": "outputs/2026-05-01_NIM-ViT-B16_ImageNet1k-AutoAugment_lr1e-4_bs4096_wd0.05_seed3/README"},
        {"image": "n02085620/ILSVRC2012_val_00012345.JPEG", "label": "Kerry_blue_terrier", "id2label": {"7": "safe"}},
        {"token": None, "hub_token": None, "cls_token": "cls", "pad_token": "[PAD]", "password": None, "secret": ""},
        {"weights": f"https://drive.google.com/file/d/1{made_up(32)}/view", "see": "data:a/b;base64," + made_up(90)},
        {"text": "Set `HF_TOKEN=$TOKEN`, or api_key=<yours>. Passwords and secrets: none. The key: a sigma of 50."},
        {"api_key": "<your key>", "password": "$PASSWORD", "secret": "****"},
        {"numbers": [0.123456789012345678, 1e-30, 12345678901234567890], "x": "0" * 64, "y": string.digits * 3},
    ],
    ids=lambda honest: next(iter(honest)),
)  # fmt: skip
def test_honest_texts(honest, scanner):
    for indent in (None, 1):
        assert scanner.find("a.json", json.dumps(honest, indent=indent)) is None
    assert scanner.find("a.md", "\n".join(f"{key}: {value}" for key, value in honest.items())) is None


def test_long_lines_do_not_take_long(scanner):
    """Result files may be written without line ends."""
    content = json.loads((ROOT / "model_cards/nim-vit-tiny-patch8-32-cifar10/certificates.json").read_text())
    assert scanner.find("a.json", json.dumps([content, hashlib.sha256(b"5").hexdigest() * 3000])) is None


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/lustre/x", "/lustre/x"), ('"/Volumes/x"', "/Volumes/x"), ("(/kaggle/input)", "/kaggle/input"),
        ("at /storage/x.", "/storage/x."), ("file:///home/x", "file:///home/x"), ("cwd:/home/x", "/home/x"),
        ("--a=/nfs7/2024", "/nfs7/2024"), ("/gpfs/1/x", "/gpfs/1/x"), ("[x](/home/me/x)", "/home/me/x"),
        ("D:/Projects/x", "/Projects/x"), ("C:\\Users\\me", "C:\\Users"), ("`/p1/p2/p3`", "/p1/p2/p3"),
    ],
)  # fmt: skip
def test_absolute_paths(text, path):
    (problem,) = private_parts("a.txt", text, [], None)
    assert problem.startswith(f"a.txt: {path} is an absolute path")
    # In JSON, too, where line ends and backslashes are escaped.
    for content in (json.dumps([f"a:\n{text}\n"]), json.dumps([f"a:\n{text}"]).replace("/", "\\/")):
        (problem,) = private_parts("a.json", content, [], None)
        assert problem.endswith("is an absolute path, which says where files lie on a machine; remove it")


@pytest.mark.parametrize(
    "text",
    [
        "https://a.b/home/c/d", "https://huggingface.co/nim/x/resolve/main/a", "see http://localhost:80/a/b.", "8/255",
        "eps = 8/255/2 or /8/255", "application/json", "image/svg+xml; text/plain", "[a](/docs/transformers/main)",
        '<img src="/a/b/c.png">', "<b>a</b></p>", "../a/b ./c/d ~/e/f", "{folder}/a/b $X/c/d ${Y}/e/f <Z>/g/h",
        "hf://datasets/a/b s3://a/b", "#!/usr/bin/env", "> /dev/null", "and/or/not", "/home", "a:\nb", "//cdn/a/b",
        "hf_hub_download", "NAME/nim-vit-tiny", "mean / low / high", "/path/to/checkpoint",
    ],
)  # fmt: skip
def test_no_absolute_paths(text):
    assert private_parts("a.txt", text, [], None) == []
    assert private_parts("a.json", json.dumps([text]), [], None) == []
