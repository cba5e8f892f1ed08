"""Conversion of a Llama from llama.cpp's GGUF file to a Hugging Face folder.

transformers can load such a file, but parses its header three times, and does not split digits
before the merges as the `smollm` pre-tokenizer demands (it turns a newline pair before a digit into
two tokens). Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Only what SmolLM2
needs is supported: dense Llama layers, byte-level BPE.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, TokenType, dequantize
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

Metadata = dict[str, Any]

TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_llama_folder(gguf: Path, folder: Path) -> None:
    """Fill `folder` with config, weights, tokenizer, chat template and generation config.

    Weights are written as float32: a dequantised value is a float16 scale times a small integer,
    plus a float16 offset. bfloat16 would halve the disk space and round once more.
    """
    reader = GGUFReader(gguf)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    weights = read_weights(reader, metadata)
    config = llama_config(metadata, tied="lm_head.weight" not in weights)
    config.save_pretrained(folder)
    GenerationConfig(**_special_ids(metadata)).save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    build_tokenizer(metadata).save_pretrained(folder)


def llama_config(metadata: Metadata, *, tied: bool) -> LlamaConfig:
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=metadata["llama.vocab_size"],
        hidden_size=metadata["llama.embedding_length"],
        intermediate_size=metadata["llama.feed_forward_length"],
        num_hidden_layers=metadata["llama.block_count"],
        num_attention_heads=metadata["llama.attention.head_count"],
        num_key_value_heads=metadata["llama.attention.head_count_kv"],
        max_position_embeddings=metadata["llama.context_length"],
        rms_norm_eps=metadata["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": metadata["llama.rope.freq_base"]},
        tie_word_embeddings=tied,
        **_special_ids(metadata),
    )


def read_weights(reader: GGUFReader, metadata: Metadata) -> dict[str, NDArray[np.float32]]:
    """Dequantise all tensors, under their Hugging Face names; matrices are (out, in)."""
    weights = {}
    for tensor in reader.tensors:
        name = hugging_face_name(tensor.name)
        values = dequantize(tensor.data, tensor.tensor_type)
        if "q_proj" in name:
            values = split_rotary_halves(values, metadata["llama.attention.head_count"])
        elif "k_proj" in name:
            values = split_rotary_halves(values, metadata["llama.attention.head_count_kv"])
        weights[name] = values
    return weights


def hugging_face_name(name: str) -> str:
    """Translate `blk.3.attn_q.weight` to `model.layers.3.self_attn.q_proj.weight`."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if match is None or match[2] not in LAYER_NAMES:
        raise ValueError(f"tensor {name!r} does not belong to a dense Llama")
    return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.weight"


def split_rotary_halves(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder each head's matrix rows into the pairs of Hugging Face's rotary embedding.

    llama.cpp rotates rows (0, 1), (2, 3), ...; Hugging Face rotates (0, d/2), (1, d/2 + 1), ...
    """
    rows, columns = values.shape
    pairs = values.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def build_tokenizer(metadata: Metadata) -> PreTrainedTokenizerFast:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds: list[int] = metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    control = [tokens[i] for i, kind in enumerate(kinds) if kind == TokenType.CONTROL]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=metadata["llama.context_length"],
        chat_template=metadata["tokenizer.chat_template"],
        unk_token=tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        **{name[:-3]: tokens[index] for name, index in _special_ids(metadata).items()},
    )


def _special_ids(metadata: Metadata) -> dict[str, Any]:
    return {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }
