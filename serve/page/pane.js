// One conversation under one budget: its dials, its tokens in the light of the lens, its meter.

import { Lens, segments } from "/page/lens.js";
import { drawMap, tokenAtPoint } from "/page/map.js";

const STEPS = 8; // shades between held by no head and by all

export class Pane {
  /** @param cache what /v1/lens says; @param samples [{name, use}] to begin with. */
  constructor(info, samples) {
    this.root = document.getElementById("pane").content.firstElementChild.cloneNode(true);
    this.find = (selector) => this.root.querySelector(selector);
    this.info = info;
    this.messages = [];
    this.lens = null;
    this.spans = [];
    this.selected = null;
    this.queue = Promise.resolve();
    this.onSelect = () => {};
    this.setUpDials();
    this.setUpTokens();
    for (const sample of samples) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = sample.name;
      button.addEventListener("click", sample.use);
      this.find(".samples").append(button);
    }
    const cache = info.cache;
    this.find(".heads").textContent = cache ? cache.layers * cache.heads : "";
  }

  set name(name) {
    this.root.setAttribute("aria-label", name);
    this.find(".transcript").setAttribute("aria-label", `${name}; arrow keys step through its tokens`);
  }

  // --- dials

  setUpDials() {
    const cache = this.info.cache;
    const slider = this.find(".budget");
    const policy = this.find(".policy");
    const others = this.info.kv_policies.filter((name) => !["learned", "full"].includes(name));
    policy.append(new Option(cache ? `${cache.policy} (as served)` : "as served", ""));
    for (const name of others) if (name !== cache?.policy) policy.append(new Option(name, name));
    if (!cache) {
      slider.disabled = true;
      return;
    }
    [slider.min, slider.max] = cache.kv_budgets;
    slider.value = slider.max;
    slider.addEventListener("input", () => this.showBudget());
    this.showBudget();
  }

  /** The budget that a request asks for; null is what is served. */
  get budget() {
    const slider = this.find(".budget");
    return slider.disabled || slider.value === slider.max ? null : Number(slider.value);
  }

  set budget(value) {
    this.find(".budget").value = value;
    this.showBudget();
  }

  showBudget() {
    const { budgets } = this.info.cache;
    const range = [...new Set([budgets[0], budgets.at(-1)])].join("–");
    const served = budgets.length ? `${range} tokens, as served` : "every token, as served";
    const text = this.budget === null ? served : `${this.budget} tokens`;
    this.find(".size").textContent = text;
    this.find(".budget").setAttribute("aria-valuetext", text);
  }

  get options() {
    const policy = this.find(".policy").value;
    return {
      ...(this.budget !== null && { kv_budget: this.budget }),
      ...(policy && { kv_policy: policy }),
    };
  }

  // --- the conversation

  begin(messages) {
    this.messages = messages;
    this.lens = null;
    this.spans = [];
    this.select(null);
    this.find(".welcome").hidden = messages.length > 0;
    this.render();
  }

  /** Show text that was added to the last message. */
  append(text) {
    this.messages.at(-1).content += text;
    this.tail.textContent += text;
    this.scrollDown();
  }

  render() {
    const list = this.find(".messages");
    list.replaceChildren();
    for (const message of this.messages) this.addMessage(message).textContent = message.content;
    this.tail = list.lastElementChild?.querySelector(".text");
    this.scrollDown();
  }

  addMessage(message) {
    const item = document.createElement("li");
    item.className = message.role;
    const who = document.createElement("p");
    who.className = "who";
    who.textContent = { user: "You", assistant: "Model", system: "System" }[message.role];
    const text = document.createElement("div");
    text.className = "text";
    item.append(who, text);
    this.find(".messages").append(item);
    return text;
  }

  scrollDown() {
    const box = this.find(".transcript");
    if (this.selected === null) box.scrollTop = box.scrollHeight;
  }

  // --- the lens

  /** Take a frame in; frames are drawn in the order in which they come. */
  frame(data) {
    this.lens ??= new Lens();
    const lens = this.lens;
    const covered = this.messages.at(-1).content.length;
    this.queue = this.queue.then(async () => {
      if (lens !== this.lens) return;
      await lens.take(data);
      if (lens === this.lens) this.draw(covered);
    });
    return this.queue;
  }

  draw(covered) {
    if (this.spans.length === 0) this.layOut();
    while (this.spans.length < this.lens.texts.length) this.addToken(this.tail.before.bind(this.tail));
    this.tail.textContent = this.messages.at(-1).content.slice(covered);
    this.shade();
    this.showBytes(this.lens.bytes);
    const map = this.find(".map");
    map.parentElement.hidden = false;
    map.setAttribute("aria-label", this.summary());
    drawMap(map, this.lens, this.selected);
    if (this.selected !== null) this.inspect();
    this.scrollDown();
  }

  /** Write all messages anew, token by token, with the template's tokens between them. */
  layOut() {
    const list = this.find(".messages");
    list.replaceChildren();
    let template = null;
    for (const { message, from, to } of segments(this.lens.texts, this.messages)) {
      const place = message ? this.addMessage(message) : document.createElement("p");
      if (message) {
        if (template) place.parentElement.prepend(template);
        template = null;
      } else {
        place.className = "template";
        template = place;
      }
      while (this.spans.length < to && this.spans.length >= from) this.addToken(place.append.bind(place));
      if (message === this.messages.at(-1)) this.tail = this.addTail(place);
    }
    if (template || !this.tail?.isConnected) this.endWithTail(template);
  }

  endWithTail(template) {
    const place = this.addMessage(this.messages.at(-1));
    if (template) place.parentElement.prepend(template);
    this.tail = this.addTail(place);
  }

  addTail(place) {
    const tail = document.createElement("span");
    tail.className = "tail";
    place.append(tail);
    return tail;
  }

  addToken(put) {
    const span = document.createElement("span");
    const text = this.lens.texts[this.spans.length];
    span.textContent = text;
    span.dataset.at = this.spans.length;
    put(span);
    this.spans.push(span);
  }

  shade() {
    const { counts, length, total } = this.lens;
    this.spans.forEach((span, at) => {
      const step = at < length ? Math.ceil((counts[at] / total) * STEPS) : STEPS;
      const shade = `t h${step}${at === this.selected ? " chosen" : ""}`;
      if (span.className !== shade) span.className = shade;
    });
  }

  summary() {
    const { counts, length, total } = this.lens;
    const gone = counts.filter((count) => count === 0).length;
    const whole = counts.filter((count) => count === total).length;
    return `Of ${length} tokens read, ${whole} are held by all ${total} heads and ${gone} by none.`;
  }

  showBytes({ held, dense }) {
    this.find(".held-bytes").textContent = `${bytes(held)} (${Math.round((100 * held) / dense)} %)`;
    this.find(".dense-bytes").textContent = bytes(dense);
    this.find(".bar.held").style.width = `${(100 * held) / dense}%`;
    this.find(".bar.dense").style.width = "100%";
  }

  /** Without a lens, show what the usage says of the slot at the end. */
  usage({ llamahome }) {
    if (this.lens === null && llamahome) {
      this.showBytes({ held: llamahome.kv_bytes, dense: llamahome.kv_bytes_dense });
    }
  }

  // --- one token

  setUpTokens() {
    const box = this.find(".transcript");
    box.addEventListener("click", (event) => {
      const at = event.target.dataset?.at;
      if (at !== undefined) this.onSelect(Number(at));
    });
    box.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step && this.lens) {
        const last = this.spans.length - 1;
        const from = this.selected ?? (step > 0 ? -1 : last + 1);
        this.onSelect(Math.min(last, Math.max(0, from + step)));
        event.preventDefault();
      } else if (event.key === "Escape") {
        this.onSelect(null);
      }
    });
    const map = this.find(".map");
    map.addEventListener("click", (event) => this.onSelect(tokenAtPoint(map, this.lens, event)));
    new ResizeObserver(() => this.lens?.length && drawMap(map, this.lens, this.selected)).observe(map);
  }

  /** Choose a token, or none; a place past the end is none. */
  select(at) {
    if (at !== null && at >= this.spans.length) at = null;
    this.selected = at;
    this.find(".inspector").hidden = at === null;
    if (!this.lens?.length) return;
    this.shade();
    drawMap(this.find(".map"), this.lens, at);
    if (at === null) return;
    this.spans[at].scrollIntoView({ block: "nearest" });
    this.inspect();
  }

  inspect() {
    const { lens, selected: at } = this;
    const inside = at < lens.length;
    const count = inside ? lens.counts[at] : 0;
    const said = inside
      ? `token ${at + 1} is held by ${count} of ${lens.total} heads`
      : `token ${at + 1} is new; no head has read it yet`;
    const about = this.find(".about");
    const word = document.createElement("code");
    word.textContent = visible(lens.texts[at]);
    const axes = document.createElement("small");
    axes.textContent = `a column for each layer, a row for each of its ${lens.heads} heads`;
    about.replaceChildren(word, ` ${said}`, axes);
    document.getElementById("status").textContent = `${visible(lens.texts[at])}: ${said}`;
    const grid = this.find(".heads-grid");
    grid.style.setProperty("--layers", lens.layers);
    grid.setAttribute("aria-label", byLayer(lens, at, inside));
    const cells = [];
    for (let head = 0; head < lens.heads; head++) {
      for (let layer = 0; layer < lens.layers; layer++) {
        const cell = document.createElement("i");
        cell.title = `layer ${layer}, head ${head}`;
        if (inside && lens.holds(layer, head, at)) cell.className = "on";
        cells.push(cell);
      }
    }
    grid.replaceChildren(...cells);
  }
}

function byLayer(lens, at, inside) {
  if (!inside) return "Not in the cache yet";
  const layers = [];
  for (let layer = 0; layer < lens.layers; layer++) {
    const count = lens.inLayer(layer, at);
    if (count) layers.push(`${layer} (${count})`);
  }
  return `Layers by heads; held in layers, with their number of heads: ${layers.join(", ") || "none"}`;
}

function visible(text) {
  return text.replaceAll("\n", "↵").replaceAll(" ", "␣") || "·";
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) [count, unit] = [count / 1024, unit + 1];
  return `${count.toFixed(unit && count < 100 ? 1 : 0)} ${units[unit]}`;
}
