// The head of the report: what was run, what came of it, one lesson as an example, and what deserves a look.

const CRITIQUES = {
  indicative: "a rule that says right or wrong", indicative_gt: "a rule that says right or wrong, and the answer",
  execution: "a rule that runs or recomputes the response, and says what does not hold", cot: "a model that reasons and ends in a verdict",
  checklist: "the items of a checklist that are not met", hint: "a hint by a model that sees the answer", none: "none",
};

// A method in words.
function methodWords(m) {
  if (m.refine === "none") return "Plain GRPO: responses to a question are compared with each other, and nothing is critiqued";
  if (m.refine === "solution") return "GRPO with the data's own solution put into groups in which every response fails";
  const which = m.select === "random" ? "drawn at random" : "with the highest reward (of equals at random)";
  const kept = m.num_kept === 1 ? `the refinement ${which}` : `the ${m.num_kept} refinements ${which}`;
  return `Critique-GRPO: where ${m.max_pass > 0 ? "responses" : "all responses to a question"} fail, a critique says why of each, and the policy (the model that is trained) writes each again with its critique in view: a refinement. It is trained on ${kept}, as an answer to the question alone`;
}

// Which responses are refined.
function whichRefined(m) {
  if (!(m.max_pass > 0)) return "responses, where all to a question fail";
  return `${m.refined === "all" ? "all responses" : "those that fail"}, where at most ${percent(m.max_pass)} of the responses to a question are right`;
}

function Story({ run, found }) {
  const first = run.heldOut[0], last = run.heldOut.at(-1), m = run.method;
  const done = run.ended ? "" : ` The run has done ${run.done} of ${plural(run.planned, "iteration")}.`;
  const parts = [];
  if (first && last && first !== last && first["pass@1"] != null) {
    const [a, b] = [percent(first["pass@1"]), percent(last["pass@1"])];
    const from = first.iteration ? `After ${first.iteration} iterations` : m.warm_start ? "Before training, after its warm start," : "Before training";
    parts.push(a === b
      ? html`Held-out accuracy is <b>${b}</b>, as ${from[0].toLowerCase()}${from.slice(1)}. `
      : html`${from} the model solved <b>${a}</b> of the held-out questions, which are never trained on; after ${plural(last.iteration, "iteration")} it solves <b>${b}</b>. `);
  } else if (last?.["pass@1"] != null) {
    parts.push(html`The model solves <b>${percent(last["pass@1"])}</b> of the held-out questions. `);
  }
  if (found) {
    if (m.refine === "policy" && found.wrong) {
      parts.push(html`A <i>group</i> is the ${plural(m.num_responses, "response")} to a question in an iteration, and what is kept of their refinements. In <b>${found.wrong.toLocaleString("en")}</b> of ${plural(found.groups, "group")} no response was right, where plain GRPO, which compares them with each other, learns nothing; with a critique in view a refinement was right in <b>${percent(found.rescued / found.wrong)}</b> of these: they were <i>rescued</i>. `);
    }
    const [again, solved, not] = found.last.rescued, [others, alone] = found.last.all_wrong;
    if (m.refine === "policy" && found.rescued) {
      if (again) parts.push(html`Of ${plural(again, "rescued group")} whose question was asked again later, in <b>${percent(solved / again)}</b> a response solved it, without a critique, the last time that it was asked${others ? html` (of ${others.toLocaleString("en")} that nothing had rescued, in ${percent(alone / others)})` : ""}. `);
      if (not) parts.push(html`${again ? html`<b>${not.toLocaleString("en")}</b> were not asked again` : "No rescued question was asked again"}, so this run does not show whether ${not === 1 && again ? "its question was" : "their questions were"} learned. `);
    }
    if (found.never.size) parts.push(html`<b>${plural(found.never.size, "question")}</b> of ${found.problems.size.toLocaleString("en")} ${found.never.size === 1 ? "was" : "were"} solved by no response and no refinement, ${found.never.size === 1 ? "and not asked" : "none of them asked"} after iteration ${found.lastFailed}. `);
    else if (found.problems.size) parts.push("Every question that was asked was solved at least once, by a response or a refinement. ");
  }
  const look = run.warnings.length + run.faults.length;
  return html`<p class="story">${parts}${done}${look > 0 && html` <button class="link" onClick=${() => scrollToSection("worth")}>${plural(look, "thing")} ${look === 1 ? "deserves" : "deserve"} a look</button>.`}</p>${found?.groups > 0 && html`<${Alone} run=${run} />`}`;
}

// What one run can't say, and what it takes to say it.
function Alone({ run }) {
  if (run.method.refine === "none") return html`<p class="note alone"><b>One run, no comparison.</b> What critiques would add is not in this page: train the same configuration with <code>--config.refine.kind=policy</code> into another folder, and give both to <code>cgrpo report THIS OTHER --out=compared.html</code>.</p>`;
  return html`<p class="note alone"><b>One run, no comparison.</b> What the critiques added to plain GRPO is not in this page. To see it, train the same configuration and seed with <code>--config.refine.kind=none</code> into another folder, and give both to <code>cgrpo report THIS OTHER --out=compared.html</code>. One seed each says little; give several.</p>`;
}

// What is asked, when a response is right, and what the model had learned before.
function Task({ run, example, index }) {
  const one = example ?? (index?.problems.length ? { question: index.problems[0][2], answer: index.problems[0][3] } : null);
  return html`<h2 id="task">The task</h2><div class="task">
    <dl><div><dt>questions</dt><dd>${visible(run.task.asked)}.</dd></div><div><dt>a response is</dt><dd>${visible(run.task.graded)}.</dd></div><div><dt>before the first iteration</dt><dd>${visible(run.task.start)}</dd></div></dl>
    ${one && html`<div class="asked"><span class="label">an example: question</span><${Text} text=${one.question} /><span class="label">gold answer: the data's right one, which no response is shown</span><${Text} text=${one.answer} className="text code" />${one.solution && html`<span class="label">worked solution, which the data have</span><${Text} text=${one.solution} className="text code" />`}</div>`}</div>`;
}

// With what a run was started: its last command, the code, the machine.
function Started({ run }) {
  const last = run.starts.at(-1);
  if (!last) return null;
  const parts = [last.devices, `cgrpo_jax ${last.version}${last.commit && ` at ${last.commit}`}${last.commit.endsWith("+") ? " (files differ from that commit)" : ""}`, `iterations began ${last.time.replace("T", " ")} by the machine's clock`, run.starts.length > 1 && `in all ${run.starts.length} times`].filter(Boolean);
  return html`<p class="started">${last.command && html`<code>${visible(last.command)}</code><br />`}<span class="muted">${parts.map((part, n) => html`${n > 0 && html`<span class="dot">·</span>`}${visible(part)}`)}</span></p>`;
}

// Tokens that models wrote, by stage, where the rollouts that say so are there.
function byStage({ response, critique, refinement }) {
  const total = response + critique + refinement;
  const parts = [[response, "responses"], [critique, "critiques"], [refinement, "refinements"]].filter(([number]) => number);
  return total ? `by models, ${parts.map(([number, words]) => `${percent(number / total)} in ${words}`).join(", ")}; ` : "";
}

function Tiles({ run, found }) {
  const first = run.heldOut[0], last = run.heldOut.at(-1);
  const interval = last?.interval;
  const tiles = [
    last?.["pass@1"] != null && ["held-out pass@1", percent(last["pass@1"]), `${first !== last ? `${percent(first["pass@1"])} ${first.iteration ? `after ${first.iteration} iterations` : "before"}; ` : ""}${interval ? `95 % interval ${percent(interval[0])} to ${percent(interval[1])}, ${last.questions} questions` : "number of questions not recorded: no interval"}`],
    found && run.method.refine !== "none" && ["rescued", found.rescued.toLocaleString("en"), `groups in which every response failed and a refinement passed, of ${found.wrong.toLocaleString("en")}`],
    found && ["never solved", found.never.size.toLocaleString("en"), `questions of ${found.problems.size.toLocaleString("en")} that were asked: by no response and no refinement${run.method.refine !== "none" ? `; ${(found.unanswered - found.never.size).toLocaleString("en")} by a refinement alone` : ""}`],
    ["iterations", `${run.done}`, run.ended ? "the run has ended" : `of ${run.planned}; it goes on, or was stopped`],
    run.metrics.num_tokens && ["tokens written", short(run.metrics.num_tokens.at(-1)), `${byStage(about.sums[0].tokens)}and ${short((run.metrics.tokens_trained ?? []).reduce((a, b) => a + (b ?? 0), 0))} trained`],
    ["time", duration(run.summary?.seconds ?? (run.metrics.step_time ?? []).reduce((a, b) => a + (b ?? 0), 0)), run.summary ? `${run.method.warm_start ? "warm start, " : ""}compilation and evaluations included` : "of the iterations"],
  ].filter(Boolean);
  return html`<dl class="tiles">${tiles.map(([name, value, words]) => html`<div key=${name}><dt>${name}</dt><dd><b>${value}</b><span>${words}</span></dd></div>`)}</dl>`;
}

const SEES = { nothing: ", which sees no gold answer", answer: ", which sees the gold answer", solution: ", which sees the gold answer and the solution" };

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
      <li><b>Answer</b><span>${m.num_responses} responses to each of ${m.questions} questions an iteration; ${{ policy: `they and what is kept of the refinements`, solution: "they and the solution" }[m.refine] ?? "they"} are its group</span></li>
      ${m.refine === "policy" && html`<li><b>Critique</b><span>of ${m.critiqued === "all" ? "all responses" : whichRefined(m)}: ${CRITIQUES[m.critique] ?? m.critique}${m.critique === "cot" ? SEES[m.sees] : ""}</span></li>
      <li><b>Refine</b><span>${m.critiqued === "all" ? `of ${whichRefined(m)}, ` : ""}with the critique in view; ${m.num_kept} kept for a question${m.select === "random" ? ", at random" : ", of the highest reward"}</span></li>`}
      ${m.refine === "solution" && html`<li><b>Insert</b><span>the data's solution where all fail</span></li>`}
      <li><b>Compare</b><span>a text's advantage A = its reward − mean reward of ${refines && m.baseline === "initial" ? "the responses alone" : "the group"}${m.scale_by_std ? ", over its deviation" : ""}; above 0 it becomes likelier, below 0 less likely</span></li>
      <li><b>Train</b><span>on each text as an answer to the question alone</span></li>
    </ol>
    <p class="equation"><span><i>responses</i> <var>${responses[0]}</var>, ${responses[1]}</span>
    ${refines && html`<span><i>refinements</i> <var>${refinements[0]}</var>, ${refinements[1]}</span>`}</p>
    <p class="note">This is maximised, token by token. A is the advantage; π is the probability that the model gives a token after the question and the tokens before it${refines ? " (of a refinement, too, without its critique)" : ""}, π_old what it was before the update.</p></div>`;
}

function Lesson({ index, open }) {
  const [lesson, setLesson] = useState(null);
  const at = useMemo(() => {
    if (about.lesson) return about.lesson[0];
    const whole = (i) => index.shard[i] >= 0 && index.kept[i];
    const kept = about.runs.flatMap((_, number) => learned(index, number).map(([i]) => i)).filter(whole);
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
  return html`<div class="lesson"><h3>One lesson${about.runs.length === 1 && " of this run"}</h3>
    <p class="note">${about.runs.length > 1 && html`Arm ${armName(about.runs[index.run[at]].arm)}, ${visible(oneLine(about.runs[index.run[at]].name))}. `}Iteration ${index.iteration[at]}: ${index.flags[at] & FLAG.rescued ? "every response to this question failed" : "responses to this question failed"}. Here is one, with its critique and its refinement. <button class="link" onClick=${() => open(at)}>Open it below</button></p>
    ${kept ? html`<div class="asked"><span class="label">question</span><${Text} text=${lesson.group.question} /><p class="gold"><span class="label">gold answer</span> <code>${visible(lesson.group.answer.slice(0, 400))}</code></p></div><${Chain} group=${lesson.group} refinement=${kept} run=${index.run[at]} compact />${helped && html`<p class="helped">With the critique in view the policy wrote <code>${visible(kept.pieces[about.lesson[2]])}</code> with a probability of <b>${chance(helped.sampler)}</b>. Without it, it would have had <b>${chance(helped.p)}</b>. That is what this text teaches.</p>`}${again !== undefined && html`<p class="helped">In iteration ${index.iteration[again]} the question was asked again: <b>${rights(again)} of ${index.rewards[again].length}</b> responses were right, with no critique in view.</p>`}` : html`<div class="waiting"></div>`}</div>`;
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
  const told = Math.max(0, about.runs.findIndex((one) => one.method.refine === "policy")); // of several, whose method is told
  return html`<section id="overview" aria-label="overview">
    <h1>${single ? visible(run.name) : `${about.runs.length} runs, ${plural(about.arms.length, "arm")}`}</h1>
    <p class="sub">${single ? html`${visible(oneLine(run.task.model))}<span class="dot">·</span>${visible(oneLine(run.data))}<span class="dot">·</span>seed ${run.seed}` : `they differ in ${about.differing.map(([key]) => key).join(", ") || "their seeds alone"}`}<span class="dot">·</span>made ${about.made}</p>
    ${single && html`<${Started} run=${run} />`}
    ${single ? html`<${Story} run=${run} found=${found} /><${Tiles} run=${run} found=${found} />` : html`<${ArmsStory} /><${Compared} />`}
    <${Task} run=${about.runs[told]} example=${about.examples[told]} index=${index} />
    <h2>The method</h2><p class="note">${!single && `Of arm ${armName(about.runs[told].arm)}. `}${methodWords(about.runs[told].method)}.</p><${Method} run=${about.runs[told]} />
    ${index && html`<${Lesson} index=${index} open=${open} />`}
    ${index?.size > 0 && (single ? html`<${Outcomes} index=${index} open=${open} />` : html`<${ArmsCompared} index=${index} open=${open} />`)}
    ${single && html`<h2 id="worth">Worth a look</h2><${Warnings} run=${run} />`}
    ${single ? html`<${Configuration} run=${run} />` : html`<details class="configuration"><summary>Configurations</summary>${about.runs.map((one) => html`<div key=${one.name}><${Started} run=${one} /><${Configuration} run=${one} /></div>`)}</details>`}
  </section>`;
}
