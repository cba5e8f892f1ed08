"""Every range rule of every config key, from both sides."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from typing import Any

import pytest
from omegaconf import OmegaConf

from llamahome import config
from llamahome.config import ConfigError, EvalRoot, ServeRoot, TrainRoot, load_config

# key -> values that are refused, values that are just allowed, keys that must be set with it
RULES: dict[str, tuple[list[Any], list[Any], dict[str, Any]]] = {
    "model.name": (["", "  "], ["x"], {}),
    "model.dtype": (["int8", ""], ["auto", "float32", "bfloat16", "float16"], {}),
    "policy.name": (["snap", "H2O"], ["h2o", "window", "random", "snapkv", "keydiff"], {}),
    "policy.group": (["mean"], ["sum", "max"], {}),
    "policy.layers": (["deep"], ["flat"], {}),
    "policy.positions": (["relative"], ["absolute", "rolling"], {}),
    "policy.decay": ([0], [None, 1], {}),
    "policy.window": ([0], [1, 1000], {}),
    "policy.pattern": ([], [{}, {"L1": None, "L18H2": 132}], {}),
    "policy.sink": ([-1], [0, 128], {}),
    "policy.recent": ([0], [64, 252], {}),
    "policy.interval": ([0, 129], [1, 128], {}),
    "policy.seed": ([-1], [0], {}),
    "policy.budget": ([None, -1, 131], [132], {}),
    "data.format": (["csv"], ["auto", "chat", "sharegpt", "tokens", "custom"], {}),
    "data.train_file": ([""], ["records.jsonl"], {}),
    "data.batching": (["sorted"], ["packing", "padding"], {}),
    "data.overlong": (["keep"], ["cut", "split", "drop"], {}),
    "data.mix": ([[""]], [["a.jsonl"]], {"data.mix_times": [0.5]}),
    "data.mix_times": (
        [[], [0.0], [1.0, 2.0], [float("inf")]],
        [[0.5], [2.0]],
        {"data.mix": ["a"]},
    ),
    "data.train_on": (["user"], ["assistant", "last", "all"], {}),
    "data.max_bad_records": ([-1], [0, 5], {}),
    "data.context_length": ([1], [2], {}),
    "data.eval_fraction": ([0.0, 1.0, -0.1, float("nan")], [0.01, 0.99], {}),
    "data.cache_bytes": ([-1], [0, 10**12], {}),
    "data.limit": ([1], [2, None], {}),
    "trainer.run_name": (["", "a/b", ".hidden", ".."], ["a", "a.b-c"], {}),
    "trainer.method": (["qlora"], ["full", "lora"], {}),
    "trainer.export": (["zip"], ["merged", "adapter"], {"trainer.method": "lora"}),
    "trainer.objective": (["ppo"], ["cross_entropy", "dpo", "orpo"], {"trainer.method": "lora"}),
    "trainer.beta": ([0.0, -1.0], [0.1], {}),
    "trainer.precision": (["fp16"], ["fp32", "mixed", "bf16"], {}),
    "trainer.steps": ([0], [1], {}),
    "trainer.batch_size": ([0], [1], {}),
    "trainer.batch_tokens": ([0], [None, 4096], {"data.batching": "padding"}),
    "trainer.label_smoothing": ([-0.1, 1.0], [0.0, 0.2], {}),
    "trainer.neftune_alpha": ([-1.0, float("inf")], [0.0, 5.0], {}),
    "trainer.accumulation": ([0], [1], {}),
    "trainer.num_workers": ([0], [1], {}),
    "trainer.min_workers": ([0, 3], [1, 2, None], {"trainer.num_workers": 2}),
    "trainer.cpus_per_worker": ([0], [1], {}),
    "trainer.seed": ([-1], [0], {}),
    "trainer.warmup_steps": ([-1], [0], {}),
    "trainer.eval_every": ([-1], [0], {}),
    "trainer.checkpoint_every": ([-1], [0], {}),
    "trainer.max_failures": ([-1], [0], {}),
    "trainer.schedule": (["step"], ["cosine", "linear", "constant"], {}),
    "trainer.early_stopping_patience": ([-1], [0, 1], {}),
    "trainer.eval_batches": ([0], [1], {}),
    "trainer.keep_checkpoints": ([0], [1], {}),
    "trainer.learning_rate": ([0.0, -1e-5, float("inf"), float("nan")], [1e-12], {}),
    "trainer.max_grad_norm": ([0.0], [1e-3], {}),
    "eval.tasks": ([[]], [["recall"]], {}),
    "eval.policies": ([[]], [["carried", "tova"]], {}),
    "eval.budgets": ([[]], [[0.01, 4096.0]], {}),
    "eval.recent_share": ([0.0, 1.5], [0.1, 1.0], {}),
    "eval.texts": ([[], [""]], [["pydoc", "mine.txt"]], {}),
    "eval.contexts": ([[], [15, 2048]], [[16, 4096]], {}),
    "eval.windows": ([0], [1], {}),
    "eval.depths": ([0], [1], {}),
    "eval.samples": ([0], [1], {}),
    "eval.seed": ([-1], [0], {}),
    "trainer.sample_prompts": ([[""]], [[], ["hello"]], {}),
    "trainer.sample_held_out": ([-1], [0, 3], {}),
    "trainer.sample_tokens": ([0], [1], {}),
    "trainer.kl_weight": ([-1.0], [0.0, 2.0], {"trainer.method": "lora"}),
    "trainer.dense_steps": ([-1], [0, 50], {}),
    "trainer.policy_learning_rate": ([0.0], [None, 1e-2], {}),
    "trainer.anneal_steps": ([-1, 200], [0, 199], {}),
    "trainer.budget_jitter": ([-0.1], [0.0, 3.0], {}),
    "trainer.dense_share": ([-0.1, 1.0], [0.0, 0.5], {}),
    "trainer.weight_decay": ([-0.1], [0.0], {}),
    "trainer.lora.r": ([0], [1], {}),
    "trainer.lora.alpha": ([0], [1], {}),
    "trainer.lora.dropout": ([-0.1, 1.0], [0.0, 0.9], {}),
    "trainer.lora.base_bits": ([0, 3, 8], [None, 4], {"trainer.method": "lora"}),
    "trainer.lora.target_modules": ([[], [""], [["q_proj"]], [{"a": 1}]], [["q_proj"]], {}),
    "deepspeed.zero_stage": ([-1, 4], [None, 0, 1, 2, 3], {}),
    "deepspeed.nvme_path": (["/nvme"], [None], {}),
    "deepspeed.buffer_size": ([0], [1], {}),
    "deepspeed.bucket_size": ([0], [1], {}),
    "deepspeed.offload_parameters": ([True], [False], {"deepspeed.zero_stage": 2}),
    "deepspeed.offload_optimizer": ([True], [False], {"trainer.use_gpu": False}),
    "tracking.wandb": (["on"], ["offline", "online", "disabled"], {}),
    "tracking.mlflow": (
        ["", "localhost", "localhost:5000", "/runs"],
        [None, "local", "http://host:5000", "sqlite:////runs/mlflow.db"],
        {},
    ),
    "search.samples": ([-1], [0, 1], {}),
    "search.space": (
        [{"policy": "choice(h2o)"}],
        [{}],
        {},
    ),
    "search.scheduler": (["pbt"], ["asha", "none"], {}),
    "search.metric": (["tokens"], ["eval_loss", "loss", "accuracy", "margin"], {}),
    "search.grace": ([0], [1], {}),
    "search.reduction": ([1], [2], {}),
    "search.seed": ([-1], [0], {}),
    "cluster.num_cpus": ([0], [1, None], {}),
    "cluster.address": (
        ["", "ray://head", "head", "a b:1"],
        ["local", "auto", "10.0.0.1:6379", "ray://head:10001"],
        {},
    ),
    "engine.slots": ([0], [1], {}),
    "engine.max_length": ([1], [2], {}),
    "engine.max_queued": ([0], [1], {}),
    "engine.max_queued_tokens": ([0], [1], {}),
    "engine.prefill_tokens": ([0], [1], {}),
    "engine.slowdown": ([1.0, float("inf")], [1.1], {}),
    "engine.draft_tokens": ([-1], [0], {}),
    "engine.snapshot_bytes": ([-1], [0], {}),
    "engine.snapshot_dir": ([""], ["x", None], {}),
    "engine.snapshot_disk_bytes": ([0], [1], {}),
    "engine.generation_config": (["vllm", ""], ["auto", "none"], {}),
    "engine.runner": (["cuda", "NATIVE"], ["auto", "native", "torch"], {}),
    "engine.weights": (["int4"], ["auto", "int8", "fp32"], {}),
    "engine.kv_dtype": (["float16"], ["auto", "fp32", "fp16", "bf16", "int8"], {}),
    "engine.num_threads": ([-1], [0], {}),
    "engine.device": (["tpu", "cuda:x", "CPU"], ["auto", "cpu", "cuda", "cuda:1"], {}),
    "serve.host": (["0.0.0.0"], ["127.0.0.1"], {}),
    "serve.cors_origins": ([["*"]], [["https://chat.example.org", "http://[::1]:3000"]], {}),
    "serve.tls_cert": (["c.pem"], [], {}),
    "serve.tls_key": (["k.pem"], [], {}),
    "log.format": (["xml", "JSON"], ["text", "json"], {}),
    "log.level": (["TRACE", "info"], ["DEBUG", "ERROR", None], {}),
    "serve.otlp_traces_endpoint": (
        ["localhost:4318", "grpc://host:4317"],
        ["http://localhost:4318/v1/traces", "https://host"],
        {},
    ),
    "serve.traces_share": ([-0.1, 1.1], [0, 0.5, 1], {}),
    "serve.models": ([{"": "my-run"}, {"small": " "}], [{"small": "my-run"}], {}),
    "serve.max_models": ([0], [1], {}),
    "serve.model_dirs": ([["/no/such/folder"]], [["/"]], {}),
    "serve.port": ([0, 65536], [1, 65535], {}),
    "serve.min_replicas": ([-1], [0, 1], {}),
    "serve.max_replicas": ([0, 1], [2, 3], {"serve.min_replicas": 2}),
    "serve.target_slots": ([0.0, 1.1], [0.5, 1.0], {}),
    "serve.target_queued_tokens": ([0], [1], {}),
    "serve.target_ttft_s": ([0.0], [0.5], {}),
    "serve.routing": (["random"], ["prefix", "load"], {}),
    "serve.upscale_delay_s": ([-1.0], [0.0], {}),
    "serve.downscale_delay_s": ([-1.0], [0.0], {}),
    "serve.cpus_per_replica": ([0.0], [0.5, None], {}),
    "serve.gpus_per_replica": ([-1.0], [0.0, 0.5], {}),
    "serve.request_timeout_s": ([0.0], [0.1], {}),
    "serve.first_token_timeout_s": ([0.0], [0.1], {}),
    "serve.token_timeout_s": ([0.0], [0.1], {}),
    "serve.drain_s": ([-1.0], [0.0], {}),
    "serve.max_body_bytes": ([1023], [1024], {}),
    "serve.store_bytes": ([-1], [0, 1], {}),
    "serve.store_s": ([0.0], [0.1], {}),
}
REFUSED = [(key, value) for key, (bad, _, _) in RULES.items() for value in bad]
ALLOWED = [(key, value) for key, (_, good, _) in RULES.items() for value in good]


def load(key: str, value: Any) -> Any:
    composed = OmegaConf.create({})
    for path, setting in {**RULES[key][2], key: value}.items():
        OmegaConf.update(composed, path, setting)
    roots: dict[str, type[Any]] = {"engine": ServeRoot, "serve": ServeRoot, "eval": EvalRoot}
    root = roots.get(key.split(".")[0], TrainRoot)
    return load_config(composed, root)


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_out_of_range_is_refused_by_name(key, value):
    with pytest.raises(ConfigError) as caught:
        load(key, value)
    message = str(caught.value)
    assert message.startswith(f"{key}={value!r} is not allowed: ")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(("key", "value"), ALLOWED)
def test_just_inside_the_range_is_allowed(key, value):
    loaded = load(key, value)
    for name in key.split("."):
        loaded = getattr(loaded, name)
    assert loaded == value


def test_a_policy_that_never_evicts_takes_no_budget():
    with pytest.raises(ConfigError, match=r"policy\.budget=256 .* set policy\.budget=null"):
        config.PolicyConfig(name="full", budget=256)
    assert config.PolicyConfig(name="full", budget=None).budget is None


def test_a_carried_policy_takes_a_budget_but_no_pattern():
    assert config.PolicyConfig(name="carried", budget=100).budget == 100
    with pytest.raises(ConfigError, match=r"policy\.budget=0 is not allowed"):
        config.PolicyConfig(name="carried", budget=0)
    with pytest.raises(ConfigError, match=r"policy\.pattern=.* takes no pattern; leave it out"):
        config.PolicyConfig(name="carried", budget=None, pattern={"L1": 200})


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ({"18.2": None}, r"pattern='18\.2' is not allowed: .* like L18 or L18H2"),
        ({"L1H": 200}, r"pattern='L1H' is not allowed"),
        ({"L1": 131}, r"pattern\.L1=131 is not allowed: it must hold sink \+ recent = 4 \+ 128"),
        ({"L0": 200, "L1H0": 0}, r"pattern\.L1H0=0 is not allowed"),
    ],
)
def test_a_pattern_names_heads_and_holds_what_is_protected(pattern, message):
    with pytest.raises(ConfigError, match=message):
        config.PolicyConfig(pattern=pattern)


def test_the_smallest_layer_of_a_pyramid_holds_what_is_protected():
    assert config.PolicyConfig(budget=264, layers="pyramid").layers == "pyramid"
    with pytest.raises(ConfigError, match=r"budget=262 .* last layer of the pyramid has 131"):
        config.PolicyConfig(budget=262, layers="pyramid")


@pytest.mark.parametrize("name", ["full", "carried"])
def test_policies_that_never_evict_take_no_pattern(name):
    with pytest.raises(ConfigError, match=r"policy\.pattern=\{'L0': None\} is not allowed"):
        config.PolicyConfig(name=name, budget=None, pattern={"L0": None})


def test_adapters_are_exported_by_lora_alone():
    with pytest.raises(ConfigError, match=r"trainer\.export='adapter' .* trainer\.method=lora"):
        config.TrainerConfig(export="adapter")


def test_a_dense_teacher_needs_adapters_to_take_off():
    with pytest.raises(ConfigError, match=r"trainer\.kl_weight=1\.0 .* trainer\.method=lora"):
        config.TrainerConfig(kl_weight=1.0)


@pytest.mark.parametrize("key", ["learning_rate", "policy_learning_rate"])
def test_a_learning_rate_that_overflows_is_refused(key):
    with pytest.raises(ConfigError, match=rf"trainer\.{key}=1e\+39 .* at most 100"):
        config.TrainerConfig(**{key: 1e39})


def test_early_stopping_needs_evaluations():
    with pytest.raises(ConfigError, match=r"early_stopping_patience=2 .* trainer\.eval_every"):
        config.TrainerConfig(early_stopping_patience=2, eval_every=0)


def test_a_dense_stage_comes_before_one_that_evicts():
    with pytest.raises(ConfigError, match=r"trainer\.dense_steps=5 .* policy\.name=full"):
        TrainRoot(policy=config.PolicyConfig.dense(), trainer=config.TrainerConfig(dense_steps=5))


def test_tokens_fill_batches_that_are_padded():
    with pytest.raises(ConfigError, match=r"batch_tokens=4096 .* set data\.batching=padding"):
        TrainRoot(trainer=config.TrainerConfig(batch_tokens=4096))


def test_answers_are_compared_without_smoothing():
    with pytest.raises(ConfigError, match=r"label_smoothing=0\.1 .*objective=orpo .* set it to 0"):
        config.TrainerConfig(objective="orpo", label_smoothing=0.1)


def test_parameters_are_offloaded_under_zero_3_alone():
    with pytest.raises(ConfigError, match=r"deepspeed\.offload_parameters=True .*zero_stage=3"):
        config.DeepSpeedConfig(zero_stage=2, offload_parameters=True)
    assert config.DeepSpeedConfig(zero_stage=3, offload_parameters=True).offload_parameters


def test_a_disk_is_for_what_zero_3_offloads():
    with pytest.raises(ConfigError, match=r"deepspeed\.nvme_path='/n' .*offload_optimizer or"):
        config.DeepSpeedConfig(zero_stage=3, nvme_path="/n")
    with pytest.raises(ConfigError, match=r"deepspeed\.nvme_path='/n' .*zero_stage=3 alone"):
        config.DeepSpeedConfig(zero_stage=2, offload_optimizer=True, nvme_path="/n")
    assert config.DeepSpeedConfig(zero_stage=3, offload_optimizer=True, nvme_path="/n").nvme_path


def test_without_zero_nothing_is_offloaded_and_bf16_is_refused():
    with pytest.raises(ConfigError, match=r"deepspeed\.offload_optimizer=True .*zero_stage to 1"):
        config.DeepSpeedConfig(zero_stage=0, offload_optimizer=True)
    with pytest.raises(ConfigError, match=r"deepspeed\.zero_stage=0 .*trainer\.precision=bf16"):
        TrainRoot(
            deepspeed=config.DeepSpeedConfig(zero_stage=0),
            trainer=config.TrainerConfig(precision="bf16"),
        )


@pytest.mark.parametrize(
    ("trainer", "named"),
    [
        ({"num_workers": 4, "min_workers": 3}, r"trainer\.accumulation=1 .* a multiple of 3"),
        (
            {"num_workers": 4, "min_workers": 3, "accumulation": 3},
            r"trainer\.eval_batches=8 .* a multiple of 3",
        ),
    ],
)
def test_every_number_of_elastic_workers_shares_the_global_batch(trainer, named):
    with pytest.raises(ConfigError, match=named):
        config.TrainerConfig(**trainer)
    config.TrainerConfig(num_workers=4, min_workers=3, accumulation=3, eval_batches=6)


def test_every_rule_has_a_case():
    modules = [m for n, m in sys.modules.items() if n.startswith("llamahome.config.")]
    tree = ast.parse(
        "\n".join(inspect.getsource(m).replace("from __future__", "#") for m in modules)
    )
    named = {
        constant.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in ("require", "at_least", "above", "fraction", "one_of")
        for argument in call.args
        for constant in ast.walk(argument)
        if isinstance(constant, ast.Constant)
        and isinstance(constant.value, str)
        and re.fullmatch(r"[a-z]+(\.[a-z_]+)+", constant.value)
    }
    assert len(named) > 30
    assert named <= set(RULES)
