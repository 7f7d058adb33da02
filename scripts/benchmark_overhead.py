"""Wall time of the demo through us and through stock `trl sft` on the same resolved recipe, side by side.

Both are timed as whole commands, in turn, after two steps of each that are not counted, and the ratio of each pair is
printed. Run: `make benchmark` or `python scripts/benchmark_overhead.py [PAIRS]`.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

BIN = Path(sys.executable).parent
# For equal work: stock TRL keeps adapters on a quantised base in bfloat16, and on CPUs with AVX512-BF16 it trains on
# without gradients through the base once it has evaluated, so both evaluate at the end alone.
SAME_WORK = "adapter_dtype=bfloat16 eval_on_start=false eval_strategy=epoch save_strategy=epoch"


def timed(command: list[str]) -> float:
    """Seconds that a command takes; it must succeed."""
    began = time.perf_counter()
    # The number of threads that our launcher gives one process; accelerate's own default would be one.
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(
            f"{' '.join(command)} failed with code {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
    return time.perf_counter() - began


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir="runs" if Path("runs").is_dir() else None) as scratch:
        plain = Path(scratch) / "demo.yaml"
        timed([str(BIN / "sft-recipes"), "export", "demo", "--set", SAME_WORK, "--out", str(plain)])
        recipe = yaml.safe_load(plain.read_text(encoding="utf-8"))
        recipe["output_dir"] = f"{scratch}/stock"
        plain.write_text(yaml.safe_dump(recipe), encoding="utf-8")

        def ours(label: str, settings: str = "") -> float:
            name = f"{Path(scratch).name}-{label}"
            command = [str(BIN / "sft-recipes"), "train", "demo", "--name", name, "--set", SAME_WORK]
            seconds = timed([*command, "--set", settings])
            shutil.rmtree(Path("runs") / name)
            return seconds

        def stock(*arguments: str) -> float:
            shutil.rmtree(f"{scratch}/stock", ignore_errors=True)
            launcher = ["--accelerate_config", "accelerate_configs/cpu.yaml"]
            return timed([str(BIN / "trl"), "sft", "--config", str(plain), *launcher, *arguments])

        ours("warm", "max_steps=2")
        stock("--max_steps", "2")
        results = []
        for index in range(1, pairs + 1):
            results.append((ours(str(index)), stock()))
            print(f"pair {index}: sft-recipes {results[-1][0]:.1f} s, trl sft {results[-1][1]:.1f} s", flush=True)
    ratio = statistics.median(a / b for a, b in results)
    print(json.dumps({"pairs": len(results), "median_ratio": round(ratio, 3)}))
    print(f"sft-recipes takes {ratio:.3f} times as long as trl sft (median of {len(results)} pairs)")


if __name__ == "__main__":
    main()
