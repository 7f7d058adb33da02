"""What docs/performance.md and docs/where_it_runs.md show of the results in benchmarks/ (`make gpu`, `make bench`)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft_recipes.benchmark import results
from sft_recipes.benchmark.scale import RATIOS
from sft_recipes.models import base_model
from sft_recipes.plan import gpus, memory
from sft_recipes.plan.memory import Setup
from sft_recipes.recipes.topology import Gpu
from sft_recipes.terminal import duration

DOCS = Path(__file__).parents[1] / "docs"
PRECISION, MICRO_BATCHES = DOCS / "adapter_precision.json", DOCS / "micro_batches.json"
NOT_MEASURED = (
    "Not measured yet on a GPU: no result of one is in benchmarks/. What this project says of GPUs (memory, time, the "
    "accelerate configs other than `cpu`) is estimated or follows from tests on CPU processes."
)


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def performance() -> str:
    """Everything that was measured, machine by machine."""
    found = results.newest()
    parts = [] if any(facts["hardware"]["kind"] == "gpu" for facts in found.values()) else [NOT_MEASURED]
    return "\n\n".join([*parts, *(machine(name, facts) for name, facts in found.items())])


def ratios() -> str:
    """What must hold on any machine, and what was found on each."""
    found = results.newest(sections=[RATIOS])
    return "\n\n".join(ratios_of(name, facts) for name, facts in found.items()) or "Not measured yet."


def ratios_of(name: str, facts: dict[str, Any]) -> str:
    """The ratios of one machine."""
    found = results.measurements(facts, RATIOS)
    rows = [
        [each["what"], f"{each['value']:,}", each["bound"], "yes" if each["holds"] else "no"]
        for each in found.values()
    ]
    missed = [each["what"] for each in found.values() if not each["holds"]]
    parts = [
        f"### {facts['hardware']['name']}",
        about(name, facts),
        f"Bounds that hold: {len(found) - len(missed)} of {len(found)}"
        + (f"; missed: {'; '.join(missed)}." if missed else "."),
        table(["what", "found", "must be", "holds"], rows),
        "\n".join(f"- `{key}`: {text(found[key])}." for key, text in BEHIND.items() if key in found),
        not_measured(facts),
    ]
    return "\n\n".join(filter(None, parts))


def _origin(each: dict[str, Any]) -> str:
    """What was executed how, and how fast."""

    def arm(name: str) -> str:
        told, did = each["executed"][name], each["arms"][name]
        rate, padded = did["tokens_per_second"], told["pad_to_multiple_of"]
        whole = padded != "auto" and did["positions"] == did["rows"] * padded
        padding = f", each row padded to {padded}" if whole else ""
        checkpointing = "with" if told["activation_checkpointing"] else "without"
        size = told["per_device_train_batch_size"]
        return f"{rate:,.0f} real tokens/s in micro-batches of {size}, {checkpointing} checkpointing{padding}"

    return f"random weights of the shape of {each['model']}; {arm('ours')}, against {arm('origin')}"


# What is behind a ratio that says little alone, by its name.
BEHIND: dict[str, Callable[[dict[str, Any]], str]] = {
    "misspelt_key": lambda each: f"stock `trl sft` takes {each['stock_trl']:.1f} s",
    "plan_memory": lambda each: (
        f"plan says {each['planned_bytes'] / 1e6:,.0f} MB, and {each['measured_bytes'] / 1e6:,.0f} MB were measured"
    ),
    "scoring": lambda each: f"{each['base']:.2f} of the base, {each['tuned']:.2f} of the tuned model",
    "origin": _origin,
    "overhead": lambda each: (
        "seconds of `train` and of stock `trl sft`, pair by pair: "
        + "; ".join(f"{ours:.1f} and {stock:.1f}" for ours, stock in each["seconds"])
    ),
}


def micro_batches() -> str:
    """What a micro-batch costs on a CPU whatever is in it (scripts/measure_micro_batches.py)."""
    facts = json.loads(MICRO_BATCHES.read_text(encoding="utf-8"))
    heads = ["model", "milliseconds of a micro-batch", "of a token", "a micro-batch is worth"]
    rows = [
        [name, f"{1e3 * each['fixed']:.1f}", f"{1e3 * each['token']:.3f}", f"{each['tokens']:.0f} tokens"]
        for name, each in facts["models"].items()
    ]
    return f"{facts['cpus']} cores, torch {facts['versions']['torch']}.\n\n{table(heads, rows)}"


def precision() -> str:
    """What bfloat16 adapters changed on the demo (scripts/validate_adapter_precision.py)."""
    facts = json.loads(PRECISION.read_text(encoding="utf-8"))
    found, (wide, narrow) = facts["paired"], facts["bytes"].values()
    shown = {"eval_loss": ("eval loss", 4), "macro_f1": ("macro F1 on the test rows", 4)}
    shown |= {"seconds": ("seconds of training", 1)} if facts["quiet"] else {}
    rows = [
        [
            words,
            *(f"{found[key][dtype]:.{digits}f}" for dtype in facts["bytes"]),
            f"{found[key]['difference']:+.{digits}f} ({found[key]['low']:+.{digits}f} to "
            f"{found[key]['high']:+.{digits}f})",
            f"{found[key]['seeds_apart']:.{digits}f}",
        ]
        for key, (words, digits) in shown.items()
    ]
    peak = found["peak_memory_bytes"]
    rows.append(["peak of the process, MB", *(f"{peak[dtype] / 1e6:,.0f}" for dtype in facts["bytes"]), "", ""])
    rows += [
        [f"bytes of the {words}", f"{wide[key]:,}", f"{narrow[key]:,}", f"{narrow[key] - wide[key]:+,}", ""]
        for key, words in (("adapter", "adapter"), ("optimizer", "optimizer's state"))
    ]
    apart = [shown[key][0] for key in ("eval_loss", "macro_f1") if found[key]["low"] * found[key]["high"] > 0]
    told = "Both intervals hold zero, so that this does not decide."
    if apart:
        told = f"The interval of the {' and that of the '.join(apart)} leaves out zero."
    busy = "" if facts["quiet"] else " Seconds are not told: the machine had other work."
    heads = ["", *facts["bytes"], "bfloat16 less float32 (95 %)", "between seeds"]
    return (
        f"The demo with {facts['seeds']} seeds, each trained with adapters and moments in float32 and in bfloat16 on "
        f"the same rows in the same order. The interval is Student's t over the pairs; between seeds is the standard "
        f"deviation in float32. {told}{busy}\n\n{table(heads, rows)}"
    )


def about(name: str, facts: dict[str, Any]) -> str:
    """The machine, its software, and how long it took."""
    hardware = facts["hardware"]
    stack = ", ".join(f"{package} {number}" for package, number in facts["versions"].items())
    driver = f"driver {hardware['driver']}, CUDA {hardware['cuda']}, " if hardware["kind"] == "gpu" else ""
    return (
        f"{hardware['memory_bytes'] / 2**30:.0f} GiB, {driver}{hardware['cpus']} CPU cores; {facts['date']}, "
        f"{facts['seconds']:.0f} s of a budget of {facts['budget_seconds']:.0f}; {stack}. "
        f"[The result](../benchmarks/{name})"
    )


def measured() -> str:
    """One row a machine: what was shown to work there."""
    found = results.newest()
    rows = []
    for name, facts in found.items():
        road, places = (results.measurements(facts, each) for each in ("road", "topologies"))
        error = memory_error(facts)
        rows.append(
            [
                f"[{facts['hardware']['name']}](../benchmarks/{name}), {facts['date']}",
                f"trained and evaluated in {duration(road['demo']['seconds'])}" if "demo" in road else "not measured",
                "not measured" if error is None else f"{error:+.1%} at most",
                ", ".join(f"`{each}`" for each in places) or "none",
            ]
        )
    text = table(
        ["machine", "the demo", "error of the memory estimate", "accelerate configs that train and resume"], rows
    )
    gpu = any(facts["hardware"]["kind"] == "gpu" for facts in found.values())
    return text if gpu else f"{NOT_MEASURED} `make gpu` measures a machine.\n\n{text}"


def machine(name: str, facts: dict[str, Any]) -> str:
    """What was measured on one machine."""
    gpu = facts["hardware"]["kind"] == "gpu"
    parts = [f"## {facts['hardware']['name']}", about(name, facts), *filter(None, [peaks(facts), road(facts)])]
    if gpu:
        parts += filter(None, [speed(facts), knobs(facts)])
    else:
        timed = len(results.measurements(facts, "speed")) + len(results.measurements(facts, "knobs"))
        parts.append(
            f"{timed} speeds were measured too, of shapes that only exercise the program; a CPU's say nothing of a "
            "GPU's, and are in the result alone."
        )
    parts += filter(None, [places(facts), gpt_oss(facts), not_measured(facts)])
    return "\n\n".join(parts)


def peaks(facts: dict[str, Any]) -> str:
    """The machine's own rates."""
    found = results.measurements(facts, "machine")
    sheet = sheet_of(facts)
    words = []
    if product := found.get("bfloat16_matrix_product"):
        words.append(
            f"a bfloat16 product of {product['side']:,} x {product['side']:,} matrices at {product['tflops']:,.2f} "
            "TFLOP/s"
            + (
                f" ({product['tflops'] / sheet.bf16_tflops:.0%} of the data sheet's)"
                if sheet and sheet.bf16_tflops
                else ""
            )
        )
    if copy := found.get("copy_read_and_write"):
        words.append(
            f"a copy at {copy['gb_per_second']:,.1f} GB/s read and written"
            + (f" ({copy['gb_per_second'] / sheet.bandwidth_gb_per_second:.0%})" if sheet else "")
        )
    return f"It computes {' and '.join(words)}." if words else ""


def sheet_of(facts: dict[str, Any]) -> gpus.Spec | None:
    """The vendor's figures of the GPU."""
    hardware = facts["hardware"]
    return gpus.of(Gpu(hardware["name"], hardware["memory_bytes"] // 2**20)) if hardware["kind"] == "gpu" else None


def road(facts: dict[str, Any]) -> str:
    """The demo from its training to a resumed run."""
    found = results.measurements(facts, "road")
    if "demo" not in found:
        return ""
    demo = found["demo"]
    last = demo["eval_loss"][-1]["eval_loss"]
    lines = [
        f"The demo on `{demo['topology']}`: {demo['steps']} steps in {duration(demo['training_seconds'])}, "
        f"{demo['tokens_per_second']:,.0f} tokens/s, eval loss {last:.4f}, {duration(demo['seconds'])} with start and "
        f"evaluation. {demo['verdict'][0].upper()}{demo['verdict'][1:]}."
    ]
    if merge := found.get("merge"):
        lines.append(f"Merged and compared in {duration(merge['seconds'])}.")
    if resumed := found.get("killed_and_resumed"):
        same = (
            "the same adapter to the bit"
            if resumed["equal_to_the_bit"]
            else f"an adapter that differs by {resumed['largest_difference']:.2g} at most"
        )
        lines.append(f"Killed after step {resumed['killed_after_step']} and resumed, it ended with {same}.")
    return " ".join(lines)


def mfu(each: dict[str, Any], rate: float, tflops: float) -> str:
    """Model FLOPs utilisation by 4N."""
    return f"{4 * each['matrix_parameters'] * rate / (tflops * 1e12):.0%}"


def speed(facts: dict[str, Any]) -> str:
    """Tokens per second of three executions of the same rows."""
    found = results.measurements(facts, "speed")
    if not found:
        return ""
    product = results.measurements(facts, "machine").get("bfloat16_matrix_product")
    sheet = sheet_of(facts)
    names = {"origin": "the origin's execution", "stock_trl": "stock TRL, exported recipe", "ours": "`make train`"}
    rows = []
    for distribution, each in found.items():
        for arm, told in each["arms"].items():
            rate = told["tokens_per_second"]
            rows.append(
                [
                    distribution.replace("_", "-"),
                    names[arm],
                    f"{rate:,.0f}",
                    f"{rate / each['arms']['origin']['tokens_per_second']:.2f}",
                    f"{told['samples_per_second']:,.1f}",
                    mfu(each, rate, product["tflops"]) if product else "",
                    mfu(each, rate, sheet.bf16_tflops) if sheet and sheet.bf16_tflops else "",
                    f"{told['waiting_share']:.1%}",
                ]
            )
    first = next(iter(found.values()))
    text = table(
        [
            "rows",
            "execution",
            "real tokens/s",
            "times the origin's",
            "rows/s",
            "MFU, measured peak",
            "MFU, data sheet",
            "waits for data",
        ],
        rows,
    )
    return f"### Speed\n\n{first['model']} in NF4, adapters of the default recipe, one GPU.\n\n{text}"


def knobs(facts: dict[str, Any]) -> str:
    """What each change is worth, against the base."""
    found = results.measurements(facts, "knobs")
    if "base" not in found:
        return ""
    base = found["base"]["tokens_per_second"]
    rows = [
        [f"`{name}`", f"{each['tokens_per_second']:,.0f}", f"{each['tokens_per_second'] / base:.2f}"]
        for name, each in found.items()
    ]
    return f"### One change at a time\n\n{table(['change', 'real tokens/s', 'times the base'], rows)}"


def places(facts: dict[str, Any]) -> str:
    """The accelerate configs that were tried with one process."""
    section = facts["sections"].get("topologies")
    if section is None:
        return ""
    rows = [
        [f"`{each['name']}`", f"trained, killed, resumed from step {each['resumed_from_step']} to {each['steps']}"]
        for each in section["measurements"]
    ]
    rows += [[f"`{each['name']}`", f"refused: {each['reason']}"] for each in section["refused"]]
    rows += [[f"`{each['name']}`", f"failed: {each['error']}"] for each in section["failed"]]
    rows += [[f"`{name}`", "not measured: no time was left"] for name in section["left_out"]]
    return f"### Accelerate configs, one process\n\n{table(['`ACCEL=`', 'what happened'], rows)}"


def gpt_oss(facts: dict[str, Any]) -> str:
    """Whether gpt-oss trains from its MXFP4 checkpoint."""
    found = results.measurements(facts, "gpt_oss")
    if "checkpoint" not in found:
        return ""
    shape = found["checkpoint"]
    trained = [name for name in ("attention", "experts") if name in found]
    return (
        f"### gpt-oss\n\n{shape['layers']} layers, width {shape['hidden_size']:,}, {shape['experts']} experts, from "
        f"an MXFP4 checkpoint: trained with adapters on {' and on '.join(trained) or 'nothing'}."
    )


def not_measured(facts: dict[str, Any]) -> str:
    """What this result lacks and why, but for the accelerate configs, which say so themselves."""
    lines = []
    for name, section in facts["sections"].items():
        if name == "topologies":
            continue
        lines += [f"- `{name}`, {each['name']}: refused, {each['reason']}" for each in section["refused"]]
        lines += [f"- `{name}`, {each['name']}: failed, {each['error']}" for each in section["failed"]]
        if section["left_out"]:
            lines.append(f"- `{name}`: no time for {len(section['left_out'])}: {'; '.join(section['left_out'])}")
    return "### Not measured\n\n" + "\n".join(lines) if lines else ""


def memory_error(facts: dict[str, Any]) -> float | None:
    """The largest error of the memory estimate, None where no memory was measured."""
    errors = [
        memory.estimate(model_of(each), setup_of(each)).allocated / each["peak"] - 1
        for each in results.measurements(facts, "memory").values()
    ]
    return max(errors, key=abs) if errors else None


def setup_of(measurement: dict[str, Any]) -> Setup:
    """The setup of a memory measurement."""
    kept = measurement["setup"]
    return Setup(**{**kept, "targets": tuple(kept["targets"]), "parameters": tuple(kept["parameters"])})


def model_of(measurement: dict[str, Any]) -> base_model.Model:
    """The model of a measurement."""
    config = measurement["config"] or base_model.bundled()[measurement["model"]]["config"]
    return base_model.from_config(measurement["model"], config, "benchmarks/")
