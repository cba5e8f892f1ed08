// The page: wires its controls to one pane, or two that answer the same question.

import { Api } from "/page/api.js";
import { Pane } from "/page/pane.js";
import { SHORT, STORY } from "/page/samples.js";

const byId = (id) => document.getElementById(id);
const THEMES = ["system", "light", "dark"];
const state = { panes: [], info: null, running: null };
const api = new Api(askKey);

async function start() {
  setUpTheme();
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  byId("stop").addEventListener("click", () => state.running?.abort());
  byId("again").addEventListener("click", regenerate);
  byId("new").addEventListener("click", restart);
  byId("compare").addEventListener("click", () => {
    press("compare", !pressed("compare"));
    restart();
  });
  byId("lens").addEventListener("click", () => press("lens", !pressed("lens")));
  try {
    const [models, info] = await Promise.all([api.json("/v1/models"), api.json("/v1/lens")]);
    for (const { id } of models.data) byId("model").append(new Option(id));
    state.info = info;
    if (!info.lens) {
      press("lens", false);
      byId("lens").disabled = true;
      byId("lens").title = "Not shown by this endpoint (serve.lens)";
    }
    restart();
  } catch (error) {
    complain(error.message);
  }
}

// --- the conversation

function restart() {
  if (!state.info) return;
  state.running?.abort();
  state.running = null;
  busy(false);
  const samples = [
    { name: "Read a diary, find the key", use: () => sendGreedily(STORY) },
    { name: "Why is the sky blue?", use: () => sendGreedily(SHORT) },
  ];
  const names = pressed("compare") ? ["First budget", "Second budget"] : ["Conversation"];
  state.panes = names.map((name, index) => {
    const pane = new Pane(state.info, index ? [] : samples);
    pane.name = name;
    pane.onSelect = select;
    return pane;
  });
  if (names.length === 2 && state.info.cache) state.panes[1].budget = small(state.info.cache);
  byId("panes").replaceChildren(...state.panes.map((pane) => pane.root));
  byId("panes").className = names.length === 2 ? "two" : "";
  byId("again").disabled = true;
  complain("");
}

/** Look at a token in every pane; the first one that holds it speaks. */
function select(at) {
  for (const pane of state.panes.toReversed()) pane.select(at);
}

/** A budget that forgets most of a page, for the second pane. */
function small({ kv_budgets: [least, largest] }) {
  return Math.min(2 * least, largest - 1);
}

function send(sample) {
  const text = (sample ?? byId("prompt").value).trim();
  if (!text || state.running || !state.panes.length) return;
  byId("prompt").value = "";
  answer((messages) => [...messages, { role: "user", content: text }]);
}

/** Samples are greedy, so that two budgets differ by what they hold alone. */
function sendGreedily(text) {
  byId("temperature").value = "0";
  send(text);
}

function regenerate() {
  if (state.running) return;
  answer((messages) => (messages.at(-1).role === "assistant" ? messages.slice(0, -1) : messages));
}

async function answer(asked) {
  const running = new AbortController();
  state.running = running;
  busy(true);
  complain("");
  say("The model is answering.");
  const answers = state.panes.map((pane) => answerIn(pane, asked(pane.messages), running.signal));
  const results = await Promise.allSettled(answers);
  const failed = results.find((result) => result.status === "rejected");
  if (failed && failed.reason.name !== "AbortError") complain(failed.reason.message);
  if (state.running !== running) return; // a new chat has begun
  state.running = null;
  busy(false);
  say(state.panes.map((pane) => `${pane.root.ariaLabel}: ${pane.messages.at(-1).content}`).join("\n"));
  byId("prompt").focus();
}

async function answerIn(pane, messages, signal) {
  const system = byId("system").value.trim();
  const whole = [...(system ? [{ role: "system", content: system }] : []), ...turns(messages)];
  const answered = { role: "assistant", content: "" };
  pane.begin([...whole, answered]);
  const body = { model: byId("model").value, messages: whole, ...sampling(), ...pane.options };
  for await (const event of api.chat({ ...body, ...(pressed("lens") && { lens: true }) }, signal)) {
    if (event.usage) pane.usage(event.usage);
    const text = event.choices[0]?.delta.content;
    if (text) pane.append(text);
    if (event.lens) await pane.frame(event.lens);
  }
}

function turns(messages) {
  return messages.filter(({ role }) => role !== "system").map(({ role, content }) => ({ role, content }));
}

function sampling() {
  const fields = { temperature: "temperature", seed: "seed", max_tokens: "tokens" };
  const given = Object.entries(fields).filter(([, id]) => byId(id).value !== "");
  return Object.fromEntries(given.map(([name, id]) => [name, Number(byId(id).value)]));
}

// --- the page

function busy(on) {
  byId("stop").hidden = !on;
  byId("send").hidden = on;
  byId("again").disabled = on;
}

function say(text) {
  byId("status").textContent = text;
}

function complain(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

function pressed(id) {
  return byId(id).getAttribute("aria-pressed") === "true";
}

function press(id, on) {
  byId(id).setAttribute("aria-pressed", String(on));
}

function setUpTheme() {
  const show = (theme) => {
    document.documentElement.dataset.theme = theme;
    byId("theme").textContent = { system: "Auto", light: "Light", dark: "Dark" }[theme];
    byId("theme").setAttribute("aria-label", `Theme: ${theme}`);
  };
  show(localStorage.getItem("llamahome.theme") ?? "system");
  byId("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
    localStorage.setItem("llamahome.theme", next);
    show(next);
  });
}

let asking = null;

/** Return a promise of a key; questions that come together share one dialog. */
function askKey() {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key");
    const input = dialog.querySelector("input");
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener(
      "close",
      () => {
        asking = null;
        resolve(input.value);
        input.value = "";
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}

start();
