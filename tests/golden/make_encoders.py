"""Small random encoders in the forms of BERT, XLM-R, mGTE (the layout of its checkpoints) and transformers 5's gte,
with what transformers computes for them and sentence-transformers pools from that.

    PYTHONPATH=build/st:build/tf5 build/venv/bin/python tests/golden/make_encoders.py          # write the files
    build/venv/bin/python tests/golden/make_encoders.py --compare   # transformers 4.x against the files (BERT, XLM-R)

build/tf5 holds transformers 5, build/st sentence-transformers (pip install --target, --no-deps). The forward pass of
mGTE is transformers' GteModel; its rotary frequencies are set to the formula of Alibaba-NLP/new-impl
(NTKScalingRotaryEmbedding): inv_freq[i] = (theta s)^(-2i/d) / s^(2/d), which transformers does not have.
"""
import json
import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).parent / "encoders"
LENGTHS = [1, 5, 2, 17, 24, 1]
SEED = 20260101


def randomise(model, generator):
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if is_norm else 0.25 * noise)


def batch(vocab, generator):
    ids = torch.randint(0, vocab, (sum(LENGTHS),), generator=generator)
    return ids, np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int32)


def padded(ids, offsets, pad):
    width = max(LENGTHS)
    rows = torch.full((len(LENGTHS), width), pad)
    mask = torch.zeros(len(LENGTHS), width, dtype=torch.long)
    for i in range(len(LENGTHS)):
        n = LENGTHS[i]
        rows[i, :n] = ids[offsets[i]:offsets[i + 1]]
        mask[i, :n] = 1
    return rows, mask


def hidden_states(model, ids, offsets, pad):
    rows, mask = padded(ids, offsets, pad)
    ids_of_positions = None
    if hasattr(model.embeddings, "position_embeddings"):  # a random id may be the padding id: say positions outright
        first = getattr(model.embeddings, "padding_idx", 0) + 1 if model.config.model_type == "xlm-roberta" else 0
        ids_of_positions = (first + torch.arange(rows.shape[1]))[None].expand_as(rows)
    model.eval()
    with torch.no_grad():
        kwargs = {} if ids_of_positions is None else {"position_ids": ids_of_positions}
        out = model(input_ids=rows, attention_mask=mask, **kwargs).last_hidden_state
    return out, mask


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def write_modules(folder, pooling, dense=None, normalise=False, max_length=None):
    """The files sentence-transformers writes; returns its modules."""
    from sentence_transformers.base.modules import Normalize

    modules = [("Transformer", "", None), ("Pooling", "1_Pooling", pooling)]
    if dense is not None:
        modules.append(("Dense", "2_Dense", dense))
    if normalise:
        modules.append(("Normalize", f"{len(modules)}_Normalize", Normalize()))
    listed = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
              for i, (name, path, _) in enumerate(modules)]
    write_json(folder / "modules.json", listed)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling.save(str(folder / "1_Pooling"))
    if dense is not None:
        (folder / "2_Dense").mkdir(exist_ok=True)
        dense.save(str(folder / "2_Dense"))
    return [module for _, _, module in modules if module is not None]


def pooled(modules, hidden, mask):
    features = {"token_embeddings": hidden, "attention_mask": mask}
    for module in modules:
        features = module(features)
    return features["sentence_embedding"].detach()


def largest(a, b):
    return ((a.float() - b).abs().max() / b.abs().max()).reshape(1)


def bf16_errors(model, ids, offsets, pad, hidden, mask, modules):
    """How far transformers' own bf16 is from f32: largest difference over largest value, as the test measures it.
    Pooling itself in f32, as ours."""
    frequencies = model.rotary_emb.inv_freq.clone() if hasattr(model, "rotary_emb") else None
    model.to(torch.bfloat16)
    if frequencies is not None:
        model.rotary_emb.inv_freq = torch.nn.Buffer(frequencies, persistent=False)
    rounded, _ = hidden_states(model, ids, offsets, pad)
    errors = {"bf16_error": largest(rounded[mask.bool()], hidden[mask.bool()])}
    if modules:
        errors["bf16_pooled_error"] = largest(pooled(modules, rounded.float(), mask), pooled(modules, hidden, mask))
    return errors


def write_expected(folder, model, ids, offsets, pad, modules):
    hidden, mask = hidden_states(model, ids, offsets, pad)
    tensors = {"ids": ids.to(torch.int32), "offsets": torch.from_numpy(offsets),
               "hidden": hidden[mask.bool()].contiguous()}
    if modules:
        tensors["pooled"] = pooled(modules, hidden, mask).contiguous()
    tensors.update(bf16_errors(model, ids, offsets, pad, hidden, mask, modules))
    save_file(tensors, str(folder / "expected.safetensors"))


def stored(model, dtype):
    """The model's tensors as they are kept; the model itself takes the rounded values."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype).to(torch.float32))
    return {name: parameter.detach().to(dtype).contiguous() for name, parameter in model.named_parameters()
            if "pooler" not in name}


def start(name):
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder, torch.Generator().manual_seed(SEED + sum(map(ord, name)))


BERT = dict(vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=44,
            max_position_embeddings=24, type_vocab_size=2, pad_token_id=0, layer_norm_eps=1e-12)


def bert_mean():
    """MiniLM's kind: mean pooling, normalised; names without a prefix."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder, generator = start("bert_mean")
    model = transformers.BertModel(transformers.BertConfig(**BERT))
    randomise(model, generator)
    save_file(stored(model, torch.float32), str(folder / "model.safetensors"), metadata={"format": "pt"})
    write_json(folder / "config.json", dict(BERT, model_type="bert", hidden_act="gelu"))
    modules = write_modules(folder, Pooling(24, "mean"), normalise=True, max_length=20)
    ids, offsets = batch(61, generator)
    write_expected(folder, model, ids, offsets, 0, modules)


def bert_plain():
    """A masked-LM checkpoint without sentence-transformers files: "bert.", gamma and beta, a head, f16."""
    folder, generator = start("bert_plain")
    config = dict(BERT, num_attention_heads=4, hidden_act="gelu_new")
    model = transformers.BertModel(transformers.BertConfig(**config))
    randomise(model, generator)
    tensors = {"bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"):
               value for name, value in stored(model, torch.float16).items()}
    tensors["bert.embeddings.position_ids"] = torch.arange(24)[None]
    tensors["bert.pooler.dense.weight"] = torch.zeros(24, 24)
    tensors["cls.predictions.bias"] = torch.zeros(61)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    write_json(folder / "config.json", dict(config, model_type="bert", architectures=["BertForMaskedLM"]))
    ids, offsets = batch(61, generator)
    write_expected(folder, model, ids, offsets, 0, None)


def xlmr_dense():
    """XLM-R: positions begin behind the padding id; cls and max side by side, then a Dense module."""
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder, generator = start("xlmr_dense")
    config = dict(BERT, type_vocab_size=1, pad_token_id=1, max_position_embeddings=26, layer_norm_eps=1e-5,
                  num_attention_heads=3)
    model = transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**config), add_pooling_layer=False)
    randomise(model, generator)
    tensors = {"roberta." + name: value for name, value in stored(model, torch.float32).items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    write_json(folder / "config.json", dict(config, model_type="xlm-roberta"))
    dense = Dense(48, 10)
    randomise(dense, generator)
    modules = write_modules(folder, Pooling(24, ("cls", "max")), dense=dense)
    ids, offsets = batch(61, generator)
    write_expected(folder, model, ids, offsets, 1, modules)


GTE = dict(vocab_size=61, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=36,
           max_position_embeddings=24, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-12, hidden_act="gelu")


def gte_model(config, theta, generator):
    from transformers import GteConfig, GteModel

    model = GteModel(GteConfig(**config, rope_parameters={"rope_type": "default", "rope_theta": theta}))
    randomise(model, generator)
    return model


def set_ntk(model, theta, scale, width):
    base = theta * scale
    inv_freq = 1.0 / (base ** (torch.arange(0, width, 2).float() / width)) / scale ** (2 / width)
    model.rotary_emb.inv_freq = torch.nn.Buffer(inv_freq, persistent=False)


def new_names(tensors, is_packed):
    """transformers' names -> those of new-impl's checkpoints."""
    out = {}
    for name, value in tensors.items():
        name = name.replace("layers.", "encoder.layer.").replace("self_attn.", "attention.")
        name = name.replace("post_attention_layernorm", "attn_ln").replace("post_mlp_layernorm", "mlp_ln")
        out["new." + name] = value
    for i in range(2):
        layer = f"new.encoder.layer.{i}."
        for kind in ("weight", "bias"):
            if is_packed:
                parts = [out.pop(f"{layer}attention.{p}_proj.{kind}") for p in "qkv"]
                out[f"{layer}attention.qkv_proj.{kind}"] = torch.cat(parts)
        parts = [out.pop(f"{layer}mlp.{p}_proj.weight") for p in ("up", "gate")]
        out[f"{layer}mlp.up_gate_proj.weight"] = torch.cat(parts)
    return out


def mgte():
    """gte-multilingual-base's kind: packed, ntk by 8, cls, normalised, f16, and its classifier."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder, generator = start("mgte")
    model = gte_model(GTE, 20000.0, generator)
    set_ntk(model, 20000.0, 8.0, 12)
    tensors = new_names(stored(model, torch.float16), True)
    tensors["classifier.weight"] = torch.zeros(1, 48, dtype=torch.float16)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    write_json(folder / "config.json",
               dict(GTE, model_type="new", architectures=["NewModel"], position_embedding_type="rope",
                    rope_theta=20000, rope_scaling={"factor": 8.0, "type": "ntk"}, pack_qkv=True,
                    layer_norm_type="layer_norm", logn_attention_scale=False, logn_attention_clip1=False,
                    unpad_inputs=False, use_memory_efficient_attention=False))
    modules = write_modules(folder, Pooling(48, "cls"), normalise=True, max_length=8192)
    ids, offsets = batch(61, generator)
    write_expected(folder, model, ids, offsets, 1, modules)


def gte_v15():
    """gte-base-en-v1.5's kind: no token types; q, k, v apart; no scaling; bf16; the last token."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder, generator = start("gte_v15")
    model = gte_model(dict(GTE, type_vocab_size=0), 500000.0, generator)
    tensors = new_names(stored(model, torch.bfloat16), False)
    save_file({name[4:]: value for name, value in tensors.items()}, str(folder / "model.safetensors"),
              metadata={"format": "pt"})
    write_json(folder / "config.json", dict(GTE, model_type="new", type_vocab_size=0, pack_qkv=False,
                                            rope_theta=500000, rope_scaling=None))
    modules = write_modules(folder, Pooling(48, "lasttoken"))
    ids, offsets = batch(61, generator)
    write_expected(folder, model, ids, offsets, 1, modules)


def gte_tf5():
    """transformers 5 with its own names (its default are those of new-impl), and the remaining kinds of pooling."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder, generator = start("gte_tf5")
    model = gte_model(dict(GTE, num_hidden_layers=1), 10000.0, generator)
    model.save_pretrained(str(folder), save_original_format=False)
    modules = write_modules(folder, Pooling(48, ("mean_sqrt_len_tokens", "weightedmean")))
    ids, offsets = batch(61, generator)
    write_expected(folder, model, ids, offsets, 1, modules)


def compare():
    worst = 0.0
    for name, kind, config_kind, prefix in (
            ("bert_mean", transformers.BertModel, transformers.BertConfig, ""),
            ("bert_plain", transformers.BertModel, transformers.BertConfig, "bert."),
            ("xlmr_dense", transformers.XLMRobertaModel, transformers.XLMRobertaConfig, "roberta.")):
        folder = FOLDER / name
        model = kind(config_kind(**json.loads((folder / "config.json").read_text())), add_pooling_layer=False)
        values = {key[len(prefix):].replace("gamma", "weight").replace("beta", "bias"): torch.from_numpy(value)
                  for key, value in load_file(str(folder / "model.safetensors")).items() if key.startswith(prefix)}
        missing = model.load_state_dict({k: v.float() for k, v in values.items()
                                         if "pooler" not in k and "cls." not in k and "position_ids" not in k},
                                        strict=False).missing_keys
        assert not missing, missing
        expected = load_file(str(folder / "expected.safetensors"))
        ids, offsets = torch.from_numpy(expected["ids"]).long(), expected["offsets"]
        hidden, mask = hidden_states(model, ids, offsets, model.config.pad_token_id)
        difference = float((hidden[mask.bool()] - torch.from_numpy(expected["hidden"])).abs().max())
        print(f"{name}: transformers {transformers.__version__} differs by {difference:.2e}")
        worst = max(worst, difference)
    sys.exit(0 if worst < 1e-5 else 1)


if __name__ == "__main__":
    if "--compare" in sys.argv:
        compare()
    for make in (bert_mean, bert_plain, xlmr_dense, mgte, gte_v15, gte_tf5):
        make()
        print(make.__name__)
