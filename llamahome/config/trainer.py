"""Training: optimisation, workers, checkpoints, ZeRO."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from llamahome.config.checks import above, at_least, fraction, one_of, require
from llamahome.config.fixed import FIXED, fixed

OBJECTIVES = ("cross_entropy", "dpo", "orpo")


@dataclass(kw_only=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685); used when trainer.method is lora.

    Attributes:
        train_norms: also train the decoder's norms, a few thousand numbers that shift what every
            layer attends to (cf. LongLoRA, Chen et al. 2023, arXiv 2309.12307, section 3.3).
        target_modules: the last part of their names; `all-linear` alone means every linear map but
            the output layer.
        rslora: scale adapters by alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732), so that a
            large r learns as fast as a small one.
        dora: learn magnitudes apart from directions (Liu et al. 2024, arXiv 2402.09353).
        base_bits: 4 keeps the linear maps below the adapters in 4 bits (QLoRA: NF4 with double
            quantisation, Dettmers et al. 2023, arXiv 2305.14314); embeddings, norms, the output
            layer and adapters stay in fp32. None keeps all in trainer.precision.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"]
    )
    train_norms: bool = True
    rslora: bool = False
    dora: bool = False
    base_bits: int | None = None

    def __post_init__(self) -> None:
        at_least("trainer.lora.r", self.r, 1)
        at_least("trainer.lora.alpha", self.alpha, 1)
        fraction("trainer.lora.dropout", self.dropout)
        one_of("trainer.lora.base_bits", self.base_bits, (None, 4))
        require(
            bool(self.target_modules) and all(type(m) is str and m for m in self.target_modules),
            "trainer.lora.target_modules",
            self.target_modules,
            "list the names of at least one module",
        )


@dataclass(kw_only=True)
class TrainerConfig:
    """One fine-tuning run.

    Attributes:
        run_name: folder under output_dir; an existing name resumes that run. None creates a name
            from model, policy and time.
        output_dir: folder of all runs; None is the cache directory's `runs`.
        method: `full` trains every weight, `lora` adapters.
        export: result of a LoRA run: `merged` into plain weights, or the `adapter` alone.
        steps: optimiser steps; with dense_steps, those of the second stage.
        dense_steps: steps of a first stage without eviction. Its model, run RUN_NAME-dense, is the
            one that the second stage trains under the policy, and its teacher. 0 has one stage.
        batch_size: sequences per worker and micro-step. A resumed run may change it, accumulation
            and num_workers, as long as their product, the global batch, stays.
        batch_tokens: tokens in a micro-batch, padding counted; it then holds as many rows of
            similar length as fit, in place of batch_size. It needs data.batching=padding, and a
            resumed run needs as many workers.
        accumulation: micro-steps per optimiser step.
        objective: `cross_entropy`; or, for pairs of answers, `dpo`, whose reference is the model
            without its adapters, or `orpo`.
        beta: of dpo: weight of the distance to the reference; of orpo: weight of the odds ratio.
        kl_weight: weight of KL(dense || under the policy), added to cross-entropy; the dense model
            is the same one without its adapters, so it is the one that dense_steps made. 0 leaves
            cross-entropy alone.
        label_smoothing: share of the uniform distribution in what cross-entropy learns.
        neftune_alpha: scale of the noise on embeddings in training; 0 adds none.
        anneal_steps: steps over which each KV head's budget falls from dense to its own.
        dense_share: share of the steps without eviction, so that dense serving loses nothing.
        budget_jitter: j draws a factor between 1 / (1 + j) and 1 + j for the budgets of each step.
        learning_rate: peak of a linear warm-up over warmup_steps.
        schedule: the way from there, to 0 along a `cosine` or `linear`, or `constant`.
        weight_decay: AdamW's, on all trained weights but norms and biases.
        policy_learning_rate: the same for weights of the policy; None is learning_rate.
        precision: fp32, mixed (fp32 weights, linear layers multiply in bf16) or bf16 (DeepSpeed's
            bf16 with fp32 master weights).
        num_workers: processes, each of which takes cpus_per_worker CPUs and, with use_gpu, one GPU.
        min_workers: elastic: a run goes on with as few of them when nodes are lost, and with more
            when nodes come; the global batch stays. None always waits for num_workers.
        eval_every, checkpoint_every: optimiser steps between two; 0 only at the end.
        eval_batches: held-out batches per evaluation and worker.
        sample_prompts: user turns that the model answers at each evaluation, under the policy;
            answers go to samples.jsonl in the run's folder.
        sample_held_out: so many of the first held-out records, whose prompts it answers as well.
        sample_tokens: most tokens of such an answer.
        keep_checkpoints: newest checkpoints kept.
        early_stopping_patience: held-out evaluations without a lower loss after which the run ends;
            it then exports the model with the lowest one. 0 trains all steps and exports the last.
        max_failures: worker crashes survived before the run fails.
    """

    run_name: str | None = None
    output_dir: str | None = None
    method: str = fixed("full")
    export: str = "merged"
    steps: int = 200
    dense_steps: int = fixed(0)
    batch_size: int = 1
    batch_tokens: int | None = fixed(None)
    accumulation: int = 1
    learning_rate: float = fixed(2e-5)
    policy_learning_rate: float | None = fixed(None)
    warmup_steps: int = fixed(10)
    schedule: str = fixed("cosine")
    weight_decay: float = fixed(0.0)
    objective: str = fixed("cross_entropy")
    beta: float = fixed(0.1)
    kl_weight: float = fixed(0.0)
    label_smoothing: float = fixed(0.0)
    neftune_alpha: float = fixed(0.0)
    anneal_steps: int = fixed(0)
    budget_jitter: float = fixed(0.0)
    dense_share: float = fixed(0.0)
    max_grad_norm: float = fixed(1.0)
    precision: str = fixed("fp32")
    gradient_checkpointing: bool = False
    seed: int = fixed(0)
    num_workers: int = 2
    min_workers: int | None = None
    cpus_per_worker: int = 1
    use_gpu: bool = False
    eval_every: int = 50
    eval_batches: int = 8
    sample_prompts: list[str] = field(default_factory=list)
    sample_held_out: int = 0
    sample_tokens: int = 64
    checkpoint_every: int = 50
    keep_checkpoints: int = 2
    early_stopping_patience: int = 0
    max_failures: int = 2
    lora: LoraConfig = field(default_factory=LoraConfig, metadata=FIXED)

    def __post_init__(self) -> None:
        one_of("trainer.method", self.method, ("full", "lora"))
        one_of("trainer.export", self.export, ("merged", "adapter"))
        one_of("trainer.objective", self.objective, OBJECTIVES)
        one_of("trainer.schedule", self.schedule, ("cosine", "linear", "constant"))
        one_of("trainer.precision", self.precision, ("fp32", "mixed", "bf16"))
        require(
            self.export == "merged" or self.method == "lora",
            "trainer.export",
            self.export,
            "only trainer.method=lora has an adapter to export; use trainer.export=merged",
        )
        for name in ("steps", "batch_size", "accumulation", "num_workers", "cpus_per_worker"):
            at_least(f"trainer.{name}", getattr(self, name), 1)
        for name in ("seed", "warmup_steps", "eval_every", "checkpoint_every", "max_failures"):
            at_least(f"trainer.{name}", getattr(self, name), 0)
        at_least("trainer.early_stopping_patience", self.early_stopping_patience, 0)
        for name in ("dense_steps", "anneal_steps", "weight_decay", "kl_weight", "budget_jitter"):
            at_least(f"trainer.{name}", getattr(self, name), 0)
        if self.batch_tokens is not None:
            at_least("trainer.batch_tokens", self.batch_tokens, 1)
        at_least("trainer.eval_batches", self.eval_batches, 1)
        at_least("trainer.sample_held_out", self.sample_held_out, 0)
        at_least("trainer.sample_tokens", self.sample_tokens, 1)
        require(
            all(type(prompt) is str and prompt for prompt in self.sample_prompts),
            "trainer.sample_prompts",
            self.sample_prompts,
            "list texts that are not empty",
        )
        at_least("trainer.keep_checkpoints", self.keep_checkpoints, 1)
        for name in ("learning_rate", "policy_learning_rate"):
            rate = getattr(self, name)
            if rate is not None:
                above(f"trainer.{name}", rate, 0)
                # AdamW moves each weight by about this much in a step; float32 ends at 3e38.
                require(rate <= 100, f"trainer.{name}", rate, "it must be at most 100")
        above("trainer.max_grad_norm", self.max_grad_norm, 0)
        fraction("trainer.dense_share", self.dense_share)
        fraction("trainer.label_smoothing", self.label_smoothing)
        at_least("trainer.neftune_alpha", self.neftune_alpha, 0)
        require(
            self.kl_weight == 0 or self.method == "lora",
            "trainer.kl_weight",
            self.kl_weight,
            "the dense model is this one without its adapters; set trainer.method=lora",
        )
        above("trainer.beta", self.beta, 0)
        require(
            self.objective != "dpo" or self.method == "lora",
            "trainer.objective",
            self.objective,
            "its reference is the model without its adapters; set trainer.method=lora",
        )
        require(
            self.objective == "cross_entropy" or self.kl_weight == 0,
            "trainer.kl_weight",
            self.kl_weight,
            f"trainer.objective={self.objective} has no dense teacher; set it to 0",
        )
        require(
            self.objective == "cross_entropy" or self.label_smoothing == 0,
            "trainer.label_smoothing",
            self.label_smoothing,
            f"trainer.objective={self.objective} compares answers; set it to 0",
        )
        require(
            self.objective == "cross_entropy" or self.dense_steps == 0,
            "trainer.dense_steps",
            self.dense_steps,
            "the dense stage learns answers, not pairs; give it a run of its own",
        )
        require(
            self.anneal_steps < self.steps,
            "trainer.anneal_steps",
            self.anneal_steps,
            f"the last of trainer.steps={self.steps} must train at the policy's own budget",
        )
        require(
            self.early_stopping_patience == 0 or self.eval_every > 0,
            "trainer.early_stopping_patience",
            self.early_stopping_patience,
            "it counts evaluations, so it needs trainer.eval_every above 0",
        )
        self._check_four_bits()
        self._check_elastic()
        if self.run_name is not None:
            require(
                bool(self.run_name) and "/" not in self.run_name and self.run_name[0] != ".",
                "trainer.run_name",
                self.run_name,
                "it names one folder: no slash, no leading dot, not empty",
            )

    def _check_four_bits(self) -> None:
        """Refuse what a base of 4 bits cannot be trained with."""
        if self.lora.base_bits is None:
            return
        for ok, why in (
            (self.method == "lora", "only adapters can be trained on it; set trainer.method=lora"),
            (
                self.precision != "bf16",
                "trainer.precision=bf16 would round the adapters; set it to mixed, which "
                "multiplies in bf16",
            ),
            (
                self.dense_steps == 0,
                "with trainer.dense_steps the first stage's model would be rounded to 4 bits "
                "again; give it a run of its own",
            ),
        ):
            require(ok, "trainer.lora.base_bits", self.lora.base_bits, why)

    def _check_elastic(self) -> None:
        """Refuse numbers of workers that cannot share a global batch equally."""
        if self.min_workers is None:
            return
        require(
            1 <= self.min_workers <= self.num_workers,
            "trainer.min_workers",
            self.min_workers,
            f"it must lie between 1 and trainer.num_workers={self.num_workers}",
        )
        require(
            self.batch_tokens is None,
            "trainer.batch_tokens",
            self.batch_tokens,
            "its steps depend on the number of workers; set trainer.min_workers=null",
        )
        share = math.lcm(*range(self.min_workers, self.num_workers + 1)) // self.num_workers
        for name in ("accumulation", "eval_batches"):
            value = getattr(self, name)
            require(
                value % share == 0,
                f"trainer.{name}",
                value,
                f"with trainer.min_workers={self.min_workers}, {self.min_workers} to "
                f"{self.num_workers} workers share a global batch; make it a multiple of {share}",
            )


@dataclass(kw_only=True)
class DeepSpeedConfig:
    """ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054), by DeepSpeed's own names where it has them.

    Attributes:
        zero_stage: 0 shards nothing, 1 optimiser state, 2 gradients too, 3 parameters too; None is
            0 for one worker, which has nobody to share with, else 2 (`stage_for`).
        offload_optimizer: keep optimiser state outside the GPU's memory.
        offload_parameters: keep parameters outside the GPU's memory (stage 3).
        nvme_path: folder on a local NVMe disk of every node for what is offloaded (ZeRO-Infinity,
            arXiv 2104.07857; stage 3); None keeps that in host memory.
        buffer_size: elements of the buffers through which a parameter's shard moves to the disk.
        bucket_size: elements reduced or gathered at a time.
        compile: compile the model with torch.compile, through DeepSpeed's `engine.compile`.
    """

    zero_stage: int | None = fixed(None)
    offload_optimizer: bool = False
    offload_parameters: bool = False
    nvme_path: str | None = None
    buffer_size: int = 100_000_000
    bucket_size: int = 50_000_000
    compile: bool = False

    def __post_init__(self) -> None:
        one_of("deepspeed.zero_stage", self.zero_stage, (None, 0, 1, 2, 3))
        at_least("deepspeed.bucket_size", self.bucket_size, 1)
        at_least("deepspeed.buffer_size", self.buffer_size, 1)
        require(
            not self.offload_optimizer or self.zero_stage != 0,
            "deepspeed.offload_optimizer",
            self.offload_optimizer,
            "deepspeed.zero_stage=0 keeps all of it on every worker; set zero_stage to 1, 2 or 3",
        )
        require(
            not self.offload_parameters or self.zero_stage == 3,
            "deepspeed.offload_parameters",
            self.offload_parameters,
            "parameters are only sharded, and so offloaded, under deepspeed.zero_stage=3",
        )
        require(
            self.nvme_path is None or self.zero_stage == 3,
            "deepspeed.nvme_path",
            self.nvme_path,
            "DeepSpeed offloads to a disk under deepspeed.zero_stage=3 alone",
        )
        require(
            self.nvme_path is None or self.offload_optimizer or self.offload_parameters,
            "deepspeed.nvme_path",
            self.nvme_path,
            "set deepspeed.offload_optimizer or offload_parameters, or leave it out",
        )

    def stage_for(self, trainer: TrainerConfig) -> int:
        """Return the stage of a new run, chosen from the number of workers unless it is set."""
        if self.zero_stage is not None:
            return self.zero_stage
        alone = trainer.num_workers == 1 and trainer.precision != "bf16"
        return 0 if alone and not self.offload_optimizer else 2
