#!/usr/bin/env python3
"""Renders conversations with Hugging Face's own code and writes tests/data/chat_goldens.json.

    python3 -m venv v && v/bin/pip install transformers jinja2 && v/bin/python scripts/make_chat_goldens.py

The templates use what the published LLaMA-2, LLaMA-3 and ChatML ones use, and then some; the strings are
transformers' answers, refusals included. The C++ test renders the same and compares byte by byte.
"""

import json
import pathlib

import transformers
from transformers.utils.chat_template_utils import render_jinja_template

OUTPUT = pathlib.Path(__file__).resolve().parents[1] / "tests" / "data" / "chat_goldens.json"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set turns = messages %}{% set system = false %}{% endif %}{% for turn in turns %}"
    "{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system != false %}"
    "{% set text = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + turn['content'] %}"
    "{% else %}{% set text = turn['content'] %}{% endif %}"
    "{% if turn['role'] == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% elif turn['role'] == 'assistant' %}{{ ' '  + text.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
LLAMA3 = (
    "{% for turn in messages %}{% set text = '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\n\n'"
    " + turn['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}"
    "{{ text }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
LLAMA31 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system message goes into its own block. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
    {{- builtin_tools | reject('equalto', 'code_interpreter') | join(", ") ~ "\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.role == "tool" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(turns=0, last="") %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
        {%- set ns.turns = ns.turns + 1 %}
        {%- set ns.last = message.content[:3] %}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
{#- what was said -#}
{{ ns.turns }}/{{ ns.last }}
"""
SPACES = """  {% for m in messages %}
  text of {{ m.role }}:
    {%- if m.role == 'user' +%}
  [{{ m.content|trim }}]
    {%+ else %}
  <{{ m.content }}>   {% endif %}

  {# a comment #}
  {% endfor %}
end {% if add_generation_prompt %}yes{% else %}no{% endif %}

"""
EXPRESSIONS = """{%- set list = [1, 2.5, 'a', "b\\tc", none, true] -%}
{{ list|length }} {{ list[-1] }} {{ list[2:4]|join('+') }} {{ list[::-1]|first }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }}
{{ 1 < 2 <= 2 }} {{ 'a' in 'cat' }} {{ 'x' not in messages[0] }} {{ not none }} {{ '' or 'else' }} {{ 3 if false else 4 }} {{ 5 if false }}
{{ {'k': [1, {'z': 'é"\\n'}], 'f': 1.0, 'n': none, 't': true}|tojson }} {{ {'a': [1, 2], 'b': {}}|tojson(indent=2) }}
{% for key, value in {'one': 1, 'two': 2}.items() %}{{ key }}={{ value }}{{ ',' if not loop.last }}{% endfor %}
{% for m in messages if m.role != 'system' %}{{ loop.index }}/{{ loop.length }}:{{ m.role|upper|replace('S', 'ss') }};{% else %}none{% endfor %}
{{ ' x '.strip() ~ 'y'.rstrip() ~ 'zz'.lstrip('z') }} {{ 'a,b,,c'.split(',')|length }} {{ 'one two'.split()[1] }} {{ 'hello world'.title() }} {{ 'HeLLo'|capitalize }}
{{ messages|selectattr('role', 'equalto', 'user')|list|length }} {{ messages|map(attribute='role')|join(' ') if false else 'skip' }}
{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}
{% set block %}in {{ 1 + 1 }} block{% endset %}{{ block }} {{ block.startswith('in') and block.endswith(('ck', 'x')) }}
{{ undefined_name }}{{ undefined_name is defined }}{{ messages[0].nothing }}{{ (1, 2) | length }} {{ 'a' 'b' }} {{ "%s"|length }} {{ 2 * 3 + 4 }} {{ messages[99] is undefined }}
{{ 'abc'[1] }} {{ 'abc'[-2:] }} {{ 'ä€😀'|length }} {{ 'ä€😀'[::-1] }} {{ '\\u00e9\\x41' }} {{ 1.5 + 1 }} {{ 10 | string + '1' }} {{ '12'|int + 1 }} {{ x|default('d') }}
{{ loop is defined }} {{ 4 is even }} {{ 'x' is string }} {{ [] is iterable }} {{ {} is mapping }} {{ 1 is number }} {{ none is none }} {{ 3 is odd and not (3 is even) }}"""
TEMPLATES = {"llama2": LLAMA2, "llama3": LLAMA3, "llama31": LLAMA31, "chatml": CHATML, "qwen": QWEN,
             "spaces": SPACES, "expressions": EXPRESSIONS}

USER = {"role": "user", "content": "  Who wrote \"War & Peace\"? \n"}
SYSTEM = {"role": "system", "content": "Be brief.\n"}
ASSISTANT = {"role": "assistant", "content": " Leo Tolstoy – «Лев Толстой». "}
CONVERSATIONS = [
    [USER],
    [SYSTEM, USER],
    [USER, ASSISTANT, {"role": "user", "content": "Says <|im_end|> who? 你好 😀"}],
    [SYSTEM, USER, ASSISTANT, USER],
    [ASSISTANT, USER],
    [USER, USER],
    [USER, {"role": "tool", "content": "42"}, {"role": "tool", "content": "43"}],
    [{"role": "user", "content": ""}],
]


def render(template, messages, prompt):
    try:
        rendered, _ = render_jinja_template(conversations=[messages], chat_template=template,
                                            add_generation_prompt=prompt, **TOKENS)
        return {"text": rendered[0]}
    except Exception as error:  # noqa: BLE001: whatever it is, the C++ side must refuse too
        return {"error": str(error)}


def main():
    cases = [{"template": name, "messages": messages, "add_generation_prompt": prompt, **render(source, messages, prompt)}
             for name, source in TEMPLATES.items() for messages in CONVERSATIONS for prompt in (False, True)]
    document = {"made_with": f"transformers {transformers.__version__}", **TOKENS, "templates": TEMPLATES, "cases": cases}
    OUTPUT.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n")
    print(f"{OUTPUT.name}: {len(cases)} cases, {sum('error' in case for case in cases)} of them refused")


if __name__ == "__main__":
    main()
