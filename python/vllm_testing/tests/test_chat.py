"""Chat with a tool: scripted answers through vLLM's real chat template, tokenizer and tool parser."""

import json

from conftest import BLOCK_SIZE

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
QUESTION = {"role": "user", "content": "What is the weather in Paris?"}


def test_tool_call_and_its_result(server):
    first = server.post("/v1/chat/completions", {"messages": [QUESTION], "tools": TOOLS, "max_tokens": 100})
    choice = first["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}

    messages = [QUESTION, choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}]
    second = server.post("/v1/chat/completions", {"messages": messages, "tools": TOOLS, "max_tokens": 100})
    assert second["choices"][0]["message"]["content"] == "It is sunny in Paris."
    assert second["choices"][0]["finish_reason"] == "stop"
    # The second prompt begins with the whole first one and its answer: all their full blocks are found, save the last.
    known = first["usage"]["total_tokens"] - 1
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= (known // BLOCK_SIZE - 1) * BLOCK_SIZE


def test_tokenize_gives_the_prompt(server):
    tokens = server.post("/tokenize", {"messages": [QUESTION], "tools": TOOLS})["tokens"]
    chat = {"messages": [QUESTION], "tools": TOOLS, "max_tokens": 1, "return_token_ids": True}
    assert server.post("/v1/chat/completions", chat)["prompt_token_ids"] == tokens


def test_unscripted_text_survives_the_tokenizer(server):
    answer = server.post(
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 16, "return_token_ids": True},
    )
    choice = answer["choices"][0]
    assert len(choice["token_ids"]) == 16 and "\ufffd" not in choice["message"]["content"]
    assert server.post("/detokenize", {"tokens": choice["token_ids"]})["prompt"] == choice["message"]["content"]
