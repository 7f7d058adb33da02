"""Topologies up to 1,024 GPUs, planned, and what was published of fewer beside the same formula.

`python scripts/validate_scaling.py` writes the generated part of docs/scaling.md.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from validate_memory import model_of
from validate_speed import Row, published, table

from sft_recipes.plan import gpus, memory, speed, traffic
from sft_recipes.plan.memory import Setup

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scaling.md"
MARK = "<!-- what follows is written by scripts/validate_scaling.py -->\n"
CARD, EACH = "h100-80gb", 8
SIZES = (8, 16, 64, 256, 1024)
ROWS, LENGTH = 2, 4096
GIB, GB = 2**30, 1e9
# Bytes a second in one direction within a node: half of what NVIDIA's datasheets of A100 and H100 give for both.
NVLINK = {"a100-80gb": 300e9, "h100-80gb": 450e9}
# Gbit/s of one node's network: an Ethernet adapter, and the eight of 400 Gbit/s of NVIDIA's DGX H100 datasheet.
NETWORKS = (100, 3200)
PACKED = Setup(tokens=ROWS * LENGTH, length=LENGTH, attention="flash_attention_2", rank=16)
CASES: tuple[tuple[str, str, Setup], ...] = (
    ("QLoRA", "Qwen/Qwen3-8B", dataclasses.replace(PACKED, four_bit=True, double_quant=True)),
    ("LoRA, ZeRO-3", "Qwen/Qwen3-32B", dataclasses.replace(PACKED, zero_stage=3)),
    ("all weights, FSDP2", "Qwen/Qwen3-8B", dataclasses.replace(PACKED, use_peft=False, fsdp=True)),
)


def planned(model: str, case: Setup) -> Iterator[list[str]]:
    """A row for each number of GPUs, at one micro-batch a step, where most is sent for what is computed."""
    found, card = model_of(model), gpus.find(CARD)
    for processes in SIZES:
        setup = dataclasses.replace(case, processes=processes)
        needed = memory.estimate(found, setup).allocated
        low, high = traffic.traffic(found, setup, 1).total
        sent = f"{low / GB:.2f}" if low == high else f"{low / GB:.1f} to {high / GB:.1f}"
        known = speed.efficiency(card, setup)
        step = speed.per_micro_batch(found, setup, card) if known else None
        wire = [low / NVLINK[CARD]] * 2 if processes == EACH else [traffic.seconds(low, each) for each in NETWORKS]
        cells = [f"{processes:,}", f"{processes * ROWS:,}", f"{needed / GIB:.1f}", sent]
        cells += [f"{each:.2g}" for each in wire]
        # As if nothing was computed meanwhile.
        slow = [f"{each / (each + step[1]):.0%} to {each / (each + step[0]):.0%}" if step else "" for each in wire]
        yield [*cells, f"{step[0]:.2g} to {step[1]:.2g}" if step else "not published", *slow]


def checked() -> Iterator[tuple[float, list[str]]]:
    """Published pairs that differ in the number of GPUs alone: what the second took longer, and what is sent by it.

    Each with how many times the least seconds it took.
    """
    rows = [row for row in published() if not row.facts["excluded"]]
    for row in rows:
        if row.setup.processes == 1 or not row.setup.use_peft or row.card not in NVLINK:
            continue
        for alone in rows:
            if alone.setup.processes == 1 and _same(alone, row):
                sent = traffic.traffic(model_of(row.facts["model"]), row.setup, 1).total[0]
                least = sent / NVLINK[row.card]
                longer = row.seconds - alone.seconds
                cells = [
                    f"{alone.facts['row']}, {row.facts['row']}",
                    f"{row.facts['model']}, {'QLoRA' if row.setup.four_bit else 'LoRA'}",
                    str(row.setup.processes),
                    f"{row.setup.tokens:,}",
                    f"{alone.seconds:.2f}",
                    f"{longer:.2f} ({longer / alone.seconds:.1%})",
                    f"{sent / GB:.1f}",
                    f"{least:.3f}",
                ]
                yield longer / least, cells


def _same(alone: Row, row: Row) -> bool:
    """Whether two rows trained the same with the same kernels: those with FSDP are said to be with FOAK and Liger."""
    keys = ("model", "gpu", "length", "tokens", "four_bit", "use_peft", "rank", "targets", "software", "note")
    return all(alone.facts[key] == row.facts[key] for key in keys)


def page() -> str:
    """The generated part of docs/scaling.md."""
    header = ["GPUs", "rows a step", "GiB a GPU", "GB each sends"]
    header += [f"s at {each:,} Gbit/s" for each in NETWORKS]
    header += ["s to compute", *(f"share at {each:,}" for each in NETWORKS)]
    parts = [f"## Planned: nodes of {EACH} {CARD}, micro-batches of {ROWS} x {LENGTH:,} tokens"]
    for name, model, case in CASES:
        parts += [f"### {model}, {name}", table(header, planned(model, case))]
    ratios, rows = zip(*checked(), strict=True)
    parts += [
        "## Checked against what was published",
        "Seconds of one micro-batch on one GPU, how many more it took on several with FSDP, and what the formula says "
        "goes over NVLink meanwhile. Numbers of rows are those of [speed.md](speed.md).",
        table(["rows", "what", "GPUs", "tokens", "s on one", "s more", "GB sent", "s at least"], rows),
        f"All {len(rows)} took longer than the formula says at least, by {min(ratios):.1f} to {max(ratios):.1f} "
        "times. What more it is contains all that FSDP does beside sending, so the formula is a bound and no "
        "estimate. No pair of runs on one and on several nodes is among them.",
    ]
    return "\n\n".join(parts)


def render(text: str) -> str:
    """The page with its generated part anew."""
    return f"{text.partition(MARK)[0]}{MARK}\n{page()}\n"


def main() -> None:
    os.chdir(ROOT)
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
