"Images with captions, recall, and what a pruned CLIP must still be able to do"

import json
import math
import subprocess
import sys
import warnings

import open_clip
import pandas as pd
import pytest
import torch
from families import randomised
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from spp import find_pairs, finetune, load, save
from spp.cutting.cut import cut
from spp.judging.evaluate import evaluate
from spp.judging.retrieval import (
    Item,
    captions,
    karpathy,
    made_up,
    readable,
    recall,
    shards,
    tokenizer,
    transform,
)
from spp.method.objective import answer, contrastive
from spp.models.gates import gated


def small_clip(block="default", **text):
    "ViT-B/32 at small width, with one of open_clip's two attention layers; its patches, tokenizer and context"
    cfg = open_clip.get_model_config("ViT-B-32")
    torch.manual_seed(0)
    assert cfg["vision_cfg"]["patch_size"] == 32 and cfg["text_cfg"]["vocab_size"] == 49408
    vision = cfg["vision_cfg"] | dict(
        layers=3, width=64, head_width=16, image_size=64, block_type=block
    )
    text = cfg["text_cfg"] | dict(layers=2, width=48, heads=3, block_type=block) | text
    return randomised(open_clip.CLIP(32, vision, text)).eval()


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return made_up(tmp_path_factory.mktemp("data") / "coco", 200)


@pytest.fixture(params=["default", "custom"])
def clip(request):
    return small_clip(request.param)


def half(model, seed=0):
    "A cut of about half the units, and its mask"
    pairs = find_pairs(model)
    mask = torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(seed)) < 0.5
    return cut(model, pairs, mask), pairs, mask


def test_karpathy_200(coco, clip):
    "The splits, sub-folders, captions and batches of a folder of the real format"
    rows = json.loads((coco / "dataset_coco.json").read_text())["images"]
    assert len(rows) == 200
    items = {s: karpathy(coco, s) for s in ("train", "val", "test")}
    assert {s: len(x) for s, x in items.items()} == dict(train=160, val=20, test=20)
    by_name = {r["filename"]: r for r in rows}
    for s, xs in items.items():
        for x in xs:
            r = by_name[x.image.name]
            assert (
                x.image == coco / r["filepath"] / r["filename"]
                and x.texts == [t["raw"] for t in r["sentences"]]
                and (r["split"] if r["split"] != "restval" else "train") == s
            )
    assert {x.image.parent.name for x in items["train"]} == {"train2014", "val2014"}  # restval
    train, test = (
        captions(coco, clip, batch_size=32, workers=2, seed=3),
        captions(coco, clip, False, 8, workers=0),
    )
    seen, own = list(train), [t for x in items["train"] for t in x.texts]
    tokens = {tuple(t.tolist()) for t in tokenizer(clip)(own)}
    assert len(seen) == len(train) == 5 and all(
        x.keys() == {"image", "text"}
        and x["image"].shape == (32, 3, 64, 64)
        and x["text"].shape == (32, 77)
        for x in seen
    )
    assert all(tuple(t.tolist()) in tokens for x in seen for t in x["text"]) and torch.equal(
        seen[0]["text"], next(iter(captions(coco, clip, batch_size=32, workers=2, seed=3)))["text"]
    )
    batches = list(test)
    assert [len(x["image"]) for x in batches] == [8, 8, 4] and batches[2]["owner"].tolist() == [
        i for i in range(4) for _ in range(5)
    ]
    with Image.open(items["test"][0].image) as im:
        assert torch.equal(batches[0]["image"][0], transform(clip, False)(im.convert("RGB")))
    found = evaluate(clip, test, "retrieval")
    assert found["n"] == dict(images=20, captions=100) and found == evaluate(
        clip, captions(coco, clip, False, 20, workers=0), "retrieval"
    ) | dict(data=found["data"])
    assert json.loads(json.dumps(found)) == found


def test_flickr_format(tmp_path, clip):
    "No `filepath`, no ids, images in a folder of their own"
    made_up(tmp_path / "made", 20)
    (tmp_path / "images").mkdir()
    rows = json.loads((tmp_path / "made/dataset_coco.json").read_text())["images"]
    for r in rows:
        (tmp_path / "made" / r["filepath"] / r["filename"]).rename(
            tmp_path / "images" / r["filename"]
        )
    (tmp_path / "dataset_flickr30k.json").write_text(
        json.dumps(
            dict(images=[{k: r[k] for k in ("filename", "split", "sentences")} for r in rows])
        )
    )
    assert len(karpathy(tmp_path, "test")) == 2 and len(karpathy(tmp_path)) == 16


def brute(image, text, owner, ks):
    "Recall by its definition, in whole numbers"

    def grid(rows):
        return [[round(v / math.sqrt(sum(w * w for w in r)) * 2**20) for v in r] for r in rows]

    a, b = grid(image.double().tolist()), grid(text.double().tolist())
    s = [[sum(x * y for x, y in zip(r, c)) for c in b] for r in a]

    def rank(scores, right):
        best = max(scores[j] for j in right)
        return 1 + sum(x >= best for j, x in enumerate(scores) if j not in right)

    ranks = {
        "image to text": [
            rank(s[i], {j for j, o in enumerate(owner) if o == i}) for i in range(len(a))
        ],
        "text to image": [rank([s[i][j] for i in range(len(a))], {o}) for j, o in enumerate(owner)],
    }
    return {
        f"{name} R@{k}": sum(r <= k for r in rs) / len(rs) for name, rs in ranks.items() for k in ks
    }, ranks


@pytest.mark.parametrize("seed", range(4))
def test_recall_is_its_definition(seed):
    "On random embeddings of which many are equal, exactly; whatever the chunks and the order"
    g = torch.Generator().manual_seed(seed)
    n, d = 40, 4
    image = torch.randint(-1, 2, (n, d), generator=g).float()
    image[image.abs().sum(1) == 0] = 1.0
    owner = torch.cat([torch.arange(n), torch.randint(n, (60,), generator=g)])
    text = torch.where(
        torch.rand(100, d, generator=g) < 0.8,
        image[owner],
        torch.randint(-1, 2, (100, d), generator=g).float(),
    )
    text[text.abs().sum(1) == 0] = 1.0
    want, ranks = brute(image, text, owner.tolist(), (1, 2, 5, 10))
    got = recall(image, text, owner, (1, 2, 5, 10))
    assert got["scores"] == pytest.approx(want, abs=1e-12) and 0 < want["image to text R@10"] <= 1
    assert len({tuple(r) for r in image.tolist()}) < n  # there are ties
    for chunk in (1, 7, 39):
        assert recall(image, text, owner, (1, 2, 5, 10), chunk) == got
    p = torch.randperm(100, generator=g)
    assert recall(image, text[p], owner[p], (1, 2, 5, 10))["scores"] == got["scores"]
    loose = (
        torch.randn(30, 64, generator=g),
        torch.randn(30, 64, generator=g),
    )  # no ties: as any ranking has it
    s = (
        torch.nn.functional.normalize(loose[0].double(), dim=1)
        @ torch.nn.functional.normalize(loose[1].double(), dim=1).T
    )
    assert recall(*loose)["scores"]["image to text R@5"] == pytest.approx(
        (s.argsort(1, descending=True)[:, :5] == torch.arange(30)[:, None])
        .any(1)
        .double()
        .mean()
        .item(),
        abs=1e-12,
    )


def test_bad_input(coco, tmp_path, clip):
    "Each is refused, or counted and left out, as asked"
    told = json.loads((coco / "dataset_coco.json").read_text())
    rows = told["images"]

    def written(change, split="train", **kw):
        other = json.loads(json.dumps(told))
        change(other["images"])
        folder = tmp_path / "changed"
        folder.mkdir(exist_ok=True)
        for sub in ("train2014", "val2014"):
            if not (folder / sub).exists():
                (folder / sub).symlink_to(coco / sub)
        (folder / "dataset_coco.json").write_text(json.dumps(other))
        return karpathy(folder, split, **kw)

    with pytest.raises(ValueError, match="1 images are in several splits .*would be tested on"):
        written(lambda r: r[9].update(cocoid=r[0]["cocoid"]))
    for missing in ("stop", "skip"):
        with pytest.raises(ValueError, match="in several splits"):
            written(
                lambda r: r.append(r[0] | dict(split="test", imgid=999, cocoid=9999)),
                missing=missing,
            )

    def gone(r):
        [x.update(filename="gone_" + x["filename"]) for x in r[:4]]

    with pytest.raises(
        FileNotFoundError,
        match=r"4 captions without images: gone_COCO_train2014_000000000000.jpg, gone_COCO_train2014_000000000001.jpg, gone_COCO_train2014_000000000003.jpg …; 4 images without captions",
    ):
        written(gone)
    with pytest.warns(UserWarning, match="4 captions without images"):
        assert len(written(gone, missing="skip")) == 156
    with pytest.raises(ValueError, match="2 images with an empty caption"):
        written(lambda r: [r[i]["sentences"][0].update(raw=" ") for i in (0, 1)])
    with pytest.warns(UserWarning, match="empty"):
        assert [
            len(x.texts)
            for x in written(lambda r: r[0]["sentences"][0].update(raw=" "), missing="skip")[:2]
        ] == [4, 5]
    with (
        pytest.raises(ValueError, match="no image with a caption is left"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        written(lambda r: [x.update(sentences=[]) for x in r], missing="skip")
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(karpathy(coco)[0].image.read_bytes()[:200])
    some = karpathy(coco)[:3] + [Item(bad, ["a b"])]
    with pytest.raises(OSError, match="1 of 4 images cannot be read: bad.jpg"):
        readable(some)
    with pytest.raises(OSError, match="bad.jpg cannot be read as an image"):
        list(captions(some, clip, False, workers=0))
    with pytest.warns(UserWarning, match="left out: bad.jpg"):
        assert len(readable(some, "skip")) == 3
    with pytest.warns(UserWarning, match="1 of 16 captions are cut off after 77 tokens"):
        captions([Item(bad, ["word " * 80])] + karpathy(coco)[:3], clip, False, workers=0)
    with pytest.raises(ValueError, match="a batch of one"):
        captions(coco, clip, batch_size=1, workers=0)
    one = next(iter(captions(karpathy(coco)[:1], clip, False, workers=0)))
    with pytest.raises(ValueError, match="only belong together"):
        finetune(clip, [dict(image=one["image"], text=one["text"][:1])], loss=contrastive, epochs=1)
    with pytest.raises(TypeError, match="no `text`"):
        finetune(clip, [dict(image=one["image"].expand(2, -1, -1, -1))], loss=contrastive, epochs=1)
    with pytest.raises(TypeError, match="no `text`"):
        evaluate(clip, [dict(image=one["image"])], "retrieval")


def test_pruned_clip_is_open_clips(clip, coco, tmp_path):
    "gated ≡ cut; encode_image, encode_text, transforms, tokenizer and zero-shot templates work; saved and loaded in a new process it says the same bits"
    model = clip.double()
    small, pairs, mask = half(model)
    assert isinstance(small, open_clip.CLIP)
    x = next(iter(captions(coco, model, False, 6, workers=0)))
    image, text = x["image"].double(), x["text"]
    with gated(model, pairs) as g, torch.no_grad():
        g.set(mask.double())
        want = model.encode_image(image, normalize=True), model.encode_text(text, normalize=True)
    with torch.no_grad():
        got = small.encode_image(image, normalize=True), small.encode_text(text, normalize=True)
    for a, b in zip(got, want):
        assert_close(a, b, rtol=0, atol=1e-10)
    small = small.float()
    words = tokenizer(small)
    head = open_clip.build_zero_shot_classifier(
        small,
        words,
        open_clip.IMAGENET_CLASSNAMES[:7],
        open_clip.OPENAI_IMAGENET_TEMPLATES,
        num_classes_per_batch=3,
    )
    assert head.shape == (32, 7) and head.isfinite().all()
    ready = transform(small, False)
    with Image.open(karpathy(coco)[0].image) as im:
        logits = 100 * small.encode_image(ready(im)[None], normalize=True) @ head
    assert logits.shape == (1, 7) and open_clip.model.get_model_preprocess_cfg(small)["size"] in (
        64,
        (64, 64),
    )
    save(small, tmp_path / "half")
    save_file(dict(image=x["image"], text=text), tmp_path / "x")
    script = "import sys, torch, spp\nfrom safetensors.torch import load_file, save_file\nm = spp.load(sys.argv[1] + '/half'); x = load_file(sys.argv[1] + '/x')\nwith torch.no_grad(): save_file(dict(image=m.encode_image(x['image']), text=m.encode_text(x['text'])), sys.argv[1] + '/y')"
    r = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    there = load_file(tmp_path / "y")
    with torch.no_grad():
        assert torch.equal(there["image"], small.encode_image(x["image"])) and torch.equal(
            there["text"], small.encode_text(text)
        )
    assert evaluate(
        load(tmp_path / "half"), captions(coco, small, False, workers=0), "retrieval"
    ) == evaluate(small, captions(coco, small, False, workers=0), "retrieval")


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_gradient_of_chunks(drop):
    "In chunks, the gradient of a contrastive batch is that of the whole, in float64 to 1e-10; patches that are dropped at random are dropped again on the way back"
    from spp.training.finetune import Wide

    torch.manual_seed(0)
    model = (
        randomised(
            open_clip.CLIP(
                16,
                dict(
                    layers=2,
                    width=32,
                    head_width=16,
                    patch_size=8,
                    image_size=32,
                    patch_dropout=drop,
                ),
                dict(layers=2, width=32, heads=2, context_length=8, vocab_size=50),
            )
        )
        .double()
        .train()
    )
    x = dict(image=torch.randn(11, 3, 32, 32).double(), text=torch.randint(1, 50, (11, 8)))

    def gradient(f):
        torch.manual_seed(1)
        model.zero_grad()
        contrastive(answer(f, x).out).backward()
        return {k: p.grad.clone() for k, p in model.named_parameters()}

    class Parts(torch.nn.Module):  # the same chunks with everything kept
        def forward(self, image, text):
            i, t, s = zip(*(model(a, b) for a, b in zip(image.split(4), text.split(4))))
            return torch.cat(i), torch.cat(t), s[0]

    want, got = gradient(model if drop == 0 else Parts()), gradient(Wide(model, 4))
    for k in want:
        assert_close(got[k], want[k], rtol=0, atol=1e-10)


RUN = """
import sys, copy, open_clip, torch, torch.distributed as dist
from spp import finetune
from spp.method.objective import contrastive
from safetensors.torch import save_file
if dist.is_torchelastic_launched(): dist.init_process_group("gloo")
rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
torch.manual_seed(0); clip = lambda: open_clip.CLIP(16, dict(layers=2, width=32, head_width=16, patch_size=8, image_size=32), dict(layers=2, width=32, heads=2, context_length=8, vocab_size=50)).double()
model, teacher = clip(), clip(); batches = [dict(image=torch.randn(12, 3, 32, 32).double(), text=torch.randint(1, 50, (12, 8))) for _ in range(3)]
log = finetune(model, [{k: v.chunk(world)[rank] for k, v in b.items()} for b in batches], teacher, epochs=2, lr=1e-3, loss=contrastive, chunk=None if world == 1 else eval(sys.argv[2]))
if rank == 0: save_file({k: v.contiguous() for k, v in model.state_dict().items()}, sys.argv[1])
if dist.is_initialized(): dist.destroy_process_group()
"""


def test_two_processes_gather(tmp_path):
    "Two processes on halves of a contrastive batch, in chunks or not, train the model of one process on the whole: each pair is told from all others"
    (script := tmp_path / "run.py").write_text(RUN)
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for out, launch, chunk in (("one", (), None), ("two", two, None), ("chunks", two, 4)):
        r = subprocess.run(
            [sys.executable, *launch, script, tmp_path / out, str(chunk)],
            capture_output=True,
            text=True,
        )
        assert r.returncode == 0, r.stderr
    want = load_file(tmp_path / "one")
    for out in ("two", "chunks"):
        assert all(
            (x - want[k]).abs().max() <= 1e-9 for k, x in load_file(tmp_path / out).items()
        ), out


def test_recipe_from_the_command_line(tmp_path):
    "`spp run clip_base --smoke`: everything is there, and asked again nothing is done twice"

    def go():
        return subprocess.run(
            [
                sys.executable,
                "-c",
                "from spp.running.cli import main; main()",
                "run",
                "clip_base",
                "--smoke",
                "--batch",
                "8",
                "--out",
                tmp_path / "run",
            ],
            capture_output=True,
            text=True,
        )

    r = go()
    assert r.returncode == 0, r.stderr
    table = pd.read_csv(tmp_path / "run/results.csv")
    assert (
        table.asked.tolist() == [1.0, 0.75, 0.5]
        and ((table.asked - 0.02 < table.share) & (table.share <= table.asked)).all()
        and "text to image R@10" in table
    )
    stamp = (tmp_path / "run/params_0.50/model.safetensors").stat().st_mtime_ns
    r = go()
    assert r.returncode == 0, r.stderr
    assert (
        tmp_path / "run/params_0.50/model.safetensors"
    ).stat().st_mtime_ns == stamp and pd.read_csv(tmp_path / "run/results.csv").equals(table)
    assert isinstance(load(tmp_path / "run/params_0.50"), open_clip.CLIP)


def test_shards(coco, tmp_path, clip):
    "Pairs out of tar files, where webdataset is installed; an error that says what to install, where it is not"
    try:
        import webdataset
    except ImportError:
        with pytest.raises(ImportError, match="pip install webdataset"):
            shards("x.tar", clip, 2)
        pytest.skip("webdataset is not installed")
    import io
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as t:
        for i, x in enumerate(karpathy(coco)[:12]):
            for name, data in (
                (f"{i:03d}.jpg", x.image.read_bytes()),
                (f"{i:03d}.txt", x.texts[0].encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                t.addfile(info, io.BytesIO(data))
    data = shards(str(tmp_path / "a.tar"), clip, 3, 4, workers=0)
    batches = list(data)
    assert len(batches) == len(data) == 3 and all(
        b["image"].shape == (4, 3, 64, 64) and b["text"].shape == (4, 77) for b in batches
    )


def test_emoji(tmp_path):
    "The packages, where the registry can be reached: both styles, names, a gallery with two captions each"
    from spp.lab.bench_clip import Words, gallery
    from spp.lab.samples import emoji

    try:
        things = emoji()
    except ConnectionError as e:
        pytest.skip(str(e))
    assert len(things) == len(set(things.names)) == 849 and {
        k: tuple(x.shape) for k, x in things.styles.items()
    } == dict.fromkeys(("fluent", "noto"), (849, 3, 48, 48))
    i = things.names.index("tomato")
    red = {k: x[i].float().mean((1, 2)) for k, x in things.styles.items()}
    assert all(x[0] > x[1] and x[0] > x[2] for x in red.values())
    words = Words(things.names, [t for ts in things.tags for t in ts])
    batches = gallery(things, "noto", words)
    assert sum(len(x["text"]) for x in batches) == 2 * 849
