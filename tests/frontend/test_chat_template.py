"""Prompts are rendered exactly as transformers renders them."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from frontend.chat_template import ChatTemplate, Message
from frontend.tokenizer import Tokenizer
from frontend.tools import Tool
from protocol.errors import InvalidRequest, StartupError

BUNDLED = Path(__file__).parents[2] / "models" / "tern-mini"

CHATML = """
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou are a bird.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
<|start_header_id|>system<|end_header_id|>

{{ system }}<|eot_id|>
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant', 'tool'] %}
        {{- raise_exception('Unexpected role: ' + message.role) }}
    {%- endif %}
    {%- if message.tool_calls %}
        {%- for call in message.tool_calls %}
            {%- if loop.index > 2 %}{% break %}{% endif %}
            {{- '{"name": "' + call.function.name + '", "parameters": ' }}
            {{- call.function.arguments | tojson }}
            {{- "}" }}
        {%- endfor %}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
NAMESPACE = """{% set ns = namespace(turns=0, last='') %}
  {% for m in messages %}
    {% if m.role == 'user' %}{% set ns.turns = ns.turns + 1 %}{% endif %}
    {% generation %}{{ m.content }}{% endgeneration %}
    {% set ns.last = m.role %}
  {% endfor %}
{{ ns.turns }} {{ ns.last }} {{ {"b": 1, "a": "<é>"} | tojson(indent=2, sort_keys=true) }}
{{ dict(x=1) | tojson }} {{ messages | map(attribute='role') | join(',') }} {{ eos_token }}
"""
PARTS = """{% for m in messages %}{{ m.role }}:
{%- if m.content is string %}{{ m.content }}
{%- else %}{% for part in m.content %}{% if part.type == 'text' %}[{{ part.text }}]{% endif %}{% endfor %}
{%- endif %}{{ '\\n' }}{% endfor %}"""
REASONING = """{% for m in messages %}{{ m.role }}{% if m.reasoning_content %}({{ m.reasoning_content }})
{%- endif %}{% if m.thinking %}({{ m.thinking }}){% endif %}{{ m.content }}{% endfor %}"""
TEMPLATES = {
    "chatml": CHATML,
    "llama": LLAMA,
    "namespace": NAMESPACE,
    "parts": PARTS,
    "reasoning": REASONING,
    "bundled": (BUNDLED / "chat_template.jinja").read_text(),
}
USER = {"role": "user", "content": "  Where do <terns> & co. go? 🐦\n"}
CALL = {"type": "function", "function": {"name": "fly", "arguments": {"to": "pôle", "n": 2, "fast": True}}}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "system": [{"role": "system", "content": "Be brief.\n"}, USER],
    "turns": [USER, {"role": "assistant", "content": "South. "}, {"role": "user", "content": "And then?"}],
    "tools": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL] * 3},
        {"role": "tool", "content": "done"},
    ],
    "reasoning": [
        USER,
        {"role": "assistant", "content": "South.", "reasoning_content": "It is autumn."},
        USER,
    ],
}


@pytest.fixture(scope="module")
def reference(model_folder: Path) -> Any:
    return PreTrainedTokenizerFast.from_pretrained(model_folder)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "variables", [{}, {"enable_thinking": False, "bos_token": "<other>"}], ids=["", "vars"]
)
@pytest.mark.parametrize("generate", [True, False])
def test_the_same_as_transformers(
    reference: Any,
    tokenizer: Tokenizer,
    name: str,
    chat: str,
    variables: dict[str, Any],
    generate: bool,
) -> None:
    template = ChatTemplate(TEMPLATES[name], tokenizer.special_tokens)
    rendered = template.render(CHATS[chat], add_generation_prompt=generate, variables=variables)
    assert rendered == reference.apply_chat_template(
        CHATS[chat],
        chat_template=TEMPLATES[name],
        tokenize=False,
        add_generation_prompt=generate,
        **variables,
    )


@pytest.mark.parametrize("name", ["chatml", "llama", "bundled", "parts"])
@pytest.mark.parametrize("ending", ["From the", "From the ", "From the  \n"])
def test_going_on_with_the_last_message(reference: Any, tokenizer: Tokenizer, name: str, ending: str) -> None:
    chat = [USER, {"role": "assistant", "content": ending}]
    template = ChatTemplate(TEMPLATES[name], tokenizer.special_tokens)
    rendered = template.render(chat, add_generation_prompt=False, continue_final_message=True)
    assert rendered == reference.apply_chat_template(
        chat, chat_template=TEMPLATES[name], tokenize=False, continue_final_message=True
    )


def test_going_on_with_the_last_part(reference: Any, tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "From"}, {"type": "text", "text": " the "}]
    chat: list[dict[str, Any]] = [USER, {"role": "assistant", "content": parts}]
    for name in ("parts", "bundled"):
        template = ChatTemplate(TEMPLATES[name], tokenizer.special_tokens)
        rendered = template.render(chat, add_generation_prompt=False, continue_final_message=True)
        assert rendered == reference.apply_chat_template(
            chat, chat_template=TEMPLATES[name], tokenize=False, continue_final_message=True
        )
    with pytest.raises(InvalidRequest, match="no text"):
        template.render([{"role": "assistant", "content": []}], continue_final_message=True)


def test_lists_of_parts_reach_templates_that_read_them(reference: Any, tokenizer: Tokenizer) -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    for name in ("parts", "bundled"):
        rendered = ChatTemplate(TEMPLATES[name], tokenizer.special_tokens).render(chat)
        expected = reference.apply_chat_template(
            chat, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True
        )
        assert rendered == expected
    assert "user\none\ntwo" in ChatTemplate(CHATML, {}).render(chat)


def test_a_template_may_refuse_messages(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(LLAMA, tokenizer.special_tokens)
    with pytest.raises(InvalidRequest, match="Unexpected role: system") as caught:
        template.render([USER, {"role": "developer", "content": "x"}])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10000000) %}x{% endfor %}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages[0].nothing.more }}",
    ],
)
def test_a_template_stays_in_its_sandbox(source: str) -> None:
    with pytest.raises(InvalidRequest):
        ChatTemplate(source, {}).render([USER])


def test_a_template_that_does_not_compile_stops_the_start() -> None:
    with pytest.raises(StartupError, match="does not compile"):
        ChatTemplate("{% if %}", {})


def test_where_templates_are_found(tmp_path: Path) -> None:
    assert ChatTemplate.load("", tmp_path, {}, {}) is None
    config: dict[str, Any] = {"chat_template": "config"}
    several = {
        "chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "default"}]
    }
    found = []
    for override, extra in [("", config), ("", several)]:
        template = ChatTemplate.load(override, tmp_path, extra, {})
        assert template is not None
        found.append(template.render([USER]))
    (tmp_path / "chat_template.jinja").write_text("file")
    (tmp_path / "mine").write_text("mine")
    for override in ("", str(tmp_path / "mine")):
        template = ChatTemplate.load(override, tmp_path, config, {})
        assert template is not None
        found.append(template.render([USER]))
    assert found == ["config", "default", "file", "mine"]
    with pytest.raises(StartupError, match="no such file"):
        ChatTemplate.load(str(tmp_path / "nothing"), tmp_path, config, {})


@pytest.mark.parametrize("chat", ["one", "system", "tools"])
def test_tools_are_shown_as_transformers_shows_them(reference: Any, tokenizer: Tokenizer, chat: str) -> None:
    source = "{% if tools %}{% for t in tools %}{{ t | tojson(indent=4) }}{% endfor %}{% endif %}" + LLAMA
    tools = [
        Tool(
            "fly", "South & back", {"type": "object", "properties": {"to": {"type": "string"}}}
        ).for_template(),
        Tool("rest").for_template(),
    ]
    for template in (source, TEMPLATES["bundled"]):
        rendered = ChatTemplate(template, tokenizer.special_tokens).render(CHATS[chat], tools=tools)
        assert rendered == reference.apply_chat_template(
            CHATS[chat], tools=tools, chat_template=template, tokenize=False, add_generation_prompt=True
        )


def test_what_a_template_reads() -> None:
    llama = (
        "{% if custom is defined %}{% set tools = custom %}{% endif %}{{ tools }}{% set mine = 1 %}{{ mine }}"
    )
    template = ChatTemplate(llama, {})
    assert template.reads("tools")
    assert not template.reads("mine")
    assert not template.reads("reasoning_effort")


def test_a_template_of_its_own_for_tools(tmp_path: Path) -> None:
    several = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with {{ tools }}"}]
    template = ChatTemplate.load("", tmp_path, {"chat_template": several}, {})
    assert template is not None
    assert template.render([USER]) == "plain"
    assert template.render([USER], tools=[{"a": 1}]) == "with [{'a': 1}]"
    assert template.reads("tools")


def test_calls_in_the_history_are_as_the_template_needs_them() -> None:
    call = {**CALL, "id": "call_1"}
    chat: list[Message] = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "done", "tool_call_id": "call_1"},
    ]
    calls = "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    end = "{% endfor %}{% endfor %}"
    as_text = ChatTemplate(calls + "{{ c.function.name + ':' + c.function.arguments }}" + end, {})
    assert as_text.render(chat) == 'fly:{"to": "pôle", "n": 2, "fast": true}'
    as_object = ChatTemplate(
        calls + "{% for k, v in c.function.arguments.items() %}{{ k }}{% endfor %}" + end, {}
    )
    assert as_object.render(chat) == "tonfast"
    absent = ChatTemplate("{% for m in messages %}{{ 'none' if m['content'] is none }}{% endfor %}", {})
    assert absent.render(chat) == "none"
    ids = ChatTemplate(
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.id|length != 9 %}"
        "{{ raise_exception('nine!') }}{% endif %}{{ c.id }}{% endfor %} {{ m.tool_call_id }}{% endfor %}",
        {},
    )
    first, second = ids.render(chat).split()
    assert first == second
    assert len(first) == 9
    nine = [{"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "abcdefgh1"}]}]
    assert ids.render(nine) == "abcdefgh1 "


def test_a_template_has_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.chat_template.RENDER_TIMEOUT_S", 0.05)
    source = "{% for a in messages %}{% for b in messages %}{% for c in messages %}{{ c.role }}" + (
        "{% endfor %}" * 3
    )
    template = ChatTemplate(source, {})
    message = {"role": "user", "content": "x"}
    assert template.render([message]) == "user"
    with pytest.raises(InvalidRequest, match=r"over 0\.05 s"):
        template.render([message] * 3000)
    assert template.render([message]) == "user"


def test_what_a_template_raises_shows_no_internals() -> None:
    template = ChatTemplate("{{ messages[0].content + 1 + x }}", {})
    with pytest.raises(InvalidRequest) as raised:
        template.render([{"role": "user", "content": "x"}], variables={"x": [1]})
    assert "TypeError" in raised.value.message
