"""instructor: structured answers over OpenAI's routes in its several modes, and as it speaks to Ollama."""

from __future__ import annotations

from typing import Any, Literal

import instructor
import openai
import pydantic
import pytest

from conftest import ASK_PERSON


class Person(pydantic.BaseModel):
    name: str
    age: int
    kind: Literal["mare", "person"] = pydantic.Field(description="What it is.")


ASKED = [{"role": "user", "content": f"{ASK_PERSON} It is a Person."}]
EXPECTED = Person(name="Ada", age=36, kind="person")


def patched(place: Any, mode: instructor.Mode) -> Any:
    return instructor.from_openai(openai.OpenAI(base_url=place.v1, api_key="none", max_retries=0), mode=mode)


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA])
def test_a_model_is_filled_in(place: Any, mode: instructor.Mode) -> None:
    client = patched(place, mode)
    made = client.chat.completions.create(model=place.talker, messages=ASKED, response_model=Person, max_retries=0)
    assert made.model_dump() == EXPECTED.model_dump()


def test_a_list_of_models_is_filled_in(place: Any) -> None:
    client = patched(place, instructor.Mode.JSON_SCHEMA)
    made = client.chat.completions.create(
        model=place.talker, messages=ASKED, response_model=list[Person], max_retries=0
    )
    assert made and all(isinstance(one, Person) for one in made)


def test_a_model_grows_while_it_is_streamed(place: Any) -> None:
    client = patched(place, instructor.Mode.TOOLS)
    parts = list(
        client.chat.completions.create_partial(model=place.talker, messages=ASKED, response_model=Person, max_retries=0)
    )
    assert parts[-1].model_dump() == EXPECTED.model_dump()


async def test_the_asynchronous_client_is_at_home(place: Any) -> None:
    client = instructor.from_openai(
        openai.AsyncOpenAI(base_url=place.v1, api_key="none"), mode=instructor.Mode.JSON_SCHEMA
    )
    made = await client.chat.completions.create(model=place.talker, messages=ASKED, response_model=Person)
    assert made.model_dump() == EXPECTED.model_dump()


def test_its_provider_for_ollama_is_at_home(place: Any) -> None:
    client = instructor.from_provider(f"ollama/{place.talker}", base_url=place.v1, mode=instructor.Mode.JSON_SCHEMA)
    made = client.chat.completions.create(messages=ASKED, response_model=Person, max_retries=0)
    assert made.model_dump() == EXPECTED.model_dump()


def test_an_unknown_model_is_an_error(place: Any) -> None:
    client = patched(place, instructor.Mode.TOOLS)
    with pytest.raises(Exception, match="not found"):
        client.chat.completions.create(model="nobody:1", messages=ASKED, response_model=Person, max_retries=0)
