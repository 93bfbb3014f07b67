"""The parts that need no server."""

import json
import os

import pytest
from vllm_testing import make_model, tokens
from vllm_testing.step_time import PROFILES, StepClock, StepTimeModel


def test_step_time_is_the_sum_of_its_terms():
    model = StepTimeModel.parse('{"base": 1, "per_call": 0.1, "per_context_token": 0.01, "per_prefill_token": 0.001}')
    assert model.seconds(calls=2, context_tokens=30, prefill_tokens=400, prefill_pairs=5e9) == pytest.approx(1.9)
    assert StepTimeModel(per_prefill_pair=1e-9).seconds(0, 0, 0, 5e9) == pytest.approx(5)
    assert StepTimeModel.parse("a100-tp4") is PROFILES["a100-tp4"]
    # 32 decoding calls of 10,000 tokens each on two numbers of GPUs, milliseconds.
    assert PROFILES["h100-tp4"].seconds(32, 320_000, 0, 0) * 1e3 == pytest.approx(36.628)
    assert PROFILES["h100-tp8"].seconds(32, 320_000, 0, 0) * 1e3 == pytest.approx(21.872)

def test_step_model_with_a_table():
    model = StepTimeModel.parse('{"per_context_token": 0.01, "by_tokens": [[1, 2], [11, 3], [21, 7]]}')
    assert [model.seconds(n, 0, 0, 0) for n in (0, 1, 6, 11, 16, 21, 31)] == pytest.approx([2, 2, 2.5, 3, 5, 7, 11])
    assert model.seconds(3, 10, 3, 0) == pytest.approx(2.5 + 0.1)
    assert StepTimeModel.parse(model.to_json()) == model
    for table in ("[[1, 2]]", "[[2, 2], [1, 2]]", "[[1, 2], [2, 0]]", "[1, 2]", "3"):
        with pytest.raises(ValueError):
            StepTimeModel.parse(f'{{"by_tokens": {table}}}')



def test_scheduling_hides_behind_the_step_before():
    clock = StepClock()
    assert clock.end_of_step(100.0, 2.0, continued=False) == 102.0
    assert clock.end_of_step(102.5, 2.0, continued=True) == 104.0  # half a second of scheduling costs nothing
    assert clock.late_seconds == 0
    assert clock.end_of_step(109.0, 2.0, continued=True) == 109.0  # five seconds: two are hidden, three are not
    assert clock.late_seconds == 3.0
    assert clock.end_of_step(120.0, 2.0, continued=False) == 122.0  # an idle engine is not late
    assert clock.late_seconds == 3.0


def test_without_overlap_scheduling_and_steps_add_up():
    clock = StepClock(overlap=False)
    clock.end_of_step(100.0, 2.0, continued=False)
    assert clock.end_of_step(102.5, 2.0, continued=True) == 104.5
    assert clock.late_seconds == 0.5


@pytest.mark.parametrize("text", ["h100", "[]", '{"bass": 1}', '{"base": -1}', '{"base": NaN}'])
def test_step_model_rejects(text):
    with pytest.raises(ValueError):
        StepTimeModel.parse(text)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model.write_model(folder, tokenizer=True)
    return folder


def test_model_folder_is_the_same_every_time(model_folder, tmp_path):
    text_range = make_model.write_model(tmp_path, tokenizer=True)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (model_folder / name).read_bytes()
    assert text_range[0] == 260 and 1000 < text_range[1] < make_model.VOCABULARY


class Parameters:
    def __init__(self, extra_args=None, seed=None):
        self.extra_args = extra_args
        self.seed = seed


def source(folder, monkeypatch, **environment):
    for name in ("SAGA_SCRIPT_FILE", "SAGA_TOKEN_RANGE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    return tokens.TokenSource(vocabulary=32000, end_of_text=2, model_folder=str(folder))


def said(answer, count):
    return [answer.token(position) for position in range(count)]


def test_unscripted_tokens_follow_from_prompt_and_position(model_folder, monkeypatch):
    first = source(model_folder, monkeypatch, SAGA_TOKEN_RANGE="10:20")
    answer = said(first.answer([1, 2, 3], Parameters()), 1000)
    assert answer == said(source(model_folder, monkeypatch, SAGA_TOKEN_RANGE="10:20").answer([1, 2, 3], None), 1000)
    assert set(answer) == set(range(10, 20))
    assert answer != said(first.answer([0, 2, 3], Parameters()), 1000)
    assert answer != said(first.answer([1, 2, 3], Parameters(seed=1)), 1000)


def test_scripts_of_a_request(model_folder, monkeypatch):
    tokens_of = source(model_folder, monkeypatch)
    for script in ([5, 6], "5,6"):
        answer = tokens_of.answer([1], Parameters({"saga_script": script}))
        assert answer.scripted and said(answer, 4) == [5, 6, 2, 2]
    answer = tokens_of.answer([1], Parameters({"saga_say": "the tool"}))
    assert tokens_of.decode(said(answer, 2)) == "the tool" and answer.token(2) == 2
    assert not tokens_of.answer([1], Parameters({"saga_script": "five"})).scripted


def test_script_file(model_folder, monkeypatch, tmp_path):
    path = tmp_path / "script.json"
    path.write_text(
        json.dumps(
            [
                {"ends_with": [7, 8], "starts_with": [1], "ids": [100]},
                {"last": "weather", "unless": "rain", "ids": [101]},
                {"prompt": "weather", "say": "the"},
            ]
        )
    )
    tokens_of = source(model_folder, monkeypatch, SAGA_SCRIPT_FILE=path)

    def first(prompt):
        answer = tokens_of.answer(tokens_of.encode(prompt) if isinstance(prompt, str) else prompt, Parameters())
        return answer.token(0) if answer.scripted else None

    assert first([1, 7, 8]) == 100
    assert first([2, 7, 8]) is None
    turn = "<|im_start|>user\n{}<|im_end|>\n"
    assert first(turn.format("weather?") + "<|im_start|>assistant\n") == 101
    assert first(turn.format("weather?") + turn.format("no") + "<|im_start|>assistant\n") == tokens_of.encode("the")[0]
    assert first(turn.format("weather, rain?") + "<|im_start|>assistant\n") == tokens_of.encode("the")[0]
    assert first("hello") is None

    path.write_text("[{")  # half-written: the entries stay
    os.utime(path, ns=(1, 1))
    assert first([1, 7, 8]) == 100
    path.write_text('[{"ids": [102]}]')
    os.utime(path, ns=(2, 2))
    assert first("hello") == 102
