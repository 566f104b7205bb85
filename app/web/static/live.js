// Keeps an open page up to date. Without it every page works, and shows how things were when it was asked for.
"use strict";
(() => {
  const page = document.body.dataset;
  const status = document.getElementById("live");
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const slow = 30000; // ms; also for what only time changes ("3 minutes ago")
  let source, timer, asking = false, again = false, last = 0, version = null;

  // What somebody is typing, choosing or listening to is left alone.
  const busy = (part) =>
    part.contains(document.activeElement) && document.activeElement.matches("input, select, textarea") ||
    [...part.querySelectorAll("audio, video")].some((one) => !one.paused) ||
    !document.getSelection().isCollapsed && part.contains(document.getSelection().anchorNode);

  const place = (part, node) => {
    const path = [];
    for (; node !== part; node = node.parentNode) path.unshift([...node.parentNode.children].indexOf(node));
    return path;
  };

  const swap = (part, fresh) => {
    if (part.innerHTML === fresh.innerHTML || busy(part)) return;
    const focus = part.contains(document.activeElement) ? document.activeElement : null;
    const id = focus && focus.id, path = focus && !id && focus !== part ? place(part, focus) : null;
    const scrolled = [...part.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
    for (const one of part.querySelectorAll("details[id][open]")) {
      const same = fresh.querySelector(`#${CSS.escape(one.id)}`);
      if (same) same.open = true;
    }
    part.replaceChildren(...fresh.childNodes);
    part.querySelectorAll(".scroll").forEach((one, i) => { one.scrollLeft = scrolled[i] || 0; });
    const target = id ? document.getElementById(id) : path && path.reduce((node, i) => node && node.children[i], part);
    if (target) target.focus({ preventScroll: true });
  };

  const refresh = async () => {
    if (asking) { again = true; return; }
    asking = true;
    const wait = last + 1000 - Date.now(); // at most one a second
    if (wait > 0) await new Promise((go) => setTimeout(go, wait));
    try {
      last = Date.now();
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, credentials: "same-origin" });
      if (answer.redirected && new URL(answer.url).pathname.endsWith("/sign-in")) { location.reload(); return; }
      if (answer.ok) {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        for (const part of document.querySelectorAll("[data-live][id]")) {
          const other = fresh.getElementById(part.id);
          if (other) swap(part, other);
        }
        document.title = fresh.title;
        status.textContent = "";
        document.dispatchEvent(new Event("toban:live"));
      }
    } catch {
      status.textContent = status.dataset.away;
    } finally {
      asking = false;
      if (again) { again = false; refresh(); }
    }
  };

  const open = () => {
    if (source || document.hidden) return;
    source = new EventSource(page.events);
    source.addEventListener("hello", refresh);
    source.addEventListener("change", refresh);
    source.addEventListener("away", () => { status.textContent = status.dataset.away; });
    source.addEventListener("goodbye", () => { close(); setTimeout(() => { refresh(); open(); }, 1000); });
    source.addEventListener("error", () => {
      if (source && source.readyState === EventSource.CLOSED) { close(); setTimeout(open, 5000); refresh(); }
    });
    timer = setInterval(refresh, slow);
  };
  const close = () => {
    if (source) source.close();
    source = null;
    clearInterval(timer);
  };

  // Browsers open six connections to a server, so pages that nobody sees keep none.
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  window.addEventListener("pagehide", close);
  if (!page.zone && zone) {
    const secure = location.protocol === "https:" ? "; secure" : "";
    document.cookie = `toban_zone=${zone}; path=/; max-age=31536000; samesite=lax${secure}`;
  }
  open();
})();
