"use strict";
// The ranking of the site's search. `search(index, text)` gives pages, the best first.
//
// Words are compared by their stems, common words of a question are left out, and a few words that
// newcomers use stand for the words of these pages. A part of a page (a heading with what follows,
// or a card) is scored by BM25 over its fields; a page by its best part and by all its words.

const STOP = new Set((
  "a about after again all am an and any are as at be been but by can cannot could did do does " +
  "doing done each for from get give go had has have having how i if in into is isn it its just " +
  "like ll me must my need no not of on one only or our please put re s should show so some " +
  "such t take tell than that the their them then there these they this those through to up us " +
  "use used uses using ve very via want was way we were what when where which who whose why " +
  "will with without would you your"
).split(" "));

// What newcomers say → what the pages say
const SYNONYMS = {
  attention: ["head"],
  cluster: ["slurm"],
  cpu: ["device"],
  compress: ["prune"],
  continue: ["resume"],
  crash: ["resume"],
  deploy: ["export"],
  distill: ["teacher"],
  distillation: ["teacher"],
  faster: ["latency"],
  gpt: ["causal"],
  hf: ["transformers"],
  huggingface: ["transformers", "hugging"],
  install: ["pip"],
  interrupt: ["resume"],
  job: ["slurm"],
  kill: ["resume"],
  llama: ["llm"],
  llm: ["language"],
  neuron: ["unit"],
  number: ["results"],
  pick: ["choose"],
  preempt: ["resume"],
  quickstart: ["start"],
  ratio: ["budget"],
  reload: ["load"],
  restart: ["resume"],
  retrain: ["finetune"],
  sbatch: ["slurm"],
  shrink: ["prune"],
  size: ["budget"],
  speed: ["latency"],
  speedup: ["latency"],
  store: ["save"],
  symbol: ["notation"],
  tune: ["finetune"],
};
const SYNONYM_WEIGHT = 0.5;
const PREFIX_WEIGHT = 0.5; // of words that go on where the last one stops, while it is typed

// Fields of a part: how much an occurrence counts, and how much length matters
const FIELDS = {
  heading: { weight: 6, length: 0.4 },
  title: { weight: 4, length: 0.3 },
  about: { weight: 2, length: 0.3 },
  section: { weight: 1.5, length: 0 },
  words: { weight: 1, length: 0.7 },
  code: { weight: 0.2, length: 0.7 },
};
const SATURATION = 1.6;
const PAGE_SHARE = 0.8; // of the score of all words of a page, beside that of its best part
// who asks for numbers wants pages of results
const NUMBERS = /\b(numbers?|results?|tables?|benchmarks?|measured|how (fast|good|much))\b/i;
const NUMBERS_WEIGHT = 1.4;
// parts of a page that name other pages
const ASIDE = /^(exercises|left out|what (this|these) .* not show|read on)/i;
const ASIDE_WEIGHT = 0.6;
const SECTIONS = { "Start here": 1.15, Reference: 1.1, Theory: 0.9, "The lab": 0.75 };

// --- words ---------------------------------------------------------------------------------

const vowel = /[aeiouy]/;

function undouble(word) {
  return /([bdfgmnprt])\1$/.test(word) ? word.slice(0, -1) : word;
}

function stemOnce(word) {
  if (/ies$/.test(word) && word.length > 4) return word.slice(0, -3) + "y";
  if (/(ss|us|is)$/.test(word)) return word;
  if (/(ch|sh|x|ss|z)es$/.test(word)) return word.slice(0, -2);
  if (/s$/.test(word) && word.length > 3) return word.slice(0, -1);
  return word;
}

// resume, resumes, resumed, resuming → resum; prune, pruning → prun; calibration → calibrat
function stem(word) {
  if (word.length < 4 || /\d/.test(word)) return word;
  let root = stemOnce(word);
  for (const ending of ["ing", "ed"]) {
    const cut = root.slice(0, -ending.length);
    if (root.endsWith(ending) && vowel.test(cut) && cut.length > 2) {
      root = undouble(cut);
      break;
    }
  }
  if (/[ts]ions?$/.test(root) && root.length > 6) root = root.replace(/ions?$/, "");
  if (root.length > 3 && root.endsWith("e")) root = root.slice(0, -1);
  if (root.length > 3 && root.endsWith("y")) root = root.slice(0, -1) + "i";
  return root;
}

// `SolutionPath.cut` → solutionpath, solution, path, cut; fine-tune → finetune, fine, tune
function words(text) {
  const found = [];
  for (const [whole] of text.matchAll(/[\p{L}\p{N}]+(?:[-_:'’][\p{L}\p{N}]+)*/gu)) {
    const parts = whole.replace(/['’]s$/, "").split(/[-_:'’]|(?<=[a-z])(?=[A-Z][a-z])/);
    if (parts.length > 1) found.push(parts.join("").toLowerCase());
    found.push(...parts.map(part => part.toLowerCase()));
  }
  return found;
}

// --- the index -----------------------------------------------------------------------------

function counted(text, lexicon) {
  const counts = new Map();
  let length = 0;
  for (const word of words(text)) {
    if (STOP.has(word)) continue;
    let root = lexicon.get(word);
    if (root === undefined) {
      root = stem(word);
      lexicon.set(word, root);
    }
    counts.set(root, (counts.get(root) || 0) + 1);
    length += 1;
  }
  return { counts, length };
}

function averages(documents) {
  const mean = {};
  for (const name of Object.keys(FIELDS)) {
    const total = documents.reduce((sum, item) => sum + item.fields[name].length, 0);
    mean[name] = Math.max(1, total / documents.length);
  }
  return mean;
}

function frequencies(documents) {
  const known = new Map();
  for (const item of documents) {
    const roots = new Set(Object.values(item.fields).flatMap(field => [...field.counts.keys()]));
    for (const root of roots) known.set(root, (known.get(root) || 0) + 1);
  }
  return known;
}

// Count the words of all pages, once
function prepare(index) {
  const lexicon = new Map(); // word → stem
  const parts = [];
  const pages = [];
  for (const page of index) {
    const title = counted(page.title, lexicon);
    const about = counted(page.about, lexicon);
    const section = counted(page.section, lexicon);
    const all = { heading: "", words: "", code: "" };
    for (const [anchor, heading, prose, code, isApi] of page.parts) {
      const fields = {
        heading: counted(heading, lexicon),
        title,
        about: counted("", lexicon), // that of its page counts for the page as a whole
        section,
        words: counted(prose, lexicon),
        code: counted(code, lexicon),
      };
      parts.push({ page, anchor, heading, prose, code, isApi, fields });
      all.heading += isApi ? "" : " " + heading;
      all.words += " " + prose;
      all.code += " " + code;
    }
    const fields = { title, about, section };
    for (const name of ["heading", "words", "code"]) fields[name] = counted(all[name], lexicon);
    pages.push({ page, fields });
  }
  return {
    lexicon,
    parts: { documents: parts, mean: averages(parts), known: frequencies(parts) },
    pages: { documents: pages, mean: averages(pages), known: frequencies(pages) },
  };
}

// --- the question --------------------------------------------------------------------------

// "What does X mean?", "what is a X": a definition is wanted, and `mean` is no word to look for
function asksWhat(text) {
  const patterns = [
    /^what(?:'s|’s| is| are| does| do)\s+(?:an?\s+|the\s+)?(.+?)(?:\s+means?|\s+stands? for)?$/,
    /^(?:meaning|definition) of\s+(?:an?\s+|the\s+)?(.+)$/,
  ];
  const asked = text.toLowerCase().replace(/[\s?]+$/, "").trim();
  return patterns.map(pattern => asked.match(pattern)?.[1]).find(Boolean);
}

function sectionWeight(section, text) {
  const wanted = section === "Results" && NUMBERS.test(text) ? NUMBERS_WEIGHT : 1;
  return wanted * (SECTIONS[section] || 1);
}

function synonyms(word) {
  const root = stem(word);
  return SYNONYMS[word] || SYNONYMS[root] || SYNONYMS[root + "e"] || [];
}

// Groups of stems with weights: each group is one word of the question and what may stand for it
function groups(prepared, text) {
  const subject = asksWhat(text);
  const asked = words(subject || text);
  const wanted = asked.filter(word => !STOP.has(word));
  const list = (wanted.length ? wanted : asked).map(word => {
    const group = new Map([[stem(word), 1]]);
    for (const other of synonyms(word)) {
      if (!group.has(stem(other))) group.set(stem(other), SYNONYM_WEIGHT);
    }
    return group;
  });
  const last = asked[asked.length - 1];
  if (last && last.length > 1 && /[\p{L}\p{N}]$/u.test(text) && !STOP.has(last)) {
    for (const [word, root] of prepared.lexicon) {
      const group = list[list.length - 1];
      if (word.startsWith(last) && !group.has(root)) group.set(root, PREFIX_WEIGHT);
    }
  }
  return { list, isDefinition: Boolean(subject) };
}

function rarity(collection, root) {
  const count = collection.known.get(root) || 0;
  return Math.log(1 + (collection.documents.length - count + 0.5) / (count + 0.5));
}

function frequency(item, collection, root) {
  let sum = 0;
  for (const [name, { weight, length }] of Object.entries(FIELDS)) {
    const field = item.fields[name];
    const count = field.counts.get(root);
    const relative = 1 - length + (length * field.length) / collection.mean[name];
    if (count) sum += (weight * count) / relative;
  }
  return sum;
}

// BM25 over the fields, times the share of the question that was found at all
function score(item, collection, question) {
  let sum = 0;
  let found = 0;
  let wanted = 0;
  for (const group of question) {
    let best = 0;
    let worth = 0;
    for (const [root, weight] of group) {
      const rare = rarity(collection, root);
      if (weight === 1) worth = rare;
      const often = frequency(item, collection, root);
      best = Math.max(best, (weight * rare * often) / (SATURATION + often));
    }
    sum += best;
    wanted += worth;
    if (best) found += worth;
  }
  return wanted ? sum * (found / wanted) ** 1.5 : sum;
}

// Whether a heading says what was asked for, and nothing else
function sameWords(heading, question) {
  const roots = new Set(words(heading).filter(word => !STOP.has(word)).map(stem));
  const isThere = group => [...group].some(([root, weight]) => weight === 1 && roots.has(root));
  return roots.size <= question.length && question.every(isThere);
}

// --- the answer ----------------------------------------------------------------------------

// [{page, anchor, heading, text, others}], the best first; `others`: more parts of the same page
function search(prepared, text) {
  const { list: question, isDefinition } = groups(prepared, text);
  if (!question.length) return [];
  const byPage = new Map();
  for (const part of prepared.parts.documents) {
    let value = score(part, prepared.parts, question);
    if (!value) continue;
    if (ASIDE.test(part.heading)) value *= ASIDE_WEIGHT;
    if (sameWords(part.heading, question)) value *= isDefinition && !part.isApi ? 2.5 : 1.6;
    if (isDefinition && part.page.title === "Glossary") value *= 1.5;
    if (!byPage.has(part.page)) byPage.set(part.page, []);
    byPage.get(part.page).push({ part, value });
  }
  const found = [];
  for (const item of prepared.pages.documents) {
    const parts = (byPage.get(item.page) || []).sort((a, b) => b.value - a.value);
    if (!parts.length) continue;
    const value = parts[0].value + PAGE_SHARE * score(item, prepared.pages, question);
    found.push({ value: value * sectionWeight(item.page.section, text), page: item.page, parts });
  }
  found.sort((a, b) => b.value - a.value);
  return found.map(({ page, parts, value }) => ({
    page,
    value,
    ...parts[0].part,
    others: parts
      .slice(1, 4)
      .filter(other => other.value > parts[0].value / 2)
      .map(other => other.part),
    roots: new Set(question.flatMap(group => [...group.keys()])),
  }));
}

// The passage of `text` with most of the words that were asked for: [[text, is one of them], …]
function passage(text, roots, size = 170) {
  const pieces = [...text.matchAll(/[\p{L}\p{N}]+|[^\p{L}\p{N}]+/gu)].map(found => ({
    text: found[0],
    at: found.index,
    hit: roots.has(stem(found[0].toLowerCase())),
  }));
  const hits = pieces.filter(piece => piece.hit);
  let start = 0;
  let most = 0;
  for (const hit of hits.slice(0, 200)) {
    const within = new Set(
      hits
        .filter(other => other.at >= hit.at && other.at < hit.at + size - 40)
        .map(other => stem(other.text.toLowerCase())),
    ).size;
    if (within > most) {
      most = within;
      start = hit.at < 90 ? 0 : hit.at - 40;
    }
  }
  const shown = pieces.filter(piece => piece.at >= start && piece.at < start + size);
  return [[start ? "…" : "", false], ...shown.map(piece => [piece.text, piece.hit])];
}

if (typeof module !== "undefined") module.exports = { prepare, search, passage, stem, words };
