"""Small real tokenizers of each kind, trained on the spot, and strings to try them with (make_tokenizers, check_tokenizers)."""
import base64
import io
import json
import os
import random
import tempfile
import unicodedata

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.environ.get("MB_SHARED_DATA", os.path.join(HERE, "../../../shared/data"))

# ---- strings ----

BASES = "a b e n o A E I Z 1 9 \u00e9 \u00df \u0130 \u0131 \u01c5 \u03a3 \u03c2 \u212b \u1e9e \u0430 \u0419 \u05d0 \u0627 \u0915 \u0937 \u0958 \u0e01 \u1100 \uac00 \u3042 \u30ac \u4f60 \u597d \U00020000 \ufa0e \ufb01 \u2122 \u00a9 \u263a \U0001f600 \U0001f469 \u2460 \u00bd \u3131 \uffa1 \uff76".split()
JOINS = "\u0301 \u0308 \u0323 \u0327 \u0345 \u094d \u093c \u0e33 \u1161 \u11a8 \u200d \ufe0f \u20e3 \U0001f3fd \u3099 \uff9e \u0488 \U000e0100 \u200c \u180b \u0903".split()
SPACES = ["\u0020", "\t", "\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u00a0", "\u1680", "\u180e", "\u2003", "\u200b", "\u2028", "\u2029", "\u202f", "\u205f", "\u2060", "\u3000", "\ufeff", "  ", "   "]
CONTROLS = ["\x00", "\x01", "\x08", "\x1f", "\x7f", "\x80", "\x8f", "\x9f", "\xad", "\u0600", "\u06dd", "\u200e", "\u202e", "\u2066", "\ufff9", "\ufffd", "\ufffe", "\U000e0001", "\U0010ffff", "\ue000"]
EMOJI = ["\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u2764\ufe0f", "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea\U0001f1eb", "1\ufe0f\u20e3", "\U0001f3f4\U000e0067\U000e0062\U000e007f", "\u263a\u200d\u2122"]
WORDS = ["Hello", "world", "don't", "I'LL", " do not", "the", "token", "unbelievable", "3.14159", "http://a.b/c?d=1&e=%20#f", "foo_bar", "\u4e16\u754c", "\u3053\u3093\u306b\u3061\u306f", "\uc548\ub155\ud558\uc138\uc694", "\u041f\u0440\u0438\u0432\u0435\u0442", "\u05e9\u05dc\u05d5\u05dd", "\u0627\u0644\u0639\u0631\u0628\u064a\u0629", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u2581", "##ing", "\u0120a", "</w>", "<unk>", "[UNK]", "[MASK]", "<mask>", "</s>", "<s>", "<pad>", "[CLS]", "[SEP]", "<|endoftext|>", "<|im_start|>", "<0x41>", "wordy", "Tok", "tok", "\u00c9t\u00e9"]
POOLS = [(0x20, 0x7E), (0x00, 0x20), (0x7F, 0xA0), (0xA0, 0x24F), (0x250, 0x2FF), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x8FF), (0x900, 0xDFF), (0xE00, 0x10FF), (0x1100, 0x11FF),
         (0x1200, 0x1DFF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x2BFF), (0x2C00, 0x2FFF), (0x3000, 0x33FF), (0x3400, 0x4DFF), (0x4E00, 0x9FFF), (0xA000, 0xABFF), (0xAC00, 0xD7FF),
         (0xE000, 0xF8FF), (0xF900, 0xFAFF), (0xFB00, 0xFFFF), (0x10000, 0x13FFF), (0x14000, 0x1AFFF), (0x1B000, 0x1CFFF), (0x1D000, 0x1EFFF), (0x1F000, 0x1FAFF), (0x20000, 0x323AF), (0xE0000, 0xE01FF), (0xF0000, 0x10FFFF)]


def one_part(rng):
    kind = rng.random()
    if kind < 0.22:
        return rng.choice(WORDS)
    if kind < 0.34:
        return rng.choice(SPACES)
    if kind < 0.40:
        return rng.choice(CONTROLS)
    if kind < 0.46:
        return rng.choice(EMOJI)
    if kind < 0.62:
        return rng.choice(BASES) + "".join(rng.choice(JOINS) for _ in range(rng.randint(1, 4)))
    if kind < 0.66:
        return "".join(rng.choice(JOINS + BASES) for _ in range(rng.randint(1, 6)))
    if kind < 0.67:
        return rng.choice(BASES + WORDS) * rng.randint(2, 120)
    if kind < 0.70:
        return "".join(chr(c) for c in (rng.randrange(0x110000) for _ in range(3)) if not 0xD800 <= c < 0xE000)
    low, high = rng.choice(POOLS)
    return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6)))


def random_text(rng):
    text = "".join(one_part(rng) for _ in range(rng.randint(1, 9)))
    return text * rng.randint(20, 200) if rng.random() < 0.002 else text


# ---- texts of the shared data ----

def strings_of(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from strings_of(v)
    elif isinstance(value, list):
        for v in value:
            yield from strings_of(v)


def data_texts(name):
    with open(os.path.join(DATA, "datasets", name), encoding="utf-8", newline="") as file:
        if name.endswith(".jsonl"):
            return [s for line in file if line.strip() for s in strings_of(json.loads(line))]
        return list(strings_of(json.load(file))) if name.endswith(".json") else file.read().splitlines()


def all_data_texts():
    for folder, _, names in sorted(os.walk(os.path.join(DATA, "datasets"))):
        for name in sorted(names):
            yield from data_texts(os.path.relpath(os.path.join(folder, name), os.path.join(DATA, "datasets")))


def corpus(scale):
    rng = random.Random(5)
    texts = data_texts("text/c4.jsonl")[:int(400 * scale)] + data_texts("alpaca/alpaca_zh.json")[:int(600 * scale)]
    texts += [random_text(rng) for _ in range(int(2000 * scale))]
    return [t.replace("\0", "") for t in texts if t.strip()]


# ---- tokenizers ----

def wordpiece(texts, size, cased):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=60 if cased else 100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased, strip_accents=False if cased else None)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=specials, limit_alphabet=size // 3, show_progress=False))
    ids = [(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
    if cased:
        tokenizer.post_processor = processors.BertProcessing(ids[1], ids[0])
    else:
        tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ids)
    tokenizer.decoder = decoders.WordPiece(cleanup=not cased)
    return tokenizer


def fields(blob):
    """(number, value) of a protobuf message: bytes and varints."""
    def varint(at):
        value = shift = 0
        while True:
            value |= (blob[at] & 127) << shift
            shift += 7
            at += 1
            if blob[at - 1] < 128:
                return value, at
    at = 0
    while at < len(blob):
        key, at = varint(at)
        if key & 7 == 0:
            value, at = varint(at)
        elif key & 7 == 2:
            n, at = varint(at)
            value, at = blob[at:at + n], at + n
        else:
            n = 8 if key & 7 == 1 else 4
            value, at = blob[at:at + n], at + n
        yield key >> 3, value


def few_rules():
    """A file of normalisation rules, so that the charsmap is small (that of nmt_nfkc has 320 kB)."""
    marks = [c for c in JOINS if unicodedata.combining(c)]
    points = [chr(c) for low, high in ((0xA0, 0xBF), (0x2100, 0x2140), (0xFB00, 0xFB06), (0xFF41, 0xFF5A), (0x3131, 0x3140), (0x958, 0x95F)) for c in range(low, high)]
    parts = points + [a + b for a in "aeonAEI" for b in marks] + ["\t", "\n", "\r", "\u3000", "\u200b", "\x01"]
    rules = [(t, " " if t.isspace() else "" if t in "\u200b\x01" else unicodedata.normalize("NFKC", t)) for t in parts]
    file = tempfile.NamedTemporaryFile("w", suffix=".tsv", delete=False)
    with file:
        file.writelines("%s\t%s\n" % tuple(" ".join("%X" % ord(c) for c in text) for text in rule) for rule in rules if rule[0] != rule[1])
    return file.name


def sentencepiece_unigram(texts, size, rule, small=False, **options):
    """(pieces with scores, charsmap) of a SentencePiece unigram model."""
    model = io.BytesIO()
    if small:
        options["normalization_rule_tsv"] = few_rules()
    else:
        options["normalization_rule_name"] = rule
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, vocab_size=size, model_type="unigram",
                                             character_coverage=0.98, hard_vocab_limit=False, minloglevel=2, max_sentence_length=100000, num_threads=1, **options)
    charsmap = next(v for f, spec in fields(model.getvalue()) if f == 3 for g, v in fields(spec) if g == 2)
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [(sp.id_to_piece(i), sp.get_score(i)) for i in range(sp.get_piece_size())], base64.b64encode(charsmap).decode()


def precompiled(charsmap):
    spec = '{"normalizer":{"type":"Precompiled","precompiled_charsmap":"%s"},"model":{"type":"Unigram","unk_id":0,"vocab":[["u",0.0]]}}'
    return Tokenizer.from_str(spec % charsmap).normalizer


def xlmr(texts, size, small=False):
    """As transformers converts XLM-R's model: pieces moved by one, a mask behind."""
    pieces, charsmap = sentencepiece_unigram(texts, size, "nmt_nfkc", small)
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + pieces[3:] + [("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocab, 3, False))
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True, normalized=False)])
    tokenizer.normalizer = normalizers.Sequence([precompiled(charsmap), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", [("<s>", 0), ("</s>", 2)])
    return tokenizer


def t5(texts, size, small=False):
    """With byte tokens, folded case, the older form of the pre-tokenizer."""
    pieces, charsmap = sentencepiece_unigram(texts, size, "nmt_nfkc_cf", small, byte_fallback=True)
    tokenizer = Tokenizer(models.Unigram(pieces, 0, True))
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(left=False), precompiled(charsmap), normalizers.Replace(Regex(" {2,}"), "\u2581")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")])
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", pieces.index(("</s>", 0.0)))])
    return tokenizer


def unigram(texts, size):
    """With the normalisers and pre-tokenizers that the others do not use."""
    pieces, _ = sentencepiece_unigram([t.lower().replace("e", "E") for t in texts], size, "identity")
    tokenizer = Tokenizer(models.Unigram(pieces, 0, False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.NFC(),
                                                 normalizers.Replace(Regex(r"\p{N}+"), "7"), normalizers.Replace("e", "E"), normalizers.Prepend("\u2581")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.CharDelimiterSplit("|"), pre_tokenizers.UnicodeScripts(), pre_tokenizers.Digits(True),
                                                       pre_tokenizers.Punctuation("merged_with_next"), pre_tokenizers.Metaspace(prepend_scheme="first", split=False)])
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def bpe(texts, size, kind):
    """suffix: as GPT-1 and CLIP; prefix: pieces as in WordPiece; whole: ignore_merges and a Roberta post-processor."""
    if kind == "whole":
        tokenizer = Tokenizer(models.BPE(ignore_merges=True))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=["<s>", "</s>", "<mask>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
        tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=True, add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        spec = json.loads(tokenizer.to_str())
        del spec["model"]["merges"][len(spec["model"]["merges"]) // 2:]
        return Tokenizer.from_str(json.dumps(spec))
    affix = {"end_of_word_suffix": "</w>"} if kind == "suffix" else {"continuing_subword_prefix": "##"}
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=kind == "prefix", **affix))
    tokenizer.normalizer = normalizers.BertNormalizer(clean_text=kind == "prefix", handle_chinese_chars=False, strip_accents=True, lowercase=kind == "suffix")
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer() if kind == "suffix" else pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=["<unk>"], limit_alphabet=size // 3, show_progress=False, **affix))
    tokenizer.decoder = decoders.BPEDecoder("</w>") if kind == "suffix" else decoders.CTC("<unk>", "n")
    return tokenizer


def added(tokenizer):
    """With added tokens of every flag."""
    tokenizer.add_tokens([AddedToken("tok", single_word=True), AddedToken("Wordy", lstrip=True, rstrip=True), AddedToken("\u00c9t\u00e9", normalized=True),
                          AddedToken("world", lstrip=True, normalized=False), AddedToken("the", single_word=True, normalized=False, rstrip=True)])
    tokenizer.add_special_tokens([AddedToken("[MASK]", lstrip=True, normalized=False), AddedToken("foo_bar", normalized=True, rstrip=True)])
    return tokenizer


def build(scale=1.0, size=3000, small=False):
    """Kind -> tokenizer. small: with little charsmaps."""
    texts = corpus(scale)
    if small:
        known = set("".join(BASES + JOINS + WORDS)) | set(map(chr, range(128)))
        texts = ["".join(c for c in text if c in known) for text in texts]
    return {"wordpiece": wordpiece(texts, size, False), "wordpiece-cased": wordpiece(texts, size, True), "wordpiece-added": added(wordpiece(texts, size, False)),
            "xlmr": xlmr(texts, size, small), "xlmr-added": added(xlmr(texts, size, small)), "t5": t5(texts, size, small), "unigram": unigram(texts, size),
            "bpe-suffix": bpe(texts, size, "suffix"), "bpe-prefix": bpe(texts, size, "prefix"), "bpe-whole": bpe(texts, size, "whole")}
