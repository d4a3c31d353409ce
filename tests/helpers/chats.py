"""Conversations, chat templates, and how both are compared with `transformers`."""

import datetime

import jinja2
import pytest

from cgrpo_jax.errors import UserError

NOW = datetime.datetime(2024, 2, 29, 23, 59)
QUESTION = {"role": "user", "content": "What is 12 + 30?"}
ANSWER = {"role": "assistant", "content": "It is\n 41. "}
AGAIN = {"role": "user", "content": "  naïve 東京: wrong.\n\nTry again.\n"}
THOUGHT = {"role": "assistant", "content": "<think>\n12 + 30\n</think>\n\n42"}
SYSTEM = {"role": "system", "content": " Be brief. "}
CONVERSATIONS = [
    [QUESTION],
    [SYSTEM, QUESTION],
    [QUESTION, ANSWER],
    [QUESTION, ANSWER, AGAIN],
    [SYSTEM, QUESTION, THOUGHT, AGAIN, THOUGHT],
    [SYSTEM, QUESTION, ANSWER, AGAIN, THOUGHT, QUESTION],
    [{"role": "user", "content": ""}],
    # Orders that some templates refuse.
    [QUESTION, AGAIN],
    [ANSWER],
    [SYSTEM],
    [QUESTION, SYSTEM],
    [{"role": "critic", "content": "Wrong."}],
]

# Templates in our own words, with the constructs that the families' published ones are built from.

# One line; a slice leaves the system turn out, which is folded into the first user's; `strip` is Python's.
LLAMA2 = (
    "{% set told = messages[0]['role'] == 'system' %}{% for m in (messages[1:] if told else messages) %}"
    "{% set due = 'assistant' if loop.index0 % 2 else 'user' %}"
    "{% if m['role'] != due %}{{ raise_exception('expected the turn of ' + due) }}{% endif %}"
    "{% set frame = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' if told and loop.first else '' %}"
    "{% if due == 'user' %}{{ bos_token + '[INST] ' + (frame + m['content']).strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# The day from the caller, the clock or a default; a rebound `messages`; tools that stay off; a system turn always.
LLAMA3 = """
{%- macro turn(role, text) %}
    {{- "<|start_header_id|>" ~ role ~ "<|end_header_id|>\\n\\n" ~ text ~ "<|eot_id|>" }}
{%- endmacro %}
{%- if not day is defined %}
    {%- set day = strftime_now("%d %b %Y") if strftime_now is defined else "1 Jan 2024" %}
{%- endif %}
{#- A comment, cut on both sides. -#}
{%- set told = "" %}
{%- if messages[0].role == "system" %}
    {%- set told = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- if not messages %}
    {{- raise_exception("nobody asks") }}
{%- endif %}
{{- bos_token + turn("system", "Today: " + day + "\\n\\n" + told) }}
{%- if custom_tools is defined or tools is not none %}
    {%- for tool in tools %}{{- tool | tojson(indent=4) }}{%- endfor %}
{%- endif %}
{%- for m in messages %}
    {%- if "tool_calls" in m and m.tool_calls | length != 1 %}
        {{- raise_exception("one call at a time") }}
    {%- endif %}
    {{- turn(m["role"], m["content"] | trim) }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""
# Chains of filters over messages, an attribute set on an empty namespace, messages compared, the last turn framed.
MISTRAL = """{%- set ns = namespace() %}
{%- set ns.turns = 0 %}
{%- set tools = tools if tools is defined else none %}
{%- set said = messages | rejectattr("role", "equalto", "system") | list %}
{%- for m in said | rejectattr("role", "equalto", "tool") | selectattr("tool_calls", "undefined") %}
    {%- set ns.turns = ns.turns + 1 %}
    {%- if (ns.turns % 2 == 1) != (m["role"] == "user") %}
        {{- raise_exception("turn about, the user first") }}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for m in said %}
    {%- if m["role"] == "assistant" %}
        {{- " " + m["content"]|trim + eos_token }}
    {%- elif m["role"] != "user" %}
        {{- raise_exception("nobody else may speak") }}
    {%- else %}
        {%- if tools is not none and m == (said | selectattr("role", "equalto", "user") | list)[-1] %}
            {{- tools | tojson }}
        {%- endif %}
        {{- "[INST] " }}
        {%- if loop.last and messages[0].role == "system" %}{{- messages[0]["content"] + "\\n\\n" }}{%- endif %}
        {{- m["content"] + "[/INST]" }}
    {%- endif %}
{%- endfor %}
"""
# A system turn of the template's own where none is given.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nSYSTEM<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' ~ m['role'] ~ '\n' ~ m['content'] ~ '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)
# Messages read backwards, thoughts split off by string methods and kept in the last answer only, `generation`.
QWEN3 = """{%- set ns = namespace(asked=none) %}
{%- for m in messages[::-1] %}
    {%- if ns.asked is none and m.role == "user" and m.content is string and not m.content.startswith("<reply>") %}
        {%- set ns.asked = loop.revindex0 %}
    {%- endif %}
{%- endfor %}
{%- if tools %}{{- tools | tojson }}{%- endif %}
{%- for m in messages %}
    {{- "<|im_start|>" + m.role + "\\n" }}
    {%- if m.role == "assistant" %}
        {%- set parts = m.content.split("</think>") %}
        {%- set thought = m.reasoning_content if m.reasoning_content is string else "" %}
        {%- if parts | length > 1 %}
            {%- set thought = parts[0].rstrip("\\n").split("<think>")[-1].lstrip("\\n") %}
        {%- endif %}
        {%- generation %}
        {%- if ns.asked is not none and loop.index0 > ns.asked and (loop.last or thought) %}
            {{- "<think>\\n" + thought + "\\n</think>\\n\\n" }}
        {%- endif %}
        {{- parts[-1].lstrip("\\n") }}
        {%- endgeneration %}
        {%- for call in m.tool_calls %}{{- call.function }}{%- endfor %}
    {%- else %}
        {{- m.content }}
    {%- endif %}
    {{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- "<think>\\n\\n</think>\\n\\n" }}
    {%- endif %}
{%- endif %}"""
# Refuses a system turn; the assistant has another name.
GEMMA2 = (
    "{% if messages | map(attribute='role') | first == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{{ bos_token }}{% for m in messages %}{% set role = {'assistant': 'model'}.get(m['role'], m['role']) %}"
    "{% if role != ['user', 'model'][loop.index0 % 2] %}{{ raise_exception('turn about, the user first') }}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Folds a system turn into the user's; contents may be lists; line ends within quotes; cut on both sides.
GEMMA3 = """
{%- macro words(content) -%}
    {%- if content is string -%}
        {{ content | trim }}
    {%- elif content is iterable -%}
        {%- for part in content if part.type == "text" -%}{{ part.text | trim }}{%- endfor -%}
    {%- else -%}
        {{ raise_exception("no words") }}
    {%- endif -%}
{%- endmacro -%}
{%- set told = messages[0]['content'] + '

' if messages[0]['role'] == 'system' else '' -%}
{{ bos_token }}
{%- for m in messages[1 if told else 0:] -%}
    {%- set due = "user" if loop.index is odd else "assistant" -%}
    {%- if m['role'] != due -%}
        {{ raise_exception("the turn is not " + m['role'] + "'s") }}
    {%- endif -%}
    {{ '<start_of_turn>' + ("model" if due == "assistant" else due) + '
' + (told if loop.first else "") + words(m['content']) }}
    {{- '<end_of_turn>
' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model
' }}
{%- endif -%}
"""
# Blocks that are cut by their place alone, loop controls, what is and is not defined, filters at their edges.
CORNERS = """{% for m in messages %}
    {% if m.role == 'system' %}
        {% continue %}
    {% endif %}
    {{ loop.index ~ m.role.upper() ~ (m | tojson) ~ ("é<'&" | tojson) ~ m.name | default('-') }}
    {%- if loop.index == 4 %}{% break %}{% endif %}
{% endfor %}
{{ [tools is none, documents is none, pad_token is defined, bos_token is defined, unk_token is defined] }}
{%- macro turn(text) %}({{ text | trim | replace('\\n', ' ') }}){% endmacro %}
{{ turn(messages[-1].content) }}{{ messages | map(attribute='role') | join(', ') }}
{{ dict(a=1).items() | list }}{{ 'abc'[::-1] }}{{ range(3) | list }}
"""


def compare_chats(ours, theirs, **variables):
    """Compares text and ids of every conversation, or that both refuse it; returns the texts of prompts."""
    texts = []
    for messages in CONVERSATIONS:
        for prompt in (True, False):
            try:
                text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **variables)
            except (jinja2.TemplateError, TypeError):
                with pytest.raises(UserError, match="refused messages of roles"):
                    ours.chat_text(messages, prompt)
                texts.append(None)
                continue
            assert ours.chat_text(messages, prompt) == text
            ids = theirs(text, add_special_tokens=False)["input_ids"]
            assert ours.chat_ids(messages, add_generation_prompt=prompt) == ids
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
            texts.append(text)
    return texts[::2]
