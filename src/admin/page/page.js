"use strict";
// Shows what /status says, and again every two seconds. All of it may come from a cluster's users:
// it gets into the page as text only.

const REFRESH = 2000;
const address = new URLSearchParams(location.search);
const id = (name) => document.getElementById(name);

// Writes only what changed: no flicker, and a screen reader is told of nothing else.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function element(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

// Makes the children of `parent` those of `items`, and keeps the nodes of those that were there.
function reconcile(parent, items, key, make, update) {
  const old = new Map();
  for (const node of parent.children) old.set(node.dataset.key, node);
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    let node = old.get(name);
    if (node) {
      old.delete(name);
    } else {
      node = make(item);
      node.dataset.key = name;
    }
    const state = JSON.stringify(item);
    if (node.shownState !== state) {
      update(node, item);
      node.shownState = state;
    }
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
  }
  for (const node of old.values()) node.remove();
}

function pairs(list, entries) {
  reconcile(list, entries, (entry) => entry.name, (entry) => {
    const pair = element("div");
    pair.append(element("dt", entry.name), element("dd"));
    return pair;
  }, (pair, entry) => {
    const shown = pair.lastElementChild;
    setText(shown, entry.text);
    shown.className = entry.level || "";
  });
}

function connection(name, peer) {
  const about = [peer.url, peer.version, peer.datacenter].filter(Boolean).join(", ");
  return peer.trouble
    ? { name, text: `${about}: ${peer.trouble}`, level: "bad" }
    : { name, text: about || "not connected yet" };
}

const watch = (it) => ({
  name: `Watch of ${it.kind}`,
  text: it.trouble || `heard ${age(it.seconds_since_heard)} ago`,
  level: it.trouble ? "bad" : "",
});

function age(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

function head(status) {
  setText(id("command"), status.command || "");
  const facts = [status.cluster && `cluster ${status.cluster}`, status.leadership, status.version && `version ${status.version}`];
  setText(id("facts"), facts.filter(Boolean).join(" · "));
  setText(id("state"), status.ready ? "Ready" : `Not ready: ${status.reason || "no reason given"}`);
  id("state").className = status.ready ? "good" : "bad";
  document.title = `${status.ready ? "" : "! "}kube-consul ${status.cluster || status.command || ""}`.trim();
  const connections = [];
  if (status.kubernetes) connections.push(connection("Kubernetes", status.kubernetes));
  if (status.consul) connections.push(connection("Consul", status.consul));
  for (const it of status.watches || []) connections.push(watch(it));
  pairs(id("connections"), connections);
  const counts = Object.entries(status.counts || {});
  pairs(id("counts"), counts.map(([name, count]) => ({ name: name.replaceAll("_", " ").replace("ptr", "PTR"), text: String(count) })));
}

function held(status) {
  const removals = status.held || [];
  id("held-section").hidden = !status.holding && removals.length === 0;
  const items = removals.length ? removals : [{ reason: "Removals are held until a second list confirms them." }];
  reconcile(id("held"), id("held-section").hidden ? [] : items, (it) => it.reason,
    () => element("li", undefined, "warn"),
    (node, it) => setText(node, it.count === undefined ? it.reason : `${it.count}: ${it.reason}`));
}

function problems(status) {
  const list = status.problems || [];
  id("no-problems").hidden = list.length > 0;
  reconcile(id("problems"), list, (it) => [it.kind, it.namespace, it.name, it.reason].join("/"), () => {
    const node = element("li");
    node.append(element("h3"), element("p"));
    return node;
  }, (node, it) => {
    const where = [it.namespace, it.name].filter(Boolean).join("/");
    setText(node.firstChild, `${it.kind} ${where}: ${it.reason}`);
    node.firstChild.className = "bad";
    setText(node.lastChild, it.message);
  });
}

// The columns that a list has, for what each command keeps.
const COLUMNS = {
  instances: [
    ["Service ID", (it) => it.id],
    ["Consul service", (it) => it.service],
    ["Address", (it) => [it.address, it.port].filter((part) => part !== undefined && part !== null).join(" port ")],
    ["Tags", (it) => (it.tags || []).join(", ")],
    ["Check", (it) => (it.critical ? "critical" : "passing")],
  ],
  addresses: [
    ["Endpoint", (it) => it.address],
    ["Port", (it) => String(it.port)],
    ["State", (it) => (it.ready ? "ready" : "not ready")],
  ],
  registrations: [
    ["Service ID", (it) => it.id],
    ["Check", (it) => it.status || "not in the agent"],
    ["Next heartbeat", (it) => (typeof it.next_heartbeat_seconds === "number" ? `in ${age(it.next_heartbeat_seconds)}` : "")],
  ],
};

function table(columns, rows, caption) {
  const node = element("table");
  node.setAttribute("aria-label", caption);
  const titles = element("tr");
  const used = columns.filter(([, text]) => rows.some((row) => text(row)));
  for (const [title] of used) {
    const cell = element("th", title);
    cell.scope = "col";
    titles.append(cell);
  }
  const top = element("thead");
  top.append(titles);
  const body = element("tbody");
  for (const row of rows) {
    const line = element("tr");
    for (const [title, text] of used) {
      const cell = element("td", text(row));
      cell.dataset.label = title;
      if (["critical", "not ready", "not in the agent"].includes(text(row))) cell.className = "bad";
      line.append(cell);
    }
    body.append(line);
  }
  node.append(top, body);
  return node;
}

function summary(it) {
  if (it.instances) {
    const critical = it.instances.filter((instance) => instance.critical).length;
    if (it.instances.length === 0) return "not in Consul";
    return `${it.instances.length - critical} passing, ${critical} critical`;
  }
  if (it.registrations) {
    const passing = it.registrations.filter((registration) => registration.status === "passing").length;
    const sidecar = it.sidecar ? `; sidecar ${it.sidecar}` : "";
    return `containers ${it.ready ? "ready" : "not ready"}${sidecar}; ${passing} of ${it.registrations.length} passing`;
  }
  if (it.sources) return `${it.sources.join(", ")}: ${it.ready} of ${it.endpoints} endpoints ready`;
  return "";
}

function objects(status) {
  const list = status.pods || status.services || [];
  setText(id("objects-title"), status.pods ? "Pods" : "Services");
  const matching = address.get("match");
  setText(id("shown"), `${list.length}${status.next ? " of more" : ""} shown${matching ? `, with “${matching}”` : ""}`);
  reconcile(id("list"), list, (it) => `${it.namespace}/${it.name}`, (it) => {
    const node = element("li");
    node.append(element("h3", `${it.namespace}/${it.name}`), element("p"), element("div"));
    return node;
  }, (node, it) => {
    setText(node.children[1], summary(it));
    const details = [];
    if (it.instances && it.instances.length) {
      details.push(table(COLUMNS.instances, it.instances, `Instances of ${it.namespace}/${it.name}`));
    }
    if (it.addresses && it.addresses.length) {
      details.push(table(COLUMNS.addresses, it.addresses, `Endpoints of ${it.namespace}/${it.name}`));
      const more = it.endpoints - it.addresses.length;
      if (more > 0) details.push(element("p", `and ${more} more`));
    }
    if (it.registrations && it.registrations.length) {
      details.push(table(COLUMNS.registrations, it.registrations, `Registrations of ${it.namespace}/${it.name}`));
    }
    for (const waiting of it.waiting || []) details.push(element("p", `${waiting.record}: ${waiting.reason}`, "warn"));
    for (const problem of it.problems || []) {
      const text = problem.reason ? `${problem.reason}: ${problem.message}` : String(problem);
      details.push(element("p", text, "bad"));
    }
    node.children[2].replaceChildren(...details);
  });
  const next = id("next");
  next.hidden = !status.next;
  if (status.next) {
    const query = new URLSearchParams(address);
    query.set("after", status.next);
    next.href = `?${query}`;
  }
}

const SVG = "http://www.w3.org/2000/svg";

// One bar for each slot of time, oldest first.
function chart(node, series) {
  const largest = Math.max(...series.values, 0);
  const last = series.values.at(-1) || 0;
  const name = series.unit ? `${series.name}, ${series.unit}` : series.name;
  setText(node.firstChild, `${name}: ${last} now, ${largest} at most`);
  const width = 100 / series.values.length;
  const bars = series.values.map((value, place) => {
    const bar = document.createElementNS(SVG, "rect");
    const height = largest ? (value / largest) * 28 : 0;
    bar.setAttribute("x", String(place * width));
    bar.setAttribute("y", String(30 - height));
    bar.setAttribute("width", String(width * 0.8));
    bar.setAttribute("height", String(height));
    return bar;
  });
  node.lastChild.replaceChildren(...bars);
}

function charts(status) {
  const series = (status.history || []).filter((it) => it.values.length);
  id("charts-section").hidden = series.length === 0;
  reconcile(id("charts"), series, (it) => it.name, (it) => {
    const node = element("figure");
    const drawing = document.createElementNS(SVG, "svg");
    drawing.setAttribute("viewBox", "0 0 100 30");
    drawing.setAttribute("preserveAspectRatio", "none");
    drawing.setAttribute("role", "img");
    drawing.setAttribute("aria-label", `${it.name}, the last 15 minutes`);
    node.append(element("figcaption"), drawing);
    return node;
  }, chart);
}

async function refresh() {
  const query = new URLSearchParams();
  for (const name of ["match", "after"]) if (address.get(name)) query.set(name, address.get(name));
  const offline = id("offline");
  try {
    const answer = await fetch(`status?${query}`, { headers: { Accept: "application/json" }, cache: "no-store" });
    if (!answer.ok) throw new Error(`${answer.status}: ${(await answer.text()).slice(0, 300)}`);
    const status = await answer.json();
    head(status);
    charts(status);
    held(status);
    problems(status);
    objects(status);
    offline.hidden = true;
  } catch (error) {
    setText(offline, `No answer; what is below is from before. ${error.message}`);
    offline.hidden = false;
  }
}

async function run() {
  // A page that nobody looks at asks nothing.
  if (!document.hidden) await refresh();
  setTimeout(run, REFRESH);
}

id("filter").value = address.get("match") || "";
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== id("filter")) {
    event.preventDefault();
    id("filter").focus();
  }
});
run();
