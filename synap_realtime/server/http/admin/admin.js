"use strict";
// The admin page. Data from the server is inserted as text, never as HTML, so that a notification cannot run a
// script. The token stays in this tab and is sent in headers, never in a URL.

const POLL_MS = 2000;
const POINTS = 60; // of a curve: two minutes
const MAX_SHOWN = 200; // notifications of a log
const LAST_RECONNECT_CODE = 4499; // PROTOCOL.md, "Close codes"

// "//admin" is this page, too. Without the replacement, its URLs would start with another host.
const base = location.pathname.replace(/^\/+/, "/").replace(/\/admin\/?$/, "");
const $ = (id) => document.getElementById(id);
let token = sessionStorage.getItem("synap-admin-token") ?? "";
let timer = 0;

function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(base + path, { ...options, headers, signal: AbortSignal.timeout(10_000) });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Error(body.details ?? response.statusText), { status: response.status });
  return body;
}

// ---- Tiles with a number and a curve ----

const since = (name) => (now, before, seconds) => (now.totals[name] - before.totals[name]) / seconds;
const TILES = [
  { name: "connections", value: connectionsOf },
  { name: "rooms with subscribers", value: (now) => now.roomCount },
  { name: "published / s", rate: since("published") },
  { name: "delivered / s", rate: since("delivered") },
  { name: "errors / s", rate: since("rejected"), isBad: true },
  { name: "server disconnects / s", rate: since("disconnected"), isBad: true },
];
let last = null;

function makeTiles() {
  for (const tile of TILES) {
    tile.points = [];
    tile.element = make("div", null, { class: "tile" });
    tile.number = make("b", "–");
    tile.curve = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    tile.curve.setAttribute("viewBox", `0 0 ${POINTS - 1} 20`);
    tile.curve.setAttribute("preserveAspectRatio", "none");
    tile.curve.setAttribute("aria-hidden", "true");
    tile.line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    for (const [name, value] of [["fill", "none"], ["stroke", "currentColor"], ["stroke-width", "1.5"],
      ["vector-effect", "non-scaling-stroke"]]) tile.line.setAttribute(name, value);
    tile.curve.append(tile.line);
    tile.element.append(tile.number, make("span", tile.name), tile.curve);
    $("tiles").append(tile.element);
  }
}

function shown(number) {
  if (number >= 10 || Number.isInteger(number)) return Math.round(number).toLocaleString("en");
  return number.toFixed(1);
}

function runsOf(state) {
  return state.nodes.map((node) => `${node.name} ${node.startedAt}`).join();
}

function showTiles(now) {
  // The totals of other nodes, or of nodes that were restarted, give no rate.
  const before = last && runsOf(last) === runsOf(now) ? last : null;
  last = { ...now, at: performance.now() };
  for (const tile of TILES) {
    if (tile.rate && !before) {
      tile.number.textContent = "–";
      tile.points = [];
      continue;
    }
    const value = tile.rate ? tile.rate(now, before, (last.at - before.at) / 1000) : tile.value(now);
    tile.points = [...tile.points, value].slice(-POINTS);
    tile.number.textContent = shown(value);
    const most = Math.max(...tile.points, 1);
    const first = POINTS - tile.points.length;
    const points = tile.points.map((point, index) => `${first + index},${(19 - (point / most) * 18).toFixed(2)}`);
    tile.line.setAttribute("points", points.join(" "));
    tile.element.classList.toggle("bad", Boolean(tile.isBad) && value > 0);
  }
}

// ---- Nodes ----

function duration(seconds) {
  for (const [unit, size] of [["d", 86_400], ["h", 3600], ["min", 60]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.max(0, Math.floor(seconds))} s`;
}

function connectionsOf(node) {
  return node.connections.websocket + node.connections.sse;
}

function showNodes(now) {
  const rows = now.nodes.map((node) => {
    const row = make("tr");
    const upFor = duration((Date.now() - new Date(node.startedAt)) / 1000);
    row.append(make("td", node.name, { class: "mono" }), make("td", node.version), make("td", upFor),
      make("td", connectionsOf(node).toLocaleString("en"), { class: "number" }));
    return row;
  });
  $("nodes").replaceChildren(...rows);
  $("cluster").hidden = rows.length === 1 && !now.partial;
  const { answered, nodes } = now.partial ?? {};
  $("node-count").textContent = now.partial
    ? `${answered} of ${nodes ?? "an unknown number"} answered; the numbers cover these`
    : `${rows.length}`;
  $("node-count").classList.toggle("bad-news", Boolean(now.partial));
}

// ---- Rooms ----

let open = null; // the room that is shown

function showRooms(now) {
  const rows = now.rooms.map(({ room, connections }) => {
    const row = make("tr", null, room === open?.room ? { "aria-current": "true" } : {});
    const cell = make("td");
    const button = make("button", room, { type: "button", class: "name", "data-room": room });
    cell.append(button);
    row.append(cell, make("td", connections.toLocaleString("en"), { class: "number" }));
    return row;
  });
  const focused = document.activeElement?.dataset?.room;
  $("rooms").replaceChildren(...rows);
  if (focused) $("rooms").querySelector(`[data-room="${CSS.escape(focused)}"]`)?.focus();
  $("no-rooms").hidden = rows.length > 0;
  const all = now.roomCount === rows.length ? `${rows.length}` : `${rows.length} of ${now.roomCount}`;
  $("room-count").textContent = all;
}

function time(text) {
  return text ? new Date(text).toLocaleTimeString("en-GB") : "–";
}

async function showConnections() {
  const current = open;
  try {
    const found = await ask(`/admin/rooms/${encodeURIComponent(current.room)}`);
    if (open !== current) return;
    const rows = found.connections.map((one) => {
      const row = make("tr");
      for (const text of [one.user ?? "–", one.device ?? "–", one.transport, one.address ?? "–", one.node,
        time(one.since), time(one.expiresAt)]) row.append(make("td", text));
      return row;
    });
    $("connections").replaceChildren(...rows);
    const missing = found.partial ? "; some nodes did not answer" : "";
    const more = found.total > rows.length ? ` of ${found.total}` : "";
    $("connection-count").textContent = `${rows.length}${more}${missing}`;
  } catch (error) {
    if (open === current) $("connection-count").textContent = error.message;
  }
}

// ---- A room's log, live ----

class Log {
  constructor(room) {
    this.room = room;
    this.cursor = "earliest";
    this.attempt = 0;
    this.seen = new Set();
    this.pending = []; // while it is paused
    this.isPaused = false;
    this.connect();
  }

  connect() {
    const url = new URL(`${base}/rooms/${encodeURIComponent(this.room)}/subscribe`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("after", this.cursor);
    const socket = new WebSocket(url, token ? ["synap.v1", `bearer.${token}`] : ["synap.v1"]);
    this.socket = socket;
    this.showState("connecting …");
    socket.onopen = () => {
      this.pings = setInterval(() => socket.send("ping"), 30_000);
    };
    socket.onmessage = ({ data }) => data !== "pong" && this.onFrame(JSON.parse(data));
    socket.onclose = ({ code, reason }) => {
      clearInterval(this.pings);
      if (this.isClosed) return;
      if (code > LAST_RECONNECT_CODE) {
        const why = code === 4503
          ? "the token does not grant access to this room: it needs the scope subscribe, and the room or *"
          : `closed by the server: ${code} ${reason}`;
        this.showState(why, true);
        return;
      }
      const seconds = Math.min(16, 2 ** this.attempt++);
      this.showState(`disconnected; reconnecting in ${seconds} s`, true);
      this.timer = setTimeout(() => this.connect(), seconds * 1000);
    };
  }

  onFrame(frame) {
    if (frame.type === "synap.subscribed") {
      this.attempt = 0;
      this.cursor = frame.data.cursor;
      this.showState("live");
      if (!frame.data.recovered) this.add(make("li", "earlier notifications are no longer retained", { class: "mark" }));
      if (frame.data.replayed) this.add(make("li", `${frame.data.replayed} replayed from the log`, { class: "mark" }));
    } else if (!frame.type.startsWith("synap.")) {
      this.cursor = frame.cursor;
      if (this.seen.has(frame.id)) return;
      this.seen.add(frame.id);
      if (this.seen.size > 5 * MAX_SHOWN) this.seen.delete(this.seen.values().next().value);
      this.add(entryOf(frame));
    }
  }

  add(entry) {
    if (this.isPaused) {
      this.pending.push(entry);
      this.pending = this.pending.slice(-MAX_SHOWN);
      $("pause").textContent = `Resume (${this.pending.length})`;
      return;
    }
    $("log").prepend(entry);
    while ($("log").childElementCount > MAX_SHOWN) $("log").lastElementChild.remove();
    $("no-log").hidden = true;
  }

  pause(isPaused) {
    this.isPaused = isPaused;
    $("pause").setAttribute("aria-pressed", String(isPaused));
    $("pause").textContent = isPaused ? "Resume" : "Pause";
    if (!isPaused) this.pending.splice(0).forEach((entry) => this.add(entry));
  }

  showState(text, isBad = false) {
    $("room-state").textContent = text;
    $("room-state").classList.toggle("bad-news", isBad);
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.timer);
    clearInterval(this.pings);
    this.socket.close();
  }
}

function entryOf(notification) {
  const { type, status, timestamp } = notification;
  const summary = make("summary");
  summary.append(make("time", time(timestamp), { datetime: timestamp }), make("span", type, { class: "name" }));
  if (status) summary.append(make("span", status, { class: ["success", "error", "pending"].includes(status) ? status : "" }));
  const details = make("details");
  details.append(summary, make("pre", JSON.stringify(notification, null, 2)));
  const entry = make("li");
  entry.append(details);
  return entry;
}

function openRoom(room) {
  if (open?.room === room) return;
  open?.close();
  $("log").replaceChildren();
  $("no-log").hidden = false;
  $("connections").replaceChildren();
  $("connection-count").textContent = "";
  $("test-result").textContent = "";
  $("room-title").textContent = room;
  $("room").hidden = false;
  open = new Log(room);
  open.pause(false);
  for (const row of $("rooms").children) {
    const isThis = row.querySelector("button").dataset.room === room;
    row.toggleAttribute("aria-current", isThis);
    if (isThis) row.setAttribute("aria-current", "true");
  }
  showConnections();
}

// ---- A test notification ----

async function sendTest(event) {
  event.preventDefault();
  const result = $("test-result");
  result.classList.remove("bad-news");
  try {
    const data = JSON.parse($("test-data").value);
    const body = JSON.stringify({ type: $("test-type").value, data });
    const headers = { "Content-Type": "application/json" };
    const path = `/rooms/${encodeURIComponent(open.room)}/broadcast`;
    const sent = await ask(path, { method: "POST", headers, body });
    result.textContent = `published ${sent.id}: delivered to ${sent.broadcastCount} subscriber${sent.broadcastCount === 1 ? "" : "s"}`;
  } catch (error) {
    result.classList.add("bad-news");
    result.textContent = error instanceof SyntaxError ? `Data is not JSON: ${error.message}` : error.message;
  }
}

// ---- Sign-in and polling ----

function light(state, text) {
  $("light").dataset.state = state;
  if ($("light").textContent !== text) $("light").textContent = text;
}

function askForToken(refusal) {
  $("board").hidden = true;
  $("leave").hidden = true;
  $("sign-in").hidden = false;
  $("refusal").textContent = refusal;
  $("token").focus();
  light("wait", "not signed in");
}

async function poll() {
  clearTimeout(timer);
  try {
    const now = await ask(`/admin/state?room=${encodeURIComponent($("room-name").value.trim())}`);
    $("sign-in").hidden = true;
    $("board").hidden = false;
    $("leave").hidden = !token;
    $("version").textContent = now.version;
    const oldest = now.nodes.map((node) => node.startedAt).sort()[0];
    $("about").textContent = `${now.store}. Since ${new Date(oldest).toLocaleString("en-GB")}.`;
    light("good", "live");
    showTiles(now);
    showNodes(now);
    showRooms(now);
    if (open) await showConnections();
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      const refusal = token ? error.message : "";
      signOut(refusal);
      return;
    }
    light("bad", error.status ? error.message : "server unreachable");
  }
  clearTimeout(timer); // set by a concurrent call
  timer = setTimeout(poll, POLL_MS);
}

function signOut(refusal = "") {
  clearTimeout(timer);
  open?.close();
  open = last = null;
  $("room").hidden = true;
  token = "";
  sessionStorage.removeItem("synap-admin-token");
  askForToken(refusal);
}

$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  sessionStorage.setItem("synap-admin-token", token);
  poll();
});
$("leave").addEventListener("click", () => signOut());
$("rooms").addEventListener("click", ({ target }) => target.dataset.room && openRoom(target.dataset.room));
$("find").addEventListener("submit", (event) => {
  event.preventDefault();
  const room = $("room-name").value.trim();
  if (room) openRoom(room);
});
$("room-name").addEventListener("input", () => poll());
$("pause").addEventListener("click", () => open?.pause(!open.isPaused));
$("test").addEventListener("submit", sendTest);
makeTiles();
poll();
