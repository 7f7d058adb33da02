"""GGUF: what is missing is said first, the file is read back, and Ollama's template is the model's.

llama.cpp's converter is not here; in its place a file is written with its own package, `gguf`, by another road.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from finished import FLOAT32

from sft_recipes.cli import main
from sft_recipes.deploy import convert, gguf, modelfile
from sft_recipes.runs.run import Run

pytest_plugins = ["finished"]


def write_gguf(model: Path, file: Path, *, damaged: bool = False) -> None:
    """A Qwen3 as GGUF in float32, tensor by tensor."""
    from gguf import MODEL_ARCH, GGUFWriter, TokenType, get_tensor_name_map
    from safetensors.torch import load_file

    config = json.loads((model / "config.json").read_text())
    words = json.loads((model / "tokenizer.json").read_text())
    writer = GGUFWriter(file, "qwen3")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    added = {token["id"]: token["content"] for token in words["added_tokens"]}
    vocabulary = {**{number: token for token, number in words["model"]["vocab"].items()}, **added}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([vocabulary[number] for number in range(len(vocabulary))])
    kinds = [TokenType.CONTROL if number in added else TokenType.NORMAL for number in range(len(vocabulary))]
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in words["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    names = get_tensor_name_map(MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    for name, tensor in load_file(model / "model.safetensors").items():
        written = tensor.float().numpy()
        if damaged and "down_proj" in name:
            written = written[::-1].copy()
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), written)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_file_is_read_back_and_one_that_is_another_model_is_refused(
    finished: Callable[..., Run],
    merge_here: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    run = finished(**FLOAT32)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    assert main(["gguf", "tuned", "--quant", "q4_k_x"]) == 2
    said = capsys.readouterr().err
    assert "make merge RUN=tuned" in said and "did you mean q4_k_" in said and "LLAMA_CPP=" in said
    assert main(["gguf", "tuned", "--llama-cpp", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"convert_hf_to_gguf.py is not in {tmp_path}" in said and "--target llama-quantize" in said
    assert merge_here("tuned")[0] == 0
    capsys.readouterr()

    (tmp_path / "convert_hf_to_gguf.py").touch()
    damaged, run_it = True, subprocess.run

    def work(command: list[str], **options: Any) -> Any:
        if "-m" not in command:
            return run_it(command, **options)
        if command[2] == "sft_recipes.deploy.convert":
            assert command[-2:] == ["--outtype", "f32"]
            write_gguf(Path(command[4]), Path(command[6]), damaged=damaged)
        else:
            gguf.main(Path(command[-1]))
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.setattr(gguf.subprocess, "run", work)
    ask = ["gguf", "tuned", "--quant", "f32", "--llama-cpp", str(tmp_path)]
    assert main(ask) == 1
    assert "nats per answer token" in capsys.readouterr().err and not list(run.directory.glob("*gguf*"))
    damaged = False
    assert main([*ask, "--json"]) == 0
    proof = json.loads(capsys.readouterr().out)
    assert proof["compared"] and proof["kl"] < 1e-6 and proof["top1"] == 1
    written = (run.directory / "gguf-f32" / "Modelfile").read_text()
    assert written.startswith("FROM ./tuned-f32.gguf\n") and 'PARAMETER stop "<|im_end|>"\n' in written
    turn = '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
    assert turn in written and written.endswith('{{ end }}{{ end }}<|im_start|>assistant\n"""\n')
    assert main(ask) == 2 and "exists and is never overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "known"), [("smollm2", True), ("chatml", True), ("gpt_oss", False)])
def test_a_template_is_ollama_s_where_it_is_a_text_around_each_turn(tiny_model: Path, name: str, known: bool) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    tokenizer.chat_template = (ROOT / "models" / f"{name}.jinja").read_text()
    found = modelfile.go_template(tokenizer)
    assert (found is not None) == known
    if name == "smollm2":
        system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        assert found is not None and found.startswith("{{ if not .System }}" + system + "{{ end }}{{ range .Messages")


def test_a_tokenizer_is_gpt_2_s_where_it_splits_so_and_no_other(tiny_model: Path) -> None:
    words = json.loads((tiny_model / "tokenizer.json").read_text())
    assert convert.plain_byte_level(words)
    assert not convert.plain_byte_level({**words, "normalizer": {"type": "NFC"}})
    digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, words["pre_tokenizer"]]}
    assert not convert.plain_byte_level({**words, "pre_tokenizer": digits})
