"""The command that serves a run: what vLLM is told, what it cannot serve, and how an answer is asked and ended."""

import argparse
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished import FLOAT32, restate

from sft_recipes.cli import main
from sft_recipes.deploy import serve
from sft_recipes.errors import InputError
from sft_recipes.files import sealed, sha256
from sft_recipes.report import card, serving
from sft_recipes.runs.run import Run

pytest_plugins = ["finished"]

Finished = Callable[..., Run]
Merge = Callable[..., tuple[int, dict[str, Any]]]


def as_vllm_reads(command: list[str]) -> argparse.Namespace:
    """The options, by a parser of those that vLLM 0.26 has among others; what it has not is refused."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("model")
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--lora-modules", nargs="+")
    parser.add_argument("--max-lora-rank", type=int, choices=[1, 8, 16, 32, 64, 128, 256, 320, 512])
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float", "float16", "float32", "half"])
    parser.add_argument("--quantization", choices=["bitsandbytes"])
    for name in ("revision", "tokenizer", "chat-template", "host", "served-model-name"):
        parser.add_argument(f"--{name}")
    for name in ("port", "max-model-len"):
        parser.add_argument(f"--{name}", type=int)
    assert command[:2] == ["vllm", "serve"]
    return parser.parse_args(command[2:])


def test_the_adapter_and_the_merged_model_are_served_as_they_were_trained(
    finished: Finished, merge_here: Merge, capsys: pytest.CaptureFixture
) -> None:
    run = finished(**FLOAT32)
    assert main(["serve", "tuned", "--port", "8123", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    asked = as_vllm_reads(found["command"])
    assert (asked.model, asked.host, asked.port, asked.revision) == ("model", "127.0.0.1", 8123, None)
    assert asked.enable_lora and asked.lora_modules == ["tuned=runs/tuned/adapter"] and asked.max_lora_rank == 8
    assert asked.tokenizer == "runs/tuned/adapter" and Path(asked.chat_template).is_file()
    # vLLM's LoRA computes in 16 bits, and the base was not quantised.
    assert (asked.dtype, asked.max_model_len, asked.quantization) == ("bfloat16", run.values()["max_length"], None)
    from sft_recipes.evaluate import scoring

    _, tokenizer = scoring.load(run.values(), run.adapter, on_cpu=True)
    assert found["body"]["stop_token_ids"] == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    page = (run.directory / "serve.md").read_text()
    assert found["file"] == "runs/tuned/serve.md" and found["shell"] in page and found["curl"] in page
    assert 'base_url="http://127.0.0.1:8123/v1"' in page and '"stop_token_ids": [2]' in page
    assert shlex.split(found["shell"].replace("\\\n", "")) == found["command"]
    curl = shlex.split(found["curl"].replace("\\\n", ""))
    assert json.loads(curl[-1]) == found["body"] and curl[1] == "http://127.0.0.1:8123/v1/chat/completions"
    assert "is not installed here" in captured.err

    with pytest.raises(InputError, match=r"no merged model; make one with: make merge RUN=tuned"):
        serve.serve("tuned", merged=True)
    assert merge_here("tuned")[0] == 0
    merged = serve.serve("tuned", merged=True)
    asked = as_vllm_reads(merged["command"])
    assert (asked.model, asked.dtype, asked.served_model_name) == ("runs/tuned/merged", "float32", "tuned")
    assert not asked.enable_lora and merged["body"] == found["body"]
    # Whoever asks for no stop tokens gets the same ones.
    config = json.loads((run.directory / "merged" / "generation_config.json").read_text())
    assert config["eos_token_id"] in (merged["body"]["stop_token_ids"], merged["body"]["stop_token_ids"][0])
    compile(page.split("```python\n")[1].split("```")[0], "serve.md", "exec")

    (run.directory / "merged" / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="is not what was merged"):
        serve.serve("tuned", merged=True)


@pytest.mark.parametrize(("rank", "given"), [(1, 1), (2, 8), (16, 16), (48, 64), (300, 320), (512, 512), (513, None)])
def test_the_smallest_rank_of_vllm_that_holds_the_run_s(rank: int, given: int | None) -> None:
    assert serving.rank_of({"lora_r": rank}) == given


def test_what_vllm_cannot_serve_is_refused_at_once_and_the_card_says_so(
    finished: Finished, capsys: pytest.CaptureFixture
) -> None:
    run = finished(**FLOAT32)
    text = run.recipe.read_text().replace("lora_r: 8", "lora_r: 1024")
    text += "use_dora: true\nlora_modules_to_save: [lm_head]\nmodel_init_kwargs: {rope_theta: 5000}\n"
    run.recipe.write_text(text)
    assert main(["serve", "tuned", "--port", "70000"]) == 2
    said = capsys.readouterr().err
    reasons = ["PORT=70000", "use_dora", "lora_modules_to_save", "lora_r: 1024", "model_init_kwargs: rope_theta"]
    assert all(reason in said for reason in reasons) and said.count("error: ") == len(reasons)
    assert said.count("make merge RUN=tuned") == 4
    assert not (run.directory / "serve.md").exists()
    written = card.card(run)
    assert "once it is merged into its base" in written and "vllm serve" not in written


def test_a_base_of_the_hub_is_served_at_the_commit_that_was_trained_on(finished: Finished) -> None:
    run = finished(**FLOAT32)
    text = run.recipe.read_text().replace("model_name_or_path: model", "model_name_or_path: Qwen/Qwen3-8B")
    text = text.replace("load_in_4bit: false", "load_in_4bit: true").replace("dtype: float32", "dtype: bfloat16")
    run.recipe.write_text(text)
    config = run.adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"model"', '"Qwen/Qwen3-8B"'))
    facts = run.facts()
    measured = {**facts["measured"], "saved": sealed(run.adapter, "README.md")}
    files = {path.name: sha256(path) for path in (run.recipe, run.accelerate)}
    identity = {**facts["identity"], "files": files, "base": {"commit": "c" * 40, "files": {}}}
    restate(run, identity=identity, measured=measured)
    asked = as_vllm_reads(serve.serve("tuned")["command"])
    assert (asked.model, asked.revision, asked.dtype) == ("Qwen/Qwen3-8B", "c" * 40, "bfloat16")
    assert asked.quantization == "bitsandbytes"
    assert "put into NF4 by bitsandbytes" in (run.directory / "serve.md").read_text()
    said = card.card(run)
    assert "vllm serve Qwen/Qwen3-8B \\\n" in said and "PATH OR HUB ID OF THIS DIRECTORY" in said
    assert "runs/tuned" not in said


def test_where_vllm_is_installed_the_command_becomes_it(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(**FLOAT32)
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    became: list[Any] = []

    def become(*arguments: Any) -> None:
        became.extend(arguments)
        raise SystemExit

    # It would end this process.
    monkeypatch.setattr(serve.os, "execve", become)
    with pytest.raises(SystemExit):
        serve.serve(run.name)
    path, command, environment = became
    assert path == str(program) and environment["VLLM_NO_USAGE_STATS"] == "1"
    assert as_vllm_reads(command).lora_modules == ["tuned=runs/tuned/adapter"]
