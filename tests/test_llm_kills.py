"""`spp llm`, killed whenever a block or a layer is done, goes on and ends with the same bits."""

import os
import signal
from pathlib import Path

import pytest
from causal import CAUSAL, TEXT, words
from families import randomised
from processes import alone

from spp.llm.kept_blocks import KeptBlocks
from spp.llm.running import checkpoint_of, run_llm
from spp.method.kept_layers import KeptLayers

ASKED = {
    "weights": dict(sparsity=0.5, repair=True),
    "units": dict(params=0.85, repair=True, steps=2),
}
# weights: order, prices and repair of two blocks; units: repair of attention and MLP in two blocks
DONE = {"weights": 3 * 2, "units": 2 * 2}


def pruned(what: str, out: Path) -> None:
    "What `spp llm` writes for the model beside `out`"
    beside = out.parent
    text = str(beside / "text.txt")
    run_llm(str(beside / "dense"), out, text, n=4, length=16, **ASKED[what])


def killed(what: str, out: Path) -> None:
    "The same, killed as soon as something more is done"
    for kept, name in ((KeptBlocks, "finish"), (KeptLayers, "add")):
        done = getattr(kept, name)

        def then(self, *given, done=done):
            done(self, *given)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(kept, name, then)
    pruned(what, out)


@pytest.fixture
def place(tmp_path):
    "A folder with a dense language model of two blocks and a text"
    randomised(CAUSAL["llama_gqa"]()).save_pretrained(tmp_path / "dense")
    words().save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text(TEXT[0] * 3)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("what", ASKED)
def test_killed_between_blocks(place, what):
    assert alone(pruned, what, place / "whole") == 0
    times = 0
    while alone(killed, what, place / "killed") == -signal.SIGKILL:
        times += 1
        assert times < 20, "it does not get on"
        assert checkpoint_of(place / "killed").is_dir()
        assert not (place / "killed").exists()
    assert times == DONE[what]
    assert not checkpoint_of(place / "killed").exists()
    for file in (place / "whole").iterdir():
        if file.name not in ("llm.json", "spp-files.json"):  # they hold times
            assert file.read_bytes() == (place / "killed" / file.name).read_bytes(), file.name
