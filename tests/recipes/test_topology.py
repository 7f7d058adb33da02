"""Where a recipe runs: the shipped accelerate configs, what is refused, what is derived, and which GPUs are seen."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from sft_recipes.errors import InputError
from sft_recipes.plan import gpus
from sft_recipes.recipes import conflicts, schema, topology
from sft_recipes.recipes.recipe import Recipe, load, parse_overrides
from sft_recipes.recipes.topology import Gpu, Topology

# name: processes, backend, ZeRO stage, precision
SHIPPED = {
    "cpu": (1, "single", None, "no"),
    "ddp": (4, "ddp", None, "bf16"),
    "fsdp2": (4, "fsdp", None, "bf16"),
    "single_gpu": (1, "single", None, "no"),
    "zero1": (4, "deepspeed", 1, "bf16"),
    "zero2": (4, "deepspeed", 2, "bf16"),
    "zero3": (4, "deepspeed", 3, "bf16"),
    "zero3_offload": (4, "deepspeed", 3, "bf16"),
}


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def recipe(overrides: str = "") -> Recipe:
    return load("default", parse_overrides(overrides))


def topo(name: str, processes: int | None = None) -> Topology:
    return topology.read(name, "a test", processes)


# The shipped configs


def test_these_configs_are_shipped() -> None:
    assert topology.names() == sorted(SHIPPED)
    facts = {
        name: (read.processes, read.backend, read.zero_stage, read.config["mixed_precision"])
        for name in SHIPPED
        for read in [topo(name)]
    }
    assert facts == SHIPPED
    assert [name for name in SHIPPED if topo(name).use_cpu] == ["cpu"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_says_nothing_that_a_recipe_says(name: str) -> None:
    text = (ROOT / "accelerate_configs" / f"{name}.yaml").read_text(encoding="utf-8")
    facts = ("gradient_accumulation", "gradient_clipping", "batch_size", "optimizer:", "scheduler:", "learning_rate")
    assert [fact for fact in facts if fact in text] == []
    assert text.startswith("# "), "what it is for, in a sentence"
    assert yaml.safe_load(text) == topo(name).config, "YAML 1.1 and 1.2 read it the same way"


@pytest.mark.parametrize("name", SHIPPED)
def test_the_launcher_of_accelerate_reads_a_shipped_config_as_we_do(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    path = str(ROOT / "accelerate_configs" / f"{name}.yaml")
    config = load_config_from_file(path)
    processes, backend, stage, precision = SHIPPED[name]
    assert (config.num_processes, config.mixed_precision, config.use_cpu) == (processes, precision, name == "cpu")
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", path, "x.py"]))
    assert (arguments.num_processes, arguments.mixed_precision) == (processes, precision)
    flags = (arguments.multi_gpu, arguments.use_deepspeed, arguments.use_fsdp)
    assert flags == (backend == "ddp", backend == "deepspeed", backend == "fsdp")
    assert arguments.zero_stage == stage
    if backend == "deepspeed":
        offload = "cpu" if name == "zero3_offload" else "none"
        assert (arguments.offload_optimizer_device, arguments.offload_param_device) == (offload, offload)
    if backend == "fsdp":
        assert arguments.fsdp_version == 2


def test_a_topology_is_described_in_a_line() -> None:
    assert topo("zero2").describe() == "zero2: 4 processes on GPU, DeepSpeed ZeRO-2 (a test)"
    assert topo("cpu").describe() == "cpu: 1 process on CPU, no distribution (a test)"
    assert topo("ddp", 2).describe() == "ddp: 2 processes on GPU, DDP (a test)"
    assert topo("fsdp2").describe() == "fsdp2: 4 processes on GPU, FSDP2 (a test)"


# What is refused

DDP = "distributed_type: MULTI_GPU\nnum_processes: 2\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{DDP}gradient_accumulation_steps: 4\n", "mine.yaml:3: gradient_accumulation_steps is not a fact of where"),
        (f"{DDP}learning_rate: 2e-4\n", "mine.yaml:3: learning_rate is not a fact of where a recipe runs; drop it"),
        (
            "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {zero_stage: 2, gradient_clipping: 1}\n",
            "deepspeed_config.gradient_clipping is not a fact of where a recipe runs; drop it",
        ),
        (
            "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {zero_stage: 4}\n",
            "deepspeed_config.zero_stage must be 1, 2 or 3",
        ),
        ("distributed_type: DEEPSPEED\nnum_processes: 2\n", "deepspeed_config.zero_stage must be 1, 2 or 3"),
        ("distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: ds.json\n", "deepspeed_config"),
        ("distributed_type: MULTI_CPU\nnum_processes: 2\n", "runs MULTI_CPU as one process; write MULTI_GPU with use"),
        (
            "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}\nnum_processes: 2\nuse_cpu: true\n",
            "accelerate turns FSDP on CPU into DDP",
        ),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}\nnum_processes: 2\n", "fsdp_version"),
        ("distributed_type: FSDP\nnum_processes: 2\n", "fsdp_version"),
        ("distributed_type: XLA\nnum_processes: 2\n", "distributed_type: XLA is not one of NO, MULTI_GPU, DEEPSPEED"),
        ("num_processes: 2\n", "distributed_type: "),
        ("distributed_type: [NO]\nnum_processes: 1\n", "distributed_type: "),
        ("distributed_type: MULTI_GPU\nnum_processes: 0\n", "num_processes must be a whole number above 0"),
        ("distributed_type: MULTI_GPU\nnum_processes: two\n", "num_processes must be a whole number above 0"),
        ("distributed_type: MULTI_GPU\nnum_processes: 2.0\n", "num_processes must be a whole number above 0"),
        ("distributed_type: MULTI_GPU\nnum_processes: true\n", "num_processes must be a whole number above 0"),
        ("distributed_type: MULTI_GPU\n", "num_processes must be a whole number above 0"),
        ('distributed_type: "NO"\nnum_processes: 2\n', "mine.yaml: distributed_type: NO is one process, not 2"),
        (f"{DDP}num_machines: 2\n", "num_machines: 2; these configs are for one machine"),
        (f"{DDP}use_cpu: no\n", "use_cpu"),
        (f"{DDP}use_cpu: 'false'\n", "use_cpu"),
        (f"{DDP}mixed_precision: bf17\n", "mixed_precision"),
        (f"{DDP}num_processes: 3\n", "num_processes appears twice"),
        ("", "empty"),
    ],
)
def test_a_wrong_config_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError) as raised:
        topology.read("mine", "a test", directory=tmp_path)
    assert len(raised.value.problems) == 1
    assert expected in raised.value.problems[0]


@pytest.mark.parametrize("number", [0, "2", 1025])
def test_a_wrong_number_of_processes_is_of_whoever_asks_for_it(number: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(DDP)
    with pytest.raises(InputError, match=rf"^GPUS={number!r} must be a whole number above 0, and at most 1024$"):
        topology.read("mine", "a test", number, tmp_path)


def test_all_that_is_wrong_in_a_config_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("distributed_type: XLA\nnum_processes: 0\nnum_machines: 2\nseed: 1\n")
    with pytest.raises(InputError) as raised:
        topology.read("mine", "a test", directory=tmp_path)
    assert len(raised.value.problems) == 4


def test_ddp_on_cpu_is_a_config_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"{DDP}use_cpu: true\n")
    read = topology.read("mine", "a test", directory=tmp_path)
    assert (read.backend, read.use_cpu, read.processes) == ("ddp", True, 2)


def test_cpu_and_single_gpu_are_one_process() -> None:
    for name in ("cpu", "single_gpu"):
        with pytest.raises(InputError, match=f"{name} is one process, not 2"):
            topo(name, 2)


def test_an_unknown_config_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        InputError,
        match=rf"no accelerate config 'zero4' in .* \(nearest: 'zero.'\); there are {', '.join(sorted(SHIPPED))}$",
    ):
        topo("zero4")


@pytest.mark.parametrize(
    "name", ["../recipes/default", "/etc/passwd", ".hidden", "", "x; touch pwned", "a\n", "a" * 300]
)
def test_a_hostile_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="invalid accelerate config name"):
        topo(name)


# Recipe x config

UINT8 = "bnb_4bit_quant_storage=uint8"
NO_QUANT = "load_in_4bit=false"
EIGHT = "load_in_4bit=false load_in_8bit=true"
REENTRANT = "'activation_checkpointing_kwargs={use_reentrant: false}'"


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("fsdp2", "", "FSDP2 cannot train a quantised base"),
        ("fsdp2", EIGHT, "FSDP2 cannot train a quantised base"),
        ("zero3", UINT8, "stored as bfloat16, not uint8"),
        ("zero3", "bnb_4bit_quant_storage=null", "stored as bfloat16, not uint8"),
        ("zero3_offload", UINT8, "stored as bfloat16, not uint8"),
        ("zero3", "bnb_4bit_quant_storage=float32", "stored as bfloat16, not float32"),
        ("zero3", "dtype=float32", "ZeRO-3 with 4-bit weights needs dtype: bfloat16, not float32"),
        ("zero3", EIGHT, "ZeRO-3 cannot partition 8-bit weights"),
        ("zero1", "bnb_4bit_quant_storage=float16", "would cast 4-bit weights stored as float16 and destroy them"),
        ("zero2", "bnb_4bit_quant_storage=float32", "would cast 4-bit weights stored as float32 and destroy them"),
        ("zero3", REENTRANT, "ZeRO-3 with adapters needs reentrant checkpointing"),
        ("zero3", f"{REENTRANT} activation_checkpointing=null", "ZeRO-3 with adapters needs reentrant checkpointing"),
        ("zero1", "adapter_dtype=bfloat16", "DeepSpeed keeps float32 master weights of the adapters"),
        ("zero3", "adapter_dtype=bfloat16", "DeepSpeed keeps float32 master weights of the adapters"),
        ("zero3_offload", "optim=sgd", "trains with DeepSpeed's Adam, without decoupled weight decay, or fails"),
        ("zero3_offload", "optim=adamw_8bit", "where the optimizer is offloaded and optim is adamw_8bit"),
        ("fsdp2", f"{NO_QUANT} adapter_dtype=bfloat16", "accelerate widens what FSDP2 trains to float32"),
        ("ddp", "bf16=false", "ddp computes in bf16, the recipe in no; set bf16: true"),
        ("zero2", "bf16=false fp16=true", "zero2 computes in bf16, the recipe in fp16"),
    ],
)
def test_a_pair_that_the_libraries_get_wrong_is_refused(name: str, overrides: str, expected: str) -> None:
    (found,) = conflicts.of_topology(recipe(overrides), topo(name))
    assert expected in str(found) and found.severity == "blocking"
    with pytest.raises(InputError, match=re.escape(expected)):
        topology.resolve(recipe(overrides), topo(name))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        *((name, "") for name in SHIPPED if name != "fsdp2"),
        ("fsdp2", NO_QUANT),
        ("fsdp2", f"{NO_QUANT} {REENTRANT}"),
        ("zero3", f"{NO_QUANT} {UINT8} dtype=float32"),
        ("zero3", f"{REENTRANT} activation_checkpointing=false"),
        ("zero2", UINT8),
        ("zero2", "bnb_4bit_quant_storage=null"),
        ("zero2", EIGHT),
        ("zero2", "optim=adamw_8bit"),
        ("zero3_offload", "optim=adamw_torch_fused"),
        ("zero2", REENTRANT),
        ("ddp", f"{UINT8} adapter_dtype=bfloat16 {REENTRANT}"),
        ("ddp", "dtype=float32 bnb_4bit_quant_storage=float32"),
        ("ddp", EIGHT),
        ("cpu", "bf16=false"),
    ],
)
def test_a_pair_that_works_is_not_refused(name: str, overrides: str) -> None:
    assert [*conflicts.of_topology(recipe(overrides), topo(name))] == []


@pytest.mark.parametrize("overrides", ["", UINT8, f"{UINT8} dtype=float32", EIGHT])
def test_where_a_quantised_base_is_sent_it_is_not_refused(overrides: str) -> None:
    (found,) = conflicts.of_topology(recipe(overrides), topo("fsdp2"))
    ways = re.findall(r'ACCEL=(\w+)(?: SET="([^"]*)")?', found.remedy)
    assert [name for name, _ in ways] == (["ddp"] if overrides == EIGHT else ["ddp", "zero3"])
    for name, values in ways:
        sent = load("default", parse_overrides(overrides) | parse_overrides(values))
        assert [*conflicts.of_topology(sent, topo(name))] == []
    without = parse_overrides(found.remedy.rpartition("SET=")[2])
    assert [*conflicts.of_topology(load("default", parse_overrides(overrides) | without), topo("fsdp2"))] == []
    assert "ACCEL=zero3 where the base is in 4 bits" in schema.REFUSED["fsdp"]


# What is derived


def derived(name: str, overrides: str = "", processes: int | None = None) -> dict[str, Any]:
    values = topology.resolve(recipe(overrides), topo(name, processes)).values
    return {key: item.value for key, item in values.items() if item.origin.startswith("derived: ")}


ALWAYS = {"logging_nan_inf_filter": False, "restore_callback_states_from_checkpoint": True}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cpu", {"gradient_accumulation_steps": 16, "use_cpu": True}),
        ("single_gpu", {"gradient_accumulation_steps": 16}),
        ("ddp", {"gradient_accumulation_steps": 4, "ddp_find_unused_parameters": False}),
        ("zero1", {"gradient_accumulation_steps": 4}),
        ("zero2", {"gradient_accumulation_steps": 4}),
        ("zero3", {"gradient_accumulation_steps": 4, "activation_checkpointing_kwargs": {"use_reentrant": True}}),
        (
            "zero3_offload",
            {"gradient_accumulation_steps": 4, "activation_checkpointing_kwargs": {"use_reentrant": True}},
        ),
    ],
)
def test_what_follows_from_where_the_default_runs(name: str, expected: dict[str, Any]) -> None:
    assert derived(name) == ALWAYS | expected


def test_activation_checkpointing_is_decided_under_its_current_name_on_every_topology() -> None:
    unset = "activation_checkpointing=null"
    assert derived("ddp", unset)["activation_checkpointing"] is True
    assert derived("zero3", unset)["activation_checkpointing_kwargs"] == {"use_reentrant": True}
    assert "activation_checkpointing_kwargs" not in derived("zero3", "activation_checkpointing=false")
    kept = derived("zero3", "'activation_checkpointing_kwargs={every_n_layers: 2}'")["activation_checkpointing_kwargs"]
    assert kept == {"every_n_layers": 2, "use_reentrant": True}


def test_the_origin_of_the_accumulation_shows_the_division() -> None:
    item = topology.resolve(recipe(), topo("ddp")).values["gradient_accumulation_steps"]
    assert item.origin == "derived: 64 / (4 x 4 processes)"


@pytest.mark.parametrize(
    ("total", "size", "processes"), [(64, 4, 3), (64, 4, 5), (64, 5, 1), (7, 4, 2), (2, 4, 1), (63, 4, 3)]
)
def test_a_batch_that_cannot_be_reached_is_answered_with_values_that_work(
    total: int, size: int, processes: int
) -> None:
    def accumulation(total: int = total, size: int = size, processes: int = processes) -> int:
        chosen = recipe(f"global_batch_size={total} per_device_train_batch_size={size}")
        return topology.accumulation(chosen, topo("ddp", processes))

    with pytest.raises(InputError, match=rf"{total} is not reachable .* {total} / \({size} x {processes}\)") as raised:
        accumulation()
    works = str(raised.value).partition("Works: ")[2]
    (new_total,) = re.findall(r"global_batch_size (\d+)", works)
    assert accumulation(total=int(new_total)) * size * processes == int(new_total)
    for numbers in re.findall(r"per_device_train_batch_size ([\d, ]+)", works):
        for number in numbers.split(", "):
            assert accumulation(size=int(number)) * int(number) * processes == total
    for numbers in re.findall(r"GPUS ([\d, ]+)", works):
        for number in numbers.split(", "):
            assert accumulation(processes=int(number)) * size * int(number) == total


def test_a_wrong_batch_and_a_wrong_pair_are_said_together() -> None:
    with pytest.raises(InputError) as raised:
        topology.resolve(recipe("global_batch_size=63"), topo("fsdp2"))
    assert len(raised.value.problems) == 2


# GPUs

FAKE = """#!/bin/sh
if [ "$1" = -L ]; then echo '{parts}'; exit {code}; fi
[ "$1" = "--query-gpu=index,uuid,name,memory.total,mig.mode.current" ] || exit 2
[ "$2" = "--format=csv,noheader,nounits" ] || exit 2
echo '{lines}'
exit {code}
"""
FOUR = [
    f"{index}, GPU-{letter * 4}-1111, NVIDIA {letter}, {1000 + index}, [N/A]" for index, letter in enumerate("abcd")
]
# As nvidia-smi prints them for a whole H100 beside an A100 and one more that are divided.
DIVIDED = [
    "0, GPU-aaaa-1111, NVIDIA H100 80GB HBM3, 81559, Disabled",
    "1, GPU-bbbb-1111, NVIDIA A100-SXM4-80GB, 81920, Enabled",
    "2, GPU-cccc-1111, NVIDIA A100-SXM4-80GB, [Insufficient Permissions], Enabled",
]
PARTS = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-1111)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-bbbb-1111)
  MIG 3g.40gb     Device  0: (UUID: MIG-b0b0-2222)
  MIG 1g.10gb+me  Device  1: (UUID: MIG-b1b1-2222)
GPU 2: NVIDIA A100-SXM4-80GB (UUID: GPU-cccc-1111)
  MIG 7g.80gb     Device  0: (UUID: MIG-c0c0-2222)"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An executable nvidia-smi on a PATH of its own that prints the given lines."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(lines: list[str], code: int = 0, parts: str = "") -> None:
        path = tmp_path / "nvidia-smi"
        path.write_text(FAKE.format(lines="\n".join(lines), code=code, parts=parts))
        path.chmod(0o755)

    return install


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, "abcd"),
        ("0,2", "ac"),
        ("2, 0", "ca"),
        ("3", "d"),
        ("", ""),
        ("-1", ""),
        ("7", ""),
        ("1,7,2", "b"),
        ("GPU-cccc-1111", "c"),
        ("GPU-bb", "b"),
        ("GPU-bb,GPU-dddd", "bd"),
        ("GPU-x", ""),
        ("GPU-", "a"),
    ],
)
def test_the_gpus_are_those_that_cuda_would_show(
    visible: str | None, expected: str, nvidia_smi: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(FOUR)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert topology.visible_gpus() == [Gpu(f"NVIDIA {letter}", 1000 + "abcd".index(letter)) for letter in expected]


def test_without_nvidia_smi_or_with_a_failing_one_there_are_none(nvidia_smi: Any) -> None:
    assert topology.visible_gpus() == []
    nvidia_smi(["No devices were found"], code=6)
    assert topology.visible_gpus() == []
    nvidia_smi(["No devices were found"])
    assert topology.visible_gpus() == []


def test_a_gpu_that_does_not_tell_its_memory_is_still_a_gpu(nvidia_smi: Any) -> None:
    nvidia_smi(["0, GPU-aaaa-1111, NVIDIA GB10, [N/A], [N/A]"])
    assert [gpu.name for gpu in topology.visible_gpus()] == ["NVIDIA GB10"]


def test_an_index_is_no_prefix_of_another(nvidia_smi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(["10, GPU-aaaa-1111, NVIDIA a, 1000, [N/A]"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert topology.visible_gpus() == []


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["NVIDIA H100 80GB HBM3"]),
        ("1", ["NVIDIA A100-SXM4-80GB MIG 3g.40gb"]),
        ("GPU-cccc", ["NVIDIA A100-SXM4-80GB MIG 7g.80gb"]),
        ("MIG-b1b1-2222", ["NVIDIA A100-SXM4-80GB MIG 1g.10gb+me"]),
        ("MIG-b1b1-2222,MIG-c0c0-2222", ["NVIDIA A100-SXM4-80GB MIG 1g.10gb+me"]),
        ("MIG-c0", ["NVIDIA A100-SXM4-80GB MIG 7g.80gb"]),
        ("MIG-dddd", []),
        ("0,1,2", ["NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB MIG 3g.40gb"]),
    ],
)
def test_of_divided_gpus_a_process_sees_one_part(
    visible: str | None, expected: list[str], nvidia_smi: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(DIVIDED, parts=PARTS)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in topology.visible_gpus()] == expected


def test_a_part_has_its_own_memory(nvidia_smi: Any) -> None:
    nvidia_smi(DIVIDED[1:], parts=PARTS.partition("\n")[2])
    (part,) = topology.visible_gpus()
    assert part == Gpu("NVIDIA A100-SXM4-80GB MIG 3g.40gb", 38146)
    assert gpus.of(part) == gpus.find("a100-80gb-3g.40gb"), "the figures of the part, not of the whole GPU"


def test_a_fault_is_not_taken_for_a_machine_without_gpus(
    nvidia_smi: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver."
    nvidia_smi([broken], code=9, parts=broken)
    for ask in (topology.no_gpu, lambda: topology.choose(recipe(UNPAIRED), None, None, [])):
        with pytest.raises(InputError, match=r"failed with code 9: NVIDIA-SMI has failed .*CUDA_VISIBLE_DEVICES="):
            ask()
    assert topology.choose(recipe(UNPAIRED), "cpu", None, []).use_cpu
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert topology.no_gpu()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    nvidia_smi(["No devices were found"], code=6)
    assert topology.no_gpu()
    nvidia_smi(FOUR)
    assert not topology.no_gpu()
    (tmp_path / "nvidia-smi").unlink()
    assert topology.no_gpu()
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(topology, "DRIVER", tmp_path / "nvidiactl")
    with pytest.raises(InputError, match="nvidiactl is there and nvidia-smi is not in PATH"):
        topology.no_gpu()


A100 = Gpu("NVIDIA A100-SXM4-80GB", 81920)
UNPAIRED = "accelerate_config=null"


@pytest.mark.parametrize(
    ("overrides", "accel", "processes", "gpus", "expected"),
    [
        ("accelerate_config=zero2", "zero1", None, 0, ("zero1", 4, "ACCEL")),
        ("accelerate_config=zero2", "zero1", 2, 8, ("zero1", 2, "ACCEL")),
        ("accelerate_config=zero2", None, None, 0, ("zero2", 4, "SET")),
        ("accelerate_config=zero2", None, 8, 1, ("zero2", 8, "SET")),
        (UNPAIRED, "single_gpu", None, 4, ("single_gpu", 1, "ACCEL")),
        (UNPAIRED, None, None, 0, ("cpu", 1, "no GPU is visible")),
        (UNPAIRED, None, None, 1, ("single_gpu", 1, "one GPU is visible")),
        (UNPAIRED, None, None, 2, ("ddp", 2, "2 GPUs are visible")),
        (UNPAIRED, None, 1, 2, ("ddp", 1, "2 GPUs are visible")),
    ],
)
def test_the_command_decides_then_the_recipe_then_the_hardware(
    overrides: str, accel: str | None, processes: int | None, gpus: int, expected: tuple[str, int, str]
) -> None:
    chosen = topology.choose(recipe(overrides), accel, processes, [A100] * gpus)
    assert (chosen.name, chosen.processes, chosen.origin) == expected


def test_the_origin_of_a_choice_by_the_recipe_is_its_line() -> None:
    assert re.fullmatch(r"recipes/default\.yaml:\d+", topology.choose(recipe(), None, None, []).origin)


@pytest.mark.parametrize(
    ("name", "processes", "gpus", "expected"),
    [
        ("ddp", None, 0, "ddp needs 4 GPUs, 0 are visible"),
        ("ddp", None, 1, "ddp needs 4 GPUs, 1 is visible"),
        ("zero3", None, 2, "zero3 needs 4 GPUs, 2 are visible"),
        ("ddp", None, 3, "ddp needs 4 GPUs, 3 are visible"),
        ("ddp", 8, 6, "ddp needs 8 GPUs, 6 are visible"),
        ("single_gpu", None, 0, "single_gpu needs 1 GPU, 0 are visible"),
    ],
)
def test_missing_gpus_are_answered_with_three_ways_that_work(
    name: str, processes: int | None, gpus: int, expected: str
) -> None:
    (found,) = conflicts.missing_gpus(recipe(), topo(name, processes), gpus)
    first, *ways = str(found).splitlines()
    assert first == f"{expected}. Instead:"
    assert [way.strip()[:2] for way in ways] == ["1.", "2.", "3."]
    assert "RECIPE=demo" in ways[1]
    assert "ACCEL=cpu" in ways[2]
    if fewer := re.search(r"GPUS=(\d+)", ways[0]):
        assert int(fewer[1]) <= gpus
        assert topology.accumulation(recipe(), topo(name, int(fewer[1]))) * 4 * int(fewer[1]) == 64
    else:
        assert "ACCEL=single_gpu" in ways[0]


def test_enough_gpus_are_no_problem() -> None:
    assert [*conflicts.missing_gpus(recipe(), topo("ddp"), 4)] == []
    assert [*conflicts.missing_gpus(recipe(), topo("ddp", 2), 3)] == []
    assert [*conflicts.missing_gpus(recipe(), topo("cpu"), 0)] == []


def test_the_gpu_of_an_apple_chip_is_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    (gpu,) = topology.visible_gpus()
    chosen = topology.choose(load("laptop"), None, None, [gpu])
    assert (chosen.name, chosen.origin, chosen.use_cpu) == ("single_gpu", "one GPU is visible", False)
    assert [*conflicts.missing_gpus(load("laptop"), chosen, 1)] == []
    assert [*conflicts.of_topology(load("laptop"), chosen)] == []
    # Intel's Macs have none that torch computes on.
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert topology.visible_gpus() == []
