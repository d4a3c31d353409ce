"use strict";
// What the page knows: `about` (runs, curves), `index` (every question of every iteration), and texts, which are
// decompressed when one is looked at.

const { html, render, useState, useEffect, useMemo, useRef, useCallback } = htmPreact;
const about = JSON.parse(document.getElementById("about").textContent);

async function unpacked(base64) {
  // Not by way of a Blob, which lies in another process: its bytes would go there and back.
  const stream = new Response(bytesOf(base64)).body.pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const read = atob(base64), bytes = new Uint8Array(read.length);
  for (let at = 0; at < read.length; at++) bytes[at] = read.charCodeAt(at);
  return bytes;
}

// --- texts: in the page, or in files beside it, which call `cgrpoTexts` with what is packed, or with values as they are

const shardPromises = new Map();
const shardWaiting = new Map();
globalThis.cgrpoTexts = (number, found) => shardWaiting.get(number)?.(found);

function loadShard(number) {
  if (!shardPromises.has(number)) {
    const inPage = document.getElementById(`texts-${number}`);
    const source = inPage ? Promise.resolve(inPage.textContent) : beside(number);
    shardPromises.set(number, source.then((one) => (typeof one === "string" ? unpacked(one) : one)));
  }
  return shardPromises.get(number);
}

function beside(number) {
  return new Promise((resolve, reject) => {
    shardWaiting.set(number, resolve);
    const script = document.createElement("script");
    script.src = `${about.folder}/texts_${String(number).padStart(3, "0")}.js`;
    script.onerror = () => reject(new Error(`${script.src} is not beside this page`));
    document.head.append(script);
  });
}

// --- the index ----------------------------------------------------------------------------------------------------

const FLAG = Object.fromEntries(about.flags.map((name, bit) => [name, 1 << bit]));
const OUTCOME = Object.fromEntries(about.outcomes.map((name, number) => [name, number]));

// Adds to the columns what they are looked up by: groups of a problem, in the order of iterations.
function prepared(index) {
  const byProblem = new Map();
  const order = index.run.map((_, at) => at).sort((a, b) => index.run[a] - index.run[b] || index.iteration[a] - index.iteration[b]);
  for (const at of order) {
    const key = `${index.run[at]}/${index.problem[at]}`;
    if (!byProblem.has(key)) byProblem.set(key, []);
    byProblem.get(key).push(at);
  }
  const byPlace = new Map(index.run.map((run, at) => [`${run}/${index.iteration[at]}/${index.question[at]}`, at]));
  const lower = index.problems.map(([id, number, question, answer]) => `${question}\n${answer}\n#${number}\n${id}`.toLowerCase());
  const found = { ...index, size: index.run.length, byProblem, byPlace, lower };
  found.learned = new Set(about.runs.flatMap((_, number) => learned(found, number).map(([at]) => at)));
  return found;
}

const placeOf = (index, at) => `${index.run[at]}/${index.iteration[at]}/${index.question[at]}`;
const timesMet = (index, at) => index.byProblem.get(`${index.run[at]}/${index.problem[at]}`);

// The texts of a group, with what answers what.
async function loadGroup(index, at) {
  if (index.shard[at] < 0) return null;
  const group = (await loadShard(index.shard[at]))[index.at[at]];
  return arranged(group);
}

// What became of each row of a group, of which every group has some: see rows.py. Null where its rollouts are damaged.
const STAGES = ["response", "critique", "refinement"];
async function loadRows(index, at) {
  const place = about.rows[`${index.run[at]}/${index.iteration[at]}`];
  if (!place) return null;
  const of = (await loadShard(place[0]))[place[1]];
  const rows = [];
  of.question.forEach((question, n) => {
    if (question !== index.question[at]) return;
    rows.push({ stage: STAGES[of.stage[n]], response_index: of.response[n], reward: of.reward[n], verdict: of.verdict[n], tokens: of.tokens[n], advantage: of.advantage[n], fate: of.fates[of.fate[n]] });
  });
  return rows;
}

function arranged(group) {
  const byRow = new Map(group.rows.map((row) => [row.row, row]));
  const children = new Map();
  for (const row of group.rows) {
    if (row.pieces && row.text === undefined) {
      const whole = row.pieces.join("");
      row.text = row.end ? whole.slice(0, whole.length - row.end) : whole;
    }
    if (row.parent === undefined) continue;
    if (!children.has(row.parent)) children.set(row.parent, []);
    children.get(row.parent).push(row);
  }
  const of = (row) => children.get(row.row) ?? [];
  return { ...group, of, parent: (row) => byRow.get(row.parent), promptOf: (row) => group.prompts[byRow.get(row)?.prompt] };
}

// The response that a refinement goes back to, and the critique between them, if there is one.
function chainOf(group, refinement) {
  const above = group.parent(refinement);
  if (!above) return { refinement };
  return above.stage === "critique" ? { critique: above, response: group.parent(above), refinement } : { response: above, refinement };
}
