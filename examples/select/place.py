"""Placement alone, for a stack that sends its requests itself: Python's standard library, no client of SAGA.

Asks the gateway for a worker, sends the prompt to that worker, and tells the gateway how it went. What the worker has
cached then brings the second call of the session to the same worker.
"""

import json
import os
import urllib.request

GATEWAY = os.environ.get("SAGA_URL", "http://127.0.0.1:8080")
MODEL = os.environ.get("SAGA_MODEL", "demo")
KEY = os.environ.get("SAGA_API_KEY")


def post(url, body, headers=None):
    headers = {"content-type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def call(session, token_ids):
    """One call of a session; returns the tokens that the worker had cached."""
    headers = {"x-saga-session-id": session, **({"authorization": f"Bearer {KEY}"} if KEY else {})}
    place = post(f"{GATEWAY}/saga/select_and_reserve", {"model": MODEL, "token_ids": token_ids}, headers)
    report = {"reservation": place["reservation"], "cancelled": True}
    try:
        worker = place["worker"]["url"]
        answer = post(f"{worker}/v1/completions", {"model": MODEL, "prompt": token_ids, "max_tokens": 8})
        usage = answer["usage"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        report = {
            "reservation": place["reservation"],
            "output_tokens": usage["completion_tokens"],
            "cached_tokens": cached,
            "stop_reason": "tool_use",
            "tool": "run_tests",
        }
        receipt = place["receipt"]
        held = f"{receipt['matched_blocks']['gpu']} of {receipt['prompt_blocks']} blocks held"
        print(f"{receipt['reason']}: {held}, {cached} tokens were cached")
    finally:
        post(f"{GATEWAY}/saga/release", report, headers)


prompt = list(range(1000, 1100))
call("select-example", prompt)
call("select-example", prompt + list(range(2000, 2060)))
