# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""`pipeline("image-classification")`: the options of the defense, everything the stock pipeline does, other models."""

import base64
import copy
import math
import pickle
import threading
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import random_picture, save_with_processor, tiny_config, tiny_model
from PIL import Image
from transformers import ImageClassificationPipeline, ViTForImageClassification, ViTImageProcessor, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from transformers_nim import (
    ConstantSigma,
    GammaSigma,
    NIMForImageClassification,
    NIMForRobustImageClassification,
    NIMImageClassificationPipeline,
    NIMImageProcessor,
    NIMImageProcessorPil,
    UniformSigma,
)
from transformers_nim.data.loading import decode_picture
from transformers_nim.model import image_processing_nim


make_pipeline = partial(pipeline, "image-classification")
LABELS = {f"LABEL_{index}" for index in range(5)}


@pytest.fixture(scope="session")
def pipe(robust_path):
    """Without options. Not to be changed by tests."""
    return make_pipeline(model=robust_path)


def by_label(answer: list[dict]) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in answer}


def assert_same(answer: list[dict], expected: list[dict], tolerance: float = 1e-5) -> None:
    """Two answers for one picture have the same labels and scores."""
    assert by_label(answer) == pytest.approx(by_label(expected), abs=tolerance, rel=0)


def difference(answers: list[list[dict]], others: list[list[dict]]) -> float:
    pairs = [(by_label(a), by_label(b)) for a, b in zip(answers, others, strict=True)]
    return max(abs(a[label] - b[label]) for a, b in pairs for label in LABELS)


def by_hand(model, picture, seed=None, **options):
    """The output of a direct call of the model, draws included."""
    pixel_values = NIMImageProcessor.from_config(model.config)(images=picture, return_tensors="pt").pixel_values
    generators = None if seed is None else [torch.Generator().manual_seed(seed)]
    with torch.no_grad():
        return model(pixel_values, generator=generators, output_draws=True, **options)


def assert_is_by_hand(answer: list[dict], model, picture, tolerance: float = 1e-5, **options) -> None:
    scores = by_hand(model, picture, **options).logits[0].softmax(dim=-1)
    expected = {model.config.id2label[index]: score.item() for index, score in enumerate(scores)}
    assert by_label(answer) == pytest.approx(expected, abs=tolerance, rel=0)
    assert answer[0]["label"] == max(expected, key=expected.__getitem__)


# The options of the defense.

SIGMAS = {
    "number": 25,
    "float": 12.5,
    "zero": 0,
    "mapping": {"type": "uniform", "low": 20, "high": 60},
    "distribution": GammaSigma(9.0, 5.0),
    "constant": ConstantSigma(40.0),
    "off": None,
    "config": "config",
}


def test_the_pipeline_is_ours(pipe, robust_path, robust_model):
    assert type(pipe) is NIMImageClassificationPipeline
    assert isinstance(pipe, ImageClassificationPipeline)
    assert type(pipe.model) is NIMForRobustImageClassification
    assert type(pipe.image_processor) is NIMImageProcessor
    assert not pipe.model.training
    processor = NIMImageProcessor.from_config(robust_model.config)
    for other in (
        make_pipeline(model=robust_model, image_processor=processor),
        make_pipeline(robust_model, image_processor=robust_path),
        NIMImageClassificationPipeline(robust_model, image_processor=processor),
    ):
        assert type(other) is NIMImageClassificationPipeline
        assert_same(other(random_picture(0), seed=0), pipe(random_picture(0), seed=0))


@pytest.mark.parametrize("when", ["construction", "call"])
@pytest.mark.parametrize("name", SIGMAS)
def test_sigma(pipe, robust_path, robust_model, pictures, name, when):
    options = {"sigma": SIGMAS[name], "seed": 5}
    used, call = (make_pipeline(model=robust_path, **options), {}) if when == "construction" else (pipe, options)
    for picture in pictures[:2]:
        assert_is_by_hand(used(picture, **call), robust_model, picture, **options)


def test_every_sigma_makes_a_difference(pipe, pictures):
    answers = [pipe(pictures, sigma=sigma, seed=5) for sigma in SIGMAS.values()]
    for index, one in enumerate(answers):
        for other in answers[index + 1 :]:
            assert difference(one, other) > 1e-3


def test_the_models_own_sigma_is_the_default(tmp_path, pictures):
    for sigma in (30, None, {"type": "uniform", "low": 5, "high": 50}):
        model = tiny_model(defense_sigma=sigma)
        pipe = make_pipeline(model=model, image_processor=NIMImageProcessor.from_config(model.config), seed=2)
        assert_is_by_hand(pipe(pictures[0]), model, pictures[0], sigma=sigma, seed=2)
        assert_is_by_hand(pipe(pictures[0], sigma="config"), model, pictures[0], sigma=sigma, seed=2)
        assert_is_by_hand(pipe(pictures[0], sigma=80), model, pictures[0], sigma=80, seed=2)


@pytest.mark.parametrize("when", ["construction", "call"])
@pytest.mark.parametrize("vote", ["mean", "majority"])
@pytest.mark.parametrize("num_samples", [1, 7])
def test_num_samples_and_vote(pipe, robust_path, robust_model, pictures, num_samples, vote, when):
    options = {"num_samples": num_samples, "vote": vote, "sigma": UniformSigma(10.0, 90.0), "seed": 1}
    used, call = (make_pipeline(model=robust_path, **options), {}) if when == "construction" else (pipe, options)
    answer = used(pictures[1], **call)
    assert_is_by_hand(answer, robust_model, pictures[1], **options)
    assert sum(by_label(answer).values()) == pytest.approx(1, abs=1e-5)
    if vote == "majority" and num_samples == 7:
        # Every score is a number of sevenths.
        for score in by_label(answer).values():
            assert score * 7 == pytest.approx(round(score * 7), abs=1e-3)


def test_the_models_own_num_samples_and_vote_are_the_default(pictures):
    model = tiny_model(num_samples=3, vote="majority")
    pipe = make_pipeline(model=model, image_processor=NIMImageProcessor.from_config(model.config), seed=2)
    assert_is_by_hand(pipe(pictures[0]), model, pictures[0], num_samples=3, vote="majority", seed=2)
    assert_is_by_hand(pipe(pictures[0], vote="mean"), model, pictures[0], num_samples=3, vote="mean", seed=2)


@pytest.mark.parametrize("single", [True, False])
def test_call_takes_precedence_and_changes_nothing(robust_path, robust_model, pictures, single):
    at_construction = {"sigma": 90, "num_samples": 3, "vote": "majority", "seed": 1}
    pipe = make_pipeline(model=robust_path, return_denoised=True, top_k=2, **at_construction)

    def ask(**options):
        return pipe(pictures[0], **options) if single else pipe(pictures[:1], **options)[0]

    for options in ({"sigma": 10}, {"sigma": None}, {"sigma": 0}, {"num_samples": 5}, {"vote": "mean"}, {"seed": 0}):
        answer = ask(return_denoised=False, top_k=5, **options)
        assert all(entry.keys() == {"label", "score"} for entry in answer)
        assert_is_by_hand(answer, robust_model, pictures[0], **{**at_construction, **options})
    unchanged = ask(top_k=5)
    assert_is_by_hand(unchanged, robust_model, pictures[0], **at_construction)
    assert all("denoised" in entry for entry in unchanged)
    assert len(ask()) == 2


def test_seed_of_construction_can_be_taken_back(robust_path, pictures):
    pipe = make_pipeline(model=robust_path, seed=0)
    assert_same(pipe(pictures[0]), pipe(pictures[0]), tolerance=0)
    assert difference([pipe(pictures[0], seed=None)], [pipe(pictures[0], seed=None)]) > 1e-4


BAD_OPTIONS = [
    ({"sigma": -1}, r"sigma.*-1"),
    ({"sigma": math.nan}, r"sigma.*nan"),
    ({"sigma": math.inf}, r"sigma.*inf"),
    ({"sigma": 1e30}, r"sigma.*at most 1e\+06, got 1e\+30"),
    ({"sigma": True}, r"sigma.*True"),
    ({"sigma": "strong"}, r"sigma.*'strong'"),
    ({"sigma": {"type": "laplace"}}, r"sigma.*'laplace'"),
    ({"sigma": {"type": "uniform", "low": 3}}, r"sigma.*low"),
    ({"sigma": {"type": "constant", "value": -3}}, r"sigma.*-3"),
    ({"sigma": [10, 20]}, r"sigma.*\[10, 20\]"),
    ({"sigma": np.array([10.0, 20.0])}, r"sigma.*10.*20"),
    ({"sigma": torch.tensor([10.0, 20.0])}, r"sigma.*10.*20"),
    ({"num_samples": 0}, r"num_samples.*0"),
    ({"num_samples": -4}, r"num_samples.*-4"),
    ({"num_samples": 1.5}, r"num_samples.*1\.5"),
    ({"num_samples": "2"}, r"num_samples.*'2'"),
    ({"num_samples": True}, r"num_samples.*True"),
    ({"vote": "median"}, r"vote.*'median'"),
    ({"vote": 1}, r"vote.*1"),
    ({"seed": -1}, r"seed.*-1"),
    ({"seed": 1.5}, r"seed.*1\.5"),
    ({"seed": "x"}, r"seed.*'x'"),
    ({"seed": True}, r"seed.*True"),
    ({"seed": 2**64}, rf"seed.*{2**64}"),
    ({"return_denoised": "no"}, r"return_denoised.*'no'"),
    ({"return_denoised": 2}, r"return_denoised.*2"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=lambda value: str(value)[:40])
def test_bad_options_are_named(pipe, robust_model, pictures, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(pictures[0], **options)
    with pytest.raises(ValueError, match=message):
        make_pipeline(model=robust_model, image_processor=pipe.image_processor, **options)


def test_unknown_options_are_named_with_the_nearest_right_one(pipe, robust_path, pictures):
    for name, hint in (
        ("sigmas", "did you mean 'sigma'"),
        ("topk", "did you mean 'top_k'"),
        ("device", "belongs to the construction"),
        ("colour", "known are alpha, "),
    ):
        with pytest.raises(TypeError, match=f"no option '{name}' here; .*{hint}"):
            pipe(pictures, **{name: 0})
    with pytest.raises(TypeError, match="no option 'sgima' here; did you mean 'sigma'"):
        make_pipeline(model=robust_path, sgima=50)


# Seeds.

NOISY = {"sigma": UniformSigma(20.0, 80.0), "num_samples": 3}


@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 2, 0, 2]])
def test_seeded_answers_depend_on_the_picture_alone(pipe, pictures, batch_size, order):
    alone = [pipe(picture, seed=9, **NOISY) for picture in pictures]
    answers = pipe([pictures[index] for index in order], batch_size=batch_size, seed=9, **NOISY)
    assert len(answers) == 4
    for index, answer in zip(order, answers):
        assert_same(answer, alone[index])
    assert difference(alone, alone[1:] + alone[:1]) > 0.01


def test_seeded_answers_are_those_of_a_generator_for_each_picture(pipe, robust_model, pictures):
    for picture, answer in zip(pictures, pipe(pictures, batch_size=4, seed=9, **NOISY)):
        assert_is_by_hand(answer, robust_model, picture, seed=9, **NOISY)


def test_seeds_differ(pipe, pictures):
    answers = [pipe(pictures, seed=seed) for seed in (0, 1, 2**63 - 1)]
    assert difference(answers[0], answers[1]) > 1e-3
    assert difference(answers[1], answers[2]) > 1e-3


def test_without_a_seed_calls_differ_unless_there_is_no_noise(pipe, pictures):
    assert difference(pipe(pictures), pipe(pictures)) > 1e-3
    assert difference(pipe(pictures[:1] * 2)[:1], pipe(pictures[:1] * 2)[1:]) > 1e-4
    for sigma in (None, 0):
        assert difference(pipe(pictures, sigma=sigma), pipe(pictures, sigma=sigma, batch_size=2)) < 1e-5


def test_without_a_seed_the_global_generator_is_used(pipe, robust_model, pictures):
    for _ in range(2):
        torch.manual_seed(4)
        answer = pipe(pictures[0], sigma=50)
        torch.manual_seed(4)
        assert_is_by_hand(answer, robust_model, pictures[0], sigma=50)


@pytest.mark.parametrize("kind", ["single", "list", "batches", "generator"])
@pytest.mark.parametrize("return_denoised", [False, True])
def test_a_seed_leaves_the_global_generator_alone(pipe, pictures, kind, return_denoised):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    options = {"seed": 3, "return_denoised": return_denoised, **NOISY}
    if kind == "single":
        pipe(pictures[0], **options)
    elif kind == "generator":
        list(pipe((picture for picture in pictures), **options))
    else:
        pipe(pictures, batch_size=2 if kind == "batches" else 1, **options)
    assert torch.equal(torch.get_rng_state(), before)


# What the stock pipeline does.


def test_answers_are_sorted_probabilities(pipe, pictures):
    answer = pipe(pictures[0], seed=0)
    assert all(entry.keys() == {"label", "score"} for entry in answer)
    assert {entry["label"] for entry in answer} == LABELS
    scores = [entry["score"] for entry in answer]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-5)
    assert all(isinstance(score, float) for score in scores)


@pytest.mark.parametrize("top_k", [1, 3, 5, 50])
def test_top_k(pipe, robust_path, pictures, top_k):
    everything = pipe(pictures[0], seed=0)
    assert pipe(pictures[0], seed=0, top_k=top_k) == everything[:top_k]
    assert make_pipeline(model=robust_path, top_k=top_k)(pictures[0], seed=0) == everything[:top_k]


def test_function_to_apply(pipe, robust_model, pictures):
    logits = by_hand(robust_model, pictures[0], seed=0).logits[0]
    functions = {"none": lambda x: x, "sigmoid": torch.sigmoid, "softmax": lambda x: x.softmax(dim=-1)}
    for name, function in functions.items():
        expected = {f"LABEL_{index}": value.item() for index, value in enumerate(function(logits))}
        answer = pipe(pictures[0], seed=0, function_to_apply=name)
        assert by_label(answer) == pytest.approx(expected, abs=1e-4, rel=1e-4)


class Pictures(torch.utils.data.Dataset):
    def __init__(self, pictures, key=None):
        self.pictures, self.key = pictures, key

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.pictures[index] if self.key is None else {self.key: self.pictures[index], "other": index}


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", ["list", "generator", "dataset", "key dataset"])
def test_collections(pipe, pictures, kind, batch_size):
    inputs = {
        "list": pictures,
        "generator": (picture for picture in pictures),
        "dataset": Pictures(pictures),
        "key dataset": KeyDataset(Pictures(pictures, "image"), "image"),
    }[kind]
    answers = pipe(inputs, batch_size=batch_size, seed=0)
    if kind != "generator":  # early 5.x releases of transformers exhaust generators at once
        assert isinstance(answers, list) == (kind == "list")
    answers = list(answers)
    assert len(answers) == len(pictures)
    for answer, picture in zip(answers, pictures):
        assert_same(answer, pipe(picture, seed=0))


def test_batch_size_of_construction(robust_path, pipe, pictures):
    for answer, picture in zip(make_pipeline(model=robust_path, batch_size=3)(pictures, seed=0), pictures):
        assert_same(answer, pipe(picture, seed=0))


def png(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


SOURCES = {
    "path": lambda picture, path: str(path),
    "base64": lambda picture, path: base64.b64encode(png(picture)).decode(),
    "base64 with line breaks": lambda picture, path: base64.encodebytes(png(picture)).decode(),
    "data URL": lambda picture, path: "data:image/png;base64," + base64.b64encode(png(picture)).decode(),
    "numpy, channels last": lambda picture, path: np.array(picture),
    "numpy, channels first": lambda picture, path: np.array(picture).transpose(2, 0, 1),
    "numpy, colors turned twice": lambda picture, path: np.ascontiguousarray(np.array(picture)[..., ::-1])[..., ::-1],
    "torch, channels first": lambda picture, path: torch.from_numpy(np.array(picture).transpose(2, 0, 1).copy()),
    "torch, channels last": lambda picture, path: torch.from_numpy(np.array(picture)),
    "path object": lambda picture, path: path,
    "float array": lambda picture, path: np.array(picture).astype(np.float32) / 255,
    "big-endian floats": lambda picture, path: (np.array(picture) / 255).astype(">f8"),
    "longdouble": lambda picture, path: np.array(picture).astype(np.longdouble) / 255,
    "half": lambda picture, path: torch.from_numpy(np.array(picture)).to(torch.float32).div(255),
    "long integers": lambda picture, path: np.array(picture).astype(np.int64),
    "read-only": lambda picture, path: np.asarray(picture),
    "opaque": lambda picture, path: np.array(picture.convert("RGBA")),
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources(pipe, tmp_path, name):
    picture = random_picture(11, (32, 32))
    picture.save(tmp_path / "picture.png")
    source = SOURCES[name](picture, tmp_path / "picture.png")
    expected = pipe(picture, seed=0)
    assert_same(pipe(source, seed=0), expected, tolerance=1e-4)
    for answer in pipe([source, source], seed=0, batch_size=2):
        assert_same(answer, expected, tolerance=1e-4)
    assert difference([expected], [pipe(random_picture(12, (32, 32)), seed=0)]) > 0.01


@pytest.mark.parametrize("certify", [False, True])
@pytest.mark.parametrize("make", [np.stack, lambda arrays: torch.from_numpy(np.stack(arrays))])
def test_batch_has_an_answer_for_each_picture(pipe, certify, make):
    pictures = [random_picture(seed, (32, 32)) for seed in (11, 12, 13)]
    options = {"seed": 0, "sigma": 60} | ({"certify": True, "n0": 5, "n": 20} if certify else {})
    expected = pipe(pictures, **options)
    for batch in (make([np.array(p) for p in pictures]), make([np.array(p).transpose(2, 0, 1) for p in pictures])):
        for size in (1, 2):
            answers = pipe(batch, batch_size=size, **options)
            assert len(answers) == 3
            for answer, other in zip(answers, expected):
                assert_same(answer, other, tolerance=1e-4)
        # Within a list, it would be one picture.
        with pytest.raises(ValueError, match="shape"):
            pipe([batch], **options)
    assert pipe(images=batch, **options)[2] == expected[2]


def test_no_pictures_have_no_answers(pipe):
    assert pipe([]) == pipe(np.zeros((0, 32, 32, 3), dtype=np.uint8)) == []


def test_arrays_of_wrong_values_are_refused(pipe):
    array = np.array(random_picture(11, (32, 32)))
    for wrong in (array / 127.5, array * 257.0, array.astype(np.uint16), array / 127.5 - 1, array * np.nan):
        with pytest.raises(ValueError, match="image") as error:
            pipe(wrong)
        assert len(str(error.value)) < 250
        assert "do_rescale" not in str(error.value)


def test_grey_arrays_of_two_dimensions(pipe, grey_path):
    digit = np.array(random_picture(3, (32, 32), "L")) // 17  # 0 to 15
    for used in (pipe, make_pipeline(model=grey_path)):
        expected = used(Image.fromarray(digit * 17), seed=0)
        for array in (digit / 15, digit * 17):
            assert_same(used(array, seed=0), expected, tolerance=1e-4)
        with pytest.raises(ValueError, match=r"in \[0, 1\], got values from 0 to 1\d"):
            used(digit.astype(np.float64))


@pytest.mark.parametrize("vote", ["mean", "majority"])
def test_answers_that_are_no_numbers_are_refused(pictures, vote):
    model = tiny_model()
    pipe = make_pipeline(model=model, image_processor=NIMImageProcessor.from_config(model.config))
    for bad in (math.nan, math.inf):
        with torch.no_grad():
            model.classifier.weight[:, 1] = bad
        voted = [{"vote": vote, **options} for options in ({}, {"num_samples": 3}, {"sigma": None})]
        for options in (*voted, {"certify": True, "n0": 2, "n": 5}):
            with pytest.raises(FloatingPointError, match="infinite or NaN"):
                pipe(pictures[0], **options)


def test_sixteen_bit_file_is_not_clipped(pipe, tmp_path):
    grey = np.array(random_picture(13, (32, 32), "L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert_same(pipe(str(tmp_path / "deep.png"), sigma=None), pipe(Image.fromarray(grey), sigma=None))


def test_transparent_file_lies_on_white(pipe, tmp_path):
    array = np.array(random_picture(14, (32, 32), "RGBA"))
    array[:16, :, 3] = 0
    Image.fromarray(array).save(tmp_path / "clear.png")
    on_white = array[..., :3].copy()
    on_white[:16] = 255
    assert_same(pipe(str(tmp_path / "clear.png"), sigma=None), pipe(Image.fromarray(on_white), sigma=None))


def test_turned_file_is_put_upright(pipe, tmp_path):
    picture, exif = random_picture(15, (32, 32)), Image.Exif()
    exif[0x0112] = 3
    picture.save(tmp_path / "turned.png", exif=exif)
    upright = pipe(picture.transpose(Image.Transpose.ROTATE_180), sigma=None)
    assert_same(pipe(str(tmp_path / "turned.png"), sigma=None), upright)
    assert difference([upright], [pipe(picture, sigma=None)]) > 0.01


def test_not_a_picture(pipe, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises((ValueError, OSError), match=r"text\.png"):
        pipe(str(tmp_path / "text.png"))
    with pytest.raises(ValueError, match=r"missing\.png"):
        pipe(str(tmp_path / "missing.png"))
    with pytest.raises(ValueError, match="aGVsbG8="):  # base64, but of a text
        pipe("aGVsbG8=")
    with pytest.raises(ValueError, match="image") as error:
        pipe("x" * 100_000)
    assert len(str(error.value)) < 500
    with pytest.raises(TypeError, match="dict"):
        pipe({"image": 1})
    with pytest.raises(ValueError, match="input"):
        pipe(None)


class Handler(BaseHTTPRequestHandler):
    picture = png(random_picture(16, (32, 32)))
    is_over = threading.Event()

    def do_GET(self):
        if self.path == "/slow.png":
            self.is_over.wait(20)
            return
        if self.path in ("/endless.png", "/dripping.png", "/dripping_headers.png"):
            self.send_without_end()
            return
        status = {"/picture.png": 200, "/text.png": 200, "/moved.png": 302}.get(self.path, 404)
        body = {"/picture.png": self.picture, "/text.png": b"a text"}.get(self.path, b"")
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/picture.png")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_without_end(self):
        content, wait = (b"x" * 2**16, 0) if self.path == "/endless.png" else (b"X-More: x\r\n", 0.02)
        with suppress(OSError):
            self.send_response(200)
            if self.path != "/dripping_headers.png":
                self.end_headers()
            self.flush_headers()
            while not self.is_over.wait(wait):
                self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    """The address of an HTTP server on this machine."""
    Handler.is_over.clear()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.block_on_close = False
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("no_proxy", "127.0.0.1")
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
    Handler.is_over.set()
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.parametrize("options", [{}, {"timeout": 10}])
def test_url(pipe, server, options):
    expected = pipe(random_picture(16, (32, 32)), seed=0)
    for name in ("picture.png", "moved.png"):
        assert_same(pipe(f"{server}/{name}", seed=0, **options), expected)
    for answer in pipe([f"{server}/picture.png"] * 3, batch_size=2, seed=0, **options):
        assert_same(answer, expected)


def test_url_in_offline_mode_of_the_hub(pipe, server, monkeypatch):
    # Which is about the Hub, and does not concern the stock pipeline's pictures.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert huggingface_hub.constants.is_offline_mode()
    assert_same(pipe(f"{server}/picture.png", seed=0), pipe(random_picture(16, (32, 32)), seed=0))


def test_url_of_nothing(pipe, server):
    with pytest.raises(OSError, match=r"missing\.png: 404"):
        pipe(f"{server}/missing.png")
    for url in ("http://127.0.0.1:1/a.png", "http://", "http://[/a.png", "https://a b/c.png"):
        with pytest.raises(OSError, match="http"):
            pipe(url)
    with pytest.raises((ValueError, OSError), match=r"text\.png"):
        pipe(f"{server}/text.png")


@pytest.mark.parametrize("when", ["construction", "call"])
def test_timeout(pipe, robust_path, server, when):
    options = {"timeout": 0.2}
    used, call = (make_pipeline(model=robust_path, **options), {}) if when == "construction" else (pipe, options)
    for name in ("slow", "dripping", "dripping_headers"):
        with pytest.raises(TimeoutError, match=rf"timed out after 0.2 seconds: .*/{name}\.png"):
            used(f"{server}/{name}.png", **call)
    # A time that suffices changes nothing.
    assert_same(pipe(f"{server}/picture.png", timeout=10, seed=0), pipe(random_picture(16, (32, 32)), seed=0))


def test_silent_and_endless_servers_without_a_timeout(pipe, server, monkeypatch, request):
    assert image_processing_nim.DEFAULT_TIMEOUT == 30
    monkeypatch.setattr(image_processing_nim, "DEFAULT_TIMEOUT", 0.2)
    processor = NIMImageProcessor.from_config(pipe.model.config)
    for ask in (pipe, partial(decode_picture, num_channels=3), processor):
        with pytest.raises(TimeoutError, match=r"timed out.*slow\.png"):
            ask(f"{server}/slow.png")
    monkeypatch.setattr(image_processing_nim, "DEFAULT_TIMEOUT", 30)
    monkeypatch.setattr(image_processing_nim, "MAX_BYTES", 2**20)
    for ask in (pipe, partial(decode_picture, num_channels=3), processor):
        with pytest.raises(OSError, match=r"endless\.png: it sends more than 1,048,576 bytes"):
            ask(f"{server}/endless.png")


@pytest.mark.parametrize("timeout", [0, -1, "3", math.nan, True])
def test_wrong_timeout(pipe, server, timeout):
    with pytest.raises(ValueError, match="timeout must be a positive"):
        pipe(f"{server}/picture.png", timeout=timeout)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(robust_path, pictures, dtype):
    pipe = make_pipeline(model=robust_path, dtype=dtype)
    assert pipe.model.dtype == dtype
    single = make_pipeline(model=robust_path)
    for options in ({"sigma": None}, {"sigma": 25}, {"sigma": 25, "num_samples": 3}, {"sigma": 0}):
        options = {**options, "seed": 0, "return_denoised": True}
        answers, expected = pipe(pictures, **options), single(pictures, **options)
        for answer, other in zip(answers, expected):
            assert_same(answer, other, tolerance=0.15)
            difference = np.array(answer[0]["denoised"], dtype=int) - np.array(other[0]["denoised"], dtype=int)
            assert np.abs(difference).mean() < 3


def test_one_channel(grey_path):
    pipe = make_pipeline(model=grey_path)
    model = NIMForRobustImageClassification.from_pretrained(grey_path)
    colorful = random_picture(17)
    for picture in (colorful, colorful.convert("L")):
        assert_is_by_hand(pipe(picture, seed=0), model, picture, seed=0)


def test_processor_of_the_other_backend(robust_model, pipe, pictures):
    processor = NIMImageProcessorPil.from_config(robust_model.config)
    other = make_pipeline(model=robust_model, image_processor=processor)
    for answer, expected in zip(other(pictures, sigma=None), pipe(pictures, sigma=None)):
        assert_same(answer, expected, tolerance=0.05)


def test_save_pretrained(pipe, tmp_path, pictures):
    pipe.save_pretrained(tmp_path)
    loaded = make_pipeline(model=str(tmp_path))
    assert type(loaded) is NIMImageClassificationPipeline
    assert_same(loaded(pictures[0], seed=0), pipe(pictures[0], seed=0))


# The denoised picture.


def denoised_pixels(model, picture, **options) -> np.ndarray:
    """What the classifier of a direct call saw in its first draw, `(height, width, channels)` in 0..255."""
    tensor = by_hand(model, picture, **options).denoised_pixel_values[0, 0]
    std, mean = (torch.tensor(values)[:, None, None] for values in (model.config.image_std, model.config.image_mean))
    return ((tensor * std + mean) * 255).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("num_channels", [3, 1])
@pytest.mark.parametrize("image_size", [32, (16, 48)])
@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_return_denoised(pictures, num_channels, image_size, batch_size):
    model = tiny_model(num_channels=num_channels, image_size=image_size)
    pipe = make_pipeline(model=model, image_processor=NIMImageProcessor.from_config(model.config))
    options = {"sigma": UniformSigma(5.0, 60.0), "num_samples": 2, "seed": 8}
    height, width = model.config.image_shape
    if batch_size is None:
        answers = [pipe(picture, return_denoised=True, **options) for picture in pictures]
    else:
        answers = pipe(pictures, return_denoised=True, batch_size=batch_size, **options)
    for picture, answer in zip(pictures, answers, strict=True):
        assert len(answer) == 5
        for entry in answer:
            assert entry.keys() == {"label", "score", "denoised"}
            assert isinstance(entry["denoised"], Image.Image)
            assert entry["denoised"].mode == ("RGB" if num_channels == 3 else "L")
            assert entry["denoised"].size == (width, height)
            result = np.array(entry["denoised"], dtype=float).reshape(height, width, num_channels)
            np.testing.assert_allclose(result, denoised_pixels(model, picture, **options), rtol=0, atol=0.51)
        assert_same(answer, pipe(picture, **options))
    assert np.array(answers[0][0]["denoised"]).std() > 3
    assert answers[0][0]["denoised"] != answers[1][0]["denoised"]


def test_return_denoised_of_construction(robust_path, pictures):
    pipe = make_pipeline(model=robust_path, return_denoised=True, seed=0, top_k=2)
    assert [entry.keys() for entry in pipe(pictures[0])] == [{"label", "score", "denoised"}] * 2
    assert [entry.keys() for entry in pipe(pictures[0], return_denoised=False)] == [{"label", "score"}] * 2


@pytest.mark.parametrize("single", [True, False])
def test_without_defense_the_denoised_picture_is_the_picture(pipe, single):
    picture = random_picture(18, (32, 32))
    options = {"sigma": None, "return_denoised": True, "top_k": 1}
    answer = pipe(picture, **options) if single else pipe([picture] * 2, batch_size=2, **options)[1]
    np.testing.assert_array_equal(np.array(answer[0]["denoised"]), np.array(picture))


# Processors that do not fit.


def processor_of(config, cls=NIMImageProcessor, **attributes):
    return cls.from_config(config, **attributes)


WRONG_PROCESSORS = {
    "image_mean": partial(processor_of, image_mean=[0.5, 0.5, 0.5]),
    "image_std": partial(processor_of, image_std=[0.5, 0.5, 0.5]),
    "size .*64": lambda config: NIMImageProcessor.from_config(tiny_config(image_size=64)),
    "size .*16": lambda config: NIMImageProcessor.from_config(tiny_config(image_size=[16, 32])),
    "do_normalize": partial(processor_of, do_normalize=False),
    "do_rescale": partial(processor_of, do_rescale=False),
    "rescale_factor": partial(processor_of, rescale_factor=1 / 127.5),
    "do_resize": partial(processor_of, do_resize=False),
    "resample is 0": partial(processor_of, resample=0),
    "crops": partial(processor_of, size={"shortest_edge": 1}),
    "crops .*31": partial(processor_of, size={"height": 31, "width": 64}),
    "shape .*40": partial(processor_of, do_pad=True, pad_size={"height": 40, "width": 40}),
}


@pytest.mark.parametrize("cls", [NIMImageProcessor, NIMImageProcessorPil])
@pytest.mark.parametrize("message", WRONG_PROCESSORS)
def test_processor_that_does_not_fit(robust_model, tmp_path, message, cls):
    processor = WRONG_PROCESSORS[message](robust_model.config)
    processor = cls(**{name: value for name, value in processor.to_dict().items() if name != "image_processor_type"})
    with pytest.raises(ValueError, match=message) as error:
        make_pipeline(model=robust_model, image_processor=processor)
    # Nothing else is accused, and there is a way out.
    attributes = ["image_mean", "image_std", "do_normalize", "do_rescale", "do_resize", "rescale_factor"]
    assert [name for name in attributes if f"{name} is" in str(error.value)] == [n for n in attributes if n == message]
    assert ("images of size" in str(error.value)) == message.startswith("size")
    assert "NIMImageProcessor.from_config" in str(error.value)
    # The same if both are loaded.
    robust_model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        make_pipeline(model=str(tmp_path))


def test_processor_of_another_number_of_channels(robust_model, grey_path):
    grey = NIMForRobustImageClassification.from_pretrained(grey_path)
    for model, other in [(robust_model, grey), (grey, robust_model)]:
        with pytest.raises(ValueError, match="image_mean"):
            make_pipeline(model=model, image_processor=NIMImageProcessor.from_config(other.config))


def test_everything_that_does_not_fit_is_named(robust_model):
    processor = ViTImageProcessor(do_normalize=False, rescale_factor=1.0)
    with pytest.raises(ValueError, match=r"image_mean.*image_std.*do_normalize.*rescale_factor.*224"):
        make_pipeline(model=robust_model, image_processor=processor)


def test_processor_with_a_single_mean(robust_model):
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=0.5, image_std=0.5)
    with pytest.raises(ValueError, match=r"image_mean is 0\.5"):
        make_pipeline(model=robust_model, image_processor=processor)


def test_processor_is_missing(robust_model):
    with pytest.raises(ValueError, match="image processor"):
        NIMImageClassificationPipeline(model=robust_model)


WRONG_ATTRIBUTES = [
    {"image_mean": "abc"},
    {"image_mean": ["a", "b", "c"]},
    {"image_std": None},
    {"rescale_factor": "x"},
    {"rescale_factor": None},
    {"size": "32"},
    {"size": None},
    {"crop_size": 32},
    {"resample": 9},
    {"resample": "bicubic"},
    {"do_pad": True},
]


@pytest.mark.parametrize("wrong", WRONG_ATTRIBUTES, ids=str)
@pytest.mark.parametrize("cls", [NIMImageProcessor, NIMImageProcessorPil])
def test_processor_with_nonsense(robust_model, wrong, cls):
    processor = cls.from_config(robust_model.config)
    vars(processor).update(wrong)
    if wrong == {"do_pad": True}:
        processor.pad_size = {"height": 40, "width": 40}
    with pytest.raises(ValueError, match="image processor does not fit the model") as error:
        make_pipeline(model=robust_model, image_processor=processor)
    assert "\n" not in str(error.value)


class ColorsTurned(ViTImageProcessor):
    """Blue first, as some models of OpenCV want it."""

    def process_image(self, *args, **kwargs):
        return super().process_image(*args, **kwargs).flip(0)


def test_foreign_processor_that_turns_colors(robust_model):
    config = robust_model.config
    processor = ColorsTurned(
        size={"height": 32, "width": 32}, image_mean=config.image_mean, image_std=config.image_std
    )
    with pytest.raises(ValueError, match="changes colors"):
        make_pipeline(model=robust_model, image_processor=processor)


def test_foreign_processor_that_fits(robust_model, pipe):
    config = robust_model.config
    processor = ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=config.image_mean, image_std=config.image_std
    )
    picture = random_picture(19, (32, 32))
    other = make_pipeline(model=robust_model, image_processor=processor)
    assert_same(other(picture, seed=0), pipe(picture, seed=0))
    # transformers' own have another rule for arrays, and drop transparency.
    array = np.array(picture)
    for source in (array, array / 255, torch.from_numpy(array.transpose(2, 0, 1) / 255)):
        assert_same(other(source, seed=0), pipe(picture, seed=0))
    clear = random_picture(19, (32, 32), "RGBA")
    clear.putalpha(128)
    assert_same(other(clear, seed=0), pipe(clear, seed=0))


# Other models.


def test_pipelines_of_other_models_are_the_stock_ones(vit_path, pictures):
    stock = ImageClassificationPipeline(
        model=ViTForImageClassification.from_pretrained(vit_path),
        image_processor=ViTImageProcessor.from_pretrained(vit_path),
        task="image-classification",
    )
    ours = make_pipeline(model=vit_path)
    assert type(ours) is ImageClassificationPipeline
    for options in ({}, {"top_k": 2}, {"batch_size": 2}, {"function_to_apply": "none"}):
        assert ours(pictures, **options) == stock(pictures, **options)
        assert ours(pictures[0], **options) == stock(pictures[0], **options)
    assert len(ours(pictures[0], top_k=1)) == 1
    assert type(make_pipeline(model=stock.model, image_processor=stock.image_processor)) is ImageClassificationPipeline
    assert type(make_pipeline(stock.model, image_processor=vit_path)) is ImageClassificationPipeline
    with pytest.raises(TypeError, match="sigma"):
        ours(pictures[0], sigma=3)
    at_construction = make_pipeline(model=vit_path, top_k=2, batch_size=2)
    assert at_construction(pictures) == stock(pictures, top_k=2, batch_size=2)


def test_undefended_nim_has_the_stock_pipeline(tmp_path, pictures):
    model = tiny_model(NIMForImageClassification)
    path = save_with_processor(model, tmp_path)
    pipe = make_pipeline(model=path)
    assert type(pipe) is ImageClassificationPipeline
    assert type(pipe.model) is NIMForImageClassification
    pixel_values = NIMImageProcessor.from_config(model.config)(images=pictures[0], return_tensors="pt").pixel_values
    with torch.no_grad():
        scores = model(pixel_values).logits[0].softmax(dim=-1).tolist()
    assert by_label(pipe(pictures[0])) == pytest.approx({f"LABEL_{i}": s for i, s in enumerate(scores)}, abs=1e-5)


def test_other_tasks_are_untouched():
    from transformers.pipelines import PIPELINE_REGISTRY

    task = PIPELINE_REGISTRY.supported_tasks["image-classification"]
    assert task["impl"] is NIMImageClassificationPipeline
    others = [other for name, other in PIPELINE_REGISTRY.supported_tasks.items() if name != "image-classification"]
    assert others
    assert not any("nim" in str(other["impl"]).lower() for other in others)


@pytest.mark.parametrize("way", ["copy", "deepcopy", "pickle"])
def test_copies(robust_path, vit_path, pictures, way):
    make = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda pipe: pickle.loads(pickle.dumps(pipe))}[way]
    stock = make_pipeline(model=vit_path)
    assert make(stock)(pictures) == stock(pictures)
    pipe = make_pipeline(model=robust_path, sigma=NOISY["sigma"], seed=6, top_k=3, return_denoised=True)
    other = make(pipe)
    assert type(other) is NIMImageClassificationPipeline
    for answer, expected in zip(other(pictures), pipe(pictures), strict=True):
        assert len(answer) == 3
        assert_same(answer, expected)
        assert answer[0]["denoised"] == expected[0]["denoised"]
