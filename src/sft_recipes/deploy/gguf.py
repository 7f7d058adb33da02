"""A run's whole model as GGUF for llama.cpp and Ollama: llama.cpp's own converter makes it, and it is read back.

The comparing happens in a process of its own, `python -m sft_recipes.deploy.gguf DIRECTORY`, which loads the file by
transformers and asks it for the same distributions as the model that it was made from.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from sft_recipes.data import tokens
from sft_recipes.deploy import merge, modelfile
from sft_recipes.environment import quiet_environment
from sft_recipes.errors import InputError, did_you_mean
from sft_recipes.files import sha256, staged, taken, write_whole
from sft_recipes.launch import launch
from sft_recipes.report import serving
from sft_recipes.runs import identity
from sft_recipes.runs.run import Run, rehearsed
from sft_recipes.terminal import count, say, say_error

Facts = dict[str, Any]

PROOF = "gguf.json"
# Those that the converter writes, and those that llama-quantize makes of them.
WHOLE = ("f32", "f16", "bf16", "q8_0")
QUANTISED = (*("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_0", "q4_1", "q4_k_s", "q4_k_m"), *("q5_0", "q5_1", "q5_k_s"))
QUANTS = (*WHOLE, *QUANTISED, "q5_k_m", "q6_k")
# Kullback-Leibler divergence in nats per answer token and top-1 agreement that the file must keep: a merge's limits
# where nothing but the last bits is rounded, and next to nothing in float32. Below eight bits the rounding is what was
# asked for, and these limits find a file that is broken.
LIMITS = {
    "f32": {"kl": 1e-5, "top1": 0.99},
    "whole": {"kl": 0.01, "top1": 0.95},
    "quantised": {"kl": 0.5, "top1": 0.75},
}
_CONVERTER, _QUANTIZER = "convert_hf_to_gguf.py", "llama-quantize"
_GET = "git clone --depth 1 https://github.com/ggml-org/llama.cpp, and name its folder by LLAMA_CPP="


def gguf(
    name: str, quant: str = "q4_k_m", out: Path | None = None, llama_cpp: Path | None = None
) -> tuple[int, Facts]:
    """Write a run's merged model (or the whole one that it trained) as GGUF, with an Ollama Modelfile beside it.

    Returns:
        The exit code (0, or 1 where a program failed or the file is not the model; nothing is left then) and what is
        in gguf.json.

    Raises:
        InputError: The run has no whole model, or a program is missing; every reason at once.
    """
    run, directory, out, converter, quantizer = checked(name, quant.lower(), out, llama_cpp)
    quant = quant.lower()
    environment = quiet_environment(on_cpu=True)
    with run.locked() as lock, staged(out.with_name(f".{out.name}.unfinished")) as staging:
        file, first = f"{name}-{quant}.gguf", quant if quant in WHOLE else "f32"
        steps = [[sys.executable, "-m", "sft_recipes.deploy.convert", str(converter), str(directory)]]
        made = file if quantizer is None else "whole.gguf"
        steps[0] += ["--outfile", str(staging / made), "--outtype", first]
        if quantizer:
            steps.append([str(quantizer), str(staging / made), str(staging / file), quant.upper()])
        steps.append([sys.executable, "-m", "sft_recipes.deploy.gguf", str(staging)])
        split, rows = merge.excerpt(run, merge.ROWS)
        job = {"model": str(directory), "file": file, "quant": quant, "split": split, "rows": rows}
        (staging / "job.json").write_text(json.dumps(job), encoding="utf-8")
        say("converting", f"{directory} into {out / file}")
        for step in steps:
            done = subprocess.run(
                step,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                pass_fds=(lock,),
            )
            if done.returncode:
                said = " ".join((done.stdout.strip().splitlines() or ["it said nothing"])[-1].split())
                say_error(f"not converted: {Path(step[2] if step[1] == '-m' else step[0]).name}: {said}")
                return launch.FAILED, {}
        (staging / "whole.gguf").unlink(missing_ok=True)
        proof = json.loads((staging / PROOF).read_text(encoding="utf-8"))
        if proof["refused"]:
            say_error(f"not converted: {proof['refused']}")
            return launch.FAILED, proof
        tokenizer = tokens.read(directory)
        text, templated = modelfile.modelfile(file, tokenizer, serving.stop_ids(run.values(), directory))
        write_whole(staging / "Modelfile", text)
        staging.rename(out)
    say("gguf", f"{out / file}, {proof['bytes'] / 1e6:,.0f} MB in {quant}")
    if proof["compared"]:
        over = f"{count(proof['answer_tokens'], 'answer token')} of {count(proof['rows'], split + ' row')}"
        say("proof", f"from the merged model: {merge.apart(proof)}, over {over}; tokenized alike")
    else:
        say("not proven", f"{proof['why']}; ask it something before you rely on it")
    say("ollama", f"cd {out} && ollama create {name} -f Modelfile" + ("" if templated else f"\n{modelfile.UNKNOWN}"))
    return launch.FINISHED, proof


def checked(
    name: str, quant: str, out: Path | None, llama_cpp: Path | None
) -> tuple[Run, Path, Path, Path, Path | None]:
    """The run, its whole model, where the file goes, the converter, and the quantiser where one is needed.

    Raises:
        InputError: With everything that stands in the way.
    """
    run = Run.open(name)
    directory, problem = merge.whole(run)
    out = out or run.directory / f"gguf-{quant}"
    problems = [each for each in (problem, rehearsed(run)) if each]
    if quant not in QUANTS:
        problems.append(f"QUANT={quant}: it is one of {', '.join(QUANTS)}{did_you_mean(quant, QUANTS)}")
    if problem := taken(out):
        problems.append(problem)
    if missing := [name for name in ("gguf", "sentencepiece") if importlib.util.find_spec(name) is None]:
        names = " ".join(missing)
        problems.append(f"the packages that convert it and read it back are not all installed; pip install {names}")
    folder = llama_cpp or (Path(os.environ["LLAMA_CPP"]) if os.environ.get("LLAMA_CPP") else None)
    converter = _found(_CONVERTER, folder)
    if converter is None:
        problems.append(f"llama.cpp's {_CONVERTER} is not {_where(folder)}; {_GET}")
    quantizer = _found(_QUANTIZER, folder) if quant in QUANTS and quant not in WHOLE else None
    if quant in QUANTS and quant not in WHOLE and quantizer is None:
        build = "cmake -B build && cmake --build build --target llama-quantize"
        problems.append(
            f"{_QUANTIZER}, which {quant} needs, is not {_where(folder)}; build it in llama.cpp ({build}), or take "
            f"one of {', '.join(WHOLE)}, which need none"
        )
    if problems or converter is None:
        raise InputError(*problems)
    identity.check(run)
    return run, directory, out, converter, quantizer


def _found(program: str, folder: Path | None) -> Path | None:
    """A program of llama.cpp in its folder, or on PATH without one."""
    if folder is None:
        return Path(found) if (found := shutil.which(program)) else None
    places = (folder, folder / "build" / "bin", folder / "bin")
    return next((place / program for place in places if (place / program).is_file()), None)


def _where(folder: Path | None) -> str:
    return f"in {folder}" if folder else "on PATH"


def main(directory: Path) -> None:
    """The process with torch in it: `job.json` to `gguf.json`, in the same directory."""
    from sft_recipes.environment import quiet

    quiet()
    job = json.loads((directory / "job.json").read_text(encoding="utf-8"))
    (directory / "job.json").unlink()
    write_whole(directory / PROOF, json.dumps(compared(job, directory), indent=2) + "\n")


def compared(job: Facts, directory: Path) -> Facts:
    """What the file computes beside the model that it was made from, both in float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    file = directory / job["file"]
    found = {
        "schema": 1,
        "model": job["model"],
        "quant": job["quant"],
        "bytes": file.stat().st_size,
        "sha256": sha256(file),
        "split": job["split"],
    }
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    rows = [merge.tokens(tokenizer, row) for row in job["rows"]]
    texts = [tokenizer.decode(ids) for ids, _ in rows]
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    expected = merge.log_probabilities(model, rows)
    head_dim = getattr(model.config, "head_dim", None)
    del model
    try:
        config = AutoConfig.from_pretrained(directory, gguf_file=job["file"])
        if head_dim:
            # Of some architectures, Qwen3 among them, transformers 5.23 does not read it from GGUF.
            config.head_dim = head_dim
        read = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            gguf_file=job["file"],
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        ).eval()
        words = AutoTokenizer.from_pretrained(directory, gguf_file=job["file"])
    except (ValueError, NotImplementedError) as error:
        # Of an architecture that transformers does not read from GGUF.
        return {**found, "compared": False, "why": " ".join(str(error).split())[:200], "refused": None}
    apart = merge.divergence(expected, merge.log_probabilities(read, rows))
    limits = LIMITS.get(job["quant"], LIMITS["whole" if job["quant"] in WHOLE else "quantised"])
    differing = sum(tokenizer(text)["input_ids"] != words(text)["input_ids"] for text in texts)
    refused = None
    if not (apart["kl"] <= limits["kl"] and apart["top1"] >= limits["top1"]):
        refused = (
            f"the file differs from the model by {apart['kl']:.2g} nats per answer token (limit {limits['kl']:g}) and "
            f"agrees on {apart['top1']:.1%} of the most likely tokens (limit {limits['top1']:.0%}); take a QUANT of "
            "more bits, or a newer llama.cpp"
        )
    elif differing:
        refused = f"its tokenizer makes other tokens of {differing} of {len(texts)} rows; take a newer llama.cpp"
    return {**found, "compared": True, "rows": len(rows), **apart, "limits": limits, "refused": refused}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
