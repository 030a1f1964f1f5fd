"""Model folders: whole or absent, opened as they were saved, and nothing foreign is taken."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from hrsam_lit.errors import UserError
from hrsam_lit.models.checkpoints import load_decoder, load_model, read_checkpoint, read_weights, save_model
from hrsam_lit.models.decoder import SamDecoder
from hrsam_lit.models.promptable import Promptable


@pytest.fixture
def model(encoder):
    return Promptable(encoder, SamDecoder(), image_size=64, first_click="single").eval()


def test_a_saved_model_answers_as_before(model, tmp_path):
    save_model(model, tmp_path / "model", {"step": 3})
    opened = load_model(tmp_path / "model")
    images, sizes = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 48]])
    with torch.no_grad():
        assert torch.equal(opened.encode(images, sizes), model.encode(images, sizes))
    assert (opened.image_size, opened.mode, opened.first_click) == (64, "pad", "single")
    assert json.loads((tmp_path / "model/config.json").read_text())["provenance"] == {"step": 3}


def test_saving_again_replaces_and_leaves_nothing_else(model, tmp_path):
    save_model(model, tmp_path / "model")
    with torch.no_grad():
        model.encoder.pos_embed.add_(1)
    save_model(model, tmp_path / "model")
    assert torch.equal(load_model(tmp_path / "model").encoder.pos_embed, model.encoder.pos_embed)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_save_keeps_the_old_model(model, tmp_path, monkeypatch):
    save_model(model, tmp_path / "model")
    before = (tmp_path / "model/model.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hrsam_lit.models.checkpoints.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_model(model, tmp_path / "model")
    assert (tmp_path / "model/model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "config.json is missing"),
        ("{", "not JSON"),
        ("[]", "does not describe"),
        (json.dumps({"format": 99, "encoder": {}}), "of format 1"),
        (json.dumps({"format": 1, "encoder": {"class": "os.system", "arguments": {}}}), "'os.system' is not one of"),
    ],
)
def test_folders_that_are_no_models_are_named(tmp_path, config, words):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=words) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_cut_weights_are_named(model, tmp_path):
    save_model(model, tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        load_model(tmp_path / "model")


class Hostile:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_hostile_pickle_is_an_error_not_execution(tmp_path, capsys):
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": Hostile()}, path)
    with pytest.raises(UserError, match=r"x\.ckpt"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UserError, match=r"x\.ckpt"):
        read_checkpoint(path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "text", "other", "absent"])
def test_files_that_are_no_checkpoints_are_named(tmp_path, damage):
    path = tmp_path / "x.ckpt"
    if damage != "absent":
        torch.save({"weights": torch.zeros(3000)}, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    if damage == "text":
        path.write_text("hello")
    with pytest.raises(UserError, match=r"x\.ckpt") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_weights_come_out_of_a_lightning_checkpoint_under_the_same_names(model, tmp_path):
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    assert set(read_weights(tmp_path / "x.ckpt")) == set(model.state_dict())


def test_a_decoder_is_found_in_files_and_folders(model, tmp_path):
    save_model(model, tmp_path / "model")
    save_file(model.decoder.state_dict(), tmp_path / "decoder.safetensors")
    for source in (tmp_path / "model", tmp_path / "decoder.safetensors", tmp_path):
        found = load_decoder(source).state_dict()
        assert all(torch.equal(found[key], value) for key, value in model.decoder.state_dict().items())
    with pytest.raises(UserError, match="holds no SAM decoder"):
        load_decoder(tmp_path.parent)
