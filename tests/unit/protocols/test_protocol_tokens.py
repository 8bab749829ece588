"""The estimate behind predicted waits."""

import pytest

from bellmare.protocols.tokens import estimate_prompt_tokens


@pytest.mark.parametrize(("text_bytes", "images", "tokens"), [(0, 0, 0), (1, 0, 1), (4000, 0, 1000), (4, 2, 1537)])
def test_four_bytes_are_a_token_and_an_image_768(text_bytes, images, tokens):
    assert estimate_prompt_tokens(text_bytes, images) == tokens
