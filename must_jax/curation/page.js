// The page of `must-jax inspect --out`. PAGE, from index.js, is what is known of
// all images; the labels of an image come in a script of their own, which calls
// `addDrawings`, when the image is shown.
"use strict";

const PER_PAGE = 48;
const CACHED = 300;  // images whose labels stay in memory
const BINS = 50;
const LEAST_CHIP = 0.1;  // probability of a class that is named on a picture
const DECISIONS = ["accept", "reject", "correct"];
const IN_WORDS = {accept: "accepted", reject: "rejected", correct: "to correct"};
// Dark violet (far) over orange to pale yellow (near), as must_jax.pictures.
const NEARNESS = [
  [13, 8, 65], [122, 30, 125], [222, 85, 75], [253, 174, 50], [252, 253, 191]];
const DASHES = [[], [4, 2.5], [1, 2], [6, 2, 1, 2]];  // of boxes, by layer

const element = (id) => document.getElementById(id);

/** An element with attributes, listeners ("onclick") and children. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

const number = (n) => n.toLocaleString("en");
const percent = (part, whole) =>
  whole ? `${(100 * part / whole).toFixed(part && part < whole / 100 ? 2 : 1)}%` : "–";
const rgb = (color, alpha = 1) => `rgb(${color.join(" ")} / ${alpha})`;
/** Black or white, whichever can be read on a colour. */
const inkOn = ([r, g, b]) => 0.299 * r + 0.587 * g + 0.114 * b > 128 ? "#000" : "#fff";

// --- Labels of single images ---------------------------------------------------

const drawings = new Map();  // id -> what is drawn, by layer
const arrivals = new Map();  // id -> who waits for it
const pictures = new Map();  // id -> data URL, where all is in one file
const pixels = new Map();    // "id/layer" -> the pixels of a map

function addDrawings(id, layers, picture) {
  drawings.set(id, layers);
  if (picture) pictures.set(id, picture);
  arrivals.get(id)?.resolve();
  arrivals.delete(id);
}

/** Loads an image's labels, and the pixels of its maps. */
async function load(id) {
  if (!drawings.has(id)) {
    if (!arrivals.has(id)) {
      const arrival = Promise.withResolvers?.() ?? resolvers();
      arrivals.set(id, arrival);
      const script = make("script", {src: fileOf(id, "js")});
      script.onerror = () => {
        arrivals.delete(id);
        arrival.reject(new Error(`${script.src} is missing`));
      };
      script.onload = () => script.remove();
      document.head.append(script);
    }
    await arrivals.get(id).promise;
    forget();
  }
  await Promise.all(drawings.get(id).map(async (drawing, i) => {
    const name = `${id}/${i}`;
    if (drawing?.png && !pixels.has(name)) pixels.set(name, await decode(drawing));
  }));
}

function resolvers() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, {resolve, reject}));
  return made;
}

/** Drops the oldest labels; what is in one file cannot come again. */
function forget() {
  const shown = new Set([...cards.keys()].map((n) => PAGE.images[n].id));
  for (const id of drawings.keys()) {
    if (drawings.size <= CACHED || pictures.size) return;
    if (shown.has(id)) continue;
    drawings.delete(id);
    PAGE.layers.forEach((_, i) => pixels.delete(`${id}/${i}`));
  }
}

async function decode({png, width, height}) {
  const image = new Image();
  image.src = png;
  await image.decode();
  const canvas = make("canvas", {width, height});
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, width, height).data;
}

const fileOf = (id, kind) => `${PAGE.files}/${String(id).padStart(6, "0")}.${kind}`;
const pictureOf = (id) => pictures.get(id) ?? fileOf(id, "jpg");

// --- What is shown -------------------------------------------------------------

const state = {
  shown: new Set(),        // numbers of layers
  hidden: [],              // by layer: ids of classes that are not drawn
  thresholds: {},          // field -> {all, by: Map of class name -> threshold}
  opacity: 0.55,
  blank: false,            // whether all labels are hidden
  decisions: new Map(),    // key -> {decision, note}
  undo: [],                // of each step [key, what it was] of what it changed
  seed: 1,                 // of the random order
  place: 0,                // of the current image in `order`
};
let tables = [];           // by layer: the threshold of each class
let profiles = [];         // by layer and class: sorted scores, with their numbers
let order = [];            // indices into PAGE.images that pass, sorted

/** A field; with its set where several have such a field. */
const layerName = (i) => {
  const {set, field} = PAGE.layers[i];
  if (PAGE.sets[set].is_truth) return `${field} (truth)`;
  const same = PAGE.layers.filter((l) => l.field === field && !PAGE.sets[l.set].is_truth);
  return same.length > 1 ? `${PAGE.sets[set].name} · ${field}` : field;
};
const isChecked = (row, layer) => row.statuses?.[layer.set] === "corrected";
const scoreOf = (row, i, n) => row.elements[i].scores?.[n] ?? 1;

/** Whether an element of a label is read: compared as 32 bits, as tasks do. */
function isKept(row, i, k, score) {
  const layer = PAGE.layers[i];
  return layer.min_score == null || isChecked(row, layer) ||
    Math.fround(score) >= tables[i][k];
}

function thresholdOf(field, name) {
  const found = state.thresholds[field];
  return found.by.get(name) ?? found.all;
}

function makeTables() {
  tables = PAGE.layers.map((layer) => Float32Array.from(
    layer.classes,
    (name) => layer.min_score == null ? 0 : thresholdOf(layer.field, name)));
}

/** By layer and class: scores in rising order, and how much has at least each. */
function makeProfiles() {
  profiles = PAGE.layers.map((layer, i) => {
    const found = layer.classes.map(() => []);
    for (const [k, counts] of Object.entries(layer.histograms)) found[k] = counts;
    if (!Object.keys(layer.histograms).length) {
      for (const row of PAGE.images) {
        row.elements[i]?.classes?.forEach((k, n) => {
          const score = isChecked(row, layer) ? 1 : scoreOf(row, i, n);
          found[k].push([score, 1]);
        });
      }
    }
    return found.map((counts) => {
      counts = counts.map(([score, n]) => [Math.fround(score), n]);
      counts.sort((a, b) => a[0] - b[0]);
      const above = new Float64Array(counts.length + 1);
      for (let n = counts.length - 1; n >= 0; n--) above[n] = above[n + 1] + counts[n][1];
      const bins = new Float64Array(BINS);
      for (const [score, n] of counts) bins[Math.min(BINS - 1, Math.floor(score * BINS))] += n;
      return {scores: Float32Array.from(counts, (c) => c[0]), above, bins};
    });
  });
}

/** How much of a class has a score of at least a threshold. */
function countAbove({scores, above}, threshold) {
  let low = 0, high = scores.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (scores[middle] < threshold) low = middle + 1;
    else high = middle;
  }
  return above[low];
}

/** By class of a layer: what is stored, left, and in how many images. */
function countClasses(i) {
  const images = new Int32Array(PAGE.layers[i].classes.length);
  for (const row of PAGE.images) {
    const classes = row.elements[i]?.classes ?? [];
    const found = new Set();
    classes.forEach((k, n) => { if (isKept(row, i, k, scoreOf(row, i, n))) found.add(k); });
    for (const k of found) images[k]++;
  }
  return profiles[i].map((profile, k) => ({
    stored: profile.above[0], left: countAbove(profile, tables[i][k]), images: images[k]}));
}

// --- Order -----------------------------------------------------------------------

const longer = (row) => Math.max(...row.size);
/** A number from 0 to 1 that looks random, of an image and a seed (mulberry32). */
function shuffled(id) {
  let t = Math.imul(id + 1, 0x9e3779b1) + Math.imul(state.seed, 0x6d2b79f5) | 0;
  t = Math.imul(t ^ t >>> 15, t | 1);
  t ^= t + Math.imul(t ^ t >>> 7, t | 61);
  return ((t ^ t >>> 14) >>> 0) / 2 ** 32;
}

/** The mean score of what is left of a label; null where nothing is. */
function confidence(row, i) {
  if (Object.keys(PAGE.layers[i].histograms).length) {
    const unsure = row.uncertainty[i];
    return unsure == null ? null : 1 - unsure;
  }
  const found = row.elements[i];
  if (!found?.scores) return null;
  const kept = found.scores.filter((s, n) => isKept(row, i, found.classes[n], s));
  return kept.length ? kept.reduce((a, b) => a + b) / kept.length : null;
}

/** Ways to sort: by rising values, null last. */
function sorts() {
  const found = {"": {
    worst: ["likely wrong first", (row) => -row.suspicion],
    random: ["at random", (row) => shuffled(row.id)],
    record: ["order of the records", (row) => row.id],
    large: ["largest image first", (row) => -longer(row)],
    small: ["smallest image first", (row) => longer(row)],
  }};
  const add = (group, id, name, value) => { (found[group] ??= {})[id] = [name, value]; };
  PAGE.pairs.forEach((pair, p) => add(
    "Least agreement first", `pair${p}`, pairName(p), (row) => row.agreement[p]));
  PAGE.layers.forEach((layer, i) => {
    if (!PAGE.images.some((row) => row.uncertainty[i] != null)) return;
    const negative = (value) => value == null ? null : -value;
    add("Least sure first", `unsure${i}`, layerName(i), (row) => negative(row.uncertainty[i]));
    add("Lowest confidence first", `low${i}`, layerName(i), (row) => confidence(row, i));
    add("Highest confidence first", `high${i}`, layerName(i),
      (row) => negative(confidence(row, i)));
  });
  return found;
}

const pairName = (p) => PAGE.pairs[p].layers.map(layerName).join(" and ");

/** What the filters let pass. */
function passes() {
  const value = (id) => element(id).value;
  const [i, k] = value("class") ? value("class").split(":").map(Number) : [null, null];
  const low = Number(value("low")), high = Number(value("high"));
  const byScore = i != null || low > 0 || high < 1;
  const pair = Number(value("pair") || 0), most = Number(value("agreement"));
  const small = Number(value("small") || 0), large = Number(value("large") || Infinity);
  const decision = value("decision"), text = value("search").toLowerCase();
  const layers = i == null ? [...state.shown] : [i];
  const hasElement = (row) => layers.some((of) => row.elements[of]?.classes?.some((c, n) => {
    const score = scoreOf(row, of, n);
    return (k == null || c === k) && score >= low && score <= high && isKept(row, of, c, score);
  }));
  return (row) =>
    (!byScore || hasElement(row)) &&
    (most >= 1 || (row.agreement[pair] != null && row.agreement[pair] <= most)) &&
    longer(row) >= small && longer(row) <= large &&
    (!decision || (state.decisions.get(row.key)?.decision ?? "none") === decision) &&
    (!text || row.key.toLowerCase().includes(text));
}

function sortAndFilter() {
  const chosen = Object.assign({}, ...Object.values(sorts()))[element("sort").value];
  const pass = passes();
  const found = [];
  PAGE.images.forEach((row, n) => { if (pass(row)) found.push([chosen[1](row), n]); });
  const rank = (value) => value ?? Infinity;
  found.sort((a, b) => rank(a[0]) - rank(b[0]) || a[1] - b[1]);
  order = found.map(([, n]) => n);
  state.place = Math.max(0, Math.min(state.place, order.length - 1));
}

// --- Drawing: one function for each form that labels have -------------------------

/**
 * Each paints a label and returns how many elements it has painted.
 * of: {row, i (layer), layer, drawing, context, width, height, texts, chips}
 */
const FORMS = {
  values(of) {
    const ramp = rampColors();
    return paintMap(of, (data, n) => data[n] ? ramp[data[n]] : null);
  },

  colors(of) {
    return paintMap(of, (data, n) =>
      data[n] || data[n + 1] || data[n + 2] ? [data[n], data[n + 1], data[n + 2]] : null);
  },

  codes(of) {
    const {layer, row, i} = of, hidden = state.hidden[i];
    const checked = isChecked(row, layer);
    // The least code that is kept, of each class.
    const codes = layer.classes.map((_, k) => {
      let code = 0;
      while (code < 256 && !checked && Math.fround(code / 255) < tables[i][k]) code++;
      return hidden.has(k) ? 256 : code;
    });
    return paintMap(of, (data, n) => {
      const k = data[n];
      return k < codes.length && data[n + 1] >= codes[k] ? layer.colors[k] : null;
    });
  },

  shapes(of) {
    const {layer, row, i, drawing, context, width, height, texts} = of;
    const found = row.elements[i];
    const drawn = found.classes.map((k, n) => ({k, n, score: scoreOf(row, i, n)}))
      .filter(({k, score}) => isKept(row, i, k, score) && !state.hidden[i].has(k))
      .sort((a, b) => a.score - b.score);
    const others = PAGE.layers.slice(0, i).filter(({form}) => form === layer.form);
    const dashes = DASHES[others.length % DASHES.length];
    const line = Math.max(1.5, Math.min(width, height) / 170);
    const ignored = new Set(drawing.ignored);
    for (const {k, n, score} of drawn) {
      const [top, left, bottom, right] = drawing.boxes[n];
      const box = [left * width, top * height, (right - left) * width, (bottom - top) * height];
      context.setLineDash([]);
      context.lineWidth = line + 2;
      context.strokeStyle = "rgb(0 0 0 / 45%)";
      context.strokeRect(...box);
      context.lineWidth = line;
      context.strokeStyle = rgb(layer.colors[k], ignored.has(n) ? 0.5 : 1);
      context.setLineDash(dashes.map((length) => length * line));
      context.strokeRect(...box);
      context.setLineDash([]);
      if (texts) {
        const text = layer.classes[k] + (found.scores ? ` ${score.toFixed(2)}` : "");
        writeAt(context, text, box[0], box[1], layer.colors[k], width, texts);
      }
    }
    return drawn.length;
  },

  chips({layer, row, i, drawing, chips}) {
    drawing.classes.forEach((k, n) => {
      const score = drawing.scores?.[n];
      if (state.hidden[i].has(k) || (n && score < LEAST_CHIP)) return;
      chips.append(chip(layer.classes[k], layer.colors[k], score?.toFixed(2)));
    });
    return row.elements[i].classes.filter((k) => !state.hidden[i].has(k)).length;
  },

  text({drawing, chips}) {
    chips.append(chip(drawing.text));
    return 1;
  },
};

function rampColors() {
  return Array.from({length: 256}, (_, code) => {
    const place = (code - 1) / 254 * (NEARNESS.length - 1);
    const low = Math.max(0, Math.min(NEARNESS.length - 2, Math.floor(place)));
    return NEARNESS[low].map((c, n) => c + (place - low) * (NEARNESS[low + 1][n] - c));
  });
}

/** Paints `color(data, n)` of each pixel; null leaves the image to be seen. */
function paintMap({row, i, drawing, context, width, height}, color) {
  const data = pixels.get(`${row.id}/${i}`);
  if (!data) return 0;
  const canvas = make("canvas", {width: drawing.width, height: drawing.height});
  const target = canvas.getContext("2d");
  const picture = target.createImageData(drawing.width, drawing.height);
  let count = 0;
  for (let n = 0; n < data.length; n += 4) {
    const painted = color(data, n);
    if (!painted) continue;
    picture.data[n] = painted[0];
    picture.data[n + 1] = painted[1];
    picture.data[n + 2] = painted[2];
    picture.data[n + 3] = 255;
    count++;
  }
  target.putImageData(picture, 0, 0);
  context.globalAlpha = state.opacity;
  context.imageSmoothingEnabled = false;
  context.drawImage(canvas, 0, 0, width, height);
  context.globalAlpha = 1;
  return count;
}

function writeAt(context, text, x, y, color, width, size) {
  context.font = `600 ${size}px system-ui, sans-serif`;
  const room = context.measureText(text).width + size * 0.7, high = size * 1.45;
  const left = Math.max(0, Math.min(x, width - room)), top = y - high >= 0 ? y - high : y;
  context.fillStyle = rgb(color);
  context.fillRect(left, top, room, high);
  context.fillStyle = inkOn(color);
  context.textBaseline = "middle";
  context.fillText(text, left + size * 0.35, top + high / 2);
}

const chip = (text, color, score) => make("span", {className: "chip"},
  color ? make("i", {style: `background:${rgb(color)}`}) : null,
  text, score ? make("span", {style: "opacity:.7"}, score) : null);

/** Draws all layers that are shown; returns {layer: elements that were drawn}. */
function paint(row, canvas, chips, texts) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  chips.replaceChildren();
  for (const [set, status] of Object.entries(row.statuses ?? {})) {
    const name = PAGE.sets.length > 1 ? `${PAGE.sets[set].name}: ` : "";
    chips.append(make("span", {className: "chip status"}, name + status));
  }
  for (const problem of row.problems ?? []) {
    chips.append(make("span", {className: "chip status"}, problem));
  }
  const layers = drawings.get(row.id);
  const drawn = {};
  if (!layers || state.blank) return drawn;
  const forms = Object.keys(FORMS);  // maps lie below the rest
  const shown = [...state.shown].sort((a, b) =>
    forms.indexOf(PAGE.layers[a].form) - forms.indexOf(PAGE.layers[b].form) || a - b);
  for (const i of shown) {
    if (!layers[i]) continue;
    const layer = PAGE.layers[i];
    drawn[i] = FORMS[layer.form]({
      row, i, layer, drawing: layers[i], context, chips, texts,
      width: canvas.width, height: canvas.height});
  }
  return drawn;
}

// --- The grid ----------------------------------------------------------------------

let cards = new Map();  // index into PAGE.images -> its card

const pageOf = (place) => Math.floor(place / PER_PAGE);
const onPage = () => {
  const start = pageOf(state.place) * PER_PAGE;
  return order.slice(start, start + PER_PAGE);
};

function showPage() {
  const wanted = onPage();
  const before = cards;
  cards = new Map(wanted.map((n) => [n, before.get(n) ?? makeCard(n)]));
  element("grid").replaceChildren(...cards.values());
  element("nothing").hidden = order.length > 0;
  element("found").replaceChildren(
    make("b", {}, number(order.length)), ` of ${number(PAGE.images.length)} images`);
  const pages = Math.max(1, Math.ceil(order.length / PER_PAGE));
  element("place").textContent = `${pageOf(state.place) + 1} / ${pages}`;
  element("previous").disabled = state.place < PER_PAGE;
  element("next").disabled = pageOf(state.place) + 1 >= pages;
  markCurrent();
  document.body.dataset.ready = "";
  return Promise.allSettled(wanted.map(async (n) => {
    const row = PAGE.images[n], card = cards.get(n);
    try {
      await load(row.id);
    } catch (error) {
      card.querySelector(".chips").replaceChildren(
        make("span", {className: "chip status"}, error.message));
      return;
    }
    if (cards.get(n) === card) drawCard(n);
  })).then(() => {
    if (wanted.every((n) => cards.has(n))) document.body.dataset.ready = "yes";
  });
}

function makeCard(n) {
  const row = PAGE.images[n];
  const [height, width] = row.size, ratio = width / height;
  const fit = ratio > 4 / 3 ? "width:100%" : "height:100%";
  const facts = row.agreement.filter((a) => a != null);
  const note = facts.length
    ? `${(100 * facts.reduce((a, b) => a + b) / facts.length).toFixed(0)} % agree` : "";
  return make("article", {
    className: "card", tabIndex: -1, role: "listitem", ariaLabel: row.key,
    onclick: () => { setPlace(order.indexOf(n)); openLarge(); },
  },
  make("div", {className: "frame"},
    make("div", {className: "picture", style: `aspect-ratio:${width}/${height};${fit}`},
      make("img", {src: pictureOf(row.id), loading: "lazy", alt: row.key, decoding: "async"}),
      make("canvas", {ariaHidden: "true"}))),
  make("div", {className: "about"},
    make("div", {className: "key"},
      make("span", {title: row.key}, row.key), make("span", {}, note)),
    make("div", {className: "chips"})));
}

function drawCard(n) {
  const card = cards.get(n), row = PAGE.images[n];
  if (!drawings.has(row.id)) return;
  const picture = card.querySelector(".picture"), canvas = card.querySelector("canvas");
  const scale = window.devicePixelRatio || 1;
  const {width, height} = picture.getBoundingClientRect();
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const texts = width >= 300 ? 11 * scale : 0;
  const drawn = paint(row, canvas, card.querySelector(".chips"), texts);
  card.dataset.drawn = JSON.stringify(drawn);
  stamp(n);
}

function stamp(n) {
  const card = cards.get(n);
  if (!card) return;
  const decision = state.decisions.get(PAGE.images[n].key)?.decision;
  card.querySelector(".stamp")?.remove();
  card.classList.toggle("reject", decision === "reject");
  if (decision) {
    card.append(make("span", {className: `stamp ${decision}`}, IN_WORDS[decision]));
  }
}

function markCurrent() {
  for (const [n, card] of cards) {
    const is = n === order[state.place];
    card.classList.toggle("current", is);
    card.tabIndex = is ? 0 : -1;
  }
}

/** Goes to an image, if there is one, and to its page. */
function setPlace(place) {
  if (place < 0 || place >= order.length) return;
  const before = pageOf(state.place);
  state.place = place;
  if (pageOf(place) !== before) {
    showPage();
    window.scrollTo({top: 0});
  } else {
    markCurrent();
  }
  const card = cards.get(order[place]);
  if (element("large-view").open) openLarge();
  else {
    card.focus({preventScroll: true});
    card.scrollIntoView({block: "nearest"});
  }
}

// --- The enlarged image ---------------------------------------------------------------

async function openLarge() {
  const n = order[state.place];
  if (n == null) return;
  const row = PAGE.images[n], dialog = element("large-view");
  if (!dialog.open) {
    dialog.showModal();
    dialog.focus();
  }
  element("large-key").textContent = row.key;
  const facts = [];
  row.agreement.forEach((a, p) => {
    if (a != null) facts.push([`agreement, ${pairName(p)}`, a]);
  });
  for (const [i, u] of Object.entries(row.uncertainty)) {
    facts.push([`uncertainty, ${layerName(i)}`, u]);
  }
  element("large-facts").replaceChildren(
    make("p", {}, `${row.size[1]} × ${row.size[0]} pixels`),
    make("table", {}, ...facts.map(([name, value]) => make("tr", {},
      make("td", {}, name), make("td", {}, value.toFixed(2))))));
  showChoice();
  const image = new Image();
  image.src = pictureOf(row.id);
  await Promise.allSettled([load(row.id), image.decode()]);
  if (order[state.place] === n && dialog.open) drawLarge(row, image);
}

let large = null;  // what is enlarged: {row, image}

function drawLarge(row, image) {
  large = {row, image};
  const canvas = element("large-canvas"), stage = canvas.parentElement;
  const scale = window.devicePixelRatio || 1;
  const ratio = row.size[1] / row.size[0];
  const width = Math.min(stage.clientWidth, stage.clientHeight * ratio);
  canvas.style.width = `${width}px`;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(width / ratio * scale);
  const labels = make("canvas", {width: canvas.width, height: canvas.height});
  const chips = make("div", {className: "chips"});
  const drawn = paint(row, labels, chips, 13 * scale);
  const context = canvas.getContext("2d");
  if (image.naturalWidth) context.drawImage(image, 0, 0, canvas.width, canvas.height);
  context.drawImage(labels, 0, 0);
  canvas.dataset.drawn = JSON.stringify(drawn);
  element("large-list").replaceChildren(chips, ...[...state.shown].map((i) => listOf(row, i)));
}

/** What a layer says of an image, in words. */
function listOf(row, i) {
  const layer = PAGE.layers[i], drawing = drawings.get(row.id)?.[i];
  const found = row.elements[i];
  const part = make("div", {}, make("h3", {}, layerName(i)));
  if (!drawing) return part.append("no label"), part;
  if (drawing.range?.length) {
    const [far, near] = drawing.range;
    const unit = drawing.unit && drawing.unit !== "inverse" ? ` ${drawing.unit}` : "";
    const ramp = `linear-gradient(90deg, ${NEARNESS.map((c) => rgb(c)).join(",")})`;
    part.append(make("div", {className: "scale"}, `far ${far}${unit}`,
      make("span", {className: "ramp", style: `background:${ramp}`}), `near ${near}${unit}`));
  }
  if (!found?.classes) return part;
  const rows = found.classes.map((k, n) => ({k, score: found.scores?.[n]}))
    .sort((a, b) => (b.score ?? 1) - (a.score ?? 1));
  part.append(make("table", {}, ...rows.map(({k, score}) => make("tr",
    {className: isKept(row, i, k, score ?? 1) ? "" : "below"},
    make("td", {}, make("i", {style: `background:${rgb(layer.colors[k])}`}), layer.classes[k]),
    make("td", {}, score?.toFixed(3) ?? "")))));
  return part;
}

function showChoice() {
  const found = state.decisions.get(PAGE.images[order[state.place]]?.key);
  for (const button of element("choices").children) {
    button.ariaPressed = String(button.dataset.decision === found?.decision);
  }
  const note = element("note");
  note.value = found?.note ?? "";
  note.disabled = !found;
}

// --- Layers, thresholds, counts ----------------------------------------------------------

const panels = [];  // by layer: what has to be updated

function makeLayers() {
  element("layers").replaceChildren(...PAGE.layers.map((layer, i) => {
    const set = PAGE.sets[layer.set];
    const box = make("input", {
      type: "checkbox", checked: state.shown.has(i), id: `layer${i}`,
      onchange: () => { setLayer(i, box.checked); }});
    const body = make("div", {className: "body", hidden: !state.shown.has(i)});
    const fold = make("button", {
      type: "button", className: "fold", ariaLabel: `Details of ${layer.field}`,
      ariaExpanded: String(!body.hidden),
      onclick: () => {
        body.hidden = !body.hidden;
        fold.textContent = body.hidden ? "▸" : "▾";
        fold.ariaExpanded = String(!body.hidden);
        updateLayer(i);
      }}, body.hidden ? "▸" : "▾");
    const panel = {box, body, rows: []};
    panels[i] = panel;
    if (layer.min_score != null) {
      panel.slider = slider(layer.field, null, `Threshold of ${layer.field}`);
      panel.histogram = make("canvas", {ariaHidden: "true"});
      panel.output = make("output", {});
      body.append(make("div", {className: "threshold"},
        panel.histogram, panel.slider, panel.output));
    }
    panel.left = make("p", {className: "left"});
    body.append(panel.left);
    if (layer.classes.length) body.append(classTable(layer, i, panel));
    return make("div", {className: "layer"},
      make("div", {className: "head"},
        make("label", {}, box, make("span", {className: "names"},
          layer.field, make("small", {}, set.name + (set.is_truth ? " (truth)" : "")))),
        i < 9 ? make("kbd", {}, String(i + 1)) : null, fold),
      body);
  }));
}

function slider(field, name, label) {
  const input = make("input", {
    type: "range", min: "0", max: "1", step: "0.01", ariaLabel: label,
    oninput: () => setThreshold(field, name, Number(input.value))});
  return input;
}

function classTable(layer, i, panel) {
  const counts = countClasses(i);
  const ids = layer.classes.map((_, k) => k)
    .sort((a, b) => counts[b].stored - counts[a].stored || a - b);
  const hasSlider = layer.min_score != null;
  return make("table", {className: "classes"},
    make("thead", {}, make("tr", {},
      make("th", {scope: "col"}, "class"),
      make("th", {scope: "col", title: layer.element}, hasSlider ? "left" : "stored"),
      make("th", {scope: "col", title: "images that have some left"}, "images"),
      hasSlider ? make("th", {scope: "col"}, "threshold") : null)),
    make("tbody", {}, ...ids.map((k) => {
      const name = layer.classes[k];
      const part = {k, left: make("td", {}), images: make("td", {})};
      const box = make("input", {
        type: "checkbox", checked: true,
        onchange: () => {
          state.hidden[i][box.checked ? "delete" : "add"](k);
          schedule();
        }});
      if (hasSlider) {
        part.slider = slider(layer.field, name, `Threshold of ${name}`);
        part.histogram = make("canvas", {ariaHidden: "true"});
      }
      part.row = make("tr", {},
        make("td", {}, make("label", {title: name}, box,
          make("i", {className: "swatch", style: `background:${rgb(layer.colors[k])}`}),
          make("span", {}, name))),
        part.left, part.images,
        hasSlider ? make("td", {className: "own"}, part.histogram, part.slider) : null);
      panel.rows.push(part);
      return part.row;
    })));
}

function setLayer(i, shown) {
  state.shown[shown ? "add" : "delete"](i);
  panels[i].box.checked = shown;
  schedule({order: element("low").value > 0 || element("high").value < 1});
}

/** Sets the threshold of a field, or of one of its classes. */
function setThreshold(field, name, value) {
  const found = state.thresholds[field];
  if (name == null) {
    found.all = value;
    found.by.clear();
  } else {
    found.by.set(name, value);
  }
  makeTables();
  const sort = element("sort").value;
  schedule({
    counts: true, save: true,
    order: element("class").value !== "" || element("low").value > 0 ||
      element("high").value < 1 || sort.startsWith("low") || sort.startsWith("high")});
}

/** Shows thresholds, counts and histograms of a layer. */
function updateLayer(i) {
  const layer = PAGE.layers[i], panel = panels[i];
  if (panel.body.hidden) return;
  const counts = countClasses(i);
  const stored = counts.reduce((sum, c) => sum + c.stored, 0);
  const left = counts.reduce((sum, c) => sum + c.left, 0);
  const labelled = PAGE.images.filter((row) => row.elements[i]).length;
  panel.left.replaceChildren(...(!layer.classes.length
    ? [make("b", {}, number(labelled)), " images have it"]
    : layer.min_score == null
      ? [make("b", {}, number(stored)), ` ${layer.element} in ${number(labelled)} images`]
      : [make("b", {}, number(left)), ` of ${number(stored)} ${layer.element} left (`,
        make("b", {}, percent(left, stored)), ")"]));
  if (panel.slider) {
    const {all, by} = state.thresholds[layer.field];
    const values = [...tables[i]].sort((a, b) => a - b);
    panel.slider.value = all;
    panel.output.textContent = by.size && values[0] !== values.at(-1)
      ? "by class" : (by.size ? values[0] : all).toFixed(2);
    const bins = new Float64Array(BINS);
    for (const profile of profiles[i]) profile.bins.forEach((n, b) => { bins[b] += n; });
    drawHistogram(panel.histogram, bins, by.size ? null : all);
  }
  for (const {k, row, left, images, slider, histogram} of panel.rows) {
    const found = counts[k];
    left.textContent = slider ? percent(found.left, found.stored) : number(found.stored);
    left.title = `${number(found.left)} of ${number(found.stored)} ${layer.element}`;
    images.textContent = number(found.images);
    row.classList.toggle("none", !found.left);
    if (!slider) continue;
    const threshold = thresholdOf(layer.field, layer.classes[k]);
    slider.value = threshold;
    slider.title = threshold.toFixed(2);
    drawHistogram(histogram, profiles[i][k].bins, threshold);
  }
}

/** Bars of scores, those below the threshold pale; heights are square roots. */
function drawHistogram(canvas, bins, threshold) {
  const scale = window.devicePixelRatio || 1;
  const {clientWidth: width, clientHeight: height} = canvas;
  if (!width) return;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  const style = getComputedStyle(document.documentElement);
  const most = Math.max(...bins, 1), margin = height > 20 ? 7 : 5;
  const room = width - 2 * margin;  // half a thumb of the slider below
  bins.forEach((n, b) => {
    const high = n ? Math.max(1, Math.sqrt(n / most) * (height - 2)) : 0;
    const below = threshold != null && (b + 0.5) / BINS < threshold;
    context.fillStyle = style.getPropertyValue(below ? "--line" : "--accent");
    context.fillRect(margin + b * room / BINS, height - high, room / BINS + 0.3, high);
  });
  if (threshold == null) return;
  context.fillStyle = style.getPropertyValue("--ink");
  context.fillRect(margin + threshold * room - 0.75, 0, 1.5, height);
}

// --- Decisions -----------------------------------------------------------------------------

const STORE = () => `must_jax:${PAGE.digest}`;

function decide(decision) {
  const n = order[state.place];
  if (n == null) return;
  const {key} = PAGE.images[n], before = state.decisions.get(key);
  // The same again takes it back.
  const next = before?.decision === decision ? null : {decision, note: before?.note ?? ""};
  setDecision(key, next, before);
}

function setDecision(key, next, before) {
  state.undo.push([[key, before]]);
  apply(key, next);
}

function apply(key, decision) {
  if (decision) state.decisions.set(key, decision);
  else state.decisions.delete(key);
  const n = PAGE.images.findIndex((row) => row.key === key);
  stamp(n);
  showDecided();
  if (element("large-view").open) showChoice();
  save();
}

function undo() {
  const last = state.undo.pop();
  if (!last) return say("Nothing to undo");
  for (const change of last) apply(...change);
}

function showDecided() {
  const counts = Object.fromEntries(DECISIONS.map((d) => [d, 0]));
  for (const {decision} of state.decisions.values()) counts[decision]++;
  element("decided").replaceChildren(...DECISIONS.map((d) =>
    make("span", {className: d}, make("b", {}, number(counts[d])), ` ${IN_WORDS[d]}`)));
}

function save() {
  try {
    localStorage.setItem(STORE(), JSON.stringify({
      decisions: [...state.decisions],
      thresholds: Object.entries(state.thresholds).map(([f, {all, by}]) => [f, all, [...by]]),
    }));
  } catch (error) {
    say(`This browser does not keep decisions (${error.name}): export them`, true);
  }
}

function restore() {
  try {
    const found = JSON.parse(localStorage.getItem(STORE()) ?? "{}");
    state.decisions = new Map(found.decisions ?? []);
    for (const [field, all, by] of found.thresholds ?? []) {
      if (field in state.thresholds) state.thresholds[field] = {all, by: new Map(by)};
    }
  } catch { /* what cannot be read is nothing */ }
}

/** The selection as `must-jax labels` reads it. */
function selection() {
  const {name, split, num_records} = PAGE.image_set;
  const minScore = {};
  for (const layer of PAGE.layers) {
    if (layer.min_score == null || PAGE.sets[layer.set].is_truth) continue;
    const {all, by} = state.thresholds[layer.field];
    minScore[layer.field] = !by.size ? all : Object.assign(
      minScore[layer.field] ?? {},
      Object.fromEntries(layer.classes.map((k) => [k, thresholdOf(layer.field, k)])));
  }
  return {
    schema_version: 1,
    what: "must_jax selection",
    image_set: {name, split, num_records},
    label_sets: PAGE.sets.filter((set) => !set.is_truth)
      .map((set) => ({name: set.folder, teacher: set.teacher})),
    min_score: minScore,
    images: [...state.decisions].sort(([a], [b]) => a < b ? -1 : 1)
      .map(([key, {decision, note}]) => ({key, decision, note})),
  };
}

function exportSelection() {
  if (!state.decisions.size) return say("Nothing is decided yet: a, r or c on an image", true);
  const text = JSON.stringify(selection(), null, 1) + "\n";
  const link = make("a", {
    href: URL.createObjectURL(new Blob([text], {type: "application/json"})),
    download: `selection-${PAGE.image_set.name}-${PAGE.image_set.split}.json`});
  link.click();
  URL.revokeObjectURL(link.href);
  say(`${number(state.decisions.size)} decisions exported`);
}

/** Takes in a selection; decisions that are here already are replaced. */
function importSelection(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    return say("This file is no JSON; expected a selection that was exported here", true);
  }
  const own = selection();
  if (found?.what !== own.what || found.schema_version !== 1 || !Array.isArray(found.images)) {
    return say("This file is no selection; expected one that was exported here", true);
  }
  const set = found.image_set ?? {};
  if (["name", "split", "num_records"].some((k) => set[k] !== own.image_set[k])) {
    return say(`This selection is of ${set.name}-${set.split} with ${set.num_records} images,` +
      ` the page of ${own.image_set.name}-${own.image_set.split} with` +
      ` ${own.image_set.num_records}`, true);
  }
  const teachers = (sets) => (sets ?? []).map((s) => s.teacher).sort().join();
  if (teachers(found.label_sets) !== teachers(own.label_sets)) {
    return say("This selection is of other label sets of these images", true);
  }
  const wrong = found.images.find((i) => !DECISIONS.includes(i?.decision) ||
    typeof i.key !== "string");
  if (wrong) return say(`This selection has ${JSON.stringify(wrong)}`, true);
  const keys = new Set(PAGE.images.map((row) => row.key));
  const strange = found.images.find((i) => !keys.has(i.key));
  if (strange && keys.size === own.image_set.num_records) {
    return say(`This selection has ${strange.key}, which is no image here`, true);
  }
  state.undo.push(found.images.map(({key}) => [key, state.decisions.get(key)]));
  for (const {key, decision, note} of found.images) {
    state.decisions.set(key, {decision, note: note ?? ""});
  }
  for (const [field, given] of Object.entries(found.min_score ?? {})) {
    const here = state.thresholds[field];
    if (!here) continue;
    here.by.clear();
    if (typeof given === "number") here.all = given;
    else for (const [name, value] of Object.entries(given)) here.by.set(name, value);
  }
  makeTables();
  showDecided();
  save();
  schedule({order: true, counts: true});
  for (const n of cards.keys()) stamp(n);
  say(`${number(found.images.length)} decisions imported`);
}

let hush = 0;
function say(text, isError = false) {
  const toast = element("toast");
  toast.textContent = text;
  toast.className = isError ? "shown error" : "shown";
  toast.hidePopover?.();
  toast.showPopover?.();  // above a dialog, too
  clearTimeout(hush);
  hush = setTimeout(() => {
    toast.className = "";
    toast.hidePopover?.();
  }, isError ? 6000 : 2500);
}

// --- The page -------------------------------------------------------------------------------

let wanted = null;
/** Redraws, before the next frame; {order, counts, save}: what else is new. */
function schedule(what = {}) {
  if (!wanted) requestAnimationFrame(update);
  wanted = {...wanted, ...Object.fromEntries(Object.entries(what).filter(([, v]) => v))};
  document.body.dataset.ready = "";
}

function update() {
  const {order: reorder, counts, save: keep} = wanted;
  wanted = null;
  if (counts) PAGE.layers.forEach((_, i) => updateLayer(i));
  if (keep) save();
  let done = Promise.resolve();
  if (reorder) {
    sortAndFilter();
    done = showPage();
  }
  for (const n of cards.keys()) drawCard(n);
  if (element("large-view").open && large) drawLarge(large.row, large.image);
  if (!reorder) document.body.dataset.ready = "yes";
  return done;
}

function fillSelects() {
  const options = (of) => Object.entries(of).map(([id, [name]]) => make("option", {value: id}, name));
  element("sort").replaceChildren(...Object.entries(sorts()).flatMap(([group, of]) =>
    group ? [make("optgroup", {label: group}, ...options(of))] : options(of)));
  element("class").replaceChildren(
    make("option", {value: ""}, "any"),
    ...PAGE.layers.flatMap((layer, i) => {
      const found = layer.classes.map((name, k) => [name, k])
        .filter(([, k]) => profiles[i][k].above[0]);
      return found.length ? [make("optgroup", {label: layerName(i)},
        ...found.map(([name, k]) => make("option", {value: `${i}:${k}`}, name)))] : [];
    }));
  element("pair").replaceChildren(...PAGE.pairs.map((_, p) =>
    make("option", {value: p}, pairName(p))));
  element("pair-line").hidden = element("agreement-line").hidden = !PAGE.pairs.length;
}

function describeSets() {
  const alarms = PAGE.sets.flatMap((set) => set.alarms.map((text) =>
    make("p", {}, make("b", {}, `${set.name}: `), text)));
  element("alarms").hidden = !alarms.length;
  element("alarms").replaceChildren(make("h2", {}, "These labels look wrong"), ...alarms);
  element("sets").replaceChildren(...PAGE.sets.map((set, s) => make("div", {className: "set"},
    make("h3", {}, set.name + (set.is_truth ? " (truth)" : "")),
    set.teacher ? make("p", {}, `Teacher ${set.teacher}${set.task ? `, task ${set.task}` : ""}`) : null,
    ...set.lines.map((text) => make("p", {}, text)),
    Object.keys(set.quality ?? {}).length
      ? make("table", {}, ...Object.entries(set.quality).map(([name, value]) =>
        make("tr", {}, make("td", {}, name), make("td", {}, value.toFixed(3))))) : null,
    ...PAGE.pairs.map((pair, p) => [pair, p]).filter(([pair]) => pair.sets[1] === s)
      .map(([pair, p]) => agreementTable(pair, p)))));
}

function agreementTable(pair, p) {
  const rows = Object.entries(pair.classes).map(([name, [agreeing, of]]) => [name, agreeing / of, of])
    .filter(([, , of]) => of).sort((a, b) => a[1] - b[1]);
  return make("table", {},
    make("caption", {style: "text-align:left;padding-top:6px"}, `Agreement, ${pairName(p)}`),
    ...rows.map(([name, share]) => make("tr", {},
      make("td", {}, name || "all"), make("td", {}, percent(share, 1)))));
}

/** What is drawn at first: of each form the first layer, and all that are small. */
function chooseLayers() {
  const maps = new Set(["values", "colors", "codes"]);
  let hasMap = false;
  const names = new Set();
  PAGE.layers.forEach((layer, i) => {
    state.hidden[i] = new Set();
    if (PAGE.sets[layer.set].is_truth || names.has(layer.field)) return;
    names.add(layer.field);
    if (maps.has(layer.form) && hasMap) return;
    hasMap ||= maps.has(layer.form);
    state.shown.add(i);
  });
}

function chooseThresholds() {
  for (const layer of PAGE.layers) {
    if (layer.min_score == null || layer.field in state.thresholds) continue;
    const given = layer.min_score;
    state.thresholds[layer.field] = typeof given === "number"
      ? {all: given, by: new Map()}
      : {all: given[0] ?? 0.5, by: new Map(layer.classes.map((name, k) => [name, given[k]]))};
  }
}

function showAll() {
  for (const [id, value] of [["class", ""], ["low", 0], ["high", 1], ["agreement", 1],
    ["small", ""], ["large", ""], ["decision", ""], ["search", ""]]) element(id).value = value;
  state.place = 0;
  schedule({order: true});
}

function onKey(event) {
  const {target, key} = event;
  if (event.ctrlKey || event.metaKey || event.altKey) {
    if (key === "z" && !event.altKey && target.tagName !== "INPUT") {
      undo();
      event.preventDefault();
    }
    return;
  }
  const writes = target.matches("select, input:not([type=range]):not([type=checkbox])");
  if (writes) return;
  const arrows = !target.matches("input[type=range]");
  const isOpen = element("large-view").open;
  if (element("keys").open && key !== "?") return;
  const columns = isOpen ? 1 :
    getComputedStyle(element("grid")).gridTemplateColumns.split(" ").length;
  const go = (step) => () => setPlace(state.place + step);
  const actions = {
    a: () => decide("accept"), r: () => decide("reject"), c: () => decide("correct"),
    j: go(1), k: go(-1), u: undo,
    n: () => setPlace(Math.min(order.length - 1, (pageOf(state.place) + 1) * PER_PAGE)),
    p: () => setPlace(Math.max(0, (pageOf(state.place) - 1) * PER_PAGE)),
    l: () => { state.blank = !state.blank; schedule(); },
    "?": () => element("keys").open ? element("keys").close() : element("keys").showModal(),
  };
  if (arrows) {
    Object.assign(actions, {
      ArrowRight: go(1), ArrowLeft: go(-1), ArrowDown: go(columns), ArrowUp: go(-columns)});
  }
  if (!target.matches("button, a")) {
    actions.Enter = () => isOpen ? element("large-view").close() : openLarge();
  }
  const layer = /^[1-9]$/.test(key) ? Number(key) - 1 : -1;
  if (layer in PAGE.layers) actions[key] = () => setLayer(layer, !state.shown.has(layer));
  if (!actions[key]) return;
  event.preventDefault();
  actions[key]();
}

function listen() {
  for (const id of ["sort", "class", "low", "high", "pair", "agreement", "small", "large",
    "decision", "search"]) {
    element(id).addEventListener("input", () => {
      if (id === "sort") state.seed++;
      state.place = 0;
      schedule({order: true});
    });
  }
  element("reset").onclick = element("reset-too").onclick = showAll;
  element("previous").onclick = () => setPlace((pageOf(state.place) - 1) * PER_PAGE);
  element("next").onclick = () => setPlace((pageOf(state.place) + 1) * PER_PAGE);
  element("opacity").oninput = (event) => {
    state.opacity = Number(event.target.value);
    schedule();
  };
  element("zoom").oninput = (event) => {
    element("grid").style.setProperty("--cell", `${event.target.value}px`);
    schedule();
  };
  element("export").onclick = exportSelection;
  element("import").onclick = () => element("file").click();
  element("file").onchange = async (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) importSelection(await file.text());
  };
  element("help").onclick = () => element("keys").showModal();
  element("close").onclick = () => element("large-view").close();
  element("large-view").onclose = () => cards.get(order[state.place])?.focus();
  for (const button of element("choices").children) {
    button.onclick = () => decide(button.dataset.decision);
  }
  element("note").onchange = (event) => {
    const {key} = PAGE.images[order[state.place]], before = state.decisions.get(key);
    if (before) setDecision(key, {...before, note: event.target.value}, before);
  };
  document.addEventListener("keydown", onKey);
  window.addEventListener("resize", () => schedule({counts: true}));
  matchMedia("(prefers-color-scheme: dark)").addEventListener(
    "change", () => schedule({counts: true}));
}

function start() {
  const {name, split, num_records} = PAGE.image_set;
  document.title = `Labels of ${name}-${split}`;
  element("title").textContent = document.title;
  const part = PAGE.images.length < num_records
    ? `${number(PAGE.images.length)} of ${number(num_records)} images, chosen at random`
    : `${number(num_records)} images`;
  element("subtitle").textContent = [part,
    ...PAGE.sets.map((set) => set.name)].join("  ·  ");
  chooseLayers();
  chooseThresholds();
  restore();
  makeTables();
  makeProfiles();
  fillSelects();
  makeLayers();
  describeSets();
  showDecided();
  listen();
  schedule({order: true, counts: true});
}

document.addEventListener("DOMContentLoaded", start);
