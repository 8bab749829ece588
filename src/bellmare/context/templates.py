"""What a chat template puts around messages, for the families whose template is known by its marks.

Each message becomes one text that can be counted alone, because special tokens stand on both sides. What a family's
template adds beyond that is constant for a model, and learned from the workers' own counts (``learned``).
"""

import re

import msgspec

from bellmare.context.vocabulary import Shown
from bellmare.protocols.ollama import ChatRequest, GenerateRequest, Message, Tool

IMAGE_TOKENS = 768
"""What Ollama's own truncation counts for an image (ollama.md 5)."""
_encode = msgspec.json.Encoder().encode


class Family(msgspec.Struct, frozen=True):
    """How one family writes a conversation. ``{role}`` and ``{content}`` stand for a message's own."""

    name: str
    marks: tuple[str, ...]
    """All of them are in the template."""
    message: str
    answer: str = ""
    """Of the assistant, if it is written otherwise; empty: as ``message``."""
    closing: str = ""
    """What asks for the answer."""
    roles: dict[str, str] = {}
    call: str = "\n<tool_call>\n{content}\n</tool_call>"
    result: str = ""
    """Of a tool, if it is written otherwise."""
    system: str = ""
    """Of a system message, if it is written otherwise."""


FAMILIES = (
    Family(
        "phi4",
        ("<|im_start|>", "<|im_sep|>"),
        "<|im_start|>{role}<|im_sep|>{content}<|im_end|>",
        closing="<|im_start|>assistant<|im_sep|>",
    ),
    Family(
        "chatml",
        ("<|im_start|>", "<|im_end|>"),
        "<|im_start|>{role}\n{content}<|im_end|>\n",
        closing="<|im_start|>assistant\n",
        result="<|im_start|>user\n<tool_response>\n{content}\n</tool_response><|im_end|>\n",
    ),
    Family(
        "llama3",
        ("<|start_header_id|>", "<|eot_id|>"),
        "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
        closing="<|start_header_id|>assistant<|end_header_id|>\n\n",
        roles={"tool": "ipython"},
        call="{content}",
    ),
    Family(
        "gemma",
        ("<start_of_turn>", "<end_of_turn>"),
        "<start_of_turn>{role}\n{content}<end_of_turn>\n",
        closing="<start_of_turn>model\n",
        roles={"assistant": "model", "tool": "user"},
        system="{content}\n\n",
    ),
    Family(
        "granite",
        ("<|start_of_role|>", "<|end_of_role|>"),
        "<|start_of_role|>{role}<|end_of_role|>{content}<|end_of_text|>\n",
        closing="<|start_of_role|>assistant<|end_of_role|>",
    ),
    Family(
        "command-r",
        ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        "<|START_OF_TURN_TOKEN|>{role}{content}<|END_OF_TURN_TOKEN|>",
        closing="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        roles={
            "user": "<|USER_TOKEN|>",
            "assistant": "<|CHATBOT_TOKEN|>",
            "system": "<|SYSTEM_TOKEN|>",
            "tool": "<|SYSTEM_TOKEN|>",
        },
    ),
    Family(
        "deepseek",
        ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"),
        "<\uff5cUser\uff5c>{content}",
        answer="<\uff5cAssistant\uff5c>{content}<\uff5cend\u2581of\u2581sentence\uff5c>",
        closing="<\uff5cAssistant\uff5c>",
        system="{content}",
    ),
    Family(
        "harmony",
        ("<|start|>", "<|message|>", "<|channel|>"),
        "<|start|>{role}<|message|>{content}<|end|>",
        answer="<|start|>assistant<|channel|>final<|message|>{content}<|end|>",
        closing="<|start|>assistant",
    ),
    Family(
        "phi3",
        ("<|user|>", "<|end|>"),
        "<|{role}|>\n{content}<|end|>\n",
        closing="<|assistant|>\n",
    ),
    Family(
        "zephyr",
        ("<|user|>", "<|assistant|>"),
        "<|{role}|>\n{content}</s>\n",
        closing="<|assistant|>\n",
    ),
    Family(
        "mistral",
        ("[INST]", "[/INST]"),
        "[INST] {content}[/INST]",
        answer=" {content}</s>",
        result="[TOOL_RESULTS] {content}[/TOOL_RESULTS]",
        call="[TOOL_CALLS] [{content}]",
        system="{content}\n\n",
    ),
)
"""The first whose marks are all there is taken."""
PLAIN = Family("", (), "{role}\n{content}\n")
"""Of templates that are not known: only what is said counts, the rest is learned."""
_DEFAULT_SYSTEM = re.compile(
    r"<\|im_start\|>system(?:\\n|\n)((?:(?!<\|im_)[^{}]){1,1000}?)<\|im_end\|>(?:\\n|\n)?['\"]?\s*-?\}\}"
)


class Template(msgspec.Struct, frozen=True):
    """How one model's conversations are written."""

    family: Family
    known: bool
    trims: bool
    default_system: str = ""
    """Said where a conversation begins without a system message."""

    def opening(self, request: ChatRequest) -> str:
        """What stands before the first message."""
        messages = request.messages or []
        if not self.default_system or (messages and messages[0].role == "system"):
            return ""
        return self._message("system", self.default_system)

    def closing(self) -> str:
        """What stands behind the last message."""
        return self.family.closing

    def message(self, message: Message) -> str:
        """One message, whole."""
        content = message.content or ""
        if self.trims:
            content = content.strip()
        for call in message.tool_calls or ():
            told = {"name": call.function.name, "arguments": call.function.arguments or {}}
            content += self.family.call.replace("{content}", _encode(told).decode())
        return self._message(message.role or "", content)

    def _message(self, role: str, content: str) -> str:
        family = self.family
        form = family.message
        if role == "assistant" and family.answer:
            form = family.answer
        elif role == "tool" and family.result:
            form = family.result
        elif role == "system" and family.system:
            form = family.system
        return form.replace("{role}", family.roles.get(role, role)).replace("{content}", content, 1)


def template_of(shown: Shown) -> Template:
    """Recognises the family. Where a conversation has no system message, Ollama says its own, Jinja their default."""
    text = shown.template
    family = next((one for one in FAMILIES if all(mark in text for mark in one.marks)), None)
    default = shown.system
    jinja = "{%" in text  # Go's never has it
    if not default and jinja:
        found = _DEFAULT_SYSTEM.search(text)
        if found is not None and "+" not in found.group(1):
            default = found.group(1).replace("\\n", "\n")
    trims = family is not None and jinja and "trim" in text
    return Template(family or PLAIN, family is not None, trims, default)


def tool_text(tool: Tool) -> str:
    """A tool as templates show it to the model: as JSON."""
    return _encode(tool).decode()


def conversation_of(request: GenerateRequest) -> ChatRequest:
    """What /api/generate makes of a prompt that is not raw: one question, with its system message."""
    messages = [Message(role="system", content=request.system)] if request.system else []
    messages.append(Message(role="user", content=request.prompt or "", images=request.images))
    return ChatRequest(model=request.model, messages=messages)


def is_text(request: GenerateRequest) -> bool:
    """Whether the prompt goes to the model as it is."""
    return bool(request.raw)


def images_of(request: ChatRequest | GenerateRequest) -> int:
    """Images in the whole request."""
    if isinstance(request, GenerateRequest):
        return len(request.images or ())
    return sum(len(message.images) for message in request.messages or () if message.images)
