"""One tiny base model and one small project for all tests: real files, real weights, nothing from the network."""

import contextlib
import copy
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from sft_recipes import environment
from sft_recipes.files import sha256

# Before anything imports a library that asks for them. A tiny model is fastest on one thread, and threads of two
# workers that wait for each other on two cores are slower by far.
os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1"
)

ROOT = Path(__file__).parents[1]

TINY = """\
extends: default
description: A tiny model on a CPU.
accelerate_config: cpu
model_name_or_path: model
# On a CPU without units for bfloat16 its products take ten times as long.
dtype: float32
bf16: false
train_file: data/train.jsonl
validation_file: data/validation.jsonl
lora_r: 8
lora_alpha: 8
learning_rate: 1e-2
num_train_epochs: 1
global_batch_size: 8
warmup_steps: 2
logging_steps: 1
activation_checkpointing: false
dataloader_num_workers: 0
report_to: none
"""


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def alpaca_rows(number: int, seed: int) -> list[dict[str, str]]:
    """Rows whose answer follows from the input, so that there is something to learn."""
    rng = random.Random(seed)  # noqa: S311, seeded rows, no secrets
    rows = []
    for _ in range(number):
        words = rng.choices(["red", "blue", "green", "dog", "cat", "bird"], k=rng.randint(2, 12))
        answer = "even" if words.count("red") % 2 == 0 else "odd"
        rows.append({"instruction": "Count the word red.", "input": " ".join(words), "output": answer})
    return rows


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--faults", help="a file to write each outcome of a test of a promise to (scripts/reliability.py)"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Workers report to the process that started them, which writes.
    if (path := config.getoption("--faults")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Faults(Path(path)))


class Faults:
    """Writes what became of each promise that a test holds by breaking something, a line for each phase of a test."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        said: dict[str, list[Any]] = {"promise": [], "injected": []}
        for name, value in report.user_properties:
            said.get(name, []).append(value)
        if said["promise"] and (report.when == "call" or not report.passed):
            # Of a test that injects one thing only, the number need not be said.
            row = {"promises": said["promise"], "number": sum(said["injected"]) or 1, "outcome": report.outcome}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"test": report.nodeid, **row}) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What the tests import stays until they end: looking for garbage in it would take minutes of them all."""
    with environment.importing():
        return (yield)


# What imports torch, by itself or by what it imports.
IMPORTS_TORCH = re.compile(
    r"^(from|import) (torch|transformers|trl|peft|accelerate|safetensors\.torch|exactness)\b"
    r"|^from sft_recipes\.train import (?!process\b)|^from sft_recipes\.evaluate import .*\bscoring\b",
    re.MULTILINE,
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`make test-fast` does not read files that import torch: that would take longer than their quick tests."""
    if config.option.markexpr != "not slow" or not collection_path.match("test_*.py"):
        return None
    return True if IMPORTS_TORCH.search(collection_path.read_text(encoding="utf-8")) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What trains, scores or opens a browser is slow, whether the test says so or not.

    Each of two workers takes one half of the tests, and when it has done them, steals from the end of the other's. So
    each half begins with what takes long, one of them with what would wait for itself, and ends with what is quick.
    """
    slow = {"train_here", "launch_here", "merge_here", "scoring_here", "forks", "browser"}
    kinds: dict[str, list[pytest.Item]] = {"alone": [], "long": [], "slow": [], "quick": []}
    for item in items:
        fixtures = {*getattr(item, "fixturenames", ())}
        if slow & fixtures:
            item.add_marker("slow")
        item.user_properties += [("promise", list(mark.args)) for mark in item.iter_markers("promise")]
        marks = {*fixtures, *(mark.name for mark in item.iter_markers()), "quick"}
        kinds[next(kind for kind in kinds if kind in marks)].append(item)
    alone, long, train, rest = kinds.values()
    half = len(train) // 2
    filled = max(0, len(items) // 2 - len(alone) - half)
    items[:] = [*alone, *train[:half], *rest[:filled], *long, *train[half:], *rest[filled:]]


MadeOnce = Callable[[str, Callable[[Path], Any]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all workers of this run of the tests."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture
def alone(shared: Path) -> Iterator[None]:
    """One test of several processes at a time: four that wait for each other starve two cores."""
    with FileLock(shared / "alone.lock"):
        yield


@pytest.fixture(scope="session")
def made_once(shared: Path, pytestconfig: pytest.Config) -> MadeOnce:
    """Gives the directory of that name as the function fills it, once for all workers of this run of the tests.

    What is said meanwhile goes to a file beside it: which test comes first is chance, and none may capture it.
    """

    def made_once(name: str, fill: Callable[[Path], Any]) -> Path:
        directory, unfinished = shared / f"once-{name}", shared / f"unfinished-{name}"
        with FileLock(shared / f"{name}.lock"):
            if not directory.exists():
                shutil.rmtree(unfinished, ignore_errors=True)
                with said_into(shared / f"{name}.txt", pytestconfig):
                    fill(unfinished)
                unfinished.rename(directory)
        return directory

    return made_once


@contextlib.contextmanager
def said_into(path: Path, config: pytest.Config) -> Iterator[None]:
    """Have what this process and its children print in a file, and not in what a test captures."""
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled(), path.open("w") as file:
        kept = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, before in zip((1, 2), kept, strict=True):
                os.dup2(before, number)
                os.close(before)


@pytest.fixture(scope="session")
def tiny_model(pytestconfig: pytest.Config) -> Path:
    """A two-layer Qwen3 with random weights and the demo's tokenizer and chat template, kept for the next tests."""
    from sft_recipes.demo import demo_base

    sources = [*demo_base.SOURCES, Path(__file__)]
    versions = [metadata.version(name) for name in ("torch", "transformers", "tokenizers")]
    key = hashlib.sha256("\0".join([*map(sha256, sources), *versions]).encode()).hexdigest()[:16]
    directory = ROOT / ".cache" / "tests" / f"model-{key}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_suffix(".lock")):
        if not directory.exists():
            unfinished = directory.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            with said_into(directory.with_suffix(".txt"), pytestconfig):
                make_tiny_model(unfinished)
            unfinished.rename(directory)
    return directory


def make_tiny_model(directory: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from sft_recipes.demo import demo_base

    tokenizer = demo_base.train_tokenizer()
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)


@pytest.fixture(scope="session", autouse=True)
def nothing_waits_for_the_disk() -> Iterator[None]:
    """No test cuts the power, and a training asks two dozen times that its files outlive that, at 5 ms each."""
    wait = os.fsync
    os.fsync = lambda fd: None
    yield
    os.fsync = wait


@pytest.fixture(scope="session")
def demo_words() -> Any:
    from sft_recipes.demo import demo_base

    return demo_base.train_tokenizer()


@pytest.fixture
def same_words(demo_words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models get the demo's tokenizer as it was trained once for all tests."""
    from sft_recipes.demo import demo_base

    monkeypatch.setattr(demo_base, "train_tokenizer", lambda: copy.deepcopy(demo_words))


@pytest.fixture(scope="session", autouse=True)
def censuses() -> Path:
    """One cache of censuses for all tests, and for the commands that they start.

    Models that these tests ask for are counted in this process, by the same function, because each process of its own
    imports transformers anew.
    """
    from sft_recipes.models import base_model

    base_model.CACHE = ROOT / ".cache" / "models"
    base_model.CACHE.mkdir(parents=True, exist_ok=True)
    return base_model.CACHE


@pytest.fixture(scope="session", autouse=True)
def counted_here(censuses: Path) -> Iterator[None]:
    from sft_recipes.models import base_model, census

    apart = base_model._asked_apart

    def here(question: str, asked: dict[str, Any]) -> Any:
        try:
            return json.loads(json.dumps(census.answer(question, asked)))
        except Exception:
            # What is refused is refused as users see it.
            return apart(question, asked)

    base_model._asked_apart = here
    yield
    base_model._asked_apart = apart


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path, censuses: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory as a user's: the shipped recipes and accelerate configs, a recipe `tiny`, its model and data."""
    for name in ("recipes", "accelerate_configs", "models"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "recipes" / "tiny.yaml").write_text(TINY, encoding="utf-8")
    (tmp_path / "model").symlink_to(tiny_model)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "models").symlink_to(censuses)
    write_rows(tmp_path / "data" / "train.jsonl", alpaca_rows(64, seed=1))
    write_rows(tmp_path / "data" / "validation.jsonl", alpaca_rows(8, seed=2))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def train_here(project: Path) -> Iterator[Callable[..., Any]]:
    """Train a recipe in this process, as one process of a launch does, and give its run; runs share one import."""
    from accelerate.state import AcceleratorState, PartialState

    from sft_recipes.launch import launch
    from sft_recipes.plan import job as jobs
    from sft_recipes.train import train as worker

    taken = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    handlers = {number: signal.getsignal(number) for number in taken}

    def train(recipe: str = "tiny", *, name: str | None = None, run: Any = None, **overrides: Any) -> Any:
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()
        if run is None:
            words = [f"{key}={json.dumps(json.dumps(value))}" for key, value in overrides.items()]
            run = launch.create(jobs.check(recipe, overrides=words), name)
        elif not run.facts()["rehearsal"]:
            # As the command does before its processes.
            run.update(data=launch.data_again(run))
        environment.quiet()
        worker.train(run)
        return run

    yield train
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Looked(Exception):
    """What a test asks for is known before the first step."""


@pytest.fixture
def rows_here(train_here: Callable[..., Any]) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Begin a training in this process, up to the check of its rows: its trainer, and what was found of them."""
    from sft_recipes.train import verify

    check = verify.data

    def rows(*arguments: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
        found = []

        def look(trainer: Any, prepared_rows: int) -> Any:
            found.append((trainer, check(trainer, prepared_rows)))
            raise Looked

        with pytest.MonkeyPatch.context() as context:
            context.setattr(verify, "data", look)
            with pytest.raises(Looked):
                train_here(*arguments, **options)
        return found[0]

    return rows


@pytest.fixture
def launch_here(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches of one process do its work in this one, which has torch imported already, once they wait for it."""
    from accelerate.state import AcceleratorState, PartialState

    from sft_recipes.launch import processes
    from sft_recipes.train import process

    start = subprocess.Popen

    class Here:
        returncode = 0
        stdout = None

        def __init__(self, command: list[str]) -> None:
            self.arguments = command[-3:]

        def wait(self) -> None:
            AcceleratorState._reset_state(reset_partial_state=True)
            PartialState._reset_state()
            with pytest.MonkeyPatch.context() as context:
                context.setattr(sys, "argv", self.arguments)
                self.returncode = process.main()

    def popen(command: list[str], **options: Any) -> Any:
        # Other commands are started as they are.
        return Here(command) if "sft_recipes.train.process" in command else start(command, **options)

    monkeypatch.setattr(processes.subprocess, "Popen", popen)


@pytest.fixture
def merge_here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Merge with the work of the other process done in this one, which has torch imported already."""

    from sft_recipes.deploy import merge

    def work(command: list[str], **options: Any) -> Any:
        merge.main(Path(command[-1]))
        return subprocess.CompletedProcess(command, 0, stderr="")

    def merge_here(*arguments: Any, **options: Any) -> tuple[int, dict[str, Any]]:
        with monkeypatch.context() as context:
            context.setattr(merge.subprocess, "run", work)
            return merge.merge(*arguments, **options)

    return merge_here


@pytest.fixture
def scoring_here() -> Callable[[], Any]:
    """A context in which the work of the scoring process is done in this one, which has torch imported already."""
    from sft_recipes.evaluate import scoring, scoring_job

    class Done:
        def __init__(self, command: list[str]) -> None:
            self.code = scoring.main(Path(command[-1]))

        def wait(self) -> int:
            return self.code

    @contextlib.contextmanager
    def scoring_here() -> Iterator[None]:
        start = subprocess.Popen

        def popen(command: list[str], **options: Any) -> Any:
            # Other commands are started as they are.
            return Done(command) if "sft_recipes.evaluate.scoring_process" in command else start(command, **options)

        with pytest.MonkeyPatch.context() as context:
            context.setattr(scoring_job.subprocess, "Popen", popen)
            yield

    return scoring_here
