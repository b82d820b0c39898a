"""Small chat templates, each with one habit of a real family."""

_LOOP = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' HEAD + m.content + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}END{%- endif %}"
)


def _chatml(end: str, head: str = "") -> str:
    inner = f"+ ({head!r} if m.role == 'assistant' and loop.last else '')" if head else ""
    return _LOOP.replace("HEAD", inner).replace("END", end)


_OFF = "{%- if enable_thinking is defined and not enable_thinking %}{{- TEXT }}{%- endif %}"
_STRICT = (
    "{%- for m in messages %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate') }}{%- endif %}"
    "{{- '[INST]' + m.content + '[/INST]' if m.role == 'user' else m.content + '</s>' }}{%- endfor %}"
)
HARMONY = (
    "{{- '<|start|>system<|message|>Reasoning: ' + (reasoning_effort or 'medium') + '<|end|>' }}"
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{%- if m.thinking is defined %}{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking }}"
    "{%- endif %}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}"
    "{%- else %}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)

# name: template, the end of a question's prompt with thoughts off, the end with thoughts on, what follows
THINKING = {
    "switch": (
        _chatml(_OFF.replace("TEXT", "'<think>\n\n</think>\n\n'"), "<think>\n\n</think>\n\n"),
        "assistant\n<think>\n\n</think>\n\n",
        "assistant\n<think>\n",
        "</think>\n\n",
    ),
    "always open": (
        _chatml("{{- '<think>\n' }}"),
        "assistant\n<think>\n\n</think>\n\n",
        "assistant\n<think>\n",
        "</think>\n\n",
    ),
    "open in answers too": (
        _chatml("{{- '<think>\n' }}", "<think>\n"),
        "assistant\n<think>\n\n</think>\n\n",
        "assistant\n<think>\n",
        "</think>\n\n",
    ),
    "only the end": (
        _chatml("{{- '<think>' if thinking else '</think>' }}", "</think>"),
        "assistant\n</think>",
        "assistant\n<think>",
        "</think>",
    ),
    "no line breaks": (
        _chatml(_OFF.replace("TEXT", "'<think></think>'")),
        "assistant\n<think></think>",
        "assistant\n<think>",
        "</think>",
    ),
    "brackets": (
        "{%- for m in messages %}{{- '[INST]' + m.content + '[/INST]' if m.role == 'user' else m.content }}"
        "{%- if m.thinking is defined %}[THINK]{{ m.thinking }}[/THINK]{%- endif %}{%- endfor %}",
        "[/INST][THINK][/THINK]",
        "[/INST][THINK]",
        "[/THINK]",
    ),
    "a switch in the system turn": (
        "{{- '<|im_start|>system\n' + ('Think in <think> </think>.' if thinking else 'Answer.') }}"
        + _chatml(""),
        "assistant\n",
        "assistant\n<think>\n",
        "</think>\n\n",
    ),
    "channels": (
        HARMONY,
        "<|start|>assistant<|channel|>final<|message|>",
        "<|start|>assistant<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "a budget": (
        _chatml("{%- if thinking_budget == 0 %}{{- '<seed:think>\n</seed:think>' }}{%- endif %}"),
        "assistant\n<seed:think>\n</seed:think>",
        "assistant\n<seed:think>\n",
        "</seed:think>",
    ),
    "an effort": (
        _chatml("{{- '<think></think>' if reasoning_effort == 'none' else '<think>' }}"),
        "assistant\n<think></think>",
        "assistant\n<think>",
        "</think>",
    ),
}
PLAIN = {
    "chatml": _chatml(""),
    "an end to strip": _chatml("").replace("m.content", "m.content.split('</think>')[-1]"),
    "dated": "{{- 'Today: ' + strftime_now('%d %B %Y') + '\n' }}" + _chatml(""),
    "dated, where there is a clock": (
        "{%- if strftime_now is defined %}{%- set day = strftime_now('%d %b %Y') %}{%- else %}"
        "{%- set day = '26 Jul 2024' %}{%- endif %}{{- 'Today: ' + day + '\n' }}" + _chatml("")
    ),
}
REFUSING = {  # the chats that it takes in another form only
    "no system": "{%- if messages[0].role == 'system' %}{{- raise_exception('System role not supported') }}"
    "{%- endif %}" + _chatml(""),
    "drops the system": "{%- for m in messages if m.role != 'system' %}{{- '[' + m.role + ']' + m.content }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '[assistant]' }}{%- endif %}",
    "alternating": _STRICT,
    "no system, strings only": "{%- for m in messages %}{%- if m.role == 'system' %}{{- m.text.upper() }}"
    "{%- endif %}{{- '[' + m.role + ']' + m.content }}{%- endfor %}",
}
