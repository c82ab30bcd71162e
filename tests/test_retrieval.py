"Images with captions, recall, and what a pruned CLIP must still be able to do."

import io
import json
import math
import tarfile
import warnings
from importlib.util import find_spec

import open_clip
import pandas as pd
import pytest
import torch
from command import python, spp
from families import randomised
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.testing import assert_close

from spp import find_pairs, finetune, load, save
from spp.cutting.cut import cut
from spp.judging.caption_files import Item, karpathy, made_up
from spp.judging.caption_loader import captions, readable, shards, tokenizer, transform
from spp.judging.evaluate import evaluate
from spp.judging.retrieval import recall
from spp.method.objective import answer, contrastive
from spp.models.gates import gated
from spp.training.finetune import Wide


def small_clip(block="default", **text):
    "ViT-B/32 at small width, with one of open_clip's two attention layers"
    config = open_clip.get_model_config("ViT-B-32")
    torch.manual_seed(0)
    assert config["vision_cfg"]["patch_size"] == 32
    assert config["text_cfg"]["vocab_size"] == 49408
    both = dict(layers=2, block_type=block)
    vision = config["vision_cfg"] | both | dict(layers=3, width=64, head_width=16, image_size=64)
    language = config["text_cfg"] | both | dict(width=48, heads=3) | text
    return randomised(open_clip.CLIP(32, vision, language)).eval()


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    "A folder of 200 images in the format of COCO"
    return made_up(tmp_path_factory.mktemp("data") / "coco", 200)


@pytest.fixture(scope="module")
def small():
    "A CLIP that no test changes"
    return small_clip()


@pytest.fixture(params=["default", "custom"])
def clip(request):
    "A CLIP with each of open_clip's attention layers"
    return small_clip(request.param)


def half(model, seed=0):
    "A cut of about half the units, its pairs and its mask"
    pairs = find_pairs(model)
    mask = torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(seed)) < 0.5
    return cut(model, pairs, mask), pairs, mask


def entries(coco):
    "Entries of the JSON file"
    return json.loads((coco / "dataset_coco.json").read_text())["images"]


def test_splits(coco):
    "Splits, sub-folders and captions of a folder of the real format"
    rows = entries(coco)
    assert len(rows) == 200
    items = {split: karpathy(coco, split) for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in items.items()} == dict(train=160, val=20, test=20)
    by_name = {row["filename"]: row for row in rows}
    for split, found in items.items():
        for item in found:
            row = by_name[item.image.name]
            assert item.image == coco / row["filepath"] / row["filename"]
            assert item.texts == [sentence["raw"] for sentence in row["sentences"]]
            assert row["split"] == split or (row["split"], split) == ("restval", "train")
    folders = {item.image.parent.name for item in items["train"]}
    assert folders == {"train2014", "val2014"}  # restval lies in val2014


def test_training_batches(coco, small):
    "One caption of each image, the same ones for the same seed"
    train = captions(coco, small, batch_size=32, workers=2, seed=3)
    batches = list(train)
    assert len(batches) == len(train) == 5
    known = tokenizer(small)([t for item in karpathy(coco) for t in item.texts])
    known = {tuple(t) for t in known.tolist()}
    for batch in batches:
        assert batch.keys() == {"image", "text"}
        assert batch["image"].shape == (32, 3, 64, 64)
        assert batch["text"].shape == (32, 77)
        assert {tuple(t) for t in batch["text"].tolist()} <= known
    again = next(iter(captions(coco, small, batch_size=32, workers=2, seed=3)))
    assert torch.equal(batches[0]["text"], again["text"])


def test_batches_to_judge_on(coco, clip):
    "All captions of the test images, in order; recall does not depend on the batch size"
    test = captions(coco, clip, False, 8, workers=0)
    batches = list(test)
    assert [len(batch["image"]) for batch in batches] == [8, 8, 4]
    assert batches[2]["owner"].tolist() == [i for i in range(4) for _ in range(5)]
    with Image.open(karpathy(coco, "test")[0].image) as image:
        first = transform(clip, False)(image.convert("RGB"))
    assert torch.equal(batches[0]["image"][0], first)
    found = evaluate(clip, test, "retrieval")
    assert found["n"] == dict(images=20, captions=100)
    other = evaluate(clip, captions(coco, clip, False, 20, workers=0), "retrieval")
    assert found == other | dict(data=found["data"])
    assert json.loads(json.dumps(found)) == found


def test_flickr_format(tmp_path):
    "No `filepath`, no ids, images in a folder of their own"
    made_up(tmp_path / "made", 20)
    (tmp_path / "images").mkdir()
    rows = entries(tmp_path / "made")
    for row in rows:
        file = tmp_path / "made" / row["filepath"] / row["filename"]
        file.rename(tmp_path / "images" / row["filename"])
    rows = [{k: row[k] for k in ("filename", "split", "sentences")} for row in rows]
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps(dict(images=rows)))
    assert len(karpathy(tmp_path, "test")) == 2
    assert len(karpathy(tmp_path)) == 16


def brute(image, text, owner, ks):
    "Recall by its definition, in whole numbers"

    def grid(rows):
        return [[round(v / math.sqrt(sum(w * w for w in r)) * 2**20) for v in r] for r in rows]

    def rank(scores, right):
        best = max(scores[j] for j in right)
        return 1 + sum(x >= best for j, x in enumerate(scores) if j not in right)

    a, b = grid(image.double().tolist()), grid(text.double().tolist())
    scores = [[sum(x * y for x, y in zip(r, c)) for c in b] for r in a]
    own = [{j for j, o in enumerate(owner) if o == i} for i in range(len(a))]
    ranks = {
        "image to text": [rank(row, right) for row, right in zip(scores, own)],
        "text to image": [rank(column, {o}) for column, o in zip(zip(*scores), owner)],
    }
    return {
        f"{name} R@{k}": sum(r <= k for r in rs) / len(rs) for name, rs in ranks.items() for k in ks
    }


@pytest.mark.parametrize("seed", range(4))
def test_recall_is_its_definition(seed):
    "On random embeddings of which many are equal, exactly; whatever the chunks and the order"
    g = torch.Generator().manual_seed(seed)
    n, d, ks = 40, 4, (1, 2, 5, 10)
    image = torch.randint(-1, 2, (n, d), generator=g).float()
    image[image.abs().sum(1) == 0] = 1.0
    owner = torch.cat([torch.arange(n), torch.randint(n, (60,), generator=g)])
    same = torch.rand(100, d, generator=g) < 0.8
    text = torch.where(same, image[owner], torch.randint(-1, 2, (100, d), generator=g).float())
    text[text.abs().sum(1) == 0] = 1.0
    assert len({tuple(r) for r in image.tolist()}) < n  # there are ties
    want = brute(image, text, owner.tolist(), ks)
    got = recall(image, text, owner, ks)
    assert got["scores"] == pytest.approx(want, abs=1e-12)
    assert 0 < want["image to text R@10"] <= 1
    for chunk in (1, 7, 39):
        assert recall(image, text, owner, ks, chunk) == got
    order = torch.randperm(100, generator=g)
    assert recall(image, text[order], owner[order], ks)["scores"] == got["scores"]


@pytest.mark.parametrize("seed", range(4))
def test_recall_without_ties(seed):
    "As any ranking has it"
    g = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(30, 64, generator=g) for _ in range(2))
    cosines = F.normalize(image.double(), dim=1) @ F.normalize(text.double(), dim=1).T
    first = cosines.argsort(1, descending=True)[:, :5]
    want = (first == torch.arange(30)[:, None]).any(1).double().mean().item()
    got = recall(image, text)["scores"]["image to text R@5"]
    assert got == pytest.approx(want, abs=1e-12)


@pytest.fixture
def changed(coco, tmp_path):
    "A function: what `karpathy` says of the folder after a change to the entries"

    def read(change, split="train", **arguments):
        rows = entries(coco)
        change(rows)
        folder = tmp_path / "changed"
        folder.mkdir(exist_ok=True)
        for name in ("train2014", "val2014"):
            if not (folder / name).exists():
                (folder / name).symlink_to(coco / name)
        (folder / "dataset_coco.json").write_text(json.dumps(dict(images=rows)))
        return karpathy(folder, split, **arguments)

    return read


def test_leaks(changed):
    "An image in two splits is refused, whatever `missing` says"
    with pytest.raises(ValueError, match="images in several splits: 1 .*would be tested on"):
        changed(lambda rows: rows[9].update(cocoid=rows[0]["cocoid"]))

    def twice(rows):
        rows.append(rows[0] | dict(split="test", imgid=999, cocoid=9999))

    for missing in ("stop", "skip"):
        with pytest.raises(ValueError, match="in several splits"):
            changed(twice, missing=missing)


def test_missing_images_and_captions(changed):
    "Refused, or counted and left out, as asked"

    def rename(rows):
        for row in rows[:4]:
            row.update(filename="gone_" + row["filename"])

    def empty(rows):
        rows[0]["sentences"][0].update(raw=" ")

    def silent(rows):
        for row in rows:
            row.update(sentences=[])

    names = ", ".join(f"gone_COCO_train2014_{i:012d}.jpg" for i in (0, 1, 3))
    text = rf"captions without images: 4 \({names} …\); images without captions: 4"
    with pytest.raises(FileNotFoundError, match=text):
        changed(rename)
    with pytest.warns(UserWarning, match="captions without images: 4"):
        assert len(changed(rename, missing="skip")) == 156
    with pytest.raises(ValueError, match="images with an empty caption: 2"):
        changed(lambda rows: [rows[i]["sentences"][0].update(raw=" ") for i in (0, 1)])
    with pytest.warns(UserWarning, match="empty"):
        assert [len(item.texts) for item in changed(empty, missing="skip")[:2]] == [4, 5]
    with warnings.catch_warnings(), pytest.raises(ValueError, match="no image with a caption"):
        warnings.simplefilter("ignore")
        changed(silent, missing="skip")


def test_broken_images(coco, small, tmp_path):
    "Refused, or counted and left out, as asked"
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(karpathy(coco)[0].image.read_bytes()[:200])
    some = karpathy(coco)[:3] + [Item(bad, ["a b"])]
    with pytest.raises(OSError, match="1 of 4 images cannot be read: bad.jpg"):
        readable(some)
    with pytest.raises(OSError, match="bad.jpg cannot be read as an image"):
        list(captions(some, small, False, workers=0))
    with pytest.warns(UserWarning, match="left out: bad.jpg"):
        assert len(readable(some, "skip")) == 3
    with pytest.warns(UserWarning, match="1 of 16 captions are cut off after 77 tokens"):
        captions([Item(bad, ["word " * 80])] + karpathy(coco)[:3], small, False, workers=0)


def test_bad_batches(coco, clip):
    "A batch of one pair, or of images without texts, is refused"
    with pytest.raises(ValueError, match="a batch of one"):
        captions(coco, clip, batch_size=1, workers=0)
    one = next(iter(captions(karpathy(coco)[:1], clip, False, workers=0)))
    pair = dict(image=one["image"], text=one["text"][:1])
    with pytest.raises(ValueError, match="only belong together"):
        finetune(clip, [pair], loss=contrastive, epochs=1)
    with pytest.raises(TypeError, match="no `text`"):
        finetune(clip, [dict(image=one["image"].expand(2, -1, -1, -1))], loss=contrastive, epochs=1)
    with pytest.raises(TypeError, match="no `text`"):
        evaluate(clip, [dict(image=one["image"])], "retrieval")


def test_a_cut_clip_is_the_gated_one(clip, coco):
    "gated ≡ cut in float64; the cut is open_clip's class, with transforms and zero-shot templates"
    model = clip.double()
    cut_model, pairs, mask = half(model)
    assert isinstance(cut_model, open_clip.CLIP)
    batch = next(iter(captions(coco, model, False, 6, workers=0)))
    image, text = batch["image"].double(), batch["text"]
    with gated(model, pairs) as gates, torch.no_grad():
        gates.set(mask.double())
        want = model.encode_image(image, normalize=True), model.encode_text(text, normalize=True)
    with torch.no_grad():
        got = (
            cut_model.encode_image(image, normalize=True),
            cut_model.encode_text(text, normalize=True),
        )
    for a, b in zip(got, want):
        assert_close(a, b, rtol=0, atol=1e-10)
    cut_model = cut_model.float()
    head = open_clip.build_zero_shot_classifier(
        cut_model,
        tokenizer(cut_model),
        open_clip.IMAGENET_CLASSNAMES[:7],
        open_clip.OPENAI_IMAGENET_TEMPLATES,
        num_classes_per_batch=3,
    )
    assert head.shape == (32, 7)
    assert head.isfinite().all()
    with Image.open(karpathy(coco)[0].image) as file:
        ready = transform(cut_model, False)(file)
    assert (cut_model.encode_image(ready[None], normalize=True) @ head).shape == (1, 7)
    size = open_clip.model.get_model_preprocess_cfg(cut_model)["size"]
    assert size in (64, (64, 64))


RELOAD = """
import sys, torch, spp
from safetensors.torch import load_file, save_file

model = spp.load(sys.argv[1] + "/half")
x = load_file(sys.argv[1] + "/x")
with torch.no_grad():
    y = dict(image=model.encode_image(x["image"]), text=model.encode_text(x["text"]))
save_file(y, sys.argv[1] + "/y")
"""


def test_a_cut_clip_is_loaded(small, coco, tmp_path):
    "Saved and loaded here, it has the same scores"
    cut_model, _, _ = half(small)
    save(cut_model, tmp_path / "half")
    test = captions(coco, cut_model, False, workers=0)
    again = evaluate(load(tmp_path / "half"), test, "retrieval")
    assert again == evaluate(cut_model, test, "retrieval")


@pytest.mark.slow
def test_a_cut_clip_in_a_new_process(clip, coco, tmp_path):
    "Saved and loaded, there and here, it returns the same bits and scores"
    cut_model, _, _ = half(clip)
    batch = next(iter(captions(coco, cut_model, False, 6, workers=0)))
    save(cut_model, tmp_path / "half")
    save_file(dict(image=batch["image"], text=batch["text"]), tmp_path / "x")
    done = python("-c", RELOAD, tmp_path)
    assert done.returncode == 0, done.stderr
    there = load_file(tmp_path / "y")
    with torch.no_grad():
        assert torch.equal(there["image"], cut_model.encode_image(batch["image"]))
        assert torch.equal(there["text"], cut_model.encode_text(batch["text"]))
    test = captions(coco, cut_model, False, workers=0)
    again = evaluate(load(tmp_path / "half"), test, "retrieval")
    assert again == evaluate(cut_model, test, "retrieval")


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_gradient_of_chunks(drop):
    """In chunks, the gradient of a contrastive batch is that of the whole, in float64 to 1e-10.

    Patches that are dropped at random are dropped again on the way back.
    """
    torch.manual_seed(0)
    vision = dict(layers=2, width=32, head_width=16, patch_size=8, image_size=32)
    language = dict(layers=2, width=32, heads=2, context_length=8, vocab_size=50)
    model = open_clip.CLIP(16, vision | dict(patch_dropout=drop), language)
    model = randomised(model).double().train()
    x = dict(image=torch.randn(11, 3, 32, 32).double(), text=torch.randint(1, 50, (11, 8)))

    def gradient(f):
        torch.manual_seed(1)
        model.zero_grad()
        contrastive(answer(f, x).out).backward()
        return {k: p.grad.clone() for k, p in model.named_parameters()}

    class Parts(torch.nn.Module):
        "The same chunks with everything kept"

        def forward(self, image, text):
            i, t, s = zip(*(model(a, b) for a, b in zip(image.split(4), text.split(4))))
            return torch.cat(i), torch.cat(t), s[0]

    want, got = gradient(model if drop == 0 else Parts()), gradient(Wide(model, 4))
    for name in want:
        assert_close(got[name], want[name], rtol=0, atol=1e-10)


RUN = """
import sys
import open_clip, torch
import torch.distributed as dist
from safetensors.torch import save_file
from spp import finetune
from spp.method.objective import contrastive

if dist.is_torchelastic_launched():
    dist.init_process_group("gloo")
rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
torch.manual_seed(0)


def clip():
    vision = dict(layers=2, width=32, head_width=16, patch_size=8, image_size=32)
    language = dict(layers=2, width=32, heads=2, context_length=8, vocab_size=50)
    return open_clip.CLIP(16, vision, language).double()


def batch():
    return dict(image=torch.randn(12, 3, 32, 32).double(), text=torch.randint(1, 50, (12, 8)))


model, teacher = clip(), clip()
batches = [batch() for _ in range(3)]
mine = [{k: v.chunk(world)[rank] for k, v in b.items()} for b in batches]
chunk = int(sys.argv[2]) or None
finetune(model, mine, teacher, epochs=2, lr=1e-3, loss=contrastive, chunk=chunk)
if rank == 0:
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, sys.argv[1])
if dist.is_initialized():
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_gather(tmp_path):
    """Two processes with half a batch each train the model of one process with the whole batch.

    So each pair is told from those of the other process, too; in chunks or not.
    """
    script = tmp_path / "run.py"
    script.write_text(RUN)
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for out, started_by, chunk in (("one", (), 0), ("two", two, 0), ("chunks", two, 4)):
        done = python(*started_by, script, tmp_path / out, chunk)
        assert done.returncode == 0, done.stderr
    want = load_file(tmp_path / "one")
    for out in ("two", "chunks"):
        for name, weight in load_file(tmp_path / out).items():
            assert (weight - want[name]).abs().max() <= 1e-9, (out, name)


@pytest.mark.slow
def test_recipe_from_the_command_line(tmp_path):
    "`spp run clip_base --smoke`: everything is there; asked again, nothing is done twice"
    out = tmp_path / "run"

    def go():
        done = spp("run", "clip_base", "--smoke", "--batch", 8, "--out", out)
        assert done.returncode == 0, done.stderr
        return pd.read_csv(out / "results.csv")

    table = go()
    assert {"made_up", "order.path", "params_0.50"} <= {p.name for p in out.iterdir()}
    assert table.asked.tolist() == [1.0, 0.75, 0.5]
    assert ((table.asked - 0.02 < table.share) & (table.share <= table.asked)).all()
    assert "text to image R@10" in table
    assert table.samples.tolist() == [4] * 3  # held-out images
    weights = out / "params_0.50/model.safetensors"
    stamp = weights.stat().st_mtime_ns
    assert go().equals(table)
    assert weights.stat().st_mtime_ns == stamp
    assert isinstance(load(out / "params_0.50"), open_clip.CLIP)


def test_shards(coco, tmp_path, small):
    "Pairs from tar files, where webdataset is installed; elsewhere an error that says so"
    if find_spec("webdataset") is None:
        with pytest.raises(ImportError, match="pip install webdataset"):
            shards("x.tar", small, 2)
        pytest.skip("webdataset is not installed")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i, item in enumerate(karpathy(coco)[:12]):
            files = {"jpg": item.image.read_bytes(), "txt": item.texts[0].encode()}
            for kind, data in files.items():
                info = tarfile.TarInfo(f"{i:03d}.{kind}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    data = shards(str(tmp_path / "a.tar"), small, 3, 4, workers=0)
    batches = list(data)
    assert len(batches) == len(data) == 3
    for batch in batches:
        assert batch["image"].shape == (4, 3, 64, 64)
        assert batch["text"].shape == (4, 77)


@pytest.mark.slow
def test_emoji():
    "Where the registry can be reached: both styles, names, a gallery with two captions each"
    from spp.lab.clip_data import Words, gallery
    from spp.lab.samples import emoji

    try:
        things = emoji()
    except ConnectionError as error:
        pytest.skip(str(error))
    assert len(things) == len(set(things.names)) == 849
    shapes = {style: tuple(x.shape) for style, x in things.styles.items()}
    assert shapes == dict.fromkeys(("fluent", "noto"), (849, 3, 48, 48))
    tomato = things.names.index("tomato")
    for images in things.styles.values():
        red, green, blue = images[tomato].float().mean((1, 2)).tolist()
        assert red > max(green, blue)
    words = Words(things.names, [t for tags in things.tags for t in tags])
    batches = gallery(things, "noto", words)
    assert sum(len(batch["text"]) for batch in batches) == 2 * 849
