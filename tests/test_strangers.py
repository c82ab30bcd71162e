"""Folders that somebody sends you: nothing in them runs, nothing is fetched, nothing else is read.

Each folder is sealed as spp seals its own, so that only what it says can give it away.
"""

import json
import os
import socket

import pytest
import torch
import transformers

import spp
from spp.core.formats import digest, load_json, save_json, write_tensors
from spp.cutting.files import KIND, PRETRAINED

BERT = dict(
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    intermediate_size=8,
    vocab_size=8,
)
CLIP = dict(
    embed_dim=16,
    vision_cfg=dict(layers=1, width=32, head_width=16, patch_size=8, image_size=16),
    text_cfg=dict(context_length=8, vocab_size=8, width=16, heads=1, layers=1),
    cast_dtype=None,
)


class Evil:
    "Code that a pickle would run"

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def mark(tmp_path):
    "The file that exists once foreign code ran; beside it lies a pickle that makes it"
    torch.save({"x": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    return tmp_path / "ran"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    "Whoever asks for a host is found out"
    asked = []
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: asked.append(a[:2]) or [])
    yield
    assert not asked


def folder(path, build, **header):
    "A folder like one of `spp.save`, which says that its model is made by `build`"
    path.mkdir()
    header = dict(build=build, widths={}, tied={}, cut=None) | header
    write_tensors(path / "model.safetensors", {}, KIND, header)
    save_json(path / "spp.json", KIND, header)
    return path


def timm_build(**kw):
    return {"library": "timm", "args": {}} | kw


def bert(config=(), **kw):
    described = dict(library="transformers", options={}, config=BERT | dict(config))
    return described | {"class": "BertModel"} | kw


def clip(vision=(), text=(), **kw):
    args = CLIP | dict(
        vision_cfg=CLIP["vision_cfg"] | dict(vision), text_cfg=CLIP["text_cfg"] | dict(text)
    )
    described = {"library": "open_clip", "class": "CustomTextCLIP", "towers": {}}
    return described | {"preprocess": None, "args": args | kw}


def strangers(evil) -> dict:
    "Name → (how the model is to be made, what the refusal says)"
    run = {"checkpoint_path": str(evil), "weights_only": False}
    name = {"model_name": "vit_tiny_patch16_224", "pretrained": True}
    hub = "attacker/model"
    return {
        "a function": (timm_build(**{"class": "load_state_dict", "args": run}), "checkpoint_path"),
        "a function alone": (timm_build(**{"class": "load_state_dict"}), "no model of timm of the"),
        "create_model": (timm_build(**{"class": "create_model", "args": name}), "model_name"),
        "a checkpoint": (
            timm_build(architecture="test_vit", args={"checkpoint_path": str(evil)}),
            "checkpoint_path",
        ),
        "pretrained": (
            timm_build(architecture="test_vit", args={"pretrained": True}),
            "pretrained",
        ),
        "a configuration": (
            timm_build(architecture="test_vit", args={"pretrained_cfg": {"url": "x"}}),
            "pretrained_cfg",
        ),
        "hf-hub": (timm_build(architecture=f"hf-hub:{hub}"), "has no architecture 'hf-hub"),
        "local-dir": (timm_build(architecture="local-dir:/tmp"), "has no architecture 'local-dir"),
        "a list": (timm_build(architecture=["test_vit"]), "has no architecture"),
        "no arguments": (timm_build(architecture="test_vit", args=[1]), "expected a dict"),
        "AutoModel": (bert(**{"class": "AutoModel"}), "no plain model class 'AutoModel'"),
        "pipeline": (bert(**{"class": "pipeline"}), "no plain model class 'pipeline'"),
        "a number": (bert(**{"class": 3}), "no plain model class 3"),
        "TimmBackbone": (bert({"backbone": hub}, **{"class": "TimmBackbone"}), "no plain model"),
        "TimmWrapper": (bert(**{"class": "TimmWrapperModel"}), "no plain model class"),
        "remote code": (bert(options={"trust_remote_code": True}), "option trust_remote_code"),
        "an option": (bert(options={"attn_implementation": hub}), "option attn_implementation"),
        "a kernel": (bert({"attn_implementation": hub}), "has attn_implementation"),
        "a kernel inside": (bert({"text_config": {"_attn_implementation": hub}}), "has _attn"),
        "auto_map": (bert({"auto_map": {"AutoModel": "evil.M"}}), "has auto_map"),
        "a backbone": (bert({"backbone": "resnet50"}), "has backbone"),
        "quantization": (bert({"quantization_config": {"load_in_4bit": True}}), "has quantization"),
        "text from the hub": (clip(text={"hf_model_name": hub}), "text_cfg.hf_model_name"),
        "images from timm": (clip(vision={"timm_model_name": hub}), "vision_cfg.timm_model_name"),
        "an argument of CLIP": (clip(foo=1), "has an argument 'foo'"),
        "a class of open_clip": (clip() | {"class": "CoCa"}, "of the class 'CoCa'"),
        "os": ({"library": "os", "class": "system"}, "this description is of os"),
        "a path": ({"library": "../../x"}, r"this description is of \.\./\.\./x"),
        "a list of libraries": ({"library": ["timm"]}, "this description is of"),
    }


NAMES = list(strangers("evil.pth"))


@pytest.mark.parametrize("name", NAMES)
def test_folder_of_a_stranger(tmp_path, mark, name):
    "A refusal in one paragraph that names the entry; no code ran"
    build, text = strangers(tmp_path / "evil.pth")[name]
    with pytest.raises((TypeError, ValueError), match=text) as error:
        spp.load(folder(tmp_path / "sent", build))
    assert "\n" not in str(error.value)
    assert not mark.exists()


def stock(path, config=(), options=(), files=None, **kw):
    "A folder like one of `spp.save_pretrained`"
    path.mkdir()
    made = transformers.BertModel(transformers.BertConfig(**BERT))
    made.save_pretrained(path)
    told = json.loads((path / "config.json").read_text()) | dict(config)
    (path / "config.json").write_text(json.dumps(told))
    listed = {f.name: digest(f) for f in path.iterdir()} if files is None else files
    build = bert(options=dict(options), **kw)
    header = dict(build=build, widths={}, tied={}, cut=None, types={}, files=listed)
    save_json(path / "spp.json", PRETRAINED, header)
    return path


def test_stock_folder_is_read(tmp_path):
    assert type(spp.load(stock(tmp_path / "sent"))) is transformers.BertModel


@pytest.mark.parametrize(
    "kw, text",
    [
        (dict(options={"use_safetensors": False, "weights_only": False}), "option use_safetensors"),
        (dict(options={"trust_remote_code": True}), "option trust_remote_code"),
        ({"class": "AutoModel"}, "no plain model class"),
        (dict(config={"auto_map": {"AutoModel": "evil.M"}}), "has auto_map"),
        (dict(config={"_attn_implementation": "attacker/kernel"}), "has _attn_implementation"),
        (dict(config={"quantization_config": {"quant_method": "x"}}), "has quantization_config"),
        (dict(files={"../../etc/passwd": "0"}), "which is not in it"),
        (dict(files={"/etc/passwd": "0"}), "which is not in it"),
    ],
    ids=lambda x: x[:30] if isinstance(x, str) else "",
)
def test_stock_folder_of_a_stranger(tmp_path, mark, kw, text):
    with pytest.raises(ValueError, match=text):
        spp.load(stock(tmp_path / "sent", **kw))
    assert not mark.exists()


def test_stock_folder_with_weights_in_a_pickle(tmp_path, mark):
    "Weights that are no safetensors are not looked at"
    sent = stock(tmp_path / "sent")
    (sent / "model.safetensors").unlink()
    os.rename(tmp_path / "evil.pth", sent / "pytorch_model.bin")
    told = load_json(sent / "spp.json", PRETRAINED)
    del told["files"]["model.safetensors"]
    save_json(sent / "spp.json", PRETRAINED, told)
    with pytest.raises(OSError):
        spp.load(sent)
    assert not mark.exists()


def test_a_users_folder_is_never_replaced_by_a_file(tmp_path, small):
    "`path.save` of the name of a folder"
    model, data = small
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years")
    path = spp.search(model, data, steps=2, progress=False)
    with pytest.raises(FileExistsError, match="is a folder; a solution path is one file"):
        path.save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years"
    assert len(list(tmp_path.iterdir())) == 1
