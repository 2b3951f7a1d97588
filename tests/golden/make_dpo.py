#!/usr/bin/env python3
"""Golden values of the preference losses: TRL's own loss code on a tiny model and four pairs.

    python3 tests/golden/make_dpo.py [folder]      (default tests/golden/preference)

Needs torch, transformers 4.x, peft, trl >= 1.16, h5py, numpy. The model is tests/golden/losses/olmoe. Losses with a
reference run DPOTrainer._compute_loss, simpo CPOTrainer.get_batch_loss_metrics, orpo ORPOTrainer.get_batch_loss_metrics.
TRL's sigmoid has no label smoothing any more: cDPO runs CPOTrainer.cpo_loss ("sigmoid") on the log-ratios. Writes
preference.h5 (< 200 KB) and a small adapter. All numbers from fixed seeds.
"""
import collections
import os
import sys
import types

import h5py
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import OlmoeForCausalLM
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.utils import add_fused_lm_head

PROMPTS = [4, 6, 3, 5]
CHOSEN = [7, 3, 9, 5]
REJECTED = [5, 6, 4, 5]
VOCAB = 32
KEPT = (
    "model.layers.0.mlp.gate.weight",
    "model.layers.1.self_attn.k_proj.weight",
    "model.layers.1.mlp.experts.2.down_proj.weight",
)
TERMS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
         "logps/rejected", "nll_loss", "log_odds_chosen", "log_odds_ratio")
OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")


def draw_pairs():
    """Records chosen, rejected, chosen, ... and the length of each one's prompt."""
    generator = torch.Generator().manual_seed(11)
    records = []
    for prompt, chosen, rejected in zip(PROMPTS, CHOSEN, REJECTED):
        head = torch.randint(0, VOCAB, (prompt,), generator=generator)
        for n in (chosen, rejected):
            records.append((torch.cat([head, torch.randint(0, VOCAB, (n,), generator=generator)]), prompt))
    return records


def pad(records):
    """As TRL's collator: the chosen sides, then the rejected ones, padded on the right."""
    order = records[0::2] + records[1::2]
    width = max(len(ids) for ids, _ in order)
    ids = torch.zeros(len(order), width, dtype=torch.long)
    mask, answer = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, (record, prompt) in enumerate(order):
        ids[i, : len(record)] = record
        mask[i, : len(record)] = 1
        answer[i, prompt : len(record)] = 1
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": answer}


def fake_accelerator():
    same = lambda x: x  # noqa: E731
    return types.SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same, unwrap_model=same,
                                 autocast=torch.enable_grad)


def bare(kind, **fields):
    """A trainer with the fields its loss code looks at and nothing else."""
    trainer = kind.__new__(kind)
    trainer.accelerator = fake_accelerator()
    for name, value in fields.items():
        setattr(trainer, name, value)
    return trainer


def dpo_trainer(model, losses, weights, **settings):
    return bare(
        DPOTrainer, model=model, ref_model=None, precompute_ref_logps=True, f_divergence_type="reverse_kl",
        loss_types=losses, loss_weights=weights, beta=settings.get("beta", 0.1), use_weighting=False,
        label_smoothing=settings.get("smoothing", 0.0), ld_alpha=settings.get("ld_alpha"),
        aux_loss_enabled=settings.get("aux", 0) > 0, router_aux_loss_coef=settings.get("aux", 0),
        args=types.SimpleNamespace(gradient_checkpointing_kwargs=None, gradient_checkpointing=False),
        _metrics={"train": collections.defaultdict(list), "eval": collections.defaultdict(list)},
        _total_train_tokens=0, _tp_size=1,
    )


def put(file, name, model, loss, metrics, settings, kept=KEPT):
    group = file.create_group("case/" + name)
    for key, value in settings.items():
        group.attrs[key] = np.bytes_(value) if isinstance(value, str) else float(value)
    model.zero_grad()
    loss.backward()
    total = 0.0
    for param in model.parameters():
        if param.grad is not None:
            total += param.grad.double().square().sum().item()
    values = [loss.item(), total ** 0.5]
    for key in TERMS:
        value = metrics.get(key, float("nan"))
        values.append(value[-1] if isinstance(value, list) else value)
    group["values"] = np.array(values)  # loss, norm of the whole gradient, TERMS
    named = dict(model.named_parameters())
    for key in kept:
        short = key.replace("base_model.model.", "").replace(".default", "")
        group[short] = named[key].grad.numpy().astype(np.float32)
    print(f"{name:24s} {loss.item():.7f}")


def run_dpo(file, name, model, inputs, losses, weights=None, **settings):
    weights = weights or [1.0] * len(losses)
    trainer = dpo_trainer(model, losses, weights, **settings)
    loss = trainer._compute_loss(model, dict(inputs), False)
    parts = [f"{one}:{weight}" for one, weight in zip(losses, weights) if one != "sft"]
    said = {"loss": ",".join(parts), **{k: v for k, v in settings.items() if v is not None}}
    if "sft" in losses:
        said["sft"] = weights[losses.index("sft")]
    put(file, name, model, loss, trainer._metrics["train"], said, settings.get("kept", KEPT))


def run_cdpo(file, model, inputs, beta, smoothing):
    """TRL's conservative sigmoid, which only its CPOTrainer has now, on log-ratios."""
    trainer = dpo_trainer(model, ["sigmoid"], [1.0], beta=beta)
    trainer._compute_loss(model, dict(inputs), False)
    cpo = bare(CPOTrainer, alpha=0.0, loss_type="sigmoid", beta=beta, label_smoothing=smoothing)
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    logps = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels,
                  use_cache=False, fused_lm_head=True).log_probs.sum(1)
    chosen, rejected = logps.chunk(2)
    losses, _, _ = cpo.cpo_loss(chosen - inputs["ref_chosen_logps"], rejected - inputs["ref_rejected_logps"])
    put(file, "cdpo", model, losses.mean(), trainer._metrics["train"],
        {"loss": "sigmoid", "beta": beta, "smoothing": smoothing})


def side_batch(records):
    """The batch that CPOTrainer and ORPOTrainer concatenate."""
    batch = {}
    for side, part in (("chosen", records[0::2]), ("rejected", records[1::2])):
        width = max(len(ids) for ids, _ in part)
        ids = torch.zeros(len(part), width, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, (record, prompt) in enumerate(part):
            ids[i, : len(record)] = record
            mask[i, : len(record)] = 1
            labels[i, prompt : len(record)] = record[prompt:]
        batch.update({f"{side}_input_ids": ids, f"{side}_attention_mask": mask, f"{side}_labels": labels})
    return batch


def run_free(file, name, kind, model, records, said, **fields):
    trainer = bare(kind, is_encoder_decoder=False, padding_value=0, pad_token_id=0, aux_loss_enabled=False, **fields)
    loss, metrics = trainer.get_batch_loss_metrics(model, side_batch(records))
    put(file, name, model, loss, metrics, said)


def disturbed(model, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    other = OlmoeForCausalLM(model.config).float()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for param in other.parameters():
            param += scale * torch.randn(param.shape, generator=generator)
    return other


def write_plain(file, model, records):
    inputs = pad(records)
    reference = disturbed(model, 12, 0.05)
    add_fused_lm_head(reference)
    trainer = dpo_trainer(model, ["sigmoid"], [1.0])
    with torch.no_grad():
        chosen, rejected = trainer.compute_ref_log_probs(reference, inputs)
    inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = chosen, rejected
    file["reference"] = torch.stack([chosen, rejected], 1).flatten().double().numpy()
    run_dpo(file, "sigmoid", model, inputs, ["sigmoid"])
    run_dpo(file, "sigmoid_balance", model, inputs, ["sigmoid"], aux=0.05)
    run_dpo(file, "sigmoid_sft", model, inputs, ["sigmoid", "sft"], [1.0, 0.3], beta=0.3)
    run_dpo(file, "hinge", model, inputs, ["hinge"], beta=0.4)
    run_dpo(file, "ipo", model, inputs, ["ipo"], beta=0.2)
    run_dpo(file, "robust", model, inputs, ["robust"], beta=0.3, smoothing=0.1)
    run_dpo(file, "sigmoid_norm", model, inputs, ["sigmoid_norm"], beta=2.0)
    run_dpo(file, "exo_pair", model, inputs, ["exo_pair"], beta=0.3, smoothing=0.01)
    run_dpo(file, "nca_pair", model, inputs, ["nca_pair"], beta=0.3)
    run_dpo(file, "bco_pair", model, inputs, ["bco_pair"], beta=0.3)
    run_dpo(file, "sppo_hard", model, inputs, ["sppo_hard"], beta=0.3)
    run_dpo(file, "apo_zero", model, inputs, ["apo_zero"], beta=0.3)
    run_dpo(file, "apo_down", model, inputs, ["apo_down"], beta=0.3)
    run_dpo(file, "list", model, inputs, ["sigmoid", "ipo", "hinge"], [0.8, 0.2, 0.1], beta=0.25)
    run_cdpo(file, model, inputs, 0.3, 0.15)
    run_free(file, "simpo", CPOTrainer, model, records, {"loss": "simpo", "beta": 2.0, "gamma": 1.2},
             alpha=0.0, loss_type="simpo", beta=2.0, simpo_gamma=1.2, label_smoothing=0.0, cpo_alpha=0.0)
    run_free(file, "simpo_smooth", CPOTrainer, model, records,
             {"loss": "simpo", "beta": 2.0, "gamma": 0.5, "smoothing": 0.1, "sft": 0.7},
             alpha=0.0, loss_type="simpo", beta=2.0, simpo_gamma=0.5, label_smoothing=0.1, cpo_alpha=0.7)
    run_free(file, "orpo", ORPOTrainer, model, records, {"loss": "orpo", "beta": 0.25}, beta=0.25)


def write_adapter(file, model, records, folder):
    """A LoRA adapter that trains: the reference is the model without it."""
    torch.manual_seed(13)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")
    peft = get_peft_model(model, config)
    with torch.no_grad():
        for name, param in peft.named_parameters():
            if "lora_B" in name:
                param.copy_(0.3 * torch.randn(param.shape))
    peft.peft_config["default"].base_model_name_or_path = "olmoe"
    peft.save_pretrained(os.path.join(folder, "adapter"))
    for name in os.listdir(os.path.join(folder, "adapter")):
        os.chmod(os.path.join(folder, "adapter", name), 0o644)
        if name == "README.md":
            os.remove(os.path.join(folder, "adapter", name))
    kept = [name for name, param in peft.named_parameters() if param.requires_grad and "layers.1" in name]
    for name, losses, alpha in (("adapter", ["sigmoid"], None), ("adapter_ld", ["sigmoid"], 0.4),
                                ("adapter_ld_ipo", ["ipo"], 0.6)):
        trainer = dpo_trainer(peft, losses, [1.0], beta=0.5, ld_alpha=alpha)
        trainer.precompute_ref_logps = False
        loss = trainer._compute_loss(peft, pad(records), False)
        said = {"loss": losses[0], "beta": 0.5}
        if alpha is not None:
            said["ld_alpha"] = alpha
        put(file, name, peft, loss, trainer._metrics["train"], said, kept)


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "preference")
    os.makedirs(folder, exist_ok=True)
    model = OlmoeForCausalLM.from_pretrained(os.path.join(here, "losses", "olmoe")).float()
    model.config.output_router_logits = False
    model.train()
    add_fused_lm_head(model, outputs=OUTPUTS)
    records = draw_pairs()
    with h5py.File(os.path.join(folder, "preference.h5"), "w", libver=("earliest", "v110")) as file:
        file["tokens"] = torch.cat([ids for ids, _ in records]).numpy().astype(np.int32)
        file["lengths"] = np.array([len(ids) for ids, _ in records], dtype=np.int64)
        file["prompts"] = np.array([prompt for _, prompt in records], dtype=np.int64)
        write_plain(file, model, records)
        write_adapter(file, model, records, folder)
        file.attrs["torch"] = str(torch.__version__)


if __name__ == "__main__":
    main()
