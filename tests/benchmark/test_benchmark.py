"""`make gpu` where there is no GPU: every section on small shapes, its budget, its file, and what ends it early."""

import dataclasses
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
from conftest import ROOT, alpaca_rows, write_rows

from sft_recipes.benchmark import BUDGET, program, results
from sft_recipes.benchmark import scale as scales
from sft_recipes.benchmark.section import Section
from sft_recipes.errors import InputError
from sft_recipes.recipes import topology

pytest_plugins = ["forks"]

SCHEMA = json.loads((ROOT / "docs" / "benchmark.schema.json").read_text(encoding="utf-8"))


def valid(path: Path) -> dict[str, Any]:
    """A result file, which is as docs/benchmark.schema.json states it."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(facts, SCHEMA)
    return facts


@pytest.fixture
def section(tmp_path: Path) -> Section:
    return Section(tmp_path / "section.json", 600)


@pytest.fixture
def fresh() -> Iterator[None]:
    """The state that accelerate keeps in a process, made anew: another precision was asked for by another test."""
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def small() -> scales.Scale:
    """The CPU's scale, smaller still."""
    return dataclasses.replace(
        scales.cpu(),
        matrix=64,
        copied=2**16,
        repeats=3,
        speed_batch={"origin": 4},
        longest={"origin": 64, "long_tailed": 64, "knobs": 32},
        knob_batch=(8, 8),
    )


def test_a_committed_result_is_as_the_schema_states() -> None:
    files = sorted((ROOT / "benchmarks").glob("*.json"))
    assert files
    for path in files:
        facts = valid(path)
        assert facts["status"] == "complete" and path.name.startswith(facts["date"])
        assert facts["seconds"] <= 1.1 * facts["budget_seconds"]


def test_the_newest_complete_result_of_a_machine_counts(tmp_path: Path) -> None:
    # One of `make bench` alone does not.
    facts = valid(ROOT / "benchmarks" / list(results.newest())[-1])
    for name, changes in {
        "2030-01-01-cpu.json": {"date": "2030-01-01"},
        "2030-01-01-cpu-2.json": {"date": "2030-01-01", "python": "second"},
        "2030-01-01-cpu-3.json": {"status": "interrupted"},
        "2029-01-01-gpu.json": {"hardware": facts["hardware"] | {"kind": "gpu", "name": "NVIDIA H100 80GB HBM3"}},
    }.items():
        (tmp_path / name).write_text(json.dumps(facts | changes), encoding="utf-8")
    assert list(results.newest(tmp_path)) == ["2029-01-01-gpu.json", "2030-01-01-cpu-2.json"]


def test_a_section_keeps_what_it_has_at_every_moment(tmp_path: Path) -> None:
    path = tmp_path / "section.json"
    section = Section(path, 5)

    def kept() -> dict[str, Any]:
        return json.loads(path.read_text(encoding="utf-8"))

    def fails() -> dict[str, Any]:
        raise RuntimeError("CUDA error:\n  an illegal\nmemory access")

    def refuses() -> dict[str, Any]:
        raise InputError("no such kernel", "on this machine")

    section.plan(["first", "second", "third", "fourth", "fifth"])
    assert kept()["measurements"] == [] and len(kept()["left_out"]) == 5
    assert section.measure("first", lambda: {"seconds": 1}) == {"name": "first", "seconds": 1}
    assert kept()["measurements"] == [{"name": "first", "seconds": 1}]
    assert section.measure("second", fails) is None
    assert kept()["failed"] == [{"name": "second", "error": "RuntimeError: CUDA error: an illegal memory access"}]
    assert section.measure("third", refuses) is None
    assert kept()["refused"] == [{"name": "third", "reason": "no such kernel on this machine"}]
    assert section.measure("fourth", fails, expected=6) is None
    assert kept()["left_out"] == ["fourth", "fifth"]
    section.deadline = time.monotonic() - 1
    assert section.measure("fifth", fails) is None
    assert kept()["left_out"] == ["fourth", "fifth"]


def test_half_of_all_combinations_show_every_pair_of_factors_in_every_way() -> None:
    assert len(scales.FACTORS) == len(set(scales.FACTORS)) == 8
    for one in range(4):
        for other in range(one + 1, 4):
            assert len({(case[one], case[other]) for case in scales.FACTORS}) == 4, (one, other)


def test_rows_are_as_long_as_their_distribution_says(tmp_path: Path) -> None:
    lengths = scales.row_lengths("origin", 2686)
    assert abs(sum(lengths) / len(lengths) - 184) < 2 and max(lengths) == 712
    assert sorted(lengths)[round(0.95 * 2685)] == 221
    assert lengths != sorted(lengths), "in the order of length, no batch would be padded"
    assert max(scales.row_lengths("long_tailed", 64, 512)) == 512
    rows = scales.write_rows(tmp_path, [40, 9], 100)
    first, second = (json.loads(line) for line in (rows / "train.jsonl").read_text().splitlines())
    assert (len(first["input_ids"]), first["labels"].count(-100)) == (40, 4)
    assert second["labels"].count(-100) == 1 and max(first["input_ids"]) < 100


def test_every_gpu_case_is_planned_and_named_apart() -> None:
    cases = scales.gpu().memory
    assert len(cases) == 64 and {case.config["model_type"] for case in cases} == {"qwen3", "llama"}
    assert cases[0].name == "Qwen/Qwen3-8B" and cases[0].setup.four_bit


@pytest.mark.slow
@pytest.mark.usefixtures("project", "fresh")
def test_the_sections_of_one_process_run_on_a_cpu(
    small: scales.Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft_recipes.benchmark import device, measure

    here = device.Device(gpu=False)
    assert here.facts()["kind"] == "cpu" and here.allocated() is None

    def run(name: str) -> dict[str, Any]:
        section = Section(tmp_path / f"{name}.json", 600)
        getattr(measure, name)(section, small, here, tmp_path / name)
        facts = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        assert facts["failed"] == [] and facts["left_out"] == []
        return facts | {"found": {each["name"]: each for each in facts["measurements"]}}

    machine = run("machine")["found"]
    assert machine["bfloat16_matrix_product"]["tflops"] > 0 < machine["copy_read_and_write"]["gb_per_second"]

    arms = run("speed")["found"]["origin"]["arms"]
    assert list(arms) == ["origin", "stock_trl", "ours"]
    # The same rows: as many tokens, and the origin's padded to the whole length.
    assert len({arm["tokens"] for arm in arms.values()}) == len({arm["rows"] for arm in arms.values()}) == 1
    assert arms["origin"]["positions"] == 64 * arms["origin"]["rows"]
    assert arms["ours"]["positions"] == arms["stock_trl"]["positions"] <= arms["origin"]["positions"]
    assert all(len(arm["step_seconds"]) == 2 * small.timed for arm in arms.values())
    assert all(arm["tokens_per_second"] > 0 and 0 <= arm["waiting_share"] < 1 for arm in arms.values())

    monkeypatch.setattr(
        scales, "KNOBS", [knob for knob in scales.KNOBS if knob.name in ("packing", "flash_attention")]
    )
    knobs = run("knobs")
    assert [each["name"] for each in knobs["refused"]] == ["flash_attention"]
    assert set(knobs["found"]) == {"packing", "base", "base_again"}
    assert knobs["found"]["packing"]["rows"] > knobs["found"]["packing"]["positions"] / 128, "several rows in one"

    shape = run("gpt_oss")["found"]
    assert shape["experts"]["trainable_parameters"] > shape["attention"]["trainable_parameters"]
    assert all(len(shape[name]["losses"]) == 2 for name in ("attention", "experts"))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_the_base_is_as_it_was_after_a_case(project: Path, tmp_path: Path) -> None:
    """Cases share one base: what the first leaves on it would be measured with the second."""
    from sft_recipes.benchmark import device, measure

    config = {**scales.SMALL, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    (first, *_) = scales.cpu().memory
    cases = tuple(
        scales.MemoryCase("tiny", config, dataclasses.replace(first.setup, tokens=64, length=32, **changes))
        for changes in ({"checkpointing": False}, {}, {"checkpointing": False})
    )
    section = Section(tmp_path / "memory.json", 600)
    measure.memory(section, dataclasses.replace(scales.cpu(), memory=cases), device.Device(gpu=False), tmp_path)
    assert section.failures == []
    without, checkpointed, again = (each["peak"] for each in section.measurements)
    assert without == again > checkpointed


@pytest.fixture
def demo(project: Path) -> Path:
    """A project whose demo is the tiny recipe, with an evaluation."""
    text = (project / "recipes" / "tiny.yaml").read_text(encoding="utf-8")
    test = "test_file: data/test.jsonl\ntask: classification\n"
    saves = "save_strategy: steps\nsave_steps: 4\neval_strategy: steps\neval_steps: 4\n"
    (project / "recipes" / "demo.yaml").write_text(text + test + saves, encoding="utf-8")
    write_rows(project / "data" / "test.jsonl", alpaca_rows(12, seed=3))
    return project


@pytest.mark.usefixtures("demo", "forks")
def test_the_road_is_walked_by_the_program_s_own_commands(
    small: scales.Scale, section: Section, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft_recipes.benchmark import commands
    from sft_recipes.environment import quiet_environment

    environment = {**quiet_environment(on_cpu=True), "OMP_NUM_THREADS": "1"}
    commands.road(section, small, environment)
    assert section.failures == []
    found = {each["name"]: each for each in section.measurements}
    assert found["demo"]["steps"] == 8 and found["demo"]["topology"] == "cpu" and found["demo"]["verdict"]
    assert found["killed_and_resumed"]["equal_to_the_bit"] is True
    assert found["killed_and_resumed"]["largest_difference"] == 0

    # One that runs here, and those that do not.
    monkeypatch.setattr(topology, "names", lambda: ["cpu", "single_gpu", "ddp", "fsdp2", "zero3_offload"])
    commands.topologies(section, small, environment)
    assert section.failures == []
    (ddp,) = (each for each in section.measurements if each["name"] == "ddp")
    assert (ddp["resumed_from_step"], ddp["steps"]) == (commands.TOPOLOGY_SAVED, commands.TOPOLOGY_STEPS)
    assert {each["name"] for each in section.refused} == {"fsdp2", "zero3_offload"}


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_a_benchmark_that_is_stopped_leaves_the_sections_that_ended() -> None:
    command = [
        sys.executable,
        "-m",
        "sft_recipes",
        "gpu",
        "--budget",
        "300",
        "--only",
        "machine memory speed",
        "--out",
        "out",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        files: list[Path] = []
        for _ in range(1200):
            files = list(Path("out").glob("*.json"))
            if files or process.poll() is not None:
                break
            time.sleep(0.1)
        assert files, process.communicate()[0]
        assert valid(files[0])["status"] == "running", "whatever ends it now, the file is whole"
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 3
    facts = valid(files[0])
    assert facts["status"] == "interrupted" and facts["seconds"] < 120
    assert len(facts["sections"]["machine"]["measurements"]) == 2
    assert facts["sections"]["memory"]["ended"] == "stopped"
    assert not any(each.is_running() for each in family)
    lines = printed.splitlines()
    assert lines[-1] == f"result     {files[0]}" and "not begun" in printed


@pytest.mark.usefixtures("project", "forks")
def test_a_section_that_takes_too_long_is_killed_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = program.Worker(tmp_path)
    started = worker.ask({"section": "facts", "work": str(tmp_path)}, 120)
    assert started is not None and started["hardware"]["kind"] == "cpu"
    # It thinks that it has ten minutes, and has a second.
    with monkeypatch.context() as context:
        context.setattr(program, "GRACE", -600)
        found = program._section("speed", 1.0, worker)
    assert found["ended"] == "at its limit" and found["measurements"] == [] and found["seconds"] < 10
    assert not worker.alive()
    found = program._section("machine", 120.0, worker)
    assert found["ended"] == "by itself" and len(found["measurements"]) == 2
    worker.kill()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"only": ["speeds"]}, r"^ONLY=speeds: there is no such section; there are machine, road, memory, speed"),
        ({"budget": 3}, r"^BUDGET=3: .* measures nothing; the default is 400"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: dict[str, Any], message: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=message):
        program.benchmark(**arguments)
    assert not Path("benchmarks").exists()


def test_a_result_never_replaces_another(tmp_path: Path) -> None:
    first = program._file(tmp_path, "NVIDIA H100 80GB HBM3")
    assert first.name == f"{time.strftime('%Y-%m-%d')}-nvidia-h100-80gb-hbm3.json"
    first.write_text("{}", encoding="utf-8")
    assert program._file(tmp_path, "NVIDIA H100 80GB HBM3").name.endswith("-hbm3-2.json")


def test_pages_say_so_where_no_gpu_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.chdir(ROOT)
    import performance_tables

    gpu = any(facts["hardware"]["kind"] == "gpu" for facts in results.newest().values())
    assert (performance_tables.NOT_MEASURED in performance_tables.performance()) is not gpu


def test_a_gpu_s_result_is_shown_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of speeds, which a CPU's result does not fill, from that result's own figures as if of a GPU."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.chdir(ROOT)
    import performance_tables

    (facts, *_) = (each for each in results.newest().values() if each["hardware"]["kind"] == "cpu")
    hardware = facts["hardware"] | {
        "kind": "gpu",
        "name": "NVIDIA H100 80GB HBM3",
        "driver": "580.95.05",
        "cuda": "13.0",
        "memory_bytes": 81559 * 2**20,
    }
    page = performance_tables.machine("x.json", facts | {"hardware": hardware})
    for words in ("### Speed", "stock TRL, exported recipe", "### One change at a time", "% of the data sheet's)"):
        assert words in page
    assert "Accelerate configs, one process" in page and "nan" not in page


def test_a_ratio_is_shown_with_what_it_must_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And a result of ratios alone takes no other result's place."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import performance_tables

    from sft_recipes.benchmark import ratios

    slow = ratios.held("times as slow", 1.031, most=1.02, seconds=[[2.0, 1.9]])
    fast = ratios.held("times as fast", 2.5, least=2.5)
    assert (slow["holds"], fast["holds"]) == (False, True)
    path = sorted((ROOT / "benchmarks").glob("*cpu*.json"))[-1]
    facts = json.loads(path.read_text(encoding="utf-8"))
    section = next(iter(facts["sections"].values())) | {
        "measurements": [{"name": "slow", **slow}, {"name": "fast", **fast}]
    }
    facts |= {"date": "2030-01-01", "sections": {"ratios": section}}
    jsonschema.validate(facts, SCHEMA)
    (tmp_path / "2030-01-01-cpu.json").write_text(json.dumps(facts), encoding="utf-8")
    assert results.newest(tmp_path) == {}
    (name, newest) = next(iter(results.newest(tmp_path, ["ratios"]).items()))
    text = performance_tables.ratios_of(name, newest)
    assert "Bounds that hold: 1 of 2; missed: times as slow." in text
    assert "| times as slow | 1.031 | at most 1.02 | no |" in text and "| 2.5 | at least 2.5 | yes |" in text
    program.conclude(facts, path, ["ratios"])


@pytest.mark.slow
@pytest.mark.usefixtures("project", "fresh")
def test_the_origin_s_execution_learns_the_same_with_more_padding(
    small: scales.Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft_recipes.benchmark import device, ratios

    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import performance_tables

    narrow = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape = ratios.SHAPE[1] | narrow | {"num_hidden_layers": 1, "vocab_size": 2048}
    monkeypatch.setattr(ratios, "SHAPE", ("one narrow layer", shape))
    monkeypatch.setattr(ratios, "ORIGIN_STEPS", 1)
    monkeypatch.setattr(ratios, "ORIGIN_PADDED", 256)
    found = ratios.origin(small, device.Device(gpu=False), tmp_path / "origin")
    arms, executed = found["arms"], found["executed"]
    assert arms["ours"]["tokens"] == arms["origin"]["tokens"] > arms["ours"]["rows"] * 143
    assert arms["ours"]["rows"] == arms["origin"]["rows"] == 2 * ratios.ORIGIN_BATCH
    assert arms["origin"]["positions"] == arms["origin"]["rows"] * 256 > arms["ours"]["positions"]
    assert executed["origin"]["per_device_train_batch_size"] == 4 and executed["origin"]["activation_checkpointing"]
    assert executed["ours"]["per_device_train_batch_size"] == 4 and not executed["ours"]["activation_checkpointing"]
    assert executed["ours"]["sort_within_batch"] and not executed["origin"]["sort_within_batch"]
    assert found["first_losses"][0] == pytest.approx(found["first_losses"][1], rel=1e-4)
    said = performance_tables.BEHIND["origin"](found)
    assert "one narrow layer" in said and "micro-batches of 4, with checkpointing, each row padded to 256" in said


def test_the_adapters_precision_is_judged_by_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import validate_adapter_precision as precision

    facts = json.loads(precision.KEPT.read_text(encoding="utf-8"))
    assert facts["settings"] == "" and facts["seeds"] >= 3
    seeds = {
        dtype: [run["seed"] for run in facts["runs"] if run["adapter_dtype"] == dtype] for dtype in precision.DTYPES
    }
    assert seeds["float32"] == seeds["bfloat16"] and len(seeds["float32"]) == facts["seeds"]
    for measure in precision.MEASURES:
        assert precision.paired(facts["runs"], measure) == pytest.approx(facts["paired"][measure])
    runs = [
        {"seed": seed, "adapter_dtype": dtype, "x": seed + apart}
        for seed, extra in ((1, 1.0), (2, 2.0), (3, 3.0))
        for dtype, apart in (("float32", 0.0), ("bfloat16", extra))
    ]
    found = precision.paired(runs, "x")
    # 4.303 is the 97.5 % quantile of Student's t of two degrees of freedom.
    assert found["difference"] == 2 and found["high"] - 2 == pytest.approx(4.303 / 3**0.5, abs=1e-3)


def test_the_page_says_what_the_program_does() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    targets = (ROOT / "src" / "sft_recipes" / "shipped" / "commands.mk").read_text(encoding="utf-8")
    assert f"`BUDGET={BUDGET}`" in page and f"BUDGET={BUDGET} " in targets
    sections, what_must_hold = page.split("## What must hold")
    assert tuple(re.findall(r"^\| `(\w+)` \|", sections, flags=re.MULTILINE)) == scales.SECTIONS
    from sft_recipes.benchmark import ratios

    source = inspect.getsource(ratios.ratios)
    assert re.findall(r"^\| `(\w+)` \| (\d+) \|", what_must_hold, flags=re.MULTILINE) == re.findall(
        r'^ +"(\w+)": \((\d+), ', source, re.M
    )
    scale = scales.gpu()
    assert (scale.warm, 2 * scale.timed) == (5, 10) and "five steps are not counted, ten are" in page


@pytest.mark.usefixtures("project", "forks")
def test_a_gpu_that_torch_does_not_see_is_not_measured_as_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch sees a GPU")
    stub = tmp_path / "bin" / "nvidia-smi"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\necho '0, GPU-aaaa, NVIDIA H100 80GB HBM3, 81559, Disabled'\n", encoding="utf-8")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert topology.visible_gpus()
    with pytest.raises(InputError, match=r"^nvidia-smi shows a GPU, and torch sees none; install a torch"):
        program.benchmark(only=["machine"])
    assert not Path("benchmarks").exists()
