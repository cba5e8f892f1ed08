"""The fast path on a CPU: the C++ model of `llamahome.native` over tiled slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from llamahome.attention import Policy
from llamahome.cache import Slots
from llamahome.cache.plane import PlaneShape
from llamahome.cache.tiled import TiledPlane
from llamahome.engine.runner import RowInput, StepOutput
from llamahome.native import load_native
from llamahome.native import weights as pack

# Rotary embeddings whose angles depend on the position alone.
STATIC_ROPE = ("default", "linear", "llama3", "yarn")
MAX_GROUP = 24  # kMaxQueries of csrc/kernels.h


def unsupported(model: PreTrainedModel, policy: Policy) -> str | None:
    """Why the kernels cannot compute this model under this policy; None when they can."""
    config = model.config
    if model.device.type != "cpu":
        return f"the model is on {model.device}"
    if config.model_type not in ("llama", "mistral", "qwen2"):
        return f"model_type={config.model_type!r} is not among llama, mistral, qwen2"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"sliding_window={config.sliding_window}"
    if config.hidden_act != "silu":
        return f"hidden_act={config.hidden_act!r} is not silu"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in STATIC_ROPE:
        return f"rope_type={rope!r} depends on the length of the text"
    if policy.rolling:
        return "policy.positions='rolling' rotates keys at every step"
    return _unsupported_shape(model)


def _unsupported_shape(model: PreTrainedModel) -> str | None:
    config = model.config
    if _head_dim(model) % 16:
        return f"head_dim={_head_dim(model)} is no multiple of 16"
    if config.hidden_size % 32:
        return f"hidden_size={config.hidden_size} is no multiple of 32"
    group = config.num_attention_heads // config.num_key_value_heads
    if group > MAX_GROUP:
        return f"{group} query heads share a KV head, more than {MAX_GROUP}"
    return None


@dataclass(frozen=True)
class _Committed:
    """What `Slots.commit` asks of a step."""

    rows: list[int]
    tokens: list[int]


class NativeRunner:
    """Prefill and decode of any mix of rows in one parallel region, without padding.

    Args:
        model: a Llama on the CPU, float32 or 16 bits; with adapters, PEFT's model of it.
        int8: weights in 8 bits (see `llamahome.native.weights`), else float32.
        kv_dtype: of keys and values: float32, float16 or int8.
        threads: of the step; 0 is torch's number.
        isa: `auto`, or the name of an instruction set.

    Raises:
        NativeUnavailableError: when the kernels cannot be built.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        policy: Policy,
        *,
        num_slots: int,
        max_length: int,
        int8: bool = True,
        kv_dtype: torch.dtype = torch.float16,
        threads: int = 0,
        isa: str = "auto",
    ) -> None:
        load_native()
        self.adapters: list[str] = list(model.peft_config) if isinstance(model, PeftModel) else []
        plain: PreTrainedModel = model.get_base_model() if self.adapters else model  # type: ignore[assignment, operator]
        config = plain.config
        self.vocab_size: int = config.vocab_size
        head_dim = _head_dim(plain)
        self._model = torch.classes.llamahome.Model(
            [
                config.hidden_size,
                config.num_attention_heads,
                config.num_key_value_heads,
                head_dim,
                config.intermediate_size,
            ],
            config.rms_norm_eps,
            plain.base_model.layers[0].self_attn.scaling,
            threads or torch.get_num_threads(),
            isa,
        )
        with torch.no_grad():
            _pack(self._model, plain, self.adapters, int8=int8, max_length=max_length)
        budgets: dict[int | None, int] = {}
        self.slots = Slots.for_model(
            plain,
            policy,
            num_slots=num_slots,
            max_length=max_length,
            dtype=kv_dtype,
            allocate=lambda shape: self._allocate(shape, kv_dtype, budgets),
        )
        self._budgets = list(budgets)
        kv_name = str(kv_dtype).removeprefix("torch.")
        self.name = (
            f"native {self._model.isa()}, {'int8' if int8 else 'float32'} weights, {kv_name} KV"
        )

    def _allocate(
        self, shape: PlaneShape, dtype: torch.dtype, budgets: dict[int | None, int]
    ) -> TiledPlane:
        budget = shape.policy.config.budget
        index = 0 if shape.heads[0] == 0 else self._planes_of_layer
        self._planes_of_layer = index + 1
        return TiledPlane.allocate(
            shape, dtype, self._model, index, budgets.setdefault(budget, len(budgets))
        )

    def forward(self, rows: Sequence[RowInput]) -> StepOutput:
        slots = self.slots
        counts = [len(row.tokens) for row in rows]
        used = [row.slot for row in rows]
        slots.check(used, counts)
        ids = [token for row in rows for token in row.tokens]
        wanted, last, spans = _wanted(rows, counts)
        hidden, logits = self._model.forward(
            torch.tensor(ids),
            torch.tensor(
                [
                    [row.slot, n, slots.lengths[row.slot], slots.policy.config.group == "max"]
                    for row, n in zip(rows, counts, strict=True)
                ]
            ),
            torch.tensor(
                [
                    [slots.policies_of(slot)[budget].held(slots.lengths[slot]) for slot in used]
                    for budget in self._budgets
                ]
            ),
            torch.tensor(self._weights(used, counts), dtype=torch.float32),
            torch.tensor(self._adapters(rows, counts)),
            torch.tensor(wanted),
            True,
        )
        slots.commit(_Committed(used, counts))
        logits = logits[:, : self.vocab_size]
        every = {
            i: (hidden if rows[i].every == "hidden" else logits)[first:end]
            for i, (first, end) in spans.items()
        }
        whole = len(wanted) == len(rows)
        return StepOutput(logits=logits if whole else logits[last], every=every)

    def _weights(self, used: list[int], counts: list[int]) -> list[float]:
        """Of each token's probabilities in the mass."""
        weights: list[float] = []
        for slot, n in zip(used, counts, strict=True):
            mass = next((p.mass for p in self.slots.policies_of(slot).values() if p.mass), None)
            offset = self.slots.lengths[slot] % self.slots.policy.interval
            weights += [0.0] * n if mass is None else mass.weights[offset : offset + n]
        return weights

    def _adapters(self, rows: Sequence[RowInput], counts: list[int]) -> list[int]:
        indices: list[int] = []
        for row, n in zip(rows, counts, strict=True):
            indices += [-1 if row.adapter is None else self.adapters.index(row.adapter)] * n
        return indices


def _wanted(
    rows: Sequence[RowInput], counts: list[int]
) -> tuple[list[int], list[int], dict[int, tuple[int, int]]]:
    """Tokens whose outcome is asked for; where each row's last and a row's whole are among them."""
    wanted: list[int] = []
    last: list[int] = []
    spans: dict[int, tuple[int, int]] = {}
    first = 0
    for i, (row, n) in enumerate(zip(rows, counts, strict=True)):
        begin = len(wanted)
        wanted += range(first if row.every else first + n - 1, first + n)
        last.append(len(wanted) - 1)
        if row.every:
            spans[i] = (begin, len(wanted))
        first += n
    return wanted, last, spans


def _head_dim(model: PreTrainedModel) -> int:
    config = model.config
    own: int | None = getattr(config, "head_dim", None)
    return own or config.hidden_size // config.num_attention_heads


def _pack(
    native: Any, model: PreTrainedModel, adapters: list[str], *, int8: bool, max_length: int
) -> None:
    """Every weight into the C++ model, layer by layer."""
    decoder = model.base_model
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        native.add_layer(
            _norm(layer.input_layernorm),
            _linear([attention.q_proj, attention.k_proj, attention.v_proj], adapters, int8),
            _linear([attention.o_proj], adapters, int8),
            _norm(layer.post_attention_layernorm),
            _linear([mlp.gate_proj, mlp.up_proj], adapters, int8, interleave=True),
            _linear([mlp.down_proj], adapters, int8),
        )
    embedding = model.get_input_embeddings().weight.detach()
    native.set_ends(
        embedding.half() if int8 else embedding.float(),
        _norm(decoder.norm),
        _linear([model.get_output_embeddings()], [], int8),
    )
    probe = torch.zeros(1, 1)
    cos, sin = decoder.rotary_emb(probe, torch.arange(max_length)[None])
    half = cos.shape[-1] // 2
    native.set_rotary(cos[0, :, :half].float(), sin[0, :, :half].float())
    for index, name in enumerate(adapters):
        _set_norms(native, decoder, index, name)


def _linear(
    modules: list[nn.Module], adapters: list[str], int8: bool, *, interleave: bool = False
) -> Any:
    """Linear layers that read the same, as one; with their adapters."""
    plain = [m.get_base_layer() if isinstance(m, LoraLayer) else m for m in modules]
    weight = torch.cat([module.weight for module in plain])  # type: ignore[misc]
    biases = [module.bias for module in plain]
    bias: Tensor | None = None
    if any(b is not None for b in biases):
        bias = torch.cat(
            [
                torch.zeros(m.weight.shape[0]) if m.bias is None else m.bias  # type: ignore[misc, union-attr, arg-type, operator]
                for m in plain
            ]
        )
    packed = pack.linear(weight, bias, int8=int8, interleave=interleave)
    for index, name in enumerate(adapters):
        low_rank = _low_rank(modules, name)
        if low_rank is not None:
            packed.set_adapter(index, *pack.adapter(*low_rank, interleave=interleave))
    return packed


def _low_rank(modules: list[nn.Module], name: str) -> tuple[Tensor, Tensor] | None:
    """An adapter's down (r, K) and up (N, r) over all of these, which share what they read."""
    with_it = [isinstance(m, LoraLayer) and name in m.lora_A for m in modules]
    if not any(with_it):
        return None
    downs, ups = [], []
    for module, has in zip(modules, with_it, strict=True):
        if has:
            assert isinstance(module, LoraLayer)
            downs.append(module.lora_A[name].weight)
            ups.append(module.lora_B[name].weight * module.scaling[name])
        else:
            plain = module.get_base_layer() if isinstance(module, LoraLayer) else module
            ups.append(torch.zeros(plain.weight.shape[0], 0))  # type: ignore[misc, index, arg-type, union-attr]
    return torch.cat(downs), torch.block_diag(*ups)


def _norm(module: nn.Module) -> Tensor:
    plain = module.original_module if isinstance(module, ModulesToSaveWrapper) else module
    weight: Tensor = plain.weight  # type: ignore[assignment, union-attr]
    return weight.detach().float().contiguous()


def _set_norms(native: Any, decoder: nn.Module, index: int, name: str) -> None:
    """Norms that an adapter trained, in place of the model's own."""
    places: list[tuple[int, bool, nn.Module]] = [(-1, False, decoder.norm)]  # type: ignore[list-item]
    for i, layer in enumerate(decoder.layers):  # type: ignore[arg-type, var-annotated]
        places += [(i, False, layer.input_layernorm), (i, True, layer.post_attention_layernorm)]
    for layer_idx, mlp, module in places:
        if isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save:
            native.set_adapter_norm(layer_idx, mlp, index, _norm(module.modules_to_save[name]))
