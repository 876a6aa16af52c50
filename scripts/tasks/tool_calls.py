"""Tasks that call a tool, and that tell what one has given."""

import json
from random import Random

from .wording import SYSTEM_PROMPTS, Turns, from_assistant, from_user, phrased, some_city, some_name

TOOLS = ("get_weather", "get_time", "set_timer", "call_contact")
WEATHER = "What is the weather in {c}?|How is the weather in {c}?"


def _call(name: str, arguments: dict[str, object]) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def _request(rng: Random) -> tuple[str, str, dict[str, object]]:
    """A user's wish, the tool that serves it, and the arguments."""
    match rng.randrange(4):
        case 0:
            city = some_city(rng)
            ask = phrased(rng, WEATHER + "|Tell me the weather in {c}.|Weather in {c}?", c=city)
            return ask, "get_weather", {"city": city}
        case 1:
            city = some_city(rng)
            ask = phrased(rng, "What time is it in {c}?|Tell me the time in {c}.", c=city)
            return ask, "get_time", {"city": city}
        case 2:
            n = rng.randint(2, 90)
            asks = "Set a timer for {n} minutes.|Start a {n} minute timer.|Remind me in {n} minutes."
            return phrased(rng, asks, n=n), "set_timer", {"minutes": n}
        case _:
            name = some_name(rng)
            ask = phrased(rng, "Call {n}.|Please call {n}.|Phone {n} now.", n=name)
            return ask, "call_contact", {"name": name}


def _tools_line(rng: Random, wanted: str) -> str:
    """What the chat template writes for a request with `tools`."""
    tools = [wanted, *rng.sample([tool for tool in TOOLS if tool != wanted], rng.randint(0, 3))]
    rng.shuffle(tools)
    return "Tools: " + ", ".join(tools)


def tool_call(rng: Random) -> Turns:
    text, tool, arguments = _request(rng)
    system = rng.choice(("", "", rng.choice(SYSTEM_PROMPTS) + "\n")) + _tools_line(rng, tool)
    return [{"role": "system", "content": system}, *from_user(text)], _call(tool, arguments)


def tool_result(rng: Random) -> Turns:
    city, degrees = some_city(rng), rng.randint(-9, 39)
    asked = phrased(rng, WEATHER + "|Weather in {c}?", c=city)
    messages = [
        {"role": "system", "content": _tools_line(rng, "get_weather")},
        *from_user(asked),
        *from_assistant(_call("get_weather", {"city": city})),
        {"role": "tool", "content": json.dumps({"temperature": degrees})},
    ]
    return messages, f"It is {degrees} degrees in {city}."
