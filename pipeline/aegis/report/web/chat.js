// the conversation: one question per turn, and every model's answer to it
let models = [];
let turns = [];
let stopping = null;

async function start() {
  translate();
  try {
    const found = await (await fetch("/v1/models")).json();
    models = found.data.map((model) => model.id);
  } catch {
    byId("title").textContent = text("lost");
    return;
  }
  byId("title").textContent = models.join(" · ");
  document.title = `${models.join(" · ")} – AEGIS`;
}

function send() {
  const question = byId("question").value.trim();
  if (!question || stopping || !models.length) return;
  byId("question").value = "";
  ask(question);
}

async function ask(question) {
  const turn = { question, answers: models.map(() => "") };
  const before = turns.slice();
  turns.push(turn);
  const panes = show(turn);
  stopping = new AbortController();
  refresh();
  await Promise.all(models.map((_, index) => answer(before, turn, index, panes[index], stopping.signal)));
  stopping = null;
  refresh();
  byId("question").focus({ preventScroll: true });
}

function show(turn) {
  const box = make("div", "turn");
  box.append(make("p", "question", turn.question));
  const answers = make("div", models.length > 1 ? "answers beside" : "answers");
  const panes = models.map((name) => {
    const pane = { box: make("div", "answer"), words: make("p", "words"), note: label("p", "note", "chat_waiting") };
    if (models.length > 1) pane.box.append(make("p", "name", name));
    pane.box.append(pane.words, pane.note);
    answers.append(pane.box);
    return pane;
  });
  box.append(answers);
  turn.box = box;
  byId("turns").append(box);
  window.scrollTo(0, document.body.scrollHeight);
  return panes;
}

function messages(before, question, index) {
  const system = byId("system").value.trim();
  const said = system ? [{ role: "system", content: system }] : [];
  for (const turn of before) {
    if (!turn.answers[index]) continue; // a template may refuse a question after a question
    said.push({ role: "user", content: turn.question }, { role: "assistant", content: turn.answers[index] });
  }
  return [...said, { role: "user", content: question }];
}

async function answer(before, turn, index, pane, signal) {
  const body = {
    model: models[index],
    messages: messages(before, turn.question, index),
    temperature: Number(byId("temperature").value),
    max_tokens: Math.max(1, Math.floor(Number(byId("max_tokens").value)) || 1),
    stream: true,
  };
  const write = (piece) => {
    turn.answers[index] += piece;
    pane.words.textContent = turn.answers[index];
    follow();
  };
  try {
    await streamed(body, signal, write, pane.note);
  } catch (error) {
    delete pane.note.dataset.text;
    if (signal.aborted) {
      pane.note.dataset.text = "chat_stopped";
      pane.note.textContent = text("chat_stopped");
    } else {
      pane.note.className = "note bad";
      pane.note.textContent = error instanceof TypeError ? text("lost") : error.message;
    }
  }
}

async function streamed(body, signal, write, note) {
  const headers = { "Content-Type": "application/json" };
  const response = await fetch("/v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw new Error((await response.json()).error.message);
  let pieces = 0;
  let cut = false;
  let began = performance.now();
  for await (const event of events(response.body)) {
    if (event.error) throw new Error(event.error.message);
    const choice = event.choices[0];
    cut ||= choice?.finish_reason === "length";
    if (!choice?.delta.content) continue;
    if (!pieces) began = performance.now();
    pieces += 1;
    write(choice.delta.content);
  }
  const speed = ((pieces - 1) * 1000) / (performance.now() - began);
  delete note.dataset.text;
  if (cut) note.textContent = text("chat_cut");
  else note.textContent = pieces > 1 ? text("chat_speed", { speed: Number(speed.toPrecision(3)) }) : "";
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

// keep the end in view, unless the reader has scrolled up
function follow() {
  const below = document.body.scrollHeight - window.scrollY - window.innerHeight;
  if (below < 160) window.scrollTo(0, document.body.scrollHeight);
}

function refresh() {
  const busy = stopping !== null;
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  byId("again").disabled = byId("clear").disabled = busy || !turns.length;
  byId("hint").hidden = turns.length > 0;
}

function removeLast() {
  const turn = turns.pop();
  turn.box.remove();
  return turn.question;
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("question").addEventListener("keydown", (event) => {
  // while an input method converts, Enter takes its proposal; Safari reports that Enter with key code 229
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  send();
});
byId("stop").addEventListener("click", () => stopping?.abort());
byId("again").addEventListener("click", () => ask(removeLast()));
byId("clear").addEventListener("click", () => {
  while (turns.length) removeLast();
  refresh();
  byId("question").focus();
});
start();
