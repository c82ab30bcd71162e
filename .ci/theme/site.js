"use strict";
const $ = id => document.getElementById("ui-" + id), root = document.documentElement, up = document.body.dataset.up;
const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
$("theme").onclick = () => { root.dataset.theme = dark() ? "light" : "dark"; try { localStorage.setItem("theme", root.dataset.theme) } catch (e) {} };
$("menu").onclick = () => $("menu").setAttribute("aria-expanded", $("sidebar").classList.toggle("open"));
const here = document.querySelector("#ui-sidebar [aria-current]"), bar = $("sidebar");
if (here && here.offsetTop > bar.clientHeight - 80) bar.scrollTop = here.offsetTop - bar.clientHeight / 2;

// Search: every word must occur; a name or a heading counts more than text, text more than code
const box = $("search"), hits = $("hits"); let loading;
const index = () => loading ??= new Promise((ok, bad) => { const s = document.createElement("script"); s.src = up + "assets/index.js"; s.onload = () => ok(window.INDEX); s.onerror = bad; document.head.append(s) });
const esc = s => s.replace(/[&<>"]/g, c => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const count = (s, w) => s.toLowerCase().split(w).length - 1;
function score([, page, , heading, words, code], query) {
  let all = 0;
  for (const w of query) {
    const h = heading.toLowerCase(), n = 60 * (h === w) + 20 * h.includes(w) + 8 * page.toLowerCase().includes(w) + Math.min(6, count(words, w)) + .5 * Math.min(4, count(code, w));
    if (!n) return 0;
    all += n;
  }
  return all;
}
function snippet(s, query) {
  const at = Math.max(0, Math.min(...query.map(w => s.toLowerCase().indexOf(w)).filter(i => i >= 0), s.length) - 50);
  const part = esc((at ? "…" : "") + s.slice(at, at + 170)), words = query.map(w => esc(w).replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return part.replace(new RegExp(`(${words.join("|")})`, "gi"), "<mark>$1</mark>");
}
async function find() {
  const query = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  if (!query.length) { hits.hidden = true; return }
  const found = (await index()).map(e => [score(e, query), e]).filter(e => e[0]).sort((a, b) => b[0] - a[0]).slice(0, 25);
  hits.innerHTML = found.map(([, [url, page, anchor, heading, words, code]]) => {
    const text = query.some(w => words.toLowerCase().includes(w)) ? words : code || words;
    return `<a href="${up}${url}${anchor ? "#" + encodeURIComponent(anchor) : ""}"><b>${esc(page)}</b>${heading !== page ? " › " + esc(heading) : ""}<small>${snippet(text.trim(), query)}</small></a>`;
  }).join("") || "<p>Nothing found.</p>";
  hits.hidden = false;
}
box.oninput = find;
box.onfocus = () => { index(); if (box.value) find() };
box.onkeydown = e => {
  const all = [...hits.querySelectorAll("a")], at = all.findIndex(a => a.classList.contains("at"));
  if (e.key === "Escape") { hits.hidden = true; box.blur() }
  else if (e.key === "Enter" && all.length) location.href = all[Math.max(0, at)].href;
  else if (e.key === "ArrowDown" || e.key === "ArrowUp") {
    e.preventDefault(); all[at]?.classList.remove("at");
    const to = all[(at + (e.key === "ArrowDown" ? 1 : all.length - 1) + (at < 0 && e.key === "ArrowUp" ? 1 : 0)) % all.length]; to?.classList.add("at"); to?.scrollIntoView({ block: "nearest" });
  }
};
hits.onclick = () => { hits.hidden = true };
document.addEventListener("click", e => { if (!e.target.closest(".search")) hits.hidden = true });
document.addEventListener("keydown", e => { if (e.key === "/" && !/INPUT|TEXTAREA/.test(document.activeElement.tagName)) { e.preventDefault(); box.focus() } });
