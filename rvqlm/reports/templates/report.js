// Players: one clip sounds at a time; the spectrogram and the bar below it both seek.
let sounding = null;

for (const clip of document.querySelectorAll(".clip")) {
  const audio = clip.querySelector("audio");
  const [line, done, time] = [".head-line", ".done", ".time"].map((s) => clip.querySelector(s));
  const total = Number(clip.dataset.seconds);
  audio.controls = false;
  audio.hidden = true;
  for (const part of clip.querySelectorAll(".play, .seek, .time")) part.hidden = false;

  const draw = () => {
    const share = Math.min(1, audio.currentTime / total);
    line.style.left = done.style.width = `${100 * share}%`;
    time.textContent = `${audio.currentTime.toFixed(1)} / ${total.toFixed(1)} s`;
    if (!audio.paused) requestAnimationFrame(draw);
  };
  const seek = (event, area) => {
    const box = area.getBoundingClientRect();
    audio.currentTime = total * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    clip.classList.add("live");
    draw();
  };
  clip.querySelector(".play").addEventListener("click", () => {
    if (audio.paused) audio.play();
    else audio.pause();
  });
  audio.addEventListener("play", () => {
    if (sounding && sounding !== audio) sounding.pause();
    sounding = audio;
    clip.classList.add("playing", "live");
    draw();
  });
  for (const name of ["pause", "ended"]) {
    audio.addEventListener(name, () => clip.classList.remove("playing"));
  }
  const picture = clip.querySelector(".picture");
  picture.addEventListener("click", (e) => {
    seek(e, picture);
    if (audio.paused) audio.play();
  });
  const bar = clip.querySelector(".seek");
  bar.addEventListener("click", (e) => seek(e, bar));
  bar.addEventListener("keydown", (e) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
    if (by) {
      audio.currentTime = Math.min(total, Math.max(0, audio.currentTime + by));
      clip.classList.add("live");
      draw();
      e.preventDefault();
    }
  });
}

// From the table of checks to a sample: it is shown, and heard.
for (const link of document.querySelectorAll("a[href^='#check-']")) {
  link.addEventListener("click", () => {
    const card = document.getElementById(link.hash.slice(1));
    card.closest("details").open = true;
    card.querySelector("audio").play();
  });
}

// Charts: the values nearest to the pointer.
for (const chart of document.querySelectorAll(".chart[data-lines]")) {
  const lines = JSON.parse(chart.dataset.lines);
  const cross = document.createElement("div");
  const read = document.createElement("div");
  cross.className = "cross";
  read.className = "read";
  const leave = () => {
    cross.remove();
    read.remove();
  };
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const at = (100 * (event.clientX - box.left)) / box.width;
    const nearest = lines.map((l) =>
      l.hover.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a)),
    );
    if (!nearest.length) return;
    const x = nearest.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
    cross.style.left = `${x[0]}%`;
    read.replaceChildren();
    for (const text of [
      `${x[2]} ${chart.dataset.unit}`,
      ...lines.map((l, i) => `${l.label}: ${nearest[i][3]}`),
    ]) {
      const row = document.createElement("div");
      row.textContent = text;
      read.append(row);
    }
    chart.append(cross, read);
    const left = x[0] > 55;
    read.style.left = left ? "auto" : `calc(${x[0]}% + 10px)`;
    read.style.right = left ? `calc(${100 - x[0]}% + 10px)` : "auto";
  });
  chart.addEventListener("pointerleave", leave);
}

addEventListener("beforeprint", () => {
  for (const d of document.querySelectorAll("details")) d.open = true;
});
