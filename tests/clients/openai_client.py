"""What OpenAI's Python client does with the server at the address in the first argument.

It has the demonstration model, whisper-words, a reranker and an embedder.
"""

import sys

import openai

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0)
STORY = [{"role": "user", "content": "Tell me a story about Mia."}]

names = [model.id for model in client.models.list()]
assert "demo" in names and "whisper-words" in names, names
assert client.models.retrieve("demo").id == "demo"

whole = client.chat.completions.create(model="demo", messages=STORY, max_tokens=20, seed=1, logprobs=True, top_logprobs=3)
text = whole.choices[0].message.content
assert text and whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 20, whole
assert len(whole.choices[0].logprobs.content) == 20
assert all(len(token.top_logprobs) == 3 for token in whole.choices[0].logprobs.content)

streamed, reasons, usage = "", [], None
for chunk in client.chat.completions.create(
    model="demo", messages=STORY, max_tokens=20, seed=1, stream=True, stream_options={"include_usage": True}
):
    usage = usage or chunk.usage
    for choice in chunk.choices:
        streamed += choice.delta.content or ""
        reasons.append(choice.finish_reason)
assert streamed == text, (streamed, text)
assert reasons[-1] == "length" and not any(reasons[:-1]) and usage.completion_tokens == 20

with client.chat.completions.stream(model="demo", messages=STORY, seed=1) as stream:
    for event in stream:
        pass
    final = stream.get_final_completion().choices[0]
    assert final.message.content.startswith(text) and final.finish_reason == "stop", final

completion = client.completions.create(model="demo", prompt="Once upon a time", max_tokens=8, temperature=0)
assert completion.choices[0].text.startswith(","), completion

# The client asks for base64 and decodes it.
embeddings = client.embeddings.create(model="qwen3-embedding", input=["a red ball", "a bridge"])
assert len(embeddings.data) == 2 and abs(sum(x * x for x in embeddings.data[0].embedding) - 1) < 1e-4
ids = client.embeddings.create(model="qwen3-embedding", input=[[1, 2, 3]], dimensions=4)
assert len(ids.data[0].embedding) == 4

with open("assets/whisper-words/en.flac", "rb") as file:
    spoken = client.audio.transcriptions.create(model="whisper-words", file=file)
assert spoken.text == "One two three. Four five. Green apple moon.", spoken
with open("assets/whisper-words/en.flac", "rb") as file:
    spoken = client.audio.transcriptions.create(
        model="whisper-words", file=file, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
assert len(spoken.words) == 8 and len(spoken.segments) == 3 and spoken.duration == 7.0, spoken
with open("assets/whisper-words/en.flac", "rb") as file:
    assert client.audio.transcriptions.create(model="whisper-words", file=file, response_format="text").strip() == spoken.text
with open("assets/whisper-words/en.flac", "rb") as file:
    events = list(client.audio.transcriptions.create(model="whisper-words", file=file, stream=True))
assert events[-1].type == "transcript.text.done" and events[-1].text == spoken.text, events

for call, expected in [
    (lambda: client.chat.completions.create(model="none", messages=STORY), openai.NotFoundError),
    (lambda: client.chat.completions.create(model="demo", messages=[]), openai.BadRequestError),
    (lambda: client.chat.completions.create(model="demo", messages=STORY, top_p=3), openai.BadRequestError),
    (lambda: client.embeddings.create(model="demo", input="a"), openai.BadRequestError),
]:
    try:
        call()
    except expected as error:
        assert error.body["message"], error
    else:
        raise AssertionError(f"expected {expected}")
print("all passed")
