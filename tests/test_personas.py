"""What people write: each persona is one function, whose lines are those of a user's program"""

import inspect
import warnings

import accelerate
import numpy as np
import open_clip
import pytest
import timm
import tokenizers
import torch
import transformers as hf
from PIL import Image
from test_folders import drawn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import spp
from spp.judging.data import images
from spp.judging.evaluate import accuracy
from spp.judging.folders import classes_of

TEXT = "the quick brown fox jumps over a lazy dog and says hello to every animal"
WORDS = TEXT.split()
SMALL = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
)


def tokenizer() -> hf.PreTrainedTokenizerFast:
    "Words as tokens"
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", *WORDS])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", model_max_length=32
    )


def sentences(n: int = 24) -> list[str]:
    drawn = torch.randint(len(WORDS), (n, 6), generator=torch.Generator().manual_seed(0))
    return [" ".join(WORDS[i] for i in row) for row in drawn.tolist()]


def logits(model: nn.Module, x: dict) -> Tensor:
    with torch.no_grad():
        return model.eval()(**x).logits


# --- Trainer and pipeline on BERT -------------------------------------------------------------


def trainer_and_pipeline(model, tok, rows, folder):
    path = spp.search(
        model, DataLoader(rows, 8, collate_fn=hf.DataCollatorWithPadding(tok)), steps=4
    )
    small = path.cut(params=0.8)
    how = hf.TrainingArguments(
        folder, max_steps=4, save_steps=2, report_to=[], per_device_train_batch_size=8
    )
    trainer = hf.Trainer(small, how, train_dataset=rows, processing_class=tok)
    trainer.train()
    spp.save_pretrained(small, f"{folder}/final", tokenizer=tok, scores={"loss": 1.1})
    again = spp.load(f"{folder}/checkpoint-2")
    pipe = hf.pipeline("text-classification", spp.load(f"{folder}/final"), tokenizer=tok)
    return trainer, again, pipe


@pytest.mark.slow
def test_trainer_and_pipeline(tmp_path):
    "A Trainer's checkpoint is read again, training resumes from it, a pipeline takes the model"
    torch.manual_seed(0)
    tok = tokenizer()
    config = hf.BertConfig(vocab_size=len(tok), num_labels=3, **SMALL)
    rows = [dict(tok(text), labels=i % 3) for i, text in enumerate(sentences())]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer, again, pipe = trainer_and_pipeline(
            hf.BertForSequenceClassification(config), tok, rows, str(tmp_path)
        )
    assert any("only spp.load can read" in str(w.message) for w in said)
    x = tok(["the lazy dog"], return_tensors="pt")
    small = trainer.model
    (score,) = pipe("the lazy dog", top_k=1)
    assert score["score"] == pytest.approx(logits(small, x).softmax(-1).max().item(), abs=1e-6)
    assert again.spp.params == small.spp.params
    assert again.spp.path["steps"] == 4
    assert type(again) is hf.BertForSequenceClassification
    want = {k: v.clone() for k, v in small.state_dict().items()}
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, want[name], msg=name)
    card = (tmp_path / "final/README.md").read_text()
    assert "| loss | 1.1 |" in card
    assert f"{small.spp.params[0]:,} of {small.spp.params[1]:,}" in card
    assert hf.AutoTokenizer.from_pretrained(tmp_path / "final").vocab_size == len(tok)


@pytest.mark.parametrize("uniform", [False, True])
def test_own_save_pretrained(tmp_path, uniform):
    "`small.save_pretrained` is read by spp.load; by the class itself too, where its numbers can"
    torch.manual_seed(0)
    config = hf.LlamaConfig(vocab_size=50, num_key_value_heads=2, tie_word_embeddings=True, **SMALL)
    model = hf.LlamaForCausalLM(config).eval()
    x = dict(input_ids=torch.randint(0, 50, (4, 8)))
    path = spp.search(model, [x, x], steps=3, progress=False)
    uneven = torch.rand(path.n, generator=torch.Generator().manual_seed(0)) < 0.6
    small = path.cut(params=0.8, uniform=True) if uniform else spp.cut(model, path.pairs, uneven)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        small.save_pretrained(tmp_path)
    want = logits(small, x)
    told = [w for w in said if "only spp.load can read" in str(w.message)]
    if uniform:
        assert not told
        stock = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
        torch.testing.assert_close(logits(stock, x), want, rtol=0, atol=1e-6)
        with pytest.raises(ValueError, match="keeps no widths of a cut"):
            spp.load(tmp_path)
        return
    assert len(told) == 1
    with pytest.raises(RuntimeError):
        hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    back = spp.load(tmp_path)
    assert torch.equal(logits(back, x), want)
    assert back.lm_head.weight is back.model.embed_tokens.weight
    again = spp.load(spp.save(back, tmp_path / "own"))
    assert torch.equal(logits(again, x), want)
    assert again.config.spp["widths"] == small.spp.widths


def test_a_body_keeps_its_widths(tmp_path):
    "A BERT inside of a module of one's own can be saved by itself"
    torch.manual_seed(0)
    body = hf.BertModel(hf.BertConfig(vocab_size=30, **SMALL), add_pooling_layer=False)
    model = nn.ModuleDict(dict(body=body, head=nn.Linear(32, 3)))
    pairs = spp.find_pairs(model)
    mask = torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(0)) < 0.5
    small = spp.cut(model, pairs, mask)["body"].eval()
    with pytest.warns(UserWarning, match=r"only spp.load can read"):
        small.save_pretrained(tmp_path)
    back = spp.load(tmp_path)
    ids = torch.arange(6)[None]
    assert back.pooler is None
    with torch.no_grad():
        assert torch.equal(back(ids).last_hidden_state, small(ids).last_hidden_state)


# --- Llama, a third less, and generate --------------------------------------------------------


def smaller_llama(model, tok, texts, folder):
    ids = tok(texts, return_tensors="pt")["input_ids"]
    path = spp.search(model, [dict(input_ids=x) for x in ids.split(4)], steps=6)
    small = path.cut(params=0.7, uniform=True)
    spp.save_pretrained(small, folder, tokenizer=tok)
    back = hf.AutoModelForCausalLM.from_pretrained(folder)
    prompt = hf.AutoTokenizer.from_pretrained(folder)("the quick", return_tensors="pt")
    return small, back, back.generate(**prompt, max_new_tokens=8, do_sample=False)


def test_smaller_llama(tmp_path):
    "The cut writes the same text from a stock folder, with and without its cache"
    torch.manual_seed(0)
    tok = tokenizer()
    config = hf.LlamaConfig(vocab_size=len(tok), num_key_value_heads=2, **SMALL)
    config.intermediate_size, config.pad_token_id = 256, 0
    small, back, text = smaller_llama(hf.LlamaForCausalLM(config), tok, sentences(), tmp_path / "m")
    assert 0.65 < small.spp.got["params"] <= 0.7
    prompt = tok("the quick", return_tensors="pt")
    for cache in (True, False):
        assert torch.equal(
            small.generate(**prompt, max_new_tokens=8, do_sample=False, use_cache=cache), text
        )
    assert type(back) is hf.LlamaForCausalLM


# --- open_clip --------------------------------------------------------------------------------


def smaller_clip(model, pairs, folder):
    path = spp.search(model, pairs, steps=4)
    small = path.cut(params=0.8, repair=pairs)
    spp.finetune(small, pairs, teacher=model, epochs=1)
    spp.save(small, folder)
    return small, spp.load(folder)


def test_smaller_clip(tmp_path):
    "Batches (images, texts) of a loader, as people have them"
    torch.manual_seed(0)
    vision = dict(layers=2, width=32, head_width=16, patch_size=8, image_size=16)
    text = dict(layers=2, width=32, heads=2, context_length=9, vocab_size=61)
    model = open_clip.CLIP(24, vision, text).eval()
    images, texts = torch.randn(12, 3, 16, 16), torch.randint(1, 61, (12, 9))
    loader = DataLoader(TensorDataset(images, texts), 6)
    small, back = smaller_clip(model, loader, tmp_path / "clip")
    with torch.no_grad():
        for a, b in zip(small.eval()(images, texts), back(images, texts)):
            assert torch.equal(a, b)


# --- a module of one's own --------------------------------------------------------------------


class Net(nn.Module):
    "A BERT's body and one's own head, as it is usually written"

    def __init__(self):
        super().__init__()
        self.bert = hf.BertModel(hf.BertConfig(vocab_size=len(WORDS) + 2, **SMALL))
        self.head = nn.Linear(32, 3)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.bert(input_ids, attention_mask).pooler_output)


def own_module(model, loader):
    path = spp.search(model, loader, steps=6)
    small = path.cut(units=0.5)
    spp.finetune(small, loader, teacher=model, epochs=2)
    torch.save(small.state_dict(), "small.pt")
    again = spp.cutting.cut.fit(Net(), small.spp.widths)
    again.load_state_dict(torch.load("small.pt", weights_only=True))
    return small, again


def test_own_module(tmp_path, monkeypatch):
    "TensorDataset(ids, mask, labels), a plain loop's checkpoint, the widths given to a new module"
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    x = tokenizer()(sentences(), return_tensors="pt")
    y = torch.arange(24) % 3
    data = TensorDataset(x["input_ids"], x["attention_mask"], y)
    small, again = own_module(Net(), DataLoader(data, 8))
    assert small.spp.units[0] < small.spp.units[1]
    with torch.no_grad():
        args = x["input_ids"], x["attention_mask"]
        assert torch.equal(small.eval()(*args), again.eval()(*args))
    assert 0 <= accuracy(again, DataLoader(data, 8)) <= 1
    with pytest.raises(TypeError, match="spp cannot describe how a Net is made"):
        spp.save(small, tmp_path / "own")


# --- Accelerate -------------------------------------------------------------------------------


def with_accelerate(model, loader):
    accelerator = accelerate.Accelerator(cpu=True)
    small = spp.search(model, loader, steps=4).cut(params=0.8)
    optimizer = torch.optim.AdamW(small.parameters(), 1e-3)
    small, optimizer, batches = accelerator.prepare(small, optimizer, loader)
    for x, y in batches:
        accelerator.backward(F.cross_entropy(small(x).logits, y))
        optimizer.step()
        optimizer.zero_grad()
    return accelerator.unwrap_model(small)


def test_accelerate(tmp_path):
    "A cut is an ordinary module: prepared, trained, unwrapped, saved"
    torch.manual_seed(0)
    config = hf.ViTConfig(image_size=16, patch_size=8, num_labels=3, **SMALL)
    x, y = torch.randn(16, 3, 16, 16), torch.arange(16) % 3
    small = with_accelerate(
        hf.ViTForImageClassification(config), DataLoader(TensorDataset(x, y), 8)
    )
    back = spp.load(spp.save(small, tmp_path / "vit"))
    with torch.no_grad():
        assert torch.equal(back(x).logits, small.eval()(x).logits)


# --- Lightning --------------------------------------------------------------------------------


def with_lightning(lightning, model, loader):
    class Lit(lightning.LightningModule):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def training_step(self, batch, i):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.net.parameters(), 1e-3)

    lit = Lit(spp.search(model, loader, steps=4).cut(params=0.8))
    lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False).fit(lit, loader)
    return lit.net


def test_lightning(tmp_path, monkeypatch):
    "The cut is a submodule like any other; it is saved by itself"
    lightning = pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)  # where Lightning keeps checkpoints
    torch.manual_seed(0)
    how = dict(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3)
    model = timm.create_model("vit_tiny_patch16_224", **how)
    x, y = torch.randn(16, 3, 16, 16), torch.arange(16) % 3
    small = with_lightning(lightning, model, DataLoader(TensorDataset(x, y), 8))
    assert small.spp.got["params"] <= 0.8
    back = spp.load(spp.save(small, tmp_path / "vit"))
    with torch.no_grad():
        assert torch.equal(back(x), small.eval()(x))


# --- timm's ImageFolder, and a folder of CIFAR's form -------------------------------------------


TINY = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3)


def with_timm(root, folder):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **TINY)
    data = timm.data.create_dataset("", root, split="train", is_training=True)
    loader = timm.data.create_loader(
        data, (3, 32, 32), 8, is_training=True, no_aug=True, use_prefetcher=False, num_workers=0
    )
    spp.finetune(model, loader, epochs=6, lr=2e-3)
    path = spp.search(model, loader, steps=12)
    small = path.cut(params=0.6, repair=loader)
    spp.finetune(small, loader, teacher=model, epochs=2)
    spp.save(small, folder)
    return model, small


@pytest.mark.slow
def test_with_timm(tmp_path):
    "timm's own data set and loader; the cut learns what the model knows"
    torch.manual_seed(0)
    drawn(tmp_path, train=24)
    model, small = with_timm(str(tmp_path), tmp_path / "small")
    held_out = images(tmp_path, model, False, 8, workers=0)
    assert small.spp.got["params"] <= 0.6
    assert accuracy(spp.load(tmp_path / "small"), held_out) > 0.5


def cifar(root):
    classes = classes_of(root)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=len(classes), **TINY)
    train = images(root, model, plain=True, batch_size=16, workers=0)
    held_out = images(root, model, False, workers=0)
    spp.finetune(model, train, epochs=6, lr=2e-3)
    path = spp.search(model, train, steps=12)
    small = path.cut(macs=0.5, repair=train)
    spp.finetune(small, train, teacher=model, epochs=2)
    print(spp.compare(small, model, held_out))
    return model, small, held_out


@pytest.mark.slow
def test_cifar(tmp_path, capsys):
    "train/ and test/ with PNGs of 32 pixels in a folder per class, numbered in any order"
    names = ["airplane", "bird", "cat", "ship"]
    for split, n in (("train", 20), ("test", 10)):
        for k, name in enumerate(names):
            (tmp_path / split / name).mkdir(parents=True)
            noise = np.random.default_rng(k)
            for i in range(n):
                pixels = noise.integers(0, 60, (32, 32, 3)) + 60 * k
                file = tmp_path / split / name / f"{i}_{name}.png"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)
    torch.manual_seed(0)
    _, small, held_out = cifar(tmp_path)
    assert small.spp.got["macs"] <= 0.5
    assert accuracy(small, held_out) > 0.5
    assert "on 40 samples" in capsys.readouterr().out


# --- the libraries' own folders ----------------------------------------------------------------


def timm_without_spp(model, loader, folder):
    mlps = [pair for pair in spp.find_pairs(model) if pair.kind == "mlp"]
    path = spp.search(model, loader, pairs=mlps, steps=4)
    small = path.cut(params=0.8, uniform=True)
    spp.finetune(small, loader, teacher=model, epochs=1)
    spp.save_pretrained(small, folder, scores={"accuracy": 0.9})
    return small, timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_timm_and_open_clip_without_spp(tmp_path):
    "What they can load by themselves they load to the bit; the rest is told, and spp loads it"
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **TINY)
    x, y = torch.randn(16, 3, 32, 32), torch.arange(16) % 3
    loader = DataLoader(TensorDataset(x, y), 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small, stock = timm_without_spp(model, loader, tmp_path / "vit")
    assert len({tuple(w.items()) for w in small.spp.widths.values()}) == 1
    assert small.spp.got["params"] <= 0.8
    file, ratio = tmp_path / "vit/model.safetensors", stock.blocks[0].mlp.fc1.out_features / 48
    named = timm.create_model(
        "vit_tiny_patch16_224", num_classes=3, mlp_ratio=ratio, checkpoint_path=file, **TINY
    )
    back = spp.load(tmp_path / "vit")
    assert back.spp.params == small.spp.params
    with torch.no_grad():
        for other in (stock, named, back):
            assert torch.equal(other.eval()(x), small.eval()(x))
    uneven = spp.search(model, loader, steps=4, progress=False).cut(params=0.6)
    with pytest.warns(UserWarning, match=r"only spp.load can read .*search the MLPs alone"):
        spp.save_pretrained(uneven, tmp_path / "uneven")
    with torch.no_grad():
        assert torch.equal(spp.load(tmp_path / "uneven")(x), uneven.eval()(x))


# --- how long ---------------------------------------------------------------------------------

PERSONAS = [
    trainer_and_pipeline,
    smaller_llama,
    smaller_clip,
    own_module,
    with_accelerate,
    with_lightning,
    with_timm,
    cifar,
    timm_without_spp,
]


@pytest.mark.parametrize("persona", PERSONAS, ids=lambda f: f.__name__)
def test_no_program_is_longer_than_fifteen_lines(persona):
    lines = inspect.getsource(persona).splitlines()[1:]
    assert sum(bool(line.strip()) for line in lines) <= 15
