"use strict";
const $ = id => document.getElementById("ui-" + id);
const root = document.documentElement;
const up = document.body.dataset.up;

function make(tag, properties = {}, ...inside) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...inside);
  return node;
}

// --- light and dark, the menu --------------------------------------------------------------

function isDark() {
  const chosen = root.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

$("theme").onclick = () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try {
    localStorage.setItem("theme", root.dataset.theme);
  } catch (error) {
    // a browser that stores nothing shows the choice on this page alone
  }
};

$("menu").onclick = () => {
  $("menu").setAttribute("aria-expanded", $("sidebar").classList.toggle("open"));
};

const here = document.querySelector("#ui-sidebar [aria-current]");
const bar = $("sidebar");
if (here && here.offsetTop > bar.clientHeight - 80) {
  bar.scrollTop = here.offsetTop - bar.clientHeight / 2;
}

// --- copy buttons --------------------------------------------------------------------------

async function copyText(text) {
  if (navigator.clipboard) {
    try {
      return await navigator.clipboard.writeText(text);
    } catch (error) {
      // not allowed here: the older way below
    }
  }
  const field = make("textarea", { value: text });
  field.style.position = "fixed";
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

for (const code of document.querySelectorAll("pre.code")) {
  const button = make("button", { className: "copy", type: "button", textContent: "Copy" });
  button.setAttribute("aria-label", "Copy this code");
  button.onclick = async () => {
    await copyText(code.textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  };
  const block = make("div", { className: "block" });
  code.replaceWith(block);
  block.append(code, button);
}

// --- search --------------------------------------------------------------------------------

const box = $("search");
const hits = $("hits");
let loading;

function load(file) {
  return new Promise((done, failed) => {
    const script = make("script", { src: up + "assets/" + file, onload: done, onerror: failed });
    document.head.append(script);
  });
}

function prepared() {
  loading ??= load("index.js").then(() => prepare(window.INDEX));
  return loading;
}

function address(page, anchor) {
  return up + page.url + (anchor ? "#" + encodeURIComponent(anchor) : "");
}

function marked(text, roots) {
  return passage(text, roots).map(([piece, hit]) => (hit ? make("mark", {}, piece) : piece));
}

function shown(hit) {
  const name = [make("b", {}, hit.page.title)];
  if (hit.heading !== hit.page.title) name.push(" › " + hit.heading);
  const text = marked(hit.prose || hit.code || hit.page.about, hit.roots);
  const link = make("a", { className: "hit", href: address(hit.page, hit.anchor) });
  link.append(...name, make("small", {}, ...text));
  if (!hit.others.length) return [link];
  const others = hit.others.map(part =>
    make("a", { className: "other", href: address(hit.page, part.anchor) }, part.heading),
  );
  return [link, make("div", { className: "others" }, ...others)];
}

async function find() {
  const text = box.value;
  if (!text.trim()) {
    hits.hidden = true;
    return;
  }
  const found = search(await prepared(), text).slice(0, 15);
  if (text !== box.value) return; // something else was typed in the meantime
  hits.replaceChildren(...found.flatMap(shown));
  if (!found.length) hits.append(make("p", {}, "Nothing found."));
  hits.hidden = false;
  hits.scrollTop = 0;
}

function step(forwards) {
  const all = [...hits.querySelectorAll("a")];
  if (!all.length) return;
  const at = all.findIndex(link => link.classList.contains("at"));
  const next = forwards ? at + 1 : (at < 0 ? all.length : at) - 1;
  all[at]?.classList.remove("at");
  const to = all[(next + all.length) % all.length];
  to.classList.add("at");
  to.scrollIntoView({ block: "nearest" });
}

box.oninput = find;
box.onfocus = () => {
  prepared();
  if (box.value) find();
};
box.onkeydown = async event => {
  if (event.key === "Escape") {
    hits.hidden = true;
    box.blur();
  } else if (event.key === "Enter") {
    if (!hits.querySelector("a.at")) await find();
    const link = hits.querySelector("a.at") || hits.querySelector("a");
    if (link) location.href = link.href;
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    step(event.key === "ArrowDown");
  }
};
hits.onclick = () => {
  hits.hidden = true;
};
document.addEventListener("click", event => {
  if (!event.target.closest(".search")) hits.hidden = true;
});
document.addEventListener("keydown", event => {
  if (event.key === "/" && !/INPUT|TEXTAREA/.test(document.activeElement.tagName)) {
    event.preventDefault();
    box.focus();
  }
});
