#!/usr/bin/env python3
"""templates.json: dialogs rendered by the jinja chat templates of the models, for tests/unit/text/test_template.c.

usage: make_templates.py [--hashes] [shared data folder [TRL's chat_templates folder]] > tests/golden/templates.json
Needs jinja2 and xxhash. Qwen's templates are read from the tokenizer folders; the short ones stand below as published. TRL's folder (of its wheel,
trl/chat_templates) has those of Llama 3.1 and 3.2 and of Qwen3-Instruct-2507 as published, and its own training templates, whose {% generation %}
marks change no text. Llama 3.2's takes the day of rendering where it can; here it has none, and falls back to 26 Jul 2024 as 3.1's does.
Also writes each jinja text's hash into conf/template/<name>.json ("jinja_hashes") when called with --hashes.
"""
import json
import pathlib
import re
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox
import xxhash

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>¶¶'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}")
LLAMA3_PROMPT = "{{ '<|start_header_id|>assistant<|end_header_id|>¶¶' }}"
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate "
    "user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>¶' + system_message + '¶<</SYS>>¶¶' + message['content'] %}{% else %}"
    "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
TULU = (
    "{% for message in messages %}\n{% if message['role'] == 'system' %}\n{{ '<|system|>¶' + message['content'] }}\n"
    "{% elif message['role'] == 'user' %}\n{{ '<|user|>¶' + message['content'] }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>¶'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}")
TULU3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>¶' + message['content'] + '¶' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>¶' + message['content'] + '¶' }}{% elif message['role'] == 'assistant' %}"
    "{% if not loop.last %}{{ '<|assistant|>¶'  + message['content'] + eos_token + '¶' }}{% else %}"
    "{{ '<|assistant|>¶'  + message['content'] + eos_token }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>¶' }}{% endif %}{% endfor %}")


def spelled(text):
    """A line feed inside a jinja string (\u00b6 above) may stand there as backslash n or as itself: one template, two hashes."""
    return [text.replace("\u00b6", "\\n"), text.replace("\u00b6", "\n")]


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    env.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)
    env.globals["raise_exception"] = raise_exception
    return env


def without_marks(text):
    """TRL's {% generation %} blocks as blocks that do nothing, with the same treatment of white space."""
    return re.sub(r"(\{%-?) *endgeneration *(-?%\})", r"\1 endif \2", re.sub(r"(\{%-?) *generation *(-?%\})", r"\1 if true \2", text))


def message(role, content, **more):
    return {"role": role, "content": content, **more}


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2, "p": 0.1, "q": 1e-7, "r": 1e22}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Tells \"it\".\n", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": []}}},
    {"type": "function", "function": {"name": "f", "parameters": {"a": [], "b": {}, "c": None, "d": True, "e": 1.0}}}]

SIMPLE = {
    "one": [message("user", "What is 2+2?"), message("assistant", "4")],
    "system": [message("system", "Be brief."), message("user", "Hi"), message("assistant", "Hello!")],
    "many": [message("user", "a"), message("assistant", "b"), message("user", "c"), message("assistant", "d")],
    "spaces": [message("system", " s \n"), message("user", "\n x\t "), message("assistant", "  y\u3000\n"), message("user", "é"),
               message("assistant", "\n日本")],
}
OPEN = {"ask": [message("system", "S"), message("user", "Q")], "ask2": [message("user", "a"), message("assistant", "b"), message("user", "c")]}
TOOL = {
    "calls": [message("user", "Weather?"), message("assistant", "", tool_calls=[CALL]), message("tool", "sunny"), message("tool", "rain"),
              message("assistant", "Both.")],
    "said": [message("system", "S"), message("user", "W?"), message("assistant", "Let me look.", tool_calls=[CALL, CALL]), message("tool", "x"),
             message("assistant", "Done."), message("user", "Thanks"), message("assistant", "Bye")],
    "last": [message("user", "W?"), message("assistant", "", tool_calls=[CALL])],
}
THINK = {
    "think": [message("user", "a"), message("assistant", "<think>\nhm\n</think>\n\nb"), message("user", "c"),
              message("assistant", "<think>\n\nlong\nthought\n\n</think>\n\nd")],
    "behind": [message("user", "a"), message("assistant", "<think>\nhm\n</think>\n\nb", tool_calls=[CALL]), message("tool", "t"),
               message("assistant", "e")],
}


def main():
    arguments = [a for a in sys.argv[1:] if a != "--hashes"]
    shared = pathlib.Path(arguments[0] if arguments else "../shared/data") / "tokenizers"
    qwen25 = json.loads((shared / "qwen2.5-tokenizer_config.json").read_text())["chat_template"]
    qwen3 = json.loads((shared / "qwen3/tokenizer_config.json").read_text())["chat_template"]
    asked = "{% if add_generation_prompt %}" + LLAMA3_PROMPT + "{% endif %}"
    jinja = {
        "qwen2.5": [qwen25], "qwen3": [qwen3],
        "llama3": spelled(LLAMA3 + asked) + spelled(LLAMA3 + LLAMA3_PROMPT), "llama2": spelled(LLAMA2), "tulu": spelled(TULU),
        "olmoe": spelled("{{ bos_token }}" + TULU), "tulu3": spelled(TULU3),
    }
    if len(arguments) > 1:
        trl = {path.stem: path.read_text() for path in pathlib.Path(arguments[1]).glob("*.jinja")}
        jinja["qwen2.5"].append(trl["qwen2_5_training"])
        jinja["llama3"] += [trl["llama3"], trl["llama3_training"]]
        jinja.update({"chatml": [trl["qwen3_instruct_2507"]], "llama3.1": [trl["llama3_1"], trl["llama3_2"]], "qwen3-train": [trl["qwen3_training"]]})
    env = environment()
    out = []
    for name, texts in jinja.items():
        sets = dict(SIMPLE)
        has_tools = name.startswith("qwen") or name == "chatml"
        if has_tools:
            sets.update(TOOL)
        if name.startswith("qwen3"):
            sets.update(THINK)
        for kind, dialogs in (("whole", sets), ("open", OPEN)):
            for dialog, messages in dialogs.items():
                for tools in ([None, TOOLS] if has_tools else [None]):
                    given = {"messages": messages, "tools": tools, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": kind == "open"}
                    every = [env.from_string(without_marks(text)).render(given) for text in texts]
                    shown = every[0]
                    # the first spellings of Llama 3's always ask for an answer
                    asks = env.from_string(LLAMA3_PROMPT.replace("\u00b6", "\n")).render() if name == "llama3" and kind == "whole" else ""
                    assert all(other in (shown, shown + asks) for other in every), (name, dialog, tools)
                    record = {"messages": messages}
                    if tools:
                        record["tools"] = tools
                    out.append({"template": name, "dialog": dialog, "open": kind == "open", "record": record, "text": shown})
    if "--hashes" in sys.argv:
        for name, texts in jinja.items():
            path = pathlib.Path("conf/template") / (name + ".json")
            data = json.loads(path.read_text())
            hashes = [xxhash.xxh3_128_hexdigest(t.encode()) for t in texts]
            data["jinja_hashes"] = sorted(set(data["jinja_hashes"]) | set(hashes))
            path.write_text(json.dumps(data, indent=4, ensure_ascii=False) + "\n")
    json.dump(out, sys.stdout, ensure_ascii=False, indent=1)
    print()


main()
