"""Asks a server as programs do, by the openai package, and in ways that must be refused: ADDRESS TOKEN."""

import json
import sys
import urllib.error
import urllib.request

import openai

address, token = sys.argv[1:]
client = openai.OpenAI(base_url=f"http://{address}/v1", api_key=token, max_retries=0)


def check(is_so, what):
    if not is_so:
        sys.exit(f"wrong: {what}")


def post(path, body, key=token, raw=None):
    data = raw if raw is not None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"http://{address}{path}", data=data, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def completed(prompt, **more):
    return client.completions.create(model="m", prompt=prompt, **{"max_tokens": 24, "seed": 5, **more})


check([model.id for model in client.models.list()] == ["m"], "the list of models")
check(client.models.retrieve("m").id == "m", "one model")

# A text is the same alone, among fifteen others, in tokens, and as one of several samples.
prompt = "fn main() {"
alone = completed(prompt)
check(alone.usage.prompt_tokens == len(prompt) and alone.usage.completion_tokens == 24, f"usage: {alone.usage}")
check(alone.choices[0].finish_reason == "length", "why it ends")
check(completed(list(prompt.encode())).choices[0].text == alone.choices[0].text, "a prompt of token ids")
many = completed([prompt] + [f"other {i}" * (i + 1) for i in range(15)])
check([choice.index for choice in many.choices] == list(range(16)), "sixteen choices")
check(len({choice.text for choice in many.choices}) == 16, "sixteen texts")
check(many.choices[0].text == alone.choices[0].text, "a text among others")
samples = [choice.text for choice in completed(prompt, n=3).choices]
check(len(set(samples)) == 3 and samples[0] == alone.choices[0].text, "three samples")

# A stream has the same text in pieces, and says how much it was.
pieces = list(completed(prompt, stream=True, stream_options={"include_usage": True}))
check("".join(c.text for p in pieces for c in p.choices) == alone.choices[0].text, "a stream's text")
check(pieces[-1].usage.completion_tokens == 24 and not pieces[-1].choices, "a stream's usage")

# A stop ends a text before itself.
stop = alone.choices[0].text[6:8]
stopped = completed(prompt, stop=stop).choices[0]
check(stopped.finish_reason == "stop", "a stop")
check(stopped.text == alone.choices[0].text.split(stop)[0], f"a text before its stop {stop!r}: {stopped.text!r}")

# The prompt's log-probabilities are those that its tokens had when they were generated.
greedy = completed("abc", temperature=0, logprobs=2, max_tokens=12)
logs = greedy.choices[0].logprobs
check(len(logs.tokens) == 12 and all(len(top) in (2, 3) for top in logs.top_logprobs), f"log-probabilities: {logs}")
check(all(max(top, key=top.get) == token for token, top in zip(logs.tokens, logs.top_logprobs)), "the likeliest")
_, tokens = post("/tokenize", {"prompt": "abc"})
check(tokens["tokens"] == [97, 98, 99] and tokens["count"] == 3, "tokens")
check(post("/detokenize", {"tokens": [97, 195, 188]})[1]["prompt"] == "aü", "a text of tokens")
ids = [ord(t) if len(t) == 1 else int(t[-2:], 16) for t in logs.tokens]
echoed = completed([97, 98, 99] + ids, temperature=0, logprobs=2, max_tokens=0, echo=True).choices[0]
check(echoed.text.startswith("abc") and echoed.logprobs.token_logprobs[0] is None, "an echo")
check(echoed.logprobs.tokens[3:] == logs.tokens, "tokens of an echo")
off = max(abs(a - b) for a, b in zip(echoed.logprobs.token_logprobs[3:], logs.token_logprobs))
check(off == 0, f"log-probabilities of an echo are off by {off}")
check(echoed.logprobs.text_offset[:4] == [0, 1, 2, 3], "offsets")
broken = completed([97, 0xE2, 98, 99], logprobs=0, max_tokens=1, echo=True).choices[0]
check(broken.text.startswith("a\ufffdbc") and broken.logprobs.text_offset == [0, 1, 2, 3, 4], f"offsets of {broken}")

# Chat: the template, parts of text, log-probabilities, streaming.
messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]
chat = {"model": "m", "seed": 5, "max_tokens": 24}
answer = client.chat.completions.create(messages=messages, logprobs=True, top_logprobs=2, **chat)
rendered = "<|system|>s\n<|user|>hello\n<|assistant|>"
check(answer.choices[0].message.content == completed(rendered).choices[0].text, "a chat is its template's text")
check(len(answer.choices[0].logprobs.content[0].top_logprobs) == 2, "log-probabilities of a chat")
parts = [messages[0], {"role": "user", "content": [{"type": "text", "text": "hello"}]}]
again = client.chat.completions.create(messages=parts, **chat)
check(again.choices[0].message.content == answer.choices[0].message.content, "a message in parts")
streamed = list(client.chat.completions.create(messages=messages, stream=True, **chat))
check(streamed[0].choices[0].delta.role == "assistant", "the role comes first")
text = "".join(piece.choices[0].delta.content or "" for piece in streamed)
check(text == answer.choices[0].message.content, "a chat in pieces")

# What is wrong is refused, in OpenAI's form.
for path, body, status, words in [
    ("/v1/completions", {"prompt": "a", "tools": []}, 400, "`tools` is not supported"),
    ("/v1/completions", {"prompt": "a", "logit_bias": {"5": 1}}, 400, "`logit_bias` is not supported"),
    ("/v1/completions", {"prompt": "a", "presence_penalty": 0.5}, 400, "`presence_penalty` is not supported"),
    ("/v1/completions", {"prompt": "a", "model": "other"}, 404, "there is no model `other`"),
    ("/v1/completions", {"prompt": ""}, 400, "the prompt is empty"),
    ("/v1/completions", {"prompt": []}, 400, "prompt"),
    ("/v1/completions", {"prompt": [[1], ["a"]]}, 400, "`prompt` must be"),
    ("/v1/completions", {"prompt": [256]}, 400, "tokens of this model are below 256"),
    ("/v1/completions", {"prompt": "a" * 256}, 400, "reads 256 at a time"),
    ("/v1/completions", {"prompt": [97] * 1_000_000}, 400, "1000000 tokens"),
    ("/v1/completions", {"prompt": "a", "n": 1000}, 400, "`n` must be"),
    ("/v1/completions", {"prompt": ["a"] * 50, "n": 100}, 400, "at most 40"),
    ("/v1/completions", {"prompt": "a", "temperature": -1}, 400, "`temperature` must be"),
    ("/v1/completions", {"prompt": "a", "max_tokens": 0}, 400, "only with `echo`"),
    ("/v1/completions", {"prompt": {}}, 400, "a list of such lists, found {}"),
    ("/v1/completions", {"prompt": "a", "stop": 5}, 400, "`stop` must be a text or a list of texts, found 5"),
    ("/v1/completions", {"prompt": "a", "seed": "x" * 99}, 400, '`seed` must be a whole number, found "xxxx'),
    ("/v1/chat/completions", {"messages": messages, "max_tokens": 0}, 400, "`max_tokens` must be a number from 1"),
    ("/v1/chat/completions", {"messages": messages, "max_completion_tokens": 0}, 400, "must be a number from 1"),
    ("/v1/completions", {}, 400, "`prompt` is missing"),
    ("/v1/chat/completions", {"messages": []}, 400, "`messages` is empty"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "no text"),
    ("/v1/chat/completions", {"messages": messages, "tools": [{}]}, 400, "`tools` is not supported"),
    ("/v1/none", {}, 404, "no such path"),
    ("/v1/models", {}, 405, "another method"),
]:
    found, answer = post(path, body)
    said = answer["error"]["message"]
    check("untagged" not in said and len(said) < 300, f"an error in words: {said}")
    check(found == status and words in said, f"{path} {str(body)[:60]}: {found} {said}, expected {status} {words}")
for raw in [b"", b"[1]", b"{\"prompt\": ", b"\xff", b"[" * 100_000]:
    found, answer = post("/v1/completions", None, raw=raw)
    check(found == 400 and "no object of JSON" in answer["error"]["message"], f"{raw[:20]}: {answer}")
found, answer = post("/v1/completions", None, raw=b"{" + b" " * (4 << 20))
check(found == 413 and "--body-bytes" in answer["error"]["message"], f"a body of a byte too many: {found} {answer}")
found, answer = post("/v1/completions", {"prompt": "a"}, key=token[:-1])
check(found == 401 and answer["error"]["code"] == "invalid_api_key", f"another token: {answer}")
try:
    openai.OpenAI(base_url=f"http://{address}/v1", api_key="x", max_retries=0).models.list()
    check(False, "a client with another key")
except openai.AuthenticationError:
    pass
# More than may wait: some are refused with 429, nobody else is disturbed.
busy = completed(["a"] * 40, max_tokens=200, stream=True)
next(iter(busy))
statuses = [post("/v1/completions", {"prompt": ["a"] * 40})[0]]
check(statuses == [429], f"a full queue: {statuses}")
check(sum(1 for _ in busy) > 100, "a stream goes on")
print("all is as it should be")
