// One trial at a time; what was answered is kept in the browser until it is saved as a file.
const content = JSON.parse(document.getElementById("content").textContent);
const pairs = content.kind === "preference";
const choices = pairs
  ? [["left", "left is better"], ["same", "no difference"], ["right", "right is better"]]
  : [[1, "bad"], [2, "poor"], [3, "fair"], [4, "good"], [5, "excellent"]];
const keys = pairs ? ["ArrowLeft", "ArrowDown", "ArrowRight"] : ["1", "2", "3", "4", "5"];
const sections = ["intro", "trial", "end"];
const [intro, trial, end] = sections.map((id) => document.getElementById(id));
const place = `rvqlm listening test ${content.test}`;

// ---------------------------------------------------------------- what is kept

let state = null;
let keeps = true;
try {
  localStorage.setItem(`${place} ?`, "1");
  localStorage.removeItem(`${place} ?`);
  state = JSON.parse(localStorage.getItem(place));
} catch {
  keeps = false;
}

function keep() {
  if (!keeps) return;
  try {
    localStorage.setItem(place, JSON.stringify(state));
  } catch {
    keeps = false;
    intro.querySelector(".storage").hidden = false;
  }
}

// Random numbers below 1 by a seed (mulberry32), so that a session says its order.
function random(seed) {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function begin(rater) {
  const [seed, more] = crypto.getRandomValues(new Uint32Array(2));
  const session = [seed, more].map((n) => n.toString(16).padStart(8, "0")).join("");
  const order = content.trials.map((t) => t.id);
  const draw = random(seed);
  for (let i = order.length - 1; i > 0; i--) {
    const j = Math.floor(draw() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  state = { rater, session, order, at: 0, answers: {}, heard: {}, started: new Date().toISOString() };
}

const answered = () => Object.keys(state.answers).length;

function result() {
  return JSON.stringify(
    {
      test: content.test,
      rater: state.rater,
      session: state.session,
      started: state.started,
      saved: new Date().toISOString(),
      trials: content.trials.length,
      order: state.order,
      answers: state.answers,
    },
    null,
    1,
  );
}

function fileName() {
  const rater = state.rater.replace(/[^\p{L}\p{M}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  return `listening-${content.test.slice(0, 8)}-${rater || state.session.slice(0, 4)}.json`;
}

// ---------------------------------------------------------------- a trial

const trials = new Map(content.trials.map((t) => [t.id, t]));
let players = [];
let shownAt = 0;

function show(section) {
  for (const s of [intro, trial, end]) s.hidden = s !== section;
  scrollTo(0, 0);
}

function silence() {
  for (const { audio } of players) audio.pause();
}

function player(name, number) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "player";
  button.innerHTML =
    '<svg class="go" viewBox="0 0 16 16" aria-hidden="true"><path d="M4 2l10 6-10 6z"/></svg>' +
    '<svg class="pause" viewBox="0 0 16 16" aria-hidden="true"><path d="M3 2h4v12H3zM9 2h4v12H9z"/></svg>' +
    "<span></span><i></i>";
  button.querySelector("span").textContent = pairs ? ["left", "right"][number] : "play";
  const audio = new Audio(content.clips[name]);
  const bar = button.querySelector("i");
  const one = { button, audio, plays: 0 };
  const draw = () => {
    bar.style.width = `${(100 * audio.currentTime) / (audio.duration || 1)}%`;
    if (!audio.paused) requestAnimationFrame(draw);
  };
  button.addEventListener("click", () => {
    if (audio.paused) play(one);
    else audio.pause();
  });
  audio.addEventListener("play", () => {
    button.classList.add("playing");
    draw();
  });
  audio.addEventListener("pause", () => button.classList.remove("playing"));
  audio.addEventListener("ended", () => {
    one.plays += 1;
    draw();
    ready();
  });
  audio.addEventListener("error", () => {
    trial.querySelector(".hint").textContent = "This browser cannot play the clip; try another one.";
  });
  return one;
}

function play(one) {
  silence();
  if (one.audio.ended) one.audio.currentTime = 0;
  one.audio.play();
}

// Answers wait until everything was heard to its end, in this visit or an earlier one.
function ready() {
  const id = state.order[state.at];
  if (players.every((p) => p.plays)) {
    state.heard[id] = true;
    keep();
  }
  const done = Boolean(state.heard[id]);
  for (const p of players) p.button.classList.toggle("heard", done || p.plays > 0);
  for (const button of trial.querySelectorAll(".answers button")) button.disabled = !done;
  const words = pairs ? "Hear both to the end first." : "Hear it to the end first.";
  trial.querySelector(".hint").textContent = done ? "" : words;
}

function open() {
  silence();
  const { id, text, clips } = trials.get(state.order[state.at]);
  trial.querySelector(".eyebrow").textContent = `${state.at + 1} of ${state.order.length}`;
  trial.querySelector("blockquote").textContent = text || "";
  trial.querySelector("blockquote").hidden = !text;
  const bar = trial.querySelector(".bar");
  bar.setAttribute("aria-valuenow", answered());
  bar.setAttribute("aria-valuemax", state.order.length);
  bar.firstElementChild.style.width = `${(100 * answered()) / state.order.length}%`;
  players = clips.map(player);
  trial.querySelector(".players").replaceChildren(...players.map((p) => p.button));
  const buttons = choices.map(([value, words]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = pairs ? words : `${value} ${words}`;
    button.setAttribute("aria-pressed", state.answers[id]?.answer === value);
    button.addEventListener("click", () => answer(value));
    return button;
  });
  const answers = trial.querySelector(".answers");
  answers.className = pairs ? "answers" : "answers grades";
  answers.replaceChildren(...buttons);
  trial.querySelector(".back").disabled = state.at === 0;
  shownAt = performance.now();
  show(trial);
  ready();
}

function answer(value) {
  const id = state.order[state.at];
  if (!state.heard[id]) return;
  const seconds = Math.round((performance.now() - shownAt) / 100) / 10;
  state.answers[id] = { answer: value, seconds, plays: players.map((p) => p.plays) };
  const next = state.order.findIndex((other, i) => i > state.at && !state.answers[other]);
  const any = next >= 0 ? next : state.order.findIndex((other) => !state.answers[other]);
  state.at = any >= 0 ? any : state.at;
  keep();
  if (any >= 0) open();
  else finish();
}

function finish() {
  silence();
  const left = state.order.length - answered();
  end.querySelector(".sum").textContent = left
    ? `${answered()} of ${state.order.length} are answered; ${left} are left.`
    : `All ${state.order.length} are answered.`;
  end.querySelector(".resume").hidden = !left;
  end.querySelector(".file").textContent = fileName();
  end.querySelector("textarea").value = result();
  show(end);
  end.querySelector(".save").focus();
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([result()], { type: "application/json" }));
  link.download = fileName();
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---------------------------------------------------------------- begin

const form = intro.querySelector("form");
intro.querySelector(".storage").hidden = keeps;
if (state) {
  form.rater.value = state.rater;
  form.querySelector(".main").textContent = `Go on (${answered()} of ${state.order.length} answered)`;
  form.querySelector(".anew").hidden = false;
}
form.addEventListener("submit", (event) => {
  event.preventDefault();
  const rater = form.rater.value.trim();
  if (state) state.rater = rater;
  else begin(rater);
  keep();
  if (answered() === state.order.length) finish();
  else open();
});
form.querySelector(".anew").addEventListener("click", () => {
  if (!confirm(`Begin anew, without the ${answered()} answers?`)) return;
  begin(form.rater.value.trim());
  keep();
  open();
});
trial.querySelector(".back").addEventListener("click", back);
trial.querySelector(".stop").addEventListener("click", finish);
end.querySelector(".resume").addEventListener("click", open);
end.querySelector(".save").addEventListener("click", save);

function back() {
  if (state.at === 0) return;
  state.at -= 1;
  keep();
  open();
}

addEventListener("keydown", (event) => {
  if (trial.hidden || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const chosen = keys.indexOf(event.key);
  if (chosen >= 0) answer(choices[chosen][0]);
  else if (pairs && ["1", "2"].includes(event.key)) players[Number(event.key) - 1].button.click();
  else if (event.key === " ") (players.find((p) => !p.plays) || players[0]).button.click();
  else if (event.key === "Backspace") back();
  else return;
  event.preventDefault();
});
