// The head of the report: what was run, what came of it, one lesson as an example, and what deserves a look.

// Of groups of which no response was right, what came of the question when it was asked the next time.
function nextTime(index, number) {
  const found = { rescued: [0, 0], all_wrong: [0, 0] };
  for (const times of index.byProblem.values()) {
    if (index.run[times[0]] !== number) continue;
    times.slice(0, -1).forEach((at, n) => {
      const counts = found[about.outcomes[index.outcome[at]]];
      if (!counts) return;
      counts[0]++;
      counts[1] += solvedAt(index, times[n + 1]);
    });
  }
  return found;
}

function stats(index, number) {
  const found = { groups: 0, rescued: 0, trained: 0, problems: new Set(), never: new Set(), lastFailed: 0, forgotten: 0, wrong: 0 };
  for (let at = 0; at < index.size; at++) {
    if (index.run[at] !== number) continue;
    found.groups++;
    found.trained += index.trained[at];
    found.problems.add(index.problem[at]);
    if (index.flags[at] & FLAG.rescued) found.rescued++;
    if (index.flags[at] & FLAG.never_solved) { found.never.add(index.problem[at]); found.lastFailed = Math.max(found.lastFailed, index.iteration[at]); }
    if (index.flags[at] & FLAG.forgotten) found.forgotten++;
    if (index.outcome[at] === OUTCOME.rescued || index.outcome[at] === OUTCOME.all_wrong) found.wrong++;
  }
  return { ...found, next: nextTime(index, number) };
}

// The questions that nothing ever solved, those that were asked most first; the times that each was asked.
function unsolved(index, number) {
  const found = [...index.byProblem.values()].filter((times) => index.run[times[0]] === number && index.flags[times[0]] & FLAG.never_solved);
  return found.sort((a, b) => b.length - a.length || b.at(-1) - a.at(-1));
}

// Questions that something has solved, but no response the last time that they were asked.
function unsure(index, number) {
  const last = [...index.byProblem.values()].filter((times) => index.run[times[0]] === number && !(index.flags[times[0]] & FLAG.never_solved));
  const found = last.filter((times) => [OUTCOME.rescued, OUTCOME.all_wrong].includes(index.outcome[times.at(-1)]));
  return found.sort((a, b) => index.iteration[b.at(-1)] - index.iteration[a.at(-1)] || b.length - a.length);
}

const METHODS = {
  none: "plain GRPO: responses are compared with each other, and nothing is critiqued",
  solution: "GRPO with the data's own solution put into groups in which every response fails",
  policy: "Critique-GRPO: where responses fail, a critique says why, the policy refines them with the critique in view, and is trained on the best refinement as an answer to the question alone",
};
const CRITIQUES = {
  indicative: "a rule that says right or wrong", indicative_gt: "a rule that says right or wrong, and the answer",
  execution: "a rule that runs or recomputes the response, and says what does not hold", cot: "a model that reasons and ends in a verdict",
  checklist: "the items of a checklist that are not met", none: "none",
};

function Story({ run, found }) {
  const first = run.heldOut[0], last = run.heldOut.at(-1);
  const done = run.ended ? "" : ` The run has done ${run.done} of ${plural(run.planned, "iteration")}.`;
  const parts = [];
  if (first && last && first !== last && first["pass@1"] != null) {
    const [a, b] = [percent(first["pass@1"]), percent(last["pass@1"])];
    const from = first.iteration ? `After ${first.iteration} iterations` : "Before training";
    parts.push(a === b
      ? html`Held-out accuracy is <b>${b}</b>, as ${from.toLowerCase()}. `
      : html`${from} the model solved <b>${a}</b> of the held-out questions; after ${plural(last.iteration, "iteration")} it solves <b>${b}</b>. `);
  } else if (last?.["pass@1"] != null) {
    parts.push(html`The model solves <b>${percent(last["pass@1"])}</b> of the held-out questions. `);
  }
  if (found) {
    if (run.method.refine === "policy" && found.wrong) {
      parts.push(html`In <b>${found.wrong.toLocaleString("en")}</b> of ${plural(found.groups, "group")} of responses none was right, where plain GRPO learns nothing; critiques rescued <b>${percent(found.rescued / found.wrong)}</b> of them. `);
    }
    const [again, solved] = found.next.rescued, [others, alone] = found.next.all_wrong;
    if (again && run.method.refine === "policy") {
      parts.push(html`Of ${plural(again, "rescued group")} whose question was asked again, <b>${percent(solved / again)}</b> were solved the next time, without a critique${others ? html` (of ${others.toLocaleString("en")} that nothing had rescued, ${percent(alone / others)})` : ""}. `);
    }
    if (found.never.size) parts.push(html`<b>${plural(found.never.size, "question")}</b> of ${found.problems.size.toLocaleString("en")} ${found.never.size === 1 ? "was" : "were"} never solved, ${found.never.size === 1 ? "and not asked" : "none of them asked"} after iteration ${found.lastFailed}. `);
    else if (found.problems.size) parts.push("Every question that was asked was solved at least once. ");
  }
  const look = run.warnings.length + run.faults.length;
  return html`<p class="story">${parts}${done}${look > 0 && html` <button class="link" onClick=${() => scrollToSection("worth")}>${plural(look, "thing")} ${look === 1 ? "deserves" : "deserve"} a look</button>.`}</p>`;
}

// With what a run was started: its last command, the code, the machine.
function Started({ run }) {
  const last = run.starts.at(-1);
  if (!last) return null;
  const parts = [last.devices, `cgrpo_jax ${last.version}${last.commit && ` at ${last.commit}`}${last.commit.endsWith("+") ? " (files differ from that commit)" : ""}`, `started ${last.time.replace("T", " ")}`, run.starts.length > 1 && `in all ${run.starts.length} times`].filter(Boolean);
  return html`<p class="started">${last.command && html`<code>${visible(last.command)}</code><br />`}<span class="muted">${parts.map((part, n) => html`${n > 0 && html`<span class="dot">·</span>`}${visible(part)}`)}</span></p>`;
}

// Tokens by stage, where the rollouts that say so are there.
function byStage({ response, critique, refinement }) {
  const total = response + critique + refinement;
  return total ? `${percent(response / total)} in responses, ${percent(critique / total)} in critiques, ${percent(refinement / total)} in refinements; ` : "";
}

// What was learned: questions that nothing but a refinement solved, and that a response solves when asked again. Where it
// failed: questions that nothing solved. Each opens below: of the former the rescue, of the latter the last time.
const MOST_LISTED = 6;
const solvedAt = (index, at) => index.outcome[at] === OUTCOME.all_right || index.outcome[at] === OUTCOME.mixed;
function learned(index, number) {
  const found = [];
  for (const times of index.byProblem.values()) {
    if (index.run[times[0]] !== number) continue;
    const rescue = times.findIndex((at) => index.flags[at] & FLAG.rescued), after = times.slice(rescue + 1).find((at) => solvedAt(index, at));
    if (rescue >= 0 && after !== undefined && !times.slice(0, rescue).some((at) => solvedAt(index, at))) found.push([times[rescue], after]);
  }
  return found.sort(([a], [b]) => (index.shard[b] >= 0) - (index.shard[a] >= 0) || index.iteration[a] - index.iteration[b]);
}

function Listed({ title, note, children }) {
  return html`<div class="listed"><h3>${title}</h3><p class="note">${note}</p><ul>${children}</ul></div>`;
}

function Met({ index, at, words, open }) {
  const said = index.said[at];
  return html`<li><button class="link" onClick=${() => open(at)}>${oneLine(index.problems[index.problem[at]][2]).slice(0, 110)}</button> <span class="muted">${words}</span>
    ${said && html`<q class="said" dir="auto">${oneLine(said)}</q>`}</li>`;
}

// From which critiques: those that were said again and again, by the right refinements that came of them.
function Critiques({ most }) {
  const words = (written, right, trained) => `${right === written ? `all ${written}` : `${right} of ${written}`} refinements after it pass; ${trained} of them trained`;
  return html`<${Listed} title="From which critiques" note="Those that led to most right refinements, of the critiques that were said more than once, in the groups whose texts are in this page:">
    ${most.map(([text, written, right, trained]) => html`<li key=${text}><q class="said" dir="auto">${oneLine(text)}</q><span class="muted">${words(written, right, trained)}</span></li>`)}</${Listed}>`;
}

function Outcomes({ index, open }) {
  const [gained, failed, still] = useMemo(() => [learned(index, 0), unsolved(index, 0), unsure(index, 0)], [index]);
  const most = about.critiques[0].slice(0, MOST_LISTED);
  const shown = (n) => (n > MOST_LISTED ? `, ${MOST_LISTED} of them` : "");
  const whole = (times) => times.findLast((one) => index.shard[one] >= 0) ?? times.at(-1);
  const asked = (times) => `asked ${times.length === 1 ? "once" : `${times.length} times`}, last in iteration ${index.iteration[times.at(-1)]}`;
  const tried = (times) => { const n = times.reduce((sum, at) => sum + index.refined[at], 0); return n ? `; ${plural(n, "refinement")}, none right` : ""; };
  return html`<div class="outcomes">
    ${gained.length > 0 && html`<${Listed} title="What was learned" note="${plural(gained.length, "question")} whose responses all failed, which a refinement rescued, and which a response solved without a critique when they were asked again${shown(gained.length)}, with what the critique said:">
      ${gained.slice(0, MOST_LISTED).map(([at, after]) => html`<${Met} key=${at} index=${index} at=${at} open=${open} words=${`rescued in iteration ${index.iteration[at]}, solved in ${index.iteration[after]}`} />`)}</${Listed}>`}
    ${most.length > 0 && html`<${Critiques} most=${most} />`}
    ${failed.length > 0 && html`<${Listed} title="Where it failed" note="${plural(failed.length, "question")} that no response and no refinement of the run solved, those that were asked most${shown(failed.length)}, with what the critique said:">
      ${failed.slice(0, MOST_LISTED).map((times) => html`<${Met} key=${times[0]} index=${index} at=${whole(times)} open=${open} words=${asked(times) + tried(times)} />`)}</${Listed}>`}
    ${still.length > 0 && html`<${Listed} title="What still fails without help" note="${plural(still.length, "question")} that something solved once, but no response the last time they were asked, the latest${shown(still.length)}:">
      ${still.slice(0, MOST_LISTED).map((times) => html`<${Met} key=${times[0]} index=${index} at=${times.at(-1)} open=${open} words=${`${asked(times)}: ${OUTCOMES[about.outcomes[index.outcome[times.at(-1)]]][0]}`} />`)}</${Listed}>`}</div>`;
}

function Tiles({ run, found }) {
  const first = run.heldOut[0], last = run.heldOut.at(-1);
  const interval = last?.interval;
  const tiles = [
    last?.["pass@1"] != null && ["held-out pass@1", percent(last["pass@1"]), `${first !== last ? `${percent(first["pass@1"])} ${first.iteration ? `after ${first.iteration} iterations` : "before"}; ` : ""}${interval ? `95 % interval ${percent(interval[0])} to ${percent(interval[1])}, ${last.questions} questions` : "number of questions not recorded: no interval"}`],
    found && ["rescued", found.rescued.toLocaleString("en"), `groups in which every response failed and a refinement passed, of ${found.wrong.toLocaleString("en")}`],
    found && ["never solved", found.never.size.toLocaleString("en"), `questions of ${found.problems.size.toLocaleString("en")} that were asked`],
    ["iterations", `${run.done}`, run.ended ? "the run has ended" : `of ${run.planned}; it goes on, or was stopped`],
    run.metrics.num_tokens && ["tokens written", short(run.metrics.num_tokens.at(-1)), `${byStage(about.sums[0].tokens)}and ${short((run.metrics.tokens_trained ?? []).reduce((a, b) => a + (b ?? 0), 0))} trained`],
    ["time", duration(run.summary?.seconds ?? (run.metrics.step_time ?? []).reduce((a, b) => a + (b ?? 0), 0)), run.summary ? "evaluations and compilation included" : "of the iterations"],
  ].filter(Boolean);
  return html`<dl class="tiles">${tiles.map(([name, value, words]) => html`<div key=${name}><dt>${name}</dt><dd><b>${value}</b><span>${words}</span></dd></div>`)}</dl>`;
}

// Of each ratio by its name in the configuration: what a table calls it, what is maximised where it is not clipped, and
// what it is.
const INITIAL_RATIOS = {
  token: ["r", "r A", "r = π/π_old"],
  sequence: ["s, of the response", "s A", "s = (π/π_old of the whole response)^(1/tokens)"],
  cispo: ["r, held fixed", "sg(min(r, 1+ε)) A log π", "r = π/π_old, capped and held fixed"],
};
const REFINED_RATIOS = {
  shaped: ["ρ, shaped", "ρ A", "ρ = π/(π + γ)"],
  importance: ["r", "r A", "r = π/π_old"],
  plain: ["π", "π A", "π itself, no ratio"],
  logp: ["none: log π", "A log π", "no ratio"],
};

// What is maximised, and in words what of: of responses and of refinements.
function equations(m) {
  const clipped = (on, term) => {
    const [ratio] = term.split(" ");
    return on && !/log/.test(term) ? `min(${ratio} A, clip(${ratio}, 1−ε, 1+ε) A)` : term;
  };
  const capped = m.tis_cap > 0 ? (m.tis_level === "token" ? `min(w, ${m.tis_cap}) · ` : `w [w ≤ ${m.tis_cap}] · `) : "";
  const [, term, words] = INITIAL_RATIOS[m.initial_ratio], [, refined, refinedWords] = REFINED_RATIOS[m.refined_ratio];
  const epsilon = m.initial_ratio === "cispo" ? m.clip_high : `${m.clip_low}${m.clip_high !== m.clip_low ? ` and ${m.clip_high}` : ""}`;
  return {
    responses: [`${capped}${clipped(m.clip_initial, term)}`, `${words}${m.clip_initial || m.initial_ratio === "cispo" ? `, ε = ${epsilon}` : ", not clipped"}${capped ? `, w = π_old/π_sampler${m.tis_level === "token" ? "" : " of the whole response"}` : ""}`],
    refinements: [clipped(m.clip_refined, refined), `${refinedWords}${m.refined_ratio === "shaped" ? `, γ = ${m.gamma}: an unlikely token still counts, most where π is near γ` : ""}`],
  };
}

function Method({ run }) {
  const m = run.method;
  const refines = m.refine !== "none";
  const { responses, refinements } = equations(m);
  return html`<div class="method">
    <ol class="steps" aria-label="the steps of an iteration">
      <li><b>Answer</b><span>${m.num_responses} responses to each question</span></li>
      ${m.refine === "policy" && html`<li><b>Critique</b><span>of those that fail: ${CRITIQUES[m.critique] ?? m.critique}</span></li>
      <li><b>Refine</b><span>with the critique in view; ${m.num_kept} kept for a question</span></li>`}
      ${m.refine === "solution" && html`<li><b>Insert</b><span>the data's solution where all fail</span></li>`}
      <li><b>Compare</b><span>advantage A = reward − mean of ${refines && m.baseline === "initial" ? "the responses alone" : "the group"}${m.scale_by_std ? ", over its deviation" : ""}</span></li>
      <li><b>Train</b><span>on each text as an answer to the question alone</span></li>
    </ol>
    <p class="equation"><span><i>responses</i> <var>${responses[0]}</var>, ${responses[1]}</span>
    ${refines && html`<span><i>refinements</i> <var>${refinements[0]}</var>, ${refinements[1]}</span>`}</p></div>`;
}

function Lesson({ index, open }) {
  const [lesson, setLesson] = useState(null);
  const at = useMemo(() => {
    if (about.lesson) return about.lesson[0];
    const whole = (i) => index.shard[i] >= 0 && index.kept[i];
    const kept = learned(index, 0).map(([i]) => i).filter(whole);
    if (kept.length) return kept[kept.length >> 1]; // each was solved when it was asked again
    let best = -1;
    for (let i = 0; i < index.size; i++) {
      if (index.flags[i] & FLAG.rescued && whole(i) && (best < 0 || index.iteration[i] >= index.iteration[best])) best = i;
    }
    return best;
  }, [index]);
  useEffect(() => { if (at >= 0) loadGroup(index, at).then((group) => setLesson({ at, group }), () => {}); }, [at]);
  if (at < 0) return null;
  const kept = lesson?.group.rows.find((row) => (about.lesson ? row.row === about.lesson[1] : row.kept && passesRow(row, index.run[at])));
  const again = kept && timesMet(index, at).find((one) => index.iteration[one] > index.iteration[at] && solvedAt(index, one));
  const rights = (one) => index.rewards[one].filter((r) => r != null && r >= methodOf(index, one).pass_threshold).length;
  const helped = about.lesson && kept?.pieces ? numbers(kept, about.lesson[2], methodOf(index, at)) : null;
  return html`<div class="lesson"><h3>One lesson of this run</h3>
    <p class="note">Iteration ${index.iteration[at]}: ${index.flags[at] & FLAG.rescued ? "every response to this question failed" : "responses to this question failed"}. Here is one, with its critique and its refinement. <button class="link" onClick=${() => open(at)}>Open it below</button></p>
    ${kept ? html`<div class="asked"><span class="label">question</span><${Text} text=${lesson.group.question} /></div><${Chain} group=${lesson.group} refinement=${kept} run=${index.run[at]} compact />${helped && html`<p class="helped">With the critique in view the policy wrote <code>${visible(kept.pieces[about.lesson[2]])}</code> with a probability of <b>${chance(helped.sampler)}</b>. Without it, it would have had <b>${chance(helped.p)}</b>. That is what this text teaches.</p>`}${again !== undefined && html`<p class="helped">In iteration ${index.iteration[again]} the question was asked again: <b>${rights(again)} of ${index.rewards[again].length}</b> responses were right, with no critique in view.</p>`}` : html`<div class="waiting"></div>`}</div>`;
}

function Warnings({ run }) {
  if (!run.warnings.length && !run.faults.length) return html`<p class="calm"><span aria-hidden="true">✓</span> Nothing to warn of: no skipped updates, no failed graders, no collapse of entropy.</p>`;
  return html`<ul class="warnings">${run.warnings.map((w) => html`<li key=${w.title}><b>${w.title}</b> <span class="evidence">${w.evidence}.</span> ${w.means} <span class="remedy">Try: ${w.remedy}</span></li>`)}
    ${run.faults.map((fault) => html`<li key=${fault} class="fault">${visible(fault)}.</li>`)}</ul>`;
}

function Configuration({ run }) {
  const keys = Object.entries(run.changed);
  return html`<details class="configuration"><summary>Configuration${about.runs.length > 1 && html` of ${visible(run.name)}`}: ${plural(keys.length, "key")} other than the defaults</summary>
    <div class="scroll" tabindex="0" role="region" aria-label="configuration of ${run.name}"><table><tbody>${keys.map(([key, value]) => html`<tr key=${key}><th scope="row">${key}</th><td>${visible(value.length > 2000 ? `${value.slice(0, 2000)} …` : value)}</td></tr>`)}</tbody></table></div></details>`;
}

function Compared() {
  const rows = about.runs.map((run) => ({
    run, before: run.heldOut.find((p) => p.iteration === 0)?.["pass@1"], after: run.heldOut.findLast((p) => p.iteration > 0)?.["pass@1"],
  }));
  return html`<div class="scroll" tabindex="0" role="region" aria-label="the runs"><table class="compared"><thead><tr><th scope="col">run</th><th scope="col">seed</th>${about.differing.map(([key]) => html`<th key=${key} scope="col">${key}</th>`)}
    <th scope="col">iterations</th><th scope="col">before</th><th scope="col">after</th><th scope="col">tokens</th><th scope="col">time</th><th scope="col">to look at</th></tr></thead>
    <tbody>${rows.map(({ run, before, after }, at) => html`<tr key=${at}><th scope="row"><span class="key block" style=${{ color: `var(${ARM_COLOURS[run.arm % 7]})` }}></span>${armName(run.arm)} ${visible(run.name)}</th><td>${run.seed}</td>
      ${about.differing.map(([key, values]) => html`<td key=${key}>${visible(oneLine(values[at]).slice(0, 60))}</td>`)}
      <td>${run.done}${run.ended ? "" : ` of ${run.planned}`}</td><td class="before">${percent(before)}</td><td><b>${percent(after)}</b></td><td>${short(run.metrics.num_tokens?.at(-1))}</td><td>${duration(run.summary?.seconds)}</td>
      <td>${run.warnings.map((w) => w.title).join("; ") || "–"}</td></tr>`)}</tbody></table></div>`;
}

function Overview({ index, open }) {
  const single = about.runs.length === 1;
  const [run] = about.runs;
  const found = useMemo(() => (index && single ? stats(index, 0) : null), [index]);
  return html`<section id="overview" aria-label="overview">
    <h1>${single ? visible(run.name) : `${about.runs.length} runs, ${plural(about.arms.length, "arm")}`}</h1>
    <p class="sub">${single ? html`${visible(oneLine(run.model))}<span class="dot">·</span>${visible(oneLine(run.data))}<span class="dot">·</span>seed ${run.seed}` : `they differ in ${about.differing.map(([key]) => key).join(", ") || "their seeds alone"}`}<span class="dot">·</span>made ${about.made}</p>
    ${single && html`<${Started} run=${run} />`}
    ${single ? html`<${Story} run=${run} found=${found} /><${Tiles} run=${run} found=${found} />` : html`<${Compared} />`}
    <h2>The method</h2><p class="note">${METHODS[run.method.refine]}.${!single && " Of the first run:"}</p><${Method} run=${run} />
    ${index && html`<${Lesson} index=${index} open=${open} />`}
    ${index && single && html`<${Outcomes} index=${index} open=${open} />`}
    ${single && html`<h2 id="worth">Worth a look</h2><${Warnings} run=${run} />`}
    ${single ? html`<${Configuration} run=${run} />` : html`<details class="configuration"><summary>Configurations</summary>${about.runs.map((one) => html`<div key=${one.name}><${Started} run=${one} /><${Configuration} run=${one} /></div>`)}</details>`}
  </section>`;
}
