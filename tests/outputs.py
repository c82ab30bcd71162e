"Everything that the package writes, in small: what writes it, and what reads it again"

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from causal import CAUSAL
from families import FAMILIES, randomised, small_vit
from test_folders import drawn, vit
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import spp
from spp.core.formats import load_tensors
from spp.lab.records import read_record, write_record
from spp.llm.weight_paths import LLMPath, weight_path
from spp.method.kept_layers import KeptLayers
from spp.method.resume import RUN, Run
from spp.running.cuts import cut_sizes
from spp.running.folder import gathered, read_json, write_json
from spp.running.picking import pick_size
from spp.running.slurm import jobs
from spp.training.family import Family
from spp.training.finetune import finetune


@cache
def parts() -> dict[str, Any]:
    "Models and paths, made once"
    model, batches = small_vit()
    path = spp.search(model, batches, steps=4, progress=False)
    stock = randomised(FAMILIES["hf_llama"]()[0])
    llm = randomised(CAUSAL["llama_gqa"]())
    ids = torch.arange(24).view(2, 12) % llm.config.vocab_size
    return dict(
        model=model,
        batches=batches,
        path=path,
        small=path.cut(units=0.5),
        stock=stock,
        family=Family(model, path, trained=(1.0, 0.5)),
        llm=weight_path(llm, ids, metric="wanda", progress=False),
    )


@cache
def letters() -> PreTrainedTokenizerFast:
    "A tokenizer of 60 letters and a merge"
    tokens = [*(chr(33 + i) for i in range(60)), "AB"]
    bpe = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [("A", "B")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="!", eos_token="!")


def values(model: torch.nn.Module) -> dict[str, Any]:
    "What makes a model what it is, comparable"
    state = {name: x.tolist() for name, x in model.state_dict().items()}
    return dict(state=state, report=str(getattr(model, "spp", None)), text=str(model))


def of_path(path: Any) -> dict[str, Any]:
    "What makes a path what it is, comparable"
    tensors = (path.v, path.fisher, path.trace, path.entered)
    held = [None if x is None else x.tolist() for x in tensors]
    return dict(held=held, pairs=path.pairs, info=path.info, history=path.history)


def train(checkpoint: Path) -> dict[str, Any]:
    "Fine-tune, or resume what is finished"
    model, batches = small_vit()
    rows = finetune(model, batches, None, 1, 1e-4, checkpoint=checkpoint, every=1, progress=False)
    return values(model) | dict(rows=rows.to_dict())


def search_read(file: Path) -> dict[str, Any]:
    "A search under way, as it would resume"
    info = parts()["info of search"]
    run = Run.load(file, info, torch.device("cpu"))
    return dict(
        state={k: x.tolist() if isinstance(x, torch.Tensor) else x for k, x in run.state.items()},
        rest=[run.k, run.history, run.random.tolist(), [x.tolist() for x in run.trace]],
    )


def search_write(file: Path) -> None:
    spp.search(parts()["model"], parts()["batches"], steps=3, checkpoint=file, progress=False)
    parts().setdefault("info of search", load_tensors(file, RUN)[1]["info"])


def repair_write(file: Path) -> None:
    given = dict(repair=parts()["batches"], repair_options=dict(checkpoint=file, progress=False))
    parts()["path"].cut(params=0.6, align=1, **given)


def repair_read(file: Path) -> dict[str, Any]:
    "The layers that a repair has done, as it would resume"
    kept = KeptLayers.begun(file, [])
    fits = {name: [x.tolist() for x in fit if x is not None] for name, fit in kept.fits.items()}
    return dict(fits=fits, choices=kept.choices, info=kept.info, random=str(kept.random))


@cache
def searched_folder() -> tuple[Path, Path, Path]:
    "A path file, the folder of its dense model, and one of images"
    place = Path(tempfile.mkdtemp())
    model = spp.load(spp.save(vit(2), place / "dense"))
    batches = [torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))]
    spp.search(model, batches, steps=2, progress=False).save(place / "order.path")
    return place / "order.path", place / "dense", drawn(place / "images", ("cat", "dog"))


def cuts_write(folder: Path) -> None:
    "What `spp cut` writes"
    path, model, images = searched_folder()
    given = dict(model=model, out=folder, calibration=8, workers=0, device="cpu")
    list(cut_sizes(path, [dict(params=0.7), dict(units=0.5)], images, **given))


def picked_write(folder: Path) -> None:
    "What `spp pick` writes"
    path, model, images = searched_folder()
    given = dict(model=model, out=folder, calibration=8, cuts=1, workers=0, device="cpu")
    pick_size(path, images, 0.9, **given)


RUN_FILES = {
    "run.json": dict(recipe="deit_small", seed=0, params=[0.5], update=1),
    "times.json": dict(search=12.5),
    "latency.json": dict(batch=4, relative={"1.00": 1.0, "0.50": 0.6}),
    "results.json": dict(recipe="deit_small", seed=0, rows=[dict(asked=0.5, score=0.75)], csv=[]),
}


def run_files(folder: Path) -> None:
    "The JSON files of a run"
    folder.mkdir(exist_ok=True)
    for name, content in RUN_FILES.items():
        write_json(folder / name, content)


def run_read(folder: Path) -> list:
    "What the JSON files of a run say, and the table that is made of them"
    return [*(read_json(folder / name) for name in RUN_FILES), gathered([folder]).to_dict()]


def jobs_write(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    about = dict(job="7", cluster="local", recipe="deit_small", seed="0")
    write_json(folder / "jobs.json", dict(jobs=[about]))


@dataclass
class Output:
    "Something that the package writes"

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]  # comparable
    replaced: bool = True  # as a whole? Else it is a folder of single files
    checked: bool = True  # does it hold a checksum? Formats of other programs do not


OUTPUTS = {
    "model": Output(lambda f: spp.save(parts()["small"], f), lambda f: values(spp.load(f))),
    "bytes": Output(
        lambda f: spp.save(parts()["small"], f, torch.int8), lambda f: values(spp.load(f))
    ),
    "stock": Output(
        lambda f: spp.save_pretrained(parts()["stock"], f), lambda f: values(spp.load(f))
    ),
    "native": Output(
        lambda f: spp.save_pretrained(parts()["model"], f), lambda f: values(spp.load(f))
    ),
    "gguf": Output(
        lambda f: spp.save_gguf(parts()["stock"], f, letters(), "f32"),
        lambda f: Path(f).expanduser().read_bytes(),
        checked=False,
    ),
    "path": Output(lambda f: parts()["path"].save(f), lambda f: of_path(spp.SolutionPath.load(f))),
    "search": Output(search_write, search_read),
    "training": Output(train, train),
    "repair": Output(repair_write, repair_read),
    "cuts": Output(
        cuts_write,
        lambda f: [values(spp.load(f / name)) for name in ("params_0.70", "units_0.50")],
        replaced=False,
    ),
    "picked": Output(picked_write, lambda f: values(spp.load(f))),
    "llm path": Output(
        lambda f: parts()["llm"].save(f),
        lambda f: [(k, x.tolist()) for k, x in LLMPath.load(f).levels.items()],
    ),
    "family": Output(
        lambda f: parts()["family"].save(f),
        lambda f: (lambda x: [values(x.model), of_path(x.path), x.table, x.trained])(
            Family.load(f)
        ),
    ),
    "record": Output(lambda f: write_record(f, dict(rows=[1, 2], seed=0)), read_record),
    "run": Output(run_files, run_read, replaced=False),
    "jobs": Output(jobs_write, lambda f: jobs(f).to_dict(), replaced=False),
}
