/*
 * The calculators: costs by the model of benchmarks/cost.py, with the prices of benchmarks/prices.toml; sizes by the
 * measurements on the page "Scale out".
 * A classic script, because browsers load no modules from file://. It requests nothing.
 */
(() => {
  "use strict";

  // prettier-ignore
  const PRICES = /* generated */ {"cloudflare": {"page": "https://developers.cloudflare.com/durable-objects/platform/pricing/", "seen": "2026-11-25", "verified": true, "plan": 5.0, "worker_requests": {"included": 10000000.0, "per_million": 0.3}, "worker_cpu_ms": {"included": 30000000.0, "per_million": 0.02}, "object_requests": {"included": 1000000.0, "per_million": 0.15}, "object_gb_s": {"included": 400000.0, "per_million": 12.5}, "rows_read": {"included": 25000000000.0, "per_million": 0.001}, "rows_written": {"included": 50000000.0, "per_million": 1.0}, "stored_gb": {"included": 5, "per_million": 200000.0}, "data_points": {"included": 10000000.0, "per_million": 0.25}, "websocket_messages_per_request": 20, "object_gb": 0.128}, "ably": {"page": "https://ably.com/docs/platform/pricing/resource-based", "seen": "2026-11-25", "verified": false, "per_million_messages": 2.5, "per_million_connection_minutes": 1.0, "per_million_channel_minutes": 1.0, "packages": [{"name": "Standard", "price": 29.0, "connections": 10000}, {"name": "Pro", "price": 399.0, "connections": 50000}]}, "pusher": {"page": "https://pusher.com/channels/pricing/", "seen": "2026-11-25", "verified": false, "plans": [{"name": "Sandbox", "price": 0.0, "connections": 100, "messages_a_day": 200000.0}, {"name": "Startup", "price": 49.0, "connections": 500, "messages_a_day": 1000000.0}, {"name": "Pro", "price": 99.0, "connections": 2000, "messages_a_day": 4000000.0}, {"name": "Business", "price": 299.0, "connections": 5000, "messages_a_day": 10000000.0}, {"name": "Premium", "price": 499.0, "connections": 10000, "messages_a_day": 20000000.0}, {"name": "Growth", "price": 699.0, "connections": 15000, "messages_a_day": 40000000.0}, {"name": "Plus", "price": 899.0, "connections": 20000, "messages_a_day": 60000000.0}, {"name": "Growth Plus", "price": 1199.0, "connections": 30000, "messages_a_day": 90000000.0}]}, "machine": {"page": "any host's: 4 cores, 8 GB, 80 GB of disk", "seen": "2026-11-25", "verified": false, "price": 40.0, "connections": 20000}} /* end */;

  const MONTH_MINUTES = 30 * 24 * 60;
  const PING_S = 30;
  const OBJECT_MS = 10;
  const WORKER_CPU_MS = 2;
  const RECORD_DAYS = 7;

  // Rows that the Worker writes; see benchmarks/cost.py.
  const ROWS = {
    newRoom: 7, foldingRoom: 5, notification: 2, deletedNotification: 1, recordChange: 1, deletedRecord: 1, key: 2,
    expiredLog: 4, deletedRoom: 4, ack: 1, connection: 10,
  };

  const published = (use) => use.users * use.jobs * use.notifications;
  const connectedMinutes = (use) => use.users * use.sessions * use.session_minutes;
  const peakConnections = (use) => Math.ceil((connectedMinutes(use) / MONTH_MINUTES) * use.peak);

  const over = (value, { included, per_million }) => (Math.max(0, value - included) * per_million) / 1e6;

  function cloudflare(use) {
    const prices = PRICES.cloudflare;
    const jobs = use.users * use.jobs;
    const connections = use.users * use.sessions;
    const notifications = published(use);
    const seconds = connectedMinutes(use) * 60;
    const messagesIn = notifications + seconds / PING_S;
    const checks = use.idle_timeout_s ? seconds / Math.max(1, use.idle_timeout_s - PING_S / 2) : 0;
    const logs = jobs * 2;
    const rooms = jobs + Math.min(jobs, (use.users * 30) / RECORD_DAYS);
    const alarms = (logs + rooms) * 2;
    const runsWithProgress = use.notifications > 2 ? jobs * 2 : 0;
    const workerRequests = notifications + connections;
    const awake = notifications * 2 + connections * 5 + notifications + checks + alarms;
    const meters = {
      worker_requests: workerRequests,
      worker_cpu_ms: workerRequests * WORKER_CPU_MS,
      object_requests:
        notifications * 2 + connections * 5 + messagesIn / prices.websocket_messages_per_request + checks + alarms,
      object_gb_s: ((awake * OBJECT_MS) / 1000) * prices.object_gb,
      rows_read: awake * 20,
      rows_written:
        rooms * (ROWS.newRoom + ROWS.deletedRoom) +
        logs * (ROWS.expiredLog + ROWS.deletedRecord) +
        notifications * 2 * (ROWS.notification + ROWS.recordChange + ROWS.deletedNotification) +
        runsWithProgress * ROWS.key +
        (runsWithProgress ? rooms * ROWS.foldingRoom : 0) +
        notifications * ROWS.ack +
        connections * ROWS.connection +
        checks,
      data_points: notifications * 2 + connections * 2,
      stored_gb:
        (use.users * 30e3 +
          (notifications / 30) * use.notification_bytes +
          ((jobs * 2 * RECORD_DAYS) / 30) * use.notification_bytes) /
        1e9,
    };
    const costs = Object.entries(meters).map(([name, value]) => over(value, prices[name]));
    return costs.reduce((sum, cost) => sum + cost, prices.plan);
  }

  function ably(use) {
    const prices = PRICES.ably;
    const found = prices.packages.find(({ connections }) => peakConnections(use) <= connections);
    if (!found) return null;
    const perMinute = prices.per_million_connection_minutes + prices.per_million_channel_minutes;
    const usage = published(use) * 2 * prices.per_million_messages + connectedMinutes(use) * perMinute;
    return [found.price + usage / 1e6, found.name];
  }

  function pusher(use) {
    const messages = (published(use) * 2) / 30;
    const found = PRICES.pusher.plans.find(
      (plan) => peakConnections(use) <= plan.connections && messages <= plan.messages_a_day,
    );
    return found ? [found.price, found.name] : null;
  }

  function machines(use) {
    const count = Math.max(1, Math.ceil(peakConnections(use) / PRICES.machine.connections));
    return [count * PRICES.machine.price, count];
  }

  const dollars = (amount) => `$${Math.round(amount).toLocaleString("en-US")}`;
  const named = (found) => (found ? `${dollars(found[0])} (${found[1]})` : "ask them");

  /** Return the cells of the table on the page "Sizing and cost". */
  function costs(use) {
    return {
      peak: peakConnections(use).toLocaleString("en-US"),
      cloudflare: dollars(cloudflare(use)),
      ably: named(ably(use)),
      pusher: named(pusher(use)),
      machines: named(machines(use)),
    };
  }

  const KB = 1024;
  // What a node serves at half of its core, and what it takes; see "Sizing" on the page "Scale out".
  const NODE = { connections: 10_000, publishesPerS: 6_000, bytes: 52 * KB * KB, connectionBytes: 6 * KB };
  const TLS_CONNECTION_BYTES = 50 * KB;
  const MAX_CONNECTIONS = 20_000; // of one server, by default
  // Valkey: a room grows in steps. An id is kept for 5 minutes.
  const ROOM = { stepBytes: 4 * KB, bytes: 480, entryBytes: 145, subscriberBytes: 0.6 * KB };
  const ID = { bytes: 0.2 * KB, keptS: 300 };

  /** Return the cells of the table of sizes. */
  function sizes({ connections, publishes_per_s, rooms, kept, notification_bytes, tls }) {
    const forLoad = Math.max(
      1,
      Math.ceil(connections / NODE.connections),
      Math.ceil(publishes_per_s / NODE.publishesPerS),
    );
    const ofOne = Math.ceil(connections / forLoad); // while one of the nodes is away
    const perConnection = tls ? TLS_CONNECTION_BYTES : NODE.connectionBytes;
    const steps = Math.ceil((kept * (notification_bytes + ROOM.entryBytes)) / ROOM.stepBytes);
    const valkey =
      rooms * (steps * ROOM.stepBytes + ROOM.bytes) +
      connections * ROOM.subscriberBytes +
      publishes_per_s * ID.keptS * ID.bytes;
    const isEnough = connections <= MAX_CONNECTIONS && publishes_per_s <= NODE.publishesPerS;
    return {
      single: isEnough ? "is enough, if it may be away for a moment" : "is not enough",
      nodes: `${forLoad} for the load, ${forLoad + 1} to be able to lose one`,
      node: `${Math.round((NODE.bytes + ofOne * perConnection) / KB / KB).toLocaleString("en-US")} MB`,
      valkey: `${(valkey / KB ** 3).toFixed(1)} GB, with twice as much on the machine`,
    };
  }

  globalThis.synapCosts = costs;
  globalThis.synapSizes = sizes;

  /** Show the results of a function for the numbers of a form, now and after each change. */
  function start(selector, results) {
    const form = globalThis.document?.querySelector(selector);
    if (!form) return;
    const update = () => {
      if (!form.checkValidity()) return;
      const numbers = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, Number(value)]));
      for (const [name, value] of Object.entries(results(numbers))) {
        document.querySelector(`[data-result=${name}]`).textContent = value;
      }
    };
    form.addEventListener("input", update);
    form.addEventListener("submit", (event) => event.preventDefault());
    update();
  }

  start("#costs", costs);
  start("#sizes", sizes);
})();
