// Which prompts are shown, and in which order.
const filters = document.querySelector(".filters");
const prompts = [...document.querySelectorAll(".prompt")].map((element, place) => {
  const { kind, speaker, find, errors } = element.dataset;
  return { element, place, kind, speaker, find: find.toLowerCase(), errors: JSON.parse(errors) };
});
const end = document.createComment("prompts");
if (prompts.length) prompts[prompts.length - 1].element.after(end);

// What a prompt is ordered by, the largest first; nothing known comes last.
const badness = ({ errors }, order) => {
  const known = errors.filter((e) => e !== null);
  if (order === "worst") return known.length ? Math.max(...known) : -1;
  if (order === "apart") return known.length > 1 ? Math.max(...known) - Math.min(...known) : -1;
  return errors[Number(order)] ?? -1;
};

function show() {
  const wanted = Object.fromEntries(new FormData(filters));
  const words = (wanted.find || "").toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const p of prompts) {
    const hidden =
      (wanted.kind && p.kind !== wanted.kind) ||
      (wanted.speaker && p.speaker !== wanted.speaker) ||
      !words.every((word) => p.find.includes(word));
    p.element.hidden = hidden;
    if (hidden) for (const audio of p.element.querySelectorAll("audio")) audio.pause();
    else shown += 1;
  }
  const order = wanted.order || "";
  const sorted = [...prompts].sort(
    (a, b) => (order && badness(b, order) - badness(a, order)) || a.place - b.place,
  );
  for (const p of sorted) end.parentNode.insertBefore(p.element, end);
  filters.querySelector("output").textContent = `${shown} of ${prompts.length}`;
}

filters.hidden = prompts.length < 2;
filters.addEventListener("input", show);
filters.addEventListener("submit", (e) => e.preventDefault());
if (prompts.length) show();
