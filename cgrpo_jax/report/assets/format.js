// How numbers and texts are shown. Text of a run is always a text node; what it hides is spelled out.

// A share; 100 % is all, and 0 % is none.
function percent(x) {
  if (x == null) return "–";
  if (x >= 0.995 && x < 1) return `${(Math.floor(1000 * x) / 10).toFixed(1)} %`;
  if (x > 0 && x < 0.0005) return "under 0.1 %";
  return `${(100 * x).toFixed(x > 0 && x < 0.1 ? 1 : 0)} %`;
}
const signed = (x) => (x == null ? "–" : `${x > 0 ? "+" : x < 0 ? "−" : ""}${short(Math.abs(x))}`);

// A probability for people: 68 %, 1 in 4.3 million.
function chance(p) {
  if (p == null || p >= 0.005) return percent(p);
  const odds = 1 / p;
  return `1 in ${odds >= 1e6 ? `${Number((odds / 1e6).toPrecision(2)).toLocaleString("en")} million` : Math.round(odds).toLocaleString("en")}`;
}

function short(x) {
  if (x == null || Number.isNaN(x)) return "–";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e9) return `${(x / 1e9).toPrecision(3)} bn`;
  if (size >= 1e6) return `${(x / 1e6).toPrecision(3)} M`;
  if (size >= 1e4) return `${Math.round(x / 1e3)} k`;
  if (size >= 100) return String(Math.round(x));
  if (size < 1e-3) return x.toExponential(1).replace("e-", "e−");
  return String(Number(x.toPrecision(3)));
}

function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

const plural = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

// Control and invisible characters, as `text.shown` of the package has them; joiners within scripts stay.
const HIDDEN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/;
const HIDDEN_ALL = new RegExp(HIDDEN.source, "g");

function spelled(c) {
  const code = c.charCodeAt(0);
  return code < 256 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
}

function visible(text) {
  if (!HIDDEN.test(text)) return text;
  const parts = [];
  let at = 0;
  for (const found of text.matchAll(HIDDEN_ALL)) {
    if (found.index > at) parts.push(text.slice(at, found.index));
    parts.push(html`<span class="control">${spelled(found[0])}</span>`);
    at = found.index + found[0].length;
    if (parts.length > 4000) break; // a text of nothing else
  }
  parts.push(text.slice(at));
  return parts;
}

const oneLine = (text) => text.replace(/\s+/g, " ").replace(HIDDEN_ALL, spelled);

// A text in full, or its beginning where it is very long, with a button for the rest.
const LONG = 20000;
function Text({ text, className = "text" }) {
  const [whole, setWhole] = useState(false);
  const cut = !whole && text.length > LONG;
  return html`<div class=${className} dir="auto">${visible(cut ? text.slice(0, LONG) : text)}${
    cut && html` <button class="link" onClick=${() => setWhole(true)}>show all ${text.length.toLocaleString("en")} characters</button>`
  }${text === "" && html`<span class="empty">(nothing)</span>`}</div>`;
}

const OUTCOMES = {
  all_right: ["all right", "every response passes"],
  mixed: ["mixed", "some responses pass"],
  rescued: ["rescued", "every response fails, a refinement passes"],
  all_wrong: ["unsolved this time", "neither a response nor a refinement passes in this iteration"],
  unknown: ["no verdict", "the grader failed"],
};
const FLAGS = {
  rescued: ["rescued", "every response failed, and a refinement passes"],
  never_solved: ["never solved", "nothing that was written for this question in the whole run passes"],
  forgotten: ["forgotten", "solved in an earlier iteration, all responses wrong in this one"],
  critic_wrong: ["critic wrong", "a model's critique calls a wrong response right, or a right one wrong"],
  cut_off: ["cut off", "a response or refinement reached its greatest length"],
  mentions: ["mentions critique", "a refinement speaks of its critique or of the attempt before"],
  ungraded: ["ungraded", "a text got no verdict"],
  skipped: ["update skipped", "its gradient was not finite, and nothing was learned from it"],
};
const flagsOf = (bits) => about.flags.filter((name) => bits & FLAG[name]);

function Badge({ kind, children, title }) {
  return html`<span class="badge ${kind}" title=${title}>${children}</span>`;
}

const Mark = ({ right }) => html`<span class="mark ${right == null ? "none" : right ? "yes" : "no"}" aria-hidden="true">${right == null ? "?" : right ? "✓" : "✗"}</span>`;
