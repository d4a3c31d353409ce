// The page: what is shown, keys, the address (`#group=RUN/ITERATION/QUESTION`), light and dark.

const KEYS = [
  ["j  k", "next and previous question of the list"], ["[  ]", "the same question earlier and later in the run"],
  ["c", "colour tokens by the next number"], ["d", "refinements as changes"], ["/", "search"], ["t", "light or dark"],
  ["1  2  3", "overview, curves, questions"], ["← →", "from token to token, where they are coloured and have the focus"], ["?", "these keys"],
];

function useTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const [theme, setTheme] = useState(system.matches ? "dark" : "light");
  useEffect(() => {
    const follow = () => setTheme(system.matches ? "dark" : "light");
    system.addEventListener("change", follow);
    return () => system.removeEventListener("change", follow);
  }, []);
  document.documentElement.dataset.theme = theme; // before children draw with its colours
  return [theme, () => setTheme((now) => (now === "dark" ? "light" : "dark"))];
}

// The group that tells most, which the list begins with: of those with texts, if there are any.
function telling(index) {
  const order = SORTS.telling[1](index), all = index.run.map((_, at) => at), shown = all.filter((at) => index.shard[at] >= 0);
  return (shown.length ? shown : all).reduce((best, at) => (best < 0 || order(at, best) < 0 ? at : best), -1);
}

function App() {
  const [index, setIndex] = useState(null);
  const [fault, setFault] = useState("");
  const [theme, switchTheme] = useTheme();
  const [state, setState] = useState({ filters: new Set(), run: -1, sort: "telling", query: "", texts: null, at: -1, colouring: "none", diff: false });
  const set = useCallback((change) => setState((old) => ({ ...old, ...change })), []);
  const dialog = useRef(null);
  useEffect(() => {
    unpacked(document.getElementById("index").textContent).then((raw) => {
      const found = prepared(raw);
      found.rightShare = found.rewards.map((rewards, at) => {
        const threshold = about.runs[found.run[at]].method.pass_threshold;
        return rewards.filter((r) => r != null && r >= threshold).length / Math.max(1, rewards.filter((r) => r != null).length);
      });
      const named = found.byPlace.get(location.hash.match(/^#group=(.*)$/)?.[1]);
      set({ at: named ?? telling(found) });
      setIndex(found);
      if (named !== undefined) requestAnimationFrame(() => scrollToSection("questions"));
    }).catch((error) => setFault(`This browser can't open the report's data: ${error.message}`));
  }, []);
  const list = useMemo(() => (index ? filtered(index, state) : []), [index, state.filters, state.run, state.sort, state.query, state.texts]);
  // A filter that is applied opens its first hit, and so does a search that does not find what is open.
  const applied = useRef(state);
  useEffect(() => {
    const before = applied.current;
    applied.current = state;
    const changed = ["filters", "run", "query", "texts"].some((name) => before[name] !== state[name]);
    if (!changed || !list.length) return;
    if (state.filters.size > before.filters.size || !list.includes(state.at)) set({ at: list[0] });
  }, [list]);
  const open = useCallback((at) => { set({ at }); scrollToSection("questions"); }, []);
  useEffect(() => { if (index && state.at >= 0) history.replaceState(null, "", `#group=${placeOf(index, state.at)}`); }, [index, state.at]);
  useKeys({ index, state, set, list, switchTheme, dialog });
  // What does not depend on the filters is not drawn again with them.
  const above = useMemo(() => html`<${Overview} index=${index} open=${open} /><${Curves} index=${index} theme=${theme} /><${Measured} theme=${theme} />`, [index, theme]);
  const below = useMemo(() => html`${index && html`<${Matrix} index=${index} theme=${theme} open=${open} />`}<${Glossary} />`, [index, theme]);
  return html`<header class="bar"><a class="brand" href="#overview" onClick=${(event) => { event.preventDefault(); scrollToSection("overview"); }}>cgrpo<span> report</span></a>
      <nav aria-label="sections">${[["overview", "Overview"], ["curves", "Curves"], ["questions", "Questions"]].map(([id, name]) => html`<button key=${id} onClick=${() => scrollToSection(id)}>${name}</button>`)}</nav>
      <span class="tools"><button onClick=${switchTheme} aria-label="switch to ${theme === "dark" ? "light" : "dark"}">${theme === "dark" ? "☀" : "☾"}</button><button onClick=${() => dialog.current.showModal()} aria-label="keys">?</button></span></header>
    <main>${fault && html`<p class="fault">${fault}</p>`}
      ${about.faults.map((one) => html`<p class="fault" key=${one}>${visible(one)}</p>`)}
      ${above}
      ${index && (index.size ? html`<${Questions} index=${index} state=${state} set=${set} at=${state.at} list=${list} />`
        : html`<section id="questions"><h2>Questions</h2><p class="note">The run has written no rollouts (rollouts.every).</p></section>`)}
      ${below}</main>
    <dialog ref=${dialog} aria-label="keys" onClick=${(event) => event.target === dialog.current && dialog.current.close()}><h2>Keys</h2><table><tbody>${KEYS.map(([key, what]) => html`<tr key=${key}><th scope="row"><kbd>${key}</kbd></th><td>${what}</td></tr>`)}</tbody></table><form method="dialog"><button>Close</button></form></dialog>`;
}

function Glossary() {
  const names = [...new Set(about.runs.flatMap((run) => Object.keys(run.metrics)))].filter((name) => about.help[name]).sort();
  return html`<section id="glossary"><details><summary>What each number of metrics.jsonl means</summary><dl class="glossary">${names.map((name) => html`<div key=${name}><dt><code>${name}</code></dt><dd>${about.help[name]}</dd></div>`)}</dl></details>
    <p class="note">Made by <code>cgrpo report</code> from the run's own files. Nothing was sent anywhere.</p></section>`;
}

function scrollToSection(id) {
  document.getElementById(id)?.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

function useKeys({ index, state, set, list, switchTheme, dialog }) {
  useEffect(() => {
    const pressed = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target.matches?.("input, select, textarea")) {
        if (event.key === "Escape") event.target.blur();
        return;
      }
      const move = (places, by) => {
        const here = places.indexOf(state.at);
        const next = places[here < 0 ? 0 : Math.max(0, Math.min(places.length - 1, here + by))];
        if (next !== undefined) set({ at: next });
      };
      const colourings = colouringsOf(about.runs[index?.run[state.at] ?? 0].method).map(([name]) => name);
      const does = {
        j: () => move(list, 1), k: () => move(list, -1), "[": () => index && state.at >= 0 && move(timesMet(index, state.at), -1), "]": () => index && state.at >= 0 && move(timesMet(index, state.at), 1),
        c: () => set({ colouring: colourings[(colourings.indexOf(state.colouring) + 1) % colourings.length] }), d: () => set({ diff: !state.diff }),
        t: switchTheme, "?": () => dialog.current.showModal(), "/": () => document.getElementById("search")?.focus(),
        1: () => scrollToSection("overview"), 2: () => scrollToSection("curves"), 3: () => scrollToSection("questions"),
      }[event.key];
      if (!does || dialog.current?.open) return;
      event.preventDefault();
      does();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  });
}

render(html`<${App} />`, document.getElementById("app"));
