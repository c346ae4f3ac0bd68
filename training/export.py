"""The exporter: what transformers loads, and beside it what OpenVINO GenAI loads."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from training.ir import write_ir
from training.model import Shape
from training.tokenizer import END, END_ID, PAD, PAD_ID, START, TEMPLATE
from training.train import load_model

MAX_NEW_TOKENS = 96


def export(made: Path, folder: Path) -> None:
    """Write the checkpoint and the tokenizer that training has made as a model folder.

    The weights are rounded to bfloat16 once, as they were in every training step, and both formats hold the
    rounded numbers; `float32` in the config has transformers compute with full precision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = load_model(made / "checkpoint.pt").to(torch.bfloat16)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    _write_json(folder / "config.json", _config(model.shape))
    _write_json(folder / "generation_config.json", _generation_config())
    _write_tokenizer(made, folder)
    write_ir(model.float(), folder)


def _write_tokenizer(made: Path, folder: Path) -> None:
    tokenizer = json.loads((made / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.width // shape.heads,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "rope_theta": shape.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": END_ID,
        "pad_token_id": PAD_ID,
        "dtype": "float32",
    }


def _generation_config() -> dict[str, Any]:
    """Greedy by default, and never past the end of the turn."""
    ends = {"eos_token_id": END_ID, "pad_token_id": PAD_ID}
    return {**ends, "do_sample": False, "max_new_tokens": MAX_NEW_TOKENS}


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [START],
        "model_max_length": Shape().context,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
    }
