"The site's own search answers what newcomers ask: the right page is among the first three hits"

import json
import re
import shutil
import subprocess

import pytest
from browsers import launched

# (what is typed, the pages that answer it: patterns of their addresses)
QUESTIONS = [
    (
        "how is a head cut for a new model",
        r"models/(adding_a_family|\w+_heads|timm|open_clip|transformers)",
    ),
    ("where is the budget solved", r"cutting/budget"),
    ("how do I resume an interrupted search", r"method/(resume|search)"),
    ("where is Slurm", r"running/slurm"),
    ("how do I add a family", r"models/adding_a_family"),
    ("what is a unit", r"glossary"),
    ("how do I export to ONNX", r"tutorials/onnx|cutting/export"),
    ("how do I fine-tune with a teacher", r"training/finetune"),
    ("what does path mean", r"glossary"),
    ("how do I prune a language model", r"tutorials/llm"),
    ("how do I save and load a cut model", r"cutting/(files|cut)"),
    ("how do I choose a size", r"judging/\w*choos\w*|tutorials/digits|method/path"),
    ("where are perplexity numbers", r"results/llm"),
    ("how do I use my own model", r"tutorials/your_model"),
    ("how fast are the cuts", r"results/speed"),
    ("which command line options are there", r"running/cli"),
    ("how do I run on several GPUs", r"running/|training/finetune"),
    ("how are pairs found", r"models/pairs"),
    ("how do I measure latency", r"cutting/latency"),
    ("what is repair", r"glossary|cutting/repair"),
    ("compare with wanda", r"results/llm|llm/"),
    ("how do I install it?", r"index"),
    ("What does kappa mean?", r"notation"),
    ("does the search converge", r"theory/descent"),
    # a few words, in other forms than the page has them
    ("continue a killed run", r"method/resume|tutorials/slurm|running/"),
    ("sbatch", r"(running|tutorials)/slurm"),
    ("resuming", r"method/(resume|search)"),
    ("pruned llama", r"(tutorials|results|models|llm)/"),
    ("huggingface", r"models/transformers|cutting/pretrained"),
    ("finetuning", r"training/finetune"),
    # names, and a word that is not finished
    ("find_pairs", r"models/pairs"),
    ("SolutionPath.cut", r"method/path"),
    ("shrink", r"method/inclusion"),
    ("2:4", r"tutorials/llm|llm/masks"),
    ("perplex", r"llm/text|results/llm|tutorials/llm"),
]

ASK = """
const prepared = prepare(window.INDEX);
const answers = questions.map(text => search(prepared, text).map(hit => hit.page.url));
"""


def by_node(site, questions: list[str]) -> list[list[str]]:
    "The site's scripts in Node"
    script = f"""
        global.window = {{}};
        require("{site}/assets/index.js");
        const {{ prepare, search }} = require("{site}/assets/search.js");
        const questions = {json.dumps(questions)};
        {ASK}
        console.log(JSON.stringify(answers));
    """
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def by_browser(site, questions: list[str]) -> list[list[str]]:
    "The site's scripts in Chromium; skips the test where there is none"
    with launched() as browser:
        tab = browser.new_page()
        tab.goto((site / "index.html").as_uri())
        tab.add_script_tag(url="assets/index.js")
        return tab.evaluate(f"questions => {{ {ASK} return answers }}", questions)


@pytest.fixture(scope="module")
def answers(site):
    "What is typed → addresses of pages, the best first"
    questions = [text for text, _ in QUESTIONS] + ["große okapis", "", "  ?", "the"]
    ask = by_node if shutil.which("node") else by_browser
    return dict(zip(questions, ask(site, questions)))


@pytest.mark.parametrize("question, pages", QUESTIONS, ids=[text for text, _ in QUESTIONS])
def test_the_right_page_is_among_the_first_three(answers, question, pages):
    first = answers[question][:3]
    assert any(re.match(rf"({pages})\b", url) for url in first), first


def test_a_page_is_one_hit(answers):
    for urls in answers.values():
        assert len(set(urls)) == len(urls)


def test_nothing_is_found_where_nothing_is(answers):
    for nothing in ("große okapis", "", "  ?"):
        assert answers[nothing] == []


def test_words_are_compared_by_their_stems(site):
    "Forms of a word are one word, and different words stay apart"
    forms = [
        "resume resumes resumed resuming",
        "prune prunes pruned pruning",
        "cut cuts cutting",
        "family families",
        "calibrate calibrated calibration",
        "budget budgets",
        "latency latencies",
    ]
    if not shutil.which("node"):
        pytest.skip("no node")
    script = f"""
        const {{ stem }} = require("{site}/assets/search.js");
        const forms = {json.dumps(forms)};
        console.log(JSON.stringify(forms.map(line => line.split(" ").map(stem))));
    """
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    stems = [set(line) for line in json.loads(done.stdout)]
    assert all(len(line) == 1 for line in stems), stems
    assert len(set.union(*stems)) == len(stems)
