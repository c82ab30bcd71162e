"""Pictures, captions and texts as people have them: right, or an error with the file's name"""

import json

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from spp.judging.caption_files import Item, karpathy
from spp.judging.caption_loader import Captions
from spp.judging.folders import _opened
from spp.llm.text import perplexity, texts

RAMP = np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (64, 1))
RGB = Image.fromarray(np.stack([RAMP] * 3, -1))


def alpha(kind: str) -> Image.Image:
    "The ramp where it is seen, noise where it is not"
    image = RGB.convert("RGBA")
    seen = np.full((64, 64), 255, np.uint8)
    image.putalpha(Image.fromarray(seen))
    return image.convert(kind)


def turned() -> tuple[Image.Image, Image.Exif]:
    exif = Image.Exif()
    exif[274] = 8  # the camera was held upright: to be turned by 270 degrees
    return RGB.transpose(Image.Transpose.ROTATE_270), exif


PICTURES = {
    "rgb.png": (lambda f: RGB.save(f), 0),
    "gray.png": (lambda f: Image.fromarray(RAMP).save(f), 0),
    "gray16.png": (lambda f: Image.fromarray(RAMP.astype(np.uint16) * 257).save(f), 0),
    "gray16.tif": (lambda f: Image.fromarray(RAMP.astype(np.uint16) * 257).save(f), 0),
    "float.tif": (lambda f: Image.fromarray(RAMP.astype(np.float32) / 255).save(f), 0),
    "float255.tif": (lambda f: Image.fromarray(RAMP.astype(np.float32)).save(f), 0),
    "palette.png": (lambda f: RGB.convert("P", palette=Image.Palette.ADAPTIVE).save(f), 2),
    "cmyk.jpg": (lambda f: RGB.convert("CMYK").save(f, quality=98), 2),
    "cmyk.tif": (lambda f: RGB.convert("CMYK").save(f), 1),
    "rgba.png": (lambda f: alpha("RGBA").save(f), 0),
    "la.png": (lambda f: alpha("LA").save(f), 0),
    "lossless.webp": (lambda f: RGB.save(f, lossless=True), 0),
    "turned.jpg": (lambda f: turned()[0].save(f, quality=98, exif=turned()[1]), 2),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name, tmp_path):
    "Every reader gives the ramp, as near as the file format allows"
    write, near = PICTURES[name]
    file = tmp_path / name
    write(file)
    for image in (Captions([], None, None).picture(Item(file, ["x"])), _opened(file)):
        assert image.mode == "RGB"
        off = np.abs(np.asarray(image).astype(float) - np.asarray(RGB)).mean()
        assert off <= near


def test_transparent_pixels_are_white(tmp_path):
    image = Image.new("RGBA", (4, 4), (9, 200, 9, 0))
    image.save(tmp_path / "clear.png")
    seen = Captions([], None, None).picture(Item(tmp_path / "clear.png", ["x"]))
    assert seen.getpixel((0, 0)) == (255, 255, 255)


def test_values_of_no_known_range_are_refused(tmp_path):
    file = tmp_path / "depth.tif"
    Image.fromarray(np.full((4, 4), 3000.0, np.float32)).save(file)
    with pytest.raises(OSError, match=r"depth.tif cannot be read .*expected 0 to 1, or 0 to 255"):
        Captions([], None, None).picture(Item(file, ["x"]))
    with pytest.raises(ValueError, match=r"depth.tif is not a readable image"):
        _opened(file)


# --- captions ---------------------------------------------------------------------------------


def coco(folder, sentences, encoding="utf-8"):
    "A folder in Karpathy's format, whose first image has these sentences"
    rows = [
        dict(filename="a.jpg", split="train", sentences=sentences),
        dict(filename="b.jpg", split="train", sentences=[dict(raw="a  cat")]),
    ]
    for row in rows:
        RGB.save(folder / row["filename"])
    text = json.dumps(dict(images=rows))
    (folder / "dataset_x.json").write_text(text, encoding=encoding)
    return folder


RIGHT = {
    "a dict": ([dict(raw="a dog")], ["a dog"]),
    "strings": (["a dog", "two  dogs"], ["a dog", "two dogs"]),
    "tokens alone": ([dict(tokens=["a", "dog"])], ["a dog"]),
}


@pytest.mark.parametrize("what", RIGHT)
def test_captions(what, tmp_path):
    given, want = RIGHT[what]
    assert [item.texts for item in karpathy(coco(tmp_path, given))] == [want, ["a cat"]]


@pytest.mark.parametrize("empty", [dict(raw=None), dict(raw=float("nan")), dict(), dict(raw=" ")])
def test_missing_captions_stop_or_are_left_out(empty, tmp_path):
    folder = coco(tmp_path, [empty, dict(raw="a dog")])
    with pytest.raises(ValueError, match=r"dataset_x.json.*empty caption: 1 \(a.jpg\)"):
        karpathy(folder)
    with pytest.warns(UserWarning, match="left out"):
        assert karpathy(folder, missing="skip")[0].texts == ["a dog"]


@pytest.mark.parametrize("wrong", [[dict(raw=7)], None, "a dog", [["a", "dog"]]])
def test_what_is_no_caption_is_named(wrong, tmp_path):
    with pytest.raises(ValueError, match=r"dataset_x.json: the captions of a.jpg are"):
        karpathy(coco(tmp_path, wrong))


def test_marks_and_encodings_of_captions(tmp_path):
    assert len(karpathy(coco(tmp_path, ["a dog"], "utf-8-sig"))) == 2
    (tmp_path / "dataset_x.json").write_bytes('{"images": ["café"]}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"dataset_x.json is not written in UTF-8"):
        karpathy(tmp_path)


# --- texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_of_texts(encoding, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("Zoë said “hello”", encoding=encoding)
    assert texts(file) == ["Zoë said “hello”"]


def test_other_encodings_are_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes("café ".encode("latin-1") * 9)
    with pytest.raises(ValueError, match=r"latin.txt is not written in UTF-8.*iconv"):
        texts(tmp_path / "latin.txt")


ROWS = [dict(text=f"Zoë {i}", meta=dict(url="x"), title=f"t {i}") for i in range(3)]


def test_rows_of_json_lines(tmp_path):
    "A row is an article; the field is `text`, the only one with texts, or the one that is asked"
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS), encoding="utf-8-sig")
    assert texts(file) == [row["text"] for row in ROWS]
    assert texts(file, field="title") == [row["title"] for row in ROWS]
    with pytest.raises(ValueError, match=r"rows.jsonl, line 1.*There are text, meta, title"):
        texts(file, field="body")
    file.write_text('{"a": "x", "b": "y"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"which field is the text\? There are a, b. Pass field="):
        texts(file)
    file.write_text('{"text": "x"}\n{"text": null}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2: `text` is None, not a text"):
        texts(file)
    file.write_text('{"text": "x"}\n{"text": "y', encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2 is not JSON"):
        texts(file)


@pytest.mark.slow
def test_rows_of_parquet(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(ROWS).to_parquet(str(file))
    assert texts(file) == [row["text"] for row in ROWS]
    file.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"rows.parquet is not a parquet file"):
        texts(file)


# --- perplexity -------------------------------------------------------------------------------


def test_perplexity_says_where_it_began():
    "The layer that first puts out what is not finite, and its weight"
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, num_attention_heads=4)).eval()
    ids = torch.randint(0, 50, (2, 8))
    assert perplexity(model, ids).value > 1
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("inf")
    where = r"began in `model.layers.1.mlp.down_proj`, whose `weight` is not finite"
    with pytest.raises(ArithmeticError, match=where):
        perplexity(model, ids)
