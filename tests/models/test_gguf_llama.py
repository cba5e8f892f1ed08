from __future__ import annotations

import numpy as np
import pytest

from llamahome.models.gguf_llama import hugging_face_name, split_rotary_halves


def test_a_rotated_pair_ends_up_half_a_head_apart() -> None:
    # Two heads of four matrix rows; llama.cpp stores the pairs (0, 2), (1, 3) side by side.
    stored = np.array([0, 2, 1, 3, 10, 12, 11, 13], dtype=np.float32)[:, None]
    assert split_rotary_halves(stored, heads=2)[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


def test_tensors_get_their_hugging_face_names() -> None:
    assert hugging_face_name("token_embd.weight") == "model.embed_tokens.weight"
    assert hugging_face_name("blk.12.attn_k.weight") == "model.layers.12.self_attn.k_proj.weight"


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight", "rope_freqs"])
def test_a_tensor_of_another_architecture_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        hugging_face_name(name)
