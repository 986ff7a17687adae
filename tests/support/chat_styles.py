"""Chat templates in the typical styles, written for these tests, and chats to try them on."""

from typing import Any

CHATML = """{%- for message in messages -%}
    {%- if loop.first and message['role'] != 'system' -%}
        {{- '<|im_start|>system\\nBe of help.<|im_end|>\\n' -}}
    {%- endif -%}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

# Headers, a date, the system message taken out of the list, tools as indented JSON.
HEADERS = """{{- bos_token }}
{%- set today = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|head|>system<|/head|>\\n\\nToday: " + today[:0] + "\\n" + system }}
{%- if tools is not none %}
    {{- "\\nTools:\\n" }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- "<|eot|>" }}
{%- for message in messages %}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("One call at a time.") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|head|>assistant<|/head|>\\n\\n{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' ~ (call.arguments | tojson) ~ "}<|eot|>" }}
    {%- elif message.content is mapping or (message.content is iterable and message.content is not string) %}
        {{- '<|head|>' + message['role'] + '<|/head|>\\n\\n' }}
        {%- for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}
        {{- '<|eot|>' }}
    {%- else %}
        {{- '<|head|>' + message['role'] + '<|/head|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|/head|>\\n\\n' }}
{%- endif %}
"""

# Turns that must alternate, the system text in front of the first user's, the assistant renamed.
TURNS = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Roles must alternate user/assistant/user/assistant") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first if loop.first else "") + message['content'] | trim }}
    {{- '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""

# [INST] with a namespace, loop controls, the end token after each answer, a macro and a generation block.
INST = """{%- macro said(text) -%}{{ ' ' ~ text ~ eos_token }}{%- endmacro -%}
{%- set state = namespace(system='', pending=false) -%}
{%- for message in messages if message.role == 'system' -%}
    {%- set state.system = state.system + message.content + '\\n\\n' -%}
{%- endfor -%}
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{%- continue -%}{%- endif -%}
    {%- if message.role == 'user' -%}
        {%- set last = messages[loop.index:] | selectattr('role', 'equalto', 'user') | list == [] -%}
        {{- '[INST] ' + (state.system if last else '') + message.content + ' [/INST]' -}}
    {%- elif message.role == 'assistant' -%}
        {%- generation -%}{{- said(message.content) -}}{%- endgeneration -%}
    {%- else -%}
        {%- break -%}
    {%- endif -%}
{%- endfor -%}
"""

# Thinking taken out of earlier answers, a switch, reasoning under a name of its own, tools on one line.
THINKING = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}{{ "\\n" }}{{ tool | tojson }}{% endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and message.content is string %}
        {%- set ns.last = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and reasoning %}
            {{- '<|im_start|>assistant\\n<think>\\n' ~ reasoning ~ '\\n</think>\\n\\n' ~ content }}
        {%- else %}
            {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n' ~ call.function | tojson ~ '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- elif enable_thinking is defined %}
        {{- '<think>\\n' }}
    {%- endif %}
{%- endif %}
"""

# Many small things at once: filters, tests, slices, formats, joins, defaults, whitespace, dictionaries.
ODDS = """  {% set names = messages | map(attribute='role') | list %}
    {# a comment #}
{{ names | join(', ') }} {{ names | unique | join('/') }} {{ names | length }} {{ names[-1] | upper }}
    {% if messages | selectattr('role', 'equalto', 'nobody') %}always{% endif %}
{{ "%s=%d, %5.2f" | format("a", 3, 1.5) }} {{ "%s" % ("x",) }} {{ "{:>4}|{name}".format(7, name="é") }}
{{ {'b': [1, 2.5, none, true], 'a': '<é&>'} | tojson(sort_keys=true, separators=(',', ':')) }}
{{ ['x', messages[0].role] }} {{ (1, messages | length) }} {{ {'k': names[0]} }} {{ none }} {{ true }}
{{ missing | default('none here') }}{{ missing }} {{ '<b>' | e }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 10 }}
{{ 'a' * 3 }} {{ [0] * 3 }} {{ 'abc'[::-1] }} {{ messages[0].content | replace('e', 'E') | indent(2) }}
{% for key, value in dict(a=1, b=2).items() %}{{ key }}{{ value }}{{ loop.revindex }}{% endfor %}
{% set ns = namespace(found=[]) %}{% for m in messages %}{% set ns.found = ns.found + [m.role] %}{% endfor %}
{{ ns.found }} {{ messages[0]['content'].split(' ') }} {{ 'Ab'.lower().startswith('a') }} {{ 3.0 | int }}
{% filter upper %}block {{ names[0] }}{% endfilter %}
{% set text %}x{{ 1 + 1 }}y{% endset %}{{ text | length }}
{{ names | batch(2) | list }} {{ names | groupby(0) | length }} {{ names is sequence }} {{ 5 is odd }}
{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ image_token }}
{{ documents }} {{ tools }} {{ loop is defined }}
{{ messages[0].items() | list }} {{ range(3) | list }} {{ range(0, 10, 5) | sum }}
{{ cycler('a', 'b').next() }}
"""

STYLES = {
    "chatml": CHATML,
    "headers": HEADERS,
    "turns": TURNS,
    "inst": INST,
    "thinking": THINKING,
    "odds": ODDS,
}

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a place: <b>now</b> & 'later', größer",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}},
                "required": ["place"],
            },
        },
    }
]

CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hello  there <b>é</b> 日本 🙂"}],
    "system": [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "Hi\n"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello."},
        {"role": "user", "content": "Again?"},
    ],
    "calls": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "reasoning": "ask the tool",
            "tool_calls": [
                {
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"place": "Łódź", "n": 1.0}},
                }
            ],
        },
        {"role": "tool", "content": '{"degrees": 7}'},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]}],
    "wrong": [{"role": "assistant", "content": "me first"}],
}
