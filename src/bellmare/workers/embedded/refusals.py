"""What ends a request of the embedded worker before it is answered."""


class OllamaError(Exception):
    """An answer with a status and Ollama's text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
