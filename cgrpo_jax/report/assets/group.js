// One question of an iteration: its responses, under each its critiques and refinements, and what was trained.

const methodOf = (index, at) => about.runs[index.run[at]].method;
const passesRow = (row, run) => (row.reward == null ? null : row.reward >= about.runs[run].method.pass_threshold);
const NO_RATIO = { nll: "none: likelihood", distil: "none: distilled" };
const DROPPED = {
  zero_advantage: "not trained: its reward is the group's mean", skipped_update: "not trained: the update was skipped",
  ungraded: "not trained: no verdict", mention: "not trained: it mentions the critique", not_selected: "not kept",
  truncated: "not trained: it is cut off, and masked", sampler_cap: "not trained: sampler and trainer disagree beyond the cap",
  replaced: "not trained: a refinement took its place", drawn_on: "not trained: its question taught nothing, and another one was drawn",
  no_feedback: "not trained: no teacher has seen a critique of it",
};

function fate(row) {
  if (row.trained) return `trained, advantage ${signed(row.advantage)}`;
  return row.dropped ? DROPPED[row.dropped] ?? row.dropped : "not trained";
}

function Meta({ row }) {
  const others = (row.rewards ?? []).length > 1 ? row.rewards.map(([name, value]) => `${name} ${short(value)}`).join(", ") : "";
  return html`<dl class="meta">
    ${row.extracted !== undefined && html`<div><dt>answer read</dt><dd><code>${visible(row.extracted.slice(0, 400))}</code></dd></div>`}
    ${row.feedback && html`<div><dt>grader</dt><dd>${visible(row.feedback.slice(0, 2000))}</dd></div>`}
    ${others && html`<div><dt>rewards</dt><dd>${others}</dd></div>`}
    ${row.truncated && html`<div><dt>length</dt><dd>cut off at the greatest length</dd></div>`}
    ${row.prompt_cut && html`<div><dt>prompt</dt><dd>what it quotes was cut to fit</dd></div>`}</dl>`;
}

function TextCard({ group, row, index, at, colouring, title, children }) {
  const right = passesRow(row, index.run[at]);
  return html`<article class="card ${row.stage} ${right == null ? "" : right ? "right" : "wrong"}">
    <header><${Mark} right=${right} /><b>${title}</b><span class="muted">${row.reward == null ? "no verdict" : `reward ${short(row.reward)}`}<span class="dot">·</span>${fate(row)}</span>${row.kept && html`<${Badge} kind="kept">kept</${Badge}>`}${row.author !== "policy" && html`<${Badge} kind="plain">by ${row.author}</${Badge}>`}</header>
    ${row.opening && html`<p class="opening">${visible(row.opening.trim())}</p>`}
    <${Tokens} row=${row} method=${methodOf(index, at)} colouring=${colouring} />
    <${Meta} row=${row} />${children}</article>`;
}

function Critique({ row, right }) {
  const agrees = row.verdict == null || right == null ? null : row.verdict === right;
  const said = row.verdict == null ? "no verdict that can be read" : `says ${row.verdict ? "right" : "wrong"}`;
  const by = { rule: "by a rule", policy: "by the policy", critic: "by the critic" }[row.author] ?? `by ${row.author}`;
  return html`<article class="card critique ${row.rejected ? "rejected" : ""}"><header><b>Critique</b><span class="muted">${by}<span class="dot">·</span>${said}${agrees != null && html`<span class="dot">·</span>${verdictWords(agrees)}`}<span class="dot">·</span>${answerWords(row.states)}</span>${row.rejected && html`<${Badge} kind="plain">attempt ${(row.attempt ?? 0) + 1}, not used</${Badge}>`}</header>
    <${Text} text=${row.text} /><${Meta} row=${row} /></article>`;
}

// The way from a wrong response by its critique to the refinement that is trained.
function Chain({ group, refinement, run, compact }) {
  const { response, critique } = chainOf(group, refinement);
  return html`<ol class="chain ${critique ? "" : "two"}">
    <li class="wrong"><h4><span class="number">1</span> A response <span class="muted">${passesRow(response ?? {}, run) ? "right" : "wrong"}</span></h4>${response ? html`<${Text} text=${response.text} />` : html`<p class="empty">not recorded</p>`}${response?.feedback && !compact && html`<p class="worth">grader: ${visible(response.feedback.slice(0, 300))}</p>`}</li>
    ${critique && html`<li class="critique"><h4><span class="number">2</span> Its critique <span class="muted">${critique.author === "rule" ? "by a rule" : `by the ${critique.author}`}</span></h4><${Text} text=${critique.text} /><${Worth} agrees=${critique.verdict == null || response?.reward == null ? null : critique.verdict === passesRow(response, run)} states=${critique.states} /></li>`}
    <li class="right"><h4><span class="number">${critique ? 3 : 2}</span> The refinement <span class="muted">passes${refinement.trained && ", is trained"}</span></h4><${Text} text=${refinement.text} /></li></ol>
  ${response && html`<div class="diff"><span class="label">from the response to the refinement: <del>removed</del> <ins>added</ins></span><${Difference} before=${response.text} after=${refinement.text} /></div>`}
  <p class="note">${refinement.trained ? html`The refinement is trained as an answer <b>to the question alone</b>, with advantage ${signed(refinement.advantage)}, its reward less the mean of its group: the next time, the policy should need no critique.` : `The refinement was kept, and is ${fate(refinement)}.`}</p>`;
}

function Tree({ group, index, at, colouring, diff }) {
  const run = index.run[at];
  const responses = group.rows.filter((row) => row.stage === "response");
  const below = (row) => group.of(row).flatMap((child) => {
    if (child.stage === "critique") return [html`<${Critique} key=${child.row} row=${child} right=${passesRow(row, run)} />`, ...below(child)];
    const response = chainOf(group, child).response;
    const title = `Refinement${child.refinement_index ? ` ${child.refinement_index + 1}` : ""}`;
    return [html`<div key=${child.row} class="under"><${TextCard} group=${group} row=${child} index=${index} at=${at} colouring=${diff ? "none" : colouring} title=${title}>${diff && response && html`<div class="diff"><span class="label">against the response</span><${Difference} before=${response.text} after=${child.text} /></div>`}</${TextCard}>${below(child)}</div>`];
  });
  return responses.map((row) => html`<div class="branch" key=${row.row}><${TextCard} group=${group} row=${row} index=${index} at=${at} colouring=${colouring} title="Response ${(row.response_index ?? 0) + 1}" /><div class="under">${below(row)}</div></div>`);
}

function Trained({ group, method }) {
  const rows = group.rows.filter((row) => row.group_position != null).sort((a, b) => a.group_position - b.group_position);
  if (!rows.length) return html`<p class="note">Nothing of this question was trained.</p>`;
  const name = (row) => (row.stage === "response" ? `response ${(row.response_index ?? 0) + 1}` : `refinement of response ${(row.response_index ?? 0) + 1}`);
  const prompts = [...new Set(rows.map((row) => group.promptOf(row.context)))].filter(Boolean);
  return html`<div class="scroll" tabindex="0" role="region" aria-label="what was trained"><table><thead><tr><th scope="col">text</th><th scope="col">reward</th><th scope="col">advantage</th><th scope="col">tokens</th><th scope="col">weighed by</th><th scope="col">became of it</th></tr></thead>
    <tbody>${rows.map((row) => html`<tr key=${row.row}><th scope="row">${name(row)}</th><td>${short(row.reward)}</td><td>${signed(row.advantage)}</td><td>${row.pieces?.length ?? "–"}</td><td>${NO_RATIO[row.loss] ?? (row.refined ? REFINED_RATIOS[method.refined_ratio][0] : INITIAL_RATIOS[method.initial_ratio][0])}</td><td>${row.trained ? "moved the weights" : DROPPED[row.dropped] ?? row.dropped}</td></tr>`)}</tbody></table></div>
    ${prompts.map((prompt, n) => html`<details key=${n} open=${prompts.length === 1}><summary>The prompt that all ${prompts.length === 1 ? "" : "of these "}are trained after, as the model sees it</summary><${Text} text=${prompt} /></details>`)}`;
}

// The rows of a group whose texts are not in the page.
function Rows({ index, at }) {
  const [found, setFound] = useState(null);
  useEffect(() => {
    let gone = false;
    loadRows(index, at).then((rows) => !gone && setFound(rows), () => !gone && setFound(null));
    return () => { gone = true; };
  }, [index, at]);
  if (!found) return null;
  const { pass_threshold: threshold } = methodOf(index, at);
  const said = (row) => (row.stage === "critique" ? (row.verdict == null ? "no verdict" : row.verdict ? "says right" : "says wrong") : row.reward == null ? "no verdict" : html`<${Mark} right=${row.reward >= threshold} /> ${short(row.reward)}`);
  const became = (row) => ({ trained: "moved the weights", rejected: "not used", "": row.stage === "critique" ? "" : "not trained" })[row.fate] ?? DROPPED[row.fate] ?? row.fate;
  return html`<div class="scroll" tabindex="0" role="region" aria-label="rows of the group"><table><thead><tr><th scope="col">text</th><th scope="col">reward, or verdict</th><th scope="col">tokens</th><th scope="col">advantage</th><th scope="col">became of it</th></tr></thead>
    <tbody>${found.map((row, n) => html`<tr key=${n}><th scope="row">${row.stage === "response" ? `response ${row.response_index + 1}` : `${row.stage} of response ${row.response_index + 1}`}</th><td>${said(row)}</td><td>${row.tokens.toLocaleString("en")}</td><td>${signed(row.advantage)}</td><td>${became(row)}</td></tr>`)}</tbody></table></div>`;
}

function Prompts({ group }) {
  const rows = group.rows.filter((row) => row.stage !== "response" && row.prompt !== undefined);
  if (!rows.length) return null;
  return html`<details><summary>Prompts of critiques and refinements (${rows.length})</summary>${rows.map((row) => html`<div key=${row.row}><p class="label">${row.stage} of response ${(row.response_index ?? 0) + 1}</p><${Text} text=${group.prompts[row.prompt]} /></div>`)}</details>`;
}

// The same question whenever it was asked: a square each time.
function Times({ index, at, open }) {
  const times = timesMet(index, at);
  if (times.length < 2) return null;
  return html`<div class="times"><span class="label">asked ${plural(times.length, "time")}</span>${times.map((one) => html`<button key=${one} class="cell o-${about.outcomes[index.outcome[one]]}" aria-current=${one === at} onClick=${() => open(one)} title="iteration ${index.iteration[one]}: ${OUTCOMES[about.outcomes[index.outcome[one]]][0]}" aria-label="iteration ${index.iteration[one]}, ${OUTCOMES[about.outcomes[index.outcome[one]]][0]}"></button>`)}</div>`;
}

function Detail({ index, at, open, colouring, setColouring, diff, setDiff }) {
  const [found, setFound] = useState({ at: -1 });
  useEffect(() => {
    let gone = false;
    loadGroup(index, at).then((group) => !gone && setFound({ at, group }), (error) => !gone && setFound({ at, error: String(error.message ?? error) }));
    return () => { gone = true; };
  }, [index, at]);
  const box = useRef(null);
  useEffect(() => { if (box.current) box.current.scrollTop = 0; }, [at]);
  const [id, number, question, answer] = index.problems[index.problem[at]];
  const outcome = about.outcomes[index.outcome[at]];
  const group = found.at === at ? found.group : undefined;
  const kept = group?.rows.find((row) => row.kept && row.stage === "refinement" && passesRow(row, index.run[at]));
  const several = about.runs.length > 1;
  return html`<div class="detail" id="detail" ref=${box} tabindex="-1" role="region" aria-label="one question">
    <header class="detail-head"><h3>${several && html`${visible(about.runs[index.run[at]].name)}, `}iteration ${index.iteration[at]}, question #${number}</h3>
      <${Badge} kind="o-${outcome}" title=${OUTCOMES[outcome][1]}>${OUTCOMES[outcome][0]}</${Badge}>${flagsOf(index.flags[at]).filter((name) => name !== "rescued").map((name) => html`<${Badge} key=${name} kind="flag" title=${FLAGS[name][1]}>${FLAGS[name][0]}</${Badge}>`)}</header>
    <${Times} index=${index} at=${at} open=${open} />
    <div class="asked">${(group?.turns ?? []).map((turn, n) => html`<div key=${n}><span class="label">${visible(turn.role)}</span><${Text} text=${turn.text} /></div>`)}
      <span class="label">question</span><${Text} text=${group?.question ?? question} /><p class="gold"><span class="label">gold answer</span> <code>${visible(group?.answer ?? answer)}</code></p>
      ${group?.solution && html`<details><summary>Worked solution of the data</summary><${Text} text=${group.solution} /></details>`}</div>
    ${found.at === at && found.error && html`<p class="fault">Its texts can't be read: ${found.error}.</p>`}
    ${found.at === at && group === null && html`<p class="note">Its texts are not in this page, which has those of ${about.shown.toLocaleString("en")} groups. In a terminal: <code>cgrpo show RUN --question=${id} --iteration=${index.iteration[at]}</code></p><${Rows} index=${index} at=${at} />`}
    ${group && html`
      ${kept && html`<h4 class="part">The lesson</h4><${Chain} group=${group} refinement=${kept} run=${index.run[at]} />`}
      <div class="part-head"><h4 class="part">All texts</h4>${group.rows.some((row) => row.stage === "refinement") && html`<label class="check"><input type="checkbox" checked=${diff} onChange=${(event) => setDiff(event.currentTarget.checked)} /> show refinements as changes</label>`}</div>
      <${ColouringBar} colouring=${colouring} setColouring=${setColouring} method=${methodOf(index, at)} group=${group} />
      <${Tree} group=${group} index=${index} at=${at} colouring=${colouring} diff=${diff} />
      <h4 class="part">What was trained</h4><${Trained} group=${group} method=${methodOf(index, at)} /><${Prompts} group=${group} />`}</div>`;
}
