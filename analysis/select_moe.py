"""Select-MoE checkpoints (model_type "select_moe") in Hugging Face transformers, 4.57 and later, 5.x too.

    import select_moe                       # registers the type
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("checkpoints/x/convert/model", dtype="auto")

A Select-MoE model is an OLMoE, Mixtral or Qwen3-MoE model (config.json: base_model_type) whose gates have
num_trash_experts more rows than there are experts. A token's picks are drawn over all rows (trash_logit_bias is
added to the trash rows' logits for this only); a pick of a trash expert takes its weight and computes nothing.
Router logits come out without the bias, [tokens, experts + trash]. With router_bias true in config.json every gate
also has an e_score_correction_bias [experts + trash], kept in f32: picks are drawn by probability + this bias, and
weighed by probability alone (as in DeepSeek-V3, whose probabilities are sigmoids).

    python analysis/select_moe.py FOLDER [ID ...]     logits of the last of these token ids, the eight largest
"""

import sys

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import MixtralConfig, MixtralForCausalLM, OlmoeConfig, OlmoeForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

MODEL_TYPE = "select_moe"
BIAS = "e_score_correction_bias"
BASES = {"olmoe": (OlmoeConfig, OlmoeForCausalLM), "mixtral": (MixtralConfig, MixtralForCausalLM),
         "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM)}
IS_FUSED = not transformers.__version__.startswith("4.")  # 5.x holds all experts of a layer in one tensor


def number_of_experts(config):
    """Experts that compute, under either of its names."""
    return getattr(config, "num_local_experts", None) or config.num_experts


def route(logits, experts, picks, bias, normalise, selection=None):
    """Weights and numbers of the picks, [tokens, picks]; numbers from `experts` on are trash. selection: the router's bias."""
    logits = logits.float()
    if bias:
        logits = torch.cat([logits[:, :experts], logits[:, experts:] + bias], dim=-1)
    weights = torch.softmax(logits, dim=-1)
    if selection is None:
        weights, numbers = torch.topk(weights, picks, dim=-1)
    else:
        numbers = torch.topk(weights + selection, picks, dim=-1).indices
        weights = weights.gather(-1, numbers)
    if normalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights, numbers


def select_block(block, config):
    """The mixture of a layer as one with trash experts (4.x: a module per expert)."""
    base, experts = type(block), number_of_experts(config)

    def forward(self, hidden_states):
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits = self.gate(rows)
        weights, numbers = route(logits, experts, config.num_experts_per_tok, config.trash_logit_bias, normalises(config),
                                 getattr(self.gate, BIAS, None))
        weights = weights.to(rows.dtype)
        result = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            token, pick = torch.where(numbers == number)
            if len(token):
                result.index_add_(0, token, (expert(rows[token]) * weights[token, pick, None]).to(result.dtype))
        return result.reshape(hidden_states.shape), logits

    block.__class__ = type("Select" + base.__name__, (base,), {"forward": forward})
    block.gate = nn.Linear(config.hidden_size, experts + config.num_trash_experts, bias=False)
    add_selection(block.gate, config)


def select_router(router, config):
    """The router of a layer as one with trash experts (5.x); the experts pass over number `experts`."""
    base, experts = type(router), number_of_experts(config)

    def forward(self, hidden_states):
        logits = nn.functional.linear(hidden_states.reshape(-1, hidden_states.shape[-1]), self.weight)
        weights, numbers = route(logits, experts, config.num_experts_per_tok, config.trash_logit_bias, normalises(config),
                                 getattr(self, BIAS, None))
        weights = weights.masked_fill(numbers >= experts, 0).to(logits.dtype)
        return logits, weights, numbers.clamp_max(experts)

    router.__class__ = type("Select" + base.__name__, (base,), {"forward": forward})
    router.weight = nn.Parameter(torch.empty(experts + config.num_trash_experts, config.hidden_size))
    add_selection(router, config)


def add_selection(gate, config):
    """Room for the bias that picks are drawn by, where the model has one."""
    if config.router_bias:
        gate.register_buffer(BIAS, torch.zeros(number_of_experts(config) + config.num_trash_experts, dtype=torch.float32))


def normalises(config):
    """Are the weights of the picks divided by their sum? (Mixtral always does.)"""
    return config.base_model_type == "mixtral" or config.norm_topk_prob


def select_layers(model):
    """Give every mixture of a freshly built base model its trash rows."""
    for layer in model.model.layers:
        moe = getattr(layer, "block_sparse_moe", None) or layer.mlp
        if not hasattr(moe, "experts"):
            continue
        if IS_FUSED:
            select_router(moe.gate, model.config)
        else:
            select_block(moe, model.config)
    model.num_experts = number_of_experts(model.config) + model.config.num_trash_experts


def make_classes(base_type):
    """Configuration and model class over a base."""
    base_config, base_model = BASES[base_type]
    config = type("Select" + base_config.__name__, (base_config,), {"model_type": MODEL_TYPE, "__module__": __name__})

    def __init__(self, config):
        base_model.__init__(self, config)
        config.trash_logit_bias = getattr(config, "trash_logit_bias", 0.0)
        config.router_bias = getattr(config, "router_bias", False)
        select_layers(self)
        if config.router_bias:
            self._keep_in_fp32_modules_strict = {*(self._keep_in_fp32_modules_strict or ()), BIAS}

    model = type("Select" + base_model.__name__, (base_model,),
                 {"__init__": __init__, "config_class": config, "__module__": __name__})
    return config, model


CLASSES = {base_type: make_classes(base_type) for base_type in BASES}


class SelectMoeConfig(transformers.PretrainedConfig):
    """What AutoConfig finds under "select_moe": hands over to the class of the base that config.json names."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        base_type = config_dict.get("base_model_type")
        if base_type not in CLASSES:
            raise ValueError(f"select_moe: base_model_type {base_type!r} is none of {', '.join(CLASSES)}")
        return CLASSES[base_type][0].from_dict(config_dict, **kwargs)


def register():
    """Tell transformers about the type. Called once, on import."""
    AutoConfig.register(MODEL_TYPE, SelectMoeConfig)
    for base_type, (config, model) in CLASSES.items():
        AutoModelForCausalLM.register(config, model)
        if IS_FUSED:  # experts are fused on loading and taken apart on saving as the base's are
            from transformers import conversion_mapping
            conversion_mapping.register_checkpoint_conversion_mapping(
                model.__name__, conversion_mapping.get_checkpoint_conversion_mapping(base_type))


register()


def main():
    if len(sys.argv) < 2:
        print(__doc__.strip().split("\n")[-1].strip())
        return 2
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    ids = [int(word) for word in sys.argv[2:]] or [1]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    for value, token in zip(*(x.tolist() for x in logits.topk(min(8, len(logits))))):
        print(f"{token:8d} {value:10.5f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
