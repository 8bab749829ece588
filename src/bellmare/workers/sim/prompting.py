"""The prompt as the simulated template renders it: ChatML, for ``_debug_render_only`` and /api/show."""

from typing import Any

TEMPLATE = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
    "{{- if .Tools }}{{ end }}"
)
"""Mentions .Tools, as the templates of models with tools do."""


def rendered_chat(messages: list[Any]) -> str:
    """Messages with role and content; images stand as ``[img-N]`` before the text, as Ollama places them."""
    parts, images = [], 0
    for message in messages:
        marks = ""
        for _ in message.get("images") or ():
            marks += f"[img-{images}]"
            images += 1
        content = message.get("content")
        text = content if isinstance(content, str) else ""
        parts.append(f"<|im_start|>{message.get('role', '')}\n{marks}{text}<|im_end|>\n")
    return "".join(parts) + "<|im_start|>assistant\n"


def generate_messages(prompt: str, system: str, images: list[Any]) -> list[dict[str, Any]]:
    """The messages that a request of /api/generate stands for."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": prompt, "images": images}]
