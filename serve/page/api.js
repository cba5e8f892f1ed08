// The endpoint: JSON, and the events of a streamed chat. The key stays in this tab.

const KEY = "llamahome.key";

export class Api {
  /** @param askKey returns a promise of a key that somebody typed. */
  constructor(askKey) {
    this.askKey = askKey;
  }

  async json(path) {
    return (await this.fetch(path)).json();
  }

  /** Yield the events of a chat's answer; aborting `signal` ends it. */
  async *chat(body, signal) {
    const response = await this.fetch("/v1/chat/completions", {
      method: "POST",
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      headers: { "Content-Type": "application/json" },
      signal,
    });
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
    throw new Error("The answer was cut off.");
  }

  async fetch(path, options = {}) {
    for (;;) {
      const key = sessionStorage.getItem(KEY);
      const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
      const response = await fetch(path, { ...options, headers });
      if (response.ok) return response;
      if (response.status !== 401) throw new Error(await reason(response));
      sessionStorage.setItem(KEY, await this.askKey());
    }
  }
}

async function reason(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `The endpoint answered ${response.status}.`;
}

async function* events(stream) {
  let rest = "";
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
