// What each KV head of one answer holds, from the frames of its stream.

export class Lens {
  constructor() {
    this.texts = [];
    this.length = 0;
    this.layers = 0;
    this.heads = 0;
    this.counts = []; // heads of all layers that hold a token, by its place
  }

  get total() {
    return this.layers * this.heads;
  }

  /** Bytes that are held, and that a dense cache would take. */
  get bytes() {
    const held = this.counts.reduce((sum, count) => sum + count, 0);
    return {
      held: this.total ? (held / this.total) * this.tokenBytes : 0,
      dense: this.length * this.tokenBytes,
    };
  }

  async take(frame) {
    const bits = await inflated(frame.kept);
    this.texts.splice(frame.start, this.texts.length, ...frame.texts);
    this.bits = bits;
    this.length = frame.length;
    this.layers = frame.layers;
    this.heads = frame.heads;
    this.tokenBytes = frame.token_bytes;
    this.counts = new Array(this.length).fill(0);
    for (let row = 0; row < this.total; row++) {
      for (let place = 0; place < this.length; place++) this.counts[place] += this.bit(row, place);
    }
  }

  bit(row, place) {
    const width = (this.length + 7) >> 3;
    return (this.bits[row * width + (place >> 3)] >> (place & 7)) & 1;
  }

  holds(layer, head, place) {
    return this.bit(layer * this.heads + head, place) === 1;
  }

  /** Heads of a layer that hold a token. */
  inLayer(layer, place) {
    let count = 0;
    for (let head = 0; head < this.heads; head++) count += this.bit(layer * this.heads + head, place);
    return count;
  }
}

async function inflated(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * Find each message among the tokens: what lies between is the chat template's.
 * Return [{message, from, to}], in order and without gaps; a template's message is null.
 */
export function segments(texts, messages) {
  const starts = [];
  let all = "";
  for (const text of texts) {
    starts.push(all.length);
    all += text;
  }
  const tokenAt = (character) => {
    const next = starts.findIndex((start) => start > character);
    return (next < 0 ? texts.length : next) - 1;
  };
  const found = [];
  let place = 0;
  let cursor = 0;
  for (const message of messages) {
    const text = message.content.trim();
    const role = all.indexOf(message.role, cursor);
    const at = all.indexOf(text, role < 0 ? cursor : role + message.role.length);
    if (!text || at < 0) continue;
    const from = Math.max(place, tokenAt(at));
    const last = message === messages.at(-1) && message.role === "assistant";
    const to = last ? texts.length : Math.max(from, tokenAt(at + text.length - 1) + 1);
    if (from > place) found.push({ message: null, from: place, to: from });
    found.push({ message, from, to });
    place = to;
    cursor = at + text.length;
  }
  if (place < texts.length) found.push({ message: null, from: place, to: texts.length });
  return found;
}
