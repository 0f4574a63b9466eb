# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are whole or not there: killed processes, full disks, damaged files."""

import hashlib
import json
import os
import resource
import shutil
import signal
from types import SimpleNamespace

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import tiny_config
from safetensors.torch import load_file

from transformers_nim import NIMForPreTraining
from transformers_nim.training import checkpoints
from transformers_nim.training.checkpoints import (
    CheckpointError,
    agree_on_checkpoint,
    check_output_dir,
    checkpoint_problem,
    find_checkpoint,
    load_checkpoint,
    remove_run,
    replace_folder,
    save_checkpoint,
)
from transformers_nim.training.optimization import make_optimizer, parameter_groups
from transformers_nim.utils.output_folder import hold_folder


class Trained:
    """A prepared model and optimizer, and a step that makes their states differ from those of a new one."""

    def __init__(self, seed: int = 0, num_groups: int = 2, **config):
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        self.accelerator = accelerate.Accelerator(cpu=True)
        torch.manual_seed(seed)
        model = NIMForPreTraining(tiny_config(**config))
        optimizer = make_optimizer(parameter_groups(model, 1e-2, 0.05)[:num_groups], (0.9, 0.95))
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    def train(self) -> None:
        self.model(torch.randn(2, 3, 32, 32)).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def snapshot(self) -> list[torch.Tensor]:
        states = self.optimizer.state_dict()["state"]
        moments = [value for state in states.values() for value in state.values()]
        return [tensor.clone() for tensor in [*self.model.state_dict().values(), *moments]]


@pytest.fixture
def trained():
    trained = Trained()
    trained.train()
    yield trained
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture
def whole(trained, tmp_path):
    """The path of a checkpoint of `trained`, averaged weights included."""
    ema = {name: tensor * 2 for name, tensor in trained.model.state_dict().items()}
    return save_checkpoint(trained.accelerator, tmp_path, 1, {"best": {"loss": 0.1}}, ema)


def entries(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(actual) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected))


def test_what_is_saved_is_loaded(trained, whole):
    expected = trained.snapshot()
    other = Trained(seed=1)
    other.train()
    assert not all(torch.equal(a, b) for a, b in zip(other.snapshot(), expected))
    state, ema = load_checkpoint(other.accelerator, whole)
    assert_same(other.snapshot(), expected)
    assert state == {"step": 1, "best": {"loss": 0.1}}
    weights = other.model.state_dict()
    assert ema.keys() == weights.keys()
    assert all(torch.equal(ema[name], weights[name] * 2) for name in weights)


@pytest.mark.parametrize("changed", [{"hidden_size": 64}, {"num_groups": 1}])
def test_what_does_not_fit_is_told_in_a_sentence(whole, changed):
    other = Trained(**changed)
    with pytest.raises(ValueError, match="checkpoint-1 does not fit the model and optimizer of this run"):
        load_checkpoint(other.accelerator, whole)


def test_without_averaged_weights_there_are_none(trained, tmp_path):
    path = save_checkpoint(trained.accelerator, tmp_path, 7, {})
    assert path == tmp_path / "checkpoint-7"
    assert load_checkpoint(trained.accelerator, path) == ({"step": 7}, None)


def test_files_hold_numbers_and_nothing_that_runs(whole):
    """A pickle of arbitrary objects is a program; these files can be read without running one."""
    kinds = {}
    for file in whole.iterdir():
        kinds[file.name] = file.suffix
        if file.suffix == ".safetensors":
            assert load_file(file)
        elif file.suffix == ".json":
            assert json.loads(file.read_text())
        else:
            # What Accelerate allows for NumPy's generator: arrays and their types.
            with torch.serialization.safe_globals(accelerate.utils.other.TORCH_SAFE_GLOBALS):
                assert torch.load(file, weights_only=True)
    assert kinds == {
        "checkpoint.json": ".json",
        "ema.safetensors": ".safetensors",
        "model.safetensors": ".safetensors",
        "optimizer.bin": ".bin",
        "random_states_0.pkl": ".pkl",
    }


def test_manifest_lists_every_file(whole):
    manifest = json.loads((whole / "checkpoint.json").read_text())
    sizes = {file.name: file.stat().st_size for file in whole.iterdir() if file.name != "checkpoint.json"}
    assert manifest["files"] == sizes
    assert manifest["sha256"] == {
        name: hashlib.sha256((whole / name).read_bytes()).hexdigest() for name in manifest["files"]
    }


@pytest.mark.parametrize("where", ["save_file", "_seal"])
def test_a_killed_process_leaves_a_partial_folder_alone(trained, whole, tmp_path, monkeypatch, where):
    """Killed for real, after the model's weights and before what follows."""

    def die(*args):
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(checkpoints, where, die)
        save_checkpoint(trained.accelerator, tmp_path, 2, {}, trained.model.state_dict())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert entries(tmp_path) == ["checkpoint-1", "checkpoint-2.partial"]
    assert "model.safetensors" in entries(tmp_path / "checkpoint-2.partial")
    assert find_checkpoint(tmp_path) == whole
    # It is no checkpoint for a new run to be afraid of, and the next attempt sweeps it away.
    shutil.rmtree(whole)
    check_output_dir(tmp_path, None)
    (tmp_path / "checkpoint-2.partial" / "leftover").touch()
    path = save_checkpoint(trained.accelerator, tmp_path, 2, {})
    assert entries(tmp_path) == ["checkpoint-2"]
    assert "leftover" not in entries(path)


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def invert(path, count=64):
    """Bytes in the middle of a file, which keeps its size."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + count] = bytes(255 ^ byte for byte in content[middle : middle + count])
    path.write_bytes(content)


def replace_in_manifest(path, old, new):
    manifest = path / "checkpoint.json"
    text = manifest.read_text()
    assert old in text
    manifest.write_text(text.replace(old, new))


def grow(path):
    with open(path, "ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: cut(path / "model.safetensors"), r"the file model.safetensors has \d+ bytes instead of \d+"),
        (lambda path: grow(path / "optimizer.bin"), r"the file optimizer.bin has \d+ bytes instead of \d+"),
        (lambda path: (path / "ema.safetensors").unlink(), "the file ema.safetensors is missing"),
        (lambda path: (path / "random_states_0.pkl").unlink(), "the file random_states_0.pkl is missing"),
        (lambda path: (path / "checkpoint.json").unlink(), "it has no checkpoint.json"),
        (lambda path: (path / "checkpoint.json").write_text(""), "its checkpoint.json is damaged"),
        (lambda path: os.truncate(path / "checkpoint.json", 30), "its checkpoint.json is damaged"),
        (lambda path: (path / "checkpoint.json").write_bytes(b"\xff\xfe" * 20), "its checkpoint.json is damaged"),
        (lambda path: (path / "checkpoint.json").write_text("[1, 2]"), "its checkpoint.json is damaged"),
        (lambda path: (path / "checkpoint.json").write_text('{"files": {}, "state": {}}'), "is damaged"),
        (lambda path: (path / "checkpoint.json").write_text('{"files": [], "state": {"step": 1}}'), "is damaged"),
        (shutil.rmtree, "there is no such folder"),
        (lambda path: invert(path / "model.safetensors"), "the file model.safetensors is damaged: its SHA-256"),
        (lambda path: invert(path / "optimizer.bin"), "the file optimizer.bin is damaged: its SHA-256"),
        (lambda path: invert(path / "ema.safetensors", 1), "the file ema.safetensors is damaged: its SHA-256"),
        (lambda path: invert(path / "random_states_0.pkl", 1), "the file random_states_0.pkl is damaged: its SHA-256"),
        (lambda path: replace_in_manifest(path, '"step": 2', '"step": 3'), "its checkpoint.json is damaged"),
        (lambda path: replace_in_manifest(path, '"sha256"', '"sha257"'), "its checkpoint.json is damaged"),
        (lambda path: replace_in_manifest(path, '"seal"', '"sea"'), "its checkpoint.json is damaged"),
    ],
)
def test_damage_is_noticed(trained, whole, tmp_path, caplog, damage, problem):
    assert checkpoint_problem(whole) is None
    newer = save_checkpoint(trained.accelerator, tmp_path, 2, {}, trained.model.state_dict())
    damage(newer)
    caplog.clear()
    # The newest whole one is taken, with a word about the one that is not.
    assert find_checkpoint(tmp_path) == whole
    if newer.exists():
        (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
        assert record.getMessage().startswith(f"skipping {newer}: ")
    # Who asks for that very one is told what is wrong with it.
    with pytest.raises(ValueError, match=rf"cannot resume from .*checkpoint-2: .*{problem}.* Pass 'latest'"):
        find_checkpoint(tmp_path, str(newer))
    # The next attempt puts it right.
    assert save_checkpoint(trained.accelerator, tmp_path, 2, {}) == find_checkpoint(tmp_path) == newer


def test_none_is_whole(trained, whole, tmp_path):
    """Beginning anew, as where there is none yet, would lose what can be put right."""
    newer = save_checkpoint(trained.accelerator, tmp_path, 2, {})
    invert(newer / "model.safetensors")
    cut(whole / "optimizer.bin")
    for look in (find_checkpoint, lambda folder: check_output_dir(folder, "latest", False)):
        with pytest.raises(
            ValueError, match=rf"{tmp_path} is whole: {newer}: .*model.* damaged.*{whole}: .*optimizer"
        ):
            look(tmp_path)
    with pytest.raises(ValueError, match=r"cannot resume from .*checkpoint-2: the file model"):
        check_output_dir(tmp_path, str(newer), False)


def test_the_main_process_alone_reads_whole_checkpoints(whole, monkeypatch):
    invert(whole / "model.safetensors")
    assert "SHA-256" in str(checkpoint_problem(whole))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(checkpoints, "file_hash", None)
    assert checkpoint_problem(whole) is None
    cut(whole / "model.safetensors")
    assert "bytes instead of" in str(checkpoint_problem(whole))
    shutil.rmtree(whole)
    assert "all machines of a run must share it" in str(checkpoint_problem(whole))


def test_all_processes_go_on_from_the_same_checkpoint(trained, whole, tmp_path, monkeypatch):
    """That which the main process has found whole, or none of them does."""
    sent = []
    monkeypatch.setattr(accelerate.utils, "broadcast_object_list", lambda values: sent.append(values) or values)
    main, other = (SimpleNamespace(is_main_process=one) for one in (True, False))
    newer = save_checkpoint(trained.accelerator, tmp_path, 2, {})
    invert(newer / "model.safetensors")
    assert agree_on_checkpoint(main, tmp_path) == whole
    assert agree_on_checkpoint(main, tmp_path / "new") is None
    with pytest.raises(ValueError, match=r"cannot resume from .*checkpoint-2: the file model"):
        agree_on_checkpoint(main, tmp_path, str(newer))
    # What another process is sent counts, whatever it would find.
    received = iter([*sent, [tmp_path / "elsewhere", None]])
    monkeypatch.setattr(accelerate.utils, "broadcast_object_list", lambda values: next(received))
    assert agree_on_checkpoint(other, tmp_path) == whole
    assert agree_on_checkpoint(other, tmp_path) is None
    with pytest.raises(ValueError, match=r"cannot resume from .*checkpoint-2: the file model"):
        agree_on_checkpoint(other, tmp_path)
    with pytest.raises(ValueError, match=r"elsewhere is not on .*all machines of the run share"):
        agree_on_checkpoint(other, tmp_path)


def test_checkpoints_of_earlier_versions_have_sizes_alone(whole, tmp_path):
    manifest = json.loads((whole / "checkpoint.json").read_text())
    (whole / "checkpoint.json").write_text(json.dumps({name: manifest[name] for name in ("files", "state")}))
    invert(whole / "model.safetensors")
    assert find_checkpoint(tmp_path) == whole
    cut(whole / "model.safetensors")
    with pytest.raises(ValueError, match="no checkpoint in"):
        find_checkpoint(tmp_path)


def test_finds_the_newest_by_number(trained, tmp_path):
    assert find_checkpoint(tmp_path) is None
    assert find_checkpoint(tmp_path / "nowhere") is None
    for step in (9, 10, 100):
        save_checkpoint(trained.accelerator, tmp_path, step, {})
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "my-checkpoint-200").mkdir()
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    assert find_checkpoint(tmp_path, tmp_path / "checkpoint-9") == tmp_path / "checkpoint-9"


def test_the_oldest_go(trained, tmp_path):
    for step in (2, 9, 10):
        save_checkpoint(trained.accelerator, tmp_path, step, {}, total_limit=2)
    assert entries(tmp_path) == ["checkpoint-10", "checkpoint-9"]
    save_checkpoint(trained.accelerator, tmp_path, 100, {})
    assert entries(tmp_path) == ["checkpoint-10", "checkpoint-100", "checkpoint-9"]
    save_checkpoint(trained.accelerator, tmp_path, 101, {}, total_limit=1)
    assert entries(tmp_path) == ["checkpoint-101"]


@pytest.mark.parametrize("total_limit", [None, 1, 2])
def test_a_run_that_went_back_replaces_what_came_later(trained, tmp_path, total_limit):
    """Even if nothing but the new one may stay; and the next 'latest' is the run that went back."""
    for step in (4, 8, 12):
        save_checkpoint(trained.accelerator, tmp_path, step, {"run": "first"})
    cut(tmp_path / "checkpoint-12" / "model.safetensors")
    path = save_checkpoint(trained.accelerator, tmp_path, 6, {"run": "second"}, total_limit=total_limit)
    assert find_checkpoint(tmp_path) == path
    assert entries(tmp_path) == (["checkpoint-6"] if total_limit == 1 else ["checkpoint-4", "checkpoint-6"])
    # The same step again.
    save_checkpoint(trained.accelerator, tmp_path, 6, {"run": "third"}, total_limit=total_limit)
    assert load_checkpoint(trained.accelerator, path)[0]["run"] == "third"


@pytest.mark.parametrize("fills_up_at", ["weights", "optimizer", "averaged weights"])
def test_full_disk(trained, whole, tmp_path, fills_up_at):
    """Files that may not grow beyond a limit fail like those on a disk that is full."""
    expected = trained.snapshot()
    sizes = json.loads((whole / "checkpoint.json").read_text())["files"]
    # Weights and their average are as large; the optimizer's state is larger.
    limit = {"weights": 1000, "optimizer": sizes["model.safetensors"] + 1000, "averaged weights": 2**20}[fills_up_at]
    ema = dict(trained.model.state_dict())
    if fills_up_at == "averaged weights":
        assert max(sizes.values()) < limit
        ema["more"] = torch.zeros(limit)
    trained.train()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(CheckpointError) as error:
            save_checkpoint(trained.accelerator, tmp_path, 2, {}, ema)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    message = str(error.value)
    assert message.startswith(f"could not write {tmp_path / 'checkpoint-2'}: ")
    assert f"Is the disk full? The last complete checkpoint is {whole}" in message
    assert "--resume_from_checkpoint latest" in message
    assert error.value.__cause__ is not None
    assert entries(tmp_path) == ["checkpoint-1"]
    load_checkpoint(trained.accelerator, find_checkpoint(tmp_path))
    assert_same(trained.snapshot(), expected)


def test_a_folder_that_cannot_be_written(trained, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"could not write .*file.*The last complete checkpoint is none"):
        save_checkpoint(trained.accelerator, tmp_path / "file", 1, {})


def test_bugs_are_not_taken_for_full_disks(trained, tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(trained.accelerator, tmp_path, 1, {"tensor": torch.zeros(1)})
    assert find_checkpoint(tmp_path) is None


def test_a_new_run_keeps_off_old_checkpoints(whole, tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path} holds the checkpoints of an earlier run \(checkpoint-1\)"):
        check_output_dir(tmp_path, None)
    check_output_dir(tmp_path, "latest")
    check_output_dir(tmp_path / "other", None)


def test_replaced_folders_are_whole(trained, tmp_path):
    folder = tmp_path / "best"
    for text in ("first", "second"):
        replace_folder(trained.accelerator, folder, lambda path, text=text: (path / text).write_text(text))
        assert entries(folder) == [text]

    def fail(path):
        (path / "third").write_text("th")
        raise OSError("No space left on device")

    with pytest.raises(CheckpointError, match=r"could not write .*best: No space left.* disk full"):
        replace_folder(trained.accelerator, folder, fail)
    assert entries(folder) == ["second"]
    replace_folder(trained.accelerator, folder, lambda path: (path / "fourth").write_text("fourth"))
    assert entries(folder) == ["fourth"]
    assert entries(tmp_path) == ["best"]


def test_a_machine_that_does_not_share_the_folder_writes_into_its_own(tmp_path):
    """Its files are of no use to others, and the run goes on; a folder that it has seen may not vanish."""
    folder = tmp_path / "out"
    other = SimpleNamespace(
        is_main_process=False, wait_for_everyone=lambda: None, device="cpu", reduce=lambda failed, how: failed
    )
    with hold_folder(folder, "--resume", is_main=False):
        for name in ("best", "checkpoint-1"):
            replace_folder(other, folder / name, lambda path: (path / "state").touch())
            assert entries(folder / f"{name}.partial") == ["state"]
        shutil.rmtree(folder)
        with pytest.raises(CheckpointError, match="out has vanished during the run"):
            replace_folder(other, folder / "best", lambda path: None)
    assert not folder.exists()


def test_nothing_but_what_a_run_has_made_is_removed(tmp_path):
    folder = tmp_path / "out"
    for name in ("checkpoint-4/state", "checkpoint-5.partial/state", "checkpoint-mine/state", "src/kept", "../kept"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name in ("model.safetensors", "config.json", "robustness.json", "notes.txt"):
        (folder / name).touch()
    # A card may be somebody else's.
    named = ["robustness.json", "..", "src", "../kept", "none.json"]
    (folder / "card.json").write_text(json.dumps({"results": named}))
    remove_run(folder)
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == {"checkpoint-mine/state", "src/kept", "notes.txt"}
    assert (tmp_path / "kept").is_file()
