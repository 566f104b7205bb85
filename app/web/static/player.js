// The strip of a day begins where something is. Times in a transcript move the player instead of loading the page again; what is being said is marked.
"use strict";
(() => {
  const strip = document.querySelector(".daystrip");
  const slot = document.querySelector(".slot [aria-current]") || document.querySelector(".slot:not(.nothing, .skipped)");
  if (strip && slot) { // on a phone the strip is wider than the window
    strip.scrollLeft += slot.getBoundingClientRect().left - strip.getBoundingClientRect().left - strip.clientWidth / 2;
  }
  const player = document.getElementById("player");
  if (!player) return;
  const times = () => [...document.querySelectorAll("#words [data-start]")];
  document.addEventListener("click", (event) => {
    const time = event.target.closest("#words [data-start]");
    if (!time || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    player.currentTime = Number(time.dataset.start);
    player.play().catch(() => {}); // no sound, or not allowed: the player says so itself
  });
  player.addEventListener("timeupdate", () => {
    for (const time of times()) {
      const now = player.currentTime >= Number(time.dataset.start) && player.currentTime < Number(time.dataset.end);
      time.parentElement.classList.toggle("now", now);
    }
  });
})();
